//! Carrying rows that the source no longer has from the live table into the shadow.
//!
//! One pass over both tables finds the keys that the shadow lacks, in parallel where the server allows; their rows are set aside, cast to the new
//! columns, and then inserted. What is set aside are unlogged tables of the ledger's schema, dropped in the same transaction: that needs no rights
//! that the ledger did not need already.

use tokio_postgres::Transaction;

use super::{
    Postgres,
    error::{At, permanent, sqlstate},
    ledger::{self, Entry, remark},
    live,
    session::{Session, claim, commit, fence},
};
use crate::{
    brief::Brief,
    destination::{Error, carry_cast},
    postgres::{ident, qualified},
};

/// For the pass over all keys. Few enough that a hash of it stays in the processor's caches: with memory for all keys at once it takes twice as long,
/// since every probe then is a cache miss (measured with 5 million keys: 7.2 s with 512 MB, 3.5 s with 16 MB, on two busy cores).
const MEMORY: &str = "SET LOCAL work_mem = '16MB'; SET LOCAL hash_mem_multiplier = 1";

/// See [`Destination::carry`](crate::destination::Destination::carry).
pub(super) async fn carry(at: &Postgres) -> Result<(), Error> {
    ahead(at).await?;
    let session = at.session().await?;
    let entries = ledger::entries(session.client(), &at.brief).await?;
    if let Some(entry) = entries.iter().find(|e| !e.sealed) {
        return Err(Error::Transient(format!("{} is not sealed yet, so nothing can be carried into it", entry.live)));
    }
    let sql = "UPDATE _mirror_operator.epoch SET carried_at = now() WHERE mirror = $1::text::uuid AND epoch = $2 AND carried_at IS NULL";
    session.client().execute(sql, &[&at.brief.mirror_uid, &(at.brief.epoch as i32)]).await.at("writing the ledger")?;
    session.keep();
    Ok(())
}

/// See [`Destination::carry_ahead`](crate::destination::Destination::carry_ahead). When it returns, every table that was sealed at the call is carried: what
/// others are busy with is waited for, last.
pub(super) async fn ahead(at: &Postgres) -> Result<(), Error> {
    let mut session = at.session().await?;
    if ledger::swap_report(session.client(), &at.brief).await?.is_none() {
        let entries = ledger::entries(session.client(), &at.brief).await?;
        let mut busy = Vec::new();
        for entry in entries.iter().filter(|e| e.sealed && !e.carried) {
            if !table(&mut session, &at.brief, entry, false).await? {
                busy.push(entry);
            }
        }
        for entry in busy {
            table(&mut session, &at.brief, entry, true).await?;
        }
    }
    session.keep();
    Ok(())
}

/// What was carried into one table.
#[derive(Default)]
struct Carried {
    deleted: i64,
    missing: i64,
    notes: Vec<String>,
}

/// Carries the rows of one table and gathers its statistics; false if somebody else is at it.
async fn table(session: &mut Session<'_>, brief: &Brief, entry: &Entry, wait: bool) -> Result<bool, Error> {
    let doing = format!("carrying rows of {}", entry.live);
    let tx = session.begin(&doing).await?;
    fence(&tx, brief).await?;
    if !claim(&tx, brief, "carry", entry.number, wait).await? {
        return Ok(false);
    }
    let sql = "SELECT carried_deleted IS NOT NULL FROM _mirror_operator.table WHERE mirror = $1::text::uuid AND epoch = $2 AND number = $3";
    let done: bool = tx.query_one(sql, &[&brief.mirror_uid, &(brief.epoch as i32), &entry.number]).await.at(&doing)?.get(0);
    if !done {
        let carried = match plan(&tx, brief, entry).await? {
            Err(notes) => Carried { notes, ..Carried::default() },
            Ok(plan) => run(&tx, brief, entry, &plan, &doing).await?,
        };
        tx.batch_execute(&format!("ANALYZE {}", qualified(&entry.live.schema, &entry.shadow))).await.at(&doing)?;
        let sql = "UPDATE _mirror_operator.table SET carried_deleted = $4, carried_missing = $5
                   WHERE mirror = $1::text::uuid AND epoch = $2 AND number = $3";
        tx.execute(sql, &[&brief.mirror_uid, &(brief.epoch as i32), &entry.number, &carried.deleted, &carried.missing]).await.at(&doing)?;
        remark(&tx, brief, entry.number, &carried.notes).await?;
    }
    commit(tx, &doing).await?;
    Ok(true)
}

