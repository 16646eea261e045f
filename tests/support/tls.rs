//! A server of TLS before one that offers none: a proxy with a certificate of its own.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A throw-away authority (`ca.crt`) and a certificate by it (`server.crt`, `server.key`) for a name such as `DNS:localhost`, in a new directory.
pub fn certificates(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("mirror-test-tls-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let script = "key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2'
        openssl req -x509 $key -subj '/CN=test CA' -keyout ca.key -out ca.crt
        openssl req -x509 $key -subj /CN=server -keyout server.key -out server.crt -CA ca.crt -CAkey ca.key \\
          -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=$1";
    let made = Command::new("sh").args(["-ec", script, "sh", name]).current_dir(&directory).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    directory
}

/// Forwards to the server what comes encrypted; listens at this address, on the port that is returned.
pub async fn proxy(directory: &Path, address: &str, server: (String, u16)) -> u16 {
    let chain = CertificateDer::pem_file_iter(directory.join("server.crt")).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap()));
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, server) = (acceptor.clone(), server.clone());
            tokio::spawn(async move {
                // Whoever does not trust the certificate ends here.
                let Ok(mut client) = acceptor.accept(client).await else { return };
                let Ok(mut server) = TcpStream::connect((server.0.as_str(), server.1)).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}
