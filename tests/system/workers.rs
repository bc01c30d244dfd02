//! Workers for the journeys: in this process, or in one of their own that can be killed.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use worker_sdk::{Context, Error, JobError, Permanent, Retry, Snooze, Worker};

use crate::support::Process;

const URL: &str = "TEST_WORKER_URL";
const LOG: &str = "TEST_WORKER_LOG";
/// How many handlers the worker of [`process_with`] runs at once; 50 when it is not set.
pub const SLOTS: &str = "TEST_WORKER_SLOTS";

/// A worker in this process; it leaves in order when dropped or stopped.
pub struct Local {
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), Error>>,
}

impl Local {
    pub fn start(url: &str, log: &Path, slots: usize) -> Self {
        Self::start_on(url, &["q"], log, slots)
    }

    pub fn start_on(url: &str, queues: &[&str], log: &Path, slots: usize) -> Self {
        Self::start_for(url, queues, log, slots, Duration::from_secs(10))
    }

    /// With leases that last for `ttl`.
    pub fn start_for(url: &str, queues: &[&str], log: &Path, slots: usize, ttl: Duration) -> Self {
        let worker = worker(url, queues, log, slots, ttl);
        let (stop, stopped) = oneshot::channel();
        let until = async move { drop(stopped.await) };
        Self {
            stop: Some(stop),
            running: tokio::spawn(async move { worker.run_until(until).await }),
        }
    }

    /// Lets it leave in order.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        let left = tokio::time::timeout(Duration::from_secs(40), self.running).await;
        left.expect("a worker leaves within its grace")
            .unwrap()
            .unwrap();
    }
}

/// A worker in a process of its own: this test binary, started anew.
pub fn process(url: &str, log: &Path) -> Process {
    process_with(url, log, &[])
}

/// With more in its environment: [`SLOTS`], or what a runtime looks at.
pub fn process_with(url: &str, log: &Path, environment: &[(&str, &str)]) -> Process {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        "workers::the_worker_of_another_test",
        "--nocapture",
    ]);
    command.env(URL, url).env(LOG, log);
    command.envs(environment.iter().copied());
    Process::start("worker", command)
}

/// Does nothing by itself: [`process`] starts it as a worker.
#[test]
fn the_worker_of_another_test() {
    let (Ok(url), Ok(log)) = (std::env::var(URL), std::env::var(LOG)) else {
        return;
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let slots = std::env::var(SLOTS).map_or(50, |slots| slots.parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let ttl = Duration::from_secs(10);
        worker(&url, &["q"], Path::new(&log), slots, ttl)
            .run()
            .await
            .unwrap()
    });
}

/// How often each job was begun, read from the log that handlers write.
pub fn runs(log: &Path) -> HashMap<String, usize> {
    let mut runs = HashMap::new();
    for line in std::fs::read_to_string(log).unwrap_or_default().lines() {
        *runs.entry(line.to_owned()).or_default() += 1;
    }
    runs
}

