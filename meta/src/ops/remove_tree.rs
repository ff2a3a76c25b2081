//! Removing a directory with everything below it.
//!
//! Called by `sluice rmr`, by the job that empties the trash, and to clear away what an abandoned clone left.
//!
//! 1. A directory is read page by page. The files of a page go in one commit ([`super::batch_unlink`]), those
//!    that cannot go together one by one.
//! 2. The sub-directories of a page are walked next; the directory waits for them and goes on where it stopped.
//! 3. At its end the directory itself is removed. If that finds it not empty, somebody has added to it: again
//!    from the start, at most [`limits::REMOVE_ROUNDS_MAX`] times.
//!
//! Memory: up to `width` directories are worked on at a time, the deepest first; for each level above them at
//! most one page of sub-directories waits. No directory is held as a whole, and the depth costs no stack.
//!
//! The walk ends at the first error, with what it removed removed. Everything may be repeated.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::client::{Attempt, Meta, MetaResult};
use crate::engine::{AttrFields, Check, Cursor, Engine, Item, Key, Scan, Write};
use crate::error::MetaError;
use crate::limits;
use crate::ops::{Disposal, Removed};
use crate::types::{FileKind, Ino, Name, QuotaKey};

use super::credentials::{self, Credentials};
use super::plan::{Applied, Plan};
use super::together::Together;
use super::{names, rules};

/// Who follows a walk.
pub trait TreeWatch {
    /// An entry is gone. If its data is to be deleted, it says so.
    fn removed(&self, removed: &Removed);
    /// Whether the walk is to end as soon as it can.
    fn stopped(&self) -> bool {
        false
    }
}

/// How a tree is to be removed.
pub struct TreeRemoval<'a> {
    /// By whom: every directory must grant it as the kernel would ask.
    pub who: &'a Credentials,
    /// Into the trash or past it.
    pub disposal: Disposal,
    /// Directories worked on at the same time, at least 1.
    pub width: usize,
    /// Entries that go in one commit, 1 to [`limits::UNLINK_BATCH`]: fewer for work that must not hold up
    /// others on its core.
    pub batch: usize,
    /// Is told of everything.
    pub watch: &'a dyn TreeWatch,
}

/// How a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TreeEnd {
    /// Everything is gone.
    Complete,
    /// It was told to stop.
    Stopped,
}

/// A directory on the way.
struct Node {
    ino: Ino,
    /// The directory above and the name in it; `None` for one that is to be emptied and no more.
    place: Option<(Ino, Name)>,
    /// Who waits for this one.
    waiting: Option<Rc<Node>>,
    /// Sub-directories that are not done.
    pending: Cell<usize>,
    /// Where its listing goes on.
    cursor: RefCell<Option<Cursor>>,
    /// Permissions were looked at.
    allowed: Cell<bool>,
    /// Times it was found not empty at its end.
    rounds: Cell<u32>,
}

impl Node {
    fn root(ino: Ino, place: Option<(Ino, Name)>) -> Rc<Node> {
        Node::new(ino, place, None)
    }

    fn new(ino: Ino, place: Option<(Ino, Name)>, waiting: Option<Rc<Node>>) -> Rc<Node> {
        Rc::new(Node {
            ino,
            place,
            waiting,
            pending: Cell::new(0),
            cursor: RefCell::new(None),
            allowed: Cell::new(false),
            rounds: Cell::new(0),
        })
    }
}

/// What a visit to a directory came to.
enum Visit {
    /// These come first.
    Below(Vec<Rc<Node>>),
    /// It is done.
    Done,
    /// The walk is to end.
    Stopped,
}

impl Meta {
    /// Removes an entry and, if it is a directory, everything below it. `NotEmpty` if others keep adding to it.
    pub async fn remove_tree(
        &self,
        parent: Ino,
        name: &[u8],
        how: &TreeRemoval<'_>,
    ) -> MetaResult<TreeEnd> {
        let name = names::checked(name)?;
        if names::is_dot(&name) {
            return Err(MetaError::Invalid("'.' and '..' cannot be removed"));
        }
        if names::is_reserved(parent, &name) || parent == Ino::TRASH {
            return Err(MetaError::NotPermitted);
        }
        self.check_writable()?;
        let keys = [
            Key::Attr(parent),
            Key::Entry {
                parent,
                name: name.clone(),
            },
        ];
        let mut answers = self.fetch(&keys).await?;
        let parent_attr = rules::directory(answers.attr()?)?;
        let (dentry, attr) = answers.entry()?.ok_or(MetaError::NotFound)?;
        let wanted = credentials::WRITE | credentials::EXECUTE;
        self.permits(how.who, &parent_attr, wanted).await?;
        if attr.map_or(dentry.kind, |attr| attr.kind) != FileKind::Directory {
            let removed = self
                .unlink_by(&how.who.caller, parent, &name, how.disposal)
                .await?;
            how.watch.removed(&removed);
            return Ok(TreeEnd::Complete);
        }
        self.remove_nodes(Node::root(dentry.ino, Some((parent, name))), how)
            .await
    }

