//! Other programs on a wire: started in a namespace and on a processor, and ended with what started them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use zcmi_bench::pin;
use zcmi_bench::wires::{Side, Wire};

/// Why a row was not measured: it becomes the reason in the document.
#[derive(Debug)]
pub(crate) struct NotMeasured(pub(crate) String);

impl<E: std::error::Error> From<E> for NotMeasured {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(source) = next {
            text = format!("{text}: {source}");
            next = source.source();
        }
        Self(text)
    }
}

/// A reason.
pub(crate) fn because<T>(reason: impl Into<String>) -> Result<T, NotMeasured> {
    Err(NotMeasured(reason.into()))
}

/// A program that runs; dropping it kills it and waits for its end.
pub(crate) struct Running(Child);

impl Running {
    /// Starts a program pinned to a processor.
    pub(crate) fn start(mut command: Command, cpu: usize) -> Result<Self, NotMeasured> {
        // A program inherits where the thread that starts it may run.
        let _pinned = pin::pin(cpu)?;
        let name = command.get_program().to_string_lossy().into_owned();
        match command.spawn() {
            Ok(child) => Ok(Self(child)),
            Err(error) => because(format!("{name} cannot be started: {error}")),
        }
    }

    /// Starts a program in the namespace of one side of a wire.
    pub(crate) fn start_on(wire: &Wire, side: Side, command: Command, cpu: usize) -> Result<Self, NotMeasured> {
        Self::start(wire.command_in(side, command)?, cpu)
    }

    pub(crate) fn pid(&self) -> Result<Pid, NotMeasured> {
        Pid::from_raw(self.0.id().cast_signed()).map_or_else(|| because("a process has no number"), Ok)
    }

    /// Reads lines of its output until one has `word`.
    pub(crate) fn until(&mut self, word: &str) -> Result<(), NotMeasured> {
        let Some(output) = self.0.stdout.as_mut() else { return because("its output is not read") };
        for line in BufReader::new(output).lines() {
            if line?.contains(word) {
                return Ok(());
            }
        }
        because(format!("it ended before it said {word:?}"))
    }

    /// Waits for its end, and says whether it was a good one.
    pub(crate) fn finish(mut self, patience: Duration) -> Result<bool, NotMeasured> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status.success());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        because(format!("it did not end in {patience:?}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for one that has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Waits for its end, and gives its output.
    pub(crate) fn output(mut self, name: &str) -> Result<String, NotMeasured> {
        let mut text = String::new();
        if let Some(output) = self.0.stdout.as_mut() {
            std::io::Read::read_to_string(output, &mut text)?;
        }
        let mut said = String::new();
        if let Some(errors) = self.0.stderr.as_mut() {
            std::io::Read::read_to_string(errors, &mut said)?;
        }
        let status = self.0.wait()?;
        if status.success() {
            return Ok(text);
        }
        let said = said.lines().chain(text.lines()).find(|line| !line.trim().is_empty()).unwrap_or_default();
        because(format!("{name} failed ({status}): {}", said.trim()))
    }
}
