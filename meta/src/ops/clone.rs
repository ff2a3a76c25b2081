//! `clone`: a copy of a file or a tree that shares its data, as the metadata alone.
//!
//! Called by `sluice clone`. A slice that a copy refers to gets one more reference for each record, in the
//! commit that copies the record; the same commit relies on the source's attributes and chunk lists as they
//! were read, so that neither a write nor a compaction nor a deletion in between can take a slice away.
//!
//! 1. A file is one commit. A directory's copy is made where nobody sees it: its root is noted as *detached*,
//!    with [`Ino::TRASH`] for a parent until it has one.
//! 2. The entries of each directory follow in batches ([`batch`]), one commit each, up to `width` directories
//!    at the same time.
//! 3. One commit links the root: destination's rules as for a create, parent's link count, note taken back.
//!
//! A clone that fails takes its tree away; one that is killed leaves the note, and
//! [`Meta::clean_detached`](crate::client::Meta) takes the tree away a day later. A tree that was taken away
//! meanwhile cannot be linked any more ([`Meta::discard_tree`]).
//!
//! What a copy is: same content, extended attributes, ACLs, flags and tier. Owner, mode and times are kept or
//! made anew ([`CloneAttrs`]). Hard links within a tree become files of their own. Directories are copied as
//! they are found: it is no snapshot, what changes meanwhile may be in the copy or not.
//!
//! Memory: as [`super::remove_tree`].

mod batch;

use std::cell::Cell;
use std::rc::Rc;

use crate::client::{Attempt, Meta, MetaResult};
use crate::engine::{AttrFields, Check, Engine, Item, Key, Scan, Write};
use crate::error::{EngineError, MetaError};
use crate::limits;
use crate::quota::Usage;
use crate::types::{Attr, Dentry, FileKind, Ino, Name, Timestamp, align_4k};

use super::credentials::{self, Credentials};
use super::plan::{Applied, Plan};
use super::remove_tree::Unwatched;
use super::together::Together;
use super::{growth, names, rules};
use batch::{Copies, Destination};

/// What becomes of owner, mode and times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloneAttrs {
    /// The caller's ids, mode without these bits, and the time of the clone.
    Fresh {
        /// The caller's umask.
        umask: u16,
    },
    /// The source's.
    Preserve,
}

/// What is to be cloned, and how.
pub struct CloneTree<'a> {
    /// By whom: source and destination must grant it as the kernel would ask.
    pub who: &'a Credentials,
    /// File or directory to copy.
    pub source: Ino,
    /// Directory of the copy.
    pub to_parent: Ino,
    /// Name of the copy.
    pub to_name: &'a [u8],
    /// Owner, mode and times.
    pub attrs: CloneAttrs,
    /// Directories worked on at the same time, at least 1.
    pub width: usize,
    /// Is told the number of entries copied so far.
    pub progress: &'a dyn Fn(u64),
}

/// What a clone made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cloned {
    /// The copy.
    pub ino: Ino,
    /// Inodes made, the copy itself included.
    pub inodes: u64,
    /// Bytes they are charged for.
    pub space: i64,
}

/// A clone on its way.
struct Run<'a> {
    tree: &'a CloneTree<'a>,
    inodes: Cell<u64>,
    space: Cell<i64>,
    /// The change time that the root gets when it is linked.
    root_ctime: Cell<Timestamp>,
}

impl Run<'_> {
    fn count(&self, inodes: u64, space: i64) {
        self.inodes.set(self.inodes.get() + inodes);
        self.space.set(self.space.get().saturating_add(space));
        (self.tree.progress)(self.inodes.get());
    }
}

/// A directory that is to be copied into one that is there.
struct Level {
    source: Ino,
    copy: Ino,
}

impl Meta {
    /// Makes a copy of a file or tree; answers what it made. `NoSpace` if the volume has no room for it,
    /// `Exists` if the name is taken; in either case nothing is left of it.
    pub async fn clone_tree(&self, tree: &CloneTree<'_>) -> MetaResult<Cloned> {
        let name = names::new_entry(tree.to_parent, tree.to_name)?;
        if tree.source.is_trash() || tree.to_parent.is_trash() {
            return Err(MetaError::NotPermitted);
        }
        self.check_writable()?;
        let parent = tree.to_parent;
        let keys = [
            Key::Attr(tree.source),
            Key::Attr(parent),
            Key::Dentry {
                parent,
                name: name.clone(),
            },
        ];
        let mut answers = self.fetch(&keys).await?;
        let source = answers.attr()?.ok_or(MetaError::NotFound)?;
        let parent_attr = rules::growing_directory(answers.attr()?)?;
        if source.in_trash() {
            return Err(MetaError::NotPermitted);
        }
        if answers.dentry()?.is_some() {
            return Err(MetaError::Exists);
        }
        let wanted = credentials::WRITE | credentials::EXECUTE;
        self.permits(tree.who, &parent_attr, wanted).await?;

        let run = Run {
            tree,
            inodes: Cell::new(0),
            space: Cell::new(0),
            root_ctime: Cell::default(),
        };
        let ino = if source.kind == FileKind::Directory {
            self.clone_directory(&run, name).await?
        } else {
            self.permits(tree.who, &source, credentials::READ).await?;
            self.clone_file(&run, name).await?
        };
        Ok(Cloned {
            ino,
            inodes: run.inodes.get(),
            space: run.space.get(),
        })
    }

