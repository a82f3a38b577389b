//! Messages over UDP.
//!
//! One [`UdpTransport`] drives any number of connections: those that it accepts share the socket of their listener and
//! are told apart by their sessions, those that it makes have a socket each. Picture of the datagrams:
//! `docs/layout/datagram.md`.
//!
//! # Reliable or not
//! By default each message arrives once and in order, as over [streams](crate::stream): what is lost is sent again,
//! what comes in another order is put in its place, and a window as TCP's sees to it that a network is not flooded.
//! [`Reliability::Unreliable`] sends once: a message arrives whole or not at all, and completes when it was sent and is
//! free here. What is not received is counted at the receiver, as far as it can know.
//!
//! # Sessions
//! A connection is a session, which outlives silences: when nothing is heard for a while, the side that connected
//! greets again, by a new epoch, and what did not arrive is sent again. Datagrams of an older epoch are dropped.
//!
//! # Slots
//! A credit is a slot that nobody else gets until the peer uses it, or the session ends. Half of the slots are given
//! ahead, at most an equal part to each session that is there then; an eighth goes to peers that have sent a whole
//! message and used what they had. The others are for peers that say that they wait, one at a time and in turn: for
//! those that have not sent a whole message yet all but a quarter, and an eighth of all before others. They must use it
//! within `stall_timeout` if others wait by then, and go on with what they begin: else the session is closed, and a
//! piece that nobody sends again is let go.
//!
//! # Invariants
//! - Nothing is kept for whoever did not show that it hears us at its address.
//! - A datagram counts for its session if word, epoch and address are the session's. Who can read or change what passes
//!   on the way can forge all three: use it inside a network, a tunnel or a VPN that keeps others out.
//! - What the kernel may still read is kept until it says that it does not, whatever becomes of the connection.

#[cfg(test)]
mod claims;
mod datagram;
mod drive;
mod greet;
#[cfg(test)]
mod model;
mod pace;
mod ranges;
mod receive;
mod receiver;
mod sender;
mod session;
mod socket;
mod sys;
mod told;

use core::fmt;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::SocketAddrAny;
use zcmi_mem::lease::LeaseMut;
use zcmi_mem::pool::{PoolError, Slot};
use zcmi_mem::region::{OutOfRegion, Region};
use zcmi_mem::registration::Support;

use self::datagram::{Head, Kind};
use self::greet::{Cookies, PROOF_DATAGRAM, word_of};
use self::pace::Nanos;
use self::session::Session;
use self::socket::DatagramSocket;
use crate::frame::{Hello, MESSAGE_BYTES};
use crate::key::Key;
use crate::link::{Happened, LinkError, LinkLimits, PathCounts};
use crate::links::Board;
use crate::outgoing::{Kept, NotTaken, Payload, SubmitError, Token};
use crate::path::{PathKind, Refusals};
use crate::refused::Refused;
use crate::select::{self, Choosing, Experiences, Objective, Selection, Selector};
use crate::shared::{RingHandle, SharedRing};
use crate::sleep::{BUSY_POLL, Waits};
use crate::slots::{InLine, SlotCounts, SlotPlan, Slots};
use crate::transport::{
    Capabilities, Closed, ConnectionId, Destination, Event, ListenerId, Transport, TransportError, UNTRUSTED,
};
use crate::uring::Ring;

pub use self::socket::DatagramCounts;
pub(crate) use self::sys::SegmentControl;

/// The longest piece unless somebody says otherwise: as much as fills four of the longest datagrams, so that a call
/// carries as much as it can where such datagrams pass.
const SLOT_BYTES: u32 = 4 * socket::MOST_SEGMENT as u32;
/// What takes a small slot is copied into it, so that this is less than for streams.
const SMALL_BYTES: u32 = 4096;
/// After so long those that wait for slots are looked at again, though the slots stand as they did.
const FED: Nanos = 10 * pace::MS;
/// Events of one look at the descriptor.
const EVENTS: usize = 64;
/// How long the kernel may take to say that it is done with pages, when the transport is dropped.
const SETTLING: Duration = Duration::from_millis(200);
/// How often a transport looks for free slots or late notifications while it waits for either.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// How long a socket stays after its connection, to answer a peer that did not hear the last word.
const LEAVING: Nanos = 2_000 * pace::MS;
/// Sessions that are remembered after their end, so that no old greeting begins them anew, and a peer that did not hear
/// the last word learns how they ended.
const GONE: usize = 4096;

