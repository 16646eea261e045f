//! A way to a server that can be closed: what lies behind it is away, or does not answer, for one test alone.

use std::net::SocketAddr;

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::world::{address, only_on_the_testbed};

/// Where pods reach what listens on the cluster's node.
pub const NODE: &str = "10.87.0.1";

/// How the gate stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stand {
    /// Connections go through.
    Open,
    /// Connections are taken, and nothing is said.
    Silent,
    /// Connections are refused as they come, and those that were through are cut.
    Closed,
}

/// A gate before one side's server.
pub struct Gate {
    pub host: String,
    pub port: u16,
    stand: watch::Sender<Stand>,
    task: JoinHandle<()>,
}

impl Gate {
    /// Opens a gate.
    pub async fn open(side: &'static str) -> Self {
        only_on_the_testbed("it has pods come to this process");
        let listener = TcpListener::bind((NODE, 0)).await.expect("tests run on the cluster's node");
        let SocketAddr::V4(own) = listener.local_addr().expect("an address") else { panic!("not IPv4") };
        let (stand, stands) = watch::channel(Stand::Open);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, side, stands.clone()));
            }
        });
        Self { host: NODE.into(), port: own.port(), stand, task }
    }

    /// From now on it stands so; what was through is cut unless it is open.
    pub fn set(&self, stand: Stand) {
        self.stand.send_replace(stand);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut client: TcpStream, side: &str, mut stands: watch::Receiver<Stand>) {
    let stand = *stands.borrow_and_update();
    let through = async {
        match stand {
            Stand::Closed => {}
            Stand::Silent => std::future::pending().await,
            Stand::Open => {
                let (host, port) = address(side);
                let Ok(mut server) = TcpStream::connect((host.as_str(), port)).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        }
    };
    tokio::select! {
        () = through => {}
        _ = stands.changed() => {}
    }
}
