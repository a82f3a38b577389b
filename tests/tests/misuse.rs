//! Samples and leases that are forgotten, kept, moved and mixed up: at worst memory is kept, and never reused early.

use zcmi::prelude::*;
use zcmi::{Process, PublishRefusal, directory::RuntimeDirectory, name::ServiceName};
use zcmi_tests::rig::{Scratch, Track, Worker, wait_until};

#[test]
fn the_seventeenth_kept_or_forgotten_sample_is_refused() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    writer.ask("pub id=p service=s tag=1 capacity=32 max_len=1000 reader_slots=32 when_full=refuse");
    reader.ask("sub id=kept service=s");
    reader.ask("sub id=forgotten service=s");
    writer.ask("wait-subscribers id=p n=2 ms=5000");
    writer.ask("send id=p n=20 sizes=fixed:1000");
    for id in ["kept", "forgotten"] {
        let answer = reader.ask(format!("hold id={id} n=20"));
        assert_eq!((answer.number("too_many"), answer.number("pid")), (16, writer.pid().into()));
    }
    reader.ask("forget-held id=forgotten");
    // The publisher goes on until its ring is full of what cannot be received, and no further.
    assert_eq!(writer.ask("send id=p n=1000 sizes=fixed:1000").number("next"), 48);
    reader.ask("check-held id=kept");
    reader.ask("drop-held id=kept");
    // What was not forgotten comes back at once; what was forgotten does not.
    assert_eq!(reader.ask("collect id=kept n=48").tracks(), [(1, Track::whole(0, 48))].into());
    assert_eq!(reader.ask("hold id=forgotten n=1").number("too_many"), 16);
    assert_eq!(writer.ask("send id=p n=10 sizes=fixed:1000").number("sent"), 0);
    // A subscriber that leaves holds nobody up, whatever it forgot.
    reader.ask("end id=forgotten");
    reader.tell("collect id=kept n=58");
    // Its leaving reaches the publisher's process a moment later.
    wait_until("the publisher goes on", || writer.ask("send id=p n=10 sizes=fixed:1000").number("sent") == 10);
    reader.hear();
}

#[test]
fn slots_of_forgotten_samples_are_never_reused() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    let mut other = Worker::start(scratch.path());
    writer.ask("pub id=p service=s tag=1 capacity=8 max_len=1000 reader_slots=32");
    reader.ask("sub id=s service=s");
    other.ask("sub id=s service=s");
    let mut places = Vec::new();
    other.tell("collect id=s endings=1");
    for _ in 0..15 {
        writer.ask("send id=p n=1 sizes=fixed:1000");
        places.push((reader.ask("hold id=s n=1").number("at"), 0));
    }
    for place in &mut places {
        place.1 = reader.ask(format!("peek at={}", place.0)).number("byte");
    }
    reader.ask("forget-held id=s");
    // One hold is left, by which the reader goes on; the others' slots are gone for good.
    reader.tell("collect id=s endings=1");
    assert_eq!(writer.ask("send id=p n=5000 sizes=fixed:1000").number("sent"), 5000);
    writer.ask("end id=p");
    assert_eq!(reader.hear().tracks(), [(1, Track::whole(0, 5015))].into());
    assert_eq!(other.hear().tracks(), [(1, Track::whole(0, 5015))].into());
    for (at, byte) in places {
        assert_eq!(reader.ask(format!("peek at={at}")).number("byte"), byte, "a forgotten slot was written again");
    }
}

#[test]
fn samples_outlive_their_subscriber_and_stay_intact_while_the_publisher_goes_on() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    let mut other = Worker::start(scratch.path());
    for kind in ["bytes", "w100"] {
        writer.ask(format!("pub id=p service={kind} kind={kind} tag=1 capacity=8 reader_slots=32 when_full=5000"));
        reader.ask(format!("sub id=s service={kind} kind={kind}"));
        other.ask(format!("sub id=s service={kind} kind={kind}"));
        writer.ask("wait-subscribers id=p n=2 ms=5000");
        other.tell("collect id=s endings=1");
        writer.tell("send id=p n=16 sizes=fixed:800");
        reader.ask("hold id=s n=12");
        reader.ask("leave id=s");
        writer.hear();
        // Nobody waits for a subscriber that is gone; what it kept is kept.
        let answer = writer.ask("send id=p n=5000 sizes=fixed:800");
        assert_eq!(answer.number("sent"), 5000, "{kind}: {}", answer.whole());
        assert_eq!(reader.ask("check-held id=s").number("n"), 12);
        reader.ask("drop-held id=s threads=1");
        zcmi_tests::rig::wait_until("the orphan is gone", || writer.ask("subscribers id=p").number("n") == 1);
        assert_eq!(writer.ask("send id=p n=1000 sizes=fixed:800").number("sent"), 1000);
        writer.ask("end id=p");
        assert_eq!(other.hear().tracks(), [(1, Track::whole(0, 6016))].into());
        for worker in [&mut reader, &mut other] {
            worker.ask("end id=s");
        }
    }
}

