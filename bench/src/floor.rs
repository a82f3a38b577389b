//! What the machine itself costs: a line between two processors, a system call, a copy, a wake-up.
//!
//! No interface between two processes can be faster than row `floor`, and none that sleeps can wake faster than row
//! `wake`; `syscall` and `memcpy` say what a path through the kernel, and a path that copies, pay at least.

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use zcmi_ring::View;
use zcmi_ring::sync::{AtomicU64, Ordering, fence};

use crate::clock;
use crate::link::{Link, LinkError};
use crate::report::Row;
use crate::rounds::Observation;
use crate::side::{Connected, DATA_OFFSET, SideError};
use crate::spin::{LIMIT, Patience, Stalled};
use crate::stats::Latencies;

/// Row `floor`: one word in a line of its own for each side, each written by one and read by the other.
#[derive(Debug)]
pub struct Line {
    ours: View<AtomicU64>,
    theirs: View<AtomicU64>,
    sent: u64,
    received: u64,
}

impl Line {
    /// The bytes of a side's region: its header and a page.
    pub const REGION_BYTES: usize = DATA_OFFSET + 4096;

    /// Opens one end.
    ///
    /// # Errors
    /// A region without room for a word.
    pub fn open(sides: &Connected) -> Result<Self, SideError> {
        let (ours, theirs) = (sides.ours.view(DATA_OFFSET, 1)?, sides.theirs.view(DATA_OFFSET, 1)?);
        Ok(Self { ours, theirs, sent: 0, received: 0 })
    }
}

impl Link for Line {
    // The upper half counts messages, so that equal words in a row are told apart.
    #[inline]
    fn send_word(&mut self, word: u64) -> Result<(), LinkError> {
        self.sent += 1;
        self.ours.at(0).store(self.sent << 32 | word & 0xFFFF_FFFF, Ordering::Release);
        Ok(())
    }

    #[inline]
    fn receive_word(&mut self) -> Result<u64, LinkError> {
        let mut patience = Patience::new();
        let due = self.received + 1;
        loop {
            let found = self.theirs.at(0).load(Ordering::Relaxed);
            if found >> 32 == due {
                // Pairs with the release store of `send_word`.
                fence(Ordering::Acquire);
                self.received = due;
                return Ok(found & 0xFFFF_FFFF);
            }
            patience.turn()?;
        }
    }
}

/// Row `wake`: each side sleeps on its eventfd until the other writes it.
#[derive(Debug)]
pub struct Sleeper {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Sleeper {
    /// A pair of eventfds: ours first.
    ///
    /// # Errors
    /// The system has no more descriptors.
    pub fn descriptors() -> Result<(OwnedFd, OwnedFd), LinkError> {
        Ok((eventfd(0, EventfdFlags::CLOEXEC)?, eventfd(0, EventfdFlags::CLOEXEC)?))
    }

    /// Opens one end, which sleeps on `ours` and wakes `theirs`.
    #[must_use]
    pub fn new(ours: OwnedFd, theirs: OwnedFd) -> Self {
        Self { ours, theirs }
    }
}

impl Link for Sleeper {
    fn send_word(&mut self, word: u64) -> Result<(), LinkError> {
        // An eventfd cannot carry 0.
        rustix::io::write(&self.theirs, &(word + 1).to_ne_bytes())?;
        Ok(())
    }

    fn receive_word(&mut self) -> Result<u64, LinkError> {
        let limit = Timespec { tv_sec: i64::try_from(LIMIT.as_secs())?, tv_nsec: 0 };
        if poll(&mut [PollFd::new(&self.ours, PollFlags::IN)], Some(&limit))? == 0 {
            return Err(Stalled.into());
        }
        let mut word = [0; 8];
        rustix::io::read(&self.ours, &mut word)?;
        Ok(u64::from_ne_bytes(word) - 1)
    }
}

/// Row `syscall`: the shortest way into the kernel and back.
#[must_use]
pub fn syscall(samples: u64) -> Observation {
    const BATCH: u32 = 64;
    let mut latencies = Latencies::of_batches(BATCH);
    let mut start = Instant::now();
    for _ in 0..samples.div_ceil(u64::from(BATCH)) {
        for _ in 0..BATCH {
            black_box(rustix::process::getppid());
        }
        let end = Instant::now();
        latencies.record_ns(clock::between_ns(start, end));
        start = Instant::now();
    }
    let mut row = Row::new("ipc", "syscall", 0);
    row.msgs_per_s = latencies.quantile_ns(0.5).map(|ns| 1e9 / ns);
    Observation::of_latencies(row, latencies).explained("a system call carries nothing")
}

/// Row `memcpy` at one size: a copy between two buffers of this process, for about as long as `target`.
#[must_use]
pub fn memcpy(bytes: usize, target: Duration) -> Observation {
    // Both begin on a page: on some processors a copy to a destination between two lines takes many times longer.
    const PAGE: usize = 4096;
    let from = vec![1_u8; bytes + PAGE];
    let mut to = vec![2_u8; bytes + PAGE];
    let (from_page, to_page) = (from.as_ptr().align_offset(PAGE), to.as_ptr().align_offset(PAGE));
    let (from, to) = (&from[from_page..][..bytes], &mut to[to_page..][..bytes]);
    let mut latencies = Latencies::of_calls();
    let (begin, cpu) = (Instant::now(), crate::pin::process_cpu_ns());
    let mut start = begin;
    while latencies.samples() < 8 || start.duration_since(begin) < target {
        black_box(&mut *to).copy_from_slice(black_box(from));
        let end = Instant::now();
        latencies.record_ns(clock::between_ns(start, end));
        start = Instant::now();
    }
    let copied = latencies.samples() as f64 * bytes as f64;
    let mut row = Row::new("ipc", "memcpy", bytes);
    row.msgs_per_s = latencies.quantile_ns(0.5).map(|ns| 1e9 / ns);
    row.bytes_per_s = row.msgs_per_s.map(|rate| rate * bytes as f64);
    row.cpu_s_per_gb = Some((crate::pin::process_cpu_ns() - cpu).max(1) as f64 / copied);
    row.copied_user_per_byte = Some(1.0);
    row.copied_kernel_per_byte = Some(0.0);
    Observation::of_latencies(row, latencies).explained("not part of a copy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_and_a_call_take_time() {
        let copy = memcpy(1 << 20, Duration::from_millis(2));
        assert!(copy.row.bytes_per_s.unwrap() > 1e6 && copy.row.p50_ns.unwrap() > 1.0);
        let call = syscall(640);
        assert!(call.row.p50_ns.unwrap() > 1.0);
        assert_eq!(call.row.samples, Some(10));
    }
}
