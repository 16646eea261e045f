//! How far a stream may go.

use tokio::sync::watch;

use crate::postgres::Lsn;

/// Transactions whose commit record starts at or after it are not applied yet. It only grows.
#[derive(Clone, Debug, Default)]
pub struct Bound(Option<watch::Receiver<Lsn>>);

impl Bound {
    /// None at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// Where `told` says. Once nobody says so any more it stays.
    pub fn new(told: watch::Receiver<Lsn>) -> Self {
        Self(Some(told))
    }

    /// Where it is.
    pub fn now(&self) -> Lsn {
        self.0.as_ref().map_or(Lsn(u64::MAX), |told| *told.borrow())
    }

    /// Waits until it has moved.
    pub async fn moved(&mut self) {
        if let Some(told) = &mut self.0
            && told.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}
