//! Bytes over sockets of this host by each path: their order, their release, and whether pages are shared.

mod socket_rig;

use std::collections::BTreeMap;
use std::io::{ErrorKind, IoSliceMut};
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use socket_rig::{PATIENCE, Pair, Random, Slab, until, wait};
use zcmi_net::path::{PathKind, Release};
use zcmi_net::socket::{self, SocketError, SocketWire};
use zcmi_net::wire::{Home, Segment, Wire};

/// What this wire's paths are.
const PATHS: [PathKind; 4] = [PathKind::Write, PathKind::ZeroCopy, PathKind::SendFile, PathKind::Splice];
const STREAM_BYTES: usize = 6 << 20;

/// Part of the stream: a header of its own or a range of the slab.
#[derive(Clone, Copy)]
struct Part<'a> {
    bytes: &'a [u8],
    offset: Option<usize>,
}

#[derive(Default)]
struct Seen {
    partial: BTreeMap<PathKind, usize>,
    blocked: BTreeMap<PathKind, usize>,
    whole: BTreeMap<PathKind, usize>,
}

fn parts<'a>(random: &mut Random, slab: &'a Slab, headers: &'a [u8]) -> Vec<Part<'a>> {
    let data = slab.bytes();
    let mut parts = Vec::new();
    let mut total = 0;
    while total < STREAM_BYTES {
        if random.below(3) > 0 {
            let at = random.below(headers.len() - 64);
            parts.push(Part { bytes: &headers[at..at + random.below(65)], offset: None });
        }
        let most = [10, 3000, 20_000, 150_000][random.below(4)];
        let at = random.below(data.len() - most);
        let len = random.below(most);
        parts.push(Part { bytes: &data[at..at + len], offset: Some(at) });
        total += len;
    }
    parts
}

