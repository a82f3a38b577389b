//! What is to be sent: arguments, and the trees below them, one entry at a time.
//!
//! A directory arrives under its own name; of one that has none (`.`, `..`, `/`) the content does. An argument that is
//! a symbolic link is followed; links inside a tree are entries of their own. Nothing but the way from the argument to
//! the present entry is held, however many entries there are.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, ReadDir};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use xxhash_rust::xxh3::xxh3_128;

use super::message::{MAX_PATH_BYTES, Source, Stamp};
use crate::failure::Failure;
use crate::say::harmless;

/// One thing to send.
pub(crate) enum Found {
    Directory {
        path: Vec<u8>,
    },
    Link {
        path: Vec<u8>,
        target: Vec<u8>,
    },
    File {
        path: Vec<u8>,
        shown: String,
        file: OwnedFd,
        source: Source,
    },
    Leave {
        path: Vec<u8>,
        mtime: Stamp,
        mode: u32,
    },
    /// Something that cannot be sent, and why.
    Cannot {
        shown: String,
        why: String,
    },
}

/// A directory that is being read.
struct Level {
    directory: PathBuf,
    /// Its path at the other side; empty for one without a name.
    path: Vec<u8>,
    entries: ReadDir,
    mtime: Stamp,
    mode: u32,
}

enum Argument {
    Stdin,
    Path(PathBuf),
}

/// The walk over everything.
pub(crate) struct Walk {
    arguments: VecDeque<Argument>,
    levels: Vec<Level>,
    /// How many bytes it is, if that is known without looking into directories.
    bytes: Option<u64>,
}

/// What names a file so that another one of the same name, size and time is not taken for it.
pub(crate) fn source_of(metadata: &Metadata, path: &[u8]) -> Source {
    let identity = xxh3_128(&[&metadata.ino().to_le_bytes()[..], path].concat());
    Source { size: Some(metadata.len()), mtime: mtime_of(metadata), mode: metadata.mode() & 0o777, identity }
}

pub(crate) fn mtime_of(metadata: &Metadata) -> Stamp {
    Stamp { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() as u32 }
}

impl Walk {
    /// Looks at the arguments, each of which must be there.
    pub(crate) fn new(paths: &[PathBuf]) -> Result<Self, Failure> {
        let mut names = HashSet::new();
        let mut arguments = VecDeque::new();
        let mut bytes = Some(0);
        for path in paths {
            if path.as_os_str() == "-" {
                if !arguments.is_empty() || paths.len() > 1 {
                    return Err(Failure::usage("`-` is sent alone: what comes from stdin has no name"));
                }
                bytes = None;
                arguments.push_back(Argument::Stdin);
                continue;
            }
            let shown = harmless(&path.display().to_string());
            let cannot = |error: io::Error| Failure::of(format_args!("{shown} cannot be read"), &error);
            let metadata = fs::metadata(path).map_err(cannot)?;
            bytes = bytes.zip(metadata.is_file().then_some(metadata.len())).map(|(all, one)| all + one);
            if let Some(name) = path.file_name()
                && !names.insert(name.to_owned())
            {
                let name = harmless(&name.to_string_lossy());
                return Err(Failure::usage(format!("two arguments are named {name}; only one could be stored")));
            }
            arguments.push_back(Argument::Path(path.clone()));
        }
        Ok(Self { arguments, levels: Vec::new(), bytes })
    }

    pub(crate) fn bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// The next entry.
    fn of_argument(&mut self, argument: Argument) -> Option<Found> {
        let Argument::Path(path) = argument else { return Some(stdin()) };
        let shown = harmless(&path.display().to_string());
        let name = path.file_name().map_or(Vec::new(), |name| name.as_bytes().to_vec());
        match fs::metadata(&path) {
            Err(error) => Some(cannot(&shown, format!("cannot be read: {error}"))),
            Ok(metadata) if metadata.is_dir() => self.enter(path, name, &metadata),
            Ok(_) => Some(open(&path, name, OFlags::empty())),
        }
    }

