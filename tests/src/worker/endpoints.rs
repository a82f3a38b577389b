//! Publishers and subscribers as the worker drives them, whatever their messages are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags};
use zcmi::payload::Message;
use zcmi::{
    Event, LeaseMut, LoanError, PublishRefusal, Publisher, ReceiveError, Sample, SendError, Service, Subscriber, Wait,
    WhenFull, Who,
};

use super::Outcome;
use super::words::Words;
use crate::content::{self, Sizes};

/// A message that the worker can make.
pub(super) trait Kind: Message {
    fn loan(publisher: &mut Publisher<Self>, bytes: usize) -> Result<LeaseMut<Self>, LoanError>;

    /// Publishes messages of the type's own size at once; slices have none.
    fn batch(publisher: &mut Publisher<Self>, count: u64, tag: u16, first: u64) -> Result<(), SendError>;
}

impl Kind for [u8] {
    fn loan(publisher: &mut Publisher<Self>, bytes: usize) -> Result<LeaseMut<Self>, LoanError> {
        publisher.loan_slice(bytes)
    }

    fn batch(publisher: &mut Publisher<Self>, count: u64, tag: u16, first: u64) -> Result<(), SendError> {
        for index in first..first + count {
            let mut message = [0; 64];
            content::fill(&mut message, tag, index);
            publisher.publish_copy_of(&message)?;
        }
        Ok(())
    }
}

macro_rules! typed_kinds {
    ($($kind:ty),*) => {$(
        impl Kind for $kind {
            fn loan(publisher: &mut Publisher<Self>, _: usize) -> Result<LeaseMut<Self>, LoanError> {
                publisher.loan()
            }

            fn batch(publisher: &mut Publisher<Self>, count: u64, tag: u16, first: u64) -> Result<(), SendError> {
                publisher.publish_batch(count, |number, message| {
                    let mut bytes = [0; size_of::<Self>()];
                    content::fill(&mut bytes, tag, first + number);
                    zcmi::payload::zerocopy::IntoBytes::as_mut_bytes(message).copy_from_slice(&bytes);
                })
            }
        }
    )*};
}

typed_kinds!(u64, [u64; 2], [u64; 3], [u64; 4], [u64; 5], [u64; 100]);

/// Does something for the message type that a command names.
macro_rules! for_kind {
    ($words:expr, $with:ident($($argument:expr),*)) => {
        match $words.given("kind").unwrap_or("bytes") {
            "bytes" => $with::<[u8]>($($argument),*),
            "w1" => $with::<u64>($($argument),*),
            "w2" => $with::<[u64; 2]>($($argument),*),
            "w3" => $with::<[u64; 3]>($($argument),*),
            "w4" => $with::<[u64; 4]>($($argument),*),
            "w5" => $with::<[u64; 5]>($($argument),*),
            "w100" => $with::<[u64; 100]>($($argument),*),
            other => Err(format!("`{other}` is no kind of message")),
        }
    };
}

/// A publisher of any kind.
pub(super) trait Publishing {
    fn wait_for_subscribers(&self, count: usize, time: Duration) -> usize;
    fn subscribers(&self) -> usize;
    fn send(&mut self, words: &Words) -> Outcome;
    fn send_one(&mut self, bytes: usize) -> Result<(), String>;
    fn flood(&mut self, words: &Words) -> Outcome;
    fn forgets(&mut self, words: &Words) -> Outcome;
    fn loan(&mut self, words: &Words) -> Outcome;
    fn publish_loaned(&mut self) -> Outcome;
    fn in_a_child(&mut self) -> Result<(), String>;
}

/// A subscriber of any kind.
pub(super) trait Subscribing {
    fn collect(&mut self, words: &Words) -> Outcome;
    fn hold(&mut self, words: &Words) -> Outcome;
    fn check_held(&mut self) -> Outcome;
    fn drop_held(&mut self, words: &Words) -> Outcome;
    fn forget_held(&mut self) -> Outcome;
    fn leave(&mut self) -> Outcome;
    fn publishers(&mut self) -> usize;
    fn next(&mut self, time: Duration) -> Result<bool, String>;
    fn in_a_child(&mut self) -> Result<(), String>;
}

pub(super) fn publish(words: &Words) -> Result<Box<dyn Publishing>, String> {
    for_kind!(words, publish_kind(words))
}

pub(super) fn subscribe(words: &Words) -> Result<Box<dyn Subscribing>, String> {
    for_kind!(words, subscribe_kind(words))
}

