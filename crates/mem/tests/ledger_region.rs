//! A ledger in its region: what its owner listed is what an observer reads, and lies cost figures and nothing else.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;
use zcmi_mem::ledger::region::{BLOCKS, LANES, LEDGER_BYTES};
use zcmi_mem::ledger::{
    Counter, Identity, LaneCounts, LaneSource, LedgerClaimError, LedgerReader, LedgerRegion, NotKnown, Place, Role,
};
use zcmi_mem::region::{PeerRegion, PeerTrust, Region, RegionId};
use zcmi_ring::sync::{AtomicU64, Ordering};
use zcmi_ring::{Entry, LaneControl, ReaderBlock};

const INCARNATION: [u64; 2] = [0x1234, 0x5678];

fn ledger() -> LedgerRegion {
    let region = Arc::new(Region::options(LEDGER_BYTES).create().expect("memory"));
    LedgerRegion::create(region, INCARNATION, 4711).expect("it fits")
}

/// A region as an observer maps it.
fn seen(region: &Region) -> Arc<PeerRegion> {
    let descriptor = region.descriptor().expect("a memfd").try_clone_to_owned().expect("dup");
    Arc::new(PeerRegion::receive(descriptor, &region.claim(), PeerTrust::SameUser).expect("an honest region"))
}

fn identity(role: Role) -> Identity {
    Identity { endpoint: 1, service: [1, 2], role, pid: 4711 }
}

fn at(region: &Region, offset: usize) -> Place {
    Place { region: region.id(), offset: (region.data_offset() + offset) as u64 }
}

#[test]
fn an_observer_derives_what_lanes_say_and_keeps_it_when_they_are_settled() {
    let ledger = ledger();
    let memory = Region::options(1 << 16).create().expect("memory");
    let begin = memory.data_offset();
    let control = memory.view::<LaneControl>(begin, 1).expect("a control line");
    let ring = memory.view::<Entry>(begin + 1024, 8).expect("a ring");
    let block = memory.view::<ReaderBlock>(begin + 8192, 1).expect("a block");
    (0..21).for_each(|sequence: usize| ring.at(sequence % 8).stamp.store(sequence as u64 + 1, Ordering::Relaxed));
    control.at(0).refused.store(4, Ordering::Relaxed);
    control.at(0).published_bytes.store(777, Ordering::Relaxed);
    block.at(0).start.store(5, Ordering::Relaxed);
    block.at(0).cursor.store(17, Ordering::Relaxed);
    block.at(0).lost.store(2, Ordering::Relaxed);

    let owner = ledger.ledger();
    let (publisher, subscriber) = (owner.open(identity(Role::Publisher)), owner.open(identity(Role::Subscriber)));
    let lane =
        LaneSource::Publisher { control: at(&memory, 0), ring: at(&memory, 1024), capacity: 8, message_bytes: 0 };
    let published = owner.list(&publisher, &lane);
    let read = LaneSource::Subscriber { block: at(&memory, 8192), message_bytes: 10 };
    let received = owner.list(&subscriber, &read);

    let reader = LedgerReader::new(&seen(ledger.region())).expect("a ledger");
    assert_eq!((reader.incarnation(), reader.pid()), (INCARNATION, 4711));
    assert_eq!(reader.regions(), [memory.id()]);
    let mapped: HashMap<RegionId, Arc<PeerRegion>> = [(memory.id(), seen(&memory))].into();
    let find = |id| mapped.get(&id).map(Arc::clone);
    let counts = |of: &zcmi_mem::ledger::LedgerSnapshot| {
        [Counter::Messages, Counter::BytesDelivered, Counter::Drops, Counter::Refusals].map(|counter| of.count(counter))
    };
    let reading = reader.read(find);
    assert_eq!(counts(&reading.endpoints[0].snapshot), [Ok(21), Ok(777), Ok(0), Ok(4)]);
    assert_eq!(counts(&reading.endpoints[1].snapshot), [Ok(10), Ok(100), Ok(2), Ok(0)]);
    assert_eq!((reading.endpoints[0].capacity, reading.endpoints[1].lanes), (8, 1));

    // Without the region it is not zero but unknown.
    let blind = reader.read(|_| None);
    assert_eq!(counts(&blind.endpoints[0].snapshot), [Err(NotKnown::NotReadable); 4]);
    assert_eq!(blind.total().count(Counter::Messages), Err(NotKnown::NotReadable));
    assert_eq!(blind.total().count(Counter::Waits), Ok(0));

    let total = reading.total();
    owner.settle(&publisher, published, &LaneCounts { messages: 21, bytes: 777, drops: 0, refusals: 4 });
    owner.settle(&subscriber, received, &LaneCounts::of_reader(block.at(0), 10));
    assert_eq!(reader.read(find).total(), total, "settling changes no sum");
    assert_eq!(reader.regions(), []);
    owner.close(publisher);
    owner.close(subscriber);
    let reading = reader.read(find);
    assert_eq!((reading.endpoints.len(), counts(&reading.closed.snapshot)), (0, counts(&total)));
}

