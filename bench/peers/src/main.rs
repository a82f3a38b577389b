//! `peers-ipc`: other ways from one process to another, measured by the loops that measure zcmi.
//!
//! Rows: `iceoryx2` (publish/subscribe, loaned slices), `pipe`, `unix` (a stream socket pair), and between two threads
//! `rtrb` and `threads` (the loop of zcmi's row `bare` in anonymous memory). The output has the shape `zcmi-bench/1`. A
//! driver that wants to alternate these rows with others runs one round of one row at a time:
//!
//! ```text
//! peers-ipc --row iceoryx2 --bytes 64 --samples 100000 --rounds 1
//! ```
#![deny(unsafe_code)]

mod iceoryx;
mod kernel;
mod rtrb_link;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use zcmi_bench::child::{Role, maybe_run_child};
use zcmi_bench::host::Host;
use zcmi_bench::ipc::{BenchError, IpcOptions, SIZES, both_ways, in_row};
use zcmi_bench::link::LinkError;
use zcmi_bench::pin::{self, Pair};
use zcmi_bench::report::Report;
use zcmi_bench::rounds::{Contender, alternate};
use zcmi_bench::{threads, with_words};

const ROLES: &[Role] = &[
    Role { name: "iceoryx2", run: iceoryx::far },
    Role { name: "pipe", run: kernel::far },
    Role { name: "unix", run: kernel::far },
];

/// A row of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Row {
    /// Publish/subscribe of iceoryx2 between two processes
    Iceoryx2,
    /// A pair of pipes between two processes
    Pipe,
    /// A pair of stream sockets between two processes
    Unix,
    /// The ring of the crate rtrb between two threads
    Rtrb,
    /// A hand-written ring in anonymous memory between two threads
    Threads,
}

/// Measure other ways from one process to another
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Rows to measure; all if none is named
    #[arg(long = "row", value_enum)]
    rows: Vec<Row>,
    /// Payload sizes, multiples of 8; those of zcmi's own bench if none is named
    #[arg(long, value_parser = payload_bytes)]
    bytes: Vec<usize>,
    /// Round trips in a round
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    samples: Option<u64>,
    /// Rounds, in each of which every row is measured once
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Length of a round of a stream in milliseconds
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    stream_ms: Option<u64>,
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Write the report to this file and not to standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn payload_bytes(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(bytes) if bytes > 0 && bytes.is_multiple_of(8) && bytes <= 1 << 30 => Ok(bytes),
        Ok(bytes) => Err(format!("{bytes} is not a multiple of 8 between 8 and 1 GiB")),
        Err(error) => Err(error.to_string()),
    }
}

fn main() -> ExitCode {
    maybe_run_child(ROLES);
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(BenchError::Unavailable { reason }) = error.downcast_ref() {
                eprintln!("SKIP: {reason}");
                return ExitCode::SUCCESS;
            }
            let mut text = error.to_string();
            let mut next = error.source();
            while let Some(source) = next {
                text = format!("{text}: {source}");
                next = source.source();
            }
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), LinkError> {
    let mut options = if arguments.quick { IpcOptions::quick() } else { IpcOptions::default() };
    options.samples = arguments.samples.unwrap_or(options.samples);
    options.rounds = arguments.rounds.map_or(options.rounds, usize::from);
    options.stream = arguments.stream_ms.map_or(options.stream, Duration::from_millis);
    let sizes = if arguments.bytes.is_empty() { SIZES.to_vec() } else { arguments.bytes.clone() };
    let rows = match arguments.rows.as_slice() {
        [] => vec![Row::Iceoryx2, Row::Pipe, Row::Unix, Row::Rtrb, Row::Threads],
        named => named.to_vec(),
    };
    let host = Host::here();
    let pair = pin::pair().map_err(BenchError::from)?;
    let _pinned = pin::pin(pair.near)?;
    let scene = iceoryx::Scene::new()?;
    let mut contenders = Vec::new();
    for &row in &rows {
        for &bytes in &sizes {
            contenders.push(contender(row, bytes, pair, &options, &scene)?);
        }
    }
    let measured = alternate(options.rounds, &mut contenders, |_, _| ())?;
    drop(contenders);
    let report = Report::new(host, measured);
    match &arguments.json {
        Some(path) => report.write(path)?,
        None => print!("{}", report.to_json()?),
    }
    Ok(())
}

fn contender<'a>(
    row: Row,
    bytes: usize,
    pair: Pair,
    options: &IpcOptions,
    scene: &iceoryx::Scene,
) -> Result<Contender<'a, BenchError>, BenchError> {
    let (samples, stream) = (options.samples, options.stream);
    // A megabyte through the kernel takes as long as thousands of words between processors.
    let through_kernel = (samples / (1 + bytes as u64 / 4096).min(200) / 10).max(1);
    Ok(match row {
        Row::Iceoryx2 => {
            let near = iceoryx::near(scene, bytes, pair).map_err(in_row("iceoryx2", bytes))?;
            both_ways("iceoryx2", bytes, near, samples, stream, (0.0, 0.0))
        }
        Row::Pipe => {
            let near = kernel::near_pipe(bytes, pair).map_err(in_row("pipe", bytes))?;
            both_ways("pipe", bytes, near, through_kernel, stream, (0.0, 2.0))
        }
        Row::Unix => {
            let near = kernel::near_unix(bytes, pair).map_err(in_row("unix", bytes))?;
            both_ways("unix", bytes, near, through_kernel, stream, (0.0, 2.0))
        }
        Row::Rtrb => rtrb_link::contender(bytes, pair, samples, stream).map_err(in_row("rtrb", bytes))?,
        Row::Threads => with_words!(bytes, WORDS => {
            let near = threads::open::<WORDS>(bytes, pair).map_err(in_row("threads", bytes))?;
            both_ways("threads", bytes, near, samples, stream, (0.0, 0.0))
        }),
    })
}
