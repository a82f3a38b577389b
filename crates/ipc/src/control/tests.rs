//! Tests of the control thread against peers that are driven by hand.

mod grants;
mod joins;

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

use zcmi_mem::payload::Message as Payload;

use crate::directory::{Facts, Role, RuntimeDirectory};
use crate::name::{Incarnation, ServiceName};
use crate::scratch::{Child, PATIENCE, STRANGER, Scratch, soon};
use crate::socket::{Connection, Listener, MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, Received, SendOutcome};
use crate::wire::{Hello, Message, VERSION, VERSION_MIN};
use crate::{Process, Service, sys};

fn directory(path: impl AsRef<OsStr>) -> RuntimeDirectory {
    RuntimeDirectory::at(Path::new(path.as_ref())).expect("a directory")
}

fn service<M: Payload + ?Sized>(process: &Process, name: &str) -> Service<M> {
    Service::with(ServiceName::new(name).expect("a name"), process.clone()).expect("a service")
}

/// A runtime directory that other users reach.
fn shared_directory(scratch: &Scratch) -> std::path::PathBuf {
    let run = scratch.path().join("run");
    std::fs::create_dir(&run).expect("a directory");
    for path in [scratch.path(), &run] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o711)).expect("chmod");
    }
    run
}

/// A process's socket that does only what the test says.
struct Puppet {
    directory: RuntimeDirectory,
    listener: Listener,
}

impl Puppet {
    fn new(scratch: &Scratch) -> Self {
        Self::at(directory(scratch.path()))
    }

    fn at(directory: RuntimeDirectory) -> Self {
        let incarnation = Incarnation::random().expect("random bytes");
        let listener = Listener::bind(&directory, incarnation).expect("a listener");
        Self { directory, listener }
    }

    fn hello(&self) -> Message {
        let incarnation = self.listener.incarnation();
        Message::Hello(Hello { version_min: VERSION_MIN, version: VERSION, incarnation })
    }

    /// A connection of its own to a process, greeted.
    fn connect(&self, to: Incarnation) -> Connection {
        let connection = Connection::connect(&self.directory, to).expect("a connection");
        tell(&connection, &self.hello());
        connection
    }
}

fn tell(connection: &Connection, message: &Message) {
    soon("room for a message", || connection.send(&message.encode(), &[]).expect("send") == SendOutcome::Sent);
}

/// The next message, if one is there.
fn hear(connection: &Connection) -> Option<Message> {
    let mut buffer = [0; MAX_MESSAGE_BYTES];
    match connection.receive(&mut buffer).expect("recvmsg") {
        Received::Message { len, .. } => Some(Message::decode(&buffer[..len]).expect("a message")),
        _ => None,
    }
}

#[test]
fn a_busy_control_thread_is_as_patient_with_a_full_backlog_as_an_idle_one() {
    let scratch = Scratch::new();
    let puppet = Puppet::new(&scratch);
    let process = Process::open(directory(scratch.path())).expect("a participant");
    let name = ServiceName::new("s").expect("a name");
    let facts = Facts { version: 1, pid: 1, layout_hash: 1 };
    let incarnation = puppet.listener.incarnation();
    let _file = puppet.directory.create_participant(&name, incarnation, 1, Role::Publisher, &facts).expect("an entry");
    let backlog: Vec<_> =
        std::iter::from_fn(|| Connection::connect(&puppet.directory, incarnation).ok()).take(1000).collect();
    assert!(backlog.len() < 1000, "a backlog without bound");
    let subscriber = std::thread::scope(|scope| {
        let joining = scope.spawn(|| service::<u64>(&process, "s").subscriber().join());
        soon("the subscriber's file", || puppet.directory.participants(&name).expect("a listing").len() == 2);
        // Each question is a turn of the thread; a patience that counts turns would be used up by them.
        for _ in 0..400 {
            assert!(process.report().is_some());
        }
        let mut connections = Vec::new();
        soon("the join", || {
            connections.extend(std::iter::from_fn(|| puppet.listener.accept().expect("accept")));
            connections.iter().any(|connection| match hear(connection) {
                Some(Message::Hello(_)) => {
                    tell(connection, &puppet.hello());
                    false
                }
                message => matches!(message, Some(Message::Join(_))),
            })
        });
        joining.join().expect("a thread")
    });
    let mut subscriber = subscriber.expect("nobody refused");
    assert_eq!(subscriber.next_event(), None);
    drop(backlog);
}

