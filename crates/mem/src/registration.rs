//! Registration: the cached result of showing a region to a device.
//!
//! A [`Device`] (a ring with fixed buffers, a NIC, an accelerator) must be shown a region before it may read or write
//! its slots, which is slow. [`Registrations`] does it once for each region and device, and keeps what the device gave
//! back.
//!
//! # Invariants
//! - One region and one device have one registration, made at the first use.
//! - A registration is not undone while anybody may still need it: [`Registrations::remove`] refuses while a handle
//!   ([`Registered`]) or a use by the device ([`InFlight`]) exists.
//! - A use ends by its completion alone. An [`InFlight`] that is dropped or forgotten without one pins the
//!   registration, and so the region's memory, until the process ends: it leaks, it never frees.
//! - The region stays mapped as long as its registration exists, and is let go after it.
//! - In a forked child nothing is undone: what the device knows belongs to the parent.
//!
//! # What this does not do
//! It knows no device. And it does not say which slots are in flight, only that some of the region are.

use core::fmt;
use core::mem::ManuallyDrop;
use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use zcmi_ring::sync::{AtomicUsize, Ordering};

use crate::region::{Region, RegionId};

/// Whether a device can do something; asked before it is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// It can.
    Yes,
    /// It cannot, for this reason.
    No(Cow<'static, str>),
    /// It could not be found out, for this reason.
    Unknown(Cow<'static, str>),
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("yes"),
            Self::No(reason) => write!(f, "no because {reason}"),
            Self::Unknown(reason) => write!(f, "could not tell because {reason}"),
        }
    }
}

/// What regions can be shown to.
pub trait Device: Send + Sync + 'static {
    /// What the device gives back; dropping it undoes the registration.
    type Registration: Send + Sync + 'static;
    /// Why the device did not take a region.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Whether this device takes regions at all.
    fn support(&self) -> Support;

    /// Shows it a region, which outlives the registration.
    ///
    /// # Errors
    /// The device's own, for instance a limit on locked memory; the caller then uses a path that copies, and counts it.
    fn register(&self, region: &Region) -> Result<Self::Registration, Self::Error>;
}

/// Why a registration was not undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// The device, or somebody who may hand it slots, still needs it.
    #[error("region {region} is still registered: {in_flight} uses in flight, {handles} handles")]
    InUse {
        /// The region.
        region: RegionId,
        /// How many uses have not been completed.
        in_flight: usize,
        /// How many handles exist.
        handles: usize,
    },
    /// The region is not registered with this device.
    #[error("region {region} is not registered")]
    NotRegistered {
        /// The region.
        region: RegionId,
    },
}

/// A region and what the device gave for it.
///
/// The fields drop in their order: first the registration, then the region it speaks of.
struct Slot<R> {
    /// Always there until the drop.
    registration: Option<R>,
    region: Arc<Region>,
    in_flight: AtomicUsize,
}

impl<R> Drop for Slot<R> {
    fn drop(&mut self) {
        if self.region.is_forked() {
            // Undoing it here would undo it for the parent, who may have slots in flight.
            core::mem::forget(self.registration.take());
        }
    }
}

/// The regions that one device was shown.
pub struct Registrations<D: Device> {
    device: D,
    slots: Mutex<HashMap<RegionId, Arc<Slot<D::Registration>>>>,
}

impl<D: Device> fmt::Debug for Registrations<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registrations").field("regions", &self.lock().len()).finish_non_exhaustive()
    }
}

impl<D: Device> Registrations<D> {
    /// No registrations yet.
    #[must_use]
    pub fn new(device: D) -> Self {
        Self { device, slots: Mutex::new(HashMap::new()) }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The registration of `region`, made now if this is the first time.
    ///
    /// # Errors
    /// The device's own, if it does not take the region; nothing is kept then, and the next call tries again.
    pub fn get(&self, region: &Arc<Region>) -> Result<Registered<D::Registration>, D::Error> {
        // The lock is held while the device looks at the region, so that two threads do not show it twice.
        match self.lock().entry(region.id()) {
            Entry::Occupied(slot) => Ok(Registered { slot: Arc::clone(slot.get()) }),
            Entry::Vacant(place) => {
                let registration = Some(self.device.register(region)?);
                let slot = Slot { registration, region: Arc::clone(region), in_flight: AtomicUsize::new(0) };
                Ok(Registered { slot: Arc::clone(place.insert(Arc::new(slot))) })
            }
        }
    }

    /// Undoes the registration of a region, if nobody needs it any more.
    ///
    /// # Errors
    /// [`RemoveError`] if there is none, or somebody still needs it.
    pub fn remove(&self, region: RegionId) -> Result<(), RemoveError> {
        let mut slots = self.lock();
        let Some(slot) = slots.get(&region) else {
            return Err(RemoveError::NotRegistered { region });
        };
        // Every handle and every use in flight holds the slot. New ones come from a handle, or from the table, which is
        // locked: so a count of one stays one.
        let holders = Arc::strong_count(slot) - 1;
        if holders > 0 {
            let in_flight = slot.in_flight.load(Ordering::Relaxed);
            return Err(RemoveError::InUse { region, in_flight, handles: holders.saturating_sub(in_flight) });
        }
        let slot = slots.remove(&region);
        drop(slots);
        // The device may take its time; others need not wait for it.
        drop(slot);
        Ok(())
    }

    /// How many regions the device knows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether the device knows no region.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RegionId, Arc<Slot<D::Registration>>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle to a registration; while it exists the registration does.
pub struct Registered<R> {
    slot: Arc<Slot<R>>,
}

impl<R> Clone for Registered<R> {
    fn clone(&self) -> Self {
        Self { slot: Arc::clone(&self.slot) }
    }
}

impl<R> fmt::Debug for Registered<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered")
            .field("region", &self.region().id())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl<R> Registered<R> {
    /// The region.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.slot.region
    }

    /// What the device gave for it.
    ///
    /// # Panics
    /// Never: the registration is taken out only when the last handle is gone.
    #[must_use]
    pub fn registration(&self) -> &R {
        self.slot.registration.as_ref().expect("the registration is there until the last handle is gone")
    }

    /// How many uses the device has not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slot.in_flight.load(Ordering::Relaxed)
    }

