//! The turns of a transport: what is ready, what is due, and what becomes of connections.

use std::time::{Duration, Instant};

use std::io::IoSliceMut;

use super::*;

/// How many newcomers that wait for slots are looked at at a time.
const NEWCOMERS: usize = 16;
/// How many of the others, in turn: a poll does not take longer the more there are.
const STARVED: usize = 64;

/// A poll returns when it has so many events to tell, or a few more: whoever answers them finds the connections, here
/// and in the kernel, still in the processor's caches, which those of a whole look at the descriptor are not.
const TOLD: usize = 8;

/// So many turns before its own a connection is fetched into the processor's caches: among thousands none is there.
const FETCHED_AHEAD: usize = 1;

/// What became of a greeting socket.
enum Answer {
    /// It goes on later.
    Waiting,
    /// It is over: the socket is of no use.
    Over,
}

/// What a turn says that no message carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Saying {
    /// What cannot wait: an answer is expected, and the next poll says the rest.
    Expecting,
    /// What is due.
    Due,
    /// Everything.
    All,
}

impl StreamTransport {
    /// Does everything that can be done now.
    pub(super) fn work(&mut self, events: &mut Vec<Event>) -> Result<(), TransportError> {
        if let Some(board) = &mut self.board
            && !(self.dirty.is_empty() && self.ready.is_empty())
        {
            board.note();
        }
        for _ in 0..self.dirty.len() {
            let Some(key) = self.dirty.pop_front() else { break };
            self.turn_sending(key, Saying::Due, events);
        }
        self.turn_hurried(events);
        let begin = events.len();
        for _ in 0..self.ready.len() {
            if events.len() >= begin + TOLD {
                break;
            }
            let Some(key) = self.ready.pop_front() else { break };
            self.unseen = self.unseen.saturating_sub(1);
            self.places.unmark(key, mark::QUEUED);
            if let Some(&later) = self.ready.get(FETCHED_AHEAD) {
                self.places.prefetch(later);
            }
            match self.places.get(key) {
                Some(Entry::Stranger(_)) => {
                    if matches!(self.turn_stranger(key, events)?, Answer::Over) {
                        self.forget_stranger(key);
                    }
                }
                Some(Entry::Connection(connection)) => match connection.stage {
                    Stage::Greeting { .. } => self.turn_greeting(key, events),
                    Stage::Open => {
                        self.places.unmark(key, mark::PATIENT);
                        // One that was in a hurry has had its turn.
                        if self.places.is_marked(key, mark::READY) {
                            self.turn_receiving(key, events);
                        }
                    }
                    Stage::Broken { .. } => _ = self.places.unmark(key, mark::READY),
                },
                Some(Entry::Listener(_)) | None => {}
            }
        }
        self.feed_starved(events);
        if !self.orphans.is_empty() {
            self.settle_orphans();
        }
        if !self.leaving.is_empty() {
            self.see_off();
        }
        Ok(())
    }

    /// Sends what a connection has to send.
    pub(super) fn turn_sending(&mut self, key: u64, saying: Saying, events: &mut Vec<Event>) {
        self.places.unmark(key, mark::DIRTY);
        let Some(connection) = self.places.connection(key) else { return };
        match connection.stage {
            Stage::Open => {}
            Stage::Greeting { .. } => return self.make_ready(key),
            Stage::Broken { .. } => return,
        }
        // An end is answered at once: nothing comes that could carry the acknowledgement.
        let sent = match saying {
            Saying::Expecting if !connection.link.is_ended() => connection.link.send_expecting(&mut self.slots),
            saying => connection.link.send(&mut self.slots, saying == Saying::All || connection.link.is_ended()),
        };
        while let Some((path, reason)) = connection.link.take_refusal() {
            events.push(Event::PathRefused { connection: ConnectionId(key), path, reason });
        }
        match sent {
            Ok(()) => {
                let (has_turn, is_heard) = (connection.link.has_turn(), connection.hearing.is_some());
                let is_blocked = connection.link.has_queued();
                let waits = saying == Saying::Expecting && connection.link.has_due_note();
                if is_blocked {
                    self.places.mark(key, mark::BLOCKED);
                } else {
                    self.places.unmark(key, mark::BLOCKED);
                }
                if waits || has_turn {
                    self.make_dirty(key);
                }
                if !is_heard {
                    self.watch_hearing(key);
                }
                self.after_turn(key, events);
            }
            Err(error) => self.lost(key, error, events),
        }
    }

