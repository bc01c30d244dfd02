//! What the attempts of a job have said, a line a line.

use worker_sdk::proto::log_line::When;
use worker_sdk::{Client, Error, LogLevel, LogLine};

use super::show::{short, time};
use crate::cli::remote::Output;
use crate::cli::terminal::{line, note, plain};

/// Shows the lines of a job's log: those there are, or, to `follow` it, also each new one until the job is final.
pub(super) async fn show(
    client: &Client,
    id: &str,
    follow: bool,
    output: Output,
) -> Result<(), Error> {
    let mut last = 0;
    if !follow {
        let job = client.get(id).await?;
        for line in &job.log {
            shown(line, &mut last, output);
        }
        return Ok(());
    }
    let mut lines = client.follow_log(id, 0);
    while let Some(lines) = lines.next().await {
        for line in &lines? {
            shown(line, &mut last, output);
        }
    }
    Ok(())
}

fn shown(said: &LogLine, last: &mut u64, output: Output) {
    missing(*last, said.number);
    *last = said.number;
    match output {
        Output::Json => line(super::json::log_line(said)),
        Output::Table => line(words(said)),
    }
}

fn missing(last: u64, next: u64) {
    match next.saturating_sub(last + 1) {
        0 => {}
        1 => note(format_args!("(a line was dropped)")),
        lines => note(format_args!("({lines} lines were dropped)")),
    }
}

/// A line for people.
pub(super) fn words(said: &LogLine) -> String {
    let at = moment(said).unwrap_or_default();
    let (level, attempt) = (level(said.level()), said.attempt);
    format!("{at}  {attempt}  {level:<5}  {}", plain(&said.message))
}

/// When it was said.
pub(super) fn moment(said: &LogLine) -> Option<String> {
    match &said.when {
        Some(When::Time(at)) => time(Some(at)),
        Some(When::Elapsed(_)) | None => None,
    }
}

/// A level without the prefix that it has on the wire.
pub(super) fn level(level: LogLevel) -> &'static str {
    short(level.as_str_name(), "LOG_LEVEL_")
}
