//! The ends: of the tables that a swap retired, of an epoch that is given up, and of a whole mirror.

use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::{GenericClient, Row, Transaction};

use super::{
    Postgres, dependents,
    error::{At, depended_on, lock_not_granted},
    ledger, sequence,
    session::{Session, check, commit, fence_alone_soon, pass},
};
use crate::{brief::Brief, destination::Error, postgres::qualified};

/// Bound on the wait for the users of shadows and of a forgotten mirror's tables. Nobody reads retired tables or shadows but sessions that opened them before.
const WAIT: &str = "SET LOCAL lock_timeout = '10s'";

/// See [`Destination::drop_retired`](crate::destination::Destination::drop_retired).
pub(super) async fn drop_retired(at: &Postgres) -> Result<(), Error> {
    let mut session = at.session().await?;
    if !ledger::exists(session.client()).await? || ledger::swap_report(session.client(), &at.brief).await?.is_none() {
        session.keep();
        return Ok(());
    }
    drop_all_retired(&mut session, &at.brief).await?;
    session.keep();
    Ok(())
}

/// A table of the mirror's, as the ledger and the catalog agree on it.
pub(super) struct Found {
    pub oid: u32,
    /// Its quoted name.
    pub sql: String,
}

impl Found {
    /// From a row of oid, schema and name.
    fn read(row: &Row) -> Self {
        Self { oid: row.get(0), sql: qualified(row.get(1), row.get(2)) }
    }
}

/// What swaps of earlier epochs have retired and nobody has dropped.
pub(super) async fn of_earlier_swaps(client: &impl GenericClient, brief: &Brief) -> Result<Vec<Found>, Error> {
    let sql = "SELECT c.oid, n.nspname, c.relname FROM _mirror_operator.table t
               JOIN pg_catalog.pg_class c ON c.oid = t.retired AND c.relname = t.retired_name
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = t.destination_schema
               WHERE t.mirror = $1::text::uuid AND t.epoch < $2 ORDER BY 1";
    let rows = client.query(sql, &[&brief.mirror_uid, &(brief.epoch as i32)]).await.at("reading the ledger")?;
    Ok(rows.iter().map(Found::read).collect())
}

/// Drops them; the caller holds their locks.
pub(super) fn drop_statement(retired: &[Found]) -> String {
    let names: Vec<&str> = retired.iter().map(|old| old.sql.as_str()).collect();
    if names.is_empty() { String::new() } else { format!("DROP TABLE {}", names.join(", ")) }
}

/// How long the lock of a retired table is waited for: whoever applies changes waits meanwhile, behind the fence.
const RETIRED_WAIT: &str = "SET LOCAL lock_timeout = '200ms'";
/// How often that is tried for one table, and the pause between.
const RETIRED_TRIES: u32 = 20;
const RETIRED_PAUSE: Duration = Duration::from_millis(500);

/// Drops what the swaps of this mirror up to this epoch have retired: one transaction a table.
async fn drop_all_retired(session: &mut Session<'_>, brief: &Brief) -> Result<(), Error> {
    let mut tries = 1;
    loop {
        match drop_one(session, brief).await? {
            Outcome::Dropped => tries = 1,
            Outcome::NothingLeft => break,
            Outcome::InUse(table) if tries >= RETIRED_TRIES => return Err(in_use(&table)),
            Outcome::DependedOn(table, oid) => return Err(Error::Transient(hanging(session.client(), &table, &[oid]).await?)),
            Outcome::InUse(_) => {
                tries += 1;
                sleep(RETIRED_PAUSE).await;
            }
        }
    }
    forget_replaced(session, brief).await
}

/// What became of one retired table.
enum Outcome {
    Dropped,
    NothingLeft,
    /// Somebody reads it.
    InUse(String),
    /// Something hangs on it.
    DependedOn(String, u32),
}

