//! A buffer that starts at a page boundary, as O_DIRECT wants it.

/// How buffers are aligned.
const ALIGNMENT: usize = 4096;

/// An aligned buffer.
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// A buffer of zeros.
    pub fn new(len: usize) -> Aligned {
        let bytes = vec![0; len + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Aligned { bytes, start, len }
    }

    /// Its bytes.
    pub fn slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}
