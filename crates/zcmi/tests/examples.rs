//! The examples run, say what they should, end by themselves, and leave nothing behind.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

/// How long an example may take; each is done in seconds, and gives up by itself after some more.
const LIMIT: Duration = Duration::from_secs(60);

/// A directory of the test's own.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("zcmi-examples-{}-{name}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).expect("a directory of the test's own");
        Self(path)
    }

    fn make(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).expect("a directory below it");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let removed = fs::remove_dir_all(&self.0);
        if !std::thread::panicking() {
            removed.expect("removing the test's directory");
        }
    }
}

/// What lies in a directory, if there is one.
fn below(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

/// The executable of an example: `cargo test` builds it, into the directory beside that of this test.
fn executable(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let target = test.parent().and_then(Path::parent).expect("tests are built two directories deep");
    let example = target.join("examples").join(name);
    assert!(example.is_file(), "{name} is not built; `cargo build -p zcmi --examples` builds it");
    example
}

/// What an example writes to its standard output when it is started with these arguments.
fn output_of(name: &str, scratch: &Scratch, arguments: &[&Path]) -> String {
    let (runtime, temporary) = (scratch.make("runtime"), scratch.make("temporary"));
    let mut command = Command::new(executable(name));
    command.args(arguments).env("ZCMI_RUNTIME_DIR", &runtime).env("TMPDIR", &temporary);
    let mut example = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the example starts");
    let mut pipe = example.stdout.take().expect("a pipe");
    let (done, output) = channel();
    // The pipe ends when the example and the process it started have ended.
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        let read = pipe.read_to_string(&mut text).map(|_| text);
        // The test may have given up by now.
        let _given_up = done.send(read);
    });
    let Ok(text) = output.recv_timeout(LIMIT) else {
        example.kill().expect("killing the example");
        example.wait().expect("the killed example");
        panic!("{name} did not end within {LIMIT:?}");
    };
    reading.join().expect("reading does not panic");
    let status = example.wait().expect("the example's end");
    let text = text.expect("the example's output");
    assert!(status.success(), "{name} ended with {status}: {text}");
    for directory in [temporary, runtime.join("p"), runtime.join("s")] {
        assert_eq!(below(&directory), [] as [PathBuf; 0], "{name} left something in {}", directory.display());
    }
    text
}

#[test]
fn ticker_receives_its_tick() {
    let text = output_of("ticker", &Scratch::new("ticker"), &[]);
    assert!(text.lines().any(|line| line == "7 at 101250"), "{text}");
}

#[test]
fn frames_arrive_in_place() {
    let text = output_of("frames", &Scratch::new("frames"), &[]);
    assert!(text.starts_with("60 frames of 24883200 bytes, 60 of them in place, in "), "{text}");
}

#[test]
fn file_sends_its_own_executable() {
    let text = output_of("file", &Scratch::new("file"), &[]);
    let bytes = fs::metadata(executable("file")).expect("the executable").len();
    let expected = format!("{bytes} bytes in {} pieces\nthe copy is the same\n", bytes.div_ceil(1 << 20));
    assert_eq!(text, expected);
}

#[test]
fn file_sends_a_file_of_any_length() {
    for bytes in [0_u64, 1, (1 << 20) - 1, 1 << 20, (2 << 20) + 1] {
        let scratch = Scratch::new(&format!("file-{bytes}"));
        let (source, target) = (scratch.0.join("source"), scratch.0.join("target"));
        let content: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
        fs::write(&source, &content).expect("the source");
        let text = output_of("file", &scratch, &[&source, &target]);
        assert_eq!(text, format!("{bytes} bytes in {} pieces\n", bytes.div_ceil(1 << 20)));
        assert!(fs::read(&target).expect("the target") == content, "{bytes} bytes");
    }
}

#[test]
fn publish_over_tcp_reaches_each_subscriber() {
    let text = output_of("publish_over_tcp", &Scratch::new("publish_over_tcp"), &[]);
    assert_eq!(text.lines().filter(|line| line.starts_with("received 10000 ticks in ")).count(), 2, "{text}");
    assert!(text.ends_with("published 10000 ticks to 2 subscribers\n"), "{text}");
}

#[test]
fn blob_exchange_goes_on_after_a_break() {
    let text = output_of("blob_exchange", &Scratch::new("blob_exchange"), &[]);
    assert_eq!(text.lines().filter(|line| line.contains(": 4 blobs, mended 1 times, ")).count(), 2, "{text}");
}

#[test]
fn udp_messages_arrive_each_in_one_slot() {
    let text = output_of("udp_messages", &Scratch::new("udp_messages"), &[]);
    assert!(text.contains("100 messages sent and acknowledged in "), "{text}");
    assert!(text.ends_with("100 messages received, each in one slot\n"), "{text}");
}
