//! The choice of the path: what each costs is measured, and the cheapest is used.
//!
//! # What is measured
//! - Calls, at the sender: what a piece costs by a path is fitted as `a + b * KiB` by least squares, older calls
//!   counting less. That is for a first decision, and for people. Of short calls for datagrams by the path in use, one
//!   like the other, one in four is measured.
//! - Windows of some milliseconds in which a path is in use: how many bytes pass, and what a KiB takes in calls, in
//!   notifications and in going to sleep, which is measured in processor time of the thread now and then.
//! - The same at the receiver, as it tells in its frames.
//!
//! A path has two measures: the processor time of both ends together, and how much it carries. Both are told beside the
//! path in use, from windows one after the other, because all paths cost more while the machine does something else.
//! The choice is the path nearest to the best of each measure, by the one in which it is worse. Until a path was in use
//! its calls have to do, with the slower end in the place of what is carried.
//!
//! # What is done with it
//! - Pieces below [`LEAST_BYTES`] go by `write`: whatever sharing pages saves there is less than what it costs.
//! - Each path that can be used is called a few times at the start, and those that come out nearly equal some times
//!   more. What is better by far is used at once.
//! - What a path costs when it is in use is another matter: between calls of another path it finds other memory in the
//!   kernel and other bytes in the caches. So the others have trials from then on, in which they are used for some
//!   milliseconds, after what was under way has passed. A path that comes out better has a second trial at once, and is
//!   taken if that says the same. All trials together take a hundredth of the time that they waste.
//! - Of the connections to a host one has the trials, and the others follow it.
//! - One call in [`PROBE_EVERY`] goes to `zerocopy`, or where that cannot be to the cheapest of the other paths whose
//!   completions say whether the kernel copied, because that is what tells first that a wire changed.
//! - A path is left not more than once a second (at the very start more often, while little is known), unless the wire
//!   has changed: what the path in use costs has jumped and stays so, a trial finds what cannot be, or completions that
//!   said "copied" say so no more, or the other way round. Then all is measured anew: single calls of each path, and
//!   runs of calls of the best. What completions say changes nothing else: the kernel's word is a reason to look, not
//!   an answer.
//!
//! # What this does not do
//! Time, not processor time, is measured around calls, which never sleep; calls that were interrupted for long stand
//! out, and are cut off in the fit; of windows the median counts.

mod carried;
mod fit;
mod learned;
mod sampling;
#[cfg(test)]
mod tests;

use core::fmt;
use std::time::{Duration, Instant};

use crate::outgoing::Front;
use crate::path::PathKind;

use carried::Carried;
use fit::{Fit, Jump, Jumps};
pub(crate) use learned::{Choosing, Experience, Experiences};
use sampling::Sampling;

/// Pieces below this go by `write`, without looking further.
pub const LEAST_BYTES: u32 = 4096;
/// The same for datagrams, whose calls carry fewer messages.
pub const LEAST_DATAGRAM: u32 = 2048;
/// One call in so many looks whether the wire has changed, if that was not done just before.
pub const PROBE_EVERY: u32 = 32;
/// It is not done again for so many times what it takes, within these bounds.
const PROBE_SHARE: u32 = 64;
const PROBE_PAUSE: Duration = Duration::from_millis(2);
const PROBE_LAST_PAUSE: Duration = Duration::from_millis(8);
/// A call that tries another path takes so many bytes, or one piece.
const PROBE_BYTES: usize = 256 << 10;
/// Calls before other paths are tried at all: most connections carry little.
const WARM_UP: u32 = 24;
/// Calls of each path at the start, and when the wire has changed.
const FIRST_PROBES: u32 = fit::FIRST_CALLS;
/// Paths that are then nearer to the best than this factor are called this often before the first decision.
const NEAR: f64 = 1.2;
const FINAL_PROBES: u32 = 8;
/// When the wire has changed each of them is used for so many calls in turn, of which the first find what others left,
/// until the change is so long ago, or each was called so often; then it is decided once more.
const FINAL_RUN: u32 = 8;
const FINAL_NEAR: f64 = 1.6;
const FINAL_TIME: Duration = Duration::from_millis(8);
const FINAL_PROBES_MOST: u32 = 40;
/// So many of them at the most, at first and when the wire has changed.
const FINALISTS: [usize; 2] = [3, 5];
/// Paths dearer by this factor have one trial where others have so many, and those dearer by that one no first trial.
const DEAR: f64 = 1.25;
const DEAR_EVERY: u32 = 8;
const MUCH_DEARER: f64 = 2.5;
/// A path is left for one that costs less than this share.
const MARGIN: f64 = 0.95;
/// The same for what rests on few calls: when the wire has changed, and at the very start, where trials follow.
const FIRST_MARGIN: f64 = 0.88;
const START_MARGIN: f64 = 0.7;
/// How long a path is kept at least, if the wire did not change; at the start a part of the time that has passed.
const DWELL: Duration = Duration::from_secs(1);
const FIRST_DWELL: Duration = Duration::from_millis(40);
/// A call that takes so many times what was predicted was interrupted, and counts as if it took this.
const CUT: f64 = 3.0;
/// Signs that the wire has changed are not heeded for a while after the last; longer each time that they were wrong, or
/// that what calls cost was the sign, until there was none for the longest of these times.
const FIRST_QUIET: Duration = Duration::from_millis(20);
const LAST_QUIET: Duration = Duration::from_secs(3);
/// Calls that took less say nothing about a path.
const LEAST_TOLD: usize = 1024;
/// What a receiver says after a change is of bytes from after it when so many were sent since.
const MOST_STALE: u64 = 4 << 20;
/// What the receiver tells counts so much beside what it told before.
const NEW_TOLD: f64 = 0.3;
/// The first calls of a trial, or of a run, find what the path before has left.
const LEAD_IN_CALLS: u32 = 2;
/// A trial has so many calls, and as many windows as it takes to know what is carried.
const TRIAL_CALLS: u32 = 10;
/// A trial ends after the first window if the path is worse by this factor by both measures.
const HOPELESS: f64 = 1.4;
/// What differs by this factor from what was found before means that the wire has changed.
const INCREDIBLE: f64 = 3.0;
/// Between trials: as long as it takes that they cost this share of the time, and a part of the time that has passed,
/// within these bounds.
const TRIALS_SHARE: f64 = 0.01;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(4);
/// What is better by so much is believed at once while the wire has not changed, and otherwise after a second trial.
const CLEARLY: f64 = 0.6;
/// So many paths in a row have a second trial at the most.
const CHALLENGES: u32 = 3;
/// What differs by less than this factor is the same, and what differs by more than that is all one.
const SAME_PACE: f64 = 1.05;
const MOST_SLOWNESS: f64 = 4.0;
/// What going to sleep and being woken is taken to cost in processor time, in nanoseconds, where it is not measured.
pub(crate) const SLEEP_NS: u64 = 5000;
/// A send of so many bytes or more tells by what it costs whether it copied. After so many calls of both: as much as a
/// copying one or more, it did; less than this share, it did not, which takes more calls, because the first calls on a
/// connection cost several times what later ones do. What is between says nothing.
const TELLING_BYTES: f64 = 16384.0;
const COPIED_CALLS: u32 = 6;
const UNCOPIED_CALLS: u32 = 32;
const UNCOPIED: f64 = 0.75;
const PATHS: usize = PathKind::ALL.len();

