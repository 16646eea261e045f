//! Applies the change stream: at least once, and harmless when it is done again.
//!
//! Every row bears the position of its change as its version, and of all versions of a row the highest counts: what is written again, or late, changes nothing.
//! Where that is not so, because versions are not looked at or a row's earlier version may stand under another sorting key, nothing is ever late: whoever
//! opens the stream ends the statements of those before him, and later ones throw.
//! What a change leaves as it was is filled in by the server from the row that is there, in the statement that inserts. That statement also
//! passes the fence: it throws if a newer epoch has begun.

mod owner;
mod statements;

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;

pub(super) use owner::Owner;

use super::{
    ClickHouse,
    client::Rows,
    ddl::quoted,
    encode::{Refused, RowEncoder, unhex},
    error::{self, FENCED, Refusal, UNKNOWN_TABLE, meaning, permanent},
    fence, ledger, own,
    quote::{ident, literal},
    types::nullable,
};
use crate::{
    api::clickhouse::Engine,
    destination::{
        Applier, Counts, Error, Position, ROWS_MISSING, RowChange,
        fact::{Applied, Counted, Drifted, Fact, Owner as OwnerFact, Parked, Snapshot, Swapped, Table},
        gone,
    },
    postgres::Lsn,
    table::TableSchema,
};
use statements::{Batch, Names};

/// Opens the applier for the process that `owner` stands for.
pub(super) async fn open(at: &ClickHouse) -> Result<Box<dyn Applier>, Error> {
    let at = ClickHouse::new(at.brief.clone(), at.to.clone()).owned_by(at.owner.clone());
    at.fence().await?;
    let facts = at.facts(&[Snapshot::KIND, Swapped::KIND, OwnerFact::KIND, Table::KIND]).await?;
    let Some(snapshot) = facts.get::<Snapshot>(0)? else { return Err(gone(&at.brief)) };
    if facts.get::<Swapped>(0)?.is_none() {
        return Err(Error::Transient("the tables are not swapped yet".into()));
    }
    let token = owner::take_over(&at, facts.versioned::<OwnerFact>(0)?).await?;
    if facts.all::<Table>()?.iter().any(|(_, _, table)| in_turn(&at, &table.schema)) {
        fence::end_writers(&at).await?;
    }
    // Once the stream is ours: whoever had it before may have gone on until then.
    let facts = at.facts(&[Applied::KIND, Counted::KIND, Table::KIND, Drifted::KIND]).await?;
    let position = facts.get::<Applied>(0)?.map_or(snapshot.start_lsn, |a| a.lsn);
    let counts = facts.all::<Counted>()?.into_iter().map(|(number, _, counted)| (number, counted)).collect();
    let versions = facts.all::<Table>()?.into_iter().map(|(number, version, table)| (number, (version, table))).collect();
    let drifted = facts.all::<Drifted>()?.into_iter().map(|(number, _, drifted)| (number, drifted.drift)).collect();
    Ok(Box::new(ClickHouseApplier { at, token, position, counts, versions, altered: BTreeSet::new(), drifted, encoders: HashMap::new() }))
}

struct ClickHouseApplier {
    at: ClickHouse,
    token: String,
    position: Lsn,
    /// Since the load, with those that are not committed yet.
    counts: HashMap<u32, Counted>,
    /// What the ledger says of each table, with its version.
    versions: HashMap<u32, (u64, Table)>,
    /// Tables of which it does not say so yet.
    altered: BTreeSet<u32>,
    /// What it says of each table's drift.
    drifted: HashMap<u32, BTreeSet<String>>,
    encoders: HashMap<u32, Encoding>,
}

/// Whether what is written last counts for a table, and not the highest version alone.
fn in_turn(at: &ClickHouse, table: &TableSchema) -> bool {
    let options = at.options(table);
    options.engine == Engine::CoalescingMergeTree || Names::new(table, &options, own::Own::of(&at.brief)).is_movable()
}

/// How rows of a table are written.
struct Encoding {
    schema: TableSchema,
    rows: RowEncoder,
    names: Names,
}

#[async_trait]
impl Applier for ClickHouseApplier {
    fn position(&self) -> Lsn {
        self.position
    }

