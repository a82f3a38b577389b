//! What a subscriber reads is what the publisher wrote, at the same place of the same memory: no copy lies between.

use zcmi_tests::look;
use zcmi_tests::rig::{Scratch, Worker};

/// A message of so many bytes, loaned and received: where it lies in either process.
fn both_places(writer: &mut Worker, reader: &mut Worker, bytes: usize) -> (usize, usize) {
    let loaned = writer.ask(format!("loan id=p bytes={bytes}")).number("at") as usize;
    writer.ask("publish-loaned id=p");
    let held = reader.ask("hold id=s n=1");
    assert_eq!(held.number("in_place"), 1);
    (loaned, held.number("at") as usize)
}

#[test]
fn a_sample_lies_where_the_publisher_wrote_it() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    for (kind, bytes) in [("bytes", 41), ("bytes", 4096), ("bytes", 4 << 20), ("w100", 800)] {
        let most =
            if kind == "bytes" { format!("max_len={bytes} reader_slots=4 capacity=2") } else { "capacity=2".into() };
        writer.ask(format!("pub id=p service={kind}/{bytes} kind={kind} {most}"));
        reader.ask(format!("sub id=s service={kind}/{bytes} kind={kind} holds=2"));
        let (theirs, ours) = both_places(&mut writer, &mut reader, bytes);
        let theirs_in = look::mapping(writer.pid(), theirs).expect("the publisher's mapping");
        let ours_in = look::mapping(reader.pid(), ours).expect("the subscriber's mapping");
        assert!(theirs_in.name.starts_with("/memfd:"), "{theirs_in:?}");
        assert!(theirs_in.writable && !ours_in.writable, "{theirs_in:?} {ours_in:?}");
        assert_eq!(theirs_in.inode, ours_in.inode, "the same memory");
        let place = |at: usize, mapping: &look::Mapping| at - mapping.begin + mapping.offset;
        assert_eq!(place(theirs, &theirs_in), place(ours, &ours_in), "the same place in it");
        reader.ask("drop-held id=s");
        reader.ask("end id=s");
        writer.ask("end id=p");
    }
}

#[test]
fn a_byte_changed_in_the_publishers_slot_is_changed_in_the_sample() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    for bytes in [41_usize, 5000, 1 << 20] {
        writer.ask(format!("pub id=p service=s/{bytes} max_len={bytes} reader_slots=4 capacity=2"));
        reader.ask(format!("sub id=s service=s/{bytes} holds=2"));
        let (theirs, ours) = both_places(&mut writer, &mut reader, bytes);
        for at in [0, bytes / 2, bytes - 1] {
            let before = reader.ask(format!("peek at={}", ours + at)).number("byte");
            writer.ask(format!("poke at={} byte={}", theirs + at, before ^ 0xff));
            assert_eq!(reader.ask(format!("peek at={}", ours + at)).number("byte"), before ^ 0xff, "byte {at}");
            writer.ask(format!("poke at={} byte={before}", theirs + at));
        }
        reader.ask("check-held id=s");
        reader.ask("drop-held id=s");
        reader.ask("end id=s");
        writer.ask("end id=p");
    }
}
