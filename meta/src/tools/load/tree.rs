//! A tree of entries, from text to records, in one pass.
//!
//! A file's records are complete at the end of its own object, a directory's at the end of what is in it, since
//! its links and statistics are counted on the way. An inode with several links is held back until all its
//! entries are known.

use std::collections::{BTreeMap, HashMap};

use super::LoadError;
use super::batch::Batch;
use super::reader::JsonReader;
use crate::engine::{Engine, Key, Record, Write};
use crate::error::EngineError;
use crate::tools::dump::shape::{DumpedAcl, DumpedAttr, DumpedChunk, DumpedXattr, unescape};
use crate::tools::number_set::NumberSet;
use crate::types::{
    AclRule, Attr, ChunkIndex, Dentry, DirStat, FileKind, Ino, Name, QuotaKey, Slice, SliceId,
    align_4k,
};

/// Bytes charged and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) space: i64,
    pub(super) inodes: i64,
}

impl Usage {
    /// This usage, added to a quota.
    pub(super) fn charge(self, key: QuotaKey) -> Write {
        Write::AddQuotaUsage {
            key,
            space: self.space,
            inodes: self.inodes,
        }
    }

    fn add(&mut self, other: Usage) {
        self.space = self.space.saturating_add(other.space);
        self.inodes += other.inodes;
    }
}

/// An inode with several links, or one that once had.
struct Links {
    attr: Attr,
    /// Its record is in the store already.
    stored: bool,
    parents: BTreeMap<Ino, u32>,
}

/// What an entry's object said so far.
struct Frame {
    /// `None` for the top of a tree.
    name: Option<Name>,
    parent: Ino,
    /// Of the entry, once its attributes are read.
    own: Option<Own>,
    /// The next key is the object's first; then the same of its `entries`.
    first: bool,
    first_entry: bool,
    in_entries: bool,
    stat: DirStat,
    subdirs: u32,
    /// Of everything below.
    below: Usage,
}

struct Own {
    ino: Ino,
    attr: Attr,
    /// Another link of an inode whose records are written already.
    again: bool,
    links: u32,
}

impl Frame {
    fn new(name: Option<Name>, parent: Ino) -> Frame {
        Frame {
            name,
            parent,
            own: None,
            first: true,
            first_entry: true,
            in_entries: false,
            stat: DirStat::default(),
            subdirs: 0,
            below: Usage::default(),
        }
    }
}

/// Everything that is gathered while trees are loaded.
pub(super) struct Loader<'a, E> {
    pub(super) batch: Batch<'a, E>,
    /// Directories with a quota, and what is below those that were met.
    pub(super) limited: BTreeMap<Ino, Option<Usage>>,
    /// Of the volume.
    pub(super) usage: Usage,
    pub(super) next_inode: i64,
    pub(super) next_slice: i64,
    pub(super) next_trash: i64,
    inodes: NumberSet,
    slices: NumberSet,
    links: HashMap<Ino, Links>,
    acls: HashMap<AclRule, u32>,
    /// Of files and directories outside and inside the trash, by owner: what JuiceFS counts when it loads.
    owners: [HashMap<QuotaKey, Usage>; 2],
    root: Ino,
}

