//! Descriptors that a peer hands over: whatever is not exactly a populated, sealed region is refused, with its
//! descriptor.

mod region_rig;

use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use proptest::prelude::*;
use region_rig::{REGION_SEALS, forged, header_of, passed_on};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use zcmi_mem::region::{
    HEADER_BYTES, HeaderError, OutOfRegion, PeerRegion, PeerTrust, RefusedRegion, Region, RegionClaim, RegionId,
};
use zcmi_ring::sync::AtomicU64;

const BYTES: u64 = 8192;

/// A region's header and claim, from which the tests make their forgeries.
fn sound() -> &'static ([u8; 128], RegionClaim) {
    static SOUND: OnceLock<([u8; 128], RegionClaim)> = OnceLock::new();
    SOUND.get_or_init(|| {
        let region = Region::options(4096).create().expect("two pages");
        assert_eq!(region.len() as u64, BYTES);
        (header_of(&region), region.claim())
    })
}

fn refusal(fd: std::os::fd::OwnedFd, claim: &RegionClaim) -> RefusedRegion {
    let number = fd.as_raw_fd();
    let error = PeerRegion::receive(fd, claim, PeerTrust::SameUser).expect_err("a forgery");
    let (reason, back) = error.into_parts();
    assert_eq!(back.as_raw_fd(), number, "the very descriptor comes back");
    reason
}

#[test]
fn a_forgery_without_fault_is_accepted_so_the_refusals_below_have_their_cause() {
    let (head, claim) = sound();
    let region = PeerRegion::receive(forged(head, BYTES, BYTES, REGION_SEALS), claim, PeerTrust::Stranger);
    let region = region.expect("nothing is wrong with it");
    assert_eq!((region.len() as u64, region.id()), (claim.bytes, claim.id));
}

#[test]
fn a_sparse_memfd_is_refused() {
    let (head, claim) = sound();
    let reason = refusal(forged(head, BYTES, 0, REGION_SEALS), claim);
    assert!(matches!(reason, RefusedRegion::Sparse { first_hole: 4096, bytes: BYTES }), "{reason:?}");
}

#[test]
fn memory_that_was_allocated_and_never_filled_is_refused() {
    let (head, claim) = sound();
    let fd = forged(head, BYTES, 0, SealFlags::empty());
    rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, BYTES).expect("fallocate");
    rustix::fs::fcntl_add_seals(&fd, REGION_SEALS).expect("F_ADD_SEALS");
    let reason = refusal(fd, claim);
    assert!(matches!(reason, RefusedRegion::Sparse { first_hole: 4096, bytes: BYTES }), "{reason:?}");
}

#[test]
fn a_region_that_shall_not_be_populated_is_still_fit_to_be_handed_on() {
    let region = Region::options(1 << 16).populate(false).create().expect("64 KiB");
    assert!(region.facts().populated.is_yes());
    PeerRegion::receive(passed_on(&region), &region.claim(), PeerTrust::Stranger).expect("no holes");
}

#[test]
fn blocks_past_the_end_do_not_hide_a_hole() {
    let (head, claim) = sound();
    let fd = forged(head, BYTES, 0, SealFlags::empty());
    rustix::fs::fallocate(&fd, FallocateFlags::KEEP_SIZE, BYTES, BYTES).expect("blocks past the end");
    rustix::fs::fcntl_add_seals(&fd, REGION_SEALS).expect("F_ADD_SEALS");
    let stat = rustix::fs::fstat(&fd).expect("fstat");
    assert!(stat.st_blocks as u64 * 512 >= BYTES, "the trick that this test is about");
    let reason = refusal(fd, claim);
    assert!(matches!(reason, RefusedRegion::Sparse { .. }), "{reason:?}");
}

#[test]
fn each_missing_seal_is_named() {
    let (head, claim) = sound();
    for seal in [SealFlags::SHRINK, SealFlags::GROW, SealFlags::FUTURE_WRITE, SealFlags::SEAL] {
        let reason = refusal(forged(head, BYTES, BYTES, REGION_SEALS.difference(seal)), claim);
        assert!(matches!(reason, RefusedRegion::Unsealed { missing, .. } if missing == seal.bits()), "{reason:?}");
    }
}

