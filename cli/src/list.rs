//! `zcmi list`: who publishes and subscribes in this runtime directory.
//!
//! The directory says who claims to take part; each process is then asked for its words and its ledger. The ledger of
//! one that is silent for 100 ms is read through `/proc`, so that a stopped process is shown with its counts. One that
//! is gone left residue, which whoever uses the service next removes, or `--sweep`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};
use zcmi::directory::{Participant, Role, RuntimeDirectory, ServiceEntry};
use zcmi::ledger::{Counter, EndpointReading, FallbackReason, LedgerReading, LedgerSnapshot};
use zcmi::name::Incarnation;
use zcmi::observe::{Observed, ObservedLedger, ProcessState, observe};
use zcmi::report::EndpointReport;

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

/// What is known of a process, and what it counted at one moment.
struct Seen {
    observed: Observed,
    counted: Option<LedgerReading>,
}

impl Seen {
    fn word(&self) -> &'static str {
        match self.observed.state {
            ProcessState::Running => "running",
            ProcessState::Stopped => "stopped",
            ProcessState::Silent => "silent",
            ProcessState::Dead => "residue",
            _ => "unknown",
        }
    }

    fn pid(&self, said: u32) -> u32 {
        if self.observed.pid == 0 { said } else { self.observed.pid }
    }

    fn is_dead(&self) -> bool {
        self.observed.state == ProcessState::Dead
    }

    /// Regions and their bytes.
    fn regions(&self) -> Option<(u64, u64)> {
        let said = self.observed.report.as_ref().map(|report| (report.regions as u64, report.region_bytes));
        said.or(self.observed.open_regions)
    }

    /// What the process says of an endpoint.
    fn said(&self, participant: &Participant) -> Option<&EndpointReport> {
        let report = self.observed.report.as_ref()?;
        report.endpoints.iter().find(|endpoint| endpoint.endpoint == participant.endpoint)
    }

    /// What an endpoint counted.
    fn counted(&self, participant: &Participant) -> Option<&EndpointReading> {
        let number = u64::from(participant.endpoint);
        self.counted.as_ref()?.endpoints.iter().find(|endpoint| endpoint.snapshot.identity().endpoint == number)
    }
}

impl List {
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Nothing has run in this directory yet: it is not there, and is not made for the sake of a list.
    fn nothing(&self, path: &Path) -> Result<(), Failure> {
        if self.json {
            let swept = json!({ "processes": 0, "participants": 0, "services": 0, "kept": 0 });
            return say::print_json(&json!({
                "schema": "zcmi-list/2",
                "directory": path.display().to_string(),
                "services": [],
                "processes": [],
                "swept": if self.sweep { swept } else { Value::Null },
            }));
        }
        let path = path.display();
        say::print(&format!("nothing runs here: {path} is no runtime directory yet; `zcmi pub NAME` makes one\n"))
    }

    pub(crate) fn run(&self) -> Result<(), Failure> {
        let cannot = |error| Failure::of("nothing can be listed", &error);
        let Some(directory) = RuntimeDirectory::open_existing().map_err(cannot)? else {
            return self.nothing(&RuntimeDirectory::default_path().map_err(cannot)?);
        };
        let cannot = |error: zcmi::directory::EntryError| {
            Failure::of(format_args!("{} cannot be read", directory.path().display()), &error)
        };
        let services = directory.services().map_err(cannot)?;
        let mut states = BTreeMap::new();
        for participant in services.iter().flat_map(|service| &service.participants) {
            if let Entry::Vacant(place) = states.entry(participant.incarnation) {
                place.insert(look_at(&directory, participant));
            }
        }
        let swept = if self.sweep {
            let dead = |process| match states.get(&process) {
                Some(seen) => seen.is_dead(),
                None => observe(&directory, process, None, PATIENCE).state == ProcessState::Dead,
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
                "schema": "zcmi-list/2",
                "directory": directory.path().display().to_string(),
                "services": services,
                "processes": processes(&states),
                "swept": swept,
            }));
        }
        if services.is_empty() {
            say::print(&format!("no services in {}; `zcmi pub NAME` makes one\n", directory.path().display()))?;
        } else {
            say::print(&format!("{}\n", table(&services, &states, &owners)))?;
        }
        match swept {
            Some(swept) => say::print(&format!(
                "removed: {} processes, {} participants, {} services; {} belong to other users and were kept\n",
                swept.processes, swept.participants, swept.services, swept.kept
            )),
            None => say::print(&residue(&services, &states, &owners)),
        }
    }
}

