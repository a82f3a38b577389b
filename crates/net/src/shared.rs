//! What the sockets of a transport share: an io_uring, opened when the first send wants it, and a pipe.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use zcmi_mem::region::Region;
use zcmi_mem::registration::Support;

use crate::path::PathKind;
use crate::socket::Pipe;
use crate::uring::{self, Options, Ring};

/// What the sockets of a transport share: a pipe, and an io_uring, opened when the first send wants it.
pub(crate) struct SharedRing {
    regions: Vec<Arc<Region>>,
    state: State,
    /// Why a region is not registered, by its number.
    unregistered: Vec<Option<Cow<'static, str>>>,
    next_key: u32,
    pub(crate) pipe: Option<Pipe>,
}

enum State {
    Untried,
    Open(Box<Ring>),
    Refused(String),
}

/// The ring, as each wire holds it.
pub(crate) type RingHandle = Rc<RefCell<SharedRing>>;

impl SharedRing {
    pub(crate) fn new() -> Self {
        Self { regions: Vec::new(), state: State::Untried, unregistered: Vec::new(), next_key: 0, pipe: None }
    }

    pub(crate) fn add_region(&mut self, region: &Arc<Region>) {
        self.regions.push(Arc::clone(region));
        if let State::Open(_) = self.state {
            self.register();
        }
    }

    /// The regions, in the order of their numbers.
    pub(crate) fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// The name of one more socket.
    pub(crate) fn next_key(&mut self) -> u32 {
        self.next_key = self.next_key.wrapping_add(1);
        self.next_key
    }

    /// The ring, if there is one or can be.
    pub(crate) fn open(&mut self) -> Result<&mut Ring, io::Error> {
        if let State::Untried = self.state {
            self.state = match Ring::open(Options::default()) {
                Ok(ring) => State::Open(Box::new(ring)),
                Err(error) => State::Refused(error.to_string()),
            };
            self.register();
        }
        match &mut self.state {
            State::Open(ring) => Ok(ring),
            State::Refused(reason) => Err(io::Error::new(io::ErrorKind::Unsupported, reason.clone())),
            State::Untried => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Shows the ring the regions that it has not seen.
    fn register(&mut self) {
        let State::Open(ring) = &mut self.state else { return };
        for (number, region) in self.regions.iter().enumerate().skip(self.unregistered.len()) {
            let refused = ring.register(number, region).err().map(|error| error.to_string().into());
            self.unregistered.push(refused);
        }
    }

    /// The ring, if it was opened.
    pub(crate) fn opened(&mut self) -> Option<&mut Ring> {
        match &mut self.state {
            State::Open(ring) => Some(ring),
            _ => None,
        }
    }

    /// Whether a path can be used, as far as that can be told without a socket.
    pub(crate) fn support(&self, path: PathKind) -> Support {
        match &self.state {
            State::Refused(reason) => Support::No(reason.clone().into()),
            State::Untried => uring::support(),
            State::Open(ring) if path == PathKind::UringFixed => match self.unregistered.first() {
                Some(Some(reason)) => Support::No(reason.clone()),
                _ => ring.fixed_support(),
            },
            State::Open(_) => Support::Yes,
        }
    }
}
