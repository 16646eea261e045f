//! Where this program's own servers listen. I/O.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
};

use tokio::net::TcpListener;

/// Listens at all addresses of the pod: a socket of IPv6 takes connections of IPv4 too. Where the node knows no IPv6, at those of IPv4.
pub async fn everywhere(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn both_families_reach_it_where_there_are_both() {
        let listener = everywhere(0).await.unwrap();
        let address = listener.local_addr().unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).await.unwrap();
        if address.is_ipv6() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).await.unwrap();
        }
    }
}
