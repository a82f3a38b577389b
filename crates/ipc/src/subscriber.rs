//! Subscribers: receive messages in place, from every publisher of a service in turn.
//!
//! The hot path is [`Subscriber::try_receive`]: one load tells whether the next message is there, one store moves the
//! cursor. Lanes come and go through an inbox that the control thread fills, and that the hot path looks at only when a
//! flag says so.

mod armed;
mod event;
mod inbox;
mod lane;
mod options;
mod raw;

pub use armed::Armed;
pub use event::{Event, ReceiveError, Refusal, SubscriberError};
pub(crate) use inbox::{Note, SubscriberShared};
pub(crate) use lane::{Lane, LaneOffer, LaneTerms};
pub use options::SubscriberOptions;

use core::fmt;
use core::marker::PhantomData;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use zcmi_mem::fork::CalmView;
use zcmi_mem::lease::{Located, Sample, is_inline};
use zcmi_mem::ledger::{Counter, LaneCounts, LaneSource};
use zcmi_mem::payload::{Message, MessageRecord};
use zcmi_ring::LifeMark;
use zcmi_ring::reader::SlotRead;

use crate::audience::Audience;
use crate::control::Command;
use crate::ledger::EndpointCounts;
use crate::name::{Incarnation, ServiceName};
use crate::process::Process;
use crate::publisher::message_bytes;
use crate::sys;
use lane::{LaneState, Look, exactly, pool_fault, read_words};

/// How long a subscriber that may spin spins before it sleeps.
pub const DEFAULT_SPIN: Duration = Duration::from_micros(50);
/// How long a sleeper waits that a publisher does not know as one yet.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Events that a subscriber keeps until they are asked for.
const MAX_EVENTS: usize = 1024;
/// How often a reader that is being overtaken tries before it reports what it lost.
const MAX_OVERTAKES: usize = 8;

/// How a subscriber waits for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Keep looking; the quickest, and it takes a processor.
    Spin,
    /// Keep looking for so long, then sleep.
    SpinThenPark(Duration),
    /// Sleep at once.
    Park,
}

/// What the control thread needs of a new subscriber.
#[derive(Debug)]
pub(crate) struct NewSubscriber {
    pub(crate) endpoint: u32,
    pub(crate) service: ServiceName,
    pub(crate) record: MessageRecord,
    pub(crate) shared: Arc<SubscriberShared>,
    pub(crate) drop_oldest: bool,
    pub(crate) history: u64,
    pub(crate) holds: u8,
    /// Whose publishers are read besides our own user's.
    pub(crate) accept: Audience,
}

/// Receives the messages of one service, from each publisher in its order, from all in turn. `Send`, not `Sync`.
///
/// Samples may outlive it; their publishers keep the slots until they are dropped.
pub struct Subscriber<M: Message + ?Sized> {
    shared: Arc<SubscriberShared>,
    /// The shared word, nearer at hand.
    calm: CalmView,
    lanes: Vec<Lane>,
    next: usize,
    life: LifeMark,
    events: VecDeque<Event>,
    events_lost: u64,
    wait: Wait,
    waiter: Option<Arc<OwnedFd>>,
    counts: EndpointCounts,
    endpoint: u32,
    service: ServiceName,
    process: Process,
    message: PhantomData<fn() -> Box<M>>,
}

impl<M: Message + ?Sized> fmt::Debug for Subscriber<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, lanes, .. } = self;
        f.debug_struct("Subscriber").field("service", service).field("publishers", &lanes.len()).finish_non_exhaustive()
    }
}

impl<M: Message + ?Sized> Subscriber<M> {
    #[inline]
    fn check_life(&self) -> Result<(), ReceiveError> {
        if self.life.is_present() { Ok(()) } else { Err(zcmi_mem::fork::Forked.into()) }
    }

    /// Receives a message if one is there.
    ///
    /// # Errors
    /// [`ReceiveError`]; nothing is lost by it.
    #[inline]
    pub fn try_receive(&mut self) -> Result<Option<Sample<M>>, ReceiveError> {
        // The control thread's note is seen a little later than it was left, never missed: the word stays disturbed.
        if self.calm.is_calm()
            && let Some(lane) = self.lanes.get_mut(self.next)
        {
            if !M::SLICE && is_inline(M::ELEMENT_BYTES, M::ELEMENT_ALIGN) {
                if let Some((sequence, words)) = read_words::<M>(&mut lane.reader) {
                    if lane.reader.is_to_stop() {
                        self.turn_and_look();
                    }
                    return Ok(Some(Sample::inline_whole(sequence, words)));
                }
            } else if let Some(read) = lane.reader.read_slot(exactly::<M>()) {
                if M::SLICE {
                    lane.reader.count(0, read.bytes.into());
                }
                let Some(located) = raw::locate::<M>(&lane.pool, &read) else {
                    return self.take_oddly(read);
                };
                if lane.reader.is_to_stop() {
                    return self.turn_look_and_give(located, read);
                }
                return Ok(Some(raw::sample_at(located, read)));
            }
        }
        self.receive_rest()
    }

