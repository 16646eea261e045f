//! How far a stream may go, and how soon it is to be there.

use tokio::sync::watch;

use crate::postgres::Lsn;

/// A stream's bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Transactions whose commit record starts at or after it are not applied yet. It only grows.
    pub before: Lsn,
    /// Whether somebody waits for what is read to be applied, so that no more changes are gathered first.
    pub soon: bool,
}

impl Default for Limit {
    fn default() -> Self {
        Self { before: Lsn(u64::MAX), soon: false }
    }
}

/// Where a stream learns of its bound.
#[derive(Clone, Debug, Default)]
pub struct Bound(Option<watch::Receiver<Limit>>);

impl Bound {
    /// None at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// What `told` says. Once nobody says so any more it stays.
    pub fn new(told: watch::Receiver<Limit>) -> Self {
        Self(Some(told))
    }

    /// What it is.
    pub fn now(&self) -> Limit {
        self.0.as_ref().map(|told| *told.borrow()).unwrap_or_default()
    }

    /// Waits until it has changed.
    pub async fn changed(&mut self) {
        if let Some(told) = &mut self.0
            && told.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}
