//! `dump`: the whole metadata of a volume, or of a directory of it, as JSON in JuiceFS's form.
//!
//! Byte for byte what JuiceFS writes of the same volume: setting, counters, sustained inodes, deleted files,
//! quotas, then the tree and the trash, entries sorted by name. Not a snapshot: what changes meanwhile may
//! be in it or not. Sessions, locks and delayed slices are not part of the form.
//!
//! Memory: the names of one directory at a time have to be sorted, so the names of the directories from the
//! root down to the one being written are held, and the records of [`PAGE`] entries of each; never more,
//! whatever the size of the volume. Chunk lists of a large file are written as they arrive.
//!
//! Round trips: one for each page of names, two for [`PAGE`] entries, more for files beyond one chunk.
//!
//! Reading order: [`dump`], then `Dumper::tree` (the walk) and `page` (its reads); `shape` is the JSON.

mod page;
pub(crate) mod shape;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, Write};

use crate::engine::{Counter, Engine, Item, Key, Record, Scan};
use crate::error::EngineError;
use crate::limits;
use crate::types::{
    AclRule, CHUNK_BYTES, Dentry, FileKind, Ino, Name, QuotaKind, SessionId, Slice,
};
use crate::volume::{REMOVED, Setting, VolumeError, escape_html};

use page::Loaded;
use shape::{
    Counters, DeletedFile, DumpedAcl, DumpedAttr, DumpedChunk, DumpedXattr, Head, Limits, Quotas,
    Sustained, escape,
};

/// Entries whose records are read at once.
pub const PAGE: usize = 128;

/// What to dump.
#[derive(Clone, Debug, Default)]
pub struct DumpOptions {
    /// Components of the directory to dump; none for the whole volume. A dumped directory is the root of the
    /// volume that is made of it.
    pub subdir: Vec<Name>,
    /// Leave the object store's secret key and session token in the setting.
    pub keep_secrets: bool,
    /// Leave the trash out.
    pub skip_trash: bool,
}

/// What a dump held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dumped {
    /// Entries written, without the roots.
    pub entries: u64,
    /// Whether a secret was replaced by a word that says so.
    pub secrets_removed: bool,
}

/// Why a dump failed.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// Of the volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Of the store.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Of the file it is written to.
    #[error("the dump cannot be written ({0}); make room or choose another file")]
    Output(#[from] io::Error),
    /// No such directory.
    #[error(
        "there is no directory {path:?} in the volume, so it cannot be dumped; check the path, which starts at the volume's root"
    )]
    NoDirectory {
        /// As far as the walk got, and the first component that is missing or no directory.
        path: String,
    },
}

/// Writes the volume behind `engine` to `out`.
pub async fn dump(
    engine: &impl Engine,
    options: &DumpOptions,
    out: &mut dyn Write,
) -> Result<Dumped, DumpError> {
    let raw = super::read_setting(engine).await?;
    let mut setting = Setting::decode(&raw.ok_or(VolumeError::NotFormatted)?)?;
    let root = find(engine, &options.subdir).await?;
    let mut dumped = Dumped::default();
    if !options.keep_secrets {
        for secret in [&mut setting.secret_key, &mut setting.session_token] {
            if !secret.is_empty() {
                *secret = REMOVED.into();
                dumped.secrets_removed = true;
            }
        }
    }
    let head = head(engine, setting, root).await?;
    let mut text = escape_html(serde_json::to_string_pretty(&head).map_err(io::Error::from)?);
    // The trees belong into the same object.
    text.truncate(text.len() - "\n}".len());
    out.write_all(text.as_bytes())?;

    let mut dumper = Dumper {
        engine,
        acls: HashMap::new(),
        out,
        entries: 0,
    };
    dumper.out.write_all(b",")?;
    dumper.tree("FSTree", root).await?;
    if root == Ino::ROOT && !options.skip_trash {
        dumper.out.write_all(b",")?;
        dumper.tree("Trash", Ino::TRASH).await?;
    }
    dumper.out.write_all(b"\n}\n")?;
    dumper.out.flush()?;
    dumped.entries = dumper.entries;
    Ok(dumped)
}

