//! A network that fails on demand between a client and a server of gRPC: HTTP/2 frame by frame (RFC 9113, "HTTP Frames").

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const PREFACE: usize = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// Forwards connections to a server. Calls are counted together with the requests of another proxy; the one with the number `cut_at` is executed, but its reply
/// never arrives: its connection ends.
pub async fn proxy(server: (String, u16), seen: Arc<AtomicU32>, cut_at: u32) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect((server.0.as_str(), server.1)).await else { continue };
            tokio::spawn(connection(client, server, seen.clone(), cut_at));
        }
    });
    address
}

async fn connection(client: TcpStream, server: TcpStream, seen: Arc<AtomicU32>, cut_at: u32) {
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.into_split(), server.into_split());
    // The stream whose reply is held back; streams of calls have odd numbers.
    let muted = Arc::new(AtomicU32::new(0));
    let muting = muted.clone();
    let up = tokio::spawn(async move {
        let mut preface = [0; PREFACE];
        if from_client.read_exact(&mut preface).await.is_err() || to_server.write_all(&preface).await.is_err() {
            return;
        }
        while let Some((kind, _, stream, frame)) = read(&mut from_client).await {
            if kind == HEADERS && seen.fetch_add(1, Ordering::SeqCst) + 1 == cut_at {
                muting.store(stream, Ordering::SeqCst);
            }
            if to_server.write_all(&frame).await.is_err() {
                return;
            }
        }
    });
    while let Some((kind, flags, stream, frame)) = read(&mut from_server).await {
        if stream != 0 && stream == muted.load(Ordering::SeqCst) {
            // The first message, or the end without one, shows that the server has done its work.
            if kind == DATA || kind == HEADERS && flags & END_STREAM != 0 {
                break;
            }
            continue;
        }
        if to_client.write_all(&frame).await.is_err() {
            break;
        }
    }
    up.abort();
}

/// A frame: its type, flags, stream, and all its bytes.
async fn read(from: &mut tokio::net::tcp::OwnedReadHalf) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut frame = vec![0; 9];
    from.read_exact(&mut frame).await.ok()?;
    let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
    frame.resize(9 + length, 0);
    from.read_exact(&mut frame[9..]).await.ok()?;
    let stream = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]) & 0x7fff_ffff;
    Some((frame[3], frame[4], stream, frame))
}
