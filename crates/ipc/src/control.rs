//! The control thread: everything between processes that is not data.
//!
//! One thread per process owns all of this state, so that none of it needs a lock. It waits on its mailbox, its
//! listener, its connections and its peers' pidfds; it answers joins, installs lanes, and notices deaths. Data and
//! wakes between living peers of one user never pass through it; wakes of strangers do.
//!
//! ```text
//!  Publisher ──commands──▶ ┌─────────┐ ◀──SOCK_SEQPACKET──▶ control threads of other processes (and our own)
//!  Subscriber ─commands──▶ │ Control │ ◀──pidfd──────────── deaths
//!      ▲                   └─────────┘
//!      └── inbox: new lanes, deaths, ends │ the seat: readers come and go │ eventfds: wakes
//! ```
//!
//! # Invariants
//! - A peer is dead when its pidfd says so, and only then. A hang-up alone is a cut-off.
//! - What a peer left in its queue is read before its death is acted upon, so that a graceful end is not taken for a
//!   death.
//! - Every queue is bounded: a peer that does not read its control messages is hung up on.

mod admission;
mod links;
mod orphans;
mod publishers;
mod report;
mod retry;
mod strangers;
mod subscribers;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::directory::RuntimeDirectory;
use crate::ledger::ProcessLedger;
use crate::name::Incarnation;
use crate::process::{Mailbox, Memories};
use crate::publisher::{NewPublisher, PublisherError};
use crate::socket::{ConnectError, Connection, Listener};
use crate::subscriber::{Lane, NewSubscriber, SubscriberError};
use crate::sys;
use crate::wire::{LaneName, Message};
use zcmi_mem::fork::ForkGuard;

use admission::Candidate;
pub(crate) use links::LinkId;
use links::{Attachments, Link, Peer};
use orphans::Orphans;
use publishers::PublisherEntry;
use retry::Retry;
use strangers::Strangers;
use subscribers::{Announced, SubscriberEntry};

/// How long the creation of an endpoint waits for the peers that are there already to answer.
const INTRODUCTION_MS: u64 = 1000;
/// How often what the system held back is tried again.
const LOOK_AGAIN_MS: u64 = 10;

/// What endpoints ask of the control thread.
#[derive(Debug)]
pub(crate) enum Command {
    CreatePublisher(Box<NewPublisher>, Sender<Result<(), PublisherError>>),
    DropPublisher {
        endpoint: u32,
        done: Sender<()>,
    },
    RoomWaiter {
        endpoint: u32,
        eventfd: Arc<OwnedFd>,
    },
    /// The publisher's lane ended readers because of what they claimed.
    Rogues {
        endpoint: u32,
    },
    CreateSubscriber(Box<NewSubscriber>, Sender<Result<(), SubscriberError>>),
    DropSubscriber {
        endpoint: u32,
        lanes: Vec<Lane>,
        done: Sender<()>,
    },
    CloseLane {
        endpoint: u32,
        lane: Box<Lane>,
    },
    Waiter {
        endpoint: u32,
        eventfd: Arc<OwnedFd>,
    },
    Room {
        peer: Incarnation,
        publisher: u32,
    },
    /// A sample that outlived its subscriber was dropped.
    Released,
    /// A subscriber is about to sleep: the stranger's lane has nothing past this cursor for it.
    Park {
        endpoint: u32,
        peer: Incarnation,
        publisher: u32,
        cursor: u64,
    },
    /// A stranger is to be woken whose socket was full.
    Wake {
        link: LinkId,
        lane: LaneName,
    },
    Describe(Sender<crate::report::ProcessReport>),
    /// Ends the thread; the answer is whether it stays on until samples that outlived their subscribers are dropped.
    Stop(Sender<bool>),
}

