//! Joins of another user that ask in vain, or whose connection ends in the middle of them.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SealFlags};
use zcmi_mem::region::Region;
use zcmi_ring::ReaderBlock;
use zcmi_ring::sync::Ordering;

use super::*;
use crate::Who;
use crate::control::Control;
use crate::control::links::Descriptors;
use crate::wire::{Join, LaneName, RefusalCode};

/// A control thread that is no thread: it does what the test says, when the test says it.
struct ByHand(Control);

impl Drop for ByHand {
    fn drop(&mut self) {
        // As with a thread that ended: nobody waits for its answers any more.
        self.0.mailbox.close();
    }
}

impl ByHand {
    /// Does whatever there is to do, without waiting.
    fn turn(&mut self) {
        let control = &mut self.0;
        for command in control.mailbox.take() {
            control.obey(command);
        }
        control.accept();
        for link in control.links.keys().copied().collect::<Vec<_>>() {
            control.serve_link(link);
        }
        control.consider_again();
        control.end_introductions();
    }

    /// Turns for as long as another thread works.
    fn during<R: Send>(&mut self, work: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            let working = scope.spawn(work);
            while !working.is_finished() {
                self.turn();
                std::thread::yield_now();
            }
            working.join().expect("a thread")
        })
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits");
    (0..text.len()).step_by(2).map(digits).collect()
}

#[test]
fn a_stranger_that_is_hung_up_on_inside_its_join_is_nobodys_reader_and_gets_nothing() {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIP: only root can start a process of another user");
    }
    for over_the_socket in [true, false] {
        let scratch = Scratch::new();
        let run = shared_directory(&scratch);
        let honest = Process::open(directory(&run)).expect("a participant");
        let (process, control) = Process::prepare(directory(&run)).expect("a participant");
        // Dropped after the thread that is none, so that it waits for no answer of it.
        let mut publisher;
        let mut hand = ByHand(control);
        publisher = hand.during(|| {
            let publisher = service::<[u8]>(&process, "s").publisher().capacity(4).allow(Who::User(STRANGER));
            publisher.create().expect("a publisher")
        });
        let mut reader = hand.during(|| service::<[u8]>(&honest, "s").subscriber().join().expect("a subscriber"));
        let mut publish = |count: u32| {
            for _ in 0..count {
                publisher.publish_copy_of(&[7; 100]).expect("nobody holds it up");
                soon("the message", || reader.try_receive().expect("no error").is_some());
            }
            publisher.subscribers()
        };

        let mut rogue =
            Child::start("control::tests::joins::child_that_lies_and_asks_again", &run, Some(STRANGER), &scratch);
        rogue.say(&process.incarnation().to_string());
        assert_eq!(hand.during(|| rogue.line()), "reads, and lies");
        // The lane finds it out; the control thread is told so, and has not looked.
        assert_eq!(publish(8), 2);
        rogue.say("again");
        let Ok(Message::Join(join)) = Message::decode(&bytes_of(&rogue.line())) else { panic!("no join") };

        let control = &mut hand.0;
        let strangers: HashSet<_> = control.links.keys().filter(|&&link| control.stranger_at(link).is_some()).collect();
        assert_eq!(strangers.len(), 1);
        let link = **strangers.iter().next().expect("one");
        let readers_of = |control: &Control, peer| control.publishers[&1].has_reader_of(peer);
        let peer = *control.peers.keys().find(|&&peer| control.stranger(peer).is_some()).expect("its process");
        assert!(readers_of(control, peer));
        if over_the_socket {
            control.serve_link(link);
        } else {
            let refused = control.try_join(link, peer, &join, &mut Descriptors::new()).expect_err("it is hung up on");
            assert_eq!(refused, (RefusalCode::Protocol, "the connection has ended".to_owned()));
        }
        assert!(!control.links.contains_key(&link));
        assert!(!readers_of(control, peer), "neither its first nor its second reader is left");
        assert_eq!(rogue.line(), "reader 1 refused");
        assert_eq!(publish(8), 1, "the other reader is there and is not held up");
        hand.turn();
        assert_eq!(publish(8), 1);
    }
}

