//! `zcmi send` and `zcmi recv` when either is killed, or the connection breaks, in the middle of a file.

mod rig;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rig::{Running, Scratch, noise};
use rustix::process::Signal;
use serde_json::Value;

/// Long enough that a kill at the first bytes is long before the end.
const BYTES: usize = 96 << 20;

/// A file to send, and a directory to receive it in.
fn prepare(scratch: &Scratch) -> (Vec<u8>, PathBuf) {
    let content = noise(BYTES, 5);
    scratch.file("large", &content);
    (content, scratch.directory("out"))
}

/// Waits until a part has passed `bound` bytes.
fn wait_for_part(part: &Path, bound: u64) {
    let until = Instant::now() + rig::LIMIT;
    while fs::metadata(part).map_or(0, |metadata| metadata.len()) < bound {
        assert!(Instant::now() < until, "{} never grew past {bound} bytes", part.display());
        std::thread::yield_now();
    }
}

/// The last line of JSON.
fn last(stdout: &[u8]) -> Value {
    let text = String::from_utf8_lossy(stdout);
    serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
}

#[track_caller]
fn expect_whole(out: &Path, content: &[u8]) {
    assert!(fs::read(out.join("large")).expect("the file") == content, "other bytes arrived");
    assert_eq!(fs::read_dir(out).expect("a directory").count(), 1, "no part and no journal is left");
}

/// A file is read and hashed, or leaves from where it lies.
const WAYS: [&[&str]; 2] = [&[], &["--no-hash"]];

#[test]
fn a_killed_sender_goes_on_where_it_was_with_the_receiver_that_waits() {
    for way in WAYS {
        let scratch = Scratch::new();
        let (content, out) = prepare(&scratch);
        let part = out.join("large.zcmi-part");
        let mut receiver = scratch.start(&["recv", "unix:socket", "-o", "out"]);
        let sender = scratch.start(&[&["send", "unix:socket", "large"], way].concat());
        wait_for_part(&part, 4 << 20);
        sender.signal(Signal::KILL);
        sender.end();
        receiver.wait_for_words("the connection broke");
        let came = fs::metadata(&part).expect("the part").len();
        assert!(came < BYTES as u64, "it was killed in the middle");
        let sent = scratch.run(&[&["send", "unix:socket", "large", "--json"], way].concat());
        sent.expect_code(0);
        receiver.end().expect_code(0).expect_words("large goes on at ");
        assert_eq!(last(&sent.stdout)["bytes_already_there"], came);
        expect_whole(&out, &content);
    }
}

#[test]
fn a_killed_receiver_that_is_started_again_gets_the_rest_from_the_sender_that_waits() {
    for way in WAYS {
        let scratch = Scratch::new();
        let (content, out) = prepare(&scratch);
        let part = out.join("large.zcmi-part");
        let receiver = scratch.start(&["recv", "unix:socket", "-o", "out"]);
        let sender = scratch.start(&[&["send", "unix:socket", "large", "--json"], way].concat());
        wait_for_part(&part, 4 << 20);
        receiver.signal(Signal::KILL);
        receiver.end();
        let came = fs::metadata(&part).expect("the part").len();
        assert!(came < BYTES as u64, "it was killed in the middle");
        assert!(!out.join("large").exists(), "what is not whole has not the name of the whole");
        scratch.run(&["recv", "unix:socket", "-o", "out"]).expect_code(0).expect_words("large goes on at ");
        let sent = sender.end();
        sent.expect_code(0);
        assert_eq!(last(&sent.stdout)["bytes_already_there"], came);
        expect_whole(&out, &content);
    }
}

#[test]
fn both_interrupted_say_so_and_both_started_again_go_on() {
    let scratch = Scratch::new();
    let (content, out) = prepare(&scratch);
    let part = out.join("large.zcmi-part");
    let receiver = scratch.start(&["recv", "unix:socket", "-o", "out"]);
    let sender = scratch.start(&["send", "unix:socket", "large"]);
    wait_for_part(&part, 4 << 20);
    sender.signal(Signal::INT);
    sender.end().expect_code(130).expect_words("interrupted");
    receiver.end().expect_code(1).expect_words("the sender gave up: interrupted; run both again to go on");
    let came = fs::metadata(&part).expect("the part").len();
    assert!(came < BYTES as u64, "it was interrupted in the middle");
    let receiver = scratch.start(&["recv", "unix:socket", "-o", "out"]);
    let sender = scratch.start(&["send", "unix:socket", "large"]);
    wait_for_part(&part, came + (4 << 20));
    receiver.signal(Signal::TERM);
    receiver.end().expect_code(130);
    sender.end().expect_code(1).expect_words("unix:socket gave up: interrupted; run both again to go on");
    assert!(fs::metadata(&part).expect("the part").len() > came);
    let receiver = scratch.start(&["recv", "unix:socket", "-o", "out"]);
    scratch.run(&["send", "unix:socket", "large", "--no-hash"]).expect_code(0);
    receiver.end().expect_code(0);
    expect_whole(&out, &content);
}

