//! Paths that a connection was refused, each with its first reason, and which of them the user was not told of yet.

use core::fmt;

use crate::path::{PathKind, Refusals};

#[derive(Debug, Default)]
struct First {
    reasons: Refusals,
    untold: u8,
}

/// What was refused. It takes no memory beside a pointer as long as that is nothing.
#[derive(Debug, Default)]
pub(crate) struct Refused(Option<Box<First>>);

impl Refused {
    /// Notes that a path was refused; the first reason counts.
    pub(crate) fn note(&mut self, path: PathKind, reason: &dyn fmt::Display) {
        let First { reasons, untold } = &mut **self.0.get_or_insert_default();
        let first = &mut reasons[path as usize];
        if first.is_none() {
            *first = Some(reason.to_string());
            *untold |= 1 << path as u8;
        }
    }

    /// The reasons so far.
    pub(crate) fn reasons(&self) -> &Refusals {
        const NONE: &Refusals = &[const { None }; PathKind::ALL.len()];
        self.0.as_ref().map_or(NONE, |some| &some.reasons)
    }

    /// A path that was refused and not told of, and why; it is told by this.
    pub(crate) fn take_untold(&mut self) -> Option<(PathKind, String)> {
        let First { reasons, untold } = &mut **self.0.as_mut()?;
        let path = PathKind::ALL.into_iter().find(|&path| *untold & (1 << path as u8) != 0)?;
        *untold &= !(1 << path as u8);
        Some((path, reasons[path as usize].clone().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_is_told_once_with_its_first_reason() {
        let mut refused = Refused::default();
        assert_eq!((refused.take_untold(), refused.reasons().iter().flatten().count()), (None, 0));
        for (path, reason) in [(PathKind::Splice, "one"), (PathKind::ZeroCopy, "two"), (PathKind::Splice, "three")] {
            refused.note(path, &reason);
        }
        let told: Vec<_> = std::iter::from_fn(|| refused.take_untold()).collect();
        assert_eq!(told, [(PathKind::ZeroCopy, "two".into()), (PathKind::Splice, "one".into())]);
        refused.note(PathKind::Splice, &"four");
        assert_eq!(refused.take_untold(), None);
        assert_eq!(refused.reasons()[PathKind::Splice as usize].as_deref(), Some("one"));
    }
}
