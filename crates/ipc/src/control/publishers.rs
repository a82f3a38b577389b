//! The publishers of this process, as their control thread sees them.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use zcmi_mem::ledger::{Counter, FallbackReason};
use zcmi_mem::payload::MessageRecord;
use zcmi_mem::region::PeerRegion;
use zcmi_ring::layout::READERS;
use zcmi_ring::{AddReaderError, Policy, ReaderBlock, ReaderIndex, Rogue};

use super::links::{Attachments, Descriptors, LinkId};
use super::retry::{Retry, RetryWhat};
use super::{Control, INTRODUCTION_MS, duplicate};
use crate::audience::{Audience, Identity};
use crate::directory::{ParticipantFile, Role};
use crate::name::{Incarnation, ServiceName};
use crate::publisher::{LaneMemory, NewPublisher, PublisherError, Waker, each};
use crate::socket::ConnectError;
use crate::sys;
use crate::wire::{Accepted, Announce, Join, LaneName, Message, PoolName, RefusalCode, Refused, RegionName};

/// Readers of one lane that one other user may have, of 64.
const MAX_READERS_OF_STRANGER: usize = 16;
/// Readers of one lane that all other users may have: as many places are left for our own.
const MAX_STRANGERS: usize = 32;

/// Somebody waits until every peer that was there first has answered.
#[derive(Debug)]
pub(super) struct Introduction<E> {
    pub(super) reply: Sender<Result<(), E>>,
    pub(super) waiting: HashSet<(Incarnation, u32)>,
    pub(super) deadline: Instant,
}

impl<E> Introduction<E> {
    pub(super) fn new(reply: Sender<Result<(), E>>, waiting: HashSet<(Incarnation, u32)>) -> Self {
        Self { reply, waiting, deadline: Instant::now() + Duration::from_millis(INTRODUCTION_MS) }
    }
}

/// The regions of a lane as a message names them: its control line and ring, its wake page and word, and its pool.
type NamedLane = (RegionName, RegionName, Option<(RegionName, u64)>, Option<PoolName>);

/// One subscriber that reads one of our lanes.
#[derive(Debug)]
struct ReaderRecord {
    index: ReaderIndex,
    link: LinkId,
    /// The user, if it is another one.
    stranger: Option<u32>,
    /// Slots set aside for what it may hold.
    holds: u32,
    /// What it sleeps on, once it may.
    waiter: Option<Arc<OwnedFd>>,
    /// Whether it still reads, and does not only hold what it received.
    reads: bool,
    /// Keeps the block mapped.
    _region: Arc<PeerRegion>,
}

/// One publisher.
#[derive(Debug)]
pub(super) struct PublisherEntry {
    new: NewPublisher,
    readers: HashMap<(Incarnation, u32), ReaderRecord>,
    /// Subscribers that were ended for a lie and have not said that they let go: the lane's memory is kept for them.
    quarantine: HashSet<(Incarnation, u32)>,
    participant: Option<ParticipantFile>,
    introduction: Option<Introduction<PublisherError>>,
    ended: bool,
    /// Readers whose wakes are over their budgets, and when the first of them is due.
    delayed: (u64, Option<Instant>),
}

