//! Which directory may be the runtime directory, and what is said of every other.

mod scratch;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use scratch::{Child, STRANGER, Scratch, is_root};
use zcmi_ipc::directory::{EntryError, Facts, Role, RuntimeDirectory, RuntimeDirectoryError};
use zcmi_ipc::name::{Incarnation, ServiceName};

const FACTS: Facts = Facts { version: 1, pid: 1, layout_hash: 7 };

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod");
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("stat").mode() & 0o7777
}

#[test]
fn a_missing_directory_is_made_for_its_owner_alone() {
    let scratch = Scratch::new();
    let path = scratch.path().join("run");
    let directory = RuntimeDirectory::at(&path).expect("a directory");
    assert_eq!(directory.path(), path);
    for made in [&path, &path.join("p"), &path.join("s")] {
        assert_eq!(mode(made), 0o700, "{}", made.display());
    }
    RuntimeDirectory::at(&path).expect("the same again");
}

#[test]
fn a_missing_parent_is_said() {
    let scratch = Scratch::new();
    let path = scratch.path().join("missing/run");
    let refusal = RuntimeDirectory::at(&path).expect_err("no parent");
    assert!(matches!(&refusal, RuntimeDirectoryError::ParentMissing { path: said } if *said == path), "{refusal}");
    assert!(!path.exists());
}

#[test]
fn a_symbolic_link_is_refused_wherever_it_points() {
    let scratch = Scratch::new();
    let target = scratch.path().join("target");
    RuntimeDirectory::at(&target).expect("a directory");
    for (name, to) in [("good", target.as_path()), ("dangling", Path::new("nowhere"))] {
        let link = scratch.path().join(name);
        std::os::unix::fs::symlink(to, &link).expect("symlink");
        let refusal = RuntimeDirectory::at(&link).expect_err("a link");
        assert!(matches!(refusal, RuntimeDirectoryError::Symlink { .. }), "{refusal}");
    }
    let inner = scratch.path().join("inner");
    RuntimeDirectory::at(&inner).expect("a directory");
    std::fs::remove_dir(inner.join("p")).expect("rmdir");
    std::os::unix::fs::symlink(target.join("p"), inner.join("p")).expect("symlink");
    let refusal = RuntimeDirectory::at(&inner).expect_err("a link");
    assert!(matches!(refusal, RuntimeDirectoryError::Symlink { .. }), "{refusal}");
}

#[test]
fn a_file_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.path().join("file");
    std::fs::write(&path, "").expect("a file");
    let refusal = RuntimeDirectory::at(&path).expect_err("a file");
    assert!(matches!(refusal, RuntimeDirectoryError::NotADirectory { .. }), "{refusal}");
}

