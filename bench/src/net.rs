//! The suite `net`: what it costs to hand messages to another process over a wire, by each path.
//!
//! Rows: `raw` is a plain loop of `write` and `read`, without messages; `raw-multishot` the same, received by io_uring
//! into slots of a pool; each path of a stream by its name, forced; and
//! `adaptive`, which chooses. The wires are those of [`wires`](crate::wires). A receiver is a process of its own. Each
//! cell is measured once a round, after a warm-up, and the rows of a cell take turns.
//!
//! Congestion control is cubic at both ends, or the row says otherwise.

mod datagrams;
pub mod denied;
pub mod flips;
mod multishot;
pub mod peer;
mod place;
mod plain;
mod receiver;
mod sender;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use zcmi_mem::pool::PoolPlan;
use zcmi_mem::registration::Support;
use zcmi_net::link::LinkLimits;
use zcmi_net::outgoing::QueueLimits;
use zcmi_net::path::PathKind;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{StreamOptions, StreamTransport};
use zcmi_net::transport::TransportError;
use zcmi_net::uring::Abilities;

use self::place::{Place, Places};
use self::plain::PlainSender;
use self::receiver::{Received, Receiver};
use self::sender::{Sender, Sends as _};
use crate::child::{Channel, Child, ChildError, Role, RoleResult};
use crate::cpu::CpuError;
use crate::host::Host;
use crate::pin::{self, PinError};
use crate::report::{Report, ReportError, Row};
use crate::rounds::{self, Contender, Observation};
use crate::stats::Latencies;
use crate::truth::TruthError;
use crate::wires::{Faults, Streams, Wire, WireError, WireKind};

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
/// The same, received by io_uring.
const RAW_MULTISHOT: &str = "raw-multishot";
/// The rows of datagrams on wires that have a receiver.
const UDP: &str = "udp";
const UDP_UNRELIABLE: &str = "udp-unreliable";
/// Round trips in a round at the most, which take half an hour and more.
pub const MOST_SAMPLES: u64 = 100_000_000;
/// Connections at a time at the most.
pub const MOST_STREAMS: usize = 8;
/// The longest message of which round trips are measured.
const MOST_ROUND_TRIP_BYTES: usize = 1 << 20;
/// Bytes under way in a connection at the most, beyond two messages.
const WINDOW_BYTES: usize = 2 << 20;
/// Messages under way at the most.
const WINDOW_MESSAGES: usize = 256;
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
    /// Bytes there in a round of a latency row at the most, so that long messages make fewer round trips than that.
    pub round_trip_bytes: u64,
    /// The sizes.
    pub sizes: Vec<usize>,
    /// The wires.
    pub wires: Vec<WireKind>,
    /// How many connections at a time.
    pub streams: Vec<usize>,
    /// The rows to measure; all but `raw-multishot` if empty.
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
            round_trip_bytes: u64::MAX,
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
            round_trip_bytes: 256 << 20,
            sizes: vec![64, 64 << 10, 1 << 20],
            ..Self::default()
        }
    }

    /// Round trips of messages of that length in a round.
    fn round_trips_of(&self, bytes: usize) -> u64 {
        self.samples.min((self.round_trip_bytes / bytes as u64).max(1))
    }

    /// The rows to measure.
    fn rows(&self) -> Result<Vec<RowKind>, NetBenchError> {
        let mut all = RowKind::all();
        if let Some(name) = self.rows.iter().find(|name| !all.iter().any(|row| row.name() == *name)) {
            let known: Vec<&str> = all.into_iter().map(RowKind::name).collect();
            return Err(NetBenchError::UnknownRow { name: name.clone(), known: known.join(", ") });
        }
        all.retain(|row| match &self.rows[..] {
            // It is measured where it is asked for.
            [] => *row != RowKind::RawMultishot,
            rows => rows.iter().any(|wanted| wanted == row.name()),
        });
        Ok(all)
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
        wire: &'static str,
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
    /// Nobody serves measurements there, or not for us.
    #[error(
        "no measurement with {address} came about; `zcmi bench net --serve` must run there, and both need the same \
         `--key-file`, or none"
    )]
    Peer {
        /// Where.
        address: SocketAddr,
        /// What came of it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Measurements cannot be served.
    #[error("measurements cannot be served at {address}")]
    Serve {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
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
    #[error("the other side said what makes no sense: {0}")]
    Senseless(String),
    #[error("the other side says: {0}")]
    Far(String),
    #[error("there are no slots to receive into: {0}")]
    NoSlots(String),
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
    multishot: bool,
    echo: bool,
    cpu: usize,
}

/// How far a receiving loop is, for others to see, and whether it is to end.
#[derive(Debug, Default)]
struct Progress {
    received: AtomicU64,
    over: AtomicBool,
}

impl Progress {
    fn has_received(&self, bytes: u64) {
        self.received.store(bytes, Ordering::Relaxed);
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
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
    /// Written as `Raw` is, and received by io_uring into slots.
    RawMultishot,
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
        [&[Self::Raw, Self::RawMultishot], &forced[..], &[Self::Adaptive, Self::Udp, Self::UdpUnreliable]].concat()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => RAW,
            Self::RawMultishot => RAW_MULTISHOT,
            Self::Forced(path) => path.name(),
            Self::Adaptive => ADAPTIVE,
            Self::Udp => UDP,
            Self::UdpUnreliable => UDP_UNRELIABLE,
        }
    }

    /// Whether plain bytes are sent, and no messages.
    pub(crate) fn is_plain(self) -> bool {
        matches!(self, Self::Raw | Self::RawMultishot)
    }

    /// Why there is no share of completions that came back as copied.
    fn no_completions(self) -> &'static str {
        match self {
            Self::Raw | Self::RawMultishot => "a plain loop of write makes no zero-copy sends",
            Self::Forced(path) if !path.is_notified() => "the kernel completes no sends by this path",
            Self::Forced(_) => "the path was refused, so that it completed nothing",
            Self::Adaptive | Self::Udp | Self::UdpUnreliable => "no zero-copy send was chosen, or none completed",
        }
    }
}

