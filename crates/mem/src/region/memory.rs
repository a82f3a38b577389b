//! How much memory a new region may take: what the machine has left, and what every control group above us allows.
//!
//! A memfd is not bounded by the size of `/dev/shm`, and populating one past a control group's limit ends in the OOM
//! killer and not in an errno. So a region is compared with these numbers before its first page is touched.
//!
//! Units are bytes. The answer is a moment's: another process may take the memory in between, which nothing here can
//! prevent. Swap is not counted, and neither are huge pages, which have a pool of their own (see [`free_huge_pages`]).

use std::fs;
use std::path::{Path, PathBuf};

use super::HugePage;

/// What bounded the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitSource {
    /// `MemAvailable` of `/proc/meminfo`.
    Machine,
    /// A control group, named by the directory that holds its limit.
    ControlGroup(PathBuf),
    /// The pool of huge pages of this size.
    HugePages(HugePage),
}

impl core::fmt::Display for LimitSource {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Machine => f.write_str("the machine's available memory"),
            Self::ControlGroup(directory) => write!(f, "the control group {}", directory.display()),
            Self::HugePages(page) => write!(f, "the pool of huge pages of {} bytes", page.bytes()),
        }
    }
}

/// Memory that is available now, and what bounds it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Available {
    /// The smallest of all that bounds us.
    pub bytes: u64,
    /// Which one that is.
    pub source: LimitSource,
}

/// Why the available memory could not be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// A file of the kernel could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file of the kernel does not hold the line that it should.
    #[error("{path} has no usable {field}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The line that was looked for.
        field: &'static str,
    },
}

/// The memory that this process may still take.
///
/// The smaller of `MemAvailable` and, for each control group from ours up to the root of what is mounted, its limit
/// less its usage, where clean file pages count as free (they are reclaimed before anything is killed).
///
/// # Errors
/// If `/proc` does not say. A control group that is not mounted is no error: it does not bound us visibly.
///
/// # Kernel
/// Version 1 (`memory.limit_in_bytes`) and version 2 (`memory.max`), whichever has the memory controller.
///
/// # Sources
/// proc_meminfo(5), cgroups(7), and the kernel's Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
pub fn available() -> Result<Available, MemoryError> {
    available_under(Path::new("/"))
}

/// Huge pages of this size that are neither in use nor promised to somebody.
///
/// # Errors
/// If the kernel has no pool of that size.
pub fn free_huge_pages(page: HugePage) -> Result<u64, MemoryError> {
    let pool = PathBuf::from(format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page.bytes() >> 10));
    let number = |name: &'static str| {
        let path = pool.join(name);
        read(&path)?.trim().parse::<u64>().map_err(|_| MemoryError::Field { path, field: name })
    };
    Ok(number("free_hugepages")?.saturating_sub(number("resv_hugepages")?))
}

fn read(path: &Path) -> Result<String, MemoryError> {
    fs::read_to_string(path).map_err(|source| MemoryError::Read { path: path.to_owned(), source })
}

/// As [`available`], with all files looked for below `root`, which tests put in place of `/`.
fn available_under(root: &Path) -> Result<Available, MemoryError> {
    let meminfo = root.join("proc/meminfo");
    let kibibytes =
        field(&read(&meminfo)?, "MemAvailable:").ok_or(MemoryError::Field { path: meminfo, field: "MemAvailable" })?;
    let mut least = Available { bytes: kibibytes.saturating_mul(1024), source: LimitSource::Machine };

    let groups = read(&root.join("proc/self/cgroup"))?;
    let mounts = read(&root.join("proc/self/mountinfo"))?;
    for hierarchy in [Hierarchy::One, Hierarchy::Two] {
        let Some(group) = hierarchy.group(&groups) else { continue };
        for (top, directory) in hierarchy.directories(group, &mounts) {
            let top = below(root, &top);
            let mut directory = below(root, &directory);
            loop {
                if let Some(bytes) = hierarchy.room(&directory)
                    && bytes < least.bytes
                {
                    least = Available { bytes, source: LimitSource::ControlGroup(directory.clone()) };
                }
                if directory == top || !directory.pop() {
                    break;
                }
            }
        }
    }
    Ok(least)
}

