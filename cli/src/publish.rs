//! `zcmi pub`: stdin or files as a stream, to everybody who joined before it began.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use clap::builder::RangedI64ValueParser;
use indicatif::ProgressBar;
use rustix::fs::FileType;
use serde_json::{Value, json};
use zcmi::{
    Coded as _, LeaseMut, LoanError, NoRoom, PublishRefusal, Publisher, PublisherError, Service, WhenFull, Who,
};

use crate::account;
use crate::code::Fault;
use crate::descriptor::{Inlet, LOOK, ReadError};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::say::{self, Tell};
use crate::stream::{Composer, FOOT_BYTES, MAX_BODY_BYTES, MAX_MESSAGE_BYTES, Saying};

/// The most subscribers of a stream.
const MAX_SUBSCRIBERS: u32 = 64;

const EXAMPLES: &str = "\
Examples:
  tar c photos | zcmi pub backup      in one terminal, and in another:  zcmi sub backup | tar x
  zcmi pub films a.mkv b.mkv          two files with their names; `zcmi sub films -o DIRECTORY` stores them
  zcmi pub backup --wait 2 < disk.img  begin when two subscribers are there
  zcmi pub backup --allow-user anna   another user may subscribe: zcmi sub backup --from-user OWNER

A stream has one publisher, and every subscriber gets all of it: `pub` waits for the slowest and never drops.
Other users take part only in a directory that is shared: an operator makes one of mode 0711 (or 0750 and a group), and
both sides set ZCMI_RUNTIME_DIR to it. Whoever is allowed can hold the stream up.
Exit codes: 0 every subscriber received everything; 1 failed; 2 usage; 130 interrupted.";

/// Publish stdin or files as a stream
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Publish {
    /// Name of the stream: letters, digits, `.`, `_`, `-`, with `/` between parts
    name: String,
    /// Files to publish one after the other, with their names; stdin if none
    files: Vec<PathBuf>,
    /// Subscribers to wait for before the stream begins
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = subscribers())]
    wait: u32,
    /// Let this user subscribe too, by number or name; may be given several times
    #[arg(long, value_name = "USER")]
    allow_user: Vec<String>,
    /// Let the members of this group subscribe too
    #[arg(long, value_name = "GROUP")]
    allow_group: Vec<String>,
    /// Let every user subscribe
    #[arg(long)]
    allow_everybody: bool,
    /// Say nothing but failures
    #[arg(short, long)]
    quiet: bool,
    /// Print the result as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Reads a number of subscribers.
fn subscribers() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_SUBSCRIBERS))
}

/// One file of the stream.
struct Source {
    name: Vec<u8>,
    /// For messages: the path, or `stdin`.
    shown: String,
    size: Option<u64>,
    inlet: Inlet,
}

impl Publish {
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    pub(crate) fn run(&self) -> Result<(), Failure> {
        let tell = Tell { json: self.json, quiet: self.quiet };
        let interrupt = Interrupt::install()?;
        let sources = open_sources(&self.files)?;
        let publisher = self.create()?;
        let length = sources.iter().map(|source| source.size).sum::<Option<u64>>();
        let mut run = Run { publisher, interrupt, composer: Composer::new(), joined: 0, bar: ProgressBar::hidden() };
        self.wait_for_subscribers(&mut run, tell)?;
        run.bar = tell.bytes_bar(length);
        let begin = Instant::now();
        match run.publish(&sources) {
            Ok(hash) => {
                let seconds = begin.elapsed().as_secs_f64();
                run.bar.finish_and_clear();
                self.report(&run, hash, seconds, tell)
            }
            Err(failure) => {
                run.bar.finish_and_clear();
                run.abort(&failure);
                Err(failure)
            }
        }
    }

    fn create(&self) -> Result<Publisher<[u8]>, Failure> {
        let name = &self.name;
        let service = Service::<[u8]>::new(name).map_err(|error| match error {
            zcmi::ServiceError::Name(_) => Failure::usage_of(&error),
            _ => Failure::of(format_args!("`{name}` cannot be published"), &error),
        })?;
        let options = service.publisher().max_len(MAX_MESSAGE_BYTES).max_publishers(1).late_joiners(false).loans(1);
        // Each subscriber may keep two messages.
        let mut options = options.reader_slots(2 * self.wait.max(8)).when_full(WhenFull::BlockFor(LOOK));
        // A stream never drops, so whoever may read it may also hold it up.
        for who in self.allowed()? {
            options = options.may_block(who);
        }
        options.create().map_err(|error| match error {
            PublisherError::TooManyPublishers { pid, .. } => Failure::coded(
                error.code(),
                format!(
                    "process {pid} publishes `{name}` already, and a stream has one publisher; wait until it ends, or \
                     use another name"
                ),
            ),
            PublisherError::Memory(_) => {
                Failure::of(format_args!("there is not enough memory to publish `{name}`"), &error)
            }
            error => Failure::of(format_args!("`{name}` cannot be published"), &error),
        })
    }

