//! Publishes a typed tick and receives it in place: two ends of one service, here in one program.

use zcmi::prelude::*;

#[payload]
struct Tick {
    price: u64,
    size: u32,
    venue: [u8; 4],
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ticks = Service::<Tick>::new("examples/ticks")?;
    let mut publisher = ticks.publisher().create()?;
    let mut subscriber = ticks.subscriber().join()?;

    let mut tick = publisher.loan()?;
    *tick = Tick { price: 101_250, size: 7, venue: *b"XETR" };
    publisher.publish(tick)?;

    while let Some(event) = subscriber.next_event() {
        println!("{event:?}");
    }
    if let Some(tick) = subscriber.receive()? {
        println!("{} at {}", tick.size, tick.price);
    }
    Ok(())
}
