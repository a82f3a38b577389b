//! The subscribers of this process, as their control thread sees them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use zcmi_mem::ledger::{FallbackReason, Place};
use zcmi_mem::region::PeerRegion;
use zcmi_mem::region::received::PeerWakePage;
use zcmi_ring::{ReaderBlock, View};

use super::links::{Attachments, Descriptors, LinkId};
use super::publishers::Introduction;
use super::retry::{Retry, RetryWhat};
use super::{Control, duplicate};
use crate::audience::Audience;
use crate::directory::{ParticipantFile, Role};
use crate::name::{Incarnation, ServiceName};
use crate::process::ExtentGuard;
use crate::socket::ConnectError;
use crate::subscriber::{Lane, LaneOffer, LaneTerms, NewSubscriber, Note, Refusal, SubscriberError};
use crate::wire::{Accepted, Announce, Join, LaneName, Message, Refused, RegionName};

/// Publishers that one subscriber reads at a time, and so what announcements can make it allocate. A lane counts until
/// the subscriber has read it to its end, however long ago its publisher ended: until then its memory is mapped.
const MAX_LANES: usize = 64;
/// After how long a descriptor that could not be duplicated is tried again.
const OWED_AGAIN: Duration = Duration::from_millis(100);
/// Publishers that are remembered for when a place becomes free.
const MAX_TURNED_AWAY: usize = 256;
/// Publishers of one other user that one subscriber reads at a time, beside those of our own user.
const MAX_LANES_OF_STRANGER: usize = 16;
/// Publishers of all other users that one subscriber reads at a time.
const MAX_LANES_OF_STRANGERS: usize = 64;

/// One publisher's lane, as one of our subscribers knows it.
#[derive(Debug)]
pub(super) struct LaneRecord {
    pub(super) link: LinkId,
    pub(super) block: ExtentGuard,
    pub(super) view: View<ReaderBlock>,
    pid: u32,
    /// The publisher's user, if it is another one.
    stranger: Option<u32>,
    /// Whether the publisher has granted it.
    granted: bool,
    /// Whether the join brought the waiter's eventfd, so that the publisher knows the subscriber as one that parks.
    waiter_sent: bool,
    /// Whether the eventfd could not be duplicated for it: tried again in a while.
    waiter_owed: bool,
    /// The publisher's regions that the lane needs.
    pub(super) mapped: Option<Mapped>,
}

/// The regions of a granted lane, kept so that they are mapped once for all lanes that lie in them.
#[derive(Debug)]
pub(super) struct Mapped {
    _regions: Vec<Arc<PeerRegion>>,
    _wake: Option<Arc<PeerWakePage>>,
}

/// One subscriber.
#[derive(Debug)]
pub(super) struct SubscriberEntry {
    new: NewSubscriber,
    lanes: HashMap<(Incarnation, u32), LaneRecord>,
    /// Publishers for which there was no place, the oldest first.
    turned_away: VecDeque<(Incarnation, u32)>,
    _participant: ParticipantFile,
    introduction: Option<Introduction<SubscriberError>>,
    waiter: Option<Arc<OwnedFd>>,
}

/// A publisher's announcement that subscribers here have not all dealt with.
#[derive(Debug)]
pub(super) struct Announced {
    link: LinkId,
    pub(super) peer: Incarnation,
    publisher: u32,
    /// The subscribers that have asked for the lane and have no answer.
    waiting: HashSet<u32>,
}

impl Announced {
    /// Whether it came over this connection, and is to be answered there.
    pub(super) fn came_by(&self, link: LinkId) -> bool {
        self.link == link
    }
}

impl SubscriberEntry {
    pub(super) fn service(&self) -> &ServiceName {
        &self.new.service
    }

    /// Whose publishers are read besides our own user's.
    pub(super) fn audience(&self) -> &Audience {
        &self.new.accept
    }

    /// Whether as many lanes are read, or asked for, as may be of that user.
    fn is_full_for(&self, stranger: Option<u32>) -> Option<usize> {
        let count = |of: &dyn Fn(Option<u32>) -> bool| self.lanes.values().filter(|lane| of(lane.stranger)).count();
        match stranger {
            None => (count(&|of| of.is_none()) >= MAX_LANES).then_some(MAX_LANES),
            Some(_) if count(&|of| of == stranger) >= MAX_LANES_OF_STRANGER => Some(MAX_LANES_OF_STRANGER),
            Some(_) => (count(&|of| of.is_some()) >= MAX_LANES_OF_STRANGERS).then_some(MAX_LANES_OF_STRANGERS),
        }
    }