    /// Receives what a connection has to receive.
    pub(super) fn turn_receiving(&mut self, key: u64, events: &mut Vec<Event>) {
        self.places.unmark(key, mark::READY);
        let hung_up = self.places.is_marked(key, mark::HUNG_UP);
        let Some(connection) = self.places.connection(key) else { return };
        let (owed, before) = (connection.link.is_owed(), events.len());
        let told = if owed { connection.link.take_notifications(&mut self.happened) } else { Ok(()) };
        let read = connection.link.receive_beside(self.connections, &mut self.slots, &mut self.happened);
        self.tell(key, events);
        match told.and(read) {
            Ok(Readiness::More) => self.make_ready(key),
            Ok(Readiness::Drained) if hung_up => self.make_ready(key),
            Ok(Readiness::Drained) => {}
            Ok(Readiness::Starved) => self.make_starved(key),
            Ok(Readiness::Eof) => {}
            Err(error) => {
                // Its last acknowledgement may be what this side's end waited for.
                self.after_turn(key, events);
                return self.lost(key, error, events);
            }
        }
        // Who was told of something may answer it, and the answer carries what is to be said.
        let saying = if events.len() > before { Saying::Expecting } else { Saying::Due };
        self.turn_sending(key, saying, events);
    }

    fn make_starved(&mut self, key: u64) {
        if let Some(connection) = self.places.connection(key)
            && !core::mem::replace(&mut connection.starved, true)
        {
            let newcomer = connection.link.is_newcomer() && !connection.link.lacks_header();
            connection.in_line = self.slots.join_line(connection.link.lacking(), newcomer);
            let line = if newcomer { &mut self.starved_newcomers } else { &mut self.starved };
            line.push_back(key);
        }
    }

    /// Looks again, after a while, whether a peer goes on with what it began.
    fn watch_progress(&mut self, key: u64) {
        let Some(connection) = self.places.connection(key) else { return };
        if connection.watched.is_none() && connection.link.is_due() {
            let due = Instant::now() + self.options.stall_timeout;
            connection.watched = Some((due, connection.link.progress()));
            self.timers.insert((due, key));
        }
    }

    /// Looks after a while whether the peer's host acknowledges what is sent.
    fn watch_hearing(&mut self, key: u64) {
        if self.options.keep_alive.is_zero() {
            return;
        }
        let due = Instant::now() + self.options.keep_alive.max(LEAST_KEEP_ALIVE);
        if let Some(connection) = self.places.connection(key) {
            connection.hearing = Some((due, connection.link.counts().receives));
            self.timers.insert((due, key));
        }
    }

    /// Gives up the socket of a peer whose host acknowledges nothing. The kernel would send again for a quarter of an
    /// hour, and ask only one to which nothing was sent. `TCP_USER_TIMEOUT` would not do: it also ends a connection
    /// whose window is shut because the peer's program is busy, although the host answers.
    fn check_hearing(&mut self, key: u64, events: &mut Vec<Event>) {
        let Some(connection) = self.places.connection(key) else { return };
        let heard = connection.hearing.take().map(|(_, receives)| receives);
        if heard != Some(connection.link.counts().receives) {
            // Something came meanwhile.
            return self.watch_hearing(key);
        }
        let Some(wire) = connection.link.wire() else { return };
        let unacknowledged = socket::unacknowledged_bytes(wire).unwrap_or(0);
        // A Unix socket has no such thing, and no network that could be away.
        let (1.., Ok(info)) = (unacknowledged, socket::tcp_info(wire)) else { return };
        if Duration::from_millis(info.silent_ms.into()) >= self.options.keep_alive.max(LEAST_KEEP_ALIVE) + ANSWERING {
            return self.lost(key, LinkError::Silent { milliseconds: info.silent_ms.into() }, events);
        }
        self.watch_hearing(key);
    }

