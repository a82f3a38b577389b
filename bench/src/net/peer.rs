//! The suite `net` between two hosts: the rows of the suite over the network that lies between this host and one that
//! [serves](serve).
//!
//! What arrives is counted at the far end, by its clock, between two marks that this side sets; its processor time is
//! read at the same marks. What is not known here of a network of others is left out, with the reason.
//!
//! # What this does not do
//! The mutation oracle needs both ends in one program. Copies in the kernel are what a path does by its nature, and for
//! paths that may share pages what the choice has concluded from their cost, or what the kernel admits; else none.

mod serve;
mod talk;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use zcmi_net::key::Key;
use zcmi_net::path::PathKind;
use zcmi_net::socket;
use zcmi_net::stream::{Address, StreamTransport};
use zcmi_net::transport::{ConnectionId, Event, Transport as _};
use zcmi_net::udp::UdpTransport;

use self::talk::{Answer, Ask, Carried, Ended, Mark, Opening, Task, Ticket, left};
use super::plain::PlainSender;
use super::sender::{Sender, Sends};
use super::{
    CellError, MOST_ROUND_TRIP_BYTES, NetBenchError, NetOptions, PATIENCE, RowKind, SUITE, datagrams, progressing,
    stream_options, stream_sender, system, unmeasured,
};
use crate::cpu::{CpuMeter, CpuTime};
use crate::host::Host;
use crate::pin::{self, PinError};
use crate::report::{Report, Row};
use crate::rounds::{self, Contender, Observation};
use crate::stats::Latencies;

pub use self::serve::{ServeOptions, Served, serve};

/// The name of the network in rows.
pub const WIRE: &str = "peer";
/// The congestion control of both ends.
const CONGESTION: &str = "cubic";
/// How long the other host may take to answer at all.
const REACH: Duration = Duration::from_secs(10);
/// Round trips from which it is seen how long they take, and how long all of a row may take.
const FIRST_ROUND_TRIPS: u64 = 20;
const ROUND_TRIPS_FOR: Duration = Duration::from_secs(5);

/// With whom to measure.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// Its addresses, of which the first that answers is taken.
    pub addresses: Vec<SocketAddr>,
    /// The key that both sides must have.
    pub key: Option<Key>,
    /// Whether another host is talked with although there is no key.
    pub insecure: bool,
}

/// Measures the suite with a host that [serves](serve) it; of the options, the wires are not used.
///
/// # Errors
/// Nobody serves there, and whatever breaks a cell.
pub fn run(options: &NetOptions, peer: &PeerOptions) -> Result<Report, NetBenchError> {
    let wanted = options.rows()?;
    let host = Host::here();
    // The other processor is left to the other side, which may be on this host. Where there is but one, it is shared.
    let _pinned = match pin::pair().and_then(|pair| pin::pin(pair.near)) {
        Ok(pinned) => Some(pinned),
        Err(PinError::TooFew { .. }) => None,
        Err(error) => return Err(NetBenchError::Pin(error)),
    };
    let talk = RefCell::new(Talk::begin(peer)?);
    let mut contenders: Vec<Contender<'_, NetBenchError>> = Vec::new();
    for &streams in &options.streams {
        for &bytes in &options.sizes {
            for &row in &wanted {
                let (cell, talk) = (Cell { row, bytes, streams }, &talk);
                contenders.push(Box::new(move || Ok(vec![cell.observe(options, &mut talk.borrow_mut())?])));
            }
        }
    }
    let rows = rounds::alternate(options.rounds, &mut contenders, progressing(options))?;
    drop(contenders);
    talk.into_inner().end();
    let report = Report::new(host, rows);
    report.check()?;
    Ok(report)
}

/// This side of a talk.
struct Talk {
    peer: PeerOptions,
    address: SocketAddr,
    transport: StreamTransport,
    connection: ConnectionId,
    heard: VecDeque<Answer>,
    /// Why nothing more is said.
    over: Option<String>,
    /// Whether both sides are one host.
    is_here: bool,
}

impl Talk {
    fn begin(peer: &PeerOptions) -> Result<Self, NetBenchError> {
        let mut last = None;
        for &address in &peer.addresses {
            match Self::with(peer, address) {
                Ok(talk) => return Ok(talk),
                Err(error) => last = Some((address, error)),
            }
        }
        match last {
            Some((address, source)) => Err(NetBenchError::Peer { address, source: Box::new(source) }),
            None => Err(NetBenchError::Unavailable { reason: "there is no address to measure with".into() }),
        }
    }

