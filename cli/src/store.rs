//! Where a stream is written: stdout, one file, or files in a directory.
//!
//! The names in a stream are claims of another process. [`plain_name`] is the only door for them. A file is made with
//! `O_EXCL|O_NOFOLLOW` under a random name in the directory where it shall be, and gets its own name by a rename when
//! it is whole: `RENAME_NOREPLACE`, or with force a rename that replaces a file, never one that writes through a link.
//! So a stream that breaks off leaves nothing under a name that somebody could take for the whole file.
//!
//! What it does not do: it does not wait until the disk has it (`sync` does).

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::code::Fault;
use crate::descriptor::{Outlet, WriteError};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::say::harmless;

/// The longest file name.
const MAX_NAME_BYTES: usize = 255;

/// Where a stream goes.
#[derive(Debug)]
pub(crate) enum Store {
    /// All files, one behind the other.
    Stdout(Outlet),
    /// One file.
    File(Place),
    /// Files under their own names.
    Directory(Place),
}

/// A directory, and what is written in it.
#[derive(Debug)]
pub(crate) struct Place {
    directory: OwnedFd,
    /// For messages.
    shown: PathBuf,
    /// The name for a single file.
    name: OsString,
    force: bool,
    /// The file that is being written.
    part: Option<Part>,
}

/// A file that is not whole yet; dropping it removes it.
#[derive(Debug)]
struct Part {
    directory: OwnedFd,
    file: OwnedFd,
    name: String,
    /// The name it gets.
    becomes: OsString,
}

impl Drop for Part {
    fn drop(&mut self) {
        // After the rename there is nothing of this name, which is as it should be.
        let _gone = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty());
    }
}

impl Store {
    /// Everything to stdout.
    pub(crate) fn stdout(outlet: Outlet) -> Self {
        Self::Stdout(outlet)
    }

    /// Into `path`: files under their names if it is a directory, else one file of this name. A path with a slash at
    /// its end is made a directory.
    pub(crate) fn at(path: &Path, force: bool) -> Result<Self, Failure> {
        let open = |path: &Path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty())
        };
        let place = |directory, name| Place { directory, shown: path.to_owned(), name, force, part: None };
        let shown = harmless(&path.display().to_string());
        match open(path) {
            Ok(directory) => return Ok(Self::Directory(place(directory, OsString::new()))),
            Err(Errno::NOENT) if names_directory(path) => {
                let made = rustix::fs::mkdir(path, Mode::from_raw_mode(0o777)).and_then(|()| open(path));
                let cannot = |errno| Failure::of(format_args!("the directory {shown} cannot be made"), &errno);
                return Ok(Self::Directory(place(made.map_err(cannot)?, OsString::new())));
            }
            Err(errno) if names_directory(path) => return Err(no_directory(path, &errno)),
            Err(Errno::NOTDIR | Errno::NOENT | Errno::ACCESS) => {}
            Err(errno) => return Err(Failure::of(format_args!("{shown} cannot be opened"), &errno)),
        }
        let name = path.file_name().ok_or_else(|| Failure::usage(format!("{shown} names no file")))?.to_owned();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = open(parent).map_err(|errno| {
            let parent = harmless(&parent.display().to_string());
            Failure::of(format_args!("{shown} cannot be made: the directory {parent} cannot be opened"), &errno)
        })?;
        let place = place(directory, name);
        place.look_for(&place.name)?;
        Ok(Self::File(place))
    }

    /// Whether files lose where one ends and the next begins.
    pub(crate) fn joins_files(&self) -> bool {
        matches!(self, Self::Stdout(_))
    }

    /// A file begins, the first of `left` that are still to come.
    pub(crate) fn begin(&mut self, name: &[u8], left: u64) -> Result<(), Failure> {
        match self {
            Self::Stdout(_) => Ok(()),
            Self::File(place) if left > 1 => Err(Failure::new(
                Fault::ManyFiles,
                format!(
                    "the stream holds {left} files, and {0} is one file; nothing was written; give a directory to \
                 --output, such as `{0}/`",
                    place.shown()
                ),
            )),
            Self::File(place) => place.begin(place.name.clone()),
            Self::Directory(place) if name.is_empty() => Err(Failure::new(
                Fault::NoFileName,
                format!(
                    "the stream has no name, because it was read from stdin, and {} is a directory; give a file to \
                 --output",
                    place.shown()
                ),
            )),
            Self::Directory(place) => {
                let name = plain_name(name).map_err(|fault| {
                    let name = harmless(&String::from_utf8_lossy(&name[..name.len().min(MAX_NAME_BYTES)]));
                    Failure::new(
                        Fault::FileNameRefused,
                        format!(
                            "the stream names a file `{name}`, which is refused: {fault}; give a file to --output, or \
                             have its publisher rename it"
                        ),
                    )
                })?;
                place.begin(name)
            }
        }
    }

    /// Writes data from where it lies; `at` is its position in the stream.
    pub(crate) fn write(&mut self, data: &[u8], at: u64, interrupt: &Interrupt) -> Result<(), Failure> {
        match self {
            Self::Stdout(outlet) => outlet.write_all(data, interrupt).map_err(|error| match error {
                WriteError::Wait(failure) => failure,
                WriteError::Write { done, errno: Errno::PIPE } => Failure::new(
                    Fault::ReaderGone,
                    format!("whoever read stdout has gone; the stream was given up at byte {}", at + done as u64),
                ),
                WriteError::Write { done, errno } => {
                    Failure::of(format_args!("stdout cannot be written at byte {}", at + done as u64), &errno)
                }
            }),
            Self::File(place) | Self::Directory(place) => place.write(data, at),
        }
    }

    /// The file is whole.
    pub(crate) fn end_of_file(&mut self) -> Result<(), Failure> {
        match self {
            Self::Stdout(_) => Ok(()),
            Self::File(place) | Self::Directory(place) => place.end_of_file(),
        }
    }
}

