//! The ways by which bytes could be received, whether this host has them, and why those that it has are not used.
//!
//! Streams receive by `recvmsg` into the slots where payloads live. Every other way is asked for all the same, so that
//! whoever looks ([`Capabilities`](crate::transport::Capabilities)) sees what there is, and not only what is used.
//!
//! # What this does not do
//! It takes no queue of a network card, although that alone would tell whether a card can fill memory of ours: the
//! card's users would notice.
//!
//! # Sources
//! tcp(7) and tcp_zerocopy_receive() in net/ipv4/tcp.c, io_uring/zcrx.c, io_uring/kbuf.c of Linux 6.18.

mod sys;

use core::fmt;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;

use io_uring::{IoUring, cqueue, squeue};
use rustix::io::Errno;
use zcmi_mem::registration::Support;

use crate::uring::Abilities;

/// Bytes that are sent to see how many of them are mapped.
const SENT_BYTES: usize = 16 * 4096;

/// A way by which bytes could be received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivePath {
    /// Its name.
    pub name: &'static str,
    /// Whether this host has it.
    pub support: Support,
    /// What was found when it was tried.
    pub found: Option<String>,
    /// Why it is not used, also where it is there; none for the one that is.
    pub unused: Option<&'static str>,
}

impl fmt::Display for ReceivePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.support)?;
        if let Some(found) = &self.found {
            write!(f, " ({found})")?;
        }
        match self.unused {
            Some(reason) => write!(f, "; not used because {reason}"),
            None => write!(f, "; used"),
        }
    }
}

/// All of them, asked for once in a process, over its own loopback device.
pub fn receive_paths() -> &'static [ReceivePath] {
    static PATHS: OnceLock<Vec<ReceivePath>> = OnceLock::new();
    PATHS.get_or_init(|| {
        let (support, found) = mapped();
        let Abilities { receive, bundles, .. } = Abilities::probe();
        vec![
            ReceivePath { name: "recvmsg", support: Support::Yes, found: None, unused: None },
            ReceivePath {
                name: "TCP_ZEROCOPY_RECEIVE",
                support,
                found,
                unused: Some(
                    "pages that it maps lie outside the region, so that a payload would be copied before another \
                     process gets it by descriptor; and it maps whole pages that hold nothing but payload",
                ),
            },
            ReceivePath {
                name: "zcrx",
                support: card(),
                found: None,
                unused: Some(
                    "it takes a queue of a network card that separates headers, and fills pages of that queue: a \
                     payload would be copied before another process gets it by descriptor",
                ),
            },
            ReceivePath {
                name: "multishot receive",
                support: receive,
                found: None,
                unused: Some(
                    "it fills slots with whatever comes, so that a payload would lie behind its header or be copied",
                ),
            },
            ReceivePath {
                name: "receive bundles",
                support: bundles,
                found: None,
                unused: Some("they fill several slots as multishot receive fills one"),
            },
            ReceivePath {
                name: "incremental buffers",
                support: incremental(),
                found: None,
                unused: Some("several payloads would share a slot, which could be reused when the last one is let go"),
            },
        ]
    })
}

fn refused(call: &str, error: &io::Error) -> Support {
    Support::Unknown(format!("{call} failed: {error}").into())
}

/// Whether the kernel maps what a socket received, and how much of some pages it did.
fn mapped() -> (Support, Option<String>) {
    const CALL: &str = "getsockopt(TCP_ZEROCOPY_RECEIVE)";
    let (sender, receiver) = match connection() {
        Ok(pair) => pair,
        Err(error) => return (refused("a connection over loopback", &error), None),
    };
    match sent(sender, &receiver).and_then(|()| sys::map_received(&receiver, SENT_BYTES)) {
        Ok(bytes) => {
            let found = format!("{bytes} of {SENT_BYTES} bytes that were written to loopback in one call were mapped");
            (Support::Yes, Some(found))
        }
        Err(error) => (meaning_of_mapping(CALL, &error), None),
    }
}

fn meaning_of_mapping(call: &str, error: &io::Error) -> Support {
    match Errno::from_io_error(error) {
        Some(Errno::NOPROTOOPT) => Support::No(format!("{call} is not there (ENOPROTOOPT): before Linux 4.18").into()),
        Some(Errno::NODEV) => Support::No("sockets cannot be mapped (ENODEV): before Linux 4.18".into()),
        _ => refused(call, error),
    }
}

fn connection() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sender = TcpStream::connect(listener.local_addr()?)?;
    let ours = sender.local_addr()?;
    loop {
        let (receiver, peer) = listener.accept()?;
        // Anybody may connect here.
        if peer == ours {
            return Ok((sender, receiver));
        }
    }
}

/// Sends some pages, and waits until all of them are there.
fn sent(mut sender: TcpStream, receiver: &TcpStream) -> io::Result<()> {
    sender.set_write_timeout(Some(Duration::from_secs(1)))?;
    sender.write_all(&vec![0x5a; SENT_BYTES])?;
    // The end comes behind all of it.
    drop(sender);
    let mut ends = [rustix::event::PollFd::new(receiver, rustix::event::PollFlags::RDHUP)];
    let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
    match rustix::event::poll(&mut ends, Some(&second))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// A ring as zcrx needs it: entries of 32 bytes, and work that waits until it is asked for.
fn wide_ring() -> io::Result<IoUring<squeue::Entry, cqueue::Entry32>> {
    IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8)
}