/// A row that was not measured.
fn unmeasured(mut row: Row, reason: &str) -> Observation {
    row.explain_completions(reason);
    Observation::of_row(row).explained(reason)
}

/// Measures the suite. The calling thread is pinned meanwhile; its children end with it.
///
/// # Errors
/// [`NetBenchError::Unavailable`] where the suite cannot run (print it after `SKIP: `), and whatever breaks a cell.
pub fn run(options: &NetOptions) -> Result<Report, NetBenchError> {
    let wanted = options.rows()?;
    let host = Host::here();
    let pair = pin::pair().map_err(NetBenchError::of_pin)?;
    let _pinned = pin::pin(pair.near).map_err(NetBenchError::Pin)?;
    let mut cells = Vec::new();
    for &wire in &options.wires {
        for &streams in &options.streams {
            for &bytes in &options.sizes {
                cells.extend(wanted.iter().map(|&row| Cell { wire, row, bytes, streams }));
            }
        }
    }
    let places = RefCell::new(Places::default());
    let mut contenders: Vec<Contender<'_, NetBenchError>> = Vec::new();
    for cell in cells {
        let places = &places;
        contenders.push(Box::new(move || Ok(vec![cell.observe(options, &mut places.borrow_mut(), pair.far)?])));
    }
    let (in_round, mut tell) = (contenders.len(), progressing(options));
    let rows = rounds::alternate(options.rounds, &mut contenders, |done, total| {
        if done.is_multiple_of(in_round) {
            places.borrow_mut().end_round();
        }
        tell(done, total);
    })?;
    let report = Report::new(host, rows);
    report.check()?;
    Ok(report)
}

/// Tells how much is done.
fn progressing(options: &NetOptions) -> impl FnMut(usize, usize) {
    let progress = options.progress;
    move |done, total| {
        if let Some(tell) = progress {
            tell(done, total);
        }
    }
}