/// The paths that datagrams can go by, of which the cheapest is looked for.
const PATHS: &[PathKind] = &[PathKind::Write, PathKind::ZeroCopy, PathKind::UringZeroCopy, PathKind::UringFixed];
/// The key of the ring among what is watched.
const RING: u64 = u64::MAX;

/// Whether what is lost is sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reliability {
    /// It is; messages arrive once, and in the order of their streams.
    #[default]
    Reliable,
    /// It is not; messages are no longer than a slot of the peer, and arrive whole or not at all, in any order.
    Unreliable,
    /// It is not, and messages leave at this rate whatever the network and the peer take: nobody is asked what came.
    /// Only where that capacity is known to be there, else others suffer.
    ConstantRate {
        /// Bytes a second of datagrams, heads included; `u64::MAX` for as fast as can be.
        bytes_per_s: u64,
    },
}

/// How a transport over UDP is made.
#[derive(Clone, Debug)]
pub struct UdpOptions {
    /// Its memory.
    pub slots: SlotPlan,
    /// What each connection may take.
    pub limits: LinkLimits,
    /// The key that both sides must have.
    pub key: Option<Key>,
    /// Whether peers on other hosts are talked with although there is no key.
    pub insecure: bool,
    /// The path that is used whenever it can be, `sendfile` and `splice` excepted; none for the one that costs least.
    pub path: Option<PathKind>,
    /// Whether what this side sends is sent again when it is lost.
    pub reliability: Reliability,
    /// Whether several datagrams go by one call, where the kernel can cut them.
    pub trains: bool,
    /// Bytes of payload in a datagram at most; `None` for what the path takes.
    pub segment_bytes: Option<u32>,
    /// How many connections may exist.
    pub connections: usize,
    /// How long a greeting may take.
    pub greeting_timeout: Duration,
    /// How long a peer may be silent that owes an answer, until the connection counts as broken.
    pub silence: Duration,
    /// How long a broken connection is mended before it is given up; zero for not at all.
    pub resume_for: Duration,
    /// How long nothing need be heard until the peer is asked whether it is there.
    pub keep_alive: Duration,
    /// How long a peer may take to go on (4 KiB more) with a piece that it began, or to use a slot that it waited for
    /// while others wait, or to send 4 KiB of something else then. It is looked at so often: after one to two times as
    /// long the connection is closed, or two to three times if the peer was away meanwhile; of a peer that sends
    /// nothing again the piece is let go.
    pub stall_timeout: Duration,
    /// Room asked for in each socket, for either direction. What came of it is in the facts.
    pub socket_bytes: usize,
    /// Whether other processes of this user may read how each connection does ([`links`](crate::links)).
    pub told: bool,
    /// Who waits looks again and again for so long before it sleeps (busy polling), as long as that is enough more
    /// often than not; whether it is, is tried from time to time. Zero has it sleep at once.
    pub busy_poll: Duration,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self {
            slots: SlotPlan { small_bytes: SMALL_BYTES, slot_bytes: SLOT_BYTES, ..SlotPlan::default() },
            limits: LinkLimits::default(),
            key: None,
            insecure: false,
            path: None,
            reliability: Reliability::Reliable,
            trains: true,
            segment_bytes: None,
            connections: 16_384,
            greeting_timeout: Duration::from_secs(5),
            silence: Duration::from_secs(1),
            resume_for: Duration::from_secs(10),
            keep_alive: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(20),
            socket_bytes: 4 << 20,
            told: true,
            busy_poll: BUSY_POLL,
        }
    }
}

