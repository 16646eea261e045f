//! Who may apply: of all processes that opened the applier of an epoch, the last one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::{BigQuery, error::meaning, quote::literal};
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
    /// How many jobs it has seen to their end.
    writes: AtomicU64,
}

impl Owner {
    /// Whether the change stream is, or was, this process' own.
    pub(in super::super) fn owns(&self) -> bool {
        self.owned.load(Ordering::SeqCst)
    }

    /// Changes with all that this process writes by jobs.
    pub(in super::super) fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// Something was written, or may have been.
    pub(in super::super) fn writes_more(&self) {
        self.writes.fetch_add(1, Ordering::SeqCst);
    }
}

impl Default for Owner {
    fn default() -> Self {
        Self { name: format!("{:016x}", super::super::random()), owned: AtomicBool::new(false), writes: AtomicU64::new(0) }
    }
}

/// Makes this process' next applier the one that may apply; returns its token. Each turn is recorded once, so that of two who ask for it one has it. Once it is
/// ours, what others have begun is ended, and what they begin from now on finds that it is not theirs.
pub(super) async fn take_over(at: &BigQuery) -> Result<String, Error> {
    let owner = &at.owner;
    loop {
        let before = at.facts(&[OwnerFact::KIND]).await?.versioned::<OwnerFact>(0)?;
        // Whoever has owned the stream once takes it back from nobody but himself.
        if owner.owned.load(Ordering::SeqCst) && before.as_ref().is_some_and(|(_, fact)| !fact.token.starts_with(&owner.name)) {
            return Err(Error::Displaced);
        }
        let turn = before.map_or(0, |(turn, _)| turn) + 1;
        let token = format!("{}/{turn}", owner.name);
        at.record_once(&format!("owner{turn}"), at.entry(0, turn, &OwnerFact { token: token.clone() })?).await?;
        match at.facts(&[OwnerFact::KIND]).await?.get::<OwnerFact>(0)? {
            Some(fact) if fact.token == token => {
                owner.owned.store(true, Ordering::SeqCst);
                let streams = format!("{}apply-", super::super::mark::jobs_of_epoch(&at.brief));
                at.jobs().await?.end(|id| id.starts_with(&streams)).await.map_err(|e| meaning(&e, "ending an earlier stream"))?;
                return Ok(token);
            }
            Some(_) => {}
            None => return Err(gone(&at.brief)),
        }
    }
}

/// What the ids of the jobs of an applier begin with, below those of its epoch.
pub(super) fn id(token: &str) -> String {
    format!("apply-{}", token.replace('/', "-"))
}

/// A condition on the ledger that holds while nobody else has taken over.
pub(super) fn is_owner(at: &BigQuery, token: &str) -> String {
    format!(
        "(SELECT ARRAY_AGG(JSON_VALUE(value, '$.token') ORDER BY version DESC LIMIT 1)[SAFE_OFFSET(0)] FROM {} WHERE epoch = {} AND kind = {}) = {}",
        at.quoted(&at.ledger()),
        at.brief.epoch,
        literal(OwnerFact::KIND),
        literal(token)
    )
}

/// Whether the applier with this token is still the one.
pub(super) async fn check(at: &BigQuery, token: &str) -> Result<(), Error> {
    match at.facts(&[OwnerFact::KIND]).await?.get::<OwnerFact>(0)? {
        Some(fact) if fact.token == token => Ok(()),
        Some(_) => Err(Error::Displaced),
        None => Err(gone(&at.brief)),
    }
}
