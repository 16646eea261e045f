//! Who may apply: of all processes that opened the applier of an epoch, the last one. The transaction of each batch looks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::{Snowflake, ledger::of_kinds, quote::literal, transaction::Transaction};
use crate::destination::{
    Error,
    fact::{self, Fact, Owner as OwnerFact},
    gone,
};

/// A process, as the ledger knows it.
#[derive(Debug)]
pub(in super::super) struct Owner {
    name: String,
    /// Whether an applier was once this process' own.
    owned: AtomicBool,
    /// How often it has written something since it owns the stream.
    writes: AtomicU64,
}

impl Owner {
    /// 0 as long as others write.
    pub(in super::super) fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// Something is written.
    pub(super) fn writes_more(&self) {
        self.writes.fetch_add(1, Ordering::SeqCst);
    }
}

impl Default for Owner {
    fn default() -> Self {
        Self {
            name: format!("{:016x}{:016x}", super::super::random(), super::super::random()),
            owned: AtomicBool::new(false),
            writes: AtomicU64::new(0),
        }
    }
}

/// Makes this process' next applier the one that may move the checkpoint; returns its token.
pub(super) async fn take_over(at: &Snowflake) -> Result<String, Error> {
    let owner = &at.owner;
    let mut transaction = Transaction::fenced(at).await?;
    let before = transaction.facts_where(&of_kinds(&[OwnerFact::KIND])).await?.versioned::<OwnerFact>(0)?;
    // Whoever has owned the stream once takes it back from nobody but himself.
    if owner.owned.load(Ordering::SeqCst) && before.as_ref().is_some_and(|(_, fact)| !fact.token.starts_with(&owner.name)) {
        transaction.roll_back().await;
        return Err(Error::Displaced);
    }
    let turn = before.map_or(0, |(turn, _)| turn) + 1;
    let token = format!("{}/{turn}", owner.name);
    transaction.record(&[at.entry(0, turn, &OwnerFact { token: token.clone() })?]).await?;
    transaction.commit().await?;
    owner.owned.store(true, Ordering::SeqCst);
    owner.writes_more();
    Ok(token)
}

/// The condition under which the applier with this token is still the one.
pub(super) fn condition(at: &Snowflake, token: &str) -> Result<String, Error> {
    let value = fact::written(&OwnerFact { token: token.into() })?;
    Ok(format!(
        "EXISTS (SELECT 1 FROM {} WHERE \"EPOCH\" = {} AND \"KIND\" = '{}' AND \"VALUE\" = {})",
        at.ledger(),
        at.brief.epoch,
        OwnerFact::KIND,
        literal(&value)
    ))
}

/// Whether the applier with this token is still the one.
pub(super) async fn check(at: &Snowflake, token: &str) -> Result<(), Error> {
    match at.facts(&[OwnerFact::KIND]).await?.get::<OwnerFact>(0)? {
        Some(fact) if fact.token == token => Ok(()),
        Some(_) => Err(Error::Displaced),
        None => Err(gone(&at.brief)),
    }
}
