//! The fence: the newest epoch in the ledger. Whoever is of an earlier one stops, or is ended.

use serde::Deserialize;

use super::{
    ClickHouse,
    ledger::{FACT, MIRROR, tables_of_ledger},
    quote::literal,
};
use crate::{
    brief::Brief,
    destination::{
        Error,
        fact::{Begun, Fact, GivenUp},
        given_up, gone,
    },
};

/// Numbers of the facts that an epoch is given up: from the first on its own swap does not come to its end, from the second on nobody else brings it there.
pub(super) const GIVEN_UP: u32 = 0;
pub(super) const TAKEN_BACK: u32 = 1;

impl ClickHouse {
    /// The newest epoch of the mirror that was begun.
    pub(super) async fn newest(&self) -> Result<Option<u32>, Error> {
        #[derive(Deserialize)]
        struct Newest {
            newest: u32,
        }
        if !self.has_ledger().await? {
            return Ok(None);
        }
        let sql = format!("SELECT max(epoch) AS newest FROM {} WHERE mirror = {}", self.ledger(MIRROR), literal(&self.brief.mirror_uid));
        let found = self.client()?.row::<Newest>(&sql, "reading the ledger").await?.newest;
        Ok((found > 0).then_some(found))
    }

    /// Whether another epoch of the mirror has begun, and not only its number been used to close the fence.
    pub(super) async fn has_begun(&self, epoch: u32) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Found {
            n: u64,
        }
        let sql = format!(
            "SELECT count() AS n FROM {} WHERE mirror = {} AND epoch = {epoch} AND kind = {}",
            self.ledger(FACT),
            literal(&self.brief.mirror_uid),
            literal(Begun::KIND)
        );
        Ok(self.client()?.row::<Found>(&sql, "reading the ledger").await?.n > 0)
    }

    /// A condition that this epoch is not given up as far as that, and one that no newer one has begun. Read by the very statement that depends on it: whoever makes it
    /// false ends those statements that began before.
    pub(super) fn is_not_given_up(&self, deed: u32) -> String {
        let Brief { mirror_uid, epoch, .. } = &self.brief;
        let (fact, mirror, kind) = (self.ledger(FACT), literal(mirror_uid), literal(GivenUp::KIND));
        format!("(SELECT count() FROM {fact} WHERE mirror = {mirror} AND epoch = {epoch} AND kind = {kind} AND number >= {deed}) = 0")
    }

    /// See [`is_not_given_up`](Self::is_not_given_up).
    pub(super) fn is_newest(&self) -> String {
        let Brief { mirror_uid, epoch, .. } = &self.brief;
        format!("(SELECT max(epoch) FROM {} WHERE mirror = {}) = {epoch}", self.ledger(MIRROR), literal(mirror_uid))
    }

    /// Stops whoever is of an earlier epoch.
    pub(super) async fn fence(&self) -> Result<(), Error> {
        match self.newest().await? {
            None => Err(gone(&self.brief)),
            Some(newest) if newest > self.brief.epoch => Err(Error::Superseded(newest)),
            Some(_) => Ok(()),
        }
    }
}

/// See [`Destination::begin`](crate::destination::Destination::begin).
///
/// A statement that has passed the fence in an earlier epoch may still run: once the new epoch is in the ledger, those are ended and waited for.
pub(super) async fn begin(at: &ClickHouse) -> Result<(), Error> {
    let client = at.client()?;
    if !at.has_ledger().await? {
        for statement in tables_of_ledger(at.ddl(), &at.to.at.database) {
            client.run(&statement, "creating the ledger").await?;
        }
    }
    if let Some(newest) = at.newest().await?.filter(|newest| *newest > at.brief.epoch) {
        return Err(Error::Superseded(newest));
    }
    raise(at, at.brief.epoch, &at.is_not_given_up(GIVEN_UP)).await?;
    match at.newest().await? {
        Some(newest) if newest > at.brief.epoch => return Err(Error::Superseded(newest)),
        Some(newest) if newest == at.brief.epoch => {}
        _ => return Err(given_up(&at.brief)),
    }
    end_queries_before(at, at.brief.epoch).await?;
    if at.facts(&[Begun::KIND]).await?.get::<Begun>(0)?.is_none() {
        at.record(&[at.entry(0, 0, &Begun { resync: at.brief.resync_uid.clone(), slot: at.brief.slot() })?]).await?;
    }
    Ok(())
}

/// Closes the fence behind all epochs before this one, if a condition holds when the statement begins.
pub(super) async fn raise(at: &ClickHouse, epoch: u32, condition: &str) -> Result<(), Error> {
    let name = format!("{}/{}", at.brief.namespace, at.brief.mirror);
    let sql = format!(
        "INSERT INTO {} (mirror, epoch, name) SELECT {}, {}, {} WHERE {condition}",
        at.ledger(MIRROR),
        literal(&at.brief.mirror_uid),
        epoch,
        literal(&name)
    );
    at.client()?.run(&sql, "writing the ledger").await.map(drop)
}

/// Ends the queries of epochs before this one, told by their ids, and returns when none is left.
pub(super) async fn end_queries_before(at: &ClickHouse, epoch: u32) -> Result<(), Error> {
    let pattern = literal(&format!("^{}-e([0-9]{{1,9}})-", super::query_prefix(&at.brief)));
    let older = format!("toUInt32OrZero(extract(query_id, {pattern})) BETWEEN 1 AND {}", epoch.saturating_sub(1));
    end_queries(at, &older, "ending queries of earlier epochs").await
}

/// Ends what is written in this epoch by whomever: what was asked for before a reply was lost, or by a pod that is gone.
pub(super) async fn end_writers(at: &ClickHouse) -> Result<(), Error> {
    let prefix = literal(&format!("{}-e{}-", super::query_prefix(&at.brief), at.brief.epoch));
    end_queries(at, &format!("startsWith(query_id, {prefix}) AND query_kind = 'Insert'"), "ending statements of an earlier stream").await
}

async fn end_queries(at: &ClickHouse, which: &str, doing: &str) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Left {
        n: u64,
    }
    let left = format!("SELECT count() AS n FROM {} WHERE {which} AND query_id != queryID()", at.ddl().processes());
    // One server sees its own queries. Those of a cluster may not be shown what runs on the others, but each ends what runs on itself.
    let mut seen = at.to.cluster.is_none();
    for _ in 0..60 {
        if seen && at.client()?.row::<Left>(&left, doing).await?.n == 0 {
            return Ok(());
        }
        // The answer comes when they have ended.
        at.client()?.run(&at.ddl().kill(which), doing).await?;
        seen = true;
    }
    Err(Error::Transient(format!("{doing}: they do not end; waiting for them")))
}
