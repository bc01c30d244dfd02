//! What the commands have in common that ask a server, over the same gRPC as everybody.

use std::time::Duration;

use worker_sdk::{Client, Error};

use super::exit::{Exit, Failure};
use crate::telemetry::start_logs;

/// Where a server is looked for when nobody says otherwise.
pub(super) const DEFAULT_SERVER: &str = "http://127.0.0.1:7070";
/// gRPC's number for a request that cannot be taken as it is.
const INVALID_ARGUMENT: i32 = 3;
/// gRPC's number for a thing that exists in another form.
const ALREADY_EXISTS: i32 = 6;

/// Flags of all of them.
#[derive(Debug, clap::Args)]
pub(super) struct Remote {
    /// Server to ask
    #[arg(long, global = true, value_name = "URL", env = "LEASEHOLD_SERVER", default_value = DEFAULT_SERVER)]
    server: String,
    /// How the answer is written
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
    /// How long a call may take, with all its tries while the server is away
    #[arg(long, global = true, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "10s")]
    deadline: Duration,
    /// Who makes a change, for the server's audit [default: the name in $USER]
    #[arg(long, global = true, value_name = "NAME", env = "LEASEHOLD_ACTOR")]
    actor: Option<String>,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// Columns, or lines of name and value
    Table,
    /// JSON: an object, or an array of them
    Json,
}

impl Remote {
    /// Where the server is.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Asks the server. Which one it was is the first thing to look at when it is not there: a failure names it.
    pub(super) async fn ask(
        self,
        act: impl AsyncFnOnce(Client, Output) -> Result<Exit, Failure>,
    ) -> Result<Exit, Failure> {
        // The client tells of its tries; who wants to see them says so.
        start_logs(&std::env::var("LEASEHOLD_LOG").unwrap_or_else(|_| "error".into()))?;
        let Self {
            server,
            output,
            deadline,
            actor,
        } = self;
        let actor = actor.or_else(|| std::env::var("USER").ok());
        let client = Client::connect_lazy(&server)
            .and_then(|client| client.actor(&actor.unwrap_or_default()))
            .map_err(failure_of)?
            .deadline(deadline);
        act(client, output)
            .await
            .map_err(|failure| match failure.exit {
                Exit::Trouble => Failure::trouble(format!("{server}: {}", failure.why)),
                _ => failure,
            })
    }
}

/// Things of one page.
const PAGE: u32 = 500;

/// Page after page, until there are `limit` things or no more. `read` is given the size of a page and its token, and gives
/// what is on it and the token of the next.
pub(super) async fn pages<T>(
    limit: u32,
    read: impl AsyncFn(u32, String) -> Result<(Vec<T>, String), Error>,
) -> Result<Vec<T>, Failure> {
    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let left = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
        let (page, next) = read(left.min(PAGE), token).await.map_err(failure_of)?;
        found.extend(page);
        token = next;
        if token.is_empty() || found.len() >= limit as usize {
            return Ok(found);
        }
    }
}

/// How the client's error ends a command.
pub(super) fn failure_of(error: Error) -> Failure {
    match &error {
        Error::Config(_) | Error::Encode(_) => Failure::usage(error.to_string()),
        Error::Call(call) if matches!(call.code as i32, INVALID_ARGUMENT | ALREADY_EXISTS) => {
            Failure::usage(error.to_string())
        }
        _ => Failure::trouble(error.to_string()),
    }
}
