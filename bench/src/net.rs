//! The suite `net`: what it costs to hand messages to another process over a wire, by each path.
//!
//! Rows: `raw` is a plain loop of `write` and `read`, without messages; each path of a stream by its name, forced; and
//! `adaptive`, which chooses. The wires are those of [`wires`](crate::wires). A receiver is a process of its own. Each
//! cell is measured once a round, after a warm-up, and the rows of a cell take turns.
//!
//! Congestion control is cubic at both ends, or the row says otherwise.

mod datagrams;
pub mod denied;
pub mod flips;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use zcmi_mem::lease::Lease;
use zcmi_mem::pool::PoolPlan;
use zcmi_net::link::LinkLimits;
use zcmi_net::outgoing::{QueueLimits, Token};
use zcmi_net::path::PathKind;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{StreamOptions, StreamTransport};
use zcmi_net::transport::{Closed, ConnectionId, Destination, Event, Transport, TransportError};

use crate::child::{Channel, Child, ChildError, Role, RoleResult};
use crate::cpu::{CpuError, CpuMeter};
use crate::host::Host;
use crate::oracle::OracleError;
use crate::pin::{self, PinError};
use crate::report::{Report, ReportError, Row};
use crate::rounds::{self, Contender, Observation};
use crate::stats::Latencies;
use crate::truth::{self, TruthError};
use crate::wires::{Faults, Unavailable, Wire, WireError, WireKind};

/// The name of this suite in a report.
pub const SUITE: &str = "net";

/// The sizes of messages: 64 B to 4 MiB.
pub const SIZES: [usize; 17] = [
    64,
    128,
    256,
    512,
    1 << 10,
    2 << 10,
    4 << 10,
    8 << 10,
    16 << 10,
    32 << 10,
    64 << 10,
    128 << 10,
    256 << 10,
    512 << 10,
    1 << 20,
    2 << 20,
    4 << 20,
];

/// A message that goes in one packet wherever packets are as large as they can be, beside the sizes.
pub const PACKET_BYTES: usize = 60_200;

/// The parts that a child of this suite can play; the program passes them to [`crate::child::maybe_run_child`].
pub const ROLES: &[Role] = &[Role { name: "net", run: far }, denied::ROLE];

/// The row that chooses its path.
const ADAPTIVE: &str = "adaptive";
/// The row without messages.
const RAW: &str = "raw";
/// The rows of datagrams on wires that have a receiver.
const UDP: &str = "udp";
const UDP_UNRELIABLE: &str = "udp-unreliable";
/// How much the oracle has sent at a time.
const ORACLE_BYTES: usize = 60_000;
/// The longest message of which round trips are measured.
const MOST_ROUND_TRIP_BYTES: usize = 1 << 20;
/// Bytes under way in a connection at the most, beyond two messages.
const WINDOW_BYTES: usize = 2 << 20;
/// Messages under way at the most.
const WINDOW_MESSAGES: usize = 256;
/// What a plain loop reads at a time, as iperf3 does.
const RAW_READ_BYTES: usize = 128 << 10;
/// The longest piece of a message.
const SLOT_BYTES: u32 = 256 << 10;
/// What a relay does to the packets of either side. All rows have one seed, so they lose packets of the same numbers.
const BAD_NETWORK: Faults = Faults { loss_ppm: 1000, delay: Duration::from_millis(10), ..Faults::NONE };
/// How long either side waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// What to measure, and how long.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NetOptions {
    /// How often each cell is measured.
    pub rounds: usize,
    /// The length of a measurement, after the warm-up.
    pub stream: Duration,
    /// Round trips in a round of a latency row; none for no latencies.
    pub samples: u64,
    /// The sizes.
    pub sizes: Vec<usize>,
    /// The wires.
    pub wires: Vec<WireKind>,
    /// How many connections at a time.
    pub streams: Vec<usize>,
    /// The rows to measure; all if empty.
    pub rows: Vec<String>,
    /// Told after each measurement how many of how many are done.
    pub progress: Option<fn(usize, usize)>,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self {
            rounds: 5,
            stream: Duration::from_millis(300),
            samples: 20_000,
            sizes: vec![64, 1 << 10, 8 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20],
            wires: vec![WireKind::Lo, WireKind::Veth, WireKind::VethXdp, WireKind::Unix, WireKind::Ifb],
            streams: vec![1, 8],
            rows: Vec::new(),
            progress: None,
        }
    }
}