#[test]
fn a_child_of_a_dead_peer_that_writes_for_ever_is_not_listened_to_for_ever() {
    let scratch = Scratch::new();
    let process = Process::open(directory(scratch.path())).expect("a participant");
    let mut peer = Child::start("control::tests::child_whose_child_writes_for_ever", scratch.path(), None, &scratch);
    peer.say(&process.incarnation().to_string());
    assert_eq!(peer.line(), "writing");
    peer.kill();
    // What it had not read when the peer died, and then not much more than it reads of the dead.
    let heard: usize = peer.line().parse().expect("a count");
    assert!(heard < 3 * 4096, "{heard} messages of a dead peer's child were taken");
    assert!(process.report().is_some());
}

#[test]
#[ignore = "a child of another test"]
fn child_whose_child_writes_for_ever() {
    let Some(path) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
    let (directory, to) = (directory(path), Child::heard().parse().expect("an incarnation"));
    let connection = Puppet::at(directory).connect(to);
    soon("the answer to the hello", || matches!(hear(&connection), Some(Message::Hello(_))));
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "control::tests::child_that_writes_for_ever", "--ignored", "--nocapture"]);
    // The socket becomes the child's standard input.
    let socket = std::os::fd::AsFd::as_fd(&connection).try_clone_to_owned().expect("dup");
    let mut writes_on = command.stdin(socket).spawn().expect("a child");
    // It ends when it is hung up on, whether or not we are there to see it.
    writes_on.wait().expect("wait");
}

#[test]
#[ignore = "a child of another test"]
fn child_that_writes_for_ever() {
    let Some(_) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
    // With so many descriptors to open and to close, reading takes longer than writing: the queue never runs dry.
    let message = Message::RoomWaiter { publisher: 1 }.encode();
    let output = std::io::stdout();
    let descriptors = [std::os::fd::AsFd::as_fd(&output); MAX_DESCRIPTORS];
    let end = Instant::now() + PATIENCE;
    let (full, parent) = (std::sync::Once::new(), rustix::process::getppid());
    std::thread::scope(|scope| {
        let write = || {
            let mut after = 0;
            while Instant::now() < end {
                let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
                let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
                let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
                assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
                let message = [std::io::IoSlice::new(&message)];
                match rustix::net::sendmsg(std::io::stdin(), &message, &mut control, flags) {
                    Ok(_) => after += usize::from(rustix::process::getppid() != parent),
                    Err(rustix::io::Errno::AGAIN) => full.call_once(|| Child::answer("writing")),
                    Err(_) => return after,
                }
            }
            usize::MAX / 4
        };
        let writers: Vec<_> = (0..3).map(|_| scope.spawn(write)).collect();
        let after: usize = writers.into_iter().map(|writer| writer.join().expect("a thread")).sum();
        Child::answer(&after.to_string());
    });
}

#[test]
fn a_publisher_that_stays_unfinished_counts_and_keeps_nobody_waiting_for_ever() {
    let scratch = Scratch::new();
    let puppet = Puppet::new(&scratch);
    let process = Process::open(directory(scratch.path())).expect("a participant");
    let other = service::<u64>(&process, "s").subscriber().join().expect("a subscriber");
    let services = scratch.path().join("s");
    let service_directory = std::fs::read_dir(&services).expect("s").next().expect("a service").expect("an entry");
    let unfinished = |whose: Incarnation| service_directory.path().join(format!(".new-{whose}.00000001.pub"));
    std::fs::write(unfinished(puppet.listener.incarnation()), "").expect("an unfinished file");
    let begin = Instant::now();
    let refused = service::<u64>(&process, "s").publisher().max_publishers(1).create().expect_err("it may be first");
    assert!(matches!(refused, crate::PublisherError::TooManyPublishers { limit: 1, .. }), "{refused}");
    assert!(begin.elapsed() >= Duration::from_millis(900), "it was waited for");
    drop(service::<u64>(&process, "s").publisher().max_publishers(2).create().expect("there is room for both"));
    // Of a dead one it is residue.
    drop(puppet);
    let dead = Incarnation::random().expect("random bytes");
    std::fs::write(unfinished(dead), "").expect("an unfinished file");
    drop(service::<u64>(&process, "s").publisher().max_publishers(1).create().expect("nobody else is there"));
    drop(other);
    assert_eq!(std::fs::read_dir(&services).expect("s").count(), 0, "nothing is left");
}

