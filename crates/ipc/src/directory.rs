//! The directory in which the processes of one user find each other.
//!
//! ```text
//!  $ZCMI_RUNTIME_DIR, else $XDG_RUNTIME_DIR/zcmi, else /run/zcmi (root), else /tmp/zcmi-<uid>
//!    p/<incarnation>                                   one socket per process
//!    s/<hash of the name>/                             one directory per service that somebody takes part in
//!        <incarnation>.<endpoint>.pub | .sub           one small file per participant: who, and what it speaks
//! ```
//!
//! Nothing in it decides anything: a file is a claim that a process takes part, and the process itself is asked through
//! its socket. A dead process's entries are harmless; [`RuntimeDirectory::sweep_dead`] removes them.
//!
//! Invariants: the directory is opened once, never through a symbolic link at its end, and judged by the descriptor
//! that is used from then on, so nothing can be swapped between check and use; a file has its whole content when its
//! name appears; a service's directory goes exactly when it is empty, which the kernel decides (`rmdir`), and a joiner
//! that finds it gone in between makes it anew. Every listing is bounded by [`MAX_ENTRIES`].
//!
//! A directory shared by several users is made by an operator and named by `$ZCMI_RUNTIME_DIR`: mode 0711, or 0750 for
//! a group. Below it `p` and `s` are sticky, so that each removes only its own. Another user can take a service's
//! place there or fill the file system, and can do no more: who a peer is says the kernel, at the connection.
//!
//! What it does not do: it does not know who lives, and it grants no rights beyond finding each other.
//! The byte forms are in `docs/layout/runtime-directory.md`.

mod entries;

use std::env;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat};
use rustix::io::Errno;

pub use self::entries::{EntryError, Facts, MAX_ENTRIES, Participant, ParticipantFile, Role, ServiceEntry, Swept};
pub use zcmi_mem::fork::{ForkGuardError, Forked};

/// The user that stands for every user a namespace does not know; it is never taken for anybody.
const OVERFLOW_UID: u32 = 65534;

/// How a descriptor for looking things up is opened: no rights to the content are needed, and links are not followed.
const LOOK_UP: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How a directory is opened to be listed.
const LIST: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An opened runtime directory; clones share its two descriptors.
#[derive(Clone, Debug)]
pub struct RuntimeDirectory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    processes: OwnedFd,
    services: OwnedFd,
    sharing: Sharing,
}

/// Who may take part, by the mode of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    /// 0700: its owner alone.
    Owner,
    /// 0750: its group too.
    Group(u32),
    /// 0711: everybody.
    Everybody,
}

impl Sharing {
    /// The mode of `p`, `s` and the directories of services.
    fn directory_mode(self) -> Mode {
        Mode::from_raw_mode(match self {
            Self::Owner => 0o700,
            Self::Group(_) => 0o1770,
            Self::Everybody => 0o1777,
        })
    }

    /// The mode of participants' files.
    fn file_mode(self) -> Mode {
        Mode::from_raw_mode(match self {
            Self::Owner => 0o600,
            Self::Group(_) => 0o640,
            Self::Everybody => 0o644,
        })
    }

    fn group(self) -> Option<Gid> {
        match self {
            Self::Group(gid) => Some(Gid::from_raw(gid)),
            Self::Owner | Self::Everybody => None,
        }
    }
}

/// Why a directory cannot be the runtime directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeDirectoryError {
    /// The place in which to make it does not exist.
    #[error(
        "the runtime directory {path} cannot be made: its parent does not exist; create that, or set ZCMI_RUNTIME_DIR"
    )]
    ParentMissing {
        /// The directory.
        path: PathBuf,
    },
    /// `$ZCMI_RUNTIME_DIR` would mean another place in each working directory.
    #[error("ZCMI_RUNTIME_DIR is `{path}`, which is relative; set it to an absolute path")]
    Relative {
        /// What it is set to.
        path: PathBuf,
    },
    /// It is a symbolic link.
    #[error("the runtime directory {path} is a symbolic link; name the directory it points to")]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// It is something else than a directory.
    #[error("the runtime directory {path} is no directory; remove it, or set ZCMI_RUNTIME_DIR")]
    NotADirectory {
        /// What is there.
        path: PathBuf,
    },
    /// It belongs to somebody else.
    #[error("{path} belongs to user {owner} and not to user {ours}; set ZCMI_RUNTIME_DIR to a directory of your own")]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user this process acts as.
        ours: u32,
    },
    /// Its mode lets others in.
    #[error("{path} has mode {mode:04o}, which others could misuse; run `chmod 700 {path}` (shared: {shared})")]
    TooOpen {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What a shared one would need.
        shared: &'static str,
    },
    /// Its mode keeps its owner out.
    #[error("{path} has mode {mode:04o}, which keeps its owner out; run `chmod 700 {path}`")]
    TooClosed {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// We may not enter or write.
    #[error("no right to use {path}; ask its owner, who makes `p` and `s` in it with mode 1777 (or 1770 and a group)")]
    Denied {
        /// The directory.
        path: PathBuf,
    },
    /// The path is longer than the system takes.
    #[error(
        "the path of the runtime directory has {bytes} bytes, more than the system takes; shorten ZCMI_RUNTIME_DIR"
    )]
    PathTooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The file system has no room.
    #[error("no room to make {path}: {source}; free space or inodes there, or set ZCMI_RUNTIME_DIR")]
    Full {
        /// The directory.
        path: PathBuf,
        /// `ENOSPC` or `EDQUOT`.
        source: Errno,
    },
    /// The file system cannot be written.
    #[error("{path} cannot be made on a file system that is read-only; set ZCMI_RUNTIME_DIR")]
    ReadOnly {
        /// The directory.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{call} of {path} failed: {source}")]
    System {
        /// The call.
        call: &'static str,
        /// The directory.
        path: PathBuf,
        /// What it answered.
        source: Errno,
    },
}

