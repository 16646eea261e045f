//! What would stop a load, found before anything is changed.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Postgres, dependents,
    error::{At, failure},
    ledger, live, retire,
    session::Session,
};
use crate::{
    brief::Brief,
    destination::{Error, foreign_shadow},
    name,
    postgres::{Connection, ident, qualified},
    report::Failure,
    table::{TableName, TableSchema},
};

/// The oldest version whose replication commands and catalogs are known to serve.
const OLDEST: i32 = 140_000;

/// See [`Destination::preflight`](crate::destination::Destination::preflight).
pub(super) async fn preflight(at: &Postgres, tables: &[TableSchema]) -> Result<Vec<Failure>, Error> {
    let session = at.session().await?;
    let mut found = Vec::new();
    server(&session, &mut found).await?;
    let ledger = ledger_rights(&session, &at.to, &mut found).await?;
    schema_rights(&session, &at.to, tables, &mut found).await?;
    types(&session, tables, &mut found).await?;
    for table in tables {
        columns(&at.brief, table, &mut found);
    }
    names(tables, &mut found);
    taken(&session, &at.brief, tables, ledger, &mut found).await?;
    for table in tables {
        replaceable(&session, at, table, &mut found).await?;
    }
    if ledger {
        let retired: Vec<u32> = retire::of_earlier_swaps(session.client(), &at.brief).await?.iter().map(|old| old.oid).collect();
        let hanging = dependents::hanging(session.client(), &retired).await?;
        found.extend(hanging.into_iter().map(|what| failure("DependentObject", format!("an earlier swap has retired a table. {what}"))));
    }
    session.keep();
    Ok(found)
}

async fn server(session: &Session<'_>, found: &mut Vec<Failure>) -> Result<(), Error> {
    let sql = "SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery()";
    let row = session.client().query_one(sql, &[]).await.at("looking at the server")?;
    if row.get::<_, i32>(0) < OLDEST {
        found.push(failure(
            "VersionUnsupported",
            format!("the destination runs PostgreSQL {}; 14 is the oldest that serves", row.get::<_, &str>(1)),
        ));
    }
    if row.get(2) {
        found.push(failure("ReadOnly", "the destination is a standby, which cannot be written: let the Peer name the primary"));
    }
    Ok(())
}

/// Whether the ledger is there and can be used; what is missing otherwise.
async fn ledger_rights(session: &Session<'_>, to: &Connection, found: &mut Vec<Failure>) -> Result<bool, Error> {
    let sql = "SELECT has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE'),
                      coalesce((SELECT bool_and(has_table_privilege(c.oid, 'SELECT, INSERT, UPDATE, DELETE')) FROM pg_catalog.pg_class c
                                WHERE c.relnamespace = n.oid AND c.relkind = 'r' AND c.relname IN ('mirror', 'epoch', 'table', 'chunk', 'layout')), true)
               FROM pg_catalog.pg_namespace n WHERE n.nspname = '_mirror_operator'";
    let user = ident(&to.user);
    match session.client().query_opt(sql, &[]).await.at("looking for the ledger")? {
        Some(row) if row.get(0) && row.get(1) => ledger::exists(session.client()).await,
        Some(_) => {
            let cure = format!(
                "GRANT USAGE, CREATE ON SCHEMA _mirror_operator TO {user}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA _mirror_operator TO {user};"
            );
            found.push(failure(
                "PermissionDenied",
                format!("role {user} may not use the ledger, schema _mirror_operator. Run at the destination: {cure}"),
            ));
            Ok(false)
        }
        None => {
            if !may_create_schemas(session).await? {
                let cure = ledger::ledger_cure(&to.database, &to.user);
                found.push(failure(
                    "PermissionDenied",
                    format!("role {user} may not create the ledger, schema _mirror_operator. Run at the destination: {cure}"),
                ));
            }
            Ok(false)
        }
    }
}

async fn may_create_schemas(session: &Session<'_>) -> Result<bool, Error> {
    let sql = "SELECT has_database_privilege(current_database(), 'CREATE')";
    Ok(session.client().query_one(sql, &[]).await.at("looking at rights")?.get(0))
}

