//! `zcmi list`: what is there, stopped, or left behind.

mod rig;

use rig::Scratch;
use rig::schema::expect_document;
use rustix::process::Signal;
use serde_json::Value;

fn participants(scratch: &Scratch) -> Vec<Value> {
    let listed = scratch.run(&["list", "--json"]);
    listed.expect_code(0);
    let document = listed.json();
    expect_document(&document, "list");
    let services = document["services"].as_array().expect("a list").clone();
    services.iter().flat_map(|service| service["participants"].as_array().expect("a list").clone()).collect()
}

#[test]
fn an_empty_place_lists_nothing_and_says_what_to_do() {
    let scratch = Scratch::new();
    let listed = scratch.run(&["list"]);
    listed.expect_code(0);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("zcmi pub NAME"));
    assert!(participants(&scratch).is_empty());
}

#[test]
fn a_running_publisher_is_listed_with_its_process_owner_and_memory() {
    let scratch = Scratch::new();
    let mut publisher = scratch.start(&["pub", "films/new"]);
    publisher.wait_for_words("waiting for 1 subscriber");
    let listed = scratch.run(&["list"]);
    listed.expect_code(0);
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    for word in ["films/new", "publisher", "running", "MiB", &publisher.pid().to_string()] {
        assert!(text.contains(word), "`{word}` is not in:\n{text}");
    }
    let found = participants(&scratch);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["pid"], publisher.pid());
    assert_eq!(found[0]["uid"], rustix::process::getuid().as_raw());
    assert!(found[0]["memory_bytes"].as_u64().expect("a number") > 1 << 20, "{found:?}");
    assert!(found[0]["process_regions"].as_u64().expect("a number") > 0, "{found:?}");
}

#[test]
fn a_stopped_process_is_shown_as_stopped_with_what_can_be_read() {
    let scratch = Scratch::new();
    let mut publisher = scratch.start(&["pub", "stream"]);
    publisher.wait_for_words("waiting for 1 subscriber");
    publisher.signal(Signal::STOP);
    // The kernel stops the process at its next step; a list takes 100 ms for each process that is silent.
    let stopped = (0..50).map(|_| participants(&scratch)).find(|found| found[0]["state"] == "stopped");
    let stopped = stopped.expect("it is shown as stopped");
    assert_eq!(stopped[0]["pid"], publisher.pid());
    // Its ledger is read all the same: nobody has come, so nothing was published.
    assert_eq!(stopped[0]["messages"], 0, "{stopped:?}");
    assert_eq!(stopped[0]["capacity"].as_u64().map(u64::is_power_of_two), Some(true), "{stopped:?}");
    assert!(stopped[0]["process_regions"].as_u64() > Some(0), "{stopped:?}");
    publisher.signal(Signal::CONT);
    scratch.run(&["sub", "stream"]).expect_code(0);
    publisher.end().expect_code(0);
}

#[test]
fn what_a_killed_process_left_is_shown_and_can_be_swept() {
    let scratch = Scratch::new();
    let mut publisher = scratch.start(&["pub", "stream"]);
    publisher.wait_for_words("waiting for 1 subscriber");
    publisher.signal(Signal::KILL);
    assert!(publisher.end().status.code().is_none());
    assert_eq!(participants(&scratch)[0]["state"], "residue");
    let swept = scratch.run(&["list", "--sweep", "--json"]);
    swept.expect_code(0);
    expect_document(&swept.json(), "list");
    assert_eq!(swept.json()["swept"]["processes"], 1);
    assert_eq!(scratch.residue(), Vec::<std::path::PathBuf>::new());
    assert!(participants(&scratch).is_empty());
}
