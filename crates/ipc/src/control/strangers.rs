//! What processes of other users may cost this one.
//!
//! A stranger may send anything at any rate. What it can take of us is bounded, per user, by the small numbers below;
//! our own user's share is counted apart, so that strangers crowd out one another at most.
//!
//! - Connections: accepted ones and our own to it; few of them without a `Hello`.
//! - Control messages: so many in a while; what comes faster stays in the socket, and is late, not lost.
//! - Regions and mapped bytes.
//! - Descriptors: those that we refuse are closed by a thread of their own, because closing one of a strange file
//!   system may hang. When many hang there, no stranger is served any more.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use zcmi_mem::region::received::RegionClaim;

use super::Control;
use super::admission::Candidate;
use super::links::{LinkId, RegionClaimError};
use super::publishers::PublisherEntry;
use super::subscribers::SubscriberEntry;
use crate::audience::{Audience, Identity};
use crate::name::Incarnation;
use crate::socket::{OVERFLOW_UID, SocketError};

/// Connections with processes of one other user: as many of its processes can take part.
const MAX_LINKS: usize = 16;
/// Connections with strangers altogether: two descriptors each, well below the usual limit of 1,024.
const MAX_ALL_LINKS: usize = 64;
/// Connections of one other user that have not said who they are; past this the oldest is closed.
const MAX_HALF_OPEN: usize = 4;
/// Regions of one other user that are mapped here: a few for each of its processes.
const MAX_REGIONS: usize = 64;
/// Bytes of one other user that are mapped here: looking for holes takes 14 ms for so many, and page tables 2 MiB.
const MAX_MAPPED_BYTES: u64 = 1 << 30;
/// Bytes of the region in which a stranger's subscriber has its blocks.
const MAX_BLOCK_BYTES: u64 = 1 << 20;
/// For how long a user is not heard after one of its processes did what no honest one does.
const BARRED: Duration = Duration::from_secs(1);
/// Messages that wait for a stranger to read; past this it is hung up on.
pub(super) const MAX_OUTBOX: usize = 16;
/// Descriptors that go to one stranger at once, and after which time there is one more: those that it does not read are
/// counted against our user.
const MAX_SENT: u32 = 24;
const ONE_MORE_SENT: Duration = Duration::from_millis(100);
/// Control messages of one other user that are read in each [`TURN`]: each may take the seat of a publisher.
const MAX_MESSAGES: u32 = 64;
/// The while for which [`MAX_MESSAGES`] counts.
const TURN: Duration = Duration::from_millis(10);
/// Refused descriptors that wait to be closed.
const MAX_UNCLOSED: usize = 64;

/// What strangers have taken.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    turns: HashMap<u32, Turn>,
    closer: Option<SyncSender<Vec<OwnedFd>>>,
    /// So many refused descriptors hang in their closing that no stranger is served any more.
    shut: bool,
    /// Whom the socket lets in now.
    let_in: Audience,
    /// Who is not heard, and until when.
    barred: HashMap<u32, Instant>,
    /// Whose message brought a descriptor that was looked at and is no region.
    pub(super) forger: Option<Incarnation>,
}

/// What may still be sent to a stranger: descriptors, by time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    left: u32,
    since: Instant,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { left: MAX_SENT, since: Instant::now() }
    }
}

impl Allowance {
    /// Takes one descriptor of it, if there is one.
    pub(super) fn take(&mut self) -> bool {
        let more = self.since.elapsed().as_millis() / ONE_MORE_SENT.as_millis();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            (self.left, self.since) = (self.left.saturating_add(more).min(MAX_SENT), Instant::now());
        }
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

#[derive(Debug)]
struct Turn {
    ends: Instant,
    left: u32,
}

impl Strangers {
    /// Counts one message of the user. Returns whether it may be read now.
    pub(super) fn take_message(&mut self, uid: u32) -> bool {
        let now = Instant::now();
        let fresh = || Turn { ends: now + TURN, left: MAX_MESSAGES };
        let turn = self.turns.entry(uid).or_insert_with(fresh);
        if turn.ends <= now {
            *turn = fresh();
        }
        turn.left = turn.left.saturating_sub(1);
        turn.left > 0
    }

