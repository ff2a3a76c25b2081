//! What a file may hold after a crash: everything up to its last fsync, and any part of what came later.
//!
//! A `Journaled` is a file and the writes made to it, those before its last successful fsync apart from
//! those after it. After the crash `verify` demands of every byte that it is the synced one or one that was
//! written later, and of the length that it lies between the two states.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

use crate::content::{Content, Fill};

/// A file that is written and synced, and what is promised of it.
pub struct Journaled {
    file: Option<File>,
    synced: Content,
    // Later ones lie over earlier ones, but a crash may have kept any of them, or a part of one.
    later: Vec<(Range<u64>, Fill)>,
    // All writes in order, whatever became of them.
    all: Content,
}

impl Journaled {
    /// An empty file, just made.
    pub fn new(file: File) -> Journaled {
        Journaled {
            file: Some(file),
            synced: Content::default(),
            later: Vec::new(),
            all: Content::default(),
        }
    }

    /// Its length if all went well.
    pub fn len(&self) -> u64 {
        self.all.len()
    }

    /// Whether nothing was ever written to it.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Writes a range. It is noted before the call: a write that fails may have had effect.
    pub fn write(&mut self, range: Range<u64>, fill: Fill) -> std::io::Result<()> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        fill.bytes(range.start, &mut bytes);
        self.later.push((range.clone(), fill));
        self.all.write(range.clone(), fill);
        self.open_file()?.write_all_at(&bytes, range.start)
    }

    /// Syncs: what was written so far is promised from now on.
    pub fn sync(&mut self, data_only: bool) -> std::io::Result<()> {
        let file = self.open_file()?;
        if data_only {
            file.sync_data()?;
        } else {
            file.sync_all()?;
        }
        self.synced = self.all.clone();
        self.later.clear();
        Ok(())
    }

    /// Closes it; the record stays.
    pub fn close(&mut self) {
        self.file = None;
    }

    fn open_file(&self) -> std::io::Result<&File> {
        self.file
            .as_ref()
            .ok_or_else(|| std::io::Error::other("the test closed this file"))
    }

    /// Without a crash: every write is there.
    pub fn verify_all(&self, file: &File) -> Result<()> {
        self.all.verify(file)
    }

    /// After a crash: everything synced is there, and nothing that was never written.
    pub fn verify(&self, file: &File) -> Result<()> {
        let len = file.metadata()?.len();
        ensure!(
            (self.synced.len()..=self.all.len()).contains(&len),
            "length {len}: {} was synced, {} was written",
            self.synced.len(),
            self.all.len()
        );
        let mut found = vec![0; len as usize];
        file.read_exact_at(&mut found, 0).context("reading")?;
        let mut wanted = vec![0; len as usize];
        self.synced.bytes(0, &mut wanted);
        // Those that equal the synced byte are right; of the others each needs a later write.
        let mut open: Vec<bool> = found.iter().zip(&wanted).map(|(a, b)| a != b).collect();
        for (range, fill) in &self.later {
            let range = range.start.min(len)..range.end.min(len);
            let mut bytes = vec![0; (range.end - range.start) as usize];
            fill.bytes(range.start, &mut bytes);
            for (index, byte) in bytes.into_iter().enumerate() {
                let at = range.start as usize + index;
                open[at] &= found[at] != byte;
            }
        }
        let wrong: Vec<usize> = (0..open.len()).filter(|&at| open[at]).collect();
        if let (Some(first), Some(last)) = (wrong.first(), wrong.last()) {
            let zeros = wrong.iter().filter(|&&at| found[at] == 0).count();
            bail!(
                "{} bytes between {first} and {last} are neither what was synced nor what was written later \
                 ({zeros} of them are zero; {} bytes were synced, {} writes came later)",
                wrong.len(),
                self.synced.len(),
                self.later.len()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir().expect("scratch");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.path().join("f"))
            .expect("file");
        (dir, file)
    }

    #[test]
    fn later_writes_may_be_there_or_not_and_synced_ones_must() {
        let (_dir, file) = file();
        let mut journaled = Journaled::new(file.try_clone().expect("clone"));
        journaled.write(0..10_000, Fill::Noise(1)).expect("write");
        journaled.sync(false).expect("sync");
        let mut old = vec![0; 10_000];
        file.read_exact_at(&mut old, 0).expect("read");
        journaled
            .write(5_000..12_000, Fill::Noise(2))
            .expect("write");
        journaled.verify(&file).expect("all of the later write");
        file.set_len(11_000).expect("cut");
        journaled.verify(&file).expect("a part of it");
        file.set_len(10_000).expect("cut");
        file.write_all_at(&old[5_000..], 5_000).expect("undo");
        journaled.verify(&file).expect("nothing of it");
        file.write_all_at(&[0; 16], 100).expect("damage");
        let error = journaled.verify(&file).expect_err("damaged").to_string();
        assert!(error.contains("between 100 and 115"), "{error}");
        file.set_len(9_999).expect("cut");
        let error = journaled.verify(&file).expect_err("short").to_string();
        assert!(error.contains("length 9999"), "{error}");
    }
}
