//! The live handover: the epoch before this one streams into the live tables until this one's shadows are as fresh as they are.
//!
//! Who has what is in the ledger. The swap Job fences the old epoch; from then on what that has applied is final. This pod applies up to there at least, and
//! says that it applies no more; then the Job carries and swaps.

use std::{convert::Infallible, future::pending, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::{SWAP_POLL, board::Board, changes, hold::verdict, open_still};
use crate::{
    brief::{Brief, DestinationPeer},
    destination::{self, Destination, Error as DestinationError, LedgerTable},
    finish, name,
    postgres::{Lsn, connect},
    report::{Failure, Stage},
    source::{Error as SourceError, catalog::Catalog, slot},
    stream::bound::{Bound, Limit},
    trouble::Trouble,
};

/// Between tries to drop the old slot: it keeps the source's log.
const PAUSE: Duration = Duration::from_secs(5);

/// How long the old pod may take to end.
const OLD_POD: Duration = Duration::from_secs(20);

/// What keeps the epoch before this one from streaming on meanwhile.
pub fn problem(brief: &Brief) -> Option<Failure> {
    let applies = matches!(brief.destination, DestinationPeer::Postgres(_));
    (brief.is_live() && !applies).then(destination::no_live_handover)
}

/// Tables that are kept but would be in no publication, or another table by their name: their changes would be missing from the swap on. Those that the old
/// stream passes over miss them already.
pub async fn kept_problems(brief: &Brief, catalog: &Catalog) -> Result<Vec<Failure>, Trouble> {
    if brief.kept.is_empty() {
        return Ok(vec![]);
    }
    let old = Brief { epoch: brief.previous_epoch, kept: vec![], ..brief.clone() };
    let streamed =
        destination::open(&old).await?.tables().await?.into_iter().filter(|t| brief.keeps(t.schema.number) && t.parked.is_none());
    let problem = |table: LedgerTable| {
        let (number, source) = (table.schema.number, &table.schema.source);
        let same = catalog.tables.iter().any(|t| t.number == number && t.source_oid == table.schema.source_oid);
        let cause = catalog.of_kept.get(&number).map_or("the source has another table of that name", |p| p.message.as_str());
        let message = format!(
            "{source} stays as it is, but cannot be streamed so any more: {cause}. List it in tables too, or apply a MirrorResync of all tables"
        );
        (!same).then(|| Failure { reason: "KeptTable".into(), message, permanent: true })
    };
    Ok(streamed.filter_map(problem).collect())
}

/// Streams into the shadows until they have all that the live tables have, and the swap Job has seen to it that these get no more.
pub async fn catch_up(brief: &Brief, destination: &dyn Destination, board: &Board, shutdown: &CancellationToken) -> Result<(), Trouble> {
    // As long as the shadows are what the snapshot was.
    finish::verify(brief, destination).await?;
    board.stage(Stage::CatchingUp);
    let (bound, told) = watch::channel(limit(brief, Lsn(0), false));
    tokio::select! {
        ended = changes::stream(brief, destination, board, Bound::new(told), shutdown) => ended,
        // The stream may be dropped at any moment; from then on nothing is applied.
        ended = until_caught_up(brief, destination, board, &bound) => ended,
    }
}

/// Tables that are kept go on where the old stream has ended, so the new one must not be beyond: it follows the old one.
fn limit(brief: &Brief, live: Lsn, handed_over: bool) -> Limit {
    Limit { before: if brief.kept.is_empty() { Lsn(u64::MAX) } else { live }, soon: handed_over }
}

async fn until_caught_up(brief: &Brief, destination: &dyn Destination, board: &Board, bound: &watch::Sender<Limit>) -> Result<(), Trouble> {
    let mut source = None;
    let (mut look, mut behind) = (Instant::now(), false);
    loop {
        sleep(SWAP_POLL).await;
        match destination.state().await {
            Ok(Some(state)) if state.newest_epoch > brief.epoch => return Err(DestinationError::Superseded(state.newest_epoch).into()),
            Ok(Some(state)) => {
                let next = limit(brief, state.live_lsn, state.handed_over);
                bound.send_if_modified(|limit| std::mem::replace(limit, next) != next);
                behind = !brief.kept.is_empty() && state.live_lsn < state.start_lsn;
                let reached = board.report().stream.map(|stream| stream.applied_lsn).unwrap_or_default();
                if state.handed_over && destination.catch_up(reached).await? {
                    return Ok(());
                }
            }
            Ok(None) => return Err(Trouble::Waiting("the ledger no longer has this epoch".into())),
            // The stream says so too.
            Err(error) => tracing::debug!(%error, "the ledger could not be read"),
        }
        if look.elapsed() >= PAUSE {
            look = Instant::now();
            refuse_parked(destination).await?;
            if behind {
                verdict(look_at_old_slot(brief, &mut source).await)?;
            }
        }
    }
}

/// A table that is passed over misses changes which the live one has: it must not take its place.
async fn refuse_parked(destination: &dyn Destination) -> Result<(), Trouble> {
    let parked = destination.tables().await?.into_iter().find_map(|table| table.parked);
    parked.map_or(Ok(()), |why| Err(destination::shadow_parked(&why).into()))
}

/// Without its slot the old stream does not come to where the new one begins, and what the kept tables miss in between is in neither.
async fn look_at_old_slot(brief: &Brief, source: &mut Option<Client>) -> Result<(), SourceError> {
    let old = name::slot(&brief.mirror, &brief.mirror_uid, brief.previous_epoch);
    match slot::standing(open_still(brief, source).await?, &old).await?.lost {
        None => Ok(()),
        Some(cause) => {
            let message = format!("{cause}, so the tables that are kept miss changes. Apply a MirrorResync of all tables");
            Err(SourceError::refused("SlotLost", message))
        }
    }
}

/// Drops the slots, publications and sessions of the epochs before this one, whose tables are no longer live; then waits for ever.
pub async fn drop_earlier(brief: &Brief) -> Infallible {
    while brief.is_live()
        && let Err(error) = dropped(brief).await
    {
        tracing::warn!(%error, "the slots of earlier epochs could not be dropped; trying again");
        sleep(PAUSE).await;
    }
    pending().await
}

async fn dropped(brief: &Brief) -> Result<(), SourceError> {
    let client = connect::connect(&brief.source, &slot::housekeeping(brief)).await?;
    // The old pod would say that its slot is lost, until the operator has ended it.
    let patience = Instant::now() + OLD_POD;
    while Instant::now() < patience && slot::has_sessions(&client, brief, |epoch| epoch < brief.epoch).await? {
        sleep(SWAP_POLL).await;
    }
    slot::drop_epochs(&client, brief, |epoch| epoch < brief.epoch).await
}
