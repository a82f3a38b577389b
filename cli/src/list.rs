//! `zcmi list`: who publishes and subscribes in this runtime directory.
//!
//! The directory says who claims to take part; each process is then asked. One that is silent for 100 ms is looked at
//! through `/proc`: its state, and the memory objects it has open. One that is gone left residue, which whoever uses
//! the service next removes, or `--sweep`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use zcmi::directory::{Participant, RuntimeDirectory, ServiceEntry};
use zcmi::name::Incarnation;
use zcmi::report::{EndpointReport, ProcessReport};
use zcmi::{Observed, observe};

use crate::failure::Failure;
use crate::say::{self, bytes, harmless};

/// How long a process may take to answer.
const PATIENCE: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  zcmi list              services, who takes part in them, how much went through, and the memory
  zcmi list --json       the same for programs
  zcmi list --sweep      also remove what dead processes left

Exit codes: 0 ok; 1 failed; 2 usage.";

/// List services, their peers, regions, sizes and owners
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct List {
    /// Remove what dead processes left
    #[arg(long)]
    sweep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is known of a process.
#[derive(Debug)]
enum State {
    Running(ProcessReport),
    /// It does not answer.
    Silent {
        pid: u32,
        stopped: bool,
        regions: Option<(u64, u64)>,
    },
    Dead,
    Unknown(String),
}

impl State {
    fn word(&self) -> &'static str {
        match self {
            Self::Running(_) => "running",
            Self::Silent { stopped: true, .. } => "stopped",
            Self::Silent { .. } => "silent",
            Self::Dead => "residue",
            Self::Unknown(_) => "unknown",
        }
    }

    fn pid(&self, said: u32) -> u32 {
        match self {
            Self::Running(report) => report.pid,
            Self::Silent { pid, .. } => *pid,
            Self::Dead | Self::Unknown(_) => said,
        }
    }

    /// Regions and their bytes.
    fn regions(&self) -> Option<(u64, u64)> {
        match self {
            Self::Running(report) => Some((report.regions as u64, report.region_bytes)),
            Self::Silent { regions, .. } => *regions,
            Self::Dead | Self::Unknown(_) => None,
        }
    }

    fn endpoint(&self, number: u32) -> Option<&EndpointReport> {
        match self {
            Self::Running(report) => report.endpoints.iter().find(|endpoint| endpoint.endpoint == number),
            _ => None,
        }
    }
}

impl List {
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    pub(crate) fn run(&self) -> Result<(), Failure> {
        let directory = RuntimeDirectory::open().map_err(|error| Failure::of("nothing can be listed", &error))?;
        let cannot = |error: zcmi::directory::EntryError| {
            Failure::of(format_args!("{} cannot be read", directory.path().display()), &error)
        };
        let services = directory.services().map_err(cannot)?;
        let mut states = BTreeMap::new();
        for participant in services.iter().flat_map(|service| &service.participants) {
            if let Entry::Vacant(place) = states.entry(participant.incarnation) {
                place.insert(look_at(&directory, participant.incarnation));
            }
        }
        let swept = if self.sweep {
            let dead = |process| match states.get(&process) {
                Some(state) => matches!(state, State::Dead),
                None => matches!(observe(&directory, process, PATIENCE), Observed::Dead),
            };
            Some(directory.sweep_dead(dead).map_err(cannot)?)
        } else {
            None
        };
        let owners = Owners::read();
        if self.json {
            let services: Vec<Value> = services.iter().map(|service| document_of(service, &states, &owners)).collect();
            let swept = swept.map(|swept| {
                json!({ "processes": swept.processes, "participants": swept.participants,
                        "services": swept.services, "kept": swept.kept })
            });
            return say::print_json(&json!({
                "schema": "zcmi-list/1",
                "directory": directory.path().display().to_string(),
                "services": services,
                "swept": swept,
            }));
        }
        if services.is_empty() {
            say::print(&format!("no services in {}; `zcmi pub NAME` makes one\n", directory.path().display()))?;
        } else {
            say::print(&format!("{}\n", table(&services, &states, &owners)))?;
        }
        let residue = states.values().filter(|state| matches!(state, State::Dead)).count();
        match swept {
            Some(swept) => say::print(&format!(
                "removed: {} processes, {} participants, {} services; {} belong to other users and were kept\n",
                swept.processes, swept.participants, swept.services, swept.kept
            )),
            None if residue > 0 => {
                say::print(&format!("{residue} dead process(es) left residue; `zcmi list --sweep` removes it\n"))
            }
            None => Ok(()),
        }
    }
}