    /// Who may subscribe besides our own user.
    fn allowed(&self) -> Result<Vec<Who>, Failure> {
        let users = self.allow_user.iter().map(|user| account::user(user).map(Who::User));
        let groups = self.allow_group.iter().map(|group| account::group(group).map(Who::Group));
        users.chain(groups).chain(self.allow_everybody.then_some(Ok(Who::Everybody))).collect()
    }

    fn wait_for_subscribers(&self, run: &mut Run, tell: Tell) -> Result<(), Failure> {
        let wanted = self.wait as usize;
        let mut there = run.publisher.subscribers();
        if there < wanted {
            let many = if wanted == 1 { "subscriber" } else { "subscribers" };
            tell.note(format!("waiting for {wanted} {many} of `{0}`; run `zcmi sub {0}`", self.name));
        }
        while there < wanted {
            run.interrupt.check()?;
            there = run.publisher.wait_for_subscribers(wanted, LOOK);
        }
        run.joined = there;
        tell.note(format!("publishing `{}` to {}", self.name, say::counted(there, "subscriber")));
        Ok(())
    }

    fn report(&self, run: &Run, hash: u128, seconds: f64, tell: Tell) -> Result<(), Failure> {
        let (files, bytes) = (run.composer.files(), run.composer.offset());
        tell.note(format!(
            "{} in {}, {seconds:.2} s, all received by {}",
            say::bytes(bytes),
            say::counted(files as usize, "file"),
            say::counted(run.joined, "subscriber")
        ));
        if self.json { say::print_json(&self.document(run, hash, seconds)) } else { Ok(()) }
    }

    fn document(&self, run: &Run, hash: u128, seconds: f64) -> Value {
        json!({
            "schema": "zcmi-pub/1",
            "service": self.name,
            "files": run.composer.files(),
            "bytes": run.composer.offset(),
            "seconds": seconds,
            "subscribers": run.joined,
            "xxh3_128": format!("{hash:032x}"),
        })
    }
}

/// How much is still to be read of a file; nobody knows it of a pipe.
fn left_of(fd: &OwnedFd) -> Option<u64> {
    let stat = rustix::fs::fstat(fd).ok()?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let at = rustix::fs::tell(fd).ok().filter(|_| is_file)?;
    u64::try_from(stat.st_size).ok()?.checked_sub(at)
}

fn open_sources(files: &[PathBuf]) -> Result<Vec<Source>, Failure> {
    if files.is_empty() {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned();
        let stdin = stdin.map_err(|error| Failure::of("stdin cannot be read", &error))?;
        let size = left_of(&stdin);
        return Ok(vec![Source { name: Vec::new(), shown: "stdin".into(), size, inlet: Inlet::new(stdin) }]);
    }
    let mut names = HashSet::<OsString>::new();
    let mut sources = Vec::new();
    for path in files {
        let shown = say::harmless(&path.display().to_string());
        let of = |error: std::io::Error| Failure::of(format_args!("{shown} cannot be read"), &error);
        let name = path.file_name().ok_or_else(|| Failure::usage(format!("{shown} names no file")))?;
        if !names.insert(name.to_owned()) {
            let name = say::harmless(&name.to_string_lossy());
            return Err(Failure::usage(format!("two files are named {name}; a subscriber could store only one")));
        }
        let file = File::open(path).map_err(of)?;
        let metadata = file.metadata().map_err(of)?;
        if metadata.is_dir() {
            let text = format!("{shown} is a directory; publish it with `tar c {shown} | zcmi pub NAME`");
            return Err(Failure::usage(text));
        }
        sources.push(Source {
            name: name.to_owned().into_vec(),
            size: metadata.is_file().then_some(metadata.len()),
            inlet: Inlet::new(OwnedFd::from(file)),
            shown,
        });
    }
    Ok(sources)
}

/// A stream that is being published.
struct Run {
    publisher: Publisher<[u8]>,
    interrupt: Interrupt,
    composer: Composer,
    /// Subscribers at the beginning, each of which must receive everything.
    joined: usize,
    bar: ProgressBar,
}

