//! `cargo xtask guest net`: connections through a real virtio device, on kernels of the distribution under emulation.
//!
//! ```text
//!        guest under QEMU's emulation                            network namespace of its own, on this machine
//! loopback  zcmi-guest-net ⇄ zcmi-guest-net
//! virtio    zcmi-guest-net ─▶ virtio-net ─▶ QEMU ─▶ tap ─▶ zcmi-guest-net, which checks every byte
//! ```
//!
//! What is held against it: over the device each path that is told so hears that nothing was copied, and no byte
//! arrives that was written after its slot was free; over the loopback device the same paths hear that all was copied,
//! so that the check can fail. What a guest takes for it is no measure of anything, and is not told.
//!
//! Kernels and the guest's shell are packages of the distribution that are unpacked and not installed. They are kept
//! below the target directory, in `guest`; whoever wants newer ones removes that.

mod archive;
mod kernel;
mod verdict;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::Outcome;
use crate::command::{self, Ended};
use crate::packages;
use crate::tally::Tally;
use crate::workspace;
use archive::Archive;
use kernel::Kernel;
use verdict::Heard;

/// The kernels: that of the distribution, which may be too old to say whether io_uring copied, and a later one.
const KERNELS: &[&str] = &["linux-image-amd64", "linux-image-6.12-amd64"];
/// The guest's shell and what it needs to set itself up.
const SHELL: &str = "busybox-static";
/// How long a guest may run, and how long it may take with everything around it.
const GUEST_LIMIT: Duration = Duration::from_secs(600);
const LIMIT: Duration = Duration::from_secs(620);
/// How long building the guest's program may take.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);
/// The host's end of the cable.
const TAP: &str = "zcmi-guest";
const HOST: &str = "10.77.9.1";
const GUEST: &str = "10.77.9.2";
const PORT: u16 = 7002;

/// Does what the arguments say; without any it says what there is.
///
/// # Errors
/// If an argument is unknown, or a program cannot be started.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["net"] => {
            let mut tally = Tally::default();
            net(&mut tally)?;
            println!("\n{tally}");
            Ok(tally.failures().is_empty())
        }
        // Started by `net`, in a network namespace that goes with it.
        ["inside", directory] => inside(Path::new(directory)),
        _ => Err("usage: cargo xtask guest net".into()),
    }
}

/// Runs a guest of each kernel, and counts each as one check.
///
/// # Errors
/// If the target directory cannot be used.
pub(crate) fn net(tally: &mut Tally) -> Result<(), Box<dyn Error>> {
    if !packages::install_for_guests(tally) {
        return Ok(());
    }
    if let Err(reason) = support() {
        skip(tally, &format!("no guest: {reason}"));
        return Ok(());
    }
    let cache = workspace::target_directory()?.join("guest");
    fs::create_dir_all(&cache)?;
    let shell = match kernel::shell(&cache, SHELL) {
        Ok(shell) => shell,
        Err(reason) => {
            skip(tally, &format!("no guest: {reason}"));
            return Ok(());
        }
    };
    let Some(program) = build(tally)? else { return Ok(()) };
    for package in KERNELS {
        match Kernel::of(&cache, package) {
            Ok(kernel) => {
                let faults = boot(&cache, &kernel, &shell, &program)?;
                faults.iter().for_each(|fault| println!("guest of {}: {fault}", kernel.release));
                tally.check(&format!("cargo xtask guest net ({})", kernel.release), faults.is_empty());
            }
            Err(reason) => skip(tally, &format!("no guest of {package}: {reason}")),
        }
    }
    Ok(())
}

fn skip(tally: &mut Tally, reason: &str) {
    println!("SKIP: {reason}");
    tally.skip(reason);
}

/// Whether guests can run here.
fn support() -> Result<(), String> {
    if std::env::consts::ARCH != "x86_64" {
        return Err(format!("its kernels are of x86_64, and this is {}", std::env::consts::ARCH));
    }
    for command in ["unshare", "ip", "ldd", "dpkg-deb", "apt-get"] {
        if !packages::is_command(command) {
            return Err(format!("{command} is missing"));
        }
    }
    let made = unshare(&["ip", "tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"]).output();
    match made {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
            Err(format!("no tap device in a network namespace of its own: {said}"))
        }
        Err(error) => Err(format!("unshare: {error}")),
    }
}

/// A command in a network namespace of its own.
fn unshare(command: &[&str]) -> Command {
    let mut unshare = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    unshare.arg("--net").arg("--").args(command);
    unshare
}

/// Builds the program of both ends; none if that failed, which is counted.
fn build(tally: &mut Tally) -> Result<Option<PathBuf>, Box<dyn Error>> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--release", "--package", "zcmi-tests", "--bin", "zcmi-guest-net"]);
    if command::run(&mut cargo, BUILD_LIMIT, |_| ())? != Ended::Well {
        tally.fail("the guest's program: did not build");
        return Ok(None);
    }
    Ok(Some(workspace::target_directory()?.join("release/zcmi-guest-net")))
}

