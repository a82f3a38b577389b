//! Strangers that say anything to a transport: a good connection beside them goes on and loses nothing, and nothing of
//! theirs stays. Tests count the descriptors of the process, so that they run one after another.

mod dice;
mod hostile;
mod stage;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dice::Dice;
use hostile::content;
use stage::{Good, PATIENCE, Stage, descriptors, first_frame, greeted, hello, reset, stranger};
use zcmi_mem::lease::LeaseMut;
use zcmi_mem::pool::PoolPlan;
use zcmi_net::frame::{HEADER_BYTES, HELLO_BYTES, Header, Hello, Kind};
use zcmi_net::outgoing::Token;
use zcmi_net::path::PathKind;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::StreamOptions;
use zcmi_net::transport::{Closed, Destination, Event, Transport};

/// One test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn options() -> StreamOptions {
    StreamOptions {
        slots: SlotPlan {
            small_bytes: 1024,
            small_slots: 64,
            slot_bytes: 32 << 10,
            large_slots: 16,
            headers: 64,
            loans: PoolPlan::doubling(1024, 128 << 10, 8).ok(),
        },
        greeting_timeout: Duration::from_millis(300),
        resume_for: Duration::ZERO,
        stall_timeout: Duration::from_millis(400),
        // The ring that a choice of paths may open would be a descriptor more.
        path: Some(PathKind::Write),
        ..StreamOptions::default()
    }
}

/// A frame that is wrong in some way, or good, and its payload.
fn frame(dice: &mut Dice) -> Vec<u8> {
    let length = 1 + dice.below(2000) as u32;
    let mut header = first_frame(length);
    match dice.below(10) {
        0 => header.sequence = dice.next(),
        1 => header.acknowledged = 1 + dice.below(100),
        2 => header.epoch = 1,
        3 => header.granted = [dice.next() as u32, dice.next() as u32],
        4 => header.offset = 1,
        5 => header.length = u32::MAX,
        6 => header.message_bytes = u32::MAX,
        7 => header = Header { message_bytes: 40_000, length: 40_000, ..header },
        8 => header.kind = Kind::End,
        _ => {}
    }
    let mut bytes = vec![0; HEADER_BYTES + length as usize];
    if let Some(head) = bytes.first_chunk_mut() {
        header.encode(head);
    }
    content(0, 0, &mut bytes[HEADER_BYTES..]);
    if dice.often(10) {
        let at = dice.below(HEADER_BYTES as u64) as usize;
        bytes[at] ^= 1 << dice.below(8);
    }
    bytes
}

/// Somebody comes and does something. What is left of him.
fn misbehave(dice: &mut Dice, stage: &mut Stage, good: &mut Good) -> Option<TcpStream> {
    let mut bytes = hello(dice, [4, 4]).encode();
    let what = dice.below(10);
    match what {
        0 => {}
        1 => bytes = core::array::from_fn(|_| dice.next() as u8),
        2 => bytes[0] = b'G',
        3 => bytes[8] = 9,
        4 => bytes[64..68].fill(0),
        5 => bytes[12] = 3,
        _ => {}
    }
    let mut stream = match what {
        0..=6 => {
            let mut stream = stranger(&stage.address);
            let count = if dice.often(30) { dice.below(HELLO_BYTES as u64) as usize } else { HELLO_BYTES };
            stream.write_all(&bytes[..count]).expect("room");
            stream
        }
        _ => {
            let hello = hello(dice, [4, 4]);
            greeted(stage, good, &hello).0
        }
    };
    if what >= 6 {
        for _ in 0..1 + dice.below(3) {
            let bytes = frame(dice);
            let count = if dice.often(20) { dice.below(bytes.len() as u64) as usize } else { bytes.len() };
            // The server may have hung up already, and rightly.
            let _ = stream.write_all(&bytes[..count]);
        }
    }
    match dice.below(3) {
        0 => reset(stream),
        1 => drop(stream),
        _ => return Some(stream),
    }
    None
}