/// The control thread's state.
pub(crate) struct Control {
    incarnation: Incarnation,
    directory: RuntimeDirectory,
    listener: Listener,
    mailbox: Arc<Mailbox>,
    memory: Memories,
    ledger: Arc<ProcessLedger>,
    guard: ForkGuard,
    links: HashMap<LinkId, Link>,
    next_link: u64,
    peers: HashMap<Incarnation, Peer>,
    /// Who died in this turn, and may have left something in the runtime directory.
    died: HashSet<Incarnation>,
    publishers: HashMap<u32, PublisherEntry>,
    subscribers: HashMap<u32, SubscriberEntry>,
    orphans: Orphans,
    announced: Vec<Announced>,
    retry: Vec<Retry>,
    candidates: Vec<Candidate>,
    /// When eventfds that could not be duplicated are tried again.
    waiters_owed: Option<Instant>,
    stopping: bool,
    strangers: Strangers,
    /// No connection could be accepted for want of descriptors or memory: tried again in a while.
    accept_later: bool,
}

/// What a wait woke up for.
enum Ready {
    Mailbox,
    Listener,
    Link(LinkId),
    Pidfd(Incarnation),
}

impl Control {
    pub(crate) fn new(
        directory: RuntimeDirectory,
        listener: Listener,
        mailbox: Arc<Mailbox>,
        memory: Memories,
        ledger: Arc<ProcessLedger>,
        guard: ForkGuard,
    ) -> Self {
        Self {
            incarnation: listener.incarnation(),
            directory,
            listener,
            mailbox,
            memory,
            ledger,
            guard,
            links: HashMap::new(),
            next_link: 0,
            peers: HashMap::new(),
            died: HashSet::new(),
            publishers: HashMap::new(),
            subscribers: HashMap::new(),
            orphans: Orphans::default(),
            announced: Vec::new(),
            retry: Vec::new(),
            candidates: Vec::new(),
            waiters_owed: None,
            stopping: false,
            strangers: Strangers::default(),
            accept_later: false,
        }
    }