/// What a connection has done, and how it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpFacts {
    /// What its socket sent and received; a listener's connections share it.
    pub socket: DatagramCounts,
    /// Messages that have not completed.
    pub unfinished: usize,
    /// How often it was mended.
    pub epoch: u32,
    /// Bytes of payload in a datagram.
    pub segment_bytes: u32,
    /// Room that the socket has for what is received, and for what is sent, as the kernel counts it.
    pub socket_bytes: (usize, usize),
    /// The smoothed round trip.
    pub round_trip: Duration,
    /// The congestion window in bytes.
    pub window_bytes: u64,
    /// Datagrams that were taken to be lost.
    pub lost: u64,
    /// Times that nothing was heard.
    pub silences: u64,
    /// Bytes of payload that were sent again.
    pub again_bytes: u64,
    /// Pieces received.
    pub pieces_received: u64,
    /// Bytes of payload received.
    pub bytes_received: u64,
    /// Bytes of payload that were received where they live.
    pub in_place: u64,
    /// Bytes of payload that were copied in user space.
    pub copied_user: u64,
    /// Datagrams that came twice.
    pub known: u64,
    /// Datagrams, or unreliable messages, for which there was no room.
    pub dropped: u64,
    /// Why each path was refused first.
    pub refusals: Refusals,
}

/// What came to a transport and was none of its sessions'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StrayCounts {
    /// Bytes that are no datagram of ours.
    pub foreign: u64,
    /// Datagrams of no session that we know, or from another address than the session's.
    pub unknown: u64,
    /// Datagrams of another epoch.
    pub old_epoch: u64,
    /// Greetings that proved nothing.
    pub unproved: u64,
    /// Greetings from other hosts, which are not served without a key.
    pub untrusted: u64,
    /// Greetings for which there was no room.
    pub too_many: u64,
}

/// A greeting of the side that connects.
struct Greeting {
    ours: Hello,
    proof: Option<Box<[u8; PROOF_DATAGRAM]>>,
    tries: u32,
    next: Nanos,
}

enum Stage {
    /// The side that connects greets.
    Greeting(Box<Greeting>),
    /// It works.
    Open,
    /// Nothing is heard; the side that accepted waits.
    Silent,
}

struct Connection {
    socket: usize,
    /// Where to send; none on a socket that is connected.
    to: Option<SocketAddrAny>,
    peer: SocketAddr,
    accepted: bool,
    name: [u8; 16],
    session: Session,
    stage: Stage,
    /// Incarnation and sizes of the other side, once it said hello.
    theirs: Option<([u8; 16], u32, u32)>,
    announced: bool,
    /// When a greeting, or the mending, is given up.
    deadline: Option<Nanos>,
    broken: Option<String>,
    last_heard: Nanos,
    /// Bytes of payload in the peer's datagrams.
    their_segment: u32,
    timer: Option<Nanos>,
    is_dirty: bool,
    is_starved: bool,
    /// What it waits for among others.
    in_line: Option<InLine>,
    /// When it is looked at whether the peer went on.
    watched: Option<Nanos>,
    /// Nothing passes, for tests.
    is_deaf: bool,
    choosing: Choosing,
    /// What was sent by each path, in the order of [`PathKind::ALL`].
    done: [PathCounts; PathKind::ALL.len()],
    submitted: u64,
    /// Trains that were copied because too much was pinned.
    over_budget: u64,
    refused: Refused,
    /// Its row on the board, if it has one, and the address here that the row names.
    row: Option<u16>,
    local: Option<SocketAddr>,
}

struct Place {
    socket: DatagramSocket,
    /// Whose it is; none of a listener's.
    owner: Option<u64>,
    listens: bool,
    /// Whether it listens and takes new sessions.
    accepts: bool,
    /// The connection whose bytes are expected next.
    expects: Option<u64>,
    /// Connections that wait until the socket takes more.
    blocked: Vec<u64>,
    is_readable: bool,
    leaves_at: Option<Nanos>,
}

/// What a connection left behind that the kernel still reads.
struct Orphan {
    kept: Vec<Kept>,
    owed: usize,
}

