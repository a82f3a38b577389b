//! Lock-free structures that live in memory shared between processes.
//!
//! The one structure so far is the **lane**: one publisher broadcasts messages to up to 64 readers through a ring of
//! 64-byte entries, each stamped with its sequence number. The publisher writes its own region, each reader its own
//! block, and no word has two writers, so that a reader that dies, stalls or lies is forgotten by forgetting its block.
//! The protocol is described in `docs/layout/lane.md`; the two sides are [`Writer`] and [`Reader`].
//!
//! This crate makes no system call and allocates only when a lane is made or ended. Waiting, mapping and handing over
//! are the business of the crates above.
#![deny(unsafe_code)]

pub mod code;
pub mod hold;
pub mod layout;
pub mod life;
pub mod owed;
pub mod raw;
pub mod reader;
pub mod seat;
pub mod sync;
pub mod wake;
pub mod writer;

pub use code::Coded;
pub use hold::{Hold, HoldTable, Notify, Orphan, OwnedBlock};
pub use layout::{Entry, Head, Kind, LaneControl, Message, RawDescriptor, ReaderBlock};
pub use life::LifeMark;
pub use raw::{Keeper, Ring, Shared, View};
pub use reader::{LaneFault, Read, Reader};
pub use seat::{Controller, Occupant, Seat, Sitting};
pub use wake::WakeWord;
pub use writer::{AddReaderError, Policy, PublishRefused, ReaderIndex, Rogue, Writer, WriterOptions};
