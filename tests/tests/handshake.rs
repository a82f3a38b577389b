//! What comes over a control socket that no honest peer sends, and peers that are none of ours.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use zcmi_tests::look;
use zcmi_tests::rig::{Scratch, Track, Worker, wait_until};
use zcmi_tests::seed::{Length, Random};

/// A user that nobody is.
const STRANGER: u32 = 61_001;

/// The control sockets in a runtime directory.
fn sockets(scratch: &Scratch) -> Vec<PathBuf> {
    let entries = fs::read_dir(scratch.path().join("p")).expect("the sockets' directory");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

/// A connection to a control socket, or nothing while its queue is full.
fn connect(path: &PathBuf) -> Option<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("socket");
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path).expect("an address")) {
        Ok(()) => Some(socket),
        Err(Errno::AGAIN) => None,
        Err(errno) => panic!("connect to {}: {errno}", path.display()),
    }
}

/// Sends one message, whatever becomes of it.
fn send(socket: &OwnedFd, bytes: &[u8]) {
    match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(_) | Err(Errno::PIPE | Errno::CONNRESET | Errno::AGAIN | Errno::MSGSIZE) => {}
        Err(errno) => panic!("send: {errno}"),
    }
}

/// The hello of an honest process: what it is, up to the incarnation's first byte.
fn hello() -> Vec<u8> {
    let mut bytes = vec![1, 0];
    bytes.extend(b"zcmi/ipc");
    bytes.extend([1, 0, 1, 0]);
    bytes.extend(0x0102_0304_u32.to_ne_bytes());
    bytes.extend([0xab; 16]);
    bytes
}

/// A pair that exchanges messages all the while.
struct Pair {
    one: Worker,
    other: Worker,
}

impl Pair {
    fn start(scratch: &Scratch) -> Self {
        let (mut one, mut other) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
        one.ask("pub id=p service=there kind=w1 tag=1");
        other.ask("pub id=p service=back kind=w1 tag=2");
        one.ask("sub id=s service=back kind=w1 wait=park");
        other.ask("sub id=s service=there kind=w1 wait=park");
        one.ask("wait-subscribers id=p n=1 ms=5000");
        other.ask("wait-subscribers id=p n=1 ms=5000");
        other.tell("echo to=p from=s");
        Self { one, other }
    }

    /// Begins a number of exchanges.
    fn begin(&mut self, count: u64) {
        self.one.tell(format!("ping to=p from=s n={count} delay_us=50 seed=1"));
    }

    /// Waits until they are done.
    fn end(&mut self, count: u64) {
        assert_eq!(self.one.hear().number("n"), count);
    }

    fn pids(&self) -> [u32; 2] {
        [self.one.pid(), self.other.pid()]
    }
}

#[test]
fn garbage_on_the_socket_disturbs_nobody_and_leaves_nothing() {
    let scratch = Scratch::new();
    let mut random = Random::of_this_run();
    let mut pair = Pair::start(&scratch);
    pair.begin(200);
    pair.end(200);
    let rounds = Length::of_this_run().pick(300, 2_000, 50_000);
    let usage = |pair: &Pair| pair.pids().map(|pid| (look::descriptors(pid).len(), look::resident_bytes(pid)));
    let before = usage(&pair);
    pair.begin(2_000);
    let paths = sockets(&scratch);
    assert_eq!(paths.len(), 2);
    for round in 0..rounds {
        let path = &paths[round as usize % 2];
        let Some(socket) = connect(path) else { continue };
        // Before or after an honest hello; a length of its own each time; now and then a message that begins well.
        if round % 3 == 0 {
            send(&socket, &hello());
        }
        let len = if round < 300 { round } else { random.below(9_000) } as usize;
        let mut bytes: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
        if round % 2 == 0 && len >= 2 {
            bytes[..2].copy_from_slice(&(random.below(18) as u16).to_le_bytes());
        }
        send(&socket, &bytes);
        if round % 5 == 0 {
            let whole = hello();
            send(&socket, &whole[..random.below(whole.len() as u64) as usize]);
        }
        if round % 7 == 0 {
            let mut wrong = hello();
            wrong[random.below(14) as usize] ^= 0xff;
            send(&socket, &wrong);
        }
    }
    pair.end(2_000);
    // All those connections are gone again, and the memory did not grow with them.
    wait_until("the connections are closed", || {
        usage(&pair).iter().zip(&before).all(|(now, before)| now.0 <= before.0 + 2)
    });
    for (now, before) in usage(&pair).iter().zip(&before) {
        assert!(now.1 < before.1 + (4 << 20), "memory went from {} to {} bytes", before.1, now.1);
    }
}

