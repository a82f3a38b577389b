//! Streams of files, and names that another process made up.

mod rig;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use rig::{Scratch, noise};
use xxhash_rust::xxh3::Xxh3;
use zcmi::directory::RuntimeDirectory;
use zcmi::name::ServiceName;
use zcmi::{Process, Publisher, Service};

/// Publishes `stream` from files, to one subscriber with these arguments.
fn hand_over(scratch: &Scratch, files: &[&str], arguments: &[&str]) -> (rig::Ended, rig::Ended) {
    let publisher = scratch.start(&[&["pub", "stream"], files].concat());
    let received = scratch.run(&[&["sub", "stream"], arguments].concat());
    (publisher.end(), received)
}

fn names_in(directory: PathBuf) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("letters")).collect();
    names.sort();
    names
}

#[test]
fn several_files_carry_their_names_into_a_directory() {
    let scratch = Scratch::new();
    let contents = [noise(3_000_000, 1), Vec::new(), noise(5, 2)];
    for (name, content) in ["a", "b c", "d"].into_iter().zip(&contents) {
        scratch.file(name, content);
    }
    scratch.directory("out");
    let (published, received) = hand_over(&scratch, &["a", "b c", "./d"], &["-o", "out", "--json"]);
    published.expect_code(0);
    received.expect_code(0);
    assert_eq!(received.json()["files"], 3);
    assert_eq!(received.json()["bytes"], 3_000_005);
    assert_eq!(names_in(scratch.path("out")), ["a", "b c", "d"]);
    for (name, content) in ["a", "b c", "d"].into_iter().zip(&contents) {
        assert!(fs::read(scratch.path("out").join(name)).expect("the file") == *content, "{name}");
    }
}

#[test]
fn a_directory_named_with_a_slash_is_made() {
    let scratch = Scratch::new();
    scratch.file("a", b"1");
    scratch.file("b", b"2");
    let (published, received) = hand_over(&scratch, &["a", "b"], &["-o", "new/"]);
    published.expect_code(0);
    received.expect_code(0);
    assert_eq!(names_in(scratch.path("new")), ["a", "b"]);
}

#[test]
fn several_files_to_stdout_come_one_behind_the_other() {
    let scratch = Scratch::new();
    scratch.file("a", b"first ");
    scratch.file("b", b"second");
    let (published, received) = hand_over(&scratch, &["a", "b"], &[]);
    published.expect_code(0);
    received.expect_code(0).expect_words("2 files follow one behind the other").expect_words(" in 2 files, ");
    assert_eq!(received.stdout, b"first second");
}

#[test]
fn one_file_gets_the_name_that_its_receiver_chose() {
    let scratch = Scratch::new();
    scratch.file("a", b"content");
    let (_, received) = hand_over(&scratch, &["a"], &["-o", "mine"]);
    received.expect_code(0).expect_words(" in 1 file, ");
    assert_eq!(fs::read(scratch.path("mine")).expect("the file"), b"content");
}

#[test]
fn what_exists_is_kept_without_force_and_replaced_with_it() {
    let scratch = Scratch::new();
    scratch.file("a", b"new");
    scratch.file("mine", b"old");
    scratch
        .run(&["sub", "stream", "-o", "mine"])
        .expect_code(1)
        .expect_words("zcmi: error[ZC9035]: mine exists already; use");
    let (_, received) = hand_over(&scratch, &["a"], &["-o", "mine", "--force"]);
    received.expect_code(0);
    assert_eq!(fs::read(scratch.path("mine")).expect("the file"), b"new");
    scratch.directory("out");
    scratch.file("out/a", b"old");
    let (published, received) = hand_over(&scratch, &["a"], &["-o", "out"]);
    published.expect_code(1);
    received.expect_code(1).expect_words("a exists already in out; use");
    assert_eq!(fs::read(scratch.path("out/a")).expect("the file"), b"old");
    assert_eq!(names_in(scratch.path("out")), ["a"]);
}

#[test]
fn a_file_is_not_replaced_where_a_directory_was_named() {
    let scratch = Scratch::new();
    scratch.file("ex", b"old");
    for output in ["ex/", "ex/."] {
        let told = scratch.run(&["sub", "stream", "-o", output, "--force", "--no-wait"]);
        told.expect_code(1).expect_words("error[ZC9038]: ex is a file, not a directory");
    }
    assert_eq!(fs::read(scratch.path("ex")).expect("the file"), b"old");
}

#[test]
fn a_symbolic_link_is_never_written_through() {
    let scratch = Scratch::new();
    scratch.file("a", b"new");
    scratch.file("victim", b"victim");
    scratch.directory("out");
    symlink("../victim", scratch.path("out/a")).expect("a link");
    let (_, received) = hand_over(&scratch, &["a"], &["-o", "out"]);
    received.expect_code(1).expect_words("exists already");
    let (_, received) = hand_over(&scratch, &["a"], &["-o", "out", "--force"]);
    received.expect_code(0);
    assert_eq!(fs::read(scratch.path("victim")).expect("the file"), b"victim");
    assert!(fs::symlink_metadata(scratch.path("out/a")).expect("metadata").is_file());
    assert_eq!(fs::read(scratch.path("out/a")).expect("the file"), b"new");
}

#[test]
fn what_does_not_fit_the_place_is_refused() {
    let scratch = Scratch::new();
    scratch.file("a", b"1");
    scratch.file("b", b"2");
    scratch.directory("out");
    let (published, received) = hand_over(&scratch, &["a", "b"], &["-o", "mine"]);
    published.expect_code(1);
    received.expect_code(1).expect_words("holds 2 files");
    assert!(!scratch.path("mine").exists(), "nothing is stored of what cannot be stored whole");
    let (published, received) = hand_over(&scratch, &[], &["-o", "out"]);
    published.expect_code(1);
    received.expect_code(1).expect_words("has no name");
    scratch.run(&["sub", "stream", "-o", "not/there/"]).expect_code(1).expect_words("not/there/ cannot be made");
    assert!(names_in(scratch.path("out")).is_empty());
}

