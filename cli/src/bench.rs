//! `zcmi bench`: what it costs here, beside what the machine itself costs.

use std::path::PathBuf;
use std::sync::OnceLock;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use zcmi_bench::ipc::{self, BenchError, IpcOptions};
use zcmi_bench::table;

use crate::failure::Failure;
use crate::say::{self, Tell};

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

impl Bench {
    pub(crate) fn json(&self) -> bool {
        let Suite::Ipc(ipc) = &self.suite;
        ipc.json.as_ref().is_some_and(|path| path.as_os_str() == "-")
    }

    pub(crate) fn run(&self) -> Result<(), Failure> {
        let Suite::Ipc(ipc) = &self.suite;
        let mut options = if ipc.quick { IpcOptions::quick() } else { IpcOptions::default() };
        options.rows.clone_from(&ipc.row);
        if !ipc.bytes.is_empty() {
            options.sizes.retain(|size| ipc.bytes.contains(size));
        }
        options.progress = Some(progress);
        let tell = Tell { json: self.json(), quiet: false };
        // Ctrl-C ends this process at once: the peers die with it, and nothing of them has a name.
        let bar = BAR.get_or_init(|| tell.steps_bar(1));
        let measured = ipc::run(&options);
        bar.finish_and_clear();
        let report = match measured {
            Ok(report) => report,
            Err(BenchError::Unavailable { reason }) => {
                say::line(format!("SKIP: {reason}"));
                return Ok(());
            }
            Err(error @ BenchError::UnknownRow { .. }) => return Err(Failure::usage_of(&error)),
            Err(error) => return Err(Failure::of("the bench failed", &error)),
        };
        match &ipc.json {
            Some(_) if self.json() => {
                let text = report.to_json().map_err(|error| Failure::of("the report is no document", &error))?;
                say::print(&format!("{}\n", text.trim_end()))
            }
            Some(path) => {
                let cannot = |error| Failure::of(format_args!("{} cannot be written", path.display()), &error);
                report.write(path).map_err(cannot)?;
                say::print(&table::render(&report))
            }
            None => say::print(&table::render(&report)),
        }
    }
}
