//! The sockets by which processes meet and talk: one listener per process, one connection per pair of processes.
//!
//! They are Unix sockets of the kind that keeps messages apart (`SOCK_SEQPACKET`). None of them ever waits: waiting is
//! done by polling the descriptor, in the one place that waits for everything. A message is at most
//! [`MAX_MESSAGE_BYTES`] long and carries at most [`MAX_DESCRIPTORS`] descriptors, all or nothing.
//!
//! ```text
//!  p/.new-<incarnation>   bound, then listening, then renamed to
//!  p/<incarnation>        so whoever finds the name finds a listener, and a refusal means that it is dead
//! ```
//!
//! Invariants: every descriptor is close-on-exec from its first moment; what a peer sends too long, or with more
//! descriptors than fit, is thrown away, its descriptors handed out to be closed where that does no harm; an empty
//! message is never sent, since the receiver could not tell it from the end.
//!
//! A name is reached through `/proc/self/fd/<directory>/<name>`, because a socket's address holds 107 bytes and a
//! runtime directory may be deeper than that; nothing is looked up twice by a long path.
//!
//! Who may connect is the mode, or the access list, of the name ([`Listener::let_in`]); who did is asked of the kernel.
//!
//! What it does not do: it neither reads nor trusts what a message says, nor decides who shall be let in.

use core::mem::MaybeUninit;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::audience::{Audience, Identity, Who};
use crate::directory::RuntimeDirectory;
use crate::name::Incarnation;
use crate::sys;
use zcmi_mem::fork::ForkGuard;

pub(crate) use self::error::{ConnectError, PidfdError, SendError, SocketError};

mod error;

/// The longest message, in bytes.
pub(crate) const MAX_MESSAGE_BYTES: usize = 8192;

/// The most descriptors with one message.
pub(crate) const MAX_DESCRIPTORS: usize = 8;

/// How many connections wait to be accepted before the next one is told to come back.
const BACKLOG: i32 = 128;

/// How often a listener is made anew when somebody takes its half-made socket for that of a dead process.
const MAX_BIND_TRIES: u32 = 16;

/// The user that stands for every user a namespace does not know.
pub(crate) const OVERFLOW_UID: u32 = 65534;

/// What became of a message that could be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum SendOutcome {
    /// The kernel has it.
    Sent,
    /// The peer's queue is full; poll for writing and send it again.
    WouldBlock,
}

/// What came from the peer.
#[derive(Debug)]
#[must_use]
pub(crate) enum Received {
    /// A whole message.
    Message {
        /// How many bytes of the buffer it fills.
        len: usize,
        /// What came with it, at most [`MAX_DESCRIPTORS`].
        descriptors: Vec<OwnedFd>,
    },
    /// Nothing now.
    Empty,
    /// Nothing ever again. This says nothing about the peer's life; its pidfd does.
    HungUp,
    /// A message that does not fit and was thrown away; it ends its sender. Its descriptors are to be closed.
    Rejected(Rejection, Vec<OwnedFd>),
}

/// Why a message was thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejection {
    /// It was longer than the buffer.
    #[error("a control message is longer than the {buffer_bytes} bytes it may have")]
    LongMessage {
        /// The buffer's length in bytes.
        buffer_bytes: usize,
    },
    /// It had more descriptors than a message may have, or this process has no room for them.
    #[error(
        "a control message came with more than {MAX_DESCRIPTORS} descriptors, or with more than this process can open"
    )]
    ManyDescriptors,
}

/// Who is at the other end, as the kernel noted it when the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerCredentials {
    /// For display only; 0 when the peer is in another PID namespace.
    pub(crate) pid: u32,
    /// The user.
    pub(crate) uid: u32,
    /// The group.
    pub(crate) gid: u32,
}

/// Whether two user numbers mean one user. The overflow user is never the same: it stands for every user that this
/// namespace does not know.
pub(crate) fn is_same_user(uid: u32, ours: u32) -> bool {
    uid == ours && uid != OVERFLOW_UID
}

