//! What a swap has begun is brought to an end when its epoch is given up, or a newer one begins.

use super::{
    ClickHouse,
    live::{self, Found},
    mark,
    swap::{self, went_through},
};
use crate::{
    destination::{
        Error,
        fact::{Fact, Table},
    },
    table::TableName,
};

/// How often tables are looked at anew because a late statement was at one of them.
const ATTEMPTS: u32 = 20;

/// Finishes the swap of this epoch if a table of it is live already: every table was sealed and carried before the first was exchanged, and readers would be left
/// with tables of two epochs.
pub(super) async fn forward(at: &ClickHouse) -> Result<(), Error> {
    for name in live_names(at).await? {
        if live::find(at, &name).await?.is_some_and(|live| live.is_of(at)) {
            return swap::finish(at).await.map(drop);
        }
    }
    Ok(())
}

/// Takes back what was begun of this epoch's swap, with the fence closed: the shadows are dropped and the old tables have their names again.
///
/// One statement of a swap that nobody could stop may still exchange a table while this is looking. So it is looked at again until there is nothing left.
pub(super) async fn back(at: &ClickHouse) -> Result<(), Error> {
    for _ in 0..ATTEMPTS {
        let dropped = drop_shadows(at, |epoch| epoch == at.brief.epoch).await?;
        let mut exchanged = false;
        for name in live_names(at).await? {
            exchanged |= give_back(at, &name).await?;
        }
        if !dropped && !exchanged {
            return Ok(());
        }
    }
    Err(busy("taking back a swap"))
}

fn busy(doing: &str) -> Error {
    Error::Transient(format!("{doing}: somebody else is at the same; it is tried again"))
}

/// Drops the shadows of some epochs. Returns whether there were any.
pub(super) async fn drop_shadows(at: &ClickHouse, of: impl Fn(u32) -> bool) -> Result<bool, Error> {
    let shadows: Vec<Found> = live::marked(at).await?.into_iter().filter(|found| found.is_shadow() && of(found.mark.epoch)).collect();
    for shadow in &shadows {
        drop_aside(at, shadow).await?;
    }
    Ok(!shadows.is_empty())
}

/// Drops all shadows, with the fence closed, until a look finds none.
pub(super) async fn drop_all_shadows(at: &ClickHouse) -> Result<(), Error> {
    for _ in 0..ATTEMPTS {
        if !drop_shadows(at, |_| true).await? {
            return Ok(());
        }
    }
    Err(busy("dropping shadows"))
}

/// Drops a table that is not live. A late statement may exchange it by the name of its attempt, or a later swap have put another under the name of an old one: so it first
/// gets a name that nobody knows, and is dropped if it still is the table that was found.
pub(super) async fn drop_aside(at: &ClickHouse, aside: &Found) -> Result<(), Error> {
    let unknown = mark::another_attempt(&aside.name.name, super::random());
    let unknown = unknown.unwrap_or_else(|| mark::swap(&aside.name, aside.mark.epoch, super::random()));
    let name = TableName { schema: aside.name.schema.clone(), name: unknown };
    let renamed = at.client()?.try_run(&at.ddl().rename(&[(&aside.name, &name)]), &[]).await;
    if went_through(renamed, &format!("dropping {}", aside.name))?
        && live::find(at, &name).await?.and_then(|found| found.mark).is_some_and(|mark| mark == aside.mark)
    {
        live::drop_table(at, &name).await?;
    }
    Ok(())
}

/// Gives its name back to a table that gave way to a shadow, which has it or nobody. Returns whether there was such a table.
///
/// Where there was none before, the epoch's table stays under the name: nothing tells it for sure from one whose old table somebody else is putting aside.
async fn give_back(at: &ClickHouse, name: &TableName) -> Result<bool, Error> {
    let live = live::find(at, name).await?;
    if live.as_ref().is_some_and(|live| !live.is_of(at)) {
        return Ok(false);
    }
    let Some(old) = gave_way(at, name).await? else { return Ok(false) };
    let doing = format!("giving {name} its name back");
    if live.is_none() {
        went_through(at.client()?.try_run(&at.ddl().rename(&[(&old, name)]), &[]).await, &doing)?;
        return Ok(true);
    }
    // Executed late, when the shadow that it has brought under that name is dropped, it finds no such table.
    match at.client()?.try_run(&at.ddl().exchange(name, &old), &[]).await {
        Err(refusal) if swap::cannot_exchange(&refusal) => {
            let (first, away) = (swap::attempt(at, name), swap::attempt(at, name));
            // Late or twice it fails at its first element, and takes nothing away.
            let sql = at.ddl().rename(&[(&old, &first), (name, &away), (&first, name)]);
            went_through(at.client()?.try_run(&sql, &[]).await, &doing)?;
        }
        outcome => drop(went_through(outcome, &doing)?),
    }
    Ok(true)
}

/// The table that this epoch's swap has put under an attempt's name.
async fn gave_way(at: &ClickHouse, name: &TableName) -> Result<Option<TableName>, Error> {
    for old in live::names(at, &name.schema, "").await? {
        let old = TableName { schema: name.schema.clone(), name: old };
        if mark::swap_of(name, &old.name) == Some(at.brief.epoch) && live::find(at, &old).await?.is_some_and(|old| !old.is_of(at)) {
            return Ok(Some(old));
        }
    }
    Ok(None)
}

async fn live_names(at: &ClickHouse) -> Result<Vec<TableName>, Error> {
    Ok(at.facts(&[Table::KIND]).await?.all::<Table>()?.into_iter().map(|(_, _, table)| table.schema.destination).collect())
}
