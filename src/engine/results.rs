//! Results: endings from all sessions of the node, recorded in batches, verdicts back to whoever asked.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};

use super::Core;
use super::batch::{Batcher, Bounds};
use super::budget::{Budget, Share};
use super::logs;
use super::offer::Offers;
use super::sessions::Live;
use super::tasks::Tasks;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::job::limits::{BATCH_BYTES_MAX, BATCH_MAX, RESULT_BYTES_MAX};
use crate::job::{Ending, JobState, Lease, NewLines, Outcome, SessionId, Verdict};
use crate::session::Event;
use crate::store::LogReport;

/// So many messages of results are worth a flush beside one that is under way.
const BESIDE: usize = 20;

/// Results do not wait longer for the lines that they bring.
const SAY_WITHIN: Duration = Duration::from_secs(3);

/// Where results go.
#[derive(Debug, Clone)]
pub struct Results {
    batcher: Batcher<RecordRequest>,
    /// Those that bring lines take longer: the others do not wait behind them.
    saying: Batcher<RecordRequest>,
    budget: Budget,
}

/// Endings of one session, from one message, so that they are answered by one.
#[derive(Debug)]
pub struct RecordRequest {
    live: Arc<Live>,
    endings: Vec<(Lease, Outcome)>,
    /// Lines of some of them, to be recorded before.
    said: Vec<(Lease, NewLines)>,
    by: By,
    share: Option<Share>,
}

#[derive(Debug, Clone, Copy)]
enum By {
    Worker,
    /// What the session itself found.
    Session,
}

impl RecordRequest {
    pub(super) fn worker(
        live: Arc<Live>,
        endings: Vec<(Lease, Outcome)>,
        said: Vec<(Lease, NewLines)>,
    ) -> Self {
        Self {
            live,
            endings,
            said,
            by: By::Worker,
            share: None,
        }
    }

    pub(super) fn session(live: Arc<Live>, lease: Lease, outcome: Outcome) -> Self {
        Self {
            live,
            endings: vec![(lease, outcome)],
            said: Vec::new(),
            by: By::Session,
            share: None,
        }
    }

    fn failed(self) {
        match self.by {
            By::Worker => {
                let leases = self.endings.into_iter().map(|(lease, _)| lease);
                self.live.feed(Event::RecordFailed(leases.collect()));
            }
            By::Session => self.own_recorded(false),
        }
    }

    fn answered(self, verdicts: Vec<Verdict>) {
        match self.by {
            By::Worker => {
                let leases = self.endings.iter().map(|(lease, _)| *lease);
                self.live
                    .feed(Event::Verdicts(leases.zip(verdicts).collect()));
            }
            By::Session => {
                let again = |(_, outcome): &(Lease, Outcome), verdict: &Verdict| {
                    *outcome == Outcome::Forgotten
                        && *verdict == Verdict::Recorded(JobState::Queued)
                };
                let pairs = self.endings.iter().zip(&verdicts);
                let extra = pairs
                    .filter(|(ending, verdict)| again(ending, verdict))
                    .count();
                self.live.count_extra_executions(extra);
                self.own_recorded(true);
            }
        }
    }

    fn own_recorded(self, recorded: bool) {
        for (lease, outcome) in self.endings {
            self.live.feed(Event::OwnRecorded(lease, outcome, recorded));
        }
    }
}

impl Results {
    pub(super) fn start(tasks: &Tasks, core: Arc<Core>, offers: Offers) -> Self {
        let bounds = Bounds {
            lanes: 2,
            beside: BESIDE,
            linger: Duration::ZERO,
            waiting: 4 * BATCH_MAX,
            items: BATCH_MAX,
            bytes: BATCH_BYTES_MAX,
        };
        let flush = move |batch| flush(core.clone(), offers.clone(), batch);
        Self {
            batcher: Batcher::start(tasks, bounds, size, flush.clone()),
            saying: Batcher::start(tasks, bounds, size, flush),
            budget: Budget::new(RESULT_BYTES_MAX),
        }
    }

    /// Takes a request; it is answered by an event to its session. When too many wait, it is answered as failed, and
    /// the worker sends it again.
    pub(super) fn record(&self, mut request: RecordRequest) {
        request.share = self.budget.take(size(&request));
        let taken = match request.share {
            Some(_) if request.said.is_empty() => self.batcher.push(request),
            Some(_) => self.saying.push(request),
            None => Err(request),
        };
        if let Err(refused) = taken {
            // Called under the session's lock, so the answer must come from outside of it.
            tokio::spawn(async move { refused.failed() });
        }
    }
}

