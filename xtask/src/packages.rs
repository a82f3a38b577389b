//! The packages of the distribution that tests use, and how they come onto the machine.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::command::{self, Ended};
use crate::tally::Tally;

/// A package that tests use.
struct Package {
    name: &'static str,
    /// A command that is there when the package is.
    command: &'static str,
    /// What it is for, as the reason of a skip.
    purpose: &'static str,
    /// The service that its installation starts, which is stopped again.
    service: Option<&'static str>,
}

/// Everything that tests use beyond Rust and its linker driver.
const PACKAGES: &[Package] = &[
    Package {
        name: "util-linux",
        command: "setpriv",
        purpose: "runs a peer as another user, and `unshare` in namespaces of its own",
        service: None,
    },
    Package { name: "iproute2", command: "ip", purpose: "makes network namespaces and their links", service: None },
    Package {
        name: "strace",
        command: "strace",
        purpose: "makes the n-th system call of a process fail",
        service: None,
    },
];

/// What guests run under; their kernels are fetched and not installed.
const FOR_GUESTS: &[Package] = &[Package {
    name: "qemu-system-x86",
    command: "qemu-system-x86_64",
    purpose: "runs kernels that have what this one has not",
    service: None,
}];
/// Programs that `cargo xtask peers net` measures.
///
/// The package of iperf3 asks whether to start a server, and not asked it does not.
const PEERS: &[Package] = &[
    Package { name: "iperf3", command: "iperf3", purpose: "is measured beside zcmi", service: None },
    Package { name: "sockperf", command: "sockperf", purpose: "is measured beside zcmi", service: None },
    Package { name: "libfabric-bin", command: "fi_pingpong", purpose: "is measured beside zcmi", service: None },
];

/// How long one call of the package manager may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Installs what is missing, if this is root and the package manager works; a package that stays missing is a skip.
pub(crate) fn install(tally: &mut Tally) {
    install_all(PACKAGES, tally);
}

/// The same for what only guests need. Whether it is there now.
pub(crate) fn install_for_guests(tally: &mut Tally) -> bool {
    install_all(FOR_GUESTS, tally);
    FOR_GUESTS.iter().all(|package| is_command(package.command))
}

/// The same for what is measured beside zcmi; the row of what stays missing says so itself.
pub(crate) fn install_peers() {
    install_all(PEERS, &mut Tally::default());
}

fn install_all(packages: &[Package], tally: &mut Tally) {
    let missing: Vec<&Package> = packages.iter().filter(|package| !is_command(package.command)).collect();
    if missing.is_empty() {
        return;
    }
    let refused = if !rustix::process::geteuid().is_root() {
        Some("only root can install it")
    } else if !is_command("apt-get") {
        Some("there is no apt-get to install it with")
    } else {
        let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
        (!apt_get(&["update"]) || !apt_get(&[&["install", "-y", "--no-install-recommends"], &names[..]].concat()))
            .then_some("apt-get could not install it")
    };
    for package in missing {
        if let Some(service) = package.service {
            stop(service, tally);
        }
        if !is_command(package.command) {
            let reason = refused.unwrap_or("its package came without that command");
            let text = format!("{} ({}) is missing: {reason}; it {}", package.command, package.name, package.purpose);
            println!("SKIP: {text}");
            tally.skip(text);
        }
    }
}

/// Whether one call of apt-get succeeds.
fn apt_get(arguments: &[&str]) -> bool {
    let mut apt = Command::new("apt-get");
    apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    matches!(command::run(&mut apt, LIMIT, |_| ()), Ok(Ended::Well))
}

/// Stops a service that an installation started; one that goes on running is a failure.
fn stop(service: &str, tally: &mut Tally) {
    let mut stop = Command::new("service");
    stop.args([service, "stop"]);
    if !matches!(command::run(&mut stop, LIMIT, |_| ()), Ok(Ended::Well)) {
        tally.fail(format!("the service {service} could not be stopped"));
    }
}

/// Whether `name` can be run: found in `PATH`, or where the system keeps what only root usually runs.
pub(crate) fn is_command(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = [Path::new("/usr/sbin").to_path_buf(), Path::new("/sbin").to_path_buf()];
    env::split_paths(&path).chain(system).any(|directory| {
        fs::metadata(directory.join(name))
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_is_a_command_and_nonsense_is_not() {
        assert!(is_command("sh"));
        assert!(!is_command("no-such-command-anywhere"));
    }
}
