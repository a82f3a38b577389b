//! Links whose peers lie: frames that are wrong in every field, replayed, left out, cut off or invented. A plain oracle
//! says of each frame whether an honest peer could have sent it. What could not be is a [`PeerFault`] and ends that
//! peer alone; what came before is delivered; and no slot is lost to anybody.

mod dice;
mod hostile;
mod tape;

use std::collections::{BTreeMap, HashMap};

use dice::Dice;
use hostile::{content, is_content};
use tape::Tape;
use zcmi_mem::pool::PoolPlan;
use zcmi_net::frame::{Class, HEADER_BYTES, Header, Hello, Kind};
use zcmi_net::link::{Happened, Link, LinkError, LinkLimits, Piece, Readiness};
use zcmi_net::outgoing::{MOST_CREDITS, QueueLimits, Token};
use zcmi_net::slots::{SlotPlan, Slots};

const SMALL: u32 = 3000;
const LARGE: u32 = 9000;
const STREAMS: u32 = 5;
/// The peers' slots.
const THEIRS: [u32; 2] = [200, 5000];
/// Credits that a peer cannot know of: framed and not yet on the wire, or given and not yet told.
const UNKNOWN: u32 = 64;

/// What the oracle says of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Bad(&'static str),
    /// It depends on what a peer cannot know.
    Either,
}

#[derive(Clone, Copy)]
struct Begun {
    bytes: u32,
    next: u32,
    tag: u64,
}

/// A link under attack, and all that its peer knows.
struct Victim {
    link: Link<Tape>,
    tape: Tape,
    epoch: u32,
    /// Pieces that the link has whole.
    given: u64,
    begun: HashMap<u32, Begun>,
    told: [u32; 2],
    used: [u32; 2],
    ended: bool,
    /// Pieces that the link sent, in this epoch and ever.
    seen: u64,
    acknowledged: u64,
    granted: [u32; 2],
    its_used: [u32; 2],
    its_streams: HashMap<u32, Begun>,
    /// The same when so many pieces had come.
    its_past: BTreeMap<u64, HashMap<u32, Begun>>,
    open: HashMap<Token, ()>,
    last: Vec<u8>,
    received: Vec<Piece>,
    due: Vec<(u32, u64, u32, u32)>,
}

fn plan() -> SlotPlan {
    SlotPlan {
        small_bytes: SMALL,
        small_slots: 10,
        slot_bytes: LARGE,
        large_slots: 6,
        headers: 40,
        loans: PoolPlan::doubling(512, 20_000, 3).ok(),
    }
}

/// What a run has come to.
#[derive(Debug, Default)]
struct Tally {
    good: u64,
    faults: u64,
    cut: u64,
    resumed: u64,
    bad_hellos: u64,
    delivered: u64,
    sent: u64,
}

struct Attack {
    dice: Dice,
    slots: Slots,
    victims: Vec<Victim>,
    held: Vec<Piece>,
    tokens: u64,
    tally: Tally,
}

fn limits() -> LinkLimits {
    LinkLimits {
        queue: QueueLimits { messages: 16, bytes: 1 << 20 },
        credits: [10, 4],
        streams: STREAMS,
        pinned_bytes: 60_000,
    }
}

fn hello(epoch: u32, resume_from: u64, sizes: [u32; 2], granted: [u32; 2]) -> Hello {
    Hello {
        incarnation: [1; 16],
        session: [2; 16],
        epoch,
        resume_from,
        small_bytes: sizes[0],
        slot_bytes: sizes[1],
        streams: STREAMS,
        granted,
        nonce: [0; 32],
        proof: [0; 32],
    }
}

fn class_of(length: u32) -> usize {
    usize::from(length > SMALL)
}

impl Victim {
    fn new(slots: &Slots) -> Self {
        Self {
            link: Link::new(limits(), slots),
            tape: Tape::default(),
            epoch: 0,
            given: 0,
            begun: HashMap::new(),
            told: [0; 2],
            used: [0; 2],
            ended: false,
            seen: 0,
            acknowledged: 0,
            granted: [0; 2],
            its_used: [0; 2],
            its_streams: HashMap::new(),
            its_past: BTreeMap::new(),
            open: HashMap::new(),
            last: Vec::new(),
            received: Vec::new(),
            due: Vec::new(),
        }
    }

