//! Takes hints, and ends with them: settled, or put back.
//!
//! What is put back stays where it is in its line, and goes to a consumer that is nobody, the shelf; each take looks
//! there first. So the order stays, and a segment's last entry stays true. To add it anew at the end would let the
//! oldest job of a long line wait for all the others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use redis::{Pipeline, Value, pipe};

use super::reply::{self, Fault, Part, Whose};
use super::script::Call;
use super::{CHUNK, GROUP, Hint, RedisReady, TRIES, Want, away};
use crate::error::Result;
use crate::job::Priority;
use crate::ready::Share;
use crate::store::{EntryId, Epoch, Line};

/// What is put on the shelf counts as idle for so long, that anybody may have it at once. In milliseconds.
pub(super) const SHELVED_MS: u64 = 24 * 60 * 60 * 1_000;
/// Who claims from the shelf asks for this: of two, the second finds the entry fresh and does not get it.
const SHELVED_MS_MIN: u64 = SHELVED_MS / 2;
/// Queues of one script call; each costs it some microseconds even if there is nothing.
const QUEUES_MAX: usize = 64;

impl RedisReady {
    // Dropped half-way, it may leave hints that were given to this node and that it never saw: steal finds them.
    pub(super) async fn take_hints(&self, wants: &[Want]) -> Result<Vec<Hint>> {
        let parts = parts(wants);
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let lines: Vec<Vec<Line>> = parts.iter().map(|wants| lines_of(wants)).collect();
        for _ in 0..TRIES {
            let epoch = self.epoch_seen().await?;
            if !self.make_sure(epoch, lines.iter().flatten()).await? {
                continue;
            }
            let calls = parts.iter().zip(&lines);
            let calls: Vec<_> = calls
                .map(|(wants, lines)| self.call(epoch, wants, lines))
                .collect();
            let answers = self.run(&self.scripts.take, &calls).await?;
            let mut hints = Vec::new();
            let mut gone = false;
            let mut over = false;
            for (lines, answer) in lines.iter().zip(&answers) {
                reply::refuse_other(answer)?;
                gone |= reply::fault(answer) == Some(Fault::Gone);
                over |= *answer == Value::Nil;
                for (line, text) in lines.iter().zip(reply::items(answer)) {
                    let parts = reply::parts(text).ok_or_else(away)?;
                    if let Some(last) = parts.last() {
                        self.places.took(epoch, line, last.place);
                    }
                    hints.extend(parts.iter().flat_map(|part| hints_of(epoch, line, part)));
                }
            }
            if over {
                self.forget_marker();
            } else if gone {
                self.vanished(epoch).await?;
            } else {
                return Ok(hints);
            }
        }
        Err(away())
    }

    fn call(&self, epoch: Epoch, wants: &[Want], lines: &[Line]) -> Call {
        let mut call = Call::default();
        call.keys.push(self.keys.marker());
        call.keys
            .extend(lines.iter().map(|line| self.keys.line(epoch, line)));
        let head = [
            epoch.0.simple().to_string(),
            self.consumer(),
            SHELVED_MS_MIN.to_string(),
            SHELVED_MS.to_string(),
        ];
        let counts = wants.iter().flat_map(|want| {
            let lower = want.lower.min(count(want));
            [count(want), lower, number(want.lower_first)].map(|n| n.to_string())
        });
        let args = head.into_iter().chain(counts);
        call.args.extend(args.map(String::into_bytes));
        call
    }

