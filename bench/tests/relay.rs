//! The relay between two tun devices: what passes, and that each fault happens when it is asked for and not otherwise.
//!
//! `ZCMI_LONG=1` also asserts how fast it is.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};
use zcmi_bench::wires::{Datagrams, Family, Faults, Relay, RelayCounts, Side, Wire, WireError, WireKind};

/// How long anything in these tests may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(20);
const DATAGRAMS: u64 = 4000;

fn make() -> Option<Wire> {
    let wire = Wire::make_seeded(WireKind::Relay, 42).map_err(|unavailable| {
        assert!(unavailable.is_lasting(), "{unavailable}");
        println!("SKIP: {unavailable}");
    });
    wire.ok()
}

fn limit(socket: &OwnedFd) {
    for direction in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        sockopt::set_socket_timeout(socket, direction, Some(PATIENCE)).unwrap();
    }
}

/// Waits until what was sent by one side is either handed over or dropped.
fn settled(relay: &Relay, sent: u64) -> RelayCounts {
    let begin = Instant::now();
    loop {
        let counts = relay.counts(Side::Sender);
        let decided = counts.passed + counts.lost + counts.swallowed + counts.no_room + counts.refused;
        if counts.read >= sent && decided == counts.read {
            return counts;
        }
        assert!(begin.elapsed() < PATIENCE, "{counts:?}");
        assert_eq!(relay.failure(), None);
        std::thread::yield_now();
    }
}

/// The numbers of the datagrams that come, in their order, until no more are there.
fn numbers(pair: &Datagrams) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut bytes = [0; 100];
    while let Ok((count, _)) = recv(&pair.receiver, &mut bytes, RecvFlags::DONTWAIT) {
        assert_eq!(count, 8);
        numbers.push(u64::from_le_bytes(bytes[..8].try_into().unwrap()));
    }
    numbers
}

/// Sends numbered datagrams in small groups, and returns those that came.
fn exchange(wire: &Wire, pair: &Datagrams, faults: Faults) -> (Vec<u64>, RelayCounts) {
    let relay = wire.relay().unwrap();
    relay.set(Side::Sender, faults);
    let (mut came, before) = (Vec::new(), relay.counts(Side::Sender).read);
    let mut counts = RelayCounts::default();
    for number in 0..DATAGRAMS {
        send(&pair.sender, &number.to_le_bytes(), SendFlags::empty()).unwrap();
        if number % 50 == 49 {
            counts = settled(relay, before + number + 1);
            came.extend(numbers(pair));
        }
    }
    // Copies come after what they are copies of.
    let begin = Instant::now();
    while counts.doubled < DATAGRAMS / 100 && faults.duplicates_ppm > 0 && begin.elapsed() < PATIENCE {
        counts = relay.counts(Side::Sender);
    }
    came.extend(numbers(pair));
    relay.set(Side::Sender, Faults::NONE);
    (came, counts)
}

#[test]
fn datagrams_meet_the_faults_that_are_asked_for_and_no_others() {
    let loss = Faults { loss_ppm: 100_000, ..Faults::NONE };
    let mut lost_twice = Vec::new();
    for _ in 0..2 {
        let Some(wire) = make() else { return };
        let pair = wire.datagrams().unwrap();
        let (came, counts) = exchange(&wire, &pair, loss);
        assert!((300..500).contains(&counts.lost), "{counts:?}");
        assert_eq!(came.len() as u64, DATAGRAMS - counts.lost);
        assert!(came.is_sorted(), "order stays");
        lost_twice.push(came);
    }
    assert!(lost_twice[0] == lost_twice[1], "a seed loses the same packets again");

    let Some(wire) = make() else { return };
    let pair = wire.datagrams().unwrap();
    let (came, counts) = exchange(&wire, &pair, Faults::NONE);
    assert!(came.into_iter().eq(0..DATAGRAMS), "without faults all come, in order: {counts:?}");

    let late = Duration::from_micros(500);
    let (came, counts) = exchange(&wire, &pair, Faults { duplicates_ppm: 100_000, late, ..Faults::NONE });
    assert!((300..500).contains(&counts.doubled), "{counts:?}");
    let mut once = came.clone();
    once.sort_unstable();
    once.dedup();
    assert!(once.into_iter().eq(0..DATAGRAMS), "each comes at least once");
    assert!(came.len() as u64 > DATAGRAMS + 300, "{} came", came.len());

    // Copies that are still on their way would come among what follows.
    let Some(wire) = make() else { return };
    let pair = wire.datagrams().unwrap();
    let (mut came, counts) = exchange(&wire, &pair, Faults { reordered_ppm: 100_000, late, ..Faults::NONE });
    assert!((300..500).contains(&counts.reordered), "{counts:?}");
    let overtaken = came.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(overtaken > 50, "{overtaken} were overtaken");
    came.sort_unstable();
    assert!(came.into_iter().eq(0..DATAGRAMS), "and each came once");

    let (came, counts) = exchange(&wire, &pair, Faults { black_hole: true, ..Faults::NONE });
    assert_eq!((came, counts.swallowed), (Vec::new(), DATAGRAMS));
}

