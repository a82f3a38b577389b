//! Who is owed which notification.
//!
//! One call of [`Ring::send`](super::Ring::send) is one entry here, however many requests it takes. It gets a number
//! when bytes were accepted that the kernel may still read, and the number is news when the last of its requests was
//! notified.
//!
//! # Invariants
//! - A request counts from before it is pushed until the kernel said that no notification follows (the first completion
//!   without `F_MORE`) or that it came.
//! - An entry is free again when its call has ended, nothing is owed for it, and its news was taken.
//! - What the kernel says of a request that does not expect it changes nothing: the index is checked, a stamp tells the
//!   entry from its predecessors at that index, and each of its requests is known by its place, so that what comes
//!   twice for one is not taken for another.
//! - Nothing here allocates once every socket and every entry was used once.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::wire::Notification;

/// How many bits of a stamp travel with a request.
const STAMP_BITS: u32 = 24;

/// How many bits of the index of a request's ticket are the entry's; those above are the request's place in its call.
const ENTRY_BITS: u32 = 16;

/// The most requests of one call: a bit for each.
pub(super) const MOST_REQUESTS: u32 = u128::BITS;

/// No entry.
const NONE: u32 = u32::MAX;

/// One call of `send`, or one request of it, as requests carry it through the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) index: u32,
    pub(super) stamp: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the free list.
    Free,
    /// Its call has not ended.
    Open,
    /// Its call has ended; with a number if anybody is to be told.
    Waiting(Option<u64>),
    /// All notifications came; the news was not taken yet.
    News(u64),
}

#[derive(Debug)]
struct Entry<U> {
    state: State,
    stamp: u32,
    key: u32,
    /// How many requests were pushed.
    pushed: u32,
    /// Those that may still be notified, a bit for each.
    requests: u128,
    /// Notifications of them that said that the kernel copied.
    copied: u32,
    /// Requests of which the kernel took nothing: their notifications say "copied" too, and mean "not used".
    unused: u32,
    /// The next of the free list, or of a socket's news.
    next: u32,
    /// What its requests use of registered regions.
    uses: Vec<U>,
}

/// What is known of a socket, as long as something is owed or new.
#[derive(Debug)]
struct Socket {
    /// Calls with something owed.
    calls: usize,
    first: u32,
    last: u32,
}

/// A table of calls; `U` is what a call holds on to until all its notifications came.
#[derive(Debug)]
pub(super) struct Owed<U> {
    entries: Vec<Entry<U>>,
    free: u32,
    sockets: FxHashMap<u32, Socket>,
    /// Sockets that have had news, in the order in which they got them.
    told: VecDeque<u32>,
    requests: usize,
    next_number: u64,
}

impl<U> Owed<U> {
    /// A table for so many calls at a time, which numbers them from `first_number`.
    ///
    /// # Panics
    /// If there are more than a ticket can tell from each other.
    pub(super) fn new(calls: u32, first_number: u64) -> Self {
        assert!(calls <= 1 << ENTRY_BITS, "{calls} calls at a time");
        let entries = (0..calls).map(|index| Entry {
            state: State::Free,
            stamp: 0,
            key: 0,
            pushed: 0,
            requests: 0,
            copied: 0,
            unused: 0,
            next: if index + 1 < calls { index + 1 } else { NONE },
            uses: Vec::new(),
        });
        let free = if calls > 0 { 0 } else { NONE };
        Self {
            entries: entries.collect(),
            free,
            sockets: FxHashMap::default(),
            told: VecDeque::new(),
            requests: 0,
            next_number: first_number,
        }
    }

    /// How many requests may still be notified.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }

    /// How many calls for a socket are owed notifications, or have news that were not taken.
    pub(super) fn calls(&self, key: u32) -> usize {
        self.sockets.get(&key).map_or(0, |socket| socket.calls)
    }

