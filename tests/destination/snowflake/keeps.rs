//! What people gave to a table, whose it is, and what its name is.

use mirror_operator::{
    api::snowflake::{Names, SnowflakeTable},
    destination::Error,
    table::TableSchema,
};

use super::people;
use crate::{
    fixture::{Fixture, boundary, from_loaded, open, plan, table, until_loaded, whole},
    on_snowflake::{OnSnowflake, is_live},
};

async fn failures(place: &OnSnowflake, epoch: u32, tables: &[TableSchema]) -> Vec<(String, String)> {
    let found = open(&place.brief(epoch)).await.preflight(tables).await.unwrap();
    assert!(found.iter().all(|f| f.permanent), "{found:?}");
    found.into_iter().map(|f| (f.reason, f.message)).collect()
}

/// The clustering key and the comment of a table.
async fn looks(place: &OnSnowflake) -> Vec<String> {
    let sql = format!(
        "SELECT CLUSTERING_KEY, COMMENT FROM \"{}\".INFORMATION_SCHEMA.TABLES WHERE TABLE_SCHEMA = '{}' AND TABLE_NAME = 'PEOPLE'",
        place.to.at.database, place.to.schema
    );
    place.rows(&sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_comments_and_the_clustering_key_go_on_with_the_new_table() {
    let place = OnSnowflake::new().await.with(SnowflakeTable { cluster_by: vec!["NAME".into()], ..SnowflakeTable::default() });
    whole(&*open(&place.brief(1)).await, &[(people(&place), &["1\tone\t\\N"])]).await;
    let grantee = if is_live() { "PUBLIC" } else { "READER" };
    place.run("COMMENT ON TABLE public.people IS 'it''s \\\\ ours'").await;
    place.run(&format!("GRANT SELECT ON TABLE public.people TO ROLE {grantee}")).await;
    let place = place.with(SnowflakeTable { adopt: true, ..SnowflakeTable::default() });
    whole(&*open(&place.brief(2)).await, &[(people(&place), &["2\ttwo\t\\N"])]).await;
    assert_eq!(place.read("people", &["id"]).await, ["1|t", "2|f"]);
    let looks = looks(&place).await.remove(0);
    assert!(looks.contains("(NAME)|it's \\ ours [mirror-operator "), "{looks}");
    let grants = place.rows("SHOW GRANTS ON TABLE public.people").await;
    assert!(grants.iter().any(|g| g.contains("|SELECT|") && g.contains(&format!("|{grantee}|"))), "{grants:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_a_policy_is_not_replaced_by_one_without() {
    if is_live() {
        return;
    }
    let place = OnSnowflake::new().await;
    whole(&*open(&place.brief(1)).await, &[(people(&place), &["1\tone\t\\N"])]).await;
    let schema = format!("\"{}\".\"{}\"", place.to.at.database, place.to.schema);
    place.run(&format!("ALTER TABLE public.people MODIFY COLUMN \"NAME\" SET MASKING POLICY {schema}.\"HIDE\"")).await;
    let found = failures(&place, 2, &[people(&place)]).await;
    assert_eq!(found.len(), 1);
    assert!(found[0].0 == "PolicyUnkept" && found[0].1.contains("masking policy \"HIDE\" on column \"NAME\""), "{found:?}");
    let at = open(&place.brief(2)).await;
    until_loaded(&*at, &[(people(&place), &["1\tone\t\\N"])]).await;
    let Err(Error::Permanent(failure)) = from_loaded(&*at).await else { panic!() };
    assert_eq!(failure.reason, "PolicyUnkept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_mirrors_own_is_refused_and_never_replaced() {
    let place = OnSnowflake::new().await;
    place.run("CREATE TABLE public.people (id NUMBER(38,0))").await;
    // An empty table of nobody's may be replaced.
    assert_eq!(failures(&place, 1, &[people(&place)]).await, vec![]);
    place.run("INSERT INTO public.people VALUES (1)").await;
    place.run("CREATE TABLE public.people_resync_e1g1 (id NUMBER(38,0))").await;
    let found = failures(&place, 1, &[people(&place)]).await;
    let reasons: Vec<&str> = found.iter().map(|(reason, _)| reason.as_str()).collect();
    assert_eq!(reasons, ["ForeignShadow", "TableNotOurs"], "{found:?}");
    let at = open(&place.brief(1)).await;
    at.begin().await.unwrap();
    let Err(Error::Permanent(failure)) = at.create_shadows(boundary(1), &[people(&place)], &plan(&[1])).await else { panic!() };
    assert_eq!(failure.reason, "ForeignShadow");
    place.run("DROP TABLE public.people_resync_e1g1").await;
    until_loaded(&*at, &[(people(&place), &["1\tone\t\\N"])]).await;
    let Err(Error::Permanent(failure)) = from_loaded(&*at).await else { panic!() };
    assert_eq!(failure.reason, "TableNotOurs");
    // A mirror that was told to takes it over.
    let place = place.with(SnowflakeTable { adopt: true, ..SnowflakeTable::default() });
    open(&place.brief(1)).await.swap().await.unwrap();
    assert_eq!(place.read("people", &["id"]).await, ["1|f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_mirrors_table_is_left_alone() {
    let place = OnSnowflake::new().await;
    whole(&*open(&place.brief(1)).await, &[(people(&place), &["1\tone\t\\N"])]).await;
    let other = place.of_another_mirror();
    let found = failures(&other, 1, &[people(&place)]).await;
    assert!(found[0].0 == "Conflict" && found[0].1.contains("another Mirror"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_stored_as_the_peer_says() {
    let mut place = OnSnowflake::new().await;
    let mixed = |place: &OnSnowflake| place.adapt(table(0, "Order_lines", &["id bigint!", "Name text"]));
    let stored = async |place: &OnSnowflake, shadow: &str| {
        let sql = format!(
            "SELECT COLUMN_NAME FROM \"{}\".INFORMATION_SCHEMA.COLUMNS WHERE TABLE_SCHEMA = '{}' AND TABLE_NAME = '{shadow}' ORDER BY ORDINAL_POSITION",
            place.to.at.database, place.to.schema
        );
        place.rows(&sql).await
    };
    let own = ["_PEERDB_IS_DELETED", "_PEERDB_SYNCED_AT"];
    whole(&*open(&place.brief(1)).await, &[(people(&place), &["1\tone\t\\N"])]).await;
    assert_eq!(stored(&place, "PEOPLE").await, [&["ID", "NAME", "NOTE"][..], &own].concat());
    whole(&*open(&place.brief(2)).await, &[(mixed(&place), &["1\tone"])]).await;
    assert_eq!(stored(&place, "Order_lines").await, [&["ID", "Name"][..], &own].concat());
    place.to.names = Names::AsSource;
    let lower = place.adapt(table(0, "parts", &["id bigint!", "Name text"]));
    whole(&*open(&place.brief(3)).await, &[(lower, &["1\tone"])]).await;
    assert_eq!(stored(&place, "parts").await, [&["id", "Name"][..], &own].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_clash_are_found_before_anything_is_changed() {
    let place = OnSnowflake::new().await;
    let twice = place.adapt(table(1, "PEOPLE", &["id bigint!", "ID text", "_peerdb_synced_at text"]));
    let found = failures(&place, 1, &[people(&place), twice]).await;
    let of = |reason: &str| found.iter().filter(|(r, _)| r == reason).count();
    assert_eq!((of("NameConflict"), of("ColumnConflict"), found.len()), (1, 2, 3), "{found:?}");
    let odd = {
        let mut odd = place.adapt(table(0, "odd", &["id jsonb!", "name text"]));
        odd.columns[1].destination_type = "VECTOR(FLOAT, 3)".into();
        odd
    };
    let found = failures(&place, 1, &[odd]).await;
    assert!(found.iter().all(|(reason, _)| reason == "TypeUnsupported") && found.len() == 2, "{found:?}");
}
