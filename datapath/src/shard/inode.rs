//! The table of inodes in use: which core owns an inode's data, and what it publishes of it to the others.
//!
//! One per process, used by every core: by `file` for data, by the dispatcher for attributes and routing.
//!
//! **Ownership.** The first core that has to change an inode's data (write, truncate, fallocate) claims it
//! and gives it back as soon as it has no dirty data and no request in progress on it. Only the owner
//! changes data. Requests that need the owner's memory hop there:
//! 1. a change: `Files::claim`; `Other(core)` means hop to `core` and claim again *there*, for it may have
//!    given the inode back meanwhile;
//! 2. a read, `SEEK_DATA`, flush or fsync: [`InodeTable::route_read`]; `Hop(core)` only while somebody else
//!    holds dirty data or changes the inode as a whole. Everything else is served where it arrived.
//!
//! **Published.** The attributes that depend on data (length, mtime, ctime), the same for data not yet
//! committed, merged slice lists (views), and the loss of earlier writes, if any. All of it is tagged with a
//! generation that changes with every commit of the owner and with every foreign change that is noticed: a
//! reading of one clock for all inodes. Who reads metadata looks at the clock first
//! ([`InodeTable::observe`]) and publishes what it read only if the inode's generation is not later than
//! that; the check and the publication are one step under one lock.
//!
//! **Order, at the owner.** Dirty is published before the reply of a write leaves. After a commit:
//! generation, views and committed length change first, then the dirty mark goes, then the reply leaves.
//! So a request that starts after an acknowledged write either hops or sees its effect.
//!
//! **Locks.** Two kinds, both short and never held across an await: 64 shard locks (one taken per lookup,
//! claim, give-back, open and close), and one lock per inode for what is published (one taken per read,
//! write, commit and attribute reply). Atomics: one per inode (owner and flags), changed under the shard
//! lock or by the owner; and the clock, which ticks with every commit. An entry lives while it has handles or an owner; both change under the shard lock, so an
//! entry is never removed between being found and being claimed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use sluice_meta::types::{Attr, ChunkIndex, Ino, Timestamp};

use crate::error::{FsError, FsResult};
use crate::file::overlay::Segment;

/// Shard locks of the table: many more than cores, so that two cores rarely meet.
const TABLE_SHARDS: usize = 64;
/// Views kept per inode: 1024 chunks are 64 GiB of a file. More are forgotten all at once and read again.
const VIEWS_MAX: usize = 1024;

/// Number of a core of this process, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CoreId(pub u16);

/// Answer to a claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// The asking core owns the inode's data now.
    Mine,
    /// Another core does.
    Other(CoreId),
}

/// Where a request that only reads data is to be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// On the core that asked.
    Here,
    /// On this other core.
    Hop(CoreId),
}

/// The moment before a metadata read: tells whether the result may be published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen(u64);

/// Earlier writes that could not be stored.
#[derive(Clone, Debug)]
pub struct Lost {
    /// What happened, for people.
    pub cause: String,
    /// Error number of the cause.
    pub errno: i32,
}

/// What uncommitted data makes of the attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyAttr {
    /// The file is at least this long.
    pub length: u64,
    /// Time of the last write.
    pub mtime: Timestamp,
    /// The write takes suid and sgid away.
    pub kill_suid: bool,
}

/// The committed attributes that depend on data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Known {
    length: u64,
    mtime: Timestamp,
    ctime: Timestamp,
}

impl Known {
    fn of(attr: &Attr) -> Known {
        Known {
            length: attr.length,
            mtime: attr.mtime,
            ctime: attr.ctime,
        }
    }
}

struct Published {
    /// Ticks with every commit; the same for all inodes.
    clock: Arc<AtomicU64>,
    generation: u64,
    known: Option<Known>,
    dirty: Option<DirtyAttr>,
    views: HashMap<ChunkIndex, Arc<[Segment]>>,
    lost: Option<Lost>,
}

impl Published {
    /// Nothing read from metadata before this moment may be published any more.
    fn retire(&mut self) {
        self.generation = self.clock.fetch_add(1, Ordering::AcqRel) + 1;
        self.views.clear();
    }

    fn learn(&mut self, attr: &Attr) {
        let known = Known::of(attr);
        if self.known != Some(known) {
            self.retire();
            self.known = Some(known);
        }
    }

