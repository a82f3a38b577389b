//! `zcmi recv`: takes what a `zcmi send` on this or another host sends.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::fs::{Mode, OFlags};
use serde_json::json;
use zcmi::net::transport::{ConnectionId, Event, Transport as _};

use crate::code::Fault;
use crate::descriptor::{LOOK, Outlet};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::say::{self, Tell, harmless};
use crate::store::{names_directory, no_directory};
use crate::transfer::reach::{Reach, listen_at, seen_from_elsewhere};
use crate::transfer::receiver::{Session, Target};
use crate::transfer::talk::{Talk, words};
use crate::transfer::tree::{Allowed, Tree};
use crate::transfer::{Lines, what_arrived};

/// Pieces that may wait to be written. The sender is given half of them ahead, and told of more when it has used half
/// of those, so that it never waits for a word of ours as long as they are written.
const RECEIVED: u32 = 32;
/// The answers are short; a slot of a piece is for those that are not.
const LOANED: u32 = 2;
/// How long a sender may take until it says what it is.
const GREETING: Duration = Duration::from_secs(10);
/// How long the end may take once everything is there.
const ENDING: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  zcmi recv                            wait at 127.0.0.1:7070 for one transfer, into the present directory
  zcmi recv 127.0.0.1:0 -o photos/     at any free port, which is printed, into a directory that is made
  zcmi recv unix:/run/user/1000/z -o - | tar x     over a Unix socket, to stdout
  zcmi recv 0.0.0.0:7070 --key-file k --keep       from other hosts who have the key, until Ctrl-C

A file appears under its name when it is whole and its hash is right. Until then it is NAME.zcmi-part, with a small
NAME.zcmi-journal beside it: after a break or a kill of either side, start both again, and it goes on where it was.
What is there already is kept, and is no fault if it is the same; --force replaces what differs.
Nothing is written outside of the output directory, and no link in it is followed. A link that leads outside is not made
without --unsafe-links. The system writes to the disk when it likes, unless --fsync is given.
How far it is and the rate are shown while it goes on if stderr is a terminal, and not with --json or -q; the path, at
the sender.
Exit codes: 0 everything arrived, and its hashes are right; 1 something did not; 2 usage; 130 interrupted.";

/// Receive what `zcmi send` sends
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Receive {
    /// Where to listen: HOST:PORT, [IPV6]:PORT or unix:PATH; port 0 takes a free one
    #[arg(default_value = "127.0.0.1:7070")]
    address: String,
    /// A directory, or for one file its name, or `-` for stdout; a path with `/` at its end is made a directory
    #[arg(short, long, value_name = "PATH", default_value = ".")]
    output: PathBuf,
    /// Go on with the next transfer after each
    #[arg(long)]
    keep: bool,
    /// End after one transfer, which is the default
    #[arg(long, conflicts_with = "keep")]
    once: bool,
    /// Replace files and links that are there, and change modes and times of directories that are
    #[arg(long)]
    force: bool,
    /// Make links that lead out of the output directory
    #[arg(long)]
    unsafe_links: bool,
    /// Wait until the disk has each file before it gets its name
    #[arg(long)]
    fsync: bool,
    #[command(flatten)]
    reach: Reach,
    /// Say nothing but failures
    #[arg(short, long)]
    quiet: bool,
    /// Print lines of JSON: address, each file, each entry left out, end of a transfer; on stderr if files go to stdout
    #[arg(long)]
    json: bool,
}

/// One transfer that is going on.
struct Current {
    session: Session,
    begin: Instant,
    /// When it is given up, unless something happens before.
    deadline: Option<Instant>,
    is_interrupted: bool,
}

impl Receive {
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    pub(crate) fn run(&self) -> Result<(), Failure> {
        let tell = Tell { json: self.json, quiet: self.quiet };
        let interrupt = Interrupt::install()?;
        let mut target = self.target()?;
        let options = self.reach.options(RECEIVED, LOANED)?;
        let address = listen_at(&self.address)?;
        let mut talk = Talk::new(options, interrupt)?;
        self.reach.check_trust(&talk, &address, &self.address)?;
        let listening = talk.transport.listen(&address);
        let (_, bound) = listening
            .map_err(|error| Failure::of(format_args!("{} cannot be listened at", harmless(&self.address)), &error))?;
        let _gone_with_us = Socket::of(&bound);
        let (there, trust) = (seen_from_elsewhere(&bound), self.reach.trust.to_say());
        tell.note(format!("listening at {bound}; run `zcmi send {there}{trust} FILE`"));
        if self.json {
            let line = json!({ "schema": "zcmi-recv-listening/1", "address": bound.to_string() });
            self.lines().print(&line)?;
        }
        loop {
            let ended = self.one(&mut talk, &mut target, tell);
            match ended {
                Err(Failure::Interrupted) => return Err(Failure::Interrupted),
                Err(failure) if self.keep => crate::tell(&failure, self.json),
                Ok(()) if self.keep => {}
                ended => return ended,
            }
        }
    }

