//! `peers-send`: a file from `zcmi send` to `zcmi recv`, and the same file by iperf3, between two namespaces over veth.
//!
//! Rows, all of the suite `send`: `iperf3-z` (`iperf3 -Z`, from a buffer into nothing), `zcmi-null` (the file to
//! `/dev/null`, not hashed), `zcmi-null-hashed`; `iperf3-z-file` (`iperf3 -Z -F` at both ends, from the file into
//! another), `zcmi-file`, `zcmi-file-hashed`. Processor time is that of both processes from their start to their end,
//! and of `ksoftirqd` meanwhile. The output has the shape `zcmi-bench/1`.
//!
//! The file has no name while it is sent, and goes with this process whatever ends it; what is received lies in a
//! directory that is removed at the end, also after a failure.
#![deny(unsafe_code)]

#[path = "../net/process.rs"]
mod process;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use zcmi_bench::cpu::CpuMeter;
use zcmi_bench::host::Host;
use zcmi_bench::pin::{self, Pair};
use zcmi_bench::report::{Report, Row};
use zcmi_bench::wires::{Family, Side, Wire, WireKind};

use process::{NotMeasured, Running, because};

const SUITE: &str = "send";
/// Ports in the wire's own namespaces, where nobody else is.
const PORT: &str = "20078";
/// Bytes that the file is made of at a time.
const BLOCK_BYTES: usize = 1 << 20;
/// By what part of it what iperf3 sends may differ from the file: it counts in blocks, and many are under way at its
/// end. What it cost is divided by what it sent.
const SLACK_PART: u64 = 20;
/// How long a transfer may take: a disk of 20 MB/s is quick enough for 4 GiB.
const PATIENCE: Duration = Duration::from_secs(300);
/// The congestion control of both ends.
const CUBIC: &str = "cubic";

/// Measure `zcmi send` beside iperf3
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The program `zcmi`
    #[arg(long, value_name = "FILE")]
    zcmi: PathBuf,
    /// Bytes of the file
    #[arg(long, default_value_t = 4 << 30)]
    bytes: u64,
    /// A directory on a file system with room for the file twice
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    /// Rows to measure; all if none is named
    #[arg(long = "row")]
    rows: Vec<String>,
    /// Measure the rows in the reversed order
    #[arg(long)]
    reversed: bool,
    /// Write the report to this file and not to standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy)]
struct Cell {
    name: &'static str,
    is_zcmi: bool,
    hashed: bool,
    /// Whether it is received into a file.
    stored: bool,
}

const fn cell(name: &'static str, is_zcmi: bool, hashed: bool, stored: bool) -> Cell {
    Cell { name, is_zcmi, hashed, stored }
}

const CELLS: [Cell; 6] = [
    cell("iperf3-z", false, false, false),
    cell("zcmi-null", true, false, false),
    cell("zcmi-null-hashed", true, true, false),
    cell("iperf3-z-file", false, false, true),
    cell("zcmi-file", true, false, true),
    cell("zcmi-file-hashed", true, true, true),
];

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(NotMeasured(reason)) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// What is received, and nothing of it when this is dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What all rows share.
struct Stage<'a> {
    arguments: &'a Arguments,
    wire: Wire,
    pair: Pair,
    file: File,
    scratch: Scratch,
}

fn run(arguments: &Arguments) -> Result<(), NotMeasured> {
    let bytes = usize::try_from(arguments.bytes)?;
    let mut cells: Vec<Cell> = CELLS.into_iter().collect();
    cells.retain(|cell| arguments.rows.is_empty() || arguments.rows.iter().any(|row| row == cell.name));
    if arguments.reversed {
        cells.reverse();
    }
    let stage = Stage::set(arguments);
    if let Err(NotMeasured(reason)) = &stage {
        eprintln!("SKIP: {reason}");
    }
    let mut rows = Vec::new();
    for cell in cells {
        let mut row = Row::new(SUITE, cell.name, bytes);
        row.wire = Some(WireKind::Veth.name().to_owned());
        row.congestion = Some(CUBIC.to_owned());
        let mut found = row.clone();
        let measured = match &stage {
            Ok(stage) => stage.measure(cell, &mut found),
            Err(NotMeasured(reason)) => because(reason),
        };
        rows.push(match measured {
            Ok(()) => found.explain("not measured by this row"),
            Err(NotMeasured(reason)) => {
                eprintln!("SKIP: {}: {reason}", cell.name);
                row.explain(&reason)
            }
        });
    }
    let report = Report::new(Host::here(), rows);
    match &arguments.json {
        Some(path) => report.write(path)?,
        None => print!("{}", report.to_json()?),
    }
    Ok(())
}

