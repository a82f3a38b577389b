//! Runtime directories that cannot be used are refused by name, at the first service.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use zcmi::directory::{RuntimeDirectory, RuntimeDirectoryError};
use zcmi::{Process, ServiceError};
use zcmi_tests::rig::{Scratch, Worker};

/// What comes of taking part there.
fn refused(path: &Path) -> RuntimeDirectoryError {
    match RuntimeDirectory::at(path) {
        Err(error) => error,
        Ok(directory) => panic!("{} was taken: {:?}", path.display(), Process::open(directory)),
    }
}

#[test]
fn a_runtime_directory_that_cannot_be_is_refused_with_its_reason() {
    let scratch = Scratch::new();
    let missing = scratch.path().join("missing/deeper");
    assert!(matches!(refused(&missing), RuntimeDirectoryError::ParentMissing { path } if path == missing));
    let link = scratch.path().join("link");
    symlink(scratch.path(), &link).expect("a link");
    assert!(matches!(refused(&link), RuntimeDirectoryError::Symlink { path } if path == link));
    let file = scratch.path().join("file");
    std::fs::write(&file, "").expect("a file");
    assert!(matches!(refused(&file), RuntimeDirectoryError::NotADirectory { path } if path == file));
    let open = scratch.path().join("open");
    std::fs::create_dir(&open).expect("a directory");
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).expect("chmod");
    assert!(matches!(refused(&open), RuntimeDirectoryError::TooOpen { mode: 0o777, .. }));
}

#[test]
fn a_runtime_directory_of_somebody_else_is_refused() {
    let scratch = Scratch::new();
    let theirs = scratch.path().join("theirs");
    std::fs::create_dir(&theirs).expect("a directory");
    std::fs::set_permissions(&theirs, PermissionsExt::from_mode(0o700)).expect("chmod");
    match std::os::unix::fs::chown(&theirs, Some(61_001), None) {
        Ok(()) => {}
        Err(error) => return println!("SKIP: giving a directory to another user takes root ({error})"),
    }
    assert!(matches!(refused(&theirs), RuntimeDirectoryError::NotOurs { owner: 61_001, .. }));
}

#[test]
fn a_worker_says_what_is_wrong_with_its_runtime_directory() {
    let scratch = Scratch::new();
    for (path, said) in [("missing/deeper", "parent does not exist"), ("file", "is no directory")] {
        std::fs::write(scratch.path().join("file"), "").expect("a file");
        let mut worker = Worker::start(&scratch.path().join(path));
        for command in ["pub id=p service=s", "sub id=s service=s"] {
            let error = worker.ask_in_vain(command);
            assert!(error.contains(said), "{error}");
        }
    }
}

#[test]
fn a_bad_name_is_refused_before_anything_is_made() {
    let long = "n".repeat(300);
    for name in ["", "a b", "ä", "/a", "a/", "a//b", "..", "a/../b", long.as_str()] {
        match zcmi::Service::<[u8]>::new(name) {
            Err(ServiceError::Name(_)) => {}
            other => panic!("`{name}`: {other:?}"),
        }
    }
}
