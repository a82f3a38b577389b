//! Messages over TCP and Unix stream sockets.
//!
//! One [`StreamTransport`] drives any number of connections with one epoll descriptor. Sockets are watched by edges:
//! each is registered once, and read or written until it says that nothing more is there.
//!
//! # Sessions
//! A connection is a session, which outlives its socket: when that breaks, the side that connected dials again, both
//! say what they received, and what did not arrive is sent again. So each message arrives once, or the connection is
//! [closed](crate::transport::Closed) with a reason and its messages [fail](Event::Failed).
//!
//! # Slots
//! A credit is a slot that nobody else gets until the peer uses it, or its socket is gone. So a peer that is not known
//! yet is given few (8 small and 1 large at most), and one more for each piece that it has sent.
//!
//! ```text
//! slots of a class │ given ahead, until half of all are out │ to peers that wait │ to peers that wait and have sent │
//! ```
//!
//! Of the second half only peers are given some that say that they wait, one at a time, and these must use it within
//! `stall_timeout`; the last quarter is for those that have sent a piece before, half of it ahead, a few at a time, so
//! that their messages need not ask first whatever strangers hold. What they ask for beyond comes when slots are free
//! again, in turn. While newcomers wait, an eighth of all is theirs before that, because those that work always ask
//! for more. Strangers that take what they can slow down newcomers so, by `stall_timeout` for each round of the
//! quarter that newcomers share, and leave a quarter of the slots at least to the connections that work.
//!
//! Headers are shared alike: a connection whose peer acknowledges nothing takes as many as it leaves to others.
//!
//! # Invariants
//! - What a broken socket may still read is kept until the kernel says that it does not, whatever becomes of the
//!   connection or of the transport ([`Orphan`]).
//! - A peer that is slow, silent or hostile costs its own connection: turns are bounded, greetings are bounded in
//!   number and time, what was begun must go on, and half of the slots cannot be held by who does not use them.
//! - In a forked child nothing here speaks in the parent's name: it answers [`Forked`](TransportError::Forked), or does
//!   nothing.

mod address;
mod drive;
mod ended;
mod hurry;
mod places;
mod told;
mod wire;

use core::fmt;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use zcmi_mem::lease::LeaseMut;
use zcmi_mem::pool::PoolError;
use zcmi_mem::region::{OutOfRegion, Region};
use zcmi_mem::registration::Support;

pub use address::Address;
use address::failed;

use crate::frame::{Hello, MESSAGE_BYTES};
use crate::greeting::{ENDED_SESSION, Greeted, Greeting, UNKNOWN_SESSION};
use crate::incoming::PeerFault;
use crate::key::Key;
use crate::link::{Happened, Link, LinkCounts, LinkError, LinkLimits, Orphan, Progress, Readiness};
use crate::links::Board;
use crate::outgoing::{NotTaken, Payload, SubmitError, Token};
use crate::path::{PathKind, Refusals};
use crate::receive_paths::receive_paths;
use crate::select::{Experiences, Objective, Selection};
use crate::shared::{RingHandle, SharedRing};
use crate::sleep::{BUSY_POLL, Waits};
use crate::slots::{InLine, SlotCounts, SlotPlan, Slots};
use crate::socket::{self, SocketWire};
use crate::transport::{
    Capabilities, Closed, ConnectionId, Destination, Event, ListenerId, Transport, TransportError, UNTRUSTED,
};
use crate::uring;
use crate::wire::Wire;
use ended::EndedSessions;
use places::{Places, mark};
use wire::StreamWire;

/// Events of one look at the descriptor.
const EVENTS: usize = 256;
/// Sockets that one look at a listener accepts.
const ACCEPTS: usize = 64;
/// How long a socket lingers after its end until the peer's end comes, so that the peer reads everything.
const LEAVING: Duration = Duration::from_secs(2);
/// The shortest time after which a peer's host is asked whether it is there.
const LEAST_KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How long the host has to answer: so long the kernel goes on asking one to which nothing is sent.
const ANSWERING: Duration = Duration::from_secs(5);
/// How long the kernel may take to say that it is done with the pages of a broken socket, when the transport is
/// dropped.
const SETTLING: Duration = Duration::from_millis(200);
/// How often a transport looks for free slots or late notifications while it waits for either.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// How long nobody is accepted when there are no descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(20);
/// The part of its time that a greeting has in any case.
const GREETING_PART: u32 = 16;
/// Turns that are finished although the time of a poll is up.
const LATE_TURNS: u32 = 16;
/// The key of the ring among what is watched.
const RING: u64 = u64::MAX;
/// Every so many turns the descriptor is looked at although something is ready.
const LOOKS: u32 = 8;
/// What a wait cost is told to those that something came for, if they are no more than these.
const WAITERS: usize = 8;
/// Between the first attempts to mend a connection; each waits twice as long as the one before.
const FIRST_REDIAL: Duration = Duration::from_millis(5);
/// The longest time between attempts.
const LAST_REDIAL: Duration = Duration::from_secs(1);

