//! ClickHouse behind TLS: a proxy with a certificate of its own stands in front of the server, which itself offers none.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use mirror_operator::{
    api::peer::TlsMode,
    brief::{Brief, DestinationPeer},
    destination::clickhouse::Peer,
    postgres::connect::SecretFile,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::{
    fixture::{Fixture, open, table, whole},
    on_clickhouse::OnClickHouse,
};

/// A throw-away authority, and a certificate by it for the name `localhost`.
fn certificates() -> PathBuf {
    let directory = std::env::temp_dir().join(format!("mirror-test-tls-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let script = "key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2'
        openssl req -x509 $key -subj '/CN=test CA' -keyout ca.key -out ca.crt
        openssl req -x509 $key -subj /CN=localhost -keyout server.key -out server.crt -CA ca.crt -CAkey ca.key \\
          -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:localhost";
    let made = Command::new("sh").args(["-ec", script]).current_dir(&directory).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    directory
}

/// Forwards to the server what comes encrypted; returns the port.
async fn proxy(directory: &Path, server: (String, u16)) -> u16 {
    let chain = CertificateDer::pem_file_iter(directory.join("server.crt")).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, server) = (acceptor.clone(), server.clone());
            tokio::spawn(async move {
                // Whoever does not trust the certificate ends here.
                let Ok(mut client) = acceptor.accept(client).await else { return };
                let mut server = TcpStream::connect((server.0.as_str(), server.1)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tls_mode_connects_or_says_why_not() {
    let place = OnClickHouse::new().await;
    let directory = certificates();
    let port = proxy(&directory, (place.to.host.clone(), place.to.port)).await;
    let ca = SecretFile { path: directory.join("ca.crt"), secret: "ca".into(), key: "ca.crt".into() };
    let brief = |mode: TlsMode, host: &str, trusted: bool| -> Brief {
        let mut at = place.to.clone();
        (at.host, at.port, at.tls, at.ca) = (host.into(), port, mode, trusted.then(|| ca.clone()));
        Brief { destination: DestinationPeer::ClickHouse(Peer { at, settings: Default::default(), cluster: None }), ..place.brief(1) }
    };
    let whole_mirror = [(place.adapt(table(0, "t", &["id bigint!", "name text"])), &["1\tone"][..])];
    whole(&*open(&brief(TlsMode::VerifyFull, "localhost", true)).await, &whole_mirror).await;
    assert_eq!(place.read("t", &["id", "name"]).await, ["1|one|f"]);
    for (mode, host, trusted) in [(TlsMode::Require, "127.0.0.1", false), (TlsMode::VerifyCA, "127.0.0.1", true)] {
        assert!(open(&brief(mode, host, trusted)).await.state().await.unwrap().is_some(), "{mode:?}");
    }
    for (mode, host, trusted) in
        [(TlsMode::VerifyFull, "127.0.0.1", true), (TlsMode::VerifyCA, "localhost", false), (TlsMode::VerifyFull, "localhost", false)]
    {
        let refused = open(&brief(mode, host, trusted)).await.state().await.unwrap_err().to_string();
        assert!(refused.contains("certificate"), "{mode:?}: {refused}");
    }
    std::fs::remove_dir_all(directory).unwrap();
}
