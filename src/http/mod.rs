//! stub
/// r
pub fn router(_: std::sync::Arc<crate::engine::Engine>) -> axum::Router { axum::Router::new() }
