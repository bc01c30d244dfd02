//! Every job against what clients were told and what handlers did.

use std::collections::{BTreeMap, HashMap, HashSet};

use worker_sdk::proto::AttemptOutcome;
use worker_sdk::{Job, JobState};

use crate::faults::{Past, TTL, Target};
use crate::ledger::{Line, What};
use crate::load::{Seen, Told};
use crate::worker::Done;

/// All that is known when a run is over.
pub struct Evidence {
    pub told: HashMap<String, Told>,
    /// As the service has them once everything is quiet; `None`: it knows none of this id.
    pub jobs: HashMap<String, Option<Job>>,
    /// As it had them a little before, when the last became final.
    pub before: HashMap<String, Seen>,
    pub ledger: HashMap<String, Vec<Line>>,
    pub faults: Vec<Past>,
    /// When the last client had its answer.
    pub load_until: u64,
}

/// Promises, in the order of the table. Each names what breaks it.
pub const BROKEN: &[&str] = &[
    LOST,
    UNKNOWN,
    TWICE,
    CHANGED,
    NOT_RECORDED,
    STALE_RECORDED,
    NO_VERDICT,
    NOT_CANCELLED,
    AFTER_CANCEL,
    BEYOND,
    SAME_ATTEMPT,
    NOT_HANDED_OUT,
    STEP_AGAIN,
    FORGOTTEN,
    NO_CAUSE,
    WRONG_END,
];
pub const LOST: &str = "lost (told OK and not final)";
pub const UNKNOWN: &str = "told OK and unknown";
pub const TWICE: &str = "recorded twice";
pub const CHANGED: &str = "recorded result that changed";
pub const NOT_RECORDED: &str = "told RECORDED and not";
pub const STALE_RECORDED: &str = "told STALE and recorded";
pub const NO_VERDICT: &str = "told neither RECORDED nor STALE";
pub const NOT_CANCELLED: &str = "told CANCELLED and not";
pub const AFTER_CANCEL: &str = "executions after CANCELLED before hand-out";
pub const BEYOND: &str = "executions beyond I5's bound";
pub const SAME_ATTEMPT: &str = "attempts executed twice";
pub const NOT_HANDED_OUT: &str = "executions of attempts never handed out";
pub const STEP_AGAIN: &str = "steps done again though recorded";
pub const FORGOTTEN: &str = "leases taken back as forgotten";
pub const NO_CAUSE: &str = "leases lost by workers that were left alone";
pub const WRONG_END: &str = "jobs that ended as nothing asked them to";

#[derive(Default)]
pub struct Findings {
    /// Stories of jobs, by the promise that they break.
    pub broken: BTreeMap<&'static str, Vec<String>>,
}

impl Findings {
    fn add(&mut self, promise: &'static str, job: &str, why: impl Into<String>) {
        let found = self.broken.entry(promise).or_default();
        found.push(format!("{job}: {}", why.into()));
    }

    pub fn count(&self) -> usize {
        self.broken.values().map(Vec::len).sum()
    }
}

pub fn audit(evidence: &Evidence) -> Findings {
    let mut findings = Findings::default();
    for (id, told) in &evidence.told {
        let lines = evidence.ledger.get(id).map_or(&[][..], Vec::as_slice);
        match evidence.jobs.get(id) {
            Some(Some(job)) => One {
                id,
                told,
                job,
                lines,
                evidence,
                findings: &mut findings,
            }
            .audit(),
            _ if told.accepted => findings.add(UNKNOWN, id, told.kind),
            _ if !lines.is_empty() => findings.add(UNKNOWN, id, "it ran"),
            _ => {}
        }
    }
    for id in evidence.ledger.keys() {
        if !evidence.told.contains_key(id) {
            findings.add(NOT_HANDED_OUT, id, "nobody enqueued it");
        }
    }
    findings
}

/// One job under audit.
struct One<'a> {
    id: &'a str,
    told: &'a Told,
    job: &'a Job,
    lines: &'a [Line],
    evidence: &'a Evidence,
    findings: &'a mut Findings,
}

