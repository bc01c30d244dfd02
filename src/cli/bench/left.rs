//! What the benchmark has made and not removed yet, so that it can be ended, or named, whatever else hangs.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio_util::sync::CancellationToken;

use crate::cli::exit::Failure;
use crate::cli::signals::{INTERRUPTED, Signals};
use crate::cli::terminal;

/// After a second signal, how long its database, keys and folder may take to go.
const REMOVED_WITHIN: Duration = Duration::from_secs(10);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Thing {
    /// By its process id.
    Node(u32),
    /// By its name.
    Database(String),
    /// In Redis, by their prefix.
    Keys(String),
    Folder(PathBuf),
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(pid) => write!(f, "the node with process id {pid}"),
            Self::Database(name) => write!(f, "the database {name} (DROP DATABASE {name})"),
            Self::Keys(prefix) => write!(f, "the keys {prefix}:* in Redis"),
            Self::Folder(path) => write!(f, "the folder {}", path.display()),
        }
    }
}

/// All of them. Clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Left(Arc<Mutex<Vec<Thing>>>);

impl Left {
    /// It is there, or may be from now on.
    pub(super) fn made(&self, thing: Thing) {
        self.lock().push(thing);
    }

    /// It is certainly gone.
    pub(super) fn removed(&self, thing: &Thing) {
        self.lock().retain(|one| one != thing);
    }

    /// Ends its nodes at once: what they served is dropped anyway.
    fn kill_nodes(&self) {
        for thing in self.lock().iter() {
            if let Thing::Node(pid) = thing {
                let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
                // One that has ended already is what is wanted.
                let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
            }
        }
    }

    /// Names what is still there, if anything is.
    pub(super) fn told(&self) -> Option<String> {
        let things: Vec<String> = self.lock().iter().map(ToString::to_string).collect();
        (!things.is_empty()).then(|| format!("left behind: {}", things.join(", ")))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Thing>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token that the first signal cancels: what was measured is told, and all of its own removed. A second one kills the
/// nodes, for which removal waits longest. What is not gone some seconds later, or at a third signal, is named, and the
/// process ends.
pub(super) fn interruption(left: Left) -> Result<CancellationToken, Failure> {
    let mut signals = Signals::listen()?;
    let token = CancellationToken::new();
    let told = token.clone();
    tokio::spawn(async move {
        signals.next().await;
        terminal::note("# interrupted; removing what was started");
        told.cancel();
        signals.next().await;
        terminal::note("# interrupted again; killing the nodes, and removing the rest");
        left.kill_nodes();
        // Cancel safe: both only wait.
        tokio::select! {
            () = signals.next() => {}
            () = tokio::time::sleep(REMOVED_WITHIN) => {}
        }
        let all = left.told();
        terminal::note(all.as_deref().unwrap_or("nothing is left behind"));
        std::process::exit(INTERRUPTED);
    });
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_removed_is_named() {
        let left = Left::default();
        let keys = Thing::Keys("p".to_owned());
        left.made(keys.clone());
        left.clone().made(Thing::Database("d".to_owned()));
        left.removed(&keys);
        assert_eq!(
            left.told().as_deref(),
            Some("left behind: the database d (DROP DATABASE d)")
        );
        left.removed(&Thing::Database("d".to_owned()));
        assert_eq!(left.told(), None);
    }
}