#[test]
#[ignore = "a child of another test"]
fn child_that_lies_and_asks_again() {
    let Some(path) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
    let to: Incarnation = Child::heard().parse().expect("an incarnation");
    let puppet = Puppet::at(directory(path));
    let connection = puppet.connect(to);
    let region = Region::options(4096).create().expect("a region");
    let mut join = join_by_hand(&region, to);
    let descriptor = region.descriptor().expect("a memfd");
    let first = Message::Join(Box::new(join.clone())).encode();
    assert_eq!(connection.send(&first, &[descriptor]).expect("send"), SendOutcome::Sent);
    soon("the grant", || matches!(hear(&connection), Some(Message::Accepted(_))));
    let block = region.view::<ReaderBlock>(region.data_offset(), 1).expect("a block");
    block.at(0).cursor.store(1 << 40, Ordering::Release);
    Child::answer("reads, and lies");

    assert_eq!(Child::heard(), "again");
    (join.subscriber, join.region.attached) = (2, false);
    let second = Message::Join(Box::new(join)).encode();
    assert_eq!(connection.send(&second, &[]).expect("send"), SendOutcome::Sent);
    Child::answer(&hexadecimal(&second));
    // All that comes until the connection ends.
    let (mut heard, mut buffer) = (Vec::new(), [0; MAX_MESSAGE_BYTES]);
    soon("the end of the connection", || match connection.receive(&mut buffer) {
        Ok(Received::Empty) => false,
        Ok(Received::Message { len, descriptors }) => {
            heard.push(match Message::decode(&buffer[..len]).expect("a message") {
                Message::Refused(refused) if descriptors.is_empty() => format!("reader {} refused", refused.subscriber),
                other => format!("{other:?} with {} descriptors", descriptors.len()),
            });
            false
        }
        Ok(_) => true,
        // That it had not read everything when it hung up on us is told by an error, once, and before what it had sent.
        Err(_) => false,
    });
    Child::answer(&heard.join(", "));
}

/// A join spoilt in one way, and what it is refused for.
type Vain = (fn(&mut Join), RefusalCode, &'static str);

const IN_VAIN: &[Vain] = &[
    (|join| join.publisher = 99, RefusalCode::Gone, "has ended"),
    (|join| join.service = ServiceName::new("t").expect("a name"), RefusalCode::Protocol, "another service"),
    (
        |join| (join.publisher, join.service) = (2, ServiceName::new("t").expect("a name")),
        RefusalCode::Rights,
        "may not subscribe to `t`",
    ),
    (|join| join.drop_oldest = false, RefusalCode::Reliable, "may not hold this publisher up"),
    (|join| join.waiter = true, RefusalCode::Protocol, "not by an eventfd"),
    (|join| join.region.bytes = 2 << 20, RefusalCode::Protocol, "too large"),
];

#[test]
fn what_a_stranger_asks_in_vain_is_refused_before_its_descriptor_is_looked_at() {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIP: only root can start a process of another user");
    }
    let scratch = Scratch::new();
    let run = shared_directory(&scratch);
    let process = Process::open(directory(&run)).expect("a participant");
    let allowed = service::<[u8]>(&process, "s").publisher().allow(Who::User(STRANGER)).create().expect("a publisher");
    let own = service::<[u8]>(&process, "t").publisher().create().expect("a publisher");
    let mut stranger = Child::start("control::tests::joins::child_that_asks_in_vain", &run, Some(STRANGER), &scratch);
    stranger.say(&process.incarnation().to_string());
    // A descriptor that is no region ends who sent it, if it is looked at.
    for (_, _, reason) in IN_VAIN {
        assert_eq!(stranger.line(), "refused, and may send its region again", "{reason}");
        assert_eq!((allowed.subscribers(), own.subscribers()), (0, 0));
        // It asks the next only now: the last of its joins is granted.
        stranger.say("next");
    }
    assert_eq!(stranger.line(), "granted");
    assert_eq!((allowed.subscribers(), own.subscribers()), (1, 0));
}

#[test]
#[ignore = "a child of another test"]
fn child_that_asks_in_vain() {
    let Some(path) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
    let to: Incarnation = Child::heard().parse().expect("an incarnation");
    let puppet = Puppet::at(directory(path));
    let connection = puppet.connect(to);
    soon("the answer to the hello", || matches!(hear(&connection), Some(Message::Hello(_))));
    let region = Region::options(4096).create().expect("a region");
    let pipe: OwnedFd = std::io::pipe().expect("a pipe").0.into();
    let next = || {
        let mut next = None;
        soon("an answer", || {
            next = hear(&connection);
            next.is_some()
        });
        next.expect("an answer")
    };
    for (spoil, code, reason) in IN_VAIN {
        let mut join = join_by_hand(&region, to);
        spoil(&mut join);
        let lane = LaneName { publisher: join.publisher, subscriber: join.subscriber };
        let message = Message::Join(Box::new(join)).encode();
        assert_eq!(connection.send(&message, &[pipe.as_fd()]).expect("send"), SendOutcome::Sent);
        assert_eq!(next(), Message::Unmapped(region.id()), "{reason}");
        match next() {
            Message::Refused(refused) => {
                assert!(refused.text.contains(reason), "`{reason}` for: {}", refused.text);
                let whose = LaneName { publisher: refused.publisher, subscriber: refused.subscriber };
                assert_eq!((refused.code, whose), (*code, lane));
            }
            other => panic!("{other:?}"),
        }
        Child::answer("refused, and may send its region again");
        assert_eq!(Child::heard(), "next");
    }
    let join = Message::Join(Box::new(join_by_hand(&region, to))).encode();
    let descriptor = region.descriptor().expect("a memfd");
    assert_eq!(connection.send(&join, &[descriptor]).expect("send"), SendOutcome::Sent);
    let answer = next();
    assert!(matches!(answer, Message::Accepted(_)), "{answer:?}");
    Child::answer("granted");
    Child::wait_for_parent();
}