    /// Runs until the process needs no control thread any more.
    pub(crate) fn run(mut self) {
        /// Closes the mailbox however this thread ends, a panic included.
        struct CloseMailbox(Arc<Mailbox>);
        impl Drop for CloseMailbox {
            fn drop(&mut self) {
                self.0.close();
            }
        }
        let _close = CloseMailbox(Arc::clone(&self.mailbox));
        self.sweep_sockets();
        loop {
            for ready in self.wait() {
                match ready {
                    Ready::Mailbox => {
                        for command in self.mailbox.take() {
                            self.obey(command);
                        }
                    }
                    Ready::Listener => self.accept(),
                    Ready::Link(id) => self.serve_link(id),
                    Ready::Pidfd(incarnation) => self.peer_died(incarnation),
                }
            }
            if std::mem::take(&mut self.accept_later) {
                self.accept();
            }
            // After the mailbox's wake was taken: see `zcmi_ring::owed`.
            self.send_owed_wakes();
            self.sweep_died();
            self.send_held_back();
            self.free_orphans();
            self.unmap_unused();
            self.try_again();
            self.send_owed_waiters();
            self.consider_again();
            self.fill_places();
            self.end_introductions();
            self.strangers.end_turns();
            self.forget_ended_publishers();
            self.forget_peers();
            if self.stopping && self.orphans.is_empty() {
                return;
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::CreatePublisher(new, reply) => self.create_publisher(*new, reply),
            Command::DropPublisher { endpoint, done } => self.drop_publisher(endpoint, &done),
            Command::RoomWaiter { endpoint, eventfd } => self.set_room_waiter(endpoint, eventfd),
            Command::Rogues { endpoint } => self.drop_rogues(endpoint),
            Command::CreateSubscriber(new, reply) => self.create_subscriber(*new, reply),
            Command::DropSubscriber { endpoint, lanes, done } => self.drop_subscriber(endpoint, lanes, &done),
            Command::CloseLane { endpoint, lane } => self.close_lane(endpoint, *lane),
            Command::Waiter { endpoint, eventfd } => self.set_waiter(endpoint, &eventfd),
            Command::Room { peer, publisher } => self.tell_room(peer, publisher),
            // Each turn looks at what such samples kept.
            Command::Released => {}
            Command::Park { endpoint, peer, publisher, cursor } => self.tell_park(endpoint, peer, publisher, cursor),
            Command::Wake { link, lane } => self.send(link, &Message::Wake(lane), Attachments::default()),
            // Whoever asked may be gone by now.
            Command::Describe(reply) => drop(reply.send(self.describe())),
            Command::Stop(stays) => {
                self.stopping = true;
                // Whoever asked may be gone by now.
                let _asked = stays.send(!self.orphans.is_empty());
            }
        }
    }

    /// Waits for something to do.
    fn wait(&self) -> Vec<Ready> {
        let timeout = self.timeout();
        let mut what = vec![Ready::Mailbox];
        let mut polled = vec![PollFd::from_borrowed_fd(self.mailbox.wake_descriptor().as_fd(), PollFlags::IN)];
        if !self.accept_later {
            what.push(Ready::Listener);
            polled.push(PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN));
        }
        for (&id, link) in &self.links {
            if self.strangers.is_to_wait(link.identity().uid) {
                continue;
            }
            what.push(Ready::Link(id));
            let flags = if link.is_congested() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            polled.push(PollFd::from_borrowed_fd(link.as_fd(), flags));
        }
        for (&incarnation, peer) in &self.peers {
            what.push(Ready::Pidfd(incarnation));
            polled.push(PollFd::from_borrowed_fd(peer.pidfd(), PollFlags::IN));
        }
        match sys::poll(&mut polled, timeout) {
            Ok(0) => Vec::new(),
            // ENOMEM is the only other answer; looking at everything is always right.
            Err(_) => what,
            Ok(_) => {
                let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
                drop(polled);
                what.into_iter().zip(ready).filter_map(|(what, ready)| ready.then_some(what)).collect()
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let mut timeout: Option<Duration> = None;
        let mut at_most = |wait: Duration| timeout = Some(timeout.map_or(wait, |now| now.min(wait)));
        let held_back = self.accept_later || self.links.values().any(Link::is_held_back);
        if held_back {
            at_most(Duration::from_millis(LOOK_AGAIN_MS));
        }
        let now = Instant::now();
        if let Some(next) = self.orphans.next_look() {
            at_most(next.saturating_duration_since(now));
        }
        for retry in &self.retry {
            at_most(retry.next().saturating_duration_since(now));
        }
        if let Some(due) = self.waiters_owed {
            at_most(due.saturating_duration_since(now));
        }
        for candidate in &self.candidates {
            at_most(candidate.next().saturating_duration_since(now));
        }
        for due in self.publishers.values().filter_map(PublisherEntry::next_wake) {
            at_most(due.saturating_duration_since(now));
        }
        let publishers = self.publishers.values().filter_map(PublisherEntry::introduction_ends);
        let subscribers = self.subscribers.values().filter_map(SubscriberEntry::introduction_ends);
        for deadline in publishers.chain(subscribers).chain(self.strangers.next_turn()) {
            at_most(deadline.saturating_duration_since(now));
        }
        timeout
    }

    /// Removes the sockets of processes that died before they took part in a service, where no visitor would find them.
    fn sweep_sockets(&self) {
        // What cannot be listed or removed now is left to the next process that starts.
        let _next_process = self.directory.sweep_dead_sockets(|other| self.is_gone(other));
    }

    /// Whether nobody listens at that process's socket any more.
    fn is_gone(&self, other: Incarnation) -> bool {
        other != self.incarnation && matches!(Connection::connect(&self.directory, other), Err(ConnectError::Dead(_)))
    }

    fn is_forked(&self) -> bool {
        self.guard.check().is_err()
    }
}

/// A descriptor of our own, duplicated for a message.
fn duplicate(descriptor: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    descriptor.try_clone_to_owned()
}