impl PublisherEntry {
    pub(super) fn service(&self) -> &ServiceName {
        &self.new.service
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Who may subscribe besides our own user.
    pub(super) fn audience(&self) -> &Audience {
        static NOBODY: Audience = Audience::of_nobody();
        if self.ended { &NOBODY } else { &self.new.allow }
    }

    pub(super) fn introduction_ends(&self) -> Option<Instant> {
        self.introduction.as_ref().map(|introduction| introduction.deadline)
    }

    pub(super) fn has_reader_of(&self, incarnation: Incarnation) -> bool {
        self.readers.keys().chain(&self.quarantine).any(|(peer, _)| *peer == incarnation)
    }

    pub(super) fn report(&self) -> crate::report::EndpointReport {
        let (tail, refused, bytes) = self.new.seat.change(|reading| {
            let control = reading.writer.control();
            (reading.writer.tail(), control.refused(), control.published_bytes())
        });
        crate::report::EndpointReport {
            service: self.new.service.to_string(),
            role: Role::Publisher.to_string(),
            endpoint: self.new.endpoint,
            peers: self.reading(),
            messages: tail,
            bytes: if self.new.record.slice { bytes } else { tail * u64::from(self.new.record.element.bytes) },
            lost: 0,
            refused,
            capacity: self.new.capacity,
            memory_bytes: self.new.memory.bytes(),
            ended: self.ended,
        }
    }

    /// Drops the readers of a dead process: their cursors and holds no longer count.
    pub(super) fn forget_readers_of(&mut self, incarnation: Incarnation) {
        let gone: Vec<(Incarnation, u32)> =
            self.readers.keys().filter(|(peer, _)| *peer == incarnation).copied().collect();
        for key in gone {
            self.forget_reader(key);
        }
        self.quarantine.retain(|(peer, _)| *peer != incarnation);
    }

    /// Takes the readers that the lane has ended because of what they claimed: their places and slots are free again,
    /// and the lane's memory is kept as long as they may read it.
    fn take_rogues(&mut self) -> Vec<((Incarnation, u32), LinkId, bool, Rogue)> {
        let rogues = self.new.seat.change(|reading| reading.writer.take_rogues());
        self.new.control_counts.add(Counter::PeersEnded, rogues.len() as u64);
        let mut taken = Vec::with_capacity(rogues.len());
        for (index, rogue) in rogues {
            let of_index = self.readers.iter().find(|(_, record)| record.index == index);
            if let Some((key, link, stranger)) =
                of_index.map(|(&key, record)| (key, record.link, record.stranger.is_some()))
            {
                self.quarantine.insert(key);
                self.forget_reader(key);
                taken.push((key, link, stranger, rogue));
            }
        }
        taken
    }

    /// Whether this stranger may have what it asks for.
    fn admit_stranger(&self, identity: &Identity, join: &Join) -> Result<(), (RefusalCode, String)> {
        let uid = identity.uid;
        if !self.new.allow.includes(identity) {
            let text = format!("user {uid} may not subscribe to `{}`; its owner can allow it", join.service);
            return Err((RefusalCode::Rights, text));
        }
        if !join.drop_oldest && !self.new.may_block.includes(identity) {
            let text = format!(
                "user {uid} may not hold this publisher up; subscribe with `drop_oldest`, or have its owner grant \
                 `may_block`"
            );
            return Err((RefusalCode::Reliable, text));
        }
        let of_user = self.readers.values().filter(|record| record.stranger == Some(uid)).count();
        let strangers = self.readers.values().filter(|record| record.stranger.is_some()).count();
        if of_user >= MAX_READERS_OF_STRANGER || strangers >= MAX_STRANGERS {
            let text = format!("{of_user} subscribers of user {uid} and {strangers} of other users read this already");
            return Err((RefusalCode::TooManySubscribers, text));
        }
        Ok(())
    }

    fn forget_reader(&mut self, key: (Incarnation, u32)) {
        let Some(record) = self.readers.remove(&key) else { return };
        self.new.seat.change(|reading| reading.remove(record.index));
        self.new.shared.changed(self.reading());
        self.wake_room();
    }

    /// Slots set aside for readers that are still to come: neither another reader's, nor kept for the kernel's sake
    /// after their reader went.
    fn slots_left(&self) -> u32 {
        let quarantined = self.new.seat.change(|reading| reading.writer.quarantined());
        let taken = self.readers.values().map(|record| record.holds as usize).sum::<usize>() + quarantined;
        self.new.reserve.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX))
    }

    /// How many subscribers read the lane.
    fn reading(&self) -> usize {
        self.readers.values().filter(|record| record.reads).count()
    }

    /// Sends the wakes that the publisher handed over, as far as the readers' budgets allow now.
    fn send_owed(&mut self) {
        let owed = self.delayed.0 | self.new.wakes.take_owed();
        if owed == 0 {
            return;
        }
        let now = self.new.wakes.now_ns();
        let mut waiters = [const { None }; READERS];
        for record in self.readers.values() {
            waiters[usize::from(record.index.0)] = record.waiter.as_ref();
        }
        let (mut left, mut first) = (0, None);
        for index in each(owed) {
            // Who left meanwhile needs none.
            let Some(waiter) = waiters[index] else { continue };
            match self.new.wakes.spend(index, now) {
                // A full eventfd is readable, so its reader is awake; a closed one's reader is gone.
                Ok(()) => {
                    let _awake_or_gone = sys::wake(waiter.as_fd());
                    self.new.control_counts.add(Counter::WakesSent, 1);
                }
                Err(due) => {
                    left |= 1 << index;
                    first = Some(first.map_or(due, |first: u64| first.min(due)));
                }
            }
        }
        self.delayed = (left, first.map(|due| self.new.wakes.instant_of(due)));
    }

    /// When a delayed wake is due.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.delayed.1
    }

    /// Wakes the publisher if it waits for room: the list of readers changed, or one of them asked for it.
    fn wake_room(&self) {
        if let Some(eventfd) = self.new.shared.room.get() {
            // Only a full eventfd is possible, and that one is readable.
            let _already_awake = sys::wake(eventfd.as_fd());
            self.new.control_counts.add(Counter::WakesSent, 1);
        }
    }
}

