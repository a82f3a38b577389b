//! The choice of the path: what each costs is measured, and the cheapest is used.
//!
//! # The model
//! For each path the time that a piece costs is taken to be `a + b * KiB`: at the sender what its calls take, with the
//! reading of notifications; at the receiver what its calls take, as it tells in its frames. Both are fitted by least
//! squares over the last calls, older ones counting less and less.
//!
//! What a path costs is taken by two measures: the processor time of both ends together, and the time of the slower
//! end, because the two work side by side. A third is what no call shows: how much is carried while a path is in use,
//! as against the path before, because some paths wait for the far program. The path is chosen that is nearest to the
//! best by the measure in which it is worst.
//!
//! # What is done with it
//! - Pieces below [`LEAST_BYTES`] go by `write`: whatever sharing pages saves there is less than what it costs.
//! - Each path that can be used is tried a few times at the start, and those that come out nearly equal some times
//!   more, for a first decision.
//! - What a path costs when it is in use is another matter: between calls of another path it finds other memory in the
//!   kernel and other bytes in the caches. So the others have trials from then on, in which they are used for some
//!   milliseconds; the ones that came out much dearer have them more rarely.
//! - One call in [`PROBE_EVERY`] goes to `zerocopy`, or where that cannot be to the cheapest of the other paths whose
//!   completions say whether the kernel copied, because that is what tells first that a wire changed.
//! - A path is left for another that is cheaper by a margin, and not more than once a second (at the very start more
//!   often, while little is known), unless the wire has changed: what the path in use costs has jumped and stays so, or
//!   completions that said "copied" say so no more, or the other way round. Then all is measured anew. What completions
//!   say changes nothing else: the kernel's word is a reason to look, not an answer.
//!
//! # What this does not do
//! Time, not processor time, is measured around calls that never sleep; calls that were interrupted for long stand out,
//! and are cut off.

mod learned;
#[cfg(test)]
mod tests;

use core::fmt;
use std::time::{Duration, Instant};

use crate::outgoing::Front;
use crate::path::PathKind;

pub(crate) use learned::{Choosing, Experience, Experiences};

/// Pieces below this go by `write`, without looking further.
pub const LEAST_BYTES: u32 = 4096;
/// The same for datagrams, whose calls carry fewer messages.
pub const LEAST_DATAGRAM: u32 = 2048;
/// One call in so many looks whether the wire has changed, if that was not done just before.
pub const PROBE_EVERY: u32 = 32;
const PROBE_PAUSE: Duration = Duration::from_millis(2);
/// A call that tries another path takes so many bytes, or one piece.
const PROBE_BYTES: usize = 256 << 10;
/// Calls before other paths are tried at all: most connections carry little.
const WARM_UP: u32 = 24;
/// Calls of each path at the start, and when the wire has changed. The slowest of them does not count: the first sets
/// things up, and any may be interrupted.
const FIRST_PROBES: u32 = 4;
/// Paths that are then nearer to the best than this factor are called this often before the first decision.
const NEAR: f64 = 1.2;
const FINAL_PROBES: u32 = 8;
/// When the wire has changed every second call goes to them for so long after the decision, or until each was called so
/// often; then it is decided once more.
const FINAL_TIME: Duration = Duration::from_millis(4);
const FINAL_PROBES_MOST: u32 = 40;
/// So many of them at the most.
const FINALISTS: usize = 3;
/// Paths dearer by this factor have one trial where others have so many, and those dearer by that one no first trial.
const DEAR: f64 = 1.25;
const DEAR_EVERY: u32 = 8;
const MUCH_DEARER: f64 = 2.0;
/// A path is left for one that costs less than this share.
const MARGIN: f64 = 0.95;
/// The same for a first decision, which rests on few calls.
const FIRST_MARGIN: f64 = 0.88;
/// How long a path is kept at least, if the wire did not change; at the start a part of the time that has passed.
const DWELL: Duration = Duration::from_secs(1);
const FIRST_DWELL: Duration = Duration::from_millis(40);
/// What a call's weight is multiplied with at each further call of its path.
const FORGETTING: f64 = 0.99;
/// A call that takes so many times what was predicted was interrupted, and counts as if it took this.
const CUT: f64 = 3.0;
/// The wire has changed when so many calls in a row are off by a factor of [`JUMP`], all in the same direction.
const JUMPS: i32 = 10;
const JUMP: f64 = 1.4;
/// Signs that the wire has changed are not heeded for a while after the last; longer each time that they were wrong, or
/// that what calls cost was the sign, until there was none for the longest of these times.
const FIRST_QUIET: Duration = Duration::from_millis(20);
const LAST_QUIET: Duration = Duration::from_secs(3);
/// Calls that took less say nothing about a path.
const LEAST_TOLD: usize = 1024;
/// How much is carried is counted over so long, and so many calls.
const WINDOW: Duration = Duration::from_micros(1500);
const WINDOW_CALLS: u32 = 8;
/// After a change of path, for a trial or for good, what is under way by the path before still passes for so long.
const LEAD_IN: Duration = Duration::from_millis(1);
const LEAD_IN_CALLS: u32 = 2;
/// A trial has so many calls and, where something is always under way, so many windows.
const TRIAL_CALLS: u32 = 10;
const TRIAL_WINDOWS: u32 = 3;
/// Between trials: a part of the time that has passed, within these bounds.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(4);
/// What earlier calls count in a trial.
const AGED: f64 = 0.3;
/// Calls after which it is looked again whether another path is better.
const DECIDE_EVERY: u32 = 32;
/// What differs by less than this factor is the same, and what differs by more than that is all one.
const SAME_PACE: f64 = 1.08;
const MOST_SLOWNESS: f64 = 4.0;
/// What going to sleep and being woken costs in processor time, about, in nanoseconds: a call after which the socket
/// takes or has no more is charged with it, so that a path that goes in smaller steps is seen to cost more.
pub const SLEEP_NS: u64 = 5000;
/// A send of so many bytes or more that costs less than this share of a copying one did not copy.
const TELLING_BYTES: f64 = 16384.0;
const UNCOPIED: f64 = 0.75;
/// Calls from which what a path costs tells whether it copies.
const TELLING_CALLS: u32 = 6;
/// What is believed before anything was measured, and how strongly, in calls.
const PRIOR: [f64; 2] = [1000.0, 60.0];
const PRIOR_WEIGHT: f64 = 0.02;