/// A transport over UDP. See the module's documentation.
pub struct UdpTransport {
    options: UdpOptions,
    incarnation: [u8; 16],
    cookies: Cookies,
    began: Instant,
    slots: Slots,
    epoll: OwnedFd,
    /// The ring of all sockets.
    ring: RingHandle,
    ring_is_watched: bool,
    /// Sockets by the ring's names for them.
    by_key: FxHashMap<u32, usize>,
    places: Vec<Option<Place>>,
    connections: FxHashMap<u64, Box<Connection>>,
    experiences: RefCell<Experiences<IpAddr>>,
    next_key: u64,
    /// Accepted sessions by their word.
    words: HashMap<u64, u64>,
    /// Sessions that are over, the oldest first.
    gone: VecDeque<u64>,
    /// How many pieces had come to them, if they ended well.
    gone_words: HashMap<u64, Option<u64>>,
    dirty: Vec<u64>,
    starved: VecDeque<u64>,
    /// How the slots stood when all of them had been looked at in vain, and when that was.
    fed: Option<((SlotCounts, [bool; 2]), Nanos)>,
    timers: BTreeSet<(Nanos, u64)>,
    orphans: FxHashMap<u64, Orphan>,
    strays: StrayCounts,
    gathered: Vec<epoll::Event>,
    waits: Waits,
    /// What came of a call other than a poll; the next poll tells it.
    later: Vec<Event>,
    happened: Vec<Happened>,
    flat: Vec<u8>,
    released: Vec<(u64, u64, u32)>,
    /// Resets that this poll may still send.
    resets: u32,
    board: Option<Board>,
}

impl fmt::Debug for UdpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpTransport")
            .field("connections", &self.connections.len())
            .field("orphans", &self.orphans.len())
            .field("strays", &self.strays)
            .finish_non_exhaustive()
    }
}

fn failed(call: &'static str) -> impl Fn(Errno) -> TransportError {
    move |errno| TransportError::System { call, source: errno.into() }
}

fn random<const N: usize>() -> Result<[u8; N], TransportError> {
    let mut bytes = [0; N];
    let filled =
        rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()));
    match filled {
        Ok(filled) if filled == N => Ok(bytes),
        Ok(_) => Err(failed("getrandom")(Errno::IO)),
        Err(errno) => Err(failed("getrandom")(errno)),
    }
}

fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
}

