//! What goes wrong, by order of the calls on this thread.

use std::cell::RefCell;

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

thread_local! {
    static PLAN: RefCell<Vec<(Call, Fault)>> = const { RefCell::new(Vec::new()) };
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
