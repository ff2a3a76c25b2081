//! A file system in memory that says what POSIX and Linux demand, and random operations applied to it and
//! to a mount alike.
//!
//! `Model` is the one definition of right: `apply` gives the outcome (value or error number) of an `Op`.
//! `Replica` performs the same operation on a real directory. Names are few, so that operations collide:
//! renames onto names in use, files removed while open, directories that are not empty. All symlinks
//! dangle and are not followed, which keeps resolution the kernel's business. `run` draws operations from
//! a seed and stops at the first difference, with the operations that led there.

mod op;
mod replica;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;

pub use op::{Handle, Op, OpenMode, Renaming, Value};
pub use replica::Replica;

/// How many of the last operations a failure shows.
const OPERATIONS_SHOWN: usize = 25;

/// How many files are held open.
pub const HANDLES: usize = 4;

type InodeId = usize;
type Outcome<T = Value> = Result<T, Errno>;

#[derive(Clone, Debug)]
enum Body {
    File(Vec<u8>),
    Directory(BTreeMap<String, InodeId>),
    Symlink(String),
}

#[derive(Clone, Debug)]
struct Inode {
    body: Body,
    mode: u32,
    nlink: u64,
    xattrs: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
struct OpenFile {
    inode: InodeId,
    writable: bool,
}

/// The file system that is always right. Inodes are never given back: runs are short.
#[derive(Debug)]
pub struct Model {
    inodes: Vec<Inode>,
    open: [Option<OpenFile>; HANDLES],
}

const ROOT: InodeId = 0;

impl Default for Model {
    fn default() -> Model {
        let root = Inode {
            body: Body::Directory(BTreeMap::new()),
            mode: 0o755,
            nlink: 2,
            xattrs: BTreeMap::new(),
        };
        Model {
            inodes: vec![root],
            open: [None; HANDLES],
        }
    }
}

impl Model {
    /// Handles that hold an open file.
    pub fn open_handles(&self) -> Vec<Handle> {
        (0..HANDLES)
            .filter(|handle| self.open[*handle].is_some())
            .collect()
    }

    /// All handles are closed, as before an unmount.
    pub fn close_all(&mut self) {
        self.open = [None; HANDLES];
    }

    /// The outcome that `op` must have.
    pub fn apply(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Open { path, handle, mode } => self.open(path, *handle, *mode),
            Op::Close { handle } => {
                self.open[*handle] = None;
                Ok(Value::Nothing)
            }
            Op::Write {
                handle,
                offset,
                bytes,
            } => self.write(*handle, *offset, bytes),
            Op::Read {
                handle,
                offset,
                len,
            } => self.read(*handle, *offset, *len),
            Op::SetLen { handle, len } => self.set_len(*handle, *len),
            Op::Zero {
                handle,
                offset,
                len,
                keep_size,
            } => self.zero(*handle, *offset, *len, *keep_size),
            Op::Copy {
                from,
                to,
                source,
                target,
                len,
            } => self.copy(*from, *to, *source, *target, *len),
            Op::Sync { handle } => self.file(*handle).map(|_| Value::Nothing),
            Op::HandleStat { handle } => Ok(self.stat(self.handle(*handle)?.inode)),
            Op::Mkdir { path } => self.add(path, Body::Directory(BTreeMap::new()), 0o755),
            Op::Symlink { path, target } => self.add(path, Body::Symlink(target.clone()), 0o777),
            Op::Link { from, to } => self.link(from, to),
            Op::Unlink { path } => self.unlink(path),
            Op::Rmdir { path } => self.rmdir(path),
            Op::Rename { from, to, how } => self.rename(from, to, *how),
            Op::Stat { path } => Ok(self.stat(self.lookup(path)?)),
            Op::List { path } => self.list(path),
            Op::ReadLink { path } => match &self.inodes[self.lookup(path)?].body {
                Body::Symlink(target) => Ok(Value::Text(target.clone())),
                Body::File(_) | Body::Directory(_) => Err(Errno::INVAL),
            },
            Op::Chmod { path, mode } => {
                let inode = self.lookup_followed(path)?;
                self.inodes[inode].mode = *mode;
                Ok(Value::Nothing)
            }
            Op::SetXattr { path, name, value } => {
                let inode = self.lookup_followed(path)?;
                self.inodes[inode]
                    .xattrs
                    .insert(name.clone(), value.clone());
                Ok(Value::Nothing)
            }
            Op::GetXattr { path, name } => {
                let inode = self.lookup_followed(path)?;
                let value = self.inodes[inode].xattrs.get(name);
                value
                    .map(|value| Value::Bytes(value.clone()))
                    .ok_or(Errno::NODATA)
            }
            Op::RemoveXattr { path, name } => {
                let inode = self.lookup_followed(path)?;
                let removed = self.inodes[inode].xattrs.remove(name);
                removed.map(|_| Value::Nothing).ok_or(Errno::NODATA)
            }
        }
    }

