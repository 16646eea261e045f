//! What the test suites share: where the servers are.

#![allow(dead_code, reason = "each suite uses its part")]

use std::sync::atomic::{AtomicU32, Ordering};

use mirror_operator::{
    api::peer::TlsMode,
    postgres::{Connection, connect::SecretFile},
};

/// The server that a variable names, as `postgres://user:password@host:port/database`.
pub fn server(variable: &str) -> Connection {
    let url = std::env::var(variable)
        .unwrap_or_else(|_| panic!("set {variable} to postgres://user:password@host:port/database; `make test` does"));
    parse(&url).unwrap_or_else(|| panic!("{variable} is not of the form postgres://user:password@host:port/database"))
}

fn parse(url: &str) -> Option<Connection> {
    let (login, place) = url.strip_prefix("postgres://")?.rsplit_once('@')?;
    let (address, database) = place.split_once('/')?;
    let (host, port) = address.rsplit_once(':')?;
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    Some(Connection {
        peer: "test".into(),
        host: host.into(),
        port: port.parse().ok()?,
        database: database.into(),
        user: user.into(),
        password: (!password.is_empty()).then(|| secret(password)),
        tls: TlsMode::Disable,
        ca: None,
        client_certificate: None,
        connect_timeout_millis: 10_000,
    })
}

/// A secret as the kubelet would mount it.
pub fn secret(text: &str) -> SecretFile {
    let path = std::env::temp_dir().join(format!("mirror-operator-test-{}-{}", std::process::id(), unique()));
    std::fs::write(&path, text).unwrap();
    SecretFile { path, secret: "test".into(), key: "password".into() }
}

/// A number that no other caller in this process has.
pub fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
