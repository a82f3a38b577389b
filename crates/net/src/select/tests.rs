//! The choice on wires whose costs are known.

use super::*;

/// A wire on which calls cost this, in nanoseconds a piece and a KiB; at the receiver too.
type Costs = [[f64; 3]; PATHS];

const COPYING: Costs = [
    [900.0, 70.0, 60.0],
    [2000.0, 95.0, 60.0],
    [1000.0, 70.0, 60.0],
    [2100.0, 95.0, 60.0],
    [1900.0, 85.0, 60.0],
    [1500.0, 60.0, 90.0],
    [1800.0, 55.0, 100.0],
];
const SHARING: Costs = [
    [900.0, 70.0, 60.0],
    [2000.0, 15.0, 60.0],
    [1000.0, 70.0, 60.0],
    [1900.0, 14.0, 60.0],
    [1700.0, 1.0, 60.0],
    [1500.0, 60.0, 90.0],
    [1800.0, 55.0, 100.0],
];

/// One on which splicing costs much less than anything else.
const WAITING: Costs = [
    [900.0, 70.0, 60.0],
    [2000.0, 95.0, 60.0],
    [1000.0, 70.0, 60.0],
    [2100.0, 95.0, 60.0],
    [1900.0, 85.0, 60.0],
    [1500.0, 65.0, 60.0],
    [1800.0, 45.0, 60.0],
];

struct World {
    choosing: Choosing,
    now: Instant,
    seed: u64,
    /// So many notifications come together, and the paths of those that have not come.
    together: usize,
    owed: Vec<PathKind>,
    /// What everything takes, beside what it took before.
    slowness: f64,
    /// What all calls took.
    spent_ns: f64,
}

impl World {
    fn new() -> Self {
        let choosing = Choosing::among(&PathKind::ALL, Objective::BothEnds);
        Self { choosing, now: Instant::now(), seed: 1, together: 1, owed: Vec::new(), slowness: 1.0, spent_ns: 0.0 }
    }

    /// One of several connections that learn from each other.
    fn learning(seed: u64, learned: &Experience) -> Self {
        let mut world = Self { seed, ..Self::new() };
        world.choosing.learn_from(learned);
        world
    }

    /// One call, with noise of 20 %, and an interruption now and then. Returns the path.
    fn call(&mut self, costs: &Costs, bytes: u32, copied: bool) -> PathKind {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let noise = 0.9 + f64::from((self.seed >> 40) as u32 % 1000) / 5000.0;
        let interrupted = if self.seed >> 33 & 127 == 0 { 40.0 } else { 1.0 };
        let front = Front { payload_bytes: bytes, may_share: true };
        let path = self.choosing.pick(|selector| selector.pick(front)).expect("no path is forced");
        let [piece, kib, receiver] = costs[path as usize];
        let took = (piece + kib * f64::from(bytes) / 1024.0) * noise * interrupted * self.slowness;
        self.spent_ns += took;
        let begin = self.now;
        // The slower end says how much passes.
        self.now += Duration::from_nanos(took.max(receiver * f64::from(bytes) / 1024.0) as u64);
        self.choosing.tell(|selector| match selector.measures(path, bytes as usize, begin) {
            true => selector.called(path, 1.0, bytes as usize, Duration::from_nanos(took as u64), 0, self.now),
            false => selector.passed(bytes as usize),
        });
        self.choosing.tell(|selector| selector.received(path, receiver * noise));
        if path.is_notified() {
            self.owed.push(path);
        }
        if self.owed.len() >= self.together {
            for path in PathKind::ALL {
                let calls = self.owed.iter().filter(|&&owed| owed == path).count() as u32;
                if calls > 0 {
                    let took = Duration::from_nanos(200) * calls;
                    self.choosing.tell(|selector| selector.notified(path, copied, calls, took));
                }
            }
            self.owed.clear();
        }
        path
    }

    fn selection(&self) -> Selection {
        self.choosing.selection().expect("something was measured")
    }

