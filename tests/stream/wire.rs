//! The replication connection.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use mirror_operator::{
    api::peer::TlsMode,
    postgres::{
        Connection, Lsn, connect,
        connect::SecretFile,
        wire::{Frame, ReplicationSession, WireError},
    },
};

use crate::{
    support::{SOURCE, database, secret, value},
    world::with_tls,
};

#[tokio::test]
async fn every_tls_mode_connects_or_says_why_not() {
    for mode in [TlsMode::Disable, TlsMode::Prefer, TlsMode::Require] {
        let mut session = ReplicationSession::connect(&with_tls(mode), "test").await.unwrap();
        let rows = session.simple_query("SELECT ssl::text, NULL FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await.unwrap();
        assert_eq!(rows, [[Some((mode != TlsMode::Disable).to_string()), None]], "{mode:?}");
    }
    let untrusted = ReplicationSession::connect(&with_tls(TlsMode::VerifyFull), "test").await.err().unwrap();
    assert!(untrusted.to_string().contains("certificate"), "{untrusted}");
    let path = std::env::var("MIRROR_TEST_SOURCE_CA").expect("MIRROR_TEST_SOURCE_CA: the CA of the source's certificate").into();
    let ca = SecretFile { path, secret: "ca".into(), key: "ca.crt".into() };
    for mode in [TlsMode::VerifyCA, TlsMode::VerifyFull] {
        let to = Connection { ca: Some(ca.clone()), ..with_tls(mode) };
        ReplicationSession::connect(&to, "test").await.unwrap_or_else(|e| panic!("{mode:?}: {e}"));
        connect(&to, "test").await.unwrap_or_else(|e| panic!("{mode:?}: {e}"));
    }
}

/// A certificate for a role, by the authority of the server's own, whose key lies beside it.
fn certificate(ca: &Path, role: &str) -> (SecretFile, SecretFile) {
    let directory = std::env::temp_dir().join(format!("mirror-test-certificate-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj \"/CN=$1\" -keyout client.key -out client.crt \
                  -CA \"$2/ca.crt\" -CAkey \"$2/ca.key\" -addext basicConstraints=critical,CA:FALSE";
    let ca = ca.parent().unwrap().to_str().unwrap();
    let made = Command::new("sh").args(["-ec", script, "sh", role, ca]).current_dir(&directory).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let file = |name: &str| SecretFile { path: directory.join(name), secret: "client".into(), key: name.into() };
    (file("client.crt"), file("client.key"))
}

#[tokio::test]
async fn a_client_certificate_lets_its_role_in_without_a_password() {
    let admin = connect(&with_tls(TlsMode::Prefer), "test").await.unwrap();
    admin.batch_execute("DROP ROLE IF EXISTS certified; CREATE ROLE certified LOGIN REPLICATION").await.unwrap();
    let path: PathBuf = std::env::var("MIRROR_TEST_SOURCE_CA").expect("MIRROR_TEST_SOURCE_CA: the CA of the source's certificate").into();
    let certificates = certificate(&path, "certified");
    let ca = Some(SecretFile { path, secret: "ca".into(), key: "ca.crt".into() });
    let without = Connection { user: "certified".into(), password: None, ca, ..with_tls(TlsMode::VerifyFull) };
    let to = Connection { client_certificate: Some(certificates), ..without.clone() };
    let client = connect(&to, "test").await.unwrap();
    assert_eq!(value(&client, "SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await, "/CN=certified");
    let mut session = ReplicationSession::connect(&to, "test").await.unwrap();
    assert_eq!(session.simple_query("SELECT current_user").await.unwrap(), [[Some("certified".to_string())]]);
    let refused = connect(&without, "test").await.err().unwrap().to_string();
    assert!(refused.contains("certificate"), "{refused}");
    admin.batch_execute("DROP ROLE certified").await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_told_by_its_sqlstate() {
    let to = Connection { password: Some(secret("wrong")), ..with_tls(TlsMode::Prefer) };
    match ReplicationSession::connect(&to, "test").await.err() {
        Some(WireError::Server { sqlstate, .. }) => assert_eq!(sqlstate, "28P01"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn md5_passwords_work() {
    let admin = connect(&with_tls(TlsMode::Prefer), "test").await.unwrap();
    admin
        .batch_execute(
            "SET password_encryption = md5; DROP ROLE IF EXISTS stream_md5; CREATE ROLE stream_md5 LOGIN REPLICATION PASSWORD 'old'",
        )
        .await
        .unwrap();
    let to = Connection { user: "stream_md5".into(), password: Some(secret("old")), ..with_tls(TlsMode::Prefer) };
    // The server accepts an md5 password only where pg_hba.conf says md5; with scram-sha-256 it refuses in words.
    match ReplicationSession::connect(&to, "test").await {
        Ok(_) => {}
        Err(WireError::Server { sqlstate, .. }) => assert_eq!(sqlstate, "28P01"),
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_exported_snapshot_holds_what_was_there() {
    let to = database(SOURCE, "stream_wire").await;
    let client = connect(&to, "test").await.unwrap();
    client.batch_execute("CREATE TABLE public.t AS SELECT generate_series(1, 10)").await.unwrap();
    let mut session = ReplicationSession::connect(&to, "test").await.unwrap();
    let slot = session.create_slot("stream_wire_slot", true).await.unwrap();
    client.batch_execute("INSERT INTO public.t VALUES (11)").await.unwrap();
    client.batch_execute(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{}'", slot.snapshot)).await.unwrap();
    assert_eq!(value(&client, "SELECT count(*)::text FROM public.t").await, "10");
    assert_ne!(slot.consistent_point.0, 0);
    match session.simple_query("SELECT nonsense").await {
        Err(WireError::Server { sqlstate, .. }) => assert_eq!(sqlstate, "42703"),
        other => panic!("{other:?}"),
    }
    assert_eq!(session.simple_query("SELECT 1").await.unwrap().len(), 1, "the session goes on after an error");
}

#[tokio::test]
async fn a_slow_reader_holds_a_few_large_rows_and_not_all_of_them() {
    let to = database(SOURCE, "stream_wire_bound").await;
    let client = connect(&to, "test").await.unwrap();
    client
        .batch_execute("CREATE TABLE public.t (id int PRIMARY KEY, v text); ALTER TABLE public.t ALTER v SET STORAGE EXTERNAL; CREATE PUBLICATION p FOR TABLE public.t")
        .await
        .unwrap();
    let session = ReplicationSession::connect(&to, "test").await.unwrap();
    client.batch_execute("SELECT pg_create_logical_replication_slot('stream_wire_bound', 'pgoutput')").await.unwrap();
    let start: Lsn = value(&client, "SELECT pg_current_wal_lsn()::text").await.parse().unwrap();
    for id in 0..20 {
        client.batch_execute(&format!("INSERT INTO public.t VALUES ({id}, repeat('x', 10000000))")).await.unwrap();
    }
    let end: Lsn = value(&client, "SELECT pg_current_wal_lsn()::text").await.parse().unwrap();
    let mut stream = session.start("stream_wire_bound", Lsn(0), "p").await.unwrap();
    let mut frames = stream.next().await.unwrap();
    // Until the server can send no more.
    let sent = "SELECT coalesce(max(sent_lsn), '0/0')::text FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE slot_name = 'stream_wire_bound'";
    let (mut last, mut same) = (String::new(), 0);
    while same < 20 {
        let now = value(&client, sent).await;
        same = if now == last && now != "0/0" { same + 1 } else { 0 };
        last = now;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let ahead = last.parse::<Lsn>().unwrap().0.saturating_sub(start.0);
    assert!(ahead < 80_000_000, "{ahead} bytes of {} were taken in", end.0 - start.0);
    // And all of it comes once it is asked for.
    let mut bytes = 0;
    while bytes < 200_000_000 {
        bytes += frames.iter().map(|f| if let Frame::Data(_, data) = f { data.len() } else { 0 }).sum::<usize>();
        frames = stream.next().await.unwrap();
    }
}

#[tokio::test]
async fn no_timeout_of_the_role_ends_a_session_of_ours_whatever_the_version() {
    let admin = connect(&with_tls(TlsMode::Prefer), "test").await.unwrap();
    let known = "SELECT string_agg(format('ALTER ROLE stream_hasty SET %I = %L', name, '7s'), '; ') FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout',
                 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')";
    let settings = value(&admin, known).await;
    admin
        .batch_execute(&format!("DROP ROLE IF EXISTS stream_hasty; CREATE ROLE stream_hasty LOGIN REPLICATION PASSWORD 'x'; {settings}"))
        .await
        .unwrap();
    let to = Connection { user: "stream_hasty".into(), password: Some(secret("x")), ..with_tls(TlsMode::Prefer) };
    let left = "SELECT coalesce(string_agg(name, ', '), 'none') FROM pg_settings WHERE name LIKE '%\\_timeout' AND setting = '7000'";
    assert_eq!(value(&connect(&to, "test").await.unwrap(), left).await, "none");
    let mut session = ReplicationSession::connect(&to, "test").await.unwrap();
    assert_eq!(session.simple_query(left).await.unwrap(), [[Some("none".to_string())]]);
    drop(session);
    admin.batch_execute("DROP ROLE stream_hasty").await.unwrap();
}
