//! Adds jobs at the ends of their lines, and wakes doorbells.

use deadpool_redis::Connection;
use redis::{Pipeline, Value, pipe};

use super::reply::{self, Fault};
use super::{CHUNK, GROUP, KNOWN_MAX, RedisReady, TRIES, ask, away};
use crate::error::Result;
use crate::job::JobId;
use crate::store::{EntryId, Epoch, Line};

use super::Placed;

/// The one field of an entry: 16 bytes, the job's id.
pub(super) const FIELD: &str = "j";
/// Entries that the bell keeps, about. They are no hints: whoever was asleep for longer looks anyway.
const BELL_LENGTH: usize = 1_000;

impl RedisReady {
    pub(super) async fn offer_lines(&self, lines: &[(Line, Vec<JobId>)]) -> Result<Vec<Placed>> {
        let mut conn = self.connection().await?;
        for _ in 0..TRIES {
            let epoch = self.epoch_seen(&mut conn).await?;
            let names = lines.iter().map(|(line, _)| line);
            if !self.make_sure(&mut conn, epoch, names).await? {
                continue;
            }
            if let Some(placed) = self.add(&mut conn, epoch, lines).await? {
                return Ok(placed);
            }
        }
        Err(away())
    }

    pub(super) async fn nudge_all(&self) -> Result<()> {
        let mut conn = self.connection().await?;
        let mut nudge = pipe();
        self.ring_in(&mut nudge, "nudge");
        let answer = ask(&mut conn, &nudge).await?.pop().unwrap_or_default();
        if reply::fault(&answer) != Some(Fault::Gone) {
            return reply::refuse_other(&answer);
        }
        // Not a stream: nobody of us wrote it, and it would be in the way for ever.
        let mut heal = pipe();
        heal.cmd("UNLINK").arg(self.keys.bell());
        self.ring_in(&mut heal, "nudge");
        ask(&mut conn, &heal).await?;
        Ok(())
    }

    /// Wakes the doorbells of all nodes, and tells them why and who it was.
    pub(super) fn ring_in(&self, pipe: &mut Pipeline, why: &str) {
        pipe.cmd("XADD")
            .arg(self.keys.bell())
            .arg("MAXLEN")
            .arg("~")
            .arg(BELL_LENGTH)
            .arg("*")
            .arg(why)
            .arg(self.consumer());
    }

    /// Makes sure that the streams and groups of lines are there, for those that are not known to be. `false`: the
    /// epoch is over, begin again.
    pub(super) async fn make_sure(
        &self,
        conn: &mut Connection,
        epoch: Epoch,
        lines: impl Iterator<Item = &Line>,
    ) -> Result<bool> {
        let unknown: Vec<&Line> = {
            let seen = self.seen();
            let all = seen.known_in != Some(epoch);
            lines
                .filter(|line| all || !seen.known.contains(*line))
                .collect()
        };
        for unknown in unknown.chunks(CHUNK) {
            let mut create = pipe();
            create.cmd("MULTI");
            create.cmd("GET").arg(self.keys.marker());
            for line in unknown {
                let key = self.keys.line(epoch, line);
                create.cmd("SADD").arg(self.keys.streams()).arg(&key);
                create
                    .cmd("XGROUP")
                    .arg("CREATE")
                    .arg(&key)
                    .arg(GROUP)
                    .arg("0")
                    .arg("MKSTREAM");
            }
            create.cmd("EXEC");
            let answers = reply::transaction(ask(conn, &create).await?.pop())?;
            if !self.still(epoch, answers.first()) {
                return Ok(false);
            }
            for pair in answers.get(1..).unwrap_or_default().chunks_exact(2) {
                let [listed, created] = pair else {
                    return Err(away());
                };
                reply::refuse_other(listed)?;
                reply::refuse_other(created)?;
                // Listed before, but made anew just now: its hints are gone.
                let remade = *listed == Value::Int(0) && reply::fault(created).is_none();
                let in_the_way = [listed, created]
                    .iter()
                    .any(|answer| reply::fault(answer) == Some(Fault::Gone));
                if remade || in_the_way {
                    self.vanished(conn, epoch).await?;
                    return Ok(false);
                }
            }
            self.remember(epoch, unknown);
        }
        Ok(true)
    }

    fn remember(&self, epoch: Epoch, lines: &[&Line]) {
        let mut seen = self.seen();
        if seen.known_in != Some(epoch) || seen.known.len() + lines.len() > KNOWN_MAX {
            seen.known.clear();
            seen.known_in = Some(epoch);
        }
        seen.known.extend(lines.iter().map(|line| (*line).clone()));
    }

    /// `None`: the epoch is over. What was added to its streams goes with them.
    async fn add(
        &self,
        conn: &mut Connection,
        epoch: Epoch,
        lines: &[(Line, Vec<JobId>)],
    ) -> Result<Option<Vec<Placed>>> {
        let nothing = Placed {
            epoch,
            last: EntryId { ms: 0, seq: 0 },
        };
        let mut placed = vec![nothing; lines.len()];
        let all: Vec<(usize, &Line, JobId)> = lines
            .iter()
            .enumerate()
            .flat_map(|(n, (line, jobs))| jobs.iter().map(move |job| (n, line, *job)))
            .collect();
        for chunk in all.chunks(CHUNK) {
            let mut add = Pipeline::with_capacity(chunk.len() + 3);
            add.cmd("MULTI");
            add.cmd("GET").arg(self.keys.marker());
            let mut key = (usize::MAX, String::new());
            for (n, line, job) in chunk {
                if key.0 != *n {
                    key = (*n, self.keys.line(epoch, line));
                }
                // A stream that is not there is not made by the way: that would hide that it was lost.
                add.cmd("XADD")
                    .arg(&key.1)
                    .arg("NOMKSTREAM")
                    .arg("*")
                    .arg(FIELD)
                    .arg(job.uuid().as_bytes().as_slice());
            }
            add.cmd("EXEC");
            let answers = reply::transaction(ask(conn, &add).await?.pop())?;
            if !self.still(epoch, answers.first()) {
                return Ok(None);
            }
            for ((n, _, _), answer) in chunk.iter().zip(answers.get(1..).unwrap_or_default()) {
                reply::refuse_other(answer)?;
                let Some(last) = reply::entry_id(answer) else {
                    self.vanished(conn, epoch).await?;
                    return Ok(None);
                };
                if let Some(placed) = placed.get_mut(*n) {
                    placed.last = last;
                }
            }
        }
        Ok(Some(placed))
    }
}
