//! Sending through io_uring: what is sent arrives whole and in order, and memory is given back when it is free.
#![deny(unsafe_code)]

mod uring_rig;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use uring_rig::{Numbers, PATIENCE, Program, Sink, Source, sys};
use zcmi_mem::region::Region;
use zcmi_mem::registration::{RemoveError, Support};
use zcmi_net::path::{PathKind, Release};
use zcmi_net::uring::{self, Abilities, FixedError, Options, Refusal, Ring};
use zcmi_net::wire::Segment;

const PATHS: [PathKind; 3] = [PathKind::UringSend, PathKind::UringZeroCopy, PathKind::UringFixed];
const SLOT: usize = 16 << 10;

fn refusal(error: &io::Error) -> Option<Refusal> {
    error.get_ref()?.downcast_ref().copied()
}

fn errno(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

/// Sends a seeded stream by all paths in turn, and checks what arrives. Returns how many sends were partial, refused
/// because the socket was full, and notified as copied.
fn stream(seed: u64, options: Options) -> (u64, u64, u64) {
    let mut numbers = Numbers::new(seed);
    let mut ring = Ring::open(options).expect("a ring");
    let (sender, receiver) = uring_rig::tcp(true);
    let mut sink = Sink { from: receiver, position: 0 };
    let mut source = Source::new(SLOT, 64);
    let key = numbers.next() as u32;
    match ring.register(3, &source.region) {
        Ok(()) => {}
        Err(error) => panic!("the region is not registered: {error}"),
    }
    let (mut partial, mut full) = (0, 0);
    for _ in 0..400 {
        if source.is_sent() {
            for _ in 0..1 + numbers.below(5) {
                let bytes = match numbers.below(4) {
                    0 => 64,
                    1 => 1 + numbers.below(200),
                    _ => 1 + numbers.below(SLOT),
                };
                source.fill(bytes);
            }
        }
        let path = PATHS[numbers.below(3)];
        let filled = source.position();
        match source.send(&mut ring, sender.as_fd(), key, path, 3) {
            Ok(_) if source.is_sent() => {}
            Ok(_) => partial += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => full += 1,
            Err(error) => panic!("{path}: {error}"),
        }
        if numbers.below(3) > 0 || !source.is_sent() {
            sink.read(numbers.below(32 << 10));
        }
        source.notifications(&mut ring, key);
        assert!(sink.position <= filled);
    }
    while sink.position < source.position() {
        if !source.is_sent() {
            let path = PATHS[numbers.below(3)];
            match source.send(&mut ring, sender.as_fd(), key, path, 3) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{path}: {error}"),
            }
        }
        uring_rig::wait(&sink.from, (!source.is_sent()).then(|| sender.as_fd()));
        sink.read(1 << 20);
        source.notifications(&mut ring, key);
    }
    assert_eq!(ring.settle(PATIENCE), 0, "the kernel owes nothing once all is read");
    source.notifications(&mut ring, key);
    assert_eq!((source.in_flight(), source.owed, ring.owed_to(key)), (0, source.notified, 0));
    assert_eq!(ring.strays(), 0);
    assert!(source.owed > 0);
    ring.unregister(&source.region).expect("nothing is in flight");
    (partial, full, source.copied)
}

#[test]
fn streams_arrive_whole_whichever_paths_alternate() {
    if !uring_rig::is_there() {
        return;
    }
    let mut all = (0, 0, 0);
    for seed in 1..=6 {
        let options = Options::default().deferred(seed % 2 == 0).buffers(64);
        // Regions in one piece, and cut into pieces that slots lie across.
        let options = if seed % 3 == 0 { options.place_bytes(20_480) } else { options };
        let (partial, full, copied) = stream(seed, options);
        all = (all.0 + partial, all.1 + full, all.2 + copied);
    }
    println!("partial {}, full {}, notified as copied {}", all.0, all.1, all.2);
    assert!(all.0 > 0 && all.1 > 0, "the buffers were not small enough: {all:?}");
    assert!(all.2 > 0, "loopback copies, and says so");
}