/// What is known of one path.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    sending: Fit,
    /// Calls that it rests on and of which no notification was charged: no call is charged with those of others, which
    /// may have been made before the wire changed.
    uncharged: u32,
    /// What a KiB costs the receiver, as it has told.
    receiving: Option<f64>,
    /// Whether it was refused, so that it is not to be tried for a while.
    refused: u32,
    /// How much is carried while it is in use, beside what the path in use carries.
    pace: Option<f64>,
    /// What it costs both ends while it is in use, beside the path in use, for pieces of about that size: measured one
    /// after the other, because what all of them cost changes with what else the machine does.
    cost: Option<(f64, f64)>,
    /// Whether its last completion said that the kernel copied.
    says_copied: Option<bool>,
    /// Whether it has been in use, for a trial at least, since the wire changed.
    was_used: bool,
}

/// A path that is in use for a while, to see what it costs then.
#[derive(Clone, Copy, Debug)]
struct Trial {
    path: usize,
    began: Instant,
    calls: u32,
    /// What was carried before, and what that took.
    before: Option<[f64; 2]>,
    /// Whether it is the second in a row, which decides.
    again: bool,
}

/// What the selection believes of a path, for people.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PathModel {
    /// The path.
    pub path: PathKind,
    /// What a piece costs at the sender, in nanoseconds.
    pub piece_ns: f64,
    /// What a KiB costs at the sender.
    pub kib_ns: f64,
    /// What a KiB costs at the receiver, if it told.
    pub receiver_kib_ns: Option<f64>,
    /// How many calls that rests on.
    pub calls: u32,
    /// How often the path was refused in a row.
    pub refused: u32,
    /// What its last completion said: copied or not.
    pub says_copied: Option<bool>,
    /// Whether the bytes are copied on their way into the wire, as far as that is known: by a path that copies they
    /// are, and where completions admit it. Where they deny it what it costs decides, because on some wires they are
    /// wrong; and where that is neither much less than a copy nor as much, nothing is known.
    pub copies: Option<bool>,
}

/// Why the path in use is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Nothing else was measured yet.
    First,
    /// It is forced.
    Forced,
    /// It came out cheaper than the others, or as cheap and was in use.
    Cheaper,
    /// The wire changed, and it came out cheaper since.
    WireChanged,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::First => "nothing else was measured yet",
            Self::Forced => "forced",
            Self::Cheaper => "measured cheaper",
            Self::WireChanged => "measured cheaper since the wire changed",
        })
    }
}

/// Whose processor time the choice saves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Objective {
    /// That of both ends, and as much throughput as can be had.
    #[default]
    BothEnds,
    /// That of this end alone, whatever it costs its peers: for a server of many, whose processors are what is scarce.
    ThisEnd,
}

/// What is chosen, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// The path for large pieces.
    pub path: PathKind,
    /// Why.
    pub reason: Reason,
    /// How often the path was changed.
    pub switches: u64,
    /// How often the wire was found to have changed.
    pub changes: u64,
    /// Calls that tried another path.
    pub probes: u64,
    /// What is believed of each path that was measured.
    pub models: Vec<PathModel>,
}