#[test]
fn a_good_connection_goes_on_whatever_strangers_do_and_nothing_of_theirs_stays() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = descriptors();
    let seed = std::env::var("ZCMI_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let rounds = if std::env::var_os("ZCMI_LONG").is_some() { 100_000 } else { 1500 };
    println!("ZCMI_SEED={seed}");
    let mut dice = Dice::new(seed);
    let mut stage = Stage::new(&options());
    let mut good = stage.good();
    stage.until("a connection", &mut good, |stage, _| stage.server.sockets() == (1, 0));
    stage.round(&mut good, 100);
    let (quiet, promised) = (descriptors(), stage.server.slot_counts().promised);
    let mut left = Vec::new();
    for _ in 0..rounds {
        left.extend(misbehave(&mut dice, &mut stage, &mut good));
        if left.len() > 40 {
            let one = dice.below(left.len() as u64) as usize;
            left.swap_remove(one);
        }
        if good.sent - good.completed < 4 {
            good.submit(1 + dice.below(100_000) as usize);
        }
        stage.poll();
        good.poll();
    }
    left.clear();
    stage.until("the good messages", &mut good, |_, good| good.completed == good.sent);
    stage.until("all strangers to be gone", &mut good, |stage, _| {
        stage.server.sockets() == (1, 0) && descriptors() == quiet
    });
    let counts = stage.server.slot_counts();
    assert_eq!(counts.free, [64, 16], "no slot is lost");
    assert!(counts.promised[0] <= promised[0] + 64 && counts.promised[1] <= 16, "{counts:?} after {promised:?}");
    assert_eq!(counts.free_headers, 64);
    let faults = stage.told.iter().filter(|event| matches!(event, Event::Closed { reason: Closed::Peer(_), .. }));
    let faults = faults.count();
    println!("{} good messages beside {rounds} strangers, {faults} of which broke the protocol", good.completed);
    assert!(good.completed > rounds / 10 && faults > rounds as usize / 20);
    // With the good peer gone nothing is promised to anybody.
    good.transport.abort(good.connection);
    stage.told.clear();
    let deadline = Instant::now() + PATIENCE;
    while stage.server.sockets() != (0, 0) && Instant::now() < deadline {
        stage.poll();
    }
    assert_eq!(stage.server.slot_counts().promised, [0, 0]);
    drop((stage, good));
    assert_eq!(descriptors(), before);
}

#[test]
fn strangers_that_greet_are_bounded_and_the_listener_goes_on_after_them() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stage = Stage::new(&StreamOptions { greetings: 8, ..options() });
    let mut good = stage.good();
    stage.until("a connection", &mut good, |stage, _| stage.server.sockets() == (1, 0));
    let mut strangers: Vec<TcpStream> = (0..50).map(|_| stranger(&stage.address)).collect();
    let mut most = 0;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(150) {
        stage.round(&mut good, 10);
        most = most.max(stage.server.sockets().1);
    }
    assert_eq!(most, 8, "as many greet as may");
    strangers.iter_mut().for_each(|stranger| stranger.write_all(b"zcmi").expect("room"));
    let mut second = stage.good();
    second.submit(10);
    stage.until("the listener to go on", &mut second, |stage, second| {
        good.poll();
        assert!(stage.server.sockets().1 <= 8);
        second.completed == 1
    });
}

#[test]
fn a_poll_ends_in_time_although_a_peer_never_pauses() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stage = Stage::new(&options());
    let mut good = stage.good();
    let mut dice = Dice::new(5);
    let loud: Vec<TcpStream> = (0..4)
        .map(|_| {
            let hello = hello(&mut dice, [4, 4]);
            let (loud, _) = greeted(&mut stage, &mut good, &hello);
            loud.set_nonblocking(false).expect("an option");
            loud
        })
        .collect();
    let mut frame = [0; HEADER_BYTES];
    Header::empty(Kind::Control).encode(&mut frame);
    let frames = frame.repeat(1000);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for mut loud in loud {
            let (stop, frames) = (&stop, &frames);
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) && loud.write_all(frames).is_ok() {
                    core::hint::spin_loop();
                }
            });
        }
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let begin = Instant::now();
            let mut events = Vec::new();
            stage.server.poll(&mut events, Some(Duration::from_millis(5))).expect("the transport goes on");
            slowest = slowest.max(begin.elapsed());
            if slowest > Duration::from_secs(2) {
                break;
            }
        }
        for _ in 0..100 {
            stage.round(&mut good, 100);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(slowest < Duration::from_secs(2), "a poll of 5 ms took {slowest:?}");
        println!("the slowest poll took {slowest:?}");
        drop(stage);
    });
}

