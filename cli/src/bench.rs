//! `zcmi bench`: what it costs here, beside what the machine itself costs.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use zcmi_bench::connections::{self, ConnectionsError, ConnectionsOptions};
use zcmi_bench::host::Host;
use zcmi_bench::ipc::{self, BenchError, IpcOptions};
use zcmi_bench::net::peer::{self, PeerOptions, ServeOptions, Served};
use zcmi_bench::net::{self, NetBenchError, NetOptions};
use zcmi_bench::regret::{self, RegretCell, RegretOptions};
use zcmi_bench::report::{Report, ReportError};
use zcmi_bench::table;
use zcmi_bench::wires::WireKind;

use crate::failure::Failure;
use crate::say::{self, Tell, harmless};
use crate::transfer::reach::{Trust, seen_from_elsewhere, tcp_addresses};

const EXAMPLES: &str = "\
Examples:
  zcmi bench ipc --quick                      a look in well under a minute
  zcmi bench ipc --json report.json           all rows, ten rounds, also as a document
  zcmi bench ipc --row floor --row pubsub     only these rows
  zcmi bench ipc --row bare --row stream --bytes 64
                                              only these rows, for 64 bytes

Rows: floor, syscall, wake and memcpy are the machine's own; bare is a ring written by hand; pubsub is the latency and
stream the throughput of zcmi. Two processors are needed, one for each process; with fewer it says SKIP.
Exit codes: 0 measured, or skipped with a reason; 1 failed; 2 usage; 130 interrupted.";

/// Measure
#[derive(Args, Debug)]
pub(crate) struct Bench {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Debug, Subcommand)]
enum Suite {
    Ipc(Ipc),
    Net(Net),
    Connections(Connections),
}

/// Measure what it costs to hand a payload to another process of this host
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
struct Ipc {
    /// Take fewer rounds and samples
    #[arg(long)]
    quick: bool,
    /// Write the report as JSON to FILE, or to stdout instead of the table if FILE is `-`
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure this row only; may be given several times
    #[arg(long, value_name = "ROW")]
    row: Vec<String>,
    /// Measure the rows of two processes with payloads of this size only; may be given several times
    #[arg(long, value_name = "BYTES", value_parser = size)]
    bytes: Vec<usize>,
}

const NET_EXAMPLES: &str = "\
Examples:
  zcmi bench net --quick                      a look in under three minutes
  zcmi bench net --wire veth --bytes 1048576  all paths, over a veth pair, for messages of 1 MiB
  zcmi bench net --row adaptive --row raw     what is chosen, beside a plain loop of write and read
  zcmi bench net --wire ifb --bytes 60200     datagrams into a sink that does not copy
  zcmi bench net --wire lo --bytes 64 --streams 1 --row raw --row adaptive --samples 1000000
                                              round trips enough for the tail
  zcmi bench net --regret --quick             the choice beside the best path, a look in under three minutes
  zcmi bench net --regret --resume cells.json all cells, hours; goes on where it was cut off
  zcmi bench net --flips                      wires that change under a connection
  zcmi bench net --serve 10.0.0.2:7071 --key-file k    on one host: serve measurements until Ctrl-C
  zcmi bench net --peer 10.0.0.2:7071 --key-file k --quick    on the other: measure the network between the two
  zcmi bench net --denied --quick             what paths need denied, one by one and together, beside plain writes

Rows: raw is a plain loop without messages, and if asked for raw-multishot, received by io_uring; write, zerocopy,
uring-send, uring-zc, uring-fixed, sendfile and splice are the paths, forced; adaptive chooses; udp and udp-unreliable
are datagrams by the cheapest path. Wires: lo, veth, veth-xdp (which lies about copies), unix, and ifb, where nobody
receives and all rows are datagrams at a constant rate; and if asked for relay, which loses one packet in a thousand and
takes 20 ms there and back (take a --length of some seconds). All but unix and the host's own loopback take root, whose
namespaces are gone with the bench. Two processors are needed; with fewer it says SKIP.
With --peer the wire is called peer. Throughput is what the other host received, and processor time is that of both.
Both ends ask for cubic; the table says what was in force. One TCP port, and for datagrams the UDP port of the same
number, must be open. Without a key only loopback addresses and explicit --insecure are served. A host serves one
measurement at a time; datagrams that do not pass, and copies in the kernel that nobody can know, have a reason in the
document.
Exit codes: 0 measured, or skipped with a reason; 1 failed; 2 usage; 130 interrupted.";

