//! What attempts say, for those who listen.

use super::*;
use crate::engine::{logs, results};
use crate::job::{Ending, Lease, LogLevel, NewLine, NewLines, Outcome, SessionId};
use crate::store::{Ask, Attached, Granted, LogReport, NewSession};

struct Talker<'a> {
    node: &'a Node,
    lease: Lease,
    session: SessionId,
    last: u64,
}

impl<'a> Talker<'a> {
    /// Takes a job.
    async fn of(node: &'a Node, job: JobId) -> Self {
        let store = &node.engine.core.store;
        let session = SessionId::of_token(&[7; 32]);
        let new = NewSession {
            id: session,
            node: node.engine.core.node,
            worker: "w".into(),
            sdk: String::new(),
            ttl: SOON,
        };
        store.open_session(new).await.unwrap();
        let to = Attached { session, attach: 1 };
        let asks = vec![Ask { job, to }];
        let granted = store.grant(node.engine.core.node, asks).await.unwrap();
        let [Granted::Lease(leased)] = &granted[..] else {
            panic!("{granted:?}");
        };
        Self {
            node,
            lease: leased.lease,
            session,
            last: 0,
        }
    }

    /// Says so many lines, and returns once they are recorded.
    async fn says(&mut self, count: u64) {
        let line = |n: u64| NewLine {
            elapsed: None,
            level: LogLevel::Info,
            message: n.to_string(),
        };
        let numbers = self.last + 1..=self.last + count;
        let lines = NewLines::check("log", self.last + 1, numbers.map(line).collect());
        self.last += count;
        let report = LogReport {
            lease: self.lease,
            session: self.session,
            lines: lines.unwrap(),
        };
        let said = logs::record(&self.node.engine.core, &[report]).await;
        assert!(matches!(
            said.unwrap()[..],
            [crate::job::Verdict::Recorded(_)]
        ));
    }

    async fn succeeds(&self) {
        let Engine { core, offers, .. } = &*self.node.engine;
        let ending: Ending = results::ending(self.lease, self.session, Outcome::Success(None));
        results::record(core, offers, vec![ending]).await.unwrap();
    }
}

async fn listen(node: &Node, job: JobId, after: u64) -> Watch {
    let watch = node.engine.watch(job, 0, View::Basic, Some(after));
    watch.await.unwrap()
}

/// The numbers of all lines, and the states that are told after them, until the job is final or has said so many.
async fn heard(watch: &mut Watch, until: u64) -> (Vec<u64>, Vec<JobState>) {
    let (mut lines, mut states) = (Vec::new(), Vec::new());
    while lines.last().is_none_or(|last| *last < until) {
        let told = tokio::time::timeout(SOON, watch.next()).await.unwrap();
        match told.map(|told| told.unwrap()) {
            Some(Told::News(news)) => match *news {
                JobNews::Lines(new) => lines.extend(new.iter().map(|line| line.number)),
                JobNews::Job(job) => states.push(job.state),
            },
            Some(Told::Quiet) => panic!("something was said"),
            None => return (lines, states),
        }
    }
    (lines, states)
}

#[tokio::test]
async fn lines_are_told_in_order_each_once_and_before_the_end() {
    let node = Node::start().await;
    let id = node.jobs(1).await[0];
    let mut early = listen(&node, id, 0).await;
    let mut talker = Talker::of(&node, id).await;
    talker.says(3).await;
    assert_eq!(heard(&mut early, 3).await.0, [1, 2, 3]);
    let mut late = listen(&node, id, 0).await;
    let mut knowing = listen(&node, id, 2).await;
    let mut slow = listen(&node, id, 0).await;
    talker.says(1).await;
    assert_eq!(heard(&mut late, 4).await.0, [1, 2, 3, 4]);
    assert_eq!(heard(&mut knowing, 4).await.0, [3, 4]);
    for _ in 0..20 {
        talker.says(1).await;
        assert_eq!(
            heard(&mut early, talker.last).await.0.last(),
            Some(&talker.last)
        );
    }
    // Said with the result.
    talker.says(2).await;
    talker.succeeds().await;
    for (watch, from) in [(&mut late, 5), (&mut knowing, 5), (&mut slow, 1)] {
        let (lines, states) = heard(watch, u64::MAX).await;
        assert_eq!(lines, (from..=26).collect::<Vec<_>>());
        assert_eq!(states.last(), Some(&JobState::Succeeded));
    }
    assert_eq!(heard(&mut early, u64::MAX).await.0, [25, 26]);
    let job = node
        .engine
        .get(id, View::Full, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(
        (job.log.as_ref().map(Vec::len), job.log_dropped()),
        (Some(26), 0)
    );
    // He who comes afterwards is told the same, and he who knows it nothing.
    assert_eq!(
        heard(&mut listen(&node, id, 25).await, u64::MAX).await.0,
        [26]
    );
    let all = node
        .engine
        .watch(id, job.revision, View::Basic, Some(26))
        .await;
    assert!(all.unwrap().has_ended());
    let more = node
        .engine
        .watch(id, job.revision, View::Basic, Some(25))
        .await;
    assert!(!more.unwrap().has_ended());
}

#[tokio::test]
async fn who_does_not_listen_is_told_nothing_of_lines_and_causes_no_reads_of_them() {
    let node = Node::start().await;
    let id = node.jobs(1).await[0];
    let mut talker = Talker::of(&node, id).await;
    let mut watch = node.watch(id).await;
    assert_eq!(next(&mut watch).await.unwrap().state, JobState::Running);
    talker.says(5).await;
    let looks = node.calls.of("versions");
    node.calls.until("versions", looks + 3).await;
    talker.succeeds().await;
    assert_eq!(next(&mut watch).await.unwrap().state, JobState::Succeeded);
    assert!(next(&mut watch).await.is_none());
    assert_eq!(node.calls.of("lines"), 0);
}

#[tokio::test]
async fn a_hundred_listeners_share_what_is_read() {
    let node = Node::start().await;
    let id = node.jobs(1).await[0];
    let mut talker = Talker::of(&node, id).await;
    let begun = (0..100).map(|_| listen(&node, id, 0));
    let mut watches = futures_util::future::join_all(begun).await;
    for watch in &mut watches {
        assert_eq!(next(watch).await.unwrap().state, JobState::Running);
    }
    for round in 1..=10 {
        talker.says(1).await;
        for watch in &mut watches {
            assert_eq!(heard(watch, round).await.0, [round]);
        }
    }
    let reads = node.calls.of("lines");
    assert!(reads <= 20, "{reads} reads for 100 listeners");
}