/// How a peer's pidfd was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PidfdSource {
    /// `SO_PEERPIDFD`: it is the peer's for certain.
    PeerPidfd,
    /// `pidfd_open` of the number in the credentials, on kernels below 6.5: the number can have been reused in between.
    PidfdOpen,
}

/// The address of an entry of a directory, short however deep the directory is.
fn address(directory: BorrowedFd<'_>, name: &str) -> Result<SocketAddrUnix, SocketError> {
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    SocketAddrUnix::new(path.as_str()).map_err(SocketError::of("naming"))
}

fn has_proc() -> bool {
    rustix::fs::access("/proc/self/fd", rustix::fs::Access::EXISTS).is_ok()
}

fn new_socket() -> Result<OwnedFd, SocketError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(SocketError::of("socket"))
}

/// The extended attribute that holds a file's access list.
const ACCESS_LIST: &str = "system.posix_acl_access";

/// An access list by which our own user and the audience may connect, which needs the right to write.
///
/// # Sources
/// acl(5), and the kernel's include/uapi/linux/posix_acl_xattr.h: version 2, then entries of tag, rights and number,
/// all little-endian, in the order of their tags, each kind by number.
fn access_list(audience: &Audience) -> Vec<u8> {
    const OWNER: u16 = 1;
    const USER: u16 = 2;
    const GROUP_OWNER: u16 = 4;
    const GROUP: u16 = 8;
    const MASK: u16 = 16;
    const OTHER: u16 = 32;
    const NOBODY: u32 = u32::MAX;
    let users = audience.iter().filter_map(|who| if let Who::User(uid) = who { Some((USER, 6, uid)) } else { None });
    let groups = audience.iter().filter_map(|who| if let Who::Group(gid) = who { Some((GROUP, 6, gid)) } else { None });
    let entries = [(OWNER, 6, NOBODY)].into_iter().chain(users).chain([(GROUP_OWNER, 0, NOBODY)]).chain(groups);
    let entries = entries.chain([(MASK, 6, NOBODY), (OTHER, 0_u16, NOBODY)]);
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, number) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(rights.to_le_bytes());
        list.extend(number.to_le_bytes());
    }
    list
}

/// The socket by which other processes reach this one; its name goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    directory: RuntimeDirectory,
    incarnation: Incarnation,
    made_in: ForkGuard,
}

impl Listener {
    /// Makes the socket of this process, mode 0600.
    ///
    /// The name appears only once the socket listens. Make it before any entry of this process: an entry whose process
    /// cannot be reached is taken for a dead one's.
    ///
    /// # Errors
    /// [`SocketError`].
    pub(crate) fn bind(directory: &RuntimeDirectory, incarnation: Incarnation) -> Result<Self, SocketError> {
        Self::bind_around(directory, incarnation, || {})
    }

    /// Does it, with what happens elsewhere between the unfinished name and its own; a test puts a sweep there.
    fn bind_around(
        directory: &RuntimeDirectory,
        incarnation: Incarnation,
        mut meanwhile: impl FnMut(),
    ) -> Result<Self, SocketError> {
        let made_in = ForkGuard::new()?;
        let name = incarnation.to_string();
        let unfinished = RuntimeDirectory::unfinished(&name);
        let processes = directory.processes();
        for _ in 0..MAX_BIND_TRIES {
            let socket = new_socket()?;
            // On a socket that has no name yet this sets the mode its name will be made with, so that nobody can
            // connect before the mode is right.
            rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(SocketError::of("fchmod"))?;
            match rustix::net::bind(&socket, &address(processes, &unfinished)?) {
                Err(Errno::NOENT) if !has_proc() => return Err(SocketError::NoProc),
                other => other.map_err(SocketError::of("bind"))?,
            }
            meanwhile();
            let named = rustix::net::listen(&socket, BACKLOG)
                .and_then(|()| rustix::fs::renameat(processes, &*unfinished, processes, &*name));
            match named {
                Ok(()) => return Ok(Self { socket, directory: directory.clone(), incarnation, made_in }),
                // A sweep took the unfinished name for residue: nobody can be asked whether this process lives until
                // its name is there.
                Err(Errno::NOENT) => {}
                Err(source) => {
                    let _already_failing = rustix::fs::unlinkat(processes, &*unfinished, AtFlags::empty());
                    return Err(SocketError::of("listen or rename")(source));
                }
            }
        }
        Err(SocketError::Disturbed { incarnation, tries: MAX_BIND_TRIES })
    }

