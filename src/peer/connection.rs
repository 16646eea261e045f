//! From a Peer to what a pod needs to connect.

use std::path::PathBuf;

use crate::{
    api::{Peer, peer::SecretKeyRef},
    postgres::{Connection, connect::SecretFile},
};

/// How a pod reaches the peer in the role `side` (`source`, `destination` or `peer`), which names the folder of its secrets.
/// `None` if the Peer is of a kind that this version does not know.
pub fn connection(peer: &Peer, side: &str) -> Option<Connection> {
    let postgres = peer.spec.postgres.as_ref()?;
    let file = |what: &str, secret: &str, key: &str| SecretFile {
        path: PathBuf::from(format!("/etc/mirror-operator/{side}/{what}/value")),
        secret: secret.into(),
        key: key.into(),
    };
    let by_ref = |what: &str, reference: &SecretKeyRef| file(what, &reference.name, &reference.key);
    Some(Connection {
        peer: peer.metadata.name.clone().unwrap_or_default(),
        host: postgres.host.clone(),
        port: postgres.port,
        database: postgres.database.clone(),
        user: postgres.user.clone(),
        password: postgres.password_secret_ref.as_ref().map(|r| by_ref("password", r)),
        tls: postgres.tls.mode,
        ca: postgres.tls.ca_secret_ref.as_ref().map(|r| by_ref("ca", r)),
        client_certificate: postgres
            .tls
            .client_certificate_secret_ref
            .as_ref()
            .map(|r| (file("certificate", &r.name, "tls.crt"), file("key", &r.name, "tls.key"))),
        connect_timeout_millis: u64::try_from(postgres.connect_timeout.get().as_millis()).unwrap_or(u64::MAX),
    })
}
