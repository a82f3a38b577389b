//! The far end of a sender that is killed: it checks each byte, and counts.

use std::time::{Duration, Instant};

use zcmi_mem::pool::PoolPlan;
use zcmi_net::slots::SlotPlan;
use zcmi_net::transport::{Closed, Event, Transport};
use zcmi_tests::content;
use zcmi_tests::rig::Kept;

/// How long what must come may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long a survivor may be kept by one call.
pub(crate) const STALL: Duration = Duration::from_millis(100);
/// The longest message.
pub(crate) const MESSAGE: usize = 200_000;

/// Memory for messages up to [`MESSAGE`], of which a sender has `loans`.
pub(crate) fn slots(loans: u32) -> SlotPlan {
    SlotPlan {
        loans: PoolPlan::single(MESSAGE, loans).ok(),
        slot_bytes: 64 << 10,
        large_slots: 32,
        ..SlotPlan::default()
    }
}

/// How many rounds of what is random.
pub(crate) fn rounds() -> u64 {
    if std::env::var_os("ZCMI_LONG").is_some() { 100 } else { 2 }
}

/// A receiver, and what it got.
pub(crate) struct Arrivals<T> {
    pub(crate) transport: T,
    /// Whether each message must come, in order.
    ordered: bool,
    pub(crate) messages: u64,
    partial: Vec<u8>,
    pub(crate) ended: bool,
    pub(crate) closed: Option<Closed>,
    pub(crate) slowest: Duration,
}

impl<T: Transport> Arrivals<T> {
    pub(crate) fn new(transport: T, ordered: bool) -> Self {
        let (closed, slowest) = (None, Duration::ZERO);
        Self { transport, ordered, messages: 0, partial: Vec::new(), ended: false, closed, slowest }
    }

    /// Forgets what came, of somebody who is gone.
    #[allow(dead_code, reason = "not every test goes on with somebody else")]
    pub(crate) fn begin_anew(&mut self) {
        (self.messages, self.ended, self.closed) = (0, false, None);
        self.partial.clear();
    }

    /// One turn. How much happened.
    pub(crate) fn poll(&mut self, wait: Duration) -> usize {
        let (mut events, begin) = (Vec::new(), Kept::begin());
        self.transport.poll(&mut events, Some(wait)).expect("the transport goes on");
        self.slowest = self.slowest.max(begin.elapsed().saturating_sub(wait));
        let count = events.len();
        for event in events {
            match event {
                Event::Received { piece, .. } => {
                    if self.ordered {
                        assert_eq!((piece.tag, piece.offset as usize), (self.messages, self.partial.len()));
                    }
                    self.partial.extend_from_slice(&piece.lease);
                    if piece.is_last() {
                        let bytes = core::mem::take(&mut self.partial);
                        if let Err(wrong) = content::check(&bytes, piece.tag) {
                            panic!("message {} was accepted, and is wrong: {wrong}", piece.tag);
                        }
                        self.messages += 1;
                    }
                }
                Event::Ended { connection } => {
                    self.ended = true;
                    self.transport.close(connection);
                }
                Event::Closed { reason, .. } => self.closed = Some(reason),
                _ => {}
            }
        }
        count
    }

    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: not in {PATIENCE:?}, after {} messages", self.messages);
            self.poll(Duration::from_millis(1));
        }
    }
}