/// Drops one of them, told by oid and name together. It is chosen alone behind the fence: an earlier call of the same,
/// whose reply was lost, may still be at its commit.
async fn drop_one(session: &mut Session<'_>, brief: &Brief) -> Result<Outcome, Error> {
    let doing = "dropping old tables";
    let tx = session.begin(doing).await?;
    if !fence_alone_soon(&tx, brief).await? {
        tx.rollback().await.at(doing)?;
        return Ok(Outcome::InUse("the old tables".into()));
    }
    let sql = "SELECT t.epoch, t.number, t.destination_schema, c.relname, c.oid FROM _mirror_operator.table t
               LEFT JOIN pg_catalog.pg_class c ON c.oid = t.retired AND c.relnamespace =
                   (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = t.destination_schema)
                   AND c.relname = t.retired_name
               WHERE t.mirror = $1::text::uuid AND t.epoch <= $2 AND t.retired IS NOT NULL ORDER BY 1, 2 LIMIT 1";
    let Some(row) = tx.query_opt(sql, &[&brief.mirror_uid, &(brief.epoch as i32)]).await.at("reading the ledger")? else {
        return Ok(Outcome::NothingLeft);
    };
    if let Some(name) = row.get::<_, Option<&str>>(3) {
        let table = qualified(row.get(2), name);
        match tx.batch_execute(&format!("{RETIRED_WAIT}; DROP TABLE IF EXISTS {table}")).await {
            Err(error) if lock_not_granted(&error) => {
                tx.rollback().await.at(doing)?;
                return Ok(Outcome::InUse(table));
            }
            Err(error) if depended_on(&error) => {
                tx.rollback().await.at(doing)?;
                return Ok(Outcome::DependedOn(table, row.get(4)));
            }
            other => other.at(&format!("dropping {table}"))?,
        }
    }
    let sql = "UPDATE _mirror_operator.table SET retired = NULL WHERE mirror = $1::text::uuid AND epoch = $2 AND number = $3";
    tx.execute(sql, &[&brief.mirror_uid, &row.get::<_, i32>(0), &row.get::<_, i32>(1)]).await.at("writing the ledger")?;
    commit(tx, doing).await?;
    Ok(Outcome::Dropped)
}

fn in_use(tables: &str) -> Error {
    Error::Transient(format!("{tables} cannot be dropped yet: other sessions still use them. It is tried again"))
}

/// Says what hangs on tables that cannot be dropped, and the cure.
async fn hanging(client: &impl GenericClient, tables: &str, oids: &[u32]) -> Result<String, Error> {
    match dependents::hanging(client, oids).await?.as_slice() {
        [] => Ok(format!("{tables} could not be dropped: something hung on it. It is tried again")),
        found => Ok(format!("{}. It is tried again", found.join("; "))),
    }
}

/// Epochs before the live one that have neither tables nor retired ones left: their rows go. A table that the Mirror no longer lists still bears its
/// name: its row stays, so that it is known to be this mirror's own should it be listed again.
async fn forget_replaced(session: &mut Session<'_>, brief: &Brief) -> Result<(), Error> {
    let sql = "DELETE FROM _mirror_operator.epoch e USING _mirror_operator.mirror m
               WHERE e.mirror = $1::text::uuid AND e.epoch < least($2, m.live_epoch) AND m.mirror = e.mirror
                 AND e.swapped_at IS NOT NULL AND NOT EXISTS (SELECT FROM _mirror_operator.table t
                     WHERE t.mirror = e.mirror AND t.epoch = e.epoch AND (t.retired IS NOT NULL OR EXISTS (
                         SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                         WHERE c.oid = t.relation AND n.nspname = t.destination_schema AND c.relname = t.destination_name)))";
    session.client().execute(sql, &[&brief.mirror_uid, &(brief.epoch as i32)]).await.at("writing the ledger")?;
    Ok(())
}