impl Control {
    /// A publisher that may stay is announced to the subscribers that are there.
    pub(super) fn begin_publisher(
        &mut self,
        new: NewPublisher,
        reply: Sender<Result<(), PublisherError>>,
        participant: ParticipantFile,
        subscribers: HashSet<Incarnation>,
    ) {
        let endpoint = new.endpoint;
        let waiting: HashSet<_> = subscribers.iter().map(|&peer| (peer, 0)).collect();
        let introduction = Some(Introduction::new(reply, waiting));
        let (readers, quarantine, participant) = (HashMap::new(), HashSet::new(), Some(participant));
        let entry =
            PublisherEntry { new, readers, quarantine, participant, introduction, ended: false, delayed: (0, None) };
        self.publishers.insert(endpoint, entry);
        for peer in subscribers {
            self.announce_to(endpoint, peer, Instant::now());
        }
        self.end_introductions();
    }

    /// Removes a dead process's entry in a service that we look at, and its socket.
    pub(super) fn sweep_visited(&mut self, service: &ServiceName, dead: Incarnation, endpoint: u32, role: Role) {
        // What cannot be removed now is the next visitor's residue; another user's never can.
        let _next_visitor = self.directory.remove_entry(service, dead, endpoint, role);
        let _next_visitor = self.directory.remove_process(dead);
    }

    /// Tells a subscriber's process that there is a publisher.
    pub(super) fn announce_to(&mut self, endpoint: u32, peer: Incarnation, begun: Instant) {
        let Some(entry) = self.publishers.get(&endpoint) else { return };
        let announce = Announce { service: entry.new.service.clone(), endpoint };
        let allow = entry.new.allow.clone();
        match self.link_to(peer) {
            Ok(link) if self.stranger_at(link).is_some_and(|identity| !allow.includes(identity)) => {
                self.introduced(endpoint, peer);
            }
            Ok(link) => self.send(link, &Message::Announce(announce), Attachments::default()),
            Err(ConnectError::Busy(_)) => match Retry::in_a_while(peer, RetryWhat::Announce { endpoint }, begun) {
                Some(retry) => self.retry.push(retry),
                None => self.introduced(endpoint, peer),
            },
            Err(_) => self.introduced(endpoint, peer),
        }
    }

