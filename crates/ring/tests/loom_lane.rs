//! Models of the lane: every interleaving, and every stale value that the memory model allows.
//!
//! Run with `RUSTFLAGS="--cfg zcmi_loom" cargo test -p zcmi-ring --release --test loom_lane`, in a target directory of
//! its own; with `ZCMI_LONG=1` for wider bounds.
//!
//! What loom models here: relaxed loads that return any value coherence allows, acquire and release fences, and
//! `SeqCst` fences as one total order. What it does not:
//! - a load that takes a value stored later (load buffering), so the acquire fence after `released` cannot be missed
//!   where only entries, and no slots, are reused;
//! - an acquire fence that takes in only what its own thread had read: loom's also takes in what threads ordered before
//!   it had, so the acquire load with which a place in the table of holds is found again cannot be missed;
//! - `SeqCst` accesses as more than acquire and release, and the asymmetric barrier of a seat.
//!
//! The release fence R1 is implied by R2, which follows it wherever a reader may be overtaken; only without both does a
//! model fail. Models have two holds a reader and no padding; the rest of the code is what ships.
#![cfg(zcmi_loom)]

mod modelled;

use loom::sync::atomic::Ordering;
use loom::thread;
use modelled::{Publisher, Sample, explore, long, payload};
use std::sync::Arc;
use zcmi_ring::Policy;

/// A reader's thread: `attempts` looks, each sample kept until the next was taken.
fn look(mut subscriber: modelled::Subscriber, attempts: usize) -> modelled::Subscriber {
    let mut kept: Option<Sample> = None;
    for _ in 0..attempts {
        if let Some(sample) = subscriber.receive()
            && let Some(before) = kept.replace(sample)
        {
            before.check();
        }
    }
    if let Some(sample) = kept {
        sample.check();
    }
    subscriber
}

fn two_threads(policy: Policy, slots: usize, publishes: usize, looks: usize, before: usize) {
    explore(None, move || {
        let mut publisher = Publisher::new(2, slots);
        let (index, subscriber) = publisher.join(policy, None);
        for _ in 0..before {
            publisher.publish().expect("a fresh lane has room");
        }
        let reader = thread::spawn(move || look(subscriber, looks));
        for _ in 0..publishes {
            let _ = publisher.publish();
        }
        let mut subscriber = reader.join().expect("the reader's checks hold");
        subscriber.drain(publisher.writer.tail());
        assert!(policy == Policy::DropOldest || subscriber.lost == 0);
        drop(subscriber);
        assert!(publisher.writer.remove_reader(index));
        publisher.check_all_slots_return();
    });
}

#[test]
fn a_reliable_reader_gets_every_message_and_no_slot_is_reused_early() {
    two_threads(Policy::Reliable, 2, 2, 2, 2);
    two_threads(Policy::Reliable, 3, 2, if long() { 3 } else { 2 }, 1);
}

#[test]
fn an_overtaken_reader_counts_exactly_and_reads_no_reused_slot() {
    two_threads(Policy::DropOldest, 3, 1, if long() { 2 } else { 1 }, 2);
    if long() {
        two_threads(Policy::DropOldest, 3, 2, 1, 2);
    }
}

#[test]
fn an_overtaken_inline_message_is_never_torn() {
    explore(None, || {
        let mut publisher = Publisher::new(2, 0);
        let (_, mut subscriber) = publisher.join(Policy::DropOldest, None);
        publisher.publish_inline().expect("a fresh lane has room");
        publisher.publish_inline().expect("a fresh lane has room");
        let reader = thread::spawn(move || {
            subscriber.receive();
            subscriber
        });
        publisher.publish_inline().expect("nobody blocks");
        if long() {
            publisher.publish_inline().expect("nobody blocks");
        }
        reader.join().expect("the reader's checks hold").drain(publisher.writer.tail());
    });
}

#[test]
fn a_batch_is_seen_whole_once_its_first_message_is() {
    explore(None, || {
        let mut publisher = Publisher::new(2, 2);
        let (_, mut subscriber) = publisher.join(Policy::Reliable, None);
        let reader = thread::spawn(move || {
            let mut samples = Vec::new();
            samples.extend(subscriber.receive());
            if !samples.is_empty() {
                samples.push(subscriber.receive().expect("the batch is whole"));
            }
            samples.iter().for_each(Sample::check);
        });
        publisher.publish_batch(2).expect("a fresh lane has room");
        reader.join().expect("the reader's checks hold");
    });
}

