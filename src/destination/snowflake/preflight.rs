//! What would stop a load, found before anything is changed.

use std::collections::BTreeSet;

use super::{
    Snowflake,
    answer::Row,
    client::{Client, Peer},
    error::{failure, meaning},
    live, mark,
    own::Own,
    quote::{ident, literal},
    seal, stage,
    types::Type,
};
use crate::{
    destination::{Error, foreign_shadow},
    report::{Failure, PeerReport},
    table::{TableName, TableSchema},
};

/// What is done in a schema. With a stage of the user's own no other is made.
fn needed(to: &Peer) -> &'static [&'static str] {
    if to.stage.is_some() { &["CREATE TABLE"] } else { &["CREATE TABLE", "CREATE STAGE"] }
}

/// See [`Destination::preflight`](crate::destination::Destination::preflight).
pub(super) async fn preflight(at: &Snowflake, tables: &[TableSchema]) -> Result<Vec<Failure>, Error> {
    let mut found = check(at.client()?, &at.to).await?.problems;
    if !found.is_empty() {
        return Ok(found);
    }
    schemas(at, tables, &mut found).await?;
    for table in tables {
        columns(at, table, &mut found);
    }
    names(tables, &mut found);
    for table in tables {
        taken(at, table, &mut found).await?;
        let Some(live) = live::find(at, &table.destination).await? else { continue };
        if let Some((reason, message)) = live::refusal(at, &live, table).await? {
            found.push(failure(reason, message));
            continue;
        }
        owned(at, &live, table, &mut found).await?;
        found.extend(seal::policies(at, &table.destination).await?.map(|message| failure("PolicyUnkept", message)));
    }
    Ok(found)
}

/// What stops every mirror: user, role, warehouse, database, schema and the rights in it.
pub(super) async fn check(client: &Client, to: &Peer) -> Result<PeerReport, Error> {
    let sql = "SELECT CURRENT_VERSION(), CURRENT_WAREHOUSE(), CURRENT_ROLE(), CURRENT_ORGANIZATION_NAME() || '-' || CURRENT_ACCOUNT_NAME()";
    let looked = client.try_query(sql).await;
    let mut report = PeerReport::default();
    let answer = match looked {
        Ok(answer) => answer,
        Err(refusal) if refusal.is_authentication() => {
            let message = meaning(&refusal, &format!("Peer {}", to.at.peer)).to_string();
            report.problems.push(Failure { reason: "AuthenticationFailed".into(), message, permanent: false });
            return Ok(report);
        }
        Err(refusal) => return Err(meaning(&refusal, "looking at the account")),
    };
    let Some(row) = answer.rows().next() else { return Err(Error::Transient("looking at the account: it answered nothing".into())) };
    report.server_version = row.text(0).into();
    report.system_identifier = row.text(3).into();
    report.warehouse = row.get(1).map(str::to_string);
    let role = row.text(2).to_string();
    if row.get(1).is_none() {
        let message = format!(
            "Peer {}: no warehouse is in use: name one in the Peer, or give the user a default one. Run at the destination: GRANT USAGE ON WAREHOUSE … TO ROLE {}",
            to.at.peer,
            ident(&role)
        );
        report.problems.push(failure("WarehouseMissing", message));
        return Ok(report);
    }
    if schema_exists(client, to, &to.schema, &mut report.problems).await? {
        rights(client, to, &to.schema, &role, &mut report.problems).await?;
    } else if report.problems.is_empty() {
        let whole = format!("{}.{}", ident(&to.at.database), ident(&to.schema));
        let message = format!(
            "the destination has no schema {:?} in database {:?}, which the Peer names, or its role may not use it. Run there: CREATE SCHEMA {whole}; \
             GRANT USAGE, {} ON SCHEMA {whole} TO ROLE {}",
            to.schema,
            to.at.database,
            needed(to).join(", "),
            ident(&role)
        );
        report.problems.push(failure("SchemaMissing", message));
    }
    if let Some(stage) = &to.stage {
        report.problems.extend(stage::check(client, to, stage).await?);
    }
    Ok(report)
}

