//! Bulks: how they are asked for, started, seen and aborted, and the loop by which every node goes on with them, a step at
//! a time, whichever comes first. Which step is next, and what it does, is the store's.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info};
use uuid::Uuid;

use super::cursor::{Listed, Page, RawCursor};
use super::offer::Offers;
use super::page::{Names, RawPage};
use super::{Core, Engine, sessions};
use crate::error::{Error, Limit, Result, Violation};
use crate::failpoint;
use crate::job::draft::{RawSpan, span};
use crate::job::limits::{
    BULK_RATE_MAX, CANARY_FAILED_SHARE, CANARY_STAGE_MAX, CANARY_WITHIN, CANARY_WITHIN_MAX,
    ID_AGE_MAX, ID_AHEAD_MAX,
};
use crate::job::time::micros;
use crate::job::{BulkAction, BulkId, BulkState, By, Canary, JobId, Priority, QueueName};
use crate::store::{Bulk, JobFilter, NewBulk, Started};

/// How long a step is one node's. Another one comes in its place after that; longer than a store takes for a step.
const CLAIM: Duration = Duration::from_secs(15);
/// The shortest that a stage of a canary may take.
const CANARY_WITHIN_MIN: Duration = Duration::from_secs(1);

/// A bulk as a face has read it.
#[derive(Debug, Clone, Default)]
pub struct RawBulk {
    /// UUIDv7, or empty for a new one.
    pub id: String,
    /// The action's number; one that there is not, if there is no such action.
    pub action: i32,
    /// Its size and its token are not looked at. Absent: there is none.
    pub filter: Option<RawPage>,
    /// An unknown number is `Err`.
    pub priority: Option<Result<Priority, i32>>,
    /// It only counts.
    pub dry_run: bool,
    /// Jobs per second; 0: no limit.
    pub rate: u32,
    /// How it tries a few first.
    pub canary: Option<RawCanary>,
}

/// A canary as a face has read it.
#[derive(Debug, Clone, Copy, Default)]
pub struct RawCanary {
    /// Jobs of the first stage.
    pub size: u32,
    /// Share of a stage that may fail again.
    pub max_failed_share: Option<f64>,
    /// How long a stage may take.
    pub within: Option<RawSpan>,
}

impl RawBulk {
    /// Checks it. Both faces call the fields as the proto does. `fresh` is its id if it has none.
    ///
    /// # Errors
    /// Every violation there is.
    pub fn check(self, by: By, fresh: JobId) -> Result<NewBulk, Vec<Violation>> {
        let mut found = Vec::new();
        let mut fault = |field: &str, why: String| found.push(Violation::field(field, why));
        let id = bulk_id(&self.id, fresh).unwrap_or_else(|why| {
            fault("bulk_id", why);
            BulkId::from_store(fresh.uuid())
        });
        let action = self.action().unwrap_or_else(|(field, why)| {
            fault(field, why);
            BulkAction::Retry
        });
        if self.rate > BULK_RATE_MAX {
            fault("rate", format!("must be at most {BULK_RATE_MAX}"));
        }
        if self.canary.is_some() && action != BulkAction::Retry {
            fault("canary", "is for RETRY alone".into());
        }
        let canary = self.canary.and_then(|raw| {
            let read = raw.check();
            read.map_err(|(field, why)| fault(field, why)).ok()
        });
        let mut filter = JobFilter::default();
        match self.filter.map(|raw| raw.check(Names::OF_PROTO)) {
            None => fault("filter", "must be given".into()),
            Some(Err(more)) => found.extend(more),
            Some(Ok(page)) => {
                filter = page.filter;
                if let Err((field, why)) = narrow(&mut filter, action) {
                    fault(field, why);
                }
            }
        }
        match found.is_empty() {
            true => Ok(NewBulk {
                id,
                action,
                filter,
                dry_run: self.dry_run,
                rate: Some(self.rate).filter(|rate| *rate > 0),
                canary,
                by,
                purges: None,
            }),
            false => Err(found),
        }
    }