const PATHS: usize = PathKind::ALL.len();

/// The fit of `a * pieces + b * KiB` to what calls took.
#[derive(Clone, Copy, Debug, Default)]
struct Fit {
    /// The slowest call so far, while there are few.
    slowest: Option<[f64; 3]>,
    pieces_pieces: f64,
    pieces_kib: f64,
    kib_kib: f64,
    pieces_ns: f64,
    kib_ns: f64,
    samples: u32,
}

impl Fit {
    /// Takes a call; of the first ones the slowest is left out.
    fn call(&mut self, pieces: f64, kib: f64, ns: f64) {
        if self.samples + 1 >= FIRST_PROBES {
            return self.add(pieces, kib, ns);
        }
        let new = [pieces, kib, ns];
        let pace = |[pieces, kib, ns]: [f64; 3]| ns / (kib + pieces);
        let [pieces, kib, ns] = match self.slowest {
            None => {
                self.slowest = Some(new);
                return;
            }
            Some(slowest) if pace(slowest) >= pace(new) => new,
            Some(slowest) => {
                self.slowest = Some(new);
                slowest
            }
        };
        self.add(pieces, kib, ns);
    }

    /// How many calls it has seen.
    fn calls(&self) -> u32 {
        self.samples + u32::from(self.slowest.is_some())
    }

    fn add(&mut self, pieces: f64, kib: f64, ns: f64) {
        // Large calls would outweigh small ones by the square of their size: each is brought to the same size.
        let scale = 1.0 / (kib + pieces).max(1e-9);
        let (pieces, kib, ns) = (pieces * scale, kib * scale, ns * scale);
        for sum in
            [&mut self.pieces_pieces, &mut self.pieces_kib, &mut self.kib_kib, &mut self.pieces_ns, &mut self.kib_ns]
        {
            *sum *= FORGETTING;
        }
        self.pieces_pieces += pieces * pieces;
        self.pieces_kib += pieces * kib;
        self.kib_kib += kib * kib;
        self.pieces_ns += pieces * ns;
        self.kib_ns += kib * ns;
        self.samples = self.samples.saturating_add(1);
    }

    /// Has what was seen count less from now on.
    fn age(&mut self) {
        for sum in
            [&mut self.pieces_pieces, &mut self.pieces_kib, &mut self.kib_kib, &mut self.pieces_ns, &mut self.kib_ns]
        {
            *sum *= AGED;
        }
    }

