//! Records: what the derive writes, how two are compared, and what a peer's bytes may do to us (nothing).

#![forbid(unsafe_code)]

use proptest::collection::vec;
use proptest::prelude::*;
use zcmi_mem::payload::zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
use zcmi_mem::payload::{
    ByteOrder, FieldKind, FieldRecord, Folded, Message, MessageRecord, Mismatch, Payload, Repeat, TypeRecord,
    TypeRecordError, payload,
};

#[payload(crate = "zcmi_mem")]
struct Level {
    price: u64,
    size: u32,
    orders: u32,
}

#[payload(crate = "zcmi_mem")]
#[derive(Debug, PartialEq)]
struct Price(f64);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Payload)]
#[zerocopy(crate = "zcmi_mem::payload::zerocopy")]
#[zcmi(crate = "zcmi_mem")]
#[repr(transparent)]
struct Sequence(u64);

#[payload(crate = "zcmi_mem")]
struct Book {
    sequence: Sequence,
    best: Level,
    bids: [Level; 10],
    mid: Price,
    venue: [u8; 4],
    grid: [[i16; 3]; 2],
}

#[payload(crate = "zcmi_mem")]
#[repr(C, packed)]
struct Packed {
    small: u8,
    large: u64,
}

fn shapes(record: &TypeRecord) -> Vec<String> {
    record.fields.iter().map(|field| format!("{} {field}", field.name)).collect()
}

#[test]
fn a_record_lists_nested_fields_with_dotted_names_and_true_offsets() {
    let record = Book::record();
    assert_eq!(
        shapes(&record),
        [
            "sequence u64 at 0",
            "best.price u64 at 8",
            "best.size u32 at 16",
            "best.orders u32 at 20",
            "bids.price [u64; 10 every 16 bytes] at 24",
            "bids.size [u32; 10 every 16 bytes] at 32",
            "bids.orders [u32; 10 every 16 bytes] at 36",
            "mid.0 f64 at 184",
            "venue [u8; 4] at 192",
            "grid [i16; 6] at 196",
        ]
    );
    assert_eq!((record.name.as_str(), record.bytes, record.align), ("Book", 208, 8));
    assert_eq!(record.order, ByteOrder::NATIVE);
    assert_eq!(record.folded, None);
}

#[test]
fn a_packed_struct_shows_its_packed_offsets() {
    let record = Packed::record();
    assert_eq!(shapes(&record), ["small u8 at 0", "large u64 at 1"]);
    assert_eq!((record.bytes, record.align), (9, 1));
}

#[test]
fn what_lies_in_the_same_bytes_has_the_same_hash_and_everything_else_another() {
    assert_eq!(Sequence::record().hash(), u64::record().hash());
    assert_eq!(<[u64; 1]>::record().hash(), u64::record().hash());
    assert_eq!(<[[u8; 4]; 3]>::record().hash(), <[u8; 12]>::record().hash());
    assert_eq!(<[Level; 1]>::record().hash(), Level::record().hash());
    let all = [
        u8::record(),
        u16::record(),
        u64::record(),
        i64::record(),
        f64::record(),
        <[u8; 8]>::record(),
        <[u32; 2]>::record(),
        Level::record(),
        <[Level; 2]>::record(),
        Book::record(),
        Price::record(),
    ];
    for (left, one) in all.iter().enumerate() {
        for (right, other) in all.iter().enumerate() {
            assert_eq!(one.hash() == other.hash(), left == right, "{} and {}", one.name, other.name);
            assert_eq!(one.first_difference(other).is_none(), left == right, "{} and {}", one.name, other.name);
        }
    }
}

#[test]
fn the_hash_is_the_documented_one_on_every_machine() {
    // The FNV-1a of the canonical bytes, written out by hand here as the layout page gives them.
    let mut bytes = vec![if cfg!(target_endian = "little") { 1 } else { 2 }];
    for number in [16_u32, 8, 3] {
        bytes.extend(number.to_le_bytes());
    }
    for (size, offset, name) in [(8_u32, 0_u32, "price"), (4, 8, "size"), (4, 12, "orders")] {
        bytes.push(1);
        for number in [size, offset, 0, name.len() as u32] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(name.as_bytes());
    }
    let expected = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    assert_eq!(Level::record().hash(), expected);
}

