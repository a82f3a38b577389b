//! The suite `ipc`: what it costs to hand a payload to another process on the same host.
//!
//! Rows, each measured once a round in this order: `floor`, `syscall`, `wake`, `memcpy` at some sizes, and `bare` at
//! each payload size. The driving process has one processor for itself and its peers another; only the two sides of the
//! row that is being measured run, the peers of the others sleep.

use std::time::Duration;

use crate::bare::{Bare, Geometry};
use crate::child::{Channel, Child, Role, RoleResult};
use crate::floor::{self, Line, Sleeper};
use crate::host::Host;
use crate::link::{Far, Link, LinkError, Near, serve};
use crate::pin::{self, Pair, PinError};
use crate::pubsub;
use crate::report::{Report, ReportError, Row};
use crate::rounds::{self, Contender, Observation};
use crate::side;

/// The name of this suite in a report.
pub const SUITE: &str = "ipc";

/// The payload sizes of the two-sided rows.
pub const SIZES: [usize; 8] = [8, 40, 64, 1 << 10, 8 << 10, 64 << 10, 1 << 20, 4 << 20];

/// The sizes of row `memcpy`.
const COPY_SIZES: [usize; 5] = [4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20];

/// The parts that a child of this suite can play; the program passes them to [`crate::child::maybe_run_child`].
pub const ROLES: &[Role] = &[
    Role { name: "floor", run: far_floor },
    Role { name: "wake", run: far_wake },
    Role { name: "bare", run: far_bare },
    Role { name: "pubsub", run: pubsub::far },
    Role { name: "readers", run: pubsub::far_readers },
];

/// What to measure, and how long.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct IpcOptions {
    /// How often each row is measured.
    pub rounds: usize,
    /// Round trips in a round of a latency row.
    pub samples: u64,
    /// The length of a round of a stream or of copying.
    pub stream: Duration,
    /// The payload sizes of the two-sided rows.
    pub sizes: Vec<usize>,
    /// The rows to measure; all if empty.
    pub rows: Vec<String>,
    /// Told after each measurement how many of how many are done.
    pub progress: Option<fn(usize, usize)>,
}

impl Default for IpcOptions {
    /// Ten rounds, so that a median has an interval, and 10^6 samples in all, so that p99.9 rests on a thousand.
    fn default() -> Self {
        Self {
            rounds: 10,
            samples: 100_000,
            stream: Duration::from_millis(200),
            sizes: SIZES.to_vec(),
            rows: Vec::new(),
            progress: None,
        }
    }
}

impl IpcOptions {
    /// Options for a look in well under a minute: fewer rounds and samples, the same rows and sizes.
    #[must_use]
    pub fn quick() -> Self {
        Self { rounds: 3, samples: 20_000, stream: Duration::from_millis(50), ..Self::default() }
    }

    fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|wanted| wanted == row)
    }
}

