//! Plain loops of `write` and `read`, without messages: what the paths are compared with.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::receiver::Received;
use super::sender::Sends;
use super::{CellError, PATIENCE, Progress, system};
use crate::stats::Latencies;

/// What is read at a time, as iperf3 does.
pub(super) const READ_BYTES: usize = 128 << 10;

/// How long a loop waits until it looks again whether it is to end.
pub(super) fn patience() -> Timespec {
    Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 }
}

/// Streams into which the same bytes are written again and again.
pub(super) struct PlainSender {
    sockets: Vec<OwnedFd>,
    message: Vec<u8>,
    at: Vec<usize>,
}

impl PlainSender {
    pub(super) fn new(sockets: Vec<OwnedFd>, bytes: usize) -> Result<Self, CellError> {
        for socket in &sockets {
            rustix::io::ioctl_fionbio(socket, sockets.len() > 1).map_err(system("ioctl(FIONBIO)"))?;
        }
        Ok(Self { at: vec![0; sockets.len()], message: vec![0x5a; bytes], sockets })
    }

    fn turn(&mut self) -> Result<u64, CellError> {
        let (mut sent, bytes) = (0, self.message.len());
        for (socket, at) in self.sockets.iter().zip(&mut self.at) {
            match rustix::io::write(socket, &self.message[*at..]) {
                Ok(count) => {
                    *at = (*at + count) % bytes;
                    sent += count as u64;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(system("write")(errno)),
            }
        }
        if sent == 0 {
            let mut waited: Vec<PollFd<'_>> =
                self.sockets.iter().map(|socket| PollFd::new(socket, PollFlags::OUT)).collect();
            if rustix::event::poll(&mut waited, Some(&patience())).map_err(system("poll"))? == 0 {
                return Err(CellError::Late("nothing was read"));
            }
        }
        Ok(sent)
    }

    /// Round trips over the first stream, after some that do not count.
    pub(super) fn round_trips(&mut self, samples: u64) -> Result<Latencies, CellError> {
        let mut latencies = Latencies::of_round_trips();
        let Some(socket) = self.sockets.first() else { return Ok(latencies) };
        let message = &mut self.message;
        let bytes = message.len();
        for sample in 0..samples + samples / 10 {
            let begin = Instant::now();
            let mut at = 0;
            while at < bytes {
                at += again(|| rustix::io::write(socket, &message[at..])).map_err(late_or("write"))?;
            }
            at = 0;
            while at < bytes {
                match again(|| rustix::io::read(socket, &mut message[at..])).map_err(late_or("read"))? {
                    0 => return Err(CellError::Closed("the other side hung up".into())),
                    count => at += count,
                }
            }
            if sample >= samples / 10 {
                latencies.record_ns(begin.elapsed().as_nanos() as u64);
            }
        }
        Ok(latencies)
    }
}

/// Makes a call until it is not interrupted: word for a ring of this thread, also late word for one that is gone,
/// interrupts calls that have a limit in time.
fn again<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            answer => return answer,
        }
    }
}

/// A call that blocks gives up where it was told how long it may.
fn late_or(call: &'static str) -> impl Fn(Errno) -> CellError {
    move |errno| if errno == Errno::AGAIN { CellError::Late("no answer came") } else { system(call)(errno) }
}

impl Sends for PlainSender {
    fn send_for(&mut self, length: Duration) -> Result<(u64, Duration), CellError> {
        let (begin, mut sent) = (Instant::now(), 0);
        while begin.elapsed() < length {
            sent += self.turn()?;
        }
        Ok((sent, begin.elapsed()))
    }
}

/// Reads until all streams have ended, or it is over.
pub(super) fn receive(sockets: &[OwnedFd], progress: &Progress) -> Result<Received, CellError> {
    let mut buffer = vec![0; READ_BYTES];
    let mut open: Vec<&OwnedFd> = sockets.iter().collect();
    let (mut received, mut ready) = (0, Vec::new());
    while !open.is_empty() && !progress.is_over() {
        ready.clear();
        ready.resize(open.len(), true);
        if open.len() > 1 {
            let mut waited: Vec<PollFd<'_>> = open.iter().map(|socket| PollFd::new(*socket, PollFlags::IN)).collect();
            rustix::event::poll(&mut waited, Some(&patience())).map_err(system("poll"))?;
            ready.iter_mut().zip(&waited).for_each(|(ready, one)| *ready = !one.revents().is_empty());
        }
        let mut ready = ready.iter();
        let mut failed = Ok(());
        open.retain(|socket| {
            if ready.next() != Some(&true) || failed.is_err() {
                return true;
            }
            match rustix::io::read(*socket, &mut buffer[..]) {
                Ok(0) | Err(Errno::CONNRESET) => false,
                Ok(count) => {
                    received += count as u64;
                    true
                }
                Err(Errno::AGAIN | Errno::INTR) => true,
                Err(errno) => {
                    failed = Err(system("read")(errno));
                    true
                }
            }
        });
        failed?;
        progress.has_received(received);
    }
    Ok(Received { bytes: received, copied_user: 0 })
}

/// Sends back what comes over the first stream, message by message, until it ends or it is over.
pub(super) fn echo(sockets: &[OwnedFd], bytes: usize, progress: &Progress) -> Result<Received, CellError> {
    let mut message = vec![0; bytes];
    let mut received = Received::default();
    let Some(socket) = sockets.first() else { return Ok(received) };
    loop {
        let mut at = 0;
        while at < bytes {
            match rustix::io::read(socket, &mut message[at..]) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(received),
                Ok(read) => at += read,
                Err(Errno::AGAIN | Errno::INTR) if progress.is_over() => return Ok(received),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(system("read")(errno)),
            }
        }
        received.bytes += bytes as u64;
        progress.has_received(received.bytes);
        at = 0;
        while at < bytes {
            match rustix::io::write(socket, &message[at..]) {
                Ok(written) => at += written,
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(received),
                Err(Errno::AGAIN) if progress.is_over() => return Ok(received),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(system("write")(errno)),
            }
        }
    }
}
