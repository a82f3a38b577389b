//! `zcmi link`: the connections between hosts of every process of this user, the path of each, and why it is that one.
//!
//! Each transport writes what it does into memory that processes of its user find through `/proc`, so that nobody is
//! asked and a stopped process is shown like any other.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use zcmi::net::links::{AllLinks, LinkFacts, PathFacts, ProcessLinks, all_links};
use zcmi::net::path::PathKind;
use zcmi::net::receive_paths::{ReceivePath, receive_paths};
use zcmi::net::select::Reason;

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::say::{self, bytes, harmless};

/// How often it is looked again.
const EVERY: Duration = Duration::from_secs(1);
/// Back to the top of an empty screen.
const CLEAR: &str = "\x1b[H\x1b[2J";

const EXAMPLES: &str = "\
Examples:
  zcmi link            every connection of this user's processes: its path, why it is that one, what each path costs
  zcmi link --watch    the same again each second, until Ctrl-C
  zcmi link --json     the same for programs, a document each time
  zcmi link --receiving  also by which ways this host could receive, and why they are not used

Costs are what the choice goes by: at the sender for a piece and for a KiB, and what the receiver says that a KiB costs
it. COPIED is how many completions said that the kernel copied, of those that came. Rows are up to 100 ms old.
Exit codes: 0 ok; 1 failed; 2 usage; 130 interrupted.";

/// Show connections between hosts, the path of each, and why
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Link {
    /// Look again each second
    #[arg(long, conflicts_with = "once")]
    watch: bool,
    /// Look once, which is the default
    #[arg(long)]
    once: bool,
    /// Say too by which ways this host could receive, and why those that are there are not used
    #[arg(long, conflicts_with = "watch")]
    receiving: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Link {
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    pub(crate) fn run(&self) -> Result<(), Failure> {
        if !self.watch {
            return self.show("");
        }
        let interrupt = Interrupt::install()?;
        let before = if std::io::stdout().is_terminal() && !self.json { CLEAR } else { "" };
        loop {
            self.show(before)?;
            interrupt.wait(&[], Some(EVERY))?;
        }
    }

    fn show(&self, before: &str) -> Result<(), Failure> {
        let all = all_links().map_err(|error| Failure::of("/proc cannot be read", &error))?;
        let ways = if self.receiving { receive_paths() } else { &[] };
        if !self.json {
            let ways: String = ways.iter().map(|way| format!("{way}\n")).collect();
            return say::print(&format!("{before}{}{ways}", text(&all)));
        }
        let mut document = document(&all);
        if self.receiving {
            document["receiving"] = ways.iter().map(way).collect();
        }
        say::print_json(&document)
    }
}

/// A way of receiving.
fn way(way: &ReceivePath) -> Value {
    json!({ "name": way.name, "support": way.support.to_string(), "found": way.found, "unused": way.unused })
}

/// A connection, and where it was found.
struct Found<'a> {
    process: &'a ProcessLinks,
    /// The number of its transport in its process.
    transport: usize,
    facts: &'a LinkFacts,
}

impl Found<'_> {
    fn state(&self) -> &'static str {
        if self.process.is_stopped { "stopped" } else { "running" }
    }

    /// The paths of which there is anything to say.
    fn paths(&self) -> impl Iterator<Item = (PathKind, &PathFacts)> {
        PathKind::ALL.into_iter().zip(&self.facts.paths).filter(|(_, facts)| facts.is_used())
    }
}

fn found(all: &AllLinks) -> impl Iterator<Item = Found<'_>> {
    all.processes.iter().flat_map(|process| {
        let boards = process.boards.iter().enumerate();
        boards.flat_map(move |(transport, board)| {
            board.links.iter().map(move |facts| Found { process, transport, facts })
        })
    })
}

/// Connections without a row, and rows that could not be read.
fn not_shown(all: &AllLinks) -> (u64, usize) {
    let boards = all.processes.iter().flat_map(|process| &process.boards);
    boards.fold((0, 0), |(unlisted, unsettled), board| {
        (board.unlisted.saturating_add(unlisted), board.unsettled + unsettled)
    })
}

/// A reason in one word.
fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::First => "first",
        Reason::Forced => "forced",
        Reason::Cheaper => "cheaper",
        Reason::WireChanged => "wire-changed",
        _ => "unknown",
    }
}

fn document(all: &AllLinks) -> Value {
    let links: Vec<Value> = found(all)
        .map(|link| {
            let facts = link.facts;
            let mut document = json!({
                "pid": link.process.pid,
                "state": link.state(),
                "transport": link.transport,
                "connection": facts.connection,
                "stage": facts.stage.name(),
                "socket": facts.socket.map(|socket| socket.name()),
                "accepted": facts.accepted,
                "local": harmless(&facts.local),
                "remote": harmless(&facts.remote),
                "path": facts.path.map(PathKind::name),
                "reason": facts.reason.map(word),
                "paths": link.paths().map(|(path, facts)| path_document(path, facts)).collect::<Vec<_>>(),
            });
            for (name, count) in facts.counts.named() {
                document[name] = count.into();
            }
            document
        })
        .collect();
    let (unlisted, unsettled) = not_shown(all);
    let refused = all.refused.iter().map(|(pid, reason)| json!({ "pid": pid, "reason": harmless(reason) }));
    json!({
        "schema": "zcmi-link/1",
        "links": links,
        "unlisted": unlisted,
        "unsettled": unsettled,
        "unreadable": all.unreadable,
        "refused": refused.collect::<Vec<_>>(),
    })
}

