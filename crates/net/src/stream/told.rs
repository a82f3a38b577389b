//! What a transport tells of its connections to other processes.

use super::*;
use crate::links::{Counts, LinkFacts, LinkSocket, LinkStage, path_and_reason, path_facts};

impl StreamTransport {
    /// Writes the rows that are due. Returns when it wants to be called again.
    pub(super) fn tell_links(&mut self, now: Instant) {
        let Some(board) = &mut self.board else { return };
        for (row, key) in board.take_due(now) {
            if let Some(Entry::Connection(connection)) = self.places.get(key) {
                board.write(row, &told(key, connection));
            }
        }
    }

    /// Writes the row of one connection now.
    pub(super) fn tell_link(&mut self, key: u64) {
        if let (Some(board), Some(Entry::Connection(connection))) = (&self.board, self.places.get(key))
            && let Some(row) = connection.row
        {
            board.write(row, &told(key, connection));
        }
    }
}

/// What a connection says of itself.
fn told(key: u64, connection: &Connection) -> LinkFacts {
    let link = &connection.link;
    let (counts, selection) = (link.counts(), link.selection());
    let stage = match connection.stage {
        Stage::Greeting { .. } => LinkStage::Greeting,
        Stage::Open => LinkStage::Open,
        Stage::Broken { .. } => LinkStage::Broken,
    };
    let [local, remote] =
        connection.addresses.each_ref().map(|address| address.as_ref().map_or_else(String::new, Address::to_string));
    let socket = connection.addresses.iter().flatten().next().map(|address| match address {
        Address::Tcp(_) => LinkSocket::Tcp,
        Address::Unix(_) => LinkSocket::Unix,
    });
    let (path, reason) = path_and_reason(link.forced(), selection.as_ref());
    let of = |count: fn(&Selection) -> u64| selection.as_ref().map_or(0, count);
    LinkFacts {
        connection: key,
        stage,
        socket,
        accepted: connection.accepted,
        local,
        remote,
        path: Some(path),
        reason: Some(reason),
        counts: Counts {
            switches: of(|selection| selection.switches),
            changes: of(|selection| selection.changes),
            probes: of(|selection| selection.probes),
            unfinished: link.unfinished() as u64,
            mended: connection.epoch.into(),
            submitted: counts.submitted,
            pieces_received: counts.pieces_received,
            bytes_received: counts.bytes_received,
            copied_user: counts.copied_user,
            pinned_bytes: link.pinned_bytes(),
            over_budget: counts.over_budget,
            receives: counts.receives,
            stray_notifications: counts.stray_notifications,
        },
        paths: path_facts(&counts.paths, selection.as_ref()),
    }
}
