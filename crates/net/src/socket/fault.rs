//! What goes wrong, by order of the calls on this thread; and an error queue of a test's making.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use rustix::io::Errno;

use super::sys::Call;

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The call is not made, and this is its answer.
    Errno(Errno),
    /// The call is made for at most so many bytes.
    Short(usize),
    /// The call is not made and says that all went well.
    Lie,
    /// The call is made as it should be.
    None,
}

/// What the wire does wrong on purpose, to see that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// It takes a report for the sends after the ones that it is about.
    WrongRange,
    /// It reads no further report of a batch in which it found an error.
    SkippedOnError,
}

/// The control data of a message of an error queue, and whether it was cut short.
pub(super) type Message = (Vec<u8>, bool);

thread_local! {
    static PLAN: RefCell<Vec<(Call, Fault)>> = const { RefCell::new(Vec::new()) };
    static QUEUE: RefCell<Option<VecDeque<Message>>> = const { RefCell::new(None) };
    static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Has the wires of this thread make this mistake from now on, or none.
pub(super) fn plant(mutant: Option<Mutant>) {
    PLANTED.set(mutant);
}

/// Whether they do.
pub(super) fn is_planted(mutant: Mutant) -> bool {
    PLANTED.get() == Some(mutant)
}

/// Puts these messages behind what the error queue of every socket of this thread holds: from now on that is the
/// test's, and not the kernel's.
pub(super) fn queue(messages: impl IntoIterator<Item = Message>) {
    QUEUE.with_borrow_mut(|queue| queue.get_or_insert_default().extend(messages));
}

/// The next of them, up to so many; nothing if the error queue is the kernel's.
pub(super) fn messages(most: usize) -> Option<Vec<Message>> {
    QUEUE.with_borrow_mut(|queue| {
        let queue = queue.as_mut()?;
        Some(queue.drain(..most.min(queue.len())).collect())
    })
}

/// How many are left.
pub(super) fn queued() -> usize {
    QUEUE.with_borrow(|queue| queue.as_ref().map_or(0, VecDeque::len))
}

/// Plans what happens at the next call of that kind for which nothing is planned yet.
pub(super) fn plan(call: Call, fault: Fault) {
    PLAN.with_borrow_mut(|plan| plan.push((call, fault)));
}

/// Whether all that was planned has happened.
pub(super) fn all_happened() -> bool {
    PLAN.with_borrow(Vec::is_empty)
}

pub(super) fn take(call: Call) -> Fault {
    PLAN.with_borrow_mut(|plan| match plan.iter().position(|&(planned, _)| planned == call) {
        Some(at) => plan.remove(at).1,
        None => Fault::None,
    })
}
