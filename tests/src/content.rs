//! The bytes a file must hold, without holding them: layers of deterministic fills.
//!
//! A `Content` follows a file through writes, truncations and holes. Any range of it can be produced at
//! any time, so files of any size are checked byte for byte and a difference is reported by offset.
//! Both compressible and incompressible bytes are written, since stores compress.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

/// How much is compared at a time.
const WINDOW_BYTES: u64 = 1 << 20;

/// What a range is filled with. The bytes depend on the seed and on the offset in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    /// Zeros: a hole.
    Hole,
    /// Bytes that do not compress.
    Noise(u64),
    /// Bytes that compress well.
    Text(u64),
}

impl Fill {
    /// Writes the fill's bytes for `offset` onwards into `buffer`.
    pub fn bytes(self, offset: u64, buffer: &mut [u8]) {
        match self {
            Fill::Hole => buffer.fill(0),
            Fill::Noise(seed) => words(offset, buffer, |word| mix(seed ^ word.wrapping_mul(3))),
            // Sixteen words over and over, with the seed in them.
            Fill::Text(seed) => words(offset, buffer, |word| {
                u64::from_le_bytes(*b"abcd\n12 ")
                    ^ (mix(seed ^ (word & 15)) & 0x0f0f_0f0f_0f0f_0f0f)
            }),
        }
    }
}

// One word of eight bytes at a time; `offset` need not be aligned.
fn words(offset: u64, buffer: &mut [u8], word_at: impl Fn(u64) -> u64) {
    let skip = (offset % 8) as usize;
    let mut filled = 0;
    let mut word = offset / 8;
    while filled < buffer.len() {
        let bytes = word_at(word).to_le_bytes();
        let from = if filled == 0 { skip } else { 0 };
        let count = (8 - from).min(buffer.len() - filled);
        buffer[filled..filled + count].copy_from_slice(&bytes[from..from + count]);
        filled += count;
        word += 1;
    }
}

/// The finalizer of splitmix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What a file holds.
#[derive(Clone, Default, Debug)]
pub struct Content {
    len: u64,
    // Later layers lie over earlier ones; under all of them are zeros.
    layers: Vec<(Range<u64>, Fill)>,
}

impl Content {
    /// The file's length.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A write of `range`.
    pub fn write(&mut self, range: Range<u64>, fill: Fill) {
        self.len = self.len.max(range.end);
        self.layers.push((range, fill));
    }

    /// A hole in what is there; the length stays.
    pub fn punch(&mut self, range: Range<u64>) {
        self.layers.push((
            range.start..range.end.min(self.len).max(range.start),
            Fill::Hole,
        ));
    }

    /// A new length: what lies beyond is gone for good.
    pub fn truncate(&mut self, len: u64) {
        self.len = len;
        for (range, _) in &mut self.layers {
            range.end = range.end.min(len).max(range.start);
        }
        self.layers
            .retain(|(range, _)| range.start < range.end && range.start < len);
    }

    /// The bytes from `offset` on.
    pub fn bytes(&self, offset: u64, buffer: &mut [u8]) {
        buffer.fill(0);
        let window = offset..offset + buffer.len() as u64;
        for (range, fill) in &self.layers {
            let start = range.start.max(window.start);
            let end = range.end.min(window.end);
            if start < end {
                let at = (start - offset) as usize..(end - offset) as usize;
                fill.bytes(start, &mut buffer[at]);
            }
        }
    }

    /// Reads the whole file and compares.
    pub fn verify(&self, file: &File) -> Result<()> {
        let len = file.metadata()?.len();
        ensure!(len == self.len, "length {len}, expected {}", self.len);
        let mut found = vec![0; WINDOW_BYTES as usize];
        let mut wanted = vec![0; WINDOW_BYTES as usize];
        let mut offset = 0;
        while offset < len {
            let count = WINDOW_BYTES.min(len - offset) as usize;
            file.read_exact_at(&mut found[..count], offset)
                .with_context(|| format!("reading {count} bytes at {offset}"))?;
            self.bytes(offset, &mut wanted[..count]);
            if found[..count] != wanted[..count] {
                bail!(
                    "{}",
                    describe_difference(offset, &found[..count], &wanted[..count])
                );
            }
            offset += count as u64;
        }
        // Nothing may follow the last byte.
        ensure!(
            file.read_at(&mut found[..1], len)? == 0,
            "there are bytes beyond the length {len}"
        );
        Ok(())
    }
}