/// Puts an absolute path below `root`.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// The two versions of control groups; a machine may have both mounted, with the memory controller in one of them.
#[derive(Clone, Copy)]
enum Hierarchy {
    One,
    Two,
}

impl Hierarchy {
    /// Our group in `/proc/self/cgroup`, as a path in its hierarchy.
    fn group(self, groups: &str) -> Option<&str> {
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let ours = match self {
                Self::One => controllers.split(',').any(|name| name == "memory"),
                Self::Two => controllers.is_empty(),
            };
            ours.then_some(path)
        })
    }

    /// Where the group is visible: pairs of the mount's directory and the group's, from `/proc/self/mountinfo`.
    ///
    /// A container may see only a part of the hierarchy (the mount's root), or be told a path that is not below it;
    /// then the mount's own directory is the nearest that can be asked.
    fn directories(self, group: &str, mounts: &str) -> Vec<(PathBuf, PathBuf)> {
        let mut found = Vec::new();
        for line in mounts.lines() {
            let Some((mount, kind)) = line.split_once(" - ") else { continue };
            let mut kind = kind.split(' ');
            let (Some(name), options) = (kind.next(), kind.nth(1).unwrap_or("")) else { continue };
            let ours = match self {
                Self::One => name == "cgroup" && options.split(',').any(|option| option == "memory"),
                Self::Two => name == "cgroup2",
            };
            let mut mount = mount.split(' ').skip(3);
            let (true, Some(root), Some(top)) = (ours, mount.next(), mount.next()) else { continue };
            let top = PathBuf::from(unescape(top));
            let rest = Path::new(group).strip_prefix(unescape(root)).ok();
            let rest = rest.filter(|rest| rest.components().all(|part| part != std::path::Component::ParentDir));
            let directory = rest.map_or_else(|| top.clone(), |rest| top.join(rest));
            // `join("")` would leave a slash at the end, which never equals the mount's directory.
            found.push((top, directory.components().collect()));
        }
        found
    }

    /// What a group's limit leaves, or nothing where it has none (or the directory is no group of ours).
    fn room(self, directory: &Path) -> Option<u64> {
        let (limit, usage) = match self {
            Self::One => ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            Self::Two => ("memory.max", "memory.current"),
        };
        let number = |name| fs::read_to_string(directory.join(name)).ok()?.trim().parse::<u64>().ok();
        // `memory.max` says "max" for none, which is no number; version 1 says the largest multiple of a page.
        let limit = number(limit).filter(|&limit| limit < i64::MAX as u64 - (1 << 20))?;
        let usage = number(usage)?;
        let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
        let prefix = match self {
            Self::One => "total_",
            Self::Two => "",
        };
        let of = |name: &str| field(&stat, &format!("{prefix}{name} ")).unwrap_or(0);
        let (dirty, writeback) = match self {
            Self::One => (of("dirty"), of("writeback")),
            Self::Two => (of("file_dirty"), of("file_writeback")),
        };
        let clean = (of("active_file") + of("inactive_file")).saturating_sub(dirty + writeback);
        Some(limit.saturating_sub(usage.saturating_sub(clean)))
    }
}

