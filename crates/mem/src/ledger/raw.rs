//! The promise that lets the parts of a ledger lie in shared memory.
//!
//! Each block below relies on one fact: the type is `#[repr(C)]` and made of `AtomicU64`
//! words alone, its padding included, which the assertions beside the type check by adding up the words.
#![allow(unsafe_code)]

// SAFETY: `repr(C)`, 64 atomic words and nothing else; every bit pattern is valid and there is no drop glue.
unsafe impl zcmi_ring::Shared for super::LedgerBlock {}
// SAFETY: `repr(C)`, 16 atomic words and nothing else; every bit pattern is valid and there is no drop glue.
unsafe impl zcmi_ring::Shared for super::lanes::LaneRow {}
// SAFETY: `repr(C)`, 64 atomic words and nothing else; every bit pattern is valid and there is no drop glue.
unsafe impl zcmi_ring::Shared for super::region::LedgerHeader {}