    /// Gives up the socket of a peer that does not go on.
    fn check_progress(&mut self, key: u64, now: Instant, events: &mut Vec<Event>) {
        let stall_timeout = self.options.stall_timeout;
        let Some(connection) = self.places.connection(key) else { return };
        // The timer may be another one of this connection's, such as that of its greeting.
        let Some((_, before)) = connection.watched.take_if(|(due, _)| *due <= now) else { return };
        if connection.link.progress().goes_on(&before) || !connection.link.is_due() {
            return self.watch_progress(key);
        }
        let milliseconds = stall_timeout.as_millis() as u64;
        self.lost(key, LinkError::Stalled { piece: before.piece, milliseconds }, events);
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

    /// Notes what a connection owes its peer, and closes it when both sides are done.
    fn after_turn(&mut self, key: u64, events: &mut Vec<Event>) {
        let Some(connection) = self.places.connection(key) else { return };
        let owes = connection.link.owes_note();
        let waits = connection.link.is_short() || connection.link.lacks_header();
        let finished = connection.link.is_finished();
        if !owes {
            self.places.unmark(key, mark::OWES);
        } else if self.places.mark(key, mark::OWES) && self.places.mark(key, mark::OWING) {
            self.owing.push_back(key);
        }
        if waits {
            self.make_starved(key);
        }
        self.watch_progress(key);
        self.note_hurry(key);
        if !finished {
            return;
        }
        let Some(connection) = self.places.connection(key) else { return };
        if connection.accepted && !self.options.resume_for.is_zero() {
            let until = Instant::now() + self.options.resume_for;
            self.ended.remember(connection.session, connection.link.expected(), until);
        }
        let orphan = connection.link.disconnect(&mut self.slots, &mut self.happened);
        self.tell(key, events);
        if let Some(Orphan { mut wire, .. }) = orphan {
            self.by_ring_key.remove(&wire.key());
            let _ = wire.end();
            self.leaving.push((wire, Instant::now() + LEAVING));
        }
        self.forget(key);
        events.push(Event::Closed { connection: ConnectionId(key), reason: Closed::Ended });
    }

    /// Says what is owed, because nothing else will.
    pub(super) fn flush(&mut self, events: &mut Vec<Event>) {
        // In turn: one whose socket takes nothing comes again at once, and must not hide the others.
        for _ in 0..self.owing.len() {
            let Some(key) = self.owing.pop_front() else { break };
            self.places.unmark(key, mark::OWING);
            if self.places.unmark(key, mark::OWES) {
                self.turn_sending(key, Saying::All, events);
            }
        }
    }

    /// Gives slots that became free to connections that wait for some: at once to those that have received something,
    /// now and then to newcomers, who may be many.
    fn feed_starved(&mut self, events: &mut Vec<Event>) {
        if self.starved.is_empty() && self.starved_newcomers.is_empty() {
            return;
        }
        // What was too little for everybody a moment ago still is.
        let counts = (self.slots.counts(), self.slots.newcomers_wait());
        if self.fed.is_none_or(|(fed, _)| fed != counts) {
            self.fed = Some((counts, self.starved.len()));
        }
        if let Some((_, left)) = &mut self.fed {
            let (looked, before) = ((*left).min(STARVED).min(self.starved.len()), self.starved.len());
            *left -= looked;
            for _ in 0..looked {
                let Some(key) = self.starved.pop_front() else { break };
                self.feed(key, events);
            }
            let served = before.saturating_sub(self.starved.len());
            if served > 0 {
                // Who got nothing keeps its place.
                self.starved.rotate_right(looked - served);
            }
        }
        if self.starved_newcomers.is_empty() {
            return;
        }
        let now = Instant::now();
        if self.newcomers_next.is_none_or(|next| next <= now) {
            self.newcomers_next = Some(now + LOOK_AGAIN);
            for _ in 0..self.starved_newcomers.len().min(NEWCOMERS) {
                let Some(key) = self.starved_newcomers.pop_front() else { break };
                self.feed(key, events);
            }
        }
    }

    fn feed(&mut self, key: u64, events: &mut Vec<Event>) {
        let Some(connection) = self.places.connection(key) else { return };
        connection.starved = false;
        self.slots.leave_line(core::mem::take(&mut connection.in_line));
        if !matches!(connection.stage, Stage::Open) {
            return;
        }
        let lacked = (connection.link.lacks_header(), connection.link.lacking());
        connection.link.top_up(&mut self.slots, true);
        if connection.link.lacks_slot() {
            self.turn_receiving(key, events);
        } else if lacked.0 || lacked.1 != connection.link.lacking() || !connection.link.is_short() {
            // It stands in line again by that turn if it waits for slots of the other class, too.
            self.turn_sending(key, Saying::Due, events);
        } else {
            self.make_starved(key);
        }
    }

    pub(super) fn settle_orphans(&mut self) {
        for orphan in &mut self.orphans {
            let _ = orphan.wire.notifications(&mut |_| ());
        }
        self.orphans.retain(|orphan| orphan.wire.owed() > 0);
    }

    /// Lets go of sockets whose peer has read everything.
    fn see_off(&mut self) {
        let now = Instant::now();
        let mut nowhere = [0; 4096];
        let before = self.leaving.len();
        self.leaving.retain_mut(|(wire, until)| {
            for _ in 0..64 {
                match wire.receive(&mut [IoSliceMut::new(&mut nowhere)]) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(_) => return false,
                }
            }
            now < *until
        });
        if self.leaving.len() < before {
            self.resume_listening();
        }
    }

