//! What pods ask again and again: how far an epoch is. Answered without a query as long as nothing has changed.
//!
//! A query of the ledger is billed 10 MB, the least that BigQuery bills, while its table's description costs nothing (BigQuery docs, "Pricing", "Free operations").
//! Statements change its `numRows` and `lastModifiedTime`; rows that were appended by the Storage Write API are seen in it somewhat later. What was read counts for
//! [`LONGEST`] at most whatever the description says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    BigQuery,
    ledger::{Applied, Begun, Carried, Counted, Done, Drifted, Facts, Parked, Planned, Sealed, Snapshot, Swapped, Table},
    live,
};
use crate::{
    destination::{EpochState, Error, LedgerTable},
    report::{Load, TableReport},
};

/// How long the ledger is taken to be as it was read because its description is.
const LONGEST: Duration = Duration::from_secs(30);
/// How long the same is taken for granted by the process that alone writes what it asks for.
const ALONE: Duration = Duration::from_secs(600);

/// What the ledger said last.
pub(super) struct Read {
    facts: Arc<Facts>,
    since: Instant,
    /// The ledger's description, as far as it tells of changes; `None` if there was no ledger. Of the time before the facts were read.
    version: Option<Value>,
    /// How much this process had written.
    writes: u64,
}

/// What the ledger says of this epoch now.
async fn now(at: &BigQuery) -> Result<Arc<Facts>, Error> {
    let mut last = at.read.lock().await;
    let writes = at.owner.writes();
    let version = live::find(at, &at.ledger()).await?.map(|ledger| {
        let of = |name: &str| ledger.resource[name].clone();
        json!([of("creationTime"), of("lastModifiedTime"), of("numRows"), of("streamingBuffer")])
    });
    if let Some(read) = last.as_ref().filter(|read| read.writes == writes && read.version == version && read.since.elapsed() < LONGEST) {
        return Ok(read.facts.clone());
    }
    let facts = Arc::new(if version.is_some() { at.facts(&[]).await? } else { Facts::default() });
    *last = Some(Read { facts: facts.clone(), since: Instant::now(), version, writes });
    Ok(facts)
}

/// The same for what only the process that owns the change stream writes while it does: nothing is asked as long as it has written nothing.
async fn of_stream(at: &BigQuery) -> Result<Arc<Facts>, Error> {
    if at.owner.owns()
        && let Some(read) = at.read.lock().await.as_ref()
        && read.writes == at.owner.writes()
        && read.since.elapsed() < ALONE
    {
        return Ok(read.facts.clone());
    }
    now(at).await
}

/// See [`Destination::state`](crate::destination::Destination::state).
pub(super) async fn state(at: &BigQuery) -> Result<Option<EpochState>, Error> {
    let facts = now(at).await?;
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
    let facts = now(at).await?;
    let table = |(number, _, table): (u32, u64, Table)| {
        let (sealed, parked) = (facts.is_sealed(number, table.generation)?, facts.get::<Parked>(number)?.map(|p| p.why));
        let drift = facts.get::<Drifted>(number)?.map(|d| d.drift).unwrap_or_default();
        let (measured, verified) = (facts.measured(number, table.generation)?, facts.verified(number, table.generation)?.is_some());
        Ok(LedgerTable { schema: table.schema, gate: table.gate, sealed, measured, verified, parked, drift })
    };
    facts.all::<Table>()?.into_iter().map(table).collect()
}

/// See [`Destination::progress`](crate::destination::Destination::progress).
pub(super) async fn progress(at: &BigQuery) -> Result<(Load, Vec<TableReport>), Error> {
    let facts = of_stream(at).await?;
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
    let verified = facts.verified(number, table.generation)?;
    let remark = verified.as_ref().and_then(|v| v.note.clone());
    let notes = [facts.get::<Sealed>(number)?.and_then(|s| s.note), carried.as_ref().and_then(|c| c.note.clone()), remark];
    let notes: Vec<String> = notes.into_iter().flatten().collect();
    Ok(TableReport {
        source: table.schema.source.to_string(),
        destination: table.schema.destination.to_string(),
        rows_loaded,
        carried_deleted: carried.as_ref().map_or(0, |c| c.deleted),
        carried_missing: carried.as_ref().map_or(0, |c| c.missing),
        rows_verified: verified.map(|v| v.rows as i64),
        note: (!notes.is_empty()).then(|| notes.join("; ")),
        sealed: facts.is_sealed(number, table.generation)?,
        parked: facts.get::<Parked>(number)?.map(|p| p.why),
        drift: drift.filter(|d| !d.is_empty()).map(|d| format!("{}. Apply a MirrorResync", d.join("; "))),
        inserts: counted.as_ref().map_or(0, |c| c.inserts as i64),
        updates: counted.as_ref().map_or(0, |c| c.updates as i64),
        deletes: counted.as_ref().map_or(0, |c| c.deletes as i64),
    })
}
