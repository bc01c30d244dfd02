//! A TCP relay between one party and the nodes, whose connections can be cut, stalled and slowed.
//!
//! Ours, since what the registries have for this drives a proxy server that must be installed apart.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flow {
    Free,
    /// Nothing, in either direction; no connection ends.
    Stalled,
    /// Nothing comes from the nodes; what is said to them arrives.
    Deaf,
    /// What comes from the nodes is read a few bytes at a time, as by a slow reader.
    Slow,
}

#[derive(Clone, Copy)]
struct Mode {
    flow: Flow,
    /// Connections of an earlier count end.
    cuts: u64,
}

/// A few bytes so often: some 10 KB a second.
const SIP: usize = 512;
const SIP_EVERY: Duration = Duration::from_millis(50);

/// One party's way to the nodes: each connection goes to the next one that answers.
pub struct Relay {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    accepting: JoinHandle<()>,
}

impl Relay {
    pub async fn to(nodes: Vec<SocketAddr>, first: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, watched) = watch::channel(Mode {
            flow: Flow::Free,
            cuts: 0,
        });
        let turn = Arc::new(AtomicUsize::new(first));
        let accepting = tokio::spawn(async move {
            while let Ok((party, _)) = listener.accept().await {
                tokio::spawn(pass(party, nodes.clone(), turn.clone(), watched.clone()));
            }
        });
        Self {
            address,
            mode,
            accepting,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn cut(&self) {
        self.mode.send_modify(|mode| mode.cuts += 1);
    }

    pub fn flow(&self, flow: Flow) {
        self.mode.send_modify(|mode| mode.flow = flow);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(
    mut party: TcpStream,
    nodes: Vec<SocketAddr>,
    turn: Arc<AtomicUsize>,
    mut mode: watch::Receiver<Mode>,
) {
    let cuts = mode.borrow_and_update().cuts;
    for _ in 0..nodes.len() {
        let at = turn.fetch_add(1, Ordering::Relaxed) % nodes.len();
        let Ok(mut node) = TcpStream::connect(nodes[at]).await else {
            continue;
        };
        let (from_party, to_party) = party.split();
        let (from_node, to_node) = node.split();
        // The end of either side is the end of both, however it comes.
        tokio::select! {
            () = pump(from_party, to_node, mode.clone(), false) => {}
            () = pump(from_node, to_party, mode.clone(), true) => {}
            _ = mode.wait_for(|mode| mode.cuts != cuts) => {}
        }
        return;
    }
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut mode: watch::Receiver<Mode>,
    from_node: bool,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let slow = |flow| flow == Flow::Slow && from_node;
        let Some(flow) = opened(&mut mode, from_node).await else {
            return;
        };
        let room = if slow(flow) { SIP } else { buffer.len() };
        let Ok(read @ 1..) = from.read(&mut buffer[..room]).await else {
            return;
        };
        // What was read before a stall waits for its end, too.
        let Some(flow) = opened(&mut mode, from_node).await else {
            return;
        };
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        if slow(flow) {
            tokio::time::sleep(SIP_EVERY).await;
        }
    }
}

/// Waits until something may pass. `None`: the relay is gone.
async fn opened(mode: &mut watch::Receiver<Mode>, from_node: bool) -> Option<Flow> {
    let passes = |mode: &Mode| match mode.flow {
        Flow::Free | Flow::Slow => true,
        Flow::Deaf => !from_node,
        Flow::Stalled => false,
    };
    mode.wait_for(passes).await.ok().map(|mode| mode.flow)
}
