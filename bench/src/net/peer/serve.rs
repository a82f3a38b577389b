//! The side that is measured from another host: it receives, and says what that took.
//!
//! One thread listens, lets sockets say what they are for, and talks; a thread for each measurement receives. So a
//! question about how far that is costs the measurement nothing but its answer.
//!
//! # Invariants
//! - One measurement at a time; whoever else wants one is told so. Its memory is bounded by the largest of them.
//! - Sockets that have not said what they are for are few, and have little time.
//! - Whatever a peer says, does or leaves undone ends its own measurement and nothing else.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use zcmi_net::key::Key;
use zcmi_net::socket;
use zcmi_net::stream::{Address, StreamTransport};
use zcmi_net::transport::{ConnectionId, Event, Transport as _};
use zcmi_net::udp::UdpTransport;

use super::super::receiver::{Counting, Received, Receiver};
use super::super::{CellError, NetBenchError, PATIENCE, Progress, RowKind, datagrams, plain, stream_options, system};
use super::talk::{self, Answer, Ask, Carried, Ended, Mark, OPENING_BYTES, Opening, Task, Ticket, left};
use super::{CONGESTION, random_ticket};
use crate::cpu::CpuMeter;
use crate::pin;

/// Sockets that have not said yet what they are for.
const WAITING: usize = 64;
/// How long they have.
const OPENING_TIME: Duration = Duration::from_secs(5);
/// Talks at a time, those that are told to come later included.
const TALKS: usize = 64;
/// How long a peer may say nothing and send nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// How soon a thread that receives notices that it is over.
const LOOK: Duration = Duration::from_millis(200);
/// How long no more sockets are accepted when there are no descriptors for them.
const SHORT: Duration = Duration::from_millis(200);
/// Sockets that wait to be accepted.
const BACKLOG: i32 = 128;

/// Where and for whom measurements are served.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Where to listen; datagrams come to the same port.
    pub address: SocketAddr,
    /// The key that both sides must have.
    pub key: Option<Key>,
    /// Whether other hosts are served although there is no key.
    pub insecure: bool,
}

/// What serving has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Served {
    /// It listens here.
    Listening(SocketAddr),
    /// Somebody measures.
    Began,
    /// That is over, after so many measurements.
    Ended {
        /// How many.
        measurements: u64,
        /// Why.
        why: String,
    },
    /// So many were not served so far; told of the first, and then ever more rarely.
    TurnedAway {
        /// How many.
        count: u64,
        /// Why the last of them.
        why: String,
    },
}

/// Serves measurements for ever.
///
/// # Errors
/// Nobody may or can listen there.
pub fn serve(options: &ServeOptions, tell: &mut dyn FnMut(&Served)) -> Result<Infallible, NetBenchError> {
    let failed = |source| NetBenchError::Serve { address: options.address, source: Box::new(source) };
    let mut server = Server::new(options, tell).map_err(failed)?;
    loop {
        server.turn().map_err(failed)?;
    }
}

/// A socket that has not said what it is for.
struct Newcomer {
    socket: TcpStream,
    said: [u8; OPENING_BYTES],
    length: usize,
    until: Instant,
}

/// Who measures.
struct Guest {
    connection: ConnectionId,
    work: Option<Work>,
    measurements: u64,
    /// When it last said or sent something, and how much it had sent by then.
    heard: Instant,
    received: u64,
}

/// A measurement that is going on.
struct Work {
    ticket: Ticket,
    /// Sockets that are still to come.
    missing: usize,
    congestion: Option<String>,
    hand_over: mpsc::Sender<OwnedFd>,
    progress: Arc<Progress>,
    thread: JoinHandle<Result<Received, CellError>>,
}

impl Work {
    /// Ends it and says what came.
    fn end(self) -> Answer {
        self.progress.over.store(true, Ordering::Relaxed);
        // Whoever waits for sockets waits no more.
        drop(self.hand_over);
        match self.thread.join() {
            Ok(Ok(received)) => Answer::Ended(Ended { received, congestion: self.congestion }),
            Ok(Err(error)) => Answer::Cannot { why: error.to_string() },
            Err(_) => Answer::Cannot { why: "the thread that received panicked".into() },
        }
    }
}

struct Server<'a> {
    options: ServeOptions,
    listener: TcpListener,
    talk: StreamTransport,
    newcomers: VecDeque<Newcomer>,
    guest: Option<Guest>,
    meter: CpuMeter,
    began: Instant,
    /// When sockets are accepted again.
    accepts_at: Instant,
    turned_away: u64,
    tell: &'a mut dyn FnMut(&Served),
}

