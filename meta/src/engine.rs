//! The contract between operations and stores: records, and the verbs `read`, `scan`, `commit`, `alloc`.
//!
//! An engine knows how each record is laid out in its store and nothing of POSIX. Every verb is one round
//! trip. A commit is atomic: all checks are evaluated before the first write; the first check that fails is
//! reported and nothing is applied. What only one schema has is written anyway and ignored by the other:
//! parents of hard links are stored in Redis and derived from edges in SQL; a live slice needs a
//! `chunk_ref` row in SQL and nothing in Redis.
//!
//! [`memory`] is the oracle: the conformance suite (`meta/tests/conformance.rs`) holds every engine to it.

use bytes::Bytes;

use crate::error::EngineError;
use crate::types::{
    AclRule, Attr, ChunkIndex, Dentry, DirStat, Ino, Name, Quota, SessionId, Slice, SliceId,
    Timestamp,
};

/// Result of an engine's verb.
pub type EngineResult<T> = Result<T, EngineError>;

/// The counters of a volume. An engine translates between its store's convention ("last used" or "next to
/// use") and the one of [`Engine::alloc`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Counter {
    /// Inode numbers.
    NextInode,
    /// Slice ids.
    NextSlice,
    /// Session numbers.
    NextSession,
    /// Trash hour directories.
    NextTrash,
    /// Bytes charged for all live inodes but the root.
    UsedSpace,
    /// Live inodes but the root.
    TotalInodes,
    /// When stale sessions were last looked for (unix s): a job lock.
    LastCleanupSessions,
    /// When deleted files were last looked for (unix s): a job lock.
    LastCleanupFiles,
}

/// What to read.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Key {
    /// Attributes of an inode -> [`Record::Attr`].
    Attr(Ino),
    /// A directory entry -> [`Record::Dentry`].
    Dentry {
        /// Directory.
        parent: Ino,
        /// Entry.
        name: Name,
    },
    /// A directory entry and the attributes of the inode it names, in the same round trip -> [`Record::Entry`].
    Entry {
        /// Directory.
        parent: Ino,
        /// Entry.
        name: Name,
    },
    /// Raw slice list of a chunk, oldest first -> [`Record::Slices`]. Absent when there is none.
    Chunk {
        /// File.
        ino: Ino,
        /// Which chunk.
        index: ChunkIndex,
    },
    /// Target of a symlink -> [`Record::Bytes`].
    Symlink(Ino),
    /// Value of one extended attribute -> [`Record::Bytes`].
    Xattr {
        /// Inode.
        ino: Ino,
        /// Attribute's name.
        name: Name,
    },
    /// Names of all extended attributes -> [`Record::Names`]; absent when there is none.
    XattrNames(Ino),
    /// Directories that link a hard-linked inode, with counts > 0 -> [`Record::Parents`].
    Parents(Ino),
    /// A counter as it is stored for sums (used space, inodes) and job locks -> [`Record::Count`]. For id
    /// counters: the *next* id that [`Engine::alloc`] would hand out.
    Counter(Counter),
    /// The volume's setting, JSON -> [`Record::Bytes`].
    Setting,
    /// True number of references of a slice (absent record of a live slice in Redis means 1, which an engine
    /// cannot tell from "no such slice": then 1) -> [`Record::Count`].
    SliceRefs {
        /// Slice.
        id: SliceId,
        /// Its stored size.
        size: u32,
    },
    /// Statistics of a directory -> [`Record::DirStat`]; absent if any part is missing.
    DirStat(Ino),
    /// Directory quota -> [`Record::Quota`].
    DirQuota(Ino),
    /// Inodes deleted while a session held them open -> [`Record::Inodes`]; absent when none.
    Sustained(SessionId),
    /// An ACL rule -> [`Record::Acl`].
    Acl(u32),
}

/// What was read; the variant follows from the key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// Attributes.
    Attr(Attr),
    /// A directory entry.
    Dentry(Dentry),
    /// A directory entry with the attributes behind it; `None` when the entry dangles.
    Entry(Dentry, Option<Attr>),
    /// Slice list.
    Slices(Vec<Slice>),
    /// Raw bytes.
    Bytes(Bytes),
    /// Names.
    Names(Vec<Name>),
    /// (directory, number of links from it).
    Parents(Vec<(Ino, u32)>),
    /// A number.
    Count(i64),
    /// Directory statistics.
    DirStat(DirStat),
    /// Quota.
    Quota(Quota),
    /// Inode numbers.
    Inodes(Vec<Ino>),
    /// ACL rule.
    Acl(AclRule),
}

