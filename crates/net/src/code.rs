//! The codes of this crate's errors, `ZC4nnn`; `docs/errors.md` says what each means and what to do.

use zcmi_ring::codes;

use crate::frame::FrameFault;
use crate::incoming::PeerFault;
use crate::key::ShortKey;
use crate::link::LinkError;
use crate::links::BoardClaimError;
use crate::notify::ReportError;
use crate::outgoing::SubmitError;
use crate::slots::SlotsError;
use crate::socket::SocketError;
use crate::transport::{Closed, TransportError};
use crate::uring::{FixedError, ReceiveError, Refusal, UringError};

codes! {
    below zcmi_mem::code::code_of_one;
    struct ShortKey = "ZC4041";
    enum FrameFault {
        Kind = "ZC4001",
        Version = "ZC4002",
        Flags = "ZC4003",
        Reserved = "ZC4004",
        Piece = "ZC4005",
        Magic = "ZC4006",
        NoCommonVersion = "ZC4007",
        Sizes = "ZC4008",
    }
    enum PeerFault {
        Epoch = "ZC4021",
        Sequence = "ZC4022",
        Acknowledged = "ZC4023",
        Credits = "ZC4024",
        NoCredit = "ZC4025",
        TooLong = "ZC4026",
        Streams = "ZC4027",
        Continuation = "ZC4028",
        End = "ZC4029",
        Geometry = "ZC4030",
        Incarnation = "ZC4031",
        OldEpoch = "ZC4032",
        Proof = "ZC4033",
    } passes on { Frame }
    enum SubmitError {
        TooLong = "ZC4101",
        Full = "ZC4102",
        FullBytes = "ZC4103",
        Streams = "ZC4104",
        Closed = "ZC4105",
        NoConnection = "ZC4106",
        LongerThanSlot = "ZC4107",
        FromFile = "ZC4108",
    }
    enum SlotsError {
        Sizes = "ZC4121",
    } passes on { Plan, Region, Fork, Layout }
    enum LinkError {
        System = "ZC4201",
        CutOff = "ZC4202",
        Stalled = "ZC4203",
        Silent = "ZC4204",
    } passes on { Peer }
    enum SocketError {
        NotAStream = "ZC4211",
        System = "ZC4212",
    }
    enum ReportError {
        NeverMade = "ZC4221",
        Doubled = "ZC4222",
    }
    enum TransportError {
        System = "ZC4301",
        Address = "ZC4302",
        TooMany = "ZC4303",
    } passes on { Slots, Forked }
    enum Closed {
        Ended = "ZC4321",
        Aborted = "ZC4322",
        Unreachable = "ZC4323",
        Broken = "ZC4324",
        SessionLost = "ZC4325",
    } passes on { Peer }
    enum BoardClaimError {
        Magic = "ZC4331",
        Version = "ZC4332",
        Shape = "ZC4333",
    } passes on { Size }
    enum UringError {
        Setup = "ZC4401",
        Missing = "ZC4402",
    } passes on { Guard }
    enum Refusal {
        NotOurs = "ZC4411",
        NotRegistered = "ZC4412",
        Stopped = "ZC4413",
        Lost = "ZC4414",
    }
    enum FixedError {
        NoTable = "ZC4421",
        TableFull = "ZC4422",
        LockedMemory = "ZC4423",
        NotPinnable = "ZC4424",
        Region = "ZC4425",
        Closed = "ZC4426",
        System = "ZC4427",
    }
    enum ReceiveError {
        Twice = "ZC4431",
        System = "ZC4432",
    }
}