    /// Marks the beginning of a use by the device, before it is told.
    pub fn begin(&self) -> InFlight<R> {
        self.slot.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { slot: ManuallyDrop::new(Arc::clone(&self.slot)) }
    }
}

/// A use of a region by a device; it ends with its completion and in no other way.
#[must_use = "a use that is never completed keeps its registration for ever"]
pub struct InFlight<R> {
    /// Dropping the token leaks this, on purpose.
    slot: ManuallyDrop<Arc<Slot<R>>>,
}

impl<R> fmt::Debug for InFlight<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlight").field("region", &self.slot.region.id()).finish_non_exhaustive()
    }
}

impl<R> InFlight<R> {
    /// The device said that it is done with the bytes, or never began.
    pub fn completed(self) {
        let slot = ManuallyDrop::into_inner(self.slot);
        slot.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that counts what it is shown and what is undone.
    #[derive(Default)]
    struct Counting {
        shown: Arc<AtomicUsize>,
        undone: Arc<AtomicUsize>,
        limit: usize,
    }

    struct Mark {
        undone: Arc<AtomicUsize>,
        number: usize,
    }

    impl Drop for Mark {
        fn drop(&mut self) {
            self.undone.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the device takes {limit} regions")]
    struct TooMany {
        limit: usize,
    }

    impl Device for Counting {
        type Registration = Mark;
        type Error = TooMany;

        fn support(&self) -> Support {
            if self.limit > 0 { Support::Yes } else { Support::No("it takes none".into()) }
        }

        fn register(&self, _: &Region) -> Result<Mark, TooMany> {
            let number = self.shown.fetch_add(1, Ordering::Relaxed);
            if number >= self.limit {
                return Err(TooMany { limit: self.limit });
            }
            Ok(Mark { undone: Arc::clone(&self.undone), number })
        }
    }

    fn region() -> Arc<Region> {
        Arc::new(Region::options(4096).create().expect("a small region"))
    }

    fn registrations(limit: usize) -> (Registrations<Counting>, Arc<AtomicUsize>) {
        let undone = Arc::new(AtomicUsize::new(0));
        let device = Counting { undone: Arc::clone(&undone), limit, ..Counting::default() };
        (Registrations::new(device), undone)
    }

    #[test]
    fn a_region_is_shown_once_even_to_many_threads() {
        let (registrations, _) = registrations(10);
        let (first, second) = (region(), region());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(registrations.get(&first).expect("a place").registration().number, 0));
            }
        });
        assert_eq!(registrations.get(&second).expect("a place").registration().number, 1);
        assert_eq!(registrations.len(), 2);
        assert_eq!(registrations.device().shown.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_registration_is_not_undone_while_a_handle_or_a_use_exists() {
        let (registrations, undone) = registrations(1);
        let region = region();
        let id = region.id();
        let handle = registrations.get(&region).expect("a place");
        let (one, two) = (handle.begin(), handle.begin());
        assert_eq!(handle.in_flight(), 2);
        assert_eq!(registrations.remove(id), Err(RemoveError::InUse { region: id, in_flight: 2, handles: 1 }));
        drop(handle);
        one.completed();
        assert_eq!(registrations.remove(id), Err(RemoveError::InUse { region: id, in_flight: 1, handles: 0 }));
        assert_eq!(undone.load(Ordering::Relaxed), 0);
        two.completed();
        assert_eq!(registrations.remove(id), Ok(()));
        assert_eq!(undone.load(Ordering::Relaxed), 1);
        assert_eq!(registrations.remove(id), Err(RemoveError::NotRegistered { region: id }));
    }

    #[test]
    fn a_use_without_completion_keeps_the_region_mapped_whatever_is_dropped() {
        let (registrations, undone) = registrations(1);
        let region = region();
        let watched = Arc::downgrade(&region);
        let handle = registrations.get(&region).expect("a place");
        drop(handle.begin());
        drop((handle, region, registrations));
        assert_eq!(undone.load(Ordering::Relaxed), 0);
        assert!(watched.upgrade().is_some());
    }

    #[test]
    fn without_a_use_the_region_is_let_go_with_its_registration() {
        let (registrations, undone) = registrations(1);
        let region = region();
        let watched = Arc::downgrade(&region);
        registrations.get(&region).expect("a place").begin().completed();
        drop((region, registrations));
        assert_eq!(undone.load(Ordering::Relaxed), 1);
        assert!(watched.upgrade().is_none());
    }

    #[test]
    fn a_refusal_is_the_devices_own_and_leaves_nothing() {
        let (registrations, _) = registrations(0);
        assert_eq!(registrations.device().support().to_string(), "no because it takes none");
        let error = registrations.get(&region()).expect_err("it takes none");
        assert_eq!(error.to_string(), "the device takes 0 regions");
        assert!(registrations.is_empty());
    }
}