#[test]
fn a_unix_socket_takes_copies_only_and_nothing_stays_owed() {
    if !uring_rig::is_there() {
        return;
    }
    let mut ring = Ring::open(Options::default().buffers(4)).expect("a ring");
    let (sender, receiver) = uring_rig::unix();
    let mut sink = Sink { from: receiver, position: 0 };
    let mut source = Source::new(SLOT, 16);
    ring.register(0, &source.region).expect("a place");
    let mut numbers = Numbers::new(7);
    let mut refused = 0;
    for round in 0..300 {
        if source.is_sent() {
            source.fill(100 + numbers.below(SLOT - 100));
        }
        match source.send(&mut ring, sender.as_fd(), 1, PATHS[round % 3], 0) {
            Ok(_) => assert_eq!(PATHS[round % 3], PathKind::UringSend),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                assert_eq!(errno(&error), Some(Errno::OPNOTSUPP), "{error}");
                refused += 1;
            }
        }
        sink.read(numbers.below(2 * SLOT));
    }
    while sink.position < source.position() {
        if !source.is_sent() {
            let _full = source.send(&mut ring, sender.as_fd(), 1, PathKind::UringSend, 0);
        }
        uring_rig::wait(&sink.from, (!source.is_sent()).then(|| sender.as_fd()));
        sink.read(1 << 20);
    }
    assert!(refused > 0);
    // A refused send is owed a notification by the kernel, and nobody is told of it.
    assert_eq!(ring.settle(PATIENCE), 0);
    assert_eq!((source.owed, ring.notified(), ring.owed_to(1), ring.strays()), (0, None, 0, 0));
    ring.unregister(&source.region).expect("nothing is in flight");
}

#[test]
fn after_a_reset_errors_come_and_everything_owed_is_settled() {
    if !uring_rig::is_there() {
        return;
    }
    let mut ring = Ring::open(Options::default()).expect("a ring");
    for path in PATHS {
        let (sender, receiver) = uring_rig::tcp(true);
        let mut source = Source::new(SLOT, 64);
        ring.register(0, &source.region).expect("a place");
        while source.fill(SLOT) && source.in_flight() < 20 {
            match source.send(&mut ring, sender.as_fd(), 9, path, 0) {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{path}: {error}");
                    break;
                }
            }
        }
        assert!(path == PathKind::UringSend || (source.owed > 0 && ring.owed() > 0), "{path}");
        let id = source.region.id();
        if path == PathKind::UringFixed {
            let refused = ring.unregister(&source.region).expect_err("bytes are in flight");
            assert!(matches!(refused, RemoveError::InUse { region, in_flight, .. } if region == id && in_flight > 0));
        }
        rustix::net::sockopt::set_socket_linger(&receiver, Some(std::time::Duration::ZERO)).expect("SO_LINGER");
        drop(receiver);
        let mut failed = 0;
        while failed < 5 {
            match source.send(&mut ring, sender.as_fd(), 9, path, 0) {
                Ok(_) => assert!(source.fill(1000) || failed > 0, "a reset socket takes bytes for ever"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    let known = [Errno::CONNRESET, Errno::PIPE];
                    assert!(errno(&error).is_some_and(|errno| known.contains(&errno)), "{path}: {error}");
                    failed += 1;
                }
            }
        }
        assert_eq!(ring.settle(PATIENCE), 0, "{path}");
        source.notifications(&mut ring, 9);
        assert_eq!((source.in_flight(), source.owed, ring.owed_to(9)), (0, source.notified, 0), "{path}");
        ring.unregister(&source.region).expect("nothing is in flight");
    }
    assert_eq!(ring.strays(), 0);
}

#[test]
fn a_region_is_registered_once_and_its_place_is_used_again() {
    if !uring_rig::is_there() {
        return;
    }
    let mut ring = Ring::open(Options::default().buffers(3).place_bytes(1 << 20)).expect("a ring");
    let region = |mib: usize| Arc::new(Region::options((mib << 20) - 4096).create().expect("a region"));
    let (one, two) = (region(2), region(2));
    for number in [0, 5] {
        ring.register(number, &one).expect("places");
        assert_eq!(ring.buffers().free(), 1);
    }
    let full = ring.register(1, &two).expect_err("one place is left of three");
    assert!(matches!(full, FixedError::TableFull { needed: 2, free: 1, .. }), "{full}");
    ring.unregister(&one).expect("nothing is in flight");
    assert!(matches!(ring.unregister(&one), Err(RemoveError::NotRegistered { .. })));
    assert_eq!((ring.buffers().free(), ring.buffers().stuck()), (3, 0));
    ring.register(1, &two).expect("places");
    let none = Ring::open(Options::default().buffers(0)).expect("a ring").register(0, &one);
    assert!(matches!(none, Err(FixedError::NoTable { .. })));
}

