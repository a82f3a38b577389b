//! `cargo xtask test`: sets up what the tests need, runs all of them, and counts.
//!
//! A step that fails does not stop those after it. What is counted: each test (of `cargo test`, documentation
//! included), each other step as one check, and each line `SKIP: reason` as one skip. A test whose output begins with
//! such a line checked nothing, so it counts as skipped and not as passed. The last line printed is `N passed, N
//! failed, N skipped`.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Outcome;
use crate::command::{self, Ended};
use crate::documents;
use crate::guest;
use crate::loom;
use crate::packages;
use crate::residue::Snapshot;
use crate::tally::Tally;
use crate::workspace;
use crate::xray;

/// How long the tests of the workspace may take, their compilation included.
const LIMIT: Duration = Duration::from_secs(3600);
/// The same for a quick run. The tests themselves stay under three minutes; the rest is for a first compilation.
const QUICK_LIMIT: Duration = Duration::from_secs(900);
/// How long a build may take.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);
/// Why a test is ignored that is no test: another one starts it in a process of its own.
const CHILD: &str = "a child of another test";
/// How long the demonstration may take, also on a machine that others slow down.
const DEMO_LIMIT: Duration = Duration::from_secs(300);

/// Runs everything. `--quick` leaves out what takes long; `--step NAME=CODE` counts a step that was made before, with
/// the code it ended with (or `skip`).
///
/// # Errors
/// If an argument is unknown, or the run cannot make its own directory.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let mut tally = Tally::default();
    let mut quick = false;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--step" => earlier_step(rest.next().ok_or("--step needs NAME=CODE")?, &mut tally)?,
            other => return Err(format!("`{other}` is no argument of test").into()),
        }
    }
    // In this order, so that the directory of the run is not taken for something left behind.
    let own = OwnDirectory::make()?;
    let before = Snapshot::take();
    let steps: Result<(), Box<dyn Error>> = steps(quick, &own, &mut tally);
    if let Err(error) = steps {
        tally.fail(format!("a step could not be made: {error}"));
    }
    let left = Snapshot::take().left_since(&before, &own.0);
    command::end_left_running();
    for thing in &left {
        println!("left behind: {thing}");
    }
    tally.check("nothing is left behind", left.is_empty());
    drop(own);
    if !tally.skips().is_empty() {
        println!("\nskipped:");
        tally.skips().iter().for_each(|reason| println!("    {reason}"));
    }
    if !tally.failures().is_empty() {
        println!("\nfailed:");
        tally.failures().iter().for_each(|name| println!("    {name}"));
    }
    println!("\n{tally}");
    Ok(tally.is_clean())
}

/// All steps between the two looks at the machine.
fn steps(quick: bool, own: &OwnDirectory, tally: &mut Tally) -> Result<(), Box<dyn Error>> {
    packages::install(tally);
    let target = workspace::target_directory()?;

    let mut cargo = workspace::cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    if quick {
        cargo.env("ZCMI_QUICK", "1");
    }
    own.enter(&mut cargo);
    cargo_test("cargo test", &mut cargo, if quick { QUICK_LIMIT } else { LIMIT }, tally);

    let programs = target.join(if quick { "debug" } else { "release" });
    let mut build = workspace::cargo();
    build.args(["build", "--package", "zcmi-cli"]);
    if !quick {
        build.arg("--release");
    }
    let built = step(if quick { "cargo build" } else { "cargo build --release" }, &mut build, BUILD_LIMIT, tally);
    if built {
        if !quick {
            demonstrate(&programs.join("zcmi"), own, tally);
        }
        documents::run(&workspace::root(), &programs, &own.0, tally)?;
    }
    if !quick {
        count_hot_path(tally);
    }
    loom::all(quick, tally)?;
    if !quick {
        guest::net(tally)?;
    }
    Ok(())
}

/// Holds the library's hot path against its bounds, where one process may trace another.
fn count_hot_path(tally: &mut Tally) {
    match xray::run(&[]) {
        Ok(kept) => tally.check("cargo xtask xray", kept),
        Err(error) => match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(std::io::ErrorKind::PermissionDenied) => {
                tally.skip(format!("the hot path's instructions cannot be counted: {error}"));
            }
            _ => tally.fail(format!("cargo xtask xray: {error}")),
        },
    }
}

/// Runs the demonstration, once the program has one.
fn demonstrate(program: &Path, own: &OwnDirectory, tally: &mut Tally) {
    let mut help = Command::new(program);
    let mut present = false;
    let ended = command::run(help.arg("--help"), BUILD_LIMIT, |line| {
        present |= line.split_whitespace().next() == Some("demo");
    });
    tally.check("zcmi --help", matches!(ended, Ok(Ended::Well)));
    if present {
        let mut demo = Command::new(program);
        own.enter(demo.args(["demo", "--quick"]));
        step("zcmi demo --quick", &mut demo, DEMO_LIMIT, tally);
    }
}

