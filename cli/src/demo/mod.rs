//! `zcmi demo`: the main job on real data, beside a pipe and a Unix socket.
//!
//! ```text
//!  zcmi demo ──starts──▶ sender ══ pipe | socket | zcmi ══▶ receiver        one pair for each way and load
//!     ▲                     └──────────── reports ─────────────┘
//! ```
//!
//! The loads are frames as fast as they go, frames at a camera's pace (for the hand-over's latency), and a directory
//! tree as a tar stream. What producing and hashing cost is measured alone and subtracted. The processes meet in a
//! runtime directory that is removed at the end, or by the next demo if this one is killed; they die with this one.

mod content;
mod part;
mod place;
mod road;
mod table;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use crate::code::Fault;
use crate::descriptor::PIPE_BYTES;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::say::{self, Tell};
use part::{Load, Order, Report, Role};
use place::Place;
use road::Road;

/// What a camera needs.
const CAMERA_PER_SECOND: u32 = 60;
/// How long a pair of processes may take.
const LIMIT: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "\
Examples:
  zcmi demo                  100 frames and up to 512 MiB of a system directory, in under 40 s
  zcmi demo --dir ~/photos   the same with a directory of your own
  zcmi demo --quick --json   fewer frames and 64 MiB, in under 8 s, for programs

Exit codes: 0 everything arrived and all hashes agree; 1 failed; 2 usage; 130 interrupted.";

/// Show what zcmi is for: frames and files between two processes, beside a pipe and a socket
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Demo {
    /// Directory that is handed over as a tar stream
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Take less of everything
    #[arg(long)]
    quick: bool,
    /// Print the result as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// A part of the demo, which runs in a process of its own
#[derive(Args, Debug)]
pub(crate) struct DemoPart {
    order: String,
}

impl DemoPart {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        part::run(&self.order)
    }
}

/// What one pair of processes came to.
#[derive(Clone, Debug)]
struct Pass {
    sent: Report,
    received: Report,
}

impl Pass {
    fn seconds(&self) -> f64 {
        self.received.at_ns.saturating_sub(self.sent.at_ns) as f64 * 1e-9
    }

    /// CPU seconds for a GB, without what producing and hashing cost alone.
    fn cpu_s_per_gb(&self, alone: &Report) -> f64 {
        (self.sent.cpu_s + self.received.cpu_s - alone.cpu_s) / (self.received.bytes as f64 * 1e-9)
    }

    /// Bytes copied by the kernel for each byte that arrived, by its own count.
    fn copied_kernel(&self) -> Option<f64> {
        let through = self.sent.through_kernel? + self.received.through_kernel?;
        Some(through as f64 / self.received.bytes as f64)
    }

    /// Bytes copied by zcmi for each byte that arrived, by the ledgers of both processes; nothing on other roads.
    fn copied_user(&self) -> Option<f64> {
        let copied = self.sent.copied_user? + self.received.copied_user?;
        Some(copied as f64 / self.received.bytes as f64)
    }

    /// Bytes copied for each byte that arrived. On other roads than zcmi the programs themselves copy nothing.
    fn copied(&self) -> Option<f64> {
        Some(self.copied_kernel()? + self.copied_user().unwrap_or(0.0))
    }
}

/// All that was measured.
#[derive(Debug)]
struct Outcome {
    frames_alone: Report,
    tree_alone: Report,
    /// By [`Road::ALL`].
    frames: Vec<Pass>,
    paced: Vec<Pass>,
    tree: Vec<Pass>,
    dir: PathBuf,
    seconds: f64,
}

impl Outcome {
    fn hashes_agree(&self) -> bool {
        let same = |passes: &[Pass], hash: &str| passes.iter().all(|pass| pass.received.hash == hash);
        same(&self.frames, &self.frames_alone.hash)
            && same(&self.tree, &self.tree_alone.hash)
            && same(&self.paced, &self.paced[0].received.hash)
    }

