//! Publishers and subscribers in processes of their own: what is received is what was sent.

use zcmi_tests::content::Sizes;
use zcmi_tests::rig::{Scratch, Track, Worker};
use zcmi_tests::seed::Length;

/// So many publishers and subscribers, each in its own process; each subscriber gets everything of each publisher in
/// order.
fn everybody_gets_everything(publishers: u16, subscribers: usize, kind: &str, sizes: Sizes, each: u64, more: &str) {
    let scratch = Scratch::new();
    let mut readers: Vec<Worker> = (0..subscribers).map(|_| Worker::start(scratch.path())).collect();
    let mut writers: Vec<Worker> = (0..publishers).map(|_| Worker::start(scratch.path())).collect();
    for reader in &mut readers {
        reader.tell(format!("sub id=s service=all kind={kind}"));
    }
    readers.iter_mut().for_each(|reader| drop(reader.hear()));
    for (tag, writer) in writers.iter_mut().enumerate() {
        writer.tell(format!("pub id=p service=all kind={kind} tag={tag} {more}"));
    }
    writers.iter_mut().for_each(|writer| drop(writer.hear()));
    for writer in &mut writers {
        writer.ask(format!("wait-subscribers id=p n={subscribers} ms=20000"));
    }
    for reader in &mut readers {
        reader.tell(format!("collect id=s endings={publishers}"));
    }
    for writer in &mut writers {
        writer.tell(format!("send id=p n={each} sizes={sizes}"));
    }
    for writer in &mut writers {
        assert_eq!(writer.hear().number("sent"), each);
        writer.tell("end id=p");
    }
    writers.iter_mut().for_each(|writer| drop(writer.hear()));
    for reader in &mut readers {
        let answer = reader.hear();
        let expected = (0..publishers).map(|tag| (tag, Track::whole(0, each))).collect();
        assert_eq!(answer.tracks(), expected, "{}", answer.whole());
        assert_eq!(answer.number("lost"), 0);
        let ended = answer.happened().iter().filter(|one| one.what == "ended" && one.number == each).count();
        assert_eq!(ended, publishers.into(), "{}", answer.whole());
    }
    writers.into_iter().chain(readers).for_each(Worker::finish);
}

#[test]
fn one_to_one_slices_of_every_length_arrive_in_order() {
    let each = Length::of_this_run().pick(44, 110, 1100);
    everybody_gets_everything(1, 1, "bytes", Sizes::Mixed(4 << 20), each, "max_len=4194304 capacity=2 reader_slots=2");
}

#[test]
fn two_to_three_slices_arrive_in_order() {
    let each = Length::of_this_run().pick(2_000, 10_000, 100_000);
    everybody_gets_everything(2, 3, "bytes", Sizes::Tagged(4096), each, "capacity=64");
}

#[test]
fn eight_to_eight_slices_arrive_in_order() {
    let each = Length::of_this_run().pick(200, 1_500, 20_000);
    everybody_gets_everything(8, 8, "bytes", Sizes::Tagged(1000), each, "max_len=1000 capacity=32");
}

#[test]
fn two_to_two_typed_messages_of_every_inline_size_arrive_in_order() {
    let each = Length::of_this_run().pick(2_000, 20_000, 200_000);
    for kind in ["w1", "w2", "w3", "w4", "w5"] {
        everybody_gets_everything(2, 2, kind, Sizes::Fixed(0), each, "capacity=16");
    }
}

#[test]
fn two_to_two_typed_messages_in_slots_arrive_in_order() {
    let each = Length::of_this_run().pick(2_000, 20_000, 200_000);
    everybody_gets_everything(2, 2, "w100", Sizes::Fixed(0), each, "capacity=8");
}

#[test]
fn batches_bring_everything_in_order() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    for kind in ["bytes", "w2", "w100"] {
        writer.ask(format!("pub id=p service={kind} kind={kind} tag=5 capacity=64"));
        reader.ask(format!("sub id=s service={kind} kind={kind}"));
        reader.tell("collect id=s endings=1 batch=17");
        assert_eq!(writer.ask("send id=p n=5000 sizes=tagged:4096").number("sent"), 5000);
        writer.ask("end id=p");
        let answer = reader.hear();
        assert_eq!(answer.tracks(), [(5, Track::whole(0, 5000))].into(), "{kind}: {}", answer.whole());
    }
}

