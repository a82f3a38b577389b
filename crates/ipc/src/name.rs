//! The names of services and of processes.
//!
//! A [`ServiceName`] is what people type: checked once, where it enters the program, and never again. An
//! [`Incarnation`] is what a process is called by others: 128 random bits, drawn once per process start. A process
//! number can be used again by the kernel within seconds and differs between PID namespaces; an incarnation does
//! neither.
//!
//! Invariants: a `ServiceName` is valid by construction, and so is a file name derived from its hash; the text forms of
//! hash and incarnation are exactly 32 lower-case hexadecimal digits, so that one value has one text.

use core::fmt;
use core::str::FromStr;

use crate::sys;

/// The longest service name, in bytes.
pub const MAX_NAME_BYTES: usize = 200;

/// The name of a service: 1 to 200 bytes of `[A-Za-z0-9._-]` in parts, with `/` between the parts.
///
/// No part is empty, and no part is `.` or `..`.
///
/// ```
/// use zcmi_ipc::name::ServiceName;
///
/// let name: ServiceName = "camera/left.raw".parse()?;
/// assert_eq!(name.as_str(), "camera/left.raw");
/// assert!("camera//left".parse::<ServiceName>().is_err());
/// # Ok::<(), zcmi_ipc::name::InvalidName>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(Box<str>);

impl ServiceName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`InvalidName`] says which rule is broken and at which byte.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        if name.is_empty() {
            return Err(InvalidName::Empty);
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(InvalidName::TooLong { len: name.len() });
        }
        for (at, byte) in name.bytes().enumerate() {
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/')) {
                return Err(InvalidName::Byte { byte, at });
            }
        }
        let mut at = 0;
        for part in name.split('/') {
            match part {
                "" => return Err(InvalidName::EmptyPart { at }),
                "." | ".." => return Err(InvalidName::DotPart { part: part.to_owned(), at }),
                _ => at += part.len() + 1,
            }
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name's 128-bit FNV-1a hash, which is the same in every process, build and version.
    ///
    /// It is not a cryptographic hash: two names with one hash can be constructed. Whoever looks something up by it
    /// compares the name stored there as well.
    ///
    /// # Sources
    /// The offset basis and the prime are those of the FNV draft (draft-eastlake-fnv, 128-bit parameters).
    #[must_use]
    pub fn hash(&self) -> u128 {
        const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        self.0.bytes().fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ServiceName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        Self::new(name)
    }
}

impl AsRef<str> for ServiceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Why a text is not the name of a service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// Nothing is no name.
    #[error("a service name is empty; use 1 to {MAX_NAME_BYTES} bytes of A-Z a-z 0-9 . _ - with / between parts")]
    Empty,
    /// The name is longer than [`MAX_NAME_BYTES`].
    #[error("a service name has {len} bytes; use at most {MAX_NAME_BYTES}")]
    TooLong {
        /// The name's length in bytes.
        len: usize,
    },
    /// A byte that names may not contain.
    #[error(
        "a service name has the byte {} at place {at}; use only A-Z a-z 0-9 . _ - and / between parts",
        shown(*byte)
    )]
    Byte {
        /// The byte.
        byte: u8,
        /// Its place, counted from 0.
        at: usize,
    },
    /// Two slashes in a row, or one at an end.
    #[error("a service name has an empty part at place {at}; put exactly one / between parts and none at the ends")]
    EmptyPart {
        /// Where the part would begin, counted from 0.
        at: usize,
    },
    /// A part that means a directory.
    #[error("a service name has the part `{part}` at place {at}; name the part otherwise")]
    DotPart {
        /// The part, `.` or `..`.
        part: String,
        /// Where it begins, counted from 0.
        at: usize,
    },
}

/// A byte as people recognise it: itself in quotes when printable, else only its number.
fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("`{}` (0x{byte:02x})", char::from(byte)) } else { format!("0x{byte:02x}") }
}

