//! What is set of queues, who may change it, what the audit has of it, and how queues are seen.

use std::time::Duration;

use leasehold::job::{
    Actor, AuditAction, AuditEvent, Backoff, By, Defaultable, JobState, Priority, QueueChange,
    QueueDefaults, QueueSettings, Start,
};
use leasehold::store::{QueueView, Steer, Steered};

use crate::steps::*;
use crate::world::World;

fn by(actor: &str, reason: &str) -> By {
    By {
        actor: Actor::parse(actor).expect("a short name"),
        reason: reason.into(),
    }
}

async fn steer(world: &World, name: &str, change: QueueChange) -> Steered {
    steer_if(world, name, change, None).await
}

async fn steer_if(
    world: &World,
    name: &str,
    change: QueueChange,
    expected: Option<u64>,
) -> Steered {
    let steer = Steer {
        queue: queue(name),
        change,
        expected,
        by: by("ada", "because"),
    };
    world.store.steer(steer).await.expect("steer answers")
}

async fn see(world: &World, name: &str) -> Option<QueueView> {
    let found = world.store.queue(queue(name)).await;
    found.expect("queue answers")
}

async fn seen(world: &World, name: &str) -> QueueView {
    see(world, name).await.expect("it was seen")
}

async fn names(world: &World, after: Option<&str>, size: usize) -> Vec<String> {
    let found = world.store.queues(after.map(queue), size).await;
    let found = found.expect("queues answers");
    found.iter().map(|q| q.stats.queue.to_string()).collect()
}

async fn audit(world: &World) -> Vec<AuditEvent> {
    world.store.audit(None, 100).await.expect("audit answers")
}

fn only(change: impl FnOnce(&mut Defaultable)) -> Defaultable {
    let mut which = Defaultable::default();
    change(&mut which);
    which
}

fn all() -> Defaultable {
    Defaultable {
        priority: true,
        max_attempts: true,
        backoff: true,
        timeout: true,
        retention: true,
        expire_in: true,
    }
}

fn defaults() -> QueueDefaults {
    QueueDefaults {
        priority: Some(Priority::High),
        max_attempts: Some(7),
        backoff: Some(Backoff {
            initial: secs(3),
            max: secs(300),
            factor: 1.1,
        }),
        timeout: Some(Duration::ZERO),
        retention: Some(minutes(90)),
        expire_in: Some(minutes(5)),
    }
}

on_each_store!(a_queue_is_seen_once_it_has_jobs_or_something_is_set_of_it);
async fn a_queue_is_seen_once_it_has_jobs_or_something_is_set_of_it(world: World) {
    assert_eq!(see(&world, "work").await, None);
    assert_eq!(names(&world, None, 10).await, [""; 0]);

    let (running, holder) = world.running().await;
    world.queued().await;
    world.advance(secs(100)).await;
    let view = seen(&world, "work").await;
    assert_eq!((view.settings, view.revision), Default::default());
    assert_eq!(view.stats.counts, [0, 1, 1, 0, 0, 0]);
    assert!(view.stats.oldest_wait >= Some(secs(100)), "{view:?}");
    assert_about(view.as_of, world.now(), "as of");
    assert_recorded(&world.finish(running, holder, success()).await);
    assert_eq!(seen(&world, "work").await.stats.counts[3], 1);

    assert_eq!(
        steer(&world, "empty", QueueChange::Pause).await,
        Steered::Done
    );
    let view = seen(&world, "empty").await;
    assert!(view.settings.paused);
    assert_eq!((view.stats.counts, view.stats.oldest_wait), ([0; 6], None));
    assert_eq!(names(&world, None, 10).await, ["empty", "work"]);
}

