//! Applies the change stream. Each batch is one transaction of rows, statistics and checkpoint: exactly once.
//!
//! Changes are copied into a stage (a temporary table) and brought from there into the table set by set.

mod owner;
mod refusal;
mod stage;
mod statements;

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use bytes::Bytes;
use futures::SinkExt;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

pub use owner::Owner;

use super::shadow::AFTER_LOADING;
use crate::{
    brief::Brief,
    destination::{Applier, Counts, Error, Position, ROWS_MISSING, RowChange, permanent},
    postgres::{self, Connection, Lsn, ident, literal, qualified},
    table::TableSchema,
};
use refusal::meaning;
use statements::Names;

/// The stage is read once from end to end, the tables through their keys: another plan would read a large table whole for a small batch. The server may
/// end a session whose pod is gone.
const SETTINGS: &str = "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off; \
     SET tcp_keepalives_idle = 20; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3; SET client_connection_check_interval = 2000";

/// Readers are not kept waiting behind a lock that is not granted.
const LOCK_TIMEOUT: &str = "2s";

/// Opens the applier for the process that `owner` stands for.
pub async fn open(brief: &Brief, to: &Connection, owner: &Owner) -> Result<Box<dyn Applier>, Error> {
    let role = brief.application_name("apply");
    let client = postgres::connect(to, &role).await.map_err(|e| Error::Transient(e.to_string()))?;
    client.batch_execute(SETTINGS).await.map_err(|e| meaning(&e, "opening the change stream's session"))?;
    let mirror = format!("mirror = {}::uuid AND epoch = {}", literal(&brief.mirror_uid), brief.epoch);
    let may = if brief.is_live() { "(swapped_at IS NOT NULL OR caught_up_at IS NULL)" } else { "swapped_at IS NOT NULL" };
    let (token, position) = owner.take_over(&client, &mirror, may, &role).await?;
    let shadows = shadows(&client, brief).await?;
    Ok(Box::new(PostgresApplier {
        client,
        brief: brief.clone(),
        mirror,
        token,
        position,
        open: false,
        shadows,
        stages: HashMap::new(),
        counts: HashMap::new(),
    }))
}

struct PostgresApplier {
    client: Client,
    brief: Brief,
    /// Condition for this epoch's rows in the ledger.
    mirror: String,
    token: String,
    position: Lsn,
    /// Whether a transaction is open.
    open: bool,
    /// The tables' names while they do not bear the live ones. They do not change while this applier may commit.
    shadows: HashMap<u32, String>,
    stages: HashMap<u32, Stage>,
    counts: HashMap<u32, Counts>,
}

/// The names of the shadows, if the epoch is not swapped.
async fn shadows(client: &Client, brief: &Brief) -> Result<HashMap<u32, String>, Error> {
    let sql = "SELECT t.number, t.shadow_name, t.destination_schema FROM _mirror_operator.table t JOIN _mirror_operator.epoch e USING (mirror, epoch)
               WHERE mirror = $1::text::uuid AND epoch = $2 AND e.swapped_at IS NULL";
    let rows = client.query(sql, &[&brief.mirror_uid, &(brief.epoch as i32)]).await.map_err(|e| meaning(&e, "reading the ledger"))?;
    // From now on they change, for as long as it takes until somebody approves the swap.
    let tended =
        rows.iter().map(|row| format!("ALTER TABLE {} RESET ({AFTER_LOADING})", qualified(row.get(2), row.get(1)))).collect::<Vec<_>>();
    client.batch_execute(&tended.join("; ")).await.map_err(|e| meaning(&e, "giving the shadows to autovacuum"))?;
    Ok(rows.iter().map(|row| (row.get::<_, i32>(0) as u32, row.get(1))).collect())
}

/// A table's stage in this session.
struct Stage {
    schema: TableSchema,
    names: Names,
    copy: Statement,
    /// Whether this transaction has filled it.
    used: bool,
}

#[async_trait]
impl Applier for PostgresApplier {
    fn position(&self) -> Lsn {
        self.position
    }

    async fn write(&mut self, table: &TableSchema, changes: Vec<RowChange>, _: Vec<Position>, counts: Counts) -> Result<(), Error> {
        self.begin().await?;
        let sum = self.counts.entry(table.number).or_default();
        sum.inserts += counts.inserts;
        sum.updates += counts.updates;
        sum.deletes += counts.deletes;
        self.write_rows(table, changes).await.map_err(|e| refusal::of_write(&e, table))
    }

    async fn truncate(&mut self, table: &TableSchema, _: Position) -> Result<(), Error> {
        self.begin().await?;
        let emptied = self.client.batch_execute(&self.names(table, "").empty()).await;
        emptied.map_err(|e| meaning(&e, &format!("applying TRUNCATE to {}", table.destination)))
    }