/// Runs one step and counts it; `true` if it ended well.
fn step(name: &str, command: &mut Command, limit: Duration, tally: &mut Tally) -> bool {
    let ended = command::run(command, limit, |line| {
        if let Some(reason) = line.strip_prefix("SKIP: ") {
            tally.skip(reason);
        }
    });
    match &ended {
        Ok(Ended::Well) => tally.pass(1),
        Ok(Ended::Badly) => tally.fail(name),
        Ok(Ended::Late) => tally.fail(format!("{name}: not done after {} s", limit.as_secs())),
        Err(error) => tally.fail(format!("{name}: {error}")),
    }
    matches!(ended, Ok(Ended::Well))
}

/// Runs a call of `cargo test ... -- --show-output` and counts its tests.
pub(crate) fn cargo_test(name: &str, command: &mut Command, limit: Duration, tally: &mut Tally) {
    let mut reading = Reading::default();
    let ended = command::run(command, limit, |line| reading.see(line));
    tally.add(reading.finish(name, ended));
}

/// Counts a step that was made before this program started, given as `NAME=CODE`.
fn earlier_step(text: &str, tally: &mut Tally) -> Result<(), Box<dyn Error>> {
    match text.rsplit_once('=') {
        Some((name, "skip")) => tally.skip(format!("{name} is not installed")),
        Some((name, code)) => tally.check(name, code.parse::<u8>()? == 0),
        None => return Err(format!("`{text}` is not NAME=CODE").into()),
    }
    Ok(())
}

/// A directory of this run for everything that tests put into files; it goes when the run ends.
struct OwnDirectory(PathBuf);

impl OwnDirectory {
    /// Makes the directory, where only this user can enter.
    fn make() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("zcmi-xtask-{}", std::process::id()));
        fs::create_dir(&path)?;
        // Tests start peers as other users, which have to reach the sockets and files below; nobody can list it.
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        Ok(Self(path))
    }

    /// Makes `command` keep its temporary files here.
    fn enter(&self, command: &mut Command) {
        command.env("TMPDIR", &self.0);
    }
}

impl Drop for OwnDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}

/// What was read so far from the output of `cargo test`.
#[derive(Default)]
struct Reading {
    tally: Tally,
    /// The test program that runs, until its result was read.
    program: Option<String>,
    /// Whether the next line with something on it is the first of a passed test's output.
    opens_output: bool,
    /// The tests of this program whose output began with a skip.
    only_skipped: usize,
    /// What this program calls ignored tests, and is a part of other tests.
    children: usize,
    /// The test whose output is read.
    test: Option<String>,
    /// Where that test panicked, until it was read why.
    panicked: Option<String>,
}

impl Reading {
    /// Reads one line.
    fn see(&mut self, line: &str) {
        let text = line.trim();
        if let Some(program) = program(text) {
            self.end_program();
            self.program = Some(program);
        } else if let Some(reason) = text.strip_prefix("SKIP: ") {
            self.tally.skip(reason);
            self.only_skipped += usize::from(self.opens_output);
            self.opens_output = false;
        } else if let Some(test) = text.strip_prefix("---- ").and_then(|text| text.strip_suffix(" stdout ----")) {
            self.opens_output = true;
            (self.test, self.panicked) = (Some(test.to_owned()), None);
        } else if let Some((_, place)) = text.split_once(" panicked at ").filter(|_| text.starts_with("thread ")) {
            self.opens_output = false;
            self.panicked = Some(place.trim_end_matches(':').to_owned());
        } else if text.strip_prefix("test ").and_then(|test| test.strip_suffix(CHILD)).is_some() {
            self.children += 1;
        } else if let Some(test) = text.strip_prefix("test ").and_then(|test| test.strip_suffix(" ... FAILED")) {
            let program = self.program.as_deref().unwrap_or("tests");
            self.tally.fail(format!("{program}: {test}"));
        } else if let Some(result) = text.strip_prefix("test result: ") {
            self.result(result);
        } else if !text.is_empty() {
            self.opens_output = false;
            if let (Some(test), Some(place)) = (&self.test, self.panicked.take()) {
                let program = self.program.as_deref().unwrap_or("tests");
                self.tally.explain(&format!("{program}: {test}"), &format!(": {text} ({place})"));
            }
        }
    }