    pub(super) fn introduction_ends(&self) -> Option<Instant> {
        self.introduction.as_ref().map(|introduction| introduction.deadline)
    }

    /// Whether an answer of that process to a join is awaited.
    pub(super) fn asks(&self, incarnation: Incarnation) -> bool {
        self.lanes.iter().any(|((peer, _), lane)| *peer == incarnation && !lane.granted)
    }

    pub(super) fn reads_from(&self, incarnation: Incarnation) -> bool {
        self.lanes.keys().any(|(peer, _)| *peer == incarnation)
    }

    pub(super) fn report(&self) -> crate::report::EndpointReport {
        let mut report = crate::report::EndpointReport {
            service: self.new.service.to_string(),
            role: Role::Subscriber.to_string(),
            endpoint: self.new.endpoint,
            peers: self.lanes.values().filter(|lane| lane.granted).count(),
            ..Default::default()
        };
        for lane in self.lanes.values() {
            let seen = lane.view.at(0).progress();
            report.messages += seen.messages;
            report.lost += seen.lost;
            report.bytes += if self.new.record.slice {
                seen.bytes
            } else {
                seen.messages * u64::from(self.new.record.element.bytes)
            };
            report.memory_bytes += lane.block.extent().bytes() as u64;
        }
        report
    }

    /// Nothing new comes from that process any more.
    pub(super) fn cut_off(&mut self, incarnation: Incarnation) {
        for ((peer, _), lane) in &self.lanes {
            if *peer == incarnation && !lane.granted && lane.stranger.is_some() {
                let text = "it hung up without an answer".to_owned();
                self.new.shared.note(Note::Refused(Refusal { publisher: *peer, pid: lane.pid, code: None, text }));
            }
        }
        self.lanes.retain(|(peer, _), lane| *peer != incarnation || lane.granted);
        if self.reads_from(incarnation) {
            self.new.shared.note(Note::CutOff(incarnation));
        }
    }

    pub(super) fn publisher_died(&mut self, incarnation: Incarnation) {
        self.lanes.retain(|(peer, _), lane| *peer != incarnation || lane.granted);
        if self.reads_from(incarnation) {
            self.new.shared.note(Note::Died(incarnation));
        }
    }

    pub(super) fn lose_introduction(&mut self, incarnation: Incarnation) {
        if let Some(introduction) = &mut self.introduction {
            introduction.waiting.retain(|(peer, _)| *peer != incarnation);
        }
    }

    fn answered(&mut self, peer: Incarnation, publisher: u32) {
        if let Some(introduction) = &mut self.introduction {
            introduction.waiting.remove(&(peer, publisher));
        }
    }

    /// Remembers a publisher for when there is a place.
    fn turn_away(&mut self, peer: Incarnation, publisher: u32) {
        if self.turned_away.contains(&(peer, publisher)) {
            return;
        }
        if self.turned_away.len() >= MAX_TURNED_AWAY {
            self.turned_away.pop_front();
        }
        self.turned_away.push_back((peer, publisher));
    }

    pub(super) fn end_introduction(&mut self, now: Instant) {
        let over = |introduction: &mut Introduction<_>| introduction.waiting.is_empty() || introduction.deadline <= now;
        if let Some(introduction) = self.introduction.take_if(over) {
            // Whoever asked may be gone by now.
            let _asked = introduction.reply.send(Ok(()));
        }
    }
}

impl Control {
    pub(super) fn create_subscriber(&mut self, new: NewSubscriber, reply: Sender<Result<(), SubscriberError>>) {
        match self.share_subscriber(&new).and_then(|()| self.admit_subscriber(&new)) {
            Err(error) => {
                self.let_in_no_more();
                // Whoever asked may be gone by now.
                let _asked = reply.send(Err(error));
            }
            Ok((participant, publishers)) => {
                let endpoint = new.endpoint;
                let introduction = Some(Introduction::new(reply, publishers.clone()));
                let (lanes, turned_away, waiter) = (HashMap::new(), VecDeque::new(), None);
                let entry =
                    SubscriberEntry { new, lanes, turned_away, _participant: participant, introduction, waiter };
                self.subscribers.insert(endpoint, entry);
                for (peer, publisher) in publishers {
                    self.join_to(endpoint, peer, publisher, Instant::now());
                }
                self.end_introductions();
            }
        }
    }

