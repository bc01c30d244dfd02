//! A node and a client of bare bytes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::engine::{Engine, Options};
use crate::job::NodeId;
use crate::ready::ReadyList;
use crate::ready::memory::MemoryReady;
use crate::store::Store;
use crate::store::sqlite::SqliteStore;
use crate::telemetry::Metrics;

/// A node of its own, over a file that goes with it.
pub struct Node {
    pub engine: Arc<Engine>,
    _file: TempDir,
}

impl Node {
    async fn start(ready: Arc<dyn ReadyList>) -> Self {
        let file = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&file.path().join("jobs.db"))
            .await
            .unwrap();
        store.migrate().await.unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let node = NodeId(uuid::Uuid::new_v4());
        let engine = Engine::start(Arc::new(store), ready, node, metrics, Options::default());
        Self {
            engine,
            _file: file,
        }
    }
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect(&self.text)
    }

    /// Status, reason and fields of a problem, after checking that it is one.
    pub fn problem(&self) -> (u16, String, Vec<String>) {
        assert!(
            self.head.contains("content-type: application/problem+json"),
            "{}{}",
            self.head,
            self.text
        );
        let body = self.json();
        assert_eq!(body["status"], self.status);
        assert_eq!(body["type"], "about:blank");
        assert!(body["title"].is_string() && body["detail"].is_string());
        let fields = body["errors"].as_array().into_iter().flatten();
        let fields = fields.map(|e| e["field"].as_str().unwrap().to_owned());
        (
            self.status,
            body["reason"].as_str().unwrap().to_owned(),
            fields.collect(),
        )
    }
}

pub async fn serve() -> (SocketAddr, Node) {
    serve_over(Arc::new(MemoryReady::new())).await
}

pub async fn serve_over(ready: Arc<dyn ReadyList>) -> (SocketAddr, Node) {
    let node = Node::start(ready).await;
    let router = crate::http::router(Arc::clone(&node.engine));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, node)
}

/// Sends bytes as they are and reads the answer to its end.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A refused body may be answered before all of it is taken.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").expect("an answer");
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_ascii_lowercase(),
        text: text.to_owned(),
    }
}

pub async fn call(address: SocketAddr, line: &str, headers: &str, body: &[u8]) -> Answer {
    let mut bytes =
        format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}").into_bytes();
    if !body.is_empty() {
        bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    raw(address, &bytes).await
}

pub async fn post(address: SocketAddr, path: &str, body: impl AsRef<[u8]>) -> Answer {
    let json = "content-type: application/json\r\n";
    call(address, &format!("POST {path}"), json, body.as_ref()).await
}

pub async fn fetch(address: SocketAddr, path: &str) -> Answer {
    call(address, &format!("GET {path}"), "", b"").await
}