impl<'a> Server<'a> {
    fn new(options: &ServeOptions, tell: &'a mut dyn FnMut(&Served)) -> Result<Self, CellError> {
        let talk = talk::transport(options.key.clone(), options.insecure, TALKS)?;
        talk.check_trust(&Address::Tcp(options.address))?;
        let listener = listen(options.address)?;
        let address = listener.local_addr().map_err(|source| CellError::System { call: "getsockname", source })?;
        tell(&Served::Listening(address));
        Ok(Self {
            options: ServeOptions { address, ..options.clone() },
            listener,
            talk,
            newcomers: VecDeque::new(),
            guest: None,
            meter: CpuMeter::start(&[])?,
            began: Instant::now(),
            accepts_at: Instant::now(),
            turned_away: 0,
            tell,
        })
    }

    /// Waits until something happens, and does what follows from it.
    fn turn(&mut self) -> Result<(), CellError> {
        self.wait()?;
        self.accept();
        self.let_say();
        let mut events = Vec::new();
        self.talk.poll(&mut events, Some(Duration::ZERO))?;
        events.into_iter().for_each(|event| self.take(event));
        self.look_after_guest();
        // What was said in this turn goes out.
        let mut events = Vec::new();
        self.talk.poll(&mut events, Some(Duration::ZERO))?;
        events.into_iter().for_each(|event| self.take(event));
        Ok(())
    }

