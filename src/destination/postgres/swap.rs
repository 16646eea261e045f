//! The swap: all shadows take the live names in one transaction.
//!
//! Whatever takes time comes before the locks that readers feel: the shadows get owner, grants and comments, and the statements for the rest are
//! put together. The locks themselves are asked for with a patience of milliseconds; when it ends they are all let go and asked for again later,
//! because behind a lock that waits every new reader waits too.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Transaction};

use super::{
    Postgres, dependents, dress,
    error::{At, depended_on, lock_not_granted, meaning, permanent},
    ledger::{self, Entry},
    live,
    retire::{self, Found},
    session::{Session, fence_alone},
    shadow::AFTER_LOADING,
    snapshots,
};
use crate::{
    brief::Brief,
    destination::{Error, gone},
    name,
    postgres::{connect::words, ident, literal, qualified},
    report::SwapReport,
    verify,
};

/// How long all locks together may be waited for in one attempt, and so how long a reader may stand behind a vain one.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long attempts go on before the caller hears who is in the way.
const ATTEMPTS: Duration = Duration::from_secs(120);

/// How long a lock that readers do not feel is waited for. Longer than `deadlock_timeout`, after which the server ends an autovacuum in the way.
const QUIET_PATIENCE: &str = "SET LOCAL lock_timeout = '30s'";

/// See [`Destination::swap`](crate::destination::Destination::swap).
pub(super) async fn swap(at: &Postgres) -> Result<SwapReport, Error> {
    let mut session = at.session().await?;
    if let Some(report) = ledger::swap_report(session.client(), &at.brief).await? {
        session.keep();
        return Ok(report);
    }
    if let Some(note) = snapshots::wait(session.client(), &at.brief).await? {
        tracing::warn!("{note}");
    }
    let end = Instant::now() + ATTEMPTS;
    let mut retries = 0;
    loop {
        if let Some(report) = attempt(&mut session, &at.brief, end, &mut retries).await? {
            session.keep();
            return Ok(report);
        }
        retries += 1;
        pause().await;
    }
}

/// One table of the swap.
struct Pair {
    entry: Entry,
    live: Option<u32>,
    /// The live table is nobody's, and was empty when it was looked at.
    stranger: bool,
    live_sql: String,
    shadow_sql: String,
    retired: String,
}

/// One transaction; `None` if something has changed under its hands, so that it must be prepared anew.
async fn attempt(session: &mut Session<'_>, brief: &Brief, end: Instant, retries: &mut u32) -> Result<Option<SwapReport>, Error> {
    let doing = "swapping the tables";
    let tx = session.begin(doing).await?;
    fence_alone(&tx, brief).await?;
    if let Some(report) = ledger::swap_report(&tx, brief).await? {
        return Ok(Some(report));
    }
    let pairs = pairs(&tx, brief).await?;
    lock_quietly(&tx, &pairs).await?;
    let before = fingerprint(&tx, &pairs).await?;
    let act = prepare(&tx, brief, &pairs).await?;
    let retired = retire::of_earlier_swaps(&tx, brief).await?;
    refuse_hanging(&tx, &retired).await?;
    tx.batch_execute("SAVEPOINT locks").await.at(doing)?;
    let started = loop {
        let started = Instant::now();
        if lock(&tx, &act.locks, &pairs, &retired).await? {
            break started;
        }
        if Instant::now() >= end {
            return Err(Error::Transient(format!(
                "the tables cannot be locked for the swap: in use by {}. It is tried again",
                in_the_way(&tx, &pairs, &retired).await?
            )));
        }
        give_back(&tx).await?;
        *retries += 1;
        pause().await;
    };
    if fingerprint(&tx, &pairs).await? != before || filled(&tx, &pairs).await? {
        return Ok(None);
    }
    let record = record(brief, &pairs, started.elapsed(), *retries);
    let room = retire::drop_statement(&retired);
    match tx.batch_execute(&format!("{room};{};{record}", act.statements.join(";"))).await {
        // Hung there since it was looked at; the next attempt finds it by its name.
        Err(error) if depended_on(&error) => return Err(Error::Transient(format!("{doing}: {}. It is tried again", words(&error)))),
        other => other.at(doing)?,
    }
    tx.commit().await.at(doing)?;
    let blocked = started.elapsed().as_millis() as i64;
    note_block(session.client(), brief, blocked).await;
    ledger::swap_report(session.client(), brief).await
}

