//! The ends: of the tables that a swap retired, of an epoch that is given up, and of a whole mirror.

use std::collections::BTreeSet;

use super::{
    Snowflake,
    error::{meaning, permanent},
    ledger::{self, of_kinds},
    live, mark, swap,
    transaction::Transaction,
    undo,
};
use crate::{
    destination::{
        Error,
        fact::{Begun, Fact, GivenUp, Swapped, Table},
    },
    table::TableName,
};

/// See [`Destination::drop_retired`](crate::destination::Destination::drop_retired).
pub(super) async fn drop_retired(at: &Snowflake) -> Result<(), Error> {
    if ledger::swap_report(at).await?.is_none() {
        return Ok(());
    }
    at.fence().await?;
    // Whoever swapped may have died before he had put the old tables aside.
    swap::put_aside(at).await?;
    drop_until(at, at.brief.epoch).await?;
    let mut transaction = Transaction::fenced(at).await?;
    let sql = format!("DELETE FROM {} WHERE \"EPOCH\" BETWEEN 1 AND {}", at.ledger(), at.brief.epoch.saturating_sub(1));
    transaction.query(&sql, "writing the ledger").await?;
    transaction.commit().await?;
    clean(at, "e").await;
    Ok(())
}

/// Removes files from the stage. What is left does no harm, and whoever may not remove them, or cannot reach the place, is not kept from ending an epoch.
async fn clean(at: &Snowflake, path: &str) {
    if let Err(error) = at.clean(path).await {
        tracing::warn!(%error, path, "files stay in the stage");
    }
}

/// Drops what the swaps of this mirror up to `epoch` have retired.
pub(super) async fn drop_until(at: &Snowflake, epoch: u32) -> Result<(), Error> {
    for found in live::marked(at).await? {
        if found.mark.generation.is_none() && found.mark.epoch <= epoch {
            undo::drop_aside(at, &found).await?;
        }
    }
    Ok(())
}

/// See [`Destination::abandon`](crate::destination::Destination::abandon).
///
/// What becomes of a swap that was begun stands in `undo.rs`. The fence is closed behind this epoch too: a pod of it that nobody could stop finds it so. The next epoch
/// has the number that closes it. What is left of this one tells a repeated call that it is not done.
pub(super) async fn abandon(at: &Snowflake) -> Result<(), Error> {
    if at.facts(&[Begun::KIND]).await?.get::<Begun>(0)?.is_none() && !give_up(at).await? || ledger::swap_report(at).await?.is_some() {
        return Ok(());
    }
    match undo::forward(at).await {
        // It cannot be finished, or the fence is closed already: by an earlier call, or by a newer epoch.
        Ok(()) => {}
        Err(error @ (Error::Permanent(_) | Error::Superseded(_))) => {
            tracing::info!(%error, "a swap that was begun is taken back, not finished")
        }
        Err(other) => return Err(other),
    }
    let next = at.brief.epoch + 1;
    let mut transaction = Transaction::begin(at).await?;
    at.raise(&mut transaction, next).await?;
    // It may have been finished meanwhile, by itself or by somebody else who gives it up.
    if transaction.facts_where(&of_kinds(&[Swapped::KIND])).await?.get::<Swapped>(0)?.is_some() {
        transaction.roll_back().await;
        return Ok(());
    }
    transaction.commit().await?;
    if at.has_begun(next).await? {
        return Err(Error::Superseded(next));
    }
    undo::back(at).await?;
    clean(at, &format!("e{}g", at.brief.epoch)).await;
    let sql = format!("DELETE FROM {} WHERE \"EPOCH\" = {}", at.ledger(), at.brief.epoch);
    at.client()?.query(&sql, "writing the ledger").await.map(drop)
}

/// Lets an epoch that has not begun never do so, and leaves those before it alone; true if it has begun by now.
async fn give_up(at: &Snowflake) -> Result<bool, Error> {
    let mut transaction = Transaction::begin(at).await?;
    for sql in at.record_sql(&[at.entry(0, 0, &GivenUp {})?]) {
        match transaction.try_query(&sql).await {
            Ok(_) => {}
            Err(refusal) if refusal.is_missing() => {
                transaction.roll_back().await;
                return Ok(false);
            }
            Err(refusal) => return Err(meaning(&refusal, "writing the ledger")),
        }
    }
    // That was written locks the ledger, as its beginning does: what is read now stays true.
    if transaction.facts_where(&of_kinds(&[Begun::KIND])).await?.get::<Begun>(0)?.is_some() {
        transaction.roll_back().await;
        return Ok(true);
    }
    transaction.commit().await?;
    Ok(false)
}

/// See [`Destination::forget`](crate::destination::Destination::forget).
pub(super) async fn forget(at: &Snowflake, drop_live: bool) -> Result<(), Error> {
    // Whatever the newest epoch is: a mirror that goes has no newer one to protect.
    let Some(live) = live_names(at).await? else { return Ok(()) };
    for found in live::marked(at).await? {
        // Under the name of an attempt to swap it also a table that nobody has marked as retired yet.
        let retired = found.mark.generation.is_none()
            && (is_retired_name(&live, &found.name) || mark::is_any_swap(&found.name.name, found.mark.epoch))
            || is_swap_of_any(&live, &found.name);
        if found.is_shadow() || retired {
            undo::drop_aside(at, &found).await?;
        } else if drop_live && live.contains(&found.name) {
            live::drop_table(at, &found.name).await?;
        } else {
            // It stays, and is nobody's from now on; so is what people have renamed.
            live::comment(at, &found.name, &found.words).await?;
        }
    }
    let client = at.client()?;
    at.clean("").await?;
    client.query(&format!("DROP STAGE IF EXISTS {}", at.stage_name()), "dropping the stage").await?;
    client.query(&format!("DROP TABLE IF EXISTS {}", at.ledger()), "dropping the ledger").await.map(drop)
}

fn is_retired_name(live: &BTreeSet<TableName>, table: &TableName) -> bool {
    live.iter().any(|live| mark::retired(live) == *table)
}

fn is_swap_of_any(live: &BTreeSet<TableName>, table: &TableName) -> bool {
    live.iter().any(|live| live.schema == table.schema && mark::swap_of(live, &table.name).is_some())
}

/// The live names of all tables of the mirror that the ledger knows, of whatever epoch; `None` if there is no ledger.
async fn live_names(at: &Snowflake) -> Result<Option<BTreeSet<TableName>>, Error> {
    let sql = format!("SELECT \"VALUE\" FROM {} WHERE \"KIND\" = '{}'", at.ledger(), Table::KIND);
    let answer = match at.client()?.try_query(&sql).await {
        Ok(answer) => answer,
        Err(refusal) if refusal.is_missing() => return Ok(None),
        Err(refusal) => return Err(meaning(&refusal, "reading the ledger")),
    };
    answer
        .rows()
        .map(|row| serde_json::from_str::<Table>(row.text(0)).map(|t| t.schema.destination))
        .collect::<Result<_, _>>()
        .map(Some)
        .map_err(|e| permanent("LedgerUnreadable", e.to_string()))
}
