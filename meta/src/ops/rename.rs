//! `rename`, with NOREPLACE and EXCHANGE.
//!
//! Round trips of an attempt: one read (both parents, both entries with their inodes and, if a directory may
//! move to another parent, the ancestors of its destination), one commit. If some directory has a quota,
//! the ways up from both parents may cost one more each; a directory without a quota of its own that leaves or
//! enters one below a quota is summed up first (`quotas`).
//!
//! No loops: the commit relies on every step of that walk (each ancestor's parent), on the source entry and
//! on the destination. At the moment of the commit none of the destination's ancestors is the moved directory,
//! whatever others moved in between. The walk may stop at the source's parent: nothing above that can be the
//! moved directory in a tree without loops. An exchange asks the same of both sides.
//!
//! What is replaced becomes what an unlink or rmdir makes of it ([`super::removal`]).

use std::cell::Cell;

use crate::client::{Attempt, Meta, MetaResult, Sight};
use crate::engine::{AttrFields, Check, Key, Write};
use crate::error::{EngineError, MetaError};
use crate::limits::DIR_DEPTH_MAX;
use crate::ops::{Caller, Removed, Rename, RenameMode};
use crate::types::{Attr, Dentry, FileKind, Ino, Name, Timestamp, attr_flags};

use super::plan::{Applied, Plan};
use super::removal::Victim;
use super::{names, rules};

mod quotas;

/// An entry's place: directory, its attributes, name.
struct Place {
    dir: Ino,
    attr: Attr,
    name: Name,
}

/// The inode that moves.
struct Moved {
    dentry: Dentry,
    attr: Attr,
}

impl Moved {
    fn is_dir(&self) -> bool {
        self.attr.kind == FileKind::Directory
    }
}

/// What was read, and found to be allowed.
struct Scene {
    from: Place,
    to: Place,
    moved: Moved,
    target: Option<Victim>,
    mode: RenameMode,
    /// Ancestors of the destination; empty if no directory moves to another parent.
    above_to: Vec<(Ino, Attr)>,
    /// The same of the source, for an exchange.
    above_from: Vec<(Ino, Attr)>,
}

impl Meta {
    /// Renames; answers what was replaced, if anything.
    pub async fn rename(&self, caller: &Caller, rename: &Rename) -> MetaResult<Option<Removed>> {
        names::renamed(rename.from_parent, &rename.from_name)?;
        names::renamed(rename.to_parent, &rename.to_name)?;
        if rename.to_parent.is_trash()
            || rename.from_parent == Ino::TRASH
            || (rename.from_parent.is_trash() && !caller.is_root())
        {
            return Err(MetaError::NotPermitted);
        }
        if rename.mode == RenameMode::Restore && !rename.from_parent.is_trash() {
            return Err(MetaError::Invalid(
                "only what is in the trash can be restored",
            ));
        }
        if rename.from_parent.is_trash() && rename.mode == RenameMode::Exchange {
            // It would put something into the trash under a name that says nothing of its origin.
            return Err(MetaError::NotPermitted);
        }
        self.check_writable()?;
        let rename = &self.respelled(rename).await?;
        let trash_taken = Cell::new(false);
        self.run(async |sight| self.try_rename(sight, caller, rename, &trash_taken).await)
            .await
    }

