//! What the suite needs to know of a kind of destination, and how to get through the steps of an epoch.

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use mirror_operator::{
    api::{mirror, resync},
    brief::{Brief, DestinationPeer},
    destination::{Boundary, Chunk, Destination, Error, Loaded, Plan, Position},
    postgres::{Connection, Lsn},
    report::{Failure, SwapReport},
    table::{Column, Identity, TableName, TableSchema},
};

/// A kind of destination under test. One value is one empty database of its own.
#[async_trait]
pub trait Fixture: Clone + Send + Sync + 'static {
    /// Whether each mirror has a ledger of its own, rather than all of a database one.
    const LEDGER_A_MIRROR: bool;
    /// Of so many replies one is lost by a run of the tests; fewer than any step asks for.
    const STRIDE: u32 = 1;
    /// An empty database.
    async fn new() -> Self;
    /// The brief of an epoch, with defaults for everything else.
    fn brief(&self, epoch: u32) -> Brief;
    /// The same through a network that cuts the connection after the request with this number was done; returns whether that has happened.
    async fn through_cut(&self, brief: Brief, at: u32) -> (Brief, Box<dyn Fn() -> bool + Send + Sync>);
    /// Runs statements of the destination's own.
    async fn run(&self, sql: &str);
    /// The rows of a query as texts, `∅` for NULL, columns joined by `|`, in order.
    async fn rows(&self, sql: &str) -> Vec<String>;
    /// A table of the suite as this kind has it: PostgreSQL's types and the schema `public` are turned into its own.
    fn adapt(&self, table: TableSchema) -> TableSchema;
    /// The rows of a table of the suite, by its first column: the columns as texts, `∅` for NULL, and whether the row is flagged, `t` or `f`; joined by `|`.
    async fn read(&self, table: &str, columns: &[&str]) -> Vec<String>;
    /// How many rows a table holds, flagged ones and all.
    async fn count(&self, table: &str) -> usize;
    /// What a table is called while it is loaded by the first epoch.
    fn shadow(&self, table: &str) -> String;
    /// Epochs that the ledger knows, in order.
    async fn epochs(&self) -> Vec<u32>;
    /// Flags rows of `people` as deleted, at this time in UTC.
    async fn flag(&self, ids: &[i64], at: &str);
    /// Of the flagged rows of `people` that this epoch carried, the key and the time, or `begun` if that is when the epoch began.
    async fn times(&self, epoch: u32) -> Vec<String>;
    /// Names of all tables outside the ledger, in order.
    async fn tables(&self) -> Vec<String>;
    /// Removes the ledger as if it had never been there.
    async fn forget_ledger(&self);
}

/// Runs generic tests for every kind of destination.
macro_rules! for_every_kind {
    ($($name:ident;)*) => {
        mod on_a_postgresql_server {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name::<super::OnPostgres>().await;
            })*
        }
        mod on_bigquery {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name::<super::OnBigQuery>().await;
            })*
        }
        mod on_a_clickhouse_server {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name::<super::OnClickHouse>().await;
            })*
        }
        mod on_a_snowflake_account {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name::<super::OnSnowflake>().await;
            })*
        }
    };
}
pub(crate) use for_every_kind;

/// Opens an epoch.
pub async fn open(brief: &Brief) -> Box<dyn Destination> {
    mirror_operator::destination::open(brief).await.unwrap()
}

/// The brief of an epoch of a mirror.
pub fn brief(uid: &str, epoch: u32, source: Connection, destination: DestinationPeer) -> Brief {
    Brief {
        namespace: "default".into(),
        mirror: "shop".into(),
        mirror_uid: uid.into(),
        epoch,
        previous_epoch: epoch - 1,
        resync: format!("shop-{epoch}"),
        resync_uid: format!("0a1b2c3d-0000-4000-9000-{epoch:012}"),
        pipeline_url: String::new(),
        source,
        destination,
        publication: None,
        own_slot: None,
        tables: vec![],
        soft_delete: mirror::SoftDelete::default(),
        synced_at_column: "_PEERDB_SYNCED_AT".into(),
        snapshot: mirror::Snapshot::default(),
        replication: mirror::Replication::default(),
        pods: Default::default(),
        kept: Vec::new(),
        handover: Default::default(),
        sequences: Default::default(),
        mode: Default::default(),
        load: true,
        carry: resync::Carry::default(),
        verification: Default::default(),
        old_snapshot_wait_millis: 2_000,
        on_old_snapshot: resync::OnOldSnapshot::Proceed,
        keep_old_millis: 0,
    }
}