    /// Reads the line with the counts of a program.
    fn result(&mut self, result: &str) {
        let count = |word: &str| {
            let parts = result.split(['.', ';']).map(str::trim);
            parts.filter_map(|part| part.strip_suffix(word)?.trim().parse::<usize>().ok()).next().unwrap_or(0)
        };
        self.tally.pass(count("passed").saturating_sub(self.only_skipped));
        (self.children..count("ignored")).for_each(|_| self.tally.skip("an ignored test"));
        (self.only_skipped, self.children) = (0, 0);
        self.program = None;
    }

    /// Notes a program that ended before it told its result: it crashed, or was killed.
    fn end_program(&mut self) {
        if let Some(program) = self.program.take() {
            self.tally.fail(format!("{program}: ended without a result"));
        }
        (self.only_skipped, self.children) = (0, 0);
    }

    /// The counts, given how the whole call ended.
    fn finish(mut self, name: &str, ended: std::io::Result<Ended>) -> Tally {
        self.end_program();
        match ended {
            Ok(Ended::Well) => {}
            Ok(Ended::Badly) if !self.tally.failures().is_empty() => {}
            Ok(Ended::Badly) => self.tally.fail(format!("{name}: did not build")),
            Ok(Ended::Late) => self.tally.fail(format!("{name}: not done in time")),
            Err(error) => self.tally.fail(format!("{name}: {error}")),
        }
        self.tally
    }
}

/// The test program that cargo announces in `line`.
fn program(line: &str) -> Option<String> {
    if let Some(package) = line.strip_prefix("Doc-tests ") {
        return Some(format!("documentation of {package}"));
    }
    let (source, path) = line.strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once(" (")?;
    let file = Path::new(path).file_name()?.to_str()?;
    let package = file.rsplit_once('-').map_or(file, |(package, _)| package);
    Some(format!("{package} ({})", source.trim_start_matches("unittests ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str, ended: Ended) -> Tally {
        let mut reading = Reading::default();
        output.lines().for_each(|line| reading.see(line));
        reading.finish("cargo test", Ok(ended))
    }

    #[test]
    fn results_of_all_programs_are_added() {
        let output = "     Running unittests src/lib.rs (target/debug/deps/zcmi_ring-0a)\n\
            test a ... ok\ntest b ... FAILED\n\
            successes:\n\n---- a stdout ----\n\nthread 'a' (7) panicked at src/a.rs:1:2:\nas it should\n\n\
            failures:\n\n---- b stdout ----\n\nthread 'b' (8) panicked at src/b.rs:3:4:\nno room\nstack backtrace:\n\
            thread 'b' (8) panicked at src/c.rs:5:6:\nnor there\n\n\
            test result: FAILED. 4 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            \x20  Doc-tests zcmi\n\
            test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let tally = read(output, Ended::Badly);
        assert_eq!(tally.to_string(), "7 passed, 1 failed, 2 skipped");
        assert_eq!(tally.failures(), ["zcmi_ring (src/lib.rs): b: no room (src/b.rs:3:4): nor there (src/c.rs:5:6)"]);
    }

    #[test]
    fn a_test_that_only_skipped_is_not_passed() {
        let output = "     Running tests/x.rs (target/debug/deps/x-0a)\n\
            successes:\n\n---- a stdout ----\nSKIP: no device\n\n---- b stdout ----\nlooked\nSKIP: a part\n\n\
            successes:\n    a\n    b\n\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let tally = read(output, Ended::Well);
        assert_eq!(tally.to_string(), "1 passed, 0 failed, 2 skipped");
        assert_eq!(tally.skips(), ["no device", "a part"]);
    }

    #[test]
    fn a_child_of_another_test_is_no_test() {
        let output = "     Running tests/x.rs (target/debug/deps/x-0a)\n\
            test a ... ignored\ntest child ... ignored, a child of another test\n\
            test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(read(output, Ended::Well).to_string(), "1 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn a_program_that_crashed_is_a_failure() {
        let output = "     Running tests/x.rs (target/debug/deps/x-0a)\ntest a ... ok\n\
            error: test failed, to rerun pass `-p x --test x`\n";
        assert_eq!(read(output, Ended::Badly).failures(), ["x (tests/x.rs): ended without a result"]);
    }

    #[test]
    fn a_build_that_fails_is_a_failure() {
        assert_eq!(read("error[E0308]: mismatched types\n", Ended::Badly).failures(), ["cargo test: did not build"]);
    }

    #[test]
    fn earlier_steps_are_counted_by_their_codes() {
        let mut tally = Tally::default();
        for text in ["fmt=0", "clippy=101", "doc=skip"] {
            earlier_step(text, &mut tally).expect("well formed");
        }
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 1 skipped");
        assert!(earlier_step("fmt", &mut tally).is_err());
    }
}
