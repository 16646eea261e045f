//! What there is at the destination: the tables that bear a live name, and those that bear this mirror's mark.

use serde::Deserialize;

use super::{
    ClickHouse,
    client::Client,
    error::permanent,
    mark::Mark,
    quote::{literal, qualified},
};
use crate::{
    destination::Error,
    table::{TableName, TableSchema},
};

/// A table that bears a name.
pub(super) struct Live {
    pub(super) engine: String,
    /// What people have written about it.
    pub(super) words: String,
    pub(super) mark: Option<Mark>,
}

impl Live {
    /// Whether it is what this epoch has loaded.
    pub(super) fn is_of(&self, at: &ClickHouse) -> bool {
        let ours = |mark: &Mark| mark.mirror == at.brief.mirror_uid && mark.epoch == at.brief.epoch && mark.generation.is_some();
        self.mark.as_ref().is_some_and(ours)
    }

    /// Whether this mirror has made it, or was told to take it over.
    pub(super) fn is_ours(&self, at: &ClickHouse, table: &TableSchema) -> bool {
        match &self.mark {
            Some(mark) => mark.mirror == at.brief.mirror_uid,
            None => at.options(table).adopt && self.is_table(),
        }
    }

    fn is_table(&self) -> bool {
        self.engine.ends_with("MergeTree") || self.engine == "Null"
    }
}

/// A table with this mirror's mark.
pub(super) struct Found {
    pub(super) name: TableName,
    pub(super) words: String,
    pub(super) mark: Mark,
}

#[derive(Deserialize)]
struct Row {
    database: String,
    name: String,
    engine: String,
    comment: String,
}

const COLUMNS: &str = "SELECT database, name, engine, comment FROM system.tables";

/// The table of that name; `None` if there is none.
pub(super) async fn find(at: &ClickHouse, table: &TableName) -> Result<Option<Live>, Error> {
    let sql = format!("{COLUMNS} WHERE database = {} AND name = {}", literal(&table.schema), literal(&table.name));
    let row: Option<Row> = at.client()?.rows(&sql, "looking for tables").await?.pop();
    Ok(row.map(|row| {
        let (words, mark) = Mark::read(&row.comment);
        Live { engine: row.engine.clone(), words: words.into(), mark }
    }))
}

/// All tables with this mirror's mark.
pub(super) async fn marked(at: &ClickHouse) -> Result<Vec<Found>, Error> {
    let mark = literal(&format!("[mirror-operator {} ", at.brief.mirror_uid));
    let rows: Vec<Row> = at.client()?.rows(&format!("{COLUMNS} WHERE position(comment, {mark}) > 0"), "looking for tables").await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            let (words, mark) = Mark::read(&row.comment);
            let name = TableName { schema: row.database.clone(), name: row.name.clone() };
            mark.filter(|m| m.mirror == at.brief.mirror_uid).map(|mark| Found { name, words: words.into(), mark })
        })
        .collect())
}

/// Names of the tables of a database that begin so.
pub(super) async fn names(at: &ClickHouse, database: &str, start: &str) -> Result<Vec<String>, Error> {
    let sql = format!("{COLUMNS} WHERE database = {} AND startsWith(name, {})", literal(database), literal(start));
    let rows: Vec<Row> = at.client()?.rows(&sql, "looking for tables").await?;
    Ok(rows.into_iter().map(|row| row.name).collect())
}

/// Whether there is such a database.
pub(super) async fn database_exists(at: &ClickHouse, database: &str) -> Result<bool, Error> {
    Ok(database_engine(at.client()?, database).await?.is_some())
}

/// The engine of a database; `None` if there is none.
pub(super) async fn database_engine(client: &Client, database: &str) -> Result<Option<String>, Error> {
    #[derive(Deserialize)]
    struct Row {
        engine: String,
    }
    let sql = format!("SELECT engine FROM system.databases WHERE name = {}", literal(database));
    Ok(client.rows::<Row>(&sql, "looking for databases").await?.pop().map(|row| row.engine))
}

/// A column as the server has it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Attribute {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) type_: String,
    /// `DEFAULT`, `MATERIALIZED`, `ALIAS`, or nothing.
    pub(super) default_kind: String,
    pub(super) default_expression: String,
    pub(super) comment: String,
    /// `CODEC(…)` if people gave it one.
    pub(super) compression_codec: String,
}

/// The columns of a table, in order.
pub(super) async fn attributes(at: &ClickHouse, table: &TableName) -> Result<Vec<Attribute>, Error> {
    let sql = format!(
        "SELECT name, type, default_kind, default_expression, comment, compression_codec FROM system.columns WHERE database = {} AND table = {} ORDER BY position",
        literal(&table.schema),
        literal(&table.name)
    );
    at.client()?.rows(&sql, "reading columns").await
}

/// Drops a table of ours, however large it is, and waits until it is gone.
pub(super) async fn drop_table(at: &ClickHouse, table: &TableName) -> Result<(), Error> {
    at.client()?.run(&at.ddl().drop(table), &format!("dropping {table}")).await
}

/// Why the table cannot be replaced, if so: reason and message. An empty table of nobody's may be.
pub(super) async fn refusal(at: &ClickHouse, live: &Live, table: &TableSchema) -> Result<Option<(&'static str, String)>, Error> {
    let name = &table.destination;
    if let Some(mark) = live.mark.as_ref().filter(|mark| mark.mirror != at.brief.mirror_uid) {
        return Ok(Some((
            "Conflict",
            format!(
                "{name} at the destination is written by another Mirror, with the UID {}: two mirrors cannot share a table",
                mark.mirror
            ),
        )));
    }
    if at.to.cluster.is_some() && live.is_table() && live.engine != "Null" && !live.engine.starts_with("Replicated") {
        return Ok(Some((
            "TableNotReplicated",
            format!(
                "{name} at the destination has the engine {}, so that only one server of the cluster has its rows: rename or drop it",
                live.engine
            ),
        )));
    }
    if live.is_ours(at, table) {
        return Ok(None);
    }
    if !live.is_table() {
        return Ok(Some((
            "TableNotOurs",
            format!("{name} at the destination is not an ordinary table but a {}: rename or drop it", live.engine),
        )));
    }
    #[derive(Deserialize)]
    struct Count {
        n: u64,
    }
    let sql = format!("SELECT count() AS n FROM (SELECT 1 FROM {} LIMIT 1)", qualified(&name.schema, &name.name));
    let filled = at.client()?.row::<Count>(&sql, "looking for the live table").await?.n > 0;
    let message = format!(
        "{name} exists at the destination, was not made by this mirror and is not empty: empty, rename or drop it, or let the mirror adopt it \
         (tables[].clickhouse.adopt)"
    );
    Ok(filled.then_some(("TableNotOurs", message)))
}

/// The refusal as an error.
pub(super) async fn refuse(at: &ClickHouse, live: &Live, table: &TableSchema) -> Result<(), Error> {
    match refusal(at, live, table).await? {
        None => Ok(()),
        Some((reason, message)) => Err(permanent(reason, message)),
    }
}