    /// A frame that an honest peer might send now, or one that it would not although each field is possible.
    fn frame(&self, dice: &mut Dice) -> Header {
        let give = |dice: &mut Dice, class: usize| {
            let room =
                MOST_CREDITS / 2 - (self.granted[class].wrapping_sub(self.its_used[class])).min(MOST_CREDITS / 2);
            self.granted[class].wrapping_add(dice.below(u64::from(room.min(6))) as u32)
        };
        let base = Header {
            wants: [dice.often(30), dice.often(30)],
            sequence: self.given,
            acknowledged: self.acknowledged + dice.below(self.seen - self.acknowledged + 1),
            granted: [give(dice, 0), give(dice, 1)],
            epoch: self.epoch,
            ..Header::empty(Kind::Control)
        };
        match dice.below(100) {
            0..8 => base,
            8..9 => Header { kind: Kind::End, ..base },
            _ => {
                let stream = dice.below(u64::from(STREAMS) + 1) as u32;
                let begun = self.begun.get(&stream).copied().unwrap_or_else(|| {
                    let bytes = match dice.below(7) {
                        0 => dice.below(3) as u32,
                        1 => SMALL - 2 + dice.below(5) as u32,
                        3 => 2048 + dice.below(900) as u32,
                        2 => LARGE - 2 + dice.below(5) as u32,
                        4 => dice.below(30_000) as u32,
                        _ => dice.below(300) as u32,
                    };
                    Begun { bytes, next: 0, tag: dice.next() }
                });
                let rest = begun.bytes - begun.next;
                let cut = if dice.often(20) { 1 + dice.below(u64::from(rest)) as u32 } else { rest };
                let length = cut.min(LARGE + u32::from(dice.often(1))).min(rest);
                let class = class_of(length);
                if self.told[class].wrapping_sub(self.used[class]) as i32 <= 0 && dice.often(95) {
                    let mut wants = [false; 2];
                    wants[class] = true;
                    return Header { wants, ..base };
                }
                Header {
                    kind: Kind::Data,
                    stream,
                    message_bytes: begun.bytes,
                    offset: begun.next,
                    length,
                    tag: begun.tag,
                    ..base
                }
            }
        }
    }

    /// Whether an honest peer could send this frame now.
    fn judge(&self, header: &Header) -> Verdict {
        use Verdict::{Bad, Either, Good};
        let mut verdict = Good;
        if header.epoch != self.epoch {
            return Bad("epoch");
        }
        if header.sequence != self.given {
            return Bad("sequence");
        }
        if header.acknowledged < self.acknowledged || header.acknowledged > self.seen {
            return Bad("acknowledged");
        }
        for class in 0..2 {
            let more = header.granted[class].wrapping_sub(self.granted[class]);
            let open = self.granted[class].wrapping_sub(self.its_used[class]);
            if more > MOST_CREDITS || open + more > MOST_CREDITS + UNKNOWN {
                return Bad("credits");
            }
            if open + more > MOST_CREDITS {
                verdict = Either;
            }
        }
        match header.kind {
            Kind::Control => verdict,
            Kind::End if self.ended || !self.begun.is_empty() => Bad("end"),
            Kind::End => verdict,
            _ => {
                let class = class_of(header.length);
                let due = self.begun.get(&header.stream);
                if self.ended {
                    return Bad("after the end");
                }
                if header.length > LARGE {
                    return Bad("too long");
                }
                if due.is_none() && self.begun.len() >= STREAMS as usize && header.length < header.message_bytes {
                    return Bad("streams");
                }
                let fits = match due {
                    Some(due) => (header.message_bytes, header.offset, header.tag) == (due.bytes, due.next, due.tag),
                    None => header.offset == 0,
                };
                if !fits {
                    return Bad("continuation");
                }
                if self.told[class].wrapping_sub(self.used[class]) as i32 <= 0 {
                    // It may have been given more already.
                    return Either;
                }
                verdict
            }
        }
    }

    /// Notes a frame that was taken, with all of its payload.
    fn took(&mut self, header: &Header) {
        (self.acknowledged, self.granted) = (header.acknowledged, header.granted);
        match header.kind {
            Kind::End => self.ended = true,
            Kind::Data => {
                let class = class_of(header.length);
                self.used[class] = self.used[class].wrapping_add(1);
                self.given += 1;
                self.due.push((header.stream, header.tag, header.offset, header.length));
                if header.offset + header.length == header.message_bytes {
                    self.begun.remove(&header.stream);
                } else {
                    let next = header.offset + header.length;
                    let begun = Begun { bytes: header.message_bytes, next, tag: header.tag };
                    self.begun.insert(header.stream, begun);
                }
            }
            _ => {}
        }
    }

