//! What a message may be: plain data whose every bit pattern is valid, and the record by which two programs compare it.
//!
//! A [`Payload`] is a sized type without padding, pointers or forbidden bit patterns, so that its bytes may come from
//! another program. A [`Message`] is what a service carries: one payload, or a slice of them (`[u8]` is bytes). Each
//! has a record ([`TypeRecord`], [`MessageRecord`]) that lists the fields with offset, size and kind; the handshake
//! exchanges the records, and a difference is refused by the name of the field.
//!
//! # What this does not do
//! It says nothing about *when* bytes may be read as a `&T`: that is the business of leases and samples, which give
//! references only to memory that nobody can overwrite meanwhile. And a matching record does not make the peer honest:
//! a value is still whatever the peer wrote, which is why types with forbidden bit patterns are not payloads at all.
//!
//! ```
//! use zcmi_mem::payload::{Message, Payload, payload};
//!
//! #[payload(crate = "zcmi_mem")]
//! struct Tick {
//!     price: u64,
//!     size: u32,
//!     venue: [u8; 4],
//! }
//!
//! let tick = Tick { price: 17, size: 3, venue: *b"XETR" };
//! let received = Tick::from_bytes(tick.message_bytes()).expect("as long and as aligned as a tick");
//! assert_eq!(received.price, 17);
//! assert_eq!(Tick::record().fields[2].to_string(), "[u8; 4] at 12");
//! ```
//!
//! # What the compiler refuses
//! A struct whose layout is the compiler's choice:
//! ```compile_fail
//! # use zcmi_mem::payload::{Payload, zerocopy::*};
//! #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Payload)]
//! #[zerocopy(crate = "zcmi_mem::payload::zerocopy")]
//! #[zcmi(crate = "zcmi_mem")]
//! struct Tick { price: u64, size: u64 } // add #[repr(C)]
//! ```
//! (With the attribute in place it is accepted:)
//! ```
//! # use zcmi_mem::payload::{Payload, zerocopy::*};
//! #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Payload)]
//! #[zerocopy(crate = "zcmi_mem::payload::zerocopy")]
//! #[zcmi(crate = "zcmi_mem")]
//! #[repr(C)]
//! struct Tick { price: u64, size: u64 }
//! ```
//! A `bool` (or `char`, or reference), because most bit patterns are none:
//! ```compile_fail
//! # use zcmi_mem::payload::payload;
//! #[payload(crate = "zcmi_mem")]
//! struct Tick { price: u8, last: bool } // use a u8
//! ```
//! Padding, which would carry bytes nobody wrote:
//! ```compile_fail
//! # use zcmi_mem::payload::payload;
//! #[payload(crate = "zcmi_mem")]
//! struct Tick { price: u64, size: u32 } // add a field `_pad: u32`
//! ```
//! An enum:
//! ```compile_fail
//! # use zcmi_mem::payload::payload;
//! #[payload(crate = "zcmi_mem")]
//! #[repr(u8)]
//! enum Side { Buy, Sell } // send its number
//! ```
//! A type without a byte, which a slice could hold any number of:
//! ```compile_fail
//! # use zcmi_mem::payload::payload;
//! #[payload(crate = "zcmi_mem")]
//! struct Nothing { none: [u8; 0] }
//! ```
//! An implementation of `Message` by a type that is no payload:
//! ```compile_fail
//! # use zcmi_mem::payload::Message;
//! # fn send<M: Message + ?Sized>(_: &M) {}
//! send("text"); // send its bytes
//! ```
//! ```
//! # use zcmi_mem::payload::Message;
//! # fn send<M: Message + ?Sized>(_: &M) {}
//! send("text".as_bytes());
//! ```

mod claim;
mod record;

pub use claim::TypeRecordError;
pub use record::{
    ByteOrder, FieldKind, FieldRecord, Folded, MessageRecord, Mismatch, RecordBuilder, Repeat, TypeRecord,
};
pub use zcmi_derive::{Payload, payload};
pub use zerocopy;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The most bytes one payload type may have, which is also the most that a message may have.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 30;

