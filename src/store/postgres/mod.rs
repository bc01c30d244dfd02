//! Stub.
pub use super::sqlite::SqliteStore as PostgresStore;
impl PostgresStore {
    /// Stub.
    pub async fn connect(url: &str) -> crate::error::Result<Self> { Self::open(std::path::Path::new(url)).await }
}