    /// How much a path carries, as far as that is known.
    fn pace(&mut self, path: PathKind) -> Option<f64> {
        self.choosing.tell(|selector| selector.states[path as usize].pace).flatten()
    }

    /// As long as it may take to answer a change: 64 calls, or 10 ms.
    fn answer(&mut self, costs: &Costs, bytes: u32, copied: bool) {
        let begin = self.now;
        for call in 0.. {
            if call >= 64 && self.now.duration_since(begin) >= Duration::from_millis(10) {
                return;
            }
            self.call(costs, bytes, copied);
        }
    }

    /// The path used most in the last so many calls.
    fn run(&mut self, costs: &Costs, bytes: u32, copied: bool, calls: u32) -> PathKind {
        let mut used = [0; PATHS];
        for _ in 0..calls {
            used[self.call(costs, bytes, copied) as usize] += 1;
        }
        let most = (0..PATHS).max_by_key(|&path| used[path]).expect("some path");
        PathKind::ALL[most]
    }
}

/// What a piece really costs on a wire by a path, beside what it costs by the cheapest.
fn regret(costs: &Costs, bytes: u32, path: PathKind) -> f64 {
    let of = |[piece, kib, receiver]: [f64; 3]| piece + (kib + receiver) * f64::from(bytes) / 1024.0;
    of(costs[path as usize]) / costs.iter().map(|costs| of(*costs)).fold(f64::INFINITY, f64::min)
}

#[test]
fn the_cheapest_path_is_found_for_each_wire_and_size() {
    for (costs, copied) in [(&COPYING, true), (&COPYING, false), (&SHARING, false)] {
        for bytes in [4 << 10, 8 << 10, 64 << 10, 1 << 20, 4 << 20] {
            let mut world = World::new();
            world.run(costs, bytes, copied, 64);
            let path = world.run(costs, bytes, copied, 1000);
            let regret = regret(costs, bytes, path);
            assert!(regret < 1.06, "{bytes} bytes by {path}, {regret}: {:?}", world.selection());
            assert!(world.selection().switches <= 2, "{bytes} bytes: {} switches", world.selection().switches);
        }
    }
}

#[test]
fn of_short_calls_few_are_measured_and_of_others_all() {
    for (bytes, least, most) in [(16 << 10, 25, 35), (256 << 10, 100, 100)] {
        let mut world = World::new();
        world.run(&COPYING, bytes, true, 20_000);
        let begin = world.now;
        let measured = (0..10_000)
            .filter(|_| {
                let path = world.call(&COPYING, bytes, true);
                world
                    .choosing
                    .tell(|selector| selector.measures(path, bytes as usize, world.now))
                    .expect("no path is forced")
            })
            .count();
        assert!((least..=most).contains(&(measured / 100)), "{measured} of 10,000 calls of {bytes} bytes");
        // What all of them carry is known, but for those that were interrupted.
        let real = f64::from(bytes) * 10_000.0 / (world.now - begin).as_nanos() as f64;
        let [rate, _] = world.choosing.tell(|selector| selector.carried.known()).flatten().expect("it is settled");
        assert!((0.8..1.5).contains(&(rate / real)), "{rate} bytes a nanosecond, and really {real}");
    }
}

#[test]
fn short_calls_of_two_sizes_are_believed_to_cost_what_they_do() {
    for (costs, small) in [(&SHARING, 4096), (&COPYING, 4096), (&SHARING, 16384)] {
        let mut world = World::new();
        // A message that does not fit one datagram is cut in two.
        let pair = |world: &mut World| {
            world.call(costs, 61_440, true);
            world.call(costs, small, true);
        };
        (0..20_000).for_each(|_| pair(&mut world));
        let before = world.spent_ns;
        (0..20_000).for_each(|_| pair(&mut world));
        let real = (world.spent_ns - before) * 1024.0 / f64::from(61_440 + small) / 20_000.0;
        let [_, known] = world.choosing.tell(|selector| selector.carried.known()).flatten().expect("it is settled");
        assert!((0.6..1.4).contains(&(known / real)), "{known} ns a KiB, and really {real}, with {small} bytes");
        assert!(world.selection().switches <= 1, "{:?}", world.selection());
    }
}