    // --- names ---

    fn directory(&self, inode: InodeId) -> Outcome<&BTreeMap<String, InodeId>> {
        match &self.inodes[inode].body {
            Body::Directory(entries) => Ok(entries),
            // Every symlink dangles: what is behind it does not exist.
            Body::Symlink(_) => Err(Errno::NOENT),
            Body::File(_) => Err(Errno::NOTDIR),
        }
    }

    fn entries_mut(&mut self, inode: InodeId) -> Outcome<&mut BTreeMap<String, InodeId>> {
        match &mut self.inodes[inode].body {
            Body::Directory(entries) => Ok(entries),
            Body::Symlink(_) | Body::File(_) => Err(Errno::NOTDIR),
        }
    }

    /// The directory a path lies in, and its last name.
    fn parent<'a>(&self, path: &'a str) -> Outcome<(InodeId, &'a str)> {
        let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut inode = ROOT;
        for dir in dirs.split('/').filter(|dir| !dir.is_empty()) {
            inode = *self.directory(inode)?.get(dir).ok_or(Errno::NOENT)?;
        }
        self.directory(inode).map(|_| (inode, name))
    }

    fn lookup(&self, path: &str) -> Outcome<InodeId> {
        let (parent, name) = self.parent(path)?;
        self.directory(parent)?
            .get(name)
            .copied()
            .ok_or(Errno::NOENT)
    }

    fn lookup_followed(&self, path: &str) -> Outcome<InodeId> {
        let inode = self.lookup(path)?;
        match self.inodes[inode].body {
            Body::Symlink(_) => Err(Errno::NOENT),
            Body::File(_) | Body::Directory(_) => Ok(inode),
        }
    }

    fn is_directory(&self, inode: InodeId) -> bool {
        matches!(self.inodes[inode].body, Body::Directory(_))
    }

    fn add(&mut self, path: &str, body: Body, mode: u32) -> Outcome {
        let (parent, name) = self.parent(path)?;
        if self.directory(parent)?.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let nlink = if matches!(body, Body::Directory(_)) {
            2
        } else {
            1
        };
        self.inodes.push(Inode {
            body,
            mode,
            nlink,
            xattrs: BTreeMap::new(),
        });
        let inode = self.inodes.len() - 1;
        self.attach(parent, name, inode)?;
        Ok(Value::Nothing)
    }

    // A directory's ".." is a link of its parent.
    fn attach(&mut self, parent: InodeId, name: &str, inode: InodeId) -> Outcome<()> {
        if self.is_directory(inode) {
            self.inodes[parent].nlink += 1;
        }
        self.entries_mut(parent)?.insert(name.to_string(), inode);
        Ok(())
    }

    fn detach(&mut self, parent: InodeId, name: &str) -> Outcome<InodeId> {
        let inode = self.entries_mut(parent)?.remove(name).ok_or(Errno::NOENT)?;
        if self.is_directory(inode) {
            self.inodes[parent].nlink -= 1;
        }
        Ok(inode)
    }

    fn link(&mut self, from: &str, to: &str) -> Outcome {
        let inode = self.lookup(from)?;
        let (parent, name) = self.parent(to)?;
        if self.directory(parent)?.contains_key(name) {
            return Err(Errno::EXIST);
        }
        if self.is_directory(inode) {
            return Err(Errno::PERM);
        }
        self.inodes[inode].nlink += 1;
        self.attach(parent, name, inode)?;
        Ok(Value::Nothing)
    }

    fn unlink(&mut self, path: &str) -> Outcome {
        let inode = self.lookup(path)?;
        if self.is_directory(inode) {
            return Err(Errno::ISDIR);
        }
        let (parent, name) = self.parent(path)?;
        self.detach(parent, name)?;
        self.inodes[inode].nlink -= 1;
        Ok(Value::Nothing)
    }

    fn rmdir(&mut self, path: &str) -> Outcome {
        let inode = self.lookup(path)?;
        match &self.inodes[inode].body {
            Body::Directory(entries) if !entries.is_empty() => return Err(Errno::NOTEMPTY),
            Body::Directory(_) => {}
            Body::File(_) | Body::Symlink(_) => return Err(Errno::NOTDIR),
        }
        let (parent, name) = self.parent(path)?;
        self.detach(parent, name)?;
        Ok(Value::Nothing)
    }

    // In the order in which the kernel checks.
    fn rename(&mut self, from: &str, to: &str, how: Renaming) -> Outcome {
        let (from_parent, from_name) = self.parent(from)?;
        let (to_parent, to_name) = self.parent(to)?;
        let source = *self
            .directory(from_parent)?
            .get(from_name)
            .ok_or(Errno::NOENT)?;
        let target = self.directory(to_parent)?.get(to_name).copied();
        match (how, target) {
            (Renaming::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (Renaming::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        if to
            .strip_prefix(from)
            .is_some_and(|rest| rest.starts_with('/'))
        {
            return Err(Errno::INVAL);
        }
        if from
            .strip_prefix(to)
            .is_some_and(|rest| rest.starts_with('/'))
        {
            let exchange = how == Renaming::Exchange;
            return Err(if exchange {
                Errno::INVAL
            } else {
                Errno::NOTEMPTY
            });
        }
        if target == Some(source) {
            return Ok(Value::Nothing);
        }
        if let Some(target) = target
            && how != Renaming::Exchange
        {
            match (self.is_directory(source), &self.inodes[target].body) {
                (true, Body::File(_) | Body::Symlink(_)) => return Err(Errno::NOTDIR),
                (false, Body::Directory(_)) => return Err(Errno::ISDIR),
                (true, Body::Directory(entries)) if !entries.is_empty() => {
                    return Err(Errno::NOTEMPTY);
                }
                _ => {}
            }
        }
        self.detach(from_parent, from_name)?;
        let replaced = target
            .map(|_| self.detach(to_parent, to_name))
            .transpose()?;
        self.attach(to_parent, to_name, source)?;
        match (how, replaced) {
            (Renaming::Exchange, Some(other)) => self.attach(from_parent, from_name, other)?,
            (_, Some(gone)) if !self.is_directory(gone) => self.inodes[gone].nlink -= 1,
            _ => {}
        }
        Ok(Value::Nothing)
    }

    fn list(&self, path: &str) -> Outcome {
        let inode = self.lookup_followed(path)?;
        let names = self.directory(inode)?.keys().cloned().collect();
        Ok(Value::Names(names))
    }

    fn stat(&self, inode: InodeId) -> Value {
        let inode = &self.inodes[inode];
        let (kind, size) = match &inode.body {
            Body::File(bytes) => ('f', bytes.len()),
            // What a directory's size means is the file system's business.
            Body::Directory(_) => ('d', 0),
            Body::Symlink(target) => ('l', target.len()),
        };
        Value::Stat {
            kind,
            size: size as u64,
            nlink: inode.nlink,
            mode: inode.mode,
        }
    }

    // --- open files ---

    fn open(&mut self, path: &str, handle: Handle, mode: OpenMode) -> Outcome {
        let (parent, name) = self.parent(path)?;
        let inode = match self.directory(parent)?.get(name).copied() {
            Some(_) if mode == OpenMode::CreateNew => return Err(Errno::EXIST),
            Some(inode) => match &mut self.inodes[inode].body {
                Body::Symlink(_) => return Err(Errno::LOOP),
                Body::Directory(_) => return Err(Errno::ISDIR),
                Body::File(bytes) => {
                    if mode == OpenMode::Truncate {
                        bytes.clear();
                    }
                    inode
                }
            },
            None if mode == OpenMode::Read => return Err(Errno::NOENT),
            None => {
                self.add(path, Body::File(Vec::new()), 0o644)?;
                self.lookup(path)?
            }
        };
        self.open[handle] = Some(OpenFile {
            inode,
            writable: mode != OpenMode::Read,
        });
        Ok(Value::Nothing)
    }

    fn handle(&self, handle: Handle) -> Outcome<OpenFile> {
        self.open[handle].ok_or(Errno::BADF)
    }

    fn file(&self, handle: Handle) -> Outcome<&Vec<u8>> {
        match &self.inodes[self.handle(handle)?.inode].body {
            Body::File(bytes) => Ok(bytes),
            Body::Directory(_) | Body::Symlink(_) => Err(Errno::BADF),
        }
    }

    // `refusal`: what Linux says to a handle that is open for reading only.
    fn file_mut(&mut self, handle: Handle, refusal: Errno) -> Outcome<&mut Vec<u8>> {
        let open = self.handle(handle)?;
        match &mut self.inodes[open.inode].body {
            Body::File(bytes) if open.writable => Ok(bytes),
            Body::File(_) | Body::Directory(_) | Body::Symlink(_) => Err(refusal),
        }
    }

    fn write(&mut self, handle: Handle, offset: usize, bytes: &[u8]) -> Outcome {
        let file = self.file_mut(handle, Errno::BADF)?;
        if !bytes.is_empty() && file.len() < offset + bytes.len() {
            file.resize(offset + bytes.len(), 0);
        }
        if !bytes.is_empty() {
            file[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        Ok(Value::Nothing)
    }

    fn read(&self, handle: Handle, offset: usize, len: usize) -> Outcome {
        let file = self.file(handle)?;
        let start = offset.min(file.len());
        Ok(Value::Bytes(
            file[start..(offset + len).clamp(start, file.len())].to_vec(),
        ))
    }

    fn set_len(&mut self, handle: Handle, len: usize) -> Outcome {
        self.file_mut(handle, Errno::INVAL)?.resize(len, 0);
        Ok(Value::Nothing)
    }

    fn zero(&mut self, handle: Handle, offset: usize, len: usize, keep_size: bool) -> Outcome {
        let file = self.file_mut(handle, Errno::BADF)?;
        if !keep_size && file.len() < offset + len {
            file.resize(offset + len, 0);
        }
        let end = (offset + len).min(file.len());
        file[offset.min(end)..end].fill(0);
        Ok(Value::Nothing)
    }

    fn copy(
        &mut self,
        from: Handle,
        to: Handle,
        source: usize,
        target: usize,
        len: usize,
    ) -> Outcome {
        let Value::Bytes(bytes) = self.read(from, source, len)? else {
            return Err(Errno::BADF);
        };
        self.file_mut(to, Errno::BADF)?;
        let overlap = target < source + bytes.len() && source < target + bytes.len();
        if self.handle(from)?.inode == self.handle(to)?.inode && overlap && !bytes.is_empty() {
            return Err(Errno::INVAL);
        }
        self.write(to, target, &bytes)
    }

    // --- the whole tree ---

    /// Compares the tree below `root` with the model: names, kinds, link counts, modes and contents.
    pub fn verify(&mut self, root: &Path) -> Result<()> {
        let mut replica = Replica::new(root);
        let mut open = vec![String::new()];
        while let Some(dir) = open.pop() {
            let inode = if dir.is_empty() {
                ROOT
            } else {
                self.lookup(&dir)?
            };
            let wanted: Vec<String> = self.directory(inode)?.keys().cloned().collect();
            let found = replica.names(&dir)?;
            ensure!(
                found == wanted,
                "\"{dir}\" lists {found:?}, expected {wanted:?}"
            );
            for name in wanted {
                let path = if dir.is_empty() {
                    name
                } else {
                    format!("{dir}/{name}")
                };
                self.verify_path(&mut replica, root, &path)
                    .with_context(|| path.clone())?;
                if self.is_directory(self.lookup(&path)?) {
                    open.push(path);
                }
            }
        }
        Ok(())
    }

    fn verify_path(&mut self, replica: &mut Replica, root: &Path, path: &str) -> Result<()> {
        let mut ops = vec![
            Op::Stat { path: path.into() },
            Op::ReadLink { path: path.into() },
        ];
        let names = self.inodes[self.lookup(path)?].xattrs.keys().cloned();
        ops.extend(names.map(|name| Op::GetXattr {
            path: path.into(),
            name,
        }));
        for op in ops {
            let (wanted, found) = (self.apply(&op), replica.apply(&op));
            ensure!(found == wanted, "{op:?}: {found:?}, expected {wanted:?}");
        }
        if let Body::File(wanted) = &self.inodes[self.lookup(path)?].body {
            let found = std::fs::read(root.join(path))?;
            if let Some(at) = first_difference(&found, wanted) {
                bail!(
                    "{} bytes, expected {}; differs at {at}",
                    found.len(),
                    wanted.len()
                );
            }
        }
        Ok(())
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let common = a.len().min(b.len());
    (0..common)
        .find(|&at| a[at] != b[at])
        .or((a.len() != b.len()).then_some(common))
}

/// Applies `count` random operations to the model and to the directory `root`; every outcome and, at the
/// end, the whole tree must be equal.
pub fn run(model: &mut Model, root: &Path, random: &mut fastrand::Rng, count: usize) -> Result<()> {
    let mut replica = Replica::new(root);
    let mut history = Vec::new();
    let mut step = |model: &mut Model, op: Op| -> Result<()> {
        let (wanted, found) = (model.apply(&op), replica.apply(&op));
        history.push(format!("{op:?} -> {wanted:?}"));
        if found == wanted {
            return Ok(());
        }
        let from = history.len().saturating_sub(OPERATIONS_SHOWN);
        bail!(
            "operation {}: {found:?}, expected {wanted:?}{}\nlast operations:\n{}",
            history.len(),
            op::byte_difference(&found, &wanted),
            history[from..].join("\n")
        )
    };
    for _ in 0..count {
        let op = Op::random(random, &model.open_handles());
        step(model, op)?;
    }
    model.close_all();
    drop(replica);
    model
        .verify(root)
        .with_context(|| format!("after {count} operations"))
}

#[cfg(test)]
mod tests {
    use super::*;

    // The model against the file system of the machine: it must demand nothing that Linux does not.
    #[test]
    fn the_local_file_system_does_what_the_model_says() {
        for seed in 0..6 {
            let dir = tempfile::tempdir().expect("scratch");
            let (mut model, mut random) = (Model::default(), fastrand::Rng::with_seed(seed));
            for part in 0..3 {
                run(&mut model, dir.path(), &mut random, 700)
                    .unwrap_or_else(|error| panic!("seed {seed}, part {part}: {error:#}"));
            }
        }
    }
}
