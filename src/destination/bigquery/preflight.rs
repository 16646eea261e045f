//! What would stop a load, found before anything is changed.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;

use super::{
    BigQuery,
    apply::Owner,
    client::{Client, Peer, table_path},
    error::{failure, meaning},
    job::Jobs,
    live, mark,
    own::{Own, clustered_by, partition_column},
    quote::qualified,
    types::Type,
};
use crate::{
    destination::{Error, foreign_shadow},
    report::Failure,
    table::{TableName, TableSchema},
};

/// What names of columns may not begin with (BigQuery docs, "Specify a schema", "Column names").
const RESERVED: [&str; 6] = ["_TABLE_", "_FILE_", "_PARTITION", "_ROW_TIMESTAMP", "__ROOT__", "_COLIDENTIFIER"];

/// See [`Destination::preflight`](crate::destination::Destination::preflight).
pub(super) async fn preflight(at: &BigQuery, tables: &[TableSchema]) -> Result<Vec<Failure>, Error> {
    let jobs = match at.jobs().await {
        Ok(jobs) => jobs,
        Err(Error::Permanent(failure)) => return Ok(vec![failure]),
        Err(error) => return Err(error),
    };
    let mut datasets: BTreeSet<&str> = tables.iter().map(|t| t.destination.schema.as_str()).collect();
    datasets.insert(&at.to.at.database);
    let mut found = Vec::new();
    for dataset in datasets {
        self::dataset(&jobs, &at.to, dataset, &mut found).await?;
    }
    if !found.is_empty() {
        return Ok(found);
    }
    for table in tables {
        columns(at, table, &mut found);
        layout(at, table, &mut found);
    }
    names(tables, &mut found);
    for table in tables {
        taken(at, table, &mut found).await?;
        if let Some(live) = live::find(at, &table.destination).await? {
            found.extend(live::refusal(at, &live, table).map(|(reason, message)| failure(reason, message)));
            found.extend(row_policies(at, &table.destination).await?);
        }
    }
    Ok(found)
}

/// The same for any mirror.
pub(super) async fn check(to: &Peer) -> Result<Vec<Failure>, Error> {
    let client = Client::new(to)?;
    let location = match super::location(&client, to).await {
        Ok(location) => location,
        Err(Error::Permanent(failure)) => return Ok(vec![failure]),
        Err(error) => return Err(error),
    };
    let jobs = Jobs { client: &client, location: &location, prefix: "mo-check-", owner: &Owner::default() };
    let mut found = Vec::new();
    dataset(&jobs, to, &to.at.database, &mut found).await?;
    Ok(found)
}

/// Whether a dataset is there, where it should be, and whether tables can be made in it. The service itself looks at the rights, without doing anything.
async fn dataset(jobs: &Jobs<'_>, to: &Peer, dataset: &str, found: &mut Vec<Failure>) -> Result<(), Error> {
    let doing = format!("looking for dataset {dataset:?}");
    let Some(resource) = jobs.client.dataset(dataset).await.map_err(|e| meaning(&e, &doing))? else {
        found.push(dataset_missing(to, dataset));
        return Ok(());
    };
    let location = resource["location"].as_str().unwrap_or("US");
    if !location.eq_ignore_ascii_case(jobs.location) {
        let message = format!(
            "dataset {dataset:?} is in {location} and that of the Peer in {}: statements cannot span both. Write to a dataset in {}",
            jobs.location, jobs.location
        );
        found.push(failure("DatasetLocation", message));
        return Ok(());
    }
    let probe = TableName { schema: dataset.into(), name: "_mirror_operator_probe".into() };
    let sql = format!("CREATE TABLE {} (x INT64)", qualified(&to.project, &probe));
    match jobs.dry_run(sql).await.map_err(|e| meaning(&e, &format!("asking for the rights in dataset {dataset:?}"))) {
        Err(Error::Permanent(failure)) => found.push(failure),
        Err(error) => return Err(error),
        Ok(()) => {}
    }
    Ok(())
}

