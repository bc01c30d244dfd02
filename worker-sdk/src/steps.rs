//! Steps of a handler: what was done once is not done again by a later attempt.
//! They are one checkpoint, as JSON: `{"steps": {"name": result}}`.

use std::collections::BTreeMap;
use std::future::Future;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::context::Context;
use crate::failure::JobError;

/// The results of the steps, by their names.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    results: BTreeMap<String, Value>,
    /// Whether the newest is recorded is not known: who waited for that has given up.
    in_doubt: bool,
}

/// What makes a checkpoint one of steps.
const STEPS: &str = "steps";

impl Steps {
    fn read(checkpoint: &[u8]) -> Result<Self, JobError> {
        let mut parts: BTreeMap<String, BTreeMap<String, Value>> =
            serde_json::from_slice(checkpoint).map_err(invalid)?;
        Ok(Self {
            results: parts.remove(STEPS).unwrap_or_default(),
            in_doubt: false,
        })
    }

    /// Records all of them.
    async fn save(&mut self, context: &Context) -> Result<(), JobError> {
        let results = BTreeMap::from([(STEPS, &self.results)]);
        let checkpoint = serde_json::to_vec(&results).map_err(invalid)?;
        // Cancel safety: whoever is next finds the doubt, and records them once more.
        self.in_doubt = true;
        let saved = context.save_checkpoint(checkpoint).await;
        self.in_doubt = saved.is_err();
        saved
    }
}

impl Context {
    /// Does a part of the job once: its result is recorded before this returns,
    /// and a later attempt of the job is given that result in place of doing it
    /// again.
    ///
    /// ```no_run
    /// # use worker_sdk::{Context, JobError};
    /// # async fn charge(_: u64) -> Result<String, JobError> { Ok(String::new()) }
    /// # async fn mail(_: &str) -> Result<(), JobError> { Ok(()) }
    /// async fn order(ctx: Context, order: u64) -> Result<(), JobError> {
    ///     let receipt: String = ctx.step("charge", || charge(order)).await?;
    ///     ctx.step("mail", || mail(&receipt)).await?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// The promise is *at least once for the work, once for its record*: a worker
    /// that dies, or loses its lease, after the work and before the record does
    /// it again. So the work of a step must bear to be done twice, or be made
    /// safe by [`attempt`](Self::attempt) or a key of its own.
    ///
    /// A name stands for one step of a job: with a loop inside a handler, put its
    /// index into it. What the steps return is kept as JSON, at most 64 KiB of
    /// all together: keep large things elsewhere, and return where they are.
    /// Steps may run side by side. A step that fails is not recorded. One that is
    /// dropped while its result is recorded may be asked for again: its work is not
    /// done twice by this attempt.
    ///
    /// # Errors
    /// What the work says; what [`save_checkpoint`](Self::save_checkpoint) says;
    /// `StepInvalid`, permanent, if the result cannot be written as JSON, or what
    /// is recorded is no result of this type, or the job has a checkpoint that is
    /// none of steps.
    pub async fn step<T, F, Fut>(&self, name: &str, work: F) -> Result<T, JobError>
    where
        T: Serialize + DeserializeOwned,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, JobError>>,
    {
        if let Some(recorded) = self.recorded(name).await? {
            return serde_json::from_value(recorded).map_err(invalid);
        }
        let result = work().await?;
        let recorded = serde_json::to_value(&result).map_err(invalid)?;
        // One after the other: each record has all that came before.
        let mut kept = self.steps().await;
        let steps = kept.get_or_insert_default();
        steps.results.insert(name.to_owned(), recorded);
        let saved = steps.save(self).await;
        if saved.is_err() {
            steps.results.remove(name);
        }
        saved.map(|()| result)
    }

    async fn recorded(&self, name: &str) -> Result<Option<Value>, JobError> {
        let mut kept = self.steps().await;
        if kept.is_none() {
            *kept = Some(match self.checkpoint() {
                None => Steps::default(),
                Some(data) => Steps::read(&data)?,
            });
        }
        let Some(steps) = kept.as_mut().filter(|kept| kept.results.contains_key(name)) else {
            return Ok(None);
        };
        if steps.in_doubt {
            steps.save(self).await?;
        }
        Ok(steps.results.get(name).cloned())
    }
}

fn invalid(error: serde_json::Error) -> JobError {
    JobError::new(error).with_type("StepInvalid").permanent()
}
