//! One port for everything: HTTP/1.1 and h2c are told apart, gRPC goes to its services, the rest to the HTTP face.
//!
//! The accept loop is our own, as neither axum's nor tonic's exposes every timeout that hostile clients call for.

mod door;
pub mod web;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use crate::engine::Engine;
use crate::error::Result;
use crate::job::limits::STREAMS_MAX;
use crate::{grpc, http as http_face};
use web::{Page, Pages};

/// Connections at once; more are refused at the door.
const CONNECTIONS_MAX: usize = 2 * STREAMS_MAX;
/// Which protocol a connection speaks must be clear within this.
const BEGUN_WITHIN: Duration = Duration::from_secs(30);
/// HTTP/1.1: the head of a request must be whole within this; it bounds idle keep-alive, too.
const HEAD_WITHIN: Duration = Duration::from_secs(60);
/// HTTP/2: an answer to a PING must come within this.
const PING_WITHIN: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(20);
/// HTTP/2: calls and streams of one connection.
const STREAMS_PER_CONNECTION: u32 = 1_000;
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;
/// HTTP/2 windows: of a stream, a full frame of jobs; of a connection, several.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// After the drain, how long calls under way may take to end.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// After an accept that failed (no file descriptors), how long until the next.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How a node serves.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long streams and calls may take to end once the node is to stop.
    pub drain_grace: Duration,
    /// Origins of pages that may call it from a browser, beside its own.
    pub web_origins: Vec<String>,
}

/// Serves until `shutdown` is cancelled; then drains: no more workers, those that are here move or finish within
/// the grace, calls end, loops stop. Returns when nothing of the node is left running.
///
/// # Errors
/// `Internal` if the faces cannot be built.
pub async fn serve(
    listener: TcpListener,
    engine: Arc<Engine>,
    options: Options,
    shutdown: CancellationToken,
) -> Result<()> {
    let grpc = grpc::face(engine.clone())?;
    let serving = grpc.serving();
    serving.set(true).await;
    let faces = Faces {
        grpc_web: grpc::web(grpc.routes.clone()),
        grpc: grpc.routes,
        http: http_face::router(engine.clone()),
        pages: Pages::of(&options.web_origins),
    };
    let closing = CancellationToken::new();
    let connections = TaskTracker::new();
    let accepting = tokio::spawn(accept(
        listener,
        faces,
        connections.clone(),
        closing.clone(),
    ));

    let mut health = tokio::time::interval(Duration::from_secs(1));
    // Cancel safe: both branches only wait.
    while tokio::select! { () = shutdown.cancelled() => false, _ = health.tick() => true } {
        serving.set(engine.health().store).await;
    }
    // Calls are still answered while workers leave; load balancers see NOT_SERVING and take this node out.
    serving.set(false).await;
    engine.drain(options.drain_grace).await;
    closing.cancel();
    let _ = accepting.await;
    connections.close();
    if tokio::time::timeout(CLOSE_WITHIN, connections.wait())
        .await
        .is_err()
    {
        warn!(
            connections = connections.len(),
            "connections are cut: their peers do not answer"
        );
    }
    engine.stop().await;
    info!("server stopped");
    Ok(())
}

#[derive(Clone)]
struct Faces {
    grpc: axum::Router,
    grpc_web: grpc::Web,
    http: axum::Router,
    pages: Pages,
}

impl Faces {
    async fn call(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        match self.pages.page(&request) {
            Page::Ours => self.face(request).await,
            Page::Named => {
                let pages = self.pages.clone();
                let face = tower::service_fn(move |request| self.clone().face(request));
                pages.answer(request, face).await
            }
            Page::Foreign => Ok(http_face::refuse_page()),
        }
    }

    async fn face(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let content_type = request.headers().get(header::CONTENT_TYPE);
        let is = |kind: &[u8]| content_type.is_some_and(|value| value.as_bytes().starts_with(kind));
        if is(b"application/grpc-web") {
            let answer = self.grpc_web.oneshot(request).await?;
            Ok(answer.map(Body::new))
        } else if is(b"application/grpc") {
            self.grpc.oneshot(request.map(Body::new)).await
        } else {
            self.http.oneshot(request.map(Body::new)).await
        }
    }
}

async fn accept(
    listener: TcpListener,
    faces: Faces,
    connections: TaskTracker,
    closing: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(door::places(CONNECTIONS_MAX)));
    // Cancel safe: a connection that was not accepted yet stays in the kernel's queue.
    while let Some(accepted) = closing.run_until_cancelled(listener.accept()).await {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "no connection accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                connections.spawn(connection(stream, faces.clone(), closing.clone(), place));
            }
            Err(_) => debug!(%peer, "connection refused: too many"),
        }
    }
}

async fn connection(
    stream: TcpStream,
    faces: Faces,
    closing: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(BEGUN_WITHIN, door::begun(stream)).await else {
        return;
    };
    let service = TowerToHyperService::new(tower::service_fn(move |request| {
        faces.clone().call(request)
    }));
    let builder = builder();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // Cancel safe: the connection is pinned outside and only polled here.
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ends");
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(4 * HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WITHIN)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX));
    builder
}
