//! Tests that look behind a subscriber's handle.

use std::ffi::OsStr;
use std::time::Duration;

use zcmi_mem::payload::Message;
use zcmi_ring::layout::HOLD_IN_KERNEL;
use zcmi_ring::sync::Ordering;

use super::{Event, Subscriber, SubscriberError};
use crate::directory::RuntimeDirectory;
use crate::name::ServiceName;
use crate::scratch::{Child, PATIENCE, Scratch, soon};
use crate::{Process, Service, WhenFull};

fn open(path: impl AsRef<OsStr>) -> Process {
    let path = std::path::Path::new(path.as_ref());
    Process::open(RuntimeDirectory::at(path).expect("a directory")).expect("a participant")
}

fn service<M: Message + ?Sized>(process: &Process, name: &str) -> Service<M> {
    Service::with(ServiceName::new(name).expect("a name"), process.clone()).expect("a service")
}

/// Memory of the process's lanes and pools that nobody has.
fn free_bytes(process: &Process) -> usize {
    let mut bytes = 0;
    process.lanes().for_each(|arena| bytes += arena.free_bytes());
    bytes
}

/// Has a subscriber claim what no honest one does.
fn lie(subscriber: &Subscriber<[u8]>) {
    subscriber.lanes[0].reader.block().cursor.store(1 << 40, Ordering::Release);
}

#[test]
fn a_subscriber_that_finds_nothing_makes_ready_for_what_comes() {
    let scratch = Scratch::new();
    let process = open(scratch.path());
    let options = service::<[u8]>(&process, "s").publisher().max_len(1 << 20).capacity(4);
    let mut publisher = options.create().expect("a publisher");
    let mut subscriber = service::<[u8]>(&process, "s").subscriber().join().expect("a subscriber");
    // Of messages of this size it may hold two, and each was in use once.
    for number in 0..2 {
        publisher.publish_copy_of(&[number; 100]).expect("room");
        soon("the message", || subscriber.try_receive().expect("no error").is_some());
    }
    // More than once, in case the first of them hears of something else.
    assert!((0..100).all(|_| subscriber.try_receive().expect("no error").is_none()));
    publisher.publish_copy_of(&[2; 100]).expect("room");
    let read = subscriber.lanes[0].reader.read_slot(None);
    assert_eq!(read.expect("by the straight way, without a look for a place").sequence, 2);
}

#[test]
fn a_subscriber_that_lies_is_told_why_its_lane_ended() {
    let scratch = Scratch::new();
    let (here, there) = (open(scratch.path()), open(scratch.path()));
    let mut publisher = service::<[u8]>(&there, "s").publisher().capacity(4).create().expect("a publisher");
    let mut liar = service::<[u8]>(&here, "s").subscriber().join().expect("a subscriber");
    let mut honest = service::<[u8]>(&here, "s").subscriber().join().expect("a subscriber");
    assert_eq!(publisher.subscribers(), 2);
    lie(&liar);
    for _ in 0..8 {
        publisher.publish_copy_of(&[1; 100]).expect("nobody holds it up");
        soon("the message", || honest.try_receive().expect("no error").is_some());
    }
    soon("the word that it was found out", || match liar.next_event() {
        Some(Event::Expelled { reason, pid, .. }) => {
            assert!(reason.contains(&(1_u64 << 40).to_string()), "{reason}");
            assert_eq!(pid, std::process::id());
            true
        }
        other => {
            assert!(matches!(other, None | Some(Event::Joined { .. })), "{other:?}");
            false
        }
    });
    assert_eq!((liar.publishers(), publisher.subscribers()), (0, 1));
    assert!(matches!(liar.try_receive(), Ok(None)));
}

#[test]
fn the_memory_of_a_lane_is_kept_while_a_reader_that_lied_may_read_it() {
    let scratch = Scratch::new();
    let (here, there) = (open(scratch.path()), open(scratch.path()));
    // The first region stays, so it is made before anything is measured.
    drop(service::<[u8]>(&there, "s").publisher().capacity(4).create().expect("a publisher"));
    let before = free_bytes(&there);
    for killed in [false, true] {
        let mut publisher = service::<[u8]>(&there, "s").publisher().capacity(4).create().expect("a publisher");
        let mut child = None;
        let mut liar = None;
        if killed {
            let started =
                child.insert(Child::start("subscriber::tests::child_that_lies", scratch.path(), None, &scratch));
            assert_eq!(started.line(), "lied");
        } else {
            lie(liar.insert(service::<[u8]>(&here, "s").subscriber().join().expect("a subscriber")));
        }
        for _ in 0..8 {
            publisher.publish_copy_of(&[1; 100]).expect("nobody holds it up");
        }
        drop(publisher);
        // The end was said and dealt with: without the liar all would be free by now.
        assert!(free_bytes(&there) < before, "its memory is kept");
        if let Some(mut child) = child {
            child.kill();
        }
        drop(liar);
        soon("the memory coming back", || free_bytes(&there) >= before);
    }
}

#[test]
#[ignore = "a child of another test"]
fn child_that_lies() {
    let Some(path) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
    let process = open(path);
    let subscriber = service::<[u8]>(&process, "s").subscriber().join().expect("a subscriber");
    lie(&subscriber);
    Child::answer("lied");
    Child::wait_for_parent();
}

