//! How the two sides find and trust each other: addresses, names, keys.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::fs::OFlags;
use zcmi::Coded as _;
use zcmi::net::key::Key;
use zcmi::net::stream::{Address, StreamOptions};

use super::talk::{self, Talk};
use crate::code::Fault;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::say::harmless;

/// The longest key that is read.
const MAX_KEY_BYTES: u64 = 64 << 10;
/// How long one address of several is tried at a time.
const TRY: Duration = Duration::from_secs(1);
/// Between two rounds over the addresses of a name.
const AGAIN: Duration = Duration::from_millis(50);

/// Which peers are trusted.
#[derive(Args, Debug)]
pub(crate) struct Trust {
    /// Shared secret of at least 16 bytes in a file that only you can read; the other side needs the same
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Talk with other hosts although there is no key: whoever answers is trusted
    #[arg(long, conflicts_with = "key_file")]
    pub(crate) insecure: bool,
}

impl Trust {
    /// The key, if there is to be one.
    pub(crate) fn key(&self) -> Result<Option<Key>, Failure> {
        self.key_file.as_deref().map(read_key).transpose()
    }

    /// How the other side says the same, behind what it is told else.
    pub(crate) fn to_say(&self) -> &'static str {
        match (&self.key_file, self.insecure) {
            (Some(_), _) => " --key-file FILE",
            (None, true) => " --insecure",
            (None, false) => "",
        }
    }

    /// Whether anything was said about it.
    pub(crate) fn is_said(&self) -> bool {
        self.insecure || self.key_file.is_some()
    }
}

/// What both commands are told about their peer.
#[derive(Args, Debug)]
pub(crate) struct Reach {
    #[command(flatten)]
    pub(crate) trust: Trust,
    /// How long a connection that broke is mended, and one that is not there yet waited for
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    resume_for: u32,
    /// Leave out the hashes of whole files; files that go on where they were are still compared up to there
    #[arg(long)]
    no_hash: bool,
}

impl Reach {
    pub(crate) fn is_hashed(&self) -> bool {
        !self.no_hash
    }

    pub(crate) fn resume_for(&self) -> Duration {
        Duration::from_secs(self.resume_for.into())
    }

    /// A transport with room for so many pieces that are received and that are sent.
    pub(crate) fn options(&self, received: u32, loaned: u32) -> Result<StreamOptions, Failure> {
        let key = self.trust.key()?;
        let slots = talk::slots(received, loaned)?;
        let resume_for = self.resume_for();
        Ok(StreamOptions {
            slots,
            key,
            insecure: self.trust.insecure,
            resume_for,
            connections: 64,
            ..StreamOptions::default()
        })
    }

    /// Whether the other side of an address is trusted.
    pub(crate) fn check_trust(&self, talk: &Talk, address: &Address, shown: &str) -> Result<(), Failure> {
        talk.transport.check_trust(address).map_err(|error| {
            let text = format!(
                "{} is not used without a key, for it is not this host's alone; give the same `--key-file` to both \
                 sides, or `--insecure` to trust whoever answers",
                harmless(shown)
            );
            Failure::coded(error.code(), text)
        })
    }
}

/// Reads a key from a file that nobody else can read.
fn read_key(path: &Path) -> Result<Key, Failure> {
    let shown = harmless(&path.display().to_string());
    let cannot = |error: std::io::Error| Failure::of(format_args!("the key file {shown} cannot be read"), &error);
    // A pipe without a writer would hold us up.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let mut file = std::fs::File::options().read(true).custom_flags(flags).open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    let mode = metadata.mode() & 0o777;
    if metadata.is_file() && mode & 0o077 != 0 {
        let text = format!("others can read the key file {shown} (mode {mode:03o}); run `chmod 600` on it");
        return Err(Failure::new(Fault::KeyFile, text));
    }
    let mut secret = Vec::new();
    file.by_ref().take(MAX_KEY_BYTES + 1).read_to_end(&mut secret).map_err(cannot)?;
    if secret.len() as u64 > MAX_KEY_BYTES {
        let text = format!("the key file {shown} is longer than {MAX_KEY_BYTES} bytes, which is no key");
        return Err(Failure::new(Fault::KeyFile, text));
    }
    // An editor's line end is no part of the secret.
    if secret.ends_with(b"\n") {
        secret.pop();
    }
    Key::new(&secret).map_err(|error| Failure::of(format_args!("the key file {shown} holds no key"), &error))
}

