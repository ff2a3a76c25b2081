//! `fsck`'s part in the metadata: directories against what is in them, and the volume's usage against its inodes.
//!
//! A directory has 2 links and one for each sub-directory, is the parent of its directories, and its
//! statistics are the sums over its entries. A repair is a commit that relies on the records as they were
//! read; one that loses against a change is left to the next run. Counts are taken while the volume may be
//! in use, so a difference in usage may be one of the moment.
//!
//! Memory: the directories that are still to be looked at, and a bit for each inode (`NumberSet`). Round
//! trips: two for a directory of up to a page of entries, one more for a repair.

use super::number_set::NumberSet;
use super::{read_setting, scan_all, sustained_of};
use crate::engine::{
    AttrFields, Check, Counter, Engine, Item, Key, Outcome, Record, Scan, Txn, Write,
};
use crate::limits;
use crate::types::{Attr, Dentry, DirStat, FileKind, Ino, Timestamp, align_4k};
use crate::volume::{Setting, VolumeError};

/// What to check and what to do about it.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// Everything below, not only the directory itself.
    pub recursive: bool,
    /// Correct what can be corrected.
    pub repair: bool,
    /// Also hold statistics against the entries, rather than only ask whether they are possible.
    pub sync_dir_stat: bool,
    /// Permission bits of directories whose attributes are lost.
    pub dir_mode: u16,
}

/// Something wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where and what.
    pub text: String,
    /// Whether it has been corrected.
    pub repaired: bool,
}

/// A directory to look at.
struct Todo {
    ino: Ino,
    parent: Ino,
    path: String,
}

/// Checks directory `ino`, which is in `parent` and known as `path`; hands each finding to `report`. Answers
/// the number of directories looked at.
pub async fn check_tree(
    engine: &impl Engine,
    top: (Ino, Ino, String),
    options: CheckOptions,
    now: Timestamp,
    report: &mut dyn FnMut(Finding),
) -> Result<u64, VolumeError> {
    let raw = read_setting(engine)
        .await?
        .ok_or(VolumeError::NotFormatted)?;
    let setting = Setting::decode(&raw)?;
    let (ino, parent, path) = top;
    let mut todo = vec![Todo { ino, parent, path }];
    let mut seen = NumberSet::default();
    let mut count = 0;
    while let Some(dir) = todo.pop() {
        if !seen.insert(dir.ino.0) {
            let text = format!("{}: directory {} has a second name", dir.path, dir.ino);
            report(Finding {
                text,
                repaired: false,
            });
            continue;
        }
        count += 1;
        let below = check_dir(engine, &dir, options, (&setting, now), report).await?;
        if options.recursive {
            todo.extend(below);
        }
    }
    Ok(count)
}

/// What the entries of a directory add up to.
#[derive(Default)]
struct Sum {
    stat: DirStat,
    dirs: Vec<Todo>,
}

async fn sum(
    engine: &impl Engine,
    dir: &Todo,
    report: &mut dyn FnMut(Finding),
) -> Result<Sum, VolumeError> {
    let mut sum = Sum::default();
    let mut cursor = None;
    let scan = Scan::Dir {
        parent: dir.ino,
        attrs: true,
    };
    // Redis may give an entry twice.
    let mut names = std::collections::HashSet::new();
    loop {
        let page = engine
            .scan(&scan, cursor.as_ref(), limits::DIR_PAGE_ENTRIES)
            .await?;
        for item in page.items {
            let Item::Entry { name, dentry, attr } = item else {
                continue;
            };
            if !names.insert(name.clone()) {
                continue;
            }
            let Dentry { kind, ino } = dentry;
            let path = format!(
                "{}/{}",
                dir.path.trim_end_matches('/'),
                String::from_utf8_lossy(&name)
            );
            let length = match &attr {
                Some(attr) if attr.kind == FileKind::File => attr.length,
                _ => 0,
            };
            sum.stat.length += length.cast_signed();
            sum.stat.space += align_4k(length);
            sum.stat.inodes += 1;
            if kind == FileKind::Directory {
                let parent = dir.ino;
                sum.dirs.push(Todo { ino, parent, path });
            } else if attr.is_none() {
                let text =
                    format!("{path}: inode {ino} has no attributes, so its data is lost to it");
                report(Finding {
                    text,
                    repaired: false,
                });
            }
        }
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(sum),
        }
    }
}

