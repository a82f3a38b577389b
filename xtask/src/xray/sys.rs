//! The calls of ptrace(2) by which one process steps through another.
//!
//! Every block here relies on this: the requests made take their arguments by value, or write one structure of the size
//! that the kernel expects into a local of ours; and no request touches memory of this process beyond that. A number
//! that is no tracee of this thread makes a request fail, not misbehave.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Signal};

/// The registers of a stopped tracee.
pub(super) type Registers = libc::user_regs_struct;

/// Makes `command` start a process that this thread traces, stopped before its first instruction.
pub(super) fn trace(command: &mut Command) {
    let allow = || request(libc::PTRACE_TRACEME, 0, 0, 0);
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(allow) };
}

/// Lets the tracee run on, with `signal` delivered to it if there is one.
pub(super) fn go_on(tracee: Pid, signal: Option<Signal>) -> io::Result<()> {
    request(libc::PTRACE_CONT, tracee.as_raw_pid(), 0, number_of(signal))
}

/// Lets the tracee execute one instruction, with `signal` delivered to it if there is one.
pub(super) fn step(tracee: Pid, signal: Option<Signal>) -> io::Result<()> {
    request(libc::PTRACE_SINGLESTEP, tracee.as_raw_pid(), 0, number_of(signal))
}

/// Stops tracing; the process runs on by itself.
pub(super) fn detach(tracee: Pid) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tracee.as_raw_pid(), 0, 0)
}

/// Writes one word into the memory of the tracee, whatever the protection of its page.
pub(super) fn write(tracee: Pid, address: u64, word: u64) -> io::Result<()> {
    request(libc::PTRACE_POKEDATA, tracee.as_raw_pid(), address, word)
}

/// The registers of the tracee.
pub(super) fn registers(tracee: Pid) -> io::Result<Registers> {
    let mut registers = MaybeUninit::<Registers>::uninit();
    request(libc::PTRACE_GETREGS, tracee.as_raw_pid(), 0, registers.as_mut_ptr() as u64)?;
    // SAFETY: the request succeeded (checked above), so the kernel filled the whole structure.
    Ok(unsafe { registers.assume_init() })
}

/// Replaces the registers of the tracee.
pub(super) fn set_registers(tracee: Pid, registers: &Registers) -> io::Result<()> {
    request(libc::PTRACE_SETREGS, tracee.as_raw_pid(), 0, std::ptr::from_ref(registers) as u64)
}

/// The number of a signal, 0 for none.
fn number_of(signal: Option<Signal>) -> u64 {
    signal.map_or(0, |signal| signal.as_raw() as u64)
}

/// One request.
fn request(what: libc::c_uint, tracee: i32, address: u64, data: u64) -> io::Result<()> {
    // SAFETY: the requests of this module take numbers, or a pointer in `data` to a local of its caller that is as
    // large as the kernel's structure and lives through the call.
    let result = unsafe { libc::ptrace(what, tracee, address, data) };
    if result == -1 {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(error.kind(), format!("ptrace request {what}: {error}")));
    }
    Ok(())
}