    /// Reads what the link sent, and sees that it keeps to the rules itself.
    fn listen(&mut self) -> Result<u64, String> {
        let mut messages = 0;
        while let Some((header, payload)) = self.tape.take_frame() {
            if header.epoch != self.epoch || header.sequence != self.seen {
                return Err(format!("it sent {header:?} where piece {} was due", self.seen));
            }
            if header.acknowledged > self.given {
                return Err(format!("it acknowledged {} pieces of {}", header.acknowledged, self.given));
            }
            self.told = header.granted;
            if header.kind != Kind::Data {
                continue;
            }
            let class = usize::from(header.length > THEIRS[0]);
            if self.its_used[class] == self.granted[class] || header.length > THEIRS[1] {
                return Err(format!("it sent {header:?} without a credit"));
            }
            let due = self.its_streams.remove(&header.stream);
            let due = due.unwrap_or(Begun { bytes: header.message_bytes, next: 0, tag: header.tag });
            if (due.bytes, due.next, due.tag) != (header.message_bytes, header.offset, header.tag)
                || !is_content(header.tag, header.offset, &payload)
            {
                return Err(format!("it sent a piece that is wrong: {header:?}"));
            }
            let next = header.offset + header.length;
            if next < header.message_bytes {
                self.its_streams.insert(header.stream, Begun { next, ..due });
            } else {
                messages += 1;
            }
            self.its_used[class] = self.its_used[class].wrapping_add(1);
            self.seen += 1;
            self.its_past.insert(self.seen, self.its_streams.clone());
        }
        Ok(messages)
    }
}

impl Attack {
    fn new(seed: u64) -> Result<Self, String> {
        let slots = Slots::new(&plan()).expect("memory");
        let mut attack = Self {
            dice: Dice::new(seed),
            victims: (0..3).map(|_| Victim::new(&slots)).collect(),
            slots,
            held: Vec::new(),
            tokens: 0,
            tally: Tally::default(),
        };
        for at in 0..attack.victims.len() {
            attack.connect(at)?;
        }
        Ok(attack)
    }

    /// Connects the link anew, sometimes with a hello that cannot be.
    fn connect(&mut self, at: usize) -> Result<(), String> {
        let Self { dice, slots, victims, .. } = self;
        let victim = &mut victims[at];
        loop {
            let lie = dice.often(20);
            let resume_from = match dice.below(4) {
                0 if lie => victim.seen + 1 + dice.below(1 << 40),
                1 if lie => victim.acknowledged.wrapping_sub(1),
                // Some that it had not acknowledged were lost with its memory of them.
                2 => victim.acknowledged + dice.below(victim.seen - victim.acknowledged + 1),
                _ => victim.seen,
            };
            let granted = match dice.below(3) {
                0 if lie => [MOST_CREDITS + 1, 3],
                1 if lie => [dice.next() as u32, dice.next() as u32],
                _ => [dice.below(9) as u32, dice.below(5) as u32],
            };
            let possible = (victim.acknowledged..=victim.seen).contains(&resume_from)
                && granted.iter().all(|&granted| granted <= MOST_CREDITS);
            let ours = hello(victim.epoch, victim.link.expected(), [SMALL, LARGE], victim.link.first_credits(slots));
            let theirs = hello(victim.epoch, resume_from, THEIRS, granted);
            let (tape, wire) = Tape::new(dice.next());
            let mut happened = Vec::new();
            match victim.link.connect(wire, &ours, &theirs, &mut happened) {
                Ok(()) if !possible => return Err(format!("it took the hello {theirs:?}")),
                Err((fault, _)) if possible => return Err(format!("it refused the hello {theirs:?}: {fault}")),
                Err(_) => {
                    slots.unpromise(ours.granted);
                    self.tally.bad_hellos += 1;
                    continue;
                }
                Ok(()) => {}
            }
            victim.tape = tape;
            (victim.told, victim.used, victim.ended) = (ours.granted, [0; 2], false);
            (victim.granted, victim.its_used, victim.seen) = (granted, [0; 2], resume_from);
            victim.acknowledged = resume_from;
            victim.its_streams = victim.its_past.get(&resume_from).cloned().unwrap_or_default();
            victim.its_past = victim.its_past.split_off(&resume_from);
            return self.settle(at, happened);
        }
    }

