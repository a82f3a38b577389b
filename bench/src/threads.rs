//! Two-sided measurements inside one process: the far side is a pinned thread.
//!
//! Row `threads` runs the loop of row `bare` between two threads over anonymous memory of the same page size. It shows
//! what the boundary between processes, and shared memory in place of private, cost: nothing, when all is well.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::time::{ClockId, clock_gettime};

use crate::bare::{Bare, Geometry};
use crate::link::{Answer, Far, Link, LinkError, Near, Order, obey};
use crate::pin::{self, Pair};
use crate::side::Side;

/// Processor time that this thread has used.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// The far thread ended before it was asked to; its last answer holds the reason, if it gave one.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the far thread ended")]
struct ThreadGone;

/// A far side that is a thread; dropping it ends the thread once its current order is done.
#[derive(Debug)]
pub struct FarThread {
    orders: Option<Sender<Order>>,
    answers: Receiver<Result<Answer, LinkError>>,
    thread: Option<JoinHandle<()>>,
}

impl FarThread {
    /// Starts a thread pinned to `cpu` that serves its end of a link.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn spawn<L: Link + Send + 'static>(mut link: L, cpu: usize) -> Result<Self, LinkError> {
        let (orders, todo) = channel();
        let (done, answers) = channel();
        let body = move || {
            let pinned = pin::pin(cpu);
            if let Err(error) = pinned {
                // The near side sees the reason at its first order; if it is gone, nobody is left to tell.
                let _ = done.send(Err(error.into()));
                return;
            }
            while let Ok(order) = todo.recv() {
                let answer = obey(&mut link, order, thread_cpu_ns);
                let failed = answer.is_err();
                if done.send(answer).is_err() || failed {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("far side".to_owned()).spawn(body)?;
        Ok(Self { orders: Some(orders), answers, thread: Some(thread) })
    }
}

impl Far for FarThread {
    fn order(&mut self, order: Order) -> Result<(), LinkError> {
        let orders = self.orders.as_ref().ok_or(ThreadGone)?;
        orders.send(order).map_err(|_| ThreadGone.into())
    }

    fn answer(&mut self) -> Result<Answer, LinkError> {
        self.answers.recv().map_err(|_| ThreadGone)?
    }

    fn near_cpu_ns(&self) -> u64 {
        thread_cpu_ns()
    }
}

impl Drop for FarThread {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the far side was already printed, and the near side has its own error.
            let _ = thread.join();
        }
    }
}

/// Both ends of row `threads` for one payload size, the far one served by a thread of its own.
///
/// # Errors
/// No memory or no thread.
pub fn open<const WORDS: usize>(payload_bytes: usize, pair: Pair) -> Result<Near<Bare<WORDS>, FarThread>, LinkError> {
    let geometry = Geometry::new(payload_bytes);
    let (left, right) = Side::two_anonymous(geometry.region_bytes())?;
    let far = Bare::<WORDS>::open(geometry, &right, &left.peer())?;
    let near = Bare::<WORDS>::open(geometry, &left, &right.peer())?;
    Ok(Near::new(near, FarThread::spawn(far, pair.far)?, payload_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_far_thread_is_an_error_and_not_a_hang() {
        struct Broken;
        impl Link for Broken {
            fn send_word(&mut self, _word: u64) -> Result<(), LinkError> {
                Ok(())
            }
            fn receive_word(&mut self) -> Result<u64, LinkError> {
                Err("broken on purpose".into())
            }
        }
        let cpu = pin::pair().map_or(0, |pair| pair.near);
        let mut far = FarThread::spawn(Broken, cpu).unwrap();
        far.order(Order::Echo { messages: 1 }).unwrap();
        assert_eq!(far.answer().unwrap_err().to_string(), "broken on purpose");
        assert_eq!(far.answer().unwrap_err().to_string(), "the far thread ended");
    }
}
