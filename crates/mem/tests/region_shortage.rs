//! Too little of anything is a typed error at creation: never a signal, never a kill, and nothing is left behind.

mod region_rig;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use region_rig::{child_command, has_program, is_child, is_root, passed, residue, run_child, this_program};
use zcmi_mem::region::{LimitSource, Region, RegionError, RegionKind};

const MIB: usize = 1 << 20;

#[test]
fn absurd_sizes_are_errors() {
    for bytes in [0, usize::MAX, usize::MAX - 4096, isize::MAX as usize] {
        let error = Region::options(bytes).create().expect_err("no region has that size");
        assert!(matches!(error, RegionError::Size { bytes: refused } if refused == bytes), "{error:?}");
    }
}

#[test]
fn more_than_the_machine_has_is_refused_with_the_numbers() {
    let bytes = 1_usize << 50;
    for kind in [RegionKind::SealedMemfd, RegionKind::Anonymous, RegionKind::SystemV { key: 0 }] {
        let error = Region::options(bytes).kind(kind.clone()).create().expect_err("a pebibyte");
        let RegionError::NotEnoughMemory { needed, available, .. } = error else { panic!("{kind:?}: {error:?}") };
        assert!(needed >= (bytes + 4096) as u64 && available > 0 && available < needed);
    }
}

#[test]
fn a_wake_page_that_no_peer_would_map_is_refused() {
    let error = Region::options(MIB).kind(RegionKind::WakePage).create().expect_err("header and a mebibyte");
    assert!(matches!(error, RegionError::WakePageSize { most: MIB, .. }), "{error:?}");
    Region::options(MIB - 4096).kind(RegionKind::WakePage).create().expect("a mebibyte in all");
}

/// The child's part under a `/dev/shm` of one mebibyte.
fn in_tiny_shm() {
    let used = || std::fs::read_dir("/dev/shm").expect("mounted by the parent").count();
    assert_eq!(used(), 0, "the tmpfs of this test is empty");
    let before = residue();
    let shm = |bytes| Region::options(bytes).kind(RegionKind::PosixShm { name: "zcmi-tiny".into() }).create();
    let error = shm(4 * MIB).expect_err("one mebibyte has no room for four");
    assert!(
        matches!(&error, RegionError::System { call: "fallocate", source }
        if source.raw_os_error() == Some(libc::ENOSPC)),
        "{error:?}"
    );
    assert_eq!((used(), residue()), (0, before));
    let small = shm(MIB / 2).expect("half a mebibyte fits");
    assert_eq!(used(), 1);
    drop(small);
    assert_eq!(used(), 0);
    // A file on tmpfs is no different, and memfds do not care how large `/dev/shm` is.
    let path = PathBuf::from("/dev/shm/zcmi-file");
    let error = Region::options(4 * MIB).kind(RegionKind::MappedFile { path }).create().expect_err("no room");
    assert!(matches!(error, RegionError::System { call: "fallocate", .. }), "{error:?}");
    assert_eq!(used(), 0);
    Region::options(4 * MIB).create().expect("a memfd of four mebibytes");
    println!("tiny shm: checked");
}

#[test]
fn a_tiny_dev_shm_is_an_error_and_no_signal() {
    const NAME: &str = "a_tiny_dev_shm_is_an_error_and_no_signal";
    if is_child(NAME) {
        return in_tiny_shm();
    }
    if !has_program("unshare") {
        println!("SKIP: a mount namespace takes the program unshare");
        return;
    }
    let mount = "mount -t tmpfs -o size=1m zcmi-tiny /dev/shm || exit 77; exec \"$0\" \"$@\"";
    let mut prefix = vec!["unshare", "--mount", "--propagation", "private"];
    if !is_root() {
        prefix.extend(["--user", "--map-root-user"]);
    }
    prefix.extend(["sh", "-c", mount]);
    let output = child_command(&prefix, &this_program(), NAME).output().expect("unshare starts");
    if output.status.code() == Some(77) || (!is_root() && output.stdout.is_empty()) {
        println!("SKIP: no tmpfs can be mounted: {}", String::from_utf8_lossy(&output.stderr).trim());
        return;
    }
    assert!(passed(&output).contains("tiny shm: checked"));
}

