//! The live handover: the epoch before this one streams into the live tables until this one's shadows are as fresh as they are.
//!
//! Who has what is in the ledger. The swap Job fences the old epoch; from then on what that has applied is final. This pod applies up to there at least, and
//! says that it applies no more; then the Job carries and swaps.

use std::{convert::Infallible, future::pending, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{SWAP_POLL, board::Board, changes};
use crate::{
    brief::{Brief, DestinationPeer},
    destination::{Destination, Error as DestinationError},
    finish,
    postgres::connect,
    report::{Failure, Stage},
    source::slot,
    trouble::Trouble,
};

/// Between tries to drop the old slot: it keeps the source's log.
const PAUSE: Duration = Duration::from_secs(5);

/// What keeps the epoch before this one from streaming on meanwhile.
pub fn problem(brief: &Brief) -> Option<Failure> {
    let applies = matches!(brief.destination, DestinationPeer::Postgres(_));
    (brief.is_live() && !applies).then(|| Failure {
        reason: "HandoverUnsupported".into(),
        message: "handover: Live serves PostgreSQL destinations only. Apply a MirrorResync with DropFirst".into(),
        permanent: true,
    })
}

/// Streams into the shadows until they have all that the live tables have, and the swap Job has seen to it that these get no more.
pub async fn catch_up(brief: &Brief, destination: &dyn Destination, board: &Board, shutdown: &CancellationToken) -> Result<(), Trouble> {
    // As long as the shadows are what the snapshot was.
    finish::verify(brief, destination).await?;
    board.stage(Stage::CatchingUp);
    tokio::select! {
        ended = changes::stream(brief, destination, board, shutdown) => ended,
        // The stream may be dropped at any moment; from then on nothing is applied.
        ended = until_caught_up(brief, destination, board) => ended,
    }
}

async fn until_caught_up(brief: &Brief, destination: &dyn Destination, board: &Board) -> Result<(), Trouble> {
    loop {
        sleep(SWAP_POLL).await;
        match destination.state().await {
            Ok(Some(state)) if state.newest_epoch > brief.epoch => return Err(DestinationError::Superseded(state.newest_epoch).into()),
            Ok(Some(state)) if state.handed_over => {
                let reached = board.report().stream.map(|stream| stream.applied_lsn).unwrap_or_default();
                if destination.catch_up(reached).await? {
                    return Ok(());
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => return Err(Trouble::Waiting("the ledger no longer has this epoch".into())),
            // The stream says so too.
            Err(error) => tracing::debug!(%error, "the ledger could not be read"),
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

async fn dropped(brief: &Brief) -> Result<(), crate::source::Error> {
    let client = connect::connect(&brief.source, &slot::housekeeping(brief)).await?;
    slot::drop_epochs(&client, brief, |epoch| epoch < brief.epoch).await
}
