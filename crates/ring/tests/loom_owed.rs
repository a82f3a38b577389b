//! A model of wakes that are handed over: a publisher, the thread that sends its wakes, and a parked reader. A lost
//! wake is a deadlock, which loom reports.
//! loom: preemptions = 3
#![cfg(zcmi_loom)]

mod modelled;

use loom::thread;
use modelled::{Event, Publisher, explore, long};
use std::sync::Arc;
use zcmi_ring::owed::OwedWakes;
use zcmi_ring::sync::{AtomicBool, AtomicU64, Ordering};
use zcmi_ring::{Policy, View, WakeWord};

#[test]
fn a_parked_reader_whose_wake_is_handed_over_is_woken() {
    explore(Some(if long() { 3 } else { 2 }), || {
        let mut publisher = Publisher::new(2, 0);
        let (_, mut subscriber) = publisher.join(Policy::Reliable, None);
        let wake = WakeWord::new(View::heap(1, |_| AtomicU64::default()));
        let (owed, over) = (Arc::new(OwedWakes::default()), Arc::new(AtomicBool::new(false)));
        let (reader_sleeps, sender_sleeps) = (Event::new(), Event::new());
        let reader = {
            let (wake, event) = (wake.clone(), Arc::clone(&reader_sleeps));
            thread::spawn(move || {
                while subscriber.delivered < 2 {
                    subscriber.receive();
                    if subscriber.delivered == 2 || subscriber.reader.has_message() {
                        continue;
                    }
                    wake.announce(0);
                    if !subscriber.reader.has_message() {
                        event.wait();
                    }
                    wake.withdraw(0);
                }
            })
        };
        let sender = {
            let (owed, over) = (Arc::clone(&owed), Arc::clone(&over));
            let (event, to) = (Arc::clone(&sender_sleeps), Arc::clone(&reader_sleeps));
            thread::spawn(move || {
                loop {
                    event.wait();
                    let last = over.load(Ordering::Acquire);
                    if owed.take() != 0 {
                        to.signal();
                    }
                    if last {
                        return;
                    }
                }
            })
        };
        for _ in 0..2 {
            publisher.publish_inline().expect("the ring is large enough");
            let sleeping = wake.take(1);
            if sleeping != 0 && owed.hand_over(sleeping) {
                sender_sleeps.signal();
            }
        }
        over.store(true, Ordering::Release);
        sender_sleeps.signal();
        reader.join().expect("the reader's checks hold");
        sender.join().expect("the sender ends");
    });
}

#[test]
fn no_bit_that_is_handed_over_is_left_behind() {
    explore(None, || {
        let owed = Arc::new(OwedWakes::default());
        let sleeps = Event::new();
        let publisher = {
            let (owed, wake) = (Arc::clone(&owed), Arc::clone(&sleeps));
            thread::spawn(move || {
                for bit in 0..3 {
                    if owed.hand_over(1 << bit) {
                        wake.signal();
                    }
                }
            })
        };
        let mut taken = 0;
        while taken != 0b111 {
            sleeps.wait();
            taken |= owed.take();
        }
        publisher.join().expect("the publisher ends");
    });
}