    /// A subscriber's process has sent all joins that an announcement asked for, or cannot.
    pub(super) fn introduced(&mut self, endpoint: u32, peer: Incarnation) {
        if let Some(entry) = self.publishers.get_mut(&endpoint)
            && let Some(introduction) = &mut entry.introduction
        {
            introduction.waiting.remove(&(peer, 0));
        }
        self.end_introductions();
    }

    /// A process that can no longer be reached answers nobody.
    pub(super) fn lose_introductions(&mut self, peer: Incarnation) {
        for entry in self.publishers.values_mut() {
            if let Some(introduction) = &mut entry.introduction {
                introduction.waiting.remove(&(peer, 0));
            }
        }
        for entry in self.subscribers.values_mut() {
            entry.lose_introduction(peer);
        }
        self.end_introductions();
    }

    /// Wakes the readers that our publishers handed over.
    pub(super) fn send_owed_wakes(&mut self) {
        for entry in self.publishers.values_mut() {
            entry.send_owed();
        }
    }

    /// Lets creators go on whose peers have all answered, or whose time is over.
    pub(super) fn end_introductions(&mut self) {
        let now = Instant::now();
        for entry in self.publishers.values_mut() {
            let over =
                |introduction: &mut Introduction<_>| introduction.waiting.is_empty() || introduction.deadline <= now;
            if let Some(introduction) = entry.introduction.take_if(over) {
                // Whoever asked may be gone by now.
                let _asked = introduction.reply.send(Ok(()));
            }
        }
        for entry in self.subscribers.values_mut() {
            entry.end_introduction(now);
        }
    }

    /// A subscriber wants to read one of our lanes.
    pub(super) fn handle_join(&mut self, link: LinkId, peer: Incarnation, join: &Join, descriptors: &mut Descriptors) {
        match self.try_join(link, peer, join, descriptors) {
            Ok((accepted, attachments)) => {
                self.send(link, &Message::Accepted(Box::new(accepted)), attachments);
                // After the grant: a subscriber has no place for it before it knows the lane.
                let room = self.publishers.get(&join.publisher).and_then(|entry| entry.new.shared.room.get().cloned());
                if let Some(room) = room
                    && self.is_own_user_at(link)
                {
                    self.tell_room_waiter(link, join.publisher, &room);
                }
            }
            Err((code, text)) => {
                self.ledger.count(Counter::JoinsRefused, 1);
                let refused = Refused { publisher: join.publisher, subscriber: join.subscriber, code, text };
                self.send(link, &Message::Refused(refused), Attachments::default());
            }
        }
    }