#[test]
fn messages_published_in_batches_arrive_in_order_however_they_are_received() {
    let scratch = Scratch::new();
    let mut writer = Worker::start(scratch.path());
    let mut readers: Vec<Worker> = (0..2).map(|_| Worker::start(scratch.path())).collect();
    for kind in ["w1", "w5", "w100", "bytes"] {
        writer.ask(format!("pub id=p service={kind} kind={kind} tag=5 capacity=16"));
        for (reader, batch) in readers.iter_mut().zip([0, 7]) {
            reader.ask(format!("sub id=s service={kind} kind={kind}"));
            reader.tell(format!("collect id=s endings=1 batch={batch}"));
        }
        // Batches smaller and larger than the ring, and single messages in between.
        for batch in [3, 16, 50] {
            assert_eq!(writer.ask(format!("send id=p n=3000 batch={batch}")).number("sent"), 3000 / batch * batch);
            writer.ask("send id=p n=5");
        }
        let sent = writer.ask("send id=p n=0").number("next");
        writer.ask("end id=p");
        for reader in &mut readers {
            let answer = reader.hear();
            assert_eq!(answer.tracks(), [(5, Track::whole(0, sent))].into(), "{kind}: {}", answer.whole());
            reader.ask("end id=s");
        }
    }
}

#[test]
fn one_process_may_be_both_ends_of_a_service() {
    let scratch = Scratch::new();
    let mut worker = Worker::start(scratch.path());
    worker.ask("sub id=early service=own");
    worker.ask("pub id=p service=own tag=1 history=100");
    worker.ask("wait-subscribers id=p n=1 ms=5000");
    worker.ask("send id=p n=100 sizes=tagged:4096");
    worker.ask("sub id=late service=own");
    worker.ask("wait-subscribers id=p n=2 ms=5000");
    worker.ask("end id=p");
    for id in ["early", "late"] {
        let answer = worker.ask(format!("collect id={id} endings=1"));
        assert_eq!(answer.tracks(), [(1, Track::whole(0, 100))].into(), "{id}: {}", answer.whole());
    }
    worker.finish();
}

#[test]
fn what_a_slow_reader_of_the_drop_oldest_kind_loses_is_counted_exactly() {
    let scratch = Scratch::new();
    let (mut writer, mut fast) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    let mut slow: Vec<Worker> = (0..2).map(|_| Worker::start(scratch.path())).collect();
    let each = Length::of_this_run().pick(20_000, 100_000, 1_000_000);
    for (kind, sizes) in [("bytes", Sizes::Tagged(1000)), ("w2", Sizes::Fixed(0)), ("w100", Sizes::Fixed(0))] {
        writer.ask(format!("pub id=p service={kind} kind={kind} tag=1 capacity=64 max_len=1000 loans=1"));
        fast.ask(format!("sub id=s service={kind} kind={kind}"));
        for reader in &mut slow {
            reader.ask(format!("sub id=s service={kind} kind={kind} drop_oldest=1"));
        }
        writer.ask("wait-subscribers id=p n=3 ms=5000");
        fast.tell("collect id=s endings=1");
        slow[0].tell("collect id=s endings=1 slow_us=20");
        assert_eq!(writer.ask(format!("send id=p n={each} sizes={sizes}")).number("sent"), each);
        writer.ask("end id=p");
        // This one did not read at all while the messages went by.
        slow[1].tell("collect id=s endings=1");
        assert_eq!(fast.hear().tracks(), [(1, Track::whole(0, each))].into());
        for reader in &mut slow {
            let answer = reader.hear();
            let track = answer.tracks()[&1];
            assert_eq!(track.got + answer.number("lost"), each, "{kind}: {}", answer.whole());
            assert_eq!(track.next, each, "the newest messages are there: {}", answer.whole());
            assert!(answer.number("lost") > 0, "{kind}: nothing was overtaken, so nothing was shown");
        }
        for reader in slow.iter_mut().chain([&mut fast]) {
            reader.ask("end id=s");
        }
    }
}

#[test]
fn a_publisher_that_refuses_the_newest_refuses_exactly_what_does_not_fit() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    for (kind, sizes) in [("bytes", Sizes::Tagged(4096)), ("w1", Sizes::Fixed(0)), ("w100", Sizes::Fixed(0))] {
        writer.ask(format!("pub id=p service={kind} kind={kind} tag=1 capacity=16 when_full=refuse"));
        // Without a reader there is nobody to wait for.
        assert_eq!(writer.ask(format!("send id=p n=100 sizes={sizes}")).number("sent"), 100);
        reader.ask(format!("sub id=s service={kind} kind={kind}"));
        for round in 0..5 {
            let answer = writer.ask(format!("send id=p n=100 sizes={sizes}"));
            assert_eq!(answer.number("sent"), 16, "{kind} {round}: {}", answer.whole());
            assert!(answer.text("refused").contains(&reader.pid().to_string()), "{}", answer.whole());
            let got = reader.ask(format!("collect id=s n={}", 16 * (round + 1)));
            assert_eq!(got.tracks(), [(1, Track::whole(100, 116 + 16 * round))].into(), "{kind}: {}", got.whole());
        }
        reader.ask("end id=s");
        writer.ask("end id=p");
    }
}

