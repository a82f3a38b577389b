//! The memory of a two-sided measurement: each side writes a region of its own and maps the other's read-only.
//!
//! Two processes get sealed memfd regions; two threads get anonymous memory, of transparent huge pages like those.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zcmi_mem::region::{PeerRegion, PeerTrust, Region, RegionClaim, RegionId, RegionKind};
use zcmi_ring::{Shared, View};

pub use zcmi_mem::region::Span;

use crate::child::{Channel, Child, ChildError};
use crate::link::LinkError;
use crate::pin::{self, Pair, Pinned};

/// Where data begins in a side's region.
pub const DATA_OFFSET: usize = zcmi_mem::region::HEADER_BYTES;

/// Why a side's memory could not be made, received or reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SideError {
    /// The region could not be made.
    #[error("a region of {bytes} bytes cannot be made")]
    Create {
        /// Its size.
        bytes: usize,
        /// Why not.
        source: zcmi_mem::region::RegionError,
    },
    /// The other side's region was refused.
    #[error("the other side's region is refused")]
    Receive(#[source] Box<zcmi_mem::region::ReceivedRegionError>),
    /// Memory that cannot be handed to another process.
    #[error("this memory has no descriptor to hand to another process")]
    Private,
    /// A range that the region does not have.
    #[error("the region is too small for its use")]
    Range(#[from] zcmi_mem::region::OutOfRegion),
}

/// A region as one side sees it.
#[derive(Clone, Debug)]
pub struct Side {
    memory: Memory,
}

#[derive(Clone, Debug)]
enum Memory {
    Ours(Arc<Region>),
    Theirs(Arc<PeerRegion>),
}

/// What the other side must know to map a region.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Announced {
    id: [u64; 2],
    bytes: u64,
}

impl Side {
    /// A region of at least `bytes` bytes that another process can map.
    ///
    /// # Errors
    /// There is too little memory, or the system refuses.
    pub fn create(bytes: usize) -> Result<Self, SideError> {
        let region = Region::options(bytes).create().map_err(|source| SideError::Create { bytes, source })?;
        Ok(Self { memory: Memory::Ours(Arc::new(region)) })
    }

    /// Two regions of at least `bytes` bytes for two threads of this process.
    ///
    /// # Errors
    /// There is too little memory.
    pub fn two_anonymous(bytes: usize) -> Result<(Self, Self), SideError> {
        let one = || {
            let region = Region::options(bytes).kind(RegionKind::Anonymous).create();
            let region = region.map_err(|source| SideError::Create { bytes, source })?;
            Ok::<_, SideError>(Self { memory: Memory::Ours(Arc::new(region)) })
        };
        Ok((one()?, one()?))
    }

    /// The same memory for another thread.
    #[must_use]
    pub fn peer(&self) -> Self {
        self.clone()
    }

    /// Whether this side writes it.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        matches!(self.memory, Memory::Ours(_))
    }

    /// `count` elements at `offset`.
    ///
    /// # Errors
    /// The region ends before.
    pub fn view<T: Shared>(&self, offset: usize, count: usize) -> Result<View<T>, SideError> {
        Ok(match &self.memory {
            Memory::Ours(region) => region.view(offset, count)?,
            Memory::Theirs(region) => region.view(offset, count)?,
        })
    }

    /// The bytes at `offset`.
    ///
    /// # Errors
    /// The region ends before.
    pub fn span(&self, offset: usize, len: usize) -> Result<Span, SideError> {
        Ok(match &self.memory {
            Memory::Ours(region) => region.bytes(offset, len)?,
            Memory::Theirs(region) => region.bytes(offset, len)?,
        })
    }
}

impl Side {
    /// What another process needs to map this region, with the descriptor.
    fn announce(&self) -> Result<(Announced, BorrowedFd<'_>), SideError> {
        let Memory::Ours(region) = &self.memory else { return Err(SideError::Private) };
        let descriptor = region.descriptor().ok_or(SideError::Private)?;
        let RegionClaim { id, bytes } = region.claim();
        Ok((Announced { id: id.words(), bytes }, descriptor))
    }

    /// Maps the region that the other process announced.
    fn receive(announced: Announced, descriptor: OwnedFd) -> Result<Self, SideError> {
        let claim = RegionClaim { id: RegionId::from_words(announced.id), bytes: announced.bytes };
        let region = PeerRegion::receive(descriptor, &claim, PeerTrust::SameUser)
            .map_err(|refused| SideError::Receive(Box::new(refused)))?;
        Ok(Self { memory: Memory::Theirs(Arc::new(region)) })
    }
}

/// What the near side tells a new child.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Setup {
    cpu: usize,
    payload_bytes: usize,
    region: Announced,
}

/// Two processes that have mapped each other's regions, seen from one of them.
#[derive(Debug)]
pub struct Connected {
    /// The region that this side writes.
    pub ours: Side,
    /// The region that the other side writes.
    pub theirs: Side,
    /// The payload's size, as the near side chose it.
    pub payload_bytes: usize,
}

/// Starts a child in `role`, pinned to the far processor, and exchanges regions of `region_bytes` with it.
///
/// # Errors
/// No child, no memory, or a region that one side refuses.
pub fn connect(
    role: &str,
    payload_bytes: usize,
    region_bytes: usize,
    pair: Pair,
) -> Result<(Child, Connected), LinkError> {
    let child = Child::spawn(role)?;
    let ours = Side::create(region_bytes)?;
    let (region, descriptor) = ours.announce()?;
    child.channel().send(&Setup { cpu: pair.far, payload_bytes, region }, &[descriptor])?;
    let (announced, fds) = child.channel().receive::<Announced>(1)?;
    let theirs = Side::receive(announced, only(fds)?)?;
    Ok((child, Connected { ours, theirs, payload_bytes }))
}

/// The child's part of [`connect`]: pins itself and answers with a region of the size that `region_bytes` gives for the
/// payload's size. The guard must be kept as long as the child serves.
///
/// # Errors
/// As [`connect`].
pub fn accept(channel: &Channel, region_bytes: impl FnOnce(usize) -> usize) -> Result<(Pinned, Connected), LinkError> {
    let (setup, fds) = channel.receive::<Setup>(1)?;
    let pinned = pin::pin(setup.cpu)?;
    let theirs = Side::receive(setup.region, only(fds)?)?;
    let ours = Side::create(region_bytes(setup.payload_bytes))?;
    let (region, descriptor) = ours.announce()?;
    channel.send(&region, &[descriptor])?;
    Ok((pinned, Connected { ours, theirs, payload_bytes: setup.payload_bytes }))
}

fn only(fds: Vec<OwnedFd>) -> Result<OwnedFd, ChildError> {
    let found = fds.len();
    fds.into_iter().next().ok_or(ChildError::Descriptors { expected: 1, found })
}
