//! A datagram socket: trains out of it by one call or several, trains into it, and which sends the kernel still reads.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType, sockopt};
use zcmi_mem::pool::Slot;

use super::datagram::HEAD_BYTES;
use super::sender::Item;
use super::sys;
use crate::notify::Owed;
use crate::path::{PathKind, Release};
use crate::shared::RingHandle;
use crate::slots::Slots;
use crate::socket::{Ignored, enable_zero_copy, read_reports};
use crate::uring::{Envelope, Refusal};
use crate::wire::{Home, Notification, Segment};

/// The most datagrams of one call; older kernels take 64.
pub(super) const MOST_SEGMENTS: usize = 64;
/// The most bytes of one call: what an IP packet can hold.
pub(super) const MOST_BYTES: usize = 65_507;
/// The most bytes of payload in a datagram: wherever they begin they lie in 16 pages, which with the head are as many
/// parts as a packet has (`MAX_SKB_FRAGS`, 17), so that it can be sent without a copy.
pub(super) const MOST_SEGMENT: usize = 15 * 4096;
/// The most datagrams of one call without a copy: each has two parts at least.
pub(super) const MOST_SHARED: usize = 8;
/// Bytes of payload that any path takes: a packet of 1,280 bytes without heads.
pub(super) const SAFE_SEGMENT: u32 = 1152;
/// Zero-copy sends that may be owed a notification.
const OWED_MAX: usize = 4096;
/// Heads that are kept for the next train.
const SPARE_HEADS: usize = 16;

/// The heads of a train.
pub(super) type Heads = Box<[[u8; HEAD_BYTES]; MOST_SEGMENTS]>;

/// A zero-copy send that owes a notification: whose pieces it reads, and its heads.
pub(super) struct Flight {
    number: u64,
    pub(super) path: PathKind,
    pub(super) connection: u64,
    pub(super) items: Vec<Item>,
    /// Slots, so that nothing else is written there if the notification never comes.
    heads: Vec<Slot>,
    open: bool,
}

/// What a train needs that is sent without a copy.
pub(super) struct Sharing<'a> {
    pub(super) path: PathKind,
    pub(super) connection: u64,
    pub(super) items: &'a [Item],
    /// Where each payload lies.
    pub(super) homes: &'a [Option<Home>],
    pub(super) slots: &'a mut Slots,
}

/// How sending went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatagramCounts {
    /// Calls that sent something.
    pub sends: u64,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Bytes sent, heads included.
    pub bytes: u64,
    /// Calls for several datagrams that were refused, so that each took a call of its own.
    pub refused_trains: u64,
    /// Calls without a copy that were refused, so that the kernel copied.
    pub refused_zero_copy: u64,
    /// Trains that were copied because too much was pinned.
    pub over_budget: u64,
    /// Bytes sent without a copy, as far as the kernel says.
    pub zero_copy_bytes: u64,
    /// Notifications that came.
    pub notified: u64,
    /// Of these, how many said that the kernel copied.
    pub copied: u64,
    /// Calls that received something.
    pub receives: u64,
    /// Datagrams received.
    pub received: u64,
}

/// What became of a train.
pub(super) struct SentTrain {
    /// How many datagrams were sent.
    pub(super) count: usize,
    /// By which path: another than was asked for, if that was refused.
    pub(super) path: PathKind,
    /// Why the path was refused that was asked for. Where fewer datagrams would have gone it was not.
    pub(super) refused: Option<Errno>,
    /// Whether the kernel may read the payloads after the call.
    pub(super) pinned: bool,
    /// Whether no more is taken now.
    pub(super) is_full: bool,
}

/// A datagram socket.
pub(super) struct DatagramSocket {
    socket: OwnedFd,
    is_ipv6: bool,
    /// How many datagrams a call may send; 1 where the kernel cuts nothing.
    segments: usize,
    /// The same for calls without a copy, which may have few parts.
    zero_copy_segments: usize,
    zero_copy: Option<Owed>,
    flights: VecDeque<Flight>,
    ring: RingHandle,
    /// The ring's name for this socket.
    key: u32,
    /// Sends by the ring.
    ring_flights: VecDeque<Flight>,
    /// Sends by copying that the kernel took and will never answer; of those without a copy the ring knows itself.
    lost: u64,
    spare: Vec<Heads>,
    ignored: Ignored,
    pub(super) counts: DatagramCounts,
}

