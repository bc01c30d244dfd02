//! The face through a real socket, byte by byte.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod events;
mod queues;
mod socket;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::IntoResponse;
use serde_json::json;

use super::problem::Problem;
use crate::error::Error;
use crate::job::NodeId;
use crate::ready::redis::{RedisOptions, RedisReady};
use socket::{call, fetch, post, raw, serve, serve_over};

#[tokio::test]
async fn a_job_is_accepted_found_and_accepted_again_as_the_same() {
    let (address, _node) = serve().await;
    let id = uuid::Uuid::now_v7().to_string();
    let body = format!(r#"{{"job_id":"{id}","queue":"q","kind":"k","payload":{{"n": 1.0}}}}"#);
    let made = post(address, "/jobs", &body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert!(made.head.contains(&format!("location: /jobs/{id}")));
    assert_eq!(made.json()["state"], "QUEUED");

    let again = post(address, "/jobs", &body).await;
    assert_eq!((again.status, &again.json()["id"]), (200, &json!(id)));

    let other = post(address, "/jobs", body.replace("1.0", "2")).await;
    assert_eq!(other.problem(), (409, "ID_CONFLICT".into(), vec![]));

    let found = fetch(address, &format!("/jobs/{id}?wait=0s")).await;
    // Byte for byte, with its space.
    assert!(
        found.text.contains(r#""payload":{"n": 1.0}"#),
        "{}",
        found.text
    );
    let job = found.json();
    assert_eq!(
        (&job["timeout"], &job["retention"], &job["priority"]),
        (&json!("3600s"), &json!("604800s"), &json!("NORMAL"))
    );
    assert!(job["create_time"].as_str().unwrap().ends_with('Z'));

    let basic = fetch(address, &format!("/jobs/{id}?view=BASIC")).await;
    assert!(basic.json().get("payload").is_none());
}

#[tokio::test]
async fn an_idempotency_key_comes_as_a_header_or_in_the_body() {
    let (address, _node) = serve().await;
    let head = "content-type: application/json\r\nidempotency-key: order 7\r\n";
    let body = br#"{"queue":"q","kind":"k","payload":1}"#;
    let made = call(address, "POST /jobs", head, body).await;
    assert_eq!(
        (made.status, &made.json()["idempotency_key"]),
        (201, &json!("order 7"))
    );
    let id = made.json()["id"].clone();

    let inside = r#"{"queue":"q","kind":"k","payload":1,"idempotency_key":"order 7"}"#;
    for again in [
        call(address, "POST /jobs", head, body).await,
        call(address, "POST /jobs", head, inside.as_bytes()).await,
        post(address, "/jobs", inside).await,
    ] {
        assert_eq!((again.status, &again.json()["id"]), (200, &id));
    }
    let other = post(address, "/jobs", inside.replace(":1,", ":2,")).await;
    assert_eq!(other.problem(), (409, "KEY_CONFLICT".into(), vec![]));
    let long = inside.replace("order 7", &"x".repeat(256));
    let long = post(address, "/jobs", long).await;
    assert_eq!(long.problem().2, ["idempotency_key"]);
}

#[tokio::test]
async fn a_job_that_waits_gets_another_time_and_priority() {
    let (address, _node) = serve().await;
    let later = r#"{"queue":"q","kind":"k","delay":"3600s"}"#;
    let made = post(address, "/jobs", later).await;
    let path = format!("/jobs/{}", made.json()["id"].as_str().unwrap());
    let steer = async |verb: &str, body: &str| {
        let answer = post(address, &format!("{path}/{verb}"), body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    };
    let job = steer("reschedule", r#"{"run_time":"2030-01-31T12:00:00Z"}"#).await;
    assert_eq!(
        (&job["state"], &job["run_time"]),
        (&json!("SCHEDULED"), &json!("2030-01-31T12:00:00Z"))
    );
    let job = steer("priority", r#"{"priority":"HIGH"}"#).await;
    assert_eq!(job["priority"], "HIGH");
    assert_eq!(steer("reschedule", "").await["state"], "QUEUED");
    for (verb, bad, field) in [
        ("reschedule", r#"{"delay":"-1s"}"#, "delay"),
        (
            "reschedule",
            r#"{"run_time":"9000-01-01T00:00:00Z"}"#,
            "run_time",
        ),
        ("reschedule", r#"{"delai":"1s"}"#, "delai"),
        ("priority", "{}", "priority"),
        ("priority", r#"{"priority":"URGENT"}"#, "priority"),
    ] {
        let answer = post(address, &format!("{path}/{verb}"), bad).await;
        assert_eq!(answer.problem().2, [field], "{bad}");
    }
    post(address, &format!("{path}/cancel"), "").await;
    for (verb, body) in [("reschedule", ""), ("priority", r#"{"priority":"LOW"}"#)] {
        let answer = post(address, &format!("{path}/{verb}"), body).await;
        assert_eq!(answer.problem(), (409, "JOB_STATE".into(), vec![]));
    }
}

#[tokio::test]
async fn a_job_is_retried_with_another_payload_as_a_copy() {
    let (address, _node) = serve().await;
    let job = r#"{"queue":"q","kind":"k","payload":1,"labels":{"a":"b"},"idempotency_key":"7"}"#;
    let made = post(address, "/jobs", job).await.json();
    let path = format!("/jobs/{}", made["id"].as_str().unwrap());
    let retry = format!("{path}/retry");
    let early = post(address, &retry, r#"{"payload":2}"#).await;
    assert_eq!(early.problem(), (409, "JOB_STATE".into(), vec![]));
    post(address, &format!("{path}/cancel"), "").await;
    let id = uuid::Uuid::now_v7().to_string();
    let body = format!(r#"{{"payload":{{"n":2}},"new_job_id":"{id}"}}"#);
    let copy = post(address, &retry, &body).await;
    assert_eq!(copy.status, 201, "{}", copy.text);
    let copy = copy.json();
    assert_eq!(
        (&copy["id"], &copy["copied_from"]),
        (&json!(id), &made["id"])
    );
    assert_eq!(copy["labels"], json!({"a": "b"}));
    assert_eq!(copy.get("idempotency_key"), None);
    let again = post(address, &retry, &body).await;
    assert_eq!((again.status, &again.json()["id"]), (200, &json!(id)));
    let found = fetch(address, &format!("/jobs/{id}")).await.json();
    assert_eq!(
        (&found["payload"], &found["state"]),
        (&json!({"n": 2}), &json!("QUEUED"))
    );
    assert_eq!(fetch(address, &path).await.json()["state"], "CANCELLED");
    for (bad, field) in [
        (format!(r#"{{"new_job_id":"{id}"}}"#), "new_job_id"),
        (r#"{"payload":2,"new_job_id":"7"}"#.to_owned(), "new_job_id"),
        (
            body.replace(&id, "01890a5d-ac96-774b-bcce-b302099a8057"),
            "new_job_id",
        ),
    ] {
        let bad = post(address, &retry, bad).await;
        assert_eq!(bad.problem().2, [field]);
    }
    // Whatever has become of the job since, the call has made its copy.
    assert_eq!(post(address, &retry, "").await.json()["state"], "QUEUED");
    let again = post(address, &retry, &body).await;
    assert_eq!((again.status, &again.json()["id"]), (200, &json!(id)));
    let other = format!(r#"{{"payload":{{"n":3}},"new_job_id":"{id}"}}"#);
    let other = post(address, &retry, &other).await;
    assert_eq!(other.problem(), (409, "JOB_STATE".into(), vec![]));
}

#[tokio::test]
async fn a_final_job_is_deleted() {
    let (address, _node) = serve().await;
    let made = post(address, "/jobs", r#"{"queue":"q","kind":"k"}"#).await;
    let path = format!("/jobs/{}", made.json()["id"].as_str().unwrap());
    let early = call(address, &format!("DELETE {path}"), "", b"").await;
    assert_eq!(early.problem(), (409, "JOB_STATE".into(), vec![]));
    assert_eq!(
        post(address, &format!("{path}/cancel"), "").await.status,
        200
    );
    let gone = call(address, &format!("DELETE {path}"), "", b"").await;
    assert_eq!((gone.status, gone.text.as_str()), (204, ""));
    for again in [
        call(address, &format!("DELETE {path}"), "", b"").await,
        fetch(address, &path).await,
    ] {
        assert_eq!(again.problem(), (404, "JOB_NOT_FOUND".into(), vec![]));
    }
}

#[tokio::test]
async fn a_unique_key_is_held_by_one_job_at_a_time() {
    let (address, _node) = serve().await;
    let job = |rest: &str| format!(r#"{{"queue":"q","kind":"k","unique_key":"account 7"{rest}}}"#);
    let made = post(address, "/jobs", job("")).await;
    assert_eq!(
        (made.status, &made.json()["unique_key"]),
        (201, &json!("account 7"))
    );
    let id = made.json()["id"].clone();
    let kept = post(address, "/jobs", job(r#","payload":1"#)).await;
    assert_eq!((kept.status, &kept.json()["id"]), (200, &id));
    let refused = post(address, "/jobs", job(r#","unique_conflict":"REFUSE""#)).await;
    assert_eq!(refused.problem(), (409, "UNIQUE_CONFLICT".into(), vec![]));
    let new = post(address, "/jobs", job(r#","unique_conflict":"REPLACE""#)).await;
    assert_eq!(new.status, 201, "{}", new.text);
    let path = format!("/jobs/{}", id.as_str().unwrap());
    let old = fetch(address, &path).await.json();
    assert_eq!(
        (&old["state"], &old["replaced_by"]),
        (&json!("CANCELLED"), &new.json()["id"])
    );
    let held = post(address, &format!("{path}/retry"), "{}").await;
    assert_eq!(held.problem(), (409, "UNIQUE_KEY_HELD".into(), vec![]));
    for (bad, field) in [
        (
            r#"{"queue":"q","kind":"k","unique_conflict":"KEEP"}"#.to_owned(),
            "unique_conflict",
        ),
        (job(r#","unique_conflict":"MAYBE""#), "unique_conflict"),
        (job("").replace("account 7", &"x".repeat(256)), "unique_key"),
    ] {
        let bad = post(address, "/jobs", bad).await;
        assert_eq!(bad.problem().2, [field]);
    }
}

#[tokio::test]
async fn a_job_that_nobody_begins_in_time_is_failed_and_says_so() {
    let (address, _node) = serve().await;
    let job = |rest: &str| format!(r#"{{"queue":"q","kind":"k",{rest}}}"#);
    let made = post(address, "/jobs", job(r#""expire_in":"0.2s""#)).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert!(made.json()["expire_time"].as_str().unwrap().ends_with('Z'));
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let ended = fetch(address, &format!("/jobs/{id}?wait=10s")).await;
    let ended = ended.json();
    assert_eq!(
        (&ended["state"], &ended["last_failure"]["type"]),
        (&json!("FAILED"), &json!("EXPIRED"))
    );
    for (bad, field) in [
        (r#""expire_time":"2020-01-01T00:00:00Z""#, "expire_time"),
        (r#""expire_in":"1s","delay":"2s""#, "expire_in"),
        (
            r#""expire_in":"1s","expire_time":"2090-01-01T00:00:00Z""#,
            "expire_time",
        ),
    ] {
        let refused = post(address, "/jobs", job(bad)).await;
        assert_eq!(refused.problem().2, [field], "{bad}");
    }
}

#[tokio::test]
async fn a_batch_is_all_or_none_and_names_the_bad_one() {
    let (address, _node) = serve().await;
    let bad = post(
        address,
        "/jobs/batch",
        r#"{"jobs":[{"queue":"q","kind":"k"},{"queue":"","kind":"k"}]}"#,
    )
    .await;
    let expected = (400, "FIELD_INVALID".into(), vec!["jobs[1].queue".into()]);
    assert_eq!(bad.problem(), expected);
    assert_eq!(fetch(address, "/jobs").await.json()["jobs"], json!([]));

    let good = post(
        address,
        "/jobs/batch",
        r#"{"jobs":[{"queue":"q","kind":"k"},{"queue":"q","kind":"k"}]}"#,
    )
    .await;
    assert_eq!(good.status, 201);
    assert_eq!(good.json()["jobs"][1]["existed"], false);

    for (body, field) in [
        ("{}".to_owned(), "jobs"),
        (r#"{"jobs":[]}"#.to_owned(), "jobs"),
        (r#"{"jobs":{}}"#.to_owned(), "jobs"),
        (format!(r#"{{"jobs":[{}0]}}"#, "0,".repeat(1000)), "jobs"),
        (r#"{"jobs":[0]}"#.to_owned(), "jobs[0]"),
    ] {
        let (status, _, fields) = post(address, "/jobs/batch", &body).await.problem();
        assert_eq!((status, fields[0].as_str()), (400, field));
    }
    let payload = "x".repeat(900_000);
    let large = format!(r#"{{"queue":"q","kind":"k","payload":"{payload}"}}"#);
    let large = format!(r#"{{"jobs":[{}]}}"#, [large.as_str(); 5].join(","));
    let expected = (413, "PAYLOAD_TOO_LARGE".into(), vec!["jobs".into()]);
    assert_eq!(
        post(address, "/jobs/batch", large).await.problem(),
        expected
    );
}

#[tokio::test]
async fn a_list_goes_on_where_its_page_ended() {
    let (address, _node) = serve().await;
    for _ in 0..5 {
        post(address, "/jobs", r#"{"queue":"q","kind":"k"}"#).await;
    }
    post(address, "/jobs", r#"{"queue":"other","kind":"k"}"#).await;
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let path = format!("/jobs?queue=q&state=QUEUED&page_size=2&page_token={token}");
        let page = fetch(address, &path).await.json();
        let jobs = page["jobs"].as_array().unwrap();
        seen.extend(
            jobs.iter()
                .map(|job| job["id"].as_str().unwrap().to_owned()),
        );
        token = page["next_page_token"].as_str().unwrap().to_owned();
        if token.is_empty() {
            break;
        }
        let elsewhere = fetch(address, &format!("/jobs?page_token={token}")).await;
        assert_eq!(elsewhere.problem().2, ["page_token"]);
    }
    assert_eq!(seen.len(), 5);
    assert!(seen.is_sorted_by(|a, b| a > b));
}

#[tokio::test]
async fn a_job_is_cancelled_and_brought_back() {
    let (address, _node) = serve().await;
    let made = post(address, "/jobs", r#"{"queue":"q","kind":"k"}"#).await;
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let retry = post(address, &format!("/jobs/{id}/retry"), "").await;
    assert_eq!(retry.problem(), (409, "JOB_STATE".into(), vec![]));
    // Neither call needs a body, nor a content type without one.
    let cancelled = call(address, &format!("POST /jobs/{id}/cancel"), "", b"").await;
    assert_eq!(cancelled.json()["state"], "CANCELLED");
    let back = post(address, &format!("/jobs/{id}/retry"), r#"{"delay":"0s"}"#).await;
    assert_eq!(back.json()["state"], "QUEUED");

    for (path, body, field) in [
        ("cancel", r#"{"reason":"\u0000"}"#, "reason"),
        ("cancel", r#"{"why":"x"}"#, "why"),
        ("retry", r#"{"delay":"-1s"}"#, "delay"),
        ("retry", r#"{"delay":"999999999999s"}"#, "delay"),
    ] {
        let answer = post(address, &format!("/jobs/{id}/{path}"), body).await;
        assert_eq!(answer.problem().2, [field]);
    }
    let nobody = uuid::Uuid::now_v7();
    let missing = post(address, &format!("/jobs/{nobody}/cancel"), "").await;
    assert_eq!(missing.problem(), (404, "JOB_NOT_FOUND".into(), vec![]));
    let no_id = fetch(address, "/jobs/7").await.problem();
    assert_eq!(no_id, (400, "FIELD_INVALID".into(), vec!["job_id".into()]));
}

#[tokio::test]
async fn what_is_no_request_is_refused_as_a_problem() {
    let (address, node) = serve().await;
    let form = "content-type: application/x-www-form-urlencoded\r\n";
    let answer = call(address, "POST /jobs", form, b"{}").await.problem();
    assert_eq!(
        (answer.0, answer.1.as_str()),
        (415, "CONTENT_TYPE_UNSUPPORTED")
    );

    let answer = call(address, "DELETE /jobs", "", b"").await;
    assert_eq!(answer.problem().0, 405);
    assert!(
        answer.head.contains("allow: post,get,head")
            || answer.head.contains("allow: get,head,post")
    );
    assert_eq!(fetch(address, "/nothing").await.problem().1, "PATH_UNKNOWN");
    assert_eq!(
        fetch(address, "/jobs/%ff").await.problem().1,
        "PATH_UNKNOWN"
    );

    for (body, fields) in [
        (&b"{"[..], &["body"][..]),
        (b"", &["body"]),
        (b"{\"queue\":\"a\xff\",\"kind\":\"k\"}", &["queue"]),
        (
            br#"{"queue":"q","kind":"k","kind":"l","x":1}"#,
            &["kind", "x"],
        ),
        (br#"{"queue":"q\u0000","kind":"k"}"#, &["queue"]),
    ] {
        let (status, reason, found) = post(address, "/jobs", body).await.problem();
        assert_eq!(
            (status, reason.as_str(), found.as_slice()),
            (
                400,
                "FIELD_INVALID",
                &*fields.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>()
            )
        );
    }
    let deep = format!(
        r#"{{"queue":"q","kind":"k","payload":{}{}}}"#,
        "[".repeat(5000),
        "]".repeat(5000)
    );
    assert_eq!(post(address, "/jobs", deep).await.problem().2, ["body"]);

    let key = "content-type: application/json\r\nidempotency-key: 1\r\n";
    let other = br#"{"queue":"q","kind":"k","idempotency_key":"2"}"#;
    let answer = call(address, "POST /jobs", key, other).await;
    assert_eq!(answer.problem().2, ["idempotency_key"]);
    let batch = br#"{"jobs":[{"queue":"q","kind":"k"}]}"#;
    let answer = call(address, "POST /jobs/batch", key, batch).await;
    assert_eq!(answer.problem().2, ["Idempotency-Key"]);
    for bad in [
        "idempotency-key: \r\n",
        "idempotency-key: 1\r\nidempotency-key: 1\r\n",
    ] {
        let bad = format!("content-type: application/json\r\n{bad}");
        let answer = call(address, "POST /jobs", &bad, br#"{"queue":"q","kind":"k"}"#).await;
        assert_eq!(answer.problem().2, ["Idempotency-Key"]);
    }

    let counted = node.engine.metrics().render().unwrap();
    for line in [
        r#"leasehold_failed_requests_total{face="http",reason="METHOD_NOT_ALLOWED"} 1"#,
        r#"leasehold_failed_requests_total{face="http",reason="PATH_UNKNOWN"} 2"#,
        r#"leasehold_failed_requests_total{face="http",reason="CONTENT_TYPE_UNSUPPORTED"} 1"#,
    ] {
        assert!(counted.contains(line), "{line} is not in\n{counted}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_unread_and_while_it_is_read() {
    let (address, _node) = serve().await;
    let head = "POST /jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let said = format!("{head}content-length: 99999999999\r\n\r\n{{");
    let answer = raw(address, said.as_bytes()).await;
    assert_eq!(answer.problem().0, 413);
    assert!(answer.head.contains("connection: close"));

    let mut chunked = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..7 {
        chunked.extend_from_slice(b"100000\r\n");
        chunked.extend(std::iter::repeat_n(b' ', 0x10_0000));
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(raw(address, &chunked).await.problem().0, 413);

    // Read to its end, so that the one who sends it is still there for the answer.
    let large = post(address, "/jobs", vec![b' '; 16 << 20]).await;
    assert_eq!(large.problem().1, "PAYLOAD_TOO_LARGE");
}

#[tokio::test]
async fn the_node_tells_how_it_is() {
    let (address, node) = serve().await;
    assert_eq!(fetch(address, "/livez").await.status, 200);
    assert_eq!(fetch(address, "/readyz").await.text, "ready\n");
    let metrics = fetch(address, "/metrics").await;
    assert!(metrics.head.contains("text/plain; version=0.0.4"));

    node.engine.drain(Duration::ZERO).await;
    let leaving = fetch(address, "/readyz").await;
    assert_eq!(
        (leaving.status, leaving.text.as_str()),
        (503, "not ready: draining\n")
    );
    assert_eq!(fetch(address, "/livez").await.status, 200);
}

#[tokio::test]
async fn a_node_without_its_ready_list_is_ready_and_says_so() {
    let options = RedisOptions {
        prefix: "leasehold".into(),
        node: NodeId(uuid::Uuid::new_v4()),
    };
    // Nobody listens there.
    let away = RedisReady::connect("redis://127.0.0.1:1", options).unwrap();
    let (address, _node) = serve_over(Arc::new(away)).await;
    post(address, "/jobs", r#"{"queue":"q","kind":"k"}"#).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let ready = fetch(address, "/readyz").await;
        assert_eq!(ready.status, 200);
        if ready.text.contains("degraded: redis") {
            break;
        }
        assert!(Instant::now() < deadline, "{}", ready.text);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn an_error_that_passes_says_when_to_come_back() {
    let away = Problem::from(Error::unavailable("the store")).into_response();
    assert_eq!(away.status(), 503);
    assert_eq!(away.headers()["retry-after"], "1");
}

#[test]
fn the_cause_of_an_internal_error_is_not_told() {
    let answer = Problem::from(Error::internal("hunter2")).into_response();
    assert_eq!(answer.status(), 500);
    assert!(!format!("{answer:?}").contains("hunter2"));
}
