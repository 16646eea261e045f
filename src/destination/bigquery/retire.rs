//! The ends: of the tables that a swap retired, of an epoch that is given up, and of a whole mirror.

use std::collections::BTreeSet;

use serde_json::json;

use super::{
    BigQuery,
    error::{meaning, permanent},
    ledger, live,
    mark::{self, Mark, State},
    quote::literal,
    shadow::is_aside,
    swap,
};
use crate::{
    destination::{
        Error,
        fact::{Begun, Fact, GivenUp, Swapped, Table},
    },
    table::TableName,
};

/// See [`Destination::drop_retired`](crate::destination::Destination::drop_retired).
pub(super) async fn drop_retired(at: &BigQuery) -> Result<(), Error> {
    let facts = at.facts(&[Swapped::KIND]).await?;
    if facts.get::<Swapped>(0)?.is_none() {
        return Ok(());
    }
    facts.fence(at)?;
    drop_until(at, at.brief.epoch).await?;
    // A swap's copies have their rows of their own, the shadows are of no more use.
    for found in live::marked(at).await?.iter().filter(|f| is_aside(f) && is_loaded_by(f, at.brief.epoch)) {
        live::drop_table(at, &found.name).await?;
    }
    forget_epochs(at, &format!("epoch < {}", at.brief.epoch)).await
}

fn is_loaded_by(found: &live::Live, epoch: u32) -> bool {
    found.mark.as_ref().is_some_and(|mark| mark.epoch == epoch && matches!(mark.state, State::Loaded(_)))
}

/// Drops what the swaps of this mirror up to `epoch` have retired.
pub(super) async fn drop_until(at: &BigQuery, epoch: u32) -> Result<(), Error> {
    for found in live::marked(at).await? {
        if found.mark.as_ref().is_some_and(|mark| mark.state == State::Retired && mark.epoch <= epoch) {
            live::drop_table(at, &found.name).await?;
        }
    }
    Ok(())
}

/// Removes what the ledger says of some epochs; the fence stays.
async fn forget_epochs(at: &BigQuery, which: &str) -> Result<(), Error> {
    let sql = format!("DELETE FROM {} WHERE {which} AND kind != 'epoch'", at.quoted(&at.ledger()));
    at.jobs().await?.run(sql).await.map_err(|e| meaning(&e, "writing the ledger"))
}

/// See [`Destination::abandon`](crate::destination::Destination::abandon).
///
/// The fence is closed first, behind this epoch too: a pod of it that nobody could stop finds it so. The next epoch has the number that closes it.
/// What is left of this one tells a repeated call that it is not done.
pub(super) async fn abandon(at: &BigQuery) -> Result<(), Error> {
    let facts = at.facts(&[Begun::KIND, Swapped::KIND, Table::KIND]).await?;
    if facts.get::<Begun>(0)?.is_none() && !give_up(at).await? || facts.get::<Swapped>(0)?.is_some() {
        return Ok(());
    }
    let next = at.brief.epoch + 1;
    match facts.newest {
        Some(newest) if newest > next || newest == next && at.has_begun(next).await? => return Err(Error::Superseded(newest)),
        Some(newest) if newest == next => {}
        _ => ledger::raise(at, next).await?,
    }
    ledger::end_jobs_before(at, next).await?;
    for found in live::marked(at).await?.iter().filter(|f| is_aside(f) && f.mark.as_ref().is_some_and(|m| m.epoch == at.brief.epoch)) {
        live::drop_table(at, &found.name).await?;
    }
    for (_, _, table) in facts.all::<Table>()? {
        put_back(at, &table).await?;
    }
    forget_epochs(at, &format!("epoch = {}", at.brief.epoch)).await
}

/// Lets an epoch that has not begun never do so, and leaves those before it alone; true if it was just about to begin, and has fenced them.
async fn give_up(at: &BigQuery) -> Result<bool, Error> {
    let note = at.insertion(&[at.entry(0, 0, &GivenUp {})?])?;
    match at.jobs().await?.run(note).await {
        Ok(()) => {}
        Err(refusal) if ledger::is_missing(&refusal) => return Ok(false),
        Err(refusal) => return Err(meaning(&refusal, "writing the ledger")),
    }
    ledger::end_jobs(at).await?;
    Ok(at.facts(&[Begun::KIND]).await?.get::<Begun>(0)?.is_some())
}

/// Takes back what an unfinished swap has done to one table: nobody has written to it since.
async fn put_back(at: &BigQuery, table: &Table) -> Result<(), Error> {
    let (name, number) = (&table.schema.destination, table.schema.number);
    let old = mark::retired(name);
    let kept = live::find(at, &old).await?.and_then(|found| found.mark);
    let kept = kept.is_some_and(|mark| mark == Mark::of(&at.brief, number, State::Retired));
    let live = live::find(at, name).await?.and_then(|found| found.mark);
    if kept {
        swap::copy(at, &old, name, &format!("t{number}-back")).await?;
        let mark = Mark { epoch: at.brief.previous_epoch, ..Mark::of(&at.brief, number, State::Loaded(0)) };
        let labelled = at.client()?.patch_table(name, &json!({ "labels": mark.labels() })).await;
        labelled.map_err(|e| meaning(&e, &format!("labelling {name}")))?;
        live::drop_table(at, &old).await?;
    } else if live.is_some_and(|mark| mark.mirror == at.brief.mirror_uid && mark.epoch == 0) {
        live::drop_table(at, name).await?;
    }
    Ok(())
}

/// See [`Destination::forget`](crate::destination::Destination::forget).
pub(super) async fn forget(at: &BigQuery, drop_live: bool) -> Result<(), Error> {
    if live::find(at, &at.ledger()).await?.is_none() {
        return Ok(());
    }
    // Whatever the newest epoch is: a mirror that goes has no newer one to protect.
    let live = live_names(at).await?;
    for found in live::marked(at).await? {
        let retired = found.mark.as_ref().is_some_and(|mark| mark.state == State::Retired)
            && live.iter().any(|live| mark::retired(live) == found.name);
        if is_aside(&found) || retired || drop_live && live.contains(&found.name) {
            live::drop_table(at, &found.name).await?;
        } else {
            // It stays, and is nobody's from now on; so is what people have renamed.
            let patched = at.client()?.patch_table(&found.name, &json!({ "labels": Mark::removed() })).await;
            patched.map_err(|e| meaning(&e, &format!("removing the labels of {}", found.name)))?;
        }
    }
    live::drop_table(at, &at.ledger()).await
}

/// The live names of all tables of the mirror that the ledger knows, of whatever epoch.
async fn live_names(at: &BigQuery) -> Result<BTreeSet<TableName>, Error> {
    let sql = format!("SELECT DISTINCT value FROM {} WHERE kind = {}", at.quoted(&at.ledger()), literal(Table::KIND));
    let rows = at.jobs().await?.rows(sql).await.map_err(|e| meaning(&e, "reading the ledger"))?;
    rows.iter()
        .filter_map(|row| row.first()?.as_deref())
        .map(|value| serde_json::from_str::<Table>(value).map(|t| t.schema.destination))
        .collect::<Result<_, _>>()
        .map_err(|e| permanent("LedgerUnreadable", e.to_string()))
}