macro_rules! record_accessor {
    ($(#[$doc:meta])* $name:ident, $variant:ident, $ty:ty) => {
        $(#[$doc])*
        pub fn $name(self) -> EngineResult<$ty> {
            match self {
                Record::$variant(value) => Ok(value),
                other => Err(EngineError::Corrupt {
                    record: format!("{other:?}"),
                    cause: concat!("engine answered with another kind than ", stringify!($variant)).into(),
                }),
            }
        }
    };
}

impl Record {
    record_accessor!(/** As attributes. */ attr, Attr, Attr);
    record_accessor!(/** As a dentry. */ dentry, Dentry, Dentry);
    record_accessor!(/** As a slice list. */ slices, Slices, Vec<Slice>);
    record_accessor!(/** As bytes. */ bytes, Bytes, Bytes);
    record_accessor!(/** As names. */ names, Names, Vec<Name>);
    record_accessor!(/** As parents. */ parents, Parents, Vec<(Ino, u32)>);
    record_accessor!(/** As a number. */ count, Count, i64);
    record_accessor!(/** As directory statistics. */ dir_stat, DirStat, DirStat);
    record_accessor!(/** As a quota. */ quota, Quota, Quota);
    record_accessor!(/** As inode numbers. */ inodes, Inodes, Vec<Ino>);
    record_accessor!(/** As an ACL rule. */ acl, Acl, AclRule);

    /// As a dentry with the attributes behind it.
    pub fn entry(self) -> EngineResult<(Dentry, Option<Attr>)> {
        match self {
            Record::Entry(dentry, attr) => Ok((dentry, attr)),
            other => Err(EngineError::Corrupt {
                record: format!("{other:?}"),
                cause: "engine answered with another kind than Entry".into(),
            }),
        }
    }
}

/// A set of attribute fields, for checks: what an op relied upon and nothing more, so that concurrent
/// changes of other fields do not make it fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttrFields(pub u8);

impl AttrFields {
    /// The inode exists and is of the same type. Always checked, whatever else is.
    pub const EXISTS: AttrFields = AttrFields(0);
    /// Flags (immutable, append, skip-trash).
    pub const FLAGS: AttrFields = AttrFields(1);
    /// Mode bits, owner and group.
    pub const OWNER: AttrFields = AttrFields(2);
    /// Parent (tells whether it is in the trash).
    pub const PARENT: AttrFields = AttrFields(4);
    /// Link count.
    pub const NLINK: AttrFields = AttrFields(8);
    /// Every field.
    pub const ALL: AttrFields = AttrFields(0xFF);

    /// Union.
    #[must_use]
    pub const fn and(self, other: AttrFields) -> AttrFields {
        AttrFields(self.0 | other.0)
    }

    /// Whether all of `other` is in this set.
    pub const fn contains(self, other: AttrFields) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether `found` agrees with `expect` in these fields, and in its type.
    pub fn agree(self, expect: &Attr, found: &Attr) -> bool {
        if self == Self::ALL {
            return expect == found;
        }
        let owner = |attr: &Attr| (attr.mode, attr.uid, attr.gid);
        expect.kind == found.kind
            && (!self.contains(Self::FLAGS) || expect.flags == found.flags)
            && (!self.contains(Self::OWNER) || owner(expect) == owner(found))
            && (!self.contains(Self::PARENT) || expect.parent == found.parent)
            && (!self.contains(Self::NLINK) || expect.nlink == found.nlink)
    }
}

/// A fact a commit relies upon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Check {
    /// The inode is present and `fields` of it (and its type) still have the values in `expect`.
    Attr {
        /// Inode.
        ino: Ino,
        /// Which fields to compare.
        fields: AttrFields,
        /// Values to compare with.
        expect: Attr,
    },
    /// No attribute record for this inode.
    NoAttr(Ino),
    /// The entry is as read: absent (`None`) or exactly this.
    Dentry {
        /// Directory.
        parent: Ino,
        /// Entry.
        name: Name,
        /// Expected content.
        expect: Option<Dentry>,
    },
    /// The directory has no entry.
    DirEmpty(Ino),
    /// An extended attribute is present or absent.
    Xattr {
        /// Inode.
        ino: Ino,
        /// Attribute.
        name: Name,
        /// Which of the two.
        present: bool,
    },
    /// The slice list begins with exactly `prefix`; with `whole` it ends there too.
    Chunk {
        /// File.
        ino: Ino,
        /// Which chunk.
        index: ChunkIndex,
        /// Records expected at the front.
        prefix: Vec<Slice>,
        /// Whether nothing may follow.
        whole: bool,
    },
    /// A job lock or sum still has this value (absent counts as 0).
    Counter {
        /// Which.
        counter: Counter,
        /// Expected value.
        expect: i64,
    },
    /// The setting is exactly this text, or absent.
    Setting(Option<Bytes>),
}

/// An effect of a commit. Effects of one commit are applied in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// A new inode (the record must not exist: guard with [`Check::NoAttr`] or a fresh number).
    InsertAttr {
        /// Inode.
        ino: Ino,
        /// Record.
        attr: Attr,
    },
    /// Changes an existing record from `old` (as read and checked with [`AttrFields::ALL`]) to `new`. Columns
    /// or bytes that are equal in both, and unknown trailing bytes, stay as they are.
    UpdateAttr {
        /// Inode.
        ino: Ino,
        /// As it was read.
        old: Attr,
        /// As it shall be.
        new: Attr,
    },
    /// Changes a directory where it lives, without a check of the whole record: `time` becomes mtime and
    /// ctime, `nlink` is added to the link count.
    PatchDir {
        /// Directory.
        ino: Ino,
        /// New mtime and ctime, or `None` to leave them.
        time: Option<Timestamp>,
        /// Change of the link count.
        nlink: i32,
    },
    /// Removes an inode's record.
    DeleteAttr(Ino),
    /// A new entry (guard with [`Check::Dentry`] `None`).
    InsertDentry {
        /// Directory.
        parent: Ino,
        /// Entry.
        name: Name,
        /// Content.
        dentry: Dentry,
    },
    /// Changes what an existing entry names.
    ReplaceDentry {
        /// Directory.
        parent: Ino,
        /// Entry.
        name: Name,
        /// New content.
        dentry: Dentry,
    },
    /// Removes an entry.
    DeleteDentry {
        /// Directory.
        parent: Ino,
        /// Entry.
        name: Name,
    },
    /// Target of a new symlink.
    PutSymlink {
        /// Inode.
        ino: Ino,
        /// Raw target.
        target: Bytes,
    },
    /// Removes a symlink's target.
    DeleteSymlink(Ino),
    /// Sets an extended attribute.
    PutXattr {
        /// Inode.
        ino: Ino,
        /// Attribute.
        name: Name,
        /// Raw value.
        value: Bytes,
    },
    /// Removes one extended attribute. Result: 1 if it was there, else 0.
    DeleteXattr {
        /// Inode.
        ino: Ino,
        /// Attribute.
        name: Name,
    },
    /// Removes all extended attributes of an inode.
    DeleteXattrs(Ino),
    /// Adds to the number of links a directory holds to a hard-linked inode (stored in Redis; SQL derives it
    /// from the entries and ignores this).
    AddParent {
        /// Inode.
        ino: Ino,
        /// Directory.
        parent: Ino,
        /// Change.
        delta: i32,
    },
    /// Forgets the parents of an inode (Redis; ignored by SQL).
    DeleteParents(Ino),
    /// Appends slice records to a chunk. Result: records in the list afterwards.
    AppendChunk {
        /// File.
        ino: Ino,
        /// Which chunk.
        index: ChunkIndex,
        /// Records.
        slices: Vec<Slice>,
    },
    /// As `AppendChunk`, but only if the chunk has a list; result 0 if it has none.
    AppendChunkIfPresent {
        /// File.
        ino: Ino,
        /// Which chunk.
        index: ChunkIndex,
        /// Records.
        slices: Vec<Slice>,
    },
    /// Removes a chunk's list.
    DeleteChunk {
        /// File.
        ino: Ino,
        /// Which chunk.
        index: ChunkIndex,
    },
    /// First reference of a new slice (a row in SQL; nothing in Redis).
    NewSliceRef {
        /// Slice.
        id: SliceId,
        /// Stored size.
        size: u32,
    },
    /// Adds to the references of a slice. Result: true number of references left; 0 or less means that its
    /// objects are to be deleted and then its record.
    AddSliceRef {
        /// Slice.
        id: SliceId,
        /// Stored size.
        size: u32,
        /// Change.
        delta: i64,
    },
    /// Forgets a slice whose objects are deleted.
    DeleteSliceRef {
        /// Slice.
        id: SliceId,
        /// Stored size.
        size: u32,
    },
    /// Adds to a sum. Result: the new value.
    AddCounter {
        /// Which.
        counter: Counter,
        /// Change.
        delta: i64,
    },
    /// Sets a job lock.
    SetCounter {
        /// Which.
        counter: Counter,
        /// Value.
        value: i64,
    },
    /// Zero statistics for a new directory.
    InitDirStat(Ino),
    /// Adds to a directory's statistics if they exist. Result: 1 if they do, else 0.
    AddDirStat {
        /// Directory.
        ino: Ino,
        /// Change.
        delta: DirStat,
    },
    /// Sets a directory's statistics (after a recount).
    PutDirStat {
        /// Directory.
        ino: Ino,
        /// Values.
        stat: DirStat,
    },
    /// Removes a directory's statistics.
    DeleteDirStat(Ino),
    /// Removes a directory's quota and its usage.
    DeleteDirQuota(Ino),
    /// Registers or refreshes a session; `info` is written when given (on refresh: only if it was lost).
    PutSession {
        /// Session.
        sid: SessionId,
        /// When it is stale, unix s.
        expire: i64,
        /// JSON description, for registration.
        info: Option<Bytes>,
    },
    /// Forgets a session and releases the locks it still holds, whoever took them.
    DeleteSession(SessionId),
    /// Notes that the session keeps a deleted inode open.
    AddSustained {
        /// Session.
        sid: SessionId,
        /// Inode.
        ino: Ino,
    },
    /// Takes that note back.
    DeleteSustained {
        /// Session.
        sid: SessionId,
        /// Inode.
        ino: Ino,
    },
    /// Files the data of a deleted file for removal.
    AddDeletedFile {
        /// Inode.
        ino: Ino,
        /// Its length at deletion.
        length: u64,
        /// When, unix s.
        time: i64,
    },
    /// The data is gone.
    DeleteDeletedFile {
        /// Inode.
        ino: Ino,
        /// Its length at deletion.
        length: u64,
    },
    /// The setting, JSON.
    PutSetting(Bytes),
}

