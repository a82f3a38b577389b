//! The suite `connections`: what a server of many connections costs, in processor time for each request and in memory
//! for each connection that says nothing.
//!
//! ```text
//!  this process                                   a child, pinned to another processor
//!  one request under way on each connection  ──▶  the server under test: gives every byte back
//!  every answer compared, byte by byte       ◀──  its processor time, and its memory, are what is measured
//! ```
//!
//! Row `zcmi` is a server on `zcmi_net::stream::StreamTransport` that submits each slot that it received. Other servers
//! speak a length of 8 bytes, little-endian, before each message; [`run_plain`] measures them with the same requests.
//!
//! # What is counted
//! - Processor time of the server's process alone. On a loopback the kernel handles what a side sends at that side's
//!   cost, for both kinds of server alike.
//! - Memory: private and shared pages that the server has touched (`Pss_Anon` and `Pss_Shmem`). What a connection costs
//!   is the growth from no connection to all, divided by their number: before any has sent a request, and again after
//!   all have sent many and rest.
//! - Times are those from the beginning of a request to the end of its answer. While every connection has a request
//!   under way they say how evenly the connections are served, and little about a connection alone.

mod framed;
mod plain;

use std::error::Error;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use zcmi_net::socket::{congestion, set_congestion};

use crate::child::{Child, ChildError, Role};
use crate::cpu::{CpuError, CpuMeter};
use crate::host::Host;
use crate::pin::{self, PinError};
use crate::report::{Report, ReportError, Row};
use crate::rounds::Observation;
use crate::stats::{Latencies, Summary};
use crate::wires::{Side, Wire, WireKind};

/// The name of this suite in a report.
pub const SUITE: &str = "connections";

/// The row of this project's own server.
pub const ROW: &str = "zcmi";

/// The parts that a child of this suite can play; the program passes them to [`crate::child::maybe_run_child`].
pub const ROLES: &[Role] = &[Role { name: "connections", run: framed::serve }];

/// The congestion control of both ends.
const CONGESTION: &str = "cubic";
/// How long an answer may take, or a connection.
const PATIENCE: Duration = Duration::from_secs(30);
/// Descriptors beside those of the connections.
const OTHER_DESCRIPTORS: u64 = 64;

/// What to measure, and how long.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionsOptions {
    /// How many connections.
    pub connections: usize,
    /// How often it is measured, each time with a new server.
    pub rounds: usize,
    /// The length of a measurement, after the warm-up.
    pub length: Duration,
    /// Bytes of a request.
    pub small_bytes: usize,
    /// Bytes of one request in a hundred.
    pub large_bytes: usize,
    /// Told after each round how many of how many are done.
    pub progress: Option<fn(usize, usize)>,
}

impl Default for ConnectionsOptions {
    fn default() -> Self {
        Self {
            connections: 10_000,
            rounds: 5,
            length: Duration::from_secs(3),
            small_bytes: 1 << 10,
            large_bytes: 1 << 20,
            progress: None,
        }
    }
}

impl ConnectionsOptions {
    /// Options for a look of some seconds.
    #[must_use]
    pub fn quick() -> Self {
        Self { connections: 1000, rounds: 1, length: Duration::from_millis(500), ..Self::default() }
    }
}

