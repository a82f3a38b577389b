//! Holds: the marks by which a reader keeps slots from reuse after its cursor has passed them.
//!
//! A [`Hold`] stands for one word of the reader's `held` table. Dropping it is one plain store, from any thread; no
//! count is touched. That is possible because the memory it points into is freed only when nothing is held any more: a
//! reader that goes away with holds outstanding leaves an [`Orphan`], which whoever keeps it tries to free when it is
//! told of a drop. A forgotten hold therefore leaks the lane's memory and never frees a slot.
//!
//! # Edges
//! - C5 (release): the last read of a slot happens before the store that clears its hold. Pairs with A1 in
//!   [`Writer`](crate::Writer).
//! - O1 (release, and a `SeqCst` fence after it): whom a drop tells is there before the word that says that there is
//!   somebody. Pairs with O1 in the drop.
//! - W3 (`SeqCst` fence): a hold is dropped before `want_room` is looked at. Pairs with W4 in
//!   [`Writer::want_room`](crate::Writer::want_room).

mod raw;

pub use raw::{Hold, HoldTable, Notify, Orphan, OwnedBlock};
