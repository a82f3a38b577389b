//! A model of `MSG_ZEROCOPY` and of the error queue under the wire's own code: it reads late what it was given, and
//! says so late, out of order, joined, twice, among errors and other messages, cut short, or never.
//!
//! The calls that send are not made (see the module `fault`), and the error queue is the model's: the wire reads its
//! control data, byte for byte as the kernel writes them.
//!
//! # What this does not do
//! It does not accept a send in part: for the count of the kernel, which is of calls, that is the same.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::fault::{self, Fault, Message, Mutant};
use super::sys::Call;
use super::*;
use crate::dice::Dice;

/// Steps of one wire.
const STEPS: u64 = 1000;

/// The kernel's side of one socket.
struct Model {
    dice: Dice,
    /// The kernel's count.
    made: u64,
    /// What it still reads.
    reading: HashSet<u64>,
    /// Reports that were not queued yet: the first and the last send, and whether they were copied.
    reports: VecDeque<(u64, u64, bool)>,
    /// Whether each send was reported as copied.
    copied: HashMap<u64, bool>,
    /// Sends that no report speaks of, or only one that was cut short.
    silent: u64,
    doubled: u64,
    cut: u64,
    others: u64,
    /// Errors that were queued and not told.
    errors: u64,
}

/// Control data: one message of that kind.
fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
    let mut bytes = (size_of::<usize>() + 8 + data.len()).to_ne_bytes().to_vec();
    bytes.extend(level.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(size_of::<usize>()), 0);
    bytes
}

/// `struct sock_extended_err`, and the offender's address.
fn extended(errno: u32, origin: u8, code: u8, info: u32, data: u32) -> Vec<u8> {
    let mut bytes = errno.to_ne_bytes().to_vec();
    bytes.extend([origin, 0, code, 0]);
    bytes.extend(info.to_ne_bytes());
    bytes.extend(data.to_ne_bytes());
    bytes.extend([0xee; 16]);
    bytes
}

impl Model {
    /// Ends some sends, and reports them.
    fn advance(&mut self, all: bool) {
        let mut open: Vec<u64> = self.reading.iter().copied().collect();
        open.sort_unstable();
        for number in open {
            if !all && self.dice.often(60) {
                continue;
            }
            self.reading.remove(&number);
            if self.dice.often(1) {
                self.silent += 1;
                continue;
            }
            let copied = self.dice.often(50);
            match self.reports.back_mut() {
                // As the kernel does, which says of all what it says of the first.
                Some((_, last, _)) if *last + 1 == number && number % 5 != 0 => *last = number,
                _ => self.reports.push_back((number, number, copied)),
            }
        }
        while !self.reports.is_empty() && (all || self.dice.often(70)) {
            // Whichever is next, which others overtake.
            let at = self.dice.below(self.reports.len() as u64) as usize;
            let (low, high, copied) = self.reports.swap_remove_back(at).expect("one of them");
            self.report(low, high, copied);
        }
    }

    fn report(&mut self, low: u64, high: u64, copied: bool) {
        let (level, kind) =
            [(libc::SOL_IP, libc::IP_RECVERR), (libc::SOL_IPV6, libc::IPV6_RECVERR)][usize::from(self.dice.often(50))];
        let mut bytes = message(level, kind, &extended(0, 5, u8::from(copied), low as u32, high as u32));
        if self.dice.often(2) {
            // The report itself is lost, and the wire is told that something is.
            bytes.truncate(self.dice.below(20) as usize);
            self.cut += 1;
            self.silent += high - low + 1;
            return fault::queue([(bytes, true)]);
        }
        (low..=high).for_each(|number| {
            self.copied.insert(number, copied);
        });
        if self.dice.often(10) {
            // Something else in the same message.
            let mut both = message(libc::SOL_SOCKET, libc::SO_TIMESTAMP, &[1; 16]);
            both.extend(&bytes);
            bytes = both;
        }
        let mut messages: Vec<Message> = vec![(bytes.clone(), false)];
        if self.dice.often(10) {
            self.doubled += 1;
            messages.push((bytes, false));
        }
        if self.dice.often(10) {
            let errno = [libc::EHOSTUNREACH, libc::ECONNREFUSED, 0][self.dice.below(3) as usize] as u32;
            *(if errno == 0 { &mut self.others } else { &mut self.errors }) += 1;
            let at = self.dice.below(messages.len() as u64 + 1) as usize;
            messages.insert(at, (message(level, kind, &extended(errno, 2, 1, 7, 9)), false));
        }
        fault::queue(messages);
    }
}

/// A wire, and what its user knows.
struct Rig {
    wire: SocketWire,
    model: Model,
    dice: Dice,
    flights: HashSet<u64>,
    told: u64,
}

impl Rig {
    fn new(seed: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let socket = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        let model = Model {
            dice: Dice::new(seed),
            made: 0,
            reading: HashSet::new(),
            reports: VecDeque::new(),
            copied: HashMap::new(),
            silent: 0,
            doubled: 0,
            cut: 0,
            others: 0,
            errors: 0,
        };
        // From here on it is the model's.
        fault::queue([]);
        let wire = SocketWire::new(socket.into()).expect("a wire");
        Self { wire, model, dice: Dice::new(!seed), flights: HashSet::new(), told: 0 }
    }

