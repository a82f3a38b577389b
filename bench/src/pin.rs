//! Processors for the two sides of a measurement, and the processor time that both used.

use std::fs;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// The processors of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// For the process that drives and measures.
    pub near: usize,
    /// For its peer.
    pub far: usize,
}

/// Why nothing could be pinned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// Two sides need two processors, else the figures are those of the scheduler.
    #[error("two pinned sides need 2 processors and this process may run on {allowed}; allow more with taskset")]
    TooFew {
        /// How many it may run on.
        allowed: usize,
    },
    /// The system refused.
    #[error("{call} for processor {cpu} failed")]
    System {
        /// The call.
        call: &'static str,
        /// The processor concerned.
        cpu: usize,
        /// What the system said.
        source: rustix::io::Errno,
    },
}

/// Chooses two processors that this thread may run on, of different cores where there are such.
///
/// # Errors
/// [`PinError::TooFew`] where fewer than two are allowed: a reason to skip, not a failure.
pub fn pair() -> Result<Pair, PinError> {
    let allowed =
        sched_getaffinity(None).map_err(|source| PinError::System { call: "sched_getaffinity", cpu: 0, source })?;
    let list: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    choose(&list, siblings)
}

fn choose(allowed: &[usize], siblings: impl Fn(usize) -> Vec<usize>) -> Result<Pair, PinError> {
    let (Some(&near), Some(&second)) = (allowed.first(), allowed.get(1)) else {
        return Err(PinError::TooFew { allowed: allowed.len() });
    };
    let same_core = siblings(near);
    let far = allowed.iter().skip(1).copied().find(|cpu| !same_core.contains(cpu)).unwrap_or(second);
    Ok(Pair { near, far })
}

/// The processors that share a core with `cpu`, itself among them; none where the kernel does not say.
fn siblings(cpu: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let text = fs::read_to_string(path).unwrap_or_default();
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// A pinned thread; dropping it restores where the thread may run.
#[derive(Debug)]
pub struct Pinned {
    before: CpuSet,
}

/// Pins this thread to one processor until the guard is dropped, which must happen on the same thread.
///
/// # Errors
/// Whatever the system refuses.
pub fn pin(cpu: usize) -> Result<Pinned, PinError> {
    let system = |call| move |source| PinError::System { call, cpu, source };
    let before = sched_getaffinity(None).map_err(system("sched_getaffinity"))?;
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).map_err(system("sched_setaffinity"))?;
    Ok(Pinned { before })
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What was allowed before can only be refused if an administrator took it away meanwhile.
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// Processor time that this process has used, all its threads and the kernel on their behalf.
#[must_use]
pub fn process_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_processor_is_refused_with_its_count() {
        let refused = choose(&[3], |_| vec![3]).unwrap_err();
        assert!(matches!(refused, PinError::TooFew { allowed: 1 }));
    }

    #[test]
    fn the_peer_gets_another_core_where_there_is_one() {
        let siblings = |cpu: usize| vec![cpu & !1, cpu | 1];
        assert_eq!(choose(&[0, 1, 2, 3], siblings).unwrap(), Pair { near: 0, far: 2 });
        assert_eq!(choose(&[0, 1], siblings).unwrap(), Pair { near: 0, far: 1 });
    }

    #[test]
    fn pinning_ends_with_the_guard() {
        let before = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).find(|cpu| before.is_set(*cpu)).unwrap();
        let pinned = pin(cpu).unwrap();
        assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
        drop(pinned);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }

    #[test]
    fn work_shows_in_the_processor_time() {
        let before = process_cpu_ns();
        let mut sum = 0_u64;
        while process_cpu_ns() == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(process_cpu_ns() > before);
    }
}
