//! The rows between two real processes. The second process is this very executable, so there is no test harness:
//! `main` has to be the child's entry too.

use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, test_kill_process};
use zcmi_bench::child::{Channel, Child, ChildError, Role, RoleResult, maybe_run_child};
use zcmi_bench::connections::{self, ConnectionsOptions};
use zcmi_bench::ipc::{self, BenchError, IpcOptions};
use zcmi_bench::net;
use zcmi_bench::regret::{self, RegretOptions};
use zcmi_bench::report::Report;
use zcmi_bench::wires::{self, WireKind};
use zcmi_mem::registration::Support;

const ROLES: &[Role] = &[
    Role { name: "echo", run: echo },
    Role { name: "fail", run: |_| Err("failing on purpose".into()) },
    Role { name: "parent", run: parent },
];

fn echo(channel: &Channel) -> RoleResult {
    while let Some((word, fds)) = channel.next::<u64>(1)? {
        rustix::io::write(&fds[0], &word.to_ne_bytes())?;
        channel.send(&(word + 1), &[])?;
    }
    Ok(())
}

/// A child with a child of its own, whose number it reports before it waits for ever.
fn parent(channel: &Channel) -> RoleResult {
    let grandchild = Child::spawn("echo")?;
    channel.send(&grandchild.id(), &[])?;
    channel.next::<u64>(0)?;
    Ok(())
}

fn messages_and_descriptors_reach_the_child_and_it_ends_when_let_go() {
    use std::os::fd::AsFd;
    let child = Child::spawn("echo").unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    child.channel().send(&41_u64, &[writer.as_fd()]).unwrap();
    assert_eq!(child.channel().receive::<u64>(0).unwrap().0, 42);
    let mut word = [0; 8];
    assert_eq!(rustix::io::read(&reader, &mut word).unwrap(), 8);
    assert_eq!(u64::from_ne_bytes(word), 41);
    child.finish().unwrap();
}

fn a_child_that_fails_is_gone_and_not_silent() {
    let child = Child::spawn("fail").unwrap();
    assert!(matches!(child.channel().receive::<u64>(0), Err(ChildError::Gone)));
    assert!(child.finish().is_err());
    let unknown = Child::spawn("no such role").unwrap();
    assert!(matches!(unknown.channel().receive::<u64>(0), Err(ChildError::Gone)));
}

fn a_dropped_child_is_dead() {
    let child = Child::spawn("echo").unwrap();
    let id = number(child.id());
    assert!(test_kill_process(id).is_ok());
    drop(child);
    assert!(test_kill_process(id).is_err());
}

fn a_child_dies_with_its_parent() {
    use rustix::process::{PidfdFlags, pidfd_open};
    let child = Child::spawn("parent").unwrap();
    let (grandchild, _) = child.channel().receive::<u32>(0).unwrap();
    let pidfd = pidfd_open(number(grandchild), PidfdFlags::empty()).unwrap();
    // Dropping kills the child by SIGKILL, so that it cannot end its own child.
    drop(child);
    let mut set = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut set, Some(&limit)).unwrap(), 1, "the grandchild still runs");
}

fn number(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
}

fn small(rows: &[&str]) -> IpcOptions {
    let mut options = IpcOptions::quick();
    options.rounds = 2;
    options.samples = 200;
    options.stream = Duration::from_millis(1);
    options.rows = rows.iter().map(|&row| row.to_owned()).collect();
    options
}

fn the_whole_suite_makes_a_report_that_reads_back() {
    let report = ipc::run(&small(&[])).unwrap();
    let text = report.to_json().unwrap();
    assert!(Report::from_json(&text).unwrap() == report, "the report reads back changed");
    for size in ipc::SIZES {
        let row = report.rows.iter().find(|row| row.row == "bare" && row.bytes == size as u64).unwrap();
        assert!(row.p50_ns.is_some() && row.bytes_per_s.is_some() && row.cpu_s_per_gb.is_some());
        assert_eq!((row.rounds, row.samples), (Some(2), Some(400)));
    }
    for name in ["floor", "syscall", "wake", "memcpy"] {
        assert!(report.rows.iter().any(|row| row.row == name && row.p50_ns.is_some()), "{name} is missing");
    }
}

fn a_row_can_be_chosen_and_an_unknown_one_is_refused() {
    let report = ipc::run(&small(&["floor"])).unwrap();
    assert_eq!(report.rows.len(), 1);
    assert!(matches!(ipc::run(&small(&["flour"])), Err(BenchError::UnknownRow { .. })));
}

fn one_processor_is_a_reason_to_skip() {
    let here = std::env::current_exe().unwrap();
    let only = zcmi_bench::pin::pair().unwrap().near.to_string();
    let output = Command::new("taskset").args(["-c", &only]).arg(here).arg("--try-floor").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("SKIP: two pinned sides need 2 processors"), "{text:?}");
}

