//! How a publisher waits for room: it spins a little, then sleeps on an eventfd of its own.
//!
//! This is what happens where the hot path found no room: an entry that a reliable reader has not read, or no slot free
//! of all that may be held.
//!
//! # Why no wake is lost
//! The publisher stores that it wants room, fences, and asks every reader once more before it sleeps; a reader that
//! moves its cursor fences and looks at that word (see `Reader::look_for_want`). A reader that goes is taken from the
//! list by the control thread, which wakes the publisher too. The seat is given up before the sleep.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use zcmi_mem::ledger::{Counter, FallbackReason};
use zcmi_mem::pool::Pool;
use zcmi_ring::Occupant;

use super::{NoRoom, PublisherShared, Reading, WhenFull, raw};
use crate::control::Command;
use crate::ledger::EndpointCounts;
use crate::process::Process;
use crate::sys;

/// How long a blocked publisher spins before it sleeps.
const SPIN: Duration = Duration::from_micros(50);

/// The parts of a publisher that waiting for room needs: not what it publishes.
pub(super) struct RoomWait<'a> {
    pub(super) seat: &'a mut Occupant<Reading>,
    pub(super) pool: Option<&'a mut Pool>,
    pub(super) shared: &'a PublisherShared,
    pub(super) process: &'a Process,
    pub(super) counts: &'a EndpointCounts,
    pub(super) endpoint: u32,
    pub(super) when_full: WhenFull,
}

impl RoomWait<'_> {
    /// Waits for room as the policy says. The first wait for a message sets its `deadline`; the others keep to it.
    pub(super) fn wait(mut self, deadline: &mut Option<Instant>) -> Result<(), NoRoom> {
        let begin = (self.when_full != WhenFull::RefuseNewest).then(|| self.counts.begin_wait());
        let result = self.wait_uncounted(deadline);
        if let Some(begin) = begin {
            self.counts.end_wait(begin);
        }
        result
    }

    fn wait_uncounted(&mut self, deadline: &mut Option<Instant>) -> Result<(), NoRoom> {
        let allowed = match self.when_full {
            WhenFull::RefuseNewest => Some(Duration::ZERO),
            WhenFull::BlockFor(time) => Some(time),
            WhenFull::Block => None,
        };
        let now = Instant::now();
        if deadline.is_none() {
            *deadline = allowed.map(|time| now + time);
        }
        let spin_until = now + SPIN;
        loop {
            match self.look(false) {
                Ok(()) => return Ok(()),
                Err(NoRoom::Ended { sequence }) => return Err(NoRoom::Ended { sequence }),
                Err(reason) if deadline.is_some_and(|end| Instant::now() >= end) => return Err(reason),
                Err(_) if Instant::now() >= spin_until => break,
                Err(_) => std::hint::spin_loop(),
            }
        }
        let Some(eventfd) = self.waiter() else {
            // No descriptor to be had: look again in a while, as often as a wake would take.
            self.counts.fallback(FallbackReason::NoEventfd);
            std::thread::sleep(SPIN);
            return Ok(());
        };
        loop {
            let result = self.look(true);
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            match result {
                Ok(()) => return Ok(()),
                Err(reason) if left == Some(Duration::ZERO) => {
                    self.seat.sit().writer.withdraw_want();
                    return Err(reason);
                }
                Err(_) => {}
            }
            let mut polled = [PollFd::from_borrowed_fd(eventfd.as_fd(), PollFlags::IN)];
            // An error or an interruption is a reason to look again, which is what happens next.
            self.counts.add(Counter::Parks, 1);
            let _look_again = sys::poll(&mut polled, left);
            let _taken = sys::take_wakes(eventfd.as_fd());
        }
    }

    /// Asks every reader whether there is room; with `want` they are told that it is waited for, until there is.
    fn look(&mut self, want: bool) -> Result<(), NoRoom> {
        let mut reading = self.seat.sit();
        let reading = &mut *reading;
        if want {
            reading.writer.want_room();
        }
        let reserved = match &mut self.pool {
            Some(pool) => raw::reserve_with_slot(&mut reading.writer, pool),
            None => reading.writer.reserve(&mut |_| {}),
        };
        let result = reserved.map_err(|refused| reading.no_room(refused));
        if want && result.is_ok() {
            reading.writer.withdraw_want();
        }
        result
    }

    /// The publisher's eventfd, made and handed to its readers when it first waits.
    fn waiter(&self) -> Option<Arc<OwnedFd>> {
        if let Some(eventfd) = self.shared.room.get() {
            return Some(Arc::clone(eventfd));
        }
        let eventfd = Arc::new(sys::eventfd().ok()?);
        let eventfd = Arc::clone(self.shared.room.get_or_init(|| eventfd));
        let endpoint = self.endpoint;
        self.process.mailbox().send(Command::RoomWaiter { endpoint, eventfd: Arc::clone(&eventfd) });
        Some(eventfd)
    }
}
