//! This process's ledger: who counts what, in which block.
//!
//! It lies at the beginning of the process's first region. Each endpoint counts in a block of its own, on the thread
//! that has the endpoint, and only where something was slow anyway; what every message would have to count follows from
//! the lane's words, of which the ledger says where they lie. The control thread has a block for what it does for all.

use std::sync::Arc;
use std::time::Instant;

use zcmi_mem::ledger::{
    Counter, FallbackReason, Identity, LaneCounts, LaneSource, Ledger, LedgerRegion, LedgerWriter, ListedLane, Role,
    SharedCounts,
};
use zcmi_mem::region::{OutOfRegion, Region, RegionId};
use zcmi_ring::LifeMark;

use crate::name::{Incarnation, ServiceName};
use crate::process::ExtentGuard;

/// The ledger of a process.
#[derive(Debug)]
pub(crate) struct ProcessLedger {
    region: LedgerRegion,
    ledger: Arc<Ledger>,
    control: SharedCounts,
    /// The place in the region, kept for the life of the process.
    _place: ExtentGuard,
}

impl ProcessLedger {
    /// Makes the ledger in the first extent of the process's first region.
    pub(crate) fn create(place: ExtentGuard, incarnation: Incarnation) -> Result<Self, OutOfRegion> {
        let extent = place.extent();
        let begin = extent.region().data_offset();
        if extent.offset() != begin {
            return Err(OutOfRegion::InHeader { offset: extent.offset(), data_offset: begin });
        }
        let number = incarnation.as_u128();
        let halves = [number as u64, (number >> 64) as u64];
        let region = LedgerRegion::create(Arc::clone(extent.region()), halves, std::process::id())?;
        let ledger = Arc::clone(region.ledger());
        Ok(Self { control: ledger.control(), ledger, region, _place: place })
    }

    /// The region that observers map.
    pub(crate) fn region(&self) -> &Region {
        self.region.region()
    }

    /// The regions in which the words of listed lanes lie.
    pub(crate) fn listed_regions(&self) -> Vec<RegionId> {
        self.ledger.listed_regions()
    }

    /// What the control thread counts in.
    pub(crate) fn control(&self) -> &SharedCounts {
        &self.control
    }

    /// Counts something that the control thread did.
    pub(crate) fn count(&self, counter: Counter, more: u64) {
        self.control.add(counter, more);
    }

    /// Counts a retreat of the control thread.
    pub(crate) fn fallback(&self, reason: FallbackReason) {
        self.control.fallback(reason);
    }

    /// Opens an endpoint's block.
    pub(crate) fn open(&self, endpoint: u32, service: &ServiceName, role: Role, life: LifeMark) -> EndpointCounts {
        let ledger = Arc::clone(&self.ledger);
        let hash = service.hash();
        let identity = Identity {
            endpoint: endpoint.into(),
            service: [(hash >> 64) as u64, hash as u64],
            role,
            pid: std::process::id(),
        };
        let writer = ledger.open(identity);
        EndpointCounts { ledger, writer: Some(writer), life }
    }
}

/// What one endpoint counts; its block is given back when this drops.
#[derive(Debug)]
pub(crate) struct EndpointCounts {
    ledger: Arc<Ledger>,
    /// There until this drops.
    writer: Option<LedgerWriter>,
    life: LifeMark,
}

impl EndpointCounts {
    /// The writer, whose clones stay on the endpoint's thread.
    pub(crate) fn writer(&self) -> &LedgerWriter {
        self.writer.as_ref().expect("the writer is given back only on drop")
    }

    pub(crate) fn add(&self, counter: Counter, more: u64) {
        self.writer().add(counter, more);
    }

    pub(crate) fn fallback(&self, reason: FallbackReason) {
        self.writer().fallback(reason);
    }

    /// Counts a wait that begins, so that observers see one that does not end.
    pub(crate) fn begin_wait(&self) -> Instant {
        self.add(Counter::Waits, 1);
        Instant::now()
    }

    /// Counts how long a wait took that is over.
    pub(crate) fn end_wait(&self, begin: Instant) {
        self.add(Counter::WaitedNs, u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }

    /// Tells observers where the words of a lane lie.
    pub(crate) fn list(&self, source: &LaneSource) -> ListedLane {
        self.ledger.list(self.writer(), source)
    }

    /// Adds what a lane came to, and takes it off the list.
    pub(crate) fn settle(&self, lane: ListedLane, counts: &LaneCounts) {
        self.ledger.settle(self.writer(), lane, counts);
    }
}

impl Drop for EndpointCounts {
    fn drop(&mut self) {
        // In a forked child the block is the parent's, and not there.
        if self.life.is_present()
            && let Some(writer) = self.writer.take()
        {
            self.ledger.close(writer);
        }
    }
}