    async fn add_column(&mut self, table: &TableSchema, column: usize, fill: Option<&str>) -> Result<(), Error> {
        self.begin().await?;
        let doing = format!("adding a column to {}", table.destination);
        let Some(column) = table.columns.get(column) else {
            return Err(permanent("ColumnMissing", format!("{doing}: its schema does not have it")));
        };
        let live = self.target(table);
        let (name, kind) = (ident(&column.destination), &column.destination_type);
        let exists = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = $1::text::regclass AND attname = $2 AND NOT attisdropped)";
        let exists = self.client.query_one(exists, &[&live, &column.destination]).await.map_err(|e| meaning(&e, &doing))?;
        let sql = match (exists.get(0), fill.map(|fill| format!("{}::{kind}", literal(fill)))) {
            (true, None) => String::new(),
            // Somebody has added it already.
            (true, Some(fill)) => format!("UPDATE {live} SET {name} = {fill} WHERE {name} IS NULL"),
            (false, None) => format!("ALTER TABLE {live} ADD COLUMN {name} {kind}"),
            // A constant default fills the rows that are there without touching them; it is not the destination's default after that.
            (false, Some(fill)) => {
                format!("ALTER TABLE {live} ADD COLUMN {name} {kind} DEFAULT {fill}; ALTER TABLE {live} ALTER COLUMN {name} DROP DEFAULT")
            }
        };
        self.alter(table, &sql, &doing).await
    }

    async fn allow_null(&mut self, table: &TableSchema, column: usize) -> Result<TableSchema, Error> {
        self.begin().await?;
        let doing = format!("allowing NULL in a column of {}", table.destination);
        let Some(column) = table.columns.get(column) else {
            return Err(permanent("ColumnMissing", format!("{doing}: its schema does not have it")));
        };
        let live = self.target(table);
        // People may have dropped it already; readers are not kept out for nothing.
        let sql = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = $1::text::regclass AND attname = $2 AND attnotnull)";
        let strict = self.client.query_one(sql, &[&live, &column.destination]).await.map_err(|e| meaning(&e, &doing))?;
        let sql = match strict.get(0) {
            true => format!("ALTER TABLE {live} ALTER COLUMN {} DROP NOT NULL", ident(&column.destination)),
            false => String::new(),
        };
        self.alter(table, &sql, &doing).await?;
        Ok(table.clone())
    }

    async fn drift(&mut self, table: &TableSchema, drift: &BTreeSet<String>) -> Result<(), Error> {
        self.begin().await?;
        self.client.batch_execute(&self.add_drift(table, drift)).await.map_err(|e| meaning(&e, "writing the ledger"))
    }

    async fn park(&mut self, table: &TableSchema, why: &str) -> Result<(), Error> {
        self.begin().await?;
        let sql =
            format!("UPDATE _mirror_operator.table SET parked = {} WHERE {} AND number = {}", literal(why), self.mirror, table.number);
        self.client.batch_execute(&sql).await.map_err(|e| meaning(&e, "writing the ledger"))
    }

    async fn commit(&mut self, position: Lsn) -> Result<(), Error> {
        self.begin().await?;
        let mut sql = format!("{}; ", fence(&self.brief));
        for (number, c) in self.counts.drain() {
            sql += &format!(
                "UPDATE _mirror_operator.table SET inserts = inserts + {}, updates = updates + {}, deletes = deletes + {} WHERE {} AND number = {number}; ",
                c.inserts, c.updates, c.deletes, self.mirror
            );
        }
        sql += &format!(
            "UPDATE _mirror_operator.epoch SET applied_lsn = '{position}', applied_at = clock_timestamp() WHERE {} AND applier = {} \
             AND coalesce(applied_lsn, start_lsn) = '{}' AND (SELECT m.epoch FROM _mirror_operator.mirror m WHERE m.mirror = {}::uuid) <= {}",
            self.mirror,
            literal(&self.token),
            self.position,
            literal(&self.brief.mirror_uid),
            self.brief.epoch
        );
        let doing = "committing a batch of changes";
        let answers = self.client.simple_query(&sql).await.map_err(|e| meaning(&e, doing))?;
        if completed(&answers).last() != Some(&1) {
            return Err(owner::why_not(&self.client, &self.brief, &self.mirror, &self.token).await);
        }
        self.client.batch_execute("COMMIT").await.map_err(|e| meaning(&e, doing))?;
        self.open = false;
        self.position = position;
        self.stages.values_mut().for_each(|stage| stage.used = false);
        Ok(())
    }
}