    /// Looks at what happened at a link.
    fn settle(&mut self, at: usize, happened: Vec<Happened>) -> Result<(), String> {
        for happened in happened {
            match happened {
                Happened::Received(piece) => self.victims[at].received.push(piece),
                Happened::Completed(token) => {
                    self.victims[at].open.remove(&token).ok_or(format!("{token:?} completed twice"))?;
                }
                Happened::Ended | Happened::Unreadable(..) => {}
            }
        }
        Ok(())
    }

    /// Sees that exactly the pieces were delivered that were due.
    fn check_delivered(&mut self, at: usize) -> Result<(), String> {
        let victim = &mut self.victims[at];
        let (received, due) = (core::mem::take(&mut victim.received), core::mem::take(&mut victim.due));
        if received.len() != due.len() {
            return Err(format!("{} pieces were delivered of {}", received.len(), due.len()));
        }
        for (piece, (stream, tag, offset, length)) in received.iter().zip(due) {
            let as_sent = (piece.stream, piece.tag, piece.offset, piece.lease.len() as u32);
            if as_sent != (stream, tag, offset, length) || !is_content(tag, offset, &piece.lease) {
                return Err(format!("piece {as_sent:?} arrived for {:?}", (stream, tag, offset, length)));
            }
        }
        if victim.link.expected() != victim.given {
            return Err(format!("it expects piece {} after {}", victim.link.expected(), victim.given));
        }
        self.tally.delivered += received.len() as u64;
        self.held.extend(received);
        Ok(())
    }

    /// Whatever a peer did, what was promised to anybody can be had, and pieces lie in slots of their own class.
    fn check_slots(&mut self) -> Result<(), String> {
        let counts = self.slots.counts();
        let all = [plan().small_slots, plan().large_slots];
        for class in Class::ALL {
            let index = class.index();
            let (free, promised) = (counts.free[index], counts.promised[index]);
            if promised > free {
                return Err(format!("{promised} {class:?} slots are promised, {free} are free"));
            }
            // No piece is half there at this moment.
            let is_of_class = |piece: &&Piece| !piece.lease.is_empty() && class_of(piece.lease.len() as u32) == index;
            let held = self.held.iter().filter(is_of_class).count() as u32;
            if free + held != all[index] {
                return Err(format!("{free} {class:?} slots are free and {held} are held, of {}", all[index]));
            }
        }
        Ok(())
    }

    fn submit(&mut self, at: usize) {
        let bytes = match self.dice.below(3) {
            0 => self.dice.below(60),
            1 => self.dice.below(6000),
            _ => self.dice.below(20_000),
        } as usize;
        let Ok(mut lease) = self.slots.loan(bytes) else { return };
        let (tag, stream) = (self.dice.next(), self.dice.below(u64::from(STREAMS)) as u32);
        content(tag, 0, &mut lease);
        let token = Token(self.tokens);
        if self.victims[at].link.submit(stream, tag, lease.into(), token, &self.slots).is_ok() {
            self.tokens += 1;
            self.victims[at].open.insert(token, ());
        }
    }

    /// Lets the link send everything that the tape takes.
    fn send(&mut self, at: usize) -> Result<(), String> {
        let flush = self.dice.often(50);
        let Self { victims, slots, .. } = self;
        let victim = &mut victims[at];
        loop {
            victim.link.send(slots, flush).map_err(|error| format!("sending: {error}"))?;
            if !victim.link.has_turn() {
                break;
            }
        }
        self.tally.sent += victim.listen()?;
        Ok(())
    }

    /// Lets the link read all that there is. What it said, and whether it read to the end.
    fn receive(&mut self, at: usize) -> Result<Result<Readiness, LinkError>, String> {
        loop {
            let mut happened = Vec::new();
            let Self { victims, slots, .. } = self;
            let victim = &mut victims[at];
            let read = victim.link.receive(slots, &mut happened);
            let rest = victim.tape.unread();
            self.settle(at, happened)?;
            match read {
                Ok(Readiness::Starved) => return Err("a piece had a credit and there is no slot for it".into()),
                Ok(_) if rest > 0 => {}
                other => return Ok(other),
            }
        }
    }

