//! The arena against a plain list of extents: no overlap, aligned, joined when freed, few regions.

use std::sync::Arc;

use proptest::prelude::*;
use zcmi_mem::region::{Arena, Extent, HEADER_BYTES, RegionError, RegionKind};

/// Checks one new extent against all that are in use.
fn fits(extent: &Extent, align: usize, bytes: usize, others: &[Extent]) -> Result<(), TestCaseError> {
    let (start, end) = (extent.offset(), extent.offset() + extent.bytes());
    prop_assert!(extent.bytes() >= bytes && extent.bytes() < bytes + 64);
    prop_assert!(start % align == 0 && start >= HEADER_BYTES && end <= extent.region().len());
    for other in others.iter().filter(|other| Arc::ptr_eq(other.region(), extent.region())) {
        prop_assert!(end <= other.offset() || other.offset() + other.bytes() <= start, "{extent:?} overlaps {other:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn extents_never_overlap_and_all_come_back(
        operations in prop::collection::vec(
            (any::<bool>(), 1..9000_usize, 6..14_u32, any::<prop::sample::Index>()),
            1..200,
        )
    ) {
        let mut arena = Arena::new(RegionKind::Anonymous, 1 << 14);
        let mut live: Vec<Extent> = Vec::new();
        for (allocate, bytes, align, which) in operations {
            if allocate || live.is_empty() {
                let align = 1 << align;
                let extent = arena.allocate(bytes, align).expect("kilobytes");
                fits(&extent, align, bytes, &live)?;
                live.push(extent);
            } else {
                arena.free(live.swap_remove(which.index(live.len())));
            }
            let used: usize = live.iter().map(Extent::bytes).sum();
            let data: usize = arena.regions().map(|region| region.len() - HEADER_BYTES).sum();
            prop_assert_eq!(used + arena.free_bytes(), data);
        }
        for extent in live {
            arena.free(extent);
        }
        // Everything was joined again: only the first region is left, and one extent can have all of it.
        prop_assert!(arena.regions().count() <= 1);
        let all = arena.free_bytes();
        if all > 0 {
            let extent = arena.allocate(all, 64).expect("the whole first region");
            prop_assert_eq!((extent.bytes(), arena.regions().count(), arena.free_bytes()), (all, 1, 0));
        }
    }
}

#[test]
fn a_thousand_equal_extents_take_few_regions() {
    let mut arena = Arena::new(RegionKind::SealedMemfd, 4096);
    let extents: Vec<Extent> = (0..1000).map(|_| arena.allocate(4096, 64).expect("4 KiB")).collect();
    // 4 KiB doubles ten times to hold a thousand.
    assert!(arena.regions().count() <= 11, "{} regions", arena.regions().count());
    for extent in extents {
        arena.free(extent);
    }
    assert_eq!(arena.regions().count(), 1);
}

#[test]
fn a_region_that_is_dropped_stays_for_who_holds_it() {
    let mut arena = Arena::new(RegionKind::SealedMemfd, 4096);
    let first = arena.allocate(4096, 64).expect("4 KiB");
    let second = arena.allocate(1 << 16, 4096).expect("64 KiB");
    assert_eq!(arena.regions().count(), 2);
    let view = second.view::<zcmi_ring::sync::AtomicU64>(8, 1).expect("in the extent");
    view.at(0).store(5, std::sync::atomic::Ordering::Relaxed);
    assert!(second.view::<zcmi_ring::sync::AtomicU64>(1 << 16, 1).is_err(), "past the extent");
    assert!(second.span(0, (1 << 16) + 1).is_err(), "past the extent");
    arena.free(second);
    assert_eq!(arena.regions().count(), 1);
    assert_eq!(view.at(0).load(std::sync::atomic::Ordering::Relaxed), 5);
    arena.free(first);
    assert_eq!(arena.regions().count(), 1, "the first region stays");
}

#[test]
fn absurd_sizes_and_named_kinds_are_errors() {
    let mut arena = Arena::new(RegionKind::SealedMemfd, 4096);
    for (bytes, align) in [(usize::MAX, 64), (usize::MAX - 63, 1 << 20), (1 << 62, 64), (64, 1 << 62)] {
        let error = arena.allocate(bytes, align).expect_err("no machine has that");
        assert!(matches!(error, RegionError::Size { .. } | RegionError::NotEnoughMemory { .. }), "{error:?}");
    }
    let mut named = Arena::new(RegionKind::PosixShm { name: "zcmi-arena".into() }, 4096);
    assert!(matches!(named.allocate(1, 64), Err(RegionError::NamedArena)));
}

#[test]
#[should_panic(expected = "an extent is freed by the arena that carved it")]
fn an_extent_of_another_arena_is_not_taken() {
    let mut arena = Arena::new(RegionKind::Anonymous, 4096);
    let mut other = Arena::new(RegionKind::Anonymous, 4096);
    arena.free(other.allocate(64, 64).expect("64 bytes"));
}
