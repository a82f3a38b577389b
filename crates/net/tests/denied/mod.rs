//! The suite in processes to which the kernel refuses what a path needs: everything arrives all the same, by plain
//! writes, and the facts say why.

use rustix::process::{Resource, Rlimit};
use zcmi_net::frame::HEADER_BYTES;

use super::*;
use crate::forked::in_child;
use crate::refused::{How, LOCKED, Refused, URING, is_root, say};

/// Streams by a path that is refused.
struct Denied {
    streams: Streams,
    path: PathKind,
    how: How,
}

impl Rig for Denied {
    type Transport = StreamTransport;

    fn pair(&self, wish: Wish) -> (End<StreamTransport>, End<StreamTransport>) {
        self.streams.pair(wish)
    }

    fn break_off(&self, end: &mut End<StreamTransport>) {
        self.streams.break_off(end);
    }

    fn went_by_the_path(&self, end: &End<StreamTransport>) -> bool {
        let facts = end.transport.facts(end.connection).expect("it is there");
        let path = self.path as usize;
        let (counts, refusal) = (facts.counts.paths[path], &facts.refusals[path]);
        let reason = refusal.as_ref().is_some_and(|reason| !reason.is_empty());
        let text = format!("{}: {} refused, {} sent: {refusal:?}\n", self.path, counts.refused, counts.sends);
        say(&text);
        let plain = facts.counts.paths[PathKind::Write as usize].bytes > 0 || counts.refused == 0;
        // A header is accepted before the payload behind it is refused.
        let headers_alone = counts.bytes <= counts.sends * HEADER_BYTES as u64;
        let as_often = match self.how {
            How::Always => headers_alone && counts.refused > 0,
            How::Sometimes => counts.refused > 0,
            How::Perhaps => true,
        };
        as_often && reason == (counts.refused > 0) && plain
    }
}

/// Runs the suite with each of these paths: all of it with the first.
fn suite(refused: Refused, paths: &[PathKind], unix: bool) {
    short_suite(refused, &paths[1..], unix);
    in_child(&format!("{} with {refused:?}", paths[0]), || {
        refused.apply();
        conformance::everything(&denied(refused, paths[0], unix));
    });
}

/// Runs what says most of it.
fn short_suite(refused: Refused, paths: &[PathKind], unix: bool) {
    for &path in paths {
        in_child(&format!("{path} with {refused:?}"), || {
            refused.apply();
            let rig = denied(refused, path, unix);
            conformance::messages_keep_their_bounds_and_their_order(&rig);
            conformance::a_graceful_end_loses_nothing(&rig);
            conformance::a_broken_connection_goes_on_and_each_message_arrives_once(&rig);
        });
    }
}

fn denied(refused: Refused, path: PathKind, unix: bool) -> Denied {
    Denied { streams: Streams { unix, path: Some(path) }, path, how: refused.how() }
}

#[test]
fn without_io_uring_everything_is_written() {
    suite(Refused::Call { call: libc::SYS_io_uring_setup, errno: libc::EPERM }, &URING, false);
    short_suite(Refused::Call { call: libc::SYS_io_uring_setup, errno: libc::ENOSYS }, &URING, false);
}

#[test]
fn with_a_ring_that_may_not_be_entered_everything_is_written() {
    suite(Refused::Call { call: libc::SYS_io_uring_enter, errno: libc::EPERM }, &URING, false);
}

#[test]
fn without_the_zero_copy_option_everything_is_written() {
    suite(Refused::ZeroCopyOption, &[PathKind::ZeroCopy], false);
}

#[test]
fn with_little_memory_to_lock_everything_arrives() {
    suite(Refused::LockedMemory(LOCKED), &[PathKind::ZeroCopy, PathKind::UringZeroCopy, PathKind::UringFixed], false);
}

#[test]
fn with_io_uring_switched_off_everything_is_written_and_the_switch_is_named() {
    if !is_root() {
        return;
    }
    in_child("the reason", || {
        Refused::Switch.apply();
        let support = zcmi_net::uring::support().to_string();
        assert!(support.contains("kernel.io_uring_disabled is 2"), "{support}");
    });
    short_suite(Refused::Switch, &URING, false);
}

#[test]
fn with_no_memory_for_notes_of_zero_copy_everything_is_written() {
    if is_root() {
        short_suite(Refused::OptionMemory, &[PathKind::ZeroCopy], false);
        // The others note nothing there.
        in_child("another path", || {
            Refused::OptionMemory.apply();
            let streams = Streams { unix: false, path: Some(PathKind::UringZeroCopy) };
            conformance::messages_keep_their_bounds_and_their_order(&streams);
        });
    }
}