    /// Opens this process's socket for those whose publishers are read: they may come later, and announce themselves.
    fn share_subscriber(&mut self, new: &NewSubscriber) -> Result<(), SubscriberError> {
        if !new.accept.is_own_user() && !self.directory.is_shared() {
            return Err(SubscriberError::NotShared { directory: self.directory.path().to_owned() });
        }
        self.let_in(&new.accept).map_err(|error| SubscriberError::Rights(error.to_string()))
    }

    /// Asks a publisher for its lane.
    pub(super) fn join_to(&mut self, subscriber: u32, peer: Incarnation, publisher: u32, begun: Instant) {
        let Some(entry) = self.subscribers.get(&subscriber) else { return };
        if entry.lanes.contains_key(&(peer, publisher)) {
            return;
        }
        let accept = entry.new.accept.clone();
        let service = entry.new.service.clone();
        match self.link_to(peer) {
            Ok(link) => {
                let stranger = self.stranger_at(link).cloned();
                if stranger.as_ref().is_some_and(|identity| !accept.includes(identity)) {
                    // Whose word it is was not known before. It is nobody's whom this subscriber reads.
                    if let Some(entry) = self.subscribers.get_mut(&subscriber) {
                        entry.answered(peer, publisher);
                    }
                    return;
                }
                let Some(entry) = self.subscribers.get(&subscriber) else { return };
                let full = entry.is_full_for(stranger.as_ref().map(|identity| identity.uid));
                if let Some(most) = full {
                    let text = format!(
                        "this subscriber reads {most} publishers already, as many as it may; it is joined when one of \
                         them has been read to its end"
                    );
                    if let Some(entry) = self.subscribers.get_mut(&subscriber)
                        && stranger.is_none()
                    {
                        entry.turn_away(peer, publisher);
                    }
                    return self.refuse_locally(subscriber, peer, publisher, text);
                }
                if let Err(reason) = self.send_join(link, subscriber, peer, publisher) {
                    self.refuse_locally(subscriber, peer, publisher, reason);
                }
            }
            Err(error @ ConnectError::Busy(_)) => {
                match Retry::in_a_while(peer, RetryWhat::Join { subscriber, publisher }, begun) {
                    Some(retry) => self.retry.push(retry),
                    None => self.refuse_locally(subscriber, peer, publisher, error.to_string()),
                }
            }
            Err(ConnectError::Dead(_)) => {
                // Only one of our own user's leaves what we can remove.
                self.sweep_visited(&service, peer, publisher, Role::Publisher);
                if let Some(entry) = self.subscribers.get_mut(&subscriber) {
                    entry.answered(peer, publisher);
                }
            }
            Err(error) => self.refuse_locally(subscriber, peer, publisher, error.to_string()),
        }
    }

    /// Asks publishers again that were turned away, where a place has become free.
    pub(super) fn fill_places(&mut self) {
        let with_room = |(&endpoint, entry): (&u32, &mut SubscriberEntry)| {
            let own = entry.lanes.values().filter(|lane| lane.stranger.is_none()).count();
            let free = MAX_LANES.saturating_sub(own);
            let next: Vec<_> = entry.turned_away.drain(..free.min(entry.turned_away.len())).collect();
            (endpoint, next)
        };
        let due: Vec<(u32, Vec<(Incarnation, u32)>)> =
            self.subscribers.iter_mut().filter(|(_, entry)| !entry.turned_away.is_empty()).map(with_room).collect();
        for (endpoint, next) in due {
            for (peer, publisher) in next {
                self.join_to(endpoint, peer, publisher, Instant::now());
            }
        }
    }

