//! Each wire is made, carries what it should, changes while connections live, and is gone with whoever made it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netdevice::name_to_index;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with, sockopt,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use zcmi_bench::wires::{Family, Route, Side, Wire, WireError, WireKind, support};
use zcmi_mem::registration::Support;

/// Tells an executable of these tests, started once more, that it is a child.
const CHILD: &str = "ZCMI_WIRES_CHILD";

/// How long anything in these tests may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes a wire, or prints why it cannot be made here.
fn make(kind: WireKind) -> Option<Wire> {
    let wire = Wire::make(kind).map_err(|unavailable| {
        assert!(unavailable.is_lasting(), "{unavailable}");
        println!("SKIP: {unavailable}");
    });
    wire.ok()
}

/// Bytes that differ from one place to the next.
fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|at| ((at + seed) % 251) as u8).collect()
}

fn limit(socket: &OwnedFd) {
    for direction in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        sockopt::set_socket_timeout(socket, direction, Some(PATIENCE)).unwrap();
    }
}

/// Sends bytes through a stream and compares what comes out.
fn carry(from: &OwnedFd, to: &OwnedFd, bytes: &[u8]) {
    let mut from = File::from(from.try_clone().unwrap());
    let mut to = File::from(to.try_clone().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || from.write_all(bytes).unwrap());
        let mut came = vec![0; bytes.len()];
        to.read_exact(&mut came).unwrap();
        assert!(came == bytes, "bytes changed on the way");
    });
}

#[test]
fn streams_carry_a_mebibyte_either_way_over_both_protocols() {
    for kind in WireKind::ALL {
        let Some(wire) = make(kind) else { continue };
        if kind == WireKind::Ifb {
            assert!(wire.streams().is_err(), "a sink has no receiver");
            wire.set_route(Route::Veth).unwrap();
        }
        for family in [Family::V4, Family::V6] {
            let streams = wire.streams_over(family).unwrap();
            limit(&streams.sender);
            limit(&streams.receiver);
            carry(&streams.sender, &streams.receiver, &pattern(1 << 20, 0));
            carry(&streams.receiver, &streams.sender, &pattern(1 << 20, 100));
            match &streams.congestion {
                None => assert_eq!(kind, WireKind::Unix),
                Some(ends) => assert!(wire.is_of_host() || ends.iter().all(|end| end == "cubic"), "{kind}: {ends:?}"),
            }
        }
    }
}

#[test]
fn datagrams_arrive_whole_and_a_sink_swallows_them() {
    for kind in WireKind::ALL {
        let Some(wire) = make(kind) else { continue };
        for family in [Family::V4, Family::V6] {
            let pair = wire.datagrams_over(family).unwrap();
            limit(&pair.receiver);
            let sent = pattern(1200, 7);
            let swallowed_before = if kind == WireKind::Ifb { swallowed(&wire) } else { 0 };
            if kind == WireKind::Ifb {
                wire.set_route(Route::Sink).unwrap();
                assert_eq!(send(&pair.sender, &sent, SendFlags::empty()), Ok(1200));
                wait_until("the sink counts it", || swallowed(&wire) > swallowed_before);
                wire.set_route(Route::Veth).unwrap();
            }
            let marked = pattern(1200, 9);
            let mut came = [0; 2000];
            // The first of a fresh wire may be lost, while the ends find each other.
            sockopt::set_socket_timeout(&pair.receiver, sockopt::Timeout::Recv, Some(PATIENCE / 40)).unwrap();
            let received = (0..40).find_map(|_| {
                assert_eq!(send(&pair.sender, &marked, SendFlags::empty()), Ok(1200));
                recv(&pair.receiver, &mut came, RecvFlags::empty()).ok()
            });
            let (got, _) = received.unwrap_or_else(|| panic!("{kind}, {family:?}: none of 40 came"));
            // The first that comes on `ifb` is the second that was sent.
            assert!(came[..got] == marked[..], "{kind}: {got} bytes came");
        }
    }
}

/// What the sink of an `ifb` wire freed.
fn swallowed(wire: &Wire) -> u64 {
    wire.counters(Side::Sender).unwrap().received_drops
}

/// Looks again until it is so; what is waited for is at most a tick of the kernel away and has no descriptor.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waiting until {what}");
        std::thread::yield_now();
    }
}

