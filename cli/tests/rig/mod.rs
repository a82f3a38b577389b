//! What the tests of the command line share: a place of their own, and processes that are waited for with a bound.
#![allow(dead_code)] // Each test program uses its own part of this.

pub(crate) mod schema;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// The binary under test.
pub(crate) const ZCMI: &str = env!("CARGO_BIN_EXE_zcmi");
/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A directory of this test alone, with a runtime directory in it; gone when the test ends.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("zcmi-cli-test-{}-{number}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).expect("a directory can be made");
        fs::DirBuilder::new().mode(0o700).create(path.join("runtime")).expect("a directory can be made");
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A directory below.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).expect("a directory can be made");
        path
    }

    /// A file below.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("a file can be written");
        path
    }

    /// The command with these arguments, in this place.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(Path::new(ZCMI), arguments)
    }

    /// As [`command`](Self::command), of another copy of the program.
    pub(crate) fn command_of(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.0);
        command.env("ZCMI_RUNTIME_DIR", self.path("runtime")).env("TMPDIR", &self.0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts the command.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running::new(self.command(arguments))
    }

    /// Runs the command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.start(arguments).end()
    }

    /// What lies in the runtime directory beside its two fixed directories.
    pub(crate) fn residue(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for directory in ["runtime/p", "runtime/s"] {
            let entries = fs::read_dir(self.path(directory)).into_iter().flatten();
            found.extend(entries.map(|entry| entry.expect("an entry").path()));
        }
        found
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let removed = fs::remove_dir_all(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    /// The exit code, which must be this one.
    pub(crate) fn expect_code(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        self
    }

    /// What stderr must say.
    pub(crate) fn expect_words(&self, words: &str) -> &Self {
        assert!(self.stderr.contains(words), "`{words}` is not in:\n{}", self.stderr);
        self
    }

    /// stdout as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { status: output.status, stdout: output.stdout, stderr }
    }
}

/// A running process; dropping it kills it.
pub(crate) struct Running {
    child: Child,
    /// Lines of stderr as they come.
    lines: Receiver<String>,
    said: String,
    stdout: Option<std::thread::JoinHandle<Vec<u8>>>,
}

impl Running {
    pub(crate) fn new(mut command: Command) -> Self {
        let mut child = command.spawn().expect("zcmi starts");
        let (sender, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let stdout = child.stdout.take().map(|mut stdout| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                stdout.read_to_end(&mut bytes).expect("stdout can be read");
                bytes
            })
        });
        Self { child, lines, said: String::new(), stdout }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until stderr says this, and returns the line.
    pub(crate) fn wait_for_words(&mut self, words: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(LIMIT);
            let line = line.unwrap_or_else(|error| panic!("`{words}` never came ({error}):\n{}", self.said));
            self.said.push_str(&line);
            self.said.push('\n');
            if line.contains(words) {
                return line;
            }
        }
    }

    /// Gives it bytes on stdin, which must be a pipe.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let stdin = self.child.stdin.as_mut().expect("stdin is a pipe");
        stdin.write_all(bytes).expect("it reads its stdin");
        stdin.flush().expect("it reads its stdin");
    }

    /// Ends its stdin.
    pub(crate) fn close(&mut self) {
        drop(self.child.stdin.take());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it can be signalled");
    }

    /// Waits until it has ended by itself.
    pub(crate) fn end(mut self) -> Ended {
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).expect("a pidfd");
        let limit = Timespec { tv_sec: LIMIT.as_secs() as i64, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).expect("poll");
        if ready == 0 {
            self.child.kill().expect("it can be killed");
            panic!("it did not end within {LIMIT:?}; it said:\n{}", self.said);
        }
        let status = self.child.wait().expect("it can be waited for");
        let stdout = self.stdout.take().map(|reader| reader.join().expect("stdout was read")).unwrap_or_default();
        for line in self.lines.iter() {
            self.said.push_str(&line);
            self.said.push('\n');
        }
        Ended { status, stdout, stderr: std::mem::take(&mut self.said) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and was waited for.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Bytes that look random and are the same each time.
pub(crate) fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// A tree with directories, links, empty and large files and odd names below `root`.
pub(crate) fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("deep/er/and/deeper")).expect("a directory");
    fs::create_dir(root.join("empty")).expect("a directory");
    let files: [(&str, usize); 6] = [
        ("empty file", 0),
        ("one", 1),
        ("deep/block", 512),
        ("deep/er/large", 3 << 20),
        ("deep/er/and/deeper/odd", (1 << 20) + 7),
        ("caf\u{e9} \u{1F600}", 4097),
    ];
    for (index, (name, bytes)) in files.into_iter().enumerate() {
        fs::write(root.join(name), noise(bytes, index as u64)).expect("a file");
    }
    std::os::unix::fs::symlink("../one", root.join("deep/link")).expect("a link");
}

/// Everything in a tree: paths, kinds, contents.
pub(crate) fn read_tree(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let kind = fs::symlink_metadata(&path).expect("metadata").file_type();
            let content = if kind.is_dir() {
                open.push(path.clone());
                b"directory".to_vec()
            } else if kind.is_symlink() {
                fs::read_link(&path).expect("a link").into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).expect("a file")
            };
            found.push((path.strip_prefix(root).expect("below the root").to_owned(), content));
        }
    }
    found.sort();
    found
}
