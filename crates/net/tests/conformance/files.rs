//! Messages whose bytes lie in a file.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use zcmi_net::file::FileBytes;

use super::*;

/// A file without a name, with the bytes of message `number`.
pub(crate) fn file_of(number: u64, bytes: usize) -> File {
    let memory = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
    let mut file = File::from(memory);
    file.write_all(&content(number, bytes).collect::<Vec<u8>>()).expect("its bytes");
    file
}

/// The file as a transport takes it.
pub(crate) fn shared(file: &File) -> Arc<OwnedFd> {
    Arc::new(file.try_clone().expect("a descriptor").into())
}

impl<T: Transport> End<T> {
    /// Submits message `number` out of a file that begins with `before` other bytes.
    pub(crate) fn submit_file(&mut self, number: u64, before: usize, bytes: usize, stream: u32) {
        let mut file = vec![0x5a; before];
        file.extend(content(number, bytes));
        let memory = File::from(rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).expect("a file"));
        memory.write_all_at(&file, 0).expect("its bytes");
        let range = FileBytes::new(Arc::new(memory.into()), before as u64, bytes);
        let to = self.to().stream(stream).tag(number);
        self.transport.submit(to, range.into(), Token(number)).expect("the message is taken");
    }
}

/// Whether the transport takes messages from files; one that does not gives them back.
fn takes_files<R: Rig>(rig: &R) -> bool {
    if rig.sends_from_files() {
        return true;
    }
    let (mut one, _two) = rig.pair(Wish::default());
    let range = FileBytes::new(shared(&file_of(1, 10)), 0, 10);
    let to = one.to();
    let refused = one.transport.submit(to, range.into(), Token(1)).expect_err("no message from a file");
    assert_eq!((refused.reason, refused.payload.byte_len()), (SubmitError::FromFile, 10));
    false
}

pub(crate) fn messages_from_files_arrive_among_others_in_order<R: Rig>(rig: &R) {
    if !takes_files(rig) {
        return;
    }
    let (mut one, mut two) = rig.pair(Wish::default());
    let sizes = [0, 1, 1023, 1024, 1025, 4096, 65_535, 65_536, 65_537, 200_000, 1 << 20];
    let total = 2 * sizes.len() as u64;
    for (index, &bytes) in sizes.iter().enumerate() {
        let number = 2 * index as u64;
        one.submit_file(number, index * 4099, bytes, 0);
        one.submit(number + 1, 100, 0);
    }
    let (mut collector, mut completed) = (Collector::default(), Vec::new());
    until("all messages", [&mut one, &mut two], |one, two| {
        collector.sift(two.events());
        completed.extend(one.events().into_iter().filter_map(|event| match event {
            Event::Completed { token, .. } => Some(token.0),
            _ => None,
        }));
        completed.len() as u64 == total
    });
    let all: Vec<u64> = (0..total).collect();
    assert_eq!(collector.whole.remove(&0), Some(all.clone()));
    assert_eq!(completed, all);
}

pub(crate) fn what_comes_from_a_file_is_read_again_when_the_connection_broke<R: Rig>(rig: &R) {
    if !takes_files(rig) {
        return;
    }
    let (mut one, mut two) = rig.pair(Wish::default());
    let (total, bytes) = (12, 700_000);
    (0..total).for_each(|number| one.submit_file(number, 10, bytes, 0));
    let (mut collector, mut breaks, mut resumed, mut completed) = (Collector::default(), 0, 0, 0);
    until("everything", [&mut one, &mut two], |one, two| {
        collector.sift(two.events());
        for event in one.events() {
            assert!(!matches!(event, Event::Closed { .. } | Event::Unreadable { .. }), "{event:?}");
            resumed += usize::from(matches!(event, Event::Resumed { .. }));
            completed += u64::from(matches!(event, Event::Completed { .. }));
        }
        if collector.pieces > (breaks + 1) * 25 && breaks < 4 {
            breaks += 1;
            rig.break_off(one);
        }
        completed == total
    });
    assert!(breaks == 4 && resumed >= 4, "{breaks} breaks, {resumed} resumptions");
    assert_eq!(collector.whole[&0], (0..total).collect::<Vec<u64>>(), "once, and in order");
}

pub(crate) fn zeros_go_where_a_file_became_shorter_and_its_sender_is_told_once<R: Rig>(rig: &R) {
    if !takes_files(rig) {
        return;
    }
    let (mut one, mut two) = rig.pair(Wish::default());
    let (bytes, rest) = (1 << 20, 300_001);
    let file = file_of(1, bytes);
    let range = FileBytes::new(shared(&file), 0, bytes);
    let to = one.to().tag(1);
    one.transport.submit(to, range.into(), Token(1)).expect("the message is taken");
    one.submit(2, 1000, 0);
    file.set_len(rest as u64).expect("a shorter file");
    let (mut arrived, mut others, mut told) = (Vec::new(), Collector::default(), Vec::new());
    until("both messages", [&mut one, &mut two], |one, two| {
        for event in two.events() {
            match event {
                Event::Received { piece, .. } if piece.tag == 1 => arrived.extend_from_slice(&piece.lease),
                Event::Received { piece, .. } => others.take(&piece),
                _ => {}
            }
        }
        told.extend(one.events().into_iter().filter_map(|event| match event {
            Event::Unreadable { token, reason, .. } => Some((token.0, Some(reason))),
            Event::Completed { token, .. } => Some((token.0, None)),
            _ => None,
        }));
        told.iter().filter(|(_, reason)| reason.is_none()).count() == 2
    });
    assert!(is_content(1, 0, &arrived[..rest]), "what is there still arrives");
    assert!(arrived.len() == bytes && arrived[rest..].iter().all(|byte| *byte == 0), "and zeros behind it");
    assert_eq!(others.whole[&0], [2], "the next message is as it was");
    let [(1, Some(why)), (1, None), (2, None)] = &told[..] else { panic!("{told:?}") };
    assert!(why.contains("ends before byte"), "{why}");
}
