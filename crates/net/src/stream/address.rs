//! Where streams lead: TCP and Unix sockets.

use core::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::str::FromStr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::transport::TransportError;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;

/// An address of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`, or `[HOST]:PORT` for IPv6.
    Tcp(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl Address {
    /// Whether nobody outside this host can be at the other end.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    fn family(&self) -> AddressFamily {
        match self {
            Self::Tcp(SocketAddr::V4(_)) => AddressFamily::INET,
            Self::Tcp(SocketAddr::V6(_)) => AddressFamily::INET6,
            Self::Unix(_) => AddressFamily::UNIX,
        }
    }

    fn socket(&self) -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socket_with(self.family(), SocketType::STREAM, flags, None)
    }

    fn raw(&self) -> Result<SocketAddrAny, TransportError> {
        match self {
            Self::Tcp(address) => Ok((*address).into()),
            // Without a name it would be one that anybody may connect to.
            Self::Unix(path) if path.as_os_str().is_empty() => Err(self.refused("it has no path")),
            Self::Unix(path) => match SocketAddrUnix::new(path) {
                Ok(address) => Ok(address.into()),
                Err(_) => Err(self.refused("the path is longer than a socket's can be (107 bytes)")),
            },
        }
    }

    fn refused(&self, reason: &'static str) -> TransportError {
        TransportError::Address { address: self.to_string(), reason }
    }

    /// A socket that is connecting, or connected.
    pub(super) fn dial(&self) -> Result<OwnedFd, TransportError> {
        let socket = self.socket().map_err(failed("socket"))?;
        match rustix::net::connect(&socket, &self.raw()?) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(errno) => Err(failed("connect")(errno)),
        }
    }

    /// A socket that listens. A Unix socket that nobody listens on any more is replaced.
    pub(super) fn listen(&self) -> Result<OwnedFd, TransportError> {
        let socket = self.socket().map_err(failed("socket"))?;
        if let Self::Tcp(address) = self {
            sockopt::set_socket_reuseaddr(&socket, true).map_err(failed("setsockopt(SO_REUSEADDR)"))?;
            if address.is_ipv6() {
                sockopt::set_ipv6_v6only(&socket, true).map_err(failed("setsockopt(IPV6_V6ONLY)"))?;
            }
        }
        match rustix::net::bind(&socket, &self.raw()?) {
            Err(Errno::ADDRINUSE) if self.is_deserted() => {
                if let Self::Unix(path) = self {
                    std::fs::remove_file(path)
                        .map_err(|source| TransportError::System { call: "unlink of a deserted socket", source })?;
                }
                rustix::net::bind(&socket, &self.raw()?).map_err(failed("bind"))?;
            }
            bound => bound.map_err(failed("bind"))?,
        }
        rustix::net::listen(&socket, BACKLOG).map_err(failed("listen"))?;
        Ok(socket)
    }

    /// Whether this is the name of a Unix socket whose listener is dead: connecting to it is refused, as it is to what
    /// is no socket at all.
    fn is_deserted(&self) -> bool {
        let Self::Unix(path) = self else { return false };
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        is_socket
            && matches!(self.dial(), Err(TransportError::System { source, .. })
            if source.kind() == std::io::ErrorKind::ConnectionRefused)
    }

    /// The address that a socket is bound to.
    pub(super) fn of(socket: impl AsFd) -> Option<Self> {
        Self::from_raw(&rustix::net::getsockname(socket).ok()?)
    }

    /// The address that a socket is connected to.
    pub(super) fn of_peer(socket: impl AsFd) -> Option<Self> {
        Self::from_raw(&rustix::net::getpeername(socket).ok()??)
    }

    fn from_raw(raw: &SocketAddrAny) -> Option<Self> {
        match raw.address_family() {
            AddressFamily::UNIX => {
                let path = SocketAddrUnix::try_from(raw.clone()).ok()?;
                Some(Self::Unix(path.path_bytes().map_or_else(PathBuf::new, |path| {
                    PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path))
                })))
            }
            _ => SocketAddr::try_from(raw.clone()).ok().map(Self::Tcp),
        }
    }
}

pub(super) fn failed(call: &'static str) -> impl Fn(Errno) -> TransportError {
    move |errno| TransportError::System { call, source: errno.into() }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl FromStr for Address {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["127.0.0.1:80", "[::1]:9", "unix:/run/x"] {
            let address: Address = text.parse().expect("an address");
            assert_eq!(address.to_string(), text);
            assert!(address.is_local());
        }
        assert!("nonsense".parse::<Address>().is_err());
        let far: Address = "192.0.2.1:80".parse().expect("an address");
        assert!(!far.is_local());
        let mapped: Address = "[::ffff:127.0.0.1]:80".parse().expect("an address");
        assert!(mapped.is_local());
    }

    #[test]
    fn what_is_no_socket_is_not_replaced_and_a_deserted_socket_is() {
        struct Gone(PathBuf);
        impl Drop for Gone {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
        let directory = std::env::temp_dir().join(format!("zcmi-address-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("a directory");
        let _gone = Gone(directory.clone());
        let path = directory.join("precious");
        std::fs::write(&path, "data").expect("a file");
        let address = Address::Unix(path.clone());
        assert!(address.listen().is_err());
        assert_eq!(std::fs::read(&path).expect("it is there"), b"data");
        let link = directory.join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert!(Address::Unix(link.clone()).listen().is_err() && link.is_symlink());
        std::fs::remove_file(&path).expect("ours");
        drop(address.listen().expect("nothing is there"));
        drop(address.listen().expect("nobody listens there any more"));
        let _listens = address.listen().expect("the same");
        assert!(address.listen().is_err(), "somebody listens there");
    }

    #[test]
    fn a_socket_without_a_path_is_refused() {
        let address = Address::Unix(PathBuf::new());
        assert!(matches!(address.listen(), Err(TransportError::Address { .. })));
        assert!(matches!(address.dial(), Err(TransportError::Address { .. })));
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused_by_name() {
        let address = Address::Unix(PathBuf::from("/tmp/".to_string() + &"x".repeat(120)));
        let error = address.listen().expect_err("too long");
        assert!(matches!(error, TransportError::Address { .. }), "{error}");
    }
}
