//! For those who look after queues.

use crate::client::{Client, Repeat, TRY_TIMEOUT};
use crate::error::Error;
use crate::proto;
use proto::Queue;

impl Client {
    /// A queue with its numbers.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `QUEUE_NOT_FOUND` for one that was never seen.
    pub async fn queue(&self, name: &str) -> Result<Queue, Error> {
        let request = proto::GetQueueRequest { queue: name.into() };
        let answer = self.ask(request, |request| async move {
            self.queues.clone().get_queue(request).await
        });
        Ok(answer.await?.queue.unwrap_or_default())
    }

    /// One page of queues by name, with the token of the next page; `page_size` 0
    /// is the server's default, and an empty token begins.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn queues(
        &self,
        page_size: u32,
        page_token: &str,
    ) -> Result<proto::ListQueuesResponse, Error> {
        let request = proto::ListQueuesRequest {
            page_size,
            page_token: page_token.into(),
        };
        self.ask(request, |request| async move {
            self.queues.clone().list_queues(request).await
        })
        .await
    }

    /// Stops the hand-out of a queue's jobs, on all nodes within a second. Running
    /// jobs go on, new ones are accepted. Pausing a paused queue is fine.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn pause_queue(&self, name: &str, reason: &str) -> Result<Queue, Error> {
        let request = proto::PauseQueueRequest {
            queue: name.into(),
            reason: reason.into(),
        };
        let answer = self.ask(request, |request| async move {
            self.queues.clone().pause_queue(request).await
        });
        Ok(answer.await?.queue.unwrap_or_default())
    }

    /// Lets a queue's jobs be handed out again. Resuming one that is not paused is
    /// fine.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `QUEUE_NOT_FOUND`.
    pub async fn resume_queue(&self, name: &str, reason: &str) -> Result<Queue, Error> {
        let request = proto::ResumeQueueRequest {
            queue: name.into(),
            reason: reason.into(),
        };
        let answer = self.ask(request, |request| async move {
            self.queues.clone().resume_queue(request).await
        });
        Ok(answer.await?.queue.unwrap_or_default())
    }

    /// Sets what jobs of a queue get whose requests leave it out: the `fields` of
    /// `queue` that are named, as `default_timeout`; one that is named and absent is
    /// the server's default again. If `queue.etag` is not empty, only as long as
    /// nobody has changed the queue since.
    ///
    /// # Errors
    /// [`Error::Call`], among others with reason `ETAG_MISMATCH`.
    pub async fn update_queue(
        &self,
        queue: Queue,
        fields: &[&str],
        reason: &str,
    ) -> Result<Queue, Error> {
        let paths = fields.iter().map(|field| (*field).to_owned()).collect();
        // A try of which nothing is known may have changed the etag.
        let repeat = match queue.etag.is_empty() {
            true => Repeat::Yes,
            false => Repeat::IfRefused,
        };
        let request = proto::UpdateQueueRequest {
            queue: Some(queue),
            update_mask: Some(prost_types::FieldMask { paths }),
            reason: reason.into(),
        };
        let answer = self.tried(
            repeat,
            self.deadline,
            TRY_TIMEOUT,
            request,
            |request| async move { self.queues.clone().update_queue(request).await },
        );
        Ok(answer.await?.queue.unwrap_or_default())
    }

    /// A session, and the jobs that it runs.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `SESSION_NOT_FOUND`, also when its worker has left or
    /// is lost.
    pub async fn session(&self, id: &str) -> Result<proto::GetSessionResponse, Error> {
        let request = proto::GetSessionRequest {
            session_id: id.into(),
        };
        self.ask(request, |request| async move {
            self.queues.clone().get_session(request).await
        })
        .await
    }

    /// One page of the sessions of workers, by id: all, or those that take jobs of
    /// a queue; else as for [`queues`](Self::queues).
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn sessions(
        &self,
        queue: Option<&str>,
        page_size: u32,
        page_token: &str,
    ) -> Result<proto::ListSessionsResponse, Error> {
        let request = proto::ListSessionsRequest {
            queue: queue.unwrap_or_default().into(),
            page_size,
            page_token: page_token.into(),
        };
        self.ask(request, |request| async move {
            self.queues.clone().list_sessions(request).await
        })
        .await
    }

    /// Asks that the worker of a session leaves: it gets no more jobs from within
    /// three seconds on, and a worker of this SDK ends as by SIGTERM. Asking again is
    /// fine.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `SESSION_NOT_FOUND` for one that is over.
    pub async fn drain_session(&self, id: &str, reason: &str) -> Result<(), Error> {
        let request = proto::DrainSessionRequest {
            session_id: id.into(),
            reason: reason.into(),
        };
        let answer = self.ask(request, |request| async move {
            self.queues.clone().drain_session(request).await
        });
        answer.await.map(drop)
    }

    /// One page of the server's nodes, by id; as for [`queues`](Self::queues).
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn nodes(
        &self,
        page_size: u32,
        page_token: &str,
    ) -> Result<proto::ListNodesResponse, Error> {
        let request = proto::ListNodesRequest {
            page_size,
            page_token: page_token.into(),
        };
        self.ask(request, |request| async move {
            self.queues.clone().list_nodes(request).await
        })
        .await
    }

    /// Asks that a node leaves as by SIGTERM, within three seconds: its workers go
    /// on by other nodes. Asking again is fine.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `NODE_NOT_FOUND`.
    pub async fn drain_node(&self, id: &str, reason: &str) -> Result<(), Error> {
        let request = proto::DrainNodeRequest {
            node_id: id.into(),
            reason: reason.into(),
        };
        let answer = self.ask(request, |request| async move {
            self.queues.clone().drain_node(request).await
        });
        answer.await.map(drop)
    }

    /// One page of what was changed by hand, newest first, with the token of the
    /// next page; as for [`queues`](Self::queues).
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn audit_events(
        &self,
        page_size: u32,
        page_token: &str,
    ) -> Result<proto::ListAuditEventsResponse, Error> {
        let request = proto::ListAuditEventsRequest {
            page_size,
            page_token: page_token.into(),
        };
        self.ask(request, |request| async move {
            self.queues.clone().list_audit_events(request).await
        })
        .await
    }
}