/// A publisher that says what it likes, written after docs/layout/stream.md and not with the code under test.
struct Liar {
    publisher: Publisher<[u8]>,
    hash: Xxh3,
    offset: u64,
}

impl Liar {
    fn new(scratch: &Scratch) -> Self {
        let directory = RuntimeDirectory::at(scratch.path("runtime")).expect("the runtime directory");
        let process = Process::open(directory).expect("a process");
        let service = Service::<[u8]>::with(ServiceName::new("stream").expect("a name"), process).expect("a service");
        let options = service.publisher().max_len((1 << 20) + 32).max_publishers(1).late_joiners(false);
        Self { publisher: options.create().expect("a publisher"), hash: Xxh3::new(), offset: 0 }
    }

    fn say(&mut self, kind: u32, body: &[u8], number: u64, count: u64) {
        let mut message = body.to_vec();
        message.extend(b"zcs1");
        message.extend(kind.to_le_bytes());
        message.extend(self.offset.to_le_bytes());
        message.extend(number.to_le_bytes());
        message.extend(count.to_le_bytes());
        self.hash.update(&message);
        if kind == 2 {
            self.offset += body.len() as u64;
        }
        self.publisher.publish_copy_of(&message).expect("it can be published");
    }

    fn end(&mut self) {
        let (hash, offset) = (self.hash.digest128().to_le_bytes(), self.offset);
        self.say(4, &hash, offset, 1);
    }
}

/// What a subscriber makes of what a liar says.
fn lie(scratch: &Scratch, arguments: &[&str], say: impl FnOnce(&mut Liar)) -> rig::Ended {
    let mut liar = Liar::new(scratch);
    let subscriber = scratch.start(&[&["sub", "stream"], arguments].concat());
    assert_eq!(liar.publisher.wait_for_subscribers(1, Duration::from_secs(30)), 1);
    say(&mut liar);
    drop(liar);
    subscriber.end()
}

#[test]
fn the_layout_document_describes_what_is_understood() {
    let scratch = Scratch::new();
    let received = lie(&scratch, &["-o", "mine"], |liar| {
        liar.say(1, b"honest", 5, 1);
        liar.say(2, b"12345", 0, 0);
        liar.say(3, b"", 5, 0);
        liar.end();
    });
    received.expect_code(0);
    assert_eq!(fs::read(scratch.path("mine")).expect("the file"), b"12345");
}

#[test]
fn hostile_names_are_refused_and_nothing_is_written() {
    for name in ["../evil", "/tmp/zcmi-evil", "a/b", ".", "..", "a\nb", "a\u{1b}[2J", "a\0b"] {
        let scratch = Scratch::new();
        scratch.directory("out");
        let received = lie(&scratch, &["-o", "out"], |liar| {
            liar.say(1, name.as_bytes(), 4, 1);
            liar.say(2, b"evil", 0, 0);
            liar.say(3, b"", 4, 0);
            liar.end();
        });
        received.expect_code(1).expect_words("is refused");
        assert!(!received.stderr.contains('\u{1b}'), "{}", received.stderr);
        assert!(names_in(scratch.path("out")).is_empty(), "{name:?}");
        assert_eq!(names_in(scratch.path(".")), ["out", "runtime"], "{name:?}");
    }
}

#[test]
fn a_stream_that_ends_without_its_end_leaves_no_file() {
    let scratch = Scratch::new();
    let received = lie(&scratch, &["-o", "mine"], |liar| {
        liar.say(1, b"cut", 10, 1);
        liar.say(2, b"12345", 0, 0);
    });
    received.expect_code(1).expect_words("broke off at byte 5: its publisher ended without finishing it");
    assert_eq!(names_in(scratch.path(".")), ["runtime"]);
}

#[test]
fn a_stream_with_a_wrong_hash_or_position_or_from_somebody_else_is_refused() {
    let scratch = Scratch::new();
    let received = lie(&scratch, &[], |liar| {
        liar.say(1, b"", u64::MAX, 1);
        liar.say(2, b"12345", 0, 0);
        liar.say(3, b"", 5, 0);
        liar.hash.update(b"x");
        liar.end();
    });
    received.expect_code(1).expect_words("error[ZC9108]: ").expect_words("broke off at byte 5: the hash");
    let received = lie(&scratch, &[], |liar| {
        liar.say(1, b"", u64::MAX, 1);
        liar.offset = 7;
        liar.say(2, b"12345", 0, 0);
    });
    received.expect_code(1).expect_words("says it stands at byte 7");
    let received = lie(&scratch, &[], |liar| {
        liar.publisher.publish_copy_of(b"just some bytes, and no foot of a stream").expect("published");
    });
    received.expect_code(1).expect_words("not those of `zcmi pub`");
}

#[test]
fn a_name_with_another_layout_is_refused_on_both_sides() {
    let scratch = Scratch::new();
    let directory = RuntimeDirectory::at(scratch.path("runtime")).expect("the runtime directory");
    let process = Process::open(directory).expect("a process");
    let service = Service::<u64>::with(ServiceName::new("numbers").expect("a name"), process).expect("a service");
    let publisher = service.publisher().create().expect("a publisher");
    scratch.run(&["pub", "numbers"]).expect_code(1).expect_words("carries another layout");
    scratch.run(&["sub", "numbers"]).expect_code(1).expect_words("carries other messages");
    drop(publisher);
}
