//! Who comes in: as many connections as there are files to open, and none that does not say what it speaks.

use std::io::{Cursor, Result};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tracing::info;

/// What a client of HTTP/2 says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Files that the stores and the process itself keep open, and some to spare.
const FILES_OF_OUR_OWN: u64 = 128;

/// How many connections there is room for, up to `most`. A shell lets a process open 1,024 files unless it asks for
/// more: with that many, a thousand idle clients would lock out all others.
pub fn places(most: usize) -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // An absent number is no limit.
    let wanted = (most as u64).saturating_add(FILES_OF_OUR_OWN);
    let wanted = maximum.map_or(wanted, |maximum| wanted.min(maximum));
    let files = match current {
        Some(current) if current < wanted => {
            let raised = Rlimit {
                current: Some(wanted),
                maximum,
            };
            setrlimit(Resource::Nofile, raised).map_or(current, |()| wanted)
        }
        _ => wanted,
    };
    let places = files.saturating_sub(FILES_OF_OUR_OWN).max(1);
    if places < most as u64 {
        info!(
            files,
            places, "the limit of open files bounds the connections"
        );
    }
    usize::try_from(places).unwrap_or(most)
}

/// A connection of which it is clear whether it speaks HTTP/2. Whoever tells the two apart would wait for the rest of a
/// preface without end, so that is done here, by a caller that has a deadline.
///
/// # Errors
/// The connection's, or its end.
pub async fn begun(stream: TcpStream) -> Result<impl AsyncRead + AsyncWrite + Unpin> {
    let (mut reader, writer) = stream.into_split();
    let mut head = Vec::with_capacity(PREFACE.len());
    while head.len() < PREFACE.len() && PREFACE.starts_with(&head) {
        let rest = PREFACE.len() - head.len();
        if (&mut reader).take(rest as u64).read_buf(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(tokio::io::join(Cursor::new(head).chain(reader), writer))
}
