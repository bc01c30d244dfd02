//! One action on many jobs.

use uuid::Uuid;

use crate::client::Client;
use crate::error::Error;
use crate::proto;
use proto::Bulk;

impl Client {
    /// Starts a bulk: one action on all jobs that a filter covers. It goes on by
    /// itself, on the server; look at it with [`bulk`](Self::bulk). Without a
    /// `bulk_id` it gets one here, so that the call can be repeated.
    ///
    /// # Errors
    /// [`Error::Call`], among others with reason `FIELD_INVALID`, `BULK_CONFLICT` (the
    /// id is that of another request) or `TOO_MANY_BULKS`.
    pub async fn start_bulk(&self, mut request: proto::StartBulkRequest) -> Result<Bulk, Error> {
        if request.bulk_id.is_empty() {
            request.bulk_id = Uuid::now_v7().to_string();
        }
        let answer = self.ask(request, |request| async move {
            self.bulks.clone().start_bulk(request).await
        });
        Ok(answer.await?.bulk.unwrap_or_default())
    }

    /// A bulk as it is now.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `BULK_NOT_FOUND`.
    pub async fn bulk(&self, id: &str) -> Result<Bulk, Error> {
        let request = proto::GetBulkRequest { bulk_id: id.into() };
        let answer = self.ask(request, |request| async move {
            self.bulks.clone().get_bulk(request).await
        });
        Ok(answer.await?.bulk.unwrap_or_default())
    }

    /// One page of bulks, newest first, with the token of the next page;
    /// `page_size` 0 is the server's default, and an empty token begins.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn bulks(
        &self,
        page_size: u32,
        page_token: &str,
    ) -> Result<proto::ListBulksResponse, Error> {
        let request = proto::ListBulksRequest {
            page_size,
            page_token: page_token.into(),
        };
        self.ask(request, |request| async move {
            self.bulks.clone().list_bulks(request).await
        })
        .await
    }

    /// Stops a bulk before its next step; what is done stays done. Aborting one that
    /// has ended is fine.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `BULK_NOT_FOUND`.
    pub async fn abort_bulk(&self, id: &str, reason: &str) -> Result<Bulk, Error> {
        let request = proto::AbortBulkRequest {
            bulk_id: id.into(),
            reason: reason.into(),
        };
        let answer = self.ask(request, |request| async move {
            self.bulks.clone().abort_bulk(request).await
        });
        Ok(answer.await?.bulk.unwrap_or_default())
    }

    /// Deletes all jobs of a queue that wait, for ever; those that run go on. The
    /// answer is the bulk that does it.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `QUEUE_NOT_FOUND`.
    pub async fn purge_queue(&self, name: &str, reason: &str) -> Result<Bulk, Error> {
        let request = proto::PurgeQueueRequest {
            queue: name.into(),
            reason: reason.into(),
            // Made here, so that the call can be repeated.
            bulk_id: Uuid::now_v7().to_string(),
        };
        let answer = self.ask(request, |request| async move {
            self.queues.clone().purge_queue(request).await
        });
        Ok(answer.await?.bulk.unwrap_or_default())
    }
}

impl Bulk {
    /// True when it goes no further.
    pub fn is_ended(&self) -> bool {
        use proto::BulkState::{Aborted, Done, Failed, Stopped};
        matches!(self.state(), Done | Aborted | Stopped | Failed)
    }
}
