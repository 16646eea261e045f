//! The ledger: what is true of each epoch, kept beside the data.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, GenericClient, Transaction, types::PgLsn};

use super::{
    Postgres,
    error::{At, lock_not_granted, meaning, permanent, sqlstate},
    session::{Session, commit, fence_alone, pass},
};
use crate::{
    brief::Brief,
    destination::{Chunk, EpochState, Error, LedgerTable, given_up, gone, shadow_parked},
    name,
    postgres::{Lsn, ident, literal},
    report::{Load, SwapReport, TableReport},
    table::{TableName, TableSchema},
    verify::Measure,
};

/// Key of the advisory lock of whoever makes or upgrades the ledger.
const LOCK: &str = "hashtextextended('mirror-operator ledger', 0)";

/// The ledger's tables.
const TABLES: &str = include_str!("ledger.sql");

/// The version of their layout, as the file itself records it.
const LAYOUT: i32 = 5;

/// How long an upgrade of the layout waits for a lock: whoever uses the ledger waits behind it, be it another mirror, and it is tried again.
const UPGRADE_PATIENCE: &str = "SET LOCAL lock_timeout = '200ms'";

/// How long the fence waits for writers of earlier epochs before it ends their sessions.
const PATIENCE: Duration = Duration::from_secs(5);

/// A table of the epoch with everything that the steps after the load need.
pub(super) struct Entry {
    pub(super) number: i32,
    pub(super) schema: TableSchema,
    pub(super) live: TableName,
    pub(super) shadow: String,
    pub(super) relation: u32,
    pub(super) sealed: bool,
    pub(super) carried: bool,
    pub(super) verified: bool,
    pub(super) indexes: Vec<Built>,
}

/// An index that was built on a shadow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Built {
    /// Its name until the swap.
    pub(super) built: String,
    /// Its name after it, if that is free.
    pub(super) name: String,
    /// What people have written about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) comment: Option<String>,
}

/// Whether the ledger is there.
pub(super) async fn exists(client: &impl GenericClient) -> Result<bool, Error> {
    let sql = "SELECT count(*) = 4 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = '_mirror_operator' AND c.relname IN ('mirror', 'epoch', 'table', 'chunk')";
    Ok(client.query_one(sql, &[]).await.at("looking for the ledger")?.get(0))
}

/// Brings a ledger that an older version has made to the present layout. A newer one serves as it is: layouts only grow.
pub(super) async fn upgrade(client: &mut Client, brief: &Brief) -> Result<(), Error> {
    let doing = "upgrading the ledger";
    if !exists(client).await? || layout(client).await? >= LAYOUT {
        return Ok(());
    }
    let tx = client.transaction().await.at(doing)?;
    tx.batch_execute(&format!("SELECT pg_advisory_xact_lock({LOCK}); {UPGRADE_PATIENCE}")).await.at(doing)?;
    if layout(&tx).await? < LAYOUT {
        match tx.batch_execute(TABLES).await {
            Err(error) if lock_not_granted(&error) => {
                return Err(Error::Transient(format!("{doing}: its tables are in use. It is tried again")));
            }
            Err(error) if sqlstate(&error) == Some("42501") => {
                return Err(permanent(
                    "PermissionDenied",
                    format!(
                        "{}/{}: {doing}: {}. Let the role that owns the tables of schema _mirror_operator be a role of the Peer's: GRANT it TO that",
                        brief.namespace,
                        brief.mirror,
                        crate::postgres::connect::words(&error)
                    ),
                ));
            }
            other => other.at(doing)?,
        }
        tracing::info!(layout = LAYOUT, "the ledger was upgraded");
    }
    commit(tx, doing).await
}

/// The ledger's layout.
async fn layout(client: &impl GenericClient) -> Result<i32, Error> {
    let doing = "reading the ledger's layout";
    if !client.query_one("SELECT to_regclass('_mirror_operator.layout') IS NOT NULL", &[]).await.at(doing)?.get::<_, bool>(0) {
        return Ok(1);
    }
    let row = client.query_opt("SELECT version FROM _mirror_operator.layout", &[]).await.at(doing)?;
    Ok(row.map_or(1, |r| r.get(0)))
}