impl Place {
    fn shown(&self) -> String {
        harmless(&self.shown.display().to_string())
    }

    /// Says early what the rename at the end would say late.
    fn look_for(&self, name: &OsStr) -> Result<(), Failure> {
        let shown = harmless(&name.to_string_lossy());
        match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Failure::of(format_args!("{shown} cannot be looked at"), &errno)),
            Ok(_) if !self.force => {
                // A single file's path ends with its name.
                let what = if self.name.is_empty() {
                    format!("{shown} exists already in {}", self.shown())
                } else {
                    format!("{} exists already", self.shown())
                };
                Err(Failure::new(Fault::FileExists, format!("{what}; use another place, or --force to replace it")))
            }
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile | FileType::Symlink => Ok(()),
                kind => Err(Failure::new(
                    Fault::NotAFile,
                    format!("{shown} is no file but {kind:?}, which is not replaced"),
                )),
            },
        }
    }

    fn begin(&mut self, becomes: OsString) -> Result<(), Failure> {
        self.look_for(&becomes)?;
        let shown = harmless(&becomes.to_string_lossy());
        let cannot = |errno: Errno| Failure::of(format_args!("{shown} cannot be made"), &errno);
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(cannot)?;
        let name = format!(".zcmi-{:016x}.part", u64::from_ne_bytes(random));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o666);
        let file = rustix::fs::openat(&self.directory, &name, flags, mode).map_err(cannot)?;
        let directory = self.directory.try_clone().map_err(|error| Failure::of("dup failed", &error))?;
        self.part = Some(Part { directory, file, name, becomes });
        Ok(())
    }

    fn write(&mut self, mut data: &[u8], at: u64) -> Result<(), Failure> {
        let part = self.part.as_ref().ok_or_else(|| Failure::new(Fault::NoFile, "data came before a file began"))?;
        let all = data.len();
        while !data.is_empty() {
            match rustix::io::write(&part.file, data) {
                Ok(written) => data = &data[written..],
                Err(Errno::INTR) => {}
                Err(errno) => {
                    let (name, at) = (harmless(&part.becomes.to_string_lossy()), at + (all - data.len()) as u64);
                    return Err(Failure::of(
                        format_args!("{name} cannot be written at byte {at} of the stream"),
                        &errno,
                    ));
                }
            }
        }
        Ok(())
    }

    fn end_of_file(&mut self) -> Result<(), Failure> {
        let part = self.part.take().ok_or_else(|| Failure::new(Fault::NoFile, "a file ended before it began"))?;
        self.look_for(&part.becomes)?;
        let (from, to) = (&*part.name, &*part.becomes);
        let flags = if self.force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let renamed = match rustix::fs::renameat_with(&self.directory, from, &self.directory, to, flags) {
            // Some file systems cannot rename so; a second link does not replace either.
            Err(Errno::INVAL | Errno::NOSYS) => {
                rustix::fs::linkat(&self.directory, from, &self.directory, to, AtFlags::empty())
            }
            other => other,
        };
        renamed.map_err(|errno| {
            Failure::of(format_args!("{} cannot get its name", harmless(&to.to_string_lossy())), &errno)
        })
    }
}

/// Whether a path is that of a directory, whatever is there: it ends with `/`, or with `/.`, which means the same.
pub(crate) fn names_directory(path: &Path) -> bool {
    let path = path.as_os_str().as_bytes();
    path.ends_with(b"/") || path.ends_with(b"/.")
}

/// Why what [names a directory](names_directory) cannot be one. Nothing may be put in its place: it would be lost.
pub(crate) fn no_directory(path: &Path, error: &(dyn std::error::Error + 'static)) -> Failure {
    let shown = harmless(&path.display().to_string());
    // Without what makes it a directory's name, it may be the name of something else.
    let name: PathBuf = path.components().collect();
    match std::fs::metadata(&name) {
        Ok(metadata) if !metadata.is_dir() => {
            let name = harmless(&name.display().to_string());
            let text = format!("{name} is a file, not a directory as `{shown}` says");
            Failure::new(Fault::NotADirectory, text + "; give another name, or leave out the `/` at its end")
        }
        _ => Failure::of(format_args!("the directory {shown} cannot be opened; give another to --output"), error),
    }
}

/// A file's name, from a claim.
///
/// # Errors
/// Why it is refused.
pub(crate) fn plain_name(claim: &[u8]) -> Result<OsString, &'static str> {
    match claim {
        [] => Err("it is empty"),
        _ if claim.len() > MAX_NAME_BYTES => Err("it is longer than 255 bytes"),
        b"." | b".." => Err("it names a directory"),
        _ if claim.contains(&b'/') => Err("it is a path, and only plain names are taken"),
        _ if claim.iter().any(u8::is_ascii_control) => Err("it has control letters"),
        _ => Ok(OsStr::from_bytes(claim).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_taken() {
        let long = [b'a'; 256];
        let hostile: [&[u8]; 9] = [b"", b".", b"..", b"/etc/passwd", b"../x", b"a/b", b"a\0b", b"a\nb", &long];
        for claim in hostile {
            assert!(plain_name(claim).is_err(), "{claim:?}");
        }
        for good in [b"a".as_slice(), b"...", b".bashrc", "caf\u{e9}".as_bytes(), b"\xff\xfe", &long[..255]] {
            assert_eq!(plain_name(good).as_deref(), Ok(OsStr::from_bytes(good)));
        }
    }
}