pub(super) fn dataset_missing(to: &Peer, dataset: &str) -> Failure {
    let location = to.location.as_deref().unwrap_or("LOCATION");
    failure(
        "DatasetMissing",
        format!(
            "project {0:?} has no dataset {dataset:?}, or the Peer's account may not see it. Run: bq --location={location} mk --dataset {0}:{dataset}",
            to.project
        ),
    )
}

fn columns(at: &BigQuery, table: &TableSchema, found: &mut Vec<Failure>) {
    let own = Own::of(&at.brief);
    let mut seen: BTreeMap<String, &str> = own.names().map(|name| (name.to_lowercase(), name)).collect();
    for column in &table.columns {
        let name = &column.destination;
        if let Some(other) = seen.insert(name.to_lowercase(), name) {
            let message = format!(
                "{} would have the columns {other:?} and {name:?}, which BigQuery does not tell apart, as case does not count: give the source's another \
                 name in the Mirror's tables[].columns, or change softDelete.column or syncedAtColumn",
                table.destination
            );
            found.push(failure("ColumnConflict", message));
        }
        if !is_column_name(name) {
            let message = format!(
                "column {name:?} of {} has a name that cannot be used at BigQuery: letters, digits and underscores, and none of the beginnings {}. \
                 Give it another `destination` in the Mirror's tables[].columns",
                table.destination,
                RESERVED.join(", ")
            );
            found.push(failure("NameUnsupported", message));
        }
        if column.generated.is_some() {
            let message = format!(
                "column {name:?} of {} is generated at the source, which does not publish its values: list it in excludeColumns, and compute it in a view",
                table.destination
            );
            found.push(failure("GeneratedColumn", message));
        } else if Type::parse(&column.destination_type).is_none() {
            let message = format!(
                "column {name:?} of {} has type {}, in which rows cannot be written: give the column another `type` in the Mirror, such as STRING",
                table.destination, column.destination_type
            );
            found.push(failure("TypeUnsupported", message));
        }
    }
}

/// Whether rows can be written to a column of this name: the fields of protocol buffers have no others.
fn is_column_name(name: &str) -> bool {
    let upper = name.to_uppercase();
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !RESERVED.iter().any(|reserved| upper.starts_with(reserved))
}

/// Partitions and clusters.
fn layout(at: &BigQuery, table: &TableSchema, found: &mut Vec<Failure>) {
    let options = at.options(table);
    let types: BTreeMap<String, Option<Type>> =
        table.copied().map(|c| (c.destination.to_lowercase(), Type::parse(&c.destination_type))).collect();
    let mut wrong = |message: String| found.push(failure("Layout", message));
    for column in clustered_by(table, &options) {
        match types.get(&column.to_lowercase()) {
            None => wrong(format!("{} has no column {column:?}, which clusterBy names: correct the Mirror", table.destination)),
            Some(Some(type_)) if !type_.clusters() => wrong(format!(
                "column {column:?} of {} has a type that a table cannot be clustered by: take it off clusterBy",
                table.destination
            )),
            Some(_) => {}
        }
    }
    if options.partition_by.is_some() && partition_column(table, &options).is_none() {
        wrong(format!(
            "partitionBy of {} names no column of the table: write a column, or a function of one such as DATE(column)",
            table.destination
        ));
    }
    if options.require_partition_filter && options.partition_by.is_none() {
        wrong(format!("requirePartitionFilter of {} is of no use without partitionBy: correct the Mirror", table.destination));
    }
}

/// Tables whose helpers would bear the name of another mirrored table, or that BigQuery would not tell apart.
fn names(tables: &[TableSchema], found: &mut Vec<Failure>) {
    let live: BTreeSet<&TableName> = tables.iter().map(|t| &t.destination).collect();
    for table in tables {
        let retired = mark::retired(&table.destination);
        if live.contains(&retired) {
            let message = format!(
                "{} needs the name {:?} after the swap, but another table of the mirror has it: change its `destination`",
                table.destination, retired.name
            );
            found.push(failure("NameConflict", message));
        }
        let name = &table.destination.name;
        // BigQuery docs, "Create and use tables", "Table naming".
        let category = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | ' ');
        if !name.chars().all(category) {
            let message = format!(
                "{name:?} cannot be the name of a table at BigQuery: letters, digits, underscores, dashes and spaces. Change the table's `destination`"
            );
            found.push(failure("NameUnsupported", message));
        }
    }
}