fn told(here: &TypeRecord, there: &TypeRecord) -> String {
    here.first_difference(there).expect("two different layouts").to_string()
}

fn record(align: u32, bytes: u32, fields: &[(&str, FieldKind, u32, u32)]) -> TypeRecord {
    let field = |&(name, kind, bytes, offset): &(&str, FieldKind, u32, u32)| FieldRecord {
        name: name.to_owned(),
        offset,
        bytes,
        kind,
        repeats: Vec::new(),
    };
    let fields = fields.iter().map(field).collect();
    TypeRecord { name: "Tick".to_owned(), order: ByteOrder::Little, bytes, align, fields, folded: None }
}

#[test]
fn a_mismatch_names_the_field_and_both_shapes() {
    use FieldKind::{Signed, Unsigned};
    let here = record(8, 16, &[("price", Unsigned, 8, 0), ("size", Unsigned, 8, 8)]);
    let narrower = record(4, 8, &[("price", Unsigned, 4, 0), ("size", Unsigned, 4, 4)]);
    assert_eq!(told(&here, &narrower), "field `price`: here u64 at 0, there u32 at 0");
    let signed = record(8, 16, &[("price", Unsigned, 8, 0), ("size", Signed, 8, 8)]);
    assert_eq!(told(&here, &signed), "field `size`: here u64 at 8, there i64 at 8");
    let longer = record(8, 24, &[("price", Unsigned, 8, 0), ("venue", Unsigned, 8, 8), ("size", Unsigned, 8, 16)]);
    assert_eq!(told(&here, &longer), "field `venue`: here none, there u64 at 8");
    assert_eq!(told(&longer, &here), "field `venue`: here u64 at 8, there none");
    let swapped = record(8, 16, &[("size", Unsigned, 8, 0), ("price", Unsigned, 8, 8)]);
    assert_eq!(told(&here, &swapped), "field `price`: here u64 at 0, there u64 at 8");
    let renamed = record(8, 16, &[("price", Unsigned, 8, 0), ("volume", Unsigned, 8, 8)]);
    assert_eq!(told(&here, &renamed), "field `size`: here u64 at 8, there none");
    let mut foreign = here.clone();
    foreign.order = ByteOrder::Big;
    assert_eq!(told(&here, &foreign), "byte order: here little-endian, there big-endian");
    let larger = record(8, 24, &[("price", Unsigned, 8, 0), ("size", Unsigned, 8, 8)]);
    assert_eq!(told(&here, &larger), "size: here 16 bytes, there 24 bytes");
    let packed = record(1, 16, &[("price", Unsigned, 8, 0), ("size", Unsigned, 8, 8)]);
    assert_eq!(told(&here, &packed), "alignment: here 8 bytes, there 1 bytes");
    assert_eq!(told(&u64::record(), &u32::record()), "the value: here u64 at 0, there u32 at 0");
    let bytes = <[u8]>::message_record();
    assert_eq!(bytes.first_difference(&u8::message_record()), Some(Mismatch::Slice { here: true }));
    assert_ne!(bytes.hash(), u8::message_record().hash());
    assert_eq!(bytes.to_string(), "[u8]");
}

#[test]
fn a_record_that_is_too_long_is_folded_and_still_compared() {
    let names: Vec<String> = (0..300).map(|index| format!("field_{index:03}")).collect();
    let fields: Vec<_> =
        names.iter().enumerate().map(|(at, name)| (name.as_str(), FieldKind::Unsigned, 8, at as u32 * 8)).collect();
    let long = record(8, 2400, &fields);
    let encoded = long.encode();
    assert!(encoded.len() <= TypeRecord::ENCODED_MAX);
    let received = TypeRecord::decode(&encoded).expect("our own encoding");
    let folded = received.folded.expect("300 fields do not fit");
    assert_eq!(folded.hash, long.hash());
    assert_eq!(received.field_count(), 300);
    assert_eq!(received.encode(), encoded);
    assert_eq!(long.first_difference(&received), None);
    assert_eq!(received.first_difference(&long), None);

    let mut other = long.clone();
    other.fields[299].kind = FieldKind::Float;
    let told = told(&other, &received);
    assert!(told.starts_with(&format!("a field after the first {}: ", received.fields.len())), "{told}");
    let mut early = long.clone();
    early.fields[2].bytes = 4;
    assert_eq!(
        early.first_difference(&received).expect("a difference").to_string(),
        "field `field_002`: here u32 at 16, there u64 at 16"
    );
}

