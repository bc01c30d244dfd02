//! Writing to stdout and stderr. A reader that has gone (`| head`) is no reason to panic, as `println!` would.

use std::fmt::{Display, Write as _};
use std::io::Write as _;

/// A line of the result, to stdout.
pub(super) fn line(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// A line about the result, to stderr.
pub(super) fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Rows under the names of their columns, each as wide as its widest cell.
pub(super) fn table<const N: usize>(names: [&str; N], mut rows: Vec<Vec<String>>) {
    rows.insert(0, names.map(str::to_owned).to_vec());
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        line(cells.collect::<Vec<_>>().join("  ").trim_end());
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
    fn a_name_cannot_command_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\nc"), r"a\u{1b}[2Jb\nc");
    }
}
