//! The entries of the runtime directory: who takes part in what.
//!
//! A participant's file is named `<incarnation>.<endpoint>.<pub|sub>` and holds lines of `key=value`. The service's
//! name is one of them, in every file, so that the directory holds nothing but participants and the kernel's "not
//! empty" is the only rule by which it goes or stays.

use core::fmt;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{LIST, RuntimeDirectory, UNFINISHED, effective_user, make_below, unlink};
use crate::name::{Incarnation, ServiceName, parse_hex_128};
use zcmi_mem::fork::{ForkGuard, ForkGuardError};

/// The most entries that a listing reads; a directory with more is refused.
pub const MAX_ENTRIES: usize = 65_536;

/// The longest participant's file, in bytes: the name, and some lines of numbers.
const MAX_FILE_BYTES: usize = 1024;

/// Turns stay below this.
const MAX_TURN: u64 = 1 << 62;

/// How often a service's directory is made anew when leavers remove it under a joiner.
///
/// Every try is lost only to a leaver that came in between, and a leaver must itself join before it can leave again.
const MAX_JOIN_TRIES: u32 = 1000;

/// What a participant does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It publishes.
    Publisher,
    /// It subscribes.
    Subscriber,
}

impl Role {
    fn suffix(self) -> &'static str {
        match self {
            Self::Publisher => "pub",
            Self::Subscriber => "sub",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Publisher => "publisher",
            Self::Subscriber => "subscriber",
        })
    }
}

/// What a participant says about itself before anybody connects to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The version of the protocol it speaks.
    pub version: u32,
    /// Its process number, for display only: another namespace counts otherwise, and numbers are used again.
    pub pid: u32,
    /// The hash of the payload's layout.
    pub layout_hash: u64,
}

/// A participant as its file describes it: a claim, until its process has been asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Participant {
    /// Its process.
    pub incarnation: Incarnation,
    /// Its number within the process.
    pub endpoint: u32,
    /// What it does.
    pub role: Role,
    /// The user who owns the file, which the kernel vouches for.
    pub uid: u32,
    /// Its turn: later than those of all that were there when it came. The earlier ones have the first right to stay.
    pub turn: u64,
    /// What it says.
    pub facts: Facts,
}

/// Whose file is being written.
pub(crate) type Unfinished = (Incarnation, u32, Role);

/// A service that has participants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Its name.
    pub name: ServiceName,
    /// Who takes part.
    pub participants: Vec<Participant>,
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Sockets of dead processes.
    pub processes: usize,
    /// Files of their participants.
    pub participants: usize,
    /// Directories of services that nobody takes part in.
    pub services: usize,
    /// Entries of dead processes that belong to other users, who must remove them.
    pub kept: usize,
}

/// Why an entry could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// Two names have one hash.
    #[error("the names `{name}` and `{other}` have the same hash; rename one of the two services")]
    HashCollision {
        /// The name that was asked for.
        name: ServiceName,
        /// The name that is there.
        other: ServiceName,
    },
    /// This endpoint is there already.
    #[error("endpoint {endpoint} of process {incarnation} is a {role} of `{name}` already")]
    Exists {
        /// The service.
        name: ServiceName,
        /// The process.
        incarnation: Incarnation,
        /// The endpoint.
        endpoint: u32,
        /// Its role.
        role: Role,
    },
    /// The directory went away under us, again and again.
    #[error("the directory of `{name}` was removed {tries} times while joining")]
    Contended {
        /// The service.
        name: ServiceName,
        /// How often it was tried.
        tries: u32,
    },
    /// There are more entries than anybody needs.
    #[error(
        "`{entry}` in the runtime directory has more than {MAX_ENTRIES} entries; remove what does not belong there"
    )]
    TooMany {
        /// The directory.
        entry: String,
    },
    /// We may not.
    #[error("{call} of `{entry}` in the runtime directory was denied: {source}; it belongs to another user")]
    Denied {
        /// The call.
        call: &'static str,
        /// The entry.
        entry: String,
        /// `EACCES` or `EPERM`.
        source: Errno,
    },
    /// The file system has no room.
    #[error("no room for `{entry}` in the runtime directory: {source}; free space or inodes there")]
    Full {
        /// The entry.
        entry: String,
        /// `ENOSPC` or `EDQUOT`.
        source: Errno,
    },
    /// The file system cannot be written.
    #[error("`{entry}` cannot be made: the runtime directory is read-only; set ZCMI_RUNTIME_DIR")]
    ReadOnly {
        /// The entry.
        entry: String,
    },
    /// A system call failed.
    #[error("{call} of `{entry}` in the runtime directory failed: {source}")]
    System {
        /// The call.
        call: &'static str,
        /// The entry.
        entry: String,
        /// What it answered.
        source: Errno,
    },
    /// Forks could not be noticed.
    #[error(transparent)]
    Fork(#[from] ForkGuardError),
}