impl Cell {
    /// One measurement, or the row that says why there is none.
    fn observe(self, options: &NetOptions, places: &mut Places, cpu: usize) -> Result<Observation, NetBenchError> {
        let mut row = Row::new(SUITE, self.row.name(), self.bytes);
        row.wire = Some(self.wire.name().to_owned());
        row.streams = Some(self.streams as u64);
        if let Some(reason) = self.makes_no_sense() {
            return Ok(unmeasured(row, reason));
        }
        if self.row == RowKind::RawMultishot && Abilities::probe().receive != Support::Yes {
            return Ok(unmeasured(row, &format!("multishot receive: {}", Abilities::probe().receive)));
        }
        let failed = |source| self.failed(source);
        let place = match places.on(self.wire) {
            Ok(place) => place,
            Err(reason) => return Ok(unmeasured(row, reason)),
        };
        let wire = place.wire();
        if let Ok(relay) = wire.relay() {
            relay.set_both(BAD_NETWORK);
        }
        let (mut measured, sent) = self.throughput(wire, options.stream, cpu).map_err(failed)?;
        measured.copied[1] += sent.copied_share(place).map_err(failed)?;
        measured.fill(&mut row, self.bytes);
        row.explain_completions(self.row.no_completions());
        if self.wire == WireKind::Relay {
            return Ok(Observation::of_row(row).explained("the latency of this wire is its own"));
        }
        if options.samples == 0 || self.is_of_datagrams() || self.bytes > MOST_ROUND_TRIP_BYTES || self.streams > 1 {
            return Ok(Observation::of_row(row).explained("latency is measured over one stream, up to 1 MiB"));
        }
        if self.row == RowKind::RawMultishot {
            return Ok(Observation::of_row(row).explained("this row receives alone, and answers nothing"));
        }
        let latencies = self.latency(wire, options.round_trips_of(self.bytes), cpu).map_err(failed)?;
        Ok(Observation::of_latencies(row, latencies).explained("not measured by this row"))
    }

    /// Names the cell of an error.
    pub(crate) fn failed(self, source: CellError) -> NetBenchError {
        let row = self.row.name().to_owned();
        NetBenchError::Cell { row, wire: self.wire.name(), bytes: self.bytes, source: Box::new(source) }
    }

