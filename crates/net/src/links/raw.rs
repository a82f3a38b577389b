//! The promise that lets a board lie in shared memory.
//!
//! Each block below relies on one fact: the type is `#[repr(C)]` and made of `AtomicU64` words alone, its padding
//! included, which the assertions beside the type check by adding up the words.
#![allow(unsafe_code)]

// SAFETY: `repr(C)`, 64 atomic words and nothing else; every bit pattern is valid and there is no drop glue.
unsafe impl zcmi_ring::Shared for super::BoardHeader {}
// SAFETY: `repr(C)`, 128 atomic words and nothing else; every bit pattern is valid and there is no drop glue.
unsafe impl zcmi_ring::Shared for super::BoardRow {}
