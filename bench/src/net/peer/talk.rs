//! What the two hosts of a measurement say to each other, and how each socket between them begins.
//!
//! ```text
//! socket   opening: magic 8 bytes, kind 8 bytes, ticket 16 bytes, then
//!            talk   a transport's greeting, and messages of JSON: `Welcome` or `Busy`, then questions and answers
//!            data   a transport's greeting and messages, or the bytes of a plain loop
//! ```
//!
//! # Invariants
//! - What is said is a claim: it is short, whole, and of a known form, or the talk ends.
//! - A data socket bears a ticket that was told in the talk, which a shared key protects from those who have none.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zcmi_mem::pool::PoolPlan;
use zcmi_net::key::Key;
use zcmi_net::link::Piece;
use zcmi_net::outgoing::Token;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{StreamOptions, StreamTransport};
use zcmi_net::transport::{ConnectionId, Destination, Transport as _};

use super::super::receiver::Received;
use super::super::{CellError, RowKind};
use crate::net::{MOST_STREAMS, SIZES};

/// Bytes with which a socket begins.
pub(super) const OPENING_BYTES: usize = 32;
/// The longest that is said at a time.
pub(super) const SAID_BYTES: usize = 4096;
/// What is shown of the other side's words.
const SHOWN_LETTERS: usize = 200;
const MAGIC: [u8; 8] = *b"zcmi-bn1";

/// What a data socket shows.
pub(super) type Ticket = [u8; 16];

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// To talk.
    Talk,
    /// To be measured.
    Data(Ticket),
}

impl Opening {
    pub(super) fn encode(self) -> [u8; OPENING_BYTES] {
        let (kind, ticket) = match self {
            Self::Talk => (0_u64, Ticket::default()),
            Self::Data(ticket) => (1, ticket),
        };
        let mut bytes = [0; OPENING_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&kind.to_le_bytes());
        bytes[16..].copy_from_slice(&ticket);
        bytes
    }

    /// What the bytes say; none for bytes that nobody of ours sends.
    pub(super) fn decode(bytes: &[u8; OPENING_BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (kind, ticket) = rest.split_first_chunk::<8>()?;
        let ticket = Ticket::try_from(ticket).ok()?;
        match (*magic == MAGIC, u64::from_le_bytes(*kind)) {
            (true, 0) if ticket == Ticket::default() => Some(Self::Talk),
            (true, 1) => Some(Self::Data(ticket)),
            _ => None,
        }
    }
}

/// What passes over the connections of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Carried {
    /// Bytes, by plain loops.
    Plain,
    /// Messages over streams.
    Messages,
    /// Messages over UDP.
    Datagrams { reliable: bool },
}

impl Carried {
    pub(super) fn by(row: RowKind) -> Self {
        match row {
            RowKind::Raw | RowKind::RawMultishot => Self::Plain,
            RowKind::Forced(_) | RowKind::Adaptive => Self::Messages,
            RowKind::Udp => Self::Datagrams { reliable: true },
            RowKind::UdpUnreliable => Self::Datagrams { reliable: false },
        }
    }
}

/// What the serving side is asked to receive.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Task {
    pub(super) carried: Carried,
    pub(super) streams: usize,
    pub(super) bytes: usize,
    /// Whether what comes is sent back.
    pub(super) echo: bool,
    /// The serving side's address as the other side reached it: where datagrams will go.
    pub(super) at: IpAddr,
}

impl Task {
    /// Whether it is one that is measured: memory is taken by it.
    pub(super) fn is_sane(&self) -> bool {
        (1..=MOST_STREAMS).contains(&self.streams) && (1..=SIZES[SIZES.len() - 1]).contains(&self.bytes)
    }
}

/// What the measuring side says.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Get ready.
    Task(Task),
    /// Say how far you are.
    Mark,
    /// It is over; say what came.
    End,
}

/// What the serving side says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It serves. The boot of its kernel tells whether both sides are one host.
    Welcome { boot: Option<String> },
    /// Another measurement is going on.
    Busy,
    /// Connections that show this ticket are taken.
    Ready { ticket: Ticket },
    /// How far it is.
    Mark(Mark),
    /// What came.
    Ended(Ended),
    /// It could not do what it was asked.
    Cannot { why: String },
}