impl NetOptions {
    /// Options for a look of under three minutes: 24 cells, few short rounds.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            rounds: 2,
            stream: Duration::from_millis(80),
            samples: 2_000,
            sizes: vec![64, 64 << 10, 1 << 20],
            ..Self::default()
        }
    }

    fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|wanted| wanted == row)
    }
}

/// Why a bench gave no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetBenchError {
    /// This machine, or what it lets us use of it, cannot measure this: a reason to skip, not a failure.
    #[error("{reason}")]
    Unavailable {
        /// Why not.
        reason: String,
    },
    /// A row that does not exist was asked for.
    #[error("there is no row {name:?}; there are {known}")]
    UnknownRow {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A cell failed.
    #[error("row {row} on {wire} failed at {bytes} bytes")]
    Cell {
        /// Which row.
        row: String,
        /// On which wire.
        wire: WireKind,
        /// The size of its messages.
        bytes: usize,
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A processor could not be had.
    #[error(transparent)]
    Pin(PinError),
    /// The measurements do not make a report.
    #[error("the measurements do not make a report")]
    Report(#[from] ReportError),
    /// What was measured before cannot be read, or what was measured cannot be kept.
    #[error("{} cannot be used: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
}

impl NetBenchError {
    /// Too few processors are a reason to skip.
    pub(crate) fn of_pin(error: PinError) -> Self {
        match error {
            PinError::TooFew { .. } => Self::Unavailable { reason: error.to_string() },
            other => Self::Pin(other),
        }
    }
}

/// Why a cell failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CellError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error(transparent)]
    Cpu(#[from] CpuError),
    #[error(transparent)]
    Truth(#[from] TruthError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("{0} in {PATIENCE:?}")]
    Late(&'static str),
    #[error("a connection was closed: {0}")]
    Closed(String),
    #[error("a message was not taken: {0}")]
    NotTaken(String),
    #[error("{call} failed")]
    System { call: &'static str, source: io::Error },
}

fn system(call: &'static str) -> impl Fn(Errno) -> CellError {
    move |errno| CellError::System { call, source: errno.into() }
}

/// What the receiving process is told.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Brief {
    streams: usize,
    bytes: usize,
    raw: bool,
    echo: bool,
    cpu: usize,
}

/// What the receiving process tells at its end.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct FarCounts {
    bytes: u64,
    copied_user: u64,
}

/// One thing that is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) wire: WireKind,
    pub(crate) row: RowKind,
    pub(crate) bytes: usize,
    pub(crate) streams: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowKind {
    Raw,
    Forced(PathKind),
    Adaptive,
    /// Datagrams by the cheapest path, sent again when lost.
    Udp,
    /// Datagrams that are sent once.
    UdpUnreliable,
}

impl RowKind {
    pub(crate) fn all() -> Vec<Self> {
        let forced = PathKind::ALL.map(Self::Forced);
        [&[Self::Raw], &forced[..], &[Self::Adaptive, Self::Udp, Self::UdpUnreliable]].concat()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => RAW,
            Self::Forced(path) => path.name(),
            Self::Adaptive => ADAPTIVE,
            Self::Udp => UDP,
            Self::UdpUnreliable => UDP_UNRELIABLE,
        }
    }
}

/// Measures the suite. The calling thread is pinned meanwhile; its children end with it.
///
/// # Errors
/// [`NetBenchError::Unavailable`] where the suite cannot run (print it after `SKIP: `), and whatever breaks a cell.
pub fn run(options: &NetOptions) -> Result<Report, NetBenchError> {
    let known: Vec<&str> = RowKind::all().into_iter().map(RowKind::name).collect();
    if let Some(name) = options.rows.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(NetBenchError::UnknownRow { name: name.clone(), known: known.join(", ") });
    }
    let host = Host::here();
    let pair = pin::pair().map_err(NetBenchError::of_pin)?;
    let _pinned = pin::pin(pair.near).map_err(NetBenchError::Pin)?;
    let mut cells = Vec::new();
    for &wire in &options.wires {
        for &streams in &options.streams {
            for &bytes in &options.sizes {
                let rows = RowKind::all().into_iter().filter(|row| options.wants(row.name()));
                cells.extend(rows.map(|row| Cell { wire, row, bytes, streams }));
            }
        }
    }
    let mut contenders: Vec<Contender<'_, NetBenchError>> = Vec::new();
    for cell in cells {
        contenders.push(Box::new(move || Ok(vec![cell.observe(options, pair.far)?])));
    }
    let progress = options.progress;
    let rows = rounds::alternate(options.rounds, &mut contenders, |done, total| {
        if let Some(tell) = progress {
            tell(done, total);
        }
    })?;
    let report = Report::new(host, rows);
    report.check()?;
    Ok(report)
}

impl Cell {
    /// One measurement, or the row that says why there is none.
    fn observe(self, options: &NetOptions, cpu: usize) -> Result<Observation, NetBenchError> {
        let mut row = Row::new(SUITE, self.row.name(), self.bytes);
        row.wire = Some(self.wire.name().to_owned());
        row.streams = Some(self.streams as u64);
        if let Some(reason) = self.makes_no_sense() {
            return Ok(Observation::of_row(row).explained(reason));
        }
        let failed = |source| self.failed(source);
        let wire = match Wire::make(self.wire) {
            Ok(wire) => wire,
            Err(unavailable) => return Ok(Observation::of_row(row).explained(&Unavailable::reason(&unavailable))),
        };
        if let Ok(relay) = wire.relay() {
            relay.set_both(BAD_NETWORK);
        }
        self.throughput(&wire, options.stream, cpu).map_err(failed)?.fill(&mut row, self.bytes);
        if self.wire == WireKind::Relay {
            return Ok(Observation::of_row(row).explained("the latency of this wire is its own"));
        }
        if options.samples == 0 || self.is_of_datagrams() || self.bytes > MOST_ROUND_TRIP_BYTES || self.streams > 1 {
            return Ok(Observation::of_row(row).explained("latency is measured over one stream, up to 1 MiB"));
        }
        let latencies = self.latency(&wire, options, cpu).map_err(failed)?;
        Ok(Observation::of_latencies(row, latencies).explained("not measured by this row"))
    }

    /// Names the cell of an error.
    pub(crate) fn failed(self, source: CellError) -> NetBenchError {
        let row = self.row.name().to_owned();
        NetBenchError::Cell { row, wire: self.wire, bytes: self.bytes, source: Box::new(source) }
    }

    /// Why this pair of path and wire is not measured.
    pub(crate) fn makes_no_sense(self) -> Option<&'static str> {
        match (self.wire, self.row) {
            (WireKind::Unix, RowKind::Forced(PathKind::ZeroCopy)) => Some("Unix sockets have no MSG_ZEROCOPY"),
            (WireKind::Unix, RowKind::Forced(PathKind::UringZeroCopy | PathKind::UringFixed)) => {
                Some("Unix sockets have no SEND_ZC")
            }
            (WireKind::Ifb, RowKind::Raw | RowKind::Udp | RowKind::UdpUnreliable) => {
                Some("nobody receives on this wire; its other rows are datagrams")
            }
            (WireKind::Ifb, RowKind::Forced(PathKind::SendFile | PathKind::Splice)) => {
                Some("datagrams are not sent from files")
            }
            (WireKind::Unix | WireKind::Tbf, RowKind::Udp | RowKind::UdpUnreliable) => Some("this wire has no UDP"),
            _ => None,
        }
    }

    fn transport(self, connections: usize) -> Result<StreamTransport, TransportError> {
        let slot_bytes = SLOT_BYTES;
        StreamTransport::new(StreamOptions {
            slots: SlotPlan {
                slot_bytes,
                large_slots: 64 * connections as u32,
                small_slots: 512 * connections as u32,
                headers: 8192,
                loans: PoolPlan::single(self.bytes, 4).ok(),
                ..SlotPlan::default()
            },
            limits: LinkLimits {
                queue: QueueLimits { messages: WINDOW_MESSAGES, bytes: (WINDOW_BYTES + 2 * self.bytes) as u64 },
                credits: [512, 32],
                ..LinkLimits::default()
            },
            path: match self.row {
                RowKind::Forced(path) => Some(path),
                _ => None,
            },
            resume_for: Duration::ZERO,
            ..StreamOptions::default()
        })
    }

    /// The sockets of the cell, and the process that has their far ends.
    fn begin(
        self,
        wire: &Wire,
        echo: bool,
        cpu: usize,
        congestion: &mut Option<String>,
    ) -> Result<(Vec<OwnedFd>, Child), CellError> {
        let (mut near, mut far, mut both) = (Vec::new(), Vec::new(), None);
        for _ in 0..self.streams {
            let streams = wire.streams()?;
            near.push(streams.sender);
            far.push(streams.receiver);
            both = streams.congestion;
        }
        *congestion = both.map(|[sender, receiver]| {
            if sender == receiver { sender } else { format!("{sender} at the sender, {receiver} at the receiver") }
        });
        let child = Child::spawn("net")?;
        let brief = Brief { streams: self.streams, bytes: self.bytes, raw: self.row == RowKind::Raw, echo, cpu };
        let descriptors: Vec<_> = far.iter().map(AsFd::as_fd).collect();
        child.channel().send(&brief, &[])?;
        child.channel().send(&(), &descriptors)?;
        Ok((near, child))
    }

    /// Whether its messages are datagrams.
    fn is_of_datagrams(self) -> bool {
        self.wire == WireKind::Ifb || matches!(self.row, RowKind::Udp | RowKind::UdpUnreliable)
    }

    /// Throughput, processor time and copies.
    pub(crate) fn throughput(self, wire: &Wire, length: Duration, cpu: usize) -> Result<Measured, CellError> {
        if self.is_of_datagrams() {
            return datagrams::throughput(self, wire, length, cpu);
        }
        let mut congestion = None;
        let (sockets, child) = self.begin(wire, false, cpu, &mut congestion)?;
        let pid = Pid::from_raw(child.id() as i32).ok_or(CellError::Late("a process number was not there"))?;
        let (bytes, elapsed, cpu_ns, sent) = if self.row == RowKind::Raw {
            raw_stream(sockets, self.bytes, pid, length)?
        } else {
            self.message_stream(sockets, pid, length)?
        };
        let far: FarCounts = child.channel().receive(0)?.0;
        child.finish()?;
        // What is received is copied out of the kernel; what is sent, unless its pages are shared.
        let copied = [far.copied_user as f64 / far.bytes.max(1) as f64, 1.0 + sent.copied_share(wire)?];
        Ok(Measured { bytes, elapsed, cpu_ns, copied, completions: sent.completions, congestion })
    }

    fn message_stream(
        self,
        sockets: Vec<OwnedFd>,
        pid: Pid,
        length: Duration,
    ) -> Result<(u64, Duration, u64, Sent), CellError> {
        let mut sender = Sender::new(self, sockets)?;
        let warm = Instant::now() + length / 4;
        while Instant::now() < warm {
            sender.turn()?;
        }
        let meter = CpuMeter::start(&[pid])?;
        let (begin, before) = (Instant::now(), sender.completed);
        while begin.elapsed() < length {
            sender.turn()?;
        }
        let (elapsed, cpu_ns) = (begin.elapsed(), meter.read()?.total_ns());
        let bytes = (sender.completed - before) * self.bytes as u64;
        let sent = sender.sent();
        sender.end()?;
        Ok((bytes, elapsed, cpu_ns, sent))
    }

    fn latency(self, wire: &Wire, options: &NetOptions, cpu: usize) -> Result<Latencies, CellError> {
        let (sockets, child) = self.begin(wire, true, cpu, &mut None)?;
        let mut latencies = Latencies::of_round_trips();
        if self.row == RowKind::Raw {
            raw_latency(sockets, self.bytes, options.samples, &mut latencies)?;
        } else {
            let mut sender = Sender::new(self, sockets)?;
            for sample in 0..options.samples + options.samples / 10 {
                let begin = Instant::now();
                sender.round_trip()?;
                if sample >= options.samples / 10 {
                    latencies.record_ns(begin.elapsed().as_nanos() as u64);
                }
            }
            sender.end()?;
        }
        let _: (FarCounts, _) = child.channel().receive(0)?;
        child.finish()?;
        Ok(latencies)
    }
}

