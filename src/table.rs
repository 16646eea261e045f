//! A mirrored table as the pods of an epoch see it: columns, key and how its rows travel. No I/O.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A table's schema and name, unquoted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// Schema.
    pub schema: String,
    /// Name within the schema.
    pub name: String,
}

/// Everything about one mirrored table, read from the source's catalog inside the snapshot. Kept in the destination's ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableSchema {
    /// Index in the brief's list.
    pub number: u32,
    /// At the source.
    pub source: TableName,
    /// Its oid at the source; what relation messages of the change stream bear.
    pub source_oid: u32,
    /// At the destination, by its live name.
    pub destination: TableName,
    /// The mirrored columns, in the source's order. Excluded ones are not here.
    pub columns: Vec<Column>,
    /// What tells rows apart in the change stream.
    pub identity: Identity,
    /// The source's column by whose ranges it is read; by blocks without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_key: Option<String>,
}

/// A mirrored column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Column {
    /// Name at the source.
    pub source: String,
    /// Name at the destination.
    pub destination: String,
    /// Type at the source as `format_type` prints it, such as `numeric(10,2)`.
    pub source_type: String,
    /// If that is a domain, what it is made of, printed in the same way. Its values, in either form, are of that type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_type: Option<String>,
    /// Oid of the type at the source.
    pub source_type_oid: u32,
    /// Type at the destination in its own words.
    pub destination_type: String,
    /// Whether the source says NOT NULL.
    pub not_null: bool,
    /// The expression, if the column is generated at the source. It is computed at the destination with the same one, as its values are not published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<String>,
    /// Whether the type's binary form at the source is what the destination's type reads. Otherwise the whole table travels as text.
    pub binary: bool,
    /// Whether the source casts the values to text when it is read: in a binary COPY this column's fields are its texts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub as_text: bool,
}

/// What tells a table's rows apart in the change stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Identity {
    /// These columns (indexes into `columns`), NOT NULL and unique: the primary key or the REPLICA IDENTITY index.
    Key(Vec<usize>),
    /// No key, but REPLICA IDENTITY FULL: whole rows.
    FullRow,
}

impl Column {
    /// The type at the source that its values have: domains resolved.
    pub fn value_type(&self) -> &str {
        self.base_type.as_deref().unwrap_or(&self.source_type)
    }
}

impl TableSchema {
    /// The key's columns; empty without a key.
    pub fn key(&self) -> &[usize] {
        match &self.identity {
            Identity::Key(columns) => columns,
            Identity::FullRow => &[],
        }
    }

    /// The columns whose values travel: all but generated ones.
    pub fn copied(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|c| c.generated.is_none())
    }

    /// The key's columns as indexes into [`copied`](Self::copied): its places in a row of the change stream.
    pub fn copied_key(&self) -> Vec<usize> {
        let place = |column: &usize| self.columns.iter().take(*column).filter(|c| c.generated.is_none()).count();
        self.key().iter().map(place).collect()
    }

    /// Whether the initial load can pass binary tuples through untouched.
    pub fn binary(&self) -> bool {
        self.copied().all(|c| c.binary)
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

impl TableName {
    /// Reads `schema.table` as people write it in a Mirror: the schema ends at the first dot unless it is written in double quotes.
    /// The rest is the table's name as it is, odd characters and all; `None` if either is missing.
    pub fn parse(text: &str) -> Option<Self> {
        let (schema, name) = match text.strip_prefix('"') {
            None => {
                let (schema, name) = text.split_once('.')?;
                (schema.to_string(), name)
            }
            Some(quoted) => {
                let mut schema = String::new();
                let mut rest = quoted;
                loop {
                    let (part, after) = rest.split_once('"')?;
                    schema.push_str(part);
                    match after.strip_prefix('"') {
                        Some(more) => {
                            schema.push('"');
                            rest = more;
                        }
                        None => break (schema, after.strip_prefix('.')?),
                    }
                }
            }
        };
        (!schema.is_empty() && !name.is_empty()).then(|| Self { schema, name: name.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_are_read_as_people_write_them() {
        let parsed = |text| TableName::parse(text).map(|t| (t.schema, t.name));
        let pair = |a: &str, b: &str| Some((a.to_string(), b.to_string()));
        assert_eq!(parsed("public.orders"), pair("public", "orders"));
        assert_eq!(parsed("public.Odd \"name\".x"), pair("public", "Odd \"name\".x"));
        assert_eq!(parsed("\"a.b\".c"), pair("a.b", "c"));
        assert_eq!(parsed("\"a\"\"b\".c"), pair("a\"b", "c"));
        for wrong in ["orders", ".orders", "public.", "\"a.b", "\"a\"b.c", "\"\".c"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
