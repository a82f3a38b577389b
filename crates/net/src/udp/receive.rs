//! How datagrams come in: into the slots where they will live, if what comes is what was expected.
//!
//! ```text
//! one call     │ head │ stretch │ head │ stretch │ … │ head │ stretch │ stage …
//!                cell   of a slot  cell                        rest of the piece
//! ```
//!
//! The kernel hands out a train as one run of bytes. When the last datagrams were parts of a large piece, the next are
//! likely to be the parts that follow: heads go to cells, and what lies between them to the stretches of the slot where
//! it belongs. If another train came, everything is copied out and put where it belongs, which is counted. The
//! stretches are of bytes that did not come yet, so that nothing is lost by that.

use std::io::IoSliceMut;

use super::datagram::{END, HEAD_BYTES, NotOurs};
use super::greet::{HELLO_DATAGRAM, hello_datagram, hello_of};
use super::receiver::{Expected, Landed};
use super::socket::{MOST_BYTES, MOST_SEGMENTS};
use super::*;
use crate::greeting::{ENDED_SESSION, UNKNOWN_SESSION};

/// How often a socket is read before others have their turn.
const RECEIVES: usize = 32;
/// Buffers of a call: heads, stretches, and the stage.
const BUFFERS: usize = 2 * MOST_SEGMENTS + 1;

/// How a train lies in its buffers.
struct Layout {
    received: sys::Received,
    /// How many cells and stretches there were.
    cells: usize,
    expected: Option<Expected>,
    /// Bytes of each stretch but the last.
    segment: usize,
    /// The longest piece that takes a small slot, and the longest of all.
    sizes: (u32, u32),
    /// The session that they are expected of.
    word: u64,
    epoch: u32,
}

