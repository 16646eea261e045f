//! Applies the change stream: each batch is one transaction, with the checkpoint in it.
//!
//! Rows are staged by the Storage Write API, out of readers' sight, as they come. What a batch does to each table is one MERGE; `commit` runs all of them, and the
//! INSERT of the checkpoint, as one multi-statement transaction in one job. So a batch is visible together, and applied once. The transaction begins by asking the
//! ledger whether this applier is still the one: whoever takes over records that first and then ends the jobs that have begun.
//!
//! Why not upserts by the Storage Write API itself (`_CHANGE_TYPE`): it takes whole rows only, so that unchanged TOAST values and the other columns of deleted
//! rows would have to be read first; tables that are written so take no DML, and with that no carry; and what it has written is neither copied nor visible at a
//! known time (BigQuery docs, "Stream table updates with change data capture").

mod owner;
mod stage;
mod statements;

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;

pub(super) use owner::Owner;

use super::{
    BigQuery, carry,
    error::{FENCED, Refusal, meaning, permanent},
    job::Statement,
    ledger::Entry,
    live,
    mark::State,
    own::Own,
    quote::{ident, literal},
};
use crate::{
    destination::{
        Applier, Cell, Counts, Error, Position, RowChange,
        fact::{Applied, Counted, Drifted, Fact, Parked, Snapshot, Swapped, Table},
        gone,
    },
    postgres::Lsn,
    table::TableSchema,
};
use stage::Stages;
use statements::Names;

/// Tables that one transaction may change: 100 (BigQuery docs, "Multi-statement transactions", "Limitations"), of which the ledger is one.
const TABLES: usize = 90;
/// The most text of one query: 1 MB (BigQuery docs, "Quotas and limits", "Query jobs").
const TEXT: usize = 900_000;

/// Opens the applier for the process that `owner` stands for.
pub(super) async fn open(at: &BigQuery) -> Result<Box<dyn Applier>, Error> {
    let at = BigQuery::new(at.brief.clone(), at.to.clone()).owned_by(at.owner.clone());
    let facts = at.facts(&[Snapshot::KIND, Swapped::KIND]).await?;
    facts.fence(&at)?;
    let Some(snapshot) = facts.get::<Snapshot>(0)? else { return Err(gone(&at.brief)) };
    if facts.get::<Swapped>(0)?.is_none() {
        return Err(Error::Transient("the tables are not swapped yet".into()));
    }
    let token = owner::take_over(&at).await?;
    // Rows that earlier appliers of this epoch have staged and not applied.
    for found in
        live::marked(&at).await?.iter().filter(|f| f.mark.as_ref().is_some_and(|m| m.state == State::Stage && m.epoch == at.brief.epoch))
    {
        live::drop_table(&at, &found.name).await?;
    }
    let facts = at.facts(&[Applied::KIND, Counted::KIND, Table::KIND]).await?;
    let position = facts.get::<Applied>(0)?.map_or(snapshot.start_lsn, |a| a.lsn);
    let counts = facts.all::<Counted>()?.into_iter().map(|(number, _, counted)| (number, counted)).collect();
    let versions = facts.all::<Table>()?.into_iter().map(|(number, version, table)| (number, (version, table))).collect();
    let stages = Stages::new(&token);
    Ok(Box::new(BigQueryApplier {
        at,
        token,
        position,
        counts,
        versions,
        stages,
        names: HashMap::new(),
        pending: vec![],
        facts: vec![],
        commits: 0,
    }))
}

struct BigQueryApplier {
    at: BigQuery,
    token: String,
    position: Lsn,
    /// Since the load, with those that are not committed yet.
    counts: HashMap<u32, Counted>,
    /// What the ledger says of each table, with its version.
    versions: HashMap<u32, (u64, Table)>,
    stages: Stages,
    names: HashMap<u32, Names>,
    /// What the next commit does, in order.
    pending: Vec<Pending>,
    /// What it records beside the checkpoint.
    facts: Vec<Entry>,
    commits: u64,
}

/// What a commit does to one table.
struct Pending {
    table: u32,
    /// Whether it may be done again: by key.
    repeatable: bool,
    sql: String,
}

#[async_trait]
impl Applier for BigQueryApplier {
    fn position(&self) -> Lsn {
        self.position
    }

