//! The ledger of a mirror: what is true of each epoch, in one table in the Peer's schema.
//!
//! Each fact is one row. One table a mirror, as its writers lock it; so that no mirror waits for another.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Snowflake,
    answer::Answer,
    error::{meaning, permanent},
    mark,
    quote::{ident, literal},
    transaction::Transaction,
};
use crate::{
    destination::{Chunk, EpochState, Error, LedgerTable, given_up},
    postgres::Lsn,
    report::{Load, SwapReport, TableReport},
    table::{TableName, TableSchema},
};

/// Of epoch 0: its version is the newest epoch that was begun, the fence.
pub(super) const NEWEST: &str = "newest";
/// Texts of facts in one statement, which may have 1 MB (Snowflake docs, "Query text size limits").
const STATEMENT: usize = 400_000;
/// Rows of one VALUES clause; 16,384 are allowed.
const ROWS: usize = 2_000;

/// A kind of fact, with what is told of it.
pub(super) trait Fact: Serialize + DeserializeOwned {
    /// Its name in the ledger.
    const KIND: &'static str;
}

macro_rules! facts {
    ($($(#[$doc:meta])* $name:ident = $kind:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize)]
        pub(super) struct $name { $($(#[$field_doc])* pub(super) $field: $type,)* }
        impl Fact for $name { const KIND: &'static str = $kind; }
    )* };
}

facts! {
    /// The epoch has begun.
    Begun = "begun" { resync: String, slot: String, }
    /// The epoch was given up before it began, and never will.
    GivenUp = "given up" { }
    /// The current snapshot. Its version is the generation.
    Snapshot = "snapshot" { lsn: Lsn, start_lsn: Lsn, partitions: u32, rows: u64, bytes: u64, }
    /// A table.
    Table = "table" { schema: TableSchema, generation: u32, gate: Lsn, }
    /// A chunk of the plan.
    Planned = "chunk" { partition: u32, table: u32, relation: u32, first_block: u64, end_block: Option<u64>, bytes: u64, }
    /// A chunk is loaded. Its version is the generation; it counts if that is still its table's.
    Done = "loaded" { rows: u64, bytes: u64, }
    /// A table is sealed; the version as above.
    Sealed = "sealed" { note: Option<String>, }
    /// A table's rows are carried.
    Carried = "carried" { deleted: i64, missing: i64, note: Option<String>, }
    /// All tables are swapped.
    Swapped = "swapped" { at: String, millis: i64, retries: u32, }
    /// The change stream passes a table over.
    Parked = "parked" { why: String, }
    /// What differs between the source's table and ours and wants a resync.
    Drifted = "drifted" { drift: BTreeSet<String>, }
    /// Changes of a table since the load.
    Counted = "counted" { inserts: u64, updates: u64, deletes: u64, }
    /// The checkpoint.
    Applied = "applied" { lsn: Lsn, }
    /// Who opened the applier last; the version counts the openings.
    Owner = "owner" { token: String, }
}

/// Facts of one epoch.
#[derive(Debug, Default)]
pub(super) struct Facts {
    found: BTreeMap<(String, u32), Row>,
}

#[derive(Debug)]
struct Row {
    version: u64,
    value: String,
    at: String,
}

/// A row to be written.
pub(super) struct Entry {
    kind: &'static str,
    number: u32,
    version: u64,
    value: String,
}

impl Facts {
    /// Reads the rows of [`Snowflake::facts_sql`].
    pub(super) fn read(answer: &Answer) -> Self {
        let mut facts = Self::default();
        for row in answer.rows() {
            let fact = Row { version: row.number(2), value: row.text(3).into(), at: row.text(4).into() };
            facts.found.insert((row.text(0).into(), row.number(1) as u32), fact);
        }
        facts
    }

    /// A fact, if it is known.
    pub(super) fn get<F: Fact>(&self, number: u32) -> Result<Option<F>, Error> {
        Ok(self.versioned(number)?.map(|(_, fact)| fact))
    }

    /// A fact with its version.
    pub(super) fn versioned<F: Fact>(&self, number: u32) -> Result<Option<(u64, F)>, Error> {
        let row = self.found.get(&(F::KIND.to_string(), number));
        row.map(|row| Ok((row.version, serde_json::from_str(&row.value).map_err(unreadable)?))).transpose()
    }

    /// All facts of a kind with their numbers and versions.
    pub(super) fn all<F: Fact>(&self) -> Result<Vec<(u32, u64, F)>, Error> {
        let rows = self.found.range((F::KIND.to_string(), 0)..=(F::KIND.to_string(), u32::MAX));
        rows.map(|((_, number), row)| Ok((*number, row.version, serde_json::from_str(&row.value).map_err(unreadable)?))).collect()
    }

    /// When a fact was written, by the server's clock.
    pub(super) fn at<F: Fact>(&self, number: u32) -> Option<&str> {
        self.found.get(&(F::KIND.to_string(), number)).map(|row| row.at.as_str())
    }

    /// Whether a table's shadow is sealed.
    pub(super) fn is_sealed(&self, number: u32, generation: u32) -> Result<bool, Error> {
        Ok(self.versioned::<Sealed>(number)?.is_some_and(|(version, _)| version == u64::from(generation)))
    }

    /// The chunks of each table that are not loaded.
    pub(super) fn pending(&self) -> Result<Vec<Chunk>, Error> {
        let generations: BTreeMap<u32, u32> = self.all::<Table>()?.into_iter().map(|(number, _, t)| (number, t.generation)).collect();
        let mut pending = Vec::new();
        for (number, _, chunk) in self.all::<Planned>()? {
            let done = self.versioned::<Done>(number)?.map(|(version, _)| version);
            if done.is_none() || done != generations.get(&chunk.table).map(|g| u64::from(*g)) {
                let Planned { partition, table, relation, first_block, end_block, bytes } = chunk;
                pending.push(Chunk { number, partition, table, relation, first: first_block, end: end_block, bytes });
            }
        }
        Ok(pending)
    }

    /// Rows that were loaded into a table.
    pub(super) fn rows_loaded(&self, table: u32, generation: u32) -> Result<u64, Error> {
        let mut rows = 0;
        for (number, _, chunk) in self.all::<Planned>()? {
            if chunk.table == table
                && let Some((_, done)) = self.versioned::<Done>(number)?.filter(|(version, _)| *version == u64::from(generation))
            {
                rows += done.rows;
            }
        }
        Ok(rows)
    }
}

impl Snowflake {
    /// What the mirror's own things at the destination are called.
    fn own_name(&self) -> TableName {
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

    /// The query for what the ledger says of this epoch under a condition. Asked again while the ledger is as it was, it wakes no warehouse (Snowflake docs, "Using
    /// persisted query results").
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
            Ok(answer) => Ok(Facts::read(&answer)),
            Err(refusal) if refusal.is_missing() => Ok(Facts::default()),
            Err(refusal) => Err(meaning(&refusal, "reading the ledger")),
        }
    }

    /// A fact of this epoch to be recorded.
    pub(super) fn entry<F: Fact>(&self, number: u32, version: u64, fact: &F) -> Result<Entry, Error> {
        let value = serde_json::to_string(fact).map_err(|e| permanent("Internal", e.to_string()))?;
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
            None => Err(self.gone()),
            Some(newest) if newest > self.brief.epoch => Err(Error::Superseded(newest)),
            Some(_) => Ok(()),
        }
    }

    /// The ledger does not know the epoch: it was abandoned, or its mirror forgotten, while the caller was at work.
    pub(super) fn gone(&self) -> Error {
        let crate::brief::Brief { epoch, namespace, mirror, .. } = &self.brief;
        permanent("EpochGone", format!("the destination's ledger does not know epoch {epoch} of {namespace}/{mirror}: it was removed"))
    }

    /// Writes how far the stream has come without any change, which needs no warehouse: into the ledger's comment. It is true of this epoch whoever writes it.
    pub(super) async fn note_idle(&self, position: Lsn) -> Result<(), Error> {
        let words = self.describe(&format!(" [e{} {position}]", self.brief.epoch));
        self.client()?.query(&format!("COMMENT ON TABLE {} IS {}", self.ledger(), literal(&words)), "writing the ledger").await.map(drop)
    }

    /// What [`note_idle`](Self::note_idle) has written in this epoch. SHOW needs no warehouse either.
    pub(super) async fn idle(&self) -> Result<Option<Lsn>, Error> {
        let name = self.own_name();
        let sql = format!("SHOW TABLES LIKE {} IN SCHEMA {}.{}", literal(&name.name), ident(&self.to.at.database), ident(&name.schema));
        let answer = self.client()?.query(&sql, "reading the ledger").await?;
        let ours = answer.rows().find(|row| row.named("name") == Some(&name.name));
        Ok(ours.and_then(|row| idle_of(row.named("comment")?, self.brief.epoch)))
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

fn idle_of(comment: &str, epoch: u32) -> Option<Lsn> {
    comment.rsplit_once(&format!(" [e{epoch} "))?.1.strip_suffix(']')?.parse().ok()
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
    transaction.commit().await
}

/// See [`Destination::state`](crate::destination::Destination::state).
pub(super) async fn state(at: &Snowflake) -> Result<Option<EpochState>, Error> {
    let facts = at.facts(&[Begun::KIND, Snapshot::KIND, Table::KIND, Sealed::KIND, Swapped::KIND, Applied::KIND]).await?;
    if facts.get::<Begun>(0)?.is_none() {
        return Ok(None);
    }
    let Some(newest_epoch) = at.newest().await? else { return Ok(None) };
    let snapshot = facts.versioned::<Snapshot>(0)?;
    let start_lsn = snapshot.as_ref().map(|(_, s)| s.start_lsn).unwrap_or_default();
    let swapped = facts.get::<Swapped>(0)?.is_some();
    let mut loaded = snapshot.is_some();
    for (number, _, table) in facts.all::<Table>()? {
        loaded &= facts.is_sealed(number, table.generation)?;
    }
    Ok(Some(EpochState {
        generation: snapshot.as_ref().map_or(0, |(version, _)| *version as u32),
        snapshot_lsn: snapshot.map(|(_, s)| s.lsn).unwrap_or_default(),
        start_lsn,
        applied_lsn: applied(&facts, if swapped { at.idle().await? } else { None })?.unwrap_or(start_lsn),
        loaded,
        swapped,
        newest_epoch,
    }))
}

/// The checkpoint, if there is one.
pub(super) fn applied(facts: &Facts, idle: Option<Lsn>) -> Result<Option<Lsn>, Error> {
    Ok(facts.get::<Applied>(0)?.map(|a| a.lsn).max(idle))
}

/// See [`Destination::tables`](crate::destination::Destination::tables).
pub(super) async fn tables(at: &Snowflake) -> Result<Vec<LedgerTable>, Error> {
    let facts = at.facts(&[Table::KIND, Sealed::KIND, Parked::KIND, Drifted::KIND]).await?;
    let table = |(number, _, table): (u32, u64, Table)| {
        let (sealed, parked) = (facts.is_sealed(number, table.generation)?, facts.get::<Parked>(number)?.map(|p| p.why));
        let drift = facts.get::<Drifted>(number)?.map(|d| d.drift).unwrap_or_default();
        Ok(LedgerTable { schema: table.schema, gate: table.gate, sealed, parked, drift })
    };
    facts.all::<Table>()?.into_iter().map(table).collect()
}

/// See [`Destination::pending`](crate::destination::Destination::pending).
pub(super) async fn pending(at: &Snowflake, partition: u32) -> Result<Vec<Chunk>, Error> {
    let facts = at.facts(&[Table::KIND, Planned::KIND, Done::KIND]).await?;
    Ok(facts.pending()?.into_iter().filter(|chunk| chunk.partition == partition).collect())
}

/// See [`Destination::progress`](crate::destination::Destination::progress).
pub(super) async fn progress(at: &Snowflake) -> Result<(Load, Vec<TableReport>), Error> {
    let facts = at.facts(&[]).await?;
    facts.get::<Begun>(0)?.ok_or_else(|| at.gone())?;
    let mut load = Load::default();
    if let Some((generation, snapshot)) = facts.versioned::<Snapshot>(0)? {
        let waiting: BTreeSet<u32> = facts.pending()?.iter().map(|chunk| chunk.partition).collect();
        load = Load {
            generation: generation as u32,
            snapshot_lsn: snapshot.lsn,
            partitions: snapshot.partitions,
            partitions_loaded: snapshot.partitions - waiting.len() as u32,
            total_rows: snapshot.rows as i64,
            total_bytes: snapshot.bytes as i64,
            ..load
        };
    }
    let planned: BTreeMap<u32, u32> = facts.all::<Planned>()?.into_iter().map(|(number, _, chunk)| (number, chunk.table)).collect();
    let tables = facts.all::<Table>()?;
    let generations: BTreeMap<u32, u64> = tables.iter().map(|(number, _, t)| (*number, u64::from(t.generation))).collect();
    let mut rows: BTreeMap<u32, i64> = BTreeMap::new();
    for (number, version, done) in facts.all::<Done>()? {
        let Some(table) = planned.get(&number).filter(|table| generations.get(table) == Some(&version)) else { continue };
        *rows.entry(*table).or_default() += done.rows as i64;
        load.rows += done.rows as i64;
        load.bytes += done.bytes as i64;
    }
    let report = |(number, _, table): (u32, u64, Table)| report(&facts, number, &table, rows.get(&number).copied().unwrap_or(0));
    Ok((load, tables.into_iter().map(report).collect::<Result<_, _>>()?))
}

fn report(facts: &Facts, number: u32, table: &Table, rows_loaded: i64) -> Result<TableReport, Error> {
    let carried = facts.get::<Carried>(number)?;
    let counted = facts.get::<Counted>(number)?;
    let drift = facts.get::<Drifted>(number)?.map(|d| d.drift.into_iter().collect::<Vec<_>>());
    let notes = [facts.get::<Sealed>(number)?.and_then(|s| s.note), carried.as_ref().and_then(|c| c.note.clone())];
    let notes: Vec<String> = notes.into_iter().flatten().collect();
    Ok(TableReport {
        source: table.schema.source.to_string(),
        destination: table.schema.destination.to_string(),
        rows_loaded,
        carried_deleted: carried.as_ref().map_or(0, |c| c.deleted),
        carried_missing: carried.as_ref().map_or(0, |c| c.missing),
        note: (!notes.is_empty()).then(|| notes.join("; ")),
        sealed: facts.is_sealed(number, table.generation)?,
        parked: facts.get::<Parked>(number)?.map(|p| p.why),
        drift: drift.filter(|d| !d.is_empty()).map(|d| format!("{}. Apply a MirrorResync", d.join("; "))),
        inserts: counted.as_ref().map_or(0, |c| c.inserts as i64),
        updates: counted.as_ref().map_or(0, |c| c.updates as i64),
        deletes: counted.as_ref().map_or(0, |c| c.deletes as i64),
    })
}

/// What the swap of this epoch did; `None` before it.
pub(super) async fn swap_report(at: &Snowflake) -> Result<Option<SwapReport>, Error> {
    let swapped = at.facts(&[Swapped::KIND]).await?.get::<Swapped>(0)?;
    Ok(swapped.map(|s| SwapReport { at: s.at, lock_millis: s.millis, retries: s.retries }))
}

/// The shadow's name, as the ledger's table fact gives it.
pub(super) fn shadow_of(at: &Snowflake, table: &Table) -> String {
    mark::shadow(&table.schema.destination, at.brief.epoch, table.generation)
}

fn unreadable(error: serde_json::Error) -> Error {
    permanent("LedgerUnreadable", format!("the destination's ledger was written by another version: {error}. Start a new resync"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_position_is_of_one_epoch() {
        let comment = "Ledger of the Mirror a/b (mirror-operator) [e12 1/A0]";
        assert_eq!(idle_of(comment, 12), "1/A0".parse().ok());
        assert_eq!(idle_of(comment, 2), None);
        assert_eq!(idle_of("Ledger of the Mirror a/b (mirror-operator)", 12), None);
    }
}