/// What tells that a wire has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    /// What calls cost, or how much passes.
    Cost,
    /// What completions say.
    Word,
}

/// The choice for one connection.
#[derive(Clone, Debug)]
pub struct Selector {
    objective: Objective,
    states: [State; PATHS],
    usable: [bool; PATHS],
    path: PathKind,
    reason: Reason,
    began: Instant,
    /// When something was last called.
    now: Instant,
    /// When the wire changed last, and how long signs of each kind are not heeded after that.
    changed: Instant,
    sign: Sign,
    quiet: [Duration; 2],
    since: Instant,
    calls: u32,
    turn: usize,
    /// Whether the call that a path was picked for tries another than the one in use.
    probing: bool,
    /// The size of pieces that is decided for: that of the last.
    bytes: f64,
    jumps: Jumps,
    /// Bytes that were sent since the wire changed, while others from before are under way: the receiver tells how
    /// these came.
    stale: Option<u64>,
    settled: bool,
    /// Whether what was decided when the wire had changed is looked at more closely, and the path that is in use for
    /// that, with how many calls it had.
    refines: bool,
    run: (usize, u32),
    trial: Option<Trial>,
    /// Whether it is for this one to try other paths: of the connections to a host only one does.
    leads: bool,
    /// Whether there are paths that should have a first trial; nothing is decided before.
    first_trials: bool,
    next_trial: Instant,
    next_probe: Instant,
    /// When a jump of the cost may bring the next trial forward.
    next_hurry: Instant,
    /// The path that looked better in its last trial and has another, and how many had.
    challenger: Option<usize>,
    challenges: u32,
    /// What passes since the path that is in use or on trial is.
    carried: Carried,
    /// Bytes that are under way.
    under_way: u64,
    sampling: Sampling,
    /// When it was decided last, and whether others have not heard of it.
    decided: Instant,
    is_news: bool,
    switches: u64,
    changes: u64,
    probes: u64,
    last_completion_said_copied: Option<bool>,
}

impl Selector {
    /// A choice among these paths.
    #[must_use]
    pub fn new(usable: &[PathKind], objective: Objective, now: Instant) -> Self {
        let mut selector = Self {
            objective,
            states: [State::default(); PATHS],
            usable: [false; PATHS],
            path: PathKind::Write,
            reason: Reason::First,
            began: now,
            now,
            changed: now,
            sign: Sign::Cost,
            quiet: [FIRST_QUIET; 2],
            since: now,
            calls: 0,
            turn: PATHS,
            probing: false,
            bytes: f64::from(LEAST_BYTES),
            jumps: Jumps::default(),
            stale: None,
            settled: false,
            refines: false,
            run: (PATHS, 0),
            trial: None,
            leads: true,
            first_trials: false,
            next_trial: now,
            next_probe: now,
            next_hurry: now,
            challenger: None,
            challenges: 0,
            carried: Carried::new(now),
            under_way: 0,
            sampling: Sampling::NONE,
            decided: now,
            is_news: false,
            switches: 0,
            changes: 0,
            probes: 0,
            last_completion_said_copied: None,
        };
        for path in usable {
            selector.usable[*path as usize] = true;
        }
        selector.usable[PathKind::Write as usize] = true;
        let write = &mut selector.states[PathKind::Write as usize];
        (write.pace, write.was_used) = (Some(1.0), true);
        selector
    }

    /// How many pieces the call that was picked a path for takes at the most: one that tries another path takes few, so
    /// that looking costs little, and several, so that what a call costs is not all of what it costs.
    #[must_use]
    pub fn most_pieces(&self) -> usize {
        match self.probing {
            // It is to say something, not to be measured.
            true if self.settled => 1,
            true => (PROBE_BYTES / self.bytes as usize).max(1),
            false => usize::MAX,
        }
    }

    /// The path for the next call, which begins with this frame.
    pub fn pick(&mut self, front: Front) -> PathKind {
        self.probing = false;
        if front.payload_bytes < LEAST_BYTES || !front.may_share {
            return PathKind::Write;
        }
        self.pick_for(front.payload_bytes)
    }

    /// The path for the next call, whose pieces, or parts that become datagrams, have so many bytes and may be shared.
    pub(crate) fn pick_for(&mut self, bytes: u32) -> PathKind {
        self.probing = false;
        self.bytes = f64::from(bytes);
        self.calls = self.calls.wrapping_add(1);
        match self.due_probe() {
            Some(path) => {
                self.probes += u64::from(path != self.path);
                self.probing = path != self.path && self.trial.is_none() && !self.refines;
                path
            }
            None => self.path,
        }
    }

    /// Whether frames like this one go by the same call as one that was picked a path for.
    #[must_use]
    pub fn is_alike(first: Front, other: Front) -> bool {
        let large = |front: Front| front.payload_bytes >= LEAST_BYTES && front.may_share;
        large(first) == large(other)
    }

