//! Tests that look behind a publisher's handle.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use zcmi_mem::payload::Message;
use zcmi_ring::sync::{AtomicU64, Ordering};

use super::wakes::{DIRECT, WakeRate, Wakes};
use super::{Publisher, SendError, WhenFull};
use crate::directory::RuntimeDirectory;
use crate::name::ServiceName;
use crate::scratch::Scratch;
use crate::{Process, Service, Subscriber, Wait, sys};

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
                if index == at {
                    // Without a word on standard error, where only what nobody asked for belongs.
                    resume_unwind(Box::new("the caller's own trouble"));
                }
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

#[test]
fn a_publisher_takes_slots_back_before_it_needs_them() {
    let scratch = Scratch::new();
    let process = open(scratch.path());
    let options = service::<[u64; 100]>(&process, "s").publisher().capacity(64).reader_slots(64);
    let mut publisher = options.create().expect("a publisher");
    let mut subscriber = service::<[u64; 100]>(&process, "s").subscriber().join().expect("a subscriber");
    let all = free_slots(&publisher);
    let mut least = all;
    for number in 0..1000 {
        publisher.publish_copy(&[number; 100]).expect("room");
        least = least.min(free_slots(&publisher));
        assert_eq!(subscriber.receive().expect("well").map(|message| message[0]), Some(number));
    }
    // Half of the ring, and the message that is under way.
    assert!((all - 33..all).contains(&least), "{least} of {all}");
}

/// Waits for what happens soon, and fails if it does not.
fn soon(what: &str, mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !happened() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::yield_now();
    }
}

/// Subscribers that sleep whenever nothing is there.
fn sleepers(process: &Process, count: usize) -> Vec<Subscriber<u64>> {
    let join = || service::<u64>(process, "s").subscriber().wait(Wait::Park).join().expect("a subscriber");
    (0..count).map(|_| join()).collect()
}

/// Receives the numbers from 0 up to `count` and counts each, sleeping in between.
fn receive_all(mut subscriber: Subscriber<u64>, count: u64, received: &AtomicU64) {
    let mut next = 0;
    while next < count {
        while subscriber.next_event().is_some() {}
        // Longer than whoever waits for it: a wake that is lost is not made up for by this.
        let sample = subscriber.receive_timeout(Duration::from_secs(40)).expect("no error");
        if let Some(sample) = sample {
            assert_eq!(*sample, next);
            next += 1;
            received.fetch_add(1, Ordering::Relaxed);
        } else if subscriber.publishers() == 1 && subscriber.next_event().is_none() {
            return;
        }
    }
}

#[test]
fn however_many_sleep_a_message_costs_its_publisher_a_few_wakes_and_every_one_is_woken() {
    let scratch = Scratch::new();
    let (here, there) = (open(scratch.path()), open(scratch.path()));
    for count in [1, 4, 5, 16, 64] {
        let mut publisher = service::<u64>(&there, "s").publisher().capacity(2).create().expect("a publisher");
        let (received, rounds) = (AtomicU64::new(0), 5);
        std::thread::scope(|scope| {
            for subscriber in sleepers(&here, count) {
                let received = &received;
                scope.spawn(move || receive_all(subscriber, rounds, received));
            }
            for round in 0..rounds {
                soon("the sleep of all", || publisher.seat.sit().wake.announced().count_ones() as usize == count);
                let before = sys::testing::WAKES.get();
                publisher.publish_copy(&round).expect("room");
                let wakes = sys::testing::WAKES.get() - before;
                let most = if count as u32 <= DIRECT { count as u64 } else { 1 };
                assert_eq!(wakes, most, "with {count} sleepers");
                soon("the message at all", || received.load(Ordering::Relaxed) == (round + 1) * count as u64);
            }
        });
    }
}

#[test]
fn no_wake_of_sixteen_sleepers_is_lost_in_many_rounds() {
    let scratch = Scratch::new();
    let (here, there) = (open(scratch.path()), open(scratch.path()));
    let mut publisher = service::<u64>(&there, "s").publisher().capacity(4).create().expect("a publisher");
    let (received, rounds) = (AtomicU64::new(0), 400);
    std::thread::scope(|scope| {
        for subscriber in sleepers(&here, 16) {
            let received = &received;
            scope.spawn(move || receive_all(subscriber, rounds, received));
        }
        for round in 0..rounds {
            // Some are asleep by now, some are about to be, some are on their way: whoever is quicker.
            publisher.publish_copy(&round).expect("room");
            if round % 3 == 0 {
                soon("the message at all", || received.load(Ordering::Relaxed) == (round + 1) * 16);
            }
        }
    });
    assert_eq!(received.load(Ordering::Relaxed), rounds * 16);
}

#[test]
fn wakes_over_a_readers_budget_are_delayed_and_not_lost() {
    let scratch = Scratch::new();
    let (here, there) = (open(scratch.path()), open(scratch.path()));
    let rate = WakeRate { interval: Duration::from_millis(4), burst: 2 };
    let options = service::<u64>(&there, "s").publisher().capacity(4).wake_rate(rate);
    let mut publisher = options.create().expect("a publisher");
    let (received, rounds) = (AtomicU64::new(0), 40);
    std::thread::scope(|scope| {
        for subscriber in sleepers(&here, 1) {
            let received = &received;
            scope.spawn(move || receive_all(subscriber, rounds, received));
        }
        soon("its sleep", || publisher.seat.sit().wake.announced() == 1);
        let begin = Instant::now();
        for round in 0..rounds {
            soon("its sleep", || publisher.seat.sit().wake.announced() == 1);
            publisher.publish_copy(&round).expect("room");
            soon("the message", || received.load(Ordering::Relaxed) == round + 1);
        }
        assert!(begin.elapsed() >= 37 * rate.interval, "{:?}", begin.elapsed());
    });
}

#[test]
fn a_budget_is_a_burst_and_then_one_wake_an_interval() {
    let scratch = Scratch::new();
    let process = open(scratch.path());
    let mailbox = std::sync::Arc::clone(process.mailbox());
    let wakes = Wakes::new(WakeRate { interval: Duration::from_nanos(100), burst: 3 }, mailbox);
    let spent: Vec<_> = (0..5).map(|_| wakes.spend(7, 1000)).collect();
    assert_eq!(spent, [Ok(()), Ok(()), Ok(()), Err(1100), Err(1100)]);
    assert_eq!((wakes.spend(7, 1099), wakes.spend(7, 1100), wakes.spend(7, 1101)), (Err(1100), Ok(()), Err(1200)));
    assert_eq!(wakes.spend(8, 1000), Ok(()), "each reader has its own");
    assert!((0..3).all(|_| wakes.spend(7, 9000).is_ok()), "what is not used comes back, up to the burst");
    assert_eq!(wakes.spend(7, 9000), Err(9100));
    wakes.begin(7);
    assert_eq!(wakes.spend(7, 0), Ok(()), "a new reader has a whole one");
}
