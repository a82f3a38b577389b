//! The receiving side of messages, over any transport.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use zcmi_net::outgoing::Token;
use zcmi_net::stream::StreamTransport;
use zcmi_net::transport::{ConnectionId, Destination, Event, Transport};
use zcmi_net::udp::UdpTransport;

use super::CellError;

/// What a receiver has counted.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Received {
    pub(super) bytes: u64,
    pub(super) copied_user: u64,
}

impl Received {
    /// Bytes copied in user space for each that was received.
    pub(super) fn copied_per_byte(self) -> f64 {
        self.copied_user as f64 / self.bytes.max(1) as f64
    }
}

/// A transport that counts what its connections receive.
pub(super) trait Counting: Transport {
    /// What a connection has received, as long as it is there.
    fn received(&self, connection: ConnectionId) -> Option<Received>;
}

impl Counting for StreamTransport {
    fn received(&self, connection: ConnectionId) -> Option<Received> {
        let counts = self.facts(connection)?.counts;
        Some(Received { bytes: counts.bytes_received, copied_user: counts.copied_user })
    }
}

impl Counting for UdpTransport {
    fn received(&self, connection: ConnectionId) -> Option<Received> {
        let facts = self.facts(connection)?;
        Some(Received { bytes: facts.bytes_received, copied_user: facts.copied_user })
    }
}

/// Connections of which messages are taken, or sent back.
pub(super) struct Receiver<T> {
    transport: T,
    echo: bool,
    connections: Vec<(ConnectionId, Received)>,
    closed: usize,
    events: Vec<Event>,
}

impl<T: Counting> Receiver<T> {
    pub(super) fn new(transport: T, echo: bool) -> Self {
        Self { transport, echo, connections: Vec::new(), closed: 0, events: Vec::new() }
    }

    /// Takes what comes, waiting no longer than this. Returns how much happened.
    pub(super) fn turn(&mut self, timeout: Duration) -> Result<usize, CellError> {
        let happened = self.transport.poll(&mut self.events, Some(timeout))?;
        for event in self.events.drain(..) {
            match event {
                Event::Received { connection, piece } if self.echo => {
                    let sent = self.transport.submit(Destination::new(connection), piece.lease.into(), Token(0));
                    sent.map_err(|refused| CellError::NotTaken(refused.reason.to_string()))?;
                }
                Event::Accepted { connection, .. } => self.connections.push((connection, Received::default())),
                Event::Ended { connection } => self.transport.close(connection),
                Event::Closed { .. } => self.closed += 1,
                _ => {}
            }
        }
        // What a connection has done is told as long as it is there.
        for (connection, received) in &mut self.connections {
            if let Some(now) = self.transport.received(*connection) {
                *received = now;
            }
        }
        Ok(happened)
    }

    /// How many connections are gone.
    pub(super) fn closed(&self) -> usize {
        self.closed
    }

    /// What all of them received.
    pub(super) fn received(&self) -> Received {
        let sum = |of: fn(&Received) -> u64| self.connections.iter().map(|(_, received)| of(received)).sum();
        Received { bytes: sum(|received| received.bytes), copied_user: sum(|received| received.copied_user) }
    }
}