fn accepted_by_stranger(event: &Event) -> Option<zcmi_net::transport::ConnectionId> {
    match event {
        Event::Accepted { connection, .. } => Some(*connection),
        _ => None,
    }
}

#[test]
fn a_peer_that_connects_anew_where_nothing_is_mended_loses_its_connection_and_no_more() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(options().resume_for.is_zero());
    let mut stage = Stage::new(&options());
    let mut good = stage.good();
    stage.until("a connection", &mut good, |stage, _| stage.server.sockets() == (1, 0));
    stage.told.clear();
    let first = hello(&mut Dice::new(3), [8, 2]);
    let (mut old, _) = greeted(&mut stage, &mut good, &first);
    stage.until("a stranger's connection", &mut good, |stage, _| stage.server.sockets() == (2, 0));
    let theirs = stage.told.iter().find_map(accepted_by_stranger).expect("it was accepted");
    // A message that the socket took, and that is not acknowledged.
    let lease = stage.server.loan(300).expect("a slot");
    stage.server.submit(Destination::new(theirs), lease.into(), Token(1)).expect("it is taken");
    stage.poll();
    old.set_nonblocking(false).expect("an option");
    old.read_exact(&mut [0; HEADER_BYTES + 300]).expect("it was sent");
    // The same session over another socket, as if nothing of it had come.
    let mut new = TcpStream::connect(old.peer_addr().expect("an address")).expect("a connection");
    new.write_all(&Hello { epoch: 1, resume_from: 0, ..first }.encode()).expect("it is said");
    let closed = |told: &Event| matches!(told, Event::Closed { connection, .. } if *connection == theirs);
    stage.until("its end", &mut good, |stage, _| stage.told.iter().any(closed));
    for _ in 0..20 {
        stage.round(&mut good, 100);
    }
}

#[test]
fn a_peer_that_acknowledges_nothing_does_not_keep_headers_from_others() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stage = Stage::new(&options());
    let mut good = stage.good();
    stage.until("a connection", &mut good, |stage, _| stage.server.sockets() == (1, 0));
    let honest = stage.told.iter().find_map(accepted_by_stranger).expect("it was accepted");
    stage.told.clear();
    let mut dice = Dice::new(9);
    let greedy: Vec<TcpStream> = (0..4)
        .map(|_| {
            let hello = hello(&mut dice, [1000, 1000]);
            greeted(&mut stage, &mut good, &hello).0
        })
        .collect();
    stage.until("all", &mut good, |stage, _| stage.server.sockets() == (5, 0));
    let silent: Vec<_> = stage.told.iter().filter_map(accepted_by_stranger).collect();
    assert_eq!(silent.len(), 4);
    let mut token = 0;
    for round in 0..200_u64 {
        for &connection in &silent {
            let lease = LeaseMut::<[u8]>::inline(8);
            let _ = stage.server.submit(Destination::new(connection), lease.into(), Token(1 << 40));
        }
        let lease = stage.server.loan(200).expect("a slot");
        stage.server.submit(Destination::new(honest), lease.into(), Token(round)).expect("the message is taken");
        let mut done = false;
        let deadline = Instant::now() + PATIENCE;
        while !done {
            assert!(Instant::now() < deadline, "message {round} has no header: {:?}", stage.server.slot_counts());
            stage.poll();
            let mut events = Vec::new();
            good.transport.poll(&mut events, Some(Duration::ZERO)).expect("the transport goes on");
            for event in stage.told.drain(..) {
                done |= matches!(event, Event::Completed { token, .. } if token == Token(round));
            }
        }
        token += 1;
    }
    assert_eq!(token, 200);
    drop(greedy);
}

