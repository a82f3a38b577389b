//! Between hosts: messages go from leases to sockets and from sockets into leases, by the path that costs least, and
//! what is copied on the way is counted.
#![deny(unsafe_code)]

pub mod path;
pub mod uring;
pub mod wire;
