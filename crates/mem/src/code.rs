//! The codes of this crate's errors, `ZC2nnn`; `docs/errors.md` says what each means and what to do.

use zcmi_ring::{Coded, codes};

use crate::fork::{ForkGuardError, Forked};
use crate::lease::PeerPoolError;
use crate::ledger::{LedgerClaimError, LedgerError, NotKnown};
use crate::payload::TypeRecordError;
use crate::pool::{PoolError, PoolPlanError};
use crate::region::{HeaderError, MemoryError, OutOfRegion, ReceivedRegionError, RefusedRegion, RegionError};
use crate::registration::RemoveError;

impl Coded for ReceivedRegionError {
    fn code(&self) -> &'static str {
        self.reason().code()
    }
}

codes! {
    below zcmi_ring::code::code_of_one;
    impl ReceivedRegionError;
    struct Forked = "ZC2001";
    struct ForkGuardError = "ZC2002";
    struct PeerPoolError = "ZC2221";
    enum RegionError {
        Size = "ZC2101",
        WakePageSize = "ZC2102",
        NotEnoughMemory = "ZC2103",
        FileSizeLimit = "ZC2104",
        Name = "ZC2105",
        NamedArena = "ZC2106",
        System = "ZC2107",
    } passes on { Fork }
    enum OutOfRegion {
        PastEnd = "ZC2121",
        InHeader = "ZC2122",
        Misaligned = "ZC2123",
        Empty = "ZC2124",
        Forked = "ZC2125",
    }
    enum HeaderError {
        Magic = "ZC2131",
        ByteOrder = "ZC2132",
        Version = "ZC2133",
        Layout = "ZC2134",
        PageBytes = "ZC2135",
        Kind = "ZC2136",
        Bytes = "ZC2137",
        DataOffset = "ZC2138",
        Identity = "ZC2139",
        Reserved = "ZC2140",
    }
    enum MemoryError {
        Read = "ZC2151",
        Field = "ZC2152",
    }
    enum RefusedRegion {
        NotSealable = "ZC2161",
        Unsealed = "ZC2162",
        NotWritable = "ZC2163",
        WakePageOfStranger = "ZC2164",
        Size = "ZC2165",
        Shape = "ZC2166",
        Sparse = "ZC2167",
        HugePagesOfStranger = "ZC2168",
        Header = "ZC2169",
        System = "ZC2170",
        Map = "ZC2171",
    }
    enum PoolPlanError {
        Classes = "ZC2201",
        Slots = "ZC2202",
        SlotBytes = "ZC2203",
        Overflow = "ZC2204",
    }
    enum PoolError {
        Exhausted = "ZC2211",
        TooLarge = "ZC2212",
    }
    enum TypeRecordError {
        TooLong = "ZC2301",
        Truncated = "ZC2302",
        Trailing = "ZC2303",
        Version = "ZC2304",
        Code = "ZC2305",
        Layout = "ZC2306",
        FieldPastEnd = "ZC2307",
        Name = "ZC2308",
        Hash = "ZC2309",
    }
    enum LedgerError {
        TooSmall = "ZC2401",
    }
    enum LedgerClaimError {
        Magic = "ZC2411",
        Version = "ZC2412",
        Shape = "ZC2413",
        Size = "ZC2414",
    }
    enum NotKnown {
        NotReported = "ZC2421",
        PeerSilent = "ZC2422",
        NotCounted = "ZC2423",
        NotReadable = "ZC2424",
        NothingDelivered = "ZC2425",
        Unknown = "ZC2426",
    }
    enum RemoveError {
        InUse = "ZC2501",
        NotRegistered = "ZC2502",
    }
}