    /// A call begins. Nothing, if all entries are taken.
    pub(super) fn begin(&mut self, key: u32) -> Option<Ticket> {
        let index = self.free;
        let entry = self.entries.get_mut(index as usize)?;
        self.free = entry.next;
        *entry = Entry {
            state: State::Open,
            stamp: Ticket::stamp_after(entry.stamp),
            key,
            pushed: 0,
            requests: 0,
            copied: 0,
            unused: 0,
            next: NONE,
            uses: core::mem::take(&mut entry.uses),
        };
        self.sockets.entry(key).or_insert(Socket { calls: 0, first: NONE, last: NONE }).calls += 1;
        Some(Ticket { index, stamp: entry.stamp })
    }

    /// Whether the call can have so many requests more.
    pub(super) fn has_room_for(&mut self, ticket: Ticket, more: u32) -> bool {
        self.entry(ticket).is_some_and(|entry| entry.pushed + more <= MOST_REQUESTS)
    }

    /// A request of the call is about to be pushed; `used` is held until all notifications of the call came. Says the
    /// ticket of the request.
    ///
    /// # Panics
    /// If the call is over, or there is [no room](Self::has_room_for).
    pub(super) fn pushed(&mut self, ticket: Ticket, used: Option<U>) -> Ticket {
        let entry = self.entry(ticket).expect("a request is pushed during its call");
        let place = entry.pushed;
        assert!(place < MOST_REQUESTS, "a request was pushed without room for it");
        entry.pushed += 1;
        entry.requests |= 1 << place;
        entry.uses.extend(used);
        self.requests += 1;
        Ticket { index: ticket.index | place << ENTRY_BITS, ..ticket }
    }

    /// The kernel took nothing of a request, and will notify it all the same.
    pub(super) fn took_nothing(&mut self, ticket: Ticket) {
        if let Some(entry) = self.entry(ticket) {
            entry.unused += 1;
        }
    }

    /// The call is over. If bytes were accepted that the kernel may still read, `number` is set, and the answer is the
    /// number under which news will come.
    ///
    /// `finished` gets what the call held on to, if that is all.
    pub(super) fn end(&mut self, ticket: Ticket, number: bool, finished: impl FnMut(U)) -> Option<u64> {
        let next = self.next_number;
        let entry = self.entry(ticket)?;
        let number = number.then_some(next);
        entry.state = State::Waiting(number);
        self.next_number += u64::from(number.is_some());
        self.finish(ticket, finished);
        number
    }

    /// The kernel answered a request: no notification follows (the first completion without `F_MORE`), or it came.
    ///
    /// Returns whether that was expected.
    pub(super) fn settled(&mut self, ticket: Ticket, copied: bool, finished: impl FnMut(U)) -> bool {
        let place = ticket.index >> ENTRY_BITS;
        let bit = 1_u128.checked_shl(place).unwrap_or(0);
        let Some(entry) = self.entry(ticket).filter(|entry| entry.requests & bit != 0) else { return false };
        entry.requests &= !bit;
        entry.copied += u32::from(copied);
        self.requests -= 1;
        self.finish(ticket, finished);
        true
    }

    /// Gives a socket's news to `each`, in the order in which they came.
    pub(super) fn take(&mut self, key: u32, each: &mut dyn FnMut(Notification)) {
        loop {
            let Some(socket) = self.sockets.get_mut(&key) else { return };
            let index = socket.first;
            let Some(entry) = self.entries.get_mut(index as usize) else { return };
            let State::News(number) = entry.state else { unreachable!("a list of news holds nothing else") };
            socket.first = entry.next;
            let notification = Notification { first: number, last: number, copied: entry.copied > entry.unused };
            self.release(index);
            // Last, for it may panic.
            each(notification);
        }
    }

    /// A socket with news: the one that has had them longest.
    pub(super) fn with_news(&mut self) -> Option<u32> {
        while let Some(&key) = self.told.front() {
            if self.sockets.get(&key).is_some_and(|socket| socket.first != NONE) {
                return Some(key);
            }
            self.told.pop_front();
        }
        None
    }

