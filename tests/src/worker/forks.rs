//! What a worker does to show what a fork does.

use std::time::{Duration, Instant};

use zcmi::Service;

use super::words::Words;
use super::{Outcome, Worker};
use crate::sys::{self, Forked};

/// What a forked child does that lives on: nothing, until the test lets go of its parent's input, or kills it.
pub(super) fn stay() -> ! {
    // The input is shared with the parent; it ends when the test closes it, whoever lives then.
    // Read without the library's lock, which our parent's loop holds.
    let input = std::fs::File::open("/proc/self/fd/0");
    let _ended = input.and_then(|mut input| std::io::copy(&mut input, &mut std::io::sink()));
    sys::end_now(0)
}

impl Worker {
    /// Forks. The child, by `child`: tries everything with its parent's handles, drops them all and ends (`tries`), or
    /// does nothing until the test lets go of our input (`stays`).
    pub(super) fn fork(&mut self, words: &Words) -> Outcome {
        let stays = match words.text("child")? {
            "stays" => true,
            "tries" => false,
            other => return Err(format!("`{other}` is nothing for a child to do")),
        };
        match sys::fork().map_err(|error| error.to_string())? {
            Forked::Parent(pid) if stays => Ok(format!("pid={pid}")),
            Forked::Parent(pid) => match sys::wait_for(pid).map_err(|error| error.to_string())? {
                0 => Ok(String::new()),
                status => Err(format!("the child ended with {status}")),
            },
            Forked::Child if stays => stay(),
            Forked::Child => {
                let status = match self.try_everything() {
                    Ok(()) => 0,
                    Err(text) => {
                        eprintln!("in a forked child: {text}");
                        1
                    }
                };
                sys::end_now(status)
            }
        }
    }

    fn try_everything(&mut self) -> Result<(), String> {
        for publisher in self.publishers.values_mut() {
            publisher.in_a_child()?;
        }
        for subscriber in self.subscribers.values_mut() {
            subscriber.in_a_child()?;
        }
        // Samples, subscribers, publishers, the process: none of them may speak in the parent's name.
        self.subscribers.clear();
        self.publishers.clear();
        start_anew()
    }
}

/// A child may take part in its own name.
fn start_anew() -> Result<(), String> {
    fn text(error: impl std::fmt::Display) -> String {
        format!("a child that starts anew: {error}")
    }
    let service = Service::<u64>::new("tests/child").map_err(text)?;
    let mut subscriber = service.subscriber().join().map_err(text)?;
    let mut publisher = service.publisher().create().map_err(text)?;
    publisher.publish_copy(&5).map_err(text)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        while subscriber.next_event().is_some() {}
        if let Some(sample) = subscriber.receive_timeout(Duration::from_secs(1)).map_err(text)? {
            return if *sample == 5 { Ok(()) } else { Err(text(*sample)) };
        }
    }
    Err(text("nothing came"))
}
