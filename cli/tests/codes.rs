//! The codes of failures: on the last line for people, as `code` for programs.

mod rig;

use std::os::unix::fs::PermissionsExt;

use rig::schema::expect_document;
use rig::{Running, Scratch};

/// Runs a command that fails, for people and for programs, and demands this code of both.
#[track_caller]
fn expect_code(scratch: &Scratch, arguments: &[&str], exit: i32, code: &str) {
    let told = scratch.run(arguments);
    told.expect_code(exit).expect_words(&format!("zcmi: error[{code}]: "));
    let told = scratch.run(&[arguments, &["--json"]].concat());
    told.expect_code(exit);
    let document: serde_json::Value = serde_json::from_str(&told.stderr).expect("one document on stderr");
    expect_document(&document, "error");
    assert_eq!(document["code"], code);
}

#[test]
fn a_failure_of_the_library_shows_the_library_s_code() {
    let scratch = Scratch::new();
    expect_code(&scratch, &["pub", "odd name"], 2, "ZC3003");
    expect_code(&scratch, &["sub", "a//b"], 2, "ZC3004");
    let open = scratch.path("runtime");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("the mode can be set");
    for arguments in [["pub", "stream"], ["sub", "stream"]] {
        expect_code(&scratch, &arguments, 1, "ZC3106");
    }
}

#[test]
fn better_words_keep_the_code_of_the_error_behind_them() {
    let scratch = Scratch::new();
    let mut first = Running::new(scratch.command(&["pub", "stream"]));
    first.wait_for_words("waiting for");
    expect_code(&scratch, &["pub", "stream"], 1, "ZC3302");
    first.signal(rustix::process::Signal::TERM);
    let first = first.end();
    first.expect_code(130).expect_words("interrupted");
    assert!(!first.stderr.contains("error["), "{}", first.stderr);
}

#[test]
fn what_the_command_line_finds_itself_has_a_code_too() {
    let scratch = Scratch::new();
    scratch.file("mine", b"1");
    expect_code(&scratch, &["pub", "stream", "--allow-user", "no such user"], 2, "ZC9001");
    expect_code(&scratch, &["pub", "stream", "not there"], 1, "ZC9002");
    expect_code(&scratch, &["sub", "stream", "--no-wait"], 1, "ZC9021");
    expect_code(&scratch, &["sub", "stream", "-o", "mine"], 1, "ZC9035");
}

#[test]
fn arguments_that_are_not_understood_have_a_code_too() {
    let scratch = Scratch::new();
    for arguments in [&["pub"][..], &["sub", "stream", "--no-such-flag"], &["no-such-command"]] {
        expect_code(&scratch, arguments, 2, "ZC9001");
        let told = scratch.run(arguments);
        assert!(told.stderr.starts_with("zcmi: error[ZC9001]: "), "{}", told.stderr);
        assert!(!told.stderr.contains("error: "), "{}", told.stderr);
        told.expect_words("--help");
    }
    // Behind `--` everything is a name.
    let told = scratch.run(&["list", "--no-such-flag", "--", "--json"]);
    told.expect_code(2).expect_words("zcmi: error[ZC9001]: ");
}

#[test]
fn help_and_the_version_are_no_failures() {
    let scratch = Scratch::new();
    for arguments in [&["--help"][..], &["--version"], &["pub", "--help", "--json"]] {
        let told = scratch.run(arguments);
        told.expect_code(0);
        assert!(!told.stdout.is_empty() && told.stderr.is_empty(), "{told:?}");
    }
    scratch.run(&[]).expect_code(2).expect_words("Examples:");
}