    fn wait(&self) -> Result<(), CellError> {
        let accepts = self.accepts_at <= Instant::now();
        let mut waited = vec![PollFd::from_borrowed_fd(self.talk.descriptor(), PollFlags::IN)];
        waited.extend(accepts.then(|| PollFd::new(&self.listener, PollFlags::IN)));
        waited.extend(self.newcomers.iter().map(|newcomer| PollFd::new(&newcomer.socket, PollFlags::IN)));
        // Time passes for whoever owes something.
        let is_calm = accepts && self.newcomers.is_empty() && self.guest.is_none() && self.talk.sockets() == (0, 0);
        let longest = if is_calm { PATIENCE } else { LOOK };
        let longest = Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: longest.subsec_nanos().into() };
        match rustix::event::poll(&mut waited, Some(&longest)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(system("poll")(errno)),
        }
    }

    fn accept(&mut self) {
        if self.accepts_at > Instant::now() {
            return;
        }
        for _ in 0..WAITING {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    if self.newcomers.len() == WAITING {
                        // The oldest had its time; it is likely one of those that say nothing.
                        self.newcomers.pop_front();
                        self.turn_away("it did not say in time what it is for, and others came");
                    }
                    if socket.set_nonblocking(true).is_ok() {
                        let until = Instant::now() + OPENING_TIME;
                        self.newcomers.push_back(Newcomer { socket, said: [0; OPENING_BYTES], length: 0, until });
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It was gone before it was taken.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                }
                Err(error) => {
                    self.turn_away(&error.to_string());
                    self.accepts_at = Instant::now() + SHORT;
                    return;
                }
            }
        }
    }

    /// Hears what newcomers are for.
    fn let_say(&mut self) {
        for _ in 0..self.newcomers.len() {
            let Some(mut newcomer) = self.newcomers.pop_front() else { return };
            match newcomer.socket.read(&mut newcomer.said[newcomer.length..]) {
                Ok(0) => self.turn_away("it hung up before it said what it is for"),
                Ok(count) => {
                    newcomer.length += count;
                    if newcomer.length < OPENING_BYTES {
                        self.newcomers.push_back(newcomer);
                    } else {
                        self.place(newcomer);
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    if newcomer.until > Instant::now() {
                        self.newcomers.push_back(newcomer);
                    } else {
                        self.turn_away("it did not say in time what it is for");
                    }
                }
                Err(error) => self.turn_away(&error.to_string()),
            }
        }
    }

    /// Gives a socket to those whom it is for.
    fn place(&mut self, newcomer: Newcomer) {
        match Opening::decode(&newcomer.said) {
            Some(Opening::Talk) => {
                if let Err(error) = self.talk.adopt_accepting(newcomer.socket.into()) {
                    self.turn_away(&error.to_string());
                }
            }
            Some(Opening::Data(ticket)) => {
                let work = self.guest.as_mut().and_then(|guest| guest.work.as_mut());
                let Some(work) = work.filter(|work| work.ticket == ticket && work.missing > 0) else {
                    return self.turn_away("its ticket is none");
                };
                work.missing -= 1;
                work.congestion = socket::congestion(&newcomer.socket).ok();
                // A loop that blocks looks up now and then. Where it has ended, its end is told when it is asked for.
                let _or_not = newcomer.socket.set_nonblocking(false).and_then(|()| {
                    newcomer.socket.set_read_timeout(Some(LOOK))?;
                    newcomer.socket.set_write_timeout(Some(LOOK))
                });
                let _or_ended = work.hand_over.send(newcomer.socket.into());
            }
            None => self.turn_away("it is no `zcmi bench net --peer` of this version"),
        }
    }

    fn turn_away(&mut self, why: &str) {
        self.turned_away += 1;
        if self.turned_away.is_power_of_two() {
            (self.tell)(&Served::TurnedAway { count: self.turned_away, why: why.to_owned() });
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Accepted { connection, .. } => self.welcome(connection),
            Event::Received { connection, piece } => {
                let Some(guest) = self.guest.as_mut().filter(|guest| guest.connection == connection) else {
                    // It was told to come later, and talks on.
                    return self.talk.abort(connection);
                };
                guest.heard = Instant::now();
                let answered = talk::understand(&piece).and_then(|ask| self.answer(ask));
                if let Err(error) = answered {
                    // It may still hear why.
                    let why = Answer::Cannot { why: error.to_string() };
                    let _or_not = talk::say(&mut self.talk, connection, &why);
                    self.dismiss(&error.to_string());
                }
            }
            Event::Ended { connection } => {
                self.talk.close(connection);
                self.leave(connection, "it is done");
            }
            Event::Closed { connection, reason } => self.leave(connection, &reason.to_string()),
            _ => {}
        }
    }

    fn welcome(&mut self, connection: ConnectionId) {
        let answer = if self.guest.is_some() { Answer::Busy } else { Answer::Welcome { boot: talk::boot() } };
        let is_busy = matches!(answer, Answer::Busy);
        let said = talk::say(&mut self.talk, connection, &answer);
        if is_busy || said.is_err() {
            self.talk.close(connection);
            return self.turn_away("another measurement is going on");
        }
        (self.tell)(&Served::Began);
        let heard = Instant::now();
        self.guest = Some(Guest { connection, work: None, measurements: 0, heard, received: 0 });
    }

    /// Answers the guest.
    fn answer(&mut self, ask: Ask) -> Result<(), CellError> {
        let Some(guest) = &mut self.guest else { return Ok(()) };
        let senseless = |what: &str| Err(CellError::Senseless(what.into()));
        let answer = match (ask, &guest.work) {
            (Ask::Task(task), None) if task.is_sane() => match begin(task, &self.options) {
                Ok(work) => {
                    let ticket = work.ticket;
                    (guest.work, guest.received) = (Some(work), 0);
                    guest.measurements += 1;
                    Answer::Ready { ticket }
                }
                Err(error) => Answer::Cannot { why: error.to_string() },
            },
            (Ask::Task(_), None) => return senseless("a measurement beyond what is measured"),
            (Ask::Task(_), Some(_)) => return senseless("a measurement within another"),
            (Ask::Mark, Some(work)) => {
                let used = self.meter.read()?;
                Answer::Mark(Mark {
                    at_ns: self.began.elapsed().as_nanos() as u64,
                    received: work.progress.received(),
                    own_ns: used.own_ns,
                    ksoftirqd_ns: used.ksoftirqd_ns,
                })
            }
            (Ask::Mark | Ask::End, None) => return senseless("a question about a measurement that is not"),
            (Ask::End, Some(_)) => match guest.work.take() {
                Some(work) => work.end(),
                None => return Ok(()),
            },
        };
        talk::say(&mut self.talk, guest.connection, &answer)
    }

    /// Gives up a guest that says and sends nothing any more.
    fn look_after_guest(&mut self) {
        let Some(guest) = &mut self.guest else { return };
        let received = guest.work.as_ref().map_or(0, |work| work.progress.received());
        if received != guest.received {
            (guest.received, guest.heard) = (received, Instant::now());
        }
        if left(guest.heard + SILENCE).is_zero() {
            self.dismiss("it says nothing and sends nothing");
        }
    }

    /// Ends the guest's visit.
    fn dismiss(&mut self, why: &str) {
        if let Some(guest) = &self.guest {
            let connection = guest.connection;
            self.talk.close(connection);
            self.leave(connection, why);
        }
    }

    /// The guest is gone, if it is this one.
    fn leave(&mut self, connection: ConnectionId, why: &str) {
        if let Some(guest) = self.guest.take_if(|guest| guest.connection == connection) {
            if let Some(work) = guest.work {
                work.end();
            }
            (self.tell)(&Served::Ended { measurements: guest.measurements, why: talk::shown(why) });
        }
    }
}

