//! What would stop a load, found before anything is changed.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{
    ClickHouse,
    client::{Client, Peer},
    cluster,
    encode::merges,
    error::failure,
    live, mark,
    own::{Own, sorting_key},
    policy,
    quote::ident,
    rights, shadow,
    types::Type,
};
use crate::{
    api::clickhouse::Engine,
    destination::{Error, foreign_shadow},
    name,
    report::Failure,
    table::{TableName, TableSchema},
};

/// The oldest version whose `ReplacingMergeTree(version, is_deleted)`, `CHECK GRANT` and query settings are those that are used here.
const OLDEST: (u32, u32) = (24, 12);
/// The first version with the engine CoalescingMergeTree (ClickHouse docs, "CoalescingMergeTree table engine").
const COALESCING: (u32, u32) = (25, 6);

/// Databases whose tables can be exchanged, and one whose tables can at least be renamed.
const SERVING: [&str; 3] = ["Atomic", "Overlay", "Ordinary"];

/// See [`Destination::preflight`](crate::destination::Destination::preflight).
pub(super) async fn preflight(at: &ClickHouse, tables: &[TableSchema]) -> Result<Vec<Failure>, Error> {
    let (server, mut found) = server(at.client()?, &at.to).await?;
    if !found.is_empty() {
        return Ok(found);
    }
    for table in tables.iter().filter(|t| at.options(t).engine == Engine::CoalescingMergeTree && server.release() < COALESCING) {
        let message = format!(
            "{} wants the engine CoalescingMergeTree, which the destination's ClickHouse {} does not have: {}.{} is the first that does",
            table.destination, server.version, COALESCING.0, COALESCING.1
        );
        found.push(failure("VersionUnsupported", message));
    }
    databases(at, tables, &mut found).await?;
    for table in tables {
        columns(at, table, &mut found);
        order(at, table, &mut found);
    }
    names(tables, &mut found);
    found.extend(policy::check(at, tables).await?);
    if found.is_empty() {
        for table in tables {
            found.extend(shadow::trial(at, table).await?);
        }
    }
    for table in tables {
        taken(at, table, &mut found).await?;
        if let Some(live) = live::find(at, &table.destination).await?
            && let Some((reason, message)) = live::refusal(at, &live, table).await?
        {
            found.push(failure(reason, message));
        }
    }
    Ok(found)
}

/// What a server says of itself.
#[derive(Default, Deserialize)]
pub(super) struct Server {
    pub(super) version: String,
    pub(super) identifier: String,
    readonly: String,
}

impl Server {
    fn release(&self) -> (u32, u32) {
        let mut parts = self.version.split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }
}

