//! A worker's half against a server that does everything in any order: pushes
//! twice, drains, cuts, loses answers, cancels. What must hold, holds at each step.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What the server knows of one stream.
#[derive(Default)]
struct Peer {
    open: bool,
    welcome: bool,
    goodbye: bool,
    half_closed: bool,
    window: u32,
    in_flight: BTreeSet<(String, u32)>,
    unanswered: Vec<proto::Result>,
    busy: bool,
    frame: u64,
}

struct World {
    random: Random,
    half: Sessions,
    now: Duration,
    concurrency: usize,
    peers: BTreeMap<SessionNo, Peer>,
    running: BTreeMap<Ticket, (SessionNo, String, u32)>,
    ever_run: BTreeSet<(SessionNo, String, u32)>,
    calls: Vec<(SessionNo, Vec<proto::Result>)>,
    finished: BTreeSet<(SessionNo, String, u32)>,
    verdicts: BTreeSet<(SessionNo, String, u32)>,
    jobs: u64,
    frames: BTreeMap<String, SessionNo>,
    over: bool,
}

#[test]
fn whatever_a_server_does_slots_leases_and_results_hold() {
    for seed in 1..=300 {
        let mut random = Random(seed * 0x9e37_79b9);
        let concurrency = 1 + random.below(5) as usize;
        let mut world = World {
            half: Sessions::new(config(concurrency)),
            random,
            now: Duration::ZERO,
            concurrency,
            peers: BTreeMap::new(),
            running: BTreeMap::new(),
            ever_run: BTreeSet::new(),
            calls: vec![],
            finished: BTreeSet::new(),
            verdicts: BTreeSet::new(),
            jobs: 0,
            frames: BTreeMap::new(),
            over: false,
        };
        for _ in 0..400 {
            world.step();
        }
        world.wind_down();
        assert!(world.over, "seed {seed}: the worker ended");
        let owed: Vec<_> = world.finished.difference(&world.verdicts).collect();
        assert!(
            owed.is_empty(),
            "seed {seed}: results without a verdict: {owed:?}"
        );
    }
}

impl World {
    fn step(&mut self) {
        let no = self.any_peer();
        match self.random.below(12) {
            0 => self.tick(),
            1 | 2 => self.welcome_or_push(no),
            3 | 4 => self.end_a_handler(),
            5 | 6 => self.answer_results(no),
            7 => self.written(no),
            8 => self.answer_call(),
            9 if self.random.below(4) == 0 => self.cut(no),
            10 if self.random.below(8) == 0 => {
                self.hears(no, Response::Draining(proto::Draining::default()))
            }
            11 => self.cancel_or_lose(no),
            _ => self.written(no),
        }
    }

    /// A kind server from here on: all is answered, and all handlers end.
    fn wind_down(&mut self) {
        self.event(Event::Shutdown(20 * S));
        for _ in 0..20_000 {
            if self.over {
                return;
            }
            for no in self.peers.keys().copied().collect::<Vec<_>>() {
                self.written(Some(no));
                self.answer_results(Some(no));
                if self.peers[&no].goodbye {
                    self.hears(
                        Some(no),
                        Response::CapacityApplied(proto::CapacityApplied {
                            goodbye: true,
                            ..Default::default()
                        }),
                    );
                }
                if self.peers[&no].half_closed {
                    self.cut(Some(no));
                }
            }
            self.end_a_handler();
            while !self.calls.is_empty() {
                self.answer_call_well();
            }
            self.now += Duration::from_millis(20);
            self.event(Event::Tick);
        }
    }