#[test]
fn a_descriptor_that_takes_no_seals_is_refused_before_it_is_asked_anything() {
    let (_, claim) = sound();
    let (pipe, _writer) = rustix::pipe::pipe().expect("pipe");
    let directory = std::fs::File::open("/").expect("the root directory");
    for fd in [pipe, directory.into()] {
        let reason = refusal(fd, claim);
        assert!(matches!(reason, RefusedRegion::NotSealable { .. }), "{reason:?}");
    }
}

#[test]
fn another_size_than_claimed_is_refused() {
    let (head, claim) = sound();
    for claimed in [0, 1, 4096, BYTES - 1, BYTES + 1, 2 * BYTES, u64::MAX] {
        let reason = refusal(forged(head, BYTES, BYTES, REGION_SEALS), &RegionClaim { bytes: claimed, ..*claim });
        assert!(matches!(reason, RefusedRegion::Size { actual: BYTES, .. }), "{reason:?}");
    }
}

#[test]
fn sizes_that_no_region_has_are_refused() {
    let (head, claim) = sound();
    for bytes in [0, 64, 4096] {
        let head = &head[..head.len().min(bytes as usize)];
        let reason = refusal(forged(head, bytes, bytes, REGION_SEALS), &RegionClaim { bytes, ..*claim });
        assert!(matches!(reason, RefusedRegion::Size { .. }), "{bytes}: {reason:?}");
    }
    let bytes = BYTES + 1;
    let reason = refusal(forged(head, bytes, bytes, REGION_SEALS), &RegionClaim { bytes, ..*claim });
    assert!(matches!(reason, RefusedRegion::Shape { .. }), "{reason:?}");
    // Exabytes that nobody populated: found by their first hole, without a mapping.
    let bytes = 1 << 60;
    let reason = refusal(forged(head, bytes, 0, REGION_SEALS), &RegionClaim { bytes, ..*claim });
    assert!(matches!(reason, RefusedRegion::Sparse { .. }), "{reason:?}");
}

#[test]
fn another_region_than_announced_is_refused() {
    let region = Region::options(1).create().expect("a page");
    let other = RegionClaim { id: RegionId::from_words([1, 2]), ..region.claim() };
    let reason = refusal(passed_on(&region), &other);
    assert!(matches!(reason, RefusedRegion::Header(HeaderError::Identity { found, .. }) if found == region.id()));
}

#[test]
fn a_received_region_outlives_its_owner() {
    let region = Region::options(4096).create().expect("two pages");
    region.view::<AtomicU64>(4096, 1).expect("data").at(0).store(9, std::sync::atomic::Ordering::Relaxed);
    let peer = PeerRegion::receive(passed_on(&region), &region.claim(), PeerTrust::SameUser).expect("sound");
    drop(region);
    let view = peer.view::<AtomicU64>(4096, 1).expect("data");
    drop(peer);
    assert_eq!(view.at(0).load(std::sync::atomic::Ordering::Relaxed), 9);
}

#[test]
fn a_refused_receive_keeps_nothing() {
    let (head, claim) = sound();
    let mut head = *head;
    head[16] = 7;
    let fd = forged(&head, BYTES, BYTES, REGION_SEALS);
    // The name of forged memfds in the maps; other tests of this program hold none of that name for long.
    let inode = rustix::fs::fstat(&fd).expect("fstat").st_ino;
    let error = PeerRegion::receive(fd, claim, PeerTrust::SameUser).expect_err("version 7");
    assert!(matches!(error.reason(), RefusedRegion::Header(HeaderError::Version { found: 7, .. })), "{error:?}");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc");
    let inode = inode.to_string();
    assert!(!maps.lines().any(|line| line.split_whitespace().nth(4) == Some(&inode)), "{maps}");
}

