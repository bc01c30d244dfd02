//! What attempts say: in order, each line once, bounded by the job, and gone with it.

use std::time::Duration;

use leasehold::job::limits::{LOG_BYTES_MAX, LOG_LINES_MAX, LOG_MESSAGE_BYTES_MAX};
use leasehold::job::{
    JobId, JobState, Lease, LogLevel, LogLine, NewLine, NewLines, StaleReason, Verdict, View,
};
use leasehold::store::{Attached, LogReport, Version};

use crate::steps::{LONG, failure, leased, minutes, raw, release, secs, success};
use crate::world::World;

const TAKEN: Verdict = Verdict::Recorded(JobState::Running);

fn line(message: impl Into<String>) -> NewLine {
    NewLine {
        elapsed: None,
        level: LogLevel::Info,
        message: message.into(),
    }
}

fn said(first: u64, messages: &[&str]) -> NewLines {
    let lines = messages.iter().map(|message| line(*message)).collect();
    NewLines::check("log", first, lines).expect("within bounds")
}

/// Lines that say their own numbers.
fn many(first: u64, count: usize) -> NewLines {
    let lines = (first..).take(count).map(|n| line(n.to_string()));
    NewLines::check("log", first, lines.collect()).expect("within bounds")
}

async fn log(world: &World, lease: Lease, by: Attached, lines: NewLines) -> Verdict {
    let session = by.session;
    let report = LogReport {
        lease,
        session,
        lines,
    };
    let answer = world.store.log(vec![report]).await;
    answer.expect("log answers").remove(0)
}

async fn lines(world: &World, job: JobId, after: u64) -> Vec<LogLine> {
    let read = world.store.lines(vec![(job, after)]).await;
    read.expect("lines answers").remove(0)
}

/// Number, attempt and words of each line.
async fn words(world: &World, job: JobId) -> Vec<(u64, u32, String)> {
    let read = lines(world, job, 0).await.into_iter();
    read.map(|line| (line.number, line.attempt, line.message))
        .collect()
}

fn expected(lines: &[(u64, u32, &str)]) -> Vec<(u64, u32, String)> {
    let lines = lines.iter();
    lines
        .map(|(number, attempt, message)| (*number, *attempt, (*message).to_owned()))
        .collect()
}

async fn how_many(world: &World, job: JobId) -> u64 {
    let versions = world.store.versions(vec![job]).await;
    let version: Option<Version> = versions.expect("versions answers").remove(0);
    let version = version.expect("it is there");
    for view in [View::Progress, View::Full] {
        let read = world.store.get(vec![job], view).await;
        let read = read.expect("get answers").remove(0).expect("it is there");
        assert_eq!(read.lines_said, version.lines);
    }
    version.lines
}