    fn enter(&mut self, directory: PathBuf, path: Vec<u8>, metadata: &Metadata) -> Option<Found> {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                let shown = harmless(&directory.display().to_string());
                return Some(cannot(&shown, format!("cannot be read: {error}")));
            }
        };
        let (mtime, mode) = (mtime_of(metadata), metadata.mode() & 0o777);
        self.levels.push(Level { directory, path: path.clone(), entries, mtime, mode });
        (!path.is_empty()).then_some(Found::Directory { path })
    }

    fn of_entry(&mut self, name: &OsStr, directory: &Path, above: &[u8]) -> Option<Found> {
        let place = directory.join(name);
        let shown = harmless(&place.display().to_string());
        let mut path = above.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        if path.len() > MAX_PATH_BYTES {
            return Some(cannot(&shown, format!("has a path of more than {MAX_PATH_BYTES} bytes")));
        }
        let unreadable = |error: io::Error| cannot(&shown, format!("cannot be read: {error}"));
        let metadata = match fs::symlink_metadata(&place) {
            Ok(metadata) => metadata,
            Err(error) => return Some(unreadable(error)),
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            self.enter(place, path, &metadata)
        } else if kind.is_symlink() {
            Some(match fs::read_link(&place) {
                Ok(target) if target.as_os_str().len() > MAX_PATH_BYTES => {
                    cannot(&shown, format!("leads to a path of more than {MAX_PATH_BYTES} bytes"))
                }
                Ok(target) => Found::Link { path, target: target.into_os_string().into_vec() },
                Err(error) => unreadable(error),
            })
        } else if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
            Some(cannot(&shown, "is neither file, directory nor link".into()))
        } else {
            Some(open(&place, path, OFlags::NOFOLLOW))
        }
    }
}

impl Iterator for Walk {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            let found = match self.levels.last_mut() {
                None => {
                    let argument = self.arguments.pop_front()?;
                    self.of_argument(argument)
                }
                Some(level) => match level.entries.next() {
                    Some(Ok(entry)) => {
                        let (directory, above) = (level.directory.clone(), level.path.clone());
                        self.of_entry(&entry.file_name(), &directory, &above)
                    }
                    Some(Err(error)) => {
                        let shown = harmless(&level.directory.display().to_string());
                        Some(cannot(&shown, format!("cannot be read to its end: {error}")))
                    }
                    None => self.levels.pop().and_then(|level| {
                        let Level { path, mtime, mode, .. } = level;
                        (!path.is_empty()).then_some(Found::Leave { path, mtime, mode })
                    }),
                },
            };
            if found.is_some() {
                return found;
            }
        }
    }
}

/// What cannot be sent, and why: in words that go on behind its name.
fn cannot(shown: &str, why: String) -> Found {
    Found::Cannot { shown: shown.into(), why }
}

/// Opens a file, which must still be one.
fn open(place: &Path, path: Vec<u8>, flags: OFlags) -> Found {
    let shown = harmless(&place.display().to_string());
    // What became a pipe since it was looked at would hold us up.
    let flags = (flags | OFlags::NONBLOCK).bits() as i32;
    let opened = File::options().read(true).custom_flags(flags).open(place);
    match opened.and_then(|file| file.metadata().map(|metadata| (file, metadata))) {
        Ok((file, metadata)) if metadata.is_file() => {
            let source = source_of(&metadata, &path);
            Found::File { path, shown, file: file.into(), source }
        }
        Ok(_) => cannot(&shown, "is neither file, directory nor link".into()),
        Err(error) => cannot(&shown, format!("cannot be read: {error}")),
    }
}

fn stdin() -> Found {
    use std::os::fd::AsFd as _;
    let source = Source { size: None, mtime: Stamp { seconds: 0, nanoseconds: 0 }, mode: 0o666, identity: 0 };
    match io::stdin().as_fd().try_clone_to_owned() {
        Ok(file) => Found::File { path: Vec::new(), shown: "stdin".into(), file, source },
        Err(error) => cannot("stdin", format!("cannot be read: {error}")),
    }
}
