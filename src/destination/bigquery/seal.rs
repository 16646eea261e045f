//! What is done to a shadow once its rows are there: they are counted, and it gets what people gave to the live table.

use serde_json::{Value, json};

use super::{
    BigQuery,
    error::{meaning, permanent},
    ledger::shadow_of,
    live::{self, Live},
    mark::{Mark, State},
};
use crate::{
    destination::{
        Error,
        fact::{Done, Fact, Planned, Sealed, Table},
    },
    table::{TableName, TableSchema},
    verify::Measure,
};

/// What a table's description has that people decide on, beside its columns and labels.
const GIVEN: [&str; 2] = ["description", "friendlyName"];

/// See [`Destination::seal`](crate::destination::Destination::seal).
pub(super) async fn seal(at: &BigQuery) -> Result<(), Error> {
    let facts = at.facts(&[Table::KIND, Sealed::KIND]).await?;
    facts.fence(at)?;
    let mut tables = facts.all::<Table>()?;
    if !tables.is_empty() {
        // Several workers begin at different places.
        let start = super::random() as usize % tables.len();
        tables.rotate_left(start);
    }
    for (number, _, table) in tables {
        if facts.is_sealed(number, table.generation)? {
            continue;
        }
        let facts = at.facts(&[Table::KIND, Planned::KIND, Done::KIND, Measure::KIND, Sealed::KIND]).await?;
        let table = facts.table(&at.brief, number)?;
        if facts.is_sealed(number, table.generation)? || facts.incomplete(&at.brief)?.contains(&number) {
            continue;
        }
        let shadow = shadow_of(at, &table);
        if live::find(at, &shadow).await?.is_none() {
            at.fence().await?;
            return Err(Error::Transient(format!("{shadow} is gone; it is looked at again")));
        }
        count(at, &table.schema, &shadow, facts.rows_loaded(number, table.generation)?).await?;
        let note = dress(at, &table, &shadow).await?;
        at.fence().await?;
        at.record(&[at.entry(number, table.generation.into(), &Sealed { note })?]).await?;
    }
    Ok(())
}

/// The rows of a table, as a query counts them, which costs nothing.
pub(super) async fn rows(at: &BigQuery, table: &TableName) -> Result<Option<u64>, Error> {
    rows_where(at, table, "").await
}

/// The same under a condition, of which the columns are billed.
pub(super) async fn rows_where(at: &BigQuery, table: &TableName, condition: &str) -> Result<Option<u64>, Error> {
    let rows = at.jobs().await?.rows(format!("SELECT CAST(COUNT(*) AS STRING) FROM {}{condition}", at.quoted(table))).await;
    let rows = rows.map_err(|e| meaning(&e, &format!("counting rows of {table}")))?;
    Ok(rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok()))
}

/// Compares the shadow's rows with those that were read.
async fn count(at: &BigQuery, table: &TableSchema, shadow: &TableName, expected: u64) -> Result<(), Error> {
    let found = rows(at, shadow).await?;
    if found == Some(expected) {
        return Ok(());
    }
    let found = found.map_or("none".into(), |n| n.to_string());
    let message =
        format!("{}: {expected} rows were read and {found} are in {shadow}. Nothing was swapped. Start a new resync", table.destination);
    Err(permanent("LoadMiscounted", message))
}

/// Gives the shadow what the live table has: a copy takes its columns with their descriptions and policy tags from there, so that values are never without
/// the protection that they had. Returns what could not be kept.
async fn dress(at: &BigQuery, table: &Table, shadow: &TableName) -> Result<Option<String>, Error> {
    let Some(live) = live::find(at, &table.schema.destination).await?.filter(|live| live.is_ours(at, &table.schema)) else {
        return Ok(None);
    };
    let Some(bare) = live::find(at, shadow).await? else { return Ok(None) };
    let mut patch = json!({});
    for name in GIVEN {
        if let Some(value) = live.resource.get(name).filter(|value| value.is_string()) {
            patch[name] = value.clone();
        }
    }
    let mark = Mark::of(&at.brief, table.schema.number, State::Loaded(table.generation));
    let mut labels = Mark::others(&live.resource["labels"]);
    if !labels.is_empty() {
        labels.extend(mark.labels());
        patch["labels"] = json!(labels);
    }
    let (fields, gone) = dressed(&live, &bare);
    if fields != bare.fields() {
        patch["schema"] = json!({ "fields": fields });
    }
    if patch != json!({}) {
        let patched = at.client()?.patch_table(shadow, &patch).await;
        patched.map_err(|e| meaning(&e, &format!("describing {shadow} as the live table is")))?;
    }
    Ok(gone)
}

/// The shadow's fields with what those of the live table have beside type and mode; and a note on what protected a column that is gone.
fn dressed(live: &Live, bare: &Live) -> (Vec<Value>, Option<String>) {
    const KEPT: [&str; 3] = ["description", "policyTags", "dataPolicies"];
    let name = |field: &Value| field["name"].as_str().unwrap_or_default().to_lowercase();
    let mut fields = bare.fields().to_vec();
    let mut gone = Vec::new();
    for old in live.fields() {
        match fields.iter_mut().find(|new| name(new) == name(old)) {
            Some(new) => {
                for kept in KEPT {
                    if let Some(value) = old.get(kept).filter(|value| !value.is_null()) {
                        new[kept] = value.clone();
                    }
                }
            }
            None if !old["policyTags"].is_null() => gone.push(format!("{:?}", name(old))),
            None => {}
        }
    }
    let note = (!gone.is_empty()).then(|| format!("the policy tags of column {} went with the column", gone.join(", ")));
    (fields, note)
}
