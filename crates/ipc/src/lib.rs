//! Processes on one host: runtime directory, handshake, liveness, services, waking.
//!
//! A [`Service`] is a name and a message type. [`Service::publisher`] and [`Service::subscriber`] make the two ends;
//! the processes find each other through the [runtime directory](directory), shake hands over Unix sockets, and from
//! then on talk through memory that one side writes and the other maps read-only. `docs/ARCHITECTURE.md` tells the
//! whole way of a message.
#![deny(unsafe_code)]

mod audience;
pub mod code;
mod control;
pub mod directory;
mod ledger;
pub mod name;
pub mod observe;
mod process;
pub mod publisher;
pub mod report;
#[cfg(test)]
#[path = "../tests/scratch/mod.rs"]
mod scratch;
mod service;
mod socket;
pub mod subscriber;
mod sys;
mod wire;

pub use audience::Who;
pub use process::{Process, ProcessError};
pub use publisher::{
    LoanError, NoRoom, PublishError, PublishRefusal, Publisher, PublisherError, PublisherOptions, SendError, WhenFull,
};
pub use service::{Service, ServiceError};
pub use subscriber::{Armed, Event, ReceiveError, Refusal, Subscriber, SubscriberError, SubscriberOptions, Wait};
pub use zcmi_mem::fork::{ForkGuardError, Forked};
