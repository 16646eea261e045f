//! From a Peer to what a pod needs to connect.

use std::path::PathBuf;

use crate::{
    api::{
        Peer,
        peer::{BigQueryPeer, SecretKeyRef, SnowflakePeer, Tls, TlsMode},
        snowflake::SnowflakeStage,
    },
    brief::DestinationPeer,
    destination::{bigquery, clickhouse, snowflake},
    postgres::{Connection, connect::SecretFile},
};

/// How a pod reaches the PostgreSQL database that the peer is, in the role `side` (`source` or `peer`), which names the folder of its secrets.
/// `None` if it is not one.
pub fn connection(peer: &Peer, side: &str) -> Option<Connection> {
    let postgres = peer.spec.postgres.as_ref()?;
    let at = (postgres.host.as_str(), postgres.port);
    let who = (postgres.database.as_str(), postgres.user.as_str(), postgres.password_secret_ref.as_ref());
    Some(reach(peer, side, at, who, &postgres.tls, &postgres.connect_timeout))
}

/// The same for a peer of whatever kind, in the role `destination` or `peer`. `None` if this version does not know the kind.
pub fn destination(peer: &Peer, side: &str) -> Option<DestinationPeer> {
    if let Some(dataset) = &peer.spec.bigquery {
        return Some(DestinationPeer::BigQuery(self::dataset(peer, side, dataset)));
    }
    if let Some(snowflake) = &peer.spec.snowflake {
        return Some(DestinationPeer::Snowflake(account(peer, side, snowflake)));
    }
    let Some(clickhouse) = &peer.spec.clickhouse else { return connection(peer, side).map(DestinationPeer::Postgres) };
    let at = (clickhouse.host.as_str(), clickhouse.port);
    let who = (clickhouse.database.as_str(), clickhouse.user.as_str(), clickhouse.password_secret_ref.as_ref());
    let at = reach(peer, side, at, who, &clickhouse.tls, &clickhouse.connect_timeout);
    Some(DestinationPeer::ClickHouse(clickhouse::Peer { at, settings: clickhouse.settings.clone(), cluster: clickhouse.cluster.clone() }))
}

fn dataset(peer: &Peer, side: &str, at: &BigQueryPeer) -> bigquery::Peer {
    let host = at.endpoint.split_once("://").map_or(at.endpoint.as_str(), |(_, host)| host);
    let who = (at.dataset.as_str(), "", at.credentials_secret_ref.as_ref());
    let tls = Tls { mode: TlsMode::VerifyFull, ..Tls::default() };
    bigquery::Peer {
        at: reach(peer, side, (host, 443), who, &tls, &at.connect_timeout),
        project: at.project.clone(),
        location: at.location.clone(),
        endpoint: at.endpoint.clone(),
        storage_endpoint: at.storage_endpoint.clone(),
    }
}

fn account(peer: &Peer, side: &str, snowflake: &SnowflakePeer) -> snowflake::Peer {
    let names = snowflake.names;
    let host = snowflake.host.clone().unwrap_or_else(|| snowflake::host(&snowflake.account));
    let secret = snowflake.private_key_secret_ref.as_ref().or(snowflake.password_secret_ref.as_ref());
    let who = (names.stored(&snowflake.database), names.stored(&snowflake.user));
    let at = reach(peer, side, (&host, snowflake.port), (&who.0, &who.1, secret), &snowflake.tls, &snowflake.connect_timeout);
    let stored = |name: &String| names.stored(name);
    snowflake::Peer {
        at,
        account: snowflake.account.clone(),
        schema: stored(&snowflake.schema),
        warehouse: snowflake.warehouse.as_ref().map(stored),
        role: snowflake.role.as_ref().map(stored),
        key_pair: snowflake.private_key_secret_ref.is_some(),
        names,
        stage: snowflake.stage.as_ref().map(|stage| Box::new(external(side, snowflake, stage))),
        patience_millis: snowflake::PATIENCE_MILLIS,
    }
}

fn external(side: &str, snowflake: &SnowflakePeer, stage: &SnowflakeStage) -> snowflake::ExternalStage {
    let stored = |given: &Option<String>, otherwise: &String| snowflake.names.stored(given.as_ref().unwrap_or(otherwise));
    snowflake::ExternalStage {
        database: stored(&stage.database, &snowflake.database),
        schema: stored(&stage.schema, &snowflake.schema),
        name: snowflake.names.stored(&stage.name),
        url: stage.url.clone(),
        region: stage.region.clone(),
        endpoint: stage.endpoint.clone(),
        credentials: stage.credentials_secret_ref.as_ref().map(|r| mounted(side, "stage", &r.name, &r.key)),
    }
}

/// Where a pod finds a Secret's key.
fn mounted(side: &str, what: &str, secret: &str, key: &str) -> SecretFile {
    SecretFile { path: PathBuf::from(format!("/etc/mirror-operator/{side}/{what}/value")), secret: secret.into(), key: key.into() }
}

fn reach(
    peer: &Peer,
    side: &str,
    (host, port): (&str, u16),
    (database, user, password): (&str, &str, Option<&SecretKeyRef>),
    tls: &Tls,
    timeout: &crate::api::quantity::Span,
) -> Connection {
    let file = |what: &str, secret: &str, key: &str| mounted(side, what, secret, key);
    let by_ref = |what: &str, reference: &SecretKeyRef| file(what, &reference.name, &reference.key);
    let certificate = tls.client_certificate_secret_ref.as_ref();
    Connection {
        peer: peer.metadata.name.clone().unwrap_or_default(),
        host: host.into(),
        port,
        database: database.into(),
        user: user.into(),
        password: password.map(|r| by_ref("password", r)),
        tls: tls.mode,
        ca: tls.ca_secret_ref.as_ref().map(|r| by_ref("ca", r)),
        client_certificate: certificate.map(|r| (file("certificate", &r.name, "tls.crt"), file("key", &r.name, "tls.key"))),
        connect_timeout_millis: u64::try_from(timeout.get().as_millis()).unwrap_or(u64::MAX),
    }
}