/// Records endings at once, as a batch of their own: for results that come without a stream.
///
/// # Errors
/// The store's.
pub async fn record(core: &Core, offers: &Offers, endings: Vec<Ending>) -> Result<Vec<Verdict>> {
    let answer = match core.store.finish(endings.clone()).await {
        // Fenced and told apart from copies, so it is safe to ask again.
        Err(Error::OutcomeUnknown) => core.store.finish(endings.clone()).await,
        answer => answer,
    }?;
    failpoint::reached("result-committed");
    core.metrics.batch("finish", endings.len());
    for (ending, verdict) in endings.iter().zip(&answer.verdicts) {
        debug!(job_id = %ending.lease.job, attempt = ending.lease.attempt, session = %ending.session, ?verdict, "judged");
    }
    let pairs = endings.iter().zip(&answer.verdicts);
    let recorded = pairs.filter(|(_, verdict)| matches!(verdict, Verdict::Recorded(_)));
    core.watches
        .changed(recorded.map(|(ending, _)| ending.lease.job));
    offers.offer(answer.segments);
    Ok(answer.verdicts)
}

async fn flush(core: Arc<Core>, offers: Offers, batch: Vec<RecordRequest>) {
    // The batch's bound counts requests; a store's batch counts endings.
    for chunk in chunks(batch) {
        let said = chunk.iter().flat_map(|request| {
            let session = request.live.attached().session;
            reports(session, request.said.clone())
        });
        let said: Vec<LogReport> = said.collect();
        let endings = chunk.iter().flat_map(endings).collect();
        match record_saying(&core, &offers, endings, &said).await {
            Ok(verdicts) => {
                let mut verdicts = verdicts.into_iter();
                for request in chunk {
                    let own = verdicts.by_ref().take(request.endings.len()).collect();
                    request.answered(own);
                }
            }
            Err(error) => {
                warn!(%error, requests = chunk.len(), "results not recorded; they will be sent again");
                chunk.into_iter().for_each(RecordRequest::failed);
            }
        }
    }
}

/// As [`record`], and before them the lines that they bring, so that who sees a result sees them. No result fails for its
/// lines, nor waits for long: if they can be recorded neither before nor after it, they are lost, unless it is sent again.
///
/// # Errors
/// The store's.
pub(super) async fn record_saying(
    core: &Core,
    offers: &Offers,
    endings: Vec<Ending>,
    said: &[LogReport],
) -> Result<Vec<Verdict>> {
    let heard = said.is_empty() || say(core, said).await;
    let verdicts = record(core, offers, endings).await?;
    if !heard {
        say(core, said).await;
    }
    Ok(verdicts)
}

async fn say(core: &Core, said: &[LogReport]) -> bool {
    // What was dropped is only the answer: a call of the store goes to its end.
    match tokio::time::timeout(SAY_WITHIN, logs::record(core, said)).await {
        Ok(Ok(_)) => {
            failpoint::reached("lines-committed");
            return true;
        }
        Ok(Err(error)) => {
            warn!(%error, results = said.len(), "lines that came with results are not recorded")
        }
        Err(_) => warn!(
            results = said.len(),
            "lines that came with results took too long"
        ),
    }
    false
}

/// Lines, as said under a session.
pub(super) fn reports(session: SessionId, said: Vec<(Lease, NewLines)>) -> Vec<LogReport> {
    let report = |(lease, lines)| LogReport {
        lease,
        session,
        lines,
    };
    said.into_iter().map(report).collect()
}

fn chunks(batch: Vec<RecordRequest>) -> Vec<Vec<RecordRequest>> {
    let mut chunks: Vec<Vec<RecordRequest>> = Vec::new();
    let mut filled = 0;
    for request in batch {
        filled += request.endings.len();
        match chunks.last_mut() {
            Some(chunk) if filled <= BATCH_MAX => chunk.push(request),
            _ => {
                filled = request.endings.len();
                chunks.push(vec![request]);
            }
        }
    }
    chunks
}

fn endings(request: &RecordRequest) -> impl Iterator<Item = Ending> + '_ {
    let session = request.live.attached().session;
    request
        .endings
        .iter()
        .map(move |(lease, outcome)| ending(*lease, session, outcome.clone()))
}

/// An ending with its chance for the backoff.
pub fn ending(lease: Lease, session: SessionId, outcome: Outcome) -> Ending {
    Ending {
        lease,
        session,
        outcome,
        chance: rand::random(),
    }
}

fn size(request: &RecordRequest) -> usize {
    let lines: usize = request.said.iter().map(|(_, lines)| lines.size()).sum();
    let endings = request.endings.iter().map(|(_, o)| o.size());
    lines + endings.sum::<usize>()
}