    /// Whether the user's messages wait for its next turn.
    pub(super) fn is_to_wait(&self, uid: u32) -> bool {
        self.turns.get(&uid).is_some_and(|turn| turn.left == 0 && turn.ends > Instant::now())
    }

    /// When the next user's turn comes that waits for one.
    pub(super) fn next_turn(&self) -> Option<Instant> {
        self.turns.values().filter(|turn| turn.left == 0).map(|turn| turn.ends).min()
    }

    /// Forgets the turns that are over.
    pub(super) fn end_turns(&mut self) {
        let now = Instant::now();
        self.turns.retain(|_, turn| turn.ends > now);
        self.barred.retain(|_, until| *until > now);
    }

    /// Closes descriptors that a stranger sent, where a hang does no harm.
    pub(super) fn close(&mut self, descriptors: Vec<OwnedFd>) {
        if descriptors.is_empty() {
            return;
        }
        let closer = match &self.closer {
            Some(closer) => closer.clone(),
            None => {
                let (closer, refused) = sync_channel::<Vec<OwnedFd>>(MAX_UNCLOSED);
                let thread = std::thread::Builder::new().name("zcmi-close".into());
                if thread.spawn(move || refused.into_iter().for_each(drop)).is_ok() {
                    self.closer = Some(closer.clone());
                }
                closer
            }
        };
        if let Err(full) = closer.try_send(descriptors) {
            // Left open: rather a few descriptors lost than this thread.
            let (std::sync::mpsc::TrySendError::Full(left) | std::sync::mpsc::TrySendError::Disconnected(left)) = full;
            left.into_iter().for_each(std::mem::forget);
            self.shut = true;
        }
    }
}

impl Control {
    /// Whether somebody may connect at all: our own user, whom one of our endpoints is shared with, and root, which may
    /// look on.
    pub(super) fn admits(&self, identity: &Identity) -> bool {
        if identity.is_own_user() {
            return true;
        }
        let known = identity.uid != OVERFLOW_UID && (identity.uid == 0 || self.shared_with().includes(identity));
        let of_user = self.links.values().filter(|link| link.identity().uid == identity.uid).count();
        let all = self.links.values().filter(|link| !link.identity().is_own_user()).count();
        let is_heard = self.strangers.barred.get(&identity.uid).is_none_or(|until| *until <= Instant::now());
        known && is_heard && !self.strangers.shut && of_user < MAX_LINKS && all < MAX_ALL_LINKS
    }

    /// Hangs up on a process that did what no honest one does. If it is a stranger, its user is not heard for a while:
    /// what such things cost us comes seldom then.
    pub(super) fn expel(&mut self, id: LinkId) {
        if let Some(identity) = self.stranger_at(id) {
            let uid = identity.uid;
            self.strangers.barred.insert(uid, Instant::now() + BARRED);
        }
        self.drop_link(id);
    }

    /// Hangs up on a process that handed over what is no region: to look at it cost us something, and no honest process
    /// sends such a one. Only after its message was dealt with, so that whoever waited for it is told the reason.
    pub(super) fn expel_forger(&mut self) {
        let Some(forger) = self.strangers.forger.take() else { return };
        for link in self.peers.get(&forger).map(|peer| peer.links.clone()).unwrap_or_default() {
            self.expel(link);
        }
    }

    /// Everybody with whom one of our endpoints is shared.
    fn shared_with(&self) -> Audience {
        let mut union = Audience::default();
        let publishers = self.publishers.values().map(PublisherEntry::audience);
        let publishers = publishers.chain(self.candidates.iter().map(Candidate::audience));
        for audience in publishers.chain(self.subscribers.values().map(SubscriberEntry::audience)) {
            union.extend(audience);
        }
        union
    }

