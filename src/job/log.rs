//! What attempts say on the way, for people: lines, in order, bounded by the job.

use std::time::Duration;

use super::draft::is_storable;
use super::limits::{LOG_BYTES_MAX, LOG_LINES_MAX, LOG_MESSAGE_BYTES_MAX, LOG_NUMBER_MAX};
use super::time::Timestamp;
use crate::error::Violation;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i16)]
pub enum LogLevel {
    /// For who looks for a fault.
    Debug = 1,
    /// The default.
    Info = 2,
    /// Something is odd.
    Warn = 3,
    /// Something is wrong.
    Error = 4,
}

impl LogLevel {
    const ALL: [Self; 4] = [Self::Debug, Self::Info, Self::Warn, Self::Error];

    /// The number that rows and the wire use.
    pub const fn number(self) -> i16 {
        self as i16
    }

    /// The level of a number, if there is one.
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.number() == number)
    }

    /// The level's one name: on the wire, in JSON and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }
}

/// A line of a job's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// 1, 2, 3... over all attempts; one that is missing was dropped.
    pub number: u64,
    /// The attempt that said it.
    pub attempt: u32,
    /// When it was said.
    pub time: Timestamp,
    /// How much it matters.
    pub level: LogLevel,
    /// The words.
    pub message: String,
}

/// A line as its worker says it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NewLine {
    /// How long after the attempt was handed out; `None`: when it is recorded.
    pub elapsed: Option<Duration>,
    /// How much it matters.
    pub level: LogLevel,
    /// The words.
    pub message: String,
}

/// Lines of one attempt, in order and without a gap. [`NewLines::check`] makes them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NewLines {
    first: u64,
    lines: Vec<NewLine>,
}

impl NewLines {
    /// Judges lines of which the first has this number.
    ///
    /// # Errors
    /// The bound that is broken; `field` is what the caller calls them.
    pub fn check(field: &str, first: u64, lines: Vec<NewLine>) -> Result<Self, Violation> {
        let fault = |part: &str, why: String| Err(Violation::field(format!("{field}.{part}"), why));
        if !(1..=LOG_LINES_MAX).contains(&lines.len()) {
            return fault("lines", format!("must be from 1 to {LOG_LINES_MAX}"));
        }
        if !(1..=LOG_NUMBER_MAX).contains(&first) {
            return fault("first", format!("must be from 1 to {LOG_NUMBER_MAX}"));
        }
        let is_too_long = |line: &NewLine| {
            line.message.len() > LOG_MESSAGE_BYTES_MAX || !is_storable(&line.message)
        };
        if let Some(at) = lines.iter().position(is_too_long) {
            let why = format!("must have at most {LOG_MESSAGE_BYTES_MAX} bytes and no U+0000");
            return fault(&format!("lines[{at}].message"), why);
        }
        let bytes = lines.iter().map(|line| line.message.len()).sum();
        if bytes > LOG_BYTES_MAX {
            return Err(Violation::too_large(
                format!("{field}.lines"),
                bytes,
                LOG_BYTES_MAX,
            ));
        }
        Ok(Self { first, lines })
    }

    /// The number of the last one.
    pub fn last(&self) -> u64 {
        self.first + self.lines.len() as u64 - 1
    }

    /// The lines with their numbers in the attempt.
    pub fn numbered(&self) -> impl Iterator<Item = (u64, &NewLine)> {
        (self.first..).zip(&self.lines)
    }

    /// Bytes of their words.
    pub fn bytes(&self) -> usize {
        self.lines.iter().map(|line| line.message.len()).sum()
    }

    /// About how many bytes they take.
    pub fn size(&self) -> usize {
        self.bytes() + 48 * self.lines.len()
    }

    /// These and those of a later report, as far as they are not copies.
    pub fn joined(mut self, later: &Self) -> Self {
        let known = self.last();
        let news = later.numbered().filter(|(number, _)| *number > known);
        match later.first <= known + 1 {
            true => self.lines.extend(news.map(|(_, line)| line.clone())),
            // Nothing says what was between; what is newer counts.
            false => return later.clone(),
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str) -> NewLine {
        NewLine {
            elapsed: None,
            level: LogLevel::Info,
            message: message.into(),
        }
    }

    fn faulty(first: u64, lines: Vec<NewLine>) -> String {
        NewLines::check("log", first, lines)
            .expect_err("it is refused")
            .field
    }

    #[test]
    fn bounds_are_named() {
        assert_eq!(faulty(1, vec![]), "log.lines");
        assert_eq!(faulty(1, vec![line(""); LOG_LINES_MAX + 1]), "log.lines");
        assert_eq!(faulty(0, vec![line("a")]), "log.first");
        assert_eq!(faulty(LOG_NUMBER_MAX + 1, vec![line("a")]), "log.first");
        let long = "x".repeat(LOG_MESSAGE_BYTES_MAX + 1);
        let lines = vec![line("a"), line(&long)];
        assert_eq!(faulty(1, lines), "log.lines[1].message");
        assert_eq!(faulty(1, vec![line("a\0b")]), "log.lines[0].message");
        let longest = line(&"x".repeat(LOG_MESSAGE_BYTES_MAX));
        let count = LOG_BYTES_MAX / LOG_MESSAGE_BYTES_MAX;
        assert!(NewLines::check("log", 1, vec![longest.clone(); count]).is_ok());
        assert_eq!(faulty(1, vec![longest; count + 1]), "log.lines");
    }

    #[test]
    fn a_later_report_adds_what_is_new_in_it() {
        let some = |first, messages: &[&str]| {
            let lines = messages.iter().map(|message| line(message)).collect();
            NewLines::check("log", first, lines).expect("within bounds")
        };
        let one = some(3, &["c", "d"]);
        assert_eq!(one.last(), 4);
        assert_eq!(
            one.clone().joined(&some(4, &["d", "e"])),
            some(3, &["c", "d", "e"])
        );
        assert_eq!(one.clone().joined(&some(3, &["c"])), one);
        assert_eq!(one.joined(&some(7, &["g"])), some(7, &["g"]));
    }
}
