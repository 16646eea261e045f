//! The shadows take the live names, table by table.
//!
//! `ALTER TABLE … SWAP WITH` is atomic, but done twice it would bring the old table back, and the service cannot be asked to do it under a condition. So each attempt
//! first gives the shadow a name that no other attempt has, then looks whether that is still the shadow, and swaps by that name: whoever comes late, or again
//! after a lost reply, finds no table of the name that he knows.
//!
//! That all tables are swapped is recorded before the first old table is put aside: so whoever takes a swap back (`undo.rs`) finds every old table under an attempt's name. If its process ends right
//! between the two, they bear those names until they are dropped.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Snowflake,
    ledger::{self, shadow_of},
    live::{self, went_through},
    mark::{self, Mark},
    retire, seal,
};
use crate::{
    destination::{
        Error,
        fact::{Carried, Fact, Sealed, Swapped, Table, Verified},
        gone,
    },
    report::SwapReport,
    table::TableName,
};

/// How often a swap of one table is begun anew because somebody else was at it.
const ATTEMPTS: u32 = 20;

/// See [`Destination::swap`](crate::destination::Destination::swap). Whoever gives the epoch up calls it too, to bring to its end what was begun.
pub(super) async fn swap(at: &Snowflake) -> Result<SwapReport, Error> {
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
        let name = &table.schema.destination;
        if let Some(found) = live::find(at, name).await?.filter(|found| !found.is_of(at)) {
            live::refuse(at, &found, &table.schema).await?;
            if let Some(policies) = seal::policies(at, name).await? {
                return Err(super::error::permanent("PolicyUnkept", policies));
            }
        }
    }
    let started = Instant::now();
    let mut retries = 0;
    for (_, _, table) in &tables {
        retries += exchange(at, table).await?;
    }
    let report = record(at, started.elapsed(), retries).await?;
    done(at, report).await
}

/// What is left to do once a swap is recorded. A newer epoch does it with its own.
async fn done(at: &Snowflake, report: SwapReport) -> Result<SwapReport, Error> {
    match put_aside(at).await {
        Ok(()) | Err(Error::Superseded(_)) => Ok(report),
        Err(error) => Err(error),
    }
}

/// Behind the fence: whoever closes that looks in the same transaction whether this was recorded.
async fn record(at: &Snowflake, mixed: Duration, retries: u32) -> Result<SwapReport, Error> {
    let now = at.now().await?.get(..19).unwrap_or_default().replace(' ', "T");
    at.record(&[at.entry(0, 0, &Swapped { at: format!("{now}.000Z"), millis: mixed.as_millis() as i64, retries })?]).await?;
    ledger::swap_report(at).await?.ok_or_else(|| gone(&at.brief))
}

/// Brings this epoch's table under its live name. Returns how often that was begun anew.
async fn exchange(at: &Snowflake, table: &Table) -> Result<u32, Error> {
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
        let ours = TableName { schema: name.schema.clone(), name: mark::swap(name, at.brief.epoch, super::random()) };
        if !live::rename(at, &shadow, &ours, &doing).await? || !is_shadow(at, table, &ours).await? {
            continue;
        }
        at.fence().await?;
        match &live {
            Some(_) => {
                let sql = format!("ALTER TABLE {} SWAP WITH {}", at.quoted(name), at.quoted(&ours));
                went_through(at, &sql, &doing).await?;
            }
            None => drop(live::rename(at, &ours, name, &doing).await?),
        }
    }
    Err(Error::Transient(format!("{doing}: somebody else is at the same; it is tried again")))
}

/// This epoch's table, by the name of the load or by that of an attempt that did not get further.
async fn shadow(at: &Snowflake, table: &Table) -> Result<Option<TableName>, Error> {
    let name = &table.schema.destination;
    let loaded = shadow_of(at, table);
    let found = live::marked(at).await?.into_iter().find(|found| {
        is_ours(at, table, &found.mark)
            && found.name.schema == name.schema
            && (found.name.name == loaded || mark::swap_of(name, &found.name.name).is_some())
    });
    Ok(found.map(|found| found.name))
}

async fn is_shadow(at: &Snowflake, table: &Table, name: &TableName) -> Result<bool, Error> {
    let found = live::find(at, name).await?;
    Ok(found.and_then(|found| found.mark).is_some_and(|mark| is_ours(at, table, &mark)))
}

fn is_ours(at: &Snowflake, table: &Table, mark: &Mark) -> bool {
    (mark.mirror.as_str(), mark.epoch, mark.table, mark.generation)
        == (at.brief.mirror_uid.as_str(), at.brief.epoch, table.schema.number, Some(table.generation))
}

/// Marks what a swap that is done has put under attempts' names as retired, and gives it names that people understand.
pub(super) async fn put_aside(at: &Snowflake) -> Result<(), Error> {
    for (_, _, table) in at.facts(&[Table::KIND]).await?.all::<Table>()? {
        put_one_aside(at, &table).await?;
    }
    Ok(())
}

/// Under the name of a newer epoch's attempt is that epoch's shadow: whoever wakes up late leaves it alone.
async fn put_one_aside(at: &Snowflake, table: &Table) -> Result<(), Error> {
    let name = &table.schema.destination;
    let doing = format!("putting aside the old {name}");
    let mark = Mark { mirror: at.brief.mirror_uid.clone(), epoch: at.brief.epoch, table: table.schema.number, generation: None };
    at.fence().await?;
    let earlier = |other: &String| mark::swap_of(name, other).is_some_and(|epoch| epoch <= at.brief.epoch);
    for old in live::names(at, &name.schema).await?.into_iter().filter(earlier) {
        let old = TableName { schema: name.schema.clone(), name: old };
        let Some(found) = live::find(at, &old).await? else { continue };
        let ours = found.mark.as_ref().filter(|mark| mark.mirror == at.brief.mirror_uid && mark.generation.is_some());
        if ours.is_some_and(|mark| mark.epoch >= at.brief.epoch) {
            continue;
        }
        live::comment(at, &old, &mark.comment(&found.words)).await?;
        // A name that is taken is no harm: the mark is what tells it.
        live::rename(at, &old, &mark::retired(name), &doing).await?;
    }
    Ok(())
}