/// The 99th percentile of rounds of small and large messages.
fn p99(stage: &mut Stage, good: &mut Good, rounds: usize) -> Duration {
    let mut times: Vec<Duration> =
        (0..rounds).map(|round| stage.round(good, if round % 4 == 0 { 40_000 } else { 200 })).collect();
    times.sort_unstable();
    times[rounds * 99 / 100]
}

/// So many peers that begin something and do not go on.
fn lorises(stage: &mut Stage, good: &mut Good, count: u64) -> Vec<TcpStream> {
    let mut dice = Dice::new(3);
    let mut slow = Vec::new();
    for number in 0..count {
        let hello = hello(&mut dice, [0, 0]);
        if number % 4 == 0 {
            // Its hello comes byte by byte.
            let mut stream = stranger(&stage.address);
            stream.write_all(&hello.encode()[..1 + number as usize % 100]).expect("room");
            slow.push(stream);
            continue;
        }
        let (mut stream, answer) = greeted(stage, good, &hello);
        let begun = match (number % 4, answer.granted) {
            (1, [_, 1..=u32::MAX]) => first_frame(30_000),
            (2, [1..=u32::MAX, _]) => first_frame(1000),
            // It asks for slots, and uses none.
            _ => Header { wants: [true, true], ..Header::empty(Kind::Control) },
        };
        let mut bytes = [0; HEADER_BYTES + 1];
        begun.encode(bytes.first_chunk_mut().expect("it is longer"));
        stream.write_all(&bytes[..HEADER_BYTES + usize::from(begun.kind == Kind::Data)]).expect("room");
        slow.push(stream);
        if number % 50 == 0 {
            stage.round(good, 40_000);
        }
    }
    slow
}

/// Two transports alike, a good peer at each, and a thousand slow peers at one of them: how many times as long the 99th
/// percentile of that one's rounds is, in the median of what was measured in turns; and the two of them.
fn beside_lorises(turns: usize, rounds: usize) -> (f64, Duration, Duration) {
    const LORISES: u64 = 1000;
    // None of them is given up while it is looked at.
    let patience = Duration::from_secs(600);
    let patient = StreamOptions { greeting_timeout: patience, stall_timeout: patience, ..options() };
    let begin = || {
        let mut stage = Stage::new(&patient);
        let mut good = stage.good();
        stage.until("a connection", &mut good, |stage, _| stage.server.sockets() == (1, 0));
        p99(&mut stage, &mut good, rounds);
        (stage, good)
    };
    let ((mut quiet, mut one), (mut beset, mut two)) = (begin(), begin());
    let slow = lorises(&mut beset, &mut two, LORISES);
    let (mut ratios, mut without, mut with) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..turns {
        // Neither is always the first.
        let mut times = [Duration::ZERO; 2];
        for at in [turn % 2, 1 - turn % 2] {
            times[at] = if at == 0 { p99(&mut quiet, &mut one, rounds) } else { p99(&mut beset, &mut two, rounds) };
        }
        ratios.push(times[1].as_secs_f64() / times[0].as_secs_f64());
        without.push(times[0]);
        with.push(times[1]);
    }
    let (sockets, counts) = (beset.server.sockets(), beset.server.slot_counts());
    assert!(sockets.0 > LORISES as usize / 2, "most of them are there: {sockets:?}");
    assert!(counts.free[0] >= 1 && counts.free[1] >= 1, "something is left: {counts:?}");
    drop(slow);
    ratios.sort_unstable_by(f64::total_cmp);
    without.sort_unstable();
    with.sort_unstable();
    (ratios[turns / 2], without[turns / 2], with[turns / 2])
}

