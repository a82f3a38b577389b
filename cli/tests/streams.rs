//! `zcmi pub` and `zcmi sub`: whole streams, and every way in which one is not.

mod rig;

use std::process::{Command, Stdio};

use rig::schema::expect_document;
use rig::{Running, Scratch, make_tree, noise, read_tree};
use rustix::process::Signal;

/// A publisher whose stdin is fed by the test, and a subscriber that has joined.
fn joined(scratch: &Scratch) -> (Running, Running) {
    let mut subscriber = scratch.start(&["sub", "stream"]);
    subscriber.wait_for_words("waiting for `stream`");
    let mut command = scratch.command(&["pub", "stream"]);
    command.stdin(Stdio::piped());
    let mut publisher = Running::new(command);
    publisher.wait_for_words("publishing `stream` to 1 subscriber");
    (publisher, subscriber)
}

/// The byte that a message says a stream broke off at.
fn byte_of(text: &str) -> usize {
    let rest = text.split("broke off at byte ").nth(1).unwrap_or_else(|| panic!("no byte in: {text}"));
    rest.split(':').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no byte in: {text}"))
}

#[test]
fn five_megabytes_arrive_as_they_were_sent_and_both_sides_know_their_hash() {
    let scratch = Scratch::new();
    let sent = noise(5_000_000, 1);
    let input = scratch.file("input", &sent);
    let mut command = scratch.command(&["pub", "stream", "--json"]);
    command.stdin(std::fs::File::open(input).expect("the input"));
    let publisher = Running::new(command);
    let subscriber = scratch.start(&["sub", "stream", "--json"]);
    let (published, received) = (publisher.end(), subscriber.end());
    published.expect_code(0);
    received.expect_code(0);
    assert!(received.stdout == sent, "{} bytes came", received.stdout.len());
    let said: serde_json::Value = serde_json::from_str(&received.stderr).expect("one document on stderr");
    expect_document(&said, "sub");
    expect_document(&published.json(), "pub");
    assert_eq!(published.json()["bytes"], 5_000_000);
    assert_eq!(published.json()["xxh3_128"], said["xxh3_128"]);
    assert_eq!(scratch.residue(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_tree_goes_through_tar_on_both_sides() {
    let scratch = Scratch::new();
    let (from, to) = (scratch.path("from"), scratch.directory("to"));
    make_tree(&from);
    let shell = |script: &str| {
        let mut command = scratch.command(&[]);
        let environment: Vec<_> =
            command.get_envs().map(|(key, value)| (key.to_owned(), value.map(Into::into))).collect();
        command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script]).current_dir(scratch.path("."));
        for (key, value) in environment {
            let value: Option<std::ffi::OsString> = value;
            command.env(key, value.unwrap_or_default());
        }
        command.env("ZCMI", rig::ZCMI).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::new(command)
    };
    let publisher = shell("tar c -C from . | \"$ZCMI\" pub backup");
    let subscriber = shell("\"$ZCMI\" sub backup | tar x -C to");
    publisher.end().expect_code(0);
    subscriber.end().expect_code(0);
    let (sent, arrived) = (read_tree(&from), read_tree(&to));
    assert!(sent.len() > 10 && sent == arrived, "{:?}", arrived.iter().map(|(path, _)| path).collect::<Vec<_>>());
}

#[test]
fn an_empty_stream_is_whole() {
    let scratch = Scratch::new();
    let publisher = scratch.start(&["pub", "stream"]);
    let received = scratch.run(&["sub", "stream"]);
    received.expect_code(0);
    publisher.end().expect_code(0);
    assert!(received.stdout.is_empty());
}

#[test]
fn two_subscribers_get_the_same_when_two_are_waited_for() {
    let scratch = Scratch::new();
    let sent = noise(3_000_000, 2);
    let input = scratch.file("input", &sent);
    let mut command = scratch.command(&["pub", "stream", "--wait", "2"]);
    command.stdin(std::fs::File::open(input).expect("the input"));
    let mut publisher = Running::new(command);
    publisher.wait_for_words("waiting for 2 subscribers");
    let first = scratch.start(&["sub", "stream"]);
    let second = scratch.start(&["sub", "stream"]);
    for subscriber in [first, second] {
        let received = subscriber.end();
        received.expect_code(0);
        assert!(received.stdout == sent);
    }
    publisher.end().expect_code(0).expect_words("received by 2 subscribers");
}

#[test]
fn a_killed_publisher_fails_the_subscriber_who_names_the_byte() {
    let scratch = Scratch::new();
    let (mut publisher, subscriber) = joined(&scratch);
    // All but a pipe's worth was read when this returns, and all but the last read of it was published.
    let sent = noise(4_000_000, 3);
    publisher.feed(&sent);
    publisher.signal(Signal::KILL);
    let received = subscriber.end();
    received.expect_code(1).expect_words("died");
    let byte = byte_of(&received.stderr);
    assert!(byte > 0 && received.stdout.len() == byte, "{byte} and {}", received.stdout.len());
    assert!(sent.starts_with(&received.stdout));
    // The name is free again at once.
    let publisher = scratch.start(&["pub", "stream"]);
    scratch.run(&["sub", "stream"]).expect_code(0);
    publisher.end().expect_code(0);
}

#[test]
fn an_interrupted_publisher_ends_with_130_and_its_stream_is_not_whole() {
    for signal in [Signal::INT, Signal::TERM] {
        let scratch = Scratch::new();
        let (mut publisher, subscriber) = joined(&scratch);
        publisher.feed(&noise(2_000_000, 4));
        publisher.signal(signal);
        publisher.end().expect_code(130).expect_words("interrupted");
        let received = subscriber.end();
        received.expect_code(1).expect_words("its publisher gave up: interrupted");
        assert_eq!(byte_of(&received.stderr), received.stdout.len());
        assert_eq!(scratch.residue(), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn where_the_only_subscriber_leaves_before_the_end_nobody_is_said_to_have_everything() {
    let scratch = Scratch::new();
    let (mut publisher, subscriber) = joined(&scratch);
    subscriber.signal(Signal::STOP);
    publisher.feed(b"8 bytes.");
    publisher.close();
    // The beginning, the bytes, the end of the file and that of the stream are published, and wait to be received.
    let begun = std::time::Instant::now();
    while !String::from_utf8_lossy(&scratch.run(&["list", "--json"]).stdout).contains("\"messages\": 4") {
        assert!(begun.elapsed() < rig::LIMIT, "the end was never published");
    }
    subscriber.signal(Signal::KILL);
    let told = publisher.end();
    told.expect_code(1).expect_words("1 of 1 left before the end of the stream; nobody is known to have all 8 bytes");
}

#[test]
fn an_interrupted_subscriber_ends_with_130_and_its_publisher_gives_up() {
    let scratch = Scratch::new();
    let (mut publisher, subscriber) = joined(&scratch);
    publisher.feed(&noise(2_000_000, 5));
    subscriber.signal(Signal::INT);
    subscriber.end().expect_code(130).expect_words("interrupted");
    // Its stdin stays open and silent: it notices all the same.
    publisher.end().expect_code(1).expect_words("every subscriber has left");
    assert_eq!(scratch.residue(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn whoever_waits_can_be_interrupted() {
    let scratch = Scratch::new();
    let mut publisher = scratch.start(&["pub", "one"]);
    publisher.wait_for_words("waiting for 1 subscriber");
    publisher.signal(Signal::INT);
    publisher.end().expect_code(130);
    let mut subscriber = scratch.start(&["sub", "two"]);
    subscriber.wait_for_words("waiting for `two`");
    subscriber.signal(Signal::TERM);
    subscriber.end().expect_code(130);
    assert_eq!(scratch.residue(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_subscriber_whose_reader_stopped_reading_can_be_interrupted() {
    let scratch = Scratch::new();
    let mut command = Command::new(rig::ZCMI);
    command.args(["sub", "stream"]).env("ZCMI_RUNTIME_DIR", scratch.path("runtime"));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
    let mut subscriber = Running::new(command);
    subscriber.wait_for_words("waiting for `stream`");
    let mut command = scratch.command(&["pub", "stream"]);
    command.stdin(Stdio::piped());
    let mut publisher = Running::new(command);
    publisher.wait_for_words("publishing");
    // More than the subscriber's pipe takes, so it waits for room in `stdout`.
    publisher.feed(&noise(8_000_000, 6));
    subscriber.wait_for_words("receiving");
    subscriber.signal(Signal::INT);
    subscriber.end().expect_code(130);
    publisher.end().expect_code(1);
    drop(reader);
}

#[test]
fn a_publisher_whose_subscriber_is_stopped_waits_and_can_be_interrupted() {
    let scratch = Scratch::new();
    let (mut publisher, subscriber) = joined(&scratch);
    subscriber.signal(Signal::STOP);
    // Less than the slots and the pipe of stdin take together.
    publisher.feed(&noise(4_000_000, 8));
    publisher.signal(Signal::INT);
    publisher.end().expect_code(130);
    subscriber.signal(Signal::CONT);
    let received = subscriber.end();
    received.expect_code(1);
    assert_eq!(byte_of(&received.stderr), received.stdout.len());
}

#[test]
fn a_reader_of_stdout_that_goes_away_is_a_failure_with_a_message() {
    let scratch = Scratch::new();
    let mut command = Command::new(rig::ZCMI);
    command.args(["sub", "stream"]).env("ZCMI_RUNTIME_DIR", scratch.path("runtime"));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
    let mut subscriber = Running::new(command);
    subscriber.wait_for_words("waiting for `stream`");
    drop(reader);
    let mut command = scratch.command(&["pub", "stream"]);
    command.stdin(Stdio::piped());
    let mut publisher = Running::new(command);
    publisher.wait_for_words("publishing");
    publisher.feed(b"some bytes");
    subscriber.end().expect_code(1).expect_words("whoever read stdout has gone");
    publisher.end().expect_code(1).expect_words("every subscriber has left");
}

#[test]
fn a_second_publisher_of_a_name_is_refused() {
    let scratch = Scratch::new();
    let mut first = scratch.start(&["pub", "stream"]);
    first.wait_for_words("waiting for 1 subscriber");
    let words = format!("process {} publishes `stream` already", first.pid());
    scratch.run(&["pub", "stream"]).expect_code(1).expect_words(&words);
    scratch.run(&["sub", "stream"]).expect_code(0);
    first.end().expect_code(0);
}

#[test]
fn a_late_subscriber_is_refused_and_the_stream_goes_on() {
    let scratch = Scratch::new();
    let (mut publisher, subscriber) = joined(&scratch);
    let sent = noise(2_500_000, 7);
    publisher.feed(&sent);
    scratch
        .run(&["sub", "stream"])
        .expect_code(1)
        .expect_words("zcmi: error[ZC3423]: ")
        .expect_words("has begun already");
    publisher.close();
    publisher.end().expect_code(0);
    let received = subscriber.end();
    received.expect_code(0);
    assert!(received.stdout == sent);
}

#[test]
fn nobody_is_waited_for_with_no_wait() {
    let scratch = Scratch::new();
    scratch.run(&["sub", "stream", "--no-wait"]).expect_code(1).expect_words("nobody publishes `stream`");
    let failed = scratch.run(&["sub", "stream", "--no-wait", "--json"]);
    failed.expect_code(1);
    let said: serde_json::Value = serde_json::from_str(&failed.stderr).expect("one document on stderr");
    expect_document(&said, "error");
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    let scratch = Scratch::new();
    let directory = scratch.directory("directory");
    let directory = directory.to_str().expect("a path of letters");
    scratch.file("directory/a", b"1");
    scratch.file("a", b"2");
    let long = "x".repeat(300);
    let cases: [&[&str]; 9] = [
        &["pub"],
        &["sub"],
        &["pub", "odd name"],
        &["sub", "odd\u{7}name"],
        &["pub", &long],
        &["pub", "stream", "--wait", "0"],
        &["pub", "stream", directory],
        &["pub", "stream", "a", "directory/a"],
        &["sub", "stream", "--force"],
    ];
    for arguments in cases {
        scratch.run(arguments).expect_code(2);
    }
    scratch.run(&["pub", "stream", "not there"]).expect_code(1).expect_words("not there cannot be read");
}

#[test]
fn a_runtime_directory_that_others_can_write_is_refused_with_the_remedy() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let open = scratch.directory("open");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("the mode can be set");
    for arguments in [["pub", "stream"], ["sub", "stream"]] {
        let mut command = scratch.command(&arguments);
        command.env("ZCMI_RUNTIME_DIR", &open);
        Running::new(command).end().expect_code(1).expect_words("chmod 700");
    }
}

#[test]
fn too_little_memory_is_said_before_the_stream_begins() {
    let scratch = Scratch::new();
    let mut command = Command::new("bash");
    // 8 MB a file, in units of 1,024 bytes: less than the slots of a stream.
    command.args(["-c", "ulimit -f 8000; exec \"$0\" pub stream", rig::ZCMI]);
    command.env("ZCMI_RUNTIME_DIR", scratch.path("runtime"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::new(command).end().expect_code(1).expect_words("not enough memory to publish `stream`");
    assert_eq!(scratch.residue(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn every_command_explains_itself_with_examples() {
    let scratch = Scratch::new();
    for command in ["pub", "sub", "list", "demo", "bench ipc"] {
        let help = scratch.run(&[&*command.split(' ').collect::<Vec<_>>(), &["--help"]].concat());
        help.expect_code(0);
        let text = String::from_utf8(help.stdout).expect("text");
        assert!(text.contains("Examples:") && text.contains("--json") && text.contains("Exit codes:"), "{text}");
    }
}
