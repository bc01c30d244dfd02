//! A worker of the run, by the SDK: this test binary, started anew in a process that can be killed.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context as LayerContext, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};
use worker_sdk::{Context, JobError, Permanent, Snooze, Worker};

use crate::ledger::Pen;

pub const URL: &str = "CHAOS_WORKER_URL";
pub const LOG: &str = "CHAOS_WORKER_LOG";
pub const NAME: &str = "CHAOS_WORKER_NAME";

/// A handler that was told to stop has so long.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// What a job is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// How long, where the kind takes time.
    pub ms: u64,
    /// How often it fails first, where the kind fails.
    pub times: u32,
    /// Bytes to carry.
    pub ballast: String,
}

/// What a job came to: which attempt, by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub attempt: u32,
    pub worker: String,
}

/// Runs until SIGTERM.
pub async fn run(url: &str, log: &Path, name: &str) {
    let pen = Pen::open(log, name);
    let quiet = EnvFilter::new("warn");
    let shown = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .with_filter(quiet);
    let receipts = Targets::new().with_target("worker_sdk::connection", Level::TRACE);
    tracing_subscriber::registry()
        .with(shown)
        .with(Receipts(pen.clone()).with_filter(receipts))
        .init();
    worker(url, &pen, name).run().await.unwrap();
}

fn worker(url: &str, pen: &Pen, name: &str) -> Worker {
    let note = || Note {
        pen: pen.clone(),
        worker: name.to_owned(),
    };
    let (quick, slow, flaky, doomed) = (note(), note(), note(), note());
    let (snooze, timeout, steps, wait) = (note(), note(), note(), note());
    Worker::builder(url)
        .queue("q")
        .concurrency(50)
        .name(name)
        .lease_ttl(Duration::from_secs(10))
        .grace(Duration::from_secs(4))
        .stop_grace(STOP_GRACE)
        .handler("quick", move |ctx: Context, _: Task| {
            quick.run(ctx, |_| async { Ok(()) })
        })
        // Deaf to orders to stop.
        .handler("slow", move |ctx: Context, task: Task| {
            slow.run(ctx, move |_| async move {
                sleep(task.ms).await;
                Ok(())
            })
        })
        .handler("flaky", move |ctx: Context, task: Task| {
            flaky.run(ctx, move |ctx| async move {
                sleep(task.ms).await;
                match ctx.failures() >= task.times {
                    true => Ok(()),
                    false => Err(JobError::new("not yet")),
                }
            })
        })
        // Fails for good, until somebody retries it.
        .handler("doomed", move |ctx: Context, _: Task| {
            doomed.run(ctx, |ctx| async move {
                match ctx.attempt() {
                    1 => Err(Permanent("never").into()),
                    _ => Ok(()),
                }
            })
        })
        .handler("snooze", move |ctx: Context, task: Task| {
            snooze.run(ctx, move |ctx| async move {
                match ctx.attempt() {
                    1 => Err(Snooze(Duration::from_millis(task.ms)).into()),
                    _ => Ok(()),
                }
            })
        })
        // Outlasts its timeout the first times.
        .handler("timeout", move |ctx: Context, task: Task| {
            timeout.run(ctx, move |ctx| async move {
                if ctx.failures() < task.times {
                    sleep(60_000).await;
                }
                Ok(())
            })
        })
        .handler("steps", move |ctx: Context, task: Task| {
            let pen = steps.pen.clone();
            steps.run(ctx, move |ctx| async move {
                for step in ["one", "two", "three"] {
                    let (job, attempt) = (ctx.job_id(), ctx.attempt());
                    let work = || async {
                        pen.line("step", job, attempt, step);
                        sleep(task.ms).await;
                        Ok(())
                    };
                    ctx.step(step, work).await?;
                    pen.line("stepped", job, attempt, step);
                    ctx.progress(33, step);
                }
                Ok(())
            })
        })
        // Says that it did its work, whatever it was told.
        .handler("wait", move |ctx: Context, _: Task| {
            wait.run(ctx, |ctx| async move {
                ctx.cancelled().await;
                Ok(())
            })
        })
        .build()
        .unwrap()
}

async fn sleep(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// Writes down what one handler does.
struct Note {
    pen: Pen,
    worker: String,
}

impl Note {
    /// The work between two lines of the ledger.
    fn run<F, W>(
        &self,
        ctx: Context,
        work: W,
    ) -> impl Future<Output = Result<Done, JobError>> + Send + use<F, W>
    where
        W: FnOnce(Context) -> F,
        F: Future<Output = Result<(), JobError>> + Send + 'static,
    {
        let worker = self.worker.clone();
        let mut end = End {
            pen: self.pen.clone(),
            ctx: ctx.clone(),
            how: "dropped",
        };
        let attempt = ctx.attempt();
        end.pen.line("begin", ctx.job_id(), attempt, "");
        let work = work(ctx);
        async move {
            let result = work.await;
            end.how = if result.is_ok() { "ok" } else { "error" };
            drop(end);
            result.map(|()| Done { attempt, worker })
        }
    }
}

/// Writes its line however the handler ends.
struct End {
    pen: Pen,
    ctx: Context,
    how: &'static str,
}

impl Drop for End {
    fn drop(&mut self) {
        let (job, attempt) = (self.ctx.job_id(), self.ctx.attempt());
        self.pen.line("end", job, attempt, self.how);
    }
}

/// Writes down each receipt that the SDK says it got.
struct Receipts(Pen);

impl<S: Subscriber> Layer<S> for Receipts {
    fn on_event(&self, event: &Event<'_>, _: LayerContext<'_, S>) {
        let mut seen = Receipt::default();
        event.record(&mut seen);
        if let Some((status, state)) = seen.status.zip(seen.state) {
            let verdict = format!("{status} {state}");
            self.0.line("told", &seen.job, seen.attempt, &verdict);
        }
    }
}

#[derive(Default)]
struct Receipt {
    job: String,
    attempt: u32,
    status: Option<String>,
    state: Option<String>,
}

impl Visit for Receipt {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "job_id" => self.job = value.to_owned(),
            "status" => self.status = value.strip_prefix("RECEIPT_STATUS_").map(str::to_owned),
            "state" => self.state = Some(value.to_owned()),
            _ => {}
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "attempt" {
            self.attempt = u32::try_from(value).unwrap();
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}
