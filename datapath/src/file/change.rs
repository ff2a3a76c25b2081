//! Changes of a file as a whole: truncate, fallocate, and whatever else replaces data by a metadata
//! operation. Alone on the inode: reads and writes of the owner wait in its gate, other cores' reads hop to
//! the owner and wait there too.

use std::cell::Cell;

use sluice_meta::client::MetaResult;
use sluice_meta::limits::FILE_BYTES_MAX;
use sluice_meta::ops::copy_range::CopyRange;
use sluice_meta::ops::{Caller, FallocateMode};
use sluice_meta::types::{Attr, Ino};

use super::{FileState, Files, meta_passes};
use crate::cache::BlockIo;
use crate::error::{FsError, FsResult};

/// Keeps other cores' reads away while it lives.
struct Exclusive<'a>(&'a FileState);

impl<'a> Exclusive<'a> {
    fn new(file: &'a FileState) -> Self {
        file.exclusive.set(file.exclusive.get() + 1);
        file.shared.set_exclusive(true);
        Exclusive(file)
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        self.0.exclusive.set(self.0.exclusive.get() - 1);
        if self.0.exclusive.get() == 0 {
            self.0.shared.set_exclusive(false);
        }
    }
}

impl<B: BlockIo + 'static> Files<B> {
    /// Sets the length of the file. The inode has been claimed on this core. `handle`: as for
    /// `Meta::truncate`.
    pub async fn truncate(
        &self,
        caller: &Caller,
        ino: Ino,
        length: u64,
        handle: bool,
    ) -> FsResult<Attr> {
        if length > FILE_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        self.change(ino, async || {
            self.meta.truncate(caller, ino, length, handle).await
        })
        .await
    }

    /// Reserves or zeroes a range. The inode has been claimed on this core.
    pub async fn fallocate(
        &self,
        ino: Ino,
        mode: FallocateMode,
        offset: u64,
        length: u64,
    ) -> FsResult<Attr> {
        if length == 0 {
            return Err(FsError::Invalid("a range of no bytes"));
        }
        if offset
            .checked_add(length)
            .is_none_or(|end| end > FILE_BYTES_MAX)
        {
            return Err(FsError::TooLarge);
        }
        self.change(ino, async || {
            self.meta.fallocate(ino, mode, offset, length).await
        })
        .await
    }

    /// Copies a range of the flushed data of a file to a file by reference; answers how many bytes. The target
    /// has been claimed on this core.
    pub async fn copy_file_range(&self, copy: &CopyRange) -> FsResult<u64> {
        let bytes = Cell::new(0);
        self.change(copy.to, async || {
            let (copied, attr) = self.meta.copy_file_range(copy).await?;
            bytes.set(copied);
            Ok(attr)
        })
        .await?;
        Ok(bytes.get())
    }

    /// Runs a metadata operation that changes the file's data, alone on the inode and after a flush. The
    /// inode has been claimed on this core. The operation answers the attributes it leaves;
    /// it is tried again after outages.
    pub async fn change(
        &self,
        ino: Ino,
        operation: impl AsyncFn() -> MetaResult<Attr>,
    ) -> FsResult<Attr> {
        let file = self.own(ino)?;
        let _exclusive = Exclusive::new(&file);
        let _gate = file.gate.write().await;
        self.flush_state(&file).await?;
        match self.retried(meta_passes, async || operation().await).await {
            Ok(attr) => {
                file.shared.committed(&attr, None);
                Ok(attr)
            }
            Err(error) => {
                if error.is_fault() {
                    // It may have been applied.
                    file.shared.forget_committed();
                }
                Err(FsError::Meta(error))
            }
        }
    }
}
