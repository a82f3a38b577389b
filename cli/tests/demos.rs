//! `zcmi demo`: it shows what it promises, and leaves nothing.

mod rig;

use std::fs;
use std::time::Instant;

use rig::schema::expect_document;
use rig::{Running, Scratch, make_tree};
use rustix::process::{Pid, Signal, kill_process};

/// What a demo left in the directory for temporary files.
fn left(scratch: &Scratch) -> Vec<String> {
    let entries = fs::read_dir(scratch.path(".")).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("zcmi-demo")).collect()
}

#[test]
fn the_quick_demo_shows_all_three_ways_and_leaves_nothing() {
    let scratch = Scratch::new();
    make_tree(&scratch.path("tree"));
    let shown = scratch.run(&["demo", "--quick", "--json", "--dir", "tree"]);
    shown.expect_code(0);
    let document = shown.json();
    expect_document(&document, "demo");
    assert_eq!(document["hashes_agree"], true);
    assert_eq!(document["all_in_place"], true);
    assert!(document["seconds"].as_f64().expect("a number") < 30.0, "{document:#}");
    for load in document["loads"].as_array().expect("a list") {
        let roads = load["roads"].as_array().expect("a list");
        let names: Vec<_> = roads.iter().map(|road| road["road"].as_str().expect("a name")).collect();
        assert_eq!(names, ["pipe", "socket", "zcmi"]);
        for road in roads {
            assert_eq!(road["xxh3_128"], roads[0]["xxh3_128"]);
            assert!(road["p50_ns"].as_u64() <= road["p99_ns"].as_u64());
            let by_ledger = road["copied_user_per_byte"].as_f64();
            assert_eq!(by_ledger, (road["road"] == "zcmi").then_some(0.0), "{road:#}");
            // Where the kernel does not count, there is no figure.
            if let Some(copied) = road["copied_per_byte"].as_f64() {
                let expected = if road["road"] == "zcmi" { 0.0 } else { 2.0 };
                assert!((copied - expected).abs() < 0.01, "{road:#}");
            }
        }
    }
    assert!(left(&scratch).is_empty(), "{:?}", left(&scratch));
}

#[test]
fn an_interrupted_demo_ends_with_130_and_leaves_nothing() {
    let scratch = Scratch::new();
    make_tree(&scratch.path("tree"));
    let mut command = scratch.command(&["demo", "--quick", "--dir", "tree"]);
    command.env("ZCMI_RUNTIME_DIR", scratch.path("unused"));
    let demo = Running::new(command);
    // It has begun when it has a place.
    let begin = Instant::now();
    while left(&scratch).is_empty() {
        assert!(begin.elapsed() < rig::LIMIT, "the demo did not begin");
        std::thread::yield_now();
    }
    demo.signal(Signal::INT);
    demo.end().expect_code(130);
    assert!(left(&scratch).is_empty(), "{:?}", left(&scratch));
}

#[test]
fn a_demo_whose_process_is_killed_fails_and_leaves_nothing() {
    let scratch = Scratch::new();
    make_tree(&scratch.path("tree"));
    let demo = scratch.start(&["demo", "--dir", "tree"]);
    let children = format!("/proc/{0}/task/{0}/children", demo.pid());
    let begin = Instant::now();
    let child = loop {
        assert!(begin.elapsed() < rig::LIMIT, "the demo started no process");
        let text = fs::read_to_string(&children).unwrap_or_default();
        if let Some(Some(child)) =
            text.split_whitespace().next().map(|number| number.parse().ok().and_then(Pid::from_raw))
        {
            break child;
        }
        std::thread::yield_now();
    };
    kill_process(child, Signal::KILL).expect("the child can be killed");
    demo.end().expect_code(1).expect_words("process failed");
    assert!(left(&scratch).is_empty(), "{:?}", left(&scratch));
}

#[test]
fn what_a_killed_demo_left_goes_with_the_next_one_and_a_living_one_keeps_its_own() {
    let scratch = Scratch::new();
    make_tree(&scratch.path("tree"));
    let wait_for_directories = |count: usize| {
        let begin = Instant::now();
        while left(&scratch).len() < count {
            assert!(begin.elapsed() < rig::LIMIT, "the demo did not begin");
            std::thread::yield_now();
        }
        left(&scratch)
    };
    let killed = scratch.start(&["demo", "--dir", "tree"]);
    let nobodys = wait_for_directories(1);
    killed.signal(Signal::KILL);
    assert_eq!(killed.end().status.code(), None);
    assert_eq!(left(&scratch), nobodys);
    let living = scratch.start(&["demo", "--dir", "tree"]);
    let begin = Instant::now();
    while left(&scratch) == nobodys || left(&scratch).is_empty() {
        assert!(begin.elapsed() < rig::LIMIT, "the demo did not begin");
        std::thread::yield_now();
    }
    let own = left(&scratch);
    assert_eq!(own.len(), 1, "the killed one's is gone: {own:?}");
    scratch.run(&["demo", "--quick", "--json", "--dir", "tree"]).expect_code(0);
    assert_eq!(left(&scratch), own, "the living one's stays");
    living.signal(Signal::INT);
    living.end().expect_code(130);
    assert!(left(&scratch).is_empty(), "{:?}", left(&scratch));
}

#[test]
fn a_directory_that_is_not_there_is_said() {
    let scratch = Scratch::new();
    scratch.run(&["demo", "--dir", "nowhere"]).expect_code(1).expect_words("nowhere cannot be read");
}
