//! A temporary file that becomes an object or disappears.
//!
//! Made and renamed by jobs of the blocking pool, held by the put in between. Whoever drops it without
//! renaming removes the file: the pool's thread when a job fails or its put was dropped meanwhile, the core
//! (one `unlink`, rare) when the put is dropped between jobs or its sync fails.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// Longest part of the object's name in the temporary one (JuiceFS's rule; names are at most 255 bytes).
const BASE_BYTES_MAX: usize = 200;
/// Pieces of one write call; the kernel takes up to 1024.
const PIECES_MAX: usize = 64;

/// See the module.
pub(super) struct TmpFile {
    path: PathBuf,
    renamed: bool,
}

impl TmpFile {
    /// Writes `data` beside `target`. Blocks.
    pub(super) fn write(target: &Path, data: &[Bytes]) -> io::Result<(TmpFile, File)> {
        let path = tmp_path(target);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)?;
        let tmp = TmpFile {
            path,
            renamed: false,
        };
        write_all(&mut file, data)?;
        Ok((tmp, file))
    }

    /// Gives the file its final name. Blocks.
    pub(super) fn rename(mut self, target: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, target)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for TmpFile {
    fn drop(&mut self) {
        if !self.renamed
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a temporary object stays behind");
        }
    }
}

fn tmp_path(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let base = &name[..name.floor_char_boundary(BASE_BYTES_MAX)];
    target.with_file_name(format!(".jfs.{base}.tmp.{}", fastrand::u64(..)))
}

fn write_all(file: &mut File, data: &[Bytes]) -> io::Result<()> {
    let mut pieces: Vec<IoSlice<'_>> = data.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut left = &mut pieces[..];
    // Empty pieces in front would look like a write of nothing.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        let now = left.len().min(PIECES_MAX);
        match file.write_vectored(&left[..now]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hidden_and_bounded() {
        let check = |name: &str, start: &str| {
            let path = tmp_path(&Path::new("/d").join(name));
            let tmp = path.file_name().unwrap().to_str().unwrap();
            let random = tmp.strip_prefix(start).unwrap_or_else(|| panic!("{tmp}"));
            assert!(random.parse::<u64>().is_ok(), "{tmp}");
            assert!(tmp.len() <= 255);
            assert_eq!(path.parent(), Some(Path::new("/d")));
        };
        check("1_0_7", ".jfs.1_0_7.tmp.");
        let long = "x".repeat(250);
        check(&long, &format!(".jfs.{}.tmp.", "x".repeat(200)));
        let wide = "é".repeat(110);
        check(&wide, &format!(".jfs.{}.tmp.", "é".repeat(100)));
    }

    #[test]
    fn pieces_are_written_in_order() {
        let check = |pieces: Vec<Vec<u8>>| {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("object");
            let data: Vec<Bytes> = pieces.iter().cloned().map(Bytes::from).collect();
            let (tmp, _) = TmpFile::write(&target, &data).unwrap();
            assert!(!target.exists());
            tmp.rename(&target).unwrap();
            assert_eq!(std::fs::read(&target).unwrap(), pieces.concat());
        };
        check(vec![]);
        check(vec![vec![]]);
        check(vec![vec![], vec![1, 2], vec![], vec![3]]);
        check((0..200).map(|n| vec![n as u8; 100]).collect());
    }

    #[test]
    fn dropped_means_removed() {
        let dir = tempfile::tempdir().unwrap();
        let written = TmpFile::write(&dir.path().join("object"), &[Bytes::from_static(b"x")]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        drop(written);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