/// Regions of ours that this process has open, those of tests beside this one included.
fn open_regions() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").expect("a listing").flatten();
    open.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().contains("memfd:")))
        .count()
}

#[test]
fn a_stranger_that_reads_nothing_takes_few_descriptors() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: only root can start a process of another user");
        return;
    }
    let scratch = Scratch::new();
    let run = shared_directory(&scratch);
    let process = Process::open(directory(&run)).expect("a participant");
    let publisher = service::<[u8]>(&process, "s").publisher().allow(crate::Who::User(STRANGER));
    let publisher = publisher.create().expect("a publisher");
    let before = open_regions();
    let mut stranger = Child::start("control::tests::child_that_asks_and_never_reads", &run, Some(STRANGER), &scratch);
    stranger.say(&process.incarnation().to_string());
    let mut most = 0;
    std::thread::scope(|scope| {
        let done = scope.spawn(move || stranger.line());
        while !done.is_finished() {
            most = most.max(open_regions());
        }
        assert_eq!(done.join().expect("a thread"), "hung up on");
    });
    assert!(most < before + 200, "{most} regions were open, {before} before");
    soon("the stranger is nobody's reader", || publisher.subscribers() == 0);
}

/// A subscriber's join to the first publisher of that process, with its block at the beginning of the region.
fn join_by_hand(region: &zcmi_mem::region::Region, to: Incarnation) -> crate::wire::Join {
    let block = region.view::<zcmi_ring::ReaderBlock>(region.data_offset(), 1).expect("a block");
    block.at(0).reset([to.as_u128() as u64, (to.as_u128() >> 64) as u64, 1]);
    crate::wire::Join {
        publisher: 1,
        subscriber: 1,
        service: ServiceName::new("s").expect("a name"),
        drop_oldest: true,
        history: 0,
        holds: 0,
        record: <[u8]>::message_record().encode(),
        region: crate::wire::RegionName { id: region.id(), bytes: region.len() as u64, attached: true },
        block: region.data_offset() as u64,
        waiter: false,
    }
}

#[test]
#[ignore = "a child of another test"]
fn child_that_asks_and_never_reads() {
    let Some(path) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
    let to: Incarnation = Child::heard().parse().expect("an incarnation");
    // A stranger is who it says as long as the socket of that name is its own.
    let puppet = Puppet::at(directory(path));
    let connection = puppet.connect(to);
    soon("the answer to the hello", || matches!(hear(&connection), Some(Message::Hello(_))));
    let region = zcmi_mem::region::Region::options(4096).create().expect("a region");
    let mut join = join_by_hand(&region, to);
    let descriptor = region.descriptor().expect("a memfd");
    let first = Message::Join(Box::new(join.clone())).encode();
    assert_eq!(connection.send(&first, &[descriptor]).expect("send"), SendOutcome::Sent);
    let mut accepted = None;
    soon("the grant", || {
        match hear(&connection) {
            Some(Message::Accepted(grant)) => accepted = Some(grant),
            Some(Message::Refused(refused)) => panic!("{refused:?}"),
            _ => {}
        }
        accepted.is_some()
    });
    let accepted = accepted.expect("a grant");
    join.region.attached = false;
    let pool = accepted.pool.as_ref().map(|pool| pool.region);
    let mut messages = vec![Message::Leave(crate::wire::LaneName { publisher: 1, subscriber: 1 })];
    let named = [accepted.lane, accepted.ring_region].into_iter().chain(pool);
    messages.extend(named.map(|name| Message::Unmapped(name.id)));
    messages.push(Message::Join(Box::new(join)));
    let end = Instant::now() + PATIENCE;
    let hung_up = 'all: loop {
        for message in &messages {
            loop {
                match connection.send(&message.encode(), &[]) {
                    Ok(SendOutcome::Sent) => break,
                    Ok(SendOutcome::WouldBlock) => std::thread::yield_now(),
                    Err(_) => break 'all true,
                }
                if Instant::now() > end {
                    break 'all false;
                }
            }
        }
    };
    Child::answer(if hung_up { "hung up on" } else { "heard for ever" });
}
