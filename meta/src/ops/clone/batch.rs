//! The entries of one directory, copied many at a time.
//!
//! Round trips of a batch: one read of the source's entries and of what is in the copy already, one or two
//! more for extended attributes, link targets and chunk lists, one for each file of more than
//! [`limits::CLONE_CHUNKS_NAMED`] chunks; one commit. An entry that changes between read and commit fails the
//! commit; after [`limits::CLONE_BATCH_ATTEMPTS`] the batch is halved, so that the lively entry ends up alone.

use std::cell::RefCell;

use bytes::Bytes;

use super::{Level, Run};
use crate::client::{Attempt, Meta, MetaResult};
use crate::engine::{AttrFields, Check, Engine, Item, Key, Record, Scan, Write};
use crate::error::{EngineError, MetaError};
use crate::limits;
use crate::ops::credentials;
use crate::ops::plan::{Applied, Plan};
use crate::ops::rules;
use crate::quota::Usage;
use crate::types::{
    Attr, CHUNK_BYTES, ChunkIndex, Dentry, DirStat, FileKind, Ino, Name, Slice, SliceId,
};

/// A directory and its copy.
pub(super) struct Copies<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) source: Ino,
    pub(super) copy: Ino,
}

/// Where a copy gets its name.
pub(super) struct Destination {
    pub(super) parent: Ino,
    pub(super) ino: Ino,
}

/// Something to copy, as it was read.
pub(super) struct Source {
    name: Name,
    ino: Ino,
    pub(super) attr: Attr,
    xattrs: Vec<(Name, Bytes)>,
    target: Option<Bytes>,
    chunks: Vec<(ChunkIndex, Vec<Slice>)>,
}

/// What the copy of a directory relies on: what it takes over, not times and links.
pub(super) const fn dir_fields() -> AttrFields {
    AttrFields::OWNER
        .and(AttrFields::FLAGS)
        .and(AttrFields::INHERITED)
}

impl Source {
    /// Relies on the source being as it was read.
    pub(super) fn check(&self, plan: &mut Plan) {
        let is_dir = self.attr.kind == FileKind::Directory;
        plan.check(Check::Attr {
            ino: self.ino,
            fields: if is_dir {
                dir_fields()
            } else {
                AttrFields::ALL
            },
            expect: self.attr.clone(),
        });
        for (index, slices) in &self.chunks {
            plan.check(Check::Chunk {
                ino: self.ino,
                index: *index,
                prefix: slices.clone(),
                whole: true,
            });
        }
    }

    /// Gives the copy its name.
    pub(super) fn link(&self, plan: &mut Plan, to: &Destination) {
        plan.write(Write::InsertDentry {
            parent: to.parent,
            name: self.name.clone(),
            dentry: Dentry {
                kind: self.attr.kind,
                ino: to.ino,
            },
        });
    }

    /// Makes the copy.
    pub(super) fn write(self, plan: &mut Plan, ino: Ino, made: Attr) {
        let kind = made.kind;
        plan.write(Write::InsertAttr { ino, attr: made });
        for (name, value) in self.xattrs {
            plan.write(Write::PutXattr { ino, name, value });
        }
        if let Some(target) = self.target {
            plan.write(Write::PutSymlink { ino, target });
        }
        if kind == FileKind::Directory {
            plan.write(Write::InitDirStat(ino));
        }
        for (index, slices) in self.chunks {
            for slice in slices.iter().filter(|slice| slice.id != SliceId::HOLE) {
                plan.write(Write::AddSliceRef {
                    id: slice.id,
                    size: slice.size,
                    delta: 1,
                });
            }
            plan.write(Write::AppendChunk { ino, index, slices });
        }
    }

    fn chunk_count(&self) -> u64 {
        chunk_count(&self.attr)
    }
}

fn chunk_count(attr: &Attr) -> u64 {
    match attr.kind {
        FileKind::File => attr.length.div_ceil(CHUNK_BYTES),
        _ => 0,
    }
}

/// Whether the chunks of a file are few enough to be asked for one by one.
fn is_short(attr: &Attr) -> bool {
    chunk_count(attr) <= limits::CLONE_CHUNKS_NAMED
}

/// A batch as its attempts see it.
struct Batch {
    names: Vec<Name>,
    /// Numbers taken for copies by attempts that lost.
    spare: RefCell<Vec<Ino>>,
    tries: std::cell::Cell<u32>,
}

/// What an attempt came to.
enum Copied {
    /// So many of the names are done.
    Some(usize),
    /// It keeps losing: in smaller steps, please.
    Split,
}

