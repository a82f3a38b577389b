//! This process's ledger: who counts what, in which block.
//!
//! It is made with the first endpoint. Each endpoint counts in a block of its own, on the thread that has the endpoint,
//! and only where something was slow anyway; what every message would have to count follows from the lane's words, of
//! which the ledger says where they lie. The control thread has a block for what it does for all.
//!
//! Where there is no memory for the region, the counts are kept all the same and nobody outside can read them: an
//! observer is told that there is no ledger.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use zcmi_mem::ledger::{
    Counter, FallbackReason, Identity, LaneCounts, LaneRow, LaneSource, Ledger, LedgerBlock, LedgerRegion,
    LedgerWriter, ListedLane, Role, SharedCounts,
};
use zcmi_mem::region::{Region, RegionId};
use zcmi_ring::{LifeMark, View};

use crate::name::{Incarnation, ServiceName};

/// Blocks of a ledger that found no region.
const PRIVATE_BLOCKS: usize = 16;

/// The ledger of a process.
#[derive(Debug)]
pub(crate) struct ProcessLedger {
    region: Option<LedgerRegion>,
    ledger: Arc<Ledger>,
    control: SharedCounts,
}

impl ProcessLedger {
    fn create(incarnation: Incarnation) -> Self {
        let (number, pid) = (incarnation.as_u128(), std::process::id());
        match LedgerRegion::create([number as u64, (number >> 64) as u64], pid) {
            Ok(region) => {
                let ledger = Arc::clone(region.ledger());
                Self { control: ledger.control(), ledger, region: Some(region) }
            }
            Err(_no_memory) => {
                let blocks = View::heap(PRIVATE_BLOCKS, |_| LedgerBlock::default());
                let lanes = View::heap(PRIVATE_BLOCKS, |_| LaneRow::default());
                let ledger = Ledger::new(blocks, lanes, pid).expect("there are blocks for endpoints");
                Self { control: ledger.control(), ledger, region: None }
            }
        }
    }

    /// The region that observers map, if there was memory for one.
    pub(crate) fn region(&self) -> Option<&Region> {
        self.region.as_ref().map(LedgerRegion::region)
    }

    /// The regions in which the words of listed lanes lie.
    pub(crate) fn listed_regions(&self) -> Vec<RegionId> {
        self.ledger.listed_regions()
    }

    /// What the control thread counts in.
    pub(crate) fn control(&self) -> &SharedCounts {
        &self.control
    }
}

/// The place of a process's ledger, which is made with the first endpoint.
#[derive(Debug)]
pub(crate) struct LedgerCell {
    incarnation: Incarnation,
    /// What is to be counted once there is a ledger.
    at_the_start: Option<FallbackReason>,
    made: OnceLock<ProcessLedger>,
}

impl LedgerCell {
    pub(crate) fn new(incarnation: Incarnation, at_the_start: Option<FallbackReason>) -> Self {
        Self { incarnation, at_the_start, made: OnceLock::new() }
    }

    /// The ledger, made now if there is none.
    pub(crate) fn get(&self) -> &ProcessLedger {
        self.made.get_or_init(|| {
            let ledger = ProcessLedger::create(self.incarnation);
            if let Some(reason) = self.at_the_start {
                ledger.control.fallback(reason);
            }
            ledger
        })
    }

    /// The ledger, if some endpoint had it made.
    pub(crate) fn if_made(&self) -> Option<&ProcessLedger> {
        self.made.get()
    }

    /// Counts something that the control thread did. Before the first endpoint it does nothing that is counted.
    pub(crate) fn count(&self, counter: Counter, more: u64) {
        if let Some(ledger) = self.made.get() {
            ledger.control.add(counter, more);
        }
    }

    /// Counts a retreat of the control thread.
    pub(crate) fn fallback(&self, reason: FallbackReason) {
        if let Some(ledger) = self.made.get() {
            ledger.control.fallback(reason);
        }
    }

    /// Opens an endpoint's block.
    pub(crate) fn open(&self, endpoint: u32, service: &ServiceName, role: Role, life: LifeMark) -> EndpointCounts {
        let ledger = Arc::clone(&self.get().ledger);
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
