//! The same of the engine's own calls, as the faces make them.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leasehold::engine::{Engine, Live, Options};
use leasehold::error::Error;
use leasehold::job::{JobId, Lease, View};
use leasehold::ready::memory::MemoryReady;
use leasehold::session::message::{Hello, ServerMessage, Subscription};
use leasehold::store::JobFilter;
use leasehold::store::observed::Observed;
use leasehold::telemetry::Metrics;
use tokio::task::JoinSet;

use super::{CALLERS, Call, Ends, all_have_ended, dropped, drops, nothing_is_left_open};
use crate::steps::{ANY_AGE, QUEUE, queue, secs, success};
use crate::support::until;
use crate::world::World;

/// Calls there are, as `Crowd::call` numbers them.
const CALLS: usize = 8;

#[derive(Clone)]
struct Crowd {
    world: World,
    engine: Arc<Engine>,
    told: Arc<Mutex<Vec<JobId>>>,
}

fn hello(slots: u32) -> Hello {
    Hello {
        protocol: 1,
        worker: "w".into(),
        queues: vec![Subscription {
            queue: queue(QUEUE),
            max_in_flight: None,
        }],
        max_in_flight: slots,
        max_frame_bytes: 4 << 20,
        ..Hello::default()
    }
}

impl Crowd {
    fn some(&self) -> JobId {
        let told = self.told.lock().unwrap();
        match told.len() {
            0 => self.world.fresh_id(),
            count => told[rand::random_range(0..count)],
        }
    }

    async fn call(&self, number: usize) -> Result<(), Error> {
        let engine = &self.engine;
        match number {
            0 => {
                let accepted = engine.enqueue(self.world.job(), str::to_owned).await?;
                self.told.lock().unwrap().push(accepted.job.id);
            }
            1 => {
                let new = vec![self.world.job(), self.world.job()];
                let all = engine.enqueue_batch(new, |_, name| name.to_owned()).await?;
                let mut told = self.told.lock().unwrap();
                told.extend(all.iter().map(|accepted| accepted.job.id));
            }
            2 => drop(engine.get(self.some(), View::Full, secs(1)).await),
            3 => {
                let filter = JobFilter::default();
                engine.list(filter, None, 10, View::Basic).await?;
            }
            // Whatever state the job is in by now.
            4 => drop(engine.cancel(self.some(), "no".into()).await),
            5 => drop(engine.retry(self.some(), ANY_AGE, "".into()).await),
            6 => {
                let lease = Lease {
                    job: self.some(),
                    attempt: 1,
                };
                let token = [7; 32];
                engine
                    .report(&token, vec![(lease, success())], vec![])
                    .await?;
            }
            _ => {
                let live = engine.open_session(hello(5)).await?;
                engine.forget_session(&live);
            }
        }
        Ok(())
    }

    async fn leave(self, left: Arc<AtomicUsize>) {
        let mut number = rand::random_range(0..CALLS);
        while left.load(Ordering::SeqCst) > 0 {
            number = (number + 1) % CALLS;
            match dropped(rand::random_range(1..4), self.call(number)).await {
                Call::Dropped => {
                    let _ =
                        left.try_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
                }
                // Calls that nobody waits for pile up behind a slow disk: an honest answer.
                Call::Ended(Err(
                    Error::Unavailable { .. } | Error::LimitReached { .. } | Error::OutcomeUnknown,
                )) => tokio::time::sleep(Duration::from_millis(50)).await,
                Call::Ended(Err(error)) => panic!("call {number}: {error}"),
                Call::Ended(Ok(())) | Call::Unborn => {}
            }
        }
    }
}

/// The jobs of the next message; empty for one of another kind.
async fn handed_out(live: &Arc<Live>) -> Vec<JobId> {
    let next = poll_fn(|context| live.poll_next(context)).await;
    match next.expect("the stream goes on").expect("and well") {
        ServerMessage::Jobs { jobs, .. } => jobs.iter().map(|job| job.lease.job).collect(),
        _ => Vec::new(),
    }
}

async fn callers_of_the_engine_that_leave_take_nothing_with_them(world: World) {
    let ends = Arc::new(Ends::default());
    let engine = Engine::start(
        Observed::new(world.store.clone(), ends.clone()),
        Arc::new(MemoryReady::new()),
        world.node,
        Arc::new(Metrics::new().expect("metrics begin")),
        Options::default(),
    );
    let crowd = Crowd {
        world: world.clone(),
        engine: engine.clone(),
        told: Arc::default(),
    };
    let left = Arc::new(AtomicUsize::new(drops()));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(crowd.clone().leave(left.clone()));
    }
    while let Some(caller) = callers.join_next().await {
        caller.expect("nobody suffers from another's leaving");
    }

    // A worker that is there gets what comes now: no stream that nobody reads is in its way.
    let open = async || engine.open_session(hello(10_000)).await.ok();
    let live = until(secs(30), "there is room for a stream", open).await;
    let mut missing = BTreeSet::new();
    for _ in 0..50 {
        let job = world.job();
        let enqueue = async || engine.enqueue(job.clone(), str::to_owned).await.ok();
        missing.insert(until(secs(30), "it is accepted", enqueue).await.job.id);
    }
    let all = async {
        while !missing.is_empty() {
            for job in handed_out(&live).await {
                missing.remove(&job);
            }
        }
    };
    let got = tokio::time::timeout(Duration::from_secs(30), all).await;
    assert!(got.is_ok(), "{} went to nobody", missing.len());

    engine.stop().await;
    all_have_ended(&ends).await;
    let told = crowd.told.lock().unwrap().clone();
    nothing_is_left_open(&world, &told).await;
}
on_each_store!(callers_of_the_engine_that_leave_take_nothing_with_them);
