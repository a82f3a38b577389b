//! Sessions that have ended well: a peer whose last frame was lost with its socket asks for them once more.

use std::collections::VecDeque;
use std::time::Instant;

/// How many are remembered; the oldest are forgotten first.
const REMEMBERED: usize = 1024;

#[derive(Debug)]
struct EndedSession {
    session: [u8; 16],
    /// How many pieces had come.
    pieces: u64,
    until: Instant,
}

/// The sessions that ended last. 48 bytes each, at most [`REMEMBERED`].
#[derive(Debug, Default)]
pub(super) struct EndedSessions(VecDeque<EndedSession>);

impl EndedSessions {
    /// Remembers a session of so many received pieces.
    pub(super) fn remember(&mut self, session: [u8; 16], pieces: u64, until: Instant) {
        let now = Instant::now();
        while self.0.len() >= REMEMBERED || self.0.front().is_some_and(|oldest| oldest.until <= now) {
            self.0.pop_front();
        }
        self.0.push_back(EndedSession { session, pieces, until });
    }

    /// How many pieces of a session had come when it ended; `None` if it is not remembered.
    pub(super) fn pieces_of(&self, session: &[u8; 16]) -> Option<u64> {
        let now = Instant::now();
        self.0.iter().find(|ended| ended.session == *session && ended.until > now).map(|ended| ended.pieces)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn session(number: u64) -> [u8; 16] {
        u128::from(number).to_le_bytes()
    }

    #[test]
    fn the_last_ones_are_remembered_until_their_time_is_up() {
        let (mut ended, now) = (EndedSessions::default(), Instant::now());
        for number in 0..3 * REMEMBERED as u64 {
            ended.remember(session(number), number, now + Duration::from_secs(60));
        }
        assert_eq!(ended.0.len(), REMEMBERED);
        assert_eq!(ended.pieces_of(&session(3 * REMEMBERED as u64 - 1)), Some(3 * REMEMBERED as u64 - 1));
        assert_eq!(ended.pieces_of(&session(2 * REMEMBERED as u64 - 1)), None, "the oldest went");
        ended.remember(session(7), 7, now);
        assert_eq!(ended.pieces_of(&session(7)), None, "its time is up");
    }
}
