//! Connections and the processes at their other ends.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use zcmi_mem::ledger::FallbackReason;
use zcmi_mem::region::received::{PeerTrust, PeerWakePage, RegionClaim};
use zcmi_mem::region::{PeerRegion, RegionId};

use super::publishers::PublisherEntry;
use super::strangers::Allowance;
use super::subscribers::SubscriberEntry;
use super::{Control, duplicate};
use crate::audience::Identity;
use crate::name::Incarnation;
use crate::process::ExtentGuard;
use crate::socket::{
    ConnectError, Connection, MAX_MESSAGE_BYTES, PeerCredentials, PidfdSource, Received, SendError, SendOutcome,
};
use crate::wire::{Hello, Message, RegionName, VERSION, VERSION_MIN};

/// Connections of our own user that have not said who they are; past this the oldest is closed.
pub(super) const MAX_HALF_OPEN: usize = 32;
/// Messages that wait for a peer to read; past this it is hung up on.
const MAX_OUTBOX: usize = 4096;
/// Messages taken from one connection before others get a turn.
const MAX_TURN: usize = 64;
/// Messages of a dead process that are read from one connection: more than a socket can hold (its send buffer, some
/// 200 KiB by default, takes three hundred of the smallest), so that all is heard that it had said. A forked child of
/// it may go on writing for ever.
const MAX_LAST_WORDS: usize = 4096;
/// Regions that one peer may hand over.
const MAX_PEER_REGIONS: usize = 4096;

/// Names a connection within this process; grows, so that the lowest is the oldest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct LinkId(u64);

/// One control connection.
#[derive(Debug)]
pub(crate) struct Link {
    /// Shared with the seats of publishers, which wake strangers over it.
    connection: Arc<Connection>,
    /// Whose it is, once its hello came (or since we connected to a known name).
    peer: Option<Incarnation>,
    greeted: bool,
    credentials: PeerCredentials,
    identity: Identity,
    /// Regions of ours whose descriptors went over this connection.
    sent: HashSet<RegionId>,
    /// For a stranger: how many more may go.
    allowance: Allowance,
    outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// Whether the system refused to send for a reason that passes.
    held_back: bool,
}

impl Link {
    pub(super) fn is_congested(&self) -> bool {
        !self.outbox.is_empty() && !self.held_back
    }

    pub(super) fn is_held_back(&self) -> bool {
        self.held_back
    }

    /// Whether it was accepted and nobody has said who it is.
    pub(super) fn is_half_open(&self) -> bool {
        !self.greeted && self.peer.is_none()
    }

    /// The user at the other end.
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// A process we have a connection with.
#[derive(Debug)]
pub(crate) struct Peer {
    pidfd: OwnedFd,
    pub(super) pid: u32,
    identity: Identity,
    pub(super) links: Vec<LinkId>,
    regions: HashMap<RegionId, Arc<PeerRegion>>,
    wake_pages: HashMap<RegionId, Arc<PeerWakePage>>,
    /// Regions in which the peer's own subscribers keep blocks: it may name them in a join at any time.
    with_blocks: HashSet<RegionId>,
}

impl Peer {
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it is a process of this user.
    pub(super) fn is_of(&self, uid: u32) -> bool {
        self.identity.uid == uid
    }

    fn is_stranger(&self) -> bool {
        !self.identity.is_own_user()
    }

    /// How many of its regions are mapped here, and their bytes.
    pub(super) fn mapped(&self) -> (usize, u64) {
        (self.regions.len(), self.regions.values().map(|region| region.len() as u64).sum())
    }

    /// Whether the kernel says that it is dead; what cannot be asked lives.
    fn is_dead(&self) -> bool {
        crate::sys::is_dead(self.pidfd()).unwrap_or(false)
    }
}

/// The descriptors that came with a message, in its order.
pub(super) type Descriptors = VecDeque<OwnedFd>;

/// Why a claim about a region was refused; ends the peer's request, not ours.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegionClaimError {
    #[error("a descriptor is missing")]
    Missing,
    #[error("region {0:?} was never handed over")]
    Unknown(RegionId),
    #[error("a process may hand over at most {MAX_PEER_REGIONS} regions")]
    TooMany,
    #[error("user {uid} may hand over at most {limit} regions")]
    TooManyOfUser { uid: u32, limit: usize },
    #[error("with {bytes} bytes more, over {limit} of user {uid} would be mapped")]
    TooLargeOfUser { uid: u32, bytes: u64, limit: u64 },
    #[error("region refused: {0}")]
    Refused(String),
    #[error("region {0:?} was named with another size")]
    Size(RegionId),
}

