//! What people gave to a table: who may read it, what protects its columns, and what describes them.

use mirror_operator::{api::bigquery::BigQueryTable, destination::Error, table::TableSchema};
use reqwest::Method;
use serde_json::{Value, json};

use super::{recorded, rest};
use crate::{
    fixture::{Fixture, from_loaded, open, table, until_loaded, whole},
    on_bigquery::OnBigQuery,
};

const ROWS: &[&str] = &["1\t2024-01-01\tx", "5\t2024-01-05\ty"];

fn t(place: &OnBigQuery) -> TableSchema {
    place.adapt(table(0, "t", &["id bigint!", "day date", "secret text"]))
}

/// A mirror's table `t`, which one reader may read.
async fn readable() -> (OnBigQuery, Value) {
    let place = OnBigQuery::new().await;
    whole(&*open(&place.brief(1)).await, &[(t(&place), ROWS)]).await;
    let bindings = json!([{ "role": "roles/bigquery.dataViewer", "members": ["user:reader@example.com"] }]);
    rest(&place, Method::POST, "t:setIamPolicy", Some(json!({ "policy": { "bindings": bindings } }))).await;
    (place, bindings)
}

/// The same place for a mirror whose table has other partitions.
fn laid_out(place: &OnBigQuery) -> OnBigQuery {
    place.clone().with(BigQueryTable { partition_by: Some("DATE_TRUNC(day, MONTH)".into()), ..BigQueryTable::default() })
}

async fn bindings(place: &OnBigQuery, table: &str) -> Value {
    rest(place, Method::POST, &format!("{table}:getIamPolicy"), Some(json!({}))).await["bindings"].clone()
}

/// Gives columns something beside type and mode.
async fn give(place: &OnBigQuery, what: &str, values: &[(&str, Value)]) {
    let mut fields = rest(place, Method::GET, "t", None).await["schema"]["fields"].clone();
    for field in fields.as_array_mut().unwrap() {
        if let Some((_, value)) = values.iter().find(|(name, _)| field["name"] == *name) {
            field[what] = value.clone();
        }
    }
    rest(place, Method::PATCH, "t", Some(json!({ "schema": { "fields": fields } }))).await;
}

/// What a table's columns have beside type and mode, by their names.
async fn given(place: &OnBigQuery, table: &str, what: &str) -> Vec<(String, Value)> {
    let resource = rest(place, Method::GET, table, None).await;
    let fields = resource["schema"]["fields"].as_array().unwrap().clone();
    let named = fields.into_iter().filter(|field| !field[what].is_null());
    named.map(|field| (field["name"].as_str().unwrap().to_string(), field[what].clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_leaves_the_table_and_who_may_read_it() {
    let (place, readers) = readable().await;
    let made = rest(&place, Method::GET, "t", None).await["creationTime"].clone();
    let (brief, said) = recorded(&place, 2).await;
    whole(&*open(&brief).await, &[(t(&place), ROWS)]).await;
    assert_eq!(rest(&place, Method::GET, "t", None).await["creationTime"], made);
    assert_eq!(bindings(&place, "t").await, readers);
    for request in said.lock().unwrap().iter() {
        let line = request.lines().next().unwrap();
        let dropped = line.starts_with("DELETE") && line.contains("/tables/t ");
        assert!(!dropped && !line.contains("/tables/t:setIamPolicy"), "{line}");
        assert!(!request.contains("CREATE OR REPLACE TABLE"), "{request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_read_a_table_and_what_describes_its_columns_outlives_other_partitions() {
    let (place, readers) = readable().await;
    give(&place, "description", &[("day", json!("which day")), ("secret", json!("of nobody's"))]).await;
    let place = laid_out(&place);
    let (brief, said) = recorded(&place, 2).await;
    whole(&*open(&brief).await, &[(t(&place), ROWS)]).await;
    assert_eq!(rest(&place, Method::GET, "t", None).await["timePartitioning"]["field"], "day");
    assert_eq!(given(&place, "t", "description").await, [("day".into(), json!("which day")), ("secret".into(), json!("of nobody's"))]);
    assert_eq!(bindings(&place, "t").await, readers);
    // The emulator keeps a policy by its table's name whatever becomes of the table: the service is told.
    let said = said.lock().unwrap();
    let replaced = said.iter().position(|request| request.contains("CREATE OR REPLACE TABLE")).unwrap();
    let policies =
        |request: &&String| request.lines().next().unwrap().contains("/tables/t:setIamPolicy") && request.contains("reader@example.com");
    assert_eq!(said[..replaced].iter().filter(policies).count(), 0);
    assert_eq!(said[replaced..].iter().filter(policies).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_tags_protect_the_shadow_before_it_is_swapped_and_stay() {
    let (place, _) = readable().await;
    let tags = json!({ "names": ["projects/p/locations/us/taxonomies/1/policyTags/2"] });
    give(&place, "policyTags", &[("secret", tags.clone()), ("day", tags.clone())]).await;
    let both: [(String, Value); 2] = [("day".into(), tags.clone()), ("secret".into(), tags.clone())];
    let at = open(&place.brief(2)).await;
    until_loaded(&*at, &[(t(&place), ROWS)]).await;
    at.seal().await.unwrap();
    assert_eq!(given(&place, "t_resync_e2g1", "policyTags").await, both);
    from_loaded(&*at).await.unwrap();
    assert_eq!(given(&place, "t", "policyTags").await, both);
    assert_eq!(given(&place, "t_old", "policyTags").await, both);
    // Other partitions would need a table without them in between.
    let other = laid_out(&place);
    let refused = open(&other.brief(3)).await;
    until_loaded(&*refused, &[(t(&other), ROWS)]).await;
    let Err(Error::Permanent(failure)) = from_loaded(&*refused).await else { panic!() };
    assert_eq!(failure.reason, "Layout");
    assert_eq!(place.count("t").await, 2);
    refused.abandon().await.unwrap();
    // A column that goes takes its own along, and that is said.
    let at = open(&place.brief(4)).await;
    let narrow = place.adapt(table(0, "t", &["id bigint!", "day date"]));
    until_loaded(&*at, &[(narrow, &["1\t2024-01-01"])]).await;
    from_loaded(&*at).await.unwrap();
    assert_eq!(given(&place, "t", "policyTags").await, both[..1]);
    let (_, tables) = at.progress().await.unwrap();
    assert_eq!(tables[0].note.as_deref(), Some("the policy tags of column \"secret\" went with the column"));
}
