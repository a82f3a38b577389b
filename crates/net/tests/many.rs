//! Many connections of one transport: all are served though slots are few, and one that works is not given up.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use zcmi_mem::pool::PoolPlan;
use zcmi_net::outgoing::Token;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{Address, ConnectionFacts, StreamOptions, StreamTransport};
use zcmi_net::transport::{ConnectionId, Destination, Event, Transport};

/// How long anybody may wait for an answer.
const BOUND: Duration = Duration::from_secs(20);

fn transport(small_slots: u32, large_slots: u32, adjust: impl FnOnce(&mut StreamOptions)) -> StreamTransport {
    let mut options = StreamOptions {
        slots: SlotPlan {
            small_bytes: 1024,
            small_slots,
            slot_bytes: 64 << 10,
            large_slots,
            headers: 4096,
            loans: PoolPlan::single(1 << 20, 2).ok(),
        },
        resume_for: Duration::ZERO,
        ..StreamOptions::default()
    };
    adjust(&mut options);
    StreamTransport::new(options).expect("a transport")
}

/// Gives back what comes.
fn echo(server: &mut StreamTransport, events: &mut Vec<Event>) {
    server.poll(events, Some(Duration::ZERO)).expect("the server goes on");
    for event in events.drain(..) {
        match event {
            Event::Received { connection, piece } => {
                let to = Destination::new(connection).tag(piece.tag);
                server.submit(to, piece.lease.into(), Token(0)).expect("there is room for an answer");
            }
            Event::Closed { reason, .. } => panic!("a connection was closed: {reason}"),
            _ => {}
        }
    }
}

#[test]
fn all_are_served_though_slots_are_far_fewer_than_connections() {
    const CONNECTIONS: usize = 300;
    const ROUNDS: usize = 4;
    // A connection in three sends 200 KiB, so that what is left of the slots for long pieces goes from one to another.
    let bytes = |number: usize| if number.is_multiple_of(3) { 200 << 10 } else { 1000 };
    // All greet at once, and none gives way to another, however slow the machine is.
    let mut server = transport(32, 8, |options| options.greetings = CONNECTIONS);
    let mut client = transport(8192, 64, |_| ());
    let (_, address) = server.listen(&"127.0.0.1:0".parse::<Address>().expect("an address")).expect("a listener");
    let (mut events, mut seen) = (Vec::new(), Vec::new());
    let mut numbers: HashMap<ConnectionId, usize> = HashMap::new();
    let mut deadline = Instant::now() + BOUND;
    for _ in 0..CONNECTIONS {
        client.connect(&address).expect("a connection");
    }
    while numbers.len() < CONNECTIONS {
        echo(&mut server, &mut events);
        client.poll(&mut seen, Some(Duration::ZERO)).expect("the client goes on");
        for event in seen.drain(..) {
            match event {
                Event::Connected { connection } => _ = numbers.insert(connection, numbers.len()),
                Event::Closed { reason, .. } => panic!("a connection was closed: {reason}"),
                _ => {}
            }
        }
        assert!(Instant::now() < deadline, "{} of {CONNECTIONS} connected", numbers.len());
    }

    let mut lease = client.loan(200 << 10).expect("a lease");
    lease.iter_mut().enumerate().for_each(|(index, byte)| *byte = (index % 251) as u8);
    let whole = lease.freeze();
    let mut lease = client.loan(1000).expect("a lease");
    lease.copy_from_slice(&whole[..1000]);
    let short = lease.freeze();
    for round in 0..ROUNDS {
        // All at once.
        for (&connection, &number) in &numbers {
            let message = if bytes(number + round) == 1000 { short.clone() } else { whole.clone() };
            client.submit(Destination::new(connection), message.into(), Token(0)).expect("it is taken");
        }
        deadline = Instant::now() + BOUND;
        let (mut answered, mut answers) = (0, HashMap::new());
        while answered < CONNECTIONS {
            echo(&mut server, &mut events);
            client.poll(&mut seen, Some(Duration::ZERO)).expect("the client goes on");
            for event in seen.drain(..) {
                match event {
                    Event::Received { connection, piece } => {
                        let have: &mut usize = answers.entry(connection).or_default();
                        assert!(whole[*have..].starts_with(&piece.lease), "an answer differs from what was asked");
                        *have += piece.lease.len();
                        answered += usize::from(*have == bytes(numbers[&connection] + round));
                    }
                    Event::Closed { reason, .. } => panic!("a connection was closed: {reason}"),
                    _ => {}
                }
            }
            assert!(
                Instant::now() < deadline,
                "round {round}: {answered} of {CONNECTIONS} were answered in {BOUND:?}; the server's slots: {:?}",
                server.slot_counts()
            );
        }
    }
}