impl Run {
    /// Publishes everything, and waits until it is received. The answer is the hash of it all.
    fn publish(&mut self, sources: &[Source]) -> Result<u128, Failure> {
        // Whoever came between the wait and the first message gets all of it as well.
        for (index, source) in sources.iter().enumerate() {
            let left = (sources.len() - index) as u64;
            self.say(Saying::Begin { size: source.size, left }, &source.name)?;
            self.joined = self.joined.max(self.publisher.subscribers());
            self.data(source)?;
            self.say(Saying::EndOfFile, &[])?;
        }
        let hash = self.composer.hash();
        self.say(Saying::End, &[0; 16])?;
        while !self.publisher.wait_until_received(LOOK) {
            self.interrupt.check()?;
        }
        let there = self.publisher.subscribers();
        if there < self.joined {
            let (gone, bytes) = (self.joined - there, self.composer.offset());
            let text = format!("{gone} of {} left before the end of the stream", self.joined);
            let text = match there {
                0 => format!("{text}; nobody is known to have all {bytes} bytes"),
                _ => format!("{text}; the others have all {bytes} bytes"),
            };
            return Err(Failure::new(Fault::SubscribersLeft, text));
        }
        Ok(hash)
    }

    fn data(&mut self, source: &Source) -> Result<(), Failure> {
        loop {
            let mut lease = self.loan(MAX_MESSAGE_BYTES)?;
            let room = &mut lease.as_mut_message_bytes()[..MAX_BODY_BYTES];
            let read = source.inlet.read(room, &self.interrupt, || self.look_around());
            let bytes = read.map_err(|error| match error {
                ReadError::Wait(failure) => failure,
                ReadError::Read(error) => Failure::of(
                    format_args!("reading {} failed at byte {}", source.shown, self.composer.offset()),
                    &error,
                ),
            })?;
            if bytes == 0 {
                return Ok(());
            }
            let lease = shortened(lease, bytes + FOOT_BYTES);
            self.complete(Saying::Data, lease)?;
            self.bar.set_position(self.composer.offset());
        }
    }

    fn say(&mut self, saying: Saying, body: &[u8]) -> Result<(), Failure> {
        let mut lease = self.loan(body.len() + FOOT_BYTES)?;
        lease.as_mut_message_bytes()[..body.len()].copy_from_slice(body);
        self.complete(saying, lease)
    }

    fn loan(&mut self, bytes: usize) -> Result<LeaseMut<[u8]>, Failure> {
        loop {
            self.look_around()?;
            match self.publisher.loan_slice(bytes) {
                Ok(lease) => return Ok(lease),
                Err(LoanError::NoRoom(NoRoom::WaitingFor { .. })) => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
    }

    fn complete(&mut self, saying: Saying, mut lease: LeaseMut<[u8]>) -> Result<(), Failure> {
        self.composer.complete(saying, lease.as_mut_message_bytes());
        loop {
            let refused = match self.publisher.publish(lease) {
                Ok(_) => return Ok(()),
                Err(refused) => refused,
            };
            match refused.reason {
                PublishRefusal::NoRoom(NoRoom::WaitingFor { .. }) => lease = refused.lease,
                reason => return Err(self.failed(&reason)),
            }
            self.look_around()?;
        }
    }

    /// Whether to go on: nobody wants us to end, and somebody still listens.
    fn look_around(&self) -> Result<(), Failure> {
        self.interrupt.check()?;
        if self.publisher.subscribers() == 0 {
            let at = self.composer.offset();
            let text = format!("every subscriber has left; the stream was given up at byte {at}");
            return Err(Failure::new(Fault::SubscribersLeft, text));
        }
        Ok(())
    }

    fn failed(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        Failure::of(format_args!("publishing failed at byte {}", self.composer.offset()), error)
    }

    /// Tells the subscribers that the stream is not whole, if there is room for that at once. Without the message they
    /// know it too: a stream without its end is not whole.
    fn abort(&mut self, failure: &Failure) {
        let reason = failure.to_string();
        let reason = &reason.as_bytes()[..reason.len().min(512)];
        if self.publisher.subscribers() == 0 {
            return;
        }
        if let Ok(mut lease) = self.publisher.loan_slice(reason.len() + FOOT_BYTES) {
            lease.as_mut_message_bytes()[..reason.len()].copy_from_slice(reason);
            self.composer.complete(Saying::Abort, lease.as_mut_message_bytes());
            let _or_they_see_that_the_end_is_missing = self.publisher.try_publish(lease);
        }
    }
}

/// The same lease with its first bytes only.
pub(crate) fn shortened(lease: LeaseMut<[u8]>, bytes: usize) -> LeaseMut<[u8]> {
    let (loaned, _) = lease.into_parts();
    LeaseMut::from_parts(loaned, u32::try_from(bytes).expect("a message of a stream is about a MiB at most"))
}
