//! What a swap keeps, and what stops a mirror before anything is changed.

use mirror_operator::{
    api::bigquery::BigQueryTable,
    brief::{Brief, DestinationPeer},
    destination::Destination,
    table::TableSchema,
};

use crate::{
    fixture::{Fixture, open, table, whole},
    on_bigquery::OnBigQuery,
};

fn t(place: &OnBigQuery) -> TableSchema {
    place.adapt(table(0, "t", &["id bigint!", "day date"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_descriptions_stay() {
    let place = OnBigQuery::new().await;
    whole(&*open(&place.brief(1)).await, &[(t(&place), &["1\t2024-01-01"])]).await;
    place.run("ALTER TABLE public.t SET OPTIONS (description = 'days of work')").await;
    place.run("ALTER TABLE public.t ALTER COLUMN day SET OPTIONS (description = 'which')").await;
    let mut labelled = place.describe("t").await;
    labelled.labels.get_or_insert_default().insert("team".into(), "shop".into());
    let (project, dataset) = (&place.to.project, &place.to.at.database);
    place.client().table().patch(project, dataset, "t", labelled).await.unwrap();
    whole(&*open(&place.brief(2)).await, &[(t(&place), &["1\t2024-01-01", "2\t2024-01-02"])]).await;
    let now = place.describe("t").await;
    assert_eq!(now.description.as_deref(), Some("days of work"));
    let labels = now.labels.unwrap();
    assert_eq!((labels["team"].as_str(), labels["mirror-operator-epoch"].as_str()), ("shop", "2"));
    let day = now.schema.fields.unwrap().into_iter().find(|f| f.name == "day").unwrap();
    assert_eq!(day.description.as_deref(), Some("which"));
    assert_eq!(place.count("t").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_gets_other_partitions_and_clusters() {
    let place = OnBigQuery::new().await;
    whole(&*open(&place.brief(1)).await, &[(t(&place), &["1\t2024-01-01", "5\t2024-01-05"])]).await;
    let options = BigQueryTable {
        partition_by: Some("DATE_TRUNC(day, MONTH)".into()),
        cluster_by: vec!["day".into()],
        require_partition_filter: true,
        ..BigQueryTable::default()
    };
    let place = place.with(options);
    let at = open(&place.brief(2)).await;
    assert_eq!(at.preflight(&[t(&place)]).await.unwrap(), vec![]);
    whole(&*at, &[(t(&place), &["1\t2024-01-01"])]).await;
    let now = place.describe("t").await;
    assert_eq!(now.time_partitioning.unwrap().field.as_deref(), Some("day"));
    assert_eq!(now.clustering.unwrap().fields.unwrap(), ["day"]);
    assert_eq!(now.labels.unwrap()["mirror-operator-epoch"], "2");
    assert_eq!(place.rows("SELECT id FROM public.t WHERE day > '2000-01-01' ORDER BY 1").await, ["1", "5"]);
    // And once more, from a table that wants to hear of its partitions.
    whole(&*open(&place.brief(3)).await, &[(t(&place), &["2\t2024-01-02"])]).await;
    assert_eq!(place.rows("SELECT id FROM public.t WHERE day > '2000-01-01' ORDER BY 1").await, ["1", "2", "5"]);
}

async fn reasons(at: &dyn Destination, tables: &[TableSchema]) -> Vec<String> {
    at.preflight(tables).await.unwrap().into_iter().map(|failure| failure.reason).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_stop_a_load_is_found_before_anything_is_changed() {
    let place = OnBigQuery::new().await;
    let at = open(&place.brief(1)).await;
    let named = |name: &str, columns: &[&str]| place.adapt(table(0, name, columns));
    for (table, reason) in [
        (named("t", &["id bigint!", "Name text", "name text"]), "ColumnConflict"),
        (named("t", &["id bigint!", "größe text"]), "NameUnsupported"),
        (named("t", &["id bigint!", "_partitiontime text"]), "NameUnsupported"),
        (named("a.b", &["id bigint!"]), "NameUnsupported"),
    ] {
        assert_eq!(reasons(&*at, &[table]).await, [reason]);
    }
    place.run("CREATE TABLE public.t AS SELECT 1 AS id").await;
    place.run("CREATE TABLE public.u_old (id INT64)").await;
    assert_eq!(reasons(&*at, &[t(&place)]).await, ["TableNotOurs"]);
    assert_eq!(reasons(&*at, &[named("u", &["id bigint!"])]).await, ["ForeignShadow"]);
    let adopting = place.clone().with(BigQueryTable { adopt: true, ..BigQueryTable::default() });
    assert_eq!(reasons(&*open(&adopting.brief(1)).await, &[t(&place)]).await, Vec::<String>::new());
    let policy =
        format!("CREATE ROW ACCESS POLICY mine ON {}.t GRANT TO ('user:a@example.com') FILTER USING (id = 1)", place.to.at.database);
    place.run(&policy).await;
    assert_eq!(reasons(&*open(&adopting.brief(1)).await, &[t(&place)]).await, ["RowAccessPolicies"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_that_is_missing_or_elsewhere_is_named_with_its_cure() {
    let place = OnBigQuery::new().await;
    let with = |change: &dyn Fn(&mut mirror_operator::destination::bigquery::Peer)| {
        let mut to = place.to.clone();
        change(&mut to);
        Brief { destination: DestinationPeer::BigQuery(to), ..place.brief(1) }
    };
    let missing = open(&with(&|to| to.at.database = "no_such_dataset".into())).await.preflight(&[t(&place)]).await.unwrap();
    assert_eq!(missing[0].reason, "DatasetMissing");
    assert!(missing[0].message.contains("bq --location="), "{}", missing[0].message);
    let elsewhere = open(&with(&|to| to.location = Some("mars".into()))).await.preflight(&[t(&place)]).await.unwrap();
    assert_eq!(elsewhere[0].reason, "DatasetLocation");
}
