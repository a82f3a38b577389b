//! What the tests of regions share: forged memfds, children that are this very test program, and a look at residue.
#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod sys;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rustix::fs::{MemfdFlags, SealFlags};
use zcmi_mem::region::Region;

/// Says in a child that it is one: the name of its test.
const CHILD: &str = "ZCMI_REGION_CHILD";

/// The seals of a region.
pub(crate) const REGION_SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// Whether this process is the child of the test `name`.
pub(crate) fn is_child(name: &str) -> bool {
    std::env::var(CHILD).is_ok_and(|child| child == name)
}

/// Whether a program can be found.
pub(crate) fn has_program(name: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|directory| directory.join(name).is_file())
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A copy of this test program that every user may run, removed when it drops.
pub(crate) struct Program(PathBuf);

impl Program {
    pub(crate) fn copy(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("zcmi-{name}-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("a temporary directory");
        let program = Self(directory);
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program.0, all).expect("our own directory");
        // By another process: a program that a forked child of this one still holds open to write cannot be started.
        let copied = Command::new("cp").args([std::env::current_exe().expect("/proc"), program.path()]).status();
        assert!(copied.expect("cp starts").success(), "room for the test program");
        program
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.join("program")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("our own directory");
    }
}

/// A command that runs the test `name` of `program` as its child, behind the words of `prefix`.
pub(crate) fn child_command(prefix: &[&str], program: &std::path::Path, name: &str) -> Command {
    let mut command = match prefix.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(CHILD, name);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a child to its end and returns what it printed.
///
/// # Panics
/// If it failed, or ran no test.
pub(crate) fn run_child(mut command: Command) -> String {
    let output = command.output().expect("the child starts");
    passed(&output)
}

pub(crate) fn passed(output: &Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{}:\n{text}", output.status);
    text
}

/// This test program.
pub(crate) fn this_program() -> PathBuf {
    std::env::current_exe().expect("/proc")
}

/// A copy of a region's descriptor, as a peer gets one.
pub(crate) fn passed_on(region: &Region) -> OwnedFd {
    region.descriptor().expect("a kind with a descriptor").try_clone_to_owned().expect("a free descriptor")
}

/// The descriptor that a child was started with as its standard input.
pub(crate) fn given() -> OwnedFd {
    std::io::stdin().as_fd().try_clone_to_owned().expect("a free descriptor")
}

/// A memfd as somebody else could have made it: `head` at its start, memory up to `populated`, size `bytes`, sealed.
pub(crate) fn forged(head: &[u8], bytes: u64, populated: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("forged", flags).expect("memfd_create");
    rustix::fs::ftruncate(&fd, bytes).expect("ftruncate");
    if populated > 0 {
        // Written and not only allocated: tmpfs counts pages that were never filled as holes.
        assert_eq!(rustix::io::pwrite(&fd, &vec![0; populated as usize], 0), Ok(populated as usize));
    }
    if !head.is_empty() {
        assert_eq!(rustix::io::pwrite(&fd, head, 0), Ok(head.len()));
    }
    rustix::fs::fcntl_add_seals(&fd, seals).expect("F_ADD_SEALS");
    fd
}

/// The first bytes of a region, read from its descriptor.
pub(crate) fn header_of(region: &Region) -> [u8; 128] {
    let mut head = [0; 128];
    let fd = region.descriptor().expect("a kind with a descriptor");
    assert_eq!(rustix::io::pread(fd, &mut head, 0), Ok(head.len()));
    head
}

/// The part of `/proc/self/<file>` (`maps` or `smaps`) from where it tells of the region's mapping, if it does.
///
/// By the inode, because other tests of the program have regions too.
pub(crate) fn mapping_of(region: &Region, file: &str) -> Option<String> {
    let inode = rustix::fs::fstat(region.descriptor()?).expect("fstat").st_ino.to_string();
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).expect("/proc");
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.iter().position(|line| line.split_whitespace().nth(4) == Some(&inode))?;
    Some(lines[first..].join("\n"))
}

/// The open descriptors and the mappings of regions of this process: what a failure must leave as it was.
pub(crate) fn residue() -> (usize, usize) {
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("/proc").count();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc");
    (descriptors, maps.lines().filter(|line| line.contains("zcmi-region")).count())
}