async fn schema_rights(session: &Session<'_>, to: &Connection, tables: &[TableSchema], found: &mut Vec<Failure>) -> Result<(), Error> {
    let schemas: BTreeSet<&str> = tables.iter().map(|t| t.destination.schema.as_str()).collect();
    let schemas: Vec<&str> = schemas.into_iter().collect();
    let sql =
        "SELECT w.name, n.oid IS NOT NULL, coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE'), false)
               FROM unnest($1::text[]) AS w (name) LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.name";
    let user = ident(&to.user);
    for row in session.client().query(sql, &[&schemas]).await.at("looking at rights")? {
        let name: &str = row.get(0);
        if row.get(1) && !row.get::<_, bool>(2) {
            let cure = format!("GRANT USAGE, CREATE ON SCHEMA {} TO {user};", ident(name));
            found.push(failure(
                "PermissionDenied",
                format!("role {user} may not create tables in schema {name:?}. Run at the destination: {cure}"),
            ));
        } else if !row.get::<_, bool>(1) && !may_create_schemas(session).await? {
            let cure = format!("CREATE SCHEMA {} AUTHORIZATION {user};", ident(name));
            found.push(failure(
                "PermissionDenied",
                format!("schema {name:?} does not exist and role {user} may not create it. Run at the destination: {cure}"),
            ));
        }
    }
    Ok(())
}

/// Types that the destination does not have, such as an enum that only the source knows.
async fn types(session: &Session<'_>, tables: &[TableSchema], found: &mut Vec<Failure>) -> Result<(), Error> {
    let mut users: BTreeMap<&str, String> = BTreeMap::new();
    for table in tables {
        for column in &table.columns {
            users.entry(&column.destination_type).or_insert_with(|| format!("column {:?} of {}", column.destination, table.destination));
        }
    }
    for (type_, user) in users {
        // A type that cannot even be read is an error of some versions and NULL of others.
        let known = session.client().query_one("SELECT to_regtype($1) IS NOT NULL", &[&type_]).await;
        let known = match known {
            Ok(row) => row.get(0),
            Err(error) if error.as_db_error().is_some() => false,
            Err(error) => return Err(super::error::meaning(&error, "looking for types")),
        };
        if !known {
            found.push(failure(
                "TypeUnsupported",
                format!("{user} has type {type_}, which the destination does not have: create it there, or give the column a `type` in the Mirror, such as text"),
            ));
        }
    }
    Ok(())
}

fn columns(brief: &Brief, table: &TableSchema, found: &mut Vec<Failure>) {
    let mut seen = BTreeSet::new();
    if brief.soft_delete.enabled {
        seen.insert(brief.soft_delete.column.as_str());
    }
    seen.insert(brief.synced_at_column.as_str());
    for column in &table.columns {
        if !seen.insert(&column.destination) {
            found.push(failure(
                "ColumnConflict",
                format!(
                    "{} would have two columns called {:?}: give the source's another name in the Mirror's tables[].columns, or change softDelete.column or syncedAtColumn",
                    table.destination, column.destination
                ),
            ));
        }
    }
}

/// Tables whose helpers would bear the name of another mirrored table.
fn names(tables: &[TableSchema], found: &mut Vec<Failure>) {
    let live: BTreeSet<(&str, &str)> = tables.iter().map(|t| (t.destination.schema.as_str(), t.destination.name.as_str())).collect();
    for table in tables {
        for helper in [name::shadow(&table.destination.name), name::retired(&table.destination.name)] {
            if live.contains(&(table.destination.schema.as_str(), helper.as_str())) {
                let message = format!(
                    "{} needs the name {helper:?} while it is loaded, but another table of the mirror has it: change its `destination`",
                    table.destination
                );
                found.push(failure("NameConflict", message));
            }
        }
    }
}

