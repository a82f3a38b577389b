//! `zcmi link`: what is shown of connections that work, are forced, stopped, or gone.

mod rig;

use std::process::Stdio;
use std::time::{Duration, Instant};

use rig::schema::expect_document;
use rig::{Running, Scratch, noise};
use rustix::process::Signal;
use serde_json::Value;

/// How long it may take until something is shown: rows are up to 100 ms old.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is shown of a process's connections.
fn links(scratch: &Scratch, of: &Running) -> Vec<Value> {
    let shown = scratch.run(&["link", "--json"]);
    shown.expect_code(0);
    let document = shown.json();
    expect_document(&document, "link");
    let links = document["links"].as_array().expect("a list");
    links.iter().filter(|link| link["pid"] == of.pid()).cloned().collect()
}

/// Looks until it is so.
fn shown(scratch: &Scratch, of: &Running, what: &str, is_so: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let begin = Instant::now();
    loop {
        let links = links(scratch, of);
        if is_so(&links) {
            return links;
        }
        assert!(begin.elapsed() < PATIENCE, "{what}: {links:#?}");
    }
}

/// A `zcmi send` of stdin that has sent this much and waits for more, and the `zcmi recv` of it.
fn connected(scratch: &Scratch, address: &str, bytes: usize, more: &[&str]) -> (Running, Running) {
    let mut receiver = scratch.start(&["recv", address, "-o", "out"]);
    let said = receiver.wait_for_words("listening at ");
    let bound = said.split_once("listening at ").and_then(|(_, rest)| rest.split_once(';'));
    let (to, _) = bound.expect("it says where it listens");
    let mut command = scratch.command(&[&["send", to, "-"], more].concat());
    command.stdin(Stdio::piped());
    let mut sender = Running::new(command);
    sender.feed(&noise(bytes, 1));
    (sender, receiver)
}

fn path<'a>(link: &'a Value, name: &str) -> Option<&'a Value> {
    link["paths"].as_array()?.iter().find(|path| path["path"] == name)
}

#[test]
fn where_nobody_is_connected_it_says_what_would_be() {
    let scratch = Scratch::new();
    scratch.run(&["link", "--once"]).expect_code(0);
    scratch.run(&["link", "--once", "--watch"]).expect_code(2);
    let receiver = scratch.start(&["recv", "unix:socket", "-o", "out"]);
    assert_eq!(links(&scratch, &receiver), Vec::<Value>::new());
    receiver.signal(Signal::KILL);
}

#[test]
fn both_ends_are_shown_with_their_addresses_their_path_and_what_it_costs() {
    let scratch = Scratch::new();
    let (mut sender, receiver) = connected(&scratch, "127.0.0.1:0", 24 << 20, &[]);
    let is_measured = |links: &[Value]| {
        let [link] = links else { return false };
        link["probes"].as_u64() > Some(0) && path(link, "write").is_some_and(|path| path["kib_ns"].is_f64())
    };
    let near = shown(&scratch, &sender, "costs are shown", is_measured).remove(0);
    assert_eq!((&near["socket"], &near["stage"], &near["state"]), (&"tcp".into(), &"open".into(), &"running".into()));
    assert_eq!((&near["accepted"], &near["mended"]), (&false.into(), &0.into()));
    assert_ne!(near["reason"], "forced");
    let far = shown(&scratch, &receiver, "what came is shown", |links| {
        links.len() == 1 && links[0]["bytes_received"].as_u64() > Some(20 << 20)
    });
    assert_eq!((&far[0]["local"], &far[0]["remote"]), (&near["remote"], &near["local"]));
    assert_eq!(far[0]["accepted"], true);
    let text = String::from_utf8(scratch.run(&["link"]).stdout).expect("letters");
    let local = near["local"].as_str().expect("an address");
    for word in ["NS/PIECE", "WHY", "write", local, &sender.pid().to_string()] {
        assert!(text.contains(word), "`{word}` is not in:\n{text}");
    }
    sender.close();
    sender.end().expect_code(0);
    receiver.end().expect_code(0);
}

#[test]
fn a_path_that_is_forced_is_shown_as_forced_and_is_the_one_that_is_used() {
    let scratch = Scratch::new();
    let (mut sender, receiver) = connected(&scratch, "unix:socket", 8 << 20, &["--path", "sendfile"]);
    let is_used = |links: &[Value]| {
        links.first().and_then(|link| path(link, "sendfile")?["bytes"].as_u64()).is_some_and(|bytes| bytes > 4 << 20)
    };
    let link = shown(&scratch, &sender, "the path is used", is_used).remove(0);
    assert_eq!((&link["path"], &link["reason"]), (&"sendfile".into(), &"forced".into()));
    assert_eq!((&link["socket"], &link["remote"]), (&"unix".into(), &"unix:socket".into()));
    sender.close();
    sender.end().expect_code(0);
    receiver.end().expect_code(0);
}

#[test]
fn a_stopped_process_is_shown_as_such_and_a_killed_one_is_gone() {
    let scratch = Scratch::new();
    let (sender, receiver) = connected(&scratch, "unix:socket", 1 << 20, &[]);
    shown(&scratch, &sender, "it is connected", |links| links.len() == 1 && links[0]["stage"] == "open");
    sender.signal(Signal::STOP);
    let stopped =
        shown(&scratch, &sender, "it is stopped", |links| links.iter().all(|link| link["state"] == "stopped"));
    assert_eq!((stopped.len(), &stopped[0]["stage"]), (1, &"open".into()));
    let other = links(&scratch, &receiver);
    assert_eq!((other.len(), &other[0]["state"]), (1, &"running".into()));
    sender.signal(Signal::KILL);
    shown(&scratch, &sender, "it is gone", |links| links.is_empty());
    receiver.signal(Signal::KILL);
}