#[test]
fn slots_that_the_kernel_may_still_read_are_not_promised_to_the_next_subscriber() {
    let scratch = Scratch::new();
    let (here, there) = (open(scratch.path()), open(scratch.path()));
    let options = service::<[u8]>(&there, "s").publisher().capacity(16).reader_slots(16);
    let mut publisher = options.when_full(WhenFull::RefuseNewest).create().expect("a publisher");
    let mut subscriber = service::<[u8]>(&here, "s").subscriber().holds(16).join().expect("a subscriber");
    for _ in 0..8 {
        publisher.publish_copy_of(&[1; 100]).expect("room");
    }
    let kept: Vec<_> = (0..5).map(|_| subscriber.try_receive().expect("no error").expect("a message")).collect();
    for word in &subscriber.lanes[0].reader.block().held[..] {
        let hold = word.load(Ordering::Relaxed);
        if hold != 0 {
            word.store(hold | HOLD_IN_KERNEL, Ordering::Release);
        }
    }
    // It is forgotten for a lie, as it would be for its death: nobody drops its holds.
    lie(&subscriber);
    for _ in 0..32 {
        publisher.publish_copy_of(&[1; 100]).expect("nobody holds it up");
    }
    soon("its being forgotten", || publisher.subscribers() == 0);
    let refused = service::<[u8]>(&here, "s").subscriber().holds(16).join().expect_err("five slots are the kernel's");
    assert!(
        matches!(&refused, SubscriberError::Refused(refusal) if refusal.text.contains("has 11 slots left")),
        "{refused}"
    );
    let next = service::<[u8]>(&here, "s").subscriber().holds(11).join().expect("eleven are left");
    drop((kept, next));
}

#[test]
fn a_publisher_for_which_there_was_no_place_is_joined_when_one_becomes_free() {
    let scratch = Scratch::new();
    let (here, there) = (open(scratch.path()), open(scratch.path()));
    let mut subscriber = service::<u64>(&here, "s").subscriber().join().expect("a subscriber");
    let create = || service::<u64>(&there, "s").publisher().capacity(2).create().expect("a publisher");
    let mut publishers: Vec<_> = (0..64).map(|_| create()).collect();
    // One ends, and the subscriber has not looked: its lane still takes a place.
    drop(publishers.pop());
    let mut last = create();
    last.publish_copy(&7).expect("nobody reads it");
    assert_eq!(last.subscribers(), 0);
    let (mut refused, mut ended) = (0, 0);
    soon("its being joined after all", || {
        assert_eq!(subscriber.try_receive().expect("no error").map(|sample| *sample), None);
        while let Some(event) = subscriber.next_event() {
            refused += usize::from(matches!(event, Event::Refused(_)));
            ended += usize::from(matches!(event, Event::Ended { .. }));
        }
        last.subscribers() == 1
    });
    assert_eq!((refused, ended), (1, 1));
    last.publish_copy(&8).expect("room");
    soon("its message", || subscriber.try_receive().expect("no error").map(|sample| *sample) == Some(8));
}

#[test]
fn a_subscriber_whose_descriptor_cannot_be_duplicated_is_told_and_misses_nothing() {
    let scratch = Scratch::new();
    let name = "subscriber::tests::child_that_runs_out_of_descriptors";
    let mut child = Child::start(name, scratch.path(), None, &scratch);
    for line in ["told", "received", "noted"] {
        assert_eq!(child.line(), line);
    }
    assert!(child.finish());
}

#[test]
#[ignore = "a child of another test"]
fn child_that_runs_out_of_descriptors() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let Some(path) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
    let (here, there) = (open(&path), open(&path));
    let mut publisher = service::<u64>(&there, "s").publisher().create().expect("a publisher");
    let options = service::<u64>(&here, "s").subscriber().wait(crate::Wait::Park);
    let mut subscriber = options.join().expect("a subscriber");
    assert!(matches!(subscriber.next_event(), Some(Event::Joined { .. })));
    setrlimit(Resource::Nofile, Rlimit { current: Some(128), maximum: Some(128) }).expect("setrlimit");
    // Once they have answered, the control threads have nothing open that they are about to close.
    for process in [&here, &there, &here, &there] {
        assert!(process.report().is_some());
    }
    let open_one = || std::fs::File::open("/dev/null").ok();
    let mut all: Vec<_> = std::iter::from_fn(open_one).collect();
    // One is left, for the eventfd that it sleeps on.
    drop(all.pop());
    soon("the word that it cannot be woken", || {
        assert!(subscriber.receive_timeout(Duration::from_millis(20)).expect("no error").is_none());
        match subscriber.next_event() {
            Some(Event::NotWaking { reason, .. }) => reason.contains("os error 24"),
            None => false,
            other => panic!("{other:?}"),
        }
    });
    Child::answer("told");
    assert!(!subscriber.lanes[0].parks);
    for number in 0..20 {
        publisher.publish_copy(&number).expect("room");
        let sample = subscriber.receive_timeout(PATIENCE).expect("no error");
        assert_eq!(sample.map(|sample| *sample), Some(number), "said once, it is not said again");
    }
    Child::answer("received");
    drop(all);
    soon("the publisher's knowing", || {
        assert_eq!(subscriber.next_event(), None);
        subscriber.lanes[0].parks
    });
    Child::answer("noted");
}
