//! The wires on which transports are tested and measured, made on the spot and gone with the process.
//!
//! ```text
//!        namespace of the sender                     namespace of the receiver
//! lo         ───────────────────── one and the same, sockets meet on its loopback ─────────────────────
//! veth       zcmi-wire ══════════════════════════════ zcmi-wire
//! veth-xdp   zcmi-wire ══════════════════════════════ zcmi-wire with a native XDP program: it copies and denies it
//! tbf        zcmi-wire, shaped ══════════════════════ zcmi-wire
//! ifb        zcmi-sink ─▶ freed unread
//!            zcmi-wire ══════════════════════════════ zcmi-wire    the far address is routed to one of the two
//! relay      zcmi-wire ═ tun ─▶ a thread of ours ─▶ tun ═ zcmi-wire    it loses, delays, reorders, resets: [`Relay`]
//! unix       (no namespaces: a pair of sockets)
//! ```
//!
//! # Invariants
//! - Namespaces have no names and are kept by descriptors; an XDP program is kept by its link's descriptor. So all goes
//!   when the [`Wire`], the sockets on it and the children in it are gone, whatever ended them, SIGKILL included. A
//!   relay goes with its `Wire`, and nothing passes after that.
//! - The namespace of a thread of the program never changes: sockets are made, and commands start, on threads or in
//!   children of their own.
//! - Every wait is bounded.
//!
//! # Kernel
//! All but `unix`, and `lo` on the host's own loopback, take `CAP_SYS_ADMIN` and `CAP_NET_ADMIN`, and `ip` and `tc` of
//! iproute2; `relay` also takes `/dev/net/tun`. [`support`] says what is missing; [`Wire::make`] says it too.
//!
//! # What this does not do
//! Loss, reordering and delay on wires other than `relay`: a link delivers everything in order.

mod namespace;
mod relay;
mod sockets;
mod sys;

use core::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use zcmi_mem::registration::Support;

use namespace::Namespace;
pub(crate) use namespace::wait_for;
pub use relay::{Faults, Relay, RelayCounts};
pub use sockets::{Datagrams, Streams};

/// The interface of either end of a pair.
const LINK: &str = "zcmi-wire";
/// The interface that frees what it is sent.
const SINK: &str = "zcmi-sink";

/// The addresses of the two ends of a pair.
const SENDER: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 77, 0, 1), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));
const RECEIVER: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 77, 0, 2), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2));
/// The receiver's address behind the route that moves, on `ifb`.
const FAR: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 78, 0, 2), Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 2));

/// How long an interface may take to come up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The seed of wires for which none was given.
const FIRST_SEED: u64 = 1;

/// The rate with which [`WireKind::Tbf`] begins.
const FIRST_RATE_KBIT_S: u32 = 1_000_000;

/// A kind of wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum WireKind {
    /// The loopback device of a fresh namespace, or the host's where this process may not make one.
    Lo,
    /// A veth pair between two namespaces.
    Veth,
    /// The same, with a native XDP program on the receiver's end: the kernel says that it does not copy, and copies.
    VethXdp,
    /// A pair of connected Unix sockets.
    Unix,
    /// A device that frees what it is sent, unread: a wire that does not copy. Datagrams only, and nobody receives.
    Ifb,
    /// A veth pair with a shaper on the sender's end, in whose queue packets wait.
    Tbf,
    /// Two tun devices with a [`Relay`] between them, which at first passes everything on.
    Relay,
}

impl WireKind {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Lo, Self::Veth, Self::VethXdp, Self::Unix, Self::Ifb, Self::Tbf, Self::Relay];

    /// The name, as printed and as given to choose a wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lo => "lo",
            Self::Veth => "veth",
            Self::VethXdp => "veth-xdp",
            Self::Unix => "unix",
            Self::Ifb => "ifb",
            Self::Tbf => "tbf",
            Self::Relay => "relay",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether streams are TCP.
    #[must_use]
    pub fn has_tcp(self) -> bool {
        !matches!(self, Self::Unix | Self::Ifb)
    }
}

impl fmt::Display for WireKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An end of a wire. What is measured flows from the sender to the receiver; either may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the bytes come from.
    Sender,
    /// Where they go.
    Receiver,
}

/// The version of the Internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Version 4.
    V4,
    /// Version 6.
    V6,
}

impl Family {
    fn of(self, (v4, v6): (Ipv4Addr, Ipv6Addr)) -> IpAddr {
        match self {
            Self::V4 => v4.into(),
            Self::V6 => v6.into(),
        }
    }
}

