//! An import with checkpoints: an attempt that fails in the middle is followed by one that goes on from there, and says so
//! in the job's log.
//!
//!     leasehold dev                                # in one terminal
//!     cargo run -p worker-sdk --example import
//!
//! The first attempt breaks down at a line that it does not like.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use worker_sdk::{Client, Context, JobError, LogLevel, NewJob, TypedJob, Worker};

/// Lines between two checkpoints: what is done twice at most.
const EVERY: usize = 100;

#[derive(Serialize, Deserialize)]
struct Import {
    lines: usize,
}

#[derive(Serialize, Deserialize, Default)]
struct Imported {
    lines: usize,
    sum: usize,
}

impl TypedJob for Import {
    const KIND: &'static str = "import";
    const QUEUE: &'static str = "imports";
    type Output = Imported;

    fn options(&self, job: NewJob) -> NewJob {
        job.backoff(Duration::from_secs(1), 2.0, Duration::from_secs(3600))
    }
}

/// How many lines were worked on, by all attempts.
#[derive(Default)]
struct Work(AtomicUsize);

async fn import(context: Context, job: Import) -> Result<Imported, JobError> {
    let work = context.state::<Arc<Work>>()?;
    let mut done: Imported = match context.checkpoint() {
        Some(kept) => serde_json::from_slice(&kept)?,
        None => Imported::default(),
    };
    let goes_on = format!("goes on after line {}", done.lines);
    context.log(LogLevel::Info, goes_on);
    while done.lines < job.lines {
        if done.lines == 650 && context.attempt() == 1 {
            return Err(JobError::new("line 650 is broken"));
        }
        done.sum += done.lines;
        done.lines += 1;
        work.0.fetch_add(1, Ordering::Relaxed);
        if done.lines.is_multiple_of(EVERY) {
            let percent = u32::try_from(100 * done.lines / job.lines)?;
            context.progress(percent, format!("line {}", done.lines));
            // Durable when this returns. A worker that has lost the job meanwhile ends here.
            context.save_checkpoint(serde_json::to_vec(&done)?).await?;
        }
    }
    Ok(done)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::var("LEASEHOLD_SERVER").unwrap_or("http://127.0.0.1:7070".into());
    let work = Arc::new(Work::default());
    let seen = Arc::clone(&work);
    let worker = Worker::builder(&server)
        .middleware(move |context, payload, next| {
            let work = Arc::clone(&seen);
            async move {
                let (attempt, before) = (context.attempt(), work.0.load(Ordering::Relaxed));
                let answer = next.run(context, payload).await;
                let lines = work.0.load(Ordering::Relaxed) - before;
                println!("attempt {attempt} worked on {lines} lines");
                answer
            }
        })
        .state(work)
        .typed(import)
        .build()?;
    let worker = tokio::spawn(worker.run());

    let client = Client::connect(&server).await?;
    let id = client.enqueue(Import { lines: 1_000 }.job()?).await?.job.id;
    let job = client.wait(&id, Duration::from_secs(60)).await?;
    let imported = job.output_of::<Import>()?;
    println!("{} lines, sum {}", imported.lines, imported.sum);
    for line in &job.log {
        println!("attempt {}: {}", line.attempt, line.message);
    }
    worker.abort();
    Ok(())
}
