//! The namespace operations, rule by rule, on the engine in memory.
//!
//! Most tests are scripts: steps with the error number each must answer (0 = success). After a script the
//! whole volume must add up.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helper may panic like the test"
)]

#[path = "support/stage.rs"]
mod stage;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sluice_meta::client::{MetaOptions, MetaResult};
use sluice_meta::engine::memory::{Request, Verdict};
use sluice_meta::engine::{AttrFields, Check, Counter, Key, Txn, Write};
use sluice_meta::error::{EngineError, MetaError};
use sluice_meta::ops::{
    Caller, NewInode, RenameMode, RenameMode::Exchange, RenameMode::NoReplace, RenameMode::Replace,
    SetAttr, SetTime, XattrMode,
};
use sluice_meta::types::{
    AclRule, Attr, Dentry, DirStat, FileKind, Ino, Name, Timestamp, attr_flags,
};

use stage::{Kept, NOON, SESSION, Stage, block_on, bytes_of, errno, setting};

const ROOT: Caller = Caller::ROOT;
/// The hour directory of [`NOON`].
const HOUR: &[u8] = b"2026-03-01-12";
const USER: Caller = Caller {
    uid: 1000,
    gid: 1000,
    pid: 1,
};
const OTHER: Caller = Caller {
    uid: 2000,
    gid: 2000,
    pid: 2,
};

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
const ERANGE: i32 = 34;
const ENAMETOOLONG: i32 = 36;
const ENOTEMPTY: i32 = 39;
const ENODATA: i32 = 61;
const EOPNOTSUPP: i32 = 95;