#[test]
fn a_delay_and_a_rate_take_their_time() {
    let Some(wire) = make() else { return };
    let relay = wire.relay().unwrap();
    let pair = wire.datagrams_over(Family::V6).unwrap();
    limit(&pair.receiver);
    let delay = Duration::from_millis(30);
    relay.set(Side::Sender, Faults { delay, jitter: delay / 3, ..Faults::NONE });
    let begin = Instant::now();
    send(&pair.sender, b"slowly", SendFlags::empty()).unwrap();
    recv(&pair.receiver, &mut [0; 10], RecvFlags::empty()).unwrap();
    assert!(begin.elapsed() >= delay, "it came after {:?}", begin.elapsed());
    // 20 packets of 1,028 bytes at 2 Mbit/s.
    relay.set(Side::Sender, Faults { rate_kbit_s: 2000, ..Faults::NONE });
    let begin = Instant::now();
    for _ in 0..20 {
        send(&pair.sender, &[0; 1000], SendFlags::empty()).unwrap();
    }
    for _ in 0..20 {
        recv(&pair.receiver, &mut [0; 1000], RecvFlags::empty()).unwrap();
    }
    assert!(begin.elapsed() >= Duration::from_millis(80), "they came after {:?}", begin.elapsed());
}

#[test]
fn a_reset_ends_both_ends_of_a_connection_at_work() {
    for family in [Family::V4, Family::V6] {
        let Some(wire) = make() else { return };
        let relay = wire.relay().unwrap();
        let streams = wire.streams_over(family).unwrap();
        limit(&streams.sender);
        limit(&streams.receiver);
        let (mut from, mut to) = (File::from(streams.sender), File::from(streams.receiver));
        std::thread::scope(|scope| {
            let sending = scope.spawn(move || {
                let error = loop {
                    if let Err(error) = from.write_all(&[0; 10_000]) {
                        break error;
                    }
                };
                assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
            });
            let mut came = 0;
            let error = loop {
                match to.read(&mut [0; 10_000]) {
                    Ok(count) => {
                        assert!(count > 0, "an end is no reset");
                        came += count;
                        if came > 1 << 20 {
                            relay.reset();
                            came = 0;
                        }
                    }
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            sending.join().unwrap();
        });
        let resets = [Side::Sender, Side::Receiver].map(|from| relay.counts(from).resets);
        // The other end may have heard it from the first, whose system knows the connection no more.
        assert!(resets.iter().sum::<u64>() > 0, "{resets:?}");
    }
}

#[test]
fn an_idle_connection_is_reset_too() {
    let Some(wire) = make() else { return };
    let streams = wire.streams().unwrap();
    limit(&streams.sender);
    limit(&streams.receiver);
    let (mut from, mut to) = (File::from(streams.sender), File::from(streams.receiver));
    from.write_all(b"hello").unwrap();
    to.read_exact(&mut [0; 5]).unwrap();
    wire.relay().unwrap().reset();
    // The receiver's acknowledgement may have been on its way; then the next packet brings the reset.
    assert_eq!(to.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_wire_without_a_relay_says_so() {
    let unix = Wire::make(WireKind::Unix).unwrap();
    assert!(matches!(unix.relay(), Err(WireError::NotThere { kind: WireKind::Unix, .. })));
}

#[test]
fn it_carries_a_gigabit_in_a_second() {
    let Some(wire) = make() else { return };
    let streams = wire.streams().unwrap();
    let total = if cfg!(debug_assertions) { 64 << 20 } else { 512 << 20 };
    let (mut from, mut to) = (File::from(streams.sender), File::from(streams.receiver));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let bytes = vec![7; 128 << 10];
            (0..total / bytes.len()).for_each(|_| from.write_all(&bytes).unwrap());
        });
        let (mut bytes, mut came) = (vec![0; 128 << 10], 0);
        while came < total {
            came += to.read(&mut bytes).unwrap();
        }
    });
    let gbit_s = total as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9;
    let counts = wire.relay().unwrap().counts(Side::Sender);
    println!("{gbit_s:.2} Gbit/s, {counts:?}");
    assert_eq!((counts.lost, counts.no_room, counts.refused), (0, 0, 0));
    if std::env::var_os("ZCMI_LONG").is_some_and(|value| value == "1") {
        assert!(gbit_s >= 1.0, "{gbit_s:.2} Gbit/s");
    }
}
