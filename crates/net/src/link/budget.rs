//! By which path a frame goes, and how much the kernel may read after the call.

use super::*;

impl<W: Wire> Link<W> {
    /// How many more bytes the kernel may read after calls by that path, where so many may still be quarantined.
    pub(super) fn left_to_pin(&self, path: PathKind, quarantine_left: u64) -> u64 {
        let limit = self.limits.pinned_bytes;
        let limit = if path.is_acknowledged() { limit.min(quarantine_left) } else { limit };
        limit.saturating_sub(self.outgoing.pinned_bytes())
    }

    /// The path for the frame at the front.
    pub(super) fn path_for(&mut self, front: Front, quarantine_left: u64) -> PathKind {
        let path = match &mut self.choosing {
            Choosing::Forced(path) => *path,
            Choosing::Cheapest { .. } if front.payload_bytes < select::LEAST_BYTES || !front.may_share => {
                PathKind::Write
            }
            Choosing::Cheapest { .. } => self.choosing.pick(|selector| selector.pick(front)).unwrap_or(PathKind::Write),
        };
        if !path.shares_pages() {
            return path;
        }
        if !front.may_share || front.payload_bytes == 0 {
            return PathKind::Write;
        }
        let bytes = u64::from(front.payload_bytes);
        if bytes > self.left_to_pin(path, quarantine_left) {
            self.counts.over_budget += 1;
            if path.is_acknowledged() && bytes > quarantine_left {
                // That does not change any more.
                self.choosing.tell(|selector| selector.refused(path));
                self.refused.note(path, &"no more bytes may be quarantined; see quarantine_bytes");
            }
            return PathKind::Write;
        }
        path
    }
}