    fn action(&self) -> Result<BulkAction, (&'static str, String)> {
        let level = match self.priority {
            None => None,
            Some(Ok(level)) => Some(level),
            Some(Err(_)) => return Err(("priority", "must be LOW, NORMAL or HIGH".into())),
        };
        let number = i16::try_from(self.action).unwrap_or(0);
        let with = |level| BulkAction::from_number(number, level);
        with(level).ok_or_else(|| match (with(None), with(Some(Priority::Normal))) {
            (Some(_), _) => ("priority", "is for SET_PRIORITY alone".into()),
            (_, Some(_)) => ("priority", "must be LOW, NORMAL or HIGH".into()),
            _ => ("action", one_of(&BulkAction::NAMES)),
        })
    }
}

impl RawCanary {
    fn check(self) -> Result<Canary, (&'static str, String)> {
        let Self {
            size,
            max_failed_share,
            within,
        } = self;
        if !(1..=CANARY_STAGE_MAX).contains(&size) {
            let why = format!("must be from 1 to {CANARY_STAGE_MAX}");
            return Err(("canary.size", why));
        }
        let share = max_failed_share.unwrap_or(CANARY_FAILED_SHARE);
        if !(0.0..=1.0).contains(&share) {
            return Err(("canary.max_failed_share", "must be from 0 to 1".into()));
        }
        let within = match within {
            None => CANARY_WITHIN,
            Some(raw) => span(raw, CANARY_WITHIN_MIN, CANARY_WITHIN_MAX)
                // As it is kept, so that the same request is the same bulk.
                .map(|span| Duration::from_micros(micros(span).unsigned_abs()))
                .map_err(|why| ("canary.within", why))?,
        };
        Ok(Canary {
            size,
            // -0 is 0, and would be another request.
            max_failed_share: share.abs(),
            within,
        })
    }
}

/// Reads an id that a caller may have made.
fn bulk_id(text: &str, fresh: JobId) -> Result<BulkId, String> {
    match text {
        "" => Ok(BulkId::from_store(fresh.uuid())),
        text => BulkId::parse(text)
            .ok_or_else(|| "must be a UUIDv7 in its 36-character form".to_owned()),
    }
}

/// Reads the id of a bulk that is asked for.
///
/// # Errors
/// `InvalidArgument`.
pub fn read_id(text: &str) -> Result<BulkId> {
    BulkId::parse(text)
        .ok_or_else(|| Error::field("bulk_id", "must be a UUIDv7 in its 36-character form"))
}

fn one_of(names: &[&str]) -> String {
    format!("must be one of {}", names.join(", "))
}

/// Leaves of the states only those that the action is for, and refuses a filter that says nothing else.
fn narrow(filter: &mut JobFilter, action: BulkAction) -> Result<(), (&'static str, String)> {
    let says_nothing = JobFilter {
        states: Vec::new(),
        ..filter.clone()
    } == JobFilter::default();
    if says_nothing {
        let why = "must have a condition besides states: to act on all jobs, say created_before";
        return Err(("filter", why.into()));
    }
    if filter.states.is_empty() {
        filter.states = action.states_unsaid().to_vec();
    }
    let is_for = |state| action.states().contains(state);
    if !filter.states.iter().all(is_for) {
        let names: Vec<&str> = action.states().iter().map(|state| state.name()).collect();
        let why = format!("{} is for {} jobs", action.name(), names.join(", "));
        return Err(("filter.states", why));
    }
    Ok(())
}

impl Engine {
    /// Starts a bulk. The answer says too whether it was there before.
    ///
    /// # Errors
    /// `InvalidArgument` (an id out of its time), `BulkConflict`, `LimitReached`, and the store's.
    pub async fn start_bulk(&self, new: NewBulk) -> Result<(Bulk, bool)> {
        let id = new.id;
        match self.core.store.start_bulk(new).await? {
            Started::Created(bulk) => {
                info!(
                    bulk_id = %id, action = bulk.action.name(), dry_run = bulk.dry_run,
                    actor = bulk.by.actor.as_str(), "bulk started"
                );
                Ok((bulk, false))
            }
            Started::Existed(bulk) => Ok((bulk, true)),
            Started::Conflict => Err(Error::BulkConflict(id)),
            Started::IdOutOfTime => Err(Error::field(
                "bulk_id",
                format!(
                    "must have been made within the last {ID_AGE_MAX:?} and not {ID_AHEAD_MAX:?} ahead"
                ),
            )),
            Started::TooMany => Err(Error::LimitReached {
                limit: Limit::Bulks,
                retry_after: Duration::from_secs(60),
            }),
        }
    }