    fn entry(&mut self, ticket: Ticket) -> Option<&mut Entry<U>> {
        let entry = self.entries.get_mut(ticket.entry() as usize)?;
        (entry.stamp == ticket.stamp && matches!(entry.state, State::Open | State::Waiting(_))).then_some(entry)
    }

    /// Whether an entry waits for nothing more: then its news are put up, or it becomes free.
    fn finish(&mut self, ticket: Ticket, finished: impl FnMut(U)) {
        let Some(entry) = self.entry(ticket) else { return };
        let State::Waiting(number) = entry.state else { return };
        if entry.requests != 0 {
            return;
        }
        let index = ticket.entry();
        entry.uses.drain(..).for_each(finished);
        let Some(number) = number else { return self.release(index) };
        entry.state = State::News(number);
        entry.next = NONE;
        let key = entry.key;
        let socket = self.sockets.get_mut(&key).expect("a socket is known while a call of it is");
        if socket.first == NONE {
            socket.first = index;
            // Whose news were taken meanwhile is in the list for nothing, but not for ever.
            if self.told.len() > 2 * self.sockets.len() + 16 {
                let Self { told, sockets, .. } = self;
                told.retain(|other| *other != key && sockets.get(other).is_some_and(|socket| socket.first != NONE));
            }
            self.told.push_back(key);
        } else {
            self.entries[socket.last as usize].next = index;
        }
        if let Some(socket) = self.sockets.get_mut(&key) {
            socket.last = index;
        }
    }

    fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.state = State::Free;
        entry.next = self.free;
        self.free = index;
        let key = entry.key;
        if let Some(socket) = self.sockets.get_mut(&key) {
            socket.calls -= 1;
            if socket.calls == 0 {
                self.sockets.remove(&key);
            }
        }
    }
}

impl Ticket {
    /// The index of the call.
    fn entry(self) -> u32 {
        self.index & ((1 << ENTRY_BITS) - 1)
    }

    /// The stamp of the next at the same index.
    pub(super) fn stamp_after(stamp: u32) -> u32 {
        (stamp + 1) & ((1 << STAMP_BITS) - 1)
    }

    /// As a word beside a mark of 8 bits.
    pub(super) fn word(self, mark: u8) -> u64 {
        u64::from(mark) << 56 | u64::from(self.stamp) << 32 | u64::from(self.index)
    }