    /// A slot that is not of the pool's first class.
    #[cold]
    #[inline(never)]
    fn take_oddly(&mut self, read: SlotRead) -> Result<Option<Sample<M>>, ReceiveError> {
        let at = self.next;
        match raw::sample_of(&self.lanes[at].pool, read) {
            Ok(sample) => {
                self.turn_and_look();
                Ok(Some(sample))
            }
            Err(fault) => self.look_closer(at, Look::Faulty(pool_fault(fault))),
        }
    }

    /// With several lanes, each message is followed by another lane's turn.
    fn stop_where_many(&mut self) {
        let many = self.lanes.len() > 1;
        for lane in &mut self.lanes {
            lane.reader.set_stops_each(many);
        }
    }

    /// After a message of the lane whose turn it is: the look for a waiting publisher, if it is due, and the next
    /// lane's turn.
    #[inline(never)]
    fn turn_and_look(&mut self) {
        let at = self.next;
        self.lanes[at].look_if_due();
        self.turn_after(at);
    }

    /// As [`turn_and_look`](Self::turn_and_look), on the way out with a message.
    #[inline(never)]
    fn turn_look_and_give(&mut self, located: Located, read: SlotRead) -> Result<Option<Sample<M>>, ReceiveError> {
        self.turn_and_look();
        Ok(Some(raw::sample_at(located, read)))
    }

    /// Gives the lane behind `at` its turn.
    fn turn_after(&mut self, at: usize) {
        let next = at + 1;
        self.next = if next < self.lanes.len() { next } else { 0 };
    }

    /// As [`try_receive`](Self::try_receive), where the lane whose turn it is has nothing simple to give.
    #[inline(never)]
    fn receive_rest(&mut self) -> Result<Option<Sample<M>>, ReceiveError> {
        let odd = |lane: &Lane| lane.reader.has_message() || lane.state != LaneState::Live;
        if self.shared.is_calm() && !self.lanes.iter().any(odd) {
            self.lanes.iter_mut().for_each(|lane| lane.reader.refill_holds());
            return Ok(None);
        }
        self.receive_slow()
    }

    /// Everything that is not the next message of a living lane.
    #[cold]
    #[inline(never)]
    fn receive_slow(&mut self) -> Result<Option<Sample<M>>, ReceiveError> {
        self.check_life()?;
        if !self.shared.is_calm() {
            self.attend();
        }
        let mut too_many = None;
        for _ in 0..self.lanes.len() {
            if self.lanes.is_empty() {
                break;
            }
            if self.next >= self.lanes.len() {
                self.next = 0;
            }
            let at = self.next;
            let lane = &mut self.lanes[at];
            if lane.state == LaneState::Live {
                match lane.look() {
                    Look::Sample(sample) => {
                        self.turn_after(at);
                        return Ok(Some(sample));
                    }
                    Look::Empty => self.turn_after(at),
                    Look::TooManyHeld => {
                        // The other publishers are heard all the same.
                        too_many = Some(ReceiveError::TooManyHeld { pid: lane.pid, held: lane.holds });
                        self.turn_after(at);
                    }
                    other => {
                        if let Some(sample) = self.look_closer(at, other)? {
                            return Ok(Some(sample));
                        }
                    }
                }
            } else if let Some(sample) = self.look_at_ending(at)? {
                return Ok(Some(sample));
            }
        }
        too_many.map_or(Ok(None), Err)
    }

