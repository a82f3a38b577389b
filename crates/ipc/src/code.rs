//! The codes of this crate's errors, `ZC3nnn`; `docs/errors.md` says what each means and what to do.

use zcmi_mem::payload::Message;
use zcmi_ring::codes;

use crate::directory::{EntryError, RuntimeDirectoryError};
use crate::name::{InvalidIncarnation, InvalidName};
use crate::wire::RefusalCode;
use crate::{
    LoanError, NoRoom, ProcessError, PublishError, PublishRefusal, PublisherError, ReceiveError, Refusal, SendError,
    ServiceError, SubscriberError,
};

pub use zcmi_ring::Coded;

impl<M: Message + ?Sized> Coded for PublishError<M> {
    fn code(&self) -> &'static str {
        self.reason.code()
    }
}

impl Coded for Refusal {
    fn code(&self) -> &'static str {
        match self.code {
            Some(RefusalCode::Layout) => "ZC3421",
            Some(RefusalCode::TooManySubscribers) => "ZC3422",
            Some(RefusalCode::Late) => "ZC3423",
            Some(RefusalCode::Gone) => "ZC3424",
            Some(RefusalCode::History) => "ZC3425",
            Some(RefusalCode::Rights) => "ZC3426",
            Some(RefusalCode::Protocol) => "ZC3427",
            Some(RefusalCode::Reliable) => "ZC3428",
            Some(RefusalCode::Other(_)) => "ZC3429",
            None => "ZC3430",
        }
    }
}

codes! {
    below zcmi_mem::code::code_of_one;
    impl Refusal;
    struct InvalidIncarnation = "ZC3011";
    enum InvalidName {
        Empty = "ZC3001",
        TooLong = "ZC3002",
        Byte = "ZC3003",
        EmptyPart = "ZC3004",
        DotPart = "ZC3005",
    }
    enum RuntimeDirectoryError {
        ParentMissing = "ZC3101",
        Relative = "ZC3102",
        Symlink = "ZC3103",
        NotADirectory = "ZC3104",
        NotOurs = "ZC3105",
        TooOpen = "ZC3106",
        TooClosed = "ZC3107",
        Denied = "ZC3108",
        PathTooLong = "ZC3109",
        Full = "ZC3110",
        ReadOnly = "ZC3111",
        System = "ZC3112",
    }
    enum EntryError {
        HashCollision = "ZC3131",
        Exists = "ZC3132",
        Contended = "ZC3133",
        TooMany = "ZC3134",
        Denied = "ZC3135",
        Full = "ZC3136",
        ReadOnly = "ZC3137",
        System = "ZC3138",
    } passes on { Fork }
    enum ProcessError {
        Socket = "ZC3201",
        System = "ZC3202",
    } passes on { Directory, Fork }
    enum ServiceError {
        Align = "ZC3211",
    } passes on { Name, Process }
    enum PublisherError {
        Option = "ZC3301",
        TooManyPublishers = "ZC3302",
        TooManyServices = "ZC3303",
        OtherLayout = "ZC3304",
        NotShared = "ZC3305",
        Rights = "ZC3306",
        Audiences = "ZC3307",
        Directory = "ZC3308",
        NoControl = "ZC3309",
        System = "ZC3310",
    } passes on { Pool, Memory, Forked }
    enum LoanError {
        TooLarge = "ZC3321",
        TooManyLoans = "ZC3322",
    } passes on { NoRoom, Forked }
    enum NoRoom {
        WaitingFor = "ZC3331",
        Ended = "ZC3332",
    }
    enum PublishRefusal {
        OtherPublisher = "ZC3341",
    } passes on { NoRoom, Forked }
    enum SendError {
    } passes on { Loan, Publish }
    enum SubscriberError {
        TooManySubscribers = "ZC3401",
        TooManyServices = "ZC3402",
        NotShared = "ZC3403",
        Rights = "ZC3404",
        Directory = "ZC3405",
        NoControl = "ZC3406",
    } passes on { Refused, Fork, Forked }
    enum ReceiveError {
        TooManyHeld = "ZC3441",
        NoEventfd = "ZC3442",
    } passes on { Forked }
}
