//! Servers for tests: named by URLs in the environment.

#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use mirror_operator::{
    api::peer::TlsMode,
    postgres::{Connection, connect, connect::SecretFile, ident},
};
use tokio_postgres::Client;

pub const SOURCE: &str = "MIRROR_TEST_SOURCE_URL";
pub const DESTINATION: &str = "MIRROR_TEST_DESTINATION_URL";
pub const CLICKHOUSE: &str = "MIRROR_TEST_CLICKHOUSE_URL";
pub const BIGQUERY: &str = "MIRROR_TEST_BIGQUERY_URL";
pub const SNOWFLAKE: &str = "MIRROR_TEST_SNOWFLAKE_URL";

/// The server that an environment variable names: `postgres://user:password@host:port/database`, or with `http` for ClickHouse and the stand-in for Snowflake.
pub fn connection(variable: &str) -> Connection {
    let url =
        std::env::var(variable).unwrap_or_else(|_| panic!("set {variable} to scheme://user:password@host:port/database of a test server"));
    let parsed = || {
        let (user, rest) = url.split_once("://")?.1.split_once(':')?;
        let (password, rest) = rest.rsplit_once('@')?;
        let (address, database) = rest.split_once('/')?;
        let (host, port) = address.rsplit_once(':')?;
        Some((user, password, host, port.parse().ok()?, database))
    };
    let (user, password, host, port, database) = parsed().unwrap_or_else(|| panic!("{variable} is not of that form"));
    Connection {
        peer: variable.to_string(),
        host: host.into(),
        port,
        database: database.into(),
        user: user.into(),
        password: Some(secret(password)),
        tls: TlsMode::Prefer,
        ca: None,
        client_certificate: None,
        connect_timeout_millis: 10_000,
    }
}

/// The same, without TLS.
pub fn server(variable: &str) -> Connection {
    Connection { tls: TlsMode::Disable, ..connection(variable) }
}

/// A number that no other caller in this process has.
pub fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A text as a mounted secret.
pub fn secret(text: &str) -> SecretFile {
    let name = format!("mirror-test-secret-{}-{}", std::process::id(), unique());
    let path: PathBuf = std::env::temp_dir().join(name);
    std::fs::write(&path, text).unwrap();
    SecretFile { path, secret: "test".into(), key: "password".into() }
}

/// Makes an empty database, in place of an older one, and returns how to reach it.
pub async fn database(variable: &str, name: &str) -> Connection {
    remove_database(variable, name).await;
    let mut to = connection(variable);
    let client = connect(&to, "test").await.unwrap();
    client.batch_execute(&format!("CREATE DATABASE {}", ident(name))).await.unwrap();
    to.database = name.into();
    to
}

/// Removes a database with its slots. They count for the whole server.
pub async fn remove_database(variable: &str, name: &str) {
    let client = connect(&connection(variable), "test").await.unwrap();
    let end = format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = '{name}' AND active");
    let drop_slots = format!("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{name}'");
    until("the slots are dropped", async || {
        client.batch_execute(&end).await.unwrap();
        client.batch_execute(&drop_slots).await.is_ok()
    })
    .await;
    client.batch_execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(name))).await.unwrap();
}

/// Waits for a condition, five minutes at most.
pub async fn until<F: AsyncFnMut() -> bool>(what: &str, mut holds: F) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(300);
    while std::time::Instant::now() < deadline {
        if holds().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("waited in vain until {what}");
}

/// The single value of a query, as text.
pub async fn value(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get::<_, Option<String>>(0).unwrap_or_default()
}

/// The first of many numbers of which every `step`th is tried: another one each time, unless MIRROR_TEST_SEED names it. A test that fails prints what to set.
pub fn first(step: usize) -> usize {
    let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos() as usize / 1000;
    let seed =
        std::env::var("MIRROR_TEST_SEED").map_or_else(|_| clock(), |seed| seed.parse().expect("MIRROR_TEST_SEED is a number")) % step;
    println!("MIRROR_TEST_SEED={seed}");
    1 + seed
}
