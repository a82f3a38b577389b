//! What the wire does when a call of the kernel fails, does less than it was asked to, or lies.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::fault::{Fault, all_happened, plan};
use super::sys::Call;
use super::*;
use crate::wire::Home;

#[path = "../../tests/socket_rig/mod.rs"]
mod rig;

use rig::{Pair, Slab, until};

/// A wire with a slab of bytes, and its far end.
struct Ends {
    near: SocketWire,
    far: SocketWire,
    slab: Slab,
    region: usize,
}

impl Ends {
    fn new(pair: Pair) -> Self {
        let (near, far) = pair.connect(None);
        let (mut near, far) = (SocketWire::new(near).expect("a wire"), SocketWire::new(far).expect("a wire"));
        let mut slab = Slab::new(64 << 10);
        for (at, byte) in slab.bytes_mut().iter_mut().enumerate() {
            *byte = (at / 251) as u8;
        }
        let region = near.add_region(slab.region().clone());
        Self { near, far, slab, region }
    }

    /// A header of two bytes, then `bytes` of the slab.
    fn send(&mut self, path: PathKind, bytes: std::ops::Range<usize>) -> io::Result<Sent> {
        let home = Home { region: self.region, offset: self.slab.region().data_offset() + bytes.start };
        let segments =
            [Segment { bytes: b"h:", home: None }, Segment { bytes: &self.slab.bytes()[bytes], home: Some(home) }];
        self.near.send(path, &segments)
    }

    /// The same without the header.
    fn send_bare(&mut self, path: PathKind, bytes: std::ops::Range<usize>) -> io::Result<Sent> {
        let home = Home { region: self.region, offset: self.slab.region().data_offset() + bytes.start };
        self.near.send(path, &[Segment { bytes: &self.slab.bytes()[bytes], home: Some(home) }])
    }

    /// Ends the stream and says what arrived in all.
    fn arrived(mut self) -> Vec<u8> {
        self.near.end().expect("shutdown");
        let mut all = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        until("the end comes", || match self.far.receive(&mut [IoSliceMut::new(&mut buffer)]) {
            Ok(0) => true,
            Ok(bytes) => {
                all.extend(&buffer[..bytes]);
                false
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                false
            }
        });
        assert!(all_happened(), "a fault was planned and did not happen");
        all
    }
}

fn errno(answer: io::Result<Sent>) -> Errno {
    Errno::from_io_error(&answer.expect_err("an error")).expect("an error of the kernel")
}

#[test]
fn nothing_of_a_pipe_reaches_the_stream_when_the_socket_was_full() {
    for pair in [Pair::V4, Pair::Unix] {
        let mut ends = Ends::new(pair);
        plan(Call::Splice, Fault::Errno(Errno::AGAIN));
        assert_eq!(errno(ends.send_bare(PathKind::Splice, 0..10_000)), Errno::AGAIN);
        assert_eq!(ends.send(PathKind::Write, 300..310).expect("room").bytes, 12);
        // And once more the other way round.
        plan(Call::Splice, Fault::Errno(Errno::AGAIN));
        assert_eq!(errno(ends.send_bare(PathKind::Splice, 0..10_000)), Errno::AGAIN);
        assert_eq!(ends.send_bare(PathKind::Splice, 600..610).expect("room").bytes, 10);
        let mut expected = b"h:".to_vec();
        expected.extend(&ends.slab.bytes()[300..310]);
        expected.extend(&ends.slab.bytes()[600..610]);
        assert_eq!(ends.arrived(), expected);
    }
}

#[test]
fn what_the_socket_took_of_a_pipe_is_accepted_and_no_more() {
    let mut ends = Ends::new(Pair::V4);
    plan(Call::Splice, Fault::Short(5000));
    plan(Call::Splice, Fault::Short(7));
    plan(Call::Splice, Fault::Errno(Errno::AGAIN));
    let sent = ends.send(PathKind::Splice, 0..10_000).expect("room");
    assert_eq!(sent, Sent { bytes: 2 + 5007, release: Release::Acknowledged });
    assert_eq!(ends.send_bare(PathKind::Splice, 5007..10_000).expect("room").bytes, 4993);
    let mut expected = b"h:".to_vec();
    expected.extend(&ends.slab.bytes()[..10_000]);
    assert_eq!(ends.arrived(), expected);
}