/// How the rows of one table are carried.
struct Plan {
    live: String,
    shadow: String,
    /// Quoted name of the table of keys that the shadow lacks.
    keys: String,
    /// Quoted name of the table with their rows.
    aside: String,
    /// Columns that both tables have, those of the key among them.
    columns: Vec<Common>,
    /// Columns of the shadow that must not be NULL and that the live table lacks or lets be NULL: their name, and their index in `columns`.
    wanting: Vec<(String, Option<usize>)>,
    /// The old flag, never NULL.
    flag: String,
    /// The old time, or NULL.
    time: String,
}

/// A column that both tables have.
struct Common {
    name: String,
    key: bool,
    /// The old value in the new type.
    value: String,
    /// Old and new type, if they differ.
    cast: Option<(String, String)>,
}

/// A column as the catalog has it.
struct Attribute {
    name: String,
    type_: String,
    not_null: bool,
    generated: bool,
}

async fn attributes(tx: &Transaction<'_>, relation: u32) -> Result<Vec<Attribute>, Error> {
    let sql = "SELECT attname, pg_catalog.format_type(atttypid, atttypmod), attnotnull, attgenerated <> '' FROM pg_catalog.pg_attribute
               WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
    let rows = tx.query(sql, &[&relation]).await.at("reading columns")?;
    Ok(rows.iter().map(|r| Attribute { name: r.get(0), type_: r.get(1), not_null: r.get(2), generated: r.get(3) }).collect())
}

/// The plan, or why nothing is carried (no remark if that is no surprise).
async fn plan(tx: &Transaction<'_>, brief: &Brief, entry: &Entry) -> Result<Result<Plan, Vec<String>>, Error> {
    let nothing = |why: &str| Ok(Err(vec![format!("nothing was carried: {why}")]));
    let Some(live) = live::find(tx, brief, &entry.live).await?.filter(|l| l.ours) else { return Ok(Err(vec![])) };
    if !brief.carry.soft_deleted && !brief.carry.missing {
        return Ok(Err(vec![]));
    }
    if !brief.soft_delete.enabled {
        return nothing("soft deletes are off");
    }
    if entry.schema.key().is_empty() {
        return nothing("the table has no key");
    }
    let old = attributes(tx, live.oid).await?;
    let new = attributes(tx, entry.relation).await?;
    let find = |name: &str| old.iter().find(|a| a.name == name);
    if find(&brief.soft_delete.column).is_none_or(|a| a.type_ != "boolean") {
        return nothing(&format!("the old table has no column {:?} that flags deleted rows", brief.soft_delete.column));
    }
    let key: Vec<&str> = entry.schema.key().iter().filter_map(|&i| entry.schema.columns.get(i)).map(|c| c.destination.as_str()).collect();
    if let Some(name) = key.iter().find(|name| find(name).is_none()) {
        return nothing(&format!("the old table lacks key column {name:?}"));
    }
    let synced = find(&brief.synced_at_column).filter(|a| a.type_ == "timestamp with time zone");
    let mut plan = Plan {
        live: qualified(&entry.live.schema, &entry.live.name),
        shadow: qualified(&entry.live.schema, &entry.shadow),
        keys: qualified("_mirror_operator", &format!("keys_{}", entry.relation)),
        aside: qualified("_mirror_operator", &format!("carry_{}", entry.relation)),
        columns: Vec::new(),
        wanting: Vec::new(),
        flag: format!("coalesce(o.{}, false)", ident(&brief.soft_delete.column)),
        time: synced.map_or_else(|| "NULL::timestamptz".into(), |a| format!("o.{}", ident(&a.name))),
    };
    for column in new.iter().filter(|c| !c.generated && c.name != brief.soft_delete.column && c.name != brief.synced_at_column) {
        let Some(before) = find(&column.name) else {
            plan.wanting.extend(column.not_null.then(|| (column.name.clone(), None)));
            continue;
        };
        if column.not_null && !before.not_null {
            plan.wanting.push((column.name.clone(), Some(plan.columns.len())));
        }
        let value = cast(tx, before, &column.type_).await?;
        let cast = (before.type_ != column.type_).then(|| (before.type_.clone(), column.type_.clone()));
        plan.columns.push(Common { name: column.name.clone(), key: key.contains(&column.name.as_str()), value, cast });
    }
    Ok(Ok(plan))
}