    pub(super) fn try_join(
        &mut self,
        link: LinkId,
        peer: Incarnation,
        join: &Join,
        descriptors: &mut Descriptors,
    ) -> Result<(Accepted, Attachments), (RefusalCode, String)> {
        let protocol = |text: String| (RefusalCode::Protocol, text);
        let hung_up = || protocol("the connection has ended".into());
        let identity = self.links.get(&link).map(|link| link.identity().clone()).ok_or_else(hung_up)?;
        let stranger = (!identity.is_own_user()).then_some(identity);
        // What a stranger sends is not even looked at before it is known to be asked for by somebody who may ask.
        if let Some(identity) = &stranger
            && let Err(refused) = self.may_ask(identity, join)
        {
            self.strangers.close(descriptors.drain(..).collect());
            if join.region.attached {
                self.send(link, &Message::Unmapped(join.region.id), Attachments::default());
            }
            return Err(refused);
        }
        // The region is received first, so that a refusal does not leave it unknown for the next join.
        let region = self.peer_region(peer, &join.region, descriptors).map_err(|error| protocol(error.to_string()))?;
        self.keep_for_blocks(peer, join.region.id);
        let waiter = if join.waiter {
            Some(Arc::new(descriptors.pop_front().ok_or_else(|| protocol("the waiter's eventfd is missing".into()))?))
        } else {
            None
        };
        let offset = usize::try_from(join.block).map_err(|_| protocol("the block is out of range".into()))?;
        let block = region.view::<ReaderBlock>(offset, 1).map_err(|error| protocol(error.to_string()))?;
        let pid = self.pid_of(peer);
        // An index means one reader at a time, so those that lost theirs are dealt with first.
        self.drop_rogues(join.publisher);
        let own = self.incarnation.as_u128();
        // Among those may have been one of this very connection.
        let connection = Some(Arc::clone(self.links.get(&link).ok_or_else(hung_up)?.connection()));
        let mailbox = Arc::clone(&self.mailbox);
        let gone = || (RefusalCode::Gone, "the publisher has ended".to_owned());
        let entry = self.publishers.get_mut(&join.publisher).filter(|entry| !entry.ended).ok_or_else(gone)?;
        if entry.new.service != join.service {
            return Err(protocol(format!("endpoint {} does not publish on `{}`", join.publisher, join.service)));
        }
        if block.at(0).identity() != [own as u64, (own >> 64) as u64, join.publisher.into()] {
            return Err(protocol("the block speaks to another publisher".into()));
        }
        let record = MessageRecord::decode(&join.record).map_err(|error| protocol(error.to_string()))?;
        if let Some(difference) = entry.new.record.first_difference(&record) {
            return Err((RefusalCode::Layout, difference.to_string()));
        }
        if entry.readers.contains_key(&(peer, join.subscriber)) {
            return Err(protocol(format!("endpoint {} reads this lane already", join.subscriber)));
        }
        if entry.quarantine.contains(&(peer, join.subscriber)) {
            return Err(protocol(format!("endpoint {} was ended for a false claim and has not left", join.subscriber)));
        }
        // A stranger copies, so nothing is set aside for it, and what it marks as held keeps nothing.
        let holds = if stranger.is_some() {
            0
        } else if entry.new.memory.pool.is_some() {
            u32::from(join.holds).min(entry.new.holds)
        } else {
            0
        };
        let left = entry.slots_left();
        if holds > left {
            let text = format!(
                "the publisher's pool has {left} slots left for readers, and this one needs {holds}; create the \
                 publisher with more `reader_slots`"
            );
            return Err((RefusalCode::TooManySubscribers, text));
        }
        let policy = if join.drop_oldest { Policy::DropOldest } else { Policy::Reliable };
        let late = entry.new.late_joiners;
        let added = entry.new.seat.change(|reading| {
            if !late && reading.writer.tail() > reading.first {
                return Err((RefusalCode::Late, format!("{} messages have gone by", reading.writer.tail())));
            }
            let added = reading.writer.add_reader(block, policy, join.history, holds as usize).map_err(|error| {
                let code = match error {
                    AddReaderError::TooMany => RefusalCode::TooManySubscribers,
                    _ => RefusalCode::Gone,
                };
                (code, error.to_string())
            })?;
            let waker = match (waiter.clone(), connection) {
                (Some(eventfd), _) => Some(Waker::Eventfd(eventfd)),
                (None, Some(connection)) if stranger.is_some() => {
                    let lane = LaneName { publisher: join.publisher, subscriber: join.subscriber };
                    Some(Waker::Stranger { connection, link, lane, mailbox })
                }
                _ => None,
            };
            reading.seat_reader(added.0, pid, waker);
            Ok(added)
        });
        let (index, start) = added?;
        let stranger = stranger.map(|identity| identity.uid);
        let record = ReaderRecord { index, link, stranger, holds, waiter, reads: true, _region: region };
        entry.readers.insert((peer, join.subscriber), record);
        entry.new.shared.changed(entry.reading());
        entry.wake_room();
        let memory = Arc::clone(&entry.new.memory);
        let capacity = entry.new.capacity;
        let mut attachments = Attachments::default();
        let named = self.name_lane(link, &memory, &mut attachments);
        let Some((lane, ring, wake, pool)) = named else {
            // It never learns of the lane, so it is no reader; what was named and does not go is forgotten with the
            // link.
            if let Some(entry) = self.publishers.get_mut(&join.publisher) {
                entry.forget_reader((peer, join.subscriber));
            }
            self.drop_link(link);
            return Err((RefusalCode::Rights, "the lane's memory is not for this user, or not so often".to_owned()));
        };
        let accepted = Accepted {
            publisher: join.publisher,
            subscriber: join.subscriber,
            index: index.0,
            start,
            capacity,
            lane,
            control: memory.control.extent().offset() as u64,
            ring_region: ring,
            ring: memory.ring.extent().offset() as u64,
            wake,
            holds: holds as u8,
            pool,
        };
        Ok((accepted, attachments))
    }