/// The users that a value names: `user:7,group:8,everybody`.
fn named(words: &Words, name: &str) -> Result<Vec<Who>, String> {
    let Some(text) = words.given(name) else { return Ok(Vec::new()) };
    let one = |text: &str| match text.split_once(':') {
        Some(("user", uid)) => uid.parse().ok().map(Who::User),
        Some(("group", gid)) => gid.parse().ok().map(Who::Group),
        None if text == "everybody" => Some(Who::Everybody),
        _ => None,
    };
    text.split(',').map(|text| one(text).ok_or_else(|| format!("`{text}` names nobody"))).collect()
}

struct Publication<M: Kind + ?Sized> {
    publisher: Publisher<M>,
    tag: u16,
    index: u64,
    loaned: Option<LeaseMut<M>>,
}

fn publish_kind<M: Kind + ?Sized>(words: &Words) -> Result<Box<dyn Publishing>, String> {
    let service = Service::<M>::new(words.text("service")?).map_err(|error| error.to_string())?;
    let mut options = service.publisher();
    let given = |name: &str| words.given(name).map(|_| words.number(name)).transpose();
    if let Some(value) = given("capacity")? {
        options = options.capacity(value);
    }
    if let Some(value) = given("history")? {
        options = options.history(value);
    }
    if M::SLICE
        && let Some(value) = given("max_len")?
    {
        options = options.max_len(value as usize);
    }
    if let Some(value) = given("loans")? {
        options = options.loans(value as u32);
    }
    if let Some(value) = given("reader_slots")? {
        options = options.reader_slots(value as u32);
    }
    if let Some(value) = given("late_joiners")? {
        options = options.late_joiners(value == 1);
    }
    if let Some(value) = given("max_publishers")? {
        options = options.max_publishers(value as u32);
    }
    for who in named(words, "allow")? {
        options = options.allow(who);
    }
    for who in named(words, "may_block")? {
        options = options.may_block(who);
    }
    options = options.when_full(match words.given("when_full").unwrap_or("block") {
        "block" => WhenFull::Block,
        "refuse" => WhenFull::RefuseNewest,
        _ => WhenFull::BlockFor(Duration::from_millis(words.number("when_full")?)),
    });
    let publisher = options.create().map_err(|error| format!("create: {error} ({error:?})"))?;
    Ok(Box::new(Publication { publisher, tag: words.number_or("tag", 0)? as u16, index: 0, loaned: None }))
}

impl<M: Kind + ?Sized> Publication<M> {
    /// Publishes the next message, or gives it back with the reason.
    fn publish(&mut self, bytes: usize) -> Result<(), SendError> {
        let mut lease = M::loan(&mut self.publisher, bytes)?;
        content::fill(lease.as_mut_message_bytes(), self.tag, self.index);
        let sequence = self.publisher.publish(lease).map_err(|error| error.reason)?;
        assert_eq!(sequence, self.index, "messages are numbered one by one");
        self.index += 1;
        Ok(())
    }
}

impl<M: Kind + ?Sized> Publishing for Publication<M> {
    fn wait_for_subscribers(&self, count: usize, time: Duration) -> usize {
        self.publisher.wait_for_subscribers(count, time)
    }

    fn subscribers(&self) -> usize {
        self.publisher.subscribers()
    }

    /// Publishes up to `n` messages; stops at the first that is refused.
    fn send(&mut self, words: &Words) -> Outcome {
        let count = words.number("n")?;
        let sizes: Sizes = if words.given("sizes").is_some() { words.parsed("sizes")? } else { Sizes::Fixed(8) };
        let begin = Instant::now();
        let batch = words.number_or("batch", 0)?;
        if let Some(batches) = count.checked_div(batch) {
            for _ in 0..batches {
                M::batch(&mut self.publisher, batch, self.tag, self.index).map_err(|error| error.to_string())?;
                self.index += batch;
            }
            return Ok(format!("sent={} next={}", batches * batch, self.index));
        }
        // Up to so long, and differently each time, so that peers that sleep are met at every moment.
        let delay = words.number_or("delay_us", 0)?;
        let mut random = crate::seed::Random::of(words.number_or("seed", 1)?);
        for sent in 0..count {
            if delay > 0 {
                let until = Instant::now() + Duration::from_micros(random.below(delay + 1));
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
            }
            if let Err(error) = self.publish(sizes.of(self.index)) {
                let text = error.to_string().replace([' ', '='], "_");
                let waited = begin.elapsed().as_millis();
                return Ok(format!("sent={sent} next={} refused={text} ms={waited}", self.index));
            }
        }
        Ok(format!("sent={count} next={}", self.index))
    }

