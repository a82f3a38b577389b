//! The record of a payload's layout, how it is built, and how two are compared.
//!
//! A record is flat: a field that is itself a struct appears as its own fields with dotted names, an array as one field
//! with a [`Repeat`], an array of structs as the struct's fields, each repeated with the struct's size as stride. What
//! lies in the same bytes has the same record: `[[u8; 4]; 3]` and `[u8; 12]`, `[u64; 1]` and `u64`, a transparent
//! struct and what it wraps. The name of the type is told to people and is not compared.

use core::fmt;

/// A 64-bit FNV-1a hash: stable, without tables, and good enough where nobody gains by a collision (whoever forges a
/// record is believed for its own bytes only, all of which are valid).
pub(super) struct Fnv(u64);

impl Fnv {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(super) fn write_u32(&mut self, number: u32) {
        self.write(&number.to_le_bytes());
    }

    pub(super) fn finish(&self) -> u64 {
        self.0
    }
}

/// The order of the bytes in a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// The lowest byte first.
    Little,
    /// The highest byte first.
    Big,
}

impl ByteOrder {
    /// The order of the machine this was compiled for.
    pub const NATIVE: Self = if cfg!(target_endian = "little") { Self::Little } else { Self::Big };

    pub(super) fn code(self) -> u8 {
        match self {
            Self::Little => 1,
            Self::Big => 2,
        }
    }
}

impl fmt::Display for ByteOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Little => "little-endian",
            Self::Big => "big-endian",
        })
    }
}

/// What the bytes of a field mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// An integer without a sign; bytes are such integers too.
    Unsigned,
    /// An integer in two's complement.
    Signed,
    /// An IEEE 754 number.
    Float,
}

impl FieldKind {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Unsigned => 1,
            Self::Signed => 2,
            Self::Float => 3,
        }
    }
}

/// One dimension of an array: so many elements, so many bytes from one to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// The number of elements, at least 2.
    pub count: u32,
    /// The distance in bytes from an element to the next.
    pub stride_bytes: u32,
}

/// One field of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRecord {
    /// Its name, with dots where structs are nested; empty if the payload is a single number or an array of them.
    pub name: String,
    /// Where it begins, in bytes from the start of the payload.
    pub offset: u32,
    /// The size of one number.
    pub bytes: u32,
    /// What the number is.
    pub kind: FieldKind,
    /// The arrays around it, outermost first.
    pub repeats: Vec<Repeat>,
}

impl FieldRecord {
    /// The first byte past the field's last element, wide enough for any claim.
    #[must_use]
    pub fn end(&self) -> u128 {
        let reach = |repeat: &Repeat| u128::from(repeat.count.saturating_sub(1)) * u128::from(repeat.stride_bytes);
        u128::from(self.offset) + self.repeats.iter().map(reach).sum::<u128>() + u128::from(self.bytes)
    }

    /// The same field inside an array of `count` elements of `stride_bytes` each.
    fn repeat(mut self, count: u32, stride_bytes: u32) -> Self {
        if count == 1 {
            return self;
        }
        match self.repeats.first_mut() {
            // One array of arrays without gaps between is one longer array.
            Some(inner) if u64::from(inner.count) * u64::from(inner.stride_bytes) == u64::from(stride_bytes) => {
                inner.count *= count;
            }
            _ => self.repeats.insert(0, Repeat { count, stride_bytes }),
        }
        self
    }

    fn hash_into(&self, hash: &mut Fnv) {
        hash.write(&[self.kind.code()]);
        hash.write_u32(self.bytes);
        hash.write_u32(self.offset);
        hash.write_u32(self.repeats.len() as u32);
        for repeat in &self.repeats {
            hash.write_u32(repeat.count);
            hash.write_u32(repeat.stride_bytes);
        }
        hash.write_u32(self.name.len() as u32);
        hash.write(self.name.as_bytes());
    }
}

/// The shape and the place, as in `[u8; 4] at 12`; the name is left to the caller.
impl fmt::Display for FieldRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for _ in &self.repeats {
            f.write_str("[")?;
        }
        let letter = match self.kind {
            FieldKind::Unsigned => 'u',
            FieldKind::Signed => 'i',
            FieldKind::Float => 'f',
        };
        write!(f, "{letter}{}", u64::from(self.bytes) * 8)?;
        let mut dense = u64::from(self.bytes);
        for repeat in self.repeats.iter().rev() {
            write!(f, "; {}", repeat.count)?;
            if u64::from(repeat.stride_bytes) != dense {
                write!(f, " every {} bytes", repeat.stride_bytes)?;
            }
            f.write_str("]")?;
            dense = u64::from(repeat.count) * u64::from(repeat.stride_bytes);
        }
        write!(f, " at {}", self.offset)
    }
}

/// What a record that was too long to be sent whole leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Folded {
    /// How many fields are not listed.
    pub fields: u32,
    /// The hash of the record with all its fields.
    pub hash: u64,
}