    async fn write(&mut self, table: &TableSchema, changes: Vec<RowChange>, positions: Vec<Position>, counts: Counts) -> Result<(), Error> {
        let doing = format!("applying changes to {}", table.destination);
        let sum = self.counts.entry(table.number).or_insert(Counted { inserts: 0, updates: 0, deletes: 0 });
        sum.inserts += counts.inserts;
        sum.updates += counts.updates;
        sum.deletes += counts.deletes;
        let (whole, partial) = self.encode(table, &changes, &positions, &doing)?;
        let (fence, watchful) = (self.fence(table), self.is_watchful(table));
        let names = &self.encoding(table)?.names;
        let mut todo = vec![(names.insert(&fence), whole)];
        // First: if the rows came first and this were lost, nobody could tell any more that the sorting key has changed.
        todo.extend(names.bury_moved(&fence).map(|sql| (sql, partial.clone())));
        todo.push((names.insert_merged(&fence, watchful), partial.clone()));
        let (structure, forbearing) = (names.structure(), names.insert_merged(&fence, false));
        let rows = |data| Rows { structure: structure.clone(), data };
        for (sql, data) in todo.into_iter().filter(|(_, data)| !data.is_empty()) {
            let mut outcome = self.at.client()?.with_rows(&sql, rows(data), SETTINGS).await;
            if outcome.as_ref().is_err_and(|refusal| refusal.code == error::ROWS_MISSING) {
                tracing::warn!(table = %table.destination, "{ROWS_MISSING}");
                // Recorded first: later nobody could tell, for a row that changes its key leaves a flagged one under the old one, be it there or not.
                self.drift(table, &BTreeSet::from([ROWS_MISSING.to_string()])).await?;
                outcome = self.at.client()?.with_rows(&forbearing, rows(partial.clone()), SETTINGS).await;
            }
            if let Err(refusal) = outcome {
                return Err(self.why(refusal, &doing).await);
            }
        }
        Ok(())
    }

    async fn truncate(&mut self, table: &TableSchema, position: Position) -> Result<(), Error> {
        let doing = format!("applying TRUNCATE to {}", table.destination);
        if table.key().is_empty() {
            let message = format!("{doing}: without a key its rows cannot be told apart, and so not be flagged as deleted");
            return Err(permanent("TruncateWithoutKey", message));
        }
        let fence = self.fence(table);
        let sql = format!("SELECT count() AS n FROM {}", quoted(&table.destination));
        let rows = self.at.client()?.row::<Rest>(&sql, &doing).await?.n;
        for sql in self.encoding(table)?.names.bury_all(position, rows, &fence) {
            if let Err(refusal) = self.at.client()?.try_run(&sql, &[SETTINGS, SPARING].concat()).await {
                return Err(self.why(refusal.of_rows(), &doing).await);
            }
        }
        Ok(())
    }

    async fn add_column(&mut self, table: &TableSchema, column: usize, fill: Option<&str>) -> Result<(), Error> {
        let doing = format!("adding a column to {}", table.destination);
        let Some(added) = table.columns.get(column) else {
            return Err(permanent("ColumnMissing", format!("{doing}: its schema does not have it")));
        };
        let default = match fill {
            Some(fill) => {
                format!(" DEFAULT CAST({}, {})", self.as_literal(table, column, fill, &doing).await?, literal(&added.destination_type))
            }
            None => String::new(),
        };
        // Rows that are written later bring their value, so that the default is that of the rows before them for good.
        let sql = format!(
            "{} ADD COLUMN IF NOT EXISTS {} {}{default}",
            self.at.ddl().alter(&table.destination),
            ident(&added.destination),
            added.destination_type
        );
        self.alter(table, &sql, &doing).await
    }

    async fn allow_null(&mut self, table: &TableSchema, column: usize) -> Result<TableSchema, Error> {
        let doing = format!("allowing NULL in a column of {}", table.destination);
        let mut table = table.clone();
        let Some(relaxed) = table.columns.get_mut(column) else {
            return Err(permanent("ColumnMissing", format!("{doing}: its schema does not have it")));
        };
        // What can be no Nullable, such as an array, is empty in rows that come without it.
        relaxed.destination_type = nullable(relaxed.destination_type.clone());
        let sql = format!(
            "{} MODIFY COLUMN {} {}",
            self.at.ddl().alter(&table.destination),
            ident(&relaxed.destination),
            relaxed.destination_type
        );
        self.alter(&table, &sql, &doing).await?;
        Ok(table)
    }