    /// Another path that is due to be tried.
    fn due_probe(&mut self) -> Option<PathKind> {
        if !self.settled && self.is_warming() {
            return None;
        }
        // At the start, and when the wire has changed, each has its first calls.
        let chosen = match (self.unseen(), self.trial) {
            (Some(path), _) => path,
            (None, Some(trial)) => trial.path,
            (None, None) if self.refines => self.next_in_run()?,
            (None, None) if self.leads && self.calls.is_multiple_of(PROBE_EVERY) && self.now >= self.next_probe => {
                let path = self.sentinel()?;
                let took = Duration::from_nanos(self.states[path].sending.cost_ns(self.bytes) as u64);
                self.next_probe = self.now + (took * PROBE_SHARE).clamp(PROBE_PAUSE, PROBE_LAST_PAUSE);
                path
            }
            (None, None) => return None,
        };
        Some(PathKind::ALL[chosen])
    }

    /// Whether other paths are not tried yet: at the start, until it is known how much `write` carries, or that this
    /// cannot be known because nothing is under way at times.
    fn is_warming(&self) -> bool {
        let most = if self.carried.windows() == 0 { 4 * WARM_UP } else { WARM_UP };
        !self.settled && self.changes == 0 && self.calls < most
    }

    /// A path whose first calls are not done.
    fn unseen(&self) -> Option<usize> {
        // In turn: a moment in which everything is slow is not to be one path's.
        let open = (0..PATHS).filter(|&path| self.can_be_tried(path) && !self.is_known(path));
        if let Some(path) = open.min_by_key(|&path| self.states[path].sending.calls()) {
            return Some(path);
        }
        if !self.settled { self.nearest(FINAL_PROBES) } else { None }
    }

    /// One of the best paths that was called less often than this.
    fn nearest(&self, calls: u32) -> Option<usize> {
        let scores = self.scores();
        let best =
            (0..PATHS).filter(|&path| self.is_known(path)).map(|path| scores[path]).fold(f64::INFINITY, f64::min);
        let (factor, most) = if self.refines { (FINAL_NEAR, FINALISTS[1]) } else { (NEAR, FINALISTS[0]) };
        let mut near: Vec<usize> =
            (0..PATHS).filter(|&path| self.is_known(path) && scores[path] <= best * factor).collect();
        near.sort_by(|&one, &two| scores[one].total_cmp(&scores[two]));
        near.truncate(most);
        let least = near.into_iter().min_by_key(|&path| self.states[path].sending.calls())?;
        (self.states[least].sending.calls() < calls).then_some(least)
    }

    /// The path that is in use while it is looked more closely at which is the best.
    fn next_in_run(&mut self) -> Option<usize> {
        let (path, calls) = self.run;
        if calls >= FINAL_RUN || path >= PATHS || !self.can_be_tried(path) {
            self.run = (self.nearest(FINAL_PROBES_MOST)?, 0);
        }
        Some(self.run.0)
    }

    /// Whether enough is known of a path to choose it.
    fn is_known(&self, path: usize) -> bool {
        self.states[path].sending.calls() >= FIRST_PROBES && self.can_be_tried(path)
    }

    fn can_be_tried(&self, path: usize) -> bool {
        self.usable[path] && self.states[path].refused < 2
    }

    /// The path whose completions tell that the wire changed: the one whose word is best, else the cheapest of those
    /// that have completions, if it is not in use.
    fn sentinel(&self) -> Option<usize> {
        let zero_copy = PathKind::ZeroCopy as usize;
        if self.can_be_tried(zero_copy) {
            return (self.path as usize != zero_copy).then_some(zero_copy);
        }
        let told = (0..PATHS).filter(|&path| PathKind::ALL[path].is_notified() && self.can_be_tried(path));
        let path = told.min_by(|&one, &two| self.cost_ns(one).total_cmp(&self.cost_ns(two)))?;
        (path != self.path as usize).then_some(path)
    }

    /// What a piece of the present size costs at the ends that count.
    fn cost_ns(&self, path: usize) -> f64 {
        let [sending, receiving] = self.costs_ns(path);
        if self.objective == Objective::ThisEnd { sending } else { sending + receiving }
    }

    /// What a path costs beside the one in use, as its trials have shown for pieces like these.
    fn measured_cost(&self, path: usize) -> Option<f64> {
        let (cost, bytes) = self.states[path].cost?;
        (bytes / 2.0..=bytes * 2.0).contains(&self.bytes).then_some(cost)
    }

    /// How far each path is from the best, by the measure in which it is worse: 1 is the best of both.
    fn scores(&self) -> [f64; PATHS] {
        let is_own = self.objective == Objective::ThisEnd;
        let in_use = self.cost_ns(self.path as usize);
        let costs: [[f64; 2]; PATHS] = core::array::from_fn(|path| {
            let [sending, receiving] = self.costs_ns(path);
            let slower = if is_own { sending } else { sending.max(receiving) };
            [self.measured_cost(path).unwrap_or_else(|| self.cost_ns(path) / in_use), slower]
        });
        let best = |which: usize| {
            let known = (0..PATHS).filter(|&path| self.is_known(path));
            known.map(|path| costs[path][which]).fold(f64::INFINITY, f64::min).max(1e-3)
        };
        let best = [best(0), best(1)];
        let best_pace = self.states.iter().filter_map(|state| state.pace).fold(0.0, f64::max);
        core::array::from_fn(|path| {
            let slowness = match self.states[path].pace.filter(|_| !is_own) {
                Some(pace) => (best_pace / pace / SAME_PACE).min(MOST_SLOWNESS),
                // A path that was never in use is taken to carry what its slower end lets pass.
                None => costs[path][1] / best[1],
            };
            (costs[path][0] / best[0]).max(slowness)
        })
    }