/// Makes the file, which has no name any more when it is there, and has the disk take it, so that nothing of that is
/// left to do when it is sent.
fn make(directory: &Path, bytes: u64) -> Result<File, NotMeasured> {
    let path = directory.join("source");
    let mut file = File::options().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    let mut block = vec![0_u8; BLOCK_BYTES];
    let (mut left, mut state) = (bytes, 0x9e37_79b9_7f4a_7c15_u64);
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let part = left.min(BLOCK_BYTES as u64);
        file.write_all(&block[..part as usize])?;
        left -= part;
    }
    file.sync_all()?;
    Ok(file)
}

impl<'a> Stage<'a> {
    fn set(arguments: &'a Arguments) -> Result<Self, NotMeasured> {
        let pair = pin::pair()?;
        let wire = Wire::make(WireKind::Veth).map_err(|error| NotMeasured(error.reason()))?;
        // Programs that do not choose for themselves get what the route says; a namespace has no say in its default.
        for (side, far) in [(Side::Sender, Side::Receiver), (Side::Receiver, Side::Sender)] {
            let Some(far) = wire.address(far, Family::V4) else { return because("the wire has no addresses") };
            wire.ip(side, &["route", "replace", &far.to_string(), "dev", "zcmi-wire", "congctl", CUBIC])?;
        }
        let above = arguments.directory.clone().unwrap_or_else(std::env::temp_dir);
        let room = rustix::fs::statvfs(&above)?;
        let room = room.f_bavail * room.f_frsize;
        if room < 2 * arguments.bytes + (64 << 20) {
            return because(format!("{} has room for {room} bytes; give another --directory", above.display()));
        }
        let scratch = Scratch(above.join(format!("zcmi-peers-send-{}", std::process::id())));
        fs::create_dir(&scratch.0)?;
        let file = make(&scratch.0, arguments.bytes)?;
        Ok(Self { arguments, wire, pair, file, scratch })
    }

    /// Reads the file once, so that all of it is in memory, and compares it with what was received, if anything was.
    fn read_through(&self, other: Option<&Path>) -> Result<(), NotMeasured> {
        let mut other = other.map(File::open).transpose()?;
        let (mut ours, mut theirs) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
        let mut at = 0;
        while at < self.arguments.bytes {
            let part = (self.arguments.bytes - at).min(BLOCK_BYTES as u64) as usize;
            self.file.read_exact_at(&mut ours[..part], at)?;
            if let Some(other) = &mut other {
                other.read_exact(&mut theirs[..part])?;
                if ours[..part] != theirs[..part] {
                    return because(format!("what was received differs within 1 MiB from byte {at} on"));
                }
            }
            at += part as u64;
        }
        Ok(())
    }

    fn measure(&self, cell: Cell, row: &mut Row) -> Result<(), NotMeasured> {
        self.read_through(None)?;
        let target = if cell.stored { self.scratch.0.join("received") } else { "/dev/null".into() };
        let measured = if cell.is_zcmi { self.zcmi(cell, &target, row) } else { self.iperf(cell, &target, row) };
        if !cell.stored {
            return measured;
        }
        // What iperf3 wrote is not looked at: its receiver is ended by another connection, and may miss the last bytes.
        let compared = if cell.is_zcmi && measured.is_ok() { self.read_through(Some(&target)) } else { Ok(()) };
        let removed = if target.exists() { fs::remove_file(&target) } else { Ok(()) };
        measured.and(compared)?;
        Ok(removed?)
    }

