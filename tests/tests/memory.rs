//! Too little memory: a typed error when something is made, and nobody is killed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use zcmi_tests::rig::{Scratch, Track, Worker};

/// A control group of the test's own with a limit of memory; removed when it is dropped.
struct Group(PathBuf);

impl Group {
    fn make(limit_bytes: u64) -> Result<Self, String> {
        let name = format!("zcmi-tests-{}", std::process::id());
        for (top, file) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let group = PathBuf::from(top).join(&name);
            if fs::create_dir(&group).is_err() {
                continue;
            }
            let group = Self(group);
            match fs::write(group.0.join(file), limit_bytes.to_string()) {
                Ok(()) => return Ok(group),
                Err(error) => drop((group, error)),
            }
        }
        Err("no control group with a limit of memory can be made here".to_owned())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes are gone by now; the kernel may need a moment to agree.
        for _ in 0..1000 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            zcmi_tests::rig::pause(std::time::Duration::from_millis(1));
        }
        eprintln!("{} is left behind", self.0.display());
    }
}

#[test]
fn a_control_group_too_small_for_the_pool_is_an_error_and_no_kill() {
    let group = match Group::make(64 << 20) {
        Ok(group) => group,
        Err(reason) => return println!("SKIP: {reason}"),
    };
    let scratch = Scratch::new();
    let mut shell = Command::new("sh");
    // The shell enters the group and becomes the worker.
    shell.args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$1\""]).arg(&group.0);
    let mut worker = Worker::start_by(shell, scratch.path());
    let mut reader = Worker::start(scratch.path());
    for _ in 0..3 {
        let error = worker.ask_in_vain("pub id=big service=s max_len=1048576 capacity=256");
        assert!(error.contains("Memory("), "{error}");
    }
    // What fits still works.
    worker.ask("pub id=p service=s tag=1 max_len=1048576 capacity=4 reader_slots=4");
    reader.ask("sub id=s service=s holds=2");
    reader.tell("collect id=s endings=1");
    worker.ask("send id=p n=40 sizes=fixed:1048576");
    worker.ask("end id=p");
    assert_eq!(reader.hear().tracks(), [(1, Track::whole(0, 40))].into());
    drop(worker);
    drop(reader);
}

#[test]
fn more_memory_than_the_machine_has_is_an_error() {
    let scratch = Scratch::new();
    let mut worker = Worker::start(scratch.path());
    for _ in 0..3 {
        let error = worker.ask_in_vain("pub id=p service=s max_len=1073741824 capacity=512 reader_slots=512");
        assert!(error.contains("Memory(") || error.contains("Pool("), "{error}");
    }
    worker.ask("pub id=p service=s");
    worker.ask("send id=p n=10 sizes=fixed:4096");
}

#[test]
fn a_tiny_dev_shm_does_not_matter() {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIP: mounting takes root");
    }
    let scratch = Scratch::new();
    let mut unshare = Command::new("unshare");
    // A private mount namespace, in which /dev/shm has one page.
    let mount = "mount -t tmpfs -o size=4k zcmi-tests /dev/shm && exec \"$0\"";
    unshare.args(["--mount", "--propagation", "private", "sh", "-c", mount]);
    let mut writer = Worker::start_by(unshare, scratch.path());
    let mut reader = Worker::start(scratch.path());
    writer.ask("pub id=p service=s tag=1 max_len=1048576 capacity=16 reader_slots=4");
    reader.ask("sub id=s service=s holds=2");
    reader.tell("collect id=s endings=1");
    writer.ask("send id=p n=100 sizes=fixed:1048576");
    writer.ask("end id=p");
    assert_eq!(reader.hear().tracks(), [(1, Track::whole(0, 100))].into());
}
