//! This process as a participant: its identity, its memory, and its one control thread.
//!
//! [`Process::current`] is made with the first endpoint and ends with the last. Endpoints keep it alive; the thread
//! ends when nothing is left that needs it. In a forked child a new one is made; the parent's handles answer `Forked`
//! there.
//!
//! Memory belongs to the process, not to its endpoints: lanes and pools are carved from a few growing regions, so that
//! a thousand services need a few dozen descriptors.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;

use zcmi_mem::ledger::FallbackReason;
use zcmi_mem::ledger::region::LEDGER_BYTES;
use zcmi_mem::region::arena::{Arena, Extent};
use zcmi_mem::region::{HugePage, HugePages, RegionError, RegionKind};
use zcmi_ring::LifeMark;
use zcmi_ring::seat::Barrier;
use zcmi_ring::sync::{AtomicBool, AtomicU32, Ordering};

use crate::audience::Audience;
use crate::control::{Command, Control};
use crate::directory::{RuntimeDirectory, RuntimeDirectoryError};
use crate::ledger::ProcessLedger;
use crate::name::Incarnation;
use crate::report::ProcessReport;
use crate::socket::{Listener, SocketError};
use crate::sys::{self, ProcessBarrier};
use zcmi_mem::fork::{ForkGuard, ForkGuardError};

/// Why this process could not become a participant.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// The runtime directory cannot be used.
    #[error(transparent)]
    Directory(#[from] RuntimeDirectoryError),
    /// Its socket could not be made.
    #[error("this process's control socket could not be made: {0}")]
    Socket(String),
    /// Forks could not be noticed.
    #[error(transparent)]
    Fork(#[from] ForkGuardError),
    /// A system call failed.
    #[error("{call} failed: {source}")]
    System {
        /// The call.
        call: &'static str,
        /// What it answered.
        source: std::io::Error,
    },
}

impl From<SocketError> for ProcessError {
    fn from(error: SocketError) -> Self {
        Self::Socket(error.to_string())
    }
}

/// The way to the control thread: a queue and the descriptor that wakes it.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// None once the control thread has ended: then nobody would answer.
    commands: Mutex<Option<VecDeque<Command>>>,
    wake: OwnedFd,
    /// Set with the end of the control thread, for whoever must not wait for the lock.
    closed: AtomicBool,
}

impl Mailbox {
    pub(crate) fn send(&self, command: Command) {
        match &mut *lock(&self.commands) {
            Some(commands) => commands.push_back(command),
            // Dropped with what it would be answered by, so that whoever waits for the answer learns that none comes.
            None => return,
        }
        // A full eventfd is readable already; no other error is possible on an eventfd of our own.
        let _already_awake = sys::wake(self.wake.as_fd());
    }

    /// Wakes the control thread without a command: there is something for it elsewhere. Returns whether there is one.
    pub(crate) fn nudge(&self) -> bool {
        // As in `send`.
        let _already_awake = sys::wake(self.wake.as_fd());
        !self.closed.load(Ordering::Relaxed)
    }

    pub(crate) fn take(&self) -> VecDeque<Command> {
        let _taken = sys::take_wakes(self.wake.as_fd());
        lock(&self.commands).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes no command any more, and drops those that wait.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let waiting = lock(&self.commands).take();
        drop(waiting);
    }

    pub(crate) fn wake_descriptor(&self) -> &OwnedFd {
        &self.wake
    }
}

/// Locks a mutex whether or not somebody panicked while holding it: what it guards is whole at every step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An extent that goes back to its arena when the last who needs it lets go.
#[derive(Debug)]
pub(crate) struct ExtentGuard {
    extent: Option<Extent>,
    arena: Arc<Mutex<Arena>>,
    /// A region was made for it, with small pages because there were no huge ones.
    wanted_huge_pages: bool,
    audience: Arc<Audience>,
}

impl ExtentGuard {
    /// Who may read the region it lies in.
    pub(crate) fn audience(&self) -> &Audience {
        &self.audience
    }

    pub(crate) fn extent(&self) -> &Extent {
        self.extent.as_ref().expect("an extent is given back only on drop")
    }

    /// Whether a region had to be made of small pages for it where huge ones were tried.
    pub(crate) fn wanted_huge_pages(&self) -> bool {
        self.wanted_huge_pages
    }
}

impl Drop for ExtentGuard {
    fn drop(&mut self) {
        if let Some(extent) = self.extent.take() {
            lock(&self.arena).free(extent);
        }
    }
}

/// The audiences for which a process keeps memory, besides its own user: each takes a region and a descriptor at least.
const MAX_AUDIENCES: usize = 16;
/// What the first region for other users holds: control lines and small rings, or the blocks of readers.
const SHARED_FIRST_BYTES: usize = 12 << 10;

