//! The socket below a connection, encrypted as the Peer wants it.

use std::{io, sync::Arc, time::Duration};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha256, Sha384, Sha512};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use super::WireError;
use crate::{
    api::peer::TlsMode,
    postgres::{Connection, connect::tls_config},
};

pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Hash of the server's certificate, if the connection is encrypted and the hash is defined.
pub(super) type Binding = Option<Vec<u8>>;

/// Opens the socket; with TLS if mode and server agree on it.
pub(super) async fn transport(to: &Connection) -> Result<(Box<dyn Transport>, Binding), WireError> {
    let failed = |error: io::Error| WireError::Io { peer: to.peer.clone(), host: to.host.clone(), port: to.port, cause: error.to_string() };
    let mut socket = TcpStream::connect((to.host.as_str(), to.port)).await.map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10)).with_retries(3);
    SockRef::from(&socket).set_tcp_keepalive(&keepalive).map_err(failed)?;
    if to.tls == TlsMode::Disable {
        return Ok((Box::new(socket), None));
    }
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(failed)?;
    // One byte and no more: what else came in the clear must not be taken for part of the encrypted stream.
    match socket.read_u8().await.map_err(failed)? {
        b'S' => {}
        b'N' if to.tls == TlsMode::Prefer => return Ok((Box::new(socket), None)),
        _ => return Err(failed(io::Error::other("the server does not offer TLS but the Peer requires it; set ssl = on there"))),
    }
    let name = ServerName::try_from(to.host.clone()).map_err(|e| failed(io::Error::other(e)))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls_config(to)?));
    let stream = connector.connect(name, socket).await.map_err(failed)?;
    let binding = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(|c| certificate_hash(c));
    Ok((Box::new(stream), binding))
}

/// RFC 5929, tls-server-end-point: the certificate hashed as its signature hashes, with SHA-256 in place of anything older.
fn certificate_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA_SHA2: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
    let oid = signature_algorithm(certificate)?;
    let (family, last) = oid.split_at(oid.len().checked_sub(1)?);
    match (family, last.first()?) {
        (RSA, 5 | 11) | (ECDSA_SHA2, 2) => Some(Sha256::digest(certificate).to_vec()),
        (RSA, 12) | (ECDSA_SHA2, 3) => Some(Sha384::digest(certificate).to_vec()),
        (RSA, 13) | (ECDSA_SHA2, 4) => Some(Sha512::digest(certificate).to_vec()),
        // RSA-PSS, Ed25519 and others: no hash is defined, and the connection goes without binding.
        _ => None,
    }
}

/// The object identifier in `Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OID … }, … }` (RFC 5280, 4.1).
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (0x30, fields, _) = der(certificate)? else { return None };
    let (0x30, _, rest) = der(fields)? else { return None };
    let (0x30, algorithm, _) = der(rest)? else { return None };
    let (0x06, oid, _) = der(algorithm)? else { return None };
    Some(oid)
}

/// Tag, content and what follows of the first DER element.
fn der(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match *first {
        short @ 0..=0x7f => (usize::from(short), rest),
        long @ 0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            (digits.iter().fold(0, |n, d| n << 8 | usize::from(*d)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_signature_algorithm_is_found() {
        // SEQUENCE { SEQUENCE {}, SEQUENCE { OID 1.2.840.10045.4.3.2 } }
        let certificate = [0x30, 14, 0x30, 0, 0x30, 10, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
        assert_eq!(certificate_hash(&certificate), Some(Sha256::digest(certificate).to_vec()));
    }

    proptest! {
        #[test]
        fn no_certificate_makes_the_reader_panic(bytes: Vec<u8>) {
            let _ = certificate_hash(&bytes);
        }
    }
}