impl One<'_> {
    fn audit(mut self) {
        self.end();
        self.results();
        self.verdicts();
        self.executions();
        self.steps();
        self.lost_leases();
    }

    fn add(&mut self, promise: &'static str, why: &str) {
        let (job, lines) = (self.job, self.lines);
        let story = format!("{why}; {:?}; {job:?}; {lines:#?}", self.told);
        self.findings.add(promise, self.id, story);
    }

    fn attempts(&self, what: impl Fn(&What) -> bool) -> Vec<u32> {
        let lines = self.lines.iter().filter(|line| what(&line.what));
        lines.map(|line| line.attempt).collect()
    }

    fn history(&self, attempt: u32) -> Option<AttemptOutcome> {
        let rows = self.job.attempts.iter();
        let mut of = rows.filter(|row| row.attempt == attempt);
        of.next().map(|row| row.outcome())
    }

    fn recorded_by(&self) -> Option<Done> {
        let succeeded = self.job.state() == JobState::Succeeded;
        succeeded.then(|| self.job.output_as::<Done>().ok())?
    }

    fn end(&mut self) {
        let (job, told) = (self.job, self.told);
        if !job.is_final() {
            return self.add(LOST, "not final");
        }
        let poison = job
            .last_failure
            .as_ref()
            .is_some_and(|f| f.r#type == "LEASES_LOST");
        let right = match (job.state(), told.kind) {
            (JobState::Cancelled, "wait" | "hasty" | "scheduled") => true,
            (JobState::Failed, "doomed") => true,
            (JobState::Failed, _) => poison && job.lost_leases > 5,
            (JobState::Succeeded, _) => self.recorded_by().is_some(),
            _ => false,
        };
        if !right {
            self.add(WRONG_END, "its end");
        }
        if told.cancelled.is_some() && job.state() != JobState::Cancelled {
            self.add(NOT_CANCELLED, "its state");
        }
    }

    fn results(&mut self) {
        let now = Seen::of(self.job);
        let before = self.evidence.before.get(self.id);
        if before.is_some_and(|before| *before != now) {
            self.add(CHANGED, &format!("it was {before:?}"));
        }
        if let Some(seen) = &self.told.seen
            && *seen != now
            && self.told.retries == 0
        {
            self.add(CHANGED, &format!("a client saw {seen:?}"));
        }
        // Attempts whose handlers said that they did their work, and whose result was taken.
        let good: HashSet<u32> = self
            .attempts(|w| *w == What::Ended { ok: true })
            .into_iter()
            .collect();
        let mut recorded = self.attempts(|w| *w == What::Recorded);
        recorded.sort_unstable();
        recorded.dedup();
        if recorded.iter().filter(|a| good.contains(a)).count() > 1 {
            self.add(TWICE, &format!("{recorded:?}"));
        }
    }

    fn verdicts(&mut self) {
        let by = self.recorded_by();
        let is_by = |line: &Line| {
            let by = by.as_ref();
            by.is_some_and(|by| by.attempt == line.attempt && by.worker == *line.worker)
        };
        for line in self.lines {
            let kept = matches!(
                self.history(line.attempt),
                Some(AttemptOutcome::Failed | AttemptOutcome::Released)
            );
            match &line.what {
                What::Recorded if !is_by(line) && !kept => {
                    self.add(NOT_RECORDED, &format!("{line:?}"))
                }
                What::Stale if is_by(line) => self.add(STALE_RECORDED, &format!("{line:?}")),
                What::Unclear(_) => self.add(NO_VERDICT, &format!("{line:?}")),
                _ => {}
            }
        }
    }

    fn executions(&mut self) {
        let begun = self.attempts(|w| *w == What::Begin);
        let distinct: HashSet<u32> = begun.iter().copied().collect();
        if distinct.len() < begun.len() {
            self.add(SAME_ATTEMPT, &format!("{begun:?}"));
        }
        if begun.iter().any(|attempt| *attempt > self.job.attempt) {
            self.add(NOT_HANDED_OUT, &format!("{begun:?}"));
        }
        if let Some(attempt) = self.told.cancelled
            && begun.iter().any(|begun| *begun > attempt)
        {
            self.add(AFTER_CANCEL, &format!("{begun:?}"));
        }
        // By the history, as a lease that an outage cost is not in the counter, and a retry by hand puts it to 0.
        let causes = self.job.attempts.iter().filter(|row| {
            !matches!(
                row.outcome(),
                AttemptOutcome::Succeeded | AttemptOutcome::Cancelled
            )
        });
        let again = usize::try_from(self.told.retries).unwrap();
        if begun.len() > 1 + causes.count() + again {
            self.add(BEYOND, &format!("{begun:?}"));
        }
        let job = self.job;
        let counted = 1 + job.lost_leases + job.failures + job.releases;
        let in_outages = self.job.attempts.iter().filter(|row| {
            row.outcome() == AttemptOutcome::LeaseLost
                && row.end_time.is_some_and(|end| self.outage(millis(end)))
        });
        let bound = usize::try_from(counted).unwrap() + in_outages.count();
        if self.told.retries == 0 && begun.len() > bound {
            self.add(BEYOND, &format!("{begun:?}, by the counters {bound}"));
        }
    }

    fn steps(&mut self) {
        for line in self.lines {
            let What::Step(name) = &line.what else {
                continue;
            };
            let done = self.lines.iter().any(|before| {
                before.attempt < line.attempt
                    && before.at < line.at
                    && matches!(&before.what, What::Stepped(other) if other == name)
            });
            if done {
                self.add(STEP_AGAIN, &format!("{line:?}"));
            }
        }
    }

    fn lost_leases(&mut self) {
        for row in &self.job.attempts {
            match row.outcome() {
                AttemptOutcome::Forgotten => self.add(FORGOTTEN, &format!("{row:?}")),
                AttemptOutcome::LeaseLost => {
                    let end = row.end_time.map_or(0, millis);
                    if !self.hurt(&row.worker, end) {
                        self.add(NO_CAUSE, &format!("{row:?}"));
                    }
                }
                _ => {}
            }
        }
    }

    /// Postgres or nodes were away, or not long back.
    fn outage(&self, at: u64) -> bool {
        let mut faults = self.evidence.faults.iter();
        let away = |target| matches!(target, Target::Postgres | Target::Node(_));
        faults.any(|past| away(past.target) && near(past, at))
    }

    /// Something was done to this worker that may cost it a lease at this time.
    fn hurt(&self, worker: &str, at: u64) -> bool {
        let parts = worker
            .strip_prefix('w')
            .and_then(|rest| rest.split_once('.'));
        let (number, generation) = parts.expect("a worker of the run");
        let (number, generation): (usize, usize) =
            (number.parse().unwrap(), generation.parse().unwrap());
        let faults = || self.evidence.faults.iter();
        let of_slot = |past: &&Past| past.target == Target::Worker(number);
        let kills = faults().filter(of_slot).filter(|past| past.is_kill());
        let mut kills: Vec<u64> = kills.map(|past| past.from).collect();
        kills.sort_unstable();
        // The n-th of a slot was ended by the n-th kill there.
        kills.get(generation - 1).is_some_and(|kill| *kill <= at)
            || faults().any(|past| of_slot(&past) && !past.is_kill() && near(past, at))
            || faults().any(|past| past.target == Target::Way(number) && near(past, at))
            || faults().any(|past| past.target == Target::Postgres && near(past, at))
    }
}

/// What a fault costs shows within a TTL of its end, or two where the database's own grace comes on top.
fn near(past: &Past, at: u64) -> bool {
    let ttl = u64::try_from(TTL.as_millis()).unwrap();
    (past.from..=past.to + 3 * ttl).contains(&at)
}

fn millis(time: prost_types::Timestamp) -> u64 {
    u64::try_from(time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000).unwrap()
}
