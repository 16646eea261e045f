//! The life of a mirror: first load, change stream, resyncs, cancel, deletion.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use mirror_operator::api::{Mirror, MirrorResync, mirror::MirrorPhase, resync::Phase};
use serde_json::json;

use crate::world::{LIMIT, World, connect, until};

const SHOP: &str = "
    CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text NOT NULL UNIQUE, note text);
    CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer bigint NOT NULL REFERENCES customers, total numeric(12,2) NOT NULL, at timestamptz NOT NULL DEFAULT now());
    INSERT INTO customers (email, note) SELECT 'c' || i || '@example.com', repeat('n', i % 50) FROM generate_series(1, 2000) i;
    INSERT INTO orders (customer, total) SELECT 1 + i % 2000, i * 1.5 FROM generate_series(1, 10000) i;";

pub async fn shop(world: World) -> World {
    world.source.batch_execute(SHOP).await.expect("a shop");
    world.apply(world.mirror("shop", &["public.customers", "public.orders"], json!({}))).await.expect("a Mirror");
    world.ready("shop").await;
    world
}

pub async fn both_equal(world: &World) {
    world.equal("customers", "id, email, note").await;
    world.equal("orders", "id, customer, total, at").await;
}

#[tokio::test]
async fn a_new_mirror_is_loaded_and_then_follows_changes() {
    let world = shop(World::new("first-load").await).await;
    both_equal(&world).await;
    let initial: MirrorResync = world.get("shop-initial").await;
    assert_eq!(initial.status.as_ref().map(|s| s.phase), Some(Phase::Running));
    assert_eq!(initial.metadata.owner_references.unwrap()[0].kind, "Mirror");
    world.source.batch_execute("INSERT INTO customers (email) VALUES ('new@example.com'); UPDATE orders SET total = total + 1 WHERE id % 3 = 0; DELETE FROM orders WHERE id % 7 = 0").await.unwrap();
    both_equal(&world).await;
    let flagged: i64 = world.destination.query_one("SELECT count(*) FROM orders WHERE \"_PEERDB_IS_DELETED\"", &[]).await.unwrap().get(0);
    assert_eq!(flagged, 1428, "deleted rows stay, flagged");
    world.event("shop", "Streaming").await;
    world.end().await;
}

#[tokio::test]
async fn rows_that_vanished_unnoticed_are_carried_as_deleted_and_counted_apart() {
    let world = shop(World::new("missing").await).await;
    world
        .destination
        .batch_execute("INSERT INTO orders (id, customer, total, at) SELECT -i, 1, 0, now() FROM generate_series(1, 5) i")
        .await
        .unwrap();
    world.apply(world.resync("again", "shop", json!({}))).await.unwrap();
    let ended = world.phase("again", Phase::Running).await;
    let tables = ended.status.unwrap().tables;
    let orders = tables.iter().find(|t| t.source == "public.orders").unwrap();
    assert_eq!((orders.rows_loaded, orders.soft_deleted_carried, orders.missing_carried), (10_000, 0, 5));
    both_equal(&world).await;
    world.end().await;
}

#[tokio::test]
async fn changes_made_while_a_resync_loads_are_neither_lost_nor_doubled() {
    let world = shop(World::new("busy").await).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (writer, stopped) = (connect("SOURCE", world.database()).await, stop.clone());
    let load = tokio::spawn(async move {
        while !stopped.load(Ordering::Relaxed) {
            writer.batch_execute("BEGIN; INSERT INTO orders (customer, total) SELECT 1 + i, i FROM generate_series(1, 20) i; UPDATE orders SET total = total + 1 WHERE id IN (SELECT id FROM orders ORDER BY random() LIMIT 5); DELETE FROM orders WHERE id IN (SELECT id FROM orders ORDER BY random() LIMIT 3); COMMIT").await.unwrap();
        }
    });
    for round in ["one", "two", "three"] {
        world.apply(world.resync(round, "shop", json!({ "snapshot": { "chunkSize": "64Ki" } }))).await.unwrap();
        world.phase(round, Phase::Running).await;
    }
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    both_equal(&world).await;
    world.end().await;
}

#[tokio::test]
async fn two_resyncs_at_once_run_one_after_the_other() {
    let world = shop(World::new("two").await).await;
    world.apply(world.resync("first", "shop", json!({ "swap": { "approval": "Manual" } }))).await.unwrap();
    world.says("first", "approved").await;
    world.apply(world.resync("second", "shop", json!({}))).await.unwrap();
    world.says("second", "Waiting for MirrorResync first").await;
    world.apply(world.resync("first", "shop", json!({ "swap": { "approval": "Manual", "approved": true } }))).await.unwrap();
    let (first, second) = (world.phase("first", Phase::Running).await, world.phase("second", Phase::Running).await);
    assert!(first.status.unwrap().completion_time.unwrap() <= second.status.unwrap().start_time.unwrap());
    world.end().await;
}

