//! Benches: what zcmi costs, beside what the machine itself costs and beside a ring written by hand.
//!
//! ```text
//! ipc ---- which rows, in which order               report, host, table ---- what comes out
//!  |--- floor, bare      a link each                 rounds, stats ---------- medians over alternating rounds
//!  '--- link             the loops all rows share    child, side, threads --- the other side, and shared memory
//!       pattern, spin, clock, pin, cpu               the rest of what a fair comparison needs
//!
//! connections  what a server of many connections costs, for each request and for each connection
//! wires ------ links between namespaces, made on the spot        oracle ---- whether a path copied on one of them
//! ```
//!
//! A program that runs a bench calls [`child::maybe_run_child`] with the suite's roles first in its `main`, because the
//! second process of a measurement is the same executable:
//!
//! ```no_run
//! zcmi_bench::child::maybe_run_child(zcmi_bench::ipc::ROLES);
//! let report = zcmi_bench::ipc::run(&zcmi_bench::ipc::IpcOptions::quick())?;
//! print!("{}", zcmi_bench::table::render(&report));
//! # Ok::<(), zcmi_bench::ipc::BenchError>(())
//! ```
#![deny(unsafe_code)]

pub mod bare;
pub mod child;
pub mod clock;
pub mod connections;
pub mod cpu;
pub mod floor;
pub mod host;
pub mod ipc;
pub mod link;
pub mod net;
pub mod oracle;
pub mod pattern;
pub mod pin;
mod pubsub;
pub mod regret;
pub mod report;
pub mod rounds;
pub mod side;
pub mod spin;
pub mod stats;
pub mod table;
pub mod threads;
pub mod truth;
pub mod wires;
