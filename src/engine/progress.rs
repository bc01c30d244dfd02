//! Reports of running attempts: from all sessions of the node, recorded in batches.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::Core;
use super::batch::{Batcher, Bounds};
use super::budget::{Budget, Share};
use super::sessions::Live;
use super::tasks::Tasks;
use crate::job::limits::{BATCH_BYTES_MAX, BATCH_MAX, REPORT_BYTES_MAX, STREAMS_MAX};
use crate::job::{Lease, Progress};
use crate::session::Event;
use crate::store::Report;

/// Where reports go.
#[derive(Debug, Clone)]
pub struct Reports {
    batcher: Batcher<Request>,
    budget: Budget,
}

/// Reports of one session, at most a batch.
#[derive(Debug)]
struct Request {
    live: Arc<Live>,
    reports: Vec<(Lease, Progress)>,
    share: Option<Share>,
}

impl Reports {
    pub(super) fn start(tasks: &Tasks, core: Arc<Core>) -> Self {
        let bounds = Bounds {
            lanes: 1,
            beside: 1,
            linger: Duration::ZERO,
            waiting: STREAMS_MAX,
            items: BATCH_MAX,
            bytes: BATCH_BYTES_MAX,
        };
        let flush = move |batch| flush(core.clone(), batch);
        Self {
            batcher: Batcher::start(tasks, bounds, size, flush),
            budget: Budget::new(REPORT_BYTES_MAX),
        }
    }

    pub(super) fn report(&self, live: Arc<Live>, reports: Vec<(Lease, Progress)>) {
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
        self.live.feed(Event::ProgressFailed(leases));
    }
}

async fn flush(core: Arc<Core>, batch: Vec<Request>) {
    let mut chunk = Vec::new();
    let mut filled = 0;
    for request in batch {
        if filled + request.reports.len() > BATCH_MAX && !chunk.is_empty() {
            record(&core, std::mem::take(&mut chunk)).await;
            filled = 0;
        }
        filled += request.reports.len();
        chunk.push(request);
    }
    if !chunk.is_empty() {
        record(&core, chunk).await;
    }
}

async fn record(core: &Core, requests: Vec<Request>) {
    let reports = requests.iter().flat_map(|request| {
        let session = request.live.attached().session;
        request.reports.iter().map(move |(lease, progress)| Report {
            lease: *lease,
            session,
            progress: progress.clone(),
        })
    });
    match core.store.report(reports.collect()).await {
        Ok(verdicts) => {
            let reports = requests.iter().flat_map(|request| &request.reports);
            core.watches.changed(reports.map(|(lease, _)| lease.job));
            let mut verdicts = verdicts.into_iter();
            for Request { live, reports, .. } in requests {
                let judged = reports
                    .into_iter()
                    .zip(verdicts.by_ref())
                    .map(|((lease, progress), verdict)| (lease, progress, verdict))
                    .collect();
                live.feed(Event::ProgressRecorded(judged));
            }
        }
        Err(error) => {
            warn!(%error, requests = requests.len(), "progress not recorded; what counts will be sent again");
            requests.into_iter().for_each(Request::failed);
        }
    }
}

fn size(request: &Request) -> usize {
    request
        .reports
        .iter()
        .map(|(_, report)| report.size())
        .sum()
}
