//! Which paths copy on which wires, by the oracle, and where the kernel says something else.

use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{SendFlags, send, sockopt};
use zcmi_bench::oracle::{OracleError, RawPath, Source, Truth, Word, word_of_kernel};
use zcmi_bench::wires::{Route, Side, Streams, Wire, WireKind};

/// Makes a wire, or prints why it cannot be made here.
fn make(kind: WireKind) -> Option<Wire> {
    let wire = Wire::make(kind).map_err(|unavailable| {
        assert!(unavailable.is_lasting(), "{unavailable}");
        println!("SKIP: {unavailable}");
    });
    wire.ok()
}

/// A stream whose receiver has room for what is sent: with XDP each packet takes a page of it, however short it is.
fn streams(wire: &Wire) -> Streams {
    let pair = wire.streams().unwrap();
    let room = 4 << 20;
    // Without the right to more there is what the host allows.
    if sockopt::set_socket_recv_buffer_size_force(&pair.receiver, room).is_err() {
        sockopt::set_socket_recv_buffer_size(&pair.receiver, room).unwrap();
    }
    pair
}

/// What a path does with so many bytes, and what the kernel says of it where it says anything.
fn asked(sender: &OwnedFd, receiver: &OwnedFd, path: RawPath, bytes: usize) -> (Truth, Option<Word>) {
    let mut source = Source::of_bytes(bytes).unwrap();
    let truth = source.ask(sender.as_fd(), receiver.as_fd(), path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    (truth, (path == RawPath::ZeroCopy).then(|| word_of_kernel(sender.as_fd()).unwrap()))
}

/// What all paths do in a regime.
#[derive(Clone, Copy, Debug)]
enum Regime {
    /// Zero-copy sends are copied, and the kernel says so; spliced pages are shared.
    Honest,
    /// Everything is copied, and the kernel denies it.
    Lying,
    /// Everything is copied. The kernel admits it if any of the packets that TCP made was no longer than a segment, so
    /// its word depends on the moment; what makes one packet of some segments it denies.
    HalfLying,
}

fn check(sender: &OwnedFd, receiver: &OwnedFd, regime: Regime, what: &str) {
    for bytes in [1, 4096, 60_001, 65_536] {
        for path in RawPath::ALL {
            let found = asked(sender, receiver, path, bytes);
            let expected = match (path, regime) {
                (RawPath::ZeroCopy, Regime::Honest) => (Truth::Copied, Some(Word::Copied)),
                (RawPath::ZeroCopy, Regime::HalfLying) if bytes != 4096 => (Truth::Copied, found.1),
                (RawPath::ZeroCopy, Regime::Lying | Regime::HalfLying) => (Truth::Copied, Some(Word::NotCopied)),
                (RawPath::SendFile | RawPath::Splice, Regime::Honest) => (Truth::Shared, None),
                _ => (Truth::Copied, None),
            };
            assert_eq!(found, expected, "{what}: {path:?} of {bytes} bytes");
        }
    }
}

#[test]
fn tcp_copies_zero_copy_sends_and_shares_spliced_pages_on_honest_wires() {
    for kind in [WireKind::Lo, WireKind::Veth, WireKind::Tbf] {
        let Some(wire) = make(kind) else { continue };
        let pair = streams(&wire);
        check(&pair.sender, &pair.receiver, Regime::Honest, kind.name());
    }
}

#[test]
fn a_native_xdp_program_makes_tcp_copy_and_the_kernel_deny_it() {
    let Some(wire) = make(WireKind::VethXdp) else { return };
    let pair = streams(&wire);
    check(&pair.sender, &pair.receiver, Regime::Lying, "with XDP");
    assert!(wire.detach_xdp().unwrap());
    check(&pair.sender, &pair.receiver, Regime::Honest, "XDP gone");
    wire.attach_xdp().unwrap();
    check(&pair.sender, &pair.receiver, Regime::Lying, "XDP back");
}

#[test]
fn without_scatter_gather_tcp_copies_and_the_kernel_denies_it() {
    let Some(wire) = make(WireKind::Veth) else { return };
    let pair = streams(&wire);
    wire.set_scatter_gather(false).unwrap();
    check(&pair.sender, &pair.receiver, Regime::HalfLying, "without scatter-gather");
    wire.set_scatter_gather(true).unwrap();
    check(&pair.sender, &pair.receiver, Regime::Honest, "with scatter-gather");
}

#[test]
fn unix_streams_share_spliced_pages_and_refuse_zero_copy() {
    let wire = make(WireKind::Unix).unwrap();
    let pair = wire.streams().unwrap();
    for path in [RawPath::Write, RawPath::SendFile, RawPath::Splice] {
        let expected = if path == RawPath::Write { Truth::Copied } else { Truth::Shared };
        assert_eq!(asked(&pair.sender, &pair.receiver, path, 60_001), (expected, None), "{path:?}");
    }
    let refused = Source::of_bytes(100).unwrap().ask(pair.sender.as_fd(), pair.receiver.as_fd(), RawPath::ZeroCopy);
    assert!(matches!(&refused, Err(OracleError::Send(error)) if error.raw_os_error() == Some(95)), "{refused:?}");
    // Datagrams are put together in the kernel's own memory.
    let pair = wire.datagrams().unwrap();
    for path in [RawPath::Write, RawPath::SendFile, RawPath::Splice] {
        assert_eq!(asked(&pair.sender, &pair.receiver, path, 4096), (Truth::Copied, None), "{path:?}");
    }
}

#[test]
fn udp_is_copied_as_tcp_is() {
    for (kind, word, spliced) in [
        (WireKind::Lo, Word::Copied, Truth::Shared),
        (WireKind::Veth, Word::Copied, Truth::Shared),
        (WireKind::VethXdp, Word::NotCopied, Truth::Copied),
    ] {
        let Some(wire) = make(kind) else { continue };
        let pair = wire.datagrams().unwrap();
        for path in RawPath::ALL {
            let expected = match path {
                RawPath::Write => (Truth::Copied, None),
                RawPath::ZeroCopy => (Truth::Copied, Some(word)),
                _ => (spliced, None),
            };
            assert_eq!(asked(&pair.sender, &pair.receiver, path, 1400), expected, "{kind}: {path:?}");
        }
    }
}

#[test]
fn a_verdict_waits_for_bytes_that_a_shaper_holds_back() {
    let Some(wire) = make(WireKind::Tbf) else { return };
    let (pair, filler) = (streams(&wire), wire.datagrams().unwrap());
    wire.set_rate_kbit_s(4000).unwrap();
    // What may pass at once is used up; what follows takes its time, one packet after the other.
    for _ in 0..120 {
        assert_eq!(send(&filler.sender, &[0; 1400], SendFlags::DONTWAIT), Ok(1400));
    }
    for (path, expected) in
        [(RawPath::SendFile, (Truth::Shared, None)), (RawPath::ZeroCopy, (Truth::Copied, Some(Word::Copied)))]
    {
        assert_eq!(asked(&pair.sender, &pair.receiver, path, 60_001), expected, "{path:?}");
    }
}

#[test]
fn a_sink_frees_what_it_is_sent_and_the_kernel_says_not_copied() {
    let Some(wire) = make(WireKind::Ifb) else { return };
    let pair = wire.datagrams().unwrap();
    let sent = |bytes: usize| {
        let before = wire.counters(Side::Sender).unwrap();
        let sent = Source::of_bytes(bytes).unwrap().send(pair.sender.as_fd(), RawPath::ZeroCopy).unwrap();
        assert_eq!(sent, bytes);
        let word = word_of_kernel(pair.sender.as_fd()).unwrap();
        // The notice comes when the last packet is freed, so all have been counted.
        let after = wire.counters(Side::Sender).unwrap();
        (after.received_drops - before.received_drops, word)
    };
    assert_eq!(sent(1400), (1, Word::NotCopied));
    // Packets are as large as they can be here.
    assert_eq!(sent(60_200), (1, Word::NotCopied));
    // What would have to be cut into fragments is copied beforehand; what the interface may cut is not.
    wire.ip(Side::Sender, &["link", "set", "zcmi-sink", "mtu", "1500"]).unwrap();
    assert!(matches!(sent(60_200), (_, Word::Copied)));
    pair.set_segment_bytes(1400).unwrap();
    let (freed, word) = sent(60_200);
    assert!(word == Word::NotCopied && (1..=43).contains(&freed), "{freed} packets freed, {word:?}");
    wire.set_scatter_gather(false).unwrap();
    assert_eq!(sent(60_200).1, Word::Copied);
    wire.set_scatter_gather(true).unwrap();
    assert_eq!(sent(60_200).1, Word::NotCopied);
    pair.set_segment_bytes(0).unwrap();
    // The same socket, when its route moves to the pair: there is a receiver again, and it knows better.
    wire.set_route(Route::Veth).unwrap();
    assert_eq!(asked(&pair.sender, &pair.receiver, RawPath::ZeroCopy, 1400), (Truth::Copied, Some(Word::Copied)));
}
