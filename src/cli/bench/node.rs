//! A server that the benchmark starts: a process of the same program, on a port that the system chooses.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::left::{Left, Thing};
use crate::cli::exit::Failure;

/// It migrates a database at its start.
const START_WITHIN: Duration = Duration::from_secs(60);
/// No worker is connected any more when it is told to end.
const END_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// What it says when it can be reached, followed by its URL; on stdout or in its log.
const LISTENING: &str = "listening on ";
/// The last bytes of a log that are told when something goes wrong.
const TAIL: usize = 2_000;

/// A running server; killed if it is dropped.
pub(super) struct Node {
    child: Child,
    pub(super) url: String,
    log: PathBuf,
    left: Left,
}

impl Node {
    /// Starts it with these arguments and settings and none of the environment's, and waits until it listens. Settings
    /// go by the environment, where no other user sees their passwords.
    pub(super) async fn start(
        args: &[String],
        settings: &[(&'static str, String)],
        log: PathBuf,
        left: Left,
    ) -> Result<Self, Failure> {
        let trouble = |why: std::io::Error| Failure::trouble(format!("cannot start a node: {why}"));
        let program = std::env::current_exe().map_err(trouble)?;
        let out = File::create(&log).map_err(trouble)?;
        let mut command = Command::new(program);
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("LEASEHOLD_") {
                command.env_remove(key);
            }
        }
        command
            .args(args)
            .args(["--listen", "127.0.0.1:0"])
            .env("LEASEHOLD_LOG", "warn,leasehold::cli=info")
            .envs(settings.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(out.try_clone().map_err(trouble)?)
            .stderr(out);
        // A Ctrl-C at the terminal is for the benchmark, which then ends its nodes.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().map_err(trouble)?;
        left.made(Thing::Node(child.id()));
        let mut node = Self {
            child,
            url: String::new(),
            log,
            left,
        };
        node.url = node.listening().await?;
        Ok(node)
    }

    async fn listening(&mut self) -> Result<String, Failure> {
        let until = Instant::now() + START_WITHIN;
        loop {
            if let Some(url) = url_in(&self.log) {
                return Ok(url);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failed(&format!("ended with {status}")));
            }
            if Instant::now() >= until {
                return Err(self.failed(&format!("does not listen after {START_WITHIN:?}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn failed(&self, what: &str) -> Failure {
        Failure::trouble(format!("a node {what}; it said:\n{}", tail(&self.log)))
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to leave, and waits until it has.
    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Not there any more: then it has ended, which is told below.
            let _ = kill_process(pid, Signal::TERM);
        }
        let until = Instant::now() + END_WITHIN;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if ExitStatus::success(&status) => return Ok(()),
                Ok(Some(status)) => return Err(self.failed(&format!("ended with {status}"))),
                _ if Instant::now() >= until => {
                    return Err(self.failed(&format!("had to be killed after {END_WITHIN:?}")));
                }
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Both fail only if it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.left.removed(&Thing::Node(self.pid()));
    }
}

fn url_in(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    // The line must be whole.
    let (lines, _) = text.rsplit_once('\n')?;
    let line = lines.lines().find(|line| line.contains(LISTENING))?;
    let (_, url) = line.split_once(LISTENING)?;
    // In a log of JSON more follows.
    let end = url.find(|c: char| c == '"' || c.is_whitespace());
    Some(url.get(..end.unwrap_or(url.len()))?.to_owned())
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let from = text.len().saturating_sub(TAIL);
    String::from_utf8_lossy(text.get(from..).unwrap_or_default()).into_owned()
}
