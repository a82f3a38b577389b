//! `zcmi sub`: a stream to stdout or into files.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;
use zcmi::directory::{Participant, Role, RuntimeDirectory};
use zcmi::observe::{ProcessState, observe};
use zcmi::{Coded as _, Event, ReceiveError, Refusal, Service, ServiceError, Subscriber, SubscriberError, Who};

use crate::account;
use crate::code::Fault;
use crate::descriptor::{LOOK, Outlet};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::say::{self, Tell};
use crate::store::Store;
use crate::stream::{Checker, Record};

/// How long a publisher that hung up may take to be known as dead.
const CUT_OFF: Duration = Duration::from_secs(10);

/// How long another user's process may take to answer before it counts as alive.
const PATIENCE: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  zcmi sub backup | tar x         the other side: tar c photos | zcmi pub backup
  zcmi sub backup -o disk.img     store a stream in a file, which appears when it is whole
  zcmi sub films -o DIRECTORY/    store several files under their names; with the slash it is made if it is missing
  zcmi sub backup --from-user anna  another user's stream: she runs  zcmi pub backup --allow-user ME

With a pipe behind it, run `set -o pipefail` first: only `sub` knows whether the stream was whole.
Names in a stream are another process's word. Only plain file names are taken: no path, no `..`, no control letters.
Each file is written under a name of its own beside its place and gets its name when it is whole. Nothing that exists is
replaced without --force, and no symbolic link is ever written through.
Exit codes: 0 the whole stream arrived and its publisher ended in good order; 1 failed; 2 usage; 130 interrupted.";

/// Receive a stream
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Subscribe {
    /// Name of the stream
    name: String,
    /// File or directory to write to instead of stdout; with a slash at its end a directory is made
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Fail if nobody publishes the stream yet
    #[arg(long)]
    no_wait: bool,
    /// Replace files that exist
    #[arg(long, requires = "output")]
    force: bool,
    /// Receive from this user too, by number or name, where the runtime directory is shared; may be given several times
    #[arg(long, value_name = "USER")]
    from_user: Vec<String>,
    /// Say nothing but failures
    #[arg(short, long)]
    quiet: bool,
    /// Print the result as JSON: on stdout with --output, else on stderr
    #[arg(long)]
    json: bool,
}

/// What a whole stream was.
struct Whole {
    files: u64,
    bytes: u64,
    hash: u128,
}

impl Subscribe {
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    pub(crate) fn run(&self) -> Result<(), Failure> {
        let tell = Tell { json: self.json, quiet: self.quiet };
        let interrupt = Interrupt::install()?;
        let store = match &self.output {
            Some(path) => Store::at(path, self.force)?,
            None => {
                let stdout = std::io::stdout().as_fd().try_clone_to_owned();
                Store::stdout(Outlet::new(stdout.map_err(|error| Failure::of("stdout cannot be used", &error))?))
            }
        };
        let subscriber = self.join()?;
        let bar = ProgressBar::hidden();
        let mut run = Run {
            subscriber,
            interrupt,
            checker: Checker::new(),
            store,
            bar,
            tell,
            name: &self.name,
            begin: Instant::now(),
            whole: None,
        };
        if run.subscriber.publishers() == 0 {
            let name = &self.name;
            let others = self.others()?;
            if self.no_wait {
                let nobody = || format!("nobody publishes `{name}`; run `zcmi pub {name}`, or leave out --no-wait");
                return Err(Failure::new(Fault::NobodyPublishes, others.unwrap_or_else(nobody)));
            }
            let hint = others.unwrap_or_else(|| format!("run `zcmi pub {name}`"));
            tell.note(format!("waiting for `{name}`; {hint}"));
        }
        let received = run.receive();
        run.bar.finish_and_clear();
        let Whole { files, bytes, hash } = received?;
        let seconds = run.begin.elapsed().as_secs_f64();
        tell.note(format!("{} in {}, {seconds:.2} s, whole", say::bytes(bytes), say::counted(files as usize, "file")));
        if self.json {
            let document = json!({
                "schema": "zcmi-sub/1",
                "service": self.name,
                "files": files,
                "bytes": bytes,
                "seconds": seconds,
                "xxh3_128": format!("{hash:032x}"),
            });
            if self.output.is_some() {
                say::print_json(&document)?;
            } else {
                say::line(format!("{document:#}"));
            }
        }
        Ok(())
    }

