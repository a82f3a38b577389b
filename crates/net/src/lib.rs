//! Between hosts: messages go from leases to sockets and from sockets into leases, by the path that costs least, and
//! what is copied on the way is counted.
#![deny(unsafe_code)]

pub mod code;
#[cfg(test)]
#[path = "../tests/dice/mod.rs"]
mod dice;
pub mod file;
pub mod frame;
mod greeting;
pub mod incoming;
pub mod key;
pub mod link;
pub mod links;
pub mod notify;
pub mod outgoing;
pub mod path;
mod raw;
pub mod receive_paths;
mod refused;
pub mod select;
mod shared;
mod sleep;
pub mod slots;
pub mod socket;
pub mod stream;
pub mod transport;
pub mod udp;
pub mod uring;
pub mod wire;