/// What a measurement of throughput gave.
pub(crate) struct Measured {
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    pub(crate) cpu_ns: u64,
    /// Bytes copied in user space and in the kernel, for each byte.
    pub(crate) copied: [f64; 2],
    /// The share of completions that came back as copied.
    pub(crate) completions: Option<f64>,
    pub(crate) congestion: Option<String>,
}

impl Measured {
    /// Bytes a second, and processor seconds per 10^9 bytes.
    pub(crate) fn rate_and_cost(&self) -> [f64; 2] {
        [self.bytes as f64 / self.elapsed.as_secs_f64(), self.cpu_ns as f64 / self.bytes as f64]
    }

    fn fill(self, row: &mut Row, bytes: usize) {
        let [rate, cost] = self.rate_and_cost();
        (row.bytes_per_s, row.cpu_s_per_gb) = (Some(rate), Some(cost));
        row.msgs_per_s = Some(rate / bytes as f64);
        (row.copied_user_per_byte, row.copied_kernel_per_byte) = (Some(self.copied[0]), Some(self.copied[1]));
        (row.copied_completions, row.congestion) = (self.completions, self.congestion);
    }
}

/// What the kernel copied at the sender.
struct Sent {
    /// Bytes sent by each path.
    bytes: [u64; PathKind::ALL.len()],
    completions: Option<f64>,
}