/// A listener of whose connections the congestion control is what it should be, if it may be.
fn listen(address: SocketAddr) -> Result<TcpListener, CellError> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None).map_err(system("socket"))?;
    sockopt::set_socket_reuseaddr(&socket, true).map_err(system("setsockopt(SO_REUSEADDR)"))?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true).map_err(system("setsockopt(IPV6_V6ONLY)"))?;
    }
    // A host may keep it from users, or not have it. What is in force is read back and told.
    let _or_not = socket::set_congestion(&socket, CONGESTION);
    rustix::net::bind(&socket, &address).map_err(system("bind"))?;
    rustix::net::listen(&socket, BACKLOG).map_err(system("listen"))?;
    Ok(socket.into())
}

/// Starts a thread that receives, and waits until it is ready.
fn begin(task: Task, options: &ServeOptions) -> Result<Work, CellError> {
    let (hand_over, sockets) = mpsc::channel();
    let (say_ready, is_ready) = mpsc::channel();
    let progress = Arc::new(Progress::default());
    let (seen, options) = (Arc::clone(&progress), options.clone());
    let thread = std::thread::Builder::new().name("zcmi-bench-far".into());
    let thread = thread.spawn(move || {
        // Where there is one processor alone, it is shared.
        let _pinned = pin::pair().and_then(|pair| pin::pin(pair.far)).ok();
        receive(task, &options, &sockets, &say_ready, &seen)
    });
    let thread = thread.map_err(|source| CellError::System { call: "clone", source })?;
    let missing = if matches!(task.carried, Carried::Datagrams { .. }) { 0 } else { task.streams };
    let work = Work { ticket: random_ticket()?, missing, congestion: None, hand_over, progress, thread };
    if is_ready.recv_timeout(PATIENCE).is_ok() {
        return Ok(work);
    }
    match work.end() {
        Answer::Cannot { why } => Err(CellError::NotTaken(why)),
        _ => Err(CellError::Late("memory was not made ready")),
    }
}

/// Receives until the connections have ended, or it is over.
fn receive(
    task: Task,
    options: &ServeOptions,
    sockets: &mpsc::Receiver<OwnedFd>,
    say_ready: &mpsc::Sender<()>,
    progress: &Progress,
) -> Result<Received, CellError> {
    // Nobody who hears it is one that gave up waiting, and ends this thread.
    let ready = || {
        let _or_gone = say_ready.send(());
    };
    match task.carried {
        Carried::Plain => {
            ready();
            let sockets = all(sockets, task.streams)?;
            if task.echo { plain::echo(&sockets, task.bytes, progress) } else { plain::receive(&sockets, progress) }
        }
        Carried::Messages => {
            let mut options_of_row = stream_options(RowKind::Adaptive, task.bytes, task.streams);
            (options_of_row.key, options_of_row.insecure) = (options.key.clone(), options.insecure);
            let mut transport = StreamTransport::new(options_of_row)?;
            ready();
            for socket in all(sockets, task.streams)? {
                transport.adopt_accepting(socket)?;
            }
            take(Receiver::new(transport, task.echo), Some(task.streams), progress)
        }
        Carried::Datagrams { reliable } => {
            let row = if reliable { RowKind::Udp } else { RowKind::UdpUnreliable };
            let mut options_of_row = datagrams::options_of(row, task.bytes, false);
            (options_of_row.key, options_of_row.insecure) = (options.key.clone(), options.insecure);
            options_of_row.connections = 2 * task.streams;
            let mut transport = UdpTransport::new(options_of_row)?;
            // An answer must leave from the address that was asked.
            let ours = options.address;
            let address = if ours.ip().is_unspecified() { SocketAddr::new(task.at, ours.port()) } else { ours };
            transport.listen(address)?;
            ready();
            take(Receiver::new(transport, task.echo), None, progress)
        }
    }
}

/// The sockets of a measurement, once they are here.
fn all(sockets: &mpsc::Receiver<OwnedFd>, count: usize) -> Result<Vec<OwnedFd>, CellError> {
    let until = Instant::now() + PATIENCE;
    let next = || sockets.recv_timeout(left(until)).map_err(|_| CellError::Late("not all connections came"));
    (0..count).map(|_| next()).collect()
}

fn take<T: Counting>(
    mut receiver: Receiver<T>,
    connections: Option<usize>,
    progress: &Progress,
) -> Result<Received, CellError> {
    while !progress.is_over() && connections.is_none_or(|connections| receiver.closed() < connections) {
        receiver.turn(LOOK)?;
        progress.has_received(receiver.received().bytes);
    }
    Ok(receiver.received())
}
