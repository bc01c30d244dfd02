//! How attempts end: by results of the worker, or by what the session itself finds (a timeout, a lease that the worker
//! forgot). Nothing ends here before the store has said so.

use std::collections::BTreeMap;
use std::time::Duration;

use super::held::Phase;
use super::message::{CancelReason, Reported, ServerMessage};
use super::{AGAIN, Action, Session};
use crate::error::{Error, Limit, Violation};
use crate::job::limits::{BATCH_MAX, HELD_MAX};
use crate::job::{AttemptOutcome, Lease, NewLines, Outcome, Verdict};

/// Results of one worker that are being recorded at once; more are to be sent again later.
const RECORDING_MAX: usize = HELD_MAX;

/// A late result that is larger is not kept until its attempt's timeout is recorded: many attempts may time out at once.
const LATE_BYTES_MAX: usize = 4 * 1024;

/// Endings on their way to the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Recording {
    /// Results of the worker.
    results: usize,
    /// What the session found.
    own: usize,
    /// Attempts whose timeout is not recorded yet, each with the result that the worker sent for it meanwhile: too
    /// late, so it goes to the store only after that, and cannot overtake it there.
    late: BTreeMap<Lease, Option<Outcome>>,
    /// What the session found and could not have recorded, and when to try again.
    again: BTreeMap<(Duration, Lease), Outcome>,
}

impl Recording {
    /// Nothing is being recorded.
    pub(super) fn is_empty(&self) -> bool {
        self.results == 0 && self.own == 0
    }

    pub(super) fn next_try(&self) -> Option<Duration> {
        self.again.first_key_value().map(|((at, _), _)| *at)
    }

    /// So many results could not be recorded.
    pub(super) fn failed(&mut self, results: usize) {
        self.results = self.results.saturating_sub(results);
    }
}

impl Session {
    pub(super) fn results(
        &mut self,
        now: Duration,
        results: Vec<(Lease, Reported)>,
        out: &mut Vec<Action>,
    ) {
        if results.len() > BATCH_MAX {
            let fault = Violation::field("results.results", format!("must be at most {BATCH_MAX}"));
            return self.close(Some(Error::InvalidArgument(vec![fault])), out);
        }
        if self.recording.results + results.len() > RECORDING_MAX {
            let error = Error::LimitReached {
                limit: Limit::Busy,
                retry_after: AGAIN,
            };
            return self.close(Some(error), out);
        }
        // A result counts as in time by when it is heard, and not by whether the timer was quicker to wake.
        self.time_passed(now, out);
        self.has_read(now, 0, results.iter().map(|(lease, _)| lease), out);
        let mut record = Vec::new();
        let mut said = Vec::new();
        let mut last_words = Vec::new();
        let mut refused = Vec::new();
        for (lease, reported) in results {
            match &reported {
                // What comes too late to count may say why.
                Reported::Ended(_, Some(lines)) if self.recording.late.contains_key(&lease) => {
                    last_words.push((lease, lines.clone()));
                }
                Reported::Ended(_, Some(lines)) => said.push((lease, lines.clone())),
                Reported::Stopped(Some(lines)) => last_words.push((lease, lines.clone())),
                _ => {}
            }
            match (reported, self.held.phase(lease)) {
                (Reported::Ended(outcome, _), _) => match self.recording.late.get_mut(&lease) {
                    None => record.push((lease, outcome)),
                    Some(late) if outcome.size() <= LATE_BYTES_MAX => *late = Some(outcome),
                    // It is sent again.
                    Some(_) => self.held.unanswered(lease),
                },
                (Reported::Unacceptable(violation), _) => {
                    // The lease stands, with its slot and its timeout, until another outcome comes.
                    refused.push((lease, Verdict::Rejected(violation)));
                    continue;
                }
                // Nobody runs it any more and nobody told the worker to stop it: then it is given back. That is what
                // the session finds, and no result: the worker says it once and awaits no receipt. It may have had the
                // verdict on the stream before, and one more would contradict it.
                (Reported::Stopped(_), Some(Phase::Running)) => {
                    let reason = "STOPPED".to_owned();
                    let delay = Duration::ZERO;
                    self.end(lease, Outcome::Release { delay, reason }, out);
                }
                (Reported::Stopped(_), Some(Phase::Stopping)) => self.held.remove(lease),
                (Reported::Stopped(_), _) => {}
            }
        }
        self.last_words(last_words, out);
        self.record(record, said, out);
        if !refused.is_empty() {
            out.push(Action::Send(ServerMessage::Receipts(refused)));
        }
        out.push(Action::LookForJobs);
    }