    fn send_join(&mut self, link: LinkId, subscriber: u32, peer: Incarnation, publisher: u32) -> Result<(), String> {
        let pid = self.pid_of(peer);
        let stranger = self.stranger_at(link).map(|identity| identity.uid);
        let audience = stranger.map_or_else(Audience::default, Audience::user);
        let block = self.memory.allocate(&audience, size_of::<ReaderBlock>(), align_of::<ReaderBlock>());
        let block = block.map_err(|error| error.to_string())?;
        let view = block.extent().view::<ReaderBlock>(0, 1).map_err(|error| error.to_string())?;
        let whom = peer.as_u128();
        view.at(0).reset([whom as u64, (whom >> 64) as u64, publisher.into()]);
        let Some(entry) = self.subscribers.get_mut(&subscriber) else { return Ok(()) };
        let copy = entry.waiter.as_ref().filter(|_| stranger.is_none()).map(|waiter| duplicate(waiter.as_fd()));
        let (waiter, failed) = match copy {
            Some(Ok(waiter)) => (Some(waiter), None),
            // It reads all the same, and sleeps for short times only.
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        let join = Join {
            publisher,
            subscriber,
            service: entry.new.service.clone(),
            drop_oldest: entry.new.drop_oldest,
            history: entry.new.history,
            holds: entry.new.holds,
            record: entry.new.record.encode(),
            // Filled in below, where the connection is at hand.
            region: RegionName { id: block.extent().region().id(), bytes: 0, attached: false },
            block: block.extent().offset() as u64,
            waiter: waiter.is_some(),
        };
        let mut attachments = Attachments::default();
        let region = self.name_region(link, &block, &mut attachments).ok_or("the block is not for this user")?;
        let join = Join { region, ..join };
        let waiter_sent = waiter.is_some();
        let Some(entry) = self.subscribers.get_mut(&subscriber) else { return Ok(()) };
        let (granted, waiter_owed) = (false, false);
        let record = LaneRecord { link, block, view, pid, stranger, granted, waiter_sent, waiter_owed, mapped: None };
        entry.lanes.insert((peer, publisher), record);
        if let Some(error) = failed {
            self.owe_waiter(subscriber, (peer, publisher), &error);
        }
        if let Some(waiter) = waiter {
            attachments.push(waiter);
        }
        self.send(link, &Message::Join(Box::new(join)), attachments);
        Ok(())
    }

    fn refuse_locally(&mut self, subscriber: u32, peer: Incarnation, publisher: u32, text: String) {
        let pid = self.pid_of(peer);
        let Some(entry) = self.subscribers.get_mut(&subscriber) else { return };
        entry.lanes.remove(&(peer, publisher));
        entry.answered(peer, publisher);
        entry.new.shared.note(Note::Refused(Refusal { publisher: peer, pid, code: None, text }));
        self.settle_announced(peer, publisher, subscriber);
        self.end_introductions();
    }

    /// A publisher says that it is there.
    pub(super) fn handle_announce(&mut self, link: LinkId, peer: Incarnation, announce: &Announce) {
        let stranger = self.stranger_at(link);
        let hears = |entry: &SubscriberEntry| stranger.is_none_or(|identity| entry.new.accept.includes(identity));
        let of_service = self.subscribers.iter();
        let of_service = of_service.filter(|(_, entry)| entry.new.service == announce.service && hears(entry));
        let subscribers: Vec<u32> = of_service.map(|(&endpoint, _)| endpoint).collect();
        for subscriber in subscribers {
            self.join_to(subscriber, peer, announce.endpoint, Instant::now());
        }
        let key = (peer, announce.endpoint);
        let asked = self.subscribers.iter().filter(|(_, entry)| {
            entry.new.service == announce.service && entry.lanes.get(&key).is_some_and(|lane| !lane.granted)
        });
        let waiting = asked.map(|(&endpoint, _)| endpoint).collect();
        // Said twice, it is answered once.
        self.announced.retain(|announced| (announced.peer, announced.publisher) != key);
        self.announced.push(Announced { link, peer, publisher: announce.endpoint, waiting });
        self.confirm_announced();
    }

    /// Tells publishers whose announcement has been dealt with by every subscriber here.
    fn confirm_announced(&mut self) {
        for announced in std::mem::take(&mut self.announced) {
            if announced.waiting.is_empty() {
                let message = Message::Announced { endpoint: announced.publisher };
                self.send(announced.link, &message, Attachments::default());
            } else {
                self.announced.push(announced);
            }
        }
    }

    /// A subscriber has its answer from a publisher, or asks no longer.
    fn settle_announced(&mut self, peer: Incarnation, publisher: u32, subscriber: u32) {
        for announced in &mut self.announced {
            if (announced.peer, announced.publisher) == (peer, publisher) {
                announced.waiting.remove(&subscriber);
            }
        }
        self.confirm_announced();
    }

    /// A publisher grants its lane.
    pub(super) fn handle_accepted(
        &mut self,
        link: LinkId,
        peer: Incarnation,
        accepted: &Accepted,
        descriptors: &mut Descriptors,
    ) {
        let (subscriber, publisher) = (accepted.subscriber, accepted.publisher);
        let waiting = self
            .subscribers
            .get(&subscriber)
            .is_some_and(|entry| entry.lanes.get(&(peer, publisher)).is_some_and(|lane| !lane.granted));
        if !waiting && !self.is_own_user_at(link) {
            // What a stranger sends unasked is not looked at; should it name one of these again, it sends it again.
            self.strangers.close(descriptors.drain(..).collect());
            let pool = accepted.pool.as_ref().map(|pool| pool.region);
            for region in [accepted.lane, accepted.ring_region].into_iter().chain(pool).filter(|one| one.attached) {
                self.send(link, &Message::Unmapped(region.id), Attachments::default());
            }
            let lane = LaneName { publisher, subscriber };
            return self.send(link, &Message::Leave(lane), Attachments::default());
        }
        let offered = self.take_offer(peer, accepted, descriptors);
        if !waiting {
            // The subscriber went while the answer was under way, or never asked.
            let lane = LaneName { publisher, subscriber };
            return self.send(link, &Message::Leave(lane), Attachments::default());
        }
        let mailbox = Arc::clone(&self.mailbox);
        let life = self.guard.life();
        let result = offered.and_then(|offer| {
            let entry = self.subscribers.get_mut(&subscriber).ok_or("the subscriber is gone")?;
            let record = entry.lanes.get_mut(&(peer, publisher)).ok_or("the lane is gone")?;
            let pool = offer.pool.as_ref().map(|(region, _)| Arc::clone(region));
            let regions = [Arc::clone(&offer.lane), Arc::clone(&offer.ring)].into_iter().chain(pool).collect();
            let mapped = Mapped { _regions: regions, _wake: offer.wake.clone() };
            let terms = LaneTerms {
                pid: record.pid,
                least_bytes: if entry.new.record.slice { 0 } else { entry.new.record.element.bytes as usize },
                drop_oldest: entry.new.drop_oldest,
                parks: record.waiter_sent,
                block: Place {
                    region: record.block.extent().region().id(),
                    offset: record.block.extent().offset() as u64,
                },
                copies: record.stranger.is_some(),
            };
            let lane = Lane::new(offer, record.view.clone(), terms, life, mailbox)?;
            record.granted = true;
            record.mapped = Some(mapped);
            entry.answered(peer, publisher);
            entry.new.shared.note(Note::Lane(Box::new(lane)));
            Ok(())
        });
        if let Err(text) = result {
            let lane = LaneName { publisher, subscriber };
            self.send(link, &Message::Leave(lane), Attachments::default());
            self.refuse_locally(subscriber, peer, publisher, text);
        }
        self.settle_announced(peer, publisher, subscriber);
        self.end_introductions();
    }

    /// Maps what a publisher granted.
    fn take_offer(
        &mut self,
        peer: Incarnation,
        accepted: &Accepted,
        descriptors: &mut Descriptors,
    ) -> Result<LaneOffer, String> {
        let text = |error: super::links::RegionClaimError| error.to_string();
        let lane = self.peer_region(peer, &accepted.lane, descriptors).map_err(text)?;
        let ring = self.peer_region(peer, &accepted.ring_region, descriptors).map_err(text)?;
        let wake = match (&accepted.wake, self.stranger(peer)) {
            (Some((page, _)), None) => Some(self.peer_wake_page(peer, page, descriptors).map_err(text)?),
            (None, Some(_)) => None,
            (Some(_), Some(_)) => return Err("a stranger handed over a wake page".to_owned()),
            (None, None) => return Err("the wake page is missing".to_owned()),
        };
        let pool = match &accepted.pool {
            Some(pool) => Some((self.peer_region(peer, &pool.region, descriptors).map_err(text)?, pool.clone())),
            None => None,
        };
        Ok(LaneOffer { peer, accepted: accepted.clone(), lane, ring, wake, pool })
    }

    pub(super) fn handle_refused(&mut self, peer: Incarnation, refused: Refused) {
        let pid = self.pid_of(peer);
        let Some(entry) = self.subscribers.get_mut(&refused.subscriber) else { return };
        let key = (peer, refused.publisher);
        let Some(lane) = entry.lanes.get(&key) else { return };
        if lane.granted {
            // The subscriber closes the lane, and only then lets go of it.
            let reason = refused.text.chars().filter(|letter| !letter.is_control()).collect();
            let publisher = refused.publisher;
            return entry.new.shared.note(Note::Expelled { peer, publisher, reason });
        }
        entry.lanes.remove(&key);
        entry.answered(peer, refused.publisher);
        // It is shown to people, on terminals.
        let text = refused.text.chars().filter(|letter| !letter.is_control()).collect();
        let refusal = Refusal { publisher: peer, pid, code: Some(refused.code), text };
        entry.new.shared.note(Note::Refused(refusal));
        self.settle_announced(peer, refused.publisher, refused.subscriber);
        self.end_introductions();
    }

    /// The subscriber is about to park for the first time: its publishers get the descriptor to wake it by.
    pub(super) fn set_waiter(&mut self, endpoint: u32, eventfd: &Arc<OwnedFd>) {
        let Some(entry) = self.subscribers.get_mut(&endpoint) else { return };
        entry.waiter = Some(Arc::clone(eventfd));
        // A stranger's lane is waited for by way of the control threads.
        let lanes = entry.lanes.iter().filter(|(_, lane)| lane.stranger.is_none());
        let lanes: Vec<(Incarnation, u32)> = lanes.map(|(&key, _)| key).collect();
        for key in lanes {
            self.send_waiter(endpoint, key);
        }
    }

    /// Hands the subscriber's eventfd to one publisher. Without it the subscriber goes on looking every millisecond.
    fn send_waiter(&mut self, subscriber: u32, key: (Incarnation, u32)) {
        let Some(entry) = self.subscribers.get_mut(&subscriber) else { return };
        let (Some(lane), Some(waiter)) = (entry.lanes.get_mut(&key), &entry.waiter) else { return };
        match duplicate(waiter.as_fd()) {
            Ok(copy) => {
                let (link, mut attachments) = (lane.link, Attachments::default());
                lane.waiter_owed = false;
                attachments.push(copy);
                self.send(link, &Message::MayPark(LaneName { publisher: key.1, subscriber }), attachments);
            }
            Err(error) => self.owe_waiter(subscriber, key, &error),
        }
    }

    /// A publisher has no descriptor to wake the subscriber by: it is told, once, and it is tried again in a while.
    fn owe_waiter(&mut self, subscriber: u32, key: (Incarnation, u32), error: &std::io::Error) {
        self.waiters_owed = Some(Instant::now() + OWED_AGAIN);
        let Some(entry) = self.subscribers.get_mut(&subscriber) else { return };
        let Some(lane) = entry.lanes.get_mut(&key) else { return };
        let told = std::mem::replace(&mut lane.waiter_owed, true);
        if !told {
            self.ledger.fallback(FallbackReason::NoEventfd);
            let (publisher, pid, reason) = (key.0, lane.pid, format!("dup of an eventfd failed: {error}"));
            entry.new.shared.note(Note::NotWaking { publisher, endpoint: key.1, pid, reason });
        }
    }

    /// Tries again to hand over what could not be duplicated.
    pub(super) fn send_owed_waiters(&mut self) {
        if self.waiters_owed.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.waiters_owed = None;
        let owed = |(&endpoint, entry): (&u32, &SubscriberEntry)| {
            let lanes = entry.lanes.iter().filter(|(_, lane)| lane.waiter_owed);
            lanes.map(|(&key, _)| (endpoint, key)).collect::<Vec<_>>()
        };
        let owed: Vec<(u32, (Incarnation, u32))> = self.subscribers.iter().flat_map(owed).collect();
        for (endpoint, key) in owed {
            self.send_waiter(endpoint, key);
        }
    }

    /// Tells a stranger that our subscriber is about to sleep.
    pub(super) fn tell_park(&mut self, subscriber: u32, peer: Incarnation, publisher: u32, cursor: u64) {
        let Some(entry) = self.subscribers.get(&subscriber) else { return };
        let Some(link) = entry.lanes.get(&(peer, publisher)).map(|lane| lane.link) else { return };
        let lane = LaneName { publisher, subscriber };
        self.send(link, &Message::Park { lane, cursor }, Attachments::default());
    }

    /// A stranger has published what a subscriber of ours waits for.
    pub(super) fn handle_wake(&mut self, peer: Incarnation, lane: LaneName) {
        if let Some(entry) = self.subscribers.get(&lane.subscriber)
            && entry.lanes.get(&(peer, lane.publisher)).is_some_and(|lane| lane.stranger.is_some())
        {
            entry.new.shared.wake();
        }
    }

    pub(super) fn handle_park_noted(&mut self, peer: Incarnation, lane: LaneName) {
        if let Some(entry) = self.subscribers.get(&lane.subscriber)
            && entry.lanes.contains_key(&(peer, lane.publisher))
        {
            entry.new.shared.note(Note::ParkNoted { peer, publisher: lane.publisher });
        }
    }

    /// A publisher ended its lane in good order.
    pub(super) fn handle_ended(&mut self, peer: Incarnation, publisher: u32) {
        for entry in self.subscribers.values_mut() {
            if entry.lanes.get(&(peer, publisher)).is_some_and(|lane| lane.granted) {
                entry.new.shared.note(Note::Ended { peer, publisher });
            }
        }
    }

    /// A publisher may wait for room from now on.
    pub(super) fn handle_room_waiter(&mut self, peer: Incarnation, publisher: u32, descriptors: &mut Descriptors) {
        if self.stranger(peer).is_some() {
            // It is not ours to write to; `Room` goes over the connection. The descriptor is closed where it may hang.
            return;
        }
        let Some(eventfd) = descriptors.pop_front() else { return };
        let eventfd = Arc::new(eventfd);
        for entry in self.subscribers.values_mut() {
            if entry.lanes.contains_key(&(peer, publisher)) {
                let eventfd = Arc::clone(&eventfd);
                entry.new.shared.note(Note::RoomWaiter { peer, publisher, eventfd });
            }
        }
    }

    /// One of our readers saw that a publisher waits for room, and had no descriptor to wake it by.
    pub(super) fn tell_room(&mut self, peer: Incarnation, publisher: u32) {
        if let Some(link) = self.peers.get(&peer).and_then(|peer| peer.links.first().copied()) {
            self.send(link, &Message::Room { publisher }, Attachments::default());
        }
    }

    /// A subscriber is done with a lane: it ended, its publisher died, or it was faulty.
    pub(super) fn close_lane(&mut self, endpoint: u32, lane: Lane) {
        let key = (lane.peer(), lane.publisher());
        let Some(record) = self.subscribers.get_mut(&endpoint).and_then(|entry| entry.lanes.remove(&key)) else {
            return;
        };
        self.retire(endpoint, lane, record);
    }

    pub(super) fn drop_subscriber(&mut self, endpoint: u32, lanes: Vec<Lane>, done: &Sender<()>) {
        let Some(mut entry) = self.subscribers.remove(&endpoint) else { return };
        // Lanes that were granted but not yet taken by the subscriber lie in its inbox.
        let taken = entry.new.shared.take_notes().0.into_iter().filter_map(|note| match note {
            Note::Lane(lane) => Some(*lane),
            _ => None,
        });
        for lane in lanes.into_iter().chain(taken) {
            if let Some(record) = entry.lanes.remove(&(lane.peer(), lane.publisher())) {
                self.retire(endpoint, lane, record);
            }
        }
        drop(entry);
        self.let_in_no_more();
        for announced in &mut self.announced {
            announced.waiting.remove(&endpoint);
        }
        self.confirm_announced();
        // Whoever asked may be gone by now.
        let _asked = done.send(());
    }
}
