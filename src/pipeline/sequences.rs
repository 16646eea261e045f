//! Keeps the destination's sequences where the source's are while changes are streamed.

use std::{convert::Infallible, future::pending, time::Duration};

use super::board::Board;
use crate::{api::mirror::Sequences, brief::Brief, destination::Destination, finish, report::SequencesReport};

/// Between looks: what the source draws in between is not known at the destination.
const INTERVAL: Duration = Duration::from_secs(10);

/// Follows them for ever. What goes wrong is tried again at the next look; the change stream does not depend on it.
pub async fn follow(brief: &Brief, destination: &dyn Destination, board: &Board) -> Infallible {
    if brief.sequences == Sequences::Ignore {
        return pending().await;
    }
    loop {
        let failure = finish::follow_sequences(brief, destination).await.err().map(|trouble| trouble.failure());
        if let Some(failure) = &failure {
            tracing::warn!(reason = failure.reason, "the sequences cannot be brought up to date: {}", failure.message);
        }
        board.update(|report| report.sequences = Some(SequencesReport { failure }));
        tokio::time::sleep(INTERVAL).await;
    }
}