    /// Whether a stranger may ask for a lane, by what it says alone.
    fn may_ask(&self, identity: &Identity, join: &Join) -> Result<(), (RefusalCode, String)> {
        let protocol = |text: &str| Err((RefusalCode::Protocol, text.to_owned()));
        if join.waiter {
            return protocol("a stranger is woken over its connection and not by an eventfd");
        }
        if !Self::may_hold_blocks(join.region.bytes) {
            return protocol("the region of the block is too large");
        }
        let gone = || (RefusalCode::Gone, "the publisher has ended".to_owned());
        let entry = self.publishers.get(&join.publisher).filter(|entry| !entry.ended).ok_or_else(gone)?;
        if entry.new.service != join.service {
            return protocol("this endpoint publishes on another service");
        }
        entry.admit_stranger(identity, join)
    }

    /// Names the regions of a lane, its wake page and its pool, in the order in which they are received.
    fn name_lane(&mut self, link: LinkId, memory: &LaneMemory, attachments: &mut Attachments) -> Option<NamedLane> {
        let lane = self.name_region(link, &memory.control, attachments)?;
        let ring = self.name_region(link, &memory.ring, attachments)?;
        // Of our own user's audience alone, so that a stranger gets none.
        let wake = self.name_region(link, &memory.wake, attachments);
        let wake = wake.map(|region| (region, memory.wake.extent().offset() as u64));
        let pool = match &memory.pool {
            Some((guard, plan)) => {
                let region = self.name_region(link, guard, attachments)?;
                let offset = guard.extent().offset() as u64;
                Some(PoolName { region, offset, classes: plan.classes().to_vec() })
            }
            None => None,
        };
        Some((lane, ring, wake, pool))
    }

    /// A subscriber may park from now on.
    pub(super) fn handle_may_park(
        &mut self,
        link: LinkId,
        peer: Incarnation,
        lane: LaneName,
        descriptors: &mut Descriptors,
    ) {
        if self.stranger_at(link).is_some() {
            return self.drop_link(link);
        }
        let Some(eventfd) = descriptors.pop_front() else { return self.drop_link(link) };
        let Some(entry) = self.publishers.get_mut(&lane.publisher) else { return };
        let Some(record) = entry.readers.get_mut(&(peer, lane.subscriber)) else { return };
        let (index, eventfd) = (record.index, Arc::new(eventfd));
        record.waiter = Some(Arc::clone(&eventfd));
        entry.new.seat.change(|reading| reading.set_waiter(index, eventfd));
        self.send(link, &Message::ParkNoted(lane), Attachments::default());
    }

    /// A stranger is about to sleep: it is woken by the next message, or at once if that is there.
    pub(super) fn handle_park(&mut self, link: LinkId, peer: Incarnation, lane: LaneName, cursor: u64) {
        if self.stranger_at(link).is_none() {
            return self.drop_link(link);
        }
        let Some(entry) = self.publishers.get(&lane.publisher) else { return };
        let Some(record) = entry.readers.get(&(peer, lane.subscriber)) else { return };
        let index = record.index;
        if !entry.new.seat.change(|reading| reading.park_stranger(index, cursor)) {
            self.send(link, &Message::Wake(lane), Attachments::default());
        }
    }

