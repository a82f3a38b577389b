//! Receiving through io_uring: what comes lies in slots, in order, and slots come back.
#![deny(unsafe_code)]

mod uring_rig;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;

use rustix::event::epoll;
use rustix::io::Errno;
use uring_rig::{Numbers, PATIENCE, byte_at, sys};
use zcmi_mem::pool::{Pool, PoolPlan, Slot};
use zcmi_mem::registration::Support;
use zcmi_net::path::PathKind;
use zcmi_net::uring::{Abilities, Options, ReceiveError, Received, Ring};
use zcmi_net::wire::Segment;

const SLOT: usize = 4096;

/// A ring with a queue of 8 slots and a pool of so many; nothing where the kernel has no such queues.
fn ring(slots: u32) -> Option<(Ring, Pool)> {
    ring_with(Options::default(), slots)
}

fn ring_with(options: Options, slots: u32) -> Option<(Ring, Pool)> {
    if !uring_rig::is_there() {
        return None;
    }
    let receive = Abilities::probe().receive;
    if receive != Support::Yes {
        println!("SKIP: receiving through io_uring: {receive}");
        return None;
    }
    let (_, pool) = sys::pool(&PoolPlan::single(SLOT, slots).expect("a plan"));
    let mut ring = Ring::open(options).expect("a ring");
    ring.receiving(8).expect("a queue of slots");
    assert!(matches!(ring.receiving(8), Err(ReceiveError::Twice { slots: 8 })));
    Some((ring, pool))
}

fn provide(ring: &mut Ring, pool: &mut Pool, slots: usize) {
    for _ in 0..slots {
        let slot = pool.take(SLOT).expect("the pool has more slots than the queue");
        if ring.provide(slot).is_err() {
            return;
        }
    }
}

/// The next that is received, waited for a bounded time.
fn next(ring: &mut Ring) -> (u32, Received) {
    loop {
        if let Some(next) = ring.received() {
            return next;
        }
        uring_rig::wait(&*ring, None);
    }
}

fn check(position: &mut u64, slot: &Slot, bytes: usize) {
    for (at, &byte) in slot.bytes(bytes).iter().enumerate() {
        assert_eq!(byte, byte_at(*position + at as u64), "byte {} of the stream", *position + at as u64);
    }
    *position += bytes as u64;
}

/// Writes what fits of the stream from `position` on, at most `most` bytes.
fn write(socket: &mut (impl Write + AsFd), position: &mut u64, most: usize) {
    let bytes: Vec<u8> = (0..most as u64).map(|at| byte_at(*position + at)).collect();
    match socket.write(&bytes) {
        Ok(sent) => *position += sent as u64,
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
    }
}

#[test]
fn streams_come_whole_and_go_on_after_slots_ran_out() {
    for bundles in [false, true] {
        let Some((ring, pool)) = ring_with(Options::default().bundles(bundles), 16) else { return };
        streams_come_whole(ring, pool);
    }
}

