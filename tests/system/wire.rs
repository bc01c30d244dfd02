//! A wire to a server that can be cut so that neither side is told, and led to another server.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub struct Wire {
    address: SocketAddr,
    whole: watch::Sender<bool>,
    server: watch::Sender<SocketAddr>,
    accepting: JoinHandle<()>,
}

impl Wire {
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (whole, state) = watch::channel(true);
        let (server, target) = watch::channel(server);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = *target.borrow();
                tokio::spawn(connect(client, server, state.clone()));
            }
        });
        Self {
            address,
            whole,
            server,
            accepting,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections go to this server.
    pub fn lead_to(&self, server: SocketAddr) {
        self.server.send_replace(server);
    }

    /// From now on nothing comes through; nobody hears of it.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// All that was held up goes on.
    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn connect(client: TcpStream, node: SocketAddr, state: watch::Receiver<bool>) {
    if let Ok(node) = TcpStream::connect(node).await {
        let (from_client, to_client) = client.into_split();
        let (from_node, to_node) = node.into_split();
        tokio::join!(
            pass(from_client, to_node, state.clone()),
            pass(from_node, to_client, state)
        );
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if state.wait_for(|whole| *whole).await.is_err()
            || to.write_all(&bytes[..count]).await.is_err()
        {
            break;
        }
    }
    let _ = to.shutdown().await;
}
