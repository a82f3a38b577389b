//! Lanes whose reader is gone while samples of it are still in use.
//!
//! Whoever drops such a sample tells the control thread, so nothing has to be looked for. A drop that was under way
//! when the reader went may tell nobody; so in the second after that they are looked at a few times, and later whenever
//! the thread is awake for another reason. A sample that is forgotten therefore costs its memory and no wakes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use zcmi_ring::Orphan;

use super::links::LinkId;
use super::subscribers::{LaneRecord, Mapped};
use super::{Command, Control};
use crate::name::Incarnation;
use crate::process::ExtentGuard;
use crate::subscriber::Lane;
use crate::wire::{LaneName, Message};

/// After how long the first look comes; each later one after twice the time.
const FIRST_LOOK: Duration = Duration::from_millis(10);
/// After a pause of this length no look comes by itself any more.
const LAST_LOOK: Duration = Duration::from_millis(640);

#[derive(Debug)]
struct Orphaned {
    orphan: Option<Orphan>,
    /// Kept until the orphan is free.
    block: Option<ExtentGuard>,
    _mapped: Option<Mapped>,
    peer: Incarnation,
    link: LinkId,
    lane: LaneName,
    peer_lives: bool,
}

/// All of them, and when they are looked at next.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    kept: Vec<Orphaned>,
    look: Option<(Instant, Duration)>,
}

impl Orphans {
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub(super) fn next_look(&self) -> Option<Instant> {
        self.look.map(|(next, _)| next)
    }

    pub(super) fn peer_died(&mut self, incarnation: Incarnation) {
        for orphaned in &mut self.kept {
            orphaned.peer_lives &= orphaned.peer != incarnation;
        }
    }

    fn plan_next_look(&mut self) {
        let now = Instant::now();
        match self.look {
            _ if self.kept.is_empty() => self.look = None,
            Some((next, _)) if next > now => {}
            Some((_, pause)) if pause < LAST_LOOK => self.look = Some((now + 2 * pause, 2 * pause)),
            _ => self.look = None,
        }
    }
}

impl Control {
    /// Ends a lane's reader; what samples still use is kept until they are dropped.
    pub(super) fn retire(&mut self, subscriber: u32, lane: Lane, record: LaneRecord) {
        let name = LaneName { publisher: lane.publisher(), subscriber };
        let (peer, link) = (lane.peer(), record.link);
        let orphan = lane.retire();
        let peer_lives = self.peers.contains_key(&peer);
        drop(record.view);
        if let Some(orphan) = &orphan {
            let mailbox = Arc::clone(&self.mailbox);
            orphan.tell_of_drops(Arc::new(move || mailbox.send(Command::Released)));
            self.orphans.look = Some((Instant::now() + FIRST_LOOK, FIRST_LOOK));
            if peer_lives {
                self.send_to(peer, link, &Message::OnlyHolds(name));
            }
        }
        let (block, _mapped) = (Some(record.block), record.mapped);
        self.orphans.kept.push(Orphaned { orphan, block, _mapped, peer, link, lane: name, peer_lives });
        self.free_orphans();
    }

    /// Frees what no sample keeps any more, and tells the publishers.
    pub(super) fn free_orphans(&mut self) {
        if self.is_forked() {
            return;
        }
        for mut orphaned in std::mem::take(&mut self.orphans.kept) {
            if let Some(orphan) = orphaned.orphan.take()
                && let Err(still_held) = orphan.try_free()
            {
                orphaned.orphan = Some(still_held);
                self.orphans.kept.push(orphaned);
                continue;
            }
            if orphaned.peer_lives {
                self.send_to(orphaned.peer, orphaned.link, &Message::Leave(orphaned.lane));
            }
            orphaned.block = None;
        }
        self.orphans.plan_next_look();
    }
}