fn streams_come_whole(mut ring: Ring, mut pool: Pool) {
    let mut numbers = Numbers::new(11);
    let mut pairs = [uring_rig::tcp(true), uring_rig::tcp(true)];
    let (mut sent, mut got) = ([0; 2], [0; 2]);
    let (mut starved, mut paused) = (0, 0);
    for (key, (sender, receiver)) in pairs.iter().enumerate() {
        sender.set_nonblocking(true).expect("a socket");
        ring.arm(receiver.as_fd(), key as u32).expect("a request");
    }
    let mut arrived = |ring: &mut Ring, pool: &mut Pool, got: &mut [u64; 2], pairs: &[_; 2]| match next(ring) {
        (key, Received::Bytes { slot, bytes }) => check(&mut got[key as usize], &slot, bytes),
        (key, Received::Paused { starved: none_left }) => {
            starved += u32::from(none_left);
            paused += 1;
            assert!(paused < 10_000, "slots that were provided are not used");
            if none_left {
                provide(ring, pool, 3);
            }
            let (_, receiver): &(std::net::TcpStream, std::net::TcpStream) = &pairs[key as usize];
            ring.arm(receiver.as_fd(), key).expect("a request");
        }
        (key, other) => panic!("{key}: {other:?}"),
    };
    for _ in 0..300 {
        let key = numbers.below(2);
        write(&mut pairs[key].0, &mut sent[key], 1 + numbers.below(3 * SLOT));
        while numbers.below(3) > 0 && got != sent {
            arrived(&mut ring, &mut pool, &mut got, &pairs);
        }
    }
    while got != sent {
        arrived(&mut ring, &mut pool, &mut got, &pairs);
    }
    assert!(starved > 2, "slots ran out {starved} times");
    // Both end: one regularly, one by a reset.
    provide(&mut ring, &mut pool, 2);
    let [(regular, _first), (reset, _second)] = pairs;
    drop(regular);
    loop {
        match next(&mut ring) {
            (0, Received::Ended { error: None }) => break,
            (key, Received::Paused { .. }) => {
                let receiver = if key == 0 { &_first } else { &_second };
                ring.arm(receiver.as_fd(), key).expect("a request");
            }
            (key, other) => panic!("{key}: {other:?}"),
        }
    }
    rustix::net::sockopt::set_socket_linger(&reset, Some(std::time::Duration::ZERO)).expect("SO_LINGER");
    drop(reset);
    let (key, last) = next(&mut ring);
    assert!(matches!((key, &last), (1, Received::Ended { error: Some(Errno::CONNRESET) })), "{key}: {last:?}");
    assert_eq!((ring.strays(), ring.settle(PATIENCE)), (0, 0));
}

#[test]
fn a_completion_fills_several_slots_where_it_can() {
    let Some((mut ring, mut pool)) = ring(16) else { return };
    if *ring.bundles() != Support::Yes {
        println!("SKIP: bundles: {}", ring.bundles());
        return;
    }
    provide(&mut ring, &mut pool, 8);
    let (mut sender, receiver) = uring_rig::tcp(false);
    let (mut sent, mut got) = (0, 0);
    write(&mut sender, &mut sent, 3 * SLOT + 5);
    ring.arm(receiver.as_fd(), 0).expect("a request");
    while got < sent {
        let (0, Received::Bytes { slot, bytes }) = next(&mut ring) else { panic!("bytes were sent") };
        check(&mut got, &slot, bytes);
    }
    assert!(ring.bundled() > 0, "each of {sent} bytes came in a slot told of alone");
}

/// Does something in a thread of its own after a while, and then waits until the socket's other end is closed.
fn later(socket: TcpStream, act: impl FnOnce(&TcpStream) + Send + 'static) {
    std::thread::spawn(move || {
        // Nothing comes, so that this takes as long as it says.
        let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
        rustix::event::poll(&mut [], Some(&pause)).expect("poll");
        act(&socket);
        let mut end = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::RDHUP)];
        let patience = rustix::event::Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        rustix::event::poll(&mut end, Some(&patience)).expect("poll");
    });
}

/// Waits by epoll on the ring, which must not take as long as a wait that nobody ends.
fn is_woken(ring: &Ring) {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    epoll::add(&epoll, ring, epoll::EventData::new_u64(0), epoll::EventFlags::IN).expect("epoll");
    let begin = std::time::Instant::now();
    let limit = rustix::event::Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let mut events = Vec::with_capacity(1);
    // Word for the ring interrupts the wait, and is there after that.
    while let Err(errno) = epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&limit)) {
        assert_eq!(errno, Errno::INTR);
    }
    assert_eq!(events.len(), 1, "the ring woke nobody");
    let waited = begin.elapsed();
    assert!(waited < PATIENCE / 4, "the ring woke nobody for {waited:?}");
}

#[test]
fn who_waits_on_the_ring_is_woken_by_what_comes_later() {
    let Some((mut ring, mut pool)) = ring(16) else { return };
    provide(&mut ring, &mut pool, 8);
    let (sender, receiver) = uring_rig::tcp(false);
    ring.arm(receiver.as_fd(), 0).expect("a request");
    assert!(ring.received().is_none());
    later(sender, |mut sender| sender.write_all(b"later").expect("room"));
    is_woken(&ring);
    let (0, Received::Bytes { bytes: 5, .. }) = next(&mut ring) else { panic!("five bytes were sent") };
    ring.disarm(0).expect("a request");
}