/// A control group of this test, removed when it drops.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).expect("a control group without processes");
    }
}

/// Makes a control group that may have `bytes`, or says why that is impossible.
fn limited_group(bytes: usize) -> Result<Group, String> {
    let name = format!("zcmi-region-{}", std::process::id());
    let tops = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
    let mut reasons = Vec::new();
    for (top, limit) in tops {
        let directory = Path::new(top).join(&name);
        if let Err(error) = std::fs::create_dir(&directory) {
            reasons.push(format!("{top}: {error}"));
            continue;
        }
        let group = Group(directory);
        match std::fs::write(group.0.join(limit), bytes.to_string()) {
            Ok(()) => return Ok(group),
            // Where there is no such file the directory is no control group with a memory controller.
            Err(error) => reasons.push(format!("{top}/{name}/{limit}: {error}")),
        }
    }
    Err(reasons.join("; "))
}

#[test]
fn a_control_group_bounds_a_region_before_the_oom_killer_does() {
    const NAME: &str = "a_control_group_bounds_a_region_before_the_oom_killer_does";
    if is_child(NAME) {
        // The parent writes a line once this process is in its group.
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).expect("the parent's word");
        let group = PathBuf::from(line.trim());
        for kind in [RegionKind::SealedMemfd, RegionKind::Anonymous, RegionKind::SystemV { key: 0 }] {
            let error = Region::options(512 * MIB).kind(kind).create().expect_err("64 MiB is the limit");
            let RegionError::NotEnoughMemory { available, limit_source, .. } = error else { panic!("{error:?}") };
            assert!(available <= 64 * MIB as u64);
            assert_eq!(limit_source, LimitSource::ControlGroup(group.clone()));
        }
        Region::options(8 * MIB).create().expect("8 MiB fit");
        // The largest that is accepted must be survived: found by asking for less until it is.
        let mut bytes = 64 * MIB;
        let largest = loop {
            match Region::options(bytes).create() {
                Ok(region) => break region,
                Err(RegionError::NotEnoughMemory { .. }) => bytes -= 64 << 10,
                Err(error) => panic!("{error:?}"),
            }
        };
        assert!(largest.len() > 32 * MIB, "only {} bytes of a group of 64 MiB", largest.len());
        drop(largest);
        println!("control group: checked");
        return;
    }
    let group = match limited_group(64 * MIB) {
        Ok(group) => group,
        Err(reason) => {
            println!("SKIP: no control group can be limited: {reason}");
            return;
        }
    };
    let mut command = child_command(&[], &this_program(), NAME);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("the child starts");
    let joined = std::fs::write(group.0.join("cgroup.procs"), child.id().to_string());
    let mut stdin = child.stdin.take().expect("piped");
    // Written also on failure, so that the child ends.
    writeln!(stdin, "{}", group.0.display()).expect("the child listens");
    drop(stdin);
    let output = child.wait_with_output().expect("our own child");
    joined.expect("the child can be put into the group");
    assert!(passed(&output).contains("control group: checked"));
}

#[test]
fn a_limit_on_file_sizes_is_an_error_and_no_signal() {
    const NAME: &str = "a_limit_on_file_sizes_is_an_error_and_no_signal";
    if is_child(NAME) {
        let error = Region::options(4 * MIB).create().expect_err("128 KiB is the limit at most");
        assert!(matches!(error, RegionError::FileSizeLimit { limit: 65_536 | 131_072, .. }), "{error:?}");
        Region::options(16 << 10).create().expect("16 KiB fit");
        println!("file size: checked");
        return;
    }
    // Counted in kibibytes by one shell and in blocks of 512 bytes by the other: the child's own call sees bytes.
    let limit = "ulimit -f 128; exec \"$0\" \"$@\"";
    let text = run_child(child_command(&["sh", "-c", limit], &this_program(), NAME));
    assert!(text.contains("file size: checked"));
}

