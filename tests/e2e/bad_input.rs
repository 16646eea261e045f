//! Bad input gets a clear word before anything is changed.

use mirror_operator::api::{Mirror, resync::Phase};
use serde_json::{Value, json};

use crate::world::{LIMIT, World, judged, message};

#[tokio::test]
async fn a_peer_says_what_is_missing_and_what_cures_it() {
    let world = World::new("peers").await;
    let judge = async |name: &str, side: &str, more: Value| {
        world.apply(world.peer(name, side, more)).await.expect("a Peer");
        judged(&world, name).await
    };
    assert_eq!(judge("source", "SOURCE", json!({})).await.0, "True");
    assert_eq!(judge("destination", "DESTINATION", json!({})).await.0, "True");
    world.secret("wrong", &[("password", "wrong")]).await;
    let table = [
        ("wrong-password", json!({ "passwordSecretRef": { "name": "wrong", "key": "password" } }), "password authentication failed"),
        (
            "no-secret",
            json!({ "passwordSecretRef": { "name": "nowhere", "key": "password" } }),
            "Secret \"nowhere\" or its key \"password\" does not exist",
        ),
        ("no-key", json!({ "passwordSecretRef": { "name": "postgres", "key": "nokey" } }), "its key \"nokey\" does not exist"),
        ("no-host", json!({ "host": "nowhere.invalid" }), "nowhere.invalid"),
        ("no-port", json!({ "port": 1 }), ":1: "),
        ("no-database", json!({ "database": "missing" }), "does not exist"),
        ("tls", json!({ "tls": { "mode": "Require" } }), "TLS"),
    ];
    for (name, more, words) in table {
        let (verdict, _, said) = judge(name, "SOURCE", more).await;
        assert_eq!(verdict, "False", "{name}: {said}");
        assert!(said.contains(words), "{name}: expected {words:?} in {said:?}");
        assert!(!said.contains("testbed"), "{name}: no secret in {said:?}");
        world.warns(&[name], words).await;
    }
    world.source.batch_execute("DROP ROLE IF EXISTS plain; CREATE ROLE plain LOGIN PASSWORD 'plain'").await.unwrap();
    world.secret("plain", &[("password", "plain")]).await;
    let (verdict, _, said) =
        judge("plain", "SOURCE", json!({ "user": "plain", "passwordSecretRef": { "name": "plain", "key": "password" } })).await;
    assert!(verdict == "False" && said.contains("REPLICATION") && said.contains("ALTER ROLE"), "{said}");
    world.source.batch_execute("DROP ROLE plain").await.unwrap();
    world.end().await;
}

/// Names of Mirrors, their tables, and words of the refusal.
fn refusals() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("missing-table", json!([{ "source": "public.nothere" }]), "public.nothere"),
        ("no-key", json!([{ "source": "public.nokey" }]), "REPLICA IDENTITY"),
        ("a-view", json!([{ "source": "public.v" }]), "public.v"),
        ("not-ours", json!([{ "source": "public.foreign_data" }]), "foreign_data"),
        ("foreign-shadow", json!([{ "source": "public.shadowed" }]), "shadowed_resync"),
        (
            "key-excluded",
            json!([{ "source": "public.good", "destination": "public.key-excluded", "excludeColumns": ["id"] }]),
            "public.good: column \"id\" is part of the key and cannot be excluded; remove it from excludeColumns",
        ),
        (
            "no-such-column",
            json!([{ "source": "public.good", "destination": "public.no-such-column", "excludeColumns": ["nothere"] }]),
            "nothere",
        ),
        (
            "bad-type",
            json!([{ "source": "public.good", "destination": "public.bad-type", "columns": [{ "source": "v", "type": "no_such_type" }] }]),
            "no_such_type",
        ),
        (
            "same-destination",
            json!([{ "source": "public.good" }, { "source": "public.nokey", "destination": "public.good" }]),
            "same destination",
        ),
        ("bad-peer", json!([{ "source": "public.good", "destination": "public.bad-peer" }]), "\"nobody\""),
    ]
}

#[tokio::test]
async fn a_mirror_that_cannot_work_is_refused_before_anything_is_changed() {
    let world = World::new("refusals").await;
    world
        .source
        .batch_execute(
            "
        CREATE TABLE good (id int PRIMARY KEY, v text); CREATE TABLE nokey (v text); CREATE VIEW v AS SELECT 1 AS id;
        CREATE TABLE foreign_data (id int PRIMARY KEY); CREATE TABLE shadowed (id int PRIMARY KEY); INSERT INTO good VALUES (1, 'x')",
        )
        .await
        .unwrap();
    world
        .destination
        .batch_execute(
            "
        CREATE TABLE foreign_data (id int PRIMARY KEY); INSERT INTO foreign_data VALUES (42);
        CREATE TABLE shadowed_resync (id int PRIMARY KEY); INSERT INTO shadowed_resync VALUES (42)",
        )
        .await
        .unwrap();
    let refused = refusals();
    for (name, tables, _) in &refused {
        let mut more = json!({ "tables": tables });
        if *name == "bad-peer" {
            more["source"] = json!({ "peer": "nobody" });
        }
        world.apply(world.mirror(name, &[], more)).await.expect("a Mirror");
    }
    for (name, _, words) in &refused {
        world.mirror_says(name, words, LIMIT).await;
        world.warns(&[name, &format!("{name}-initial")], words).await;
        let mirror: Mirror = world.get(name).await;
        assert_eq!(mirror.status.unwrap().live_epoch, 0, "{name}");
    }
    world.event("key-excluded-initial", "KeyColumnExcluded").await;
    assert_eq!(world.slots().await, Vec::<String>::new(), "no slot was made");
    assert_eq!(world.tables("public").await, ["foreign_data", "shadowed_resync"]);
    let rows = "SELECT (SELECT count(*) FROM foreign_data) + (SELECT count(*) FROM shadowed_resync)";
    assert_eq!(world.destination.query_one(rows, &[]).await.unwrap().get::<_, i64>(0), 2);
    world.end().await;
}

#[tokio::test]
async fn a_resync_that_cannot_work_fails_before_the_old_pipeline_is_dropped() {
    let world = World::new("preflight").await;
    world.source.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x')").await.unwrap();
    world.apply(world.mirror("m", &["public.t"], json!({}))).await.unwrap();
    world.ready("m").await;
    world.destination.batch_execute("CREATE TABLE t_resync (mine int); INSERT INTO t_resync VALUES (1)").await.unwrap();
    world.apply(world.resync("doomed", "m", json!({}))).await.unwrap();
    let failed = world.phase("doomed", Phase::Failed).await;
    assert!(message(&failed).contains("t_resync"), "{}", message(&failed));
    assert!(!failed.status.unwrap().old_pipeline_dropped);
    world.event("doomed", "ForeignShadow").await;
    world.source.batch_execute("INSERT INTO t VALUES (2, 'still streaming')").await.unwrap();
    world.equal("t", "id, v").await;
    world.destination.batch_execute("DROP TABLE t_resync").await.unwrap();
    world.apply(world.resync("fine", "m", json!({}))).await.unwrap();
    world.phase("fine", Phase::Running).await;
    world.equal("t", "id, v").await;
    world.end().await;
}