    fn event(&mut self, event: Event) {
        for action in self.half.handle(self.now, event) {
            match action {
                Action::Open(no, hello) => {
                    let Some(Request::Hello(hello)) = hello.message else {
                        panic!("Hello first")
                    };
                    assert!(hello.max_in_flight > 0);
                    let peer = Peer {
                        open: true,
                        busy: true,
                        window: hello.max_in_flight,
                        ..Peer::default()
                    };
                    self.peers.insert(no, peer);
                }
                Action::Send(no, message) => self.sent(no, message.message.unwrap()),
                Action::HalfClose(no) => self.peers.get_mut(&no).unwrap().half_closed = true,
                Action::Cut(no) => {
                    self.peers
                        .remove(&no)
                        .expect("a stream is cut once, and only while it is there");
                }
                Action::Run(ticket, job) => {
                    let lease = job.lease.unwrap();
                    let no = self.frames[&lease.job_id];
                    let key = (no, lease.job_id, lease.attempt);
                    assert!(
                        self.ever_run.insert(key.clone()),
                        "a lease runs once in its session"
                    );
                    self.running.insert(ticket, key);
                    assert!(
                        self.running.len() <= self.concurrency,
                        "never more handlers than slots"
                    );
                }
                Action::Stop(ticket, ..) => assert!(
                    self.running.contains_key(&ticket),
                    "only running handlers are stopped"
                ),
                Action::Report(no, call) => {
                    assert!(
                        !self.peers.contains_key(&no),
                        "reported only when the stream is gone"
                    );
                    assert_eq!(call.resume_token, no.0.to_be_bytes(), "under its own token");
                    assert!(
                        self.calls.iter().all(|(under_way, _)| *under_way != no),
                        "one call at a time"
                    );
                    self.calls.push((no, call.results));
                }
                Action::Note(_) => {}
                Action::End(why) => {
                    assert_eq!(why, None);
                    self.over = true;
                }
            }
        }
        assert_eq!(self.half.running(), self.running.len());
    }

    fn sent(&mut self, no: SessionNo, message: Request) {
        let peer = self
            .peers
            .get_mut(&no)
            .expect("nothing is sent on a stream that is gone");
        assert!(
            peer.welcome && !peer.busy && !peer.half_closed,
            "one message at a time, after Welcome"
        );
        peer.busy = true;
        match message {
            Request::Hello(_) => panic!("Hello comes once"),
            Request::SetCapacity(set) => peer.window = set.max_in_flight,
            Request::Heartbeat(beat) => {
                for (session, job, attempt) in
                    self.running.values().filter(|(session, ..)| *session == no)
                {
                    assert!(
                        beat.held.contains(&lease(job, *attempt)),
                        "what runs in {session:?} is held"
                    );
                }
                // Most renewals are confirmed.
                if self.random.below(5) > 0 {
                    let ack = proto::HeartbeatAck {
                        sequence: beat.sequence,
                        lease_ttl: None,
                    };
                    self.hears(Some(no), Response::HeartbeatAck(ack));
                }
            }
            Request::Results(results) => {
                for result in results.results {
                    let lease = result.lease.clone().unwrap();
                    peer.in_flight.remove(&(lease.job_id, lease.attempt));
                    peer.unanswered.push(result);
                }
            }
            Request::Goodbye(_) => peer.goodbye = true,
        }
    }

    fn any_peer(&mut self) -> Option<SessionNo> {
        let numbers: Vec<_> = self.peers.keys().copied().collect();
        if numbers.is_empty() {
            None
        } else {
            Some(numbers[self.random.below(numbers.len() as u64) as usize])
        }
    }

    fn hears(&mut self, no: Option<SessionNo>, message: Response) {
        let Some(no) = no.filter(|no| self.peers.get(no).is_some_and(|peer| peer.welcome)) else {
            return;
        };
        self.event(Event::Received(
            no,
            proto::LeaseJobsResponse {
                message: Some(message),
            },
        ));
    }

    fn tick(&mut self) {
        let by = self.random.below(9_000);
        let at = self.half.deadline().unwrap_or_default();
        self.now = self.now.max(at.min(self.now + Duration::from_millis(by)));
        self.event(Event::Tick);
    }

