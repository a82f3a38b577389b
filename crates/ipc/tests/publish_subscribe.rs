//! Publish and subscribe between two participants of one program, which see each other as two processes would.

use std::time::{Duration, Instant};

use zcmi_ipc::directory::RuntimeDirectory;
use zcmi_ipc::name::ServiceName;
use zcmi_ipc::{Event, Process, Publisher, ReceiveError, Service, Subscriber};

mod scratch;

use scratch::Scratch;

const PATIENCE: Duration = Duration::from_secs(10);

/// Two participants in one runtime directory.
fn two(scratch: &Scratch) -> (Process, Process) {
    let open = || Process::open(RuntimeDirectory::at(scratch.path()).expect("a directory")).expect("a participant");
    (open(), open())
}

fn service<M: zcmi_mem::payload::Message + ?Sized>(process: &Process, name: &str) -> Service<M> {
    Service::with(ServiceName::new(name).expect("a name"), process.clone()).expect("a service")
}

/// Waits for what happens soon, and fails if it does not.
fn soon(what: &str, mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::yield_now();
    }
}

fn ended(subscriber: &mut Subscriber<impl zcmi_mem::payload::Message>) -> usize {
    std::iter::from_fn(|| subscriber.next_event()).filter(|event| matches!(event, Event::Ended { .. })).count()
}

#[test]
fn a_batch_over_lanes_that_all_end_is_empty() {
    let scratch = Scratch::new();
    let (here, there) = two(&scratch);
    let mut subscriber = service::<u64>(&here, "s").subscriber().join().expect("a subscriber");
    for count in 1..4 {
        let publishers: Vec<Publisher<u64>> =
            (0..count).map(|_| service(&there, "s").publisher().create().expect("a publisher")).collect();
        soon("the lanes", || subscriber.publishers() == count);
        drop(publishers);
        let mut ends = 0;
        soon("the ends", || {
            assert_eq!(subscriber.receive_batch(8, |_, _| panic!("nothing was published")), Ok(0));
            ends += ended(&mut subscriber);
            ends == count
        });
        assert_eq!(subscriber.publishers(), 0);
    }
}

#[test]
fn as_many_samples_as_may_be_kept_of_one_publisher_do_not_silence_another() {
    let scratch = Scratch::new();
    let (here, there) = two(&scratch);
    let mut one = service::<[u8; 100]>(&there, "s").publisher().create().expect("a publisher");
    let mut other = service::<[u8; 100]>(&there, "s").publisher().create().expect("a publisher");
    let mut subscriber = service::<[u8; 100]>(&here, "s").subscriber().join().expect("a subscriber");
    for _ in 0..17 {
        one.publish_copy(&[1; 100]).expect("room");
    }
    let kept: Vec<_> = (0..16).map(|_| subscriber.try_receive().expect("no error").expect("a message")).collect();
    assert!(matches!(subscriber.try_receive(), Err(ReceiveError::TooManyHeld { held: 16, .. })));
    for _ in 0..3 {
        other.publish_copy(&[2; 100]).expect("room");
    }
    for _ in 0..3 {
        let heard = subscriber.try_receive().expect("the other is heard").expect("a message");
        assert_eq!(heard[0], 2);
    }
    assert!(matches!(subscriber.try_receive(), Err(ReceiveError::TooManyHeld { .. })));
    drop(kept);
    assert_eq!(subscriber.try_receive().expect("no error").map(|sample| sample[0]), Some(1));
}

/// Bytes of shared memory that this program maps for reading alone: what it got from peers.
fn foreign_bytes() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the mappings");
    let sizes = maps.lines().filter(|line| line.contains(" r--s ") && line.contains("memfd")).map(|line| {
        let range = line.split(' ').next().unwrap_or_default();
        let mut ends = range.split('-').map(|end| usize::from_str_radix(end, 16).expect("an address"));
        let (begin, end) = (ends.next().expect("a begin"), ends.next().expect("an end"));
        end - begin
    });
    sizes.sum()
}

#[test]
fn what_was_mapped_of_ended_publishers_is_unmapped_while_their_process_goes_on() {
    let scratch = Scratch::new();
    let (here, there) = two(&scratch);
    let mut staying = service::<u64>(&there, "stays").publisher().create().expect("a publisher");
    let mut reader = service::<u64>(&here, "stays").subscriber().join().expect("a subscriber");
    for round in 0..6_u64 {
        // Larger than all before, so that each has a region of its own.
        let len = (8 << 20) + (round as usize) * (1 << 20);
        let options = service::<[u8]>(&there, "goes").publisher().max_len(len).capacity(2).reader_slots(2);
        let publisher = options.create().expect("a publisher");
        let subscriber = service::<[u8]>(&here, "goes").subscriber().join().expect("a subscriber");
        soon("the lane", || publisher.subscribers() == 1);
        assert!(foreign_bytes() > len, "the pool is mapped");
        drop(publisher);
        drop(subscriber);
        soon("the pool being unmapped", || foreign_bytes() < 8 << 20);
        // What is still mapped goes on, and can be named again.
        staying.publish_copy(&round).expect("room");
        let heard = reader.receive_timeout(PATIENCE).expect("no error").map(|sample| *sample);
        let heard = heard.or_else(|| reader.receive_timeout(PATIENCE).expect("no error").map(|sample| *sample));
        assert_eq!(heard, Some(round));
    }
}
