//! The publishers of this process, as their control thread sees them.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use zcmi_mem::payload::MessageRecord;
use zcmi_mem::region::PeerRegion;
use zcmi_ring::{AddReaderError, Policy, ReaderBlock, ReaderIndex};

use super::links::{Attachments, Descriptors, LinkId};
use super::{Control, INTRODUCTION_MS, Retry, RetryWhat, duplicate};
use crate::audience::{Audience, Identity};
use crate::directory::{Facts, ParticipantFile, Role};
use crate::name::{Incarnation, ServiceName};
use crate::publisher::{NewPublisher, PublisherError, Waker};
use crate::socket::{ConnectError, is_same_user};
use crate::sys;
use crate::wire::{Accepted, Announce, Join, LaneName, Message, PoolName, RefusalCode, Refused, VERSION};

/// How often a peer whose backlog is full is tried again.
const MAX_TRIES: u32 = 100;
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

/// One subscriber that reads one of our lanes.
#[derive(Debug)]
struct ReaderRecord {
    index: ReaderIndex,
    link: LinkId,
    /// The user, if it is another one.
    stranger: Option<u32>,
    /// Slots set aside for what it may hold.
    holds: u32,
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
    participant: Option<ParticipantFile>,
    introduction: Option<Introduction<PublisherError>>,
    ended: bool,
}

impl PublisherEntry {
    pub(super) fn service(&self) -> &ServiceName {
        &self.new.service
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
        self.readers.keys().any(|(peer, _)| *peer == incarnation)
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
            lost: refused,
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
    }

    /// Forgets the readers that the lane has ended because of what they claimed: their places and slots are free again.
    fn drop_rogues(&mut self) {
        let rogues = self.new.seat.change(|reading| reading.writer.take_rogues());
        for (index, _) in rogues {
            let of_index = self.readers.iter().find(|(_, record)| record.index == index);
            if let Some(key) = of_index.map(|(&key, _)| key) {
                self.forget_reader(key);
            }
        }
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
        self.new.reserve += record.holds;
        self.new.shared.changed(self.reading());
        self.wake_room();
    }

    /// How many subscribers read the lane.
    fn reading(&self) -> usize {
        self.readers.values().filter(|record| record.reads).count()
    }

    /// Wakes the publisher if it waits for room: the list of readers changed, or one of them asked for it.
    fn wake_room(&self) {
        if let Some(eventfd) = self.new.shared.room.get() {
            // Only a full eventfd is possible, and that one is readable.
            let _already_awake = sys::wake(eventfd.as_fd());
        }
    }
}

impl Control {
    pub(super) fn create_publisher(&mut self, new: NewPublisher, reply: Sender<Result<(), PublisherError>>) {
        match self.share_publisher(&new).and_then(|()| self.admit_publisher(&new)) {
            Err(error) => {
                // Whoever asked may be gone by now.
                let _asked = reply.send(Err(error));
            }
            Ok((participant, subscribers)) => {
                let endpoint = new.endpoint;
                let waiting: HashSet<_> = subscribers.iter().map(|&peer| (peer, 0)).collect();
                let introduction = Some(Introduction::new(reply, waiting));
                let (readers, participant) = (HashMap::new(), Some(participant));
                self.publishers
                    .insert(endpoint, PublisherEntry { new, readers, participant, introduction, ended: false });
                for peer in subscribers {
                    self.announce_to(endpoint, peer, 0);
                }
                self.end_introductions();
            }
        }
    }

    /// Opens this process's socket for those who may subscribe.
    fn share_publisher(&mut self, new: &NewPublisher) -> Result<(), PublisherError> {
        self.let_in(&new.allow).map_err(|error| PublisherError::Rights(error.to_string()))
    }

    /// Checks a new publisher against those that are there, and writes it down.
    fn admit_publisher(
        &mut self,
        new: &NewPublisher,
    ) -> Result<(ParticipantFile, HashSet<Incarnation>), PublisherError> {
        let facts = Facts { version: VERSION.into(), pid: std::process::id(), layout_hash: new.record.hash() };
        let participant = self
            .directory
            .create_participant(&new.service, self.incarnation, new.endpoint, Role::Publisher, &facts)
            .map_err(|error| PublisherError::Directory(error.to_string()))?;
        // What cannot be removed now is the next visitor's residue.
        let _next_visitor = self.directory.sweep_unfinished(&new.service, |other| self.is_gone(other));
        let all = self.directory.participants(&new.service);
        let all = all.map_err(|error| PublisherError::Directory(error.to_string()))?;
        let (mut publishers, mut subscribers) = (0, HashSet::new());
        for other in all {
            if (other.incarnation, other.endpoint) == (self.incarnation, new.endpoint) {
                continue;
            }
            // What strangers publish under this name is theirs: it neither counts nor has to agree with ours.
            let own = is_same_user(other.uid, rustix::process::geteuid().as_raw());
            if !own && (other.role == Role::Publisher || !new.allow.may_include(other.uid)) {
                continue;
            }
            if matches!(self.link_to(other.incarnation), Err(ConnectError::Dead(_))) {
                self.sweep_visited(&new.service, other.incarnation);
                continue;
            }
            match other.role {
                Role::Subscriber => drop(subscribers.insert(other.incarnation)),
                Role::Publisher => {
                    if other.facts.layout_hash != facts.layout_hash {
                        return Err(PublisherError::OtherLayout {
                            service: new.service.clone(),
                            pid: other.facts.pid,
                            ours: new.record.element.name.clone(),
                        });
                    }
                    publishers += 1;
                    if publishers >= new.max_publishers {
                        let (service, limit) = (new.service.clone(), new.max_publishers);
                        return Err(PublisherError::TooManyPublishers { service, limit, pid: other.facts.pid });
                    }
                }
            }
        }
        Ok((participant, subscribers))
    }