/// The addresses that a word means.
fn addresses(text: &str) -> Result<Vec<Address>, Failure> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(vec![Address::Unix(path.into())]);
    }
    let shown = harmless(text);
    let has_port = text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    let digits = text.rsplit_once(':').map_or("", |(_, port)| port);
    if !has_port && !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()) && !text.starts_with(':') {
        let text = format!("`{shown}` is no address, because {digits} is no port: the highest is 65535");
        return Err(Failure::usage(text));
    }
    if !has_port {
        return Err(Failure::usage(format!("`{shown}` is no address; write HOST:PORT, [IPV6]:PORT or unix:PATH")));
    }
    let found: Vec<SocketAddr> = match text.to_socket_addrs() {
        Ok(found) => found.collect(),
        Err(error) => return Err(Failure::of(format_args!("the host of {shown} cannot be found"), &error)),
    };
    if found.is_empty() {
        return Err(Failure::new(Fault::System, format!("{shown} has no address")));
    }
    Ok(found.into_iter().map(Address::from).collect())
}

/// The addresses of a word that must be TCP's.
pub(crate) fn tcp_addresses(text: &str) -> Result<Vec<SocketAddr>, Failure> {
    let of_tcp = |address| match address {
        Address::Tcp(address) => Ok(address),
        Address::Unix(_) => Err(Failure::usage(format!("`{}` is no HOST:PORT", harmless(text)))),
    };
    addresses(text)?.into_iter().map(of_tcp).collect()
}

/// Where to listen: the first address of a word.
pub(crate) fn listen_at(text: &str) -> Result<Address, Failure> {
    Ok(addresses(text)?.swap_remove(0))
}

/// Where to connect. Of several addresses of one name the first that answers is taken.
pub(crate) fn connect_to(text: &str, patience: Duration, interrupt: &Interrupt) -> Result<Address, Failure> {
    let mut found = addresses(text)?;
    if found.len() == 1 {
        return Ok(found.swap_remove(0));
    }
    let until = Instant::now() + patience;
    loop {
        let mut last = None;
        for address in &found {
            interrupt.check()?;
            let Address::Tcp(address) = address else { continue };
            match TcpStream::connect_timeout(address, TRY) {
                Ok(_) => return Ok((*address).into()),
                Err(error) => last = Some(error),
            }
        }
        if Instant::now() >= until {
            let shown = harmless(text);
            let error = last.unwrap_or_else(|| std::io::ErrorKind::NotFound.into());
            return Err(Failure::of(format_args!("nobody answers at any address of {shown}"), &error));
        }
        interrupt.wait(&[], Some(AGAIN))?;
    }
}

/// What another host calls an address that was listened at, where that is known.
pub(crate) fn seen_from_elsewhere(address: &impl ToString) -> String {
    let text = address.to_string();
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => format!("THIS_HOST:{}", address.port()),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_a_port() {
        for good in ["127.0.0.1:1", "[::1]:65535", "unix:/run/x", "localhost:7070"] {
            assert!(addresses(good).is_ok_and(|found| !found.is_empty()), "{good}");
        }
        for bad in ["127.0.0.1", "localhost:", ":7070", "localhost:x", "::1:70000", ""] {
            assert!(matches!(addresses(bad), Err(Failure::Usage { .. })), "{bad}");
        }
    }
}