/// Tries whatever could change memory behind a descriptor; returns what the kernel allowed.
fn allowed_by(descriptor: BorrowedFd<'_>) -> Vec<&'static str> {
    let file = File::from(descriptor.try_clone_to_owned().expect("dup"));
    let bytes = file.metadata().expect("fstat").len();
    let mut allowed = sys::testing::allowed_by_mapping(descriptor, bytes as usize);
    let mut note = |what, succeeded: bool| allowed.extend(succeeded.then_some(what));
    note("write", file.write_at(&[0xff; 64], 0).is_ok());
    note("write at the end", file.write_at(&[0xff; 64], bytes).is_ok());
    note("shrink", file.set_len(0).is_ok() || file.set_len(bytes - 1).is_ok());
    note("grow", file.set_len(bytes + 4096).is_ok());
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    note("punch", rustix::fs::fallocate(&file, punch, 4096, 4096).is_ok());
    note("allocate past the end", rustix::fs::fallocate(&file, FallocateFlags::empty(), bytes, 4096).is_ok());
    note("seal", rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE).is_ok());
    allowed
}

#[test]
fn a_stranger_changes_nothing_of_what_it_was_given_by_write_truncate_punch_reopen_or_remap() {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIP: only root can start a process of another user");
    }
    let scratch = Scratch::new();
    let run = shared_directory(&scratch);
    let process = Process::open(directory(&run)).expect("a participant");
    let mut publisher = service::<[u8]>(&process, "s").publisher().allow(Who::User(STRANGER)).create().expect("one");
    let mut reader = service::<[u8]>(&process, "s").subscriber().join().expect("a subscriber");
    publisher.publish_copy_of(&[5; 3000]).expect("room");
    let mut stranger =
        Child::start("control::tests::joins::child_that_tries_to_change", &run, Some(STRANGER), &scratch);
    stranger.say(&process.incarnation().to_string());
    let regions: usize = stranger.line().parse().expect("a number of regions");
    assert!(regions > 0);
    for _ in 0..regions {
        assert_eq!(stranger.line(), "as given: []");
        // By `/proc` it has it anew, if at all, with the right to write: that is worth nothing.
        assert_eq!(stranger.line(), "opened anew: []");
    }
    let own = stranger.line();
    for tried in ["map writable", "make writable", "madvise", "write, ", "shrink", "grow", "punch", "allocate", "seal"]
    {
        assert!(own.contains(tried), "`{tried}` is no attempt: {own}");
    }
    // What was under way is whole, and so is what comes.
    publisher.publish_copy_of(&[6; 3000]).expect("room");
    for byte in [5, 6] {
        let sample = reader.try_receive().expect("no error").expect("a message");
        assert_eq!(*sample, [byte; 3000]);
    }
}

#[test]
#[ignore = "a child of another test"]
fn child_that_tries_to_change() {
    let Some(path) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
    let to: Incarnation = Child::heard().parse().expect("an incarnation");
    let puppet = Puppet::at(directory(path));
    let connection = puppet.connect(to);
    let region = Region::options(4096).create().expect("a region");
    let join = Message::Join(Box::new(join_by_hand(&region, to))).encode();
    let descriptor = region.descriptor().expect("a memfd");
    assert_eq!(connection.send(&join, &[descriptor]).expect("send"), SendOutcome::Sent);
    let (mut given, mut buffer) = (Vec::new(), [0; MAX_MESSAGE_BYTES]);
    soon("the grant", || match connection.receive(&mut buffer).expect("recvmsg") {
        Received::Message { len, descriptors } => {
            given = descriptors;
            matches!(Message::decode(&buffer[..len]), Ok(Message::Accepted(_)))
        }
        _ => false,
    });
    Child::answer(&given.len().to_string());
    for descriptor in &given {
        Child::answer(&format!("as given: {:?}", allowed_by(descriptor.as_fd())));
        let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let mut allowed = Vec::new();
        // Opening it to be emptied fails, whatever its mode.
        allowed.extend(OpenOptions::new().write(true).truncate(true).open(&path).is_ok().then_some("empty"));
        if let Ok(anew) = OpenOptions::new().read(true).write(true).open(&path) {
            allowed.extend(allowed_by(anew.as_fd()));
        }
        Child::answer(&format!("opened anew: {allowed:?}"));
    }
    // The same attempts succeed where no seal is in the way, so that they are attempts.
    let unsealed = rustix::fs::memfd_create("own", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("memfd_create");
    rustix::fs::ftruncate(&unsealed, 16384).expect("ftruncate");
    Child::answer(&format!("its own: {}", allowed_by(unsealed.as_fd()).join(", ")));
}