    /// Goes on with the greeting of the side that connects.
    fn turn_greeting(&mut self, key: u64, events: &mut Vec<Event>) {
        self.places.unmark(key, mark::READY);
        let Some(connection) = self.places.connection(key) else { return };
        let Stage::Greeting { wire, greeting, .. } = &mut connection.stage else { return };
        match greeting.go_on(&mut **wire) {
            Ok(Greeted::Waiting | Greeted::Asked(_)) => {}
            Err(LinkError::System { source, .. }) if source.raw_os_error() == Some(libc::ENOTCONN) => {}
            Err(error) => self.lost(key, error, events),
            Ok(Greeted::Done { ours, theirs }) => self.greeted(key, &ours, &theirs, events),
        }
    }

    /// Both sides said hello; this one connected.
    fn greeted(&mut self, key: u64, ours: &Hello, theirs: &Hello, events: &mut Vec<Event>) {
        if theirs.epoch == UNKNOWN_SESSION {
            return self.close_with(key, Closed::SessionLost, events);
        }
        if theirs.epoch == ENDED_SESSION {
            return self.ended_there(key, ours, theirs, events);
        }
        let Some(connection) = self.places.connection(key) else { return };
        let peer = peer_of(theirs);
        let fault = if theirs.session != ours.session {
            Some(PeerFault::Incarnation)
        } else if theirs.epoch != ours.epoch {
            Some(PeerFault::OldEpoch { claimed: theirs.epoch, epoch: ours.epoch })
        } else {
            changed(connection.peer, peer)
        };
        if let Some(fault) = fault {
            return self.close_with(key, fault.into(), events);
        }
        let stage = Stage::Broken { next: None };
        let Stage::Greeting { wire, .. } = core::mem::replace(&mut connection.stage, stage) else { return };
        connection.peer = Some(peer);
        self.open(key, *wire, ours, theirs, events);
    }

