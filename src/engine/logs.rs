//! What running attempts say: from all sessions of the node, recorded in batches.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::Core;
use super::batch::{Batcher, Bounds};
use super::budget::{Budget, Share};
use super::sessions::Live;
use super::tasks::Tasks;
use crate::error::Result;
use crate::job::limits::{BATCH_BYTES_MAX, LOGGED_BYTES_MAX, STREAMS_MAX};
use crate::job::{Lease, NewLines, Verdict};
use crate::session::Event;
use crate::store::LogReport;

/// Reports that one statement records.
const REPORTS_MAX: usize = 200;

/// Where lines go.
#[derive(Debug, Clone)]
pub struct Logs {
    batcher: Batcher<Request>,
    budget: Budget,
}

/// Lines of one session, at most a batch.
#[derive(Debug)]
struct Request {
    live: Arc<Live>,
    reports: Vec<(Lease, NewLines)>,
    share: Option<Share>,
}

impl Logs {
    pub(super) fn start(tasks: &Tasks, core: Arc<Core>) -> Self {
        let bounds = Bounds {
            lanes: 1,
            beside: 1,
            linger: Duration::ZERO,
            waiting: STREAMS_MAX,
            items: REPORTS_MAX,
            bytes: BATCH_BYTES_MAX,
        };
        let flush = move |batch| flush(core.clone(), batch);
        Self {
            batcher: Batcher::start(tasks, bounds, size, flush),
            budget: Budget::new(LOGGED_BYTES_MAX),
        }
    }

    /// Takes lines; they are answered by an event to their session. When too many wait, they are answered as failed.
    pub(super) fn log(&self, live: Arc<Live>, reports: Vec<(Lease, NewLines)>) {
        let mut request = Request {
            live,
            reports,
            share: None,
        };
        request.share = self.budget.take(size(&request));
        let taken = match request.share {
            Some(_) => self.batcher.push(request),
            None => Err(request),
        };
        if let Err(request) = taken {
            // Called under the session's lock, so the answer must come from outside of it.
            tokio::spawn(async move { request.failed() });
        }
    }
}

impl Request {
    fn failed(self) {
        let leases = self.reports.into_iter().map(|(lease, _)| lease).collect();
        self.live.feed(Event::LogFailed(leases));
    }
}

async fn flush(core: Arc<Core>, batch: Vec<Request>) {
    let of = |request: &Request| {
        let session = request.live.attached().session;
        let report = move |(lease, lines): &(Lease, NewLines)| LogReport {
            lease: *lease,
            session,
            lines: lines.clone(),
        };
        request.reports.iter().map(report).collect::<Vec<_>>()
    };
    let reports: Vec<LogReport> = batch.iter().flat_map(of).collect();
    match record(&core, &reports).await {
        Ok(verdicts) => {
            let mut verdicts = verdicts.into_iter();
            for Request { live, reports, .. } in batch {
                let judged = reports.into_iter().zip(verdicts.by_ref());
                let judged = judged.map(|((lease, lines), verdict)| (lease, lines.last(), verdict));
                live.feed(Event::Logged(judged.collect()));
            }
        }
        Err(error) => {
            warn!(%error, requests = batch.len(), "lines of logs not recorded; they will be sent again");
            batch.into_iter().for_each(Request::failed);
        }
    }
}

/// Records lines, so many at a time.
///
/// # Errors
/// The store's, when some of them may not be recorded.
pub(super) async fn record(core: &Core, reports: &[LogReport]) -> Result<Vec<Verdict>> {
    let mut verdicts = Vec::with_capacity(reports.len());
    for chunk in reports.chunks(REPORTS_MAX) {
        verdicts.extend(core.store.log(chunk.to_vec()).await?);
        core.metrics.batch("log", chunk.len());
        core.watches.changed(chunk.iter().map(|r| r.lease.job));
    }
    Ok(verdicts)
}

fn size(request: &Request) -> usize {
    let reports = request.reports.iter();
    reports.map(|(_, lines)| lines.size()).sum()
}
