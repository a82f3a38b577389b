//! The directory into which entries are received. Their paths are claims.
//!
//! Every path is taken apart into plain names, and the way to it is gone name by name from the directory that the user
//! gave, without following a link. So nothing outside is ever opened, made, changed or replaced, whatever the sender
//! says and whatever links lie there. A link is made only if it leads to a place inside, unless others were allowed.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::message::{Source, Stamp};
use super::part::{Part, Trouble, cannot, exists, is_reserved, journal_of, kind_of, part_of, remove, rename, times};
use crate::code::Fault;
use crate::say::harmless;
use crate::store::plain_name;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is allowed besides making new files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed {
    /// To replace what is there.
    pub(crate) force: bool,
    /// To make links that lead anywhere.
    pub(crate) unsafe_links: bool,
    /// To wait until the disk has each file.
    pub(crate) fsync: bool,
}

/// The directory.
#[derive(Debug)]
pub(crate) struct Tree {
    root: Rc<OwnedFd>,
    /// For messages.
    shown: String,
    pub(crate) allowed: Allowed,
    /// The directory that was used last.
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

/// What is there of a file that is offered.
pub(crate) enum Held {
    /// So many bytes, which may be the file's.
    Part(Part, u64),
    /// A file of the same size and time.
    Whole(OwnedFd),
}

/// Where an entry belongs.
struct Place {
    directory: Rc<OwnedFd>,
    name: OsString,
    /// Its path, for messages.
    shown: String,
    /// The directory, for messages.
    within: String,
}

impl Place {
    fn cannot(&self, what: &str, errno: Errno) -> Trouble {
        cannot(&self.shown, what, &self.within, errno)
    }

    fn stat(&self) -> Result<Option<rustix::fs::Stat>, Trouble> {
        match rustix::fs::statat(&*self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.cannot("looked at", errno)),
        }
    }
}

/// The names of a path, each of them plain.
fn names(path: &[u8]) -> Result<Vec<OsString>, Trouble> {
    let refused = |why: &str| {
        let shown = harmless(&String::from_utf8_lossy(path));
        Trouble::new(
            Fault::FileNameRefused,
            format!("the path `{shown}` is refused: {why}; rename it, and send it again"),
        )
    };
    let mut names = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        if is_reserved(part) {
            return Err(refused("its end is that of a part or a journal of `zcmi recv`"));
        }
        names.push(plain_name(part).map_err(refused)?);
    }
    Ok(names)
}

/// Whether a link in a directory `depth` below the root leads to a place below the root.
///
/// `..` is good at the beginning only: behind a name it would go up from wherever that name leads, which may be another
/// link.
fn leads_inside(target: &[u8], depth: usize) -> bool {
    let mut up = 0;
    let mut is_down = false;
    if target.is_empty() || target.starts_with(b"/") {
        return false;
    }
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if is_down => return false,
            b".." => up += 1,
            _ => is_down = true,
        }
    }
    up <= depth
}

impl Tree {
    /// The tree below a directory, which is called `shown` in messages.
    pub(crate) fn new(root: OwnedFd, shown: String, allowed: Allowed) -> Self {
        Self { root: Rc::new(root), shown, allowed, last: None }
    }

    /// Goes to where an entry belongs.
    fn place(&mut self, path: &[u8]) -> Result<Place, Trouble> {
        let mut way = names(path)?;
        let shown = harmless(&String::from_utf8_lossy(path));
        let name = way.pop().unwrap_or_default();
        let above = path.len() - name.len();
        let within = match path[..above].strip_suffix(b"/") {
            Some(above) => {
                format!("{}/{}", self.shown.trim_end_matches('/'), harmless(&String::from_utf8_lossy(above)))
            }
            None => self.shown.clone(),
        };
        if let Some((last, directory)) = &self.last
            && *last == path[..above]
        {
            return Ok(Place { directory: Rc::clone(directory), name, shown, within });
        }
        let mut directory = Rc::clone(&self.root);
        for step in &way {
            match rustix::fs::openat(&*directory, step, DIRECTORY, Mode::empty()) {
                Ok(next) => directory = Rc::new(next),
                Err(errno) => {
                    let step = harmless(&step.to_string_lossy());
                    let text = format_args!("{shown} cannot be reached: {step} cannot be opened as a directory");
                    return Err(Trouble::of(text, errno));
                }
            }
        }
        self.last = Some((path[..above].to_vec(), Rc::clone(&directory)));
        Ok(Place { directory, name, shown, within })
    }

    /// Makes a directory, or finds it made.
    pub(crate) fn directory(&mut self, path: &[u8]) -> Result<(), Trouble> {
        let place = self.place(path)?;
        match place.stat()? {
            Some(stat) if kind_of(&stat) == FileType::Directory => return Ok(()),
            Some(_) => return Err(exists(&place.shown)),
            None => {}
        }
        // The journal says that it is ours until it is left: only then it gets its mode and time.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let journal = journal_of(&place.name);
        rustix::fs::openat(&*place.directory, &journal, flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| place.cannot("made", errno))?;
        match rustix::fs::mkdirat(&*place.directory, &place.name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(place.cannot("made", errno)),
        }
    }

