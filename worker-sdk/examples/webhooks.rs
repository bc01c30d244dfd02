//! Webhook delivery with retries: the receiver decides whether, and when, to try again, and can tell a repeat by its key.
//!
//!     leasehold dev                                # in one terminal
//!     cargo run -p worker-sdk --example webhooks
//!
//! It brings a receiver that is busy at first. The HTTP is written by hand so that the example needs no client library; use
//! yours.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use worker_sdk::{Client, Context, JobError, NewJob, Permanent, Retry, TypedJob, Worker};

#[derive(Serialize, Deserialize)]
struct Delivery {
    /// `host:port` of the receiver.
    to: String,
    body: String,
}

impl TypedJob for Delivery {
    const KIND: &'static str = "deliver-webhook";
    const QUEUE: &'static str = "webhooks";
    type Output = u16;

    fn options(&self, job: NewJob) -> NewJob {
        job.max_attempts(20)
            .timeout(Duration::from_secs(15))
            .backoff(Duration::from_secs(5), 2.0, Duration::from_secs(6 * 3600))
            .label("receiver", &self.to)
    }
}

async fn deliver(context: Context, delivery: Delivery) -> Result<u16, JobError> {
    let (status, wait) = post(&delivery.to, context.job_id(), &delivery.body).await?;
    match status {
        200..300 => Ok(status),
        // The receiver says when.
        429 | 503 => Err(Retry::after(wait.unwrap_or(Duration::from_secs(60)))
            .because(format!("the receiver is busy: {status}"))
            .into()),
        // It is gone, or does not like what we say: trying again changes nothing.
        400 | 401 | 403 | 404 | 410 | 422 => Err(Permanent(format!("refused: {status}")).into()),
        // Retried with the job's backoff.
        _ => Err(JobError::new(format!("answered {status}")).with_type("ReceiverFailed")),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::var("LEASEHOLD_SERVER").unwrap_or("http://127.0.0.1:7070".into());
    let worker = Worker::builder(&server).typed(deliver).build()?;
    let worker = tokio::spawn(worker.run());

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let to = listener.local_addr()?.to_string();
    let receiver = tokio::spawn(receive(listener));

    let client = Client::connect(&server).await?;
    let body = r#"{"event":"order.paid","order":17}"#.into();
    let job = Delivery { to, body }.job()?;
    // One event is delivered once, however often it is enqueued.
    let job = job.idempotency_key(format!("order-17-paid-{}", std::process::id()));
    let id = client.enqueue(job).await?.job.id;
    let job = client.wait(&id, Duration::from_secs(60)).await?;
    let status = job.output_of::<Delivery>()?;
    println!("{status} after {} attempts", job.attempt);

    receiver.abort();
    worker.abort();
    Ok(())
}

/// The answer's status, and how long it asks to wait.
async fn post(to: &str, key: &str, body: &str) -> Result<(u16, Option<Duration>), JobError> {
    let mut stream = TcpStream::connect(to).await?;
    let length = body.len();
    let head = format!(
        "POST /hook HTTP/1.1\r\nHost: {to}\r\nContent-Type: application/json\r\nIdempotency-Key: {key}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).await?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).unwrap_or_default().parse()?;
    let asked = answer
        .lines()
        .find_map(|line| line.strip_prefix("Retry-After: "));
    let wait = asked.and_then(|seconds| seconds.parse().ok());
    Ok((status, wait.map(Duration::from_secs)))
}

/// Is busy twice, and then takes what it is given.
async fn receive(listener: TcpListener) -> std::io::Result<()> {
    let mut answers = ["503 Busy\r\nRetry-After: 1", "503 Busy\r\nRetry-After: 1"].into_iter();
    loop {
        let (mut stream, _) = listener.accept().await?;
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await?;
        let answer = answers.next().unwrap_or("204 No Content");
        let answer = format!("HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).await?;
    }
}
