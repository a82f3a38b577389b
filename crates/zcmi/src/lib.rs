//! zcmi, a Zero-Copy Memory Interface: hand messages from one process to another without a copy, and from one host to
//! another by the path that copies least ([`net`]).
#![forbid(unsafe_code)]

mod code;

pub use code::code_of;
pub use zcmi_ipc::code::Coded;
pub use zcmi_ipc::{
    Armed, Event, Forked, LoanError, NoRoom, Process, ProcessError, PublishError, PublishRefusal, Publisher,
    PublisherError, PublisherOptions, ReceiveError, Refusal, SendError, Service, ServiceError, Subscriber,
    SubscriberError, SubscriberOptions, Wait, WhenFull, Who,
};
pub use zcmi_ipc::{directory, name, observe, report};
pub use zcmi_mem::lease::{Lease, LeaseMut, Sample};
pub use zcmi_mem::payload;
pub use zcmi_mem::payload::payload;
pub use zcmi_mem::{ledger, pool, region, registration};
#[doc(inline)]
pub use zcmi_net as net;

/// What most programs need.
pub mod prelude {
    pub use crate::payload::Payload;
    pub use crate::payload::payload;
    pub use crate::{Event, Lease, LeaseMut, Publisher, Sample, Service, Subscriber, Wait, WhenFull};
}

/// The code of the README, compiled and run.
#[doc = include_str!("../../../README.md")]
#[cfg(doctest)]
pub struct Readme;