/// A step of a script. Paths start at the root.
enum Op<'a> {
    Mkdir(&'a str),
    Create(&'a str),
    Symlink(&'a str),
    Link(&'a str, &'a str),
    Unlink(&'a str),
    Rmdir(&'a str),
    Rename(&'a str, &'a str, RenameMode),
    Lookup(&'a str),
    Chmod(&'a str, u16),
    Chown(&'a str, u32),
    /// Changes the record behind the operations' back.
    Flags(&'a str, u8),
}
use Op::*;

struct Script {
    stage: Stage,
    made: RefCell<BTreeSet<Ino>>,
}

impl Script {
    fn new(trash_days: u32) -> Script {
        Script::on(Kept::Memory, trash_days)
    }

    fn on(kept: Kept, trash_days: u32) -> Script {
        Script {
            stage: Stage::on(kept, setting(trash_days)),
            made: RefCell::default(),
        }
    }

    async fn find(&self, path: &str) -> MetaResult<Ino> {
        let mut ino = Ino::ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            ino = self.stage.meta.lookup(ino, part.as_bytes()).await?.0;
        }
        Ok(ino)
    }

    async fn split<'p>(&self, path: &'p str) -> MetaResult<(Ino, &'p str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.find(parent).await?, name))
    }

    async fn create(&self, who: &Caller, path: &str, kind: FileKind) -> MetaResult<()> {
        let (parent, name) = self.split(path).await?;
        let name = name.as_bytes();
        let (ino, _) = if kind == FileKind::Symlink {
            self.stage
                .meta
                .symlink(who, parent, name, b"target")
                .await?
        } else {
            let new = NewInode {
                kind,
                mode: 0o777,
                umask: 0,
                rdev: 0,
            };
            self.stage.meta.mknod(who, parent, name, &new).await?
        };
        self.made.borrow_mut().insert(ino);
        Ok(())
    }

    async fn set(&self, who: &Caller, path: &str, set: SetAttr) -> MetaResult<()> {
        let ino = self.find(path).await?;
        self.stage.meta.setattr(who, ino, &set).await.map(|_| ())
    }

    async fn step(&self, who: &Caller, op: &Op<'_>) -> MetaResult<()> {
        let meta = &self.stage.meta;
        match *op {
            Mkdir(path) => self.create(who, path, FileKind::Directory).await,
            Create(path) => self.create(who, path, FileKind::File).await,
            Symlink(path) => self.create(who, path, FileKind::Symlink).await,
            Link(from, to) => {
                let (parent, name) = self.split(to).await?;
                let ino = self.find(from).await?;
                meta.link(who, ino, parent, name.as_bytes())
                    .await
                    .map(|_| ())
            }
            Unlink(path) => {
                let (parent, name) = self.split(path).await?;
                meta.unlink(who, parent, name.as_bytes()).await.map(|_| ())
            }
            Rmdir(path) => {
                let (parent, name) = self.split(path).await?;
                meta.rmdir(who, parent, name.as_bytes()).await.map(|_| ())
            }
            Rename(from, to, mode) => {
                let (from, to) = (self.split(from).await?, self.split(to).await?);
                self.stage.rename(who, from, to, mode).await.map(|_| ())
            }
            Lookup(path) => self.find(path).await.map(|_| ()),
            Chmod(path, mode) => {
                self.set(
                    who,
                    path,
                    SetAttr {
                        mode: Some(mode),
                        ..SetAttr::default()
                    },
                )
                .await
            }
            Chown(path, uid) => {
                self.set(
                    who,
                    path,
                    SetAttr {
                        uid: Some(uid),
                        ..SetAttr::default()
                    },
                )
                .await
            }
            Flags(path, flags) => {
                let ino = self.find(path).await?;
                self.stage.patch(ino, |attr| attr.flags = flags);
                Ok(())
            }
        }
    }

    async fn run(&self, steps: &[(Caller, Op<'_>, i32)]) {
        for (number, (who, op, expected)) in steps.iter().enumerate() {
            let answer = self.step(who, op).await;
            assert_eq!(errno(&answer), *expected, "step {number}: {answer:?}");
        }
        let made = self.made.borrow().clone();
        self.stage.check_volume(&made).await;
    }

    async fn attr(&self, path: &str) -> Attr {
        let ino = self.find(path).await.unwrap();
        self.stage.attr(ino).unwrap()
    }
}

/// Runs the same steps with the trash off and on, in every store.
fn script(steps: &[(Caller, Op<'_>, i32)]) {
    for kept in [Kept::Memory, Kept::Sqlite, Kept::Redis] {
        for trash_days in [0, 1] {
            block_on(Script::on(kept, trash_days).run(steps));
        }
    }
}

#[test]
fn creating() {
    let long = "x".repeat(256);
    script(&[
        (USER, Mkdir("d"), 0),
        (USER, Create("d/f"), 0),
        (USER, Symlink("d/s"), 0),
        (USER, Create("d/f"), EEXIST),
        (USER, Mkdir("d/f"), EEXIST),
        (USER, Symlink("d/s"), EEXIST),
        (USER, Create("d/f/x"), ENOTDIR),
        (USER, Create("d/s/x"), ENOTDIR),
        (USER, Create("missing/x"), ENOENT),
        (USER, Create("d/"), EINVAL),
        (USER, Create("d/a\0b"), EINVAL),
        (USER, Create("d/."), EEXIST),
        (USER, Create("d/.."), EEXIST),
        (USER, Create(&long), ENAMETOOLONG),
        (USER, Create(&long[1..]), 0),
        (ROOT, Create(".trash"), EEXIST),
        (ROOT, Mkdir(".config"), EEXIST),
        (ROOT, Symlink(".stats"), EEXIST),
        (ROOT, Create(".accesslog"), EEXIST),
        (ROOT, Create(".control"), EEXIST),
        (USER, Create("d/.trash"), 0),
        (ROOT, Create(".trash/x"), EPERM),
        (ROOT, Flags("d", attr_flags::IMMUTABLE), 0),
        (ROOT, Create("d/new"), EPERM),
        (ROOT, Flags("d", attr_flags::APPEND), 0),
        (ROOT, Create("d/new"), 0),
    ]);
}

#[test]
fn looking_up() {
    script(&[
        (ROOT, Mkdir("d"), 0),
        (ROOT, Mkdir("d/e"), 0),
        (ROOT, Create("d/f"), 0),
        (USER, Lookup("d/e/../f"), 0),
        (USER, Lookup("d/./e/."), 0),
        (USER, Lookup("../../d"), 0),
        (USER, Lookup(".trash"), 0),
        (USER, Lookup(".trash/../d"), 0),
        (USER, Lookup("d/.trash"), ENOENT),
        (USER, Lookup("nothing"), ENOENT),
        (USER, Lookup("d/f/.."), ENOTDIR),
        (USER, Lookup("d/f/x"), ENOENT),
        (USER, Lookup("d/\0"), EINVAL),
    ]);
}

#[test]
fn linking() {
    script(&[
        (USER, Mkdir("d"), 0),
        (USER, Create("f"), 0),
        (USER, Link("f", "d/g"), 0),
        (USER, Link("d/g", "d/h"), 0),
        (USER, Link("f", "d/g"), EEXIST),
        (USER, Link("d", "e"), EPERM),
        (USER, Link("f", "f/x"), ENOTDIR),
        (USER, Link("f", "d/."), EEXIST),
        (USER, Link("f", ".trash"), EEXIST),
        (ROOT, Link("f", ".trash/x"), EPERM),
        (ROOT, Flags("f", attr_flags::IMMUTABLE), 0),
        (ROOT, Link("f", "i"), EPERM),
        (ROOT, Flags("f", attr_flags::APPEND), 0),
        (ROOT, Link("f", "i"), EPERM),
        (ROOT, Flags("f", 0), 0),
        (ROOT, Flags("d", attr_flags::IMMUTABLE), 0),
        (ROOT, Link("f", "d/i"), EPERM),
        (ROOT, Flags("d", attr_flags::APPEND), 0),
        (ROOT, Link("f", "d/i"), 0),
        (ROOT, Flags("d", 0), 0),
        (USER, Unlink("f"), 0),
        (USER, Unlink("d/g"), 0),
        (USER, Rename("d/h", "h", Replace), 0),
    ]);
}

#[test]
fn unlinking() {
    script(&[
        (ROOT, Chmod("", 0o1777), 0),
        (USER, Create("f"), 0),
        (USER, Mkdir("d"), 0),
        (USER, Create("d/f"), 0),
        (USER, Symlink("s"), 0),
        (OTHER, Unlink("f"), EACCES),
        (OTHER, Unlink("d/f"), 0),
        (USER, Unlink("d"), EISDIR),
        (USER, Unlink("nothing"), ENOENT),
        (USER, Unlink("f/x"), ENOTDIR),
        (USER, Unlink("."), EISDIR),
        (ROOT, Unlink(".trash"), EPERM),
        (ROOT, Flags("f", attr_flags::IMMUTABLE), 0),
        (USER, Unlink("f"), EPERM),
        (ROOT, Flags("f", attr_flags::APPEND), 0),
        (USER, Unlink("f"), EPERM),
        (ROOT, Flags("f", 0), 0),
        (ROOT, Flags("", attr_flags::APPEND), 0),
        (ROOT, Unlink("f"), EPERM),
        (ROOT, Flags("", 0), 0),
        (USER, Unlink("f"), 0),
        (USER, Unlink("f"), ENOENT),
        (ROOT, Unlink("s"), 0),
    ]);
}

#[test]
fn removing_directories() {
    script(&[
        (ROOT, Chmod("", 0o1777), 0),
        (USER, Mkdir("d"), 0),
        (USER, Mkdir("d/e"), 0),
        (USER, Create("d/f"), 0),
        (USER, Rmdir("d"), ENOTEMPTY),
        (USER, Rmdir("d/f"), ENOTDIR),
        (USER, Rmdir("d/x"), ENOENT),
        (USER, Rmdir("d/."), EINVAL),
        (USER, Rmdir("d/.."), ENOTEMPTY),
        (ROOT, Rmdir(".trash"), EPERM),
        (ROOT, Flags("d", attr_flags::IMMUTABLE), 0),
        (ROOT, Rmdir("d/e"), EPERM),
        (ROOT, Flags("d", 0), 0),
        (ROOT, Flags("d/e", attr_flags::APPEND), 0),
        (ROOT, Rmdir("d/e"), 0),
        (USER, Unlink("d/f"), 0),
        (OTHER, Rmdir("d"), EACCES),
        (USER, Rmdir("d"), 0),
    ]);
}

#[test]
fn renaming() {
    script(&[
        (ROOT, Mkdir("a"), 0),
        (ROOT, Mkdir("a/b"), 0),
        (ROOT, Mkdir("a/b/c"), 0),
        (ROOT, Mkdir("e"), 0),
        (ROOT, Create("f"), 0),
        (ROOT, Create("g"), 0),
        (ROOT, Link("f", "h"), 0),
        (ROOT, Rename("x", "y", Replace), ENOENT),
        (ROOT, Rename("f", "f", Replace), 0),
        (ROOT, Rename("f", "f", NoReplace), EEXIST),
        (ROOT, Rename("f", "h", Replace), 0),
        (ROOT, Lookup("f"), 0),
        (ROOT, Rename("f", "g", NoReplace), EEXIST),
        (ROOT, Rename("f", "x", Exchange), ENOENT),
        (ROOT, Rename("a", "f", Replace), ENOTDIR),
        (ROOT, Rename("f", "e", Replace), EISDIR),
        (ROOT, Rename("f", "g/x", Replace), ENOTDIR),
        (ROOT, Rename("e", "a", Replace), ENOTEMPTY),
        (ROOT, Rename("a/b", "a", Replace), ENOTEMPTY),
        (ROOT, Rename("a", "a/x", Replace), EINVAL),
        (ROOT, Rename("a", "a/b/x", Replace), EINVAL),
        (ROOT, Rename("a", "a/b/c/x", Replace), EINVAL),
        (ROOT, Rename("a/b/c", "a", Exchange), EINVAL),
        (ROOT, Rename("a", "a/b/c", Exchange), EINVAL),
        (ROOT, Rename("f", ".", Replace), EINVAL),
        (ROOT, Rename(".trash", "x", Replace), EPERM),
        (ROOT, Rename("f", ".trash", Replace), EPERM),
        (ROOT, Rename("f", ".trash/x", Replace), EPERM),
        (ROOT, Rename("f", ".config", Replace), EPERM),
        (ROOT, Rename("f", "e/f", Replace), 0),
        (ROOT, Rename("a/b/c", "e/c", Replace), 0),
        (ROOT, Rename("e/c", "a/b", Exchange), 0),
        (ROOT, Rename("e/f", "a/b", Exchange), 0),
        (ROOT, Rename("e", "a/e", NoReplace), 0),
        (ROOT, Rename("a/b", "g", Replace), 0),
        (ROOT, Mkdir("empty"), 0),
        (ROOT, Rename("a", "empty", Replace), 0),
        (ROOT, Lookup("empty/e/c"), 0),
        (ROOT, Lookup("empty/e/f/.."), 0),
        (ROOT, Lookup("a"), ENOENT),
    ]);
}

#[test]
fn renaming_what_is_frozen() {
    for bits in [attr_flags::IMMUTABLE, attr_flags::APPEND] {
        let to_append = if bits == attr_flags::APPEND { 0 } else { EPERM };
        script(&[
            (ROOT, Mkdir("a"), 0),
            (ROOT, Mkdir("b"), 0),
            (ROOT, Create("a/f"), 0),
            (ROOT, Create("b/f"), 0),
            (ROOT, Flags("a/f", bits), 0),
            (ROOT, Rename("a/f", "b/x", Replace), EPERM),
            (ROOT, Rename("b/f", "a/f", Replace), EPERM),
            (ROOT, Flags("a/f", 0), 0),
            (ROOT, Flags("a", bits), 0),
            (ROOT, Rename("a/f", "b/x", Replace), EPERM),
            (ROOT, Rename("b/f", "a/f", Replace), EPERM),
            (ROOT, Rename("b/f", "a/x", Replace), to_append),
        ]);
    }
}

#[test]
fn renaming_in_sticky_directories() {
    script(&[
        (USER, Mkdir("tmp"), 0),
        (USER, Chmod("tmp", 0o1777), 0),
        (ROOT, Chown("tmp", 3000), 0),
        (USER, Mkdir("tmp/mine"), 0),
        (USER, Create("tmp/file"), 0),
        (OTHER, Create("tmp/his"), 0),
        (OTHER, Rename("tmp/file", "tmp/x", Replace), EACCES),
        (OTHER, Rename("tmp/his", "tmp/file", Replace), EACCES),
        (OTHER, Rename("tmp/his", "tmp/file", Exchange), EACCES),
        (OTHER, Rename("tmp/his", "tmp/x", Replace), 0),
        (ROOT, Rename("tmp/x", "tmp/his", Replace), 0),
        // The directory's owner may rename in it and move files out, but not others' directories.
        (ROOT, Chown("tmp", 1000), 0),
        (ROOT, Chown("tmp/mine", 2000), 0),
        (USER, Rename("tmp/mine", "tmp/moved", Replace), 0),
        (USER, Rename("tmp/moved", "moved", Replace), EACCES),
        (USER, Rename("tmp/his", "his", Replace), 0),
        (OTHER, Rename("tmp/moved", "moved", Replace), 0),
    ]);
}

#[test]
fn trash_keeps_what_is_removed() {
    block_on(async {
        let script = Script::new(1);
        script
            .run(&[
                (USER, Mkdir("d"), 0),
                (USER, Create("d/f"), 0),
                (USER, Create("d/g"), 0),
                (USER, Create("x"), 0),
                (USER, Unlink("d/f"), 0),
                (USER, Rename("x", "d/g", Replace), 0),
                (USER, Rename("d/g", "y", Replace), 0),
                (USER, Rmdir("d"), 0),
            ])
            .await;
        let stage = &script.stage;
        let hour = stage.entry(Ino::TRASH, HOUR).unwrap();
        assert_eq!(hour, Ino(Ino::TRASH.0 + 1));
        let hour_attr = stage.attr(hour).unwrap();
        assert_eq!(
            (hour_attr.mode, hour_attr.parent, hour_attr.nlink),
            (0o555, Ino::TRASH, 2)
        );
        let names: Vec<String> = stage
            .trash()
            .await
            .keys()
            .map(|name| String::from_utf8(name.to_vec()).unwrap())
            .collect();
        assert_eq!(names, ["1-2-d", "2-3-f", "2-4-g"]);
        assert_eq!(stage.attr(Ino(3)).unwrap().nlink, 1);
        assert_eq!(stage.attr(Ino(3)).unwrap().parent, hour);
        assert_eq!(
            stage.dir_stat(Ino(2)),
            None,
            "a directory in the trash has no statistics"
        );
        let three = DirStat {
            length: 0,
            space: 3 * 4096,
            inodes: 3,
        };
        assert_eq!(stage.dir_stat(hour), Some(three));

        let file = |name: &str| format!(".trash/2026-03-01-12/{name}");
        let (f, d, g) = (file("2-3-f"), file("1-2-d"), file("2-4-g"));
        script
            .run(&[
                (USER, Unlink(&f), EPERM),
                (USER, Rmdir(&d), EPERM),
                (USER, Chmod(&f, 0o600), EPERM),
                (ROOT, Chmod(&f, 0o600), EPERM),
                (ROOT, Chmod(".trash/2026-03-01-12", 0o700), EPERM),
                (ROOT, Chmod(".trash", 0o700), EPERM),
                (ROOT, Create(&file("new")), EPERM),
                (ROOT, Create(&format!("{d}/new")), ENOENT),
                (ROOT, Link("y", &format!("{d}/new")), ENOENT),
                (ROOT, Rename("y", &format!("{d}/new"), Replace), ENOENT),
                (ROOT, Rename("y", &file("new"), Replace), EPERM),
                (ROOT, Rmdir(".trash/2026-03-01-12"), EPERM),
                (ROOT, Rename(".trash/2026-03-01-12", "h", Replace), EPERM),
                (USER, Rename(&f, "f", Replace), EPERM),
                (ROOT, Rename(&f, "y", Exchange), EPERM),
                (ROOT, Rename(&d, "d", NoReplace), 0),
                (ROOT, Rename(&f, "d/f", NoReplace), 0),
                (ROOT, Unlink(&g), 0),
                (USER, Create("d/again"), 0),
            ])
            .await;
        assert!(stage.trash().await.is_empty());
        assert_eq!(
            stage.attr(Ino(4)),
            None,
            "removed from the trash is removed"
        );
        assert_eq!(script.attr("d/f").await.parent, Ino(2));
    });
}

#[test]
fn trash_is_made_when_needed() {
    block_on(async {
        // Formatted with the trash off, which was turned on later.
        let script = Script::new(0);
        let stage = &script.stage;
        *stage.meta.shared().setting.write() = Arc::new(setting(1));
        assert_eq!(stage.meta.getattr(Ino::TRASH).await.unwrap().mode, 0o555);
        script
            .run(&[(USER, Create("a"), 0), (USER, Unlink("a"), 0)])
            .await;
        let trash = stage.attr(Ino::TRASH).unwrap();
        assert_eq!(
            (trash.mode, trash.parent, trash.nlink),
            (0o555, Ino::ROOT, 2)
        );

        // Somebody empties the hour and removes it: it is made again, with a number of its own.
        let hour = stage.entry(Ino::TRASH, HOUR).unwrap();
        script
            .run(&[(ROOT, Unlink(".trash/2026-03-01-12/1-2-a"), 0)])
            .await;
        let dentry = |parent, name: &[u8]| (parent, Name::copy_from_slice(name));
        let (parent, name) = dentry(Ino::TRASH, HOUR);
        let writes = vec![
            Write::DeleteDentry { parent, name },
            Write::DeleteAttr(hour),
            Write::AddCounter {
                counter: Counter::UsedSpace,
                delta: -4096,
            },
            Write::AddCounter {
                counter: Counter::TotalInodes,
                delta: -1,
            },
        ];
        stage
            .store
            .apply(&Txn {
                checks: vec![],
                writes,
            })
            .unwrap();
        script
            .run(&[(USER, Create("b"), 0), (USER, Unlink("b"), 0)])
            .await;
        let again = stage.entry(Ino::TRASH, HOUR).unwrap();
        assert_eq!(again.0, hour.0 + 1);

        // The next hour is another directory.
        stage.pass(Duration::from_secs(3600));
        script
            .run(&[(USER, Create("c"), 0), (USER, Unlink("c"), 0)])
            .await;
        assert_eq!(stage.list(Ino::TRASH).await.len(), 2);
        assert!(stage.entry(Ino::TRASH, b"2026-03-01-13").is_some());
    });
}

#[test]
fn losing_the_race_for_the_hour_uses_the_winners() {
    block_on(async {
        let script = Script::new(1);
        let stage = &script.stage;
        let ino = stage.file(Ino::ROOT, "f").await;
        let winner = Ino(Ino::TRASH.0 + 77);
        let (store, mut done) = (stage.store.clone(), false);
        let trash = stage.attr(Ino::TRASH).unwrap();
        stage.store.on_request(move |request| {
            if let (Request::Alloc(Counter::NextTrash), false) = (request, done) {
                done = true;
                let attr = Attr {
                    parent: Ino::TRASH,
                    ..trash.clone()
                };
                let dentry = Dentry {
                    kind: FileKind::Directory,
                    ino: winner,
                };
                let (parent, name) = (Ino::TRASH, Name::from_static(HOUR));
                let writes = vec![
                    Write::InsertAttr { ino: winner, attr },
                    Write::InsertDentry {
                        parent,
                        name,
                        dentry,
                    },
                ];
                store
                    .apply(&Txn {
                        checks: vec![],
                        writes,
                    })
                    .unwrap();
            }
            Verdict::Serve
        });
        stage.meta.unlink(&USER, Ino::ROOT, b"f").await.unwrap();
        assert_eq!(stage.attr(ino).unwrap().parent, winner);
        assert_eq!(stage.entry(winner, b"1-2-f"), Some(ino));
    });
}

#[test]
fn trash_bypasses() {
    block_on(async {
        let script = Script::new(1);
        script
            .run(&[
                (USER, Mkdir("d"), 0),
                (ROOT, Flags("d", attr_flags::SKIP_TRASH), 0),
                (USER, Create("d/f"), 0),
                (USER, Unlink("d/f"), 0),
                (USER, Mkdir("d/e"), 0),
                (USER, Rmdir("d/e"), 0),
                (USER, Symlink("d/s"), 0),
                (USER, Create("d/g"), 0),
                (USER, Rename("d/g", "d/s", Replace), 0),
            ])
            .await;
        assert!(
            script.stage.trash().await.is_empty(),
            "the flag is inherited and obeyed"
        );

        // A hard-linked file that is in the trash under the same name is really unlinked the second time.
        script
            .run(&[
                (USER, Create("f"), 0),
                (USER, Link("f", "g"), 0),
                (USER, Unlink("g"), 0),
                (USER, Link("f", "g"), 0),
            ])
            .await;
        let ino = script.find("f").await.unwrap();
        assert_eq!(script.stage.attr(ino).unwrap().nlink, 3);
        script.run(&[(USER, Unlink("g"), 0)]).await;
        assert_eq!(script.stage.attr(ino).unwrap().nlink, 2);
        assert_eq!(script.stage.trash().await.len(), 1);
        // The same for what a rename replaces.
        script
            .run(&[
                (USER, Link("f", "g"), 0),
                (USER, Create("x"), 0),
                (USER, Rename("x", "g", Replace), 0),
            ])
            .await;
        assert_eq!(script.stage.attr(ino).unwrap().nlink, 2);
    });
}

#[test]
fn what_removal_answers() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let file = stage.file(Ino::ROOT, "f").await;
        stage.patch(file, |attr| attr.length = 5000);
        let charge = Write::AddCounter {
            counter: Counter::UsedSpace,
            delta: 4096,
        };
        stage
            .store
            .apply(&Txn {
                checks: vec![],
                writes: vec![charge],
            })
            .unwrap();
        stage.meta.link(&ROOT, file, Ino::ROOT, b"g").await.unwrap();
        stage
            .meta
            .setxattr(&ROOT, file, b"user.a", b"1", XattrMode::Any)
            .await
            .unwrap();
        let removed = stage.meta.unlink(&ROOT, Ino::ROOT, b"f").await.unwrap();
        assert_eq!((removed.ino, removed.deleted), (file, None));
        let dir = stage.mkdir(Ino::ROOT, "d").await;
        assert_eq!(stage.dir_stat(dir), Some(DirStat::default()));
        let removed = stage.meta.rmdir(&ROOT, Ino::ROOT, b"d").await.unwrap();
        assert_eq!((removed.ino, removed.deleted), (dir, None));
        assert_eq!((stage.attr(dir), stage.dir_stat(dir)), (None, None));

        stage.file(Ino::ROOT, "h").await;
        let replaced = stage
            .rename(&ROOT, (Ino::ROOT, "h"), (Ino::ROOT, "g"), Replace)
            .await;
        let removed = replaced.unwrap().unwrap();
        assert_eq!((removed.ino, removed.deleted), (file, Some(5000)));
        assert_eq!(stage.attr(file), None);
        assert!(stage.parents(file).is_empty());
        assert!(stage.peek(Key::XattrNames(file)).is_none());
        let used = stage.meta.shared().used_space.load(Ordering::Relaxed);
        assert_eq!((used, stage.counter(Counter::UsedSpace)), (4096, 4096));
        assert_eq!(stage.meta.shared().total_inodes.load(Ordering::Relaxed), 1);

        let target = b"somewhere";
        let (link, attr) = stage
            .meta
            .symlink(&ROOT, Ino::ROOT, b"s", target)
            .await
            .unwrap();
        assert_eq!((attr.length, attr.mode), (9, 0o777));
        assert_eq!(stage.meta.readlink(link).await.unwrap(), target[..]);
        stage.meta.unlink(&ROOT, Ino::ROOT, b"s").await.unwrap();
        assert_eq!(bytes_of(stage.peek(Key::Symlink(link))), None);
        // Targets never change: who has read one may go on.
        assert_eq!(stage.meta.readlink(link).await.unwrap(), target[..]);
        assert_eq!(errno(&stage.colleague().readlink(link).await), ENOENT);
        assert_eq!(errno(&stage.meta.readlink(Ino::ROOT).await), EINVAL);
        let long = vec![b'x'; 4096];
        for (target, expected) in [(&b""[..], EINVAL), (b"a\0", EINVAL), (&long, ENAMETOOLONG)] {
            let answer = stage.meta.symlink(&ROOT, Ino::ROOT, b"t", target).await;
            assert_eq!(errno(&answer), expected);
        }
    });
}

#[test]
fn open_files_outlive_their_names() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let (first, second) = (
            stage.file(Ino::ROOT, "a").await,
            stage.file(Ino::ROOT, "b").await,
        );
        for ino in [first, second] {
            stage.open(ino);
        }
        // Without a session nobody could keep it.
        let removed = stage.meta.unlink(&ROOT, Ino::ROOT, b"a").await.unwrap();
        assert_eq!((removed.deleted, stage.attr(first)), (Some(0), None));

        stage.register();
        stage.store.conflict_next(3);
        let removed = stage.meta.unlink(&ROOT, Ino::ROOT, b"b").await.unwrap();
        assert_eq!(removed.deleted, None);
        assert_eq!(stage.attr(second).unwrap().nlink, 0);
        assert_eq!(stage.sustained(), BTreeSet::from([second]));
        let state = stage.meta.shared().open.lock()[&second];
        assert_eq!((state.handles, state.sustained), (1, true), "{SESSION:?}");
        stage.check_volume(&BTreeSet::from([first, second])).await;
        assert_eq!(
            errno(&stage.meta.link(&ROOT, second, Ino::ROOT, b"c").await),
            ENOENT
        );

        // A rename that replaces an open file; and one that fails leaves the table as it was.
        let third = stage.file(Ino::ROOT, "c").await;
        stage.open(third);
        stage.file(Ino::ROOT, "d").await;
        stage.store.fail_next(refused());
        let (from, to) = ((Ino::ROOT, "d"), (Ino::ROOT, "c"));
        assert!(stage.rename(&ROOT, from, to, Replace).await.is_err());
        let mut commits = 0;
        stage.store.on_request(move |request| match request {
            Request::Commit(_) if commits == 0 => {
                commits += 1;
                Verdict::Fail(refused())
            }
            _ => Verdict::Serve,
        });
        assert!(stage.rename(&ROOT, from, to, Replace).await.is_err());
        let state = stage.meta.shared().open.lock()[&third];
        assert_eq!((state.handles, state.sustained), (1, false));
        stage.rename(&ROOT, from, to, Replace).await.unwrap();
        assert_eq!(stage.sustained(), BTreeSet::from([second, third]));
        stage
            .check_volume(&BTreeSet::from([first, second, third]))
            .await;
    });
}

/// Opens that come between the decision to delete a file and the commit, closed again before the file is
/// back or later.
#[test]
fn opens_during_the_last_unlink() {
    for closes_early in [false, true] {
        block_on(async {
            let stage = Stage::new(setting(0));
            stage.register();
            let ino = stage.file(Ino::ROOT, "f").await;
            let (shared, mut commits) = (Arc::clone(stage.meta.shared()), 0);
            stage.store.on_request(move |request| {
                if let Request::Commit(_) = request {
                    let mut open = shared.open.lock();
                    commits += 1;
                    match commits {
                        1 => open.entry(ino).or_default().handles += 1,
                        2 if closes_early => open.get_mut(&ino).unwrap().handles -= 1,
                        _ => {}
                    }
                }
                Verdict::Serve
            });
            let removed = stage.meta.unlink(&ROOT, Ino::ROOT, b"f").await.unwrap();
            stage.store.clear_hook();
            if closes_early {
                assert_eq!(removed.deleted, Some(0));
            } else {
                assert_eq!(removed.deleted, None);
                assert_eq!(stage.attr(ino).unwrap().nlink, 0);
                assert_eq!(stage.sustained(), BTreeSet::from([ino]));
                stage.check_volume(&BTreeSet::from([ino])).await;
                assert_eq!(stage.meta.close(ino).await.unwrap(), Some(0));
            }
            assert_eq!(stage.attr(ino), None);
            assert!(stage.sustained().is_empty());
            assert!(stage.meta.shared().open.lock().is_empty());
            stage.check_volume(&BTreeSet::from([ino])).await;
        });
    }
}

fn refused() -> EngineError {
    EngineError::Refused {
        engine: "memory",
        cause: "as the test asked".into(),
    }
}

#[test]
fn full_volumes_take_no_more() {
    block_on(async {
        let stage = Stage::new(sluice_meta::volume::Setting {
            inodes: 2,
            ..setting(1)
        });
        stage.file(Ino::ROOT, "a").await;
        stage.mkdir(Ino::ROOT, "b").await;
        assert_eq!(
            errno(&stage.make(FileKind::File, Ino::ROOT, "c").await),
            ENOSPC
        );
        assert_eq!(
            errno(&stage.make(FileKind::File, Ino::ROOT, "a").await),
            EEXIST
        );
        stage.meta.unlink(&ROOT, Ino::ROOT, b"a").await.unwrap();
        assert_eq!(
            errno(&stage.make(FileKind::File, Ino::ROOT, "c").await),
            ENOSPC,
            "trash counts"
        );
        let link = stage.meta.link(&ROOT, Ino(2), Ino::ROOT, b"l").await;
        assert_eq!(errno(&link), 0, "a link needs no room");

        let stage = Stage::new(sluice_meta::volume::Setting {
            capacity: 8191,
            ..setting(0)
        });
        stage.file(Ino::ROOT, "a").await;
        assert_eq!(
            errno(&stage.make(FileKind::File, Ino::ROOT, "b").await),
            ENOSPC
        );
        stage.meta.unlink(&ROOT, Ino::ROOT, b"a").await.unwrap();
        stage.file(Ino::ROOT, "b").await;
    });
}

#[test]
fn read_only_mounts_change_nothing() {
    block_on(async {
        let options = MetaOptions {
            read_only: true,
            ..MetaOptions::default()
        };
        let stage = Stage::with(Kept::Memory, setting(1), options);
        let (meta, root) = (&stage.meta, Ino::ROOT);
        let set = SetAttr {
            mode: Some(0),
            ..SetAttr::default()
        };
        let answers = [
            errno(&stage.make(FileKind::File, root, "a").await),
            errno(&meta.symlink(&ROOT, root, b"a", b"b").await),
            errno(&meta.link(&ROOT, root, root, b"a").await),
            errno(&meta.unlink(&ROOT, root, b"a").await),
            errno(&meta.rmdir(&ROOT, root, b"a").await),
            errno(&stage.rename(&ROOT, (root, "a"), (root, "b"), Replace).await),
            errno(&meta.setattr(&ROOT, root, &set).await),
            errno(&meta.setxattr(&ROOT, root, b"a", b"", XattrMode::Any).await),
            errno(&meta.removexattr(&ROOT, root, b"a").await),
        ];
        assert_eq!(answers, [EROFS; 9]);
        assert_eq!(errno(&meta.lookup(root, b"a").await), ENOENT);
    });
}

#[test]
fn new_inodes_take_after_their_parent() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let dir = stage.mkdir(Ino::ROOT, "d").await;
        stage.patch(dir, |attr| {
            (attr.mode, attr.gid, attr.flags, attr.tier) = (0o2775, 50, attr_flags::SKIP_TRASH, 2);
        });
        let make = async |kind, name: &[u8], mode, umask, rdev| {
            let new = NewInode {
                kind,
                mode,
                umask,
                rdev,
            };
            stage.meta.mknod(&USER, dir, name, &new).await.unwrap().1
        };
        let file = make(FileKind::File, b"f", 0o666, 0o022, 9).await;
        assert_eq!(
            (file.mode, file.uid, file.gid, file.rdev),
            (0o644, 1000, 50, 0)
        );
        assert_eq!(
            (file.flags, file.tier, file.nlink),
            (attr_flags::SKIP_TRASH, 2, 1)
        );
        assert_eq!((file.length, file.parent), (0, dir));
        let sub = make(FileKind::Directory, b"s", 0o777, 0o027, 0).await;
        assert_eq!(
            (sub.mode, sub.gid, sub.nlink, sub.length),
            (0o2750, 50, 2, 4096)
        );
        let device = make(FileKind::CharDev, b"c", 0o600, 0, 0x0501).await;
        assert_eq!((device.rdev, device.kind), (0x0501, FileKind::CharDev));
        let new = NewInode {
            kind: FileKind::Symlink,
            mode: 0,
            umask: 0,
            rdev: 0,
        };
        assert_eq!(
            errno(&stage.meta.mknod(&USER, dir, b"l", &new).await),
            EINVAL
        );
    });
}

#[test]
fn parents_times_move_when_due() {
    block_on(async {
        let options = MetaOptions {
            skip_dir_mtime: Duration::from_millis(100),
            ..Default::default()
        };
        let stage = Stage::with(Kept::Memory, setting(0), options);
        let mtime = || stage.attr(Ino::ROOT).unwrap().mtime;
        let start = mtime();
        stage.pass(Duration::from_millis(99));
        stage.file(Ino::ROOT, "a").await;
        assert_eq!(mtime(), start, "younger than 100 ms");
        stage.pass(Duration::from_millis(1));
        stage.file(Ino::ROOT, "b").await;
        assert_eq!(mtime(), stage.meta.now());
        assert_eq!(stage.attr(Ino::ROOT).unwrap().ctime, stage.meta.now());
        stage.pass(Duration::from_millis(1));
        stage.mkdir(Ino::ROOT, "d").await;
        assert_eq!(mtime(), stage.meta.now(), "the link count changed anyway");
        stage.pass(Duration::from_millis(50));
        stage.meta.unlink(&ROOT, Ino::ROOT, b"a").await.unwrap();
        assert_ne!(mtime(), stage.meta.now());
        stage.meta.rmdir(&ROOT, Ino::ROOT, b"d").await.unwrap();
        assert_eq!(mtime(), stage.meta.now());
    });
}

/// Creates rely on what cannot change by other creates, so that they do not fight.
#[test]
fn parent_checks_are_narrow() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let fields_of = |checks: &[Check]| match &checks[0] {
            Check::Attr {
                ino: Ino::ROOT,
                fields,
                ..
            } => *fields,
            other => panic!("{other:?}"),
        };
        let narrow = AttrFields::FLAGS.and(AttrFields::PARENT);
        let heritage = narrow.and(AttrFields::OWNER).and(AttrFields::INHERITED);
        let (_, checks) = stage.checks_of(stage.file(Ino::ROOT, "a")).await;
        assert_eq!(fields_of(&checks), heritage, "what a new entry inherits");
        stage.patch(Ino::ROOT, |attr| attr.mode = 0o1777);
        stage.patch(Ino(2), |attr| attr.uid = USER.uid);
        let (_, checks) = stage
            .checks_of(stage.meta.unlink(&ROOT, Ino::ROOT, b"a"))
            .await;
        assert_eq!(fields_of(&checks), narrow, "root does not care for sticky");
        let ino = stage.file(Ino::ROOT, "b").await;
        stage.patch(ino, |attr| attr.uid = USER.uid);
        let (_, checks) = stage
            .checks_of(stage.meta.unlink(&USER, Ino::ROOT, b"b"))
            .await;
        assert_eq!(fields_of(&checks), narrow.and(AttrFields::OWNER));
    });
}

