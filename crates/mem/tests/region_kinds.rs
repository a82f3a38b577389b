//! Every kind of region, from creation to what is left behind: nothing.

mod region_rig;

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use region_rig::{is_root, mapping_of, passed_on};
use zcmi_mem::region::{
    HEADER_BYTES, HugePage, HugePages, LimitSource, Outcome, PeerRegion, PeerTrust, RefusedRegion, Region, RegionError,
    RegionKind, Span, memory,
};
use zcmi_ring::sync::{AtomicU64, Ordering};

const WORD: u64 = 0x600d_cafe;

fn store(region: &Region, word: u64) {
    let last = region.len() - 8;
    for offset in [region.data_offset(), last] {
        region.view::<AtomicU64>(offset, 1).expect("data").at(0).store(word, Ordering::Relaxed);
    }
}

fn unique(name: &str) -> String {
    format!("zcmi-{name}-{}", std::process::id())
}

/// What every region must say of itself, unless the kernel is odd.
fn check_facts(region: &Region) {
    let facts = region.facts();
    for (what, outcome) in [
        ("dont_fork", &facts.dont_fork),
        ("dont_dump", &facts.dont_dump),
        ("reserved", &facts.reserved),
        ("populated", &facts.populated),
    ] {
        assert_eq!(*outcome, Outcome::Yes, "{what} of {:?}", region.kind());
    }
    assert_eq!(facts.page_bytes, region.page_bytes());
    assert_eq!(region.len() % region.page_bytes(), 0);
    assert_eq!(region.data_offset(), HEADER_BYTES);
}

/// The flags of a region's mapping: the kernel's own word for what the facts claim.
fn kernel_flags(region: &Region) -> String {
    let part = mapping_of(region, "smaps").expect("the region is mapped");
    part.lines().find_map(|line| line.strip_prefix("VmFlags:")).expect("a kernel of our times").to_owned()
}

#[test]
fn a_sealed_memfd_is_what_its_facts_say() {
    let region = Region::options(100_000).create().expect("100 kB");
    check_facts(&region);
    assert!(region.len() >= HEADER_BYTES + 100_000 && region.facts().sealed.is_yes());
    assert!(region.facts().compared.is_yes(), "{}", region.facts().compared);
    assert_eq!(region.facts().locked, Outcome::No("not asked for".into()));
    assert!(!region.facts().huge_pages.is_yes());
    store(&region, WORD);
    let other = Region::options(1).create().expect("a page");
    assert_ne!(region.id(), other.id());
    let flags = kernel_flags(&region);
    // dc: not copied at a fork; dd: not dumped.
    assert!(flags.contains(" dc") && flags.contains(" dd"), "{flags}");
}

#[test]
fn anonymous_memory_has_no_descriptor() {
    let region = Region::options(1 << 16).kind(RegionKind::Anonymous).create().expect("64 KiB");
    check_facts(&region);
    store(&region, WORD);
    assert!(region.descriptor().is_none() && !region.facts().sealed.is_yes());
    let lazy = Region::options(1 << 16).kind(RegionKind::Anonymous).populate(false).create().expect("64 KiB");
    assert!(!lazy.facts().populated.is_yes() && !lazy.facts().reserved.is_yes());
    store(&lazy, WORD);
}

#[test]
fn posix_shared_memory_round_trips_and_leaves_no_name() {
    let name = unique("posix");
    let path = Path::new("/dev/shm").join(&name);
    let kind = RegionKind::PosixShm { name: format!("/{name}") };
    let region = Region::options(5000).kind(kind.clone()).create().expect("two pages");
    check_facts(&region);
    store(&region, WORD);
    let file = std::fs::File::open(&path).expect("the name is there");
    assert_eq!(file.metadata().expect("metadata").permissions().mode() & 0o777, 0o600);
    let mut word = [0; 8];
    file.read_exact_at(&mut word, 4096).expect("a word of data");
    assert_eq!(u64::from_ne_bytes(word), WORD);
    // A name that is taken is not taken over, and the failure does not remove it.
    let error = Region::options(1).kind(kind).create().expect_err("the name is taken");
    assert!(
        matches!(&error, RegionError::System { call: "shm_open", source }
        if source.kind() == std::io::ErrorKind::AlreadyExists),
        "{error:?}"
    );
    assert!(path.exists());
    // It takes no seals, so nobody receives it as a region.
    let error = PeerRegion::receive(passed_on(&region), &region.claim(), PeerTrust::SameUser).expect_err("no seals");
    assert!(matches!(error.reason(), RefusedRegion::Unsealed { .. }), "{error:?}");
    // A view keeps the memory, not the name.
    let view = region.view::<AtomicU64>(region.data_offset(), 1).expect("data");
    drop(region);
    assert!(!path.exists());
    assert_eq!(view.at(0).load(Ordering::Relaxed), WORD);
}

