//! Who may take part in a service: how many publishers and subscribers it has, decided without a lock.
//!
//! Participants are ordered by their turn: whoever writes its file looks at the turns that are there and takes the next
//! one (`directory::entries`); the rest decides among those that came at the same moment. Each counts those before it,
//! and refuses itself when there are as many as may be. So of any number that come together the first in that order
//! stay, and nobody has to tell anybody.
//!
//! # Why no two take one place
//! Of two participants A and B, let A be the one before B in the order. If B sees A's file when it counts, it counts A.
//! If it sees A's file unfinished, it waits until that is finished or gone (a second; one that takes longer counts as
//! being before). If it sees neither, A began its file after B had finished its own; then A saw B's turn and took a
//! later one, so A is not before B.
//!
//! A listing can miss a file that is renamed while it runs, which happens once in a file's life, so two listings
//! together miss none.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::{Control, INTRODUCTION_MS};
use crate::audience::Audience;
use crate::directory::{Facts, Participant, ParticipantFile, Role};
use crate::name::{Incarnation, ServiceName};
use crate::publisher::{NewPublisher, PublisherError};
use crate::socket::{ConnectError, is_same_user};
use crate::subscriber::{NewSubscriber, SubscriberError};
use crate::wire::VERSION;

/// Subscribers of one service: one bit each in every publisher's wake word.
const MAX_SUBSCRIBERS: u32 = 64;
/// Services that one process takes part in.
const MAX_SERVICES: usize = 1024;
/// Entries of one other user in one service that are looked at.
const MAX_ENTRIES_OF_STRANGER: usize = 32;
/// How often a publisher that waits for others to finish their files looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A publisher that has written its file and does not know yet whether it may stay.
#[derive(Debug)]
pub(super) struct Candidate {
    new: NewPublisher,
    reply: Sender<Result<(), PublisherError>>,
    participant: ParticipantFile,
    next: Instant,
    until: Instant,
}

impl Candidate {
    /// Who may subscribe besides our own user.
    pub(super) fn audience(&self) -> &Audience {
        &self.new.allow
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }
}

/// How many entries of each other user were looked at: what a user writes into the directory must not cost us more.
#[derive(Debug, Default)]
struct Asked(HashMap<u32, usize>);

impl Asked {
    /// Counts one entry of this user. Returns whether its process is worth asking.
    fn may_be_asked(&mut self, uid: u32) -> bool {
        let asked = self.0.entry(uid).or_default();
        *asked += 1;
        *asked <= MAX_ENTRIES_OF_STRANGER
    }
}

enum Verdict {
    /// It stays; these processes subscribe.
    Stays(HashSet<Incarnation>),
    /// Others have not finished their files.
    Undecided,
}

/// The place in the order of a service's participants.
fn place(participant: &Participant) -> (u64, u128, u32) {
    (participant.turn, participant.incarnation.as_u128(), participant.endpoint)
}

impl Control {
    pub(super) fn create_publisher(&mut self, new: NewPublisher, reply: Sender<Result<(), PublisherError>>) {
        match self.share_publisher(&new).and_then(|()| self.write_publisher(&new)) {
            Ok(participant) => {
                let now = Instant::now();
                let until = now + Duration::from_millis(INTRODUCTION_MS);
                self.consider(Candidate { new, reply, participant, next: now, until });
            }
            Err(error) => {
                self.let_in_no_more();
                // Whoever asked may be gone by now.
                let _asked = reply.send(Err(error));
            }
        }
    }

    /// Opens this process's socket for those who may subscribe.
    fn share_publisher(&mut self, new: &NewPublisher) -> Result<(), PublisherError> {
        self.let_in(&new.allow).map_err(|error| PublisherError::Rights(error.to_string()))
    }

