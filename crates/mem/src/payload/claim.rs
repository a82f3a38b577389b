//! Records as bytes, on the way to a peer and back.
//!
//! What arrives is a claim: every length is checked before it is used, nothing is allocated beyond the bytes that are
//! there, names hold nothing that could steer a terminal, and there is exactly one encoding of a record, so that
//! whatever decodes encodes to the same bytes again. The layout is drawn in `docs/layout/payload.md`.

use super::MAX_PAYLOAD_BYTES;
use super::record::{ByteOrder, FieldKind, FieldRecord, Folded, MessageRecord, Repeat, TypeRecord};

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 32;
const FLAG_FOLDED: u8 = 1;
const MAX_TYPE_NAME_BYTES: usize = 128;
const MAX_FIELD_NAME_BYTES: usize = 255;
const MAX_REPEATS: usize = 8;

/// Why bytes are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TypeRecordError {
    /// More bytes than any record has.
    #[error("a record of {bytes} bytes is longer than the {limit} that one may have")]
    TooLong {
        /// The bytes that were given.
        bytes: usize,
        /// The most there may be.
        limit: usize,
    },
    /// The bytes end inside the record.
    #[error("the record ends at byte {bytes}, inside its {part}")]
    Truncated {
        /// The bytes that were given.
        bytes: usize,
        /// What was being read.
        part: &'static str,
    },
    /// Bytes follow the record.
    #[error("{extra} bytes follow the record")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// A version that this program does not know.
    #[error("record version {found}, known is {VERSION}; update the older of the two programs")]
    Version {
        /// The claimed version.
        found: u8,
    },
    /// A number that has no meaning where it stands.
    #[error("{part} {found} has no meaning")]
    Code {
        /// What was being read.
        part: &'static str,
        /// The claimed number.
        found: u64,
    },
    /// A size that is zero, too large, or no multiple of the alignment.
    #[error("a type cannot have {bytes} bytes aligned to {align}")]
    Layout {
        /// The claimed size.
        bytes: u32,
        /// The claimed alignment.
        align: u32,
    },
    /// A field that does not lie within its type.
    #[error("field {index} ends at byte {end} of a type of {bytes} bytes")]
    FieldPastEnd {
        /// The field's position in the record.
        index: usize,
        /// Where the claimed field ends.
        end: u128,
        /// The claimed size of the type.
        bytes: u32,
    },
    /// A name that is too long, not UTF-8, or holds characters that do not print.
    #[error("the name of {part} is too long or does not print")]
    Name {
        /// Whose name it is.
        part: &'static str,
    },
    /// The record and its hash disagree.
    #[error("the record claims the hash {claimed:016x} and has {computed:016x}")]
    Hash {
        /// The claimed hash.
        claimed: u64,
        /// The hash of what was read.
        computed: u64,
    },
}

/// A reader that never looks past the end.
struct Cursor<'a> {
    rest: &'a [u8],
    bytes: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize, part: &'static str) -> Result<&'a [u8], TypeRecordError> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(TypeRecordError::Truncated { bytes: self.bytes, part });
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, part: &'static str) -> Result<[u8; N], TypeRecordError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, part)?);
        Ok(array)
    }

    fn u8(&mut self, part: &'static str) -> Result<u8, TypeRecordError> {
        self.array::<1>(part).map(|[byte]| byte)
    }

    fn u32(&mut self, part: &'static str) -> Result<u32, TypeRecordError> {
        self.array(part).map(u32::from_le_bytes)
    }

    fn u64(&mut self, part: &'static str) -> Result<u64, TypeRecordError> {
        self.array(part).map(u64::from_le_bytes)
    }

    fn name(&mut self, count: usize, part: &'static str) -> Result<String, TypeRecordError> {
        let bytes = self.take(count, part)?;
        match core::str::from_utf8(bytes) {
            Ok(name) if name.chars().all(prints) => Ok(name.to_owned()),
            _ => Err(TypeRecordError::Name { part }),
        }
    }
}

