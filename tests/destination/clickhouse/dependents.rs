//! What names a table of ClickHouse, or hangs on it, and goes on with the new one after a swap.

use mirror_operator::{
    api::clickhouse::ClickHouseTable,
    brief::DestinationPeer,
    destination::{Destination, RowChange},
    postgres::Connection,
};

use crate::{
    clickhouse::{change, row, streaming, t, upsert},
    fixture::{Fixture, open, table, whole},
    on_clickhouse::{OnClickHouse, ask, password},
};

/// Resyncs `t` with one row that is named after the epoch, and drops the old table.
async fn resync(place: &OnClickHouse, epoch: u32) -> Box<dyn Destination> {
    let at = open(&place.brief(epoch)).await;
    assert_eq!(at.preflight(&[t(place)]).await.unwrap(), vec![]);
    whole(&*at, &[(t(place), &[&format!("1\t{epoch}\ta")])]).await;
    at.drop_retired().await.unwrap();
    assert_eq!(at.progress().await.unwrap().1[0].note, None);
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn dictionaries_read_the_new_table() {
    let place = OnClickHouse::new().await;
    streaming(&place).await;
    let (database, user) = (&place.to.database, &place.to.user);
    let source = |of: &str| format!("SOURCE(CLICKHOUSE({of} USER '{user}' PASSWORD '{}'))", password());
    let shape = "(id Int64, name Nullable(String)) PRIMARY KEY id";
    for (name, of) in
        [("by_table", format!("DB '{database}' TABLE 't'")), ("by_query", format!("QUERY 'SELECT id, name FROM {database}.t FINAL'"))]
    {
        place.run(&format!("CREATE DICTIONARY public.{name} {shape} {} LAYOUT(COMPLEX_KEY_HASHED()) LIFETIME(0)", source(&of))).await;
    }
    place.run(&format!("CREATE VIEW public.named AS SELECT dictGet('{database}.by_table', 'name', tuple(toInt64(1))) AS name")).await;
    for epoch in 2..4 {
        resync(&place, epoch).await;
        for name in ["by_table", "by_query"] {
            place.run(&format!("SYSTEM RELOAD DICTIONARY public.{name}")).await;
            let got = place.rows(&format!("SELECT dictGet('{database}.{name}', 'name', tuple(toInt64(1)))")).await;
            assert_eq!(got, [epoch.to_string()], "{name}");
        }
        assert_eq!(place.rows("SELECT name FROM public.named").await, [epoch.to_string()]);
    }
    place.run("DROP VIEW public.named").await;
    for name in ["by_table", "by_query"] {
        place.run(&format!("DROP DICTIONARY public.{name}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_asks_a_dictionary_is_kept() {
    let place = OnClickHouse::new().await;
    streaming(&place).await;
    let database = &place.to.database;
    place.run("CREATE TABLE public.kinds (id String, words String) ENGINE = MergeTree ORDER BY id").await;
    place.run("INSERT INTO public.kinds VALUES ('a', 'of the first kind')").await;
    let source = format!("SOURCE(CLICKHOUSE(DB '{database}' TABLE 'kinds' USER '{}' PASSWORD '{}'))", place.to.user, password());
    place
        .run(&format!(
            "CREATE DICTIONARY public.words (id String, words String) PRIMARY KEY id {source} LAYOUT(COMPLEX_KEY_HASHED()) LIFETIME(0)"
        ))
        .await;
    for (name, kind) in [("asked", "ALIAS"), ("kept", "MATERIALIZED")] {
        place.run(&format!("ALTER TABLE public.t ADD COLUMN {name} String {kind} dictGet('{database}.words', 'words', tuple(kind))")).await;
    }
    let at = resync(&place, 2).await;
    change(&mut *at.applier().await.unwrap(), &t(&place), 2000, upsert("5|five|a")).await.unwrap();
    assert_eq!(place.rows("SELECT asked, kept FROM public.t WHERE id = 5").await, ["of the first kind|of the first kind"]);
    place.run("DROP TABLE public.t SYNC").await;
    place.run("DROP DICTIONARY public.words").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn projections_and_skip_indexes_hold_the_rows_of_the_new_table() {
    let settings = [("deduplicate_merge_projection_mode".to_string(), "rebuild".to_string())].into();
    let place = OnClickHouse::new().await.with(ClickHouseTable { settings, ..ClickHouseTable::default() });
    streaming(&place).await;
    place.run("ALTER TABLE public.t ADD PROJECTION kinds (SELECT kind, count() GROUP BY kind)").await;
    place.run("ALTER TABLE public.t ADD INDEX by_name name TYPE bloom_filter GRANULARITY 1").await;
    let database = &place.to.database;
    for epoch in 2..4 {
        let at = resync(&place, epoch).await;
        let parts = format!(
            "SELECT count() > 0, min(rows) > 0 FROM system.projection_parts WHERE database = '{database}' AND table = 't' AND active"
        );
        assert_eq!(place.rows(&parts).await, ["1|1"]);
        let bytes =
            format!("SELECT data_compressed_bytes > 0 FROM system.data_skipping_indices WHERE database = '{database}' AND table = 't'");
        assert_eq!(place.rows(&bytes).await, ["1"]);
        let plan = place.rows("EXPLAIN indexes = 1 SELECT id FROM public.t WHERE name = 'nobody'").await.join("\n");
        assert!(plan.contains("by_name"), "{plan}");
        // Changes and merges keep both.
        let mut to = at.applier().await.unwrap();
        change(&mut *to, &t(&place), 2000 + u64::from(epoch), upsert("6|six|b")).await.unwrap();
        change(&mut *to, &t(&place), 2100 + u64::from(epoch), RowChange::Delete { key: row("1") }).await.unwrap();
        place.run("OPTIMIZE TABLE public.t FINAL").await;
        assert_eq!(place.rows(&parts).await, ["1|1"]);
        assert_eq!(place.rows("SELECT id, name FROM public.t FINAL").await, ["6|six"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_and_row_policies_hold_for_the_new_table() {
    let place = OnClickHouse::granted().await;
    streaming(&place).await;
    let reader = Connection { user: "reader".into(), ..place.to.clone() };
    for epoch in 2..4 {
        let at = resync(&place, epoch).await;
        change(&mut *at.applier().await.unwrap(), &t(&place), 2000, upsert("5|five|a")).await.unwrap();
        assert_eq!(ask(&reader, "SELECT id, kind FROM mo_granted.t FINAL").await.unwrap(), "1\ta\n");
        assert!(ask(&reader, "SELECT name FROM mo_granted.t").await.unwrap_err().contains("ACCESS_DENIED"));
        assert_eq!(place.rows("SELECT id FROM public.t FINAL ORDER BY 1").await, ["1", "5"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_policy_that_hides_rows_from_the_mirror_is_found() {
    let place = OnClickHouse::filtered().await;
    let as_user = |user: &str| {
        let mut brief = place.brief(1);
        let DestinationPeer::ClickHouse(peer) = &mut brief.destination else { panic!() };
        peer.at.user = user.into();
        brief
    };
    let found = open(&as_user("filtered")).await.preflight(&[t(&place)]).await.unwrap();
    assert_eq!(found.iter().map(|f| f.reason.as_str()).collect::<Vec<_>>(), ["RowPolicy"], "{found:?}");
    let cure = "CREATE ROW POLICY all_rows ON `mo_filtered`.`t` USING 1 TO `filtered`";
    assert!(found[0].message.ends_with(cure), "{}", found[0].message);
    // It is not for others, and not of other tables.
    assert_eq!(open(&as_user("testbed")).await.preflight(&[t(&place)]).await.unwrap(), vec![]);
    let other = place.adapt(table(0, "other", &["id bigint!"]));
    assert_eq!(open(&as_user("filtered")).await.preflight(&[other]).await.unwrap(), vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_materialized_views_goes_on_with_the_new_table() {
    let place = OnClickHouse::new().await;
    streaming(&place).await;
    for sql in [
        "CREATE TABLE public.log (id Int64, kind String) ENGINE = MergeTree ORDER BY id",
        "CREATE MATERIALIZED VIEW public.to_log TO public.log AS SELECT id, kind FROM public.t",
        "CREATE MATERIALIZED VIEW public.counts (kind String, n UInt64) ENGINE = SummingMergeTree ORDER BY kind AS SELECT kind, count() AS n FROM public.log GROUP BY kind",
    ] {
        place.run(sql).await;
    }
    for epoch in 2..4_u32 {
        let at = resync(&place, epoch).await;
        // What is loaded does not go through them; what changes does.
        assert_eq!(place.rows("SELECT sum(n) FROM public.counts").await, [(epoch - 2).to_string()]);
        change(&mut *at.applier().await.unwrap(), &t(&place), 2000, upsert("5|five|a")).await.unwrap();
        assert_eq!(place.rows("SELECT count() FROM public.log").await, [(epoch - 1).to_string()]);
    }
}
