//! Takes over hints that nobody sees to, and removes consumers that nobody is.

use std::time::{Duration, Instant};

use redis::{Value, pipe};

use super::reply::{self, Fault};
use super::script::Call;
use super::take::{SHELVED_MS, hints_of, pending};
use super::{CHUNK, GROUP, Hint, RedisReady, SHELF, TRIES, away, lock};
use crate::error::Result;
use crate::store::{Epoch, Line};

/// A consumer that asked for nothing in so long, and has nothing, is that of a node that is no more.
const CONSUMER_IDLE_MIN: Duration = Duration::from_secs(60 * 60);
/// How often a node looks for such consumers.
const REAP_EVERY: Duration = Duration::from_secs(60);
/// Lines of one script call; each costs it some microseconds even if there is nothing.
const LINES_MAX: usize = 200;

impl RedisReady {
    pub(super) async fn steal_hints(
        &self,
        lines: &[Line],
        idle: Duration,
        limit: usize,
    ) -> Result<Vec<Hint>> {
        for _ in 0..TRIES {
            let epoch = self.epoch_seen().await?;
            if !self.make_sure(epoch, lines.iter()).await? {
                continue;
            }
            let parts: Vec<_> = lines.chunks(LINES_MAX).collect();
            let calls: Vec<_> = parts
                .iter()
                .map(|lines| self.steal_call(epoch, lines, idle, limit))
                .collect();
            let answers = self.run(&self.scripts.steal, &calls).await?;
            let mut hints = Vec::new();
            let mut gone = false;
            let mut over = false;
            for (lines, answer) in parts.iter().zip(&answers) {
                reply::refuse_other(answer)?;
                gone |= reply::fault(answer) == Some(Fault::Gone);
                over |= *answer == Value::Nil;
                for (line, text) in lines.iter().zip(reply::items(answer)) {
                    let parts = reply::parts(text).ok_or_else(away)?;
                    hints.extend(parts.iter().flat_map(|part| hints_of(epoch, line, part)));
                }
            }
            if over {
                self.forget_marker();
                continue;
            }
            if gone {
                self.vanished(epoch).await?;
                continue;
            }
            if self.time_to_reap() {
                self.reap(epoch, lines).await?;
            }
            return Ok(hints);
        }
        Err(away())
    }

    fn steal_call(&self, epoch: Epoch, lines: &[Line], idle: Duration, limit: usize) -> Call {
        let mut call = Call::default();
        call.keys.push(self.keys.marker());
        call.keys
            .extend(lines.iter().map(|line| self.keys.line(epoch, line)));
        let args = [
            epoch.0.simple().to_string(),
            self.consumer(),
            u64::try_from(idle.as_millis())
                .unwrap_or(u64::MAX / 2)
                .to_string(),
            SHELVED_MS.to_string(),
            limit.clamp(1, CHUNK).to_string(),
        ];
        call.args.extend(args.map(String::into_bytes));
        call
    }

    /// Removes the consumers of this node that have nothing.
    pub(super) async fn leave(&self) -> Result<()> {
        let (epoch, lines) = {
            let seen = self.seen();
            let Some(epoch) = seen.known_in else {
                return Ok(());
            };
            (epoch, seen.known.iter().cloned().collect::<Vec<Line>>())
        };
        for lines in lines.chunks(CHUNK) {
            let mut look = pipe();
            for line in lines {
                look.cmd("XPENDING")
                    .arg(self.keys.line(epoch, line))
                    .arg(GROUP)
                    .arg("-")
                    .arg("+")
                    .arg(CHUNK)
                    .arg(self.consumer());
            }
            let held = self.ask(&look).await?;
            let mut remove = pipe();
            for (line, held) in lines.iter().zip(&held) {
                // One that still holds hints is left to be stolen from: removing it would forget them.
                if reply::fault(held).is_none() && pending(held).is_empty() {
                    remove
                        .cmd("XGROUP")
                        .arg("DELCONSUMER")
                        .arg(self.keys.line(epoch, line))
                        .arg(GROUP)
                        .arg(self.consumer());
                }
            }
            self.ask(&remove).await?;
        }
        Ok(())
    }

    fn time_to_reap(&self) -> bool {
        let mut reaped = lock(&self.reaped);
        let due = reaped.is_none_or(|last| last.elapsed() >= REAP_EVERY);
        if due {
            *reaped = Some(Instant::now());
        }
        due
    }

    /// Between the look and the removal a consumer may come back and take something. Then that hint is lost, and found
    /// again by reconcile as any other.
    async fn reap(&self, epoch: Epoch, lines: &[Line]) -> Result<()> {
        let mut look = pipe();
        for line in lines {
            look.cmd("XINFO")
                .arg("CONSUMERS")
                .arg(self.keys.line(epoch, line))
                .arg(GROUP);
        }
        let answers = self.ask(&look).await?;
        let mut remove = pipe();
        for (line, answer) in lines.iter().zip(&answers) {
            let over = reply::items(answer).iter().filter_map(|row| {
                let number =
                    |name| redis::from_redis_value_ref::<u64>(reply::named(row, name)?).ok();
                let idle = Duration::from_millis(number("idle")?);
                let name = reply::text(reply::named(row, "name")?)?;
                let spare = name != SHELF && name != self.consumer();
                (spare && number("pending")? == 0 && idle > CONSUMER_IDLE_MIN).then_some(name)
            });
            for name in over.take(CHUNK) {
                remove
                    .cmd("XGROUP")
                    .arg("DELCONSUMER")
                    .arg(self.keys.line(epoch, line))
                    .arg(GROUP)
                    .arg(name);
            }
        }
        self.ask(&remove).await?;
        Ok(())
    }
}