impl Sent {
    /// The share of bytes that the kernel copied before the receiver read them: what the oracle says of each path, for
    /// completions are wrong on some wires.
    fn copied_share(&self, wire: &Wire) -> Result<f64, CellError> {
        let (mut copied, mut all) = (0.0, 0.0);
        for (path, bytes) in PathKind::ALL.into_iter().zip(self.bytes).filter(|(_, bytes)| *bytes > 0) {
            let share = match path {
                PathKind::Write | PathKind::UringSend => 1.0,
                _ => match truth::ask(wire, path, ORACLE_BYTES) {
                    // What went although payloads are refused is heads, which are copied.
                    Err(TruthError::Oracle(OracleError::Send(_))) => 1.0,
                    verdict => verdict?.copied_share(ORACLE_BYTES),
                },
            };
            copied += share * bytes as f64;
            all += bytes as f64;
        }
        Ok(if all > 0.0 { copied / all } else { 0.0 })
    }
}

/// The sending side of messages.
struct Sender {
    transport: StreamTransport,
    connections: Vec<ConnectionId>,
    message: Lease<[u8]>,
    bytes: usize,
    window: usize,
    open: Vec<usize>,
    completed: u64,
    events: Vec<Event>,
}

impl Sender {
    fn new(cell: Cell, sockets: Vec<OwnedFd>) -> Result<Self, CellError> {
        let mut transport = cell.transport(sockets.len())?;
        let connections: Vec<ConnectionId> =
            sockets.into_iter().map(|socket| transport.adopt_connecting(socket)).collect::<Result<_, _>>()?;
        let mut lease = transport.loan(cell.bytes).map_err(|error| CellError::NotTaken(error.to_string()))?;
        lease.fill(0x5a);
        let mut sender = Self {
            window: (WINDOW_BYTES / cell.bytes).clamp(2, WINDOW_MESSAGES),
            open: vec![0; connections.len()],
            transport,
            connections,
            message: lease.freeze(),
            bytes: cell.bytes,
            completed: 0,
            events: Vec::new(),
        };
        let (mut connected, deadline) = (0, Instant::now() + PATIENCE);
        while connected < sender.connections.len() {
            sender.transport.poll(&mut sender.events, Some(Duration::from_millis(100)))?;
            for event in sender.events.drain(..) {
                match event {
                    Event::Connected { .. } => connected += 1,
                    Event::Closed { reason, .. } => return Err(CellError::Closed(reason.to_string())),
                    _ => {}
                }
            }
            if Instant::now() > deadline {
                return Err(CellError::Late("no greeting came"));
            }
        }
        Ok(sender)
    }