#[test]
fn a_publisher_that_blocks_for_a_while_names_whom_it_waited_for() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    let mut other = Worker::start(scratch.path());
    writer.ask("pub id=p service=s tag=1 capacity=8 when_full=200");
    reader.ask("sub id=s service=s");
    other.ask("sub id=s service=s");
    other.tell("collect id=s n=8");
    let answer = writer.ask("send id=p n=100 sizes=tagged:4096");
    assert_eq!(answer.number("sent"), 8);
    assert!(answer.number("ms") >= 200, "{}", answer.whole());
    let reason = answer.text("refused");
    assert!(reason.contains(&format!("process_{}_is_8_messages_behind", reader.pid())), "{reason}");
    other.hear();
    // It goes on as soon as the slow one has read.
    reader.tell("collect id=s endings=1");
    other.tell("collect id=s endings=1");
    assert_eq!(writer.ask("send id=p n=1000 sizes=tagged:4096").number("sent"), 1000);
    writer.ask("end id=p");
    assert_eq!(reader.hear().tracks(), [(1, Track::whole(0, 1008))].into());
    assert_eq!(other.hear().tracks(), [(1, Track::whole(0, 1008))].into());
}

#[test]
fn a_late_joiner_gets_the_history_and_no_more_than_it_asks_for() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    for kind in ["bytes", "w3", "w100"] {
        writer.ask(format!("pub id=p service={kind} kind={kind} tag=1 capacity=64 history=50"));
        writer.ask("send id=p n=20 sizes=tagged:4096");
        reader.ask(format!("sub id=short service={kind} kind={kind}"));
        reader.tell("collect id=short n=500");
        writer.ask("send id=p n=480 sizes=tagged:4096");
        reader.hear();
        reader.ask(format!("sub id=all service={kind} kind={kind}"));
        reader.ask(format!("sub id=few service={kind} kind={kind} history=7"));
        reader.ask(format!("sub id=none service={kind} kind={kind} history=0"));
        writer.ask("send id=p n=5 sizes=tagged:4096");
        writer.ask("end id=p");
        for (id, first) in [("short", 0), ("all", 450), ("few", 493), ("none", 500)] {
            let answer = reader.ask(format!("collect id={id} endings=1"));
            assert_eq!(answer.tracks(), [(1, Track::whole(first, 505))].into(), "{kind} {id}: {}", answer.whole());
        }
    }
}

#[test]
fn a_late_joiner_of_a_stream_is_refused_and_an_early_one_is_not() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    let mut late = Worker::start(scratch.path());
    writer.ask("pub id=p service=s tag=1 late_joiners=0 history=50");
    reader.ask("sub id=s service=s");
    writer.ask("send id=p n=3 sizes=tagged:64");
    let refused = late.ask_in_vain("sub id=s service=s");
    assert!(refused.contains("3 messages have gone by"), "{refused}");
    assert!(refused.contains(&writer.pid().to_string()), "{refused}");
    writer.ask("end id=p");
    assert_eq!(reader.ask("collect id=s endings=1").tracks(), [(1, Track::whole(0, 3))].into());
}

#[test]
fn a_slow_publisher_is_not_starved_by_fast_ones() {
    let scratch = Scratch::new();
    let mut reader = Worker::start(scratch.path());
    let mut fast: Vec<Worker> = (0..2).map(|_| Worker::start(scratch.path())).collect();
    let mut slow = Worker::start(scratch.path());
    reader.ask("sub id=s service=s kind=w2");
    for (tag, writer) in fast.iter_mut().enumerate() {
        writer.ask(format!("pub id=p service=s kind=w2 tag={tag} capacity=64"));
        writer.ask("wait-subscribers id=p n=1 ms=5000");
    }
    slow.ask("pub id=p service=s kind=w2 tag=9 capacity=64");
    slow.ask("wait-subscribers id=p n=1 ms=5000");
    // All 50 of the slow one lie there before the reader begins; the fast ones have a full ring at every moment.
    slow.ask("send id=p n=50");
    for writer in &mut fast {
        writer.ask("flood id=p sizes=fixed:16");
    }
    let answer = reader.ask("collect id=s n=300");
    let got = answer.tracks().get(&9).map_or(0, |track| track.got);
    // Each in turn: of 300 received while three had something, a third. A publisher that is not running just then gives
    // way.
    assert_eq!(got, 50, "{}", answer.whole());
}

#[test]
fn a_second_publisher_is_refused_where_one_is_the_limit() {
    let scratch = Scratch::new();
    let (mut one, mut other) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    one.ask("pub id=p service=s tag=1 max_publishers=1");
    let refused = other.ask_in_vain("pub id=p service=s tag=2 max_publishers=1");
    assert!(refused.contains(&one.pid().to_string()) && refused.contains("TooManyPublishers"), "{refused}");
    one.ask("end id=p");
    other.ask("pub id=p service=s tag=2 max_publishers=1");
    drop(other);
    one.ask("pub id=p service=s tag=1 max_publishers=1");
}