/// Plain data of a fixed size that may be handed to another program byte by byte.
///
/// Implemented for the integers, the floats and arrays of payloads; by `#[payload]` or `#[derive(Payload)]` for
/// structs. An implementation by hand is possible and safe: what makes the bytes valid are zerocopy's traits, and a
/// wrong record only makes two programs misunderstand or refuse each other.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be (part of) a payload",
    label = "not plain data with a known layout",
    note = "a payload is an integer, a float, an array of payloads, or a struct with `#[payload]`",
    note = "for `bool`, `char` and enums send an integer and check it where it is received"
)]
pub trait Payload: FromBytes + IntoBytes + Immutable + KnownLayout + Send + Sync + 'static {
    /// The record of this type's layout, as this program sees it.
    fn record() -> TypeRecord;
}

macro_rules! scalar_payloads {
    ($($kind:ident: $($scalar:ident)*;)*) => {$($(
        impl Payload for $scalar {
            fn record() -> TypeRecord {
                RecordBuilder::of::<Self>(stringify!($scalar)).scalar(FieldKind::$kind).build()
            }
        }
    )*)*};
}

scalar_payloads! {
    Unsigned: u8 u16 u32 u64 u128 usize;
    Signed: i8 i16 i32 i64 i128 isize;
    Float: f32 f64;
}

impl<T: Payload, const N: usize> Payload for [T; N] {
    fn record() -> TypeRecord {
        let element = T::record();
        let name = format!("[{}; {N}]", element.name);
        RecordBuilder::of::<Self>(&name).repeated(&element, N).build()
    }
}

mod sealed {
    /// Implemented beside every `Message`, and not nameable from outside.
    pub trait Sealed {}
    impl<T: super::Payload> Sealed for T {}
    impl<T: super::Payload> Sealed for [T] {}
}

/// What a service carries: one payload, or a slice of payloads.
///
/// Sealed: it is implemented for every `T: Payload` and every `[T]`, and for nothing else.
#[diagnostic::on_unimplemented(
    message = "a service cannot carry `{Self}`",
    label = "neither a payload nor a slice of payloads",
    note = "a message is `T` or `[T]` where `T: Payload`; text goes as `[u8]`"
)]
pub trait Message: sealed::Sealed + Send + Sync + 'static {
    /// The payload itself, or what the slice is made of.
    type Element: Payload;
    /// Whether the message is a slice, so that its length is chosen message by message.
    const SLICE: bool;
    /// The size of one element.
    const ELEMENT_BYTES: usize = {
        let bytes = size_of::<Self::Element>();
        assert!(bytes > 0 && bytes <= MAX_PAYLOAD_BYTES, "a payload has at least one byte and at most 1 GiB");
        bytes
    };
    /// The alignment of one element, and so of the message.
    const ELEMENT_ALIGN: usize = align_of::<Self::Element>();

    /// The record that the handshake compares.
    fn message_record() -> MessageRecord {
        MessageRecord { element: Self::Element::record(), slice: Self::SLICE }
    }

    /// Reads bytes in place; none if they are misaligned or their number does not fit.
    fn from_bytes(bytes: &[u8]) -> Option<&Self>;

    /// Reads bytes in place and for writing; none if they are misaligned or their number does not fit.
    fn from_bytes_mut(bytes: &mut [u8]) -> Option<&mut Self>;

    /// The bytes of the message.
    fn message_bytes(&self) -> &[u8];
}

impl<T: Payload> Message for T {
    type Element = T;
    const SLICE: bool = false;

    #[inline(always)]
    fn from_bytes(bytes: &[u8]) -> Option<&Self> {
        T::ref_from_bytes(bytes).ok()
    }

    #[inline(always)]
    fn from_bytes_mut(bytes: &mut [u8]) -> Option<&mut Self> {
        T::mut_from_bytes(bytes).ok()
    }

    #[inline(always)]
    fn message_bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl<T: Payload> Message for [T] {
    type Element = T;
    const SLICE: bool = true;

    #[inline(always)]
    fn from_bytes(bytes: &[u8]) -> Option<&Self> {
        <[T]>::ref_from_bytes(bytes).ok()
    }

    #[inline(always)]
    fn from_bytes_mut(bytes: &mut [u8]) -> Option<&mut Self> {
        <[T]>::mut_from_bytes(bytes).ok()
    }

    #[inline(always)]
    fn message_bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}