/// Names of shadows and retired tables that somebody else has taken.
async fn taken(at: &BigQuery, table: &TableSchema, found: &mut Vec<Failure>) -> Result<(), Error> {
    for helper in [mark::shadow(&table.destination, at.brief.epoch, 1), mark::retired(&table.destination)] {
        let live = live::find(at, &helper).await?;
        if live.is_some_and(|live| live.mark.is_none_or(|mark| mark.mirror != at.brief.mirror_uid)) {
            found.push(failure("ForeignShadow", foreign_shadow(&helper)));
        }
    }
    Ok(())
}

/// Row access policies go when a table is overwritten (BigQuery docs, "Use row-level security with other BigQuery features"), and hide rows from us.
async fn row_policies(at: &BigQuery, table: &TableName) -> Result<Option<Failure>, Error> {
    let path = format!("{}/rowAccessPolicies", table_path(table));
    let listed = match at.client()?.ask(Method::GET, &path, None).await {
        Err(refusal) if refusal.is("notFound") => return Ok(None),
        listed => listed.map_err(|e| meaning(&e, &format!("looking for row access policies of {table}")))?,
    };
    let policies = listed["rowAccessPolicies"].as_array().into_iter().flatten();
    let names: Vec<&str> = policies.filter_map(|policy| policy["rowAccessPolicyReference"]["policyId"].as_str()).collect();
    let message = format!(
        "{table} has the row access policies {}, which a swap would remove and which may hide rows that have to be carried: drop them, and put them on a \
         view or an authorized dataset instead",
        names.join(", ")
    );
    Ok((!names.is_empty()).then(|| failure("RowAccessPolicies", message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_columns_are_those_that_rows_can_be_written_to() {
        for fine in ["id", "_PEERDB_IS_DELETED", "A1"] {
            assert!(is_column_name(fine), "{fine}");
        }
        for wrong in ["", "1a", "a-b", "größe", "_partitiontime", "__root__x", "a b"] {
            assert!(!is_column_name(wrong), "{wrong}");
        }
    }

    /// What is said of the layout of a table with an id and a note, kept as the Mirror says.
    fn said(options: &serde_json::Value) -> Vec<String> {
        let column = |name: &str, type_: &str| crate::table::Column {
            source: name.into(),
            destination: name.into(),
            source_type: type_.into(),
            base_type: None,
            source_type_oid: 0,
            destination_type: type_.into(),
            not_null: false,
            generated: None,
            binary: true,
            as_text: false,
        };
        let table = TableSchema {
            number: 0,
            source: TableName::parse("public.t").unwrap(),
            source_oid: 1,
            destination: TableName::parse("shop.t").unwrap(),
            columns: vec![column("id", "INT64"), column("day", "DATE"), column("doc", "JSON")],
            identity: crate::table::Identity::Key(vec![0]),
            partition_key: None,
        };
        let mut found = vec![];
        layout(&super::super::tests::unconnected(options), &table, &mut found);
        found.into_iter().map(|failure| format!("{}: {}", failure.reason, failure.message)).collect()
    }

    #[test]
    fn a_layout_that_the_table_cannot_have_is_named_with_its_cure() {
        use serde_json::json;
        let fine = json!({ "clusterBy": ["ID", "day"], "partitionBy": "DATE_TRUNC(day, MONTH)", "requirePartitionFilter": true });
        assert_eq!(said(&fine), Vec::<String>::new());
        let table = [
            (json!({ "clusterBy": ["nope"] }), "Layout: shop.t has no column \"nope\", which clusterBy names"),
            (json!({ "clusterBy": ["doc"] }), "Layout: column \"doc\" of shop.t has a type that a table cannot be clustered by"),
            (json!({ "partitionBy": "DATE(nope)" }), "Layout: partitionBy of shop.t names no column of the table"),
            (json!({ "requirePartitionFilter": true }), "Layout: requirePartitionFilter of shop.t is of no use without partitionBy"),
        ];
        for (options, words) in table {
            let said = said(&options);
            assert!(said.len() == 1 && said[0].starts_with(words), "{said:?}");
        }
    }
}
