//! What a transport tells of its connections to other processes.

use super::*;
use crate::links::{Counts, LinkFacts, LinkSocket, LinkStage, path_and_reason, path_facts};

impl UdpTransport {
    /// Gives a new connection a row, if connections are told of.
    pub(super) fn enter_board(&mut self, key: u64) {
        let Some(board) = &mut self.board else { return };
        let Some(connection) = self.connections.get_mut(&key) else { return };
        connection.row = board.enter(key);
        let place = self.places.get(connection.socket).and_then(Option::as_ref);
        connection.local = place.and_then(|place| place.socket.address());
    }

    /// Writes the rows that are due.
    pub(super) fn tell_links(&mut self) {
        let Some(board) = self.board.as_mut().filter(|board| board.due().is_some()) else { return };
        for (row, key) in board.take_due(Instant::now()) {
            if let Some(connection) = self.connections.get(&key) {
                board.write(row, &told(key, connection, self.places.get(connection.socket)));
            }
        }
    }

    /// Writes the row of one connection now.
    pub(super) fn tell_link(&mut self, key: u64) {
        if let (Some(board), Some(connection)) = (&self.board, self.connections.get(&key))
            && let Some(row) = connection.row
        {
            board.write(row, &told(key, connection, self.places.get(connection.socket)));
        }
    }
}

/// What a connection says of itself.
fn told(key: u64, connection: &Connection, place: Option<&Option<Place>>) -> LinkFacts {
    let (sender, received) = (&connection.session.sender, connection.session.receiver.counts);
    let selection = connection.choosing.selection();
    let forced = match connection.choosing {
        Choosing::Forced(path) => Some(path),
        Choosing::Cheapest { .. } => None,
    };
    let (path, reason) = path_and_reason(forced, selection.as_ref());
    let stage = match connection.stage {
        Stage::Open => LinkStage::Open,
        Stage::Greeting(_) if !connection.announced => LinkStage::Greeting,
        Stage::Greeting(_) | Stage::Silent => LinkStage::Broken,
    };
    let of = |count: fn(&Selection) -> u64| selection.as_ref().map_or(0, count);
    let receives = place.and_then(Option::as_ref).map_or(0, |place| place.socket.counts.receives);
    LinkFacts {
        connection: key,
        stage,
        socket: Some(LinkSocket::Udp),
        accepted: connection.accepted,
        local: connection.local.map_or_else(String::new, |address| address.to_string()),
        remote: connection.peer.to_string(),
        path: Some(path),
        reason: Some(reason),
        counts: Counts {
            switches: of(|selection| selection.switches),
            changes: of(|selection| selection.changes),
            probes: of(|selection| selection.probes),
            unfinished: sender.unfinished() as u64,
            mended: connection.session.epoch.into(),
            submitted: connection.submitted,
            pieces_received: received.pieces,
            bytes_received: received.bytes,
            copied_user: received.copied,
            pinned_bytes: sender.pinned_bytes(),
            over_budget: connection.over_budget,
            receives,
            // A notification that is not owed counts for no socket.
            stray_notifications: 0,
        },
        paths: path_facts(&connection.done, selection.as_ref()),
    }
}