/// A transfer that is broken off in the middle for good; how long the part is.
fn break_off(scratch: &Scratch, part: &Path) -> u64 {
    let receiver = scratch.start(&["recv", "unix:socket", "-o", "out"]);
    let sender = scratch.start(&["send", "unix:socket", "large"]);
    wait_for_part(part, 4 << 20);
    receiver.signal(Signal::KILL);
    sender.signal(Signal::KILL);
    receiver.end();
    sender.end();
    fs::metadata(part).expect("the part").len()
}

#[test]
fn a_part_of_another_file_or_with_other_bytes_is_not_gone_on_with() {
    let scratch = Scratch::new();
    let (mut content, out) = prepare(&scratch);
    let part = out.join("large.zcmi-part");
    let came = break_off(&scratch, &part);
    assert!(came < BYTES as u64, "it was killed in the middle");
    // A byte of the part rots.
    let rotten = fs::File::options().write(true).open(&part).expect("the part");
    std::os::unix::fs::FileExt::write_all_at(&rotten, &[!content[1000]], 1000).expect("a byte");
    let (sent, received) = again(&scratch);
    assert_eq!((&sent["bytes_already_there"], received), (&0.into(), 0));
    expect_whole(&out, &content);
    fs::remove_file(out.join("large")).expect("the file");
    // The sender's file becomes another one, of the same size.
    break_off(&scratch, &part);
    content[5] = !content[5];
    scratch.file("large", &content);
    let (sent, received) = again(&scratch);
    assert_eq!((&sent["bytes_already_there"], received), (&0.into(), 0));
    expect_whole(&out, &content);
}

/// Sends once more; what the sender says, and how many bytes the receiver kept.
fn again(scratch: &Scratch) -> (Value, u64) {
    let receiver = scratch.start(&["recv", "unix:socket", "-o", "out", "--json"]);
    let sent = scratch.run(&["send", "unix:socket", "large", "--json"]);
    sent.expect_code(0);
    let received = receiver.end();
    received.expect_code(0);
    (last(&sent.stdout), last(&received.stdout)["bytes_already_there"].as_u64().expect("a count"))
}

#[test]
fn a_connection_that_breaks_is_mended_within_the_run() {
    let scratch = Scratch::new();
    let (content, out) = prepare(&scratch);
    let mut receiver = scratch.start(&["recv", "127.0.0.1:0", "-o", "out"]);
    let line = receiver.wait_for_words("listening at 127.0.0.1:");
    let address = line.split("zcmi send ").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address");
    let relay = Relay::start(address.to_string(), 5 << 20);
    let sent = scratch.run(&["send", &relay, "large", "--json"]);
    sent.expect_code(0);
    receiver.end().expect_code(0).expect_words("the connection is mended");
    assert_eq!(last(&sent.stdout)["interruptions"], 1);
    expect_whole(&out, &content);
}

/// A way to another address that breaks once.
struct Relay;

impl Relay {
    /// Relays connections to `to`, and breaks the first after `bytes` bytes.
    fn start(to: String, bytes: u64) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("an address").to_string();
        std::thread::spawn(move || {
            let mut limit = bytes;
            for near in listener.incoming().map_while(Result::ok) {
                let far = TcpStream::connect(&to).expect("the receiver listens");
                let (back_from, back_to) = (far.try_clone().expect("dup"), near.try_clone().expect("dup"));
                std::thread::spawn(move || carry(back_from, back_to, u64::MAX));
                std::thread::spawn(move || carry(near, far, limit));
                limit = u64::MAX;
            }
        });
        address
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, mut limit: u64) {
    let mut room = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut room) {
        if to.write_all(&room[..read]).is_err() {
            break;
        }
        limit = limit.saturating_sub(read as u64);
        if limit == 0 {
            break;
        }
    }
    // The other direction ends with it.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[test]
fn two_receivers_do_not_write_into_one_part() {
    let scratch = Scratch::new();
    let (content, out) = prepare(&scratch);
    let first = scratch.start(&["recv", "unix:socket", "-o", "out"]);
    let sender = scratch.start(&["send", "unix:socket", "large", "--resume-for", "30"]);
    wait_for_part(&out.join("large.zcmi-part"), 4 << 20);
    first.signal(Signal::STOP);
    let second = Running::new(scratch.command(&["recv", "unix:other", "-o", "out"]));
    scratch.run(&["send", "unix:other", "large"]).expect_code(1).expect_words("[ZC9056]");
    second.end().expect_code(1).expect_words("another `zcmi recv` is receiving large");
    first.signal(Signal::CONT);
    first.end().expect_code(0);
    sender.end().expect_code(0);
    expect_whole(&out, &content);
}
