//! The calls about queues.

use serde_json::json;

use super::socket::{call, fetch, post, serve};

const JSON: &str = "content-type: application/json\r\n";

#[tokio::test]
async fn a_queue_is_seen_paused_and_resumed() {
    let (address, _node) = serve().await;
    let never = fetch(address, "/queues/q").await;
    assert_eq!(never.problem(), (404, "QUEUE_NOT_FOUND".into(), vec![]));
    assert_eq!(fetch(address, "/queues").await.json()["queues"], json!([]));
    post(address, "/jobs", r#"{"queue":"q","kind":"k"}"#).await;

    let seen = fetch(address, "/queues/q").await.json();
    assert_eq!(
        (&seen["name"], &seen["paused"]),
        (&json!("q"), &json!(false))
    );
    assert_eq!(seen["stats"]["queued"], 1);
    assert!(
        seen["stats"]["oldest_wait"]
            .as_str()
            .unwrap()
            .ends_with('s')
    );
    assert!(seen["stats"]["as_of_time"].as_str().unwrap().ends_with('Z'));
    let rates = json!({
        "enqueued_per_second": 0.0, "started_per_second": 0.0,
        "succeeded_per_second": 0.0, "failed_per_second": 0.0,
    });
    assert_eq!(seen["stats"]["rates"], rates, "nothing was told yet");

    let who = format!("{JSON}leasehold-actor: Ada Löwe\r\n");
    let paused = call(
        address,
        "POST /queues/q/pause",
        &who,
        br#"{"reason":"too much"}"#,
    )
    .await;
    assert_eq!(
        (paused.status, &paused.json()["paused"]),
        (200, &json!(true))
    );
    assert_ne!(paused.json()["etag"], seen["etag"]);
    let again = call(address, "POST /queues/q/pause", "", b"").await;
    assert_eq!(
        again.json()["etag"],
        paused.json()["etag"],
        "nothing has changed"
    );
    let resumed = call(address, "POST /queues/q/resume", "", b"").await;
    assert_eq!(resumed.json()["paused"], false);

    let audit = fetch(address, "/audit?page_size=1").await.json();
    assert_eq!(audit["events"][0]["action"], "RESUME_QUEUE");
    let token = audit["next_page_token"].as_str().unwrap();
    let rest = fetch(address, &format!("/audit?page_token={token}"))
        .await
        .json();
    let event = &rest["events"][0];
    assert_eq!(
        (
            &event["actor"],
            &event["subject"],
            &event["reason"],
            &event["count"]
        ),
        (
            &json!("Ada Löwe"),
            &json!("q"),
            &json!("too much"),
            &json!(1)
        )
    );
    assert_eq!(
        (
            rest["events"].as_array().unwrap().len(),
            &rest["next_page_token"]
        ),
        (1, &json!(""))
    );
}

#[tokio::test]
async fn defaults_are_set_cleared_and_filled_in() {
    let (address, _node) = serve().await;
    let set = r#"{"default_priority":"HIGH","default_max_attempts":3,"default_timeout":"0s","default_retention":"90s",
        "default_backoff":{"initial":"1s"},"reason":"mails"}"#;
    let set = call(address, "PATCH /queues/q", JSON, set.as_bytes()).await;
    assert_eq!(set.status, 200, "{}", set.text);
    let set = set.json();
    let backoff = json!({"initial": "1s", "max": "86400s", "factor": 2.0});
    assert_eq!(
        (
            &set["default_priority"],
            &set["default_max_attempts"],
            &set["default_backoff"]
        ),
        (&json!("HIGH"), &json!(3), &backoff)
    );
    assert_eq!(
        (&set["default_timeout"], &set["default_retention"]),
        (&json!("0s"), &json!("90s"))
    );
    let job = post(address, "/jobs", r#"{"queue":"q","kind":"k"}"#)
        .await
        .json();
    assert_eq!(
        (
            &job["priority"],
            &job["max_attempts"],
            &job["backoff"],
            &job["timeout"]
        ),
        (&json!("HIGH"), &json!(3), &backoff, &json!("0s"))
    );
    let batch =
        r#"{"jobs":[{"queue":"q","kind":"k","timeout":"5s"},{"queue":"other","kind":"k"}]}"#;
    let jobs = post(address, "/jobs/batch", batch).await.json();
    assert_eq!(
        (
            &jobs["jobs"][0]["timeout"],
            &jobs["jobs"][0]["max_attempts"]
        ),
        (&json!("5s"), &json!(3))
    );
    assert_eq!(jobs["jobs"][1]["max_attempts"], 25);

    let stale = r#"{"default_max_attempts":4,"etag":"x"}"#;
    let stale = call(address, "PATCH /queues/q", JSON, stale.as_bytes()).await;
    assert_eq!(stale.problem(), (409, "ETAG_MISMATCH".into(), vec![]));
    let clear = json!({"default_max_attempts": null, "etag": set["etag"]}).to_string();
    let cleared = call(address, "PATCH /queues/q", JSON, clear.as_bytes())
        .await
        .json();
    assert!(cleared.get("default_max_attempts").is_none(), "{cleared}");
    assert_eq!(cleared["default_retention"], "90s");
}

#[tokio::test]
async fn queues_are_listed_page_by_page() {
    let (address, _node) = serve().await;
    for name in ["c", "a", "b"] {
        post(address, &format!("/queues/{name}/pause"), "{}").await;
    }
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let path = format!("/queues?page_size=2&page_token={token}");
        let page = fetch(address, &path).await.json();
        let queues = page["queues"].as_array().unwrap();
        names.extend(
            queues
                .iter()
                .map(|q| q["name"].as_str().unwrap().to_owned()),
        );
        token = page["next_page_token"].as_str().unwrap().to_owned();
        if token.is_empty() {
            break;
        }
        let elsewhere = fetch(address, &format!("/audit?page_token={token}")).await;
        assert_eq!(elsewhere.problem().2, ["page_token"]);
    }
    assert_eq!(names, ["a", "b", "c"]);
}