impl Meta {
    /// Copies these entries. Sub-directories are made and added to `below`. Entries that are gone, or in the
    /// copy already (a listing may show one twice), are passed over.
    pub(super) async fn clone_entries(
        &self,
        copies: &Copies<'_>,
        names: Vec<Name>,
        below: &mut Vec<Level>,
    ) -> MetaResult<()> {
        let mut todo = vec![names];
        while let Some(mut names) = todo.pop() {
            if names.is_empty() {
                continue;
            }
            // A page may be somewhat longer than asked for.
            if names.len() > limits::CLONE_BATCH {
                let rest = names.split_off(limits::CLONE_BATCH);
                todo.push(rest);
            }
            let batch = Batch {
                names,
                spare: RefCell::default(),
                tries: Default::default(),
            };
            let (copied, made) = self
                .run(async |_| self.try_clone_batch(copies, &batch).await)
                .await?;
            below.extend(made);
            let mut names = batch.names;
            let rest = match copied {
                Copied::Some(done) => names.split_off(done.min(names.len())),
                Copied::Split => {
                    let second = names.split_off(names.len() / 2);
                    todo.push(second);
                    names
                }
            };
            todo.push(rest);
        }
        Ok(())
    }

    async fn try_clone_batch(
        &self,
        copies: &Copies<'_>,
        batch: &Batch,
    ) -> MetaResult<Attempt<(Copied, Vec<Level>)>> {
        let tries = batch.tries.replace(batch.tries.get() + 1);
        if tries >= limits::CLONE_BATCH_ATTEMPTS && batch.names.len() > 1 {
            return Ok(Attempt::Done((Copied::Split, Vec::new())));
        }
        let (copy_attr, found, taken) = self.read_entries(copies, &batch.names).await?;
        let sources = self.read_sources(found).await?;
        let tree = copies.run.tree;
        for source in &sources {
            if source.attr.kind != FileKind::Directory {
                self.permits(tree.who, &source.attr, credentials::READ)
                    .await?;
            }
        }
        let space: i64 = sources
            .iter()
            .map(|source| rules::charged_space(&source.attr))
            .sum();
        let inodes = sources.len() as u64;
        self.check_room(space, inodes.cast_signed())?;

        let (mut numbers, mut made) = (self.numbers(batch, sources.len()).await?, Vec::new());
        let now = self.now();
        let mut plan = Plan::default();
        plan.check(Check::Attr {
            ino: copies.copy,
            fields: AttrFields::PARENT,
            expect: copy_attr,
        });
        let (mut stat, mut subdirs) = (DirStat::default(), 0);
        for source in sources {
            let Some(ino) = numbers.pop() else { break };
            source.check(&mut plan);
            plan.check(Check::Dentry {
                parent: copies.copy,
                name: source.name.clone(),
                expect: None,
            });
            let to = Destination {
                parent: copies.copy,
                ino,
            };
            source.link(&mut plan, &to);
            let attr = tree.made(&source.attr, copies.copy, now);
            self.check_owner(
                &attr,
                Usage {
                    space,
                    inodes: inodes.cast_signed(),
                },
            )?;
            plan.charge(&attr, rules::charged_space(&attr), 1);
            let entry = rules::entry_stat(Some(&attr));
            stat.length += entry.length;
            stat.space += entry.space;
            stat.inodes += entry.inodes;
            if attr.kind == FileKind::Directory {
                subdirs += 1;
                let source = source.ino;
                made.push(Level { source, copy: ino });
            }
            source.write(&mut plan, ino, attr);
        }
        if inodes == 0 {
            return Ok(Attempt::Done((Copied::Some(taken), made)));
        }
        let ino = copies.copy;
        plan.write(Write::AddDirStat { ino, delta: stat });
        if subdirs > 0 {
            plan.write(Write::PatchDir {
                ino,
                time: None,
                nlink: subdirs,
            });
        }
        Ok(match self.apply(plan).await? {
            Applied::Committed { .. } => {
                batch.spare.take();
                copies.run.count(inodes, space);
                Attempt::Done((Copied::Some(taken), made))
            }
            Applied::Conflict { ino, .. } => Attempt::Conflict(ino),
        })
    }

    /// Reads the copy's record, and the entries among `names` that are to be copied now: as many as their
    /// chunks allow. Answers also how many of the names that settles.
    async fn read_entries(
        &self,
        copies: &Copies<'_>,
        names: &[Name],
    ) -> MetaResult<(Attr, Vec<(Name, Ino)>, usize)> {
        let mut keys = vec![Key::Attr(copies.copy)];
        for name in names {
            let (parent, name) = (copies.source, name.clone());
            keys.push(Key::Entry {
                parent,
                name: name.clone(),
            });
            let parent = copies.copy;
            keys.push(Key::Dentry { parent, name });
        }
        let mut answers = self.fetch(&keys).await?;
        // Gone: somebody took the tree for abandoned.
        let copy_attr = answers.attr()?.ok_or(MetaError::NotFound)?;
        let (mut found, mut chunks) = (Vec::new(), 0);
        for (index, name) in names.iter().enumerate() {
            let entry = answers.entry()?;
            let present = answers.dentry()?;
            let Some((dentry, Some(attr))) = entry.filter(|_| present.is_none()) else {
                continue;
            };
            chunks += chunk_count(&attr);
            if chunks > limits::CLONE_BATCH_CHUNKS && !found.is_empty() {
                return Ok((copy_attr, found, index));
            }
            found.push((name.clone(), dentry.ino));
        }
        Ok((copy_attr, found, names.len()))
    }

