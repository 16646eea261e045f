//! The ledger of a mirror: what is true of each epoch, in one table in the Peer's schema.
//!
//! Each fact is one row. One table a mirror, as its writers lock it; so that no mirror waits for another.

use std::sync::PoisonError;

use super::{
    Snowflake,
    answer::Answer,
    error::meaning,
    mark,
    quote::{ident, literal},
    transaction::Transaction,
};
use crate::{
    destination::{
        Chunk, EpochState, Error, LedgerTable,
        fact::{self, Begun, Fact, Facts, GivenUp, Row, Swapped, Table},
        given_up, gone,
    },
    postgres::Lsn,
    report::{Load, SwapReport, TableReport},
    table::TableName,
};

/// Of epoch 0: its version is the newest epoch that was begun, the fence.
pub(super) const NEWEST: &str = "newest";
/// Texts of facts in one statement, which may have 1 MB (Snowflake docs, "Query text size limits").
const STATEMENT: usize = 400_000;
/// Rows of one VALUES clause; 16,384 are allowed.
const ROWS: usize = 2_000;

/// A row to be written.
pub(super) struct Entry {
    kind: &'static str,
    number: u32,
    version: u64,
    value: String,
}

/// Reads the rows of [`Snowflake::facts_sql`].
pub(super) fn read(answer: &Answer) -> Facts {
    let mut facts = Facts::default();
    for row in answer.rows() {
        let fact = Row { version: row.number(2), value: row.text(3).into(), at: row.text(4).into() };
        facts.add(row.text(0), row.number(1) as u32, fact);
    }
    facts
}

impl Snowflake {
    /// What the mirror's own things at the destination are called.
    pub(super) fn own_name(&self) -> TableName {
        let uid = self.brief.mirror_uid.replace('-', "_").to_uppercase();
        TableName { schema: self.to.schema.clone(), name: format!("_MIRROR_OPERATOR_{uid}") }
    }

    /// The ledger, quoted.
    pub(super) fn ledger(&self) -> String {
        self.quoted(&self.own_name())
    }

    /// The stage of the same name, quoted.
    pub(super) fn stage_name(&self) -> String {
        self.ledger()
    }

    /// The query for what the ledger says of this epoch under a condition.
    pub(super) fn facts_sql(&self, condition: &str) -> String {
        format!(
            "SELECT \"KIND\", \"NUMBER\", \"VERSION\", \"VALUE\", TO_VARCHAR(\"AT\") FROM {} WHERE \"EPOCH\" = {} AND ({condition})",
            self.ledger(),
            self.brief.epoch
        )
    }

    /// What the ledger says of this epoch; of these kinds only, unless there are none.
    pub(super) async fn facts(&self, kinds: &[&str]) -> Result<Facts, Error> {
        self.facts_where(&of_kinds(kinds)).await
    }

    /// What the ledger says of this epoch under a condition.
    pub(super) async fn facts_where(&self, condition: &str) -> Result<Facts, Error> {
        match self.client()?.try_query(&self.facts_sql(condition)).await {
            Ok(answer) => Ok(read(&answer)),
            Err(refusal) if refusal.is_missing() => Ok(Facts::default()),
            Err(refusal) => Err(meaning(&refusal, "reading the ledger")),
        }
    }

    /// A fact of this epoch to be recorded.
    pub(super) fn entry<F: Fact>(&self, number: u32, version: u64, fact: &F) -> Result<Entry, Error> {
        let value = fact::written(fact)?;
        Ok(Entry { kind: F::KIND, number, version, value })
    }

    /// The statements that record facts.
    pub(super) fn record_sql(&self, entries: &[Entry]) -> Vec<String> {
        let rows = entries.iter().map(|e| format!("({}, {}, {}, {})", literal(e.kind), e.number, e.version, literal(&e.value)));
        let mut groups: Vec<Vec<String>> = Vec::new();
        let mut size = STATEMENT;
        for row in rows {
            if size + row.len() > STATEMENT || groups.last().is_none_or(|group| group.len() >= ROWS) {
                groups.push(Vec::new());
                size = 0;
            }
            size += row.len();
            groups.last_mut().into_iter().for_each(|group| group.push(row.clone()));
        }
        groups.iter().map(|group| self.merge_sql(&group.join(", "))).collect()
    }