    /// What is rare: being overtaken, keeping too much, a faulty publisher.
    #[cold]
    #[inline(never)]
    fn look_closer(&mut self, at: usize, first: Look<M>) -> Result<Option<Sample<M>>, ReceiveError> {
        let mut look = first;
        let mut lost_in_all = 0;
        let mut tries = 0;
        // Whatever a look brings is used, that of the last try too: what was overtaken by then is not told again.
        loop {
            let lane = &mut self.lanes[at];
            match look {
                Look::Overtaken(lost) => {
                    lost_in_all += lost;
                    if tries == MAX_OVERTAKES {
                        break;
                    }
                    tries += 1;
                }
                Look::TooManyHeld => {
                    let error = ReceiveError::TooManyHeld { pid: lane.pid, held: lane.holds };
                    self.turn_after(at);
                    self.overtaken(at, lost_in_all);
                    return Err(error);
                }
                Look::Faulty(fault) => {
                    let (publisher, pid) = (lane.peer, lane.pid);
                    self.counts.add(Counter::PeersEnded, 1);
                    self.push_event(Event::Faulty { publisher, pid, fault });
                    self.close_lane(at);
                    return Ok(None);
                }
                Look::Sample(sample) => {
                    self.turn_after(at);
                    self.overtaken(at, lost_in_all);
                    return Ok(Some(sample));
                }
                Look::Empty => break,
            }
            look = self.lanes[at].look();
        }
        self.turn_after(at);
        self.overtaken(at, lost_in_all);
        Ok(None)
    }

    fn overtaken(&mut self, at: usize, lost: u64) {
        if lost > 0 {
            let publisher = self.lanes[at].peer;
            self.push_event(Event::Overtaken { publisher, lost });
        }
    }

    /// A lane whose publisher is gone is read to its end and then closed.
    #[cold]
    #[inline(never)]
    fn look_at_ending(&mut self, at: usize) -> Result<Option<Sample<M>>, ReceiveError> {
        if self.lanes[at].is_readable() {
            match self.lanes[at].look() {
                Look::Empty => {}
                other => return self.look_closer(at, other),
            }
            if let Some(event) = self.lanes[at].ending() {
                self.push_event(event);
                self.close_lane(at);
                return Ok(None);
            }
        }
        self.turn_after(at);
        Ok(None)
    }

    fn close_lane(&mut self, at: usize) {
        let mut lane = self.lanes.remove(at);
        self.settle(&mut lane);
        self.stop_where_many();
        self.process.mailbox().send(Command::CloseLane { endpoint: self.endpoint, lane: Box::new(lane) });
    }

    /// Adds what was received from a lane to this subscriber's counts.
    fn settle(&self, lane: &mut Lane) {
        if let Some(listed) = lane.unlist() {
            self.counts.settle(listed, &LaneCounts::of_reader(lane.words.at(0), message_bytes::<M>()));
        }
    }

    fn push_event(&mut self, event: Event) {
        if self.events.len() >= MAX_EVENTS {
            // What a publisher came to is kept before all that is said of it on the way.
            let is_end = |event: &Event| matches!(event, Event::Ended { .. } | Event::Died { .. });
            let oldest = self.events.iter().position(|event| !is_end(event)).unwrap_or(0);
            self.events.remove(oldest);
            self.events_lost += 1;
            self.counts.add(Counter::EventsLost, 1);
        }
        self.events.push_back(event);
    }

    /// Takes what the control thread left.
    #[cold]
    #[inline(never)]
    fn attend(&mut self) {
        let (notes, lost) = self.shared.take_notes();
        self.events_lost += lost;
        for note in notes {
            match note {
                Note::Lane(mut lane) => {
                    let source = LaneSource::Subscriber { block: lane.place, message_bytes: message_bytes::<M>() };
                    lane.list(self.counts.writer().clone(), self.counts.list(&source));
                    self.push_event(Event::Joined { publisher: lane.peer, pid: lane.pid, start: lane.start });
                    self.lanes.push(*lane);
                    self.stop_where_many();
                }
                Note::Refused(refusal) => {
                    self.counts.add(Counter::JoinsRefused, 1);
                    self.push_event(Event::Refused(refusal));
                }
                Note::Died(peer) => {
                    for lane in self.lanes.iter_mut().filter(|lane| lane.peer == peer) {
                        lane.set_state(LaneState::Draining { died: true });
                    }
                }
                Note::CutOff(peer) => {
                    let mut pid = None;
                    for lane in self.lanes.iter_mut().filter(|lane| lane.peer == peer) {
                        if lane.state == LaneState::Live {
                            lane.set_state(LaneState::Cut);
                            pid = Some(lane.pid);
                        }
                    }
                    if let Some(pid) = pid {
                        self.push_event(Event::CutOff { publisher: peer, pid });
                    }
                }
                Note::Ended { peer, publisher } => {
                    if let Some(lane) = self.lane_of(peer, publisher) {
                        lane.set_state(LaneState::Draining { died: false });
                    }
                }
                Note::Expelled { peer, publisher, reason } => {
                    let of_name = |lane: &Lane| lane.peer == peer && lane.publisher == publisher;
                    if let Some(at) = self.lanes.iter().position(of_name) {
                        let pid = self.lanes[at].pid;
                        self.push_event(Event::Expelled { publisher: peer, pid, reason });
                        self.close_lane(at);
                    }
                }
                Note::NotWaking { publisher, pid, reason, .. } => {
                    self.push_event(Event::NotWaking { publisher, pid, reason });
                }
                Note::ParkNoted { peer, publisher } => {
                    if let Some(lane) = self.lane_of(peer, publisher) {
                        lane.parks = true;
                    }
                }
                Note::RoomWaiter { peer, publisher, eventfd } => {
                    if let Some(lane) = self.lane_of(peer, publisher) {
                        lane.room = Some(eventfd);
                    }
                }
            }
        }
    }