/// An atomic change: facts and effects.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Txn {
    /// Evaluated in order, all before the first write.
    pub checks: Vec<Check>,
    /// Applied in order.
    pub writes: Vec<Write>,
}

/// How a commit ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Applied; one number for each write, 0 where the write has no result.
    Committed(Vec<i64>),
    /// Check number `check` did not hold; nothing was applied.
    Conflict {
        /// Index into [`Txn::checks`].
        check: usize,
    },
}

/// What to enumerate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scan {
    /// Entries of a directory -> [`Item::Entry`]; with attributes if `attrs`. No order is promised; an entry
    /// present throughout is returned at least once, duplicates are possible on Redis.
    Dir {
        /// Directory.
        parent: Ino,
        /// Whether attributes are wanted (entries that dangle then have `None`).
        attrs: bool,
    },
    /// Chunks of a file that have slice lists -> [`Item::Chunk`]. `length` bounds the search where the store
    /// cannot enumerate (Redis); SQL returns all.
    Chunks {
        /// File.
        ino: Ino,
        /// Length to look up to.
        length: u64,
    },
    /// Files whose data awaits deletion -> [`Item::DeletedFile`].
    DeletedFiles,
    /// Sessions -> [`Item::Session`].
    Sessions,
    /// Directories with a quota -> [`Item::Quota`].
    DirQuotas,
    /// Extended attributes of an inode -> [`Item::Xattr`].
    Xattrs(Ino),
}

