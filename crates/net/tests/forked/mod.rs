//! Children of a test: forked, told to do one thing, and asked how it went.
//!
//! Every unsafe block lies in `sys.rs`.

pub(crate) mod sys;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a child answers when it panicked.
const PANICKED: i32 = 101;

/// Runs `work` in a forked process; panics if it did, whose message is on the child's standard error.
pub(crate) fn in_child(what: &str, work: impl FnOnce()) {
    let code = sys::in_fork(|| {
        std::panic::set_hook(Box::new(|panic| {
            let text = format!("in a child: {panic}\n");
            let _ = rustix::io::write(std::io::stderr(), text.as_bytes());
        }));
        catch_unwind(AssertUnwindSafe(work)).map_or(PANICKED, |()| 0)
    });
    assert_eq!(code.expect("a child"), 0, "{what}: it failed in the child, which said why");
}
