//! Bytes of a region as slices, for tests.
//!
//! Every unsafe block here relies on this: a [`Slab`] is the only one that reaches its region's data in this process,
//! the span keeps it mapped, and nobody else maps it.
#![allow(unsafe_code)]

use std::sync::Arc;

use zcmi_mem::region::{Region, Span};

/// A region of this process's own, whose data are bytes to send.
pub(crate) struct Slab {
    region: Arc<Region>,
    span: Span,
}

impl Slab {
    /// A sealed memfd with so many bytes of data.
    pub(crate) fn new(bytes: usize) -> Self {
        let region = Region::options(bytes).create().expect("a region");
        let span = region.bytes(region.data_offset(), bytes).expect("its data");
        Self { region: Arc::new(region), span }
    }

    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: as many bytes as the span has, mapped as long as it lives; they are written through `&mut self`
        // alone.
        unsafe { std::slice::from_raw_parts(self.span.base().as_ptr(), self.span.len()) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive. The kernel may read meanwhile, which is what tests look for.
        unsafe { std::slice::from_raw_parts_mut(self.span.base().as_ptr(), self.span.len()) }
    }
}

/// Has SIGPIPE end this process, as it does where nobody says otherwise.
#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn restore_pipe_signal() {
    // SAFETY: sets the usual action, no handler.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    assert_ne!(before, libc::SIG_ERR);
}