#[test]
fn who_waits_on_the_ring_is_woken_by_a_notification() {
    if !uring_rig::is_there() {
        return;
    }
    let mut ring = Ring::open(Options::default()).expect("a ring");
    let (sender, receiver) = uring_rig::tcp(true);
    sender.set_nodelay(true).expect("a socket");
    let bytes = vec![7; 4096];
    let segments = [Segment { bytes: &bytes, home: None }];
    // What loopback delivers it copies at once; what the receiver's window has no room for stays where it is.
    for _ in 0..1000 {
        match ring.send(sender.as_fd(), 0, PathKind::UringZeroCopy, &segments) {
            Ok(sent) => assert!(sent.bytes > 0),
            Err(error) if error.kind() == ErrorKind::Unsupported => return println!("SKIP: SENDMSG_ZC: {error}"),
            Err(error) => panic!("SENDMSG_ZC: {error}"),
        }
        if ring.settle(std::time::Duration::ZERO) > 0 {
            break;
        }
    }
    assert!(ring.owed() > 0, "all that was sent is delivered");
    later(receiver, |mut receiver| {
        let mut some = vec![0; 64 << 10];
        while receiver.read(&mut some).expect("it was sent") == some.len() {}
    });
    is_woken(&ring);
    assert_eq!(ring.settle(PATIENCE), 0);
}

#[test]
fn slots_come_back_when_the_ring_is_dropped() {
    let Some((mut ring, mut pool)) = ring(16) else { return };
    let (mut sender, receiver) = uring_rig::unix();
    provide(&mut ring, &mut pool, 8);
    assert_eq!((ring.provided(), pool.free_slots()), (8, 8));
    assert!(ring.provide(pool.take(1).expect("a slot")).is_err(), "the queue is full");
    ring.arm(receiver.as_fd(), 1).expect("a request");
    let twice = ring.arm(receiver.as_fd(), 1).expect_err("armed already");
    assert_eq!(twice.kind(), ErrorKind::AlreadyExists);
    let mut sent = 0;
    write(&mut sender, &mut sent, 100);
    let (_, Received::Bytes { slot, bytes: 100 }) = next(&mut ring) else { panic!("100 bytes were sent") };
    write(&mut sender, &mut sent, 100);
    drop(ring);
    assert_eq!(pool.free_slots(), 15);
    drop(slot);
    assert_eq!(pool.free_slots(), 16);
}

#[test]
fn a_key_that_is_armed_anew_gets_nothing_of_its_predecessor() {
    let Some((mut ring, mut pool)) = ring(16) else { return };
    provide(&mut ring, &mut pool, 8);
    for round in 0..20 {
        let (mut old_sender, old) = uring_rig::unix();
        let (mut sender, receiver) = uring_rig::unix();
        ring.arm(old.as_fd(), 5).expect("a request");
        old_sender.write_all(b"old").expect("room");
        if round % 2 == 0 {
            // It has been delivered, and was not taken.
            uring_rig::wait(&ring, None);
            assert_eq!(ring.notified(), None);
        }
        ring.disarm(5).expect("a request");
        ring.arm(receiver.as_fd(), 5).expect("a request");
        sender.write_all(b"new").expect("room");
        let (5, Received::Bytes { slot, bytes: 3 }) = next(&mut ring) else { panic!("three bytes were sent") };
        assert_eq!(slot.bytes(3), b"new");
        drop(slot);
        ring.disarm(5).expect("a request");
        provide(&mut ring, &mut pool, 2);
        // The kernel holds the socket no longer than the request: the far end learns that it was closed.
        drop(receiver);
        while ring.received().is_some() {}
        uring_rig::wait(&sender, None);
        assert_eq!(sender.read(&mut [0; 10]).expect("an end"), 0);
    }
    assert_eq!(ring.strays(), 0);
    drop(ring);
    assert_eq!(pool.free_slots(), 16);
}