/// The directory that `path` leads to.
async fn find(engine: &impl Engine, path: &[Name]) -> Result<Ino, DumpError> {
    let mut at = Ino::ROOT;
    for (depth, name) in path.iter().enumerate() {
        let key = Key::Dentry {
            parent: at,
            name: name.clone(),
        };
        let record = engine.read(&[key]).await?.pop().flatten();
        match record.map(Record::dentry).transpose()? {
            Some(dentry) if dentry.kind == FileKind::Directory => at = dentry.ino,
            _ => {
                let walked: Vec<_> = path[..=depth]
                    .iter()
                    .map(|name| String::from_utf8_lossy(name))
                    .collect();
                return Err(DumpError::NoDirectory {
                    path: format!("/{}", walked.join("/")),
                });
            }
        }
    }
    Ok(at)
}

async fn head(engine: &impl Engine, setting: Setting, root: Ino) -> Result<Head, EngineError> {
    let mut head = Head {
        setting,
        counters: counters(engine).await?,
        sustained: sustained(engine).await?,
        del_files: Vec::new(),
        quotas: quotas(engine, QuotaKind::Dir).await?,
        user_quotas: Quotas::new(),
        group_quotas: Quotas::new(),
    };
    for item in super::scan_all(engine, &Scan::DeletedFiles).await? {
        if let Item::DeletedFile { ino, length, time } = item {
            head.del_files.push(DeletedFile {
                inode: ino.0,
                length,
                expire: time,
            });
        }
    }
    head.del_files.sort_by_key(|file| (file.inode, file.length));
    if root == Ino::ROOT {
        head.user_quotas = quotas(engine, QuotaKind::User).await?;
        head.group_quotas = quotas(engine, QuotaKind::Group).await?;
    }
    Ok(head)
}

async fn counters(engine: &impl Engine) -> Result<Counters, EngineError> {
    let keys = [
        Counter::UsedSpace,
        Counter::TotalInodes,
        Counter::NextInode,
        Counter::NextSlice,
        Counter::NextSession,
        Counter::NextTrash,
    ]
    .map(Key::Counter);
    let mut values = [0; 6];
    for (value, record) in values.iter_mut().zip(engine.read(&keys).await?) {
        *value = record.map(Record::count).transpose()?.unwrap_or(0);
    }
    let [
        used_space,
        used_inodes,
        next_inodes,
        next_chunk,
        session,
        trash,
    ] = values;
    Ok(Counters {
        used_space,
        used_inodes,
        next_inodes,
        next_chunk,
        next_session: session.saturating_sub(1),
        next_trash: trash.saturating_sub(1),
    })
}

async fn sustained(engine: &impl Engine) -> Result<Vec<Sustained>, EngineError> {
    let mut held = BTreeMap::new();
    for item in super::scan_all(engine, &Scan::Sessions).await? {
        let Item::Session { sid, .. } = item else {
            continue;
        };
        let inodes = super::sustained_of(engine, sid).await?;
        if !inodes.is_empty() {
            held.insert(sid, inodes);
        }
    }
    let dumped = |(sid, inodes): (SessionId, Vec<Ino>)| Sustained {
        sid: sid.0,
        inodes: inodes.into_iter().map(|ino| ino.0).collect(),
    };
    Ok(held.into_iter().map(dumped).collect())
}

/// Those that limit something.
async fn quotas(engine: &impl Engine, kind: QuotaKind) -> Result<Quotas, EngineError> {
    let mut quotas = Quotas::new();
    for item in super::scan_all(engine, &Scan::Quotas(kind)).await? {
        if let Item::Quota { key, quota } = item
            && (quota.max_space, quota.max_inodes) != (-1, -1)
        {
            let limits = Limits {
                max_space: quota.max_space,
                max_inodes: quota.max_inodes,
            };
            quotas.insert(key.number().to_string(), limits);
        }
    }
    Ok(quotas)
}

/// A directory that is being written.
struct Frame {
    /// Entries whose records are not read yet, by name.
    rest: std::vec::IntoIter<(Name, Dentry)>,
    /// Entries whose records are, in order.
    page: VecDeque<Loaded>,
    /// Of the directory's own line.
    depth: usize,
    /// Whether an entry is written already.
    begun: bool,
}