/// What a change of a wire under a connection has no use for.
const NOT_WITH_FLIPS: [&str; 8] = ["regret", "row", "wire", "bytes", "streams", "rounds", "length", "no_latency"];

/// What measures wires that are made here, and what a host that only serves has no use for.
const NOT_WITH_PEER: [&str; 5] = ["wire", "regret", "flips", "denied", "resume"];
const NOT_WITH_SERVE: [&str; 15] = [
    "peer",
    "quick",
    "json",
    "row",
    "wire",
    "bytes",
    "streams",
    "rounds",
    "length",
    "samples",
    "no_latency",
    "regret",
    "flips",
    "denied",
    "resume",
];

/// Measure what it costs to send messages over a wire, by each path
#[derive(Args, Debug)]
#[command(after_help = NET_EXAMPLES)]
struct Net {
    /// Take fewer sizes, rounds and samples
    #[arg(long)]
    quick: bool,
    /// Write the report as JSON to FILE, or to stdout instead of the table if FILE is `-`
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure this row only; may be given several times
    #[arg(long, value_name = "ROW")]
    row: Vec<String>,
    /// Measure this wire only; may be given several times
    #[arg(long, value_name = "WIRE", value_parser = wire)]
    wire: Vec<WireKind>,
    /// Measure messages of this size only; may be given several times
    #[arg(long, value_name = "BYTES", value_parser = net_size)]
    bytes: Vec<usize>,
    /// Measure with so many connections only; may be given several times
    #[arg(long, value_name = "COUNT", value_parser = connections)]
    streams: Vec<usize>,
    /// Measure each cell so often
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Let each measurement take so long
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u16).range(10..))]
    length: Option<u16>,
    /// Take so many round trips a round, a million or more for p99.9; with --peer at the most as many as fit in five
    /// seconds
    #[arg(
        long,
        value_name = "COUNT",
        value_parser = clap::value_parser!(u64).range(1..=net::MOST_SAMPLES),
        conflicts_with_all = ["no_latency", "regret", "flips", "denied"]
    )]
    samples: Option<u64>,
    /// Measure throughput alone
    #[arg(long)]
    no_latency: bool,
    /// Compare the choice with the best path that could have been forced
    #[arg(long, conflicts_with_all = ["row", "no_latency"])]
    regret: bool,
    /// Change wires under a connection, and see how soon it uses the best path again
    #[arg(long, conflicts_with_all = NOT_WITH_FLIPS)]
    flips: bool,
    /// Deny one facility of the kernel after the other, and compare the choice with plain writes
    #[arg(long, conflicts_with_all = ["flips", "regret", "row", "wire", "bytes", "streams", "no_latency"])]
    denied: bool,
    /// Keep what the comparison measured in FILE, and go on from what is there
    #[arg(long, value_name = "FILE", requires = "regret")]
    resume: Option<PathBuf>,
    /// Measure the network between this host and one that serves there
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = NOT_WITH_PEER)]
    peer: Option<String>,
    /// Serve measurements there until Ctrl-C, one at a time; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = NOT_WITH_SERVE)]
    serve: Option<String>,
    #[command(flatten)]
    trust: Trust,
}

const CONNECTIONS_EXAMPLES: &str = "\
Examples:
  zcmi bench connections --quick              a look in some seconds, at 1,000 connections
  zcmi bench connections --json report.json   10,000 connections, five rounds, also as a document

The server is a process of its own on a loopback; every connection has a request under way, one in a hundred of 1 MiB,
and each byte comes back and is compared. The processor time and the memory are those of the server alone.
Exit codes: 0 measured, or skipped with a reason; 1 failed; 2 usage; 130 interrupted.";

