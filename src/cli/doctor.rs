//! `leasehold doctor`: tries what a node needs, and says what is wrong and how to mend it.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, ToSocketAddrs};
use uuid::Uuid;

use super::exit::{Exit, Failure, told};
use super::settings::Given;
use super::{dev, migrate, serve, terminal};
use crate::config::{Command, Config};
use crate::error::{Error, Result as StoreResult};
use crate::job::NodeId;
use crate::store::Store;

/// Oldest Postgres that is supported.
const POSTGRES_OLDEST: u32 = 15;
/// The whole of a probe must be over by then.
const PROBE_WITHIN: Duration = Duration::from_secs(3);
/// Each look at a store must be over by then.
const LOOK_WITHIN: Duration = Duration::from_secs(10);
/// More of an answer than this is not read.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;

/// Flags of `leasehold doctor` beside the configuration's.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only ask the node on the listen address whether it is ready: 0 yes, 1 no. For health checks of containers
    #[arg(long)]
    probe: bool,
}

/// `leasehold doctor`.
pub(super) async fn run(args: Args, given: Given) -> Result<Exit, Failure> {
    if args.probe {
        // Not the check of a whole node: a probe needs its address alone.
        return probe(dev::reachable(given.load()?.config.listen)).await;
    }
    let config = given.config(Command::Doctor)?;
    let mut found = Findings::default();
    postgres(&config, &mut found).await;
    redis(&config, &mut found).await;
    node(&config, &mut found).await;
    Ok(if found.bad == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
}

#[derive(Default)]
struct Findings {
    bad: usize,
}

impl Findings {
    fn good(&self, what: &str, text: &str) {
        terminal::line(format_args!("ok    {what:<9} {}", terminal::plain(text)));
    }

    fn odd(&self, what: &str, text: &str) {
        terminal::line(format_args!("note  {what:<9} {}", terminal::plain(text)));
    }

    fn bad(&mut self, what: &str, text: &str, cure: &str) {
        self.bad += 1;
        terminal::line(format_args!(
            "BAD   {what:<9} {}\n      {:<9} {cure}",
            terminal::plain(text),
            "-> mend:"
        ));
    }
}

async fn postgres(config: &Config, found: &mut Findings) {
    let what = "postgres";
    let look = async {
        let store = serve::postgres(config).await?;
        let server = store.ping().await?;
        Ok((server, store.pending_migrations().await?))
    };
    let (server, report) = match within(look).await {
        Ok(looked) => looked,
        Err(error) => {
            let why = because(serve::trouble(config).await, error);
            let cure = "see that it runs, and that --database-url has its host, port, database, user and password";
            return found.bad(what, &why, cure);
        }
    };
    match major(&server) {
        Some(major) if major < POSTGRES_OLDEST => {
            found.bad(
                what,
                &format!("{server} is too old"),
                "use Postgres 15 or newer",
            );
        }
        _ => found.good(what, &server),
    }
    match migrate::verdict(&report) {
        Ok(()) => found.good("schema", &format!("version {}", report.found)),
        Err(why) if report.found < report.needed && config.migrate => {
            found.odd(
                "schema",
                &format!("{why}, or start `leasehold serve`, which does it"),
            );
        }
        Err(why) => {
            let cure = if report.found < report.needed {
                "leasehold migrate"
            } else {
                "use a newer program"
            };
            found.bad("schema", &why, cure);
        }
    }
}

async fn redis(config: &Config, found: &mut Findings) {
    let what = "redis";
    let redis = match serve::redis_of(config, NodeId(Uuid::new_v4())) {
        Ok(redis) => redis,
        Err(error) => return found.bad(what, &told(&error), "see what --redis-url says"),
    };
    match within(redis.check()).await {
        Ok(check) => {
            if let Some(why) = check.refusal {
                let cure =
                    "use Redis 7.0 or newer, and a --redis-url with the password it asks for";
                return found.bad(what, &why, cure);
            }
            found.good(what, &check.server);
            if let Some(why) = check.degraded() {
                let cure = "redis-cli ACL SETUSER with the user of --redis-url and +eval +evalsha";
                found.bad("scripts", why, cure);
            }
            if let Some(why) = check.eviction.warning() {
                found.bad(
                    "eviction",
                    &why,
                    "redis-cli CONFIG SET maxmemory-policy noeviction, and in its file",
                );
            }
        }
        Err(error) => {
            let why = because(redis.trouble().await, error);
            let cure = "see that it runs and that --redis-url is right; until then jobs are handed out by Postgres";
            found.bad(what, &why, cure);
        }
    }
}

/// Whether a node runs here is worth knowing, but nothing is wrong if none does.
async fn node(config: &Config, found: &mut Findings) {
    let address = dev::reachable(config.listen);
    match ready(address).await {
        Ok((200, body)) => found.good("node", &format!("ready at http://{address}: {body}")),
        Ok((status, body)) => found.odd(
            "node",
            &format!("at http://{address} answers {status}: {body}"),
        ),
        Err(why) => found.odd("node", &format!("none at http://{address}: {why}")),
    }
}

/// The error is `None` when there was no answer.
async fn within<T>(look: impl Future<Output = StoreResult<T>>) -> Result<T, Option<Error>> {
    match tokio::time::timeout(LOOK_WITHIN, look).await {
        Ok(looked) => looked.map_err(Some),
        Err(_) => Err(None),
    }
}

/// The trouble with the way there says more than the error that came of it.
fn because(trouble: Option<String>, error: Option<Error>) -> String {
    trouble.unwrap_or_else(|| match error {
        Some(error) => told(&error),
        None => format!("no answer within {LOOK_WITHIN:?}"),
    })
}

/// The first number of a server's name and version.
fn major(server: &str) -> Option<u32> {
    let digits = server
        .split(|c: char| !c.is_ascii_digit())
        .find(|part| !part.is_empty());
    digits.and_then(|digits| digits.parse().ok())
}

async fn probe(address: SocketAddr) -> Result<Exit, Failure> {
    let (ready, text) = match ready(address).await {
        Ok((status, body)) => (status == 200, format!("{status} {body}")),
        Err(why) => (false, why),
    };
    terminal::line(terminal::plain(&text));
    Ok(if ready { Exit::Done } else { Exit::Failed })
}

/// Status and body of `GET /readyz` at `host:port`.
pub(super) async fn ready(address: impl ToSocketAddrs + Display) -> Result<(u16, String), String> {
    match tokio::time::timeout(PROBE_WITHIN, get(address, "/readyz")).await {
        Ok(answer) => answer.map_err(|why| why.to_string()),
        Err(_) => Err(format!("no answer within {PROBE_WITHIN:?}")),
    }
}

async fn get(address: impl ToSocketAddrs + Display, path: &str) -> std::io::Result<(u16, String)> {
    // HTTP/1.0: the answer is not in chunks, and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other("the answer is not HTTP"))?;
    let lines: Vec<_> = body.lines().map(str::trim).collect();
    Ok((status, lines.join(", ").trim_matches([',', ' ']).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_first_number() {
        assert_eq!(major("postgres 15.14 (Debian 15.14-0+deb12u1)"), Some(15));
        assert_eq!(major("PostgreSQL"), None);
    }
}