/// The layout of a payload, as one program sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeRecord {
    /// The name of the type, for people.
    pub name: String,
    /// The order of the bytes in its numbers.
    pub order: ByteOrder,
    /// Its size.
    pub bytes: u32,
    /// Its alignment.
    pub align: u32,
    /// Its fields, by offset.
    pub fields: Vec<FieldRecord>,
    /// What is not in `fields`; present only in a record that was received and had been too long.
    pub folded: Option<Folded>,
}

impl TypeRecord {
    /// The number of fields, listed or folded.
    #[must_use]
    pub fn field_count(&self) -> u64 {
        self.fields.len() as u64 + self.folded.map_or(0, |folded| u64::from(folded.fields))
    }

    /// A stable hash of everything but the type's name: 64-bit FNV-1a over byte order, size, alignment and, for each
    /// field, kind, size, offset, repeats and name, as written down in `docs/layout/payload.md`.
    #[must_use]
    pub fn hash(&self) -> u64 {
        match self.folded {
            Some(folded) => folded.hash,
            None => self.listed_hash(),
        }
    }

    /// The hash of what is listed.
    pub(super) fn listed_hash(&self) -> u64 {
        let mut hash = Fnv::new();
        hash.write(&[self.order.code()]);
        hash.write_u32(self.bytes);
        hash.write_u32(self.align);
        hash.write_u32(self.fields.len() as u32);
        for field in &self.fields {
            field.hash_into(&mut hash);
        }
        hash.finish()
    }

    /// The first difference that makes the two layouts incompatible, or none; `self` is ours, `other` the peer's.
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<Mismatch> {
        if self.order != other.order {
            return Some(Mismatch::ByteOrder { here: self.order, there: other.order });
        }
        if let Some(mismatch) = self.first_field_difference(other) {
            return Some(mismatch);
        }
        if self.bytes != other.bytes {
            return Some(Mismatch::Bytes { here: self.bytes, there: other.bytes });
        }
        if self.align != other.align {
            return Some(Mismatch::Align { here: self.align, there: other.align });
        }
        if self.field_count() != other.field_count() || self.hash() != other.hash() {
            // Only a folded record can differ in what is not listed.
            let listed = self.fields.len().min(other.fields.len());
            return Some(Mismatch::Folded { listed, here: self.hash(), there: other.hash() });
        }
        None
    }

    fn first_field_difference(&self, other: &Self) -> Option<Mismatch> {
        let has = |record: &Self, name: &str| record.fields.iter().any(|field| field.name == name);
        let absent = |record: &Self, name: &str| record.folded.is_none() && !has(record, name);
        let longest = self.fields.len().max(other.fields.len());
        for position in 0..longest {
            match (self.fields.get(position), other.fields.get(position)) {
                (Some(here), Some(there)) if here == there => {}
                (Some(here), Some(there)) if here.name == there.name => return Some(Mismatch::field(here, there)),
                (Some(here), Some(there)) => {
                    // A field more on one side shifts all that follow: name that one, not the shifted.
                    if absent(self, &there.name) && has(other, &here.name) {
                        return Some(Mismatch::only_there(there));
                    }
                    return Some(match other.fields.iter().find(|field| field.name == here.name) {
                        Some(moved) if moved != here => Mismatch::field(here, moved),
                        // Same place and another position, or not listed there: either way it is not where it is here.
                        Some(_) => Mismatch::only_there(there),
                        None => Mismatch::only_here(here),
                    });
                }
                (Some(here), None) if other.folded.is_none() => return Some(Mismatch::only_here(here)),
                (None, Some(there)) if self.folded.is_none() => return Some(Mismatch::only_there(there)),
                // The rest of one side is folded away; its hash decides.
                _ => break,
            }
        }
        None
    }
}

/// Why two layouts are not the same.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mismatch {
    /// The machines order bytes differently.
    ByteOrder {
        /// Our order.
        here: ByteOrder,
        /// The peer's order.
        there: ByteOrder,
    },
    /// One side carries slices, the other single payloads.
    Slice {
        /// Whether ours is a slice.
        here: bool,
    },
    /// A field differs, or exists on one side only.
    Field {
        /// Its name.
        name: String,
        /// What and where it is here.
        here: Option<FieldRecord>,
        /// What and where it is there.
        there: Option<FieldRecord>,
    },
    /// All fields agree, and yet the sizes differ.
    Bytes {
        /// Our size.
        here: u32,
        /// The peer's size.
        there: u32,
    },
    /// Only the alignments differ.
    Align {
        /// Our alignment.
        here: u32,
        /// The peer's alignment.
        there: u32,
    },
    /// The difference lies in fields that were too many to be sent.
    Folded {
        /// The number of fields that agree.
        listed: usize,
        /// Our hash.
        here: u64,
        /// The peer's hash.
        there: u64,
    },
}

