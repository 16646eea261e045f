//! What there is at the destination: the tables that bear a live name, and those that bear this mirror's labels.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    BigQuery,
    error::{meaning, permanent},
    mark::{Mark, State},
};
use crate::{
    destination::Error,
    table::{TableName, TableSchema},
};

/// A table that bears a name.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) name: TableName,
    /// As the service describes it; of a list, in part.
    pub(super) resource: Value,
    pub(super) mark: Option<Mark>,
}

/// A column as the service has it.
#[derive(Clone, Debug)]
pub(super) struct Attribute {
    pub(super) name: String,
    /// Its type in SQL's words.
    pub(super) type_: String,
}

impl Live {
    fn new(name: TableName, resource: Value) -> Self {
        let mark = Mark::read(&resource["labels"]);
        Self { name, resource, mark }
    }

    /// Whether this mirror has made it, or was told to take it over.
    pub(super) fn is_ours(&self, at: &BigQuery, table: &TableSchema) -> bool {
        match &self.mark {
            Some(mark) => mark.mirror == at.brief.mirror_uid,
            None => at.options(table).adopt && self.is_table(),
        }
    }

    /// Whether it is what this epoch has loaded.
    pub(super) fn is_of(&self, at: &BigQuery) -> bool {
        let ours =
            |mark: &Mark| mark.mirror == at.brief.mirror_uid && mark.epoch == at.brief.epoch && matches!(mark.state, State::Loaded(_));
        self.mark.as_ref().is_some_and(ours)
    }

    fn is_table(&self) -> bool {
        self.resource["type"] == "TABLE"
    }

    /// Rows, as the table's description counts them: without those that are still in the write-optimized storage.
    pub(super) fn rows(&self) -> Option<u64> {
        self.resource["numRows"].as_str()?.parse().ok()
    }

    /// Whether there are rows on their way, which copies leave out (BigQuery docs, "Streaming data availability").
    pub(super) fn has_streaming_buffer(&self) -> bool {
        !self.resource["streamingBuffer"].is_null()
    }

    /// The fields of its schema.
    pub(super) fn fields(&self) -> &[Value] {
        self.resource["schema"]["fields"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Its columns, in order.
    pub(super) fn attributes(&self) -> Vec<Attribute> {
        let attribute = |field: &Value| Some(Attribute { name: field["name"].as_str()?.into(), type_: sql_type(field) });
        self.fields().iter().filter_map(attribute).collect()
    }
}

/// A field's type in SQL's words; the REST API has older names for some.
fn sql_type(field: &Value) -> String {
    let bare = match field["type"].as_str().unwrap_or_default() {
        "INTEGER" => "INT64",
        "FLOAT" => "FLOAT64",
        "BOOLEAN" => "BOOL",
        other => other,
    };
    let number = |name: &str| field[name].as_str().and_then(|n| n.parse::<u32>().ok());
    let bare = match (number("precision"), number("scale"), number("maxLength")) {
        (Some(precision), scale, _) => format!("{bare}({precision}, {})", scale.unwrap_or(0)),
        (_, _, Some(length)) => format!("{bare}({length})"),
        _ => bare.to_string(),
    };
    if field["mode"] == "REPEATED" { format!("ARRAY<{bare}>") } else { bare }
}

/// The table of that name; `None` if there is none.
pub(super) async fn find(at: &BigQuery, table: &TableName) -> Result<Option<Live>, Error> {
    let found = at.client()?.table(table).await.map_err(|e| meaning(&e, &format!("looking for {table}")))?;
    Ok(found.map(|resource| Live::new(table.clone(), resource)))
}

/// All tables with this mirror's labels, in the datasets that it may have written to.
pub(super) async fn marked(at: &BigQuery) -> Result<Vec<Live>, Error> {
    let mut datasets: BTreeSet<String> =
        at.brief.tables.iter().filter_map(|t| Some(TableName::parse(t.destination.as_deref()?)?.schema)).collect();
    datasets.insert(at.to.at.database.clone());
    let mut all = Vec::new();
    for dataset in datasets {
        let listed = at.client()?.tables(&dataset).await.map_err(|e| meaning(&e, "looking for tables"))?;
        for resource in listed {
            let Some(name) = resource["tableReference"]["tableId"].as_str() else { continue };
            let live = Live::new(TableName { schema: dataset.clone(), name: name.into() }, resource);
            if live.mark.as_ref().is_some_and(|mark| mark.mirror == at.brief.mirror_uid) {
                all.push(live);
            }
        }
    }
    Ok(all)
}

/// Drops a table of ours.
pub(super) async fn drop_table(at: &BigQuery, table: &TableName) -> Result<(), Error> {
    at.client()?.drop_table(table).await.map_err(|e| meaning(&e, &format!("dropping {table}")))
}

/// Why the table cannot be replaced, if so: reason and message. An empty table of nobody's may be.
pub(super) fn refusal(at: &BigQuery, live: &Live, table: &TableSchema) -> Option<(&'static str, String)> {
    let name = &table.destination;
    if let Some(mark) = live.mark.as_ref().filter(|mark| mark.mirror != at.brief.mirror_uid) {
        let message = format!(
            "{name} at the destination is written by another Mirror, with the UID {}: two mirrors cannot share a table",
            mark.mirror
        );
        return Some(("Conflict", message));
    }
    if live.is_ours(at, table) {
        return None;
    }
    if !live.is_table() {
        let kind = live.resource["type"].as_str().unwrap_or("thing without a type");
        return Some(("TableNotOurs", format!("{name} at the destination is not an ordinary table but a {kind}: rename or drop it")));
    }
    let filled = live.rows() != Some(0) || live.has_streaming_buffer();
    let message = format!(
        "{name} exists at the destination, was not made by this mirror and is not empty: empty, rename or drop it, or let the mirror adopt it \
         (tables[].bigquery.adopt)"
    );
    filled.then_some(("TableNotOurs", message))
}

/// The refusal as an error.
pub(super) fn refuse(at: &BigQuery, live: &Live, table: &TableSchema) -> Result<(), Error> {
    refusal(at, live, table).map_or(Ok(()), |(reason, message)| Err(permanent(reason, message)))
}