    fn overlay(&self, attr: &mut Attr) {
        let Some(dirty) = &self.dirty else { return };
        attr.length = attr.length.max(dirty.length);
        attr.mtime = dirty.mtime;
        attr.ctime = attr.ctime.max(dirty.mtime);
        if dirty.kill_suid {
            attr.mode &= !0o4000;
            if attr.mode & 0o010 != 0 {
                attr.mode &= !0o2000;
            }
        }
    }
}

/// Low bits of `state`: the owner's core number + 1; 0 is nobody.
const OWNER_MASK: u32 = 0x00FF_FFFF;
/// The owner holds uncommitted data.
const DIRTY: u32 = 1 << 30;
/// The owner changes the inode as a whole.
const EXCLUSIVE: u32 = 1 << 31;

/// What cores share of one inode in use.
pub struct InodeShared {
    ino: Ino,
    state: AtomicU32,
    handles: AtomicU32,
    published: Mutex<Published>,
}

impl InodeShared {
    fn new(ino: Ino, clock: &Arc<AtomicU64>) -> InodeShared {
        let generation = clock.fetch_add(1, Ordering::AcqRel) + 1;
        InodeShared {
            ino,
            state: AtomicU32::new(0),
            handles: AtomicU32::new(0),
            published: Mutex::new(Published {
                clock: Arc::clone(clock),
                generation,
                known: None,
                dirty: None,
                views: HashMap::new(),
                lost: None,
            }),
        }
    }

    /// Which inode.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Who owns its data.
    pub fn owner(&self) -> Option<CoreId> {
        owner_of(self.state.load(Ordering::Acquire))
    }

    /// Open handles in this process.
    pub fn handles(&self) -> u32 {
        self.handles.load(Ordering::Acquire)
    }

    /// The present generation.
    pub fn generation(&self) -> u64 {
        self.published.lock().generation
    }

    /// Generation, and length with uncommitted data; no length if it was never learnt.
    pub fn length(&self) -> (u64, Option<u64>) {
        let published = self.published.lock();
        let dirty = published.dirty.map_or(0, |dirty| dirty.length);
        (
            published.generation,
            published.known.map(|known| known.length.max(dirty)),
        )
    }

    /// Generation, and the merged slices of a chunk if they are published.
    pub fn view(&self, index: ChunkIndex) -> (u64, Option<Arc<[Segment]>>) {
        let published = self.published.lock();
        (published.generation, published.views.get(&index).cloned())
    }

    /// Publishes merged slices read since `generation` was seen; too late if it has changed.
    pub fn publish_view(&self, generation: u64, index: ChunkIndex, view: Arc<[Segment]>) -> bool {
        let mut published = self.published.lock();
        if published.generation != generation {
            return false;
        }
        if published.views.len() >= VIEWS_MAX && !published.views.contains_key(&index) {
            published.views.clear();
        }
        published.views.insert(index, view);
        true
    }

    /// Publishes attributes read since `generation` was seen; too late if it has changed.
    pub fn publish_attr(&self, generation: u64, attr: &Attr) {
        let mut published = self.published.lock();
        if published.generation == generation {
            published.learn(attr);
        }
    }

    /// The slice lists were found to be out of date: forgets them, unless they have changed since.
    pub fn drop_views(&self, generation: u64) {
        let mut published = self.published.lock();
        if published.generation == generation {
            published.retire();
        }
    }

    /// A change of unknown outcome: nothing published holds any more but dirty data.
    pub fn forget_committed(&self) {
        let mut published = self.published.lock();
        published.retire();
        published.known = None;
    }

    /// Publishes what uncommitted data makes of the attributes. By the owner, before a write's reply leaves.
    pub fn set_dirty(&self, dirty: DirtyAttr) {
        self.published.lock().dirty = Some(dirty);
        self.state.fetch_or(DIRTY, Ordering::AcqRel);
    }

    /// The owner changed the committed state: `attr` holds now, and `dirty` is still to be committed.
    pub fn committed(&self, attr: &Attr, dirty: Option<DirtyAttr>) {
        let mut published = self.published.lock();
        published.retire();
        published.known = Some(Known::of(attr));
        published.dirty = dirty;
        drop(published);
        self.mark_dirty(dirty.is_some());
    }

    /// The owner dropped dirty data that could not be stored; `dirty` is what is left of it.
    pub fn abandoned(&self, dirty: Option<DirtyAttr>) {
        let mut published = self.published.lock();
        published.retire();
        published.dirty = dirty;
        drop(published);
        self.mark_dirty(dirty.is_some());
    }

