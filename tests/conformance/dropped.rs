//! Callers that leave: calls are dropped at every depth, thousands of times, and nothing of theirs is left half done.
//!
//! `LEASEHOLD_TEST_DROPS` is how many calls are dropped, for each of the tests here (default 1,000).

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use leasehold::error::Result;
use leasehold::job::{
    By, Flow, JobId, JobState, Lease, LogLevel, NewLine, NewLines, Progress, QueueChange, View,
};
use leasehold::store::observed::{Observed, StoreMetrics};
use leasehold::store::{
    Ask, Attach, Attached, Enqueued, EntryId, Epoch, Granted, JobFilter, LogReport, NewSession,
    NodeReport, Offer, Report, Steer, Store, Unit,
};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::steps::{ANY_AGE, TTL, ending, failure, line_of, release, secs, success};
use crate::world::World;

mod engine;

/// Callers at once.
const CALLERS: usize = 6;
/// Calls under way that nobody waits for any more: a store lets only so many pile up.
const PILE: usize = 100;

fn drops() -> usize {
    let asked = std::env::var("LEASEHOLD_TEST_DROPS");
    asked.map_or(1_000, |n| {
        n.parse().expect("LEASEHOLD_TEST_DROPS is a number")
    })
}

/// What became of a call.
#[derive(Debug, PartialEq)]
pub enum Call<T> {
    /// It was never looked at.
    Unborn,
    Dropped,
    Ended(T),
}

/// Looks at a call at most so often, and drops it then. It looks again only when the call has something new, or after a
/// moment of chance when it has not: a call that runs in a task of its own is looked at twice, whatever it does.
pub async fn dropped<T>(depth: usize, call: impl Future<Output = T>) -> Call<T> {
    if depth == 0 {
        return Call::Unborn;
    }
    let mut call = Box::pin(call);
    let mut looks = 0;
    let looked = poll_fn(|context| {
        looks += 1;
        match call.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(Call::Ended(answer)),
            Poll::Pending if looks >= depth => Poll::Ready(Call::Dropped),
            Poll::Pending => Poll::Pending,
        }
    });
    let patience = Duration::from_micros(rand::random_range(0..4_000));
    let looked = tokio::time::timeout(patience, looked).await;
    looked.unwrap_or(Call::Dropped)
}

/// Counts the calls that have come to their end.
#[derive(Default)]
pub struct Ends(AtomicUsize);

