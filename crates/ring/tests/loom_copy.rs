//! Models of the reader that copies: it takes no hold, so that the publisher reuses the slot while it is read.
//!
//! Run as `loom_lane.rs`. The slot's words are atomics here, as the copying reader loads them; two words tell a torn
//! copy. Each half of the second look is missed: without the acquire fence or the load of `retired` after the copy a
//! model fails, and so it does when `retired` is stored without a fence behind it (R1 and R2).
#![cfg(zcmi_loom)]

mod modelled;

use loom::thread;
use modelled::{Publisher, Words, explore, long};
use std::sync::Arc;
use zcmi_ring::Policy;

fn copied_while_reused(policy: Policy, slots: usize, before: usize, publishes: usize) {
    explore(if long() { None } else { Some(3) }, move || {
        let words = Words::new(slots);
        let mut publisher = Publisher::new(2, slots);
        let (_, mut subscriber) = publisher.join_with(policy, None, 0);
        for _ in 0..before {
            publisher.publish_words(&words).expect("a fresh lane has room");
        }
        let seen = Arc::clone(&words);
        let reader = thread::spawn(move || {
            subscriber.copy(&seen);
            subscriber
        });
        for _ in 0..publishes {
            let published = publisher.publish_words(&words);
            assert!(policy == Policy::Reliable || published.is_ok(), "a stranger without the grant blocks nobody");
        }
        let mut subscriber = reader.join().expect("the reader's checks hold");
        while subscriber.copy(&words) {}
        assert!(policy == Policy::DropOldest || subscriber.lost == 0);
        assert_eq!(subscriber.reader.cursor(), publisher.writer.tail());
    });
}

#[test]
fn a_copy_of_a_slot_that_is_reused_meanwhile_is_thrown_away() {
    copied_while_reused(Policy::DropOldest, 2, 2, 1);
    copied_while_reused(Policy::DropOldest, 2, 2, 2);
}

#[test]
fn the_slot_of_a_reader_with_the_grant_is_not_reused_before_it_was_copied() {
    copied_while_reused(Policy::Reliable, 2, 1, 2);
}