    /// What to do about publishers of other users whom nobody asked for, if there are any. It is a hint: where the
    /// directory cannot be read there is none.
    fn others(&self) -> Result<Option<String>, Failure> {
        let ours = rustix::process::geteuid().as_raw();
        let asked = self.from_user.iter().map(|user| account::user(user)).collect::<Result<Vec<_>, _>>()?;
        let Ok(Some(directory)) = RuntimeDirectory::open_existing() else { return Ok(None) };
        let there = self.name.parse().ok().and_then(|name| directory.participants(&name).ok()).unwrap_or_default();
        let is_other = |one: &&Participant| one.role == Role::Publisher && one.uid != ours && !asked.contains(&one.uid);
        // Of each user: whether one of its publishers is known to live.
        let mut users = BTreeMap::new();
        for one in there.iter().filter(is_other) {
            let observed = observe(&directory, one.incarnation, Some(one.facts.pid), PATIENCE);
            // What a process left that is gone publishes nothing.
            if observed.state != ProcessState::Dead {
                *users.entry(one.uid).or_insert(false) |= observed.reached;
            }
        }
        let name = &self.name;
        let hints = users.iter().map(|(user, lives)| {
            if *lives {
                format!("user {user} publishes `{name}`; add --from-user {user}")
            } else {
                format!(
                    "a publisher of `{name}` is user {user}'s and could not be asked: dead, or not open to this user"
                )
            }
        });
        Ok(if users.is_empty() { None } else { Some(hints.collect::<Vec<_>>().join("; or: ")) })
    }

    fn join(&self) -> Result<Subscriber<[u8]>, Failure> {
        let name = &self.name;
        let cannot =
            |error: &(dyn std::error::Error + 'static)| Failure::of(format_args!("`{name}` cannot be received"), error);
        let service = Service::<[u8]>::new(name).map_err(|error| match error {
            ServiceError::Name(_) => Failure::usage_of(&error),
            _ => cannot(&error),
        })?;
        let mut options = service.subscriber();
        for user in &self.from_user {
            options = options.accept(Who::User(account::user(user)?));
        }
        options.join().map_err(|error| match &error {
            SubscriberError::Refused(refusal) => refused(name, refusal),
            _ => cannot(&error),
        })
    }
}

/// A publisher's no, in this command's words.
fn refused(name: &str, refusal: &Refusal) -> Failure {
    let (pid, text) = (refusal.pid, say::harmless(&refusal.text));
    let text = if refusal.is_late() {
        format!(
            "the stream `{name}` of process {pid} has begun already ({text}), and what went by is gone; start `zcmi \
             sub` before the stream begins, or let `zcmi pub --wait N` wait for N subscribers"
        )
    } else if refusal.is_layout() {
        format!("`{name}` carries other messages than a stream of bytes (process {pid}: {text}); use another name")
    } else {
        format!("process {pid}, which publishes `{name}`, refused: {text}")
    };
    Failure::coded(refusal.code(), text)
}

/// A stream that is being received.
struct Run<'a> {
    subscriber: Subscriber<[u8]>,
    interrupt: Interrupt,
    checker: Checker,
    store: Store,
    bar: ProgressBar,
    tell: Tell,
    name: &'a str,
    /// When the publisher was joined.
    begin: Instant,
    whole: Option<Whole>,
}

