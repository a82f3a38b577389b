//! What a message is made of.

use core::fmt;

use zcmi_mem::lease::{Lease, LeaseMut, Loaned};

use crate::file::FileBytes;

/// The bytes of a message to send: a lease that nobody writes any more, or a part of a file.
pub enum Payload {
    /// A lease that has no other holder.
    Unique(LeaseMut<[u8]>),
    /// One of several.
    Shared(Lease<[u8]>),
    /// Bytes of a file, which leave from where they lie.
    File(FileBytes),
}

impl Payload {
    /// Whether the bytes stay where they are when the lease moves.
    pub(super) fn stays(&self) -> bool {
        match self {
            Self::Unique(lease) => matches!(lease.loaned(), Loaned::Slot(_)),
            Self::Shared(_) | Self::File(_) => true,
        }
    }

    /// How many bytes it is.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        match self {
            Self::File(file) => file.byte_len(),
            lease => lease.bytes().len(),
        }
    }

    /// The bytes, if they are in memory: those of a file are not.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Unique(lease) => lease,
            Self::Shared(lease) => lease,
            Self::File(_) => &[],
        }
    }

    /// One more holder of the same bytes.
    pub(super) fn share(&mut self) -> Self {
        let shared = match core::mem::replace(self, Self::Unique(LeaseMut::inline(0))) {
            Self::Unique(lease) => lease.freeze(),
            Self::Shared(lease) => lease,
            Self::File(file) => {
                *self = Self::File(file.clone());
                return Self::File(file);
            }
        };
        *self = Self::Shared(shared.clone());
        Self::Shared(shared)
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload").field("bytes", &self.byte_len()).finish_non_exhaustive()
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

impl From<FileBytes> for Payload {
    fn from(file: FileBytes) -> Self {
        Self::File(file)
    }
}