impl EntryError {
    fn of(call: &'static str, entry: &str) -> impl FnOnce(Errno) -> Self {
        move |source| {
            let entry = entry.to_owned();
            match source {
                Errno::NOSPC | Errno::DQUOT => Self::Full { entry, source },
                Errno::ROFS => Self::ReadOnly { entry },
                Errno::ACCESS | Errno::PERM => Self::Denied { call, entry, source },
                _ => Self::System { call, entry, source },
            }
        }
    }
}

/// A participant's file; it goes when this is dropped, and so does the service's directory with the last one.
#[derive(Debug)]
pub struct ParticipantFile {
    directory: RuntimeDirectory,
    service: String,
    file: String,
    made_in: ForkGuard,
}

impl Drop for ParticipantFile {
    fn drop(&mut self) {
        // The file is the parent's in a forked child.
        if self.made_in.check().is_ok() {
            // What fails here is residue, and the next sweep's work.
            let _swept_later = self.directory.remove_file(&self.service, &self.file);
        }
    }
}

impl RuntimeDirectory {
    /// Writes down that an endpoint of this process takes part in a service.
    ///
    /// The process's socket must be there first: whoever finds the file asks the process, and takes one that cannot be
    /// reached for dead.
    ///
    /// # Errors
    /// [`EntryError`]; nothing is left then.
    pub fn create_participant(
        &self,
        name: &ServiceName,
        incarnation: Incarnation,
        endpoint: u32,
        role: Role,
        facts: &Facts,
    ) -> Result<ParticipantFile, EntryError> {
        let made_in = ForkGuard::new()?;
        let service = service_directory(name);
        let file = file_name(incarnation, endpoint, role);
        for _ in 0..MAX_JOIN_TRIES {
            make_below(self.services_directory(), &service, self.inner.sharing)
                .map_err(EntryError::of("mkdirat", &service))?;
            let Some(directory) = self.open_service(&service)? else { continue };
            if !self.write_file(directory.as_fd(), &file, name, facts)? {
                continue;
            }
            let made = ParticipantFile { directory: self.clone(), service: service.clone(), file, made_in };
            // Looked at only now, when ours can be seen: of two names that come together with one hash, one at least
            // sees the other.
            return match self.foreign_name(directory.as_fd(), name)? {
                None => Ok(made),
                Some(other) => Err(EntryError::HashCollision { name: name.clone(), other }),
            };
        }
        Err(EntryError::Contended { name: name.clone(), tries: MAX_JOIN_TRIES })
    }

