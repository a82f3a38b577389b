//! Connections that could not be made at once, because the peer's backlog was full: they are tried again, by time and
//! not by turn, so that a busy control thread is as patient as an idle one.

use std::time::{Duration, Instant};

use super::Control;
use crate::name::Incarnation;

/// How long is waited between two tries.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a peer is tried before it counts as unreachable.
const IN_ALL: Duration = Duration::from_secs(1);

/// A connection to be tried again.
#[derive(Debug)]
pub(super) struct Retry {
    peer: Incarnation,
    what: RetryWhat,
    begun: Instant,
    next: Instant,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum RetryWhat {
    Announce { endpoint: u32 },
    Join { subscriber: u32, publisher: u32 },
}

impl Retry {
    /// To be tried again in a while; nothing when it was tried long enough since `begun`.
    pub(super) fn in_a_while(peer: Incarnation, what: RetryWhat, begun: Instant) -> Option<Self> {
        let now = Instant::now();
        (now < begun + IN_ALL).then(|| Self { peer, what, begun, next: now + PAUSE })
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }
}

impl Control {
    /// Tries again what is due.
    pub(super) fn try_again(&mut self) {
        if self.retry.is_empty() {
            return;
        }
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.retry).into_iter().partition(|retry: &Retry| retry.next <= now);
        self.retry = later;
        let due: Vec<Retry> = due;
        for Retry { peer, what, begun, .. } in due {
            match what {
                RetryWhat::Announce { endpoint } => self.announce_to(endpoint, peer, begun),
                RetryWhat::Join { subscriber, publisher } => self.join_to(subscriber, peer, publisher, begun),
            }
        }
    }
}