    /// Starts the bulk that deletes what waits in a queue.
    ///
    /// # Errors
    /// `QueueNotFound`, and as for [`Engine::start_bulk`].
    pub async fn purge_queue(&self, queue: QueueName, id: &str, by: By) -> Result<(Bulk, bool)> {
        let fresh = self.ids().await.fresh();
        let id = bulk_id(id, fresh).map_err(|why| Error::field("bulk_id", why))?;
        self.queue(queue.clone()).await?;
        let action = BulkAction::Purge;
        let filter = JobFilter {
            queues: vec![queue.clone()],
            states: action.states().to_vec(),
            ..JobFilter::default()
        };
        self.start_bulk(NewBulk {
            id,
            action,
            filter,
            dry_run: false,
            rate: None,
            canary: None,
            by,
            purges: Some(queue),
        })
        .await
    }

    /// One bulk.
    ///
    /// # Errors
    /// `BulkNotFound`, and the store's.
    pub async fn bulk(&self, id: BulkId) -> Result<Bulk> {
        let found = self.core.store.bulk(id).await?;
        found.ok_or_else(|| Error::BulkNotFound(id.to_string()))
    }

    /// Bulks, newest first.
    ///
    /// # Errors
    /// `InvalidArgument` for the token, and the store's.
    pub async fn bulks(&self, page: &RawCursor) -> Result<Page<Bulk>> {
        let read = |place: &[u8]| Some(BulkId::from_store(Uuid::from_slice(place).ok()?));
        let (size, before) = Listed::BULKS.page(page, read)?;
        let found = self.core.store.bulks(before, size + 1).await?;
        Ok(Listed::BULKS.cut(found, size, |bulk| bulk.id.uuid().into_bytes()))
    }

    /// Ends a bulk before its next step, if it has not ended.
    ///
    /// # Errors
    /// `BulkNotFound`, and the store's.
    pub async fn abort_bulk(&self, id: BulkId, by: By) -> Result<Bulk> {
        let actor = by.actor.clone();
        let aborted = self.core.store.abort_bulk(id, by).await?;
        let (bulk, is_news) = aborted.ok_or_else(|| Error::BulkNotFound(id.to_string()))?;
        if is_news {
            tell_end(&bulk, actor.as_str());
        }
        Ok(bulk)
    }
}

/// Goes one step on with one bulk.
pub(super) async fn step(core: Arc<Core>, offers: Offers) -> Result<bool> {
    let Some(claimed) = core.store.claim_bulk(CLAIM).await? else {
        return Ok(false);
    };
    let id = claimed.bulk.id;
    let done = match core.store.step_bulk(claimed).await {
        Ok(done) => done,
        Err(error) => {
            // It is tried again when the claim is over.
            debug!(bulk_id = %id, %error, "step of a bulk not done");
            return Err(error);
        }
    };
    failpoint::reached("bulk-stepped");
    core.watches.changed(done.jobs.iter().copied());
    offers.offer(done.segments);
    let elsewhere = done
        .cancelled
        .into_iter()
        .filter(|(lease, session)| !sessions::cancel(&core, *session, *lease));
    if elsewhere.count() > 0
        && let Err(error) = core.ready.nudge().await
    {
        debug!(%error, "no nudge; the other nodes look at the signals by themselves");
    }
    if done.turned.is_some_and(BulkState::is_ended) {
        let bulk = core.store.bulk(id).await?;
        if let Some(bulk) = bulk {
            tell_end(&bulk, bulk.by.actor.as_str());
        }
    }
    Ok(true)
}

fn tell_end(bulk: &Bulk, actor: &str) {
    let counts = bulk.counts;
    info!(
        bulk_id = %bulk.id, action = bulk.action.name(), state = bulk.state.name(), total = counts.total,
        done = counts.done, skipped = counts.skipped, failed = counts.failed, left = counts.left(), actor,
        error = bulk.error, "bulk ended"
    );
}