/// One thing enumerated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// A directory entry.
    Entry {
        /// Its name.
        name: Name,
        /// Its content.
        dentry: Dentry,
        /// Attributes, when asked for and present.
        attr: Option<Attr>,
    },
    /// A chunk with its slices.
    Chunk {
        /// Which chunk.
        index: ChunkIndex,
        /// Its list.
        slices: Vec<Slice>,
    },
    /// A deleted file.
    DeletedFile {
        /// Inode.
        ino: Ino,
        /// Its length at deletion.
        length: u64,
        /// When, unix s.
        time: i64,
    },
    /// A session.
    Session {
        /// Number.
        sid: SessionId,
        /// When it is stale, unix s.
        expire: i64,
        /// JSON description; empty if missing.
        info: Bytes,
    },
    /// A directory quota.
    Quota {
        /// Directory.
        ino: Ino,
        /// Limits and usage.
        quota: Quota,
    },
    /// An extended attribute.
    Xattr {
        /// Name.
        name: Name,
        /// Raw value.
        value: Bytes,
    },
}

/// Where a scan continues; opaque to everybody but the engine that made it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cursor(pub Bytes);

/// Part of an enumeration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Items; may be fewer or somewhat more than asked for.
    pub items: Vec<Item>,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

/// A metadata store. One value per core; cheap to use concurrently from many tasks of that core.
#[expect(
    async_fn_in_trait,
    reason = "engines are used by the core that owns them; futures need not be Send"
)]
pub trait Engine {
    /// Reads all keys in one round trip, answers in the same order. Reads of one call are consistent with each
    /// other where the store can (SQLite), and each on its own elsewhere (Redis, memory: also consistent).
    async fn read(&self, keys: &[Key]) -> EngineResult<Vec<Option<Record>>>;

