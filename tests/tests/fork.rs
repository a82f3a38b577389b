//! Forks in a participant: the child is told, and the parent goes on.

use zcmi_tests::rig::{Scratch, Track, Worker};

#[test]
fn a_forked_child_is_refused_everything_and_its_drops_do_nothing() {
    let scratch = Scratch::new();
    let (mut one, mut other) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    for kind in ["bytes", "w2", "w100"] {
        one.ask(format!("pub id=p service={kind}/to kind={kind} tag=1 capacity=8"));
        other.ask(format!("pub id=p service={kind}/from kind={kind} tag=2 capacity=32"));
        one.ask(format!("sub id=s service={kind}/from kind={kind}"));
        other.ask(format!("sub id=s service={kind}/to kind={kind}"));
        other.ask("wait-subscribers id=p n=1 ms=5000");
        one.ask("wait-subscribers id=p n=1 ms=5000");
        other.ask("send id=p n=20 sizes=fixed:800");
        // The parent has samples and a lease when it forks.
        one.ask("hold id=s n=10");
        one.ask("loan id=p bytes=800");
        one.ask("fork child=tries");
        one.ask("check-held id=s");
        one.ask("publish-loaned id=p");
        one.ask("send id=p n=5 sizes=fixed:800");
        one.ask("drop-held id=s");
        other.tell("send id=p n=100 sizes=fixed:800");
        assert_eq!(one.ask("collect id=s n=120").tracks(), [(2, Track::whole(0, 120))].into(), "{kind}");
        assert_eq!(other.hear().number("sent"), 100);
        one.ask("end id=p");
        let answer = other.ask("collect id=s endings=1");
        assert_eq!(answer.tracks(), [(1, Track::whole(0, 6))].into(), "{kind}: {}", answer.whole());
        one.ask("end id=s");
        other.ask("end id=p");
        other.ask("end id=s");
    }
    one.finish();
    other.finish();
}

#[test]
fn a_child_that_holds_a_dead_publishers_sockets_keeps_nobody_waiting() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    reader.ask("sub id=s service=s wait=park");
    writer.ask("pub id=p service=s tag=1 max_publishers=1");
    writer.ask("wait-subscribers id=p n=1 ms=5000");
    writer.ask("send id=p n=10 sizes=tagged:100");
    let child = writer.ask("fork child=stays").number("pid") as u32;
    reader.tell("collect id=s endings=1");
    let pid = writer.pid();
    writer.kill();
    assert!(zcmi_tests::look::state(child).is_some(), "the child is there to hold the sockets");
    let answer = reader.hear();
    assert_eq!(answer.tracks(), [(1, Track::whole(0, 10))].into());
    let died = answer.happened().iter().any(|one| one.what == "died" && one.pid == pid && one.number == 10);
    assert!(died, "{}", answer.whole());
    // Its listener still takes connections, but the name is free for the next publisher, also for one that never saw
    // the death.
    let mut next = Worker::start(scratch.path());
    next.ask("pub id=p service=s tag=2 max_publishers=1");
    drop(writer);
}

#[test]
fn a_name_is_free_at_once_when_its_publisher_died_and_a_child_of_it_lives() {
    let scratch = Scratch::new();
    let mut writer = Worker::start(scratch.path());
    writer.ask("pub id=p service=s tag=1 max_publishers=1");
    writer.ask("fork child=stays");
    writer.kill();
    // Nobody watched the death: whoever comes finds a socket that still takes connections.
    let mut next = Worker::start(scratch.path());
    next.ask("pub id=p service=s tag=2 max_publishers=1");
    let mut reader = Worker::start(scratch.path());
    let begin = std::time::Instant::now();
    reader.ask("sub id=s service=s");
    assert!(begin.elapsed() < std::time::Duration::from_millis(900), "it waited for the dead");
    next.ask("wait-subscribers id=p n=1 ms=5000");
    next.ask("send id=p n=3 sizes=tagged:100");
    next.ask("end id=p");
    assert_eq!(reader.ask("collect id=s endings=1").tracks(), [(2, Track::whole(0, 3))].into());
}