#[test]
fn another_users_directory_is_refused() {
    if !is_root() {
        println!("SKIP: only root can give a directory away");
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.path().join("theirs");
    std::fs::create_dir(&path).expect("mkdir");
    chmod(&path, 0o700);
    for owner in [STRANGER, 65534] {
        std::os::unix::fs::chown(&path, Some(owner), None).expect("chown");
        let refusal = RuntimeDirectory::at(&path).expect_err("theirs");
        let said = matches!(refusal, RuntimeDirectoryError::NotOurs { owner: said, ours: 0, .. } if said == owner);
        assert!(said, "{refusal}");
    }
}

#[test]
fn a_mode_that_lets_others_in_or_the_owner_out_is_refused_with_what_to_do() {
    let scratch = Scratch::new();
    let path = scratch.path().join("run");
    std::fs::create_dir(&path).expect("mkdir");
    for open in [0o777, 0o755, 0o1777, 0o770, 0o701, 0o740] {
        chmod(&path, open);
        let refusal = RuntimeDirectory::at(&path).expect_err("too open");
        assert!(matches!(refusal, RuntimeDirectoryError::TooOpen { .. }), "{open:o}: {refusal}");
        assert!(refusal.to_string().contains("chmod 700"), "{refusal}");
    }
    chmod(&path, 0o500);
    let refusal = RuntimeDirectory::at(&path).expect_err("too closed");
    assert!(matches!(refusal, RuntimeDirectoryError::TooClosed { mode: 0o500, .. }), "{refusal}");
    chmod(&path, 0o700);
    RuntimeDirectory::at(&path).expect("now it is right");
}

#[test]
fn a_path_that_the_system_cannot_take_is_said_to_be_too_long() {
    let refusal = RuntimeDirectory::at(format!("/tmp/{}", "x".repeat(5000))).expect_err("too long");
    assert!(matches!(refusal, RuntimeDirectoryError::PathTooLong { bytes: 5005 }), "{refusal}");
}

#[test]
fn the_environment_names_the_directory_and_its_default_must_be_private() {
    let scratch = Scratch::new();
    let opened = |zcmi: Option<&Path>, xdg: &Path| {
        let mut env = Command::new("env");
        env.arg("-u").arg("ZCMI_RUNTIME_DIR");
        if let Some(zcmi) = zcmi {
            env.arg(format!("ZCMI_RUNTIME_DIR={}", zcmi.display()));
        }
        env.arg(format!("XDG_RUNTIME_DIR={}", xdg.display()));
        Child::start_by(env, "child_that_opens", scratch.path()).line()
    };
    let (zcmi, xdg) = (scratch.path().join("explicit"), scratch.path());
    assert_eq!(opened(Some(&zcmi), xdg), zcmi.display().to_string());
    assert!(!xdg.join("zcmi").exists());
    assert_eq!(opened(None, xdg), xdg.join("zcmi").display().to_string());
    assert_eq!(opened(Some(Path::new("relative")), xdg), "refused: relative");
    chmod(&zcmi, 0o711);
    assert_eq!(opened(Some(&zcmi), xdg), zcmi.display().to_string(), "an explicit one may be shared");
    chmod(&xdg.join("zcmi"), 0o711);
    assert_eq!(opened(None, xdg), "refused: too open", "a default one may not");
    assert_eq!(opened(None, &xdg.join("missing")), "refused: parent missing");
    if is_root() {
        let others = scratch.path().join("others");
        std::fs::create_dir(&others).expect("mkdir");
        std::os::unix::fs::chown(&others, Some(STRANGER), None).expect("chown");
        assert_eq!(opened(None, &others), "refused: not ours");
        assert!(!others.join("zcmi").exists(), "nothing of root's may be left in a user's directory");
    } else {
        println!("SKIP: another user's XDG_RUNTIME_DIR needs root");
    }
}

#[test]
#[ignore = "a child of another test"]
fn child_that_opens() {
    if Child::directory().is_none() {
        return println!("SKIP: only its parent's test needs it");
    }
    Child::answer(&match RuntimeDirectory::open() {
        Ok(directory) => directory.path().display().to_string(),
        Err(RuntimeDirectoryError::Relative { .. }) => "refused: relative".to_owned(),
        Err(RuntimeDirectoryError::TooOpen { .. }) => "refused: too open".to_owned(),
        Err(RuntimeDirectoryError::ParentMissing { .. }) => "refused: parent missing".to_owned(),
        Err(RuntimeDirectoryError::NotOurs { .. }) => "refused: not ours".to_owned(),
        Err(other) => other.to_string(),
    });
}

#[test]
fn a_full_and_a_read_only_file_system_are_typed_errors() {
    let scratch = Scratch::new();
    for test in ["child_on_a_full_file_system", "child_on_a_read_only_file_system"] {
        let mut unshare = Command::new("unshare");
        unshare.arg(if is_root() { "-m" } else { "-rm" });
        match unshare.arg("true").status() {
            Ok(status) if status.success() => {}
            other => return println!("SKIP: no mount namespace: {other:?}"),
        }
        let mut unshare = Command::new("unshare");
        unshare.arg(if is_root() { "-m" } else { "-rm" });
        let mut child = Child::start_by(unshare, test, scratch.path());
        assert_eq!(child.line(), "as it should", "{test}");
        assert!(child.finish(), "{test}");
    }
    assert_eq!(std::fs::read_dir(scratch.path()).expect("listing").count(), 0, "a mount reached the outside");
}

fn mount(path: &Path, options: &str) {
    let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path).status();
    assert!(status.expect("mount").success(), "mount -o {options}");
}

