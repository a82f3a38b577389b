//! The loops in C: a sender by each path, a receiver that reads, and round trips. Sockets come from the wire, made and
//! set as for zcmi's own rows; programs find theirs as their standard input.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use zcmi_bench::cpu::CpuMeter;
use zcmi_bench::pin::Pair;
use zcmi_bench::report::Row;
use zcmi_bench::rounds::Observation;
use zcmi_bench::stats::Latencies;
use zcmi_bench::wires::{Wire, WireKind};

use super::process::{NotMeasured, Running, because};

/// Streams, by their programs' names.
pub(crate) const STREAMS: [&str; 7] =
    ["c-write", "c-zerocopy", "c-uring-send", "c-uring-zc", "c-uring-fixed", "c-sendfile", "c-splice"];

/// How long round trips may take.
const PATIENCE: Duration = Duration::from_secs(300);

fn program(name: &str) -> Result<Command, NotMeasured> {
    let path = Path::new(env!("LOOPS")).join(name);
    if path.is_file() { Ok(Command::new(path)) } else { because("there was no C compiler when this was built") }
}

/// What programs write into: a page for a count, or words for times.
fn shared(bytes: u64) -> Result<File, NotMeasured> {
    let file = File::from(memfd_create("count", MemfdFlags::CLOEXEC)?);
    file.set_len(bytes)?;
    Ok(file)
}

fn count(file: &File) -> Result<u64, NotMeasured> {
    let mut word = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut word, 0)?;
    Ok(u64::from_ne_bytes(word))
}

fn start(name: &str, arguments: &[String], socket: OwnedFd, file: &File, cpu: usize) -> Result<Running, NotMeasured> {
    let mut command = program(name)?;
    command.args(arguments).stdin(Stdio::from(socket)).stdout(Stdio::from(file.try_clone()?));
    Running::start(command, cpu)
}

/// Throughput and processor time of one path.
pub(crate) fn stream(name: &str, wire: &Wire, row: &mut Row, length: Duration, pair: Pair) -> Result<(), NotMeasured> {
    if wire.kind() == WireKind::Unix && matches!(name, "c-zerocopy" | "c-uring-zc" | "c-uring-fixed") {
        return because("Unix sockets have neither MSG_ZEROCOPY nor SEND_ZC");
    }
    let streams = wire.streams()?;
    row.congestion = streams.congestion.map(|[sender, receiver]| {
        if sender == receiver { sender } else { format!("{sender} at the sender, {receiver} at the receiver") }
    });
    pump(name, "receive", streams.sender, streams.receiver, row, length, pair)
}

/// Throughput of datagrams.
pub(crate) fn datagrams(wire: &Wire, row: &mut Row, length: Duration, pair: Pair) -> Result<(), NotMeasured> {
    if wire.kind() == WireKind::Unix {
        return because("Unix sockets have no UDP");
    }
    let sockets = wire.datagrams()?;
    // As large as the kernel lets root have it, so that a receiver that is away for a moment loses little.
    rustix::net::sockopt::set_socket_recv_buffer_size(&sockets.receiver, 8 << 20)?;
    pump("c-udp", "udp-receive", sockets.sender, sockets.receiver, row, length, pair)
}

fn pump(
    name: &str,
    far: &str,
    sender: OwnedFd,
    receiver: OwnedFd,
    row: &mut Row,
    length: Duration,
    pair: Pair,
) -> Result<(), NotMeasured> {
    let file = shared(4096)?;
    let far = start(far, &[], receiver, &file, pair.far)?;
    let near = start(name, &[row.bytes.to_string()], sender, &shared(4096)?, pair.near)?;
    std::thread::sleep(length / 4);
    let warm = count(&file)?;
    let (meter, begin) = (CpuMeter::start(&[near.pid()?, far.pid()?])?, Instant::now());
    std::thread::sleep(length);
    let (bytes, elapsed, used) = (count(&file)? - warm, begin.elapsed().as_secs_f64(), meter.read()?);
    if bytes == 0 || warm == 0 {
        return because("nothing came; the loop ended, or its path is refused here");
    }
    let cpu_ns = used.others_ns + used.ksoftirqd_ns.unwrap_or(0);
    row.bytes_per_s = Some(bytes as f64 / elapsed);
    row.msgs_per_s = Some(bytes as f64 / row.bytes as f64 / elapsed);
    row.cpu_s_per_gb = Some(cpu_ns as f64 / bytes as f64);
    Ok(())
}

/// Round trips; `samples` of them.
pub(crate) fn round_trip(wire: &Wire, row: &mut Row, samples: u64, pair: Pair) -> Result<Observation, NotMeasured> {
    let streams = wire.streams()?;
    let file = shared(8 * samples)?;
    let bytes = row.bytes.to_string();
    let _far = start("echo", &[bytes.clone()], streams.receiver, &shared(4096)?, pair.far)?;
    let near = start("c-round-trip", &[bytes, samples.to_string()], streams.sender, &file, pair.near)?;
    if !near.finish(PATIENCE)? {
        return because("the loop failed; see its message above");
    }
    let mut latencies = Latencies::of_round_trips();
    let (mut words, mut file) = (Vec::new(), file);
    file.read_to_end(&mut words)?;
    let (words, _) = words.as_chunks::<8>();
    words.iter().for_each(|word| latencies.record_ns(u64::from_ne_bytes(*word)));
    Ok(Observation::of_latencies(row.clone(), latencies))
}