    /// The peer remembers that both sides had ended it: only its last frame was lost.
    fn ended_there(&mut self, key: u64, ours: &Hello, theirs: &Hello, events: &mut Vec<Event>) {
        let Some(connection) = self.places.connection(key) else { return };
        let fault = match changed(connection.peer, peer_of(theirs)) {
            _ if theirs.session != ours.session => Some(PeerFault::Incarnation),
            Some(fault) => Some(fault),
            None => connection.link.ended(theirs, &mut self.happened).err(),
        };
        if let Some(fault) = fault {
            return self.close_with(key, fault.into(), events);
        }
        // Nothing failed: what is left of the connection is its own memory.
        self.close_with(key, Closed::Ended, events);
    }

    /// Goes on over a wire that was greeted on.
    fn open(&mut self, key: u64, wire: StreamWire, ours: &Hello, theirs: &Hello, events: &mut Vec<Event>) {
        let ring_key = wire.key();
        let Some(connection) = self.places.connection(key) else { return };
        if connection.row.is_some() {
            connection.addresses = [Address::of(wire.as_fd()), Address::of_peer(wire.as_fd())];
        }
        let host = match Address::of_peer(wire.as_fd()) {
            Some(Address::Tcp(address)) => Some(address.ip()),
            // Unix sockets all lead to one host.
            _ => None,
        };
        connection.link.learn_from(&self.experiences.of(host));
        match connection.link.connect(wire, ours, theirs, &mut self.happened) {
            Ok(()) => {
                self.by_ring_key.insert(ring_key, key);
            }
            Err((fault, _)) => {
                self.slots.unpromise(ours.granted);
                return self.close_with(key, fault.into(), events);
            }
        }
        let Some(connection) = self.places.connection(key) else { return };
        (connection.stage, connection.epoch) = (Stage::Open, ours.epoch);
        (connection.deadline, connection.broken, connection.wait) = (None, None, FIRST_REDIAL);
        // What was to be looked at of the socket before says nothing about this one.
        (connection.watched, connection.hearing) = (None, None);
        let announced = core::mem::replace(&mut connection.announced, true);
        let accepted = connection.accepted;
        connection.link.top_up(&mut self.slots, false);
        let connection = ConnectionId(key);
        if announced {
            events.push(Event::Resumed { connection });
        } else if !accepted {
            events.push(Event::Connected { connection });
        }
        self.tell(key, events);
        self.tell_link(key);
        self.make_ready(key);
        self.make_dirty(key);
    }

    /// Goes on with the greeting of a socket that was accepted.
    fn turn_stranger(&mut self, key: u64, events: &mut Vec<Event>) -> Result<Answer, TransportError> {
        loop {
            let Some(stranger) = self.places.stranger(key) else { return Ok(Answer::Over) };
            match stranger.greeting.go_on(&mut stranger.wire) {
                Ok(Greeted::Waiting) => return Ok(Answer::Waiting),
                Err(_) => return Ok(Answer::Over),
                Ok(Greeted::Asked(theirs)) => {
                    let (ours, granted) = self.answer_to(&theirs)?;
                    let Some(stranger) = self.places.stranger(key) else { return Ok(Answer::Over) };
                    stranger.promised = granted;
                    stranger.greeting.answer(ours);
                }
                Ok(Greeted::Done { ours, theirs }) => {
                    self.admit(key, &ours, &theirs, events)?;
                    return Ok(Answer::Over);
                }
            }
        }
    }

    /// What to say to a hello, and what credits that promises.
    fn answer_to(&mut self, theirs: &Hello) -> Result<(Hello, [u32; 2]), TransportError> {
        let known = self.sessions.get(&theirs.session).copied();
        let ended = self.ended.pieces_of(&theirs.session);
        let epoch = match (known, ended) {
            (None, Some(_)) => ENDED_SESSION,
            (None, None) if theirs.epoch > 0 => UNKNOWN_SESSION,
            _ => theirs.epoch,
        };
        // Who has not proved that it has the key is promised nothing yet.
        let promises = self.options.key.is_none() && epoch < ENDED_SESSION;
        let granted = if promises { self.first_credits() } else { [0; 2] };
        let expected = known.and_then(|key| self.places.connection(key)).map(|known| known.link.expected());
        let resume_from = expected.or(ended).unwrap_or(0);
        Ok((self.hello(theirs.session, epoch, resume_from, granted)?, granted))
    }