    /// The worker will send these again. One that it does not list any more it has forgotten.
    pub(super) fn record_failed(&mut self, leases: &[Lease]) {
        self.recording.failed(leases.len());
        for lease in leases {
            self.held.unanswered(*lease);
        }
    }

    pub(super) fn verdicts(
        &mut self,
        now: Duration,
        verdicts: Vec<(Lease, Verdict)>,
        out: &mut Vec<Action>,
    ) {
        self.recording.failed(verdicts.len());
        for (lease, verdict) in &verdicts {
            if matches!(verdict, Verdict::Recorded(_)) {
                out.extend(self.held.ended(now, *lease, None).map(Action::Ended));
            }
            if !matches!(verdict, Verdict::Rejected(_)) {
                self.held.remove(*lease);
            }
        }
        out.push(Action::Send(ServerMessage::Receipts(verdicts)));
    }

    /// Ends an attempt by what the session found; its slot is free from now on.
    pub(super) fn end(&mut self, lease: Lease, outcome: Outcome, out: &mut Vec<Action>) {
        self.held.report(lease, attempt_outcome(&outcome));
        self.record_own(lease, outcome, out);
    }

    /// Attempts whose time is over, and endings that are to be recorded again.
    pub(super) fn time_passed(&mut self, now: Duration, out: &mut Vec<Action>) {
        while let Some(entry) = self.recording.again.first_entry()
            && entry.key().0 <= now
        {
            let ((_, lease), outcome) = entry.remove_entry();
            self.record_own(lease, outcome, out);
        }
        let mut cancels = Vec::new();
        for lease in self.held.timed_out(now) {
            let is_sent = self.held.is_sent(lease);
            if self.held.stop(lease) {
                if is_sent {
                    cancels.push((lease, CancelReason::Timeout));
                }
                self.record_own(lease, Outcome::TimedOut, out);
            }
        }
        if !cancels.is_empty() {
            out.push(Action::Send(ServerMessage::Cancels(cancels)));
        }
    }

    pub(super) fn own_recorded(
        &mut self,
        now: Duration,
        lease: Lease,
        outcome: Outcome,
        recorded: bool,
        out: &mut Vec<Action>,
    ) {
        self.recording.own = self.recording.own.saturating_sub(1);
        if !recorded {
            self.recording.again.insert((now + AGAIN, lease), outcome);
            return;
        }
        let ended = Some(attempt_outcome(&outcome));
        out.extend(self.held.ended(now, lease, ended).map(Action::Ended));
        // One that timed out keeps its slot until the worker says that its handler has ended.
        if outcome != Outcome::TimedOut {
            self.held.remove(lease);
            out.push(Action::LookForJobs);
        } else if let Some(late) = self.recording.late.remove(&lease).flatten() {
            self.record(vec![(lease, late)], Vec::new(), out);
            out.push(Action::LookForJobs);
        }
    }

    fn record(
        &mut self,
        results: Vec<(Lease, Outcome)>,
        said: Vec<(Lease, NewLines)>,
        out: &mut Vec<Action>,
    ) {
        if results.is_empty() {
            return;
        }
        for (lease, outcome) in &results {
            self.held.report(*lease, attempt_outcome(outcome));
        }
        self.recording.results += results.len();
        out.push(Action::Record(results, said));
    }

    fn record_own(&mut self, lease: Lease, outcome: Outcome, out: &mut Vec<Action>) {
        self.recording.own += 1;
        if outcome == Outcome::TimedOut {
            self.recording.late.entry(lease).or_default();
        }
        out.push(Action::RecordOwn(lease, outcome));
    }
}

fn attempt_outcome(outcome: &Outcome) -> AttemptOutcome {
    match outcome {
        Outcome::Success(_) => AttemptOutcome::Succeeded,
        Outcome::Failure(_) => AttemptOutcome::Failed,
        Outcome::TimedOut => AttemptOutcome::TimedOut,
        Outcome::Forgotten => AttemptOutcome::Forgotten,
        Outcome::Release { .. } => AttemptOutcome::Released,
    }
}