/// Names of shadows and retired tables that somebody else has taken.
async fn taken(session: &Session<'_>, brief: &Brief, tables: &[TableSchema], ledger: bool, found: &mut Vec<Failure>) -> Result<(), Error> {
    let (mut schemas, mut wanted) = (Vec::new(), Vec::new());
    for table in tables {
        for helper in [name::shadow(&table.destination.name), name::retired(&table.destination.name)] {
            schemas.push(table.destination.schema.as_str());
            wanted.push(helper);
        }
    }
    let sql = "SELECT n.nspname, c.relname, c.oid FROM unnest($1::text[], $2::text[]) AS w (schema, name)
               JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name";
    for row in session.client().query(sql, &[&schemas, &wanted]).await.at("looking for foreign tables")? {
        let ours = "SELECT EXISTS (SELECT FROM _mirror_operator.table WHERE mirror = $1::text::uuid AND $2 IN (relation, retired))";
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&brief.mirror_uid, &row.get::<_, u32>(2)];
        if !ledger || !session.client().query_one(ours, &parameters).await.at("reading the ledger")?.get::<_, bool>(0) {
            found.push(failure("ForeignShadow", foreign_shadow(&TableName { schema: row.get(0), name: row.get(1) })));
        }
    }
    Ok(())
}

/// Whether the live table may be replaced, and whether that can be done without losing what hangs on it.
async fn replaceable(session: &Session<'_>, at: &Postgres, table: &TableSchema, found: &mut Vec<Failure>) -> Result<(), Error> {
    let Some(live) = live::find(session.client(), &at.brief, &table.destination).await? else { return Ok(()) };
    if let Some((reason, message)) = live::refusal(session.client(), &live, &table.destination).await? {
        found.push(failure(reason, message));
        return Ok(());
    }
    owners(session, &at.to, table, live.oid, found).await?;
    row_security(session, &at.to, table, live.oid, found).await?;
    let mut columns: Vec<String> = table.columns.iter().map(|c| c.destination.clone()).collect();
    columns.extend([at.brief.soft_delete.column.clone(), at.brief.synced_at_column.clone()]);
    for what in dependents::obstacles(session.client(), live.oid, &columns).await? {
        found.push(failure(
            "DependentObject",
            format!(
                "{} cannot be replaced without losing this: {what}. Drop it before the resync and make it again after",
                table.destination
            ),
        ));
    }
    Ok(())
}

/// Rows that are hidden from the role could be neither carried nor changed. A session of ours is refused rather than shown less.
async fn row_security(
    session: &Session<'_>,
    to: &Connection,
    table: &TableSchema,
    live: u32,
    found: &mut Vec<Failure>,
) -> Result<(), Error> {
    if session.client().query_one("SELECT row_security_active($1::oid)", &[&live]).await.at("looking at rights")?.get(0) {
        let (role, name) = (ident(&to.user), qualified(&table.destination.schema, &table.destination.name));
        let cure = format!("ALTER ROLE {role} BYPASSRLS; or, as its owner, ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY;");
        let message = format!("row security hides rows of {} from role {role}. Run at the destination: {cure}", table.destination);
        found.push(failure("PermissionDenied", message));
    }
    Ok(())
}

/// The swap renames the table, makes the new one its owner's, and moves the views upon it: for each it needs the owner's rights.
async fn owners(session: &Session<'_>, to: &Connection, table: &TableSchema, live: u32, found: &mut Vec<Failure>) -> Result<(), Error> {
    let sql = "SELECT DISTINCT format('%s %s', CASE c.relkind WHEN 'v' THEN 'view' ELSE 'table' END, c.oid::regclass), pg_get_userbyid(c.relowner),
                      pg_has_role(c.relowner, 'USAGE'), has_schema_privilege(c.relowner, c.relnamespace, 'CREATE')
               FROM pg_catalog.pg_class c
               WHERE c.oid = $1 OR c.relkind = 'v' AND c.oid IN (
                   SELECT r.ev_class FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
                   WHERE d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = $1)";
    for row in session.client().query(sql, &[&live]).await.at("looking at rights")? {
        let (what, owner): (&str, &str) = (row.get(0), row.get(1));
        if !row.get::<_, bool>(2) {
            let cure = format!("GRANT {} TO {};", ident(owner), ident(&to.user));
            let message =
                format!("{what} belongs to role {owner:?}, so role {:?} cannot replace it. Run at the destination: {cure}", to.user);
            found.push(failure("PermissionDenied", message));
        } else if owner != to.user && !row.get::<_, bool>(3) {
            let cure = format!("GRANT CREATE ON SCHEMA {} TO {};", ident(&table.destination.schema), ident(owner));
            found.push(failure("PermissionDenied", format!("{what} cannot be given to its owner again. Run at the destination: {cure}")));
        }
    }
    Ok(())
}
