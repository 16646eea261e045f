//! What would stop a mirror at the source, each with the statement that cures it. Reads only.

use tokio_postgres::Client;

use super::{
    Error,
    error::failure,
    publication::{self, creation},
    slot,
};
use crate::{
    api::mirror::Mode,
    brief::Brief,
    name,
    postgres::{Connection, ident, literal},
    report::Failure,
    table::TableSchema,
};

/// What a server says of itself and of the role that is connected.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Server {
    /// As it states it, such as `15.4 (Debian 15.4-1)`.
    pub version: String,
    /// Such as 150004.
    pub version_number: i32,
    /// `wal_level`.
    pub wal_level: String,
    /// Whether it is a standby.
    pub standby: bool,
    /// Whether the role may stream.
    pub replication: bool,
    /// `max_replication_slots`.
    pub max_slots: i32,
    /// Names of all slots.
    pub slots: Vec<String>,
    /// `max_wal_senders`.
    pub max_senders: i32,
    /// Connections that stream.
    pub senders: i64,
    /// Whether the role may create things in the database, a publication among them.
    pub create: bool,
}

/// Asks a server.
pub async fn server(client: &Client) -> Result<Server, Error> {
    let row = client.query_one(SERVER, &[]).await.map_err(Error::query("reading the source's settings"))?;
    Ok(Server {
        version: row.get("version"),
        version_number: row.get("version_number"),
        wal_level: row.get("wal_level"),
        standby: row.get("standby"),
        replication: row.get("replication"),
        max_slots: row.get("max_slots"),
        slots: row.get("slots"),
        max_senders: row.get("max_senders"),
        senders: row.get("senders"),
        create: row.get("may_create"),
    })
}

/// What would stop any mirror at this source. `freed` are slots, and as many connections, that will be dropped before a slot is needed. Pure.
pub fn server_problems(at: &Connection, server: &Server, freed: impl Fn(&str) -> bool) -> Vec<Failure> {
    let peer = &at.peer;
    let mut problems = Vec::new();
    let mut problem = |reason: &str, message: String| problems.push(failure(reason, format!("Peer {peer}: {message}")));
    if server.version_number < 140_000 {
        problem("VersionTooOld", format!("the server is PostgreSQL {}; 14 or newer is needed: upgrade it", server.version));
    }
    if server.standby {
        problem("Standby", "the server is a standby, where no publication can be created: connect to the primary".into());
    }
    if server.wal_level != "logical" {
        problem("WalLevel", format!("wal_level is {}: ALTER SYSTEM SET wal_level = logical, then restart the server", server.wal_level));
    }
    if !server.replication {
        let role = ident(&at.user);
        problem(
            "NoReplicationRight",
            format!("role {role} may not stream: ALTER ROLE {role} REPLICATION (Amazon RDS: GRANT rds_replication TO {role})"),
        );
    }
    let slots = server.slots.iter().filter(|slot| !freed(slot)).count() as i64;
    if slots >= i64::from(server.max_slots) {
        let (max, more) = (server.max_slots, server.max_slots + 2);
        problem(
            "NoFreeSlot",
            format!(
                "all {max} replication slots are taken: drop one that is not needed (SELECT pg_drop_replication_slot('…')), \
             or ALTER SYSTEM SET max_replication_slots = {more}, then restart the server"
            ),
        );
    }
    let freed_senders = server.slots.iter().filter(|slot| freed(slot)).count() as i64;
    if server.senders - freed_senders.min(server.senders) >= i64::from(server.max_senders) {
        let (max, more) = (server.max_senders, server.max_senders + 2);
        problem(
            "NoFreeWalSender",
            format!("all {max} WAL senders are taken: ALTER SYSTEM SET max_wal_senders = {more}, then restart the server"),
        );
    }
    problems
}

