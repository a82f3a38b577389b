//! How a publisher shall be, and the plan of its memory.

use core::marker::PhantomData;
use std::sync::Arc;
use std::sync::mpsc::channel;

use zcmi_mem::lease::is_inline;
use zcmi_mem::ledger::{FallbackReason, LaneSource, Place, Role};
use zcmi_mem::payload::Message;
use zcmi_mem::pool::{PoolPlan, slot_bytes_for};
use zcmi_ring::layout::{HOLDS, READERS};
use zcmi_ring::sync::AtomicU64;
use zcmi_ring::{Entry, LaneControl, Ring, Seat, WakeWord, Writer, WriterOptions};

use super::wakes::{WakeRate, Wakes};
use super::{
    DEFAULT_BUDGET_BYTES, LaneMemory, MAX_CAPACITY, MAX_MESSAGE_BYTES, NewPublisher, Publisher, PublisherError,
    PublisherShared, Reading, SeatedReader, WhenFull, message_bytes, raw,
};
use crate::audience::{Audience, Who};
use crate::control::Command;
use crate::name::ServiceName;
use crate::process::Process;

/// How a publisher shall be; made by [`Service::publisher`](crate::Service::publisher).
#[derive(Clone, Debug)]
#[must_use = "options make no publisher until `create`"]
pub struct PublisherOptions<M: Message + ?Sized> {
    process: Process,
    service: ServiceName,
    capacity: Option<u64>,
    history: u64,
    max_len: usize,
    loans: u32,
    reader_slots: Option<u32>,
    classes: Option<PoolPlan>,
    when_full: WhenFull,
    late_joiners: bool,
    max_publishers: u32,
    wake_rate: WakeRate,
    allow: Audience,
    may_block: Audience,
    message: PhantomData<fn(&M)>,
}

impl<M: Message + ?Sized> PublisherOptions<M> {
    pub(crate) fn new(process: Process, service: ServiceName) -> Self {
        Self {
            process,
            service,
            capacity: None,
            history: 0,
            max_len: if M::SLICE { 4096 / M::ELEMENT_BYTES.min(4096) } else { 1 },
            loans: 2,
            reader_slots: None,
            classes: None,
            when_full: WhenFull::Block,
            late_joiners: true,
            max_publishers: 64,
            wake_rate: WakeRate::default(),
            allow: Audience::default(),
            may_block: Audience::default(),
            message: PhantomData,
        }
    }

    /// Messages that may be under way, rounded up to a power of two, 2 to 2^20. Default: 1,024, or what 16 MiB hold.
    pub fn capacity(mut self, messages: u64) -> Self {
        self.capacity = Some(messages);
        self
    }

    /// How many past messages a subscriber gets that joins late, at most the capacity. Default: none.
    pub fn history(mut self, messages: u64) -> Self {
        self.history = messages;
        self
    }

    /// The most elements of a message that is a slice. Default: as many as fit 4 KiB, at least one.
    pub fn max_len(mut self, elements: usize) -> Self {
        self.max_len = elements;
        self
    }

    /// How many leases may be out at a time. Default: 2.
    pub fn loans(mut self, leases: u32) -> Self {
        self.loans = leases;
        self
    }

    /// How many slots are set aside for what subscribers hold, over all of them. Default: 1,024, or what 16 MiB hold.
    pub fn reader_slots(mut self, slots: u32) -> Self {
        self.reader_slots = Some(slots);
        self
    }

    /// The pool's size classes, instead of one class for the largest message. Each class must have slots for all that
    /// may be leased, under way and held.
    pub fn classes(mut self, plan: PoolPlan) -> Self {
        self.classes = Some(plan);
        self
    }

