//! The page that a fork wipes.
//!
//! Every unsafe block here relies on the page being mapped once and never unmapped once published, so that a reference
//! to its word is good for ever.
#![allow(unsafe_code)]

// Not from sync: the word is private to the process, and so is the pointer to it.
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// The bytes of a cache line.
const LINE_BYTES: usize = 64;

/// The word that reads 0 in a forked child, on a page of its own that is made once and stays.
static WIPED_WORD: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

/// A word that keeps its value in this process and reads 0 in a child made by `fork`.
///
/// It takes no lock, so that a child forked in the middle of the first call can call it as well.
///
/// # Kernel
/// `MADV_WIPEONFORK`, since 4.14, on private anonymous memory only.
pub(crate) fn word_wiped_on_fork() -> Result<&'static AtomicU64, (&'static str, Errno)> {
    let known = WIPED_WORD.load(Ordering::Acquire);
    let word = if known.is_null() { publish_wiped_word()? } else { known };
    // SAFETY: not null and made by `publish_wiped_word`: a page-aligned mapping, never unmapped once published, whose
    // bytes are valid for an atomic whatever they are.
    Ok(unsafe { &*word })
}

fn publish_wiped_word() -> Result<*mut AtomicU64, (&'static str, Errno)> {
    let (page, bytes) = wiped_page()?;
    let word = page.cast::<AtomicU64>();
    match WIPED_WORD.compare_exchange(ptr::null_mut(), word, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(word),
        Err(other) => {
            unmap(page, bytes);
            Ok(other)
        }
    }
}

/// Words of a new page that a fork wipes, one a cache line, for the rest of the process.
pub(crate) fn words_wiped_on_fork() -> Result<Vec<&'static AtomicU64>, (&'static str, Errno)> {
    let (page, bytes) = wiped_page()?;
    let mut words = Vec::with_capacity(bytes / LINE_BYTES);
    for line in 0..bytes / LINE_BYTES {
        // SAFETY: the line lies in the page mapped above.
        let word = unsafe { page.byte_add(line * LINE_BYTES) }.cast::<AtomicU64>();
        // SAFETY: aligned to a cache line, mapped for the rest of the process, and any bytes are an atomic word.
        words.push(unsafe { &*word });
    }
    Ok(words)
}

/// A new page that a fork wipes.
fn wiped_page() -> Result<(*mut core::ffi::c_void, usize), (&'static str, Errno)> {
    let bytes = rustix::param::page_size();
    // SAFETY: a null hint and no MAP_FIXED, so the kernel takes an unused range and no existing memory changes.
    let page = unsafe {
        rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    };
    let page = page.map_err(|errno| ("mmap", errno))?;
    // SAFETY: exactly the range mapped above; the advice changes it in forked children only, and only we know it.
    let advised = unsafe { rustix::mm::madvise(page, bytes, Advice::LinuxWipeOnFork) };
    if let Err(errno) = advised {
        unmap(page, bytes);
        return Err(("madvise(MADV_WIPEONFORK)", errno));
    }
    Ok((page, bytes))
}

fn unmap(page: *mut core::ffi::c_void, bytes: usize) {
    // SAFETY: a mapping of exactly this range made by the caller, published to nobody, so nothing refers to it.
    let unmapped = unsafe { rustix::mm::munmap(page, bytes) };
    debug_assert!(unmapped.is_ok(), "munmap of our own page: {unmapped:?}");
}

#[cfg(test)]
pub(crate) mod testing {
    //! What only tests do: make children by a real `fork`.

    use std::io;

    /// Runs `child` in a forked child and returns its exit status: what it answered, or 255 when it was killed.
    ///
    /// The child must only do what is allowed after a fork of a process with threads: no locks, no allocation.
    pub(crate) fn status_in_forked_child(child: impl FnOnce() -> u8) -> u8 {
        // SAFETY: the child runs `child`, which its callers keep to loads, stores and system calls, and then leaves by
        // `_exit` below; it never returns into the test.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
        if pid == 0 {
            let status = child();
            // SAFETY: ends the child at once, running no handlers and no destructors.
            unsafe { libc::_exit(i32::from(status)) }
        }
        let pid = rustix::process::Pid::from_raw(pid).expect("a child's number");
        let (_, status) = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
            .expect("waitpid")
            .expect("the child ended");
        status.exit_status().map_or(255, |status| u8::try_from(status).unwrap_or(255))
    }
}
