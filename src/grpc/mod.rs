//! The gRPC face: the services over the engine, with health and reflection.

mod bulks;
pub mod codec;
mod convert;
mod frames;
mod jobs;
mod leases;
mod patience;
mod queues;
mod status;

use std::sync::Arc;

use axum::middleware::map_request;
use http::Request;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::Layer;
use tower::util::MapRequest;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::job::limits::MESSAGE_BYTES_MAX;
use crate::proto;
use proto::bulk_service_server::BulkServiceServer;
use proto::job_service_server::JobServiceServer;
use proto::queue_service_server::QueueServiceServer;
use proto::worker_service_server::WorkerServiceServer;

/// What answers gRPC calls, and what tells the health service how the node is.
pub struct Face {
    /// All services.
    pub routes: axum::Router,
    health: HealthReporter,
}

/// Builds the services over an engine. They are NOT_SERVING until [`Face::serving`] says otherwise.
///
/// # Errors
/// `Internal` if the descriptors that were compiled in are broken.
pub fn face(engine: Arc<Engine>) -> Result<Face> {
    let (health, health_server) = health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that clients that know us by reflection alone can read the details of errors.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let jobs = JobServiceServer::new(jobs::Jobs(engine.clone()));
    let queues = QueueServiceServer::new(queues::Queues(engine.clone()));
    let bulks = BulkServiceServer::new(bulks::Bulks(engine.clone()));
    let leases = WorkerServiceServer::new(leases::Leases(engine));
    let routes = Routes::new(health_server)
        .add_service(jobs.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(queues.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(bulks.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(leases.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(reflection().build_v1().map_err(Error::internal)?)
        .add_service(reflection().build_v1alpha().map_err(Error::internal)?)
        .prepare()
        .into_axum_router()
        .layer(map_request(async |request| patience::bounded(request)));
    Ok(Face { routes, health })
}

/// The services as browsers can call them: gRPC-Web, over HTTP/1.1 too.
pub type Web =
    GrpcWebService<MapRequest<axum::Router, fn(Request<Plain>) -> Request<axum::body::Body>>>;
type Plain = tonic::body::Body;

/// Puts gRPC-Web before the services. A stream of both directions cannot be had by it.
pub fn web(routes: axum::Router) -> Web {
    GrpcWebLayer::new().layer(MapRequest::new(routes, |request: Request<Plain>| {
        request.map(axum::body::Body::new)
    }))
}

impl Face {
    /// Tells the health service whether the node serves, for each service and for the whole.
    pub fn serving(&self) -> Serving {
        Serving(self.health.clone())
    }
}

/// A handle to the health service.
#[derive(Clone)]
pub struct Serving(HealthReporter);

impl Serving {
    /// Sets the status of all services.
    pub async fn set(&self, serving: bool) {
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        let names = [
            job_service_name(),
            queue_service_name(),
            bulk_service_name(),
            worker_service_name(),
        ];
        for service in names.into_iter().chain([""]) {
            self.0.set_service_status(service, status).await;
        }
    }
}

fn job_service_name() -> &'static str {
    <JobServiceServer<jobs::Jobs> as tonic::server::NamedService>::NAME
}

fn queue_service_name() -> &'static str {
    <QueueServiceServer<queues::Queues> as tonic::server::NamedService>::NAME
}

fn bulk_service_name() -> &'static str {
    <BulkServiceServer<bulks::Bulks> as tonic::server::NamedService>::NAME
}

fn worker_service_name() -> &'static str {
    <WorkerServiceServer<leases::Leases> as tonic::server::NamedService>::NAME
}