#[test]
fn a_pipe_that_cannot_be_emptied_is_given_up() {
    let mut ends = Ends::new(Pair::V4);
    plan(Call::Splice, Fault::Short(100));
    plan(Call::Splice, Fault::Errno(Errno::AGAIN));
    plan(Call::Splice, Fault::Errno(Errno::IO));
    assert_eq!(ends.send_bare(PathKind::Splice, 0..10_000).expect("room").bytes, 100);
    assert!(ends.near.pipe.is_none());
    assert_eq!(ends.send_bare(PathKind::Splice, 100..10_000).expect("room").bytes, 9900);
    assert!(ends.near.pipe.is_some());
    let expected = ends.slab.bytes()[..10_000].to_vec();
    assert_eq!(ends.arrived(), expected);
}

#[test]
fn a_short_fill_of_the_pipe_is_followed_by_another() {
    let mut ends = Ends::new(Pair::V4);
    plan(Call::FillPipe, Fault::Short(4097));
    plan(Call::FillPipe, Fault::Short(1));
    assert_eq!(ends.send(PathKind::Splice, 5..20_005).expect("room").bytes, 20_002);
    let mut expected = b"h:".to_vec();
    expected.extend(&ends.slab.bytes()[5..20_005]);
    assert_eq!(ends.arrived(), expected);
}

#[test]
fn nothing_is_sent_behind_a_segment_that_was_not_accepted_whole() {
    // The socket could have got room again between the two.
    for (path, call, at_most, accepted) in [
        (PathKind::SendFile, Call::SendMessage, 1, 1),
        (PathKind::Splice, Call::SendMessage, 1, 1),
        (PathKind::SendFile, Call::SendFile, 100, 2 + 100),
    ] {
        let mut ends = Ends::new(Pair::V4);
        plan(call, Fault::Short(at_most));
        let begin = ends.slab.region().data_offset();
        let data = ends.slab.bytes();
        let segments = [
            Segment { bytes: b"h:", home: None },
            Segment { bytes: &data[..1000], home: Some(Home { region: ends.region, offset: begin }) },
            Segment { bytes: b"h:", home: None },
            Segment { bytes: &data[1000..3000], home: Some(Home { region: ends.region, offset: begin + 1000 }) },
        ];
        assert_eq!(ends.near.send(path, &segments).expect("room").bytes, accepted, "{path}");
        let expected: Vec<u8> = [b"h:", &data[..1000]].concat()[..accepted].to_vec();
        assert_eq!(ends.arrived(), expected);
    }
}

#[test]
fn an_acknowledgement_between_two_calls_makes_no_packet_of_the_header() {
    let mut ends = Ends::new(Pair::V4);
    options::set_no_delay(&ends.near, true).expect("TCP_NODELAY");
    let Ends { near, far, slab, region } = &mut ends;
    let mut room = [0; 64];
    let mut heard = |far: &mut SocketWire| match far.receive(&mut [IoSliceMut::new(&mut room)]) {
        Ok(bytes) => bytes,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            0
        }
    };
    let bytes = &slab.bytes()[..10];
    let home = Some(Home { region: *region, offset: slab.region().data_offset() });
    // Bytes of the message that have come.
    let all = Cell::new(0);
    let mut in_time = 0;
    for _ in 0..100 {
        // Something that waits for its acknowledgement.
        assert_eq!(near.send(PathKind::Write, &[Segment { bytes: b"before", home: None }]).expect("room").bytes, 6);
        let begin = Instant::now();
        let sent = near.corked(|near| {
            near.send_each(&[Segment { bytes: b"h:", home: None }, Segment { bytes, home }], |near, segment, _more| {
                until("what went before comes", || heard(far) > 0);
                // It goes with this.
                far.send(PathKind::Write, &[Segment { bytes: b"a", home: None }]).expect("room");
                let mut byte = [0];
                until("it comes", || near.receive(&mut [IoSliceMut::new(&mut byte)]).is_ok());
                let early = heard(far);
                // What lies for 200 ms the kernel sends, corked or not (tcp(7)): then nothing was seen.
                if begin.elapsed() < Duration::from_millis(150) {
                    assert_eq!(early, 0, "the header is a packet");
                    in_time += 1;
                }
                all.set(early);
                near.share_by_file(segment)
            })
        });
        assert_eq!(sent.expect("room").bytes, 12);
        // The kernel would hold it back for 200 ms.
        assert_eq!(rustix::net::sockopt::tcp_cork(&*near), Ok(false));
        until("the message comes", || {
            all.set(all.get() + heard(far));
            all.get() == 12
        });
        if in_time == 10 {
            return;
        }
    }
    panic!("of 100 messages {in_time} were sent in time");
}

