//! One socket by all paths: its own calls, and those of the io_uring that the connections of a transport share.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;

use zcmi_mem::region::Region;

use crate::path::{PathKind, Release};
use crate::shared::RingHandle;
use crate::socket::SocketWire;
use crate::uring::Refusal;
use crate::wire::{FileFrame, Notification, Segment, Sent, Wire};

/// The number of a send whose bytes the kernel may read for ever: it took the request and never answered.
const NEVER: u64 = u64::MAX;

/// A socket of a transport.
pub(super) struct StreamWire {
    socket: SocketWire,
    ring: RingHandle,
    key: u32,
    /// Sends that the kernel took and will never answer.
    lost: u64,
    uses_ring: bool,
}

impl StreamWire {
    pub(super) fn new(mut socket: SocketWire, ring: &RingHandle) -> Self {
        let key = {
            let mut ring = ring.borrow_mut();
            for region in ring.regions() {
                socket.add_region(Arc::clone(region));
            }
            ring.next_key()
        };
        Self { socket, ring: Rc::clone(ring), key, lost: 0, uses_ring: false }
    }

    /// By what name the ring knows this socket.
    pub(super) fn key(&self) -> u32 {
        self.key
    }

    pub(super) fn add_region(&mut self, region: Arc<Region>) {
        self.socket.add_region(region);
    }
}

impl AsFd for StreamWire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Wire for StreamWire {
    fn send(&mut self, path: PathKind, segments: &[Segment<'_>]) -> io::Result<Sent> {
        if path == PathKind::Splice {
            // One pipe for all: a connection that has its own would have two descriptors more.
            let mut shared = self.ring.borrow_mut();
            self.socket.swap_pipe(&mut shared.pipe);
            let sent = self.socket.send(path, segments);
            self.socket.swap_pipe(&mut shared.pipe);
            return sent;
        }
        if !path.is_uring() {
            return self.socket.send(path, segments);
        }
        self.uses_ring = true;
        let sent = self.ring.borrow_mut().open()?.send(self.socket.as_fd(), self.key, path, segments);
        match sent {
            Err(error) if error.get_ref().and_then(|inner| inner.downcast_ref()) == Some(&Refusal::Lost) => {
                // The socket was shut down, so that these bytes arrive nowhere: as sent as they will ever be.
                self.lost += 1;
                let bytes = segments.iter().map(|segment| segment.bytes.len()).sum();
                Ok(Sent { bytes, release: Release::Notified(NEVER) })
            }
            other => other,
        }
    }

    fn send_file(&mut self, frame: &FileFrame<'_>) -> io::Result<usize> {
        self.socket.send_file(frame)
    }

    fn receive(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.socket.receive(buffers)
    }

    fn notifications(&mut self, each: &mut dyn FnMut(Notification)) -> io::Result<()> {
        if self.uses_ring
            && let Some(ring) = self.ring.borrow_mut().opened()
        {
            ring.notifications(self.key, each)?;
        }
        self.socket.notifications(each)
    }

    fn owed(&self) -> u64 {
        let of_ring =
            if self.uses_ring { self.ring.borrow_mut().opened().map_or(0, |ring| ring.owed_to(self.key)) } else { 0 };
        self.socket.owed() + of_ring as u64 + self.lost
    }

    fn end(&mut self) -> io::Result<()> {
        self.socket.end()
    }

    fn abort(&mut self) {
        self.socket.abort();
    }
}
