//! Measures each verb of a ready-list: how long it took, and why it failed.

use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::{Hint, Placed, Probe, ReadyList, Ring, Want};
use crate::error::Result;
use crate::job::JobId;
use crate::store::{Epoch, Line};

/// Where the measurements go.
pub trait ReadyMetrics: Send + Sync + 'static {
    /// A verb ended. `failed` is the reason word of its error, `None` if it went well. Of a doorbell, the time is
    /// mostly waiting.
    fn observe(&self, verb: &'static str, elapsed: Duration, failed: Option<&'static str>);
}

/// A ready-list whose verbs are measured. A call that is dropped half-way is not.
#[derive(Debug)]
pub struct Observed<R, M> {
    inner: R,
    hook: M,
}

impl<R: ReadyList, M: ReadyMetrics> Observed<R, M> {
    /// Measures `inner` and tells `hook`.
    pub fn new(inner: R, hook: M) -> Self {
        Self { inner, hook }
    }

    async fn measure<T>(
        &self,
        verb: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let start = Instant::now();
        let result = call.await;
        let failed = result.as_ref().err().map(|error| error.code().reason);
        self.hook.observe(verb, start.elapsed(), failed);
        result
    }
}

#[async_trait]
impl<R: ReadyList, M: ReadyMetrics> ReadyList for Observed<R, M> {
    async fn epoch(&self) -> Result<Epoch> {
        self.measure("epoch", self.inner.epoch()).await
    }

    async fn offer(&self, lines: Vec<(Line, Vec<JobId>)>) -> Result<Vec<Placed>> {
        self.measure("offer", self.inner.offer(lines)).await
    }

    async fn doorbell(&self, lines: Vec<Line>, wait: Duration) -> Result<Ring> {
        self.measure("doorbell", self.inner.doorbell(lines, wait))
            .await
    }

    async fn take(&self, wants: Vec<Want>) -> Result<Vec<Hint>> {
        self.measure("take", self.inner.take(wants)).await
    }

    async fn settle(&self, hints: Vec<Hint>) -> Result<()> {
        self.measure("settle", self.inner.settle(hints)).await
    }

    async fn put_back(&self, hints: Vec<Hint>) -> Result<()> {
        self.measure("put_back", self.inner.put_back(hints)).await
    }

    async fn steal(&self, lines: Vec<Line>, idle: Duration, limit: usize) -> Result<Vec<Hint>> {
        self.measure("steal", self.inner.steal(lines, idle, limit))
            .await
    }

    async fn probe(&self, lines: Vec<Line>) -> Result<Vec<Probe>> {
        self.measure("probe", self.inner.probe(lines)).await
    }

    async fn nudge(&self) -> Result<()> {
        self.measure("nudge", self.inner.nudge()).await
    }

    async fn ping(&self) -> Result<String> {
        self.measure("ping", self.inner.ping()).await
    }

    async fn close(&self) -> Result<()> {
        self.measure("close", self.inner.close()).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::job::NodeId;
    use crate::ready::memory::MemoryReady;
    use crate::ready::redis::{RedisOptions, RedisReady};

    type Calls = Arc<Mutex<Vec<(&'static str, Option<&'static str>)>>>;

    impl ReadyMetrics for Calls {
        fn observe(&self, verb: &'static str, _: Duration, failed: Option<&'static str>) {
            if let Ok(mut calls) = self.lock() {
                calls.push((verb, failed));
            }
        }
    }

    #[tokio::test]
    async fn each_call_is_told_with_its_end() {
        let calls = Calls::default();
        let memory = Observed::new(MemoryReady::new(), calls.clone());
        assert!(memory.epoch().await.is_ok());
        assert!(memory.close().await.is_ok());
        let options = RedisOptions {
            prefix: "t".into(),
            node: NodeId(uuid::Uuid::nil()),
        };
        let nowhere = RedisReady::connect("redis://127.0.0.1:1", options);
        let redis = nowhere.map(|inner| Observed::new(inner, calls.clone()));
        assert!(redis.is_ok());
        if let Ok(redis) = redis {
            assert!(redis.nudge().await.is_err());
        }
        let told = calls.lock().map(|calls| calls.clone());
        let expected = [
            ("epoch", None),
            ("close", None),
            ("nudge", Some("STORE_UNAVAILABLE")),
        ];
        assert_eq!(told.ok().as_deref(), Some(&expected[..]));
    }
}
