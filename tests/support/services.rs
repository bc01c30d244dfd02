//! Where `./scripts/test` put the services of this test run.

use std::{env, fs, os::unix::fs::MetadataExt, path::PathBuf, process::Command};

/// A superuser's URL on the Postgres that all tests share. Make a [`super::TestDatabase`] there.
pub fn shared_database_url() -> String {
    variable("LEASEHOLD_TEST_DATABASE_URL")
}

/// The Redis that all tests share. Use a key prefix of your own, and never FLUSHALL there.
pub fn shared_redis_url() -> String {
    variable("LEASEHOLD_TEST_REDIS_URL")
}

/// The folder of Postgres' programs.
pub fn postgres_bin() -> PathBuf {
    variable("LEASEHOLD_TEST_PG_BIN").into()
}

/// A data folder just made by initdb, whose superuser has the name and password of
/// [`shared_database_url`].
pub fn postgres_template() -> PathBuf {
    variable("LEASEHOLD_TEST_PG_TEMPLATE").into()
}

/// A command that runs as the user `postgres` when we are root, since Postgres refuses root. It
/// becomes the program, so signals to its process id reach that.
pub fn as_postgres_user(program: PathBuf) -> Command {
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if !is_root {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=postgres",
        "--regid=postgres",
        "--init-groups",
        "--",
    ]);
    command.arg(program);
    command
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run ./scripts/test, which starts the services and sets it")
    })
}