    fn with(peer: &PeerOptions, address: SocketAddr) -> Result<Self, CellError> {
        let mut transport = talk::transport(peer.key.clone(), peer.insecure, 1)?;
        transport.check_trust(&Address::Tcp(address))?;
        let connection = transport.adopt_connecting(open(address, Opening::Talk)?.into())?;
        let (peer, heard) = (peer.clone(), VecDeque::new());
        let mut talk = Self { peer, address, transport, connection, heard, over: None, is_here: false };
        match talk.hear()? {
            Answer::Welcome { boot } => talk.is_here = boot.is_some() && boot == talk::boot(),
            Answer::Busy => return Err(CellError::Closed("it serves another measurement; try again later".into())),
            other => return Err(unexpected(&other)),
        }
        Ok(talk)
    }

    /// Says something at once.
    fn say(&mut self, ask: &Ask) -> Result<(), CellError> {
        talk::say(&mut self.transport, self.connection, ask)?;
        self.poll(Duration::ZERO)
    }

    fn poll(&mut self, timeout: Duration) -> Result<(), CellError> {
        let mut events = Vec::new();
        self.transport.poll(&mut events, Some(timeout))?;
        for event in events {
            match event {
                Event::Received { piece, .. } => self.heard.push_back(talk::understand(&piece)?),
                Event::Ended { .. } => self.over = Some("it ended the talk".into()),
                Event::Closed { reason, .. } => self.over = Some(reason.to_string()),
                _ => {}
            }
        }
        Ok(())
    }

    /// The next answer. What the other side could not do is an error.
    fn hear(&mut self) -> Result<Answer, CellError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.heard.pop_front() {
                Some(Answer::Cannot { why }) => return Err(CellError::Far(talk::shown(&why))),
                Some(answer) => return Ok(answer),
                None => {}
            }
            if let Some(why) = &self.over {
                return Err(CellError::Closed(talk::shown(why)));
            }
            if left(until).is_zero() {
                return Err(CellError::Late("no answer came"));
            }
            self.poll(left(until))?;
        }
    }

    fn hear_mark(&mut self) -> Result<Mark, CellError> {
        match self.hear()? {
            Answer::Mark(mark) => Ok(mark),
            other => Err(unexpected(&other)),
        }
    }

    /// Has the other side get ready.
    fn prepare(&mut self, task: Task) -> Result<Ticket, CellError> {
        self.say(&Ask::Task(task))?;
        match self.hear()? {
            Answer::Ready { ticket } => Ok(ticket),
            other => Err(unexpected(&other)),
        }
    }

    /// Has it say what came.
    fn finish(&mut self) -> Result<Ended, CellError> {
        self.say(&Ask::End)?;
        match self.hear()? {
            Answer::Ended(ended) => Ok(ended),
            other => Err(unexpected(&other)),
        }
    }

    /// Says goodbye.
    fn end(mut self) {
        self.transport.close(self.connection);
        let until = Instant::now() + PATIENCE;
        // Whoever does not answer sees that the socket is closed.
        while self.over.is_none() && !left(until).is_zero() && self.poll(left(until)).is_ok() {}
    }
}

fn unexpected(answer: &Answer) -> CellError {
    let text = format!("{answer:?}");
    CellError::Senseless(format!("an answer to no question: {}", talk::shown(&text)))
}

fn random_ticket() -> Result<Ticket, CellError> {
    let mut ticket = Ticket::default();
    let filled =
        rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut ticket[..], rustix::rand::GetRandomFlags::empty()));
    match filled.map_err(system("getrandom"))? {
        16 => Ok(ticket),
        _ => Err(CellError::Late("random bytes were not there")),
    }
}

/// A socket to the other side that says what it is for.
fn open(address: SocketAddr, opening: Opening) -> Result<TcpStream, CellError> {
    let failed = |call| move |source| CellError::System { call, source };
    let mut socket = TcpStream::connect_timeout(&address, REACH).map_err(failed("connect"))?;
    // A host may keep it from users, or not have it. What is in force is read back and told.
    let _or_not = socket::set_congestion(&socket, CONGESTION);
    socket.set_nodelay(true).map_err(failed("setsockopt(TCP_NODELAY)"))?;
    // A plain loop blocks, and the other side may have stopped.
    socket.set_write_timeout(Some(PATIENCE)).map_err(failed("setsockopt(SO_SNDTIMEO)"))?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(failed("setsockopt(SO_RCVTIMEO)"))?;
    socket.write_all(&opening.encode()).map_err(failed("write"))?;
    Ok(socket)
}