impl PostgresApplier {
    /// Opens the batch's transaction unless it is open, and looks at the fence: a large transaction should not go on for long in vain.
    async fn begin(&mut self) -> Result<(), Error> {
        let start = if self.open { "" } else { "BEGIN; " };
        let sql = format!(
            "{start}SELECT epoch FROM _mirror_operator.mirror WHERE mirror = {}::uuid AND epoch <= {}",
            literal(&self.brief.mirror_uid),
            self.brief.epoch
        );
        let answers = self.client.simple_query(&sql).await.map_err(|e| meaning(&e, "beginning a batch of changes"))?;
        self.open = true;
        match completed(&answers).last() {
            Some(1) => Ok(()),
            _ => Err(owner::why_not(&self.client, &self.brief, &self.mirror, &self.token).await),
        }
    }

    /// Changes the table's definition and records it as `table` has it.
    async fn alter(&mut self, table: &TableSchema, sql: &str, doing: &str) -> Result<(), Error> {
        let schema = serde_json::to_string(table).map_err(|e| permanent("LedgerUnreadable", format!("{doing}: {e}")))?;
        let record = format!(
            "UPDATE _mirror_operator.table SET schema = {}::jsonb WHERE {} AND number = {}",
            literal(&schema),
            self.mirror,
            table.number
        );
        let all = format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; {sql}; SET LOCAL lock_timeout = 0; {record}");
        self.client.batch_execute(&all).await.map_err(|e| meaning(&e, doing))
    }

    async fn write_rows(&mut self, table: &TableSchema, changes: Vec<RowChange>) -> Result<(), tokio_postgres::Error> {
        self.prepare_stage(table).await?;
        let Some(stage) = self.stages.get_mut(&table.number) else { return Ok(()) };
        if stage.used {
            self.client.batch_execute(&format!("TRUNCATE {}", stage.names.stage)).await?;
        }
        stage.used = true;
        let staged = stage::encode(&stage.names, changes);
        let sink = self.client.copy_in::<_, Bytes>(&stage.copy).await?;
        futures::pin_mut!(sink);
        for piece in staged.pieces {
            sink.send(piece).await?;
        }
        sink.finish().await?;
        let answers = self.client.simple_query(&staged.statements.join("; ")).await?;
        let counts = completed(&answers);
        let missing = staged.expected.into_iter().any(|(statement, rows)| counts.get(statement).copied().unwrap_or(0) != rows);
        if missing {
            tracing::warn!(table = %table.destination, "{ROWS_MISSING}");
            self.client.batch_execute(&self.add_drift(table, &BTreeSet::from([ROWS_MISSING.to_string()]))).await?;
        }
        Ok(())
    }

    /// Adds to what is known of a table's drift, whoever has found the rest.
    fn add_drift(&self, table: &TableSchema, drift: &BTreeSet<String>) -> String {
        let list: Vec<_> = drift.iter().map(|d| literal(d)).collect();
        format!(
            "UPDATE _mirror_operator.table SET drift = ARRAY(SELECT DISTINCT unnest(coalesce(drift, '{{}}') || ARRAY[{}]::text[]) ORDER BY 1) \
             WHERE {} AND number = {}",
            list.join(", "),
            self.mirror,
            table.number
        )
    }

    /// Makes the table's stage unless this session has one for its present columns.
    async fn prepare_stage(&mut self, table: &TableSchema) -> Result<(), tokio_postgres::Error> {
        if self.stages.get(&table.number).is_some_and(|stage| stage.schema == *table) {
            return Ok(());
        }
        let names = self.names(table, &format!("mo_stage_{}", table.number));
        self.client.batch_execute(&format!("DROP TABLE IF EXISTS {}; {}", names.stage, names.create_stage())).await?;
        let copy = self.client.prepare(&names.copy()).await?;
        self.stages.insert(table.number, Stage { schema: table.clone(), names, copy, used: false });
        Ok(())
    }

    /// The table that changes are applied to, quoted.
    fn target(&self, table: &TableSchema) -> String {
        let live = &table.destination;
        qualified(&live.schema, self.shadows.get(&table.number).unwrap_or(&live.name))
    }

    fn names(&self, table: &TableSchema, stage: &str) -> Names {
        let flag = if self.brief.soft_delete.enabled { self.brief.soft_delete.column.as_str() } else { "" };
        Names::new(self.target(table), table, stage, flag, &self.brief.synced_at_column)
    }
}

/// Waits for whoever begins a newer epoch, swaps or renews a snapshot, and keeps them waiting until the commit. The key is the one that those take.
fn fence(brief: &Brief) -> String {
    let key = literal(&format!("mirror-operator fence {}", brief.mirror_uid));
    format!("SELECT pg_advisory_xact_lock_shared(hashtextextended({key}, 0))")
}

/// Rows that each statement touched.
fn completed(answers: &[SimpleQueryMessage]) -> Vec<u64> {
    answers.iter().filter_map(|m| if let SimpleQueryMessage::CommandComplete(n) = m { Some(*n) } else { None }).collect()
}