    fn send_one(&mut self, bytes: usize) -> Result<(), String> {
        self.publish(bytes).map_err(|error| error.to_string())
    }

    /// Publishes until killed, or `n` messages. With `note`, the count goes to that file after each, where it outlives
    /// us.
    fn flood(&mut self, words: &Words) -> Outcome {
        let sizes: Sizes = words.parsed("sizes")?;
        let note = match words.given("note") {
            Some(path) => Some(File::create(path).map_err(|error| error.to_string())?),
            None => None,
        };
        let count = words.number_or("n", u64::MAX)?;
        for _ in 0..count {
            self.publish(sizes.of(self.index)).map_err(|error| error.to_string())?;
            if let Some(note) = &note {
                note.write_all_at(&self.index.to_le_bytes(), 0).map_err(|error| error.to_string())?;
            }
        }
        Ok(format!("next={}", self.index))
    }

    /// Waits until the kernel says that a process is dead, and then until it no longer counts as a subscriber.
    fn forgets(&mut self, words: &Words) -> Outcome {
        let before = self.publisher.subscribers();
        let pid = Pid::from_raw(words.number("pid")? as i32).ok_or("a pid is not 0")?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|error| error.to_string())?;
        super::answer("ok");
        if !crate::rig::ready(std::os::fd::AsFd::as_fd(&pidfd), Duration::from_secs(50)) {
            return Err("it lives on".to_owned());
        }
        let begin = Instant::now();
        while self.publisher.subscribers() >= before {
            if begin.elapsed() > Duration::from_secs(10) {
                return Err(format!("{before} subscribers still count after 10 s"));
            }
            std::thread::yield_now();
        }
        Ok(format!("us={}", begin.elapsed().as_micros()))
    }

    /// Loans a message, fills it and keeps it; says where it lies.
    fn loan(&mut self, words: &Words) -> Outcome {
        let bytes = words.number("bytes")? as usize;
        let mut lease = M::loan(&mut self.publisher, bytes).map_err(|error| error.to_string())?;
        let place = lease.as_mut_message_bytes();
        content::fill(place, self.tag, self.index);
        let at = place.as_mut_ptr().expose_provenance();
        self.loaned = Some(lease);
        Ok(format!("at={at}"))
    }

    fn publish_loaned(&mut self) -> Outcome {
        let lease = self.loaned.take().ok_or("nothing is loaned")?;
        self.publisher.publish(lease).map_err(|error| error.to_string())?;
        self.index += 1;
        Ok(String::new())
    }

    /// What a forked child may do with it: nothing.
    fn in_a_child(&mut self) -> Result<(), String> {
        match M::loan(&mut self.publisher, 8) {
            Err(LoanError::Forked(_)) => {}
            other => return Err(format!("loan in a child: {:?}", other.err())),
        }
        let Some(lease) = self.loaned.take() else { return Ok(()) };
        match self.publisher.publish(lease) {
            Err(error) if matches!(error.reason, PublishRefusal::Forked(_)) => Ok(()),
            other => Err(format!("publish in a child: {:?}", other.err())),
        }
    }
}

struct Subscription<M: Kind + ?Sized> {
    subscriber: Option<Subscriber<M>>,
    tracks: BTreeMap<u16, (u64, u64, u64)>,
    happened: Vec<String>,
    endings: u64,
    joined: u64,
    lost: u64,
    held: Vec<Sample<M>>,
    /// Whether a publisher may be faulty, and then counts as ended; and what it wrote is not looked at.
    bears_faults: bool,
}

fn subscribe_kind<M: Kind + ?Sized>(words: &Words) -> Result<Box<dyn Subscribing>, String> {
    let service = Service::<M>::new(words.text("service")?).map_err(|error| error.to_string())?;
    let mut options = service.subscriber().drop_oldest(words.is_set("drop_oldest"));
    if words.given("history").is_some() {
        options = options.history(words.number("history")?);
    }
    if words.given("holds").is_some() {
        options = options.holds(words.number("holds")? as u8);
    }
    options = match words.given("wait").unwrap_or("default") {
        "spin" => options.wait(Wait::Spin),
        "park" => options.wait(Wait::Park),
        "default" => options,
        _ => options.wait(Wait::SpinThenPark(Duration::from_micros(words.number("wait")?))),
    };
    for who in named(words, "accept")? {
        options = options.accept(who);
    }
    let subscriber = Some(options.join().map_err(|error| format!("join: {error}"))?);
    let (tracks, happened, held) = (BTreeMap::new(), Vec::new(), Vec::new());
    Ok(Box::new(Subscription {
        subscriber,
        tracks,
        happened,
        endings: 0,
        joined: 0,
        lost: 0,
        held,
        bears_faults: words.is_set("bears_faults"),
    }))
}

