//! The names and numbers of what is counted. Numbers are stable: they are positions in shared memory.

use core::fmt;

/// How many counters there are.
pub const COUNTERS: usize = Counter::ALL.len();

/// How many reasons for a fallback a block has room for.
pub const REASONS: usize = 24;

macro_rules! named_numbers {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $number:literal, $text:literal;)* }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum $name { $($(#[$inner])* $variant = $number,)* }

        impl $name {
            /// All of them, each at the position of its number.
            pub const ALL: [Self; [$($number),*].len()] = [$(Self::$variant),*];

            /// The name, as printed and exported.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

named_numbers! {
    /// What an endpoint counts.
    Counter {
        /// Messages published or received.
        Messages = 0, "messages";
        /// Bytes of payload that reached whoever was to have them.
        BytesDelivered = 1, "bytes_delivered";
        /// Bytes of payload that this program copied.
        CopiedUser = 2, "copied_user";
        /// Bytes of payload that the kernel copied for certain: the call used always copies, or the kernel said so.
        CopiedKernelKnown = 3, "copied_kernel_known";
        /// Bytes of payload that the kernel may have copied without saying so.
        CopiedKernelPresumed = 4, "copied_kernel_presumed";
        /// Completions of zero-copy sends that came back as copied.
        CopiedCompletions = 5, "copied_completions";
        /// Messages overtaken by the publisher before they were read.
        Drops = 6, "drops";
        /// Publishes refused for want of room.
        Refusals = 7, "refusals";
        /// Times an endpoint had to wait at all.
        Waits = 8, "waits";
        /// Waits that went to sleep in the kernel.
        Parks = 9, "parks";
        /// Sleepers woken by a system call.
        WakesSent = 10, "wakes_sent";
        /// Nanoseconds spent in those waits.
        WaitedNs = 11, "waited_ns";
        /// Joins that were refused, or that were not answered with a lane that could be read.
        JoinsRefused = 12, "joins_refused";
        /// Events that were dropped because nobody asked for them.
        EventsLost = 13, "events_lost";
        /// Peers that were given up because of what they claimed.
        PeersEnded = 14, "peers_ended";
    }
}

named_numbers! {
    /// Why an endpoint does not use the best path.
    FallbackReason {
        /// A reason that has no number of its own yet.
        Other = 0, "other";
        /// Copying so few bytes costs less than not copying them.
        TooSmall = 1, "too_small";
        /// The limit on locked memory is reached.
        MemlockLimit = 2, "memlock_limit";
        /// The limit on socket option memory is reached.
        OptmemLimit = 3, "optmem_limit";
        /// The kernel copies on this wire, so that asking it not to only costs.
        WireCopies = 4, "wire_copies";
        /// The kernel does not know the call.
        KernelTooOld = 5, "kernel_too_old";
        /// A policy, a filter or a missing right refuses the call.
        Blocked = 6, "blocked";
        /// There are no huge pages.
        NoHugePages = 7, "no_huge_pages";
        /// The memory is not on the node that was asked for.
        OtherNode = 8, "other_node";
        /// The writer is another user, whose memory is read by copying.
        Stranger = 9, "stranger";
        /// The region belongs to another process, which alone may let the kernel read it.
        NotOwner = 10, "not_owner";
        /// No slot of the right class was free.
        NoSlot = 11, "no_slot";
        /// The kernel gives no process descriptor for the peer.
        NoPidfd = 12, "no_pidfd";
        /// The barrier of all threads is missing; both sides fence instead.
        NoMembarrier = 13, "no_membarrier";
        /// The device did not take the region.
        NotRegistered = 14, "not_registered";
        /// The queue of the device or the kernel was full.
        QueueFull = 15, "queue_full";
        /// There was no descriptor to wake somebody by; it is asked over its connection, or looks again by itself.
        NoEventfd = 16, "no_eventfd";
    }
}

const _: () = {
    assert!(FallbackReason::ALL.len() <= REASONS);
    let mut index = 0;
    while index < COUNTERS {
        assert!(Counter::ALL[index] as usize == index, "counters stand in the order of their numbers");
        index += 1;
    }
    index = 0;
    while index < FallbackReason::ALL.len() {
        assert!(FallbackReason::ALL[index] as usize == index, "reasons stand in the order of their numbers");
        index += 1;
    }
};

/// Why there is no number where one was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotKnown {
    /// The kernel or the device does not tell.
    #[error("not reported on this path")]
    NotReported,
    /// It is the peer's to know, and it did not tell.
    #[error("not told by the peer")]
    PeerSilent,
    /// This kind of endpoint does not count it.
    #[error("not counted by this endpoint")]
    NotCounted,
    /// The words from which it follows cannot be read: their region was not handed over, or its claim was refused.
    #[error("not readable")]
    NotReadable,
    /// A ratio without anything to divide by.
    #[error("nothing was delivered")]
    NothingDelivered,
    /// A reason of a newer version.
    #[error("reason {0}, which this version does not know")]
    Unknown(u8),
}

impl NotKnown {
    /// The number in four bits; 0 means known.
    pub(super) fn number(self) -> u64 {
        match self {
            Self::NotReported => 1,
            Self::PeerSilent => 2,
            Self::NotCounted => 3,
            Self::NothingDelivered => 4,
            Self::NotReadable => 5,
            // Four bits, and never the 0 that would turn an unknown into a number.
            Self::Unknown(number) => u64::from(number).clamp(6, 15),
        }
    }

    /// The reason that four bits stand for.
    pub(super) fn from_number(number: u64) -> Option<Self> {
        match number & 0xf {
            0 => None,
            1 => Some(Self::NotReported),
            2 => Some(Self::PeerSilent),
            3 => Some(Self::NotCounted),
            4 => Some(Self::NothingDelivered),
            5 => Some(Self::NotReadable),
            other => Some(Self::Unknown(other as u8)),
        }
    }
}

/// What an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// The block is free.
    Unused,
    /// It publishes.
    Publisher,
    /// It subscribes.
    Subscriber,
    /// The sums of all endpoints that were closed.
    Closed,
    /// What the process's control thread does for all endpoints.
    Control,
    /// The endpoints together that found no block of their own.
    Overflow,
    /// A role of a newer version, or a damaged block.
    Unknown(u64),
}

impl Role {
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Unused => 0,
            Self::Publisher => 1,
            Self::Subscriber => 2,
            Self::Closed => 3,
            Self::Control => 4,
            Self::Overflow => 5,
            Self::Unknown(number) => number,
        }
    }

    pub(super) fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Unused,
            1 => Self::Publisher,
            2 => Self::Subscriber,
            3 => Self::Closed,
            4 => Self::Control,
            5 => Self::Overflow,
            other => Self::Unknown(other),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unused => f.pad("unused"),
            Self::Publisher => f.pad("publisher"),
            Self::Subscriber => f.pad("subscriber"),
            Self::Closed => f.pad("closed"),
            Self::Control => f.pad("control"),
            Self::Overflow => f.pad("overflow"),
            Self::Unknown(number) => write!(f, "role {number}"),
        }
    }
}
