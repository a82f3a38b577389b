//! One end of a connection between a guest and its host, or within the guest: `cargo xtask guest net` starts it.
//!
//! ```text
//! zcmi-guest-net receive ADDRESS CONNECTIONS     checks every message of so many connections, and tells
//! zcmi-guest-net send ADDRESS WIRE PATH…         sends by each path in turn, and tells what came of it
//! ```
//!
//! Each path is tried twice, on a connection each: message after message, each alone on its way, and as many as there
//! are slots.
//!
//! What it tells are lines that begin with `zcmi-guest: `; the wire's name is only repeated in them. The sender
//! overwrites each slot as soon as its message has completed, so that a kernel or a device that reads it later sends
//! bytes that the receiver knows to be wrong.
#![deny(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use zcmi_mem::pool::PoolPlan;
use zcmi_net::link::PathCounts;
use zcmi_net::outgoing::Token;
use zcmi_net::path::PathKind;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{Address, ConnectionFacts, StreamOptions, StreamTransport};
use zcmi_net::transport::{Closed, ConnectionId, Destination, Event, Transport};
use zcmi_tests::content;

/// The longest message: several pieces.
const MESSAGE: usize = 200_000;
/// The longest piece.
const PIECE: u32 = 64 << 10;
const LOANS: u32 = 8;
/// The two ways to go.
const MODES: [Mode; 2] =
    [Mode { name: "alone", at_a_time: 1, messages: 40 }, Mode { name: "many", at_a_time: LOANS as u64, messages: 150 }];