fn mixed(pair: Pair, seed: u64) {
    let mut random = Random::new(seed);
    let mut slab = Slab::new(1 << 20);
    slab.bytes_mut().fill_with(|| random.next() as u8);
    let headers: Vec<u8> = (0..4096).map(|_| random.next() as u8).collect();
    let parts = parts(&mut random, &slab, &headers);
    let whole: Vec<u8> = parts.iter().flat_map(|part| part.bytes).copied().collect();

    let (near, far) = pair.connect(Some(64 << 10));
    let (mut near, mut far) = (SocketWire::new(near).expect("a wire"), SocketWire::new(far).expect("a wire"));
    let region = near.add_region(slab.region().clone());
    let paths: Vec<PathKind> =
        PATHS.into_iter().filter(|&path| pair != Pair::Unix || path != PathKind::ZeroCopy).collect();
    let data_offset = slab.region().data_offset();

    let mut seen = Seen::default();
    let mut notified: BTreeMap<u64, bool> = BTreeMap::new();
    let (mut index, mut inside) = (0, 0);
    let mut received: Vec<u8> = Vec::with_capacity(whole.len());
    let mut numbers = 0;
    let mut buffer = vec![0; 100_000];
    let deadline = Instant::now() + PATIENCE * 3;
    while received.len() < whole.len() {
        assert!(Instant::now() < deadline, "seed {seed}: {} of {} bytes arrived", received.len(), whole.len());
        let path = paths[random.below(paths.len())];
        let count = 1 + random.below(6);
        let segments: Vec<Segment<'_>> = parts[index..]
            .iter()
            .take(count)
            .enumerate()
            .map(|(at, part)| {
                let skipped = if at == 0 { inside } else { 0 };
                let home = part.offset.map(|offset| Home { region, offset: data_offset + offset + skipped });
                Segment { bytes: &part.bytes[skipped..], home }
            })
            .collect();
        let asked: usize = segments.iter().map(|segment| segment.bytes.len()).sum();
        let mut must_wait = index == parts.len();
        match near.send(path, &segments) {
            Ok(sent) => {
                match sent.release {
                    Release::Now => assert!(path == PathKind::Write || sent.bytes == 0),
                    Release::Notified(number) => {
                        assert_eq!((path, number), (PathKind::ZeroCopy, numbers));
                        numbers += 1;
                    }
                    Release::Acknowledged => assert!(matches!(path, PathKind::SendFile | PathKind::Splice)),
                }
                assert!(sent.bytes <= asked);
                if asked > 0 {
                    assert!(sent.bytes > 0, "{path} accepted nothing and said so as if it were something");
                    let tally = if sent.bytes < asked { &mut seen.partial } else { &mut seen.whole };
                    *tally.entry(path).or_default() += 1;
                }
                let mut left = sent.bytes;
                while index < parts.len() && left >= parts[index].bytes.len() - inside {
                    left -= parts[index].bytes.len() - inside;
                    (index, inside) = (index + 1, 0);
                    if left == 0 {
                        break;
                    }
                }
                inside += left;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{path}: {error}");
                *seen.blocked.entry(path).or_default() += 1;
                must_wait = true;
            }
        }
        // The reader is slower than the sender, so that the socket fills; once it is full, the reader takes a bit.
        if must_wait || random.below(12) == 0 {
            let room = 1 + random.below(buffer.len() - 1);
            let (front, back) = buffer[..room].split_at_mut(room / 3);
            match far.receive(&mut [IoSliceMut::new(front), IoSliceMut::new(back)]) {
                Ok(bytes) => {
                    let at = received.len();
                    received.extend(&buffer[..bytes]);
                    assert!(received[at..] == whole[at..received.len()], "seed {seed}: wrong bytes from {at} on");
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    if must_wait {
                        let wanted = if index < parts.len() { PollFlags::OUT } else { PollFlags::empty() };
                        wait(&[(&near, wanted), (&far, PollFlags::IN)]);
                    }
                }
            }
            near.notifications(&mut |note| note_all(&mut notified, note.first..=note.last, note.copied))
                .expect("notes");
        }
    }
    until("each send is notified", || {
        near.notifications(&mut |note| note_all(&mut notified, note.first..=note.last, note.copied)).expect("notes");
        near.owed_notifications() == 0
    });
    assert_eq!(notified.keys().copied().collect::<Vec<_>>(), (0..numbers).collect::<Vec<_>>());
    assert!(notified.values().all(|&copied| copied), "loopback copies, and says so");
    assert_eq!(near.ignored(), socket::Ignored::default());
    assert_eq!(numbers > 0, pair != Pair::Unix);
    for path in paths {
        for (what, tally) in [("partial", &seen.partial), ("blocked", &seen.blocked), ("whole", &seen.whole)] {
            assert!(tally.contains_key(&path), "{pair:?}, seed {seed}: no send by {path} was {what}");
        }
    }
    near.end().expect("shutdown");
    let mut end = [0; 8];
    until("the end comes", || match far.receive(&mut [IoSliceMut::new(&mut end)]) {
        Ok(bytes) => {
            assert_eq!(bytes, 0);
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            false
        }
    });
}

fn note_all(notified: &mut BTreeMap<u64, bool>, numbers: std::ops::RangeInclusive<u64>, copied: bool) {
    for number in numbers {
        assert_eq!(notified.insert(number, copied), None, "send {number} was notified twice");
    }
}

#[test]
fn mixed_paths_keep_the_order_over_ipv4() {
    (1..=3).for_each(|seed| mixed(Pair::V4, seed));
}

#[test]
fn mixed_paths_keep_the_order_over_ipv6() {
    (11..=13).for_each(|seed| mixed(Pair::V6, seed));
}

#[test]
fn mixed_paths_keep_the_order_over_ipv6_with_an_address_of_ipv4() {
    mixed(Pair::Mapped, 21);
}

#[test]
fn mixed_paths_keep_the_order_over_a_unix_socket() {
    (31..=33).for_each(|seed| mixed(Pair::Unix, seed));
}