/// What a guest does, as its first process. Its arguments are in the order of the placeholders.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc none /proc; $b mount -t sysfs none /sys; $b mount -t devtmpfs none /dev
for module in /modules/*; do $b insmod $module || echo "zcmi-guest: failed to insert $module"; done
$b ip link set lo up; $b ip addr add GUEST/24 dev eth0; $b ip link set eth0 up
echo "zcmi-guest: features $($b cat /sys/class/net/eth0/device/features)"
/bin/zcmi-guest-net receive 127.0.0.1:PORT COUNT &
/bin/zcmi-guest-net send 127.0.0.1:PORT loopback LOOPBACK; wait
/bin/zcmi-guest-net send HOST:PORT virtio VIRTIO
echo "zcmi-guest: done"
$b poweroff -f
"#;

/// Runs a guest; what was wrong with it comes back.
fn boot(cache: &Path, kernel: &Kernel, shell: &Path, program: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let init = INIT
        .replace("GUEST", GUEST)
        .replace("HOST", HOST)
        .replace("PORT", &PORT.to_string())
        .replace("COUNT", &(verdict::LOOPBACK.len() * verdict::MODES.len()).to_string())
        .replace("LOOPBACK", &verdict::LOOPBACK.join(" "))
        .replace("VIRTIO", &verdict::VIRTIO.join(" "));
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys"] {
        archive.directory(directory);
    }
    archive.file("init", init.as_bytes(), true);
    archive.file("bin/busybox", &fs::read(shell)?, true);
    archive.file("bin/zcmi-guest-net", &fs::read(program)?, true);
    for library in libraries(program)? {
        archive.file(library.trim_start_matches('/'), &fs::read(&library)?, true);
    }
    for (number, module) in kernel.modules.iter().enumerate() {
        archive.file(&format!("modules/{number:02}.ko"), &fs::read(module)?, false);
    }
    let directory = Scratch::make(cache)?;
    fs::write(directory.0.join("initramfs"), archive.finish())?;
    fs::hard_link(&kernel.image, directory.0.join("kernel")).or_else(|_| {
        // Another file system, or one that has no links.
        fs::copy(&kernel.image, directory.0.join("kernel")).map(|_| ())
    })?;
    fs::hard_link(program, directory.0.join("program"))
        .or_else(|_| fs::copy(program, directory.0.join("program")).map(|_| ()))?;
    let this = std::env::current_exe()?;
    let (this, inside) = (this.to_string_lossy(), directory.0.to_string_lossy());
    let mut heard = Heard::default();
    println!("\na guest of {} runs", kernel.release);
    let ended = command::run(&mut unshare(&[&this, "guest", "inside", &inside]), LIMIT, |line| heard.line(line))?;
    let mut faults = heard.faults(&kernel.release);
    match ended {
        Ended::Well => {}
        Ended::Badly => faults.push("it ended badly".into()),
        Ended::Late => faults.push(format!("it was not done after {} s", LIMIT.as_secs())),
    }
    Ok(faults)
}

/// The shared libraries that a program loads, its loader included.
fn libraries(program: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let output = Command::new("ldd").arg(program).output()?;
    if !output.status.success() {
        return Err(format!("ldd {}: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_string).collect())
}

/// The files of one guest; they go with it.
struct Scratch(PathBuf);

impl Scratch {
    fn make(cache: &Path) -> std::io::Result<Self> {
        let directory = cache.join(format!("run-{}", std::process::id()));
        fs::create_dir(&directory)?;
        Ok(Self(directory))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}

/// The part inside the namespace: lays the cable, starts its far end, and then the guest.
fn inside(directory: &Path) -> Outcome {
    for words in [
        &["tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"][..],
        &["address", "add", &format!("{HOST}/24"), "dev", TAP],
        &["link", "set", TAP, "up"],
        &["link", "set", "lo", "up"],
    ] {
        worked("ip", Command::new("ip").args(words).status()?)?;
    }
    let connections = (verdict::VIRTIO.len() * verdict::MODES.len()).to_string();
    // Into a file: QEMU hands on what the guest says letter by letter, and another voice would come between.
    let said = directory.join("said");
    let mut far = Command::new(directory.join("program"));
    far.args(["receive", &format!("{HOST}:{PORT}"), &connections]).stdout(fs::File::create(&said)?);
    let mut far = far.spawn()?;
    // Should everything above it be killed, the guest still ends in time.
    let guest = Command::new("timeout")
        .args(["--kill-after=1", &GUEST_LIMIT.as_secs().to_string(), "qemu-system-x86_64"])
        .args([
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "1024",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-serial", "stdio", "-netdev"])
        .arg(format!("tap,id=cable,ifname={TAP},script=no,downscript=no,vhost=off"))
        .args(["-device", "virtio-net-pci,netdev=cable,romfile=", "-kernel"])
        .arg(directory.join("kernel"))
        .arg("-initrd")
        .arg(directory.join("initramfs"))
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .stdin(std::process::Stdio::null())
        .status();
    // It has checked everything soon after the guest is done, or it never will.
    let done = ends_in_time(&far) && far.wait()?.success();
    if !done {
        far.kill()?;
        far.wait()?;
    }
    println!();
    print!("{}", fs::read_to_string(&said)?);
    worked("qemu-system-x86_64", guest?)?;
    Ok(done)
}

/// Waits a bounded time for a process to end.
fn ends_in_time(child: &Child) -> bool {
    let opened = Pid::from_raw(child.id().cast_signed()).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let Some(Ok(process)) = opened else { return false };
    let time = Timespec { tv_sec: 10, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&time)), Ok(1))
}

fn worked(name: &str, status: ExitStatus) -> Result<(), String> {
    if status.success() { Ok(()) } else { Err(format!("{name}: {status}")) }
}