/// See [`Destination::begin`](crate::destination::Destination::begin).
pub(super) async fn begin(at: &Postgres) -> Result<(), Error> {
    let mut session = at.session().await?;
    if !exists(session.client()).await? {
        let tx = session.begin("creating the ledger").await?;
        create(&tx, &at.brief, &at.to.database, &at.to.user).await?;
        commit(tx, "creating the ledger").await?;
    }
    pass_alone(session, &at.brief, Passage::Begin).await
}

/// See [`Destination::hand_over`](crate::destination::Destination::hand_over).
pub(super) async fn hand_over(at: &Postgres) -> Result<(), Error> {
    pass_alone(at.session().await?, &at.brief, Passage::HandOver).await
}

/// What is recorded behind the fence, where no earlier epoch's writer is.
#[derive(Clone, Copy)]
enum Passage {
    Begin,
    HandOver,
}

/// Records it, and ends the sessions of writers that do not come out from behind the fence.
async fn pass_alone(mut session: Session<'_>, brief: &Brief, passage: Passage) -> Result<(), Error> {
    let doing = match passage {
        Passage::Begin => "beginning the epoch",
        Passage::HandOver => "handing over",
    };
    let mut ended = false;
    loop {
        let tx = session.begin(doing).await?;
        tx.batch_execute(&format!("SET LOCAL lock_timeout = {}", PATIENCE.as_millis())).await.at(doing)?;
        let recorded = match passage {
            Passage::Begin => record(&tx, brief).await,
            Passage::HandOver => record_handover(&tx, brief).await,
        };
        match recorded {
            Ok(Record::Superseded(newest)) => return Err(Error::Superseded(newest)),
            Ok(Record::GivenUp) => return Err(given_up(brief)),
            Ok(Record::Gone) => return Err(gone(brief)),
            Ok(Record::Parked(why)) => return Err(shadow_parked(&why)),
            Ok(Record::Ahead) => return Err(Error::Transient(format!("{doing}: the old stream has not come to where the new one is"))),
            Ok(Record::Done) => {
                commit(tx, doing).await?;
                session.keep();
                return Ok(());
            }
            Err(error) if lock_not_granted(&error) && !ended => ended = true,
            Err(error) => return Err(meaning(&error, doing)),
        }
        tx.rollback().await.at(doing)?;
        end_older_sessions(session.client(), brief).await?;
    }
}

async fn create(tx: &Transaction<'_>, brief: &Brief, database: &str, user: &str) -> Result<(), Error> {
    let doing = "creating the ledger";
    tx.batch_execute(&format!("SELECT pg_advisory_xact_lock({LOCK})")).await.at(doing)?;
    let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = '_mirror_operator')";
    let sql = match tx.query_one(there, &[]).await.at(doing)?.get(0) {
        true => TABLES.to_string(),
        false => format!("CREATE SCHEMA _mirror_operator; {TABLES}"),
    };
    match tx.batch_execute(&sql).await {
        Err(error) if sqlstate(&error) == Some("42501") => Err(permanent(
            "PermissionDenied",
            format!(
                "{}/{}: the ledger, schema _mirror_operator, cannot be created in database {database:?}. Run there: {}",
                brief.namespace,
                brief.mirror,
                ledger_cure(database, user)
            ),
        )),
        other => other.at(doing),
    }
}

/// The statements that let `user` keep the ledger.
pub(super) fn ledger_cure(database: &str, user: &str) -> String {
    let (database, user) = (ident(database), ident(user));
    format!("GRANT CREATE ON DATABASE {database} TO {user}; or CREATE SCHEMA _mirror_operator AUTHORIZATION {user};")
}

/// What became of an epoch that was to begin, or to take over.
enum Record {
    Done,
    /// A newer one has.
    Superseded(u32),
    GivenUp,
    Gone,
    /// A shadow misses changes.
    Parked(String),
    /// The shadows have more than the tables that are kept.
    Ahead,
}