    /// Notes that nothing is under way any more.
    pub(crate) fn idles(&mut self) {
        self.carried.idles(Instant::now());
    }

    /// Notes that something is under way again.
    pub(crate) fn resumes(&mut self) {
        self.carried.resumes(Instant::now());
    }

    /// Another path is in use from now on: what others carry is told beside what it carries.
    fn use_path(&mut self, path: PathKind) {
        match self.states[path as usize].pace {
            Some(pace) => {
                self.states.iter_mut().filter_map(|state| state.pace.as_mut()).for_each(|other| *other /= pace);
            }
            None => self.states.iter_mut().for_each(|state| (state.pace, state.was_used) = (None, false)),
        }
        let cost = self.states[path as usize].cost.take().map(|(cost, _)| cost);
        for state in &mut self.states {
            state.cost = state.cost.zip(cost).map(|((other, bytes), cost)| (other / cost, bytes));
        }
        self.states[self.path as usize].cost = cost.map(|cost| (1.0 / cost, self.bytes));
        self.path = path;
        let state = &mut self.states[path as usize];
        (state.pace, state.was_used) = (Some(1.0), true);
        self.sampling = Sampling::NONE;
        self.carried.begin(self.now, self.under_way);
    }

    /// The same at either end: the sender, and the receiver.
    fn costs_ns(&self, path: usize) -> [f64; 2] {
        let state = &self.states[path];
        // A receiver that has not said what a path costs it is taken to find it as dear as the path in use.
        let told = state.receiving.or(self.states[self.path as usize].receiving);
        [state.sending.cost_ns(self.bytes), told.unwrap_or(0.0) * self.bytes / 1024.0]
    }

    /// Whether a call by this path, which was picked just now, is to be measured: else it [`passed`](Self::passed).
    pub(crate) fn measures(&self, path: PathKind, bytes: usize, at: Instant) -> bool {
        let is_quiet = self.settled && !self.refines && self.trial.is_none() && path == self.path;
        !(is_quiet && self.sampling.may_pass(bytes, at))
    }

    /// Notes a call by the path in use that was not measured.
    pub(crate) fn passed(&mut self, bytes: usize) {
        self.sampling.pass(bytes);
    }

    /// Notes what a call took.
    ///
    /// `pieces` may be a part of one: a path that takes a piece in several calls costs as much as all of them. So many
    /// bytes are `under_way`, sent and not acknowledged.
    pub fn called(&mut self, path: PathKind, pieces: f64, bytes: usize, took: Duration, under_way: u64, now: Instant) {
        if bytes < LEAST_TOLD {
            // A head that went ahead of a payload, which may have been refused.
            return;
        }
        let (kib, ns) = (bytes as f64 / 1024.0, took.as_nanos() as f64);
        (self.now, self.under_way) = (now, under_way);
        let passed = self.sampling.take_passed((path == self.path).then_some((took, bytes)));
        if path == self.path {
            self.sampling.measured(took, bytes, now);
        }
        let mut sent = bytes as u64;
        if let Some((passed, took)) = passed {
            self.carried.count(passed as usize, took, now);
            sent += passed;
        }
        self.stale = self.stale.map(|stale| stale + sent).filter(|&stale| stale < under_way.min(MOST_STALE));
        if (self.settled && !self.refines) || self.is_warming() {
            self.carried.count(bytes, took, now);
        }
        if let Some(trial) = self.trial.as_mut().filter(|trial| trial.path == path as usize) {
            trial.calls += 1;
            if trial.calls <= LEAD_IN_CALLS || self.carried.leads_in(now) {
                return;
            }
        }
        if self.refines && path as usize == self.run.0 {
            self.run.1 += 1;
            if self.run.1 <= LEAD_IN_CALLS {
                return self.decide(now);
            }
        }
        let state = &mut self.states[path as usize];
        state.refused = 0;
        let known = state.sending.calls() >= FIRST_PROBES;
        let [a, b] = state.sending.solve();
        let predicted = a * pieces + b * kib;
        state.sending.call(pieces, kib, if known { ns.min(predicted * CUT) } else { ns });
        state.uncharged = state.uncharged.saturating_add(1);
        if path == self.path
            && known
            && !self.carried.leads_in(now)
            && let Some(jump) = self.jumps.count(ns, predicted)
        {
            self.cost_jumped(jump);
        }
        self.decide(now);
    }

    /// Notes that this end waited until the socket takes more, or something comes, and what that cost.
    pub fn waited(&mut self, ns: u64) {
        let runs = self.refines && self.run.0 < PATHS;
        let path = if runs { self.run.0 } else { self.trial.map_or(self.path as usize, |trial| trial.path) };
        self.carried.charge(ns);
        let sending = &mut self.states[path].sending;
        if sending.samples > 0 && (runs || !self.carried.leads_in(self.now)) {
            sending.charge(1.0, self.bytes / 1024.0, ns as f64);
        }
    }

