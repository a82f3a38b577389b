//! Hands 4K frames to another process, which looks at every byte where the publisher wrote it.
//!
//! Started without an argument it publishes, and starts itself once more as the subscriber.

use std::error::Error;
use std::process::Command;
use std::time::{Duration, Instant};

use zcmi::prelude::*;

/// 3840 x 2160 pixels of three colours.
const FRAME_BYTES: usize = 3840 * 2160 * 3;
const FRAMES: u64 = 60;
/// How long each side waits for the other before it gives up.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => start(),
        ["receive", name] => receive(name),
        _ => Err("usage: frames".into()),
    }
}

/// Publishes, with a subscriber in a process of its own.
fn start() -> Result<(), Box<dyn Error>> {
    // A name of this run, so that two runs at a time do not meet.
    let name = format!("examples/frames-{}", std::process::id());
    let frames = Service::<[u8]>::new(&name)?;
    let options = frames.publisher().max_len(FRAME_BYTES).when_full(WhenFull::BlockFor(PATIENCE));
    // Five frames of memory: two under way, one being written, two in the subscriber's hands.
    let publisher = options.capacity(2).loans(1).reader_slots(2).create()?;
    let mut subscriber = Command::new(std::env::current_exe()?).args(["receive", &name]).spawn()?;
    let published = publish(publisher);
    // The subscriber ends by itself: the publisher is gone, in good order or not.
    let status = subscriber.wait()?;
    published?;
    if status.success() { Ok(()) } else { Err(format!("the subscriber ended with {status}").into()) }
}

fn publish(mut publisher: Publisher<[u8]>) -> Result<(), Box<dyn Error>> {
    if publisher.wait_for_subscribers(1, PATIENCE) == 0 {
        return Err("no subscriber came".into());
    }
    for number in 0..FRAMES {
        let mut frame = publisher.loan_slice(FRAME_BYTES)?;
        frame.fill(number as u8);
        publisher.publish(frame)?;
    }
    // Dropping the publisher ends the lane in good order.
    Ok(())
}

fn receive(name: &str) -> Result<(), Box<dyn Error>> {
    let frames = Service::<[u8]>::new(name)?;
    let mut subscriber = frames.subscriber().holds(2).join()?;
    let (mut received, mut in_place) = (0, 0);
    let begin = Instant::now();
    loop {
        let Some(frame) = subscriber.receive_timeout(PATIENCE)? else {
            // Nothing came, but something may have happened to the publisher.
            match subscriber.next_event() {
                Some(Event::Joined { .. }) => continue,
                Some(Event::Ended { .. }) => break,
                Some(other) => return Err(format!("the stream broke off after {received} frames: {other:?}").into()),
                None => return Err(format!("nothing came for {PATIENCE:?}").into()),
            }
        };
        if frame.len() != FRAME_BYTES || frame.iter().any(|&byte| byte != frame.sequence() as u8) {
            return Err(format!("frame {} is not what was published", frame.sequence()).into());
        }
        in_place += u64::from(frame.is_in_place());
        received += 1;
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("{received} frames of {FRAME_BYTES} bytes, {in_place} of them in place, in {seconds:.2} s");
    if received == FRAMES { Ok(()) } else { Err(format!("{FRAMES} frames were published").into()) }
}