/// Measure what a server of many connections costs, for each request and for each connection at rest
#[derive(Args, Debug)]
#[command(after_help = CONNECTIONS_EXAMPLES)]
struct Connections {
    /// Take fewer connections and rounds
    #[arg(long)]
    quick: bool,
    /// Write the report as JSON to FILE, or to stdout instead of the table if FILE is `-`
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure with so many connections
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: Option<u32>,
    /// Measure so often
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Let each measurement take so long
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u16).range(10..))]
    length: Option<u16>,
    /// Bytes of one request in a hundred [default: 1048576]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    large: Option<u32>,
}

fn net_size(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|size| net::SIZES.contains(size) || *size == net::PACKET_BYTES);
    size.ok_or_else(|| format!("the sizes that are measured are {:?} and {}", net::SIZES, net::PACKET_BYTES))
}

fn connections(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| (1..=8).contains(count)).ok_or_else(|| "1 to 8 connections can be used".into())
}

fn wire(text: &str) -> Result<WireKind, String> {
    WireKind::from_name(text).ok_or_else(|| {
        let names: Vec<&str> = WireKind::ALL.iter().map(|kind| kind.name()).collect();
        format!("the wires are {}", names.join(", "))
    })
}

impl Net {
    fn options(&self) -> NetOptions {
        let mut options = if self.quick { NetOptions::quick() } else { NetOptions::default() };
        options.rows.clone_from(&self.row);
        if !self.bytes.is_empty() {
            options.sizes.clone_from(&self.bytes);
        }
        if !self.wire.is_empty() {
            options.wires.clone_from(&self.wire);
        }
        if !self.streams.is_empty() {
            options.streams.clone_from(&self.streams);
        }
        options.rounds = self.rounds.map_or(options.rounds, usize::from);
        options.stream = self.length.map_or(options.stream, |length| Duration::from_millis(length.into()));
        if let Some(samples) = self.samples {
            (options.samples, options.round_trip_bytes) = (samples, u64::MAX);
        }
        options.samples *= u64::from(!self.no_latency);
        options.progress = Some(progress);
        options
    }
}

/// Reads one of the sizes that are measured.
fn size(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|size| ipc::SIZES.contains(size));
    size.ok_or_else(|| format!("the sizes that are measured are {:?}", ipc::SIZES))
}

/// The bar; the suite tells its progress to a plain function.
static BAR: OnceLock<ProgressBar> = OnceLock::new();

fn progress(done: usize, total: usize) {
    if let Some(bar) = BAR.get() {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    }
}

/// What came of a suite.
enum Measured {
    Report(Box<Report>),
    /// A document that is no report, and what is said of it to people beside what was told meanwhile.
    Other(String, Option<String>),
    Skipped(String),
}

impl Measured {
    fn other(document: Result<String, ReportError>, text: Option<String>) -> Result<Self, Failure> {
        let document = document.map_err(|error| Failure::of("what was measured is no document", &error))?;
        Ok(Self::Other(document, text))
    }
}

impl Bench {
    fn document(&self) -> Option<&PathBuf> {
        match &self.suite {
            Suite::Ipc(ipc) => ipc.json.as_ref(),
            Suite::Net(net) => net.json.as_ref(),
            Suite::Connections(connections) => connections.json.as_ref(),
        }
    }

    pub(crate) fn json(&self) -> bool {
        self.document().is_some_and(|path| path.as_os_str() == "-")
    }

