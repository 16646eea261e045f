//! Schema changes at the source.

use mirror_operator::destination::Destination;

use crate::{
    support::{until, value},
    world::{Options, World},
};

const TWO: &str = "CREATE TABLE a (id int PRIMARY KEY, v int, w text); CREATE TABLE b (id int PRIMARY KEY, v int)";

#[tokio::test]
async fn an_added_column_is_added_and_filled() {
    let mut world = World::new("added", &["a"], TWO).await;
    let running = world.run();
    world.sql("INSERT INTO public.a VALUES (1, 1, 'x'), (2, 2, 'y'); DELETE FROM public.a WHERE id = 2").await;
    world.sql("BEGIN; INSERT INTO public.a VALUES (3); ALTER TABLE public.a ADD n text, ADD d numeric(6,2) NOT NULL DEFAULT 7.50, ADD e text DEFAULT 'it''s {a}';
               INSERT INTO public.a VALUES (4, 4, 'z', 'n', 1, 'e'); COMMIT").await;
    world.sql("INSERT INTO public.a (id) VALUES (5); UPDATE public.a SET v = 9 WHERE id = 1").await;
    world.settle(&running).await;
    let text = world.at_destination("SELECT schema::text FROM _mirror_operator.table").await;
    world.schemas = vec![serde_json::from_str(&text).unwrap()];
    assert_eq!(world.schemas[0].columns.len(), 6);
    assert_eq!(world.same("a").await, 4);
    assert_eq!(world.at_destination("SELECT concat(n, '|', d, '|', e) FROM public.a WHERE id = 2").await, "|7.50|it's {a}");
    assert_eq!(world.drift().await, "");
    drop(running);
    // The new columns are known after a restart.
    let running = world.run();
    world.sql("UPDATE public.a SET n = 'after'").await;
    world.settle(&running).await;
    assert_eq!(world.same("a").await, 4);
}

#[tokio::test]
async fn a_column_that_was_announced_before_the_gate_is_added_with_the_first_change_that_matters() {
    let world = World::new("announced", &["a"], TWO).await;
    world.sql("ALTER TABLE public.a ADD n int; INSERT INTO public.a VALUES (1, 1, 'x', 1)").await;
    // As after a load from a later snapshot. The server announces the table once in a session, and has done so by then.
    world
        .destination
        .batch_execute(&format!(
            "UPDATE _mirror_operator.table SET gate_lsn = '{}'",
            value(&world.source, "SELECT pg_current_wal_insert_lsn()::text").await
        ))
        .await
        .unwrap();
    world.sql("INSERT INTO public.a VALUES (2, 2, 'y', 2); DELETE FROM public.a WHERE id = 1").await;
    let running = world.run();
    world.settle(&running).await;
    assert_eq!(world.at_destination("SELECT string_agg(concat(id, v, w, n), ' ') FROM public.a").await, "22y2");
    assert_eq!(world.drift().await, "");
}

#[tokio::test]
async fn an_added_column_gets_the_type_that_a_load_would_give_it() {
    let world = World::new("addedtype", &["a"], TWO).await;
    let running = world.run();
    world
        .sql(
            "CREATE DOMAIN price AS numeric(8,2); CREATE TYPE mood AS ENUM ('good'); INSERT INTO public.a VALUES (1);
              ALTER TABLE public.a ADD p price, ADD m mood, ADD ms mood[], ADD rs regclass[], ADD ns numeric(6,1)[];
              INSERT INTO public.a VALUES (2, 2, 'x', 1.5, 'good', '{good}', '{pg_class}', '{1.5}')",
        )
        .await;
    world.settle(&running).await;
    let types = "SELECT string_agg(format_type(atttypid, atttypmod), ' ' ORDER BY attnum) FROM pg_attribute
                 WHERE attrelid = 'public.a'::regclass AND attname IN ('p', 'm', 'ms', 'rs', 'ns')";
    assert_eq!(world.at_destination(types).await, "numeric(8,2) text text[] text[] numeric(6,1)[]");
    assert_eq!(world.at_destination("SELECT concat(p, m, ms, rs, ns) FROM public.a WHERE id = 2").await, "1.50good{good}{pg_class}{1.5}");
    assert_eq!(world.drift().await, "");
}

#[tokio::test]
async fn a_column_with_a_value_for_each_row_wants_a_resync() {
    let world = World::new("volatile", &["a"], TWO).await;
    let running = world.run();
    world
        .sql("INSERT INTO public.a VALUES (1); ALTER TABLE public.a ADD u uuid DEFAULT gen_random_uuid(); INSERT INTO public.a VALUES (2)")
        .await;
    world.settle(&running).await;
    assert!(world.drift().await.contains("needs a resync"), "{}", world.drift().await);
    assert_eq!(world.at_destination("SELECT count(u)::text FROM public.a").await, "1");
}

#[tokio::test]
async fn a_dropped_column_is_drift_and_the_others_go_on() {
    let world = World::new("dropped", &["a"], TWO).await;
    let running = world.run();
    world.sql("INSERT INTO public.a VALUES (1, 1, 'kept'); ALTER TABLE public.a DROP w; UPDATE public.a SET v = 2; INSERT INTO public.a VALUES (2, 3)").await;
    world.settle(&running).await;
    assert_eq!(world.at_destination("SELECT string_agg(concat(id, v, w), ' ' ORDER BY id) FROM public.a").await, "12kept 23");
    drop(running);
    // It is told whatever becomes of the process, by the process that comes next too.
    let (_, tables) = world.process().progress().await.unwrap();
    let drift = tables[0].drift.clone().unwrap_or_default();
    assert!(drift.contains("\"w\" was dropped or renamed") && drift.ends_with("Apply a MirrorResync"), "{drift:?}");
}

#[tokio::test]
async fn a_value_that_does_not_fit_parks_its_table_only() {
    let world = World::new("parked", &["a", "b"], TWO).await;
    let running = world.run();
    world.sql("INSERT INTO public.a VALUES (1); INSERT INTO public.b VALUES (1)").await;
    world.sql("ALTER TABLE public.a ALTER v TYPE bigint").await;
    world
        .sql("BEGIN; INSERT INTO public.a VALUES (2, 7000000000); INSERT INTO public.b VALUES (2); COMMIT; INSERT INTO public.b VALUES (3)")
        .await;
    world.settle(&running).await;
    assert_eq!(world.same("b").await, 3);
    let parked = world.at_destination("SELECT parked FROM _mirror_operator.table WHERE number = 0").await;
    for part in ["public.a", "column \"v\"", "SQLSTATE 22003", "in the transactions up to ", "apply a MirrorResync"] {
        assert!(parked.contains(part), "{parked}");
    }
    assert!(!parked.contains("7000000000"), "a row's value is in {parked:?}");
    assert_eq!(world.at_destination("SELECT count(*)::text FROM public.a WHERE id > 1").await, "0");
}

#[tokio::test]
async fn excluded_and_generated_columns_do_not_travel() {
    let ddl = "CREATE TABLE a (secret text, id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED, v text)";
    let world = World::with("excluded", &["a"], ddl, Options { soft: true, excluded: vec!["secret".into()] }).await;
    let running = world.run();
    world.sql("INSERT INTO public.a (secret, id, v) VALUES ('s', 4, 'v')").await;
    world.settle(&running).await;
    assert_eq!(world.at_destination("SELECT concat(id, twice, v, secret) FROM public.a").await, "48v");
    assert_eq!(world.drift().await, "");
}

#[tokio::test]
async fn changes_before_a_tables_gate_are_not_applied_to_it() {
    let world = World::new("gate", &["a", "b"], TWO).await;
    world.sql("INSERT INTO public.a VALUES (1); INSERT INTO public.b VALUES (1)").await;
    let gate = world.source_lsn().await;
    world.sql("INSERT INTO public.a VALUES (2); INSERT INTO public.b VALUES (2)").await;
    world.destination.batch_execute(&format!("UPDATE _mirror_operator.table SET gate_lsn = '{gate}' WHERE number = 0")).await.unwrap();
    let running = world.run();
    world.settle(&running).await;
    assert_eq!(world.at_destination("SELECT string_agg(id::text, ' ') FROM public.a").await, "2");
    assert_eq!(world.same("b").await, 2);
}

#[tokio::test]
async fn partitions_published_under_their_own_names_reach_their_table() {
    let ddl = "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
               CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)";
    let world = World::new("partitions", &["p"], ddl).await;
    let running = world.run();
    world.sql("INSERT INTO public.p VALUES (1, 'a'), (11, 'b'); UPDATE public.p SET id = 12 WHERE id = 1").await;
    world.settle(&running).await;
    assert_eq!(world.same("p").await, 2);
    world.sql("TRUNCATE public.p1").await;
    until("the table is parked", async || {
        world.at_destination("SELECT coalesce(parked, '') FROM _mirror_operator.table").await.contains("partition")
    })
    .await;
}

