//! Free ports for servers that cannot be asked for "any".

use std::net::{Ipv4Addr, TcpListener};

/// A port on loopback that nobody listens on now.
///
/// It lies below the range from which the kernel takes the ports of outgoing connections. A server
/// that is stopped and started again on its port thus cannot find it taken by a client, and a client
/// that keeps trying a stopped server cannot connect to itself. Another test may still be quicker:
/// whoever starts a server should try another port when it does not come up.
pub fn free_port() -> u16 {
    for _ in 0..1_000 {
        let port = rand::random_range(10_000..30_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 10000 and 30000 on loopback");
}
