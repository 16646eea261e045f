//! The shadows take the live names, table by table.
//!
//! `EXCHANGE TABLES` done twice would bring the old table back, and no server can be asked to do it under a condition. So each attempt first gives the
//! shadow a name that no other attempt has, then looks whether that is still the shadow, and exchanges by that name: whoever comes late, or again after
//! a lost reply, finds no table of the name that he knows. Where a server cannot exchange tables, one statement renames both.
//!
//! That all tables are swapped is recorded before the first old table is put aside: so whoever takes a swap back (`undo.rs`) finds every old table under an attempt's name.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::{
    ClickHouse,
    error::{Refusal, UNKNOWN_TABLE, meaning},
    fence::{GIVEN_UP, TAKEN_BACK},
    ledger::{self, shadow_of},
    live, mark,
    mark::Mark,
    retire,
};
use crate::{
    api::clickhouse::Engine,
    destination::{
        Error,
        fact::{Carried, Fact, Gap, Sealed, Swapped, Table, Verified},
        gone,
    },
    name,
    report::SwapReport,
    table::TableName,
};

/// How often a swap of one table is begun anew because somebody else was at it.
const ATTEMPTS: u32 = 20;
const TABLE_ALREADY_EXISTS: u32 = 57;
/// What `EXCHANGE TABLES` is answered on a file system that cannot exchange names, and in databases of the engine Ordinary.
const UNSUPPORTED_METHOD: u32 = 1;
const NOT_IMPLEMENTED: u32 = 48;

/// See [`Destination::swap`](crate::destination::Destination::swap).
pub(super) async fn swap(at: &ClickHouse) -> Result<SwapReport, Error> {
    run(at, By::Itself).await
}

/// Brings a swap to its end that was begun by an epoch that is given up since.
pub(super) async fn finish(at: &ClickHouse) -> Result<SwapReport, Error> {
    run(at, By::WhoGivesUp).await
}

/// Who swaps an epoch's tables.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// Stops when the epoch is given up.
    Itself,
    WhoGivesUp,
}

async fn run(at: &ClickHouse, by: By) -> Result<SwapReport, Error> {
    if let Some(report) = ledger::swap_report(at).await? {
        return done(at, report).await;
    }
    at.fence().await?;
    let facts = at.facts(&[Table::KIND, Sealed::KIND, Carried::KIND, Verified::KIND]).await?;
    let tables = facts.all::<Table>()?;
    if tables.is_empty() {
        return Err(gone(&at.brief));
    }
    for (number, _, table) in &tables {
        if !facts.is_sealed(*number, table.generation)? || facts.get::<Carried>(*number)?.is_none() {
            let name = &table.schema.destination;
            return Err(Error::Transient(format!("{name} is not ready for the swap: it must be sealed and carried first")));
        }
        facts.refuse_unverified(&at.brief, table)?;
    }
    retire::drop_until(at, at.brief.epoch.saturating_sub(1)).await?;
    // Whatever refuses is found before the first table is touched.
    for (_, _, table) in &tables {
        if let Some(found) = live::find(at, &table.schema.destination).await? {
            live::refuse(at, &found, &table.schema).await?;
        }
    }
    for (_, _, table) in &tables {
        expire(at, table).await?;
    }
    let started = Instant::now();
    let mut retries = 0;
    for (_, _, table) in &tables {
        retries += exchange(at, table).await?;
    }
    let report = record(at, started.elapsed(), retries, by).await?;
    done(at, report).await
}

/// What is left to do once a swap is recorded. A newer epoch does it with its own.
async fn done(at: &ClickHouse, report: SwapReport) -> Result<SwapReport, Error> {
    match put_aside(at).await {
        Ok(()) | Err(Error::Superseded(_)) => Ok(report),
        Err(error) => Err(error),
    }
}