#[test]
fn a_process_that_stopped_while_it_closed_an_endpoint_has_unknown_sums_and_not_wrong_ones() {
    let ledger = ledger();
    let writer = ledger.ledger().open(identity(Role::Publisher));
    writer.delivered(100);
    let reader = LedgerReader::new(&seen(ledger.region())).expect("a ledger");
    assert_eq!(reader.read(|_| None).total().count(Counter::Messages), Ok(1));
    // The first word of block 0 is odd while sums are rewritten.
    let words = ledger.region().view::<AtomicU64>(ledger.region().data_offset() + 512, 1).expect("a word");
    words.at(0).fetch_add(1, Ordering::Relaxed);
    let reading = reader.read(|_| None);
    assert!(reading.unsettled > 0);
    assert_eq!(reading.total().count(Counter::Messages), Err(NotKnown::NotReadable));
    assert_eq!(reading.endpoints[0].snapshot.count(Counter::Messages), Ok(1), "the others are read");
}

#[test]
fn another_region_is_no_ledger() {
    let other = Region::options(1 << 17).create().expect("memory");
    let refused = LedgerReader::new(&seen(&other)).expect_err("no ledger");
    assert_eq!(refused, LedgerClaimError::Magic { found: 0 });
    let small = Region::options(1).create().expect("memory");
    assert!(LedgerReader::new(&seen(&small)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn arbitrary_words_in_a_ledger_are_read_as_some_numbers_and_never_a_panic(
        words in prop::collection::vec((any::<Index>(), prop_oneof![any::<u64>(), 0_u64..70_000]), 0..400),
        rows in prop::collection::vec((0..LANES, 0_u64..BLOCKS as u64 + 2, 0_u64..4, 0_u64..80_000, 0_u64..40), 0..40),
        header in prop::option::of((0_usize..7, any::<u64>())),
    ) {
        let ledger = ledger();
        let region = ledger.region();
        let all = region.view::<AtomicU64>(region.data_offset(), (region.len() - region.data_offset()) / 8)
            .expect("words");
        for (index, value) in words {
            // Behind the header, which has its own lies below.
            all.at(64 + index.index(all.len() - 64)).store(value, Ordering::Relaxed);
        }
        let target = Region::options(1 << 16).create().expect("memory");
        let [low, high] = target.id().words();
        for (row, owner, kind, offset, capacity) in rows {
            // Rows that lead into a region that is there, at offsets that may be none.
            let words = [owner, low, high, offset & !63, low, high, (offset / 2) & !63, 1 << (capacity % 24), 0, kind];
            let first = (512 + BLOCKS * 512 + row * 128) / 8;
            for (word, value) in words.into_iter().enumerate() {
                all.at(first + word).store(value, Ordering::Relaxed);
            }
        }
        let noise = target.view::<AtomicU64>(target.data_offset(), (1 << 16) / 8).expect("words");
        for word in 0..noise.len() {
            noise.at(word).store((word as u64).wrapping_mul(0x9e37_79b9), Ordering::Relaxed);
        }
        if let Some((word, value)) = header {
            all.at(word).store(value, Ordering::Relaxed);
        }
        let (peer, target) = (seen(region), seen(&target));
        if let Ok(reader) = LedgerReader::new(&peer) {
            let find = |id| (id == target.id()).then(|| Arc::clone(&target));
            let reading = reader.read(find);
            prop_assert!(reading.endpoints.len() <= BLOCKS && reader.regions().len() <= 2 * LANES);
            prop_assert!(!reading.total().to_string().is_empty());
            for endpoint in &reading.endpoints {
                prop_assert!(endpoint.lanes <= LANES && !endpoint.snapshot.to_string().is_empty());
            }
        }
    }
}