/// Who a process is, for others: 128 random bits drawn at its start.
///
/// Its text is 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(u128);

impl Incarnation {
    /// Draws a new one from the kernel's random numbers.
    ///
    /// # Errors
    /// What `getrandom` answered; on a running system it does not fail.
    pub fn random() -> std::io::Result<Self> {
        Ok(Self(u128::from_ne_bytes(sys::random_bytes()?)))
    }

    /// Takes a number that was drawn elsewhere, for instance out of a message.
    #[must_use]
    pub const fn from_u128(value: u128) -> Self {
        Self(value)
    }

    /// The number.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incarnation({:032x})", self.0)
    }
}

impl FromStr for Incarnation {
    type Err = InvalidIncarnation;

    fn from_str(text: &str) -> Result<Self, InvalidIncarnation> {
        parse_hex_128(text).map(Self).ok_or(InvalidIncarnation)
    }
}

/// The text is not 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an incarnation is 32 lower-case hexadecimal digits")]
pub struct InvalidIncarnation;

/// Reads exactly 32 lower-case hexadecimal digits.
pub(crate) fn parse_hex_128(text: &str) -> Option<u128> {
    let digits = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if digits { u128::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn usual_names_are_taken_as_they_are() {
        for name in ["a", "camera/left.raw", "A-Z_0.9", "...", "a/..b/c..", &"x".repeat(MAX_NAME_BYTES)] {
            assert_eq!(ServiceName::new(name).map(|name| name.to_string()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn a_refusal_says_which_byte_and_where() {
        let refusal = |name: &str| ServiceName::new(name).expect_err(name);
        assert_eq!(refusal(""), InvalidName::Empty);
        assert_eq!(refusal(&"x".repeat(300)), InvalidName::TooLong { len: 300 });
        assert_eq!(refusal("a b"), InvalidName::Byte { byte: b' ', at: 1 });
        assert_eq!(refusal("caf\u{e9}"), InvalidName::Byte { byte: 0xc3, at: 3 });
        assert_eq!(refusal("a\0"), InvalidName::Byte { byte: 0, at: 1 });
        assert_eq!(refusal("/a"), InvalidName::EmptyPart { at: 0 });
        assert_eq!(refusal("a//b"), InvalidName::EmptyPart { at: 2 });
        assert_eq!(refusal("a/"), InvalidName::EmptyPart { at: 2 });
        assert_eq!(refusal("ab/../c"), InvalidName::DotPart { part: "..".into(), at: 3 });
        assert_eq!(refusal("."), InvalidName::DotPart { part: ".".into(), at: 0 });
        assert!(refusal("a:b").to_string().contains("`:` (0x3a) at place 1"), "{}", refusal("a:b"));
    }

    #[test]
    fn the_hash_is_the_published_function() {
        let hash = |name: &str| ServiceName::new(name).expect("a name").hash();
        assert_eq!(hash("a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(hash("foobar"), 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }

    #[test]
    fn an_incarnation_has_exactly_one_text() {
        let incarnation = Incarnation::random().expect("random bytes");
        assert_eq!(incarnation.to_string().parse(), Ok(incarnation));
        assert_eq!(Incarnation::from_u128(0xab).to_string(), format!("{:0>32}", "ab"));
        for text in ["", "ab", &"A".repeat(32), &"0".repeat(33), &format!("+{}", "0".repeat(31))] {
            assert_eq!(text.parse::<Incarnation>(), Err(InvalidIncarnation), "{text}");
        }
        assert_ne!(incarnation, Incarnation::random().expect("random bytes"));
    }

    proptest! {
        #[test]
        fn an_accepted_name_keeps_every_rule(name in "[A-Za-z0-9._/ -]{0,210}") {
            let rules = !name.is_empty()
                && name.len() <= MAX_NAME_BYTES
                && !name.contains(' ')
                && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
            prop_assert_eq!(ServiceName::new(&name).is_ok(), rules);
        }
    }
}