/// How a transport over streams is made.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Its memory.
    pub slots: SlotPlan,
    /// What each connection may take.
    pub limits: LinkLimits,
    /// The key that both sides must have.
    pub key: Option<Key>,
    /// Whether peers on other hosts are talked with although there is no key.
    pub insecure: bool,
    /// The path that is used whenever it can be; none for the best.
    pub path: Option<PathKind>,
    /// Whose processor time counts when the best is chosen.
    pub objective: Objective,
    /// How many connections may exist.
    pub connections: usize,
    /// How many sockets may be greeting at a time. When there are as many, one that has greeted for longer than a
    /// sixteenth of `greeting_timeout` gives way to the next that comes.
    pub greetings: usize,
    /// How long a greeting may take. So long an attempt to mend a connection may take, too: another follows.
    pub greeting_timeout: Duration,
    /// After how much silence a TCP peer's host is asked whether it still is there (a second at least). When five
    /// seconds later it has not answered, or for as long has acknowledged nothing of what was sent, the socket is given
    /// up as if it had broken. The host answers also for a program that does nothing. Zero for never.
    pub keep_alive: Duration,
    /// How long a broken connection is mended before it is given up; zero for not at all.
    pub resume_for: Duration,
    /// Bytes of leases that may be [quarantined](StreamTransport::quarantined_bytes). All connections together have no
    /// more under way by paths that only an acknowledgement ends (`sendfile`, `splice`) than are left of them, but for
    /// one lease that is longer, alone; beyond that they copy, which is counted.
    pub quarantine_bytes: u64,
    /// Whether other processes of this user may read how each connection does ([`links`](crate::links)).
    pub told: bool,
    /// How long a peer may take to go on with a piece that it began, or to use a slot that it waited for. It goes on
    /// when the piece is whole, or 4 KiB more of it are there; if it does not, its socket is given up as if it had
    /// broken.
    pub stall_timeout: Duration,
    /// Who waits looks again and again for so long before it sleeps (busy polling), as long as that is enough more
    /// often than not; whether it is, is tried from time to time. Zero has it sleep at once.
    pub busy_poll: Duration,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            slots: SlotPlan::default(),
            limits: LinkLimits::default(),
            key: None,
            insecure: false,
            path: None,
            objective: Objective::default(),
            connections: 16_384,
            greetings: 256,
            greeting_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(5),
            resume_for: Duration::from_secs(10),
            quarantine_bytes: 32 << 20,
            told: true,
            stall_timeout: Duration::from_secs(20),
            busy_poll: BUSY_POLL,
        }
    }
}

/// What a connection is doing.
enum Stage {
    /// Its socket is connecting, or greeting.
    Greeting { wire: Box<StreamWire>, greeting: Box<Greeting>, promised: [u32; 2] },
    /// It works; the link has the wire.
    Open,
    /// It is broken; the connecting side dials at `next`, the accepting side waits.
    Broken { next: Option<Instant> },
}

impl Connection {
    /// Whether nobody could bring it another socket.
    fn cannot_resume(&self) -> bool {
        self.origin.is_none() && !self.accepted
    }
}