on_each_store!(queues_come_page_by_page_by_name);
async fn queues_come_page_by_page_by_name(world: World) {
    // In the order of bytes, on every database.
    for name in ["b", "a", "B", "a.b", "a_b", "a:b", "a-b"] {
        world
            .accept(world.job_with(|d| d.queue = name.into()))
            .await;
    }
    steer(&world, "c", QueueChange::Pause).await;
    steer(&world, "b", QueueChange::Pause).await;
    let sorted = ["B", "a", "a-b", "a.b", "a:b", "a_b", "b", "c"];
    assert_eq!(names(&world, None, 100).await, sorted);
    let mut walked: Vec<String> = Vec::new();
    loop {
        let page = names(&world, walked.last().map(String::as_str), 3).await;
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 3);
        walked.extend(page);
    }
    assert_eq!(walked, sorted);
}

on_each_store!(a_change_is_done_once_and_told_by_whom);
async fn a_change_is_done_once_and_told_by_whom(world: World) {
    use QueueChange::{Pause, Resume};
    world.queued().await;
    assert_eq!(steer(&world, "work", Resume).await, Steered::Unchanged);
    assert_eq!(steer(&world, "never", Resume).await, Steered::Unchanged);
    assert_eq!(see(&world, "never").await, None, "that did not make it");
    assert_eq!(steer(&world, "work", Pause).await, Steered::Done);
    assert_eq!(steer(&world, "work", Pause).await, Steered::Unchanged);
    assert!(seen(&world, "work").await.settings.paused);
    assert_eq!(steer(&world, "work", Resume).await, Steered::Done);
    assert!(!seen(&world, "work").await.settings.paused);

    let told = audit(&world).await;
    let actions: Vec<_> = told.iter().map(|event| event.action).collect();
    assert_eq!(actions, [AuditAction::ResumeQueue, AuditAction::PauseQueue]);
    for event in told {
        assert_eq!((event.subject.as_str(), event.count), ("work", 1));
        assert_eq!(event.by, by("ada", "because"));
        assert_about(event.time, world.now(), "the event's time");
    }
}

on_each_store!(a_change_touches_only_what_it_names);
async fn a_change_touches_only_what_it_names(world: World) {
    let update = |which, to| QueueChange::Update(which, to);
    assert_eq!(
        steer(&world, "q", update(only(|w| w.timeout = true), defaults())).await,
        Steered::Done
    );
    let expected = QueueDefaults {
        timeout: Some(Duration::ZERO),
        ..QueueDefaults::default()
    };
    assert_eq!(seen(&world, "q").await.settings.defaults, expected);
    steer(&world, "q", QueueChange::Pause).await;
    steer(&world, "q", update(all(), defaults())).await;
    let full = QueueSettings {
        paused: true,
        defaults: defaults(),
    };
    assert_eq!(seen(&world, "q").await.settings, full);
    let again = steer(&world, "q", update(all(), defaults())).await;
    assert_eq!(again, Steered::Unchanged);
    let same = steer(
        &world,
        "q",
        update(Defaultable::default(), QueueDefaults::default()),
    )
    .await;
    assert_eq!(same, Steered::Unchanged, "it names nothing");

    let cleared = only(|w| (w.backoff, w.priority) = (true, true));
    steer(&world, "q", update(cleared, QueueDefaults::default())).await;
    let expected = QueueDefaults {
        backoff: None,
        priority: None,
        ..defaults()
    };
    assert_eq!(seen(&world, "q").await.settings.defaults, expected);
    steer(&world, "q", update(all(), QueueDefaults::default())).await;
    steer(&world, "q", QueueChange::Resume).await;
    assert_eq!(seen(&world, "q").await.settings, QueueSettings::default());
}

