//! A store in a local directory, laid out as JuiceFS does: `<bucket>/<volume name>/<key>`.
//!
//! One [`LocalStore`] per core; nothing is shared but the directory. A put, in order:
//! 1. the directory is made if this store has not seen it yet, with those above it, and its entry in its
//!    parent is synced;
//! 2. `.jfs.<name>.tmp.<random>` is written beside the final name (blocking pool: one write call straight
//!    from the caller's pieces, no copy of ours);
//! 3. its data is synced (ring);
//! 4. it is renamed to the final name (blocking pool);
//! 5. the directory is synced. Puts that renamed into the same directory while it was being synced share the
//!    next sync: `one-sync-for-many`. A sync serves only puts whose rename came before its start.
//!
//! A put that fails or is dropped removes its temporary file; a crash may leave one, never under a final
//! name. With [`ObjectSync::None`] steps 2 and 4 are one job and nothing is synced, as JuiceFS does.
//!
//! A get of up to `RING_READ_BYTES` is a read of the ring on an open file (the last `OPEN_FILES_MAX` stay
//! open, objects being immutable), with one copy, out of the ring's buffer; larger ones are one job of the
//! blocking pool that reads every piece into its final place, because copying megabytes would stall the core.
//!
//! Failure: full disks and quotas are `NoSpace`; everything else keeps the system's words.

mod dirs;
mod open_files;
mod tmp_file;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;

use super::{Listed, ObjectStore};
use crate::error::ObjectError;
use crate::runtime::{BufferedFile, adopt, blocking};

use dirs::Dirs;
use open_files::OpenFiles;
use tmp_file::TmpFile;

/// Largest get that is served by the ring: copying it twice stays well below the longest slice a task may
/// take (100 us), and it is the cache's page.
const RING_READ_BYTES: u64 = 128 << 10;
/// Objects kept open for reading, on each core.
const OPEN_FILES_MAX: usize = 256;

/// Whether an object counts as stored only when it would survive a power failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ObjectSync {
    /// Its data and its name are synced.
    #[default]
    Full,
    /// Left to the kernel, as JuiceFS does.
    None,
}

/// See the module.
pub struct LocalStore {
    root: PathBuf,
    sync: ObjectSync,
    dirs: Dirs,
    open: OpenFiles,
}

impl LocalStore {
    /// Objects of `volume` in the directory `bucket`, which is made when the first object is.
    pub fn new(bucket: impl Into<PathBuf>, volume: &str, sync: ObjectSync) -> LocalStore {
        let bucket = bucket.into();
        // Only a process without a working directory keeps a relative path, and then nothing opens.
        let bucket = std::path::absolute(&bucket).unwrap_or(bucket);
        let root = bucket.join(volume);
        LocalStore {
            root,
            sync,
            dirs: Dirs::new(bucket, sync),
            open: OpenFiles::new(OPEN_FILES_MAX),
        }
    }

    /// Directory syncs so far: well below the number of puts when many run at a time.
    pub fn dir_syncs(&self) -> u64 {
        self.dirs.syncs()
    }

    /// Where an object is. A key that would lead out of the directory is refused.
    fn path(&self, action: &'static str, key: &str) -> Result<PathBuf, ObjectError> {
        let inside = Path::new(key)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if key.is_empty() || !inside {
            let cause = "the key leads out of the bucket".into();
            return Err(ObjectError::Io {
                action,
                key: key.to_owned(),
                cause,
            });
        }
        Ok(self.root.join(key))
    }

    /// An open file for reading, from those kept or from disk.
    async fn open_file(&self, key: &str, path: PathBuf) -> io::Result<Rc<BufferedFile>> {
        if let Some(file) = self.open.get(key) {
            return Ok(file);
        }
        let file = Rc::new(BufferedFile::open(path).await?);
        self.open.insert(key, Rc::clone(&file));
        Ok(file)
    }

    /// `range` through the ring; fewer bytes if the object ends before.
    async fn read_small(&self, key: &str, path: PathBuf, range: Range<u64>) -> io::Result<Bytes> {
        let file = self.open_file(key, path).await?;
        let wanted = (range.end - range.start) as usize;
        let first = file.read_at(range.start, wanted).await?;
        if first.len() == wanted || first.is_empty() {
            return Ok(Bytes::copy_from_slice(&first));
        }
        // The kernel may return less than there is, for instance when a signal arrives.
        let mut bytes = first.to_vec();
        while bytes.len() < wanted {
            let at = range.start + bytes.len() as u64;
            let more = file.read_at(at, wanted - bytes.len()).await?;
            if more.is_empty() {
                break;
            }
            bytes.extend_from_slice(&more);
        }
        Ok(bytes.into())
    }

    async fn get_small(
        &self,
        key: &str,
        path: PathBuf,
        range: Range<u64>,
    ) -> Result<Bytes, ObjectError> {
        let (end, wanted) = (range.end, range.end.saturating_sub(range.start));
        let read = self.read_small(key, path, range).await;
        let bytes = read.map_err(|error| failed("get", key, &error))?;
        if bytes.len() as u64 != wanted {
            return Err(too_short(key, end));
        }
        Ok(bytes)
    }

    async fn get_large(
        &self,
        key: &str,
        path: PathBuf,
        range: Range<u64>,
        piece_bytes: u64,
    ) -> Result<Vec<Bytes>, ObjectError> {
        let end = range.end;
        let read = blocking(move || read_pieces(&path, range, piece_bytes)).await;
        read.map_err(|error| failed("get", key, &error))?
            .ok_or_else(|| too_short(key, end))
    }

