//! A model of io_uring under the ring's own code, for tests: what the ring pushes, enters and takes goes to a kernel of
//! a test's making that is slow, partial, forgetful and out of order, and that knows what it still reads.
//!
//! In unit tests the ring's [`Kernel`] and [`Queue`] are the ones of this module: they pass everything on to the real
//! ones, unless a test has put up a [`Model`] for the next ring of its thread.
//!
//! ```text
//!  push ──▶ submissions ──▶ tasks ──▶ work ──▶ completions ──▶ pop
//!                │            │         └─ (full) ─▶ overflow ─▶┘
//!                └ not taken  └ read memory until their notification
//! ```
//!
//! # Invariants
//! - The model accepts the first bytes of a request, as a stream does.
//! - A task reads its bytes from when it was taken until its first completion, and those that it accepted until its
//!   notification if the first completion carries `F_MORE`. A request that was not taken is read if it is taken later.
//! - Time is counted in calls, so that nothing sleeps.
//!
//! # What this does not do
//! It does not double what it receives: nothing tells such a completion from the next one for the same slot. And it
//! writes no byte, for which it would need unsafe code.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use zcmi_mem::fork::ForkGuard;
use zcmi_mem::region::Span;
use zcmi_mem::registration::Support;

use super::sys::{self, Completion, Mode, Request};
use crate::dice::Dice;

mod tests;

// io_uring.h of the kernel: IORING_CQE_F_BUFFER, IORING_CQE_F_MORE, IORING_CQE_F_NOTIF, IORING_NOTIF_USAGE_ZC_COPIED.
const BUFFER: u32 = 1;
const MORE: u32 = 1 << 1;
const NOTIFICATION: u32 = 1 << 3;
const BUFFER_SHIFT: u32 = 16;
const COPIED: i32 = i32::MIN;

/// Places of the submission queue.
const PLACES: usize = 8;
const NEVER: u64 = u64::MAX;

/// What the ring does wrong on purpose, to see that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// Bytes are free when the first completion has come, whether or not a notification is owed.
    ReleasedAtFirst,
    /// No notification is waited for after an error.
    ErrorOwesNothing,
}

thread_local! {
    static NEXT: RefCell<Option<Handle>> = const { RefCell::new(None) };
    static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Whether the ring is to make this mistake.
pub(super) fn is_planted(mutant: Mutant) -> bool {
    PLANTED.get() == Some(mutant)
}

type Handle = Arc<Mutex<Model>>;

fn lock(model: &Handle) -> MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An io_uring, or a model of one.
pub(super) enum Kernel {
    Opened(Box<sys::Kernel>),
    Real(Arc<sys::Kernel>),
    Model { model: Handle, life: ForkGuard, file: File },
}

impl Kernel {
    pub(super) fn open(mode: Mode, completions: u32, life: ForkGuard) -> io::Result<Self> {
        let Some(model) = NEXT.take() else {
            return sys::Kernel::open(mode, completions, life).map(|kernel| Self::Opened(Box::new(kernel)));
        };
        if (mode == Mode::Deferred) != lock(&model).temper.deferred {
            NEXT.set(Some(model));
            return Err(Errno::INVAL.into());
        }
        Ok(Self::Model { model, life, file: File::open("/dev/null")? })
    }

    fn real(&self) -> Result<&sys::Kernel, &Handle> {
        match self {
            Self::Opened(kernel) => Ok(kernel),
            Self::Real(kernel) => Ok(kernel),
            Self::Model { model, .. } => Err(model),
        }
    }

    pub(super) fn life(&self) -> ForkGuard {
        if let Self::Model { life, .. } = self { *life } else { self.real().map(sys::Kernel::life).expect("real") }
    }

    pub(super) fn missing(&self) -> Option<&'static str> {
        self.real().ok()?.missing()
    }

    pub(super) fn bundles(&self) -> Support {
        match self.real() {
            Ok(kernel) => kernel.bundles(),
            Err(model) if lock(model).temper.bundles => Support::Yes,
            Err(_) => Support::No("it is a model without them".into()),
        }
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        if let Self::Model { file, .. } = self { file.as_fd() } else { self.real().expect("real").descriptor() }
    }

    pub(super) fn buffer_table(&self, entries: u32) -> io::Result<()> {
        self.real().map_or(Ok(()), |kernel| kernel.buffer_table(entries))
    }

    pub(super) fn register_buffer(&self, index: u16, span: &Span, begin: usize, len: usize) -> io::Result<()> {
        match self.real() {
            Ok(kernel) => kernel.register_buffer(index, span, begin, len),
            Err(model) => {
                let begin = span.base().as_ptr().addr() + begin;
                lock(model).register(index, begin..begin + len)
            }
        }
    }

    pub(super) fn unregister_buffer(&self, index: u16) -> io::Result<()> {
        match self.real() {
            Ok(kernel) => kernel.unregister_buffer(index),
            Err(model) => {
                lock(model).unregister(index);
                Ok(())
            }
        }
    }
}

