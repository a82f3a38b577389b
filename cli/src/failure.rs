//! How a command fails: what is said, under which code, and the exit code.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use crate::code::Fault;

/// Why a command did not do what it was asked to do.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was asked for something that makes no sense: exit code 2.
    Usage { code: &'static str, text: String },
    /// It failed: exit code 1. What, where, the number, the next step.
    Failed { code: &'static str, text: String },
    /// SIGINT or SIGTERM ended it: exit code 130.
    Interrupted,
}

impl Failure {
    /// A failure that the command found itself, in these words.
    pub(crate) fn new(fault: Fault, text: impl Into<String>) -> Self {
        Self::coded(fault.code(), text)
    }

    /// A failure in words that are better here than those of the error whose code it has.
    pub(crate) fn coded(code: &'static str, text: impl Into<String>) -> Self {
        Self::Failed { code, text: text.into() }
    }

    /// A failure of `what`, with an error and all its sources behind it.
    pub(crate) fn of(what: impl fmt::Display, error: &(dyn Error + 'static)) -> Self {
        let code = zcmi::code_of(error).unwrap_or(Fault::System.code());
        Self::Failed { code, text: format!("{what}: {}", chain(error)) }
    }

    /// The same with the next step behind it.
    pub(crate) fn and(mut self, next: &str) -> Self {
        if let Self::Usage { text, .. } | Self::Failed { text, .. } = &mut self {
            text.push_str("; ");
            text.push_str(next);
        }
        self
    }

    /// It was asked for what makes no sense, in these words.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::Usage { code: Fault::Usage.code(), text: text.into() }
    }

    /// It was asked for what an error says makes no sense.
    pub(crate) fn usage_of(error: &(dyn Error + 'static)) -> Self {
        let code = zcmi::code_of(error).unwrap_or(Fault::Usage.code());
        Self::Usage { code, text: chain(error) }
    }

    /// The stable code of what went wrong.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Usage { code, .. } | Self::Failed { code, .. } => code,
            Self::Interrupted => Fault::Interrupted.code(),
        }
    }

    /// The code that the process ends with.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed { .. } => 1,
            Self::Usage { .. } => 2,
            Self::Interrupted => 130,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage { text, .. } | Self::Failed { text, .. } => f.write_str(text),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

/// An error with all its sources on one line; a source whose words its error has said already is left out.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let words = source.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = source.source();
    }
    text
}
