//! Publishers of another user that grant what cannot be: each is refused for its reason, and the others are read on.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags};
use zcmi_mem::pool::{CLASSES, PoolPlan, SizeClass};
use zcmi_mem::region::received::{PeerTrust, RegionClaim};
use zcmi_mem::region::{HugePages, PeerRegion, Region, RegionId};
use zcmi_ring::layout::{HOLDS, SEQUENCE_END};
use zcmi_ring::{Entry, LaneControl, ReaderBlock};

use super::*;
use crate::subscriber::{Event, Lane, LaneOffer, LaneTerms};
use crate::wire::{Accepted, Announce, Join, LaneName, PoolName, RegionName};
use crate::{Subscriber, Who};

/// What goes over the service: longer than the smallest slot, so that a slot can be too short for it.
type Words = [u64; 9];

const CONTROL: u64 = 8 << 10;
const RING: u64 = 12 << 10;
const POOL: u64 = 16 << 10;
const CAPACITY: u64 = 8;
/// A size that no region of a publisher has here.
const ELSEWHERE: u64 = 1 << 40;

/// A region in which a lane could lie.
fn region() -> Region {
    Region::options(60 << 10).huge_pages(HugePages::Transparent).create().expect("a region")
}

fn name_of(region: &Region, attached: bool) -> RegionName {
    RegionName { id: region.id(), bytes: region.len() as u64, attached }
}

fn class(slot_bytes: usize, slots: u32) -> SizeClass {
    SizeClass { slot_bytes, slots }
}

/// A grant in which nothing is wrong.
fn sound(region: &Region, lane: LaneName) -> Accepted {
    Accepted {
        publisher: lane.publisher,
        subscriber: lane.subscriber,
        index: 0,
        start: 0,
        capacity: CAPACITY,
        lane: name_of(region, true),
        control: CONTROL,
        ring_region: name_of(region, false),
        ring: RING,
        wake: None,
        holds: 0,
        pool: Some(PoolName {
            region: name_of(region, false),
            offset: POOL,
            classes: vec![class(128, 3), class(4096, 2)],
        }),
    }
}

fn pool(accepted: &mut Accepted) -> &mut PoolName {
    accepted.pool.as_mut().expect("a sound grant has a pool")
}

