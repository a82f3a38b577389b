//! A file that is being received: its part, its journal, and the name it gets when it is whole.
//!
//! `NAME.zcmi-part` holds the bytes that came, `NAME.zcmi-journal` says whose they are. Names with these ends are
//! refused from senders, so that no entry can be mistaken for either. A part is locked by its writer.
//!
//! # Invariants
//! - A part is a plain file of ours with one name; anything else under its name is removed, never written through.
//! - The final name appears by a rename of a whole part, which replaces nothing unless that was allowed.
//! - After a kill at any place there is either the old state, or part and journal to go on from, or the whole file and
//!   at most a journal, which the next attempt removes.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, UTIME_OMIT,
};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_128;

use super::PIECE_BYTES;
use super::journal::{JOURNAL_BYTES, encode};
use super::message::{Source, Stamp};
use crate::code::Fault;
use crate::failure::Failure;
use crate::say::harmless;

const PART: &str = ".zcmi-part";
const JOURNAL: &str = ".zcmi-journal";
/// The longest file name.
const MAX_NAME_BYTES: usize = 255;
/// A write of a file takes so much at the most. The page cache answers longer ones with folios as long, which cost up
/// to seven times as much where memory has to be found for them.
const WRITE_BYTES: usize = 128 << 10;
/// What to do where nothing may be written.
const NOT_ALLOWED: &str = "let `zcmi recv` write there, or give another directory to its --output";
/// How often a part is looked for again that vanished or was replaced meanwhile.
const ATTEMPTS: usize = 16;

/// Why something cannot be stored.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Others can.
    Entry(Failure),
    /// Nothing can.
    All(Failure),
}

impl Trouble {
    pub(crate) fn new(fault: Fault, text: String) -> Self {
        Self::Entry(Failure::new(fault, text))
    }

    /// What a system call said while it did something for an entry.
    pub(crate) fn of(what: impl fmt::Display, errno: Errno) -> Self {
        let failure = Failure::of(what, &errno);
        let failure = match errno {
            Errno::ACCESS | Errno::PERM | Errno::ROFS => failure.and(NOT_ALLOWED),
            _ => failure,
        };
        match errno {
            Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::ROFS | Errno::MFILE | Errno::NFILE => Self::All(failure),
            _ => Self::Entry(failure),
        }
    }
}

/// Whether a name is one of ours.
pub(crate) fn is_reserved(name: &[u8]) -> bool {
    name.ends_with(PART.as_bytes()) || name.ends_with(JOURNAL.as_bytes())
}

/// A name with an end of ours; of a name too long for that, its hash.
fn with_end(name: &OsStr, end: &str) -> OsString {
    let mut long = name.as_bytes().to_vec();
    if long.len() + end.len() > MAX_NAME_BYTES {
        long = format!(".{:032x}", xxh3_128(&long)).into_bytes();
    }
    long.extend_from_slice(end.as_bytes());
    OsString::from_vec(long)
}

/// The name of the journal of a name, which marks directories that are not whole too.
pub(crate) fn journal_of(name: &OsStr) -> OsString {
    with_end(name, JOURNAL)
}

/// The name of the part of a name.
pub(crate) fn part_of(name: &OsStr) -> OsString {
    with_end(name, PART)
}

pub(crate) fn times(mtime: Stamp) -> Timestamps {
    let last_modification = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification }
}

pub(crate) fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Gives what is whole its name: atomically, and in the place of nothing unless `force`.
pub(crate) fn rename(directory: &OwnedFd, from: &OsStr, to: &OsStr, force: bool) -> Result<(), Errno> {
    let flags = if force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    match rustix::fs::renameat_with(directory, from, directory, to, flags) {
        // Some file systems cannot rename so; a second link does not replace either.
        Err(Errno::INVAL | Errno::NOSYS) => {
            rustix::fs::linkat(directory, from, directory, to, AtFlags::empty())?;
            rustix::fs::unlinkat(directory, from, AtFlags::empty())
        }
        other => other,
    }
}

/// Removes a name, if it is there.
pub(crate) fn remove(directory: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::NOENT) | Ok(()) => Ok(()),
        other => other,
    }
}

/// A file that is not whole yet. Dropping it leaves what came for another attempt.
#[derive(Debug)]
pub(crate) struct Part {
    directory: Rc<OwnedFd>,
    file: OwnedFd,
    name: OsString,
    journal: OsString,
    becomes: OsString,
    /// The directory, for messages.
    within: String,
    source: Source,
}

/// The trouble of what cannot be done to something in a directory.
pub(crate) fn cannot(shown: &str, what: &str, within: &str, errno: Errno) -> Trouble {
    Trouble::of(format_args!("{shown} cannot be {what} in the directory {within}"), errno)
}

