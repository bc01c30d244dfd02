//! A call's message must come to its end. tonic waits for the rest of a message as long as the connection lives, and
//! keeps what came of it: one client could hold gigabytes with calls that it never ends.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::BoxError;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::status::status;
use crate::error::Error;
use crate::job::limits::BODY_WITHIN;

/// The one call that goes on for as long as its worker lives. Its first message has a deadline of its own, and later a
/// worker that sends no whole heartbeat is not heard of.
const ENDLESS: &str = "/leasehold.v1.WorkerService/LeaseJobs";

/// Gives a call's body its time.
pub fn bounded(request: Request) -> Request {
    match request.uri().path() {
        ENDLESS => request,
        _ => request.map(|body| {
            Body::new(Bounded {
                body,
                until: Box::pin(sleep(BODY_WITHIN)),
            })
        }),
    }
}

struct Bounded {
    body: Body,
    until: Pin<Box<Sleep>>,
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        self.until
            .as_mut()
            .poll(context)
            .map(|()| Some(Err(status(Error::BodyTimeout(BODY_WITHIN)).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