#[test]
fn a_name_that_became_another_file_is_not_removed() {
    let name = unique("replaced");
    let path = Path::new("/dev/shm").join(&name);
    let region = Region::options(1).kind(RegionKind::PosixShm { name }).create().expect("a page");
    std::fs::remove_file(&path).expect("our own name");
    std::fs::write(&path, "somebody else's").expect("a new file of that name");
    drop(region);
    let left = std::fs::read_to_string(&path);
    std::fs::remove_file(&path).expect("the test's own file");
    assert_eq!(left.expect("still there"), "somebody else's");
}

#[test]
fn names_that_are_none_are_refused() {
    for name in ["", "/", "a/b", "..", ".", "/../x", "a\0b", &"x".repeat(255)] {
        let error = Region::options(1).kind(RegionKind::PosixShm { name: name.into() }).create().expect_err("no name");
        assert!(matches!(error, RegionError::Name { .. }), "{name:?}: {error:?}");
    }
}

#[test]
fn system_v_round_trips_and_leaves_no_segment() {
    let segments = || std::fs::read_to_string("/proc/sysvipc/shm").expect("a kernel with System V memory");
    let has = |id: i32| segments().lines().any(|line| line.split_whitespace().nth(1) == Some(&id.to_string()));
    // A key of this process; were it taken, the create below would say so.
    let key = 0x5a00_0000 | (std::process::id() as i32 & 0xff_ffff);
    let kind = RegionKind::SystemV { key };
    let region = Region::options(5000).kind(kind.clone()).populate(false).create().expect("two pages");
    check_facts(&region);
    store(&region, WORD);
    let id = region.system_v_id().expect("a segment");
    assert!(has(id) && region.descriptor().is_none());
    assert_eq!(region_rig::sys::read_system_v(id, 4096, 1).expect("attachable"), [WORD]);
    let error = Region::options(1).kind(kind).create().expect_err("the key is taken");
    assert!(matches!(error, RegionError::System { call: "shmget", .. }), "{error:?}");
    assert!(has(id), "the failure removed somebody else's segment");
    drop(region);
    assert!(!has(id), "{}", segments());
}

#[test]
fn a_mapped_file_round_trips_and_leaves_no_file() {
    let path = std::env::temp_dir().join(unique("file"));
    let kind = RegionKind::MappedFile { path: path.clone() };
    let region = Region::options(5000).kind(kind.clone()).mode(0o640).create().expect("three pages");
    check_facts(&region);
    store(&region, WORD);
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
    let mut word = [0; 8];
    std::fs::File::open(&path)
        .and_then(|file| file.read_exact_at(&mut word, region.len() as u64 - 8))
        .expect("a word of data");
    assert_eq!(u64::from_ne_bytes(word), WORD);
    let error = Region::options(1).kind(kind).create().expect_err("the path is taken");
    assert!(matches!(error, RegionError::System { call: "open", .. }), "{error:?}");
    drop(region);
    assert!(!path.exists());
    let nowhere = RegionKind::MappedFile { path: PathBuf::from("/nonexistent/zcmi") };
    let error = Region::options(1).kind(nowhere).create().expect_err("no such directory");
    assert!(matches!(error, RegionError::System { call: "open", .. }), "{error:?}");
}

#[test]
fn locking_and_node_binding_answer_honestly() {
    let region = Region::options(1 << 16).lock(true).numa_node(Some(0)).create().expect("64 KiB");
    // A process with a small `ulimit -l` may get a no, which names the call.
    match &region.facts().locked {
        Outcome::Yes => {
            let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
            let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("VmLck");
            assert!(!locked.trim().starts_with("0 "), "{locked}");
        }
        Outcome::No(reason) => assert!(reason.starts_with("mlock: "), "{reason}"),
        Outcome::Unknown(reason) => panic!("{reason}"),
    }
    match &region.facts().numa {
        Outcome::Yes => {}
        Outcome::No(reason) => assert!(reason.contains("mbind: ") || reason.contains("another node"), "{reason}"),
        Outcome::Unknown(reason) => assert!(reason.starts_with("move_pages: "), "{reason}"),
    }
    for node in [1023, 1024, u32::MAX] {
        let absent = Region::options(1 << 16).numa_node(Some(node)).create().expect("memory is there, the node is not");
        assert!(matches!(&absent.facts().numa, Outcome::No(reason) if reason.starts_with("mbind: ")), "{node}");
    }
}

