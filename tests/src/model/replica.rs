//! The operations of the random test, performed on a real directory.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, FallocateFlags, OFlags, RenameFlags, XattrFlags, copy_file_range, fallocate, getxattr,
    removexattr, renameat_with, setxattr,
};
use rustix::io::Errno;

use super::{HANDLES, Handle, Op, OpenMode, Renaming, Value};

/// A directory and the files held open in it.
pub struct Replica {
    root: PathBuf,
    open: [Option<File>; HANDLES],
}

impl Replica {
    /// The directory `root`, nothing open.
    pub fn new(root: &Path) -> Replica {
        Replica {
            root: root.to_path_buf(),
            open: [const { None }; HANDLES],
        }
    }

    /// Sorted names in a directory.
    pub fn names(&self, path: &str) -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join(path))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Performs `op`.
    pub fn apply(&mut self, op: &Op) -> Result<Value, Errno> {
        // Every error here is one of a system call; what has no number cannot be compared.
        self.perform(op)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::PROTO))
    }

    fn perform(&mut self, op: &Op) -> std::io::Result<Value> {
        let at = |path: &String| self.root.join(path);
        match op {
            Op::Open { path, handle, mode } => {
                self.open[*handle] = Some(open(&at(path), *mode)?);
            }
            Op::Close { handle } => self.open[*handle] = None,
            Op::Write {
                handle,
                offset,
                bytes,
            } => {
                self.file(*handle)?.write_all_at(bytes, *offset as u64)?;
            }
            Op::Read {
                handle,
                offset,
                len,
            } => {
                return read(self.file(*handle)?, *offset, *len).map(Value::Bytes);
            }
            Op::SetLen { handle, len } => self.file(*handle)?.set_len(*len as u64)?,
            Op::Zero {
                handle,
                offset,
                len,
                keep_size,
            } => {
                let mode = match keep_size {
                    true => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    false => FallocateFlags::ZERO_RANGE,
                };
                fallocate(self.file(*handle)?, mode, *offset as u64, *len as u64)?;
            }
            Op::Copy {
                from,
                to,
                source,
                target,
                len,
            } => {
                let (source, target) = (*source as u64, *target as u64);
                copy(self.file(*from)?, self.file(*to)?, source, target, *len)?;
            }
            Op::Sync { handle } => self.file(*handle)?.sync_all()?,
            Op::HandleStat { handle } => return Ok(stat(&self.file(*handle)?.metadata()?)),
            Op::Mkdir { path } => {
                fs::create_dir(at(path))?;
                fs::set_permissions(at(path), fs::Permissions::from_mode(0o755))?;
            }
            Op::Symlink { path, target } => symlink(target, at(path))?,
            Op::Link { from, to } => fs::hard_link(at(from), at(to))?,
            Op::Unlink { path } => fs::remove_file(at(path))?,
            Op::Rmdir { path } => fs::remove_dir(at(path))?,
            Op::Rename { from, to, how } => {
                let flags = match how {
                    Renaming::Replace => RenameFlags::empty(),
                    Renaming::NoReplace => RenameFlags::NOREPLACE,
                    Renaming::Exchange => RenameFlags::EXCHANGE,
                };
                renameat_with(CWD, at(from), CWD, at(to), flags)?;
            }
            Op::Stat { path } => return Ok(stat(&fs::symlink_metadata(at(path))?)),
            Op::List { path } => return self.names(path).map(Value::Names),
            Op::ReadLink { path } => {
                let target = fs::read_link(at(path))?;
                return Ok(Value::Text(target.to_string_lossy().into_owned()));
            }
            Op::Chmod { path, mode } => {
                fs::set_permissions(at(path), fs::Permissions::from_mode(*mode))?;
            }
            Op::SetXattr { path, name, value } => {
                setxattr(at(path), name.as_str(), value, XattrFlags::empty())?;
            }
            Op::GetXattr { path, name } => {
                let mut value = vec![0; 1024];
                let len = getxattr(at(path), name.as_str(), &mut value[..])?;
                value.truncate(len);
                return Ok(Value::Bytes(value));
            }
            Op::RemoveXattr { path, name } => removexattr(at(path), name.as_str())?,
        }
        Ok(Value::Nothing)
    }

    fn file(&self, handle: Handle) -> std::io::Result<&File> {
        self.open[handle].as_ref().ok_or_else(|| Errno::BADF.into())
    }
}

fn open(path: &Path, mode: OpenMode) -> std::io::Result<File> {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32);
    match mode {
        OpenMode::Read => {}
        OpenMode::Create => drop(options.write(true).create(true)),
        OpenMode::CreateNew => drop(options.write(true).create_new(true)),
        OpenMode::Truncate => drop(options.write(true).create(true).truncate(true)),
    }
    // Whether the directory exists decides the mode bits to set: only a new file gets them.
    let is_new = fs::symlink_metadata(path).is_err();
    let file = options.open(path)?;
    // A directory can be opened for reading; the model, like read(2), does not take it for a file.
    if file.metadata()?.is_dir() {
        return Err(Errno::ISDIR.into());
    }
    if is_new {
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    Ok(file)
}

fn read(file: &File, offset: usize, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], (offset + filled) as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn copy(
    from: &File,
    to: &File,
    mut source: u64,
    mut target: u64,
    mut len: usize,
) -> std::io::Result<()> {
    // One file may be both: what the copy itself appends is not copied again.
    let rest = usize::try_from(from.metadata()?.len().saturating_sub(source)).unwrap_or(len);
    if rest < len {
        len = rest;
        if len == 0 {
            // Nothing to copy, still a call with an outcome.
            copy_file_range(from, Some(&mut source), to, Some(&mut target), 1)?;
        }
    }
    while len > 0 {
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), len)? {
            0 => return Ok(()),
            count => len -= count,
        }
    }
    Ok(())
}

fn stat(metadata: &fs::Metadata) -> Value {
    let (kind, size) = match metadata.file_type() {
        kind if kind.is_dir() => ('d', 0),
        kind if kind.is_symlink() => ('l', metadata.len()),
        _ => ('f', metadata.len()),
    };
    Value::Stat {
        kind,
        size,
        nlink: metadata.nlink(),
        mode: metadata.mode() & 0o7777,
    }
}