on_each_store!(lines_are_kept_in_order_with_their_time_and_level);
async fn lines_are_kept_in_order_with_their_time_and_level(world: World) {
    let (lease, session) = world.running().await;
    assert_eq!(how_many(&world, lease.job).await, 0);
    assert_eq!(lines(&world, lease.job, 0).await, []);
    world.advance(minutes(1)).await;
    let levels = [
        LogLevel::Debug,
        LogLevel::Info,
        LogLevel::Warn,
        LogLevel::Error,
    ];
    let some = levels.into_iter().zip(0..).map(|(level, n)| NewLine {
        elapsed: Some(Duration::from_secs(n)),
        level,
        message: format!("{} \u{20ac} \"{n}\"\n", level.name()),
    });
    let some = NewLines::check("log", 1, some.collect()).expect("within bounds");
    assert_eq!(log(&world, lease, session, some).await, TAKEN);
    let ahead = NewLine {
        elapsed: Some(Duration::from_secs(3_600)),
        ..line("ahead")
    };
    let ahead = NewLines::check("log", 5, vec![ahead, line("now")]).expect("within bounds");
    assert_eq!(log(&world, lease, session, ahead).await, TAKEN);
    let read = lines(&world, lease.job, 0).await;
    let job = world.look(lease.job).await;
    let start = job.start_time.expect("it runs");
    for (line, (level, n)) in read.iter().zip(levels.into_iter().zip(0_u64..)) {
        assert_eq!((line.number, line.attempt, line.level), (n + 1, 1, level));
        assert_eq!(line.message, format!("{} \u{20ac} \"{n}\"\n", level.name()));
        assert_eq!(line.time, start.after(Duration::from_secs(n)));
    }
    let now = world.store.now().await.expect("now answers");
    let (ahead, last) = (&read[4], &read[5]);
    assert!(
        ahead.time <= now && ahead.time > start.after(secs(50)),
        "{ahead:?}"
    );
    assert!(last.time <= now && last.time > start.after(secs(50)));
    assert_eq!(read.len(), 6);
    assert_eq!(lines(&world, lease.job, 4).await, read[4..]);
    assert_eq!(lines(&world, lease.job, 6).await, []);
    assert_eq!(how_many(&world, lease.job).await, 6);
    let basic = world.store.get(vec![lease.job], View::Basic).await;
    let basic = basic.expect("get answers").remove(0).expect("it is there");
    assert_eq!(
        (basic.lines_said, basic.revision),
        (0, 2),
        "a line is no change of state"
    );
}

on_each_store!(copies_of_lines_change_nothing_and_gaps_count);
async fn copies_of_lines_change_nothing_and_gaps_count(world: World) {
    let (lease, session) = world.running().await;
    log(&world, lease, session, said(1, &["a", "b"])).await;
    for copy in [said(1, &["a", "b"]), said(2, &["other"])] {
        assert_eq!(log(&world, lease, session, copy).await, TAKEN);
    }
    assert_eq!(
        log(&world, lease, session, said(2, &["b", "c"])).await,
        TAKEN
    );
    log(&world, lease, session, said(6, &["f"])).await;
    let all = expected(&[(1, 1, "a"), (2, 1, "b"), (3, 1, "c"), (6, 1, "f")]);
    assert_eq!(words(&world, lease.job).await, all);
    assert_eq!(how_many(&world, lease.job).await, 6, "two were never heard");
}

on_each_store!(each_attempt_adds_to_the_log_and_the_last_words_of_one_that_ended_are_taken);
async fn each_attempt_adds_to_the_log_and_the_last_words_of_one_that_ended_are_taken(world: World) {
    let id = world.accept(world.job()).await;
    let session = world.open().await;
    let first = world.lease(id, session).await;
    log(&world, first, session, said(1, &["one"])).await;
    world.finish(first, session, failure()).await;
    let verdict = log(&world, first, session, said(2, &["sorry"])).await;
    assert!(matches!(verdict, Verdict::Recorded(JobState::Scheduled)));
    world.advance(minutes(1)).await;
    world.promote().await;
    let session = world.open().await;
    let second = leased(&world.ask(id, session).await).lease;
    log(&world, second, session, said(1, &["two", "again"])).await;
    world.finish(second, session, success()).await;
    // The copy of a result whose lines were not recorded with it.
    let verdict = log(&world, second, session, said(2, &["again", "done"])).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Succeeded));
    let all = [
        (1, 1, "one"),
        (2, 1, "sorry"),
        (3, 2, "two"),
        (4, 2, "again"),
        (5, 2, "done"),
    ];
    assert_eq!(words(&world, id).await, expected(&all));
    assert_eq!(how_many(&world, id).await, 5);
}