    /// Looks again at the publishers that could not be decided about.
    pub(super) fn consider_again(&mut self) {
        if self.candidates.is_empty() {
            return;
        }
        let now = Instant::now();
        let (due, later) =
            std::mem::take(&mut self.candidates).into_iter().partition(|one: &Candidate| one.next <= now);
        self.candidates = later;
        let due: Vec<Candidate> = due;
        for candidate in due {
            self.consider(candidate);
        }
    }

    fn consider(&mut self, mut candidate: Candidate) {
        match self.judge(&candidate) {
            Ok(Verdict::Stays(subscribers)) => {
                let Candidate { new, reply, participant, .. } = candidate;
                self.begin_publisher(new, reply, participant, subscribers);
            }
            Ok(Verdict::Undecided) => {
                candidate.next = Instant::now() + LOOK_AGAIN;
                self.candidates.push(candidate);
            }
            Err(error) => {
                let Candidate { reply, participant, .. } = candidate;
                // Its file is gone before anybody hears of it.
                drop(participant);
                self.let_in_no_more();
                // Whoever asked may be gone by now.
                let _asked = reply.send(Err(error));
            }
        }
    }

    fn write_publisher(&mut self, new: &NewPublisher) -> Result<ParticipantFile, PublisherError> {
        if self.has_too_many_services(&new.service) {
            return Err(PublisherError::TooManyServices { limit: MAX_SERVICES });
        }
        let facts = Facts { version: VERSION.into(), pid: std::process::id(), layout_hash: new.record.hash() };
        self.directory
            .create_participant(&new.service, self.incarnation, new.endpoint, Role::Publisher, &facts)
            .map_err(|error| PublisherError::Directory(error.to_string()))
    }

    /// Checks a publisher against those before it.
    fn judge(&mut self, candidate: &Candidate) -> Result<Verdict, PublisherError> {
        let Candidate { new, until, .. } = candidate;
        let (service, limit) = (&new.service, new.max_publishers);
        let text = |error: crate::directory::EntryError| PublisherError::Directory(error.to_string());
        let directory = self.directory.clone();
        // What cannot be removed now is the next visitor's residue.
        let _next_visitor = directory.sweep_unfinished(service, |other| self.is_dead(other));
        let (all, unfinished) = directory.participants_and_unfinished(service).map_err(text)?;
        let ours = self.incarnation;
        let is_own = |incarnation, endpoint| (incarnation, endpoint) == (ours, new.endpoint);
        let own = all.iter().find(|other| is_own(other.incarnation, other.endpoint)).map(place);
        let own = own.ok_or_else(|| PublisherError::Directory("this publisher's file was removed".into()))?;
        let writing: Vec<Incarnation> = unfinished
            .into_iter()
            .filter(|&(incarnation, endpoint, role)| role == Role::Publisher && !is_own(incarnation, endpoint))
            .map(|(incarnation, ..)| incarnation)
            .collect();
        if !writing.is_empty() && Instant::now() < *until {
            return Ok(Verdict::Undecided);
        }
        let (mut publishers, mut subscribers) = (0, HashSet::new());
        let mut count = |pid| {
            publishers += 1;
            let full = || PublisherError::TooManyPublishers { service: service.clone(), limit, pid };
            if publishers >= limit { Err(full()) } else { Ok(()) }
        };
        let mut strangers = Asked::default();
        for other in all {
            let concerns = other.role == Role::Subscriber || place(&other) < own;
            if !concerns || is_own(other.incarnation, other.endpoint) {
                continue;
            }
            // What strangers publish under this name is theirs: it neither counts nor has to agree with ours.
            let is_ours = is_same_user(other.uid, rustix::process::geteuid().as_raw());
            if !is_ours && (other.role == Role::Publisher || !new.allow.may_include(other.uid)) {
                continue;
            }
            if !is_ours && !strangers.may_be_asked(other.uid) {
                continue;
            }
            if self.is_dead(other.incarnation) {
                if is_ours {
                    self.sweep_visited(service, other.incarnation, other.endpoint, other.role);
                }
                continue;
            }
            if other.role == Role::Subscriber {
                subscribers.insert(other.incarnation);
                continue;
            }
            if other.facts.layout_hash != new.record.hash() {
                let (service, pid, ours) = (service.clone(), other.facts.pid, new.record.element.name.clone());
                return Err(PublisherError::OtherLayout { service, pid, ours });
            }
            count(other.facts.pid)?;
        }
        for incarnation in writing {
            count(self.pid_of(incarnation))?;
        }
        Ok(Verdict::Stays(subscribers))
    }

