//! What a process does that means harm: it writes nonsense into its own shared memory, tries to write what it was
//! given, and says anything over its connections.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::Outcome;
use super::words::Words;
use crate::look;
use crate::seed::Random;

/// Overwrites words of this process's own shared memory, headers left out, for so many milliseconds.
pub(super) fn scribble(words: &Words) -> Outcome {
    let mut random = Random::of(words.number("seed")?);
    let memory = OpenOptions::new().write(true).open("/proc/self/mem").map_err(|error| error.to_string())?;
    let mappings: Vec<_> = look::shared_mappings().into_iter().filter(|mapping| mapping.writable).collect();
    let end = Instant::now() + Duration::from_millis(words.number("ms")?);
    let mut written = 0_u64;
    while Instant::now() < end {
        for mapping in &mappings {
            let data = mapping.end - mapping.begin - 4096;
            // Small words are as bad as large ones: they look like stamps and cursors.
            let word = random.below(u64::MAX) >> random.below(64);
            let at = mapping.begin + 4096 + random.below(data as u64 / 8) as usize * 8;
            memory.write_all_at(&word.to_le_bytes(), at as u64).map_err(|error| error.to_string())?;
            written += 1;
        }
    }
    Ok(format!("written={written}"))
}

/// Tries to change the regions that others handed to this process.
pub(super) fn try_memory() -> Outcome {
    let foreign: Vec<_> = look::shared_mappings().into_iter().filter(|mapping| !mapping.writable).collect();
    let memory = OpenOptions::new().write(true).open("/proc/self/mem").map_err(|error| error.to_string())?;
    for mapping in &foreign {
        if memory.write_at(&[1], mapping.begin as u64 + 4096).is_ok() {
            return Err(format!("{} was written", mapping.name));
        }
        if !crate::sys::refuses_to_be_writable(mapping.begin, mapping.end - mapping.begin) {
            return Err(format!("{} was made writable", mapping.name));
        }
        // The way to a file whose descriptor is closed, which the kernel opens to nobody without rights.
        let path = format!("/proc/self/map_files/{:x}-{:x}", mapping.begin, mapping.end);
        if let Ok(file) = OpenOptions::new().write(true).open(&path) {
            let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            let changed = file.write_at(&[1], 4096).is_ok()
                || file.set_len(0).is_ok()
                || rustix::fs::fallocate(&file, punch, 4096, 4096).is_ok();
            if changed {
                return Err(format!("{} was opened anew and changed", mapping.name));
            }
        }
    }
    Ok(format!("foreign={}", foreign.len()))
}

/// Says `what` over connections to the process of that name, for so many milliseconds.
pub(super) fn hammer(words: &Words) -> Outcome {
    let directory = std::env::var("ZCMI_RUNTIME_DIR").map_err(|error| error.to_string())?;
    let own = words.given("as").unwrap_or("0123456789abcdef0123456789abcdef").to_owned();
    let path = format!("{directory}/p/{}", words.text("process")?);
    let mut random = Random::of(words.number("seed")?);
    let end = Instant::now() + Duration::from_millis(words.number("ms")?);
    let (mut connected, mut refused, mut sent) = (0, 0, 0_u64);
    let mut open = Vec::new();
    while Instant::now() < end {
        let Some(socket) = connect(&path) else {
            refused += 1;
            open.clear();
            continue;
        };
        connected += 1;
        let messages: Vec<Vec<u8>> = match words.text("what")? {
            // Says nothing, and keeps the connection.
            "silence" => Vec::new(),
            "garbage" => {
                (0..8).map(|_| (0..random.below(200) + 1).map(|_| random.below(256) as u8).collect()).collect()
            }
            "parks" => {
                let park = |publisher: u32| {
                    let mut park = 17_u16.to_le_bytes().to_vec();
                    park.extend(publisher.to_le_bytes());
                    park.extend([1, 0, 0, 0]);
                    park.extend(0_u64.to_le_bytes());
                    park
                };
                std::iter::once(hello(&own)).chain((0..1000).map(|number| park(number % 8))).collect()
            }
            "name" => vec![hello(&own)],
            "descriptors" => vec![hello(&own), b"\x07\x00\x01\x00\x00\x00\x01\x00\x00\x00".to_vec()],
            other => return Err(format!("`{other}` is nothing to say")),
        };
        for message in messages {
            let said = rustix::net::send(&socket, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            sent += u64::from(said.is_ok());
        }
        open.push(socket);
        if open.len() > 40 {
            open.clear();
        }
    }
    if words.is_set("keep") {
        // For as long as this process lives.
        open.into_iter().for_each(std::mem::forget);
    }
    Ok(format!("connected={connected} refused={refused} sent={sent}"))
}

/// Connects to the process of that name as fast as it goes, for so many milliseconds, and keeps the newest `held`
/// connections open. It says nothing.
pub(super) fn connect_all(words: &Words) -> Outcome {
    let directory = std::env::var("ZCMI_RUNTIME_DIR").map_err(|error| error.to_string())?;
    let path = format!("{directory}/p/{}", words.text("process")?);
    let held = words.number("held")? as usize;
    let end = Instant::now() + Duration::from_millis(words.number("ms")?);
    let (mut connected, mut refused) = (0_u64, 0_u64);
    let mut open = VecDeque::new();
    while Instant::now() < end {
        let Some(socket) = connect(&path) else {
            refused += 1;
            continue;
        };
        connected += 1;
        open.push_back(socket);
        if open.len() > held {
            open.pop_front();
        }
    }
    Ok(format!("connected={connected} refused={refused} held={}", open.len()))
}

/// A greeting as the protocol wants it.
fn hello(incarnation: &str) -> Vec<u8> {
    let mut hello = 1_u16.to_le_bytes().to_vec();
    hello.extend(b"zcmi/ipc");
    hello.extend(1_u16.to_le_bytes());
    hello.extend(1_u16.to_le_bytes());
    hello.extend(0x0102_0304_u32.to_ne_bytes());
    hello.extend(u128::from_str_radix(incarnation, 16).unwrap_or(0).to_le_bytes());
    hello
}

fn connect(path: &str) -> Option<OwnedFd> {
    let (directory, name) = path.rsplit_once('/')?;
    // An address is short, and the directory may not be.
    let directory = File::open(directory).ok()?;
    let short = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).ok()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(short.as_str()).ok()?).ok()?;
    Some(socket)
}