    /// Makes a socket that has greeted the wire of its session.
    fn admit(
        &mut self,
        stranger: u64,
        ours: &Hello,
        theirs: &Hello,
        events: &mut Vec<Event>,
    ) -> Result<(), TransportError> {
        if ours.epoch >= ENDED_SESSION {
            return Ok(());
        }
        let known = self.sessions.get(&theirs.session).copied();
        let peer = peer_of(theirs);
        let key = match known.and_then(|key| Some((key, self.places.connection(key)?))) {
            Some((key, connection)) => {
                let late = theirs.epoch < connection.epoch;
                if late || changed(connection.peer, peer).is_some() {
                    return Ok(());
                }
                if self.options.resume_for.is_zero() {
                    // Nothing goes on over another socket: what was sent over this one is not here any more.
                    self.close_with(key, Closed::Broken("the peer connected anew".into()), events);
                    return Ok(());
                }
                if matches!(connection.stage, Stage::Open) {
                    self.interrupt(key, "the peer connected anew", events);
                }
                // What came over the old socket meanwhile is not in our hello; the peer asks again.
                let expected = self.places.connection(key).map(|connection| connection.link.expected());
                if expected != Some(ours.resume_from) {
                    return Ok(());
                }
                key
            }
            // It was known when it said hello, and was forgotten while it proved that it has the key: it asks again.
            None if theirs.epoch > 0 || ours.resume_from > 0 => return Ok(()),
            None => {
                let key = self.new_connection(None, theirs.session, true);
                self.sessions.insert(theirs.session, key);
                if let Some(connection) = self.places.connection(key) {
                    connection.peer = Some(peer);
                }
                key
            }
        };
        let place = stranger;
        let Some(Entry::Stranger(stranger)) = self.places.get(place) else { return Ok(()) };
        if let Err(errno) = epoll::modify(&self.epoll, &stranger.wire, EventData::new_u64(key), BY_EDGES) {
            if known.is_none() {
                self.forget(key);
            }
            return Err(failed("epoll_ctl")(errno));
        }
        let Some(Entry::Stranger(stranger)) = self.places.remove(place) else { return Ok(()) };
        self.strangers -= 1;
        self.timers.remove(&(stranger.deadline, place));
        self.greeting.remove(&(stranger.deadline, place));
        self.resume_listening();
        let listener = stranger.listener;
        let first = self.places.connection(key).is_some_and(|connection| !connection.announced);
        if first {
            events.push(Event::Accepted { listener, connection: ConnectionId(key) });
        }
        self.open(key, stranger.wire, ours, theirs, events);
        Ok(())
    }

    /// Takes the wire of a connection away, which goes on when there is another.
    fn interrupt(&mut self, key: u64, reason: &str, events: &mut Vec<Event>) {
        let resume_for = self.options.resume_for;
        self.end_hurry(key);
        let Some(connection) = self.places.connection(key) else { return };
        debug_assert!(!connection.hurried, "its socket is not watched any more");
        let orphan = connection.link.disconnect(&mut self.slots, &mut self.happened);
        let now = Instant::now();
        let deadline = now + resume_for;
        let next = connection.origin.is_some().then_some(now);
        connection.stage = Stage::Broken { next };
        self.places.unmark(key, mark::HUNG_UP | mark::BLOCKED);
        let Some(connection) = self.places.connection(key) else { return };
        (connection.deadline, connection.broken) = (Some(deadline), Some(reason.to_string()));
        self.timers.insert((deadline, key));
        self.timers.extend(next.map(|next| (next, key)));
        self.tell(key, events);
        self.keep(orphan);
        events.push(Event::Interrupted { connection: ConnectionId(key), reason: reason.to_string() });
    }

