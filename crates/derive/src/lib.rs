//! The macros behind `zcmi`'s typed payloads: `#[derive(Payload)]` and the attribute `#[payload]`.
//!
//! Users meet both through `zcmi`. The generated code names the crate that re-exports the payload module, which is
//! `::zcmi` unless an attribute says otherwise: `#[zcmi(crate = "path")]` beside the derive, `#[payload(crate =
//! "path")]` for the attribute. It holds no unsafe code of its own: that every bit pattern of the type is valid and no
//! byte of it is padding is proven by the zerocopy derives, whose traits are the supertraits of `Payload`.
#![deny(unsafe_code)]

mod expand;

use proc_macro::TokenStream;

/// Implements `Payload`: the record of every field's name, offset, size and kind.
///
/// The type is a struct without generics, `#[repr(C)]` or `#[repr(transparent)]`, with at least one field, whose fields
/// are payloads themselves. It also derives zerocopy's `FromBytes`, `IntoBytes`, `Immutable` and `KnownLayout`; the
/// attribute [`macro@payload`] writes all of that in one word.
#[proc_macro_derive(Payload, attributes(zcmi))]
pub fn derive_payload(input: TokenStream) -> TokenStream {
    expand::derive(input.into()).unwrap_or_else(|error| error.to_compile_error()).into()
}

/// Makes a struct a payload: `#[repr(C)]` unless it has a representation, the zerocopy derives, and `Payload`.
///
/// Clone, Copy, Debug and the like remain the struct's own choice.
#[proc_macro_attribute]
pub fn payload(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand::attribute(arguments.into(), item.into()).unwrap_or_else(|error| error.to_compile_error()).into()
}