#[test]
fn calls_pass_that_are_short_like_the_last_and_soon_after_it() {
    let (at, us) = (Instant::now(), Duration::from_micros);
    let mut sampling = Sampling::NONE;
    assert!(!sampling.may_pass(1000, at), "nothing is known yet");
    sampling.measured(us(6), 1000, at);
    assert!(!sampling.may_pass(1000, at), "it is not short");
    sampling.measured(us(3), 1000, at);
    assert!(sampling.may_pass(875, at) && sampling.may_pass(1125, at + us(9_999)));
    assert!(!sampling.may_pass(874, at) && !sampling.may_pass(1126, at), "they are not alike");
    assert!(!sampling.may_pass(1000, at + us(10_000)), "it is long ago");
    for _ in 0..3 {
        assert!(sampling.may_pass(1000, at));
        sampling.pass(1000);
    }
    assert!(!sampling.may_pass(1000, at), "it is the fourth");
    // They took what the one behind them takes, if it is like them; else what the one before them took.
    assert_eq!(sampling.take_passed(Some((us(4), 1000))), Some((3000, us(12))));
    assert_eq!(sampling.take_passed(Some((us(4), 1000))), None);
    for other in [None, Some((us(1), 100))] {
        sampling.pass(1000);
        assert_eq!(sampling.take_passed(other), Some((1000, us(3))));
    }
}

#[test]
fn what_it_costs_to_look_is_little() {
    let mut world = World::new();
    world.run(&COPYING, 64 << 10, true, 200_000);
    let before = world.selection().probes;
    world.run(&COPYING, 64 << 10, true, 200_000);
    let probes = world.selection().probes - before;
    assert!((500..=6000).contains(&probes), "{probes} of 200,000 calls tried another path");
}

#[test]
fn a_change_of_the_wire_is_answered_within_64_calls_or_10_ms_and_then_there_is_peace() {
    for seed in 1..20 {
        let mut world = World { seed, ..World::new() };
        world.run(&COPYING, 64 << 10, true, 2000);
        world.answer(&SHARING, 64 << 10, false);
        let found = regret(&SHARING, 64 << 10, world.selection().path);
        assert!(found < 1.06, "seed {seed}, {found}: {:?}", world.selection());
        let (before, begin) = (world.selection().switches, world.now);
        world.run(&SHARING, 64 << 10, false, 20_000);
        let (switches, seconds) = (world.selection().switches - before, (world.now - begin).as_secs() + 1);
        assert!(switches <= seconds, "seed {seed}: {switches} switches in {seconds} s");
        world.answer(&COPYING, 64 << 10, true);
        let found = regret(&COPYING, 64 << 10, world.selection().path);
        assert!(found < 1.06, "seed {seed}, {found}: {:?}", world.selection());
    }
}

#[test]
fn a_kernel_whose_word_is_wrong_is_not_believed() {
    let mut world = World::new();
    // It says that nothing is copied, and everything is.
    world.run(&COPYING, 256 << 10, false, 200);
    assert_eq!(world.run(&COPYING, 256 << 10, false, 1000), PathKind::Write);
    assert_eq!(verdict(&world, PathKind::ZeroCopy), Some(true), "{:?}", world.selection());
}

/// Whether a path is found to copy.
fn verdict(world: &World, path: PathKind) -> Option<bool> {
    world.selection().models.iter().find(|model| model.path == path).and_then(|model| model.copies)
}