impl StoreMetrics for Ends {
    fn observe(&self, _: &'static str, _: Duration, _: Option<&'static str>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

type Verb = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// What the callers know.
#[derive(Clone)]
struct Crowd {
    world: World,
    store: Arc<dyn Store>,
    jobs: Arc<Mutex<Vec<JobId>>>,
    /// Jobs whose enqueue was answered.
    told: Arc<Mutex<Vec<JobId>>>,
    sessions: Arc<Mutex<Vec<Attached>>>,
    leases: Arc<Mutex<Vec<(Lease, Attached)>>>,
    begun: Arc<AtomicUsize>,
    ends: Arc<Ends>,
}

fn one<T: Copy>(of: &Mutex<Vec<T>>) -> Option<T> {
    let of = of.lock().unwrap();
    (!of.is_empty()).then(|| of[rand::random_range(0..of.len())])
}

/// Verbs there are, as `Crowd::verb` numbers them.
const VERBS: usize = 40;

impl Crowd {
    fn verb(&self, number: usize) -> Verb {
        let store = self.store.clone();
        let no_job = || self.world.fresh_id();
        let job = one(&self.jobs).unwrap_or_else(no_job);
        let no_session = || Attached {
            session: leasehold::job::SessionId::of_token(b"nobody's"),
            attach: 1,
        };
        let session = one(&self.sessions).unwrap_or_else(no_session);
        let lease = one(&self.leases).unwrap_or((Lease { job, attempt: 1 }, session));
        let node = self.world.node;
        let line = line_of(&self.world.job());
        let epoch = Epoch(Uuid::from_u128(7));
        let entry = EntryId { ms: 5, seq: 0 };
        match number {
            0 | 1 => self.enqueue(Unit::Each),
            2 | 3 => self.enqueue(Unit::All),
            4 | 5 => self.grant(session),
            6 | 7 => {
                let (lease, by) = lease;
                let outcome = match rand::random_range(0..3) {
                    0 => failure(),
                    1 => release(),
                    _ => success(),
                };
                Box::pin(async move {
                    store
                        .finish(vec![ending(lease, by, outcome)])
                        .await
                        .map(drop)
                })
            }
            8 => {
                let report = Report {
                    lease: lease.0,
                    session: lease.1.session,
                    progress: Progress {
                        checkpoint: Some("here".into()),
                        revision: rand::random_range(1..100),
                        ..Progress::default()
                    },
                };
                Box::pin(async move { store.report(vec![report]).await.map(drop) })
            }
            9 => self.open(),
            10 => {
                let to = Attached {
                    attach: session.attach + 1,
                    ..session
                };
                Box::pin(async move { store.attach(vec![Attach { to, node }]).await.map(drop) })
            }
            11 => Box::pin(async move { store.renew(vec![session]).await.map(drop) }),
            12 => Box::pin(async move { store.close_sessions(vec![session]).await }),
            13 => Box::pin(async move { store.leases(vec![session], ANY_AGE).await.map(drop) }),
            14 => {
                Box::pin(async move { store.running(vec![(job, session.session)]).await.map(drop) })
            }
            15 => Box::pin(async move {
                store
                    .leased(vec![(lease.0, session.session)])
                    .await
                    .map(drop)
            }),
            16 => Box::pin(async move { store.cancel(job, "no".into()).await.map(drop) }),
            17 => Box::pin(async move { store.retry(job, ANY_AGE, "".into()).await.map(drop) }),
            18 => Box::pin(async move { store.get(vec![job], View::Full).await.map(drop) }),
            19 => Box::pin(async move {
                store
                    .list(JobFilter::default(), None, 10, View::Basic)
                    .await
                    .map(drop)
            }),
            20 => Box::pin(async move { store.claim(vec![line], ANY_AGE, 5).await.map(drop) }),
            21 => {
                let offer = Offer {
                    segment: rand::random_range(1..100),
                    epoch,
                    last: entry,
                };
                Box::pin(async move { store.offered(vec![offer]).await })
            }
            22 => Box::pin(async move {
                store
                    .lost_offers(epoch, line, None, ANY_AGE, 5)
                    .await
                    .map(drop)
            }),
            23 => Box::pin(async move { store.promote(5).await.map(drop) }),
            24 => Box::pin(async move { store.expire(5).await.map(drop) }),
            25 => Box::pin(async move { store.retain(5).await.map(drop) }),
            26 => Box::pin(async move { store.tidy(5).await.map(drop) }),
            27 => Box::pin(async move { store.touch_pulse().await }),
            28 => Box::pin(async move { store.signals(node, secs(5), 5).await.map(drop) }),
            29 => Box::pin(async move { store.stats(5).await.map(drop) }),
            30 => {
                Box::pin(async move { store.unoffered(epoch, ANY_AGE, ANY_AGE, 5).await.map(drop) })
            }
            31 => {
                let change = match rand::random() {
                    true => QueueChange::Pause,
                    false => QueueChange::Resume,
                };
                let steer = Steer {
                    queue: line.queue,
                    change,
                    expected: None,
                    by: By::default(),
                };
                Box::pin(async move { store.steer(steer).await.map(drop) })
            }
            32 => Box::pin(async move { store.settings(None).await.map(drop) }),
            33 => Box::pin(async move { store.queues(None, 5).await.map(drop) }),
            34 => {
                let report = NodeReport {
                    id: node,
                    name: "n".into(),
                    version: "v".into(),
                    sessions: 1,
                    draining: false,
                };
                Box::pin(async move { store.present(report).await.map(drop) })
            }
            35 => Box::pin(async move { store.drain_node(node, By::default()).await.map(drop) }),
            36 => {
                let line = NewLine {
                    elapsed: None,
                    level: LogLevel::Info,
                    message: "still here".into(),
                };
                let lines = NewLines::check("log", rand::random_range(1..100), vec![line; 3]);
                let report = LogReport {
                    lease: lease.0,
                    session: lease.1.session,
                    lines: lines.expect("within bounds"),
                };
                Box::pin(async move { store.log(vec![report]).await.map(drop) })
            }
            37 => Box::pin(async move { store.lines(vec![(job, 0)]).await.map(drop) }),
            38 => {
                let flows = vec![(line.queue, Flow::default())];
                Box::pin(async move { store.note_flows(secs(5), flows).await })
            }
            _ => Box::pin(async move { store.ping().await.map(drop) }),
        }
    }

    fn enqueue(&self, unit: Unit) -> Verb {
        let this = self.clone();
        let new: Vec<_> = (0..rand::random_range(1..4))
            .map(|_| self.world.job())
            .collect();
        this.jobs
            .lock()
            .unwrap()
            .extend(new.iter().map(|job| job.id));
        Box::pin(async move {
            let answer = this.store.enqueue(new.into(), unit).await?;
            let told = answer.jobs.iter().map(|told| match told {
                Enqueued::Created(job) => job.id,
                other => panic!("a new job is {other:?}"),
            });
            this.told.lock().unwrap().extend(told);
            Ok(())
        })
    }

    fn grant(&self, to: Attached) -> Verb {
        let this = self.clone();
        let asks: Vec<Ask> = (0..3)
            .filter_map(|_| one(&this.jobs).map(|job| Ask { job, to }))
            .collect();
        Box::pin(async move {
            for answer in this.store.grant(this.world.node, asks).await? {
                if let Granted::Lease(job) = answer {
                    this.leases.lock().unwrap().push((job.lease, to));
                }
            }
            Ok(())
        })
    }

    fn open(&self) -> Verb {
        let this = self.clone();
        let session = leasehold::job::SessionId::of_token(Uuid::new_v4().as_bytes());
        let new = NewSession {
            id: session,
            node: self.world.node,
            worker: "w".into(),
            sdk: "s".into(),
            ttl: TTL,
        };
        Box::pin(async move {
            this.store.open_session(new).await?;
            this.sessions
                .lock()
                .unwrap()
                .push(Attached { session, attach: 1 });
            Ok(())
        })
    }

    /// Drops calls, so many altogether.
    async fn leave(self, left: Arc<AtomicUsize>, unwell: Arc<Mutex<Vec<String>>>) {
        let mut number = rand::random_range(0..VERBS);
        while left.load(Ordering::SeqCst) > 0 {
            number = (number + 1) % VERBS;
            while self.begun.load(Ordering::SeqCst) > self.ends.0.load(Ordering::SeqCst) + PILE {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            self.begun.fetch_add(1, Ordering::SeqCst);
            match dropped(rand::random_range(1..4), self.verb(number)).await {
                Call::Unborn => {}
                Call::Dropped => {
                    // Others are counted too: the last few may be some more.
                    let _ =
                        left.try_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
                }
                Call::Ended(Ok(())) => {}
                Call::Ended(Err(error)) => {
                    unwell.lock().unwrap().push(format!("{number}: {error}"))
                }
            }
        }
    }
}

/// Through `observed`, as the engine reaches every store.
async fn calls_that_are_dropped_leave_nothing_half_done(world: World) {
    let ends = Arc::new(Ends::default());
    let crowd = Crowd {
        store: Observed::new(world.store.clone(), ends.clone()),
        world: world.clone(),
        jobs: Arc::default(),
        told: Arc::default(),
        sessions: Arc::default(),
        leases: Arc::default(),
        begun: Arc::default(),
        ends: ends.clone(),
    };
    let (left, unwell) = (Arc::new(AtomicUsize::new(drops())), Arc::default());
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(crowd.clone().leave(left.clone(), Arc::clone(&unwell)));
    }
    while let Some(caller) = callers.join_next().await {
        caller.expect("a caller has no reason to panic");
    }
    all_have_ended(&ends).await;
    let unwell: Vec<String> = unwell.lock().unwrap().clone();
    assert!(
        unwell.is_empty(),
        "nobody is to suffer from another's leaving: {unwell:?}"
    );
    let told = crowd.told.lock().unwrap().clone();
    nothing_is_left_open(&world, &told).await;
}
on_each_store!(calls_that_are_dropped_leave_nothing_half_done);

/// Nothing ends any more.
pub async fn all_have_ended(ends: &Ends) {
    let mut before = usize::MAX;
    loop {
        let now = ends.0.load(Ordering::SeqCst);
        if now == before {
            return;
        }
        before = now;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// No transaction is open, every job that was acknowledged is there, and each pool's connections work and see what they
/// write. Other nodes see it too.
pub async fn nothing_is_left_open(world: &World, told: &[JobId]) {
    assert_eq!(world.open_transactions().await, 0);
    let other = world.open_again().await;
    for some in told.chunks(1_000) {
        let found = other.get(some.to_vec(), View::Basic).await;
        let gone = found
            .expect("get answers")
            .iter()
            .filter(|job| job.is_none())
            .count();
        assert_eq!(gone, 0, "acknowledged, and invisible");
    }
    // More at once than any pool has connections.
    let mut rounds = JoinSet::new();
    for round in 0..16 {
        let (world, other) = (world.clone(), other.clone());
        rounds.spawn(async move {
            let unit = if round % 2 == 0 {
                Unit::Each
            } else {
                Unit::All
            };
            let new = world.job();
            let job = new.id;
            world.enqueue(vec![new], unit).await;
            let seen = other
                .get(vec![job], View::Basic)
                .await
                .expect("get answers");
            assert!(seen[0].is_some(), "committed, and invisible");
            world.promote().await;
            let session = world.open().await;
            let lease = world.lease(job, session).await;
            let seen = other.running(vec![(job, session.session)]).await;
            assert!(
                seen.expect("running answers")[0].is_some(),
                "granted, and invisible"
            );
            world.finish(lease, session, success()).await;
            world
                .store
                .close_sessions(vec![session])
                .await
                .expect("close answers");
            let seen = other
                .get(vec![job], View::Basic)
                .await
                .expect("get answers");
            let state = seen[0].as_ref().map(|job| job.state);
            assert_eq!(state, Some(JobState::Succeeded), "recorded, and invisible");
        });
    }
    while let Some(round) = rounds.join_next().await {
        round.expect("a round goes well");
    }
    assert_eq!(world.open_transactions().await, 0);
}