    fn submit(&mut self, connection: ConnectionId) -> Result<bool, CellError> {
        let to = Destination::new(connection);
        match self.transport.submit(
            to,
            self.message.clone().into(),
            Token(connection_number(&self.connections, connection)),
        ) {
            Ok(()) => Ok(true),
            Err(refused) => match refused.reason {
                zcmi_net::outgoing::SubmitError::Full { .. } | zcmi_net::outgoing::SubmitError::FullBytes { .. } => {
                    Ok(false)
                }
                other => Err(CellError::NotTaken(other.to_string())),
            },
        }
    }

    /// Fills the windows, and waits until something happens.
    fn turn(&mut self) -> Result<(), CellError> {
        for number in 0..self.connections.len() {
            while self.open[number] < self.window && self.submit(self.connections[number])? {
                self.open[number] += 1;
            }
        }
        self.transport.poll(&mut self.events, Some(PATIENCE))?;
        for event in self.events.drain(..) {
            match event {
                Event::Completed { token, .. } => {
                    self.open[token.0 as usize] -= 1;
                    self.completed += 1;
                }
                Event::Closed { reason, .. } => return Err(CellError::Closed(reason.to_string())),
                _ => {}
            }
        }
        Ok(())
    }

    /// One message there, and one back.
    fn round_trip(&mut self) -> Result<(), CellError> {
        if !self.submit(self.connections[0])? {
            return Err(CellError::NotTaken("a single message found no room".into()));
        }
        // Each piece comes back as a message of its own.
        let mut answered = 0;
        loop {
            if self.transport.poll(&mut self.events, Some(PATIENCE))? == 0 {
                return Err(CellError::Late("no answer came"));
            }
            for event in self.events.drain(..) {
                match event {
                    Event::Received { piece, .. } => answered += piece.lease.len(),
                    Event::Closed { reason, .. } => return Err(CellError::Closed(reason.to_string())),
                    _ => {}
                }
            }
            if answered >= self.bytes {
                return Ok(());
            }
        }
    }