    async fn try_rename(
        &self,
        sight: &Sight,
        caller: &Caller,
        rename: &Rename,
        trash_taken: &Cell<bool>,
    ) -> MetaResult<Attempt<Option<Removed>>> {
        let Some(scene) = self.read_scene(sight, rename).await? else {
            return Ok(sight.done(None));
        };
        scene.check_rules(caller)?;
        let walked = scene.check_no_loop()?;
        let trees = self.check_quotas(&scene).await?;
        let now = self.now();
        let mut plan = Plan::default();
        for (from, to, below) in trees {
            plan.move_tree(from, to, below);
        }
        plan.check(rules::parent_check(
            caller,
            scene.from.dir,
            &scene.from.attr,
        ));
        plan.check(rules::parent_check(caller, scene.to.dir, &scene.to.attr));
        for (ino, expect) in walked {
            plan.check(Check::Attr {
                ino,
                fields: AttrFields::PARENT,
                expect,
            });
        }
        if scene.mode == RenameMode::Exchange {
            scene.exchange(&mut plan, now);
            scene.patch_parents(self, &mut plan, now);
            return Ok(match self.apply(plan).await? {
                Applied::Committed { .. } => Attempt::Done(None),
                Applied::Conflict { ino, .. } => Attempt::Conflict(ino),
            });
        }
        let lacks_stat = self.lacks_stat(&scene).await?;
        let fate = match &scene.target {
            Some(victim) => Some(self.fate(victim, now, trash_taken.get()).await?),
            None => None,
        };
        scene.relocate(&mut plan, now);
        scene.patch_parents(self, &mut plan, now);
        if lacks_stat {
            plan.write(Write::InitDirStat(scene.moved.dentry.ino));
        }
        if let (Some(victim), Some(fate)) = (&scene.target, &fate) {
            plan.remove(victim, fate, now);
        }

        let (emptiness, trash_name) = (plan.emptiness, plan.trash_name);
        match self.apply(plan).await? {
            Applied::Committed { deleted, .. } => {
                let Some((victim, fate)) = scene.target.as_ref().zip(fate) else {
                    return Ok(Attempt::Done(None));
                };
                let removed = self.removed(victim, &fate, deleted).await;
                Ok(Attempt::Done(Some(removed)))
            }
            Applied::Conflict { check, .. } if Some(check) == emptiness => Err(MetaError::NotEmpty),
            Applied::Conflict { check, ino } => {
                if Some(check) == trash_name {
                    trash_taken.set(!trash_taken.get());
                }
                Ok(Attempt::Conflict(ino))
            }
        }
    }

    /// Whether a directory comes back from the trash without the statistics it lost on its way there.
    async fn lacks_stat(&self, scene: &Scene) -> MetaResult<bool> {
        if scene.mode != RenameMode::Restore || !scene.moved.is_dir() {
            return Ok(false);
        }
        let mut answers = self.fetch(&[Key::DirStat(scene.moved.dentry.ino)]).await?;
        Ok(answers.record().is_none())
    }

    /// Reads everything; `None` if there is nothing to do: both names are the same, or the same inode's.
    async fn read_scene(&self, sight: &Sight, rename: &Rename) -> MetaResult<Option<Scene>> {
        let (from_name, to_name) = (rename.from_name.clone(), rename.to_name.clone());
        let mut keys = vec![
            Key::Attr(rename.from_parent),
            Key::Attr(rename.to_parent),
            Key::Entry {
                parent: rename.from_parent,
                name: from_name.clone(),
            },
            Key::Entry {
                parent: rename.to_parent,
                name: to_name.clone(),
            },
        ];
        let crosses = rename.from_parent != rename.to_parent;
        let up = crosses && !(sight.memory && self.known_leaf(rename.from_parent, &from_name));
        let down = crosses
            && rename.mode == RenameMode::Exchange
            && !(sight.memory && self.known_leaf(rename.to_parent, &to_name));
        if up {
            keys.push(Key::Ancestors(rename.to_parent));
        }
        if down {
            keys.push(Key::Ancestors(rename.from_parent));
        }
        let mut answers = self.fetch_at(sight, &keys).await?;
        let from_attr = rules::directory(answers.attr()?)?;
        let to_attr = rules::directory(answers.attr()?)?;
        let from = Place {
            dir: rename.from_parent,
            attr: from_attr,
            name: from_name,
        };
        let to = Place {
            dir: rename.to_parent,
            attr: to_attr,
            name: to_name.clone(),
        };
        let (dentry, attr) = answers.entry()?.ok_or(MetaError::NotFound)?;
        let moved = Moved {
            dentry,
            attr: attr.ok_or(MetaError::NotFound)?,
        };
        let target = answers.entry()?.map(|(dentry, attr)| Victim {
            parent: rename.to_parent,
            name: to_name,
            dentry,
            attr,
        });
        match (&target, rename.mode) {
            (Some(_), RenameMode::NoReplace | RenameMode::Restore) => {
                return Err(MetaError::Exists);
            }
            (None, RenameMode::Exchange) => return Err(MetaError::NotFound),
            (Some(victim), _) if victim.dentry.ino == dentry.ino => return Ok(None),
            _ => {}
        }
        let mut above_to = if up { answers.path()? } else { Vec::new() };
        let mut above_from = if down { answers.path()? } else { Vec::new() };
        // Memory was wrong about what is there.
        if crosses && !up && moved.is_dir() {
            let keys = [Key::Ancestors(rename.to_parent)];
            above_to = self.fetch(&keys).await?.path()?;
        }
        let comes_back = |victim: &Victim| victim.kind() == FileKind::Directory;
        if crosses
            && !down
            && rename.mode == RenameMode::Exchange
            && target.as_ref().is_some_and(comes_back)
        {
            let keys = [Key::Ancestors(rename.from_parent)];
            above_from = self.fetch(&keys).await?.path()?;
        }
        Ok(Some(Scene {
            from,
            to,
            moved,
            target,
            mode: rename.mode,
            above_to,
            above_from,
        }))
    }