/// Whether a network card can fill memory of ours.
fn card() -> Support {
    match wide_ring() {
        Ok(ring) => {
            let asked = sys::ask_for_queue(&ring, None);
            let loopback = || loopback_index().and_then(|index| sys::ask_for_queue(&ring, Some(index)));
            meaning_of_card(&asked, loopback)
        }
        Err(error) => match crate::uring::support() {
            Support::Yes => refused("io_uring_setup with wide completions", &error),
            other => other,
        },
    }
}

/// The number of the loopback device.
fn loopback_index() -> io::Result<u32> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(rustix::net::netdevice::name_to_index(socket, "lo")?)
}

fn meaning_of_card(asked: &io::Result<()>, loopback: impl FnOnce() -> io::Result<()>) -> Support {
    let no = |reason: &'static str| Support::No(reason.into());
    let errno = asked.as_ref().err().and_then(Errno::from_io_error);
    match errno {
        Some(Errno::INVAL) => no("IORING_REGISTER_ZCRX_IFQ is not there (EINVAL): before Linux 6.15"),
        Some(Errno::OPNOTSUPP) => no("this kernel was built without it (EOPNOTSUPP)"),
        Some(Errno::PERM) => no("it takes CAP_NET_ADMIN (EPERM)"),
        // It looked at what it was given, which is nothing: so it is there.
        Some(Errno::FAULT) => match loopback() {
            Err(error) => Support::Unknown(
                format!(
                    "the kernel has it, the loopback device has not ({error}), and to ask a network card takes one of \
                     its queues away"
                )
                .into(),
            ),
            Ok(()) => Support::Yes,
        },
        _ => match asked {
            Err(error) => refused("io_uring_register(IORING_REGISTER_ZCRX_IFQ)", error),
            Ok(()) => Support::Unknown("it took a queue of no device".into()),
        },
    }
}

/// Whether a slot can be filled by several completions.
fn incremental() -> Support {
    let ring = match IoUring::new(2) {
        Ok(ring) => ring,
        Err(error) => {
            return match crate::uring::support() {
                Support::Yes => refused("io_uring_setup", &error),
                other => other,
            };
        }
    };
    match (sys::make_buffer_ring(&ring, false), sys::make_buffer_ring(&ring, true)) {
        (Ok(()), Ok(())) => Support::Yes,
        (Ok(()), Err(error)) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
            Support::No("this kernel's io_uring has no IOU_PBUF_RING_INC (EINVAL): before Linux 6.12".into())
        }
        (Err(error), _) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
            Support::No("this kernel's io_uring makes no rings of buffers (EINVAL): before Linux 6.4".into())
        }
        (Err(error), _) | (_, Err(error)) => refused("io_uring_register(IORING_REGISTER_PBUF_RING)", &error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn one_way_is_used_and_of_each_other_it_is_said_why_not() {
        let paths = receive_paths();
        for path in paths {
            println!("{path}");
        }
        let used: Vec<_> = paths.iter().filter(|path| path.unused.is_none()).collect();
        assert!(matches!(used[..], [ReceivePath { name: "recvmsg", support: Support::Yes, .. }]), "{used:?}");
        assert_eq!(paths.len(), 6);
        // What is there was tried.
        let mapping = paths.iter().find(|path| path.name == "TCP_ZEROCOPY_RECEIVE").unwrap();
        assert_eq!(mapping.support == Support::Yes, mapping.found.is_some(), "{mapping}");
    }

    #[test]
    fn what_was_not_mapped_is_still_there_to_be_read() {
        let (sender, mut receiver) = connection().unwrap();
        sent(sender, &receiver).unwrap();
        let Ok(mapped) = sys::map_received(&receiver, SENT_BYTES) else {
            println!("SKIP: this kernel maps no received pages");
            return;
        };
        assert!(mapped <= SENT_BYTES && mapped.is_multiple_of(4096), "{mapped}");
        let mut rest = Vec::new();
        receiver.read_to_end(&mut rest).unwrap();
        assert_eq!((rest.len(), rest.iter().all(|&byte| byte == 0x5a)), (SENT_BYTES - mapped, true));
    }

    #[test]
    fn an_answer_of_the_kernel_is_told_by_its_meaning() {
        let card = |errno: Errno| meaning_of_card(&Err(errno.into()), || Err(Errno::OPNOTSUPP.into())).to_string();
        assert!(card(Errno::INVAL).contains("before Linux 6.15"));
        assert!(card(Errno::OPNOTSUPP).contains("built without"));
        assert!(card(Errno::PERM).contains("CAP_NET_ADMIN"));
        assert!(card(Errno::FAULT).starts_with("could not tell because the kernel has it"));
        assert!(card(Errno::NOMEM).starts_with("could not tell"));
        assert_eq!(meaning_of_card(&Err(Errno::FAULT.into()), || Ok(())), Support::Yes);
        let mapping = |errno: Errno| meaning_of_mapping("getsockopt", &errno.into()).to_string();
        assert!(mapping(Errno::NOPROTOOPT).starts_with("no because"));
        assert!(mapping(Errno::NODEV).starts_with("no because"));
        assert!(mapping(Errno::NOMEM).starts_with("could not tell"));
    }
}
