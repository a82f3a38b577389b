//! `peers-net`: other programs, and loops in C, that send bytes between two processes over a wire, measured as zcmi's
//! rows of `zcmi bench net` and `zcmi bench connections` are, and on the same wires.
//!
//! Rows: `iperf3` and `iperf3-z` (which is `sendfile`); a loop in C for each path of a stream (`c-write` and so on);
//! `c-udp`; at 64 B `c-round-trip`, `sockperf` and `fi_pingpong`; and `tokio-echo`, of the suite `connections`. The
//! output has the shape `zcmi-bench/1`. What cannot be measured here is a row with the reason.
#![deny(unsafe_code)]

mod loops;
mod process;
mod tokio_echo;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use zcmi_bench::child::{Role, maybe_run_child};
use zcmi_bench::connections::{self, ConnectionsOptions};
use zcmi_bench::host::Host;
use zcmi_bench::link::LinkError;
use zcmi_bench::net::{NetOptions, SUITE};
use zcmi_bench::pin::{self, Pair, PinError};
use zcmi_bench::report::{Report, Row};
use zcmi_bench::rounds::{Contender, Observation, alternate};
use zcmi_bench::wires::{Wire, WireKind};

use process::NotMeasured;

const ROLES: &[Role] = &[Role { name: TOKIO_ECHO, run: tokio_echo::serve }];
const TOKIO_ECHO: &str = "tokio-echo";
const IPERF: [&str; 2] = ["iperf3", "iperf3-z"];
const UDP: &str = "c-udp";
const ROUND_TRIPS: [&str; 3] = ["c-round-trip", "sockperf", "fi_pingpong"];
/// The size of messages whose round trips are measured.
const ROUND_TRIP_BYTES: usize = 64;
/// The size of messages that go as datagrams.
const UDP_BYTES: usize = 2 << 20;
/// The least length of a run.
const LEAST: Duration = Duration::from_secs(1);

/// Measure other programs that send bytes over a wire
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Rows to measure; all if none is named
    #[arg(long = "row")]
    rows: Vec<String>,
    /// Wires; those of zcmi's own bench if none is named
    #[arg(long, value_parser = wire)]
    wire: Vec<WireKind>,
    /// Sizes of messages; those of zcmi's own bench if none is named
    #[arg(long)]
    bytes: Vec<usize>,
    /// Numbers of connections
    #[arg(long)]
    streams: Vec<usize>,
    /// Rounds, in each of which every row is measured once
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Length of a measurement in milliseconds; at least a second
    #[arg(long)]
    length: Option<u64>,
    /// Round trips in a round
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    samples: Option<u64>,
    /// Connections of `tokio-echo`
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Bytes of one request in a hundred of `tokio-echo`
    #[arg(long, default_value_t = 1 << 20)]
    large: usize,
    /// Fewer sizes, rounds and samples
    #[arg(long)]
    quick: bool,
    /// Throughput alone
    #[arg(long)]
    no_latency: bool,
    /// Write the report to this file and not to standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn wire(text: &str) -> Result<WireKind, String> {
    WireKind::from_name(text).ok_or_else(|| format!("there is no wire {text}"))
}