/// The last word, which nobody has once somebody else decides what becomes of the tables.
async fn record(at: &ClickHouse, mixed: Duration, retries: u32, by: By) -> Result<SwapReport, Error> {
    #[derive(Deserialize)]
    struct Now {
        now: String,
    }
    let now: Now = at.client()?.row("SELECT formatDateTime(now64(3, 'UTC'), '%Y-%m-%dT%H:%i:%S.000Z') AS now", "reading the clock").await?;
    // Whoever finishes an epoch that is given up is kept from it only by whoever takes it back.
    let deed = if by == By::Itself { GIVEN_UP } else { TAKEN_BACK };
    let condition = format!("{} AND {}", at.is_newest(), at.is_not_given_up(deed));
    at.record_if(&condition, &at.entry(0, 0, &Swapped { at: now.now, millis: mixed.as_millis() as i64, retries })?).await?;
    if let Some(report) = ledger::swap_report(at).await? {
        return Ok(report);
    }
    at.fence().await?;
    Err(is_given_up(at))
}

fn is_given_up(at: &ClickHouse) -> Error {
    Error::Transient(format!("epoch {} is being given up: whoever does so finishes its swap or takes it back", at.brief.epoch))
}

/// Gives the shadow its TTL, which deletes what has expired. Another swap that has renamed it meanwhile has done so before.
async fn expire(at: &ClickHouse, table: &Table) -> Result<(), Error> {
    let options = at.options(&table.schema);
    if let Some(ttl) = options.ttl.filter(|_| options.engine != Engine::Null)
        && let Some(shadow) = shadow(at, table).await?
    {
        let outcome = at.client()?.try_run(&at.ddl().expire(&shadow, &ttl), &[]).await;
        went_through(outcome, &format!("setting the TTL of {shadow}"))?;
    }
    Ok(())
}

/// Brings this epoch's table under its live name. Returns how often that was begun anew.
async fn exchange(at: &ClickHouse, table: &Table) -> Result<u32, Error> {
    let name = &table.schema.destination;
    let doing = format!("swapping {name}");
    for retries in 0..ATTEMPTS {
        let live = live::find(at, name).await?;
        if live.as_ref().is_some_and(|live| live.is_of(at)) {
            return Ok(retries);
        }
        if let Some(live) = &live {
            live::refuse(at, live, &table.schema).await?;
        }
        let Some(shadow) = shadow(at, table).await? else { continue };
        let ours = attempt(at, name);
        let rename = at.ddl().rename(&[(&shadow, &ours)]);
        if !went_through(at.client()?.try_run(&rename, &[]).await, &doing)? || !is_shadow(at, table, &ours).await? {
            continue;
        }
        at.fence().await?;
        let sql = match &live {
            Some(_) => at.ddl().exchange(name, &ours),
            None => at.ddl().rename(&[(&ours, name)]),
        };
        match at.client()?.try_run(&sql, &[]).await {
            Err(refusal) if live.is_some() && cannot_exchange(&refusal) => {
                one_after_the_other(at, table, &ours).await?;
            }
            outcome => drop(went_through(outcome, &doing)?),
        }
    }
    Err(Error::Transient(format!("{doing}: somebody else is at the same; it is tried again")))
}

/// Where tables cannot be exchanged, the old one gives way first: for a moment there is none.
///
/// Done again, or late, the statement fails at its first element, for the shadow has the name that it begins with only once, and so takes nothing away. Where the
/// server ends in the middle, the next attempt finds the shadow by its mark and no table of the live name.
async fn one_after_the_other(at: &ClickHouse, table: &Table, ours: &TableName) -> Result<(), Error> {
    let name = &table.schema.destination;
    let (new, old) = (attempt(at, name), attempt(at, name));
    at.record(&[at.entry(table.schema.number, 0, &Gap {})?]).await?;
    at.fence().await?;
    let sql = at.ddl().rename(&[(ours, &new), (name, &old), (&new, name)]);
    went_through(at.client()?.try_run(&sql, &[]).await, &format!("swapping {name}")).map(drop)
}