/// Records the epoch, if it may begin.
async fn record(tx: &Transaction<'_>, brief: &Brief) -> Result<Record, tokio_postgres::Error> {
    pass(tx, brief, "pg_advisory_xact_lock").await?;
    let epoch = brief.epoch as i32;
    let sql =
        "SELECT m.epoch, m.given_up >= $2 AND NOT EXISTS (SELECT FROM _mirror_operator.epoch e WHERE e.mirror = m.mirror AND e.epoch = $2)
               FROM _mirror_operator.mirror m WHERE m.mirror = $1::text::uuid";
    if let Some(row) = tx.query_opt(sql, &[&brief.mirror_uid, &epoch]).await? {
        match (row.get::<_, i32>(0), row.get(1)) {
            (newest, _) if newest > epoch => return Ok(Record::Superseded(newest as u32)),
            (_, true) => return Ok(Record::GivenUp),
            (_, false) => {}
        }
    }
    let sql = "INSERT INTO _mirror_operator.mirror AS m (mirror, name, epoch) VALUES ($1::text::uuid, $2, $3)
               ON CONFLICT (mirror) DO UPDATE SET epoch = CASE
                   WHEN NOT $4 THEN excluded.epoch
                   WHEN EXISTS (SELECT FROM _mirror_operator.epoch e WHERE e.mirror = m.mirror AND e.epoch = $3) THEN m.epoch
                   ELSE m.live_epoch END, name = excluded.name";
    tx.execute(sql, &[&brief.mirror_uid, &format!("{}/{}", brief.namespace, brief.mirror), &epoch, &brief.is_live()]).await?;
    let sql = "INSERT INTO _mirror_operator.epoch (mirror, epoch, resync, slot) VALUES ($1::text::uuid, $2, $3::text::uuid, $4) ON CONFLICT DO NOTHING";
    tx.execute(sql, &[&brief.mirror_uid, &epoch, &brief.resync_uid, &brief.slot()]).await?;
    Ok(Record::Done)
}

/// Records that the epochs before this one are fenced from now on. One that was given up meanwhile takes nothing over.
async fn record_handover(tx: &Transaction<'_>, brief: &Brief) -> Result<Record, tokio_postgres::Error> {
    pass(tx, brief, "pg_advisory_xact_lock").await?;
    let epoch = brief.epoch as i32;
    let sql = "SELECT m.epoch, e.applied_lsn <= live.applied_lsn AS behind,
                      (SELECT t.parked FROM _mirror_operator.table t WHERE t.mirror = e.mirror AND t.epoch = e.epoch AND t.parked IS NOT NULL LIMIT 1) AS parked FROM _mirror_operator.mirror m JOIN _mirror_operator.epoch e USING (mirror)
                 LEFT JOIN _mirror_operator.epoch live ON live.mirror = m.mirror AND live.epoch = m.live_epoch
                WHERE m.mirror = $1::text::uuid AND e.epoch = $2";
    match tx.query_opt(sql, &[&brief.mirror_uid, &epoch]).await? {
        None => return Ok(Record::Gone),
        Some(row) if row.get::<_, i32>(0) > epoch => return Ok(Record::Superseded(row.get::<_, i32>(0) as u32)),
        // It misses changes that the old one has.
        Some(row) if row.get::<_, Option<&str>>("parked").is_some() => return Ok(Record::Parked(row.get("parked"))),
        // What lies in between would be in no stream of the kept tables.
        Some(row) if !brief.kept.is_empty() && row.get::<_, Option<bool>>("behind") != Some(true) => return Ok(Record::Ahead),
        Some(_) => {}
    }
    tx.execute("UPDATE _mirror_operator.mirror SET epoch = $2 WHERE mirror = $1::text::uuid", &[&brief.mirror_uid, &epoch]).await?;
    let sql =
        "UPDATE _mirror_operator.epoch SET handed_over_at = coalesce(handed_over_at, now()) WHERE mirror = $1::text::uuid AND epoch = $2";
    tx.execute(sql, &[&brief.mirror_uid, &epoch]).await?;
    Ok(Record::Done)
}

/// See [`Destination::catch_up`](crate::destination::Destination::catch_up). Of the applier only the process is left, so that none that is open can
/// commit, while the same process can open the next one.
pub(super) async fn catch_up(at: &Postgres, reached: Lsn) -> Result<bool, Error> {
    let doing = "ending the catch-up";
    let mut session = at.session().await?;
    let tx = session.begin(doing).await?;
    fence_alone(&tx, &at.brief).await?;
    let missing = "SELECT parked FROM _mirror_operator.table WHERE mirror = $1::text::uuid AND epoch = $2 AND parked IS NOT NULL LIMIT 1";
    if let Some(row) = tx.query_opt(missing, &[&at.brief.mirror_uid, &(at.brief.epoch as i32)]).await.at(doing)? {
        return Err(shadow_parked(row.get(0)));
    }
    let sql = "UPDATE _mirror_operator.epoch e SET caught_up_at = coalesce(caught_up_at, now()), applier = split_part(applier, '/', 1)
                 FROM _mirror_operator.mirror m
                WHERE e.mirror = $1::text::uuid AND e.epoch = $2 AND m.mirror = e.mirror AND e.handed_over_at IS NOT NULL AND e.swapped_at IS NULL
                  AND greatest(e.applied_lsn, $3) >= coalesce((SELECT before.applied_lsn FROM _mirror_operator.epoch before
                                                                WHERE before.mirror = e.mirror AND before.epoch = m.live_epoch), '0/0')";
    let ended = tx.execute(sql, &[&at.brief.mirror_uid, &(at.brief.epoch as i32), &PgLsn::from(reached.0)]).await.at(doing)? > 0;
    commit(tx, doing).await?;
    session.keep();
    Ok(ended)
}