/// A grant spoilt in one way, and what the refusal says of it.
type Lie = (fn(&mut Accepted), &'static str);

/// Grants that are refused by their numbers. The descriptors are sound, if there are any.
const LIES: &[Lie] = &[
    (|grant| grant.capacity = 6, "a ring of 6 entries cannot be"),
    (|grant| grant.capacity = 1, "a ring of 1 entries cannot be"),
    (|grant| grant.capacity = 0, "names no memory"),
    (|grant| grant.capacity = 1 << 20, "end past the region"),
    (|grant| grant.capacity = 1 << 58, "end past the region"),
    (|grant| grant.capacity = u64::MAX, "end past the region"),
    (|grant| grant.control = grant.lane.bytes, "end past the region"),
    (|grant| grant.control = !127, "end past the region"),
    (|grant| grant.control = 0, "in the region's header"),
    (|grant| grant.control += 64, "multiple of 128"),
    (|grant| grant.ring = grant.lane.bytes - 64, "end past the region"),
    (|grant| grant.ring = 64, "in the region's header"),
    (|grant| grant.ring += 8, "multiple of 64"),
    (|grant| grant.index = 64, "index 64"),
    (|grant| grant.holds = HOLDS as u8 + 1, "holds 17"),
    (|grant| grant.start = SEQUENCE_END, "start 4611686018427387904 cannot be"),
    (|grant| grant.start = u64::MAX, "cannot be"),
    (|grant| pool(grant).classes.clear(), "classes"),
    (|grant| pool(grant).classes = (1..=CLASSES + 1).map(|size| class(size * 64, 1)).collect(), "classes"),
    (|grant| pool(grant).classes = vec![class(0, 3)], "slots of 0 bytes"),
    (|grant| pool(grant).classes = vec![class(100, 3)], "slots of 100 bytes"),
    (|grant| pool(grant).classes = vec![class(128, 0)], "has 0 slots"),
    (|grant| pool(grant).classes = vec![class(128, u32::MAX)], "slots; 1 to"),
    (|grant| pool(grant).classes = vec![class(4096, 1), class(128, 1)], "sizes ascend"),
    (|grant| pool(grant).classes = vec![class(128, 1), class(128, 1)], "sizes ascend"),
    (|grant| pool(grant).classes = vec![class(2 << 30, 1)], "end at 1 GiB"),
    (|grant| pool(grant).classes = vec![class(1 << 30, 1 << 26)], "end past the region"),
    (|grant| pool(grant).classes = vec![class(4096, 64)], "end past the region"),
    (|grant| pool(grant).classes = vec![class(64, 3)], "too small for messages of 72"),
    (|grant| pool(grant).offset += 64, "not aligned"),
    (|grant| pool(grant).offset = 0, "in the region's header"),
    (|grant| pool(grant).offset = !4095, "end past the region"),
    (|grant| grant.wake = Some((grant.ring_region, 0)), "a stranger handed over a wake page"),
    (|grant| grant.ring_region.id = RegionId::from_words([7, 7]), "was never handed over"),
    (|grant| pool(grant).region.id = RegionId::from_words([7, 7]), "was never handed over"),
    (|grant| grant.ring_region.bytes += 4096, "another size"),
    (|grant| pool(grant).region.bytes = 0, "another size"),
    // One descriptor comes, and two are named.
    (|grant| grant.ring_region.attached = true, "a descriptor is missing"),
    (|grant| (grant.lane.id, grant.lane.bytes) = (RegionId::from_words([8, 8]), ELSEWHERE), "would be mapped"),
];

/// Sends a grant with the region's descriptor.
fn grant(to: &Connection, accepted: Accepted, descriptors: &[BorrowedFd<'_>]) {
    let bytes = Message::Accepted(Box::new(accepted)).encode();
    assert_eq!(to.send(&bytes, descriptors).expect("send"), SendOutcome::Sent);
}

/// In a child: a publisher that says that it is there, and is asked for its lane.
struct Liar {
    connection: Connection,
    to: Incarnation,
    puppet: Puppet,
}

impl Liar {
    fn start() -> Option<Self> {
        let Some(path) = Child::directory() else {
            println!("SKIP: only its parent's test needs it");
            return None;
        };
        let puppet = Puppet::at(directory(path));
        let to = Child::heard().parse().expect("an incarnation");
        let connection = puppet.connect(to);
        soon("the answer to the hello", || matches!(hear(&connection), Some(Message::Hello(_))));
        Some(Self { connection, to, puppet })
    }

    /// Announces a publisher; returns the subscriber's join.
    fn announce(&self, endpoint: u32) -> Join {
        let service = ServiceName::new("s").expect("a name");
        tell(&self.connection, &Message::Announce(Announce { service, endpoint }));
        let mut asked = None;
        soon("the join", || {
            if let Some(Message::Join(join)) = hear(&self.connection) {
                asked = Some(*join);
            }
            asked.is_some()
        });
        asked.expect("a join")
    }

    /// What becomes of a grant: the subscriber leaves, or the connection ends.
    fn outcome(&self) -> &'static str {
        let mut buffer = [0; MAX_MESSAGE_BYTES];
        let mut outcome = "";
        soon("an answer to the grant", || {
            outcome = match self.connection.receive(&mut buffer) {
                Ok(Received::HungUp) | Err(_) => "hung up on",
                Ok(Received::Message { len, .. }) => match Message::decode(&buffer[..len]).expect("a message") {
                    Message::Leave(_) => "left",
                    _ => "",
                },
                _ => "",
            };
            !outcome.is_empty()
        });
        outcome
    }
}

/// Our subscriber of everybody, an honest publisher of our own user that it reads, and the directory they are in.
struct Stage {
    publisher: crate::Publisher<Words>,
    subscriber: Subscriber<Words>,
    process: Process,
    sent: u64,
    run: std::path::PathBuf,
    scratch: Scratch,
}

impl Stage {
    /// Nothing where no other users can be had.
    fn set() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: only root can start a process of another user");
            return None;
        }
        let scratch = Scratch::new();
        let run = shared_directory(&scratch);
        let (process, other) = [(), ()].map(|()| Process::open(directory(&run)).expect("a participant")).into();
        let publisher = service::<Words>(&other, "s").publisher().create().expect("a publisher");
        let subscriber = service::<Words>(&process, "s").subscriber().accept(Who::Everybody);
        let mut subscriber = subscriber.drop_oldest(true).join().expect("a subscriber");
        assert!(matches!(subscriber.next_event(), Some(Event::Joined { .. })));
        Some(Self { publisher, subscriber, process, sent: 0, run, scratch })
    }

    fn liar(&self, test: &str, user: u32) -> Child {
        let mut child = Child::start(&format!("control::tests::grants::{test}"), &self.run, Some(user), &self.scratch);
        child.say(&self.process.incarnation().to_string());
        child
    }

    /// What the subscriber is told next.
    fn event(&mut self) -> Event {
        let mut event = None;
        soon("an event", || {
            // Whoever asks for messages takes what the control thread had to say.
            assert!(self.subscriber.try_receive().expect("no error").is_none());
            event = self.subscriber.next_event();
            event.is_some()
        });
        event.expect("an event")
    }

    /// Fails unless the next thing that happens is a refusal that says this.
    fn refused(&mut self, reason: &str) {
        match self.event() {
            Event::Refused(refusal) => assert!(refusal.text.contains(reason), "`{reason}` for: {}", refusal.text),
            other => panic!("{other:?} for: {reason}"),
        }
    }

    /// Fails unless the honest publisher is received.
    fn others_are_received(&mut self) {
        self.publisher.publish_copy(&[self.sent; 9]).expect("room");
        let mut got = None;
        soon("the message", || {
            got = self.subscriber.try_receive().expect("no error").map(|sample| sample[0]);
            got.is_some()
        });
        assert_eq!(got, Some(self.sent));
        self.sent += 1;
    }
}