fn the_choice_is_compared_with_the_best_path_and_what_was_measured_is_kept() {
    let directory = std::env::temp_dir().join(format!("zcmi-regret-run-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let mut options = RegretOptions::quick();
    options.wires = vec![WireKind::Unix];
    match wires::support(WireKind::Ifb) {
        Support::Yes => options.wires.push(WireKind::Ifb),
        Support::No(reason) | Support::Unknown(reason) => println!("SKIP: ifb: {reason}"),
    }
    (options.sizes, options.streams) = (vec![1 << 10, 64 << 10], vec![1, 2]);
    (options.rounds, options.length) = (2, Duration::from_millis(10));
    options.file = Some(directory.join("cells.json"));
    let first = regret::run(&options).expect("it runs");
    println!("{first}");
    assert_eq!(first.cells.len(), 4 * options.wires.len(), "{first:?}");
    for cell in &first.cells {
        assert!(cell.rate[0] > 0.0 && cell.thrift[0] > 0.0, "{cell:?}");
        let paths = if cell.wire == "unix" { 5 } else { 6 };
        assert_eq!(cell.medians.len(), paths, "{cell:?}");
    }
    // What was measured is not measured again.
    assert_eq!(regret::run(&options).expect("it runs"), first);
    std::fs::remove_dir_all(&directory).expect("it goes");
}

/// What the bench compares on the way is that every byte came back.
fn a_connection_at_rest_takes_at_most_4_kib_of_the_server() {
    let report = connections::run(&ConnectionsOptions::quick()).unwrap();
    let row = &report.rows[0];
    assert_eq!((row.row.as_str(), row.streams), (connections::ROW, Some(1000)));
    let bytes = [row.fresh_connection_bytes.unwrap(), row.rested_connection_bytes.unwrap()];
    println!("a connection takes {:.0} B, and {:.0} B after it was used", bytes[0], bytes[1]);
    assert!(bytes[0] > 100.0 && bytes[0] <= 4096.0, "{bytes:?}");
    assert!(bytes[1] <= 4096.0, "{bytes:?}");
    assert!(row.msgs_per_server_cpu_s.unwrap() > 0.0);
    assert_eq!(Report::from_json(&report.to_json().unwrap()).unwrap(), report);
}

fn main() {
    let roles: Vec<Role> =
        ROLES.iter().chain(ipc::ROLES).chain(net::ROLES).chain(connections::ROLES).copied().collect();
    maybe_run_child(&roles);
    if std::env::args().nth(1).as_deref() == Some("--try-floor") {
        match ipc::run(&small(&["floor"])) {
            Err(BenchError::Unavailable { reason }) => println!("SKIP: {reason}"),
            other => println!("{other:?}"),
        }
        return;
    }
    let alone: [(&str, fn()); 4] = [
        (
            "messages_and_descriptors_reach_the_child_and_it_ends_when_let_go",
            messages_and_descriptors_reach_the_child_and_it_ends_when_let_go,
        ),
        ("a_child_that_fails_is_gone_and_not_silent", a_child_that_fails_is_gone_and_not_silent),
        ("a_dropped_child_is_dead", a_dropped_child_is_dead),
        ("a_child_dies_with_its_parent", a_child_dies_with_its_parent),
    ];
    let pinned: [(&str, fn()); 5] = [
        (
            "the_choice_is_compared_with_the_best_path_and_what_was_measured_is_kept",
            the_choice_is_compared_with_the_best_path_and_what_was_measured_is_kept,
        ),
        (
            "a_connection_at_rest_takes_at_most_4_kib_of_the_server",
            a_connection_at_rest_takes_at_most_4_kib_of_the_server,
        ),
        ("the_whole_suite_makes_a_report_that_reads_back", the_whole_suite_makes_a_report_that_reads_back),
        ("a_row_can_be_chosen_and_an_unknown_one_is_refused", a_row_can_be_chosen_and_an_unknown_one_is_refused),
        ("one_processor_is_a_reason_to_skip", one_processor_is_a_reason_to_skip),
    ];
    let skip = zcmi_bench::pin::pair().err();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (index, (name, test)) in alone.iter().chain(&pinned).enumerate() {
        if let (Some(reason), true) = (&skip, index >= alone.len()) {
            println!("SKIP: {reason}");
            println!("test {name} ... ignored");
            skipped += 1;
        } else if std::panic::catch_unwind(test).is_ok() {
            println!("test {name} ... ok");
            passed += 1;
        } else {
            println!("test {name} ... FAILED");
            failed += 1;
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured; 0 filtered out\n"
    );
    assert!(failed == 0, "{failed} tests failed");
}