    /// Adds to what a call has cost that was counted already.
    fn charge(&mut self, pieces: f64, kib: f64, ns: f64) {
        let scale = 1.0 / (kib + pieces).max(1e-9);
        self.pieces_ns += pieces * scale * ns * scale;
        self.kib_ns += kib * scale * ns * scale;
    }

    /// What a piece and what a KiB costs, in nanoseconds.
    fn solve(&self) -> [f64; 2] {
        // The prior keeps the equations solvable when all calls had one size, and bends the answer little.
        let (pp, kk, pk) = (self.pieces_pieces + PRIOR_WEIGHT * 1e-3, self.kib_kib + PRIOR_WEIGHT, self.pieces_kib);
        let (pn, kn) = (self.pieces_ns + PRIOR_WEIGHT * 1e-3 * PRIOR[0], self.kib_ns + PRIOR_WEIGHT * PRIOR[1]);
        let determinant = pp * kk - pk * pk;
        let (a, b) = ((pn * kk - kn * pk) / determinant, (kn * pp - pn * pk) / determinant);
        if a < 0.0 {
            [0.0, kn / kk]
        } else if b < 0.0 {
            [pn / pp, 0.0]
        } else {
            [a, b]
        }
    }

    fn cost_ns(&self, bytes: f64) -> f64 {
        let [a, b] = self.solve();
        a + b * bytes / 1024.0
    }
}

/// What is known of one path.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    sending: Fit,
    receiving: Fit,
    /// Whether it was refused, so that it is not to be tried for a while.
    refused: u32,
    /// How much is carried while it is in use, beside what `write` carried at the start.
    pace: Option<f64>,
    /// Whether its last completion said that the kernel copied.
    says_copied: Option<bool>,
    /// Whether it has been in use, for a trial at least, since the wire changed.
    was_used: bool,
}

