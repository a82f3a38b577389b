//! The suite of transports over a device that gathers no scattered pages, so that whatever path bytes leave by, they
//! are copied into packets on the way into it.

#[path = "../../crates/net/tests/conformance/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros, reason = "what breaks connections needs one made again")]
mod conformance;

use conformance::{End, Rig, Wish};
use zcmi_bench::wires::{Wire, WireKind};
use zcmi_mem::pool::PoolPlan;
use zcmi_net::path::PathKind;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{StreamOptions, StreamTransport};
use zcmi_net::transport::{ConnectionId, Event};

/// Streams over a wire, by one path or the cheapest.
struct Wired<'a> {
    wire: &'a Wire,
    path: Option<PathKind>,
}

impl Rig for Wired<'_> {
    type Transport = StreamTransport;

    fn pair(&self, wish: Wish) -> (End<StreamTransport>, End<StreamTransport>) {
        let make = || {
            let options = StreamOptions {
                slots: SlotPlan {
                    small_bytes: 1024,
                    small_slots: wish.small_slots,
                    slot_bytes: wish.slot_bytes,
                    large_slots: wish.large_slots,
                    headers: 256,
                    loans: PoolPlan::doubling(64, wish.message_bytes, wish.loans).ok(),
                },
                limits: wish.limits(),
                path: self.path,
                resume_for: std::time::Duration::ZERO,
                ..StreamOptions::default()
            };
            StreamTransport::new(options).expect("a transport")
        };
        let (mut one, mut two, streams) = (make(), make(), self.wire.streams().expect("a stream"));
        let connection = one.adopt_connecting(streams.sender).expect("a stream");
        two.adopt_accepting(streams.receiver).expect("a stream");
        let mut one = End { transport: one, connection, seen: Vec::new(), keep: None };
        let mut two = End { transport: two, connection: ConnectionId::NONE, seen: Vec::new(), keep: None };
        conformance::until("a connection", [&mut one, &mut two], |one, two| {
            let accepted = two.seen.iter().find_map(|event| match event {
                Event::Accepted { connection, .. } => Some(*connection),
                _ => None,
            });
            two.connection = accepted.unwrap_or(ConnectionId::NONE);
            !one.seen.is_empty() && accepted.is_some()
        });
        (one.seen, two.seen) = (Vec::new(), Vec::new());
        (one, two)
    }

    fn break_off(&self, _: &mut End<StreamTransport>) {
        unreachable!("a socket that was handed over is not made again");
    }

    fn went_by_the_path(&self, end: &End<StreamTransport>) -> bool {
        let counts = end.transport.facts(end.connection).expect("it is there").counts;
        self.path.is_none_or(|path| counts.paths[path as usize].bytes > 0)
    }
}

#[test]
fn without_scatter_gather_everything_arrives_by_each_path() {
    let wire = match Wire::make(WireKind::Veth) {
        Ok(wire) => wire,
        Err(unavailable) => {
            println!("SKIP: {}", unavailable.reason());
            return;
        }
    };
    // It reads back what it set.
    wire.set_scatter_gather(false).expect("a device that lets it be switched");
    for path in PathKind::ALL.map(Some).into_iter().chain([None]) {
        let rig = Wired { wire: &wire, path };
        conformance::messages_keep_their_bounds_and_their_order(&rig);
        conformance::a_graceful_end_loses_nothing(&rig);
    }
}