#[test]
fn what_a_path_costs_tells_whether_it_copies() {
    let mut world = World::new();
    world.run(&SHARING, 64 << 10, false, 20_000);
    let found = PathKind::ALL.map(|path| verdict(&world, path));
    let expected = [Some(true), Some(false), Some(true), Some(false), Some(false), None, None];
    assert_eq!(found, expected, "{:?}", world.selection());
    // The kernel admits it: no measurement is needed.
    let mut world = World::new();
    world.run(&SHARING, 64 << 10, true, 200);
    assert_eq!(verdict(&world, PathKind::ZeroCopy), Some(true));
    // Pieces are too short for a copy to stand out.
    let mut world = World::new();
    world.run(&SHARING, 8 << 10, false, 1000);
    assert_eq!(verdict(&world, PathKind::ZeroCopy), None);
}

#[test]
fn a_path_that_is_refused_is_not_used_and_rarely_tried() {
    let mut world = World::new();
    world.run(&SHARING, 64 << 10, false, 200);
    let mut tried = 0;
    for _ in 0..2000 {
        let front = Front { payload_bytes: 64 << 10, may_share: true };
        let path = world.choosing.pick(|selector| selector.pick(front)).expect("no path is forced");
        if path == PathKind::UringFixed {
            tried += 1;
            world.choosing.tell(|selector| selector.refused(path));
        } else {
            let now = world.now;
            world.choosing.tell(|selector| selector.called(path, 1.0, 64 << 10, Duration::from_micros(3), 0, now));
        }
    }
    assert!(tried <= 6, "it was tried {tried} times");
    assert_ne!(world.selection().path, PathKind::UringFixed);
}

#[test]
fn of_connections_that_begin_together_one_measures_and_the_others_learn() {
    let learned = Experience::default();
    let with = |seed| World::learning(seed, &learned);
    let mut worlds: Vec<World> = (1..=8).map(with).collect();
    let mut probes = 0;
    for _ in 0..200 {
        for world in &mut worlds {
            let usual = world.choosing.selection().map_or(PathKind::Write, |selection| selection.path);
            probes += u32::from(world.call(&SHARING, 64 << 10, false) != usual);
        }
    }
    for world in &worlds {
        let selection = world.selection();
        assert!(regret(&SHARING, 64 << 10, selection.path) < 1.06, "{selection:?}");
    }
    // One alone takes about 60 to find out.
    assert!(probes < 200, "{probes} calls of 1,600 tried other paths");
    // One that comes later knows at once.
    assert!(regret(&SHARING, 64 << 10, with(9).call(&SHARING, 64 << 10, false)) < 1.06);
}

#[test]
fn connections_that_send_little_each_find_out_together() {
    let learned = Experience::default();
    let mut last = World::new();
    for seed in 0..400 {
        last = World::learning(seed, &learned);
        last.call(&SHARING, 64 << 10, false);
    }
    let selection = last.selection();
    assert!(regret(&SHARING, 64 << 10, selection.path) < 1.06, "{selection:?}");
}

/// A wire on which sending without a copy is cheap for this end and dear for the other.
const ONE_SIDED: Costs = [
    [1000.0, 70.0, 60.0],
    [2000.0, 95.0, 60.0],
    [1000.0, 70.0, 60.0],
    [2100.0, 95.0, 60.0],
    [1900.0, 85.0, 60.0],
    [1500.0, 35.0, 120.0],
    [1800.0, 45.0, 120.0],
];

#[test]
fn whose_time_counts_decides() {
    for (objective, path) in [(Objective::BothEnds, PathKind::Write), (Objective::ThisEnd, PathKind::SendFile)] {
        let mut world = World { choosing: Choosing::among(&PathKind::ALL, objective), ..World::new() };
        let most = world.run(&ONE_SIDED, 1 << 20, true, 4000);
        let copies = |path: PathKind| !matches!(path, PathKind::SendFile | PathKind::Splice);
        assert_eq!(copies(most), copies(path), "{objective:?}: {:?}", world.selection());
    }
}

#[test]
fn small_pieces_and_foreign_memory_are_copied_without_a_look() {
    let mut selector = Selector::new(&PathKind::ALL, Objective::BothEnds, Instant::now());
    for front in
        [Front { payload_bytes: LEAST_BYTES - 1, may_share: true }, Front { payload_bytes: 1 << 20, may_share: false }]
    {
        assert!((0..100).all(|_| selector.pick(front) == PathKind::Write));
    }
}

