//! Starting, driving and ending worker processes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

/// How long an answer may take before the worker counts as stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that is removed with all its content.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one of mode 0700, to be used as a runtime directory.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("zcmi-tests-{}-{number}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).expect("a directory of the test's own");
        Self(path)
    }

    /// Makes one as an operator does for several users: mode 0711, and in it `p` and `s`, which are sticky.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn shared() -> Self {
        let scratch = Self::new();
        for below in ["p", "s"] {
            let path = scratch.0.join(below);
            std::fs::create_dir(&path).expect("mkdir");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o1777)).expect("chmod");
        }
        scratch.set_mode(0o711);
        scratch
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Changes its mode.
    ///
    /// # Panics
    /// If the system refuses.
    pub fn set_mode(&self, mode: u32) {
        std::fs::set_permissions(&self.0, PermissionsExt::from_mode(mode)).expect("chmod");
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

/// A worker's answer: what it did, and named values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Named values, all of them in the order given.
    pub values: Vec<(String, String)>,
    text: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let values = text.split_whitespace().filter_map(|word| word.split_once('='));
        let values = values.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { values, text: text.to_owned() }
    }

    /// The first value of this name.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        let value = self.values.iter().find(|(named, _)| named == name);
        &value.unwrap_or_else(|| panic!("`{}` has no {name}", self.text)).1
    }

    /// The first value of this name, as a number.
    ///
    /// # Panics
    /// If there is none, or it is no number.
    #[must_use]
    pub fn number(&self, name: &str) -> u64 {
        let text = self.text(name);
        text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number"))
    }

    /// The whole answer.
    #[must_use]
    pub fn whole(&self) -> &str {
        &self.text
    }

    /// What was received, by publisher's tag.
    #[must_use]
    pub fn tracks(&self) -> BTreeMap<u16, Track> {
        self.values.iter().filter(|(name, _)| name == "track").filter_map(|(_, value)| Track::parse(value)).collect()
    }

    /// What happened, in order.
    #[must_use]
    pub fn happened(&self) -> Vec<Happened> {
        self.values.iter().filter(|(name, _)| name == "event").filter_map(|(_, value)| Happened::parse(value)).collect()
    }
}

/// What a subscriber got of one publisher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Track {
    /// The first sequence.
    pub first: u64,
    /// One past the last.
    pub next: u64,
    /// How many.
    pub got: u64,
}

impl Track {
    /// The track of a reader that got everything from `first` up to `next`.
    #[must_use]
    pub fn whole(first: u64, next: u64) -> Self {
        Self { first, next, got: next - first }
    }

    fn parse(text: &str) -> Option<(u16, Self)> {
        let mut fields = text.split(':');
        let tag = fields.next()?.parse().ok()?;
        let mut number = || fields.next()?.parse().ok();
        Some((tag, Self { first: number()?, next: number()?, got: number()? }))
    }
}

/// An event, as the rig needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// `joined`, `ended`, `died`, `cut`, `lost`, `refused`, `faulty`.
    pub what: String,
    /// The process concerned, if the event names one.
    pub pid: u32,
    /// The sequence or count that comes with it.
    pub number: u64,
}

impl Happened {
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(':');
        let what = fields.next()?.to_owned();
        Some(Self { what, pid: fields.next()?.parse().ok()?, number: fields.next()?.parse().ok()? })
    }
}

/// A process that does what it is told; killed when it is dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
    read: Vec<u8>,
    pidfd: OwnedFd,
    began: Instant,
}

