//! What a transport tells of its connections to other processes.

use super::*;
use crate::links::{Counts, LinkFacts, LinkSocket, LinkStage, PathFacts};
use crate::select::Reason;

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
    let mut paths = counts.paths.map(|done| PathFacts {
        sends: done.sends,
        bytes: done.bytes,
        refused: done.refused,
        notified: done.notified,
        copied: done.copied,
        ..PathFacts::default()
    });
    for model in selection.iter().flat_map(|selection| &selection.models) {
        let path = &mut paths[model.path as usize];
        (path.piece_ns, path.kib_ns, path.receiver_kib_ns) =
            (Some(model.piece_ns), Some(model.kib_ns), model.receiver_kib_ns);
        (path.samples, path.refused_in_a_row) = (model.calls.into(), model.refused.into());
        path.says_copied = model.says_copied;
    }
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
    let chosen = selection.as_ref().map(|selection| (selection.path, selection.reason));
    // Before anything is measured, everything is written.
    let (path, reason) =
        link.forced().map(|path| (path, Reason::Forced)).or(chosen).unwrap_or((PathKind::Write, Reason::First));
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
            epoch: connection.epoch.into(),
            submitted: counts.submitted,
            pieces_received: counts.pieces_received,
            bytes_received: counts.bytes_received,
            copied_user: counts.copied_user,
            pinned_bytes: link.pinned_bytes(),
            over_budget: counts.over_budget,
            receives: counts.receives,
            stray_notifications: counts.stray_notifications,
        },
        paths,
    }
}
