//! Whether a cluster is one that tables can be made in: of one shard, with Keeper, and with the names of its replicas.

use serde::Deserialize;

use super::{
    client::{Client, Peer},
    error::failure,
    ledger::{FACT, MIRROR},
    quote::{ident, literal},
};
use crate::{destination::Error, report::Failure};

#[derive(Deserialize)]
struct Known {
    cluster: String,
    shards: u64,
    servers: u64,
}

#[derive(Deserialize)]
struct Count {
    n: u64,
}

/// What the cluster that the Peer names lacks, each with its cure; nothing if it names none.
pub(super) async fn check(client: &Client, to: &Peer) -> Result<Vec<Failure>, Error> {
    let Some(name) = &to.cluster else { return Ok(vec![]) };
    let doing = "looking at the cluster";
    let sql = "SELECT cluster, uniqExact(shard_num) AS shards, count() AS servers FROM system.clusters GROUP BY cluster ORDER BY cluster";
    let known: Vec<Known> = client.rows(sql, doing).await?;
    let Some(cluster) = known.iter().find(|known| known.cluster == *name) else {
        return Ok(vec![unknown(to, name, &known)]);
    };
    if cluster.shards > 1 {
        let message = format!(
            "Peer {}: cluster {name:?} has {} shards, and each table is whole on each server: name a cluster of one shard, or define one in the servers' \
             remote_servers",
            to.at.peer, cluster.shards
        );
        return Ok(vec![failure("ClusterSharded", message)]);
    }
    let mut found = Vec::new();
    // The table is there once Keeper is configured.
    if client.row::<Count>("SELECT count() AS n FROM system.tables WHERE database = 'system' AND name = 'zookeeper'", doing).await?.n == 0 {
        let message = format!(
            "Peer {}: the destination has no Keeper, through which replicas meet: configure it (`zookeeper`), or take `cluster` away",
            to.at.peer
        );
        found.push(failure("KeeperMissing", message));
    }
    found.extend(macros(client, to, name, cluster.servers).await?);
    found.extend(alone(client, to, name).await?);
    found.extend(rights(client, to).await?);
    Ok(found)
}

fn unknown(to: &Peer, name: &str, known: &[Known]) -> Failure {
    let names: Vec<&str> = known.iter().map(|known| known.cluster.as_str()).collect();
    let knows = if names.is_empty() { "none".into() } else { names.join(", ") };
    let message = format!(
        "Peer {}: the destination does not know cluster {name:?}: correct the Peer's `cluster`, or define it in the servers' remote_servers. It knows {knows}",
        to.at.peer
    );
    failure("ClusterUnknown", message)
}

/// The path of a replicated table is made of the macros.
async fn macros(client: &Client, to: &Peer, name: &str, servers: u64) -> Result<Option<Failure>, Error> {
    #[derive(Deserialize)]
    struct Macros {
        shards: u64,
        replicas: u64,
    }
    let sql = format!(
        "SELECT countIf(macro = 'shard') AS shards, uniqExactIf(substitution, macro = 'replica') AS replicas FROM clusterAllReplicas({}, system.macros)",
        literal(name)
    );
    let found: Macros = client.row(&sql, "looking at the cluster's macros").await?;
    Ok((found.shards < servers || found.replicas < servers).then(|| {
        let message = format!(
            "Peer {}: not each of the {servers} servers of cluster {name:?} has the macros {{shard}}, the same on all, and {{replica}}, another on each. Add to their \
             configuration <macros><shard>1</shard><replica>NAME</replica></macros>",
            to.at.peer
        );
        failure("MacrosMissing", message)
    }))
}

/// A ledger of the time before the Peer named a cluster is on one server only.
async fn alone(client: &Client, to: &Peer, name: &str) -> Result<Option<Failure>, Error> {
    let sql = format!(
        "SELECT count() AS n FROM system.tables WHERE database = {} AND name IN ({}, {}) AND NOT startsWith(engine, 'Replicated')",
        literal(&to.at.database),
        literal(MIRROR),
        literal(FACT)
    );
    Ok((client.row::<Count>(&sql, "looking at the ledger").await?.n > 0).then(|| {
        let message = format!(
            "Peer {}: database {:?} has a ledger that is not replicated: it was made without `cluster`. Let this Peer name another database, which is on all servers of {name:?}",
            to.at.peer, to.at.database
        );
        failure("LedgerNotReplicated", message)
    }))
}

/// What a user needs beside the rights in the database.
async fn rights(client: &Client, to: &Peer) -> Result<Option<Failure>, Error> {
    let database = format!("{}.*", ident(&to.at.database));
    let mut missing = Vec::new();
    for (right, on) in [("CLUSTER", "*.*"), ("REMOTE", "*.*"), ("KILL QUERY", "*.*"), ("SYSTEM SYNC REPLICA", &database)] {
        if !client.is_granted(right, on).await? {
            missing.push(format!("GRANT {right} ON {on} TO {}", ident(&to.at.user)));
        }
    }
    Ok((!missing.is_empty()).then(|| {
        let message = format!(
            "user {:?} lacks rights that a cluster needs. Run on each server of the destination: {}",
            to.at.user,
            missing.join("; ")
        );
        failure("PermissionDenied", message)
    }))
}
