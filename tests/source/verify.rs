//! Verification, from the snapshot to the swap, between both servers.

use mirror_operator::{
    api::resync::Verification,
    brief::Brief,
    destination, finish,
    postgres::{Connection, connect, ident},
    report::{Failure, Stage, TableReport},
    table::{Column, Identity, TableName, TableSchema},
    verify::{Side, selection},
};

use crate::{
    fixture::{Fixture, kill, number},
    load::{Pod, work},
    support,
};

const SHOP: &str = "
CREATE TABLE orders (id bigint PRIMARY KEY, note text, n int);
INSERT INTO orders SELECT g, repeat(md5(g::text), 8), g FROM generate_series(1, 20000) g;
CREATE TABLE days (day date, id int, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE days_2 PARTITION OF days DEFAULT;
INSERT INTO days SELECT date '2026-01-01' + g % 60, g FROM generate_series(1, 5000) g;
CREATE TABLE none (day date, id int, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE empty (id int PRIMARY KEY);";

/// Values whose texts depend on settings, versions or encodings, were they not taken care of.
const KINDS: &str = r#"
CREATE TYPE mood AS ENUM ('fine', 'so, so');
CREATE DOMAIN amount AS numeric(20,5);
CREATE TABLE kinds (id int PRIMARY KEY, f4 real, f8 double precision, n numeric, a amount, t text, v varchar(9), c char(5), b bytea, d date, ts timestamp,
    tz timestamptz, ti interval, tt timetz, u uuid, j json, jb jsonb, ip inet, bits bit varying(9), p point, m mood, ms mood[], ta text[], fa double precision[],
    r tstzrange, mr int4multirange, ok boolean, "odd ""name" int, cash money, doc xml, net macaddr, big text);
INSERT INTO kinds VALUES (1, 0.1, 1e-300, 'NaN', 1.5, 'Zoë 漢字', 'a', 'b', '\x00ff', '0044-03-15 BC', 'infinity', '2026-03-29 03:00:00.123456+02', '1 mon -2 days 03:04:05.6',
    '12:00+05:30', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a" : 1}', '{"b": [1, null]}', '10.0.0.1/8', '101', '(0.1,2)', 'so, so', '{fine,"so, so",NULL}', '{a,NULL,"b,c"}',
    '{0.1,NaN,-0}', '[2026-01-01 00:00+00,)', '{[1,3),[5,7)}', true, 7, '1.50', '<a/>', '08:00:2b:01:02:03', repeat('x', 100000));
INSERT INTO kinds (id) VALUES (2);
INSERT INTO kinds (id, t, b, ta) SELECT g, CASE g % 3 WHEN 0 THEN '' WHEN 1 THEN 'back\slash "quote"' END, decode(repeat('ab', g), 'hex'), '{}' FROM generate_series(3, 500) g;"#;

/// Small chunks and partitions, so that a small table has many.
fn verified(fixture: &Fixture, epoch: u32, verification: Verification, tables: &[&str]) -> Brief {
    let mut brief = Brief { verification, ..fixture.brief(epoch, tables) };
    brief.snapshot.chunk_size = Some("256Ki".to_string().try_into().unwrap());
    brief.snapshot.partition_size = "2Mi".to_string().try_into().unwrap();
    brief
}

fn shop(fixture: &Fixture, epoch: u32) -> Brief {
    verified(fixture, epoch, Verification::RowCount, &["public.orders", "public.days", "public.none", "public.empty"])
}

async fn reports(brief: &Brief) -> Vec<TableReport> {
    destination::open(brief).await.unwrap().progress().await.unwrap().1
}

async fn rows_verified(brief: &Brief) -> Vec<Option<i64>> {
    reports(brief).await.into_iter().map(|t| t.rows_verified).collect()
}

/// An epoch up to the swap; what happens at the source in between does not count.
async fn loaded(brief: &Brief) -> Pod {
    let pod = Pod::start(brief).await;
    pod.offers(1).await;
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    pod
}

/// The end of a test's mirror.
async fn end(fixture: Fixture, pod: Pod) {
    let brief = pod.brief.clone();
    pod.stop().await;
    finish::forget(&brief, true).await.unwrap();
    fixture.end().await;
}

#[tokio::test]
async fn tables_are_compared_with_the_snapshot_that_they_were_loaded_from() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute(SHOP).await.unwrap();
    let pod = Pod::start(&shop(&fixture, 1)).await;
    pod.offers(1).await;
    source.batch_execute("DELETE FROM orders WHERE id % 3 = 0; INSERT INTO empty VALUES (1)").await.unwrap();
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    for _ in 0..2 {
        finish::swap(&pod.brief).await.unwrap();
    }
    assert_eq!(rows_verified(&pod.brief).await, [Some(20_000), Some(5_000), Some(0), Some(0)]);
    drop(source);
    end(fixture, pod).await;
}

#[tokio::test]
async fn a_row_that_vanishes_before_the_swap_ends_it_and_the_live_table_stays() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute(SHOP).await.unwrap();
    let first = loaded(&shop(&fixture, 1)).await;
    finish::swap(&first.brief).await.unwrap();
    first.stop().await;
    let pod = loaded(&shop(&fixture, 2)).await;
    target.batch_execute("DELETE FROM orders_resync WHERE id = 7").await.unwrap();
    for _ in 0..2 {
        let failure = finish::swap(&pod.brief).await.unwrap_err();
        assert!(failure.permanent && failure.reason == "VerificationFailed", "{failure:?}");
        assert!(failure.message.contains("public.orders has 20000 rows") && failure.message.contains("has 19999"), "{failure:?}");
    }
    assert_eq!(rows_verified(&pod.brief).await[0], None);
    assert_eq!(number(&target, "SELECT count(*) FROM orders").await, 20_000);
    assert_eq!(finish::cleanup(&pod.brief).await, Ok(None));
    assert_eq!(number(&target, "SELECT count(*) FROM orders").await, 20_000);
    drop((source, target));
    end(fixture, pod).await;
}

