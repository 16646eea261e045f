//! A network that fails on demand: forwards connections to a server and cuts one where the test says.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// What becomes of a request of HTTP.
pub type Change = Arc<dyn Fn(Vec<u8>) -> Vec<u8> + Send + Sync>;

/// Where the cut comes: the request with this number is executed by the server, but its reply never arrives. 0: never.
pub struct Proxy {
    pub address: SocketAddr,
    pub seen: Arc<AtomicU32>,
    pub cut_at: u32,
}

impl Proxy {
    /// Listens on a port of its own and forwards to a PostgreSQL server. Requests are counted over all its connections.
    pub async fn new(server: (String, u16), cut_at: u32) -> Self {
        Self::listen(server, cut_at, None).await
    }

    /// The same for a server of HTTP, where each request counts.
    pub async fn http(server: (String, u16), cut_at: u32) -> Self {
        Self::listen(server, cut_at, Some(Arc::new(|request| request))).await
    }

    /// Forwards to a server of HTTP what a function makes of each request.
    pub async fn changing(server: (String, u16), change: Change) -> Self {
        Self::listen(server, 0, Some(change)).await
    }

    async fn listen(server: (String, u16), cut_at: u32, http: Option<Change>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(AtomicU32::new(0));
        let counter = seen.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A server that is away refuses; so does this, by hanging up.
                let Ok(server) = TcpStream::connect((server.0.as_str(), server.1)).await else { continue };
                tokio::spawn(connection(client, server, counter.clone(), cut_at, http.clone()));
            }
        });
        Self { address, seen, cut_at }
    }

    /// Whether the cut has come.
    pub fn has_cut(&self) -> bool {
        self.cut_at > 0 && self.seen.load(Ordering::SeqCst) >= self.cut_at
    }
}

async fn connection(client: TcpStream, server: TcpStream, seen: Arc<AtomicU32>, cut_at: u32, change: Option<Change>) {
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // True once replies are held back.
    let (mute, muted) = watch::channel(false);
    let http = change.is_some();
    let up = match change {
        Some(change) => tokio::spawn(http_requests(from_client, to_server, seen, cut_at, mute, change)),
        None => tokio::spawn(requests(from_client, to_server, seen, cut_at, mute)),
    };
    replies(from_server, to_client, muted, http).await;
    up.abort();
}

/// Forwards requests message by message (PostgreSQL docs, "Message Formats"). Query and Execute count: they are what changes anything.
async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, seen: Arc<AtomicU32>, cut_at: u32, mute: watch::Sender<bool>) {
    let mut started = false;
    loop {
        let mut message = vec![0; if started { 5 } else { 4 }];
        if from.read_exact(&mut message).await.is_err() {
            return;
        }
        let head = message.len();
        let length = u32::from_be_bytes(message[head - 4..].try_into().unwrap()) as usize;
        message.resize(head - 4 + length, 0);
        if from.read_exact(&mut message[head..]).await.is_err() {
            return;
        }
        if started && matches!(message[0], b'Q' | b'E') && seen.fetch_add(1, Ordering::SeqCst) + 1 == cut_at {
            let _ = mute.send(true);
        }
        started = true;
        if to.write_all(&message).await.is_err() {
            return;
        }
    }
}

/// Forwards requests of HTTP, each as a whole. All that are sent here say how long they are.
async fn http_requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    seen: Arc<AtomicU32>,
    cut_at: u32,
    mute: watch::Sender<bool>,
    change: Change,
) {
    let (mut buffer, mut piece) = (Vec::new(), vec![0; 65536]);
    loop {
        let whole = buffer.windows(4).position(|w| w == b"\r\n\r\n").map(|end| {
            let head = String::from_utf8_lossy(&buffer[..end]).to_lowercase();
            assert!(!head.contains("transfer-encoding"), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok()).unwrap_or(0);
            end + 4 + length
        });
        if let Some(length) = whole.filter(|length| buffer.len() >= *length) {
            if seen.fetch_add(1, Ordering::SeqCst) + 1 == cut_at {
                let _ = mute.send(true);
            }
            let request = change(buffer.drain(..length).collect());
            if to.write_all(&request).await.is_err() {
                return;
            }
            continue;
        }
        match from.read(&mut piece).await {
            Ok(length @ 1..) => buffer.extend_from_slice(&piece[..length]),
            _ => return,
        }
    }
}

/// Forwards replies. The first one that is held back shows that the server has done its work: then the connection ends.
async fn replies(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, muted: watch::Receiver<bool>, http: bool) {
    let mut buffer = vec![0; 65536];
    let mut held = Vec::new();
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        if !*muted.borrow() {
            if to.write_all(&buffer[..length]).await.is_err() {
                return;
            }
            continue;
        }
        held.extend_from_slice(&buffer[..length]);
        // Over HTTP nothing is answered before the work is done.
        if http || is_done(&held) {
            return;
        }
    }
}

/// Whether the last message of the reply is ReadyForQuery, or CopyInResponse, after which the server waits for us.
fn is_done(mut reply: &[u8]) -> bool {
    let mut last = 0;
    while let [kind, a, b, c, d, ..] = *reply {
        let Some(rest) = reply.get(1 + u32::from_be_bytes([a, b, c, d]) as usize..) else { return false };
        (last, reply) = (kind, rest);
    }
    reply.is_empty() && matches!(last, b'Z' | b'G')
}
