//! `zcmi send`: files, directories or stdin to a `zcmi recv` on this or another host.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::json;
use zcmi::net::path::PathKind;
use zcmi::net::stream::StreamOptions;
use zcmi::net::transport::Transport as _;
use zcmi::registration::Support;

use crate::code::Fault;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::say::{self, Tell, harmless};
use crate::transfer::reach::{Reach, connect_to};
use crate::transfer::sender::Sender;
use crate::transfer::talk::{Talk, path_in_use};
use crate::transfer::walk::Walk;

/// Pieces that are on their way at a time.
const LOANED: u32 = 16;
/// How often everything is begun anew because the other side was.
const BEGINS: u32 = 16;
/// The answers are short.
const RECEIVED: u32 = 2;

const EXAMPLES: &str = "\
Examples:
  zcmi recv                            in one terminal: it prints its address, and waits for one transfer
  zcmi send 127.0.0.1:7070 photos a    in another: a directory with everything below, and a file
  tar c photos | zcmi send HOST:7070 - --key-file k    stdin, to `zcmi recv 0.0.0.0:7070 -o FILE --key-file k`
  zcmi send unix:/run/user/1000/z a    over a Unix socket

A directory arrives under its own name; of `.` the content does. Permission bits and times of files and directories are
kept, owners are not. An argument that is a link is followed; links inside a directory are sent as links. Devices,
sockets and pipes are left out.
After a break, run the same command again: what arrived is compared by its hash and not sent again. A file that changes
while it is sent is left out. With --no-hash a large file is not read here: the kernel sends it from where it lies.
A key proves to each side who the other is; it does not encrypt. Without one, only loopback addresses and Unix sockets
are used, and others with --insecure.
How far it is, the rate and the path are shown while it goes on if stderr is a terminal, and not with --json or -q.
Exit codes: 0 everything arrived, and its hashes are right; 1 something did not; 2 usage; 130 interrupted.";

/// Send files, directories or stdin to `zcmi recv`
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Send {
    /// Where `zcmi recv` listens: HOST:PORT, [IPV6]:PORT or unix:PATH
    #[arg(value_name = "HOST:PORT")]
    to: String,
    /// Files and directories; `-` alone for stdin
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    reach: Reach,
    /// Send by this path only: write, zerocopy, uring-send, uring-zc, uring-fixed, sendfile or splice
    #[arg(long, value_name = "NAME", value_parser = path)]
    path: Option<PathKind>,
    /// Say nothing but failures
    #[arg(short, long)]
    quiet: bool,
    /// Print a line of JSON for each file, for each entry that was left out, and at the end
    #[arg(long)]
    json: bool,
}

/// Reads the name of a path.
fn path(name: &str) -> Result<PathKind, String> {
    PathKind::from_name(name).ok_or_else(|| {
        let names: Vec<_> = PathKind::ALL.iter().map(|path| path.name()).collect();
        format!("the paths are {}", names.join(", "))
    })
}

impl Send {
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    pub(crate) fn run(&self) -> Result<(), Failure> {
        let tell = Tell { json: self.json, quiet: self.quiet };
        let interrupt = Interrupt::install()?;
        let walk = Walk::new(&self.files)?;
        let options = StreamOptions { path: self.path, ..self.reach.options(RECEIVED, LOANED)? };
        let address = connect_to(&self.to, self.reach.resume_for(), &interrupt)?;
        let mut talk = Talk::new(options, interrupt)?;
        self.check_path(&talk)?;
        self.reach.check_trust(&talk, &address, &self.to)?;
        let begin = Instant::now();
        let mut walk = Some(walk);
        for _ in 0..BEGINS {
            let connection = talk.transport.connect(&address);
            let connection = connection
                .map_err(|error| Failure::of(format_args!("{} cannot be reached", harmless(&self.to)), &error))?;
            talk.turn_to(connection);
            let walked = walk.take().map_or_else(|| Walk::new(&self.files), Ok)?;
            let (hashed, to) = (self.reach.is_hashed(), harmless(&self.to));
            let mut sender = Sender::new(&mut talk, walked, hashed, self.path, to, tell);
            match sender.run() {
                Ok(()) => return self.report(&sender, begin.elapsed().as_secs_f64(), tell),
                // What came from stdin is gone.
                Err(failure) if !sender.is_session_lost || self.files.iter().any(|file| file.as_os_str() == "-") => {
                    return Err(failure);
                }
                Err(_) => tell.note("the other side was started anew; it says what it has, and the rest is sent"),
            }
        }
        Err(Failure::new(Fault::PeerGaveUp, format!("{} is started anew again and again", harmless(&self.to))))
    }

    fn check_path(&self, talk: &Talk) -> Result<(), Failure> {
        let capabilities = talk.transport.capabilities();
        let support = capabilities.paths.into_iter().find(|(path, _)| Some(*path) == self.path);
        match support {
            Some((path, Support::No(why))) => {
                Err(Failure::new(Fault::PathUnavailable, format!("the path {path} cannot be used here: {why}")))
            }
            _ => Ok(()),
        }
    }

    fn report(&self, sender: &Sender<'_>, seconds: f64, tell: Tell) -> Result<(), Failure> {
        let (sent, facts) = (&sender.sent, sender.facts.as_ref());
        let path = facts.and_then(path_in_use).map(|(path, _)| path);
        let kept = match sent.bytes_kept {
            0 => String::new(),
            bytes => format!(", {} of it there before", say::bytes(bytes)),
        };
        tell.note(format!(
            "{} in {} sent to {}, {seconds:.2} s{kept}{}",
            say::bytes(sent.bytes),
            say::counted(sent.files as usize, "file"),
            harmless(&self.to),
            path.map_or(String::new(), |path| format!("; path: {path}")),
        ));
        if self.json {
            let paths: serde_json::Map<_, _> = facts
                .into_iter()
                .flat_map(|facts| PathKind::ALL.iter().zip(&facts.counts.paths))
                .filter(|(_, counts)| counts.bytes > 0)
                .map(|(path, counts)| (path.name().to_string(), counts.bytes.into()))
                .collect();
            let line = json!({
                "schema": "zcmi-send/1",
                "to": self.to,
                "entries": sent.entries,
                "files": sent.files,
                "bytes": sent.bytes,
                "files_already_there": sent.already,
                "bytes_already_there": sent.bytes_kept,
                "left_out": sent.left_out.count,
                "interruptions": sent.interruptions,
                "hashed": sender.is_hashed(),
                "seconds": seconds,
                "paths": paths,
            });
            say::print(&format!("{line}\n"))?;
        }
        sent.left_out.failure(sent.entries, sent.files).map_or(Ok(()), Err)
    }
}
