//! The life of a mirror: first load, change stream, resyncs, cancel, deletion.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mirror_operator::api::{
    Mirror, MirrorResync,
    mirror::MirrorPhase,
    resync::{Outcome, Phase},
};
use serde_json::json;

use crate::world::{LIMIT, World, connect, until};

const SHOP: &str = "
    CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text NOT NULL UNIQUE, note text);
    CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer bigint NOT NULL REFERENCES customers, total numeric(12,2) NOT NULL, at timestamptz NOT NULL DEFAULT now());
    INSERT INTO customers (email, note) SELECT 'c' || i || '@example.com', repeat('n', i % 50) FROM generate_series(1, 2000) i;
    INSERT INTO orders (customer, total) SELECT 1 + i % 2000, i * 1.5 FROM generate_series(1, 10000) i;";

/// A reader of the live tables that asks every millisecond and remembers what a user would complain about.
struct Reader {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(Duration, Vec<String>, u64)>,
}

impl Reader {
    async fn start(database: &str) -> Self {
        let client = connect("DESTINATION", database).await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut longest, mut complaints, mut reads) = (Duration::ZERO, vec![], 0);
            while !stopped.load(Ordering::Relaxed) {
                let asked = Instant::now();
                // One statement over both tables: every order's customer is there, whichever generation of tables is read.
                let sql = "SELECT (SELECT count(*) FROM (SELECT 1 FROM customers LIMIT 10) c), (SELECT count(*) FROM (SELECT 1 FROM orders LIMIT 10) o)";
                match client.query_one(sql, &[]).await {
                    Ok(row) if row.get::<_, i64>(0) == 10 && row.get::<_, i64>(1) == 10 => {}
                    Ok(row) => complaints.push(format!("saw {} customers and {} orders", row.get::<_, i64>(0), row.get::<_, i64>(1))),
                    Err(error) => complaints.push(error.to_string()),
                }
                longest = longest.max(asked.elapsed());
                reads += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            (longest, complaints, reads)
        });
        Self { stop, task }
    }

    async fn end(self) -> (Duration, Vec<String>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the reader")
    }
}

async fn shop(world: World) -> World {
    world.source.batch_execute(SHOP).await.expect("a shop");
    world.apply(world.mirror("shop", &["public.customers", "public.orders"], json!({}))).await.expect("a Mirror");
    world.ready("shop").await;
    world
}

async fn both_equal(world: &World) {
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
async fn a_resync_picks_up_a_changed_schema_and_readers_never_notice() {
    let world = shop(World::alone("resync").await).await;
    world.source.batch_execute("DELETE FROM orders WHERE id % 10 = 0").await.unwrap();
    both_equal(&world).await;
    let deleted_at: String = world
        .destination
        .query_one("SELECT max(\"_PEERDB_SYNCED_AT\")::text FROM orders WHERE \"_PEERDB_IS_DELETED\"", &[])
        .await
        .unwrap()
        .get(0);
    world.destination.batch_execute("CREATE INDEX by_total ON orders (total); CREATE VIEW big AS SELECT id FROM orders WHERE total > 100; COMMENT ON TABLE orders IS 'kept'; DROP ROLE IF EXISTS resync_reader; CREATE ROLE resync_reader; GRANT SELECT ON orders TO resync_reader").await.unwrap();
    world.source.batch_execute("ALTER TABLE orders ALTER at TYPE text; ALTER TABLE customers RENAME note TO remark").await.unwrap();
    world.condition("shop", "SchemaInSync", "True", LIMIT).await;
    let reader = Reader::start(world.database()).await;
    for round in ["first", "second"] {
        world.apply(world.resync(round, "shop", json!({}))).await.unwrap();
        let ended = world.phase(round, Phase::Running).await;
        let status = ended.status.unwrap();
        let orders = status.tables.iter().find(|t| t.source == "public.orders").unwrap();
        assert_eq!((orders.soft_deleted_carried, orders.missing_carried), (1000, 0), "{round}");
        assert!(status.completion_time.is_some() && status.swap.unwrap().lock_millis < 500, "{round}");
    }
    let (longest, complaints, reads) = reader.end().await;
    assert!(complaints.is_empty(), "{complaints:?}");
    assert!(reads > 100 && longest < Duration::from_millis(500), "{reads} reads, the longest {longest:?}");
    world.ready("shop").await;
    world.equal("orders", "id, customer, total, at").await;
    world.equal("customers", "id, email, remark").await;
    let row = world.destination.query_one("SELECT max(\"_PEERDB_SYNCED_AT\")::text, obj_description('orders'::regclass), has_table_privilege('resync_reader', 'orders', 'SELECT'), (SELECT count(*) FROM pg_indexes WHERE indexname = 'by_total' AND tablename = 'orders'), (SELECT count(*) FROM big) FROM orders WHERE \"_PEERDB_IS_DELETED\"", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), deleted_at, "carried rows keep their time");
    assert_eq!((row.get::<_, Option<String>>(1).as_deref(), row.get::<_, bool>(2), row.get::<_, i64>(3)), (Some("kept"), true, 1));
    assert!(row.get::<_, i64>(4) > 1000, "the view reads the new table");
    assert_eq!(world.tables("public").await, ["customers", "orders"], "no shadow and no old table is left");
    let mirror: Mirror = world.get("shop").await;
    let status = mirror.status.unwrap();
    assert_eq!((status.live_epoch, status.resyncs.len(), status.resyncs[0].outcome), (3, 3, Outcome::Succeeded));
    assert_eq!(world.slots().await.len(), 1, "only the live epoch's slot is left");
    world.destination.batch_execute("DROP OWNED BY resync_reader; DROP ROLE resync_reader").await.unwrap();
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