/// A message under way, with the descriptors it mentions.
#[derive(Debug, Default)]
pub(super) struct Attachments(Vec<OwnedFd>);

impl Attachments {
    pub(super) fn push(&mut self, descriptor: OwnedFd) {
        self.0.push(descriptor);
    }
}

impl Control {
    /// Takes the connections that wait.
    pub(super) fn accept(&mut self) {
        // One connection per turn of the loop for each that is ready; the rest is still ready next time.
        for _ in 0..MAX_TURN {
            let connection = match self.listener.accept() {
                Ok(Some(connection)) => connection,
                Ok(None) => return,
                // Out of descriptors or memory: the backlog keeps what waits, and refuses what it cannot keep.
                Err(_) => {
                    self.accept_later = true;
                    return;
                }
            };
            let (Ok(credentials), Ok(identity)) = (connection.credentials(), connection.identity()) else { continue };
            if !self.admits(&identity) {
                continue;
            }
            // Connecting counts as a message: who does it all the time is not heard in the meantime.
            if !identity.is_own_user() && !self.strangers.take_message(identity.uid) {
                continue;
            }
            self.close_oldest_half_open(&identity);
            let id = self.add_link(connection, credentials, identity, None);
            self.greet(id);
            // Who has said its name by now is not half open, however many come after it.
            self.read_link(id, MAX_TURN);
        }
    }

    fn close_oldest_half_open(&mut self, identity: &Identity) {
        let (most, half_open) = self.half_open(identity);
        if half_open.len() >= most
            && let Some(&oldest) = half_open.iter().min()
        {
            self.drop_link(oldest);
        }
    }

    fn add_link(
        &mut self,
        connection: Connection,
        credentials: PeerCredentials,
        identity: Identity,
        peer: Option<Incarnation>,
    ) -> LinkId {
        let id = LinkId(self.next_link);
        self.next_link += 1;
        let (sent, outbox) = (HashSet::new(), VecDeque::new());
        let connection = Arc::new(connection);
        let link = Link {
            connection,
            peer,
            greeted: false,
            credentials,
            identity,
            sent,
            allowance: Allowance::default(),
            outbox,
            held_back: false,
        };
        self.links.insert(id, link);
        id
    }

    fn greet(&mut self, id: LinkId) {
        let hello = Hello { version_min: VERSION_MIN, version: VERSION, incarnation: self.incarnation };
        self.send(id, &Message::Hello(hello), Attachments::default());
    }

    /// A connection with that process, made if there is none.
    pub(super) fn link_to(&mut self, peer: Incarnation) -> Result<LinkId, ConnectError> {
        if let Some(known) = self.peers.get(&peer) {
            // Its death may be known to the kernel and not yet to us.
            if known.is_dead() {
                return Err(ConnectError::Dead(peer));
            }
            if let Some(&link) = known.links.first() {
                return Ok(link);
            }
        }
        let connection = Connection::connect(&self.directory, peer)?;
        let (credentials, identity) = (connection.credentials()?, connection.identity()?);
        if !self.admits(&identity) {
            return Err(ConnectError::Denied(peer));
        }
        let id = self.add_link(connection, credentials, identity, Some(peer));
        if !self.register_peer(id, peer) {
            self.drop_link(id);
            return Err(ConnectError::Dead(peer));
        }
        // A forked child keeps a dead process's listener open, so that a connection alone proves no life.
        if self.peers.get(&peer).is_some_and(Peer::is_dead) {
            self.drop_link(id);
            return Err(ConnectError::Dead(peer));
        }
        self.greet(id);
        Ok(id)
    }

