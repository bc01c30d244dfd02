//! What the random server does.

use super::*;

impl World {
    pub(super) fn step(&mut self, seen: &mut BTreeMap<&'static str, u32>) {
        let no = self.random.of(self.peers.keys().copied());
        let what = match self.random.below(17) {
            0 => self.tick(),
            1..=3 => self.welcome_or_push(no, true),
            4 | 5 => self.end_a_handler(),
            6 | 7 => self.answer_results(no),
            8 => self.answer_call(),
            9 if self.random.below(3) == 0 => self.cut(no),
            10 if self.random.below(4) == 0 => self.drain(no),
            11 => self.cancel_or_lose(no),
            13 | 14 => self.say(),
            15 => self.answer_logs(no),
            12 if self.random.below(2) == 0 => self.move_away(),
            _ => self.written(no),
        };
        if let Some(what) = what {
            *seen.entry(what).or_default() += 1;
        }
    }

    /// A kind server from here on: all is answered, and all handlers end. The
    /// worker must have a stream that it takes jobs from, and end when it is told.
    pub(super) fn wind_down(&mut self) {
        let serves = |world: &mut Self| {
            let peer = world.peers.get(&world.newest);
            peer.is_some_and(|peer| peer.session.is_some() && peer.window > 0)
        };
        assert!(self.until(serves), "the worker is there again");
        self.event(Event::Shutdown(20 * S));
        assert!(self.until(|world| world.over), "the worker ends");
    }

    fn until(&mut self, come: impl Fn(&mut Self) -> bool) -> bool {
        let end = self.now + 100 * S;
        while self.now < end && !come(self) {
            for no in self.peers.keys().copied().collect::<Vec<_>>() {
                self.written(Some(no));
                self.answer_results(Some(no));
                self.answer_logs(Some(no));
                let Some(peer) = self.peers.get(&no) else {
                    continue;
                };
                if peer.session.is_none() {
                    self.welcome_or_push(Some(no), false);
                } else if peer.half_closed {
                    self.cut(Some(no));
                } else if peer.goodbye {
                    self.hears(
                        no,
                        Response::CapacityApplied(proto::CapacityApplied {
                            goodbye: true,
                            ..Default::default()
                        }),
                    );
                }
            }
            self.end_a_handler();
            while !self.calls.is_empty() {
                self.answer_call_well();
            }
            self.now += Duration::from_millis(20);
            self.event(Event::Tick);
        }
        come(self)
    }

    fn hears(&mut self, no: StreamNo, message: Response) {
        self.hearing = Some(no);
        self.event(Event::Received(
            no,
            proto::LeaseJobsResponse {
                message: Some(message),
            },
        ));
        self.hearing = None;
    }

