//! Where the connections, strangers and listeners of a transport are.

use super::{Connection, Entry, Stranger};
use crate::raw;

/// What is to be known of a connection without a look at it, which among thousands is in no cache.
pub(super) mod mark {
    /// It has something to receive, and waits for its turn.
    pub(in crate::stream) const READY: u8 = 1;
    /// It is among those that have something to send.
    pub(in crate::stream) const DIRTY: u8 = 2;
    /// It is among those that may owe a note.
    pub(in crate::stream) const OWING: u8 = 4;
    /// It owes a note.
    pub(in crate::stream) const OWES: u8 = 32;
    /// It waits for its socket to take something.
    pub(in crate::stream) const BLOCKED: u8 = 8;
    /// The socket has ended: no other edge tells of it, so it is read until the end is seen.
    pub(in crate::stream) const HUNG_UP: u8 = 16;
    /// It has no turn before others until its own.
    pub(in crate::stream) const PATIENT: u8 = 64;
    /// It has an entry in the queue, though it may have had its turn before that comes.
    pub(in crate::stream) const QUEUED: u8 = 128;
}

#[derive(Default)]
pub(super) struct Place {
    generation: u32,
    marks: u8,
    entry: Option<Entry>,
}

/// Numbered places; a number is never used twice.
#[derive(Default)]
pub(super) struct Places {
    entries: Vec<Place>,
    free: Vec<u32>,
    /// How many are marked as owing a note.
    owe: usize,
}

impl Places {
    pub(super) fn insert(&mut self, entry: Entry) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Place::default());
            self.entries.len() as u32 - 1
        });
        let place = &mut self.entries[index as usize];
        (place.entry, place.marks) = (Some(entry), 0);
        u64::from(place.generation) << 32 | u64::from(index)
    }

    pub(super) fn place(&mut self, key: u64) -> Option<&mut Place> {
        let place = self.entries.get_mut((key & 0xffff_ffff) as usize)?;
        (u64::from(place.generation) == key >> 32).then_some(place)
    }

    pub(super) fn get_mut(&mut self, key: u64) -> Option<&mut Entry> {
        self.place(key)?.entry.as_mut()
    }

    pub(super) fn get(&self, key: u64) -> Option<&Entry> {
        let place = self.entries.get((key & 0xffff_ffff) as usize)?;
        if u64::from(place.generation) == key >> 32 { place.entry.as_ref() } else { None }
    }

    /// Marks a connection; `false` if it is marked so already, or there is none.
    pub(super) fn mark(&mut self, key: u64, mark: u8) -> bool {
        match self.place(key) {
            Some(Place { marks, entry: Some(Entry::Connection(_)), .. }) if *marks & mark == 0 => {
                *marks |= mark;
                self.owe += usize::from(mark & mark::OWES != 0);
                true
            }
            _ => false,
        }
    }

    /// Takes a mark away; whether it was there.
    pub(super) fn unmark(&mut self, key: u64, mark: u8) -> bool {
        let Some(place) = self.place(key) else { return false };
        let was = place.marks & mark;
        place.marks &= !mark;
        self.owe -= usize::from(was & mark::OWES != 0);
        was != 0
    }

    /// Whether any owes a note.
    pub(super) fn some_owe(&self) -> bool {
        self.owe > 0
    }

    pub(super) fn is_marked(&mut self, key: u64, mark: u8) -> bool {
        self.place(key).is_some_and(|place| place.marks & mark != 0)
    }

    pub(super) fn connection(&mut self, key: u64) -> Option<&mut Connection> {
        match self.get_mut(key)? {
            Entry::Connection(connection) => Some(connection),
            _ => None,
        }
    }

    pub(super) fn stranger(&mut self, key: u64) -> Option<&mut Stranger> {
        match self.get_mut(key)? {
            Entry::Stranger(stranger) => Some(stranger),
            _ => None,
        }
    }

    /// Has the processor fetch a connection that is needed soon.
    pub(super) fn prefetch(&self, key: u64) {
        if let Some(Entry::Connection(connection)) = self.get(key) {
            raw::prefetch(&**connection);
        }
    }

    pub(super) fn remove(&mut self, key: u64) -> Option<Entry> {
        self.get(key)?;
        let index = (key & 0xffff_ffff) as u32;
        let place = &mut self.entries[index as usize];
        self.owe -= usize::from(core::mem::take(&mut place.marks) & mark::OWES != 0);
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        place.entry.take()
    }

    pub(super) fn keys(&self) -> Vec<u64> {
        let key = |(index, place): (usize, &Place)| u64::from(place.generation) << 32 | index as u64;
        self.entries.iter().enumerate().filter(|(_, place)| place.entry.is_some()).map(key).collect()
    }
}
