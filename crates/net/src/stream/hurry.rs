//! Connections that hold long slots have their turn before others.
//!
//! Long slots are few, and others wait for them. In a crowd each thing that such a connection has to hear (that its
//! slot was used, that the other side has one for the answer, that the answer came) would take a turn of all.

use super::*;
use crate::link::CROWD;

/// Turns of such connections in a poll, beside those of all: they take long, and must not keep the others.
const HURRIED: usize = 4;

/// Those that hold long slots, watched by a descriptor of their own as well.
#[derive(Default)]
pub(super) struct Hurry {
    epoll: Option<OwnedFd>,
    count: usize,
    gathered: Vec<epoll::Event>,
}

impl StreamTransport {
    /// Notes whether a connection holds a long slot. Where that is refused it has its turn like others.
    pub(super) fn note_hurry(&mut self, key: u64) {
        let crowd = self.connections >= CROWD;
        if !crowd && self.hurry.count == 0 {
            return;
        }
        let Some(connection) = self.places.connection(key) else { return };
        let goes_on = matches!(connection.stage, Stage::Open) && !connection.link.is_finished();
        let holds = crowd && goes_on && connection.link.holds_long();
        if holds == connection.hurried {
            return;
        }
        if !holds {
            return self.end_hurry(key);
        }
        if self.hurry.epoll.is_none() {
            self.hurry.epoll = epoll::create(epoll::CreateFlags::CLOEXEC).ok();
            self.hurry.gathered.reserve_exact(HURRIED);
        }
        if let (Some(epoll), Some(wire)) = (&self.hurry.epoll, connection.link.wire())
            && epoll::add(epoll, wire, EventData::new_u64(key), BY_EDGES).is_ok()
        {
            connection.hurried = true;
            self.hurry.count += 1;
        }
    }

    /// Watches it no more as one that holds a long slot.
    pub(super) fn end_hurry(&mut self, key: u64) {
        if let Some(connection) = self.places.connection(key)
            && core::mem::take(&mut connection.hurried)
        {
            self.hurry.count -= 1;
            if let (Some(epoll), Some(wire)) = (&self.hurry.epoll, connection.link.wire()) {
                let _ = epoll::delete(epoll, wire);
            }
        }
    }

    /// Turns of some of them.
    pub(super) fn turn_hurried(&mut self, events: &mut Vec<Event>) {
        let Some(epoll) = self.hurry.epoll.as_ref().filter(|_| self.hurry.count > 0) else { return };
        let mut gathered = core::mem::take(&mut self.hurry.gathered);
        gathered.clear();
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // A refusal keeps nobody: each has its turn among all as well.
        let _ = epoll::wait(epoll, rustix::buffer::spare_capacity(&mut gathered), Some(&now));
        for event in &gathered {
            let (key, flags) = (event.data.u64(), event.flags);
            if self.places.is_marked(key, mark::PATIENT) {
                continue;
            }
            if flags.intersects(EventFlags::OUT) && self.places.is_marked(key, mark::BLOCKED) {
                self.turn_sending(key, drive::Saying::Due, events);
            }
            let open = |connection: &mut Connection| matches!(connection.stage, Stage::Open);
            if flags.intersects(EventFlags::IN | EventFlags::ERR) && self.places.connection(key).is_some_and(open) {
                let before = events.len();
                self.turn_receiving(key, events);
                // Who sends short messages as well would have them served before those of others.
                let small_bytes = self.options.slots.small_bytes;
                let is_short = |event: &Event| match event {
                    Event::Received { piece, .. } => piece.message_bytes <= small_bytes,
                    _ => false,
                };
                if events[before..].iter().any(is_short) {
                    self.places.mark(key, mark::PATIENT);
                }
            }
        }
        self.hurry.gathered = gathered;
    }
}
