//! Two processes exchange blobs of 48 MiB, both ways at once, over a connection that breaks in between and is mended.
//!
//! A blob is one message. It is longer than a slot, so it arrives as pieces, each in a slot of the receiver's; what is
//! kept of it is up to the receiver, here a checksum.

use std::error::Error;
use std::process::Command;
use std::time::Duration;

use zcmi::net::outgoing::Token;
use zcmi::net::slots::SlotPlan;
use zcmi::net::stream::{StreamOptions, StreamTransport};
use zcmi::net::transport::{Closed, ConnectionId, Destination, Event, Transport};
use zcmi::pool::PoolPlan;

const BLOB_BYTES: usize = 48 << 20;
const BLOBS: u64 = 4;
/// How long each side waits for the other before it gives up.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => start(),
        ["connect", address] => {
            let mut transport = transport()?;
            let connection = transport.connect(&address.parse()?)?;
            exchange(transport, connection, "the other side")
        }
        _ => Err("usage: blob_exchange [connect ADDRESS]".into()),
    }
}

/// Two blobs may be under way; what arrives takes 16 slots of 256 KiB.
fn transport() -> Result<StreamTransport, Box<dyn Error>> {
    let slots = SlotPlan { large_slots: 32, loans: Some(PoolPlan::single(BLOB_BYTES, 2)?), ..SlotPlan::default() };
    Ok(StreamTransport::new(StreamOptions { slots, ..StreamOptions::default() })?)
}

fn start() -> Result<(), Box<dyn Error>> {
    let mut transport = transport()?;
    let (_, address) = transport.listen(&"127.0.0.1:0".parse()?)?;
    let mut peer = Command::new(std::env::current_exe()?).args(["connect", &address.to_string()]).spawn()?;
    let mut events = Vec::new();
    let connection = loop {
        if transport.poll(&mut events, Some(PATIENCE))? == 0 {
            return Err("nobody came".into());
        }
        let accepted = events.drain(..).find_map(|event| match event {
            Event::Accepted { connection, .. } => Some(connection),
            _ => None,
        });
        if let Some(connection) = accepted {
            break connection;
        }
    };
    let exchanged = exchange(transport, connection, "this side");
    let status = peer.wait()?;
    exchanged?;
    if status.success() { Ok(()) } else { Err(format!("the other side ended with {status}").into()) }
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(8).fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(word.try_into().unwrap_or_default())))
}

/// What the words of a blob add up to: each is the blob's number times the word's.
fn due(number: u64) -> u64 {
    (0..BLOB_BYTES as u64 / 8).fold(0, |sum, word| sum.wrapping_add(word.wrapping_mul(number + 1)))
}

fn exchange(mut transport: StreamTransport, connection: ConnectionId, name: &str) -> Result<(), Box<dyn Error>> {
    let (mut events, mut sums) = (Vec::new(), vec![0_u64; BLOBS as usize]);
    let (mut sent, mut received, mut mended, mut copied) = (0, 0, 0, 0);
    loop {
        while sent < BLOBS {
            // Both slots are under way, or one is free to be written.
            let Ok(mut blob) = transport.loan(BLOB_BYTES) else { break };
            for (number, word) in blob.chunks_exact_mut(8).enumerate() {
                word.copy_from_slice(&(number as u64).wrapping_mul(sent + 1).to_le_bytes());
            }
            // A stream each: blobs do not wait for each other.
            let to = Destination::new(connection).stream(sent as u32).tag(sent);
            transport.submit(to, blob.into(), Token(sent)).map_err(|refused| refused.reason)?;
            sent += 1;
            if sent == BLOBS {
                transport.close(connection);
            }
        }
        if transport.poll(&mut events, Some(PATIENCE))? == 0 {
            return Err("the other side is silent".into());
        }
        for event in events.drain(..) {
            match event {
                Event::Received { piece, .. } => {
                    let sum = sums.get_mut(piece.tag as usize).ok_or("a blob that was not agreed on")?;
                    *sum = sum.wrapping_add(checksum(&piece.lease));
                    received += u64::from(piece.is_last());
                    copied = transport.facts(connection).map_or(copied, |facts| facts.counts.copied_user);
                    if received == 1 && piece.is_last() && name == "this side" {
                        // As a network would.
                        transport.break_off(connection);
                    }
                }
                Event::Resumed { .. } => mended += 1,
                Event::Closed { reason: Closed::Ended, .. } => {
                    for (number, sum) in sums.iter().enumerate() {
                        if *sum != due(number as u64) {
                            return Err(format!("blob {number} arrived wrong").into());
                        }
                    }
                    let share = copied as f64 / (BLOBS as usize * BLOB_BYTES) as f64;
                    println!(
                        "{name}: {received} blobs, mended {mended} times, {share:.2} of the bytes copied in user space"
                    );
                    return Ok(());
                }
                Event::Closed { reason, .. } => return Err(reason.into()),
                _ => {}
            }
        }
    }
}
