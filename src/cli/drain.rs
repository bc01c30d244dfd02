//! `leasehold drain`: a node on this machine leaves in order, and the command ends when it has. For the stop hooks of
//! supervisors, and for hands that want to see it go. It asks by SIGTERM, which needs no right but that of the node's
//! own user, and no server that answers; `leasehold nodes drain` asks from elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::time::Instant;

use super::exit::{Exit, Failure};
use super::terminal;

/// How often it is looked whether the node is still there.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Flags of `leasehold drain`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Process id of the node; 1 in a container of its own
    pid: i32,
    /// How long to wait for its end; more than its drain_grace
    #[arg(long, default_value = "45s", value_parser = humantime::parse_duration)]
    within: Duration,
}

/// Asks the node to leave, and waits.
pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    // Negative numbers stand for groups, which nobody means here.
    let pid = Some(args.pid)
        .filter(|pid| *pid > 0)
        .and_then(Pid::from_raw)
        .ok_or_else(|| Failure::usage("the process id must be above 0"))?;
    must_be_ours(args.pid)?;
    kill_process(pid, Signal::TERM)
        .map_err(|why| Failure::trouble(format!("process {}: {why}", args.pid)))?;
    terminal::note(format_args!(
        "process {} was asked to leave; waiting for its end",
        args.pid
    ));
    let until = Instant::now() + args.within;
    // A process that is another's by now cannot be asked, and is none of ours.
    while test_kill_process(pid) != Err(Errno::SRCH) && must_be_ours(args.pid).is_ok() {
        if Instant::now() >= until {
            let why = format!(
                "process {} is still there after {:?}",
                args.pid, args.within
            );
            return Err(Failure::trouble(why));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    terminal::note(format_args!("process {} has left", args.pid));
    Ok(Exit::Done)
}

/// A number that was mistyped must not end another program. (Where there is no /proc, nothing can be said.)
fn must_be_ours(pid: i32) -> Result<(), Failure> {
    if !PathBuf::from("/proc/self/status").exists() {
        return Ok(());
    }
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_err(|_| Failure::usage(format!("there is no process {pid}")))?;
    // A process that has ended and is not waited for yet keeps its name, but has no program any more.
    let runs = std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
    match runs && name.trim_end() == env!("CARGO_PKG_NAME") {
        true => Ok(()),
        false => Err(Failure::usage(format!(
            "process {pid} is no {}: it is {}",
            env!("CARGO_PKG_NAME"),
            name.trim_end()
        ))),
    }
}
