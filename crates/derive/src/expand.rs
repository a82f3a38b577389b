//! What the macros generate, as functions from tokens to tokens, so that tests can look at both the code and the
//! refusals.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Error, Fields, Index, LitStr, Path, Token, Type, parse_quote};

/// How the layout of a struct is pinned down.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Representation {
    /// `#[repr(C)]`, perhaps packed or aligned.
    C,
    /// `#[repr(transparent)]`: the record is that of the one field.
    Transparent,
}

/// The body of `#[derive(Payload)]`.
pub(crate) fn derive(input: TokenStream) -> Result<TokenStream, Error> {
    let input: DeriveInput = syn::parse2(input)?;
    let fields = struct_fields(&input)?;
    let Some(representation) = representation(&input.attrs)? else {
        return Err(Error::new(
            input.ident.span(),
            "a payload needs a layout that does not depend on the compiler: add #[repr(C)] or #[repr(transparent)]",
        ));
    };
    let krate = crate_path(&input.attrs)?;
    let ident = &input.ident;
    let name = ident.unraw().to_string();

    let steps = fields.iter().enumerate().map(|(position, field)| {
        let (member, label) = match &field.ident {
            Some(ident) => (ident.to_token_stream(), ident.unraw().to_string()),
            None => (Index::from(position).to_token_stream(), position.to_string()),
        };
        let label = if representation == Representation::Transparent { String::new() } else { label };
        let ty = &field.ty;
        quote! { .field::<#ty>(#label, ::core::mem::offset_of!(Self, #member)) }
    });
    Ok(quote! {
        #[automatically_derived]
        impl #krate::payload::Payload for #ident {
            fn record() -> #krate::payload::TypeRecord {
                #krate::payload::RecordBuilder::of::<Self>(#name) #(#steps)* .build()
            }
        }
        const _: () = ::core::assert!(
            ::core::mem::size_of::<#ident>() > 0,
            "a payload has at least one byte",
        );
    })
}

/// The body of `#[payload]`.
pub(crate) fn attribute(arguments: TokenStream, item: TokenStream) -> Result<TokenStream, Error> {
    let mut input: DeriveInput = syn::parse2(item)?;
    struct_fields(&input)?;
    let krate = if arguments.is_empty() {
        default_crate()
    } else {
        syn::parse::Parser::parse2(parse_crate_argument, arguments)?
    };
    if !input.attrs.iter().any(|attribute| attribute.path().is_ident("repr")) {
        input.attrs.push(parse_quote!(#[repr(C)]));
    }
    let zerocopy = quote!(#krate::payload::zerocopy);
    let zerocopy_text = zerocopy.to_string();
    let krate_text = krate.to_token_stream().to_string();
    Ok(quote! {
        #[derive(
            #zerocopy::FromBytes,
            #zerocopy::IntoBytes,
            #zerocopy::Immutable,
            #zerocopy::KnownLayout,
            #krate::payload::Payload,
        )]
        #[zerocopy(crate = #zerocopy_text)]
        #[zcmi(crate = #krate_text)]
        #input
    })
}

/// The fields of a struct that may be a payload, or why it may not.
fn struct_fields(input: &DeriveInput) -> Result<&Fields, Error> {
    let fields = match &input.data {
        Data::Struct(data) => &data.fields,
        Data::Enum(data) => {
            return Err(Error::new(
                data.enum_token.span(),
                "an enum cannot be a payload: not every bit pattern is one of its values; send its number instead",
            ));
        }
        Data::Union(data) => {
            return Err(Error::new(
                data.union_token.span(),
                "a union cannot be a payload: its record could not say which field is meant; send a byte array",
            ));
        }
    };
    if !input.generics.params.is_empty() {
        return Err(Error::new(
            input.generics.span(),
            "a payload has no generic parameters: peers agree on one layout; write the struct for the concrete type",
        ));
    }
    if fields.is_empty() {
        return Err(Error::new(
            input.ident.span(),
            "a payload has at least one field: an event without data is a service pattern of its own",
        ));
    }
    for field in fields {
        plain_data(&field.ty)?;
    }
    Ok(fields)
}

/// Refuses the types that are no plain data by their looks, so that the message says what to write instead.
///
/// Everything else is left to the bounds of `Payload`, which see through names and aliases.
fn plain_data(ty: &Type) -> Result<(), Error> {
    let reason = match ty {
        Type::Array(array) => return plain_data(&array.elem),
        Type::Path(path) if path.path.is_ident("bool") => "a bool has two valid bit patterns of 256: use a u8",
        Type::Path(path) if path.path.is_ident("char") => "not every u32 is a char: use a u32 or UTF-8 in a byte array",
        Type::Reference(_) | Type::Ptr(_) | Type::BareFn(_) => {
            "an address means nothing in another program: put the data itself into the payload"
        }
        Type::Slice(_) => "a slice has no size: use an array, or make the message a slice of payloads",
        Type::Tuple(_) => "a tuple's layout is the compiler's choice: use a struct that is a payload",
        _ => return Ok(()),
    };
    Err(Error::new(ty.span(), reason))
}

/// The representation that the attributes name, if it fixes the layout.
fn representation(attributes: &[Attribute]) -> Result<Option<Representation>, Error> {
    let mut found = None;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("repr")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("C") {
                found = Some(Representation::C);
            } else if meta.path.is_ident("transparent") {
                found = Some(Representation::Transparent);
            } else if meta.input.peek(syn::token::Paren) {
                // `align(16)` and `packed(2)`: the compiler checks them, the record shows their effect.
                let _: proc_macro2::Group = meta.input.parse()?;
            }
            Ok(())
        })?;
    }
    Ok(found)
}

