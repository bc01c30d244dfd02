//! Where lines begin.

use redis::pipe;

use super::reply::{self, Fault};
use super::{Probe, RedisReady, TRIES, away};
use crate::error::Result;
use crate::store::Line;

impl RedisReady {
    pub(super) async fn probe_lines(&self, lines: &[Line]) -> Result<Vec<Probe>> {
        for _ in 0..TRIES {
            let epoch = self.epoch_seen().await?;
            let mut first = pipe();
            for line in lines {
                // Entries stay until they are settled, so this sees the pending ones too.
                first
                    .cmd("XRANGE")
                    .arg(self.keys.line(epoch, line))
                    .arg("-")
                    .arg("+")
                    .arg("COUNT")
                    .arg(1);
            }
            // Last, so that it speaks for all that was read before it.
            first.cmd("GET").arg(self.keys.marker());
            let mut answers = self.ask(&first).await?;
            if !self.still(epoch, answers.pop().as_ref()) {
                continue;
            }
            if answers
                .iter()
                .any(|answer| reply::fault(answer) == Some(Fault::Gone))
            {
                self.vanished(epoch).await?;
                continue;
            }
            return answers
                .iter()
                .map(|answer| {
                    reply::refuse_other(answer)?;
                    let first = reply::items(answer).first();
                    Ok(Probe {
                        first: first.and_then(|e| reply::entry_id(reply::items(e).first()?)),
                    })
                })
                .collect();
        }
        Err(away())
    }
}
