//! The ledger: counts arrive at an observer, sums survive the endpoints, and unknown is never zero.

use std::sync::atomic::{AtomicBool, Ordering};

use zcmi_mem::ledger::{
    Counter, FallbackReason, Identity, LaneRow, Ledger, LedgerBlock, LedgerError, LedgerWriter, NotKnown, Role,
};
use zcmi_ring::View;

fn blocks(count: usize) -> View<LedgerBlock> {
    View::heap(count, |_| LedgerBlock::default())
}

/// A ledger with this many blocks for endpoints and as many rows for lanes.
fn ledger(endpoints: usize) -> std::sync::Arc<Ledger> {
    let lanes = View::heap(endpoints, |_| LaneRow::default());
    Ledger::new(blocks(endpoints + 3), lanes, 4711).expect("blocks for endpoints")
}

fn publisher(endpoint: u64) -> Identity {
    Identity { endpoint, service: [0xabc, endpoint], role: Role::Publisher, pid: 4711 }
}

#[test]
fn every_count_reaches_an_observer_and_no_other() {
    let view = blocks(1);
    let writer = LedgerWriter::new(view.clone(), 0, publisher(7));
    for counter in Counter::ALL {
        let before = view.at(0).snapshot().expect("nobody rewrites it");
        writer.add(counter, 1000 + counter as u64);
        let change = view.at(0).snapshot().expect("nobody rewrites it").since(&before);
        for other in Counter::ALL {
            let expected = if other == counter { 1000 + counter as u64 } else { 0 };
            assert_eq!(change.count(other), Ok(expected), "{other} after {counter}");
        }
    }
    for reason in FallbackReason::ALL {
        let before = view.at(0).snapshot().expect("nobody rewrites it");
        writer.fallback(reason);
        let change = view.at(0).snapshot().expect("nobody rewrites it").since(&before);
        for other in FallbackReason::ALL {
            assert_eq!(change.fallbacks(other), u64::from(other == reason), "{other} after {reason}");
        }
        assert!(Counter::ALL.iter().all(|&counter| change.count(counter) == Ok(0)));
    }
    assert_eq!(*view.at(0).snapshot().expect("nobody rewrites it").identity(), publisher(7));
}

#[test]
fn copied_per_byte_divides_by_what_was_delivered() {
    let view = blocks(1);
    let writer = LedgerWriter::new(view.clone(), 0, publisher(1));
    let empty = view.at(0).snapshot().expect("nobody rewrites it").copied_per_byte();
    assert_eq!(empty.user, Err(NotKnown::NothingDelivered));
    assert_eq!(empty.kernel, Err(NotKnown::NothingDelivered));

    writer.delivered_batch(3, 3000);
    writer.delivered(1000);
    writer.add(Counter::CopiedUser, 2000);
    writer.add(Counter::CopiedKernelKnown, 4000);
    writer.add(Counter::CopiedKernelPresumed, 1000);
    let snapshot = view.at(0).snapshot().expect("nobody rewrites it");
    assert_eq!(snapshot.count(Counter::Messages), Ok(4));
    let copied = snapshot.copied_per_byte();
    assert_eq!((copied.user, copied.kernel, copied.presumed), (Ok(0.5), Ok(1.25), Ok(0.25)));
}

#[test]
fn what_cannot_be_known_is_not_available_with_a_reason() {
    let view = blocks(1);
    let writer = LedgerWriter::new(view.clone(), 0, publisher(1));
    writer.delivered(8);
    writer.set_not_known(Counter::CopiedKernelPresumed, Some(NotKnown::NotReported));
    writer.set_not_known(Counter::Drops, Some(NotKnown::PeerSilent));
    writer.add(Counter::Drops, 5);
    let snapshot = view.at(0).snapshot().expect("nobody rewrites it");
    assert_eq!(snapshot.count(Counter::CopiedKernelPresumed), Err(NotKnown::NotReported));
    assert_eq!(snapshot.count(Counter::Drops), Err(NotKnown::PeerSilent));
    assert_eq!(snapshot.count(Counter::Refusals), Ok(0));
    assert_eq!(snapshot.copied_per_byte().kernel, Err(NotKnown::NotReported));
    assert_eq!(snapshot.copied_per_byte().user, Ok(0.0));
    let printed = snapshot.to_string();
    assert!(printed.contains("n/a (not told by the peer)"), "{printed}");

    writer.set_not_known(Counter::Drops, None);
    let snapshot = view.at(0).snapshot().expect("nobody rewrites it");
    assert_eq!(snapshot.count(Counter::Drops), Ok(5));
    assert_eq!(snapshot.count(Counter::CopiedKernelPresumed), Err(NotKnown::NotReported));
}

#[test]
fn a_snapshot_prints_every_count_and_only_the_fallbacks_there_were() {
    let view = blocks(1);
    let writer = LedgerWriter::new(view.clone(), 0, publisher(7));
    writer.delivered(4096);
    writer.fallback(FallbackReason::MemlockLimit);
    let printed = view.at(0).snapshot().expect("nobody rewrites it").to_string();
    assert!(
        printed.starts_with("publisher 7 of service 0000000000000abc0000000000000007, process 4711\n"),
        "{printed}"
    );
    for counter in Counter::ALL {
        assert!(printed.contains(counter.name()), "{counter} is missing in {printed}");
    }
    assert!(printed.contains("memlock_limit"), "{printed}");
    assert!(!printed.contains("optmem_limit"), "{printed}");
}