#[test]
fn the_timer_of_a_greeting_gives_nobody_up_who_is_slow_after_it() {
    let greeting_timeout = Duration::from_millis(300);
    // One piece, longer than what sockets hold.
    let long = 8 << 20;
    let slots = |options: &mut StreamOptions| {
        (options.slots.slot_bytes, options.slots.loans) = (long, PoolPlan::single(long as usize, 1).ok());
    };
    let mut server = transport(32, 4, slots);
    let mut client = transport(32, 4, |options| {
        slots(options);
        options.greeting_timeout = greeting_timeout;
    });
    // A Unix socket: all that was sent is there at once, and nothing comes later.
    let path = std::env::temp_dir().join(format!("zcmi-net-many-{}", std::process::id()));
    let (_, address) = server.listen(&Address::Unix(path.clone())).expect("a listener");
    let begin = Instant::now();
    let connection = client.connect(&address).expect("a connection");
    std::fs::remove_file(&path).expect("the socket has a name");
    let (mut events, mut seen, mut there) = (Vec::new(), Vec::new(), ConnectionId::NONE);
    // The server is silent as soon as it has sent a part of the piece.
    let sent = |facts: ConnectionFacts| facts.counts.paths.iter().map(|path| path.bytes).sum::<u64>();
    while server.facts(there).map_or(0, sent) < 4096 {
        server.poll(&mut events, Some(Duration::ZERO)).expect("the server goes on");
        for event in events.drain(..) {
            if let Event::Accepted { connection, .. } = event {
                there = connection;
                let lease = server.loan(long as usize).expect("a lease");
                server.submit(Destination::new(connection), lease.into(), Token(0)).expect("it is taken");
            }
        }
        client.poll(&mut seen, Some(Duration::ZERO)).expect("the client goes on");
        assert!(begin.elapsed() < greeting_timeout, "the machine is too slow for this test");
    }
    seen.clear();
    while begin.elapsed() < greeting_timeout * 2 {
        client.poll(&mut seen, Some(Duration::from_millis(50))).expect("the client goes on");
        for event in seen.drain(..) {
            assert!(!matches!(event, Event::Closed { .. } | Event::Interrupted { .. }), "{event:?}");
        }
    }
    assert_eq!(client.facts(connection).map(|facts| facts.counts.pieces_received), Some(0), "the piece came whole");
}

#[test]
fn who_waits_for_slots_of_both_classes_hears_of_those_that_come_first() {
    let mut server = transport(4, 2, |_| ());
    let mut client = transport(64, 64, |options| {
        options.limits.streams = 2;
        options.slots.loans = PoolPlan::single(60_000, 16).ok();
    });
    let (_, address) = server.listen(&"127.0.0.1:0".parse::<Address>().expect("an address")).expect("a listener");
    let connection = client.connect(&address).expect("a connection");
    let submit = |client: &mut StreamTransport, stream: u32, bytes: usize| {
        let lease = client.loan(bytes).expect("a lease");
        let to = Destination::new(connection).stream(stream);
        client.submit(to, lease.freeze().into(), Token(0)).expect("it is taken");
    };
    let (mut events, mut held) = (Vec::new(), Vec::new());
    let mut until = |what: &str, client: &mut StreamTransport, held: &mut Vec<_>, rounds: u32, pieces: usize| {
        let deadline = Instant::now() + BOUND;
        let mut round = 0;
        while held.len() < pieces || round < rounds {
            server.poll(&mut events, Some(Duration::ZERO)).expect("the server goes on");
            held.extend(events.drain(..).filter_map(|event| match event {
                Event::Received { piece, .. } => Some(piece),
                _ => None,
            }));
            client.poll(&mut Vec::new(), Some(Duration::ZERO)).expect("the client goes on");
            round += 1;
            assert!(Instant::now() < deadline, "{what}: {:?}", server.slot_counts());
        }
    };
    (0..4).for_each(|_| submit(&mut client, 0, 1000));
    (0..2).for_each(|_| submit(&mut client, 1, 60_000));
    until("all slots are out", &mut client, &mut held, 0, 6);
    submit(&mut client, 1, 60_000);
    submit(&mut client, 0, 1000);
    until("the peer waits for both", &mut client, &mut held, 1000, 6);
    assert_eq!(held.len(), 6);
    let short = held.iter().position(|piece| piece.lease.len() == 1000).expect("one is short");
    held.remove(short);
    until("the short message comes, although there is no slot for the long one", &mut client, &mut held, 0, 6);
    assert_eq!(held.iter().filter(|piece| piece.lease.len() == 1000).count(), 4);
    held.clear();
    until("the long one comes when there is", &mut client, &mut held, 0, 1);
}