/// Everything at the source that would stop this epoch, besides what the catalog tells of each table.
pub async fn check(client: &Client, brief: &Brief, tables: &[TableSchema]) -> Result<Vec<Failure>, Error> {
    let server = server(client).await?;
    let ours = |slot: &str| name::epoch_of_slot(&brief.mirror, &brief.mirror_uid, slot).is_some_and(|epoch| brief.replaces(epoch));
    let mut problems = server_problems(&brief.source, &server, ours);
    problems.extend(slot::problems(client, brief).await?);
    match &brief.publication {
        _ if brief.mode == Mode::SnapshotOnly => {}
        Some(publication) => problems.extend(publication_problems(client, publication, tables).await?),
        None => problems.extend(creation_problems(client, brief, &server, tables).await?),
    }
    Ok(problems)
}

/// Whether the role may create the publication (PostgreSQL docs, "CREATE PUBLICATION": CREATE on the database, and owner of the tables).
async fn creation_problems(client: &Client, brief: &Brief, server: &Server, tables: &[TableSchema]) -> Result<Vec<Failure>, Error> {
    let role = ident(&brief.source.user);
    let mut problems = Vec::new();
    if !server.create {
        let message = format!(
            "role {role} may not create a publication: GRANT CREATE ON DATABASE {} TO {role}, or create one and name it in source.publication",
            ident(&brief.source.database)
        );
        problems.push(failure("SourcePermissionDenied", message));
    }
    let oids: Vec<u32> = tables.iter().map(|t| t.source_oid).collect();
    let query = "SELECT oid FROM pg_class WHERE oid = ANY ($1::oid[]) AND NOT pg_has_role(relowner, 'USAGE')";
    let rows = client.query(query, &[&oids]).await.map_err(Error::query("reading the owners of the tables"))?;
    let foreign: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
    let foreign: Vec<&TableSchema> = tables.iter().filter(|t| foreign.contains(&t.source_oid)).collect();
    if !foreign.is_empty() {
        let names: Vec<String> = foreign.iter().map(|t| t.source.to_string()).collect();
        let message = format!(
            "role {role} does not own {} and so may not publish: as their owner {}, and name it in source.publication; \
             or GRANT the owner's role TO {role}",
            names.join(", "),
            creation("…", tables)
        );
        problems.push(failure("SourcePermissionDenied", message));
    }
    Ok(problems)
}

/// Whether a publication of the user's own brings what a mirror needs.
async fn publication_problems(client: &Client, name: &str, tables: &[TableSchema]) -> Result<Vec<Failure>, Error> {
    let Some(publication) = publication::read(client, name).await? else {
        return Ok(vec![failure("PublicationMissing", format!("the source has no publication {name}: {}", creation(name, tables)))]);
    };
    let partitioned = client.query("SELECT oid FROM pg_class WHERE relkind = 'p'", &[]).await;
    let partitioned: Vec<u32> = partitioned.map_err(Error::query("looking for partitioned tables"))?.iter().map(|row| row.get(0)).collect();
    let of_tables = tables.iter().filter_map(|table| {
        publication.gap_of(&table.source, table.source_oid, partitioned.contains(&table.source_oid), table.copied().map(|c| &c.source))
    });
    let gaps = publication.gap().into_iter().chain(of_tables);
    Ok(gaps.map(|gap| failure("PublicationIncomplete", format!("{}: {}", gap.what, gap.cure))).collect())
}

/// The cluster's system identifier; empty if the role may not ask for it.
pub async fn system_identifier(client: &Client) -> String {
    match client.query_one("SELECT system_identifier::text FROM pg_control_system()", &[]).await {
        Ok(row) => row.get(0),
        Err(_) => String::new(),
    }
}