#[tokio::test]
async fn a_not_null_column_that_is_gone_at_the_source_lets_new_rows_come_without_it() {
    let ddl = "CREATE TABLE a (id int PRIMARY KEY, v int NOT NULL, w text NOT NULL)";
    let world = World::new("relaxed", &["a"], ddl).await;
    let running = world.run();
    world.sql("INSERT INTO public.a VALUES (1, 1, 'one')").await;
    world.sql("ALTER TABLE public.a DROP v; ALTER TABLE public.a RENAME w TO x; INSERT INTO public.a VALUES (2, 'two'); UPDATE public.a SET x = 'uno' WHERE id = 1").await;
    world.settle(&running).await;
    let rows = "SELECT string_agg(concat_ws('|', id, coalesce(v::text, '-'), coalesce(w, '-'), x), ' ' ORDER BY id) FROM public.a";
    assert_eq!(world.at_destination(rows).await, "1|1|one|uno 2|-|-|two");
    assert_eq!(world.at_destination("SELECT coalesce(parked, 'no') FROM _mirror_operator.table").await, "no");
    let drift = world.drift().await;
    assert!(drift.contains("\"v\" was dropped") && drift.contains("\"w\" was dropped"), "{drift}");
    drop(running);
    let running = world.run();
    world.sql("INSERT INTO public.a VALUES (3, 'three')").await;
    world.settle(&running).await;
    assert_eq!(world.at_destination("SELECT count(*)::text FROM public.a").await, "3");
}