/// What stops every mirror: version, rights of the user, and the Peer's database.
pub(super) async fn server(client: &Client, to: &Peer) -> Result<(Server, Vec<Failure>), Error> {
    let sql = "SELECT version() AS version, toString(serverUUID()) AS identifier, toString(getSetting('readonly')) AS readonly";
    let (user, database) = (&to.at.user, &to.at.database);
    let readonly = || failure("ReadOnly", format!("Peer {}: user {user:?} may only read: give it a profile without readonly", to.at.peer));
    let server: Server = match client.row(sql, "looking at the server").await {
        Ok(server) => server,
        // Such a user may not even ask in the usual way, which comes with settings.
        Err(Error::Permanent(failure)) if failure.reason == "PermissionDenied" => return Ok((Server::default(), vec![readonly()])),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    if server.release() < OLDEST {
        let message = format!("the destination runs ClickHouse {}; {}.{} is the oldest that serves", server.version, OLDEST.0, OLDEST.1);
        found.push(failure("VersionUnsupported", message));
    }
    if server.readonly != "0" {
        found.push(readonly());
    }
    match live::database_engine(client, database).await? {
        None => {
            let message = format!(
                "the destination has no database {database:?}, which the Peer names. Run there: CREATE DATABASE {}",
                ident(database)
            );
            found.push(failure("DatabaseMissing", message));
        }
        Some(engine) => {
            found.extend(unserving(to, database, &engine));
            if found.is_empty() {
                found.extend(rights::server(client, to).await?);
                found.extend(rights::database(client, to, database).await?);
                found.extend(cluster::check(client, to).await?);
            }
        }
    }
    Ok((server, found))
}

/// Tables of some databases cannot be swapped. Only Atomic ones tell replicas by which path they meet. Others spread tables over several servers by themselves, but
/// not what the fence and the ledger need: rows, and the queries that run.
fn unserving(to: &Peer, database: &str, engine: &str) -> Option<Failure> {
    let serves = if to.cluster.is_some() { engine == "Atomic" } else { SERVING.contains(&engine) };
    (!serves).then(|| {
        let what = match engine {
            "Replicated" | "Shared" => "whose tables are on several servers, while the mirror would know of one only",
            _ if to.cluster.is_some() => "in which tables cannot be made ON CLUSTER",
            _ => "whose tables cannot be swapped",
        };
        let cure = match engine {
            "Replicated" | "Shared" if to.cluster.is_none() => ", and name the Peer's `cluster` if several servers are to have the tables",
            _ => "",
        };
        failure(
            "DatabaseEngine",
            format!(
                "database {database:?} at the destination has the engine {engine}, {what}. Write to a database of the engine Atomic{cure}"
            ),
        )
    })
}

async fn databases(at: &ClickHouse, tables: &[TableSchema], found: &mut Vec<Failure>) -> Result<(), Error> {
    let databases: BTreeSet<&str> = tables.iter().map(|t| t.destination.schema.as_str()).collect();
    for database in databases.into_iter().filter(|d| *d != at.to.at.database) {
        match live::database_engine(at.client()?, database).await? {
            Some(engine) => {
                found.extend(unserving(&at.to, database, &engine));
                found.extend(rights::database(at.client()?, &at.to, database).await?);
            }
            None if at.client()?.is_granted("CREATE DATABASE", &format!("{}.*", ident(database))).await? => {}
            None => {
                let message = format!(
                    "database {database:?} does not exist at the destination and user {:?} may not create it. Run there: CREATE DATABASE {}",
                    at.to.at.user,
                    ident(database)
                );
                found.push(failure("PermissionDenied", message));
            }
        }
    }
    Ok(())
}

fn columns(at: &ClickHouse, table: &TableSchema, found: &mut Vec<Failure>) {
    let own = Own::of(&at.brief);
    let mut seen: BTreeSet<&str> = own.names().collect();
    for column in &table.columns {
        let name = &column.destination;
        if !seen.insert(name) {
            let message = format!(
                "{} would have two columns called {name:?}: give the source's another name in the Mirror's tables[].columns, or change softDelete.column or syncedAtColumn",
                table.destination
            );
            found.push(failure("ColumnConflict", message));
        }
        if column.generated.is_some() {
            let message = format!(
                "column {name:?} of {} is generated at the source, which does not publish its values: list it in excludeColumns, and add a MATERIALIZED \
                 column at the destination if you need it; resyncs keep that",
                table.destination
            );
            found.push(failure("GeneratedColumn", message));
        } else if Type::parse(&column.destination_type).is_none() {
            let message = format!(
                "column {name:?} of {} has type {}, in which rows cannot be written: give the column another `type` in the Mirror, such as String",
                table.destination, column.destination_type
            );
            found.push(failure("TypeUnsupported", message));
        }
    }
    for column in table.key().iter().filter_map(|place| table.columns.get(*place)) {
        if Type::parse(&column.destination_type).is_some_and(|to| merges(column.value_type(), &to)) {
            let message = format!(
                "key column {:?} of {} has type {}, in which keys that differ at the source may become one: give it another `type` in the Mirror",
                column.destination, table.destination, column.destination_type
            );
            found.push(failure("TypeUnsupported", message));
        }
    }
}

/// The sorting key, and whether the engine can keep the table at all.
fn order(at: &ClickHouse, table: &TableSchema, found: &mut Vec<Failure>) {
    let options = at.options(table);
    if table.key().is_empty() && matches!(options.engine, Engine::ReplacingMergeTree | Engine::CoalescingMergeTree) {
        let message = format!(
            "{} has no key that tells versions of a row from other rows: add a primary key at the source, or choose tables[].clickhouse.engine MergeTree, \
             which keeps every change as a row",
            table.source
        );
        found.push(failure("NoPrimaryKey", message));
    }
    let allowed = options.settings.get("allow_nullable_key").is_some_and(|value| value == "1");
    let types: BTreeMap<&str, &str> = table.copied().map(|c| (c.destination.as_str(), c.destination_type.as_str())).collect();
    for column in sorting_key(table, &options) {
        let message = match types.get(column.as_str()) {
            None => format!("{} has no column {column:?}, which orderBy names: correct the Mirror", table.destination),
            Some(type_) if !allowed && Type::parse(type_).is_some_and(|t| t.is_nullable()) => format!(
                "column {column:?} of {} may be NULL, which a sorting key does not allow: set NOT NULL at the source, nullable: Never in the Mirror, or \
                 the table's setting allow_nullable_key to 1",
                table.destination
            ),
            Some(_) => continue,
        };
        found.push(failure("OrderBy", message));
    }
    if !sorting_key(table, &options).starts_with(&options.primary_key) {
        found.push(failure(
            "OrderBy",
            format!("primaryKey of {} is not the beginning of its sorting key: correct the Mirror", table.destination),
        ));
    }
}

/// Tables whose helpers would bear the name of another mirrored table.
fn names(tables: &[TableSchema], found: &mut Vec<Failure>) {
    let live: BTreeSet<&TableName> = tables.iter().map(|t| &t.destination).collect();
    for table in tables {
        let retired = TableName { schema: table.destination.schema.clone(), name: name::retired(&table.destination.name) };
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
async fn taken(at: &ClickHouse, table: &TableSchema, found: &mut Vec<Failure>) -> Result<(), Error> {
    let helpers = [mark::shadow(&table.destination, at.brief.epoch, 1), name::retired(&table.destination.name)];
    for helper in helpers {
        let helper = TableName { schema: table.destination.schema.clone(), name: helper };
        let live = live::find(at, &helper).await?;
        if live.is_some_and(|live| live.mark.is_none_or(|mark| mark.mirror != at.brief.mirror_uid)) {
            found.push(failure("ForeignShadow", foreign_shadow(&helper)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::peer::TlsMode, postgres::Connection};

    fn to(cluster: Option<&str>) -> Peer {
        let at = Connection {
            peer: "warehouse".into(),
            host: "h".into(),
            port: 1,
            database: "shop".into(),
            user: "mirror".into(),
            password: None,
            tls: TlsMode::Disable,
            ca: None,
            client_certificate: None,
            connect_timeout_millis: 1,
        };
        Peer { at, settings: BTreeMap::new(), cluster: cluster.map(str::to_string) }
    }

    #[test]
    fn databases_that_spread_tables_by_themselves_are_refused() {
        let refused = |engine: &str, cluster| unserving(&to(cluster), "shop", engine).map(|failure| failure.message);
        for engine in ["Replicated", "Shared"] {
            let alone = refused(engine, None).unwrap();
            assert!(alone.contains("several servers") && alone.contains("engine Atomic, and name the Peer's `cluster`"), "{alone}");
            assert!(refused(engine, Some("c")).unwrap().ends_with("a database of the engine Atomic"));
        }
        assert_eq!((refused("Atomic", None), refused("Ordinary", None), refused("Atomic", Some("c"))), (None, None, None));
        assert!(refused("Ordinary", Some("c")).unwrap().contains("ON CLUSTER"));
        assert!(refused("Memory", None).unwrap().contains("cannot be swapped"));
    }
}