/// What a slot is filled with as soon as its message has completed.
const POISON: u8 = 0xa5;
/// How long one connection may take: an emulated processor is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many messages go, and how many of them at a time.
#[derive(Clone, Copy)]
struct Mode {
    name: &'static str,
    at_a_time: u64,
    messages: u64,
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["receive", address, connections] => receive(address, connections),
        ["send", address, wire, ref paths @ ..] if !paths.is_empty() => {
            let both = paths.iter().flat_map(|path| MODES.map(|mode| (path, mode)));
            both.into_iter().try_for_each(|(path, mode)| send(address, wire, path, mode))
        }
        _ => Err("usage: zcmi-guest-net receive ADDRESS CONNECTIONS | send ADDRESS WIRE PATH…".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("zcmi-guest: failed {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn transport(path: Option<PathKind>) -> Outcome<StreamTransport> {
    let slots = SlotPlan {
        loans: Some(PoolPlan::single(MESSAGE, LOANS)?),
        slot_bytes: PIECE,
        large_slots: 32,
        ..SlotPlan::default()
    };
    // The network is one cable, with nobody on it but these two.
    Ok(StreamTransport::new(StreamOptions { slots, path, insecure: true, ..StreamOptions::default() })?)
}

/// Every fifth message fits one small slot; the others are one piece each if they are alone, else several.
fn size(number: u64, mode: Mode) -> usize {
    let size = number.wrapping_mul(2_654_435_761) as usize;
    match (number.is_multiple_of(5), mode.at_a_time > 1) {
        (true, _) => 8 + size % 500,
        (false, true) => 8 + size % (MESSAGE - 8),
        (false, false) => 8192 + size % (PIECE as usize - 8192),
    }
}

/// Sends all messages by one path, and tells what its completions said.
fn send(address: &str, wire: &str, path: &str, mode: Mode) -> Outcome<()> {
    let path = PathKind::from_name(path).ok_or("no such path")?;
    let address: Address = address.parse()?;
    let mut transport = transport(Some(path))?;
    let connection = transport.connect(&address)?;
    let deadline = Instant::now() + PATIENCE;
    let (mut submitted, mut completed, mut facts, mut events) = (0, 0, None, Vec::new());
    loop {
        if Instant::now() > deadline {
            return Err(format!("{completed} of {submitted} messages completed in {PATIENCE:?}").into());
        }
        submit(&mut transport, connection, &mut submitted, completed, mode);
        transport.poll(&mut events, Some(Duration::from_millis(10)))?;
        for event in events.drain(..) {
            match event {
                Event::Completed { .. } => {
                    completed += 1;
                    poison(&mut transport);
                }
                Event::Closed { reason: Closed::Ended, .. } => {
                    let facts = facts.ok_or("closed before everything had completed")?;
                    tell(wire, path, mode.name, completed, &facts);
                    return Ok(());
                }
                Event::Closed { reason, .. } => return Err(reason.into()),
                Event::Failed { token, .. } => return Err(format!("message {} failed", token.0).into()),
                Event::Interrupted { reason, .. } => return Err(reason.into()),
                _ => {}
            }
        }
        if completed == mode.messages && facts.is_none() {
            facts = transport.facts(connection);
            transport.close(connection);
        }
    }
}

/// Submits as many messages as may be on their way.
fn submit(transport: &mut StreamTransport, connection: ConnectionId, next: &mut u64, completed: u64, mode: Mode) {
    while *next < mode.messages.min(completed + mode.at_a_time) {
        let Ok(mut message) = transport.loan(size(*next, mode)) else { return };
        content::fill(&mut message, 0, *next);
        let to = Destination::new(connection).tag(*next);
        if transport.submit(to, message.into(), Token(*next)).is_err() {
            return;
        }
        *next += 1;
    }
}

/// Overwrites every slot that is free, which that of the message that completed is.
fn poison(transport: &mut StreamTransport) {
    let mut free = Vec::new();
    while let Ok(mut slot) = transport.loan(MESSAGE) {
        slot.fill(POISON);
        free.push(slot);
    }
}

fn tell(wire: &str, path: PathKind, mode: &str, messages: u64, facts: &ConnectionFacts) {
    let PathCounts { sends, bytes, refused, notified, copied } = facts.counts.paths[path as usize];
    let reason = facts.refusals[path as usize].as_deref().unwrap_or("none");
    println!(
        "zcmi-guest: sent wire={wire} path={path} mode={mode} messages={messages} calls={sends} bytes={bytes} \
         notified={notified} copied={copied} refused={refused} refusal={reason}"
    );
}

/// Checks all messages of so many connections.
fn receive(address: &str, connections: &str) -> Outcome<()> {
    let mut transport = transport(None)?;
    transport.listen(&address.parse()?)?;
    println!("zcmi-guest: listening {address}");
    let mut events = Vec::new();
    for number in 0..connections.parse::<usize>()? {
        let mode = MODES[number % MODES.len()];
        let deadline = Instant::now() + PATIENCE;
        let (mut message, mut messages) = (Vec::with_capacity(MESSAGE), 0);
        'connection: loop {
            if Instant::now() > deadline {
                return Err(format!("connection {number} brought {messages} messages in {PATIENCE:?}").into());
            }
            transport.poll(&mut events, Some(Duration::from_millis(100)))?;
            // One connection at a time: nothing of the next comes before this one is closed.
            for event in events.drain(..) {
                match event {
                    Event::Received { piece, .. } => {
                        if piece.offset as usize != message.len() {
                            return Err(format!("message {messages} has a gap at byte {}", message.len()).into());
                        }
                        message.extend_from_slice(&piece.lease);
                        if piece.is_last() {
                            check(&message, messages, mode)?;
                            messages += 1;
                            message.clear();
                        }
                    }
                    Event::Ended { connection } => transport.close(connection),
                    Event::Closed { reason: Closed::Ended, .. } => break 'connection,
                    Event::Closed { reason, .. } => return Err(reason.into()),
                    Event::Interrupted { reason, .. } => return Err(reason.into()),
                    _ => {}
                }
            }
        }
        println!("zcmi-guest: received connection={number} messages={messages}");
    }
    Ok(())
}

fn check(message: &[u8], number: u64, mode: Mode) -> Outcome<()> {
    let bytes = size(number, mode);
    if message.len() != bytes {
        return Err(format!("message {number} has {} bytes instead of {bytes}", message.len()).into());
    }
    let poisoned = message.windows(16).filter(|window| window.iter().all(|&byte| byte == POISON)).count();
    if poisoned > 0 {
        return Err(format!("message {number} was poisoned after its slot was free, in {poisoned} places").into());
    }
    content::check(message, number)?;
    Ok(())
}