#[tokio::test]
async fn a_truncate_that_one_table_cannot_take_parks_that_table_only() {
    let world = World::with("truncate_parks", &["a", "b"], TWO, Options { soft: false, excluded: vec![] }).await;
    let running = world.run();
    world.sql("INSERT INTO public.a VALUES (1); INSERT INTO public.b VALUES (1)").await;
    world.settle(&running).await;
    world
        .destination
        .batch_execute("CREATE TABLE public.child (a int REFERENCES public.a); INSERT INTO public.child VALUES (1)")
        .await
        .unwrap();
    world.sql("TRUNCATE public.b, public.a; INSERT INTO public.b VALUES (2)").await;
    world.settle(&running).await;
    assert_eq!(world.same("b").await, 1);
    let parked =
        world.at_destination("SELECT string_agg(concat(number, parked), ';') FROM _mirror_operator.table WHERE parked IS NOT NULL").await;
    assert!(parked.starts_with("0public.a: applying TRUNCATE") && parked.contains("apply a MirrorResync"), "{parked}");
}

#[tokio::test]
async fn a_default_that_was_set_later_gives_older_rows_nothing() {
    let world = World::new("later_default", &["a"], TWO).await;
    let running = world.run();
    world.sql("INSERT INTO public.a VALUES (1); ALTER TABLE public.a ADD n int; ALTER TABLE public.a ALTER n SET DEFAULT 5; INSERT INTO public.a VALUES (2)").await;
    world.settle(&running).await;
    assert_eq!(world.at_destination("SELECT string_agg(concat(id, ':', n), ' ' ORDER BY id) FROM public.a").await, "1: 2:5");
    assert_eq!(world.drift().await, "");
}

