//! The ends: of the tables that a swap retired, of an epoch that is given up, and of a whole mirror.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{
    ClickHouse,
    error::permanent,
    fence::{self, GIVEN_UP, TAKEN_BACK},
    ledger::{self, FACT, MIRROR},
    live, mark,
    quote::literal,
    swap, undo,
};
use crate::{
    destination::{
        Error,
        fact::{Begun, Fact, GivenUp, Table},
    },
    name,
    table::TableName,
};

/// See [`Destination::drop_retired`](crate::destination::Destination::drop_retired).
pub(super) async fn drop_retired(at: &ClickHouse) -> Result<(), Error> {
    if ledger::swap_report(at).await?.is_none() {
        return Ok(());
    }
    at.fence().await?;
    // Whoever swapped may have died before he had put the old tables aside.
    swap::put_aside(at).await?;
    drop_until(at, at.brief.epoch).await?;
    forget_epochs(at, |epoch| epoch < at.brief.epoch).await
}

/// Drops what the swaps of this mirror up to `epoch` have retired.
pub(super) async fn drop_until(at: &ClickHouse, epoch: u32) -> Result<(), Error> {
    let live = live_names(at).await?;
    for found in live::marked(at).await? {
        // One that people have given its old name again is live, whatever its mark says.
        if found.mark.generation.is_none() && found.mark.epoch <= epoch && !live.contains(&found.name) {
            undo::drop_aside(at, &found).await?;
        }
    }
    Ok(())
}

/// Removes what the ledger says of some epochs.
async fn forget_epochs(at: &ClickHouse, which: impl Fn(u32) -> bool) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Epoch {
        epoch: u32,
    }
    let mirror = literal(&at.brief.mirror_uid);
    let sql = format!("SELECT DISTINCT epoch FROM {} WHERE mirror = {mirror}", at.ledger(FACT));
    for row in at.client()?.rows::<Epoch>(&sql, "reading the ledger").await?.iter().filter(|row| which(row.epoch)) {
        let sql = at.ddl().drop_partition(&at.ledger_name(FACT), &format!("(toUUID({mirror}), {})", row.epoch));
        at.client()?.run(&sql, "writing the ledger").await?;
    }
    Ok(())
}

/// See [`Destination::abandon`](crate::destination::Destination::abandon).
///
/// First of all the epoch's own swap is kept from its end: after that either it has come there, or it never will. A swap that is half done is finished, and there is
/// nothing to abandon. Otherwise the fence is closed, behind this epoch too: a pod of it that nobody could stop finds it so. The next epoch has the number that closes it.
/// What is left of this one tells a repeated call that it is not done.
pub(super) async fn abandon(at: &ClickHouse) -> Result<(), Error> {
    if !at.has_ledger().await? || ledger::swap_report(at).await?.is_some() {
        return Ok(());
    }
    let begun = at.facts(&[Begun::KIND]).await?.get::<Begun>(0)?.is_some();
    at.record(&[at.entry(GIVEN_UP, 0, &GivenUp {})?]).await?;
    fence::end_writers(at).await?;
    // One that has not begun never will from now on, unless it was just about to and has fenced those before it. It leaves them alone.
    if !begun && at.newest().await? != Some(at.brief.epoch) || ledger::swap_report(at).await?.is_some() {
        return Ok(());
    }
    let next = at.brief.epoch + 1;
    match at.newest().await? {
        Some(newest) if newest > next || newest == next && at.has_begun(next).await? => return Err(Error::Superseded(newest)),
        Some(newest) if newest == next => {}
        _ => {
            if at.facts(&[GivenUp::KIND]).await?.get::<GivenUp>(TAKEN_BACK)?.is_none() {
                match undo::forward(at).await {
                    Ok(()) => {}
                    Err(error @ Error::Permanent(_)) => tracing::info!(%error, "a swap that was begun is taken back, not finished"),
                    Err(other) => return Err(other),
                }
                // From here on either somebody has finished it, or nobody will.
                at.record(&[at.entry(TAKEN_BACK, 0, &GivenUp {})?]).await?;
            }
            fence::end_writers(at).await?;
            if ledger::swap_report(at).await?.is_some() {
                return Ok(());
            }
            fence::raise(at, next, "true").await?;
        }
    }
    fence::end_queries_before(at, next).await?;
    undo::back(at).await?;
    forget_epochs(at, |epoch| epoch == at.brief.epoch).await
}

/// See [`Destination::forget`](crate::destination::Destination::forget).
pub(super) async fn forget(at: &ClickHouse, drop_live: bool) -> Result<(), Error> {
    if !at.has_ledger().await? {
        return Ok(());
    }
    // Whatever the newest epoch is: a mirror that goes has no newer one to protect. What a pod that nobody could stop has sent may still come.
    fence::raise(at, u32::MAX, "true").await?;
    fence::end_queries_before(at, u32::MAX).await?;
    undo::drop_all_shadows(at).await?;
    let live = live_names(at).await?;
    for found in live::marked(at).await? {
        let retired = found.mark.generation.is_none()
            && (is_retired_name(&live, &found.name) || mark::is_any_swap(&found.name.name, found.mark.epoch));
        if let Some(name) = live.iter().find(|name| is_swap_of(name, &found.name)) {
            // What gave way to a shadow. It has its name back if the server ended before the shadow took that.
            if live::find(at, name).await?.is_some() {
                undo::drop_aside(at, &found).await?;
            } else {
                at.client()?.run(&at.ddl().rename(&[(&found.name, name)]), &format!("giving {name} its name back")).await?;
                at.client()?.run(&at.ddl().comment(name, &found.words), "removing a mark").await?;
            }
        } else if retired && !live.contains(&found.name) {
            undo::drop_aside(at, &found).await?;
        } else if drop_live && live.contains(&found.name) {
            live::drop_table(at, &found.name).await?;
        } else {
            // It stays, and is nobody's from now on; so is what people have renamed.
            at.client()?.run(&at.ddl().comment(&found.name, &found.words), "removing a mark").await?;
        }
    }
    forget_epochs(at, |_| true).await?;
    let sql = at.ddl().drop_partition(&at.ledger_name(MIRROR), &literal(&at.brief.mirror_uid));
    at.client()?.run(&sql, "writing the ledger").await
}

fn is_retired_name(live: &BTreeSet<TableName>, table: &TableName) -> bool {
    live.iter().any(|live| live.schema == table.schema && name::retired(&live.name) == table.name)
}

fn is_swap_of(live: &TableName, table: &TableName) -> bool {
    live.schema == table.schema && mark::swap_of(live, &table.name).is_some()
}

/// The live names of all tables of the mirror that the ledger knows, of whatever epoch.
async fn live_names(at: &ClickHouse) -> Result<BTreeSet<TableName>, Error> {
    #[derive(Deserialize)]
    struct Row {
        value: String,
    }
    let kind = literal(Table::KIND);
    let sql = format!("SELECT value FROM {} FINAL WHERE mirror = {} AND kind = {kind}", at.ledger(FACT), literal(&at.brief.mirror_uid));
    let rows: Vec<Row> = at.client()?.rows(&sql, "reading the ledger").await?;
    rows.iter()
        .map(|row| serde_json::from_str::<Table>(&row.value).map(|t| t.schema.destination))
        .collect::<Result<_, _>>()
        .map_err(|e| permanent("LedgerUnreadable", e.to_string()))
}