    /// Whether memory knows this entry as something that has nothing below it.
    fn known_leaf(&self, parent: Ino, name: &Name) -> bool {
        let entry = self.shared.recall.entry(parent, name).flatten();
        entry.is_some_and(|dentry| dentry.kind != FileKind::Directory)
    }
}

/// Walks from `place` towards the root along `above`, its ancestors, up to `stop`; `Invalid` on meeting `moved`.
/// Answers the ancestors it passed: the directory of `place` itself is checked as a parent anyway.
fn walk_up<'a>(
    place: &Place,
    above: &'a [(Ino, Attr)],
    moved: Ino,
    stop: Ino,
    mode: RenameMode,
) -> MetaResult<&'a [(Ino, Attr)]> {
    let mut at = place.dir;
    for passed in 0..=above.len() {
        if at == moved {
            return Err(MetaError::Invalid("a directory cannot move below itself"));
        }
        if at == stop || at == Ino::ROOT {
            return Ok(&above[..passed.saturating_sub(1)]);
        }
        if at.is_trash() {
            // Part of a removed tree: only trees rebuilt in the trash grow there.
            return match mode {
                RenameMode::Restore => Ok(&above[..passed.saturating_sub(1)]),
                _ => Err(MetaError::NotFound),
            };
        }
        if let Some((ino, _)) = above.get(passed) {
            at = *ino;
        }
    }
    if above.len() < DIR_DEPTH_MAX {
        // An ancestor has just gone.
        return Err(MetaError::NotFound);
    }
    Err(MetaError::Engine(EngineError::Corrupt {
        record: format!("ancestors of {}", place.dir),
        cause: format!("more than {DIR_DEPTH_MAX} levels, or a loop"),
    }))
}

impl Scene {
    /// Refuses to move a directory below itself. Answers the ancestors the answer depends on.
    fn check_no_loop(&self) -> MetaResult<Vec<(Ino, Attr)>> {
        let mut walked = Vec::new();
        if !self.crosses() {
            return Ok(walked);
        }
        if self.moved.is_dir() {
            let (moved, stop) = (self.moved.dentry.ino, self.from.dir);
            walked.extend_from_slice(walk_up(&self.to, &self.above_to, moved, stop, self.mode)?);
        }
        if let Some(target) = &self.target
            && self.mode == RenameMode::Exchange
            && target.kind() == FileKind::Directory
        {
            let (moved, stop) = (target.dentry.ino, self.to.dir);
            walked.extend_from_slice(walk_up(
                &self.from,
                &self.above_from,
                moved,
                stop,
                self.mode,
            )?);
        }
        Ok(walked)
    }

    fn crosses(&self) -> bool {
        self.from.dir != self.to.dir
    }

    /// Everything that can be decided from what was read.
    fn check_rules(&self, caller: &Caller) -> MetaResult<()> {
        let (from, to, moved) = (&self.from.attr, &self.to.attr, &self.moved);
        if let Some(target) = self
            .target
            .as_ref()
            .filter(|_| self.mode != RenameMode::Exchange)
        {
            match (moved.is_dir(), target.kind() == FileKind::Directory) {
                (true, false) => return Err(MetaError::NotDirectory),
                (false, true) => return Err(MetaError::IsDirectory),
                (true, true) | (false, false) => {}
            }
        }
        if to.in_trash() && self.mode != RenameMode::Restore {
            return Err(MetaError::NotFound);
        }
        rules::check_not_frozen(from)?;
        rules::check_not_frozen(&moved.attr)?;
        if to.flags & attr_flags::IMMUTABLE != 0 {
            return Err(MetaError::NotPermitted);
        }
        if let Some(target) = &self.target {
            // An append-only directory takes new names but gives none up.
            rules::check_not_frozen(to)?;
            if let Some(attr) = &target.attr {
                rules::check_not_frozen(attr)?;
                rules::check_sticky(caller, to, attr.uid)?;
            }
        }
        rules::check_sticky(caller, from, moved.attr.uid)?;
        // Owning a sticky directory is not enough to move somebody else's directory out of it: that would
        // change the latter's `..`.
        if self.crosses()
            && rules::sticky_matters(caller, from)
            && caller.uid != moved.attr.uid
            && moved.is_dir()
        {
            return Err(MetaError::Access);
        }
        Ok(())
    }