/// Where the far address of [`WireKind::Ifb`] is routed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Into the device that frees everything.
    Sink,
    /// Over the veth pair, to the receiver.
    Veth,
}

/// What an interface has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that came in.
    pub received_packets: u64,
    /// Packets that were dropped on the way in; on a sink, all that it was sent.
    pub received_drops: u64,
    /// Packets that went out.
    pub sent_packets: u64,
    /// Packets that were dropped on the way out.
    pub sent_drops: u64,
}

/// Why something on a wire did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A system call failed.
    #[error("{call}: {source}")]
    System {
        /// The call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A program is missing.
    #[error("there is no program {program} in PATH; install iproute2")]
    Missing {
        /// Its name.
        program: &'static str,
    },
    /// A program refused.
    #[error("{program} refused: {said}")]
    Refused {
        /// Its name.
        program: &'static str,
        /// Its message.
        said: String,
    },
    /// Something took too long.
    #[error("{what} took more than {seconds} s")]
    Slow {
        /// What was waited for.
        what: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The wire has no such thing.
    #[error("wire {kind} has no {what}")]
    NotThere {
        /// The kind of the wire.
        kind: WireKind,
        /// What was asked of it.
        what: &'static str,
    },
}

impl WireError {
    /// Whether the reason lies in rights or in what is installed, and will not go away by trying again.
    fn is_lasting(&self) -> bool {
        const REFUSALS: [&str; 5] =
            ["not permitted", "not supported", "Unknown device type", "Unknown qdisc", "No such file or directory"];
        /// The last three: a device's file is missing, or the driver behind it.
        const LASTING: [libc::c_int; 7] =
            [libc::EPERM, libc::EACCES, libc::ENOSYS, libc::EOPNOTSUPP, libc::ENOENT, libc::ENODEV, libc::ENXIO];
        match self {
            Self::System { source, .. } => {
                let code = source.raw_os_error();
                LASTING.iter().any(|lasting| code == Some(*lasting))
            }
            Self::Missing { .. } | Self::NotThere { .. } => true,
            Self::Refused { said, .. } => REFUSALS.iter().any(|refusal| said.contains(refusal)),
            Self::Slow { .. } => false,
        }
    }
}

/// Names the call of a system error.
fn failed(call: &'static str) -> impl Fn(io::Error) -> WireError {
    move |source| WireError::System { call, source }
}

/// Why a wire was not made; print it after `SKIP: `.
#[derive(Debug, thiserror::Error)]
#[error("wire {kind}: {}, {error}", if *.lasting { "no because" } else { "could not tell because" })]
pub struct Unavailable {
    kind: WireKind,
    lasting: bool,
    error: WireError,
}

impl Unavailable {
    fn new(kind: WireKind, error: WireError) -> Self {
        Self { kind, lasting: error.is_lasting(), error }
    }

    /// The kind that was asked for.
    #[must_use]
    pub fn kind(&self) -> WireKind {
        self.kind
    }

    /// The reason, and a next step where there is one.
    #[must_use]
    pub fn reason(&self) -> String {
        let denied = matches!(&self.error, WireError::System { source, .. }
            if source.kind() == io::ErrorKind::PermissionDenied);
        if denied { format!("{}; run as root", self.error) } else { self.error.to_string() }
    }

    /// Whether it stays so however often it is tried: rights are missing, or programs, or the kernel's part of it.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        self.lasting
    }

    /// The same as an answer to [`support`].
    #[must_use]
    pub fn support(&self) -> Support {
        let reason = self.reason().into();
        if self.lasting { Support::No(reason) } else { Support::Unknown(reason) }
    }
}

/// Whether this process can make wires of this kind here. It finds out by making one.
#[must_use]
pub fn support(kind: WireKind) -> Support {
    Wire::make(kind).map_or_else(|unavailable| unavailable.support(), |_| Support::Yes)
}

/// A wire; it is there as long as this value, a socket on it, or a child in it.
#[derive(Debug)]
pub struct Wire {
    kind: WireKind,
    /// What lies between the two ends of [`WireKind::Relay`].
    relay: Option<Relay>,
    /// None where sockets are made in the namespace of the program.
    sender: Option<Namespace>,
    /// None where it is that of the sender.
    receiver: Option<Namespace>,
    regime: Mutex<Regime>,
}

