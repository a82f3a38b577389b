//! Sleeping and being woken: no wake is lost, whoever is quicker.

use std::os::fd::AsFd;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, poll};
use zcmi::directory::RuntimeDirectory;
use zcmi::name::ServiceName;
use zcmi::{Armed, Event, Process, Service, Subscriber};
use zcmi_tests::rig::{PATIENCE, Scratch, Track, Worker};
use zcmi_tests::seed::{Length, Random};

/// Sends messages to and fro between two processes that both wait in this way.
fn ping_pong(wait: &str, count: u64, delay_us: u64) {
    let scratch = Scratch::new();
    let mut random = Random::of_this_run();
    let (mut one, mut other) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    one.ask("pub id=p service=there kind=w1 tag=1");
    other.ask("pub id=p service=back kind=w1 tag=2");
    one.ask(format!("sub id=s service=back kind=w1 wait={wait}"));
    other.ask(format!("sub id=s service=there kind=w1 wait={wait}"));
    other.ask("wait-subscribers id=p n=1 ms=5000");
    one.ask("wait-subscribers id=p n=1 ms=5000");
    other.tell("echo to=p from=s");
    let seed = random.below(1 << 40);
    // A wake that is lost is noticed by the answer that does not come within five seconds.
    one.tell(format!("ping to=p from=s n={count} delay_us={delay_us} seed={seed}"));
    while !one.is_heard_within(zcmi_tests::rig::PATIENCE / 2) {
        assert!(zcmi_tests::look::state(one.pid()).is_some(), "the worker is gone");
    }
    assert_eq!(one.hear().number("n"), count);
    one.ask("end id=p");
    assert_eq!(other.hear().number("n"), count);
}

#[test]
fn no_wake_is_lost_between_two_that_park() {
    ping_pong("park", Length::of_this_run().pick(10_000, 100_000, 1_000_000), 40);
}

#[test]
fn no_wake_is_lost_between_two_that_spin_and_then_park() {
    ping_pong("20", Length::of_this_run().pick(10_000, 100_000, 1_000_000), 40);
}

#[test]
fn a_parked_subscriber_wakes_when_its_publisher_dies() {
    let scratch = Scratch::new();
    let mut reader = Worker::start(scratch.path());
    for _ in 0..5 {
        let mut writer = Worker::start(scratch.path());
        writer.ask("pub id=p service=s kind=w1 tag=1");
        reader.ask("sub id=s service=s kind=w1 wait=park");
        writer.ask("wait-subscribers id=p n=1 ms=5000");
        writer.ask("send id=p n=1");
        reader.ask("collect id=s n=1");
        reader.tell("collect id=s endings=1");
        zcmi_tests::rig::wait_until("the reader sleeps", || zcmi_tests::look::state(reader.pid()) == Some('S'));
        writer.kill();
        reader.hear();
        reader.ask("end id=s");
    }
}

#[test]
fn a_parked_subscriber_wakes_for_the_first_message_of_a_new_publisher() {
    let scratch = Scratch::new();
    let mut reader = Worker::start(scratch.path());
    reader.ask("sub id=s service=s kind=w1 wait=park");
    let mut others = Vec::new();
    for tag in 0..5_u16 {
        reader.tell(format!("collect id=s n={}", tag + 1));
        zcmi_tests::rig::wait_until("the reader sleeps", || zcmi_tests::look::state(reader.pid()) == Some('S'));
        let mut writer = Worker::start(scratch.path());
        writer.ask(format!("pub id=p service=s kind=w1 tag={tag}"));
        writer.ask("send id=p n=1");
        let answer = reader.hear();
        assert_eq!(answer.tracks()[&tag], Track::whole(0, 1), "{}", answer.whole());
        others.push(writer);
    }
}

#[test]
fn a_blocked_publisher_wakes_whenever_there_is_room() {
    let scratch = Scratch::new();
    let count = Length::of_this_run().pick(20_000, 200_000, 2_000_000);
    for wait in ["park", "20", "spin"] {
        let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
        writer.ask("pub id=p service=s kind=w2 tag=1 capacity=2");
        reader.ask(format!("sub id=s service=s kind=w2 wait={wait}"));
        reader.tell("collect id=s endings=1");
        writer.ask("wait-subscribers id=p n=1 ms=5000");
        writer.tell(format!("send id=p n={count}"));
        assert_eq!(writer.hear().number("sent"), count);
        writer.ask("end id=p");
        assert_eq!(reader.hear().tracks(), [(1, Track::whole(0, count))].into());
    }
}