    async fn drift(&mut self, table: &TableSchema, drift: &BTreeSet<String>) -> Result<(), Error> {
        self.at.fence().await?;
        // Beside what others have found. It only grows, so that of two writers the one who knows more counts.
        let known = self.at.facts(&[Drifted::KIND]).await?.get::<Drifted>(table.number)?;
        let drift: BTreeSet<String> = known.into_iter().flat_map(|known| known.drift).chain(drift.iter().cloned()).collect();
        self.at.record(&[self.at.entry(table.number, drift.len() as u64, &Drifted { drift: drift.clone() })?]).await?;
        self.drifted.insert(table.number, drift);
        Ok(())
    }

    async fn park(&mut self, table: &TableSchema, why: &str) -> Result<(), Error> {
        self.at.fence().await?;
        self.at.record(&[self.at.entry(table.number, 0, &Parked { why: why.into() })?]).await
    }

    async fn commit(&mut self, position: Lsn) -> Result<(), Error> {
        self.at.fence().await?;
        owner::check(&self.at, &self.token).await?;
        let mut entries = vec![self.at.entry(0, position.0, &Applied { lsn: position })?];
        for (number, counted) in &self.counts {
            entries.push(self.at.entry(*number, position.0, counted)?);
        }
        for (version, table) in self.altered.iter().filter_map(|number| self.versions.get(number)) {
            entries.push(self.at.entry(table.schema.number, *version, table)?);
        }
        self.at.record(&entries).await?;
        self.altered.clear();
        self.position = position;
        Ok(())
    }
}

/// Missing rows of a join are defaults; a batch that looks like an earlier one is written all the same.
const SETTINGS: &[(&str, &str)] = &[
    ("join_use_nulls", "0"),
    ("insert_deduplicate", "0"),
    ("max_insert_block_size", "1000000"),
    ("mutations_sync", "2"),
    ("allow_custom_error_code_in_throwif", "1"),
];

/// What is inserted is gathered into parts of 64 MiB, and what is sorted goes to the disk beyond 256 MiB.
const SPARING: &[(&str, &str)] = &[("min_insert_block_size_bytes", "67108864"), ("max_bytes_before_external_sort", "268435456")];

/// Rows of a table.
#[derive(Deserialize)]
struct Rest {
    n: u64,
}

/// `what` cannot be written because of one of its columns.
fn refused(table: &TableSchema, refused: &Refused, what: &str) -> Error {
    let column = table.copied().nth(refused.column).map_or("", |c| c.destination.as_str());
    permanent("ValueRefused", format!("{what} cannot be written: column {column:?}: {}", refused.why))
}

impl ClickHouseApplier {
    /// A condition that throws once a newer epoch has begun. The server reads the ledger when it begins with the statement; those that it has begun with
    /// are ended by whoever begins the newer epoch.
    ///
    /// Where what is written last counts it throws as well once the applier was opened again.
    fn fence(&self, table: &TableSchema) -> String {
        let at = &self.at;
        let (mirror, epoch) = (literal(&at.brief.mirror_uid), at.brief.epoch);
        let newest = format!("SELECT max(epoch) FROM {} WHERE mirror = {mirror}", at.ledger(ledger::MIRROR));
        let fence = format!("NOT throwIf(({newest}) != {epoch}, 'another epoch has begun')");
        if !in_turn(at, table) {
            return fence;
        }
        let owner = format!(
            "SELECT JSONExtractString(value, 'token') FROM {} FINAL WHERE mirror = {mirror} AND epoch = {epoch} AND kind = {}",
            at.ledger(ledger::FACT),
            literal(OwnerFact::KIND)
        );
        format!("{fence} AND NOT throwIf(({owner}) != {}, 'the stream was opened again')", literal(&self.token))
    }