/// Chunks of a file while they are written.
struct ChunkList {
    depth: usize,
    /// The last one met, not written yet.
    held: Option<(u32, Vec<Slice>)>,
    /// Whether others were.
    several: bool,
}

struct Dumper<'a, E> {
    engine: &'a E,
    /// Rules read so far: a volume has few.
    acls: HashMap<u32, AclRule>,
    out: &'a mut dyn Write,
    entries: u64,
}

impl<E: Engine> Dumper<'_, E> {
    /// A whole tree under the key `name`.
    async fn tree(&mut self, name: &str, root: Ino) -> Result<(), DumpError> {
        let dentry = Dentry {
            kind: FileKind::Directory,
            ino: root,
        };
        let named = vec![(Name::copy_from_slice(name.as_bytes()), dentry)];
        let mut roots = self.load(named).await?;
        let root = roots
            .pop_front()
            .ok_or_else(|| io::Error::other("a page of one entry has one"))?;
        let mut stack = vec![self.open(&root, 1).await?];
        while let Some(frame) = stack.last_mut() {
            if frame.page.is_empty() {
                let next: Vec<_> = frame.rest.by_ref().take(PAGE).collect();
                frame.page = self.load(next).await?;
            }
            let depth = frame.depth;
            let Some(entry) = frame.page.pop_front() else {
                let (inner, outer) = (indent(depth + 1), indent(depth));
                write!(self.out, "\n{inner}}}\n{outer}}}")?;
                stack.pop();
                continue;
            };
            if std::mem::replace(&mut frame.begun, true) {
                self.out.write_all(b",")?;
            }
            self.entries += 1;
            if entry.kind() == FileKind::Directory {
                let frame = self.open(&entry, depth + 2).await?;
                stack.push(frame);
            } else {
                self.leaf(&entry, depth + 2).await?;
            }
        }
        Ok(())
    }

    /// Begins a directory: its own records, up to where its entries follow.
    async fn open(&mut self, dir: &Loaded, depth: usize) -> Result<Frame, DumpError> {
        self.begin(dir, depth)?;
        write!(self.out, ",\n{}\"entries\": {{", indent(depth + 1))?;
        let scan = Scan::Dir {
            parent: dir.dentry.ino,
            attrs: false,
        };
        let mut entries = Vec::new();
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&scan, cursor.as_ref(), limits::DIR_PAGE_ENTRIES)
                .await?;
            entries.extend(page.items.into_iter().filter_map(|item| match item {
                Item::Entry { name, dentry, .. } => Some((name, dentry)),
                _ => None,
            }));
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        entries.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        entries.dedup_by(|one, other| one.0 == other.0);
        Ok(Frame {
            rest: entries.into_iter(),
            page: VecDeque::new(),
            depth,
            begun: false,
        })
    }

    /// Everything but a directory.
    async fn leaf(&mut self, entry: &Loaded, depth: usize) -> Result<(), DumpError> {
        self.begin(entry, depth)?;
        if let Some(attr) = entry.attr.as_ref()
            && attr.kind == FileKind::File
        {
            let length = attr.length;
            self.chunks(entry, length, depth).await?;
        }
        write!(self.out, "\n{}}}", indent(depth))?;
        Ok(())
    }

    /// Everything of an entry but what is in it: name, attributes, target, extended attributes, ACLs.
    fn begin(&mut self, entry: &Loaded, depth: usize) -> Result<(), DumpError> {
        self.name_and_attr(entry, depth)?;
        if let Some(target) = entry.target.as_ref().filter(|target| !target.is_empty()) {
            let field = indent(depth + 1);
            write!(self.out, ",\n{field}\"symlink\": \"{}\"", escape(target))?;
        }
        self.xattrs(entry, depth)?;
        self.acl_fields(entry, depth)
    }

    fn name_and_attr(&mut self, entry: &Loaded, depth: usize) -> Result<(), DumpError> {
        let Dentry { ino, kind } = entry.dentry;
        let dumped = match &entry.attr {
            Some(attr) => DumpedAttr::of(ino, attr),
            None => DumpedAttr::missing(ino, kind),
        };
        let attr = serde_json::to_string(&dumped).map_err(io::Error::from)?;
        let (outer, inner) = (indent(depth), indent(depth + 1));
        let name = escape(&entry.name);
        write!(self.out, "\n{outer}\"{name}\": {{\n{inner}\"attr\": {attr}")?;
        Ok(())
    }

    /// JuiceFS keeps names of extended attributes as they are, so one that is not UTF-8 does not survive.
    fn xattrs(&mut self, entry: &Loaded, depth: usize) -> Result<(), DumpError> {
        if entry.xattrs.is_empty() {
            return Ok(());
        }
        let dumped: Vec<_> = entry
            .xattrs
            .iter()
            .map(|(name, value)| DumpedXattr {
                name: String::from_utf8_lossy(name).into_owned(),
                value: escape(value),
            })
            .collect();
        self.field(depth, "xattrs", &dumped)
    }

    fn acl_fields(&mut self, entry: &Loaded, depth: usize) -> Result<(), DumpError> {
        let Some(attr) = &entry.attr else {
            return Ok(());
        };
        for (name, id) in [
            ("posix_acl_access", attr.access_acl),
            ("posix_acl_default", attr.default_acl),
        ] {
            if let Some(rule) = self.acls.get(&id) {
                let dumped = DumpedAcl::of(rule);
                self.field(depth, name, &dumped)?;
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        depth: usize,
        name: &str,
        value: &impl serde::Serialize,
    ) -> Result<(), DumpError> {
        let text = escape_html(serde_json::to_string(value).map_err(io::Error::from)?);
        write!(self.out, ",\n{}\"{name}\": {text}", indent(depth + 1))?;
        Ok(())
    }

    /// Chunks below the file's length: one on the line of its field, several on lines of their own.
    async fn chunks(&mut self, entry: &Loaded, length: u64, depth: usize) -> Result<(), DumpError> {
        let mut list = ChunkList {
            depth,
            held: entry.chunk.as_ref().map(|slices| (0, slices.clone())),
            several: false,
        };
        if length > CHUNK_BYTES {
            self.later_chunks(entry.dentry.ino, length, &mut list)
                .await?;
        }
        let Some((last, slices)) = list.held else {
            return Ok(());
        };
        if list.several {
            self.chunk_line(depth, last, &slices, true)?;
            write!(self.out, "\n{}]", indent(depth + 1))?;
            return Ok(());
        }
        self.field(depth, "chunks", &[DumpedChunk::of(last, &slices)])
    }

    /// Those after the first. Each is written when the next one is known.
    async fn later_chunks(
        &mut self,
        ino: Ino,
        length: u64,
        list: &mut ChunkList,
    ) -> Result<(), DumpError> {
        let scan = Scan::Chunks { ino, length };
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&scan, cursor.as_ref(), limits::CHUNK_PAGE)
                .await?;
            for item in page.items {
                let Item::Chunk { index, slices } = item else {
                    continue;
                };
                let index = index.0;
                if index == 0 || u64::from(index) * CHUNK_BYTES >= length {
                    continue;
                }
                if let Some((before, slices)) = list.held.replace((index, slices)) {
                    self.chunk_line(list.depth, before, &slices, list.several)?;
                    list.several = true;
                }
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// One of several chunks; `begun` if another was written before.
    fn chunk_line(
        &mut self,
        depth: usize,
        index: u32,
        slices: &[Slice],
        begun: bool,
    ) -> Result<(), DumpError> {
        if begun {
            self.out.write_all(b",")?;
        } else {
            write!(self.out, ",\n{}\"chunks\": [", indent(depth + 1))?;
        }
        let text =
            serde_json::to_string(&DumpedChunk::of(index, slices)).map_err(io::Error::from)?;
        write!(self.out, "\n{}{text}", indent(depth + 2))?;
        Ok(())
    }
}

fn indent(depth: usize) -> String {
    "  ".repeat(depth)
}