/// Each case: what a rival commits between the read and the commit, and what must come of it.
#[test]
fn rivals_are_noticed() {
    block_on(async {
        let (parent, name) = (Ino::ROOT, Name::from_static(b"f"));
        let file = Dentry {
            kind: FileKind::File,
            ino: Ino(3),
        };
        let delete = Write::DeleteDentry {
            parent,
            name: name.clone(),
        };
        let nested = Write::InsertDentry {
            parent: Ino(2),
            name: name.clone(),
            dentry: file,
        };
        let gone = async |stage: &Stage| errno(&stage.meta.unlink(&ROOT, parent, b"f").await);
        assert_eq!(gone(&rivalled(vec![delete.clone()]).await).await, ENOENT);

        let full = rivalled(vec![delete.clone(), nested.clone()]).await;
        assert_eq!(
            errno(&full.meta.rmdir(&ROOT, parent, b"d").await),
            ENOTEMPTY
        );

        let stage = rivalled(vec![delete, nested]).await;
        let moved = stage
            .rename(&ROOT, (parent, "f"), (parent, "g"), Replace)
            .await;
        assert_eq!(errno(&moved), ENOENT);

        let taken = Write::InsertDentry {
            parent,
            name: Name::from_static(b"g"),
            dentry: file,
        };
        let stage = rivalled(vec![taken.clone()]).await;
        assert_eq!(
            errno(&stage.make(FileKind::File, parent, "g").await),
            EEXIST
        );
        let stage = rivalled(vec![taken]).await;
        assert_eq!(
            errno(&stage.meta.link(&ROOT, Ino(3), parent, b"g").await),
            EEXIST
        );

        let old = rivalled(vec![]).await.attr(Ino(2)).unwrap();
        let new = Attr {
            parent: Ino(Ino::TRASH.0 + 1),
            ..old.clone()
        };
        let stage = rivalled(vec![Write::UpdateAttr {
            ino: Ino(2),
            old,
            new,
        }])
        .await;
        assert_eq!(
            errno(&stage.make(FileKind::File, Ino(2), "x").await),
            ENOENT
        );
    });
}