on_each_store!(only_who_has_or_had_the_newest_attempt_is_heard);
async fn only_who_has_or_had_the_newest_attempt_is_heard(world: World) {
    let (lease, session) = world.running().await;
    let stranger = world.open().await;
    let later = Lease {
        attempt: lease.attempt + 1,
        ..lease
    };
    for (lease, by) in [(lease, stranger), (later, session)] {
        let verdict = log(&world, lease, by, said(1, &["x"])).await;
        let stale = Verdict::Stale(StaleReason::Superseded, JobState::Running);
        assert_eq!(verdict, stale);
    }
    let unknown = Lease {
        job: world.job().id,
        attempt: 1,
    };
    let verdict = log(&world, unknown, session, said(1, &["x"])).await;
    assert_eq!(verdict, Verdict::Unknown);
    assert_eq!(lines(&world, unknown.job, 0).await, []);
    // Given back, it is the newest attempt until there is another.
    world.finish(lease, session, release()).await;
    let verdict = log(&world, lease, stranger, said(1, &["x"])).await;
    assert!(matches!(verdict, Verdict::Stale(..)), "{verdict:?}");
    let next = leased(&world.ask(lease.job, stranger).await).lease;
    let verdict = log(&world, lease, session, said(1, &["late"])).await;
    assert!(matches!(verdict, Verdict::Stale(..)), "{verdict:?}");
    assert_eq!(how_many(&world, lease.job).await, 0);
    assert_eq!(log(&world, next, stranger, said(1, &["y"])).await, TAKEN);
    assert_eq!(words(&world, lease.job).await, expected(&[(1, 2, "y")]));
}

on_each_store!(who_was_cancelled_or_lost_his_lease_may_say_why);
async fn who_was_cancelled_or_lost_his_lease_may_say_why(world: World) {
    let (lease, session) = world.running().await;
    world.cancel(lease.job).await;
    let verdict = log(&world, lease, session, said(1, &["rolled back"])).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Cancelled));
    let (lost, session) = world.running().await;
    world.lose(session).await;
    let verdict = log(&world, lost, session, said(1, &["still here"])).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Queued));
    for job in [lease.job, lost.job] {
        assert_eq!(lines(&world, job, 0).await.len(), 1);
    }
}

on_each_store!(reports_of_lines_are_answered_one_by_one);
async fn reports_of_lines_are_answered_one_by_one(world: World) {
    let (one, session) = world.running().await;
    let two = world.lease(world.queued().await, session).await;
    let strange = world.open().await;
    let of = |lease, by: Attached, lines| LogReport {
        lease,
        session: by.session,
        lines,
    };
    let reports = vec![
        of(one, session, said(1, &["a"])),
        of(two, strange, said(1, &["no"])),
        of(two, session, said(1, &["b"])),
        of(one, session, said(1, &["a", "c"])),
    ];
    let verdicts = world.store.log(reports).await.expect("log answers");
    assert!(matches!(
        verdicts[..],
        [TAKEN, Verdict::Stale(..), TAKEN, TAKEN]
    ));
    let both = world.store.lines(vec![(two.job, 0), (one.job, 1)]).await;
    let both = both.expect("lines answers");
    let both: Vec<Vec<&str>> = both
        .iter()
        .map(|lines| lines.iter().map(|line| line.message.as_str()).collect())
        .collect();
    assert_eq!(both, [vec!["b"], vec!["c"]]);
    assert_eq!(world.store.log(vec![]).await.expect("it answers"), []);
    assert_eq!(
        world.store.lines(vec![]).await.expect("it answers"),
        Vec::<Vec<LogLine>>::new()
    );
}

on_each_store!(of_too_many_lines_the_newest_are_kept_over_all_attempts);
async fn of_too_many_lines_the_newest_are_kept_over_all_attempts(world: World) {
    let id = world.accept(world.job()).await;
    let session = world.open().await;
    let lease = world.lease(id, session).await;
    let max = LOG_LINES_MAX as u64;
    for n in 0..3 {
        let batch = many(1 + n * max, LOG_LINES_MAX);
        assert_eq!(log(&world, lease, session, batch).await, TAKEN);
        let read = lines(&world, id, 0).await;
        assert_eq!(read.len(), LOG_LINES_MAX);
        assert_eq!(read[0].number, n * max + 1);
        assert_eq!(how_many(&world, id).await, (n + 1) * max);
    }
    world.finish(lease, session, failure()).await;
    world.advance(minutes(1)).await;
    world.promote().await;
    let session = world.open().await;
    let again = leased(&world.ask(id, session).await).lease;
    log(&world, again, session, many(1, 10)).await;
    let read = lines(&world, id, 0).await;
    let (first, last) = (&read[0], &read[LOG_LINES_MAX - 1]);
    assert_eq!((read.len(), first.number), (LOG_LINES_MAX, 2 * max + 11));
    assert_eq!(
        (last.number, last.attempt, &*last.message),
        (3 * max + 10, 2, "10")
    );
    // A copy of lines that are gone does not bring them back.
    log(&world, again, session, many(1, 10)).await;
    assert_eq!(lines(&world, id, 0).await, read);
}

