//! How fast messages cross a network that loses packets, beside a plain loop of `write` and `read`.
//!
//! Both carry the same bytes over the same relay, in turn. In each round both have the seed of the round, so that they
//! lose packets of the same numbers. The ratio is asserted: closely with `ZCMI_LONG=1`, which takes more rounds and
//! carries more, and otherwise with slack, over a network that loses more and is nearer, so that little time sees as
//! many losses, and without the beginning: until the first losses luck decides. Single rounds differ by half, so that a
//! short run that comes out too slow has more of them, and all of its rounds together decide. In a quick run, which has
//! one round, it is printed.

use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use zcmi_bench::stats::{Ratio, Summary};
use zcmi_bench::wires::{Faults, Side, Wire, WireKind};
use zcmi_mem::pool::PoolPlan;
use zcmi_net::outgoing::Token;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{StreamOptions, StreamTransport};
use zcmi_net::transport::{Closed, Destination, Event, Transport};
use zcmi_tests::seed::{Length, Random};

/// Bytes of a message, and of a `write`.
const MESSAGE: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(120);
/// One packet in a thousand is lost on its way there, none on its way back, and a round trip takes 20 ms.
const DELAY: Faults = Faults { delay: Duration::from_millis(10), ..Faults::NONE };
const LOSS: Faults = Faults { loss_ppm: 1000, ..DELAY };
/// Five packets in a thousand, and 5 ms.
const NEAR: Faults = Faults { delay: Duration::from_micros(2500), ..Faults::NONE };
const MORE_LOSS: Faults = Faults { loss_ppm: 5000, ..NEAR };

/// The wire of a measurement.
fn make(seed: u64, [there, back]: [Faults; 2]) -> Option<Wire> {
    match Wire::make_seeded(WireKind::Relay, seed) {
        Ok(wire) => {
            let relay = wire.relay().expect("a relay");
            relay.set(Side::Sender, there);
            relay.set(Side::Receiver, back);
            Some(wire)
        }
        Err(unavailable) => {
            assert!(unavailable.is_lasting(), "{unavailable}");
            println!("SKIP: {unavailable}");
            None
        }
    }
}

/// What is carried, in messages.
#[derive(Clone, Copy)]
struct Load {
    messages: u64,
    /// How many of them are not measured, because they are the first.
    first: u64,
}

/// Seconds from the first call, or since the first messages had come, until everything was read.
fn plain(wire: &Wire, Load { messages, first }: Load) -> f64 {
    let streams = wire.streams().expect("a stream");
    let (mut from, mut to) = (File::from(streams.sender), File::from(streams.receiver));
    let mut begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let message = vec![0x5a; MESSAGE];
            (0..messages).for_each(|_| from.write_all(&message).expect("it is taken"));
        });
        let (mut bytes, mut came) = (vec![0; 128 << 10], 0);
        while came < messages * MESSAGE as u64 {
            let count = to.read(&mut bytes).expect("it comes");
            assert!(count > 0, "it ended after {came} bytes");
            if came < first * MESSAGE as u64 {
                begin = Instant::now();
            }
            came += count as u64;
        }
    });
    begin.elapsed().as_secs_f64()
}

fn transport() -> StreamTransport {
    let options = StreamOptions {
        slots: SlotPlan { loans: PoolPlan::single(MESSAGE, 64).ok(), ..SlotPlan::default() },
        ..StreamOptions::default()
    };
    StreamTransport::new(options).expect("a transport")
}