async fn schema_exists(client: &Client, to: &Peer, schema: &str, found: &mut Vec<Failure>) -> Result<bool, Error> {
    let database = ident(&to.at.database);
    let sql = format!("SELECT COUNT(*) FROM {database}.INFORMATION_SCHEMA.SCHEMATA WHERE SCHEMA_NAME = {}", literal(schema));
    match client.try_query(&sql).await {
        Ok(answer) => Ok(answer.number() > 0),
        Err(refusal) if refusal.is_missing() => {
            let message = format!(
                "the destination has no database {:?}, which the Peer names, or its role may not use it. Run there: CREATE DATABASE {database}, or GRANT USAGE ON DATABASE {database} TO ROLE …",
                to.at.database
            );
            found.push(failure("DatabaseMissing", message));
            Ok(false)
        }
        Err(refusal) => Err(meaning(&refusal, "looking for schemas")),
    }
}

/// Whether a role that the session has may do what is done in a schema.
async fn rights(client: &Client, to: &Peer, schema: &str, role: &str, found: &mut Vec<Failure>) -> Result<(), Error> {
    let whole = format!("{}.{}", ident(&to.at.database), ident(schema));
    let answer = client.query(&format!("SHOW GRANTS ON SCHEMA {whole}"), "looking at rights").await?;
    let grants: Vec<(&str, &str)> = answer.rows().map(|row| (named(row, "privilege"), named(row, "grantee_name"))).collect();
    let grantees: BTreeSet<&str> = grants.iter().map(|(_, grantee)| *grantee).collect();
    let mut ours = BTreeSet::new();
    for grantee in grantees {
        if has_role(client, grantee).await? {
            ours.insert(grantee);
        }
    }
    let may = |right: &str| {
        grants.iter().any(|(granted, grantee)| ours.contains(grantee) && (*granted == right || matches!(*granted, "OWNERSHIP" | "ALL")))
    };
    let missing: Vec<&str> = needed(to).iter().copied().filter(|right| !may(right)).collect();
    if !missing.is_empty() {
        let what = missing.join(", ");
        let message = format!(
            "role {role:?} lacks rights in schema {schema:?}. Run at the destination: GRANT {what} ON SCHEMA {whole} TO ROLE {}",
            ident(role)
        );
        found.push(failure("PermissionDenied", message));
    }
    Ok(())
}

fn named<'a>(row: Row<'a>, name: &str) -> &'a str {
    row.named(name).unwrap_or_default()
}

/// Whether the session has a role, be it through another.
async fn has_role(client: &Client, role: &str) -> Result<bool, Error> {
    let answer = client.query(&format!("SELECT TO_VARCHAR(IS_ROLE_IN_SESSION({}))", literal(role)), "looking at roles").await?;
    Ok(answer.rows().next().is_some_and(|row| row.text(0).eq_ignore_ascii_case("true")))
}

async fn schemas(at: &Snowflake, tables: &[TableSchema], found: &mut Vec<Failure>) -> Result<(), Error> {
    let client = at.client()?;
    let answer = client.query("SELECT CURRENT_ROLE()", "looking at the account").await?;
    let role = answer.rows().next().map(|row| row.text(0).to_string()).unwrap_or_default();
    let schemas: BTreeSet<&str> = tables.iter().map(|t| t.destination.schema.as_str()).filter(|s| *s != at.to.schema).collect();
    for schema in schemas {
        // One that does not exist is created; whether that may be done is seen then, before the old mirror is touched.
        if schema_exists(client, &at.to, schema, found).await? {
            rights(client, &at.to, schema, &role, found).await?;
        }
    }
    Ok(())
}

