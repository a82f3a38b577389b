//! A subscriber that hung up and lives: its publisher names it, goes on without it, and keeps what it may read.

use zcmi_tests::rig::{Scratch, Track, Worker, wait_until};

#[test]
fn a_publisher_goes_on_without_a_cut_off_reader_by_a_new_lane_and_the_old_ones_memory_waits_for_the_death() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    let mut other = Worker::start(scratch.path());
    writer.ask("pub id=small service=small kind=w1");
    let bytes = |writer: &mut Worker| writer.ask("memory").number("bytes");
    let before = bytes(&mut writer);
    let lane = "service=s capacity=4 max_len=4194304 reader_slots=8 when_full=200 max_publishers=1";
    writer.ask(format!("pub id=p tag=1 {lane}"));
    let with_one = bytes(&mut writer);
    assert!(with_one > before + (32 << 20), "the lane has a region of its own");
    reader.ask("sub id=s service=s");
    reader.ask("cut");
    wait_until("the hang-up is noticed", || {
        reader.ask("publishers id=s").number("n") == 1 && {
            let answer = reader.ask("collect id=s ms=1 or_time=1");
            answer.happened().iter().any(|one| one.what == "cut" && one.pid == writer.pid())
        }
    });
    // Its cursor counts on, and it is named.
    let answer = writer.ask("send id=p n=100 sizes=fixed:1000");
    assert_eq!(answer.number("sent"), 4);
    assert!(answer.text("refused").contains(&format!("process_{}", reader.pid())), "{}", answer.whole());
    // The way on: the old lane ends, a new one takes its name.
    writer.ask("end id=p");
    assert_eq!(bytes(&mut writer), with_one, "what it may read is kept");
    writer.ask(format!("pub id=p tag=2 {lane}"));
    assert!(bytes(&mut writer) >= with_one + (32 << 20), "the new lane has memory of its own");
    other.ask("sub id=s service=s");
    other.tell("collect id=s endings=1");
    // The reader is connected anew and takes part in the new lane; of the old one it hears nothing more.
    reader.tell("collect id=s endings=1");
    assert_eq!(writer.ask("send id=p n=20 sizes=fixed:1000").number("sent"), 20);
    writer.ask("end id=p");
    assert_eq!(other.hear().tracks()[&2], Track::whole(0, 20));
    let answer = reader.hear();
    assert_eq!(answer.tracks(), [(2, Track::whole(0, 20))].into(), "{}", answer.whole());
    wait_until("the new lane's memory is free", || bytes(&mut writer) == with_one);
    // Only the kernel's word ends the quarantine.
    reader.kill();
    wait_until("the old lane's memory is free", || bytes(&mut writer) == before);
}