/// Why a bench gave no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionsError {
    /// This machine, or what it lets us use of it, cannot measure this: a reason to skip, not a failure.
    #[error("{reason}")]
    Unavailable {
        /// Why not.
        reason: String,
    },
    /// A row failed.
    #[error("row {row} failed with {connections} connections")]
    Row {
        /// Which row.
        row: String,
        /// How many connections there were to be.
        connections: usize,
        /// What failed.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A processor could not be had.
    #[error(transparent)]
    Pin(PinError),
    /// The measurements do not make a report.
    #[error("the measurements do not make a report")]
    Report(#[from] ReportError),
}

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error(transparent)]
    Cpu(#[from] CpuError),
    #[error(transparent)]
    Transport(#[from] zcmi_net::transport::TransportError),
    #[error("{what} in {PATIENCE:?}; {under_way} requests wait for their answers")]
    Late { what: &'static str, under_way: usize },
    #[error("a connection was closed: {0}")]
    Closed(String),
    #[error("a request was not taken: {0}")]
    NotTaken(String),
    #[error("an answer is not what was asked, at byte {at} of {bytes}")]
    Wrong { at: usize, bytes: usize },
    #[error("{call} failed")]
    System { call: &'static str, source: std::io::Error },
    #[error("the server's memory cannot be read from {path}")]
    Memory { path: String },
}

fn system(call: &'static str) -> impl Fn(rustix::io::Errno) -> LoadError {
    move |errno| LoadError::System { call, source: errno.into() }
}

/// What a server is told; it answers with its address as `HOST:PORT`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Brief {
    /// How many connections will come.
    pub connections: usize,
    /// The processor to run on.
    pub cpu: usize,
    /// Bytes of most requests.
    pub small_bytes: usize,
    /// Bytes of the largest.
    pub large_bytes: usize,
}

/// A listener on the loopback, whose connections have the congestion control of all benches where that can be set.
///
/// # Errors
/// The system's own.
pub fn listener() -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // Where it cannot be set, the report says what is in force.
    let _ = set_congestion(&listener, CONGESTION);
    Ok(listener)
}

/// A connection to it.
fn dial(address: SocketAddr, tally: &mut Tally) -> Result<TcpStream, LoadError> {
    let failed = |call: &'static str| move |source| LoadError::System { call, source };
    let socket = TcpStream::connect(address).map_err(failed("connect"))?;
    let _as_reported = set_congestion(&socket, CONGESTION);
    if tally.congestion.is_none() {
        tally.congestion = congestion(&socket).ok();
    }
    Ok(socket)
}

/// What was asked and answered so far.
struct Tally {
    /// What every message begins like: a message is as much of it as it is long.
    pattern: Vec<u8>,
    small: usize,
    large: usize,
    issued: u64,
    answered: u64,
    bytes: u64,
    under_way: usize,
    latencies: Latencies,
    /// The congestion control of the first connection's end on this side.
    congestion: Option<String>,
}

impl Tally {
    fn new(options: &ConnectionsOptions) -> Self {
        let longest = options.small_bytes.max(options.large_bytes);
        Self {
            // Its period divides no power of two, so that bytes at the wrong place differ.
            pattern: (0..longest).map(|index| (index % 251) as u8).collect(),
            small: options.small_bytes,
            large: options.large_bytes,
            issued: 0,
            answered: 0,
            bytes: 0,
            under_way: 0,
            latencies: Latencies::of_calls(),
            congestion: None,
        }
    }

    /// The length of the next request: one in a hundred is large.
    fn issue(&mut self) -> usize {
        self.issued += 1;
        self.under_way += 1;
        if self.issued.is_multiple_of(100) { self.large } else { self.small }
    }

    fn check(&self, at: usize, found: &[u8]) -> Result<(), LoadError> {
        match self.pattern.get(at..at + found.len()) {
            Some(wanted) if wanted == found => Ok(()),
            _ => Err(LoadError::Wrong { at, bytes: found.len() }),
        }
    }

    fn answer(&mut self, bytes: usize, begun: Instant) {
        self.under_way -= 1;
        self.answered += 1;
        self.bytes += bytes as u64;
        self.latencies.record_ns(begun.elapsed().as_nanos() as u64);
    }
}

/// The side that asks.
trait Load {
    /// Sends a request over each connection that has none under way.
    fn begin(&mut self) -> Result<(), LoadError>;
    /// Takes the answers that are there, waiting a while for one, and asks again where one came, if told to.
    fn turn(&mut self, asks: bool) -> Result<(), LoadError>;
    fn tally(&mut self) -> &mut Tally;
}

/// Measures the suite's own row. The calling thread is pinned meanwhile; its children end with it.
///
/// # Errors
/// [`ConnectionsError::Unavailable`] where the suite cannot run (print it after `SKIP: `), and whatever breaks a row.
pub fn run(options: &ConnectionsOptions) -> Result<Report, ConnectionsError> {
    measure(options, ROW, "connections", &|address, options| Ok(Box::new(framed::Framed::open(address, options)?)))
}

/// Measures a server that speaks a length of 8 bytes before each message: `role` of this program, in a row of that
/// name.
///
/// # Errors
/// As [`run`].
pub fn run_plain(options: &ConnectionsOptions, role: &'static str) -> Result<Report, ConnectionsError> {
    measure(options, role, role, &|address, options| Ok(Box::new(plain::Plain::open(address, options)?)))
}

type Open<'a> = &'a (dyn Fn(&str, &ConnectionsOptions) -> Result<Box<dyn Load>, LoadError> + Sync);

fn measure(
    options: &ConnectionsOptions,
    row: &'static str,
    role: &'static str,
    open: Open<'_>,
) -> Result<Report, ConnectionsError> {
    let unavailable = |reason: String| ConnectionsError::Unavailable { reason };
    let host = Host::here();
    let pair = pin::pair().map_err(|error| match error {
        PinError::TooFew { .. } => unavailable(error.to_string()),
        other => ConnectionsError::Pin(other),
    })?;
    let wanted = options.connections as u64 + OTHER_DESCRIPTORS;
    let may = raise_descriptors();
    if may < wanted {
        return Err(unavailable(format!(
            "{} connections need {wanted} descriptors, and this process may have {may}; raise `ulimit -Hn`, or measure \
             fewer",
            options.connections
        )));
    }
    let mut found = Vec::new();
    for round in 0..options.rounds {
        let wire = Wire::make(WireKind::Lo).map_err(|error| unavailable(error.reason()))?;
        // Both sides on a thread in the wire's namespace: what it starts is there too, and ends with it.
        let inside = || {
            let _pinned = pin::pin(pair.near).map_err(ConnectionsError::Pin)?;
            one_round(options, role, pair.far, open).map_err(|source| ConnectionsError::Row {
                row: row.to_owned(),
                connections: options.connections,
                source: source.into(),
            })
        };
        found.push(wire.enter(Side::Sender, inside).map_err(|error| unavailable(error.to_string()))??);
        if let Some(tell) = options.progress {
            tell(round + 1, options.rounds);
        }
    }
    let report = Report::new(host, vec![merge(options, row, found)]);
    report.check()?;
    Ok(report)
}

/// Lets this process have as many descriptors as it may, and says how many that is.
fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // Where it stays as it was, the caller sees that.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// What one round found.
struct Round {
    answered: u64,
    bytes: u64,
    seconds: f64,
    server_cpu_s: f64,
    fresh_bytes: f64,
    rested_bytes: f64,
    server_bytes: f64,
    latencies: Latencies,
    congestion: Option<String>,
}

fn one_round(options: &ConnectionsOptions, role: &str, cpu: usize, open: Open<'_>) -> Result<Round, LoadError> {
    let server = Child::spawn(role)?;
    let &ConnectionsOptions { connections, small_bytes, large_bytes, length, .. } = options;
    let address: String = server.ask(&Brief { connections, cpu, small_bytes, large_bytes })?;
    let no_process = || LoadError::Memory { path: "/proc".to_owned() };
    let process = Pid::from_raw(server.id().cast_signed()).ok_or_else(no_process)?;
    let alone = memory_bytes(process)?;
    let mut load = open(&address, options)?;
    let each = |now: u64| (now as f64 - alone as f64).max(0.0) / connections as f64;
    let fresh_bytes = each(memory_bytes(process)?);

    // Whole streams of requests, to the last answer: large ones take longer, and a window in the midst of a stream
    // would leave some of them out.
    stream(&mut *load, length / 4)?;
    let before = (load.tally().answered, load.tally().bytes);
    load.tally().latencies = Latencies::of_calls();
    let (meter, begin) = (CpuMeter::start(&[process])?, Instant::now());
    stream(&mut *load, length)?;
    let (seconds, used) = (begin.elapsed().as_secs_f64(), meter.read()?);
    let tally = load.tally();
    let (answered, bytes) = (tally.answered - before.0, tally.bytes - before.1);
    let (latencies, congestion) = (tally.latencies.clone(), tally.congestion.clone());
    // What is owed after the last answer is said while nothing else is.
    load.turn(false)?;
    let at_rest = memory_bytes(process)?;
    Ok(Round {
        answered,
        bytes,
        seconds,
        server_cpu_s: used.others_ns as f64 / 1e9,
        fresh_bytes,
        rested_bytes: each(at_rest),
        server_bytes: at_rest as f64,
        latencies,
        congestion,
    })
}

/// Asks over all connections for a time, and waits for the last answer.
fn stream(load: &mut dyn Load, length: Duration) -> Result<(), LoadError> {
    let (begin, mut answered, mut since) = (Instant::now(), load.tally().answered, Instant::now());
    load.begin()?;
    while load.tally().under_way > 0 {
        load.turn(begin.elapsed() < length)?;
        if load.tally().answered > answered {
            (answered, since) = (load.tally().answered, Instant::now());
        } else if since.elapsed() > PATIENCE {
            return Err(LoadError::Late { what: "no answer came", under_way: load.tally().under_way });
        }
    }
    Ok(())
}

/// Memory that a process has to itself, or shares with nobody else.
fn memory_bytes(process: Pid) -> Result<u64, LoadError> {
    let path = format!("/proc/{}/smaps_rollup", process.as_raw_nonzero());
    let text = fs::read_to_string(&path).unwrap_or_default();
    let of = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse().ok())
    };
    match (of("Pss_Anon:"), of("Pss_Shmem:")) {
        (Some(own), Some(shared)) => Ok((own + shared) << 10),
        _ => Err(LoadError::Memory { path }),
    }
}

