//! What this process read or wrote lately: what an operation may take for granted in its first attempt.
//!
//! Owned by [`crate::client::Shared`]; filled by every read of an operation and by every commit, asked by
//! `Meta::fetch_at`. There nothing is an answer to anybody: an attempt that starts from memory ends in a commit
//! that checks every record it relied upon, and whatever it would answer without a commit is asked of the
//! store again. So a record may be as old as it likes; it costs one round trip more when it is wrong and
//! saves one when it is right. Other clients' changes need not be heard of.
//!
//! Two things are answered from here: the attributes of an opened file where `--open-cache` asks for it, and those
//! of directories for as long as the kernel itself might keep them ([`Recall::fresh_directory`]). It drops them with every entry that is made or removed and asks again.
//! They are never older than this process's own changes: while a commit is on its way, nothing that is read
//! of the inodes it touches is remembered (it may have been read before the commit), and two commits on their
//! way at once leave nothing that depends on their order.
//!
//! Bounded: two generations of at most [`limits::RECALL_RECORDS`] records in each of [`PARTS`] parts; a record
//! that is asked for moves to the younger one, and when that is full the older one is dropped.
//!
//! Cost: one short lock per record asked for, read or written, on the part of the inode (of an entry: of its
//! directory). Never held across an await. Metadata changes only: neither reads nor writes of data come here.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;

use crate::engine::{Key, Record, Write};
use crate::limits;
use crate::types::{Attr, Dentry, FileKind, Ino, Name, Timestamp};

/// Parts with a lock each.
const PARTS: usize = 16;

/// Records of recent reads and commits.
#[derive(Debug)]
pub struct Recall {
    parts: Box<[Mutex<Part>]>,
}

/// An inode's record.
#[derive(Clone, Debug)]
struct Known {
    attr: Attr,
    /// When the whole of it was last seen in the store.
    seen: Timestamp,
}

/// Commits of this process that are on their way and touch an inode.
#[derive(Debug, Default)]
struct Traffic {
    commits: u32,
    /// There were two at once.
    overlapped: bool,
}

#[derive(Debug, Default)]
struct Part {
    attrs: Generations<Ino, Known>,
    traffic: HashMap<Ino, Traffic>,
    /// `None`: there was no such entry.
    entries: Generations<(Ino, Name), Option<Dentry>>,
}

