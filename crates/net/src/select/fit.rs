//! What calls of a path take, by the number of pieces and bytes.

/// Of so many calls at the start the slowest does not count: the first sets things up, and any may be interrupted.
pub(super) const FIRST_CALLS: u32 = 4;
/// What a call's weight is multiplied with at each further call of its path.
const FORGETTING: f64 = 0.99;
/// What earlier calls count in a trial.
const AGED: f64 = 0.3;
/// What is believed before anything was measured, and how strongly, in calls.
const PRIOR: [f64; 2] = [1000.0, 60.0];
const PRIOR_WEIGHT: f64 = 0.02;

/// The fit of `a * pieces + b * KiB` to what calls took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fit {
    /// The slowest call so far, while there are few.
    slowest: Option<[f64; 3]>,
    pieces_pieces: f64,
    pieces_kib: f64,
    kib_kib: f64,
    pieces_ns: f64,
    kib_ns: f64,
    pub(super) samples: u32,
}

impl Fit {
    /// Takes a call; of the first ones the slowest is left out.
    pub(super) fn call(&mut self, pieces: f64, kib: f64, ns: f64) {
        if self.samples + 1 >= FIRST_CALLS {
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
    pub(super) fn calls(&self) -> u32 {
        self.samples + u32::from(self.slowest.is_some())
    }

    pub(super) fn add(&mut self, pieces: f64, kib: f64, ns: f64) {
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
    pub(super) fn age(&mut self) {
        for sum in
            [&mut self.pieces_pieces, &mut self.pieces_kib, &mut self.kib_kib, &mut self.pieces_ns, &mut self.kib_ns]
        {
            *sum *= AGED;
        }
    }

    /// Adds to what a call has cost that was counted already.
    pub(super) fn charge(&mut self, pieces: f64, kib: f64, ns: f64) {
        let scale = 1.0 / (kib + pieces).max(1e-9);
        self.pieces_ns += pieces * scale * ns * scale;
        self.kib_ns += kib * scale * ns * scale;
    }

    /// What a piece and what a KiB costs, in nanoseconds.
    pub(super) fn solve(&self) -> [f64; 2] {
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

    pub(super) fn cost_ns(&self, bytes: f64) -> f64 {
        let [a, b] = self.solve();
        a + b * bytes / 1024.0
    }
}

/// A call is off when what it takes differs by this factor from what was predicted, and far off by that one.
const OFF: [f64; 2] = [1.4, 4.0];
/// So many such calls in a row, all in the same direction, are no accident.
const IN_A_ROW: i32 = 10;

/// How many calls in a row were off, and far off: above 0 they were slower than expected, below faster.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Jumps([i32; 2]);

/// What calls cost is another than it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Jump {
    Near,
    Far,
}

impl Jumps {
    /// Counts a call; says if so many were off that it cannot be an accident.
    pub(super) fn count(&mut self, ns: f64, predicted: f64) -> Option<Jump> {
        for (row, factor) in self.0.iter_mut().zip(OFF) {
            *row = match (ns > predicted * factor, ns * factor < predicted) {
                (true, _) => row.max(&mut 0).saturating_add(1),
                (_, true) => row.min(&mut 0).saturating_sub(1),
                _ => 0,
            };
        }
        match self.0.map(|row| row.abs() >= IN_A_ROW) {
            [_, true] => Some(Jump::Far),
            [true, _] => Some(Jump::Near),
            _ => None,
        }
    }
}
