//! `rename`, with NOREPLACE and EXCHANGE.
//!
//! Round trips of an attempt: one read (both parents, both entries with their inodes), one commit. A directory
//! that moves to another parent costs one read for each ancestor of its destination, up to the source's parent
//! or the root.
//!
//! No loops: the commit relies on every step of that walk (each ancestor's parent), on the source entry and
//! on the destination. At the moment of the commit none of the destination's ancestors is the moved directory,
//! whatever others moved in between. The walk may stop at the source's parent: nothing above that can be the
//! moved directory in a tree without loops. An exchange asks the same of both sides.
//!
//! What is replaced becomes what an unlink or rmdir makes of it ([`super::removal`]).

use std::cell::Cell;

use crate::client::{Attempt, Meta, MetaResult};
use crate::engine::{AttrFields, Check, Key, Write};
use crate::error::{EngineError, MetaError};
use crate::limits::DIR_DEPTH_MAX;
use crate::ops::{Caller, Removed, Rename, RenameMode};
use crate::types::{Attr, Dentry, FileKind, Ino, Name, Timestamp, attr_flags};

use super::plan::{Applied, Plan};
use super::removal::Victim;
use super::{names, rules};

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
        if rename.from_parent.is_trash() && rename.mode == RenameMode::Exchange {
            // It would put something into the trash under a name that says nothing of its origin.
            return Err(MetaError::NotPermitted);
        }
        self.check_writable()?;
        let trash_taken = Cell::new(false);
        self.run(|| self.try_rename(caller, rename, &trash_taken))
            .await
    }

    async fn try_rename(
        &self,
        caller: &Caller,
        rename: &Rename,
        trash_taken: &Cell<bool>,
    ) -> MetaResult<Attempt<Option<Removed>>> {
        let Some(scene) = self.read_scene(rename).await? else {
            return Ok(Attempt::Done(None));
        };
        scene.check_rules(caller)?;
        let walked = self.check_no_loop(&scene).await?;
        let now = self.now();
        let mut plan = Plan::default();
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
        let fate = match &scene.target {
            Some(victim) => Some(self.fate(victim, now, trash_taken.get()).await?),
            None => None,
        };
        scene.relocate(&mut plan, now);
        scene.patch_parents(self, &mut plan, now);
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

    /// Reads everything; `None` if there is nothing to do: both names are the same, or the same inode's.
    async fn read_scene(&self, rename: &Rename) -> MetaResult<Option<Scene>> {
        let (from_name, to_name) = (rename.from_name.clone(), rename.to_name.clone());
        let keys = [
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
        let mut answers = self.fetch(&keys).await?;
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
            (Some(_), RenameMode::NoReplace) => return Err(MetaError::Exists),
            (None, RenameMode::Exchange) => return Err(MetaError::NotFound),
            (Some(victim), _) if victim.dentry.ino == dentry.ino => return Ok(None),
            _ => {}
        }
        Ok(Some(Scene {
            from,
            to,
            moved,
            target,
            mode: rename.mode,
        }))
    }

    /// Refuses to move a directory below itself. Answers the ancestors the answer depends on.
    async fn check_no_loop(&self, scene: &Scene) -> MetaResult<Vec<(Ino, Attr)>> {
        let mut walked = Vec::new();
        if scene.from.dir == scene.to.dir {
            return Ok(walked);
        }
        if scene.moved.is_dir() {
            let stop = scene.from.dir;
            self.walk_up(&scene.to, scene.moved.dentry.ino, stop, &mut walked)
                .await?;
        }
        if let Some(target) = &scene.target
            && scene.mode == RenameMode::Exchange
            && target.kind() == FileKind::Directory
        {
            let stop = scene.to.dir;
            self.walk_up(&scene.from, target.dentry.ino, stop, &mut walked)
                .await?;
        }
        Ok(walked)
    }

    /// Walks from `place` towards the root, up to `stop`; `Invalid` on meeting `moved`. The directory of
    /// `place` itself is checked as a parent anyway and not part of `walked`.
    async fn walk_up(
        &self,
        place: &Place,
        moved: Ino,
        stop: Ino,
        walked: &mut Vec<(Ino, Attr)>,
    ) -> MetaResult<()> {
        let mut ino = place.dir;
        let mut parent = place.attr.parent;
        for _ in 0..DIR_DEPTH_MAX {
            if ino == moved {
                return Err(MetaError::Invalid("a directory cannot move below itself"));
            }
            if ino == stop || ino == Ino::ROOT {
                return Ok(());
            }
            if ino.is_trash() {
                // Part of a removed tree: nothing is put there.
                return Err(MetaError::NotFound);
            }
            ino = parent;
            if ino == moved || ino == stop || ino == Ino::ROOT || ino.is_trash() {
                continue;
            }
            let attr = rules::directory(self.fetch(&[Key::Attr(ino)]).await?.attr()?)?;
            parent = attr.parent;
            walked.push((ino, attr));
        }
        Err(MetaError::Engine(EngineError::Corrupt {
            record: format!("ancestors of {}", place.dir),
            cause: format!("more than {DIR_DEPTH_MAX} levels, or a loop"),
        }))
    }
}

impl Scene {
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
        if to.in_trash() {
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
            RenameMode::Replace | RenameMode::NoReplace => (-moves, moves - i32::from(target_dir)),
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
