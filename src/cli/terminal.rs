//! Writing to stdout and stderr. A reader that has gone (`| head`) is no reason to panic, as `println!` would.

use std::fmt::{Display, Write as _};
use std::io::Write as _;

/// A line of the result, to stdout.
pub(super) fn line(text: impl Display) {
    told(text);
}

/// The same, of a result that has no end. `false`: nobody reads it any more.
pub(super) fn told(text: impl Display) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

/// A line about the result, to stderr.
pub(super) fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Writes rows under the names of their columns, each as wide as its widest cell.
pub(super) fn table<const N: usize>(names: [&str; N], rows: Vec<Vec<String>>) {
    lined(names, rows).iter().for_each(line);
}

/// The lines of such a table.
pub(super) fn lined<const N: usize>(names: [&str; N], mut rows: Vec<Vec<String>>) -> Vec<String> {
    rows.insert(0, names.map(str::to_owned).to_vec());
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let lines = rows.iter().map(|row| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect()
}

/// A span in its two largest units: `4.2s`, `3m20s`, `2h5m`, `3d4h`.
pub(super) fn brief(span: &prost_types::Duration) -> String {
    let seconds = u64::try_from(span.seconds).unwrap_or(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    if seconds < 10 {
        format!("{seconds}.{}s", span.nanos.max(0) / 100_000_000)
    } else if minutes == 0 {
        format!("{seconds}s")
    } else if hours == 0 {
        format!("{minutes}m{}s", seconds % 60)
    } else if days == 0 {
        format!("{hours}h{}m", minutes % 60)
    } else {
        format!("{days}d{}h", hours % 24)
    }
}

/// Columns and lines of the terminal that stdout is; `None`: it is none.
#[cfg(unix)]
pub(super) fn size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    // Some do not know.
    let or = |n: u16, usual| if n == 0 { usual } else { usize::from(n) };
    Some((or(size.ws_col, 80), or(size.ws_row, 24)))
}

/// Columns and lines of the terminal that stdout is; `None`: it is none.
#[cfg(not(unix))]
pub(super) fn size() -> Option<(usize, usize)> {
    use std::io::IsTerminal;
    std::io::stdout().is_terminal().then_some((80, 24))
}

/// The terminal's other screen, for as long as this lives: what was on it before is there again afterwards.
pub(super) struct Screen;

impl Screen {
    const ENTER: &'static str = "\x1b[?1049h\x1b[?25l";
    const LEAVE: &'static str = "\x1b[?25h\x1b[?1049l";

    /// Goes there, without the cursor.
    pub(super) fn enter() -> Self {
        Self::write(Self::ENTER);
        Self
    }

    /// Shows these lines, and nothing else.
    pub(super) fn show(&self, lines: &[String]) {
        // Line by line over what was there, each to its end: nothing flickers.
        let lines = lines.join("\x1b[K\r\n");
        Self::write(&format!("\x1b[H{lines}\x1b[K\x1b[J"));
    }

    fn write(text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        Self::write(Self::LEAVE);
    }
}

/// Text from elsewhere on one line, without what a terminal would take as a command.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .fold(String::with_capacity(text.len()), |mut plain, c| {
            if c.is_control() {
                // Writing to a string cannot fail.
                let _ = write!(plain, "{}", c.escape_default());
            } else {
                plain.push(c);
            }
            plain
        })
}

/// A word as a POSIX shell reads it back.
pub(super) fn quoted(word: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    match !word.is_empty() && word.chars().all(safe) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_is_one_word() {
        assert_eq!(quoted("src/main.rs"), "src/main.rs");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn a_span_is_told_in_its_two_largest_units() {
        let brief = |seconds, nanos| brief(&prost_types::Duration { seconds, nanos });
        assert_eq!(brief(4, 290_000_000), "4.2s");
        assert_eq!(brief(59, 0), "59s");
        assert_eq!(brief(200, 0), "3m20s");
        assert_eq!(brief(7_500, 0), "2h5m");
        assert_eq!(brief(273_600, 0), "3d4h");
    }

    #[test]
    fn a_name_cannot_command_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\nc"), r"a\u{1b}[2Jb\nc");
    }
}
