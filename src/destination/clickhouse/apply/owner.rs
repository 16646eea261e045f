//! Who may apply: of all processes that opened the applier of an epoch, the last one.
//!
//! Where rows are versioned, two at once would do no harm, as the checkpoint is the highest one; but one of them would be of no use. Where what is written last counts,
//! statements look at the owner themselves (`apply.rs`, `fence`).

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::ClickHouse;
use crate::destination::{
    Error,
    fact::{Fact, Owner as OwnerFact},
    gone,
};

/// A process, as the ledger knows it.
#[derive(Debug)]
pub(in super::super) struct Owner {
    name: String,
    /// Whether an applier was once this process' own.
    owned: AtomicBool,
}

impl Default for Owner {
    fn default() -> Self {
        Self { name: format!("{:016x}{:016x}", super::super::random(), super::super::random()), owned: AtomicBool::new(false) }
    }
}

/// Makes this process' next applier the one that may move the checkpoint; returns its token.
pub(super) async fn take_over(at: &ClickHouse, before: Option<(u64, OwnerFact)>) -> Result<String, Error> {
    let owner = &at.owner;
    let mine = |token: &str| token.starts_with(&owner.name);
    // Whoever has owned the stream once takes it back from nobody but himself.
    if owner.owned.load(Ordering::SeqCst) && before.as_ref().is_some_and(|(_, fact)| !mine(&fact.token)) {
        return Err(Error::Displaced);
    }
    let turn = before.map_or(0, |(turn, _)| turn) + 1;
    let token = format!("{}/{turn}", owner.name);
    at.record(&[at.entry(0, turn, &OwnerFact { token: token.clone() })?]).await?;
    check(at, &token).await?;
    owner.owned.store(true, Ordering::SeqCst);
    Ok(token)
}

/// Whether the applier with this token is still the one.
pub(super) async fn check(at: &ClickHouse, token: &str) -> Result<(), Error> {
    match at.facts(&[OwnerFact::KIND]).await?.get::<OwnerFact>(0)? {
        Some(fact) if fact.token == token => Ok(()),
        Some(_) => Err(Error::Displaced),
        None => Err(gone(&at.brief)),
    }
}
