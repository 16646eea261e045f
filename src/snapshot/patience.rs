//! How long a worker goes on trying. Pure but for the clock.

use std::time::Duration;

use tokio::time::Instant;

/// Grows the pause between tries, and ends when nothing but failures was met for long. How long what succeeds takes does not count: a large chunk may take minutes.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    /// The first failure since the last success.
    failing: Option<Instant>,
    pause: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Patience {
    /// Gives up when there were only failures for `limit`.
    pub fn new(limit: Duration) -> Self {
        Self { limit, failing: None, pause: FIRST_PAUSE }
    }

    /// Something succeeded.
    pub fn renew(&mut self) {
        *self = Self::new(self.limit);
    }

    /// The pause before the next try; `None` when it is time to give up.
    pub fn next(&mut self) -> Option<Duration> {
        if self.failing.get_or_insert_with(Instant::now).elapsed() > self.limit {
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
        patience.failing = patience.failing.map(|since| since - Duration::from_secs(121));
        assert_eq!(patience.next(), None);
        patience.renew();
        assert_eq!((patience.failing, patience.next()), (None, Some(FIRST_PAUSE)), "what went well, however long it took, is no failure");
    }
}
