//! A peer that is gone without a word that arrived is noticed, although nothing is sent.

use std::time::{Duration, Instant};

use zcmi_bench::wires::{Side, Wire, WireKind};
use zcmi_net::stream::{StreamOptions, StreamTransport};
use zcmi_net::transport::{Event, Transport};

#[test]
fn a_silent_connection_to_a_peer_that_vanished_is_closed() {
    let wire = match Wire::make(WireKind::Veth) {
        Ok(wire) => wire,
        Err(unavailable) => {
            println!("SKIP: {}", unavailable.reason());
            return;
        }
    };
    let streams = wire.streams().expect("a connection");
    let options =
        StreamOptions { keep_alive: Duration::from_secs(1), resume_for: Duration::ZERO, ..StreamOptions::default() };
    let mut near = StreamTransport::new(options.clone()).expect("a transport");
    let mut far = StreamTransport::new(options).expect("a transport");
    near.adopt_connecting(streams.sender).expect("a connection");
    far.adopt_accepting(streams.receiver).expect("a connection");
    let (mut events, begin) = (Vec::new(), Instant::now());
    while !events.iter().any(|event| matches!(event, Event::Connected { .. })) {
        assert!(begin.elapsed() < Duration::from_secs(20), "no connection");
        near.poll(&mut events, Some(Duration::from_millis(1))).expect("it goes on");
        far.poll(&mut Vec::new(), Some(Duration::from_millis(1))).expect("it goes on");
    }
    events.clear();
    // From here on nothing of the far side arrives, and nothing is to be said.
    let device = wire.ip(Side::Receiver, &["-o", "link", "show", "type", "veth"]).expect("its devices");
    let name = device.split([':', '@']).nth(1).expect("a name").trim().to_owned();
    wire.ip(Side::Receiver, &["link", "set", &name, "down"]).expect("it goes down");
    let begin = Instant::now();
    while !events.iter().any(|event| matches!(event, Event::Closed { .. })) {
        assert!(begin.elapsed() < Duration::from_secs(30), "nobody noticed");
        near.poll(&mut events, Some(Duration::from_millis(100))).expect("it goes on");
    }
    println!("noticed after {:?}", begin.elapsed());
}