    /// Notes that a path was refused.
    pub fn refused(&mut self, path: PathKind) {
        let state = &mut self.states[path as usize];
        state.refused = state.refused.saturating_add(1);
        let gives_up = state.refused >= 2;
        if self.trial.is_some_and(|trial| trial.path == path as usize) {
            self.end_trial();
        }
        if path == self.path && path != PathKind::Write && gives_up {
            self.use_path(PathKind::Write);
            self.switches += 1;
        }
    }

    /// Notes what it took to be refused by a path and to send by another: who chooses the path pays for that.
    pub fn fell_back(&mut self, path: PathKind, pieces: f64, bytes: usize, took: Duration) {
        if bytes >= LEAST_TOLD {
            self.states[path as usize].sending.call(pieces, bytes as f64 / 1024.0, took.as_nanos() as f64);
        }
    }

    /// Notes what the notifications of so many calls said, and how long it took to read them.
    pub fn notified(&mut self, path: PathKind, copied: bool, calls: u32, took: Duration) {
        let state = &mut self.states[path as usize];
        let charged = calls.min(state.uncharged);
        state.uncharged -= charged;
        let share = f64::from(charged) / f64::from(calls.max(1));
        state.sending.charge(1.0, self.bytes / 1024.0, took.as_nanos() as f64 * share);
        if self.trial.map_or(self.path as usize, |trial| trial.path) == path as usize {
            self.carried.charge(took.as_nanos() as u64);
        }
        let flipped = state.says_copied.replace(copied).is_some_and(|before| before != copied);
        // Notifications of io_uring that are joined say "copied" for nothing (see `copies`).
        if path != PathKind::ZeroCopy && self.can_be_tried(PathKind::ZeroCopy as usize) {
            return;
        }
        if flipped && self.last_completion_said_copied != Some(copied) {
            self.wire_changed(Sign::Word);
        }
        self.last_completion_said_copied = Some(copied);
    }

    /// Notes what the receiver says that a KiB cost it, when it came by a path.
    pub fn received(&mut self, path: PathKind, kib_ns: f64) {
        if self.stale.is_some() {
            return;
        }
        let told = &mut self.states[path as usize].receiving;
        *told = Some(told.map_or(kib_ns, |before| before + (kib_ns - before) * NEW_TOLD));
    }

    /// What the path in use costs is another than it was, for several calls. If it is far from that the wire has
    /// changed, and also where the kernel reads the pages and says when it is done. What else costs depends on much,
    /// such as how much goes by a call while the far program is busy: the others have trials soon.
    fn cost_jumped(&mut self, jump: Jump) {
        self.jumps = Jumps::default();
        let is_new = self.changes > 0 && self.now.duration_since(self.since) < DWELL;
        if jump == Jump::Far || (self.path.is_notified() && !is_new) {
            self.wire_changed(Sign::Cost);
            return;
        }
        // Once in a while: on a busy machine what calls cost jumps all the time.
        if self.settled && self.now >= self.next_hurry {
            self.next_hurry = self.now + DWELL;
            self.next_trial = self.now;
        }
    }

    /// Everything is measured anew, unless that was done too recently; what was believed counts little.
    fn wire_changed(&mut self, sign: Sign) -> bool {
        self.jumps = Jumps::default();
        let since = self.now.duration_since(self.changed);
        if self.changes > 0 && since < self.quiet[sign as usize] {
            return false;
        }
        if since > LAST_QUIET {
            self.quiet = [FIRST_QUIET; 2];
        }
        self.changes += 1;
        (self.changed, self.sign) = (self.now, sign);
        (self.stale, self.run, self.sampling) = (Some(0), (PATHS, 0), Sampling::NONE);
        (self.settled, self.refines, self.trial, self.challenger) = (false, false, None, None);
        for state in &mut self.states {
            *state = State { refused: state.refused, says_copied: state.says_copied, ..State::default() };
        }
        self.reason = Reason::WireChanged;
        self.forget_rates();
        let used = &mut self.states[self.path as usize];
        (used.pace, used.was_used) = (Some(1.0), true);
        true
    }

    /// Forgets how much was carried so far, which nothing that follows can be compared with.
    fn forget_rates(&mut self) {
        self.carried = Carried::new(self.now);
    }

    /// Takes over what another connection to the same host has found out.
    fn adopt(&mut self, other: &Self) {
        self.switches += u64::from(self.path != other.path);
        self.use_path(other.path);
        (self.states, self.reason, self.challenger) = (other.states, other.reason, None);
        (self.settled, self.refines, self.trial, self.jumps) = (true, false, None, Jumps::default());
        self.first_trials = false;
        if other.changed > self.changed {
            (self.changed, self.stale) = (other.changed, Some(0));
        }
        (self.since, self.decided) = (self.now, other.decided);
        (self.next_trial, self.next_hurry) = (self.now + self.pause(), self.now + DWELL);
    }

