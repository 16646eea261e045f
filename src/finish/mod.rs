//! The bodies of the short Jobs that end things: swap, cleanup, forget. Each may run again after it died at any point.

use crate::{
    brief::Brief,
    destination::{self, Destination},
    postgres::connect,
    report::{Failure, SwapReport},
    source::{Error, slot},
    trouble::Trouble,
};

/// Carries rows and swaps the tables; drops the old ones at once if they are not to be kept.
pub async fn swap(brief: &Brief) -> Result<SwapReport, Failure> {
    let destination = open(brief).await?;
    swap_at(brief, &*destination).await.map_err(|trouble| trouble.failure())
}

/// Undoes an epoch that was not swapped: its slot, its publication, its shadows. The live tables stay as they are.
/// One that was swapped is live, and left alone: then what the swap did is returned.
pub async fn cleanup(brief: &Brief) -> Result<Option<SwapReport>, Failure> {
    let destination = open(brief).await?;
    cleanup_at(brief, &*destination).await.map_err(|trouble| trouble.failure())
}

/// Removes everything of a mirror that is being deleted; with `drop_tables` also its live tables.
pub async fn forget(brief: &Brief, drop_tables: bool) -> Result<(), Failure> {
    let destination = open(brief).await?;
    forget_at(brief, &*destination, drop_tables).await.map_err(|trouble| trouble.failure())
}

/// See [`swap`].
pub async fn swap_at(brief: &Brief, destination: &dyn Destination) -> Result<SwapReport, Trouble> {
    let report = match destination.swapped().await? {
        Some(report) => report,
        None => {
            destination.carry().await?;
            refuse_lost_slot(brief).await?;
            destination.swap().await?
        }
    };
    // The swap stands whatever becomes of the old tables; the pipeline drops what is left of them.
    if brief.keep_old_millis == 0
        && let Err(error) = destination.drop_retired().await
    {
        tracing::warn!(%error, "the old tables could not be dropped yet");
    }
    Ok(report)
}

/// Without its slot the new tables would stand still from the first moment. A source that cannot be asked just now says nothing about it.
async fn refuse_lost_slot(brief: &Brief) -> Result<(), Error> {
    let looked = async {
        let client = connect::connect(&brief.source, &slot::housekeeping(brief)).await?;
        slot::refuse_lost(&client, brief).await
    };
    match looked.await {
        Err(error) if error.is_permanent() => Err(error),
        Err(error) => {
            tracing::warn!(%error, "the slot could not be looked at before the swap");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// See [`cleanup`]. The source comes first: a forgotten slot fills its disk, forgotten shadows only take room.
pub async fn cleanup_at(brief: &Brief, destination: &dyn Destination) -> Result<Option<SwapReport>, Trouble> {
    let Some(state) = destination.state().await? else {
        // It never began, so the epoch before it streams on.
        at_source(brief, |epoch| epoch == brief.epoch).await?;
        return Ok(None);
    };
    if state.swapped {
        return Ok(destination.swapped().await?);
    }
    // It began: no earlier epoch will stream again.
    at_source(brief, |epoch| epoch <= brief.epoch).await?;
    destination.abandon().await?;
    Ok(None)
}

/// See [`forget`].
pub async fn forget_at(brief: &Brief, destination: &dyn Destination, drop_tables: bool) -> Result<(), Trouble> {
    at_source(brief, |_| true).await?;
    Ok(destination.forget(drop_tables).await?)
}

async fn at_source(brief: &Brief, which: impl Fn(u32) -> bool) -> Result<(), Error> {
    let client = connect::connect(&brief.source, &slot::housekeeping(brief)).await?;
    slot::drop_epochs(&client, brief, which).await
}

async fn open(brief: &Brief) -> Result<Box<dyn Destination>, Failure> {
    destination::open(brief).await.map_err(|error| Trouble::from(error).failure())
}