    /// Writes the temporary file and makes its data durable.
    async fn write_tmp(&self, path: &Path, data: Vec<Bytes>) -> io::Result<TmpFile> {
        let dir = parent(path);
        self.dirs.ensure(dir).await?;
        let written = match write_in_pool(path.to_owned(), data.clone()).await {
            // Someone removed the directory since we saw it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.dirs.forget(dir);
                self.dirs.ensure(dir).await?;
                write_in_pool(path.to_owned(), data).await
            }
            written => written,
        };
        let (tmp, file) = written?;
        if self.sync == ObjectSync::Full {
            let file = adopt(file);
            file.fdatasync().await?;
            file.close().await?;
        }
        Ok(tmp)
    }

    async fn try_put(&self, path: PathBuf, data: Vec<Bytes>) -> io::Result<()> {
        let tmp = self.write_tmp(&path, data).await?;
        let target = path.clone();
        blocking(move || tmp.rename(&target)).await?;
        if self.sync == ObjectSync::Full {
            self.dirs.sync(parent(&path)).await?;
        }
        Ok(())
    }
}

impl ObjectStore for LocalStore {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, ObjectError> {
        let path = self.path("get", key)?;
        let failed = |error| failed("get", key, &error);
        let Some(range) = range else {
            return blocking(move || std::fs::read(path))
                .await
                .map(Bytes::from)
                .map_err(failed);
        };
        let wanted = range.end.saturating_sub(range.start);
        if wanted <= RING_READ_BYTES {
            return self.get_small(key, path, range).await;
        }
        let (end, pieces) = (range.end, self.get_large(key, path, range, wanted).await?);
        pieces.into_iter().next().ok_or_else(|| too_short(key, end))
    }

    async fn get_pieces(
        &self,
        key: &str,
        range: Range<u64>,
        piece_bytes: u64,
    ) -> Result<Vec<Bytes>, ObjectError> {
        let path = self.path("get", key)?;
        let wanted = range.end.saturating_sub(range.start);
        if wanted <= piece_bytes.min(RING_READ_BYTES) {
            return Ok(vec![self.get_small(key, path, range).await?]);
        }
        self.get_large(key, path, range, piece_bytes).await
    }

    async fn put(&self, key: &str, data: Vec<Bytes>) -> Result<(), ObjectError> {
        let path = self.path("put", key)?;
        let done = self.try_put(path, data).await;
        // Only names that are written again are affected: those of tests of the store.
        self.open.remove(key);
        done.map_err(|error| failed("put", key, &error))
    }

    async fn list(&self, dir: &str) -> Result<Vec<Listed>, ObjectError> {
        let path = match dir {
            "" => self.root.clone(),
            dir => self.path("list", dir)?,
        };
        let below = dir.to_owned();
        match blocking(move || read_dir(&path, &below)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed.map_err(|error| failed("list", dir, &error)),
        }
    }

    async fn remove_dir(&self, dir: &str) -> Result<(), ObjectError> {
        let path = match dir {
            "" => self.root.clone(),
            dir => self.path("delete", dir)?,
        };
        self.dirs.forget(&path);
        match blocking(move || std::fs::remove_dir(path)).await {
            Err(error)
                if error.kind() != io::ErrorKind::NotFound
                    && error.kind() != io::ErrorKind::DirectoryNotEmpty =>
            {
                Err(failed("delete", dir, &error))
            }
            _ => Ok(()),
        }
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let path = self.path("delete", key)?;
        self.open.remove(key);
        match blocking(move || std::fs::remove_file(path)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("delete", key, &error))
            }
            _ => Ok(()),
        }
    }
}

/// What is in a directory; names that are not UTF-8 cannot be keys of ours. Blocks.
fn read_dir(path: &Path, dir: &str) -> io::Result<Vec<Listed>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let metadata = match entry.metadata() {
            // Deleted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        let on_its_way = name.starts_with('.') && name.contains(".tmp.");
        if on_its_way && metadata.is_file() {
            continue;
        }
        let key = if dir.is_empty() {
            name
        } else {
            format!("{dir}/{name}")
        };
        let modified = std::os::unix::fs::MetadataExt::mtime(&metadata);
        found.push(Listed {
            key,
            is_dir: metadata.is_dir(),
            bytes: metadata.len(),
            modified,
        });
    }
    Ok(found)
}

/// Jobs of the pool: the temporary file for `path`, written.
async fn write_in_pool(path: PathBuf, data: Vec<Bytes>) -> io::Result<(TmpFile, File)> {
    blocking(move || TmpFile::write(&path, &data)).await
}

/// `range` of a file in pieces; `None` if the file ends before. Blocks.
fn read_pieces(path: &Path, range: Range<u64>, piece_bytes: u64) -> io::Result<Option<Vec<Bytes>>> {
    let mut file = File::open(path)?;
    // Asked before there is room for it: what a caller believes does not bound a range, the file does.
    if file.metadata()?.len() < range.end {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(range.start))?;
    let mut pieces = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let wanted = piece_bytes.min(range.end - at);
        let mut piece = Vec::with_capacity(wanted as usize);
        if (&mut file).take(wanted).read_to_end(&mut piece)? as u64 != wanted {
            return Ok(None);
        }
        pieces.push(piece.into());
        at += wanted;
    }
    Ok(Some(pieces))
}

/// Every object is in some directory: its path is the root joined with a key that is not empty.
fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// A get beyond the end of an object.
pub(super) fn too_short(key: &str, end: u64) -> ObjectError {
    ObjectError::Damaged {
        key: key.to_owned(),
        cause: format!("it ends before byte {end}"),
    }
}

fn failed(action: &'static str, key: &str, error: &io::Error) -> ObjectError {
    let key = key.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound if action == "get" => ObjectError::NotFound { key },
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ObjectError::NoSpace { key },
        _ => ObjectError::Io {
            action,
            key,
            cause: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests;
