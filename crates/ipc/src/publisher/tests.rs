//! Tests that look behind a publisher's handle.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use zcmi_mem::payload::Message;

use super::{Publisher, SendError, WhenFull};
use crate::directory::RuntimeDirectory;
use crate::name::ServiceName;
use crate::scratch::Scratch;
use crate::{Process, Service};

fn open(path: &Path) -> Process {
    Process::open(RuntimeDirectory::at(path).expect("a directory")).expect("a participant")
}

fn service<M: Message + ?Sized>(process: &Process, name: &str) -> Service<M> {
    Service::with(ServiceName::new(name).expect("a name"), process.clone()).expect("a service")
}

/// Slots that the publisher's pool could hand out now.
fn free_slots<M: Message + ?Sized>(publisher: &Publisher<M>) -> usize {
    publisher.pool.as_ref().map_or(0, zcmi_mem::pool::Pool::free_slots)
}

#[test]
fn a_batch_whose_filling_panics_gives_every_slot_back() {
    let scratch = Scratch::new();
    let process = open(scratch.path());
    let options = service::<[u64; 100]>(&process, "s").publisher().capacity(64).reader_slots(1000);
    let mut publisher = options.create().expect("a publisher");
    let all = free_slots(&publisher);
    for at in 0..20 {
        let filling = catch_unwind(AssertUnwindSafe(|| {
            publisher.publish_batch(30, |index, message| {
                assert_ne!(index, at, "the caller's own trouble");
                message[0] = index;
            })
        }));
        assert!(filling.is_err());
        assert_eq!(free_slots(&publisher), all, "at message {at}");
    }
    assert_eq!(publisher.published(), 0);
    publisher.publish_batch(1000, |index, message| message[0] = index).expect("room");
}

#[test]
fn a_batch_that_finds_no_room_gives_back_what_it_had_filled() {
    let scratch = Scratch::new();
    let process = open(scratch.path());
    let options = service::<[u64; 100]>(&process, "s").publisher().capacity(4).reader_slots(64);
    let mut publisher = options.when_full(WhenFull::RefuseNewest).create().expect("a publisher");
    let mut subscriber = service::<[u64; 100]>(&process, "s").subscriber().join().expect("a subscriber");
    let all = free_slots(&publisher);
    for round in 0..20 {
        let refused = publisher.publish_batch(30, |index, message| message[0] = index);
        assert!(matches!(refused, Err(SendError::Publish(_))), "{refused:?}");
        assert_eq!(free_slots(&publisher), all - 4, "round {round}: four are under way");
        assert_eq!(subscriber.receive_batch(30, |_, _| {}), Ok(4));
        assert!(publisher.wait_until_received(std::time::Duration::from_secs(10)));
    }
}