async fn pairs(tx: &Transaction<'_>, brief: &Brief) -> Result<Vec<Pair>, Error> {
    let entries = ledger::entries(tx, brief).await?;
    if entries.is_empty() {
        return Err(gone(brief));
    }
    let mut pairs = Vec::with_capacity(entries.len());
    for entry in entries {
        if !entry.sealed || !entry.carried {
            return Err(Error::Transient(format!("{} is not ready for the swap: it must be sealed and carried first", entry.live)));
        }
        if verify::is_wanted(brief) && !entry.verified {
            return Err(Error::Transient(format!("{} is not ready for the swap: it must be verified first", entry.live)));
        }
        let live = live::find(tx, brief, &entry.live).await?;
        if let Some(live) = &live {
            live::refuse(tx, live, &entry.live).await?;
        }
        pairs.push(Pair {
            live_sql: qualified(&entry.live.schema, &entry.live.name),
            shadow_sql: qualified(&entry.live.schema, &entry.shadow),
            retired: name::retired(&entry.live.name),
            stranger: live.as_ref().is_some_and(|l| !l.ours),
            live: live.map(|l| l.oid),
            entry,
        });
    }
    Ok(pairs)
}

/// Locks that readers do not feel: the shadows wholly, and the live tables against vacuum and changes of their definition.
async fn lock_quietly(tx: &Transaction<'_>, pairs: &[Pair]) -> Result<(), Error> {
    let shadows: Vec<&str> = pairs.iter().map(|p| p.shadow_sql.as_str()).collect();
    let mut sql = format!("{QUIET_PATIENCE}; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", shadows.join(", "));
    if let Some(lives) = live_names(pairs) {
        sql.push_str(&format!("; LOCK TABLE ONLY {lives} IN SHARE UPDATE EXCLUSIVE MODE"));
    }
    match tx.batch_execute(&sql).await {
        Err(error) if lock_not_granted(&error) => {
            Err(Error::Transient("the tables cannot be locked for the swap: somebody changes their definition. It is tried again".into()))
        }
        other => other.at("locking the tables"),
    }
}

fn live_names(pairs: &[Pair]) -> Option<String> {
    let lives: Vec<&str> = pairs.iter().filter(|p| p.live.is_some()).map(|p| p.live_sql.as_str()).collect();
    (!lives.is_empty()).then(|| lives.join(", ONLY "))
}

/// Tells whether a live table's definition, grants or dependents have changed, or those of a view that reads it, at any distance: the versions of
/// their rows in the catalog.
async fn fingerprint(tx: &Transaction<'_>, pairs: &[Pair]) -> Result<String, Error> {
    let lives: Vec<u32> = pairs.iter().filter_map(|p| p.live).collect();
    let sql = "WITH RECURSIVE seen (oid) AS (
                   SELECT unnest($1::oid[])
                    UNION
                   SELECT r.ev_class FROM seen s
                     JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = s.oid AND d.classid = 'pg_catalog.pg_rewrite'::regclass
                     JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid),
               version (what) AS (
                   SELECT format('c %s %s', c.oid, c.xmin) FROM pg_catalog.pg_class c JOIN seen USING (oid)
                    UNION ALL
                   SELECT format('a %s %s %s', a.attrelid, a.attnum, a.xmin) FROM pg_catalog.pg_attribute a JOIN seen ON seen.oid = a.attrelid
                    UNION ALL
                   SELECT format('r %s %s', r.oid, r.xmin) FROM pg_catalog.pg_rewrite r JOIN seen ON seen.oid = r.ev_class
                    UNION ALL
                   SELECT format('d %s', count(*)) FROM pg_catalog.pg_depend d JOIN seen ON seen.oid = d.refobjid AND d.refclassid = 'pg_catalog.pg_class'::regclass)
               SELECT coalesce(md5(string_agg(what, ',' ORDER BY what)), '') FROM version";
    Ok(tx.query_one(sql, &[&lives]).await.at("looking at the live tables")?.get(0))
}

