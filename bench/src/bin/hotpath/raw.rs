//! The markers.
//!
//! There is no unsafe block here: the names are kept as they are written, so that a tracer finds them, and no other
//! function of the program has them.
#![allow(unsafe_code)]

/// Where a window begins.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn zcmi_xray_begin() {
    std::hint::black_box(());
}

/// Where it ends.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn zcmi_xray_end() {
    // Another body than the first marker's, or the compiler makes one function of the two.
    std::hint::black_box(1_u8);
}