    /// Notes that the connection leads to that process. Returns whether it does, for all we can see.
    fn register_peer(&mut self, id: LinkId, incarnation: Incarnation) -> bool {
        let Some(link) = self.links.get_mut(&id) else { return false };
        if let Some(peer) = self.peers.get_mut(&incarnation) {
            // A second process cannot take over a name that is in use.
            if peer.pid != link.credentials.pid || peer.identity.uid != link.identity.uid {
                return false;
            }
            peer.links.push(id);
        } else {
            let Ok((pidfd, source)) = link.connection.pidfd() else { return false };
            if source == PidfdSource::PidfdOpen {
                self.ledger.fallback(FallbackReason::NoPidfd);
            }
            let pid = link.credentials.pid;
            let (regions, wake_pages) = (HashMap::new(), HashMap::new());
            let (identity, with_blocks) = (link.identity.clone(), HashSet::new());
            let peer = Peer { pidfd, pid, identity, links: vec![id], regions, wake_pages, with_blocks };
            self.peers.insert(incarnation, peer);
        }
        link.peer = Some(incarnation);
        true
    }

    /// Sends a message, or queues it while the peer's queue is full.
    pub(super) fn send(&mut self, id: LinkId, message: &Message, attachments: Attachments) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.outbox.push_back((message.encode(), attachments.0));
        let most = if link.identity.is_own_user() { MAX_OUTBOX } else { super::strangers::MAX_OUTBOX };
        if link.outbox.len() > most {
            return self.expel(id);
        }
        self.flush(id);
    }

    /// Tries again to send what the system held back.
    pub(super) fn send_held_back(&mut self) {
        let held_back = self.links.iter_mut().filter(|(_, link)| link.held_back);
        let held_back: Vec<LinkId> = held_back.map(|(&id, _)| id).collect();
        for id in held_back {
            if let Some(link) = self.links.get_mut(&id) {
                link.held_back = false;
            }
            self.flush(id);
        }
    }

    /// Sends a message to a process over this connection, or over another if it is gone.
    pub(super) fn send_to(&mut self, peer: Incarnation, link: LinkId, message: &Message) {
        if self.links.contains_key(&link) {
            return self.send(link, message, Attachments::default());
        }
        // Who cannot be reached by any connection is dead, or cut off and counted until it is.
        if let Ok(link) = self.link_to(peer) {
            self.send(link, message, Attachments::default());
        }
    }

    fn flush(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        while let Some((bytes, descriptors)) = link.outbox.front() {
            let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            match link.connection.send(bytes, &borrowed) {
                Ok(SendOutcome::Sent) => drop(link.outbox.pop_front()),
                Ok(SendOutcome::WouldBlock) => return,
                Err(SendError::InFlight) => {
                    // Too many descriptors are under way in the system: not this peer's fault, and soon over.
                    link.held_back = true;
                    return;
                }
                Err(_) => {
                    // What the peer sent before it went is still to be read: the hang-up is noticed by reading.
                    link.outbox.clear();
                    return;
                }
            }
        }
    }

    /// Names the region of an extent of ours in a message over this connection; the descriptor comes along the first
    /// time. Nothing for a peer that is not of the region's audience: nobody else is ever given its descriptor.
    pub(super) fn name_region(
        &mut self,
        id: LinkId,
        extent: &ExtentGuard,
        attachments: &mut Attachments,
    ) -> Option<RegionName> {
        let region = extent.extent().region();
        let mut name = RegionName { id: region.id(), bytes: region.len() as u64, attached: false };
        let link = self.links.get_mut(&id)?;
        if !extent.audience().includes(&link.identity) {
            return None;
        }
        if link.sent.contains(&name.id) {
            return Some(name);
        }
        if !link.identity.is_own_user() && !link.allowance.take() {
            return None;
        }
        if let Some(Ok(descriptor)) = region.descriptor().map(duplicate) {
            link.sent.insert(name.id);
            attachments.push(descriptor);
            name.attached = true;
        }
        Some(name)
    }

    /// Who is at the other end of a connection, if that is another user.
    pub(super) fn stranger_at(&self, id: LinkId) -> Option<&Identity> {
        self.links.get(&id).map(Link::identity).filter(|identity| !identity.is_own_user())
    }

    /// Whether a connection is there and leads to our own user.
    pub(super) fn is_own_user_at(&self, id: LinkId) -> bool {
        self.links.get(&id).is_some_and(|link| link.identity.is_own_user())
    }

    /// The user of a peer, if that is another one.
    pub(super) fn stranger(&self, incarnation: Incarnation) -> Option<&Identity> {
        self.peers.get(&incarnation).filter(|peer| peer.is_stranger()).map(|peer| &peer.identity)
    }

    /// The region that a peer named, received if its descriptor came along.
    pub(super) fn peer_region(
        &mut self,
        incarnation: Incarnation,
        name: &RegionName,
        descriptors: &mut Descriptors,
    ) -> Result<Arc<PeerRegion>, RegionClaimError> {
        let claim = RegionClaim { id: name.id, bytes: name.bytes };
        let stranger = self.stranger(incarnation).map(|identity| identity.uid);
        if let (Some(uid), true) = (stranger, name.attached) {
            self.has_room_for(uid, &claim)?;
        }
        let peer = self.peers.get_mut(&incarnation).ok_or(RegionClaimError::Unknown(name.id))?;
        if name.attached {
            let descriptor = descriptors.pop_front().ok_or(RegionClaimError::Missing)?;
            if peer.regions.len() >= MAX_PEER_REGIONS {
                return Err(RegionClaimError::TooMany);
            }
            match peer.regions.entry(name.id) {
                Entry::Vacant(vacant) => {
                    let trust = if stranger.is_some() { PeerTrust::Stranger } else { PeerTrust::SameUser };
                    match PeerRegion::receive(descriptor, &claim, trust) {
                        Ok(region) => drop(vacant.insert(Arc::new(region))),
                        Err(error) => {
                            let (text, is_forged) = (error.to_string(), !error.reason().is_our_own());
                            self.strangers.close(vec![error.into_descriptor()]);
                            if stranger.is_some() && is_forged {
                                self.strangers.forger = Some(incarnation);
                            }
                            return Err(RegionClaimError::Refused(text));
                        }
                    }
                }
                // Known already: this one was not looked at, and may be anything.
                Entry::Occupied(_) => self.strangers.close(vec![descriptor]),
            }
        }
        let region = peer.regions.get(&name.id).ok_or(RegionClaimError::Unknown(name.id))?;
        if region.len() as u64 != name.bytes {
            return Err(RegionClaimError::Size(name.id));
        }
        Ok(Arc::clone(region))
    }

    /// As [`peer_region`](Self::peer_region), for a wake page.
    pub(super) fn peer_wake_page(
        &mut self,
        incarnation: Incarnation,
        name: &RegionName,
        descriptors: &mut Descriptors,
    ) -> Result<Arc<PeerWakePage>, RegionClaimError> {
        let peer = self.peers.get_mut(&incarnation).ok_or(RegionClaimError::Unknown(name.id))?;
        if name.attached {
            let descriptor = descriptors.pop_front().ok_or(RegionClaimError::Missing)?;
            if peer.wake_pages.len() >= MAX_PEER_REGIONS {
                return Err(RegionClaimError::TooMany);
            }
            if let Entry::Vacant(vacant) = peer.wake_pages.entry(name.id) {
                let claim = RegionClaim { id: name.id, bytes: name.bytes };
                let received = PeerWakePage::receive(descriptor, &claim, PeerTrust::SameUser);
                let page = received.map_err(|error| RegionClaimError::Refused(error.to_string()))?;
                vacant.insert(Arc::new(page));
            }
        }
        peer.wake_pages.get(&name.id).map(Arc::clone).ok_or(RegionClaimError::Unknown(name.id))
    }

    /// Notes that a peer keeps blocks in a region: it stays mapped.
    pub(super) fn keep_for_blocks(&mut self, incarnation: Incarnation, id: RegionId) {
        if let Some(peer) = self.peers.get_mut(&incarnation) {
            peer.with_blocks.insert(id);
        }
    }

    /// Unmaps the publishers' regions that no lane needs any more, and tells their owners to send the descriptor again
    /// when they name one. Not while a join is under way: its answer may name any of them without one.
    pub(super) fn unmap_unused(&mut self) {
        if self.is_forked() {
            return;
        }
        let mut gone: Vec<(Vec<LinkId>, RegionId)> = Vec::new();
        for (&incarnation, peer) in &mut self.peers {
            if self.subscribers.values().any(|subscriber| subscriber.asks(incarnation)) {
                continue;
            }
            let Peer { links, regions, wake_pages, with_blocks, .. } = peer;
            regions.retain(|id, region| {
                let needed = Arc::strong_count(region) > 1 || with_blocks.contains(id);
                if !needed {
                    gone.push((links.clone(), *id));
                }
                needed
            });
            wake_pages.retain(|id, page| {
                let needed = Arc::strong_count(page) > 1;
                if !needed {
                    gone.push((links.clone(), *id));
                }
                needed
            });
        }
        for (links, id) in gone {
            for link in links {
                self.send(link, &Message::Unmapped(id), Attachments::default());
            }
        }
    }

    /// Reads what came over a connection, and writes what waits.
    pub(super) fn serve_link(&mut self, id: LinkId) {
        self.flush(id);
        self.read_link(id, MAX_TURN);
    }

    /// Reads up to `most` messages. Returns whether more may be there.
    fn read_link(&mut self, id: LinkId, most: usize) -> bool {
        let mut buffer = [0; MAX_MESSAGE_BYTES];
        for _ in 0..most {
            let Some(link) = self.links.get(&id) else { return false };
            let received = link.connection.receive(&mut buffer);
            let stranger = (!link.identity.is_own_user()).then_some(link.identity.uid);
            match received {
                Ok(Received::Empty) => return false,
                Ok(Received::Message { len, descriptors }) => {
                    let Ok(message) = Message::decode(&buffer[..len]) else {
                        self.strangers.close(descriptors);
                        self.expel(id);
                        return false;
                    };
                    self.handle(id, message, descriptors.into());
                }
                Ok(Received::Rejected(_, descriptors)) => {
                    self.strangers.close(descriptors);
                    self.expel(id);
                    return false;
                }
                Ok(Received::HungUp) | Err(_) => {
                    self.drop_link(id);
                    return false;
                }
            }
            if stranger.is_some_and(|uid| !self.strangers.take_message(uid)) {
                // The rest waits for the user's next turn.
                return true;
            }
        }
        true
    }

    fn handle(&mut self, id: LinkId, message: Message, mut descriptors: Descriptors) {
        self.act_on(id, message, &mut descriptors);
        // What no message asked for.
        self.strangers.close(descriptors.into());
        self.expel_forger();
    }

    fn act_on(&mut self, id: LinkId, message: Message, descriptors: &mut Descriptors) {
        let Some(link) = self.links.get(&id) else { return };
        if !link.greeted {
            let Message::Hello(hello) = message else { return self.drop_link(id) };
            return self.handle_hello(id, &hello);
        }
        let Some(peer) = link.peer else { return self.drop_link(id) };
        match message {
            Message::Hello(_) => self.drop_link(id),
            Message::Announce(announce) => self.handle_announce(id, peer, &announce),
            Message::Announced { endpoint } => self.introduced(endpoint, peer),
            Message::Join(join) => self.handle_join(id, peer, &join, descriptors),
            Message::Accepted(accepted) => self.handle_accepted(id, peer, &accepted, descriptors),
            Message::Refused(refused) => self.handle_refused(peer, refused),
            Message::MayPark(lane) => self.handle_may_park(id, peer, lane, descriptors),
            Message::ParkNoted(lane) => self.handle_park_noted(peer, lane),
            Message::Leave(lane) => self.handle_leave(peer, lane),
            Message::Unmapped(region) => {
                if let Some(link) = self.links.get_mut(&id) {
                    link.sent.remove(&region);
                }
            }
            Message::OnlyHolds(lane) => self.handle_only_holds(peer, lane),
            Message::Ended { publisher } => self.handle_ended(peer, publisher),
            Message::RoomWaiter { publisher } => self.handle_room_waiter(peer, publisher, descriptors),
            Message::Room { publisher } => self.handle_room(peer, publisher),
            Message::Park { lane, cursor } => self.handle_park(id, peer, lane, cursor),
            Message::Wake(lane) => self.handle_wake(peer, lane),
            Message::Observe => self.handle_observe(id),
            // An observer is no control thread; reports sent to one are nobody's.
            Message::Report { .. } | Message::Ledger { .. } => {}
        }
    }

    fn handle_hello(&mut self, id: LinkId, hello: &Hello) {
        if hello.version < VERSION_MIN || hello.version_min > VERSION {
            return self.drop_link(id);
        }
        let known = self.links.get(&id).and_then(|link| link.peer);
        let lawful = match known {
            Some(expected) => expected == hello.incarnation,
            None => self.is_named_so(id, hello.incarnation) && self.register_peer(id, hello.incarnation),
        };
        match self.links.get_mut(&id) {
            Some(link) if lawful => link.greeted = true,
            _ => self.drop_link(id),
        }
    }

    fn is_named_so(&self, id: LinkId, incarnation: Incarnation) -> bool {
        self.links.get(&id).is_some_and(|link| self.is_its_name(&link.identity, incarnation))
    }

    /// Closes a connection. With the last one of a living peer, that peer is cut off.
    pub(super) fn drop_link(&mut self, id: LinkId) {
        let Some(link) = self.links.remove(&id) else { return };
        self.announced.retain(|announced| !announced.came_by(id));
        let Some(incarnation) = link.peer else { return };
        let Some(peer) = self.peers.get_mut(&incarnation) else { return };
        peer.links.retain(|&other| other != id);
        if peer.is_stranger() {
            // It has only a copying view of our lanes: without it, it is nobody's reader any more.
            for other in std::mem::take(&mut peer.links) {
                self.links.remove(&other);
            }
            for publisher in self.publishers.values_mut() {
                publisher.forget_readers_of(incarnation);
            }
            self.announced.retain(|announced| announced.peer != incarnation);
        } else if !peer.links.is_empty() {
            return;
        }
        self.peer_cut_off(incarnation);
    }

    /// Lets go of the pidfds and mappings of processes that hung up, once no endpoint has to do with them any more.
    pub(super) fn forget_peers(&mut self) {
        let (publishers, subscribers) = (&self.publishers, &self.subscribers);
        self.peers.retain(|&incarnation, peer| {
            !peer.links.is_empty()
                || publishers.values().any(|publisher| publisher.has_reader_of(incarnation))
                || subscribers.values().any(|subscriber| subscriber.reads_from(incarnation))
        });
    }

    /// A hang-up without a death: nothing new comes from that process, and what is shared with it stays as it is.
    fn peer_cut_off(&mut self, incarnation: Incarnation) {
        self.lose_introductions(incarnation);
        for subscriber in self.subscribers.values_mut() {
            subscriber.cut_off(incarnation);
        }
    }

    /// The pidfd says that the process is dead.
    pub(super) fn peer_died(&mut self, incarnation: Incarnation) {
        let Some(peer) = self.peers.get(&incarnation) else { return };
        if !peer.is_dead() {
            return;
        }
        // What it sent before it died counts.
        for id in peer.links.clone() {
            self.read_link(id, MAX_LAST_WORDS);
            if let Some(link) = self.links.remove(&id) {
                drop(link);
            }
        }
        self.lose_introductions(incarnation);
        self.announced.retain(|announced| announced.peer != incarnation);
        for publisher in self.publishers.values_mut() {
            publisher.forget_readers_of(incarnation);
        }
        for subscriber in self.subscribers.values_mut() {
            subscriber.publisher_died(incarnation);
        }
        self.orphans.peer_died(incarnation);
        self.peers.remove(&incarnation);
        self.died.insert(incarnation);
    }

    /// Removes what the processes that died left in the runtime directory, as far as their services are ours too: once
    /// for all that died in this turn.
    pub(super) fn sweep_died(&mut self) {
        if self.died.is_empty() {
            return;
        }
        let publishers = self.publishers.values().map(PublisherEntry::service);
        let services = publishers.chain(self.subscribers.values().map(SubscriberEntry::service));
        let services: HashSet<_> = services.collect();
        self.directory.sweep_dead_of(services, &self.died);
        self.died.clear();
    }

    /// The process number of a peer, for messages to people.
    pub(super) fn pid_of(&self, incarnation: Incarnation) -> u32 {
        self.peers.get(&incarnation).map_or(0, |peer| peer.pid)
    }
}