/// Sends all of the slab by a path, changes the bytes when the socket has them, and says whether the receiver sees the
/// change.
fn shares_pages(pair: Pair, path: PathKind) -> bool {
    const BYTES: usize = 32 << 10;
    let mut slab = Slab::new(BYTES);
    slab.bytes_mut().fill(b'o');
    let (near, far) = pair.connect(Some(1 << 20));
    let (mut near, mut far) = (SocketWire::new(near).expect("a wire"), SocketWire::new(far).expect("a wire"));
    let region = near.add_region(slab.region().clone());
    let home = Some(Home { region, offset: slab.region().data_offset() });
    let sent = near.send(path, &[Segment { bytes: slab.bytes(), home }]).expect("room");
    assert_eq!(sent.bytes, BYTES);
    if pair != Pair::Unix {
        until("all is sent", || socket::unacknowledged_bytes(&near).expect("SIOCOUTQ") == 0);
        assert_eq!(socket::unsent_bytes(&near).expect("SIOCOUTQNSD"), 0);
    }
    slab.bytes_mut().fill(b'n');
    let mut received = vec![0; BYTES];
    let mut have = 0;
    while have < BYTES {
        wait(&[(&far, PollFlags::IN)]);
        have += far.receive(&mut [IoSliceMut::new(&mut received[have..])]).expect("bytes");
    }
    assert!(received.iter().all(|&byte| byte == received[0]), "some pages are shared and some are not");
    received[0] == b'n'
}

#[test]
fn the_mutation_oracle_tells_which_paths_share_pages() {
    for pair in Pair::ALL {
        for path in PATHS {
            if pair == Pair::Unix && path == PathKind::ZeroCopy {
                continue;
            }
            let expected = matches!(path, PathKind::SendFile | PathKind::Splice);
            assert_eq!(shares_pages(pair, path), expected, "{path} over {pair:?}");
        }
    }
}