    async fn clone_directory(&self, run: &Run<'_>, name: Name) -> MetaResult<Ino> {
        let source = run.tree.source;
        let copy = self.alloc_inode().await?;
        self.run(async |_| self.try_clone_root(run, copy).await)
            .await?;
        let copied = match self.clone_levels(run, Level { source, copy }).await {
            Ok(()) => {
                self.run(async |_| self.try_attach(run, copy, &name).await)
                    .await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = copied {
            // Of a link of unknown fate too: it is found out before anything is taken away.
            if let Err(error) = self.discard_tree(copy, &Unwatched).await {
                tracing::warn!(%copy, %error, "what a failed clone copied stays for a day");
            }
            return Err(error);
        }
        Ok(copy)
    }

    /// Makes the root of a copy, where nobody sees it.
    async fn try_clone_root(&self, run: &Run<'_>, copy: Ino) -> MetaResult<Attempt<()>> {
        let source = run.tree.source;
        let found = self.read_sources(vec![(Name::new(), source)]).await?;
        let Some(root) = found.into_iter().next() else {
            return Err(MetaError::NotFound);
        };
        let now = self.now();
        let mut plan = Plan::default();
        let time = now.sec;
        plan.check(Check::NoAttr(copy));
        root.check(&mut plan);
        let mut made = run.tree.made(&root.attr, Ino::TRASH, now);
        // Inodes without a name that did not change for an hour are garbage to JuiceFS.
        run.root_ctime.set(made.ctime);
        made.ctime = now;
        self.check_growth(&made, growth::inode_usage(&made))?;
        plan.charge(&made, align_4k(0), 1);
        root.write(&mut plan, copy, made);
        plan.write(Write::AddDetached { ino: copy, time });
        Ok(match self.apply(plan).await? {
            Applied::Committed { .. } => {
                run.count(1, align_4k(0));
                Attempt::Done(())
            }
            Applied::Conflict { ino, .. } => Attempt::Conflict(ino),
        })
    }

    /// Links the finished copy.
    async fn try_attach(&self, run: &Run<'_>, copy: Ino, name: &Name) -> MetaResult<Attempt<()>> {
        let parent = run.tree.to_parent;
        let keys = [
            Key::Attr(parent),
            Key::Dentry {
                parent,
                name: name.clone(),
            },
            Key::Attr(copy),
        ];
        let mut answers = self.fetch(&keys).await?;
        let parent_attr = rules::growing_directory(answers.attr()?)?;
        match answers.dentry()? {
            // An earlier attempt of unknown fate was applied.
            Some(dentry) if dentry.ino == copy => return Ok(Attempt::Done(())),
            Some(_) => return Err(MetaError::Exists),
            None => {}
        }
        let old = answers.attr()?.filter(|root| root.rdev == 0);
        // Else somebody took it for abandoned.
        let old = old.ok_or(MetaError::NotFound)?;
        let whole = Usage {
            space: run.space.get(),
            inodes: run.inodes.get().cast_signed(),
        };
        self.check_dir(parent, whole).await?;
        let now = self.now();
        let mut plan = Plan::default();
        plan.check(rules::parent_check(
            &run.tree.who.caller,
            parent,
            &parent_attr,
        ));
        plan.check(Check::Dentry {
            parent,
            name: name.clone(),
            expect: None,
        });
        plan.check(Check::Attr {
            ino: copy,
            fields: AttrFields::ALL,
            expect: old.clone(),
        });
        let new = Attr {
            parent,
            ctime: run.root_ctime.get(),
            ..old.clone()
        };
        // The root itself is charged by its entry.
        let below = Usage {
            space: run.space.get() - align_4k(0),
            inodes: run.inodes.get().cast_signed() - 1,
        };
        plan.note(parent, rules::entry_stat(Some(&new)));
        plan.add_tree(parent, below);
        let ino = copy;
        plan.write(Write::UpdateAttr { ino, old, new });
        plan.write(Write::InsertDentry {
            parent,
            name: name.clone(),
            dentry: Dentry {
                kind: FileKind::Directory,
                ino: copy,
            },
        });
        plan.patch_dir(self, parent, &parent_attr, 1, now);
        plan.write(Write::DeleteDetached(copy));
        match self.apply(plan).await {
            Ok(Applied::Committed { .. }) => Ok(Attempt::Done(())),
            Ok(Applied::Conflict { ino, .. }) => Ok(Attempt::Conflict(ino)),
            Err(MetaError::Engine(EngineError::UnknownFate { cause, .. })) => {
                tracing::debug!(%copy, cause, "looking whether a clone was linked");
                Ok(Attempt::Conflict(copy))
            }
            Err(error) => Err(error),
        }
    }

    /// Copies everything below a directory, level by level, the deepest first.
    async fn clone_levels(&self, run: &Run<'_>, root: Level) -> MetaResult<()> {
        let mut queue = vec![Rc::new(root)];
        let mut running = Together::new();
        let mut end = Ok(());
        loop {
            while end.is_ok()
                && running.len() < run.tree.width.max(1)
                && let Some(level) = queue.pop()
            {
                running.push(async move { self.clone_level(run, &level).await });
            }
            let Some(copied) = running.next().await else {
                return end;
            };
            match copied {
                Ok(below) => queue.extend(below.into_iter().map(Rc::new)),
                Err(error) => end = end.and(Err(error)),
            }
        }
    }

    /// Copies the entries of one directory; answers its sub-directories.
    async fn clone_level(&self, run: &Run<'_>, level: &Level) -> MetaResult<Vec<Level>> {
        let Some(attr) = self.fetch(&[Key::Attr(level.source)]).await?.attr()? else {
            // Removed meanwhile: its copy stays empty.
            return Ok(Vec::new());
        };
        let wanted = credentials::READ | credentials::EXECUTE;
        self.permits(run.tree.who, &attr, wanted).await?;
        let scan = Scan::Dir {
            parent: level.source,
            attrs: false,
        };
        let mut below = Vec::new();
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&scan, cursor.as_ref(), limits::CLONE_BATCH)
                .await?;
            let names: Vec<Name> = page.items.into_iter().filter_map(entry_name).collect();
            let copies = Copies {
                run,
                source: level.source,
                copy: level.copy,
            };
            self.clone_entries(&copies, names, &mut below).await?;
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(below),
            }
        }
    }

    /// Copies a file to its final place, in one commit.
    async fn clone_file(&self, run: &Run<'_>, name: Name) -> MetaResult<Ino> {
        let copy = self.alloc_inode().await?;
        self.run(async |_| self.try_clone_file(run, copy, &name).await)
            .await?;
        Ok(copy)
    }

    async fn try_clone_file(
        &self,
        run: &Run<'_>,
        copy: Ino,
        name: &Name,
    ) -> MetaResult<Attempt<()>> {
        let parent = run.tree.to_parent;
        let keys = [
            Key::Attr(parent),
            Key::Dentry {
                parent,
                name: name.clone(),
            },
        ];
        let mut answers = self.fetch(&keys).await?;
        let parent_attr = rules::growing_directory(answers.attr()?)?;
        if answers.dentry()?.is_some() {
            return Err(MetaError::Exists);
        }
        let found = self
            .read_sources(vec![(name.clone(), run.tree.source)])
            .await?;
        let source = found.into_iter().next().ok_or(MetaError::NotFound)?;
        let space = rules::charged_space(&source.attr);
        let now = self.now();
        let made = run.tree.made(&source.attr, parent, now);
        let usage = growth::inode_usage(&made);
        self.check_growth(&made, usage)?;
        self.check_dir(parent, usage).await?;
        let mut plan = Plan::default();
        plan.check(rules::parent_check(
            &run.tree.who.caller,
            parent,
            &parent_attr,
        ));
        plan.check(Check::Dentry {
            parent,
            name: name.clone(),
            expect: None,
        });
        source.check(&mut plan);
        plan.note(parent, rules::entry_stat(Some(&made)));
        source.link(&mut plan, &Destination { parent, ino: copy });
        plan.charge(&made, space, 1);
        source.write(&mut plan, copy, made);
        plan.patch_dir(self, parent, &parent_attr, 0, now);
        Ok(match self.apply(plan).await? {
            Applied::Committed { .. } => {
                run.count(1, space);
                Attempt::Done(())
            }
            Applied::Conflict { ino, .. } => Attempt::Conflict(ino),
        })
    }
}

impl CloneTree<'_> {
    /// Attributes of a copy.
    fn made(&self, source: &Attr, parent: Ino, now: Timestamp) -> Attr {
        let mut made = Attr {
            parent,
            // Links are those that the copy itself makes.
            nlink: if source.kind == FileKind::Directory {
                2
            } else {
                1
            },
            ..source.clone()
        };
        if let CloneAttrs::Fresh { umask } = self.attrs {
            made.uid = self.who.caller.uid;
            made.gid = self.who.caller.gid;
            made.mode &= !(umask & 0o777);
            (made.atime, made.mtime, made.ctime) = (now, now, now);
        }
        made
    }
}

fn entry_name(item: Item) -> Option<Name> {
    match item {
        Item::Entry { name, .. } if !name.is_empty() => Some(name),
        _ => None,
    }
}
