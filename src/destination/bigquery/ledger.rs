//! The ledger: what is true of each epoch, one table a mirror in the Peer's dataset.
//!
//! A fact is a row that is only ever replaced by one with a higher version, so it does not matter in which order late writers come, nor how often. Rows are
//! inserted and never changed: inserts do not get in each other's way, nor in that of transactions (BigQuery docs, "Multi-statement transactions"). A table for
//! each mirror keeps what BigQuery allows a table in statements from being shared by all.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{
    BigQuery, encode,
    error::{Refusal, meaning, permanent},
    job::Statement,
    mark,
    quote::literal,
    types::Type,
};
use crate::{
    destination::{Chunk, EpochState, Error, LedgerTable},
    postgres::Lsn,
    report::{Load, SwapReport, TableReport},
    table::{TableName, TableSchema},
};

/// What the names of ledgers begin with.
pub(super) const LEDGER: &str = "_mirror_operator_";
/// The kind of fact that closes the fence behind earlier epochs: its version is the epoch.
const EPOCH: &str = "epoch";
/// The most that one INSERT may bring: a request may have 10 MB (BigQuery docs, "Quotas and limits", "Query jobs").
const MOST: usize = 9_000_000;

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
    /// The current snapshot. Its version is the generation.
    Snapshot = "snapshot" { lsn: Lsn, start_lsn: Lsn, partitions: u32, rows: u64, bytes: u64, }
    /// A table.
    Table = "table" { schema: TableSchema, generation: u32, gate: Lsn, }
    /// A chunk of the plan.
    Planned = "chunk" { partition: u32, table: u32, relation: u32, first_block: u64, end_block: Option<u64>, bytes: u64, }
    /// The stream that has a chunk's rows, before it is committed. Recorded once: of two workers that load the same chunk, one stream is committed. Its version
    /// is the generation.
    Written = "written" { stream: String, rows: u64, bytes: u64, }
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
    /// Changes of a table since the load. Its version is the checkpoint that it belongs to.
    Counted = "counted" { inserts: u64, updates: u64, deletes: u64, }
    /// The checkpoint, which is also the version.
    Applied = "applied" { lsn: Lsn, }
    /// Who opened the applier last; the version counts the openings.
    Owner = "owner" { token: String, }
}

/// Facts of one epoch.
#[derive(Debug, Default)]
pub(super) struct Facts {
    found: BTreeMap<(String, u32), Row>,
    /// The newest epoch of the mirror that was begun.
    pub(super) newest: Option<u32>,
}

#[derive(Debug)]
struct Row {
    version: u64,
    value: String,
    at: String,
}

/// A row to be written.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    epoch: u32,
    kind: &'static str,
    number: u32,
    version: u64,
    value: String,
}

/// The row of a fact in the Storage Write API.
#[derive(Clone, PartialEq, prost::Message)]
struct Appended {
    #[prost(int64, optional, tag = "1")]
    epoch: Option<i64>,
    #[prost(string, optional, tag = "2")]
    kind: Option<String>,
    #[prost(int64, optional, tag = "3")]
    number: Option<i64>,
    #[prost(int64, optional, tag = "4")]
    version: Option<i64>,
    #[prost(string, optional, tag = "5")]
    value: Option<String>,
    #[prost(int64, optional, tag = "6")]
    at: Option<i64>,
}

impl Facts {
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
                pending.push(Chunk { number, partition, table, relation, first_block, end_block, bytes });
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

impl BigQuery {
    /// The ledger's name.
    pub(super) fn ledger(&self) -> TableName {
        TableName { schema: self.to.at.database.clone(), name: format!("{LEDGER}{}", self.brief.mirror_uid.replace('-', "_")) }
    }

    /// Creates the ledger, if it is not there.
    async fn create_ledger(&self) -> Result<(), Error> {
        let column = |(name, type_): (&str, &str)| json!({ "name": name, "type": type_, "mode": "REQUIRED" });
        let columns = [
            ("epoch", "INTEGER"),
            ("kind", "STRING"),
            ("number", "INTEGER"),
            ("version", "INTEGER"),
            ("value", "STRING"),
            ("at", "TIMESTAMP"),
        ];
        let resource = json!({
            "schema": { "fields": columns.map(column) },
            "description": format!("What is true of the mirror {}/{} (mirror-operator)", self.brief.namespace, self.brief.mirror),
        });
        self.client()?.create_table(&self.ledger(), resource).await.map_err(|e| meaning(&e, "creating the ledger"))
    }