impl UdpTransport {
    /// Makes a transport without connections.
    ///
    /// # Errors
    /// [`TransportError`] if memory or descriptors cannot be had.
    pub fn new(options: UdpOptions) -> Result<Self, TransportError> {
        let cookies = Cookies::new(random()?).ok_or_else(|| failed("making a key of a secret")(Errno::INVAL))?;
        let (slots, ring) = (Slots::new(&options.slots)?, RingHandle::new(SharedRing::new().into()));
        slots.regions().for_each(|region| ring.borrow_mut().add_region(region));
        Ok(Self {
            ring,
            ring_is_watched: false,
            by_key: FxHashMap::default(),
            incarnation: random()?,
            cookies,
            began: Instant::now(),
            slots,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("epoll_create"))?,
            places: Vec::new(),
            connections: FxHashMap::default(),
            experiences: RefCell::default(),
            next_key: 0,
            words: HashMap::new(),
            gone: VecDeque::new(),
            gone_words: HashMap::new(),
            dirty: Vec::new(),
            starved: VecDeque::new(),
            fed: None,
            timers: BTreeSet::new(),
            orphans: FxHashMap::default(),
            strays: StrayCounts::default(),
            gathered: Vec::with_capacity(EVENTS),
            waits: Waits::new(options.busy_poll),
            later: Vec::new(),
            happened: Vec::new(),
            flat: Vec::new(),
            released: Vec::new(),
            resets: 0,
            board: if options.told { Some(Board::new()?) } else { None },
            options,
        })
    }

    /// Accepts connections at an address. Port 0 takes a free one, which the answer names.
    ///
    /// # Errors
    /// [`TransportError`] if nobody may or can listen there.
    pub fn listen(&mut self, address: SocketAddr) -> Result<(ListenerId, SocketAddr), TransportError> {
        self.check_trust(&address)?;
        let socket = self.socket(&address)?;
        socket.bind(&address).map_err(failed("bind"))?;
        let bound = socket.address().unwrap_or(address);
        let place = self.place(socket, None, true)?;
        Ok((self.listener(place), bound))
    }

    /// Accepts no more connections; those that exist stay, and are mended when they break. The socket goes some seconds
    /// after the last of them, so that a last word that was lost can be said again.
    pub fn stop_listening(&mut self, listener: ListenerId) {
        let (index, now) = ((listener.0 & 0xffff_ffff) as usize, self.now());
        if self.listener(index) == listener
            && let Some(Some(place)) = self.places.get_mut(index)
        {
            place.accepts = false;
            self.see_off_if_unused(index, now);
        }
    }

    /// What a listener is called: its place, and what tells its socket from those that had the place before.
    fn listener(&self, index: usize) -> ListenerId {
        let place = self.places.get(index).and_then(Option::as_ref).filter(|place| place.listens);
        ListenerId(place.map_or(u64::MAX, |place| u64::from(place.socket.key()) << 32 | index as u64))
    }

    /// Begins a connection. [`Event::Connected`] or [`Event::Closed`] tells what came of it; messages may be submitted
    /// at once.
    ///
    /// # Errors
    /// [`TransportError`] if it cannot even be tried.
    pub fn connect(&mut self, address: SocketAddr) -> Result<ConnectionId, TransportError> {
        self.slots.check_fork()?;
        self.check_trust(&address)?;
        if self.connections.len() >= self.options.connections {
            return Err(TransportError::TooMany { connections: self.connections.len() });
        }
        let socket = self.socket(&address)?;
        socket.connect(&address).map_err(failed("connect"))?;
        let (segment, buffers) = (socket.segment(), socket.buffers());
        let (name, now) = (random()?, self.now());
        let key = self.next_key;
        let place = self.place(socket, Some(key), false)?;
        let mut connection = self.connection(place, None, address, name, (segment, buffers.0), now);
        let hello = self.hello(name, 0, random()?);
        connection.stage = Stage::Greeting(Box::new(Greeting { ours: hello, proof: None, tries: 0, next: now }));
        connection.deadline = Some(now + nanos(self.options.greeting_timeout));
        self.keep(connection);
        Ok(ConnectionId(key))
    }

    /// What a connection has done.
    #[must_use]
    pub fn facts(&self, connection: ConnectionId) -> Option<UdpFacts> {
        let connection = self.connections.get(&connection.0)?;
        let (sender, counts) = (&connection.session.sender, connection.session.receiver.counts);
        let socket = self.places.get(connection.socket)?.as_ref().map(|place| &place.socket)?;
        Some(UdpFacts {
            socket: socket.counts,
            unfinished: sender.unfinished(),
            epoch: connection.session.epoch,
            segment_bytes: sender.segment(),
            socket_bytes: socket.buffers(),
            round_trip: Duration::from_nanos(sender.pace.round_trip()),
            window_bytes: sender.pace.window(),
            lost: sender.lost,
            silences: sender.silences,
            again_bytes: sender.again_bytes,
            pieces_received: counts.pieces,
            bytes_received: counts.bytes,
            in_place: counts.in_place,
            copied_user: counts.copied,
            known: counts.known,
            dropped: counts.dropped,
            refusals: connection.refused.reasons().clone(),
        })
    }

    /// What is chosen for a connection's large datagrams and why, if there is a choice and something was measured.
    #[must_use]
    pub fn selection(&self, connection: ConnectionId) -> Option<Selection> {
        self.connections.get(&connection.0)?.choosing.selection()
    }

    /// How the slots of the transport stand.
    pub fn slot_counts(&mut self) -> SlotCounts {
        self.slots.counts()
    }

    /// What came and was no session's.
    #[must_use]
    pub fn strays(&self) -> StrayCounts {
        self.strays
    }

    /// Has nothing pass any more, either way, until the connection was mended, as a dead path would.
    #[doc(hidden)]
    pub fn break_off(&mut self, connection: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&connection.0) {
            connection.is_deaf = true;
        }
    }

    fn now(&self) -> Nanos {
        nanos(self.began.elapsed())
    }

    fn check_trust(&self, address: &SocketAddr) -> Result<(), TransportError> {
        if self.options.key.is_some() || self.options.insecure || address.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        Err(TransportError::Address { address: address.to_string(), reason: UNTRUSTED })
    }

    fn socket(&self, address: &SocketAddr) -> Result<DatagramSocket, TransportError> {
        let socket = DatagramSocket::new(address, self.options.socket_bytes, &self.ring);
        let mut socket = socket.map_err(failed("socket"))?;
        if matches!(self.options.path, None | Some(PathKind::ZeroCopy)) && socket.allow_zero_copy().is_err() {
            socket.counts.refused_zero_copy += 1;
        }
        if !self.options.trains {
            socket.refuse_trains();
        }
        Ok(socket)
    }

    fn place(&mut self, socket: DatagramSocket, owner: Option<u64>, listens: bool) -> Result<usize, TransportError> {
        let index = self.places.iter().position(Option::is_none).unwrap_or(self.places.len());
        epoll::add(&self.epoll, &socket, EventData::new_u64(index as u64), EventFlags::IN)
            .map_err(failed("epoll_ctl"))?;
        let place = Place {
            socket,
            owner,
            listens,
            accepts: listens,
            expects: owner,
            blocked: Vec::new(),
            is_readable: false,
            leaves_at: None,
        };
        if index == self.places.len() {
            self.places.push(None);
        }
        self.by_key.insert(place.socket.key(), index);
        self.places[index] = Some(place);
        Ok(index)
    }

    fn hello(&self, session: [u8; 16], epoch: u32, nonce: [u8; 32]) -> Hello {
        let (small_bytes, slot_bytes) = self.slots.sizes();
        Hello {
            incarnation: self.incarnation,
            session,
            epoch,
            resume_from: 0,
            small_bytes,
            slot_bytes,
            streams: self.options.limits.streams,
            granted: [0; 2],
            nonce,
            proof: [0; 32],
        }
    }

    fn connection(
        &self,
        socket: usize,
        to: Option<SocketAddrAny>,
        peer: SocketAddr,
        name: [u8; 16],
        (segment, receive_bytes): (u32, usize),
        now: Nanos,
    ) -> Connection {
        let segment = self.options.segment_bytes.map_or(segment, |most| segment.min(most.max(64)));
        // Half of what the kernel says is its own bookkeeping.
        let window = u32::try_from(receive_bytes / 2).unwrap_or(u32::MAX);
        Connection {
            socket,
            accepted: to.is_some(),
            to,
            peer,
            name,
            session: Session::new(
                word_of(&name),
                &self.options.limits,
                self.options.reliability,
                segment,
                window,
                &self.slots,
                now,
            ),
            stage: Stage::Open,
            theirs: None,
            announced: false,
            deadline: None,
            broken: None,
            last_heard: now,
            their_segment: 0,
            timer: None,
            is_dirty: false,
            is_starved: false,
            in_line: None,
            watched: None,
            is_deaf: false,
            done: [PathCounts::default(); PathKind::ALL.len()],
            submitted: 0,
            over_budget: 0,
            refused: Refused::default(),
            row: None,
            local: None,
            choosing: match self.options.path {
                Some(PathKind::SendFile | PathKind::Splice) => Choosing::Forced(PathKind::Write),
                Some(path) => Choosing::Forced(path),
                None => {
                    let mut choosing = Choosing::among(PATHS, Objective::default());
                    choosing.learn_from(&self.experiences.borrow_mut().of(peer.ip()));
                    choosing
                }
            },
        }
    }

    fn keep(&mut self, connection: Connection) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        self.connections.insert(key, Box::new(connection));
        self.enter_board(key);
        self.make_dirty(key);
        key
    }

    fn make_dirty(&mut self, key: u64) {
        if let Some(connection) = self.connections.get_mut(&key)
            && !core::mem::replace(&mut connection.is_dirty, true)
        {
            self.dirty.push(key);
        }
    }

    /// Takes what the kernel has to tell, waiting at most `wait`. Returns how much it was.
    fn gather(&mut self, wait: Option<Duration>) -> Result<usize, TransportError> {
        self.gathered.clear();
        let count = match self.waits.epoll(&self.epoll, wait, &mut self.gathered).0 {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(errno) => return Err(failed("epoll_wait")(errno)),
        };
        for at in 0..self.gathered.len() {
            let (index, flags) = (self.gathered[at].data.u64(), self.gathered[at].flags);
            if index == RING {
                // What it has is asked for in each turn.
                continue;
            }
            let index = index as usize;
            let Some(Some(place)) = self.places.get_mut(index) else { continue };
            place.is_readable |= flags.intersects(EventFlags::IN | EventFlags::ERR | EventFlags::HUP);
            if flags.intersects(EventFlags::OUT) {
                let blocked = core::mem::take(&mut place.blocked);
                let data = EventData::new_u64(index as u64);
                epoll::modify(&self.epoll, &place.socket, data, EventFlags::IN).map_err(failed("epoll_ctl"))?;
                blocked.into_iter().for_each(|key| self.make_dirty(key));
            }
        }
        Ok(count)
    }

    fn is_busy(&self) -> bool {
        let has_news = self.ring.borrow_mut().opened().is_some_and(Ring::has_news);
        has_news || !self.dirty.is_empty() || self.places.iter().flatten().any(|place| place.is_readable)
    }

    /// Whether a path can be used over UDP on this host.
    fn support(&self, path: PathKind) -> Support {
        match path {
            PathKind::Write => Support::Yes,
            PathKind::ZeroCopy => {
                let tried = "127.0.0.1:0".parse().ok().map(|address| {
                    let socket = DatagramSocket::new(&address, 4096, &self.ring).map_err(|errno| errno.to_string());
                    socket.and_then(|mut socket| socket.allow_zero_copy())
                });
                match tried {
                    Some(Ok(())) => Support::Yes,
                    Some(Err(reason)) => Support::No(reason.into()),
                    None => Support::Unknown("no address to try it at".into()),
                }
            }
            PathKind::SendFile | PathKind::Splice => Support::No("datagrams are not sent from files".into()),
            _ => self.ring.borrow().support(path),
        }
    }
}