#[test]
fn what_is_not_registered_is_refused_before_anything_is_sent() {
    if !uring_rig::is_there() {
        return;
    }
    let mut ring = Ring::open(Options::default()).expect("a ring");
    let (sender, receiver) = uring_rig::tcp(false);
    let bytes: Vec<u8> = (0..200).map(uring_rig::byte_at).collect();
    let (header, payload) = bytes.split_at(64);
    let segments = [Segment { bytes: header, home: None }, Segment { bytes: payload, home: None }];
    let error = ring.send(sender.as_fd(), 1, PathKind::UringFixed, &segments).expect_err("nothing is registered");
    assert_eq!(refusal(&error), Some(Refusal::NotRegistered { region: None, bytes: 136 }));
    let error = ring.send(sender.as_fd(), 1, PathKind::Write, &segments).expect_err("another's path");
    assert_eq!(refusal(&error), Some(Refusal::NotOurs { path: PathKind::Write }));
    // A header alone is copied.
    let sent = ring.send(sender.as_fd(), 1, PathKind::UringFixed, &segments[..1]).expect("room");
    assert_eq!((sent.bytes, sent.release, ring.owed()), (64, Release::Now, 0));
    let nothing = ring.send(sender.as_fd(), 1, PathKind::UringZeroCopy, &[]).expect("nothing to do");
    assert_eq!((nothing.bytes, nothing.release), (0, Release::Now));
    let sent = ring.send(sender.as_fd(), 1, PathKind::UringSend, &segments[1..]).expect("room");
    assert_eq!(sent.bytes, 136);
    let mut sink = Sink { from: receiver, position: 0 };
    while sink.position < 200 {
        uring_rig::wait(&sink.from, None);
        sink.read(1000);
    }
}

#[test]
fn more_than_the_limit_in_flight_is_refused_until_notifications_are_taken() {
    if !uring_rig::is_there() {
        return;
    }
    let mut ring = Ring::open(Options::default().sends(4)).expect("a ring");
    let (sender, receiver) = uring_rig::tcp(false);
    let mut sink = Sink { from: receiver, position: 0 };
    let mut source = Source::new(4096, 32);
    let mut refused = 0;
    for _ in 0..100 {
        if source.is_sent() {
            source.fill(1000);
        }
        if let Err(error) = source.send(&mut ring, sender.as_fd(), 2, PathKind::UringZeroCopy, 0) {
            assert_eq!(errno(&error), Some(Errno::NOBUFS), "{error}");
            refused += 1;
            // The copying path needs no place.
            assert!(source.send(&mut ring, sender.as_fd(), 2, PathKind::UringSend, 0).is_ok());
            if refused % 2 == 0 {
                assert_eq!(ring.settle(PATIENCE), 0);
                assert_eq!(ring.notified(), Some(2));
                source.notifications(&mut ring, 2);
                assert_eq!(ring.notified(), None);
            }
        }
        sink.read(1 << 16);
    }
    assert!(refused > 1);
}

#[test]
fn a_send_of_more_requests_than_may_be_in_flight_is_partial() {
    if !uring_rig::is_there() {
        return;
    }
    let mut ring = Ring::open(Options::default().sends(3).place_bytes(8192).buffers(512)).expect("a ring");
    let (sender, receiver) = uring_rig::tcp(false);
    let mut sink = Sink { from: receiver, position: 0 };
    let mut source = Source::new(1 << 20, 3);
    ring.register(0, &source.region).expect("places");
    assert!(source.fill(1 << 20));
    // The far end reads nothing yet, so that nothing is acknowledged away.
    let bytes = source.send(&mut ring, sender.as_fd(), 1, PathKind::UringFixed, 0).expect("room");
    assert!(bytes > 0 && bytes < 1 << 20, "{bytes}");
    assert!(ring.owed() <= 3);
    while sink.position < source.position() {
        if !source.is_sent()
            && let Err(error) = source.send(&mut ring, sender.as_fd(), 1, PathKind::UringFixed, 0)
        {
            let full = error.kind() == io::ErrorKind::WouldBlock || errno(&error) == Some(Errno::NOBUFS);
            assert!(full, "{error}");
        }
        assert!(ring.owed() <= 3);
        sink.read(1 << 20);
        source.notifications(&mut ring, 1);
    }
    assert_eq!(ring.settle(PATIENCE), 0);
    source.notifications(&mut ring, 1);
    assert_eq!((source.owed, source.in_flight()), (source.notified, 0));
}