#[test]
fn a_thousand_slow_lorises_take_nothing_from_a_good_connection() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let is_long = std::env::var_os("ZCMI_LONG").is_some();
    let (turns, rounds) = if is_long { (31, 20_000) } else { (5, 1000) };
    let (ratio, without, with) = beside_lorises(turns, rounds);
    println!("p99 of {rounds} rounds, {turns} turns: without {without:?}, with {with:?}, ratio {ratio:.2}");
    // In the short form loosely: other programs run beside this one.
    let most = if is_long { 1.5 } else { 5.0 };
    assert!(ratio <= most, "p99 without lorises is {without:?}, with them {with:?}: {ratio:.2} times, at most {most}");
}

#[test]
fn who_begins_something_and_does_not_go_on_is_given_up_and_newcomers_have_its_slots() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stage = Stage::new(&options());
    let mut good = stage.good();
    stage.until("a connection", &mut good, |stage, _| stage.server.sockets() == (1, 0));
    let mut dice = Dice::new(3);
    let mut slow = Vec::new();
    for _ in 0..50 {
        let hello = hello(&mut dice, [0, 0]);
        let (mut stream, answer) = greeted(&mut stage, &mut good, &hello);
        let wants = Header { wants: [true, true], ..Header::empty(Kind::Control) };
        let begun = if answer.granted[1] > 0 { first_frame(30_000) } else { wants };
        let mut bytes = [0; HEADER_BYTES];
        begun.encode(&mut bytes);
        stream.write_all(&bytes).expect("room");
        slow.push(stream);
    }
    // It comes when they have what newcomers can have.
    let begin = Instant::now();
    let mut second = stage.good();
    second.submit(100_000);
    stage.until("a newcomer's message", &mut second, |_, second| {
        good.poll();
        second.completed == 1
    });
    println!("a newcomer's first message took {:?}", begin.elapsed());
    stage.until("all of them to be given up", &mut good, |stage, _| {
        second.poll();
        stage.server.sockets().0 <= 2
    });
    let stalled = |event: &&Event| match event {
        Event::Closed { reason: Closed::Broken(reason), .. } => reason.contains("stalled"),
        _ => false,
    };
    assert!(stage.told.iter().filter(stalled).count() > 20, "{:?}", stage.told);
    stage.round(&mut good, 100_000);
}

#[test]
fn who_asks_for_a_slot_and_sends_other_pieces_is_given_up() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // One slot for long pieces is given ahead, and that one to the good peer.
    let slots = SlotPlan { large_slots: 2, ..options().slots };
    let mut stage = Stage::new(&StreamOptions { slots, ..options() });
    let mut good = stage.good();
    stage.until("a connection", &mut good, |stage, _| stage.server.sockets() == (1, 0));
    let (mut stream, answer) = greeted(&mut stage, &mut good, &hello(&mut Dice::new(3), [0, 0]));
    assert_eq!(answer.granted[1], 0);
    let mut say = |header: Header| {
        let mut bytes = [0; HEADER_BYTES];
        header.encode(&mut bytes);
        stream.write_all(&bytes).is_ok()
    };
    say(Header { wants: [false, true], ..Header::empty(Kind::Control) });
    stage.until("the slot to be given", &mut good, |stage, _| stage.server.slot_counts().promised[1] == 2);
    // Long pieces it sends none, but short ones, of no bytes, for as long as it may.
    let (mut sent, mut next) = (0, Instant::now());
    stage.until("its end", &mut good, |stage, _| {
        let may = answer.granted[0] > sent && Instant::now() >= next;
        if may && say(Header { wants: [false, true], sequence: sent.into(), ..first_frame(0) }) {
            (sent, next) = (sent + 1, Instant::now() + Duration::from_millis(150));
        }
        stage.server.sockets() == (1, 0)
    });
    let stalled = |event: &Event| match event {
        Event::Closed { reason: Closed::Broken(reason), .. } => reason.contains("stalled"),
        _ => false,
    };
    assert!(stage.told.iter().any(stalled), "{:?}", stage.told);
    assert!(sent < answer.granted[0], "it was given up when it had nothing more to say");
    assert_eq!(stage.server.slot_counts().promised[1], 1);
    stage.round(&mut good, 100_000);
}
