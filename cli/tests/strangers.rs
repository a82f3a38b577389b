//! `zcmi pub` and `zcmi sub` of two users.

mod rig;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rig::{Running, Scratch, ZCMI};
use serde_json::Value;

const OWNER: u32 = 61_000;
const STRANGER: u32 = 61_001;

/// A place that several users can reach, and a program that they may run; nothing where there are no other users.
fn shared() -> Option<Scratch> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: starting processes of other users takes root");
        return None;
    }
    let scratch = Scratch::new();
    let set_mode = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod");
    for (name, mode) in [("runtime/p", 0o1777), ("runtime/s", 0o1777)] {
        set_mode(&scratch.directory(name), mode);
    }
    set_mode(&scratch.path("runtime"), 0o711);
    set_mode(&scratch.path("."), 0o755);
    // By another process: a program that a forked child of this one still holds open to write cannot be started.
    let copied = Command::new("cp").arg(ZCMI).arg(scratch.path("zcmi")).status();
    assert!(copied.expect("cp starts").success(), "a copy of the program");
    set_mode(&scratch.path("zcmi"), 0o755);
    Some(scratch)
}

fn start_as(scratch: &Scratch, user: u32, arguments: &[&str]) -> Running {
    let mut command = scratch.command_of(&scratch.path("zcmi"), arguments);
    command.uid(user).gid(user);
    Running::new(command)
}

#[test]
fn a_stream_goes_to_a_user_who_is_allowed_and_to_no_other() {
    let Some(scratch) = shared() else { return };
    let file = scratch.file("data", &vec![7; 3 << 20]);
    fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("chmod");
    let data = file.to_str().expect("text");
    let mut publisher = start_as(&scratch, OWNER, &["pub", "s", data, "--allow-user", "61001"]);
    publisher.wait_for_words("waiting for 1 subscriber");

    let other = start_as(&scratch, 61_002, &["sub", "s", "--from-user", "61000"]);
    let refused = other.end();
    refused.expect_code(1);
    let text = refused.stderr.clone();
    assert!(text.contains("does not let this user in"), "{text}");
    // Who did not ask for strangers is told whom to ask for.
    let unasked = start_as(&scratch, STRANGER, &["sub", "s", "--no-wait"]).end();
    unasked.expect_code(1).expect_words("user 61000 publishes `s`; add --from-user 61000");
    let mut unasked = start_as(&scratch, STRANGER, &["sub", "s"]);
    unasked.wait_for_words("user 61000 publishes `s`; add --from-user 61000");
    unasked.signal(rustix::process::Signal::INT);
    unasked.end().expect_code(130);
    // Of another stream there is nothing to tell.
    let nobody = start_as(&scratch, STRANGER, &["sub", "t", "--no-wait"]).end();
    nobody.expect_code(1).expect_words("nobody publishes `t`");

    let listed = start_as(&scratch, STRANGER, &["list", "--json"]).end();
    listed.expect_code(0);
    let listed: Value = serde_json::from_slice(&listed.stdout).expect("a document");
    let shown = &listed["services"][0]["participants"][0];
    assert_eq!((&shown["uid"], &shown["state"]), (&Value::from(OWNER), &Value::from("unknown")), "{listed}");

    let subscriber = start_as(&scratch, STRANGER, &["sub", "s", "--from-user", "61000"]);
    let received = subscriber.end();
    received.expect_code(0);
    assert!(received.stdout == vec![7; 3 << 20], "{} bytes", received.stdout.len());
    publisher.end().expect_code(0);
}

#[test]
fn a_publisher_that_keeps_others_out_is_not_said_to_live() {
    let Some(scratch) = shared() else { return };
    let mut publisher = start_as(&scratch, OWNER, &["pub", "s", "--wait", "1"]);
    publisher.wait_for_words("waiting for 1 subscriber");
    let unknown = "a publisher of `s` is user 61000's and could not be asked: dead, or not open to this user";
    let look = || start_as(&scratch, STRANGER, &["sub", "s", "--no-wait"]).end();
    look().expect_code(1).expect_words(unknown);
    // Dead or alive, its socket says the same.
    publisher.signal(rustix::process::Signal::KILL);
    publisher.end();
    let text = look().expect_code(1).expect_words(unknown).stderr.clone();
    assert!(!text.contains("publishes"), "{text}");
    // Of one that let us in we know.
    let mut open = start_as(&scratch, OWNER, &["pub", "s", "--wait", "1", "--allow-user", "61001"]);
    open.wait_for_words("waiting for 1 subscriber");
    look().expect_code(1).expect_words("user 61000 publishes `s`; add --from-user 61000");
    open.signal(rustix::process::Signal::KILL);
    open.end();
    look().expect_code(1).expect_words("nobody publishes `s`");
}

#[test]
fn a_directory_of_ones_own_is_no_place_for_others() {
    let scratch = Scratch::new();
    let text = |ended: rig::Ended| ended.stderr.clone();
    for arguments in [["pub", "s", "--allow-everybody"].as_slice(), &["sub", "s", "--from-user", "61001"]] {
        let ended = scratch.run(arguments);
        ended.expect_code(1);
        let said = text(ended);
        assert!(said.contains("0711") && said.contains("ZCMI_RUNTIME_DIR"), "{said}");
    }
    let ended = scratch.run(&["pub", "s", "--allow-user", "no such user"]);
    ended.expect_code(2);
    assert!(text(ended).contains("give the user's number"));
}