    fn merge_sql(&self, rows: &str) -> String {
        format!(
            "MERGE INTO {} AS t USING (SELECT column1 AS \"KIND\", column2 AS \"NUMBER\", column3 AS \"VERSION\", column4 AS \"VALUE\" FROM VALUES {rows}) AS s \
             ON t.\"EPOCH\" = {epoch} AND t.\"KIND\" = s.\"KIND\" AND t.\"NUMBER\" = s.\"NUMBER\" \
             WHEN MATCHED THEN UPDATE SET \"VERSION\" = s.\"VERSION\", \"VALUE\" = s.\"VALUE\", \"AT\" = SYSDATE() \
             WHEN NOT MATCHED THEN INSERT (\"EPOCH\", \"KIND\", \"NUMBER\", \"VERSION\", \"VALUE\", \"AT\") \
             VALUES ({epoch}, s.\"KIND\", s.\"NUMBER\", s.\"VERSION\", s.\"VALUE\", SYSDATE())",
            self.ledger(),
            epoch = self.brief.epoch
        )
    }

    /// Records facts, all or none, unless a newer epoch has begun.
    pub(super) async fn record(&self, entries: &[Entry]) -> Result<(), Error> {
        let mut transaction = Transaction::fenced(self).await?;
        transaction.record(entries).await?;
        transaction.commit().await
    }

    /// The newest epoch of the mirror that was begun.
    pub(super) async fn newest(&self) -> Result<Option<u32>, Error> {
        let sql = format!("SELECT \"VERSION\" FROM {} WHERE \"EPOCH\" = 0 AND \"KIND\" = '{NEWEST}'", self.ledger());
        match self.client()?.try_query(&sql).await {
            Ok(answer) => Ok(Some(answer.number() as u32).filter(|newest| *newest > 0)),
            Err(refusal) if refusal.is_missing() => Ok(None),
            Err(refusal) => Err(meaning(&refusal, "reading the ledger")),
        }
    }

    /// Whether another epoch of the mirror has begun, and not only its number been used to close the fence.
    pub(super) async fn has_begun(&self, epoch: u32) -> Result<bool, Error> {
        let sql = format!("SELECT COUNT(*) FROM {} WHERE \"EPOCH\" = {epoch} AND \"KIND\" = '{}'", self.ledger(), Begun::KIND);
        Ok(self.client()?.query(&sql, "reading the ledger").await?.number() > 0)
    }

    /// Moves the fence behind all epochs before this one, in a transaction; true if it is there now, and not further.
    pub(super) async fn raise(&self, transaction: &mut Transaction<'_>, epoch: u32) -> Result<(), Error> {
        let ledger = self.ledger();
        let sql = format!(
            "MERGE INTO {ledger} AS t USING (SELECT 0 AS \"EPOCH\", '{NEWEST}' AS \"KIND\") AS s ON t.\"EPOCH\" = s.\"EPOCH\" AND t.\"KIND\" = s.\"KIND\" \
             WHEN MATCHED AND t.\"VERSION\" < {epoch} THEN UPDATE SET \"VERSION\" = {epoch}, \"AT\" = SYSDATE() \
             WHEN NOT MATCHED THEN INSERT (\"EPOCH\", \"KIND\", \"NUMBER\", \"VERSION\", \"VALUE\", \"AT\") VALUES (0, s.\"KIND\", 0, {epoch}, '{{}}', SYSDATE())"
        );
        transaction.query(&sql, "writing the ledger").await?;
        let sql = format!("SELECT \"VERSION\" FROM {ledger} WHERE \"EPOCH\" = 0 AND \"KIND\" = '{NEWEST}'");
        match transaction.query(&sql, "reading the ledger").await?.number() as u32 {
            newest if newest > epoch => {
                transaction.roll_back().await;
                Err(Error::Superseded(newest))
            }
            _ => Ok(()),
        }
    }

