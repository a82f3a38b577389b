//! The checks and rigs of the repository: `cargo xtask` lists them.
//!
//! Logic that others keep in shell scripts lives here, where it is compiled, linted and tested. Nothing in this package
//! is shipped, and nothing that is shipped imports it.
#![deny(unsafe_code)]

mod command;
mod documents;
mod guest;
mod long;
mod loom;
mod packages;
mod peers;
mod residue;
mod tally;
mod targets;
mod test;
mod tidy;
mod workspace;
mod xray;

use std::error::Error;
use std::process::ExitCode;

/// What a task returns: whether everything it checked was in order, or why it could not finish.
type Outcome = Result<bool, Box<dyn Error>>;

/// A task of this program.
struct Task {
    name: &'static str,
    usage: &'static str,
    purpose: &'static str,
    run: fn(&[String]) -> Outcome,
}

/// Every task, in the order in which the list shows them.
const TASKS: &[Task] = &[
    Task {
        name: "test",
        usage: "test [--quick]",
        purpose: "Set up what the tests need, run all of them, and count",
        run: test::run,
    },
    Task { name: "tidy", usage: "tidy", purpose: "Check what lints cannot see", run: tidy::run },
    Task {
        name: "loom",
        usage: "loom [MODEL]",
        purpose: "Explore the models of zcmi-ring, all of them or one",
        run: loom::run,
    },
    Task {
        name: "long",
        usage: "long [CAMPAIGN]",
        purpose: "Run the long forms of tests between hosts: random operations, hostile bytes, killed processes, \
                  bad networks; all of them (hours) or one",
        run: long::run,
    },
    Task {
        name: "guest",
        usage: "guest net",
        purpose: "Send through a real virtio device, on the distribution's kernels under emulation",
        run: guest::run,
    },
    Task {
        name: "peers",
        usage: "peers ipc|net|send [--rounds N] [--out FILE] [-- ARGS]",
        purpose: "Measure other systems and zcmi in turns",
        run: peers::run,
    },
    Task {
        name: "xray",
        usage: "xray | xray BINARY SYMBOL... | xray --step FROM TO [--windows N] PROGRAM [ARGS]",
        purpose: "Hold the hot path against its bounds, show what a function was compiled to, or count instructions \
                  between two markers",
        run: xray::run,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = arguments.split_first() else {
        list();
        return ExitCode::SUCCESS;
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        list();
        return ExitCode::SUCCESS;
    }
    let Some(task) = TASKS.iter().find(|task| task.name == name) else {
        eprintln!("there is no task `{name}`; `cargo xtask` lists those there are");
        return ExitCode::from(2);
    };
    match workspace::check(&workspace::root()).and_then(|()| (task.run)(rest)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo xtask {name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints every task with its usage.
fn list() {
    println!("cargo xtask TASK");
    for task in TASKS {
        println!("\n  {}\n      {}", task.usage, task.purpose);
    }
}
