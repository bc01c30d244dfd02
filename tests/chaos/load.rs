//! Clients: they enqueue through any node, with ids of their own, ask again on every error, and keep what they were told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use worker_sdk::{Client, Enqueued, Error, Job, JobState, NewJob};

use crate::stage::Complaints;
use crate::worker::Task;

/// Callers that enqueue, and callers that look after what was enqueued.
const CALLERS: usize = 24;
const FOLLOWERS: usize = 200;
/// One call of the SDK with its own tries; then a caller begins again.
const ONE_CALL: Duration = Duration::from_secs(3);
/// A caller gives up after so long, and what it asked for is unknown.
const GIVE_UP: Duration = Duration::from_secs(120);

/// What clients were told of one job.
#[derive(Clone, Debug)]
pub struct Told {
    pub kind: &'static str,
    /// OK to its Enqueue; else nothing is known.
    pub accepted: bool,
    /// OK to a cancel, with the hand-outs so far.
    pub cancelled: Option<u32>,
    /// Retries by hand that may have come to pass.
    pub retries: u32,
    /// A final state with its output, seen while the run went on.
    pub seen: Option<Seen>,
}

/// A final state as a client saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub state: JobState,
    pub output: Option<worker_sdk::Payload>,
    pub finished: Option<prost_types::Timestamp>,
}

impl Seen {
    pub fn of(job: &Job) -> Self {
        Self {
            state: job.state(),
            output: job.output.clone(),
            finished: job.finish_time,
        }
    }
}

#[derive(Clone, Default)]
pub struct Book(Arc<Mutex<HashMap<String, Told>>>);

impl Book {
    fn of(&self, id: &str, change: impl FnOnce(&mut Told)) {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(book.get_mut(id).expect("a job is in the book first"));
    }

    fn enter(&self, id: &str, kind: &'static str) {
        let told = Told {
            kind,
            accepted: false,
            cancelled: None,
            retries: 0,
            seen: None,
        };
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.insert(id.to_owned(), told);
    }

    pub fn all(&self) -> HashMap<String, Told> {
        let book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.clone()
    }
}

/// What else a client does about a job.
enum Then {
    Cancel(Duration),
    Watch,
    Retry,
}

struct Load {
    clients: Vec<Client>,
    book: Book,
    complaints: Complaints,
    /// Jobs not yet given to a caller.
    left: AtomicUsize,
    jobs: usize,
    begin: Instant,
    within: Duration,
}