on_each_store!(of_too_many_bytes_the_newest_lines_are_kept);
async fn of_too_many_bytes_the_newest_lines_are_kept(world: World) {
    let (lease, session) = world.running().await;
    let fit = LOG_BYTES_MAX / LOG_MESSAGE_BYTES_MAX;
    let long = "x".repeat(LOG_MESSAGE_BYTES_MAX);
    for n in 0..4 {
        let batch = vec![line(&*long); fit];
        let batch = NewLines::check("log", 1 + (n * fit) as u64, batch).expect("within bounds");
        assert_eq!(log(&world, lease, session, batch).await, TAKEN);
    }
    let small = said(1 + 4 * fit as u64, &["tiny"]);
    log(&world, lease, session, small).await;
    let read = lines(&world, lease.job, 0).await;
    let bytes: usize = read.iter().map(|line| line.message.len()).sum();
    assert!(bytes <= LOG_BYTES_MAX, "{bytes}");
    assert_eq!(
        read.len(),
        fit,
        "the small one and all but one of the long ones"
    );
    assert_eq!(read[fit - 1].message, "tiny");
    assert_eq!(how_many(&world, lease.job).await, 4 * fit as u64 + 1);
    assert_eq!(read[0].number, 3 * fit as u64 + 2);
}

on_each_store!(lines_go_with_their_job);
async fn lines_go_with_their_job(world: World) {
    let session = world.open().await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        let job = world.job_with(|d| d.retention = Some(raw(secs(1))));
        let id = world.accept(job).await;
        let lease = world.lease(id, session).await;
        log(&world, lease, session, many(1, 40)).await;
        world.finish(lease, session, success()).await;
        jobs.push(id);
    }
    let deleted = world.store.delete(jobs[0], Default::default()).await;
    assert_eq!(
        deleted.expect("delete answers"),
        leasehold::store::Deleted::Done
    );
    assert_eq!(lines(&world, jobs[0], 0).await, [], "gone at once");
    world.advance(LONG).await;
    while world.retain().await > 0 {}
    world.tidy().await;
    for id in jobs {
        let there = world.store.get(vec![id], View::Full).await;
        assert_eq!(there.expect("get answers"), [None]);
        assert_eq!(lines(&world, id, 0).await, []);
        let late = Lease {
            job: id,
            attempt: 1,
        };
        let verdict = log(&world, late, session, said(41, &["x"])).await;
        assert_eq!(verdict, Verdict::Unknown);
        assert_eq!(lines(&world, id, 0).await, []);
    }
}

on_each_store!(two_who_say_the_same_lines_at_once_leave_them_once);
async fn two_who_say_the_same_lines_at_once_leave_them_once(world: World) {
    for _ in 0..10 {
        let (lease, session) = world.running().await;
        let one = {
            let world = world.clone();
            tokio::spawn(async move { log(&world, lease, session, many(1, 20)).await })
        };
        let other = log(&world, lease, session, many(1, 30)).await;
        assert_eq!((one.await.expect("it ends"), other), (TAKEN, TAKEN));
        let read = words(&world, lease.job).await;
        let all: Vec<_> = (1..=30).map(|n| (n, 1, n.to_string())).collect();
        assert_eq!(read, all);
    }
}
