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
    AclRule, Attr, ChunkIndex, Dentry, DirStat, Flock, Ino, Name, Plock, PlockRange, Quota,
    QuotaKey, QuotaKind, SessionId, Slice, SliceId, Timestamp,
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
    /// When slices without references were last looked for (unix s): a job lock (`nextCleanupSlices`).
    NextCleanupSlices,
    /// When the trash was last emptied of what is old (unix s): a job lock.
    LastCleanupTrash,
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
    /// A quota -> [`Record::Quota`].
    Quota(QuotaKey),
    /// Inodes deleted while a session held them open -> [`Record::Inodes`]; absent when none.
    Sustained(SessionId),
    /// An ACL rule -> [`Record::Acl`].
    Acl(u32),
    /// BSD locks on an inode -> [`Record::Flocks`]; absent when there is none.
    Flocks(Ino),
    /// POSIX byte-range locks on an inode -> [`Record::Plocks`]; absent when there is none.
    Plocks(Ino),
    /// Walks `names` down from directory `from` -> [`Record::Path`]: the components that exist, as far as the
    /// walk gets. It ends early at a missing entry, at one that dangles, and after anything but a directory
    /// (symlinks are not followed). `.` and `..` mean nothing special. Never absent.
    Path {
        /// Where to start.
        from: Ino,
        /// Components.
        names: Vec<Name>,
    },
    /// Walks from an inode up to the root -> [`Record::Path`]: the inode's parent first, the root (or `.trash`)
    /// last. It ends early where a record is missing and after [`crate::limits::DIR_DEPTH_MAX`] steps. Empty
    /// for the root, for an inode without a record and for one whose parents are kept elsewhere. Never absent.
    Ancestors(Ino),
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
    /// BSD locks, by (session, owner).
    Flocks(Vec<Flock>),
    /// POSIX locks, by (session, owner); the ranges of each by start, without overlap.
    Plocks(Vec<Plock>),
    /// Inodes on a path, in the order of the walk.
    Path(Vec<(Ino, Attr)>),
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
    record_accessor!(/** As BSD locks. */ flocks, Flocks, Vec<Flock>);
    record_accessor!(/** As POSIX locks. */ plocks, Plocks, Vec<Plock>);
    record_accessor!(/** As the inodes on a path. */ path, Path, Vec<(Ino, Attr)>);

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
    /// Both ACL ids and the tier: what new entries inherit of a directory beside owner and flags.
    pub const INHERITED: AttrFields = AttrFields(16);
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
        let inherited = |attr: &Attr| (attr.access_acl, attr.default_acl, attr.tier);
        expect.kind == found.kind
            && (!self.contains(Self::FLAGS) || expect.flags == found.flags)
            && (!self.contains(Self::OWNER) || owner(expect) == owner(found))
            && (!self.contains(Self::PARENT) || expect.parent == found.parent)
            && (!self.contains(Self::NLINK) || expect.nlink == found.nlink)
            && (!self.contains(Self::INHERITED) || inherited(expect) == inherited(found))
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
    /// The BSD locks on an inode are exactly these, by (session, owner).
    Flocks {
        /// Inode.
        ino: Ino,
        /// Expected locks.
        expect: Vec<Flock>,
    },
    /// The POSIX locks on an inode are exactly these, by (session, owner).
    Plocks {
        /// Inode.
        ino: Ino,
        /// Expected locks.
        expect: Vec<Plock>,
    },
    /// A note of delayed slices is still there with exactly these slices.
    DelayedSlices {
        /// The slice that replaced them.
        id: SliceId,
        /// When, unix s.
        time: i64,
        /// The slices it replaced, with their sizes.
        expect: Vec<(SliceId, u32)>,
    },
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
    /// Replaces the first `drop` records of a chunk's list by `slices` (guard with [`Check::Chunk`]); an empty
    /// list is removed. Result: records in the list afterwards.
    ReplaceChunkPrefix {
        /// File.
        ino: Ino,
        /// Which chunk.
        index: ChunkIndex,
        /// Records to drop at the front.
        drop: usize,
        /// Records to put there instead.
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
    /// Sets a job lock, or any counter when a volume is loaded. The convention is that of [`Key::Counter`].
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
    /// Sets the limits of a quota; a new one starts with no usage. Result: 1 if it was there, else 0.
    PutQuotaLimits {
        /// Whose.
        key: QuotaKey,
        /// Most bytes, -1 for unlimited.
        max_space: i64,
        /// Most inodes, -1 for unlimited.
        max_inodes: i64,
    },
    /// Sets the usage of a quota that is there (after a recount). Result: 1 if it is, else 0.
    PutQuotaUsage {
        /// Whose.
        key: QuotaKey,
        /// Bytes used.
        space: i64,
        /// Inodes used.
        inodes: i64,
    },
    /// Adds to the usage of a quota. That of a directory must be there; a user's or group's is made, without
    /// limits, if it is not. Result: 1 if it was there, else 0.
    AddQuotaUsage {
        /// Whose.
        key: QuotaKey,
        /// Change in bytes.
        space: i64,
        /// Change in inodes.
        inodes: i64,
    },
    /// Removes a directory's quota and its usage; takes the limits of a user's or group's away, whose usage
    /// stays.
    DeleteQuota(QuotaKey),
    /// A new ACL rule. Result: its id.
    InsertAcl(AclRule),
    /// Sets one owner's BSD lock on an inode.
    PutFlock {
        /// Inode.
        ino: Ino,
        /// The lock.
        lock: Flock,
    },
    /// Removes one owner's BSD lock on an inode.
    DeleteFlock {
        /// Inode.
        ino: Ino,
        /// Session of the owner.
        sid: SessionId,
        /// Owner.
        owner: u64,
    },
    /// Sets one owner's POSIX locks on an inode; none removes the record.
    PutPlocks {
        /// Inode.
        ino: Ino,
        /// Session of the owner.
        sid: SessionId,
        /// Owner.
        owner: u64,
        /// All its ranges, by start, without overlap.
        ranges: Vec<PlockRange>,
    },
    /// Notes slices that a new one replaced: they keep their reference until their time is over.
    PutDelayedSlices {
        /// The slice that replaced them.
        id: SliceId,
        /// When, unix s.
        time: i64,
        /// The slices it replaced, with their sizes.
        slices: Vec<(SliceId, u32)>,
    },
    /// Removes such a note.
    DeleteDelayedSlices {
        /// The slice that replaced them.
        id: SliceId,
        /// When, unix s.
        time: i64,
    },
    /// Notes a directory that is being cloned and is not linked yet.
    AddDetached {
        /// Inode.
        ino: Ino,
        /// Since when, unix s.
        time: i64,
    },
    /// Takes that note back.
    DeleteDetached(Ino),
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
    /// Quotas of a kind -> [`Item::Quota`].
    Quotas(QuotaKind),
    /// Extended attributes of an inode -> [`Item::Xattr`].
    Xattrs(Ino),
    /// ACL rules -> [`Item::Acl`].
    Acls,
    /// Notes of delayed slices -> [`Item::DelayedSlices`].
    DelayedSlices,
    /// Slices whose recorded references are 0 or less -> [`Item::DeadSlice`].
    DeadSlices,
    /// Directories that are being cloned -> [`Item::Detached`].
    Detached,
    /// Locks of a session -> [`Item::Flock`], [`Item::Plock`].
    SessionLocks(SessionId),
    /// Every inode of the volume, in no order, on Redis possibly more than once -> [`Item::Inode`].
    Inodes,
    /// Every chunk list of the volume, in no order, on Redis possibly more than once -> [`Item::FileChunk`].
    AllChunks,
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
    /// A quota.
    Quota {
        /// Whose.
        key: QuotaKey,
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
    /// An ACL rule.
    Acl {
        /// Its number.
        id: u32,
        /// The rule.
        rule: AclRule,
    },
    /// A note of delayed slices.
    DelayedSlices {
        /// The slice that replaced them.
        id: SliceId,
        /// When, unix s.
        time: i64,
        /// The slices it replaced, with their sizes.
        slices: Vec<(SliceId, u32)>,
    },
    /// A slice without references.
    DeadSlice {
        /// Slice.
        id: SliceId,
        /// Its stored size.
        size: u32,
    },
    /// A directory that is being cloned.
    Detached {
        /// Inode.
        ino: Ino,
        /// Since when, unix s.
        time: i64,
    },
    /// A BSD lock.
    Flock {
        /// On which inode.
        ino: Ino,
        /// The lock.
        lock: Flock,
    },
    /// One owner's POSIX locks on an inode.
    Plock {
        /// On which inode.
        ino: Ino,
        /// The locks.
        lock: Plock,
    },
    /// An inode.
    Inode {
        /// Its number.
        ino: Ino,
        /// Its record.
        attr: Attr,
    },
    /// A chunk list of some file.
    FileChunk {
        /// File.
        ino: Ino,
        /// Which chunk.
        index: ChunkIndex,
        /// Its list.
        slices: Vec<Slice>,
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

/// Something that changed, as a store tells it: by whomever, this process included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// Attributes of an inode.
    Inode(Ino),
    /// Entries of a directory.
    Entries(Ino),
    /// Locks on an inode.
    Locks(Ino),
    /// Anything may have changed: nothing was heard for a while, and from now on changes are heard again.
    Everything,
    /// Nothing is heard from now on, until `Everything`.
    Silence,
}

/// Follows the changes of a volume, if its store tells them.
pub struct Watch(redis::watch::Watch);

impl Watch {
    /// Waits for changes. After an error, which means that the store cannot be reached or does not want to tell,
    /// it may be called again. The first answer is [`Change::Everything`].
    pub async fn next(&mut self) -> EngineResult<Vec<Change>> {
        self.0.next().await
    }
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

    /// Whether the store holds nothing at all, so that a volume may be loaded into it.
    async fn is_empty(&self) -> EngineResult<bool>;

    /// Removes every record of the volume. Not atomic: to be repeated if it fails.
    async fn destroy(&self) -> EngineResult<()>;
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

impl AnyEngine {
    /// To follow the changes of the volume; `None` where the store does not tell them.
    pub fn watch(&self) -> Option<Watch> {
        match self {
            AnyEngine::Redis(engine) => Some(Watch(engine.watch())),
            AnyEngine::Memory(_) | AnyEngine::Sqlite(_) => None,
        }
    }
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

    async fn is_empty(&self) -> EngineResult<bool> {
        delegate!(self, engine => engine.is_empty().await)
    }

    async fn destroy(&self) -> EngineResult<()> {
        delegate!(self, engine => engine.destroy().await)
    }
}