fn columns(at: &Snowflake, table: &TableSchema, found: &mut Vec<Failure>) {
    let own = Own::of(&at.brief);
    let mut seen: BTreeSet<&str> = own.names().collect();
    for column in &table.columns {
        let name = &column.destination;
        if !seen.insert(name) {
            let message = format!(
                "{} would have two columns called {name:?}: give the source's another name in the Mirror's tables[].columns, change softDelete.column or \
                 syncedAtColumn, or, if the source's names differ in capitals only, set the Peer's names to AsSource",
                table.destination
            );
            found.push(failure("ColumnConflict", message));
        }
        if column.generated.is_some() {
            let message = format!(
                "column {name:?} of {} is generated at the source, which does not publish its values: list it in excludeColumns, and compute it in a view at the destination",
                table.destination
            );
            found.push(failure("GeneratedColumn", message));
        } else if Type::parse(&column.destination_type).is_none() {
            let message = format!(
                "column {name:?} of {} has type {}, in which rows cannot be written: give the column another `type` in the Mirror, such as VARCHAR",
                table.destination, column.destination_type
            );
            found.push(failure("TypeUnsupported", message));
        } else if own_key(table, name) && !may_be_key(&column.destination_type) {
            let message = format!(
                "column {name:?} of {} is part of the key and has type {}, by which rows cannot be found again: give the column the `type` VARCHAR",
                table.destination, column.destination_type
            );
            found.push(failure("TypeUnsupported", message));
        }
    }
}

fn own_key(table: &TableSchema, column: &str) -> bool {
    super::own::key(table).contains(&column)
}

/// Semi-structured and spatial values are not compared.
fn may_be_key(type_: &str) -> bool {
    !matches!(Type::parse(type_), Some(Type::Variant | Type::Object | Type::Array | Type::Geography | Type::Geometry))
}

/// Tables that would bear one name, and those whose helpers would bear the name of another mirrored table.
fn names(tables: &[TableSchema], found: &mut Vec<Failure>) {
    let mut live: BTreeSet<&TableName> = BTreeSet::new();
    for table in tables {
        if !live.insert(&table.destination) {
            let message = format!(
                "{} is the destination of two tables, whose names differ in capitals only: change the `destination` of one",
                table.destination
            );
            found.push(failure("NameConflict", message));
        }
    }
    for table in tables {
        let retired = mark::retired(&table.destination);
        if live.contains(&retired) {
            let message = format!(
                "{} needs the name {:?} after the swap, but another table of the mirror has it: change its `destination`",
                table.destination, retired.name
            );
            found.push(failure("NameConflict", message));
        }
    }
}

/// Names of shadows and retired tables that somebody else has taken.
async fn taken(at: &Snowflake, table: &TableSchema, found: &mut Vec<Failure>) -> Result<(), Error> {
    let shadow = TableName { schema: table.destination.schema.clone(), name: mark::shadow(&table.destination, at.brief.epoch, 1) };
    for helper in [shadow, mark::retired(&table.destination)] {
        let live = live::find(at, &helper).await?;
        if live.is_some_and(|live| live.mark.is_none_or(|mark| mark.mirror != at.brief.mirror_uid)) {
            found.push(failure("ForeignShadow", foreign_shadow(&helper)));
        }
    }
    Ok(())
}

/// Who swaps tables owns both (Snowflake docs, "ALTER TABLE", "SWAP WITH").
async fn owned(at: &Snowflake, live: &live::Live, table: &TableSchema, found: &mut Vec<Failure>) -> Result<(), Error> {
    if !live.owner.is_empty() && !has_role(at.client()?, &live.owner).await? {
        let message = format!(
            "{} at the destination is owned by role {:?}, which the Peer's role does not have, so that it cannot be swapped. Run there: GRANT OWNERSHIP ON TABLE {} \
             TO ROLE … COPY CURRENT GRANTS",
            table.destination,
            live.owner,
            at.quoted(&table.destination)
        );
        found.push(failure("PermissionDenied", message));
    }
    Ok(())
}