/// The queues of a ring, or of a model.
pub(super) struct Queue {
    kernel: Arc<Kernel>,
    real: Option<sys::Queue>,
}

impl Queue {
    pub(super) fn new(kernel: Kernel) -> Self {
        match kernel {
            Kernel::Opened(kernel) => {
                let queue = sys::Queue::new(*kernel);
                Self { kernel: Arc::new(Kernel::Real(Arc::clone(queue.kernel()))), real: Some(queue) }
            }
            other => Self { kernel: Arc::new(other), real: None },
        }
    }

    pub(super) fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    fn parts(&mut self) -> Result<&mut sys::Queue, MutexGuard<'_, Model>> {
        match (&mut self.real, &*self.kernel) {
            (Some(queue), _) => Ok(queue),
            (None, Kernel::Model { model, .. }) => Err(lock(model)),
            _ => unreachable!("a kernel that is no model has real queues"),
        }
    }

    pub(super) fn push(&mut self, request: Request<'_>, more: bool, word: u64) -> bool {
        match self.parts() {
            Ok(queue) => queue.push(request, more, word),
            Err(mut model) => model.push(request, word),
        }
    }

    pub(super) fn unsubmitted(&mut self) -> usize {
        match self.parts() {
            Ok(queue) => queue.unsubmitted(),
            Err(model) => model.submissions.len(),
        }
    }

    pub(super) fn has_work(&mut self) -> bool {
        match self.parts() {
            Ok(queue) => queue.has_work(),
            Err(mut model) => model.has_work(),
        }
    }

    pub(super) fn enter(&mut self, submit: bool, patience: Option<Duration>) -> io::Result<()> {
        match self.parts() {
            Ok(queue) => queue.enter(submit, patience),
            Err(mut model) => Ok(model.enter(submit, patience.is_some())?),
        }
    }

    pub(super) fn pop(&mut self) -> Option<Completion> {
        match self.parts() {
            Ok(queue) => queue.pop(),
            Err(mut model) => model.pop(),
        }
    }
}

/// A queue of buffers to receive into, or a model's.
pub(super) enum BufferRing {
    Real(sys::BufferRing),
    Model(Handle),
}

impl BufferRing {
    pub(super) fn new(kernel: &Arc<Kernel>, count: u16) -> Result<Self, (&'static str, io::Error)> {
        match &**kernel {
            Kernel::Real(kernel) => sys::BufferRing::new(kernel, count).map(Self::Real),
            Kernel::Model { model, .. } => Ok(Self::Model(Arc::clone(model))),
            Kernel::Opened(_) => unreachable!("a kernel whose queues were made is another variant"),
        }
    }

    pub(super) fn push(&mut self, buffer: &mut [u8], number: u16) -> u16 {
        match self {
            Self::Real(ring) => ring.push(buffer, number),
            Self::Model(model) => {
                let (mut model, range) = (lock(model), range(buffer));
                model.lengths.insert(place_of(number), range.len());
                model.buffers.push_back((number, range));
                place_of(number)
            }
        }
    }

    pub(super) fn len(&self, place: u16) -> usize {
        match self {
            Self::Real(ring) => ring.len(place),
            Self::Model(model) => lock(model).lengths[&place],
        }
    }

    pub(super) fn end(&mut self) -> bool {
        match self {
            Self::Real(ring) => ring.end(),
            Self::Model(model) => {
                lock(model).buffers.clear();
                true
            }
        }
    }
}

/// Where the entry of a buffer lies: not where its number says.
fn place_of(number: u16) -> u16 {
    number + 1000
}