impl Worker {
    /// Starts a worker that uses this runtime directory.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(directory: &Path) -> Self {
        Self::start_with(directory, |_| {})
    }

    /// Starts a worker by `before` (a command that runs what it is given), to which the program is added.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start_by(mut before: Command, directory: &Path) -> Self {
        before.arg(program());
        Self::spawn(before, directory)
    }

    /// Starts a worker as another user. The program is copied into the directory, because that user may have no way to
    /// where it was built.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start_as(user: u32, directory: &Path) -> Self {
        let copy = directory.join("program");
        // One that runs already cannot be written.
        if !copy.exists() {
            std::fs::copy(program(), &copy).expect("a copy of the program");
            std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).expect("chmod");
        }
        let mut command = Command::new(copy);
        command.uid(user).gid(user).current_dir("/");
        Self::spawn(command, directory)
    }

    /// Starts a worker whose command the test completes.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start_with(directory: &Path, complete: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(program());
        complete(&mut command);
        Self::spawn(command, directory)
    }

    fn spawn(mut command: Command, directory: &Path) -> Self {
        command.env("ZCMI_RUNTIME_DIR", directory).env("ZCMI_TESTS_PARENT", std::process::id().to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut started = command.spawn();
        // A child that another test is just starting still has the fresh copy of the program open for writing.
        for _ in 0..1000 {
            match &started {
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    pause(Duration::from_millis(1));
                    started = command.spawn();
                }
                _ => break,
            }
        }
        let mut child = started.expect("a worker");
        let input = child.stdin.take();
        let output = child.stdout.take().expect("its output");
        let pid = Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("a pidfd");
        let mut worker = Self { child, input, output, read: Vec::new(), pidfd, began: Instant::now() };
        worker.hear();
        worker
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Readable once the process is dead.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Tells it something, and does not wait.
    ///
    /// # Panics
    /// If it is gone.
    pub fn tell(&mut self, line: impl Display) {
        let line = line.to_string();
        if std::env::var_os("ZCMI_TESTS_TRACE").is_some() {
            eprintln!("{:?} to {}: {line}", self.began.elapsed(), self.pid());
        }
        let input = self.input.as_mut().expect("its input");
        writeln!(input, "{line}").unwrap_or_else(|error| panic!("worker {} is gone: {error}", self.child.id()));
    }

    /// Waits for its next answer, good or bad.
    ///
    /// # Errors
    /// What it answered, when that was no.
    ///
    /// # Panics
    /// If it ends, or is silent for [`PATIENCE`].
    pub fn try_hear(&mut self) -> Result<Answer, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(end) = self.read.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if std::env::var_os("ZCMI_TESTS_TRACE").is_some() {
                    eprintln!("{:?} from {}: {line}", self.began.elapsed(), self.pid());
                }
                return match line.split_once(' ').unwrap_or((&line, "")) {
                    ("ok", rest) => Ok(Answer::parse(rest)),
                    (_, rest) => Err(rest.to_owned()),
                };
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "worker {} is silent", self.pid());
            if ready(self.output.as_fd(), left) {
                let mut buffer = [0; 65_536];
                let read = self.output.read(&mut buffer).expect("reading a pipe");
                assert_ne!(read, 0, "worker {} ended without an answer: {:?}", self.pid(), self.child.try_wait());
                self.read.extend(&buffer[..read]);
            }
        }
    }

    /// Waits for its next answer, which must be a good one.
    ///
    /// # Panics
    /// If it is not, or as [`try_hear`](Self::try_hear).
    pub fn hear(&mut self) -> Answer {
        let pid = self.pid();
        self.try_hear().unwrap_or_else(|text| panic!("worker {pid}: {text}"))
    }

    /// Whether an answer is there within this time.
    pub fn is_heard_within(&mut self, time: Duration) -> bool {
        self.read.contains(&b'\n') || ready(self.output.as_fd(), time)
    }

    /// Tells it something and waits for the good answer.
    ///
    /// # Panics
    /// As [`hear`](Self::hear).
    pub fn ask(&mut self, line: impl Display) -> Answer {
        self.tell(line);
        self.hear()
    }

    /// Tells it something and waits for the bad answer.
    ///
    /// # Panics
    /// If the answer is good, or as [`try_hear`](Self::try_hear).
    pub fn ask_in_vain(&mut self, line: impl Display) -> String {
        let told = line.to_string();
        self.tell(&told);
        match self.try_hear() {
            Ok(answer) => panic!("worker {} did `{told}`: {}", self.pid(), answer.whole()),
            Err(text) => text,
        }
    }

    /// Kills it, and waits until the kernel says that it is dead.
    ///
    /// # Panics
    /// If it does not die.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        assert!(ready(self.pidfd.as_fd(), PATIENCE), "worker {} does not die", self.pid());
        self.child.wait().expect("wait");
    }

    /// Sends a signal, and does not wait.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&self, signal: Signal) {
        rustix::process::pidfd_send_signal(&self.pidfd, signal).expect("kill");
    }

    /// Stops it, and waits until it stands still.
    ///
    /// # Panics
    /// If it does not.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        wait_until("the worker stands still", || crate::look::state(self.pid()) == Some('T'));
    }

    /// Lets it end by itself, by closing its input.
    ///
    /// # Panics
    /// If it does not end, or ends badly.
    pub fn finish(mut self) {
        drop(self.input.take());
        assert!(ready(self.pidfd.as_fd(), PATIENCE), "worker {} does not end", self.pid());
        let status = self.child.wait().expect("wait");
        assert!(status.success(), "worker {} ended with {status}", self.pid());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may be gone already, which is what is wanted.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn program() -> &'static OsStr {
    static PROGRAM: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            // The test lies in `deps`, the programs one above.
            let test = std::env::current_exe().expect("this program");
            let directory = test.parent().and_then(Path::parent).expect("a target directory");
            directory.join("zcmi-test-worker")
        })
        .as_os_str()
}

/// Waits until a descriptor is readable or hung up.
#[must_use]
pub fn ready(descriptor: BorrowedFd<'_>, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => panic!("poll failed: {errno}"),
        }
    }
}

/// Lets this much time pass: because nobody announces what is looked for, or because the instant is to be random.
pub fn pause(time: Duration) {
    let timeout = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    // An interruption only makes it shorter, which its callers do not mind.
    let _shorter = rustix::event::poll(&mut [], Some(&timeout));
}

/// How long something keeps this thread: the time since the beginning, less what the thread waited for a processor,
/// and what a host took of this machine's processors meanwhile.
///
/// On a machine that others use these can be tenths of a second, and say nothing of what is looked at. The kernel
/// counts both: the second word of `/proc/thread-self/schedstat` (`CONFIG_SCHED_INFO`; ns), and the eighth number of
/// `cpu` in `/proc/stat` (hundredths of a second, for all processors together). Where it does not, nothing is taken
/// off.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    begin: Instant,
    waited: Duration,
}

impl Kept {
    /// Begins now, on this thread.
    #[must_use]
    pub fn begin() -> Self {
        Self { waited: Self::waited(), begin: Instant::now() }
    }

    /// Until now. To be asked on the thread that began it.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        let elapsed = self.begin.elapsed();
        elapsed.saturating_sub(Self::waited().saturating_sub(self.waited))
    }

    fn waited() -> Duration {
        let number = |path: &str, at: usize| {
            let told = std::fs::read_to_string(path).unwrap_or_default();
            told.split_whitespace().nth(at).and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        let stolen = Duration::from_millis(10 * number("/proc/stat", 8));
        Duration::from_nanos(number("/proc/thread-self/schedstat", 1)) + stolen
    }
}

/// Waits until something is so that nobody announces, looking every millisecond.
///
/// # Panics
/// If it is not so after [`PATIENCE`].
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not so after {PATIENCE:?}: {what}");
        pause(Duration::from_millis(1));
    }
}