/// A name of an attempt to swap a table, which no other attempt has.
pub(super) fn attempt(at: &ClickHouse, name: &TableName) -> TableName {
    TableName { schema: name.schema.clone(), name: mark::swap(name, at.brief.epoch, super::random()) }
}

/// Whether it is tables as such that this server or database cannot exchange.
pub(super) fn cannot_exchange(refusal: &Refusal) -> bool {
    matches!(refusal.code, UNSUPPORTED_METHOD | NOT_IMPLEMENTED)
}

/// Whether a statement was done; false if one of its tables is not there, or is there already.
pub(super) fn went_through(outcome: Result<(), Refusal>, doing: &str) -> Result<bool, Error> {
    match outcome {
        Ok(()) => Ok(true),
        Err(refusal) if matches!(refusal.code, UNKNOWN_TABLE | TABLE_ALREADY_EXISTS) => Ok(false),
        Err(refusal) => Err(meaning(&refusal, doing)),
    }
}

/// This epoch's table, by the name of the load or by that of an attempt that did not get further.
async fn shadow(at: &ClickHouse, table: &Table) -> Result<Option<TableName>, Error> {
    let name = &table.schema.destination;
    let loaded = shadow_of(at, table);
    let found = live::marked(at).await?.into_iter().find(|found| {
        is_ours(at, table, &found.mark)
            && found.name.schema == name.schema
            && (found.name.name == loaded || mark::swap_of(name, &found.name.name).is_some())
    });
    Ok(found.map(|found| found.name))
}

async fn is_shadow(at: &ClickHouse, table: &Table, name: &TableName) -> Result<bool, Error> {
    let found = live::find(at, name).await?;
    Ok(found.and_then(|found| found.mark).is_some_and(|mark| is_ours(at, table, &mark)))
}

fn is_ours(at: &ClickHouse, table: &Table, mark: &Mark) -> bool {
    (mark.mirror.as_str(), mark.epoch, mark.table, mark.generation)
        == (at.brief.mirror_uid.as_str(), at.brief.epoch, table.schema.number, Some(table.generation))
}

/// Marks what a swap that is done has put under attempts' names as retired, and gives it names that people understand.
pub(super) async fn put_aside(at: &ClickHouse) -> Result<(), Error> {
    for (_, _, table) in at.facts(&[Table::KIND]).await?.all::<Table>()? {
        put_one_aside(at, &table).await?;
    }
    Ok(())
}

/// Under the name of a newer epoch's attempt is that epoch's shadow: whoever wakes up late leaves it alone.
async fn put_one_aside(at: &ClickHouse, table: &Table) -> Result<(), Error> {
    let name = &table.schema.destination;
    let doing = format!("putting aside the old {name}");
    let mark = Mark { mirror: at.brief.mirror_uid.clone(), epoch: at.brief.epoch, table: table.schema.number, generation: None };
    let retired = TableName { schema: name.schema.clone(), name: name::retired(&name.name) };
    at.fence().await?;
    let earlier = |other: &String| mark::swap_of(name, other).is_some_and(|epoch| epoch <= at.brief.epoch);
    for old in live::names(at, &name.schema, "").await?.into_iter().filter(earlier) {
        let old = TableName { schema: name.schema.clone(), name: old };
        let Some(found) = live::find(at, &old).await? else { continue };
        let ours = found.mark.as_ref().filter(|mark| mark.mirror == at.brief.mirror_uid && mark.generation.is_some());
        if ours.is_some_and(|mark| mark.epoch >= at.brief.epoch) {
            continue;
        }
        let comment = at.ddl().mark(&old, &mark, &found.words);
        went_through(at.client()?.try_run(&comment, &[]).await, &doing)?;
        // A name that is taken is no harm: the mark is what tells it.
        went_through(at.client()?.try_run(&at.ddl().rename(&[(&old, &retired)]), &[]).await, &doing)?;
    }
    Ok(())
}
