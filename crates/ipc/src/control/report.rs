//! Describing this process to whoever asks, and asking others.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::Control;
use super::links::{Attachments, LinkId};
use crate::directory::RuntimeDirectory;
use crate::name::Incarnation;
use crate::report::ProcessReport;
use crate::socket::{ConnectError, Connection, MAX_MESSAGE_BYTES, Received, SendOutcome};
use crate::sys;
use crate::wire::{Hello, Message, VERSION, VERSION_MIN};
use std::os::fd::AsFd;

/// Bytes of a report in one message.
const PART_BYTES: usize = 4096;

impl Control {
    pub(super) fn describe(&self) -> ProcessReport {
        let (mut regions, mut region_bytes) = (0, 0);
        self.memory.for_each(|arena| {
            regions += arena.regions().count();
            region_bytes += arena.total_bytes() as u64;
        });
        let publishers = self.publishers.values().map(super::publishers::PublisherEntry::report);
        let subscribers = self.subscribers.values().map(super::subscribers::SubscriberEntry::report);
        let mut endpoints: Vec<_> = publishers.chain(subscribers).collect();
        endpoints.sort_by(|one, other| (&one.service, one.endpoint).cmp(&(&other.service, other.endpoint)));
        ProcessReport {
            incarnation: self.incarnation.to_string(),
            pid: std::process::id(),
            uid: rustix::process::geteuid().as_raw(),
            regions,
            region_bytes,
            endpoints,
        }
    }

    pub(super) fn handle_observe(&mut self, id: LinkId) {
        // Names and sizes of what others share are none of a stranger's business; root may look on.
        if self.stranger_at(id).is_some_and(|identity| identity.uid != 0) {
            return self.drop_link(id);
        }
        let text = self.describe().encode().into_bytes();
        let mut parts = text.chunks(PART_BYTES).peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            self.send(id, &Message::Report { last, text: part.to_vec() }, Attachments::default());
        }
    }
}

/// What asking a process came to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Observed {
    /// It answered.
    Report(ProcessReport),
    /// It lives and is silent: stopped, or very busy.
    Silent {
        /// Its process number.
        pid: u32,
    },
    /// It is gone.
    Dead,
    /// It could not be asked.
    Unknown(String),
}

/// Asks a process to describe itself, without being a participant, and waits for the answer at most `patience`.
#[must_use]
pub fn observe(directory: &RuntimeDirectory, incarnation: Incarnation, patience: Duration) -> Observed {
    match try_observe(directory, incarnation, patience) {
        Ok(observed) => observed,
        Err(text) => Observed::Unknown(text),
    }
}

fn try_observe(directory: &RuntimeDirectory, incarnation: Incarnation, patience: Duration) -> Result<Observed, String> {
    let connection = match Connection::connect(directory, incarnation) {
        Ok(connection) => connection,
        Err(ConnectError::Dead(_)) => return Ok(Observed::Dead),
        Err(error) => return Err(error.to_string()),
    };
    let credentials = connection.credentials().map_err(|error| error.to_string())?;
    let own = Incarnation::random().map_err(|error| error.to_string())?;
    let hello = Hello { version_min: VERSION_MIN, version: VERSION, incarnation: own };
    for message in [Message::Hello(hello), Message::Observe] {
        match connection.send(&message.encode(), &[]) {
            Ok(SendOutcome::Sent) => {}
            Ok(SendOutcome::WouldBlock) => return Ok(Observed::Silent { pid: credentials.pid }),
            Err(error) => return Err(error.to_string()),
        }
    }
    let deadline = Instant::now() + patience;
    let (mut text, mut buffer) = (Vec::new(), [0; MAX_MESSAGE_BYTES]);
    loop {
        match connection.receive(&mut buffer).map_err(|error| error.to_string())? {
            Received::Message { len, .. } => match Message::decode(&buffer[..len]) {
                Ok(Message::Report { last, text: part }) => {
                    text.extend(part);
                    if last {
                        let report = ProcessReport::decode(&String::from_utf8_lossy(&text));
                        return report.map(Observed::Report).ok_or_else(|| "the report is unreadable".to_owned());
                    }
                }
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            },
            Received::HungUp => {
                let lives = connection.pidfd().is_ok_and(|(pidfd, _)| sys::is_dead(pidfd.as_fd()) == Ok(false));
                // A forked child can keep a dead process's connection open, but not its pidfd from telling.
                return if lives {
                    Err("it describes itself to its own user alone".to_owned())
                } else {
                    Ok(Observed::Dead)
                };
            }
            Received::Rejected(rejection, _) => return Err(rejection.to_string()),
            Received::Empty => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(Observed::Silent { pid: credentials.pid });
                }
                let mut polled = [PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN)];
                sys::poll(&mut polled, Some(left)).map_err(|errno| format!("poll failed: {errno}"))?;
            }
        }
    }
}
