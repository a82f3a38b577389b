//! The facts about the machine and the build that every report carries.
//!
//! What cannot be known is omitted and named in [`Host::na`] with a reason, as in a report's rows.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::clock;

/// Where and with what a report was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Processors that the process may run on.
    pub cores: u64,
    /// The frequency governor of the first processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub governor: Option<String>,
    /// Huge pages in the kernel's pools, by page size in KiB.
    #[serde(default)]
    pub hugepages: BTreeMap<String, u64>,
    /// The commit of the source tree, with `-dirty` behind it where the tree differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// When the report was begun, in UTC.
    pub date: String,
    /// What one reading of the clock costs; a round trip contains one reading, and it is not subtracted.
    pub clock_ns: f64,
    /// Why a fact is absent.
    #[serde(default)]
    pub na: BTreeMap<String, String>,
}

impl Host {
    /// The facts about this machine, now.
    #[must_use]
    pub fn here() -> Self {
        let mut na = BTreeMap::new();
        let mut known = |name: &str, fact: Result<String, &str>| {
            fact.map_err(|reason| na.insert(name.to_owned(), reason.to_owned())).ok()
        };
        let cpu = known("cpu", processor());
        let governor = known("governor", governor());
        let commit = known("commit", commit());
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu,
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
            governor,
            hugepages: hugepages(),
            commit,
            date: utc(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())),
            clock_ns: clock::cost_ns(),
            na,
        }
    }
}

fn processor() -> Result<String, &'static str> {
    let text = fs::read_to_string("/proc/cpuinfo").map_err(|_| "/proc/cpuinfo cannot be read")?;
    let line = text.lines().find(|line| line.starts_with("model name")).ok_or("/proc/cpuinfo names no model")?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned()).ok_or("/proc/cpuinfo names no model")
}

fn governor() -> Result<String, &'static str> {
    fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        .map(|name| name.trim().to_owned())
        .map_err(|_| "the kernel offers no frequency governor")
}

fn hugepages() -> BTreeMap<String, u64> {
    let mut pools = BTreeMap::new();
    for entry in fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name.strip_prefix("hugepages-").and_then(|rest| rest.strip_suffix("kB"));
        let count = fs::read_to_string(entry.path().join("nr_hugepages")).ok();
        if let (Some(size), Some(count)) = (size, count.and_then(|text| text.trim().parse().ok())) {
            pools.insert(size.to_owned(), count);
        }
    }
    pools
}

/// Asks git about the source tree that this crate was built from, which a copied binary no longer has.
fn commit() -> Result<String, &'static str> {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
        let output = command.output().map_err(|_| "git is not installed")?;
        if output.status.success() { Ok(output.stdout) } else { Err("the source tree has no commit") }
    };
    let mut name = String::from_utf8_lossy(&git(&["rev-parse", "HEAD"])?).trim().to_owned();
    if !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty() {
        name.push_str("-dirty");
    }
    Ok(name)
}

/// Writes seconds since 1970 as `YYYY-MM-DDThh:mm:ssZ`.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", month + 1, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(utc(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn every_absent_fact_has_a_reason() {
        let host = Host::here();
        for (name, absent) in
            [("cpu", host.cpu.is_none()), ("governor", host.governor.is_none()), ("commit", host.commit.is_none())]
        {
            assert_eq!(host.na.contains_key(name), absent, "{name}");
        }
        assert!(host.cores > 0 && host.clock_ns > 0.0 && !host.kernel.is_empty());
    }
}
