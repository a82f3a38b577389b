//! Programs of others: iperf3, sockperf, fi_pingpong. What is missing becomes the reason of its row.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use zcmi_bench::cpu::CpuMeter;
use zcmi_bench::pin::Pair;
use zcmi_bench::report::Row;
use zcmi_bench::wires::{Family, Side, Wire};

use super::process::{NotMeasured, Running, because};

/// The ports in the wire's own namespaces, where nobody else is.
const PORT: &str = "20077";
/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest block of iperf3.
const BLOCK_BYTES: u64 = 1 << 20;

/// What of iperf3's document is used.
#[derive(Deserialize)]
struct Iperf {
    end: IperfEnd,
}

#[derive(Deserialize)]
struct IperfEnd {
    sum_received: IperfSum,
    sender_tcp_congestion: Option<String>,
    receiver_tcp_congestion: Option<String>,
}

#[derive(Deserialize)]
struct IperfSum {
    bits_per_second: f64,
}

fn far_address(wire: &Wire) -> Result<String, NotMeasured> {
    match wire.address(Side::Receiver, Family::V4) {
        Some(_) if wire.is_of_host() => because("it needs namespaces of its own; run as root"),
        Some(address) => Ok(address.to_string()),
        None => because("it has no Unix sockets"),
    }
}

/// A run of iperf3; processor time is that of a window inside of it, and the rate that of the whole run.
pub(crate) fn iperf(
    wire: &Wire,
    row: &mut Row,
    zero_copy: bool,
    length: Duration,
    pair: Pair,
) -> Result<(), NotMeasured> {
    if row.bytes > BLOCK_BYTES {
        return because("iperf3 takes blocks of at most 1 MiB");
    }
    let address = far_address(wire)?;
    let mut server = Command::new("iperf3");
    server.args(["-s", "-1", "--forceflush", "-p", PORT]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = Running::start_on(wire, Side::Receiver, server, pair.far)?;
    server.until("listening")?;
    let (lead, length) = (Duration::from_millis(500), length.max(Duration::from_secs(1)));
    let seconds = (lead + length).as_secs_f64().ceil() + 1.0;
    let mut client = Command::new("iperf3");
    client.args(["-c", &address, "-p", PORT, "-C", "cubic", "-J", "-t", &format!("{seconds}")]);
    client.args(["-l", &row.bytes.to_string(), "-P", &row.streams.unwrap_or(1).to_string()]);
    client.args(zero_copy.then_some("-Z")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let client = Running::start_on(wire, Side::Sender, client, pair.near)?;
    std::thread::sleep(lead);
    let (meter, begin) = (CpuMeter::start(&[client.pid()?, server.pid()?])?, Instant::now());
    std::thread::sleep(length);
    let (used, elapsed) = (meter.read()?, begin.elapsed().as_secs_f64());
    let found: Iperf = serde_json::from_str(&client.output("iperf3")?)?;
    let rate = found.end.sum_received.bits_per_second / 8.0;
    if rate <= 0.0 {
        return because("iperf3 says that nothing came");
    }
    row.congestion = match (found.end.sender_tcp_congestion, found.end.receiver_tcp_congestion) {
        (Some(sender), Some(receiver)) if sender != receiver => {
            Some(format!("{sender} at the sender, {receiver} at the receiver"))
        }
        (sender, _) => sender,
    };
    let cpu_ns = used.others_ns + used.ksoftirqd_ns.unwrap_or(0);
    row.bytes_per_s = Some(rate);
    row.msgs_per_s = Some(rate / row.bytes as f64);
    row.cpu_s_per_gb = Some(cpu_ns as f64 / (rate * elapsed));
    Ok(())
}

/// Runs a program to its end, and gives its output.
fn output_on(wire: &Wire, side: Side, mut command: Command, cpu: usize) -> Result<String, NotMeasured> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = Running::start_on(wire, side, command, cpu)?;
    running.output(&name)
}

/// Starts a server that says nothing when it is ready, and asks it until it answers.
fn ask(wire: &Wire, server: Command, client: impl Fn() -> Command, pair: Pair) -> Result<String, NotMeasured> {
    let mut server = server;
    server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Running::start_on(wire, Side::Receiver, server, pair.far)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match output_on(wire, Side::Sender, client(), pair.near) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(200)),
            other => return other,
        }
    }
}

/// A ping-pong of sockperf over TCP; it prints half of a round trip.
pub(crate) fn sockperf(wire: &Wire, row: &mut Row, length: Duration, pair: Pair) -> Result<(), NotMeasured> {
    let address = far_address(wire)?;
    let bytes = row.bytes.to_string();
    let seconds = length.as_secs_f64().ceil().max(1.0).to_string();
    let with = |mode: &str| {
        let mut command = Command::new("sockperf");
        command.args([mode, "--tcp", "-i", &address, "-p", PORT]);
        command
    };
    let client = || {
        let mut command = with("ping-pong");
        command.args(["-m", &bytes, "-t", &seconds]);
        command
    };
    let text = ask(wire, with("server"), client, pair)?;
    let value = |name: &str| -> Option<f64> {
        let line = text.lines().find(|line| line.contains(name))?;
        Some(line.rsplit('=').next()?.trim().parse::<f64>().ok()? * 1e3)
    };
    row.p50_ns = value("percentile 50.000");
    row.p99_ns = value("percentile 99.000");
    row.p999_ns = value("percentile 99.900");
    row.max_ns = value("<MAX> observation");
    if row.p50_ns.is_none() { because("sockperf printed no percentiles") } else { Ok(()) }
}

/// A ping-pong of libfabric over its provider tcp; it prints the mean of half a round trip, and nothing else.
pub(crate) fn fi_pingpong(wire: &Wire, row: &mut Row, samples: u64, pair: Pair) -> Result<(), NotMeasured> {
    let address = far_address(wire)?;
    let (bytes, samples) = (row.bytes.to_string(), samples.to_string());
    let with = || {
        let mut command = Command::new("fi_pingpong");
        command.args(["-p", "tcp", "-e", "msg", "-S", &bytes, "-I", &samples]);
        command
    };
    let client = || {
        let mut command = with();
        command.arg(&address);
        command
    };
    let text = ask(wire, with(), client, pair)?;
    // bytes #sent #ack total time MB/sec usec/xfer Mxfers/sec
    let mean = text.lines().last().and_then(|line| line.split_whitespace().nth(6)?.parse::<f64>().ok());
    match mean.filter(|mean| *mean > 0.0) {
        Some(microseconds) => {
            row.msgs_per_s = Some(1e6 / microseconds);
            Ok(())
        }
        None => because(format!("fi_pingpong printed no time: {}", text.lines().last().unwrap_or_default())),
    }
}