    /// What the ledger says of this epoch; of these kinds only, unless there are none.
    pub(super) async fn facts(&self, kinds: &[&str]) -> Result<Facts, Error> {
        let kinds: Vec<String> = kinds.iter().map(|kind| literal(kind)).collect();
        self.facts_where(&if kinds.is_empty() { "TRUE".into() } else { format!("kind IN ({})", kinds.join(", ")) }).await
    }

    /// What the ledger says of this epoch under a condition, and which epoch is the newest.
    pub(super) async fn facts_where(&self, condition: &str) -> Result<Facts, Error> {
        let sql = format!(
            "SELECT kind, CAST(number AS STRING), CAST(version AS STRING), value, FORMAT_TIMESTAMP('%FT%H:%M:%E6SZ', at) FROM {} \
             WHERE kind = {epoch_kind} OR epoch = {} AND ({condition}) \
             QUALIFY ROW_NUMBER() OVER (PARTITION BY kind, number ORDER BY version DESC, at) = 1",
            self.quoted(&self.ledger()),
            self.brief.epoch,
            epoch_kind = literal(EPOCH),
        );
        let rows = match self.jobs().await?.rows(sql).await {
            Err(refusal) if is_missing(&refusal) => return Ok(Facts::default()),
            rows => rows.map_err(|e| meaning(&e, "reading the ledger"))?,
        };
        let mut facts = Facts::default();
        for row in rows {
            let [Some(kind), Some(number), Some(version), Some(value), Some(at)] = <[_; 5]>::try_from(row).unwrap_or_default() else {
                return Err(permanent("LedgerUnreadable", "the destination's ledger has rows of another form: start a new resync"));
            };
            let (number, version) = (number.parse().unwrap_or(0), version.parse().unwrap_or(0));
            if kind == EPOCH {
                facts.newest = u32::try_from(version).ok();
            } else {
                facts.found.insert((kind, number), Row { version, value, at });
            }
        }
        Ok(facts)
    }

    /// A fact of this epoch to be recorded.
    pub(super) fn entry<F: Fact>(&self, number: u32, version: u64, fact: &F) -> Result<Entry, Error> {
        let value = serde_json::to_string(fact).map_err(|e| permanent("Internal", e.to_string()))?;
        Ok(Entry { epoch: self.brief.epoch, kind: F::KIND, number, version, value })
    }

    /// The statement that records facts.
    pub(super) fn insertion(&self, entries: &[Entry]) -> Result<Statement, Error> {
        let fact = |e: &Entry| json!({ "e": e.epoch.to_string(), "k": e.kind, "n": e.number.to_string(), "v": e.version.to_string(), "x": e.value });
        let facts = serde_json::Value::from(entries.iter().map(fact).collect::<Vec<_>>()).to_string();
        if facts.len() > MOST {
            let message = format!("the plan has {} chunks, more than the ledger takes at once: raise snapshot.chunkSize", entries.len());
            return Err(permanent("PlanTooLarge", message));
        }
        let number = |path: &str| format!("CAST(JSON_VALUE(f, '$.{path}') AS INT64)");
        let sql = format!(
            "INSERT INTO {} (epoch, kind, number, version, value, at) \
             SELECT {}, JSON_VALUE(f, '$.k'), {}, {}, JSON_VALUE(f, '$.x'), CURRENT_TIMESTAMP() FROM UNNEST(JSON_QUERY_ARRAY(@facts)) AS f",
            self.quoted(&self.ledger()),
            number("e"),
            number("n"),
            number("v"),
        );
        Ok(Statement { sql, parameters: vec![("facts", facts)] })
    }

    /// Records facts, all or none.
    pub(super) async fn record(&self, entries: &[Entry]) -> Result<(), Error> {
        let insertion = self.insertion(entries)?;
        self.jobs().await?.run(insertion).await.map_err(|e| self.of_ledger(&e, "writing the ledger"))
    }

    /// Records a fact unless one was recorded for the same step: whoever comes second reads what the first has written.
    pub(super) async fn record_once(&self, step: &str, entry: Entry) -> Result<(), Error> {
        let insertion = self.insertion(&[entry])?;
        self.jobs().await?.run_once(&self.once(step).await?, insertion).await.map_err(|e| self.of_ledger(&e, "writing the ledger"))
    }

