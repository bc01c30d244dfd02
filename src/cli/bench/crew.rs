//! Workers whose handlers do nothing, as a user's would be: by the SDK, each with a session of its own.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker_sdk::{Error, Payload, Worker};

use super::ledger::{KIND, Ledger};
use super::stage::Stage;
use crate::cli::exit::Failure;
use crate::cli::remote::failure_of;

/// Workers that run.
pub(super) struct Crew {
    leave: CancellationToken,
    workers: JoinSet<Result<(), Error>>,
}

impl Crew {
    /// Starts workers on the ledger's queue, on all nodes in turn.
    pub(super) fn start(
        stage: &Stage,
        ledger: &Arc<Ledger>,
        workers: usize,
        slots: usize,
    ) -> Result<Self, Failure> {
        let leave = CancellationToken::new();
        let mut running = JoinSet::new();
        for n in 0..workers {
            let ledger = ledger.clone();
            let worker = Worker::builder(stage.url(n))
                .queue(ledger.queue())
                .name(format!("bench-{n}"))
                .concurrency(slots)
                .raw_handler(KIND, move |_, payload| {
                    ledger.starts(&payload);
                    async { Ok(Payload::default()) }
                })
                .build()
                .map_err(failure_of)?;
            running.spawn(worker.run_until(leave.clone().cancelled_owned()));
        }
        Ok(Self {
            leave,
            workers: running,
        })
    }

    /// Lets them leave, each with a receipt for all its results.
    pub(super) async fn leave(mut self) -> Result<(), Failure> {
        self.leave.cancel();
        while let Some(left) = self.workers.join_next().await {
            left.map_err(|why| Failure::trouble(format!("a worker: {why}")))?
                .map_err(failure_of)?;
        }
        Ok(())
    }
}
