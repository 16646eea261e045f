//! Shadows: made, and emptied when their snapshot was lost.

use tokio_postgres::{Transaction, types::PgLsn};

use super::{
    Postgres,
    error::{At, permanent},
    session::{commit, fence_alone, fence_alone_soon},
};
use crate::{
    brief::Brief,
    destination::{Boundary, Error, Plan, foreign_shadow, gone},
    name,
    postgres::{ident, literal, qualified},
    table::{TableName, TableSchema},
    verify,
};

/// Autovacuum would scan a table that grows by millions of rows a minute again and again, for nothing, and then stand in the way of the swap, which
/// turns it on again.
const WHILE_LOADING: &str = "autovacuum_enabled = false, toast.autovacuum_enabled = false";

/// Between tries to be alone behind the fence.
const FENCE_PAUSE: std::time::Duration = std::time::Duration::from_millis(400);

/// The end of [`WHILE_LOADING`].
pub(super) const AFTER_LOADING: &str = "autovacuum_enabled, toast.autovacuum_enabled";

/// See [`Destination::create_shadows`](crate::destination::Destination::create_shadows).
pub(super) async fn create(at: &Postgres, boundary: Boundary, tables: &[TableSchema], plan: &Plan) -> Result<(), Error> {
    let doing = "creating the shadows";
    let mut session = at.session().await?;
    let tx = session.begin(doing).await?;
    fence_alone(&tx, &at.brief).await?;
    if generation(&tx, &at.brief).await? == 0 {
        drop_leftovers(&tx, &at.brief).await?;
        refuse_foreign(&tx, tables).await?;
        create_schemas(&tx, tables).await?;
        let sql: String = tables.iter().map(|table| create_table(table, &at.brief)).collect();
        tx.batch_execute(&sql).await.at(doing)?;
        record_tables(&tx, &at.brief, boundary, tables).await?;
        record_chunks(&tx, &at.brief, plan).await?;
        record_boundary(&tx, &at.brief, boundary, plan).await?;
    }
    commit(tx, doing).await?;
    session.keep();
    Ok(())
}

/// See [`Destination::renew_snapshot`](crate::destination::Destination::renew_snapshot).
pub(super) async fn renew(at: &Postgres, boundary: Boundary) -> Result<(), Error> {
    let doing = "renewing the snapshot";
    let mut session = at.session().await?;
    let tx = loop {
        let tx = session.begin(doing).await?;
        // Alone: every load that was under way has ended, and the next one sees the new generation.
        if fence_alone_soon(&tx, &at.brief).await? {
            break tx;
        }
        tx.rollback().await.at(doing)?;
        tokio::time::sleep(FENCE_PAUSE).await;
    };
    let current = generation(&tx, &at.brief).await?;
    if current == 0 {
        return Err(permanent("NoShadows", "a snapshot cannot be renewed before the shadows are created"));
    }
    if current < boundary.generation {
        empty_incomplete(&tx, &at.brief, boundary).await?;
        let sql = "UPDATE _mirror_operator.epoch SET generation = $3, snapshot_lsn = $4 WHERE mirror = $1::text::uuid AND epoch = $2";
        let epoch = at.brief.epoch as i32;
        tx.execute(sql, &[&at.brief.mirror_uid, &epoch, &(boundary.generation as i32), &PgLsn::from(boundary.lsn.0)]).await.at(doing)?;
    }
    commit(tx, doing).await?;
    session.keep();
    Ok(())
}

async fn empty_incomplete(tx: &Transaction<'_>, brief: &Brief, boundary: Boundary) -> Result<(), Error> {
    let doing = "emptying what was half loaded";
    let sql = "UPDATE _mirror_operator.table t SET generation = $3, gate_lsn = $4, source_rows = NULL, source_sum = NULL
               WHERE mirror = $1::text::uuid AND epoch = $2 AND sealed_at IS NULL
                 AND ($5 AND source_rows IS NULL
                      OR EXISTS (SELECT FROM _mirror_operator.chunk c
                                 WHERE c.mirror = t.mirror AND c.epoch = t.epoch AND c.table_number = t.number AND c.loaded_at IS NULL))
               RETURNING number, destination_schema, shadow_name";
    let epoch = brief.epoch as i32;
    let (generation, lsn, verified) = (boundary.generation as i32, PgLsn::from(boundary.lsn.0), verify::is_wanted(brief));
    let rows = tx.query(sql, &[&brief.mirror_uid, &epoch, &generation, &lsn, &verified]).await.at(doing)?;
    if rows.is_empty() {
        return Ok(());
    }
    let shadows: Vec<String> = rows.iter().map(|r| qualified(r.get(1), r.get(2))).collect();
    tx.batch_execute(&format!("TRUNCATE {}", shadows.join(", "))).await.at(doing)?;
    let numbers: Vec<i32> = rows.iter().map(|r| r.get(0)).collect();
    let sql = "UPDATE _mirror_operator.chunk SET rows = NULL, bytes = NULL, loaded_at = NULL
               WHERE mirror = $1::text::uuid AND epoch = $2 AND table_number = ANY ($3) AND loaded_at IS NOT NULL";
    tx.execute(sql, &[&brief.mirror_uid, &epoch, &numbers]).await.at(doing)?;
    Ok(())
}