/// One thing that is measured.
#[derive(Clone, Copy)]
struct Cell {
    row: RowKind,
    bytes: usize,
    streams: usize,
}

/// What a measurement of throughput gave.
struct Measured {
    received: u64,
    elapsed: Duration,
    cpu_ns: u64,
    copied_user: f64,
    copied_kernel: Result<f64, &'static str>,
    completions: Option<f64>,
    congestion: Option<String>,
}

impl Cell {
    /// One measurement, or the row that says why there is none.
    fn observe(self, options: &NetOptions, talk: &mut Talk) -> Result<Observation, NetBenchError> {
        let mut row = Row::new(SUITE, self.row.name(), self.bytes);
        (row.wire, row.streams) = (Some(WIRE.to_owned()), Some(self.streams as u64));
        if self.row == RowKind::RawMultishot {
            return Ok(unmeasured(row, "the other host reads plain bytes by read alone"));
        }
        let failed = |source| {
            let row = self.row.name().to_owned();
            NetBenchError::Cell { row, wire: WIRE, bytes: self.bytes, source: Box::new(source) }
        };
        let measured = match self.throughput(talk, options.stream) {
            Ok(measured) => measured,
            Err(error) => {
                let reason = self.is_no_failure(&error, talk).ok_or_else(|| failed(error))?;
                return Ok(unmeasured(row, &reason));
            }
        };
        let wrong = measured.fill(&mut row, self.bytes);
        row.explain_completions(self.row.no_completions());
        if let Err(reason) = wrong {
            row = row.explain(reason);
        }
        if let Err(reason) = measured.copied_kernel {
            row.na.insert("copied_kernel_per_byte".to_owned(), reason.to_owned());
        }
        let why_not = if self.row == RowKind::UdpUnreliable {
            Some("a message that is lost is never answered")
        } else if options.samples == 0 || self.bytes > MOST_ROUND_TRIP_BYTES || self.streams > 1 {
            Some("latency is measured over one stream, up to 1 MiB")
        } else {
            None
        };
        if let Some(reason) = why_not {
            return Ok(Observation::of_row(row).explained(reason));
        }
        let latencies = self.latency(talk, options.round_trips_of(self.bytes)).map_err(failed)?;
        Ok(Observation::of_latencies(row, latencies).explained("not measured by this row"))
    }

    /// Why a row has no figures although all else goes on: the other side cannot do it, or datagrams do not pass.
    fn is_no_failure(self, error: &CellError, talk: &mut Talk) -> Option<String> {
        match error {
            CellError::Far(why) => Some(format!("the other side cannot: {why}")),
            CellError::Closed(why) if self.is_of_datagrams() => {
                // It still waits for them.
                talk.finish().ok()?;
                Some(format!("datagrams do not pass: {why}"))
            }
            _ => None,
        }
    }

    fn is_of_datagrams(self) -> bool {
        matches!(self.row, RowKind::Udp | RowKind::UdpUnreliable)
    }

    /// Has the other side get ready, and opens as many sockets as there are streams to it.
    fn sockets(self, talk: &mut Talk, echo: bool) -> Result<Vec<OwnedFd>, CellError> {
        let Self { bytes, streams, row } = self;
        let task = Task { carried: Carried::by(row), streams, bytes, echo, at: talk.address.ip() };
        let ticket = talk.prepare(task)?;
        let count = if self.is_of_datagrams() { 0 } else { streams };
        (0..count).map(|_| open(talk.address, Opening::Data(ticket)).map(OwnedFd::from)).collect()
    }

    fn streams(self, talk: &Talk, sockets: Vec<OwnedFd>) -> Result<Sender<StreamTransport>, CellError> {
        let mut options = stream_options(self.row, self.bytes, self.streams);
        (options.key, options.insecure) = (talk.peer.key.clone(), talk.peer.insecure);
        stream_sender(options, sockets, self.bytes)
    }

    fn datagrams(self, talk: &Talk) -> Result<Sender<UdpTransport>, CellError> {
        let mut options = datagrams::options_of(self.row, self.bytes, false);
        (options.key, options.insecure) = (talk.peer.key.clone(), talk.peer.insecure);
        datagrams::sender(options, talk.address, self.bytes, self.streams)
    }