    /// Changes a live table. Its new schema is recorded with the checkpoint: changes from before it that are applied again have the columns of then, and
    /// what they lack gets the default that the column was added with, as the first time.
    async fn alter(&mut self, table: &TableSchema, sql: &str, doing: &str) -> Result<(), Error> {
        self.at.fence().await?;
        self.at.client()?.run(sql, doing).await?;
        let Some((version, known)) = self.versions.get_mut(&table.number) else { return Err(gone(&self.at.brief)) };
        *version += 1;
        known.schema = table.clone();
        self.altered.insert(table.number);
        Ok(())
    }

    /// What a refusal means; one of the fence is told by the ledger.
    async fn why(&self, refusal: Refusal, doing: &str) -> Error {
        if matches!(refusal.code, FENCED | UNKNOWN_TABLE) {
            for held in [self.at.fence().await, owner::check(&self.at, &self.token).await] {
                if let Err(error) = held {
                    return error;
                }
            }
        }
        meaning(&refusal, doing)
    }

    /// Whether a statement is to say that a row is missing. Of no use once that is known, nor where rows go by themselves; and where each version of a row
    /// is kept, what was written before the statement said so would be there twice.
    fn is_watchful(&self, table: &TableSchema) -> bool {
        let options = self.at.options(table);
        let known = self.drifted.get(&table.number).is_some_and(|drift| drift.contains(ROWS_MISSING));
        !known && options.ttl.is_none() && !matches!(options.engine, Engine::Null | Engine::MergeTree)
    }

    /// The rows of `changes`: those that are whole, and those that need the row that is there.
    fn encode(&mut self, table: &TableSchema, changes: &[RowChange], positions: &[Position], doing: &str) -> Result<(Bytes, Bytes), Error> {
        let Encoding { rows, names, .. } = self.encoding(table)?;
        let mut batch = Batch::default();
        for (change, position) in changes.iter().zip(positions) {
            let row = || format!("{doing}: the row {}", rows.key_of(change.row()));
            batch.add(rows, names, change, *position).map_err(|e| refused(table, &e, &row()))?;
        }
        Ok(batch.finish())
    }

    fn encoding(&mut self, table: &TableSchema) -> Result<&Encoding, Error> {
        if self.encoders.get(&table.number).is_none_or(|encoding| encoding.schema != *table) {
            let options = self.at.options(table);
            let rows = RowEncoder::new(table, own::rules(&options));
            let rows = rows.map_err(|why| permanent("TypeUnsupported", format!("applying changes to {}: {why}", table.destination)))?;
            let names = Names::new(table, &options, own::Own::of(&self.at.brief));
            self.encoders.insert(table.number, Encoding { schema: table.clone(), rows, names });
        }
        self.encoders.get(&table.number).ok_or_else(|| gone(&self.at.brief))
    }

    /// A value's text at PostgreSQL as ClickHouse writes it, as a literal. It need not be UTF-8, so it comes in hexadecimal digits.
    async fn as_literal(&self, table: &TableSchema, column: usize, fill: &str, doing: &str) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Text {
            digits: String,
        }
        let mut alone = table.clone();
        alone.columns = table.columns.get(column).cloned().into_iter().collect();
        alone.identity = crate::table::Identity::FullRow;
        let encoder = RowEncoder::new(&alone, own::rules(&self.at.options(table)))
            .map_err(|why| permanent("TypeUnsupported", format!("{doing}: {why}")))?;
        let mut data = Vec::new();
        let cell = crate::destination::Cell::Text(fill.to_string().into());
        encoder.cells(&[cell], &mut data).map_err(|e| refused(&alone, &e, &format!("{doing}: its default")))?;
        let type_ = alone.columns.first().map_or("", |c| c.destination_type.as_str());
        let rows = Rows { structure: format!("c0 {type_}"), data: data.into() };
        let found: Vec<Text> = self.at.client()?.rows_with("SELECT hex(toString(c0)) AS digits FROM rows", rows, doing).await?;
        let digits = found.into_iter().next().map(|row| row.digits);
        let digits = digits.ok_or_else(|| permanent("ValueRefused", format!("{doing}: the server makes nothing of its default")))?;
        let readable = unhex(&digits).and_then(|bytes| String::from_utf8(bytes).ok());
        Ok(readable.map_or_else(|| format!("unhex({})", literal(&digits)), |text| literal(&text)))
    }
}