    fn mark_dirty(&self, dirty: bool) {
        if dirty {
            self.state.fetch_or(DIRTY, Ordering::AcqRel);
        } else {
            self.state.fetch_and(!DIRTY, Ordering::AcqRel);
        }
    }

    /// Marks the beginning and the end of a change of the inode as a whole. By the owner.
    pub fn set_exclusive(&self, exclusive: bool) {
        if exclusive {
            self.state.fetch_or(EXCLUSIVE, Ordering::AcqRel);
        } else {
            self.state.fetch_and(!EXCLUSIVE, Ordering::AcqRel);
        }
    }

    /// Notes that writes were lost; the first cause stays.
    pub fn set_lost(&self, lost: Lost) {
        self.published.lock().lost.get_or_insert(lost);
    }

    /// Fails with [`FsError::WriteLost`] if writes were lost since the first of the open handles was opened.
    pub fn check_lost(&self) -> FsResult<()> {
        match &self.published.lock().lost {
            None => Ok(()),
            Some(lost) => Err(FsError::WriteLost {
                cause: lost.cause.clone(),
                errno: lost.errno,
            }),
        }
    }

    fn patch(&self, seen: Seen, attr: &mut Attr) {
        let mut published = self.published.lock();
        match published.known {
            _ if published.generation <= seen.0 => published.learn(attr),
            // Somebody committed after the attributes were read, perhaps before they were: what was
            // committed last is at least as new.
            Some(known) => {
                attr.length = known.length;
                attr.mtime = known.mtime;
                attr.ctime = attr.ctime.max(known.ctime);
            }
            None => {}
        }
        published.overlay(attr);
    }
}

fn owner_of(state: u32) -> Option<CoreId> {
    match state & OWNER_MASK {
        0 => None,
        owner => u16::try_from(owner - 1).ok().map(CoreId),
    }
}

/// All inodes in use in this process.
pub struct InodeTable {
    shards: Vec<Mutex<HashMap<Ino, Arc<InodeShared>>>>,
    clock: Arc<AtomicU64>,
}

impl InodeTable {
    /// An empty table.
    pub fn new() -> Arc<InodeTable> {
        let shards = (0..TABLE_SHARDS)
            .map(|_| Mutex::new(HashMap::new()))
            .collect();
        Arc::new(InodeTable {
            shards,
            clock: Arc::new(AtomicU64::new(0)),
        })
    }

    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Arc<InodeShared>>> {
        // Neighbouring numbers, as one directory's files have, go to different shards.
        &self.shards[(ino.0 % TABLE_SHARDS as u64) as usize]
    }

    fn fresh(&self, ino: Ino) -> Arc<InodeShared> {
        Arc::new(InodeShared::new(ino, &self.clock))
    }

    /// The entry of an inode in use.
    pub fn get(&self, ino: Ino) -> Option<Arc<InodeShared>> {
        self.shard(ino).lock().get(&ino).cloned()
    }

    /// The entry of an inode in use; one of its own, known to nobody, for an inode that is not.
    pub fn get_or_detached(&self, ino: Ino) -> Arc<InodeShared> {
        self.get(ino).unwrap_or_else(|| self.fresh(ino))
    }

    /// The present moment: to be taken before metadata is read whose attributes will go to
    /// [`Self::opened`] or [`Self::patch_attr`].
    pub fn observe(&self) -> Seen {
        Seen(self.clock.load(Ordering::Acquire))
    }

    /// Counts a handle of `ino`, whose attributes are as `Meta::open` answered them. A foreign change that
    /// shows in them retires the views: this is what makes files coherent from close to open.
    pub fn opened(&self, ino: Ino, seen: Seen, attr: &Attr) {
        let mut shard = self.shard(ino).lock();
        let new = !shard.contains_key(&ino);
        let shared = shard.entry(ino).or_insert_with(|| self.fresh(ino));
        shared.handles.fetch_add(1, Ordering::AcqRel);
        let shared = Arc::clone(shared);
        drop(shard);
        let mut published = shared.published.lock();
        if new || published.generation <= seen.0 {
            published.learn(attr);
        } else if published
            .known
            .is_some_and(|known| known != Known::of(attr))
        {
            // Others committed or learnt something while the attributes were read: no telling which are
            // newer. They are asked for again on use.
            published.retire();
            published.known = None;
        }
    }