/// A map that forgets what was not asked for lately.
#[derive(Debug)]
struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V> Default for Generations<K, V> {
    fn default() -> Self {
        Generations {
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Generations<K, V> {
    fn get(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.put(key, value.clone());
        Some(value)
    }

    fn put(&mut self, key: K, value: V) {
        if self.young.len() >= limits::RECALL_RECORDS {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    fn change(&mut self, key: &K, change: impl FnOnce(&mut V)) {
        if let Some(value) = self.young.get_mut(key).or_else(|| self.old.get_mut(key)) {
            change(value);
        }
    }

    fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

/// A commit on its way: until it lands, after its effects were noted, nothing is learnt of the inodes it touches.
/// One that is dropped without landing may have been applied or not: what is known of those inodes is forgotten.
pub(crate) struct Flight<'a> {
    recall: &'a Recall,
    touched: &'a [Ino],
    landed: bool,
}

impl<'a> Flight<'a> {
    pub(crate) fn begin(recall: &'a Recall, touched: &'a [Ino]) -> Flight<'a> {
        for ino in touched {
            let mut part = recall.part(*ino);
            let traffic = part.traffic.entry(*ino).or_default();
            traffic.overlapped |= traffic.commits > 0;
            traffic.commits += 1;
        }
        Flight {
            recall,
            touched,
            landed: false,
        }
    }

    /// What the commit came to is known and noted.
    pub(crate) fn land(mut self) {
        self.landed = true;
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        for ino in self.touched {
            let mut part = self.recall.part(*ino);
            if !self.landed {
                part.attrs.remove(ino);
            }
            if let Some(traffic) = part.traffic.get_mut(ino) {
                traffic.commits -= 1;
                if traffic.commits == 0 {
                    part.traffic.remove(ino);
                }
            }
        }
    }
}

impl Default for Recall {
    fn default() -> Recall {
        Recall {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
        }
    }
}

impl Recall {
    fn part(&self, ino: Ino) -> parking_lot::MutexGuard<'_, Part> {
        self.parts[ino.0 as usize % PARTS].lock()
    }

    /// Attributes, if any are remembered.
    pub(crate) fn attr(&self, ino: Ino) -> Option<Attr> {
        self.part(ino).attrs.get(&ino).map(|known| known.attr)
    }

    /// Attributes that were in the store less than `age_max` ago, with every change of this process since, and how
    /// long ago that was.
    pub(crate) fn fresh(
        &self,
        ino: Ino,
        now: Timestamp,
        age_max: Duration,
    ) -> Option<(Attr, Duration)> {
        let known = self.part(ino).attrs.get(&ino)?;
        let age = age(known.seen, now)?;
        (age < age_max).then_some((known.attr, age))
    }

    /// The same of a directory.
    pub(crate) fn fresh_directory(
        &self,
        ino: Ino,
        now: Timestamp,
        age_max: Duration,
    ) -> Option<(Attr, Duration)> {
        let fresh = self.fresh(ino, now, age_max);
        fresh.filter(|(attr, _)| attr.kind == FileKind::Directory)
    }

    /// What is remembered of an entry: `Some(None)` if there was none.
    pub(crate) fn entry(&self, parent: Ino, name: &Name) -> Option<Option<Dentry>> {
        self.part(parent).entries.get(&(parent, name.clone()))
    }

    /// Answers for all of `keys`; `None` if one of them is not remembered. An entry that is asked for without
    /// its inode is taken to be absent if nothing is known of it: that is what a caller who is about to make
    /// it hopes for.
    pub(crate) fn answers(&self, keys: &[Key]) -> Option<Vec<Option<Record>>> {
        keys.iter().map(|key| self.answer(key)).collect()
    }

    fn answer(&self, key: &Key) -> Option<Option<Record>> {
        match key {
            Key::Attr(ino) => Some(Some(Record::Attr(self.attr(*ino)?))),
            Key::Dentry { parent, name } => {
                let dentry = self.entry(*parent, name).flatten();
                Some(dentry.map(Record::Dentry))
            }
            Key::Entry { parent, name } => Some(match self.entry(*parent, name)? {
                None => None,
                Some(dentry) => Some(Record::Entry(dentry, Some(self.attr(dentry.ino)?))),
            }),
            Key::Ancestors(ino) => self.ancestors(*ino).map(|path| Some(Record::Path(path))),
            _ => None,
        }
    }

    fn ancestors(&self, ino: Ino) -> Option<Vec<(Ino, Attr)>> {
        let mut path = Vec::new();
        let mut at = ino;
        let mut parent = self.attr(ino)?.parent;
        while at != Ino::ROOT && at != Ino::TRASH {
            if parent == Ino::NONE || path.len() >= limits::DIR_DEPTH_MAX {
                return None;
            }
            let attr = self.attr(parent)?;
            at = parent;
            parent = attr.parent;
            path.push((at, attr));
        }
        Some(path)
    }

    /// Notes what a read answered that was sent at `asked`.
    pub(crate) fn learn(&self, keys: &[Key], records: &[Option<Record>], asked: Timestamp) {
        for (key, record) in keys.iter().zip(records) {
            match (key, record) {
                (Key::Attr(ino), Some(Record::Attr(attr))) => self.learn_attr(*ino, attr, asked),
                (Key::Attr(ino), None) => self.part(*ino).attrs.remove(ino),
                (Key::Dentry { parent, name }, Some(Record::Dentry(dentry))) => {
                    self.put_entry(*parent, name, Some(*dentry));
                }
                (Key::Entry { parent, name }, Some(Record::Entry(dentry, attr))) => {
                    self.put_entry(*parent, name, Some(*dentry));
                    match attr {
                        Some(attr) => self.learn_attr(dentry.ino, attr, asked),
                        None => self.part(dentry.ino).attrs.remove(&dentry.ino),
                    }
                }
                (Key::Dentry { parent, name } | Key::Entry { parent, name }, None) => {
                    self.put_entry(*parent, name, None);
                }
                (Key::Ancestors(_), Some(Record::Path(path))) => {
                    for (ino, attr) in path {
                        self.learn_attr(*ino, attr, asked);
                    }
                }
                _ => {}
            }
        }
    }

    /// The store holds `found` for an inode: whatever else is known of it is forgotten.
    pub(crate) fn correct(&self, ino: Ino, found: Option<&Attr>) {
        let mut part = self.part(ino);
        if part
            .attrs
            .get(&ino)
            .is_some_and(|known| Some(&known.attr) != found)
        {
            part.attrs.remove(&ino);
        }
    }

    /// Notes what a commit that was sent at `sent`, and is on its way until this returns, made of the records it
    /// touched.
    pub(crate) fn apply(&self, writes: &[Write], sent: Timestamp) {
        for write in writes {
            match write {
                Write::InsertAttr { ino, attr } => self.part(*ino).put_attr(*ino, attr, sent),
                Write::UpdateAttr { ino, new, .. } => {
                    let mut part = self.part(*ino);
                    if part.traffic.get(ino).is_some_and(|it| it.overlapped) {
                        part.attrs.remove(ino);
                    } else {
                        part.put_attr(*ino, new, sent);
                    }
                }
                Write::PatchDir { ino, time, nlink } => {
                    self.part(*ino).attrs.change(ino, |Known { attr, .. }| {
                        attr.nlink = attr.nlink.saturating_add_signed(*nlink);
                        if let Some(time) = *time {
                            attr.mtime = attr.mtime.max(time);
                            attr.ctime = attr.ctime.max(time);
                        }
                    });
                }
                Write::DeleteAttr(ino) => self.part(*ino).attrs.remove(ino),
                Write::InsertDentry {
                    parent,
                    name,
                    dentry,
                }
                | Write::ReplaceDentry {
                    parent,
                    name,
                    dentry,
                } => self.put_entry(*parent, name, Some(*dentry)),
                Write::DeleteDentry { parent, name } => self.put_entry(*parent, name, None),
                _ => {}
            }
        }
    }

    fn learn_attr(&self, ino: Ino, attr: &Attr, seen: Timestamp) {
        let mut part = self.part(ino);
        if !part.traffic.contains_key(&ino) {
            part.put_attr(ino, attr, seen);
        }
    }

    fn put_entry(&self, parent: Ino, name: &Name, dentry: Option<Dentry>) {
        self.part(parent)
            .entries
            .put((parent, name.clone()), dentry);
    }
}

impl Part {
    fn put_attr(&mut self, ino: Ino, attr: &Attr, seen: Timestamp) {
        let attr = attr.clone();
        self.attrs.put(ino, Known { attr, seen });
    }
}

/// How long ago `then` was; `None` if the clock was set back since.
fn age(then: Timestamp, now: Timestamp) -> Option<Duration> {
    let nanos = |time: Timestamp| i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec);
    let age = u64::try_from(nanos(now) - nanos(then)).ok()?;
    Some(Duration::from_nanos(age))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(nlink: u32, sec: i64) -> Attr {
        let time = at(sec);
        Attr {
            flags: 0,
            kind: FileKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            atime: time,
            mtime: time,
            ctime: time,
            nlink,
            length: 4096,
            rdev: 0,
            parent: Ino::ROOT,
            access_acl: 0,
            default_acl: 0,
            tier: 0,
        }
    }

    fn at(sec: i64) -> Timestamp {
        Timestamp { sec, nsec: 0 }
    }

    fn patch(nlink: i32, sec: i64) -> Write {
        Write::PatchDir {
            ino: Ino(5),
            time: Some(at(sec)),
            nlink,
        }
    }

    #[test]
    fn directories_are_fresh_for_a_while_and_follow_our_changes() {
        let recall = Recall::default();
        let fresh = |now| recall.fresh_directory(Ino(5), at(now), Duration::from_secs(3));
        assert!(fresh(1).is_none());
        let read = [Some(Record::Attr(dir(2, 1)))];
        recall.learn(&[Key::Attr(Ino(5))], &read, at(10));
        assert_eq!(fresh(12), Some((dir(2, 1), Duration::from_secs(2))));
        assert!(fresh(13).is_none() && fresh(9).is_none());
        recall.apply(&[patch(1, 11)], at(11));
        let (attr, age) = fresh(12).unwrap();
        assert_eq!((attr.nlink, attr.mtime, attr.ctime), (3, at(11), at(11)));
        assert_eq!(age.as_secs(), 2, "what others did since was not seen");
    }

    /// A read that was answered before a commit of ours must not be remembered after it.
    #[test]
    fn nothing_is_learnt_while_a_commit_is_on_its_way() {
        let recall = Recall::default();
        let learn = |nlink| {
            let record = Some(Record::Attr(dir(nlink, 1)));
            recall.learn(&[Key::Attr(Ino(5))], &[record], at(1));
        };
        learn(2);
        let first = Flight::begin(&recall, &[Ino(5)]);
        let second = Flight::begin(&recall, &[Ino(5)]);
        learn(9);
        recall.apply(&[patch(1, 2)], at(2));
        first.land();
        learn(9);
        recall.apply(&[patch(1, 1)], at(2));
        let seen = recall.attr(Ino(5)).unwrap();
        assert_eq!((seen.nlink, seen.mtime), (4, at(2)));
        let update = Write::UpdateAttr {
            ino: Ino(5),
            old: dir(4, 2),
            new: dir(4, 3),
        };
        recall.apply(&[update], at(3));
        assert_eq!(recall.attr(Ino(5)), None, "who was first is not known");
        second.land();
        learn(7);
        assert_eq!(recall.attr(Ino(5)).unwrap().nlink, 7);
        drop(Flight::begin(&recall, &[Ino(5)]));
        assert_eq!(recall.attr(Ino(5)), None, "nobody knows what became of it");
    }

    #[test]
    fn what_is_asked_for_stays() {
        let mut map = Generations::default();
        map.put(0, "kept");
        map.put(1, "forgotten");
        for key in 2..limits::RECALL_RECORDS * 4 {
            assert_eq!(map.get(&0), Some("kept"));
            map.put(key, "passing");
            assert!(map.young.len() + map.old.len() <= 2 * limits::RECALL_RECORDS);
        }
        assert_eq!(map.get(&1), None);
    }

    #[test]
    fn an_unknown_entry_is_taken_to_be_free_only_by_those_who_make_it() {
        let recall = Recall::default();
        let (parent, name) = (Ino(5), Name::from_static(b"x"));
        let dentry = Key::Dentry {
            parent,
            name: name.clone(),
        };
        let entry = Key::Entry {
            parent,
            name: name.clone(),
        };
        assert_eq!(
            recall.answers(std::slice::from_ref(&dentry)),
            Some(vec![None])
        );
        assert_eq!(recall.answers(std::slice::from_ref(&entry)), None);
        recall.learn(std::slice::from_ref(&entry), &[None], at(1));
        assert_eq!(
            recall.answers(std::slice::from_ref(&entry)),
            Some(vec![None])
        );
        let there = Dentry {
            kind: FileKind::File,
            ino: Ino(9),
        };
        let insert = Write::InsertDentry {
            parent,
            name,
            dentry: there,
        };
        recall.apply(&[insert], at(1));
        assert_eq!(
            recall.answers(&[dentry]),
            Some(vec![Some(Record::Dentry(there))])
        );
        assert_eq!(recall.answers(&[entry]), None, "its inode is not known");
    }
}