/// Huge pages added to the machine's pool for this test, and taken away again.
struct ReservedPages {
    pool: String,
    added: u64,
}

impl ReservedPages {
    fn in_pool(pool: &str) -> Option<u64> {
        std::fs::read_to_string(pool).ok()?.trim().parse().ok()
    }

    fn add(page: HugePage, count: u64) -> Result<Self, String> {
        let pool = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", page.bytes() >> 10);
        let before = Self::in_pool(&pool).ok_or_else(|| format!("the kernel has no {pool}"))?;
        std::fs::write(&pool, (before + count).to_string()).map_err(|error| format!("{pool}: {error}"))?;
        let added = Self::in_pool(&pool).unwrap_or(before).saturating_sub(before);
        let pages = Self { pool, added };
        if added < count { Err(format!("only {added} of {count} huge pages could be reserved")) } else { Ok(pages) }
    }
}

impl Drop for ReservedPages {
    fn drop(&mut self) {
        // By what was added, because others may have changed the pool meanwhile.
        let now = Self::in_pool(&self.pool).expect("the pool was there");
        std::fs::write(&self.pool, now.saturating_sub(self.added).to_string()).expect("it was writable before");
    }
}

#[test]
fn a_page_of_one_gibibyte_is_taken_and_passed_on() {
    if !is_root() {
        println!("SKIP: reserving huge pages takes root");
        return;
    }
    let _page = match ReservedPages::add(HugePage::Gib1, 1) {
        Ok(page) => page,
        Err(reason) => {
            println!("SKIP: {reason}");
            return;
        }
    };
    let region = Region::options(1).kind(RegionKind::Hugetlb(HugePage::Gib1)).create().expect("one page");
    check_facts(&region);
    assert_eq!((region.len(), region.page_bytes(), region.facts().huge_pages.is_yes()), (1 << 30, 1 << 30, true));
    store(&region, WORD);
    let peer = PeerRegion::receive(passed_on(&region), &region.claim(), PeerTrust::SameUser).expect("same user");
    let last = peer.view::<AtomicU64>(peer.len() - 8, 1).expect("data");
    assert_eq!(last.at(0).load(Ordering::Relaxed), WORD);
    // There is no second one, and that is said before anything is made.
    let error = Region::options(1).kind(RegionKind::Hugetlb(HugePage::Gib1)).create().expect_err("none is free");
    let RegionError::NotEnoughMemory { limit_source, .. } = error else { panic!("{error:?}") };
    assert_eq!(limit_source, LimitSource::HugePages(HugePage::Gib1));
}

#[test]
fn huge_pages_are_taken_where_they_exist_and_their_absence_is_told() {
    const LARGE: usize = 257 << 20;
    if memory::free_huge_pages(HugePage::Mib2).is_ok_and(|free| free < 130) {
        // None for the asking: an error where they were asked for by name, a reason where they would only be better.
        let error = Region::options(LARGE).kind(RegionKind::Hugetlb(HugePage::Mib2)).create().expect_err("none free");
        let RegionError::NotEnoughMemory { limit_source, .. } = error else { panic!("{error:?}") };
        assert_eq!(limit_source, LimitSource::HugePages(HugePage::Mib2));
        let region = Region::options(LARGE).create().expect("257 MiB of other pages");
        // Transparent ones, or the reasons why there are none of either.
        let facts = &region.facts().huge_pages;
        assert!(matches!(facts, Outcome::Yes) || matches!(facts, Outcome::No(reason) if reason.contains("; madvise")));
        assert_eq!(region.page_bytes(), rustix::param::page_size());
    }
    if !is_root() {
        println!("SKIP: reserving huge pages takes root");
        return;
    }
    let _pages = match ReservedPages::add(HugePage::Mib2, 140) {
        Ok(pages) => pages,
        Err(reason) => {
            println!("SKIP: {reason}");
            return;
        }
    };
    let region = Region::options(LARGE).create().expect("129 huge pages");
    check_facts(&region);
    assert_eq!(region.facts().huge_pages, Outcome::Yes);
    assert_eq!((region.page_bytes(), region.kind()), (2 << 20, &RegionKind::SealedMemfd));
    store(&region, WORD);
    let peer = PeerRegion::receive(passed_on(&region), &region.claim(), PeerTrust::SameUser).expect("same user");
    assert_eq!(peer.page_bytes(), 2 << 20);
    let last = peer.view::<AtomicU64>(peer.len() - 8, 1).expect("data");
    assert_eq!(last.at(0).load(Ordering::Relaxed), WORD);
    let error =
        PeerRegion::receive(passed_on(&region), &region.claim(), PeerTrust::Stranger).expect_err("a stranger's");
    assert!(matches!(error.reason(), RefusedRegion::HugePagesOfStranger), "{error:?}");
    drop((peer, last, region));

    let small = Region::options(1).kind(RegionKind::Hugetlb(HugePage::Mib2)).create().expect("one huge page");
    assert_eq!((small.len(), small.facts().huge_pages.is_yes()), (2 << 20, true));
    PeerRegion::receive(passed_on(&small), &small.claim(), PeerTrust::SameUser).expect("same user");
    let not_reserved = Region::options(LARGE).huge_pages(HugePages::Transparent).create().expect("257 MiB");
    assert_eq!(not_reserved.page_bytes(), rustix::param::page_size());
    PeerRegion::receive(passed_on(&not_reserved), &not_reserved.claim(), PeerTrust::Stranger).expect("it sees all");
}