/// What dead processes left, and who can remove it: each user what is its own, and root everything.
fn residue(services: &[ServiceEntry], states: &BTreeMap<Incarnation, Seen>, owners: &Owners) -> String {
    let we = rustix::process::geteuid().as_raw();
    let there = services.iter().flat_map(|service| &service.participants);
    let dead = there.filter(|participant| states[&participant.incarnation].is_dead());
    let dead: BTreeSet<_> = dead.map(|participant| (participant.uid, participant.incarnation)).collect();
    let (ours, others): (Vec<_>, Vec<_>) = dead.iter().partition(|(uid, _)| we == 0 || *uid == we);
    let mut text = String::new();
    if !ours.is_empty() {
        let processes = say::counted_as(ours.len(), "dead process", "dead processes");
        text += &format!("{processes} left residue; `zcmi list --sweep` removes it\n");
    }
    if !others.is_empty() {
        let users: BTreeSet<_> = others.iter().map(|(uid, _)| owners.name(*uid)).collect();
        let users = users.into_iter().collect::<Vec<_>>().join(", ");
        let processes = say::counted_as(others.len(), "dead process", "dead processes");
        text += &format!("{processes} of other users left residue, which they or root can remove: {users}\n");
    }
    text
}

fn look_at(directory: &RuntimeDirectory, participant: &Participant) -> Seen {
    let observed = observe(directory, participant.incarnation, Some(participant.facts.pid), PATIENCE);
    let counted = observed.ledger.as_ref().map(ObservedLedger::read);
    Seen { observed, counted }
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

/// A count, or nothing where it is not known.
fn known(snapshot: Option<&LedgerSnapshot>, counter: Counter) -> Option<u64> {
    snapshot.and_then(|snapshot| snapshot.count(counter).ok())
}

/// All counts by their names, and why some are not known.
fn counts(snapshot: &LedgerSnapshot) -> Value {
    let (mut counts, mut not_known, mut fallbacks) = (Map::new(), Map::new(), Map::new());
    for counter in Counter::ALL {
        match snapshot.count(counter) {
            Ok(count) => counts.insert(counter.name().into(), count.into()),
            Err(reason) => not_known.insert(counter.name().into(), reason.to_string().into()),
        };
    }
    for reason in FallbackReason::ALL {
        if snapshot.fallbacks(reason) > 0 {
            fallbacks.insert(reason.name().into(), snapshot.fallbacks(reason).into());
        }
    }
    json!({ "counts": counts, "not_known": not_known, "fallbacks": fallbacks })
}

/// What processes counted beside their endpoints, and in all.
fn processes(states: &BTreeMap<Incarnation, Seen>) -> Vec<Value> {
    let document = |(incarnation, seen): (&Incarnation, &Seen)| {
        let counted = seen.counted.as_ref();
        let part = |part: fn(&LedgerReading) -> &EndpointReading| counted.map(|all| counts(&part(all).snapshot));
        json!({
            "incarnation": incarnation.to_string(),
            "pid": seen.pid(0),
            "state": seen.word(),
            "no_ledger": seen.observed.no_ledger.as_deref().map(harmless),
            "unsettled": counted.map(|all| all.unsettled),
            "total": counted.map(|all| counts(&all.total())),
            "closed": part(|all| &all.closed),
            "control": part(|all| &all.control),
            "overflow": part(|all| &all.overflow),
        })
    };
    states.iter().map(document).collect()
}

fn document_of(service: &ServiceEntry, states: &BTreeMap<Incarnation, Seen>, owners: &Owners) -> Value {
    let peers: Vec<Value> = service
        .participants
        .iter()
        .map(|participant| {
            let seen = &states[&participant.incarnation];
            let said = seen.said(participant);
            let counted = seen.counted(participant);
            let figures = Figures::of(seen, participant);
            json!({
                "role": participant.role.to_string(),
                "pid": seen.pid(participant.facts.pid),
                "uid": participant.uid,
                "owner": owners.name(participant.uid),
                "state": seen.word(),
                "reason": if let ProcessState::Unknown(text) = &seen.observed.state { Some(text) } else { None },
                "incarnation": participant.incarnation.to_string(),
                "endpoint": participant.endpoint,
                "layout_hash": format!("{:016x}", participant.facts.layout_hash),
                "peers": figures.peers,
                "messages": figures.messages,
                "bytes": figures.bytes,
                "lost": figures.lost,
                "refused": figures.refused,
                "copied_user": figures.copied,
                "waits": figures.waits,
                "waited_ns": figures.waited_ns,
                "parks": figures.parks,
                "wakes_sent": figures.wakes,
                "fallbacks": figures.fallbacks,
                "capacity": figures.capacity,
                "memory_bytes": said.map(|said| said.memory_bytes),
                "ledger": counted.map(|counted| counts(&counted.snapshot)),
                "process_regions": seen.regions().map(|(count, _)| count),
                "process_region_bytes": seen.regions().map(|(_, bytes)| bytes),
            })
        })
        .collect();
    json!({ "name": service.name.to_string(), "participants": peers })
}

/// What is shown of an endpoint: from its ledger, else from what its process says.
struct Figures {
    peers: Option<u64>,
    messages: Option<u64>,
    bytes: Option<u64>,
    lost: Option<u64>,
    refused: Option<u64>,
    copied: Option<u64>,
    waits: Option<u64>,
    waited_ns: Option<u64>,
    parks: Option<u64>,
    wakes: Option<u64>,
    fallbacks: Option<u64>,
    capacity: Option<u64>,
}

impl Figures {
    fn of(seen: &Seen, participant: &Participant) -> Self {
        let (said, counted) = (seen.said(participant), seen.counted(participant));
        let snapshot = counted.map(|counted| &counted.snapshot);
        let count = |counter| known(snapshot, counter);
        // A publisher's ledger does not say who reads; a subscriber has a lane for each publisher.
        let lanes = counted.filter(|_| participant.role == Role::Subscriber).map(|counted| counted.lanes as u64);
        let fallbacks = |snapshot: &LedgerSnapshot| FallbackReason::ALL.map(|reason| snapshot.fallbacks(reason));
        Self {
            peers: said.map(|said| said.peers as u64).or(lanes),
            messages: count(Counter::Messages).or(said.map(|said| said.messages)),
            bytes: count(Counter::BytesDelivered).or(said.map(|said| said.bytes)),
            lost: count(Counter::Drops).or(said.map(|said| said.lost)),
            refused: count(Counter::Refusals).or(said.map(|said| said.refused)),
            copied: count(Counter::CopiedUser),
            waits: count(Counter::Waits),
            waited_ns: count(Counter::WaitedNs),
            parks: count(Counter::Parks),
            wakes: count(Counter::WakesSent),
            fallbacks: snapshot.map(|snapshot| fallbacks(snapshot).into_iter().fold(0, u64::saturating_add)),
            capacity: said.map(|said| said.capacity).or(counted.map(|counted| counted.capacity)),
        }
    }
}

const HEAD: [&str; 16] = [
    "SERVICE",
    "ROLE",
    "PID",
    "OWNER",
    "STATE",
    "PEERS",
    "MESSAGES",
    "BYTES",
    "COPIED",
    "LOST",
    "REFUSED",
    "WAITS",
    "WAKES",
    "FALLBACKS",
    "MEMORY",
    "REGIONS",
];

fn table(services: &[ServiceEntry], states: &BTreeMap<Incarnation, Seen>, owners: &Owners) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(HEAD);
    for service in services {
        for participant in &service.participants {
            table.add_row(row(service, participant, &states[&participant.incarnation], owners));
        }
    }
    for index in [2].into_iter().chain(5..HEAD.len()) {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn row(service: &ServiceEntry, participant: &Participant, seen: &Seen, owners: &Owners) -> [String; HEAD.len()] {
    let number = |figure: Option<u64>| figure.map_or_else(|| "-".into(), |figure| figure.to_string());
    let size = |figure: Option<u64>| figure.map_or_else(|| "-".into(), bytes);
    let figures = Figures::of(seen, participant);
    let regions = seen.regions().map(|(count, size)| format!("{count}, {}", bytes(size)));
    [
        service.name.to_string(),
        participant.role.to_string(),
        seen.pid(participant.facts.pid).to_string(),
        owners.name(participant.uid),
        seen.word().to_owned(),
        number(figures.peers),
        number(figures.messages),
        size(figures.bytes),
        size(figures.copied),
        number(figures.lost),
        number(figures.refused),
        number(figures.waits),
        number(figures.wakes),
        number(figures.fallbacks),
        size(seen.said(participant).map(|said| said.memory_bytes)),
        regions.unwrap_or_else(|| "-".into()),
    ]
}
