//! The one pair of measuring loops that every two-sided row runs: latency by ping-pong, throughput by a stream.
//!
//! ```text
//!   near side (drives, measures)                       far side (serves)
//!   Near::latency   send_word ------------------->     receive_word
//!                   receive_word <----------------     send_word           one round trip = 2 x one way
//!   Near::stream    produce, produce, ... -------->    consume, consume    timed by the far side, first to last
//! ```
//!
//! What differs between rows is their [`Link`]. Every row, of this project and of others, runs these loops with the
//! same payloads on the same two processors. Both sides' processor time counts, spinning included.

use std::error::Error;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::child::{Channel, Child, RoleResult};
use crate::clock;
use crate::pin;
use crate::report::Row;
use crate::stats::Latencies;

/// Any error of a link or of the side behind it.
pub type LinkError = Box<dyn Error + Send + Sync>;

/// One end of a connection that carries payloads of one size in both directions.
pub trait Link {
    /// Sends a message of which only the first word, and with it the first byte, is written.
    ///
    /// # Errors
    /// The connection is broken or the other side stalled.
    fn send_word(&mut self, word: u64) -> Result<(), LinkError>;

    /// Waits for a message and reads its first word.
    ///
    /// # Errors
    /// The connection is broken or the other side stalled.
    fn receive_word(&mut self) -> Result<u64, LinkError>;

    /// Sends message `sequence` with every word written, see [`crate::pattern`].
    ///
    /// # Errors
    /// The connection is broken, the other side stalled, or the link carries single words only (the default).
    fn produce(&mut self, sequence: u64) -> Result<(), LinkError> {
        let _ = sequence;
        Err(NoStream.into())
    }

    /// Waits for message `sequence`, reads every word and checks them.
    ///
    /// # Errors
    /// The connection is broken, the other side stalled, or the message is not the one that was sent.
    fn consume(&mut self, sequence: u64) -> Result<(), LinkError> {
        let _ = sequence;
        Err(NoStream.into())
    }

    /// Sends messages 0 to `messages`, in larger steps where the link has a form for that.
    ///
    /// # Errors
    /// As [`produce`](Self::produce).
    fn produce_all(&mut self, messages: u64) -> Result<(), LinkError> {
        for sequence in 0..messages {
            self.produce(sequence)?;
        }
        Ok(())
    }

    /// Receives messages `first` to `messages`, in larger steps where the link has a form for that.
    ///
    /// # Errors
    /// As [`consume`](Self::consume).
    fn consume_all(&mut self, first: u64, messages: u64) -> Result<(), LinkError> {
        for sequence in first..messages {
            self.consume(sequence)?;
        }
        Ok(())
    }
}

/// A stream was asked of a link that carries single words only.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("this link carries single words and no streams")]
struct NoStream;

/// What the near side asks of the far side.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Return that many words.
    Echo {
        /// How many.
        messages: u64,
    },
    /// Receive that many messages.
    Consume {
        /// How many.
        messages: u64,
    },
}

/// What the far side found while it did so.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// From its first message to its last; 0 for a single one.
    pub elapsed_ns: u64,
    /// The processor time it used.
    pub cpu_ns: u64,
}

/// The near side's way of talking to the far side, outside the link.
pub trait Far {
    /// Gives an order.
    ///
    /// # Errors
    /// The far side is gone.
    fn order(&mut self, order: Order) -> Result<(), LinkError>;

    /// Waits until the order is carried out.
    ///
    /// # Errors
    /// The far side is gone.
    fn answer(&mut self) -> Result<Answer, LinkError>;

    /// The processor time of the near side so far, in the same terms as the far side's.
    fn near_cpu_ns(&self) -> u64;
}

impl Far for Child {
    fn order(&mut self, order: Order) -> Result<(), LinkError> {
        Ok(self.channel().send(&order, &[])?)
    }

    fn answer(&mut self) -> Result<Answer, LinkError> {
        Ok(self.channel().receive(0)?.0)
    }

    fn near_cpu_ns(&self) -> u64 {
        pin::process_cpu_ns()
    }
}

/// The near side's word differs from the one that came back.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("word {sent} came back as {found}")]
struct WrongEcho {
    sent: u64,
    found: u64,
}

/// One run of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Messages between the first and the last, the first not counted.
    pub messages: u64,
    /// The time between them.
    pub elapsed_ns: u64,
    /// Processor time of both sides.
    pub cpu_ns: u64,
}

impl Flow {
    /// Writes the rates into a row of that payload size.
    pub fn fill(&self, row: &mut Row) {
        let (messages, bytes) = (self.messages as f64, self.messages as f64 * row.bytes as f64);
        let seconds = self.elapsed_ns.max(1) as f64 / 1e9;
        row.msgs_per_s = Some(messages / seconds);
        row.bytes_per_s = Some(bytes / seconds);
        row.cpu_s_per_gb = Some(self.cpu_ns.max(1) as f64 / bytes);
    }
}

