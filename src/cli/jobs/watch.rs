//! What becomes of a job, a line a change.

use std::time::{Duration, Instant};

use worker_sdk::{Client, Error, Job, JobState, View};

use super::show::{said, word};
use crate::cli::exit::Exit;
use crate::cli::terminal;

/// Shows each change on stderr until the job is final, and returns it.
pub(super) async fn follow(client: &Client, id: &str) -> Result<Job, Error> {
    let start = Instant::now();
    let mut changes = client.watch(id, View::Full);
    let mut last = None;
    while let Some(job) = changes.next().await {
        let job = job?;
        terminal::note(change(&job, start.elapsed()));
        last = Some(job);
    }
    match last {
        Some(job) => Ok(job),
        None => client.get(id).await,
    }
}

/// How a command ends that has waited for a job's end.
pub(super) fn exit(job: &Job) -> Exit {
    match job.state() {
        JobState::Succeeded => Exit::Done,
        _ => Exit::Failed,
    }
}

fn change(job: &Job, elapsed: Duration) -> String {
    let mut line = format!(
        "{:>8.2}s  {}  {}",
        elapsed.as_secs_f64(),
        job.id,
        word(job.state())
    );
    if job.attempt > 0 {
        line.push_str(&format!("  attempt {}", job.attempt));
        if !job.worker.is_empty() {
            line.push_str(&format!(" on {}", terminal::plain(&job.worker)));
        }
    }
    if let Some(progress) = job.progress.as_ref().filter(|_| !job.is_final()) {
        line.push_str(&format!("  {}", said(progress)));
    }
    if let Some(failure) = &job.last_failure {
        line.push_str(&format!(
            "  {}: {}",
            terminal::plain(&failure.r#type),
            terminal::plain(&failure.message)
        ));
    }
    line
}
