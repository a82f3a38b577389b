//! Running a program one instruction at a time between two marker functions.
//!
//! A window reaches from the first instruction of the marker `from` to the first of the marker `to`. So the body of the
//! first marker and the call of the second are counted too: two markers called one right after the other tell how many
//! instructions that is. A string instruction with a repeat prefix counts once, a system call counts as one
//! instruction, whatever the kernel does in it.
//!
//! The markers must be called by the program's first thread. Other threads run on untraced.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use iced_x86::{Decoder, DecoderOptions, Instruction};
use object::{Object, ObjectKind};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, pidfd_open, pidfd_send_signal, waitpid};

use super::decode::Counts;
use super::{address_of, sys};

/// How long the traced program may live.
const LIMIT: Duration = Duration::from_secs(300);
/// The instruction that stops a tracee, and its length.
const BREAKPOINT: (u64, u64) = (0xCC, 1);

/// What was executed in one window.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) instructions: u64,
    pub(super) counts: Counts,
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts.fmt(f)
    }
}

/// Runs `program` and returns what it executed in each of its first `most` windows.
///
/// # Errors
/// If a marker is missing, the program cannot be traced, or it ends inside a window.
pub(super) fn windows(
    program: &Path,
    arguments: &[String],
    from: &str,
    to: &str,
    most: usize,
) -> Result<Vec<Window>, Box<dyn Error>> {
    let program = fs::canonicalize(program).map_err(|error| format!("{}: {error}", program.display()))?;
    let data = fs::read(&program)?;
    let (from, to) = (address_of(&data, from)?, address_of(&data, to)?);
    let moves = object::File::parse(data.as_slice())?.kind() == ObjectKind::Dynamic;

    let mut command = Command::new(&program);
    command.args(arguments).stdin(Stdio::null());
    sys::trace(&mut command);
    let mut tracee = Tracee::start(&mut command)?;
    let base = if moves { tracee.base(&program)? } else { 0 };
    let mut windows = Vec::new();
    while windows.len() < most && tracee.run_to(base + from)? {
        windows.push(tracee.step_to(base + to)?);
    }
    tracee.let_go()?;
    Ok(windows)
}

/// How a tracee stands after it was waited for.
enum Stop {
    /// It trapped: at a breakpoint, or after a step.
    Trap,
    /// A signal is about to be delivered to it.
    Signal(Signal),
    /// It is no more.
    Ended(String),
}

/// A process that this thread traces; it ends with this value at the latest.
struct Tracee {
    child: Child,
    pid: Pid,
    memory: File,
    /// Instructions that were decoded before, by address.
    decoded: HashMap<u64, Instruction>,
    /// A signal to deliver when the tracee goes on.
    signal: Option<Signal>,
    alive: bool,
    /// Dropped, it sends the watchdog home.
    _watchdog: mpsc::Sender<()>,
}

