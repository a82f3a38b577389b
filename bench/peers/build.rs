//! Compiles the loops in C, each to a program, with the C compiler that is there. Without one their rows say so.

use std::path::PathBuf;
use std::process::Command;

/// The programs, each in a file of its name.
const PROGRAMS: [&str; 12] = [
    "c-round-trip",
    "c-sendfile",
    "c-splice",
    "c-udp",
    "c-uring-fixed",
    "c-uring-send",
    "c-uring-zc",
    "c-write",
    "c-zerocopy",
    "echo",
    "receive",
    "udp-receive",
];

fn main() {
    println!("cargo::rerun-if-changed=c");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    for name in PROGRAMS {
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-Wall", "-o"]).arg(out.join(name)).arg(format!("c/{name}.c"));
        match compiler.status() {
            Ok(status) if status.success() => {}
            Ok(_) => panic!("{name}.c was not compiled"),
            // No compiler: the file stays missing, which the program tells.
            Err(error) => println!("cargo::warning=no loops in C: cc cannot be run: {error}"),
        }
    }
    println!("cargo::rustc-env=LOOPS={}", out.display());
}
