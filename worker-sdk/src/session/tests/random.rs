//! A worker's half against a server that does everything in any order: pushes
//! twice, loses frames and answers, cuts, resumes or not, drains, moves, cancels.
//! What must hold, holds at each step.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::proto;

mod server;

/// From the sending of a heartbeat that was acknowledged, or of a Hello that was welcome, to the stop: TTL less margin.
const RELIABLE: Duration = Duration::from_secs(25);

pub(super) struct Random(u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn of<T: Copy>(&mut self, all: impl Iterator<Item = T>) -> Option<T> {
        let all: Vec<_> = all.collect();
        let last = (all.len() as u64).max(1);
        all.get(self.below(last) as usize).copied()
    }
}

/// What the server knows of one stream.
struct Peer {
    hello: proto::Hello,
    asked_at: Duration,
    /// Its session, from Welcome on.
    session: Option<u64>,
    goodbye: bool,
    half_closed: bool,
    window: u32,
    unanswered: Vec<proto::Result>,
    /// Receipts of lines that are on their way.
    heard: Vec<proto::LogReceipt>,
    busy: bool,
    frame: u64,
    /// The highest frame that it brought while it was the newest stream.
    taken_frame: u64,
    beats: BTreeMap<u64, Duration>,
}

/// What the server knows of one session; its number is its token.
struct Served {
    hellos: u64,
    renewed: Duration,
    /// The worker was told that it has it no more.
    gone: bool,
    copied: bool,
    in_flight: BTreeSet<String>,
}

struct World {
    seed: u64,
    random: Random,
    half: Sessions,
    now: Duration,
    concurrency: usize,
    /// Handlers may finish without a lease, but not beside a copy.
    finishes: bool,
    peers: BTreeMap<StreamNo, Peer>,
    served: BTreeMap<u64, Served>,
    newest: StreamNo,
    /// The stream whose message is being looked at.
    hearing: Option<StreamNo>,
    running: BTreeMap<Ticket, String>,
    told: BTreeSet<Ticket>,
    ever_run: BTreeSet<String>,
    /// Each job is leased once, in this session.
    leased_in: BTreeMap<String, u64>,
    calls: Vec<(SessionNo, u64, Vec<proto::Result>)>,
    /// What was said of each job, until it was refused.
    said: BTreeMap<String, proto::Result>,
    /// What handlers have said: it waits for the pump, and how many lines it was in all.
    lines: BTreeMap<String, (Lines, u64)>,
    /// The last line of each job that is recorded.
    recorded: BTreeMap<String, u64>,
    succeeded: BTreeSet<String>,
    verdicts: BTreeSet<String>,
    settled: BTreeSet<String>,
    over: bool,
}

#[test]
fn whatever_a_server_does_slots_leases_and_results_hold() {
    let mut seen = BTreeMap::new();
    for seed in 1..=600 {
        let mut random = Random(seed * 0x9e37_79b9);
        let concurrency = 1 + random.below(5) as usize;
        let mut world = World {
            seed,
            half: Sessions::new(Config {
                finish_unrenewed: seed % 8 == 0,
                ..config(concurrency)
            }),
            finishes: seed % 8 == 0,
            random,
            now: Duration::ZERO,
            concurrency,
            peers: BTreeMap::new(),
            served: BTreeMap::new(),
            newest: StreamNo(0),
            hearing: None,
            running: BTreeMap::new(),
            told: BTreeSet::new(),
            ever_run: BTreeSet::new(),
            leased_in: BTreeMap::new(),
            calls: vec![],
            said: BTreeMap::new(),
            lines: BTreeMap::new(),
            recorded: BTreeMap::new(),
            succeeded: BTreeSet::new(),
            verdicts: BTreeSet::new(),
            settled: BTreeSet::new(),
            over: false,
        };
        for _ in 0..400 {
            world.step(&mut seen);
        }
        world.wind_down();
        let owed: Vec<_> = world.succeeded.difference(&world.verdicts).collect();
        assert!(owed.is_empty(), "results without a verdict: {owed:?}");
    }
    for what in [
        "said", "unheard", "resumed", "over", "copied", "moved", "drained", "ignored",
    ] {
        assert!(seen.get(what) > Some(&50), "{what} happens: {seen:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.seed);
        }
    }
}

impl World {
    fn event(&mut self, event: Event) {
        for action in self.half.handle(self.now, event) {
            match action {
                Action::Open(no, hello) => self.opened(no, hello),
                Action::Send(no, message) => self.sent(no, message.message.unwrap()),
                Action::HalfClose(no) => self.peers.get_mut(&no).unwrap().half_closed = true,
                Action::Cut(no) => {
                    self.peers
                        .remove(&no)
                        .expect("a stream is cut once, and only while it is there");
                }
                Action::Run(ticket, job) => {
                    let job = job.lease.unwrap().job_id;
                    assert_eq!(
                        self.hearing,
                        Some(self.newest),
                        "frames of an older stream are not taken"
                    );
                    assert!(
                        self.ever_run.insert(job.clone()),
                        "a lease runs once in its session"
                    );
                    self.running.insert(ticket, job);
                    assert!(
                        self.running.len() <= self.concurrency,
                        "never more handlers than slots"
                    );
                }
                Action::Stop(ticket, why, _) => {
                    let job = self.running.get(&ticket);
                    let job = job.expect("only running handlers are stopped");
                    let renewed = self.served[&self.leased_in[job]].renewed;
                    assert!(
                        why != StopReason::Unrenewed || self.now >= renewed + RELIABLE,
                        "{job} is stopped although its lease was renewed"
                    );
                    self.told.insert(ticket);
                }
                Action::Report(no, call) => self.reported(no, call),
                Action::Note(_) | Action::Saved(..) => {}
                Action::End(why) => {
                    assert_eq!(why, None);
                    assert!(self.peers.is_empty(), "no stream is left open");
                    self.over = true;
                }
            }
        }
        if self.over {
            return;
        }
        assert!(self.peers.len() <= 2, "one stream, and one to move to");
        assert_eq!(self.half.running(), self.running.len());
        for (ticket, job) in &self.running {
            let session = &self.served[&self.leased_in[job]];
            let sure = self.now < session.renewed + RELIABLE && !session.gone;
            let sure = (sure || self.finishes) && !session.copied;
            assert!(
                sure || self.told.contains(ticket),
                "{job} runs on untold without a lease"
            );
        }
    }