/// What would stop any mirror at this destination.
pub async fn destination_problems(client: &Client, at: &Connection) -> Result<Vec<Failure>, Error> {
    let server = server(client).await?;
    let mut problems = Vec::new();
    let mut problem = |reason: &str, message: String| problems.push(failure(reason, format!("Peer {}: {message}", at.peer)));
    if server.version_number < 140_000 {
        problem("VersionTooOld", format!("the server is PostgreSQL {}; 14 or newer is needed: upgrade it", server.version));
    }
    if server.standby {
        problem("Standby", "the server is a standby and cannot be written to: connect to the primary".into());
    }
    let query = format!("SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = {}", literal("_mirror_operator"));
    let ledger = client.query_opt(&query, &[]).await.map_err(Error::query("looking for the ledger's schema"))?;
    let role = ident(&at.user);
    match ledger.map(|row| row.get::<_, bool>(0)) {
        Some(true) => {}
        Some(false) => problem(
            "DestinationPermissionDenied",
            format!("role {role} may not write to schema _mirror_operator: GRANT USAGE, CREATE ON SCHEMA _mirror_operator TO {role}"),
        ),
        None if server.create => {}
        None => problem(
            "DestinationPermissionDenied",
            format!("role {role} may not create the schema _mirror_operator: GRANT CREATE ON DATABASE {} TO {role}", ident(&at.database)),
        ),
    }
    let temporary = "SELECT has_database_privilege(current_database(), 'TEMPORARY')";
    let temporary = client.query_one(temporary, &[]).await.map_err(Error::query("looking at rights"))?;
    if !temporary.get::<_, bool>(0) {
        problem(
            "DestinationPermissionDenied",
            format!(
                "role {role} may not make temporary tables, which stage changes: GRANT TEMPORARY ON DATABASE {} TO {role}",
                ident(&at.database)
            ),
        );
    }
    Ok(problems)
}

const SERVER: &str = "
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS version_number,
       current_setting('wal_level') AS wal_level, pg_is_in_recovery() AS standby,
       r.rolsuper OR r.rolreplication
         OR EXISTS (SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(g.oid, 'MEMBER')) AS replication,
       current_setting('max_replication_slots')::int AS max_slots,
       ARRAY(SELECT slot_name::text FROM pg_replication_slots) AS slots,
       current_setting('max_wal_senders')::int AS max_senders, (SELECT count(*) FROM pg_stat_replication) AS senders,
       has_database_privilege(current_database(), 'CREATE') AS may_create
  FROM pg_roles r WHERE r.rolname = current_user";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::peer::TlsMode;

    fn at() -> Connection {
        Connection {
            peer: "shop".into(),
            host: "db".into(),
            port: 5432,
            database: "shop".into(),
            user: "Sync".into(),
            password: None,
            tls: TlsMode::Disable,
            ca: None,
            client_certificate: None,
            connect_timeout_millis: 1,
        }
    }

    fn good() -> Server {
        Server {
            version: "15.4".into(),
            version_number: 150_004,
            wal_level: "logical".into(),
            standby: false,
            replication: true,
            max_slots: 2,
            slots: vec!["other".into()],
            max_senders: 2,
            senders: 1,
            create: true,
        }
    }

    #[test]
    fn each_missing_thing_is_named_with_its_cure() {
        let reasons =
            |server: &Server| server_problems(&at(), server, |slot| slot == "ours").into_iter().map(|f| f.reason).collect::<Vec<_>>();
        assert!(reasons(&good()).is_empty());
        let table = [
            (Server { version_number: 130_011, ..good() }, "VersionTooOld"),
            (Server { wal_level: "replica".into(), ..good() }, "WalLevel"),
            (Server { standby: true, ..good() }, "Standby"),
            (Server { replication: false, ..good() }, "NoReplicationRight"),
            (Server { slots: vec!["a".into(), "b".into()], ..good() }, "NoFreeSlot"),
            (Server { senders: 2, ..good() }, "NoFreeWalSender"),
        ];
        for (server, reason) in table {
            assert_eq!(reasons(&server), [reason]);
        }
        let words = server_problems(&at(), &Server { replication: false, ..good() }, |_| false);
        assert!(words[0].message.contains("ALTER ROLE \"Sync\" REPLICATION"), "{words:?}");
    }

    #[test]
    fn slots_that_will_be_dropped_count_as_free() {
        let server = Server { slots: vec!["ours".into(), "other".into()], senders: 2, ..good() };
        assert!(server_problems(&at(), &server, |slot| slot == "ours").is_empty());
    }
}