#[test]
fn slices_are_collected_without_an_allocation() {
    let mut slices: Vec<IoSlice<'static>> = Vec::with_capacity(100);
    slices.push(IoSlice::new(b"bytes"));
    let address = slices.as_ptr();
    let again = recycled(slices);
    assert_eq!((again.as_ptr(), again.len(), again.capacity()), (address, 0, 100));
}

#[test]
fn a_refusal_owes_nothing_and_comes_out_as_it_is() {
    let mut ends = Ends::new(Pair::V4);
    ends.send(PathKind::ZeroCopy, 0..10).expect("room");
    for (path, call, refusal) in [
        (PathKind::Write, Call::SendMessage, Errno::AGAIN),
        (PathKind::Write, Call::SendMessage, Errno::NOMEM),
        (PathKind::ZeroCopy, Call::SendMessage, Errno::AGAIN),
        (PathKind::ZeroCopy, Call::SendMessage, Errno::NOBUFS),
        (PathKind::ZeroCopy, Call::SendMessage, Errno::NOMEM),
        (PathKind::SendFile, Call::SendFile, Errno::AGAIN),
        (PathKind::SendFile, Call::SendFile, Errno::INVAL),
        (PathKind::Splice, Call::MakePipe, Errno::MFILE),
        (PathKind::Splice, Call::FillPipe, Errno::NOMEM),
        (PathKind::Splice, Call::FillPipe, Errno::FAULT),
        (PathKind::Splice, Call::Splice, Errno::NOMEM),
    ] {
        plan(call, Fault::Errno(refusal));
        assert_eq!(errno(ends.send_bare(path, 0..5000)), refusal, "{path}");
    }
    let sent = ends.send_bare(PathKind::ZeroCopy, 10..20).expect("room");
    assert_eq!(sent.release, Release::Notified(1), "refused sends are not counted");
    let mut notified = Vec::new();
    until("both are notified", || {
        ends.near.notifications(&mut |note| notified.extend(note.first..=note.last)).expect("notifications");
        ends.near.owed_notifications() == 0
    });
    notified.sort_unstable();
    assert_eq!((notified, ends.near.ignored()), (vec![0, 1], Ignored::default()));
    let mut expected = b"h:".to_vec();
    expected.extend(&ends.slab.bytes()[..20]);
    assert_eq!(ends.arrived(), expected);
}

#[test]
fn an_error_that_the_socket_tells_once_is_told_after_what_was_accepted() {
    for (path, call) in [(PathKind::SendFile, Call::SendFile), (PathKind::Splice, Call::Splice)] {
        let mut ends = Ends::new(Pair::V4);
        plan(call, Fault::Errno(Errno::CONNRESET));
        assert_eq!(ends.send(path, 0..100).expect("the header"), Sent { bytes: 2, release: Release::Acknowledged });
        assert_eq!(errno(ends.send_bare(PathKind::Write, 0..100)), Errno::CONNRESET);
        // One of the path is told when it happens again, and to nobody else.
        plan(call, Fault::Errno(Errno::INVAL));
        assert_eq!(ends.send(path, 0..100).expect("the header").bytes, 2);
        assert_eq!(ends.send_bare(PathKind::Write, 0..1).expect("room").bytes, 1);
        let mut expected = b"h:h:".to_vec();
        expected.push(ends.slab.bytes()[0]);
        assert_eq!(ends.arrived(), expected);
    }
}

#[test]
fn a_socket_that_did_not_keep_the_option_sends_nothing_by_zero_copy() {
    let mut ends = Ends::new(Pair::V4);
    plan(Call::SetZeroCopy, Fault::Lie);
    let refused = ends.send_bare(PathKind::ZeroCopy, 0..100).expect_err("not enabled");
    assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
    assert!(refused.to_string().contains("did not keep SO_ZEROCOPY"), "{refused}");
    assert!(matches!(ends.near.supports(PathKind::ZeroCopy), Support::No(_)));
    assert_eq!(ends.arrived(), b"");

    let mut ends = Ends::new(Pair::V4);
    plan(Call::SetZeroCopy, Fault::Errno(Errno::PERM));
    assert!(matches!(ends.near.supports(PathKind::ZeroCopy), Support::No(_)));
    assert_eq!(ends.send_bare(PathKind::ZeroCopy, 0..1).expect_err("refused").kind(), io::ErrorKind::Unsupported);
}

#[test]
fn a_socket_whose_count_of_zero_copy_sends_is_not_known_makes_none() {
    let mut ends = Ends::new(Pair::V4);
    sys::set_zero_copy(ends.near.as_fd()).expect("SO_ZEROCOPY");
    let refused = ends.send_bare(PathKind::ZeroCopy, 0..100).expect_err("not ours");
    assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
    assert_eq!(ends.arrived(), b"");
}