/// The old value in the new type: as it is, by a cast that the server knows, or by way of its text.
async fn cast(tx: &Transaction<'_>, before: &Attribute, new_type: &str) -> Result<String, Error> {
    let value = format!("o.{}", ident(&before.name));
    if before.type_ == new_type {
        return Ok(value);
    }
    tx.batch_execute("SAVEPOINT one_cast").await.at("looking for a cast")?;
    match tx.batch_execute(&format!("SELECT NULL::{}::{new_type}", before.type_)).await {
        Ok(()) => {
            tx.batch_execute("RELEASE one_cast").await.at("looking for a cast")?;
            Ok(format!("{value}::{new_type}"))
        }
        Err(error) if sqlstate(&error) == Some("42846") => {
            tx.batch_execute("ROLLBACK TO one_cast; RELEASE one_cast").await.at("looking for a cast")?;
            Ok(format!("{value}::text::{new_type}"))
        }
        Err(error) => Err(super::error::meaning(&error, "looking for a cast")),
    }
}

async fn run(tx: &Transaction<'_>, brief: &Brief, entry: &Entry, plan: &Plan, doing: &str) -> Result<Carried, Error> {
    set_aside(tx, brief, entry, plan, doing).await?;
    let keyless = without_key(tx, plan, doing).await?;
    let nulls: String = plan
        .wanting
        .iter()
        .map(|(_, at)| at.map_or(", true".to_string(), |i| format!(", coalesce(bool_or(c{i} IS NULL), false)")))
        .collect();
    let sql = format!("SELECT count(*) FILTER (WHERE flagged), count(*) FILTER (WHERE NOT flagged){nulls} FROM {}", plan.aside);
    let row = tx.query_one(&sql, &[]).await.at(doing)?;
    let mut carried = Carried { deleted: row.get(0), missing: row.get(1), notes: keyless.into_iter().collect() };
    let total = carried.deleted + carried.missing;
    if total > 0 {
        for (name, _) in plan.wanting.iter().enumerate().filter(|(i, _)| row.get(i + 2)).map(|(_, wanting)| wanting) {
            let sql = format!("ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL", plan.shadow, ident(name));
            tx.batch_execute(&sql).await.at(doing)?;
            carried.notes.push(format!("column {name:?} is not NOT NULL: carried rows have no value for it"));
        }
        let inserted = tx.execute(&insert(brief, plan), &[&brief.mirror_uid, &(brief.epoch as i32)]).await.at(doing)?;
        if (inserted as i64) < total {
            recount(tx, plan, &mut carried, doing).await?;
            let left = total - inserted as i64;
            carried.notes.push(format!("{left} rows were not carried: they clash with others in the key or in a unique index"));
        }
    }
    tx.batch_execute(&format!("DROP TABLE {}, {}", plan.keys, plan.aside)).await.at(doing)?;
    Ok(carried)
}

/// Rows that have NULL in a column of the key, which was not one before: nobody can say whether the source has them.
async fn without_key(tx: &Transaction<'_>, plan: &Plan, doing: &str) -> Result<Option<String>, Error> {
    let key = || plan.columns.iter().enumerate().filter(|(_, c)| c.key);
    let unknown: Vec<String> = key().map(|(i, _)| format!("k{i} IS NULL")).collect();
    let sql = format!("SELECT coalesce(sum(rows), 0)::bigint FROM {} WHERE {}", plan.keys, unknown.join(" OR "));
    let rows: i64 = tx.query_one(&sql, &[]).await.at(doing)?.get(0);
    let names: Vec<String> = key().map(|(_, c)| format!("{:?}", c.name)).collect();
    Ok((rows > 0).then(|| format!("{rows} rows were not carried: they have NULL in the new key ({})", names.join(", "))))
}

/// Finds what is to be carried. Hashing in parallel takes shared memory, of which containers often have 64 MB only: without it, it takes longer.
async fn set_aside(tx: &Transaction<'_>, brief: &Brief, entry: &Entry, plan: &Plan, doing: &str) -> Result<(), Error> {
    let sql = statements(brief, plan);
    tx.batch_execute(&format!("{MEMORY}; SAVEPOINT aside")).await.at(doing)?;
    let mut outcome = tx.batch_execute(&sql).await;
    if outcome.as_ref().is_err_and(|e| sqlstate(e).is_some_and(|s| s.starts_with("53"))) {
        tx.batch_execute("ROLLBACK TO aside; SET LOCAL max_parallel_workers_per_gather = 0; SAVEPOINT aside").await.at(doing)?;
        outcome = tx.batch_execute(&sql).await;
    }
    match outcome {
        Err(error) if sqlstate(&error).is_some_and(|s| s.starts_with("22")) => {
            tx.batch_execute("ROLLBACK TO aside").await.at(doing)?;
            Err(uncastable(tx, entry, plan).await?)
        }
        other => other.at(doing),
    }
}

