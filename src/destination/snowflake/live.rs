//! What there is at the destination: the tables that bear a live name, and those that bear this mirror's mark.

use super::{
    Snowflake,
    answer::Answer,
    error::{meaning, permanent},
    mark::{self, Mark},
    quote::{ident, literal},
};
use crate::{
    destination::Error,
    table::{TableName, TableSchema},
};

/// A table, or something else that bears a table's name.
pub(super) struct Live {
    pub(super) name: TableName,
    /// Such as `BASE TABLE` and `VIEW`.
    kind: String,
    /// What people have written about it.
    pub(super) words: String,
    pub(super) mark: Option<Mark>,
    /// The expressions of its clustering key, such as `(A, B)`.
    pub(super) clustering: Option<String>,
    /// The role that owns it.
    pub(super) owner: String,
}

impl Live {
    /// Whether it is what this epoch has loaded.
    pub(super) fn is_of(&self, at: &Snowflake) -> bool {
        let ours = |mark: &Mark| mark.mirror == at.brief.mirror_uid && mark.epoch == at.brief.epoch && mark.generation.is_some();
        self.mark.as_ref().is_some_and(ours)
    }

    /// Whether this mirror has made it, or was told to take it over.
    pub(super) fn is_ours(&self, at: &Snowflake, table: &TableSchema) -> bool {
        match &self.mark {
            Some(mark) => mark.mirror == at.brief.mirror_uid,
            None => at.options(table).adopt && self.is_table(),
        }
    }

    fn is_table(&self) -> bool {
        matches!(self.kind.as_str(), "BASE TABLE" | "TABLE")
    }
}

/// A table with this mirror's mark.
pub(super) struct Found {
    pub(super) name: TableName,
    pub(super) words: String,
    pub(super) mark: Mark,
}

impl Found {
    /// Whether it still bears a name of the time before its swap.
    pub(super) fn is_shadow(&self) -> bool {
        let Some(generation) = self.mark.generation else { return false };
        let epoch = self.mark.epoch;
        self.name.name.ends_with(&format!("_RESYNC_E{epoch}G{generation}")) || mark::is_any_swap(&self.name.name, epoch)
    }
}

fn read(answer: &Answer) -> Vec<Live> {
    let live = |row: super::answer::Row<'_>| {
        let (words, mark) = Mark::read(row.text(3));
        Live {
            name: TableName { schema: row.text(0).into(), name: row.text(1).into() },
            kind: row.text(2).into(),
            words: words.into(),
            mark,
            clustering: row.get(4).map(|key| key.strip_prefix("LINEAR").unwrap_or(key).to_string()).filter(|key| !key.is_empty()),
            owner: row.text(5).into(),
        }
    };
    answer.rows().map(live).collect()
}

async fn tables(at: &Snowflake, condition: &str) -> Result<Vec<Live>, Error> {
    let sql = format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE, COMMENT, CLUSTERING_KEY, TABLE_OWNER FROM {}.INFORMATION_SCHEMA.TABLES WHERE {condition}",
        ident(&at.to.at.database)
    );
    Ok(read(&at.client()?.query(&sql, "looking for tables").await?))
}

/// The table of that name; `None` if there is none, or none that the role may see.
pub(super) async fn find(at: &Snowflake, table: &TableName) -> Result<Option<Live>, Error> {
    let condition = format!("TABLE_SCHEMA = {} AND TABLE_NAME = {}", literal(&table.schema), literal(&table.name));
    Ok(tables(at, &condition).await?.pop())
}

/// All tables with this mirror's mark.
pub(super) async fn marked(at: &Snowflake) -> Result<Vec<Found>, Error> {
    let mark = literal(&format!("[mirror-operator {} ", at.brief.mirror_uid));
    let all = tables(at, &format!("CONTAINS(COMMENT, {mark})")).await?;
    let ours = |live: Live| {
        let mark = live.mark.filter(|mark| mark.mirror == at.brief.mirror_uid)?;
        Some(Found { name: live.name, words: live.words, mark })
    };
    Ok(all.into_iter().filter_map(ours).collect())
}