#[test]
fn nothing_is_sent_behind_a_short_count_while_the_far_end_makes_room() {
    if !uring_rig::is_there() {
        return;
    }
    let mut ring = Ring::open(Options::default().place_bytes(8192).buffers(1024)).expect("a ring");
    // With a receive buffer of its own the kernel's window fell to some hundred bytes, and 200 ms passed for each.
    let (sender, receiver) = uring_rig::tcp(false);
    uring_rig::send_little_ahead(&sender);
    let mut source = Source::new(128 << 10, 32);
    ring.register(0, &source.region).expect("places");
    let end = 4 << 20;
    let reader = std::thread::spawn(move || {
        let mut sink = Sink { from: receiver, position: 0 };
        while sink.position < end {
            uring_rig::wait(&sink.from, None);
            sink.read(3000);
        }
    });
    let mut partial = 0;
    while source.position() < end || !source.is_sent() {
        if source.is_sent() {
            for bytes in [64, 100_000, 64, 120_000] {
                source.fill((end - source.position()).min(bytes) as usize);
            }
        }
        match source.send(&mut ring, sender.as_fd(), 1, PathKind::UringFixed, 0) {
            Ok(_) => partial += usize::from(!source.is_sent()),
            // Who tries without a pause keeps the processor from the reader, where there is but one for both.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => uring_rig::wait_for_room(&sender),
            Err(error) => panic!("{error}"),
        }
        source.notifications(&mut ring, 1);
        assert!(!reader.is_finished() || source.is_sent(), "the reader ended early");
    }
    reader.join().expect("what comes is what was sent");
    assert!(partial > 0);
    assert_eq!(ring.settle(PATIENCE), 0);
}

#[test]
fn a_ring_dropped_while_it_owes_keeps_what_was_registered() {
    if !uring_rig::is_there() {
        return;
    }
    let kept = |owing: bool| {
        let mut ring = Ring::open(Options::default()).expect("a ring");
        let (sender, receiver) = uring_rig::tcp(true);
        let mut source = Source::new(SLOT, 8);
        ring.register(0, &source.region).expect("a place");
        if owing {
            // One slot is left for the rest of what is sent in part.
            (0..7).for_each(|_| assert!(source.fill(SLOT)));
            source.send(&mut ring, sender.as_fd(), 1, PathKind::UringFixed, 0).expect("room");
            assert!(ring.owed() > 0);
        }
        let watched = Arc::downgrade(&source.region);
        drop((ring, source));
        drop((sender, receiver));
        watched.upgrade().is_some()
    };
    assert!(kept(true), "a region was unmapped that the kernel may read");
    assert!(!kept(false), "a region is kept that nobody needs");
}

#[test]
fn a_forked_child_sends_nothing_in_its_parents_name() {
    if !uring_rig::is_there() {
        return;
    }
    let mut ring = Ring::open(Options::default()).expect("a ring");
    let (sender, receiver) = uring_rig::tcp(false);
    let bytes = [1; 10];
    let segments = [Segment { bytes: &bytes, home: None }];
    let code = sys::in_fork(|| {
        let sent = ring.send(sender.as_fd(), 1, PathKind::UringSend, &segments);
        let notified = ring.notified();
        i32::from(sent.is_ok() || notified.is_some())
    });
    assert_eq!(code.expect("a child"), 0);
    let code = sys::in_fork(|| {
        // What it inherited is dropped as a part of its end.
        // The parent's own is not touched, for the child has a copy of it.
        let inherited = core::mem::replace(&mut ring, Ring::open(Options::default()).expect("a ring of its own"));
        drop(inherited);
        i32::from(ring.send(sender.as_fd(), 1, PathKind::UringSend, &segments).is_err())
    });
    assert_eq!(code.expect("a child"), 0);
    let sent = ring.send(sender.as_fd(), 1, PathKind::UringSend, &segments).expect("the parent's ring works");
    assert_eq!(sent.bytes, 10);
    drop(receiver);
}