#[test]
fn a_window_that_is_full_answers_as_the_kernel_does() {
    let mut ends = Ends::new(Pair::V4);
    assert_eq!(ends.near.supports(PathKind::ZeroCopy), Support::Yes);
    let ZeroCopy::On(owed) = &mut ends.near.zero_copy else { panic!("enabled just now") };
    *owed = Owed::new(0, 64);
    for number in 0..64 {
        assert_eq!(ends.send_bare(PathKind::ZeroCopy, 0..1).expect("room").release, Release::Notified(number));
    }
    assert_eq!(errno(ends.send_bare(PathKind::ZeroCopy, 0..1)), Errno::NOBUFS);
    until("all are notified", || {
        ends.near.notifications(&mut |_| ()).expect("notifications");
        ends.near.owed_notifications() == 0
    });
    assert_eq!(ends.send_bare(PathKind::ZeroCopy, 0..1).expect("room").release, Release::Notified(64));
    assert_eq!(ends.arrived().len(), 65);
}

#[test]
fn the_count_of_the_kernel_is_ours_after_thousands_of_refusals() {
    let mut ends = Ends::new(Pair::V4);
    let mut made = 0;
    let mut refused = 0;
    let mut notified = 0;
    let mut buffer = vec![0; 1 << 16];
    while refused < 3000 {
        match ends.send_bare(PathKind::ZeroCopy, 0..60_000) {
            Ok(sent) => {
                assert_eq!(sent.release, Release::Notified(made));
                made += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                refused += 1;
                if refused % 100 == 0 {
                    let _some = ends.far.receive(&mut [IoSliceMut::new(&mut buffer)]);
                }
            }
        }
        ends.near.notifications(&mut |note| notified += note.last - note.first + 1).expect("notifications");
    }
    until("all are notified", || {
        let _some = ends.far.receive(&mut [IoSliceMut::new(&mut buffer)]);
        ends.near.notifications(&mut |note| notified += note.last - note.first + 1).expect("notifications");
        ends.near.owed_notifications() == 0
    });
    assert_eq!((notified, ends.near.ignored()), (made, Ignored::default()));
    assert!(made > 2, "{made} sends");
}

#[test]
fn a_message_that_was_cut_short_completes_nothing_and_is_counted() {
    // Room for nothing, for a header, for half a report.
    for room in [0, 8, 16, 24] {
        let mut ends = Ends::new(Pair::V6);
        ends.send_bare(PathKind::ZeroCopy, 0..100).expect("room");
        rig::wait(&[(&ends.near, rustix::event::PollFlags::empty())]);
        plan(Call::ErrorQueue, Fault::Short(room));
        ends.near.notifications(&mut |note| panic!("{note:?} out of {room} bytes")).expect("notifications");
        assert_eq!(ends.near.ignored(), Ignored { cut_short: 1, ..Ignored::default() }, "{room} bytes");
        assert_eq!(ends.near.owed_notifications(), 1);
        assert_eq!(ends.arrived().len(), 100);
    }
}

#[test]
fn an_error_of_the_queue_is_told_and_nothing_is_lost_with_it() {
    let mut ends = Ends::new(Pair::V4);
    ends.send_bare(PathKind::ZeroCopy, 0..100).expect("room");
    rig::wait(&[(&ends.near, rustix::event::PollFlags::empty())]);
    plan(Call::ErrorQueue, Fault::Errno(Errno::NOMEM));
    let error = ends.near.notifications(&mut |_| panic!("nothing was read")).expect_err("planned");
    assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
    let mut notified = 0;
    ends.near.notifications(&mut |_| notified += 1).expect("notifications");
    assert_eq!((notified, ends.near.owed_notifications()), (1, 0));
}

