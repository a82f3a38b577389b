//! What a link has done, in numbers.

use crate::path::PathKind;

/// What was sent by one path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathCounts {
    /// Calls that accepted bytes.
    pub sends: u64,
    /// Bytes accepted, headers included.
    pub bytes: u64,
    /// Calls that were refused, so that another path was used.
    pub refused: u64,
    /// Notifications that came.
    pub notified: u64,
    /// Of these, how many said that the kernel copied.
    pub copied: u64,
}

/// What a link did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// By path, in the order of [`PathKind::ALL`].
    pub paths: [PathCounts; PathKind::ALL.len()],
    /// Messages taken for sending.
    pub submitted: u64,
    /// Pieces received.
    pub pieces_received: u64,
    /// Bytes of payload received.
    pub bytes_received: u64,
    /// Bytes of payload received that were copied in user space.
    pub copied_user: u64,
    /// Calls that received something.
    pub receives: u64,
    /// Frames that carried nothing but acknowledgement and credits.
    pub notes: u64,
    /// Notifications for what was not owed.
    pub stray_notifications: u64,
    /// Sends by a path that copies because too much was pinned.
    pub over_budget: u64,
}
