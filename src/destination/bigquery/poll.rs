//! What pods ask again and again: how far an epoch is. Answered without a query as long as nothing has changed.
//!
//! A query of the ledger is billed 10 MB, the least that BigQuery bills, while its table's description costs nothing (BigQuery docs, "Pricing", "Free operations").
//! Statements change its `numRows` and `lastModifiedTime`; rows that were appended by the Storage Write API are seen in it somewhat later. What was read counts for
//! [`LONGEST`] at most whatever the description says.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{BigQuery, live};
use crate::{
    destination::{EpochState, Error, LedgerTable, fact::Facts},
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
    facts.newest.map_or(Ok(None), |newest| facts.state(newest, None))
}

/// See [`Destination::tables`](crate::destination::Destination::tables).
pub(super) async fn tables(at: &BigQuery) -> Result<Vec<LedgerTable>, Error> {
    now(at).await?.tables()
}

/// See [`Destination::progress`](crate::destination::Destination::progress).
pub(super) async fn progress(at: &BigQuery) -> Result<(Load, Vec<TableReport>), Error> {
    of_stream(at).await?.progress(&at.brief)
}
