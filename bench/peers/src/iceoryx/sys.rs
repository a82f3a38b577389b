//! The one promise to iceoryx2 that its types cannot carry.
//!
//! The unsafe block here relies on the memory of samples being shared memory that the kernel or an earlier message
//! filled, and on every bit pattern of a `u64` being a value.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use iceoryx2::prelude::ipc;
use iceoryx2::sample_mut::SampleMut;
use iceoryx2::sample_mut_uninit::SampleMutUninit;

/// Writes the first word of a loaned sample and leaves the others as they are.
#[inline]
pub(super) fn with_first_word(
    mut sample: SampleMutUninit<ipc::Service, [MaybeUninit<u64>], ()>,
    word: u64,
) -> SampleMut<ipc::Service, [u64], ()> {
    sample.payload_mut()[0].write(word);
    // SAFETY: the memory is mapped shared memory, so that every word of it holds some value (see the module's head).
    unsafe { sample.assume_init() }
}
