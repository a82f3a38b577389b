//! A subscriber that hands on what it receives, over a transport: it sends slots of a region that is not its own.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use zcmi::{Event as Told, Service, Subscriber};
use zcmi_mem::pool::PoolPlan;
use zcmi_net::outgoing::Token;
use zcmi_net::path::PathKind;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{StreamOptions, StreamTransport};
use zcmi_net::transport::{Closed, ConnectionId, Destination, Event, Transport};
use zcmi_net::udp::{UdpOptions, UdpTransport};

use super::Outcome;
use super::forks::stay;
use super::words::Words;
use crate::sys::{self, Forked};

/// Messages that it holds at most.
const HELD: u64 = 8;
/// How long it waits for something to hand on, or for an event.
const TURN: Duration = Duration::from_millis(1);

fn slots() -> SlotPlan {
    SlotPlan { loans: PoolPlan::single(64, 1).ok(), large_slots: 4, slot_bytes: 64 << 10, ..SlotPlan::default() }
}

/// Joins `service`, and forwards each message by `path` over the stream with descriptor `fd`, or over UDP to the
/// address `to`, until it is killed, the publisher is gone, or `n` are forwarded; then it ends the connection in good
/// order. With `note`, how many completed goes to that file after each, where it outlives us; behind it 1 once the
/// connection is being ended, and the number of the child that is forked when `forks` have completed. That child has
/// all that we have, does nothing with it, and lives on.
///
/// It answers twice: when it has joined, and at its end how many it forwarded, and how many bytes left by paths that
/// copy (`copied`) and by those that share pages (`shared`).
pub(super) fn forward(words: &Words) -> Outcome {
    let path =
        words.text("path").and_then(|name| PathKind::from_name(name).ok_or_else(|| "no such path".to_owned()))?;
    if words.given("fd").is_some() {
        let options =
            StreamOptions { slots: slots(), path: Some(path), resume_for: Duration::ZERO, ..StreamOptions::default() };
        let mut transport = StreamTransport::new(options).map_err(|error| error.to_string())?;
        let socket = crate::sys::inherited(words.number("fd")? as i32).map_err(|error| error.to_string())?;
        let connection = transport.adopt_connecting(socket).map_err(|error| error.to_string())?;
        hand_on(words, transport, connection, |transport, connection| {
            let facts = transport.facts(connection)?;
            let by = |shares: bool| {
                let paths = PathKind::ALL.into_iter().filter(|path| path.shares_pages() == shares);
                paths.map(|path| facts.counts.paths[path as usize].bytes).sum()
            };
            Some([by(false), by(true)])
        })
    } else {
        let options = UdpOptions {
            slots: slots(),
            path: Some(path),
            resume_for: Duration::ZERO,
            insecure: true,
            ..UdpOptions::default()
        };
        let mut transport = UdpTransport::new(options).map_err(|error| error.to_string())?;
        let to: SocketAddr = words.parsed("to")?;
        let connection = transport.connect(to).map_err(|error| error.to_string())?;
        hand_on(words, transport, connection, |transport, connection| {
            let facts = transport.facts(connection)?;
            Some([facts.socket.bytes - facts.socket.zero_copy_bytes, facts.socket.zero_copy_bytes])
        })
    }
}

fn hand_on<T: Transport>(
    words: &Words,
    mut transport: T,
    connection: ConnectionId,
    sent: impl Fn(&T, ConnectionId) -> Option<[u64; 2]>,
) -> Outcome {
    let service = Service::<[u8]>::new(words.text("service")?).map_err(|error| error.to_string())?;
    let mut subscriber = service.subscriber().holds(HELD as u8 + 1).join().map_err(|error| error.to_string())?;
    let note = words.given("note").map(File::create).transpose().map_err(|error| error.to_string())?;
    let tell = |at: u64, word: u64| {
        let Some(note) = &note else { return Ok(()) };
        note.write_all_at(&word.to_le_bytes(), 8 * at).map_err(|error| error.to_string())
    };
    let count = words.number_or("n", u64::MAX)?;
    let forks = words.given("forks").map(|_| words.number("forks")).transpose()?;
    super::answer("ok");
    let (mut forwarded, mut completed, mut gone, mut closing) = (0_u64, 0_u64, false, false);
    let (mut events, mut by_paths) = (Vec::new(), [0; 2]);
    let mut last = Instant::now();
    loop {
        if forwarded < count && forwarded - completed < HELD {
            match subscriber.receive_timeout(TURN).map_err(|error| error.to_string())? {
                Some(sample) => {
                    if !sample.is_in_place() {
                        return Err("the sample was copied, so that this tests nothing".to_owned());
                    }
                    let to = Destination::new(connection).tag(sample.sequence());
                    let payload = sample.share().into();
                    transport.submit(to, payload, Token(forwarded)).map_err(|refused| refused.reason.to_string())?;
                    forwarded += 1;
                }
                None => gone |= has_ended(&mut subscriber),
            }
        }
        if !closing && (forwarded == count || gone) {
            closing = true;
            transport.close(connection);
            // Nothing of it leaves before the next poll.
            tell(1, 1)?;
        }
        transport.poll(&mut events, Some(TURN)).map_err(|error| error.to_string())?;
        if !events.is_empty() {
            // A connection that is closed has no facts any more.
            (last, by_paths) = (Instant::now(), sent(&transport, connection).unwrap_or(by_paths));
        } else if last.elapsed() > Duration::from_secs(50) {
            return Err(format!("nothing happens, {completed} of {forwarded} completed"));
        }
        for event in events.drain(..) {
            match event {
                Event::Completed { .. } => {
                    completed += 1;
                    tell(0, completed)?;
                    if forks == Some(completed) {
                        match sys::fork().map_err(|error| error.to_string())? {
                            Forked::Parent(pid) => tell(2, pid as u64)?,
                            Forked::Child => stay(),
                        }
                    }
                }
                Event::Closed { reason: Closed::Ended, .. } if completed == forwarded => {
                    let [copied, shared] = by_paths;
                    return Ok(format!("forwarded={forwarded} copied={copied} shared={shared}"));
                }
                Event::Closed { reason, .. } => return Err(format!("{completed} of {forwarded} completed: {reason}")),
                Event::Failed { token, .. } => return Err(format!("message {} failed", token.0)),
                _ => {}
            }
        }
    }
}

/// Whether the publisher ended or died.
fn has_ended(subscriber: &mut Subscriber<[u8]>) -> bool {
    let mut ended = false;
    while let Some(event) = subscriber.next_event() {
        ended |= matches!(event, Told::Ended { .. } | Told::Died { .. });
    }
    ended
}
