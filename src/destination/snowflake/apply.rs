//! Applies the change stream. Each batch is one transaction of rows, statistics and checkpoint: exactly once.
//!
//! Changes go through files into temporary tables of the applier's own session, where nobody sees them and their types are those of the table. The transaction
//! is begun only when the batch is to be committed: it brings them into their tables, set by set, and is over in the time that this takes.

mod owner;
mod statements;

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;

pub(super) use owner::Owner;

use super::{
    Snowflake,
    client::Session,
    encode::{Refused, RowEncoder},
    error::{meaning, permanent},
    ledger::Entry,
    live::attributes,
    own::Own,
    quote::ident,
    transaction::Transaction,
    types::Type,
};
use crate::{
    destination::{
        Applier, Cell, Counts, Error, Position, RowChange,
        fact::{Applied, Counted, Drifted, Fact, Parked, Snapshot, Swapped, Table},
        gone,
    },
    postgres::Lsn,
    table::{Identity, TableSchema},
};
use statements::{Batch, Names};

/// Batches after which the temporary tables are emptied, and the files of the stage removed.
const BATCHES: u32 = 50;

/// Opens the applier for the process that `owner` stands for.
pub(super) async fn open(at: &Snowflake) -> Result<Box<dyn Applier>, Error> {
    let at = Snowflake::new(at.brief.clone(), at.to.clone()).owned_by(at.owner.clone());
    at.fence().await?;
    let facts = at.facts(&[Snapshot::KIND, Swapped::KIND]).await?;
    let Some(snapshot) = facts.get::<Snapshot>(0)? else { return Err(gone(&at.brief)) };
    if facts.get::<Swapped>(0)?.is_none() {
        return Err(Error::Transient("the tables are not swapped yet".into()));
    }
    let token = owner::take_over(&at).await?;
    // Nobody else moves the checkpoint any more.
    let facts = at.facts(&[Applied::KIND, Counted::KIND, Table::KIND]).await?;
    let noted = at.noted().await?.map(|note| note.position);
    let position = facts.applied(noted)?.unwrap_or(snapshot.start_lsn);
    // An idle applier that this one takes the stream from looks there only.
    at.note(&token, position).await?;
    let counts = facts.all::<Counted>()?.into_iter().map(|(number, _, counted)| (number, counted)).collect();
    let tables = facts.all::<Table>()?.into_iter().map(|(number, _, table)| (number, table)).collect();
    at.create_stage().await?;
    at.clean("apply/").await?;
    let session = at.client()?.session().await.map_err(|e| meaning(&e, "opening the change stream's session"))?;
    Ok(Box::new(SnowflakeApplier {
        at,
        session: Some(session),
        token,
        position,
        counts,
        counted: BTreeSet::new(),
        tables,
        encodings: HashMap::new(),
        pending: Vec::new(),
        batch: 0,
        staged: 0,
    }))
}

struct SnowflakeApplier {
    at: Snowflake,
    /// The session that has the temporary tables; `None` after an error.
    session: Option<Session>,
    token: String,
    position: Lsn,
    /// Since the load, with those that are not committed yet.
    counts: HashMap<u32, Counted>,
    /// Tables whose counts have changed.
    counted: BTreeSet<u32>,
    /// What the ledger says of each table.
    tables: HashMap<u32, Table>,
    encodings: HashMap<u32, Encoding>,
    /// What the transaction does, and what it is about.
    pending: Vec<(String, String)>,
    /// Numbers the sets of staged rows, never twice in a session.
    batch: u64,
    /// Sets since the temporary tables were emptied.
    staged: u32,
}

/// How rows of a table are written.
struct Encoding {
    schema: TableSchema,
    rows: RowEncoder,
    names: Names,
}

#[async_trait]
impl Applier for SnowflakeApplier {
    fn position(&self) -> Lsn {
        self.position
    }

    async fn write(&mut self, table: &TableSchema, changes: Vec<RowChange>, _: Vec<Position>, counts: Counts) -> Result<(), Error> {
        let doing = format!("applying changes to {}", table.destination);
        let sum = self.counts.entry(table.number).or_insert(Counted { inserts: 0, updates: 0, deletes: 0 });
        sum.inserts += counts.inserts;
        sum.updates += counts.updates;
        sum.deletes += counts.deletes;
        self.counted.insert(table.number);
        if changes.is_empty() {
            return Ok(());
        }
        self.encoding(table, &doing).await?;
        let Some(encoding) = self.encodings.get(&table.number) else { return Err(gone(&self.at.brief)) };
        let mut batch = Batch::default();
        for change in &changes {
            batch.add(&encoding.rows, &encoding.names, change).map_err(|e| refused(table, &e, &doing))?;
        }
        self.batch += 1;
        self.staged += 1;
        let (path, name) = (format!("apply/{}/", self.token.replace('/', "-")), format!("{}.csv.zst", self.batch));
        let place = self.at.place(&path).await?;
        let mut file = place.file(&name)?;
        let written = async {
            file.write(&batch.rows).await?;
            file.finish().await
        };
        written.await.inspect_err(|_| self.at.stage.forget())?;
        let copy = encoding.names.stage_rows(table, place.from(), name, self.batch);
        let statements = encoding.names.statements(&batch, self.batch);
        let staged = self.run(&copy, &doing).await?.sum("rows_loaded");
        if staged != batch.count {
            return Err(Error::Transient(format!("{doing}: {} rows were staged and {staged} arrived", batch.count)));
        }
        self.pending.extend(statements.into_iter().map(|sql| (doing.clone(), sql)));
        Ok(())
    }

