//! Takes hints, and ends with them: settled, or put back.
//!
//! What is put back stays where it is in its line, and goes to a consumer that is nobody, the shelf; each take looks
//! there first. So the order stays, and a segment's last entry stays true. To add it anew at the end would let the
//! oldest job of a long line wait for all the others.

use std::collections::HashMap;

use deadpool_redis::Connection;
use redis::{Pipeline, Value, pipe};

use super::reply::{self, Entry, Fault};
use super::{CHUNK, GROUP, Hint, RedisReady, SHELF, TRIES, Want, ask, away};
use crate::error::Result;
use crate::store::{Epoch, Line};

/// What is put on the shelf counts as idle for so long, that anybody may have it at once. In milliseconds.
const SHELVED_MS: u64 = 24 * 60 * 60 * 1_000;
/// Who claims from the shelf asks for this: of two, the second finds the entry fresh and does not get it.
const SHELVED_MS_MIN: u64 = SHELVED_MS / 2;

impl RedisReady {
    // Dropped half-way, it may leave hints that were given to this node and that it never saw: steal finds them.
    pub(super) async fn take_hints(&self, wants: &[Want]) -> Result<Vec<Hint>> {
        let mut conn = self.connection().await?;
        for _ in 0..TRIES {
            let epoch = self.epoch_seen(&mut conn).await?;
            let names = wants.iter().map(|want| &want.line);
            if !self.make_sure(&mut conn, epoch, names).await? {
                continue;
            }
            let mut look = Pipeline::with_capacity(wants.len());
            for want in wants {
                look.cmd("XPENDING")
                    .arg(self.keys.line(epoch, &want.line))
                    .arg(GROUP)
                    .arg("-")
                    .arg("+")
                    .arg(count(want))
                    .arg(SHELF);
            }
            let shelves = ask(&mut conn, &look).await?;
            let (read, sources) = self.read(epoch, wants, &shelves);
            let mut answers = ask(&mut conn, &read).await?.into_iter();
            if !self.still(epoch, answers.next().as_ref()) {
                continue;
            }
            match hints(epoch, &sources, answers)? {
                Some(hints) => return Ok(hints),
                None => self.vanished(&mut conn, epoch).await?,
            }
        }
        Err(away())
    }

    /// The marker; then for each want what is on the shelf, and from the stream as much as is still wanted.
    fn read<'a>(
        &self,
        epoch: Epoch,
        wants: &'a [Want],
        shelves: &[Value],
    ) -> (Pipeline, Vec<Source<'a>>) {
        let mut read = Pipeline::with_capacity(2 * wants.len() + 1);
        let mut sources = Vec::with_capacity(2 * wants.len());
        read.cmd("GET").arg(self.keys.marker());
        for (want, shelf) in wants.iter().zip(shelves) {
            let key = self.keys.line(epoch, &want.line);
            let shelved = pending(shelf);
            if !shelved.is_empty() {
                read.cmd("XCLAIM")
                    .arg(&key)
                    .arg(GROUP)
                    .arg(self.consumer())
                    .arg(SHELVED_MS_MIN)
                    .arg(&shelved);
                sources.push(Source::Shelf(&want.line));
            }
            let rest = count(want).saturating_sub(shelved.len());
            if rest > 0 {
                read.cmd("XREADGROUP")
                    .arg("GROUP")
                    .arg(GROUP)
                    .arg(self.consumer())
                    .arg("COUNT")
                    .arg(rest)
                    .arg("STREAMS")
                    .arg(&key)
                    .arg(">");
                sources.push(Source::Stream(&want.line));
            }
        }
        (read, sources)
    }

    pub(super) async fn settle_hints(&self, hints: &[Hint]) -> Result<()> {
        let mut conn = self.connection().await?;
        let lines = by_line(hints);
        // A transaction for each line, as many of them in one go as make a batch.
        let mut batch = pipe();
        let mut size = 0;
        for ((epoch, line), entries) in &lines {
            let key = self.keys.line(*epoch, line);
            for entries in entries.chunks(CHUNK) {
                if size + entries.len() > CHUNK {
                    forget(&mut conn, &batch).await?;
                    batch.clear();
                    size = 0;
                }
                size += entries.len();
                batch.cmd("MULTI");
                batch.cmd("XACK").arg(&key).arg(GROUP).arg(entries);
                batch.cmd("XDEL").arg(&key).arg(entries);
                batch.cmd("EXEC");
            }
        }
        forget(&mut conn, &batch).await
    }

    pub(super) async fn put_hints_back(&self, hints: &[Hint]) -> Result<()> {
        if hints.is_empty() {
            return Ok(());
        }
        let mut conn = self.connection().await?;
        let mut shelve = pipe();
        for ((epoch, line), entries) in by_line(hints) {
            let key = self.keys.line(epoch, line);
            for entries in entries.chunks(CHUNK) {
                shelve
                    .cmd("XCLAIM")
                    .arg(&key)
                    .arg(GROUP)
                    .arg(SHELF)
                    .arg(0)
                    .arg(entries)
                    .arg("IDLE")
                    .arg(SHELVED_MS)
                    .arg("JUSTID");
            }
        }
        self.ring_in(&mut shelve, "work");
        for answer in ask(&mut conn, &shelve).await? {
            reply::refuse_other(&answer)?;
        }
        Ok(())
    }
}

async fn forget(conn: &mut Connection, batch: &Pipeline) -> Result<()> {
    for answer in &ask(conn, batch).await? {
        // A stream that is gone has nothing to forget.
        reply::refuse_other(answer)?;
        reply::items(answer)
            .iter()
            .try_for_each(reply::refuse_other)?;
    }
    Ok(())
}

/// Where one answer comes from.
enum Source<'a> {
    Shelf(&'a Line),
    Stream(&'a Line),
}

fn count(want: &Want) -> usize {
    want.count.min(CHUNK)
}

/// The places in the answer to an XPENDING, as they are written.
pub(super) fn pending(answer: &Value) -> Vec<String> {
    reply::items(answer)
        .iter()
        .filter_map(|row| reply::text(reply::items(row).first()?))
        .map(str::to_owned)
        .collect()
}

/// `None`: a stream or group is gone.
fn hints(
    epoch: Epoch,
    sources: &[Source<'_>],
    answers: impl Iterator<Item = Value>,
) -> Result<Option<Vec<Hint>>> {
    let mut hints = Vec::new();
    for (source, answer) in sources.iter().zip(answers) {
        reply::refuse_other(&answer)?;
        if reply::fault(&answer) == Some(Fault::Gone) {
            return Ok(None);
        }
        match source {
            Source::Shelf(line) => hints.extend(hints_of(epoch, line, reply::entries(&answer))),
            Source::Stream(line) => {
                for (_, list) in reply::streams(&answer) {
                    hints.extend(hints_of(epoch, line, reply::entries(list)));
                }
            }
        }
    }
    Ok(Some(hints))
}

/// The entries of a line as hints.
pub(super) fn hints_of(
    epoch: Epoch,
    line: &Line,
    entries: Vec<Entry>,
) -> impl Iterator<Item = Hint> {
    entries.into_iter().map(move |(entry, job)| Hint {
        job,
        line: line.clone(),
        entry,
        epoch,
    })
}

fn by_line(hints: &[Hint]) -> Vec<((Epoch, &Line), Vec<String>)> {
    let mut lines = HashMap::<(Epoch, &Line), Vec<String>>::new();
    for hint in hints {
        lines
            .entry((hint.epoch, &hint.line))
            .or_default()
            .push(reply::written(hint.entry));
    }
    lines.into_iter().collect()
}
