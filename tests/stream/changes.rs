//! Every kind of change arrives.

use crate::world::{Options, World};

const HARD: Options = Options { soft: false, excluded: vec![] };
const ITEMS: &str = "CREATE TABLE items (id int PRIMARY KEY, name text, big text, price numeric(10,2))";
/// Stored apart from its row, uncompressed.
const LARGE: &str = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 400))";

async fn items(name: &str, soft: bool) -> World {
    let world = World::with(name, &["items"], ITEMS, Options { soft, excluded: vec![] }).await;
    world.sql("ALTER TABLE public.items ALTER big SET STORAGE EXTERNAL").await;
    world
}

#[tokio::test]
async fn inserts_updates_and_deletes_arrive() {
    for (name, soft) in [("iud_soft", true), ("iud_hard", false)] {
        let world = items(name, soft).await;
        let running = world.run();
        world.sql("INSERT INTO public.items SELECT i, 'a\tb\\n' || i, NULL, i FROM generate_series(1, 100) i").await;
        world.settle(&running).await;
        assert_eq!(world.same("items").await, 100);
        world.sql("UPDATE public.items SET price = price + 1 WHERE id <= 50; DELETE FROM public.items WHERE id > 90; INSERT INTO public.items VALUES (95)").await;
        world.settle(&running).await;
        assert_eq!(world.same("items").await, 91);
        let counts = world.at_destination("SELECT concat_ws(' ', inserts, updates, deletes) FROM _mirror_operator.table").await;
        assert_eq!(counts, "101 50 10");
        if soft {
            let flagged = world.at_destination("SELECT count(*)::text FROM public.items WHERE \"_PEERDB_IS_DELETED\" AND price = id").await;
            assert_eq!(flagged, "9", "deleted rows keep their values");
        }
    }
}

#[tokio::test]
async fn a_row_that_lived_within_one_batch_stays_flagged() {
    let world = items("lived", true).await;
    world.sql("BEGIN; INSERT INTO public.items VALUES (1, 'short'); DELETE FROM public.items; COMMIT").await;
    let running = world.run();
    world.settle(&running).await;
    assert_eq!(world.at_destination("SELECT name || \"_PEERDB_IS_DELETED\" FROM public.items").await, "shorttrue");
    world.sql("INSERT INTO public.items VALUES (1, 'again')").await;
    world.settle(&running).await;
    assert_eq!(world.at_destination("SELECT name || \"_PEERDB_IS_DELETED\" FROM public.items").await, "againfalse");
}