    /// Whether zcmi's receiver read every message where it was written.
    fn all_in_place(&self) -> bool {
        [&self.frames, &self.paced, &self.tree].iter().all(|passes| {
            let zcmi = &passes[Road::Zcmi as usize].received;
            zcmi.in_place == zcmi.messages
        })
    }
}

impl Demo {
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    pub(crate) fn run(&self) -> Result<(), Failure> {
        let tell = Tell { json: self.json, quiet: false };
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => default_dir()?,
        };
        let dir = fs::canonicalize(&dir)
            .map_err(|error| Failure::of(format_args!("the directory {} cannot be read", dir.display()), &error))?;
        let stage = Stage { interrupt: Interrupt::install()?, place: Place::new()? };
        let (count, paced, limit) = if self.quick { (20, 15, 64 << 20) } else { (100, 100, 512 << 20) };
        let frames = Load::Frames { count, per_second: None };
        let camera = Load::Frames { count: paced, per_second: Some(CAMERA_PER_SECOND) };
        let tree = Load::Tree { root: dir.clone(), limit };
        let begin = Instant::now();
        let bar = tell.steps_bar(2 + 3 * Road::ALL.len() as u64);
        let alone = |load: &Load, what: &'static str| {
            bar.set_message(what);
            stage.alone(load).inspect(|_| bar.inc(1))
        };
        let frames_alone = alone(&frames, "producing and hashing frames, alone")?;
        let tree_alone = alone(&tree, "reading and hashing the directory, alone")?;
        let each = |load: &Load, what: &str| -> Result<Vec<Pass>, Failure> {
            Road::ALL
                .into_iter()
                .map(|road| {
                    bar.set_message(format!("{what}: {}", road.name()));
                    stage.pair(road, load).inspect(|_| bar.inc(1))
                })
                .collect()
        };
        let frames = each(&frames, "frames as fast as they go")?;
        let paced = each(&camera, "frames of a camera")?;
        let tree = each(&tree, "the directory")?;
        bar.finish_and_clear();
        let seconds = begin.elapsed().as_secs_f64();
        let outcome = Outcome { frames_alone, tree_alone, frames, paced, tree, dir, seconds };
        drop(stage);
        if self.json {
            say::print_json(&table::document(&outcome))?;
        } else {
            say::print(&table::render(&outcome))?;
        }
        if !outcome.hashes_agree() {
            return Err(Failure::new(
                Fault::HashesDiffer,
                "the hashes differ; if the directory changed meanwhile, choose another one with --dir",
            ));
        }
        if !outcome.all_in_place() {
            return Err(Failure::new(Fault::NotInPlace, "some messages were not received in place over zcmi"));
        }
        Ok(())
    }
}

fn default_dir() -> Result<PathBuf, Failure> {
    let there = ["/usr/lib", "/usr/share", "/usr"].map(PathBuf::from).into_iter().find(|path| path.is_dir());
    there.ok_or_else(|| Failure::usage("there is no system directory here; choose a directory with --dir"))
}

/// A running part; dropping it kills it and waits for its end.
struct Player {
    child: Child,
    ended: OwnedFd,
    report: PathBuf,
    what: &'static str,
}