fn merge(options: &ConnectionsOptions, name: &str, found: Vec<Round>) -> Row {
    let median =
        |of: &dyn Fn(&Round) -> f64| Summary::of(&found.iter().map(of).collect::<Vec<_>>()).map(|all| all.median);
    let mut row = Row::new(SUITE, name, options.small_bytes);
    row.wire = Some(WireKind::Lo.name().to_owned());
    row.streams = Some(options.connections as u64);
    row.rounds = Some(found.len() as u64);
    row.congestion = found.first().and_then(|round| round.congestion.clone());
    row.msgs_per_s = median(&|round| round.answered as f64 / round.seconds);
    row.bytes_per_s = median(&|round| round.bytes as f64 / round.seconds);
    row.msgs_per_server_cpu_s = median(&|round| round.answered as f64 / round.server_cpu_s);
    row.fresh_connection_bytes = median(&|round| round.fresh_bytes);
    row.rested_connection_bytes = median(&|round| round.rested_bytes);
    row.server_bytes = median(&|round| round.server_bytes);
    let mut latencies = Latencies::of_calls();
    found.iter().for_each(|round| latencies.pool(&round.latencies));
    let mut row = Observation::of_latencies(row, latencies).row;
    row.na.insert("cpu_s_per_gb".to_owned(), "the server's time for each request stands in its place".to_owned());
    row.explain("not counted by this suite")
}