fn range(bytes: &[u8]) -> Range<usize> {
    let at = bytes.as_ptr().addr();
    at..at + bytes.len()
}

fn overlap(one: &Range<usize>, two: &Range<usize>) -> bool {
    one.start < two.end && two.start < one.end
}

/// How the model treats the ring: so many times in a thousand, where nothing else is said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Temper {
    /// Whether it posts only when asked.
    deferred: bool,
    /// Whether several segments can go from one registered buffer.
    vectors: bool,
    /// Whether one completion can fill several slots.
    bundles: bool,
    /// Places of the completion queue.
    completions: usize,
    /// The longest that a notification takes, in calls.
    delay: u64,
    /// It takes nothing now: busy, interrupted, or without a word.
    busy: u64,
    /// In a million: it refuses a call for good.
    broken: u64,
    /// In a million: it is busy for longer than the ring asks.
    storm: u64,
    /// A first completion comes later than its submission.
    late: u64,
    /// In a million: so late that the ring cancels, or never.
    stuck: u64,
    /// It does not take a cancel, for good.
    uncancelled: u64,
    /// In ten thousand: a notification never comes.
    silent: u64,
    /// A completion comes twice.
    doubled: u64,
    /// A completion overtakes others, or a notification its first completion.
    reordered: u64,
    /// A send is refused.
    failed: u64,
    /// A send is accepted in part.
    short: u64,
    /// A send that was accepted owes no notification.
    bare: u64,
}

/// A kernel that does what it is asked to, at once.
const CALM: Temper = Temper {
    deferred: true,
    vectors: false,
    bundles: false,
    completions: 32,
    delay: 5,
    busy: 0,
    broken: 0,
    storm: 0,
    late: 0,
    stuck: 0,
    uncancelled: 0,
    silent: 0,
    doubled: 0,
    reordered: 0,
    failed: 0,
    short: 0,
    bare: 0,
};

/// Has the next ring of this thread be a model that does what it is asked to, but for its first request: that it takes,
/// never answers, and does not let go.
pub(crate) fn lose_first_of_next_ring() {
    let mut model = Model::new(1, Temper { deferred: false, uncancelled: 1000, ..CALM });
    model.mute = Some(1);
    NEXT.set(Some(Arc::new(Mutex::new(model))));
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Copied,
    ZeroCopy,
    Cancel(u64),
    Receive,
}

/// A request.
#[derive(Clone, Debug)]
struct Task {
    /// Tells it from all others.
    number: u64,
    word: u64,
    kind: Kind,
    /// What it may read now.
    reads: Vec<Range<usize>>,
    buffer: Option<u16>,
    /// When the first completion is due; nothing after it came.
    first: Option<u64>,
    /// When the notification is due, after the first completion said that there will be one.
    notification: Option<u64>,
    result: Result<usize, Errno>,
    more: bool,
}

/// A completion, and the request that is settled by it.
#[derive(Clone, Copy, Debug)]
struct Posted {
    completion: Completion,
    settles: Option<u64>,
    /// And the one whose first it is.
    answers: Option<u64>,
}

/// The kernel's side.
#[derive(Debug)]
pub(super) struct Model {
    dice: Dice,
    temper: Temper,
    now: u64,
    next: u64,
    submissions: VecDeque<Task>,
    tasks: Vec<Task>,
    work: Vec<Posted>,
    /// Completions that come once more, and when.
    echoes: Vec<(u64, Posted)>,
    completions: VecDeque<Posted>,
    overflow: VecDeque<Posted>,
    /// Requests that were taken and of which the ring has not popped the last word.
    unsettled: HashSet<u64>,
    /// Those of which it has not popped the first.
    unanswered: HashSet<u64>,
    table: HashMap<u16, Range<usize>>,
    buffers: VecDeque<(u16, Range<usize>)>,
    /// The bytes of each buffer, by the place of its entry, as that says them.
    lengths: HashMap<u16, usize>,
    /// How many bytes it wrote into a buffer that begins there.
    written: HashMap<usize, usize>,
    /// The number of a request that is never answered, where a test says so.
    mute: Option<u64>,
    /// How many calls it is still busy for.
    storm: u32,
    /// What was accepted since the test looked last, in order.
    accepted: Vec<Range<usize>>,
    pushes: u64,
    enters: u64,
    storms: u64,
    /// What the ring did that it must not; the first.
    wrong: Option<String>,
    tally: Tally,
}

