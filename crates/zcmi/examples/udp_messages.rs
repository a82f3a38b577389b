//! Sends messages of 64 B to 2 MiB over UDP, each acknowledged, and says by how many datagrams they went.
//!
//! A message longer than a datagram is cut, sent in trains where the kernel cuts them, and put together in a slot of
//! the receiver's, in place.

use std::error::Error;
use std::process::Command;
use std::time::{Duration, Instant};

use zcmi::net::outgoing::Token;
use zcmi::net::slots::SlotPlan;
use zcmi::net::transport::{Closed, Destination, Event, Transport};
use zcmi::net::udp::{UdpOptions, UdpTransport};
use zcmi::pool::PoolPlan;

const SIZES: [usize; 4] = [64, 4 << 10, 64 << 10, 2 << 20];
const ROUNDS: u64 = 25;
/// How long each side waits for the other before it gives up.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => receive(),
        ["send", address] => send(address.parse()?),
        _ => Err("usage: udp_messages [send ADDRESS]".into()),
    }
}

/// Slots of 2 MiB, so that each message arrives in one.
fn transport() -> Result<UdpTransport, Box<dyn Error>> {
    let slots = SlotPlan {
        slot_bytes: 2 << 20,
        large_slots: 16,
        loans: Some(PoolPlan::doubling(4096, 2 << 20, 4)?),
        ..SlotPlan::default()
    };
    Ok(UdpTransport::new(UdpOptions { slots, ..UdpOptions::default() })?)
}

fn receive() -> Result<(), Box<dyn Error>> {
    let mut transport = transport()?;
    let (_, address) = transport.listen("127.0.0.1:0".parse()?)?;
    let mut sender = Command::new(std::env::current_exe()?).args(["send", &address.to_string()]).spawn()?;
    let (mut events, mut messages) = (Vec::new(), 0);
    'all: loop {
        if transport.poll(&mut events, Some(PATIENCE))? == 0 {
            return Err("the sender is silent".into());
        }
        for event in events.drain(..) {
            match event {
                Event::Received { piece, .. } => {
                    let expected = (piece.tag % 251) as u8;
                    if !piece.is_whole() || piece.lease.iter().any(|byte| *byte != expected) {
                        return Err(format!("message {} arrived wrong", piece.tag).into());
                    }
                    messages += 1;
                }
                Event::Ended { connection } => transport.close(connection),
                Event::Closed { reason: Closed::Ended, .. } => break 'all,
                Event::Closed { reason, .. } => return Err(reason.into()),
                _ => {}
            }
        }
    }
    let status = sender.wait()?;
    println!("{messages} messages received, each in one slot");
    if status.success() { Ok(()) } else { Err(format!("the sender ended with {status}").into()) }
}

fn send(address: std::net::SocketAddr) -> Result<(), Box<dyn Error>> {
    let mut transport = transport()?;
    let connection = transport.connect(address)?;
    let (mut events, mut number, begin) = (Vec::new(), 0, Instant::now());
    let total = ROUNDS * SIZES.len() as u64;
    loop {
        while number < total {
            // No slot is free while those before are under way: polling brings some back.
            let Ok(mut message) = transport.loan(SIZES[number as usize % SIZES.len()]) else { break };
            message.fill((number % 251) as u8);
            let to = Destination::new(connection).tag(number);
            transport.submit(to, message.into(), Token(number)).map_err(|refused| refused.reason)?;
            number += 1;
            if number == total {
                transport.close(connection);
            }
        }
        if transport.poll(&mut events, Some(PATIENCE))? == 0 {
            return Err("the receiver is silent".into());
        }
        for event in events.drain(..) {
            match event {
                Event::Closed { reason: Closed::Ended, .. } => {
                    println!("{total} messages sent and acknowledged in {:?}", begin.elapsed());
                    return Ok(());
                }
                Event::Closed { reason, .. } => return Err(reason.into()),
                _ => {}
            }
        }
    }
}
