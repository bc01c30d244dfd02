//! What is around the handlers of a worker.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::context::Context;
use crate::failure::JobError;
use crate::handler::{Answer, Handle};
use crate::proto::Payload;

pub(crate) type Middleware =
    Arc<dyn Fn(Context, Payload, Next) -> BoxFuture<'static, Answer> + Send + Sync>;

/// The rest of the way to a job's handler, which a middleware goes by
/// [`run`](Self::run), or not at all. See
/// [`WorkerBuilder::middleware`](crate::WorkerBuilder::middleware).
pub struct Next {
    around: Arc<[Middleware]>,
    /// Those before this one have been passed.
    at: usize,
    handle: Handle,
}

impl Next {
    pub(crate) fn new(around: Arc<[Middleware]>, handle: Handle) -> Self {
        Self {
            around,
            at: 0,
            handle,
        }
    }

    /// Runs what is inside: the next middleware, and at last the handler.
    ///
    /// # Errors
    /// How the attempt ends, unless the middleware decides otherwise.
    pub fn run(
        mut self,
        context: Context,
        payload: Payload,
    ) -> BoxFuture<'static, Result<Payload, JobError>> {
        match self.around.get(self.at).cloned() {
            Some(middleware) => {
                self.at += 1;
                middleware(context, payload, self)
            }
            None => (self.handle)(context, payload),
        }
    }
}
