//! Adds jobs at the ends of their lines, and wakes doorbells.

use redis::{Pipeline, Value, pipe};

use super::reply::{self, Fault};
use super::script::Call;
use super::{CHUNK, GROUP, KNOWN_MAX, RedisReady, TRIES, away};
use crate::error::Result;
use crate::job::JobId;
use crate::store::{EntryId, Epoch, Line};

use super::Placed;

/// Ids of an entry at most: the scripts have it too.
const IDS_MAX: usize = 16;
/// Jobs that are offered together make so many entries before an entry holds more than one, so that few takers split any.
const ENTRIES_MIN: usize = 16;
/// Entries that the bell keeps, about. They are no hints: whoever was asleep for longer looks anyway.
pub(super) const BELL_LENGTH: usize = 1_000;

impl RedisReady {
    pub(super) async fn offer_lines(&self, lines: &[(Line, Vec<JobId>)]) -> Result<Vec<Placed>> {
        for _ in 0..TRIES {
            let epoch = self.epoch_seen().await?;
            let names = lines.iter().map(|(line, _)| line);
            if !self.make_sure(epoch, names).await? {
                continue;
            }
            if let Some(placed) = self.add(epoch, lines).await? {
                return Ok(placed);
            }
        }
        Err(away())
    }

    pub(super) async fn nudge_all(&self) -> Result<()> {
        let mut nudge = pipe();
        self.ring_in(&mut nudge, "nudge");
        let answer = self.ask(&nudge).await?.pop().unwrap_or_default();
        if reply::fault(&answer) != Some(Fault::Gone) {
            return reply::refuse_other(&answer);
        }
        // Not a stream: nobody of us wrote it, and it would be in the way for ever.
        let mut heal = pipe();
        heal.cmd("UNLINK").arg(self.keys.bell());
        self.ring_in(&mut heal, "nudge");
        self.ask(&heal).await?;
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
            let answers = reply::transaction(self.ask(&create).await?.pop())?;
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
                    self.vanished(epoch).await?;
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
    async fn add(&self, epoch: Epoch, lines: &[(Line, Vec<JobId>)]) -> Result<Option<Vec<Placed>>> {
        let nothing = Placed {
            epoch,
            last: EntryId { ms: 0, seq: 0 },
        };
        let mut placed = vec![nothing; lines.len()];
        for chunk in chunks(lines) {
            let mut call = Call::default();
            call.keys.push(self.keys.marker());
            call.args.push(epoch.0.simple().to_string().into_bytes());
            for (n, line, jobs) in &chunk {
                call.keys.push(self.keys.line(epoch, line));
                let all = lines.get(*n).map_or(0, |(_, jobs)| jobs.len());
                let size = (all / ENTRIES_MIN).clamp(1, IDS_MAX);
                call.args.push(size.to_string().into_bytes());
                let ids = jobs.iter().flat_map(|job| *job.uuid().as_bytes());
                call.args.push(ids.collect());
            }
            let answer = self.run(&self.scripts.offer, &[call]).await?.pop();
            let answer = answer.unwrap_or_default();
            reply::refuse_other(&answer)?;
            if reply::fault(&answer) == Some(Fault::Gone) {
                self.vanished(epoch).await?;
                return Ok(None);
            }
            if answer == Value::Nil {
                self.forget_marker();
                return Ok(None);
            }
            let places = reply::items(&answer);
            if places.len() != chunk.len() {
                return Err(away());
            }
            for ((n, _, _), place) in chunk.iter().zip(places) {
                let last = reply::entry_id(place).ok_or_else(away)?;
                if let Some(placed) = placed.get_mut(*n) {
                    placed.last = last;
                }
            }
        }
        Ok(Some(placed))
    }
}

/// A part of a line's jobs, with the line and its number.
type Part<'a> = (usize, &'a Line, &'a [JobId]);

/// Lines with jobs in parts, each with as many jobs as one script call adds.
fn chunks(lines: &[(Line, Vec<JobId>)]) -> Vec<Vec<Part<'_>>> {
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    let mut room = CHUNK;
    for (n, (line, jobs)) in lines.iter().enumerate() {
        let mut jobs = jobs.as_slice();
        while !jobs.is_empty() {
            let (now, later) = jobs.split_at(jobs.len().min(room));
            chunk.push((n, line, now));
            jobs = later;
            room -= now.len();
            if room == 0 {
                chunks.push(std::mem::take(&mut chunk));
                room = CHUNK;
            }
        }
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}