    /// The file, as another process can open it.
    fn source(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Starts the receiving program, and when it listens the sending one, and measures both from their start to their
    /// end. Returns what the sender printed, and how long it took.
    fn both(&self, receiver: Command, sender: Command, row: &mut Row) -> Result<(String, f64), NotMeasured> {
        let (mut receiver, mut sender) = (receiver, sender);
        receiver.stdin(Stdio::null()).stdout(Stdio::piped());
        sender.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut receiver = Running::start_on(&self.wire, Side::Receiver, receiver, self.pair.far)?;
        let at_receiver = CpuMeter::start(&[receiver.pid()?])?;
        receiver.until("listening")?;
        let begin = Instant::now();
        let sender = Running::start_on(&self.wire, Side::Sender, sender, self.pair.near)?;
        let at_sender = CpuMeter::start(&[sender.pid()?])?;
        sender.ended(PATIENCE)?;
        let elapsed = begin.elapsed().as_secs_f64();
        receiver.ended(PATIENCE)?;
        let (there, here) = (at_receiver.read()?, at_sender.read()?);
        let printed = sender.output("the sender")?;
        if !receiver.finish(PATIENCE)? {
            return because("the receiver failed; see its message above");
        }
        let cpu_ns = there.others_ns + here.others_ns + there.ksoftirqd_ns.unwrap_or(0);
        row.cpu_s_per_gb = Some(cpu_ns as f64 / self.arguments.bytes as f64);
        Ok((printed, elapsed))
    }

    fn zcmi(&self, cell: Cell, target: &Path, row: &mut Row) -> Result<(), NotMeasured> {
        let address = self.address(Side::Receiver)?;
        let common = |word: &str, address: &str| {
            let mut command = Command::new(&self.arguments.zcmi);
            command.args([word, address, "--insecure", "--quiet", "--json"]);
            command.args((!cell.hashed).then_some("--no-hash"));
            command
        };
        let mut receiver = common("recv", &format!("{address}:{PORT}"));
        receiver.arg("--output").arg(target);
        let mut sender = common("send", &format!("{address}:{PORT}"));
        sender.arg(self.source());
        let (printed, elapsed) = self.both(receiver, sender, row)?;
        let end: serde_json::Value = serde_json::from_str(printed.lines().last().unwrap_or_default())?;
        if end["bytes"] != self.arguments.bytes || end["hashed"] != cell.hashed {
            return because(format!("zcmi send says {end}"));
        }
        row.bytes_per_s = Some(self.arguments.bytes as f64 / end["seconds"].as_f64().unwrap_or(elapsed));
        Ok(())
    }

    fn iperf(&self, cell: Cell, target: &Path, row: &mut Row) -> Result<(), NotMeasured> {
        let mut receiver = Command::new("iperf3");
        receiver.args(["-s", "-1", "--forceflush", "-p", PORT]);
        let mut sender = Command::new("iperf3");
        let bytes = self.arguments.bytes.to_string();
        sender.args(["-c", &self.address(Side::Receiver)?, "-p", PORT, "-C", CUBIC, "-Z", "-J", "-n", &bytes]);
        if cell.stored {
            receiver.arg("-F").arg(target);
            sender.args(["-F", &self.source()]);
        }
        let (printed, _) = self.both(receiver, sender, row)?;
        let found: serde_json::Value = serde_json::from_str(&printed)?;
        let sent = &found["end"]["sum_sent"];
        // It ends in the midst of blocks, a few before the end of a file or behind it.
        let Some(sent_bytes) = sent["bytes"]
            .as_u64()
            .filter(|&sent| sent.abs_diff(self.arguments.bytes) <= self.arguments.bytes / SLACK_PART)
        else {
            return because(format!("iperf3 sent {}, not {bytes} bytes", sent["bytes"]));
        };
        row.cpu_s_per_gb = row.cpu_s_per_gb.map(|cpu| cpu * self.arguments.bytes as f64 / sent_bytes as f64);
        row.bytes_per_s = sent["bits_per_second"].as_f64().map(|bits| bits / 8.0);
        Ok(())
    }

    fn address(&self, side: Side) -> Result<String, NotMeasured> {
        match self.wire.address(side, Family::V4) {
            Some(address) => Ok(address.to_string()),
            None => because("the wire has no addresses"),
        }
    }
}

impl Running {
    /// Waits for its end, and leaves it to be collected: its processor time can be read until then.
    fn ended(&self, patience: Duration) -> Result<(), NotMeasured> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        use rustix::process::{PidfdFlags, pidfd_open};
        let pidfd = pidfd_open(self.pid()?, PidfdFlags::empty())?;
        let patience = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: 0 };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience))? {
            0 => because(format!("it did not end in {} s", patience.tv_sec)),
            _ => Ok(()),
        }
    }
}
