//! Why a job waits, or ran twice, or ended so, as each face tells it.

use std::net::SocketAddr;
use std::time::Duration;

use worker_sdk::proto::lease_jobs_request::Message as Request;
use worker_sdk::proto::lease_jobs_response::Message as Response;
use worker_sdk::proto::{self as pb, result::Outcome};
use worker_sdk::{Client, NewJob};

use crate::cases::{case, side_by_side};
use crate::hand::{Hand, hello, leases};
use crate::stack::{Dev, Node, Site, client};
use crate::support::http::request;
use crate::support::{Process, leasehold, until};

const SOON: Duration = Duration::from_secs(60);

/// A worker of one slot that need not be heard of while a case goes on.
fn patient() -> pb::Hello {
    pb::Hello {
        lease_ttl: Some(prost_types::Duration {
            seconds: 600,
            nanos: 0,
        }),
        ..hello(1)
    }
}

struct Asked {
    client: Client,
    address: SocketAddr,
}

impl Asked {
    async fn enqueue(&self, kind: &str) -> String {
        self.add(NewJob::new(kind, &1).unwrap()).await
    }

    async fn add(&self, job: NewJob) -> String {
        self.client.enqueue(job.queue("q")).await.unwrap().job.id
    }

    /// The reasons, the same over gRPC and over HTTP; `None` when something has changed between the two.
    async fn reasons(&self, id: &str) -> Option<Vec<String>> {
        let found = self.client.explain(id).await.unwrap();
        let path = format!("/jobs/{id}/explain");
        let answer = request(self.address, "GET", &path, b"").await.json();
        let listed = answer["findings"].as_array().unwrap().iter();
        let listed: Vec<_> = listed.map(|one| (&one["reason"], &one["field"])).collect();
        assert!(found.iter().all(|finding| !finding.message.is_empty()));
        let is_same = listed.len() == found.len()
            && listed.iter().zip(&found).all(|((reason, field), finding)| {
                **reason == *finding.reason && **field == *finding.field
            });
        is_same.then(|| found.into_iter().map(|finding| finding.reason).collect())
    }

    /// Waits until these are the reasons: what a node knows of its workers changes by itself.
    async fn says(&self, id: &str, expected: &[&str]) {
        until(SOON, &format!("{expected:?}"), async || {
            let reasons = self.reasons(id).await;
            reasons
                .is_some_and(|reasons| reasons == expected)
                .then_some(())
        })
        .await;
    }
}

async fn a_job_is_explained(node: &Node) {
    let asked = Asked {
        client: client(&node.url()),
        address: node.address,
    };
    let later = NewJob::new("echo", &1).unwrap();
    let later = asked.add(later.delay(Duration::from_secs(600))).await;
    asked.says(&later, &["DELAYED"]).await;
    let first = asked.enqueue("echo").await;
    let strange = asked.enqueue("strange").await;
    let last = asked.enqueue("echo").await;
    asked.says(&first, &["NO_SESSION"]).await;
    asked.says(&last, &["NO_SESSION", "IN_LINE"]).await;

    let (mut hand, _) = Hand::welcome(&node.url(), patient()).await;
    hand.beat(0, &[]).await;
    let has = leases(&hand.take(1).await.0);
    assert_eq!(has[0].job_id, first);
    asked.says(&first, &["RUNNING"]).await;
    asked.says(&strange, &["UNKNOWN_KIND"]).await;
    asked.says(&last, &["NO_FREE_SLOT", "IN_LINE"]).await;

    let broken = pb::Failure {
        r#type: "Broken".into(),
        message: "it broke".into(),
        ..Default::default()
    };
    let failure = pb::Result {
        lease: Some(has[0].clone()),
        outcome: Some(Outcome::Failure(broken)),
        log: None,
    };
    let results = vec![failure];
    hand.send(Request::Results(pb::Results { results })).await;
    hand.until(|message| match message {
        Response::Receipts(_) => Some(()),
        _ => None,
    })
    .await;
    asked.says(&first, &["BACKOFF", "ATTEMPT_FAILED"]).await;
    asked.client.cancel(&first, "enough").await.unwrap();
    asked.says(&first, &["CANCELLED", "ATTEMPT_FAILED"]).await;
    let found = asked.client.explain(&first).await.unwrap();
    assert!(found[1].message.contains("Broken: it broke"), "{found:?}");
    assert_eq!(found[1].field, "attempts[0]");

    let url = node.url();
    let typed = ["jobs", "--server", &url, "explain", &first];
    let mut typed = Process::start("explain", leasehold(typed));
    assert!(typed.ended(SOON).await.success());
    let output = typed.output().join("\n");
    for word in ["CANCELLED", "while it waited", "Broken: it broke"] {
        assert!(output.contains(word), "{output}");
    }
    let nobody = uuid::Uuid::now_v7().to_string();
    let missing = asked.client.explain(&nobody).await.unwrap_err();
    assert_eq!(missing.reason(), Some("JOB_NOT_FOUND"));
}

async fn a_job_of_the_embedded_server_is_explained() {
    let dev = Dev::start().await;
    a_job_is_explained(&dev.node).await;
}

async fn a_job_of_a_node_is_explained() {
    let site = Site::new().await;
    let node = site.node().await;
    a_job_is_explained(&node).await;
}

async fn a_lost_lease_and_who_lost_it_is_told() {
    let site = Site::new().await;
    let node = site.node().await;
    let asked = Asked {
        client: client(&node.url()),
        address: node.address,
    };
    let id = asked.enqueue("echo").await;
    let (mut hand, _) = Hand::welcome(&node.url(), hello(1)).await;
    hand.beat(0, &[]).await;
    hand.take(1).await;
    // As a worker that is killed.
    drop(hand);
    asked.says(&id, &["NO_SESSION", "ATTEMPT_LEASE_LOST"]).await;
    let found = asked.client.explain(&id).await.unwrap();
    let message = &found[1].message;
    assert!(
        message.contains("attempt 1 was taken from worker hand"),
        "{message}"
    );
}

#[test]
fn what_keeps_a_job_and_what_became_of_it_is_told() {
    side_by_side([
        case(a_job_of_the_embedded_server_is_explained),
        case(a_job_of_a_node_is_explained),
        case(a_lost_lease_and_who_lost_it_is_told),
    ]);
}