    async fn write(&mut self, table: &TableSchema, changes: Vec<RowChange>, _: Vec<Position>, counts: Counts) -> Result<(), Error> {
        let doing = format!("applying changes to {}", table.destination);
        let sum = self.counts.entry(table.number).or_insert(Counted { inserts: 0, updates: 0, deletes: 0 });
        sum.inserts += counts.inserts;
        sum.updates += counts.updates;
        sum.deletes += counts.deletes;
        if changes.is_empty() {
            return Ok(());
        }
        self.know(table).await?;
        let Some(names) = self.names.get(&table.number) else { return Err(gone(&self.at.brief)) };
        let rows = names.rows(&changes).map_err(|refused| names.refused(&refused, &doing))?;
        let staged = self.stages.put(&self.at, table, names, rows, &doing).await?;
        let range = names.range(&changes);
        self.pending.extend(names.statements(&staged, range.as_deref()).into_iter().map(|sql| Pending {
            table: table.number,
            repeatable: !table.key().is_empty(),
            sql,
        }));
        Ok(())
    }

    async fn truncate(&mut self, table: &TableSchema, _: Position) -> Result<(), Error> {
        self.know(table).await?;
        let Some(names) = self.names.get(&table.number) else { return Err(gone(&self.at.brief)) };
        self.pending.push(Pending { table: table.number, repeatable: true, sql: names.empty() });
        Ok(())
    }

    async fn add_column(&mut self, table: &TableSchema, column: usize, fill: Option<&str>) -> Result<(), Error> {
        let doing = format!("adding a column to {}", table.destination);
        let Some(added) = table.columns.get(column) else {
            return Err(permanent("ColumnMissing", format!("{doing}: its schema does not have it")));
        };
        let live = self.at.quoted(&table.destination);
        let sql = format!("ALTER TABLE {live} ADD COLUMN IF NOT EXISTS {} {}", ident(&added.destination), added.destination_type);
        self.alter(table, sql, &doing).await?;
        if let Some(fill) = fill {
            // The rows that are there get their value where the rows of earlier changes are: in the transaction.
            let mut alone = table.clone();
            (alone.columns, alone.identity) = (vec![added.clone()], crate::table::Identity::FullRow);
            let names = Names::new(&self.at, &alone, Own { flag: None, synced_at: None }, String::new())?;
            let change = RowChange::Add { row: vec![Cell::Text(fill.to_string().into())] };
            let rows = names.rows(&[change]).map_err(|refused| names.refused(&refused, &doing))?;
            let staged = self.stages.put(&self.at, &alone, &names, rows, &doing).await?;
            let name = ident(&added.destination);
            let every = live::find(&self.at, &table.destination).await?.map_or(String::new(), |found| carry::every_partition(&found, "t"));
            let sql = format!("UPDATE {live} AS t SET {name} = (SELECT c0 FROM {staged}) WHERE t.{name} IS NULL{every}");
            self.pending.push(Pending { table: table.number, repeatable: true, sql });
        }
        let Some((version, known)) = self.versions.get_mut(&table.number) else { return Err(gone(&self.at.brief)) };
        *version += 1;
        known.schema = table.clone();
        let entry = self.at.entry(table.number, *version, known)?;
        self.facts.push(entry);
        Ok(())
    }

    async fn allow_null(&mut self, table: &TableSchema, column: usize) -> Result<TableSchema, Error> {
        let doing = format!("allowing NULL in a column of {}", table.destination);
        let Some(relaxed) = table.columns.get(column) else {
            return Err(permanent("ColumnMissing", format!("{doing}: its schema does not have it")));
        };
        // Only the key's columns are NOT NULL.
        if table.key().contains(&column) {
            let sql =
                format!("ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL", self.at.quoted(&table.destination), ident(&relaxed.destination));
            self.alter(table, sql, &doing).await?;
        }
        Ok(table.clone())
    }

    async fn drift(&mut self, table: &TableSchema, drift: &BTreeSet<String>) -> Result<(), Error> {
        self.at.fence().await?;
        self.at.record(&[self.at.entry(table.number, 0, &Drifted { drift: drift.clone() })?]).await
    }

    async fn park(&mut self, table: &TableSchema, why: &str) -> Result<(), Error> {
        self.at.fence().await?;
        self.at.record(&[self.at.entry(table.number, 0, &Parked { why: why.into() })?]).await
    }