/// How often what happened, so that a test can see that it did.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    taken: u64,
    short: u64,
    refused_owing: u64,
    refused_owing_nothing: u64,
    notified: u64,
    overtaken: u64,
    doubled: u64,
    silent: u64,
    overflowed: u64,
    busy: u64,
    storms: u64,
    broken: u64,
    stuck: u64,
    cancelled: u64,
    not_cancelled: u64,
    uncancelled: u64,
    received: u64,
    bundled: u64,
    shortened: u64,
}

impl Model {
    fn new(seed: u64, temper: Temper) -> Self {
        Self {
            dice: Dice::new(seed),
            temper,
            now: 0,
            next: 0,
            submissions: VecDeque::new(),
            tasks: Vec::new(),
            work: Vec::new(),
            echoes: Vec::new(),
            completions: VecDeque::new(),
            overflow: VecDeque::new(),
            unsettled: HashSet::new(),
            unanswered: HashSet::new(),
            table: HashMap::new(),
            buffers: VecDeque::new(),
            lengths: HashMap::new(),
            written: HashMap::new(),
            mute: None,
            storm: 0,
            accepted: Vec::new(),
            pushes: 0,
            enters: 0,
            storms: 0,
            wrong: None,
            tally: Tally::default(),
        }
    }

    /// So many times in a thousand.
    fn often(&mut self, times: u64) -> bool {
        self.dice.below(1000) < times
    }

    fn seldom(&mut self, times: u64) -> bool {
        self.dice.below(1_000_000) < times
    }

    fn one_of<T: Copy, const N: usize>(&mut self, all: [T; N]) -> T {
        all[self.dice.below(N as u64) as usize]
    }

    fn fault(&mut self, what: impl FnOnce() -> String) {
        self.wrong.get_or_insert_with(what);
    }

    /// Whether it may still read some of these bytes.
    fn is_reading(&self, bytes: &Range<usize>) -> bool {
        self.tasks.iter().flat_map(|task| &task.reads).any(|read| overlap(read, bytes))
    }

    /// Whether it may still write into these bytes.
    fn is_writing(&self, bytes: &Range<usize>) -> bool {
        self.buffers.iter().any(|(_, buffer)| overlap(buffer, bytes))
    }

    /// How many buffers it has not filled; nothing while it has not told of all that it did fill.
    fn unfilled(&self) -> Option<usize> {
        let mut posted = self.work.iter().chain(&self.completions).chain(&self.overflow);
        posted.all(|posted| posted.completion.buffer().is_none()).then_some(self.buffers.len())
    }

    /// Whether a request is not settled that uses a registered buffer in these bytes.
    fn uses(&self, bytes: &Range<usize>) -> bool {
        let of = |index: &u16| self.table.get(index).is_some_and(|place| overlap(place, bytes));
        self.tasks.iter().any(|task| task.buffer.as_ref().is_some_and(of))
    }

    /// Requests that will never end.
    fn endless(&self) -> usize {
        let never = |task: &&Task| task.first == Some(NEVER) || task.notification == Some(NEVER);
        self.tasks.iter().filter(never).count()
    }

    fn register(&mut self, index: u16, bytes: Range<usize>) -> io::Result<()> {
        if self.often(self.temper.failed) {
            return Err(Errno::NOMEM.into());
        }
        if self.table.insert(index, bytes).is_some() {
            self.fault(|| format!("place {index} of the table was given twice"));
        }
        Ok(())
    }

    fn unregister(&mut self, index: u16) {
        let task = self.tasks.iter().find(|task| task.buffer == Some(index)).map(|task| task.number);
        if let Some(task) = task {
            self.fault(|| format!("place {index} of the table was taken back, which request {task} uses"));
        }
        if self.table.remove(&index).is_none() {
            self.fault(|| format!("place {index} of the table was taken back, which was not given"));
        }
    }