/// Why there is no memory for an audience.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryForError {
    #[error("this process shares memory with {MAX_AUDIENCES} sets of other users already, as many as it may")]
    TooManyAudiences,
    #[error(transparent)]
    Region(#[from] RegionError),
}

/// The memory of a process, by audience: what lies in one region may be read by all who may read any of it.
#[derive(Clone, Debug)]
pub(crate) struct Memories {
    own: Memory,
    shared: Arc<Mutex<Vec<(Audience, Memory)>>>,
}

impl Memories {
    fn new(own: Memory) -> Self {
        Self { own, shared: Arc::default() }
    }

    /// Allocates in memory that this audience alone may read.
    pub(crate) fn allocate(
        &self,
        audience: &Audience,
        bytes: usize,
        align: usize,
    ) -> Result<ExtentGuard, MemoryForError> {
        if audience.is_own_user() {
            return Ok(self.own.allocate(bytes, align)?);
        }
        let mut shared = lock(&self.shared);
        if let Some((_, memory)) = shared.iter().find(|(of, _)| of == audience) {
            return Ok(memory.allocate(bytes, align)?);
        }
        // What nobody uses any more makes room.
        shared.retain(|(_, memory)| Arc::strong_count(&memory.arena) > 1);
        if shared.len() >= MAX_AUDIENCES {
            return Err(MemoryForError::TooManyAudiences);
        }
        // Strangers refuse reserved huge pages, in which holes cannot be seen.
        let arena = Arena::new(RegionKind::SealedMemfd, SHARED_FIRST_BYTES).huge_pages(HugePages::Transparent);
        let memory = Memory { arena: Arc::new(Mutex::new(arena)), audience: Arc::new(audience.clone()) };
        let extent = memory.allocate(bytes, align)?;
        shared.push((audience.clone(), memory));
        Ok(extent)
    }

    /// Looks at all of it, one arena after the other.
    pub(crate) fn for_each(&self, mut look: impl FnMut(&Arena)) {
        self.own.with(&mut look);
        for (_, memory) in &*lock(&self.shared) {
            memory.with(&mut look);
        }
    }
}

/// Memory of one kind and audience that this process hands out to its endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    arena: Arc<Mutex<Arena>>,
    audience: Arc<Audience>,
}

impl Memory {
    fn new(kind: RegionKind, first_bytes: usize) -> Self {
        Self { arena: Arc::new(Mutex::new(Arena::new(kind, first_bytes))), audience: Arc::default() }
    }

    pub(crate) fn allocate(&self, bytes: usize, align: usize) -> Result<ExtentGuard, RegionError> {
        let mut arena = lock(&self.arena);
        let before = arena.regions().count();
        let extent = arena.allocate(bytes, align)?;
        let is_new = arena.regions().count() > before;
        drop(arena);
        let region = extent.region();
        let is_large = region.len() >= HugePage::Mib2.bytes();
        let wanted_huge_pages = is_new && is_large && !region.facts().huge_pages.is_yes();
        let (arena, audience) = (Arc::clone(&self.arena), Arc::clone(&self.audience));
        Ok(ExtentGuard { extent: Some(extent), arena, audience, wanted_huge_pages })
    }

    pub(crate) fn with<R>(&self, look: impl FnOnce(&Arena) -> R) -> R {
        look(&lock(&self.arena))
    }
}

#[derive(Debug)]
struct Inner {
    incarnation: Incarnation,
    directory: RuntimeDirectory,
    mailbox: Arc<Mailbox>,
    lanes: Memories,
    wakes: Memory,
    ledger: Arc<ProcessLedger>,
    next_endpoint: AtomicU32,
    guard: ForkGuard,
    barrier: Barrier,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.guard.check().is_err() {
            // The thread is the parent's, and its handle means nothing here: neither join nor detach it.
            std::mem::forget(lock(&self.thread).take());
            return;
        }
        let (reply, stays) = channel();
        self.mailbox.send(Command::Stop(reply));
        let handle = lock(&self.thread).take();
        // Whoever drops us may hold the very samples that the thread stays for: then it ends by itself, after them.
        if let Some(handle) = handle
            && handle.thread().id() != std::thread::current().id()
            && stays.recv() != Ok(true)
        {
            // A panic of the control thread has been reported by then.
            let _reported = handle.join();
        }
    }
}

/// This process as a participant in services.
#[derive(Clone, Debug)]
pub struct Process {
    inner: Arc<Inner>,
}

static CURRENT: Mutex<Weak<Inner>> = Mutex::new(Weak::new());

impl Process {
    /// The process in its default runtime directory, made when there is none.
    ///
    /// # Errors
    /// [`ProcessError`].
    pub fn current() -> Result<Self, ProcessError> {
        let mut current = lock(&CURRENT);
        if let Some(inner) = current.upgrade()
            && inner.guard.check().is_ok()
        {
            return Ok(Self { inner });
        }
        let process = Self::open(RuntimeDirectory::open()?)?;
        *current = Arc::downgrade(&process.inner);
        Ok(process)
    }

