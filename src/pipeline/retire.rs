//! Drops the old tables when they have been kept long enough.

use std::{convert::Infallible, future::pending, time::Duration};

use jiff::Timestamp;

use crate::{brief::Brief, destination::Destination, report::SwapReport};

/// Between tries; old tables only take room.
const PAUSE: Duration = Duration::from_secs(60);

/// Waits for the end of `keepOld`, drops the retired tables, and then waits for ever.
pub async fn when_due(brief: &Brief, destination: &dyn Destination, swap: Option<&SwapReport>) -> Infallible {
    let Some(swapped_at) = swap.and_then(|swap| swap.at.parse::<Timestamp>().ok()) else { return pending().await };
    tokio::time::sleep(left(swapped_at, Timestamp::now(), Duration::from_millis(brief.keep_old_millis))).await;
    while let Err(error) = destination.drop_retired().await {
        tracing::warn!("dropping the old tables: {error}; trying again");
        tokio::time::sleep(PAUSE).await;
    }
    pending().await
}

/// How long the old tables are still kept.
fn left(swapped_at: Timestamp, now: Timestamp, keep: Duration) -> Duration {
    // A clock that runs ahead makes the age negative: they are then kept longer, never shorter.
    let age = now.duration_since(swapped_at);
    keep.saturating_sub(age.unsigned_abs()).max(if age.is_negative() { keep } else { Duration::ZERO })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_tables_are_kept_for_their_time() {
        let at: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let after = |seconds| at + jiff::SignedDuration::from_secs(seconds);
        let keep = Duration::from_secs(100);
        assert_eq!(left(at, after(0), keep), keep);
        assert_eq!(left(at, after(40), keep), Duration::from_secs(60));
        assert_eq!(left(at, after(4000), keep), Duration::ZERO);
        assert_eq!(left(at, after(-50), keep), keep);
        assert_eq!(left(at, after(0), Duration::ZERO), Duration::ZERO);
    }
}