/// A directory `d` (inode 2) and a file `f` (3); before the next commit a rival applies `writes`.
async fn rivalled(writes: Vec<Write>) -> Stage {
    let stage = Stage::new(setting(0));
    stage.mkdir(Ino::ROOT, "d").await;
    stage.file(Ino::ROOT, "f").await;
    let (store, mut txn) = (
        stage.store.clone(),
        Some(Txn {
            checks: vec![],
            writes,
        }),
    );
    stage.store.on_request(move |request| {
        if let Request::Commit(_) = request
            && let Some(txn) = txn.take()
        {
            store.apply(&txn).unwrap();
        }
        Verdict::Serve
    });
    stage
}

/// Two renames that would together make a loop: while one is between its walk and its commit, the other
/// happens.
#[test]
fn renames_cannot_make_a_loop_together() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let a = stage.mkdir(Ino::ROOT, "a").await;
        let b = stage.mkdir(a, "b").await;
        let x = stage.mkdir(Ino::ROOT, "x").await;
        let y = stage.mkdir(x, "y").await;
        let z = stage.mkdir(y, "z").await;
        // Ours moves `a` into x/y/z; the rival's moves `x` into a/b.
        let (old, store) = (stage.attr(x).unwrap(), stage.store.clone());
        let mut done = false;
        stage.store.on_request(move |request| {
            if let (Request::Commit(_), false) = (request, done) {
                done = true;
                let (name, dentry) = (
                    Name::from_static(b"x"),
                    Dentry {
                        kind: old.kind,
                        ino: x,
                    },
                );
                let new = Attr {
                    parent: b,
                    ..old.clone()
                };
                let writes = vec![
                    Write::DeleteDentry {
                        parent: Ino::ROOT,
                        name: name.clone(),
                    },
                    Write::InsertDentry {
                        parent: b,
                        name,
                        dentry,
                    },
                    Write::UpdateAttr {
                        ino: x,
                        old: old.clone(),
                        new,
                    },
                ];
                store
                    .apply(&Txn {
                        checks: vec![],
                        writes,
                    })
                    .unwrap();
            }
            Verdict::Serve
        });
        let answer = stage
            .rename(&ROOT, (Ino::ROOT, "a"), (z, "a"), Replace)
            .await;
        assert_eq!(errno(&answer), EINVAL);
        assert_eq!(stage.attr(a).unwrap().parent, Ino::ROOT);
    });
}

