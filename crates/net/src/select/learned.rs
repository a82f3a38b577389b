//! What connections to one host learn from each other, and how a connection comes to its path.

use core::hash::Hash;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use super::{LEAST_DATAGRAM, Selection, Selector};
use crate::path::PathKind;

/// Hosts of which something is remembered.
const HOSTS: usize = 1024;
/// A connection that waits for another one to measure asks so often before it measures itself.
pub(super) const PATIENCE: u32 = 256;

/// How the path is chosen.
pub(crate) enum Choosing {
    /// This one, wherever it can be.
    Forced(PathKind),
    /// The cheapest of these, once there are pieces for which it matters.
    Cheapest { usable: Vec<PathKind>, selector: Option<Box<Selector>>, learned: Option<Experience> },
}

/// What the connections to one host have learned, for each other: who comes later need not measure everything anew, and
/// of those that begin together one measures.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    /// The selection that was decided last.
    latest: Option<Box<Selector>>,
    /// Who measures, and how often others have asked since.
    explorer: Option<u64>,
    asked: u32,
    next_id: u64,
}

/// The same, as connections hold it.
pub(crate) type Experience = Rc<RefCell<Learned>>;

/// What was learned by host; the hosts of a bounded number of connections are told apart.
#[derive(Debug)]
pub(crate) struct Experiences<H>(HashMap<H, Experience>);

impl<H> Default for Experiences<H> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<H: Eq + Hash> Experiences<H> {
    /// What is known of that host.
    pub(crate) fn of(&mut self, host: H) -> Experience {
        if self.0.len() >= HOSTS {
            // Whoever is connected still has its own.
            self.0.retain(|_, learned| Rc::strong_count(learned) > 1);
            if self.0.len() >= HOSTS {
                return Experience::default();
            }
        }
        Rc::clone(self.0.entry(host).or_default())
    }
}

impl Learned {
    /// Exchanges what is known with a selection that is about to pick a path.
    pub(super) fn meet(&mut self, selector: &mut Selector) {
        if selector.id == 0 {
            self.next_id += 1;
            selector.id = self.next_id;
        }
        if selector.settled {
            if core::mem::take(&mut selector.is_news) {
                self.latest = Some(Box::new(selector.clone()));
            }
            if self.explorer == Some(selector.id) {
                self.explorer = None;
            }
            return;
        }
        if let Some(latest) = &self.latest
            && (selector.changes == 0 || latest.decided > selector.changed)
        {
            selector.adopt(latest);
            return;
        }
        match self.explorer {
            Some(explorer) if explorer != selector.id => {
                self.asked += 1;
                selector.waits = self.asked < PATIENCE;
                if !selector.waits {
                    (self.explorer, self.asked) = (Some(selector.id), 0);
                }
            }
            _ => (self.explorer, self.asked, selector.waits) = (Some(selector.id), 0, false),
        }
    }
}

impl Choosing {
    /// What measures, before a path is picked.
    pub(crate) fn picking(&mut self) -> Option<&mut Selector> {
        let Self::Cheapest { usable, selector, learned } = self else { return None };
        let selector = selector.get_or_insert_with(|| Box::new(Selector::new(usable, Instant::now())));
        if let Some(learned) = learned.as_ref().filter(|_| !selector.settled || selector.is_news) {
            learned.borrow_mut().meet(selector);
        }
        Some(selector)
    }

    /// Has the selection learn from others, and they from it.
    pub(crate) fn learn_from(&mut self, others: &Experience) {
        if let Self::Cheapest { learned, .. } = self {
            *learned = Some(Rc::clone(others));
        }
    }

    /// What measures, if there is a choice and anything was measured.
    pub(crate) fn selector(&mut self) -> Option<&mut Selector> {
        match self {
            Self::Forced(_) => None,
            Self::Cheapest { selector, .. } => selector.as_deref_mut(),
        }
    }

    /// What is chosen, if there is a choice and anything was measured.
    pub(crate) fn selection(&self) -> Option<Selection> {
        match self {
            Self::Forced(_) => None,
            Self::Cheapest { selector, .. } => Some(selector.as_ref()?.selection()),
        }
    }

    /// The path for datagrams that carry so many bytes each.
    pub(crate) fn path_for_datagrams(&mut self, bytes: u32) -> PathKind {
        match self {
            Self::Forced(_) if bytes == 0 => PathKind::Write,
            Self::Forced(path) => *path,
            Self::Cheapest { .. } if bytes < LEAST_DATAGRAM => PathKind::Write,
            Self::Cheapest { .. } => self.picking().map_or(PathKind::Write, |selector| selector.pick_for(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_of_hosts_is_bounded() {
        let mut experiences = Experiences::<usize>::default();
        let kept: Vec<Experience> = (0..2 * HOSTS).map(|host| experiences.of(host)).collect();
        assert_eq!(experiences.0.len(), HOSTS);
        drop(kept);
        let one = experiences.of(usize::MAX);
        assert!(experiences.0.len() == 1 && Rc::strong_count(&one) == 2);
    }
}
