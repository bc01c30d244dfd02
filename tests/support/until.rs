//! Waiting for a state, never for time.

use std::{panic::Location, time::Duration};

/// How long to wait before looking again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Looks again and again until `look` sees something, and returns that.
///
/// Panics after `within`, naming `what` was awaited and by which line. A look that hangs counts
/// against the same deadline.
#[track_caller]
pub fn until<T>(
    within: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        let seen = async {
            loop {
                if let Some(seen) = look().await {
                    return seen;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        match tokio::time::timeout(within, seen).await {
            Ok(seen) => seen,
            Err(_) => panic!("waited {within:?} in vain, at {caller}, until {what}"),
        }
    }
}