/// The crate that generated code names, from `#[zcmi(crate = "...")]`.
fn crate_path(attributes: &[Attribute]) -> Result<Path, Error> {
    let mut found = None;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("zcmi")) {
        found = Some(attribute.parse_args_with(parse_crate_argument)?);
    }
    Ok(found.unwrap_or_else(default_crate))
}

fn default_crate() -> Path {
    parse_quote!(::zcmi)
}

/// Parses `crate = "path"`.
fn parse_crate_argument(input: syn::parse::ParseStream<'_>) -> Result<Path, Error> {
    if !input.peek(Token![crate]) {
        return Err(
            input.error("the only argument is crate = \"path\", the crate that re-exports zcmi's payload module")
        );
    }
    input.parse::<Token![crate]>()?;
    input.parse::<Token![=]>()?;
    let path: LitStr = input.parse()?;
    input.parse::<Option<Token![,]>>()?;
    path.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(input: TokenStream) -> String {
        derive(input).expect_err("this type may not be a payload").to_string()
    }

    #[test]
    fn a_plain_struct_names_every_field_with_its_offset() {
        let code = derive(quote! {
            #[repr(C)]
            struct Tick { price: u64, r#type: u32, size: u32 }
        })
        .expect("a plain struct")
        .to_string();
        assert!(code.contains(":: zcmi :: payload :: Payload for Tick"), "{code}");
        assert!(code.contains("field :: < u64 > (\"price\" , :: core :: mem :: offset_of ! (Self , price))"), "{code}");
        assert!(code.contains("field :: < u32 > (\"type\" , :: core :: mem :: offset_of ! (Self , r#type))"), "{code}");
    }

    #[test]
    fn the_crate_attribute_replaces_the_front_door() {
        let code = derive(quote! {
            #[repr(C, align(16))]
            #[zcmi(crate = "crate::inner")]
            struct Tick { price: u64, size: u64 }
        })
        .expect("a plain struct")
        .to_string();
        assert!(code.contains("impl crate :: inner :: payload :: Payload for Tick"), "{code}");
    }

    #[test]
    fn a_missing_representation_is_named_in_the_refusal() {
        assert!(
            refusal(quote!(
                struct Tick {
                    price: u64,
                }
            ))
            .contains("#[repr(C)]")
        );
        assert!(
            refusal(quote!(
                #[repr(align(8))]
                struct Tick {
                    price: u64,
                }
            ))
            .contains("#[repr(C)]")
        );
        assert!(
            refusal(quote!(
                #[repr(packed(2))]
                struct Tick {
                    price: u64,
                }
            ))
            .contains("#[repr(C)]")
        );
    }

    #[test]
    fn enums_unions_generics_and_empty_structs_are_refused_with_their_reason() {
        assert!(
            refusal(quote!(
                #[repr(C)]
                enum Side {
                    Buy,
                    Sell,
                }
            ))
            .contains("enum")
        );
        assert!(refusal(quote!(#[repr(C)] union Word { a: u64, b: f64 })).contains("union"));
        assert!(
            refusal(quote!(
                #[repr(C)]
                struct Pair<T> {
                    a: T,
                    b: T,
                }
            ))
            .contains("generic")
        );
        assert!(
            refusal(quote!(
                #[repr(C)]
                struct Nothing;
            ))
            .contains("at least one field")
        );
        assert!(
            refusal(quote!(
                #[repr(C)]
                struct Nothing {}
            ))
            .contains("at least one field")
        );
    }

    #[test]
    fn fields_that_are_no_plain_data_are_refused_with_what_to_write_instead() {
        assert!(
            refusal(quote!(
                #[repr(C)]
                struct Tick {
                    last: bool,
                }
            ))
            .contains("use a u8")
        );
        assert!(
            refusal(quote!(
                #[repr(C)]
                struct Tick {
                    flags: [[bool; 2]; 4],
                }
            ))
            .contains("use a u8")
        );
        assert!(
            refusal(quote!(
                #[repr(C)]
                struct Tick {
                    letter: char,
                }
            ))
            .contains("UTF-8")
        );
        assert!(
            refusal(quote!(
                #[repr(C)]
                struct Tick {
                    name: &'static [u8],
                }
            ))
            .contains("address")
        );
        assert!(
            refusal(quote!(
                #[repr(C)]
                struct Tick {
                    pair: (u32, u32),
                }
            ))
            .contains("struct")
        );
        assert!(
            attribute(
                quote!(),
                quote!(
                    struct Tick {
                        last: bool,
                    }
                )
            )
            .is_err()
        );
    }

    #[test]
    fn an_unknown_argument_is_refused() {
        assert!(
            refusal(quote!(
                #[repr(C)]
                #[zcmi(name = "x")]
                struct Tick {
                    price: u64,
                }
            ))
            .contains("crate = ")
        );
        assert!(
            attribute(
                quote!(name = "x"),
                quote!(
                    struct Tick {
                        price: u64,
                    }
                )
            )
            .is_err()
        );
    }

    #[test]
    fn the_attribute_adds_a_representation_only_where_there_is_none() {
        let plain = attribute(
            quote!(),
            quote!(
                struct Tick {
                    price: u64,
                }
            ),
        )
        .expect("a struct")
        .to_string();
        assert!(plain.contains("# [repr (C)]"), "{plain}");
        let given = attribute(
            quote!(),
            quote!(
                #[repr(C, packed)]
                struct Tick {
                    price: u64,
                }
            ),
        )
        .expect("a struct");
        assert_eq!(given.to_string().matches("repr").count(), 1);
    }
}
