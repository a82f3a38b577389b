//! The sending side of messages, over any transport.

use std::time::{Duration, Instant};

use rustix::process::Pid;
use zcmi_mem::lease::Lease;
use zcmi_net::outgoing::{SubmitError, Token};
use zcmi_net::transport::{Closed, ConnectionId, Destination, Event, Transport};

use super::{CellError, PATIENCE, WINDOW_BYTES, WINDOW_MESSAGES};
use crate::cpu::CpuMeter;
use crate::stats::Latencies;

/// What sends as fast as it can.
pub(super) trait Sends {
    /// Sends for so long. Returns how many bytes were sent, of messages those that were completed, and how long it
    /// took.
    fn send_for(&mut self, length: Duration) -> Result<(u64, Duration), CellError>;

    /// The same after a warm-up, with the processor time of this process and of others.
    fn measure(&mut self, length: Duration, others: &[Pid]) -> Result<(u64, Duration, u64), CellError> {
        self.send_for(length / 4)?;
        let meter = CpuMeter::start(others)?;
        let (bytes, elapsed) = self.send_for(length)?;
        Ok((bytes, elapsed, meter.read()?.total_ns()))
    }
}

impl<T: Transport> Sends for Sender<T> {
    fn send_for(&mut self, length: Duration) -> Result<(u64, Duration), CellError> {
        let (begin, before) = (Instant::now(), self.completed);
        while begin.elapsed() < length {
            self.turn()?;
        }
        Ok(((self.completed - before) * self.bytes as u64, begin.elapsed()))
    }
}

/// Connections over which one message goes again and again.
pub(super) struct Sender<T> {
    pub(super) transport: T,
    pub(super) connections: Vec<ConnectionId>,
    message: Lease<[u8]>,
    bytes: usize,
    window: usize,
    open: Vec<usize>,
    completed: u64,
    events: Vec<Event>,
}

impl<T: Transport> Sender<T> {
    /// Takes connections that have begun, and waits until all are there.
    pub(super) fn new(mut transport: T, connections: Vec<ConnectionId>, bytes: usize) -> Result<Self, CellError> {
        let mut lease = transport.loan(bytes).map_err(|error| CellError::NotTaken(error.to_string()))?;
        lease.fill(0x5a);
        let mut sender = Self {
            window: (WINDOW_BYTES / bytes).clamp(2, WINDOW_MESSAGES),
            open: vec![0; connections.len()],
            transport,
            connections,
            message: lease.freeze(),
            bytes,
            completed: 0,
            events: Vec::new(),
        };
        let (mut connected, deadline) = (0, Instant::now() + PATIENCE);
        while connected < sender.connections.len() {
            sender.transport.poll(&mut sender.events, Some(Duration::from_millis(100)))?;
            for event in sender.events.drain(..) {
                match event {
                    Event::Connected { .. } => connected += 1,
                    Event::Closed { reason, .. } => return Err(CellError::Closed(reason.to_string())),
                    _ => {}
                }
            }
            if Instant::now() > deadline {
                return Err(CellError::Late("no greeting came"));
            }
        }
        Ok(sender)
    }

    /// Whether there was room for one more message on the connection of that number.
    fn submit(&mut self, number: usize) -> Result<bool, CellError> {
        let (to, token) = (Destination::new(self.connections[number]), Token(number as u64));
        match self.transport.submit(to, self.message.clone().into(), token) {
            Ok(()) => Ok(true),
            Err(refused) => match refused.reason {
                SubmitError::Full { .. } | SubmitError::FullBytes { .. } => Ok(false),
                other => Err(CellError::NotTaken(other.to_string())),
            },
        }
    }

    /// Fills the windows, and waits until something happens.
    pub(super) fn turn(&mut self) -> Result<(), CellError> {
        for number in 0..self.connections.len() {
            while self.open[number] < self.window && self.submit(number)? {
                self.open[number] += 1;
            }
        }
        if self.transport.poll(&mut self.events, Some(PATIENCE))? == 0 {
            return Err(CellError::Late("no message was completed"));
        }
        for event in self.events.drain(..) {
            match event {
                Event::Completed { token, .. } => {
                    self.open[token.0 as usize] -= 1;
                    self.completed += 1;
                }
                Event::Closed { reason, .. } => return Err(CellError::Closed(reason.to_string())),
                Event::Interrupted { reason, .. } => return Err(CellError::Closed(reason)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Round trips over the first connection, after some that do not count.
    pub(super) fn round_trips(&mut self, samples: u64) -> Result<Latencies, CellError> {
        let mut latencies = Latencies::of_round_trips();
        for sample in 0..samples + samples / 10 {
            let begin = Instant::now();
            self.round_trip()?;
            if sample >= samples / 10 {
                latencies.record_ns(begin.elapsed().as_nanos() as u64);
            }
        }
        Ok(latencies)
    }

    /// One message there, and one back.
    fn round_trip(&mut self) -> Result<(), CellError> {
        if !self.submit(0)? {
            return Err(CellError::NotTaken("a single message found no room".into()));
        }
        // Each piece comes back as a message of its own.
        let mut answered = 0;
        loop {
            if self.transport.poll(&mut self.events, Some(PATIENCE))? == 0 {
                return Err(CellError::Late("no answer came"));
            }
            for event in self.events.drain(..) {
                match event {
                    Event::Received { piece, .. } => answered += piece.lease.len(),
                    Event::Closed { reason, .. } => return Err(CellError::Closed(reason.to_string())),
                    Event::Interrupted { reason, .. } => return Err(CellError::Closed(reason)),
                    _ => {}
                }
            }
            if answered >= self.bytes {
                return Ok(());
            }
        }
    }

    /// Ends all connections in good order.
    pub(super) fn end(mut self) -> Result<(), CellError> {
        self.connections.iter().for_each(|&connection| self.transport.close(connection));
        let mut open = self.connections.len();
        while open > 0 {
            if self.transport.poll(&mut self.events, Some(PATIENCE))? == 0 {
                return Err(CellError::Late("no end came"));
            }
            for event in self.events.drain(..) {
                match event {
                    Event::Closed { reason: Closed::Ended, .. } => open -= 1,
                    Event::Closed { reason, .. } => return Err(CellError::Closed(reason.to_string())),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Gives all connections up.
    pub(super) fn give_up(&mut self) -> Result<(), CellError> {
        self.connections.iter().for_each(|&connection| self.transport.abort(connection));
        self.transport.poll(&mut self.events, Some(Duration::ZERO))?;
        Ok(())
    }
}