#[test]
fn samples_outlive_their_publisher() {
    let scratch = Scratch::new();
    let mut reader = Worker::start(scratch.path());
    for kill in [false, true] {
        let mut writer = Worker::start(scratch.path());
        writer.ask("pub id=p service=s tag=1 capacity=16");
        reader.ask("sub id=s service=s");
        writer.ask("wait-subscribers id=p n=1 ms=5000");
        writer.ask("send id=p n=16 sizes=fixed:4096");
        reader.ask("hold id=s n=10");
        if kill {
            writer.kill();
        } else {
            writer.ask("end id=p");
            writer.finish();
        }
        assert_eq!(reader.ask("collect id=s endings=1").tracks(), [(1, Track::whole(0, 16))].into());
        reader.ask("check-held id=s");
        reader.ask("leave id=s");
        reader.ask("check-held id=s");
        reader.ask("drop-held id=s threads=1");
        reader.ask("end id=s");
    }
}

#[test]
fn leases_shared_and_dropped_on_other_threads_give_their_slots_back() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    writer.ask("pub id=p service=s tag=1 capacity=16 reader_slots=16 when_full=5000");
    reader.ask("sub id=s service=s");
    writer.ask("wait-subscribers id=p n=1 ms=5000");
    // Many times what the pool has: a slot that did not come back would be missed soon.
    for _ in 0..20 {
        writer.ask("send id=p n=16 sizes=fixed:4096");
        reader.ask("hold id=s n=16");
        reader.ask("drop-held id=s threads=1");
    }
}

#[test]
fn a_forgotten_sample_wakes_nobody_and_a_dropped_one_is_noticed() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    let mut other = Worker::start(scratch.path());
    // Who begins to take part looks at every socket, and so wakes all; this one takes part all the time.
    other.ask("sub id=stays service=other");
    writer.ask("pub id=p service=s tag=1 capacity=16 reader_slots=17");
    reader.ask("sub id=forgets service=s holds=1");
    reader.ask("sub id=keeps service=s holds=15");
    writer.ask("send id=p n=3 sizes=fixed:1000");
    for id in ["forgets", "keeps"] {
        reader.ask(format!("hold id={id} n=1"));
    }
    reader.ask("forget-held id=forgets");
    for id in ["forgets", "keeps"] {
        reader.ask(format!("leave id={id}"));
    }
    let sleeps = || zcmi_tests::look::sleeps(reader.pid(), "zcmi-control").expect("a control thread");
    zcmi_tests::rig::wait_until("the control thread is quiet for most of a second", || {
        let before = sleeps();
        zcmi_tests::rig::pause(std::time::Duration::from_millis(800));
        sleeps() == before
    });
    assert!(other.ask_in_vain("sub id=s service=s holds=15").contains("slots left"));
    // Whoever drops it tells: nobody else wakes the reader's thread here.
    reader.ask("drop-held id=keeps");
    zcmi_tests::rig::wait_until("the places are free", || {
        other.tell("sub id=s service=s holds=15");
        other.try_hear().is_ok()
    });
}

/// A participant of a directory of its own, in this very process.
fn service(scratch: &Scratch, name: &str) -> Service<[u8]> {
    let directory = RuntimeDirectory::at(scratch.path()).expect("a runtime directory");
    let process = Process::open(directory).expect("a participant");
    Service::with(ServiceName::new(name).expect("a name"), process).expect("a service")
}

#[test]
fn a_lease_of_another_publisher_is_refused_and_given_back() {
    let scratch = Scratch::new();
    let service = service(&scratch, "s");
    let mut one = service.publisher().create().expect("a publisher");
    let mut other = service.publisher().create().expect("a publisher");
    let mut lease = one.loan_slice(1000).expect("a lease");
    lease.fill(7);
    let refused = other.publish(lease).expect_err("it is another's");
    assert_eq!(refused.reason, PublishRefusal::OtherPublisher);
    let lease = refused.lease;
    assert!(lease.len() == 1000 && lease.iter().all(|&byte| byte == 7));
    assert_eq!(one.publish(lease).expect("its own takes it"), 0);
    assert_eq!(other.published(), 0);
}

#[test]
fn leases_dropped_or_kept_anywhere_are_counted_and_come_back() {
    let scratch = Scratch::new();
    let service = service(&scratch, "s");
    let mut publisher = service.publisher().loans(3).capacity(4).create().expect("a publisher");
    for _ in 0..50 {
        let leases: Vec<_> = (0..3).map(|_| publisher.loan_slice(1000).expect("a lease")).collect();
        let frozen: Vec<_> = leases.into_iter().map(zcmi::LeaseMut::freeze).collect();
        let threads = frozen.into_iter().map(|lease| std::thread::spawn(move || drop(lease.clone())));
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().expect("a thread"));
    }
    // One that is forgotten is gone for good, and no more than that.
    std::mem::forget(publisher.loan_slice(1000).expect("a lease"));
    let kept: Vec<_> = (0..2).map(|_| publisher.loan_slice(1000).expect("a lease")).collect();
    drop(kept);
    for _ in 0..1000 {
        publisher.publish_copy_of(&[1; 1000]).expect("room");
    }
    // A lease may outlive its publisher.
    let mut lease = publisher.loan_slice(1000).expect("a lease");
    drop(publisher);
    lease.fill(3);
    assert!(lease.iter().all(|&byte| byte == 3));
}
