//! Jobs on their way to the worker: against promised slots, in numbered frames, and never a Cancels before its Jobs.

use std::time::Duration;

use super::message::{CancelReason, ServerMessage};
use super::{Action, Session};
use crate::job::limits::{BATCH_MAX, FRAME_BYTES};
use crate::job::{Lease, LeasedJob, QueueName};

impl Session {
    pub(super) fn granted(
        &mut self,
        now: Duration,
        jobs: Vec<LeasedJob>,
        missed: &[QueueName],
        out: &mut Vec<Action>,
    ) {
        for queue in missed.iter().chain(jobs.iter().map(|job| &job.queue)) {
            self.reserved.remove(queue);
        }
        let leases: Vec<Lease> = jobs.iter().map(|job| job.lease).collect();
        self.push(now, jobs, out);
        let mut cancels = Vec::new();
        for lease in leases {
            if self.early_cancels.remove(&lease) && self.held.stop(lease) {
                cancels.push((lease, CancelReason::Requested));
            }
        }
        if !cancels.is_empty() {
            out.push(Action::Send(ServerMessage::Cancels(cancels)));
        }
        if self.reserved.is_empty() {
            self.early_cancels.clear();
        }
        self.confirm(out);
        if !missed.is_empty() {
            out.push(Action::LookForJobs);
        }
    }

    /// Sends jobs whose leases are the session's.
    pub(super) fn push(&mut self, now: Duration, jobs: Vec<LeasedJob>, out: &mut Vec<Action>) {
        let bytes = (self.hello.max_frame_bytes as usize).min(FRAME_BYTES);
        for jobs in frames(jobs, bytes) {
            let frame = self.next_frame;
            self.next_frame += 1;
            for job in &jobs {
                self.held.push(now, job, frame);
            }
            self.reading.sent(now);
            out.push(Action::Send(ServerMessage::Jobs { frame, jobs }));
        }
    }

    pub(super) fn cancel(&mut self, lease: Lease, out: &mut Vec<Action>) {
        let is_sent = self.held.is_sent(lease);
        if self.held.stop(lease) {
            // What the worker does not have yet is dropped before it is pushed.
            if is_sent {
                let cancels = vec![(lease, CancelReason::Requested)];
                out.push(Action::Send(ServerMessage::Cancels(cancels)));
            }
        } else if self.held.phase(lease).is_none()
            && self.early_cancels.len() < self.reserved.all() as usize
        {
            // Its grant may be under way: no Cancels comes before its Jobs frame.
            self.early_cancels.insert(lease);
        }
    }
}

/// Cuts jobs into frames of at most `bytes`; a larger job goes alone.
fn frames(jobs: Vec<LeasedJob>, bytes: usize) -> Vec<Vec<LeasedJob>> {
    let mut frames: Vec<Vec<LeasedJob>> = Vec::new();
    let mut filled = 0;
    for job in jobs {
        let size = job.size();
        match frames.last_mut() {
            Some(frame) if filled + size <= bytes && frame.len() < BATCH_MAX => {
                filled += size;
                frame.push(job);
            }
            _ => {
                filled = size;
                frames.push(vec![job]);
            }
        }
    }
    frames
}
