//! Without it no figure counts: every job that was accepted is there once, in the state that it must be in.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;
use worker_sdk::{Client, JobFilter, JobState, ListJobsRequest};

use super::ledger::{Ledger, RETENTION};
use crate::cli::exit::Failure;
use crate::cli::remote::failure_of;

const PAGE: u32 = 1_000;
/// How long after the last enqueue an audit may look at a job, at most.
const AUDIT_WITHIN: Duration = Duration::from_secs(300);

/// What was found of a run's jobs.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Audit {
    /// Jobs to which the server said OK.
    pub(super) accepted: u64,
    /// Of them, those that are in the list.
    pub(super) found: u64,
    /// Of those, the ones in the state that they must be in.
    pub(super) right_state: u64,
    /// Not in the list, and old enough for retention to have removed them (soak).
    pub(super) purged: u64,
    /// In the list more than once.
    pub(super) twice: u64,
    /// In the queue, and not accepted by anybody.
    pub(super) foreign: u64,
    /// Jobs whose handler was to run and did not.
    pub(super) never_ran: u64,
    /// Executions beyond a job's first: allowed after a lost lease, and none is expected here.
    pub(super) ran_again: u64,
    /// Calls that failed otherwise than by RESOURCE_EXHAUSTED with RetryInfo (overload).
    pub(super) bad_answers: u64,
}

impl Audit {
    /// Whether the run's figure counts.
    pub(super) fn clean(&self) -> bool {
        let Self {
            accepted,
            found,
            right_state,
            purged,
            twice,
            foreign,
            never_ran,
            ran_again,
            bad_answers,
        } = *self;
        found + purged == accepted
            && right_state == found
            && [twice, foreign, never_ran, ran_again, bad_answers]
                .iter()
                .all(|n| *n == 0)
    }

    /// Looks at all jobs of the ledger's queue, through the API, as anybody could.
    pub(super) async fn of(
        client: &Client,
        ledger: &Ledger,
        state: JobState,
    ) -> Result<Self, Failure> {
        let ids = ledger.ids();
        let mut audit = Self {
            accepted: ids.len() as u64,
            ran_again: ledger.again(),
            bad_answers: ledger.bad_answers(),
            ..Self::default()
        };
        if state == JobState::Succeeded {
            audit.never_ran = audit.accepted.saturating_sub(ledger.ran());
        }
        let mut open: HashMap<Uuid, bool> = ids.into_iter().map(|id| (id, false)).collect();
        // The same id for two jobs would hide one of them.
        audit.twice += audit.accepted - open.len() as u64;
        let mut request = ListJobsRequest {
            filter: Some(JobFilter {
                queues: vec![ledger.queue().to_owned()],
                ..Default::default()
            }),
            page_size: PAGE,
            ..Default::default()
        };
        loop {
            let page = client.list(request.clone()).await.map_err(failure_of)?;
            for job in &page.jobs {
                let id = Uuid::parse_str(&job.id).unwrap_or_default();
                match open.get_mut(&id) {
                    None => audit.foreign += 1,
                    Some(true) => audit.twice += 1,
                    Some(seen) => {
                        *seen = true;
                        audit.found += 1;
                        audit.right_state += u64::from(job.state() == state);
                    }
                }
            }
            if page.next_page_token.is_empty() {
                let newest = open.keys().map(|id| made(*id)).max().unwrap_or_default();
                let gone = open.iter().filter(|(id, seen)| {
                    !**seen && newest.saturating_sub(made(**id)) + AUDIT_WITHIN > RETENTION
                });
                audit.purged = gone.count() as u64;
                return Ok(audit);
            }
            request.page_token = page.next_page_token;
        }
    }
}

/// When an id was made, by the clock of who made it: this process.
fn made(id: Uuid) -> Duration {
    id.get_timestamp()
        .map(|made| Duration::from_secs(made.to_unix().0))
        .unwrap_or_default()
}

impl std::fmt::Display for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.clean() {
            let purged = match self.purged {
                0 => String::new(),
                purged => format!(" but for {purged} that retention has removed"),
            };
            return write!(
                f,
                "clean: {} accepted, each found once{purged}",
                self.accepted
            );
        }
        let Self {
            accepted,
            found,
            right_state,
            purged,
            twice,
            foreign,
            never_ran,
            ran_again,
            bad_answers,
        } = self;
        write!(
            f,
            "NOT CLEAN: {accepted} accepted, {found} found, {right_state} of those in the right state, {purged} purged, {twice} twice, \
             {foreign} of nobody, {never_ran} never ran, {ran_again} runs too many, {bad_answers} bad answers"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_job_that_is_missing_or_ran_twice_is_enough() {
        let clean = Audit {
            accepted: 3,
            found: 3,
            right_state: 3,
            ..Audit::default()
        };
        assert!(clean.clean());
        for bad in [
            Audit { found: 2, ..clean },
            Audit {
                right_state: 2,
                ..clean
            },
            Audit { twice: 1, ..clean },
            Audit {
                foreign: 1,
                ..clean
            },
            Audit {
                never_ran: 1,
                ..clean
            },
            Audit {
                ran_again: 1,
                ..clean
            },
            Audit {
                bad_answers: 1,
                ..clean
            },
        ] {
            assert!(!bad.clean(), "{bad:?}");
            assert!(bad.to_string().starts_with("NOT CLEAN"));
        }
    }
}