    /// Gives a handle back; answers how many are left. With the last one the loss of earlier writes is
    /// forgotten: everybody who could be told was.
    pub fn closed(&self, ino: Ino) -> u32 {
        let mut shard = self.shard(ino).lock();
        let Some(shared) = shard.get(&ino) else {
            return 0;
        };
        // More closes than opens is the kernel's mistake, not a reason to wrap around.
        let left = shared.handles().saturating_sub(1);
        shared.handles.store(left, Ordering::Release);
        if left == 0 {
            shared.published.lock().lost = None;
            if shared.owner().is_none() {
                shard.remove(&ino);
            }
        }
        left
    }

    /// Brings attributes read from metadata up to date with what this process has written since, committed
    /// or not, and publishes them to readers if they are the newest.
    pub fn patch_attr(&self, ino: Ino, seen: Seen, attr: &mut Attr) {
        if let Some(shared) = self.get(ino) {
            shared.patch(seen, attr);
        }
    }

    /// Makes `core` the owner of the inode's data and answers its entry; or says which other core is. Who
    /// claims gives back: `Files` does, for its core.
    pub(crate) fn claim(&self, ino: Ino, core: CoreId) -> Result<Arc<InodeShared>, CoreId> {
        let mut shard = self.shard(ino).lock();
        let shared = shard.entry(ino).or_insert_with(|| self.fresh(ino));
        match shared.owner() {
            Some(owner) if owner != core => return Err(owner),
            Some(_) => {}
            None => {
                shared
                    .state
                    .fetch_or(u32::from(core.0) + 1, Ordering::AcqRel);
            }
        }
        Ok(Arc::clone(shared))
    }

    /// The owner has neither dirty data nor a request in progress on this inode: anybody may claim it.
    pub(crate) fn give_back(&self, ino: Ino, core: CoreId) {
        let mut shard = self.shard(ino).lock();
        let Some(shared) = shard.get(&ino) else {
            return;
        };
        if shared.owner() != Some(core) {
            return;
        }
        shared.state.store(0, Ordering::Release);
        if shared.handles() == 0 {
            shard.remove(&ino);
        }
    }

    /// Where a request on `core` that only reads the inode's data, or flushes it, is to be served.
    pub fn route_read(&self, ino: Ino, core: CoreId) -> Route {
        let Some(shared) = self.get(ino) else {
            return Route::Here;
        };
        let state = shared.state.load(Ordering::Acquire);
        match owner_of(state) {
            Some(owner) if owner != core && state & (DIRTY | EXCLUSIVE) != 0 => Route::Hop(owner),
            Some(_) | None => Route::Here,
        }
    }

    /// Data of this inode was changed by other means than its owner (a clone, a restore, another client's
    /// notice): what is published of the committed state is forgotten.
    pub fn invalidate(&self, ino: Ino) {
        if let Some(shared) = self.get(ino) {
            shared.forget_committed();
        }
    }

    /// Entries in the table, for the statistics.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether no inode is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use sluice_meta::types::FileKind;

    use super::*;
    use crate::file::overlay::Source;

    const INO: Ino = Ino(5);
    const ZERO: CoreId = CoreId(0);
    const ONE: CoreId = CoreId(1);
    const CHUNK: ChunkIndex = ChunkIndex(0);

    fn attr(length: u64, second: i64) -> Attr {
        let time = Timestamp {
            sec: second,
            nsec: 0,
        };
        Attr {
            flags: 0,
            kind: FileKind::File,
            mode: 0o6754,
            uid: 0,
            gid: 0,
            atime: time,
            mtime: time,
            ctime: time,
            nlink: 1,
            length,
            rdev: 0,
            parent: Ino::ROOT,
            access_acl: 0,
            default_acl: 0,
            tier: 0,
        }
    }

    fn dirty(length: u64, second: i64) -> DirtyAttr {
        DirtyAttr {
            length,
            mtime: Timestamp {
                sec: second,
                nsec: 0,
            },
            kill_suid: false,
        }
    }

    fn view() -> Arc<[Segment]> {
        Arc::new([Segment {
            pos: 0,
            len: 9,
            source: Source::Hole,
        }])
    }

    fn opened(attr: &Attr) -> (Arc<InodeTable>, Arc<InodeShared>) {
        let table = InodeTable::new();
        table.opened(INO, table.observe(), attr);
        let shared = table.get(INO).unwrap();
        (table, shared)
    }

