//! Jobs that are a type: kind, queue and options stand beside what they carry.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::new_job::NewJob;
use crate::proto::Job;

/// The payload of a kind of jobs, with all that belongs to the kind.
///
/// ```no_run
/// use std::time::Duration;
/// use serde::{Deserialize, Serialize};
/// use worker_sdk::{Client, Error, NewJob, TypedJob, Worker};
///
/// #[derive(Serialize, Deserialize)]
/// struct Thumbnail {
///     image: String,
///     width: u32,
/// }
///
/// impl TypedJob for Thumbnail {
///     const KIND: &'static str = "thumbnail";
///     const QUEUE: &'static str = "images";
///     type Output = String;
///
///     fn options(&self, job: NewJob) -> NewJob {
///         job.max_attempts(5).timeout(Duration::from_secs(60))
///     }
/// }
///
/// # async fn example(client: Client) -> Result<(), Error> {
/// let worker = Worker::builder("http://127.0.0.1:7070")
///     .typed(|_ctx, job: Thumbnail| async move { Ok(format!("{}-{}", job.image, job.width)) })
///     .build()?;
///
/// let cat = Thumbnail { image: "cat".into(), width: 64 };
/// let accepted = client.enqueue(cat.job()?).await?;
/// let job = client.wait(&accepted.job.id, Duration::from_secs(60)).await?;
/// let url: String = job.output_of::<Thumbnail>()?;
/// # Ok(())
/// # }
/// ```
///
/// Jobs that wait outlive a deployment: change the type as you would change a
/// message of an API, by fields with a default.
pub trait TypedJob: Serialize + DeserializeOwned + Send + 'static {
    /// Which handler runs it.
    const KIND: &'static str;
    /// The queue that it waits in.
    const QUEUE: &'static str = "default";
    /// What its handler returns.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// What every job of this kind is enqueued with: attempts, backoff, timeout,
    /// labels. The server's defaults, if it is left as it is.
    fn options(&self, job: NewJob) -> NewJob {
        job
    }

    /// A job to be enqueued; what differs in one case can be set on it.
    ///
    /// # Errors
    /// [`Error::Encode`] when this cannot be written as JSON.
    fn job(&self) -> Result<NewJob, Error> {
        let job = NewJob::new(Self::KIND, self)?;
        Ok(self.options(job.queue(Self::QUEUE)))
    }
}

impl Job {
    /// What the handler of such a job returned.
    ///
    /// # Errors
    /// [`Error::Decode`] when it is something else, or nothing.
    pub fn output_of<T: TypedJob>(&self) -> Result<T::Output, Error> {
        self.output_as()
    }
}
