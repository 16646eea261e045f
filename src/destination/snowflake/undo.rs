//! What a swap has begun is brought to an end when its epoch is given up; and no table is dropped by a name that a swap may still exchange.
//!
//! If a table of the epoch is live already, its swap is finished ([`forward`]), for all were sealed and carried before the first. Otherwise, or if it cannot be finished,
//! the fence is closed, and what is left is taken back ([`back`]). That a swap is done is recorded behind the fence, and who closes the fence looks in the same transaction
//! whether it was: both lock the ledger, so one comes first, and either the swap has come to its end or it never will.
//!
//! The fence does not reach a statement that was sent before. Each process at a swap has one on its way at most, as it looks at the fence between giving the shadow
//! its attempt's name N and exchanging by N. Whichever it is, and whenever it is executed:
//!
//! - *The loaded shadow S is renamed to N.* Once S is dropped it fails. Before, N is found by its mark at the next look, and is dropped; its process stops at the fence.
//! - *N is swapped with the live table.* Fails once N has another name: a shadow is given one that only this process knows before it is dropped ([`drop_aside`]). If it is
//!   executed between the look at N and that, the new name has the old table, whose mark tells so: it is not dropped. The next look finds the epoch's table
//!   live, and the old one under an attempt's name: they are swapped back, and N' is the shadow again.
//! - *N is renamed to the live name, where there was no table.* The same: nothing is found to be swapped back, so the table is given an attempt's name, and is a shadow again.
//! - *The same of another process that takes a swap back.* Done twice it would bring the shadow to life. Then it is found live at the next look. Once the shadow is dropped
//!   there is no table of its name.
//!
//! [`back`] ends when one look finds no shadow, and after it no table of the epoch live. A shadow that is nowhere at the first look, and not live at the second, is nowhere:
//! only one that bears an attempt's name can come to life, and that would be seen by the first. Old tables are never put aside before the swap is recorded (`swap.rs`), so while
//! it is not they all bear attempts' names of this epoch.
//!
//! A newer epoch that begins without this, because a cleanup was forced to its end, leaves live what is live: its carry reads whole tables, the epoch's before or that
//! one's, and it drops the shadows in the same way. What the half swap has put under an attempt's name is put aside with the newer epoch's own swap.

use super::{
    Snowflake,
    live::{self, Found, went_through},
    mark, swap,
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

/// Finishes the swap of this epoch if a table of it is live already.
pub(super) async fn forward(at: &Snowflake) -> Result<(), Error> {
    for name in live_names(at).await? {
        if live::find(at, &name).await?.is_some_and(|live| live.is_of(at)) {
            return swap::swap(at).await.map(drop);
        }
    }
    Ok(())
}

/// Takes back what was begun of this epoch's swap, with the fence closed: the shadows are dropped and the old tables have their names again.
pub(super) async fn back(at: &Snowflake) -> Result<(), Error> {
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
    Err(Error::Transient("taking back a swap: somebody else is at the same; it is tried again".into()))
}

/// Drops the shadows of some epochs. Returns whether there were any.
pub(super) async fn drop_shadows(at: &Snowflake, of: impl Fn(u32) -> bool) -> Result<bool, Error> {
    let shadows: Vec<Found> = live::marked(at).await?.into_iter().filter(|found| found.is_shadow() && of(found.mark.epoch)).collect();
    for shadow in &shadows {
        drop_aside(at, shadow).await?;
    }
    Ok(!shadows.is_empty())
}

/// Drops a table that is not live. A late statement may swap it by the name of its attempt, or a later swap have put another under the name of an old one: so it first
/// gets a name that nobody knows, and is dropped if it still is the table that was found.
pub(super) async fn drop_aside(at: &Snowflake, found: &Found) -> Result<(), Error> {
    let unknown = mark::another_attempt(&found.name.name, super::random());
    let unknown = unknown.unwrap_or_else(|| mark::swap(&found.name, found.mark.epoch, super::random()));
    let name = TableName { schema: found.name.schema.clone(), name: unknown };
    if live::rename(at, &found.name, &name, &format!("dropping {}", found.name)).await?
        && live::find(at, &name).await?.and_then(|now| now.mark).is_some_and(|mark| mark == found.mark)
    {
        live::drop_table(at, &name).await?;
    }
    Ok(())
}

/// What becomes of a live name when its epoch is given up.
#[derive(Debug, PartialEq, Eq)]
enum Step<T> {
    /// It is as it was.
    Nothing,
    /// The epoch's table has it, and this one had it before.
    Swap(T),
    /// Nothing has it now.
    Rename(T),
    /// The epoch's table has it, and none had it before.
    Remove,
}

/// `is_of_epoch`: whether the live table is the epoch's; `None` if there is none. `old`: what gave way to it.
fn step<T>(is_of_epoch: Option<bool>, old: Option<T>) -> Step<T> {
    match (is_of_epoch, old) {
        (Some(true), Some(old)) => Step::Swap(old),
        (Some(true), None) => Step::Remove,
        (None, Some(old)) => Step::Rename(old),
        (Some(false), _) | (None, None) => Step::Nothing,
    }
}

/// Gives its name back to a table that gave way to a shadow. Returns whether anything was to be done.
async fn give_back(at: &Snowflake, name: &TableName) -> Result<bool, Error> {
    let doing = format!("giving {name} its name back");
    let live = live::find(at, name).await?;
    let old = if live.as_ref().is_none_or(|live| live.is_of(at)) { gave_way(at, name).await? } else { None };
    match step(live.map(|live| live.is_of(at)), old) {
        Step::Nothing => return Ok(false),
        Step::Swap(old) => {
            went_through(at, &format!("ALTER TABLE {} SWAP WITH {}", at.quoted(name), at.quoted(&old)), &doing).await?;
        }
        Step::Rename(old) => drop(live::rename(at, &old, name, &doing).await?),
        Step::Remove => {
            let away = TableName { schema: name.schema.clone(), name: mark::swap(name, at.brief.epoch, super::random()) };
            live::rename(at, name, &away, &doing).await?;
        }
    }
    Ok(true)
}

/// The table that this epoch's swap has put under an attempt's name.
async fn gave_way(at: &Snowflake, name: &TableName) -> Result<Option<TableName>, Error> {
    for old in live::names(at, &name.schema).await? {
        let old = TableName { schema: name.schema.clone(), name: old };
        if mark::swap_of(name, &old.name) == Some(at.brief.epoch) && live::find(at, &old).await?.is_some_and(|old| !old.is_of(at)) {
            return Ok(Some(old));
        }
    }
    Ok(None)
}

async fn live_names(at: &Snowflake) -> Result<Vec<TableName>, Error> {
    Ok(at.facts(&[Table::KIND]).await?.all::<Table>()?.into_iter().map(|(_, _, table)| table.schema.destination).collect())
}