impl Run<'_> {
    /// Receives everything, until the publisher has ended.
    fn receive(&mut self) -> Result<Whole, Failure> {
        let mut cut_off: Option<(Instant, u32)> = None;
        loop {
            self.interrupt.check()?;
            // A publisher's end is told after its last message was received, so looking here first passes over nothing.
            while let Some(event) = self.subscriber.next_event() {
                match event {
                    Event::Joined { pid, .. } => {
                        self.tell.note(format!("receiving `{}` from process {pid}", self.name));
                        self.bar = self.tell.bytes_bar(None);
                        self.begin = Instant::now();
                    }
                    Event::CutOff { pid, .. } => cut_off = Some((Instant::now(), pid)),
                    Event::NotWaking { reason, .. } => self.tell.note(format!("receiving takes more time: {reason}")),
                    // Another one, who is none of ours.
                    Event::Refused(_) if self.subscriber.publishers() > 0 => {}
                    other => return self.end(other),
                }
            }
            let sample = self.subscriber.receive_timeout(LOOK).map_err(|error| self.cannot_receive(&error))?;
            if let Some(sample) = sample {
                self.take(&sample)?;
                continue;
            }
            if let Some((since, pid)) = cut_off
                && since.elapsed() >= CUT_OFF
            {
                return Err(self.broken(&format!("process {pid} hung up, though it lives")));
            }
        }
    }

    /// What is left when the publisher is gone.
    fn end(&mut self, event: Event) -> Result<Whole, Failure> {
        match event {
            Event::Ended { .. } => match self.whole.take() {
                Some(whole) => Ok(whole),
                None => Err(self.broken("its publisher ended without finishing it")),
            },
            Event::Died { pid, .. } if self.whole.is_some() => Err(Failure::new(
                Fault::UncleanEnd,
                format!(
                    "`{}` arrived whole, {} bytes, but its publisher, process {pid}, died before it ended in good \
                     order",
                    self.name,
                    self.checker.offset()
                ),
            )),
            Event::Died { pid, .. } => Err(self.broken(&format!("its publisher, process {pid}, died"))),
            Event::Refused(refusal) => Err(refused(self.name, &refusal)),
            Event::Faulty { pid, fault, .. } => {
                Err(self.broken(&format!("process {pid} wrote what cannot be: {}", say::harmless(&fault))))
            }
            Event::Expelled { pid, reason, .. } => {
                Err(self.broken(&format!("process {pid} gave us up: {}", say::harmless(&reason))))
            }
            Event::Overtaken { lost, .. } => Err(self.broken(&format!("{lost} messages were lost"))),
            other => Err(self.broken(&format!("this happened: {other:?}"))),
        }
    }

    fn take(&mut self, message: &[u8]) -> Result<(), Failure> {
        let at = self.checker.offset();
        let record = self.checker.read(message).map_err(|fault| self.broken_by(fault.code(), &fault.to_string()))?;
        match record {
            Record::Begin { name, size, left } => {
                if let Some(size) = size {
                    self.bar.set_length(at + size);
                }
                if left > 1 && self.checker.files() == 1 && self.store.joins_files() {
                    let text = "files follow one behind the other on stdout; -o DIRECTORY/ would store them apart";
                    self.tell.note(format!("{left} {text}"));
                }
                self.store.begin(name, left)
            }
            Record::Data(data) => {
                self.store.write(data, at, &self.interrupt)?;
                self.bar.set_position(self.checker.offset());
                Ok(())
            }
            Record::EndOfFile { .. } => self.store.end_of_file(),
            Record::End { files, bytes, hash } => {
                self.whole = Some(Whole { files, bytes, hash });
                Ok(())
            }
            Record::Abort { reason } => Err(self.broken(&format!("its publisher gave up: {reason}"))),
        }
    }

    fn cannot_receive(&self, error: &ReceiveError) -> Failure {
        Failure::of(format_args!("receiving `{}` failed at byte {}", self.name, self.checker.offset()), error)
    }

    /// The stream is not whole.
    fn broken(&self, why: &str) -> Failure {
        self.broken_by(Fault::BrokenOff.code(), why)
    }

    /// The stream is not whole, for a reason that has its own code.
    fn broken_by(&self, code: &'static str, why: &str) -> Failure {
        let (name, at) = (self.name, self.checker.offset());
        Failure::coded(code, format!("the stream `{name}` broke off at byte {at}: {why}"))
    }
}
