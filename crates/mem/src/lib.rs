//! Regions, pools, leases, registration and the ledger: memory that is handed on by descriptor.
#![deny(unsafe_code)]
// The derive names this crate by its path from outside.
extern crate self as zcmi_mem;

pub mod code;
pub mod fork;
pub mod lease;
pub mod ledger;
pub mod payload;
pub mod pool;
pub mod region;
pub mod registration;
