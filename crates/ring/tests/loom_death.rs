//! Models of death: a thread that ends before its k-th access to shared memory, for every k.
//!
//! A dead thread stores nothing more, and what it had stored may still be unseen. Run as the models of `loom_lane.rs`.
#![cfg(zcmi_loom)]

mod modelled;

use loom::thread;
use modelled::{Publisher, Sample, explore, long, payload};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use zcmi_ring::Policy;
use zcmi_ring::sync::die_before;

/// Runs `model` for k = 0, 1, 2 … until a k is past the end of the life that the model bounds. Returns how many deaths
/// there were.
fn every_death(preemptions: Option<usize>, model: impl Fn(usize) -> bool + Clone + Sync + Send + 'static) -> usize {
    for accesses in 0.. {
        let died = Arc::new(AtomicBool::new(false));
        let (seen, model) = (Arc::clone(&died), model.clone());
        explore(preemptions, move || {
            if model(accesses) {
                seen.store(true, Relaxed);
            }
        });
        if !died.load(Relaxed) {
            return accesses;
        }
    }
    unreachable!("a life has an end")
}

/// A reader dies; the publisher goes on, forgets it, and has every slot back.
fn reader_dies(policy: Policy) {
    let bound = if long() || policy == Policy::Reliable { None } else { Some(3) };
    let deaths = every_death(bound, move |accesses| {
        let mut publisher = Publisher::new(2, 3);
        let (index, mut subscriber) = publisher.join(policy, None);
        publisher.publish_batch(2).expect("a fresh lane has room");
        let reader = thread::spawn(move || {
            let life = die_before(accesses, || {
                let first = subscriber.receive();
                let second = subscriber.receive();
                first.iter().chain(&second).for_each(Sample::check);
            });
            life.is_none()
        });
        let _ = publisher.publish();
        let died = reader.join().expect("a death is no failure");
        assert!(publisher.writer.remove_reader(index));
        for _ in 0..3 {
            publisher.publish().expect("nobody is waited for");
        }
        assert!(publisher.writer.take_rogues().is_empty(), "what a dead reader left is lawful");
        publisher.check_all_slots_return();
        died
    });
    assert!(deaths > 20, "only {deaths} deaths");
}

#[test]
fn a_reliable_reader_that_dies_is_forgotten_whole() {
    reader_dies(Policy::Reliable);
}

#[test]
fn an_overtaken_reader_that_dies_is_forgotten_whole() {
    reader_dies(Policy::DropOldest);
}

#[test]
fn a_hold_in_kernel_outlives_its_holder() {
    let deaths = every_death(None, |accesses| {
        let mut publisher = Publisher::new(2, 3);
        let (index, mut subscriber) = publisher.join(Policy::Reliable, None);
        publisher.publish_batch(2).expect("a fresh lane has room");
        let marked = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&marked);
        let reader = thread::spawn(move || {
            let life = die_before(accesses, || {
                let sample = subscriber.receive().expect("it is there");
                sample.hold.mark_in_kernel();
                mark.store(true, Relaxed);
                // The kernel reads on: the sample is never dropped.
                std::mem::forget(sample);
                subscriber.receive();
            });
            life.is_none()
        });
        let died = reader.join().expect("a death is no failure");
        assert!(publisher.writer.remove_reader(index));
        for _ in 0..2 {
            publisher.publish().expect("nobody is waited for");
        }
        let _ = publisher.publish();
        publisher.reclaim();
        if marked.load(Relaxed) {
            // The first message lies in the last slot of the fresh list.
            assert!(!publisher.free.contains(&2), "the kernel's slot was given away");
            assert_eq!(publisher.slots.read(2), payload(0));
        }
        died
    });
    assert!(deaths > 10, "only {deaths} deaths");
}

/// The publisher dies; the reader gets all it had said was published, in order, and then finds nothing, and never a
/// fault.
#[test]
fn what_a_dead_publisher_committed_is_still_received() {
    let deaths = every_death(None, |accesses| {
        let mut publisher = Publisher::new(2, 3);
        let (_, mut subscriber) = publisher.join(Policy::Reliable, None);
        publisher.publish_batch(2).expect("a fresh lane has room");
        let reader = thread::spawn(move || {
            let first = subscriber.receive();
            first.iter().for_each(Sample::check);
            subscriber
        });
        let mut committed = 2;
        let died = die_before(accesses, || {
            for _ in 0..2 {
                if publisher.publish().is_ok() {
                    committed += 1;
                }
            }
        })
        .is_none();
        let mut subscriber = reader.join().expect("the reader's checks hold");
        while let Some(sample) = subscriber.receive() {
            sample.check();
        }
        let got = subscriber.reader.cursor();
        // The last stamp may be out although the publisher died before it could say so.
        assert!(got == committed || died && got == committed + 1, "{got} of {committed} messages");
        died
    });
    assert!(deaths > 10, "only {deaths} deaths");
}

#[test]
fn a_batch_of_a_dead_publisher_is_never_seen_in_part() {
    let deaths = every_death(None, |accesses| {
        let mut publisher = Publisher::new(4, 3);
        let (_, mut subscriber) = publisher.join(Policy::Reliable, None);
        let reader = thread::spawn(move || {
            let first = subscriber.receive();
            first.iter().for_each(Sample::check);
            subscriber
        });
        let died = die_before(accesses, || publisher.publish_batch(3)).is_none();
        let mut subscriber = reader.join().expect("the reader's checks hold");
        while let Some(sample) = subscriber.receive() {
            sample.check();
        }
        assert!([0, 3].contains(&subscriber.reader.cursor()), "part of a batch");
        died
    });
    // Three entries of a word, a head and a stamp each.
    assert!(deaths >= 9, "only {deaths} deaths");
}