    fn lane_of(&mut self, peer: Incarnation, publisher: u32) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.peer == peer && lane.publisher == publisher)
    }

    /// Waits for a message. Returns `None` when something happened to a publisher instead: see
    /// [`next_event`](Self::next_event).
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub fn receive(&mut self) -> Result<Option<Sample<M>>, ReceiveError> {
        self.receive_until(None)
    }

    /// As [`receive`](Self::receive), and returns `None` also when the time is over.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub fn receive_timeout(&mut self, timeout: Duration) -> Result<Option<Sample<M>>, ReceiveError> {
        self.receive_until(Instant::now().checked_add(timeout))
    }

    fn receive_until(&mut self, deadline: Option<Instant>) -> Result<Option<Sample<M>>, ReceiveError> {
        if let Some(sample) = self.try_receive()? {
            return Ok(Some(sample));
        }
        let begin = self.counts.begin_wait();
        let received = self.wait_until(begin, deadline);
        // Of a forked child nothing is counted: the block is the parent's.
        if self.life.is_present() {
            self.counts.end_wait(begin);
        }
        received
    }

    fn wait_until(&mut self, begin: Instant, deadline: Option<Instant>) -> Result<Option<Sample<M>>, ReceiveError> {
        let spin = match self.wait {
            Wait::Spin => Duration::MAX,
            Wait::SpinThenPark(time) => time,
            Wait::Park => Duration::ZERO,
        };
        let mut looks = 0_u32;
        loop {
            if !self.events.is_empty() {
                return Ok(None);
            }
            // The clock is asked now and then only: it costs as much as several looks.
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(64) || spin.is_zero() {
                let now = Instant::now();
                if deadline.is_some_and(|end| now >= end) {
                    return Ok(None);
                }
                if now.duration_since(begin) >= spin {
                    break;
                }
            }
            if let Some(sample) = self.try_receive()? {
                return Ok(Some(sample));
            }
            std::hint::spin_loop();
        }
        loop {
            if let Some(sample) = self.park(deadline)? {
                return Ok(Some(sample));
            }
            if !self.events.is_empty() || deadline.is_some_and(|end| Instant::now() >= end) {
                return Ok(None);
            }
        }
    }

    /// Sleeps until something is there, or the time is over, or for no reason at all.
    ///
    /// # Why no wake is lost
    /// See `zcmi_ring::wake`: the bits are set, then every lane is looked at once more, then the sleep begins; what the
    /// control thread has to say wakes the same descriptor. A stranger is told the cursor, and looks in the seat
    /// whether something is there; its wake comes by way of our control thread, which writes the same descriptor. A
    /// lane whose publisher does not look at its wake word for us yet makes the sleep a short one.
    #[cold]
    #[inline(never)]
    fn park(&mut self, deadline: Option<Instant>) -> Result<Option<Sample<M>>, ReceiveError> {
        let waiter = self.waiter()?;
        self.announce_sleep();
        let found = self.try_receive();
        if matches!(found, Ok(None)) && self.events.is_empty() {
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            let sleep = if self.all_know_of_sleep() { left } else { Some(left.unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN)) };
            let mut polled = [PollFd::from_borrowed_fd(waiter.as_fd(), PollFlags::IN)];
            // An error or an interruption is a reason to look again, which is what happens next.
            self.counts.add(Counter::Parks, 1);
            let _look_again = sys::poll(&mut polled, sleep);
        }
        for lane in &self.lanes {
            if let (true, Some(wake)) = (lane.parks, &lane.wake) {
                wake.withdraw(lane.bit);
            }
        }
        let _taken = sys::take_wakes(waiter.as_fd());
        match found {
            Ok(None) => self.try_receive(),
            other => other,
        }
    }

    /// Sets the bits by which publishers know a sleeper. Every lane is to be looked at once more after this.
    fn announce_sleep(&mut self) {
        for lane in &mut self.lanes {
            lane.announce_sleep(self.endpoint);
            lane.look_for_want();
        }
    }

    /// Whether every publisher that can still publish looks at its wake word for us.
    fn all_know_of_sleep(&self) -> bool {
        self.lanes.iter().all(|lane| lane.parks || lane.copies || !lane.is_readable())
    }

    /// The subscriber's eventfd, made and handed to its publishers when it first sleeps.
    fn waiter(&mut self) -> Result<Arc<OwnedFd>, ReceiveError> {
        if let Some(waiter) = &self.waiter {
            return Ok(Arc::clone(waiter));
        }
        self.check_life()?;
        let made = sys::eventfd().map_err(|errno| ReceiveError::NoEventfd { errno: errno.raw_os_error() })?;
        let waiter = Arc::new(made);
        self.shared.wake_by(Arc::clone(&waiter));
        self.waiter = Some(Arc::clone(&waiter));
        let eventfd = Arc::clone(&waiter);
        self.process.mailbox().send(Command::Waiter { endpoint: self.endpoint, eventfd });
        Ok(waiter)
    }

    /// The next thing that happened to a publisher, in the order in which it was noticed. Nothing in a forked child.
    pub fn next_event(&mut self) -> Option<Event> {
        if !self.life.is_present() {
            return None;
        }
        if !self.shared.is_calm() {
            self.attend();
        }
        self.events.pop_front()
    }

    /// How many events were dropped because nobody asked for them.
    #[must_use]
    pub fn events_lost(&self) -> u64 {
        self.events_lost
    }

    /// How many publishers are read now; none in a forked child.
    #[must_use]
    pub fn publishers(&mut self) -> usize {
        if !self.life.is_present() {
            return 0;
        }
        if !self.shared.is_calm() {
            self.attend();
        }
        self.lanes.len()
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Reads up to `most` messages in place, without keeping any: the quickest way through many. Returns how many were
    /// read.
    ///
    /// Only for subscribers that are not overtaken; one that may be gets its messages one by one here too, under holds,
    /// and so do messages of other users, copied.
    ///
    /// # Errors
    /// [`ReceiveError`].
    #[inline]
    pub fn receive_batch(&mut self, most: u64, mut each: impl FnMut(u64, &M)) -> Result<u64, ReceiveError> {
        self.check_life()?;
        if !self.shared.is_calm() {
            self.attend();
        }
        let mut done = 0;
        for _ in 0..self.lanes.len() {
            // A look at one lane can close others.
            if self.lanes.is_empty() {
                break;
            }
            if self.next >= self.lanes.len() {
                self.next = 0;
            }
            let at = self.next;
            let lane = &mut self.lanes[at];
            if lane.state != LaneState::Live || lane.copies || !raw::is_reliable(&lane.reader) {
                let Some(sample) = self.try_receive()? else { continue };
                each(sample.sequence(), &sample);
                return Ok(done + 1);
            }
            let read = raw::read_batch(lane, most - done, &mut each);
            self.turn_after(at);
            match read {
                Ok(read) => done += read,
                Err(fault) => {
                    self.look_closer(at, Look::Faulty(fault))?;
                }
            }
            if done > 0 {
                return Ok(done);
            }
        }
        Ok(done)
    }
}

impl<M: Message + ?Sized> Drop for Subscriber<M> {
    fn drop(&mut self) {
        if !self.life.is_present() {
            // The lanes are the parent's.
            std::mem::take(&mut self.lanes).into_iter().for_each(std::mem::forget);
            return;
        }
        let (done, answer) = channel();
        let mut lanes = std::mem::take(&mut self.lanes);
        lanes.iter_mut().for_each(|lane| self.settle(lane));
        self.process.mailbox().send(Command::DropSubscriber { endpoint: self.endpoint, lanes, done });
        // Waits until the publishers were told, so that none is held up by a reader that is gone.
        let _control_ended = answer.recv();
    }
}

#[cfg(test)]
mod tests;
