//! A worker beside axum in one process: the request path only enqueues, and one signal ends both.
//!
//!     leasehold dev                                # in one terminal
//!     cargo run -p worker-sdk --example beside_axum
//!     curl -s -X POST localhost:8080/orders/17     # and then GET what it answers
//!
//! `PORT` chooses the port.

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use worker_sdk::{Client, Error, JobState, TypedJob, Worker};

#[derive(Serialize, Deserialize)]
struct Ship {
    order: u64,
}

impl TypedJob for Ship {
    const KIND: &'static str = "ship";
    const QUEUE: &'static str = "orders";
    type Output = String;
}

/// 202 and where to look, at once.
async fn order(State(client): State<Client>, Path(order): Path<u64>) -> (StatusCode, String) {
    let job = Ship { order }
        .job()
        .map(|job| job.idempotency_key(format!("ship-{order}")));
    let accepted = match job {
        Ok(job) => client.enqueue(job).await,
        Err(error) => Err(error),
    };
    match accepted {
        Ok(accepted) => (
            StatusCode::ACCEPTED,
            format!("/orders/jobs/{}", accepted.job.id),
        ),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

async fn look(State(client): State<Client>, Path(id): Path<String>) -> (StatusCode, String) {
    match client.wait(&id, Duration::from_secs(10)).await {
        Ok(job) if job.state() == JobState::Succeeded => {
            let text = job.output_of::<Ship>().unwrap_or_default();
            (StatusCode::OK, text)
        }
        Ok(job) => (StatusCode::OK, job.state().as_str_name().to_owned()),
        Err(Error::NotFinal(_)) => (StatusCode::ACCEPTED, "on its way".into()),
        Err(error) => (StatusCode::NOT_FOUND, error.to_string()),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::var("LEASEHOLD_SERVER").unwrap_or("http://127.0.0.1:7070".into());
    let port = std::env::var("PORT").unwrap_or("8080".into()).parse()?;
    let app = Router::new()
        .route("/orders/{order}", post(order))
        .route("/orders/jobs/{id}", get(look))
        .with_state(Client::connect_lazy(&server)?);
    let worker = Worker::builder(&server)
        .typed(|_, job: Ship| async move { Ok(format!("order {} is on its way", job.order)) })
        .build()?;

    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on {}", listener.local_addr()?);
    // The worker ends by SIGTERM or SIGINT, once its handlers have; then the web server does.
    let mut worker = tokio::spawn(worker.run());
    let ended = async move {
        if let Ok(Err(error)) = (&mut worker).await {
            eprintln!("the worker: {error}");
        }
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(ended)
        .await?;
    Ok(())
}