fn worker(url: &str, queues: &[&str], log: &Path, slots: usize, ttl: Duration) -> Worker {
    let note = Log(log.to_owned());
    let with = move || note.clone();
    let (echo, sleep, wait, flaky, doomed, panics) =
        (with(), with(), with(), with(), with(), with());
    let (once, weigh) = (with(), with());
    let (steps, watched, deaf, block, spin) = (with(), with(), with(), with(), with());
    queues
        .iter()
        .fold(Worker::builder(url), |worker, queue| worker.queue(*queue))
        .concurrency(slots)
        .lease_ttl(ttl)
        .grace(Duration::from_secs(10))
        .handler("echo", move |ctx: Context, input: serde_json::Value| {
            echo.write(&ctx);
            async move { Ok::<_, JobError>(input) }
        })
        .handler("weigh", move |ctx: Context, text: String| {
            weigh.write(&ctx);
            async move { Ok::<_, JobError>(text.len()) }
        })
        .handler("sleep", move |ctx: Context, millis: u64| {
            sleep.write(&ctx);
            async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                Ok::<_, JobError>(millis)
            }
        })
        .handler("steps", move |ctx: Context, dies_at: u32| {
            let note = steps.clone();
            async move {
                for step in 1..=3 {
                    let name = format!("step-{step}");
                    let result = ctx
                        .step(&name, || {
                            note.line(&format!("{} {step}", ctx.job_id()));
                            async move { Ok(10 * step) }
                        })
                        .await?;
                    assert_eq!(result, 10 * step, "as it was recorded");
                    ctx.progress(33 * step, format!("{step} of 3"));
                    if step == dies_at && ctx.attempt() == 1 {
                        // As a worker that is killed: nothing of this is reported.
                        std::process::abort();
                    }
                }
                Ok::<_, JobError>(ctx.attempt())
            }
        })
        .handler("until-cancelled", move |ctx: Context, (): ()| {
            wait.write(&ctx);
            async move {
                ctx.cancelled().await;
                Ok::<_, JobError>("too late")
            }
        })
        // Its first attempt takes so long, if it may; the others take no time.
        .handler("watched", move |ctx: Context, millis: u64| {
            let note = watched.clone();
            note.event(&ctx, "begun");
            async move {
                // Cancel safe: both only wait.
                tokio::select! {
                    () = ctx.cancelled() => {
                        note.event(&ctx, "stopped");
                        Err(JobError::from(std::io::Error::other("told to stop")))
                    }
                    () = tokio::time::sleep(Duration::from_millis(if ctx.attempt() == 1 { millis } else { 1 })) => Ok(ctx.attempt()),
                }
            }
        })
        .handler("sleep-once", move |ctx: Context, millis: u64| {
            once.event(&ctx, "begun");
            async move {
                if ctx.attempt() == 1 {
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                }
                Ok::<_, JobError>(ctx.attempt())
            }
        })
        .handler("deaf", move |ctx: Context, (): ()| {
            deaf.event(&ctx, "begun");
            let guard = Guard(deaf.clone(), ctx);
            async move {
                let _dropped = guard;
                std::future::pending::<Result<(), JobError>>().await
            }
        })
        .handler("block", move |ctx: Context, millis: u64| {
            block.event(&ctx, "begun");
            async move {
                // On purpose: the runtime's thread is gone for so long.
                std::thread::sleep(Duration::from_millis(millis));
                Ok::<_, JobError>(ctx.attempt())
            }
        })
        .handler("spin", move |ctx: Context, millis: u64| {
            spin.event(&ctx, "begun");
            async move {
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_millis(millis) {
                    let turn = Instant::now();
                    while turn.elapsed() < Duration::from_millis(2) {
                        std::hint::spin_loop();
                    }
                    tokio::task::yield_now().await;
                }
                Ok::<_, JobError>(ctx.attempt())
            }
        })
        .handler("flaky", move |ctx: Context, succeeds_at: u32| {
            flaky.write(&ctx);
            async move {
                match ctx.attempt() >= succeeds_at {
                    true => Ok(ctx.attempt()),
                    false => Err(JobError::from(std::io::Error::other("not yet"))),
                }
            }
        })
        .handler("doomed", move |ctx: Context, how: String| {
            doomed.write(&ctx);
            async move {
                match how.as_str() {
                    "permanent" => Err::<(), JobError>(Permanent("never").into()),
                    "later" => Err(Retry::after(Duration::from_millis(50)).into()),
                    _ if ctx.attempt() == 1 => Err(Snooze(Duration::from_millis(50)).into()),
                    _ => Ok(()),
                }
            }
        })
        .handler("panics", move |ctx: Context, (): ()| {
            panics.write(&ctx);
            async move {
                assert!(ctx.attempt() > 1, "the first attempt panics");
                Ok::<_, JobError>("then it works")
            }
        })
        .build()
        .unwrap()
}

/// Notes that a handler was dropped in the middle.
struct Guard(Log, Context);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.event(&self.1, "dropped");
    }
}

#[derive(Clone)]
struct Log(PathBuf);

impl Log {
    /// One line for each run, in one write, so that lines of several processes do not mix.
    fn write(&self, ctx: &Context) {
        self.line(ctx.job_id());
    }

    fn event(&self, ctx: &Context, what: &str) {
        self.line(&format!("{} {} {what}", ctx.job_id(), ctx.attempt()));
    }

    fn line(&self, line: &str) {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.0)
            .unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}
