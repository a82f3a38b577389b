//! The suite in processes to which the kernel refuses what a path needs: everything arrives all the same, by plain
//! writes, and the facts say why.

use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use zcmi_net::frame::HEADER_BYTES;

use super::*;
use crate::forked::in_child;
use crate::forked::sys::{self, Denial, deny};

/// What is refused.
#[derive(Clone, Copy, Debug)]
enum Refused {
    Call {
        call: i64,
        errno: i32,
    },
    /// `SO_ZEROCOPY`.
    ZeroCopyOption,
    /// More than 64 KiB of locked memory.
    LockedMemory,
    /// io_uring, by an operator who switched it off.
    Switch,
    /// Memory for what sockets note, of which the operator allows a byte.
    OptionMemory,
    /// All that only some processes may do.
    Capabilities,
    All,
}

const URING: [PathKind; 3] = [PathKind::UringSend, PathKind::UringZeroCopy, PathKind::UringFixed];

impl Refused {
    fn denials(self) -> Vec<Denial> {
        match self {
            Self::Call { call, errno } => vec![Denial { call, argument: None, errno }],
            Self::ZeroCopyOption => {
                let option = Some((2, libc::SO_ZEROCOPY as u32));
                vec![Denial { call: libc::SYS_setsockopt, argument: option, errno: libc::ENOPROTOOPT }]
            }
            // The switch cannot be turned without turning it for everybody: what it does is done here, and what it says
            // is shown.
            Self::Switch => vec![Denial { call: libc::SYS_io_uring_setup, argument: None, errno: libc::EPERM }],
            Self::LockedMemory | Self::OptionMemory | Self::Capabilities => Vec::new(),
            Self::All => [libc::SYS_io_uring_setup, libc::SYS_sendfile, libc::SYS_splice, libc::SYS_vmsplice]
                .map(|call| Denial { call, argument: None, errno: libc::EPERM })
                .into_iter()
                .chain(Self::ZeroCopyOption.denials())
                .collect(),
        }
    }

    fn limits_memory(self) -> bool {
        matches!(self, Self::LockedMemory | Self::All)
    }

    fn apply(self) {
        if matches!(self, Self::Switch) {
            let shown = std::env::temp_dir().join(format!("zcmi-switch-{}", std::process::id()));
            std::fs::write(&shown, "2\n").expect("a file");
            let answer = sys::show(&shown, "/proc/sys/kernel/io_uring_disabled".as_ref());
            std::fs::remove_file(&shown).expect("the file");
            answer.expect("a mount");
        }
        if matches!(self, Self::OptionMemory) || (matches!(self, Self::All) && is_root()) {
            sys::own_network().expect("a network");
            std::fs::write("/proc/sys/net/core/optmem_max", "1").expect("the limit of this network");
        }
        if matches!(self, Self::Capabilities | Self::All) {
            let none = CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: CapabilitySet::empty(),
                inheritable: CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, none).expect("capset");
        }
        if self.limits_memory() {
            let mut sets = rustix::thread::capabilities(None).expect("capget");
            sets.effective.remove(CapabilitySet::IPC_LOCK);
            rustix::thread::set_capabilities(None, sets).expect("capset");
            let maximum = rustix::process::getrlimit(Resource::Memlock).maximum;
            let limit = Rlimit { current: Some(64 << 10), maximum };
            rustix::process::setrlimit(Resource::Memlock, limit).expect("less");
        }
        let denials = self.denials();
        if !denials.is_empty() {
            deny(&denials).expect("a filter");
        }
    }
}

/// Streams by a path that is refused.
struct Denied {
    streams: Streams,
    /// Whether every send by the path is refused, not only those that need much.
    path: PathKind,
    always: bool,
}

impl Rig for Denied {
    type Transport = StreamTransport;

    fn pair(&self, wish: Wish) -> (End<StreamTransport>, End<StreamTransport>) {
        self.streams.pair(wish)
    }

    fn break_off(&self, end: &mut End<StreamTransport>) {
        self.streams.break_off(end);
    }

