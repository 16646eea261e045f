//! Sequences follow the source's, from end to end.

use mirror_operator::{api::mirror::Sequences, brief::Brief, destination, finish, pipeline::prepare, report::Stage};

use crate::{
    fixture::{Fixture, number, until},
    load::{Pod, whole, work},
};

const SHOP: &str = "
CREATE TABLE orders (id bigserial PRIMARY KEY, note text);
CREATE TABLE items (id int GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 10) PRIMARY KEY, down int);
CREATE SEQUENCE countdown INCREMENT -1 MAXVALUE 50 MINVALUE 1 CYCLE OWNED BY items.down;
CREATE TABLE \"Odd one\" (\"the id\" smallserial PRIMARY KEY);
CREATE TABLE plain (id int PRIMARY KEY);
INSERT INTO orders (note) SELECT 'x' FROM generate_series(1, 500);
INSERT INTO items (down) SELECT nextval('countdown') FROM generate_series(1, 3);
INSERT INTO plain VALUES (1);";

fn brief(fixture: &Fixture, epoch: u32) -> Brief {
    let tables = ["public.orders", "public.items", "public.Odd one", "public.plain"];
    Brief { sequences: Sequences::Sync, ..fixture.brief(epoch, &tables) }
}

async fn problems(brief: &Brief) -> String {
    let destination = destination::open(brief).await.unwrap();
    prepare::check(brief, &*destination).await.map_or_else(|trouble| trouble.failure().message, |()| String::new())
}

#[tokio::test]
async fn after_a_cut_over_rows_get_the_numbers_that_the_source_would_have_given_them() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute(SHOP).await.unwrap();
    whole(&fixture, &brief(&fixture, 1)).await;

    // Drawn while a resync is under way, and while its changes are streamed.
    let second = brief(&fixture, 2);
    let pod = Pod::start(&second).await;
    pod.offers(1).await;
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    source.batch_execute("INSERT INTO orders (note) SELECT 'y' FROM generate_series(1, 7)").await.unwrap();
    for _ in 0..2 {
        finish::swap(&pod.brief).await.unwrap();
    }
    assert_eq!(number(&target, "SELECT last_value FROM orders_id_seq").await, 507, "right before the swap");
    pod.reaches(Stage::Streaming).await;
    source.batch_execute("INSERT INTO orders (note) SELECT 'z' FROM generate_series(1, 5)").await.unwrap();
    until(&target, "the stream follows", "SELECT last_value = 512 FROM orders_id_seq").await;
    until(&target, "the rows are there", "SELECT count(*) = 512 FROM orders").await;
    pod.stop().await;

    let inserted = async |sql: &str| number(&target, sql).await;
    assert_eq!(inserted("INSERT INTO orders (note) VALUES ('ours') RETURNING id").await, 513);
    assert_eq!(inserted("INSERT INTO items (down) VALUES (nextval('countdown')) RETURNING id * 1000::bigint + down").await, 130_047);
    assert_eq!(inserted("INSERT INTO \"Odd one\" DEFAULT VALUES RETURNING \"the id\"::bigint").await, 1, "nothing was drawn at the source");
    let without =
        "SELECT count(*) FROM information_schema.columns WHERE table_name = 'items' AND column_name = 'down' AND column_default IS NULL";
    assert_eq!(number(&target, without).await, 1, "it owns a sequence and does not draw from it");
    let cycles = "SELECT count(*) FROM pg_sequences WHERE sequencename = 'countdown' AND cycle AND increment_by = -1 AND max_value = 50";
    assert_eq!(number(&target, cycles).await, 1);

    // What was drawn here stays drawn.
    let at = destination::open(&second).await.unwrap();
    finish::follow_sequences(&second, &*at).await.unwrap();
    assert_eq!(inserted("INSERT INTO orders (note) VALUES ('ours') RETURNING id").await, 514);
    drop((source, target));
    fixture.end().await;
}

#[tokio::test]
async fn a_sequence_that_counts_in_another_way_since_counts_so_here_too() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute(SHOP).await.unwrap();
    let first = brief(&fixture, 1);
    whole(&fixture, &first).await;
    source
        .batch_execute("ALTER SEQUENCE orders_id_seq MINVALUE 100000 START 100000 RESTART INCREMENT 5; SELECT nextval('orders_id_seq')")
        .await
        .unwrap();
    finish::follow_sequences(&first, &*destination::open(&first).await.unwrap()).await.unwrap();
    assert_eq!(number(&target, "INSERT INTO orders (note) VALUES ('ours') RETURNING id").await, 100_005);
    drop((source, target));
    fixture.end().await;
}

#[tokio::test]
async fn a_number_that_was_set_and_not_drawn_yet_is_the_next_one_here_too() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute(SHOP).await.unwrap();
    let first = brief(&fixture, 1);
    whole(&fixture, &first).await;
    source.batch_execute("SELECT setval('orders_id_seq', 9000, false)").await.unwrap();
    let at = destination::open(&first).await.unwrap();
    for _ in 0..2 {
        finish::follow_sequences(&first, &*at).await.unwrap();
    }
    assert_eq!(number(&target, "INSERT INTO orders (note) VALUES ('ours') RETURNING id").await, 9000);
    finish::follow_sequences(&first, &*at).await.unwrap();
    assert_eq!(number(&target, "INSERT INTO orders (note) VALUES ('ours') RETURNING id").await, 9001, "what was drawn here stays drawn");
    drop((source, target));
    fixture.end().await;
}

#[tokio::test]
async fn sequences_that_are_in_the_way_or_hidden_are_told_before_anything_is_changed() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute(SHOP).await.unwrap();
    target.batch_execute("CREATE SEQUENCE orders_id_seq").await.unwrap();
    let first = brief(&fixture, 1);
    let said = problems(&first).await;
    assert!(said.contains("public.orders_id_seq exists at the destination and is not a sequence of this mirror"), "{said}");
    assert_eq!(problems(&Brief { sequences: Sequences::Ignore, ..first.clone() }).await, "");
    target.batch_execute("DROP SEQUENCE orders_id_seq").await.unwrap();
    assert_eq!(problems(&first).await, "");
    drop((source, target));
    fixture.end().await;
}

#[tokio::test]
async fn sequences_stay_with_the_tables_that_draw_from_them_and_go_with_them() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute(SHOP).await.unwrap();
    let first = brief(&fixture, 1);
    whole(&fixture, &first).await;
    let sequences = "SELECT count(*) FROM pg_sequences WHERE schemaname = 'public'";
    assert_eq!(number(&target, sequences).await, 4);
    target.batch_execute("CREATE SEQUENCE theirs").await.unwrap();
    finish::forget(&first, true).await.unwrap();
    assert_eq!(number(&target, sequences).await, 1, "that of somebody else stays");

    let kept = brief(&fixture, 1);
    whole(&fixture, &kept).await;
    finish::forget(&kept, false).await.unwrap();
    assert_eq!(number(&target, "INSERT INTO orders (note) VALUES ('ours') RETURNING id").await, 501, "the tables stay, and draw");
    drop((source, target));
    fixture.end().await;
}