#[test]
fn messages_read_in_place_are_not_reused_before_the_batch_is_done() {
    explore(None, || {
        let mut publisher = Publisher::new(2, 2);
        let (_, mut subscriber) = publisher.join(Policy::Reliable, None);
        publisher.publish_batch(2).expect("a fresh lane has room");
        let slots = Arc::clone(&publisher.slots);
        let reader = thread::spawn(move || {
            let mut seen = 0;
            let read = subscriber.reader.read_batch(2, |sequence, message| {
                assert_eq!((sequence, slots.read(message.body[0] as u32)), (seen, payload(seen)));
                seen += 1;
                Ok(())
            });
            assert_eq!(read, Ok(2));
        });
        for _ in 0..2 {
            let _ = publisher.publish();
        }
        reader.join().expect("the reader's checks hold");
    });
}

#[test]
fn a_reader_that_goes_over_to_reading_in_place_is_waited_for_until_it_releases() {
    explore(None, || {
        let mut publisher = Publisher::new(2, 2);
        let (_, mut subscriber) = publisher.join(Policy::Reliable, None);
        publisher.publish_batch(2).expect("a fresh lane has room");
        let slots = Arc::clone(&publisher.slots);
        let reader = thread::spawn(move || {
            // It keeps nothing, so it may change over: `released` first, and only then the cursor.
            subscriber.reader.block().released.store(0, Ordering::Release);
            let mut slot = 0;
            let read = subscriber.reader.read_batch(1, |_, message| {
                slot = message.body[0] as u32;
                Ok(())
            });
            assert_eq!(read, Ok(1));
            assert_eq!(slots.read(slot), payload(0));
            subscriber.reader.block().released.store(1, Ordering::Release);
        });
        for _ in 0..2 {
            let _ = publisher.publish();
        }
        reader.join().expect("the reader's checks hold");
    });
}

#[test]
fn whoever_sees_the_end_sees_every_message_before_it() {
    explore(None, || {
        let mut publisher = Publisher::new(2, 2);
        let (_, mut subscriber) = publisher.join(Policy::Reliable, None);
        let reader = thread::spawn(move || {
            if let Some(end) = subscriber.reader.ended_at() {
                assert_eq!(end, 2);
                subscriber.drain(end);
            }
        });
        publisher.publish().expect("a fresh lane has room");
        publisher.publish_inline().expect("a fresh lane has room");
        publisher.writer.end();
        reader.join().expect("the reader's checks hold");
    });
}

#[test]
fn two_readers_of_either_policy_do_not_disturb_each_other() {
    for policy in [Policy::Reliable, Policy::DropOldest] {
        explore(Some(if long() { 4 } else { 3 }), move || {
            let mut publisher = Publisher::new(2, 3);
            let (_, reliable) = publisher.join(Policy::Reliable, None);
            let (_, other) = publisher.join(policy, None);
            publisher.publish_batch(2).expect("a fresh lane has room");
            let readers = [thread::spawn(move || look(reliable, 1)), thread::spawn(move || look(other, 1))];
            for _ in 0..2 {
                let _ = publisher.publish();
            }
            for reader in readers {
                reader.join().expect("the reader's checks hold").drain(publisher.writer.tail());
            }
        });
    }
}

#[test]
fn a_hold_may_be_dropped_on_another_thread_and_its_place_taken_again() {
    explore(Some(if long() { 4 } else { 3 }), || {
        let mut publisher = Publisher::new(4, 3);
        let (_, mut subscriber) = publisher.join(Policy::Reliable, None);
        publisher.publish_batch(3).expect("a fresh lane has room");
        let first = subscriber.receive().expect("it is there");
        // Both of the model's holds are taken: the third message needs the place of the first.
        let _second = subscriber.receive().expect("it is there");
        let dropper = thread::spawn(move || first.check());
        let reader = thread::spawn(move || {
            let third = subscriber.receive();
            third.iter().for_each(Sample::check);
            (subscriber, third)
        });
        let _ = publisher.publish();
        dropper.join().expect("its payload is untouched");
        let (mut subscriber, third) = reader.join().expect("its payload is untouched");
        drop(third);
        subscriber.drain(publisher.writer.tail());
    });
}