fn look_at(directory: &RuntimeDirectory, process: Incarnation) -> State {
    match observe(directory, process, PATIENCE) {
        Observed::Report(report) => State::Running(report),
        Observed::Silent { pid } => {
            State::Silent { pid, stopped: is_stopped(pid).unwrap_or(false), regions: open_regions(pid) }
        }
        Observed::Dead => State::Dead,
        Observed::Unknown(text) => State::Unknown(text),
        other => State::Unknown(format!("{other:?}")),
    }
}

/// Whether a process is stopped, by its state in `/proc/PID/stat`.
fn is_stopped(pid: u32) -> Option<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before the state may hold anything, blanks and parentheses included.
    let state = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
    Some(matches!(state, 'T' | 't'))
}

/// How many of our memory objects a process has open, and their bytes: its own regions and those of its peers that it
/// keeps open. `None` without the right to look.
fn open_regions(pid: u32) -> Option<(u64, u64)> {
    let mut sizes = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        let is_ours =
            fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:zcmi"));
        if is_ours && let Ok(metadata) = fs::metadata(entry.path()) {
            sizes.insert(metadata.ino(), metadata.len());
        }
    }
    Some((sizes.len() as u64, sizes.values().sum()))
}

/// The names of users.
struct Owners(BTreeMap<u32, String>);

impl Owners {
    fn read() -> Self {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let named = passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            Some((fields.nth(1)?.parse().ok()?, harmless(name)))
        });
        Self(named.collect())
    }

    fn name(&self, uid: u32) -> String {
        self.0.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }
}

fn document_of(service: &ServiceEntry, states: &BTreeMap<Incarnation, State>, owners: &Owners) -> Value {
    let peers: Vec<Value> = service
        .participants
        .iter()
        .map(|participant| {
            let state = &states[&participant.incarnation];
            let endpoint = state.endpoint(participant.endpoint);
            let regions = state.regions();
            json!({
                "role": participant.role.to_string(),
                "pid": state.pid(participant.facts.pid),
                "uid": participant.uid,
                "owner": owners.name(participant.uid),
                "state": state.word(),
                "reason": if let State::Unknown(text) = state { Some(text) } else { None },
                "incarnation": participant.incarnation.to_string(),
                "endpoint": participant.endpoint,
                "layout_hash": format!("{:016x}", participant.facts.layout_hash),
                "peers": endpoint.map(|endpoint| endpoint.peers),
                "messages": endpoint.map(|endpoint| endpoint.messages),
                "bytes": endpoint.map(|endpoint| endpoint.bytes),
                "lost": endpoint.map(|endpoint| endpoint.lost),
                "capacity": endpoint.map(|endpoint| endpoint.capacity),
                "memory_bytes": endpoint.map(|endpoint| endpoint.memory_bytes),
                "process_regions": regions.map(|(count, _)| count),
                "process_region_bytes": regions.map(|(_, bytes)| bytes),
            })
        })
        .collect();
    json!({ "name": service.name.to_string(), "participants": peers })
}

fn table(services: &[ServiceEntry], states: &BTreeMap<Incarnation, State>, owners: &Owners) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let head = ["SERVICE", "ROLE", "PID", "OWNER", "STATE", "PEERS", "MESSAGES", "BYTES", "LOST", "MEMORY", "REGIONS"];
    table.set_header(head);
    for service in services {
        for participant in &service.participants {
            table.add_row(row(service, participant, &states[&participant.incarnation], owners));
        }
    }
    for index in [2, 5, 6, 7, 8, 9, 10] {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn row(service: &ServiceEntry, participant: &Participant, state: &State, owners: &Owners) -> [String; 11] {
    let endpoint = state.endpoint(participant.endpoint);
    let figure = |figure: Option<String>| figure.unwrap_or_else(|| "-".into());
    [
        service.name.to_string(),
        participant.role.to_string(),
        state.pid(participant.facts.pid).to_string(),
        owners.name(participant.uid),
        state.word().to_owned(),
        figure(endpoint.map(|endpoint| endpoint.peers.to_string())),
        figure(endpoint.map(|endpoint| endpoint.messages.to_string())),
        figure(endpoint.map(|endpoint| bytes(endpoint.bytes))),
        figure(endpoint.map(|endpoint| endpoint.lost.to_string())),
        figure(endpoint.map(|endpoint| bytes(endpoint.memory_bytes))),
        figure(state.regions().map(|(count, size)| format!("{count}, {}", bytes(size)))),
    ]
}
