//! What becomes of an inode that loses a name: one set of rules for unlink, rmdir and the target of a rename.
//!
//! [`Meta::fate`] decides, [`Plan::remove`] writes it down. The entry itself is the caller's: a rename
//! replaces it where the others delete it.
//!
//! Fates: to the trash (links and usage as before); another link stays; open here, so this process's session
//! keeps the inode until the last close; gone, with a file's data filed for deletion. Trash is bypassed if it
//! is off, the source is in it, the inode says so (`chattr +s`), or a hard-linked file is there already under
//! the same name.
//!
//! An open may come between the decision to delete and the commit, on another core. It has counted its handle
//! before it looked at the file, so [`Meta::removed`] finds it after the commit and brings the file back.

use crate::client::{Meta, MetaResult};
use crate::engine::{AttrFields, Check, Write};
use crate::ops::{Disposal, Removed};
use crate::types::{Attr, Dentry, FileKind, Ino, Name, QuotaKey, SessionId, Timestamp, attr_flags};

use super::plan::{Applied, Plan};
use super::{rules, trash};

/// An entry that is to go, as it was read.
pub(crate) struct Victim {
    /// Its directory.
    pub(crate) parent: Ino,
    /// Its name.
    pub(crate) name: Name,
    /// Its content.
    pub(crate) dentry: Dentry,
    /// The inode behind it; `None` if it dangles.
    pub(crate) attr: Option<Attr>,
}

impl Victim {
    /// Type of the inode; of a dangling entry, what the entry says.
    pub(crate) fn kind(&self) -> FileKind {
        self.attr
            .as_ref()
            .map_or(self.dentry.kind, |attr| attr.kind)
    }

    fn is_dir(&self) -> bool {
        self.kind() == FileKind::Directory
    }
}

/// What becomes of it.
pub(crate) enum Fate {
    /// There is no inode behind the entry.
    Dangling,
    /// Moves to the trash.
    Trash {
        /// Hour directory.
        hour: Ino,
        /// Name there.
        name: Name,
        /// It is there already, and this was its last other name.
        present: bool,
    },
    /// Has other names.
    Linked,
    /// Last link gone, but a handle is open: kept for this session, and pinned.
    Sustained(SessionId),
    /// Last link gone.
    Deleted,
}

impl Meta {
    /// Decides. `trash_taken`: an earlier attempt found the name in the trash taken. A pin may be held when
    /// this returns: go on to [`Plan::remove`] and `apply` without an await or an error in between.
    pub(crate) async fn fate(
        &self,
        victim: &Victim,
        now: Timestamp,
        trash_taken: bool,
    ) -> MetaResult<Fate> {
        self.fate_by(victim, now, trash_taken, Disposal::Trash)
            .await
    }

    /// As [`Meta::fate`], with the trash or past it.
    pub(crate) async fn fate_by(
        &self,
        victim: &Victim,
        now: Timestamp,
        trash_taken: bool,
        disposal: Disposal,
    ) -> MetaResult<Fate> {
        if let Some(fate) = self.staying(victim, now, trash_taken, disposal).await? {
            return Ok(fate);
        }
        if victim.kind() == FileKind::File
            && let Some(session) = self.pin_open(victim.dentry.ino)
        {
            return Ok(Fate::Sustained(session));
        }
        Ok(Fate::Deleted)
    }

    /// The part of the decision that no open handle has a say in; `None`: the last link goes.
    pub(crate) async fn staying(
        &self,
        victim: &Victim,
        now: Timestamp,
        trash_taken: bool,
        disposal: Disposal,
    ) -> MetaResult<Option<Fate>> {
        let Some(attr) = &victim.attr else {
            return Ok(Some(Fate::Dangling));
        };
        let others = !victim.is_dir() && attr.nlink > 1;
        let to_trash = disposal == Disposal::Trash
            && self.shared.setting().trash_days > 0
            && !victim.parent.is_trash()
            && attr.flags & attr_flags::SKIP_TRASH == 0
            && !(trash_taken && others);
        if to_trash {
            let hour = self.trash_hour(now).await?;
            let name = trash::entry_name(victim.parent, victim.dentry.ino, &victim.name);
            return Ok(Some(Fate::Trash {
                hour,
                name,
                present: trash_taken,
            }));
        }
        Ok(others.then_some(Fate::Linked))
    }
}

impl Meta {
    /// The answer of an operation that removed `victim`, after its commit. `closed`: what giving back a pin
    /// deleted.
    pub(crate) async fn removed(
        &self,
        victim: &Victim,
        fate: &Fate,
        closed: Option<u64>,
    ) -> Removed {
        let ino = victim.dentry.ino;
        let deleted = match (fate, &victim.attr) {
            (Fate::Deleted, Some(attr)) if attr.kind == FileKind::File => {
                match self.pin_open(ino) {
                    None => Some(attr.length),
                    Some(session) => self.revive(session, ino, attr).await,
                }
            }
            _ => closed,
        };
        Removed { ino, deleted }
    }