#[test]
fn closing_an_endpoint_keeps_its_counts_in_the_sums() {
    let ledger = ledger(2);
    let first = ledger.open(publisher(1));
    let second = ledger.open(publisher(2));
    assert_ne!(first.index(), second.index());

    first.delivered_batch(10, 100);
    first.fallback(FallbackReason::TooSmall);
    second.delivered_batch(1, 5);
    let index = first.index();
    ledger.close(first);
    let closed = ledger.view().at(0).snapshot().expect("nobody rewrites it");
    assert_eq!(closed.identity().role, Role::Closed);
    assert_eq!(closed.count(Counter::Messages), Ok(10));
    assert!(!ledger.view().at(index).snapshot().expect("nobody rewrites it").is_used());

    let third = ledger.open(publisher(3));
    assert_eq!(third.index(), index);
    assert_eq!(third.block().snapshot().expect("nobody rewrites it").count(Counter::Messages), Ok(0));
    third.delivered_batch(2, 2);
    third.set_not_known(Counter::Drops, Some(NotKnown::PeerSilent));
    let total = ledger.total();
    assert_eq!(total.count(Counter::Messages), Ok(13));
    assert_eq!(total.count(Counter::BytesDelivered), Ok(107));
    assert_eq!(total.fallbacks(FallbackReason::TooSmall), 1);
    assert_eq!(total.count(Counter::Drops), Err(NotKnown::PeerSilent));
    ledger.close(third);
    ledger.close(second);
    assert_eq!(ledger.total(), total, "closing changes no sum");
    assert_eq!(ledger.view().at(0).snapshot(), Some(total));
}

#[test]
fn a_ledger_needs_a_block_for_the_sums_and_one_for_an_endpoint() {
    let lanes = View::heap(1, |_| LaneRow::default());
    let refused = Ledger::new(blocks(3), lanes, 1).expect_err("too small");
    assert_eq!(refused, LedgerError::TooSmall { blocks: 3, least: 4 });
}

#[test]
#[should_panic(expected = "belongs to another ledger")]
fn a_writer_of_another_ledger_is_our_own_mistake() {
    let (ledger, other) = (ledger(1), ledger(1));
    ledger.close(other.open(publisher(1)));
}

#[test]
fn an_observer_sees_counts_only_grow_and_in_the_end_all_of_them() {
    const MESSAGES: u64 = 50_000;
    let view = blocks(1);
    let writer = LedgerWriter::new(view.clone(), 0, publisher(1));
    std::thread::scope(|scope| {
        scope.spawn(move || (0..MESSAGES).for_each(|_| writer.delivered(3)));
        let mut last = 0;
        while last < MESSAGES {
            let now = view.at(0).snapshot().expect("nobody rewrites it").count(Counter::Messages).expect("known");
            assert!(now >= last && now <= MESSAGES, "{now} after {last}");
            last = now;
            std::thread::yield_now();
        }
    });
    assert_eq!(view.at(0).snapshot().expect("nobody rewrites it").count(Counter::BytesDelivered), Ok(3 * MESSAGES));
}

#[test]
fn an_observer_never_mixes_two_identities() {
    // Only what is seen to change can be seen mixed: so count changes, and bound the looks.
    const CHANGES: usize = 300;
    const LOOKS: usize = 20_000_000;
    let view = blocks(1);
    let looked = AtomicBool::new(false);
    let (rewritten, seen) = std::thread::scope(|scope| {
        let rewriting = scope.spawn(|| {
            let mut endpoint = 0;
            while !looked.load(Ordering::Acquire) {
                endpoint += 1;
                let pid = endpoint as u32;
                let identity = Identity { endpoint, service: [endpoint; 2], role: Role::Subscriber, pid };
                LedgerWriter::new(view.clone(), 0, identity).add(Counter::Messages, endpoint);
                // Leaves the observer some moments in which the sequence is even.
                (0..20).for_each(|_| std::hint::spin_loop());
            }
            endpoint
        });
        let (mut seen, mut last) = (0, 0);
        for _ in 0..LOOKS {
            let Some(snapshot) = view.at(0).snapshot() else {
                std::thread::yield_now();
                continue;
            };
            let Identity { endpoint, service, pid, .. } = *snapshot.identity();
            let whole = service == [endpoint; 2] && pid == endpoint as u32;
            let messages = snapshot.count(Counter::Messages).expect("known");
            if !whole || (messages != 0 && messages != endpoint) {
                looked.store(true, Ordering::Release);
                panic!("{messages} messages in a mixed snapshot: {:?}", snapshot.identity());
            }
            if endpoint == last {
                std::thread::yield_now();
                continue;
            }
            (seen, last) = (seen + 1, endpoint);
            if seen == CHANGES {
                break;
            }
        }
        looked.store(true, Ordering::Release);
        (rewriting.join().expect("the writer does not panic"), seen)
    });
    assert_eq!(seen, CHANGES, "changes seen in {LOOKS} looks at {rewritten} identities");
    let last = view.at(0).snapshot().expect("nobody rewrites it");
    assert_eq!((last.identity().endpoint, last.count(Counter::Messages)), (rewritten, Ok(rewritten)));
}