/// What can change while connections live.
#[derive(Debug)]
struct Regime {
    /// The attachment of the XDP program on the receiver's interface.
    xdp: Option<OwnedFd>,
    route: Route,
}

impl Wire {
    /// Makes a wire.
    ///
    /// # Errors
    /// Why it cannot be made here.
    pub fn make(kind: WireKind) -> Result<Self, Unavailable> {
        Self::make_seeded(kind, FIRST_SEED)
    }

    /// Makes a wire whose choices, those of a relay, come from this seed.
    ///
    /// # Errors
    /// Why it cannot be made here.
    pub fn make_seeded(kind: WireKind, seed: u64) -> Result<Self, Unavailable> {
        Self::try_make(kind, seed).map_err(|error| Unavailable::new(kind, error))
    }

    fn try_make(kind: WireKind, seed: u64) -> Result<Self, WireError> {
        let mut relay = None;
        let (sender, receiver) = match kind {
            WireKind::Unix => (None, None),
            WireKind::Lo => match Namespace::make() {
                Ok(namespace) => (Some(namespace), None),
                // What is missing for a namespace is not needed for a loopback: every host has one.
                Err(error) if error.is_lasting() => (None, None),
                Err(error) => return Err(error),
            },
            WireKind::Veth | WireKind::VethXdp | WireKind::Ifb | WireKind::Tbf => {
                let (sender, receiver) = pair()?;
                (Some(sender), Some(receiver))
            }
            WireKind::Relay => {
                let (sender, receiver, devices) = tuns()?;
                relay = Some(Relay::start(devices, seed).map_err(failed("starting a relay"))?);
                (Some(sender), Some(receiver))
            }
        };
        let regime = Mutex::new(Regime { xdp: None, route: Route::Veth });
        let wire = Self { kind, relay, sender, receiver, regime };
        match kind {
            WireKind::VethXdp => wire.attach_xdp()?,
            WireKind::Tbf => wire.set_rate_kbit_s(FIRST_RATE_KBIT_S)?,
            WireKind::Ifb => wire.add_sink()?,
            WireKind::Lo | WireKind::Veth | WireKind::Unix | WireKind::Relay => {}
        }
        Ok(wire)
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> WireKind {
        self.kind
    }

    /// Whether the wire is the host's own, where others may send too and nothing may be changed.
    #[must_use]
    pub fn is_of_host(&self) -> bool {
        self.sender.is_none()
    }

    fn namespace(&self, side: Side) -> Option<&Namespace> {
        match side {
            Side::Receiver => self.receiver.as_ref().or(self.sender.as_ref()),
            Side::Sender => self.sender.as_ref(),
        }
    }

    /// The namespace of one side; none where that is the program's own.
    #[must_use]
    pub fn namespace_fd(&self, side: Side) -> Option<BorrowedFd<'_>> {
        self.namespace(side).map(Namespace::fd)
    }

    /// The address of one side; none on [`WireKind::Unix`].
    #[must_use]
    pub fn address(&self, side: Side, family: Family) -> Option<IpAddr> {
        let addresses = match (self.kind, side) {
            (WireKind::Unix, _) => return None,
            (WireKind::Lo, _) => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
            (_, Side::Sender) => SENDER,
            (WireKind::Ifb, Side::Receiver) => FAR,
            (_, Side::Receiver) => RECEIVER,
        };
        Some(family.of(addresses))
    }

    /// Runs a closure on a thread in the namespace of one side, and waits for it; sockets that it makes stay there.
    ///
    /// # Errors
    /// If no thread could be sent there. What the closure returns is its own.
    pub fn enter<T: Send>(&self, side: Side, work: impl FnOnce() -> T + Send) -> Result<T, WireError> {
        match self.namespace(side) {
            Some(namespace) => namespace.enter(work),
            None => Ok(work()),
        }
    }

    /// Makes a command start in the namespace of one side. Its parent is the thread that spawns it, as always.
    ///
    /// # Errors
    /// If there is no descriptor left for it.
    pub fn command_in(&self, side: Side, mut command: Command) -> Result<Command, WireError> {
        if let Some(namespace) = self.namespace(side) {
            namespace.put(&mut command)?;
        }
        Ok(command)
    }

    /// The output of `ip` with these arguments in the namespace of one side.
    ///
    /// # Errors
    /// If the wire is the host's, and if `ip` is missing or refuses.
    pub fn ip(&self, side: Side, arguments: &[&str]) -> Result<String, WireError> {
        let namespace = self.namespace(side).ok_or_else(|| self.has_no("namespace of its own"))?;
        namespace.tool("ip", arguments, "")
    }

