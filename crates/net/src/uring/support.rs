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

/// What it means that a kernel of this release has bundles, or not.
pub(super) fn bundles(has: bool, release: &str) -> Support {
    let mut numbers = release.split(|digit: char| !digit.is_ascii_digit()).map(str::parse::<u32>);
    match (has, numbers.next(), numbers.next()) {
        (false, ..) => Support::No("this kernel's io_uring has no IORING_RECVSEND_BUNDLE (before Linux 6.10)".into()),
        (true, Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 16) => Support::Yes,
        (true, Some(Ok(_)), Some(Ok(_))) => {
            Support::No(format!("bundles of Linux {release} may have gaps (mended in 6.16)").into())
        }
        (true, ..) => Support::Unknown(format!("the kernel's release {release:?} has no number").into()),
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
    /// Completions of it that fill several slots: [`Ring::bundles`](super::Ring::bundles).
    pub bundles: Support,
}

impl Abilities {
    /// Asks the kernel.
    #[must_use]
    pub fn probe() -> Self {
        let (probe, bundles) = match support() {
            Support::Yes => match open() {
                Ok(kernel) => (kernel.probe(), kernel.bundles()),
                Err(error) => {
                    let bundles = refusal(&error);
                    (Err(error), bundles)
                }
            },
            other => {
                let [send, message_zero_copy, send_zero_copy, receive] = [(); 4].map(|()| other.clone());
                return Self { send, message_zero_copy, send_zero_copy, receive, bundles: other };
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
            bundles,
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

    #[test]
    fn bundles_are_used_where_they_have_no_gaps() {
        for release in ["6.16.0", "6.18.44-custom", "7.0", "10.1.2"] {
            assert_eq!(bundles(true, release), Support::Yes, "{release}");
        }
        for (has, release, reason) in [
            (false, "6.18.0", "IORING_RECVSEND_BUNDLE"),
            (true, "6.15.9", "Linux 6.15.9 may have gaps"),
            (true, "5.99", "may have gaps"),
            (true, "strange", "has no number"),
            (true, "6", "has no number"),
        ] {
            let said = bundles(has, release).to_string();
            assert!(said.contains(reason), "{release}: {said}");
        }
    }
}