fn main() -> ExitCode {
    maybe_run_child(ROLES);
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One row to measure.
#[derive(Clone, Copy)]
struct Cell {
    name: &'static str,
    wire: WireKind,
    bytes: usize,
    streams: usize,
}

fn run(arguments: &Arguments) -> Result<(), LinkError> {
    let mut options = if arguments.quick { NetOptions::quick() } else { NetOptions::default() };
    let or = |given: &Vec<usize>, usual: &mut Vec<usize>| {
        if !given.is_empty() {
            usual.clone_from(given);
        }
    };
    or(&arguments.bytes, &mut options.sizes);
    or(&arguments.streams, &mut options.streams);
    if !arguments.wire.is_empty() {
        options.wires.clone_from(&arguments.wire);
    }
    options.rounds = arguments.rounds.map_or(options.rounds, usize::from);
    options.stream = arguments.length.map_or(options.stream, Duration::from_millis).max(LEAST);
    options.samples = arguments.samples.unwrap_or(options.samples) * u64::from(!arguments.no_latency);
    let pair = match pin::pair() {
        Ok(pair) => pair,
        Err(error @ PinError::TooFew { .. }) => {
            eprintln!("SKIP: {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    // A row that is not named here may be one of zcmi's: both programs are given the same arguments.
    let wants = |name: &str| arguments.rows.is_empty() || arguments.rows.iter().any(|row| row == name);
    let mut cells = Vec::new();
    for &wire in &options.wires {
        for &streams in &options.streams {
            for &bytes in &options.sizes {
                let cell = |name| Cell { name, wire, bytes, streams };
                cells.extend(IPERF.into_iter().chain(loops::STREAMS).map(cell));
                if bytes == ROUND_TRIP_BYTES && streams == 1 && options.samples > 0 {
                    cells.extend(ROUND_TRIPS.map(cell));
                }
                if bytes == UDP_BYTES && streams == 1 {
                    cells.push(cell(UDP));
                }
            }
        }
    }
    cells.retain(|cell| wants(cell.name));
    let mut contenders: Vec<Contender<'_, LinkError>> = Vec::new();
    for cell in cells {
        let options = &options;
        contenders.push(Box::new(move || Ok(vec![cell.observe(options, pair)])));
    }
    let mut rows = alternate(options.rounds, &mut contenders, |_, _| ())?;
    drop(contenders);
    if wants(TOKIO_ECHO) {
        let mut many = if arguments.quick { ConnectionsOptions::quick() } else { ConnectionsOptions::default() };
        many.rounds = options.rounds;
        many.connections = if arguments.quick { many.connections } else { arguments.connections };
        many.large_bytes = arguments.large;
        match connections::run_plain(&many, TOKIO_ECHO) {
            Ok(report) => rows.extend(report.rows),
            Err(error) => {
                let NotMeasured(reason) = error.into();
                rows.push(Row::new(connections::SUITE, TOKIO_ECHO, many.small_bytes).explain(&reason));
            }
        }
    }
    let report = Report::new(Host::here(), rows);
    match &arguments.json {
        Some(path) => report.write(path)?,
        None => print!("{}", report.to_json()?),
    }
    Ok(())
}

impl Cell {
    /// One measurement, or the row that says why there is none.
    fn observe(self, options: &NetOptions, pair: Pair) -> Observation {
        let mut row = Row::new(SUITE, self.name, self.bytes);
        row.wire = Some(self.wire.name().to_owned());
        row.streams = Some(self.streams as u64);
        let mut found = row.clone();
        match self.measure(&mut found, options, pair) {
            Ok(Some(observation)) => observation.explained("a row of round trips"),
            Ok(None) => Observation::of_row(found).explained("not measured by this row"),
            Err(NotMeasured(reason)) => {
                eprintln!("SKIP: {} on {} at {} bytes: {reason}", self.name, self.wire, self.bytes);
                Observation::of_row(row).explained(&reason)
            }
        }
    }

    fn measure(self, row: &mut Row, options: &NetOptions, pair: Pair) -> Result<Option<Observation>, NotMeasured> {
        if self.wire == WireKind::Ifb {
            return process::because("streams need a receiver, and this wire has none");
        }
        if self.streams > 1 && !IPERF.contains(&self.name) {
            return process::because("the loop has one connection");
        }
        let wire = Wire::make(self.wire).map_err(|error| NotMeasured(error.reason()))?;
        match self.name {
            "iperf3" | "iperf3-z" => tools::iperf(&wire, row, self.name == "iperf3-z", options.stream, pair)?,
            "sockperf" => tools::sockperf(&wire, row, options.stream, pair)?,
            "fi_pingpong" => tools::fi_pingpong(&wire, row, options.samples, pair)?,
            "c-round-trip" => return loops::round_trip(&wire, row, options.samples, pair).map(Some),
            UDP => loops::datagrams(&wire, row, options.stream, pair)?,
            name => loops::stream(name, &wire, row, options.stream, pair)?,
        }
        Ok(None)
    }
}
