//! The worker of the demonstration: kind `sha256-file`, payload `{"path": "src/main.rs"}`, output the file's hash.
//!
//! It reads nothing outside its folder, whoever enqueues: a path that leads out of it is a permanent failure.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use worker_sdk::{Context, JobError, Worker};

use super::exit::{Exit, Failure};
use super::remote::{DEFAULT_SERVER, failure_of};
use crate::telemetry::start_logs;

/// The kind that it runs.
pub(super) const KIND: &str = "sha256-file";
/// The queue of the demonstration.
pub(super) const QUEUE: &str = "demo";
/// Read at once; between two reads it looks whether it should stop.
const BLOCK_BYTES: usize = 256 * 1024;

/// Flags of `leasehold demo-worker`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Server whose jobs it runs
    #[arg(long, value_name = "URL", env = "LEASEHOLD_SERVER", default_value = DEFAULT_SERVER)]
    server: String,
    /// Folder whose files it hashes; it reads nothing outside
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,
    /// Queue that it takes jobs from
    #[arg(long, value_name = "NAME", default_value = QUEUE)]
    queue: String,
    /// Files that it hashes at once
    #[arg(long, value_name = "N", default_value_t = at_once())]
    concurrency: usize,
    /// Level or filter of the logs
    #[arg(
        long,
        value_name = "FILTER",
        env = "LEASEHOLD_LOG",
        default_value = "info"
    )]
    log: String,
}

/// `leasehold demo-worker`: runs until SIGTERM.
pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    start_logs(&args.log)?;
    let root = folder(&args.root)?;
    let worker = worker(&args.server, root, &args.queue, args.concurrency).map_err(failure_of)?;
    tracing::info!(
        server = args.server,
        queue = args.queue,
        kind = KIND,
        "worker starts"
    );
    worker.run().await.map_err(failure_of)?;
    Ok(Exit::Done)
}

/// A worker that hashes files below `root`, which is [`folder`]'s.
pub(super) fn worker(
    server: &str,
    root: PathBuf,
    queue: &str,
    concurrency: usize,
) -> Result<Worker, worker_sdk::Error> {
    Worker::builder(server)
        .queue(queue)
        .concurrency(concurrency)
        .blocking_handler(KIND, move |context, input: Input| {
            hash(&context, &root, &input.path)
        })
        .build()
}

/// As many files at once as there are processors.
pub(super) fn at_once() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

/// The folder under its real name, by which paths that lead out of it are known.
pub(super) fn folder(path: &Path) -> Result<PathBuf, Failure> {
    let bad = |why: String| Failure::usage(format!("{}: {why}", path.display()));
    let real = path.canonicalize().map_err(|why| bad(why.to_string()))?;
    match real.is_dir() {
        true => Ok(real),
        false => Err(bad("is no folder".into())),
    }
}

/// Payload of a `sha256-file` job.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Input {
    /// Below the worker's folder, with `/` between its parts.
    pub(super) path: String,
}

/// Output of a `sha256-file` job.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Output {
    /// 64 hexadecimal digits.
    pub(super) sha256: String,
    /// Size of what was hashed.
    pub(super) bytes: u64,
}

fn hash(context: &Context, root: &Path, path: &str) -> Result<Output, JobError> {
    let mut file = open(root, path)?;
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut bytes = 0;
    loop {
        if context.is_cancelled() {
            return Err(JobError::new("told to stop").with_type("Stopped"));
        }
        let read = match file.read(&mut block) {
            Ok(0) => break,
            Ok(read) => block.get(..read).unwrap_or_default(),
            Err(why) if why.kind() == ErrorKind::Interrupted => continue,
            Err(why) => return Err(unreadable(&why)),
        };
        hash.update(read);
        bytes += read.len() as u64;
    }
    let sha256 = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(Output { sha256, bytes })
}

/// Opens a regular file below `root`, wherever links on the way may lead.
fn open(root: &Path, path: &str) -> Result<File, JobError> {
    let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if path.is_empty() || path.contains('\0') || !Path::new(path).components().all(inside) {
        return Err(refused("path must be relative, without `..`"));
    }
    let real = root
        .join(path)
        .canonicalize()
        .map_err(|why| unreadable(&why))?;
    if !real.starts_with(root) {
        return Err(refused("path leads out of the worker's folder"));
    }
    // Opening a pipe would wait for its other end.
    if !real.metadata().map_err(|why| unreadable(&why))?.is_file() {
        return Err(refused("path is no regular file"));
    }
    File::open(real).map_err(|why| unreadable(&why))
}

fn refused(why: &str) -> JobError {
    JobError::new(why).with_type("PathRefused").permanent()
}

/// A file that is not there, or not for us, will not be by trying again; what else goes wrong with a disk may pass.
fn unreadable(why: &std::io::Error) -> JobError {
    let failure = JobError::new(why).with_type("Unreadable");
    match why.kind() {
        ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::NotADirectory => {
            failure.permanent()
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn why(root: &Path, path: &str) -> String {
        open(root, path).unwrap_err().to_string()
    }

    #[test]
    fn nothing_outside_the_folder_is_read() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().canonicalize().unwrap().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(outer.path().join("secret"), "s").unwrap();
        std::fs::write(root.join("sub/file"), "f").unwrap();
        assert!(open(&root, "sub/file").is_ok());
        assert!(open(&root, "./sub/file").is_ok());
        for path in ["../secret", "/etc/passwd", "sub/../../secret", "", "a\0b"] {
            assert!(why(&root, path).contains("must be relative"), "{path}");
        }
        assert!(why(&root, "sub").contains("no regular file"));
        assert!(why(&root, "absent").starts_with("Unreadable"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("../secret", root.join("link")).unwrap();
            std::os::unix::fs::symlink("..", root.join("up")).unwrap();
            std::os::unix::fs::symlink("sub/file", root.join("inner")).unwrap();
            assert!(why(&root, "link").contains("leads out"));
            assert!(why(&root, "up/secret").contains("leads out"));
            assert!(open(&root, "inner").is_ok());
        }
    }
}
