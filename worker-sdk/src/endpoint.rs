//! How connections are made, for clients and workers alike.

use std::time::Duration;

use tonic::transport::Endpoint;

use crate::error::Error;

/// A connection that is not made by then is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A client's quiet connection is asked for a sign of life this often, and has
/// this long to answer: a peer that vanished without a word is noticed within 30 s.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// `http://host:port`; a bare `host:port` means the same.
pub(crate) fn endpoint(url: &str) -> Result<Endpoint, Error> {
    let url = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    if !url.starts_with("http://") {
        return Err(Error::Config(format!(
            "server {url}: only http:// is spoken"
        )));
    }
    let endpoint = Endpoint::from_shared(url.clone())
        .map_err(|error| Error::Config(format!("server {url}: {error}")))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// As a worker needs it: a peer that vanished without a word must be noticed long
/// before the leases run out, for another node to be met while handlers still run.
pub(crate) fn watched(endpoint: Endpoint, lease_ttl: Duration) -> Endpoint {
    let ping = (lease_ttl / 6).clamp(Duration::from_secs(1), PING_TIMEOUT);
    endpoint
        .http2_keep_alive_interval(ping)
        .keep_alive_timeout(ping)
}