#[test]
fn an_operation_that_never_wins_gives_up() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let attempts = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&attempts);
        stage.store.on_request(move |request| match request {
            Request::Commit(_) => {
                count.fetch_add(1, Ordering::Relaxed);
                Verdict::Conflict(0)
            }
            _ => Verdict::Serve,
        });
        let answer = stage.make(FileKind::File, Ino::ROOT, "a").await;
        assert!(matches!(
            answer,
            Err(MetaError::Contended {
                ino: Ino::ROOT,
                attempts: 50
            })
        ));
        assert_eq!(attempts.load(Ordering::Relaxed), 50);
        stage.store.clear_hook();
        assert_eq!(
            stage.file(Ino::ROOT, "b").await.0,
            3,
            "one number per operation"
        );
    });
}

#[test]
fn entries_without_inodes() {
    block_on(async {
        for trash_days in [0, 1] {
            let stage = Stage::new(setting(trash_days));
            let entry = |kind, ino, name| Write::InsertDentry {
                parent: Ino::ROOT,
                name: Name::from_static(name),
                dentry: Dentry { kind, ino },
            };
            let writes = vec![
                entry(FileKind::File, Ino(90), b"f"),
                entry(FileKind::Directory, Ino(91), b"d"),
                entry(FileKind::File, Ino(92), b"g"),
                Write::PatchDir {
                    ino: Ino::ROOT,
                    time: None,
                    nlink: 1,
                },
            ];
            stage
                .store
                .apply(&Txn {
                    checks: vec![],
                    writes,
                })
                .unwrap();
            assert_eq!(errno(&stage.meta.lookup(Ino::ROOT, b"f").await), ENOENT);
            assert_eq!(stage.list(Ino::ROOT).await.len(), 3);
            let page = stage.meta.readdir(Ino::ROOT, None, 10, true).await.unwrap();
            assert!(page.entries.iter().all(|entry| entry.attr.is_none()));
            assert_eq!(errno(&stage.meta.unlink(&ROOT, Ino::ROOT, b"f").await), 0);
            assert_eq!(
                errno(&stage.meta.unlink(&ROOT, Ino::ROOT, b"d").await),
                EISDIR
            );
            assert_eq!(errno(&stage.meta.rmdir(&ROOT, Ino::ROOT, b"d").await), 0);
            stage.file(Ino::ROOT, "h").await;
            let (from, to) = ((Ino::ROOT, "g"), (Ino::ROOT, "h"));
            assert_eq!(errno(&stage.rename(&ROOT, from, to, Replace).await), ENOENT);
            assert_eq!(errno(&stage.rename(&ROOT, to, from, Replace).await), 0);
            stage.check_volume(&BTreeSet::new()).await;
        }
    });
}