/// Runs this test's child with one system call failing, by strace; where that is impossible the reason is printed.
fn with_failing(call: &str, how: &str, name: &str) -> Option<String> {
    if !has_program("strace") {
        println!("SKIP: failing system calls takes strace");
        return None;
    }
    let inject = format!("inject={call}:{how}");
    let trace = format!("trace={call}");
    let log = std::env::temp_dir().join(format!("zcmi-strace-{call}-{}", std::process::id()));
    let prefix = ["strace", "-f", "-qq", "-o", log.to_str()?, "-e", &trace, "-e", &inject];
    let mut command = child_command(&prefix, &this_program(), name);
    let output = command.env("ZCMI_REGION_FAILS", call).output().expect("strace starts");
    let calls = std::fs::read_to_string(&log).unwrap_or_default();
    let _absent = std::fs::remove_file(&log);
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("Operation not permitted") && output.stdout.is_empty() {
        println!("SKIP: this process may not trace its child: {}", text.trim());
        return None;
    }
    let text = passed(&output);
    assert!(calls.contains("(INJECTED)"), "no {call} was made to fail: {calls}");
    Some(text)
}

#[test]
fn each_failing_call_is_named_and_leaves_nothing() {
    const NAME: &str = "each_failing_call_is_named_and_leaves_nothing";
    if is_child(NAME) {
        let fails = std::env::var("ZCMI_REGION_FAILS").expect("set by the parent");
        let kinds = match fails.as_str() {
            "shmget" | "shmat" => vec![RegionKind::SystemV { key: 0 }],
            "memfd_create" => vec![RegionKind::SealedMemfd, RegionKind::WakePage],
            _ => vec![
                RegionKind::SealedMemfd,
                RegionKind::PosixShm { name: format!("zcmi-fails-{fails}") },
                RegionKind::MappedFile { path: std::env::temp_dir().join(format!("zcmi-fails-{fails}")) },
            ],
        };
        let before = residue();
        for kind in kinds {
            let error = Region::options(4096).kind(kind.clone()).create().expect_err("the call fails");
            let call = match error {
                RegionError::System { call, .. } => call,
                RegionError::Fork(refused) => refused.call,
                other => panic!("{kind:?}: {other:?}"),
            };
            assert!(call.starts_with(&fails), "{call} failed, and not {fails}");
            assert_eq!(residue(), before, "{kind:?}");
            let names = [Path::new("/dev/shm").to_path_buf(), std::env::temp_dir()];
            assert!(names.iter().all(|place| !place.join(format!("zcmi-fails-{fails}")).exists()), "{kind:?}");
        }
        println!("failing {fails}: checked");
        return;
    }
    let calls = [
        ("memfd_create", "error=EMFILE"),
        ("fchmod", "error=EPERM"),
        ("ftruncate", "error=EPERM"),
        ("fallocate", "error=ENOSPC"),
        ("madvise", "error=ENOMEM"),
        ("shmget", "error=ENOSPC"),
        ("shmat", "error=ENOMEM"),
    ];
    for (call, how) in calls {
        let Some(text) = with_failing(call, how, NAME) else { return };
        assert!(text.contains(&format!("failing {call}: checked")), "{text}");
    }
}

#[test]
fn an_interrupted_reservation_goes_on() {
    const NAME: &str = "an_interrupted_reservation_goes_on";
    if is_child(NAME) {
        let region = Region::options(4096).create().expect("the second try reserves");
        assert!(region.facts().reserved.is_yes());
        println!("interrupted: checked");
        return;
    }
    let Some(text) = with_failing("fallocate", "error=EINTR:when=1..3", NAME) else { return };
    assert!(text.contains("interrupted: checked"));
}