    fn throughput(self, talk: &mut Talk, length: Duration) -> Result<Measured, CellError> {
        let sockets = self.sockets(talk, false)?;
        let near = sockets.first().and_then(|socket| socket::congestion(socket).ok());
        let (span, copied_kernel, completions) = match self.row {
            RowKind::Raw | RowKind::RawMultishot => {
                let mut sender = PlainSender::new(sockets, self.bytes)?;
                (between_marks(&mut sender, talk, length)?, Ok(2.0), None)
            }
            RowKind::Forced(_) | RowKind::Adaptive => {
                let mut sender = self.streams(talk, sockets)?;
                let span = between_marks(&mut sender, talk, length)?;
                let completions = sender.sent().completions;
                let copied = copied_at_sender(&sender, completions);
                sender.end()?;
                (span, copied.map(|copied| 1.0 + copied), completions)
            }
            RowKind::Udp | RowKind::UdpUnreliable => {
                let mut sender = self.datagrams(talk)?;
                let span = between_marks(&mut sender, talk, length)?;
                let (copied, completions) = datagrams::copied(&sender);
                sender.give_up()?;
                (span, Ok(1.0 + copied), completions)
            }
        };
        let ended = talk.finish()?;
        Ok(Measured {
            received: span.received,
            elapsed: span.elapsed,
            cpu_ns: span.cpu_ns,
            copied_user: ended.received.copied_per_byte(),
            copied_kernel,
            completions,
            congestion: near.map(|near| both(&near, ended.congestion.as_deref())),
        })
    }

    fn latency(self, talk: &mut Talk, samples: u64) -> Result<Latencies, CellError> {
        let sockets = self.sockets(talk, true)?;
        let latencies = match self.row {
            RowKind::Raw | RowKind::RawMultishot => {
                let mut sender = PlainSender::new(sockets, self.bytes)?;
                as_many_as_fit(samples, |samples| sender.round_trips(samples))?
            }
            RowKind::Forced(_) | RowKind::Adaptive => {
                let mut sender = self.streams(talk, sockets)?;
                let latencies = as_many_as_fit(samples, |samples| sender.round_trips(samples))?;
                sender.end()?;
                latencies
            }
            RowKind::Udp | RowKind::UdpUnreliable => {
                let mut sender = self.datagrams(talk)?;
                let latencies = as_many_as_fit(samples, |samples| sender.round_trips(samples))?;
                sender.give_up()?;
                latencies
            }
        };
        talk.finish()?;
        Ok(latencies)
    }
}

/// Round trips as many as asked for, or as fit in a while.
fn as_many_as_fit(
    samples: u64,
    mut round_trips: impl FnMut(u64) -> Result<Latencies, CellError>,
) -> Result<Latencies, CellError> {
    let begin = Instant::now();
    round_trips(FIRST_ROUND_TRIPS)?;
    let each = begin.elapsed().as_nanos() as u64 / FIRST_ROUND_TRIPS;
    let fit = ROUND_TRIPS_FOR.as_nanos() as u64 / each.max(1);
    round_trips(samples.min(fit).max(FIRST_ROUND_TRIPS))
}

/// The congestion control of both ends; the far one's name is a claim.
fn both(near: &str, far: Option<&str>) -> String {
    match far {
        Some(far) if far == near => near.to_owned(),
        Some(far) => format!("{near} at the sender, {} at the receiver", talk::shown(far)),
        None => format!("{near} at the sender, unknown at the receiver"),
    }
}

/// What happened between two marks.
struct Span {
    received: u64,
    elapsed: Duration,
    cpu_ns: u64,
}

/// Sends for a while, and then for the length between two marks.
fn between_marks(sender: &mut dyn Sends, talk: &mut Talk, length: Duration) -> Result<Span, CellError> {
    sender.send_for(length / 4)?;
    talk.say(&Ask::Mark)?;
    let meter = CpuMeter::start(&[])?;
    sender.send_for(length)?;
    let near = meter.read()?;
    talk.say(&Ask::Mark)?;
    let (first, last) = (talk.hear_mark()?, talk.hear_mark()?);
    Span::between(first, last, near, talk.is_here)
}

