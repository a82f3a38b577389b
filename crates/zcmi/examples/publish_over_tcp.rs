//! Publishes ticks to whoever connects: each is written once, and the same lease goes to every subscriber.
//!
//! Started without an argument it publishes on a free port of this host, and starts itself twice more as subscribers.
//! With `subscribe ADDRESS` it is one of them.

use std::error::Error;
use std::process::Command;
use std::time::{Duration, Instant};

use zcmi::net::outgoing::{SubmitError, Token};
use zcmi::net::stream::{Address, StreamOptions, StreamTransport};
use zcmi::net::transport::{Closed, ConnectionId, Destination, Event, Transport};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const SUBSCRIBERS: usize = 2;
const TICKS: u64 = 10_000;
/// How long each side waits for the other before it gives up.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Tick {
    number: u64,
    price: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => start(),
        ["subscribe", address] => subscribe(&address.parse()?),
        _ => Err("usage: publish_over_tcp [subscribe ADDRESS]".into()),
    }
}

fn start() -> Result<(), Box<dyn Error>> {
    let mut transport = StreamTransport::new(StreamOptions::default())?;
    let (_, address) = transport.listen(&"127.0.0.1:0".parse()?)?;
    let subscriber = || Command::new(std::env::current_exe()?).args(["subscribe", &address.to_string()]).spawn();
    let mut subscribers = (0..SUBSCRIBERS).map(|_| subscriber()).collect::<Result<Vec<_>, _>>()?;
    let published = publish(transport);
    for subscriber in &mut subscribers {
        let status = subscriber.wait()?;
        if !status.success() {
            return Err(format!("a subscriber ended with {status}").into());
        }
    }
    published?;
    println!("published {TICKS} ticks to {SUBSCRIBERS} subscribers");
    Ok(())
}

fn publish(mut transport: StreamTransport) -> Result<(), Box<dyn Error>> {
    let (mut events, mut subscribers) = (Vec::new(), Vec::<ConnectionId>::new());
    while subscribers.len() < SUBSCRIBERS {
        if transport.poll(&mut events, Some(PATIENCE))? == 0 {
            return Err("no subscriber came".into());
        }
        subscribers.extend(events.drain(..).filter_map(|event| match event {
            Event::Accepted { connection, .. } => Some(connection),
            _ => None,
        }));
    }
    for number in 0..TICKS {
        // No slot is free while all are under way: polling brings some back.
        let mut lease = loop {
            match transport.loan(size_of::<Tick>()) {
                Ok(lease) => break lease,
                Err(_) => wait(&mut transport, &mut events)?,
            };
        };
        lease.copy_from_slice(Tick { number, price: 100 + number % 7 }.as_bytes());
        let tick = lease.freeze();
        for &subscriber in &subscribers {
            let (mut payload, to) = (tick.clone().into(), Destination::new(subscriber));
            while let Err(refused) = transport.submit(to, payload, Token(number)) {
                match refused.reason {
                    SubmitError::Full { .. } | SubmitError::FullBytes { .. } => wait(&mut transport, &mut events)?,
                    reason => return Err(reason.into()),
                };
                payload = refused.payload;
            }
        }
    }
    subscribers.iter().for_each(|&subscriber| transport.close(subscriber));
    let mut left = subscribers.len();
    while left > 0 {
        left -= wait(&mut transport, &mut events)?;
    }
    Ok(())
}

/// Polls once; says how many connections have ended in good order.
fn wait(transport: &mut StreamTransport, events: &mut Vec<Event>) -> Result<usize, Box<dyn Error>> {
    if transport.poll(events, Some(PATIENCE))? == 0 {
        return Err("nothing happened any more".into());
    }
    let mut ended = 0;
    for event in events.drain(..) {
        match event {
            Event::Closed { reason: Closed::Ended, .. } => ended += 1,
            Event::Closed { reason, .. } => return Err(reason.into()),
            _ => {}
        }
    }
    Ok(ended)
}

fn subscribe(address: &Address) -> Result<(), Box<dyn Error>> {
    let mut transport = StreamTransport::new(StreamOptions::default())?;
    let connection = transport.connect(address)?;
    let (mut events, mut due, begin) = (Vec::new(), 0, Instant::now());
    loop {
        if transport.poll(&mut events, Some(PATIENCE))? == 0 {
            return Err("the publisher is silent".into());
        }
        for event in events.drain(..) {
            match event {
                Event::Received { piece, .. } => {
                    // The bytes lie in a slot of ours, where the kernel has put them; the slot is free when the piece
                    // drops.
                    let tick = Tick::ref_from_bytes(&piece.lease).map_err(|error| error.to_string())?;
                    if tick.number != due {
                        return Err(format!("tick {} came where {due} was due", tick.number).into());
                    }
                    due += 1;
                }
                // The publisher will send no more. Neither will we.
                Event::Ended { .. } => transport.close(connection),
                Event::Closed { reason: Closed::Ended, .. } if due == TICKS => {
                    println!("received {due} ticks in {:?}", begin.elapsed());
                    return Ok(());
                }
                Event::Closed { reason, .. } => return Err(reason.into()),
                _ => {}
            }
        }
    }
}
