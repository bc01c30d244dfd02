//! One address for several nodes, as users put in front of them: each connection goes to the next node that answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::stack::Node;

pub struct Balancer {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Balancer {
    pub async fn over(nodes: &[Node]) -> Self {
        Self::to(nodes.iter().map(|node| node.address).collect()).await
    }

    /// Over whatever listens at these addresses.
    pub async fn to(nodes: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let turn = Arc::new(AtomicUsize::new(0));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, nodes.clone(), turn.clone()));
            }
        });
        Self { address, accepting }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(mut client: TcpStream, nodes: Vec<SocketAddr>, turn: Arc<AtomicUsize>) {
    for _ in 0..nodes.len() {
        let at = turn.fetch_add(1, Ordering::Relaxed) % nodes.len();
        if let Ok(mut node) = TcpStream::connect(nodes[at]).await {
            // Its end is the end of both sides, however it comes.
            let _ = copy_bidirectional(&mut client, &mut node).await;
            return;
        }
    }
}