    async fn truncate(&mut self, table: &TableSchema, _: Position) -> Result<(), Error> {
        let names = Names::new(table, &self.at.quoted(&table.destination), String::new(), Own::of(&self.at.brief));
        self.pending.push((format!("applying TRUNCATE to {}", table.destination), names.empty()));
        Ok(())
    }

    async fn add_column(&mut self, table: &TableSchema, column: usize, fill: Option<&str>) -> Result<(), Error> {
        let doing = format!("adding a column to {}", table.destination);
        let Some(added) = table.columns.get(column) else {
            return Err(permanent("ColumnMissing", format!("{doing}: its schema does not have it")));
        };
        let (whole, name) = (self.at.quoted(&table.destination), ident(&added.destination));
        let fill = fill.map(|fill| self.as_expression(table, column, fill, &doing)).transpose()?;
        let there = attributes(&self.at, &table.destination).await?.iter().any(|a| a.name == added.destination);
        // Rows that are written later bring their value, so that the default is that of the rows before them for good.
        let default = match &fill {
            Some(Fill::Constant(value)) => format!(" DEFAULT {value}"),
            _ => String::new(),
        };
        let sql = format!("ALTER TABLE {whole} ADD COLUMN IF NOT EXISTS {name} {}{default}", added.destination_type);
        self.alter(table, &sql, &doing).await?;
        // What no column may have by default, and what somebody has added already, comes with the batch.
        match fill {
            Some(Fill::Computed(value)) => self.pending.push((doing, format!("UPDATE {whole} SET {name} = {value} WHERE {name} IS NULL"))),
            Some(Fill::Constant(value)) if there => {
                self.pending.push((doing, format!("UPDATE {whole} SET {name} = {value} WHERE {name} IS NULL")))
            }
            _ => {}
        }
        Ok(())
    }

    async fn allow_null(&mut self, table: &TableSchema, column: usize) -> Result<TableSchema, Error> {
        let doing = format!("allowing NULL in a column of {}", table.destination);
        let Some(relaxed) = table.columns.get(column) else {
            return Err(permanent("ColumnMissing", format!("{doing}: its schema does not have it")));
        };
        if attributes(&self.at, &table.destination).await?.iter().any(|a| a.name == relaxed.destination && a.not_null) {
            let sql =
                format!("ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL", self.at.quoted(&table.destination), ident(&relaxed.destination));
            self.alter(table, &sql, &doing).await?;
        }
        Ok(table.clone())
    }

    async fn drift(&mut self, table: &TableSchema, drift: &BTreeSet<String>) -> Result<(), Error> {
        self.record(self.at.entry(table.number, 0, &Drifted { drift: drift.clone() })?).await
    }

    async fn park(&mut self, table: &TableSchema, why: &str) -> Result<(), Error> {
        self.record(self.at.entry(table.number, 0, &Parked { why: why.into() })?).await
    }

    async fn commit(&mut self, position: Lsn) -> Result<(), Error> {
        if self.pending.is_empty() && self.counted.is_empty() {
            return self.rest(position).await;
        }
        let Some(session) = self.session.take() else { return Err(Error::Transient("the change stream's session is gone".into())) };
        let mut transaction = Transaction::begin_in(&self.at, session).await?;
        transaction.fence(&owner::condition(&self.at, &self.token)?).await?;
        for (doing, sql) in &self.pending {
            if let Err(error) = transaction.query(sql, doing).await {
                transaction.roll_back().await;
                return Err(error);
            }
        }
        let mut entries = vec![self.at.entry(0, 0, &Applied { lsn: position })?];
        for number in &self.counted {
            if let Some(counted) = self.counts.get(number) {
                entries.push(self.at.entry(*number, 0, counted)?);
            }
        }
        transaction.record(&entries).await?;
        self.session = Some(transaction.commit_and_keep().await?);
        self.at.owner.writes_more();
        self.pending.clear();
        self.counted.clear();
        self.position = position;
        self.tidy().await
    }
}

fn refused(table: &TableSchema, refused: &Refused, doing: &str) -> Error {
    let column = table.copied().nth(refused.column).map_or("", |c| c.destination.as_str());
    permanent("ValueRefused", format!("{doing}: a value of column {column:?} cannot be written: {}", refused.why))
}

/// What fills a new column: something that it may have by default, or not.
enum Fill {
    Constant(String),
    Computed(String),
}

