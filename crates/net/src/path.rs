//! The ways by which bytes leave a socket, and when each of them gives the bytes back.

use core::fmt;

/// A way by which the bytes of a stream leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum PathKind {
    /// `sendmsg`, which copies into the kernel and always works.
    Write,
    /// `sendmsg` with `MSG_ZEROCOPY`: the error queue says when the kernel is done with the pages.
    ZeroCopy,
    /// io_uring `SENDMSG`, which copies.
    UringSend,
    /// io_uring `SENDMSG_ZC`: a second completion says when the kernel is done.
    UringZeroCopy,
    /// io_uring `SEND_ZC` from a registered buffer: as before, without pinning pages for each send.
    UringFixed,
    /// `sendfile` from the region's memfd: the pages themselves are queued, and no event says when they are read.
    SendFile,
    /// `vmsplice` into a pipe and `splice` from it: as `sendfile`, from mapped memory.
    Splice,
}

impl PathKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Write,
        Self::ZeroCopy,
        Self::UringSend,
        Self::UringZeroCopy,
        Self::UringFixed,
        Self::SendFile,
        Self::Splice,
    ];

    /// The name, as printed and as given to force a path.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::ZeroCopy => "zerocopy",
            Self::UringSend => "uring-send",
            Self::UringZeroCopy => "uring-zc",
            Self::UringFixed => "uring-fixed",
            Self::SendFile => "sendfile",
            Self::Splice => "splice",
        }
    }

    /// The path of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|path| path.name() == name)
    }

    /// Whether io_uring makes the call.
    #[must_use]
    pub fn is_uring(self) -> bool {
        matches!(self, Self::UringSend | Self::UringZeroCopy | Self::UringFixed)
    }

    /// Whether the kernel says when it is done with a send, and whether it copied.
    #[must_use]
    pub fn is_notified(self) -> bool {
        matches!(self, Self::ZeroCopy | Self::UringZeroCopy | Self::UringFixed)
    }

    /// Whether only the far program can say that the kernel is done with a send.
    #[must_use]
    pub fn is_acknowledged(self) -> bool {
        matches!(self, Self::SendFile | Self::Splice)
    }

    /// Whether the kernel may read the sender's own pages after the call, so that only the owner of a region may send
    /// from it by this path.
    #[must_use]
    pub fn shares_pages(self) -> bool {
        !matches!(self, Self::Write | Self::UringSend)
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why each path was refused first, in the order of [`PathKind::ALL`].
pub type Refusals = [Option<String>; PathKind::ALL.len()];

/// When the bytes of a send may be written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Now: they were copied.
    Now,
    /// When a [`Notification`](crate::wire::Notification) names this number.
    Notified(u64),
    /// When the far program said that it received them.
    Acknowledged,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_paths_apart() {
        for path in PathKind::ALL {
            assert_eq!(PathKind::from_name(path.name()), Some(path));
        }
        assert_eq!(PathKind::from_name("teleport"), None);
        assert!(!PathKind::Write.shares_pages() && PathKind::SendFile.shares_pages());
    }
}
