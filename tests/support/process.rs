//! A program started by a test: its output, its signals, its end.

use std::{
    collections::VecDeque,
    env,
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::until;

/// How many of its last lines are kept of each of a program's two outputs.
const LINES_MAX: usize = 2_000;

/// A running program. Killed when dropped; if the test is failing then, its log is printed.
pub struct Process {
    name: String,
    child: Child,
    output: Lines,
    log: Lines,
    readers: Vec<JoinHandle<()>>,
}

/// The leasehold binary with these arguments, and none of the environment's LEASEHOLD_* settings.
pub fn leasehold(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    for (key, _) in env::vars_os() {
        if key.to_string_lossy().starts_with("LEASEHOLD_") {
            command.env_remove(key);
        }
    }
    command.args(args);
    command
}

/// Bytes of memory that the process holds, as the kernel counts them.
pub fn process_rss(id: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
    1024 * kib
        .and_then(|kib| kib.trim().parse::<usize>().ok())
        .expect("in kB")
}

impl Process {
    /// Starts `command`; `name` says in messages which of a test's programs it is.
    pub fn start(name: &str, mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}, {command:?}: {error}"));
        let (output, log) = (Lines::default(), Lines::default());
        let readers = vec![
            output.follow(child.stdout.take().expect("stdout is piped")),
            log.follow(child.stderr.take().expect("stderr is piped")),
        ];
        Self {
            name: name.to_owned(),
            child,
            output,
            log,
            readers,
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The last lines of its standard output.
    pub fn output(&self) -> Vec<String> {
        self.output.all()
    }

    /// The last lines of its standard error, where logs go.
    pub fn log(&self) -> Vec<String> {
        self.log.all()
    }

    /// Waits until a line of its log holds `text`, and returns the first such line.
    pub async fn logged(&self, text: &str, within: Duration) -> String {
        until(
            within,
            &format!("{} logs {text:?}", self.name),
            async || self.log.find(text),
        )
        .await
    }

    /// Waits until `GET /readyz` at `address` answers 200. Fails at once when the program ends.
    pub async fn ready(&mut self, address: SocketAddr, within: Duration) {
        let what = format!("{} is ready at {address}", self.name);
        until(within, &what, async || {
            if let Some(status) = self.exit_status() {
                panic!("{} ended with {status} before it was ready", self.name);
            }
            (http_status(address, "/readyz").await == Some(200)).then_some(())
        })
        .await;
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child
            .try_wait()
            .expect("a child of ours can be waited for")
    }

    /// Waits until it has ended by itself and all it wrote has been read.
    pub async fn ended(&mut self, within: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        until(within, &what, async || {
            let status = self.exit_status()?;
            self.readers
                .iter()
                .all(JoinHandle::is_finished)
                .then_some(status)
        })
        .await
    }

    /// Asks it to end: SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends it a signal, by name: `TERM`, `INT`, `STOP`, `CONT`.
    pub fn signal(&self, signal: &str) {
        // The shell's own `kill`: a minimal system has no such program.
        let script = format!("kill -{signal} {}", self.id());
        let sent = Command::new("sh").args(["-c", &script]).status();
        assert!(
            sent.as_ref().is_ok_and(ExitStatus::success),
            "cannot send {signal} to {}: {sent:?}",
            self.name
        );
    }

    /// Ends it as `kill -9` does, and returns when it is gone.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("---- the last lines of {} ----", self.name);
            for line in self.output.all().iter().chain(&self.log.all()) {
                eprintln!("{line}");
            }
        }
    }
}

/// The status that a GET of `path` is answered with; None when there is no answer within 2 s.
pub async fn http_status(address: SocketAddr, path: &str) -> Option<u16> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut start = [0; "HTTP/1.1 200".len()];
        stream.read_exact(&mut start).await.ok()?;
        std::str::from_utf8(&start)
            .ok()?
            .strip_prefix("HTTP/1.1 ")?
            .parse()
            .ok()
    };
    timeout(Duration::from_secs(2), ask).await.ok().flatten()
}

/// The last lines of an output, filled by a thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<VecDeque<String>>>);

impl Lines {
    fn follow(&self, output: impl Read + Send + 'static) -> JoinHandle<()> {
        let lines = self.clone();
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output
                .read_until(b'\n', &mut line)
                .is_ok_and(|length| length > 0)
            {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                let mut kept = lines.lock();
                if kept.len() == LINES_MAX {
                    kept.pop_front();
                }
                kept.push_back(text);
            }
        })
    }

    fn all(&self) -> Vec<String> {
        self.lock().iter().cloned().collect()
    }

    fn find(&self, text: &str) -> Option<String> {
        self.lock().iter().find(|line| line.contains(text)).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