impl<M: Kind + ?Sized> Subscription<M> {
    fn alive(&mut self) -> Result<&mut Subscriber<M>, String> {
        self.subscriber.as_mut().ok_or_else(|| "the subscriber has left".to_owned())
    }

    /// Checks a message and notes its place.
    fn note(&mut self, bytes: &[u8], sequence: u64) -> Result<(), String> {
        let tag = match content::check(bytes, sequence) {
            Err(_) if self.bears_faults => return Ok(()),
            other => other?,
        };
        let (_, next, got) = match tag {
            Some(tag) => self.tracks.entry(tag).or_insert((sequence, sequence, 0)),
            // Too short to say whose it is; then there is one publisher.
            None => match self.tracks.values_mut().next() {
                Some(track) => track,
                None => self.tracks.entry(0).or_insert((sequence, sequence, 0)),
            },
        };
        if sequence < *next {
            return Err(format!("sequence {sequence} came after {next} was due"));
        }
        *next = sequence + 1;
        *got += 1;
        Ok(())
    }

    fn take_events(&mut self) -> Result<(), String> {
        while let Some(event) = self.alive()?.next_event() {
            let line = match event {
                Event::Joined { pid, start, .. } => {
                    self.joined += 1;
                    format!("joined:{pid}:{start}")
                }
                Event::Refused(refusal) => format!("refused:{}:0", refusal.pid),
                Event::Ended { sequence, .. } => {
                    self.endings += 1;
                    format!("ended:0:{sequence}")
                }
                Event::Died { pid, sequence, .. } => {
                    self.endings += 1;
                    format!("died:{pid}:{sequence}")
                }
                Event::CutOff { pid, .. } => format!("cut:{pid}:0"),
                Event::NotWaking { pid, .. } => format!("unwoken:{pid}:0"),
                Event::Overtaken { lost, .. } => {
                    self.lost += lost;
                    continue;
                }
                Event::Faulty { pid, .. } if self.bears_faults => {
                    self.endings += 1;
                    format!("faulty:{pid}:0")
                }
                Event::Faulty { pid, fault, .. } => return Err(format!("publisher {pid} is called faulty: {fault}")),
                Event::Expelled { pid, reason, .. } => return Err(format!("publisher {pid} gave us up: {reason}")),
                other => return Err(format!("an unknown event: {other:?}")),
            };
            self.happened.push(line);
        }
        Ok(())
    }

    fn summary(&self) -> String {
        let mut text = format!("lost={} endings={} joined={}", self.lost, self.endings, self.joined);
        for (tag, (first, next, got)) in &self.tracks {
            // Writing to a string does not fail.
            let _infallible = write!(text, " track={tag}:{first}:{next}:{got}");
        }
        for line in &self.happened {
            let _infallible = write!(text, " event={line}");
        }
        text
    }

    fn got(&self) -> u64 {
        self.tracks.values().map(|(_, _, got)| got).sum()
    }
}

impl<M: Kind + ?Sized> Subscribing for Subscription<M> {
    /// Receives until so many publishers have ended or died (`endings`) or joined (`joined`), so many messages came in
    /// all (`n`), or one tag came so far (`of`, `until`). Fails after `ms`. With `slow_us` it dawdles each time.
    fn collect(&mut self, words: &Words) -> Outcome {
        let endings = words.number_or("endings", u64::MAX)?;
        let count = words.number_or("n", u64::MAX)?;
        let joined = words.number_or("joined", u64::MAX)?;
        let until = match words.given("of") {
            Some(_) => Some((words.number("of")? as u16, words.number("until")?)),
            None => None,
        };
        let slow = Duration::from_micros(words.number_or("slow_us", 0)?);
        let batch = words.number_or("batch", 0)?;
        let deadline = Instant::now() + Duration::from_millis(words.number_or("ms", 50_000)?);
        loop {
            self.take_events()?;
            let there = until.is_some_and(|(tag, until)| self.tracks.get(&tag).is_some_and(|track| track.1 >= until));
            if there || self.endings >= endings || self.got() + self.lost >= count || self.joined >= joined {
                return Ok(self.summary());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if words.is_set("or_time") {
                    return Ok(self.summary());
                }
                return Err(format!("not all in time: {}", self.summary()));
            }
            if batch > 0 {
                let mut read = Vec::new();
                let keep = |sequence, message: &M| read.push((sequence, message.message_bytes().to_vec()));
                let most = batch.min(count - self.got());
                let taken = self.alive()?.receive_batch(most, keep);
                let taken = taken.map_err(|error| error.to_string())?;
                if taken != read.len() as u64 {
                    return Err(format!("a batch of {taken} brought {} messages", read.len()));
                }
                for (sequence, bytes) in read {
                    self.note(&bytes, sequence)?;
                }
                if taken > 0 {
                    continue;
                }
            }
            let received = self.alive()?.receive_timeout(left.min(Duration::from_secs(60)));
            if let Some(sample) = received.map_err(|error| error.to_string())? {
                self.note(sample.message_bytes(), sample.sequence())?;
                if !slow.is_zero() {
                    let until = Instant::now() + slow;
                    while Instant::now() < until {
                        std::hint::spin_loop();
                    }
                }
            }
        }
    }

