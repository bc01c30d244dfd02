//! Which server this is, and whether it will do: for `ping`, `doctor` and the start.

use deadpool_redis::PoolError;
use redis::{Value, pipe};

use super::{CALL_MAX, RedisReady, away, reply, script};
use crate::error::Result;

/// Oldest that is supported: before it, claims return deleted entries as nil.
const OLDEST: (u32, u32) = (7, 0);

/// What there is to say about a Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Name and version: "redis 7.0.15", "valkey 8.0.1".
    pub server: String,
    /// Why it cannot be used, with what to do; `None`: it can.
    pub refusal: Option<String>,
    /// Whether this user may run scripts. Without them the ready-list is not used, and jobs are claimed directly.
    pub scripts: bool,
    /// What it does when its memory is full.
    pub eviction: Eviction,
}

/// What Redis does when its memory is full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Eviction {
    /// It refuses writes: hand-out goes on by direct claims.
    Refuses,
    /// It drops keys by this policy. A dropped stream is made anew, at the cost of offering everything again.
    Evicts(String),
    /// It does not say; this user may not be allowed to ask.
    Unknown,
}

impl Check {
    /// What keeps the ready-list from being used, though the server would do; `None`: nothing.
    pub fn degraded(&self) -> Option<&'static str> {
        (!self.scripts).then_some(
            "this user may not run scripts (EVAL, EVALSHA), so the ready-list is not used and jobs are claimed directly, slower",
        )
    }
}

impl Eviction {
    /// What to warn of; `None`: all is well.
    pub fn warning(&self) -> Option<String> {
        match self {
            Self::Refuses => None,
            Self::Evicts(policy) => Some(format!(
                "maxmemory-policy is {policy}, which drops the ready-list when memory is full; set it to noeviction"
            )),
            Self::Unknown => Some(
                "maxmemory-policy is unknown, as INFO and CONFIG GET are not allowed; it should be noeviction".into(),
            ),
        }
    }
}

impl RedisReady {
    /// Looks at the server. Errors: `Unavailable` when it is away; one that will not do is an answer, not an error.
    pub async fn check(&self) -> Result<Check> {
        self.bounded(async {
            let mut asks = pipe();
            asks.cmd("INFO").arg("server");
            asks.cmd("INFO").arg("memory");
            asks.cmd("CONFIG").arg("GET").arg("maxmemory-policy");
            script::try_one(&mut asks);
            let answers = self.ask(&asks).await?;
            let [info, memory, config, script] = answers.as_slice() else {
                return Err(away());
            };
            let server = Server::read(info);
            let refusal = reply::wants_password(info).then(|| {
                "redis asks for a password, and redis_url has none: redis://:password@host".into()
            });
            let policy = reply::text(memory)
                .and_then(|memory| line(memory, "maxmemory_policy"))
                .or_else(|| reply::text(reply::named(config, "maxmemory-policy")?));
            Ok(Check {
                refusal: refusal.or_else(|| server.refusal()),
                server: server.name,
                scripts: !reply::is_forbidden(script),
                eviction: match policy {
                    Some("noeviction") => Eviction::Refuses,
                    Some(other) => Eviction::Evicts(other.into()),
                    None => Eviction::Unknown,
                },
            })
        })
        .await
    }

    /// Why no connection is to be had, in the driver's words; `None`: one is.
    pub async fn trouble(&self) -> Option<String> {
        match tokio::time::timeout(CALL_MAX, self.pool.get()).await {
            Ok(Ok(_)) => None,
            Ok(Err(PoolError::Backend(cause))) => Some(cause.to_string()),
            Ok(Err(cause)) => Some(cause.to_string()),
            Err(_) => Some(format!("no answer within {CALL_MAX:?}")),
        }
    }

    /// One round trip, for the server's name.
    pub(super) async fn look(&self) -> Result<Found> {
        let mut info = pipe();
        info.cmd("INFO").arg("server");
        info.cmd("PING");
        script::try_one(&mut info);
        let answers = self.ask(&info).await?;
        let [info, pong, script] = answers.as_slice() else {
            return Err(away());
        };
        // A server that is loading its data answers PING with an error.
        reply::refuse_other(pong)?;
        if reply::is_forbidden(script) {
            return Err(script::forbidden());
        }
        reply::refuse_other(script)?;
        Ok(Found {
            server: Server::read(info).name,
        })
    }
}

/// A server that answers.
pub(super) struct Found {
    pub server: String,
}

/// What INFO says of a server; all of it may be unknown.
#[derive(Debug)]
pub(super) struct Server {
    pub name: String,
    pub run_id: String,
    /// That of the commands it speaks, which for Valkey is not its own.
    redis_version: Option<(u32, u32)>,
}

impl Server {
    pub fn read(info: &Value) -> Self {
        let info = reply::text(info).unwrap_or_default();
        let redis = line(info, "redis_version");
        let name = match (line(info, "valkey_version"), redis) {
            (Some(version), _) => format!("valkey {version}"),
            (None, Some(version)) => format!("redis {version}"),
            (None, None) => "redis of unknown version".into(),
        };
        Self {
            name,
            run_id: line(info, "run_id").unwrap_or("unknown").into(),
            redis_version: redis.and_then(|version| {
                let mut parts = version.split('.').map(str::parse);
                Some((parts.next()?.ok()?, parts.next()?.ok()?))
            }),
        }
    }

    /// Why it cannot be used. One that does not tell its version is tried.
    pub fn refusal(&self) -> Option<String> {
        let (major, minor) = OLDEST;
        self.redis_version
            .is_some_and(|version| version < OLDEST)
            .then(|| {
                format!(
                    "{} is too old; Redis {major}.{minor} or newer, or Valkey, is needed",
                    self.name
                )
            })
    }
}

fn line<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(info: &str) -> Server {
        Server::read(&Value::BulkString(info.into()))
    }

    #[test]
    fn an_old_redis_is_refused_and_valkey_is_not() {
        let old = server("# Server\r\nredis_version:6.2.14\r\nrun_id:abc\r\n");
        assert!(old.refusal().is_some_and(|why| why.contains("6.2.14")));
        let new = server("redis_version:7.0.15\r\nrun_id:abc\r\n");
        assert_eq!((new.refusal(), new.name.as_str()), (None, "redis 7.0.15"));
        assert_eq!(new.run_id, "abc");
        let valkey =
            server("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\n");
        assert_eq!(
            (valkey.refusal(), valkey.name.as_str()),
            (None, "valkey 8.0.1")
        );
    }

    #[test]
    fn a_server_that_tells_nothing_is_tried() {
        assert_eq!(Server::read(&Value::Nil).refusal(), None);
        assert_eq!(server("redis_version:seven").refusal(), None);
    }
}