    /// Ends all connections in good order.
    fn end(mut self) -> Result<(), CellError> {
        self.connections.iter().for_each(|&connection| self.transport.close(connection));
        let mut open = self.connections.len();
        while open > 0 {
            if self.transport.poll(&mut self.events, Some(PATIENCE))? == 0 {
                return Err(CellError::Late("no end came"));
            }
            for event in self.events.drain(..) {
                match event {
                    Event::Closed { reason: Closed::Ended, .. } => open -= 1,
                    Event::Closed { reason, .. } => return Err(CellError::Closed(reason.to_string())),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn sent(&self) -> Sent {
        let (mut bytes, mut notified, mut said_copied) = ([0; PathKind::ALL.len()], 0, 0);
        for &connection in &self.connections {
            let Some(facts) = self.transport.facts(connection) else { continue };
            for (bytes, counts) in bytes.iter_mut().zip(&facts.counts.paths) {
                *bytes += counts.bytes;
                notified += counts.notified;
                said_copied += counts.copied;
            }
        }
        Sent { bytes, completions: (notified > 0).then(|| said_copied as f64 / notified as f64) }
    }
}

impl flips::Watched for Sender {
    fn turn(&mut self) -> Result<(), CellError> {
        Self::turn(self)
    }

    fn sends(&self) -> u64 {
        let facts = self.transport.facts(self.connections[0]);
        facts.map_or(0, |facts| facts.counts.paths.iter().map(|path| path.sends).sum())
    }

    fn selection(&self) -> Option<zcmi_net::select::Selection> {
        self.transport.facts(self.connections[0])?.selection
    }
}

/// The place of a connection among the sender's.
fn connection_number(connections: &[ConnectionId], connection: ConnectionId) -> u64 {
    connections.iter().position(|other| *other == connection).unwrap_or(0) as u64
}

/// A plain loop of `write`.
fn raw_stream(
    sockets: Vec<OwnedFd>,
    bytes: usize,
    pid: Pid,
    length: Duration,
) -> Result<(u64, Duration, u64, Sent), CellError> {
    let message = vec![0x5a; bytes];
    let mut at = vec![0; sockets.len()];
    for socket in &sockets {
        rustix::io::ioctl_fionbio(socket, sockets.len() > 1).map_err(system("ioctl(FIONBIO)"))?;
    }
    let mut turn = || -> Result<u64, CellError> {
        let mut sent = 0;
        for (socket, at) in sockets.iter().zip(&mut at) {
            match rustix::io::write(socket, &message[*at..]) {
                Ok(count) => {
                    *at = (*at + count) % bytes;
                    sent += count as u64;
                }
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(system("write")(errno)),
            }
        }
        if sent == 0 {
            let mut waited: Vec<PollFd<'_>> =
                sockets.iter().map(|socket| PollFd::new(socket, PollFlags::OUT)).collect();
            rustix::event::poll(&mut waited, None).map_err(system("poll"))?;
        }
        Ok(sent)
    };
    let warm = Instant::now() + length / 4;
    while Instant::now() < warm {
        turn()?;
    }
    let meter = CpuMeter::start(&[pid])?;
    let (begin, mut sent) = (Instant::now(), 0);
    while begin.elapsed() < length {
        sent += turn()?;
    }
    let mut bytes = [0; PathKind::ALL.len()];
    bytes[PathKind::Write as usize] = sent;
    Ok((sent, begin.elapsed(), meter.read()?.total_ns(), Sent { bytes, completions: None }))
}

fn raw_latency(sockets: Vec<OwnedFd>, bytes: usize, samples: u64, latencies: &mut Latencies) -> Result<(), CellError> {
    let Some(socket) = sockets.first() else { return Ok(()) };
    let mut message = vec![0x5a; bytes];
    for sample in 0..samples + samples / 10 {
        let begin = Instant::now();
        let mut at = 0;
        while at < bytes {
            at += rustix::io::write(socket, &message[at..]).map_err(system("write"))?;
        }
        at = 0;
        while at < bytes {
            at += rustix::io::read(socket, &mut message[at..]).map_err(system("read"))?;
        }
        if sample >= samples / 10 {
            latencies.record_ns(begin.elapsed().as_nanos() as u64);
        }
    }
    Ok(())
}

/// The receiving process.
fn far(channel: &Channel) -> RoleResult {
    let (brief, _): (Brief, _) = channel.receive(0)?;
    let ((), sockets) = channel.receive(brief.streams)?;
    let _pinned = pin::pin(brief.cpu)?;
    let counts = match (brief.raw, brief.echo) {
        (true, true) => raw_echo(&sockets, brief.bytes)?,
        (true, false) => raw_receive(&sockets)?,
        (false, _) => receive(brief, sockets)?,
    };
    channel.send(&counts, &[])?;
    Ok(())
}

fn receive(brief: Brief, sockets: Vec<OwnedFd>) -> Result<FarCounts, Box<dyn std::error::Error + Send + Sync>> {
    let cell = Cell { wire: WireKind::Lo, row: RowKind::Adaptive, bytes: brief.bytes, streams: brief.streams };
    let mut transport = cell.transport(sockets.len())?;
    for socket in sockets {
        transport.adopt_accepting(socket)?;
    }
    let (mut events, mut closed) = (Vec::new(), 0);
    let mut accepted = Vec::new();
    while closed < brief.streams {
        transport.poll(&mut events, Some(PATIENCE))?;
        if events.is_empty() {
            return Err("nothing came".into());
        }
        for event in events.drain(..) {
            match event {
                Event::Received { connection, piece } if brief.echo => {
                    transport
                        .submit(Destination::new(connection), piece.lease.into(), Token(0))
                        .map_err(|e| e.reason)?;
                }
                Event::Received { .. } => {}
                Event::Accepted { connection, .. } => accepted.push((connection, FarCounts::default())),
                Event::Ended { connection } => transport.close(connection),
                Event::Closed { .. } => closed += 1,
                _ => {}
            }
        }
        // What a connection has done is told as long as it is there.
        for (connection, counts) in &mut accepted {
            if let Some(facts) = transport.facts(*connection) {
                let counted = facts.counts;
                *counts = FarCounts { bytes: counted.bytes_received, copied_user: counted.copied_user };
            }
        }
    }
    let sum = |of: fn(&FarCounts) -> u64| accepted.iter().map(|(_, counts)| of(counts)).sum();
    Ok(FarCounts { bytes: sum(|counts| counts.bytes), copied_user: sum(|counts| counts.copied_user) })
}

fn raw_receive(sockets: &[OwnedFd]) -> Result<FarCounts, CellError> {
    let mut buffer = vec![0; RAW_READ_BYTES];
    let mut open: Vec<&OwnedFd> = sockets.iter().collect();
    let mut counts = FarCounts::default();
    while !open.is_empty() {
        if open.len() > 1 {
            let mut waited: Vec<PollFd<'_>> = open.iter().map(|socket| PollFd::new(*socket, PollFlags::IN)).collect();
            let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
            rustix::event::poll(&mut waited, Some(&patience)).map_err(system("poll"))?;
            let ready: Vec<bool> = waited.iter().map(|one| !one.revents().is_empty()).collect();
            let mut ready = ready.into_iter();
            let mut ended = Vec::new();
            for (index, socket) in open.iter().enumerate() {
                if ready.next() == Some(true) {
                    match rustix::io::read(socket, &mut buffer[..]) {
                        Ok(0) | Err(Errno::CONNRESET) => ended.push(index),
                        Ok(read) => counts.bytes += read as u64,
                        Err(errno) => return Err(system("read")(errno)),
                    }
                }
            }
            for index in ended.into_iter().rev() {
                open.remove(index);
            }
        } else {
            match rustix::io::read(open[0], &mut buffer[..]) {
                Ok(0) | Err(Errno::CONNRESET) => open.clear(),
                Ok(read) => counts.bytes += read as u64,
                Err(errno) => return Err(system("read")(errno)),
            }
        }
    }
    Ok(counts)
}

fn raw_echo(sockets: &[OwnedFd], bytes: usize) -> Result<FarCounts, CellError> {
    let mut message = vec![0; bytes];
    let Some(socket) = sockets.first() else { return Ok(FarCounts::default()) };
    loop {
        let mut at = 0;
        while at < bytes {
            match rustix::io::read(socket, &mut message[at..]) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(FarCounts::default()),
                Ok(read) => at += read,
                Err(errno) => return Err(system("read")(errno)),
            }
        }
        at = 0;
        while at < bytes {
            match rustix::io::write(socket, &message[at..]) {
                Ok(written) => at += written,
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(FarCounts::default()),
                Err(errno) => return Err(system("write")(errno)),
            }
        }
    }
}