#[test]
fn an_aborted_connection_is_reset_and_its_sends_are_notified() {
    let slab = Slab::new(1 << 20);
    let (near, far) = Pair::V4.connect(Some(64 << 10));
    let (mut near, mut far) = (SocketWire::new(near).expect("a wire"), SocketWire::new(far).expect("a wire"));
    // Another process could hold the socket as well.
    let duplicate = near.as_fd().try_clone_to_owned().expect("dup");
    let sent = loop {
        match near.send(PathKind::ZeroCopy, &[Segment { bytes: slab.bytes(), home: None }]) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(sent.kind(), ErrorKind::WouldBlock, "the socket is full");
    socket::abort(&duplicate).expect("abort");
    until("all sends are notified", || {
        near.notifications(&mut |_| ()).expect("notifications");
        near.owed_notifications() == 0
    });
    let mut buffer = vec![0; 1 << 20];
    let mut ended = None;
    until("the reset comes", || match far.receive(&mut [IoSliceMut::new(&mut buffer)]) {
        Ok(0) => panic!("a reset is no end"),
        Ok(_) => false,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => {
            ended = Some(error.kind());
            true
        }
    });
    assert_eq!(ended, Some(ErrorKind::ConnectionReset));
    let (unix, _far) = Pair::Unix.connect(None);
    assert!(socket::abort(&unix).is_err(), "a Unix socket has no reset");
}

#[test]
fn options_are_set_and_told() {
    let (near, far) = Pair::V6.connect(None);
    socket::set_no_delay(&near, true).expect("TCP_NODELAY");
    assert!(rustix::net::sockopt::tcp_nodelay(&near).expect("asked"));
    let before = socket::congestion(&near).expect("TCP_CONGESTION");
    let other = if before == "cubic" { "reno" } else { "cubic" };
    socket::set_congestion(&near, other).expect("TCP_CONGESTION");
    assert_eq!(socket::congestion(&near).expect("TCP_CONGESTION"), other);
    assert!(socket::set_congestion(&near, "carrier-pigeon").is_err());
    socket::set_user_timeout_ms(&near, 4321).expect("TCP_USER_TIMEOUT");
    assert_eq!(rustix::net::sockopt::tcp_user_timeout(&near).expect("asked"), 4321);
    socket::set_send_buffer_bytes(&near, 50_000).expect("SO_SNDBUF");
    socket::set_receive_buffer_bytes(&near, 60_000).expect("SO_RCVBUF");
    assert_eq!(socket::send_buffer_bytes(&near).expect("SO_SNDBUF"), 100_000, "the kernel doubles it");
    assert_eq!(socket::receive_buffer_bytes(&near).expect("SO_RCVBUF"), 120_000);

    let mut near = SocketWire::new(near).expect("a wire");
    near.send(PathKind::Write, &[Segment { bytes: &[1; 1000], home: None }]).expect("room");
    until("all is acknowledged", || socket::unacknowledged_bytes(&near).expect("SIOCOUTQ") == 0);
    let info = socket::tcp_info(&near).expect("TCP_INFO");
    // The kernel counts the connection's beginning as a byte.
    assert_eq!((info.acknowledged_bytes, info.received_bytes), (1001, 0));
    assert!(info.segment_bytes > 500 && info.window_segments > 0);
    assert_eq!(socket::tcp_info(&far).expect("TCP_INFO").received_bytes, 1000);
    let (unix, _far) = Pair::Unix.connect(None);
    assert!(socket::tcp_info(&unix).is_err() && socket::unsent_bytes(&unix).is_err());
}

#[test]
fn what_is_no_stream_is_no_wire() {
    let datagrams = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).expect("a socket");
    let packets = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("a pair");
    for socket in [datagrams, packets.0] {
        let refused = SocketWire::new(socket).expect_err("no stream");
        assert!(matches!(refused, SocketError::NotAStream { .. }), "{refused}");
    }
    let (pipe, _to) = rustix::pipe::pipe().expect("a pipe");
    let refused = SocketWire::new(pipe).expect_err("no socket");
    assert!(matches!(refused, SocketError::System { .. }), "{refused}");
}

#[test]
fn a_receive_without_room_does_not_look_like_the_end() {
    let (near, _far) = Pair::Unix.connect(None);
    let mut near = SocketWire::new(near).expect("a wire");
    for buffers in [&mut [][..], &mut [IoSliceMut::new(&mut [])]] {
        assert_eq!(near.receive(buffers).expect_err("no room").kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn more_segments_than_a_call_takes_are_accepted_in_part() {
    for path in [PathKind::Write, PathKind::ZeroCopy] {
        let (near, far) = Pair::V4.connect(None);
        let (mut near, mut far) = (SocketWire::new(near).expect("a wire"), SocketWire::new(far).expect("a wire"));
        // Far apart, so that the kernel cannot join them.
        let bytes: Vec<u8> = (0..1100 * 5000_u32).map(|at| (at / 5000) as u8).collect();
        let segments: Vec<Segment<'_>> =
            bytes.chunks(5000).map(|chunk| Segment { bytes: &chunk[..1], home: None }).collect();
        let accepted = near.send(path, &segments).expect("room").bytes;
        // Pages count whole against the socket's room, so that fewer may fit where they are not copied.
        let least = if path == PathKind::Write { 1024 } else { 100 };
        assert!((least..=1024).contains(&accepted), "{path}: {accepted}");
        near.end().expect("shutdown");
        let mut received: Vec<u8> = Vec::new();
        let mut buffer = [0; 2000];
        loop {
            wait(&[(&far, PollFlags::IN)]);
            match far.receive(&mut [IoSliceMut::new(&mut buffer)]).expect("bytes") {
                0 => break,
                bytes => received.extend(&buffer[..bytes]),
            }
        }
        let expected: Vec<u8> = (0..accepted).map(|at| at as u8).collect();
        assert_eq!(received, expected, "{path}");
    }
}