#[tokio::test]
async fn where_the_snapshot_is_lost_again_and_again_every_table_is_still_compared_with_its_own() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute(SHOP).await.unwrap();
    let pod = Pod::start(&shop(&fixture, 1)).await;
    pod.offers(1).await;
    let chaos = async {
        for round in 0..12 {
            tokio::time::sleep(std::time::Duration::from_millis(60)).await;
            source.batch_execute(&format!("INSERT INTO empty VALUES ({round}); DELETE FROM orders WHERE id = {round}")).await.unwrap();
            kill(&source, "mo ").await;
        }
    };
    tokio::join!(chaos, work(&pod.brief));
    pod.reaches(Stage::Loaded).await;
    finish::swap(&pod.brief).await.unwrap();
    assert!(rows_verified(&pod.brief).await.iter().all(Option::is_some));
    drop(source);
    end(fixture, pod).await;
}

#[tokio::test]
async fn a_table_that_was_truncated_before_it_was_counted_is_loaded_again() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute(SHOP).await.unwrap();
    let pod = Pod::start(&shop(&fixture, 1)).await;
    pod.offers(1).await;
    source.batch_execute("TRUNCATE orders; INSERT INTO orders VALUES (1, 'new', 1)").await.unwrap();
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    finish::swap(&pod.brief).await.unwrap();
    assert_eq!(rows_verified(&pod.brief).await, [Some(1), Some(5_000), Some(0), Some(0)]);
    drop(source);
    end(fixture, pod).await;
}

#[tokio::test]
async fn checksums_agree_whatever_the_settings_of_both_databases_and_find_a_changed_value() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute(KINDS).await.unwrap();
    for (client, database, settings) in [
        (
            &source,
            &fixture.source.database,
            ["datestyle = 'German'", "timezone = 'Asia/Kolkata'", "bytea_output = 'escape'", "extra_float_digits = 0"],
        ),
        (
            &target,
            &fixture.destination.database,
            ["datestyle = 'SQL, DMY'", "timezone = 'America/Lima'", "intervalstyle = 'iso_8601'", "extra_float_digits = -3"],
        ),
    ] {
        for setting in settings {
            client.batch_execute(&format!("ALTER DATABASE {database} SET {setting}")).await.unwrap();
        }
    }
    let pod = loaded(&verified(&fixture, 1, Verification::Checksum, &["public.kinds"])).await;
    finish::swap(&pod.brief).await.unwrap();
    let report = reports(&pod.brief).await.remove(0);
    assert_eq!(report.rows_verified, Some(500));
    assert!(report.note.as_ref().is_some_and(|n| n.contains(r#"leaves out column "cash", "doc""#)), "{report:?}");
    pod.stop().await;

    let pod = loaded(&verified(&fixture, 2, Verification::Checksum, &["public.kinds"])).await;
    target.batch_execute("UPDATE kinds_resync SET t = t || ' ' WHERE id = 4").await.unwrap();
    let Failure { reason, message, .. } = finish::swap(&pod.brief).await.unwrap_err();
    assert!(reason == "VerificationFailed" && message.contains("500 rows each"), "{message}");
    assert!(!message.contains("slash"), "{message}");
    drop((source, target));
    end(fixture, pod).await;
}

/// `public.t` with these columns, of the same types on both sides.
fn table(columns: &[(&str, &str)]) -> TableSchema {
    let column = |(name, type_): &(&str, &str)| Column {
        source: (*name).into(),
        destination: (*name).into(),
        source_type: (*type_).into(),
        base_type: None,
        source_type_oid: 1,
        destination_type: (*type_).into(),
        not_null: false,
        generated: None,
        binary: true,
        as_text: false,
    };
    let name = TableName { schema: "public".into(), name: "t".into() };
    let columns = columns.iter().map(column).collect();
    TableSchema {
        number: 0,
        source: name.clone(),
        source_oid: 1,
        destination: name,
        columns,
        identity: Identity::Key(vec![0]),
        partition_key: None,
    }
}

#[tokio::test]
async fn checksums_agree_between_databases_of_different_encodings() {
    let schema = table(&[("id", "integer"), ("v", "text")]);
    let mut sums = Vec::new();
    for side in [support::SOURCE, support::DESTINATION] {
        let server = support::server(side);
        let admin = connect::connect(&server, "test").await.unwrap();
        for encoding in ["UTF8", "LATIN1", "SQL_ASCII"] {
            let database = format!("mo_test_{}_{}", std::process::id(), support::unique());
            let create = format!("CREATE DATABASE {} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0", ident(&database));
            admin.batch_execute(&create).await.unwrap();
            let client = connect::connect(&Connection { database: database.clone(), ..server.clone() }, "test").await.unwrap();
            let rows = "CREATE TABLE public.t (id int, v text); INSERT INTO public.t VALUES (1, 'Zoë'), (2, '\\ \"naïve\"'), (3, NULL)";
            client.batch_execute(rows).await.unwrap();
            let sql = format!("SELECT {} FROM public.t", selection(&schema, Side::Source, Verification::Checksum));
            let row = client.query_one(&sql, &[]).await.unwrap();
            sums.push((row.get::<_, i64>(0), row.get::<_, String>(1)));
            drop(client);
            admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", ident(&database))).await.unwrap();
        }
    }
    assert!(sums.iter().all(|sum| *sum == sums[0] && sum.0 == 3 && sum.1 != "0"), "{sums:?}");
}