/// `public.<name>` with columns given as `name type`, `!` for NOT NULL; the first one is the key.
pub fn table(number: u32, name: &str, columns: &[&str]) -> TableSchema {
    let columns = columns
        .iter()
        .map(|text| {
            let (name, type_) = text.rsplit_once(' ').unwrap();
            let (type_, not_null) = type_.strip_suffix('!').map_or((type_, false), |t| (t, true));
            column(name, type_, not_null)
        })
        .collect();
    let name = TableName { schema: "public".into(), name: name.into() };
    TableSchema {
        number,
        source: name.clone(),
        source_oid: 1000 + number,
        destination: name,
        columns,
        identity: Identity::Key(vec![0]),
        partition_key: None,
    }
}

/// A column that travels as text.
pub fn column(name: &str, type_: &str, not_null: bool) -> Column {
    Column {
        source: name.into(),
        destination: name.into(),
        source_type: type_.into(),
        base_type: None,
        source_type_oid: 25,
        destination_type: type_.into(),
        not_null,
        generated: None,
        binary: false,
        as_text: false,
    }
}

/// A plan with these numbers of chunks for the tables, all in one partition.
pub fn plan(chunks: &[u32]) -> Plan {
    let mut plan = Plan { partitions: 1, ..Plan::default() };
    for (table, &count) in chunks.iter().enumerate() {
        for _ in 0..count {
            let number = plan.chunks.len() as u32;
            plan.chunks.push(Chunk { number, partition: 0, table: table as u32, relation: 1, first: 0, end: None, bytes: 1 });
        }
    }
    plan
}

/// The boundary of a generation.
pub fn boundary(generation: u32) -> Boundary {
    Boundary { generation, lsn: Lsn(1000 * u64::from(generation)) }
}

/// Where a change was made that is a transaction of its own.
pub fn made(position: u64) -> Position {
    Position { commit: Lsn(position), change: Lsn(position) }
}

/// Loads one chunk from lines of COPY text.
pub async fn load(at: &dyn Destination, table: &TableSchema, chunk: u32, lines: &[&str]) -> Result<Loaded, Error> {
    let pieces: Vec<Result<Bytes, String>> = lines.iter().map(|line| Ok(Bytes::from(format!("{line}\n")))).collect();
    let chunks = plan(&[chunk + 1]).chunks;
    at.load_chunk(table, chunks.last().unwrap(), 1, futures::stream::iter(pieces).boxed()).await
}

/// A table and its rows as lines of COPY text: one chunk.
pub type Filled<'a> = (TableSchema, &'a [&'a str]);

/// Begins an epoch, makes its shadows and loads them.
pub async fn until_loaded(at: &dyn Destination, tables: &[Filled<'_>]) {
    at.begin().await.unwrap();
    let schemas: Vec<TableSchema> = tables.iter().map(|(schema, _)| schema.clone()).collect();
    at.create_shadows(boundary(1), &schemas, &plan(&vec![1; tables.len()])).await.unwrap();
    for (number, (schema, lines)) in tables.iter().enumerate() {
        load(at, schema, number as u32, lines).await.unwrap();
    }
}

/// The rest, up to the swap.
pub async fn from_loaded(at: &dyn Destination) -> Result<SwapReport, Error> {
    at.seal().await?;
    at.carry().await?;
    at.swap().await
}

/// A whole epoch.
pub async fn whole(at: &dyn Destination, tables: &[Filled<'_>]) -> SwapReport {
    until_loaded(at, tables).await;
    from_loaded(at).await.unwrap()
}

/// Why something is refused for good.
pub fn refused<T>(outcome: Result<T, Error>) -> Failure {
    match outcome {
        Err(Error::Permanent(failure)) => failure,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was not refused"),
    }
}
