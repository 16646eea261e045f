//! How long a worker goes on trying. Pure but for the clock.

use std::time::Duration;

use tokio::time::Instant;

/// Grows the pause between tries, and ends when nothing has succeeded for long.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    success: Instant,
    pause: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Patience {
    /// Gives up after `limit` without success.
    pub fn new(limit: Duration) -> Self {
        Self { limit, success: Instant::now(), pause: FIRST_PAUSE }
    }

    /// Something succeeded.
    pub fn renew(&mut self) {
        *self = Self::new(self.limit);
    }

    /// The pause before the next try; `None` when it is time to give up.
    pub fn next(&mut self) -> Option<Duration> {
        if self.success.elapsed() > self.limit {
            return None;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_shrink_with_success() {
        let mut patience = Patience::new(Duration::from_secs(120));
        let pauses: Vec<_> = (0..8).filter_map(|_| patience.next()).map(|p| p.as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        patience.renew();
        assert_eq!(patience.next(), Some(FIRST_PAUSE));
        patience.success -= Duration::from_secs(121);
        assert_eq!(patience.next(), None);
    }
}