#[test]
fn listing() {
    block_on(async {
        let stage = Stage::new(setting(1));
        assert!(stage.list(Ino::ROOT).await.is_empty());
        let dir = stage.mkdir(Ino::ROOT, "d").await;
        assert!(stage.list(dir).await.is_empty());
        for number in 0..10 {
            stage.file(dir, &number.to_string()).await;
        }
        stage.meta.unlink(&ROOT, dir, b"4").await.unwrap();
        assert_eq!(stage.list(dir).await.len(), 9);
        let (parent, name) = (dir, Name::new());
        let dentry = Dentry {
            kind: FileKind::File,
            ino: Ino(99),
        };
        let writes = vec![Write::InsertDentry {
            parent,
            name,
            dentry,
        }];
        stage
            .store
            .apply(&Txn {
                checks: vec![],
                writes,
            })
            .unwrap();
        let page = stage.meta.readdir(dir, None, 100, true).await.unwrap();
        assert_eq!(page.entries.len(), 9, "an empty name is damage");
        for entry in &page.entries {
            assert_eq!(entry.attr, stage.attr(entry.ino));
        }
        let names =
            |map: std::collections::BTreeMap<Name, Ino>| map.into_keys().collect::<Vec<_>>();
        assert_eq!(
            names(stage.list(Ino::ROOT).await),
            [Name::from_static(b"d")],
            "no .trash"
        );
        assert_eq!(
            names(stage.list(Ino::TRASH).await),
            [Name::from_static(HOUR)]
        );
        let file = stage.entry(dir, b"1").unwrap();
        assert_eq!(
            errno(&stage.meta.readdir(file, None, 1, false).await),
            ENOTDIR
        );
        assert_eq!(
            errno(&stage.meta.readdir(Ino(999), None, 1, false).await),
            ENOENT
        );
    });
}