impl Transport for UdpTransport {
    fn loan(&mut self, bytes: usize) -> Result<LeaseMut<[u8]>, PoolError> {
        self.slots.loan(bytes)
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<(), OutOfRegion> {
        let known = self.slots.regions().count();
        if self.slots.add_region(region)? == known {
            self.ring.borrow_mut().add_region(region);
        }
        Ok(())
    }

    fn submit(&mut self, to: Destination, payload: Payload, token: Token) -> Result<(), NotTaken> {
        let key = to.connection.0;
        let Some(connection) = self.connections.get_mut(&key) else {
            return Err(NotTaken { payload, reason: SubmitError::NoConnection(key) });
        };
        if connection.session.sender.unfinished() == 0 {
            connection.choosing.tell(Selector::resumes);
        }
        let bytes = payload.bytes().len();
        connection.session.sender.submit(to.stream, to.tag, payload, token)?;
        self.waits.moved(bytes);
        connection.submitted += 1;
        self.make_dirty(key);
        Ok(())
    }

    fn poll(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> Result<usize, TransportError> {
        self.slots.check_fork()?;
        let begin = events.len();
        events.append(&mut self.later);
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.resets = 16;
        self.gather(Some(Duration::ZERO))?;
        loop {
            self.work(events)?;
            if events.len() > begin {
                return Ok(events.len() - begin);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(0);
            }
            let wait = if self.is_busy() { Some(Duration::ZERO) } else { self.wait_at_most(deadline) };
            self.gather(wait)?;
        }
    }

    fn close(&mut self, connection: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&connection.0) {
            connection.session.sender.close();
        }
        self.make_dirty(connection.0);
    }

    fn abort(&mut self, connection: ConnectionId) {
        let mut later = core::mem::take(&mut self.later);
        self.close_with(connection.0, Closed::Aborted, &mut later);
        self.later = later;
    }

    fn capabilities(&self) -> Capabilities {
        let paths = PathKind::ALL.map(|path| (path, self.support(path)));
        let piece_bytes = self.slots.sizes().1;
        let message_bytes = match self.options.reliability {
            Reliability::Reliable => MESSAGE_BYTES,
            // As far as the peer has slots of our size.
            Reliability::Unreliable | Reliability::ConstantRate { .. } => piece_bytes,
        };
        Capabilities { paths: paths.into(), receiving: Vec::new(), message_bytes, piece_bytes }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Drop for UdpTransport {
    fn drop(&mut self) {
        if self.slots.check_fork().is_err() {
            // The sockets are the parent's; here they are only closed.
            return;
        }
        let keys: Vec<u64> = self.connections.keys().copied().collect();
        for key in keys {
            self.close_with(key, Closed::Aborted, &mut Vec::new());
        }
        let until = Instant::now() + SETTLING;
        while !self.orphans.is_empty() && Instant::now() < until {
            self.settle();
            // Notifications wake the descriptor.
            if self.gather(Some(LOOK_AGAIN)).is_err() {
                break;
            }
        }
        // Where the kernel has not said that it is done, slots stay as they are.
        for (_, Orphan { kept, .. }) in self.orphans.drain() {
            core::mem::forget(kept);
        }
        self.places.iter_mut().flatten().for_each(|place| place.socket.forget_flights());
    }
}