    /// Keeps what a broken wire may still read.
    fn keep(&mut self, orphan: Option<Orphan<StreamWire>>) {
        if let Some(mut orphan) = orphan {
            self.by_ring_key.remove(&orphan.wire.key());
            orphan.wire.abort();
            let _ = epoll::delete(&self.epoll, &orphan.wire);
            if orphan.wire.owed() > 0 {
                self.orphans.push(orphan);
            }
        }
    }

    /// A wire is of no use any more.
    fn lost(&mut self, key: u64, error: LinkError, events: &mut Vec<Event>) {
        let Some(connection) = self.places.connection(key) else { return };
        let reason = with_sources(&error);
        match (error, &connection.stage) {
            (LinkError::Peer(fault), _) => self.close_with(key, fault.into(), events),
            (_, Stage::Greeting { .. }) => self.redial_later(key, reason, events),
            (_, Stage::Broken { .. }) => {}
            (_, Stage::Open) if self.options.resume_for.is_zero() || connection.cannot_resume() => {
                self.close_with(key, Closed::Broken(reason), events);
            }
            (_, Stage::Open) => self.interrupt(key, &reason, events),
        }
    }

    /// Notes that an attempt to connect failed; there is another, if there is still time.
    pub(super) fn redial_later(&mut self, key: u64, reason: String, events: &mut Vec<Event>) {
        let resume_for = self.options.resume_for;
        let Some(connection) = self.places.connection(key) else { return };
        if let Stage::Greeting { promised, .. } = connection.stage {
            self.slots.unpromise(promised);
        }
        if connection.origin.is_none() || resume_for.is_zero() {
            connection.stage = Stage::Broken { next: None };
            return self.close_with(key, Closed::Unreachable(reason), events);
        }
        let now = Instant::now();
        let deadline = *connection.deadline.get_or_insert(now + resume_for);
        let wait = connection.wait;
        let next = now + wait;
        connection.wait = (wait * 2).min(LAST_REDIAL);
        connection.stage = Stage::Broken { next: Some(next) };
        connection.broken = Some(reason);
        self.timers.insert((deadline, key));
        self.timers.insert((next, key));
    }

    /// Closes a connection for a reason that is not its good end.
    pub(super) fn close_with(&mut self, key: u64, reason: Closed, events: &mut Vec<Event>) {
        self.end_hurry(key);
        let Some(connection) = self.places.connection(key) else { return };
        let stage = core::mem::replace(&mut connection.stage, Stage::Broken { next: None });
        if let Stage::Greeting { promised, .. } = stage {
            self.slots.unpromise(promised);
        }
        let (orphan, tokens, unanswered) = connection.link.fail(&mut self.slots, &mut self.happened);
        self.tell(key, events);
        self.keep(orphan);
        self.slots.quarantine(unanswered);
        let connection = ConnectionId(key);
        events.extend(tokens.into_iter().map(|token| Event::Failed { connection, token }));
        self.forget(key);
        events.push(Event::Closed { connection, reason });
    }

    /// Does what is due by now.
    pub(super) fn timers(&mut self, events: &mut Vec<Event>) -> Result<(), TransportError> {
        let now = Instant::now();
        while let Some(&(due, key)) = self.timers.first() {
            if due > now {
                break;
            }
            self.timers.pop_first();
            match self.places.get(key) {
                Some(Entry::Stranger(stranger)) if stranger.deadline <= now => self.forget_stranger(key),
                Some(Entry::Connection(_)) => self.time_is_up(key, now, events),
                Some(Entry::Listener(_)) => self.resume_listening(),
                _ => {}
            }
        }
        self.tell_links(now);
        Ok(())
    }