#[test]
fn an_xdp_program_comes_and_goes_while_a_connection_lives() {
    let Some(wire) = make(WireKind::VethXdp) else { return };
    let shown = |wire: &Wire| wire.ip(Side::Receiver, &["-details", "link", "show", "dev", "zcmi-wire"]).unwrap();
    // Its native form: the generic one is shown as xdpgeneric.
    assert!(shown(&wire).contains(" xdp ") && !shown(&wire).contains("xdpgeneric"), "{}", shown(&wire));
    let streams = wire.streams().unwrap();
    limit(&streams.sender);
    limit(&streams.receiver);
    carry(&streams.sender, &streams.receiver, &pattern(100_000, 1));
    assert!(wire.detach_xdp().unwrap() && !wire.detach_xdp().unwrap());
    assert!(!shown(&wire).contains("xdp"), "{}", shown(&wire));
    carry(&streams.sender, &streams.receiver, &pattern(100_000, 2));
    wire.attach_xdp().unwrap();
    wire.attach_xdp().unwrap();
    assert!(shown(&wire).contains(" xdp "), "{}", shown(&wire));
    carry(&streams.sender, &streams.receiver, &pattern(100_000, 3));
}

#[test]
fn what_a_wire_has_not_is_refused_by_name() {
    let unix = make(WireKind::Unix).unwrap();
    assert_eq!(unix.address(Side::Receiver, Family::V4), None);
    assert!(unix.namespace_fd(Side::Sender).is_none());
    for refused in [
        unix.attach_xdp(),
        unix.set_scatter_gather(false),
        unix.set_route(Route::Sink),
        unix.set_rate_kbit_s(1),
        unix.counters(Side::Sender).map(|_| ()),
        unix.ip(Side::Sender, &["link"]).map(|_| ()),
    ] {
        assert!(matches!(refused, Err(WireError::NotThere { kind: WireKind::Unix, .. })), "{refused:?}");
    }
}

#[test]
fn commands_start_on_the_side_that_is_asked_for() {
    let Some(wire) = make(WireKind::Veth) else { return };
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let mut seen = BTreeSet::from([own.clone()]);
    for side in [Side::Sender, Side::Receiver] {
        let mut command = Command::new("readlink");
        command.arg("/proc/self/ns/net");
        let output = wire.command_in(side, command).unwrap().output().unwrap();
        let by_child = String::from_utf8(output.stdout).unwrap();
        let by_thread = wire.enter(side, || fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
        assert_eq!(by_child.trim(), by_thread.to_str().unwrap());
        assert!(seen.insert(by_thread), "{seen:?}");
    }
    assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), own);
}

#[test]
fn a_shaper_holds_packets_back_until_its_rate_rises() {
    let Some(wire) = make(WireKind::Tbf) else { return };
    let pair = wire.datagrams().unwrap();
    limit(&pair.receiver);
    // Room for all that come at once when the rate rises.
    sockopt::set_socket_recv_buffer_size(&pair.receiver, 212_992).unwrap();
    wire.set_rate_kbit_s(10).unwrap();
    // A third more than a burst; at this rate each of the rest would take a second.
    let before = wire.counters(Side::Sender).unwrap().sent_packets;
    let datagram = pattern(1400, 3);
    for _ in 0..120 {
        assert_eq!(send(&pair.sender, &datagram, SendFlags::DONTWAIT), Ok(1400));
    }
    let through = wire.counters(Side::Sender).unwrap().sent_packets - before;
    assert!((80..120).contains(&through), "{through} of 120 packets went through a shaper that lets 91 pass at once");
    wire.set_rate_kbit_s(10_000_000).unwrap();
    let mut came = [0; 2000];
    for _ in 0..120 {
        let (got, _) = recv(&pair.receiver, &mut came[..], RecvFlags::empty()).unwrap();
        assert!(came[..got] == datagram[..]);
    }
}

/// Whether this process was started by the test of that name.
fn is_child(name: &str) -> bool {
    std::env::var(CHILD).is_ok_and(|child| child == name)
}