    /// The bytes of a frame, made wrong in one way, or not.
    fn mutate(&mut self, at: usize) -> Vec<u8> {
        let dice = &mut self.dice;
        let victim = &self.victims[at];
        let mut header = victim.frame(dice);
        if dice.often(85) {
            return encode(&header);
        }
        let near = |dice: &mut Dice, value: u64| match dice.below(4) {
            0 => value.wrapping_add(1),
            1 => value.wrapping_sub(1),
            2 => dice.next(),
            _ => dice.next() >> dice.below(64),
        };
        match dice.below(14) {
            0 => header.stream = near(dice, header.stream.into()) as u32,
            1 => header.sequence = near(dice, header.sequence),
            2 => header.acknowledged = near(dice, header.acknowledged),
            3 => header.granted[0] = near(dice, header.granted[0].into()) as u32,
            4 => header.granted[1] = near(dice, header.granted[1].into()) as u32,
            5 => header.message_bytes = near(dice, header.message_bytes.into()) as u32,
            6 => header.offset = near(dice, header.offset.into()) as u32,
            7 => header.length = near(dice, header.length.into()) as u32,
            8 => header.epoch = near(dice, header.epoch.into()) as u32,
            9 => header.tag = near(dice, header.tag),
            10 if !victim.last.is_empty() => return victim.last.clone(),
            11 => {
                let mut bytes = encode(&header);
                let bit = dice.below(HEADER_BYTES as u64 * 8) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
                return bytes;
            }
            12 => {
                let count = dice.below(300) as usize;
                return (0..count).map(|_| dice.next() as u8).collect();
            }
            _ => header.kind = [Kind::Data, Kind::Control, Kind::End][dice.below(3) as usize],
        }
        encode(&header)
    }

    /// One frame to one link.
    fn step(&mut self) -> Result<(), String> {
        let at = self.dice.below(self.victims.len() as u64) as usize;
        if self.dice.often(15) {
            self.submit(at);
        }
        let keep = self.dice.below(14) as usize;
        while self.held.len() > keep {
            let one = self.dice.below(self.held.len() as u64) as usize;
            self.held.swap_remove(one);
        }
        // Several come at once, of which the last may be wrong.
        for _ in 0..self.dice.below(4) {
            let header = self.victims[at].frame(&mut self.dice);
            if self.victims[at].judge(&header) == Verdict::Good {
                self.victims[at].tape.write(&with_payload(&header));
                self.victims[at].took(&header);
                self.tally.good += 1;
            }
        }
        let mut bytes = self.mutate(at);
        let (header, verdict) = match bytes.first_chunk().map(Header::decode) {
            None => (None, Verdict::Good),
            Some(Err(_)) => (None, Verdict::Bad("no frame")),
            Some(Ok(header)) => {
                bytes.truncate(HEADER_BYTES);
                let verdict = self.victims[at].judge(&header);
                // Of what is refused the payload need not follow; of a gibibyte it does not.
                if verdict != Verdict::Bad("too long") && header.length <= LARGE {
                    bytes = with_payload(&header);
                }
                (Some(header), verdict)
            }
        };
        let whole = header.is_some() || verdict != Verdict::Good;
        let cut = !whole || self.dice.often(1);
        if cut && whole {
            let end = self.dice.below(bytes.len() as u64) as usize;
            bytes.truncate(end);
        }
        let header_is_there = bytes.len() >= HEADER_BYTES;
        self.victims[at].tape.write(&bytes);
        if cut {
            self.victims[at].tape.end();
        }
        let read = self.receive(at)?;
        let refused = match (read, verdict) {
            (Err(LinkError::Peer(_)), Verdict::Bad(_) | Verdict::Either) if header_is_there => true,
            (Err(LinkError::CutOff), _) if cut => {
                if header_is_there && matches!(verdict, Verdict::Bad(_)) {
                    return Err(format!("it took {header:?}, which is wrong: {verdict:?}"));
                }
                if let (true, Some(header)) = (header_is_there, &header) {
                    self.victims[at].acknowledged = header.acknowledged;
                }
                false
            }
            (Ok(_), Verdict::Good | Verdict::Either) if !cut => {
                if let Some(header) = &header {
                    self.victims[at].took(header);
                    self.victims[at].last = bytes;
                }
                self.tally.good += 1;
                self.check_delivered(at)?;
                self.check_slots()?;
                return self.send(at);
            }
            (read, verdict) => return Err(format!("{read:?} for {header:?}, which is {verdict:?}, cut: {cut}")),
        };
        self.tally.faults += u64::from(refused);
        self.tally.cut += u64::from(!refused);
        self.check_delivered(at)?;
        self.end(at, refused)?;
        self.check_slots()
    }