/// A path that is in use for a while, to see what it costs then.
#[derive(Clone, Copy, Debug)]
struct Trial {
    path: usize,
    calls: u32,
    /// Whether nothing was under way at times, so that how much is carried says nothing.
    rested: bool,
    /// How much the path in use carried.
    rate: Option<f64>,
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
    /// wrong.
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
    /// It came out cheaper.
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
    /// What calls cost.
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
    /// Calls in a row that were slower than expected, or, below 0, faster.
    jumps: i32,
    settled: bool,
    /// Whether what was decided when the wire had changed is looked at more closely.
    refines: bool,
    trial: Option<Trial>,
    /// Whether there are paths that should have a first trial; nothing is decided before.
    first_trials: bool,
    next_trial: Instant,
    next_probe: Instant,
    /// Until when what passes is not what the path in use carries.
    leads_in: Instant,
    /// Whether nothing was under way at times, of late.
    rests: bool,
    /// Since when bytes are counted while something is always under way, how many they are, and in how many calls.
    window: Option<(Instant, usize, u32)>,
    /// Bytes a nanosecond in the last windows since the path is in use, in the best of them, and how many there were.
    recent: [f64; TRIAL_WINDOWS as usize],
    rate: Option<f64>,
    windows: u32,
    /// What the path before carried at the end, and its pace.
    before: Option<(f64, f64)>,
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
            jumps: 0,
            settled: false,
            refines: false,
            trial: None,
            first_trials: false,
            next_trial: now,
            next_probe: now,
            leads_in: now,
            rests: false,
            window: None,
            recent: [0.0; TRIAL_WINDOWS as usize],
            rate: None,
            windows: 0,
            before: None,
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
            true if self.settled && !self.refines => 1,
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
                self.probes += 1;
                self.probing = path != self.path && self.trial.is_none();
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
            (None, None) if self.refines && self.calls.is_multiple_of(2) => self.nearest(FINAL_PROBES_MOST)?,
            (None, None) if self.calls.is_multiple_of(PROBE_EVERY) && self.now >= self.next_probe => {
                self.next_probe = self.now + PROBE_PAUSE;
                self.sentinel()?
            }
            (None, None) => return None,
        };
        Some(PathKind::ALL[chosen])
    }

    /// Whether other paths are not tried yet: at the start, until it is known how much `write` carries, or that this
    /// cannot be known because nothing is under way at times.
    fn is_warming(&self) -> bool {
        let most = if self.rate.is_none() { 4 * WARM_UP } else { WARM_UP };
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
        let mut near: Vec<usize> =
            (0..PATHS).filter(|&path| self.is_known(path) && scores[path] <= best * NEAR).collect();
        near.sort_by(|&one, &two| scores[one].total_cmp(&scores[two]));
        near.truncate(FINALISTS);
        let least = near.into_iter().min_by_key(|&path| self.states[path].sending.calls())?;
        (self.states[least].sending.calls() < calls).then_some(least)
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

    /// How far each path is from the best, by the measure in which it is worse: 1 is the best of both.
    fn scores(&self) -> [f64; PATHS] {
        let is_own = self.objective == Objective::ThisEnd;
        let costs: [[f64; 2]; PATHS] = core::array::from_fn(|path| {
            let [sending, receiving] = self.costs_ns(path);
            if is_own { [sending; 2] } else { [sending + receiving, sending.max(receiving)] }
        });
        let best = |which: usize| {
            let known = (0..PATHS).filter(|&path| self.is_known(path));
            known.map(|path| costs[path][which]).fold(f64::INFINITY, f64::min).max(1.0)
        };
        let best = [best(0), best(1)];
        // A path that was never in use is taken to carry as much as any.
        let best_pace = self.states.iter().filter_map(|state| state.pace).fold(0.0, f64::max);
        core::array::from_fn(|path| {
            let pace = self.states[path].pace.filter(|_| !is_own);
            let slowness = pace.map_or(1.0, |pace| (best_pace / pace / SAME_PACE).min(MOST_SLOWNESS));
            (costs[path][0] / best[0]).max(costs[path][1] / best[1]).max(slowness)
        })
    }

    /// Counts what is carried while the path is in use.
    fn count(&mut self, bytes: usize, now: Instant) {
        if now < self.leads_in {
            return;
        }
        let Some((begin, sum, calls)) = &mut self.window else {
            // What this call took was under way before.
            self.window = Some((now, 0, 0));
            return;
        };
        (*sum, *calls) = (*sum + bytes, *calls + 1);
        let took = now.duration_since(*begin);
        if took < WINDOW || *calls < WINDOW_CALLS {
            return;
        }
        self.rests = false;
        let rate = *sum as f64 / took.as_nanos() as f64;
        // The best of the last ones: interruptions only take away.
        self.recent.rotate_right(1);
        self.recent[0] = rate;
        self.rate = Some(self.recent.iter().copied().fold(0.0, f64::max));
        self.windows = self.windows.saturating_add(1);
        self.window = Some((now, 0, 0));
        // The first windows after a change carry what was queued before; late ones compare with a past that is over.
        if let (Some(rate), Some((before, pace)), 2..=8) = (self.rate, self.before, self.windows) {
            self.states[self.path as usize].pace = Some(pace * rate / before);
        }
    }

    /// Notes that nothing was under way: how much is carried says nothing about the path then.
    pub(crate) fn rested(&mut self) {
        (self.window, self.rests) = (None, true);
        if let Some(trial) = &mut self.trial {
            trial.rested = true;
        }
    }

    /// Another path is in use from now on.
    fn use_path(&mut self, path: PathKind) {
        let pace = self.states[self.path as usize].pace;
        self.before = self.rate.take().zip(pace);
        (self.path, self.window, self.windows) = (path, None, 0);
        self.recent = Default::default();
        self.states[path as usize].was_used = true;
        self.leads_in = self.now + LEAD_IN;
    }

    /// The same at either end: the sender, and the receiver.
    fn costs_ns(&self, path: usize) -> [f64; 2] {
        let state = &self.states[path];
        // A receiver that has not said what a path costs it is taken to find it as dear as the path in use.
        let told = if state.receiving.samples > 0 { state } else { &self.states[self.path as usize] };
        let receiving = if told.receiving.samples > 0 { told.receiving.cost_ns(self.bytes) } else { 0.0 };
        [state.sending.cost_ns(self.bytes), receiving]
    }

    /// Notes what a call took.
    ///
    /// `pieces` may be a part of one: a path that takes a piece in several calls costs as much as all of them.
    pub fn called(&mut self, path: PathKind, pieces: f64, bytes: usize, took: Duration, now: Instant) {
        if bytes < LEAST_TOLD {
            // A head that went ahead of a payload, which may have been refused.
            return;
        }
        let (kib, ns) = (bytes as f64 / 1024.0, took.as_nanos() as f64);
        self.now = now;
        if let Some(trial) = self.trial.as_mut().filter(|trial| trial.path == path as usize) {
            trial.calls += 1;
            if trial.calls <= LEAD_IN_CALLS || now < self.leads_in {
                return;
            }
        }
        if (self.settled && !self.refines) || self.is_warming() {
            self.count(bytes, now);
        }
        let state = &mut self.states[path as usize];
        state.refused = 0;
        let known = state.sending.calls() >= FIRST_PROBES;
        let [a, b] = state.sending.solve();
        let predicted = a * pieces + b * kib;
        state.sending.call(pieces, kib, if known { ns.min(predicted * CUT) } else { ns });
        if path == self.path && known && now >= self.leads_in {
            self.jumps = match (ns > predicted * JUMP, ns * JUMP < predicted) {
                (true, _) => self.jumps.max(0) + 1,
                (_, true) => self.jumps.min(0) - 1,
                _ => 0,
            };
            if self.jumps.abs() >= JUMPS {
                self.cost_jumped();
            }
        }
        self.decide(now);
    }

    /// Notes that the socket took no more by a path, so that somebody has to sleep and to be woken.
    pub fn blocked(&mut self, path: PathKind) {
        let state = &mut self.states[path as usize];
        if state.sending.samples > 0 {
            state.sending.charge(1.0, self.bytes / 1024.0, SLEEP_NS as f64);
        }
    }

    /// Notes that a path was refused.
    pub fn refused(&mut self, path: PathKind) {
        let state = &mut self.states[path as usize];
        state.refused = state.refused.saturating_add(1);
        if self.trial.is_some_and(|trial| trial.path == path as usize) {
            self.end_trial();
        }
        let state = &mut self.states[path as usize];
        if path == self.path && path != PathKind::Write && state.refused >= 2 {
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

    /// Notes what a notification said, and how long it took to read.
    pub fn notified(&mut self, path: PathKind, copied: bool, took: Duration) {
        let state = &mut self.states[path as usize];
        state.sending.charge(1.0, self.bytes / 1024.0, took.as_nanos() as f64);
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
        self.states[path as usize].receiving.add(0.0, 1.0, kib_ns);
    }

    /// What the path in use costs is another than it was, for several calls. Where the kernel reads the pages and says
    /// when it is done, the wire has changed. What else costs depends on much, such as how much goes by a call while
    /// the far program is busy: the others have trials soon.
    fn cost_jumped(&mut self) {
        if self.path.is_notified() {
            return self.wire_changed(Sign::Cost);
        }
        self.jumps = 0;
        if self.settled {
            self.next_trial = self.next_trial.min(self.since + DWELL).max(self.now);
        }
    }

    /// Everything is measured anew; what was believed counts little.
    fn wire_changed(&mut self, sign: Sign) {
        self.jumps = 0;
        let since = self.now.duration_since(self.changed);
        if self.changes > 0 && since < self.quiet[sign as usize] {
            return;
        }
        if since > LAST_QUIET {
            self.quiet = [FIRST_QUIET; 2];
        }
        self.changes += 1;
        (self.changed, self.sign) = (self.now, sign);
        (self.settled, self.refines, self.trial) = (false, false, None);
        for state in &mut self.states {
            *state = State { refused: state.refused, says_copied: state.says_copied, ..State::default() };
        }
        self.reason = Reason::WireChanged;
        self.forget_rates();
        let used = &mut self.states[self.path as usize];
        (used.pace, used.was_used) = (Some(1.0), true);
    }

    /// Forgets how much was carried so far, which nothing that follows can be compared with.
    fn forget_rates(&mut self) {
        (self.rate, self.window, self.windows, self.before) = (None, None, 0, None);
        self.recent = Default::default();
    }

    /// Takes over what another connection to the same host has found out.
    fn adopt(&mut self, other: &Self) {
        self.switches += u64::from(self.path != other.path);
        self.use_path(other.path);
        (self.states, self.reason, self.before) = (other.states, other.reason, None);
        (self.settled, self.refines, self.trial, self.jumps) = (true, false, None, 0);
        self.first_trials = false;
        (self.since, self.decided) = (self.now, other.decided);
        self.next_trial = self.now + self.pause();
    }

    fn decide(&mut self, now: Instant) {
        // Whether it is decided however long ago that was done last.
        let mut decides = false;
        if !self.settled {
            if self.unseen().is_some() {
                return;
            }
        } else if self.refines {
            decides = true;
            if now.duration_since(self.changed) < FINAL_TIME && self.nearest(FINAL_PROBES_MOST).is_some() {
                return;
            }
        } else if let Some(trial) = self.trial {
            if trial.calls < TRIAL_CALLS || !(trial.rested || self.windows >= TRIAL_WINDOWS) {
                return;
            }
            let first = self.first_trials;
            self.end_trial();
            if self.first_trials {
                return;
            }
            decides = first;
        } else {
            let is_known = self.windows >= TRIAL_WINDOWS || self.rests;
            if now >= self.next_trial && now >= self.leads_in && is_known {
                return self.begin_trial();
            }
            if self.first_trials || !self.calls.is_multiple_of(DECIDE_EVERY) {
                return;
            }
        }
        if self.settled && !decides && now.duration_since(self.since) < self.dwell(now) {
            return;
        }
        self.refines = false;
        let (scores, before) = (self.scores(), self.path);
        let candidates = (0..PATHS).filter(|&path| self.is_known(path));
        let Some(best) = candidates.min_by(|&one, &two| scores[one].total_cmp(&scores[two])) else {
            return;
        };
        // What was decided a moment ago is left only for what is clearly better.
        let margin = if self.settled && !decides { MARGIN } else { FIRST_MARGIN };
        let cheaper = scores[best] < scores[self.path as usize] * margin;
        if cheaper && best != self.path as usize {
            if self.reason != Reason::WireChanged || self.settled {
                self.reason = Reason::Cheaper;
            }
            self.use_path(PathKind::ALL[best]);
            self.switches += 1;
            (self.since, self.jumps) = (now, 0);
            (self.decided, self.is_news) = (now, true);
        }
        if !self.settled {
            (self.decided, self.is_news) = (now, true);
            (self.settled, self.since) = (true, now);
            // When the wire has changed what was decided is kept for a while in any case.
            self.refines = self.changes > 0;
            (self.next_trial, self.first_trials) = (now, true);
            let quiet = &mut self.quiet[self.sign as usize];
            let was_right = self.path != before && self.sign == Sign::Word;
            *quiet = if was_right { FIRST_QUIET } else { (*quiet * 2).min(LAST_QUIET) };
        }
    }

    /// Uses another path for a while.
    fn begin_trial(&mut self) {
        let Some(path) = self.next_on_trial() else {
            (self.next_trial, self.first_trials) = (self.now + self.pause(), false);
            return;
        };
        let state = &mut self.states[path];
        state.sending.age();
        state.receiving.age();
        self.trial = Some(Trial { path, calls: 0, rested: self.rate.is_none(), rate: self.rate.take() });
        (self.window, self.windows, self.leads_in) = (None, 0, self.now + LEAD_IN);
        self.recent = Default::default();
    }

    /// Goes back to the path in use, with what the trial has shown.
    fn end_trial(&mut self) {
        let Some(trial) = self.trial.take() else { return };
        let in_use = self.states[self.path as usize].pace;
        let state = &mut self.states[trial.path];
        state.was_used = true;
        if let (Some(rate), Some(before), Some(pace), false) = (self.rate, trial.rate, in_use, trial.rested) {
            // Half of it is what was found before: a trial is short.
            let found = pace * rate / before;
            state.pace = Some(state.pace.map_or(found, |earlier| (earlier * found).sqrt()));
        }
        (self.rate, self.window, self.windows) = (trial.rate, None, 0);
        self.recent = Default::default();
        (self.leads_in, self.jumps) = (self.now + LEAD_IN, 0);
        // First each has one.
        let scores = self.scores();
        let more = (0..PATHS).any(|path| self.is_untried(path, &scores));
        self.next_trial = if more { self.leads_in } else { self.now + self.pause() };
        self.first_trials &= more;
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
        (self.now.duration_since(self.began) / 4).clamp(FIRST_PAUSE, LAST_PAUSE)
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
                let told = calls >= TELLING_CALLS && self.bytes >= TELLING_BYTES;
                let (cost, copying) = (state.sending.cost_ns(self.bytes), write.sending.cost_ns(self.bytes));
                if told { Some(cost > copying * UNCOPIED) } else { says.then_some(true) }
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
            let told = state.receiving.samples > 0;
            PathModel {
                path: *path,
                piece_ns,
                kib_ns,
                receiver_kib_ns: told.then(|| state.receiving.solve()[1]),
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
