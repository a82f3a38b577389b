//! Audiences: who, besides our own user, may read what an endpoint shares.
//!
//! An audience belongs to an endpoint and to the regions that are made for it, and never changes. Our own user is in
//! every one. Who somebody is says the kernel (`SO_PEERCRED`, `SO_PEERGROUPS`), when the connection is made; neither a
//! file nor a message decides it.
//!
//! Invariant: the overflow user and group (65534), which stand for everybody that a user namespace does not know, are
//! in no audience, not even in everybody's.

use std::collections::BTreeSet;

use crate::socket::{OVERFLOW_UID, is_same_user};

/// Some of the users of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// The user with this number.
    User(u32),
    /// Every user whose process has this group, as its own or beside it.
    Group(u32),
    /// Every user.
    Everybody,
}

/// The users that may read a region or join a service, besides our own.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Audience(BTreeSet<Who>);

/// Who is at the other end of a connection, with all groups where that matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The supplementary groups; not asked for of our own user.
    pub(crate) groups: Vec<u32>,
}

impl Identity {
    /// Whether it is the user that this process acts as.
    pub(crate) fn is_own_user(&self) -> bool {
        is_same_user(self.uid, rustix::process::geteuid().as_raw())
    }

    fn is(&self, who: Who) -> bool {
        match who {
            Who::User(uid) => uid == self.uid,
            Who::Group(gid) => gid != OVERFLOW_UID && (gid == self.gid || self.groups.contains(&gid)),
            Who::Everybody => true,
        }
    }
}

impl Audience {
    /// Our own user alone.
    pub(crate) const fn of_nobody() -> Self {
        Self(BTreeSet::new())
    }

    /// One user besides our own.
    pub(crate) fn user(uid: u32) -> Self {
        Self(BTreeSet::from([Who::User(uid)]))
    }

    pub(crate) fn add(&mut self, who: Who) {
        self.0.insert(who);
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// Whether nobody but our own user is in it.
    pub(crate) fn is_own_user(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn is_everybody(&self) -> bool {
        self.0.contains(&Who::Everybody)
    }

    /// Who is in it besides our own user, users before groups, each ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Who> {
        self.0.iter().copied()
    }

    /// Whether this somebody is in it.
    pub(crate) fn includes(&self, identity: &Identity) -> bool {
        identity.is_own_user() || (identity.uid != OVERFLOW_UID && self.0.iter().any(|&who| identity.is(who)))
    }

    /// Whether a process of this user can be in it, as far as that can be told without knowing its groups.
    pub(crate) fn may_include(&self, uid: u32) -> bool {
        let of_user = |&who: &Who| matches!(who, Who::Group(_)) || who == Who::User(uid) || who == Who::Everybody;
        is_same_user(uid, rustix::process::geteuid().as_raw()) || (uid != OVERFLOW_UID && self.0.iter().any(of_user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn somebody(uid: u32, gid: u32, groups: &[u32]) -> Identity {
        Identity { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn an_audience_is_our_own_user_and_whom_it_names() {
        let (user, other) = (ours() + 1, ours() + 2);
        let mut audience = Audience::default();
        assert!(audience.is_own_user() && audience.includes(&somebody(ours(), 1, &[])));
        assert!(!audience.includes(&somebody(user, 1, &[])));
        audience.add(Who::User(user));
        audience.add(Who::Group(70));
        assert!(audience.includes(&somebody(user, 1, &[])) && !audience.includes(&somebody(other, 1, &[])));
        assert!(audience.includes(&somebody(other, 70, &[])) && audience.includes(&somebody(other, 1, &[2, 70])));
        assert!(audience.may_include(other), "its groups are not known");
        assert!(!Audience::user(user).may_include(other));
        audience.add(Who::Everybody);
        assert!(audience.includes(&somebody(other, 1, &[])));
    }

    #[test]
    fn the_overflow_user_and_group_are_nobody() {
        let mut audience = Audience::user(OVERFLOW_UID);
        audience.add(Who::Everybody);
        assert!(!audience.includes(&somebody(OVERFLOW_UID, 1, &[])) && !audience.may_include(OVERFLOW_UID));
        let mut group = Audience::default();
        group.add(Who::Group(OVERFLOW_UID));
        assert!(!group.includes(&somebody(ours() + 1, OVERFLOW_UID, &[OVERFLOW_UID])));
    }
}