#[test]
fn the_fit_finds_what_a_piece_and_a_kib_cost() {
    let mut fit = Fit::default();
    for call in 0..200_u32 {
        let (pieces, kib) = (f64::from(1 + call % 5), f64::from(4 << (call % 7)));
        fit.add(pieces, kib, 1500.0 * pieces + 40.0 * kib);
    }
    let [a, b] = fit.solve();
    assert!((a - 1500.0).abs() < 60.0 && (b - 40.0).abs() < 1.0, "{a} and {b}");
}

/// A wire on which a path carries less than its calls cost, because it waits for the far program.
#[test]
fn a_path_that_waits_for_the_far_program_is_left_again() {
    let mut world = World::new();
    let mut last = PathKind::Write;
    for _ in 0..20_000 {
        last = world.call(&WAITING, 1 << 20, true);
        if last == PathKind::Splice {
            // It is the cheapest there at this size, but then nothing happens for as long as a call takes.
            world.now += Duration::from_micros(60);
        }
    }
    let selection = world.selection();
    assert_ne!(selection.path, PathKind::Splice, "{selection:?}, last by {last}");
    let splice = world.pace(PathKind::Splice);
    assert!(splice.is_some_and(|pace| pace < 0.8), "{splice:?}");
    // Where it waits for nothing it is taken.
    let mut world = World::new();
    world.run(&WAITING, 1 << 20, true, 20_000);
    let paces = PathKind::ALL.map(|path| world.pace(path));
    assert_eq!(world.selection().path, PathKind::Splice, "{paces:?} {:?}", world.selection());
}

#[test]
fn a_path_that_is_refused_every_second_time_costs_what_the_refusals_cost() {
    let mut world = World::new();
    let (mut used, mut turn) = ([0; PATHS], 0);
    for call in 0..3000 {
        let front = Front { payload_bytes: 64 << 10, may_share: true };
        let path = world.choosing.pick(|selector| selector.pick(front)).expect("no path is forced");
        used[path as usize] += usize::from(call >= 1000);
        let took = |part: f64| Duration::from_nanos((6000.0 * part) as u64);
        let mut cost = took(if path == PathKind::SendFile { 0.6 } else { 1.0 });
        if path == PathKind::SendFile {
            turn += 1;
            if turn % 2 == 0 {
                cost = took(1.7);
                world.choosing.tell(|selector| {
                    selector.refused(path);
                    selector.called(PathKind::Write, 1.0, 64 << 10, took(1.0), 0, world.now);
                    selector.fell_back(path, 1.0, 64 << 10, cost);
                });
                world.now += cost;
                continue;
            }
        }
        world.now += cost;
        world.choosing.tell(|selector| selector.called(path, 1.0, 64 << 10, cost, 0, world.now));
    }
    assert!(used[PathKind::SendFile as usize] < 400, "{used:?}: {:?}", world.selection());
}

/// A wire on which `write` is cheap while it is in use, and dear between calls of another path.
#[test]
fn what_a_path_costs_when_it_is_in_use_decides() {
    // Between calls of another path, and when it is in use. As much passes by both that matter.
    let mut cold: Costs = [[1700.0, 160.0, 200.0]; PATHS];
    cold[PathKind::Splice as usize] = [1300.0, 126.0, 130.0];
    let mut warm = cold;
    warm[PathKind::Write as usize] = [1000.0, 60.0, 130.0];
    let mut world = World::new();
    let (mut last, mut alike) = (PathKind::Write, 0);
    for _ in 0..40_000 {
        let costs = if alike >= 4 { &warm } else { &cold };
        let path = world.call(costs, 1 << 20, true);
        alike = if path == last { alike + 1 } else { 0 };
        last = path;
    }
    assert_eq!(world.selection().path, PathKind::Write, "{:?}", world.selection());
}