#[test]
fn a_hundred_connections_that_never_say_who_they_are_disturb_nobody() {
    let scratch = Scratch::new();
    let mut pair = Pair::start(&scratch);
    let before = pair.pids().map(|pid| look::descriptors(pid).len());
    pair.begin(2_000);
    let mut silent = Vec::new();
    for path in sockets(&scratch) {
        for _ in 0..100 {
            // The queue may be full for a moment.
            wait_until("a place in the queue", || connect(&path).map(|socket| silent.push(socket)).is_some());
        }
    }
    // Somebody who comes now is served.
    let mut late = Worker::start(scratch.path());
    late.ask("sub id=s service=there kind=w1 drop_oldest=1");
    assert_eq!(late.ask("publishers id=s").number("n"), 1);
    pair.end(2_000);
    for (pid, before) in pair.pids().into_iter().zip(before) {
        let now = look::descriptors(pid).len();
        assert!(now < before + 50, "{pid} went from {before} to {now} descriptors");
    }
    drop(silent);
    pair.begin(100);
    pair.end(100);
}

#[test]
fn another_layout_is_refused_and_the_field_is_named() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    writer.ask("pub id=p service=s kind=w2 tag=1");
    for kind in ["w1", "w3", "w100", "bytes"] {
        let refused = reader.ask_in_vain(format!("sub id=s service=s kind={kind}"));
        assert!(refused.contains(&writer.pid().to_string()), "{refused}");
        let other = reader.ask_in_vain(format!("pub id=p service=s kind={kind}"));
        assert!(other.contains("OtherLayout"), "{other}");
    }
    // A subscriber that is there first is refused by the publisher that comes, and stays for others.
    reader.ask("sub id=s service=t kind=w1");
    writer.ask("pub id=q service=t kind=w2 tag=1");
    assert_eq!(writer.ask("subscribers id=q").number("n"), 0);
    let answer = reader.ask("collect id=s n=1 ms=50 or_time=1");
    assert!(answer.happened().iter().any(|one| one.what == "refused" && one.pid == writer.pid()), "{}", answer.whole());
    reader.ask("sub id=right service=s kind=w2");
    writer.ask("send id=p n=1");
    assert_eq!(reader.ask("collect id=right n=1").tracks(), [(1, Track::whole(0, 1))].into());
}

#[test]
fn a_field_of_another_name_is_named_in_the_refusal() {
    use zcmi::prelude::*;
    use zcmi::{Process, SubscriberError, directory::RuntimeDirectory, name::ServiceName};
    mod ours {
        use zcmi::prelude::*;
        #[payload]
        pub(crate) struct Tick {
            pub(crate) price: u64,
            pub(crate) size: u32,
            pub(crate) venue: [u8; 4],
        }
    }
    mod theirs {
        use zcmi::prelude::*;
        #[payload]
        pub(crate) struct Tick {
            pub(crate) price: u64,
            pub(crate) amount: u32,
            pub(crate) venue: [u8; 4],
        }
    }
    let scratch = Scratch::new();
    let process = Process::open(RuntimeDirectory::at(scratch.path()).expect("a directory")).expect("a participant");
    let name = ServiceName::new("ticks").expect("a name");
    let publisher = Service::<ours::Tick>::with(name.clone(), process.clone()).expect("a service").publisher().create();
    let refused = Service::<theirs::Tick>::with(name, process).expect("a service").subscriber().join();
    match refused.expect_err("the layouts differ") {
        SubscriberError::Refused(refusal) => {
            assert!(refusal.is_layout());
            assert!(refusal.text.contains("size") || refusal.text.contains("amount"), "{}", refusal.text);
        }
        other => panic!("{other}"),
    }
    drop(publisher);
}

#[test]
fn a_peer_of_another_user_is_refused_and_disturbs_nobody() {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIP: starting a process of another user takes root");
    }
    let scratch = Scratch::new();
    scratch.set_mode(0o711);
    let mut pair = Pair::start(&scratch);
    pair.begin(500);
    let mut stranger = Worker::start_as(STRANGER, scratch.path());
    // It may take part for itself, and neither gets nor gives anything of ours.
    stranger.tell("sub id=s service=there kind=w1");
    match stranger.try_hear() {
        Err(refused) => assert!(refused.contains("refused") || refused.contains("right"), "{refused}"),
        Ok(_) => assert_eq!(stranger.ask("publishers id=s").number("n"), 0),
    }
    stranger.ask("pub id=p service=back kind=w1 tag=7");
    assert_eq!(stranger.ask("subscribers id=p").number("n"), 0);
    assert!(!stranger.is_heard_within(Duration::from_millis(10)));
    pair.end(500);
    let mine = look::memfds(&pair.pids());
    let mut both = pair.pids().to_vec();
    both.push(stranger.pid());
    assert_eq!(look::memfds(&both), mine + look::memfds(&[stranger.pid()]), "no memory is shared with a stranger");
}