    pub(super) async fn settle_hints(&self, hints: &[Hint]) -> Result<()> {
        let lines = to_forget(hints);
        // A transaction for each line, as many of them in one go as make a batch.
        let mut batch = pipe();
        let mut size = 0;
        for ((epoch, line), entries) in &lines {
            let key = self.keys.line(*epoch, line);
            for entries in entries.chunks(CHUNK) {
                if size + entries.len() > CHUNK {
                    self.forget(&batch).await?;
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
        self.forget(&batch).await
    }

    async fn forget(&self, batch: &Pipeline) -> Result<()> {
        for answer in &self.ask(batch).await? {
            // A stream that is gone has nothing to forget.
            reply::refuse_other(answer)?;
            reply::items(answer)
                .iter()
                .try_for_each(reply::refuse_other)?;
        }
        Ok(())
    }

    pub(super) async fn put_hints_back(&self, hints: &[Hint]) -> Result<()> {
        if hints.is_empty() {
            return Ok(());
        }
        let mut calls = Vec::new();
        for ((epoch, line), entries) in to_shelve(hints) {
            let entries: Vec<_> = entries.into_iter().collect();
            for entries in entries.chunks(CHUNK) {
                let mut call = Call::default();
                call.keys.push(self.keys.line(epoch, line));
                call.args
                    .extend([self.consumer(), SHELVED_MS.to_string()].map(String::into_bytes));
                for (entry, back) in entries {
                    call.args.extend(back.args(*entry));
                }
                calls.push(call);
            }
        }
        for answer in self.run(&self.scripts.shelve, &calls).await? {
            // A stream that is gone takes nothing back.
            reply::refuse_other(&answer)?;
        }
        let mut ring = pipe();
        self.ring_in(&mut ring, "work");
        for answer in self.ask(&ring).await? {
            reply::refuse_other(&answer)?;
        }
        Ok(())
    }
}

fn count(want: &Want) -> usize {
    want.count.min(CHUNK)
}

/// Of a level, as the script counts them: the highest is 1.
fn number(level: Priority) -> usize {
    let above = Priority::ALL.iter().take_while(|other| **other != level);
    1 + above.count()
}

/// What one script call takes: so many hints at most, of so many queues.
fn parts(wants: &[Want]) -> Vec<Vec<Want>> {
    let mut parts = Vec::<Vec<Want>>::new();
    let mut room = 0;
    for want in wants.iter().filter(|want| want.count > 0) {
        match parts.last_mut() {
            Some(part) if room >= count(want) && part.len() < QUEUES_MAX => part.push(want.clone()),
            _ => {
                parts.push(vec![want.clone()]);
                room = CHUNK;
            }
        }
        room -= count(want);
    }
    parts
}

/// The lines of queues, level by level, the highest first.
fn lines_of(wants: &[Want]) -> Vec<Line> {
    let level = |priority| {
        wants.iter().map(move |want| Line {
            queue: want.queue.clone(),
            priority,
        })
    };
    Priority::ALL.into_iter().flat_map(level).collect()
}

/// The places in the answer to an XPENDING, as they are written.
pub(super) fn pending(answer: &Value) -> Vec<String> {
    reply::items(answer)
        .iter()
        .filter_map(|row| reply::text(reply::items(row).first()?))
        .map(str::to_owned)
        .collect()
}

/// What was taken of an entry of a line, as hints.
pub(super) fn hints_of(epoch: Epoch, line: &Line, part: &Part) -> Vec<Hint> {
    let all = part
        .jobs
        .iter()
        .fold(0, |all, (number, _)| all | 1 << number);
    let left = (part.whose != Whose::Shelf).then(|| Arc::new(AtomicU32::new(all)));
    let is_alone = part.whose == Whose::Whole && part.jobs.len() == 1;
    let hint = |(number, job): &(u8, _)| Hint {
        job: *job,
        line: line.clone(),
        entry: part.place,
        epoch,
        early: part.early,
        share: (!is_alone).then(|| Share {
            number: *number,
            left: left.clone(),
        }),
    };
    part.jobs.iter().map(hint).collect()
}

/// The entries that are done with when these hints are settled.
fn to_forget(hints: &[Hint]) -> Vec<((Epoch, &Line), Vec<String>)> {
    let mut lines = HashMap::<(Epoch, &Line), Vec<String>>::new();
    for hint in hints {
        if hint.share.as_ref().is_none_or(Share::settle) {
            lines
                .entry((hint.epoch, &hint.line))
                .or_default()
                .push(reply::written(hint.entry));
        }
    }
    lines.into_iter().collect()
}

/// What comes back of an entry.
#[derive(Default)]
struct Back {
    /// It has no other id.
    is_alone: bool,
    /// It was this node's until now.
    is_own: bool,
    /// A bit for each id.
    ids: u32,
    /// 16 bytes for each id.
    jobs: Vec<u8>,
}

impl Back {
    /// As the script wants them.
    fn args(&self, entry: EntryId) -> [Vec<u8>; 4] {
        let whose = match (self.is_alone, self.is_own) {
            (true, _) => "a",
            (false, true) => "o",
            (false, false) => "s",
        };
        [
            reply::written(entry).into_bytes(),
            whose.into(),
            self.ids.to_string().into_bytes(),
            self.jobs.clone(),
        ]
    }
}

fn to_shelve(hints: &[Hint]) -> HashMap<(Epoch, &Line), BTreeMap<EntryId, Back>> {
    let mut lines = HashMap::<(Epoch, &Line), BTreeMap<EntryId, Back>>::new();
    for hint in hints {
        let (bit, was_own) = match &hint.share {
            None => (1, None),
            Some(share) => match share.give_up() {
                None => continue,
                was_own => (share.bit(), was_own),
            },
        };
        let line = lines.entry((hint.epoch, &hint.line)).or_default();
        let back = line.entry(hint.entry).or_default();
        back.is_alone |= was_own.is_none();
        back.is_own |= was_own == Some(true);
        back.ids |= bit;
        back.jobs.extend(hint.job.uuid().as_bytes());
    }
    lines
}