    #[test]
    fn one_owner_at_a_time() {
        let table = InodeTable::new();
        assert!(table.claim(INO, ZERO).is_ok());
        assert!(table.claim(INO, ZERO).is_ok(), "a claim can be repeated");
        assert_eq!(table.claim(INO, ONE).err(), Some(ZERO));
        table.give_back(INO, ONE);
        assert_eq!(
            table.claim(INO, ONE).err(),
            Some(ZERO),
            "only the owner gives back"
        );
        table.give_back(INO, ZERO);
        assert!(table.is_empty(), "no handles, no owner");
        assert_eq!(
            table.claim(INO, CoreId(u16::MAX)).unwrap().owner(),
            Some(CoreId(u16::MAX))
        );
    }

    #[test]
    fn one_owner_of_many_threads() {
        let table = InodeTable::new();
        let owners = AtomicU32::new(0);
        let claims = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for core in 0..4 {
                let (table, owners, claims) = (&table, &owners, &claims);
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        if table.claim(INO, CoreId(core)).is_ok() {
                            assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0, "single-owner");
                            claims.fetch_add(1, Ordering::SeqCst);
                            owners.fetch_sub(1, Ordering::SeqCst);
                            table.give_back(INO, CoreId(core));
                        }
                    }
                });
            }
        });
        assert!(claims.into_inner() > 0);
        assert!(table.is_empty());
    }

    #[test]
    fn reads_hop_to_dirty_or_changing_data_only() {
        let (table, shared) = opened(&attr(0, 1));
        assert_eq!(table.route_read(Ino(99), ONE), Route::Here);
        let check = |other| {
            assert_eq!(table.route_read(INO, ZERO), Route::Here, "the owner stays");
            assert_eq!(table.route_read(INO, ONE), other);
        };
        check(Route::Here);
        table.claim(INO, ZERO).unwrap();
        check(Route::Here);
        shared.set_dirty(dirty(3, 2));
        check(Route::Hop(ZERO));
        shared.committed(&attr(3, 2), Some(dirty(4, 3)));
        check(Route::Hop(ZERO));
        shared.committed(&attr(4, 3), None);
        check(Route::Here);
        shared.set_exclusive(true);
        check(Route::Hop(ZERO));
        shared.set_exclusive(false);
        check(Route::Here);
        shared.set_dirty(dirty(9, 4));
        shared.abandoned(None);
        check(Route::Here);
    }

    #[test]
    fn a_view_is_published_only_in_its_generation() {
        type Change = fn(&InodeTable, &InodeShared);
        let changes: [(&str, Change, bool); 9] = [
            ("nothing", |_, _| {}, true),
            ("a write", |_, shared| shared.set_dirty(dirty(9, 9)), true),
            (
                "the same attributes",
                |table, _| table.patch_attr(INO, table.observe(), &mut attr(1, 1)),
                true,
            ),
            (
                "a commit",
                |_, shared| shared.committed(&attr(1, 1), None),
                false,
            ),
            ("a loss", |_, shared| shared.abandoned(None), false),
            (
                "stale slices",
                |_, shared| shared.drop_views(shared.generation()),
                false,
            ),
            ("doubt", |table, _| table.invalidate(INO), false),
            (
                "a foreign change seen by an open",
                |table, _| table.opened(INO, table.observe(), &attr(1, 2)),
                false,
            ),
            (
                "a foreign change seen by a stat",
                |table, _| table.patch_attr(INO, table.observe(), &mut attr(2, 1)),
                false,
            ),
        ];
        for (what, change, stays) in changes {
            // Before and after the publication.
            let (table, shared) = opened(&attr(1, 1));
            let (generation, none) = shared.view(CHUNK);
            assert_eq!(none, None);
            change(&table, &shared);
            assert_eq!(
                shared.publish_view(generation, CHUNK, view()),
                stays,
                "{what}, then publish"
            );
            assert_eq!(shared.view(CHUNK).1.is_some(), stays);

            let (table, shared) = opened(&attr(1, 1));
            assert!(shared.publish_view(shared.generation(), CHUNK, view()));
            change(&table, &shared);
            assert_eq!(
                shared.view(CHUNK).1.is_some(),
                stays,
                "published, then {what}"
            );
        }
    }

    #[test]
    fn views_are_bounded() {
        let (_table, shared) = opened(&attr(1, 1));
        for index in 0..3 * VIEWS_MAX as u32 {
            assert!(shared.publish_view(shared.generation(), ChunkIndex(index), view()));
            assert!(shared.view(ChunkIndex(index)).1.is_some());
        }
        assert!(shared.published.lock().views.len() <= VIEWS_MAX);
    }

    #[test]
    fn attributes_read_before_a_commit_are_brought_up_to_date() {
        let (table, shared) = opened(&attr(10, 1));
        let mut late = attr(10, 1);
        let seen = table.observe();
        shared.set_dirty(dirty(20, 2));
        table.patch_attr(INO, seen, &mut late);
        assert_eq!((late.length, late.mtime.sec), (20, 2), "not committed yet");

        let mut late = attr(10, 1);
        let seen = table.observe();
        shared.committed(&attr(20, 2), None);
        table.patch_attr(INO, seen, &mut late);
        assert_eq!(
            (late.length, late.mtime.sec, late.ctime.sec),
            (20, 2, 2),
            "just committed"
        );

        let mut late = attr(20, 2);
        let seen = table.observe();
        shared.committed(&attr(5, 3), None);
        table.patch_attr(INO, seen, &mut late);
        assert_eq!(late.length, 5, "truncated");
        assert_eq!(
            shared.length().1,
            Some(5),
            "old attributes are not published"
        );
    }

    #[test]
    fn attributes_of_an_open_that_others_overtook_are_asked_for_again() {
        let table = InodeTable::new();
        let seen = table.observe();
        table.opened(INO, table.observe(), &attr(7, 7));
        table.opened(INO, seen, &attr(7, 7));
        let shared = table.get(INO).unwrap();
        assert_eq!(shared.length().1, Some(7));
        table.opened(INO, seen, &attr(6, 6));
        assert_eq!(shared.length().1, None, "no telling which is newer");
        assert_eq!(shared.handles(), 3);
    }

    #[test]
    fn generations_of_an_inode_never_come_back() {
        let (table, shared) = opened(&attr(1, 1));
        let (seen, generation) = (table.observe(), shared.generation());
        assert_eq!(table.closed(INO), 0);
        table.opened(INO, table.observe(), &attr(2, 2));
        assert_ne!(table.get(INO).unwrap().generation(), generation);
        table.patch_attr(INO, seen, &mut attr(1, 1));
        assert_eq!(table.get(INO).unwrap().length().1, Some(2));
    }

    #[test]
    fn an_entry_lives_while_it_has_handles_or_an_owner() {
        let (table, shared) = opened(&attr(1, 1));
        table.opened(INO, table.observe(), &attr(1, 1));
        table.claim(INO, ONE).unwrap();
        assert_eq!(
            (table.closed(INO), table.closed(INO), table.len()),
            (1, 0, 1)
        );
        assert_eq!(table.closed(INO), 0, "one close too many");
        assert!(Arc::ptr_eq(&shared, &table.get(INO).unwrap()));
        table.give_back(INO, ONE);
        assert!(table.is_empty());
        assert_eq!(table.closed(INO), 0);
    }

    #[test]
    fn a_loss_is_told_until_the_last_close() {
        let (table, shared) = opened(&attr(1, 1));
        table.opened(INO, table.observe(), &attr(1, 1));
        shared.set_lost(Lost {
            cause: "first".into(),
            errno: 28,
        });
        shared.set_lost(Lost {
            cause: "second".into(),
            errno: 5,
        });
        table.closed(INO);
        for _ in 0..3 {
            assert_eq!(shared.check_lost().unwrap_err().errno(), 28);
        }
        table.claim(INO, ZERO).unwrap();
        table.closed(INO);
        assert!(shared.check_lost().is_ok());
    }

    #[test]
    fn privileges_go_with_a_dirty_write() {
        let (table, shared) = opened(&attr(1, 1));
        shared.set_dirty(DirtyAttr {
            kill_suid: true,
            ..dirty(2, 2)
        });
        for (mode, shown) in [(0o4755, 0o755), (0o6754, 0o754), (0o6744, 0o2744)] {
            let mut shown_attr = Attr { mode, ..attr(1, 1) };
            table.patch_attr(INO, table.observe(), &mut shown_attr);
            assert_eq!(shown_attr.mode, shown, "{mode:o}");
        }
    }
}
