//! The bytes of a message.

use core::fmt;
use core::ops::Deref;

use zcmi_mem::lease::{Lease, LeaseMut, Loaned};

/// The bytes of a message to send: a lease that nobody writes any more.
pub enum Payload {
    /// One that has no other holder.
    Unique(LeaseMut<[u8]>),
    /// One of several.
    Shared(Lease<[u8]>),
}

impl Payload {
    /// Whether the bytes stay where they are when the lease moves.
    pub(super) fn stays(&self) -> bool {
        match self {
            Self::Unique(lease) => matches!(lease.loaned(), Loaned::Slot(_)),
            Self::Shared(_) => true,
        }
    }

    /// One more holder of the same bytes.
    pub(super) fn share(&mut self) -> Self {
        let shared = match core::mem::replace(self, Self::Unique(LeaseMut::inline(0))) {
            Self::Unique(lease) => lease.freeze(),
            Self::Shared(lease) => lease,
        };
        *self = Self::Shared(shared.clone());
        Self::Shared(shared)
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Unique(lease) => lease,
            Self::Shared(lease) => lease,
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload").field("bytes", &self.len()).finish_non_exhaustive()
    }
}

impl From<LeaseMut<[u8]>> for Payload {
    fn from(lease: LeaseMut<[u8]>) -> Self {
        Self::Unique(lease)
    }
}

impl From<Lease<[u8]>> for Payload {
    fn from(lease: Lease<[u8]>) -> Self {
        Self::Shared(lease)
    }
}
