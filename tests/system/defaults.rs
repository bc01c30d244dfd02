//! What jobs get whose requests leave it out, and what is a repeat all the same.

use std::time::Duration;

use worker_sdk::proto::job_spec::Expiry;
use worker_sdk::{Backoff, Client, NewJob, Priority, Queue};

use crate::stack::{Dev, Stack, client};
use crate::support::http::request;
use crate::support::until;

const SOON: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn defaults_of_a_queue_reach_both_nodes() {
    let stack = Stack::start(2).await;
    defaults_are_filled_in(&stack.client(0), &stack.client(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn defaults_of_a_queue_reach_the_embedded_server() {
    let dev = Dev::start().await;
    let url = dev.node.url();
    defaults_are_filled_in(&client(&url), &client(&url)).await;
    // Over HTTP null is the server's default again.
    let address = dev.node.address;
    let patch = br#"{"default_max_attempts":null,"default_retention":"60s","reason":"why not"}"#;
    let patched = request(address, "PATCH", "/queues/q", patch).await;
    let set = patched.json();
    assert_eq!(
        (patched.status, &set["default_retention"]),
        (200, &"60s".into()),
        "{set}"
    );
    assert!(set.get("default_max_attempts").is_none(), "{set}");
    let job = request(address, "POST", "/jobs", br#"{"queue":"q","kind":"k"}"#).await;
    let job = job.json();
    assert_eq!(
        (&job["max_attempts"], &job["retention"]),
        (&25.into(), &"60s".into())
    );
}

fn job() -> NewJob {
    NewJob::new("echo", &1).unwrap().queue("q")
}

async fn defaults_are_filled_in(here: &Client, there: &Client) {
    let before = job().idempotency_key("order 7");
    let first = there.enqueue(before.clone()).await.unwrap().job;
    assert_eq!(first.spec.as_ref().unwrap().max_attempts, 25);

    let brief = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let backoff = Backoff {
        initial: brief(3),
        max: brief(300),
        factor: 1.5,
    };
    let queue = Queue {
        name: "q".into(),
        default_max_attempts: 3,
        default_backoff: Some(backoff),
        default_timeout: brief(90),
        default_retention: brief(7_200),
        default_expire_in: brief(300),
        default_priority: Priority::High.into(),
        ..Queue::default()
    };
    let all = [
        "default_max_attempts",
        "default_backoff",
        "default_timeout",
        "default_retention",
        "default_expire_in",
        "default_priority",
    ];
    let set = here.update_queue(queue.clone(), &all, "").await.unwrap();
    assert_eq!(set.default_backoff, Some(backoff));
    let spec = until(SOON, "the other node knows", async || {
        let accepted = there.enqueue(job()).await.unwrap();
        let spec = accepted.job.spec.unwrap();
        (spec.max_attempts == 3).then_some(spec)
    })
    .await;
    assert_eq!((spec.backoff, spec.timeout), (Some(backoff), brief(90)));
    assert_eq!(
        (spec.retention, spec.priority()),
        (brief(7_200), Priority::High)
    );

    let later = job().delay(Duration::from_secs(60));
    let later = there.enqueue(later).await.unwrap().job;
    let Some(Expiry::ExpireTime(expire)) = later.spec.unwrap().expiry else {
        panic!("it expires")
    };
    let run = later.run_time.unwrap();
    assert_eq!(expire.seconds - run.seconds, 300, "so long after it is due");
    let said = job()
        .max_attempts(25)
        .timeout(Duration::ZERO)
        .priority(Priority::Low);
    let said = there.enqueue(said).await.unwrap().job.spec.unwrap();
    assert_eq!((said.max_attempts, said.timeout), (25, brief(0)));
    assert_eq!(
        (said.priority(), said.retention),
        (Priority::Low, brief(7_200))
    );

    for repeat in [before.clone(), job().idempotency_key("order 7")] {
        let again = there.enqueue(repeat).await.unwrap();
        assert!(again.existed, "the same request under other defaults");
        assert_eq!(again.job.id, first.id);
        assert_eq!(
            again.job.spec.unwrap().max_attempts,
            25,
            "as it was accepted"
        );
    }
    let other = job().idempotency_key("order 7").max_attempts(3);
    let refused = there.enqueue(other).await.unwrap_err();
    assert_eq!(
        refused.reason(),
        Some("KEY_CONFLICT"),
        "it says what that one left out"
    );

    let stale = Queue {
        etag: "1000000".into(),
        ..queue.clone()
    };
    let refused = here.update_queue(stale, &all, "").await.unwrap_err();
    assert_eq!(refused.reason(), Some("ETAG_MISMATCH"));
    let fresh = Queue {
        etag: set.etag,
        default_timeout: None,
        ..queue.clone()
    };
    let cleared = here.update_queue(fresh, &["default_timeout"], "").await;
    let cleared = cleared.unwrap();
    assert_eq!(
        (cleared.default_timeout, cleared.default_max_attempts),
        (None, 3)
    );
    for (fields, bad) in [(&["paused"][..], 3), (&[][..], 3), (&all[..], 2_000_000)] {
        let queue = Queue {
            default_max_attempts: bad,
            ..queue.clone()
        };
        let refused = here.update_queue(queue, fields, "").await.unwrap_err();
        assert_eq!(refused.reason(), Some("FIELD_INVALID"), "{fields:?}");
    }
}