/// Whether a character of a peer's name may reach a terminal: no controls, and none that reverse or hide what follows.
fn prints(character: char) -> bool {
    !character.is_control()
        && !matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        && !matches!(character, '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The longest beginning of a name that fits and ends between characters.
fn shortened(name: &str, limit: usize) -> &str {
    &name[..name.floor_char_boundary(limit)]
}

impl FieldRecord {
    /// The bytes of this field in a record, if it can be listed at all.
    fn encoded_bytes(&self) -> Option<usize> {
        let listable = self.name.len() <= MAX_FIELD_NAME_BYTES && self.repeats.len() <= MAX_REPEATS;
        listable.then(|| 8 + 8 * self.repeats.len() + self.name.len())
    }

    fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend([self.kind.code(), self.bytes as u8, self.repeats.len() as u8, self.name.len() as u8]);
        out.extend(self.offset.to_le_bytes());
        for repeat in &self.repeats {
            out.extend(repeat.count.to_le_bytes());
            out.extend(repeat.stride_bytes.to_le_bytes());
        }
        out.extend(self.name.as_bytes());
    }

    fn decode(from: &mut Cursor<'_>) -> Result<Self, TypeRecordError> {
        let kind_code = from.u8("field kind")?;
        let bytes = from.u8("field size")?;
        let repeat_count = usize::from(from.u8("number of repeats")?);
        let name_bytes = usize::from(from.u8("field name's length")?);
        let offset = from.u32("field offset")?;
        let kind = match (kind_code, bytes) {
            (1, 1 | 2 | 4 | 8 | 16) => FieldKind::Unsigned,
            (2, 1 | 2 | 4 | 8 | 16) => FieldKind::Signed,
            (3, 2 | 4 | 8 | 16) => FieldKind::Float,
            (1..=3, _) => return Err(TypeRecordError::Code { part: "field size", found: bytes.into() }),
            _ => return Err(TypeRecordError::Code { part: "field kind", found: kind_code.into() }),
        };
        if repeat_count > MAX_REPEATS {
            return Err(TypeRecordError::Code { part: "number of repeats", found: repeat_count as u64 });
        }
        let mut repeats = Vec::with_capacity(repeat_count);
        for _ in 0..repeat_count {
            let repeat = Repeat { count: from.u32("repeat")?, stride_bytes: from.u32("repeat")? };
            if repeat.count < 2 {
                return Err(TypeRecordError::Code { part: "repeat of", found: repeat.count.into() });
            }
            repeats.push(repeat);
        }
        let name = from.name(name_bytes, "a field")?;
        Ok(Self { name, offset, bytes: bytes.into(), kind, repeats })
    }
}

impl TypeRecord {
    /// The most bytes that [`encode`](Self::encode) returns.
    pub const ENCODED_MAX: usize = 2040;

    /// The record as bytes for a peer; fields that do not fit are folded into the hash.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let name = shortened(&self.name, MAX_TYPE_NAME_BYTES);
        let mut length = HEAD_BYTES + name.len();
        let fits = |field: &&FieldRecord| match field.encoded_bytes() {
            Some(bytes) if length + bytes <= Self::ENCODED_MAX => {
                length += bytes;
                true
            }
            _ => false,
        };
        let listed = self.fields.iter().take_while(fits).count();
        let field_count = self.field_count() as u32;
        let flags = if (listed as u32) < field_count { FLAG_FOLDED } else { 0 };

        let mut out = Vec::with_capacity(Self::ENCODED_MAX);
        out.extend([VERSION, self.order.code(), flags, name.len() as u8]);
        out.extend(self.align.to_le_bytes());
        out.extend(self.bytes.to_le_bytes());
        out.extend(field_count.to_le_bytes());
        out.extend((listed as u32).to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.hash().to_le_bytes());
        out.extend(name.as_bytes());
        for field in &self.fields[..listed] {
            field.encode_into(&mut out);
        }
        out
    }

    /// Reads a record that a peer sent.
    ///
    /// # Errors
    /// [`TypeRecordError`] if the bytes are anything but what [`encode`](Self::encode) writes. A folded record's hash
    /// cannot be checked here and is compared as it is.
    pub fn decode(claim: &[u8]) -> Result<Self, TypeRecordError> {
        if claim.len() > Self::ENCODED_MAX {
            return Err(TypeRecordError::TooLong { bytes: claim.len(), limit: Self::ENCODED_MAX });
        }
        let mut from = Cursor { rest: claim, bytes: claim.len() };
        let [version, order, flags, name_bytes] = from.array("head")?;
        if version != VERSION {
            return Err(TypeRecordError::Version { found: version });
        }
        let order = match order {
            1 => ByteOrder::Little,
            2 => ByteOrder::Big,
            _ => return Err(TypeRecordError::Code { part: "byte order", found: order.into() }),
        };
        let align = from.u32("head")?;
        let bytes = from.u32("head")?;
        let field_count = from.u32("head")?;
        let listed = from.u32("head")?;
        let reserved = from.u32("head")?;
        let hash = from.u64("head")?;
        if reserved != 0 {
            return Err(TypeRecordError::Code { part: "reserved word", found: reserved.into() });
        }
        let folded_flag = if listed < field_count { FLAG_FOLDED } else { 0 };
        if flags != folded_flag || listed > field_count {
            return Err(TypeRecordError::Code { part: "flags", found: flags.into() });
        }
        if !align.is_power_of_two() || bytes == 0 || bytes as usize > MAX_PAYLOAD_BYTES || bytes % align != 0 {
            return Err(TypeRecordError::Layout { bytes, align });
        }
        if usize::from(name_bytes) > MAX_TYPE_NAME_BYTES {
            return Err(TypeRecordError::Name { part: "the type" });
        }
        let name = from.name(name_bytes.into(), "the type")?;
        let mut fields = Vec::new();
        // A claimed count allocates nothing: each turn needs bytes that are there.
        for index in 0..listed as usize {
            let field = FieldRecord::decode(&mut from)?;
            let end = field.end();
            if end > u128::from(bytes) {
                return Err(TypeRecordError::FieldPastEnd { index, end, bytes });
            }
            fields.push(field);
        }
        if !from.rest.is_empty() {
            return Err(TypeRecordError::Trailing { extra: from.rest.len() });
        }
        let folded = (listed < field_count).then(|| Folded { fields: field_count - listed, hash });
        let record = Self { name, order, bytes, align, fields, folded };
        let computed = record.hash();
        if computed != hash {
            return Err(TypeRecordError::Hash { claimed: hash, computed });
        }
        Ok(record)
    }
}

impl MessageRecord {
    /// The most bytes that [`encode`](Self::encode) returns.
    pub const ENCODED_MAX: usize = TypeRecord::ENCODED_MAX + 8;

    /// The record as bytes for a peer.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.slice), 0, 0, 0, 0, 0, 0, 0];
        out.extend(self.element.encode());
        out
    }

    /// Reads a record that a peer sent.
    ///
    /// # Errors
    /// [`TypeRecordError`] if the bytes are anything but what [`encode`](Self::encode) writes.
    pub fn decode(claim: &[u8]) -> Result<Self, TypeRecordError> {
        let Some((head, element)) = claim.split_first_chunk::<8>() else {
            return Err(TypeRecordError::Truncated { bytes: claim.len(), part: "head" });
        };
        let slice = match u64::from_le_bytes(*head) {
            0 => false,
            1 => true,
            found => return Err(TypeRecordError::Code { part: "message form", found }),
        };
        Ok(Self { element: TypeRecord::decode(element)?, slice })
    }
}
