//! The turns of a transport over UDP: what is due, what goes out, and what becomes of connections.

use super::datagram::CONTROL_BYTES;
use super::greet::{hello_datagram, proof_datagram};
use super::pace::MS;
use super::sender::Ready;
use super::socket::{MOST_BYTES, SAFE_SEGMENT, Sharing};
use super::*;
use crate::greeting::ENDED_SESSION;

/// Trains that one connection sends before others have their turn.
const TURNS: usize = 8;
/// Between the first attempts to greet; each waits twice as long as the one before.
const FIRST_RETRY: Nanos = 20 * MS;
/// The longest time between attempts.
const LAST_RETRY: Nanos = 1_000 * MS;
/// Proofs that nobody answers until it is asked anew.
const PROOFS: u32 = 3;
/// Silences in a row that a connection has before it counts as broken.
const SILENCES: u32 = 3;
/// The smallest payload of a datagram.
const LEAST_SEGMENT: u32 = 448;

impl UdpTransport {
    /// Does everything that can be done now.
    pub(super) fn work(&mut self, events: &mut Vec<Event>) -> Result<(), TransportError> {
        // What was too little for everybody a moment ago still is.
        let standing = (!self.starved.is_empty()).then(|| self.standing());
        let looks =
            standing.is_some_and(|now| self.fed.is_none_or(|(before, at)| before != now || at + FED <= self.now()));
        if looks {
            self.look_at_starved();
        }
        for index in 0..self.places.len() {
            if self.places[index].as_ref().is_some_and(|place| place.is_readable) {
                self.take_notifications(index);
                self.receive(index, events)?;
            }
        }
        self.hear_ring()?;
        let now = self.now();
        while let Some(&(due, key)) = self.timers.first() {
            if due > now {
                break;
            }
            self.timers.pop_first();
            if key == u64::MAX {
                self.see_off(now);
            } else if let Some(connection) = self.connections.get_mut(&key) {
                connection.timer = None;
                self.make_dirty(key);
            }
        }
        if let Some(board) = self.board.as_mut().filter(|_| !self.dirty.is_empty()) {
            board.note();
        }
        for key in core::mem::take(&mut self.dirty) {
            if let Some(connection) = self.connections.get_mut(&key) {
                connection.is_dirty = false;
                self.turn(key, events);
            }
        }
        if looks {
            let stands = self.standing();
            self.fed = (Some(stands) == standing).then(|| (stands, self.now()));
        }
        self.tell_links();
        Ok(())
    }

    /// How the slots stand, for those that wait for some.
    fn standing(&mut self) -> (SlotCounts, [bool; 2]) {
        (self.slots.counts(), self.slots.newcomers_wait())
    }

    /// Has those that wait for slots turn first, in order.
    fn look_at_starved(&mut self) {
        let before = core::mem::take(&mut self.dirty);
        for key in core::mem::take(&mut self.starved) {
            if let Some(connection) = self.connections.get_mut(&key) {
                (connection.is_starved, connection.is_dirty) = (false, true);
                self.dirty.push(key);
            }
        }
        self.dirty.extend(before);
    }