    /// The next connection that waits, if one does.
    ///
    /// # Errors
    /// [`SocketError`]; a connection that was given up before it was accepted is none.
    pub(crate) fn accept(&self) -> Result<Option<Connection>, SocketError> {
        match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => Ok(Some(Connection { socket })),
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(None),
            Err(errno) => Err(SocketError::of("accept4")(errno)),
        }
    }

    /// Lets in whom the audience names, besides our own user, and nobody else.
    ///
    /// # Errors
    /// [`SocketError`], [`AccessList`](SocketError::AccessList) where the file system has no access lists; then nobody
    /// but our own user is let in.
    pub(crate) fn let_in(&self, audience: &Audience) -> Result<(), SocketError> {
        let name = self.incarnation.to_string();
        let processes = self.directory.processes();
        // In a directory of ours or the operator's, sticky where it is shared: the name is this socket's.
        let path = format!("/proc/self/fd/{}/{name}", processes.as_raw_fd());
        let set_mode = |mode: u32| {
            rustix::fs::chmodat(processes, &*name, Mode::from_raw_mode(mode), AtFlags::empty())
                .map_err(SocketError::of("chmod"))
        };
        let close = || {
            match rustix::fs::removexattr(&*path, ACCESS_LIST) {
                // There was none, or the file system knows none.
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(SocketError::of("removexattr")(errno)),
            }
            set_mode(0o600)
        };
        if audience.is_own_user() {
            return close();
        }
        if audience.is_everybody() {
            close()?;
            return set_mode(0o666);
        }
        let list = access_list(audience);
        rustix::fs::setxattr(&*path, ACCESS_LIST, &list, rustix::fs::XattrFlags::empty()).map_err(|source| {
            let _as_closed_as_can_be = close();
            SocketError::AccessList { source }
        })
    }

    /// The process this is the socket of.
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The name is the parent's in a forked child.
        if self.made_in.check().is_ok() {
            let name = self.incarnation.to_string();
            let _swept_later = rustix::fs::unlinkat(self.directory.processes(), &*name, AtFlags::empty());
        }
    }
}

/// A connection with one other process.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
}

impl Connection {
    /// Connects to the process with this incarnation.
    ///
    /// # Errors
    /// [`ConnectError`] tells dead from busy from forbidden.
    pub(crate) fn connect(directory: &RuntimeDirectory, incarnation: Incarnation) -> Result<Self, ConnectError> {
        let socket = new_socket()?;
        match rustix::net::connect(&socket, &address(directory.processes(), &incarnation.to_string())?) {
            Ok(()) => Ok(Self { socket }),
            Err(Errno::NOENT) if !has_proc() => Err(SocketError::NoProc.into()),
            Err(Errno::CONNREFUSED | Errno::NOENT) => Err(ConnectError::Dead(incarnation)),
            Err(Errno::AGAIN) => Err(ConnectError::Busy(incarnation)),
            Err(Errno::ACCESS | Errno::PERM) => Err(ConnectError::Denied(incarnation)),
            Err(errno) => Err(SocketError::of("connect")(errno).into()),
        }
    }