#[tokio::test]
async fn a_ledger_of_an_older_layout_is_upgraded_by_whoever_comes_first() {
    let world = World::new("older_ledger", &["a"], TWO).await;
    let first = "DROP TABLE _mirror_operator.layout; ALTER TABLE _mirror_operator.mirror DROP given_up;
                 ALTER TABLE _mirror_operator.epoch DROP handed_over_at, DROP caught_up_at;
                 ALTER TABLE _mirror_operator.table DROP drift, DROP source_rows, DROP source_sum, DROP verified_rows";
    world.destination.batch_execute(first).await.unwrap();
    let (one, two) = (world.process(), world.process());
    let (one, two) = tokio::join!(one.tables(), two.tables());
    assert_eq!((one.unwrap().len(), two.unwrap().len()), (1, 1));
    assert_eq!(world.at_destination("SELECT string_agg(version::text, ',') FROM _mirror_operator.layout").await, "5");
    let running = world.run();
    world.sql("INSERT INTO public.a VALUES (1)").await;
    world.settle(&running).await;
    assert_eq!(world.same("a").await, 1);
}

/// Waits until the ledger says this of the tables' drift.
async fn until_drift(world: &World, words: &str) {
    until(&format!("the drift {words:?} is told"), async || world.drift().await.contains(words)).await;
}

#[tokio::test]
async fn a_table_that_was_dropped_or_made_again_is_told_although_the_stream_is_silent() {
    let world = World::new("again", &["a", "b"], TWO).await;
    let running = world.run();
    world.sql("INSERT INTO public.a VALUES (1); INSERT INTO public.b VALUES (1)").await;
    world.settle(&running).await;
    world.sql("DROP TABLE public.a; CREATE TABLE public.a (id int PRIMARY KEY, v int, w text); INSERT INTO public.a VALUES (2)").await;
    until_drift(&world, "the table was made again at the source (oid ").await;
    assert!(world.drift().await.contains("does not cover public.a"), "{}", world.drift().await);
    world.sql("DROP TABLE public.b").await;
    until_drift(&world, "the table was dropped at the source").await;
    // What was told before stays, whatever becomes of the process.
    drop(running);
    let running = world.run();
    world.sql("CREATE TABLE public.b (id int PRIMARY KEY, v int)").await;
    until_drift(&world, "does not cover public.b").await;
    assert!(world.drift().await.contains("was dropped at the source"));
    assert!(running.health.borrow().failure.is_none());
}

#[tokio::test]
async fn a_table_that_left_the_publication_is_told_and_stays_told_when_it_is_back() {
    let world = World::new("left", &["a", "b"], TWO).await;
    let running = world.run();
    let publication = mirror_operator::postgres::ident(&world.brief.slot());
    world.sql(&format!("ALTER PUBLICATION {publication} DROP TABLE public.a; INSERT INTO public.a VALUES (1)")).await;
    until_drift(&world, "does not cover public.a").await;
    world
        .sql(&format!("ALTER PUBLICATION {publication} ADD TABLE public.a; ALTER PUBLICATION {publication} SET (publish = 'insert')"))
        .await;
    until_drift(&world, "leaves out some kinds of changes").await;
    assert!(world.drift().await.contains("does not cover public.a"), "the changes meanwhile are missing");
    world.sql("ALTER TABLE public.b RENAME TO bb; INSERT INTO public.bb VALUES (2)").await;
    until_drift(&world, "it is public.bb now").await;
    world.settle(&running).await;
    assert_eq!(world.at_destination("SELECT count(*)::text FROM public.b").await, "1", "its changes go on");
    assert!(!world.drift().await.contains("does not cover public.b"));
}

#[tokio::test]
async fn a_publication_that_was_dropped_is_told_before_the_next_change_is() {
    let world = World::new("unpublished", &["a"], TWO).await;
    let running = world.run();
    until("the stream is connected", async || running.health.borrow().stream.connected).await;
    world.sql(&format!("DROP PUBLICATION {}", mirror_operator::postgres::ident(&world.brief.slot()))).await;
    until_drift(&world, "was dropped at the source").await;
    world.sql("INSERT INTO public.a VALUES (1)").await;
    // From version 18 on the server passes over whatever no publication covers, and is silent.
    if value(&world.source, "SELECT current_setting('server_version_num')").await.parse::<u32>().unwrap() >= 180_000 {
        return world.settle(&running).await;
    }
    until("the stream says so too", async || {
        running
            .health
            .borrow()
            .failure
            .as_ref()
            .is_some_and(|f| f.reason == "PublicationMissing" && f.message.contains("apply a MirrorResync"))
    })
    .await;
}
