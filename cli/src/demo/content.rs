//! What the demo hands over: frames of a camera that does not exist, and a directory tree that does.
//!
//! Both are written straight into the memory they are sent from, whichever way that is: a frame by copying pieces of
//! one bright line, a file by `read`. Both are the same in every run, so that hashes can be compared.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Pixels of a frame.
pub(super) const WIDTH: usize = 3840;
/// Lines of a frame.
pub(super) const HEIGHT: usize = 2160;
/// Bytes of a frame: three colours.
pub(super) const FRAME_BYTES: usize = WIDTH * HEIGHT * 3;
/// Bytes of the tree in one message, at most.
pub(super) const CHUNK_BYTES: usize = 1 << 20;

/// Bytes of a tar block.
const BLOCK_BYTES: usize = 512;
/// How far the picture moves before it repeats, in pixels.
const PERIOD: usize = 256;

/// Something that can be written into memory piece by piece.
pub(super) trait Content {
    /// The most bytes of a piece.
    fn piece_bytes(&self) -> usize;

    /// Writes the next piece; 0 bytes mean that there is no more.
    fn write(&mut self, room: &mut [u8]) -> io::Result<usize>;
}

/// Frames in which a pattern of colours moves by a pixel each time.
pub(super) struct Frames {
    line: Vec<u8>,
    next: usize,
    count: usize,
}

impl Frames {
    pub(super) fn new(count: usize) -> Self {
        let pixel = |x: usize| [(x * 255 / (PERIOD - 1)) as u8, (x ^ (x >> 3)) as u8, (255 - x) as u8];
        let line = (0..WIDTH + PERIOD).flat_map(|x| pixel(x % PERIOD)).collect();
        Self { line, next: 0, count }
    }
}

impl Content for Frames {
    fn piece_bytes(&self) -> usize {
        FRAME_BYTES
    }

    fn write(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.next == self.count {
            return Ok(0);
        }
        for (y, line) in room[..FRAME_BYTES].chunks_exact_mut(WIDTH * 3).enumerate() {
            let from = (self.next + y) % PERIOD * 3;
            line.copy_from_slice(&self.line[from..from + WIDTH * 3]);
        }
        self.next += 1;
        Ok(FRAME_BYTES)
    }
}

/// A directory tree as a tar stream, cut at a length.
pub(super) struct Tree {
    root: PathBuf,
    builder: tar::Builder<Vec<u8>>,
    /// Below the root, sorted; what is to come.
    paths: VecDeque<PathBuf>,
    /// Headers and padding that wait for room.
    pending: VecDeque<u8>,
    file: Option<(File, u64)>,
    /// Zeros after the file's last block.
    padding: usize,
    left: u64,
    ended: bool,
}

impl Tree {
    pub(super) fn new(root: &Path, limit: u64) -> io::Result<Self> {
        let mut tree = Self {
            root: root.to_owned(),
            builder: tar::Builder::new(Vec::new()),
            paths: VecDeque::new(),
            pending: VecDeque::new(),
            file: None,
            padding: 0,
            left: limit,
            ended: false,
        };
        tree.enter(Path::new(""))?;
        Ok(tree)
    }

    /// Puts the entries of a directory before everything else that is to come.
    fn enter(&mut self, below: &Path) -> io::Result<()> {
        let mut names = fs::read_dir(self.root.join(below))?
            .map(|entry| entry.map(|entry| below.join(entry.file_name())))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for path in names.into_iter().rev() {
            self.paths.push_front(path);
        }
        Ok(())
    }

    /// Goes to the next entry; what cannot be read, or is neither file, directory nor link, is left out.
    fn next_entry(&mut self) {
        let Some(path) = self.paths.pop_front() else {
            self.ended = true;
            self.pending.extend([0; 2 * BLOCK_BYTES]);
            return;
        };
        let place = self.root.join(&path);
        let Ok(metadata) = fs::symlink_metadata(&place) else { return };
        let mut header = tar::Header::new_gnu();
        header.set_metadata(&metadata);
        let kind = metadata.file_type();
        let written = if kind.is_symlink() {
            fs::read_link(&place).and_then(|target| self.builder.append_link(&mut header, &path, target))
        } else if kind.is_dir() {
            self.enter(&path).and_then(|()| self.builder.append_data(&mut header, &path, io::empty()))
        } else if kind.is_file() {
            File::open(&place).and_then(|file| {
                // The header is written with the file's size, and the file's bytes come after it, read in place.
                self.builder.append_data(&mut header, &path, io::empty())?;
                let bytes = metadata.len();
                self.padding = (bytes.next_multiple_of(BLOCK_BYTES as u64) - bytes) as usize;
                self.file = Some((file, bytes));
                Ok(())
            })
        } else {
            Ok(())
        };
        let header = std::mem::take(self.builder.get_mut());
        if written.is_ok() {
            self.pending.extend(header);
        }
    }
}

impl Content for Tree {
    fn piece_bytes(&self) -> usize {
        CHUNK_BYTES
    }

    fn write(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let mut filled = 0;
        while filled < most {
            if !self.pending.is_empty() {
                filled += self.pending.read(&mut room[filled..most])?;
            } else if let Some((file, left)) = &mut self.file {
                let end = most.min(filled + usize::try_from(*left).unwrap_or(usize::MAX));
                let read = if end > filled { file.read(&mut room[filled..end])? } else { 0 };
                if read == 0 && end > filled {
                    // The file became shorter since its header was written.
                    room[filled..end].fill(0);
                    *left -= (end - filled) as u64;
                    filled = end;
                } else {
                    *left -= read as u64;
                    filled += read;
                }
                if *left == 0 {
                    self.file = None;
                    self.pending.extend(std::iter::repeat_n(0, self.padding));
                }
            } else if self.ended {
                break;
            } else {
                self.next_entry();
            }
        }
        self.left -= filled as u64;
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(content: &mut impl Content) -> Vec<u8> {
        let (mut all, mut room) = (Vec::new(), vec![0; content.piece_bytes()]);
        loop {
            let bytes = content.write(&mut room).expect("content can be written");
            if bytes == 0 {
                return all;
            }
            all.extend_from_slice(&room[..bytes]);
        }
    }

    #[test]
    fn frames_differ_from_each_other_and_not_between_runs() {
        let [first, again] = [all(&mut Frames::new(2)), all(&mut Frames::new(2))];
        assert_eq!(first.len(), 2 * FRAME_BYTES);
        assert!(first == again, "two runs draw the same frames");
        assert!(first[..FRAME_BYTES] != first[FRAME_BYTES..], "the picture moves");
    }

    #[test]
    fn a_tree_is_a_tar_stream_that_can_be_read_back() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let stream = all(&mut Tree::new(root, u64::MAX).expect("this crate can be read"));
        let mut archive = tar::Archive::new(&*stream);
        let mut seen = Vec::new();
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").into_owned();
            if entry.header().entry_type().is_file() {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).expect("the file's bytes");
                assert!(bytes == fs::read(root.join(&path)).expect("the file"), "{}", path.display());
            }
            seen.push(path);
        }
        assert!(seen.contains(&PathBuf::from("src/main.rs")) && seen.is_sorted(), "{seen:?}");
    }

    #[test]
    fn a_tree_is_cut_where_it_shall_be() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert_eq!(all(&mut Tree::new(root, 10_000).expect("this crate can be read")).len(), 10_000);
    }
}