    /// Why this pair of path and wire is not measured.
    pub(crate) fn makes_no_sense(self) -> Option<&'static str> {
        match (self.wire, self.row) {
            (WireKind::Unix, RowKind::Forced(PathKind::ZeroCopy)) => Some("Unix sockets have no MSG_ZEROCOPY"),
            (WireKind::Unix, RowKind::Forced(PathKind::UringZeroCopy | PathKind::UringFixed)) => {
                Some("Unix sockets have no SEND_ZC")
            }
            (WireKind::Ifb, RowKind::Raw | RowKind::RawMultishot | RowKind::Udp | RowKind::UdpUnreliable) => {
                Some("nobody receives on this wire; its other rows are datagrams")
            }
            (WireKind::Ifb, RowKind::Forced(PathKind::SendFile | PathKind::Splice)) => {
                Some("datagrams are not sent from files")
            }
            (WireKind::Unix | WireKind::Tbf, RowKind::Udp | RowKind::UdpUnreliable) => Some("this wire has no UDP"),
            (_, RowKind::UdpUnreliable) if self.bytes > SLOT_BYTES as usize => {
                Some("a message that is not sent again is no longer than a slot of its receiver")
            }
            _ => None,
        }
    }

    /// The sockets of the cell, and the process that has their far ends.
    fn begin(self, wire: &Wire, echo: bool, cpu: usize) -> Result<(Vec<OwnedFd>, Child), CellError> {
        self.begin_over(self.open(wire)?, echo, cpu)
    }

    /// As many streams as the cell has.
    fn open(self, wire: &Wire) -> Result<Vec<Streams>, CellError> {
        Ok((0..self.streams).map(|_| wire.streams()).collect::<Result<_, _>>()?)
    }

    /// The same over streams that are there.
    fn begin_over(self, streams: Vec<Streams>, echo: bool, cpu: usize) -> Result<(Vec<OwnedFd>, Child), CellError> {
        let (near, far): (Vec<_>, Vec<_>) = streams.into_iter().map(|pair| (pair.sender, pair.receiver)).unzip();
        let child = Child::spawn("net")?;
        let (streams, bytes, raw) = (self.streams, self.bytes, self.row.is_plain());
        let brief = Brief { streams, bytes, raw, multishot: self.row == RowKind::RawMultishot, echo, cpu };
        let descriptors: Vec<_> = far.iter().map(AsFd::as_fd).collect();
        child.channel().send(&brief, &[])?;
        child.channel().send(&(), &descriptors)?;
        Ok((near, child))
    }

    /// Whether its messages are datagrams.
    fn is_of_datagrams(self) -> bool {
        self.wire == WireKind::Ifb || matches!(self.row, RowKind::Udp | RowKind::UdpUnreliable)
    }

    /// Throughput, processor time and what was copied; what was sent counts as not copied until the oracle is asked.
    pub(crate) fn throughput(self, wire: &Wire, length: Duration, cpu: usize) -> Result<(Measured, Sent), CellError> {
        if self.is_of_datagrams() {
            return datagrams::throughput(self, wire, length, cpu);
        }
        self.throughput_over(self.open(wire)?, length, cpu)
    }

    /// The same over streams that are there.
    fn throughput_over(
        self,
        streams: Vec<Streams>,
        length: Duration,
        cpu: usize,
    ) -> Result<(Measured, Sent), CellError> {
        let congestion = streams.first().and_then(congestion_of);
        let (sockets, child) = self.begin_over(streams, false, cpu)?;
        let pid = Pid::from_raw(child.id() as i32).ok_or(CellError::Late("a process number was not there"))?;
        let ((bytes, elapsed, cpu_ns), sent) = if self.row.is_plain() {
            let mut sender = PlainSender::new(sockets, self.bytes)?;
            let measured = sender.measure(length, &[pid])?;
            (measured, SentByPath::written(measured.0))
        } else {
            let mut sender = self.sender(sockets)?;
            let measured = sender.measure(length, &[pid])?;
            let sent = sender.sent();
            sender.end()?;
            (measured, sent)
        };
        let far: Received = child.channel().receive(0)?.0;
        child.finish()?;
        // What is received is copied out of the kernel; what is sent, unless its pages are shared.
        let copied = [far.copied_per_byte(), 1.0];
        let measured = Measured { bytes, elapsed, cpu_ns, copied, completions: sent.completions, congestion };
        Ok((measured, Sent::Stream(sent)))
    }

    fn sender(self, sockets: Vec<OwnedFd>) -> Result<Sender<StreamTransport>, CellError> {
        stream_sender(stream_options(self.row, self.bytes, sockets.len()), sockets, self.bytes)
    }

    fn latency(self, wire: &Wire, samples: u64, cpu: usize) -> Result<Latencies, CellError> {
        let (sockets, child) = self.begin(wire, true, cpu)?;
        let latencies = if self.row == RowKind::Raw {
            PlainSender::new(sockets, self.bytes)?.round_trips(samples)?
        } else {
            let mut sender = self.sender(sockets)?;
            let latencies = sender.round_trips(samples)?;
            sender.end()?;
            latencies
        };
        let _: (Received, _) = child.channel().receive(0)?;
        child.finish()?;
        Ok(latencies)
    }
}

/// The congestion control of both ends; none of Unix sockets.
fn congestion_of(streams: &Streams) -> Option<String> {
    let [sender, receiver] = streams.congestion.as_ref()?;
    let differ = || format!("{sender} at the sender, {receiver} at the receiver");
    Some(if sender == receiver { sender.clone() } else { differ() })
}

/// How a transport over streams for that row is made.
fn stream_options(row: RowKind, bytes: usize, connections: usize) -> StreamOptions {
    // What lies between the small and the large slots has as much under way as what fills a slot.
    let large = (WINDOW_BYTES / bytes).clamp(32, WINDOW_MESSAGES) as u32;
    StreamOptions {
        slots: SlotPlan {
            slot_bytes: SLOT_BYTES,
            large_slots: 2 * large * connections as u32,
            small_slots: 512 * connections as u32,
            headers: 8192,
            loans: PoolPlan::single(bytes, 4).ok(),
            ..SlotPlan::default()
        },
        limits: LinkLimits {
            queue: QueueLimits { messages: WINDOW_MESSAGES, bytes: (WINDOW_BYTES + 2 * bytes) as u64 },
            credits: [512, large],
            ..LinkLimits::default()
        },
        path: match row {
            RowKind::Forced(path) => Some(path),
            _ => None,
        },
        // A row goes by its path, however much is under way: the leases are the same again and again.
        quarantine_bytes: 256 << 20,
        resume_for: Duration::ZERO,
        ..StreamOptions::default()
    }
}

