//! Models of waiting: a parked reader, a publisher that waits for room, and the seat. A lost wake is a deadlock, which
//! loom reports.
//!
//! The eventfd is a flag under a mutex with a condition variable. Run as the models of `loom_lane.rs`.
#![cfg(zcmi_loom)]

mod modelled;

use loom::thread;
use modelled::{Event, Publisher, Sample, Slots, Stuck, explore, long};
use std::sync::Arc;
use zcmi_ring::seat::Barrier;
use zcmi_ring::sync::AtomicU64;
use zcmi_ring::{Policy, Seat, View, WakeWord};

/// Publishes and wakes whom the wake word names.
fn publish_and_wake(publisher: &mut Publisher, wake: &WakeWord, waiters: &[Arc<Event>]) {
    publisher.publish_inline().expect("the ring is large enough");
    let bits = wake.take((1 << waiters.len()) - 1);
    for (bit, waiter) in waiters.iter().enumerate() {
        if bits >> bit & 1 != 0 {
            waiter.signal();
        }
    }
}

/// Receives `count` messages, parking whenever none is there.
fn receive_parking(mut subscriber: modelled::Subscriber, wake: &WakeWord, bit: u8, event: &Event, count: u64) {
    while subscriber.delivered < count {
        subscriber.receive();
        if subscriber.delivered == count {
            break;
        }
        if subscriber.reader.has_message() {
            continue;
        }
        wake.announce(bit);
        // The second look; an overtake counts as something to see, too.
        if !subscriber.reader.has_message() {
            event.wait();
        }
        wake.withdraw(bit);
    }
}

#[test]
fn a_parked_reader_is_woken() {
    explore(None, || {
        let mut publisher = Publisher::new(2, 0);
        let (_, subscriber) = publisher.join(Policy::Reliable, None);
        let wake = WakeWord::new(View::heap(1, |_| AtomicU64::default()));
        let event = Event::new();
        let (its_wake, its_event) = (wake.clone(), Arc::clone(&event));
        let reader = thread::spawn(move || receive_parking(subscriber, &its_wake, 0, &its_event, 2));
        for _ in 0..2 {
            publish_and_wake(&mut publisher, &wake, std::slice::from_ref(&event));
        }
        reader.join().expect("the reader's checks hold");
    });
}

#[test]
fn two_parked_readers_are_woken() {
    explore(Some(if long() { 4 } else { 3 }), || {
        let mut publisher = Publisher::new(2, 0);
        let wake = WakeWord::new(View::heap(1, |_| AtomicU64::default()));
        let events = [Event::new(), Event::new()];
        let readers: Vec<_> = events
            .iter()
            .enumerate()
            .map(|(bit, event)| {
                let (_, subscriber) = publisher.join(Policy::Reliable, None);
                let (wake, event) = (wake.clone(), Arc::clone(event));
                thread::spawn(move || receive_parking(subscriber, &wake, bit as u8, &event, 1))
            })
            .collect();
        publish_and_wake(&mut publisher, &wake, &events);
        for reader in readers {
            reader.join().expect("the reader's checks hold");
        }
    });
}

/// The publisher's half of waiting for room: say so, look again, and only then wait.
fn publish_waiting(publisher: &mut Publisher, event: &Event, publish: impl Fn(&mut Publisher) -> Result<u64, Stuck>) {
    loop {
        if publish(publisher).is_ok() {
            return;
        }
        publisher.writer.want_room();
        let done = publish(publisher);
        if done == Err(Stuck::Ring) || done == Err(Stuck::Slots) {
            event.wait();
        }
        publisher.writer.withdraw_want();
        if done.is_ok() {
            return;
        }
    }
}

#[test]
fn a_publisher_that_waits_for_ring_room_is_woken() {
    for (capacity, preemptions) in [(2, None), (8, Some(if long() { 3 } else { 2 }))] {
        explore(preemptions, move || {
            let mut publisher = Publisher::new(capacity, 0);
            let (_, mut subscriber) = publisher.join(Policy::Reliable, None);
            for _ in 0..capacity {
                publisher.publish_inline().expect("a fresh lane has room");
            }
            let event = Event::new();
            let its_event = Arc::clone(&event);
            let reader = thread::spawn(move || {
                for _ in 0..capacity {
                    subscriber.receive();
                    if subscriber.reader.take_wants_room() {
                        its_event.signal();
                    }
                }
                // No more looks: a whole ring was read, and every quarter of it has looked.
                subscriber
            });
            publish_waiting(&mut publisher, &event, Publisher::publish_inline);
            reader.join().expect("the reader's checks hold").drain(capacity as u64 + 1);
        });
    }
}

#[test]
fn a_publisher_that_waits_for_a_slot_is_woken_by_the_last_look_or_by_a_dropped_hold() {
    for keeps in [false, true] {
        explore(None, move || {
            // The ring has room; the pool has one slot.
            let mut publisher = Publisher::new(8, 1);
            let event = Event::new();
            let (dropped, its_event) = (Arc::clone(&event), Arc::clone(&event));
            let notify = keeps.then(|| Arc::new(move || dropped.signal()) as zcmi_ring::Notify);
            let (_, mut subscriber) = publisher.join(Policy::Reliable, notify);
            publisher.publish().expect("a fresh lane has room");
            let reader = thread::spawn(move || {
                let sample = subscriber.receive().expect("it was there from the beginning");
                sample.check();
                if !keeps {
                    drop(sample);
                    // Before it reports empty, it looks once more.
                    subscriber.reader.look_for_want();
                    if subscriber.reader.take_wants_room() {
                        its_event.signal();
                    }
                    return subscriber;
                }
                subscriber.reader.look_for_want();
                if subscriber.reader.take_wants_room() {
                    its_event.signal();
                }
                drop(sample);
                subscriber
            });
            publish_waiting(&mut publisher, &event, Publisher::publish);
            reader.join().expect("the reader's checks hold").drain(2);
        });
    }
}

#[test]
fn occupant_and_controller_are_never_in_the_seat_together() {
    explore(None, || {
        let (mut occupant, controller) = Seat::new(Slots::new(1), Barrier::Symmetric);
        let control = thread::spawn(move || {
            controller.change(|value| {
                let before = value.read(0);
                value.write(0, before + 100);
            });
            controller
        });
        for _ in 0..2 {
            let value = occupant.sit();
            let before = value.read(0);
            value.write(0, before + 1);
        }
        let controller = control.join().expect("nobody else was there");
        assert_eq!(controller.change(|value| value.read(0)), 102);
    });
}

#[test]
fn a_reader_added_in_the_seat_misses_nothing_published_after_it() {
    explore(Some(if long() { 5 } else { 4 }), || {
        let (mut occupant, controller) = Seat::new(Publisher::new(2, 2), Barrier::Symmetric);
        let control = thread::spawn(move || {
            let (_, mut subscriber) = controller.change(|publisher| publisher.join(Policy::Reliable, None));
            subscriber.receive().iter().for_each(Sample::check);
            subscriber
        });
        for _ in 0..3 {
            let _ = occupant.sit().publish();
        }
        let mut subscriber = control.join().expect("the reader's checks hold");
        subscriber.drain(occupant.sit().writer.tail());
    });
}
