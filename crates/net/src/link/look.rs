//! What is seen of a link from outside, beside its counts.

use super::{Choosing, Link};
use crate::path::PathKind;
use crate::wire::Wire;

impl<W: Wire> Link<W> {
    /// The path that is forced, if one is.
    #[must_use]
    pub fn forced(&self) -> Option<PathKind> {
        match self.choosing {
            Choosing::Forced(path) => Some(path),
            Choosing::Cheapest { .. } => None,
        }
    }

    /// Bytes that the kernel may be reading now.
    #[must_use]
    pub fn pinned_bytes(&self) -> u64 {
        self.outgoing.pinned_bytes()
    }
}
