//! What workers say on the way: progress, and lines.

use leasehold::job::{Lease, LogLevel, NewLine, NewLines, Progress, Verdict};
use leasehold::store::{LogReport, Report};

use super::super::model::No;
use super::Play;

impl Play {
    pub(super) async fn report(
        &mut self,
        job: No,
        lease: usize,
        revision: u64,
        has_checkpoint: bool,
    ) {
        let Some(job) = self.some_job(job) else {
            return;
        };
        let Some((attempt, by)) = self.some_lease(job, lease) else {
            return;
        };
        let checkpoint = has_checkpoint.then(|| format!("{attempt} {revision}"));
        let expected = self
            .model
            .report(job, attempt, by, revision, checkpoint.as_deref());
        let report = Report {
            lease: Lease {
                job: self.jobs[job].id,
                attempt,
            },
            session: self.sessions[by].session,
            progress: Progress {
                checkpoint: checkpoint.map(Into::into),
                revision,
                ..Progress::default()
            },
        };
        let told = self.world.store.report(vec![report]).await;
        assert_eq!(told.expect("report answers"), [expected]);
    }

    /// Lines that say their own numbers in their attempt.
    pub(super) async fn say(&mut self, job: No, lease: usize, first: u64, count: usize) {
        let Some(job) = self.some_job(job) else {
            return;
        };
        let Some((attempt, by)) = self.some_lease(job, lease) else {
            return;
        };
        let line = |n: u64| NewLine {
            elapsed: None,
            level: LogLevel::Info,
            message: n.to_string(),
        };
        let lines = (first..).take(count).map(line).collect();
        let lease = Lease {
            job: self.jobs[job].id,
            attempt,
        };
        let report = LogReport {
            lease,
            session: self.sessions[by].session,
            lines: NewLines::check("log", first, lines).expect("within bounds"),
        };
        let expected = self.model.say(job, attempt, by, first, count as u64);
        let told = self.world.store.log(vec![report]).await;
        assert_eq!(told.expect("log answers"), [expected.clone()]);
        // What is left of the lines of a job that is gone, nobody asks for.
        if expected == Verdict::Unknown {
            return;
        }
        let log = self.world.store.lines(vec![(lease.job, 0)]).await;
        let log = log.expect("lines answers").remove(0).into_iter();
        let log: Vec<_> = log
            .map(|line| (line.number, line.attempt, line.message))
            .collect();
        let (expected, said) = self.model.log(job);
        assert_eq!(log, expected);
        let versions = self.world.store.versions(vec![lease.job]).await;
        let version = versions.expect("versions answers")[0];
        assert_eq!(version.map_or(0, |version| version.lines), said);
    }
}