    fn decide(&mut self, now: Instant) {
        if !self.settled {
            if self.unseen().is_none() {
                self.settle(if self.changes == 0 { START_MARGIN } else { FIRST_MARGIN });
            }
        } else if self.refines {
            if now.duration_since(self.changed) >= FINAL_TIME || self.nearest(FINAL_PROBES_MOST).is_none() {
                self.refines = false;
                self.take_best(FIRST_MARGIN);
            }
        } else if let Some(trial) = self.trial {
            if self.is_incredible(trial) && self.wire_changed(Sign::Cost) {
                return;
            }
            if trial.calls >= TRIAL_CALLS && (self.carried.known().is_some() || self.is_hopeless(trial)) {
                self.end_trial();
            }
        } else if self.leads && now >= self.next_trial && self.carried.known().is_some() {
            self.begin_trial();
        }
    }

    /// Decides by the first calls of each path.
    fn settle(&mut self, margin: f64) {
        let before = self.path;
        self.take_best(margin);
        if self.reason == Reason::First {
            self.reason = Reason::Cheaper;
        }
        let now = self.now;
        (self.decided, self.is_news) = (now, true);
        (self.settled, self.since) = (true, now);
        // When the wire has changed what was decided is kept for a while in any case.
        self.refines = self.changes > 0;
        (self.next_trial, self.first_trials, self.challenges) = (now, true, 0);
        self.carried.begin(now, self.under_way);
        let quiet = &mut self.quiet[self.sign as usize];
        let was_right = self.path != before && self.sign == Sign::Word;
        *quiet = if was_right { FIRST_QUIET } else { (*quiet * 2).min(LAST_QUIET) };
    }

    /// The best path, and how far the one in use is from it.
    fn best(&self) -> Option<(usize, f64)> {
        let scores = self.scores();
        let candidates = (0..PATHS).filter(|&path| self.is_known(path));
        let best = candidates.min_by(|&one, &two| scores[one].total_cmp(&scores[two]))?;
        Some((best, scores[best] / scores[self.path as usize]))
    }

    /// Uses the best path, if it is better by this margin.
    fn take_best(&mut self, margin: f64) {
        let Some((best, share)) = self.best() else { return };
        if best == self.path as usize || share >= margin {
            return;
        }
        if self.reason != Reason::WireChanged || self.settled {
            self.reason = Reason::Cheaper;
        }
        self.use_path(PathKind::ALL[best]);
        self.switches += 1;
        (self.since, self.decided, self.jumps, self.is_news) = (self.now, self.now, Jumps::default(), true);
    }

    /// Uses another path for a while.
    fn begin_trial(&mut self) {
        let challenger = self.challenger.take().filter(|&path| self.can_be_tried(path));
        let Some(path) = challenger.or_else(|| self.next_on_trial()) else {
            (self.next_trial, self.first_trials) = (self.now + self.pause(), false);
            return;
        };
        let state = &mut self.states[path];
        state.sending.age();
        let (before, again) = (self.carried.known(), challenger.is_some());
        self.trial = Some(Trial { path, began: self.now, calls: 0, before, again });
        self.carried.begin(self.now, self.under_way);
    }

    /// Whether a path on trial is worse than the one in use by both measures, and by much.
    fn is_hopeless(&self, trial: Trial) -> bool {
        let both = self.carried.last().zip(trial.before);
        both.is_some_and(|(now, before)| now[0] * HOPELESS < before[0] && now[1] > before[1] * HOPELESS)
    }

    /// Whether what a path on trial carries is so far from what was found before, in two windows, that the wire must
    /// have changed.
    fn is_incredible(&self, trial: Trial) -> bool {
        let state = &self.states[trial.path];
        let (Some(rates), Some([before, _]), Some(pace)) = (self.carried.last_rates(), trial.before, state.pace) else {
            return false;
        };
        let factors = rates.map(|rate| rate / before / pace);
        let is_far = factors.iter().all(|&factor| factor > INCREDIBLE)
            || factors.iter().all(|&factor| factor < 1.0 / INCREDIBLE);
        // What pieces of another size carried says nothing.
        is_far && self.measured_cost(trial.path).is_some()
    }

    /// What the path on trial carried and cost both ends, beside the path in use.
    fn found(&self, trial: Trial) -> Option<[f64; 2]> {
        let [rate, sending] = self.carried.known().or(self.carried.last())?;
        let [rate_before, sending_before] = trial.before?;
        let told = |path: usize| match self.objective {
            Objective::ThisEnd => 0.0,
            Objective::BothEnds => {
                self.states[path].receiving.or(self.states[self.path as usize].receiving).unwrap_or(0.0)
            }
        };
        let [cost, cost_before] = [sending + told(trial.path), sending_before + told(self.path as usize)];
        Some([rate / rate_before, cost / cost_before])
    }

