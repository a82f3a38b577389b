//! Both sides over [`StreamTransport`]: the server of row `zcmi`, and the side that asks it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use zcmi_mem::lease::Lease;
use zcmi_mem::pool::PoolPlan;
use zcmi_net::link::LinkLimits;
use zcmi_net::outgoing::{QueueLimits, Token};
use zcmi_net::select::Objective;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{StreamOptions, StreamTransport};
use zcmi_net::transport::{ConnectionId, Destination, Event, Transport};

use super::{Brief, ConnectionsOptions, Load, LoadError, PATIENCE, Tally};
use crate::child::{Channel, RoleResult};
use crate::pin;

/// The longest piece.
const PIECE_BYTES: u32 = 1 << 20;
/// Pieces of large messages that are received at a time, over all connections.
const LARGE_SLOTS: u32 = 64;
/// Connections that greet at a time.
const GREETINGS: usize = 128;

/// Slots for each connection: one that is promised, one that waits for its acknowledgement, and as many again, because
/// a transport keeps half of its slots for those that ask for them.
const SMALL_SLOTS: u32 = 4;

fn transport(
    connections: usize,
    small_bytes: usize,
    loans: Option<PoolPlan>,
    objective: Objective,
) -> Result<StreamTransport, LoadError> {
    let connections = connections as u32;
    Ok(StreamTransport::new(StreamOptions {
        objective,
        slots: SlotPlan {
            small_bytes: small_bytes as u32,
            small_slots: SMALL_SLOTS * connections + 1024,
            slot_bytes: PIECE_BYTES,
            large_slots: LARGE_SLOTS,
            headers: connections + 4096,
            loans,
        },
        limits: LinkLimits {
            queue: QueueLimits { messages: 64, bytes: 8 << 20 },
            credits: [1, 0],
            streams: 4,
            ..LinkLimits::default()
        },
        connections: connections as usize + 16,
        resume_for: Duration::ZERO,
        ..StreamOptions::default()
    })?)
}

/// The server: what it receives it submits, slot by slot.
pub(super) fn serve(channel: &Channel) -> RoleResult {
    let (brief, _): (Brief, _) = channel.receive(0)?;
    super::raise_descriptors();
    let _pinned = pin::pin(brief.cpu)?;
    let mut transport = transport(brief.connections, brief.small_bytes, None, Objective::ThisEnd)?;
    // Not one of the transport's own, whose sockets nobody can set.
    let listener = super::listener()?;
    listener.set_nonblocking(true)?;
    channel.send(&listener.local_addr()?.to_string(), &[])?;
    let (mut events, mut accepted) = (Vec::new(), 0);
    while accepted < brief.connections {
        match listener.accept() {
            Ok((socket, _)) => {
                transport.adopt_accepting(socket.into())?;
                accepted += 1;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                transport.poll(&mut events, Some(Duration::from_millis(1)))?;
                if channel.is_broken() {
                    return Ok(());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    loop {
        if transport.poll(&mut events, Some(Duration::from_millis(500)))? == 0 && channel.is_broken() {
            return Ok(());
        }
        for event in events.drain(..) {
            match event {
                Event::Received { connection, piece } => {
                    let to = Destination::new(connection).tag(piece.tag);
                    transport.submit(to, piece.lease.into(), Token(0)).map_err(|refused| refused.reason)?;
                }
                Event::Ended { connection } => transport.close(connection),
                _ => {}
            }
        }
    }
}

/// A request under way.
struct Asked {
    bytes: usize,
    answered: usize,
    begun: Instant,
}

/// The side that asks.
pub(super) struct Framed {
    transport: StreamTransport,
    connections: HashMap<ConnectionId, Option<Asked>>,
    messages: [Lease<[u8]>; 2],
    events: Vec<Event>,
    tally: Tally,
}

impl Framed {
    pub(super) fn open(address: &str, options: &ConnectionsOptions) -> Result<Self, LoadError> {
        let tally = Tally::new(options);
        let not_there = |_| LoadError::Closed(format!("{address} is no address"));
        let address: SocketAddr = address.parse().map_err(not_there)?;
        let loans = PoolPlan::single(tally.pattern.len(), 2).ok();
        let mut transport = transport(options.connections, options.small_bytes, loans, Objective::BothEnds)?;
        let mut message = |bytes: usize| {
            let mut lease = transport.loan(bytes).map_err(|error| LoadError::NotTaken(error.to_string()))?;
            lease.copy_from_slice(&tally.pattern[..bytes]);
            Ok::<_, LoadError>(lease.freeze())
        };
        let messages = [message(tally.small)?, message(tally.large)?];
        let mut load = Self { transport, connections: HashMap::new(), messages, events: Vec::new(), tally };
        let (mut dialled, deadline) = (0, Instant::now() + PATIENCE);
        while load.connections.len() < options.connections {
            while dialled < options.connections && dialled < load.connections.len() + GREETINGS {
                let socket = super::dial(address, &mut load.tally)?;
                load.transport.adopt_connecting(socket.into())?;
                dialled += 1;
            }
            load.transport.poll(&mut load.events, Some(Duration::from_millis(100)))?;
            for event in load.events.drain(..) {
                match event {
                    Event::Connected { connection } => _ = load.connections.insert(connection, None),
                    Event::Closed { reason, .. } => return Err(LoadError::Closed(reason.to_string())),
                    _ => {}
                }
            }
            if Instant::now() > deadline {
                return Err(LoadError::Late { what: "not all connections were there", under_way: 0 });
            }
        }
        Ok(load)
    }
}

/// Asks over a connection, and notes that.
fn ask(
    transport: &mut StreamTransport,
    connection: ConnectionId,
    messages: &[Lease<[u8]>; 2],
    tally: &mut Tally,
) -> Result<Asked, LoadError> {
    let bytes = tally.issue();
    let message = &messages[usize::from(bytes != tally.small)];
    transport
        .submit(Destination::new(connection).tag(bytes as u64), message.clone().into(), Token(0))
        .map_err(|refused| LoadError::NotTaken(refused.reason.to_string()))?;
    Ok(Asked { bytes, answered: 0, begun: Instant::now() })
}

impl Load for Framed {
    fn begin(&mut self) -> Result<(), LoadError> {
        for (connection, asked) in self.connections.iter_mut().filter(|(_, asked)| asked.is_none()) {
            *asked = Some(ask(&mut self.transport, *connection, &self.messages, &mut self.tally)?);
        }
        Ok(())
    }

    fn turn(&mut self, asks: bool) -> Result<(), LoadError> {
        self.transport.poll(&mut self.events, Some(Duration::from_millis(100)))?;
        for event in self.events.drain(..) {
            match event {
                Event::Received { connection, piece } => {
                    let Some(place) = self.connections.get_mut(&connection) else { continue };
                    let Some(asked) = place.as_mut().filter(|asked| asked.bytes as u64 == piece.tag) else {
                        return Err(LoadError::Wrong { at: 0, bytes: piece.lease.len() });
                    };
                    self.tally.check(asked.answered, &piece.lease)?;
                    asked.answered += piece.lease.len();
                    if asked.answered == asked.bytes {
                        self.tally.answer(asked.bytes, asked.begun);
                        *place = None;
                        if asks {
                            *place = Some(ask(&mut self.transport, connection, &self.messages, &mut self.tally)?);
                        }
                    }
                }
                Event::Closed { reason, .. } => return Err(LoadError::Closed(reason.to_string())),
                _ => {}
            }
        }
        Ok(())
    }

    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
}