    /// The interface by which the sender's bytes leave.
    fn leaves_by(&self) -> Option<&'static str> {
        match self.kind {
            WireKind::Unix | WireKind::Lo => None,
            WireKind::Ifb if self.regime().route == Route::Sink => Some(SINK),
            _ => Some(LINK),
        }
    }

    /// What lies between the two ends of [`WireKind::Relay`].
    ///
    /// # Errors
    /// If the wire is of another kind.
    pub fn relay(&self) -> Result<&Relay, WireError> {
        self.relay.as_ref().ok_or_else(|| self.has_no("relay"))
    }

    /// Puts the XDP program on the receiver's interface, in the driver; on [`WireKind::VethXdp`] it is there at first.
    /// If it is there already nothing changes.
    ///
    /// # Errors
    /// If the wire has no such interface, or the kernel refuses.
    pub fn attach_xdp(&self) -> Result<(), WireError> {
        let mut regime = self.regime();
        if regime.xdp.is_none() {
            let receiver = self.receiver.as_ref().ok_or_else(|| self.has_no("interface for an XDP program"))?;
            let program = sys::load_xdp_pass().map_err(failed("bpf(BPF_PROG_LOAD)"))?;
            let attach = || {
                let interface = index(LINK)?;
                sys::attach_xdp(program.as_fd(), interface).map_err(failed("bpf(BPF_LINK_CREATE)"))
            };
            regime.xdp = Some(receiver.enter(attach)??);
        }
        Ok(())
    }

    /// Takes the XDP program away, and says whether there was one.
    ///
    /// # Errors
    /// If the kernel refuses; the program is then gone as soon as nobody has the link open.
    pub fn detach_xdp(&self) -> Result<bool, WireError> {
        let Some(link) = self.regime().xdp.take() else { return Ok(false) };
        // Closing it is not enough here: a child that was forked at this moment keeps it open until it starts its
        // program.
        sys::detach(link.as_fd()).map_err(failed("bpf(BPF_LINK_DETACH)"))?;
        Ok(true)
    }

    /// Switches whether the sender's interface gathers scattered pages. Without it packets are copied on the way into
    /// the interface. TCP takes no notice, because it relies on segmentation in software, and the kernel
    /// then mostly denies the copy; UDP looks at each send, and admits it.
    ///
    /// # Errors
    /// If the wire has no such interface, or the kernel refuses.
    pub fn set_scatter_gather(&self, on: bool) -> Result<(), WireError> {
        self.on_the_way_out(|socket, interface| {
            sys::set_scatter_gather(socket, interface, on).map_err(failed("ioctl(ETHTOOL_SSG)"))
        })?;
        if self.scatter_gather()? != on {
            return Err(self.has_no("interface that lets scatter-gather be switched"));
        }
        Ok(())
    }

    /// Whether the sender's interface gathers scattered pages.
    ///
    /// # Errors
    /// If the wire has no such interface, or the kernel does not say.
    pub fn scatter_gather(&self) -> Result<bool, WireError> {
        self.on_the_way_out(|socket, interface| {
            sys::scatter_gather(socket, interface).map_err(failed("ioctl(ETHTOOL_GSG)"))
        })
    }

    /// Asks something of the interface by which the sender's bytes leave.
    fn on_the_way_out<T: Send>(
        &self,
        ask: impl FnOnce(BorrowedFd<'_>, &'static str) -> Result<T, WireError> + Send,
    ) -> Result<T, WireError> {
        let interface = self.leaves_by().ok_or_else(|| self.has_no("interface with scatter-gather"))?;
        let namespace = self.sender.as_ref().ok_or_else(|| self.has_no("namespace of its own"))?;
        namespace.enter(|| ask(any_socket()?.as_fd(), interface))?
    }

    /// Where the far address is routed to; over the veth if the wire has no route that moves.
    #[must_use]
    pub fn route(&self) -> Route {
        self.regime().route
    }

    /// Routes the far address of [`WireKind::Ifb`]; it leads into the sink at first.
    ///
    /// # Errors
    /// If the wire has no such route, or `ip` refuses.
    pub fn set_route(&self, route: Route) -> Result<(), WireError> {
        let mut regime = self.regime();
        let namespace = match (self.kind, &self.sender) {
            (WireKind::Ifb, Some(namespace)) => namespace,
            _ => return Err(self.has_no("route that moves")),
        };
        let (v4, v6) = match route {
            Route::Sink => (format!("dev {SINK}"), format!("dev {SINK}")),
            Route::Veth => (format!("via {} dev {LINK}", RECEIVER.0), format!("via {} dev {LINK}", RECEIVER.1)),
        };
        namespace.ip(&format!(
            "route replace {}/32 {v4} src {}\nroute replace {}/128 {v6} src {}\n",
            FAR.0, SENDER.0, FAR.1, SENDER.1
        ))?;
        regime.route = route;
        Ok(())
    }

    /// Sets the rate of the shaper of [`WireKind::Tbf`], for what is queued already too.
    ///
    /// # Errors
    /// If the wire has no shaper, or `tc` refuses.
    pub fn set_rate_kbit_s(&self, rate: u32) -> Result<(), WireError> {
        let namespace = match (self.kind, &self.sender) {
            (WireKind::Tbf, Some(namespace)) => namespace,
            _ => return Err(self.has_no("shaper")),
        };
        // A burst must hold what the rate lets pass in a tick, of 10 ms at most, and one packet of the largest size.
        let burst_bytes = (u64::from(rate) * 1000 / 8 / 100).max(128 << 10);
        let (rate, burst) = (format!("{rate}kbit"), burst_bytes.to_string());
        namespace.tc(&["qdisc", "replace", "dev", LINK, "root", "tbf", "rate", &rate, "burst", &burst, "limit", "16mb"])
    }

    /// What the interface on one side has counted: on `ifb` the sender's is the sink.
    ///
    /// # Errors
    /// If the wire has no interface of its own, or the counts cannot be read.
    pub fn counters(&self, side: Side) -> Result<Counters, WireError> {
        let interface = match (self.kind, side) {
            (WireKind::Unix, _) => return Err(self.has_no("interface")),
            (WireKind::Lo, _) => "lo",
            (WireKind::Ifb, Side::Sender) => SINK,
            _ => LINK,
        };
        const TABLE: &str = "/proc/thread-self/net/dev";
        let table = self.enter(side, || std::fs::read_to_string(TABLE))?.map_err(failed("read of /proc/net/dev"))?;
        counters_in(&table, interface).ok_or_else(|| self.has_no("counters"))
    }

    fn add_sink(&self) -> Result<(), WireError> {
        let (Some(sender), Some(receiver)) = (&self.sender, &self.receiver) else {
            return Err(self.has_no("namespaces"));
        };
        // It does no ARP, so its neighbours need no address of their own.
        // Packets as large as they can be, so that what is sent is one packet and not many; the pair likewise, because
        // the size of packets is looked up while the route leads over it.
        sender.ip(&format!("link add {SINK} type ifb\nlink set {SINK} mtu 65535 up\nlink set {LINK} mtu 65535\n"))?;
        receiver.ip(&format!("link set {LINK} mtu 65535\n"))?;
        receiver.ip(&format!("address add {}/32 dev lo\naddress add {}/128 dev lo nodad\n", FAR.0, FAR.1))?;
        self.set_route(Route::Sink)
    }

    fn has_no(&self, what: &'static str) -> WireError {
        WireError::NotThere { kind: self.kind, what }
    }

    fn regime(&self) -> MutexGuard<'_, Regime> {
        // Whoever panicked while holding it had changed nothing or everything.
        self.regime.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two namespaces with a veth pair between them.