    fn time_is_up(&mut self, key: u64, now: Instant, events: &mut Vec<Event>) {
        let Some(connection) = self.places.connection(key) else { return };
        if matches!(connection.stage, Stage::Open) {
            // A timer may be left from something else, for instance from before the connection was mended.
            let hears = connection.hearing.is_some_and(|(due, _)| due <= now);
            self.check_progress(key, now, events);
            if hears {
                self.check_hearing(key, events);
            }
            return;
        }
        if connection.deadline.is_some_and(|deadline| deadline <= now) {
            let reason = connection.broken.clone().unwrap_or_else(|| "it did not answer in time".into());
            let announced = connection.announced;
            return self.close_with(
                key,
                if announced { Closed::Broken(reason) } else { Closed::Unreachable(reason) },
                events,
            );
        }
        if matches!(connection.stage, Stage::Greeting { .. }) && connection.attempt.is_some_and(|until| until <= now) {
            return self.redial_later(key, "it did not answer in time".into(), events);
        }
        if let Stage::Broken { next: Some(next) } = connection.stage
            && next <= now
            && let Some(origin) = connection.origin.clone()
            && let Err(error) = origin.dial().and_then(|socket| self.begin_greeting(key, socket))
        {
            self.redial_later(key, with_sources(&error), events);
        }
    }

    /// How long to wait at the most: until something is due, or has to be looked at.
    pub(super) fn wait_at_most(&self, deadline: Option<Instant>) -> Option<Duration> {
        let now = Instant::now();
        let due = self.timers.first().map(|(due, _)| *due);
        let leaving = self.leaving.iter().map(|(_, until)| *until).min();
        let look_again = !self.starved.is_empty() || !self.starved_newcomers.is_empty() || !self.orphans.is_empty();
        let told = self.board.as_ref().and_then(Board::due);
        let until = [deadline, due, leaving, told, look_again.then(|| now + LOOK_AGAIN)].into_iter().flatten().min();
        until.map(|until| until.saturating_duration_since(now))
    }

    /// Forgets a connection; its wire went before.
    pub(super) fn forget(&mut self, key: u64) {
        if let Some(Entry::Connection(connection)) = self.places.remove(key) {
            debug_assert!(!connection.hurried, "its socket is not watched any more");
            self.connections -= 1;
            self.slots.leave_line(connection.in_line);
            if let Some(board) = &mut self.board {
                board.leave(connection.row);
            }
            if self.sessions.get(&connection.session) == Some(&key) {
                self.sessions.remove(&connection.session);
            }
            self.resume_listening();
        }
    }

    pub(super) fn forget_stranger(&mut self, key: u64) {
        if let Some(Entry::Stranger(stranger)) = self.places.remove(key) {
            self.strangers -= 1;
            self.timers.remove(&(stranger.deadline, key));
            self.greeting.remove(&(stranger.deadline, key));
            self.slots.unpromise(stranger.promised);
            self.resume_listening();
        }
    }

    /// Sends away who has greeted longest, if that was long enough; else notes when it will have been.
    pub(super) fn send_away_oldest(&mut self, listener: u64) {
        let Some(&(deadline, oldest)) = self.greeting.first() else { return };
        let (now, time) = (Instant::now(), self.options.greeting_timeout);
        let gives_way = deadline.checked_sub(time - time / GREETING_PART).unwrap_or(deadline);
        if gives_way <= now {
            self.forget_stranger(oldest);
        } else {
            self.timers.insert((gives_way, listener));
        }
    }

    /// Accepts again where that was paused.
    fn resume_listening(&mut self) {
        for listener in core::mem::take(&mut self.paused) {
            if let Some(Entry::Listener(socket)) = self.places.get(listener) {
                let _ = epoll::modify(&self.epoll, socket, EventData::new_u64(listener), EventFlags::IN);
            }
        }
    }
}

fn peer_of(hello: &Hello) -> Peer {
    Peer { incarnation: hello.incarnation, sizes: [hello.small_bytes, hello.slot_bytes] }
}

/// What is wrong with a peer that came back.
fn changed(before: Option<Peer>, now: Peer) -> Option<PeerFault> {
    match before {
        Some(before) if before.incarnation != now.incarnation => Some(PeerFault::Incarnation),
        Some(before) if before.sizes != now.sizes => {
            Some(PeerFault::Geometry { slot_bytes: now.sizes[1], before: before.sizes[1] })
        }
        _ => None,
    }
}

/// An error in words, with those behind it.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
