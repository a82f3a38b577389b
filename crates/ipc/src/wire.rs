//! The messages that processes exchange on their control connections. Picture: `docs/layout/control.md`.
//!
//! Every message is one `SOCK_SEQPACKET` packet of at most 8,192 bytes: a kind (`u16`), then its fields in the order of
//! the structs below, integers little-endian, byte strings preceded by their length (`u16`). Descriptors travel beside
//! it, in the order in which the message mentions them.
//!
//! What arrives is a claim: lengths are checked before they are used, a message with bytes left over or missing is
//! refused, and decoding never panics.

use zcmi_mem::pool::SizeClass;
use zcmi_mem::region::RegionId;

use crate::name::{Incarnation, ServiceName};

/// What a control connection begins with.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"zcmi/ipc");
/// The version of the protocol that this code speaks.
pub(crate) const VERSION: u16 = 1;
/// The oldest version it understands.
pub(crate) const VERSION_MIN: u16 = 1;

/// Why a message could not be understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// It ends before its fields do.
    #[error("a control message of {len} bytes is cut short at byte {at}")]
    Short {
        /// Where a field did not fit.
        at: usize,
        /// The message's length.
        len: usize,
    },
    /// It goes on after its fields.
    #[error("a control message of {len} bytes has {extra} bytes too many")]
    Long {
        /// How many are left over.
        extra: usize,
        /// The message's length.
        len: usize,
    },
    /// Its kind is unknown.
    #[error("a control message has the unknown kind {0}")]
    Kind(u16),
    /// A field has a value that cannot be.
    #[error("the field `{0}` of a control message has an impossible value")]
    Field(&'static str),
}

/// A region as a message names it. Its descriptor comes along the first time the region is named on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RegionName {
    pub(crate) id: RegionId,
    /// Bytes of the whole region.
    pub(crate) bytes: u64,
    /// Whether this message brings the descriptor.
    pub(crate) attached: bool,
}

/// Who speaks, and which versions it understands. Each side sends one first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Hello {
    pub(crate) version_min: u16,
    pub(crate) version: u16,
    pub(crate) incarnation: Incarnation,
}

/// "I publish on this service": a subscriber's process answers with its joins and then `Announced`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Announce {
    pub(crate) service: ServiceName,
    pub(crate) endpoint: u32,
}

/// What a subscriber asks of a publisher.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Join {
    /// The publisher's endpoint in the process addressed.
    pub(crate) publisher: u32,
    pub(crate) subscriber: u32,
    pub(crate) service: ServiceName,
    /// Whether this subscriber accepts to be overtaken.
    pub(crate) drop_oldest: bool,
    pub(crate) history: u64,
    /// How many slots it would like to hold.
    pub(crate) holds: u8,
    /// The encoded `MessageRecord`.
    pub(crate) record: Vec<u8>,
    pub(crate) region: RegionName,
    /// Where the subscriber's block for this publisher begins in that region, bytes.
    pub(crate) block: u64,
    /// Whether the subscriber's eventfd comes along (as the last descriptor): it may park from the first message on.
    pub(crate) waiter: bool,
}

/// What a publisher grants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Accepted {
    pub(crate) publisher: u32,
    pub(crate) subscriber: u32,
    /// The reader's place, and its bit in the wake word.
    pub(crate) index: u8,
    pub(crate) start: u64,
    /// Entries of the ring.
    pub(crate) capacity: u64,
    pub(crate) lane: RegionName,
    /// Where `LaneControl` begins in the lane's region, bytes.
    pub(crate) control: u64,
    pub(crate) ring_region: RegionName,
    /// Where the ring begins in its region, bytes.
    pub(crate) ring: u64,
    /// The wake page, and where the wake word begins in it, bytes; none for a stranger.
    pub(crate) wake: Option<(RegionName, u64)>,
    /// How many slots the subscriber may hold.
    pub(crate) holds: u8,
    /// Present when the lane has slots; in the lane's region or another.
    pub(crate) pool: Option<PoolName>,
}