/// The same by messages, from when the connection is there, or the first had come, until the last was received.
fn messages(wire: &Wire, Load { messages, first }: Load) -> f64 {
    // The wire makes the sockets: its congestion control is the same for both ways, whatever the host prefers.
    let streams = wire.streams().expect("a stream");
    let receiver = move || {
        let mut transport = transport();
        transport.adopt_accepting(streams.receiver).expect("a stream");
        let (mut events, mut received, mut begin, mut last) = (Vec::new(), 0, None, Instant::now());
        loop {
            transport.poll(&mut events, Some(PATIENCE)).expect("the transport goes on");
            assert!(!events.is_empty(), "nothing came for {PATIENCE:?}");
            for event in events.drain(..) {
                match event {
                    Event::Received { piece, .. } => {
                        if received < first * MESSAGE as u64 {
                            begin = Some(Instant::now());
                        }
                        received += piece.lease.len() as u64;
                    }
                    Event::Ended { connection } => {
                        last = Instant::now();
                        transport.close(connection);
                    }
                    Event::Closed { reason: Closed::Ended, .. } => {
                        assert_eq!(received, messages * MESSAGE as u64);
                        return (begin, last);
                    }
                    Event::Closed { reason, .. } => panic!("it was closed: {reason}"),
                    _ => {}
                }
            }
        }
    };
    let sender = move || {
        let mut transport = transport();
        let connection = transport.adopt_connecting(streams.sender).expect("a stream");
        let (mut events, mut sent, mut begin) = (Vec::new(), 0, None);
        loop {
            while begin.is_some()
                && sent < messages
                && let Ok(mut message) = transport.loan(MESSAGE)
            {
                message.fill(0x5a);
                if transport.submit(Destination::new(connection), message.into(), Token(sent)).is_err() {
                    break;
                }
                sent += 1;
            }
            if sent == messages {
                transport.close(connection);
            }
            transport.poll(&mut events, Some(PATIENCE)).expect("the transport goes on");
            assert!(!events.is_empty(), "nothing happened for {PATIENCE:?}");
            for event in events.drain(..) {
                match event {
                    Event::Connected { .. } => begin = Some(Instant::now()),
                    Event::Closed { reason: Closed::Ended, .. } => return begin.expect("it was connected"),
                    Event::Closed { reason, .. } => panic!("it was closed: {reason}"),
                    _ => {}
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let receiving = scope.spawn(receiver);
        let connected = sender();
        let (begin, last) = receiving.join().expect("no panic");
        (last - begin.unwrap_or(connected)).as_secs_f64()
    })
}

#[test]
fn messages_cross_a_network_with_losses_as_fast_as_plain_bytes() {
    let mut random = Random::of_this_run();
    let length = Length::of_this_run();
    let faults = if length == Length::Long { [LOSS, DELAY] } else { [MORE_LOSS, NEAR] };
    let load = Load { messages: length.pick(16, 128, 512), first: length.pick(0, 32, 0) };
    let (rounds, most) = (length.pick(1, 5, 11), length.pick(1, 20, 11));
    let least = match length {
        Length::Quick => 0.0,
        Length::Normal => 0.8,
        Length::Long => 0.95,
    };
    let (mut rates, mut lost, mut packets) = ([Vec::new(), Vec::new()], [0; 2], [0; 2]);
    let ratio_of = |[messages, plain]: &[Vec<f64>; 2]| Ratio::of(messages, plain).expect("rounds");
    for round in 0..most {
        // It is looked at twice, and not until it is well by luck.
        if round == rounds && ratio_of(&rates).median >= least {
            break;
        }
        let seed = random.below(u64::MAX);
        // Who comes first in one round comes second in the next.
        for turn in [round % 2, (round + 1) % 2] {
            let Some(wire) = make(seed, faults) else { return };
            let seconds = if turn == 0 { messages(&wire, load) } else { plain(&wire, load) };
            let count = load.messages - load.first;
            rates[turn as usize].push(count as f64 * MESSAGE as f64 * 8.0 / seconds / 1e6);
            let counts = wire.relay().expect("a relay").counts(Side::Sender);
            lost[turn as usize] += counts.lost;
            packets[turn as usize] += counts.read;
        }
    }
    for (name, rates) in ["messages", "plain"].iter().zip(&rates) {
        println!("{name}: {:?} Mbit/s", Summary::of(rates).expect("rounds"));
    }
    let ratio = ratio_of(&rates);
    println!("goodput of messages over that of plain bytes: {ratio:?}; lost {lost:?} of {packets:?} packets");
    if length == Length::Quick {
        return;
    }
    assert!(lost.iter().all(|lost| *lost > 0), "nothing was lost");
    assert!(ratio.median >= least, "{ratio:?}");
}
