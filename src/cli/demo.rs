//! `dev --demo DIR`: one job for each file below a folder, through the same gRPC that every client uses.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use worker_sdk::{Client, Job, JobState, NewJob};

use super::demo_worker::{Input, KIND, Output, QUEUE};
use super::exit::Failure;
use super::remote::failure_of;
use super::terminal;

/// Jobs of one demonstration.
const FILES_MAX: usize = 1_000;
/// Names looked at while walking, so that an endless tree ends.
const NAMES_MAX: usize = 200_000;
/// Jobs of one call. A path has at most 4 KiB, so a call has at most 1 MiB.
const BATCH: usize = 250;
/// Results awaited at once.
const WAITS: usize = 64;
/// How long one file may take.
const FILE_WITHIN: Duration = Duration::from_secs(3600);
/// A read that failed may be tried so often.
const TRIES: u32 = 3;

/// How a demonstration went.
#[derive(Debug)]
pub(super) struct Report {
    /// Jobs that did not succeed.
    pub(super) failed: usize,
    /// A file that there is, and its job: something to try next.
    pub(super) example: Option<(String, String)>,
}

/// Enqueues a job for each file below `root` and shows the results as they are recorded.
pub(super) async fn run(client: &Client, root: PathBuf) -> Result<Report, Failure> {
    let shown = terminal::plain(&root.display().to_string());
    let walked = tokio::task::spawn_blocking(move || walk(&root)).await;
    let Walked {
        files,
        more,
        left_out,
    } = walked.map_err(|why| Failure::trouble(why.to_string()))?;
    let screen = Screen::new(files.len());
    if more {
        screen.remark(&format!(
            "there are more files below {shown}: only the first {} are taken",
            files.len()
        ));
    }
    if left_out > 0 {
        screen.remark(&format!(
            "left out, as they cannot be read or named in JSON: {left_out}"
        ));
    }

    let start = Instant::now();
    let mut ids = Vec::with_capacity(files.len());
    for paths in files.chunks(BATCH) {
        ids.extend(enqueue(client, paths).await?);
    }
    let example = files.first().cloned().zip(ids.first().cloned());
    let mut results = stream::iter(files.into_iter().zip(ids))
        .map(|(path, id)| async move { (client.wait(&id, FILE_WITHIN).await, path) })
        .buffer_unordered(WAITS);
    let (mut done, mut failed) = (0_usize, 0);
    while let Some((job, path)) = results.next().await {
        done += 1;
        match outcome(&job.map_err(failure_of)?) {
            Ok(output) => screen.hashed(&output.sha256, &path),
            Err(why) => {
                failed += 1;
                screen.failed(&path, &why);
            }
        }
    }
    screen.end();
    screen.remark(&summary(done, failed, start.elapsed()));
    Ok(Report { failed, example })
}

async fn enqueue(client: &Client, paths: &[String]) -> Result<Vec<String>, Failure> {
    let job = |path: &String| {
        let job = NewJob::new(KIND, &Input { path: path.clone() })?;
        let backoff = Duration::from_millis(500);
        Ok(job
            .queue(QUEUE)
            .max_attempts(TRIES)
            .backoff(backoff, 2.0, backoff * 4))
    };
    let jobs = paths
        .iter()
        .map(job)
        .collect::<Result<Vec<_>, worker_sdk::Error>>()
        .map_err(failure_of)?;
    let accepted = client.enqueue_batch(jobs).await.map_err(failure_of)?;
    Ok(accepted
        .into_iter()
        .map(|enqueued| enqueued.job.id)
        .collect())
}

fn outcome(job: &Job) -> Result<Output, String> {
    match job.state() {
        JobState::Succeeded => job.output_as().map_err(|why| why.to_string()),
        _ => Err(job
            .last_failure
            .as_ref()
            .map_or_else(|| "cancelled".into(), |failure| failure.message.clone())),
    }
}

fn summary(done: usize, failed: usize, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let rate = if seconds > 0.0 {
        done as f64 / seconds
    } else {
        0.0
    };
    format!("{done} jobs in {seconds:.2} s, {rate:.0} jobs/s, {failed} failed")
}

/// Where results appear: a bar for people, lines for programs. Remarks among the lines begin with `#`, so that the
/// whole is a file that `sha256sum -c` reads.
struct Screen {
    bar: Option<ProgressBar>,
}