/// A header with faults: some words replaced, by anything or by something near, or all bytes arbitrary.
fn headers() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![any::<u64>(), 0..4_u64, Just(u64::MAX), Just(BYTES), Just(4096)];
    let some = prop::collection::vec((0..16_usize, word), 1..4).prop_map(|faults| {
        let mut head = sound().0.to_vec();
        for (index, value) in faults {
            head[index * 8..index * 8 + 8].copy_from_slice(&value.to_ne_bytes());
        }
        head
    });
    let bit = (0..1024_usize).prop_map(|bit| {
        let mut head = sound().0.to_vec();
        head[bit / 8] ^= 1 << (bit % 8);
        head
    });
    prop_oneof![some, bit, prop::collection::vec(any::<u8>(), 128)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn any_other_header_is_a_typed_error(head in headers()) {
        let (sound_head, claim) = sound();
        let received = PeerRegion::receive(forged(&head, BYTES, BYTES, REGION_SEALS), claim, PeerTrust::Stranger);
        if head == sound_head {
            prop_assert!(received.is_ok());
        } else {
            // The kind alone has two lawful values.
            let other_kind = head[..40] == sound_head[..40] && head[48..] == sound_head[48..];
            match received {
                Ok(_) => prop_assert!(other_kind, "accepted {:?}", head),
                Err(error) => prop_assert!(matches!(error.reason(), RefusedRegion::Header(_)), "{:?}", error),
            }
        }
    }

    #[test]
    fn any_range_is_checked(offset in prop_oneof![any::<usize>(), 0..3 * 4096_usize],
                            count in prop_oneof![any::<usize>(), 0..1200_usize]) {
        static REGION: OnceLock<PeerRegion> = OnceLock::new();
        let region = REGION.get_or_init(|| {
            let (head, claim) = sound();
            PeerRegion::receive(forged(head, BYTES, BYTES, REGION_SEALS), claim, PeerTrust::Stranger).expect("sound")
        });
        let fits = |bytes: Option<usize>| {
            let end = bytes.and_then(|bytes| offset.checked_add(bytes));
            count > 0 && offset >= HEADER_BYTES && end.is_some_and(|end| end <= region.len())
        };
        let words = region.view::<AtomicU64>(offset, count);
        prop_assert_eq!(words.is_ok(), fits(count.checked_mul(8)) && offset % 8 == 0, "{:?}", words);
        let span = region.bytes(offset, count);
        prop_assert_eq!(span.is_ok(), fits(Some(count)), "{:?}", span);
        if let Ok(words) = words {
            prop_assert_eq!(words.at(0).load(std::sync::atomic::Ordering::Relaxed), 0);
            prop_assert_eq!(words.at(count - 1).load(std::sync::atomic::Ordering::Relaxed), 0);
        }
    }
}

#[test]
fn ranges_are_refused_for_the_reason_that_applies() {
    let region = Region::options(4096).create().expect("two pages");
    let why = |offset, count| region.view::<AtomicU64>(offset, count).expect_err("no such range");
    assert_eq!(why(4088, 1), OutOfRegion::InHeader { offset: 4088, data_offset: 4096 });
    assert_eq!(why(4100, 1), OutOfRegion::Misaligned { offset: 4100, align: 8 });
    assert_eq!(why(4096, 0), OutOfRegion::Empty { offset: 4096 });
    assert_eq!(why(8192, 1), OutOfRegion::PastEnd { offset: 8192, bytes: 8, region_bytes: 8192 });
    assert!(matches!(why(4096, usize::MAX), OutOfRegion::PastEnd { .. }));
}

#[test]
fn a_memfd_of_the_wrong_kind_of_seals_is_refused_as_it_came() {
    // Sealed against all writing instead of future writing: a lawful memfd, and no region of ours.
    let (head, claim) = sound();
    let seals = REGION_SEALS.difference(SealFlags::FUTURE_WRITE) | SealFlags::WRITE;
    let reason = refusal(forged(head, BYTES, BYTES, seals), claim);
    assert!(matches!(reason, RefusedRegion::Unsealed { .. }), "{reason:?}");
    // One that cannot be sealed at all.
    let fd = rustix::fs::memfd_create("plain", MemfdFlags::CLOEXEC).expect("memfd_create");
    let reason = refusal(fd, claim);
    assert!(matches!(reason, RefusedRegion::Unsealed { .. }), "{reason:?}");
}

#[test]
fn a_shortage_of_our_own_is_told_from_what_was_sent() {
    let call = || std::io::Error::from_raw_os_error(12);
    assert!(RefusedRegion::System { call: "fstat", source: call() }.is_our_own());
    let no_memory = zcmi_mem::region::RegionError::System { call: "mmap", source: call() };
    assert!(RefusedRegion::Map(Box::new(no_memory)).is_our_own());
    for sent in [
        RefusedRegion::NotSealable { source: call() },
        RefusedRegion::Unsealed { found: 0, missing: 1 },
        RefusedRegion::Size { actual: 1, claimed: 2, least: 3 },
        RefusedRegion::Sparse { first_hole: 0, bytes: 4096 },
        RefusedRegion::HugePagesOfStranger,
    ] {
        assert!(!sent.is_our_own(), "{sent}");
    }
}
