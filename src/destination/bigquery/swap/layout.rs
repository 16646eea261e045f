//! Tables that get other partitions or clusters, which a copy onto them cannot give: they are replaced as a whole, in one atomic statement. It is not documented
//! whether their IAM policy outlives that, so it is put on the shadow before and taken from there after. What describes their columns does not, and the shadow
//! has it too.

use reqwest::Method;
use serde_json::{Value, json};

use super::super::{
    BigQuery,
    client::table_path,
    error::{meaning, permanent},
    live::Live,
    mark::{Mark, REPLACES, State},
    own::{self, Own},
    quote::{list, literal},
};
use crate::{
    destination::Error,
    table::{TableName, TableSchema},
};

/// How a table is laid out.
pub(super) fn of(table: &Live) -> Value {
    let time = &table.resource["timePartitioning"];
    json!([time["type"], time["field"], table.resource["rangePartitioning"], table.resource["clustering"]["fields"]])
}

/// Whether that was found out before: once the live table is replaced it looks like the shadow.
pub(super) fn is_known(shadow: &Live) -> bool {
    shadow.resource["labels"][REPLACES].is_string()
}

/// Keeps who may read the live table, on the shadow.
pub(super) async fn prepare(at: &BigQuery, live: &Live, shadow: &Live) -> Result<(), Error> {
    if live.fields().iter().any(|field| !field["policyTags"].is_null() || !field["dataPolicies"].is_null()) {
        let message = format!(
            "{} has policy tags or data policies, and its partitions or clusters are to change: its values would be without them. Keep partitionBy and \
             clusterBy as they are, or drop the table first",
            live.name
        );
        return Err(permanent("Layout", message));
    }
    if is_known(shadow) {
        return Ok(());
    }
    let policy = policy(at, &live.name).await?;
    if policy["bindings"].as_array().is_some_and(|bindings| !bindings.is_empty()) {
        set_policy(at, &shadow.name, &policy).await?;
    }
    let known = at.client()?.patch_table(&shadow.name, &json!({ "labels": { REPLACES: "yes" } })).await;
    known.map_err(|e| meaning(&e, &format!("labelling {}", shadow.name)))
}

/// Replaces the live table by the shadow's rows, once, and gives it what it had.
pub(super) async fn replace(at: &BigQuery, table: &TableSchema, shadow: &Live, step: &str) -> Result<(), Error> {
    let (name, own) = (&table.destination, Own::of(&at.brief));
    // The swap's last step says that the table is this epoch's.
    let mark = Mark { epoch: at.brief.previous_epoch, ..Mark::of(&at.brief, table.number, State::Loaded(0)) };
    let labels: Vec<String> = mark.labels().iter().map(|(key, value)| format!("({}, {})", literal(key), literal(value))).collect();
    let columns = table.copied().map(|c| c.destination.as_str()).chain(own.names());
    let sql = format!(
        "CREATE OR REPLACE TABLE {} {} OPTIONS (labels = [{}]) AS SELECT {} FROM {}",
        at.quoted(name),
        own::definition(table, &at.options(table), &own),
        labels.join(", "),
        list(columns),
        at.quoted(&shadow.name)
    );
    let doing = format!("replacing {name}, whose partitions or clusters change");
    at.jobs().await?.run_once(&at.once(step).await?, sql).await.map_err(|e| meaning(&e, &doing))?;
    if shadow.fields().iter().any(|field| !field["description"].is_null()) {
        let described = at.client()?.patch_table(name, &json!({ "schema": { "fields": shadow.fields() } })).await;
        described.map_err(|e| meaning(&e, &format!("describing the columns of {name}, whose partitions or clusters have changed")))?;
    }
    let policy = policy(at, &shadow.name).await?;
    if policy["bindings"].as_array().is_some_and(|bindings| !bindings.is_empty()) {
        set_policy(at, name, &policy).await?;
    }
    Ok(())
}

async fn policy(at: &BigQuery, table: &TableName) -> Result<Value, Error> {
    let answer = at.client()?.ask(Method::POST, &format!("{}:getIamPolicy", table_path(table)), Some(&json!({}))).await;
    answer.map_err(|e| meaning(&e, &format!("reading who may read {table}, for its partitions or clusters change")))
}

async fn set_policy(at: &BigQuery, table: &TableName, policy: &Value) -> Result<(), Error> {
    let policy = json!({ "policy": { "bindings": policy["bindings"], "version": policy["version"] } });
    let answer = at.client()?.ask(Method::POST, &format!("{}:setIamPolicy", table_path(table)), Some(&policy)).await;
    answer.map(drop).map_err(|e| meaning(&e, &format!("saying who may read {table}, for its partitions or clusters change")))
}
