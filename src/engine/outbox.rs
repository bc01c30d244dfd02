//! What waits to be sent to one worker: bounded in bytes, and never waited for by whoever adds to it.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::Core;
use crate::error::Error;
use crate::job::limits::{OUTBOX_BYTES_HARD, OUTBOX_BYTES_SOFT, OUTBOXES_BYTES_SOFT};
use crate::session::message::ServerMessage;

/// Messages for one worker, in order, and how the stream ends after them.
#[derive(Debug)]
pub struct Outbox {
    inner: Mutex<Inner>,
    core: Arc<Core>,
}

#[derive(Debug, Default)]
struct Inner {
    messages: VecDeque<ServerMessage>,
    /// Of the messages, and of the one that was taken last until the next is asked for: a worker that does not read
    /// leaves it with HTTP/2, where it takes as much memory.
    bytes: usize,
    sending: usize,
    end: Option<Option<Error>>,
    reader: Option<Waker>,
    closed: Option<Waker>,
}

impl Inner {
    fn next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<ServerMessage, Error>>> {
        if let Some(message) = self.messages.pop_front() {
            self.sending = message.size();
            return Poll::Ready(Some(Ok(message)));
        }
        match self.end.as_mut() {
            Some(end) => Poll::Ready(end.take().map(Err)),
            None => {
                self.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Outbox {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self {
            inner: Mutex::default(),
            core,
        }
    }

    /// Adds a message. `false`: the worker reads too slowly for that. Jobs are never refused, as nothing is granted to
    /// a worker that is behind with reading: see `Live::free` and `Live::is_behind`.
    pub fn push(&self, message: ServerMessage) -> bool {
        let mut inner = self.lock();
        let bytes = inner.bytes + message.size();
        // A heartbeat's answer replaces the one before: a worker that reads nothing piles up nothing by them.
        if let (Some(ServerMessage::HeartbeatAck { .. }), ServerMessage::HeartbeatAck { .. }) =
            (inner.messages.back(), &message)
        {
            inner.messages.pop_back();
        } else if bytes > OUTBOX_BYTES_HARD && !matches!(message, ServerMessage::Jobs { .. }) {
            return false;
        } else {
            self.count(inner.bytes, bytes);
            inner.bytes = bytes;
        }
        inner.messages.push_back(message);
        wake(inner.reader.take());
        true
    }

    /// Ends the stream after what is in it; with an error, no job goes out any more: whoever goes on with the session has
    /// those pushed again, and a worker that does not read would hold their memory until its connection ends.
    pub fn close(&self, error: Option<Error>) {
        let mut inner = self.lock();
        if inner.end.is_none() {
            if error.is_some() {
                inner
                    .messages
                    .retain(|message| !matches!(message, ServerMessage::Jobs { .. }));
                inner.messages.shrink_to_fit();
                let left: usize = inner.messages.iter().map(ServerMessage::size).sum();
                let left = left + inner.sending;
                self.count(inner.bytes, left);
                inner.bytes = left;
            }
            inner.end = Some(error);
        }
        wake(inner.reader.take());
        wake(inner.closed.take());
    }

    /// The stream is to end.
    pub fn is_closed(&self) -> bool {
        self.lock().end.is_some()
    }

    /// The worker lets what it was sent pile up: it gets no more jobs for now.
    pub fn is_behind(&self) -> bool {
        let bytes = self.lock().bytes;
        bytes >= OUTBOX_BYTES_SOFT || (bytes > 0 && self.is_crowded())
    }

    /// Ready when the stream is to end. For the one task that reads from the worker.
    pub fn poll_closed(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        match inner.end {
            Some(_) => Poll::Ready(()),
            None => {
                inner.closed = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The next message; `None` when the stream ends in order. For the one task that writes to the worker. And whether it
    /// has caught up by asking for it: it was behind, and may be no longer.
    pub fn poll_next(
        &self,
        context: &mut Context<'_>,
    ) -> (Poll<Option<Result<ServerMessage, Error>>>, bool) {
        let mut inner = self.lock();
        let before = inner.bytes;
        inner.bytes = before.saturating_sub(std::mem::take(&mut inner.sending));
        self.count(before, inner.bytes);
        let caught_up = before >= OUTBOX_BYTES_SOFT && inner.bytes < OUTBOX_BYTES_SOFT;
        let caught_up = caught_up || (before > 0 && inner.bytes == 0 && self.is_crowded());
        (inner.next(context), caught_up)
    }

    fn is_crowded(&self) -> bool {
        self.core.outbox_bytes.load(Ordering::Relaxed) >= OUTBOXES_BYTES_SOFT
    }

    /// Keeps the node's sum.
    fn count(&self, before: usize, after: usize) {
        let sum = &self.core.outbox_bytes;
        match after >= before {
            true => sum.fetch_add(after - before, Ordering::Relaxed),
            false => sum.fetch_sub(before - after, Ordering::Relaxed),
        };
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let left = self.lock().bytes;
        self.count(left, 0);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