    fn opened(&mut self, no: StreamNo, hello: proto::LeaseJobsRequest) {
        let Some(Request::Hello(hello)) = hello.message else {
            panic!("Hello first")
        };
        assert!(hello.max_in_flight > 0);
        if let Some(token) = token(&hello) {
            let session = self
                .served
                .get_mut(&token)
                .expect("a token of the server's");
            assert!(!session.copied, "a copy is not fought");
            assert!(!session.gone, "what is over is not asked for");
            session.hellos += 1;
            assert_eq!(hello.attach_sequence, session.hellos);
            self.holds(token, &hello.held);
        } else {
            assert_eq!((hello.attach_sequence, hello.held.len()), (1, 0));
        }
        let window = hello.max_in_flight;
        self.peers.insert(
            no,
            Peer {
                hello,
                asked_at: self.now,
                session: None,
                goodbye: false,
                half_closed: false,
                window,
                unanswered: vec![],
                heard: vec![],
                busy: true,
                frame: 0,
                taken_frame: 0,
                beats: BTreeMap::new(),
            },
        );
        self.newest = no;
    }

    /// What runs or waits for a receipt is held, and nothing else.
    fn holds(&self, session: u64, held: &[proto::Lease]) {
        let listed: BTreeSet<_> = held.iter().map(|lease| lease.job_id.clone()).collect();
        for job in self.running.values().chain(&self.succeeded) {
            if self.leased_in[job] == session && !self.settled.contains(job) {
                assert!(listed.contains(job), "{job} is held");
            }
        }
        assert!(
            listed.is_disjoint(&self.settled),
            "what has a receipt is not"
        );
        assert!(listed.iter().all(|job| self.leased_in[job] == session));
    }

    fn sent(&mut self, no: StreamNo, message: Request) {
        let peer = self
            .peers
            .get_mut(&no)
            .expect("nothing is sent on a stream that is gone");
        assert!(
            !peer.busy && !peer.half_closed,
            "one message at a time, before the half-close"
        );
        let session = peer.session.expect("nothing but Hello before Welcome");
        peer.busy = true;
        match message {
            Request::Progress(_) => {}
            Request::Logs(logs) => {
                for report in logs.reports {
                    self.report_of_lines(no, session, report);
                }
            }
            Request::Hello(_) => panic!("Hello comes once"),
            Request::SetCapacity(set) => peer.window = set.max_in_flight,
            Request::Heartbeat(beat) => {
                assert!(beat.last_frame <= peer.taken_frame);
                peer.beats.insert(beat.sequence, self.now);
                assert_eq!(beat.sequence, peer.beats.len() as u64);
                self.holds(session, &beat.held);
                self.confirm(no, &beat);
            }
            Request::Results(results) => {
                for result in &results.results {
                    self.judged(session, result);
                }
                let peer = self.peers.get_mut(&no).unwrap();
                peer.unanswered.extend(results.results);
            }
            Request::Goodbye(_) => peer.goodbye = true,
        }
    }

    fn reported(&mut self, no: SessionNo, call: proto::ReportResultsRequest) {
        let token = u64::from_be_bytes(call.resume_token[..].try_into().unwrap());
        let session = &self.served[&token];
        assert!(
            session.gone || session.copied,
            "reported only when the session is over"
        );
        assert!(
            self.calls.iter().all(|(under_way, ..)| *under_way != no),
            "one call at a time"
        );
        for result in &call.results {
            self.judged(token, result);
        }
        self.calls.push((no, token, call.results));
    }

    /// A result has come, on whatever way.
    fn judged(&mut self, session: u64, result: &proto::Result) {
        let job = &result.lease.as_ref().unwrap().job_id;
        assert_eq!(self.leased_in[job], session, "under its own token");
        self.served.get_mut(&session).unwrap().in_flight.remove(job);
        if !matches!(result.outcome, Some(Wire::Stopped(_))) {
            assert!(!self.settled.contains(job), "not after its receipt");
            let result = proto::Result {
                log: None,
                ..result.clone()
            };
            let said = self
                .said
                .entry(job.clone())
                .or_insert_with(|| result.clone());
            assert_eq!(*said, result, "the same outcome");
        }
    }
}

fn token(hello: &proto::Hello) -> Option<u64> {
    let bytes = hello.resume_token[..].try_into().ok()?;
    Some(u64::from_be_bytes(bytes))
}