/// The near side of a link and its far side.
#[derive(Debug)]
pub struct Near<L, F> {
    link: L,
    far: F,
    payload_bytes: usize,
    messages: Option<u64>,
}

impl<L: Link, F: Far> Near<L, F> {
    /// Round trips before the measured ones, in which caches, branch predictors and the far side wake up.
    const WARM_UP: u64 = 2_000;

    /// Joins a link to its far side, which is already serving.
    #[must_use]
    pub fn new(link: L, far: F, payload_bytes: usize) -> Self {
        Self { link, far, payload_bytes, messages: None }
    }

    /// Measures `samples` round trips.
    ///
    /// # Errors
    /// Whatever breaks the link, and a word that came back changed.
    pub fn latency(&mut self, samples: u64) -> Result<Latencies, LinkError> {
        // Samples go to a plain array first: filing one in a histogram takes as long as a hop between processors, and
        // would count as part of the next round trip.
        let mut trips = vec![0_u32; usize::try_from(samples)?];
        let warm_up = Self::WARM_UP.min(samples);
        self.far.order(Order::Echo { messages: samples + warm_up })?;
        for word in 0..warm_up {
            self.round_trip(word)?;
        }
        let mut start = Instant::now();
        for (word, trip) in trips.iter_mut().enumerate() {
            self.round_trip(word as u64)?;
            let end = Instant::now();
            *trip = u32::try_from(clock::between_ns(start, end)).unwrap_or(u32::MAX);
            start = end;
        }
        self.far.answer()?;
        let mut latencies = Latencies::of_round_trips();
        trips.iter().for_each(|trip| latencies.record_ns(u64::from(*trip)));
        Ok(latencies)
    }

    #[inline]
    fn round_trip(&mut self, sent: u64) -> Result<(), LinkError> {
        self.link.send_word(sent)?;
        let found = self.link.receive_word()?;
        if found == sent { Ok(()) } else { Err(WrongEcho { sent, found }.into()) }
    }

    /// Streams for about as long as `target`; the number of messages is found once and then kept.
    ///
    /// # Errors
    /// Whatever breaks the link, and a message that arrived changed.
    pub fn stream(&mut self, target: Duration) -> Result<Flow, LinkError> {
        let messages = match self.messages {
            Some(messages) => messages,
            None => self.calibrate(target)?,
        };
        self.messages = Some(messages);
        self.run(messages)
    }

    /// Finds how many messages take `target`, by runs that grow until one takes a tenth of it.
    fn calibrate(&mut self, target: Duration) -> Result<u64, LinkError> {
        const TRIAL_BYTES: usize = 1 << 20;
        let target_ns = u64::try_from(target.as_nanos())?.max(1);
        let mut messages = (TRIAL_BYTES / self.payload_bytes.max(8)).clamp(16, 4096) as u64;
        loop {
            let flow = self.run(messages)?;
            if flow.elapsed_ns >= target_ns / 10 {
                let share = target_ns as f64 / flow.elapsed_ns as f64;
                return Ok(((messages as f64 * share) as u64).max(16));
            }
            messages = messages.saturating_mul(4);
        }
    }

    fn run(&mut self, messages: u64) -> Result<Flow, LinkError> {
        let before = self.far.near_cpu_ns();
        self.far.order(Order::Consume { messages })?;
        self.link.produce_all(messages)?;
        let cpu_ns = self.far.near_cpu_ns() - before;
        let answer = self.far.answer()?;
        Ok(Flow { messages: messages - 1, elapsed_ns: answer.elapsed_ns, cpu_ns: cpu_ns + answer.cpu_ns })
    }
}

/// Carries out one order on the far side; `cpu_ns` reads this side's processor time.
///
/// # Errors
/// Whatever breaks the link, and a message that arrived changed.
pub fn obey<L: Link>(link: &mut L, order: Order, cpu_ns: impl Fn() -> u64) -> Result<Answer, LinkError> {
    let before = cpu_ns();
    let mut elapsed_ns = 0;
    match order {
        Order::Echo { messages } => {
            for _ in 0..messages {
                let word = link.receive_word()?;
                link.send_word(word)?;
            }
        }
        Order::Consume { messages } => {
            if messages > 0 {
                link.consume(0)?;
            }
            let start = Instant::now();
            link.consume_all(1, messages)?;
            elapsed_ns = clock::between_ns(start, Instant::now());
        }
    }
    Ok(Answer { elapsed_ns, cpu_ns: cpu_ns() - before })
}

/// Carries out orders from the channel until the near side closes it: the body of a child's role.
///
/// # Errors
/// As [`obey`], and a broken channel.
pub fn serve<L: Link>(channel: &Channel, link: &mut L) -> RoleResult {
    while let Some((order, _)) = channel.next(0)? {
        let answer = obey(link, order, pin::process_cpu_ns)?;
        channel.send(&answer, &[])?;
    }
    Ok(())
}
