//! By which path a frame goes, and how much the kernel may read after the call.

use super::*;

impl<W: Wire> Link<W> {
    /// How many more bytes the kernel may read after calls.
    pub(super) fn left_to_pin(&self) -> u64 {
        self.limits.pinned_bytes.saturating_sub(self.outgoing.pinned_bytes())
    }

    /// Tells the slots what is at risk if the peer dies.
    pub(super) fn tell_risk(&mut self, slots: &mut Slots) {
        let now = self.outgoing.at_risk();
        if now != self.told_risk {
            slots.note_risk(core::mem::replace(&mut self.told_risk, now), now);
        }
    }

    /// The path for the frame at the front.
    pub(super) fn path_for(&mut self, front: Front, slots: &Slots) -> PathKind {
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
        let (risk, (left, is_alone)) = (self.outgoing.risk_of_front(), slots.risk_left());
        let is_risky = path.is_acknowledged() && risk > left && !is_alone;
        if is_risky || bytes > self.left_to_pin() {
            self.counts.over_budget += 1;
            if is_risky && bytes > slots.quarantine_left() {
                // That does not change any more.
                self.choosing.tell(|selector| selector.refused(path));
                self.refused.note(path, &"no more bytes may be quarantined; see quarantine_bytes");
            }
            return PathKind::Write;
        }
        path
    }
}
