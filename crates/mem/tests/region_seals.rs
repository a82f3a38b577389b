//! What the holder of a region's descriptor cannot do to it: the kernel refuses.

mod region_rig;

use std::os::fd::AsFd;
use std::process::Stdio;
use zcmi_ring::sync::{AtomicU64, Ordering};

use region_rig::sys::{in_fork, map_writable, protect_writable};
use region_rig::{
    Program, child_command, given, has_program, is_child, is_root, mapping_of, passed_on, run_child, this_program,
};
use rustix::fs::{FallocateFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use zcmi_mem::region::{
    OutOfRegion, PeerRegion, PeerTrust, PeerWakePage, RefusedRegion, Region, RegionClaim, RegionId, RegionKind,
};

const WORD: u64 = 0x5eed_0000_0000_0001;

/// Tells a child what it was given.
fn claim_text(region: &Region) -> String {
    let [low, high] = region.id().words();
    format!("{low} {high} {}", region.len())
}

fn claim_from_environment() -> RegionClaim {
    let text = std::env::var("ZCMI_REGION_CLAIM").expect("set by the parent");
    let words: Vec<u64> = text.split(' ').map(|word| word.parse().expect("a number")).collect();
    RegionClaim { id: RegionId::from_words([words[0], words[1]]), bytes: words[2] }
}

/// Everything a holder can try; each must be refused. Returns how many were.
fn attack(fd: impl AsFd) -> usize {
    let fd = fd.as_fd();
    let bytes = rustix::fs::fstat(fd).expect("fstat").st_size as u64;
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let reopened = |flags: OFlags| rustix::fs::open("/proc/self/fd/0", flags | OFlags::CLOEXEC, Mode::empty());
    let attempts: [(&str, rustix::io::Result<()>); 13] = [
        ("write", rustix::io::write(fd, b"x").map(drop)),
        ("pwrite", rustix::io::pwrite(fd, b"x", 4096).map(drop)),
        ("shrink", rustix::fs::ftruncate(fd, 0)),
        ("grow", rustix::fs::ftruncate(fd, bytes * 2)),
        ("punch", rustix::fs::fallocate(fd, hole, 0, 4096)),
        ("fallocate past the end", rustix::fs::fallocate(fd, FallocateFlags::empty(), bytes, 4096)),
        ("mmap for writing", map_writable(fd)),
        ("mprotect", protect_writable(fd)),
        ("add a seal", rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE)),
        // Root may open anything, so each of these goes on to what it was opened for.
        ("reopen and write", reopened(OFlags::RDWR).and_then(|fd| rustix::io::pwrite(fd, b"x", 4096).map(drop))),
        ("reopen and map", reopened(OFlags::RDWR).and_then(|fd| map_writable(fd.as_fd()))),
        ("reopen and truncate", reopened(OFlags::RDWR | OFlags::TRUNC).and_then(|fd| rustix::fs::ftruncate(fd, 0))),
        ("reopen and punch", reopened(OFlags::RDWR).and_then(|fd| rustix::fs::fallocate(fd, hole, 0, 4096))),
    ];
    for (what, answer) in &attempts {
        assert!(matches!(answer, Err(Errno::PERM | Errno::ACCESS)), "{what}: {answer:?}");
    }
    attempts.len()
}

/// The child's part: attack, then receive as one should, and read.
fn attack_and_receive(trust: PeerTrust) {
    let fd = given();
    println!("{} refused", attack(&fd));
    let region = PeerRegion::receive(fd, &claim_from_environment(), trust).expect("a sound region");
    let words = region.view::<AtomicU64>(region.data_offset(), 1).expect("data");
    assert_eq!(words.at(0).load(Ordering::Relaxed), WORD);
    assert!(!region.bytes(region.data_offset(), 8).expect("data").is_writable());
}

#[test]
fn a_peer_of_the_same_user_can_only_read() {
    const NAME: &str = "a_peer_of_the_same_user_can_only_read";
    if is_child(NAME) {
        return attack_and_receive(PeerTrust::SameUser);
    }
    let region = Region::options(1 << 16).create().expect("64 KiB");
    region.view::<AtomicU64>(region.data_offset(), 1).expect("data").at(0).store(WORD, Ordering::Relaxed);
    let mut command = child_command(&[], &this_program(), NAME);
    command.stdin(Stdio::from(passed_on(&region))).env("ZCMI_REGION_CLAIM", claim_text(&region));
    assert!(run_child(command).contains("13 refused"));
}