    fn went_by_the_path(&self, end: &End<StreamTransport>) -> bool {
        let facts = end.transport.facts(end.connection).expect("it is there");
        let path = self.path as usize;
        let (counts, refusal) = (facts.counts.paths[path], &facts.refusals[path]);
        let reason = refusal.as_ref().is_some_and(|reason| !reason.is_empty());
        let text = format!("{}: {} refused, {} sent: {refusal:?}\n", self.path, counts.refused, counts.sends);
        let _ = rustix::io::write(std::io::stdout(), text.as_bytes());
        let plain = facts.counts.paths[PathKind::Write as usize].bytes > 0 || counts.refused == 0;
        // A header is accepted before the payload behind it is refused.
        let headers_alone = counts.bytes <= counts.sends * HEADER_BYTES as u64;
        (!self.always || (headers_alone && counts.refused > 0)) && reason == (counts.refused > 0) && plain
    }
}

fn suite(refused: Refused, paths: &[PathKind], unix: bool) {
    for &path in paths {
        in_child(&format!("{path} with {refused:?}"), || {
            refused.apply();
            let always = !matches!(refused, Refused::LockedMemory | Refused::Capabilities);
            let rig = Denied { streams: Streams { unix, path: Some(path) }, path, always };
            conformance::messages_keep_their_bounds_and_their_order(&rig);
            conformance::a_graceful_end_loses_nothing(&rig);
            conformance::a_broken_connection_goes_on_and_each_message_arrives_once(&rig);
        });
    }
}

#[test]
fn without_io_uring_everything_is_written() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        suite(Refused::Call { call: libc::SYS_io_uring_setup, errno }, &URING, false);
    }
}

#[test]
fn with_a_ring_that_may_not_be_entered_everything_is_written() {
    suite(Refused::Call { call: libc::SYS_io_uring_enter, errno: libc::EPERM }, &URING, false);
}

#[test]
fn without_the_zero_copy_option_everything_is_written() {
    suite(Refused::ZeroCopyOption, &[PathKind::ZeroCopy], false);
}

#[test]
fn with_little_memory_to_lock_everything_arrives() {
    suite(Refused::LockedMemory, &[PathKind::ZeroCopy, PathKind::UringZeroCopy, PathKind::UringFixed], false);
}

#[test]
fn with_io_uring_switched_off_everything_is_written_and_the_switch_is_named() {
    if !is_root() {
        return;
    }
    in_child("the reason", || {
        Refused::Switch.apply();
        let support = zcmi_net::uring::support().to_string();
        assert!(support.contains("kernel.io_uring_disabled is 2"), "{support}");
    });
    suite(Refused::Switch, &URING, false);
}

#[test]
fn with_no_memory_for_notes_of_zero_copy_everything_is_written() {
    if is_root() {
        suite(Refused::OptionMemory, &[PathKind::ZeroCopy], false);
        // The others note nothing there.
        in_child("another path", || {
            Refused::OptionMemory.apply();
            let streams = Streams { unix: false, path: Some(PathKind::UringZeroCopy) };
            conformance::messages_keep_their_bounds_and_their_order(&streams);
        });
    }
}

#[test]
fn without_any_capability_everything_arrives() {
    suite(Refused::Capabilities, &PathKind::ALL, false);
    suite(Refused::Capabilities, &[PathKind::Write, PathKind::SendFile, PathKind::Splice], true);
}

/// Whether this process may change what the kernel shows and allows it; says so if not.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("SKIP: a network or a mount of its own takes root");
    }
    is_root
}

#[test]
fn without_sendfile_splice_or_vmsplice_everything_is_written() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        suite(Refused::Call { call: libc::SYS_sendfile, errno }, &[PathKind::SendFile], errno == libc::EPERM);
        suite(Refused::Call { call: libc::SYS_splice, errno }, &[PathKind::Splice], errno == libc::EPERM);
        suite(Refused::Call { call: libc::SYS_vmsplice, errno }, &[PathKind::Splice], errno == libc::ENOSYS);
    }
}