/// Records that an epoch which has not begun never will. The newest epoch stays what it is: the live one goes on.
pub(super) async fn give_up(tx: &Transaction<'_>, brief: &Brief) -> Result<(), Error> {
    let sql = "INSERT INTO _mirror_operator.mirror AS m (mirror, name, epoch, given_up) VALUES ($1::text::uuid, $2, 0, $3)
               ON CONFLICT (mirror) DO UPDATE SET given_up = greatest(m.given_up, excluded.given_up)";
    let name = format!("{}/{}", brief.namespace, brief.mirror);
    tx.execute(sql, &[&brief.mirror_uid, &name, &(brief.epoch as i32)]).await.at("writing the ledger")?;
    Ok(())
}

/// Ends the sessions of earlier epochs. They are over anyway; one whose pod was lost may hold its locks for long.
async fn end_older_sessions(client: &Client, brief: &Brief) -> Result<(), Error> {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
                 AND substring(application_name from $1)::int < $2";
    let pattern = format!("^mo {} e([0-9]{{1,9}}) ", name::short_uid(&brief.mirror_uid));
    client.query(sql, &[&pattern, &(brief.epoch as i32)]).await.at("ending sessions of earlier epochs")?;
    Ok(())
}

/// See [`Destination::state`](crate::destination::Destination::state).
pub(super) async fn state(at: &Postgres) -> Result<Option<EpochState>, Error> {
    let session = at.session().await?;
    if !exists(session.client()).await? {
        session.keep();
        return Ok(None);
    }
    let sql = "SELECT e.generation, e.snapshot_lsn, e.start_lsn, e.applied_lsn, e.swapped_at IS NOT NULL, m.epoch,
                      EXISTS (SELECT FROM _mirror_operator.epoch newer WHERE newer.mirror = m.mirror AND newer.epoch = m.epoch AND m.epoch > e.epoch
                                 AND m.live_epoch = e.epoch AND newer.handed_over_at IS NOT NULL) AS may_return,
                      e.handed_over_at IS NOT NULL AS handed_over, e.caught_up_at IS NOT NULL AS caught_up,
                      (SELECT live.applied_lsn FROM _mirror_operator.epoch live WHERE live.mirror = m.mirror AND live.epoch = m.live_epoch) AS live_lsn,
                      e.generation > 0 AND NOT EXISTS (SELECT FROM _mirror_operator.table t
                                                       WHERE t.mirror = e.mirror AND t.epoch = e.epoch AND t.sealed_at IS NULL) AS loaded
               FROM _mirror_operator.epoch e JOIN _mirror_operator.mirror m USING (mirror)
               WHERE e.mirror = $1::text::uuid AND e.epoch = $2";
    let row = session.client().query_opt(sql, &[&at.brief.mirror_uid, &(at.brief.epoch as i32)]).await.at("reading the ledger")?;
    session.keep();
    Ok(row.map(|r| EpochState {
        generation: r.get::<_, i32>(0) as u32,
        snapshot_lsn: lsn(r.get(1)),
        start_lsn: lsn(r.get(2)),
        applied_lsn: lsn(r.get(3)),
        swapped: r.get(4),
        newest_epoch: r.get::<_, i32>(5) as u32,
        loaded: r.get("loaded"),
        may_return: r.get("may_return"),
        handed_over: r.get("handed_over"),
        live_lsn: lsn(r.get("live_lsn")),
        caught_up: r.get("caught_up"),
    }))
}

