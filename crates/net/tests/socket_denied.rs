//! What the wire does where the process may lock no memory, and where SIGPIPE ends it. Both are the process's own, so
//! that these tests have a program to themselves.

mod socket_rig;

use std::io::{ErrorKind, IoSliceMut};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use rustix::thread::CapabilitySet;
use socket_rig::{Pair, Slab, restore_pipe_signal, until, wait};
use zcmi_net::path::{PathKind, Release};
use zcmi_net::socket::SocketWire;
use zcmi_net::wire::{Home, Segment, Wire};

const BYTES: usize = 64 << 10;

/// A wire, its far end, and a slab whose region it knows by number 0.
fn ends(pair: Pair) -> (SocketWire, SocketWire, Slab) {
    let (near, far) = pair.connect(None);
    let (mut near, far) = (SocketWire::new(near).expect("a wire"), SocketWire::new(far).expect("a wire"));
    let mut slab = Slab::new(BYTES);
    slab.bytes_mut().fill(7);
    near.add_region(slab.region().clone());
    (near, far, slab)
}

fn segment(slab: &Slab) -> [Segment<'_>; 1] {
    [Segment { bytes: slab.bytes(), home: Some(Home { region: 0, offset: slab.region().data_offset() }) }]
}

/// Takes this thread's right to lock memory beyond the limit.
fn give_up_locking() {
    let mut sets = rustix::thread::capabilities(None).expect("capget");
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    rustix::thread::set_capabilities(None, sets).expect("capset");
}

#[test]
fn a_process_that_may_lock_nothing_gets_enobufs_and_owes_nothing() {
    let (mut near, mut far, slab) = ends(Pair::V4);
    assert!(matches!(near.send(PathKind::ZeroCopy, &segment(&slab)), Ok(sent) if sent.release == Release::Notified(0)));
    give_up_locking();
    let before = rustix::process::getrlimit(Resource::Memlock);
    rustix::process::setrlimit(Resource::Memlock, Rlimit { current: Some(0), maximum: before.maximum }).expect("lower");
    let refused = near.send(PathKind::ZeroCopy, &segment(&slab));
    let refused_again = near.send(PathKind::ZeroCopy, &segment(&slab));
    // Another path sends, at this moment and on this socket.
    let copied = near.send(PathKind::Write, &[Segment { bytes: b"copied", home: None }]);
    rustix::process::setrlimit(Resource::Memlock, before).expect("raise");
    for refused in [refused, refused_again] {
        assert_eq!(Errno::from_io_error(&refused.expect_err("no room")), Some(Errno::NOBUFS));
    }
    assert_eq!(copied.expect("room").bytes, 6);
    let after = near.send(PathKind::ZeroCopy, &[Segment { bytes: b"after", home: None }]).expect("room");
    assert_eq!(after.release, Release::Notified(1), "refused sends have no number");
    let mut notified = 0;
    until("both are notified", || {
        near.notifications(&mut |note| notified += note.last - note.first + 1).expect("notifications");
        near.owed_notifications() == 0
    });
    assert_eq!((notified, near.ignored()), (2, zcmi_net::socket::Ignored::default()));
    let mut received: Vec<u8> = Vec::new();
    let mut buffer = vec![0; BYTES];
    while received.len() < BYTES + 11 {
        wait(&[(&far, PollFlags::IN)]);
        let bytes = far.receive(&mut [IoSliceMut::new(&mut buffer)]).expect("bytes");
        received.extend(&buffer[..bytes]);
    }
    assert_eq!(&received[BYTES..], b"copiedafter");
}

#[test]
fn a_closed_stream_is_an_error_and_no_signal() {
    restore_pipe_signal();
    for pair in [Pair::V4, Pair::Unix] {
        let paths = [PathKind::SendFile, PathKind::Splice, PathKind::Write, PathKind::ZeroCopy];
        for path in paths.into_iter().filter(|&path| pair != Pair::Unix || path != PathKind::ZeroCopy) {
            let (mut near, far, slab) = ends(pair);
            drop(far);
            // The first send may be accepted before TCP has learned of the end; then comes its error, then EPIPE.
            let mut told = Vec::new();
            until("the stream is closed", || {
                if let Err(error) = near.send(path, &segment(&slab)) {
                    told.push(error.kind());
                }
                told.last() == Some(&ErrorKind::BrokenPipe)
            });
            for _ in 0..3 {
                let error = near.send(path, &segment(&slab)).expect_err("closed");
                assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{path} over {pair:?}");
            }
        }
    }
}