/// Why a bench gave no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// This machine, or what it lets us use of it, cannot measure this: a reason to skip, not a failure.
    #[error("{reason}")]
    Unavailable {
        /// Why not.
        reason: String,
    },
    /// A row failed.
    #[error("row {row} failed at {bytes} bytes")]
    Row {
        /// Which row.
        row: String,
        /// Its payload size.
        bytes: usize,
        /// What failed.
        #[source]
        source: LinkError,
    },
    /// A row that does not exist was asked for.
    #[error("there is no row {name:?}; there are {known}")]
    UnknownRow {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A processor could not be had.
    #[error(transparent)]
    Pin(PinError),
    /// The measurements do not make a report.
    #[error("the measurements do not make a report")]
    Report(#[from] ReportError),
}

impl From<PinError> for BenchError {
    fn from(error: PinError) -> Self {
        match error {
            PinError::TooFew { .. } => Self::Unavailable { reason: error.to_string() },
            other => Self::Pin(other),
        }
    }
}

/// Wraps what fails in a row.
pub fn in_row(row: &str, bytes: usize) -> impl Fn(LinkError) -> BenchError + use<> {
    let row = row.to_owned();
    move |source| BenchError::Row { row: row.clone(), bytes, source }
}

const ROWS: [&str; 9] = ["floor", "syscall", "wake", "memcpy", "bare", "pubsub", "stream", "readers-1", "readers-64"];

/// Measures the suite. The calling thread is pinned meanwhile; its children end with it.
///
/// # Errors
/// [`BenchError::Unavailable`] where the suite cannot run (print it after `SKIP: `), and whatever breaks a row.
pub fn run(options: &IpcOptions) -> Result<Report, BenchError> {
    if let Some(name) = options.rows.iter().find(|name| !ROWS.contains(&name.as_str())) {
        return Err(BenchError::UnknownRow { name: name.clone(), known: ROWS.join(", ") });
    }
    let host = Host::here();
    let pair = pin::pair()?;
    let _pinned = pin::pin(pair.near)?;
    let mut contenders = Vec::new();
    if options.wants("floor") {
        contenders.push(words_only("floor", 8, near_floor(pair), options.samples)?);
    }
    if options.wants("syscall") {
        let samples = options.samples;
        contenders.push(Box::new(move || Ok(vec![floor::syscall(samples)])) as Contender<'_, BenchError>);
    }
    if options.wants("wake") {
        // A wake-up takes two orders of magnitude longer than a line.
        contenders.push(words_only("wake", 8, near_wake(pair), (options.samples / 50).max(1))?);
    }
    if options.wants("memcpy") {
        let target = options.stream / 4;
        for bytes in COPY_SIZES {
            contenders.push(Box::new(move || Ok(vec![floor::memcpy(bytes, target)])));
        }
    }
    if options.wants("bare") {
        for &bytes in &options.sizes {
            contenders.push(bare(bytes, pair, options)?);
        }
    }
    for (row, stream) in [("stream", true), ("pubsub", false)] {
        if options.wants(row) {
            for &bytes in &options.sizes {
                contenders.push(ours(row, stream, bytes, pair, options)?);
            }
        }
    }
    for (row, count) in [("readers-1", 1), ("readers-64", 64)] {
        if options.wants(row) {
            contenders.push(Box::new(move || {
                let mut figures = Row::new(SUITE, row, 8);
                pubsub::readers(count, pair).map_err(in_row(row, 8))?.fill(&mut figures);
                Ok(vec![Observation::of_row(figures).explained("this row counts the publisher's processor time alone")])
            }));
        }
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

/// A row that carries single words: latency and nothing else.
fn words_only<'a, L: Link + 'a>(
    row: &'static str,
    bytes: usize,
    near: Result<Near<L, Child>, LinkError>,
    samples: u64,
) -> Result<Contender<'a, BenchError>, BenchError> {
    let mut near = near.map_err(in_row(row, bytes))?;
    Ok(Box::new(move || {
        let latencies = near.latency(samples).map_err(in_row(row, bytes))?;
        let observed = Observation::of_latencies(Row::new(SUITE, row, bytes), latencies);
        Ok(vec![observed.explained("this row carries single words and is measured for latency alone")])
    }))
}

/// A row that is measured for latency and for throughput; `copied` are the copies per byte in user space and kernel.
pub fn both_ways<'a, L: Link + 'a, F: Far + 'a>(
    row: &'static str,
    bytes: usize,
    mut near: Near<L, F>,
    samples: u64,
    stream: Duration,
    copied: (f64, f64),
) -> Contender<'a, BenchError> {
    Box::new(move || {
        let mut figures = Row::new(SUITE, row, bytes);
        near.stream(stream).map_err(in_row(row, bytes))?.fill(&mut figures);
        figures.copied_user_per_byte = Some(copied.0);
        figures.copied_kernel_per_byte = Some(copied.1);
        let latencies = near.latency(samples).map_err(in_row(row, bytes))?;
        Ok(vec![Observation::of_latencies(figures, latencies).explained("not measured by this row")])
    })
}

/// Calls `$body` with `WORDS` as the number of words of a payload where the loops are compiled for it, else as 0.
#[macro_export]
macro_rules! with_words {
    ($bytes:expr, $WORDS:ident => $body:expr) => {
        match $bytes {
            8 => {
                const $WORDS: usize = 1;
                $body
            }
            40 => {
                const $WORDS: usize = 5;
                $body
            }
            64 => {
                const $WORDS: usize = 8;
                $body
            }
            _ => {
                const $WORDS: usize = 0;
                $body
            }
        }
    };
}

fn near_floor(pair: Pair) -> Result<Near<Line, Child>, LinkError> {
    let (child, sides) = side::connect("floor", 8, Line::REGION_BYTES, pair)?;
    Ok(Near::new(Line::open(&sides)?, child, 8))
}

fn far_floor(channel: &Channel) -> RoleResult {
    let (_pinned, sides) = side::accept(channel, |_| Line::REGION_BYTES)?;
    serve(channel, &mut Line::open(&sides)?)
}

fn near_wake(pair: Pair) -> Result<Near<Sleeper, Child>, LinkError> {
    use std::os::fd::AsFd;
    let child = Child::spawn("wake")?;
    let (ours, theirs) = Sleeper::descriptors()?;
    child.channel().send(&pair.far, &[ours.as_fd(), theirs.as_fd()])?;
    Ok(Near::new(Sleeper::new(ours, theirs), child, 8))
}

fn far_wake(channel: &Channel) -> RoleResult {
    let (cpu, fds) = channel.receive::<usize>(2)?;
    let _pinned = pin::pin(cpu)?;
    let [theirs, ours] = <[_; 2]>::try_from(fds).map_err(|_| "two descriptors were counted")?;
    serve(channel, &mut Sleeper::new(ours, theirs))
}

fn bare<'a>(bytes: usize, pair: Pair, options: &IpcOptions) -> Result<Contender<'a, BenchError>, BenchError> {
    let geometry = Geometry::new(bytes);
    let (child, sides) = side::connect("bare", bytes, geometry.region_bytes(), pair).map_err(in_row("bare", bytes))?;
    with_words!(bytes, WORDS => {
        let link = Bare::<WORDS>::open(geometry, &sides.ours, &sides.theirs).map_err(in_row("bare", bytes))?;
        let near = Near::new(link, child, bytes);
        Ok(both_ways("bare", bytes, near, options.samples, options.stream, (0.0, 0.0)))
    })
}

/// Row `pubsub` or `stream` of one size.
fn ours<'a>(
    row: &'static str,
    stream: bool,
    bytes: usize,
    pair: Pair,
    options: &IpcOptions,
) -> Result<Contender<'a, BenchError>, BenchError> {
    let mut near = pubsub::near(bytes, stream, pair).map_err(in_row(row, bytes))?;
    let (samples, target) = (options.samples, options.stream);
    Ok(Box::new(move || {
        let mut figures = Row::new(SUITE, row, bytes);
        // No system call is part of a hand-over, so that the kernel has nothing to copy.
        figures.copied_kernel_per_byte = Some(0.0);
        // A payload that travels in the entry is written there and read out of it, which the ledgers take for a part of
        // the message; what they count comes on top.
        let in_entry = if bytes <= 40 { 2.0 } else { 0.0 };
        if stream {
            near.stream(target).map_err(in_row(row, bytes))?.fill(&mut figures);
            let counted = near.copied_user_per_byte().map_err(in_row(row, bytes))?;
            figures.copied_user_per_byte = Some(in_entry + counted);
            return Ok(vec![Observation::of_row(figures).explained("this row is measured for throughput alone")]);
        }
        let latencies = near.latency(samples).map_err(in_row(row, bytes))?;
        figures.copied_user_per_byte = Some(in_entry + near.copied_user_per_byte().map_err(in_row(row, bytes))?);
        Ok(vec![Observation::of_latencies(figures, latencies).explained("this row is measured for latency alone")])
    }))
}

fn far_bare(channel: &Channel) -> RoleResult {
    let (_pinned, sides) = side::accept(channel, |bytes| Geometry::new(bytes).region_bytes())?;
    let geometry = Geometry::new(sides.payload_bytes);
    with_words!(sides.payload_bytes, WORDS => {
        serve(channel, &mut Bare::<WORDS>::open(geometry, &sides.ours, &sides.theirs)?)
    })
}