/// A subscriber of this very process, which polls for itself.
fn subscriber(scratch: &Scratch) -> Subscriber<u64> {
    let directory = RuntimeDirectory::at(scratch.path()).expect("the runtime directory");
    let process = Process::open(directory).expect("a process");
    let service = Service::<u64>::with(ServiceName::new("s").expect("a name"), process).expect("a service");
    service.subscriber().join().expect("a subscriber")
}

#[test]
fn an_event_loop_is_told_of_every_message_and_of_the_end() {
    let scratch = Scratch::new();
    let mut writer = Worker::start(scratch.path());
    writer.ask("pub id=p service=s kind=w1 tag=1");
    let mut subscriber = subscriber(&scratch);
    writer.ask("wait-subscribers id=p n=1 ms=5000");
    let count = Length::of_this_run().pick(2_000, 20_000, 200_000);
    // Edge-triggered, and with a descriptor beside it that stays quiet.
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll_create1");
    let quiet = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
    epoll::add(&set, &quiet, epoll::EventData::new_u64(0), epoll::EventFlags::IN).expect("epoll_ctl");
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    let descriptor = subscriber.descriptor().expect("a descriptor");
    epoll::add(&set, descriptor, epoll::EventData::new_u64(1), flags).expect("epoll_ctl");
    let seed = Random::of_this_run().below(1 << 40);
    writer.tell(format!("send id=p n={count} delay_us=100 seed={seed}"));
    let (mut received, mut waits, mut writer) = (0, 0, Some(writer));
    let ended = loop {
        while subscriber.try_receive().expect("receiving").is_some() {
            received += 1;
        }
        if let Some(event) = subscriber.next_event() {
            match event {
                // The hang-up of a killed process can come before the kernel's word that it is dead.
                Event::Joined { .. } | Event::CutOff { .. } => continue,
                Event::Died { sequence, .. } => break sequence,
                other => panic!("{other:?}"),
            }
        }
        if received == count
            && let Some(mut writer) = writer.take()
        {
            assert_eq!(writer.hear().number("sent"), count);
            writer.kill();
        }
        if let Armed::Waiting { at_most } = subscriber.arm().expect("arming") {
            let timeout = Timespec::try_from(at_most.unwrap_or(PATIENCE / 2)).expect("a time");
            let mut told = Vec::with_capacity(2);
            epoll::wait(&set, rustix::buffer::spare_capacity(&mut told), Some(&timeout)).expect("epoll_wait");
            assert!(at_most.is_some() || !told.is_empty(), "a wake was lost after {received} messages");
            assert!(told.iter().all(|event| event.data.u64() == 1));
            waits += 1;
        }
    };
    assert_eq!((received, ended), (count, count));
    assert!(waits > 1, "the loop never had to wait");
}

#[test]
fn what_is_there_before_arming_needs_no_descriptor() {
    let scratch = Scratch::new();
    let mut writer = Worker::start(scratch.path());
    writer.ask("pub id=p service=s kind=w1 tag=1");
    let mut subscriber = subscriber(&scratch);
    assert!(matches!(subscriber.next_event(), Some(Event::Joined { .. })));
    writer.ask("wait-subscribers id=p n=1 ms=5000");
    writer.ask("send id=p n=1");
    assert_eq!(subscriber.arm(), Ok(Armed::Ready));
    assert!(subscriber.try_receive().expect("receiving").is_some());
    zcmi_tests::rig::wait_until("the publisher knows that we sleep", || {
        while subscriber.next_event().is_some() {}
        assert!(subscriber.try_receive().expect("receiving").is_none());
        subscriber.arm() == Ok(Armed::Waiting { at_most: None })
    });
    let is_readable = |subscriber: &mut Subscriber<u64>| {
        let descriptor = subscriber.descriptor().expect("a descriptor");
        let mut polled = [PollFd::from_borrowed_fd(descriptor.as_fd(), PollFlags::IN)];
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll") == 1
    };
    assert!(!is_readable(&mut subscriber));
    writer.ask("send id=p n=1");
    assert!(is_readable(&mut subscriber), "the wake comes with the message");
    assert_eq!(subscriber.arm(), Ok(Armed::Ready));
    assert!(!is_readable(&mut subscriber), "arming empties the descriptor");
}