    /// The ticket in a word, and the mark beside it.
    pub(super) fn from_word(word: u64) -> (Self, u8) {
        let stamp = (word >> 32) as u32 & ((1 << STAMP_BITS) - 1);
        (Self { index: word as u32, stamp }, (word >> 56) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(owed: &mut Owed<u32>, key: u32) -> Vec<(u64, bool)> {
        let mut all = Vec::new();
        owed.take(key, &mut |n| {
            assert_eq!(n.first, n.last);
            all.push((n.first, n.copied));
        });
        all
    }

    fn nothing(_: u32) {
        panic!("nothing was to be given back");
    }

    #[test]
    fn a_call_is_news_once_when_its_last_request_is_settled() {
        let mut owed = Owed::new(4, 10);
        let call = owed.begin(7).expect("room");
        let (one, two) = (owed.pushed(call, Some(1)), owed.pushed(call, Some(2)));
        // One notification comes before the call has ended, and comes again.
        assert!(owed.settled(one, true, nothing) && !owed.settled(one, true, nothing));
        assert_eq!((owed.end(call, true, nothing), owed.requests(), owed.calls(7)), (Some(10), 1, 1));
        assert_eq!((news(&mut owed, 7), owed.with_news()), (vec![], None));
        let mut back = Vec::new();
        assert!(!owed.settled(one, false, nothing), "what comes twice for one is not taken for the other");
        assert!(owed.settled(two, false, |used| back.push(used)));
        assert_eq!((back, owed.requests(), owed.with_news()), (vec![1, 2], 0, Some(7)));
        // Twice is once too often.
        assert!(!owed.settled(two, false, nothing));
        assert_eq!(news(&mut owed, 8), []);
        assert_eq!(news(&mut owed, 7), [(10, true)]);
        assert_eq!((news(&mut owed, 7), owed.calls(7)), (vec![], 0));
        assert!(!owed.settled(two, false, nothing));
    }

    #[test]
    fn what_the_kernel_says_of_a_request_that_it_took_nothing_of_is_not_said_of_the_others() {
        for says in [false, true] {
            let mut owed = Owed::<u32>::new(1, 0);
            let call = owed.begin(7).expect("room");
            let (one, two) = (owed.pushed(call, None), owed.pushed(call, None));
            // Its notification may come before the other's.
            assert!(owed.settled(two, true, nothing));
            owed.took_nothing(two);
            assert_eq!(owed.end(call, true, nothing), Some(0));
            assert!(owed.settled(one, says, nothing));
            assert_eq!(news(&mut owed, 7), [(0, says)]);
        }
    }

    #[test]
    fn a_refused_call_is_nobodys_news_but_keeps_what_it_uses_until_its_notification() {
        let mut owed = Owed::new(1, 0);
        let call = owed.begin(7).expect("room");
        let call = owed.pushed(call, Some(1));
        assert_eq!(owed.end(call, false, nothing), None);
        assert_eq!((owed.requests(), owed.begin(7)), (1, None), "its entry is not used again early");
        let mut back = 0;
        assert!(owed.settled(call, false, |used| back = used));
        assert_eq!((back, owed.calls(7), owed.with_news()), (1, 0, None));
        let next = owed.begin(7).expect("room again");
        assert_ne!(next, call);
        assert!(!owed.settled(call, false, nothing), "a notification of the entry's predecessor is not its own");
    }

    #[test]
    fn sockets_with_news_are_found_in_turn_and_the_list_of_them_stays_short() {
        let mut owed = Owed::<u32>::new(4, 0);
        let tell = |owed: &mut Owed<u32>, key: u32| {
            let call = owed.begin(key).expect("room");
            let request = owed.pushed(call, None);
            assert!(owed.end(call, true, nothing).is_some() && owed.settled(request, false, nothing));
        };
        tell(&mut owed, 5);
        tell(&mut owed, 6);
        tell(&mut owed, 5);
        assert_eq!(owed.with_news(), Some(5));
        assert_eq!((news(&mut owed, 5).len(), owed.with_news()), (2, Some(6)));
        assert_eq!((news(&mut owed, 6).len(), owed.with_news()), (1, None));
        // Whoever takes news without asking whose there are leaves no trace either.
        for key in 0..10_000 {
            tell(&mut owed, key);
            assert_eq!(news(&mut owed, key).len(), 1);
        }
        assert!(owed.told.len() < 32, "{} sockets are listed", owed.told.len());
    }

    #[test]
    fn news_come_in_their_order_and_to_their_socket() {
        let mut owed = Owed::<u32>::new(8, 0);
        let calls: Vec<Ticket> = (0..8).map(|call| owed.begin(call % 2).expect("room")).collect();
        for &call in &calls {
            owed.pushed(call, None);
            assert!(owed.end(call, true, nothing).is_some());
        }
        for call in [6, 0, 3, 4, 1, 2] {
            assert!(owed.settled(calls[call], call == 4, nothing));
        }
        assert_eq!(news(&mut owed, 0), [(6, false), (0, false), (4, true), (2, false)]);
        assert_eq!(news(&mut owed, 1), [(3, false), (1, false)]);
        assert_eq!((owed.calls(0), owed.calls(1), owed.requests()), (0, 2, 2));
    }

    #[test]
    fn words_carry_tickets() {
        for (index, stamp, mark) in [(0, 0, 0), (u32::MAX, (1 << STAMP_BITS) - 1, 255), (5, 77, 3)] {
            let ticket = Ticket { index, stamp };
            assert_eq!(Ticket::from_word(ticket.word(mark)), (ticket, mark));
        }
    }
}
