//! SIGTERM and SIGINT: the first asks a server to stop, the second ends the process.

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::exit::Failure;

/// What a shell reports for a process that was interrupted.
pub(super) const INTERRUPTED: i32 = 130;

/// A token that the first signal cancels. From then on, a second one ends the process at once, after `last`.
pub(super) fn shutdown(last: impl FnOnce() + Send + 'static) -> Result<CancellationToken, Failure> {
    let mut signals = Signals::listen()?;
    let token = CancellationToken::new();
    let told = token.clone();
    tokio::spawn(async move {
        signals.next().await;
        info!("signal received, stopping; a second one ends at once");
        told.cancel();
        signals.next().await;
        warn!("second signal, ending at once");
        last();
        std::process::exit(INTERRUPTED);
    });
    Ok(token)
}

/// Both signals, for who does more at them than to stop.
#[cfg(unix)]
pub(super) struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    /// From now on they do not end the process by themselves.
    pub(super) fn listen() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| {
            signal(kind).map_err(|why| Failure::trouble(format!("cannot listen to signals: {why}")))
        };
        Ok(Self {
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) {
        // Cancel safe: a signal that is not taken stays pending.
        tokio::select! { _ = self.term.recv() => {}, _ = self.int.recv() => {} }
    }
}

/// Ctrl-C, for who does more at it than to stop.
#[cfg(not(unix))]
pub(super) struct Signals;

#[cfg(not(unix))]
impl Signals {
    /// From now on they do not end the process by themselves.
    pub(super) fn listen() -> Result<Self, Failure> {
        Ok(Self)
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