    /// A subscriber is done with the lane and all it held.
    pub(super) fn handle_leave(&mut self, peer: Incarnation, lane: LaneName) {
        if let Some(entry) = self.publishers.get_mut(&lane.publisher) {
            entry.quarantine.remove(&(peer, lane.subscriber));
            entry.forget_reader((peer, lane.subscriber));
        }
    }

    /// Tells the subscribers that a lane has ended because of what they claimed, and why.
    pub(super) fn drop_rogues(&mut self, publisher: u32) {
        let Some(entry) = self.publishers.get_mut(&publisher) else { return };
        for ((peer, subscriber), link, stranger, rogue) in entry.take_rogues() {
            let code = RefusalCode::Protocol;
            let refused = Message::Refused(Refused { publisher, subscriber, code, text: rogue.to_string() });
            if stranger {
                // It is told over the connection that it has, and not heard any more.
                self.send(link, &refused, Attachments::default());
                self.expel(link);
            } else {
                self.send_to(peer, link, &refused);
            }
        }
    }

    /// A subscriber is gone while samples of it are in use: it is not waited for, and what it holds is not reused.
    pub(super) fn handle_only_holds(&mut self, peer: Incarnation, lane: LaneName) {
        let Some(entry) = self.publishers.get_mut(&lane.publisher) else { return };
        let Some(record) = entry.readers.get_mut(&(peer, lane.subscriber)) else { return };
        record.reads = false;
        let index = record.index;
        entry.new.seat.change(|reading| reading.writer.stop_reading(index));
        entry.new.shared.changed(entry.reading());
        entry.wake_room();
    }

    /// A subscriber saw that the publisher waits, and had no descriptor to wake it by.
    pub(super) fn handle_room(&mut self, peer: Incarnation, publisher: u32) {
        if let Some(entry) = self.publishers.get(&publisher)
            && entry.has_reader_of(peer)
        {
            entry.wake_room();
        }
    }

    /// The publisher may wait for room from now on: its readers get the descriptor to wake it by.
    pub(super) fn set_room_waiter(&mut self, endpoint: u32, eventfd: Arc<OwnedFd>) {
        let Some(entry) = self.publishers.get(&endpoint) else { return };
        // Strangers ask over their connection.
        let own = entry.readers.values().filter(|record| record.stranger.is_none());
        let links: HashSet<LinkId> = own.map(|record| record.link).collect();
        for link in links {
            self.tell_room_waiter(link, endpoint, &eventfd);
        }
    }

    fn tell_room_waiter(&mut self, link: LinkId, publisher: u32, eventfd: &OwnedFd) {
        // Without the descriptor the readers ask over the connection, as before.
        let Ok(copy) = duplicate(eventfd.as_fd()) else { return self.ledger.fallback(FallbackReason::NoEventfd) };
        let mut attachments = Attachments::default();
        attachments.push(copy);
        self.send(link, &Message::RoomWaiter { publisher }, attachments);
    }

    /// The publisher's handle is gone: it has ended the lane already, and its readers are told.
    pub(super) fn drop_publisher(&mut self, endpoint: u32, done: &Sender<()>) {
        if let Some(entry) = self.publishers.get_mut(&endpoint) {
            entry.ended = true;
            entry.participant = None;
            let links: HashSet<LinkId> = entry.readers.values().map(|record| record.link).collect();
            for link in links {
                self.send(link, &Message::Ended { publisher: endpoint }, Attachments::default());
            }
        }
        self.forget_ended_publishers();
        self.let_in_no_more();
        // Whoever asked may be gone by now.
        let _asked = done.send(());
    }

    /// Frees the memory of publishers that ended and that nobody reads any more.
    pub(super) fn forget_ended_publishers(&mut self) {
        if self.is_forked() {
            return;
        }
        let is_needed = |entry: &PublisherEntry| !(entry.readers.is_empty() && entry.quarantine.is_empty());
        self.publishers.retain(|_, entry| !entry.ended || is_needed(entry));
    }
}