    async fn commit(&mut self, position: Lsn) -> Result<(), Error> {
        let applied = self.at.entry(0, position.0, &Applied { lsn: position })?;
        if self.pending.is_empty() && self.facts.is_empty() {
            // No query when nothing has changed. That nothing is to be done up to a position is true whoever says it.
            if position > self.position {
                self.at.append(&applied).await?;
            }
            self.position = position;
            return Ok(());
        }
        let mut facts = std::mem::take(&mut self.facts);
        facts.push(applied);
        for (number, counted) in &self.counts {
            facts.push(self.at.entry(*number, position.0, counted)?);
        }
        let parts = parts(std::mem::take(&mut self.pending));
        let last = parts.len().saturating_sub(1);
        for (place, statements) in parts.into_iter().enumerate() {
            let record = (place == last).then_some(facts.as_slice());
            self.transaction(&statements, record.unwrap_or_default()).await?;
        }
        self.position = position;
        self.stages.committed(&self.at).await
    }
}

/// The statements of each transaction. More tables than one may change are changed by several; all but the last one may be repeated after a crash, for they
/// go by key.
fn parts(mut pending: Vec<Pending>) -> Vec<Vec<String>> {
    // Statements of one table stay in their order.
    pending.sort_by_key(|p| (!p.repeatable, p.table));
    let (mut parts, mut tables, mut text): (Vec<Vec<String>>, BTreeSet<u32>, usize) = (vec![vec![]], BTreeSet::new(), 0);
    for Pending { table, sql, .. } in pending {
        let full = tables.len() >= TABLES && !tables.contains(&table) || text + sql.len() > TEXT;
        if full && text > 0 {
            parts.push(vec![]);
            (tables, text) = (BTreeSet::new(), 0);
        }
        tables.insert(table);
        text += sql.len();
        if let Some(part) = parts.last_mut() {
            part.push(sql);
        }
    }
    parts
}

impl BigQueryApplier {
    /// Runs statements and records facts, all or nothing, if this applier is still the one.
    async fn transaction(&mut self, statements: &[String], facts: &[Entry]) -> Result<(), Error> {
        let mut sql = format!(
            "BEGIN TRANSACTION;\nASSERT {} AND {} AS {};\n",
            self.at.is_newest(),
            owner::is_owner(&self.at, &self.token),
            literal(FENCED)
        );
        for statement in statements {
            sql.push_str(statement);
            sql.push_str(";\n");
        }
        let mut statement = Statement::default();
        if !facts.is_empty() {
            statement = self.at.insertion(facts)?;
            sql.push_str(&statement.sql);
            sql.push_str(";\n");
        }
        sql.push_str("COMMIT TRANSACTION;");
        statement.sql = sql;
        self.commits += 1;
        let step = self.at.once(&format!("{}-{}", owner::id(&self.token), self.commits)).await?;
        let outcome = self.at.jobs().await?.run_once(&step, statement).await;
        match outcome {
            Ok(()) => Ok(()),
            Err(refusal) => Err(self.why(&refusal, "applying changes").await),
        }
    }

    /// What a refusal means; one of the fence is told by the ledger.
    async fn why(&self, refusal: &Refusal, doing: &str) -> Error {
        if refusal.is_fence() || refusal.is("notFound") {
            for held in [self.at.fence().await, owner::check(&self.at, &self.token).await] {
                if let Err(error) = held {
                    return error;
                }
            }
            return Error::Transient(meaning(refusal, doing).to_string());
        }
        meaning(refusal, doing)
    }

    /// Changes the columns of a live table, which no transaction can.
    async fn alter(&mut self, table: &TableSchema, sql: String, doing: &str) -> Result<(), Error> {
        self.at.fence().await?;
        owner::check(&self.at, &self.token).await?;
        self.names.remove(&table.number);
        self.at.jobs().await?.run(sql).await.map_err(|e| meaning(&e, doing))
    }

    /// Makes the names of a table known.
    async fn know(&mut self, table: &TableSchema) -> Result<(), Error> {
        if self.names.get(&table.number).is_none_or(|names| !names.is_of(table)) {
            let live = live::find(&self.at, &table.destination).await?;
            let every = live.map_or(String::new(), |found| carry::every_partition(&found, "t"));
            let names = Names::new(&self.at, table, Own::of(&self.at.brief), every)?;
            self.names.insert(table.number, names);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_changes_no_more_tables_than_it_may_and_what_cannot_be_repeated_comes_last() {
        let pending = |table: u32, repeatable| Pending { table, repeatable, sql: format!("{table}") };
        let mut all: Vec<Pending> = vec![pending(500, false)];
        all.extend((0..200).map(|table| pending(table, true)));
        all.push(pending(3, true));
        let parts = parts(all);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [91, 90, 21]);
        assert_eq!(parts[0][3..5], ["3", "3"]);
        assert_eq!(parts[2].last().map(String::as_str), Some("500"));
    }
}