on_each_store!(a_change_may_depend_on_what_was_read);
async fn a_change_may_depend_on_what_was_read(world: World) {
    use QueueChange::{Pause, Resume};
    let revision = async || seen(&world, "q").await.revision;
    assert_eq!(
        steer_if(&world, "q", Pause, Some(9)).await,
        Steered::Superseded
    );
    assert_eq!(see(&world, "q").await, None);
    assert_eq!(steer_if(&world, "q", Pause, Some(0)).await, Steered::Done);
    let first = revision().await;
    assert!(first > 0);
    assert_eq!(
        steer_if(&world, "q", Resume, Some(0)).await,
        Steered::Superseded
    );
    assert_eq!(
        steer_if(&world, "q", Resume, Some(first)).await,
        Steered::Done
    );
    assert!(revision().await > first);
    assert_eq!(
        steer_if(&world, "q", Pause, Some(first)).await,
        Steered::Superseded
    );
    assert!(!seen(&world, "q").await.settings.paused);
    assert_eq!(audit(&world).await.len(), 2, "only what was done is told");
}

on_each_store!(every_node_hears_of_each_change_once);
async fn every_node_hears_of_each_change_once(world: World) {
    let other = world.open_again().await;
    let first = other.settings(None).await.expect("settings answers");
    let first = first.expect("it knew nothing");
    assert_eq!(first.queues, []);
    let known = Some(first.change);
    assert_eq!(other.settings(known).await.expect("it answers"), None);

    steer(&world, "a", QueueChange::Pause).await;
    steer(&world, "b", QueueChange::Update(all(), defaults())).await;
    let news = other.settings(known).await.expect("it answers");
    let mut news = news.expect("there is news");
    news.queues.sort_by(|a, b| a.0.cmp(&b.0));
    let paused = QueueSettings {
        paused: true,
        ..QueueSettings::default()
    };
    let updated = QueueSettings {
        paused: false,
        defaults: defaults(),
    };
    assert_eq!(news.queues, [(queue("a"), paused), (queue("b"), updated)]);
    let known = Some(news.change);
    assert_eq!(other.settings(known).await.expect("it answers"), None);
    // After a fail-over the number may be lower than the one that is known.
    let ahead = other.settings(Some(news.change + 5)).await;
    assert_eq!(ahead.expect("it answers").map(|all| all.change), known);
}

on_each_store!(changes_that_come_together_are_all_made);
async fn changes_that_come_together_are_all_made(world: World) {
    let fields: [fn(&mut Defaultable); 6] = [
        |w| w.priority = true,
        |w| w.max_attempts = true,
        |w| w.backoff = true,
        |w| w.timeout = true,
        |w| w.retention = true,
        |w| w.expire_in = true,
    ];
    for round in 0..10 {
        let name = format!("q{round}");
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..7 {
            let (world, name) = (world.clone(), name.clone());
            calls.spawn(async move {
                let change = match fields.get(n) {
                    Some(field) => QueueChange::Update(only(field), defaults()),
                    None => QueueChange::Pause,
                };
                steer(&world, &name, change).await
            });
        }
        while let Some(done) = calls.join_next().await {
            assert_eq!(done.expect("it ends"), Steered::Done);
        }
        let expected = QueueSettings {
            paused: true,
            defaults: defaults(),
        };
        assert_eq!(seen(&world, &name).await.settings, expected);
    }
    assert_eq!(audit(&world).await.len(), 70);
}

on_each_store!(what_says_nothing_is_forgotten_after_a_while);
async fn what_says_nothing_is_forgotten_after_a_while(world: World) {
    for name in ["paused", "resumed", "updated"] {
        steer(&world, name, QueueChange::Pause).await;
    }
    steer(&world, "resumed", QueueChange::Resume).await;
    let which = only(|w| w.expire_in = true);
    steer(&world, "updated", QueueChange::Update(which, defaults())).await;
    steer(&world, "updated", QueueChange::Resume).await;
    assert_eq!(world.tidy().await, 0, "somebody may have read its etag");
    world.advance(minutes(61)).await;
    assert_eq!(world.tidy().await, 1);
    assert_eq!(names(&world, None, 10).await, ["paused", "updated"]);
}