    /// Records a fact without a job: what is told often and may be told twice. Costs no query and counts for no quota of statements.
    pub(super) async fn append(&self, entry: &Entry) -> Result<(), Error> {
        let integers = ["epoch", "number", "version"];
        let name_type = |name: &'static str| (name, if integers.contains(&name) { Type::Int64 } else { Type::String });
        let mut fields = ["epoch", "kind", "number", "version", "value"].map(name_type).to_vec();
        fields.push(("at", Type::Timestamp));
        let row = Appended {
            epoch: Some(entry.epoch.into()),
            kind: Some(entry.kind.into()),
            number: Some(entry.number.into()),
            version: i64::try_from(entry.version).ok(),
            value: Some(entry.value.clone()),
            at: Some(jiff::Timestamp::now().as_microsecond()),
        };
        let (writer, batch) = (self.writer().await?, futures::stream::iter([vec![row.encode_to_vec()]]));
        let stream = writer.default_stream(&self.ledger());
        let appended = writer.append(&stream, encode::descriptor(fields.iter().map(|(name, type_)| (*name, type_))), batch).await;
        match appended {
            // A ledger that is new may not be known to this API yet; one that is gone is told by the fence.
            Err(refusal) if is_missing(&refusal) => {
                self.fence().await?;
                Err(Error::Transient(format!("writing the ledger: {}", refusal.words)))
            }
            appended => appended.map(drop).map_err(|e| meaning(&e, "writing the ledger")),
        }
    }

    /// What a refusal to change the ledger means: one that is gone went with its mirror.
    fn of_ledger(&self, refusal: &Refusal, doing: &str) -> Error {
        if is_missing(refusal) { self.gone() } else { meaning(refusal, doing) }
    }

    /// Whether another epoch of the mirror has begun, and not only its number been used to close the fence.
    pub(super) async fn has_begun(&self, epoch: u32) -> Result<bool, Error> {
        let sql =
            format!("SELECT 1 FROM {} WHERE epoch = {epoch} AND kind = {} LIMIT 1", self.quoted(&self.ledger()), literal(Begun::KIND));
        let rows = self.jobs().await?.rows(sql).await.map_err(|e| meaning(&e, "reading the ledger"))?;
        Ok(!rows.is_empty())
    }

    /// Stops whoever is of an earlier epoch.
    pub(super) async fn fence(&self) -> Result<(), Error> {
        self.facts_where("FALSE").await?.fence(self)
    }

    /// A condition on the ledger that holds while no newer epoch has begun.
    pub(super) fn is_newest(&self) -> String {
        let ledger = self.quoted(&self.ledger());
        format!("(SELECT MAX(version) FROM {ledger} WHERE kind = {}) = {}", literal(EPOCH), self.brief.epoch)
    }

