//! Random operations on a lane, each compared with a model.
#![cfg(not(zcmi_loom))]

mod checked;

use checked::{Checked, Op};
use proptest::prelude::*;
use zcmi_ring::WriterOptions;
use zcmi_ring::layout::SEQUENCE_END;

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u8..6).prop_map(Op::Inline),
        3 => Just(Op::Inline(2)),
        8 => Just(Op::Slot),
        3 => (1u8..12, any::<u8>()).prop_map(|(count, slots)| Op::Batch { count, slots }),
        10 => any::<u8>().prop_map(Op::Read),
        3 => any::<u8>().prop_map(Op::ReadInline),
        2 => (any::<u8>(), 0u8..20).prop_map(|(who, most)| Op::ReadBatch(who, most)),
        2 => (any::<u8>(), 0u8..20).prop_map(|(who, most)| Op::ReadInlineBatch(who, most)),
        6 => (any::<u8>(), any::<u8>()).prop_map(|(who, which)| Op::DropHold(who, which)),
        1 => any::<u8>().prop_map(Op::DropOrphaned),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(who, which)| Op::MarkInKernel(who, which)),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(who, which)| Op::ClearInKernel(who, which)),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(who, holds)| Op::Release(who, holds)),
        2 => (any::<bool>(), 0u8..70, any::<bool>())
            .prop_map(|(reliable, history, late)| Op::Add { reliable, history, late }),
        1 => (any::<bool>(), 0u8..70).prop_map(|(reliable, history)| Op::AddCopying { reliable, history }),
        1 => any::<u8>().prop_map(Op::Remove),
        2 => Just(Op::Reclaim),
    ]
}

/// Starts near every boundary that a sequence number crosses.
fn start() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        (0u64..100).prop_map(|below| (1 << 32) - below),
        (0u64..100).prop_map(|below| SEQUENCE_END - below),
        (0u64..100).prop_map(|below| (1 << 61) - below),
    ]
}

fn run(capacity_log: u32, history: u64, spare: usize, start: u64, ops: &[Op], end_at: Option<(usize, Op)>) {
    let capacity = 1usize << capacity_log;
    let history = history % (capacity as u64 + 1);
    let options = WriterOptions { start, end: SEQUENCE_END, history, slots: true };
    let mut lane = Checked::new(capacity, capacity + spare, options);
    for (at, op) in ops.iter().enumerate() {
        if let Some((_, end)) = end_at.filter(|(when, _)| *when == at) {
            lane.apply(end);
        }
        lane.apply(*op);
    }
    lane.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_outcome_is_that_of_the_model(
        capacity_log in 1u32..=6,
        history in any::<u64>(),
        spare in 0usize..20,
        start in start(),
        ops in prop::collection::vec(op(), 1..300),
        end_at in prop::option::of((0usize..300, prop_oneof![Just(Op::End), Just(Op::EndNow)])),
    ) {
        run(capacity_log, history, spare, start, &ops, end_at);
    }

    #[test]
    fn small_rings_with_few_slots_reuse_them_rightly(
        history in 0u64..=2,
        spare in 0usize..3,
        start in start(),
        ops in prop::collection::vec(op(), 1..300),
    ) {
        run(1, history, spare, start, &ops, None);
    }
}
