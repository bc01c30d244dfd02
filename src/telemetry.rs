//! What the process tells about itself: logs here, numbers in [`metrics`].

pub mod instruments;
pub mod metrics;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt;

pub use instruments::reference_markdown;
pub use metrics::Metrics;

use crate::error::{Error, Result};

/// Starts logging to stderr: for people on a terminal, one JSON object a line otherwise. stdout stays for results.
///
/// `filter` is a level, or directives of the form `leasehold=debug,sqlx=warn`. A second call in one process changes
/// nothing.
///
/// # Errors
/// `InvalidArgument` for a filter that cannot be read.
pub fn start_logs(filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|why| Error::field("log", format!("is not a log filter: {why}")))?;
    let writer = std::io::stderr.with_max_level(tracing::Level::TRACE);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_target(true);
    // The only error is that logs were started before, as happens when tests share a process.
    let _ = match std::io::stderr().is_terminal() {
        true => builder.with_ansi(true).try_init(),
        false => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init(),
    };
    Ok(())
}
