//! `zcmi bench net` between two hosts: who is measured, who is not, and peers that die, lie or talk rubbish.

mod rig;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use rig::schema::expect_document;
use rig::{Running, Scratch, noise};
use rustix::process::Signal;
use serde_json::Value;
use zcmi::net::outgoing::Token;
use zcmi::net::stream::{StreamOptions, StreamTransport};
use zcmi::net::transport::{Destination, Event, Transport as _};
use zcmi_bench::wires::{Side, Wire, WireKind};

/// One short cell, of throughput alone.
const CELL: [&str; 11] =
    ["--bytes", "65536", "--streams", "1", "--rounds", "1", "--length", "30", "--no-latency", "--json", "-"];

/// The first bytes of a socket that is to talk, and of one that bears this ticket.
fn opening(kind: u64, ticket: u8) -> Vec<u8> {
    [&b"zcmi-bn1"[..], &kind.to_le_bytes(), &[ticket; 16]].concat()
}

/// A side that serves, and where.
fn serving(mut running: Running) -> (Running, String) {
    let said = running.wait_for_words("listening at ");
    let (_, address) = said.split_once("--peer ").expect("it says how to reach it");
    let address = address.split([' ', '`']).next().expect("an address").to_owned();
    (running, address)
}

/// The row of that name.
fn row<'a>(report: &'a Value, name: &str) -> &'a Value {
    let rows = report["rows"].as_array().expect("rows");
    rows.iter().find(|row| row["row"] == name).unwrap_or_else(|| panic!("no row {name}: {report}"))
}

/// Waits until a side that serves has received by such a socket. Of a plain loop it is seen that its thread is there.
fn wait_until_it_receives(scratch: &Scratch, server: &Running, row: &str) {
    let begin = Instant::now();
    let has_thread = || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("it lives").flatten();
        let mut names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
        names.any(|name| name.trim() == "zcmi-bench-far")
    };
    while !has_thread() {
        assert!(begin.elapsed() < rig::LIMIT, "no measurement begins");
    }
    let socket = match row {
        "raw" => return,
        "udp" => "udp",
        _ => "tcp",
    };
    let is_it = |link: &Value| {
        link["pid"] == server.pid() && link["socket"] == socket && link["bytes_received"].as_u64() > Some(1 << 20)
    };
    loop {
        let shown = scratch.run(&["link", "--json"]).expect_code(0).json();
        expect_document(&shown, "link");
        if shown["links"].as_array().expect("a list").iter().any(is_it) {
            return;
        }
        assert!(begin.elapsed() < rig::LIMIT, "nothing is received by {socket}: {shown}");
    }
}

/// Measures, and expects that there is a figure.
fn measure(scratch: &Scratch, address: &str) {
    let measured = scratch.run(&[&["bench", "net", "--peer", address, "--row", "write"][..], &CELL].concat());
    let report = measured.expect_code(0).json();
    assert!(row(&report, "write")["bytes_per_s"].as_f64() > Some(0.0), "{report}");
}

#[test]
fn both_ends_are_measured_by_every_kind_of_row_and_what_cannot_be_known_has_its_reason() {
    let scratch = Scratch::new();
    let (server, address) = serving(scratch.start(&["bench", "net", "--serve", "127.0.0.1:0"]));
    let rows = ["raw", "write", "sendfile", "adaptive", "udp", "udp-unreliable"];
    let mut arguments = vec!["bench", "net", "--peer", &address, "--quick", "--bytes", "65536", "--streams", "1"];
    arguments.extend(["--rounds", "1", "--length", "40", "--json", "-"]);
    arguments.extend(rows.iter().flat_map(|row| ["--row", row]));
    let report = scratch.run(&arguments).expect_code(0).json();
    for name in rows {
        let row = row(&report, name);
        assert_eq!((&row["wire"], &row["streams"]), (&"peer".into(), &1.into()));
        for figure in ["bytes_per_s", "msgs_per_s", "cpu_s_per_gb"] {
            assert!(row[figure].as_f64() > Some(0.0), "{name} {figure}: {row}");
        }
        if name == "udp-unreliable" {
            assert!(row["na"]["p50_ns"].as_str().is_some_and(|reason| reason.contains("never answered")));
        } else {
            assert!(row["p50_ns"].as_f64() > Some(0.0) && row["p50_ns"].as_f64() <= row["p999_ns"].as_f64(), "{row}");
        }
        assert_eq!(row["congestion"].is_string(), !name.starts_with("udp"), "{row}");
    }
    assert_eq!(
        (&row(&report, "raw")["copied_kernel_per_byte"], &row(&report, "write")["copied_kernel_per_byte"]),
        (&2.0.into(), &2.0.into())
    );
    let unknown = &row(&report, "sendfile")["na"]["copied_kernel_per_byte"];
    assert!(unknown.as_str().is_some_and(|reason| reason.contains("network of others")), "{unknown}");
    server.signal(Signal::KILL);
}