#[test]
fn what_is_no_report_about_our_sends_is_counted_or_told() {
    let message = |errno: u32, origin: u8, low: u32, high: u32| {
        let mut bytes = (size_of::<usize>() + 8 + 16).to_ne_bytes().to_vec();
        for word in [libc::SOL_IP, libc::IP_RECVERR, errno.cast_signed()] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend([origin, 0, 0, 0]);
        bytes.extend(low.to_ne_bytes());
        bytes.extend(high.to_ne_bytes());
        bytes
    };
    let mut owed = Owed::new(0, 64);
    let mut ignored = Ignored::default();
    owed.count();
    let mut heed = |message: Vec<u8>| {
        let mut notes = Vec::new();
        heed(&message, false, &mut owed, &mut ignored, &mut |note| notes.push(note)).map(|()| notes)
    };
    assert_eq!(heed(message(0, 5, 0, 1)).expect("no error"), []);
    assert_eq!(heed(message(0, 5, 0, 0)).expect("no error").len(), 1);
    assert_eq!(heed(message(0, 5, 0, 0)).expect("no error"), []);
    assert_eq!(heed(message(0, 4, 0, 0)).expect("no error"), []);
    let unreachable = libc::EHOSTUNREACH.cast_unsigned();
    let error = heed(message(unreachable, 2, 0, 0)).expect_err("an error");
    assert_eq!(error.kind(), io::ErrorKind::HostUnreachable);
    let mut half = message(0, 5, 0, 0);
    half.truncate(half.len() - 1);
    assert_eq!(heed(half).expect("no error"), []);
    assert_eq!(ignored, Ignored { reports: 2, cut_short: 1, others: 1 });
}

#[test]
fn calls_that_fail_are_told() {
    let mut ends = Ends::new(Pair::V4);
    plan(Call::Receive, Fault::Errno(Errno::CONNRESET));
    let mut room = [0; 8];
    let error = ends.far.receive(&mut [IoSliceMut::new(&mut room)]).expect_err("planned");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    plan(Call::ShutDown, Fault::Errno(Errno::NOTCONN));
    assert_eq!(ends.near.end().expect_err("planned").kind(), io::ErrorKind::NotConnected);
}

#[test]
fn support_has_three_answers() {
    let mut ends = Ends::new(Pair::V4);
    for path in [PathKind::Write, PathKind::ZeroCopy, PathKind::SendFile, PathKind::Splice] {
        assert_eq!(ends.near.supports(path), Support::Yes, "{path}");
    }
    for path in [PathKind::UringSend, PathKind::UringZeroCopy, PathKind::UringFixed] {
        assert!(matches!(ends.near.supports(path), Support::No(_)), "{path}");
        assert_eq!(ends.send_bare(path, 0..1).expect_err("no ring").kind(), io::ErrorKind::Unsupported);
    }
    assert!(matches!(ends.far.supports(PathKind::SendFile), Support::Unknown(_)), "no region yet");
    let private = Region::options(4096).kind(RegionKind::Anonymous).create().expect("a region");
    ends.far.add_region(Arc::new(private));
    assert!(matches!(ends.far.supports(PathKind::SendFile), Support::No(_)), "no file");
    plan(Call::SendFile, Fault::Errno(Errno::NOSYS));
    assert!(matches!(ends.near.supports(PathKind::SendFile), Support::No(_)), "no such call");
    plan(Call::SendFile, Fault::Errno(Errno::NOMEM));
    assert!(matches!(ends.near.supports(PathKind::SendFile), Support::Unknown(_)), "no memory now");
    plan(Call::MakePipe, Fault::Errno(Errno::MFILE));
    assert!(matches!(ends.far.supports(PathKind::Splice), Support::Unknown(_)), "too many files now");
    plan(Call::FillPipe, Fault::Errno(Errno::NOSYS));
    assert!(matches!(ends.far.supports(PathKind::Splice), Support::No(_)), "no such call");
    let mut unix = Ends::new(Pair::Unix);
    assert!(matches!(unix.near.supports(PathKind::ZeroCopy), Support::No(_)));
    assert_eq!(unix.send_bare(PathKind::ZeroCopy, 0..1).expect_err("refused").kind(), io::ErrorKind::Unsupported);
    assert_eq!(unix.arrived(), b"");
    assert_eq!(ends.arrived(), b"", "asking sends nothing");
}

#[test]
fn a_home_where_the_bytes_are_not_is_refused() {
    let mut ends = Ends::new(Pair::V4);
    let begin = ends.slab.region().data_offset();
    let len = ends.slab.bytes().len();
    let homes = [
        Home { region: ends.region + 1, offset: begin },
        Home { region: ends.region, offset: begin + 1 },
        Home { region: ends.region, offset: 0 },
        Home { region: ends.region, offset: begin + len - 50 },
        Home { region: ends.region, offset: usize::MAX },
    ];
    for home in homes {
        let segment = Segment { bytes: &ends.slab.bytes()[..100], home: Some(home) };
        let error = ends.near.send(PathKind::SendFile, &[segment]).expect_err("not there");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{home:?}");
    }
    assert_eq!(ends.arrived(), b"");
}
