//! The promise that lets a ledger block lie in shared memory.
//!
//! The block below relies on one fact: [`LedgerBlock`](super::LedgerBlock) is `#[repr(C)]` and made of `AtomicU64`
//! words alone, its padding included, which the assertions beside the type check by adding up the words.
#![allow(unsafe_code)]

// SAFETY: `repr(C)`, 64 atomic words and nothing else; every bit pattern is valid and there is no drop glue.
unsafe impl zcmi_ring::Shared for super::LedgerBlock {}