impl RuntimeDirectoryError {
    fn of(call: &'static str, path: &Path) -> impl FnOnce(Errno) -> Self {
        move |source| {
            let path = path.to_owned();
            match source {
                Errno::ACCESS | Errno::PERM => Self::Denied { path },
                Errno::NAMETOOLONG => Self::PathTooLong { bytes: path.as_os_str().len() },
                Errno::NOSPC | Errno::DQUOT => Self::Full { path, source },
                Errno::ROFS => Self::ReadOnly { path },
                Errno::LOOP => Self::Symlink { path },
                Errno::NOTDIR => Self::NotADirectory { path },
                _ => Self::System { call, path, source },
            }
        }
    }
}

/// Whether somebody chose the directory, or it is the one that is used otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// It may be shared, and an operator's.
    Explicit,
    /// It is ours alone.
    Default,
}

impl RuntimeDirectory {
    /// Opens this user's runtime directory, and makes it if it is missing.
    ///
    /// It is `$ZCMI_RUNTIME_DIR`; if that is unset or empty `$XDG_RUNTIME_DIR/zcmi`; else `/run/zcmi` for root and
    /// `/tmp/zcmi-<uid>` for everybody else. An `XDG_RUNTIME_DIR` that is not absolute counts as unset, as its
    /// specification wants.
    ///
    /// # Errors
    /// [`RuntimeDirectoryError`] when it cannot be made, or is not what it must be: a directory of ours, mode 0700.
    ///
    /// # Sources
    /// XDG Base Directory Specification 0.8, for `XDG_RUNTIME_DIR`: it must be owned by the user.
    pub fn open() -> Result<Self, RuntimeDirectoryError> {
        let ours = effective_user();
        match chosen(env::var_os("ZCMI_RUNTIME_DIR"), env::var_os("XDG_RUNTIME_DIR"), ours)? {
            (path, Choice::Default) if env::var_os("XDG_RUNTIME_DIR").is_some_and(|xdg| path.starts_with(xdg)) => {
                // A root shell can carry its user's XDG_RUNTIME_DIR; a directory of root in there would lock the user
                // out.
                let parent = path.parent().unwrap_or(Path::new("/"));
                match rustix::fs::stat(parent) {
                    Ok(stat) if stat.st_uid != ours => {
                        Err(RuntimeDirectoryError::NotOurs { path: parent.to_owned(), owner: stat.st_uid, ours })
                    }
                    _ => Self::open_at(&path, Choice::Default),
                }
            }
            (path, choice) => Self::open_at(&path, choice),
        }
    }