impl DatagramSocket {
    /// A socket of the family of that address, not bound yet.
    pub(super) fn new(address: &SocketAddr, buffer_bytes: usize, ring: &RingHandle) -> Result<Self, Errno> {
        let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
        let is_ipv6 = address.is_ipv6();
        if is_ipv6 {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        sys::set_buffers(socket.as_fd(), buffer_bytes);
        sys::set_no_fragments(socket.as_fd(), is_ipv6)?;
        // An older kernel hands out datagrams one by one, and takes them so.
        let _ = sys::set_gro(socket.as_fd());
        let segments = if sys::knows_gso(socket.as_fd()).is_ok() { MOST_SEGMENTS } else { 1 };
        Ok(Self {
            socket,
            is_ipv6,
            segments,
            zero_copy_segments: segments.min(MOST_SHARED),
            zero_copy: None,
            flights: VecDeque::new(),
            key: ring.borrow_mut().next_key(),
            ring: Rc::clone(ring),
            ring_flights: VecDeque::new(),
            lost: 0,
            spare: Vec::new(),
            ignored: Ignored::default(),
            counts: DatagramCounts::default(),
        })
    }

    /// Binds it.
    pub(super) fn bind(&self, address: &SocketAddr) -> Result<(), Errno> {
        rustix::net::bind(&self.socket, address)
    }

    /// Has it send to and receive from one address only.
    pub(super) fn connect(&self, address: &SocketAddr) -> Result<(), Errno> {
        rustix::net::connect(&self.socket, address)
    }

    /// Where it is bound.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        SocketAddr::try_from(rustix::net::getsockname(&self.socket).ok()?).ok()
    }

    /// Has zero-copy sends be taken at their word.
    ///
    /// # Errors
    /// Why they are not.
    pub(super) fn allow_zero_copy(&mut self) -> Result<(), String> {
        enable_zero_copy(self.socket.as_fd()).map_err(|reason| reason.into_owned())?;
        self.zero_copy = Some(Owed::new(0, OWED_MAX));
        Ok(())
    }

    /// The room for what is received, and for what is sent, as the kernel counts it.
    pub(super) fn buffers(&self) -> (usize, usize) {
        let received = sockopt::socket_recv_buffer_size(&self.socket).unwrap_or(0);
        (received, sockopt::socket_send_buffer_size(&self.socket).unwrap_or(0))
    }

    /// Bytes of payload that a datagram to the connected address takes.
    pub(super) fn segment(&self) -> u32 {
        segment_of(self.socket.as_fd(), self.is_ipv6)
    }

    /// The same for a path on which we have no socket of our own.
    pub(super) fn segment_to(address: &SocketAddr) -> u32 {
        let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::socket_with(family, SocketType::DGRAM, flags, None) else { return SAFE_SEGMENT };
        match rustix::net::connect(&socket, address) {
            Ok(()) => segment_of(socket.as_fd(), address.is_ipv6()),
            Err(_) => SAFE_SEGMENT,
        }
    }

    /// How many datagrams may go by one call.
    pub(super) fn segments(&self) -> usize {
        self.segments
    }

    /// Sends everything in datagrams of their own from now on.
    pub(super) fn refuse_trains(&mut self) {
        self.segments = 1;
    }

    /// Room for heads.
    pub(super) fn heads(&mut self) -> Heads {
        self.spare.pop().unwrap_or_else(|| Box::new([[0; HEAD_BYTES]; MOST_SEGMENTS]))
    }

    /// How many datagrams of a train go by one call that shares their pages.
    pub(super) fn shared_at_once(&self) -> usize {
        self.zero_copy_segments
    }