#[tokio::test]
async fn unchanged_large_values_are_kept_also_under_a_new_key() {
    for (name, soft) in [("toast_soft", true), ("toast_hard", false)] {
        let world = items(name, soft).await;
        let running = world.run();
        world.sql(&format!("INSERT INTO public.items SELECT i, 'x', {LARGE}, 1 FROM generate_series(1, 20) i")).await;
        world.settle(&running).await;
        world.sql("UPDATE public.items SET name = 'y' WHERE id <= 5; UPDATE public.items SET id = id + 100 WHERE id BETWEEN 4 AND 8").await;
        world.settle(&running).await;
        assert_eq!(world.same("items").await, 20);
        let long = world.at_destination("SELECT count(*)::text FROM public.items WHERE length(big) = 12800").await;
        assert_eq!(long, if soft { "25" } else { "20" });
        // Chains of key changes, in one transaction and in one batch.
        world.sql("BEGIN; UPDATE public.items SET id = 201 WHERE id = 1; UPDATE public.items SET id = 1 WHERE id = 2; UPDATE public.items SET id = 2 WHERE id = 201;
                   UPDATE public.items SET id = 202 WHERE id = 3; DELETE FROM public.items WHERE id = 202; INSERT INTO public.items VALUES (3, 'new'); COMMIT").await;
        world.settle(&running).await;
        assert_eq!(world.same("items").await, 20);
    }
}

#[tokio::test]
async fn equal_keys_with_different_texts_are_one_row() {
    for (name, soft) in [("scale_soft", true), ("scale_hard", false)] {
        let world = World::with(name, &["n"], "CREATE TABLE n (id numeric PRIMARY KEY, v text)", Options { soft, excluded: vec![] }).await;
        world
            .sql(
                "BEGIN; INSERT INTO public.n VALUES (1.0, 'a'); DELETE FROM public.n; INSERT INTO public.n VALUES (1.00, 'b');
                   DELETE FROM public.n; INSERT INTO public.n VALUES (1.000, 'c'); UPDATE public.n SET id = 1.0000, v = 'd'; COMMIT",
            )
            .await;
        let running = world.run();
        world.settle(&running).await;
        assert_eq!(world.same("n").await, 1);
        assert_eq!(world.at_destination("SELECT id::text || v FROM public.n").await, "1.0000d");
    }
}

#[tokio::test]
async fn truncate_empties_and_later_rows_stay() {
    for (name, soft) in [("truncate_soft", true), ("truncate_hard", false)] {
        let world = items(name, soft).await;
        let running = world.run();
        world.sql("INSERT INTO public.items SELECT i FROM generate_series(1, 10) i").await;
        world
            .sql("BEGIN; INSERT INTO public.items VALUES (11); TRUNCATE public.items; INSERT INTO public.items VALUES (3, 'back'); COMMIT")
            .await;
        world.settle(&running).await;
        assert_eq!(world.same("items").await, 1);
        let all = world.at_destination("SELECT count(*)::text FROM public.items").await;
        assert_eq!(all, if soft { "11" } else { "1" });
    }
}

#[tokio::test]
async fn rows_without_a_key_are_counted() {
    let ddl = "CREATE TABLE log (a int, b json, c text); ALTER TABLE log REPLICA IDENTITY FULL";
    for (name, soft) in [("keyless_soft", true), ("keyless_hard", false)] {
        let world = World::with(name, &["log"], ddl, Options { soft, excluded: vec![] }).await;
        let running = world.run();
        world.sql("INSERT INTO public.log SELECT 1, '{\"x\": 1}', NULL FROM generate_series(1, 5); INSERT INTO public.log VALUES (NULL, NULL, NULL), (NULL, NULL, NULL)").await;
        world.settle(&running).await;
        assert_eq!(world.same("log").await, 7);
        world.sql("DELETE FROM public.log WHERE ctid IN (SELECT ctid FROM public.log WHERE a = 1 LIMIT 2)").await;
        world.sql("DELETE FROM public.log WHERE ctid IN (SELECT ctid FROM public.log WHERE a IS NULL LIMIT 1)").await;
        world.sql("UPDATE public.log SET a = 2 WHERE ctid IN (SELECT ctid FROM public.log WHERE a = 1 LIMIT 1)").await;
        world.settle(&running).await;
        assert_eq!(world.same("log").await, 4);
        assert_eq!(world.at_destination("SELECT count(*)::text FROM public.log").await, if soft { "8" } else { "4" });
    }
}

#[tokio::test]
async fn a_large_transaction_comes_in_pieces_and_is_seen_as_one() {
    let world = World::with("large", &["items"], ITEMS, HARD).await;
    let running = world.run();
    world
        .sql(
            "BEGIN; INSERT INTO public.items SELECT i, 'name ' || i, md5(i::text), i FROM generate_series(1, 150000) i;
               UPDATE public.items SET name = 'changed' WHERE id % 3 = 0; DELETE FROM public.items WHERE id % 5 = 0; COMMIT",
        )
        .await;
    loop {
        let seen: usize = world.at_destination("SELECT count(*)::text FROM public.items").await.parse().unwrap();
        match seen {
            0 => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            120_000 => break,
            part => panic!("{part} rows of an unfinished transaction are visible"),
        }
    }
    world.settle(&running).await;
    assert_eq!(world.same("items").await, 120_000);
}

#[tokio::test]
async fn an_idle_mirror_has_no_lag_and_pins_no_log() {
    let world = World::new("idle", &["items"], &format!("{ITEMS}; CREATE TABLE other (x text)")).await;
    let running = world.run();
    world.sql("INSERT INTO public.other SELECT repeat('x', 1000) FROM generate_series(1, 2000)").await;
    let target = world.source_lsn().await;
    crate::support::until("the slot has moved", async || {
        let sql = format!(
            "SELECT (confirmed_flush_lsn >= '{target}')::text FROM pg_replication_slots WHERE slot_name = '{}'",
            world.brief.slot()
        );
        crate::support::value(&world.source, &sql).await == "true"
    })
    .await;
    crate::support::until("the lag is told as nothing", async || {
        let stream = running.health.borrow().stream.clone();
        stream.connected && stream.lag_bytes == Some(0) && stream.idle_seconds <= 2
    })
    .await;
    crate::support::until("the checkpoint follows", async || {
        let sql = format!("SELECT coalesce(applied_lsn >= '{target}', false)::text FROM _mirror_operator.epoch");
        world.at_destination(&sql).await == "true"
    })
    .await;
}

#[tokio::test]
async fn the_lag_in_seconds_grows_with_the_oldest_change_that_waits_and_ends_with_its_apply() {
    let world = World::new("seconds", &["items"], ITEMS).await;
    let running = world.run();
    let lag = || running.health.borrow().stream.lag_seconds;
    crate::support::until("nothing waits", async || lag() == Some(0)).await;
    world.destination.batch_execute("BEGIN; LOCK public.items").await.unwrap();
    world.sql("INSERT INTO public.items VALUES (1)").await;
    crate::support::until("the change is two seconds old", async || lag() >= Some(2)).await;
    world.sql("INSERT INTO public.items VALUES (2)").await;
    crate::support::until("it counts on beside a younger one", async || lag() >= Some(4)).await;
    world.destination.batch_execute("ROLLBACK").await.unwrap();
    world.settle(&running).await;
    crate::support::until("nothing waits any more", async || lag() == Some(0)).await;
    assert_eq!(world.same("items").await, 2);
}

#[tokio::test]
async fn a_row_that_is_missing_when_an_update_leaves_a_value_out_asks_for_a_resync() {
    for (name, soft) in [("missing_soft", true), ("missing_hard", false)] {
        let world = items(name, soft).await;
        let running = world.run();
        world.sql(&format!("INSERT INTO public.items SELECT i, 'x', {LARGE}, 1 FROM generate_series(1, 2) i")).await;
        world.settle(&running).await;
        assert_eq!(world.drift().await, "");
        world.destination.batch_execute("DELETE FROM public.items WHERE id = 1").await.unwrap();
        world.sql("UPDATE public.items SET name = 'y'").await;
        world.settle(&running).await;
        assert_eq!(world.at_destination("SELECT string_agg(id || name, ' ') FROM public.items").await, "2y");
        assert!(world.drift().await.contains("were missing at the destination"), "{}", world.drift().await);
        // It stays beside what is found later.
        world.sql("ALTER TABLE public.items DROP price; UPDATE public.items SET name = 'z' WHERE id = 2").await;
        world.settle(&running).await;
        let drift = world.drift().await;
        assert!(drift.contains("\"price\" was dropped") && drift.contains("were missing at the destination"), "{drift}");
    }
}
