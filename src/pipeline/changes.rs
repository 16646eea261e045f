//! The stage Streaming: the change stream's health on the board.

use tokio_util::sync::CancellationToken;

use super::board::Board;
use crate::{brief::Brief, destination::Destination, trouble::Trouble};

/// Applies changes until `shutdown`.
pub async fn apply(_brief: &Brief, _destination: &dyn Destination, _board: &Board, shutdown: &CancellationToken) -> Result<(), Trouble> {
    shutdown.cancelled().await;
    Ok(())
}
