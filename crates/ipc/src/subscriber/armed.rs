//! Waiting elsewhere: the descriptor that an event loop polls.
//!
//! ```text
//! loop { try_receive until nothing is left;  arm;  poll the descriptor beside all others }
//! ```
//!
//! It is the descriptor that [`Subscriber::receive`] sleeps on, and arming it is what `receive` does before it sleeps.
//! It is the same for as long as the subscriber lives, so it can stay in an epoll set; level-triggered and
//! edge-triggered both work, since arming empties it. `tokio::io::unix::AsyncFd` and its like take it as it is.
//!
//! # Why no wake is lost
//! Arming empties the descriptor, sets the bits by which publishers know a sleeper, and then looks once more. What
//! comes before that look is found by it; what comes after makes the descriptor readable (see `zcmi_ring::wake`). What
//! the control thread has to say makes it readable too.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use zcmi_mem::payload::Message;

use super::lane::LaneState;
use super::{LOOK_AGAIN, ReceiveError, Subscriber};
use crate::sys;

/// What is to be done after [`Subscriber::arm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "if something is ready, the descriptor does not tell"]
pub enum Armed {
    /// Something is there already: do not wait, but receive and ask for events.
    Ready,
    /// Nothing is there. The descriptor becomes readable when something is.
    Waiting {
        /// How long to poll at most before looking again. None is the rule; a time is given while a publisher does not
        /// know yet that this subscriber sleeps, which is so for a moment after the first call.
        at_most: Option<Duration>,
    },
}

impl<M: Message + ?Sized> Subscriber<M> {
    /// The descriptor to poll for reading; it is readable only after [`arm`](Self::arm), and is not to be read.
    ///
    /// # Errors
    /// [`ReceiveError::NoEventfd`] when none can be made, [`ReceiveError::Forked`].
    pub fn descriptor(&mut self) -> Result<BorrowedFd<'_>, ReceiveError> {
        let _made = self.waiter()?;
        self.waiter.as_ref().map(AsFd::as_fd).ok_or(ReceiveError::NoEventfd { errno: 0 })
    }

    /// Prepares to wait for the [`descriptor`](Self::descriptor), and says whether there is anything to wait for.
    ///
    /// Call it after [`try_receive`](Self::try_receive) found nothing, each time before polling. It costs a locked
    /// instruction for each publisher and a system call.
    ///
    /// # Errors
    /// As [`descriptor`](Self::descriptor).
    pub fn arm(&mut self) -> Result<Armed, ReceiveError> {
        self.check_life()?;
        let waiter = self.waiter()?;
        let _taken = sys::take_wakes(waiter.as_fd());
        self.announce_sleep();
        let there = |lane: &super::Lane| match lane.state {
            LaneState::Live => lane.reader.has_message(),
            LaneState::Draining { .. } => true,
            LaneState::Cut => false,
        };
        if !self.shared.is_calm() || !self.events.is_empty() || self.lanes.iter().any(there) {
            return Ok(Armed::Ready);
        }
        Ok(Armed::Waiting { at_most: (!self.all_know_of_sleep()).then_some(LOOK_AGAIN) })
    }
}
