//! Rows on their way into tables: staged by the Storage Write API, where no reader of the tables sees them. I/O.

use std::collections::HashMap;

use serde_json::json;
use tokio::time::{Duration, Instant};

use super::{
    super::{
        BigQuery,
        encode::Own,
        error::{Refusal, meaning},
        ledger::LEDGER,
        live,
        mark::{Mark, State},
    },
    statements::{BATCH, Names},
};
use crate::{
    destination::{Error, gone},
    table::{TableName, TableSchema},
};

/// When a stage gives way to another: MERGE reads what belongs to its batch by the clustering, not the whole.
const ROWS: u64 = 2_000_000;
const AGE: Duration = Duration::from_secs(12 * 3600);
/// When BigQuery drops a stage that nobody has dropped, in milliseconds.
const EXPIRES: i64 = 24 * 3600 * 1000;
/// Rows of one request, in bytes.
const REQUEST: usize = 4 << 20;

/// The stages of one applier, by table and columns.
pub(super) struct Stages {
    token: String,
    open: HashMap<(u32, String), Stage>,
    /// Those that are of no more use once what was staged is committed.
    full: Vec<TableName>,
    batches: i64,
}

struct Stage {
    name: TableName,
    rows: u64,
    since: Instant,
}

impl Stages {
    pub(super) fn new(token: &str) -> Self {
        Self { token: token.replace('/', "_"), open: HashMap::new(), full: vec![], batches: 0 }
    }

    /// Stages rows; returns how a statement names them.
    pub(super) async fn put(
        &mut self,
        at: &BigQuery,
        table: &TableSchema,
        names: &Names,
        rows: Vec<Vec<u8>>,
        doing: &str,
    ) -> Result<String, Error> {
        self.batches += 1;
        let key = (table.number, names.stage_definition());
        if self.open.get(&key).is_some_and(|stage| stage.rows > ROWS || stage.since.elapsed() > AGE)
            && let Some(stage) = self.open.remove(&key)
        {
            self.full.push(stage.name);
        }
        if !self.open.contains_key(&key) {
            let name = format!("{LEDGER}stage_{}_{}_{}", self.token, table.number, self.batches);
            let name = TableName { schema: table.destination.schema.clone(), name };
            self.create(at, table, &name, names, doing).await?;
            self.open.insert(key.clone(), Stage { name, rows: 0, since: Instant::now() });
        }
        let Some(stage) = self.open.get_mut(&key) else { return Err(gone(&at.brief)) };
        let is_new = stage.rows == 0;
        stage.rows += rows.len() as u64;
        let name = stage.name.clone();
        let writer = at.writer().await?;
        let encoder = names.encoder(Own::Number(self.batches))?;
        let expected = rows.len() as u64;
        let requests = futures::stream::iter(requests(rows, encoder.own()));
        let written = async {
            let stream = if is_new { writer.open_new(&name).await? } else { writer.open(&name).await? };
            let sent = writer.append(&stream, encoder.descriptor(), requests).await?;
            writer.finalize(&stream).await?;
            writer.commit(&name, &stream).await?;
            Ok::<u64, Refusal>(sent)
        };
        let sent = written.await.map_err(|e| meaning(&e, doing))?;
        if sent != expected {
            return Err(Error::Transient(format!("{doing}: {sent} of {expected} rows were staged")));
        }
        Ok(format!("(SELECT * FROM {} WHERE {BATCH} = {})", at.quoted(&name), self.batches))
    }

    async fn create(&self, at: &BigQuery, table: &TableSchema, name: &TableName, names: &Names, doing: &str) -> Result<(), Error> {
        let expires = jiff::Timestamp::now().as_millisecond() + EXPIRES;
        let mark = Mark::of(&at.brief, table.number, State::Stage);
        let resource = json!({
            "schema": { "fields": names.stage_fields() },
            "clustering": { "fields": [BATCH] },
            "expirationTime": expires.to_string(),
            "labels": mark.labels(),
        });
        at.client()?.create_table(name, resource).await.map_err(|e| meaning(&e, doing))
    }

    /// What was staged is in the tables: drops what is full.
    pub(super) async fn committed(&mut self, at: &BigQuery) -> Result<(), Error> {
        for name in std::mem::take(&mut self.full) {
            live::drop_table(at, &name).await?;
        }
        Ok(())
    }
}

/// Rows in portions of one request each, with the own fields at the end of each.
fn requests(rows: Vec<Vec<u8>>, own: Vec<u8>) -> Vec<Vec<Vec<u8>>> {
    let (mut all, mut size) = (vec![vec![]], 0);
    for mut row in rows {
        row.extend_from_slice(&own);
        if size > REQUEST {
            size = 0;
            all.push(vec![]);
        }
        size += row.len() + 8;
        if let Some(last) = all.last_mut() {
            last.push(row);
        }
    }
    all
}