    /// Goes back to the path in use, or to the other for good, by what the trial has shown.
    fn end_trial(&mut self) {
        let Some(trial) = self.trial.take() else { return };
        self.states[trial.path].was_used = true;
        if let Some([rate, cost]) = self.found(trial) {
            // Half of it is what was found before: a trial is short.
            let pace = self.states[trial.path].pace.map_or(rate, |earlier| (earlier * rate).sqrt());
            let cost = self.measured_cost(trial.path).map_or(cost, |earlier| (earlier * cost).sqrt());
            let state = &mut self.states[trial.path];
            (state.pace, state.cost) = (Some(pace), Some((cost, self.bytes)));
        }
        let scores = self.scores();
        let excess = (scores[trial.path] / scores[self.path as usize] - 1.0).max(0.0);
        let took = self.now.duration_since(trial.began);
        self.carried.begin(self.now, self.under_way);
        self.jumps = Jumps::default();
        // First each has one. When the wire has changed it is decided after all of them, to change once.
        let more = self.first_trials && (0..PATHS).any(|path| self.is_untried(path, &scores));
        let may = match self.first_trials {
            true => !more || self.changes == 0,
            false => self.now.duration_since(self.since) >= self.dwell(self.now),
        };
        // When it was just decided it takes more.
        let margin = if self.first_trials && self.changes > 0 { FIRST_MARGIN } else { MARGIN };
        let found = self.best().filter(|&(best, share)| may && best != self.path as usize && share < margin);
        if let Some((best, share)) = found {
            if trial.path == best && (trial.again || (share < CLEARLY && self.changes == 0)) {
                self.take_best(margin);
            } else if self.challenges < CHALLENGES {
                // Luck makes one of many look better: it has to be so twice.
                self.challenges += 1;
                (self.challenger, self.next_trial) = (Some(best), self.now);
                return;
            }
        }
        (self.first_trials, self.challenges) = (more, 0);
        if more {
            self.next_trial = self.now;
            return;
        }
        let waste = Duration::try_from_secs_f64(took.as_secs_f64() * excess / TRIALS_SHARE);
        self.next_trial = self.now + self.pause().max(waste.map_or(LAST_PAUSE, |waste| waste.min(LAST_PAUSE)));
    }

    /// Whether a path that is not much dearer than the best was never in use.
    fn is_untried(&self, path: usize, scores: &[f64; PATHS]) -> bool {
        self.is_known(path) && !self.states[path].was_used && scores[path] < MUCH_DEARER
    }

    /// The path that has the next trial: the best of those that had none, else the next.
    fn next_on_trial(&mut self) -> Option<usize> {
        let scores = self.scores();
        let untried = (0..PATHS).filter(|&path| self.is_untried(path, &scores));
        if let Some(path) = untried.min_by(|&one, &two| scores[one].total_cmp(&scores[two])) {
            return Some(path);
        }
        for _ in 0..PATHS * DEAR_EVERY as usize {
            self.turn = self.turn.wrapping_add(1);
            let (path, round) = (self.turn % PATHS, self.turn / PATHS);
            let is_due = scores[path] < DEAR || round.is_multiple_of(DEAR_EVERY as usize);
            // One that was refused before may be possible again, some time.
            let refused = self.usable[path] && self.states[path].refused >= 2 && round.is_multiple_of(64);
            if path != self.path as usize && is_due && (self.can_be_tried(path) || refused) {
                return Some(path);
            }
        }
        None
    }

    /// How long there is no trial after one.
    fn pause(&self) -> Duration {
        (self.now.duration_since(self.began) / 8).clamp(FIRST_PAUSE, LAST_PAUSE)
    }

    /// How long a path is kept at least: at the start less, because what is known rests on few calls.
    fn dwell(&self, now: Instant) -> Duration {
        if self.changes > 0 { DWELL } else { (now.duration_since(self.began) / 2).clamp(FIRST_DWELL, DWELL) }
    }

    /// Whether a path copies, as far as that is known.
    fn copies(&self, path: PathKind) -> Option<bool> {
        let (state, write) = (&self.states[path as usize], &self.states[PathKind::Write as usize]);
        match (path.shares_pages(), state.says_copied) {
            (false, _) => Some(true),
            // The error queue says that it copied only where it did. Notifications of io_uring that are joined say so
            // for nothing, from Linux 6.10 on.
            (true, Some(true)) if path == PathKind::ZeroCopy => Some(true),
            (true, Some(says)) => {
                let calls = state.sending.samples.min(write.sending.samples);
                let calls = if self.bytes >= TELLING_BYTES { calls } else { 0 };
                let share = state.sending.cost_ns(self.bytes) / write.sending.cost_ns(self.bytes);
                if calls >= COPIED_CALLS && share >= 1.0 {
                    Some(true)
                } else if calls >= UNCOPIED_CALLS && share < UNCOPIED {
                    Some(false)
                } else {
                    says.then_some(true)
                }
            }
            // Nobody says, and what it costs is not all that a path without completions costs.
            (true, None) => None,
        }
    }

    /// What is chosen, and what is believed.
    #[must_use]
    pub fn selection(&self) -> Selection {
        let model = |(path, state): (&PathKind, &State)| {
            let [piece_ns, kib_ns] = state.sending.solve();
            PathModel {
                path: *path,
                piece_ns,
                kib_ns,
                receiver_kib_ns: state.receiving,
                calls: state.sending.samples,
                refused: state.refused,
                says_copied: state.says_copied,
                copies: self.copies(*path),
            }
        };
        let states = PathKind::ALL.iter().zip(&self.states);
        Selection {
            path: self.path,
            reason: self.reason,
            switches: self.switches,
            changes: self.changes,
            probes: self.probes,
            models: states.filter(|(_, state)| state.sending.samples > 0 || state.refused > 0).map(model).collect(),
        }
    }
}