struct Connection {
    /// Whether the other side connected.
    accepted: bool,
    link: Link<StreamWire>,
    stage: Stage,
    session: [u8; 16],
    /// The other side's incarnation and slots, once it said hello.
    peer: Option<Peer>,
    epoch: u32,
    /// Where to dial, on the side that connects.
    origin: Option<Address>,
    /// Whether there was a socket that worked.
    announced: bool,
    /// When a greeting, or the mending, is given up.
    deadline: Option<Instant>,
    broken: Option<String>,
    /// When the attempt to mend it that is under way is given up for another.
    attempt: Option<Instant>,
    /// How long until the next attempt to mend it.
    wait: Duration,
    starved: bool,
    /// The classes of slots for which it stands in line.
    in_line: InLine,
    /// Whether it is watched as one that holds long slots.
    hurried: bool,
    /// Its row on the board, if it has one, and what that says of its socket: the address here, and there.
    row: Option<u16>,
    addresses: [Option<Address>; 2],
    /// How far the peer was when it was last looked whether it goes on, if that will be looked at again, and when.
    watched: Option<(Instant, Progress)>,
    /// When it is looked next whether the peer's host acknowledges what is sent, and how often something had come when
    /// that was decided.
    hearing: Option<(Instant, u64)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Peer {
    incarnation: [u8; 16],
    sizes: [u32; 2],
}

/// A socket that was accepted and has not said whose it is.
struct Stranger {
    wire: StreamWire,
    greeting: Greeting,
    listener: Option<ListenerId>,
    deadline: Instant,
    /// The credits that our hello gave.
    promised: [u32; 2],
}

enum Entry {
    Connection(Box<Connection>),
    Stranger(Box<Stranger>),
    Listener(OwnedFd),
}

/// What a connection has done, and how it stands.
#[derive(Clone, Debug)]
pub struct ConnectionFacts {
    /// The counts.
    pub counts: LinkCounts,
    /// Messages that have not completed.
    pub unfinished: usize,
    /// Bytes whose pages the kernel may read now; [`LinkLimits::pinned_bytes`] bounds them.
    pub pinned_bytes: u64,
    /// How often it was mended.
    pub epoch: u32,
    /// Whether it works now.
    pub is_open: bool,
    /// Which path was chosen and why, once there were pieces for which it matters.
    pub selection: Option<Selection>,
    /// Why each path was refused first.
    pub refusals: Refusals,
}

/// A transport over TCP and Unix sockets. See the module's documentation.
pub struct StreamTransport {
    options: StreamOptions,
    incarnation: [u8; 16],
    slots: Slots,
    epoll: OwnedFd,
    places: Places,
    sessions: HashMap<[u8; 16], u64>,
    ended: EndedSessions,
    connections: usize,
    strangers: usize,
    ready: VecDeque<u64>,
    dirty: VecDeque<u64>,
    owing: VecDeque<u64>,
    /// Connections that wait for slots: those that have received something, and those that have not.
    starved: VecDeque<u64>,
    starved_newcomers: VecDeque<u64>,
    /// When newcomers are looked at again.
    newcomers_next: Option<Instant>,
    timers: BTreeSet<(Instant, u64)>,
    /// The sockets that greet, by when their time is up.
    greeting: BTreeSet<(Instant, u64)>,
    /// What connections have learned about paths, by the address of the peer's host.
    experiences: Experiences<Option<IpAddr>>,
    /// The ring of all connections, and whose wire is known to it by which key.
    ring: RingHandle,
    ring_is_watched: bool,
    by_ring_key: HashMap<u32, u64>,
    /// Listeners that accept nobody until there is room.
    paused: Vec<u64>,
    orphans: Vec<Orphan<StreamWire>>,
    leaving: Vec<(StreamWire, Instant)>,
    gathered: Vec<epoll::Event>,
    hurry: hurry::Hurry,
    waits: Waits,
    /// What came of a call other than a poll; the next poll tells it.
    later: Vec<Event>,
    happened: Vec<Happened>,
    turns: u32,
    /// Turns of ready connections after which everybody who was ready at the last look has had one.
    unseen: usize,
    /// How the slots stood when it was last looked what they do for those who wait, and for how many of these that was
    /// not looked.
    fed: Option<((SlotCounts, [bool; 2]), usize)>,
    board: Option<Board>,
}

impl fmt::Debug for StreamTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamTransport")
            .field("connections", &self.connections)
            .field("orphans", &self.orphans.len())
            .field("quarantined", &self.slots.quarantined_bytes())
            .finish_non_exhaustive()
    }
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