/// A publisher's pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PoolName {
    pub(crate) region: RegionName,
    /// Where it begins, bytes.
    pub(crate) offset: u64,
    pub(crate) classes: Vec<SizeClass>,
}

/// Why a publisher refuses a subscriber. The numbers are stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RefusalCode {
    Layout,
    TooManySubscribers,
    Late,
    Gone,
    History,
    Rights,
    Protocol,
    /// A stranger asked to hold the publisher up, which it may not.
    Reliable,
    Other(u16),
}

impl RefusalCode {
    fn number(self) -> u16 {
        match self {
            Self::Layout => 1,
            Self::TooManySubscribers => 2,
            Self::Late => 3,
            Self::Gone => 4,
            Self::History => 5,
            Self::Rights => 6,
            Self::Protocol => 7,
            Self::Reliable => 8,
            Self::Other(number) => number,
        }
    }

    fn of(number: u16) -> Self {
        match number {
            1 => Self::Layout,
            2 => Self::TooManySubscribers,
            3 => Self::Late,
            4 => Self::Gone,
            5 => Self::History,
            6 => Self::Rights,
            7 => Self::Protocol,
            8 => Self::Reliable,
            other => Self::Other(other),
        }
    }
}

/// A publisher's no.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    pub(crate) publisher: u32,
    pub(crate) subscriber: u32,
    pub(crate) code: RefusalCode,
    /// The reason in words.
    pub(crate) text: String,
}

/// Names one lane between two processes: the publisher's endpoint and the subscriber's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct LaneName {
    pub(crate) publisher: u32,
    pub(crate) subscriber: u32,
}

/// All messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    Hello(Hello),
    Announce(Announce),
    /// Every subscriber that the announcement concerned has its lane, or was refused.
    Announced {
        endpoint: u32,
    },
    Join(Box<Join>),
    Accepted(Box<Accepted>),
    Refused(Refused),
    /// The subscriber may park from now on; its eventfd comes along.
    MayPark(LaneName),
    /// From the next message on the publisher looks at the wake word.
    ParkNoted(LaneName),
    /// The subscriber is done with the lane and everything it held.
    Leave(LaneName),
    /// The subscriber reads no more of the lane, and still holds some of it: `Leave` comes when it does not.
    OnlyHolds(LaneName),
    /// The region was unmapped: its descriptor is needed again when it is named next.
    Unmapped(RegionId),
    /// The publisher ended the lane in good order.
    Ended {
        publisher: u32,
    },
    /// The publisher may wait for room; its eventfd comes along.
    RoomWaiter {
        publisher: u32,
    },
    /// The subscriber saw that the publisher waits for room, and had no eventfd of it.
    Room {
        publisher: u32,
    },
    /// A stranger is about to sleep with this cursor; it is woken once by `Wake`.
    Park {
        lane: LaneName,
        cursor: u64,
    },
    /// Something is there for a stranger that sleeps.
    Wake(LaneName),
    /// Please describe yourself.
    Observe,
    /// Regions for an observer: the ledger's first, then those in which the words lie that it names.
    Ledger {
        regions: Vec<RegionName>,
    },
    /// A part of the description: text, `last` on the final part.
    Report {
        last: bool,
        text: Vec<u8>,
    },
}

struct Encoder(Vec<u8>);

impl Encoder {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    fn bool(&mut self, value: bool) {
        self.0.push(value.into());
    }
    fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }
    fn bytes(&mut self, value: &[u8]) {
        let len = u16::try_from(value.len()).expect("byte strings of a control message are short");
        self.u16(len);
        self.0.extend(value);
    }
    fn region(&mut self, region: &RegionName) {
        for word in region.id.words() {
            self.u64(word);
        }
        self.u64(region.bytes);
        self.bool(region.attached);
    }
    fn lane(&mut self, lane: LaneName) {
        self.u32(lane.publisher);
        self.u32(lane.subscriber);
    }
}

struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or(WireError::Short { at: self.at, len: self.bytes.len() })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }
    fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }
    fn bool(&mut self, field: &'static str) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Field(field)),
        }
    }
    fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let len = self.u16()?;
        self.take(len.into())
    }
    fn name(&mut self) -> Result<ServiceName, WireError> {
        let text = core::str::from_utf8(self.bytes()?).map_err(|_| WireError::Field("service"))?;
        ServiceName::new(text).map_err(|_| WireError::Field("service"))
    }
    fn region(&mut self) -> Result<RegionName, WireError> {
        let id = RegionId::from_words([self.u64()?, self.u64()?]);
        Ok(RegionName { id, bytes: self.u64()?, attached: self.bool("attached")? })
    }
    fn lane(&mut self) -> Result<LaneName, WireError> {
        Ok(LaneName { publisher: self.u32()?, subscriber: self.u32()? })
    }
    fn end(self) -> Result<(), WireError> {
        let extra = self.bytes.len() - self.at;
        if extra == 0 { Ok(()) } else { Err(WireError::Long { extra, len: self.bytes.len() }) }
    }
}

impl Message {
    /// The message as it travels.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder(Vec::with_capacity(256));
        match self {
            Self::Hello(hello) => {
                to.u16(1);
                to.u64(MAGIC);
                to.u16(hello.version_min);
                to.u16(hello.version);
                // Read as it lies, so that a process of another byte order is noticed.
                to.0.extend(0x0102_0304_u32.to_ne_bytes());
                to.0.extend(hello.incarnation.as_u128().to_le_bytes());
            }
            Self::Announce(announce) => {
                to.u16(2);
                to.bytes(announce.service.as_str().as_bytes());
                to.u32(announce.endpoint);
            }
            Self::Announced { endpoint } => {
                to.u16(3);
                to.u32(*endpoint);
            }
            Self::Join(join) => {
                to.u16(4);
                to.u32(join.publisher);
                to.u32(join.subscriber);
                to.bytes(join.service.as_str().as_bytes());
                to.bool(join.drop_oldest);
                to.u64(join.history);
                to.u8(join.holds);
                to.bytes(&join.record);
                to.region(&join.region);
                to.u64(join.block);
                to.bool(join.waiter);
            }
            Self::Accepted(accepted) => {
                to.u16(5);
                to.u32(accepted.publisher);
                to.u32(accepted.subscriber);
                to.u8(accepted.index);
                to.u64(accepted.start);
                to.u64(accepted.capacity);
                to.region(&accepted.lane);
                to.u64(accepted.control);
                to.region(&accepted.ring_region);
                to.u64(accepted.ring);
                to.bool(accepted.wake.is_some());
                if let Some((region, offset)) = &accepted.wake {
                    to.region(region);
                    to.u64(*offset);
                }
                to.u8(accepted.holds);
                to.bool(accepted.pool.is_some());
                if let Some(pool) = &accepted.pool {
                    to.region(&pool.region);
                    to.u64(pool.offset);
                    to.u8(pool.classes.len() as u8);
                    for class in &pool.classes {
                        to.u64(class.slot_bytes as u64);
                        to.u32(class.slots);
                    }
                }
            }
            Self::Refused(refused) => {
                to.u16(6);
                to.u32(refused.publisher);
                to.u32(refused.subscriber);
                to.u16(refused.code.number());
                let text = refused.text.as_bytes();
                to.bytes(&text[..text.len().min(1024)]);
            }
            Self::MayPark(lane) => {
                to.u16(7);
                to.lane(*lane);
            }
            Self::ParkNoted(lane) => {
                to.u16(8);
                to.lane(*lane);
            }
            Self::Leave(lane) => {
                to.u16(9);
                to.lane(*lane);
            }
            Self::Ended { publisher } => {
                to.u16(10);
                to.u32(*publisher);
            }
            Self::RoomWaiter { publisher } => {
                to.u16(11);
                to.u32(*publisher);
            }
            Self::Room { publisher } => {
                to.u16(12);
                to.u32(*publisher);
            }
            Self::Observe => to.u16(13),
            Self::Park { lane, cursor } => {
                to.u16(17);
                to.lane(*lane);
                to.u64(*cursor);
            }
            Self::Wake(lane) => {
                to.u16(18);
                to.lane(*lane);
            }
            Self::OnlyHolds(lane) => {
                to.u16(15);
                to.lane(*lane);
            }
            Self::Unmapped(id) => {
                to.u16(16);
                for word in id.words() {
                    to.u64(word);
                }
            }
            Self::Ledger { regions } => {
                to.u16(24);
                to.u8(regions.len() as u8);
                regions.iter().for_each(|region| to.region(region));
            }
            Self::Report { last, text } => {
                to.u16(14);
                to.bool(*last);
                to.bytes(text);
            }
        }
        to.0
    }

    /// Reads a message; a claim as a whole and in each part.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Decoder { bytes, at: 0 };
        let message = match from.u16()? {
            1 => {
                if from.u64()? != MAGIC {
                    return Err(WireError::Field("magic"));
                }
                let (version_min, version) = (from.u16()?, from.u16()?);
                if from.array::<4>()? != 0x0102_0304_u32.to_ne_bytes() {
                    return Err(WireError::Field("byte order"));
                }
                let incarnation = Incarnation::from_u128(u128::from_le_bytes(from.array()?));
                Self::Hello(Hello { version_min, version, incarnation })
            }
            2 => Self::Announce(Announce { service: from.name()?, endpoint: from.u32()? }),
            3 => Self::Announced { endpoint: from.u32()? },
            4 => Self::Join(Box::new(Join {
                publisher: from.u32()?,
                subscriber: from.u32()?,
                service: from.name()?,
                drop_oldest: from.bool("drop oldest")?,
                history: from.u64()?,
                holds: from.u8()?,
                record: from.bytes()?.to_vec(),
                region: from.region()?,
                block: from.u64()?,
                waiter: from.bool("waiter")?,
            })),
            5 => Self::Accepted(Box::new(Accepted {
                publisher: from.u32()?,
                subscriber: from.u32()?,
                index: from.u8()?,
                start: from.u64()?,
                capacity: from.u64()?,
                lane: from.region()?,
                control: from.u64()?,
                ring_region: from.region()?,
                ring: from.u64()?,
                wake: if from.bool("wake")? { Some((from.region()?, from.u64()?)) } else { None },
                holds: from.u8()?,
                pool: if from.bool("pool")? { Some(from.pool()?) } else { None },
            })),
            6 => {
                let (publisher, subscriber) = (from.u32()?, from.u32()?);
                let code = RefusalCode::of(from.u16()?);
                let text = String::from_utf8_lossy(from.bytes()?).into_owned();
                Self::Refused(Refused { publisher, subscriber, code, text })
            }
            7 => Self::MayPark(from.lane()?),
            8 => Self::ParkNoted(from.lane()?),
            9 => Self::Leave(from.lane()?),
            10 => Self::Ended { publisher: from.u32()? },
            11 => Self::RoomWaiter { publisher: from.u32()? },
            12 => Self::Room { publisher: from.u32()? },
            13 => Self::Observe,
            15 => Self::OnlyHolds(from.lane()?),
            16 => Self::Unmapped(RegionId::from_words([from.u64()?, from.u64()?])),
            24 => {
                let count = from.u8()?;
                let regions = (0..count).map(|_| from.region()).collect::<Result<_, _>>()?;
                Self::Ledger { regions }
            }
            14 => Self::Report { last: from.bool("last")?, text: from.bytes()?.to_vec() },
            17 => Self::Park { lane: from.lane()?, cursor: from.u64()? },
            18 => Self::Wake(from.lane()?),
            kind => return Err(WireError::Kind(kind)),
        };
        from.end()?;
        Ok(message)
    }
}

