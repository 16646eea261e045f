//! The body of a Peer's check Job.

use crate::{
    api::peer::Role,
    brief::DestinationPeer,
    destination::{bigquery, clickhouse, snowflake},
    postgres::{Connection, connect},
    report::PeerReport,
    source::{Error, error::connect_failure, preflight},
};

/// Connects to a peer and says what is missing for its roles, each with the statement that cures it.
pub async fn run(peer: &DestinationPeer, roles: &[Role]) -> PeerReport {
    match peer {
        DestinationPeer::ClickHouse(peer) => clickhouse::check(peer).await,
        DestinationPeer::BigQuery(peer) => bigquery::check(peer).await,
        DestinationPeer::Snowflake(peer) => snowflake::check(peer).await,
        DestinationPeer::Postgres(peer) => {
            let mut report = PeerReport::default();
            if let Err(error) = look(peer, roles, &mut report).await {
                report.problems.push(error.failure());
            }
            report
        }
    }
}

async fn look(peer: &Connection, roles: &[Role], report: &mut PeerReport) -> Result<(), Error> {
    let client = match connect::connect(peer, "mo check").await {
        Ok(client) => client,
        Err(error) => {
            report.problems.push(connect_failure(&error));
            return Ok(());
        }
    };
    let server = preflight::server(&client).await?;
    report.server_version = server.version.clone();
    report.system_identifier = preflight::system_identifier(&client).await;
    if roles.contains(&Role::Source) {
        report.problems.extend(preflight::server_problems(peer, &server, |_| false));
    }
    if roles.contains(&Role::Destination) {
        for problem in preflight::destination_problems(&client, peer).await? {
            if !report.problems.contains(&problem) {
                report.problems.push(problem);
            }
        }
    }
    Ok(())
}