fn describe_difference(offset: u64, found: &[u8], wanted: &[u8]) -> String {
    let differing: Vec<usize> = (0..found.len())
        .filter(|&at| found[at] != wanted[at])
        .collect();
    let (first, last) = (differing[0], differing[differing.len() - 1]);
    let zeros = differing.iter().filter(|&&at| found[at] == 0).count();
    format!(
        "{} bytes differ between {} and {} ({zeros} of them read as zero); first: {:#04x}, expected {:#04x}",
        differing.len(),
        offset + first as u64,
        offset + last as u64,
        found[first],
        wanted[first],
    )
}

/// An open file and what it must hold, changed together.
pub struct Subject {
    /// The file, open for reading and writing.
    pub file: File,
    /// What it must hold.
    pub content: Content,
}

impl Subject {
    /// A subject over a file that is empty.
    pub fn new(file: File) -> Subject {
        Subject {
            file,
            content: Content::default(),
        }
    }

    /// Writes `range` in pieces of `piece_bytes`.
    pub fn write(&mut self, range: Range<u64>, fill: Fill, piece_bytes: u64) -> Result<()> {
        let mut buffer = vec![0; piece_bytes.min(range.end - range.start) as usize];
        let mut offset = range.start;
        while offset < range.end {
            let count = piece_bytes.min(range.end - offset) as usize;
            fill.bytes(offset, &mut buffer[..count]);
            self.file
                .write_all_at(&buffer[..count], offset)
                .with_context(|| format!("writing {count} bytes at {offset}"))?;
            offset += count as u64;
        }
        self.content.write(range, fill);
        Ok(())
    }

    /// Sets the length.
    pub fn truncate(&mut self, len: u64) -> Result<()> {
        self.file
            .set_len(len)
            .with_context(|| format!("truncating to {len}"))?;
        self.content.truncate(len);
        Ok(())
    }

    /// Punches a hole.
    pub fn punch(&mut self, range: Range<u64>) -> Result<()> {
        use rustix::fs::FallocateFlags;
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, mode, range.start, range.end - range.start)
            .with_context(|| format!("punching {range:?}"))?;
        self.content.punch(range);
        Ok(())
    }

    /// Compares the file with what it must hold.
    pub fn verify(&self) -> Result<()> {
        self.content.verify(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_window_shows_the_same_bytes() {
        for fill in [Fill::Noise(7), Fill::Text(7)] {
            let mut whole = vec![0; 100];
            fill.bytes(0, &mut whole);
            for start in 0..20 {
                let mut part = vec![0; 50];
                fill.bytes(start, &mut part);
                assert_eq!(part[..], whole[start as usize..start as usize + 50]);
            }
        }
    }

    #[test]
    fn layers_follow_writes_holes_and_truncations() {
        let mut content = Content::default();
        content.write(0..10, Fill::Noise(1));
        content.write(5..8, Fill::Noise(2));
        content.punch(6..7);
        content.truncate(9);
        content.truncate(12);
        let (mut one, mut two, mut seen) = ([0; 12], [0; 12], [0; 12]);
        Fill::Noise(1).bytes(0, &mut one);
        Fill::Noise(2).bytes(0, &mut two);
        content.bytes(0, &mut seen);
        assert_eq!(seen[..5], one[..5]);
        assert_eq!(seen[5], two[5]);
        assert_eq!(seen[6], 0);
        assert_eq!(seen[7], two[7]);
        assert_eq!(seen[8], one[8]);
        assert_eq!(seen[9..], [0, 0, 0]);
        assert_eq!(content.len(), 12);
    }

    #[test]
    fn a_wrong_byte_is_found_and_named() {
        let dir = tempfile::tempdir().expect("scratch");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.path().join("f"))
            .expect("file");
        let mut subject = Subject::new(file);
        subject
            .write(0..3_000_000, Fill::Noise(3), 65536)
            .expect("write");
        subject.verify().expect("equal");
        subject
            .file
            .write_all_at(&[0, 0, 0], 2_000_000)
            .expect("damage");
        let error = subject.verify().expect_err("differs").to_string();
        assert!(error.contains("2000000"), "{error}");
    }
}