fn path_document(path: PathKind, facts: &PathFacts) -> Value {
    json!({
        "path": path.name(),
        "piece_ns": facts.piece_ns,
        "kib_ns": facts.kib_ns,
        "receiver_kib_ns": facts.receiver_kib_ns,
        "samples": facts.samples,
        "refused_in_a_row": facts.refused_in_a_row,
        "says_copied": facts.says_copied,
        "calls": facts.sends,
        "bytes": facts.bytes,
        "refused": facts.refused,
        "notified": facts.notified,
        "copied": facts.copied,
    })
}

const HEAD: [&str; 13] = [
    "PID", "STATE", "LINK", "STAGE", "LOCAL", "REMOTE", "PATH", "SWITCHES", "CHANGES", "PROBES", "RECEIVED", "PINNED",
    "WHY",
];
const PATH_HEAD: [&str; 11] =
    ["PID", "LINK", "PATH", "NS/PIECE", "NS/KIB", "FAR NS/KIB", "SAMPLES", "CALLS", "SENT", "REFUSED", "COPIED"];

/// A table of which some columns are numbers.
fn table<const COLUMNS: usize>(
    head: [&str; COLUMNS],
    rows: Vec<[String; COLUMNS]>,
    numbers: impl Iterator<Item = usize>,
) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head);
    table.add_rows(rows);
    for index in numbers {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn text(all: &AllLinks) -> String {
    let mut text = String::new();
    if found(all).next().is_none() {
        text += "no process of this user has a connection; `zcmi send` and `zcmi recv` make one\n";
    } else {
        let links = found(all).map(|link| row(&link)).collect();
        text += &format!("{}\n", table(HEAD, links, [0].into_iter().chain(7..12)));
        let of = |link: Found<'_>| link.paths().map(|(path, facts)| path_row(&link, path, facts)).collect::<Vec<_>>();
        let paths: Vec<_> = found(all).flat_map(of).collect();
        if !paths.is_empty() {
            text += &format!("\n{}\n", table(PATH_HEAD, paths, [0].into_iter().chain(3..11)));
        }
    }
    let (unlisted, unsettled) = not_shown(all);
    if unlisted > 0 {
        text += &format!("{unlisted} more without a row: a transport tells of 256 connections\n");
    }
    if unsettled > 0 {
        text += &format!("{} cannot be read: a process stopped while writing\n", say::counted(unsettled, "row"));
    }
    if all.unreadable > 0 {
        let processes = say::counted_as(all.unreadable, "process", "processes");
        text += &format!("{processes} of this user may not be looked at\n");
    }
    for (pid, reason) in &all.refused {
        text += &format!("process {pid}: {}\n", harmless(reason));
    }
    text
}

/// The name of a connection in its process.
fn name(link: &Found<'_>) -> String {
    // Its number holds how often its place was used before in the upper half.
    format!("{}.{}", link.transport, link.facts.connection & 0xffff_ffff)
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "-".into() } else { harmless(text) }
}

fn row(link: &Found<'_>) -> [String; HEAD.len()] {
    let (facts, counts) = (link.facts, &link.facts.counts);
    [
        link.process.pid.to_string(),
        link.state().into(),
        name(link),
        facts.stage.name().into(),
        or_none(&facts.local),
        or_none(&facts.remote),
        or_none(facts.path.map_or("", PathKind::name)),
        counts.switches.to_string(),
        counts.changes.to_string(),
        counts.probes.to_string(),
        bytes(counts.bytes_received),
        bytes(counts.pinned_bytes),
        facts.reason.map_or_else(|| "-".into(), |reason| reason.to_string()),
    ]
}

fn path_row(link: &Found<'_>, path: PathKind, facts: &PathFacts) -> [String; PATH_HEAD.len()] {
    let cost = |cost: Option<f64>| cost.map_or_else(|| "-".into(), |cost| format!("{cost:.1}"));
    let copied = if path.is_notified() { format!("{} of {}", facts.copied, facts.notified) } else { "-".into() };
    [
        link.process.pid.to_string(),
        name(link),
        path.name().into(),
        cost(facts.piece_ns),
        cost(facts.kib_ns),
        cost(facts.receiver_kib_ns),
        facts.samples.to_string(),
        facts.sends.to_string(),
        bytes(facts.bytes),
        facts.refused.to_string(),
        copied,
    ]
}