#[test]
fn the_table_says_which_congestion_control_was_in_force() {
    let scratch = Scratch::new();
    let (server, address) = serving(scratch.start(&["bench", "net", "--serve", "127.0.0.1:0"]));
    let cell = &CELL[..CELL.len() - 2];
    let measured = scratch.run(&[&["bench", "net", "--peer", &address, "--row", "raw"][..], cell].concat());
    let table = String::from_utf8_lossy(&measured.expect_code(0).stdout).into_owned();
    assert!(table.contains("congestion control: "), "{table}");
    server.signal(Signal::KILL);
}

#[test]
fn two_hosts_measure_with_a_key_or_when_told_to_trust_and_not_without() {
    let wire = match Wire::make(WireKind::Veth) {
        Ok(wire) => wire,
        Err(unavailable) => {
            println!("SKIP: {}", unavailable.reason());
            return;
        }
    };
    let scratch = Scratch::new();
    let command = |side, arguments: &[&str]| {
        let command = wire.command_in(side, scratch.command(arguments)).expect("a command in a namespace");
        Running::new(command)
    };
    let refused = command(Side::Receiver, &["bench", "net", "--serve", "10.77.0.2:0"]).end();
    refused.expect_code(1).expect_words("without a key only loopback addresses");
    for (name, secret) in [("key", b"a secret that both have"), ("other", b"a secret one alone has!")] {
        let path = scratch.file(name, secret);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("a mode can be set");
    }
    for trust in [&["--key-file", "key"][..], &["--insecure"]] {
        let serve = [&["bench", "net", "--serve", "10.77.0.2:0"][..], trust].concat();
        let (server, address) = serving(command(Side::Receiver, &serve));
        let peer = ["bench", "net", "--peer", &address, "--row", "raw", "--row", "adaptive", "--row", "udp"];
        let refused = command(Side::Sender, &[&peer[..], &CELL].concat()).end();
        refused.expect_code(1).expect_words("without a key only loopback addresses");
        let stranger = command(Side::Sender, &[&peer[..], &CELL, &["--key-file", "other"]].concat()).end();
        stranger.expect_code(1).expect_words("came about; `zcmi bench net --serve` must run there");
        let report = command(Side::Sender, &[&peer[..], &CELL, trust].concat()).end().expect_code(0).json();
        for name in ["raw", "adaptive", "udp"] {
            let row = row(&report, name);
            assert!(row["bytes_per_s"].as_f64() > Some(0.0) && row["cpu_s_per_gb"].as_f64() > Some(0.0), "{row}");
        }
        assert_eq!(row(&report, "raw")["congestion"], "cubic");
        server.signal(Signal::KILL);
    }
}

#[test]
fn a_side_that_dies_in_the_middle_ends_its_measurement_and_the_other_side_says_so() {
    let scratch = Scratch::new();
    let (mut server, address) = serving(scratch.start(&["bench", "net", "--serve", "127.0.0.1:0"]));
    let long = ["bench", "net", "--peer", &address, "--bytes", "65536", "--streams", "2", "--length", "60000"];
    for row in ["raw", "write", "udp"] {
        let peer = scratch.start(&[&long[..], &["--row", row]].concat());
        server.wait_for_words("somebody measures");
        wait_until_it_receives(&scratch, &server, row);
        peer.signal(Signal::KILL);
        server.wait_for_words("1 measurement over: the connection broke");
    }
    measure(&scratch, &address);
    for row in ["raw", "write", "udp"] {
        let (mut server, address) = serving(scratch.start(&["bench", "net", "--serve", "127.0.0.1:0"]));
        let long = ["bench", "net", "--peer", &address, "--bytes", "65536", "--streams", "2", "--length", "60000"];
        let peer = scratch.start(&[&long[..], &["--row", row]].concat());
        server.wait_for_words("somebody measures");
        wait_until_it_receives(&scratch, &server, row);
        server.signal(Signal::KILL);
        peer.end().expect_code(1).expect_words("error[");
    }
    server.signal(Signal::KILL);
}

#[test]
fn who_comes_while_another_is_measured_is_told_so() {
    let scratch = Scratch::new();
    let (mut server, address) = serving(scratch.start(&["bench", "net", "--serve", "127.0.0.1:0"]));
    let long = ["bench", "net", "--peer", &address, "--row", "write", "--bytes", "65536", "--length", "60000"];
    let first = scratch.start(&long);
    server.wait_for_words("somebody measures");
    scratch.run(&long).expect_code(1).expect_words("it serves another measurement; try again later");
    first.signal(Signal::KILL);
    server.wait_for_words("over: ");
    measure(&scratch, &address);
    server.signal(Signal::KILL);
}