/// Bytes of the mappings of a region, this one's name, that transparent huge pages of shared memory map.
fn mapped_by_huge_pages(address: usize) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("a process reads its own");
    let head = format!("{address:x}-");
    let mapping = smaps.split_once(&head).expect("it is mapped").1;
    let field = mapping.split_once("ShmemPmdMapped:").expect("the kernel counts them").1;
    let number = field.trim_start().split_once(' ').expect("a number and kB").0;
    number.parse::<u64>().expect("a number") << 10
}

/// Whether the machine has no huge pages to give just now, or none at all; any other reason is a fault.
fn is_short_of_huge_pages(region: &Region) -> bool {
    let Outcome::No(reason) = &region.facts().huge_pages else { return false };
    let has_none = !Path::new("/sys/kernel/mm/transparent_hugepage").exists();
    let errors = [rustix::io::Errno::AGAIN, rustix::io::Errno::NOMEM, rustix::io::Errno::BUSY];
    let is_short = errors.iter().any(|errno| reason.contains(&errno.to_string()));
    assert!(has_none || is_short, "{reason}");
    println!("SKIP: {reason}");
    true
}

#[test]
fn transparent_huge_pages_are_behind_each_whole_block_for_owner_and_peer() {
    const BYTES: usize = (5 << 20) + 12_345;
    let region = Region::options(BYTES).create().expect("5 MiB");
    check_facts(&region);
    if is_short_of_huge_pages(&region) {
        return;
    }
    let begin = |span: Span| span.base().addr().get() - HEADER_BYTES;
    let data = |offset| (offset, 4096);
    let (offset, len) = data(region.data_offset());
    let ours = begin(region.bytes(offset, len).expect("data"));
    assert_eq!((ours % (2 << 20), mapped_by_huge_pages(ours)), (0, 4 << 20));
    store(&region, WORD);
    for trust in [PeerTrust::SameUser, PeerTrust::Stranger] {
        let peer = PeerRegion::receive(passed_on(&region), &region.claim(), trust).expect("no hole");
        let last = peer.view::<AtomicU64>(peer.len() - 8, 1).expect("data");
        assert_eq!(last.at(0).load(Ordering::Relaxed), WORD);
        let theirs = begin(peer.bytes(offset, len).expect("data"));
        // A stranger's is mapped page by page as it is read.
        if trust == PeerTrust::SameUser {
            assert_eq!((theirs % (2 << 20), mapped_by_huge_pages(theirs)), (0, 4 << 20));
        }
    }
    let never = Region::options(BYTES).huge_pages(HugePages::Never).create().expect("5 MiB");
    assert_eq!(never.facts().huge_pages, Outcome::No("the options rule them out".into()));
    assert_eq!(mapped_by_huge_pages(begin(never.bytes(offset, len).expect("data"))), 0);
    let small = Region::options(1 << 20).create().expect("1 MiB");
    assert_eq!(small.facts().huge_pages, Outcome::No("the region is smaller than one".into()));
    let later = Region::options(BYTES).kind(RegionKind::Anonymous).populate(false).create().expect("5 MiB");
    assert_eq!(later.facts().huge_pages, Outcome::No("its pages are to come at the first access".into()));
    let private = Region::options(BYTES).kind(RegionKind::Anonymous).create().expect("5 MiB");
    assert!(private.facts().huge_pages.is_yes() || is_short_of_huge_pages(&private));
}
