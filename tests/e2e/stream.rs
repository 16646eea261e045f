//! The change stream, row by row: what PostgreSQL can do to a table.

use mirror_operator::api::Mirror;
use serde_json::json;

use crate::world::{LIMIT, World, until};

#[tokio::test]
async fn key_changes_toast_truncate_and_added_columns_arrive() {
    let world = World::new("changes").await;
    world
        .source
        .batch_execute(
            "
        CREATE TABLE docs (id int PRIMARY KEY, title text, body text, price numeric, tags text[], data jsonb, at timestamptz DEFAULT now());
        ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
        CREATE TABLE emptied (id int PRIMARY KEY);
        CREATE TYPE mood AS ENUM ('sad', 'happy');
        CREATE TABLE moods (id int PRIMARY KEY, m mood, doubled int GENERATED ALWAYS AS (id * 2) STORED);
        CREATE TABLE loose (a int, b text); ALTER TABLE loose REPLICA IDENTITY FULL;
        INSERT INTO docs SELECT i, 't' || i, repeat(md5(i::text), 200), i, ARRAY['a', NULL], '{\"k\": 1}' FROM generate_series(1, 200) i;
        INSERT INTO emptied SELECT generate_series(1, 50);
        INSERT INTO moods (id, m) VALUES (1, 'sad'), (2, NULL);
        INSERT INTO loose VALUES (1, 'x'), (1, 'x'), (1, 'x'), (NULL, NULL);",
        )
        .await
        .unwrap();
    let tables = ["public.docs", "public.emptied", "public.moods", "public.loose"];
    world.apply(world.mirror("m", &tables, json!({}))).await.unwrap();
    world.ready("m").await;
    world
        .source
        .batch_execute(
            "
        UPDATE docs SET title = 'unchanged body' WHERE id = 1;
        UPDATE docs SET id = 1000 WHERE id = 2;
        UPDATE docs SET id = id + 5000, title = 'moved' WHERE id BETWEEN 10 AND 20;
        BEGIN; INSERT INTO docs (id, title) VALUES (7777, 'short life'); DELETE FROM docs WHERE id = 7777; COMMIT;
        BEGIN; DELETE FROM docs WHERE id = 3; INSERT INTO docs (id, title) VALUES (3, 'again'); COMMIT;
        ALTER TABLE docs ADD COLUMN stars int NOT NULL DEFAULT 5;
        UPDATE docs SET stars = 1 WHERE id = 30;
        TRUNCATE emptied;
        INSERT INTO emptied VALUES (99);
        INSERT INTO moods (id, m) VALUES (3, 'happy');
        DELETE FROM loose WHERE ctid = (SELECT ctid FROM loose WHERE a = 1 LIMIT 1);
        UPDATE loose SET b = 'y' WHERE ctid = (SELECT ctid FROM loose WHERE a = 1 LIMIT 1);",
        )
        .await
        .unwrap();
    world.equal("docs", "id, title, body, price, tags, data, at, stars").await;
    world.equal("emptied", "id").await;
    world.equal("moods", "id, m::text, doubled").await;
    world.equal("loose", "a, b").await;
    let ghosts: i64 = world
        .destination
        .query_one("SELECT count(*) FROM docs WHERE \"_PEERDB_IS_DELETED\" AND id IN (2, 10, 7777)", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(ghosts, 3, "old keys and short lives stay, flagged");
    world.end().await;
}

#[tokio::test]
async fn with_soft_delete_off_rows_go_and_no_columns_are_added() {
    let world = World::new("hard").await;
    world
        .source
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i")
        .await
        .unwrap();
    world.apply(world.mirror("m", &["public.t"], json!({ "softDelete": { "enabled": false }, "syncedAtColumn": "" }))).await.unwrap();
    world.ready("m").await;
    world.source.batch_execute("DELETE FROM t WHERE id > 50; UPDATE t SET id = 1000 WHERE id = 1").await.unwrap();
    crate::world::until("50 rows are left", crate::world::LIMIT, || async {
        let row = world.destination.query_one("SELECT count(*), max(id) FROM t", &[]).await.map_err(|e| e.to_string())?;
        let got: (i64, Option<i32>) = (row.get(0), row.get(1));
        if got == (50, Some(1000)) { Ok(()) } else { Err(format!("{got:?}")) }
    })
    .await;
    let columns: i64 = world
        .destination
        .query_one("SELECT count(*) FROM pg_attribute WHERE attrelid = 'public.t'::regclass AND attnum > 0", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(columns, 2);
    world.end().await;
}

#[tokio::test]
async fn renames_exclusions_and_odd_names_are_kept_apart() {
    let world = World::new("names").await;
    let long = "é".repeat(30);
    world.source.batch_execute(&format!("
        CREATE SCHEMA \"Odd Schema\"; CREATE TABLE \"Odd Schema\".\"Ta\"\"ble x\" (\"Id\" int PRIMARY KEY, \"sp ace\" text, secret text);
        CREATE TABLE \"{long}\" (id int PRIMARY KEY, v text);
        INSERT INTO \"Odd Schema\".\"Ta\"\"ble x\" SELECT i, 'v' || i, 's' FROM generate_series(1, 10) i; INSERT INTO \"{long}\" VALUES (1, 'x')")).await.unwrap();
    let tables = json!([
        { "source": "Odd Schema.Ta\"ble x", "destination": "public.Neu.Täble", "excludeColumns": ["secret"], "columns": [{ "source": "sp ace", "destination": "Raum" }] },
        { "source": format!("public.{long}") },
    ]);
    world.apply(world.mirror("m", &[], json!({ "tables": tables }))).await.unwrap();
    world.ready("m").await;
    world.source.batch_execute("UPDATE \"Odd Schema\".\"Ta\"\"ble x\" SET \"sp ace\" = 'changed' WHERE \"Id\" = 1").await.unwrap();
    world.apply(world.resync("again", "m", json!({}))).await.unwrap();
    world.phase("again", mirror_operator::api::resync::Phase::Running).await;
    let row = world.destination.query_one(&format!("SELECT (SELECT string_agg(attname::text, ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = '\"Neu.Täble\"'::regclass AND attnum > 0), (SELECT \"Raum\" FROM \"Neu.Täble\" WHERE \"Id\" = 1), (SELECT count(*) FROM \"{long}\")"), &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "Id,Raum,_PEERDB_IS_DELETED,_PEERDB_SYNCED_AT");
    assert_eq!((row.get::<_, String>(1).as_str(), row.get::<_, i64>(2)), ("changed", 1));
    world.end().await;
}

#[tokio::test]
async fn a_mirror_tells_how_many_seconds_it_is_behind() {
    let world = crate::visible::one_table(World::new("seconds").await).await;
    world.apply(world.mirror("m", &["public.t"], json!({}))).await.unwrap();
    world.ready("m").await;
    let behind = async |what: &str, wanted: fn(i64) -> bool| {
        until(what, LIMIT, || async {
            let status = world.get::<Mirror>("m").await.status.unwrap_or_default();
            status.lag_seconds.filter(|seconds| wanted(*seconds)).ok_or_else(|| format!("{:?}, {:?}", status.lag_seconds, status.lag))
        })
        .await
    };
    behind("caught up", |seconds| seconds == 0).await;
    world.destination.batch_execute("BEGIN; LOCK t").await.unwrap();
    world.source.batch_execute("INSERT INTO t VALUES (2, 'waits')").await.unwrap();
    behind("the change waits", |seconds| seconds >= 3).await;
    let metric = format!("mirror_operator_mirror_lag_seconds{{namespace=\"{}\",name=\"m\"}}", world.namespace);
    let metrics = crate::visible::operator(&world, "/metrics").await;
    let shown = metrics.lines().find_map(|line| line.strip_prefix(&metric)).and_then(|value| value.trim().parse::<i64>().ok());
    assert!(shown.is_some_and(|seconds| seconds >= 3), "{shown:?}");
    world.destination.batch_execute("ROLLBACK").await.unwrap();
    behind("caught up again", |seconds| seconds == 0).await;
    world.equal("t", "id, v").await;
    world.end().await;
}
