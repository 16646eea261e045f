//! Keys and indexes, once a table's rows are there.

use tokio_postgres::{GenericClient, Transaction};

use super::{
    Postgres,
    error::{At, meaning},
    ledger::{Built, remark},
    live,
    session::{Session, claim, commit, fence},
    shadow::own_columns,
};
use crate::{
    brief::Brief,
    destination::{Error, gone},
    name,
    postgres::{ident, qualified},
    table::{TableName, TableSchema},
    verify,
};

/// Sorting needs memory; servers come with 64 MB.
pub(super) const MEMORY: &str = "SELECT set_config('maintenance_work_mem', '256MB', true)
     WHERE pg_size_bytes(current_setting('maintenance_work_mem')) < 268435456";

/// See [`Destination::seal`](crate::destination::Destination::seal).
///
/// When it returns, every table that was complete at the call is sealed: what others are busy with is waited for, last.
pub(super) async fn seal(at: &Postgres) -> Result<(), Error> {
    let mut session = at.session().await?;
    let mut busy = Vec::new();
    for number in complete(session.client(), &at.brief).await? {
        if !table(&mut session, &at.brief, number, false).await? {
            busy.push(number);
        }
    }
    for number in busy {
        table(&mut session, &at.brief, number, true).await?;
    }
    session.keep();
    Ok(())
}