impl Layout {
    /// The datagrams up to the stage, if every one is that which was expected there: a run of consecutive numbers whose
    /// payloads lie one behind the other.
    fn run(&self, buffers: &[IoSliceMut<'_>]) -> Option<Run> {
        let &Self { received, cells, expected, segment, sizes, word, epoch } = self;
        let expected = expected?;
        let step = received.segment;
        let count = received.bytes.div_ceil(step.max(1));
        if received.was_cut || (count > 1 && step != HEAD_BYTES + segment) {
            return None;
        }
        let mut run: Option<Run> = None;
        for at in 0..count.min(cells) {
            let bytes = step.min(received.bytes - at * step);
            let head = Head::decode(&buffers[2 * at]).ok()?;
            let begin = expected.begin + (at * segment) as u32;
            let is_due = match &run {
                None => {
                    head.kind == Kind::Data
                        && (head.session, head.epoch) == (word, epoch)
                        && expected.is_begun_by(&head, sizes)
                }
                Some(Run { head: first, .. }) => {
                    Some(head.number) == first.number.checked_add(at as u64)
                        && head == Head { number: head.number, begin, ..*first }
                }
            };
            if !is_due || bytes < HEAD_BYTES || bytes > HEAD_BYTES + buffers[2 * at + 1].len() {
                return None;
            }
            let run = run.get_or_insert(Run { head, datagrams: 0, bytes: 0 });
            (run.datagrams, run.bytes) = (run.datagrams + 1, run.bytes + bytes - HEAD_BYTES);
        }
        run
    }
}

/// Datagrams whose payloads lie where they belong, one behind the other.
#[derive(Clone, Copy)]
struct Run {
    /// Of the first; the others differ in their number and in where they begin.
    head: Head,
    datagrams: usize,
    bytes: usize,
}

/// Copies a train out of its buffers, one datagram behind the other.
fn flatten(buffers: &[IoSliceMut<'_>], bytes: usize, flat: &mut Vec<u8>) {
    flat.clear();
    for buffer in buffers {
        let rest = (bytes - flat.len()).min(buffer.len());
        flat.extend_from_slice(&buffer[..rest]);
    }
}

/// Whether an error is what a message of ICMP became, by the kernel's tables `icmp_err_convert` and `tab_unreach`.
fn is_hint(errno: Errno) -> bool {
    let of_both = [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::MSGSIZE, Errno::PROTO];
    let of_one = [Errno::ACCESS, Errno::NOPROTOOPT, Errno::OPNOTSUPP, Errno::HOSTDOWN, Errno::NONET];
    of_both.contains(&errno) || of_one.contains(&errno)
}

impl UdpTransport {
    /// Takes what a socket has received.
    pub(super) fn receive(&mut self, index: usize, events: &mut Vec<Event>) -> Result<(), TransportError> {
        let mut stage = self.slots.take_stage();
        let mut result = Ok(());
        for _ in 0..RECEIVES {
            match self.receive_once(index, &mut stage, events) {
                Ok(()) => {}
                Err(Errno::AGAIN) => {
                    if let Some(Some(place)) = self.places.get_mut(index) {
                        place.is_readable = false;
                    }
                    break;
                }
                // What the path says of earlier datagrams is a hint, and anybody could have sent it.
                Err(errno) if is_hint(errno) => {
                    let owner = self.places.get(index).and_then(Option::as_ref).and_then(|place| place.owner);
                    if let Some(connection) = owner.and_then(|owner| self.connections.get_mut(&owner)) {
                        connection.broken.get_or_insert_with(|| "the peer's host says that nobody is there".into());
                    }
                }
                Err(Errno::NOMEM | Errno::NOBUFS) => break,
                Err(errno) => {
                    result = Err(failed("recvmsg")(errno));
                    break;
                }
            }
        }
        self.slots.return_stage(stage);
        result
    }

    fn receive_once(&mut self, index: usize, stage: &mut [u8], events: &mut Vec<Event>) -> Result<(), Errno> {
        let Some(Some(place)) = self.places.get_mut(index) else { return Err(Errno::AGAIN) };
        let connection = place.expects.and_then(|key| self.connections.get_mut(&key));
        let mut cells = [[0_u8; HEAD_BYTES]; MOST_SEGMENTS];
        let mut buffers: [IoSliceMut<'_>; BUFFERS] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let mut layout = Layout {
            received: sys::Received { bytes: 0, segment: 0, from: None, was_cut: false },
            cells: 0,
            expected: None,
            segment: 0,
            sizes: self.slots.sizes(),
            word: 0,
            epoch: 0,
        };
        let mut flat = core::mem::take(&mut self.flat);
        let mut ahead = None;
        if let Some(connection) = connection
            && let Some(expected) = connection.session.receiver.expected().filter(|_| connection.their_segment > 0)
        {
            layout.segment = connection.their_segment as usize;
            (layout.word, layout.epoch) = (connection.session.word, connection.session.epoch);
            if expected.is_new {
                ahead = self.slots.take_ahead();
            }
            let slot = match &mut ahead {
                Some(slot) => Some(slot),
                None => connection.session.receiver.slot_of(&expected),
            };
            if let Some(slot) = slot {
                layout.expected = Some(expected);
                let most = MOST_BYTES.div_ceil(HEAD_BYTES + layout.segment).min(MOST_SEGMENTS);
                let stretches =
                    slot.bytes_mut(expected.end as usize)[expected.begin as usize..].chunks_mut(layout.segment);
                for (at, (cell, stretch)) in cells.iter_mut().zip(stretches).take(most).enumerate() {
                    buffers[2 * at] = IoSliceMut::new(cell);
                    buffers[2 * at + 1] = IoSliceMut::new(stretch);
                    layout.cells += 1;
                }
            }
        }
        let room = 2 * layout.cells;
        buffers[room] = IoSliceMut::new(stage);
        let result = place.socket.receive(&mut buffers[..=room]);
        if let Ok(received) = result {
            layout.received = received;
            // Copied out at once if anything is not where it was expected.
            let run = layout.run(&buffers[..room]);
            // Without cells everything lies in the stage already.
            if run.is_none() && layout.cells > 0 {
                flatten(&buffers[..=room], received.bytes, &mut flat);
            }
            let staged = if run.is_none() && layout.cells > 0 { &flat[..] } else { stage };
            self.hand_on(index, received, run, staged, &mut ahead, events);
        }
        self.flat = flat;
        if let Some(slot) = ahead {
            self.slots.put_back(slot);
        }
        result.map(|_| ())
    }

    /// Hands on the datagrams of a train: those that lie in place together, the others, which lie in the stage, one by
    /// one.
    fn hand_on(
        &mut self,
        index: usize,
        received: sys::Received,
        run: Option<Run>,
        stage: &[u8],
        ahead: &mut Option<Slot>,
        events: &mut Vec<Event>,
    ) {
        let (step, from) = (received.segment.max(1), received.from);
        // A datagram that is too long for all buffers is none of ours.
        let bytes = if received.was_cut { 0 } else { received.bytes };
        if let Some(Run { head, datagrams, bytes }) = run {
            self.datagram(index, from, Ok(head), Landed::InPlace { bytes, datagrams: datagrams as u64 }, ahead, events);
        }
        let placed = run.map_or(0, |run| run.datagrams * step);
        for begin in (placed..bytes).step_by(step) {
            let datagram = &stage[begin - placed..][..step.min(bytes - begin)];
            let body = datagram.get(HEAD_BYTES..).unwrap_or(&[]);
            self.datagram(index, from, Head::decode(datagram), Landed::Elsewhere(body), ahead, events);
        }
    }

    /// Takes one datagram, or a run of them with the first one's head.
    fn datagram(
        &mut self,
        index: usize,
        from: Option<SocketAddr>,
        head: Result<Head, NotOurs>,
        landed: Landed<'_>,
        ahead: &mut Option<Slot>,
        events: &mut Vec<Event>,
    ) {
        let (Some(from), Ok(head)) = (from, head) else {
            self.strays.foreign += 1;
            return;
        };
        let body = match landed {
            Landed::Elsewhere(body) => body,
            Landed::InPlace { .. } => &[],
        };
        let Some(Some(place)) = self.places.get(index) else { return };
        let (listens, owner) = (place.listens, place.owner);
        // A socket that is about to go greets nobody.
        let greets = listens && place.leaves_at.is_none();
        match head.kind {
            Kind::Hello if greets => return self.asked(index, from, HEAD_BYTES + body.len(), body),
            Kind::Proof if greets => return self.proved(index, from, body, events),
            Kind::Hello | Kind::Proof => {
                self.strays.unproved += 1;
                return;
            }
            _ => {}
        }
        let key = if listens { self.words.get(&head.session).copied() } else { owner };
        let known = key.and_then(|key| Some((key, self.connections.get_mut(&key)?)));
        let Some((key, connection)) =
            known.filter(|(_, connection)| connection.session.word == head.session && connection.peer == from)
        else {
            self.strays.unknown += 1;
            let is_ours = key.is_none() && matches!(head.kind, Kind::Data | Kind::Control);
            if is_ours && self.resets > 0 {
                self.resets -= 1;
                self.reset(index, &from, &head, listens);
            }
            return;
        };
        if connection.is_deaf {
            return;
        }
        match head.kind {
            Kind::Answer => {
                if let Some(theirs) = hello_of(body) {
                    self.answered(key, &theirs, events);
                }
            }
            Kind::Reset => self.was_reset(key, &head, events),
            _ => self.of_session(index, key, &head, landed, ahead, events),
        }
    }

    /// Takes a datagram of a session.
    fn of_session(
        &mut self,
        index: usize,
        key: u64,
        head: &Head,
        landed: Landed<'_>,
        ahead: &mut Option<Slot>,
        events: &mut Vec<Event>,
    ) {
        let now = self.now();
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if let Stage::Greeting(greeting) = &connection.stage {
            // The first word of the new epoch is the answer to the proof.
            if greeting.proof.is_none() || head.epoch != greeting.ours.epoch {
                self.strays.old_epoch += 1;
                return;
            }
            let epoch = greeting.ours.epoch;
            self.open(key, epoch, events);
        }
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if head.epoch != connection.session.epoch {
            self.strays.old_epoch += 1;
            return;
        }
        // Of several that came at once each but the last is as long as was expected.
        if head.kind == Kind::Data && landed.datagrams() == 1 {
            let bytes = landed.len();
            let rest = head.message_bytes.saturating_sub(head.offset).saturating_sub(head.begin);
            let is_last = bytes >= rest.min(self.slots.sizes().1.saturating_sub(head.begin)) as usize;
            // The last of a piece may be short, and says nothing about the next.
            if !is_last || connection.their_segment < bytes as u32 {
                connection.their_segment = bytes as u32;
            }
        }
        let session = &mut connection.session;
        let taken = session.take(head, landed, ahead, &mut self.slots, &mut self.happened, now);
        match taken {
            Ok(used) => {
                if used {
                    connection.last_heard = now;
                    if matches!(connection.stage, Stage::Silent) {
                        connection.stage = Stage::Open;
                        session.receiver.excuse();
                        (connection.deadline, connection.broken) = (None, None);
                        events.push(Event::Resumed { connection: ConnectionId(key) });
                    }
                    if head.kind == Kind::Data
                        && let Some(Some(place)) = self.places.get_mut(index)
                    {
                        place.expects = Some(key);
                    }
                }
                self.tell(key, events);
                self.make_dirty(key);
            }
            Err(fault) => {
                self.tell(key, events);
                self.close_with(key, fault.into(), events);
            }
        }
    }

    /// Says that there is no such session any more, and whether it ended well.
    fn reset(&mut self, index: usize, from: &SocketAddr, head: &Head, listens: bool) {
        let Some(Some(place)) = self.places.get_mut(index) else { return };
        let mut reset = Head { epoch: head.epoch, ..Head::empty(Kind::Reset, head.session) };
        if let Some(&Some(pieces)) = self.gone_words.get(&head.session) {
            (reset.flags, reset.sequence) = (END, pieces);
        }
        let to = listens.then(|| SocketAddrAny::from(*from));
        let _ = place.socket.send_small(to.as_ref(), &reset.bytes());
    }

    /// The peer says that it does not know the session.
    fn was_reset(&mut self, key: u64, head: &Head, events: &mut Vec<Event>) {
        let Some(connection) = self.connections.get(&key) else { return };
        let current = match &connection.stage {
            Stage::Greeting(greeting) => greeting.ours.epoch,
            _ => connection.session.epoch,
        };
        if head.epoch != current || !connection.announced {
            self.strays.old_epoch += 1;
            return;
        }
        if head.has(END) {
            return self.ended_there(key, head.sequence, events);
        }
        // A peer forgets a session when both sides had ended it; only the last word of that was lost.
        let finished = connection.session.may_be_finished();
        self.close_with(key, if finished { Closed::Ended } else { Closed::SessionLost }, events);
    }

    /// Answers a hello, and keeps nothing.
    fn asked(&mut self, index: usize, from: SocketAddr, length: usize, body: &[u8]) {
        if length < HELLO_DATAGRAM {
            self.strays.foreign += 1;
            return;
        }
        let Some(theirs) = hello_of(body) else {
            self.strays.foreign += 1;
            return;
        };
        if self.check_trust(&from).is_err() {
            self.strays.untrusted += 1;
            return;
        }
        if !self.is_welcome(index, &theirs) {
            self.strays.unknown += 1;
            return;
        }
        let ours = self.answer_to(&theirs);
        let answer = self.cookies.answer(self.now(), &from, &theirs, ours, self.options.key.as_ref());
        if let Some(Some(place)) = self.places.get_mut(index) {
            let to = SocketAddrAny::from(from);
            let _ = place.socket.send_small(Some(&to), &hello_datagram(Kind::Answer, &answer));
        }
    }

    /// Our hello to theirs, without nonce and proof.
    fn answer_to(&self, theirs: &Hello) -> Hello {
        let is_known = self.known_session(theirs).is_some();
        let ended = self.gone_words.get(&word_of(&theirs.session)).copied().flatten();
        let epoch = match ended {
            _ if is_known || theirs.epoch == 0 => theirs.epoch,
            Some(_) => ENDED_SESSION,
            None => UNKNOWN_SESSION,
        };
        let resume_from = ended.filter(|_| epoch == ENDED_SESSION).unwrap_or(0);
        Hello { resume_from, ..self.hello(theirs.session, epoch, [0; 32]) }
    }

    /// Whether a listener takes whoever says this: when it has stopped, only those whom it knows.
    fn is_welcome(&self, index: usize, theirs: &Hello) -> bool {
        let accepts = self.places.get(index).and_then(Option::as_ref).is_some_and(|place| place.accepts);
        accepts || self.known_session(theirs).is_some()
    }

    fn known_session(&self, theirs: &Hello) -> Option<u64> {
        let key = *self.words.get(&word_of(&theirs.session))?;
        self.connections.get(&key).filter(|connection| connection.name == theirs.session).map(|_| key)
    }

    /// Takes the proof that somebody hears us, and has the key.
    fn proved(&mut self, index: usize, from: SocketAddr, body: &[u8], events: &mut Vec<Event>) {
        let now = self.now();
        let Some(theirs) = hello_of(body) else {
            self.strays.foreign += 1;
            return;
        };
        let ours = self.answer_to(&theirs);
        let own_key = self.options.key.as_ref();
        if ours.epoch != theirs.epoch || !self.cookies.is_proved(now, &from, &theirs, ours, body, own_key) {
            self.strays.unproved += 1;
            return;
        }
        let peer = (theirs.incarnation, theirs.small_bytes, theirs.slot_bytes);
        if let Some(key) = self.known_session(&theirs) {
            let Some(connection) = self.connections.get_mut(&key) else { return };
            if connection.theirs != Some(peer) || theirs.epoch < connection.session.epoch {
                self.strays.unproved += 1;
                return;
            }
            if theirs.epoch == connection.session.epoch {
                // Our first word was lost; it did not hear it.
                if connection.peer == from {
                    connection.session.sender.ping = true;
                    self.make_dirty(key);
                }
                return;
            }
            (connection.peer, connection.to) = (from, Some(from.into()));
            let before = core::mem::replace(&mut connection.socket, index);
            if matches!(connection.stage, Stage::Open) {
                let reason = "the peer connected anew".into();
                events.push(Event::Interrupted { connection: ConnectionId(key), reason });
            }
            self.see_off_if_unused(before, now);
            return self.open(key, theirs.epoch, events);
        }
        if !self.is_welcome(index, &theirs) {
            self.strays.unknown += 1;
            return;
        }
        let word = word_of(&theirs.session);
        if self.words.contains_key(&word) || self.gone_words.contains_key(&word) {
            self.strays.unproved += 1;
            return;
        }
        if self.connections.len() >= self.options.connections {
            self.strays.too_many += 1;
            return;
        }
        let Some(Some(place)) = self.places.get(index) else { return };
        let room = place.socket.buffers().0;
        let segment = DatagramSocket::segment_to(&from);
        let mut connection = self.connection(index, Some(from.into()), from, theirs.session, (segment, room), now);
        connection.session.sender.begin(&theirs);
        connection.theirs = Some(peer);
        let key = self.keep(connection);
        self.words.insert(word, key);
        events.push(Event::Accepted { listener: Some(self.listener(index)), connection: ConnectionId(key) });
        self.open(key, theirs.epoch, events);
    }
}
