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
        let shadows: Vec<Found> =
            live::marked(at).await?.into_iter().filter(|found| found.is_shadow() && found.mark.epoch == at.brief.epoch).collect();
        for shadow in &shadows {
            drop_shadow(at, shadow).await?;
        }
        let mut exchanged = false;
        for name in live_names(at).await? {
            exchanged |= give_back(at, &name).await?;
        }
        if shadows.is_empty() && !exchanged {
            return Ok(());
        }
    }
    Err(Error::Transient("taking back a swap: somebody else is at the same; it is tried again".into()))
}

/// Drops a shadow. A late statement may exchange it by the name of its attempt: so it first gets one that nobody knows, and is dropped if it is the shadow still.
pub(super) async fn drop_shadow(at: &ClickHouse, shadow: &Found) -> Result<(), Error> {
    let Some(name) = mark::another_attempt(&shadow.name.name, shadow.mark.epoch, super::random()) else {
        return live::drop_table(at, &shadow.name).await;
    };
    let name = TableName { schema: shadow.name.schema.clone(), name };
    let renamed = at.client()?.try_run(&at.ddl().rename(&[(&shadow.name, &name)]), &[]).await;
    if went_through(renamed, &format!("dropping {}", shadow.name))?
        && live::find(at, &name).await?.and_then(|found| found.mark).is_some_and(|mark| mark == shadow.mark)
    {
        live::drop_table(at, &name).await?;
    }
    Ok(())
}

/// Gives its name back to a table that gave way to a shadow; takes it from the shadow if that has it. Returns whether there was such a table.
async fn give_back(at: &ClickHouse, name: &TableName) -> Result<bool, Error> {
    let live = live::find(at, name).await?;
    if live.as_ref().is_some_and(|live| !live.is_of(at)) {
        return Ok(false);
    }
    for old in live::names(at, &name.schema, "").await? {
        if mark::swap_of(name, &old) != Some(at.brief.epoch) {
            continue;
        }
        let old = TableName { schema: name.schema.clone(), name: old };
        if live::find(at, &old).await?.is_some_and(|old| !old.is_of(at)) {
            let away = TableName { schema: name.schema.clone(), name: mark::swap(name, at.brief.epoch, super::random()) };
            let names = [(name, &away), (&old, name)];
            let rename = at.ddl().rename(if live.is_some() { &names } else { &names[1..] });
            went_through(at.client()?.try_run(&rename, &[]).await, &format!("giving {name} its name back"))?;
            return Ok(true);
        }
    }
    Ok(false)
}

async fn live_names(at: &ClickHouse) -> Result<Vec<TableName>, Error> {
    Ok(at.facts(&[Table::KIND]).await?.all::<Table>()?.into_iter().map(|(_, _, table)| table.schema.destination).collect())
}