    /// Stops whoever is of an earlier epoch.
    pub(super) async fn fence(&self) -> Result<(), Error> {
        match self.newest().await? {
            None => Err(gone(&self.brief)),
            Some(newest) if newest > self.brief.epoch => Err(Error::Superseded(newest)),
            Some(_) => Ok(()),
        }
    }

    /// Notes in the ledger's comment how far the stream has come, and who says so. It is true of this epoch whoever writes it. No warehouse is woken up: that serves
    /// queries and DML only (Snowflake docs, "Overview of warehouses").
    pub(super) async fn note(&self, owner: &str, position: Lsn) -> Result<(), Error> {
        self.comment(&format!(" [e{} {owner} {position}]", self.brief.epoch)).await
    }

    /// What the ledger's comment says of this epoch. SHOW needs no warehouse either (Snowflake docs, "SHOW TABLES").
    pub(super) async fn noted(&self) -> Result<Option<Note>, Error> {
        let name = self.own_name();
        let sql = format!("SHOW TABLES LIKE {} IN SCHEMA {}.{}", literal(&name.name), ident(&self.to.at.database), ident(&name.schema));
        let answer = self.client()?.query(&sql, "reading the ledger").await?;
        let ours = answer.rows().find(|row| row.named("name") == Some(&name.name));
        Ok(ours.and_then(|row| note_of(row.named("comment")?, self.brief.epoch)))
    }

    async fn comment(&self, more: &str) -> Result<(), Error> {
        let words = self.describe(more);
        self.client()?.query(&format!("COMMENT ON TABLE {} IS {}", self.ledger(), literal(&words)), "writing the ledger").await.map(drop)
    }

    /// The server's clock, in UTC.
    pub(super) async fn now(&self) -> Result<String, Error> {
        let answer = self.client()?.query("SELECT TO_VARCHAR(SYSDATE(), 'YYYY-MM-DD HH24:MI:SS.FF6')", "reading the clock").await?;
        Ok(answer.rows().next().map(|row| row.text(0).to_string()).unwrap_or_default())
    }

    fn describe(&self, more: &str) -> String {
        format!("Ledger of the Mirror {}/{} (mirror-operator){more}", self.brief.namespace, self.brief.mirror)
    }
}

/// What an idle stream says in the ledger's comment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// The token of the applier that wrote it.
    pub(super) owner: String,
    /// Everything before it is applied.
    pub(super) position: Lsn,
}

fn note_of(comment: &str, epoch: u32) -> Option<Note> {
    let note = comment.rsplit_once(&format!(" [e{epoch} "))?.1.strip_suffix(']')?;
    // Earlier versions have named no owner.
    let (owner, position) = note.rsplit_once(' ').unwrap_or(("", note));
    Some(Note { owner: owner.into(), position: position.parse().ok()? })
}

/// The condition for these kinds, or for all.
pub(super) fn of_kinds(kinds: &[&str]) -> String {
    let kinds: Vec<String> = kinds.iter().map(|kind| literal(kind)).collect();
    if kinds.is_empty() { "TRUE".into() } else { format!("\"KIND\" IN ({})", kinds.join(", ")) }
}

