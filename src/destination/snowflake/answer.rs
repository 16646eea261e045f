//! What a statement has brought: rows of texts.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;
use snowflake_api::connection::Connection as Transport;

use super::error::Refusal;

/// The rows of a statement. Every value is a text, as the service sends it in JSON.
#[derive(Debug, Default)]
pub(super) struct Answer {
    names: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
}

/// One row.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    names: &'a [String],
    values: &'a [Option<String>],
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    #[serde(default)]
    rowtype: Vec<Column>,
    #[serde(default)]
    rowset: Option<Vec<Vec<Option<String>>>>,
    /// The rest of a large result, in order.
    #[serde(default)]
    chunks: Option<Vec<Chunk>>,
    #[serde(default)]
    chunk_headers: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
}

#[derive(Deserialize)]
struct Chunk {
    url: String,
}

impl Answer {
    /// Rows under names of columns.
    #[cfg(test)]
    pub(super) fn of(names: &[&str], rows: Vec<Vec<Option<String>>>) -> Self {
        Self { names: names.iter().map(|name| name.to_string()).collect(), rows }
    }

    /// Reads what the service has said, and gets the parts that it left in object storage.
    pub(super) async fn read(data: Value, transport: &Transport) -> Result<Self, Refusal> {
        let strange = |e: serde_json::Error| Refusal::unheard(format!("an answer that is not understood: {e}"));
        let data: Data = serde_json::from_value(data).map_err(strange)?;
        let mut rows = data.rowset.unwrap_or_default();
        let headers = data.chunk_headers.unwrap_or_default();
        for chunk in data.chunks.unwrap_or_default() {
            let part = transport.get_chunk(&chunk.url, &headers).await;
            let part = part.map_err(|_| Refusal::unheard("a part of a large answer could not be read"))?;
            // Rows, separated by commas, without the brackets around them.
            let whole = [b"[", &part[..], b"]"].concat();
            rows.extend(serde_json::from_slice::<Vec<Vec<Option<String>>>>(&whole).map_err(strange)?);
        }
        Ok(Self { names: data.rowtype.into_iter().map(|c| c.name).collect(), rows })
    }

    /// The rows.
    pub(super) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().map(|values| Row { names: &self.names, values })
    }

    /// The rows' values.
    pub(super) fn into_rows(self) -> Vec<Vec<Option<String>>> {
        self.rows
    }

    /// The first row's first value as a number; 0 if there is none.
    pub(super) fn number(&self) -> u64 {
        self.rows().next().map_or(0, |row| row.number(0))
    }

    /// How many rows a statement has inserted, updated and deleted.
    pub(super) fn affected(&self) -> u64 {
        let counts = |row: Row<'_>| {
            let counted = row.names.iter().enumerate().filter(|(_, name)| name.starts_with("number of rows "));
            counted.map(|(place, _)| row.number(place)).sum::<u64>()
        };
        self.rows().map(counts).sum()
    }

    /// The sum of a column that is called so.
    pub(super) fn sum(&self, name: &str) -> u64 {
        self.rows().map(|row| row.named(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)).sum()
    }
}

impl<'a> Row<'a> {
    /// A value; `None` for NULL.
    pub(super) fn get(self, place: usize) -> Option<&'a str> {
        self.values.get(place)?.as_deref()
    }

    /// A value; empty for NULL.
    pub(super) fn text(self, place: usize) -> &'a str {
        self.get(place).unwrap_or_default()
    }

    /// A whole number; 0 for NULL.
    pub(super) fn number(self, place: usize) -> u64 {
        self.text(place).parse().unwrap_or(0)
    }

    /// The value of a column that is called so.
    pub(super) fn named(self, name: &str) -> Option<&'a str> {
        self.get(self.names.iter().position(|n| n == name)?)
    }
}