on_each_store!(the_audit_is_read_from_the_newest_on);
async fn the_audit_is_read_from_the_newest_on(world: World) {
    for n in 0..7 {
        steer(&world, &format!("q{n}"), QueueChange::Pause).await;
    }
    let mut subjects = Vec::new();
    let mut before = None;
    loop {
        let page = world.store.audit(before, 3).await.expect("audit answers");
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        subjects.extend(page.iter().map(|event| event.subject.clone()));
    }
    let newest_first: Vec<_> = (0..7).rev().map(|n| format!("q{n}")).collect();
    assert_eq!(subjects, newest_first);
}

on_each_store!(what_somebody_does_to_a_job_is_told_and_what_nobody_does_is_not);
async fn what_somebody_does_to_a_job_is_told_and_what_nobody_does_is_not(world: World) {
    let job = world.queued().await;
    world.cancel(job).await;
    world.retry(job, Duration::ZERO).await;
    assert_eq!(audit(&world).await, [], "nobody says who he is");
    let ada = || by("ada", "not wanted");
    for _ in 0..2 {
        let cancelled = world.store.cancel(job, ada()).await;
        cancelled.expect("cancel answers");
    }
    let back = || world.store.retry(job, Duration::ZERO, ada());
    for _ in 0..2 {
        back().await.expect("retry answers");
    }
    let store = &world.store;
    // What changes nothing is not told: it is QUEUED, and of that priority.
    for (start, priority) in [
        (Start::Now, Priority::Normal),
        (Start::After(Duration::from_secs(60)), Priority::High),
    ] {
        let moved = store.reschedule(job, start, ada()).await;
        moved.expect("reschedule answers");
        let moved = store.set_priority(job, priority, ada()).await;
        moved.expect("set_priority answers");
    }
    world.cancel(job).await;
    for _ in 0..2 {
        let deleted = store.delete(job, ada()).await;
        deleted.expect("delete answers");
    }
    let told = audit(&world).await;
    let actions: Vec<_> = told.iter().map(|event| event.action).collect();
    let newest_first = [
        AuditAction::DeleteJob,
        AuditAction::SetJobPriority,
        AuditAction::RescheduleJob,
        AuditAction::RetryJob,
        AuditAction::CancelJob,
    ];
    assert_eq!(actions, newest_first);
    for event in told {
        assert_eq!((event.subject, event.by), (job.to_string(), ada()));
    }
}

on_each_store!(a_paused_queue_is_counted_and_claimed_as_any_other);
async fn a_paused_queue_is_counted_and_claimed_as_any_other(world: World) {
    // That nothing is handed out is for the nodes to see to: they do not ask.
    let job = world.queued().await;
    steer(&world, "work", QueueChange::Pause).await;
    assert_eq!(seen(&world, "work").await.stats.counts[1], 1);
    world.succeed(job).await;
    world.assert_state(job, JobState::Succeeded).await;
}

on_postgres!(neither_settings_nor_the_audit_grow_without_end);
async fn neither_settings_nor_the_audit_grow_without_end(world: World) {
    use sqlx::Connection;
    let mut look = sqlx::PgConnection::connect(world.url())
        .await
        .expect("it answers");
    sqlx::raw_sql(
        "INSERT INTO queues (queue, revision, changed_at, paused)
         SELECT 'q' || n, 1, lh_us(), true FROM generate_series(1, 10000) AS n;
         INSERT INTO audit (create_time, count, action, subject, actor, reason)
         SELECT lh_us(), 1, 1, 'q' || n, '', '' FROM generate_series(1, 10100) AS n",
    )
    .execute(&mut look)
    .await
    .expect("rows can be made");
    let one_more = steer(&world, "more", QueueChange::Pause).await;
    assert_eq!(one_more, Steered::TooMany);
    assert_eq!(
        steer(&world, "q1", QueueChange::Resume).await,
        Steered::Done
    );
    assert_eq!(
        steer(&world, "more", QueueChange::Resume).await,
        Steered::Unchanged
    );
    world.tidy().await;
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM audit")
        .fetch_one(&mut look)
        .await
        .expect("it can be counted");
    assert_eq!(kept, 10_000);
    assert_eq!(audit(&world).await[0].subject, "q1", "the newest stay");
}