    /// Who takes part in a service, in the order of their file names; nobody when there is no such service.
    ///
    /// Files that do not say what they must are no participants, and neither are those of a name with the same hash.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn participants(&self, name: &ServiceName) -> Result<Vec<Participant>, EntryError> {
        let service = service_directory(name);
        let Some(directory) = self.open_service(&service)? else { return Ok(Vec::new()) };
        let mut found = read_participants(directory.as_fd(), &service)?;
        found.retain(|(of, _)| of == name);
        Ok(found.into_iter().map(|(_, participant)| participant).collect())
    }

    /// As [`participants`](Self::participants), and who is writing a file of this service at the moment. Whoever had
    /// begun one before this was called is in one of the two lists.
    pub(crate) fn participants_and_unfinished(
        &self,
        name: &ServiceName,
    ) -> Result<(Vec<Participant>, Vec<Unfinished>), EntryError> {
        let service = service_directory(name);
        let Some(directory) = self.open_service(&service)? else { return Ok((Vec::new(), Vec::new())) };
        // A listing can miss a file that is renamed while it runs. That happens once in a file's life: of these two
        // listings, one at least shows it.
        let files = list(directory.as_fd(), &service)?;
        // Another user's is nothing that anybody here would wait for.
        let ours = rustix::process::geteuid().as_raw();
        let is_ours = |file: &str| {
            rustix::fs::statat(&directory, file, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_uid == ours)
        };
        let begun = files.iter().filter_map(|file| Some((file, parse_file_name(file.strip_prefix(UNFINISHED)?)?)));
        let mut unfinished: Vec<_> = begun.filter(|(file, _)| is_ours(file)).map(|(_, named)| named).collect();
        let participants = self.participants(name)?;
        let finished = |incarnation, endpoint| {
            participants.iter().any(|one| (one.incarnation, one.endpoint) == (incarnation, endpoint))
        };
        unfinished.retain(|&(incarnation, endpoint, _)| !finished(incarnation, endpoint));
        Ok((participants, unfinished))
    }

    /// All services that somebody takes part in, in the order of their names.
    ///
    /// # Errors
    /// [`EntryError`]. A service of another user that we may not look into is left out.
    pub fn services(&self) -> Result<Vec<ServiceEntry>, EntryError> {
        let mut services = BTreeMap::<ServiceName, Vec<Participant>>::new();
        for service in self.service_directories()? {
            let directory = match self.open_service(&service) {
                Ok(Some(directory)) => directory,
                Ok(None) | Err(EntryError::Denied { .. }) => continue,
                Err(error) => return Err(error),
            };
            for (name, participant) in read_participants(directory.as_fd(), &service)? {
                if service_directory(&name) == service {
                    services.entry(name).or_default().push(participant);
                }
            }
        }
        Ok(services.into_iter().map(|(name, participants)| ServiceEntry { name, participants }).collect())
    }

    /// Removes the file of a participant whose process is dead, and its service's directory if it was the last one.
    ///
    /// The answer is whether the file was there.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn remove_participant(&self, name: &ServiceName, participant: &Participant) -> Result<bool, EntryError> {
        self.remove_entry(name, participant.incarnation, participant.endpoint, participant.role)
    }

    /// As [`remove_participant`](Self::remove_participant), by its name alone.
    pub(crate) fn remove_entry(
        &self,
        name: &ServiceName,
        incarnation: Incarnation,
        endpoint: u32,
        role: Role,
    ) -> Result<bool, EntryError> {
        self.remove_file(&service_directory(name), &file_name(incarnation, endpoint, role))
    }

    /// Removes the socket of a dead process; the answer is whether it was there.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn remove_process(&self, incarnation: Incarnation) -> Result<bool, EntryError> {
        let socket = incarnation.to_string();
        unlink(self.processes(), &socket, AtFlags::empty()).map_err(EntryError::of("unlinkat", &socket))
    }

    /// Removes all that dead processes left, finished or not, and the directories of services that nobody takes part
    /// in.
    ///
    /// Each process is asked about once, and only if it has an entry.
    ///
    /// # Errors
    /// [`EntryError`]. What belongs to other users is kept and counted, not an error.
    pub fn sweep_dead(&self, mut is_dead: impl FnMut(Incarnation) -> bool) -> Result<Swept, EntryError> {
        let mut known = BTreeMap::new();
        let mut dead = |incarnation| *known.entry(incarnation).or_insert_with(|| is_dead(incarnation));
        let mut swept = Swept::default();
        for service in self.service_directories()? {
            self.sweep_service(&service, &mut swept, &mut dead)?;
        }
        self.sweep_sockets(&mut swept, &mut dead)?;
        Ok(swept)
    }

    /// Removes what these dead processes left in these services, finished or not, and their sockets. Each service is
    /// listed once, however many died, and no file is opened: their names tell whose they are.
    ///
    /// What cannot be listed or removed now is left to the next visitor.
    pub(crate) fn sweep_dead_of<'a>(
        &self,
        services: impl IntoIterator<Item = &'a ServiceName>,
        dead: &HashSet<Incarnation>,
    ) {
        let mut swept = Swept::default();
        for service in services {
            let service = service_directory(service);
            let _next_visitor = self.sweep_service(&service, &mut swept, &mut |other| dead.contains(&other));
        }
        for &process in dead {
            let _next_visitor = self.remove_process(process);
        }
    }

    /// Removes from a service what dead processes left, and its directory if nobody is left.
    fn sweep_service(
        &self,
        service: &str,
        swept: &mut Swept,
        is_dead: &mut impl FnMut(Incarnation) -> bool,
    ) -> Result<(), EntryError> {
        let directory = match self.open_service(service) {
            Ok(Some(directory)) => directory,
            Ok(None) | Err(EntryError::Denied { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut first_error = None;
        for file in list(directory.as_fd(), service)? {
            let entry = file.strip_prefix(UNFINISHED).unwrap_or(&file);
            if parse_file_name(entry).is_some_and(|(incarnation, ..)| is_dead(incarnation)) {
                let removed = unlink(directory.as_fd(), &file, AtFlags::empty());
                match swept.count(removed, "unlinkat", &file) {
                    Ok(count) => swept.participants += count,
                    // What stays keeps none of the others.
                    Err(error) => first_error = first_error.or(Some(error)),
                }
            }
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        match unlink(self.services_directory(), service, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            // In a shared directory an empty one of another user stays for its owner.
            removed => swept.services += swept.count(removed, "rmdir", service)?,
        }
        Ok(())
    }

    /// Removes the sockets of dead processes, finished or not: what is left of those that died before they took part in
    /// anything.
    ///
    /// # Errors
    /// [`EntryError`], as [`sweep_dead`](Self::sweep_dead).
    pub(crate) fn sweep_dead_sockets(&self, mut is_dead: impl FnMut(Incarnation) -> bool) -> Result<Swept, EntryError> {
        let mut swept = Swept::default();
        self.sweep_sockets(&mut swept, &mut is_dead)?;
        Ok(swept)
    }

    /// Removes files of a service that dead processes left unfinished: no list of participants shows them.
    ///
    /// # Errors
    /// [`EntryError`], as [`sweep_dead`](Self::sweep_dead).
    pub(crate) fn sweep_unfinished(
        &self,
        name: &ServiceName,
        mut is_dead: impl FnMut(Incarnation) -> bool,
    ) -> Result<Swept, EntryError> {
        let (mut swept, service) = (Swept::default(), service_directory(name));
        let Some(directory) = self.open_service(&service)? else { return Ok(swept) };
        for file in list(directory.as_fd(), &service)? {
            let entry = file.strip_prefix(UNFINISHED).and_then(parse_file_name);
            if entry.is_some_and(|(incarnation, ..)| is_dead(incarnation)) {
                let removed = unlink(directory.as_fd(), &file, AtFlags::empty());
                swept.participants += swept.count(removed, "unlinkat", &file)?;
            }
        }
        Ok(swept)
    }

    fn sweep_sockets(
        &self,
        swept: &mut Swept,
        is_dead: &mut impl FnMut(Incarnation) -> bool,
    ) -> Result<(), EntryError> {
        for socket in list(self.processes(), "p")? {
            let entry = socket.strip_prefix(UNFINISHED).unwrap_or(&socket);
            if entry.parse().is_ok_and(&mut *is_dead) {
                let removed = unlink(self.processes(), &socket, AtFlags::empty());
                swept.processes += swept.count(removed, "unlinkat", &socket)?;
            }
        }
        Ok(())
    }

    /// The names of the services' directories.
    fn service_directories(&self) -> Result<Vec<String>, EntryError> {
        let mut names = list(self.services_directory(), "s")?;
        names.retain(|name| parse_hex_128(name).is_some());
        Ok(names)
    }

    /// Opens a service's directory for listing; `None` when it is not there.
    fn open_service(&self, service: &str) -> Result<Option<OwnedFd>, EntryError> {
        match rustix::fs::openat(self.services_directory(), service, LIST, Mode::empty()) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(EntryError::of("openat", service)(errno)),
        }
    }

    /// Writes a participant's file; `false` when the service's directory was removed in between.
    fn write_file(
        &self,
        directory: BorrowedFd<'_>,
        file: &str,
        name: &ServiceName,
        facts: &Facts,
    ) -> Result<bool, EntryError> {
        let unfinished = Self::unfinished(file);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let exists = || {
            let (incarnation, endpoint, role) = parse_file_name(file).expect("a name of ours");
            EntryError::Exists { name: name.clone(), incarnation, endpoint, role }
        };
        let written = match rustix::fs::openat(directory, &*unfinished, flags, Mode::RUSR | Mode::WUSR) {
            Ok(written) => written,
            Err(Errno::NOENT) => return Ok(false),
            Err(Errno::EXIST) => return Err(exists()),
            Err(errno) => return Err(EntryError::of("openat", file)(errno)),
        };
        // Chosen after ours could be seen: who does not see it yet, and counts, has an earlier turn than we get.
        let turn = next_turn(directory).inspect_err(|_| {
            let _swept_later = unlink(directory, &unfinished, AtFlags::empty());
        })?;
        let content = content(name, facts, turn);
        let finished = rustix::io::retry_on_intr(|| rustix::io::write(&written, content.as_bytes()))
            // The content is far below a page: a short write means that the file system is full.
            .and_then(|len| if len == content.len() { Ok(()) } else { Err(Errno::NOSPC) })
            .map_err(|errno| ("write", errno))
            .and_then(|()| match self.inner.sharing.group() {
                Some(group) => rustix::fs::fchown(&written, None, Some(group)).map_err(|errno| ("fchown", errno)),
                None => Ok(()),
            })
            .and_then(|()| {
                rustix::fs::fchmod(&written, self.inner.sharing.file_mode()).map_err(|errno| ("fchmod", errno))
            })
            .and_then(|()| {
                rustix::fs::renameat_with(directory, &*unfinished, directory, file, RenameFlags::NOREPLACE)
                    .map_err(|errno| ("renameat2", errno))
            });
        match finished {
            Ok(()) => Ok(true),
            // A sweep that could not reach this process took the unfinished file.
            Err((_, Errno::NOENT)) => Ok(false),
            Err((call, errno)) => {
                let _swept_later = unlink(directory, &unfinished, AtFlags::empty());
                Err(if errno == Errno::EXIST { exists() } else { EntryError::of(call, file)(errno) })
            }
        }
    }

    /// Another name in a directory that must have one, by the word of our own user; strangers' words count nothing.
    fn foreign_name(&self, directory: BorrowedFd<'_>, name: &ServiceName) -> Result<Option<ServiceName>, EntryError> {
        let ours = effective_user();
        let found = read_participants(directory, &service_directory(name))?;
        Ok(found.into_iter().find(|(of, participant)| of != name && participant.uid == ours).map(|(of, _)| of))
    }

    /// Removes one participant's file, and the directory if it is empty then.
    fn remove_file(&self, service: &str, file: &str) -> Result<bool, EntryError> {
        let Some(directory) = self.open_service(service)? else { return Ok(false) };
        let removed = unlink(directory.as_fd(), file, AtFlags::empty()).map_err(EntryError::of("unlinkat", file))?;
        match unlink(self.services_directory(), service, AtFlags::REMOVEDIR) {
            // Others take part, or it is another user's to remove.
            Ok(_) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS | Errno::PERM) => Ok(removed),
            Err(errno) => Err(EntryError::of("rmdir", service)(errno)),
        }
    }
}

impl Swept {
    /// One for what was removed; what belongs to others is counted as kept.
    fn count(&mut self, removed: Result<bool, Errno>, call: &'static str, entry: &str) -> Result<usize, EntryError> {
        match removed {
            Ok(removed) => Ok(usize::from(removed)),
            Err(Errno::ACCESS | Errno::PERM) => {
                self.kept += 1;
                Ok(0)
            }
            Err(errno) => Err(EntryError::of(call, entry)(errno)),
        }
    }
}

/// The name of a service's directory.
fn service_directory(name: &ServiceName) -> String {
    format!("{:032x}", name.hash())
}

/// The name of a participant's file.
fn file_name(incarnation: Incarnation, endpoint: u32, role: Role) -> String {
    format!("{incarnation}.{endpoint:08x}.{}", role.suffix())
}

/// The reverse of [`file_name`]; `None` for every other text.
fn parse_file_name(file: &str) -> Option<(Incarnation, u32, Role)> {
    let mut parts = file.split('.');
    let incarnation = parts.next()?.parse().ok()?;
    let endpoint = u32::from_str_radix(parts.next()?, 16).ok()?;
    let role = match parts.next()? {
        "pub" => Role::Publisher,
        "sub" => Role::Subscriber,
        _ => return None,
    };
    // One entry has one name: no leading zero more or less, no sign, no capital.
    (file_name(incarnation, endpoint, role) == file).then_some((incarnation, endpoint, role))
}

/// The content of a participant's file.
fn content(name: &ServiceName, facts: &Facts, turn: u64) -> String {
    let Facts { version, pid, layout_hash } = facts;
    format!("service={name}\nversion={version}\npid={pid}\nlayout={layout_hash:016x}\nturn={turn}\n")
}

/// The turn after all that are there.
fn next_turn(directory: BorrowedFd<'_>) -> Result<u64, EntryError> {
    let there = read_participants(directory, "the service")?;
    // A number that nobody comes to by counting is somebody's invention.
    // Only our own user's participants are counted against one another.
    let ours = rustix::process::geteuid().as_raw();
    let there = there.iter().filter(|(_, participant)| participant.uid == ours);
    let turns = there.map(|(_, participant)| participant.turn).filter(|&turn| turn < MAX_TURN);
    Ok(turns.max().unwrap_or(0) + 1)
}

/// The reverse of [`content`]; lines with other keys are left for versions to come, and a key given twice means
/// nothing.
fn parse_content(text: &str) -> Option<(ServiceName, Facts, u64)> {
    let mut lines = BTreeMap::new();
    for line in text.strip_suffix('\n')?.split('\n') {
        let (key, value) = line.split_once('=')?;
        if lines.insert(key, value).is_some() {
            return None;
        }
    }
    let name = lines.get("service")?.parse().ok()?;
    let version = lines.get("version")?.parse().ok()?;
    let pid = lines.get("pid")?.parse().ok()?;
    let layout_hash = u64::from_str_radix(lines.get("layout")?, 16).ok()?;
    // Whoever has no turn was there before there were turns.
    let turn = lines.get("turn").map_or(Some(0), |turn| turn.parse().ok())?;
    Some((name, Facts { version, pid, layout_hash }, turn))
}

/// The names in a directory, sorted, without `.` and `..`, and without what is no text: nothing of ours is.
fn list(directory: BorrowedFd<'_>, entry: &str) -> Result<Vec<String>, EntryError> {
    let listed = rustix::fs::openat(directory, ".", LIST, Mode::empty());
    let listed = match listed {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        other => other.map_err(EntryError::of("openat", entry))?,
    };
    let mut names = Vec::new();
    for found in Dir::new(listed).map_err(EntryError::of("getdents", entry))? {
        let found = match found {
            // The directory was removed while it was read.
            Err(Errno::NOENT) => break,
            other => other.map_err(EntryError::of("getdents", entry))?,
        };
        if names.len() == MAX_ENTRIES {
            return Err(EntryError::TooMany { entry: entry.to_owned() });
        }
        match found.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The participants that the files of a service's directory describe, with the service each one names.
fn read_participants(directory: BorrowedFd<'_>, service: &str) -> Result<Vec<(ServiceName, Participant)>, EntryError> {
    let mut participants = Vec::new();
    for file in list(directory, service)? {
        let Some((incarnation, endpoint, role)) = parse_file_name(&file) else { continue };
        match read_file(directory, &file) {
            Ok(Some((name, facts, turn, uid))) => {
                participants.push((name, Participant { incarnation, endpoint, role, uid, turn, facts }));
            }
            // Gone since it was listed, damaged, or another user's: nobody to talk to.
            Ok(None) | Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::LOOP | Errno::NXIO) => {}
            Err(errno) => return Err(EntryError::of("reading", &file)(errno)),
        }
    }
    Ok(participants)
}

/// What a participant's file says (the last number is its owner); `None` when it does not say what it must.
fn read_file(directory: BorrowedFd<'_>, file: &str) -> Result<Option<(ServiceName, Facts, u64, u32)>, Errno> {
    // Another user could have put a pipe there, on which an open would wait.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(directory, file, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&opened)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    // A file that does not fit is cut off, lacks its last newline or its lines, and so says nothing.
    let mut bytes = [0; MAX_FILE_BYTES];
    let len = rustix::io::retry_on_intr(|| rustix::io::read(&opened, &mut bytes[..]))?;
    let said = core::str::from_utf8(&bytes[..len]).ok().and_then(parse_content);
    Ok(said.map(|(name, facts, turn)| (name, facts, turn, stat.st_uid)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_forked_child_leaves_its_parents_file_alone() {
        let path =
            std::env::temp_dir().join(format!("zcmi-test-fork-{}", Incarnation::random().expect("random bytes")));
        let directory = RuntimeDirectory::at(&path).expect("a directory");
        let name = ServiceName::new("forked").expect("a name");
        let own = Incarnation::random().expect("random bytes");
        let facts = Facts { version: 1, pid: 1, layout_hash: 1 };
        let file = directory.create_participant(&name, own, 1, Role::Publisher, &facts).expect("an entry");
        let mut inherited = Some(file);
        let status = crate::sys::testing::status_in_forked_child(|| {
            drop(inherited.take());
            0
        });
        let after_the_child = directory.participants(&name).expect("listing").len();
        drop(inherited);
        let after_the_parent = directory.participants(&name).expect("listing").len();
        std::fs::remove_dir_all(&path).expect("removing the test's directory");
        assert_eq!((status, after_the_child, after_the_parent), (0, 1, 0));
    }

    #[test]
    fn one_pass_removes_what_several_dead_processes_left_and_nothing_else() {
        let path =
            std::env::temp_dir().join(format!("zcmi-test-sweep-{}", Incarnation::random().expect("random bytes")));
        let directory = RuntimeDirectory::at(&path).expect("a directory");
        let [both, lonely, foreign] = ["both", "lonely", "foreign"].map(|name| ServiceName::new(name).expect("a name"));
        let [one, two, living] = [1, 2, 3].map(Incarnation::from_u128);
        let facts = Facts { version: 1, pid: 1, layout_hash: 1 };
        let file = |service, process, endpoint| {
            directory.create_participant(service, process, endpoint, Role::Subscriber, &facts).expect("an entry")
        };
        let _stays = file(&both, living, 1);
        for left in [file(&both, one, 1), file(&both, one, 2), file(&both, two, 1), file(&lonely, two, 2)] {
            core::mem::forget(left);
        }
        // Where we do not look.
        core::mem::forget(file(&foreign, one, 3));
        let unfinished = path
            .join("s")
            .join(service_directory(&both))
            .join(format!("{UNFINISHED}{}", file_name(two, 9, Role::Publisher)));
        std::fs::write(&unfinished, "").expect("an unfinished file");
        for process in [one, two, living] {
            std::fs::write(path.join("p").join(process.to_string()), "").expect("a socket's name");
        }
        directory.sweep_dead_of([&both, &lonely], &HashSet::from([one, two]));
        let left = |service| directory.participants(service).expect("a listing").len();
        let counts = (left(&both), left(&lonely), left(&foreign));
        let sockets = std::fs::read_dir(path.join("p")).expect("a listing").count();
        let services = std::fs::read_dir(path.join("s")).expect("a listing").count();
        let is_left = unfinished.exists();
        std::fs::remove_dir_all(&path).expect("removing the test's directory");
        assert_eq!((counts, sockets, services, is_left), ((1, 0, 1), 1, 2, false));
    }

    #[test]
    fn names_and_contents_of_files_read_back_as_they_were_written() {
        let name = ServiceName::new("a/b").expect("a name");
        for (endpoint, role) in [(0, Role::Publisher), (u32::MAX, Role::Subscriber)] {
            let incarnation = Incarnation::from_u128(u128::from(endpoint));
            let file = file_name(incarnation, endpoint, role);
            assert_eq!(parse_file_name(&file), Some((incarnation, endpoint, role)));
            let facts = Facts { version: endpoint, pid: endpoint, layout_hash: u64::from(endpoint) };
            let turn = u64::from(endpoint) + 1;
            assert_eq!(parse_content(&content(&name, &facts, turn)), Some((name.clone(), facts, turn)));
        }
    }

    #[test]
    fn the_longest_name_fits_a_file() {
        let name = ServiceName::new(&"x".repeat(crate::name::MAX_NAME_BYTES)).expect("a name");
        let facts = Facts { version: u32::MAX, pid: u32::MAX, layout_hash: u64::MAX };
        assert!(content(&name, &facts, u64::MAX).len() < MAX_FILE_BYTES / 2, "half is left for keys of later versions");
    }

    proptest! {
        #[test]
        fn no_text_is_read_as_more_than_it_says(text in "[-a-z0-9=.\\n/+]{0,120}") {
            if let Some((incarnation, endpoint, role)) = parse_file_name(&text) {
                prop_assert_eq!(file_name(incarnation, endpoint, role), text.as_str());
            }
            if let Some((name, facts, _)) = parse_content(&text) {
                prop_assert!(text.contains(name.as_str()));
                prop_assert!(text.contains(&facts.version.to_string()));
            }
        }
    }
}