/// Says one thing in a talk, and returns what is said until the other side hangs up.
fn say(address: &str, said: &[u8]) -> Vec<String> {
    let mut socket = TcpStream::connect(address).expect("it listens");
    socket.write_all(&opening(0, 0)).expect("it reads");
    let options = StreamOptions { resume_for: Duration::ZERO, ..StreamOptions::default() };
    let mut transport = StreamTransport::new(options).expect("a transport");
    let connection = transport.adopt_connecting(socket.into()).expect("a connection");
    let (mut heard, mut events, begin) = (Vec::new(), Vec::new(), Instant::now());
    loop {
        assert!(begin.elapsed() < rig::LIMIT, "it does not hang up: {heard:?}");
        transport.poll(&mut events, Some(Duration::from_millis(100))).expect("it goes on");
        for event in events.drain(..) {
            match event {
                Event::Received { piece, .. } => {
                    heard.push(String::from_utf8_lossy(&piece.lease).into_owned());
                    if heard.len() == 1 {
                        let mut lease = transport.loan(said.len()).expect("a slot");
                        lease.copy_from_slice(said);
                        let to = Destination::new(connection);
                        transport.submit(to, lease.into(), Token(0)).expect("it is taken");
                    }
                }
                Event::Ended { .. } => transport.close(connection),
                Event::Closed { .. } => return heard,
                _ => {}
            }
        }
    }
}

#[test]
fn rubbish_ends_its_own_connection_and_the_next_is_served() {
    let scratch = Scratch::new();
    let (server, address) = serving(scratch.start(&["bench", "net", "--serve", "127.0.0.1:0"]));
    let at: SocketAddr = address.parse().expect("an address");
    // Sockets that say nothing, half of what they should, something else, and what nobody was given.
    let silent: Vec<_> = (0..80).map(|_| TcpStream::connect(at).expect("it listens")).collect();
    for rubbish in [&b"GET / HTTP/1.1\r\nhost: a host with a name\r\n\r\n"[..], &noise(4096, 7), &opening(1, 7)] {
        let mut socket = TcpStream::connect(at).expect("it listens");
        socket.write_all(rubbish).expect("it reads");
        socket.set_read_timeout(Some(rig::LIMIT)).expect("a timeout");
        // It hangs up, whether it read all or not.
        let heard = socket.read(&mut [0; 64]);
        assert!(
            matches!(&heard, Ok(0)) || heard.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
        );
    }
    let mut greeting = TcpStream::connect(at).expect("it listens");
    greeting.write_all(&[&opening(0, 0)[..], &noise(4096, 8)].concat()).expect("it reads");
    // Who says the right thing first and rubbish then.
    let task = |streams: u64, bytes: u64| {
        let task = r#"{"Task":{"carried":"Messages","echo":false,"at":"127.0.0.1","streams":S,"bytes":B}}"#;
        task.replace(":S", &format!(":{streams}")).replace(":B", &format!(":{bytes}")).into_bytes()
    };
    let nested = [b"[".repeat(4000), b"]".repeat(90)].concat();
    for rubbish in [b"{".to_vec(), b"\"Mark\"".to_vec(), b"\"End\"".to_vec(), nested, task(9, 64), task(1, 1 << 40)] {
        let heard = say(&address, &rubbish);
        assert!(heard[0].contains("Welcome"), "{heard:?}");
        assert!(
            heard.len() == 2 && heard[1].contains("Cannot"),
            "{:?} to {}",
            heard,
            String::from_utf8_lossy(&rubbish)
        );
    }
    measure(&scratch, &address);
    drop(silent);
    server.signal(Signal::KILL);
}

#[test]
fn a_host_that_serves_something_else_is_an_error_that_says_what_to_do() {
    let scratch = Scratch::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address").to_string();
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a connection");
        socket.write_all(&[&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &noise(4096, 9)].concat()).expect("it reads");
        let mut rest = Vec::new();
        let _until_it_hangs_up = socket.read_to_end(&mut rest);
    });
    let measured = scratch.run(&["bench", "net", "--peer", &address]);
    measured.expect_code(1).expect_words("`zcmi bench net --serve` must run there");
    server.join().expect("it hangs up");
    // Nobody at all.
    scratch.run(&["bench", "net", "--peer", &address]).expect_code(1).expect_words("connect failed");
}

#[test]
fn words_that_do_not_go_together_are_usage_errors() {
    let scratch = Scratch::new();
    scratch.run(&["bench", "net", "--insecure"]).expect_code(2).expect_words("for --peer and --serve");
    scratch.run(&["bench", "net", "--peer", "127.0.0.1:1", "--wire", "lo"]).expect_code(2);
    scratch.run(&["bench", "net", "--serve", "127.0.0.1:0", "--quick"]).expect_code(2);
    scratch.run(&["bench", "net", "--peer", "127.0.0.1"]).expect_code(2).expect_words("write HOST:PORT");
    scratch.run(&["bench", "net", "--serve", "unix:socket"]).expect_code(2).expect_words("is no HOST:PORT");
}
