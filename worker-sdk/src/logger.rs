//! How a handler's lines come to the pump: through a buffer of the attempt's own,
//! which never waits for anybody.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;

use crate::proto::LogLevel;
use crate::session::{Line, Lines, Ticket};

/// As the wire allows.
const MESSAGE_BYTES_MAX: usize = 8 * 1024;

/// Where one attempt's lines go.
#[derive(Clone, Debug)]
pub(crate) struct Logger {
    ticket: Ticket,
    began: Instant,
    said: Arc<Mutex<Said>>,
    /// Tells the pump that there is something to fetch.
    waiting: mpsc::Sender<Ticket>,
}

#[derive(Debug, Default)]
struct Said {
    lines: Lines,
    /// The pump knows that there are some.
    told: bool,
}

impl Logger {
    pub(crate) fn new(ticket: Ticket, waiting: mpsc::Sender<Ticket>) -> Self {
        Self {
            ticket,
            began: Instant::now(),
            said: Arc::default(),
            waiting,
        }
    }

    /// Keeps a line for the pump to fetch. The oldest ones make room for it.
    pub(crate) fn say(&self, level: LogLevel, message: String) {
        let line = Line {
            elapsed: self.began.elapsed(),
            level,
            message: bounded(message),
        };
        let mut said = self.lock();
        said.lines.push(line);
        // Should there be no room, the next line tries it again, and the end of the
        // attempt fetches what there is in any case.
        said.told = said.told || self.waiting.try_send(self.ticket).is_ok();
    }

    /// What was said since it was fetched last.
    pub(crate) fn fetch(&self) -> Option<Lines> {
        let mut said = self.lock();
        said.told = false;
        let lines = said.lines.take();
        (!lines.is_empty()).then_some(lines)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the server would refuse is cut so that it can be seen.
fn bounded(message: String) -> String {
    let mut message = match message.contains('\0') {
        true => message.replace('\0', " "),
        false => message,
    };
    let bytes = message.len();
    if bytes > MESSAGE_BYTES_MAX {
        // Room for the words that follow, whatever the number.
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX - 64));
        let cut = bytes - message.len();
        message.push_str(&format!("... ({cut} more bytes were cut)"));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_and_says_so() {
        let cut = bounded("\u{20ac}".repeat(5_000));
        assert!(cut.len() <= MESSAGE_BYTES_MAX && cut.ends_with("more bytes were cut)"));
        assert_eq!(bounded("a\0b".into()), "a b");
        let longest = "x".repeat(MESSAGE_BYTES_MAX);
        assert_eq!(bounded(longest.clone()), longest);
    }

    #[test]
    fn the_pump_is_told_once_for_what_it_has_not_fetched() {
        let (waiting, mut told) = mpsc::channel(1);
        let logger = Logger::new(Ticket(1), waiting);
        for _ in 0..3 {
            logger.say(LogLevel::Info, "again".into());
        }
        assert_eq!(told.try_recv(), Ok(Ticket(1)));
        assert!(told.try_recv().is_err());
        assert!(logger.fetch().is_some() && logger.fetch().is_none());
        logger.say(LogLevel::Info, "more".into());
        assert_eq!(told.try_recv(), Ok(Ticket(1)));
    }
}