    /// As [`open`](Self::open), and makes nothing: `None` where nobody has made it yet, so that nothing runs there.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_existing() -> Result<Option<Self>, RuntimeDirectoryError> {
        let (path, choice) = chosen(env::var_os("ZCMI_RUNTIME_DIR"), env::var_os("XDG_RUNTIME_DIR"), effective_user())?;
        let is_missing = |path: &Path| matches!(rustix::fs::lstat(path), Err(Errno::NOENT));
        if is_missing(&path) {
            return Ok(None);
        }
        if ["p", "s"].iter().any(|part| is_missing(&path.join(part))) {
            // Nobody has used it yet, and with this owner and mode nobody may.
            let error = |call| RuntimeDirectoryError::of(call, &path);
            let root = rustix::fs::open(&path, LOOK_UP, Mode::empty()).map_err(error("open"))?;
            let stat = rustix::fs::fstat(&root).map_err(error("fstat"))?;
            return judge(&path, &stat, choice).map(|_| None);
        }
        Self::open().map(Some)
    }

    /// Which directory [`open`](Self::open) means.
    ///
    /// # Errors
    /// [`RuntimeDirectoryError::Relative`].
    pub fn default_path() -> Result<PathBuf, RuntimeDirectoryError> {
        chosen(env::var_os("ZCMI_RUNTIME_DIR"), env::var_os("XDG_RUNTIME_DIR"), effective_user()).map(|(path, _)| path)
    }

    /// Opens the directory at `path`, as if `$ZCMI_RUNTIME_DIR` named it.
    ///
    /// # Errors
    /// [`RuntimeDirectoryError`]. It may be mode 0700, 0711 or 0750, and ours or root's.
    pub fn at(path: impl AsRef<Path>) -> Result<Self, RuntimeDirectoryError> {
        Self::open_at(path.as_ref(), Choice::Explicit)
    }

    fn open_at(path: &Path, choice: Choice) -> Result<Self, RuntimeDirectoryError> {
        let error = |call| RuntimeDirectoryError::of(call, path);
        let made = match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(Errno::NOENT) => return Err(RuntimeDirectoryError::ParentMissing { path: path.to_owned() }),
            // One that exists need not be makeable; whether it does, `open` says.
            Err(errno @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => match rustix::fs::lstat(path) {
                Ok(_) => false,
                Err(_) => return Err(error("mkdir")(errno)),
            },
            Err(errno) => return Err(error("mkdir")(errno)),
        };
        let root = rustix::fs::open(path, LOOK_UP, Mode::empty()).map_err(error("open"))?;
        if made {
            // The process's umask may have taken bits of the owner; on the descriptor the mode is set past it.
            let listed = rustix::fs::openat(&root, ".", LIST, Mode::empty()).map_err(error("open"))?;
            rustix::fs::fchmod(listed, Mode::RWXU).map_err(error("fchmod"))?;
        }
        let stat = rustix::fs::fstat(&root).map_err(error("fstat"))?;
        let sharing = judge(path, &stat, choice)?;
        let processes = open_below(&root, "p", path, stat.st_uid, sharing)?;
        let services = open_below(&root, "s", path, stat.st_uid, sharing)?;
        Ok(Self { inner: Arc::new(Inner { path: path.to_owned(), processes, services, sharing }) })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Whether other users can reach it, so that an endpoint may be shared with them.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.inner.sharing != Sharing::Owner
    }

    /// The owner of a process's socket, if it is there.
    pub(crate) fn owner_of(&self, incarnation: crate::name::Incarnation) -> Option<u32> {
        let name = incarnation.to_string();
        rustix::fs::statat(self.processes(), &*name, AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| stat.st_uid)
    }

    /// The directory of the processes' sockets.
    pub(crate) fn processes(&self) -> BorrowedFd<'_> {
        self.inner.processes.as_fd()
    }

    fn services_directory(&self) -> BorrowedFd<'_> {
        self.inner.services.as_fd()
    }

    /// The name under which an entry is made before it gets its own.
    pub(crate) fn unfinished(name: &str) -> String {
        format!("{UNFINISHED}{name}")
    }
}

/// How the names of unfinished entries begin.
const UNFINISHED: &str = ".new-";

fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Which directory is meant.
fn chosen(zcmi: Option<OsString>, xdg: Option<OsString>, uid: u32) -> Result<(PathBuf, Choice), RuntimeDirectoryError> {
    if let Some(path) = zcmi.filter(|path| !path.as_bytes().is_empty()).map(PathBuf::from) {
        if path.is_relative() {
            return Err(RuntimeDirectoryError::Relative { path });
        }
        return Ok((path, Choice::Explicit));
    }
    if let Some(xdg) = xdg.map(PathBuf::from).filter(|path| path.is_absolute()) {
        return Ok((xdg.join("zcmi"), Choice::Default));
    }
    let path = if uid == 0 { PathBuf::from("/run/zcmi") } else { PathBuf::from(format!("/tmp/zcmi-{uid}")) };
    Ok((path, Choice::Default))
}

