//! `zcmi recv` and a sender that lies, written after docs/layout/transfer.md and not with the code under test.

mod rig;

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rig::{Ended, Running, Scratch, noise, read_tree};
use rustix::process::Signal;
use xxhash_rust::xxh3::xxh3_128;
use zcmi::net::outgoing::{Payload, Token};
use zcmi::net::stream::{Address, StreamOptions, StreamTransport};
use zcmi::net::transport::{ConnectionId, Destination, Event, Transport};

const HELLO: u8 = 1;
const DIRECTORY: u8 = 2;
const LINK: u8 = 3;
const FILE: u8 = 4;
const DATA: u8 = 6;
const FILE_END: u8 = 7;
const LEAVE: u8 = 9;
const END: u8 = 10;
const ABORT: u8 = 11;
const GO: u8 = 13;
const KEPT: u8 = 14;
const REFUSED: u8 = 15;
const DONE: u8 = 16;

/// A sender that says what it likes.
struct Liar {
    transport: StreamTransport,
    connection: ConnectionId,
    heard: VecDeque<(u8, u64, Vec<u8>)>,
    /// Whether the other side says nothing more.
    is_over: bool,
    is_closed: bool,
    entries: u64,
    bytes: u64,
}

impl Liar {
    fn connect(scratch: &Scratch) -> Self {
        let options = StreamOptions { resume_for: Duration::from_secs(5), ..StreamOptions::default() };
        let mut transport = StreamTransport::new(options).expect("a transport");
        let connection = transport.connect(&Address::Unix(scratch.path("socket"))).expect("a connection");
        Self { transport, connection, heard: VecDeque::new(), is_over: false, is_closed: false, entries: 0, bytes: 0 }
    }

    /// As [`connect`](Self::connect), after a greeting.
    fn greet(scratch: &Scratch) -> Self {
        let mut liar = Self::connect(scratch);
        liar.say(HELLO, 0, &[&b"zcmi-tx1"[..], &1_u64.to_le_bytes(), &u64::MAX.to_le_bytes()].concat());
        assert_eq!(liar.hear().map(|(kind, ..)| kind), Some(HELLO));
        liar
    }