    /// Has the socket let in whom our endpoints are shared with, and `new`.
    pub(super) fn let_in(&mut self, new: &Audience) -> Result<(), SocketError> {
        let mut union = self.shared_with();
        union.extend(new);
        if union != self.strangers.let_in {
            self.listener.let_in(&union)?;
            self.strangers.let_in = union;
        }
        Ok(())
    }

    /// After an endpoint went: the socket lets in nobody more than the others need.
    pub(super) fn let_in_no_more(&mut self) {
        if !self.strangers.let_in.is_own_user() {
            // One that is let in too long is refused when it joins.
            let _refused_later = self.let_in(&Audience::default());
        }
    }

    /// How many half-open connections this user may have, and which it has.
    pub(super) fn half_open(&self, identity: &Identity) -> (usize, Vec<LinkId>) {
        // Those that we made ourselves lead to a process that we know, which may be slow to answer.
        let half_open = self.links.iter().filter(|(_, link)| link.is_half_open());
        let of_user = half_open.filter(|(_, link)| link.identity().uid == identity.uid).map(|(&id, _)| id).collect();
        (if identity.is_own_user() { super::links::MAX_HALF_OPEN } else { MAX_HALF_OPEN }, of_user)
    }

    /// Whether a stranger's hello tells the truth: the socket of that name is its user's. So nobody takes the name of
    /// another user's process. Root looks on without a socket.
    pub(super) fn is_its_name(&self, identity: &Identity, incarnation: Incarnation) -> bool {
        let own = identity.is_own_user() || identity.uid == 0;
        own || self.directory.owner_of(incarnation) == Some(identity.uid)
    }

    /// Whether a region may hold the blocks of a stranger's subscriber.
    pub(super) fn may_hold_blocks(claimed_bytes: u64) -> bool {
        claimed_bytes <= MAX_BLOCK_BYTES
    }

    /// Whether one more region of that user may be mapped.
    pub(super) fn has_room_for(&self, uid: u32, claim: &RegionClaim) -> Result<(), RegionClaimError> {
        let mapped = self.peers.values().filter(|peer| peer.is_of(uid)).map(super::links::Peer::mapped);
        let (regions, bytes) = mapped.fold((0, 0_u64), |(count, sum), (regions, bytes)| (count + regions, sum + bytes));
        if regions >= MAX_REGIONS {
            return Err(RegionClaimError::TooManyOfUser { uid, limit: MAX_REGIONS });
        }
        if bytes.saturating_add(claim.bytes) > MAX_MAPPED_BYTES {
            return Err(RegionClaimError::TooLargeOfUser { uid, bytes: claim.bytes, limit: MAX_MAPPED_BYTES });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_go_to_a_stranger_by_time() {
        let mut allowance = Allowance::default();
        let taken = (0..1000).filter(|_| allowance.take()).count() as u32;
        assert!((MAX_SENT..MAX_SENT + 3).contains(&taken), "{taken}");
        allowance.since = Instant::now().checked_sub(3 * ONE_MORE_SENT).expect("the machine runs for longer");
        let taken = (0..1000).filter(|_| allowance.take()).count();
        assert!((3..6).contains(&taken), "{taken}");
        allowance.since = Instant::now().checked_sub(1000 * ONE_MORE_SENT).expect("the machine runs for longer");
        let taken = (0..1000).filter(|_| allowance.take()).count() as u32;
        assert!((MAX_SENT..MAX_SENT + 3).contains(&taken), "{taken}");
    }

    #[test]
    fn a_users_messages_wait_for_its_turn_and_nobody_elses_do() {
        let mut strangers = Strangers::default();
        let read = (0..1000).filter(|_| strangers.take_message(7)).count() as u32;
        assert!(read < 4 * MAX_MESSAGES, "{read}");
        assert!(strangers.take_message(8));
    }
}