async fn check_dir(
    engine: &impl Engine,
    dir: &Todo,
    options: CheckOptions,
    volume: (&Setting, Timestamp),
    report: &mut dyn FnMut(Finding),
) -> Result<Vec<Todo>, VolumeError> {
    let (setting, now) = volume;
    let keys = [Key::Attr(dir.ino), Key::DirStat(dir.ino)];
    let mut records = engine.read(&keys).await?.into_iter();
    let attr = records.next().flatten().map(Record::attr).transpose()?;
    let stat = records.next().flatten().map(Record::dir_stat).transpose()?;
    let sum = sum(engine, dir, report).await?;
    let links = if dir.ino < Ino::TRASH {
        2 + u32::try_from(sum.dirs.len()).unwrap_or(u32::MAX - 2)
    } else {
        2
    };
    let mut finder = Finder {
        engine,
        repair: options.repair,
        report,
        path: &dir.path,
    };
    match attr {
        None => {
            let attr = lost_dir(options.dir_mode, links, dir.parent, now);
            let ino = dir.ino;
            let txn = Txn {
                checks: vec![Check::NoAttr(ino)],
                writes: vec![Write::InsertAttr { ino, attr }],
            };
            finder
                .found("its attributes are missing".into(), txn)
                .await?;
        }
        Some(old) => finder.attr(dir, old, links).await?,
    }
    if setting.dir_stats {
        finder
            .stat(dir.ino, stat, sum.stat, options.sync_dir_stat)
            .await?;
    }
    Ok(sum.dirs)
}

fn lost_dir(mode: u16, nlink: u32, parent: Ino, now: Timestamp) -> Attr {
    Attr {
        flags: 0,
        kind: FileKind::Directory,
        mode,
        uid: 0,
        gid: 0,
        atime: now,
        mtime: now,
        ctime: now,
        nlink,
        length: 4096,
        rdev: 0,
        parent,
        access_acl: 0,
        default_acl: 0,
        tier: 0,
    }
}

/// Reports what is wrong with one directory, and corrects it if that is wanted.
struct Finder<'a, E> {
    engine: &'a E,
    repair: bool,
    report: &'a mut dyn FnMut(Finding),
    path: &'a str,
}

impl<E: Engine> Finder<'_, E> {
    async fn found(&mut self, what: String, repair: Txn) -> Result<(), VolumeError> {
        let repaired =
            self.repair && matches!(self.engine.commit(repair).await?, Outcome::Committed(_));
        let text = format!("{}: {what}", self.path);
        (self.report)(Finding { text, repaired });
        Ok(())
    }

    async fn attr(&mut self, dir: &Todo, old: Attr, links: u32) -> Result<(), VolumeError> {
        let mut wrong = Vec::new();
        let mut new = old.clone();
        if old.nlink != links && dir.ino < Ino::TRASH {
            wrong.push(format!(
                "it has {} links and should have {links}",
                old.nlink
            ));
            new.nlink = links;
        }
        if old.parent != dir.parent {
            wrong.push(format!(
                "its parent is {} and should be {}",
                old.parent, dir.parent
            ));
            new.parent = dir.parent;
        }
        if wrong.is_empty() {
            return Ok(());
        }
        let ino = dir.ino;
        let txn = Txn {
            checks: vec![Check::Attr {
                ino,
                fields: AttrFields::ALL,
                expect: old.clone(),
            }],
            writes: vec![Write::UpdateAttr { ino, old, new }],
        };
        self.found(wrong.join(", "), txn).await
    }

    async fn stat(
        &mut self,
        ino: Ino,
        found: Option<DirStat>,
        counted: DirStat,
        exactly: bool,
    ) -> Result<(), VolumeError> {
        let what = match found {
            // The roots and the trash get theirs with the first change.
            None if ino == Ino::ROOT || ino.is_trash() => return Ok(()),
            None => "its statistics are missing".to_owned(),
            Some(stat) if stat.length < 0 || stat.space < 0 || stat.inodes < 0 => {
                format!("its statistics are negative: {stat:?}")
            }
            Some(stat) if exactly && stat != counted => {
                format!("its statistics are {stat:?} and should be {counted:?}")
            }
            Some(_) => return Ok(()),
        };
        let txn = Txn {
            checks: vec![Check::Attr {
                ino,
                fields: AttrFields::EXISTS,
                expect: lost_dir(0, 0, Ino::NONE, Timestamp::default()),
            }],
            writes: vec![Write::PutDirStat { ino, stat: counted }],
        };
        self.found(what, txn).await
    }
}