    fn say(&mut self, kind: u8, number: u64, body: &[u8]) {
        let until = Instant::now() + rig::LIMIT;
        let mut lease = loop {
            match self.transport.loan(body.len()) {
                Ok(lease) => break lease,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            if self.is_over {
                return;
            }
            self.poll();
        };
        lease.as_mut_message_bytes().copy_from_slice(body);
        let to = Destination::new(self.connection).tag(u64::from(kind) << 56 | number);
        // Whoever hung up hears no more.
        let _ = self.transport.submit(to, Payload::Unique(lease), Token(0));
    }

    fn poll(&mut self) {
        let mut events = Vec::new();
        self.transport.poll(&mut events, Some(Duration::from_millis(100))).expect("a transport that works");
        for event in events {
            match event {
                Event::Received { piece, .. } => {
                    self.heard.push_back(((piece.tag >> 56) as u8, piece.tag & ((1 << 56) - 1), piece.lease.to_vec()));
                }
                Event::Ended { .. } => self.is_over = true,
                Event::Closed { .. } => (self.is_over, self.is_closed) = (true, true),
                _ => {}
            }
        }
    }

    /// The next that is said to us; none when the other side said its last.
    fn hear(&mut self) -> Option<(u8, u64, Vec<u8>)> {
        let until = Instant::now() + rig::LIMIT;
        while self.heard.is_empty() && !self.is_over {
            assert!(Instant::now() < until, "nothing is said");
            self.poll();
        }
        self.heard.pop_front()
    }

    /// Says an entry and hears the answer.
    fn entry(&mut self, kind: u8, body: &[u8]) -> (u8, String) {
        let number = self.entries;
        self.entries += 1;
        self.say(kind, number, body);
        let (kind, about, said) = self.hear().expect("an answer");
        assert!(kind == ABORT || about == number, "{kind} {about}");
        (kind, String::from_utf8_lossy(&said).into_owned())
    }

    fn link(&mut self, path: &str, target: &str) -> (u8, String) {
        let body = [&(path.len() as u64).to_le_bytes()[..], path.as_bytes(), target.as_bytes()].concat();
        self.entry(LINK, &body)
    }

    fn file(&mut self, path: &[u8], content: &[u8]) -> (u8, String) {
        let number = self.entries;
        let answer = self.entry(FILE, &offer(content.len() as u64, path));
        if answer.0 != GO {
            return answer;
        }
        self.say(DATA, 0, content);
        let end = [&(content.len() as u64).to_le_bytes()[..], &xxh3_128(content).to_le_bytes()].concat();
        self.say(FILE_END, number, &end);
        let (kind, _, said) = self.hear().expect("an answer");
        if kind == KEPT {
            self.bytes += content.len() as u64;
        }
        (kind, String::from_utf8_lossy(&said).into_owned())
    }

    fn end(&mut self) {
        let numbers = [self.entries, self.bytes, 0];
        self.say(END, 0, &numbers.map(u64::to_le_bytes).concat());
        assert_eq!(self.hear().map(|(kind, ..)| kind), Some(DONE));
        self.hang_up();
    }

    /// Ends the connection, and waits until both sides have.
    fn hang_up(&mut self) {
        self.transport.close(self.connection);
        while !self.is_closed {
            self.poll();
        }
    }
}

fn offer(size: u64, path: &[u8]) -> Vec<u8> {
    [&size.to_le_bytes()[..], &5_i64.to_le_bytes(), &6_u32.to_le_bytes(), &0o644_u32.to_le_bytes(), &[7; 16], path]
        .concat()
}

fn receiver(scratch: &Scratch, more: &[&str]) -> Running {
    let mut receiver = scratch.start(&[&["recv", "unix:socket", "-o", "out"], more].concat());
    receiver.wait_for_words("listening at");
    receiver
}

fn names(scratch: &Scratch, directory: &str) -> Vec<PathBuf> {
    read_tree(&scratch.path(directory)).into_iter().map(|(path, _)| path).collect()
}

#[test]
fn the_layout_document_describes_what_is_understood() {
    let scratch = Scratch::new();
    let out = scratch.directory("out");
    let receiver = receiver(&scratch, &[]);
    let mut liar = Liar::greet(&scratch);
    assert_eq!(liar.entry(DIRECTORY, b"d").0, KEPT);
    assert_eq!(liar.link("d/l", "../f").0, KEPT);
    assert_eq!(liar.file(b"d/f", b"honest").0, KEPT);
    assert_eq!(
        liar.entry(LEAVE, &[&5_i64.to_le_bytes()[..], &6_u32.to_le_bytes(), &0o755_u32.to_le_bytes(), b"d"].concat()).0,
        KEPT
    );
    liar.end();
    receiver.end().expect_code(0);
    assert_eq!(fs::read(out.join("d/f")).expect("the file"), b"honest");
    assert_eq!(fs::read_link(out.join("d/l")).expect("the link"), PathBuf::from("../f"));
    assert_eq!(
        fs::metadata(out.join("d")).and_then(|metadata| metadata.modified()).expect("a time"),
        std::time::UNIX_EPOCH + Duration::new(5, 6)
    );
}

#[test]
fn nothing_is_written_outside_whatever_paths_are_said() {
    let scratch = Scratch::new();
    let out = scratch.directory("out");
    let outside = scratch.directory("outside");
    symlink(&outside, out.join("away")).expect("a link");
    let absolute = format!("{}/evil", outside.display());
    let receiver = receiver(&scratch, &["--force", "--unsafe-links"]);
    let mut liar = Liar::greet(&scratch);
    let long = "x".repeat(256);
    let hostile = [
        "../evil",
        "..",
        ".",
        "/",
        "a/../../evil",
        "./evil",
        "a//evil",
        "evil/",
        "away/evil",
        "e\0vil",
        "e\nvil",
        "e\u{1b}[2Jvil",
        "evil.zcmi-part",
        "evil.zcmi-journal",
        &absolute,
        &long,
    ];
    for path in hostile {
        let (kind, why) = liar.file(path.as_bytes(), b"evil");
        assert_eq!(kind, REFUSED, "{path:?}: {why}");
        assert_eq!(liar.entry(DIRECTORY, path.as_bytes()).0, REFUSED, "{path:?}");
        assert_eq!(liar.link(path, "target").0, REFUSED, "{path:?}");
    }
    // A link of its own making is not followed either.
    assert_eq!(liar.link("door", &outside.display().to_string()).0, KEPT);
    assert_eq!(liar.file(b"door/evil", b"evil").0, REFUSED);
    assert_eq!(liar.entry(DIRECTORY, b"door/evil").0, REFUSED);
    let leave = [&5_i64.to_le_bytes()[..], &6_u32.to_le_bytes(), &0_u32.to_le_bytes(), b"door"].concat();
    assert_eq!(liar.entry(LEAVE, &leave).0, REFUSED);
    // A link in the place of a file is replaced, not written through.
    scratch.file("outside/victim", b"victim");
    symlink(outside.join("victim"), out.join("name")).expect("a link");
    symlink(outside.join("victim"), out.join("name.zcmi-part")).expect("a link");
    assert_eq!(liar.file(b"name", b"harmless").0, KEPT);
    liar.end();
    let ended = receiver.end();
    ended.expect_code(1).expect_words("error[ZC9052]: ");
    assert!(!ended.stderr.contains('\u{1b}'), "{}", ended.stderr);
    assert_eq!(names(&scratch, "outside"), [PathBuf::from("victim")]);
    assert_eq!(fs::read(outside.join("victim")).expect("the victim"), b"victim");
    assert_eq!(names(&scratch, "out"), ["away", "door", "name"].map(PathBuf::from));
    assert_eq!(fs::read(out.join("name")).expect("the file"), b"harmless");
}

#[test]
fn links_are_made_only_if_they_stay_inside() {
    let scratch = Scratch::new();
    scratch.directory("out");
    let receiver = receiver(&scratch, &[]);
    let mut liar = Liar::greet(&scratch);
    assert_eq!(liar.entry(DIRECTORY, b"d").0, KEPT);
    for (path, target) in [("l", "d"), ("d/up", "../d"), ("d/top", "..")] {
        assert_eq!(liar.link(path, target).0, KEPT, "{path}");
    }
    for target in ["..", "/etc", "../out", "d/../..", "d/top/../outside", "", "a\0b"] {
        assert_eq!(liar.link("evil", target).0, REFUSED, "{target}");
    }
    assert_eq!(liar.link("d/evil", "../../outside").0, REFUSED);
    liar.end();
    receiver.end().expect_code(1);
    assert_eq!(names(&scratch, "out"), ["d", "d/top", "d/up", "d.zcmi-journal", "l"].map(PathBuf::from));
}

/// What a receiver makes of what a liar says; the liar hears an abort.
fn lie(say: impl FnOnce(&mut Liar)) -> Ended {
    let scratch = Scratch::new();
    scratch.directory("out");
    let receiver = receiver(&scratch, &[]);
    let mut liar = Liar::greet(&scratch);
    say(&mut liar);
    while let Some((kind, ..)) = liar.hear() {
        if kind == ABORT {
            break;
        }
    }
    // The receiver waits a little for a good end, which a liar does not owe it.
    drop(liar);
    let ended = receiver.end();
    ended.expect_code(1);
    ended
}

#[test]
fn lies_about_numbers_places_and_lengths_end_the_transfer() {
    lie(|liar| liar.say(DIRECTORY, 1, b"d")).expect_words("error[ZC9205]: ");
    lie(|liar| liar.say(DATA, 0, b"bytes")).expect_words("error[ZC9204]: ");
    lie(|liar| liar.say(HELLO, 0, &[&b"zcmi-tx1"[..], &[0; 16]].concat())).expect_words("error[ZC9204]: ");
    lie(|liar| liar.say(HELLO, 0, &[&b"zcmi-tx9"[..], &[0; 16]].concat())).expect_words("error[ZC9201]: ");
    lie(|liar| liar.say(END, 0, &[0; 23])).expect_words("error[ZC9202]: ");
    lie(|liar| liar.say(77, 0, b"")).expect_words("error[ZC9203]: ");
    lie(|liar| liar.say(KEPT, 0, b"")).expect_words("error[ZC9204]: ");
    lie(|liar| liar.say(END, 0, &[1; 24])).expect_words("error[ZC9209]: ");
    lie(|liar| {
        liar.entry(FILE, &offer(4, b"f"));
        liar.say(DATA, 1, b"a");
    })
    .expect_words("error[ZC9207]: ");
    lie(|liar| {
        liar.entry(FILE, &offer(4, b"f"));
        liar.say(DATA, 0, b"abcde");
    })
    .expect_words("error[ZC9208]: ");
    lie(|liar| {
        liar.entry(FILE, &offer(4, b"f"));
        liar.say(DATA, 0, b"abc");
        liar.say(FILE_END, 0, &[&3_u64.to_le_bytes()[..], &xxh3_128(b"abc").to_le_bytes()].concat());
    })
    .expect_words("error[ZC9208]: ");
}

#[test]
fn more_offers_than_may_be_unanswered_end_the_transfer() {
    lie(|liar| {
        for number in 0..129 {
            liar.say(FILE, number, &offer(4, format!("f{number}").as_bytes()));
        }
    })
    .expect_words("error[ZC9206]: ");
}

#[test]
fn a_wrong_hash_leaves_nothing_under_the_name() {
    let scratch = Scratch::new();
    scratch.directory("out");
    let receiver = receiver(&scratch, &[]);
    let mut liar = Liar::greet(&scratch);
    assert_eq!(liar.entry(FILE, &offer(4, b"f")).0, GO);
    liar.say(DATA, 0, b"abcd");
    liar.say(FILE_END, 0, &[&4_u64.to_le_bytes()[..], &xxh3_128(b"abce").to_le_bytes()].concat());
    assert_eq!(liar.hear().map(|(kind, ..)| kind), Some(REFUSED));
    liar.end();
    receiver.end().expect_code(1).expect_words("[ZC9054]");
    assert!(names(&scratch, "out").is_empty());
}

#[test]
fn a_file_that_appears_meanwhile_is_not_replaced() {
    let scratch = Scratch::new();
    let out = scratch.directory("out");
    let receiver = receiver(&scratch, &[]);
    let mut liar = Liar::greet(&scratch);
    assert_eq!(liar.entry(FILE, &offer(4, b"f")).0, GO);
    fs::write(out.join("f"), b"somebody else's").expect("a file");
    liar.say(DATA, 0, b"abcd");
    liar.say(FILE_END, 0, &[&4_u64.to_le_bytes()[..], &xxh3_128(b"abcd").to_le_bytes()].concat());
    assert_eq!(liar.hear().map(|(kind, ..)| kind), Some(REFUSED));
    liar.end();
    receiver.end().expect_code(1).expect_words("f exists already");
    assert_eq!(fs::read(out.join("f")).expect("the file"), b"somebody else's");
}

#[test]
fn noise_never_ends_a_receiver_that_keeps_on_and_a_good_sender_is_served_after_it() {
    let scratch = Scratch::new();
    scratch.directory("out");
    scratch.file("good", b"content");
    let receiver = receiver(&scratch, &["--keep", "--force"]);
    for seed in 0..60 {
        let mut liar = Liar::greet(&scratch);
        let bytes = noise(4096, seed);
        let mut at = 0;
        for round in 0..20 {
            let length = usize::from(bytes[at]);
            let (kind, number) = (1 + bytes[at + 1] % 16, [liar.entries, 0, u64::from(bytes[at + 2])][round % 3]);
            at += 3;
            let mut body = bytes[at..][..length.min(bytes.len() - at)].to_vec();
            // Some bodies begin well.
            if kind == FILE && length > 60 {
                body[..40].copy_from_slice(&offer(u64::from(bytes[at]), b""));
            }
            at = (at + length) % 3000;
            liar.say(kind, number, &body);
            liar.entries += u64::from((2..=4).contains(&kind));
        }
        liar.hang_up();
    }
    let sent = send_until_served(&scratch);
    sent.expect_code(0);
    assert_eq!(fs::read(scratch.path("out/good")).expect("the file"), b"content");
    receiver.signal(Signal::TERM);
    let ended = receiver.end();
    ended.expect_code(130);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

/// Sends a good file; a receiver that still says its last word to somebody else is asked again.
fn send_until_served(scratch: &Scratch) -> Ended {
    let until = Instant::now() + rig::LIMIT;
    loop {
        let sent = scratch.run(&["send", "unix:socket", "good"]);
        if sent.status.success() || Instant::now() > until {
            return sent;
        }
    }
}

#[test]
fn a_second_sender_is_told_that_another_transfer_goes_on() {
    let scratch = Scratch::new();
    scratch.directory("out");
    scratch.file("good", b"content");
    let receiver = receiver(&scratch, &[]);
    let mut liar = Liar::greet(&scratch);
    scratch
        .run(&["send", "unix:socket", "good"])
        .expect_code(1)
        .expect_words("unix:socket gave up: another transfer is going on here");
    assert_eq!(liar.file(b"f", b"1").0, KEPT);
    liar.end();
    receiver.end().expect_code(0);
    assert_eq!(names(&scratch, "out"), [PathBuf::from("f")]);
}