    /// One page of an enumeration, at most about `limit` items.
    async fn scan(&self, scan: &Scan, cursor: Option<&Cursor>, limit: usize) -> EngineResult<Page>;

    /// Applies `txn` atomically if all checks hold.
    async fn commit(&self, txn: Txn) -> EngineResult<Outcome>;

    /// Takes `count` >= 1 fresh numbers: returns the first of a run that nobody else will ever get. Inode
    /// numbers start at 2, slice ids, sessions and trash directories at 1.
    async fn alloc(&self, counter: Counter, count: i64) -> EngineResult<u64>;

    /// Completes when everything committed through this engine before the call is durable, as far as the
    /// store lets a client know (SQLite: WAL synced; Redis: as the server's `appendfsync` says, nothing to do).
    async fn sync(&self) -> EngineResult<()>;
}

pub mod memory;
pub mod redis;
pub mod sqlite;

/// The engines there are.
pub enum AnyEngine {
    /// In memory: the oracle of the tests.
    Memory(memory::Memory),
    /// One local SQLite file.
    Sqlite(sqlite::Sqlite),
    /// A Redis server.
    Redis(redis::Redis),
}

macro_rules! delegate {
    ($self:ident, $engine:ident => $call:expr) => {
        match $self {
            AnyEngine::Memory($engine) => $call,
            AnyEngine::Sqlite($engine) => $call,
            AnyEngine::Redis($engine) => $call,
        }
    };
}

impl Engine for AnyEngine {
    async fn read(&self, keys: &[Key]) -> EngineResult<Vec<Option<Record>>> {
        delegate!(self, engine => engine.read(keys).await)
    }

    async fn scan(&self, scan: &Scan, cursor: Option<&Cursor>, limit: usize) -> EngineResult<Page> {
        delegate!(self, engine => engine.scan(scan, cursor, limit).await)
    }

    async fn commit(&self, txn: Txn) -> EngineResult<Outcome> {
        delegate!(self, engine => engine.commit(txn).await)
    }

    async fn alloc(&self, counter: Counter, count: i64) -> EngineResult<u64> {
        delegate!(self, engine => engine.alloc(counter, count).await)
    }

    async fn sync(&self) -> EngineResult<()> {
        delegate!(self, engine => engine.sync().await)
    }
}