impl StreamTransport {
    /// Makes a transport without connections.
    ///
    /// # Errors
    /// [`TransportError`] if memory or descriptors cannot be had.
    pub fn new(options: StreamOptions) -> Result<Self, TransportError> {
        let mut slots = Slots::new(&options.slots)?;
        slots.limit_quarantine(options.quarantine_bytes);
        let board = if options.told { Some(Board::new()?) } else { None };
        let transport = Self {
            incarnation: random()?,
            slots,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("epoll_create"))?,
            places: Places::default(),
            sessions: HashMap::new(),
            ended: EndedSessions::default(),
            connections: 0,
            strangers: 0,
            ready: VecDeque::new(),
            dirty: VecDeque::new(),
            owing: VecDeque::new(),
            starved: VecDeque::new(),
            starved_newcomers: VecDeque::new(),
            newcomers_next: None,
            timers: BTreeSet::new(),
            greeting: BTreeSet::new(),
            paused: Vec::new(),
            experiences: Experiences::default(),
            ring: RingHandle::new(SharedRing::new().into()),
            ring_is_watched: false,
            by_ring_key: HashMap::new(),
            orphans: Vec::new(),
            leaving: Vec::new(),
            gathered: Vec::with_capacity(EVENTS),
            hurry: hurry::Hurry::default(),
            waits: Waits::new(options.busy_poll),
            later: Vec::new(),
            happened: Vec::new(),
            turns: 0,
            unseen: 0,
            fed: None,
            board,
            options,
        };
        for region in transport.slots.regions() {
            transport.ring.borrow_mut().add_region(region);
        }
        Ok(transport)
    }

    /// Accepts connections at an address. Port 0 takes a free one, which the answer names.
    ///
    /// # Errors
    /// [`TransportError`] if nobody may or can listen there.
    pub fn listen(&mut self, address: &Address) -> Result<(ListenerId, Address), TransportError> {
        self.slots.check_fork()?;
        self.check_trust(address)?;
        let socket = address.listen()?;
        let bound = Address::of(&socket).unwrap_or_else(|| address.clone());
        let key = self.places.insert(Entry::Listener(socket));
        if let Some(Entry::Listener(socket)) = self.places.get(key) {
            watch(&self.epoll, socket.as_fd(), key, EventFlags::IN).inspect_err(|_| _ = self.places.remove(key))?;
        }
        Ok((ListenerId(key), bound))
    }

    /// Accepts no more connections; those that exist stay.
    pub fn stop_listening(&mut self, listener: ListenerId) {
        if matches!(self.places.get(listener.0), Some(Entry::Listener(_))) {
            self.places.remove(listener.0);
        }
    }

    /// Begins a connection. [`Event::Connected`] or [`Event::Closed`] tells what came of it; messages may be submitted
    /// at once.
    ///
    /// # Errors
    /// [`TransportError`] if it cannot even be tried.
    pub fn connect(&mut self, address: &Address) -> Result<ConnectionId, TransportError> {
        self.check_trust(address)?;
        self.check_room()?;
        let socket = address.dial();
        let key = self.new_connection(Some(address.clone()), random()?, false);
        match socket {
            Ok(socket) => self.begin_greeting(key, socket).inspect_err(|_| self.forget(key))?,
            // Nobody listens yet, perhaps.
            Err(TransportError::System { source, .. }) if !self.options.resume_for.is_zero() => {
                self.redial_later(key, source.to_string(), &mut Vec::new());
            }
            Err(error) => {
                self.forget(key);
                return Err(error);
            }
        }
        Ok(ConnectionId(key))
    }

    /// Takes a connected socket as the side that connects: it says hello. It is not dialled again when it breaks.
    ///
    /// # Errors
    /// [`TransportError`] if it is no stream socket.
    pub fn adopt_connecting(&mut self, socket: OwnedFd) -> Result<ConnectionId, TransportError> {
        self.check_room()?;
        let key = self.new_connection(None, random()?, false);
        match self.begin_greeting(key, socket) {
            Ok(()) => Ok(ConnectionId(key)),
            Err(error) => {
                self.forget(key);
                Err(error)
            }
        }
    }

    /// Takes a connected socket as the side that accepts: it waits for a hello, and [`Event::Accepted`] follows.
    ///
    /// # Errors
    /// [`TransportError`] if it is no stream socket.
    pub fn adopt_accepting(&mut self, socket: OwnedFd) -> Result<(), TransportError> {
        self.check_room()?;
        self.greet_stranger(socket, None)
    }

    /// What a connection has done.
    #[must_use]
    pub fn facts(&self, connection: ConnectionId) -> Option<ConnectionFacts> {
        match self.places.get(connection.0)? {
            Entry::Connection(connection) => Some(ConnectionFacts {
                counts: connection.link.counts().clone(),
                unfinished: connection.link.unfinished(),
                pinned_bytes: connection.link.pinned_bytes(),
                epoch: connection.epoch,
                is_open: matches!(connection.stage, Stage::Open),
                selection: connection.link.selection(),
                refusals: connection.link.refusals().clone(),
            }),
            _ => None,
        }
    }

    /// How the slots of the transport stand.
    pub fn slot_counts(&mut self) -> SlotCounts {
        self.slots.counts()
    }

    /// How many connections exist, and how many sockets are greeting.
    #[must_use]
    pub fn sockets(&self) -> (usize, usize) {
        (self.connections, self.strangers)
    }

    /// Forces the path of a connection, or lets the best be chosen again.
    pub fn force_path(&mut self, connection: ConnectionId, path: Option<PathKind>) {
        if let Some(connection) = self.places.connection(connection.0) {
            match path {
                Some(path) => connection.link.force(path),
                None => connection.link.choose_among(&PathKind::ALL, self.options.objective),
            }
        }
    }

    /// Bytes that somebody may read for ever, because the acknowledgement that would have freed them never came.
    #[must_use]
    pub fn quarantined_bytes(&self) -> u64 {
        self.slots.quarantined_bytes()
    }

    /// Breaks the socket of a connection, as a network would.
    #[doc(hidden)]
    pub fn break_off(&mut self, connection: ConnectionId) {
        if !self.is_forked()
            && let Some(connection) = self.places.connection(connection.0)
            && let Some(wire) = connection.link.wire()
        {
            let _ = socket::abort(wire)
                .or_else(|_| rustix::net::shutdown(wire, rustix::net::Shutdown::Both).map_err(std::io::Error::from));
        }
    }

    /// Whether a path can be used on a TCP connection of this host.
    fn support(&self, path: PathKind) -> Support {
        match path {
            _ if path.is_uring() => self.ring.borrow().support(path),
            _ => Support::Yes,
        }
    }

    /// Whether this is a forked child: the sockets, and what watches them, are the parent's.
    fn is_forked(&self) -> bool {
        self.slots.check_fork().is_err()
    }

    /// Whether sockets of that address may be [connected](Self::connect) and [listened](Self::listen) at: without a key
    /// only this host's own, unless others are trusted. For whoever brings sockets of its own.
    ///
    /// # Errors
    /// [`TransportError::Address`] if they may not.
    pub fn check_trust(&self, address: &Address) -> Result<(), TransportError> {
        if self.options.key.is_some() || self.options.insecure || address.is_local() {
            return Ok(());
        }
        Err(TransportError::Address { address: address.to_string(), reason: UNTRUSTED })
    }

    fn check_room(&self) -> Result<(), TransportError> {
        self.slots.check_fork()?;
        let connections = self.connections + self.strangers + self.leaving.len();
        if connections >= self.options.connections { Err(TransportError::TooMany { connections }) } else { Ok(()) }
    }

    fn new_connection(&mut self, origin: Option<Address>, session: [u8; 16], accepted: bool) -> u64 {
        let mut link = Link::new(self.options.limits, &self.slots);
        match self.options.path {
            Some(path) => link.force(path),
            None => link.choose_among(&PathKind::ALL, self.options.objective),
        }
        if self.options.resume_for.is_zero() {
            link.never_resumes();
        }
        let connection = Connection {
            accepted,
            link,
            stage: Stage::Broken { next: None },
            session,
            peer: None,
            epoch: 0,
            origin,
            announced: false,
            deadline: None,
            broken: None,
            attempt: None,
            wait: FIRST_REDIAL,
            starved: false,
            in_line: InLine::default(),
            hurried: false,
            watched: None,
            row: None,
            addresses: [const { None }; 2],
            hearing: None,
        };
        self.connections += 1;
        let key = self.places.insert(Entry::Connection(Box::new(connection)));
        let row = self.board.as_mut().and_then(|board| board.enter(key));
        if let Some(connection) = self.places.connection(key) {
            connection.row = row;
        }
        key
    }

    /// A socket as a wire.
    fn wire(&self, socket: OwnedFd) -> Result<StreamWire, TransportError> {
        // Small frames are not held back to wait for more: what belongs together is sent together.
        let _ = socket::set_no_delay(&socket, true);
        if !self.options.keep_alive.is_zero() {
            // A Unix socket has none, and needs none.
            let _ = socket::set_keep_alive(&socket, self.options.keep_alive.max(LEAST_KEEP_ALIVE));
        }
        let socket = SocketWire::new(socket).map_err(|error| TransportError::System {
            call: "looking at a socket",
            source: std::io::Error::other(error),
        })?;
        Ok(StreamWire::new(socket, &self.ring))
    }

    fn hello(
        &self,
        session: [u8; 16],
        epoch: u32,
        resume_from: u64,
        granted: [u32; 2],
    ) -> Result<Hello, TransportError> {
        let (small_bytes, slot_bytes) = self.slots.sizes();
        Ok(Hello {
            incarnation: self.incarnation,
            session,
            epoch,
            resume_from,
            small_bytes,
            slot_bytes,
            streams: self.options.limits.streams,
            granted,
            nonce: random()?,
            proof: [0; 32],
        })
    }

    /// Promises the credits of a hello.
    fn first_credits(&mut self) -> [u32; 2] {
        self.options.limits.first_credits(&mut self.slots)
    }

    /// Says hello over a socket of the connecting side.
    fn begin_greeting(&mut self, key: u64, socket: OwnedFd) -> Result<(), TransportError> {
        let wire = self.wire(socket)?;
        watch(&self.epoll, wire.as_fd(), key, BY_EDGES)?;
        let granted = self.first_credits();
        let Some(connection) = self.places.connection(key) else { return Ok(()) };
        let epoch = if connection.announced { connection.epoch + 1 } else { connection.epoch };
        let (session, expected) = (connection.session, connection.link.expected());
        let hello = self.hello(session, epoch, expected, granted);
        let hello = hello.inspect_err(|_| self.slots.unpromise(granted))?;
        let greeting = Greeting::connecting(hello, self.options.key.clone());
        let now = Instant::now();
        let until = now + self.options.greeting_timeout;
        if let Some(connection) = self.places.connection(key) {
            connection.stage =
                Stage::Greeting { wire: Box::new(wire), greeting: Box::new(greeting), promised: granted };
            // The kernel tries a connection ever more rarely: one that was begun while the network was away would come
            // about long after that is back.
            connection.attempt = Some(until);
            self.timers.insert((until, key));
            let redials = connection.origin.is_some() && !self.options.resume_for.is_zero();
            let deadline = if redials { now + self.options.resume_for } else { until };
            // However many attempts there are.
            let deadline = *connection.deadline.get_or_insert(deadline);
            self.timers.insert((deadline, key));
        }
        // That it takes something says that it is connected.
        self.places.unmark(key, mark::HUNG_UP);
        self.places.mark(key, mark::BLOCKED);
        self.make_ready(key);
        Ok(())
    }

    fn greet_stranger(&mut self, socket: OwnedFd, listener: Option<ListenerId>) -> Result<(), TransportError> {
        let wire = self.wire(socket)?;
        let deadline = Instant::now() + self.options.greeting_timeout;
        let greeting = Greeting::accepting(self.options.key.clone());
        let stranger = Stranger { wire, greeting, listener, deadline, promised: [0; 2] };
        let key = self.places.insert(Entry::Stranger(Box::new(stranger)));
        self.strangers += 1;
        self.timers.insert((deadline, key));
        self.greeting.insert((deadline, key));
        let watched = match self.places.stranger(key) {
            Some(stranger) => watch(&self.epoll, stranger.wire.as_fd(), key, BY_EDGES),
            None => Ok(()),
        };
        if watched.is_err() {
            self.forget_stranger(key);
        }
        watched
    }

    fn make_ready(&mut self, key: u64) {
        if self.places.mark(key, mark::READY) && self.places.mark(key, mark::QUEUED) {
            self.ready.push_back(key);
        }
    }

    fn make_dirty(&mut self, key: u64) {
        if self.places.mark(key, mark::DIRTY) {
            self.dirty.push_back(key);
        }
    }

    /// Takes what the kernel has to tell, waiting at most `wait`. Returns how much it was.
    fn gather(&mut self, wait: Option<Duration>, events: &mut Vec<Event>) -> Result<usize, TransportError> {
        self.watch_ring()?;
        let mut wait = wait;
        if self.ring.borrow_mut().opened().is_some_and(uring::Ring::has_news) {
            self.hear_ring(events);
            wait = Some(Duration::ZERO);
        }
        let mut gathered = core::mem::take(&mut self.gathered);
        gathered.clear();
        let (waited, waited_ns) = self.waits.epoll(&self.epoll, wait, &mut gathered);
        let count = match waited {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(errno) => {
                self.gathered = gathered;
                return Err(failed("epoll_wait")(errno));
            }
        };
        let mut refused = Ok(());
        for event in &gathered {
            let key = event.data.u64();
            match self.places.get(key) {
                _ if key == RING => self.hear_ring(events),
                // The others are heard all the same: nothing tells of them again.
                Some(Entry::Listener(_)) => refused = refused.and(self.accept(key)),
                Some(Entry::Stranger(_)) => self.ready.push_back(key),
                Some(Entry::Connection(_)) => {
                    let flags = event.flags;
                    if waited_ns > 0
                        && gathered.len() <= WAITERS
                        && let Some(connection) = self.places.connection(key)
                    {
                        self.waits.wanted = connection.link.waited(waited_ns / gathered.len() as u64);
                    }
                    if flags.intersects(EventFlags::HUP | EventFlags::RDHUP) {
                        self.places.mark(key, mark::HUNG_UP);
                    }
                    // Every edge says that the socket takes something, which is news only to who waits for that.
                    if flags.intersects(EventFlags::OUT) && self.places.is_marked(key, mark::BLOCKED) {
                        self.make_dirty(key);
                    }
                    if flags.intersects(EventFlags::IN | EventFlags::ERR | EventFlags::HUP | EventFlags::RDHUP) {
                        self.make_ready(key);
                    }
                }
                None => {}
            }
        }
        self.gathered = gathered;
        (self.turns, self.unseen) = (0, self.ready.len());
        refused.map(|()| count)
    }

    /// Watches the ring once a send has opened it.
    fn watch_ring(&mut self) -> Result<(), TransportError> {
        if self.ring_is_watched {
            return Ok(());
        }
        if let Some(ring) = self.ring.borrow_mut().opened() {
            watch(&self.epoll, ring.as_fd(), RING, EventFlags::IN)?;
            self.ring_is_watched = true;
        }
        Ok(())
    }

    /// Hands on the notifications that the ring has.
    fn hear_ring(&mut self, events: &mut Vec<Event>) {
        for _ in 0..EVENTS {
            let Some(wire) = self.ring.borrow_mut().opened().and_then(uring::Ring::notified) else { return };
            match self.by_ring_key.get(&wire).copied() {
                Some(key) => {
                    let link = self.places.connection(key).map(|connection| &mut connection.link);
                    let told = link.map_or(Ok(()), |link| link.take_notifications(&mut self.happened));
                    self.tell(key, events);
                    if told.is_err() {
                        self.make_ready(key);
                    }
                    // It may have been the last that an end waited for.
                    if self.places.connection(key).is_some_and(|connection| connection.link.is_finished()) {
                        self.make_dirty(key);
                    }
                }
                // Those of a wire that is gone free nothing but what its orphan keeps, which counts what is owed.
                None => {
                    if let Some(ring) = self.ring.borrow_mut().opened() {
                        let _ = ring.notifications(wire, &mut |_| ());
                    }
                }
            }
        }
    }

    /// Accepts nobody at this listener until [`resume_listening`](Self::resume_listening).
    fn pause(&mut self, listener: u64) -> Result<(), TransportError> {
        let Some(Entry::Listener(socket)) = self.places.get(listener) else { return Ok(()) };
        epoll::modify(&self.epoll, socket, EventData::new_u64(listener), EventFlags::empty())
            .map_err(failed("epoll_ctl"))?;
        self.paused.push(listener);
        Ok(())
    }

    fn accept(&mut self, listener: u64) -> Result<(), TransportError> {
        for _ in 0..ACCEPTS {
            if self.strangers >= self.options.greetings {
                self.send_away_oldest(listener);
            }
            if self.strangers >= self.options.greetings || self.check_room().is_err() {
                // They wait in the listener's queue until there is room: greetings end in time.
                return self.pause(listener);
            }
            let Some(Entry::Listener(socket)) = self.places.get(listener) else { return Ok(()) };
            match rustix::net::accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(accepted) => {
                    let trusted = self.options.key.is_some()
                        || self.options.insecure
                        || Address::of_peer(&accepted).is_some_and(|address| address.is_local());
                    if trusted {
                        // A socket that cannot be watched is closed; others go on.
                        let _ = self.greet_stranger(accepted, Some(ListenerId(listener)));
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    // The listener stays readable, and nobody says when there are descriptors again.
                    self.timers.insert((Instant::now() + ACCEPT_AGAIN, listener));
                    return self.pause(listener);
                }
                // A connection that was over before it was accepted (accept(2), "Error handling").
                Err(
                    Errno::INTR
                    | Errno::CONNABORTED
                    | Errno::NETDOWN
                    | Errno::PROTO
                    | Errno::NOPROTOOPT
                    | Errno::HOSTDOWN
                    | Errno::HOSTUNREACH
                    | Errno::NETUNREACH
                    | Errno::OPNOTSUPP
                    | Errno::TIMEDOUT,
                ) => {}
                Err(errno) => return Err(failed("accept")(errno)),
            }
        }
        Ok(())
    }
}