#[test]
fn a_name_too_long_for_a_record_folds_its_field_instead_of_losing_it() {
    let name = "n".repeat(300);
    let long = record(8, 8, &[(&name, FieldKind::Unsigned, 8, 0)]);
    let received = TypeRecord::decode(&long.encode()).expect("our own encoding");
    assert_eq!(received.folded, Some(Folded { fields: 1, hash: long.hash() }));
    assert_eq!(long.first_difference(&received), None);
    let mut wide = u64::record();
    wide.name = "é".repeat(100);
    assert_eq!(TypeRecord::decode(&wide.encode()).expect("our own encoding").name, "é".repeat(64));
}

#[test]
fn claims_with_a_wrong_part_are_refused_by_name() {
    let good = Level::record().encode();
    assert_eq!(TypeRecord::decode(&good).expect("our own encoding"), Level::record());
    let with = |at: usize, byte: u8| {
        let mut claim = good.clone();
        claim[at] = byte;
        TypeRecord::decode(&claim).expect_err("a damaged record")
    };
    assert!(matches!(with(0, 9), TypeRecordError::Version { found: 9 }));
    assert!(matches!(with(1, 3), TypeRecordError::Code { part: "byte order", found: 3 }));
    assert!(matches!(with(2, 1), TypeRecordError::Code { part: "flags", found: 1 }));
    assert!(matches!(with(4, 3), TypeRecordError::Layout { align: 3, .. }));
    assert!(matches!(with(8, 15), TypeRecordError::Layout { bytes: 15, .. }));
    assert!(matches!(with(8, 8), TypeRecordError::FieldPastEnd { index: 1, end: 12, bytes: 8 }));
    assert!(matches!(with(20, 1), TypeRecordError::Code { part: "reserved word", .. }));
    assert!(matches!(with(24, 0), TypeRecordError::Hash { .. }));
    assert!(matches!(with(33, 0x1b), TypeRecordError::Name { part: "the type" }));
    let first_field = 32 + "Level".len();
    assert!(matches!(with(first_field, 9), TypeRecordError::Code { part: "field kind", found: 9 }));
    assert!(matches!(with(first_field + 1, 7), TypeRecordError::Code { part: "field size", found: 7 }));
    assert!(matches!(with(first_field + 2, 200), TypeRecordError::Code { part: "number of repeats", found: 200 }));
    assert!(matches!(TypeRecord::decode(&[0; 4096]), Err(TypeRecordError::TooLong { bytes: 4096, .. })));
    let mut trailing = good.clone();
    trailing.push(0);
    assert!(matches!(TypeRecord::decode(&trailing), Err(TypeRecordError::Trailing { extra: 1 })));
    for length in 0..good.len() {
        let cut = TypeRecord::decode(&good[..length]);
        assert!(matches!(cut, Err(TypeRecordError::Truncated { .. })), "cut at {length}: {cut:?}");
    }
    let message = <[Level]>::message_record();
    let mut claim = message.encode();
    assert!(claim.len() <= MessageRecord::ENCODED_MAX);
    assert_eq!(MessageRecord::decode(&claim).expect("our own encoding"), message);
    claim[0] = 2;
    assert!(matches!(MessageRecord::decode(&claim), Err(TypeRecordError::Code { part: "message form", found: 2 })));
    assert!(MessageRecord::decode(&[1, 0, 0]).is_err());
}