    /// The ledger does not know the epoch: it was abandoned, or its mirror forgotten, while the caller was at work.
    pub(super) fn gone(&self) -> Error {
        let crate::brief::Brief { epoch, namespace, mirror, .. } = &self.brief;
        permanent("EpochGone", format!("the destination's ledger does not know epoch {epoch} of {namespace}/{mirror}: it was removed"))
    }
}

impl Facts {
    /// Stops whoever is of an earlier epoch.
    pub(super) fn fence(&self, at: &BigQuery) -> Result<(), Error> {
        match self.newest {
            None => Err(at.gone()),
            Some(newest) if newest > at.brief.epoch => Err(Error::Superseded(newest)),
            Some(_) => Ok(()),
        }
    }
}

/// Whether there is no ledger.
fn is_missing(refusal: &Refusal) -> bool {
    refusal.is("notFound") && !refusal.words.contains("Dataset")
}

/// See [`Destination::begin`](crate::destination::Destination::begin).
///
/// A job that has passed the fence in an earlier epoch may still run: once the new epoch is in the ledger, those are cancelled and waited for.
pub(super) async fn begin(at: &BigQuery) -> Result<(), Error> {
    let facts = at.facts(&[Begun::KIND]).await?;
    match facts.newest {
        None => at.create_ledger().await?,
        Some(newest) if newest > at.brief.epoch => return Err(Error::Superseded(newest)),
        Some(_) => {}
    }
    if facts.get::<Begun>(0)?.is_none() {
        let begun = at.entry(0, 0, &Begun { resync: at.brief.resync_uid.clone(), slot: at.brief.slot() })?;
        at.record(&[closing(at.brief.epoch), begun]).await?;
        at.fence().await?;
    }
    end_jobs_before(at, at.brief.epoch).await
}

/// The fact that closes the fence behind all epochs before this one.
fn closing(epoch: u32) -> Entry {
    Entry { epoch, kind: EPOCH, number: 0, version: epoch.into(), value: String::new() }
}

/// Closes the fence behind all epochs before this one.
pub(super) async fn raise(at: &BigQuery, epoch: u32) -> Result<(), Error> {
    at.record(&[closing(epoch)]).await
}

/// Cancels the jobs of epochs before this one, told by their ids, and returns when none is left.
pub(super) async fn end_jobs_before(at: &BigQuery, epoch: u32) -> Result<(), Error> {
    let older = |id: &str| mark::epoch_of_job(&at.brief.mirror_uid, id).is_some_and(|of| of < epoch);
    at.jobs().await?.end(older).await.map_err(|e| meaning(&e, "ending jobs of earlier epochs"))
}

/// See [`Destination::state`](crate::destination::Destination::state).
pub(super) async fn state(at: &BigQuery) -> Result<Option<EpochState>, Error> {
    let facts = at.facts(&[Begun::KIND, Snapshot::KIND, Table::KIND, Sealed::KIND, Swapped::KIND, Applied::KIND]).await?;
    let (Some(_), Some(newest_epoch)) = (facts.get::<Begun>(0)?, facts.newest) else { return Ok(None) };
    let snapshot = facts.versioned::<Snapshot>(0)?;
    let start_lsn = snapshot.as_ref().map(|(_, s)| s.start_lsn).unwrap_or_default();
    let mut loaded = snapshot.is_some();
    for (number, _, table) in facts.all::<Table>()? {
        loaded &= facts.is_sealed(number, table.generation)?;
    }
    Ok(Some(EpochState {
        generation: snapshot.as_ref().map_or(0, |(version, _)| *version as u32),
        snapshot_lsn: snapshot.map(|(_, s)| s.lsn).unwrap_or_default(),
        start_lsn,
        applied_lsn: facts.get::<Applied>(0)?.map_or(start_lsn, |a| a.lsn),
        loaded,
        swapped: facts.get::<Swapped>(0)?.is_some(),
        newest_epoch,
    }))
}

/// See [`Destination::tables`](crate::destination::Destination::tables).
pub(super) async fn tables(at: &BigQuery) -> Result<Vec<LedgerTable>, Error> {
    let facts = at.facts(&[Table::KIND, Sealed::KIND, Parked::KIND, Drifted::KIND]).await?;
    let table = |(number, _, table): (u32, u64, Table)| {
        let (sealed, parked) = (facts.is_sealed(number, table.generation)?, facts.get::<Parked>(number)?.map(|p| p.why));
        let drift = facts.get::<Drifted>(number)?.map(|d| d.drift).unwrap_or_default();
        Ok(LedgerTable { schema: table.schema, gate: table.gate, sealed, parked, drift })
    };
    facts.all::<Table>()?.into_iter().map(table).collect()
}

/// See [`Destination::pending`](crate::destination::Destination::pending).
pub(super) async fn pending(at: &BigQuery, partition: u32) -> Result<Vec<Chunk>, Error> {
    let facts = at.facts(&[Table::KIND, Planned::KIND, Done::KIND]).await?;
    Ok(facts.pending()?.into_iter().filter(|chunk| chunk.partition == partition).collect())
}

/// See [`Destination::progress`](crate::destination::Destination::progress).
pub(super) async fn progress(at: &BigQuery) -> Result<(Load, Vec<TableReport>), Error> {
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
pub(super) async fn swap_report(at: &BigQuery) -> Result<Option<SwapReport>, Error> {
    Ok(at.facts(&[Swapped::KIND]).await?.get::<Swapped>(0)?.map(report_of))
}

/// A swap as people see it.
pub(super) fn report_of(swapped: Swapped) -> SwapReport {
    SwapReport { at: swapped.at, lock_millis: swapped.millis, retries: swapped.retries }
}

/// The shadow's name, as the ledger's table fact gives it.
pub(super) fn shadow_of(at: &BigQuery, table: &Table) -> TableName {
    mark::shadow(&table.schema.destination, at.brief.epoch, table.generation)
}

fn unreadable(error: serde_json::Error) -> Error {
    permanent("LedgerUnreadable", format!("the destination's ledger was written by another version: {error}. Start a new resync"))
}