    /// Watches the ring once a send has opened it, and takes the notifications that it has.
    fn hear_ring(&mut self) -> Result<(), TransportError> {
        if !self.ring_is_watched
            && let Some(ring) = self.ring.borrow_mut().opened()
        {
            let data = EventData::new_u64(RING);
            epoll::add(&self.epoll, ring.as_fd(), data, EventFlags::IN).map_err(failed("epoll_ctl"))?;
            self.ring_is_watched = true;
        }
        for _ in 0..EVENTS {
            let Some(key) = self.ring.borrow_mut().opened().and_then(Ring::notified) else { break };
            match self.by_key.get(&key).copied() {
                Some(index) => self.take_notifications(index),
                // Of a socket that is gone, which waited for all that was owed to it.
                None => {
                    if let Some(ring) = self.ring.borrow_mut().opened() {
                        ring.notifications(key, &mut |_| ())
                            .map_err(|source| TransportError::System { call: "reading notifications", source })?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Turns what happened into events.
    pub(super) fn tell(&mut self, key: u64, events: &mut Vec<Event>) {
        let connection = ConnectionId(key);
        events.extend(self.happened.drain(..).map(|happened| match happened {
            Happened::Received(piece) => {
                self.waits.moved(piece.lease.len());
                Event::Received { connection, piece }
            }
            Happened::Completed(token) => Event::Completed { connection, token },
            Happened::Unreadable(token, reason) => Event::Unreadable { connection, token, reason },
            Happened::Ended => Event::Ended { connection },
        }));
    }

    /// Does what is due for a connection, and sends what it has to send.
    fn turn(&mut self, key: u64, events: &mut Vec<Event>) {
        let (now, peers) = (self.now(), self.connections.len());
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if let Some(deadline) = connection.deadline
            && deadline <= now
        {
            let reason = connection.broken.clone().unwrap_or_else(|| "it did not answer in time".into());
            let announced = connection.announced;
            let reason = if announced { Closed::Broken(reason) } else { Closed::Unreachable(reason) };
            return self.close_with(key, reason, events);
        }
        if matches!(connection.stage, Stage::Greeting(_)) {
            self.greet(key, now);
        } else {
            let session = &mut connection.session;
            self.happened.extend(session.done.drain(..).map(Happened::Completed));
            let in_line = connection.in_line.take().inspect(|&place| self.slots.leave_line(place));
            let stood_in_line = in_line.map_or([false; 2], |place| place.classes);
            session.receiver.top_up(&mut self.slots, peers, stood_in_line);
            if connection.watched.is_some_and(|at| at <= now) {
                connection.watched = None;
                if !matches!(connection.stage, Stage::Open) {
                    session.receiver.excuse();
                } else if connection.last_heard + nanos(self.options.stall_timeout) <= now {
                    // Perhaps its network is away.
                    session.sender.ping |= session.sender.silent_since().is_none();
                    session.receiver.excuse();
                }
                if matches!(connection.stage, Stage::Open)
                    && let Some(piece) = session.receiver.stalled(&mut self.slots)
                {
                    let milliseconds = self.options.stall_timeout.as_millis() as u64;
                    let reason = LinkError::Stalled { piece, milliseconds }.to_string();
                    return self.close_with(key, Closed::Broken(reason), events);
                }
            }
            if connection.watched.is_none() && session.receiver.is_due() {
                connection.watched = Some(now + nanos(self.options.stall_timeout));
            }
            if session.sender.unfinished() == 0 {
                connection.choosing.tell(Selector::idles);
            }
            if connection.last_heard + nanos(self.options.keep_alive) <= now && session.sender.silent_since().is_none()
            {
                session.sender.ping = true;
            }
            if session.sender.due().is_some_and(|due| due <= now) {
                session.sender.time(now);
                if session.sender.pace.probes >= SILENCES && session.sender.segment() > SAFE_SEGMENT {
                    // Perhaps the path lets large datagrams vanish.
                    session.sender.set_segment(SAFE_SEGMENT);
                }
            }
            let is_silent = session.sender.pace.probes >= SILENCES
                && session.sender.silent_since().is_some_and(|since| since + nanos(self.options.silence) <= now);
            if is_silent && matches!(connection.stage, Stage::Open) {
                return self.interrupt(key, "nothing is heard from the peer", now, events);
            }
            let more = self.send(key, now);
            self.tell_refusals(key, events);
            if more {
                self.make_dirty(key);
            }
            self.tell(key, events);
            if self.connections.get(&key).is_some_and(|connection| connection.session.is_finished()) {
                return self.close_with(key, Closed::Ended, events);
            }
        }
        self.set_timer(key, now);
    }

    /// Tells which paths were refused for the first time.
    fn tell_refusals(&mut self, key: u64, events: &mut Vec<Event>) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        while let Some((path, reason)) = connection.refused.take_untold() {
            events.push(Event::PathRefused { connection: ConnectionId(key), path, reason });
        }
    }

    /// Has the connection looked at when something is due.
    fn set_timer(&mut self, key: u64, now: Nanos) {
        let keep_alive = nanos(self.options.keep_alive);
        let silence = nanos(self.options.silence);
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let sender = &mut connection.session.sender;
        let due = match &connection.stage {
            Stage::Greeting(greeting) => Some(greeting.next),
            Stage::Open | Stage::Silent => {
                let paced = match sender.has_data().then(|| sender.ready(now)) {
                    Some(Ready::At(at)) => Some(at),
                    _ => None,
                };
                let silent = sender.silent_since().filter(|_| sender.pace.probes >= SILENCES);
                let silent = silent.map(|since| since + silence).filter(|_| matches!(connection.stage, Stage::Open));
                let asks = sender.silent_since().is_none().then(|| connection.last_heard + keep_alive);
                [sender.due(), paced, silent, asks, connection.watched].into_iter().flatten().min()
            }
        };
        let due = [due, connection.deadline].into_iter().flatten().min();
        let receiver = &connection.session.receiver;
        let lacking = receiver.lacking();
        if lacking != [false; 2] && matches!(connection.stage, Stage::Open) {
            if connection.in_line.is_none() {
                connection.in_line = Some(self.slots.join_line(lacking, receiver.is_newcomer()));
            }
            if !core::mem::replace(&mut connection.is_starved, true) {
                self.starved.push_back(key);
            }
        }
        if connection.timer != due {
            if let Some(timer) = connection.timer {
                self.timers.remove(&(timer, key));
            }
            self.timers.extend(due.map(|due| (due, key)));
            connection.timer = due;
        }
    }

    /// Greets, as the side that connects.
    fn greet(&mut self, key: u64, now: Nanos) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let Stage::Greeting(greeting) = &mut connection.stage else { return };
        if greeting.next > now {
            return;
        }
        greeting.next = now + (FIRST_RETRY << greeting.tries.min(10)).min(LAST_RETRY);
        greeting.tries += 1;
        if greeting.proof.is_some() && greeting.tries > PROOFS {
            (greeting.proof, greeting.tries) = (None, 0);
        }
        let hello = hello_datagram(Kind::Hello, &greeting.ours);
        let bytes = greeting.proof.as_ref().map_or(&hello[..], |proof| &proof[..]);
        if let Some(Some(place)) = self.places.get_mut(connection.socket)
            && let Err(errno) = place.socket.send_small(None, bytes)
        {
            connection.broken = Some(errno.to_string());
        }
    }

    /// Takes the answer to our hello.
    pub(super) fn answered(&mut self, key: u64, theirs: &Hello, events: &mut Vec<Event>) {
        let now = self.now();
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let Stage::Greeting(greeting) = &mut connection.stage else { return };
        let own_key = self.options.key.as_ref();
        if greeting.proof.is_some() || !greet::is_answer(&greeting.ours, theirs, own_key) {
            self.strays.unproved += 1;
            return;
        }
        if theirs.epoch == ENDED_SESSION {
            return self.ended_there(key, theirs.resume_from, events);
        }
        if theirs.epoch != greeting.ours.epoch {
            // It is proved, as far as there is a key, that the peer does not know the session.
            return self.close_with(key, Closed::SessionLost, events);
        }
        let peer = (theirs.incarnation, theirs.small_bytes, theirs.slot_bytes);
        if connection.theirs.is_some_and(|before| before != peer) {
            return self.close_with(key, Closed::SessionLost, events);
        }
        if connection.theirs.replace(peer).is_none() {
            connection.session.sender.begin(theirs);
        }
        greeting.proof = Some(Box::new(proof_datagram(&greeting.ours, theirs, own_key)));
        (greeting.tries, greeting.next) = (0, now);
        self.make_dirty(key);
    }

    /// Goes on in the epoch of a greeting that both sides are done with.
    pub(super) fn open(&mut self, key: u64, epoch: u32, events: &mut Vec<Event>) {
        let (now, peers) = (self.now(), self.connections.len());
        let Some(connection) = self.connections.get_mut(&key) else { return };
        connection.stage = Stage::Open;
        connection.session.epoch = epoch;
        connection.session.sender.begin_epoch(now);
        connection.session.receiver.excuse();
        connection.session.receiver.top_up(&mut self.slots, peers, [false; 2]);
        (connection.deadline, connection.broken, connection.is_deaf) = (None, None, false);
        connection.last_heard = now;
        let announced = core::mem::replace(&mut connection.announced, true);
        let accepted = connection.accepted;
        let connection = ConnectionId(key);
        if announced {
            events.push(Event::Resumed { connection });
        } else if !accepted {
            events.push(Event::Connected { connection });
        }
        self.tell_link(key);
        self.make_dirty(key);
    }

    /// The peer remembers that both sides had ended the session: only its last words were lost.
    pub(super) fn ended_there(&mut self, key: u64, pieces: u64, events: &mut Vec<Event>) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if let Err(fault) = connection.session.ended_there(pieces) {
            return self.close_with(key, fault.into(), events);
        }
        // It ends in its next turn, or when the kernel has let go of the last page.
        connection.stage = Stage::Open;
        (connection.deadline, connection.broken) = (None, None);
        self.make_dirty(key);
    }

    /// Nothing is heard any more, or the peer greets anew.
    pub(super) fn interrupt(&mut self, key: u64, reason: &str, now: Nanos, events: &mut Vec<Event>) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.session.may_be_finished() {
            // Only the answer to our end did not come, of which the peer has no need.
            return self.close_with(key, Closed::Ended, events);
        }
        if self.options.resume_for.is_zero() {
            return self.close_with(key, Closed::Broken(reason.into()), events);
        }
        connection.deadline = Some(now + nanos(self.options.resume_for));
        connection.broken = Some(reason.into());
        if connection.accepted {
            connection.stage = Stage::Silent;
        } else {
            connection.is_deaf = false;
            let (name, epoch) = (connection.name, connection.session.epoch);
            let (Ok(nonce), Some(epoch)) = (random(), epoch.checked_add(1)) else {
                return self.close_with(key, Closed::Broken(reason.into()), events);
            };
            let ours = self.hello(name, epoch, nonce);
            if let Some(connection) = self.connections.get_mut(&key) {
                connection.stage = Stage::Greeting(Box::new(Greeting { ours, proof: None, tries: 0, next: now }));
            }
        }
        events.push(Event::Interrupted { connection: ConnectionId(key), reason: reason.into() });
        self.make_dirty(key);
    }

    /// Sends control and data; whether there is more to send at once.
    fn send(&mut self, key: u64, now: Nanos) -> bool {
        let Some(connection) = self.connections.get_mut(&key) else { return false };
        let Some(Some(place)) = self.places.get_mut(connection.socket) else { return false };
        let Connection { session, to, is_deaf, broken, choosing, done, over_budget, refused, .. } = &mut **connection;
        let mut bytes = [0; CONTROL_BYTES];
        if let Some(length) = session.speak(&mut bytes, true, now)
            && !*is_deaf
        {
            // What does not go is lost, as on the way.
            let _ = place.socket.send_small(to.as_ref(), &bytes[..length]);
        }
        for _ in 0..TURNS {
            if !session.sender.has_data() {
                return false;
            }
            let Ready::Now(budget) = session.sender.ready(now) else { return false };
            let most = budget.min(MOST_BYTES as u64);
            let Some(train) = session.sender.train(place.socket.segments(), most) else {
                // Data waits for credits, and perhaps must say so.
                if let Some(length) = session.speak(&mut bytes, false, now)
                    && !*is_deaf
                {
                    let _ = place.socket.send_small(to.as_ref(), &bytes[..length]);
                }
                return false;
            };
            let count = train.items.len();
            let mut heads = place.socket.heads();
            let mut payloads: [&[u8]; socket::MOST_SEGMENTS] = [&[]; socket::MOST_SEGMENTS];
            let datagrams = session.sender.datagrams(&train, session.word, session.epoch);
            for ((head, payload), (to_head, to_payload)) in datagrams.zip(heads.iter_mut().zip(&mut payloads)) {
                head.encode(to_head);
                *to_payload = payload;
            }
            if *is_deaf {
                session.sender.sent(train, count, false, now, &mut session.done);
                continue;
            }
            // Only what lies in regions of our own, and as much as one peer may have pinned.
            let mut homes = [None; socket::MOST_SHARED];
            let part = train.items[0].length;
            let wanted = choosing.path_for_datagrams(part);
            let mut path = wanted;
            if path != PathKind::Write {
                let mut at_home = true;
                let shared = train.items.iter().take(place.socket.shared_at_once());
                let bytes: u64 = shared.map(|item| u64::from(item.length)).sum();
                for (home, payload) in homes.iter_mut().zip(&payloads[..count]) {
                    *home = self.slots.home(payload);
                    at_home &= payload.is_empty() || home.is_some();
                }
                if !at_home {
                    path = PathKind::Write;
                } else if path.shares_pages()
                    && session.sender.pinned_bytes() + bytes > self.options.limits.pinned_bytes
                {
                    place.socket.counts.over_budget += 1;
                    *over_budget += 1;
                    path = PathKind::Write;
                }
            }
            let sharing = (path != PathKind::Write).then_some(Sharing {
                path,
                connection: key,
                items: &train.items,
                homes: &homes,
                slots: &mut self.slots,
            });
            let counts = !matches!(choosing, Choosing::Forced(_)) && part >= select::LEAST_DATAGRAM && path == wanted;
            let measures = counts && {
                let at_once = if path == PathKind::Write { count } else { place.socket.shared_at_once() };
                let bytes = train.items.iter().take(at_once).map(|item| item.length as usize).sum();
                let at = self.began + Duration::from_nanos(now);
                choosing.tell(|selector| selector.measures(path, bytes, at)) == Some(true)
            };
            let begin = measures.then(Instant::now);
            let before = place.socket.counts;
            match place.socket.send_train(to.as_ref(), heads, &payloads[..count], sharing) {
                Ok(sent) => {
                    let now_done = &mut done[sent.path as usize];
                    now_done.sends += place.socket.counts.sends - before.sends;
                    now_done.bytes += place.socket.counts.bytes - before.bytes;
                    if let Some(errno) = sent.refused {
                        done[path as usize].refused += 1;
                        refused.note(path, &errno);
                    }
                    if counts {
                        let bytes = train.items[..sent.count].iter().map(|item| item.length as usize).sum();
                        let end = begin.map(|begin| (begin, Instant::now()));
                        choosing.tell(|selector| match end {
                            _ if path != PathKind::Write && sent.path == PathKind::Write => {
                                if sent.refused.is_some() {
                                    selector.refused(path);
                                }
                            }
                            Some((begin, end)) => {
                                let under_way = session.sender.unacknowledged();
                                selector.called(path, sent.count as f64, bytes, end - begin, under_way, end);
                            }
                            None => selector.passed(bytes),
                        });
                    }
                    session.sender.sent(train, sent.count, sent.pinned, now, &mut session.done);
                    self.happened.extend(session.done.drain(..).map(Happened::Completed));
                    if sent.is_full {
                        return true;
                    }
                }
                Err(Errno::AGAIN) => {
                    if counts {
                        choosing.tell(|selector| selector.waited(select::SLEEP_NS));
                    }
                    session.sender.put_back(train, 0);
                    place.blocked.push(key);
                    let data = EventData::new_u64(connection.socket as u64);
                    let flags = EventFlags::IN | EventFlags::OUT;
                    return epoll::modify(&self.epoll, &place.socket, data, flags).is_err();
                }
                Err(Errno::MSGSIZE) if session.sender.segment() > LEAST_SEGMENT => {
                    session.sender.put_back(train, 0);
                    let known = if to.is_none() { place.socket.segment() } else { u32::MAX };
                    let now_bytes = session.sender.segment();
                    let smaller = if known < now_bytes { known } else { now_bytes / 2 / 64 * 64 };
                    session.sender.set_segment(smaller.max(LEAST_SEGMENT));
                }
                Err(errno) => {
                    // As good as lost on the way; silence tells in the end.
                    *broken = Some(errno.to_string());
                    session.sender.sent(train, count, false, now, &mut session.done);
                    return false;
                }
            }
        }
        true
    }

    /// Closes a connection for this reason.
    pub(super) fn close_with(&mut self, key: u64, reason: Closed, events: &mut Vec<Event>) {
        let now = self.now();
        let Some(mut connection) = self.connections.remove(&key) else { return };
        self.happened.extend(connection.session.done.drain(..).map(Happened::Completed));
        self.tell(key, events);
        // In a forked child the board is not there.
        if let Some(board) = self.board.as_mut().filter(|_| self.slots.check_fork().is_ok()) {
            board.leave(connection.row);
        }
        let ended_at = connection.session.receiver.ended_at().filter(|_| matches!(reason, Closed::Ended));
        connection.session.receiver.forget(&mut self.slots);
        connection.in_line.into_iter().for_each(|place| self.slots.leave_line(place));
        if let Some(timer) = connection.timer {
            self.timers.remove(&(timer, key));
        }
        let word = connection.session.word;
        if let Some(Some(place)) = self.places.get_mut(connection.socket) {
            if !matches!(reason, Closed::Ended | Closed::SessionLost) && connection.announced && !connection.is_deaf {
                let reset = Head { epoch: connection.session.epoch, ..Head::empty(Kind::Reset, word) };
                let _ = place.socket.send_small(connection.to.as_ref(), &reset.bytes());
            }
            let (tokens, kept) = connection.session.sender.fail();
            let owed = place.socket.open_flights(key);
            if !kept.is_empty() && owed > 0 {
                self.orphans.insert(key, Orphan { kept, owed });
            }
            place.blocked.retain(|&blocked| blocked != key);
            if place.owner == Some(key) {
                (place.owner, place.leaves_at) = (None, Some(now + LEAVING));
                self.timers.insert((now + LEAVING, u64::MAX));
            }
            let connection = ConnectionId(key);
            events.extend(tokens.into_iter().map(|token| Event::Failed { connection, token }));
        }
        self.see_off_if_unused(connection.socket, now);
        if self.words.get(&word) == Some(&key) {
            self.words.remove(&word);
        }
        if connection.announced && self.gone_words.insert(word, ended_at).is_none() {
            self.gone.push_back(word);
            if self.gone.len() > GONE
                && let Some(oldest) = self.gone.pop_front()
            {
                self.gone_words.remove(&oldest);
            }
        }
        events.push(Event::Closed { connection: ConnectionId(key), reason });
    }

    /// Has a socket that takes no new sessions go, once it has none.
    pub(super) fn see_off_if_unused(&mut self, index: usize, now: Nanos) {
        let Some(Some(place)) = self.places.get_mut(index) else { return };
        let has_stopped = place.listens && !place.accepts && place.leaves_at.is_none();
        if has_stopped && !self.connections.values().any(|connection| connection.socket == index) {
            place.leaves_at = Some(now + LEAVING);
            self.timers.insert((now + LEAVING, u64::MAX));
        }
    }

    /// Lets go of sockets whose time is over and of which the kernel reads nothing more.
    fn see_off(&mut self, now: Nanos) {
        let mut again = None;
        for (index, place) in self.places.iter_mut().enumerate() {
            let Some(leaves_at) = place.as_ref().and_then(|place| place.leaves_at) else { continue };
            let owed = place.as_ref().is_some_and(|place| place.socket.owed() > 0);
            if leaves_at <= now && !owed {
                self.by_key.retain(|_, of| *of != index);
                *place = None;
            } else {
                let at = leaves_at.max(now + nanos(LOOK_AGAIN));
                again = Some(again.map_or(at, |again: Nanos| again.min(at)));
            }
        }
        self.timers.extend(again.map(|at| (at, u64::MAX)));
    }

    /// Takes the notifications of a socket.
    fn take_notifications(&mut self, index: usize) {
        let mut released = core::mem::take(&mut self.released);
        if let Some(Some(place)) = self.places.get_mut(index)
            && place.socket.owed() > 0
        {
            let begin = Instant::now();
            // What was said of so many sends of a connection, by one path.
            let mut told: Vec<(u64, PathKind, u32, bool)> = Vec::new();
            place.socket.notifications(&mut |flight, copied| {
                if let Some(connection) = self.connections.get_mut(&flight.connection) {
                    let done = &mut connection.done[flight.path as usize];
                    done.notified += 1;
                    done.copied += u64::from(copied);
                } else {
                    released.push((flight.connection, u64::MAX, 0));
                }
                match told.last_mut() {
                    Some((connection, path, count, says))
                        if (*connection, *path) == (flight.connection, flight.path) =>
                    {
                        (*count, *says) = (*count + 1, copied);
                    }
                    _ => told.push((flight.connection, flight.path, 1, copied)),
                }
                released.extend(flight.items.iter().map(|item| (flight.connection, item.sequence, item.length)));
            });
            let all: u32 = told.iter().map(|(_, _, count, _)| count).sum();
            let took = begin.elapsed() / all.max(1);
            for (key, path, count, copied) in told {
                if let Some(connection) = self.connections.get_mut(&key) {
                    connection.choosing.tell(|selector| selector.notified(path, copied, count, took * count));
                }
            }
        }
        for (key, piece, bytes) in released.drain(..) {
            if let Some(connection) = self.connections.get_mut(&key) {
                connection.session.sender.unpin(piece, bytes, &mut connection.session.done);
                self.make_dirty(key);
            } else if piece == u64::MAX
                && let Some(orphan) = self.orphans.get_mut(&key)
            {
                orphan.owed -= 1;
                if orphan.owed == 0 {
                    self.orphans.remove(&key);
                }
            }
        }
        self.released = released;
    }

    /// Looks for late notifications.
    pub(super) fn settle(&mut self) {
        for index in 0..self.places.len() {
            self.take_notifications(index);
        }
    }

    /// How long to wait at the most: until something is due, or has to be looked at.
    pub(super) fn wait_at_most(&self, deadline: Option<Instant>) -> Option<Duration> {
        let now = self.now();
        let due = self.timers.first().map(|&(due, _)| Duration::from_nanos(due.saturating_sub(now)));
        let deadline = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let look_again = (!self.starved.is_empty()).then_some(LOOK_AGAIN);
        let told = self.board.as_ref().and_then(Board::due);
        let told = told.map(|told| told.saturating_duration_since(Instant::now()));
        [due, deadline, look_again, told].into_iter().flatten().min()
    }
}