#[test]
fn bytes_become_messages_only_where_length_and_alignment_fit() {
    let mut words = [0_u64; 4];
    let bytes = words.as_mut_bytes();
    assert!(Level::from_bytes(&bytes[..16]).is_some());
    assert!(Level::from_bytes(&bytes[..24]).is_none(), "longer than one");
    assert!(Level::from_bytes(&bytes[..8]).is_none(), "shorter than one");
    assert!(Level::from_bytes(&bytes[1..17]).is_none(), "misaligned");
    assert_eq!(<[Level]>::from_bytes(bytes).map(<[Level]>::len), Some(2));
    assert!(<[Level]>::from_bytes(&bytes[..24]).is_none(), "one and a half");
    assert!(<[Level]>::from_bytes(&bytes[..0]).is_some_and(<[Level]>::is_empty));
    assert_eq!(<[u8]>::from_bytes(&bytes[3..10]).map(<[u8]>::len), Some(7));
    <[Level]>::from_bytes_mut(bytes).expect("two levels")[1].price = 42;
    assert_eq!(words[2], 42);
    assert_eq!((Level::ELEMENT_BYTES, <[Level] as Message>::ELEMENT_ALIGN), (16, 8));
    assert_eq!(Price(2.5).message_bytes(), 2.5_f64.to_ne_bytes());
}

fn arbitrary_field() -> impl Strategy<Value = FieldRecord> {
    let kind = prop_oneof![Just(FieldKind::Unsigned), Just(FieldKind::Signed), Just(FieldKind::Float)];
    let size = prop_oneof![Just(4_u32), Just(8)];
    let repeat = (2_u32..6, 0_u32..64).prop_map(|(count, stride_bytes)| Repeat { count, stride_bytes });
    ("[a-z_é]{0,40}", 0_u32..1000, size, kind, vec(repeat, 0..3))
        .prop_map(|(name, offset, bytes, kind, repeats)| FieldRecord { name, offset, bytes, kind, repeats })
}

fn arbitrary_record() -> impl Strategy<Value = TypeRecord> {
    ("[A-Z][a-z]{0,140}", any::<bool>(), vec(arbitrary_field(), 0..120)).prop_map(|(name, big, fields)| TypeRecord {
        name,
        order: if big { ByteOrder::Big } else { ByteOrder::Little },
        bytes: 4096,
        align: 8,
        fields,
        folded: None,
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(claim in vec(any::<u8>(), 0..2100)) {
        if let Ok(record) = TypeRecord::decode(&claim) {
            prop_assert_eq!(record.encode(), claim.clone());
        }
        let _ = MessageRecord::decode(&claim);
    }

    #[test]
    fn a_record_survives_the_way_to_a_peer(record in arbitrary_record()) {
        let encoded = record.encode();
        prop_assert!(encoded.len() <= TypeRecord::ENCODED_MAX);
        let received = TypeRecord::decode(&encoded).expect("our own encoding");
        prop_assert_eq!(received.hash(), record.hash());
        prop_assert_eq!(record.first_difference(&received), None);
        prop_assert_eq!(received.encode(), encoded);
    }

    #[test]
    fn a_damaged_record_is_refused_or_is_exactly_what_it_says(
        record in arbitrary_record(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut claim = record.encode();
        for (at, byte) in damage {
            let at = at.index(claim.len());
            claim[at] = byte;
        }
        let cut = cut.index(2 * claim.len());
        claim.truncate(cut);
        if let Ok(received) = TypeRecord::decode(&claim) {
            prop_assert_eq!(received.encode(), claim);
            for field in &received.fields {
                prop_assert!(field.end() <= u128::from(received.bytes));
            }
            // Comparing and printing a claim must not panic either.
            let _ = record.first_difference(&received).map(|mismatch| mismatch.to_string());
            let _ = received.first_difference(&record).map(|mismatch| mismatch.to_string());
        }
    }

    #[test]
    fn any_change_of_a_field_is_found(
        record in arbitrary_record(),
        at in any::<prop::sample::Index>(),
        shift in 1_u32..9,
    ) {
        prop_assume!(!record.fields.is_empty());
        let mut other = record.clone();
        let at = at.index(other.fields.len());
        other.fields[at].offset += shift;
        prop_assert_ne!(record.hash(), other.hash());
        prop_assert!(record.first_difference(&other).is_some());
        let received = TypeRecord::decode(&other.encode()).expect("our own encoding");
        prop_assert!(record.first_difference(&received).is_some());
    }
}