/// Whether this process has a file mapped.
fn is_mapped(inode: u64) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the mappings");
    maps.lines().any(|line| line.split_whitespace().nth(4) == Some(inode.to_string().as_str()))
}

fn inode(descriptor: impl AsFd) -> u64 {
    std::fs::File::from(descriptor.as_fd().try_clone_to_owned().expect("dup")).metadata().expect("fstat").ino()
}

#[test]
fn whatever_number_of_a_strangers_grant_is_wrong_it_is_refused_for_that_and_the_others_are_read() {
    let Some(mut stage) = Stage::set() else { return };
    let mut liar = stage.liar("child_that_grants_nonsense", STRANGER);
    let inode: u64 = liar.line().parse().expect("an inode");
    for (number, (_, reason)) in LIES.iter().enumerate() {
        liar.say("next");
        stage.refused(reason);
        assert_eq!(liar.line(), "left", "{reason}");
        stage.others_are_received();
        if number % 8 == 0 {
            soon("its memory is mapped no more", || !is_mapped(inode));
        }
    }
    // The very same without a lie is granted, so the refusals had their causes.
    liar.say("next");
    assert!(matches!(stage.event(), Event::Joined { start: 0, .. }));
    assert!(is_mapped(inode), "as the lane needs it");
    assert_eq!(stage.subscriber.publishers(), 2);
    stage.others_are_received();
    assert_eq!(stage.subscriber.next_event(), None);
    drop(liar);
    soon("its memory is mapped no more", || {
        let _taken = stage.subscriber.try_receive();
        !is_mapped(inode)
    });
}

