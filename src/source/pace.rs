//! Bounds the bytes read in a second.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket that holds what a quarter of a second brings: reading never stands still for long, and never runs far ahead.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: Option<f64>,
    available: f64,
    since: Instant,
}

impl Pace {
    /// `None` bounds nothing.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.map(|b| b.max(1) as f64), available: 0.0, since: Instant::now() }
    }

    /// A worker's part of a bound that holds for all workers together.
    pub fn share(bytes_per_second: Option<u64>, workers: u32) -> Self {
        Self::new(bytes_per_second.map(|b| b / u64::from(workers.max(1))))
    }

    /// Waits until `bytes` more may be read.
    pub async fn take(&mut self, bytes: usize) {
        let now = Instant::now();
        let wait = self.owed(bytes, now);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes `bytes` and says how long that is too early. Debt is kept, so that the mean is exact whatever the pieces' size.
    fn owed(&mut self, bytes: usize, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let earned = now.saturating_duration_since(self.since).as_secs_f64() * rate;
        self.since = now;
        self.available = (self.available + earned).min(rate / 4.0) - bytes as f64;
        // A rate of one byte a second and a huge row must not overflow.
        Duration::try_from_secs_f64((-self.available / rate).clamp(0.0, 86_400.0)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_a_quarter_second(rate in 1_000u64..10_000_000, pieces in proptest::collection::vec((0usize..500_000, 0u64..200), 1..50)) {
            let start = Instant::now();
            let (mut pace, mut now, mut taken) = (Pace::new(Some(rate)), start, 0);
            pace.since = start;
            for (bytes, pause) in pieces {
                now += Duration::from_millis(pause);
                now += pace.owed(bytes, now);
                taken += bytes;
                let allowed = rate as f64 * ((now - start).as_secs_f64() + 0.25) + 1.0;
                prop_assert!(taken as f64 <= allowed, "{taken} > {allowed}");
            }
        }
    }

    #[test]
    fn a_share_is_that_of_one_worker() {
        assert_eq!(Pace::share(Some(1_000), 4).bytes_per_second, Some(250.0));
        assert_eq!(Pace::share(Some(1_000), 0).bytes_per_second, Some(1_000.0));
    }

    #[test]
    fn without_a_bound_nothing_waits() {
        let mut pace = Pace::share(None, 4);
        assert_eq!(pace.owed(usize::MAX, Instant::now()), Duration::ZERO);
    }
}