#[tokio::test]
async fn what_is_wrong_with_a_call_about_queues_is_named() {
    let (address, _node) = serve().await;
    let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(1_025));
    let twice = format!("{JSON}leasehold-actor: a\r\nleasehold-actor: b\r\n");
    let much = format!("{JSON}leasehold-actor: {}\r\n", "x".repeat(256));
    for (line, headers, body, field) in [
        ("GET /queues/a%20b", "", "", "queue"),
        ("POST /queues/a%20b/pause", "", "", "queue"),
        ("GET /queues?page_size=x", "", "", "page_size"),
        ("GET /queues/a%20b/events", "", "", "queue"),
        ("GET /queues/q/events?view=FULL", "", "", "view"),
        ("GET /sessions/x", "", "", "session_id"),
        (
            "GET /sessions/00112233445566778899aabbccddeefg",
            "",
            "",
            "session_id",
        ),
        (
            "GET /sessions/00112233445566778899aabbccddeeff?queue=q",
            "",
            "",
            "queue",
        ),
        ("GET /queues?page_token=x", "", "", "page_token"),
        ("GET /queues?queue=x", "", "", "queue"),
        ("GET /queues/q?view=FULL", "", "", "view"),
        (
            "PATCH /queues/q",
            JSON,
            r#"{"default_timeout":"1m"}"#,
            "default_timeout",
        ),
        (
            "PATCH /queues/q",
            JSON,
            r#"{"default_backoff":{"factor":0.5}}"#,
            "default_backoff.factor",
        ),
        (
            "PATCH /queues/q",
            JSON,
            r#"{"default_max_attempts":1000001}"#,
            "default_max_attempts",
        ),
        (
            "PATCH /queues/q",
            JSON,
            r#"{"default_priority":"URGENT"}"#,
            "default_priority",
        ),
        (
            "PATCH /queues/q",
            JSON,
            r#"{"default_timeout":"1s","paused":true}"#,
            "paused",
        ),
        ("PATCH /queues/q", JSON, "{}", "body"),
        ("POST /queues/q/pause", JSON, &long, "reason"),
        ("POST /queues/q/pause", JSON, r#"{"why":1}"#, "why"),
        ("POST /queues/q/resume", &twice, "{}", "leasehold-actor"),
        ("POST /queues/q/pause", &much, "{}", "leasehold-actor"),
    ] {
        let answer = call(address, line, headers, body.as_bytes()).await;
        let expected = (400, "FIELD_INVALID".to_owned(), vec![field.to_owned()]);
        assert_eq!(answer.problem(), expected, "{line}");
    }
    let method = call(address, "DELETE /queues/q", "", b"").await;
    assert_eq!(method.problem().1, "METHOD_NOT_ALLOWED");
    assert_eq!(fetch(address, "/queues").await.json()["queues"], json!([]));
}

#[tokio::test]
async fn a_session_that_is_not_there_is_not_found() {
    let (address, _node) = serve().await;
    let never = fetch(address, "/sessions/00112233445566778899AABBCCDDEEFF").await;
    assert_eq!(never.problem(), (404, "SESSION_NOT_FOUND".into(), vec![]));
}