#[test]
fn without_sendfile_messages_from_files_are_read_and_counted() {
    in_child("sendfile for a file", || {
        Refused::Call { call: libc::SYS_sendfile, errno: libc::EPERM }.apply();
        let rig = Streams { unix: false, path: None };
        conformance::messages_from_files_arrive_among_others_in_order(&rig);
        conformance::what_comes_from_a_file_is_read_again_when_the_connection_broke(&rig);
        conformance::zeros_go_where_a_file_became_shorter_and_its_sender_is_told_once(&rig);
        let (mut one, mut two) = rig.pair(Wish::default());
        one.submit_file(1, 0, 200_000, 0);
        let mut collector = conformance::Collector::default();
        conformance::until("the message", [&mut one, &mut two], |one, two| {
            collector.sift(two.events());
            one.events().iter().any(|event| matches!(event, Event::Completed { .. }))
        });
        assert_eq!(collector.messages, 1);
        let facts = one.transport.facts(one.connection).expect("it is there");
        assert_eq!(facts.counts.copied_user, 200_000);
        let index = PathKind::SendFile as usize;
        assert!(facts.counts.paths[index].refused > 0 && facts.refusals[index].is_some(), "{facts:?}");
    });
}

#[test]
fn without_any_of_them_everything_is_written() {
    let paths = [PathKind::ZeroCopy, PathKind::SendFile, PathKind::Splice];
    suite(Refused::All, &paths, false);
    suite(Refused::All, &URING, false);
}

#[test]
fn without_descriptors_no_pipe_is_made_and_everything_is_written() {
    in_child("no descriptors", || {
        let path = PathKind::Splice;
        let rig = Denied { streams: Streams { unix: false, path: Some(path) }, path, always: true };
        let (mut one, mut two) = rig.pair(Wish::default());
        let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(0), maximum }).expect("less");
        let (mut collector, total) = (conformance::Collector::default(), 20);
        for number in 0..total {
            one.submit(number, 40_000, 0);
            conformance::until("a message", [&mut one, &mut two], |_, two| {
                collector.sift(two.events());
                collector.messages as u64 > number
            });
        }
        assert!(rig.went_by_the_path(&one));
    });
}

#[test]
fn a_listener_without_descriptors_waits_and_goes_on_when_there_are_some() {
    in_child("a listener without descriptors", || {
        let options = || options(Wish::default());
        let mut server = StreamTransport::new(options()).expect("a transport");
        let (_, address) = server.listen(&"127.0.0.1:0".parse().expect("an address")).expect("a listener");
        let mut client = StreamTransport::new(options()).expect("a transport");
        for _ in 0..4 {
            client.connect(&address).expect("a connection");
        }
        let before = rustix::process::getrlimit(Resource::Nofile);
        let none = Rlimit { current: Some(0), maximum: before.maximum };
        rustix::process::setrlimit(Resource::Nofile, none).expect("less");
        let (mut events, begin, used) = (Vec::new(), std::time::Instant::now(), processor_time());
        while begin.elapsed() < Duration::from_millis(300) {
            server.poll(&mut events, Some(Duration::from_millis(50))).expect("the transport goes on");
        }
        assert!(events.is_empty(), "{events:?}");
        let used = processor_time() - used;
        assert!(used < Duration::from_millis(100), "it waited busily: {used:?} of {:?}", begin.elapsed());
        rustix::process::setrlimit(Resource::Nofile, before).expect("as before");
        let deadline = std::time::Instant::now() + conformance::PATIENCE;
        while events.iter().filter(|event| matches!(event, Event::Accepted { .. })).count() < 4 {
            assert!(std::time::Instant::now() < deadline, "{events:?}");
            server.poll(&mut events, Some(Duration::from_millis(1))).expect("the transport goes on");
            client.poll(&mut Vec::new(), Some(Duration::ZERO)).expect("the transport goes on");
        }
    });
}

/// What this process has used of a processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