fn pair() -> Result<(Namespace, Namespace), WireError> {
    use std::os::fd::AsRawFd;
    let (sender, receiver) = (Namespace::make()?, Namespace::make()?);
    // `ip` finds the other namespace by the number that its descriptor has in this process.
    let other = format!("/proc/{}/fd/{}", std::process::id(), receiver.fd().as_raw_fd());
    let (near, far) = ("02:77:00:00:00:01", "02:77:00:00:00:02");
    sender.ip(&format!("link add {LINK} address {near} type veth peer name {LINK} address {far} netns {other}\n"))?;
    let ends = [(&sender, SENDER, RECEIVER, far), (&receiver, RECEIVER, SENDER, near)];
    for (namespace, ours, theirs, hardware) in ends {
        // Neighbours are told, so that no packet of a measurement waits for an answer to who has an address.
        namespace.ip(&format!(
            "address add {}/24 dev {LINK}\naddress add {}/64 dev {LINK} nodad\nlink set {LINK} up\n\
             neighbour add {} lladdr {hardware} dev {LINK}\nneighbour add {} lladdr {hardware} dev {LINK}\n",
            ours.0, ours.1, theirs.0, theirs.1
        ))?;
    }
    for namespace in [&sender, &receiver] {
        come_up(namespace)?;
    }
    Ok((sender, receiver))
}

