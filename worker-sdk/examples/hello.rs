//! A worker for jobs of kind `greet`: `cargo run --example hello`.

use worker_sdk::{Error, Worker};

#[tokio::main]
async fn main() -> Result<(), Error> {
    Worker::builder("http://127.0.0.1:7070")
        .handler("greet", |_, name: String| async move {
            Ok(format!("hello, {name}"))
        })
        .build()?
        .run()
        .await
}
