//! Options of a socket that a connection sets or looks at.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;

use super::sys;

/// Has TCP send small messages at once instead of waiting for more to go with them.
///
/// # Errors
/// The kernel's own, for instance of a socket that is not TCP's.
pub fn set_no_delay(socket: impl AsFd, no_delay: bool) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_tcp_nodelay(socket, no_delay)?)
}

/// Has TCP make packets of what is sent only when they are full, until this is taken back.
///
/// # Errors
/// The kernel's own, for instance of a socket that is not TCP's.
pub(super) fn set_cork(socket: impl AsFd, cork: bool) -> io::Result<()> {
    Ok(sockopt::set_tcp_cork(socket, cork)?)
}

/// The name of the congestion control in use.
///
/// # Errors
/// The kernel's own, for instance of a socket that is not TCP's.
pub fn congestion(socket: impl AsFd) -> io::Result<String> {
    Ok(rustix::net::sockopt::tcp_congestion(socket)?)
}

/// Chooses the congestion control by name, such as `cubic`.
///
/// # Errors
/// The kernel's own: it does not know the name, or allows it to administrators alone
/// (`net.ipv4.tcp_allowed_congestion_control`).
pub fn set_congestion(socket: impl AsFd, name: &str) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_tcp_congestion(socket, name)?)
}

/// Room for what is to be sent. The kernel doubles it, for its bookkeeping, and bounds it by `net.core.wmem_max`.
///
/// # Errors
/// The kernel's own.
pub fn set_send_buffer_bytes(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_send_buffer_size(socket, bytes)?)
}

/// Room for what is to be sent, as the kernel counts it.
///
/// # Errors
/// The kernel's own.
pub fn send_buffer_bytes(socket: impl AsFd) -> io::Result<usize> {
    Ok(rustix::net::sockopt::socket_send_buffer_size(socket)?)
}

/// Room for what was received, as [`set_send_buffer_bytes`]. Of TCP it is to be set before the connection is made.
///
/// # Errors
/// The kernel's own.
pub fn set_receive_buffer_bytes(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_recv_buffer_size(socket, bytes)?)
}

/// Room for what was received, as the kernel counts it.
///
/// # Errors
/// The kernel's own.
pub fn receive_buffer_bytes(socket: impl AsFd) -> io::Result<usize> {
    Ok(rustix::net::sockopt::socket_recv_buffer_size(socket)?)
}

/// How long what was sent may go unacknowledged before TCP ends the connection; 0 is the kernel's own choice.
///
/// # Errors
/// The kernel's own, for instance of a socket that is not TCP's.
pub fn set_user_timeout_ms(socket: impl AsFd, timeout_ms: u32) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_tcp_user_timeout(socket, timeout_ms)?)
}

/// Bytes that were accepted and that the far kernel has not acknowledged (`SIOCOUTQ`). That it did does not say that
/// the far program has read them.
///
/// A Unix socket counts the memory that what was not read yet takes, which is more than its bytes, and 0 only once all
/// was read.
///
/// # Errors
/// The kernel's own.
pub fn unacknowledged_bytes(socket: impl AsFd) -> io::Result<u64> {
    Ok(sys::unacknowledged(socket.as_fd())?)
}

/// Bytes that were accepted and not yet sent for the first time (`SIOCOUTQNSD`).
///
/// # Errors
/// The kernel's own; a Unix socket does not know them.
pub fn unsent_bytes(socket: impl AsFd) -> io::Result<u64> {
    Ok(sys::unsent(socket.as_fd())?)
}

/// What TCP knows of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpInfo {
    /// The smoothed round trip.
    pub round_trip_us: u32,
    /// How much it varies.
    pub round_trip_variation_us: u32,
    /// The congestion window.
    pub window_segments: u32,
    /// The largest segment.
    pub segment_bytes: u32,
    /// Segments that were sent again, in all.
    pub retransmitted_segments: u32,
    /// Bytes that the far kernel acknowledged, in all.
    pub acknowledged_bytes: u64,
    /// Bytes that were received, in all.
    pub received_bytes: u64,
    /// Milliseconds since the far kernel last acknowledged anything, an empty question included.
    pub silent_ms: u32,
}

/// What TCP knows of the connection now.
///
/// # Errors
/// The kernel's own, for instance of a socket that is not TCP's.
pub fn tcp_info(socket: impl AsFd) -> io::Result<TcpInfo> {
    let info = sys::tcp_info(socket)?;
    Ok(TcpInfo {
        round_trip_us: info.tcpi_rtt,
        round_trip_variation_us: info.tcpi_rttvar,
        window_segments: info.tcpi_snd_cwnd,
        segment_bytes: info.tcpi_snd_mss,
        retransmitted_segments: info.tcpi_total_retrans,
        acknowledged_bytes: info.tcpi_bytes_acked,
        received_bytes: info.tcpi_bytes_received,
        silent_ms: info.tcpi_last_ack_recv,
    })
}

/// Ends a TCP connection at once, with a reset: what is queued in the socket is thrown away, whoever else holds a
/// descriptor of it.
///
/// Zero-copy sends are notified still. What already lies in a queueing discipline or a device goes out all the same.
///
/// # Errors
/// The kernel's own; a Unix socket cannot do it.
pub fn abort(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::connect_unspec(socket)?)
}

/// Makes the kernel ask a silent peer whether it still is there: after `idle`, and then once a second, five times. A
/// peer that is gone without a word that arrived is so noticed although nothing is to be sent.
///
/// # Errors
/// If it is no TCP socket, or the time is less than a second or more than nine hours.
pub fn set_keep_alive(socket: impl AsFd, idle: Duration) -> io::Result<()> {
    sockopt::set_tcp_keepidle(&socket, idle)?;
    sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(&socket, 5)?;
    Ok(sockopt::set_socket_keepalive(&socket, true)?)
}
