//! The codes of what the command line itself finds, `ZC9nnn`; `docs/errors.md` says what each means and what to do.

use crate::stream::StreamFault;
use crate::transfer::message::TransferFault;

/// What went wrong, where no error of the library is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The arguments make no sense.
    Usage,
    /// A file, a system call or a helper process.
    System,
    Interrupted,
    SubscribersLeft,
    NobodyPublishes,
    BrokenOff,
    UncleanEnd,
    ManyFiles,
    NoFileName,
    FileNameRefused,
    ReaderGone,
    FileExists,
    NotAFile,
    NoFile,
    NotADirectory,
    Demo,
    HashesDiffer,
    NotInPlace,
    KeyFile,
    LeftOut,
    PeerGaveUp,
    TransferHash,
    LinkOutside,
    PartInUse,
    PathUnavailable,
}

impl Fault {
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Usage => "ZC9001",
            Self::System => "ZC9002",
            Self::Interrupted => "ZC9003",
            Self::SubscribersLeft => "ZC9011",
            Self::NobodyPublishes => "ZC9021",
            Self::BrokenOff => "ZC9022",
            Self::UncleanEnd => "ZC9023",
            Self::ManyFiles => "ZC9031",
            Self::NoFileName => "ZC9032",
            Self::FileNameRefused => "ZC9033",
            Self::ReaderGone => "ZC9034",
            Self::FileExists => "ZC9035",
            Self::NotAFile => "ZC9036",
            Self::NoFile => "ZC9037",
            Self::NotADirectory => "ZC9038",
            Self::Demo => "ZC9041",
            Self::HashesDiffer => "ZC9042",
            Self::NotInPlace => "ZC9043",
            Self::KeyFile => "ZC9051",
            Self::LeftOut => "ZC9052",
            Self::PeerGaveUp => "ZC9053",
            Self::TransferHash => "ZC9054",
            Self::LinkOutside => "ZC9055",
            Self::PartInUse => "ZC9056",
            Self::PathUnavailable => "ZC9057",
        }
    }
}

impl StreamFault {
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Length { .. } => "ZC9101",
            Self::Magic { .. } => "ZC9102",
            Self::Position { .. } => "ZC9103",
            Self::Order { .. } => "ZC9104",
            Self::FileLength { .. } => "ZC9105",
            Self::FilesLeft { .. } => "ZC9106",
            Self::Total { .. } => "ZC9107",
            Self::Hash { .. } => "ZC9108",
        }
    }
}

impl TransferFault {
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Magic => "ZC9201",
            Self::Body { .. } => "ZC9202",
            Self::Kind { .. } => "ZC9203",
            Self::Order { .. } => "ZC9204",
            Self::Number { .. } => "ZC9205",
            Self::Window => "ZC9206",
            Self::Offset { .. } => "ZC9207",
            Self::Size { .. } => "ZC9208",
            Self::Entries { .. } => "ZC9209",
        }
    }
}
