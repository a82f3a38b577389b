//! Which datagrams are under way: which arrived, which are lost, and when something is late.

use super::{COLLAPSE, End, PROBES, REORDERED, Sender, State, What};
use crate::incoming::PeerFault;
use crate::outgoing::Token;
use crate::udp::datagram::Report;
use crate::udp::pace::Nanos;
use crate::udp::sender::Packet;

/// How many datagrams are remembered at most, from the first that may arrive on: a peer that acknowledges nothing, and
/// makes us answer, would have more and more remembered. What is forgotten is taken to be lost.
const MOST_UNDER_WAY: usize = 1 << 16;

impl Sender {
    /// Goes on over another path: what was under way is taken to be lost.
    pub(crate) fn begin_epoch(&mut self, now: Nanos) {
        for index in 0..self.packets.len() {
            self.lose(index);
        }
        self.pop_packets();
        self.pace.probes = 0;
        self.pace.collapsed();
        self.silent_since = None;
        self.last_sent = now;
        (self.ping, self.asked) = (true, false);
    }

    pub(super) fn note_sent(&mut self, what: What, size: u64, now: Nanos) {
        let eliciting = !matches!(what, What::Report);
        let state = if eliciting { State::InFlight } else { State::Done };
        self.packets.push_back(Packet { sent_at: now, size, what, state });
        if eliciting {
            self.in_flight += size;
            self.last_sent = now;
            self.silent_since.get_or_insert(now);
            self.pace.left(size);
        }
        if self.packets.len() > MOST_UNDER_WAY {
            self.lose(0);
        }
        self.pop_packets();
    }

    /// Takes what the peer says came, and may come.
    pub(crate) fn report(&mut self, report: &Report, now: Nanos, done: &mut Vec<Token>) -> Result<(), PeerFault> {
        let sent = self.next_number();
        if report.count > 0 && report.ranges[0].1 > sent {
            let before = self.largest.map_or(0, |largest| largest + 1);
            return Err(PeerFault::Acknowledged { claimed: report.ranges[0].1, before, sent });
        }
        self.granted(report.granted)?;
        self.window_bytes = u64::from(report.window_bytes.max(1));
        self.heard();
        let full = self.in_flight * 2 >= self.pace.window().min(self.window_bytes);
        for &(begin, end) in &report.ranges[..report.count] {
            if end <= self.first_packet {
                break;
            }
            let newest = end - 1;
            if self.largest.is_none_or(|largest| newest > largest) {
                self.largest = Some(newest);
                if let Some(packet) = self.packets.get((newest - self.first_packet) as usize)
                    && packet.state == State::InFlight
                {
                    let took = now.saturating_sub(packet.sent_at);
                    self.pace.sample(took, u64::from(report.delay_us) * 1000);
                }
            }
            for number in begin.max(self.first_packet)..end {
                self.arrived((number - self.first_packet) as usize, full, done);
            }
        }
        self.find_lost(now);
        self.pop_packets();
        self.pop_pieces();
        Ok(())
    }

    /// Notes that the peer is there.
    pub(crate) fn heard(&mut self) {
        self.silent_since = None;
        self.pace.probes = 0;
        self.probes_left = 0;
    }

    /// Notes that something came from the peer, which says nothing about what we sent.
    pub(crate) fn alive(&mut self) {
        if self.silent_since.is_some() {
            self.silent_since = Some(self.last_sent);
        }
    }

    fn arrived(&mut self, index: usize, full: bool, done: &mut Vec<Token>) {
        let packet = &mut self.packets[index];
        let state = core::mem::replace(&mut packet.state, State::Done);
        let (size, sent_at, what) = (packet.size, packet.sent_at, packet.what);
        match state {
            State::Done => return,
            State::InFlight => {
                self.in_flight -= size;
                self.pace.arrived(size, sent_at, full);
            }
            // It was late and not lost.
            State::Lost => {}
        }
        match what {
            What::Data(item) => self.note_arrived(item, done),
            What::End => self.end = End::Heard,
            What::Ping | What::Report => {}
        }
    }

