//! Opening connections. I/O.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
};
use serde::{Deserialize, Serialize};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::api::peer::TlsMode;

/// How to reach a PostgreSQL database from a pod. Secrets are files that the kubelet keeps fresh; they are read at every connect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Name of the Peer, for messages.
    pub peer: String,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Name of the database.
    pub database: String,
    /// Name of the role.
    pub user: String,
    /// File with the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretFile>,
    /// Encryption.
    pub tls: TlsMode,
    /// File with the CA's certificate, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<SecretFile>,
    /// Files with the client's certificate and key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<(SecretFile, SecretFile)>,
    /// Milliseconds to wait for a connection.
    pub connect_timeout_millis: u64,
}

impl Connection {
    /// The files that a pod reads to connect.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretFile> {
        let pair = self.client_certificate.iter().flat_map(|(certificate, key)| [certificate, key]);
        self.password.iter().chain(&self.ca).chain(pair)
    }
}

/// A key of a Secret as it is mounted in the pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SecretFile {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Name of the Secret, for messages.
    pub secret: String,
    /// Key in the Secret, for messages.
    pub key: String,
}

/// Why no connection could be made. The text names the cure; it never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The Secret or its key is not there.
    #[error("Peer {peer}: Secret {secret:?} or its key {key:?} does not exist; create it")]
    SecretMissing {
        /// Name of the Peer.
        peer: String,
        /// Name of the Secret.
        secret: String,
        /// Key in the Secret.
        key: String,
    },
    /// A certificate or key cannot be used.
    #[error("Peer {peer}: the certificate or key in Secret {secret:?} cannot be used: {cause}")]
    BadCertificate {
        /// Name of the Peer.
        peer: String,
        /// Name of the Secret.
        secret: String,
        /// What is wrong.
        cause: String,
    },
    /// The server did not answer in time.
    #[error("Peer {peer}: {host}:{port} did not answer within {seconds} s; check host, port, firewalls and network policies")]
    Timeout {
        /// Name of the Peer.
        peer: String,
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// Seconds waited.
        seconds: u64,
    },
    /// The server refused, or could not be reached.
    #[error("Peer {peer}: cannot connect to {host}:{port}: {cause}")]
    Refused {
        /// Name of the Peer.
        peer: String,
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// The server's or the system's words.
        cause: String,
        /// The error, for its SQLSTATE.
        #[source]
        source: tokio_postgres::Error,
    },
}

/// Connects. The connection ends when the client is dropped.
///
/// `application_name` is cut to 63 bytes by the server. Session settings that every use wants are set here: no statement or idle timeouts (roles may
/// have them), UTC, ISO dates and `extra_float_digits` for texts that read back exactly, and an empty `search_path`.
pub async fn connect(to: &Connection, application_name: &str) -> Result<tokio_postgres::Client, ConnectError> {
    connect_watched(to, application_name).await.map(|(client, _)| client)
}

/// Connects as [`connect`] does, and also returns the task that ends when the connection does, whoever ends it.
pub async fn connect_watched(
    to: &Connection,
    application_name: &str,
) -> Result<(tokio_postgres::Client, tokio::task::JoinHandle<()>), ConnectError> {
    let mut config = tokio_postgres::Config::new();
    config.host(&to.host).port(to.port).dbname(&to.database).user(&to.user).application_name(application_name);
    config.options(SESSION_OPTIONS);
    config.keepalives_idle(Duration::from_secs(30)).keepalives_interval(Duration::from_secs(10)).keepalives_retries(3);
    if let Some(file) = &to.password {
        config.password(read_secret(to, file)?);
    }
    config.ssl_mode(match to.tls {
        TlsMode::Disable => SslMode::Disable,
        TlsMode::Prefer => SslMode::Prefer,
        TlsMode::Require | TlsMode::VerifyCA | TlsMode::VerifyFull => SslMode::Require,
    });
    let tls = MakeRustlsConnect::new(tls_config(to)?);
    let limit = Duration::from_millis(to.connect_timeout_millis);
    let refused = |source: tokio_postgres::Error| ConnectError::Refused {
        peer: to.peer.clone(),
        host: to.host.clone(),
        port: to.port,
        cause: words(&source),
        source,
    };
    let (client, driver) = match tokio::time::timeout(limit, config.connect(tls)).await {
        Ok(Ok(pair)) => pair,
        Ok(Err(source)) => return Err(refused(source)),
        Err(_) => {
            return Err(ConnectError::Timeout { peer: to.peer.clone(), host: to.host.clone(), port: to.port, seconds: limit.as_secs() });
        }
    };
    let end = tokio::spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!(error = %words(&error), "connection ended");
        }
    });
    client.simple_query(NO_LATER_TIMEOUTS).await.map_err(refused)?;
    Ok((client, end))
}

/// Settings since versions 14 and 17; an older server would refuse them at startup, before it can be told to be too old.
pub const NO_LATER_TIMEOUTS: &str = "SELECT pg_catalog.set_config(name, '0', false) FROM (VALUES ('idle_session_timeout'), ('transaction_timeout')) s (name) \
     WHERE pg_catalog.current_setting(name, true) <> '0'";

/// Settings of every session, given at startup so that they cost no round trip. Row security must fail rather than hide rows.
pub const SESSION_OPTIONS: &str = "-c statement_timeout=0 -c synchronous_commit=on -c idle_in_transaction_session_timeout=0 \
     -c lock_timeout=0 -c row_security=off -c timezone=UTC -c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 -c bytea_output=hex -c search_path=";

/// The message of class 22 (data exceptions) quotes the value.
pub const VALUE_REFUSED: &str = "a value cannot be processed";

