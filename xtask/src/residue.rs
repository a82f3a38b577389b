//! What a run left behind: compared with what was there before it.
//!
//! Objects that the whole machine shares are told from those of others by their name: whatever a test creates in such a
//! place has `zcmi` in its name. Its temporary files and runtime directories lie below a directory of the run, where
//! nobody else writes, so there everything counts.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::command;

/// Directories of named objects that the whole machine shares.
const SHARED_DIRECTORIES: &[&str] = &["/dev/shm", "/run/netns", "/run/zcmi/p", "/run/zcmi/s", "/sys/class/net", "/tmp"];

/// What is on the machine at one moment.
pub(crate) struct Snapshot {
    things: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at the machine.
    pub(crate) fn take() -> Self {
        let mut things = BTreeSet::new();
        for directory in SHARED_DIRECTORIES {
            // Below a runtime directory the names are numbers, and all of them are ours.
            let all = directory.starts_with("/run/zcmi");
            things.extend(names(Path::new(directory)).into_iter().filter(|name| all || name.contains("zcmi")));
        }
        let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
        things.extend(unused_segments(&segments));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        things.extend(mounts.lines().filter(|line| line.contains("zcmi")).map(|line| format!("mount {line}")));
        let pages = fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
        things.insert(format!("vm.nr_hugepages = {}", pages.trim()));
        Self { things }
    }

    /// What is here now and was not in `before`, together with the files below `own` and the processes of this run.
    pub(crate) fn left_since(&self, before: &Self, own: &Path) -> Vec<String> {
        let mut left: Vec<String> = self.things.difference(&before.things).cloned().collect();
        left.extend(names(own));
        left.extend(command::left_running().into_iter().map(|(number, name)| format!("process {number} ({name})")));
        left
    }
}

/// The paths of what lies in `directory`; a directory that is not there holds nothing.
fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path().display().to_string()).collect()
}

/// The System V segments that no process has attached, from the kernel's table.
fn unused_segments(table: &str) -> Vec<String> {
    // key shmid perms size cpid lpid nattch uid ...
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(6) == Some(&"0")).map(|row| format!("System V segment {}", row[1])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_left_in_the_directory_of_the_run_is_found() {
        let own = std::env::temp_dir().join(format!("zcmi-residue-test-{}", std::process::id()));
        fs::create_dir(&own).expect("a directory can be made");
        let before = Snapshot { things: BTreeSet::new() };
        let clean = before.left_since(&before, &own);
        fs::write(own.join("forgotten"), "").expect("a file can be made");
        let left = before.left_since(&before, &own);
        fs::remove_dir_all(&own).expect("the directory can be removed");
        let files = |left: &[String]| left.iter().filter(|name| name.ends_with("/forgotten")).count();
        assert_eq!((files(&clean), files(&left)), (0, 1));
    }

    #[test]
    fn a_new_object_is_left_and_an_old_one_is_not() {
        let before = Snapshot { things: BTreeSet::from(["old".to_string()]) };
        let after = Snapshot { things: BTreeSet::from(["old".to_string(), "new".to_string()]) };
        let left = after.left_since(&before, Path::new("/nonexistent"));
        assert!(left.contains(&"new".to_string()) && !left.contains(&"old".to_string()), "{left:?}");
    }

    #[test]
    fn only_segments_without_users_are_listed() {
        let table = "key shmid perms size cpid lpid nattch uid\n 0 7 600 4096 1 1 0 0\n 0 8 600 4096 1 1 2 0\n";
        assert_eq!(unused_segments(table), ["System V segment 7"]);
    }
}
