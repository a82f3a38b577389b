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
    let listed = String::from_utf8(scratch.run(&["list"]).stdout).expect("text");
    assert!(listed.contains("1 dead process left residue; `zcmi list --sweep` removes it"), "{listed}");
    let swept = scratch.run(&["list", "--sweep", "--json"]);
    swept.expect_code(0);
    expect_document(&swept.json(), "list");
    assert_eq!(swept.json()["swept"]["processes"], 1);
    assert_eq!(scratch.residue(), Vec::<std::path::PathBuf>::new());
    assert!(participants(&scratch).is_empty());
}

#[test]
fn a_list_makes_no_runtime_directory_and_says_that_nothing_runs() {
    let scratch = Scratch::new();
    let missing = scratch.path("missing");
    for arguments in [&["list"][..], &["list", "--json"], &["list", "--sweep", "--json"]] {
        let mut command = scratch.command(arguments);
        command.env("ZCMI_RUNTIME_DIR", &missing);
        let listed = rig::Running::new(command).end();
        listed.expect_code(0);
        if arguments.contains(&"--json") {
            expect_document(&listed.json(), "list");
            assert_eq!(listed.json()["services"], serde_json::json!([]));
        } else {
            let text = String::from_utf8_lossy(&listed.stdout).into_owned();
            assert!(text.contains("nothing runs here") && text.contains("missing"), "{text}");
        }
        assert!(!missing.exists(), "{arguments:?} made it");
    }
    // One that is there and empty stays empty too.
    scratch.directory("bare");
    std::fs::set_permissions(scratch.path("bare"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
    let mut command = scratch.command(&["list"]);
    command.env("ZCMI_RUNTIME_DIR", scratch.path("bare"));
    rig::Running::new(command).end().expect_code(0);
    assert_eq!(std::fs::read_dir(scratch.path("bare")).expect("a listing").count(), 0);
    // What can never be one is refused, as `pub` and `sub` refuse it.
    std::fs::set_permissions(scratch.path("bare"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
    let mut command = scratch.command(&["list", "--json"]);
    command.env("ZCMI_RUNTIME_DIR", scratch.path("bare"));
    let refused = rig::Running::new(command).end();
    refused.expect_code(1);
    assert!(refused.stderr.contains("\"ZC3106\""), "{}", refused.stderr);
}

#[test]
fn a_stream_that_stands_still_is_listed_with_what_both_ends_counted() {
    let scratch = Scratch::new();
    let mut command = scratch.command(&["pub", "stream"]);
    command.stdin(std::process::Stdio::piped());
    let mut publisher = rig::Running::new(command);
    publisher.wait_for_words("waiting for 1 subscriber");
    let subscriber = scratch.start(&["sub", "stream"]);
    publisher.feed(&vec![7; 3 << 20]);
    let waits = |one: &Value| one["waits"].as_u64();
    // It stands still when the subscriber has everything and waits for the rest.
    let received = |found: &[Value]| {
        found.len() == 2
            && found.iter().all(|one| one["bytes"].as_u64() >= Some(3 << 20) && one["peers"].as_u64() == Some(1))
            && found.iter().any(|one| one["role"] == "subscriber" && waits(one) > Some(0))
    };
    let found = (0..500)
        .map(|_| participants(&scratch))
        .find(|found| received(found))
        .expect("all of it arrives and the rest is waited for");
    assert_eq!(found[0]["bytes"], found[1]["bytes"], "{found:#?}");
    for one in &found {
        assert_eq!(one["messages"], found[0]["messages"]);
        assert_eq!((&one["copied_user"], &one["lost"], &one["fallbacks"]), (&0.into(), &0.into(), &0.into()));
        assert_eq!(one["ledger"]["counts"]["bytes_delivered"], one["bytes"]);
    }
    let reads = found.iter().find(|one| one["role"] == "subscriber").expect("a subscriber");
    assert_eq!(reads["refused"], 0);

    // Stopped, it is shown with the same figures, in the table too.
    subscriber.signal(Signal::STOP);
    let is_stopped = |found: &[Value]| found.iter().any(|one| one["state"] == "stopped");
    let stopped = (0..50).map(|_| participants(&scratch)).find(|found| is_stopped(found)).expect("it stops");
    let of = stopped.iter().find(|one| one["state"] == "stopped").expect("one that is stopped");
    assert_eq!(
        (&of["role"], &of["bytes"], &of["messages"]),
        (&"subscriber".into(), &reads["bytes"], &reads["messages"])
    );
    let listed = scratch.run(&["list"]);
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    for word in ["COPIED", "LOST", "REFUSED", "WAITS", "WAKES", "FALLBACKS", "stopped", "running"] {
        assert!(text.contains(word), "`{word}` is not in:\n{text}");
    }
    let line = text.lines().find(|line| line.contains("stopped")).expect("a line");
    assert!(line.contains(&reads["messages"].to_string()) && line.contains("3.0 MiB"), "{text}");
    subscriber.signal(Signal::CONT);
    publisher.close();
    publisher.end().expect_code(0);
    subscriber.end().expect_code(0);
}