    fn push(&mut self, request: Request<'_>, word: u64) -> bool {
        self.pushes += 1;
        if self.submissions.len() == PLACES || self.seldom(self.temper.broken) {
            return false;
        }
        let (kind, reads, buffer) = match request {
            Request::Copied { bytes, .. } => (Kind::Copied, vec![range(bytes)], None),
            Request::Fixed { bytes, buffer, .. } => (Kind::ZeroCopy, vec![range(bytes)], Some(buffer)),
            Request::Message { segments, zero_copy, buffer, .. } => {
                let reads = segments.iter().take(sys::PARTS).map(|segment| range(segment.bytes));
                let reads = reads.filter(|range| range.start < range.end).collect();
                (if zero_copy { Kind::ZeroCopy } else { Kind::Copied }, reads, buffer)
            }
            Request::Receive { .. } => (Kind::Receive, Vec::new(), None),
            Request::Cancel { word } => (Kind::Cancel(word), Vec::new(), None),
        };
        self.next += 1;
        let number = self.next;
        let (first, notification, result, more) = (None, None, Ok(0), false);
        self.submissions.push_back(Task { number, word, kind, reads, buffer, first, notification, result, more });
        true
    }

    /// Takes a request, and decides what becomes of it.
    fn take(&mut self, mut task: Task) {
        self.tally.taken += 1;
        if let Some(index) = task.buffer {
            let place = self.table.get(&index).cloned().unwrap_or(0..0);
            if task.reads.iter().any(|read| read.start < place.start || place.end < read.end) {
                self.fault(|| format!("a request names place {index} of the table for bytes that lie elsewhere"));
            }
        }
        let zero_copy = task.kind == Kind::ZeroCopy;
        let total: usize = task.reads.iter().map(Range::len).sum();
        let several = task.reads.len() > 1 && task.buffer.is_some();
        match task.kind {
            Kind::Receive => return self.tasks.push(task),
            Kind::Cancel(of) => {
                task.result = self.cancel(of);
                task.first = Some(self.now + self.dice.below(4));
                return self.tasks.push(task);
            }
            _ if several && !self.temper.vectors => task.result = Err(Errno::INVAL),
            _ if self.often(self.temper.failed) => {
                let errors =
                    [Errno::AGAIN, Errno::NOBUFS, Errno::NOMEM, Errno::PIPE, Errno::CONNRESET, Errno::OPNOTSUPP];
                task.result = Err(self.one_of(errors));
            }
            _ if self.often(self.temper.short) => task.result = Ok(self.dice.below(total as u64) as usize),
            _ => task.result = Ok(total),
        }
        task.more = zero_copy && if task.result.is_ok() { !self.often(self.temper.bare) } else { self.often(500) };
        let late = match () {
            () if self.mute == Some(task.number) => NEVER,
            () if self.seldom(self.temper.stuck) => {
                self.tally.stuck += 1;
                if self.often(300) { NEVER } else { 30 + self.dice.below(120) }
            }
            () if self.often(self.temper.late) => 1 + self.dice.below(8),
            () => 0,
        };
        task.first = Some(self.now.saturating_add(late));
        self.unsettled.insert(task.number);
        self.unanswered.insert(task.number);
        self.tasks.push(task);
    }

    fn cancel(&mut self, word: u64) -> Result<usize, Errno> {
        let receives = |task: &Task| task.kind == Kind::Receive && task.word == word;
        if let Some(at) = self.tasks.iter().position(receives) {
            let task = self.tasks.remove(at);
            self.post(task.word, -Errno::CANCELED.raw_os_error(), 0, [None; 2]);
            return Ok(0);
        }
        let Some(at) = self.tasks.iter().position(|task| task.word == word && task.first.is_some()) else {
            return Err(Errno::NOENT);
        };
        let soon = self.now + self.dice.below(4);
        let (roll, more) = (self.dice.below(100), self.often(500));
        let task = &mut self.tasks[at];
        if roll < 60 && self.mute != Some(task.number) {
            task.result = Err(Errno::CANCELED);
            (task.first, task.more) = (Some(soon), more && task.kind == Kind::ZeroCopy);
            self.tally.cancelled += 1;
            return Ok(0);
        }
        self.tally.not_cancelled += 1;
        // It could not be, and ends because its socket was shut down; or not.
        if roll < 85 && self.mute != Some(task.number) {
            task.first = Some(soon);
        }
        Err(if roll % 2 == 0 { Errno::ALREADY } else { Errno::NOENT })
    }