    /// Everything in a directory is there: it gets its mode and time, if it is ours.
    pub(crate) fn leave(&mut self, path: &[u8], mtime: Stamp, mode: u32) -> Result<(), Trouble> {
        let place = self.place(path)?;
        let journal = journal_of(&place.name);
        let is_ours = match rustix::fs::statat(&*place.directory, &journal, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => kind_of(&stat) == FileType::RegularFile,
            Err(_) => false,
        };
        if !is_ours && !self.allowed.force {
            return Ok(());
        }
        let cannot = |errno| place.cannot("given its mode and time", errno);
        let directory = rustix::fs::openat(&*place.directory, &place.name, DIRECTORY, Mode::empty()).map_err(cannot)?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode)).map_err(cannot)?;
        rustix::fs::futimens(&directory, &times(mtime)).map_err(cannot)?;
        if self.allowed.fsync {
            rustix::fs::fsync(&directory).map_err(cannot)?;
        }
        remove(&place.directory, &journal).map_err(cannot)
    }

    /// Makes a symbolic link.
    pub(crate) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Trouble> {
        let place = self.place(path)?;
        let depth = path.iter().filter(|byte| **byte == b'/').count();
        if target.is_empty() || target.contains(&0) {
            return Err(place.cannot("made", Errno::INVAL));
        }
        if !leads_inside(target, depth) && !self.allowed.unsafe_links {
            let target = harmless(&String::from_utf8_lossy(target));
            let text = format!(
                "the link {} leads out of the output directory, to {target}; `zcmi recv --unsafe-links` makes it",
                place.shown
            );
            return Err(Trouble::new(Fault::LinkOutside, text));
        }
        let target = OsStr::from_bytes(target);
        match place.stat()? {
            Some(stat) if kind_of(&stat) == FileType::Symlink => {
                let there = rustix::fs::readlinkat(&*place.directory, &place.name, Vec::new());
                if there.is_ok_and(|there| there.as_bytes() == target.as_bytes()) {
                    return Ok(());
                }
                if !self.allowed.force {
                    return Err(exists(&place.shown));
                }
            }
            Some(_) if !self.allowed.force => return Err(exists(&place.shown)),
            _ => {}
        }
        let cannot = |errno| match errno {
            Errno::EXIST | Errno::ISDIR | Errno::NOTEMPTY => exists(&place.shown),
            errno => place.cannot("made", errno),
        };
        let part = part_of(&place.name);
        remove(&place.directory, &part).map_err(cannot)?;
        rustix::fs::symlinkat(target, &*place.directory, &part).map_err(cannot)?;
        rename(&place.directory, &part, &place.name, self.allowed.force).map_err(|errno| {
            // The next attempt removes it too.
            let _ = remove(&place.directory, &part);
            cannot(errno)
        })
    }

    /// Looks at what there is of a file, and opens or makes its part.
    pub(crate) fn file(&mut self, path: &[u8], source: &Source) -> Result<Held, Trouble> {
        let place = self.place(path)?;
        if let Some(stat) = place.stat()? {
            let same_size = u64::try_from(stat.st_size).ok() == source.size;
            let mtime = Stamp { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 };
            match kind_of(&stat) {
                FileType::RegularFile if same_size && mtime == source.mtime => {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    if let Ok(file) = rustix::fs::openat(&*place.directory, &place.name, flags, Mode::empty()) {
                        // Whoever was killed behind the rename left it.
                        remove(&place.directory, &journal_of(&place.name))
                            .map_err(|errno| place.cannot("looked at", errno))?;
                        return Ok(Held::Whole(file));
                    }
                    if !self.allowed.force {
                        return Err(exists(&place.shown));
                    }
                }
                FileType::RegularFile | FileType::Symlink if self.allowed.force => {}
                FileType::RegularFile | FileType::Symlink => return Err(exists(&place.shown)),
                kind => {
                    let text = format!("{} is no file but {kind:?}, which is not replaced", place.shown);
                    return Err(Trouble::new(Fault::NotAFile, text));
                }
            }
        }
        Part::open(&place.directory, &place.name, &place.within, source).map(|(part, length)| Held::Part(part, length))
    }

    /// The part of a file of which another was there that is not it.
    pub(crate) fn instead(&mut self, path: &[u8], source: &Source) -> Result<Part, Trouble> {
        let place = self.place(path)?;
        if !self.allowed.force {
            return Err(exists(&place.shown));
        }
        let (part, _) = Part::open(&place.directory, &place.name, &place.within, source)?;
        part.begin_anew().map_err(|errno| place.cannot("made", errno))?;
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_plain_names_in_a_row() {
        for bad in
            ["", "/", "a//b", "/a", "a/", "..", "a/../b", ".", "a/./b", "a\0b", "a/b.zcmi-part", "x.zcmi-journal"]
        {
            assert!(names(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert_eq!(names(b"a/b c/...").expect("good"), ["a", "b c", "..."]);
    }

    #[test]
    fn links_lead_inside_only_if_no_other_link_can_change_where() {
        for (target, depth) in [("a", 0), ("a/b", 0), ("../a", 1), ("./..//../x", 2), (".", 0), ("..", 1)] {
            assert!(leads_inside(target.as_bytes(), depth), "{target} at {depth}");
        }
        for (target, depth) in [("", 5), ("/etc", 5), ("..", 0), ("../../a", 1), ("a/..", 5), ("../a/../b", 5)] {
            assert!(!leads_inside(target.as_bytes(), depth), "{target} at {depth}");
        }
    }
}