#[tokio::test]
async fn deleting_a_resync_before_its_swap_leaves_no_slot_shadow_or_job_and_the_next_one_heals() {
    let world = shop(World::new("cancel").await).await;
    world.apply(world.resync("doomed", "shop", json!({ "swap": { "approval": "Manual" } }))).await.unwrap();
    world.says("doomed", "approved").await;
    assert_eq!(world.tables("public").await, ["customers", "customers_resync", "orders", "orders_resync"]);
    world.api::<MirrorResync>().delete("doomed", &Default::default()).await.unwrap();
    until("the resync is gone", LIMIT, || async {
        match world.api::<MirrorResync>().get_opt("doomed").await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(world.tables("public").await, ["customers", "orders"]);
    assert_eq!(world.slots().await, Vec::<String>::new());
    until("its pods are gone", LIMIT, || async {
        let pods = [world.pods("snapshot").await, world.pods("swap").await].concat();
        let left = pods.iter().filter(|p| p.metadata.labels.as_ref().is_some_and(|l| l["mirror-operator.io/resync"] == "doomed")).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
    })
    .await;
    let mirror = world.condition("shop", "ResyncRequired", "True", LIMIT).await;
    assert_eq!(mirror.status.unwrap().phase, MirrorPhase::Failed);
    world.source.batch_execute("INSERT INTO customers (email) VALUES ('while-nobody-streams@example.com')").await.unwrap();
    world.apply(world.resync("cure", "shop", json!({}))).await.unwrap();
    world.phase("cure", Phase::Running).await;
    both_equal(&world).await;
    world.end().await;
}

#[tokio::test]
async fn a_slot_that_was_dropped_by_hand_is_reported_and_healed_by_a_resync() {
    let world = shop(World::new("slot-lost").await).await;
    world.drop_slot().await;
    let mirror = world.condition("shop", "ResyncRequired", "True", LIMIT).await;
    assert!(mirror.status.unwrap().conditions.iter().any(|c| c.type_ == "SlotHealthy" && c.status == "False"));
    world.source.batch_execute("DELETE FROM orders WHERE id = 1").await.unwrap();
    world.apply(world.resync("heal", "shop", json!({}))).await.unwrap();
    let healed = world.phase("heal", Phase::Running).await;
    assert_eq!(healed.status.unwrap().tables.iter().map(|t| t.missing_carried).sum::<i64>(), 1, "the delete that nobody streamed");
    world.ready("shop").await;
    both_equal(&world).await;
    world.end().await;
}

#[tokio::test]
async fn suspending_a_mirror_stops_the_stream_and_resuming_catches_up() {
    let world = shop(World::new("suspend").await).await;
    world.apply(world.mirror("shop", &["public.customers", "public.orders"], json!({ "suspend": true }))).await.unwrap();
    until("the pipeline pod is gone", LIMIT, || async {
        if world.pods("pipeline").await.is_empty() { Ok(()) } else { Err("still there".into()) }
    })
    .await;
    world.source.batch_execute("INSERT INTO customers (email) VALUES ('later@example.com')").await.unwrap();
    world.apply(world.mirror("shop", &["public.customers", "public.orders"], json!({ "suspend": false }))).await.unwrap();
    world.ready("shop").await;
    both_equal(&world).await;
    world.end().await;
}

#[tokio::test]
async fn deletion_policy_drop_removes_the_tables_and_retain_keeps_them() {
    let world = World::new("deletion").await;
    world.source.batch_execute("CREATE TABLE kept (id int PRIMARY KEY); CREATE TABLE dropped (id int PRIMARY KEY)").await.unwrap();
    world.apply(world.mirror("keep", &["public.kept"], json!({}))).await.unwrap();
    world.apply(world.mirror("drop", &["public.dropped"], json!({ "deletionPolicy": "Drop" }))).await.unwrap();
    world.ready("keep").await;
    world.ready("drop").await;
    for name in ["keep", "drop"] {
        world.api::<Mirror>().delete(name, &Default::default()).await.unwrap();
    }
    until("the Mirrors are gone", LIMIT, || async {
        let left = world.api::<Mirror>().list(&Default::default()).await.map_err(|e| e.to_string())?.items.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
    })
    .await;
    assert_eq!(world.tables("public").await, ["kept"]);
    world.end().await;
}

#[tokio::test]
async fn sequences_follow_so_that_the_destination_can_be_written_to() {
    let world = World::new("sequences").await;
    let sql = "CREATE TABLE t (id bigserial PRIMARY KEY, v text); INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 100)";
    world.source.batch_execute(sql).await.unwrap();
    world.apply(world.mirror("m", &["public.t"], json!({ "sequences": "Sync" }))).await.unwrap();
    world.ready("m").await;
    world.apply(world.resync("again", "m", json!({}))).await.unwrap();
    world.phase("again", Phase::Running).await;
    world.source.batch_execute("INSERT INTO t (v) VALUES ('later')").await.unwrap();
    world.equal("t", "id, v").await;
    until("the sequence follows", LIMIT, || async {
        let row = world.destination.query_one("SELECT last_value FROM t_id_seq", &[]).await.map_err(|e| e.to_string())?;
        let last: i64 = row.get(0);
        if last == 101 { Ok(()) } else { Err(format!("{last}")) }
    })
    .await;
    world.condition("m", "SequencesInSync", "True", LIMIT).await;
    let row = world.destination.query_one("INSERT INTO t (v) VALUES ('ours') RETURNING id", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 102);
    world.destination.batch_execute("ALTER SEQUENCE t_id_seq RENAME TO aside; CREATE SEQUENCE t_id_seq").await.unwrap();
    let told = world.condition("m", "SequencesInSync", "False", LIMIT).await;
    let conditions = told.status.unwrap().conditions;
    assert!(conditions.iter().any(|c| c.type_ == "SequencesInSync" && c.message.contains("t_id_seq")), "{conditions:?}");
    assert!(conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"), "{conditions:?}");
    world.destination.batch_execute("DROP SEQUENCE t_id_seq; ALTER SEQUENCE aside RENAME TO t_id_seq").await.unwrap();
    world.condition("m", "SequencesInSync", "True", LIMIT).await;
    world.end().await;
}

#[tokio::test]
async fn a_mirror_without_an_initial_load_brings_changes_only_until_it_is_resynced() {
    let world = World::new("no-load").await;
    world.source.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'before')").await.unwrap();
    world.apply(world.mirror("m", &["public.t"], json!({ "initialLoad": false }))).await.unwrap();
    world.ready("m").await;
    world.source.batch_execute("INSERT INTO t VALUES (2, 'after')").await.unwrap();
    let ids = "SELECT coalesce(string_agg(id::text, ' ' ORDER BY id), '') FROM t";
    until("the change is there", LIMIT, || async {
        let row = world.destination.query_one(ids, &[]).await.map_err(|e| e.to_string())?;
        let found: String = row.get(0);
        if found == "2" { Ok(()) } else { Err(found) }
    })
    .await;
    world.apply(world.resync("again", "m", json!({}))).await.unwrap();
    world.phase("again", Phase::Running).await;
    world.equal("t", "id, v").await;
    world.end().await;
}

#[tokio::test]
async fn a_view_is_loaded_by_ranges_of_a_key() {
    let world = World::new("view").await;
    let sql = "CREATE TABLE below (id bigint PRIMARY KEY, v text);
               INSERT INTO below SELECT g, repeat(md5(g::text), 8) FROM generate_series(-20000, 20000) g;
               CREATE VIEW t AS SELECT id, v FROM below WHERE id % 7 <> 0; ANALYZE below";
    world.source.batch_execute(sql).await.unwrap();
    let tables = |key: &str| json!({ "mode": "SnapshotOnly", "snapshot": { "chunkSize": "512Ki" }, "tables": [{ "source": "public.t", "partitionKey": key }] });
    world.apply(world.mirror("m", &["public.t"], tables("v"))).await.unwrap();
    world.mirror_says("m", "name a column of type smallint, integer or bigint", LIMIT).await;
    world.apply(world.mirror("m", &["public.t"], tables("id"))).await.unwrap();
    world.ready("m").await;
    world.equal("t", "id, v").await;
    world.end().await;
}

#[tokio::test]
async fn a_mirror_that_loads_once_keeps_no_slot_and_no_pipeline_and_loads_again_with_a_resync() {
    let world = World::new("once").await;
    world.source.batch_execute("CREATE TABLE t (id int, v text); INSERT INTO t VALUES (1, 'first')").await.unwrap();
    world.apply(world.mirror("m", &["public.t"], json!({ "mode": "SnapshotOnly" }))).await.unwrap();
    let loaded = world.ready("m").await.status.unwrap();
    assert_eq!((loaded.phase, loaded.slot), (MirrorPhase::Loaded, None));
    world.phase("m-initial", Phase::Succeeded).await;
    world.equal("t", "id, v").await;
    world.source.batch_execute("INSERT INTO t VALUES (2, 'second')").await.unwrap();
    world.apply(world.resync("again", "m", json!({}))).await.unwrap();
    world.phase("again", Phase::Succeeded).await;
    world.equal("t", "id, v").await;
    world.ready("m").await;
    until("the pipeline is gone", LIMIT, || async {
        let pods = world.pods("pipeline").await.len();
        if pods == 0 { Ok(()) } else { Err(format!("{pods} pods")) }
    })
    .await;
    assert_eq!(world.slots().await, Vec::<String>::new());
    assert_eq!(world.tables("public").await, ["t"]);
    world.end().await;
}