    /// Whether that process is known to be dead. Who cannot be asked lives.
    fn is_dead(&mut self, other: Incarnation) -> bool {
        matches!(self.link_to(other), Err(ConnectError::Dead(_)))
    }

    /// Checks a new subscriber against those that are there, and writes it down. Returns the publishers.
    pub(super) fn admit_subscriber(
        &mut self,
        new: &NewSubscriber,
    ) -> Result<(ParticipantFile, HashSet<(Incarnation, u32)>), SubscriberError> {
        let service = &new.service;
        if self.has_too_many_services(service) {
            return Err(SubscriberError::TooManyServices { limit: MAX_SERVICES });
        }
        let facts = Facts { version: VERSION.into(), pid: std::process::id(), layout_hash: new.record.hash() };
        let text = |error: crate::directory::EntryError| SubscriberError::Directory(error.to_string());
        let directory = self.directory.clone();
        let participant = directory
            .create_participant(service, self.incarnation, new.endpoint, Role::Subscriber, &facts)
            .map_err(text)?;
        // What cannot be removed now is the next visitor's residue.
        let _next_visitor = directory.sweep_unfinished(service, |other| self.is_gone(other));
        let all = directory.participants(service).map_err(text)?;
        let is_own = |other: &Participant| (other.incarnation, other.endpoint) == (self.incarnation, new.endpoint);
        let own = all.iter().find(|other| is_own(other)).map_or((u64::MAX, u128::MAX, u32::MAX), place);
        let before = all.iter().filter(|other| other.role == Role::Subscriber && place(other) < own).copied();
        // Of strangers each publisher counts those that it lets in.
        let ours = rustix::process::geteuid().as_raw();
        let before: Vec<_> = before.filter(|other| is_same_user(other.uid, ours)).collect();
        // Only a full service makes it worth asking who lives. Each publisher counts for itself, too.
        if before.len() >= MAX_SUBSCRIBERS as usize {
            let mut live = 0;
            for other in before {
                if self.is_dead(other.incarnation) {
                    self.sweep_visited(service, other.incarnation, other.endpoint, other.role);
                    continue;
                }
                live += 1;
                if live >= MAX_SUBSCRIBERS {
                    let (service, limit, pid) = (service.clone(), MAX_SUBSCRIBERS, other.facts.pid);
                    return Err(SubscriberError::TooManySubscribers { service, limit, pid });
                }
            }
        }
        let reads = |other: &Participant| other.role == Role::Publisher && new.accept.may_include(other.uid);
        let mut strangers = Asked::default();
        let mut is_asked = |other: &Participant| is_same_user(other.uid, ours) || strangers.may_be_asked(other.uid);
        let publishers = all.into_iter().filter(reads).filter(|other| is_asked(other));
        Ok((participant, publishers.map(|other| (other.incarnation, other.endpoint)).collect()))
    }

    /// Whether this process takes part in as many services as it may, and not in this one.
    fn has_too_many_services(&self, wanted: &ServiceName) -> bool {
        if self.publishers.len() + self.subscribers.len() + self.candidates.len() < MAX_SERVICES {
            return false;
        }
        let publishing = self.publishers.values().filter(|entry| !entry.has_ended()).map(|entry| entry.service());
        let subscribed = self.subscribers.values().map(|entry| entry.service());
        let waiting = self.candidates.iter().map(|candidate| &candidate.new.service);
        let services: HashSet<&ServiceName> = publishing.chain(subscribed).chain(waiting).collect();
        services.len() >= MAX_SERVICES && !services.contains(wanted)
    }
}