    fn send(&mut self) -> Result<(), String> {
        let bytes = [7; 100];
        let segments = [Segment { bytes: &bytes, home: None }];
        let refused = self.dice.often(20);
        let errno = [Errno::AGAIN, Errno::NOBUFS, Errno::PIPE][self.dice.below(3) as usize];
        fault::plan(Call::SendMessage, if refused { Fault::Errno(errno) } else { Fault::Lie });
        match self.wire.send(PathKind::ZeroCopy, &segments) {
            Err(error) if refused && Errno::from_io_error(&error) == Some(errno) => Ok(()),
            Ok(Sent { bytes: 100, release: Release::Notified(number) }) if !refused => {
                if number != self.model.made {
                    return Err(format!("{number} is the name of send {}", self.model.made));
                }
                self.model.made += 1;
                self.model.reading.insert(number);
                self.flights.insert(number);
                Ok(())
            }
            other => Err(format!("a send was answered by {other:?}")),
        }
    }

    fn notifications(&mut self) -> Result<(), String> {
        // Before a first send the error queue is not read.
        let refused = self.model.made > 0 && self.dice.often(5);
        if refused {
            fault::plan(Call::ErrorQueue, Fault::Errno(Errno::IO));
        }
        let (Self { wire, model, flights, told, .. }, mut wrong) = (&mut *self, None);
        let before = fault::queued();
        let errors = core::mem::take(&mut model.errors);
        let answer = wire.notifications(&mut |news| {
            for number in news.first..=news.last {
                *told += 1;
                if !flights.remove(&number) {
                    wrong.get_or_insert(format!("{number} is notified and not owed"));
                }
                if model.reading.contains(&number) {
                    wrong.get_or_insert(format!("{number} is free, and the kernel reads it"));
                }
                if model.copied.get(&number) != Some(&news.copied) {
                    wrong.get_or_insert(format!("{number} was reported otherwise"));
                }
            }
        });
        if refused {
            model.errors = errors;
        }
        match answer {
            _ if wrong.is_some() => Err(wrong.unwrap_or_default()),
            _ if !refused && fault::queued() > 0 => Err(format!("{} of {before} are left", fault::queued())),
            Ok(()) if refused || errors > 0 => Err("an error was not told".into()),
            Err(error) if !refused && errors == 0 => Err(format!("an error of nobody: {error}")),
            _ => Ok(()),
        }
    }

    fn run(mut self) -> Result<u64, String> {
        for _ in 0..STEPS {
            match self.dice.below(10) {
                // What a wire can be owed at a time is far more.
                0..5 => self.send()?,
                5..8 => self.model.advance(false),
                _ => self.notifications()?,
            }
        }
        self.model.advance(true);
        for _ in 0..200 {
            self.notifications()?;
            if fault::queued() == 0 {
                break;
            }
        }
        let Self { wire, model, flights, told, .. } = self;
        let (left, silent) = (flights.len() as u64, model.silent);
        if (left, wire.owed()) != (silent, silent) {
            return Err(format!("{left} sends were not told of, {} are owed, {silent} never came", wire.owed()));
        }
        let ignored = Ignored { reports: model.doubled, cut_short: model.cut, others: model.others };
        if wire.ignored != ignored {
            return Err(format!("{:?} were ignored, and {ignored:?} were there", wire.ignored));
        }
        Ok(told)
    }
}

/// How many steps in all.
fn operations() -> u64 {
    if std::env::var_os("ZCMI_LONG").is_some() {
        20_000_000
    } else if std::env::var_os("ZCMI_QUICK").is_some() {
        50_000
    } else {
        500_000
    }
}

#[test]
fn whatever_the_error_queue_says_each_send_is_free_once_and_not_before_the_kernel_lets_go() {
    let first = std::env::var("ZCMI_SEED").ok().and_then(|seed| seed.parse().ok());
    let (mut seed, mut done, mut told) = (first.unwrap_or(1), 0, 0);
    while done < operations() {
        match Rig::new(seed).run() {
            Ok(some) => told += some,
            Err(wrong) => panic!("ZCMI_SEED={seed}: {wrong}"),
        }
        if first.is_some() {
            return;
        }
        (seed, done) = (seed + 1, done + STEPS);
    }
    println!("{told} sends were told of, seeds up to {seed}");
    assert!(told > done / 4, "{told} sends were told of");
}

#[test]
fn a_wire_that_misreads_the_error_queue_is_caught() {
    for mutant in [Mutant::WrongRange, Mutant::SkippedOnError] {
        fault::plant(Some(mutant));
        let caught = Rig::new(1).run().err();
        fault::plant(None);
        // What the mutant left.
        let _left = fault::messages(usize::MAX);
        println!("{mutant:?}: {caught:?}");
        assert!(caught.is_some(), "{mutant:?} was not noticed");
    }
}