/// Two namespaces with a tun device in each, and what reads and writes these, the sender's first.
fn tuns() -> Result<(Namespace, Namespace, [OwnedFd; 2]), WireError> {
    let end = |ours: (Ipv4Addr, Ipv6Addr)| {
        let namespace = Namespace::make()?;
        let device = namespace.enter(|| sys::open_tun(LINK).map_err(failed("opening a tun device")))??;
        // No address of the link alone, for which the kernel would send packets of its own.
        namespace.ip(&format!(
            "link set {LINK} mtu {} txqueuelen {} addrgenmode none\n\
             address add {}/24 dev {LINK}\naddress add {}/64 dev {LINK} nodad\nlink set {LINK} up\n",
            relay::PACKET_BYTES,
            relay::DEVICE_PACKETS,
            ours.0,
            ours.1
        ))?;
        Ok::<_, WireError>((namespace, device))
    };
    let ((sender, near), (receiver, far)) = (end(SENDER)?, end(RECEIVER)?);
    Ok((sender, receiver, [near, far]))
}

/// Waits until the interface of a pair carries packets. That it is up is noticed some time after it was asked for, and
/// until then what is sent on it vanishes.
fn come_up(namespace: &Namespace) -> Result<(), WireError> {
    let start = Instant::now();
    // On kernels from 6.8 on the question itself makes it so; on older ones it takes up to a second.
    while !namespace.tool("ip", &["link", "show", "dev", LINK], "")?.contains(" state UP ") {
        if start.elapsed() > PATIENCE {
            return Err(WireError::Slow { what: "an interface that comes up", seconds: PATIENCE.as_secs() });
        }
    }
    Ok(())
}

/// A socket by which interfaces of the calling thread's namespace can be asked.
fn any_socket() -> Result<OwnedFd, WireError> {
    socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| failed("socket")(errno.into()))
}

/// The number of an interface in the calling thread's namespace.
fn index(interface: &str) -> Result<u32, WireError> {
    name_to_index(any_socket()?, interface).map_err(|errno| failed("ioctl(SIOCGIFINDEX)")(errno.into()))
}

/// The counts of an interface in the text of `/proc/net/dev`.
fn counters_in(table: &str, interface: &str) -> Option<Counters> {
    let row = table.lines().find_map(|line| {
        let (name, counts) = line.split_once(':')?;
        (name.trim() == interface).then_some(counts)
    })?;
    // Bytes, packets, errors, drops and four more of what came in; then the same of what went out.
    let counts: Vec<u64> = row.split_whitespace().map_while(|count| count.parse().ok()).collect();
    Some(Counters {
        received_packets: *counts.get(1)?,
        received_drops: *counts.get(3)?,
        sent_packets: *counts.get(9)?,
        sent_drops: *counts.get(11)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_kinds_apart() {
        for kind in WireKind::ALL {
            assert_eq!(WireKind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(WireKind::from_name("string"), None);
    }

    #[test]
    fn counters_are_those_of_the_interface() {
        let table = "Inter-| Receive | Transmit\n face |bytes packets\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
            zcmi-wire: 101 102 103 104 105 106 107 108 109 110 111 112 113 114 115 116\n";
        let counters = counters_in(table, "zcmi-wire").unwrap();
        let expected = Counters { received_packets: 102, received_drops: 104, sent_packets: 110, sent_drops: 112 };
        assert_eq!(counters, expected);
        assert_eq!(counters_in(table, "wire"), None);
    }

    #[test]
    fn what_cannot_change_is_told_from_what_may() {
        let denied = failed("unshare")(io::Error::from_raw_os_error(libc::EPERM));
        let denied = Unavailable::new(WireKind::Veth, denied);
        assert!(matches!(denied.support(), Support::No(reason) if reason.contains("run as root")));
        let short = failed("clone")(io::Error::from_raw_os_error(libc::EAGAIN));
        let short = Unavailable::new(WireKind::Veth, short);
        assert!(matches!(short.support(), Support::Unknown(_)), "{short}");
        let unknown = WireError::Refused { program: "ip", said: "Error: Unknown device type.".into() };
        assert!(unknown.is_lasting());
    }
}