async fn generation(tx: &Transaction<'_>, brief: &Brief) -> Result<u32, Error> {
    let sql = "SELECT generation FROM _mirror_operator.epoch WHERE mirror = $1::text::uuid AND epoch = $2";
    let row = tx.query_opt(sql, &[&brief.mirror_uid, &(brief.epoch as i32)]).await.at("reading the ledger")?;
    Ok(row.ok_or_else(|| gone(brief))?.get::<_, i32>(0) as u32)
}

/// Drops shadows that earlier epochs of this mirror left behind, told by oid and name together, and what the ledger says of those epochs.
async fn drop_leftovers(tx: &Transaction<'_>, brief: &Brief) -> Result<(), Error> {
    let doing = "dropping shadows of earlier epochs";
    let sql = "SELECT n.nspname, c.relname FROM _mirror_operator.table t
                 JOIN _mirror_operator.epoch e USING (mirror, epoch)
                 JOIN pg_catalog.pg_class c ON c.oid = t.relation AND c.relname = t.shadow_name
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = t.destination_schema
               WHERE t.mirror = $1::text::uuid AND t.epoch < $2 AND e.swapped_at IS NULL";
    let epoch = brief.epoch as i32;
    let rows = tx.query(sql, &[&brief.mirror_uid, &epoch]).await.at(doing)?;
    let drops: String = rows.iter().map(|r| format!("DROP TABLE {};", qualified(r.get(0), r.get(1)))).collect();
    tx.batch_execute(&drops).await.at(doing)?;
    let sql = "DELETE FROM _mirror_operator.epoch WHERE mirror = $1::text::uuid AND epoch < $2 AND swapped_at IS NULL";
    tx.execute(sql, &[&brief.mirror_uid, &epoch]).await.at(doing)?;
    Ok(())
}

/// Whatever bears a shadow's name now is somebody's own.
async fn refuse_foreign(tx: &Transaction<'_>, tables: &[TableSchema]) -> Result<(), Error> {
    let (schemas, shadows): (Vec<&str>, Vec<String>) =
        tables.iter().map(|t| (t.destination.schema.as_str(), name::shadow(&t.destination.name))).unzip();
    let sql = "SELECT n.nspname, c.relname FROM unnest($1::text[], $2::text[]) AS w (schema, name)
               JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
               JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name";
    match tx.query(sql, &[&schemas, &shadows]).await.at("looking for foreign tables")?.first() {
        None => Ok(()),
        Some(row) => Err(permanent("ForeignShadow", foreign_shadow(&TableName { schema: row.get(0), name: row.get(1) }))),
    }
}

async fn create_schemas(tx: &Transaction<'_>, tables: &[TableSchema]) -> Result<(), Error> {
    let schemas: Vec<&str> = tables.iter().map(|t| t.destination.schema.as_str()).collect();
    let sql = "SELECT DISTINCT w.schema FROM unnest($1::text[]) AS w (schema)
               WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_namespace n WHERE n.nspname = w.schema)";
    for row in tx.query(sql, &[&schemas]).await.at("looking for schemas")? {
        let schema: &str = row.get(0);
        // Another mirror may create it at the same moment, and IF NOT EXISTS alone does not wait for it.
        let lock = "SELECT pg_advisory_xact_lock(hashtextextended('mirror-operator schemas', 0))";
        let sql = format!("{lock}; CREATE SCHEMA IF NOT EXISTS {}", ident(schema));
        tx.batch_execute(&sql).await.at(&format!("creating schema {schema:?}"))?;
    }
    Ok(())
}

/// The statement that creates a shadow, without key and without the [columns of its own](own_columns).
fn create_table(table: &TableSchema, brief: &Brief) -> String {
    let mut columns: Vec<String> = Vec::with_capacity(table.columns.len());
    for column in &table.columns {
        let generated = column.generated.as_ref().map(|e| format!(" GENERATED ALWAYS AS ({e}) STORED")).unwrap_or_default();
        let not_null = if column.not_null { " NOT NULL" } else { "" };
        columns.push(format!("{} {}{generated}{not_null}", ident(&column.destination), column.destination_type));
    }
    let shadow = qualified(&table.destination.schema, &name::shadow(&table.destination.name));
    let mark = literal(&format!("Being loaded by mirror {}/{}, resync {}", brief.namespace, brief.mirror, brief.resync));
    format!("CREATE TABLE {shadow} ({}) WITH ({WHILE_LOADING}); COMMENT ON TABLE {shadow} IS {mark};", columns.join(", "))
}

