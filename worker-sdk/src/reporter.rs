//! How a handler tells the pump what its attempt has come to.

use tokio::sync::{mpsc, oneshot};

use crate::proto;
use crate::session::{Saved, Ticket};

/// What one handler says.
pub(crate) struct Report {
    pub(crate) ticket: Ticket,
    pub(crate) progress: proto::Progress,
    /// Whoever waits for it to be durable.
    pub(crate) saved: Option<oneshot::Sender<Saved>>,
}

/// Where one attempt's reports go.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    ticket: Ticket,
    reports: mpsc::Sender<Report>,
}

impl Reporter {
    pub(crate) fn new(ticket: Ticket, reports: mpsc::Sender<Report>) -> Self {
        Self { ticket, reports }
    }

    /// Passes it on, unless too much waits already: newer progress will follow.
    pub(crate) fn say(&self, progress: proto::Progress) {
        let report = Report {
            ticket: self.ticket,
            progress,
            saved: None,
        };
        if self.reports.try_send(report).is_err() {
            tracing::debug!("progress dropped");
        }
    }

    /// Passes it on; the answer says what became of it.
    pub(crate) async fn save(&self, progress: proto::Progress) -> oneshot::Receiver<Saved> {
        let (saved, answer) = oneshot::channel();
        let report = Report {
            ticket: self.ticket,
            progress,
            saved: Some(saved),
        };
        // Fails only when the worker is gone; then the answer says so.
        let _ = self.reports.send(report).await;
        answer
    }
}