    fn is_stdout(&self) -> bool {
        self.output.as_os_str() == "-"
    }

    fn lines(&self) -> Lines {
        if self.is_stdout() { Lines::Stderr } else { Lines::Stdout }
    }

    fn target(&self) -> Result<Target, Failure> {
        let allowed = Allowed { force: self.force, unsafe_links: self.unsafe_links, fsync: self.fsync };
        if self.is_stdout() {
            if std::io::stdout().is_terminal() {
                return Err(Failure::usage("stdout is a terminal; name a directory or a file with --output"));
            }
            let stdout = std::io::stdout().as_fd().try_clone_to_owned();
            let stdout = stdout.map_err(|error| Failure::of("stdout cannot be written", &error))?;
            return Ok(Target::Stream { outlet: Outlet::new(stdout), shown: "stdout".into() });
        }
        let shown = harmless(&self.output.display().to_string());
        let kind = std::fs::metadata(&self.output).map(|metadata| metadata.file_type());
        match kind {
            Ok(kind) if kind.is_dir() => {
                return open(&self.output).map(|root| Target::Tree(Tree::new(root, shown, allowed)));
            }
            // Such as /dev/null, or a pipe somebody reads.
            Ok(kind) if kind.is_char_device() || kind.is_fifo() => {
                let flags = OFlags::NOCTTY.bits() as i32;
                let file = File::options().write(true).custom_flags(flags).open(&self.output);
                let file = file.map_err(|error| Failure::of(format_args!("{shown} cannot be written"), &error))?;
                return Ok(Target::Stream { outlet: Outlet::new(file.into()), shown });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && names_directory(&self.output) => {
                std::fs::create_dir(&self.output)
                    .map_err(|error| Failure::of(format_args!("the directory {shown} cannot be made"), &error))?;
                return open(&self.output).map(|root| Target::Tree(Tree::new(root, shown, allowed)));
            }
            Err(error) if names_directory(&self.output) => return Err(no_directory(&self.output, &error)),
            Ok(_) if self.keep => {
                let text = "is a file; give another name, with `/` at its end";
                return Err(Failure::usage(format!("--keep needs a directory, and {shown} {text}")));
            }
            _ => {}
        }
        if self.keep {
            return Err(Failure::usage(format!("--keep needs a directory, and {shown} is one file; write `{shown}/`")));
        }
        let name = self.output.file_name().ok_or_else(|| Failure::usage(format!("{shown} names no file")))?;
        let parent = self.output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let within = harmless(&parent.display().to_string());
        Ok(Target::One { tree: Tree::new(open(parent)?, within, allowed), name: name.as_bytes().to_vec() })
    }

    /// Serves one transfer.
    fn one(&self, talk: &mut Talk, target: &mut Target, tell: Tell) -> Result<(), Failure> {
        let mut current: Option<Current> = None;
        let mut events = Vec::new();
        loop {
            let polled = talk.poll(&mut events, LOOK);
            let mut ended = polled.map(|()| false);
            for event in events.drain(..) {
                if matches!(ended, Ok(false)) {
                    ended = self.take(event, &mut current, talk, target, tell);
                } else {
                    // What comes for others while this one ends is said to them too.
                    if let Event::Accepted { connection, .. } = event {
                        talk.turn_away(connection, "this `zcmi recv` has just ended its transfer; try again");
                    }
                }
            }
            if let Some(now) = &current
                && now.deadline.is_some_and(|deadline| deadline <= Instant::now())
                && matches!(ended, Ok(false))
            {
                let connection = talk.connection;
                talk.transport.abort(connection);
                if now.session.is_done {
                    ended = Ok(true);
                } else {
                    tell.note("a sender connected and said nothing; it was given up");
                    current = None;
                    talk.turn_to(ConnectionId::NONE);
                }
            }
            match ended {
                Ok(false) => {}
                Ok(true) => {
                    talk.turn_to(ConnectionId::NONE);
                    return current.map_or(Ok(()), |current| self.report(&current, tell));
                }
                Err(failure) => {
                    if let Some(current) = current {
                        current.session.bar.finish_and_clear();
                        talk.give_up(&failure);
                        let connection = talk.connection;
                        talk.transport.abort(connection);
                    }
                    talk.turn_to(ConnectionId::NONE);
                    return Err(failure);
                }
            }
        }
    }

    /// Takes an event; whether the transfer is over.
    fn take(
        &self,
        event: Event,
        current: &mut Option<Current>,
        talk: &mut Talk,
        target: &mut Target,
        tell: Tell,
    ) -> Result<bool, Failure> {
        match event {
            Event::Accepted { connection, .. } => {
                if let Some(now) = current {
                    // A sender that was killed and started again comes over a new connection.
                    if !now.is_interrupted || now.session.has_streamed() {
                        talk.turn_away(connection, "another transfer is going on here; try again later");
                        return Ok(false);
                    }
                    now.session.bar.finish_and_clear();
                    let before = talk.connection;
                    talk.transport.abort(before);
                }
                talk.turn_to(connection);
                let deadline = Some(Instant::now() + GREETING);
                let session = Session::new(self.reach.is_hashed(), tell, self.lines());
                *current = Some(Current { session, begin: Instant::now(), deadline, is_interrupted: false });
            }
            Event::Received { connection, piece } if connection == talk.connection => {
                let Some(now) = current else { return Ok(false) };
                now.session.take(&piece, target, talk)?;
                if now.session.is_done {
                    talk.flush()?;
                    talk.transport.close(connection);
                    now.deadline = Some(Instant::now() + ENDING);
                } else if now.session.is_greeted() {
                    now.deadline = None;
                }
            }
            Event::Interrupted { connection, reason } if connection == talk.connection => {
                if let Some(now) = current {
                    if now.session.is_done {
                        return Ok(true);
                    }
                    now.is_interrupted = true;
                }
                tell.note(format!("the connection broke ({}); waiting for the sender", words(reason.as_bytes())));
            }
            Event::Resumed { connection } if connection == talk.connection => {
                if let Some(now) = current {
                    now.is_interrupted = false;
                }
                tell.note("the connection is mended");
            }
            Event::Closed { connection, reason } if connection == talk.connection => {
                let Some(now) = current else { return Ok(false) };
                if now.session.is_done {
                    return Ok(true);
                }
                if !now.session.is_greeted() {
                    // It never said that it is a sender.
                    *current = None;
                    talk.turn_to(ConnectionId::NONE);
                    return Ok(false);
                }
                let text = "the transfer broke off; start both sides again to go on where it was";
                return Err(Failure::of(text, &reason));
            }
            _ => {}
        }
        Ok(false)
    }

    fn report(&self, current: &Current, tell: Tell) -> Result<(), Failure> {
        let (received, seconds) = (&current.session.received, current.begin.elapsed().as_secs_f64());
        current.session.bar.finish_and_clear();
        let kept = match received.bytes_kept {
            0 => String::new(),
            bytes => format!(", {} of it there before", say::bytes(bytes)),
        };
        tell.note(format!(
            "{} in {} received, {seconds:.2} s{kept}",
            say::bytes(received.bytes),
            say::counted(received.files as usize, "file"),
        ));
        if self.json {
            let line = json!({
                "schema": "zcmi-recv/1",
                "entries": received.entries,
                "files": received.files,
                "bytes": received.bytes,
                "files_already_there": received.already,
                "bytes_already_there": received.bytes_kept,
                "left_out": received.left_out.count,
                "not_sent": received.not_sent,
                "hashed": current.session.is_hashed(),
                "seconds": seconds,
            });
            self.lines().print(&line)?;
        }
        match received.left_out.failure(received.entries, received.files) {
            Some(failure) => Err(failure),
            None if received.not_sent > 0 => {
                let many = say::counted_as(received.not_sent as usize, "entry", "entries");
                let rest = what_arrived(received.entries, received.files);
                let text = format!("{rest} the sender left out {many}; it says which");
                Err(Failure::new(Fault::LeftOut, text))
            }
            None => Ok(()),
        }
    }
}

fn open(path: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
        let shown = harmless(&path.display().to_string());
        let failure = Failure::of(format_args!("the directory {shown} cannot be opened"), &errno);
        failure.and("make it, or give another place to --output")
    })
}

/// The name of a Unix socket, which goes when nobody listens any more.
struct Socket(Option<PathBuf>);

impl Socket {
    fn of(address: &zcmi::net::stream::Address) -> Self {
        match address {
            zcmi::net::stream::Address::Unix(path) => Self(Some(path.clone())),
            zcmi::net::stream::Address::Tcp(_) => Self(None),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Whoever listens there next replaces what is left.
            let _ = std::fs::remove_file(path);
        }
    }
}
