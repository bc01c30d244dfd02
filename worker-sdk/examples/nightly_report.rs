//! A nightly report that keeps itself going: each run enqueues the next, and what was done of a run is not done again.
//!
//!     leasehold dev                                # in one terminal
//!     cargo run -p worker-sdk --example nightly_report
//!
//! A night is three seconds long here, and there are two of them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use worker_sdk::{Client, Context, Error, JobError, TypedJob, Worker};

const NIGHT: Duration = Duration::from_secs(3);

#[derive(Serialize, Deserialize)]
struct Report {
    /// Nights since 1970.
    night: u64,
    /// The last one; a real one goes on for ever.
    last: u64,
}

impl TypedJob for Report {
    const KIND: &'static str = "nightly-report";
    const QUEUE: &'static str = "reports";
    type Output = String;
}

/// When the night is over, once for each night, however often and from how many places it is enqueued.
async fn schedule(client: &Client, report: Report) -> Result<String, Error> {
    let begins = UNIX_EPOCH + NIGHT * u32::try_from(report.night).unwrap_or(u32::MAX);
    let key = format!("report-{}", report.night);
    let job = report.job()?.run_time(begins).idempotency_key(key);
    Ok(client.enqueue(job).await?.job.id)
}

async fn report(context: Context, report: Report) -> Result<String, JobError> {
    let client = context.state::<Client>()?;
    if report.night < report.last {
        let (night, last) = (report.night + 1, report.last);
        // First of all: the next night comes even if this report fails for good.
        schedule(&client, Report { night, last }).await?;
    }
    let sales: u64 = context.step("count", || count(report.night)).await?;
    let page = format!("night {}: {sales} sales", report.night);
    context.step("mail", || mail(page.clone())).await?;
    Ok(page)
}

async fn count(night: u64) -> Result<u64, JobError> {
    Ok(night % 97)
}

/// Once it is recorded, a later attempt does not mail again.
async fn mail(page: String) -> Result<(), JobError> {
    println!("mailed: {page}");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::var("LEASEHOLD_SERVER").unwrap_or("http://127.0.0.1:7070".into());
    let client = Client::connect(&server).await?;
    let worker = Worker::builder(&server)
        .state(client.clone())
        .typed(report)
        .build()?;
    let worker = tokio::spawn(worker.run());

    let today = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / NIGHT.as_secs();
    let (first, last) = (today + 1, today + 2);
    schedule(&client, Report { night: first, last }).await?;
    // The same night again, as another process would: it is the same job.
    let first = schedule(&client, Report { night: first, last }).await?;
    println!("{}", done(&client, &first).await?);
    let second = schedule(&client, Report { night: last, last }).await?;
    println!("{}", done(&client, &second).await?);
    worker.abort();
    Ok(())
}

async fn done(client: &Client, id: &str) -> Result<String, Error> {
    client
        .wait(id, Duration::from_secs(60))
        .await?
        .output_of::<Report>()
}