impl<'a, E: Engine> Loader<'a, E> {
    pub(super) fn new(engine: &'a E) -> Loader<'a, E> {
        Loader {
            batch: Batch::new(engine),
            limited: BTreeMap::new(),
            usage: Usage::default(),
            next_inode: 2,
            next_slice: 1,
            next_trash: 1,
            inodes: NumberSet::default(),
            slices: NumberSet::default(),
            links: HashMap::new(),
            acls: HashMap::new(),
            owners: [HashMap::new(), HashMap::new()],
            root: Ino::NONE,
        }
    }

    /// Whether the volume's tree was loaded.
    pub(super) fn has_root(&mut self) -> bool {
        !self.inodes.insert(Ino::ROOT.0)
    }

    /// The volume's tree. Its top is the root, whatever directory it was.
    pub(super) async fn volume(&mut self, reader: &mut JsonReader<'_>) -> Result<(), LoadError> {
        self.root = Ino::ROOT;
        self.walk(reader).await
    }

    /// The trash.
    pub(super) async fn trash(&mut self, reader: &mut JsonReader<'_>) -> Result<(), LoadError> {
        self.root = Ino::TRASH;
        self.walk(reader).await
    }

    /// Usage by user and group.
    pub(super) fn owners(&mut self, with_trash: bool) -> BTreeMap<QuotaKey, Usage> {
        let [live, trash] = std::mem::take(&mut self.owners);
        let mut owners: BTreeMap<_, _> = live.into_iter().collect();
        for (key, usage) in trash.into_iter().filter(|_| with_trash) {
            owners.entry(key).or_default().add(usage);
        }
        owners
    }

    async fn walk(&mut self, reader: &mut JsonReader<'_>) -> Result<(), LoadError> {
        reader.enter_object()?;
        let mut stack = vec![Frame::new(None, Ino::ROOT)];
        while let Some(frame) = stack.last_mut() {
            if frame.in_entries {
                match (reader.next_key(&mut frame.first_entry)?, &frame.own) {
                    (Some(name), Some(own)) => {
                        let parent = own.ino;
                        reader.enter_object()?;
                        stack.push(Frame::new(Some(unescape(&name)), parent));
                    }
                    _ => frame.in_entries = false,
                }
                continue;
            }
            if let Some(field) = reader.next_key(&mut frame.first)? {
                self.field(reader, frame, &field).await?;
                continue;
            }
            if let Some(done) = stack.pop() {
                self.end(reader, done, stack.last_mut()).await?;
            }
        }
        Ok(())
    }

    async fn field(
        &mut self,
        reader: &mut JsonReader<'_>,
        frame: &mut Frame,
        field: &str,
    ) -> Result<(), LoadError> {
        if field == "attr" {
            let dumped: DumpedAttr = reader.decode()?;
            frame.own = Some(self.begin(reader, frame, &dumped).await?);
            return Ok(());
        }
        let Some(own) = &mut frame.own else {
            return Err(reader.wrong("an entry has to begin with its attributes"));
        };
        let ino = own.ino;
        match (field, own.attr.kind) {
            ("entries", FileKind::Directory) => {
                reader.enter_object()?;
                frame.in_entries = true;
            }
            // Written with the first link.
            _ if own.again => reader.skip()?,
            ("chunks", FileKind::File) => self.chunks(reader, ino).await?,
            ("symlink", FileKind::Symlink) => {
                let target = unescape(&reader.decode::<String>()?);
                own.attr.length = target.len() as u64;
                self.batch.add(Write::PutSymlink { ino, target }).await?;
            }
            ("xattrs", _) => {
                let xattrs: Option<Vec<DumpedXattr>> = reader.decode()?;
                for xattr in xattrs.unwrap_or_default() {
                    let write = Write::PutXattr {
                        ino,
                        name: xattr.name.into_bytes().into(),
                        value: unescape(&xattr.value),
                    };
                    self.batch.add(write).await?;
                }
            }
            ("posix_acl_access", _) => own.attr.access_acl = self.acl(reader).await?,
            ("posix_acl_default", _) => own.attr.default_acl = self.acl(reader).await?,
            _ => reader.skip()?,
        }
        Ok(())
    }

    /// The attributes of an entry are known: its number is taken, its name written.
    async fn begin(
        &mut self,
        reader: &JsonReader<'_>,
        frame: &Frame,
        dumped: &DumpedAttr,
    ) -> Result<Own, LoadError> {
        let attr = dumped.attr(frame.parent);
        let is_dir = attr.kind == FileKind::Directory;
        let ino = match &frame.name {
            None if !is_dir => {
                return Err(reader.wrong("the top of a tree is not a directory"));
            }
            None => self.root,
            Some(_) => Ino(dumped.inode),
        };
        if ino == Ino::NONE || ino.0 >= i64::MAX as u64 {
            return Err(reader.wrong(format!("{ino} is not the number of an inode")));
        }
        let again = !self.inodes.insert(ino.0);
        if again && is_dir {
            return Err(LoadError::Damaged(format!(
                "directory {ino} is in it twice"
            )));
        }
        if again && !self.links.contains_key(&ino) {
            self.find_links(ino).await?;
        }
        if let Some(name) = &frame.name {
            if name.is_empty() {
                return Err(reader.wrong("an entry without a name"));
            }
            let write = Write::InsertDentry {
                parent: frame.parent,
                name: name.clone(),
                dentry: Dentry {
                    kind: attr.kind,
                    ino,
                },
            };
            self.batch.add(write).await?;
        }
        if ino < Ino::TRASH {
            self.next_inode = self.next_inode.max(ino.0.cast_signed() + 1);
        } else {
            let hour = (ino.0 - Ino::TRASH.0).cast_signed();
            self.next_trash = self.next_trash.max(hour + 1);
        }
        Ok(Own {
            ino,
            attr,
            again,
            links: dumped.nlink,
        })
    }

    /// An inode that had one link when it was dumped has another one: it was linked meanwhile.
    async fn find_links(&mut self, ino: Ino) -> Result<(), LoadError> {
        self.batch.flush().await?;
        let key = Key::Attr(ino);
        let record = self.batch.engine().read(&[key]).await?.pop().flatten();
        match record.map(Record::attr).transpose()? {
            Some(attr) if attr.kind != FileKind::Directory => {
                let parents = BTreeMap::from([(attr.parent, 1)]);
                let stored = true;
                self.links.insert(
                    ino,
                    Links {
                        attr,
                        stored,
                        parents,
                    },
                );
                Ok(())
            }
            _ => Err(LoadError::Damaged(format!(
                "inode {ino} is a directory and something else in it"
            ))),
        }
    }

    /// An entry is complete.
    async fn end(
        &mut self,
        reader: &JsonReader<'_>,
        frame: Frame,
        outer: Option<&mut Frame>,
    ) -> Result<(), LoadError> {
        let Some(mut own) = frame.own else {
            return Err(reader.wrong("an entry has no attributes"));
        };
        let ino = own.ino;
        let (is_dir, is_file) = (
            own.attr.kind == FileKind::Directory,
            own.attr.kind == FileKind::File,
        );
        let length = if is_file { own.attr.length } else { 0 };
        let usage = Usage {
            space: align_4k(length),
            inodes: 1,
        };
        if is_dir {
            // Directories of the trash do not count theirs.
            own.attr.nlink = 2 + if ino < Ino::TRASH { frame.subdirs } else { 0 };
            let stat = frame.stat;
            if self.is_absent(&own, stat) {
                return Ok(());
            }
            self.batch.add(Write::PutDirStat { ino, stat }).await?;
            if let Some(met) = self.limited.get_mut(&ino) {
                *met = Some(frame.below);
            }
        }
        if let Some(outer) = outer {
            outer.stat.length = outer.stat.length.saturating_add(length.cast_signed());
            outer.stat.space = outer.stat.space.saturating_add(usage.space);
            outer.stat.inodes += 1;
            outer.subdirs += u32::from(is_dir);
            outer.below.add(usage);
            outer.below.add(frame.below);
            if !own.again {
                self.usage.add(usage);
                if is_dir || is_file {
                    self.charge_owner(&own.attr, usage);
                }
            }
        }
        self.store(own, frame.parent).await?;
        Ok(())
    }

    /// What a dump says of the trash of a volume that has none.
    fn is_absent(&self, own: &Own, stat: DirStat) -> bool {
        own.ino == Ino::TRASH
            && stat == DirStat::default()
            && DumpedAttr::of(own.ino, &own.attr).is_missing()
    }

    fn charge_owner(&mut self, attr: &Attr, usage: Usage) {
        let owners = &mut self.owners[usize::from(self.root == Ino::TRASH)];
        for key in [QuotaKey::User(attr.uid), QuotaKey::Group(attr.gid)] {
            owners.entry(key).or_default().add(usage);
        }
    }

    /// Writes the inode, or notes one more link of it.
    async fn store(&mut self, own: Own, parent: Ino) -> Result<(), EngineError> {
        let Own {
            ino, attr, links, ..
        } = own;
        if let Some(linked) = self.links.get_mut(&ino) {
            *linked.parents.entry(parent).or_default() += 1;
            return Ok(());
        }
        if links > 1 && attr.kind != FileKind::Directory {
            let parents = BTreeMap::from([(parent, 1)]);
            let stored = false;
            self.links.insert(
                ino,
                Links {
                    attr,
                    stored,
                    parents,
                },
            );
            return Ok(());
        }
        self.batch.add(Write::InsertAttr { ino, attr }).await
    }

    /// Writes the inodes that were held back. Parents of one with several links are kept beside it.
    pub(super) async fn link(&mut self) -> Result<(), EngineError> {
        for (ino, links) in std::mem::take(&mut self.links) {
            let old = links.attr.clone();
            let mut attr = links.attr;
            attr.nlink = links.parents.values().sum();
            if attr.nlink > 1 {
                attr.parent = Ino::NONE;
                for (parent, count) in links.parents {
                    let write = Write::AddParent {
                        ino,
                        parent,
                        delta: count.cast_signed(),
                    };
                    self.batch.add(write).await?;
                }
            }
            let write = if links.stored {
                Write::UpdateAttr {
                    ino,
                    old,
                    new: attr,
                }
            } else {
                Write::InsertAttr { ino, attr }
            };
            self.batch.add(write).await?;
        }
        self.batch.flush().await
    }

    async fn chunks(&mut self, reader: &mut JsonReader<'_>, ino: Ino) -> Result<(), LoadError> {
        if !reader.enter_array()? {
            return Ok(());
        }
        let mut first = true;
        while reader.next_element(&mut first)? {
            let chunk: DumpedChunk = reader.decode()?;
            let mut slices = Vec::with_capacity(chunk.slices.len());
            for dumped in &chunk.slices {
                let slice = dumped.slice().ok_or_else(|| {
                    reader.wrong(format!("{dumped:?} of inode {ino} is no slice record"))
                })?;
                slices.push(slice);
            }
            if slices.is_empty() {
                continue;
            }
            for slice in &slices {
                self.refer(slice).await?;
            }
            let index = ChunkIndex(chunk.index);
            self.batch
                .add(Write::AppendChunk { ino, index, slices })
                .await?;
        }
        Ok(())
    }

    /// One reference of a slice for each record.
    async fn refer(&mut self, slice: &Slice) -> Result<(), EngineError> {
        let Slice { id, size, .. } = *slice;
        if id == SliceId::HOLE {
            return Ok(());
        }
        self.next_slice = self.next_slice.max(id.0.cast_signed().saturating_add(1));
        let write = if self.slices.insert(id.0) {
            Write::NewSliceRef { id, size }
        } else {
            Write::AddSliceRef { id, size, delta: 1 }
        };
        self.batch.add(write).await
    }

    /// Number of an ACL rule, stored when it is first met.
    async fn acl(&mut self, reader: &mut JsonReader<'_>) -> Result<u32, LoadError> {
        let Some(dumped) = reader.decode::<Option<DumpedAcl>>()? else {
            return Ok(0);
        };
        let rule = dumped.rule();
        if let Some(id) = self.acls.get(&rule) {
            return Ok(*id);
        }
        let results = self
            .batch
            .commit(vec![Write::InsertAcl(rule.clone())])
            .await?;
        let id = results.first().and_then(|id| u32::try_from(*id).ok());
        let id = id.ok_or_else(|| LoadError::Damaged("the store took no ACL rule".into()))?;
        self.acls.insert(rule, id);
        Ok(id)
    }
}