impl Transport for StreamTransport {
    fn loan(&mut self, bytes: usize) -> Result<LeaseMut<[u8]>, PoolError> {
        self.slots.loan(bytes)
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<(), OutOfRegion> {
        let before = self.slots.regions().count();
        let number = self.slots.add_region(region)?;
        if number == before {
            self.ring.borrow_mut().add_region(region);
            for key in self.places.keys() {
                let Some(connection) = self.places.connection(key) else { continue };
                let wire = match &mut connection.stage {
                    Stage::Greeting { wire, .. } => Some(&mut **wire),
                    Stage::Open | Stage::Broken { .. } => connection.link.wire_mut(),
                };
                if let Some(wire) = wire {
                    wire.add_region(Arc::clone(region));
                }
            }
        }
        Ok(())
    }

    fn submit(&mut self, to: Destination, payload: Payload, token: Token) -> Result<(), NotTaken> {
        let key = to.connection.0;
        let Some(connection) = self.places.connection(key) else {
            return Err(NotTaken { payload, reason: SubmitError::NoConnection(key) });
        };
        let bytes = payload.bytes().len();
        connection.link.submit(to.stream, to.tag, payload, token, &self.slots)?;
        self.waits.moved(bytes);
        self.make_dirty(key);
        Ok(())
    }

    fn poll(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> Result<usize, TransportError> {
        self.slots.check_fork()?;
        let begin = events.len();
        events.append(&mut self.later);
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        // Whoever always has something ready must not keep the others from being seen.
        self.turns += 1;
        if self.turns >= LOOKS && self.unseen == 0 {
            self.gather(Some(Duration::ZERO), events)?;
        }
        let mut late = 0;
        loop {
            self.work(events)?;
            self.timers(events)?;
            if events.len() > begin {
                return Ok(events.len() - begin);
            }
            let is_busy = !self.ready.is_empty() || !self.dirty.is_empty();
            let mut wait = if is_busy { Some(Duration::ZERO) } else { self.wait_at_most(deadline) };
            if self.places.some_owe() && wait != Some(Duration::ZERO) {
                if self.gather(Some(Duration::ZERO), events)? > 0 {
                    continue;
                }
                self.flush(events);
                if events.len() > begin {
                    return Ok(events.len() - begin);
                }
                wait = self.wait_at_most(deadline);
            }
            let count = self.gather(wait, events)?;
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                // Peers that always have something to say do not keep the caller.
                late += 1;
                if late > LATE_TURNS || (count == 0 && !is_busy) {
                    self.flush(events);
                    return Ok(events.len() - begin);
                }
            }
        }
    }

    fn close(&mut self, connection: ConnectionId) {
        if self.is_forked() {
            return;
        }
        let key = connection.0;
        if let Some(connection) = self.places.connection(key) {
            connection.link.close();
            self.make_dirty(key);
        }
    }

    fn abort(&mut self, connection: ConnectionId) {
        if self.is_forked() {
            return;
        }
        let mut later = core::mem::take(&mut self.later);
        self.close_with(connection.0, Closed::Aborted, &mut later);
        self.later = later;
    }

    fn capabilities(&self) -> Capabilities {
        let paths = PathKind::ALL.map(|path| (path, self.support(path)));
        Capabilities {
            paths: paths.into(),
            receiving: receive_paths().to_vec(),
            message_bytes: MESSAGE_BYTES,
            piece_bytes: self.slots.sizes().1,
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Drop for StreamTransport {
    fn drop(&mut self) {
        if self.is_forked() {
            // The sockets are the parent's; here they are only closed.
            return;
        }
        for key in self.places.keys() {
            self.close_with(key, Closed::Aborted, &mut Vec::new());
        }
        let until = Instant::now() + SETTLING;
        while !self.orphans.is_empty() && Instant::now() < until {
            self.settle_orphans();
            std::thread::sleep(LOOK_AGAIN);
        }
        for Orphan { kept, .. } in self.orphans.drain(..) {
            // The kernel has not said that it is done: these slots stay as they are.
            core::mem::forget(kept);
        }
    }
}

/// What sockets are watched for.
const BY_EDGES: EventFlags = EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

fn watch(epoll: &OwnedFd, socket: BorrowedFd<'_>, key: u64, flags: EventFlags) -> Result<(), TransportError> {
    epoll::add(epoll, socket, EventData::new_u64(key), flags).map_err(failed("epoll_ctl"))
}