/// Whether what was opened may be the runtime directory, and for whom.
fn judge(path: &Path, stat: &Stat, choice: Choice) -> Result<Sharing, RuntimeDirectoryError> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {}
        FileType::Symlink => return Err(RuntimeDirectoryError::Symlink { path: path.to_owned() }),
        _ => return Err(RuntimeDirectoryError::NotADirectory { path: path.to_owned() }),
    }
    let (owner, ours) = (stat.st_uid, effective_user());
    let operators = choice == Choice::Explicit && owner == 0;
    if owner == OVERFLOW_UID || (owner != ours && !operators) {
        return Err(RuntimeDirectoryError::NotOurs { path: path.to_owned(), owner, ours });
    }
    let mode = stat.st_mode & 0o777;
    match (mode, choice) {
        (0o700, _) => Ok(Sharing::Owner),
        (0o711, Choice::Explicit) => Ok(Sharing::Everybody),
        (0o750, Choice::Explicit) => Ok(Sharing::Group(stat.st_gid)),
        _ if mode & 0o700 != 0o700 => Err(RuntimeDirectoryError::TooClosed { path: path.to_owned(), mode }),
        _ => Err(RuntimeDirectoryError::TooOpen {
            path: path.to_owned(),
            mode,
            shared: match choice {
                Choice::Explicit => "0711 or 0750",
                Choice::Default => "another one, named by ZCMI_RUNTIME_DIR",
            },
        }),
    }
}

/// Opens `p` or `s`, and makes it if it is missing and we may.
fn open_below(
    root: &OwnedFd,
    name: &str,
    root_path: &Path,
    root_owner: u32,
    sharing: Sharing,
) -> Result<OwnedFd, RuntimeDirectoryError> {
    let path = root_path.join(name);
    let error = |call| RuntimeDirectoryError::of(call, &path);
    let below = match rustix::fs::openat(root, name, LOOK_UP, Mode::empty()) {
        Err(Errno::NOENT) => {
            make_below(root.as_fd(), name, sharing).map_err(error("mkdirat"))?;
            rustix::fs::openat(root, name, LOOK_UP, Mode::empty())
        }
        other => other,
    };
    let below = below.map_err(error("openat"))?;
    let stat = rustix::fs::fstat(&below).map_err(error("fstat"))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {}
        FileType::Symlink => return Err(RuntimeDirectoryError::Symlink { path }),
        _ => return Err(RuntimeDirectoryError::NotADirectory { path }),
    }
    let (owner, ours) = (stat.st_uid, effective_user());
    if owner != root_owner && owner != ours {
        return Err(RuntimeDirectoryError::NotOurs { path, owner, ours });
    }
    // Whoever can write a directory that is not sticky can remove and replace what others put there. In one of mode
    // 0700 nobody else arrives.
    let mode = stat.st_mode & 0o7777;
    if sharing != Sharing::Owner && mode & 0o022 != 0 && mode & 0o1000 == 0 {
        return Err(RuntimeDirectoryError::TooOpen { path, mode, shared: "1777 or 1770" });
    }
    Ok(below)
}

/// Makes a directory with the mode that the sharing wants, whatever the umask; one that exists is left as it is.
///
/// Until the mode is set, others of a shared directory can be refused for a moment.
fn make_below(parent: BorrowedFd<'_>, name: &str, sharing: Sharing) -> Result<(), Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(()),
        Err(errno) => return Err(errno),
    }
    let made = match rustix::fs::openat(parent, name, LIST, Mode::empty()) {
        // Somebody removed it again, empty as it was; the caller looks and comes back.
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    if let Some(group) = sharing.group() {
        rustix::fs::fchown(&made, None, Some(group))?;
    }
    rustix::fs::fchmod(&made, sharing.directory_mode())
}

/// Removes an entry; `false` when it was gone already.
fn unlink(directory: BorrowedFd<'_>, name: &str, flags: AtFlags) -> Result<bool, Errno> {
    match rustix::fs::unlinkat(directory, name, flags) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen_by(zcmi: &str, xdg: &str, uid: u32) -> PathBuf {
        let set = |value: &str| if value.is_empty() { None } else { Some(OsString::from(value)) };
        chosen(set(zcmi), set(xdg), uid).expect("a place").0
    }

    #[test]
    fn the_place_is_the_named_one_else_the_sessions_else_a_place_of_the_users_own() {
        assert_eq!(chosen_by("/a", "/b", 0), Path::new("/a"));
        assert_eq!(chosen_by("", "/b", 0), Path::new("/b/zcmi"));
        assert_eq!(chosen_by("", "", 0), Path::new("/run/zcmi"));
        assert_eq!(chosen_by("", "", 7), Path::new("/tmp/zcmi-7"));
        assert_eq!(chosen_by("", "relative", 7), Path::new("/tmp/zcmi-7"));
        let empty = chosen(Some(OsString::new()), None, 7).expect("a place");
        assert_eq!(empty, (PathBuf::from("/tmp/zcmi-7"), Choice::Default));
    }

    #[test]
    fn a_named_place_must_not_depend_on_the_working_directory() {
        let refusal = chosen(Some("run".into()), None, 7).expect_err("relative");
        assert!(matches!(refusal, RuntimeDirectoryError::Relative { .. }), "{refusal}");
    }
}
