//! The zcmi command line.
//!
//! Each command is a module: its arguments, its help, its work. A command returns a [`failure::Failure`] or nothing;
//! what is printed for it and the exit code are decided here.
#![forbid(unsafe_code)]

mod account;
mod bench;
mod code;
mod demo;
mod descriptor;
mod failure;
mod interrupt;
mod link;
mod list;
mod publish;
mod recv;
mod say;
mod send;
mod store;
mod stream;
mod subscribe;
mod transfer;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::json;

use failure::Failure;

const EXAMPLES: &str = "\
Examples:
  zcmi demo                           see what it is for, in under 40 s
  tar c photos | zcmi pub backup      in one terminal
  zcmi sub backup | tar x             in another
  zcmi list                           who publishes and subscribes here
  zcmi recv                           on one side of a connection
  zcmi send 127.0.0.1:7070 photos     on the other
  zcmi link                           which path each connection takes, and why

Processes find each other in $ZCMI_RUNTIME_DIR, else $XDG_RUNTIME_DIR/zcmi, else /run/zcmi (root), else /tmp/zcmi-<uid>.
Exit codes: 0 ok, 1 failed, 2 usage, 130 interrupted.";

/// Hand data from one process to another without a copy
#[derive(Debug, Parser)]
#[command(name = "zcmi", version, after_help = EXAMPLES)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(name = "pub")]
    Publish(publish::Publish),
    #[command(name = "sub")]
    Subscribe(subscribe::Subscribe),
    List(list::List),
    Send(send::Send),
    #[command(name = "recv")]
    Receive(recv::Receive),
    Link(link::Link),
    Demo(demo::Demo),
    Bench(bench::Bench),
    #[command(hide = true)]
    DemoPart(demo::DemoPart),
}

fn main() -> ExitCode {
    // The second process of a measurement is this executable again.
    zcmi_bench::child::maybe_run_child(
        &[zcmi_bench::ipc::ROLES, zcmi_bench::net::ROLES, zcmi_bench::connections::ROLES].concat(),
    );
    let command = match CommandLine::try_parse() {
        Ok(line) => line.command,
        Err(error) => return not_understood(&error),
    };
    let (json, outcome) = match &command {
        Command::Publish(command) => (command.json(), command.run()),
        Command::Subscribe(command) => (command.json(), command.run()),
        Command::List(command) => (command.json(), command.run()),
        Command::Send(command) => (command.json(), command.run()),
        Command::Receive(command) => (command.json(), command.run()),
        Command::Link(command) => (command.json(), command.run()),
        Command::Demo(command) => (command.json(), command.run()),
        Command::Bench(command) => (command.json(), command.run()),
        Command::DemoPart(command) => (false, command.run()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure, json);
            failure.exit_code()
        }
    }
}

/// Says that the arguments are none that a command has; help and versions, which come here too, are not failures.
fn not_understood(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    if matches!(error.kind(), DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand) {
        error.exit();
    }
    let text = error.render().to_string();
    let failure = Failure::usage(text.strip_prefix("error: ").unwrap_or(&text).trim_end());
    // No command says yet whether it is to tell programs; behind `--` the word would be a name.
    let json = std::env::args_os().take_while(|argument| argument != "--").any(|argument| argument == "--json");
    tell(&failure, json);
    failure.exit_code()
}

/// Says why a command failed, on stderr.
fn tell(failure: &Failure, json: bool) {
    if json {
        let (code, text) = (failure.code(), failure.to_string());
        say::line(json!({ "schema": "zcmi-error/1", "code": code, "error": text }).to_string());
    } else if matches!(failure, Failure::Interrupted) {
        // Whoever pressed Ctrl-C knows, and has nothing to look up.
        say::line(format!("zcmi: {failure}"));
    } else {
        say::line(format!("zcmi: error[{}]: {failure}", failure.code()));
    }
}