#[test]
#[ignore = "a child of another test"]
fn child_on_a_full_file_system() {
    let Some(path) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
    let path = Path::new(&path);
    let (name, process) = (ServiceName::new("full").expect("a name"), Incarnation::random().expect("random bytes"));
    // Two inodes: the mount's own, and the directory.
    mount(path, "nr_inodes=2");
    let refusal = RuntimeDirectory::at(path.join("run")).expect_err("full");
    assert!(matches!(refusal, RuntimeDirectoryError::Full { .. }), "{refusal}");

    // Room for names and for no content.
    mount(path, "size=4096,nr_inodes=16");
    let directory = RuntimeDirectory::at(path.join("run")).expect("a directory");
    std::fs::write(path.join("filler"), [1; 4096]).expect("filling");
    let refusal = directory.create_participant(&name, process, 0, Role::Publisher, &FACTS).expect_err("full");
    assert!(matches!(refusal, EntryError::Full { .. }), "{refusal}");
    assert_eq!(directory.participants(&name).expect("listing"), []);
    std::fs::remove_file(path.join("filler")).expect("unlink");
    drop(directory.create_participant(&name, process, 0, Role::Publisher, &FACTS).expect("room again"));
    Child::answer("as it should");
}

#[test]
#[ignore = "a child of another test"]
fn child_on_a_read_only_file_system() {
    let Some(path) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
    let path = Path::new(&path);
    mount(path, "mode=700");
    let directory = RuntimeDirectory::at(path.join("run")).expect("a directory");
    mount_again_read_only(path);
    let refusal = RuntimeDirectory::at(path.join("other")).expect_err("read only");
    assert!(matches!(refusal, RuntimeDirectoryError::ReadOnly { .. }), "{refusal}");
    RuntimeDirectory::at(path.join("run")).expect("one that is there can still be looked into");
    let (name, process) = (ServiceName::new("ro").expect("a name"), Incarnation::random().expect("random bytes"));
    let refusal = directory.create_participant(&name, process, 0, Role::Publisher, &FACTS).expect_err("read only");
    assert!(matches!(refusal, EntryError::ReadOnly { .. }), "{refusal}");
    assert_eq!(directory.services().expect("listing"), []);
    Child::answer("as it should");
}

fn mount_again_read_only(path: &Path) {
    let status = Command::new("mount").args(["-o", "remount,bind,ro"]).arg(path).status();
    assert!(status.expect("mount").success(), "mount -o remount,bind,ro");
}

#[test]
fn an_operators_directory_lets_strangers_meet_and_keeps_their_entries_apart() {
    if !is_root() {
        println!("SKIP: only root can be the operator of other users");
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.path().join("shared");
    std::fs::create_dir(&path).expect("mkdir");
    chmod(&path, 0o711);
    let directory = RuntimeDirectory::at(&path).expect("a shared directory");
    assert_eq!((mode(&path.join("p")), mode(&path.join("s"))), (0o1777, 0o1777));
    let (name, ours) = (ServiceName::new("shared/one").expect("a name"), Incarnation::random().expect("random bytes"));
    let file = directory.create_participant(&name, ours, 1, Role::Publisher, &FACTS).expect("our entry");

    let mut child = Child::start("child_that_joins_as_a_stranger", &path, Some(STRANGER), &scratch);
    let theirs: Incarnation = child.line().parse().expect("an incarnation");
    let owners = || {
        let found = directory.participants(&name).expect("listing");
        let mut owners: Vec<_> = found.iter().map(|found| (found.incarnation, found.uid)).collect();
        owners.sort_unstable_by_key(|&(_, uid)| uid);
        owners
    };
    assert_eq!(owners(), [(ours, 0), (theirs, STRANGER)]);
    assert_eq!(child.line(), "denied", "a stranger may not remove our entry");
    drop(file);
    assert_eq!(owners(), [(theirs, STRANGER)]);
    child.kill();
    let swept = directory.sweep_dead(|incarnation| incarnation == theirs).expect("a sweep");
    assert_eq!((swept.participants, swept.services, swept.kept), (1, 1, 0));
    assert_eq!(directory.services().expect("listing"), []);
}

#[test]
#[ignore = "a child of another test"]
fn child_that_joins_as_a_stranger() {
    let Some(path) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
    let directory = RuntimeDirectory::at(path).expect("the operator's directory");
    let (name, own) = (ServiceName::new("shared/one").expect("a name"), Incarnation::random().expect("random bytes"));
    let operators = directory.participants(&name).expect("listing");
    let _file = directory.create_participant(&name, own, 1, Role::Subscriber, &FACTS).expect("our entry");
    Child::answer(&own.to_string());
    Child::answer(match directory.remove_participant(&name, &operators[0]) {
        Err(EntryError::Denied { .. }) => "denied",
        Err(_) => "another error",
        Ok(_) => "removed",
    });
    Child::wait_for_parent();
}
