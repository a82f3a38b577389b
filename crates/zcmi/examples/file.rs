//! Sends a file to another process in pieces of at most 1 MiB; the file is read straight into the slots.
//!
//! `file SOURCE TARGET` copies one file to another this way. Without arguments it sends its own executable to a file in
//! the temporary directory, compares the two, and removes the copy.

use std::error::Error;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use zcmi::prelude::*;

/// The most bytes of a message.
const PIECE_BYTES: usize = 1 << 20;
/// How long each side waits for the other before it gives up.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => show(),
        ["receive", name, target] => receive(name, Path::new(target)),
        [source, target] => send(Path::new(source), Path::new(target)),
        _ => Err("usage: file [SOURCE TARGET]".into()),
    }
}

fn show() -> Result<(), Box<dyn Error>> {
    let source = std::env::current_exe()?;
    let target = std::env::temp_dir().join(format!("zcmi-example-file-{}", std::process::id()));
    let sent = send(&source, &target);
    let same = sent.and_then(|()| Ok(fs::read(&source)? == fs::read(&target)?));
    // After a failure there may be nothing to remove.
    let removed = fs::remove_file(&target);
    println!("the copy is {}", if same? { "the same" } else { "another" });
    Ok(removed?)
}

/// Publishes the source, with a subscriber in a process of its own that writes the target.
fn send(source: &Path, target: &Path) -> Result<(), Box<dyn Error>> {
    let source = File::open(source)?;
    let name = format!("examples/file-{}", std::process::id());
    let pieces = Service::<[u8]>::new(&name)?;
    // A stream has one publisher, and nobody joins in its middle.
    let options = pieces.publisher().max_publishers(1).late_joiners(false).when_full(WhenFull::BlockFor(PATIENCE));
    let publisher = options.max_len(PIECE_BYTES).capacity(8).loans(1).reader_slots(2).create()?;
    let receiver = [Path::new("receive"), Path::new(&name), target];
    let mut subscriber = Command::new(std::env::current_exe()?).args(receiver).spawn()?;
    let published = publish(publisher, source);
    let status = subscriber.wait()?;
    published?;
    if status.success() { Ok(()) } else { Err(format!("the subscriber ended with {status}").into()) }
}

fn publish(mut publisher: Publisher<[u8]>, mut source: File) -> Result<(), Box<dyn Error>> {
    if publisher.wait_for_subscribers(1, PATIENCE) == 0 {
        return Err("no subscriber came".into());
    }
    let mut left = source.metadata()?.len();
    while left > 0 {
        let mut piece = publisher.loan_slice(left.min(PIECE_BYTES as u64) as usize)?;
        source.read_exact(&mut piece)?;
        left -= piece.len() as u64;
        publisher.publish(piece)?;
    }
    Ok(())
}

fn receive(name: &str, target: &Path) -> Result<(), Box<dyn Error>> {
    let received = write(name, target);
    if received.is_err() && target.is_file() {
        // Half a file is none.
        fs::remove_file(target)?;
    }
    received
}

fn write(name: &str, target: &Path) -> Result<(), Box<dyn Error>> {
    let mut subscriber = Service::<[u8]>::new(name)?.subscriber().holds(1).join()?;
    let (mut target, mut bytes) = (File::create(target)?, 0);
    loop {
        if let Some(piece) = subscriber.receive_timeout(PATIENCE)? {
            target.write_all(&piece)?;
            bytes += piece.len();
            continue;
        }
        match subscriber.next_event() {
            Some(Event::Joined { .. }) => {}
            Some(Event::Ended { sequence, .. }) => {
                println!("{bytes} bytes in {sequence} pieces");
                return Ok(());
            }
            Some(other) => return Err(format!("the stream broke off at byte {bytes}: {other:?}").into()),
            None => return Err(format!("nothing came for {PATIENCE:?}").into()),
        }
    }
}