impl Player {
    /// How the process ended, if it has.
    fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        self.child.try_wait().map_err(|error| Failure::of("wait failed", &error))
    }

    /// What the part came to; its process has ended so.
    fn report(&self, status: ExitStatus) -> Result<Report, Failure> {
        if !status.success() {
            return Err(Failure::new(Fault::Demo, format!("the demo's {} process failed ({status})", self.what)));
        }
        let unreadable =
            |error: &(dyn std::error::Error + 'static)| Failure::of("a report of the demo cannot be read", error);
        let text = fs::read(&self.report).map_err(|error| unreadable(&error))?;
        serde_json::from_slice(&text).map_err(|error| unreadable(&error))
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        // Both fail only for a child that has ended and was waited for.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Where the parts are played. Fields drop in this order: the directory last.
struct Stage {
    interrupt: Interrupt,
    place: Place,
}

impl Stage {
    fn alone(&self, load: &Load) -> Result<Report, Failure> {
        let player = self.start(Role::Alone, Road::Pipe, load, Stdio::null(), Stdio::null())?;
        let reports = self.reports_of(&mut [player])?;
        let [report] = <[Report; 1]>::try_from(reports).expect("one report for one player");
        Ok(report)
    }

    /// Hands the load over from one process to another.
    fn pair(&self, road: Road, load: &Load) -> Result<Pass, Failure> {
        let (stdin, stdout) = match road {
            Road::Zcmi => (Stdio::null(), Stdio::null()),
            Road::Pipe => {
                let of = |errno| Failure::of("a pipe cannot be made", &errno);
                let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(of)?;
                // Without the right to a larger one, the pipe keeps the size that every pipe has.
                let _as_it_was = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES);
                (reader.into(), writer.into())
            }
            Road::Socket => {
                let of = |errno| Failure::of("a socket cannot be made", &errno);
                let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
                let (reader, writer) = pair.map_err(of)?;
                // The kernel gives what the user may have.
                rustix::net::sockopt::set_socket_send_buffer_size(&writer, PIPE_BYTES).map_err(of)?;
                (reader.into(), writer.into())
            }
        };
        let receiver = self.start(Role::Receive, road, load, stdin, Stdio::null())?;
        let sender = self.start(Role::Send, road, load, Stdio::null(), stdout)?;
        let reports = self.reports_of(&mut [sender, receiver])?;
        let [sent, received] = <[Report; 2]>::try_from(reports).expect("two reports for two players");
        Ok(Pass { sent, received })
    }

    fn start(&self, role: Role, road: Road, load: &Load, stdin: Stdio, stdout: Stdio) -> Result<Player, Failure> {
        let what = match role {
            Role::Alone => "measuring",
            Role::Send => "sending",
            Role::Receive => "receiving",
        };
        let report = self.place.path().join(format!("{what}.json"));
        let order =
            Order { role, road, load: load.clone(), report: report.clone(), parent: getpid().as_raw_nonzero().get() };
        let order = serde_json::to_string(&order).map_err(|error| Failure::of("a part cannot be described", &error))?;
        // The link of the process itself, since the file may have been replaced by a later build.
        let mut command = Command::new("/proc/self/exe");
        command.args(["demo-part", &order]).stdin(stdin).stdout(stdout);
        command.env("ZCMI_RUNTIME_DIR", self.place.path().join("runtime"));
        let child = command.spawn().map_err(|error| Failure::of("a process of the demo cannot be started", &error))?;
        let pid = Pid::from_child(&child);
        let ended = pidfd_open(pid, PidfdFlags::empty());
        let ended = ended.map_err(|errno| Failure::of("pidfd_open failed", &errno));
        match ended {
            Ok(ended) => Ok(Player { child, ended, report, what }),
            Err(failure) => {
                let mut child = child;
                // As when a player is dropped.
                let _ended = child.kill();
                let _ended = child.wait();
                Err(failure)
            }
        }
    }

    /// Waits until all players have ended, and collects what they report, in their order. The first that ended badly is
    /// the failure; the others are ended with it, when the caller drops them.
    fn reports_of(&self, players: &mut [Player]) -> Result<Vec<Report>, Failure> {
        let deadline = Instant::now() + LIMIT;
        let mut reports = vec![None; players.len()];
        while reports.iter().any(Option::is_none) {
            let playing = || players.iter().zip(&reports).filter(|(_, report)| report.is_none());
            let waited: Vec<_> = playing().map(|(player, _)| (player.ended.as_fd(), PollFlags::IN)).collect();
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.interrupt.wait(&waited, Some(left))? {
                let text = format!("a process of the demo did not end within {} s", LIMIT.as_secs());
                return Err(Failure::new(Fault::Demo, text));
            }
            for (player, report) in players.iter_mut().zip(&mut reports).filter(|(_, report)| report.is_none()) {
                if let Some(status) = player.ended()? {
                    *report = Some(player.report(status)?);
                }
            }
        }
        Ok(reports.into_iter().flatten().collect())
    }
}
