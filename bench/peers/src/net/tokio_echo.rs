//! Row `tokio-echo`: a server on tokio that gives every message back, as such servers are usually written: a task for
//! each connection, a buffer for each task, messages behind a length of 8 bytes.
//!
//! The runtime is the one of a single thread: the server has one processor, and several threads on it would only add
//! wake-ups and locks. A buffer grows to the message that is in it, and a task that rests gives back what a large one
//! took.

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use zcmi_bench::child::{Channel, RoleResult};
use zcmi_bench::connections::Brief;
use zcmi_bench::pin;

/// The length before a message.
const PREFIX_BYTES: usize = 8;
/// The longest message that is taken.
const LONGEST: usize = 16 << 20;

/// The server.
pub(crate) fn serve(channel: &Channel) -> RoleResult {
    let (brief, _) = channel.receive::<Brief>(0)?;
    let _pinned = pin::pin(brief.cpu)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = zcmi_bench::connections::listener()?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        channel.send(&listener.local_addr()?.to_string(), &[])?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // More than a message, so that a read that takes less tells tokio that nothing more is there.
            let room = PREFIX_BYTES + 2 * brief.small_bytes;
            // A connection that breaks ends its task, and no other.
            tokio::spawn(async move { echo(stream, room).await.ok() });
        }
    })
}

async fn echo(mut stream: TcpStream, room: usize) -> std::io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        let wanted = match buffer.first_chunk::<PREFIX_BYTES>() {
            Some(prefix) => PREFIX_BYTES + u64::from_le_bytes(*prefix) as usize,
            None => PREFIX_BYTES,
        };
        if wanted > LONGEST {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        if wanted > PREFIX_BYTES && buffer.len() >= wanted {
            stream.write_all(&buffer[..wanted]).await?;
            buffer.advance(wanted);
            if buffer.is_empty() && wanted > room {
                buffer = BytesMut::new();
            }
            continue;
        }
        buffer.reserve(wanted.max(room) - buffer.len());
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}
