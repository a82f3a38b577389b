//! Sessions that are told anything at all: heads and reports with a right checksum and any numbers in them.

use zcmi_mem::pool::PoolPlan;

use super::datagram::{CONTROL_BYTES, HEAD_BYTES, Head, Kind, RANGES, Report};
use super::receiver::Landed;
use super::session::Session;
use crate::link::LinkLimits;
use crate::outgoing::Token;
use crate::slots::{SlotPlan, Slots};

struct Dice(u64);

impl Dice {
    /// Seeds that are near each other begin in very different ways.
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Mostly a number near others, sometimes any.
    fn near(&mut self, around: u64) -> u64 {
        match self.next() % 16 {
            0 => self.next(),
            1 => u64::MAX - self.next() % 4,
            roll => (around + self.next() % (1 << (roll % 8))).saturating_sub(2),
        }
    }
}

const SLOTS: u32 = 8;
const SMALL: u32 = 16;

fn head(dice: &mut Dice) -> Head {
    let kind = if dice.next().is_multiple_of(3) { Kind::Control } else { Kind::Data };
    let message_bytes = [0, 1, 500, 4096, 9000, 1 << 30, u32::MAX][dice.next() as usize % 7];
    Head {
        flags: (dice.next() % 32) as u16 & (dice.next() % 32) as u16,
        number: dice.near(100),
        sequence: dice.near(3),
        stream: (dice.next() % 3) as u32,
        tag: dice.next() % 2,
        message_bytes,
        offset: [0, 0, 0, 4096, 8192, 77, u32::MAX][dice.next() as usize % 7],
        begin: [0, 0, 64, 1000, 4095, u32::MAX][dice.next() as usize % 6],
        after: dice.near(0) as u32,
        ..Head::empty(kind, 7)
    }
}

/// Datagrams of one seed.
const EACH: u64 = 50_000;

/// How many datagrams a run takes: a million where the code is optimised, which is little time, or what `ZCMI_LONG` or
/// `ZCMI_CLAIMS` say; with `ZCMI_SEED` those of one seed.
fn total() -> u64 {
    let asked = std::env::var("ZCMI_CLAIMS").ok().and_then(|total| total.parse().ok());
    let is_long = std::env::var_os("ZCMI_LONG").is_some();
    asked.unwrap_or(match (is_long, cfg!(debug_assertions)) {
        (true, _) => 100_000_000,
        (false, true) => 300_000,
        (false, false) => 1_000_000,
    })
}

/// Says which seed it was if something is wrong.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("ZCMI_SEED={} makes the same claims again", self.0);
        }
    }
}

/// What became of the datagrams.
#[derive(Default)]
struct Tally {
    sessions: u64,
    taken: u64,
    faults: u64,
    in_place: u64,
}

#[test]
fn no_claim_breaks_anything_and_every_slot_comes_back() {
    let one = std::env::var("ZCMI_SEED").ok().and_then(|seed| seed.parse().ok());
    let total = if one.is_some() { EACH } else { total() };
    let (mut tally, mut left, mut seed) = (Tally::default(), total, one.unwrap_or(1));
    while left > 0 {
        let count = left.min(EACH);
        claim(&Seed(seed), count, &mut tally);
        (left, seed) = (left - count, seed + 1);
    }
    let Tally { sessions, taken, faults, in_place } = tally;
    println!("{sessions} sessions, {taken} datagrams taken, {faults} faults, {in_place} runs in place");
    assert!(taken > total / 20 && faults > total / 100, "{taken} taken, {faults} faults of {total}");
    assert!(in_place > total / 100, "{in_place} runs in place of {total}");
}