    pub(crate) fn run(&self) -> Result<(), Failure> {
        let tell = Tell { json: self.json(), quiet: false };
        self.document_has_a_place()?;
        // Ctrl-C ends this process at once: the peers die with it, and nothing of them has a name.
        let bar = BAR.get_or_init(|| tell.steps_bar(1));
        let measured = match &self.suite {
            Suite::Ipc(ipc) => ipc.measure(),
            Suite::Net(net) => net.measure(),
            Suite::Connections(connections) => connections.measure(),
        };
        bar.finish_and_clear();
        let report = match measured? {
            Measured::Report(report) => report,
            Measured::Other(document, text) => return self.print_other(&document, text.as_deref()),
            Measured::Skipped(reason) => {
                say::line(format!("SKIP: {reason}"));
                return Ok(());
            }
        };
        match self.document() {
            Some(_) if self.json() => {
                let text = report.to_json().map_err(|error| Failure::of("the report is no document", &error))?;
                say::print(&format!("{}\n", text.trim_end()))
            }
            Some(path) => {
                let cannot = |error| Failure::of(format_args!("{} cannot be written", path.display()), &error);
                say::print(&table::render(&report))?;
                report.write(path).map_err(cannot)
            }
            None => say::print(&table::render(&report)),
        }
    }
}

impl Bench {
    /// Says at once what would be found out after minutes: that the document cannot be written.
    fn document_has_a_place(&self) -> Result<(), Failure> {
        let Some(path) = self.document().filter(|_| !self.json()) else { return Ok(()) };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let cannot = |error| Failure::of(format_args!("{} cannot be written", path.display()), &error);
        match std::fs::metadata(directory) {
            Err(error) => Err(cannot(error)),
            Ok(found) if !found.is_dir() => Err(cannot(std::io::ErrorKind::NotADirectory.into())),
            Ok(_) if path.is_dir() => Err(cannot(std::io::ErrorKind::IsADirectory.into())),
            Ok(_) => Ok(()),
        }
    }

    fn print_other(&self, document: &str, text: Option<&str>) -> Result<(), Failure> {
        match self.document() {
            Some(_) if self.json() => return say::print(document),
            Some(path) => {
                let cannot = |error| Failure::of(format_args!("{} cannot be written", path.display()), &error);
                std::fs::write(path, document).map_err(cannot)?;
            }
            None => {}
        }
        text.map_or(Ok(()), say::print)
    }
}

impl Ipc {
    fn measure(&self) -> Result<Measured, Failure> {
        let mut options = if self.quick { IpcOptions::quick() } else { IpcOptions::default() };
        options.rows.clone_from(&self.row);
        if !self.bytes.is_empty() {
            options.sizes.retain(|size| self.bytes.contains(size));
        }
        options.progress = Some(progress);
        match ipc::run(&options) {
            Ok(report) => Ok(Measured::Report(Box::new(report))),
            Err(BenchError::Unavailable { reason }) => Ok(Measured::Skipped(reason)),
            Err(error @ BenchError::UnknownRow { .. }) => Err(Failure::usage_of(&error)),
            Err(error) => Err(Failure::of("the bench failed", &error)),
        }
    }
}

/// Shows a cell of the comparison, above the bar.
fn show(cell: &RegretCell, done: usize, total: usize) {
    progress(done, total);
    if let Some(bar) = BAR.get() {
        bar.suspend(|| say::line(cell.to_string()));
    }
}

impl Net {
    fn regret(&self) -> Result<Measured, Failure> {
        let mut options = if self.quick { RegretOptions::quick() } else { RegretOptions::default() };
        let given = self.options();
        if !self.bytes.is_empty() {
            options.sizes = given.sizes;
        }
        if !self.wire.is_empty() {
            options.wires = given.wires;
        }
        if !self.streams.is_empty() {
            options.streams = given.streams;
        }
        options.rounds = self.rounds.map_or(options.rounds, usize::from);
        options.length = self.length.map_or(options.length, |length| Duration::from_millis(length.into()));
        options.file.clone_from(&self.resume);
        options.progress = Some(show);
        let host = Host::here();
        match regret::run(&options) {
            Ok(regret) => Measured::other(regret.to_json(&host), Some(regret.to_string())),
            Err(NetBenchError::Unavailable { reason }) => Ok(Measured::Skipped(reason)),
            Err(error) => Err(Failure::of("the bench failed", &error)),
        }
    }