impl Tracee {
    /// Starts the process, which stops before its first instruction.
    fn start(command: &mut Command) -> Result<Self, Box<dyn Error>> {
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let memory = File::open(format!("/proc/{}/mem", pid.as_raw_nonzero()));
        let process = pidfd_open(pid, PidfdFlags::empty());
        let (watchdog, called_off) = mpsc::channel::<()>();
        let started = memory.and_then(|memory| Ok((memory, process?)));
        let (memory, process) = match started {
            Ok(both) => both,
            Err(error) => {
                let mut child = child;
                child.kill()?;
                child.wait()?;
                return Err(error.into());
            }
        };
        std::thread::spawn(move || {
            if called_off.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the traced program was not done after {} s", LIMIT.as_secs());
                // It may have ended in this very moment, which is as good.
                let _ended_by_itself = pidfd_send_signal(process, Signal::KILL);
            }
        });
        let decoded = HashMap::new();
        let mut tracee = Self { child, pid, memory, decoded, signal: None, alive: true, _watchdog: watchdog };
        match tracee.wait()? {
            Stop::Trap => Ok(tracee),
            Stop::Signal(signal) => Err(format!("signal {} came before the program began", signal.as_raw()).into()),
            Stop::Ended(how) => Err(format!("the program {how} before it began").into()),
        }
    }

    /// Where the first page of `program` is mapped.
    fn base(&self, program: &Path) -> Result<u64, Box<dyn Error>> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid.as_raw_nonzero()))?;
        let name = program.display().to_string();
        let line = maps.lines().find(|line| line.ends_with(&name)).ok_or("the program is not mapped")?;
        let start = line.split('-').next().unwrap_or_default();
        Ok(u64::from_str_radix(start, 16)?)
    }

    /// Waits until the tracee stops or ends.
    fn wait(&mut self) -> Result<Stop, Box<dyn Error>> {
        let (_, status) = waitpid(Some(self.pid), WaitOptions::empty())?.ok_or("nothing was waited for")?;
        Ok(self.judge(status))
    }

    /// What a status says.
    fn judge(&mut self, status: WaitStatus) -> Stop {
        if let Some(number) = status.stopping_signal() {
            return match Signal::from_named_raw(number) {
                Some(Signal::TRAP) | None => Stop::Trap,
                Some(signal) => Stop::Signal(signal),
            };
        }
        self.alive = false;
        Stop::Ended(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("returned {code}"),
            (None, signal) => format!("was ended by signal {}", signal.unwrap_or(0)),
        })
    }

    /// The word at `address`.
    fn word(&self, address: u64) -> Result<u64, Box<dyn Error>> {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, address)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Runs the tracee until it is about to execute `address`; `false` if it ended well instead.
    fn run_to(&mut self, address: u64) -> Result<bool, Box<dyn Error>> {
        let (trap, length) = BREAKPOINT;
        let original = self.word(address)?;
        sys::write(self.pid, address, original & !0xFF | trap)?;
        loop {
            sys::go_on(self.pid, self.signal.take())?;
            match self.wait()? {
                Stop::Trap => break,
                Stop::Signal(signal) => self.signal = Some(signal),
                Stop::Ended(how) if how == "returned 0" => return Ok(false),
                Stop::Ended(how) => return Err(format!("the program {how}").into()),
            }
        }
        let mut registers = sys::registers(self.pid)?;
        if registers.rip != address + length {
            return Err(format!("the program stopped at {:#x}, where no breakpoint is", registers.rip).into());
        }
        sys::write(self.pid, address, original)?;
        registers.rip = address;
        sys::set_registers(self.pid, &registers)?;
        Ok(true)
    }

    /// Steps the tracee until it is about to execute `address`, and counts.
    fn step_to(&mut self, address: u64) -> Result<Window, Box<dyn Error>> {
        let mut counts = Counts::default();
        let mut at = sys::registers(self.pid)?.rip;
        while at != address {
            let instruction = self.instruction(at)?;
            sys::step(self.pid, self.signal.take())?;
            match self.wait()? {
                Stop::Trap => {}
                Stop::Signal(signal) => {
                    self.signal = Some(signal);
                    continue;
                }
                Stop::Ended(how) => return Err(format!("the program {how} inside a window").into()),
            }
            let next = sys::registers(self.pid)?.rip;
            let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
            if !(repeats && next == at) {
                counts.add(&instruction);
            }
            at = next;
        }
        Ok(Window { instructions: counts.instructions, counts })
    }

    /// The instruction at `address`. It is read once: code that changes itself is not followed.
    fn instruction(&mut self, address: u64) -> Result<Instruction, Box<dyn Error>> {
        if let Some(instruction) = self.decoded.get(&address) {
            return Ok(*instruction);
        }
        let mut bytes = [0; 15];
        // An instruction at the very end of a mapping leaves fewer bytes to read.
        let length = self.memory.read_at(&mut bytes, address)?;
        let instruction = Decoder::with_ip(64, &bytes[..length], address, DecoderOptions::NONE).decode();
        self.decoded.insert(address, instruction);
        Ok(instruction)
    }

    /// Stops tracing and waits for the program's own end.
    fn let_go(&mut self) -> Result<(), Box<dyn Error>> {
        if self.alive {
            sys::detach(self.pid)?;
            self.child.wait()?;
            self.alive = false;
        }
        Ok(())
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        if self.alive
            && let Err(error) = self.child.kill().and_then(|()| self.child.wait())
        {
            eprintln!("the traced program could not be ended: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode::{Trait, functions};
    use super::*;

    /// A program with four windows: an empty one, one of ten idle instructions, one with what is looked for, and one
    /// that repeats an instruction.
    const PROGRAM: &str = r#"
        use std::arch::asm;
        #[unsafe(no_mangle)] #[inline(never)] extern "C" fn window_begins() { unsafe { asm!("nop", options(nostack)) } }
        #[unsafe(no_mangle)] #[inline(never)] extern "C" fn window_ends() { unsafe { asm!("nop", options(nostack)) } }
        fn main() {
            window_begins();
            window_ends();
            window_begins();
            unsafe { asm!(".rept 10", "nop", ".endr") };
            window_ends();
            window_begins();
            unsafe {
                asm!("lock or dword ptr [rsp], 0", "mov eax, 39", "syscall", out("rax") _, out("rcx") _, out("r11") _)
            };
            window_ends();
            window_begins();
            let (from, mut to) = ([7_u64], [8_u64]);
            let (source, target) = (from.as_ptr(), to.as_mut_ptr());
            unsafe { asm!("rep movsb", inout("rcx") 8 => _, inout("rsi") source => _, inout("rdi") target => _) };
            window_ends();
            // So that the call above is not the last of `main`, and so no jump.
            std::hint::black_box(0);
        }
    "#;

    /// Builds the program into a directory of its own and hands it to `examine`.
    fn with_program<T>(examine: impl FnOnce(&Path) -> T) -> T {
        static MADE: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = MADE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("zcmi-xray-test-{}-{number}", std::process::id()));
        fs::create_dir(&directory).expect("a directory can be made");
        let source = directory.join("windows.rs");
        fs::write(&source, PROGRAM).expect("a file can be made");
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--edition", "2024", "-C", "opt-level=1", "-o"]).arg(directory.join("windows")).arg(&source);
        let built = rustc.output().expect("rustc starts");
        let result = built.status.success().then(|| examine(&directory.join("windows")));
        fs::remove_dir_all(&directory).expect("the directory can be removed");
        result.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&built.stderr)))
    }

    #[test]
    fn the_instructions_between_two_markers_are_counted() {
        let found = with_program(|program| {
            windows(program, &[], "window_begins", "window_ends", 10).map_err(|error| error.to_string())
        });
        if let Err(error) = &found
            && error.contains("not permitted")
        {
            println!("SKIP: processes cannot be traced here: {error}");
            return;
        }
        let found = found.expect("the program runs through");
        assert_eq!(found.len(), 4);
        assert_eq!(found[1].instructions - found[0].instructions, 10);
        assert_eq!(found[2].instructions - found[0].instructions, 3);
        assert_eq!((found[0].counts.of(Trait::Fence), found[2].counts.of(Trait::Fence)), (0, 1));
        assert_eq!((found[0].counts.of(Trait::SystemCall), found[2].counts.of(Trait::SystemCall)), (0, 1));
        assert_eq!(found[2].counts.of(Trait::Locked), 0);
        // Setting up the registers takes some, but not one for each of the eight repetitions.
        let repeating = found[3].instructions - found[0].instructions;
        assert!((1..8).contains(&repeating), "{repeating} instructions");
    }

    #[test]
    fn a_function_is_decoded_from_the_symbol_table() {
        let (text, missing) = with_program(|program| {
            let data = fs::read(program).expect("the program can be read");
            let found = functions(&data, "window_ends").expect("the symbol is there");
            (found.iter().map(ToString::to_string).collect::<String>(), functions(&data, "no_such_symbol").is_err())
        });
        assert!(text.starts_with("window_ends: "), "{text}");
        assert!(text.contains("2 instructions, 0 locked"), "{text}");
        assert!(missing);
    }

    #[test]
    fn a_missing_marker_is_an_error() {
        let found = with_program(|program| windows(program, &[], "no_such_marker", "window_ends", 1).is_err());
        assert!(found);
    }
}
