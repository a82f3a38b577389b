//! The processor time that a transfer costs: that of this process, of others that take part, and of the kernel's
//! threads that handle packets when interrupts do not get through with them.
//!
//! What an interrupt handler does on a processor is charged to whoever runs there at the moment. That is mostly one of
//! both ends or `ksoftirqd`, so on a machine with nothing else to do the sum of the three misses little.
//!
//! # Kernel
//! `/proc/PID/schedstat` (`CONFIG_SCHED_INFO`). In a PID namespace of one's own no kernel thread is seen, and the share
//! of `ksoftirqd` is not known.

mod sys;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use crate::pin::process_cpu_ns;

/// Why processor time was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// A process has no clock any more.
    #[error("the processor time of process {process} cannot be read: {source}; read it before it is waited for")]
    Process {
        /// Its number.
        process: i32,
        /// What the system said.
        source: io::Error,
    },
}

/// Processor time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// Of this process.
    pub own_ns: u64,
    /// Of the other processes, together.
    pub others_ns: u64,
    /// Of all `ksoftirqd`, whatever for; none where they cannot be seen.
    pub ksoftirqd_ns: Option<u64>,
}

impl CpuTime {
    /// All that is known.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.own_ns + self.others_ns + self.ksoftirqd_ns.unwrap_or(0)
    }
}

/// Measures processor time from its start on.
#[derive(Debug)]
pub struct CpuMeter {
    others: Vec<Pid>,
    ksoftirqd: Vec<PathBuf>,
    start: CpuTime,
}

impl CpuMeter {
    /// Starts for this process and others: children of it that were not waited for, whose numbers nobody else can get.
    ///
    /// # Errors
    /// If one of the others is gone.
    pub fn start(others: &[Pid]) -> Result<Self, CpuError> {
        let mut meter = Self { others: others.to_vec(), ksoftirqd: ksoftirqd(), start: CpuTime::default() };
        meter.start = meter.now()?;
        Ok(meter)
    }

    /// What was used since the start.
    ///
    /// # Errors
    /// If one of the others was waited for meanwhile.
    pub fn read(&self) -> Result<CpuTime, CpuError> {
        let (start, now) = (self.start, self.now()?);
        Ok(CpuTime {
            own_ns: now.own_ns.saturating_sub(start.own_ns),
            others_ns: now.others_ns.saturating_sub(start.others_ns),
            ksoftirqd_ns: now.ksoftirqd_ns.zip(start.ksoftirqd_ns).map(|(now, start)| now.saturating_sub(start)),
        })
    }

    fn now(&self) -> Result<CpuTime, CpuError> {
        let of = |process: &Pid| {
            let number = process.as_raw_nonzero().get();
            sys::of_process_ns(*process).map_err(|source| CpuError::Process { process: number, source })
        };
        let others_ns = self.others.iter().map(of).sum::<Result<u64, CpuError>>()?;
        Ok(CpuTime { own_ns: process_cpu_ns(), others_ns, ksoftirqd_ns: sum_ns(&self.ksoftirqd) })
    }
}

/// Processor time that all `ksoftirqd` have used since the machine started; none where they cannot be seen.
#[must_use]
pub fn ksoftirqd_cpu_ns() -> Option<u64> {
    sum_ns(&ksoftirqd())
}

/// The directories of all `ksoftirqd`, one for each processor.
fn ksoftirqd() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| is_ksoftirqd(path)).collect()
}

fn is_ksoftirqd(directory: &Path) -> bool {
    let read = |name: &str| fs::read(directory.join(name)).unwrap_or_default();
    // A program may call itself so; a kernel thread is one without a command line.
    read("comm").starts_with(b"ksoftirqd/") && read("cmdline").is_empty()
}

/// The first word of each `schedstat` is the time on a processor.
fn sum_ns(directories: &[PathBuf]) -> Option<u64> {
    let time = |directory: &PathBuf| -> Option<u64> {
        fs::read_to_string(directory.join("schedstat")).ok()?.split_whitespace().next()?.parse().ok()
    };
    if directories.is_empty() { None } else { directories.iter().map(time).sum() }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn work_of_both_processes_is_counted_and_a_process_that_is_gone_is_named() {
        // It counts up to a thousand for each line that it is given.
        let script = "while read line; do i=0; while [ $i -lt 1000 ]; do i=$((i+1)); done; done";
        let mut child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        let process = Pid::from_raw(child.id().cast_signed()).unwrap();
        let meter = CpuMeter::start(&[process]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let stdin = child.stdin.as_mut().unwrap();
        loop {
            stdin.write_all(b"go\n").unwrap();
            let used = meter.read().unwrap();
            if used.own_ns > 0 && used.others_ns > 1_000_000 {
                assert_eq!(used.total_ns(), used.own_ns + used.others_ns + used.ksoftirqd_ns.unwrap_or(0));
                break;
            }
            assert!(Instant::now() < deadline, "{used:?}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(meter.read(), Err(CpuError::Process { process, .. }) if process == child.id().cast_signed()));
    }

    #[test]
    fn a_process_is_not_taken_for_a_kernel_thread() {
        assert!(!is_ksoftirqd(Path::new("/proc/self")));
        match ksoftirqd_cpu_ns() {
            Some(before) => assert!(ksoftirqd_cpu_ns() >= Some(before)),
            None => println!("SKIP: no ksoftirqd in sight, as in a PID namespace of one's own"),
        }
    }
}