#[test]
#[ignore = "a child of another test"]
fn child_that_grants_nonsense() {
    let Some(liar) = Liar::start() else { return };
    let region = region();
    let descriptor = region.descriptor().expect("a memfd");
    Child::answer(&inode(descriptor).to_string());
    for (number, (spoil, _)) in LIES.iter().enumerate() {
        assert_eq!(Child::heard(), "next");
        let join = liar.announce(number as u32 + 1);
        let mut accepted = sound(&region, LaneName { publisher: join.publisher, subscriber: join.subscriber });
        spoil(&mut accepted);
        grant(&liar.connection, accepted, &[descriptor]);
        Child::answer(liar.outcome());
    }
    assert_eq!(Child::heard(), "next");
    let join = liar.announce(LIES.len() as u32 + 1);
    grant(
        &liar.connection,
        sound(&region, LaneName { publisher: join.publisher, subscriber: join.subscriber }),
        &[descriptor],
    );
    Child::wait_for_parent();
}

const REGION_SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// A memfd of that size with those seals, populated or not, and nothing in it.
fn memfd(bytes: u64, seals: SealFlags, populated: bool) -> OwnedFd {
    let memfd = rustix::fs::memfd_create("forged", MemfdFlags::ALLOW_SEALING).expect("memfd_create");
    rustix::fs::ftruncate(&memfd, bytes).expect("ftruncate");
    if populated {
        let file = std::fs::File::from(memfd.try_clone().expect("dup"));
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; bytes as usize], 0).expect("write");
    }
    rustix::fs::fcntl_add_seals(&memfd, seals).expect("F_ADD_SEALS");
    memfd
}

/// What is handed over in place of a region, and what the refusal says of it.
type Forgery = (fn(&Region) -> OwnedFd, &'static str);

const FORGERIES: &[Forgery] = &[
    (|_| std::io::pipe().expect("a pipe").0.into(), "no sealable memory"),
    (|_| std::fs::File::open("/dev/zero").expect("a device").into(), "no sealable memory"),
    (|region| memfd(region.len() as u64, SealFlags::empty(), true), "are missing"),
    (|region| memfd(region.len() as u64, REGION_SEALS.difference(SealFlags::SHRINK), true), "are missing"),
    (|region| memfd(region.len() as u64, REGION_SEALS, false), "hole"),
    (|region| memfd(region.len() as u64 - 4096, REGION_SEALS, true), "were claimed"),
    (|region| memfd(region.len() as u64, REGION_SEALS, true), "header"),
];

#[test]
fn who_hands_over_what_is_no_region_is_refused_and_not_heard_for_a_while() {
    let Some(mut stage) = Stage::set() else { return };
    // A user each: none of them is heard again soon.
    for (user, (_, reason)) in (STRANGER..).zip(FORGERIES) {
        let mut liar = stage.liar("child_that_hands_over_forgeries", user);
        liar.say(&(user - STRANGER).to_string());
        stage.refused(reason);
        assert_eq!(liar.line(), "hung up on", "{reason}");
        assert_eq!(liar.line(), "not heard", "{reason}");
        stage.others_are_received();
        assert_eq!(stage.subscriber.next_event(), None, "{reason}");
    }
    assert_eq!(stage.subscriber.publishers(), 1);
}

#[test]
#[ignore = "a child of another test"]
fn child_that_hands_over_forgeries() {
    let Some(liar) = Liar::start() else { return };
    let (forge, _) = FORGERIES[Child::heard().parse::<usize>().expect("a number")];
    let region = region();
    let join = liar.announce(1);
    let accepted = sound(&region, LaneName { publisher: join.publisher, subscriber: join.subscriber });
    grant(&liar.connection, accepted, &[forge(&region).as_fd()]);
    soon("the end of the connection", || liar.outcome() == "hung up on");
    Child::answer("hung up on");
    // Connecting works, since that is the kernel's: the connection ends at once.
    let again = Connection::connect(&liar.puppet.directory, liar.to);
    let heard = again.is_ok_and(|again| {
        let _said = again.send(&liar.puppet.hello().encode(), &[]);
        let mut answer = None;
        soon("an answer or an end", || {
            answer = match again.receive(&mut [0; MAX_MESSAGE_BYTES]) {
                Ok(Received::Empty) => None,
                Ok(Received::Message { .. }) => Some(true),
                _ => Some(false),
            };
            answer.is_some()
        });
        answer == Some(true)
    });
    Child::answer(if heard { "heard" } else { "not heard" });
}

/// The memory of a file that this process has in its page tables, bytes; nothing where it is not mapped.
fn resident(inode: u64) -> Option<u64> {
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("the mappings");
    let (mut ours, mut bytes) = (false, None);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Rss:"), Some(kibibytes)) if ours => {
                *bytes.get_or_insert(0) += kibibytes.parse::<u64>().expect("a number") << 10;
            }
            (Some(first), Some(_)) if !first.ends_with(':') => ours = words.nth(2) == Some(inode.to_string().as_str()),
            _ => {}
        }
    }
    bytes
}