/// Bytes charged and inodes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Totals {
    /// Bytes.
    pub space: i64,
    /// Inodes but the root and `.trash`.
    pub inodes: i64,
}

/// What the volume's counters say, and what its inodes add up to: all that have a name, in the trash too,
/// and those that sessions hold open. `repair` adds the difference to the counters.
pub async fn check_usage(
    engine: &impl Engine,
    repair: bool,
) -> Result<(Totals, Totals), VolumeError> {
    let keys = [Counter::UsedSpace, Counter::TotalInodes].map(Key::Counter);
    let mut said = [0; 2];
    for (said, record) in said.iter_mut().zip(engine.read(&keys).await?) {
        *said = record.map(Record::count).transpose()?.unwrap_or(0);
    }
    let mut sustained = NumberSet::default();
    for item in scan_all(engine, &Scan::Sessions).await? {
        if let Item::Session { sid, .. } = item {
            for ino in sustained_of(engine, sid).await? {
                sustained.insert(ino.0);
            }
        }
    }
    let mut counted = Totals::default();
    let mut seen = NumberSet::default();
    let mut cursor = None;
    loop {
        let page = engine.scan(&Scan::Inodes, cursor.as_ref(), 1000).await?;
        for item in page.items {
            let Item::Inode { ino, attr } = item else {
                continue;
            };
            let lives = attr.nlink > 0 || sustained.contains(ino.0);
            if ino == Ino::ROOT || ino == Ino::TRASH || !lives || !seen.insert(ino.0) {
                continue;
            }
            let length = if attr.kind == FileKind::File {
                attr.length
            } else {
                0
            };
            counted.space += align_4k(length);
            counted.inodes += 1;
        }
        match page.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    let said = Totals {
        space: said[0],
        inodes: said[1],
    };
    if repair && said != counted {
        // A difference and not the sum: others add to the counters meanwhile.
        let add = |counter, delta| Write::AddCounter { counter, delta };
        let writes = vec![
            add(Counter::UsedSpace, counted.space - said.space),
            add(Counter::TotalInodes, counted.inodes - said.inodes),
        ];
        let checks = Vec::new();
        engine.commit(Txn { checks, writes }).await?;
    }
    Ok((said, counted))
}

/// Counts the statistics of every directory anew, for a volume that did not keep them up.
pub async fn recount_dirs(engine: &impl Engine) -> Result<(), VolumeError> {
    let mut cursor = None;
    loop {
        let page = engine.scan(&Scan::Inodes, cursor.as_ref(), 1000).await?;
        for item in page.items {
            let Item::Inode { ino, attr } = item else {
                continue;
            };
            if attr.kind != FileKind::Directory {
                continue;
            }
            let dir = Todo {
                ino,
                parent: attr.parent,
                path: String::new(),
            };
            let stat = sum(engine, &dir, &mut |_| {}).await?.stat;
            let txn = Txn {
                checks: vec![Check::Attr {
                    ino,
                    fields: AttrFields::EXISTS,
                    expect: attr,
                }],
                writes: vec![Write::PutDirStat { ino, stat }],
            };
            engine.commit(txn).await?;
        }
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(()),
        }
    }
}