/// See [`Destination::abandon`](crate::destination::Destination::abandon).
pub(super) async fn abandon(at: &Postgres) -> Result<(), Error> {
    let doing = "removing the shadows";
    let mut session = at.session().await?;
    if !ledger::exists(session.client()).await? {
        session.keep();
        return Ok(());
    }
    let tx = session.begin(doing).await?;
    pass(&tx, &at.brief, "pg_advisory_xact_lock").await.at("passing the fence")?;
    let epoch = at.brief.epoch as i32;
    let swapped = "SELECT swapped_at IS NOT NULL FROM _mirror_operator.epoch WHERE mirror = $1::text::uuid AND epoch = $2";
    match tx.query_opt(swapped, &[&at.brief.mirror_uid, &epoch]).await.at("reading the ledger")?.map(|row| row.get::<_, bool>(0)) {
        Some(true) => return Ok(()),
        Some(false) => {}
        None => {
            ledger::give_up(&tx, &at.brief).await?;
            commit(tx, doing).await?;
            session.keep();
            return Ok(());
        }
    }
    check(&tx, &at.brief).await?;
    let unswapped = "SELECT c.oid, n.nspname, c.relname FROM _mirror_operator.table t JOIN _mirror_operator.epoch e USING (mirror, epoch)
               JOIN pg_catalog.pg_class c ON c.oid = t.relation AND c.relname = t.shadow_name
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = t.destination_schema
               WHERE t.mirror = $1::text::uuid AND t.epoch = $2 AND e.swapped_at IS NULL";
    let shadows: Vec<Found> = tx.query(unswapped, &[&at.brief.mirror_uid, &epoch]).await.at(doing)?.iter().map(Found::read).collect();
    drop_tables(&tx, &shadows).await?;
    let sql = "DELETE FROM _mirror_operator.epoch WHERE mirror = $1::text::uuid AND epoch = $2";
    tx.execute(sql, &[&at.brief.mirror_uid, &epoch]).await.at(doing)?;
    // A pod of this epoch that nobody could stop finds the fence closed. The next epoch has this very number.
    let mut sql = "UPDATE _mirror_operator.mirror SET epoch = $2 + 1 WHERE mirror = $1::text::uuid";
    if at.brief.is_live() {
        // The epoch before it streams on, or again: such a pod finds nothing of its own any more.
        ledger::give_up(&tx, &at.brief).await?;
        sql = "UPDATE _mirror_operator.mirror SET epoch = live_epoch WHERE mirror = $1::text::uuid AND epoch <= $2 AND live_epoch > 0";
    }
    tx.execute(sql, &[&at.brief.mirror_uid, &epoch]).await.at(doing)?;
    commit(tx, doing).await?;
    session.keep();
    Ok(())
}

/// See [`Destination::forget`](crate::destination::Destination::forget).
pub(super) async fn forget(at: &Postgres, drop_live: bool) -> Result<(), Error> {
    let doing = "forgetting the mirror";
    let mut session = at.session().await?;
    if !ledger::exists(session.client()).await? {
        session.keep();
        return Ok(());
    }
    let tx = session.begin(doing).await?;
    // Alone, but whatever the newest epoch is: a mirror that goes has no newer one to protect.
    pass(&tx, &at.brief, "pg_advisory_xact_lock").await.at("passing the fence")?;
    // Told by oid and by one of the names that the mirror has given: what people have renamed is theirs.
    let sql =
        "SELECT DISTINCT c.oid, n.nspname, c.relname FROM _mirror_operator.table t JOIN _mirror_operator.epoch e USING (mirror, epoch)
               JOIN pg_catalog.pg_namespace n ON n.nspname = t.destination_schema
               JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND CASE
                   WHEN c.oid = t.retired THEN c.relname = t.retired_name
                   WHEN c.oid = t.relation AND e.swapped_at IS NULL THEN c.relname = t.shadow_name
                   WHEN c.oid = t.relation THEN $2 AND c.relname = t.destination_name END
               WHERE t.mirror = $1::text::uuid";
    let tables: Vec<Found> = tx.query(sql, &[&at.brief.mirror_uid, &drop_live]).await.at(doing)?.iter().map(Found::read).collect();
    drop_tables(&tx, &tables).await?;
    if drop_live {
        sequence::drop_unused(&tx, &at.brief).await?;
    }
    tx.execute("DELETE FROM _mirror_operator.mirror WHERE mirror = $1::text::uuid", &[&at.brief.mirror_uid]).await.at(doing)?;
    commit(tx, doing).await?;
    session.keep();
    Ok(())
}

/// A caller whose reply was lost may still be at it: whoever comes second finds nothing to drop. The savepoint keeps the transaction of use where something
/// hangs on a table and has to be named.
async fn drop_tables(tx: &Transaction<'_>, tables: &[Found]) -> Result<(), Error> {
    if tables.is_empty() {
        return Ok(());
    }
    let names = tables.iter().map(|table| table.sql.as_str()).collect::<Vec<_>>().join(", ");
    let doing = format!("dropping {names}");
    match tx.batch_execute(&format!("SAVEPOINT whole; {WAIT}; DROP TABLE IF EXISTS {names}")).await {
        Err(error) if lock_not_granted(&error) => Err(in_use(&names)),
        Err(error) if depended_on(&error) => {
            tx.batch_execute("ROLLBACK TO whole").await.at(&doing)?;
            let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
            Err(Error::Transient(hanging(tx, &names, &oids).await?))
        }
        other => other.at(&doing),
    }
}