/// This executable, about to run one test as its child.
fn child_of(name: &str, before: &[&str], program: &str) -> Command {
    let words: Vec<&str> = before.iter().copied().chain([program, "--exact", name, "--nocapture"]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env(CHILD, name).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// This executable's path.
fn own_path() -> String {
    std::env::current_exe().unwrap().to_str().unwrap().to_owned()
}

/// A copy of this executable that every user can start.
struct Program(std::path::PathBuf);

impl Program {
    fn copy() -> Self {
        let path = std::env::temp_dir().join(format!("zcmi-wires-{}", std::process::id()));
        let program = Self(path);
        // Not by this process: a child that another test forks meanwhile would hold the copy open for writing, and what
        // is open for writing cannot be started.
        assert!(Command::new("cp").arg(own_path()).arg(&program.0).status().unwrap().success());
        fs::set_permissions(&program.0, PermissionsExt::from_mode(0o755)).unwrap();
        program
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let removed = fs::remove_file(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

#[test]
fn who_is_not_root_is_told_why_and_keeps_loopback_and_unix() {
    const NAME: &str = "who_is_not_root_is_told_why_and_keeps_loopback_and_unix";
    if is_child(NAME) {
        for kind in WireKind::ALL {
            println!("{kind}: {}", support(kind));
        }
        for kind in [WireKind::Lo, WireKind::Unix] {
            let wire = Wire::make(kind).unwrap();
            assert!(wire.is_of_host());
            let streams = wire.streams().unwrap();
            carry(&streams.sender, &streams.receiver, &pattern(1 << 20, 5));
            println!("{kind}: {:?}", streams.congestion);
        }
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: becoming another user takes root");
        return;
    }
    let program = Program::copy();
    let another = ["setpriv", "--reuid", "61001", "--regid", "61001", "--clear-groups"];
    let output = match child_of(NAME, &another, program.0.to_str().unwrap()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIP: setpriv is missing");
            return;
        }
        output => output.unwrap(),
    };
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for kind in WireKind::ALL {
        let works = matches!(kind, WireKind::Lo | WireKind::Unix);
        let start = format!("{kind}: {}", if works { Support::Yes.to_string() } else { "no because ".into() });
        let line = said.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("no {start} in {said}"));
        assert!(works || line.ends_with("run as root"), "{line}");
    }
}

/// The namespaces that this process holds: those of its threads, and those it has open.
fn held() -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    let mut look = |path: std::path::PathBuf| {
        if let Ok(target) = fs::read_link(path) {
            held.extend(target.to_str().filter(|target| target.starts_with("net:")).map(str::to_owned));
        }
    };
    fs::read_dir("/proc/self/fd").unwrap().flatten().for_each(|entry| look(entry.path()));
    fs::read_dir("/proc/self/task").unwrap().flatten().for_each(|entry| look(entry.path().join("ns/net")));
    held
}

/// The interfaces of this thread's namespace.
fn interfaces() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect()
}

#[test]
fn a_wire_that_is_dropped_leaves_no_namespace_no_link_and_no_descriptor() {
    const NAME: &str = "a_wire_that_is_dropped_leaves_no_namespace_no_link_and_no_descriptor";
    if !is_child(NAME) {
        // In a process of its own, where no other test has wires.
        let output = child_of(NAME, &[], &own_path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        print!("{}", String::from_utf8_lossy(&output.stdout).replace("running", "child: running"));
        return;
    }
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = (held(), interfaces(), open());
    assert_eq!(before.0.len(), 1);
    for kind in WireKind::ALL {
        let Some(wire) = make(kind) else { continue };
        let pair = wire.datagrams().unwrap();
        let namespaces = if wire.is_of_host() { 1 } else { 2 + usize::from(kind != WireKind::Lo) };
        // A thread that has ended is seen for a moment longer.
        wait_until(&format!("{kind} holds {namespaces} namespaces"), || held().len() == namespaces);
        assert_eq!(interfaces(), before.1, "{kind} shows in the program's own namespace");
        drop((pair, wire));
        wait_until(&format!("{kind} leaves nothing"), || (held(), interfaces(), open()) == before);
    }
}

/// A child that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _dead_already = self.0.kill();
        let _reaped_already = self.0.wait();
    }
}

#[test]
fn a_process_that_is_killed_leaves_no_wire() {
    const NAME: &str = "a_process_that_is_killed_leaves_no_wire";
    if is_child(NAME) {
        let wire = Wire::make(WireKind::VethXdp).unwrap();
        let _streams = wire.streams().unwrap();
        println!("\nnamespace {}", wire.namespace_fd(Side::Sender).unwrap().as_raw_fd());
        // Until it is killed, or its parent is gone.
        let _ended = std::io::stdin().read(&mut [0]);
        return;
    }
    if make(WireKind::VethXdp).is_none() {
        return;
    }
    let mut child = Killed(child_of(NAME, &[], &own_path()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let number = lines.find_map(|line| line.unwrap().strip_prefix("namespace ").map(str::to_owned)).unwrap();
    // With one of the two namespaces held from outside it is seen what becomes of the other: its end of the pair goes,
    // and with it the end here.
    let held = File::open(format!("/proc/{}/fd/{number}", child.0.id())).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            move_into_link_name_space(held.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            // NETLINK_ROUTE is number 0, the one that is meant where none is given.
            let changes = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).unwrap();
            // RTMGRP_LINK: interfaces that come, change and go.
            bind(&changes, &SocketAddrNetlink::new(0, 1)).unwrap();
            let any = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
            assert!(name_to_index(&any, "zcmi-wire").is_ok(), "the child's wire is there");
            child.0.kill().unwrap();
            child.0.wait().unwrap();
            let deadline = Instant::now() + PATIENCE;
            while name_to_index(&any, "zcmi-wire").is_ok() {
                let left = deadline.saturating_duration_since(Instant::now());
                assert!(!left.is_zero(), "the wire outlives the process that made it");
                let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
                let _woken = poll(&mut [PollFd::new(&changes, PollFlags::IN)], Some(&left)).unwrap();
                while recv(&changes, &mut [0; 8192], RecvFlags::empty()).is_ok() {}
            }
        });
    });
}