    fn post(&mut self, word: u64, result: i32, flags: u32, of: [Option<u64>; 2]) {
        let [answers, settles] = of;
        let posted = Posted { completion: Completion::new(word, result, flags), settles, answers };
        self.work.push(posted);
        if flags & BUFFER == 0 && self.often(self.temper.doubled) {
            self.tally.doubled += 1;
            let when = self.now + if self.often(500) { 0 } else { self.dice.below(3 * self.temper.delay) };
            self.echoes.push((when, posted));
        }
    }

    /// A moment passes.
    fn advance(&mut self) {
        self.now += 1;
        let now = self.now;
        let mut at = 0;
        while at < self.tasks.len() {
            if self.tasks[at].kind == Kind::Receive {
                at += usize::from(self.receive(at));
                continue;
            }
            if self.tasks[at].first.is_some_and(|due| due <= now) {
                self.answer(at);
            }
            let task = &self.tasks[at];
            if task.first.is_none() && task.notification.is_none_or(|due| due <= now) {
                self.finish(at);
            } else {
                at += 1;
            }
        }
        let echoes = core::mem::take(&mut self.echoes);
        let (due, later) = echoes.into_iter().partition(|&(when, _)| when <= now);
        self.echoes = later;
        self.work.extend(due.into_iter().map(|(_, posted)| posted));
        if !self.temper.deferred {
            self.flush();
        }
    }

    /// The first completion of a request.
    fn answer(&mut self, at: usize) {
        let (delay, silent) = (self.dice.below(self.temper.delay), self.dice.below(10_000) < self.temper.silent);
        let (overtakes, soon) = (self.often(self.temper.reordered), self.often(400));
        let task = &mut self.tasks[at];
        task.first = None;
        let bytes = task.result.unwrap_or(0);
        let (word, number, more) = (task.word, task.number, task.more);
        let result = task.result.map_or_else(|errno| -errno.raw_os_error(), |bytes| bytes as i32);
        if !matches!(task.kind, Kind::Copied | Kind::ZeroCopy) {
            return self.post(word, result, 0, [None; 2]);
        }
        // What it did not accept it does not read any more, and the rest only if it says so later.
        let mut left = bytes;
        for read in &mut task.reads {
            let some = read.len().min(left);
            left -= some;
            read.end = read.start + some;
        }
        task.reads.retain(|read| !read.is_empty());
        self.accepted.extend(task.reads.iter().cloned());
        let short = task.result.is_ok() && left == 0;
        if more {
            task.notification = Some(if silent { NEVER } else { self.now + if soon { 0 } else { delay } });
        } else {
            task.reads.clear();
        }
        let (refused, never) = (task.result.is_err(), more && silent);
        self.tally.short += u64::from(short && bytes > 0);
        self.tally.refused_owing += u64::from(refused && more);
        self.tally.refused_owing_nothing += u64::from(refused && !more);
        self.tally.silent += u64::from(never);
        if more && overtakes && !never {
            // The notification first.
            self.tally.overtaken += 1;
            let task = &mut self.tasks[at];
            (task.notification, task.more) = (None, false);
            task.reads.clear();
            self.post(word, 0, NOTIFICATION, [None, Some(number)]);
            self.post(word, result, MORE, [Some(number), None]);
            return;
        }
        self.post(word, result, if more { MORE } else { 0 }, [Some(number), (!more).then_some(number)]);
    }

    /// The end of a request: its notification, if it owes one.
    fn finish(&mut self, at: usize) {
        let task = self.tasks.swap_remove(at);
        if task.notification.is_some() {
            self.tally.notified += 1;
            let copied = if self.often(500) { COPIED } else { 0 };
            self.post(task.word, copied, NOTIFICATION, [None, Some(task.number)]);
        }
    }