impl SnowflakeApplier {
    /// Makes a position durable up to which nothing has changed, and wakes no warehouse for it. Whoever takes the stream over, or begins a newer epoch, writes where this is
    /// noted: the ledger's rows are only asked if the last note is not ours.
    async fn rest(&mut self, position: Lsn) -> Result<(), Error> {
        if self.at.noted().await?.is_none_or(|note| note.owner != self.token) {
            self.at.fence().await?;
            owner::check(&self.at, &self.token).await?;
        }
        self.at.note(&self.token, position).await?;
        self.position = position;
        Ok(())
    }

    /// Records a fact at once.
    async fn record(&self, entry: Entry) -> Result<(), Error> {
        self.at.record(&[entry]).await?;
        self.at.owner.writes_more();
        Ok(())
    }

    async fn run(&mut self, sql: &str, doing: &str) -> Result<super::answer::Answer, Error> {
        let Some(session) = &mut self.session else { return Err(Error::Transient("the change stream's session is gone".into())) };
        let outcome = session.query(sql).await;
        if outcome.as_ref().is_err_and(|refusal| refusal.ends_session()) {
            self.session = None;
        }
        outcome.map_err(|e| meaning(&e, doing))
    }

    /// Makes sure that the table's changes can be encoded and staged.
    async fn encoding(&mut self, table: &TableSchema, doing: &str) -> Result<(), Error> {
        if self.encodings.get(&table.number).is_some_and(|encoding| encoding.schema == *table) {
            return Ok(());
        }
        let rows = RowEncoder::new(table, self.at.options(table).out_of_range);
        let rows = rows.map_err(|why| permanent("TypeUnsupported", format!("{doing}: {why}")))?;
        // Another one for another schema: rows that are pending are in the one before.
        let stage = self.at.to.table(&self.at.to.schema, &format!("_MIRROR_OPERATOR_BATCH_{}_{}", table.number, self.batch));
        let names = Names::new(table, &self.at.quoted(&table.destination), stage, Own::of(&self.at.brief));
        self.run(&names.create_stage(), doing).await?;
        self.encodings.insert(table.number, Encoding { schema: table.clone(), rows, names });
        Ok(())
    }

    /// Changes a live table and records its new schema. DDL is in no transaction: what is pending does not mind.
    async fn alter(&mut self, table: &TableSchema, sql: &str, doing: &str) -> Result<(), Error> {
        self.at.fence().await?;
        self.at.client()?.query(sql, doing).await?;
        let Some(known) = self.tables.get_mut(&table.number) else { return Err(gone(&self.at.brief)) };
        known.schema = table.clone();
        let entry = self.at.entry(table.number, known.generation.into(), known)?;
        self.record(entry).await
    }

    /// A value's text at PostgreSQL as an expression of the column's type.
    fn as_expression(&self, table: &TableSchema, column: usize, fill: &str, doing: &str) -> Result<Fill, Error> {
        let mut alone = table.clone();
        alone.columns = table.columns.get(column).cloned().into_iter().collect();
        alone.identity = Identity::FullRow;
        let encoder = RowEncoder::new(&alone, self.at.options(table).out_of_range);
        let encoder = encoder.map_err(|why| permanent("TypeUnsupported", format!("{doing}: {why}")))?;
        let mut field = Vec::new();
        encoder.cell(0, &Cell::Text(fill.to_string().into()), &mut field).map_err(|e| refused(&alone, &e, doing))?;
        let text = statements::unquoted(&field);
        let type_ = alone.columns.first().and_then(|c| Type::parse(&c.destination_type)).unwrap_or(Type::Varchar(None));
        let literal = super::quote::literal(&text);
        Ok(match type_ {
            Type::Number(..) => Fill::Constant(text),
            Type::Boolean => Fill::Constant(if text == "t" { "TRUE" } else { "FALSE" }.into()),
            Type::Varchar(_) => Fill::Constant(literal),
            Type::Float | Type::Date | Type::Time(_) | Type::TimestampNtz(_) | Type::TimestampLtz(_) | Type::TimestampTz(_) => {
                Fill::Constant(format!("CAST({literal} AS {type_})"))
            }
            Type::Binary => Fill::Computed(format!("TO_BINARY({literal}, 'HEX')")),
            Type::Variant | Type::Object | Type::Array | Type::Geography | Type::Geometry => Fill::Computed(type_.of_text(&literal)),
        })
    }

    /// Empties what was staged, now and then. What is left does no harm.
    async fn tidy(&mut self) -> Result<(), Error> {
        if self.staged < BATCHES {
            return Ok(());
        }
        self.staged = 0;
        let stages: Vec<String> = self.encodings.values().map(|encoding| encoding.names.clear_stage()).collect();
        for sql in stages {
            self.run(&sql, "emptying a temporary table").await?;
        }
        self.at.clean(&format!("apply/{}/", self.token.replace('/', "-"))).await
    }
}
