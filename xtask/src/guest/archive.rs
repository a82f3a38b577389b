//! The archive that a kernel unpacks into its first file system: cpio in its "newc" form.
//!
//! ```text
//! each entry │ "070701" │ 13 numbers of 8 hex digits │ name, NUL │ to 4 │ content │ to 4 │
//! the last   │ the same, named TRAILER!!! and empty                                    │
//! ```
//!
//! # Sources
//! Documentation/driver-api/early-userspace/buffer-format.rst of Linux.

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// An archive in the making.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// Adds a directory, with those above it; once.
    pub(super) fn directory(&mut self, path: &str) {
        if path.is_empty() || !self.directories.insert(path.into()) {
            return;
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.entry(path, DIRECTORY, &[]);
    }

    /// Adds a file, with the directories above it.
    pub(super) fn file(&mut self, path: &str, content: &[u8], program: bool) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.entry(path, if program { PROGRAM } else { FILE }, content);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        // Number, mode, user, group, links, time, size, four numbers of devices, bytes of the name, checksum.
        let (size, name_bytes) = (content.len() as u32, name.len() as u32 + 1);
        let numbers = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_bytes, 0];
        self.bytes.extend_from_slice(b"070701");
        self.bytes.extend(numbers.iter().flat_map(|number| format!("{number:08x}").into_bytes()));
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entries of an archive: names, modes and contents.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(&bytes[..6], b"070701");
            let number = |index: usize| {
                let digits = str::from_utf8(&bytes[6 + 8 * index..][..8]).expect("digits");
                u32::from_str_radix(digits, 16).expect("a number")
            };
            let (mode, size, name_bytes) = (number(1), number(6) as usize, number(11) as usize);
            let name = String::from_utf8(bytes[110..][..name_bytes - 1].to_vec()).expect("a name");
            let begin = (110 + name_bytes).next_multiple_of(4);
            entries.push((name, mode, bytes[begin..][..size].to_vec()));
            bytes = &bytes[(begin + size).next_multiple_of(4)..];
        }
        entries
    }

    #[test]
    fn what_was_added_is_in_the_archive_with_the_directories_above_it() {
        let mut archive = Archive::default();
        archive.directory("proc");
        archive.file("lib/a/one", b"12345", false);
        archive.file("lib/a/two", b"", true);
        let entries = read(&archive.finish());
        let names: Vec<&str> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["proc", "lib", "lib/a", "lib/a/one", "lib/a/two", "TRAILER!!!"]);
        assert_eq!((entries[3].1, entries[3].2.as_slice()), (FILE, &b"12345"[..]));
        assert_eq!(entries[4].1, PROGRAM);
    }
}