/// Tables that are complete and not sealed, largest first.
async fn complete(client: &impl GenericClient, brief: &Brief) -> Result<Vec<i32>, Error> {
    let sql = "SELECT t.number FROM _mirror_operator.table t
               LEFT JOIN (SELECT table_number, bool_and(loaded_at IS NOT NULL) AS loaded, sum(bytes) AS bytes FROM _mirror_operator.chunk
                          WHERE mirror = $1::text::uuid AND epoch = $2 GROUP BY table_number) c ON c.table_number = t.number
               WHERE t.mirror = $1::text::uuid AND t.epoch = $2 AND t.sealed_at IS NULL AND coalesce(c.loaded, true)
                 AND (NOT $3 OR t.source_rows IS NOT NULL)
               ORDER BY c.bytes DESC NULLS LAST, t.number";
    let rows = client.query(sql, &[&brief.mirror_uid, &(brief.epoch as i32), &verify::is_wanted(brief)]).await.at("reading the ledger")?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// Seals one table; false if another worker is at it.
async fn table(session: &mut Session<'_>, brief: &Brief, number: i32, wait: bool) -> Result<bool, Error> {
    let tx = session.begin("sealing a table").await?;
    fence(&tx, brief).await?;
    if !claim(&tx, brief, "seal", number, wait).await? {
        return Ok(false);
    }
    let sql = "SELECT schema::text, shadow_name, relation, sealed_at IS NOT NULL FROM _mirror_operator.table
               WHERE mirror = $1::text::uuid AND epoch = $2 AND number = $3";
    let row = tx.query_opt(sql, &[&brief.mirror_uid, &(brief.epoch as i32), &number]).await.at("reading the ledger")?;
    let row = row.ok_or_else(|| gone(brief))?;
    if !row.get::<_, bool>(3) {
        let table = super::ledger::schema(row.get(0))?;
        let shadow = Shadow { oid: row.get(2), sql: qualified(&table.destination.schema, row.get(1)) };
        build(&tx, brief, &table, &shadow).await?;
    }
    commit(tx, "sealing a table").await?;
    Ok(true)
}

/// A shadow by oid and by its quoted name.
struct Shadow {
    oid: u32,
    sql: String,
}

async fn build(tx: &Transaction<'_>, brief: &Brief, table: &TableSchema, shadow: &Shadow) -> Result<(), Error> {
    let doing = format!("sealing {}", table.destination);
    tx.batch_execute(MEMORY).await.at(&doing)?;
    if let Some(columns) = own_columns(&shadow.sql, brief) {
        tx.batch_execute(&columns).await.at(&doing)?;
    }
    let old = match live::find(tx, brief, &table.destination).await? {
        Some(live) if live.kind == "r" => old_indexes(tx, live.oid, &table.destination).await?,
        _ => Vec::new(),
    };
    let mut made = Vec::new();
    if !table.key().is_empty() {
        made.push(build_key(tx, table, shadow, old.iter().find(|i| i.kind == Kind::Primary), &doing).await?);
    }
    let mut notes = Vec::new();
    for index in old.iter().filter(|i| i.kind != Kind::Primary) {
        match rebuild(tx, shadow, index, made.len(), &doing).await? {
            Ok(built) => made.extend(built),
            Err(note) => notes.push(note),
        }
    }
    remark(tx, brief, table.number as i32, &notes).await?;
    let indexes = serde_json::to_string(&made).map_err(super::ledger::unreadable)?;
    let sql = "UPDATE _mirror_operator.table SET sealed_at = now(), indexes = $4::text::jsonb
               WHERE mirror = $1::text::uuid AND epoch = $2 AND number = $3";
    tx.execute(sql, &[&brief.mirror_uid, &(brief.epoch as i32), &(table.number as i32), &indexes]).await.at(&doing)?;
    Ok(())
}

/// The shadow's own indexes have names of their own until the swap: theirs are still borne by those of the live table.
fn built_name(shadow: &Shadow, count: usize) -> String {
    format!("mo_{}_{count}", shadow.oid)
}

async fn build_key(
    tx: &Transaction<'_>,
    table: &TableSchema,
    shadow: &Shadow,
    old: Option<&OldIndex>,
    doing: &str,
) -> Result<Built, Error> {
    let columns: Vec<String> = table.key().iter().filter_map(|&i| table.columns.get(i)).map(|c| ident(&c.destination)).collect();
    let built = Built {
        built: built_name(shadow, 0),
        name: old.map_or_else(|| name::suffixed(&table.destination.name, "_pkey"), |o| o.name.clone()),
        comment: old.and_then(|o| o.comment.clone()),
    };
    let sql = format!("ALTER TABLE {} ADD CONSTRAINT {} PRIMARY KEY ({})", shadow.sql, ident(&built.built), columns.join(", "));
    tx.batch_execute(&sql).await.at(doing)?;
    Ok(built)
}

#[derive(PartialEq)]
enum Kind {
    /// Its columns may be others now: the key is built from the source's.
    Primary,
    /// UNIQUE or EXCLUDE.
    Constraint,
    Index,
    /// CHECK: no index at all.
    Check,
}

/// An index or a check of the live table.
struct OldIndex {
    name: String,
    kind: Kind,
    /// `UNIQUE` or nothing, for an index.
    unique: &'static str,
    /// What follows its name, or its table's name.
    definition: Option<String>,
    comment: Option<String>,
}

/// Indexes and checks of the live table, in the order in which they were made.
async fn old_indexes(tx: &Transaction<'_>, live: u32, table: &TableName) -> Result<Vec<OldIndex>, Error> {
    // What pg_get_indexdef writes before the method is known to the letter, since the search path is empty.
    let sql = "SELECT x.name, x.kind, x.is_unique, CASE WHEN x.kind IN ('c', 'u', 'x') THEN pg_get_constraintdef(x.constraint_oid)
                        WHEN starts_with(x.definition, x.prefix) THEN substr(x.definition, length(x.prefix) + 1) END, x.comment
        FROM (SELECT i.indexrelid AS oid, c.relname AS name, coalesce(k.contype::text, CASE WHEN i.indisprimary THEN 'p' ELSE 'i' END) AS kind,
                     i.indisunique AS is_unique, k.oid AS constraint_oid, pg_get_indexdef(i.indexrelid) AS definition,
                     format('CREATE %sINDEX %I ON %I.%I ', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, c.relname, n.nspname, t.relname) AS prefix,
                     obj_description(i.indexrelid, 'pg_class') AS comment
              FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
              JOIN pg_catalog.pg_class t ON t.oid = i.indrelid JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
              LEFT JOIN pg_catalog.pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x')
              WHERE i.indrelid = $1 AND i.indisvalid
              UNION ALL
              SELECT oid, conname, 'c', false, oid, NULL, NULL, NULL FROM pg_catalog.pg_constraint WHERE conrelid = $1 AND contype = 'c') x
        ORDER BY x.oid";
    let rows = tx.query(sql, &[&live]).await.at(&format!("reading the indexes of {table}"))?;
    Ok(rows
        .iter()
        .map(|r| OldIndex {
            name: r.get(0),
            kind: match r.get::<_, &str>(1) {
                "p" => Kind::Primary,
                "u" | "x" => Kind::Constraint,
                "c" => Kind::Check,
                _ => Kind::Index,
            },
            unique: if r.get(2) { "UNIQUE " } else { "" },
            definition: r.get(3),
            comment: r.get(4),
        })
        .collect())
}

/// Builds an old index on the shadow. One that the new columns or rows do not allow is left out, with a note that says so.
async fn rebuild(
    tx: &Transaction<'_>,
    shadow: &Shadow,
    index: &OldIndex,
    count: usize,
    doing: &str,
) -> Result<Result<Option<Built>, String>, Error> {
    let what = format!("{} {:?}", if index.kind == Kind::Check { "check" } else { "index" }, index.name);
    let Some(definition) = &index.definition else {
        return Ok(Err(format!("{what} was not kept: its definition cannot be read")));
    };
    let built = Built { built: built_name(shadow, count), name: index.name.clone(), comment: index.comment.clone() };
    let sql = match index.kind {
        Kind::Index => format!("CREATE {}INDEX {} ON {} {definition}", index.unique, ident(&built.built), shadow.sql),
        Kind::Check => format!("ALTER TABLE {} ADD CONSTRAINT {} {definition}", shadow.sql, ident(&index.name)),
        Kind::Constraint | Kind::Primary => format!("ALTER TABLE {} ADD CONSTRAINT {} {definition}", shadow.sql, ident(&built.built)),
    };
    tx.batch_execute("SAVEPOINT one_index").await.at(doing)?;
    let Err(error) = tx.batch_execute(&sql).await else {
        tx.batch_execute("RELEASE one_index").await.at(doing)?;
        return Ok(Ok((index.kind != Kind::Check).then_some(built)));
    };
    match meaning(&error, &what) {
        Error::Permanent(failure) => {
            tx.batch_execute("ROLLBACK TO one_index; RELEASE one_index").await.at(doing)?;
            Ok(Err(format!("{what} was not kept: {}", failure.message)))
        }
        other => Err(other),
    }
}