    /// Removes everything below a directory, which stays.
    pub(crate) async fn empty_tree(&self, dir: Ino, how: &TreeRemoval<'_>) -> MetaResult<TreeEnd> {
        self.remove_nodes(Node::root(dir, None), how).await
    }

    async fn remove_nodes(&self, root: Rc<Node>, how: &TreeRemoval<'_>) -> MetaResult<TreeEnd> {
        let mut queue = vec![root];
        let mut running = Together::new();
        let mut end = Ok(TreeEnd::Complete);
        loop {
            while end.as_ref().is_ok_and(|end| *end == TreeEnd::Complete)
                && running.len() < how.width.max(1)
                && let Some(node) = queue.pop()
            {
                running.push(async move {
                    let visit = self.visit(&node, how).await;
                    (node, visit)
                });
            }
            // What is in flight is waited for also after an error: it may hold pins on open files.
            let Some((node, visit)) = running.next().await else {
                return end;
            };
            match visit {
                Ok(Visit::Below(below)) => {
                    node.pending.set(below.len());
                    queue.extend(below);
                }
                Ok(Visit::Done) => {
                    if let Some(above) = &node.waiting {
                        above.pending.set(above.pending.get() - 1);
                        if above.pending.get() == 0 {
                            queue.push(Rc::clone(above));
                        }
                    }
                }
                Ok(Visit::Stopped) => end = end.and(Ok(TreeEnd::Stopped)),
                Err(error) => end = end.and(Err(error)),
            }
        }
    }

    /// Goes on with a directory until it has sub-directories to wait for, or is gone.
    async fn visit(&self, node: &Rc<Node>, how: &TreeRemoval<'_>) -> MetaResult<Visit> {
        let scan = Scan::Dir {
            parent: node.ino,
            attrs: false,
        };
        loop {
            if how.watch.stopped() {
                return Ok(Visit::Stopped);
            }
            let cursor = node.cursor.take();
            let page = self
                .engine
                .scan(&scan, cursor.as_ref(), how.batch.max(1))
                .await?;
            let last = page.next.is_none();
            node.cursor.replace(page.next);
            let below = self.remove_page(node, page.items, how).await?;
            if !below.is_empty() {
                return Ok(Visit::Below(below));
            }
            if last && self.leave(node, how).await? {
                return Ok(Visit::Done);
            }
        }
    }

