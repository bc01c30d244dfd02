//! Points at which a test stops this very process, to see what is left then and who repairs it.
//!
//! `LEASEHOLD_FAILPOINT=grant-committed=kill` ends the process as `kill -9` does when it comes to that point for the
//! first time; `=stop` halts it there as SIGSTOP does, until SIGCONT. One point a process. Without debug assertions, so
//! in every release build, [`reached`] is empty and the names are not in the binary.

/// Stops the process here, if it was started to be stopped here.
#[cfg(debug_assertions)]
pub fn reached(point: &str) {
    use std::sync::LazyLock;

    use rustix::process::{Signal, getpid, kill_process};

    static ARMED: LazyLock<Option<(String, Signal)>> = LazyLock::new(|| {
        let armed = std::env::var("LEASEHOLD_FAILPOINT").ok()?;
        let (point, how) = armed.split_once('=')?;
        let signal = match how {
            "kill" => Signal::KILL,
            "stop" => Signal::STOP,
            _ => return None,
        };
        Some((point.to_owned(), signal))
    });
    if let Some((_, signal)) = ARMED.as_ref().filter(|(armed, _)| armed == point) {
        tracing::warn!(point, ?signal, "failpoint");
        // It takes hold before the call returns: nothing behind the point is done by this thread. A test waits for the
        // end in vain if it could not be sent.
        let _ = kill_process(getpid(), *signal);
    }
}

/// There are no points in this build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reached(_: &str) {}
