//! Whether there is io_uring here, and what it can do.

use std::borrow::Cow;
use std::io;

use io_uring::opcode;
use rustix::io::Errno;
use zcmi_mem::fork::ForkGuard;
use zcmi_mem::registration::Support;

use super::sys::{Kernel, Mode};

/// The switch that an operator turns io_uring off with.
const SWITCH: &str = "/proc/sys/kernel/io_uring_disabled";

/// Whether this process may use io_uring now.
///
/// # Kernel
/// `kernel.io_uring_disabled` (from 6.6) set to 1 admits only members of `kernel.io_uring_group` and `CAP_SYS_ADMIN`,
/// 2 nobody. Containers often refuse it by a seccomp filter, with EPERM or ENOSYS.
#[must_use]
pub fn support() -> Support {
    match open() {
        Ok(kernel) => match kernel.missing() {
            Some(feature) => Support::No(format!("this kernel's io_uring lacks {feature}").into()),
            None => Support::Yes,
        },
        Err(error) => refusal(&error),
    }
}

fn open() -> io::Result<Kernel> {
    let life = ForkGuard::new().map_err(io::Error::other)?;
    Kernel::open(Mode::Plain, 0, life)
}

/// What an answer of `io_uring_setup` means.
pub(super) fn refusal(error: &io::Error) -> Support {
    let switch = std::fs::read_to_string(SWITCH).ok();
    explain(error, switch.as_deref().map(str::trim))
}

fn explain(error: &io::Error, switch: Option<&str>) -> Support {
    let no = |reason: &'static str| Support::No(Cow::Borrowed(reason));
    match (Errno::from_io_error(error), switch) {
        (Some(Errno::NOSYS), _) => no("io_uring_setup is not there (ENOSYS): an old kernel, or a seccomp filter"),
        (Some(Errno::PERM), Some("2")) => no("the sysctl kernel.io_uring_disabled is 2: nobody may use io_uring"),
        (Some(Errno::PERM), Some("1")) => {
            no("the sysctl kernel.io_uring_disabled is 1, and this process is not in kernel.io_uring_group")
        }
        (Some(Errno::PERM | Errno::ACCESS), _) => {
            no("io_uring_setup is refused, and not by a sysctl: a seccomp filter or a security module")
        }
        _ => Support::Unknown(format!("io_uring_setup failed: {error}").into()),
    }
}

/// What the io_uring of this machine can do, each with the three answers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Abilities {
    /// `SENDMSG`, by which [`UringSend`](crate::path::PathKind::UringSend) goes.
    pub send: Support,
    /// `SENDMSG_ZC`, by which [`UringZeroCopy`](crate::path::PathKind::UringZeroCopy) goes.
    pub message_zero_copy: Support,
    /// `SEND_ZC`, by which [`UringFixed`](crate::path::PathKind::UringFixed) goes.
    pub send_zero_copy: Support,
    /// `RECV` that delivers more than once, into a queue of slots: [`Ring::arm`](super::Ring::arm).
    pub receive: Support,
}

impl Abilities {
    /// Asks the kernel.
    #[must_use]
    pub fn probe() -> Self {
        let probe = match support() {
            Support::Yes => open().and_then(|kernel| kernel.probe()),
            other => {
                let (send, message_zero_copy) = (other.clone(), other.clone());
                return Self { send, message_zero_copy, send_zero_copy: other.clone(), receive: other };
            }
        };
        let of = |code: u8, name: &str| match &probe {
            Ok(probe) if probe.is_supported(code) => Support::Yes,
            Ok(_) => Support::No(format!("this kernel's io_uring has no {name}").into()),
            Err(error) => Support::Unknown(format!("io_uring_register(IORING_REGISTER_PROBE) failed: {error}").into()),
        };
        Self {
            send: of(opcode::SendMsg::CODE, "SENDMSG"),
            message_zero_copy: of(opcode::SendMsgZc::CODE, "SENDMSG_ZC"),
            send_zero_copy: of(opcode::SendZc::CODE, "SEND_ZC"),
            // It is no request of its own; it came with the same release, 6.0.
            receive: of(
                opcode::SendZc::CODE,
                "RECV that delivers more than once (told by SEND_ZC, of the same release)",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_who_refuses() {
        let reason = |errno: Errno, switch| explain(&errno.into(), switch).to_string();
        assert!(reason(Errno::PERM, Some("2")).contains("kernel.io_uring_disabled is 2"));
        assert!(reason(Errno::PERM, Some("1")).contains("kernel.io_uring_group"));
        assert!(reason(Errno::PERM, Some("0")).contains("seccomp"));
        assert!(reason(Errno::PERM, None).contains("seccomp"));
        assert!(reason(Errno::NOSYS, None).starts_with("no because"));
        assert!(reason(Errno::NOMEM, None).starts_with("could not tell"));
        assert!(reason(Errno::MFILE, Some("0")).starts_with("could not tell"));
    }
}