    /// Changes of the two parents' link counts.
    fn nlink_deltas(&self) -> (i32, i32) {
        let moves = i32::from(self.crosses() && self.moved.is_dir());
        let target_dir = self
            .target
            .as_ref()
            .is_some_and(|it| it.kind() == FileKind::Directory);
        match self.mode {
            RenameMode::Exchange => {
                let comes_back = i32::from(self.crosses() && target_dir);
                (comes_back - moves, moves - comes_back)
            }
            RenameMode::Replace | RenameMode::NoReplace | RenameMode::Restore => {
                (-moves, moves - i32::from(target_dir))
            }
        }
    }

    fn patch_parents(&self, meta: &Meta, plan: &mut Plan, now: Timestamp) {
        let (from, to) = self.nlink_deltas();
        if self.crosses() {
            plan.patch_dir(meta, self.from.dir, &self.from.attr, from, now);
            plan.patch_dir(meta, self.to.dir, &self.to.attr, to, now);
        } else {
            plan.patch_dir(meta, self.to.dir, &self.to.attr, from + to, now);
        }
    }

    fn dentry_checks(&self, plan: &mut Plan) {
        for (place, expect) in [
            (&self.from, Some(self.moved.dentry)),
            (&self.to, self.target.as_ref().map(|target| target.dentry)),
        ] {
            plan.check(Check::Dentry {
                parent: place.dir,
                name: place.name.clone(),
                expect,
            });
        }
    }

    /// Puts the moved inode in its new place; what becomes of the one replaced is added by the caller.
    fn relocate(&self, plan: &mut Plan, now: Timestamp) {
        self.dentry_checks(plan);
        let dentry = self.moved.dentry;
        let (parent, name) = (self.from.dir, self.from.name.clone());
        plan.write(Write::DeleteDentry { parent, name });
        let (parent, name) = (self.to.dir, self.to.name.clone());
        plan.write(match self.target {
            Some(_) => Write::ReplaceDentry {
                parent,
                name,
                dentry,
            },
            None => Write::InsertDentry {
                parent,
                name,
                dentry,
            },
        });
        shift(
            plan,
            dentry.ino,
            &self.moved.attr,
            &self.from,
            &self.to,
            now,
        );
    }

    /// Swaps the two.
    fn exchange(&self, plan: &mut Plan, now: Timestamp) {
        let Some(target) = &self.target else { return };
        self.dentry_checks(plan);
        for (place, dentry) in [(&self.from, target.dentry), (&self.to, self.moved.dentry)] {
            let (parent, name) = (place.dir, place.name.clone());
            plan.write(Write::ReplaceDentry {
                parent,
                name,
                dentry,
            });
        }
        shift(
            plan,
            self.moved.dentry.ino,
            &self.moved.attr,
            &self.from,
            &self.to,
            now,
        );
        if let Some(attr) = &target.attr {
            shift(plan, target.dentry.ino, attr, &self.to, &self.from, now);
        }
    }
}

/// Moves an inode's record and its share of the directories' statistics.
fn shift(plan: &mut Plan, ino: Ino, attr: &Attr, from: &Place, to: &Place, now: Timestamp) {
    plan.check(Check::Attr {
        ino,
        fields: AttrFields::ALL,
        expect: attr.clone(),
    });
    let linked = attr.parent == Ino::NONE;
    let parent = if linked { Ino::NONE } else { to.dir };
    let new = Attr {
        ctime: now,
        parent,
        ..attr.clone()
    };
    plan.write(Write::UpdateAttr {
        ino,
        old: attr.clone(),
        new,
    });
    if from.dir == to.dir {
        return;
    }
    if linked {
        plan.write(Write::AddParent {
            ino,
            parent: to.dir,
            delta: 1,
        });
        plan.write(Write::AddParent {
            ino,
            parent: from.dir,
            delta: -1,
        });
    }
    let stat = rules::entry_stat(Some(attr));
    plan.note(from.dir, rules::negated(stat));
    plan.note(to.dir, stat);
}