    /// Receives and keeps `n` samples. Says where the last one lies, or which publisher allows no more.
    fn hold(&mut self, words: &Words) -> Outcome {
        for taken in 0..words.number("n")? {
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                self.take_events()?;
                if Instant::now() >= deadline {
                    return Err(format!("only {taken} messages came"));
                }
                match self.alive()?.receive_timeout(Duration::from_secs(1)) {
                    Ok(Some(sample)) => {
                        self.note(sample.message_bytes(), sample.sequence())?;
                        self.held.push(sample);
                        break;
                    }
                    Ok(None) => {}
                    Err(ReceiveError::TooManyHeld { pid, held }) => return Ok(format!("too_many={held} pid={pid}")),
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        let Some(last) = self.held.last() else { return Ok(String::new()) };
        let in_place = u8::from(last.is_in_place());
        Ok(format!("at={} in_place={in_place}", last.message_bytes().as_ptr().expose_provenance()))
    }

    /// Whether what is kept is still what was received.
    fn check_held(&mut self) -> Outcome {
        for sample in &self.held {
            content::check(sample.message_bytes(), sample.sequence())?;
        }
        Ok(format!("n={}", self.held.len()))
    }

    /// Drops what is kept; with `threads=1` each sample on a thread of its own, shared with another.
    fn drop_held(&mut self, words: &Words) -> Outcome {
        let held = std::mem::take(&mut self.held);
        let count = held.len();
        if words.is_set("threads") {
            let threads = held.into_iter().map(|sample| {
                let sequence = sample.sequence();
                let lease = sample.share();
                let other = lease.clone();
                let check = move |lease: zcmi::Lease<M>| content::check(lease.message_bytes(), sequence).map(|_| ());
                (std::thread::spawn(move || check(lease)), std::thread::spawn(move || check(other)))
            });
            for (one, other) in threads.collect::<Vec<_>>() {
                for thread in [one, other] {
                    thread.join().map_err(|_| "a thread panicked".to_owned())??;
                }
            }
        }
        Ok(format!("n={count}"))
    }

    fn forget_held(&mut self) -> Outcome {
        let count = self.held.len();
        std::mem::take(&mut self.held).into_iter().for_each(std::mem::forget);
        Ok(format!("n={count}"))
    }

    /// Drops the subscriber, and keeps the samples.
    fn leave(&mut self) -> Outcome {
        self.subscriber = None;
        Ok(String::new())
    }

    fn publishers(&mut self) -> usize {
        self.subscriber.as_mut().map_or(0, Subscriber::publishers)
    }

    fn next(&mut self, time: Duration) -> Result<bool, String> {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            if let Some(sample) = self.alive()?.receive_timeout(left).map_err(|error| error.to_string())? {
                content::check(sample.message_bytes(), sample.sequence())?;
                return Ok(true);
            }
            self.take_events()?;
            if self.endings > 0 {
                return Ok(false);
            }
        }
    }

    /// What a forked child may do with it: nothing.
    fn in_a_child(&mut self) -> Result<(), String> {
        // Looking for news must not make the handle look alive again.
        if self.alive()?.next_event().is_some() || self.alive()?.publishers() != 0 {
            return Err("a child sees events or publishers".to_owned());
        }
        match self.alive()?.try_receive() {
            Err(ReceiveError::Forked(_)) => {}
            other => return Err(format!("try_receive in a child: {other:?}", other = other.err())),
        }
        match self.alive()?.receive_timeout(Duration::from_secs(1)) {
            Err(ReceiveError::Forked(_)) => {}
            other => return Err(format!("receive in a child: {other:?}", other = other.err())),
        }
        match self.alive()?.receive_batch(1, |_, _| {}) {
            Err(ReceiveError::Forked(_)) => Ok(()),
            other => Err(format!("receive_batch in a child: {other:?}")),
        }
    }
}
