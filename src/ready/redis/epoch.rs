//! Which incarnation of the list this is, and how a new one begins.

use redis::{Value, pipe};
use uuid::Uuid;

use super::check::Server;
use super::offer::BELL_LENGTH;
use super::reply::{self, Fault};
use super::script::Call;
use super::{CHUNK, RedisReady, TRIES, away};
use crate::error::{Error, Result};
use crate::store::Epoch;

/// Pages of names that one clean-up reads; what it leaves is found by the next.
const SWEEP_PAGES: usize = 20;

/// What the marker's key holds. A server that restarts with its data has an older copy of it and of the streams, but
/// another run id: hints that it acknowledged may be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marker {
    pub epoch: Epoch,
    pub run_id: String,
}

impl Marker {
    fn parse(text: &str) -> Option<Self> {
        let (epoch, run_id) = text.split_once(' ')?;
        Some(Self {
            epoch: Epoch(Uuid::try_parse(epoch).ok()?),
            run_id: run_id.into(),
        })
    }

    /// Reads the answer to a GET. A key of another type is no marker.
    pub fn read(answer: &Value) -> Option<Self> {
        Self::parse(reply::text(answer)?)
    }

    fn written(&self) -> String {
        format!("{} {}", self.epoch.0.simple(), self.run_id)
    }
}

impl RedisReady {
    /// The present epoch, asked of the server.
    pub(super) async fn epoch_now(&self) -> Result<Epoch> {
        self.verify().await
    }

    /// The epoch as last seen, or else asked of the server. Every write and take checks it again in its own step.
    pub(super) async fn epoch_seen(&self) -> Result<Epoch> {
        // First the connection: with a new one, what was seen is forgotten.
        self.shared().await?;
        let seen = self.seen().marker.as_ref().map(|marker| marker.epoch);
        match seen {
            Some(epoch) => Ok(epoch),
            None => self.verify().await,
        }
    }

    /// Takes note of the marker that a batch has read. `false`: the epoch is not the one that the batch was for.
    pub(super) fn still(&self, epoch: Epoch, marker: Option<&Value>) -> bool {
        let found = marker.and_then(Marker::read);
        let same = found.as_ref().is_some_and(|found| found.epoch == epoch);
        if !same {
            self.forget_marker();
        }
        same
    }

    /// The epoch that was seen is over: the next call asks the server.
    pub(super) fn forget_marker(&self) {
        self.seen().marker = None;
    }

    /// A stream or group of `epoch` is gone: begins a new epoch, unless somebody has.
    pub(super) async fn vanished(&self, epoch: Epoch) -> Result<()> {
        self.forget_marker();
        let (server, found) = self.read_marker().await?;
        match Marker::read(&found) {
            Some(marker) if marker.epoch == epoch => {
                self.begin(&found, &server.run_id, "a stream vanished")
                    .await
            }
            _ => Ok(()),
        }
    }

    async fn verify(&self) -> Result<Epoch> {
        for _ in 0..TRIES {
            let (server, found) = self.read_marker().await?;
            if let Some(why) = server.refusal() {
                tracing::debug!(why, "redis: refused");
                return Err(Error::unavailable("redis 7.0 or newer"));
            }
            let why = match Marker::read(&found) {
                Some(marker) if marker.run_id == server.run_id => {
                    let epoch = marker.epoch;
                    self.seen().marker = Some(marker);
                    return Ok(epoch);
                }
                Some(_) => "the server was restarted or replaced",
                None => "there is no marker",
            };
            self.begin(&found, &server.run_id, why).await?;
        }
        Err(away())
    }

    async fn read_marker(&self) -> Result<(Server, Value)> {
        let mut both = pipe();
        both.cmd("INFO").arg("server");
        both.cmd("GET").arg(self.keys.marker());
        let [info, found] = <[Value; 2]>::try_from(self.ask(&both).await?).map_err(|_| away())?;
        reply::refuse_other(&found)?;
        Ok((Server::read(&info), found))
    }

    /// Sets a new marker if the present one is still `found`; many nodes may try, one does.
    async fn begin(&self, found: &Value, run_id: &str, why: &'static str) -> Result<()> {
        let marker = Marker {
            epoch: Epoch(Uuid::new_v4()),
            run_id: run_id.into(),
        };
        let args = [
            reply::text(found).unwrap_or_default().to_owned(),
            marker.written(),
            self.consumer(),
            BELL_LENGTH.to_string(),
        ];
        let call = Call {
            keys: vec![self.keys.marker(), self.keys.bell()],
            args: args.map(String::into_bytes).into(),
        };
        let answer = self.run(&self.scripts.begin, &[call]).await?.pop();
        let answer = answer.unwrap_or_default();
        reply::refuse_other(&answer)?;
        if answer != Value::Int(1) {
            // Somebody else was first.
            return Ok(());
        }
        tracing::info!(epoch = %marker.epoch.0, why, "the ready-list begins anew");
        self.remove_old_streams().await
    }

    /// A name and the marker are read in one step: a stream of another epoch than the marker's is one of the past.
    async fn remove_old_streams(&self) -> Result<()> {
        let registry = self.keys.streams();
        let mut cursor = "0".to_owned();
        for _ in 0..SWEEP_PAGES {
            let mut page = pipe();
            page.cmd("MULTI");
            page.cmd("SSCAN")
                .arg(&registry)
                .arg(&cursor)
                .arg("COUNT")
                .arg(CHUNK);
            page.cmd("GET").arg(self.keys.marker());
            page.cmd("EXEC");
            let answers = reply::transaction(self.ask(&page).await?.pop())?;
            let [scan, marker] = answers.as_slice() else {
                return Err(away());
            };
            if reply::fault(scan) == Some(Fault::Gone) {
                // Not a set: nobody of us wrote it, and it would be in the way for ever.
                let mut heal = pipe();
                heal.cmd("UNLINK").arg(&registry);
                self.ask(&heal).await?;
                return Ok(());
            }
            let ([next, names], Some(marker)) = (reply::items(scan), Marker::read(marker)) else {
                return Ok(());
            };
            let present = self.keys.of_epoch(marker.epoch);
            let old = reply::items(names)
                .iter()
                .filter_map(reply::bytes)
                .filter(|name| !name.starts_with(present.as_bytes()));
            let mut remove = pipe();
            for name in old {
                remove.cmd("UNLINK").arg(name);
                remove.cmd("SREM").arg(&registry).arg(name);
            }
            self.ask(&remove).await?;
            cursor = reply::text(next).unwrap_or("0").to_owned();
            if cursor == "0" {
                break;
            }
        }
        Ok(())
    }
}
