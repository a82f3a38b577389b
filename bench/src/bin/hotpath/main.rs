//! The hot path between two markers, for `cargo xtask xray` to step through.
//!
//! `hotpath SCENARIO` publishes and receives in one process, over the same lane that two processes would share, and
//! calls the markers around the operation that the scenario names. `empty` has nothing between them.
#![deny(unsafe_code)]

mod raw;

use std::error::Error;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Duration;

use zcmi::directory::RuntimeDirectory;
use zcmi::name::ServiceName;
use zcmi::payload::{Message, payload};
use zcmi::{Process, Publisher, Service, Subscriber, Wait};

/// How often the operation is run between the markers.
const WINDOWS: u64 = 300;

/// A message that travels in the entry.
#[payload]
struct Tick {
    price: u64,
    size: u64,
    time_ns: u64,
}

/// A message that lies in a slot.
#[payload]
struct Book {
    levels: [u64; 32],
}

fn main() -> Result<(), Box<dyn Error>> {
    let scenario = std::env::args().nth(1).ok_or("name a scenario")?;
    let directory = Scratch::new()?;
    let process = Process::open(RuntimeDirectory::at(&directory.0)?)?;
    match scenario.as_str() {
        "empty" => {
            for _ in 0..WINDOWS {
                raw::zcmi_xray_begin();
                raw::zcmi_xray_end();
            }
        }
        "publish-inline" => publish_ticks(pair::<Tick>(&process, false)?)?,
        "publish-inline-64" => {
            // 63 more readers, which never look.
            let service = Service::<Tick>::with(ServiceName::new("hotpath")?, process.clone())?;
            let idle: Vec<_> = (1..64).map(|_| service.subscriber().join()).collect::<Result<_, _>>()?;
            publish_ticks(pair::<Tick>(&process, false)?)?;
            drop(idle);
        }
        "publish-inline-parked" => publish_ticks(pair::<Tick>(&process, true)?)?,
        "receive-inline" => receive_ticks(pair::<Tick>(&process, false)?)?,
        "publish-slot" => publish_books(pair::<Book>(&process, false)?)?,
        "receive-slot" => receive_books(pair::<Book>(&process, false)?)?,
        "loan-and-publish-slot" => loan_and_publish_books(pair::<Book>(&process, false)?)?,
        "receive-and-drop-slot" => receive_and_drop_books(pair::<Book>(&process, false)?)?,
        "publish-batch" => publish_batches::<Tick>(pair(&process, true)?, |number, tick| tick.price = number)?,
        "publish-batch-slot" => {
            publish_batches::<Book>(pair(&process, true)?, |number, book| book.levels[0] = number)?;
        }
        other => return Err(format!("there is no scenario {other:?}").into()),
    }
    Ok(())
}

type Pair<M> = (Publisher<M>, Subscriber<M>);

/// A publisher and its subscriber; `parks` makes it one that may sleep, so that each publish looks whether it does.
fn pair<M: Message>(process: &Process, parks: bool) -> Result<Pair<M>, Box<dyn Error>> {
    let service = Service::<M>::with(ServiceName::new("hotpath")?, process.clone())?;
    let publisher = service.publisher().capacity(1024).create()?;
    let mut subscriber = service.subscriber().wait(if parks { Wait::Park } else { Wait::Spin }).join()?;
    while subscriber.next_event().is_some() {}
    if parks {
        // Sleeping once makes the subscriber known as one that may; its publisher notes it before this returns for
        // long.
        for _ in 0..20 {
            let nothing = subscriber.receive_timeout(Duration::from_millis(2))?;
            debug_assert!(nothing.is_none());
        }
    }
    Ok((publisher, subscriber))
}

fn publish_ticks((mut publisher, mut subscriber): Pair<Tick>) -> Result<(), Box<dyn Error>> {
    for number in 0..WINDOWS {
        let mut tick = publisher.loan()?;
        *tick = Tick { price: number, size: 1, time_ns: 2 };
        raw::zcmi_xray_begin();
        let published = publisher.publish(tick);
        raw::zcmi_xray_end();
        published?;
        black_box(subscriber.try_receive()?.ok_or("a message is there")?.price);
    }
    Ok(())
}

fn receive_ticks((mut publisher, mut subscriber): Pair<Tick>) -> Result<(), Box<dyn Error>> {
    for number in 0..WINDOWS {
        publisher.publish_copy(&Tick { price: number, size: 1, time_ns: 2 })?;
        raw::zcmi_xray_begin();
        let received = subscriber.try_receive();
        raw::zcmi_xray_end();
        assert_eq!(received?.map(|tick| tick.price), Some(number), "the message that was published");
    }
    Ok(())
}

fn publish_books((mut publisher, mut subscriber): Pair<Book>) -> Result<(), Box<dyn Error>> {
    for number in 0..WINDOWS {
        let mut book = publisher.loan()?;
        book.levels[0] = number;
        raw::zcmi_xray_begin();
        let published = publisher.publish(book);
        raw::zcmi_xray_end();
        published?;
        black_box(subscriber.try_receive()?.ok_or("a message is there")?.levels[0]);
    }
    Ok(())
}

fn receive_books((mut publisher, mut subscriber): Pair<Book>) -> Result<(), Box<dyn Error>> {
    for number in 0..WINDOWS {
        let mut book = publisher.loan()?;
        book.levels[0] = number;
        publisher.publish(book)?;
        raw::zcmi_xray_begin();
        let received = subscriber.try_receive();
        raw::zcmi_xray_end();
        assert_eq!(received?.map(|book| book.levels[0]), Some(number), "the message that was published");
    }
    Ok(())
}

fn loan_and_publish_books((mut publisher, mut subscriber): Pair<Book>) -> Result<(), Box<dyn Error>> {
    for number in 0..WINDOWS {
        raw::zcmi_xray_begin();
        let mut book = publisher.loan()?;
        book.levels[0] = number;
        let published = publisher.publish(book);
        raw::zcmi_xray_end();
        published?;
        black_box(subscriber.try_receive()?.ok_or("a message is there")?.levels[0]);
    }
    Ok(())
}

fn receive_and_drop_books((mut publisher, mut subscriber): Pair<Book>) -> Result<(), Box<dyn Error>> {
    for number in 0..WINDOWS {
        let mut book = publisher.loan()?;
        book.levels[0] = number;
        publisher.publish(book)?;
        raw::zcmi_xray_begin();
        let received = subscriber.try_receive()?.map(|book| book.levels[0]);
        raw::zcmi_xray_end();
        assert_eq!(received, Some(number), "the message that was published");
    }
    Ok(())
}

fn publish_batches<M: Message>(
    (mut publisher, mut subscriber): Pair<M>,
    fill: impl Fn(u64, &mut M),
) -> Result<(), Box<dyn Error>> {
    for _ in 0..WINDOWS {
        raw::zcmi_xray_begin();
        let published = publisher.publish_batch(16, &fill);
        raw::zcmi_xray_end();
        published?;
        let mut left = 16;
        while left > 0 {
            left -= subscriber.receive_batch(left, |_, message| {
                black_box(message);
            })?;
        }
    }
    Ok(())
}

/// A runtime directory that goes with the program.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Box<dyn Error>> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = std::env::temp_dir().join(format!("zcmi-hotpath-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}