#[test]
fn of_connections_to_a_host_one_tries_paths_and_the_others_follow_until_it_is_gone() {
    let learned = Experience::default();
    let with = |seed| World::learning(seed, &learned);
    let mut worlds: Vec<World> = (1..=4).map(with).collect();
    let probes = |worlds: &[World]| worlds.iter().map(|world| world.selection().probes).collect::<Vec<_>>();
    let run = |worlds: &mut [World], costs: &Costs, calls: u32| {
        for _ in 0..calls {
            for world in worlds.iter_mut() {
                world.call(costs, 64 << 10, true);
            }
        }
    };
    run(&mut worlds, &COPYING, 10_000);
    let before = probes(&worlds);
    run(&mut worlds, &COPYING, 40_000);
    let tried: Vec<u64> = probes(&worlds).iter().zip(&before).map(|(after, before)| after - before).collect();
    let leader = (0..4).max_by_key(|&world| tried[world]).expect("four");
    assert!(tried[leader] > 100, "{tried:?}");
    assert_eq!(tried.iter().sum::<u64>(), tried[leader], "{tried:?}");
    // It decides for all.
    let path = worlds[leader].selection().path;
    let mut costs = COPYING;
    costs[path as usize] = [4000.0, 300.0, 90.0];
    run(&mut worlds, &costs, 60_000);
    let paths: Vec<PathKind> = worlds.iter().map(|world| world.selection().path).collect();
    assert!(paths.iter().all(|&now| now != path && now == paths[0]), "{path} became {paths:?}");
    // Without it another does.
    worlds.remove(leader);
    let before = probes(&worlds);
    run(&mut worlds, &costs, 40_000);
    let tried = probes(&worlds).iter().zip(&before).filter(|(after, before)| after > before).count();
    assert_eq!(tried, 1);
}

#[test]
fn what_looks_better_by_luck_is_not_taken() {
    // `sendfile` and `write` cost the same, but calls vary by a third from one moment to the next.
    let mut alike = COPYING;
    alike[PathKind::SendFile as usize] = alike[PathKind::Write as usize];
    let (mut switches, mut seconds) = (0, 0.0);
    for seed in 1..=20 {
        let mut world = World { seed, ..World::new() };
        let mut moment = [1.0; 2];
        for call in 0..300_000_u32 {
            if call % 500 == 0 {
                for factor in &mut moment {
                    world.seed = world.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *factor = 0.85 + f64::from((world.seed >> 40) as u32 % 1000) / 3333.0;
                }
            }
            let mut costs = alike;
            for (path, factor) in [(PathKind::Write, moment[0]), (PathKind::SendFile, moment[1])] {
                costs[path as usize][1] *= factor;
            }
            world.call(&costs, 64 << 10, true);
        }
        switches += world.selection().switches;
        seconds += world.now.duration_since(world.choosing.tell(|own| own.began).expect("it measures")).as_secs_f64();
    }
    println!("{switches} switches in {seconds} s");
    assert!(seconds > 30.0 && (switches as f64) < seconds / 2.0, "{switches} switches in {seconds} s");
}

#[test]
fn a_wire_that_changes_under_a_path_without_notifications_is_noticed_by_what_it_costs() {
    let all_times = |factor: f64| COPYING.map(|costs| costs.map(|cost| cost * factor));
    let mut world = World::new();
    // Only paths that nobody is notified of.
    world.choosing = Choosing::among(&[PathKind::Write, PathKind::UringSend, PathKind::SendFile], Objective::BothEnds);
    world.run(&COPYING, 64 << 10, true, 20_000);
    assert_eq!(world.selection().changes, 0);
    // What varies from one moment to the next is no change, and what jumps far is.
    world.run(&all_times(1.8), 64 << 10, true, 20_000);
    assert_eq!(world.selection().changes, 0, "{:?}", world.selection());
    // After a trial there is none for a while, which would find it too.
    let is_trying = |world: &mut World| world.choosing.tell(|own| own.trial.is_some()).unwrap_or(false);
    for tries in [true, false] {
        let calls = (0..1_000_000).take_while(|_| {
            world.call(&all_times(1.8), 64 << 10, true);
            is_trying(&mut world) != tries
        });
        assert!(calls.count() < 1_000_000, "a trial begins and ends");
    }
    world.run(&all_times(1.8), 64 << 10, true, 400);
    world.run(&all_times(1.8 * 9.0), 64 << 10, true, 10);
    assert_eq!(world.selection().changes, 1, "{:?}", world.selection());
}