    /// Serves measurements; it ends only when it cannot.
    fn serve(&self, address: &str) -> Result<Measured, Failure> {
        let options = ServeOptions {
            address: tcp_addresses(address)?.swap_remove(0),
            key: self.trust.key()?,
            insecure: self.trust.insecure,
        };
        let trust = self.trust.to_say();
        let tell = |served: &Served| {
            say::line(match served {
                Served::Listening(address) => {
                    let there = seen_from_elsewhere(address);
                    format!("zcmi: listening at {address}; run `zcmi bench net --peer {there}{trust}`")
                }
                Served::Began => "zcmi: somebody measures".into(),
                Served::Ended { measurements, why } => {
                    format!("zcmi: {} over: {}", say::counted(*measurements as usize, "measurement"), harmless(why))
                }
                Served::TurnedAway { count, why } => {
                    format!(
                        "zcmi: {} turned away so far, the last because {}",
                        say::counted(*count as usize, "connection"),
                        harmless(why)
                    )
                }
                _ => return,
            });
        };
        match peer::serve(&options, &mut { tell }) {
            Err(error) => Err(Failure::of("the bench failed", &error)),
        }
    }

    fn measure(&self) -> Result<Measured, Failure> {
        if let Some(address) = &self.serve {
            return self.serve(address);
        }
        if self.peer.is_none() && self.trust.is_said() {
            return Err(Failure::usage("--key-file and --insecure are for --peer and --serve"));
        }
        if self.regret {
            return self.regret();
        }
        if self.flips {
            let tell = |flipped: &net::flips::Flipped| say::line(flipped.to_string());
            let host = Host::here();
            return match net::flips::run(tell) {
                Ok(flips) => Measured::other(flips.to_json(&host), None),
                Err(NetBenchError::Unavailable { reason }) => Ok(Measured::Skipped(reason)),
                Err(error) => Err(Failure::of("the bench failed", &error)),
            };
        }
        if self.denied {
            let tell = |outcome: &net::denied::Outcome| say::line(outcome.to_string());
            let rounds = self.rounds.map_or(if self.quick { 3 } else { 11 }, usize::from);
            let length = self.length.map_or(if self.quick { 200 } else { 1000 }, u64::from);
            let host = Host::here();
            return match net::denied::run(rounds, Duration::from_millis(length), tell) {
                Ok(outcomes) => Measured::other(outcomes.to_json(&host), None),
                Err(NetBenchError::Unavailable { reason }) => Ok(Measured::Skipped(reason)),
                Err(error) => Err(Failure::of("the bench failed", &error)),
            };
        }
        let measured = match &self.peer {
            Some(address) => {
                let (addresses, key) = (tcp_addresses(address)?, self.trust.key()?);
                peer::run(&self.options(), &PeerOptions { addresses, key, insecure: self.trust.insecure })
            }
            None => net::run(&self.options()),
        };
        match measured {
            Ok(report) => Ok(Measured::Report(Box::new(report))),
            Err(NetBenchError::Unavailable { reason }) => Ok(Measured::Skipped(reason)),
            Err(error @ NetBenchError::UnknownRow { .. }) => Err(Failure::usage_of(&error)),
            Err(error) => Err(Failure::of("the bench failed", &error)),
        }
    }
}

impl Connections {
    fn measure(&self) -> Result<Measured, Failure> {
        let mut options = if self.quick { ConnectionsOptions::quick() } else { ConnectionsOptions::default() };
        options.connections = self.connections.map_or(options.connections, |count| count as usize);
        options.rounds = self.rounds.map_or(options.rounds, usize::from);
        options.length = self.length.map_or(options.length, |length| Duration::from_millis(length.into()));
        options.large_bytes = self.large.map_or(options.large_bytes, |bytes| bytes as usize);
        options.progress = Some(progress);
        match connections::run(&options) {
            Ok(report) => Ok(Measured::Report(Box::new(report))),
            Err(ConnectionsError::Unavailable { reason }) => Ok(Measured::Skipped(reason)),
            Err(error) => Err(Failure::of("the bench failed", &error)),
        }
    }
}
