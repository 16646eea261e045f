//! Streams changes and keeps the pod's report up to date meanwhile.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Board;
use crate::{
    brief::Brief,
    destination::{Destination, Error as DestinationError},
    stream::{self, Ended, Health, bound::Bound},
    trouble::Trouble,
};

/// How often the tables' counts are read from the ledger.
const COUNTS: Duration = Duration::from_secs(3);

/// Streams until `shutdown`, or until a newer epoch or another pod has taken over; not beyond `bound`.
pub async fn stream(
    brief: &Brief,
    destination: &dyn Destination,
    board: &Board,
    bound: Bound,
    shutdown: &CancellationToken,
) -> Result<(), Trouble> {
    let (health, seen) = watch::channel(Health::default());
    let ended = tokio::select! {
        ended = stream::run(brief, destination, &health, bound, shutdown.clone()) => ended,
        never = tell(destination, board, seen) => match never {},
    };
    match ended {
        Ended::Shutdown => Ok(()),
        Ended::Superseded(newer) => Err(DestinationError::Superseded(newer).into()),
        Ended::Displaced => Err(DestinationError::Displaced.into()),
    }
}

async fn tell(destination: &dyn Destination, board: &Board, mut seen: watch::Receiver<Health>) -> std::convert::Infallible {
    let mut counts = tokio::time::interval(COUNTS);
    counts.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = seen.changed() => {
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            _ = counts.tick() => {
                // The destination may be away for a moment; the stream itself says so.
                if let Err(error) = board.refresh(destination).await {
                    tracing::debug!(%error, "the tables' counts could not be read");
                }
            }
        }
        let health = seen.borrow_and_update().clone();
        board.update(|report| {
            report.stream = Some(health.stream);
            report.failure = health.failure;
        });
    }
}