/// See [`Destination::begin`](crate::destination::Destination::begin).
pub(super) async fn begin(at: &Snowflake) -> Result<(), Error> {
    let ledger = at.ledger();
    if at.newest().await?.is_none() {
        let sql = format!(
            "CREATE TABLE IF NOT EXISTS {ledger} (\"EPOCH\" NUMBER(10,0) NOT NULL, \"KIND\" VARCHAR NOT NULL, \"NUMBER\" NUMBER(10,0) NOT NULL, \
             \"VERSION\" NUMBER(20,0) NOT NULL, \"VALUE\" VARCHAR NOT NULL, \"AT\" TIMESTAMP_NTZ(6) NOT NULL) COMMENT = {}",
            literal(&at.describe(""))
        );
        at.client()?.query(&sql, "creating the ledger").await?;
    }
    let mut transaction = Transaction::begin(at).await?;
    at.raise(&mut transaction, at.brief.epoch).await?;
    // Whoever gives the epoch up has locked the ledger too: one of the two finds what the other has written.
    let facts = transaction.facts_where(&of_kinds(&[Begun::KIND, GivenUp::KIND])).await?;
    if facts.get::<Begun>(0)?.is_none() {
        if facts.get::<GivenUp>(0)?.is_some() {
            transaction.roll_back().await;
            return Err(given_up(&at.brief));
        }
        let begun = Begun { resync: at.brief.resync_uid.clone(), slot: at.brief.slot() };
        transaction.record(&[at.entry(0, 0, &begun)?]).await?;
    }
    transaction.commit().await?;
    // An idle stream of an earlier epoch looks there only. This epoch's own stays.
    if at.noted().await?.is_none() { at.comment("").await } else { Ok(()) }
}

/// See [`Destination::state`](crate::destination::Destination::state).
pub(super) async fn state(at: &Snowflake) -> Result<Option<EpochState>, Error> {
    let facts = at.facts(fact::STATE).await?;
    let Some(newest) = at.newest().await? else { return Ok(None) };
    let noted = if facts.get::<Swapped>(0)?.is_some() { at.noted().await? } else { None };
    facts.state(newest, noted.map(|note| note.position))
}

/// See [`Destination::tables`](crate::destination::Destination::tables).
pub(super) async fn tables(at: &Snowflake) -> Result<Vec<LedgerTable>, Error> {
    if at.owner.writes() > 0 { Ok(told(at).await?.tables) } else { at.facts(fact::TABLES).await?.tables() }
}

/// See [`Destination::pending`](crate::destination::Destination::pending).
pub(super) async fn pending(at: &Snowflake, partition: u32) -> Result<Vec<Chunk>, Error> {
    at.facts(fact::PENDING).await?.pending_of(partition)
}

/// See [`Destination::progress`](crate::destination::Destination::progress).
pub(super) async fn progress(at: &Snowflake) -> Result<(Load, Vec<TableReport>), Error> {
    Ok(told(at).await?.progress)
}

/// What was read of the ledger, after so many writes of this process' stream.
#[derive(Clone)]
pub(super) struct Told {
    writes: u64,
    progress: (Load, Vec<TableReport>),
    tables: Vec<LedgerTable>,
}

/// While this process owns the stream nobody else writes of this epoch: nothing is asked again before it has written something.
async fn told(at: &Snowflake) -> Result<Told, Error> {
    let writes = at.owner.writes();
    let last = || at.told.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(told) = last().as_ref().filter(|told| told.writes == writes && writes > 0) {
        return Ok(told.clone());
    }
    let facts = at.facts(&[]).await?;
    let told = Told { writes, progress: facts.progress(&at.brief)?, tables: facts.tables()? };
    *last() = Some(told.clone());
    Ok(told)
}

/// What the swap of this epoch did; `None` before it.
pub(super) async fn swap_report(at: &Snowflake) -> Result<Option<SwapReport>, Error> {
    at.facts(&[Swapped::KIND]).await?.swap_report()
}

/// The shadow's name, as the ledger's table fact gives it.
pub(super) fn shadow_of(at: &Snowflake, table: &Table) -> String {
    mark::shadow(&table.schema.destination, at.brief.epoch, table.generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_of_one_epoch() {
        let comment = "Ledger of the Mirror a/b (mirror-operator) [e12 ab/3 1/A0]";
        let note = |owner: &str| Some(Note { owner: owner.into(), position: "1/A0".parse().unwrap() });
        assert_eq!(note_of(comment, 12), note("ab/3"));
        assert_eq!(note_of(comment, 2), None);
        assert_eq!(note_of("Ledger of the Mirror a/b (mirror-operator) [e12 1/A0]", 12), note(""));
        assert_eq!(note_of("Ledger of the Mirror a/b (mirror-operator)", 12), None);
    }
}