    /// The link's wire is gone: it goes on over another, or begins anew.
    fn end(&mut self, at: usize, refused: bool) -> Result<(), String> {
        let resumes = !refused && self.dice.often(70);
        let mut happened = Vec::new();
        let Self { victims, slots, .. } = self;
        let victim = &mut victims[at];
        if resumes {
            victim.link.disconnect(slots, &mut happened);
            victim.epoch += 1;
            self.tally.resumed += 1;
            self.settle(at, happened)?;
            return self.connect(at);
        }
        let (_, failed, unanswered) = victim.link.fail(slots, &mut happened);
        if !unanswered.is_empty() {
            return Err("something is never free although all was copied".into());
        }
        self.settle(at, happened)?;
        for token in failed {
            self.victims[at].open.remove(&token).ok_or(format!("{token:?} failed twice"))?;
        }
        if !self.victims[at].open.is_empty() {
            return Err("a message neither completed nor failed".into());
        }
        self.victims[at] = Victim::new(&self.slots);
        self.connect(at)
    }
}

fn with_payload(header: &Header) -> Vec<u8> {
    let mut bytes = encode(header);
    bytes.resize(HEADER_BYTES + header.length as usize, 0);
    content(header.tag, header.offset, &mut bytes[HEADER_BYTES..]);
    bytes
}

fn encode(header: &Header) -> Vec<u8> {
    let mut bytes = [0; HEADER_BYTES];
    header.encode(&mut bytes);
    bytes.to_vec()
}

/// Attacks for so many frames, and sees that everything came back.
fn attack(seed: u64, frames: u32) -> Result<Tally, String> {
    let mut attack = Attack::new(seed)?;
    while attack.tally.good + attack.tally.faults + attack.tally.cut < u64::from(frames) {
        attack.step()?;
    }
    for victim in &mut attack.victims {
        let _ = victim.link.fail(&mut attack.slots, &mut Vec::new());
    }
    attack.held.clear();
    let (counts, plan) = (attack.slots.counts(), plan());
    if counts.free != [plan.small_slots, plan.large_slots]
        || counts.promised != [0, 0]
        || counts.free_headers != plan.headers
    {
        return Err(format!("slots are lost: {counts:?}"));
    }
    Ok(attack.tally)
}

/// How many frames: a million, or what `ZCMI_LONG` says, or fewer for a quick run.
fn frames() -> u32 {
    if std::env::var_os("ZCMI_LONG").is_some() {
        100_000_000
    } else if std::env::var_os("ZCMI_QUICK").is_some() {
        100_000
    } else {
        1_000_000
    }
}

#[test]
fn whatever_a_peer_sends_is_delivered_or_a_fault_and_no_slot_is_lost() {
    let first = std::env::var("ZCMI_SEED").ok().and_then(|seed| seed.parse().ok());
    let (each, mut left, mut seed) = (20_000, frames(), first.unwrap_or(1));
    let mut all = Tally::default();
    while left > 0 {
        let count = each.min(left);
        match attack(seed, count) {
            Ok(tally) => {
                all.good += tally.good;
                all.faults += tally.faults;
                all.cut += tally.cut;
                all.resumed += tally.resumed;
                all.bad_hellos += tally.bad_hellos;
                all.delivered += tally.delivered;
                all.sent += tally.sent;
            }
            Err(wrong) => panic!("ZCMI_SEED={seed}: {wrong}"),
        }
        if first.is_some() {
            break;
        }
        (left, seed) = (left - count, seed + 1);
    }
    println!("{all:?}, seeds up to {seed}");
    let many = u64::from(if first.is_some() { each } else { frames() });
    assert!(all.good > many / 2 && all.faults > many / 50 && all.cut > many / 500, "{all:?}");
    assert!(all.resumed > many / 400 && all.bad_hellos > many / 400, "{all:?}");
    assert!(all.delivered > many / 4 && all.sent > many / 40, "{all:?}");
}
