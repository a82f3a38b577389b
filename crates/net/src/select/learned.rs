//! What connections to one host learn from each other, and how a connection comes to its path.

use core::hash::Hash;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::{LEAST_DATAGRAM, Objective, Selection, Selector};
use crate::path::PathKind;

/// Hosts of which something is remembered.
const HOSTS: usize = 1024;
/// Who has sent nothing for so long no longer tries paths for the others.
const LEADS_FOR: Duration = Duration::from_millis(100);
/// How the path is chosen.
pub(crate) enum Choosing {
    /// This one, wherever it can be.
    Forced(PathKind),
    /// The cheapest of these, once there are pieces for which it matters.
    Cheapest {
        usable: &'static [PathKind],
        objective: Objective,
        /// What was decided, and is looked after for this connection alone; none before.
        own: Option<Box<Selector>>,
        /// What it is called among those it learns with, once it has asked for a path.
        id: Option<Rc<u64>>,
        learned: Experience,
    },
}

/// What the connections to one host have learned, for each other. Until something is decided they measure together, so
/// that those that begin together do not all try everything, and those that send little come to an end; who comes later
/// takes over what was decided last. From then on one of them that sends tries other paths for all: what it decides the
/// others take over.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    /// The selection that was decided last.
    latest: Option<Box<Selector>>,
    /// The one that is under way, who measured for it last, and whether others did.
    exploring: Option<Box<Selector>>,
    last: u64,
    is_shared: bool,
    next_id: u64,
    /// Who tries other paths, and when it sent last.
    leader: Weak<u64>,
    led: Option<Instant>,
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
    /// Finds out whether a connection that has decided tries other paths for all, tells the others what it has decided,
    /// and it what they have.
    fn lead(&mut self, token: &Rc<u64>, own: &mut Box<Selector>) {
        let leader = self.leader.upgrade();
        let is_gone = leader.is_none() || self.led.is_none_or(|led| own.now.saturating_duration_since(led) > LEADS_FOR);
        own.leads = is_gone || leader.is_some_and(|leader| Rc::ptr_eq(&leader, token));
        if own.leads {
            (self.leader, self.led) = (Rc::downgrade(token), Some(own.now));
        }
        if core::mem::take(&mut own.is_news) {
            self.latest = Some(own.clone());
        } else if let Some(latest) = &self.latest
            && !own.leads
            && latest.decided > own.decided
        {
            own.adopt(latest);
        }
    }
}

impl Choosing {
    /// The cheapest of these paths.
    pub(crate) fn among(usable: &'static [PathKind], objective: Objective) -> Self {
        Self::Cheapest { usable, objective, own: None, id: None, learned: Experience::default() }
    }

    /// A path, picked by what measures; none if one is forced.
    pub(crate) fn pick(&mut self, pick: impl FnOnce(&mut Selector) -> PathKind) -> Option<PathKind> {
        let Self::Cheapest { usable, objective, own, id, learned } = self else { return None };
        let mut learned = learned.borrow_mut();
        let learned = &mut *learned;
        let token = &*id.get_or_insert_with(|| {
            learned.next_id += 1;
            Rc::new(learned.next_id)
        });
        let id = **token;
        match own {
            Some(own) if own.settled => {
                learned.lead(token, own);
                return Some(pick(own));
            }
            // The wire has changed: others may know of it already, or find it out together with this one.
            Some(changed) => match &learned.latest {
                Some(latest) if latest.decided > changed.changed => changed.adopt(latest),
                _ if learned.exploring.is_none() => {
                    learned.exploring = own.take();
                    (learned.last, learned.is_shared) = (id, false);
                }
                _ => *own = None,
            },
            None => {}
        }
        if own.is_none()
            && learned.exploring.is_none()
            && let Some(latest) = &learned.latest
        {
            let mut new = Box::new(Selector::new(usable, *objective, Instant::now()));
            new.adopt(latest);
            *own = Some(new);
        }
        if let Some(own) = own {
            return Some(pick(own));
        }
        let exploring = learned.exploring.get_or_insert_with(|| {
            (learned.last, learned.is_shared) = (id, false);
            Box::new(Selector::new(usable, *objective, Instant::now()))
        });
        learned.is_shared |= learned.last != id;
        learned.last = id;
        Some(pick(exploring))
    }

    /// Tells what measures, if anything does, of what became of a call.
    pub(crate) fn tell<T>(&mut self, tell: impl FnOnce(&mut Selector) -> T) -> Option<T> {
        match self {
            Self::Cheapest { own: Some(own), .. } => Some(tell(own)),
            Self::Cheapest { id: Some(_), own, learned, .. } => {
                let mut learned = learned.borrow_mut();
                let told = learned.exploring.as_mut().map(|exploring| tell(exploring));
                // Something was decided: this one looks at it more closely, and the others take it over.
                if let Some(mut settled) = learned.exploring.take_if(|exploring| exploring.settled) {
                    settled.is_news = false;
                    if learned.is_shared {
                        // What all carried together says nothing about what this one does.
                        settled.forget_rates();
                    }
                    learned.latest = Some(settled.clone());
                    *own = Some(settled);
                }
                told
            }
            _ => None,
        }
    }

    /// Has the selection learn from others, and they from it.
    pub(crate) fn learn_from(&mut self, others: &Experience) {
        if let Self::Cheapest { learned, .. } = self {
            *learned = Rc::clone(others);
        }
    }

    /// What is chosen, if there is a choice and anything was measured.
    pub(crate) fn selection(&self) -> Option<Selection> {
        match self {
            Self::Cheapest { own: Some(own), .. } => Some(own.selection()),
            Self::Cheapest { id: Some(_), learned, .. } => {
                let learned = learned.borrow();
                Some(learned.exploring.as_ref().or(learned.latest.as_ref())?.selection())
            }
            _ => None,
        }
    }

    /// The path for datagrams that carry so many bytes each.
    pub(crate) fn path_for_datagrams(&mut self, bytes: u32) -> PathKind {
        match self {
            Self::Forced(_) if bytes == 0 => PathKind::Write,
            Self::Forced(path) => *path,
            Self::Cheapest { .. } if bytes < LEAST_DATAGRAM => PathKind::Write,
            Self::Cheapest { .. } => self.pick(|selector| selector.pick_for(bytes)).unwrap_or(PathKind::Write),
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
