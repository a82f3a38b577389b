//! Busy waiting with an end: a peer that died or stopped must not leave this process spinning for ever.

use std::time::{Duration, Instant};

/// How long a spinning side waits for the other before it gives up.
pub const LIMIT: Duration = Duration::from_secs(10);

/// The other side made no progress for [`LIMIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side made no progress for {} s", LIMIT.as_secs())]
pub struct Stalled;

/// Counts turns of one busy wait, and looks at the clock once in a great many.
///
/// There is no pause instruction in a turn: it would give the line to the other side later, and a pinned side has the
/// processor for itself.
#[derive(Debug, Default)]
pub struct Patience {
    turns: u32,
    since: Option<Instant>,
}

impl Patience {
    /// For a wait that begins now.
    #[inline]
    #[must_use]
    pub fn new() -> Self {
        Self { turns: 0, since: None }
    }

    /// Takes one turn.
    ///
    /// # Errors
    /// [`Stalled`] when the wait has lasted for [`LIMIT`].
    #[inline]
    pub fn turn(&mut self) -> Result<(), Stalled> {
        self.turns = self.turns.wrapping_add(1);
        if self.turns & 0xF_FFFF == 0 { self.look() } else { Ok(()) }
    }

    #[cold]
    fn look(&mut self) -> Result<(), Stalled> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() < LIMIT { Ok(()) } else { Err(Stalled) }
    }
}
