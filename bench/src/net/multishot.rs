//! Receiving by io_uring, into slots of a pool that the kernel takes as bytes come; without messages.

mod raw;

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use zcmi_mem::pool::{Pool, PoolPlan};
use zcmi_net::uring::{self, Options, Ring};

use self::raw::no_slots;
use super::plain::{READ_BYTES, patience};
use super::receiver::Received;
use super::{CellError, Progress, system};

/// Slots for all streams, each as long as what the plain loop reads at a time.
const SLOTS: u16 = 16;

/// Receives until all streams have ended, or it is over.
pub(super) fn receive(sockets: &[OwnedFd], progress: &Progress) -> Result<Received, CellError> {
    let plan = PoolPlan::single(READ_BYTES, u32::from(SLOTS)).map_err(no_slots)?;
    let mut pool: Pool = raw::pool(&plan)?;
    let mut ring = Ring::open(Options::default().sends(64).buffers(0)).map_err(no_slots)?;
    ring.receiving(SLOTS).map_err(no_slots)?;
    for _ in 0..SLOTS {
        let slot = pool.take(READ_BYTES).map_err(no_slots)?;
        let _full = ring.provide(slot);
    }
    let failed = |source| CellError::System { call: "io_uring_enter", source };
    for (key, socket) in (0..).zip(sockets) {
        ring.arm(socket.as_fd(), key).map_err(failed)?;
    }
    let (mut received, mut open) = (0, sockets.len());
    while open > 0 && !progress.is_over() {
        let Some((key, what)) = ring.received() else {
            let mut waited = [PollFd::new(&ring, PollFlags::IN)];
            rustix::event::poll(&mut waited, Some(&patience())).map_err(system("poll"))?;
            continue;
        };
        match what {
            uring::Received::Bytes { slot, bytes } => {
                received += bytes as u64;
                // It has room: the slot came from there.
                let _full = ring.provide(slot);
                progress.has_received(received);
            }
            uring::Received::Paused { .. } => {
                let socket = sockets.get(key as usize).ok_or(CellError::Senseless(format!("key {key}")))?;
                ring.arm(socket.as_fd(), key).map_err(failed)?;
            }
            uring::Received::Ended { error: None | Some(Errno::CONNRESET) } => open -= 1,
            uring::Received::Ended { error: Some(errno) } => return Err(system("io_uring's RECV")(errno)),
        }
    }
    Ok(Received { bytes: received, copied_user: 0 })
}