/// Sessions that are told so many datagrams.
fn claim(seed: &Seed, count: u64, tally: &mut Tally) {
    let plan = SlotPlan {
        small_bytes: 512,
        small_slots: SMALL,
        slot_bytes: 4096,
        large_slots: SLOTS,
        headers: 1,
        loans: PoolPlan::single(20_000, 4).ok(),
    };
    let mut slots = Slots::new(&plan).expect("memory");
    let limits = LinkLimits { credits: [8, 4], streams: 2, ..LinkLimits::default() };
    let mut dice = Dice::new(seed.0);
    let payload = [0x5a; 5000];
    let Tally { sessions, taken, faults, in_place } = tally;
    let (mut session, mut happened, mut now) = (None, Vec::new(), 0);
    for _ in 0..count {
        now += dice.next() % 1_000_000;
        let session_now = session.get_or_insert_with(|| {
            *sessions += 1;
            let mut session = Session::new(7, &limits, crate::udp::Reliability::Reliable, 1216, 1 << 20, &slots, now);
            session.receiver.top_up(&mut slots, 1, [false; 2]);
            if let Ok(lease) = slots.loan(20_000) {
                session.sender.submit(0, 0, lease.into(), Token(0)).expect("it is taken");
            }
            session
        });
        let mut head = head(&mut dice);
        let mut ahead = None;
        let answer = if head.kind == Kind::Control {
            let mut ranges = [(0, 0); RANGES];
            let count = (dice.next() % 4) as usize;
            ranges[..count].iter_mut().for_each(|range| *range = (dice.near(2), dice.near(4)));
            let report = Report {
                granted: [dice.near(4) as u32, dice.near(4) as u32],
                window_bytes: dice.next() as u32,
                delay_us: dice.next() as u32,
                ranges,
                count,
            };
            let mut bytes = [0; CONTROL_BYTES];
            let length = report.encode(&mut bytes);
            session_now.take(&head, Landed::Elsewhere(&bytes[..length]), &mut ahead, &mut slots, &mut happened, now)
        } else {
            let length = [0, 1, 64, 500, 1000, 4096, 5000][dice.next() as usize % 7];
            // What honest peers send more often, so that something goes on.
            if dice.next().is_multiple_of(2) {
                (head.offset, head.begin, head.message_bytes, head.after) = (0, 0, length as u32, 0);
            }
            let mut landed = Landed::Elsewhere(&payload[..length]);
            // Several that lie where the next bytes are expected, whatever else they say.
            if let Some(expected) = session_now.receiver.expected().filter(|_| dice.next().is_multiple_of(2)) {
                (head.sequence, head.begin) = (expected.sequence, expected.begin);
                let datagrams = 1 + dice.next() % 5;
                let fits = head.number.checked_add(datagrams - 1).is_some();
                if expected.is_new {
                    ahead = slots.take_ahead();
                }
                if fits && expected.is_begun_by(&head, slots.sizes()) && (!expected.is_new || ahead.is_some()) {
                    let bytes = 1 + dice.next() as usize % (expected.end - expected.begin) as usize;
                    landed = Landed::InPlace { bytes, datagrams };
                    *in_place += 1;
                }
            }
            let taken = session_now.take(&head, landed, &mut ahead, &mut slots, &mut happened, now);
            ahead.into_iter().for_each(|slot| slots.put_back(slot));
            taken
        };
        if dice.next().is_multiple_of(64) {
            let _ = session_now.receiver.stalled(&mut slots);
        }
        if dice.next().is_multiple_of(4) {
            session_now.sender.time(now);
            let mut bytes = [0; CONTROL_BYTES];
            let spoken = session_now.speak(&mut bytes, true, now);
            assert!(spoken.is_none_or(|length| Head::decode(&bytes[..length]).is_ok() && length > HEAD_BYTES));
            if let Some(train) = session_now.sender.train(8, 10_000) {
                let count = train.items.len();
                session_now.sender.sent(train, count, false, now, &mut session_now.done);
            }
        }
        happened.clear();
        match answer {
            Ok(used) => *taken += u64::from(used),
            Err(_) => {
                *faults += 1;
                end(session.take().expect("it is there"), &mut slots);
            }
        }
        if let Some(session) = &session {
            let [small, large] = session.receiver.open();
            assert!(small <= 8 && large <= 4, "no more is open than was given");
            assert!(session.receiver.under_way() <= 24, "{} pieces are under way", session.receiver.under_way());
        }
    }
    session.into_iter().for_each(|session| end(session, &mut slots));
}

/// Ends a session, after which everything that was promised or taken is free again.
fn end(mut session: Session, slots: &mut Slots) {
    session.receiver.forget(slots);
    session.sender.fail();
    let counts = slots.counts();
    assert_eq!((counts.free, counts.promised), ([SMALL, SLOTS], [0, 0]));
}
