//! What a kernel can refuse to a process: a forked child of a test, which is refused it for the rest of its life.

use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use zcmi_net::path::PathKind;

use crate::forked::sys::{self, Denial, deny};

/// `UDP_SEGMENT` of `linux/udp.h`, by which the transport asks whether the kernel cuts.
const UDP_SEGMENT: u32 = 103;

/// Bytes that may be locked where little may: a ring, and not its buffers.
pub(crate) const LOCKED: usize = 64 << 10;

/// Says something without the library's locks, which another thread of the test may have held when this was forked.
pub(crate) fn say(text: &str) {
    let _ = rustix::io::write(std::io::stdout(), text.as_bytes());
}

/// How often a path must be refused that wants what is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Each time.
    Always,
    /// At least once: it is refused where it needs much.
    Sometimes,
    /// Not at all, or as the kernel likes.
    Perhaps,
}

/// What is refused.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "not every transport needs everything")]
pub(crate) enum Refused {
    Call {
        call: i64,
        errno: i32,
    },
    /// `SO_ZEROCOPY`.
    ZeroCopyOption,
    /// Datagrams of which the kernel cuts several out of what one call sends.
    Trains,
    /// More than so many bytes of locked memory.
    LockedMemory(usize),
    /// io_uring, by an operator who switched it off.
    Switch,
    /// Memory for what sockets note, of which the operator allows a byte.
    OptionMemory,
    /// All that only some processes may do.
    Capabilities,
    All,
}

/// The paths that take io_uring.
pub(crate) const URING: [PathKind; 3] = [PathKind::UringSend, PathKind::UringZeroCopy, PathKind::UringFixed];

impl Refused {
    fn denials(self) -> Vec<Denial> {
        match self {
            Self::Call { call, errno } => vec![Denial { call, argument: None, errno }],
            Self::ZeroCopyOption => {
                let option = Some((2, libc::SO_ZEROCOPY as u32));
                vec![Denial { call: libc::SYS_setsockopt, argument: option, errno: libc::ENOPROTOOPT }]
            }
            Self::Trains => {
                let option = Some((2, UDP_SEGMENT));
                vec![Denial { call: libc::SYS_getsockopt, argument: option, errno: libc::ENOPROTOOPT }]
            }
            // The switch cannot be turned without turning it for everybody: what it does is done here, and what it says
            // is shown.
            Self::Switch => vec![Denial { call: libc::SYS_io_uring_setup, argument: None, errno: libc::EPERM }],
            Self::LockedMemory(_) | Self::OptionMemory | Self::Capabilities => Vec::new(),
            Self::All => [libc::SYS_io_uring_setup, libc::SYS_sendfile, libc::SYS_splice, libc::SYS_vmsplice]
                .map(|call| Denial { call, argument: None, errno: libc::EPERM })
                .into_iter()
                .chain(Self::ZeroCopyOption.denials())
                .collect(),
        }
    }

    /// How often that must be. To be asked where it is refused.
    pub(crate) fn how(self) -> How {
        match self {
            Self::Capabilities => How::Perhaps,
            Self::LockedMemory(most) if sys::locks(2 * most) => {
                say("SKIP: this kernel lets more memory be locked than the limit says\n");
                How::Perhaps
            }
            Self::LockedMemory(_) => How::Sometimes,
            _ => How::Always,
        }
    }

    /// How many bytes may be locked, if that is limited.
    fn locked(self) -> Option<usize> {
        match self {
            Self::LockedMemory(most) => Some(most),
            Self::All => Some(LOCKED),
            _ => None,
        }
    }

    pub(crate) fn apply(self) {
        if matches!(self, Self::Switch) {
            let shown = std::env::temp_dir().join(format!("zcmi-switch-{}", std::process::id()));
            std::fs::write(&shown, "2\n").expect("a file");
            let answer = sys::show(&shown, "/proc/sys/kernel/io_uring_disabled".as_ref());
            std::fs::remove_file(&shown).expect("the file");
            answer.expect("a mount");
        }
        if matches!(self, Self::OptionMemory) || (matches!(self, Self::All) && is_root()) {
            sys::own_network().expect("a network");
            std::fs::write("/proc/sys/net/core/optmem_max", "1").expect("the limit of this network");
        }
        if matches!(self, Self::Capabilities | Self::All) {
            let none = CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: CapabilitySet::empty(),
                inheritable: CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, none).expect("capset");
        }
        if let Some(most) = self.locked() {
            let mut sets = rustix::thread::capabilities(None).expect("capget");
            sets.effective.remove(CapabilitySet::IPC_LOCK);
            rustix::thread::set_capabilities(None, sets).expect("capset");
            let maximum = rustix::process::getrlimit(Resource::Memlock).maximum;
            let limit = Rlimit { current: Some(most as u64), maximum };
            rustix::process::setrlimit(Resource::Memlock, limit).expect("less");
        }
        let denials = self.denials();
        if !denials.is_empty() {
            deny(&denials).expect("a filter");
        }
    }
}

/// Whether this process may change what the kernel shows and allows it; says so if not.
pub(crate) fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("SKIP: a network or a mount of its own takes root");
    }
    is_root
}
