//! The seat: how the publisher's hot path and its process's control thread share the list of readers without a lock.
//!
//! The [`Occupant`] (the publisher) sits down for each operation: two plain stores and a load. The [`Controller`] (the
//! control thread, rarely) asks for the seat, pays for both sides with a heavy barrier, waits until it is empty, and
//! changes what is in it.
//!
//! # Edges
//! - S1 (a barrier on both sides): the occupant stores `busy` and then loads `wanted`; the controller stores `wanted`
//!   and then loads `busy`. At least one of them sees the other. With [`Barrier::Asymmetric`] the occupant's half is a
//!   compiler fence only, and the controller calls `membarrier(2)`, which makes every running thread of the process
//!   pass one.
//! - S2 (release/acquire on `busy`): what the occupant did is visible to the controller's change.
//! - S3 (release/acquire on `wanted`): what the controller changed is visible to the occupant's next operation.

mod raw;

pub use raw::{Controller, Occupant, Seat, Sitting};

/// Which barrier the two sides use.
#[derive(Clone, Copy, Debug)]
pub enum Barrier {
    /// `fence(SeqCst)` on both sides; works everywhere.
    Symmetric,
    /// A compiler fence for the occupant; the controller calls this function, which must act as a full barrier on every
    /// running thread of the process (`membarrier` with `PRIVATE_EXPEDITED`, registered before).
    Asymmetric(fn()),
}