#[test]
fn a_filter_that_refuses_io_uring_is_named() {
    const NAME: &str = "a_filter_that_refuses_io_uring_is_named";
    if !uring_rig::is_child(NAME) {
        if uring_rig::is_there() {
            uring_rig::run_child(&[], &uring_rig::this_program(), NAME);
        }
        return;
    }
    // A ring that is open when its system call is refused has to stop, and owes nothing then.
    let mut ring = Ring::open(Options::default()).expect("a ring");
    let (sender, _receiver) = uring_rig::tcp(false);
    let bytes = [1; 100];
    let segments = [Segment { bytes: &bytes, home: None }];
    sys::deny(sys::ENTER, libc::EPERM).expect("a filter");
    for path in [PathKind::UringZeroCopy, PathKind::UringSend] {
        let error = ring.send(sender.as_fd(), 1, path, &segments).expect_err("io_uring_enter is refused");
        assert_eq!(refusal(&error), Some(Refusal::Stopped { errno: Errno::PERM }));
    }
    assert_eq!(ring.owed(), 0);

    sys::deny(sys::SETUP, libc::EPERM).expect("a filter");
    let Support::No(reason) = uring::support() else { panic!("{}", uring::support()) };
    assert!(reason.contains("seccomp"), "{reason}");
    let error = Ring::open(Options::default()).expect_err("it is refused").to_string();
    assert!(error.contains("seccomp") && error.contains("io_uring_setup failed"), "{error}");
    let Abilities { send, message_zero_copy, send_zero_copy, .. } = Abilities::probe();
    assert!([send, message_zero_copy, send_zero_copy].iter().all(|support| matches!(support, Support::No(_))));
    // The filter that was installed last is asked first, and the most severe answer counts.
    sys::deny(sys::SETUP, libc::ENOSYS).expect("a filter");
    assert!(matches!(uring::support(), Support::No(_)));
}

#[test]
fn a_region_past_the_memlock_limit_is_refused_and_the_copying_path_works() {
    const NAME: &str = "a_region_past_the_memlock_limit_is_refused_and_the_copying_path_works";
    if uring_rig::is_child(NAME) {
        let mut ring = Ring::open(Options::default()).expect("a ring");
        let (sender, _receiver) = uring_rig::tcp(false);
        let mut source = Source::new(SLOT, 64);
        let error = ring.register(0, &source.region).expect_err("1 MiB is more than 64 KiB");
        assert!(matches!(error, FixedError::LockedMemory { limit: 65_536, .. }), "{error}");
        assert!(error.to_string().contains("RLIMIT_MEMLOCK"), "{error}");
        assert_eq!((ring.buffers().free(), ring.buffers().stuck()), (256, 0));
        // Without a registration each send pins its pages, and past the limit is told so.
        let mut refused = None;
        while source.fill(SLOT) {
            if source.pending_bytes() < 128 << 10 {
                continue;
            }
            match source.send(&mut ring, sender.as_fd(), 1, PathKind::UringZeroCopy, 0) {
                Ok(_) => {}
                Err(error) => {
                    refused = errno(&error);
                    break;
                }
            }
        }
        println!("a send that pins past the limit: {refused:?}");
        assert!(source.send(&mut ring, sender.as_fd(), 1, PathKind::UringSend, 0).is_ok());
        assert!(refused.is_none_or(|errno| [Errno::NOBUFS, Errno::NOMEM].contains(&errno)));
        assert_eq!(ring.settle(PATIENCE), 0);
        return;
    }
    if !uring_rig::is_there() {
        return;
    }
    if !uring_rig::has_program("setpriv") || !uring_rig::has_program("prlimit") {
        println!("SKIP: setpriv and prlimit are needed");
        return;
    }
    let program = Program::copy("uring-memlock");
    let limit = ["prlimit", "--memlock=65536:65536"];
    let user = ["setpriv", "--reuid", "61007", "--regid", "61007", "--clear-groups"];
    let prefix = if rustix::process::geteuid().is_root() { [&limit[..], &user[..]].concat() } else { limit.to_vec() };
    let text = uring_rig::run_child(&prefix, &program.path(), NAME);
    println!("{}", text.lines().find(|line| line.contains("pins past")).unwrap_or_default());
}