    /// Two ends that are connected with each other.
    ///
    /// # Errors
    /// [`SocketError`].
    #[cfg(test)]
    pub(crate) fn pair() -> Result<(Self, Self), SocketError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map(|(one, other)| (Self { socket: one }, Self { socket: other }))
            .map_err(SocketError::of("socketpair"))
    }

    /// Sends one message with its descriptors, wholly or not at all, and never waits.
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent then.
    pub(crate) fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<SendOutcome, SendError> {
        if message.is_empty() || message.len() > MAX_MESSAGE_BYTES {
            return Err(SendError::Length { len: message.len() });
        }
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(SendError::Descriptors { count: descriptors.len() });
        }
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
            assert!(fits, "room for {MAX_DESCRIPTORS} descriptors does not hold {}", descriptors.len());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.socket, &[IoSlice::new(message)], &mut control, flags)
        });
        match sent {
            Ok(_) => Ok(SendOutcome::Sent),
            Err(Errno::AGAIN) => Ok(SendOutcome::WouldBlock),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::CONNREFUSED | Errno::NOTCONN) => Err(SendError::HungUp),
            Err(Errno::TOOMANYREFS) => Err(SendError::InFlight),
            Err(errno) => Err(SocketError::of("sendmsg")(errno).into()),
        }
    }

    /// Takes the next message, if there is one, and never waits.
    ///
    /// # Errors
    /// [`SocketError`]. What the peer did wrong is no error but [`Received::Rejected`].
    ///
    /// # Kernel
    /// A peer that closes with messages of ours unread leaves one `ECONNRESET`, which comes before what it has sent; it
    /// is skipped, so that its last messages are still received.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        match self.receive_once(buffer) {
            Err(Errno::CONNRESET) => match self.receive_once(buffer) {
                Err(Errno::CONNRESET) => Ok(Received::HungUp),
                other => other.map_err(SocketError::of("recvmsg")),
            },
            other => other.map_err(SocketError::of("recvmsg")),
        }
    }

    fn receive_once(&self, buffer: &mut [u8]) -> Result<Received, Errno> {
        let buffer_bytes = buffer.len();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)
        });
        let received = match received {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(Received::Empty),
            Err(errno) => return Err(errno),
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Ok(Received::Rejected(Rejection::LongMessage { buffer_bytes }, descriptors));
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Ok(Received::Rejected(Rejection::ManyDescriptors, descriptors));
        }
        if received.bytes == 0 {
            return Ok(Received::HungUp);
        }
        Ok(Received::Message { len: received.bytes, descriptors })
    }

    /// Who is at the other end: of an accepted connection who connected, of a connecting one who listens.
    ///
    /// # Errors
    /// [`SocketError`].
    pub(crate) fn credentials(&self) -> Result<PeerCredentials, SocketError> {
        sys::peer_credentials(self.as_fd())
            .map(|(pid, uid, gid)| PeerCredentials { pid, uid, gid })
            .map_err(SocketError::of("getsockopt(SO_PEERCRED)"))
    }

    /// As [`credentials`](Self::credentials), with all groups of a stranger.
    ///
    /// # Errors
    /// [`SocketError`].
    pub(crate) fn identity(&self) -> Result<Identity, SocketError> {
        let PeerCredentials { uid, gid, .. } = self.credentials()?;
        let identity = Identity { uid, gid, groups: Vec::new() };
        if identity.is_own_user() {
            return Ok(identity);
        }
        let groups = sys::peer_groups(self.as_fd()).map_err(SocketError::of("getsockopt(SO_PEERGROUPS)"))?;
        Ok(Identity { groups, ..identity })
    }

    /// A descriptor of the peer's process, and how it was come by.
    ///
    /// # Errors
    /// [`PidfdError`].
    ///
    /// # Kernel
    /// `SO_PEERPIDFD` since 6.5; below, `pidfd_open`, and the answer says so.
    pub(crate) fn pidfd(&self) -> Result<(OwnedFd, PidfdSource), PidfdError> {
        match sys::peer_pidfd(self.as_fd()) {
            Ok(pidfd) => Ok((pidfd, PidfdSource::PeerPidfd)),
            Err(Errno::NOPROTOOPT) => self.pidfd_by_number(),
            Err(Errno::SRCH) => Err(PidfdError::Dead),
            Err(errno) => Err(SocketError::of("getsockopt(SO_PEERPIDFD)")(errno).into()),
        }
    }

    /// The fallback below kernel 6.5.
    fn pidfd_by_number(&self) -> Result<(OwnedFd, PidfdSource), PidfdError> {
        let pid = self.credentials()?.pid;
        if pid == 0 {
            return Err(PidfdError::OtherNamespace);
        }
        match sys::open_pidfd(pid) {
            Ok(pidfd) => Ok((pidfd, PidfdSource::PidfdOpen)),
            Err(Errno::SRCH) => Err(PidfdError::Dead),
            Err(errno) => Err(SocketError::of("pidfd_open")(errno).into()),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags};
    use rustix::io::FdFlags;

    use super::*;
    use crate::scratch::{Child, STRANGER, Scratch, is_root};

    fn listener(scratch: &Scratch) -> (RuntimeDirectory, Listener) {
        let directory = RuntimeDirectory::at(scratch.path().join("run")).expect("a runtime directory");
        let incarnation = Incarnation::random().expect("random bytes");
        let listener = Listener::bind(&directory, incarnation).expect("a listener");
        (directory, listener)
    }

    fn names(directory: &RuntimeDirectory) -> Vec<String> {
        let entries = std::fs::read_dir(directory.path().join("p")).expect("p");
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
    }

    fn wait_for(descriptor: BorrowedFd<'_>, flags: PollFlags) {
        let mut polled = [PollFd::from_borrowed_fd(descriptor, flags)];
        assert_eq!(sys::poll(&mut polled, Some(Duration::from_secs(10))), Ok(1), "nothing came");
    }

    fn message(connection: &Connection) -> (Vec<u8>, Vec<OwnedFd>) {
        let mut buffer = [0; MAX_MESSAGE_BYTES];
        match connection.receive(&mut buffer).expect("recvmsg") {
            Received::Message { len, descriptors } => (buffer[..len].to_vec(), descriptors),
            other => panic!("no message: {other:?}"),
        }
    }

    #[test]
    fn a_process_is_reached_below_a_path_longer_than_an_address() {
        let scratch = Scratch::new();
        let deep = scratch.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).expect("mkdir");
        let directory = RuntimeDirectory::at(deep.join("run")).expect("a runtime directory");
        let incarnation = Incarnation::random().expect("random bytes");
        let listener = Listener::bind(&directory, incarnation).expect("a listener");
        assert!(listener.accept().expect("accept").is_none(), "nobody connected yet");

        let client = Connection::connect(&directory, listener.incarnation()).expect("a connection");
        let server = listener.accept().expect("accept").expect("a connection");
        assert_eq!(client.send(b"hello", &[]).expect("send"), SendOutcome::Sent);
        assert_eq!(message(&server).0, b"hello");
        for end in [&client, &server] {
            let peer = end.credentials().expect("credentials");
            assert_eq!(peer.pid, std::process::id());
            assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
            assert_eq!(peer.gid, rustix::process::getegid().as_raw());
            assert_eq!(end.identity().expect("an identity").is_own_user(), peer.uid != OVERFLOW_UID);
            let (pidfd, source) = end.pidfd().expect("a pidfd");
            assert_eq!(sys::is_dead(pidfd.as_fd()), Ok(false));
            println!("pidfd by {source:?}");
            let (pidfd, source) = end.pidfd_by_number().expect("a pidfd");
            assert_eq!((sys::is_dead(pidfd.as_fd()), source), (Ok(false), PidfdSource::PidfdOpen));
        }
        for descriptor in [listener.as_fd(), client.as_fd(), server.as_fd()] {
            assert_eq!(rustix::io::fcntl_getfd(descriptor), Ok(FdFlags::CLOEXEC));
            let flags = rustix::fs::fcntl_getfl(descriptor).expect("fcntl");
            assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
        }
    }

    #[test]
    fn a_listener_has_one_name_of_mode_0600_and_takes_it_along() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new();
        let (directory, listener) = listener(&scratch);
        let name = listener.incarnation().to_string();
        assert_eq!(names(&directory), std::slice::from_ref(&name));
        let mode = std::fs::metadata(directory.path().join("p").join(&name)).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        drop(listener);
        assert!(names(&directory).is_empty());
    }

    #[test]
    fn a_forked_child_leaves_its_parents_name_alone() {
        let scratch = Scratch::new();
        let (directory, listener) = listener(&scratch);
        let mut inherited = Some(listener);
        let status = sys::testing::status_in_forked_child(|| {
            drop(inherited.take());
            0
        });
        assert_eq!(status, 0);
        assert_eq!(names(&directory).len(), 1);
        drop(inherited);
        assert!(names(&directory).is_empty());
    }

    #[test]
    fn a_sweep_in_the_middle_does_not_cost_a_starting_process_its_socket() {
        let scratch = Scratch::new();
        let directory = RuntimeDirectory::at(scratch.path().join("run")).expect("a runtime directory");
        let is_dead = |incarnation| matches!(Connection::connect(&directory, incarnation), Err(ConnectError::Dead(_)));
        let sweep = || assert_eq!(directory.sweep_dead(is_dead).expect("a sweep").processes, 1);
        let incarnation = Incarnation::random().expect("random bytes");
        let mut sweeps = 3;
        let listener = Listener::bind_around(&directory, incarnation, || {
            if sweeps > 0 {
                sweeps -= 1;
                sweep();
            }
        });
        let listener = listener.expect("a listener after all");
        assert!(!is_dead(incarnation));
        assert_eq!(names(&directory), [incarnation.to_string()]);
        drop(listener);

        let refusal = Listener::bind_around(&directory, incarnation, sweep).expect_err("disturbed every time");
        assert!(matches!(refusal, SocketError::Disturbed { tries: MAX_BIND_TRIES, .. }), "{refusal}");
        assert!(names(&directory).is_empty());
    }

    #[test]
    fn who_was_never_there_is_dead() {
        let scratch = Scratch::new();
        let directory = RuntimeDirectory::at(scratch.path().join("run")).expect("a runtime directory");
        let nobody = Incarnation::random().expect("random bytes");
        let refusal = Connection::connect(&directory, nobody).expect_err("nobody");
        assert!(matches!(refusal, ConnectError::Dead(incarnation) if incarnation == nobody), "{refusal}");
    }

    #[test]
    fn the_socket_of_a_killed_process_says_dead_and_can_be_removed() {
        let scratch = Scratch::new();
        let directory = RuntimeDirectory::at(scratch.path().join("run")).expect("a runtime directory");
        let mut child = Child::start("socket::tests::child_that_listens", directory.path(), None, &scratch);
        let incarnation: Incarnation = child.line().parse().expect("an incarnation");
        let connection = Connection::connect(&directory, incarnation).expect("it lives");
        let (pidfd, _) = connection.pidfd().expect("a pidfd");
        assert_eq!(sys::is_dead(pidfd.as_fd()), Ok(false));
        child.kill();
        assert_eq!(sys::is_dead(pidfd.as_fd()), Ok(true));
        let mut buffer = [0; 8];
        assert!(matches!(connection.receive(&mut buffer), Ok(Received::HungUp)));

        assert_eq!(names(&directory), [incarnation.to_string()]);
        let refusal = Connection::connect(&directory, incarnation).expect_err("it is dead");
        assert!(matches!(refusal, ConnectError::Dead(_)), "{refusal}");
        assert!(directory.remove_process(incarnation).expect("unlink"));
        assert!(!directory.remove_process(incarnation).expect("unlink"));
        assert!(names(&directory).is_empty());
    }

    #[test]
    fn a_stranger_is_not_let_in_and_does_not_take_us_for_dead() {
        if !is_root() {
            println!("SKIP: only root can start a process of another user");
            return;
        }
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new();
        let (directory, listener) = listener(&scratch);
        drop(directory);
        let run = scratch.path().join("run");
        // Open up all but the socket, so that its own mode is what refuses.
        for path in [scratch.path(), &run, &run.join("p"), &run.join("s")] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o711)).expect("chmod");
        }
        let mut child = Child::start("socket::tests::child_that_connects", &run, Some(STRANGER), &scratch);
        child.say(&listener.incarnation().to_string());
        assert_eq!(child.line(), "denied");
        assert!(listener.accept().expect("accept").is_none());
    }

    #[test]
    #[ignore = "a child of another test"]
    fn child_that_listens() {
        let Some(path) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
        let directory = RuntimeDirectory::at(path).expect("a runtime directory");
        let incarnation = Incarnation::random().expect("random bytes");
        let _listener = Listener::bind(&directory, incarnation).expect("a listener");
        Child::answer(&incarnation.to_string());
        Child::wait_for_parent();
    }

    #[test]
    #[ignore = "a child of another test"]
    fn child_that_connects() {
        let Some(path) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
        let directory = RuntimeDirectory::at(path).expect("a runtime directory");
        let incarnation = Child::heard().parse().expect("an incarnation");
        Child::answer(match Connection::connect(&directory, incarnation) {
            Err(ConnectError::Denied(_)) => "denied",
            Err(ConnectError::Dead(_)) => "dead",
            Err(_) => "other",
            Ok(_) => "connected",
        });
    }

    #[test]
    fn a_full_backlog_says_busy_and_not_dead() {
        let scratch = Scratch::new();
        let (directory, listener) = listener(&scratch);
        let mut waiting = Vec::new();
        let refusal = loop {
            match Connection::connect(&directory, listener.incarnation()) {
                Ok(connection) => waiting.push(connection),
                Err(refusal) => break refusal,
            }
            assert!(waiting.len() < 300, "a backlog without bound");
        };
        assert!(matches!(refusal, ConnectError::Busy(_)), "{refusal}");
        assert!(waiting.len() >= 100, "a hundred half-open handshakes must fit, only {} did", waiting.len());
        assert!(listener.accept().expect("accept").is_some());
        assert!(Connection::connect(&directory, listener.incarnation()).is_ok());
    }

    #[test]
    fn eight_descriptors_arrive_and_the_ninth_is_refused() {
        let (one, other) = Connection::pair().expect("a pair");
        let (reading, writing) = std::io::pipe().expect("a pipe");
        let nine = [writing.as_fd(); 9];
        let refusal = one.send(b"nine", &nine).expect_err("nine");
        assert!(matches!(refusal, SendError::Descriptors { count: 9 }), "{refusal}");
        assert!(matches!(other.receive(&mut [0; 8]), Ok(Received::Empty)));

        assert_eq!(one.send(b"eight", &nine[..8]).expect("send"), SendOutcome::Sent);
        let (text, descriptors) = message(&other);
        assert_eq!((text.as_slice(), descriptors.len()), (&b"eight"[..], 8));
        for (at, descriptor) in descriptors.iter().enumerate() {
            assert_eq!(rustix::io::fcntl_getfd(descriptor), Ok(FdFlags::CLOEXEC), "descriptor {at}");
            rustix::io::write(descriptor, b"x").expect("write");
        }
        let mut buffer = [0; 16];
        assert_eq!(rustix::io::read(&reading, &mut buffer), Ok(8));
    }

    #[test]
    fn a_message_with_too_many_descriptors_is_rejected_and_all_of_them_closed() {
        let (one, other) = Connection::pair().expect("a pair");
        let (reading, writing) = std::io::pipe().expect("a pipe");
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(20))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let twenty = [writing.as_fd(); 20];
        assert!(control.push(SendAncillaryMessage::ScmRights(&twenty)));
        rustix::net::sendmsg(&one, &[IoSlice::new(b"many")], &mut control, SendFlags::empty()).expect("sendmsg");
        drop(writing);
        let received = other.receive(&mut [0; 8]).expect("recvmsg");
        assert!(matches!(received, Received::Rejected(Rejection::ManyDescriptors, _)), "{received:?}");
        drop(received);
        // The pipe ends only when nobody has a descriptor of its other end.
        wait_for(reading.as_fd(), PollFlags::IN);
        assert_eq!(rustix::io::read(&reading, &mut [0; 8]), Ok(0));
    }

    #[test]
    fn a_message_too_long_is_rejected_with_its_descriptors_and_the_next_one_arrives() {
        let (one, other) = Connection::pair().expect("a pair");
        let (reading, writing) = std::io::pipe().expect("a pipe");
        let long = vec![7; MAX_MESSAGE_BYTES + 1];
        let refusal = one.send(&long, &[]).expect_err("too long");
        assert!(matches!(refusal, SendError::Length { len } if len == MAX_MESSAGE_BYTES + 1), "{refusal}");
        assert!(matches!(one.send(&[], &[]), Err(SendError::Length { len: 0 })));

        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let one_of_them = [writing.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&one_of_them)));
        rustix::net::sendmsg(&one, &[IoSlice::new(&long)], &mut control, SendFlags::empty()).expect("sendmsg");
        drop(writing);
        assert_eq!(one.send(&long[1..], &[]).expect("the longest"), SendOutcome::Sent);
        let mut buffer = [0; MAX_MESSAGE_BYTES];
        let received = other.receive(&mut buffer).expect("recvmsg");
        let expected = Rejection::LongMessage { buffer_bytes: MAX_MESSAGE_BYTES };
        assert!(matches!(received, Received::Rejected(reason, _) if reason == expected), "{received:?}");
        drop(received);
        wait_for(reading.as_fd(), PollFlags::IN);
        assert_eq!(rustix::io::read(&reading, &mut [0; 8]), Ok(0));
        assert_eq!(message(&other).0, &long[1..]);
    }

    #[test]
    fn the_last_words_of_a_peer_that_read_nothing_are_heard() {
        let (one, other) = Connection::pair().expect("a pair");
        assert_eq!(one.send(b"unread", &[]).expect("send"), SendOutcome::Sent);
        assert_eq!(other.send(b"bye", &[]).expect("send"), SendOutcome::Sent);
        drop(other);
        assert_eq!(message(&one).0, b"bye");
        // A child that another test is starting holds the other end until it runs its own program.
        wait_for(one.as_fd(), PollFlags::IN);
        assert!(matches!(one.receive(&mut [0; 8]), Ok(Received::HungUp)));
        assert!(matches!(one.send(b"anybody", &[]), Err(SendError::HungUp)));
    }

    #[test]
    fn a_peer_that_does_not_read_is_told_by_would_block_and_never_waited_for() {
        let (one, other) = Connection::pair().expect("a pair");
        sys::testing::let_it_wait(one.as_fd());
        let mut sent = 0;
        while one.send(&[1; MAX_MESSAGE_BYTES], &[]).expect("send") == SendOutcome::Sent {
            sent += 1;
            assert!(sent < 100_000, "a queue without bound");
        }
        assert!(sent > 0);
        for _ in 0..sent {
            assert_eq!(message(&other).0.len(), MAX_MESSAGE_BYTES);
        }
        wait_for(one.as_fd(), PollFlags::OUT);
        assert_eq!(one.send(b"again", &[]).expect("send"), SendOutcome::Sent);
        assert_eq!(message(&other).0, b"again");
    }

    #[test]
    fn the_overflow_user_is_nobodys_equal() {
        assert!(is_same_user(0, 0));
        assert!(!is_same_user(1, 0));
        assert!(!is_same_user(OVERFLOW_UID, OVERFLOW_UID));
    }
}