    /// What to do when there is no room. Default: [`WhenFull::Block`].
    ///
    /// A subscriber that is stopped, or whose process hung up and lives, goes on counting: only its death, which the
    /// kernel tells, or its leaving ends that. [`WhenFull::BlockFor`] names its process in
    /// [`NoRoom::WaitingFor`](super::NoRoom::WaitingFor). To go on without it, drop the publisher and make a new one of
    /// the same service: subscribers that answer join the new lane, and the memory of the old one is kept until that
    /// process is dead or has left.
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = when_full;
        self
    }

    /// Whether subscribers may join after the first message. Default: yes.
    pub fn late_joiners(mut self, allowed: bool) -> Self {
        self.late_joiners = allowed;
        self
    }

    /// How many publishers the service may have, this one included. Default: 64.
    pub fn max_publishers(mut self, publishers: u32) -> Self {
        self.max_publishers = publishers;
        self
    }

    /// How often one reader is woken; its default suits everything but tests.
    #[cfg(test)]
    pub(super) fn wake_rate(mut self, wake_rate: WakeRate) -> Self {
        self.wake_rate = wake_rate;
        self
    }

    /// Lets others subscribe besides this process's own user; may be called several times. Default: nobody else.
    ///
    /// They copy what they receive and are overtaken when they are slow. They can read all of this publisher's memory,
    /// which is kept apart from that of publishers with another audience. Needs a runtime directory that is shared.
    pub fn allow(mut self, who: Who) -> Self {
        self.allow.add(who);
        self
    }

    /// [Lets others subscribe](Self::allow), and lets them hold this publisher up: none of them loses a message, and
    /// one that stops reading blocks it. Default: nobody but this process's own user.
    pub fn may_block(mut self, who: Who) -> Self {
        self.may_block.add(who);
        self.allow(who)
    }

    /// Makes the publisher, and waits until the subscribers that are there have joined (a second at most; one that is
    /// stopped joins when it goes on).
    ///
    /// # Errors
    /// [`PublisherError`]. All memory is taken here: later nothing can fail for want of it.
    pub fn create(self) -> Result<Publisher<M>, PublisherError> {
        let process = self.process.clone();
        process.guard().check()?;
        let plan = self.plan()?;
        // Asked here too, before memory is taken for nothing.
        if !self.allow.is_own_user() && !process.directory().is_shared() {
            return Err(PublisherError::NotShared { directory: process.directory().path().to_owned() });
        }
        let memory = self.allocate(&process, &plan)?;
        let endpoint = process.next_endpoint();
        let counts = process.ledger().open(endpoint, &self.service, Role::Publisher, process.life());
        let pool = memory.pool.as_ref().map(|(pool, _)| pool.as_ref());
        for _refused in [&memory.control, &memory.ring].into_iter().chain(pool).filter(|part| part.wanted_huge_pages())
        {
            counts.fallback(FallbackReason::NoHugePages);
        }
        let (control, ring) = (memory.control.extent(), memory.ring.extent());
        let impossible = |_| PublisherError::Directory("an extent is smaller than what was asked for".into());
        let control = control.view::<LaneControl>(0, 1).map_err(impossible)?;
        let ring = ring.view::<Entry>(0, plan.capacity as usize).map_err(impossible)?;
        reset(&control, &ring);
        let ring = Ring::new(ring).expect("the capacity is a power of two");
        let wake = memory.wake.extent().view::<AtomicU64>(0, 1).map_err(impossible)?;
        wake.at(0).store(0, zcmi_ring::sync::Ordering::Relaxed);
        let options = WriterOptions { history: self.history, slots: memory.pool.is_some(), ..WriterOptions::default() };
        let mut writer = Writer::new(ring, control, options);
        let mailbox = Arc::clone(process.mailbox());
        writer.tell_of_rogues(Arc::new(move || mailbox.send(Command::Rogues { endpoint })));
        let readers = (0..READERS).map(|_| SeatedReader::default()).collect();
        let wakes = Arc::new(Wakes::new(self.wake_rate, Arc::clone(process.mailbox())));
        let (wake, first) = (WakeWord::new(wake), writer.tail());
        let reading = Reading {
            first,
            writer,
            wake,
            wakes: Arc::clone(&wakes),
            parked: 0,
            readers,
            counts: counts.writer().clone(),
        };
        let (seat, controller) = Seat::new(reading, process.barrier());
        let memory = Arc::new(memory);
        let pool = memory.pool.as_ref().map(|(guard, plan)| raw::pool(guard, plan, process.life()));
        let shared = Arc::new(PublisherShared::default());
        let new = NewPublisher {
            endpoint,
            service: self.service.clone(),
            record: M::message_record(),
            seat: controller,
            shared: Arc::clone(&shared),
            memory: Arc::clone(&memory),
            wakes,
            capacity: plan.capacity,
            holds: plan.holds,
            reserve: plan.reserve,
            late_joiners: self.late_joiners,
            max_publishers: self.max_publishers,
            control_counts: process.ledger().control().clone(),
            allow: self.allow,
            may_block: self.may_block,
        };
        let (reply, answer) = channel();
        process.mailbox().send(Command::CreatePublisher(Box::new(new), reply));
        answer.recv().map_err(|_| PublisherError::NoControl)??;
        let place = |part: &crate::process::ExtentGuard| Place {
            region: part.extent().region().id(),
            offset: part.extent().offset() as u64,
        };
        let listed = counts.list(&LaneSource::Publisher {
            control: place(&memory.control),
            ring: place(&memory.ring),
            capacity: plan.capacity,
            message_bytes: message_bytes::<M>(),
        });
        Ok(Publisher {
            seat,
            pool,
            life: process.life(),
            when_full: self.when_full,
            loans: self.loans,
            largest: plan.largest,
            shared,
            _memory: memory,
            listed: Some(listed),
            counts,
            endpoint,
            service: self.service,
            process,
            message: PhantomData,
        })
    }

    /// Computes capacity, slots and reserve.
    fn plan(&self) -> Result<LanePlan, PublisherError> {
        let range = |option, value: u64, low: u64, high: u64| {
            let fits = (low..=high).contains(&value);
            let error = || PublisherError::Option { option, value, range: format!("{low} to {high}") };
            if fits { Ok(()) } else { Err(error()) }
        };
        // Only a slice has a length to choose.
        let longest = if M::SLICE { MAX_MESSAGE_BYTES / M::ELEMENT_BYTES } else { 1 };
        range("max_len", self.max_len as u64, 1, longest as u64)?;
        range("loans", self.loans.into(), 1, 1 << 16)?;
        range("max_publishers", self.max_publishers.into(), 1, 64)?;
        let largest = self.max_len * M::ELEMENT_BYTES;
        let inline = is_inline(largest, M::ELEMENT_ALIGN);
        let slot_bytes = slot_bytes_for(largest);
        let affordable = (DEFAULT_BUDGET_BYTES / slot_bytes).clamp(2, 1024) as u64;
        let default = if inline { 1024 } else { affordable.next_power_of_two() };
        let capacity = self.capacity.unwrap_or(default.max(self.history));
        range("capacity", capacity, 1, MAX_CAPACITY)?;
        let capacity = capacity.next_power_of_two().max(2);
        range("history", self.history, 0, capacity)?;
        if inline {
            return Ok(LanePlan { capacity, pool: None, holds: 0, reserve: 0, largest });
        }
        // What one reader may hold, and what all may hold together; a join takes its part or is refused.
        let holds = if slot_bytes > 64 << 10 { 2 } else { HOLDS as u32 };
        let reserve = self.reader_slots.unwrap_or((affordable as u32).max(2 * holds));
        let slots = capacity + u64::from(self.loans) + u64::from(reserve);
        let pool = match &self.classes {
            Some(plan) => {
                for class in plan.classes() {
                    range("slots of a class", class.slots.into(), slots, u64::from(zcmi_mem::pool::CLASS_SLOTS))?;
                }
                range("the largest class", plan.largest() as u64, largest as u64, MAX_MESSAGE_BYTES as u64)?;
                plan.clone()
            }
            None => PoolPlan::single(largest, u32::try_from(slots).unwrap_or(u32::MAX))?,
        };
        Ok(LanePlan { capacity, pool: Some(pool), holds, reserve, largest })
    }

    fn allocate(&self, process: &Process, plan: &LanePlan) -> Result<LaneMemory, PublisherError> {
        let lanes = process.lanes();
        let control = lanes.allocate(&self.allow, size_of::<LaneControl>(), align_of::<LaneControl>())?;
        let ring = lanes.allocate(&self.allow, plan.capacity as usize * size_of::<Entry>(), 4096)?;
        let wake = process.wakes().allocate(128, 128)?;
        let pool = match &plan.pool {
            Some(plan) => Some((Arc::new(lanes.allocate(&self.allow, plan.bytes(), 4096)?), plan.clone())),
            None => None,
        };
        Ok(LaneMemory { control, ring, wake, pool })
    }
}

/// Clears what an extent's last user left.
fn reset(control: &zcmi_ring::View<LaneControl>, ring: &zcmi_ring::View<Entry>) {
    control.at(0).reset();
    for index in 0..ring.len() {
        ring.at(index).reset();
    }
}

struct LanePlan {
    capacity: u64,
    pool: Option<PoolPlan>,
    holds: u32,
    reserve: u32,
    largest: usize,
}