    fn keep(&mut self, heads: Option<Heads>) {
        if self.spare.len() < SPARE_HEADS {
            self.spare.extend(heads);
        }
    }

    /// Sends one datagram from elsewhere; it is not missed if it does not go.
    pub(super) fn send_small(&mut self, to: Option<&SocketAddrAny>, bytes: &[u8]) -> Result<(), Errno> {
        sys::send(self.socket.as_fd(), to, &[IoSlice::new(bytes)], None, false)?;
        self.counts.sends += 1;
        self.counts.datagrams += 1;
        self.counts.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Sends datagrams, each of a head and its payload: all of one size, the last of that or less.
    ///
    /// # Errors
    /// The kernel's, if nothing was sent. `MSGSIZE`: the path does not take datagrams of that size.
    pub(super) fn send_train(
        &mut self,
        to: Option<&SocketAddrAny>,
        heads: Heads,
        payloads: &[&[u8]],
        sharing: Option<Sharing<'_>>,
    ) -> Result<SentTrain, Errno> {
        let mut refused = None;
        if let Some(sharing) = sharing {
            let count = payloads.len().min(self.zero_copy_segments);
            match self.send_sharing(to, &heads, &payloads[..count], sharing) {
                Ok(sent) => {
                    self.keep(Some(heads));
                    return Ok(sent);
                }
                Err(Some(Errno::AGAIN)) => {
                    self.keep(Some(heads));
                    return Err(Errno::AGAIN);
                }
                // Our own heads, or places for notifications, are all in use now.
                Err(None) => self.counts.refused_zero_copy += 1,
                Err(Some(errno)) => {
                    // A packet has few parts: fewer datagrams may fit. Anything else a plain send finds out.
                    self.counts.refused_zero_copy += 1;
                    if errno == Errno::MSGSIZE && count > 1 {
                        self.zero_copy_segments = count.div_ceil(2);
                    } else {
                        refused = Some(errno);
                    }
                }
            }
        }
        let sent = self.send_copying(to, &heads, payloads);
        self.keep(Some(heads));
        sent.map(|sent| SentTrain { refused, ..sent })
    }

    /// Sends without a copy: all of them, or nothing. The error is none where there is no room for more such sends now.
    fn send_sharing(
        &mut self,
        to: Option<&SocketAddrAny>,
        heads: &Heads,
        payloads: &[&[u8]],
        sharing: Sharing<'_>,
    ) -> Result<SentTrain, Option<Errno>> {
        let Sharing { path, connection, items, homes, slots } = sharing;
        let count = payloads.len();
        let mut kept = Vec::with_capacity(count);
        for head in &heads[..count] {
            let mut slot = slots.header(self.flights.len() + self.ring_flights.len()).ok_or(None)?;
            slot.bytes_mut(HEAD_BYTES).copy_from_slice(head);
            kept.push(slot);
        }
        let mut segments = [Segment { bytes: &[], home: None }; 2 * MOST_SHARED];
        for (index, (slot, payload)) in kept.iter().zip(payloads).enumerate() {
            let head = slot.bytes(HEAD_BYTES);
            segments[2 * index] = Segment { bytes: head, home: slots.home(head) };
            segments[2 * index + 1] = Segment { bytes: payload, home: homes[index] };
        }
        let segments = &segments[..2 * count];
        let segment = (count > 1).then(|| (HEAD_BYTES + payloads[0].len()) as u16);
        let bytes: u64 = payloads.iter().map(|bytes| bytes.len() as u64).sum();
        let number = if path == PathKind::ZeroCopy {
            let owed = self.zero_copy.as_mut().ok_or(Some(Errno::OPNOTSUPP))?;
            let owed = Some(owed).filter(|owed| owed.has_room()).ok_or(None)?;
            let mut slices: [IoSlice<'_>; 2 * MOST_SHARED] = std::array::from_fn(|_| IoSlice::new(&[]));
            slices.iter_mut().zip(segments).for_each(|(slice, segment)| *slice = IoSlice::new(segment.bytes));
            sys::send(self.socket.as_fd(), to, &slices[..segments.len()], segment, true)?;
            Some(owed.count())
        } else {
            let mut shared = self.ring.borrow_mut();
            let ring = shared.open().map_err(|_| Some(Errno::OPNOTSUPP))?;
            let envelope = Envelope { to, segment };
            match ring.send_datagrams(self.socket.as_fd(), self.key, path, envelope, segments) {
                Ok(Release::Notified(number)) => Some(number),
                Ok(_) => None,
                Err(error) if error.get_ref().and_then(|inner| inner.downcast_ref()) == Some(&Refusal::Lost) => {
                    // The kernel has it and may read it for ever: it counts as sent, and is never free again.
                    self.lost += u64::from(path == PathKind::UringSend);
                    Some(u64::MAX)
                }
                Err(error) => return Err(Some(Errno::from_io_error(&error).unwrap_or(Errno::OPNOTSUPP))),
            }
        };
        self.counts.sends += 1;
        self.counts.datagrams += count as u64;
        self.counts.bytes += bytes + (count * HEAD_BYTES) as u64;
        if let Some(number) = number {
            let flight = Flight { number, path, connection, items: items[..count].to_vec(), heads: kept, open: true };
            self.counts.zero_copy_bytes += bytes;
            if path == PathKind::ZeroCopy { &mut self.flights } else { &mut self.ring_flights }.push_back(flight);
        }
        let pinned = number.is_some();
        let path = if pinned { path } else { PathKind::UringSend };
        Ok(SentTrain { count, path, refused: None, pinned, is_full: false })
    }

    fn send_copying(
        &mut self,
        to: Option<&SocketAddrAny>,
        heads: &Heads,
        payloads: &[&[u8]],
    ) -> Result<SentTrain, Errno> {
        if payloads.len() > 1 && self.segments > 1 {
            match self.send_slices(to, heads, payloads) {
                Ok(()) => {
                    return Ok(SentTrain {
                        count: payloads.len(),
                        path: PathKind::Write,
                        refused: None,
                        pinned: false,
                        is_full: false,
                    });
                }
                Err(Errno::MSGSIZE) => {
                    // Too many, or each too long: the first alone tells.
                    self.counts.refused_trains += 1;
                    self.send_slices(to, heads, &payloads[..1])?;
                    self.segments = (self.segments.min(payloads.len()) / 2).max(1);
                    return Ok(SentTrain {
                        count: 1,
                        path: PathKind::Write,
                        refused: None,
                        pinned: false,
                        is_full: false,
                    });
                }
                // The device or the kernel does not cut.
                Err(Errno::INVAL | Errno::IO | Errno::OPNOTSUPP) => {
                    self.counts.refused_trains += 1;
                    self.segments = 1;
                }
                Err(errno) => return Err(errno),
            }
        }
        for index in 0..payloads.len() {
            match self.send_one(to, &heads[index], payloads[index]) {
                Ok(()) => {}
                Err(errno) if index == 0 => return Err(errno),
                Err(_) => {
                    return Ok(SentTrain {
                        count: index,
                        path: PathKind::Write,
                        refused: None,
                        pinned: false,
                        is_full: true,
                    });
                }
            }
        }
        Ok(SentTrain { count: payloads.len(), path: PathKind::Write, refused: None, pinned: false, is_full: false })
    }

    fn send_one(&mut self, to: Option<&SocketAddrAny>, head: &[u8], payload: &[u8]) -> Result<(), Errno> {
        sys::send(self.socket.as_fd(), to, &[IoSlice::new(head), IoSlice::new(payload)], None, false)?;
        self.counts.sends += 1;
        self.counts.datagrams += 1;
        self.counts.bytes += (head.len() + payload.len()) as u64;
        Ok(())
    }

    fn send_slices(&mut self, to: Option<&SocketAddrAny>, heads: &Heads, payloads: &[&[u8]]) -> Result<(), Errno> {
        let mut slices: [IoSlice<'_>; 2 * MOST_SEGMENTS] = std::array::from_fn(|_| IoSlice::new(&[]));
        let mut bytes = 0;
        for (index, payload) in payloads.iter().enumerate() {
            slices[2 * index] = IoSlice::new(&heads[index]);
            slices[2 * index + 1] = IoSlice::new(payload);
            bytes += HEAD_BYTES + payload.len();
        }
        let segment = (payloads.len() > 1).then(|| (HEAD_BYTES + payloads[0].len()) as u16);
        sys::send(self.socket.as_fd(), to, &slices[..2 * payloads.len()], segment, false)?;
        self.counts.sends += 1;
        self.counts.datagrams += payloads.len() as u64;
        self.counts.bytes += bytes as u64;
        Ok(())
    }

    /// Receives what is there.
    pub(super) fn receive(&mut self, buffers: &mut [IoSliceMut<'_>]) -> Result<sys::Received, Errno> {
        let received = sys::receive(self.socket.as_fd(), buffers)?;
        self.counts.receives += 1;
        self.counts.received += received.bytes.div_ceil(received.segment.max(1)) as u64;
        Ok(received)
    }

    /// How many sends for that connection are owed a notification.
    pub(super) fn open_flights(&self, connection: u64) -> usize {
        let flights = self.flights.iter().chain(&self.ring_flights);
        flights.filter(|flight| flight.open && flight.connection == connection).count()
    }

    /// How many sends are owed a notification.
    pub(super) fn owed(&self) -> u64 {
        let of_ring = if self.ring_flights.is_empty() {
            0
        } else {
            self.ring.borrow_mut().opened().map_or(0, |ring| ring.owed_to(self.key))
        };
        self.zero_copy.as_ref().map_or(0, Owed::open) + of_ring as u64 + self.lost
    }

    /// The ring's name for this socket.
    pub(super) fn key(&self) -> u32 {
        self.key
    }

    /// Takes the notifications that have come, and gives the sends that are done to `each`, with what was said of them:
    /// the path is the one of the error queue, or of the ring.
    pub(super) fn notifications(&mut self, each: &mut dyn FnMut(&Flight, bool)) {
        let Self { socket, zero_copy, flights, ring_flights, ring, key, ignored, counts, .. } = self;
        let mut take = |flights: &mut VecDeque<Flight>, notification: Notification| {
            let begin = flights.partition_point(|flight| flight.number < notification.first);
            for flight in flights.range_mut(begin..).take_while(|flight| flight.number <= notification.last) {
                if core::mem::take(&mut flight.open) {
                    counts.notified += 1;
                    counts.copied += u64::from(notification.copied);
                    flight.heads.clear();
                    each(flight, notification.copied);
                }
            }
            while flights.front().is_some_and(|flight| !flight.open) {
                flights.pop_front();
            }
        };
        if let Some(owed) = zero_copy.as_mut().filter(|owed| owed.open() > 0) {
            // Errors of the path are hints from whoever sent them, and nothing here goes by them.
            let _ = read_reports(socket.as_fd(), owed, ignored, &mut |notification| take(flights, notification));
        }
        if !ring_flights.is_empty()
            && let Some(ring) = ring.borrow_mut().opened()
        {
            // Refused in a forked child alone, which has no flights of its own.
            let _ = ring.notifications(*key, &mut |notification| take(ring_flights, notification));
        }
    }

    /// What the kernel may still read, so that nobody writes there: for the end of the transport.
    pub(super) fn forget_flights(&mut self) {
        for flight in self.flights.drain(..).chain(self.ring_flights.drain(..)).filter(|flight| flight.open) {
            core::mem::forget(flight.heads);
        }
    }
}

impl AsFd for DatagramSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn segment_of(socket: BorrowedFd<'_>, is_ipv6: bool) -> u32 {
    let heads = if is_ipv6 { 48 } else { 28 } + HEAD_BYTES;
    match sys::path_mtu(socket, is_ipv6) {
        Ok(mtu) if mtu > SAFE_SEGMENT as usize + heads => {
            let bytes = (mtu - heads).min(MOST_SEGMENT);
            // Whole cache lines, so that payload lies in slots as evenly as it was written.
            (bytes / 64 * 64) as u32
        }
        _ => SAFE_SEGMENT,
    }
}

#[cfg(test)]
mod tests {
    use zcmi_mem::registration::Support;

    use super::*;
    use crate::shared::SharedRing;
    use crate::slots::SlotPlan;

    fn pair() -> (DatagramSocket, DatagramSocket) {
        let here = "127.0.0.1:0".parse().expect("an address");
        let ring = RingHandle::new(SharedRing::new().into());
        let (one, two) = (DatagramSocket::new(&here, 1 << 20, &ring), DatagramSocket::new(&here, 1 << 20, &ring));
        let (one, two) = (one.expect("a socket"), two.expect("a socket"));
        two.bind(&here).expect("a port");
        one.connect(&two.address().expect("it is bound")).expect("it is there");
        (one, two)
    }

    fn received(socket: &mut DatagramSocket) -> Vec<usize> {
        let mut bytes = vec![0; 1 << 16];
        let mut lengths = Vec::new();
        while let Ok(received) = socket.receive(&mut [IoSliceMut::new(&mut bytes)]) {
            assert!(!received.was_cut && received.from.is_some());
            let starts = (0..received.bytes).step_by(received.segment);
            lengths.extend(starts.map(|start| received.segment.min(received.bytes - start)));
        }
        lengths
    }

    #[test]
    fn a_train_arrives_as_the_datagrams_it_consists_of() {
        let (mut one, mut two) = pair();
        let payload = [7; 1000];
        let payloads = [&payload[..], &payload[..], &payload[..10]];
        let heads = one.heads();
        let sent = one.send_train(None, heads, &payloads, None).expect("it is sent");
        assert_eq!((sent.count, one.counts.sends, one.counts.datagrams), (3, 1, 3));
        assert_eq!(received(&mut two), [1064, 1064, 74]);
        one.refuse_trains();
        let heads = one.heads();
        assert_eq!(one.send_train(None, heads, &payloads, None).expect("it is sent").count, 3);
        assert_eq!((one.counts.sends, one.counts.datagrams), (4, 6));
        assert_eq!(received(&mut two), [1064, 1064, 74]);
    }

    #[test]
    fn a_train_that_is_too_long_is_cut_and_a_datagram_that_is_too_long_is_refused() {
        let (mut one, mut two) = pair();
        let payload = vec![7; 40_000];
        let heads = one.heads();
        let sent = one.send_train(None, heads, &[&payload, &payload], None).expect("the first is sent");
        assert_eq!((sent.count, one.counts.refused_trains, one.segments()), (1, 1, 1));
        assert_eq!(received(&mut two), [40_064]);
        let (heads, longest) = (one.heads(), vec![7; MOST_BYTES - HEAD_BYTES + 1]);
        let refused = one.send_train(None, heads, &[&longest], None).err();
        assert_eq!(refused, Some(Errno::MSGSIZE));
        assert_eq!(one.segment(), 61_440, "what loopback takes, and what goes without a copy");
    }

    #[test]
    fn each_send_without_a_copy_is_told_of_once() {
        for path in [PathKind::ZeroCopy, PathKind::UringZeroCopy, PathKind::UringFixed] {
            told_of_once(path);
        }
    }

    fn told_of_once(path: PathKind) {
        let (mut one, mut two) = pair();
        let loans = zcmi_mem::pool::PoolPlan::single(2000, 1).expect("a class");
        let plan = SlotPlan { loans: Some(loans), ..SlotPlan::default() };
        let mut slots = Slots::new(&plan).expect("memory");
        slots.regions().for_each(|region| one.ring.borrow_mut().add_region(region));
        let supported = match path {
            PathKind::ZeroCopy => one.allow_zero_copy(),
            _ => one.ring.borrow_mut().open().map(drop).map_err(|error| error.to_string()),
        };
        let unregistered = one.ring.borrow().support(path);
        if let (Err(reason), _) | (_, Support::No(reason)) = (supported.map_err(Into::into), unregistered) {
            println!("SKIP: {path}: {reason}");
            return;
        }
        let mut lease = slots.loan(2000).expect("a slot");
        lease.fill(7);
        let payloads = [&lease[..1000], &lease[1000..]];
        let homes = payloads.map(|payload| slots.home(payload));
        let free = slots.counts().free_headers;
        for number in 0..5 {
            let heads = one.heads();
            let items = [0, 1].map(|at| Item { sequence: 2 * number + at, begin: 0, length: 1000 });
            let sharing = Sharing { path, connection: 3, items: &items, homes: &homes, slots: &mut slots };
            let sent = one.send_train(None, heads, &payloads, Some(sharing)).expect("it is sent");
            assert_eq!((sent.path, sent.count), (path, 2), "{path}");
        }
        assert_eq!((one.owed(), one.open_flights(3), one.open_flights(4)), (5, 5, 0), "{path}");
        assert_eq!(slots.counts().free_headers, free - 10, "heads are kept");
        assert_eq!(received(&mut two), [1064; 10], "{path}");
        let (mut pieces, until) = (Vec::<u64>::new(), std::time::Instant::now() + std::time::Duration::from_secs(5));
        while one.owed() > 0 {
            assert!(std::time::Instant::now() < until, "{} are owed by {path}", one.owed());
            one.notifications(&mut |flight, copied| {
                assert!(copied, "loopback copies");
                assert_eq!(flight.path, path);
                pieces.extend(flight.items.iter().map(|item| item.sequence));
            });
        }
        pieces.sort_unstable();
        assert_eq!(pieces, (0..10).collect::<Vec<u64>>(), "{path}");
        assert_eq!((one.open_flights(3), one.counts.notified, slots.counts().free_headers), (0, 5, free), "{path}");
    }

    #[test]
    fn what_the_kernel_took_and_never_answers_is_never_free() {
        for path in [PathKind::UringSend, PathKind::UringZeroCopy] {
            crate::uring::model::lose_first_of_next_ring();
            let (mut one, mut two) = pair();
            let loans = zcmi_mem::pool::PoolPlan::single(2000, 1).expect("a class");
            let plan = SlotPlan { loans: Some(loans), ..SlotPlan::default() };
            let mut slots = Slots::new(&plan).expect("memory");
            slots.regions().for_each(|region| one.ring.borrow_mut().add_region(region));
            one.ring.borrow_mut().open().map(drop).expect("a model opens");
            let lease = slots.loan(2000).expect("a slot");
            let payloads = [&lease[..1000], &lease[1000..]];
            let homes = payloads.map(|payload| slots.home(payload));
            let free = slots.counts().free_headers;
            let items = [0, 1].map(|at| Item { sequence: at, begin: 0, length: 1000 });
            let heads = one.heads();
            let sharing = Sharing { path, connection: 3, items: &items, homes: &homes, slots: &mut slots };
            let sent = one.send_train(None, heads, &payloads, Some(sharing)).expect("the kernel has it");
            assert_eq!((sent.path, sent.count, sent.pinned), (path, 2, true));
            for _ in 0..100 {
                one.notifications(&mut |_, _| panic!("nobody said a word of it"));
            }
            assert_eq!((one.owed(), one.open_flights(3)), (1, 1), "{path}: it is owed for ever");
            assert_eq!(slots.counts().free_headers, free - 2, "{path}: its heads are kept");
            assert!(received(&mut two).is_empty(), "the model sends nothing");
            // No byte of it may leave later, so that the ring has shut the socket. Silence ends its session.
            let heads = one.heads();
            let sharing = Sharing { path, connection: 3, items: &items, homes: &homes, slots: &mut slots };
            let refused = one.send_train(None, heads, &payloads, Some(sharing)).err();
            assert_eq!(refused, Some(Errno::PIPE), "{path}");
            assert_eq!((one.owed(), slots.counts().free_headers), (1, free - 2), "{path}");
        }
    }
}
