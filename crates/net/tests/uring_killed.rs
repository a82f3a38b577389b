//! What a ring that has its socket registered goes on sending after its process was killed.
//!
//! The library registers no sockets. Here a ring of the test's own does: its end waits for the notifications that are
//! owed, and it holds the socket meanwhile, so that neither the death of the process nor a linger of zero recalls what
//! it was sending. What the rule of who may let the kernel read a slot rests on is shown both ways: while nobody can
//! write those bytes they arrive right, and once somebody can, wrong.
#![deny(unsafe_code)]

mod uring_rig;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

use uring_rig::sys::Common;
use uring_rig::{POISON, byte_at, sys};

/// More than both sockets hold.
const BYTES: usize = 1 << 20;

/// What a receiver got that began to read when the sender was dead.
#[derive(Debug)]
struct Got {
    /// How many bytes the kernel took of the sender.
    taken: usize,
    /// How many came.
    came: usize,
    /// How many of these were written after its death.
    poison: usize,
    /// Whether anything else came.
    garbled: bool,
}

/// Kills a process that sends by a registered socket; `writes` is whether a survivor writes into that memory then.
fn kill_sender(writes: bool) -> Got {
    let memory = Common::new(BYTES).expect("memory");
    memory.fill(byte_at);
    let (sender, mut receiver) = uring_rig::tcp(true);
    rustix::net::sockopt::set_socket_send_buffer_size(&sender, 4 * BYTES).expect("SO_SNDBUF");
    rustix::net::sockopt::set_socket_linger(&sender, Some(Duration::ZERO)).expect("SO_LINGER");
    let (mut told, mut tell) = std::io::pipe().expect("a pipe");
    let child = sys::fork(|| {
        let taken = sys::send_by_registered_socket(sender.as_fd(), memory).unwrap_or(0);
        let _ = tell.write_all(&(taken as u64).to_le_bytes());
        // It is killed here, or ends after a while if the test did.
        let while_it_lives = rustix::event::Timespec { tv_sec: uring_rig::PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut [], Some(&while_it_lives));
    });
    let child = child.expect("a child");
    drop((sender, tell));
    let mut taken = [0; 8];
    let heard = told.read_exact(&mut taken);
    sys::kill(child).expect("it lives");
    heard.expect("it says what it sent");
    if writes {
        memory.fill(|_| POISON);
    }
    receiver.set_nonblocking(false).expect("a socket");
    receiver.set_read_timeout(Some(uring_rig::PATIENCE)).expect("a timeout");
    let (came, poison, garbled) = read_all(&mut receiver);
    Got { taken: u64::from_le_bytes(taken) as usize, came, poison, garbled }
}

/// How many bytes come until the stream ends, how many of them are poison, and whether any is neither that nor right.
fn read_all(receiver: &mut TcpStream) -> (usize, usize, bool) {
    let (mut came, mut poison, mut garbled) = (0, 0, false);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match receiver.read(&mut buffer) {
            Ok(0) => return (came, poison, garbled),
            Ok(count) => {
                for &byte in &buffer[..count] {
                    poison += usize::from(byte == POISON);
                    garbled |= byte != POISON && byte != byte_at(came as u64);
                    came += 1;
                }
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return (came, poison, garbled),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("after {came} bytes: {error}"),
        }
    }
}

#[test]
fn a_registered_socket_sends_on_after_its_process_was_killed_and_what_nobody_can_write_arrives_right() {
    if !uring_rig::is_there() {
        return;
    }
    let alone = kill_sender(false);
    println!("nobody can write: {alone:?}");
    assert!(alone.came > BYTES / 4 && alone.came <= alone.taken, "little was on its way: {alone:?}");
    assert_eq!((alone.poison, alone.garbled), (0, false), "{alone:?}");
    // Were it not for that, the slot of a dead process would have to be kept.
    let reused = kill_sender(true);
    println!("a survivor writes: {reused:?}");
    assert!(!reused.garbled, "{reused:?}");
    assert!(reused.poison > 0, "death recalled what was on its way: the rule guards against nothing: {reused:?}");
}
