//! What attempts say: of each, one report at a time is with the store, or a result that brings lines along. What comes
//! meanwhile has no receipt, and is sent again.

use std::collections::BTreeSet;

use super::message::ServerMessage;
use super::{Action, Session};
use crate::error::{Error, Violation};
use crate::job::limits::BATCH_MAX;
use crate::job::{JobState, Lease, NewLines, StaleReason, Verdict};

/// A report of lines, or why the face could not take it; with the number of its last line.
pub type Said = (Lease, u64, Result<NewLines, Violation>);

/// Lines on their way to the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Logging {
    in_hand: BTreeSet<Lease>,
}

impl Session {
    pub(super) fn said(&mut self, reports: Vec<Said>, out: &mut Vec<Action>) {
        if reports.len() > BATCH_MAX {
            let fault = Error::field("logs.reports", format!("must be at most {BATCH_MAX}"));
            return self.close(Some(fault), out);
        }
        let mut record = Vec::new();
        let mut refused = Vec::new();
        for (lease, last, lines) in reports {
            match lines {
                Err(violation) => refused.push((lease, last, Verdict::Rejected(violation))),
                // Whatever became of it, this session has it no more.
                Ok(_) if self.held.phase(lease).is_none() => {
                    let stale = Verdict::Stale(StaleReason::Superseded, JobState::Queued);
                    refused.push((lease, last, stale));
                }
                Ok(lines) if self.logging.in_hand.insert(lease) => record.push((lease, lines)),
                Ok(_) => {}
            }
        }
        if !record.is_empty() {
            out.push(Action::Log(record));
        }
        self.tell_said(refused, out);
    }

    /// The last words of handlers whose results, if they have any, do not count: there is nothing before which they are to
    /// be recorded, and no receipt is awaited.
    pub(super) fn last_words(&mut self, said: Vec<(Lease, NewLines)>, out: &mut Vec<Action>) {
        if !said.is_empty() {
            out.push(Action::Log(said));
        }
    }

    pub(super) fn logged(&mut self, verdicts: Vec<(Lease, u64, Verdict)>, out: &mut Vec<Action>) {
        for (lease, ..) in &verdicts {
            self.logging.in_hand.remove(lease);
        }
        self.tell_said(verdicts, out);
    }

    /// They have no receipt, and are sent again.
    pub(super) fn log_failed(&mut self, leases: &[Lease]) {
        for lease in leases {
            self.logging.in_hand.remove(lease);
        }
    }

    fn tell_said(&mut self, verdicts: Vec<(Lease, u64, Verdict)>, out: &mut Vec<Action>) {
        if !verdicts.is_empty() {
            out.push(Action::Send(ServerMessage::LogReceipts(verdicts)));
        }
    }
}
