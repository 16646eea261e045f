//! What the Peer's user may do. Each right that is missing is told with the statement that grants it; docs/clickhouse.md has them all.

use super::{
    client::{Client, Peer},
    error::{ACCESS_DENIED, UNKNOWN_TABLE, failure, meaning},
    quote::ident,
};
use crate::{destination::Error, report::Failure};

/// In each database that is written to.
const NEEDED: [&str; 5] = ["SELECT", "INSERT", "CREATE TABLE", "DROP TABLE", "ALTER"];

/// What is read of `system` beside the lists of databases, tables and columns, in which everybody sees what is his. Not every server asks for the right.
const READ: [&str; 6] = ["processes", "merge_tree_settings", "row_policies", "data_skipping_indices", "projections", "constraints"];

/// Whether the user may read what the server tells, and make the ledger.
pub(super) async fn server(client: &Client, to: &Peer) -> Result<Option<Failure>, Error> {
    let user = ident(&to.at.user);
    let mut missing = Vec::new();
    for table in READ {
        match client.try_run(&format!("SELECT count() FROM system.{table}"), &[]).await {
            Ok(()) => {}
            // Older servers do not have them all.
            Err(refusal) if refusal.code == UNKNOWN_TABLE => {}
            Err(refusal) if refusal.code == ACCESS_DENIED => {
                missing.push(format!("GRANT SELECT ON system.{table} TO {user}"));
                // Servers that do not ask for that right ask for this one (ClickHouse source, `StorageSystemRowPolicies`).
                missing.extend((table == "row_policies").then(|| format!("GRANT SHOW ROW POLICIES ON *.* TO {user}")));
            }
            Err(refusal) => return Err(meaning(&refusal, "looking at rights")),
        }
    }
    let engine = if to.cluster.is_some() { "ReplicatedReplacingMergeTree" } else { "ReplacingMergeTree" };
    // Granted to everybody where the server does not ask for it.
    if !client.is_granted("TABLE ENGINE", engine).await? {
        missing.push(format!("GRANT TABLE ENGINE ON {engine} TO {user}"));
    }
    Ok((!missing.is_empty()).then(|| {
        let message = format!("user {:?} lacks rights on the server. Run at the destination: {}", to.at.user, missing.join("; "));
        failure("PermissionDenied", message)
    }))
}

/// Whether the user may do what is done in a database.
pub(super) async fn database(client: &Client, to: &Peer, database: &str) -> Result<Option<Failure>, Error> {
    let on = format!("{}.*", ident(database));
    let mut missing = Vec::new();
    for right in NEEDED {
        if !client.is_granted(right, &on).await? {
            missing.push(right);
        }
    }
    Ok((!missing.is_empty()).then(|| {
        let (user, what) = (&to.at.user, missing.join(", "));
        let message =
            format!("user {user:?} lacks rights in database {database:?}. Run at the destination: GRANT {what} ON {on} TO {}", ident(user));
        failure("PermissionDenied", message)
    }))
}
