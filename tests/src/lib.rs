//! What tests of many processes stand on.
//!
//! A test drives worker processes (the program `zcmi-test-worker`, see [`worker`]) over their standard input and
//! output, a line each way. Every test has a [runtime directory of its own](rig::Scratch); workers are killed when the
//! test lets go of them, and by the kernel when the test's thread dies, so nothing stays behind whatever happens.
//!
//! Nothing here waits by sleeping a guessed time: answers, events and conditions are waited for, and every wait is
//! bounded.
#![deny(unsafe_code)]

pub mod content;
pub mod look;
pub mod rig;
pub mod seed;
pub mod sys;
pub mod worker;
