//! The suite over UDP in processes to which the kernel refuses what a path or trains need: everything arrives all the
//! same, by plain sends, and the counts say so.

use super::*;
use crate::forked::in_child;
use crate::refused::{How, LOCKED, Refused, URING, is_root, say};

/// Datagrams by a path that is refused, or without trains.
struct Denied {
    datagrams: Datagrams,
    how: How,
    /// Whether it is trains that are refused, and not the path.
    trains: bool,
}

impl Denied {
    fn new(refused: Refused, path: PathKind) -> Self {
        // Where little memory may be locked each datagram needs more than that.
        let large = matches!(refused, Refused::LockedMemory(_));
        let segment_bytes = (!large).then_some(1408);
        let trains = matches!(refused, Refused::Trains);
        Self { datagrams: Datagrams { path: Some(path), trains: true, segment_bytes }, how: refused.how(), trains }
    }
}

impl Rig for Denied {
    type Transport = UdpTransport;

    fn pair(&self, wish: Wish) -> (End<UdpTransport>, End<UdpTransport>) {
        self.datagrams.pair(wish)
    }

    fn break_off(&self, end: &mut End<UdpTransport>) {
        self.datagrams.break_off(end);
    }

    fn went_by_the_path(&self, end: &End<UdpTransport>) -> bool {
        let counts = end.transport.facts(end.connection).expect("it is there").socket;
        say(&format!("{:?}: {counts:?}\n", self.datagrams.path));
        if self.trains {
            let shares = self.datagrams.path.is_some_and(PathKind::shares_pages);
            return counts.sends == counts.datagrams
                && counts.refused_zero_copy == 0
                && shares == (counts.notified > 0);
        }
        match self.how {
            How::Always => counts.refused_zero_copy > 0 && counts.zero_copy_bytes == 0,
            How::Sometimes => counts.refused_zero_copy > 0,
            How::Perhaps => true,
        }
    }

    fn sends_from_files(&self) -> bool {
        false
    }
}

/// Runs the suite with each of these paths: all of it with the first.
fn suite(refused: Refused, paths: &[PathKind]) {
    short_suite(refused, &paths[1..]);
    in_child(&format!("{} over UDP with {refused:?}", paths[0]), || {
        refused.apply();
        conformance::everything(&Denied::new(refused, paths[0]));
    });
}

/// Runs what says most of it.
fn short_suite(refused: Refused, paths: &[PathKind]) {
    for &path in paths {
        in_child(&format!("{path} over UDP with {refused:?}"), || {
            refused.apply();
            let rig = Denied::new(refused, path);
            conformance::messages_keep_their_bounds_and_their_order(&rig);
            conformance::a_graceful_end_loses_nothing(&rig);
        });
    }
}

#[test]
fn without_io_uring_everything_is_sent() {
    suite(Refused::Call { call: libc::SYS_io_uring_setup, errno: libc::EPERM }, &URING);
    short_suite(Refused::Call { call: libc::SYS_io_uring_setup, errno: libc::ENOSYS }, &URING);
    short_suite(Refused::Call { call: libc::SYS_io_uring_enter, errno: libc::EPERM }, &URING);
}

#[test]
fn without_the_zero_copy_option_everything_is_sent() {
    suite(Refused::ZeroCopyOption, &[PathKind::ZeroCopy]);
}

#[test]
fn with_little_memory_to_lock_everything_arrives() {
    // The longest datagram takes 60 KiB, and a ring, of which more than that must be allowed, takes others.
    suite(Refused::LockedMemory(LOCKED / 2), &[PathKind::ZeroCopy]);
    short_suite(Refused::LockedMemory(LOCKED), &[PathKind::UringZeroCopy, PathKind::UringFixed]);
}

#[test]
fn where_the_kernel_cuts_no_datagrams_each_is_sent_by_itself() {
    suite(Refused::Trains, &[PathKind::ZeroCopy, PathKind::Write]);
}

#[test]
fn with_no_memory_for_notes_of_zero_copy_everything_is_sent() {
    if is_root() {
        short_suite(Refused::OptionMemory, &[PathKind::ZeroCopy]);
    }
}

#[test]
fn without_any_capability_everything_arrives() {
    short_suite(Refused::Capabilities, &[PathKind::Write, PathKind::ZeroCopy]);
    short_suite(Refused::Capabilities, &URING);
}

#[test]
fn without_any_of_them_everything_is_sent() {
    short_suite(Refused::All, &[PathKind::ZeroCopy]);
    short_suite(Refused::All, &URING);
}