    fn tick(&mut self) -> Option<&'static str> {
        let by = self.random.below(9_000);
        let at = self.half.deadline().unwrap_or_default();
        self.now = self.now.max(at.min(self.now + Duration::from_millis(by)));
        self.event(Event::Tick);
        None
    }

    fn welcome_or_push(&mut self, no: Option<StreamNo>, moody: bool) -> Option<&'static str> {
        let no = no?;
        match self.peers[&no].session {
            None => Some(self.welcome(no, moody)),
            Some(session) => self.push(no, session),
        }
    }

    fn welcome(&mut self, no: StreamNo, moody: bool) -> &'static str {
        let peer = self.peers.get_mut(&no).unwrap();
        let (token, asked_at) = (token(&peer.hello), peer.asked_at);
        if let Some(token) = token
            && (!moody || self.random.below(5) > 0)
        {
            peer.session = Some(token);
            let served = self.served.get_mut(&token).unwrap();
            served.renewed = served.renewed.max(asked_at);
            self.hears(no, resumed());
            return "resumed";
        }
        if let Some(old) = token {
            self.served.get_mut(&old).unwrap().gone = true;
        }
        let session = self.served.len() as u64 + 1;
        peer.session = Some(session);
        self.served.insert(
            session,
            Served {
                hellos: 1,
                renewed: asked_at,
                gone: false,
                copied: false,
                in_flight: BTreeSet::new(),
            },
        );
        self.hears(no, welcome(&session.to_be_bytes()));
        if token.is_some() { "over" } else { "began" }
    }

    /// Pushes a job, or one that was pushed already, on this stream or another;
    /// and now and then one whose frame is lost.
    fn push(&mut self, no: StreamNo, session: u64) -> Option<&'static str> {
        let newest = no == self.newest;
        let again = self.random.below(3) == 0;
        let served = self.served.get_mut(&session)?;
        let peer = self.peers.get_mut(&no)?;
        let old = served.in_flight.first().cloned().filter(|_| again);
        let job = match old {
            Some(job) => job,
            None if served.in_flight.len() < peer.window as usize && !peer.goodbye => {
                let job = format!("job-{:06}", self.leased_in.len());
                served.in_flight.insert(job.clone());
                self.leased_in.insert(job.clone(), session);
                if self.random.below(8) == 0 {
                    return Some("lost");
                }
                job
            }
            None => return None,
        };
        peer.frame += 1;
        let frame = peer.frame;
        if newest {
            peer.taken_frame = frame;
        }
        let strange = !again && self.random.below(9) == 0;
        let kind = if strange { "strange" } else { "known" };
        let jobs = vec![leased(&job, 1, kind)];
        self.hears(no, Response::Jobs(proto::Jobs { frame, jobs }));
        (!newest).then_some("ignored")
    }

    /// A handler says its next lines; sometimes the pump fetches them only at its end.
    fn say(&mut self) -> Option<&'static str> {
        let ticket = self.random.of(self.running.keys().copied())?;
        let job = self.running[&ticket].clone();
        let count = 1 + self.random.below(3);
        let (lines, said) = self.lines.entry(job).or_default();
        for _ in 0..count {
            *said += 1;
            lines.push(Line {
                elapsed: self.now,
                level: proto::LogLevel::Info,
                message: said.to_string(),
            });
        }
        if self.random.below(4) > 0 {
            self.fetch(ticket);
        }
        Some("said")
    }

    fn fetch(&mut self, ticket: Ticket) {
        let job = &self.running[&ticket];
        if let Some((lines, _)) = self
            .lines
            .get_mut(job)
            .filter(|(lines, _)| !lines.is_empty())
        {
            let said = Said(lines.take());
            self.event(Event::Said(ticket, said));
        }
    }

    /// It is recorded, with a receipt or without, or it is not.
    pub(super) fn report_of_lines(&mut self, no: StreamNo, session: u64, report: proto::LogReport) {
        let (lease, log) = (report.lease.unwrap(), report.log.unwrap());
        assert_eq!(
            self.leased_in[&lease.job_id], session,
            "under its own session"
        );
        assert!(!self.settled.contains(&lease.job_id), "not after its end");
        let what = self.random.below(6);
        if what == 0 {
            return;
        }
        let last = self.record(&lease.job_id, &log);
        if what > 1 {
            let receipt = proto::LogReceipt {
                lease: Some(lease),
                last,
                status: proto::ReceiptStatus::Recorded.into(),
                problem: None,
            };
            self.peers.get_mut(&no).unwrap().heard.push(receipt);
        }
    }

    fn record(&mut self, job: &str, log: &proto::LogLines) -> u64 {
        let recorded = self.recorded.entry(job.to_owned()).or_default();
        assert!(log.first <= *recorded + 1, "{job}: no line is skipped");
        for (number, line) in (log.first..).zip(&log.lines) {
            assert_eq!(line.message, number.to_string(), "{job}: in order");
        }
        let last = log.first + log.lines.len() as u64 - 1;
        *recorded = last.max(*recorded);
        last
    }

    fn answer_logs(&mut self, no: Option<StreamNo>) -> Option<&'static str> {
        let no = no?;
        let receipts = std::mem::take(&mut self.peers.get_mut(&no)?.heard);
        let newest = no == self.newest;
        self.hears(no, Response::LogReceipts(proto::LogReceipts { receipts }));
        (!newest).then_some("unheard")
    }

    fn end_a_handler(&mut self) -> Option<&'static str> {
        let ticket = self.random.of(self.running.keys().copied())?;
        self.fetch(ticket);
        let job = self.running.remove(&ticket)?;
        // Only successes are owed a verdict whatever was ordered meanwhile.
        let outcome = match self.random.below(3) {
            0 => failed(),
            1 => Outcome::Dropped,
            _ => {
                self.succeeded.insert(job);
                output(8)
            }
        };
        self.event(Event::Finished(ticket, outcome));
        None
    }

    fn verdicts(&mut self, results: Vec<proto::Result>) -> Vec<proto::Receipt> {
        let judged = results
            .into_iter()
            .filter(|result| !matches!(result.outcome, Some(Wire::Stopped(_))));
        judged
            .map(|result| {
                let job = result.lease.clone().unwrap().job_id;
                let rejected =
                    matches!(result.outcome, Some(Wire::Success(_))) && self.random.below(9) == 0;
                let status = if rejected {
                    self.said.remove(&job);
                    proto::ReceiptStatus::Rejected
                } else {
                    if let Some(log) = &result.log {
                        self.record(&job, log);
                    }
                    let said = self.lines.get(&job).map_or(0, |(_, said)| *said);
                    let recorded = self.recorded.get(&job).copied().unwrap_or(0);
                    assert_eq!(
                        recorded, said,
                        "{job}: its lines are there before its result"
                    );
                    self.verdicts.insert(job.clone());
                    self.settled.insert(job.clone());
                    proto::ReceiptStatus::Recorded
                };
                receipt(&job, 1, status)
            })
            .collect()
    }

    pub(super) fn confirm(&mut self, no: StreamNo, beat: &proto::Heartbeat) {
        // Most renewals are confirmed, and some by a later one only.
        if self.random.below(5) == 0 {
            return;
        }
        let peer = &self.peers[&no];
        let session = self.served.get_mut(&peer.session.unwrap()).unwrap();
        session.renewed = session.renewed.max(peer.beats[&beat.sequence]);
        let ack = proto::HeartbeatAck {
            sequence: beat.sequence,
            lease_ttl: None,
        };
        self.hears(no, Response::HeartbeatAck(ack));
    }

    fn answer_results(&mut self, no: Option<StreamNo>) -> Option<&'static str> {
        let no = no?;
        let results = std::mem::take(&mut self.peers.get_mut(&no)?.unanswered);
        let receipts = self.verdicts(results);
        self.hears(no, Response::Receipts(proto::Receipts { receipts }));
        None
    }

    fn written(&mut self, no: Option<StreamNo>) -> Option<&'static str> {
        let no = no?;
        self.peers.get_mut(&no)?.busy = false;
        self.event(Event::Written(no));
        None
    }

    fn answer_call(&mut self) -> Option<&'static str> {
        if self.random.below(2) == 0 {
            return self.answer_call_well();
        }
        let (no, ..) = self.calls.pop()?;
        self.event(Event::Reported(no, Err(())));
        None
    }

    fn answer_call_well(&mut self) -> Option<&'static str> {
        let (no, _, results) = self.calls.pop()?;
        let receipts = self.verdicts(results);
        self.event(Event::Reported(no, Ok(receipts)));
        None
    }

    fn cut(&mut self, no: Option<StreamNo>) -> Option<&'static str> {
        let no = no?;
        self.peers.remove(&no)?;
        self.event(Event::Ended(no, End::default()));
        Some("cut")
    }

    fn drain(&mut self, no: Option<StreamNo>) -> Option<&'static str> {
        let no = no?;
        self.peers[&no].session?;
        self.hears(no, Response::Draining(proto::Draining::default()));
        Some("drained")
    }

    /// Ends a stream because another Hello has its session: a newer one of the
    /// worker's own, or a copy's.
    fn move_away(&mut self) -> Option<&'static str> {
        let no = *self.peers.keys().next()?;
        let peer = &self.peers[&no];
        let session = peer.session.or_else(|| token(&peer.hello))?;
        let own = no != self.newest;
        if !own && self.random.below(3) > 0 {
            return None;
        }
        self.peers.remove(&no);
        if !own {
            self.served.get_mut(&session).unwrap().copied = true;
        }
        self.event(Event::Ended(no, moved()));
        Some(if own { "moved" } else { "copied" })
    }

    fn cancel_or_lose(&mut self, no: Option<StreamNo>) -> Option<&'static str> {
        let no = no?;
        let session = self.peers[&no].session?;
        let job = self.served[&session].in_flight.first()?;
        let lease = lease(job, 1);
        if self.random.below(2) == 0 {
            let leases = vec![lease];
            self.hears(no, Response::Lost(proto::Lost { leases }));
        } else {
            let cancel = proto::CancelAttempt {
                lease: Some(lease),
                reason: proto::CancelReason::Requested.into(),
            };
            let cancels = vec![cancel];
            self.hears(no, Response::Cancels(proto::Cancels { cancels }));
        }
        None
    }
}