/// The statements that set aside what is to be carried: first the keys, each once though several old rows may share a new key, then their rows.
fn statements(brief: &Brief, plan: &Plan) -> String {
    let Plan { live, shadow, keys, aside, flag, time, .. } = plan;
    let (mut old_key, mut grouped, mut absent, mut same) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (i, column) in plan.columns.iter().enumerate().filter(|(_, c)| c.key) {
        let name = ident(&column.name);
        old_key.push(format!("o.{name} AS k{i}"));
        grouped.push(format!("o.{name}"));
        absent.push(format!("s.{name} = {}", column.value));
        same.push(format!("o.{name} = k.k{i}"));
    }
    let wanted = match (brief.carry.soft_deleted, brief.carry.missing) {
        (true, false) => format!("{flag} AND "),
        (false, true) => format!("NOT {flag} AND "),
        _ => String::new(),
    };
    let values: Vec<String> = plan.columns.iter().enumerate().map(|(i, c)| format!("{} AS c{i}", c.value)).collect();
    format!(
        "CREATE UNLOGGED TABLE {keys} AS SELECT {}, count(*) AS rows FROM {live} o WHERE {wanted}NOT EXISTS (SELECT FROM {shadow} s WHERE {}) GROUP BY {};
         ANALYZE {keys};
         CREATE UNLOGGED TABLE {aside} AS SELECT {}, {flag} AS flagged, {time} AS synced FROM {keys} k JOIN {live} o ON {wanted}{}",
        old_key.join(", "),
        absent.join(" AND "),
        grouped.join(", "),
        values.join(", "),
        same.join(" AND ")
    )
}

/// Names the column whose values do not fit its new type.
async fn uncastable(tx: &Transaction<'_>, entry: &Entry, plan: &Plan) -> Result<Error, Error> {
    let mut culprits = Vec::new();
    for column in &plan.columns {
        let Some((old, new)) = &column.cast else { continue };
        tx.batch_execute("SAVEPOINT one_column").await.at("looking for the column")?;
        if tx.batch_execute(&format!("SELECT count({}) FROM {} o", column.value, plan.live)).await.is_err() {
            culprits.push(format!("{:?} from {old} to {new}", column.name));
        }
        tx.batch_execute("ROLLBACK TO one_column").await.at("looking for the column")?;
    }
    Ok(permanent("CarryCast", carry_cast(&entry.live, &culprits)))
}

fn insert(brief: &Brief, plan: &Plan) -> String {
    let mut names: Vec<String> = plan.columns.iter().map(|c| ident(&c.name)).collect();
    let mut values: Vec<String> = (0..plan.columns.len()).map(|i| format!("g.c{i}")).collect();
    names.push(ident(&brief.soft_delete.column));
    values.push("true".into());
    if !brief.synced_at_column.is_empty() {
        names.push(ident(&brief.synced_at_column));
        values.push("CASE WHEN g.flagged THEN coalesce(g.synced, e.begun_at) ELSE e.begun_at END".into());
    }
    format!(
        "INSERT INTO {} ({}) SELECT {} FROM {} g, _mirror_operator.epoch e WHERE e.mirror = $1::text::uuid AND e.epoch = $2 ON CONFLICT DO NOTHING",
        plan.shadow,
        names.join(", "),
        values.join(", "),
        plan.aside
    )
}

/// Counts those that are in the shadow now: of rows that share a key one at most.
async fn recount(tx: &Transaction<'_>, plan: &Plan, carried: &mut Carried, doing: &str) -> Result<(), Error> {
    let keys = plan.columns.iter().enumerate().filter(|(_, c)| c.key);
    let (key, same): (Vec<String>, Vec<String>) = keys.map(|(i, c)| (format!("g.c{i}"), format!("s.{} = g.c{i}", ident(&c.name)))).unzip();
    let sql = format!(
        "SELECT count(*) FILTER (WHERE flagged), count(*) FILTER (WHERE NOT flagged)
         FROM (SELECT DISTINCT ON ({}) g.flagged FROM {} g WHERE EXISTS (SELECT FROM {} s WHERE {})) g",
        key.join(", "),
        plan.aside,
        plan.shadow,
        same.join(" AND ")
    );
    let row = tx.query_one(&sql, &[]).await.at(doing)?;
    (carried.deleted, carried.missing) = (row.get(0), row.get(1));
    Ok(())
}