#[test]
fn root_and_trash_always_exist() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let writes = vec![Write::DeleteAttr(Ino::ROOT)];
        stage
            .store
            .apply(&Txn {
                checks: vec![],
                writes,
            })
            .unwrap();
        for (ino, mode) in [(Ino::ROOT, 0o777), (Ino::TRASH, 0o555)] {
            let attr = stage.meta.getattr(ino).await.unwrap();
            assert_eq!((attr.mode, attr.nlink, attr.length), (mode, 2, 4096));
            assert_eq!((attr.kind, attr.parent), (FileKind::Directory, Ino::ROOT));
        }
        assert_eq!(errno(&stage.meta.getattr(Ino(2)).await), ENOENT);
    });
}

#[test]
fn owners_and_modes() {
    // Mode and owner before; who; what is set: mode, uid, gid; the mode after or an error.
    type Case = (
        u16,
        u32,
        Caller,
        Option<u16>,
        Option<u32>,
        Option<u32>,
        Result<u16, i32>,
    );
    let cases: [Case; 20] = [
        (0o644, 1000, USER, Some(0o600), None, None, Ok(0o600)),
        (0o644, 1000, OTHER, Some(0o600), None, None, Err(EPERM)),
        (0o644, 1000, ROOT, Some(0o600), None, None, Ok(0o600)),
        (0o4755, 1000, OTHER, Some(0o755), None, None, Ok(0o755)),
        (0o755, 1000, OTHER, Some(0o4755), None, None, Err(EPERM)),
        (0o755, 1000, OTHER, Some(0o2755), None, None, Err(EPERM)),
        (0o755, 1000, USER, Some(0o6755), None, None, Ok(0o6755)),
        (0o644, 1000, OTHER, Some(0o644), None, None, Ok(0o644)),
        (0o644, 1000, USER, None, Some(5), None, Err(EPERM)),
        (0o644, 1000, USER, None, Some(1000), None, Ok(0o644)),
        (0o644, 1000, ROOT, None, Some(5), None, Ok(0o644)),
        (0o644, 1000, USER, None, None, Some(5), Ok(0o644)),
        (0o644, 1000, OTHER, None, None, Some(5), Err(EPERM)),
        (0o6755, 1000, USER, None, None, Some(5), Ok(0o755)),
        (0o6745, 1000, USER, None, None, Some(5), Ok(0o745)),
        (0o6755, 1000, ROOT, None, Some(5), None, Ok(0o755)),
        (0o6745, 1000, ROOT, None, Some(5), None, Ok(0o2745)),
        (0o6755, 1000, ROOT, Some(0o700), Some(5), None, Ok(0o700)),
        (0o6745, 1000, ROOT, Some(0o700), Some(5), None, Ok(0o2700)),
        (0o755, 1000, ROOT, Some(0o4755), Some(5), None, Ok(0o4755)),
    ];
    block_on(async {
        let stage = Stage::new(setting(0));
        let ino = stage.file(Ino::ROOT, "f").await;
        for (number, (before, owner, who, mode, uid, gid, expected)) in
            cases.into_iter().enumerate()
        {
            stage.patch(ino, |attr| {
                (attr.mode, attr.uid, attr.gid) = (before, owner, 1)
            });
            stage.pass(Duration::from_secs(1));
            let old = stage.attr(ino).unwrap();
            let set = SetAttr {
                mode,
                uid,
                gid,
                ..SetAttr::default()
            };
            let answer = stage.meta.setattr(&who, ino, &set).await;
            let new = stage.attr(ino).unwrap();
            match expected {
                Err(expected) => {
                    assert_eq!(errno(&answer), expected, "case {number}");
                    assert_eq!(new, old, "case {number}");
                }
                Ok(mode) => {
                    assert_eq!(answer.unwrap(), new, "case {number}");
                    assert_eq!(new.mode, mode, "case {number}: {:o}", new.mode);
                    assert_eq!(new.uid, uid.unwrap_or(owner), "case {number}");
                    assert_eq!(new.gid, gid.unwrap_or(1), "case {number}");
                    let changed = new != old;
                    assert_eq!(new.ctime == stage.meta.now(), changed, "case {number}");
                    assert_eq!(new.mtime, old.mtime, "case {number}");
                }
            }
        }
        // A directory keeps its sgid.
        let dir = stage.mkdir(Ino::ROOT, "d").await;
        stage.patch(dir, |attr| attr.mode = 0o2755);
        let set = SetAttr {
            uid: Some(5),
            ..SetAttr::default()
        };
        assert_eq!(
            stage.meta.setattr(&ROOT, dir, &set).await.unwrap().mode,
            0o2755
        );
        assert_eq!(
            errno(&stage.meta.setattr(&ROOT, Ino(99), &set).await),
            ENOENT
        );
    });
}

