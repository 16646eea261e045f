//! The bodies of the short Jobs that end things: swap, cleanup, forget. Each may run again after it died at any point.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    api::mirror::Sequences,
    brief::Brief,
    destination::{self, Destination, LedgerTable},
    postgres::connect,
    report::{Failure, SwapReport},
    source::{Error, sequence, slot},
    trouble::Trouble,
    verify,
};

/// Shadows that are read for a comparison at the same time.
const COMPARED: usize = 4;

/// Between looks at whether the pipeline has caught up.
const CAUGHT_UP_POLL: Duration = Duration::from_millis(100);

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
            if brief.is_live() {
                hand_over(brief, destination).await?;
            }
            destination.carry().await?;
            verify(brief, destination).await?;
            refuse_lost_slot(brief).await?;
            // Before the swap, so that nobody finds the new tables without; not in its transaction, for what a sequence does is never taken back.
            follow_sequences(brief, destination).await?;
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

/// How far the new stream may be behind the old one when that ends, in bytes of the source's log: the live tables stand still for as long as those take.
const NEAR: u64 = 64 << 20;

/// Ends the old stream, and waits until the pipeline has brought the shadows as far and applies no more: nobody writes while rows are carried.
async fn hand_over(brief: &Brief, destination: &dyn Destination) -> Result<(), Trouble> {
    // Whatever keeps the sequences from following has the live tables wait from the handover on.
    follow_sequences(brief, destination).await?;
    loop {
        let state = destination.state().await?.ok_or_else(|| Trouble::Waiting("the ledger no longer has this epoch".into()))?;
        let near = state.live_lsn.0.saturating_sub(state.applied_lsn.0) <= NEAR;
        // The old stream may not yet have come to where the new one begins.
        let follows = brief.kept.is_empty() || state.applied_lsn <= state.live_lsn;
        if state.handed_over || near && follows {
            break;
        }
        tokio::time::sleep(CAUGHT_UP_POLL).await;
    }
    destination.hand_over().await?;
    loop {
        match destination.state().await? {
            Some(state) if state.newest_epoch > brief.epoch => return Err(destination::Error::Superseded(state.newest_epoch).into()),
            Some(state) if state.caught_up => return Ok(()),
            Some(_) => tokio::time::sleep(CAUGHT_UP_POLL).await,
            None => return Err(Trouble::Waiting("the ledger no longer has this epoch".into())),
        }
    }
}

/// Compares the shadows with what the source has, if the brief wants that. Last of all, so that nothing that happened to a shadow since its load goes unnoticed;
/// what was compared once is not read again while the swap is tried again.
pub(crate) async fn verify(brief: &Brief, destination: &dyn Destination) -> Result<(), Trouble> {
    if !verify::is_wanted(brief) {
        return Ok(());
    }
    let left: Vec<_> = destination.tables().await?.into_iter().filter(|table| !table.verified).collect();
    let compared = left.iter().map(|table| verify_table(brief, destination, table));
    stream::iter(compared.collect::<Vec<_>>()).buffer_unordered(COMPARED).try_collect().await
}

async fn verify_table(brief: &Brief, destination: &dyn Destination, table: &LedgerTable) -> Result<(), Trouble> {
    let Some(at_source) = &table.measured else {
        return Err(Trouble::Waiting(format!("{}: the source has not been asked yet what it has", table.schema.source)));
    };
    let found = destination.measure(&table.schema).await?;
    verify::compare(&table.schema, at_source, &found).map_err(destination::Error::Permanent)?;
    let remark = verify::remark(&table.schema, brief.verification);
    Ok(destination.verified(&table.schema, &found, remark.as_deref()).await?)
}

/// Brings the destination's sequences to where the source's are, if the Mirror wants that.
pub async fn follow_sequences(brief: &Brief, destination: &dyn Destination) -> Result<(), Trouble> {
    if brief.sequences == Sequences::Ignore {
        return Ok(());
    }
    let tables: Vec<_> = destination.tables().await?.into_iter().map(|table| table.schema).collect();
    let sequences = sequence::read(&source(brief).await?, &tables).await?;
    if let Some(problem) = sequence::problems(brief, &sequences).into_iter().next() {
        // It was readable when the epoch began: people can put that right, and what was loaded is not thrown away for it.
        return Err(Trouble::Waiting(problem.message));
    }
    Ok(destination.follow_sequences(&sequences).await?)
}

/// Without its slot the new tables would stand still from the first moment. A source that cannot be asked just now says nothing about it.
async fn refuse_lost_slot(brief: &Brief) -> Result<(), Error> {
    let looked = async { slot::refuse_lost(&source(brief).await?, brief).await };
    match looked.await {
        Err(error) if error.is_permanent() => Err(error),
        Err(error) => {
            tracing::warn!(%error, "the slot could not be looked at before the swap");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// See [`cleanup`]. The fence comes before the slot is dropped: a pod that nobody could stop may begin or swap at any moment until then, and to drop the
/// slot of a live epoch loses changes, while a slot that stays for a moment longer only takes room. The source is reached before the fence, for the
/// destination forgets with it that the epoch began; should the connection be lost in between, the next try still drops this epoch's slot, and
/// the next epoch those of earlier ones.
pub async fn cleanup_at(brief: &Brief, destination: &dyn Destination) -> Result<Option<SwapReport>, Trouble> {
    let state = destination.state().await?;
    if state.as_ref().is_some_and(|state| state.swapped) {
        return Ok(destination.swapped().await?);
    }
    let source = source(brief).await?;
    destination.abandon().await?;
    if let Some(swapped) = destination.swapped().await? {
        return Ok(Some(swapped));
    }
    // If it began, no earlier epoch will stream again; if not, or if its handover is live, the one before it streams on.
    let first = if state.is_some() && !brief.is_live() { 0 } else { brief.epoch };
    slot::drop_epochs(&source, brief, |epoch| (first..=brief.epoch).contains(&epoch)).await?;
    Ok(None)
}

/// See [`forget`].
pub async fn forget_at(brief: &Brief, destination: &dyn Destination, drop_tables: bool) -> Result<(), Trouble> {
    at_source(brief, |_| true).await?;
    Ok(destination.forget(drop_tables).await?)
}

async fn at_source(brief: &Brief, which: impl Fn(u32) -> bool) -> Result<(), Error> {
    slot::drop_epochs(&source(brief).await?, brief, which).await
}

async fn source(brief: &Brief) -> Result<tokio_postgres::Client, Error> {
    Ok(connect::connect(&brief.source, &slot::housekeeping(brief)).await?)
}

async fn open(brief: &Brief) -> Result<Box<dyn Destination>, Failure> {
    destination::open(brief).await.map_err(|error| Trouble::from(error).failure())
}