/// Names of the tables of a schema.
pub(super) async fn names(at: &Snowflake, schema: &str) -> Result<Vec<String>, Error> {
    Ok(tables(at, &format!("TABLE_SCHEMA = {}", literal(schema))).await?.into_iter().map(|live| live.name.name).collect())
}

/// A column as the service has it.
#[derive(Clone, Debug)]
pub(super) struct Attribute {
    pub(super) name: String,
    /// Such as `NUMBER(38,0)`.
    pub(super) type_: String,
    pub(super) not_null: bool,
    pub(super) comment: String,
}

/// The columns of a table, in order.
pub(super) async fn attributes(at: &Snowflake, table: &TableName) -> Result<Vec<Attribute>, Error> {
    let answer = at.client()?.query(&format!("DESCRIBE TABLE {}", at.quoted(table)), "reading columns").await?;
    let column = |row: super::answer::Row<'_>| Attribute {
        name: row.named("name").unwrap_or_default().into(),
        type_: row.named("type").unwrap_or_default().into(),
        not_null: row.named("null?") == Some("N"),
        comment: row.named("comment").unwrap_or_default().into(),
    };
    Ok(answer.rows().map(column).collect())
}

/// Drops a table of ours.
pub(super) async fn drop_table(at: &Snowflake, table: &TableName) -> Result<(), Error> {
    at.client()?.query(&format!("DROP TABLE IF EXISTS {}", at.quoted(table)), &format!("dropping {table}")).await.map(drop)
}

/// Writes a table's comment; false if there is no such table any more.
pub(super) async fn comment(at: &Snowflake, table: &TableName, words: &str) -> Result<bool, Error> {
    went_through(at, &format!("COMMENT ON TABLE {} IS {}", at.quoted(table), literal(words)), "writing a comment").await
}

/// Gives a table another name; false if there is no such table any more, or one of the other name.
pub(super) async fn rename(at: &Snowflake, from: &TableName, to: &TableName, doing: &str) -> Result<bool, Error> {
    went_through(at, &format!("ALTER TABLE {} RENAME TO {}", at.quoted(from), at.quoted(to)), doing).await
}

/// Whether a statement was done; false if one of its tables is not there, or is there already.
pub(super) async fn went_through(at: &Snowflake, sql: &str, doing: &str) -> Result<bool, Error> {
    match at.client()?.try_query(sql).await {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.is_missing() || refusal.exists_already() => Ok(false),
        Err(refusal) => Err(meaning(&refusal, doing)),
    }
}

/// Why the table cannot be replaced, if so: reason and message. An empty table of nobody's may be.
pub(super) async fn refusal(at: &Snowflake, live: &Live, table: &TableSchema) -> Result<Option<(&'static str, String)>, Error> {
    let name = &table.destination;
    if let Some(mark) = live.mark.as_ref().filter(|mark| mark.mirror != at.brief.mirror_uid) {
        let message = format!(
            "{name} at the destination is written by another Mirror, with the UID {}: two mirrors cannot share a table",
            mark.mirror
        );
        return Ok(Some(("Conflict", message)));
    }
    if live.is_ours(at, table) {
        return Ok(None);
    }
    if !live.is_table() {
        let message = format!("{name} at the destination is not an ordinary table but a {}: rename or drop it", live.kind);
        return Ok(Some(("TableNotOurs", message)));
    }
    let sql = format!("SELECT COUNT(*) FROM {}", at.quoted(name));
    let filled = at.client()?.query(&sql, "looking for the live table").await?.number() > 0;
    let message = format!(
        "{name} exists at the destination, was not made by this mirror and is not empty: empty, rename or drop it, or let the mirror adopt it \
         (tables[].snowflake.adopt)"
    );
    Ok(filled.then_some(("TableNotOurs", message)))
}

/// The refusal as an error.
pub(super) async fn refuse(at: &Snowflake, live: &Live, table: &TableSchema) -> Result<(), Error> {
    match refusal(at, live, table).await? {
        None => Ok(()),
        Some((reason, message)) => Err(permanent(reason, message)),
    }
}
