//! What the suite needs to know of a kind of destination, and how to get through the steps of an epoch.

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use mirror_operator::{
    brief::Brief,
    destination::{Boundary, Chunk, Destination, Error, Loaded, Plan},
    postgres::Lsn,
    report::SwapReport,
    table::{Column, Identity, TableName, TableSchema},
};

/// A kind of destination under test. One value is one empty database of its own.
#[async_trait]
pub trait Fixture: Clone + Send + Sync + 'static {
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
    /// Names of all tables outside the ledger, in order.
    async fn tables(&self) -> Vec<String>;
    /// Removes the ledger as if it had never been there.
    async fn forget_ledger(&self);
}

/// Opens an epoch.
pub async fn open(brief: &Brief) -> Box<dyn Destination> {
    mirror_operator::destination::open(brief).await.unwrap()
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
    TableSchema { number, source: name.clone(), source_oid: 1000 + number, destination: name, columns, identity: Identity::Key(vec![0]) }
}

/// A column that travels as text.
pub fn column(name: &str, type_: &str, not_null: bool) -> Column {
    Column {
        source: name.into(),
        destination: name.into(),
        source_type: type_.into(),
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
            plan.chunks.push(Chunk { number, partition: 0, table: table as u32, relation: 1, first_block: 0, end_block: None, bytes: 1 });
        }
    }
    plan
}

/// The boundary of a generation.
pub fn boundary(generation: u32) -> Boundary {
    Boundary { generation, lsn: Lsn(1000 * u64::from(generation)) }
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