#[test]
fn setting_times() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let ino = stage.file(Ino::ROOT, "f").await;
        stage.pass(Duration::from_secs(9));
        let (now, past) = (stage.meta.now(), Timestamp { sec: -5, nsec: 7 });
        let at = Some(SetTime::At(past));
        let set = SetAttr {
            atime: at,
            ..SetAttr::default()
        };
        assert_eq!(
            errno(&stage.meta.setattr(&USER, ino, &set).await),
            EPERM,
            "root's file"
        );
        let attr = stage.meta.setattr(&ROOT, ino, &set).await.unwrap();
        assert_eq!((attr.atime, attr.mtime.sec, attr.ctime), (past, NOON, now));
        stage.pass(Duration::from_secs(1));
        let same = stage.meta.setattr(&ROOT, ino, &set).await.unwrap();
        assert_eq!(same.ctime, now, "nothing changed");
        let set = SetAttr {
            mtime: Some(SetTime::Now),
            ..SetAttr::default()
        };
        let attr = stage.meta.setattr(&USER, ino, &set).await.unwrap();
        assert_eq!(
            (attr.mtime, attr.ctime),
            (stage.meta.now(), stage.meta.now())
        );
        let (_, checks) = stage
            .checks_of(stage.meta.setattr(&ROOT, ino, &SetAttr::default()))
            .await;
        assert!(checks.is_empty(), "nothing to do is no commit");
    });
}

#[test]
fn access_by_mode_bits() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let ino = stage.file(Ino::ROOT, "f").await;
        stage.patch(ino, |attr| {
            (attr.mode, attr.uid, attr.gid) = (0o640, 1000, 2000)
        });
        for (who, mask, expected) in [
            (USER, 6, 0),
            (USER, 1, EACCES),
            (OTHER, 4, 0),
            (OTHER, 2, EACCES),
            (
                Caller {
                    uid: 3,
                    gid: 3,
                    pid: 0,
                },
                4,
                EACCES,
            ),
            (
                Caller {
                    uid: 3,
                    gid: 3,
                    pid: 0,
                },
                0,
                0,
            ),
            (ROOT, 6, 0),
            (ROOT, 1, EACCES),
        ] {
            let answer = stage.meta.access(&who, ino, mask).await;
            assert_eq!(errno(&answer), expected, "{who:?} {mask}");
        }
        assert_eq!(errno(&stage.meta.access(&ROOT, Ino::ROOT, 7).await), 0);
        assert_eq!(errno(&stage.meta.access(&ROOT, Ino(99), 0).await), ENOENT);
        stage.store.put_acl(1, rule());
        stage.patch(ino, |attr| attr.access_acl = 1);
        let named = Caller {
            uid: 7,
            gid: 3,
            pid: 0,
        };
        assert_eq!(errno(&stage.meta.access(&named, ino, 6).await), 0);
        assert_eq!(errno(&stage.meta.access(&named, ino, 1).await), EACCES);
    });
}

fn rule() -> AclRule {
    let users = vec![(7, 7)];
    AclRule {
        owner: 6,
        group: 4,
        mask: 6,
        other: 0,
        users,
        groups: vec![],
    }
}

#[test]
fn extended_attributes() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let ino = stage.file(Ino::ROOT, "f").await;
        let set = async |name: &[u8], value: &[u8], mode| {
            errno(&stage.meta.setxattr(&USER, ino, name, value, mode).await)
        };
        let long = vec![b'n'; 256];
        let large = vec![0; 65537];
        assert_eq!(set(b"user.a", b"1", XattrMode::Replace).await, ENODATA);
        assert_eq!(set(b"user.a", b"1", XattrMode::Create).await, 0);
        assert_eq!(set(b"user.a", b"2", XattrMode::Create).await, EEXIST);
        assert_eq!(set(b"user.a", b"3", XattrMode::Replace).await, 0);
        assert_eq!(set(b"user.b", b"", XattrMode::Any).await, 0);
        assert_eq!(set(&long, b"", XattrMode::Any).await, ERANGE);
        assert_eq!(set(&long[1..], b"", XattrMode::Any).await, 0);
        assert_eq!(set(b"", b"", XattrMode::Any).await, ERANGE);
        assert_eq!(set(b"user.l", &large, XattrMode::Any).await, ERANGE);
        assert_eq!(set(b"user.l", &large[1..], XattrMode::Any).await, 0);
        assert_eq!(
            set(b"system.posix_acl_access", b"", XattrMode::Any).await,
            EOPNOTSUPP
        );
        let get = async |name: &[u8]| stage.meta.getxattr(ino, name).await;
        assert_eq!(get(b"user.a").await.unwrap(), b"3"[..]);
        assert_eq!(get(b"user.b").await.unwrap(), b""[..]);
        assert_eq!(errno(&get(b"user.c").await), ENODATA);
        assert_eq!(errno(&get(b"system.posix_acl_default").await), ENODATA);
        assert_eq!(errno(&get(&long).await), ERANGE);
        assert_eq!(stage.meta.listxattr(ino).await.unwrap().len(), 4);
        let remove = async |name: &[u8]| errno(&stage.meta.removexattr(&USER, ino, name).await);
        assert_eq!(remove(b"user.a").await, 0);
        assert_eq!(remove(b"user.a").await, ENODATA);
        assert_eq!(remove(b"system.posix_acl_default").await, EOPNOTSUPP);
        stage.patch(ino, |attr| attr.flags = attr_flags::IMMUTABLE);
        assert_eq!(set(b"user.b", b"x", XattrMode::Any).await, EPERM);
        assert_eq!(remove(b"user.b").await, EPERM);
        assert_eq!(errno(&stage.meta.listxattr(Ino(99)).await), ENOENT);
        let absent = stage
            .meta
            .setxattr(&ROOT, Ino(99), b"user.a", b"", XattrMode::Any)
            .await;
        assert_eq!(errno(&absent), ENOENT);
        assert!(stage.meta.listxattr(Ino::ROOT).await.unwrap().is_empty());
        assert_eq!(stage.attr(ino).unwrap().ctime.sec, NOON);
    });
}