impl Decoder<'_> {
    fn pool(&mut self) -> Result<PoolName, WireError> {
        let (region, offset) = (self.region()?, self.u64()?);
        let count = self.u8()?;
        let mut classes = Vec::with_capacity(count.into());
        for _ in 0..count {
            let slot_bytes = usize::try_from(self.u64()?).map_err(|_| WireError::Field("slot bytes"))?;
            classes.push(SizeClass { slot_bytes, slots: self.u32()? });
        }
        Ok(PoolName { region, offset, classes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn region(seed: u64) -> RegionName {
        RegionName { id: RegionId::from_words([seed, !seed]), bytes: seed | 1, attached: seed.is_multiple_of(2) }
    }

    fn some_of_each(seed: u64, name: &str) -> Vec<Message> {
        let service = ServiceName::new(name).expect("a name");
        let lane = LaneName { publisher: seed as u32, subscriber: (seed >> 32) as u32 };
        let pool = PoolName {
            region: region(seed),
            offset: seed,
            classes: vec![SizeClass { slot_bytes: 64, slots: 3 }, SizeClass { slot_bytes: 4096, slots: 9 }],
        };
        vec![
            Message::Hello(Hello { version_min: 1, version: 7, incarnation: Incarnation::from_u128(seed.into()) }),
            Message::Announce(Announce { service: service.clone(), endpoint: 4 }),
            Message::Announced { endpoint: 4 },
            Message::Join(Box::new(Join {
                publisher: 1,
                subscriber: 2,
                service,
                drop_oldest: seed.is_multiple_of(2),
                history: seed,
                holds: 16,
                record: vec![7; (seed % 2048) as usize],
                region: region(seed),
                block: seed,
                waiter: seed.is_multiple_of(3),
            })),
            Message::Accepted(Box::new(Accepted {
                publisher: 1,
                subscriber: 2,
                index: 3,
                start: seed,
                capacity: 1024,
                lane: region(seed),
                control: 1,
                ring_region: region(seed),
                ring: 2,
                wake: (!seed.is_multiple_of(3)).then_some((region(seed + 1), 8)),
                holds: 7,
                pool: seed.is_multiple_of(2).then_some(pool),
            })),
            Message::Refused(Refused { publisher: 1, subscriber: 2, code: RefusalCode::Late, text: "late".into() }),
            Message::MayPark(lane),
            Message::ParkNoted(lane),
            Message::Leave(lane),
            Message::OnlyHolds(lane),
            Message::Unmapped(RegionId::from_words([seed, !seed])),
            Message::Ended { publisher: 9 },
            Message::RoomWaiter { publisher: 9 },
            Message::Room { publisher: 9 },
            Message::Observe,
            Message::Ledger { regions: vec![region(seed), region(!seed)] },
            Message::Park { lane, cursor: seed },
            Message::Wake(lane),
            Message::Report { last: true, text: b"text".to_vec() },
        ]
    }

    proptest! {
        #[test]
        fn every_message_survives_its_own_encoding(seed: u64, name in "[a-z]{1,20}(/[a-z]{1,20}){0,3}") {
            for message in some_of_each(seed >> 1, &name) {
                prop_assert_eq!(Message::decode(&message.encode()).expect("own encoding"), message);
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_understood_but_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300)
        ) {
            // Text is cut and mended when it is read, so only the others must come out the same.
            if let Ok(message) = Message::decode(&bytes) && !matches!(message, Message::Refused(_)) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }

        #[test]
        fn a_damaged_message_never_panics(seed: u64, kind in 0usize..19, at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = some_of_each(seed >> 1, "a/b")[kind].encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let _ = Message::decode(&bytes);
            bytes.truncate(at);
            prop_assert!(Message::decode(&bytes).is_err());
        }
    }
}
