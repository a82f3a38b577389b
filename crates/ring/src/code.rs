//! Stable codes of errors: `ZC1021` stands for one cause, in every release.
//!
//! A code is `ZC` and four digits, of which the first tells the crate: 1 `zcmi-ring`, 2 `zcmi-mem`, 3 `zcmi-ipc`,
//! 4 `zcmi-net`, 9 the command line. `docs/errors.md` lists all of them with cause and next step. A code is never given
//! another meaning, and never given again when its error has gone.
//!
//! Each crate gives its codes in one file called `code.rs`, this one among them, by the macro [`codes`](crate::codes).

use core::error::Error;

use crate::{AddReaderError, LaneFault, PublishRefused, Rogue};

/// An error with a stable code.
///
/// An error that only passes another one on, in the same words, has that one's code.
pub trait Coded: Error {
    /// The code, for instance `ZC1021`.
    fn code(&self) -> &'static str;
}

/// Gives the errors of a crate their codes, and makes `code_of_one`, which finds the code of an error whose type is
/// not known.
///
/// In this order: the crate below; types that implement [`Coded`](crate::Coded) themselves; structs; enums, with their
/// variants, behind them the variants that only pass another error on. A variant that stands in neither list is an
/// error of compilation.
#[doc(hidden)]
#[macro_export]
macro_rules! codes {
    (
        $(below $below:path;)?
        $(impl $own:path;)*
        $(struct $single:path = $single_code:literal;)*
        $(enum $many:path {
            $($variant:ident = $code:literal),* $(,)?
        } $(passes on { $($inner:ident),+ $(,)? })?)*
    ) => {
        $(impl $crate::Coded for $single {
            fn code(&self) -> &'static str {
                $single_code
            }
        })*
        $(impl $crate::Coded for $many {
            fn code(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => $code,)*
                    $($(Self::$inner(error) => $crate::Coded::code(error),)+)?
                }
            }
        })*

        /// The code of this error itself, whatever lies behind it, if it is of this crate or one below.
        #[must_use]
        pub fn code_of_one(error: &(dyn ::core::error::Error + 'static)) -> Option<&'static str> {
            $(if let Some(error) = error.downcast_ref::<$own>() {
                return Some($crate::Coded::code(error));
            })*
            $(if let Some(error) = error.downcast_ref::<$single>() {
                return Some($crate::Coded::code(error));
            })*
            $(if let Some(error) = error.downcast_ref::<$many>() {
                return Some($crate::Coded::code(error));
            })*
            None$(.or_else(|| $below(error)))?
        }
    };
}

crate::codes! {
    enum LaneFault {
        Stamp = "ZC1001",
        Head = "ZC1002",
        Descriptor = "ZC1003",
    }
    enum Rogue {
        Cursor = "ZC1011",
        Hold = "ZC1012",
    }
    enum PublishRefused {
        Full = "ZC1021",
        Ended = "ZC1022",
    }
    enum AddReaderError {
        TooMany = "ZC1031",
        Ended = "ZC1032",
    }
}