    fn pop_packets(&mut self) {
        while self.packets.front().is_some_and(|packet| packet.state != State::InFlight) {
            self.packets.pop_front();
            self.first_packet += 1;
        }
    }

    /// Takes datagrams to be lost of which nothing is heard although later ones were.
    fn find_lost(&mut self, now: Nanos) {
        let Some(largest) = self.largest else { return };
        let late = self.pace.late();
        for index in 0..self.packets.len() {
            let number = self.first_packet + index as u64;
            let packet = &self.packets[index];
            if number >= largest {
                break;
            }
            if packet.state != State::InFlight {
                continue;
            }
            let sent_at = packet.sent_at;
            if number + REORDERED <= largest || sent_at + late <= now {
                self.lose(index);
                self.pace.lost(sent_at, now);
            }
        }
    }

    fn lose(&mut self, index: usize) {
        let packet = &mut self.packets[index];
        if packet.state != State::InFlight {
            return;
        }
        packet.state = State::Lost;
        self.in_flight -= packet.size;
        self.lost += 1;
        match packet.what {
            What::Data(item) if self.reliable => {
                self.again_bytes += u64::from(item.length);
                self.again.push_back(item);
            }
            What::End => self.end = End::Unsaid,
            What::Ping => (self.ping, self.asked) = (true, false),
            What::Data(_) | What::Report => {}
        }
    }

    /// When something is due although nothing is heard.
    pub(crate) fn due(&self) -> Option<Nanos> {
        if self.in_flight == 0 {
            return None;
        }
        let largest = self.largest.unwrap_or(0);
        let older = self.packets.front().filter(|_| self.first_packet < largest);
        match older {
            Some(packet) => Some(packet.sent_at + self.pace.late()),
            None => Some(self.last_sent + self.pace.probe_after()),
        }
    }

    /// Does what is due.
    pub(crate) fn time(&mut self, now: Nanos) {
        self.find_lost(now);
        self.pop_packets();
        if self.in_flight == 0 || self.last_sent + self.pace.probe_after() > now {
            return;
        }
        // Silence: something is sent again, so that the peer has something to answer.
        self.pace.probes += 1;
        self.silences += 1;
        self.last_sent = now;
        if self.pace.probes >= COLLAPSE {
            self.pace.collapsed();
        }
        self.ping = true;
        if !self.reliable {
            // Nothing of it will be sent again, and what waits behind it is not to wait for ever.
            for index in 0..self.packets.len() {
                self.lose(index);
            }
            return self.pop_packets();
        }
        let mut again = [None; PROBES as usize];
        let oldest = self.packets.iter().filter(|packet| packet.state == State::InFlight).filter_map(|packet| {
            match packet.what {
                What::Data(item) if self.reliable => Some(item),
                _ => None,
            }
        });
        again.iter_mut().zip(oldest).for_each(|(place, item)| *place = Some(item));
        for item in again.into_iter().rev().flatten() {
            if !self.again.contains(&item) {
                self.again_bytes += u64::from(item.length);
                self.again.push_front(item);
            }
            self.probes_left = PROBES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outgoing::QueueLimits;
    use crate::udp::Reliability;

    #[test]
    fn of_a_peer_that_acknowledges_nothing_a_bounded_number_is_remembered() {
        let mut sender = Sender::new(QueueLimits::default(), Reliability::Reliable, 1400, 0);
        sender.note_sent(What::Ping, 64, 0);
        for _ in 0..2 * MOST_UNDER_WAY {
            sender.note_sent(What::Report, 64, 0);
            assert!(sender.packets.len() <= MOST_UNDER_WAY);
        }
        assert_eq!((sender.lost, sender.in_flight), (1, 0), "the first is taken to be lost");
    }
}