/// See [`Destination::tables`](crate::destination::Destination::tables).
pub(super) async fn tables(at: &Postgres) -> Result<Vec<LedgerTable>, Error> {
    let session = at.session().await?;
    let sql = "SELECT schema::text, gate_lsn, sealed_at IS NOT NULL, parked, coalesce(drift, '{}'), source_rows, source_sum, verified_rows IS NOT NULL FROM _mirror_operator.table
               WHERE mirror = $1::text::uuid AND epoch = $2 ORDER BY number";
    let rows = session.client().query(sql, &[&at.brief.mirror_uid, &(at.brief.epoch as i32)]).await.at("reading the ledger")?;
    session.keep();
    let table = |r: &tokio_postgres::Row| {
        let drift = r.get::<_, Vec<String>>(4).into_iter().collect();
        let measured = r.get::<_, Option<i64>>(5).map(|rows| Measure { rows: rows as u64, sum: r.get(6) });
        let (gate, sealed, parked, verified) = (lsn(r.get(1)), r.get(2), r.get(3), r.get(7));
        Ok(LedgerTable { schema: schema(r.get(0))?, gate, sealed, measured, verified, parked, drift })
    };
    rows.iter().map(table).collect()
}

/// The tables of the epoch, for its own steps.
pub(super) async fn entries(client: &impl GenericClient, brief: &Brief) -> Result<Vec<Entry>, Error> {
    let sql = "SELECT number, schema::text, destination_schema, destination_name, shadow_name, relation, sealed_at IS NOT NULL,
                      carried_deleted IS NOT NULL, indexes::text, verified_rows IS NOT NULL
               FROM _mirror_operator.table WHERE mirror = $1::text::uuid AND epoch = $2 ORDER BY number";
    let rows = client.query(sql, &[&brief.mirror_uid, &(brief.epoch as i32)]).await.at("reading the ledger")?;
    rows.iter()
        .map(|r| {
            Ok(Entry {
                number: r.get(0),
                schema: schema(r.get(1))?,
                live: TableName { schema: r.get(2), name: r.get(3) },
                shadow: r.get(4),
                relation: r.get(5),
                sealed: r.get(6),
                carried: r.get(7),
                verified: r.get(9),
                indexes: serde_json::from_str(r.get(8)).map_err(unreadable)?,
            })
        })
        .collect()
}

/// See [`Destination::pending`](crate::destination::Destination::pending).
pub(super) async fn pending(at: &Postgres, partition: u32) -> Result<Vec<Chunk>, Error> {
    let session = at.session().await?;
    let sql = "SELECT number, partition, table_number, relation, first_block, end_block, bytes_planned FROM _mirror_operator.chunk
               WHERE mirror = $1::text::uuid AND epoch = $2 AND partition = $3 AND loaded_at IS NULL ORDER BY number";
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&at.brief.mirror_uid, &(at.brief.epoch as i32), &(partition as i32)];
    let rows = session.client().query(sql, &parameters).await.at("reading the ledger")?;
    session.keep();
    let chunk = |r: &tokio_postgres::Row| Chunk {
        number: r.get::<_, i32>(0) as u32,
        partition: r.get::<_, i32>(1) as u32,
        table: r.get::<_, i32>(2) as u32,
        relation: r.get(3),
        first: r.get::<_, i64>(4) as u64,
        end: r.get::<_, Option<i64>>(5).map(|b| b as u64),
        bytes: r.get::<_, i64>(6) as u64,
    };
    Ok(rows.iter().map(chunk).collect())
}