    /// What a socket that was armed delivers; whether it still is.
    fn receive(&mut self, at: usize) -> bool {
        if !self.often(150) {
            return true;
        }
        let word = self.tasks[at].word;
        if self.often(100)
            && let Some((number, _)) = self.buffers.front()
        {
            // It expects fewer bytes than the first buffer has room for, says so in its entry, and they do not come.
            let place = place_of(*number);
            let length = self.lengths[&place];
            let shorter = 1 + self.dice.below(length as u64) as usize;
            self.tally.shortened += u64::from(shorter < length);
            self.lengths.insert(place, shorter);
        }
        if self.often(60) {
            let result = self.one_of([0, -Errno::CONNRESET.raw_os_error()]);
            self.post(word, result, 0, [None; 2]);
        } else if let Some((number, mut last_one)) = self.buffers.pop_front() {
            self.tally.received += 1;
            // Of several all but the last are full.
            let (mut full, mut length) = (0, self.lengths[&place_of(number)]);
            while self.temper.bundles && self.often(500) {
                let Some((next, buffer)) = self.buffers.pop_front() else { break };
                self.tally.bundled += 1;
                self.written.insert(last_one.start, length);
                full += length;
                (last_one, length) = (buffer, self.lengths[&place_of(next)]);
            }
            let rest = 1 + self.dice.below(length as u64) as usize;
            self.written.insert(last_one.start, rest);
            let bytes = (full + rest) as i32;
            let last = self.often(50);
            let flags = BUFFER | u32::from(number) << BUFFER_SHIFT | if last { 0 } else { MORE };
            self.post(word, bytes, flags, [None; 2]);
            if !last {
                return true;
            }
        } else {
            self.post(word, -Errno::NOBUFS.raw_os_error(), 0, [None; 2]);
        }
        self.tasks.swap_remove(at);
        false
    }

    /// Posts what there is, as far as there is room.
    fn flush(&mut self) {
        while self.completions.len() < self.temper.completions
            && let Some(posted) = self.overflow.pop_front()
        {
            self.completions.push_back(posted);
        }
        for posted in core::mem::take(&mut self.work) {
            if self.completions.len() >= self.temper.completions || !self.overflow.is_empty() {
                self.tally.overflowed += 1;
                self.overflow.push_back(posted);
            } else if self.often(self.temper.reordered) {
                let at = self.dice.below(self.completions.len() as u64 + 1) as usize;
                self.completions.insert(at, posted);
            } else {
                self.completions.push_back(posted);
            }
        }
    }

    fn has_work(&mut self) -> bool {
        self.advance();
        !self.work.is_empty() || !self.overflow.is_empty()
    }

    fn enter(&mut self, submit: bool, wait: bool) -> Result<(), Errno> {
        self.enters += 1;
        let answer = if submit { self.submit() } else { Ok(()) };
        self.advance();
        self.flush();
        if self.seldom(self.temper.broken) {
            self.tally.broken += 1;
            return Err(self.one_of([Errno::NOMEM, Errno::BADF, Errno::FAULT, Errno::NXIO]));
        }
        if wait && answer.is_ok() {
            let quiet = self.completions.is_empty() && self.echoes.is_empty();
            if quiet && self.tasks.iter().all(|task| task.kind == Kind::Receive) {
                self.fault(|| "the ring waits, and nothing is owed to it".into());
            }
            return if self.completions.is_empty() { Err(Errno::TIME) } else { Ok(()) };
        }
        answer
    }

    fn submit(&mut self) -> Result<(), Errno> {
        self.flush();
        if !self.overflow.is_empty() {
            return Err(Errno::BUSY);
        }
        if self.storm == 0 && self.seldom(self.temper.storm) {
            self.storm = 500 + self.dice.below(1000) as u32;
            self.storms += 1;
            self.tally.storms += 1;
        }
        self.storm = self.storm.saturating_sub(1);
        if self.storm > 0 || self.often(self.temper.busy) {
            self.tally.busy += 1;
            let errno = self.one_of([Errno::AGAIN, Errno::BUSY, Errno::INTR]);
            // Sometimes it does not even say so.
            return if self.often(200) { Ok(()) } else { Err(errno) };
        }
        while let Some(task) = self.submissions.pop_front() {
            if matches!(task.kind, Kind::Cancel(_)) && self.often(self.temper.uncancelled) {
                self.submissions.push_front(task);
                self.tally.uncancelled += 1;
                return Err(Errno::NXIO);
            }
            self.take(task);
        }
        // What was taken stays taken, whatever the call returns.
        if self.often(20) { Err(Errno::INTR) } else { Ok(()) }
    }

    fn pop(&mut self) -> Option<Completion> {
        let posted = self.completions.pop_front()?;
        if let Some(number) = posted.settles {
            self.unsettled.remove(&number);
        }
        if let Some(number) = posted.answers {
            self.unanswered.remove(&number);
        }
        Some(posted.completion)
    }
}