#[test]
fn notifications_of_calls_from_before_a_change_are_not_charged_to_those_behind_it() {
    let mut looks = 0;
    for seed in 1..20 {
        let mut world = World { seed, together: 400, ..World::new() };
        world.run(&SHARING, 64 << 10, false, 20_000);
        // A change long after the last.
        world.now += Duration::from_secs(2);
        world.run(&SHARING, 64 << 10, false, 2000);
        let before = world.selection();
        assert_eq!(before.path, PathKind::UringFixed, "seed {seed}: {before:?}");
        // For a moment everything takes longer, which looks like another wire. While it is looked at notifications come
        // of what was sent before.
        while world.owed.len() != 380 {
            world.call(&SHARING, 64 << 10, false);
        }
        world.slowness = 2.5;
        let noticed = (0..1000).any(|_| {
            world.call(&SHARING, 64 << 10, false);
            world.selection().changes > before.changes
        });
        if !noticed {
            // It has looked at something else just before.
            continue;
        }
        looks += 1;
        world.slowness = 1.0;
        world.run(&SHARING, 64 << 10, false, 2000);
        let after = world.selection();
        assert_eq!((after.path, after.switches), (before.path, before.switches), "seed {seed}: {after:?}");
    }
    assert!(looks >= 10, "it was noticed {looks} times");
}

#[test]
fn what_the_receiver_says_of_bytes_from_before_a_change_is_not_believed() {
    let mut world = World::new();
    world.run(&COPYING, 64 << 10, true, 2000);
    let now = world.now;
    let told = |world: &mut World| {
        let (now, ns) = (world.now, Duration::from_micros(5));
        world.choosing.tell(|own| {
            own.called(PathKind::Write, 1.0, 64 << 10, ns, 200 << 10, now);
            own.received(PathKind::Write, 9999.0);
            own.states[PathKind::Write as usize].receiving
        })
    };
    world.choosing.tell(|own| own.wire_changed(Sign::Word));
    // 200 KiB are under way: three calls of 64 KiB later some of them are from before, four calls later none is.
    for _ in 0..3 {
        assert_eq!(told(&mut world), Some(None), "{:?} after {:?}", world.selection(), world.now - now);
    }
    assert_eq!(told(&mut world), Some(Some(9999.0)));
}

#[test]
fn a_trial_that_finds_what_cannot_be_has_all_measured_anew() {
    // Everything costs what it did, and in the trial six times as much passes.
    let fast = COPYING.map(|costs| costs.map(|cost| cost / 6.0));
    // Unless that was done just before, and led to nothing.
    for (costs, is_quiet, changes) in [(&fast, false, 1), (&COPYING, false, 0), (&fast, true, 0)] {
        let mut world = World::new();
        world.run(&COPYING, 64 << 10, true, 20_000);
        if is_quiet {
            world.choosing.tell(|own| (own.changes, own.changed, own.quiet) = (1, own.now, [LAST_QUIET; 2]));
        }
        let before = world.selection().changes;
        let (mut on_trial, mut has_ended) = (false, false);
        for _ in 0..40_000 {
            let now_on_trial = world.choosing.tell(|own| own.trial.is_some()).unwrap_or(false);
            has_ended = on_trial && !now_on_trial;
            if has_ended {
                break;
            }
            on_trial = now_on_trial;
            world.call(if on_trial { costs } else { &COPYING }, 64 << 10, true);
        }
        assert!(has_ended, "a trial began and ended");
        assert_eq!(world.selection().changes - before, changes, "{:?}", world.selection());
    }
}