impl Screen {
    fn new(files: usize) -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let bar =
                ProgressBar::with_draw_target(Some(files as u64), ProgressDrawTarget::stdout());
            let style =
                ProgressStyle::with_template("{bar:40} {pos}/{len} files hashed, {elapsed}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar }
    }

    fn hashed(&self, sha256: &str, path: &str) {
        match &self.bar {
            Some(bar) => bar.inc(1),
            None => terminal::line(checksum(sha256, path)),
        }
    }

    fn failed(&self, path: &str, why: &str) {
        let text = format!(
            "failed: {}: {}",
            terminal::plain(path),
            terminal::plain(why)
        );
        match &self.bar {
            Some(bar) => {
                bar.println(text);
                bar.inc(1);
            }
            None => terminal::note(text),
        }
    }

    fn remark(&self, text: &str) {
        match &self.bar {
            Some(bar) if !bar.is_finished() => bar.println(text),
            Some(_) => terminal::line(text),
            None => terminal::line(format_args!("# {text}")),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}

/// As sha256sum writes it: a name with a line break or a backslash is escaped, and its line begins with a backslash.
fn checksum(sha256: &str, path: &str) -> String {
    match path.contains(['\\', '\n', '\r']) {
        true => {
            let path = path
                .replace('\\', r"\\")
                .replace('\n', r"\n")
                .replace('\r', r"\r");
            format!("\\{sha256}  {path}")
        }
        false => format!("{sha256}  {path}"),
    }
}

#[derive(Debug, Default)]
struct Walked {
    /// Relative to the folder, in the order of their names.
    files: Vec<String>,
    /// There are more than were taken.
    more: bool,
    /// Folders that cannot be read, names that are not UTF-8.
    left_out: usize,
}

/// Regular files below `root`, without hidden ones, what is in a folder named `target`, and behind links.
fn walk(root: &Path) -> Walked {
    let mut walked = Walked::default();
    let mut looked = 0;
    let mut waiting = vec![(root.to_owned(), String::new())];
    while let Some((folder, prefix)) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            walked.left_out += 1;
            continue;
        };
        let mut folders = Vec::new();
        let mut files = Vec::new();
        for entry in entries.flatten() {
            looked += 1;
            if looked > NAMES_MAX {
                walked.more = true;
                break;
            }
            let Ok(name) = entry.file_name().into_string() else {
                walked.left_out += 1;
                continue;
            };
            // Of the entry itself: a link is neither file nor folder here.
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            let path = format!("{prefix}{name}");
            if kind.is_file() {
                files.push(path);
            } else if kind.is_dir() && name != "target" {
                folders.push((entry.path(), format!("{path}/")));
            }
        }
        files.sort_unstable();
        folders.sort_unstable_by(|one, other| other.cmp(one));
        walked.files.append(&mut files);
        waiting.append(&mut folders);
        if walked.files.len() > FILES_MAX || looked > NAMES_MAX {
            walked.more = true;
            break;
        }
    }
    walked.files.truncate(FILES_MAX);
    walked
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn made(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        root
    }

    #[test]
    fn hidden_files_target_and_links_are_left_out() {
        let root = made(&[
            "b",
            "a/x",
            "a/.hidden",
            ".git/config",
            "target/debug/x",
            "a/target/y",
            "z/target",
        ]);
        #[cfg(unix)]
        std::os::unix::fs::symlink("/etc", root.path().join("link")).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("b", root.path().join("link-to-file")).unwrap();
        let walked = walk(root.path());
        assert_eq!(walked.files, ["b", "a/x", "z/target"]);
        assert!(!walked.more);
    }

    #[test]
    fn no_more_than_a_thousand_files_are_taken_and_it_is_said() {
        let names: Vec<String> = (0..=FILES_MAX)
            .map(|n| format!("d{}/f{n}", n % 3))
            .collect();
        let walked = walk(made(&names.iter().map(String::as_str).collect::<Vec<_>>()).path());
        assert_eq!((walked.files.len(), walked.more), (FILES_MAX, true));
    }

    #[test]
    fn a_name_with_a_line_break_stays_on_one_line() {
        assert_eq!(checksum("00", "a b"), "00  a b");
        assert_eq!(checksum("00", "a\nb\\c"), r"\00  a\nb\\c");
    }
}