impl Mismatch {
    fn field(here: &FieldRecord, there: &FieldRecord) -> Self {
        Self::Field { name: here.name.clone(), here: Some(here.clone()), there: Some(there.clone()) }
    }

    fn only_here(here: &FieldRecord) -> Self {
        Self::Field { name: here.name.clone(), here: Some(here.clone()), there: None }
    }

    fn only_there(there: &FieldRecord) -> Self {
        Self::Field { name: there.name.clone(), here: None, there: Some(there.clone()) }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByteOrder { here, there } => write!(f, "byte order: here {here}, there {there}"),
            Self::Slice { here: true } => f.write_str("here a slice, there a single payload"),
            Self::Slice { here: false } => f.write_str("here a single payload, there a slice"),
            Self::Field { name, here, there } => {
                if name.is_empty() {
                    f.write_str("the value: ")?;
                } else {
                    write!(f, "field `{name}`: ")?;
                }
                let mut side = |word: &str, field: &Option<FieldRecord>| match field {
                    Some(field) => write!(f, "{word} {field}"),
                    None => write!(f, "{word} none"),
                };
                side("here", here)?;
                side(", there", there)
            }
            Self::Bytes { here, there } => write!(f, "size: here {here} bytes, there {there} bytes"),
            Self::Align { here, there } => write!(f, "alignment: here {here} bytes, there {there} bytes"),
            Self::Folded { listed, here, there } => {
                write!(f, "a field after the first {listed}: here hash {here:016x}, there hash {there:016x}")
            }
        }
    }
}

/// Builds the record of a type, field by field; what the derive calls.
#[derive(Debug)]
pub struct RecordBuilder {
    record: TypeRecord,
}

impl RecordBuilder {
    /// Begins the record of `T`, which people know as `name`.
    #[must_use]
    pub fn of<T: super::Payload>(name: &str) -> Self {
        const {
            assert!(size_of::<T>() > 0, "a payload has at least one byte");
            assert!(size_of::<T>() <= super::MAX_PAYLOAD_BYTES, "a payload has at most 1 GiB");
        }
        let record = TypeRecord {
            name: name.to_owned(),
            order: ByteOrder::NATIVE,
            bytes: size_of::<T>() as u32,
            align: align_of::<T>() as u32,
            fields: Vec::new(),
            folded: None,
        };
        Self { record }
    }

    /// Adds a field of type `F`; an empty `name` adds the fields of `F` under their own names.
    ///
    /// # Panics
    /// If the field does not lie within the type.
    #[must_use]
    pub fn field<F: super::Payload>(mut self, name: &str, offset: usize) -> Self {
        for mut field in F::record().fields {
            field.name = match (name.is_empty(), field.name.is_empty()) {
                (true, _) => field.name,
                (false, true) => name.to_owned(),
                (false, false) => format!("{name}.{}", field.name),
            };
            let shift = u32::try_from(offset).expect("an offset lies within a payload, which has at most 1 GiB");
            field.offset += shift;
            self.push(field);
        }
        self
    }

    /// Makes the type a single number.
    pub(super) fn scalar(mut self, kind: FieldKind) -> Self {
        let bytes = self.record.bytes;
        self.push(FieldRecord { name: String::new(), offset: 0, bytes, kind, repeats: Vec::new() });
        self
    }

    /// Makes the type an array of `count` elements.
    pub(super) fn repeated(mut self, element: &TypeRecord, count: usize) -> Self {
        let count = u32::try_from(count).expect("an array has at most 2^30 elements of at least one byte");
        for field in &element.fields {
            self.push(field.clone().repeat(count, element.bytes));
        }
        self
    }

    fn push(&mut self, field: FieldRecord) {
        let bytes = self.record.bytes;
        assert!(field.end() <= u128::from(bytes), "field `{}` ends past the {bytes} bytes of its type", field.name);
        self.record.fields.push(field);
    }

    /// The record.
    #[must_use]
    pub fn build(self) -> TypeRecord {
        self.record
    }
}

/// The record of a message: its element, and whether there are many of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageRecord {
    /// The record of the payload.
    pub element: TypeRecord,
    /// Whether a message is a slice of it.
    pub slice: bool,
}

impl MessageRecord {
    /// A stable hash of the record; a slice and its element differ.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hash = Fnv::new();
        hash.write(&[u8::from(self.slice)]);
        hash.write(&self.element.hash().to_le_bytes());
        hash.finish()
    }

    /// The first difference that makes the two incompatible, or none; `self` is ours, `other` the peer's.
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<Mismatch> {
        if self.slice != other.slice {
            return Some(Mismatch::Slice { here: self.slice });
        }
        self.element.first_difference(&other.element)
    }
}

/// The message as Rust would write it: `Tick` or `[Tick]`.
impl fmt::Display for MessageRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.slice { write!(f, "[{}]", self.element.name) } else { f.write_str(&self.element.name) }
    }
}
