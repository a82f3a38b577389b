//! Describing this process to whoever asks.

use super::Control;
use super::links::{Attachments, LinkId};
use crate::observe::MAX_REGIONS;
use crate::report::ProcessReport;
use crate::socket::MAX_DESCRIPTORS;
use crate::wire::{Message, RegionName};
use zcmi_mem::region::Region;

/// Bytes of a report in one message.
const PART_BYTES: usize = 4096;

impl Control {
    pub(super) fn describe(&self) -> ProcessReport {
        let (mut regions, mut region_bytes) = (0, 0);
        self.memory.for_each(|arena| {
            regions += arena.regions().count();
            region_bytes += arena.total_bytes() as u64;
        });
        let publishers = self.publishers.values().map(super::publishers::PublisherEntry::report);
        let subscribers = self.subscribers.values().map(super::subscribers::SubscriberEntry::report);
        let mut endpoints: Vec<_> = publishers.chain(subscribers).collect();
        endpoints.sort_by(|one, other| (&one.service, one.endpoint).cmp(&(&other.service, other.endpoint)));
        ProcessReport {
            incarnation: self.incarnation.to_string(),
            pid: std::process::id(),
            uid: rustix::process::geteuid().as_raw(),
            regions,
            region_bytes,
            endpoints,
        }
    }

    pub(super) fn handle_observe(&mut self, id: LinkId) {
        // Names and sizes of what others share are none of a stranger's business; root may look on.
        if self.stranger_at(id).is_some_and(|identity| identity.uid != 0) {
            return self.drop_link(id);
        }
        self.hand_over_ledger(id);
        let text = self.describe().encode().into_bytes();
        let mut parts = text.chunks(PART_BYTES).peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            self.send(id, &Message::Report { last, text: part.to_vec() }, Attachments::default());
        }
    }
}

impl Control {
    /// Hands over the ledger's region, and those in which the words lie that it names.
    fn hand_over_ledger(&mut self, id: LinkId) {
        let region = self.ledger.region();
        let named = self.ledger.listed_regions();
        let mut others = Vec::new();
        self.memory.for_each(|arena| {
            let listed = arena.regions().filter(|other| other.id() != region.id() && named.contains(&other.id()));
            others.extend(listed.take((MAX_REGIONS - 1).saturating_sub(others.len())).cloned());
        });
        let name = |region: &Region| {
            let descriptor = region.descriptor()?.try_clone_to_owned().ok()?;
            Some((RegionName { id: region.id(), bytes: region.len() as u64, attached: true }, descriptor))
        };
        let all: Vec<_> = [name(region)].into_iter().chain(others.iter().map(|other| name(other))).collect();
        let mut all = all.into_iter().flatten().peekable();
        while all.peek().is_some() {
            let (mut regions, mut attachments) = (Vec::new(), Attachments::default());
            for (name, descriptor) in all.by_ref().take(MAX_DESCRIPTORS) {
                regions.push(name);
                attachments.push(descriptor);
            }
            self.send(id, &Message::Ledger { regions }, attachments);
        }
    }
}
