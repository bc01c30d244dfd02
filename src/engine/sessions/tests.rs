//! Streams of one session that come to a node together.
#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

use super::*;
use crate::engine::Engine;
use crate::job::NodeId;
use crate::ready::memory::MemoryReady;
use crate::session::message::{Resume, ServerMessage, Subscription};
use crate::store::Store;
use crate::store::sqlite::SqliteStore;
use crate::telemetry::Metrics;

struct Node {
    engine: Arc<Engine>,
    _folder: tempfile::TempDir,
}

impl Node {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("db")).await.unwrap();
        store.migrate().await.unwrap();
        let engine = Engine::start(
            Arc::new(store),
            Arc::new(MemoryReady::new()),
            NodeId(uuid::Uuid::new_v4()),
            Arc::new(Metrics::new().unwrap()),
            Options::default(),
        );
        Self {
            engine,
            _folder: folder,
        }
    }

    async fn hello(&self, resume: Option<Resume>) -> Result<Arc<Live>> {
        let hello = Hello {
            protocol: 1,
            queues: vec![Subscription {
                queue: QueueName::from_store("q"),
                max_in_flight: None,
            }],
            max_in_flight: 1,
            max_frame_bytes: 4 << 20,
            resume,
            ..Hello::default()
        };
        self.engine.open_session(hello).await
    }
}

async fn token(live: &Arc<Live>) -> Bytes {
    let first = std::future::poll_fn(|context| live.poll_next(context)).await;
    match first.unwrap().unwrap() {
        ServerMessage::Welcome(welcome) => welcome.resume_token,
        other => unreachable!("{other:?} before Welcome"),
    }
}

#[tokio::test]
async fn of_two_streams_of_a_session_the_one_with_the_higher_number_stays_whichever_is_added_last()
{
    let node = Node::start().await;
    let first = node.hello(None).await.unwrap();
    let token = token(&first).await;
    let resume = |attach_sequence| Resume {
        token: token.clone(),
        attach_sequence,
    };
    let second = node.hello(Some(resume(2))).await.unwrap();
    let third = node.hello(Some(resume(3))).await.unwrap();
    assert!(second.outbox().is_closed());
    let sessions = &node.engine.core.sessions;
    sessions.add(second.clone());
    assert!(
        !third.outbox().is_closed(),
        "its worker would take itself for a copy"
    );
    assert_eq!(
        sessions.get(third.attached().session).unwrap().attached(),
        third.attached()
    );
    node.engine.stop().await;
}

#[tokio::test]
async fn a_node_that_is_full_has_room_for_the_sessions_that_move_to_it() {
    let node = Node::start().await;
    let first = node.hello(None).await.unwrap();
    let token = token(&first).await;
    let sessions = &node.engine.core.sessions;
    let _full: Vec<_> = (0..STREAMS_MAX).map(|_| Turn::take(sessions)).collect();
    assert!(matches!(
        node.hello(None).await.err(),
        Some(Error::LimitReached {
            limit: Limit::Streams,
            ..
        })
    ));
    let resume = |token: Bytes| {
        Some(Resume {
            token,
            attach_sequence: 2,
        })
    };
    let stranger = node.hello(resume(Bytes::from_static(&[7; 32]))).await;
    assert!(stranger.is_err(), "no session of this token: a new one");
    assert!(node.hello(resume(token)).await.is_ok());
    node.engine.stop().await;
}
