//! Workers that wait: how much of the node's memory each takes. Every one has a connection of its own, as real ones do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use worker_sdk::proto::lease_jobs_request::Message as Request;
use worker_sdk::proto::lease_jobs_response::Message as Response;
use worker_sdk::proto::worker_service_client::WorkerServiceClient;
use worker_sdk::proto::{Heartbeat, Hello, LeaseJobsRequest, LeaseJobsResponse, QueueSubscription};

use super::audit::Audit;
use super::figure::{Sample, Times};
use super::ledger::KIND;
use super::options::Args;
use super::stage::Stage;
use crate::cli::exit::Failure;

/// Streams that open at once.
const AT_ONCE: usize = 50;
/// The first ones are not counted: what a node takes once and for all is there then.
const FIRST: usize = 50;
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Sessions are not to lapse while the rest is opened.
const TTL_SECONDS: i64 = 300;

/// One stream.
struct Idle {
    outgoing: mpsc::Sender<LeaseJobsRequest>,
    incoming: Streaming<LeaseJobsResponse>,
}

/// Opens them, lets each send a heartbeat that must be confirmed, and weighs the nodes before and after.
pub(super) async fn run(stage: &Stage, args: &Args) -> Result<Sample, Failure> {
    let unseen = || {
        Failure::usage(
            "streams needs a server that it starts itself, on a system with /proc: it weighs its process",
        )
    };
    let queue = stage.queue("streams");
    let first = FIRST.min(args.streams / 2);
    let warm = open(stage, &queue, first).await?;
    let before = stage.memory().ok_or_else(unseen)?;
    let spent = stage.spent().await;
    let begun = Instant::now();
    let idle = open(stage, &queue, args.streams - first).await?;
    let opened = begun.elapsed();
    let (idle, times) = confirmed(idle).await?;
    let after = stage.memory().ok_or_else(unseen)?;
    let count = (args.streams - first) as u64;
    let audit = Audit {
        accepted: count,
        found: idle.len() as u64,
        right_state: idle.len() as u64,
        ..Audit::default()
    };
    let cost = stage.spent().await.a_job(&spent, count);
    drop((warm, idle));
    Ok(Sample {
        value: after.saturating_sub(before) as f64 / 1024.0 / count as f64,
        seconds: opened.as_secs_f64(),
        jobs: count,
        latencies: BTreeMap::from([("heartbeat", times.summary())]),
        cost,
        audit,
        more: BTreeMap::from([("node_mib", after as f64 / f64::from(1 << 20))]),
        series: Vec::new(),
    })
}

async fn open(stage: &Stage, queue: &str, count: usize) -> Result<Vec<Idle>, Failure> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let mut opening = JoinSet::new();
        for n in all.len()..count.min(all.len() + AT_ONCE) {
            opening.spawn(Idle::open(stage.url(n).to_owned(), queue.to_owned()));
        }
        while let Some(opened) = opening.join_next().await {
            let opened = opened.map_err(|why| Failure::trouble(why.to_string()))?;
            all.push(opened.map_err(|why| {
                Failure::trouble(format!("stream {} of {count}: {why}", all.len() + 1))
            })?);
        }
    }
    Ok(all)
}

async fn confirmed(idle: Vec<Idle>) -> Result<(Vec<Idle>, Times), Failure> {
    let mut beating = JoinSet::new();
    for mut one in idle {
        beating.spawn(async move {
            let begun = Instant::now();
            one.beat().await.map(|()| (one, begun.elapsed()))
        });
    }
    let (mut all, mut times) = (Vec::new(), Times::new());
    while let Some(beat) = beating.join_next().await {
        let beat = beat.map_err(|why| Failure::trouble(why.to_string()))?;
        let (one, took) = beat.map_err(|why| Failure::trouble(format!("a heartbeat: {why}")))?;
        times.record(took);
        all.push(one);
    }
    Ok((all, times))
}

impl Idle {
    async fn open(url: String, queue: String) -> Result<Self, String> {
        let mut client = WorkerServiceClient::connect(url)
            .await
            .map_err(|why| why.to_string())?;
        let (outgoing, sent) = mpsc::channel(4);
        let hello = Request::Hello(Hello {
            protocol: 1,
            worker: "bench".into(),
            queues: vec![QueueSubscription {
                queue,
                max_in_flight: 0,
            }],
            kinds: vec![KIND.into()],
            max_in_flight: 1,
            lease_ttl: Some(prost_types::Duration {
                seconds: TTL_SECONDS,
                nanos: 0,
            }),
            ..Default::default()
        });
        send(&outgoing, hello).await?;
        let stream = client
            .lease_jobs(ReceiverStream::new(sent))
            .await
            .map_err(|why| why.to_string())?;
        let mut idle = Self {
            outgoing,
            incoming: stream.into_inner(),
        };
        idle.until(|message| matches!(message, Response::Welcome(_)))
            .await?;
        Ok(idle)
    }

    async fn beat(&mut self) -> Result<(), String> {
        let beat = Request::Heartbeat(Heartbeat {
            sequence: 1,
            ..Default::default()
        });
        send(&self.outgoing, beat).await?;
        self.until(|message| matches!(message, Response::HeartbeatAck(_)))
            .await
    }

    async fn until(&mut self, wanted: impl Fn(&Response) -> bool) -> Result<(), String> {
        let look = async {
            while let Some(answer) = self
                .incoming
                .message()
                .await
                .map_err(|why| why.to_string())?
            {
                if answer.message.as_ref().is_some_and(&wanted) {
                    return Ok(());
                }
            }
            Err("the server closed the stream".to_owned())
        };
        tokio::time::timeout(ANSWER_WITHIN, look)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {ANSWER_WITHIN:?}")))
    }
}

async fn send(to: &mpsc::Sender<LeaseJobsRequest>, message: Request) -> Result<(), String> {
    let message = Some(message);
    let sent = to.send(LeaseJobsRequest { message }).await;
    sent.map_err(|_| "the stream has ended".to_owned())
}