    /// Somebody in this process opened the file between the decision to delete it and the commit: brings it
    /// back as what it would have become had the open come first. Its data is untouched so far, for nobody
    /// reclaims it before the operation has answered. Answers its length if it was closed meanwhile.
    async fn revive(&self, session: SessionId, ino: Ino, attr: &Attr) -> Option<u64> {
        let mut plan = Plan::default();
        plan.pin(ino);
        plan.check(Check::NoAttr(ino));
        let kept = Attr {
            nlink: 0,
            ctime: self.now(),
            ..attr.clone()
        };
        plan.write(Write::InsertAttr { ino, attr: kept });
        plan.write(Write::AddSustained { sid: session, ino });
        plan.write(Write::DeleteDeletedFile {
            ino,
            length: attr.length,
        });
        plan.charge(attr, rules::charged_space(attr), 1);
        match self.apply(plan).await {
            Ok(Applied::Committed { deleted, .. }) => deleted,
            Ok(Applied::Conflict { .. }) => None,
            Err(error) => {
                // Left to the job that collects deleted files: whoever has it open may read on for a while.
                tracing::warn!(%ino, %error, "a file was deleted while it was being opened");
                None
            }
        }
    }
}

impl Plan {
    /// Carries out `fate` on everything of the victim but its entry. To be called after all other checks are
    /// in the plan: those added here at the end have a meaning of their own when they fail.
    pub(crate) fn remove(&mut self, victim: &Victim, fate: &Fate, now: Timestamp) {
        let ino = victim.dentry.ino;
        self.note(
            victim.parent,
            rules::negated(rules::entry_stat(victim.attr.as_ref())),
        );
        match &victim.attr {
            None => {
                self.check(Check::NoAttr(ino));
            }
            Some(attr) => {
                self.check(Check::Attr {
                    ino,
                    fields: AttrFields::ALL,
                    expect: attr.clone(),
                });
                self.remove_inode(victim, attr, fate, now);
            }
        }
        if victim.is_dir() {
            self.write(Write::DeleteDirStat(ino));
            self.write(Write::DeleteQuota(QuotaKey::Dir(ino)));
            self.emptiness = Some(self.check(Check::DirEmpty(ino)));
        }
        if let Fate::Trash {
            hour,
            name,
            present,
        } = fate
        {
            let expect = present.then_some(victim.dentry);
            let check = Check::Dentry {
                parent: *hour,
                name: name.clone(),
                expect,
            };
            self.trash_name = Some(self.check(check));
        }
    }

    fn remove_inode(&mut self, victim: &Victim, attr: &Attr, fate: &Fate, now: Timestamp) {
        let ino = victim.dentry.ino;
        let mut new = Attr {
            ctime: now,
            ..attr.clone()
        };
        match fate {
            Fate::Dangling => {}
            Fate::Trash {
                hour,
                name,
                present,
            } => {
                let expect = trash::directory(Ino::TRASH, now);
                self.check(Check::Attr {
                    ino: *hour,
                    fields: AttrFields::EXISTS,
                    expect,
                });
                new.parent = if attr.parent == Ino::NONE {
                    Ino::NONE
                } else {
                    *hour
                };
                self.write(Write::UpdateAttr {
                    ino,
                    old: attr.clone(),
                    new,
                });
                if !present {
                    let (parent, name, dentry) = (*hour, name.clone(), victim.dentry);
                    self.write(Write::InsertDentry {
                        parent,
                        name,
                        dentry,
                    });
                    self.note(parent, rules::entry_stat(Some(attr)));
                }
                if attr.parent == Ino::NONE {
                    if !present {
                        self.write(Write::AddParent {
                            ino,
                            parent: *hour,
                            delta: 1,
                        });
                    }
                    self.write(Write::AddParent {
                        ino,
                        parent: victim.parent,
                        delta: -1,
                    });
                }
            }
            Fate::Linked => {
                new.nlink -= 1;
                self.write(Write::UpdateAttr {
                    ino,
                    old: attr.clone(),
                    new,
                });
                if attr.parent == Ino::NONE {
                    self.write(Write::AddParent {
                        ino,
                        parent: victim.parent,
                        delta: -1,
                    });
                }
            }
            Fate::Sustained(session) => {
                new.nlink = 0;
                self.write(Write::UpdateAttr {
                    ino,
                    old: attr.clone(),
                    new,
                });
                self.write(Write::AddSustained { sid: *session, ino });
                self.pin(ino);
                self.forget_extras(ino, attr);
            }
            Fate::Deleted => {
                match attr.kind {
                    FileKind::File => {
                        let (length, time) = (attr.length, now.sec);
                        self.write(Write::AddDeletedFile { ino, length, time });
                    }
                    FileKind::Symlink => {
                        self.write(Write::DeleteSymlink(ino));
                    }
                    FileKind::Directory
                    | FileKind::Fifo
                    | FileKind::BlockDev
                    | FileKind::CharDev
                    | FileKind::Socket => {}
                }
                self.write(Write::DeleteAttr(ino));
                self.forget_extras(ino, attr);
                self.charge(attr, -rules::charged_space(attr), -1);
            }
        }
    }

    fn forget_extras(&mut self, ino: Ino, attr: &Attr) {
        self.write(Write::DeleteXattrs(ino));
        if attr.parent == Ino::NONE {
            self.write(Write::DeleteParents(ino));
        }
    }
}
