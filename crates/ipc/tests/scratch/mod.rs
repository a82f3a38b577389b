//! What tests of the runtime directory stand on: a directory that goes with the test, and children in other processes.
//!
//! A child is a test of the same binary that is ignored otherwise; it is told its directory by an environment variable
//! and talks by lines of text. It ends when its parent's end of its standard input closes, so it cannot stay behind.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A user that nobody is.
pub(crate) const STRANGER: u32 = 61001;

/// How long is waited for what happens soon.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const DIRECTORY: &str = "ZCMI_TEST_CHILD_DIRECTORY";

/// Waits for what happens soon, and fails if it does not.
pub(crate) fn soon(what: &str, mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::yield_now();
    }
}

/// How a child's answers begin, among what the test harness prints.
const ANSWER: &str = "answer: ";

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory of mode 0700 that is removed with all its content.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("zcmi-test-{}-{number}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).expect("a directory of the test's own");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let removed = std::fs::remove_dir_all(&self.0);
        if !std::thread::panicking() {
            removed.expect("removing the test's directory");
        }
    }
}

/// A process that runs one ignored test of this binary.
#[derive(Debug)]
pub(crate) struct Child {
    process: std::process::Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Child {
    /// Starts the test of this name, as another user if one is given.
    pub(crate) fn start(test: &str, directory: &Path, user: Option<u32>, scratch: &Scratch) -> Self {
        let mut program = std::env::current_exe().expect("this program");
        if user.is_some() {
            // The other user may have no way to where this program was built.
            let copy = scratch.path().join("program");
            if !copy.exists() {
                // By another process: a program that a forked child of this one holds open to write cannot be started.
                let copied = Command::new("cp").args([&program, &copy]).status();
                assert!(copied.expect("cp starts").success(), "a copy of this program");
                std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).expect("chmod");
            }
            std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o711)).expect("chmod");
            program = copy;
        }
        let mut command = Command::new(program);
        if let Some(user) = user {
            command.uid(user).gid(user).current_dir("/");
        }
        Self::run(command, test, directory)
    }

    /// Starts the test of this name by `before`, to which the program and its arguments are added.
    pub(crate) fn start_by(mut before: Command, test: &str, directory: &Path) -> Self {
        before.arg(std::env::current_exe().expect("this program"));
        Self::run(before, test, directory)
    }

    fn run(mut command: Command, test: &str, directory: &Path) -> Self {
        command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(DIRECTORY, directory).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("a child");
        let to = process.stdin.take();
        let from = BufReader::new(process.stdout.take().expect("its output"));
        Self { process, to, from }
    }

    /// The child's next answer.
    pub(crate) fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.from.read_line(&mut line).expect("reading"), 0, "the child ended without an answer");
            // The harness prints the test's name without an end of line first.
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.trim_end().to_owned();
            }
        }
    }

    /// Tells the child a line.
    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.to.as_mut().expect("its input"), "{line}").expect("writing");
    }

    /// Kills the child and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("kill");
        self.process.wait().expect("wait");
    }

    /// Lets the child end by itself; whether it passed.
    pub(crate) fn finish(mut self) -> bool {
        drop(self.to.take());
        self.process.wait().expect("wait").success()
    }

    /// In a child: the directory it is to use; `None` when no parent started it.
    pub(crate) fn directory() -> Option<OsString> {
        std::env::var_os(DIRECTORY)
    }

    /// In a child: answers a line.
    pub(crate) fn answer(line: &str) {
        println!("{ANSWER}{line}");
    }

    /// In a child: the next line of the parent.
    pub(crate) fn heard() -> String {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).expect("reading");
        line.trim_end().to_owned()
    }

    /// In a child: stays until the parent has closed the input or ended.
    pub(crate) fn wait_for_parent() {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).expect("reading");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ended_already = self.process.kill();
        let _ended_already = self.process.wait();
    }
}