/// See [`Destination::progress`](crate::destination::Destination::progress).
pub(super) async fn progress(at: &Postgres) -> Result<(Load, Vec<TableReport>), Error> {
    let session = at.session().await?;
    let of_epoch = "SELECT e.generation, e.snapshot_lsn, e.partitions, e.total_rows, e.total_bytes, c.done, c.rows, c.bytes
        FROM _mirror_operator.epoch e,
             LATERAL (SELECT e.partitions - count(*) FILTER (WHERE NOT p.loaded) AS done, coalesce(sum(p.rows), 0)::bigint AS rows, coalesce(sum(p.bytes), 0)::bigint AS bytes
                      FROM (SELECT bool_and(loaded_at IS NOT NULL) AS loaded, sum(rows) AS rows, sum(bytes) AS bytes FROM _mirror_operator.chunk
                            WHERE mirror = e.mirror AND epoch = e.epoch GROUP BY partition) p) c
        WHERE e.mirror = $1::text::uuid AND e.epoch = $2";
    // Whoever reads a schema says why it cannot be read; here it is only a name.
    let of_tables = "SELECT coalesce(t.schema -> 'source' ->> 'schema', '?'), coalesce(t.schema -> 'source' ->> 'name', '?'),
            t.destination_schema, t.destination_name,
            coalesce(c.rows, 0)::bigint, coalesce(t.carried_deleted, 0), coalesce(t.carried_missing, 0), t.note, t.sealed_at IS NOT NULL,
            t.parked, t.inserts, t.updates, t.deletes, array_to_string(t.drift, '; '), t.verified_rows
        FROM _mirror_operator.table t
        LEFT JOIN (SELECT table_number, sum(rows) AS rows FROM _mirror_operator.chunk
                   WHERE mirror = $1::text::uuid AND epoch = $2 GROUP BY table_number) c ON c.table_number = t.number
        WHERE t.mirror = $1::text::uuid AND t.epoch = $2 ORDER BY t.number";
    let epoch = at.brief.epoch as i32;
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&at.brief.mirror_uid, &epoch];
    let (load, tables) =
        futures::try_join!(session.client().query_opt(of_epoch, &parameters), session.client().query(of_tables, &parameters))
            .at("reading the ledger")?;
    session.keep();
    let load = load.ok_or_else(|| gone(&at.brief))?;
    let load = Load {
        generation: load.get::<_, i32>(0) as u32,
        snapshot_lsn: lsn(load.get(1)),
        partitions: load.get::<_, i32>(2) as u32,
        total_rows: load.get(3),
        total_bytes: load.get(4),
        partitions_loaded: load.get::<_, i64>(5) as u32,
        rows: load.get(6),
        bytes: load.get(7),
    };
    Ok((load, tables.iter().map(report).collect()))
}

fn report(r: &tokio_postgres::Row) -> TableReport {
    let named = |schema: usize, name: usize| TableName { schema: r.get(schema), name: r.get(name) }.to_string();
    TableReport {
        source: named(0, 1),
        destination: named(2, 3),
        rows_loaded: r.get(4),
        carried_deleted: r.get(5),
        carried_missing: r.get(6),
        rows_verified: r.get(14),
        note: r.get(7),
        sealed: r.get(8),
        parked: r.get(9),
        drift: r.get::<_, Option<String>>(13).map(|drift| format!("{drift}. Apply a MirrorResync")),
        inserts: r.get(10),
        updates: r.get(11),
        deletes: r.get(12),
    }
}

/// What the swap of this epoch did; `None` before it, and if the ledger does not know the epoch.
pub(super) async fn swap_report(client: &impl GenericClient, brief: &Brief) -> Result<Option<SwapReport>, Error> {
    let sql = "SELECT to_char(swapped_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), coalesce(lock_millis, 0), coalesce(swap_retries, 0)
               FROM _mirror_operator.epoch WHERE mirror = $1::text::uuid AND epoch = $2";
    let row = client.query_opt(sql, &[&brief.mirror_uid, &(brief.epoch as i32)]).await.at("reading the ledger")?;
    let Some(row) = row else { return Ok(None) };
    Ok(row.get::<_, Option<String>>(0).map(|at| SwapReport { at, lock_millis: row.get(1), retries: row.get::<_, i32>(2) as u32 }))
}

/// A remark for people, beside those already made.
pub(super) async fn remark(tx: &Transaction<'_>, brief: &Brief, number: i32, notes: &[String]) -> Result<(), Error> {
    if notes.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "UPDATE _mirror_operator.table SET note = concat_ws('; ', note, {}) WHERE mirror = $1::text::uuid AND epoch = $2 AND number = $3",
        literal(&notes.join("; "))
    );
    tx.execute(&sql, &[&brief.mirror_uid, &(brief.epoch as i32), &number]).await.at("writing the ledger")?;
    Ok(())
}

fn lsn(value: Option<PgLsn>) -> Lsn {
    value.map(|l| Lsn(l.into())).unwrap_or_default()
}

pub(super) fn schema(text: &str) -> Result<TableSchema, Error> {
    serde_json::from_str(text).map_err(unreadable)
}

pub(super) fn unreadable(error: serde_json::Error) -> Error {
    permanent("LedgerUnreadable", format!("the destination's ledger was written by another version: {error}. Start a new resync"))
}
