//! `leasehold doctor` says what is wrong with the services that a node needs.

use std::time::Duration;

use crate::support::{PrivatePostgres, PrivateRedis, Process, free_port, leasehold};

/// Runs it on those two, and returns its exit code and what it says.
async fn doctor(postgres: &str, redis: &str) -> (Option<i32>, String) {
    let urls = ["--database-url", postgres, "--redis-url", redis];
    let mut doctor = Process::start("doctor", leasehold(["doctor"].into_iter().chain(urls)));
    let status = doctor.ended(Duration::from_secs(60)).await;
    (status.code(), doctor.output().join("\n"))
}

#[tokio::test]
async fn doctor_tells_apart_what_can_be_wrong_with_a_service() {
    let (postgres, redis) = (
        PrivatePostgres::launch().await,
        PrivateRedis::launch().await,
    );
    let nobody = free_port();
    let (here, there) = (postgres.url(), redis.url());
    let (base, _) = here.rsplit_once('/').unwrap();
    let no_database = format!("{base}/absent");
    let (_, host) = there.rsplit_once('@').unwrap();
    let (no_password, wrong_password) = (format!("redis://{host}"), format!("redis://:x@{host}"));

    let no_scripts = [
        "ACL",
        "SETUSER",
        "plain",
        "on",
        ">pw",
        "~*",
        "+@all",
        "-@scripting",
    ];
    redis.run::<()>(&no_scripts).await;
    let no_scripts = format!("redis://plain:pw@{host}");

    let (code, good) = doctor(&here, &there).await;
    assert_eq!(code, Some(0), "{good}");
    for (postgres, redis, says) in [
        (
            format!("postgres://u@127.0.0.1:{nobody}/d"),
            there.clone(),
            "Connection refused",
        ),
        (
            no_database,
            there.clone(),
            "database \"absent\" does not exist",
        ),
        (
            here.clone(),
            format!("redis://127.0.0.1:{nobody}"),
            "Connection refused",
        ),
        (here.clone(), no_password, "asks for a password"),
        (here.clone(), wrong_password, "authentication failed"),
        (here.clone(), no_scripts, "may not run scripts"),
    ] {
        let (code, told) = doctor(&postgres, &redis).await;
        assert_eq!(code, Some(1), "{told}");
        assert_eq!(told.matches("BAD").count(), 1, "{told}");
        assert!(told.contains(says), "{says}: {told}");
    }
}