impl Part {
    /// Opens or makes the part of a file. Returns it with the number of its bytes that may be those of `source`; there
    /// are no others in it.
    pub(crate) fn open(
        directory: &Rc<OwnedFd>,
        becomes: &OsStr,
        within: &str,
        source: &Source,
    ) -> Result<(Self, u64), Trouble> {
        let shown = harmless(&becomes.to_string_lossy());
        let cannot = |errno| cannot(&shown, "made", within, errno);
        let (name, journal) = (part_of(becomes), journal_of(becomes));
        for _ in 0..ATTEMPTS {
            let Some(file) = open_or_make(directory, &name, source).map_err(cannot)? else { continue };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // A file system without locks does without.
                Ok(()) | Err(Errno::NOTSUP | Errno::NOSYS) => {}
                Err(Errno::WOULDBLOCK) => {
                    let text = format!(
                        "another `zcmi recv` is receiving {shown} into the directory {within}; wait until it has \
                         ended, or give another directory to --output"
                    );
                    return Err(Trouble::new(Fault::PartInUse, text));
                }
                Err(errno) => return Err(cannot(errno)),
            }
            let stat = rustix::fs::fstat(&file).map_err(cannot)?;
            // Whoever held the lock before may have renamed or removed it.
            match rustix::fs::statat(&**directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(now) if (now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino) => {}
                Ok(_) | Err(Errno::NOENT) => continue,
                Err(errno) => return Err(cannot(errno)),
            }
            let part = Self {
                directory: Rc::clone(directory),
                file,
                name,
                journal,
                becomes: becomes.to_owned(),
                within: within.to_owned(),
                source: *source,
            };
            let length = u64::try_from(stat.st_size).unwrap_or(0);
            let is_ours = part.is_journalled() && source.size.is_some_and(|size| length <= size);
            if is_ours && length > 0 {
                return Ok((part, length));
            }
            part.begin_anew().map_err(cannot)?;
            return Ok((part, 0));
        }
        Err(cannot(Errno::AGAIN))
    }

    /// Whether the journal on the disk is that of this source.
    fn is_journalled(&self) -> bool {
        let Some(expected) = encode(&self.source) else { return false };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(&*self.directory, &self.journal, flags, Mode::empty()) else { return false };
        let mut found = [0; JOURNAL_BYTES + 1];
        matches!(rustix::io::read(&file, &mut found), Ok(JOURNAL_BYTES) if found[..JOURNAL_BYTES] == expected)
    }

    /// Forgets what came; what comes now is that of this source.
    pub(crate) fn begin_anew(&self) -> Result<(), Errno> {
        rustix::fs::ftruncate(&self.file, 0)?;
        remove(&self.directory, &self.journal)?;
        // To send a piece again costs less than a journal.
        if self.source.size.is_none_or(|size| size <= PIECE_BYTES as u64) {
            return Ok(());
        }
        let Some(journal) = encode(&self.source) else { return Ok(()) };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&*self.directory, &self.journal, flags, Mode::from_raw_mode(0o600))?;
        match rustix::io::write(&file, &journal)? {
            JOURNAL_BYTES => Ok(()),
            _ => Err(Errno::NOSPC),
        }
    }

    pub(crate) fn file(&self) -> &OwnedFd {
        &self.file
    }

    pub(crate) fn shown(&self) -> String {
        harmless(&self.becomes.to_string_lossy())
    }

    /// The trouble of a part that cannot be made anew.
    pub(crate) fn cannot_begin(&self, errno: Errno) -> Trouble {
        cannot(&self.shown(), "made", &self.within, errno)
    }

    /// Writes bytes from where they lie.
    pub(crate) fn write(&self, mut bytes: &[u8], mut at: u64) -> Result<(), Trouble> {
        while !bytes.is_empty() {
            match rustix::io::pwrite(&self.file, &bytes[..bytes.len().min(WRITE_BYTES)], at) {
                Ok(written) => {
                    bytes = &bytes[written..];
                    at += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(Trouble::of(format_args!("{} cannot be written at byte {at}", self.shown()), errno));
                }
            }
        }
        Ok(())
    }

    /// The file is whole: it gets its mode, time and name.
    pub(crate) fn finish(self, force: bool, fsync: bool) -> Result<(), Trouble> {
        let shown = self.shown();
        let cannot = |errno| match errno {
            Errno::EXIST | Errno::ISDIR | Errno::NOTEMPTY => exists(&shown),
            errno => Trouble::of(format_args!("{shown} cannot get its name in the directory {}", self.within), errno),
        };
        if self.source.size.is_some() {
            rustix::fs::fchmod(&self.file, Mode::from_raw_mode(self.source.mode)).map_err(cannot)?;
            rustix::fs::futimens(&self.file, &times(self.source.mtime)).map_err(cannot)?;
        }
        if fsync {
            rustix::fs::fsync(&self.file).map_err(cannot)?;
        }
        rename(&self.directory, &self.name, &self.becomes, force).map_err(cannot)?;
        remove(&self.directory, &self.journal).map_err(cannot)?;
        if fsync {
            rustix::fs::fsync(&*self.directory).map_err(cannot)?;
        }
        Ok(())
    }

    /// Nothing of it is of use.
    pub(crate) fn discard(self) {
        // What cannot be removed is begun anew by the next attempt.
        let _ = remove(&self.directory, &self.name);
        let _ = remove(&self.directory, &self.journal);
    }
}

/// The trouble of a name that is taken.
pub(crate) fn exists(shown: &str) -> Trouble {
    let text = format!("{shown} exists already; use another place, or `zcmi recv --force` to replace it");
    Trouble::new(Fault::FileExists, text)
}

/// The file of a part; `None` when what was there is not one of ours, and was removed.
fn open_or_make(directory: &OwnedFd, name: &OsStr, source: &Source) -> Result<Option<OwnedFd>, Errno> {
    let common = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, name, common, Mode::empty()) {
        Ok(file) => {
            let stat = rustix::fs::fstat(&file)?;
            let is_ours = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_nlink == 1;
            if kind_of(&stat) == FileType::RegularFile && is_ours {
                return Ok(Some(file));
            }
            remove(directory, name).map(|()| None)
        }
        Err(Errno::NOENT) => {
            // What came from a file gets that file's mode when it is whole, and nobody else's eyes before.
            let mode = if source.size.is_some() { 0o600 } else { 0o666 };
            let flags = common | OFlags::CREATE | OFlags::EXCL;
            match rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(mode)) {
                Err(Errno::EXIST) => Ok(None),
                made => made.map(Some),
            }
        }
        Err(Errno::LOOP | Errno::NXIO) => remove(directory, name).map(|()| None),
        Err(errno) => Err(errno),
    }
}
