//! What attempts have come to: of each, one report at a time is with the store and one waits, the newest of both kinds
//! merged, however many the worker sends.

use std::collections::{BTreeMap, BTreeSet};

use super::message::ServerMessage;
use super::{Action, Session};
use crate::error::{Error, Violation};
use crate::job::draft::is_storable;
use crate::job::limits::{
    BATCH_MAX, CHECKPOINT_BYTES_MAX, OUTBOX_BYTES_SOFT, REASON_BYTES_MAX, REVISION_MAX,
};
use crate::job::{JobState, Lease, Progress, StaleReason, Verdict};

/// Reports on their way to the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Reporting {
    in_hand: BTreeSet<Lease>,
    waiting: BTreeMap<Lease, Progress>,
    waiting_bytes: usize,
}

impl Reporting {
    fn wait(&mut self, lease: Lease, report: Progress) {
        let merged = match self.take(lease) {
            Some(other) => other.merge(report),
            None => report,
        };
        self.waiting_bytes += merged.size();
        self.waiting.insert(lease, merged);
    }

    fn take(&mut self, lease: Lease) -> Option<Progress> {
        let report = self.waiting.remove(&lease)?;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(report.size());
        Some(report)
    }
}

impl Session {
    pub(super) fn progress(&mut self, reports: Vec<(Lease, Progress)>, out: &mut Vec<Action>) {
        let fault = match reports.iter().any(|(_, report)| report.revision == 0) {
            true => Some(("progress.revision", "must not be 0".to_owned())),
            false if reports.len() > BATCH_MAX => {
                Some(("progress.reports", format!("must be at most {BATCH_MAX}")))
            }
            false => None,
        };
        if let Some((field, why)) = fault {
            return self.close(Some(Error::field(field, why)), out);
        }
        let mut record = Vec::new();
        let mut refused = Vec::new();
        for (lease, report) in reports {
            let revision = report.revision;
            if let Err(violation) = check(&report) {
                refused.push((lease, revision, Verdict::Rejected(violation)));
            } else if self.held.phase(lease).is_none() {
                // Whatever became of it, this session has it no more.
                if report.checkpoint.is_some() {
                    let stale = Verdict::Stale(StaleReason::Superseded, JobState::Queued);
                    refused.push((lease, revision, stale));
                }
            } else if self.reporting.in_hand.insert(lease) {
                record.push((lease, report));
            } else if self.reporting.waiting_bytes < OUTBOX_BYTES_SOFT {
                self.reporting.wait(lease, report);
            }
            // What finds no room has no receipt, and is sent again.
        }
        if !record.is_empty() {
            out.push(Action::Report(record));
        }
        self.tell_progress(refused, out);
    }

    pub(super) fn progress_recorded(
        &mut self,
        verdicts: Vec<(Lease, Progress, Verdict)>,
        out: &mut Vec<Action>,
    ) {
        let mut told = Vec::new();
        let mut next = Vec::new();
        for (lease, report, verdict) in verdicts {
            if report.checkpoint.is_some() {
                told.push((lease, report.revision, verdict));
            }
            match self.reporting.take(lease) {
                Some(report) => next.push((lease, report)),
                None => drop(self.reporting.in_hand.remove(&lease)),
            }
        }
        self.tell_progress(told, out);
        if !next.is_empty() {
            out.push(Action::Report(next));
        }
    }

    /// They have no receipt, and are sent again, with what waited behind them.
    pub(super) fn progress_failed(&mut self, leases: &[Lease]) {
        for lease in leases {
            self.reporting.take(*lease);
            self.reporting.in_hand.remove(lease);
        }
    }

    fn tell_progress(&mut self, verdicts: Vec<(Lease, u64, Verdict)>, out: &mut Vec<Action>) {
        if !verdicts.is_empty() {
            out.push(Action::Send(ServerMessage::ProgressReceipts(verdicts)));
        }
    }
}

fn check(report: &Progress) -> Result<(), Violation> {
    if report.revision > REVISION_MAX {
        let why = format!("must be at most {REVISION_MAX}");
        return Err(Violation::field("progress.revision", why));
    }
    if report.percent.is_some_and(|percent| percent > 100) {
        return Err(Violation::field("progress.percent", "must be at most 100"));
    }
    let note = report.note.as_deref().unwrap_or_default();
    if note.len() > REASON_BYTES_MAX || !is_storable(note) {
        let why = format!("must have at most {REASON_BYTES_MAX} bytes and no U+0000");
        return Err(Violation::field("progress.note", why));
    }
    let size = report.checkpoint.as_ref().map_or(0, bytes::Bytes::len);
    match size <= CHECKPOINT_BYTES_MAX {
        true => Ok(()),
        false => Err(Violation::too_large(
            "progress.checkpoint",
            size,
            CHECKPOINT_BYTES_MAX,
        )),
    }
}