/// Bytes of a region that would be felt if all of it was read.
const LARGE: usize = 32 << 20;

#[test]
fn a_grant_that_nobody_waits_for_is_not_looked_at_and_a_large_one_is_not_filled() {
    let Some(mut stage) = Stage::set() else { return };
    let mut liar = stage.liar("child_that_grants_unasked", STRANGER);
    let large: u64 = liar.line().parse().expect("an inode");
    for _ in 0..2 {
        // Each brought what would have ended its sender, had it been looked at.
        assert_eq!(liar.line(), "three regions may come again, and left");
        assert!(!is_mapped(large));
        stage.others_are_received();
        assert_eq!(stage.subscriber.next_event(), None);
        liar.say("next");
    }
    assert!(matches!(stage.event(), Event::Joined { .. }));
    let filled = resident(large).expect("the lane lies in it");
    assert!(filled < LARGE as u64 / 4, "{filled} bytes of {LARGE} are in our page tables");
    // A second grant of the same lane was not asked for.
    assert_eq!(liar.line(), "three regions may come again, and left");
    assert_eq!(stage.subscriber.publishers(), 2);
    stage.others_are_received();
    assert_eq!(stage.subscriber.next_event(), None);
}

#[test]
#[ignore = "a child of another test"]
fn child_that_grants_unasked() {
    let Some(liar) = Liar::start() else { return };
    let large = Region::options(LARGE).huge_pages(HugePages::Transparent).create().expect("a region");
    let descriptor = large.descriptor().expect("a memfd");
    Child::answer(&inode(descriptor).to_string());
    // Claims of a region within the bounds, whose descriptors are holes, and a device.
    let holes = memfd(LARGE as u64, REGION_SEALS, false);
    let device = std::fs::File::open("/dev/zero").expect("a device");
    let unasked = |lane: LaneName| {
        let mut accepted = sound(&large, lane);
        accepted.lane.id = RegionId::from_words([lane.publisher.into(), 1]);
        accepted.ring_region = RegionName { id: RegionId::from_words([2, 2]), ..accepted.lane };
        pool(&mut accepted).region.attached = true;
        let named = [accepted.lane.id, accepted.ring_region.id, large.id()];
        grant(&liar.connection, accepted, &[holes.as_fd(), device.as_fd(), descriptor]);
        let mut answers = Vec::new();
        soon("four answers", || {
            answers.extend(hear(&liar.connection));
            answers.len() == 4
        });
        let unmapped = named.map(Message::Unmapped);
        assert_eq!((&answers[..3], &answers[3]), (&unmapped[..], &Message::Leave(lane)));
        Child::answer("three regions may come again, and left");
    };
    // Of a subscriber that there is not, and of one that never asked.
    for subscriber in [99, 1] {
        unasked(LaneName { publisher: 77, subscriber });
        assert_eq!(Child::heard(), "next");
    }
    let join = liar.announce(1);
    let lane = LaneName { publisher: join.publisher, subscriber: join.subscriber };
    grant(&liar.connection, sound(&large, lane), &[descriptor]);
    soon("the end of the introduction", || matches!(hear(&liar.connection), Some(Message::Announced { .. })));
    unasked(lane);
    Child::wait_for_parent();
}