/// Connections over these sockets, as the side that connects.
fn stream_sender(
    options: StreamOptions,
    sockets: Vec<OwnedFd>,
    bytes: usize,
) -> Result<Sender<StreamTransport>, CellError> {
    let mut transport = StreamTransport::new(options)?;
    let connections = sockets.into_iter().map(|socket| transport.adopt_connecting(socket)).collect::<Result<_, _>>()?;
    Sender::new(transport, connections, bytes)
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

/// What was sent, of which the oracle knows how much was copied before the receiver read it: completions are wrong on
/// some wires.
pub(crate) enum Sent {
    Stream(SentByPath),
    Datagrams(datagrams::Asked),
    /// Into a sink, of which the oracle knows nothing.
    Unread,
}

impl Sent {
    /// The share of bytes that the kernel copied at the sender, beside what is counted already.
    fn copied_share(&self, place: &Place) -> Result<f64, CellError> {
        match self {
            Self::Stream(sent) => sent.copied_share(place),
            Self::Datagrams(asked) => asked.copied_share(place),
            Self::Unread => Ok(0.0),
        }
    }
}

/// What was sent as streams.
pub(crate) struct SentByPath {
    /// Bytes sent by each path.
    bytes: [u64; PathKind::ALL.len()],
    completions: Option<f64>,
}

impl SentByPath {
    /// All of it by `write`.
    fn written(written: u64) -> Self {
        let mut bytes = [0; PathKind::ALL.len()];
        bytes[PathKind::Write as usize] = written;
        Self { bytes, completions: None }
    }

    fn copied_share(&self, place: &Place) -> Result<f64, CellError> {
        let (mut copied, mut all) = (0.0, 0.0);
        for (path, bytes) in PathKind::ALL.into_iter().zip(self.bytes).filter(|(_, bytes)| *bytes > 0) {
            copied += place.copied_of_stream(path)? * bytes as f64;
            all += bytes as f64;
        }
        Ok(if all > 0.0 { copied / all } else { 0.0 })
    }
}

/// The receiving process.
fn far(channel: &Channel) -> RoleResult {
    let (brief, _): (Brief, _) = channel.receive(0)?;
    let ((), sockets) = channel.receive(brief.streams)?;
    let _pinned = pin::pin(brief.cpu)?;
    let progress = Progress::default();
    let received = match (brief.raw, brief.echo) {
        (true, false) if brief.multishot => multishot::receive(&sockets, &progress)?,
        (true, true) => plain::echo(&sockets, brief.bytes, &progress)?,
        (true, false) => plain::receive(&sockets, &progress)?,
        (false, _) => receive(brief, sockets)?,
    };
    channel.send(&received, &[])?;
    Ok(())
}

fn receive(brief: Brief, sockets: Vec<OwnedFd>) -> Result<Received, CellError> {
    let mut transport = StreamTransport::new(stream_options(RowKind::Adaptive, brief.bytes, sockets.len()))?;
    for socket in sockets {
        transport.adopt_accepting(socket)?;
    }
    let mut receiver = Receiver::new(transport, brief.echo);
    while receiver.closed() < brief.streams {
        if receiver.turn(PATIENCE)? == 0 {
            return Err(CellError::Late("nothing came"));
        }
    }
    Ok(receiver.received())
}

impl Sender<StreamTransport> {
    fn sent(&self) -> SentByPath {
        let mut sent = SentByPath { bytes: [0; PathKind::ALL.len()], completions: None };
        let (mut notified, mut said_copied) = (0, 0);
        for &connection in &self.connections {
            let Some(facts) = self.transport.facts(connection) else { continue };
            for (bytes, counts) in sent.bytes.iter_mut().zip(&facts.counts.paths) {
                *bytes += counts.bytes;
                notified += counts.notified;
                said_copied += counts.copied;
            }
        }
        sent.completions = (notified > 0).then(|| said_copied as f64 / notified as f64);
        sent
    }
}

impl flips::Watched for Sender<StreamTransport> {
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