/// Whether somebody has filled a table that was empty and nobody's.
async fn filled(tx: &Transaction<'_>, pairs: &[Pair]) -> Result<bool, Error> {
    for pair in pairs.iter().filter(|p| p.stranger) {
        let sql = format!("SELECT EXISTS (SELECT FROM {})", pair.live_sql);
        if tx.query_one(&sql, &[]).await.at("looking at the live tables")?.get(0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is done under the locks.
struct Act {
    /// Statements that lock views.
    locks: Vec<String>,
    statements: Vec<String>,
}

/// Does what can be done before the locks, and puts the rest together.
async fn prepare(tx: &Transaction<'_>, brief: &Brief, pairs: &[Pair]) -> Result<Act, Error> {
    let (mut old, mut new) = (Vec::new(), Vec::new());
    let (mut dressing, mut renames, mut after) = (Vec::new(), Vec::new(), Vec::new());
    for pair in pairs {
        dressing.push(format!("ALTER TABLE {} RESET ({AFTER_LOADING})", pair.shadow_sql));
        if let Some(live) = pair.live {
            refuse_obstacles(tx, brief, pair, live).await?;
            old.push(live);
            new.push(pair.entry.relation);
            dressing.extend(dress::before(tx, live, &pair.shadow_sql, pair.entry.relation, "TABLE").await?);
            let retired = qualified(&pair.entry.live.schema, &pair.retired);
            after.extend(dress::after(tx, live, &pair.live_sql, pair.entry.relation, &retired).await?);
            renames.extend(old_index_renames(tx, live).await?);
            renames.push(format!("ALTER TABLE {} RENAME TO {}", pair.live_sql, ident(&pair.retired)));
        } else {
            dressing.push(format!("COMMENT ON TABLE {} IS NULL", pair.shadow_sql));
        }
        renames.push(format!("ALTER TABLE {} RENAME TO {}", pair.shadow_sql, ident(&pair.entry.live.name)));
    }
    for pair in pairs {
        renames.extend(new_index_renames(tx, pair, &old).await?);
    }
    tx.batch_execute(&dressing.join(";")).await.at("giving grants and comments to the new tables")?;
    let views = dependents::views(tx, &old, &new).await?;
    Ok(Act { locks: views.locks, statements: [views.before, renames, after, views.after].concat() })
}

async fn refuse_obstacles(tx: &Transaction<'_>, brief: &Brief, pair: &Pair, live: u32) -> Result<(), Error> {
    let mut columns: Vec<String> = pair.entry.schema.columns.iter().map(|c| c.destination.clone()).collect();
    columns.extend([brief.soft_delete.column.clone(), brief.synced_at_column.clone()]);
    match dependents::obstacles(tx, live, &columns).await?.first() {
        None => Ok(()),
        Some(what) => {
            let message = format!(
                "{} cannot be replaced without losing this: {what}. Nothing was swapped. Drop it, then resync again",
                pair.entry.live
            );
            Err(permanent("DependentObject", message))
        }
    }
}

/// Whatever came to hang on a table that has to make room is waited for, like a reader: the load is not thrown away for it.
async fn refuse_hanging(tx: &Transaction<'_>, retired: &[Found]) -> Result<(), Error> {
    let retired: Vec<u32> = retired.iter().map(|old| old.oid).collect();
    match dependents::hanging(tx, &retired).await?.as_slice() {
        [] => Ok(()),
        hanging => Err(Error::Transient(format!("the swap waits: {}. It is tried again", hanging.join("; ")))),
    }
}

/// The old table's indexes make room for those of the new one.
async fn old_index_renames(tx: &Transaction<'_>, live: u32) -> Result<Vec<String>, Error> {
    let sql = "SELECT format('ALTER INDEX %I.%I RENAME TO %I', n.nspname, c.relname, 'mo_old_' || c.oid) FROM pg_catalog.pg_index i
               JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE i.indrelid = $1";
    Ok(tx.query(sql, &[&live]).await.at("reading indexes")?.iter().map(|r| r.get(0)).collect())
}

/// The new table's indexes take their lasting names, except those that a stranger has taken.
async fn new_index_renames(tx: &Transaction<'_>, pair: &Pair, lives: &[u32]) -> Result<Vec<String>, Error> {
    let names: Vec<&str> = pair.entry.indexes.iter().map(|b| b.name.as_str()).collect();
    let sql = "SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = $1 AND c.relname = ANY ($2) AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indexrelid = c.oid AND i.indrelid = ANY ($3))";
    let rows = tx.query(sql, &[&pair.entry.live.schema, &names, &lives]).await.at("reading indexes")?;
    let taken: Vec<String> = rows.iter().map(|r| r.get(0)).collect();
    let mut statements = Vec::new();
    for built in &pair.entry.indexes {
        let schema = &pair.entry.live.schema;
        if let Some(comment) = &built.comment {
            statements.push(format!("COMMENT ON INDEX {} IS {}", qualified(schema, &built.built), literal(comment)));
        }
        if !taken.contains(&built.name) {
            statements.push(format!("ALTER INDEX {} RENAME TO {}", qualified(schema, &built.built), ident(&built.name)));
        }
    }
    Ok(statements)
}

/// Takes the locks that readers feel: views from the outermost in, as readers do, then all tables in one statement. False if that took too long.
///
/// What earlier swaps have retired is locked with them: it makes room in this very transaction, for until then it is the way back.
async fn lock(tx: &Transaction<'_>, views: &[String], pairs: &[Pair], retired: &[Found]) -> Result<bool, Error> {
    let end = Instant::now() + PATIENCE;
    let mut sql: Vec<String> =
        retired.iter().map(|old| format!("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE", old.sql)).chain(views.iter().cloned()).collect();
    sql.extend(live_names(pairs).map(|lives| format!("LOCK TABLE ONLY {lives} IN ACCESS EXCLUSIVE MODE")));
    for statement in sql {
        let left = end.saturating_duration_since(Instant::now()).as_millis().max(1);
        if !in_time(tx, &format!("SET LOCAL statement_timeout = {left}; {statement}")).await? {
            return Ok(false);
        }
    }
    // A message of its own: a cancellation that comes just after the lock strikes here, not whatever is done under the locks.
    in_time(tx, "SET LOCAL statement_timeout = 0").await
}

/// Runs a statement; false if it was cancelled for taking too long.
async fn in_time(tx: &Transaction<'_>, sql: &str) -> Result<bool, Error> {
    match tx.batch_execute(sql).await {
        Ok(()) => Ok(true),
        Err(error) if lock_not_granted(&error) => Ok(false),
        Err(error) => Err(meaning(&error, "locking the tables")),
    }
}

/// Lets go of all locks. The patience that the attempt had left holds for this statement too, so it may be cancelled itself, once.
async fn give_back(tx: &Transaction<'_>) -> Result<(), Error> {
    if in_time(tx, GIVE_BACK).await? || in_time(tx, GIVE_BACK).await? {
        return Ok(());
    }
    Err(Error::Transient("the locks of the swap could not be given back in time. It is tried again".into()))
}

const GIVE_BACK: &str = "ROLLBACK TO locks";

/// Sessions that hold locks on the live tables, or on those that make room for them.
async fn in_the_way(tx: &Transaction<'_>, pairs: &[Pair], retired: &[Found]) -> Result<String, Error> {
    give_back(tx).await?;
    let tables: Vec<u32> = pairs.iter().filter_map(|p| p.live).chain(retired.iter().map(|old| old.oid)).collect();
    let sql = "SELECT DISTINCT format('pid %s (%s)', l.pid, coalesce(nullif(a.application_name, ''), 'no name')) FROM pg_catalog.pg_locks l
               LEFT JOIN pg_stat_activity a USING (pid) WHERE l.relation = ANY ($1) AND l.granted AND l.pid <> pg_backend_pid()";
    let rows = tx.query(sql, &[&tables]).await.at("swapping the tables")?;
    let who: Vec<String> = rows.iter().map(|r| r.get(0)).collect();
    Ok(if who.is_empty() { "sessions that come and go".into() } else { who.join(", ") })
}

/// What the ledger says from now on; part of the same transaction.
fn record(brief: &Brief, pairs: &[Pair], so_far: Duration, retries: u32) -> String {
    let (mirror, epoch) = (literal(&brief.mirror_uid), brief.epoch);
    let retired: String = pairs
        .iter()
        .filter_map(|p| p.live.map(|oid| (p, oid)))
        .map(|(p, oid)| {
            let (name, number) = (literal(&p.retired), p.entry.number);
            format!("UPDATE _mirror_operator.table SET retired = {oid}, retired_name = {name} WHERE mirror = {mirror} AND epoch = {epoch} AND number = {number};")
        })
        .collect();
    // With all that is known of them. Their changes go on where the old stream has ended: that is where the shadows are too, or behind.
    let numbers = brief.kept.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let kept = format!(
        "UPDATE _mirror_operator.table t SET epoch = {epoch}, gate_lsn = live.applied_lsn
           FROM _mirror_operator.mirror m JOIN _mirror_operator.epoch live ON live.mirror = m.mirror AND live.epoch = m.live_epoch
          WHERE t.mirror = {mirror} AND m.mirror = t.mirror AND t.epoch = live.epoch AND t.number = ANY ('{{{numbers}}}'::int[]);"
    );
    format!(
        "UPDATE _mirror_operator.table SET retired = NULL WHERE mirror = {mirror} AND epoch < {epoch} AND retired IS NOT NULL;
         {retired} {kept} UPDATE _mirror_operator.epoch SET swapped_at = clock_timestamp(), lock_millis = {}, swap_retries = {retries}
         WHERE mirror = {mirror} AND epoch = {epoch};
         UPDATE _mirror_operator.mirror SET live_epoch = {epoch} WHERE mirror = {mirror}",
        so_far.as_millis()
    )
}

/// Completes the time that readers were blocked with that of the commit. Lost, the time up to the commit stands.
async fn note_block(client: &Client, brief: &Brief, blocked: i64) {
    let sql = "UPDATE _mirror_operator.epoch SET lock_millis = $3 WHERE mirror = $1::text::uuid AND epoch = $2";
    if let Err(error) = client.execute(sql, &[&brief.mirror_uid, &(brief.epoch as i32), &blocked]).await {
        tracing::debug!(%error, "the swap's time was not completed");
    }
}

/// Lets readers pass. The length varies so that two who give way to each other do not meet again.
async fn pause() {
    let odd = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos() % 100);
    sleep(Duration::from_millis(u64::from(60 + odd))).await;
}
