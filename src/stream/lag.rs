//! How old the oldest change is that was received and is not applied. Pure.

use jiff::Timestamp;

use crate::postgres::Lsn;

/// A transaction of which something was received that is not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oldest {
    /// Where its commit record starts.
    pub commit: Lsn,
    /// When it committed, by the source's clock.
    pub time: Timestamp,
}

/// The oldest of what waits: the session's own, else what an earlier session left, unless everything up to there was read and applied since.
pub fn oldest(own: Option<Oldest>, before: Option<Oldest>, reached: Lsn) -> Option<Oldest> {
    own.or(before.filter(|before| before.commit >= reached))
}

/// How long ago the oldest committed; 0 if nothing waits. Without a connection there may be some that nobody has seen. A source whose clock is ahead of
/// ours is not ahead of itself.
pub fn seconds(oldest: Option<Oldest>, connected: bool, now: Timestamp) -> Option<u64> {
    match oldest {
        Some(Oldest { time, .. }) => Some(u64::try_from(now.duration_since(time).as_secs()).unwrap_or_default()),
        None => connected.then_some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn committed(second: i64) -> Option<Oldest> {
        Some(Oldest { commit: Lsn(10), time: at(second) })
    }

    #[test]
    fn the_lag_in_seconds_is_the_age_of_the_oldest_commit_that_is_not_applied_and_unknown_where_nobody_listens() {
        assert_eq!(seconds(None, true, at(100)), Some(0));
        assert_eq!(seconds(None, false, at(100)), None);
        assert_eq!(seconds(committed(40), true, at(100)), Some(60));
        assert_eq!(seconds(committed(40), false, at(100)), Some(60), "what was received stays unapplied when the connection is lost");
        assert_eq!(seconds(committed(140), true, at(100)), Some(0), "the source's clock is ahead");
        let earliest = Some(Oldest { commit: Lsn(10), time: Timestamp::MIN });
        assert!(seconds(earliest, true, Timestamp::MAX).is_some());
    }

    #[test]
    fn what_an_earlier_session_left_waits_until_it_was_read_again_and_applied() {
        let (earlier, own) = (committed(40), Some(Oldest { commit: Lsn(12), time: at(50) }));
        assert_eq!(oldest(None, earlier, Lsn(8)), earlier, "the next session has not come so far");
        assert_eq!(oldest(None, earlier, Lsn(10)), earlier, "a transaction ends after its commit record starts");
        assert_eq!(oldest(None, earlier, Lsn(11)), None);
        assert_eq!(oldest(own, earlier, Lsn(11)), own);
        assert_eq!(oldest(None, None, Lsn(0)), None);
    }
}