    /// A participant of its own in the given runtime directory, beside the default one.
    ///
    /// # Errors
    /// [`ProcessError`].
    pub fn open(directory: RuntimeDirectory) -> Result<Self, ProcessError> {
        let (process, control) = Self::prepare(directory)?;
        let thread = std::thread::Builder::new()
            .name("zcmi-control".into())
            .spawn(move || control.run())
            .map_err(|source| ProcessError::System { call: "starting the control thread", source })?;
        *lock(&process.inner.thread) = Some(thread);
        Ok(process)
    }

    /// A participant, and its control thread's state, which nobody runs yet.
    pub(crate) fn prepare(directory: RuntimeDirectory) -> Result<(Self, Control), ProcessError> {
        let guard = ForkGuard::new()?;
        let system = |call| move |source| ProcessError::System { call, source };
        let incarnation = Incarnation::random().map_err(system("getrandom"))?;
        let listener = Listener::bind(&directory, incarnation)?;
        let wake = sys::eventfd().map_err(|errno| system("eventfd")(errno.into()))?;
        let mailbox = Mailbox { commands: Mutex::new(Some(VecDeque::new())), wake, closed: AtomicBool::new(false) };
        let mailbox = Arc::new(mailbox);
        let (barrier, no_barrier) = match ProcessBarrier::register() {
            Ok(registered) => {
                let _same_for_all = BARRIER.set(registered);
                (Barrier::Asymmetric(fence_every_thread), None)
            }
            Err(_) => (Barrier::Symmetric, Some(FallbackReason::NoMembarrier)),
        };
        let lanes = Memory::new(RegionKind::SealedMemfd, LEDGER_BYTES + (64 << 10));
        let wakes = Memory::new(RegionKind::WakePage, 4 << 10);
        let first = |error| system("allocating the first region")(std::io::Error::other(error));
        let place = lanes.allocate(LEDGER_BYTES, 128).map_err(first)?;
        let ledger = ProcessLedger::create(place, incarnation);
        let ledger = Arc::new(ledger.map_err(|error| system("placing the ledger")(std::io::Error::other(error)))?);
        if let Some(reason) = no_barrier {
            ledger.fallback(reason);
        }
        // The hot words of many processes would lie at the same offset of their pages, and so share one set of the
        // first-level cache; each process therefore begins at an offset of its own.
        let stagger = (incarnation.as_u128() as usize % 24) * 128;
        if stagger > 0 {
            let space = lock(&lanes.arena).allocate(stagger, 128);
            // Kept for the life of the arena: it only moves what comes after it.
            let _space = space.map_err(first)?;
        }
        let lanes = Memories::new(lanes);
        let control =
            Control::new(directory.clone(), listener, Arc::clone(&mailbox), lanes.clone(), Arc::clone(&ledger), guard);
        let inner = Inner {
            incarnation,
            directory,
            mailbox,
            lanes,
            wakes,
            ledger,
            next_endpoint: AtomicU32::new(1),
            guard,
            barrier,
            thread: Mutex::default(),
        };
        Ok((Self { inner: Arc::new(inner) }, control))
    }

    /// This process's identity in its runtime directory.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.inner.incarnation
    }

    /// The runtime directory.
    #[must_use]
    pub fn directory(&self) -> &RuntimeDirectory {
        &self.inner.directory
    }

    /// What this process has: its endpoints, and its memory. None in a forked child, or when the control thread is
    /// gone.
    #[must_use]
    pub fn report(&self) -> Option<ProcessReport> {
        self.inner.guard.check().ok()?;
        let (reply, answer) = channel();
        self.inner.mailbox.send(Command::Describe(reply));
        answer.recv().ok()
    }

    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.inner.mailbox
    }

    pub(crate) fn lanes(&self) -> &Memories {
        &self.inner.lanes
    }

    pub(crate) fn wakes(&self) -> &Memory {
        &self.inner.wakes
    }

    pub(crate) fn ledger(&self) -> &ProcessLedger {
        &self.inner.ledger
    }

    pub(crate) fn barrier(&self) -> Barrier {
        self.inner.barrier
    }

    pub(crate) fn guard(&self) -> ForkGuard {
        self.inner.guard
    }

    pub(crate) fn life(&self) -> LifeMark {
        self.inner.guard.life()
    }

    pub(crate) fn next_endpoint(&self) -> u32 {
        self.inner.next_endpoint.fetch_add(1, Ordering::Relaxed)
    }
}

static BARRIER: OnceLock<ProcessBarrier> = OnceLock::new();

/// The heavy half of the seat's barrier.
fn fence_every_thread() {
    let barrier = BARRIER.get().expect("a seat with this barrier is made only after it was registered");
    barrier.fence().expect("a registered membarrier does not fail");
}