/// Undoes the octal escapes of mountinfo (space, tab, newline, backslash).
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that stands for `/`, removed when it drops.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, groups: &str, mounts: &str) -> Self {
            let path = std::env::temp_dir().join(format!("zcmi-memory-{name}-{}", std::process::id()));
            let root = Self(path);
            root.file("proc/meminfo", "MemTotal:  4096 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\n");
            root.file("proc/self/cgroup", groups);
            root.file("proc/self/mountinfo", mounts);
            root
        }

        fn file(&self, name: &str, text: &str) {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().expect("a file lies in a directory")).expect("a temporary directory");
            fs::write(path, text).expect("a temporary file");
        }

        fn available(&self) -> (u64, LimitSource) {
            let Available { bytes, source } = available_under(&self.0).expect("all files are there");
            (bytes, source)
        }

        fn group(&self, name: &str) -> LimitSource {
            LimitSource::ControlGroup(self.0.join(name))
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).expect("our own directory");
        }
    }

    const TWO: &str = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
    const ONE: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                       32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n";

    #[test]
    fn the_machine_bounds_where_no_group_does() {
        let root = Root::new("machine", "0::/a\n", TWO);
        root.file("sys/fs/cgroup/a/memory.max", "max\n");
        root.file("sys/fs/cgroup/a/memory.current", "4096\n");
        assert_eq!(root.available(), (2048 * 1024, LimitSource::Machine));
    }

    #[test]
    fn every_ancestor_of_version_two_bounds() {
        let root = Root::new("two", "0::/a/b\n", TWO);
        root.file("sys/fs/cgroup/a/memory.max", "1000000\n");
        root.file("sys/fs/cgroup/a/memory.current", "900000\n");
        root.file(
            "sys/fs/cgroup/a/memory.stat",
            "active_file 1000\ninactive_file 500\nfile_dirty 300\nfile_writeback 200\n",
        );
        root.file("sys/fs/cgroup/a/b/memory.max", "1500000\n");
        root.file("sys/fs/cgroup/a/b/memory.current", "1000\n");
        assert_eq!(root.available(), (101_000, root.group("sys/fs/cgroup/a")));
    }

    #[test]
    fn version_one_is_read_where_it_has_the_memory_controller() {
        let root = Root::new("one", "4:memory:/x/y\n1:cpu:/\n0::/\n", ONE);
        root.file("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        root.file("sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n");
        root.file("sys/fs/cgroup/memory/x/y/memory.limit_in_bytes", "500000\n");
        root.file("sys/fs/cgroup/memory/x/y/memory.usage_in_bytes", "200000\n");
        root.file("sys/fs/cgroup/memory/x/y/memory.stat", "active_file 77\ntotal_active_file 1000\ntotal_dirty 100\n");
        assert_eq!(root.available(), (300_900, root.group("sys/fs/cgroup/memory/x/y")));
    }

    #[test]
    fn a_container_that_sees_a_part_of_the_hierarchy_asks_that_part() {
        let mounts = "30 23 0:26 /machine/box /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
        for (name, group) in [("part", "0::/machine/box\n"), ("outside", "0::/../other\n")] {
            let root = Root::new(name, group, mounts);
            root.file("sys/fs/cgroup/memory.max", "4096\n");
            root.file("sys/fs/cgroup/memory.current", "0\n");
            assert_eq!(root.available(), (4096, root.group("sys/fs/cgroup")));
        }
    }

    #[test]
    fn usage_above_the_limit_leaves_nothing() {
        let root = Root::new("over", "0::/\n", TWO);
        root.file("sys/fs/cgroup/memory.max", "4096\n");
        root.file("sys/fs/cgroup/memory.current", "9000\n");
        assert_eq!(root.available().0, 0);
    }

    #[test]
    fn a_missing_line_is_an_error_that_names_it() {
        let root = Root::new("missing", "0::/\n", TWO);
        root.file("proc/meminfo", "MemTotal: 1 kB\n");
        let error = available_under(&root.0).expect_err("no MemAvailable");
        assert!(matches!(error, MemoryError::Field { field: "MemAvailable", .. }), "{error:?}");
    }

    #[test]
    fn this_machine_has_some() {
        let here = available().expect("a Linux machine with /proc");
        assert!(here.bytes > 0, "{here:?}");
    }
}