    /// Removes the files of a page; answers its sub-directories.
    async fn remove_page(
        &self,
        node: &Rc<Node>,
        items: Vec<Item>,
        how: &TreeRemoval<'_>,
    ) -> MetaResult<Vec<Rc<Node>>> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        self.check_allowed(node, how.who).await?;
        let mut files = Vec::new();
        let mut below = Vec::new();
        for item in items {
            let Item::Entry { name, dentry, .. } = item else {
                continue;
            };
            if dentry.kind == FileKind::Directory {
                let place = Some((node.ino, name));
                below.push(Node::new(dentry.ino, place, Some(Rc::clone(node))));
            } else {
                files.push(name);
            }
        }
        // A page may be somewhat longer than asked for.
        for names in files.chunks(how.batch.clamp(1, limits::UNLINK_BATCH)) {
            self.remove_files(node.ino, names, how).await?;
        }
        Ok(below)
    }

    async fn remove_files(
        &self,
        dir: Ino,
        names: &[Name],
        how: &TreeRemoval<'_>,
    ) -> MetaResult<()> {
        let caller = &how.who.caller;
        let batch = self
            .unlink_batch(caller, dir, names.to_vec(), how.disposal)
            .await?;
        batch
            .removed
            .iter()
            .for_each(|gone| how.watch.removed(gone));
        for name in batch.left {
            match self.unlink_by(caller, dir, &name, how.disposal).await {
                Ok(gone) => how.watch.removed(&gone),
                // Taken away, or replaced by a directory, which the next round finds.
                Err(MetaError::NotFound | MetaError::IsDirectory) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The caller may list the directory and remove from it: asked once, and only where there is something.
    async fn check_allowed(&self, node: &Node, who: &Credentials) -> MetaResult<()> {
        if who.caller.is_root() || node.allowed.get() {
            return Ok(());
        }
        let attr = self.getattr(node.ino).await?;
        let wanted = credentials::READ | credentials::WRITE | credentials::EXECUTE;
        self.permits(who, &attr, wanted).await?;
        node.allowed.set(true);
        Ok(())
    }

    /// At the end of a directory: removes it. `false` if there is something in it again.
    async fn leave(&self, node: &Node, how: &TreeRemoval<'_>) -> MetaResult<bool> {
        let Some((parent, name)) = &node.place else {
            return Ok(true);
        };
        let caller = &how.who.caller;
        match self.rmdir_by(caller, *parent, name, how.disposal).await {
            Ok(gone) => how.watch.removed(&gone),
            Err(MetaError::NotFound) => {}
            Err(MetaError::NotEmpty) if node.rounds.get() < limits::REMOVE_ROUNDS_MAX => {
                node.rounds.set(node.rounds.get() + 1);
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

/// Of a tree that is being cloned: nobody but its maker knows it, and whoever takes it away marks it so.
const CLAIMED: u32 = 1;

impl Meta {
    /// Takes away a tree that was never linked. `Complete` also if it is linked or gone meanwhile.
    ///
    /// The first commit marks its root (a device number, which directories do not have), so that its maker
    /// cannot link it any more; linking changes the root's record, so that the mark fails if it comes late.
    pub(crate) async fn discard_tree(
        &self,
        root: Ino,
        watch: &dyn TreeWatch,
    ) -> MetaResult<TreeEnd> {
        if !self.run(async |_| self.try_claim(root).await).await? {
            return Ok(TreeEnd::Complete);
        }
        let how = TreeRemoval {
            who: &Credentials::ROOT,
            disposal: Disposal::Discard,
            width: limits::BACKGROUND_WIDTH,
            batch: limits::BACKGROUND_BATCH,
            watch,
        };
        for _ in 0..limits::REMOVE_ROUNDS_MAX {
            if self.empty_tree(root, &how).await? == TreeEnd::Stopped {
                return Ok(TreeEnd::Stopped);
            }
            if self.run(async |_| self.try_forget(root).await).await? {
                let deleted = None;
                watch.removed(&Removed { ino: root, deleted });
                return Ok(TreeEnd::Complete);
            }
        }
        Err(MetaError::NotEmpty)
    }

    /// Whether the tree is ours to take away.
    async fn try_claim(&self, root: Ino) -> MetaResult<Attempt<bool>> {
        let attr = self.fetch(&[Key::Attr(root)]).await?.attr()?;
        // After the record was read: a link made before shows in the notes, one made after in the record.
        if !self.is_detached(root).await? {
            return Ok(Attempt::Done(false));
        }
        let mut plan = Plan::default();
        match attr {
            None => {
                plan.check(Check::NoAttr(root));
                plan.write(Write::DeleteDetached(root));
            }
            Some(attr) if attr.rdev == CLAIMED => return Ok(Attempt::Done(true)),
            Some(old) => {
                let mut new = old.clone();
                new.rdev = CLAIMED;
                plan.check(Check::Attr {
                    ino: root,
                    fields: AttrFields::ALL,
                    expect: old.clone(),
                });
                let ino = root;
                plan.write(Write::UpdateAttr { ino, old, new });
            }
        }
        Ok(match self.apply(plan).await? {
            // Once more: it is claimed, or gone.
            Applied::Committed { .. } | Applied::Conflict { .. } => Attempt::Conflict(root),
        })
    }

    async fn is_detached(&self, root: Ino) -> MetaResult<bool> {
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&Scan::Detached, cursor.as_ref(), limits::SESSION_PAGE)
                .await?;
            let is_root = |item: &Item| matches!(item, Item::Detached { ino, .. } if *ino == root);
            if page.items.iter().any(is_root) {
                return Ok(true);
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(false),
            }
        }
    }

    /// Deletes the root of a claimed tree; `false` if there is something in it.
    async fn try_forget(&self, root: Ino) -> MetaResult<Attempt<bool>> {
        let Some(attr) = self.fetch(&[Key::Attr(root)]).await?.attr()? else {
            return Ok(Attempt::Done(true));
        };
        let mut plan = Plan::default();
        plan.check(Check::Attr {
            ino: root,
            fields: AttrFields::OWNER,
            expect: attr.clone(),
        });
        let empty = plan.check(Check::DirEmpty(root));
        plan.write(Write::DeleteAttr(root));
        plan.write(Write::DeleteXattrs(root));
        plan.write(Write::DeleteDirStat(root));
        plan.write(Write::DeleteQuota(QuotaKey::Dir(root)));
        plan.write(Write::DeleteDetached(root));
        plan.charge(&attr, -crate::types::align_4k(0), -1);
        Ok(match self.apply(plan).await? {
            Applied::Committed { .. } => Attempt::Done(true),
            Applied::Conflict { check, .. } if check == empty => Attempt::Done(false),
            Applied::Conflict { ino, .. } => Attempt::Conflict(ino),
        })
    }
}

/// A watch for removals that nobody follows: what is to be deleted stays filed as deleted.
pub(crate) struct Unwatched;

impl TreeWatch for Unwatched {
    fn removed(&self, _removed: &Removed) {}
}