    /// Removes a dead process's entry in a service that we look at, and its socket.
    pub(super) fn sweep_visited(&mut self, service: &ServiceName, dead: Incarnation) {
        for participant in self.directory.participants(service).unwrap_or_default() {
            if participant.incarnation == dead {
                // What cannot be removed now is the next visitor's residue.
                let _next_visitor = self.directory.remove_participant(service, &participant);
            }
        }
        let _next_visitor = self.directory.remove_process(dead);
    }

    /// Tells a subscriber's process that there is a publisher.
    pub(super) fn announce_to(&mut self, endpoint: u32, peer: Incarnation, tries: u32) {
        let Some(entry) = self.publishers.get(&endpoint) else { return };
        let announce = Announce { service: entry.new.service.clone(), endpoint };
        let allow = entry.new.allow.clone();
        match self.link_to(peer) {
            Ok(link) if self.stranger_at(link).is_some_and(|identity| !allow.includes(identity)) => {
                self.introduced(endpoint, peer);
            }
            Ok(link) => self.send(link, &Message::Announce(announce), Attachments::default()),
            Err(ConnectError::Busy(_)) if tries < MAX_TRIES => {
                self.retry.push(Retry { peer, what: RetryWhat::Announce { endpoint }, tries });
            }
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
                if let (Some(room), None) = (room, self.stranger_at(link)) {
                    self.tell_room_waiter(link, join.publisher, &room);
                }
            }
            Err((code, text)) => {
                let refused = Refused { publisher: join.publisher, subscriber: join.subscriber, code, text };
                self.send(link, &Message::Refused(refused), Attachments::default());
            }
        }
    }

    fn try_join(
        &mut self,
        link: LinkId,
        peer: Incarnation,
        join: &Join,
        descriptors: &mut Descriptors,
    ) -> Result<(Accepted, Attachments), (RefusalCode, String)> {
        let protocol = |text: String| (RefusalCode::Protocol, text);
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
        let own = self.incarnation.as_u128();
        let stranger = self.stranger_at(link).cloned();
        if stranger.is_some() && waiter.is_some() {
            return Err(protocol("a stranger is woken over its connection and not by an eventfd".into()));
        }
        let connection = self.links.get(&link).map(|link| Arc::clone(link.connection()));
        let mailbox = Arc::clone(&self.mailbox);
        let gone = || (RefusalCode::Gone, "the publisher has ended".to_owned());
        let entry = self.publishers.get_mut(&join.publisher).filter(|entry| !entry.ended).ok_or_else(gone)?;
        if entry.new.service != join.service {
            return Err(protocol(format!("endpoint {} does not publish on `{}`", join.publisher, join.service)));
        }
        if let Some(identity) = &stranger {
            entry.admit_stranger(identity, join)?;
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
        // A stranger copies, so nothing is set aside for it, and what it marks as held keeps nothing.
        let holds = if stranger.is_some() {
            0
        } else if entry.new.memory.pool.is_some() {
            u32::from(join.holds).min(entry.new.holds)
        } else {
            0
        };
        if holds > entry.new.reserve {
            let text = format!(
                "the publisher's pool has {} slots left for readers, and this one needs {holds}; create the publisher \
                 with more `reader_slots`",
                entry.new.reserve
            );
            return Err((RefusalCode::TooManySubscribers, text));
        }
        let policy = if join.drop_oldest { Policy::DropOldest } else { Policy::Reliable };
        entry.drop_rogues();
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
            let waker = match (waiter, connection) {
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
        entry.new.reserve -= holds;
        let stranger = stranger.map(|identity| identity.uid);
        let record = ReaderRecord { index, link, stranger, holds, reads: true, _region: region };
        entry.readers.insert((peer, join.subscriber), record);
        entry.new.shared.changed(entry.reading());
        entry.wake_room();
        let memory = Arc::clone(&entry.new.memory);
        let capacity = entry.new.capacity;
        let mut attachments = Attachments::default();
        let rights = || (RefusalCode::Rights, "the lane's memory is not for this user".to_owned());
        let lane = self.name_region(link, &memory.control, &mut attachments).ok_or_else(rights)?;
        let ring = self.name_region(link, &memory.ring, &mut attachments).ok_or_else(rights)?;
        // Of our own user's audience alone, so that a stranger gets none.
        let wake = self.name_region(link, &memory.wake, &mut attachments);
        let wake = wake.map(|region| (region, memory.wake.extent().offset() as u64));
        let pool = match &memory.pool {
            Some((guard, plan)) => {
                let region = self.name_region(link, guard, &mut attachments).ok_or_else(rights)?;
                let offset = guard.extent().offset() as u64;
                Some(PoolName { region, offset, classes: plan.classes().to_vec() })
            }
            None => None,
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
        let Some(record) = entry.readers.get(&(peer, lane.subscriber)) else { return };
        let index = record.index;
        entry.new.seat.change(|reading| reading.set_waiter(index, Arc::new(eventfd)));
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
            entry.forget_reader((peer, lane.subscriber));
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
    pub(super) fn handle_room(&mut self, publisher: u32) {
        if let Some(entry) = self.publishers.get(&publisher) {
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
        let Ok(copy) = duplicate(eventfd.as_fd()) else { return };
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
        self.publishers.retain(|_, entry| !(entry.ended && entry.readers.is_empty()));
    }
}