/// Enqueues so many jobs over so much time, and returns what clients were told once all of them have their answers.
pub async fn run(
    urls: Vec<String>,
    complaints: Complaints,
    seed: u64,
    jobs: usize,
    within: Duration,
) -> Book {
    let clients = urls.iter().map(|url| client(url)).collect();
    let load = Arc::new(Load {
        clients,
        book: Book::default(),
        complaints,
        left: AtomicUsize::new(jobs),
        jobs,
        begin: Instant::now(),
        within,
    });
    let (follow, followed) = mpsc::channel(1_000);
    let followed = Arc::new(tokio::sync::Mutex::new(followed));
    let mut tasks = JoinSet::new();
    for n in 0..CALLERS {
        let seed = seed.wrapping_add(u64::try_from(n).unwrap() << 32);
        tasks.spawn(enqueue(load.clone(), n, seed, follow.clone()));
    }
    drop(follow);
    for n in 0..FOLLOWERS {
        let (load, followed) = (load.clone(), followed.clone());
        tasks.spawn(async move {
            loop {
                let Some((id, then)) = followed.lock().await.recv().await else {
                    return;
                };
                follow_up(&load, n, &id, then).await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    load.book.clone()
}

pub fn client(url: &str) -> Client {
    Client::connect_lazy(url).unwrap().deadline(ONE_CALL)
}

async fn enqueue(load: Arc<Load>, n: usize, seed: u64, follow: mpsc::Sender<(String, Then)>) {
    let mut dice = StdRng::seed_from_u64(seed);
    loop {
        let many = match dice.random_bool(0.1) {
            true => dice.random_range(2..100),
            false => 1,
        };
        let take = |left: usize| (left > 0).then(|| left.saturating_sub(many));
        let (order, look) = (Ordering::Relaxed, Ordering::Relaxed);
        let Ok(left) = load.left.fetch_update(order, look, take) else {
            return;
        };
        // Jobs come evenly over the time of the run.
        let turn = load.within.mul_f64(1.0 - left as f64 / load.jobs as f64);
        tokio::time::sleep_until(load.begin + turn).await;
        let batch: Vec<_> = (0..many.min(left)).map(|_| draw(&mut dice)).collect();
        for (kind, job, _) in &batch {
            load.book.enter(job.job_id(), kind);
        }
        let client = &load.clients[(n + left) % load.clients.len()];
        let asked: Vec<NewJob> = batch.iter().map(|(_, job, _)| job.clone()).collect();
        let accepted = load
            .until_told(|| accept(client.clone(), asked.clone()))
            .await;
        let Some(accepted) = accepted else {
            continue;
        };
        for ((_, job, then), accepted) in batch.into_iter().zip(accepted) {
            assert_eq!(accepted.job.id, job.job_id(), "the id that was asked for");
            load.book.of(job.job_id(), |told| told.accepted = true);
            if let Some(then) = then {
                let sent = follow.send((job.job_id().to_owned(), then)).await;
                sent.expect("followers end last");
            }
        }
    }
}

async fn accept(client: Client, mut jobs: Vec<NewJob>) -> Result<Vec<Enqueued>, Error> {
    match jobs.len() {
        1 => Ok(vec![client.enqueue(jobs.remove(0)).await?]),
        _ => client.enqueue_batch(jobs).await,
    }
}

fn draw(dice: &mut StdRng) -> (&'static str, NewJob, Option<Then>) {
    let sometimes = |dice: &mut StdRng, then| dice.random_bool(0.2).then_some(then);
    let kind = match dice.random_range(0..1_000) {
        0..450 => "quick",
        450..550 => "python",
        550..600 => "scheduled",
        600..650 => "hasty",
        650..780 => "slow",
        780..860 => "flaky",
        860..900 => "snooze",
        900..930 => "doomed",
        930..950 => "timeout",
        950..980 => "steps",
        _ => "wait",
    };
    let (queue, handler) = match kind {
        "python" => ("py", "quick"),
        "scheduled" | "hasty" => ("q", "quick"),
        other => ("q", other),
    };
    let ms = match kind {
        "slow" if dice.random_bool(0.05) => dice.random_range(3_000..15_000),
        "slow" => dice.random_range(10..600),
        _ => dice.random_range(1..200),
    };
    let heavy = match dice.random_bool(0.02) {
        true => 20_000,
        false => 100,
    };
    let task = Task {
        ms,
        times: dice.random_range(1..4),
        ballast: "x".repeat(dice.random_range(0..heavy)),
    };
    let short = Duration::from_millis(100);
    let mut job = NewJob::new(handler, &task).unwrap().queue(queue).backoff(
        short,
        1.5,
        Duration::from_secs(1),
    );
    let then = match kind {
        "scheduled" => {
            job = job.delay(Duration::from_millis(dice.random_range(0..5_000)));
            sometimes(dice, Then::Cancel(Duration::from_millis(ms)))
        }
        "hasty" => Some(Then::Cancel(Duration::ZERO)),
        "wait" => Some(Then::Cancel(Duration::from_millis(10 * ms))),
        "doomed" => sometimes(dice, Then::Retry),
        "timeout" => {
            job = job.timeout(Duration::from_millis(500 + ms));
            None
        }
        _ => dice.random_bool(0.05).then_some(Then::Watch),
    };
    (kind, job, then)
}

async fn follow_up(load: &Load, n: usize, id: &str, then: Then) {
    let client = &load.clients[n % load.clients.len()];
    let seen = |job: &Job| load.book.of(id, |told| told.seen = Some(Seen::of(job)));
    match then {
        Then::Cancel(after) => {
            tokio::time::sleep(after).await;
            let cancel = || {
                let (client, id) = (client.clone(), id.to_owned());
                async move { client.cancel(&id, "not wanted").await }
            };
            let told = load.until_told(cancel).await;
            if let Some(job) = told {
                load.book.of(id, |told| told.cancelled = Some(job.attempt));
                assert_eq!(job.state(), JobState::Cancelled);
            }
        }
        Then::Watch => {
            if let Ok(job) = client.wait(id, Duration::from_secs(5)).await {
                seen(&job);
            }
        }
        Then::Retry => {
            let end = Instant::now() + GIVE_UP;
            while Instant::now() < end {
                match client.wait(id, Duration::from_secs(5)).await {
                    Ok(job) if job.state() == JobState::Failed => break,
                    Ok(_) => return,
                    Err(_) => {}
                }
            }
            // One call, whose outcome may stay unknown.
            load.book.of(id, |told| told.retries = 1);
            let _ = client.retry(id, None).await;
        }
    }
}

impl Load {
    /// Asks until there is an answer. `None`: there was none, or a refusal.
    async fn until_told<T, F>(&self, mut ask: impl FnMut() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let end = Instant::now() + GIVE_UP;
        while Instant::now() < end {
            let error = match ask().await {
                Ok(answer) => return Some(answer),
                Err(error) => error,
            };
            match error.reason() {
                None
                | Some("STORE_UNAVAILABLE" | "DRAINING" | "UNKNOWN_OUTCOME" | "OVERLOADED") => {}
                // Too late for a cancel.
                Some("JOB_STATE") => return None,
                Some(_) => {
                    self.complaints
                        .add(format!("a client was refused: {error}"));
                    return None;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        None
    }
}