#[test]
fn a_peer_of_another_user_can_only_read() {
    const NAME: &str = "a_peer_of_another_user_can_only_read";
    if is_child(NAME) {
        assert_eq!(rustix::process::geteuid().as_raw(), 61001);
        return attack_and_receive(PeerTrust::Stranger);
    }
    if !is_root() || !has_program("setpriv") {
        println!("SKIP: another user takes root and setpriv");
        return;
    }
    let region = Region::options(1 << 16).create().expect("64 KiB");
    region.view::<AtomicU64>(region.data_offset(), 1).expect("data").at(0).store(WORD, Ordering::Relaxed);
    let program = Program::copy("stranger");
    let become_other = ["setpriv", "--reuid", "61001", "--regid", "61001", "--clear-groups"];
    let mut command = child_command(&become_other, &program.path(), NAME);
    command.stdin(Stdio::from(passed_on(&region))).env("ZCMI_REGION_CLAIM", claim_text(&region));
    assert!(run_child(command).contains("13 refused"));
    assert_eq!(region.view::<AtomicU64>(region.data_offset(), 1).expect("data").at(0).load(Ordering::Relaxed), WORD);
}

#[test]
fn a_wake_page_is_written_by_peers_of_the_same_user_alone() {
    let page = Region::options(64).kind(RegionKind::WakePage).create().expect("a page");
    let words = page.view::<AtomicU64>(page.data_offset(), 8).expect("data");
    let peer = PeerWakePage::receive(passed_on(&page), &page.claim(), PeerTrust::SameUser).expect("a wake page");
    peer.view::<AtomicU64>(peer.data_offset(), 8).expect("data").at(3).fetch_or(4, Ordering::Relaxed);
    assert_eq!(words.at(3).load(Ordering::Relaxed), 4);

    let error = PeerWakePage::receive(passed_on(&page), &page.claim(), PeerTrust::Stranger).expect_err("a stranger's");
    assert!(matches!(error.reason(), RefusedRegion::WakePageOfStranger), "{error:?}");
    // Its size is sealed all the same, and it is no region.
    assert_eq!(rustix::fs::ftruncate(page.descriptor().expect("a memfd"), 0), Err(Errno::PERM));
    let error = PeerRegion::receive(passed_on(&page), &page.claim(), PeerTrust::SameUser).expect_err("no region");
    assert!(matches!(error.reason(), RefusedRegion::Unsealed { missing, .. } if *missing == 0x10), "{error:?}");
    // And a region is no wake page.
    let region = Region::options(64).create().expect("a page");
    let error =
        PeerWakePage::receive(passed_on(&region), &region.claim(), PeerTrust::SameUser).expect_err("no wake page");
    assert!(matches!(error.reason(), RefusedRegion::NotWritable { .. }), "{error:?}");
}

#[test]
fn a_forked_child_inherits_nothing_and_ends_nothing() {
    let region = Region::options(1 << 16).create().expect("64 KiB");
    let shm = format!("zcmi-fork-{}", std::process::id());
    let named = Region::options(64).kind(RegionKind::PosixShm { name: shm.clone() }).create().expect("a page");
    let system_v = Region::options(64).kind(RegionKind::SystemV { key: 0 }).create().expect("a segment");
    let words = region.view::<AtomicU64>(region.data_offset(), 1).expect("data");
    words.at(0).store(WORD, Ordering::Relaxed);
    assert!(!region.is_forked() && mapping_of(&region, "maps").is_some());

    // The child drops the parent's regions, as an exit through `main` would.
    let mut parts = Some((region, named, system_v));
    let code = in_fork(|| {
        let (region, named, system_v) = parts.take().expect("not yet taken");
        let view = region.view::<AtomicU64>(region.data_offset(), 1).map(drop);
        let bytes = region.bytes(region.data_offset(), 8).map(drop);
        if !region.is_forked() || view != Err(OutOfRegion::Forked) || bytes != Err(OutOfRegion::Forked) {
            return 1;
        }
        if mapping_of(&region, "maps").is_some() {
            return 2;
        }
        // A region of the child's own works, and the drops below do not take it for the parent's.
        let Ok(own) = Region::options(64).create() else { return 3 };
        drop((region, named, system_v));
        i32::from(own.is_forked() || own.view::<AtomicU64>(own.data_offset(), 1).is_err()) * 4
    });
    assert_eq!(code.expect("fork"), 0);

    let (region, named, system_v) = parts.take().expect("the parent's");
    assert_eq!(words.at(0).load(Ordering::Relaxed), WORD);
    assert!(!region.is_forked() && region.facts().dont_fork.is_yes());
    assert!(std::path::Path::new("/dev/shm").join(&shm).exists(), "the child removed the parent's name");
    assert_eq!(named.view::<AtomicU64>(named.data_offset(), 1).expect("data").at(0).load(Ordering::Relaxed), 0);
    let id = system_v.system_v_id().expect("a segment");
    region_rig::sys::read_system_v(id, 4096, 1).expect("the child removed the parent's segment");
}