    fn welcome_or_push(&mut self, no: Option<SessionNo>) {
        let Some(no) = no else { return };
        let Some(peer) = self.peers.get_mut(&no) else {
            return;
        };
        if !peer.welcome {
            peer.welcome = true;
            let message = proto::LeaseJobsResponse {
                message: Some(welcome(&no.0.to_be_bytes())),
            };
            return self.event(Event::Received(no, message));
        }
        peer.frame += 1;
        let frame = peer.frame;
        let again = self.random.below(4) == 0;
        let old = peer.in_flight.first().cloned().filter(|_| again);
        let (job, attempt) = match old {
            Some(old) => old,
            None if peer.in_flight.len() < peer.window as usize && !peer.goodbye => {
                self.jobs += 1;
                let job = format!("job-{}", self.jobs);
                peer.in_flight.insert((job.clone(), 1));
                self.frames.insert(job.clone(), no);
                (job, 1)
            }
            None => return,
        };
        let kind = if self.random.below(9) == 0 && !again {
            "strange"
        } else {
            "known"
        };
        self.hears(
            Some(no),
            Response::Jobs(proto::Jobs {
                frame,
                jobs: vec![leased(&job, attempt, kind)],
            }),
        );
    }

    fn end_a_handler(&mut self) {
        let tickets: Vec<_> = self.running.keys().copied().collect();
        if tickets.is_empty() {
            return;
        }
        let ticket = tickets[self.random.below(tickets.len() as u64) as usize];
        let key = self.running.remove(&ticket).unwrap();
        // Only successes are owed a verdict whatever was ordered meanwhile.
        let outcome = match self.random.below(3) {
            0 => failed(),
            1 => Outcome::Dropped,
            _ => {
                self.finished.insert(key);
                output(8)
            }
        };
        self.event(Event::Finished(ticket, outcome));
    }

    fn verdicts(&mut self, no: SessionNo, results: Vec<proto::Result>) -> Vec<proto::Receipt> {
        let judged = results
            .into_iter()
            .filter(|result| !matches!(result.outcome, Some(Wire::Stopped(_))));
        judged
            .map(|result| {
                let lease = result.lease.unwrap();
                let rejected =
                    matches!(result.outcome, Some(Wire::Success(_))) && self.random.below(9) == 0;
                let status = if rejected {
                    proto::ReceiptStatus::Rejected
                } else {
                    proto::ReceiptStatus::Recorded
                };
                if !rejected {
                    self.verdicts
                        .insert((no, lease.job_id.clone(), lease.attempt));
                }
                receipt(&lease.job_id, lease.attempt, status)
            })
            .collect()
    }

    fn answer_results(&mut self, no: Option<SessionNo>) {
        let Some(no) = no else { return };
        let Some(peer) = self.peers.get_mut(&no) else {
            return;
        };
        let results = std::mem::take(&mut peer.unanswered);
        let receipts = self.verdicts(no, results);
        self.hears(Some(no), Response::Receipts(proto::Receipts { receipts }));
    }

    fn written(&mut self, no: Option<SessionNo>) {
        let Some(no) = no else { return };
        if let Some(peer) = self.peers.get_mut(&no) {
            peer.busy = false;
            self.event(Event::Written(no));
        }
    }

    fn answer_call(&mut self) {
        if self.random.below(2) == 0 {
            return self.answer_call_well();
        }
        if let Some((no, _)) = self.calls.pop() {
            self.event(Event::Reported(no, Err(())));
        }
    }

    fn answer_call_well(&mut self) {
        if let Some((no, results)) = self.calls.pop() {
            let receipts = self.verdicts(no, results);
            self.event(Event::Reported(no, Ok(receipts)));
        }
    }

    fn cut(&mut self, no: Option<SessionNo>) {
        if let Some(no) = no.filter(|no| self.peers.remove(no).is_some_and(|peer| peer.open)) {
            self.event(Event::Ended(no, End::default()));
        }
    }

    fn cancel_or_lose(&mut self, no: Option<SessionNo>) {
        let Some(first) = no
            .and_then(|no| self.peers.get(&no))
            .and_then(|peer| peer.in_flight.first().cloned())
        else {
            return;
        };
        let lease = lease(&first.0, first.1);
        if self.random.below(2) == 0 {
            self.hears(
                no,
                Response::Lost(proto::Lost {
                    leases: vec![lease],
                }),
            );
        } else {
            let cancel = proto::CancelAttempt {
                lease: Some(lease),
                reason: proto::CancelReason::Requested.into(),
            };
            self.hears(
                no,
                Response::Cancels(proto::Cancels {
                    cancels: vec![cancel],
                }),
            );
        }
    }
}