    /// Reads all that makes up these inodes; those that are gone are left out.
    pub(super) async fn read_sources(&self, wanted: Vec<(Name, Ino)>) -> MetaResult<Vec<Source>> {
        let keys = wanted
            .iter()
            .flat_map(|&(_, ino)| [Key::Attr(ino), Key::XattrNames(ino), Key::Symlink(ino)]);
        let keys: Vec<Key> = keys.collect();
        let mut answers = self.fetch(&keys).await?;
        let (mut sources, mut keys) = (Vec::new(), Vec::new());
        for (name, ino) in wanted {
            let attr = answers.attr()?;
            let names = answers.record().map(Record::names).transpose()?;
            let target = answers.record().map(Record::bytes).transpose()?;
            let Some(attr) = attr else { continue };
            if attr.kind == FileKind::Symlink && target.is_none() {
                return Err(damaged(ino));
            }
            let xattrs: Vec<_> = names.into_iter().flatten().collect();
            keys.extend(xattrs.iter().map(|name| Key::Xattr {
                ino,
                name: name.clone(),
            }));
            if is_short(&attr) {
                let indexes = 0..u32::try_from(chunk_count(&attr)).unwrap_or(u32::MAX);
                keys.extend(indexes.map(|index| Key::Chunk {
                    ino,
                    index: ChunkIndex(index),
                }));
            }
            let target = target.filter(|_| attr.kind == FileKind::Symlink);
            sources.push(Source {
                name,
                ino,
                attr,
                xattrs: xattrs
                    .into_iter()
                    .map(|name| (name, Bytes::new()))
                    .collect(),
                target,
                chunks: Vec::new(),
            });
        }
        self.read_values(&mut sources, &keys).await?;
        Ok(sources)
    }

    /// Fills in values of extended attributes and chunk lists; `keys` asks for them in the order of `sources`.
    async fn read_values(&self, sources: &mut [Source], keys: &[Key]) -> MetaResult<()> {
        let mut answers = match keys.is_empty() {
            true => None,
            false => Some(self.fetch(keys).await?),
        };
        let mut next = || answers.as_mut().and_then(|answers| answers.record());
        for source in sources.iter_mut() {
            let mut xattrs = Vec::with_capacity(source.xattrs.len());
            for (name, _) in std::mem::take(&mut source.xattrs) {
                // Removed since its name was read: then the copy has none either.
                if let Some(value) = next().map(Record::bytes).transpose()? {
                    xattrs.push((name, value));
                }
            }
            source.xattrs = xattrs;
            if !is_short(&source.attr) {
                continue;
            }
            for index in 0..u32::try_from(source.chunk_count()).unwrap_or(u32::MAX) {
                let slices = next().map(Record::slices).transpose()?.unwrap_or_default();
                if !slices.is_empty() {
                    source.chunks.push((ChunkIndex(index), slices));
                }
            }
        }
        for source in sources.iter_mut().filter(|it| !is_short(&it.attr)) {
            source.chunks = self.read_chunks(source.ino, &source.attr).await?;
        }
        Ok(())
    }

    /// All chunk lists of a file within its length.
    async fn read_chunks(
        &self,
        ino: Ino,
        attr: &Attr,
    ) -> MetaResult<Vec<(ChunkIndex, Vec<Slice>)>> {
        let length = attr.length;
        let scan = Scan::Chunks { ino, length };
        let mut chunks = std::collections::BTreeMap::new();
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&scan, cursor.as_ref(), limits::CHUNK_PAGE)
                .await?;
            for item in page.items {
                if let Item::Chunk { index, slices } = item
                    && u64::from(index.0) < chunk_count(attr)
                {
                    chunks.insert(index, slices);
                }
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(chunks.into_iter().collect()),
            }
        }
    }

    /// Numbers for `count` copies.
    async fn numbers(&self, batch: &Batch, count: usize) -> MetaResult<Vec<Ino>> {
        let mut numbers = batch.spare.borrow().clone();
        while numbers.len() < count {
            numbers.push(self.alloc_inode().await?);
        }
        batch.spare.replace(numbers.clone());
        Ok(numbers)
    }
}

fn damaged(ino: Ino) -> MetaError {
    MetaError::Engine(EngineError::Corrupt {
        record: format!("symlink {ino}"),
        cause: "its target is missing".into(),
    })
}