#[test]
fn without_any_capability_everything_arrives() {
    short_suite(Refused::Capabilities, &PathKind::ALL, false);
    short_suite(Refused::Capabilities, &[PathKind::Write, PathKind::SendFile, PathKind::Splice], true);
}

#[test]
fn without_sendfile_splice_or_vmsplice_everything_is_written() {
    let calls = [
        (libc::SYS_sendfile, PathKind::SendFile, libc::EPERM),
        (libc::SYS_splice, PathKind::Splice, libc::EPERM),
        (libc::SYS_vmsplice, PathKind::Splice, libc::ENOSYS),
    ];
    for (call, path, over_unix) in calls {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let refused = Refused::Call { call, errno };
            if errno == over_unix { suite(refused, &[path], true) } else { short_suite(refused, &[path], false) }
        }
    }
}

#[test]
fn without_sendfile_messages_from_files_are_read_and_counted() {
    in_child("sendfile for a file", || {
        Refused::Call { call: libc::SYS_sendfile, errno: libc::EPERM }.apply();
        let rig = Streams { unix: false, path: None };
        conformance::messages_from_files_arrive_among_others_in_order(&rig);
        conformance::what_comes_from_a_file_is_read_again_when_the_connection_broke(&rig);
        conformance::zeros_go_where_a_file_became_shorter_and_its_sender_is_told_once(&rig);
        let (mut one, mut two) = rig.pair(Wish::default());
        one.submit_file(1, 0, 200_000, 0);
        let mut collector = conformance::Collector::default();
        conformance::until("the message", [&mut one, &mut two], |one, two| {
            collector.sift(two.events());
            one.events().iter().any(|event| matches!(event, Event::Completed { .. }))
        });
        assert_eq!(collector.messages, 1);
        let facts = one.transport.facts(one.connection).expect("it is there");
        assert_eq!(facts.counts.copied_user, 200_000);
        let index = PathKind::SendFile as usize;
        assert!(facts.counts.paths[index].refused > 0 && facts.refusals[index].is_some(), "{facts:?}");
    });
}

#[test]
fn without_any_of_them_everything_is_written() {
    let paths = [PathKind::ZeroCopy, PathKind::SendFile, PathKind::Splice];
    suite(Refused::All, &paths, false);
    short_suite(Refused::All, &URING, false);
}

#[test]
fn without_descriptors_no_pipe_is_made_and_everything_is_written() {
    in_child("no descriptors", || {
        let path = PathKind::Splice;
        let rig = Denied { streams: Streams { unix: false, path: Some(path) }, path, how: How::Always };
        let (mut one, mut two) = rig.pair(Wish::default());
        let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(0), maximum }).expect("less");
        let (mut collector, total) = (conformance::Collector::default(), 20);
        for number in 0..total {
            one.submit(number, 40_000, 0);
            conformance::until("a message", [&mut one, &mut two], |_, two| {
                collector.sift(two.events());
                collector.messages as u64 > number
            });
        }
        assert!(rig.went_by_the_path(&one));
    });
}

#[test]
fn a_listener_without_descriptors_waits_and_goes_on_when_there_are_some() {
    in_child("a listener without descriptors", || {
        let options = || options(Wish::default());
        let mut server = StreamTransport::new(options()).expect("a transport");
        let (_, address) = server.listen(&"127.0.0.1:0".parse().expect("an address")).expect("a listener");
        let mut client = StreamTransport::new(options()).expect("a transport");
        for _ in 0..4 {
            client.connect(&address).expect("a connection");
        }
        let before = rustix::process::getrlimit(Resource::Nofile);
        let none = Rlimit { current: Some(0), maximum: before.maximum };
        rustix::process::setrlimit(Resource::Nofile, none).expect("less");
        let (mut events, begin, used) = (Vec::new(), std::time::Instant::now(), processor_time());
        while begin.elapsed() < Duration::from_millis(300) {
            server.poll(&mut events, Some(Duration::from_millis(50))).expect("the transport goes on");
        }
        assert!(events.is_empty(), "{events:?}");
        let used = processor_time() - used;
        assert!(used < Duration::from_millis(100), "it waited busily: {used:?} of {:?}", begin.elapsed());
        rustix::process::setrlimit(Resource::Nofile, before).expect("as before");
        let deadline = std::time::Instant::now() + conformance::PATIENCE;
        while events.iter().filter(|event| matches!(event, Event::Accepted { .. })).count() < 4 {
            assert!(std::time::Instant::now() < deadline, "{events:?}");
            server.poll(&mut events, Some(Duration::from_millis(1))).expect("the transport goes on");
            client.poll(&mut Vec::new(), Some(Duration::ZERO)).expect("the transport goes on");
        }
    });
}

/// What this process has used of a processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
