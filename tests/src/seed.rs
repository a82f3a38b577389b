//! Random choices that can be made again, and how long a run shall be.

use crate::content::mix;

/// A stream of random numbers; the same seed gives the same stream.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of `$ZCMI_SEED`, or of the time of day. It is printed, so that a failure can be replayed.
    #[must_use]
    pub fn of_this_run() -> Self {
        let given = std::env::var("ZCMI_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |since| since.as_nanos() as u64 % 1_000_000_007)
        });
        println!("ZCMI_SEED={seed} makes the same choices again");
        Self(seed)
    }

    /// A stream of this seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % limit.max(1)
    }
}

/// How much a run shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// `ZCMI_QUICK=1`: while somebody waits.
    Quick,
    /// Otherwise.
    Normal,
    /// `ZCMI_LONG=1`: once in a while.
    Long,
}

impl Length {
    /// What the environment asks for.
    #[must_use]
    pub fn of_this_run() -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| value == "1");
        match (is_set("ZCMI_LONG"), is_set("ZCMI_QUICK")) {
            (true, _) => Self::Long,
            (false, true) => Self::Quick,
            (false, false) => Self::Normal,
        }
    }

    /// One of three numbers.
    #[must_use]
    pub fn pick(self, quick: u64, normal: u64, long: u64) -> u64 {
        match self {
            Self::Quick => quick,
            Self::Normal => normal,
            Self::Long => long,
        }
    }
}