impl Span {
    /// The other side's numbers are claims.
    fn between(first: Mark, last: Mark, near: CpuTime, is_here: bool) -> Result<Self, CellError> {
        let difference = |of: fn(&Mark) -> u64| {
            let backwards = || CellError::Senseless("numbers that went backwards".into());
            of(&last).checked_sub(of(&first)).ok_or_else(backwards)
        };
        let ksoftirqd = match (first.ksoftirqd_ns, last.ksoftirqd_ns) {
            (Some(_), Some(_)) => Some(difference(|mark| mark.ksoftirqd_ns.unwrap_or(0))?),
            _ => None,
        };
        // One host's threads for packets count once.
        let ksoftirqd = match (near.ksoftirqd_ns, ksoftirqd) {
            (Some(near), _) if is_here => near,
            (near, far) => near.unwrap_or(0).saturating_add(far.unwrap_or(0)),
        };
        let own = difference(|mark| mark.own_ns)?.saturating_add(near.own_ns);
        Ok(Self {
            received: difference(|mark| mark.received)?,
            elapsed: Duration::from_nanos(difference(|mark| mark.at_ns)?),
            cpu_ns: own.saturating_add(ksoftirqd),
        })
    }
}

/// Bytes that the kernel copied at the sender for each byte sent, as far as that is known without an oracle.
fn copied_at_sender(sender: &Sender<StreamTransport>, completions: Option<f64>) -> Result<f64, &'static str> {
    const UNKNOWN: &str = "whether a path copies cannot be asked over a network of others, and neither its cost nor \
                           the kernel tells";
    let (mut copied, mut all) = (0.0, 0.0);
    for &connection in &sender.connections {
        let Some(facts) = sender.transport.facts(connection) else { return Err("a connection was gone") };
        for (path, done) in PathKind::ALL.into_iter().zip(&facts.counts.paths).filter(|(_, done)| done.bytes > 0) {
            let model = facts.selection.as_ref().and_then(|chosen| chosen.models.iter().find(|one| one.path == path));
            let copies = match path {
                PathKind::Write | PathKind::UringSend => Some(true),
                // That it copied is admitted only where it is true.
                _ if completions == Some(1.0) => Some(true),
                _ => model.and_then(|model| model.copies),
            };
            copied += f64::from(u8::from(copies.ok_or(UNKNOWN)?)) * done.bytes as f64;
            all += done.bytes as f64;
        }
    }
    if all > 0.0 { Ok(copied / all) } else { Err("nothing was sent") }
}

impl Measured {
    /// Fills the row; the reason if it has no figures.
    fn fill(&self, row: &mut Row, bytes: usize) -> Result<(), &'static str> {
        (row.copied_completions, row.congestion) = (self.completions, self.congestion.clone());
        if self.received == 0 || self.elapsed.is_zero() || self.cpu_ns == 0 {
            return Err("nothing arrived while it was measured; take a longer --length");
        }
        let rate = self.received as f64 / self.elapsed.as_secs_f64();
        (row.bytes_per_s, row.msgs_per_s) = (Some(rate), Some(rate / bytes as f64));
        row.cpu_s_per_gb = Some(self.cpu_ns as f64 / self.received as f64);
        (row.copied_user_per_byte, row.copied_kernel_per_byte) = (Some(self.copied_user), self.copied_kernel.ok());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(factor: u64, ksoftirqd_ns: Option<u64>) -> Mark {
        Mark { at_ns: 1_000 * factor, received: 500 * factor, own_ns: 70 * factor, ksoftirqd_ns }
    }

    #[test]
    fn one_hosts_threads_for_packets_count_once_and_those_of_two_hosts_both() {
        let near = CpuTime { own_ns: 100, others_ns: 0, ksoftirqd_ns: Some(5) };
        let of = |near, is_here| {
            let span = Span::between(mark(1, Some(20)), mark(3, Some(32)), near, is_here).expect("a span");
            assert_eq!((span.received, span.elapsed), (1_000, Duration::from_nanos(2_000)));
            span.cpu_ns
        };
        assert_eq!((of(near, true), of(near, false)), (245, 257));
        let blind = CpuTime { ksoftirqd_ns: None, ..near };
        assert_eq!((of(blind, true), of(blind, false)), (252, 252));
    }

    #[test]
    fn numbers_that_go_backwards_are_an_error_and_no_figure() {
        let near = CpuTime::default();
        assert!(matches!(Span::between(mark(2, None), mark(1, None), near, false), Err(CellError::Senseless(_))));
        let kernel = Span::between(mark(1, Some(2)), mark(2, Some(1)), near, false);
        assert!(matches!(kernel, Err(CellError::Senseless(_))));
    }

    #[test]
    fn a_congestion_control_that_differs_is_named_at_both_ends() {
        assert_eq!(both("cubic", Some("cubic")), "cubic");
        assert_eq!(both("cubic", Some("b\x1br")), "cubic at the sender, b\\u{1b}r at the receiver");
    }
}