/// Numbers that are nearly right, or anything.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0_u64..70,
        (0_u64..64, 0_u64..3).prop_map(|(bit, off)| (1_u64 << bit).wrapping_add(off).wrapping_sub(1)),
        (0_u64..20).prop_map(|pages| pages * 4096),
        (0_u64..1100).prop_map(|lines| lines * 64),
        any::<u64>(),
    ]
}

fn classes() -> impl Strategy<Value = Vec<SizeClass>> {
    let class = (number(), number()).prop_map(|(bytes, slots)| class(bytes as usize, slots as u32));
    let small = (1_usize..40, 0_u32..4).prop_map(|(lines, slots)| self::class(lines * 64, slots));
    prop::collection::vec(prop_oneof![class, small], 0..4)
}

/// Whether `count` things of `bytes` bytes, aligned so, lie in a region behind its header.
fn lies_in(region: &Region, offset: u64, count: u64, bytes: usize, align: usize) -> bool {
    let end = u128::from(offset) + u128::from(count) * bytes as u128;
    count > 0
        && offset.is_multiple_of(align as u64)
        && offset >= region.data_offset() as u64
        && end <= region.len() as u128
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn a_grant_of_any_numbers_is_granted_where_all_of_it_lies_in_its_regions_and_refused_otherwise(
        (index, holds, start, capacity) in (0_u8..70, 0_u8..20, number(), prop_oneof![Just(CAPACITY), number()]),
        control in prop_oneof![Just(CONTROL), number()],
        ring in prop_oneof![Just(RING), number()],
        pool in prop::option::of((prop_oneof![Just(POOL), number()], classes())),
        copies: bool,
    ) {
        thread_local!(static PARTS: (Region, Region, Process, Scratch) = {
            let scratch = Scratch::new();
            (region(), region(), Process::open(directory(scratch.path())).expect("a participant"), scratch)
        });
        PARTS.with(|(region, own, process, _)| {
            let lane = LaneName { publisher: 1, subscriber: 1 };
            let mut accepted = sound(region, lane);
            (accepted.index, accepted.holds, accepted.start, accepted.capacity) = (index, holds, start, capacity);
            (accepted.control, accepted.ring) = (control, ring);
            accepted.pool = pool.map(|(offset, classes)| {
                PoolName { region: name_of(region, false), offset, classes }
            });
            let descriptor = region.descriptor().expect("a memfd").try_clone_to_owned().expect("dup");
            let claim = RegionClaim { id: region.id(), bytes: region.len() as u64 };
            let peer = PeerRegion::receive(descriptor, &claim, PeerTrust::Stranger).expect("a sound region");
            let peer = Arc::new(peer);
            let terms = LaneTerms {
                pid: 1,
                least_bytes: size_of::<Words>(),
                drop_oldest: true,
                parks: false,
                block: zcmi_mem::ledger::Place { region: own.id(), offset: 0 },
                copies,
            };
            let lawful = index < 64
                && usize::from(holds) <= HOLDS
                && start < SEQUENCE_END
                && capacity >= 2
                && capacity.is_power_of_two()
                && lies_in(region, control, 1, size_of::<LaneControl>(), align_of::<LaneControl>())
                && lies_in(region, ring, capacity, size_of::<Entry>(), align_of::<Entry>())
                && accepted.pool.as_ref().is_none_or(|pool| {
                    PoolPlan::new(pool.classes.clone()).is_ok_and(|plan| {
                        plan.classes()[0].slot_bytes >= size_of::<Words>()
                            && lies_in(region, pool.offset, plan.bytes() as u64, 1, 4096)
                    })
                });
            let block = own.view::<ReaderBlock>(own.data_offset(), 1).expect("a block");
            let pool = accepted.pool.clone().map(|name| (Arc::clone(&peer), name));
            let ring = Arc::clone(&peer);
            let offer = LaneOffer { peer: process.incarnation(), accepted, lane: peer, ring, wake: None, pool };
            let granted = Lane::new(offer, block, terms, process.life(), Arc::clone(process.mailbox()));
            prop_assert_eq!(granted.is_ok(), lawful, "{:?}", granted);
            Ok(())
        })?;
    }
}