/// How far the serving side is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Its clock.
    pub(super) at_ns: u64,
    /// Bytes of payload that it received.
    pub(super) received: u64,
    /// Processor time of its process.
    pub(super) own_ns: u64,
    /// That of the kernel's threads for packets, where it sees them.
    pub(super) ksoftirqd_ns: Option<u64>,
}

/// What came in a measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) received: Received,
    /// The congestion control at the serving side.
    pub(super) congestion: Option<String>,
}

/// The boot of this host's kernel.
pub(super) fn boot() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

/// The other side's words as they may stand on a terminal.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .take(SHOWN_LETTERS)
        .flat_map(|letter| if letter.is_control() { letter.escape_default().collect() } else { vec![letter] })
        .collect()
}

/// A transport for talks with so many at a time.
pub(super) fn transport(key: Option<Key>, insecure: bool, connections: usize) -> Result<StreamTransport, CellError> {
    let slots = SlotPlan {
        small_bytes: 1024,
        small_slots: 16 * (connections as u32 + 3),
        slot_bytes: SAID_BYTES as u32,
        large_slots: 4 * (connections as u32 + 3),
        headers: 1024,
        loans: PoolPlan::single(SAID_BYTES, 64).ok(),
    };
    let options = StreamOptions {
        slots,
        key,
        insecure,
        connections,
        greetings: connections,
        resume_for: Duration::ZERO,
        ..StreamOptions::default()
    };
    Ok(StreamTransport::new(options)?)
}

/// Says something; it goes out with the next poll.
///
/// # Errors
/// The other side takes none of what is said, or is gone.
pub(super) fn say(transport: &mut StreamTransport, to: ConnectionId, said: &impl Serialize) -> Result<(), CellError> {
    let refused = |reason: &dyn core::fmt::Display| CellError::NotTaken(reason.to_string());
    let text = serde_json::to_vec(said).map_err(|error| refused(&error))?;
    let mut lease = transport.loan(text.len()).map_err(|error| refused(&error))?;
    lease.copy_from_slice(&text);
    let submitted = transport.submit(Destination::new(to), lease.into(), Token(0));
    submitted.map_err(|not_taken| refused(&not_taken.reason))
}

/// Understands something that was said.
///
/// # Errors
/// It is nothing that is said here.
pub(super) fn understand<T: DeserializeOwned>(piece: &Piece) -> Result<T, CellError> {
    if !piece.is_whole() {
        return Err(CellError::Senseless(format!("a message of {} bytes", piece.message_bytes)));
    }
    serde_json::from_slice(&piece.lease).map_err(|error| CellError::Senseless(shown(&error.to_string())))
}

/// How long is left until then.
pub(super) fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_is_read_as_it_was_written_and_nothing_else_is_one() {
        for opening in [Opening::Talk, Opening::Data([7; 16])] {
            assert_eq!(Opening::decode(&opening.encode()), Some(opening));
        }
        let mut bytes = Opening::Talk.encode();
        for (index, value) in [(0, 0), (8, 2), (20, 1)] {
            let before = std::mem::replace(&mut bytes[index], value);
            assert_eq!(Opening::decode(&bytes), None, "byte {index}");
            bytes[index] = before;
        }
    }

    #[test]
    fn a_task_beyond_what_is_measured_is_not_sane() {
        let at = IpAddr::from([127, 0, 0, 1]);
        let task = Task { carried: Carried::Messages, streams: 8, bytes: 4 << 20, echo: false, at };
        assert!(task.is_sane());
        for bad in [
            Task { streams: 0, ..task },
            Task { streams: 9, ..task },
            Task { bytes: 0, ..task },
            Task { bytes: (4 << 20) + 1, ..task },
            Task { bytes: usize::MAX, ..task },
        ] {
            assert!(!bad.is_sane(), "{bad:?}");
        }
    }

    #[test]
    fn what_a_terminal_would_act_upon_is_escaped_and_cut() {
        assert_eq!(shown("a\x1b[2J"), "a\\u{1b}[2J");
        assert_eq!(shown(&"x".repeat(10_000)).len(), SHOWN_LETTERS);
    }
}