/// The statement that adds the columns that say whether a row is deleted and when it was written; `None` if there are none. A column that is added with a
/// default takes no room in the rows that are there (PostgreSQL docs, "Modifying Tables"), so this is done once they are: a load writes that much less.
pub(super) fn own_columns(shadow: &str, brief: &Brief) -> Option<String> {
    let mut columns = Vec::new();
    if brief.soft_delete.enabled {
        columns.push(format!("ADD COLUMN IF NOT EXISTS {} boolean NOT NULL DEFAULT false", ident(&brief.soft_delete.column)));
    }
    if !brief.synced_at_column.is_empty() {
        columns.push(format!("ADD COLUMN IF NOT EXISTS {} timestamptz NOT NULL DEFAULT now()", ident(&brief.synced_at_column)));
    }
    (!columns.is_empty()).then(|| format!("ALTER TABLE {shadow} {}", columns.join(", ")))
}

async fn record_tables(tx: &Transaction<'_>, brief: &Brief, boundary: Boundary, tables: &[TableSchema]) -> Result<(), Error> {
    let mut numbers = Vec::with_capacity(tables.len());
    let (mut schemas, mut namespaces, mut names, mut shadows, mut shadow_names) = (vec![], vec![], vec![], vec![], vec![]);
    for table in tables {
        let shadow = name::shadow(&table.destination.name);
        numbers.push(table.number as i32);
        schemas.push(serde_json::to_string(table).map_err(|e| permanent("Internal", e.to_string()))?);
        namespaces.push(table.destination.schema.as_str());
        names.push(table.destination.name.as_str());
        shadows.push(qualified(&table.destination.schema, &shadow));
        shadow_names.push(shadow);
    }
    let sql = "INSERT INTO _mirror_operator.table
                 (mirror, epoch, number, schema, destination_schema, destination_name, shadow_name, relation, generation, gate_lsn)
               SELECT $1::text::uuid, $2, w.number, w.schema::jsonb, w.namespace, w.name, w.shadow_name, w.shadow::regclass, $3, $4
               FROM unnest($5::int[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[])
                 AS w (number, schema, namespace, name, shadow_name, shadow)";
    let (epoch, generation, lsn) = (brief.epoch as i32, boundary.generation as i32, PgLsn::from(boundary.lsn.0));
    tx.execute(sql, &[&brief.mirror_uid, &epoch, &generation, &lsn, &numbers, &schemas, &namespaces, &names, &shadow_names, &shadows])
        .await
        .at("writing the ledger")?;
    Ok(())
}

async fn record_chunks(tx: &Transaction<'_>, brief: &Brief, plan: &Plan) -> Result<(), Error> {
    let numbers: Vec<i32> = plan.chunks.iter().map(|c| c.number as i32).collect();
    let partitions: Vec<i32> = plan.chunks.iter().map(|c| c.partition as i32).collect();
    let tables: Vec<i32> = plan.chunks.iter().map(|c| c.table as i32).collect();
    let relations: Vec<u32> = plan.chunks.iter().map(|c| c.relation).collect();
    let first: Vec<i64> = plan.chunks.iter().map(|c| c.first as i64).collect();
    let end: Vec<Option<i64>> = plan.chunks.iter().map(|c| c.end.map(|b| b as i64)).collect();
    let bytes: Vec<i64> = plan.chunks.iter().map(|c| c.bytes as i64).collect();
    let sql = "INSERT INTO _mirror_operator.chunk (mirror, epoch, number, partition, table_number, relation, first_block, end_block, bytes_planned)
               SELECT $1::text::uuid, $2, w.* FROM unnest($3::int[], $4::int[], $5::int[], $6::oid[], $7::bigint[], $8::bigint[], $9::bigint[]) AS w";
    tx.execute(sql, &[&brief.mirror_uid, &(brief.epoch as i32), &numbers, &partitions, &tables, &relations, &first, &end, &bytes])
        .await
        .at("writing the ledger")?;
    Ok(())
}

async fn record_boundary(tx: &Transaction<'_>, brief: &Brief, boundary: Boundary, plan: &Plan) -> Result<(), Error> {
    let sql = "UPDATE _mirror_operator.epoch SET generation = $3, snapshot_lsn = $4, start_lsn = $4, applied_lsn = $4, applied_at = now(),
                      partitions = $5, total_rows = $6, total_bytes = $7
               WHERE mirror = $1::text::uuid AND epoch = $2";
    let (epoch, generation, lsn) = (brief.epoch as i32, boundary.generation as i32, PgLsn::from(boundary.lsn.0));
    let (partitions, rows, bytes) = (plan.partitions as i32, plan.rows as i64, plan.bytes as i64);
    tx.execute(sql, &[&brief.mirror_uid, &epoch, &generation, &lsn, &partitions, &rows, &bytes]).await.at("writing the ledger")?;
    Ok(())
}
