//! The replication connection.

use mirror_operator::{
    api::peer::TlsMode,
    postgres::{
        Connection, connect,
        connect::SecretFile,
        wire::{ReplicationSession, WireError},
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
