//! The columns that every table has beside the source's, and what it is clustered and partitioned by. Pure.

use super::{
    quote::{ident, list},
    types::Type,
};
use crate::{api::bigquery::BigQueryTable, brief::Brief, table::TableSchema};

/// The names of the columns, as the brief has them.
#[derive(Clone, Debug)]
pub(super) struct Own {
    /// True for a deleted row, if deletes are soft.
    pub(super) flag: Option<String>,
    /// When the row was written, if that is wanted.
    pub(super) synced_at: Option<String>,
}

impl Own {
    pub(super) fn of(brief: &Brief) -> Self {
        let flag = brief.soft_delete.enabled.then(|| brief.soft_delete.column.clone());
        let synced_at = (!brief.synced_at_column.is_empty()).then(|| brief.synced_at_column.clone());
        Self { flag, synced_at }
    }

    /// All names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.flag.as_deref().into_iter().chain(self.synced_at.as_deref())
    }

    /// Names and types.
    fn definitions(&self) -> Vec<String> {
        let flag = self.flag.iter().map(|name| format!("{} BOOL", ident(name)));
        flag.chain(self.synced_at.iter().map(|name| format!("{} TIMESTAMP", ident(name)))).collect()
    }
}

/// Names of the key's columns at the destination.
pub(super) fn key(table: &TableSchema) -> Vec<&str> {
    table.key().iter().filter_map(|i| table.columns.get(*i)).map(|c| c.destination.as_str()).collect()
}

/// The columns that the table is clustered by: those that are wanted, else the first four of the key that can be.
pub(super) fn clustered_by(table: &TableSchema, options: &BigQueryTable) -> Vec<String> {
    if !options.cluster_by.is_empty() {
        return options.cluster_by.clone();
    }
    let key = table.key().iter().filter_map(|i| table.columns.get(*i));
    let serves = |type_: &str| Type::parse(type_).is_some_and(|t| t.clusters());
    key.filter(|c| serves(&c.destination_type)).take(4).map(|c| c.destination.clone()).collect()
}

/// The column whose values decide on the partition; `None` where the expression has none that is known here.
pub(super) fn partition_column<'a>(table: &'a TableSchema, options: &BigQueryTable) -> Option<&'a str> {
    let expression = options.partition_by.as_deref()?;
    let inside = expression.split_once('(').map_or(expression, |(_, rest)| rest);
    let first = inside.split([',', ')']).next()?.trim().trim_matches('`');
    table.copied().map(|c| c.destination.as_str()).find(|name| name.eq_ignore_ascii_case(first))
}

/// The part of `CREATE TABLE` that says what a table is. Only the key is NOT NULL: everything else may be, whatever the source says by the time of the next resync.
pub(super) fn definition(table: &TableSchema, options: &BigQueryTable, own: &Own) -> String {
    let key = table.copied_key();
    let column = |(place, c): (usize, &crate::table::Column)| {
        let not_null = if key.contains(&place) { " NOT NULL" } else { "" };
        format!("{} {}{not_null}", ident(&c.destination), c.destination_type)
    };
    let mut columns: Vec<String> = table.copied().enumerate().map(column).collect();
    columns.extend(own.definitions());
    let mut sql = format!("({})", columns.join(", "));
    if let Some(expression) = &options.partition_by {
        sql.push_str(&format!(" PARTITION BY {expression}"));
    }
    let clustered = clustered_by(table, options);
    if !clustered.is_empty() {
        sql.push_str(&format!(" CLUSTER BY {}", list(&clustered)));
    }
    sql
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Column, Identity, TableName};

    fn table() -> TableSchema {
        let column = |name: &str, type_: &str| Column {
            source: name.into(),
            destination: name.into(),
            source_type: "text".into(),
            base_type: None,
            source_type_oid: 25,
            destination_type: type_.into(),
            not_null: true,
            generated: None,
            binary: true,
            as_text: false,
        };
        let name = TableName { schema: "shop".into(), name: "orders".into() };
        let columns = vec![column("id", "INT64"), column("score", "FLOAT64"), column("Born", "TIMESTAMP")];
        TableSchema {
            number: 3,
            source: name.clone(),
            source_oid: 1,
            destination: name,
            columns,
            identity: Identity::Key(vec![1, 0]),
            partition_key: None,
        }
    }

    #[test]
    fn a_table_is_clustered_by_its_key_as_far_as_that_can_be() {
        let own = Own { flag: Some("gone".into()), synced_at: None };
        assert_eq!(
            definition(&table(), &BigQueryTable::default(), &own),
            "(`id` INT64 NOT NULL, `score` FLOAT64 NOT NULL, `Born` TIMESTAMP, `gone` BOOL) CLUSTER BY `id`"
        );
    }

    #[test]
    fn the_column_of_the_partitions_is_known() {
        for (expression, expected) in [
            ("TIMESTAMP_TRUNC(born, MONTH)", Some("Born")),
            ("DATE(`Born`)", Some("Born")),
            ("RANGE_BUCKET(id, GENERATE_ARRAY(0, 10, 1))", Some("id")),
            ("_PARTITIONDATE", None),
        ] {
            let options = BigQueryTable { partition_by: Some(expression.into()), ..BigQueryTable::default() };
            assert_eq!(partition_column(&table(), &options), expected, "{expression}");
        }
    }
}