/// A database error in one line: message, detail-free (a detail may hold a row's values), with its SQLSTATE and hint. Where the message itself quotes a
/// value, only the SQLSTATE is told.
pub fn words(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    match error.as_db_error() {
        Some(db) if db.code().code().starts_with("22") => format!("{VALUE_REFUSED} (SQLSTATE {})", db.code().code()),
        Some(db) => match db.hint() {
            Some(hint) => format!("{} (SQLSTATE {}). {hint}", db.message(), db.code().code()),
            None => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
        },
        None => match error.source() {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}

/// The column that a COPY was at, by the first line of an error's context: `COPY t, line 7, column c: "value"`. Only what stands before the value is ever
/// looked at, so a value that looks like such a line tells nothing.
pub fn copied_column(context: &str) -> Option<&str> {
    let (_, rest) = context.lines().next()?.strip_prefix("COPY ")?.split_once(", line ")?;
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix(", column ")?;
    rest.split_once(": ").map(|(name, _)| name)
}

/// Reads a mounted secret; a trailing newline, which editors add, is not part of it.
pub fn read_secret(to: &Connection, file: &SecretFile) -> Result<String, ConnectError> {
    let text = fs::read_to_string(&file.path).map_err(|_| ConnectError::SecretMissing {
        peer: to.peer.clone(),
        secret: file.secret.clone(),
        key: file.key.clone(),
    })?;
    Ok(text.trim_end_matches(['\n', '\r']).to_string())
}

/// The TLS settings of a connection, with the meanings of libpq's `sslmode`.
pub fn tls_config(to: &Connection) -> Result<ClientConfig, ConnectError> {
    let bad = |secret: &str, cause: String| ConnectError::BadCertificate { peer: to.peer.clone(), secret: secret.into(), cause };
    let mut roots = RootCertStore::empty();
    match &to.ca {
        Some(file) => {
            let pem = read_secret(to, file)?;
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|e| bad(&file.secret, not_pem(&e)))?;
                roots.add(certificate).map_err(|e| bad(&file.secret, e.to_string()))?;
            }
            if roots.is_empty() {
                return Err(bad(&file.secret, "it holds no certificate in PEM form".into()));
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("", e.to_string()))?
        .with_root_certificates(roots.clone());
    let mut config = match &to.client_certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(read_secret(to, certificate)?.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| bad(&certificate.secret, not_pem(&e)))?;
            let key_pem = read_secret(to, key)?;
            let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| bad(&key.secret, not_pem(&e)))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| bad(&certificate.secret, e.to_string()))?
        }
    };
    let trust = match to.tls {
        TlsMode::VerifyFull => return Ok(config),
        TlsMode::VerifyCA => {
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|e| bad("", e.to_string()))?;
            Trust { chain: Some(inner), provider }
        }
        TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => Trust { chain: None, provider },
    };
    config.dangerous().set_certificate_verifier(Arc::new(trust));
    Ok(config)
}

/// What is wrong with a PEM file. The library's own words quote it, and it may be a key.
fn not_pem(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a PEM section has no END line of its own",
        pem::Error::IllegalSectionStart { .. } => "a PEM section's BEGIN line is not complete",
        pem::Error::Base64Decode(_) => "a PEM section is not valid base64",
        pem::Error::NoItemsFound => "it holds nothing in PEM form of the kind that is needed",
        _ => "it cannot be read as PEM",
    }
    .into()
}

/// Verifies less than rustls does by itself: the chain but not the name (VerifyCA), or nothing (Prefer, Require), as libpq defines these modes.
#[derive(Debug)]
struct Trust {
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_key_is_told_without_quoting_it() {
        let folder = std::env::temp_dir().join(format!("mirror-unit-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (number, text) in [
            "-----BEGIN PRIVATE KEY----- MC4CAQAwBQYDK2VwBCIEIA== -----END PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==",
            "-----BEGIN CERTIFICATE-----\nMC4C!QAwBQYDK2VwBCIEIA==\n-----END CERTIFICATE-----",
            "-----BEGIN MC4CAQAwBQYDK2VwBCIEIA==",
            "MC4CAQAwBQYDK2VwBCIEIA==",
        ]
        .iter()
        .enumerate()
        {
            let path = folder.join(number.to_string());
            fs::write(&path, text).unwrap();
            let ca = SecretFile { path, secret: "authority".into(), key: "ca.crt".into() };
            let to = Connection {
                peer: "shop".into(),
                host: "h".into(),
                port: 1,
                database: "d".into(),
                user: "u".into(),
                password: None,
                tls: TlsMode::VerifyFull,
                ca: Some(ca),
                client_certificate: None,
                connect_timeout_millis: 1,
            };
            let words = tls_config(&to).map(drop).unwrap_err().to_string();
            assert!(words.contains("authority"), "{words}");
            assert!(!words.contains("MC4C") && !words.contains("77, 67, 52, 67"), "{text}: {words}");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_copys_column_is_told_and_never_its_value() {
        assert_eq!(copied_column("COPY t, line 7, column c1: \"secret\"\nmore"), Some("c1"));
        assert_eq!(copied_column("COPY t, line 7, column c1: null input"), Some("c1"));
        assert_eq!(copied_column("COPY t, line 7, column c1: \"x, column secret: \""), Some("c1"));
        for none in [
            "COPY t, line 7: \"1, column secret: 2\"",
            "COPY t, line 7: \"x, line 8, column secret: 2\"",
            "SQL function \"f\" with ', line 1, column secret: '",
            "COPY t, line 7",
            "",
        ] {
            assert_eq!(copied_column(none), None, "{none}");
        }
    }
}
