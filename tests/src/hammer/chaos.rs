//! Every kind of operation, at random, on a tree of few names; each may give only the errors listed for it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::Hand;

/// The directory of this work.
pub const TREE: &str = "tree";

/// Names a directory has most often; files and links get them as well.
const BRANCHES: [&str; 3] = ["d0", "d1", "d2"];
/// Names of everything else; directories get them as well.
const LEAVES: [&str; 5] = ["f0", "f1", "f2", "f3", "f4"];
/// Deepest path.
const DEPTH: usize = 3;
/// Files stay below this length.
const LENGTH: u64 = 100_000;

/// What any walk along a path may end with while others rename and remove. ESTALE is the kernel's, when a
/// directory that another mount moved is found at its new place while the old one is in use; ELOOP when that
/// place seems to lie below itself, or a symlink leads to itself.
const WALK: [Errno; 4] = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::STALE];

/// Makes the tree's root.
pub fn prepare(base: &Path) -> Result<()> {
    fs::create_dir_all(base.join(TREE)).context("preparing the tree")
}

/// Operations until there are no more to do.
pub fn work(hand: &mut Hand) -> Result<()> {
    while hand.more() {
        match step(hand) {
            Err(error) if hand.name.starts_with("juicefs") && is_juicefs_own(&error) => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// An error that an operation may not give.
#[derive(Debug)]
struct Disallowed {
    what: String,
    errno: Errno,
}

impl std::error::Error for Disallowed {}

impl std::fmt::Display for Disallowed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Disallowed { what, errno } = self;
        write!(f, "{what}: {errno:?} ({errno}) is not allowed")
    }
}

/// What JuiceFS itself answers otherwise: EPERM where a directory would move below itself, and EBADF to fsync of
/// a file that another mount has removed.
fn is_juicefs_own(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Disallowed>().is_some_and(|error| {
        let is = |errno, verb| error.errno == errno && error.what.starts_with(verb);
        is(Errno::PERM, "rename") || is(Errno::BADF, "fsync")
    })
}

fn path(hand: &mut Hand) -> PathBuf {
    let mut path = hand.base.join(TREE);
    let depth = hand.random.usize(1..=DEPTH);
    for _ in 1..depth {
        path.push(BRANCHES[hand.random.usize(0..BRANCHES.len())]);
    }
    let last = hand.random.usize(0..BRANCHES.len() + LEAVES.len());
    path.push(BRANCHES.get(last).unwrap_or(&LEAVES[last % LEAVES.len()]));
    path
}

/// Passes success and the errors in `allowed` besides those of `WALK`.
fn judge<T>(what: &str, outcome: Result<T, Errno>, allowed: &[Errno]) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if WALK.contains(&error) || allowed.contains(&error) => Ok(None),
        Err(errno) => {
            let what = what.to_owned();
            Err(Disallowed { what, errno }.into())
        }
    }
}

fn errno<T>(outcome: std::io::Result<T>) -> Result<T, Errno> {
    outcome.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn step(hand: &mut Hand) -> Result<()> {
    let path = path(hand);
    match hand.random.u32(0..100) {
        0..12 => create(hand, &path),
        12..27 => change(hand, &path),
        27..47 => rename(hand, &path),
        47..54 => link(hand, &path),
        54..58 => symlink(hand, &path),
        58..67 => unlink(hand, &path),
        67..76 => mkdir(hand, &path),
        76..82 => rmdir(hand, &path),
        82..88 => xattr(hand, &path),
        88..91 => lock(hand, &path),
        91..95 => list(hand, &path),
        _ => stat(hand, &path),
    }
}

fn create(hand: &mut Hand, path: &Path) -> Result<()> {
    let what = format!("open O_CREAT|O_EXCL {path:?}");
    hand.begin(&what)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let outcome = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644));
    judge(&what, outcome, &[Errno::EXIST]).map(drop)
}

fn mkdir(hand: &mut Hand, path: &Path) -> Result<()> {
    let what = format!("mkdir {path:?}");
    hand.begin(&what)?;
    let outcome = rustix::fs::mkdir(path, Mode::from_raw_mode(0o755));
    judge(&what, outcome, &[Errno::EXIST]).map(drop)
}

fn rmdir(hand: &mut Hand, path: &Path) -> Result<()> {
    let what = format!("rmdir {path:?}");
    hand.begin(&what)?;
    judge(&what, rustix::fs::rmdir(path), &[Errno::NOTEMPTY]).map(drop)
}

fn unlink(hand: &mut Hand, path: &Path) -> Result<()> {
    let what = format!("unlink {path:?}");
    hand.begin(&what)?;
    let allowed = [Errno::ISDIR, Errno::PERM];
    judge(&what, rustix::fs::unlink(path), &allowed).map(drop)
}

fn link(hand: &mut Hand, path: &Path) -> Result<()> {
    let to = self::path(hand);
    let what = format!("link {path:?} {to:?}");
    hand.begin(&what)?;
    let outcome = rustix::fs::linkat(CWD, path, CWD, &to, AtFlags::empty());
    judge(&what, outcome, &[Errno::EXIST, Errno::PERM]).map(drop)
}

fn symlink(hand: &mut Hand, path: &Path) -> Result<()> {
    let targets = ["f0", "../f1", "d1/f2", "nowhere"];
    let target = targets[hand.random.usize(0..targets.len())];
    let what = format!("symlink {target} {path:?}");
    hand.begin(&what)?;
    judge(&what, rustix::fs::symlink(target, path), &[Errno::EXIST]).map(drop)
}

fn rename(hand: &mut Hand, path: &Path) -> Result<()> {
    let to = self::path(hand);
    let flags = [
        RenameFlags::empty(),
        RenameFlags::empty(),
        RenameFlags::NOREPLACE,
        RenameFlags::EXCHANGE,
    ];
    let flags = flags[hand.random.usize(0..flags.len())];
    let what = format!("rename {flags:?} {path:?} {to:?}");
    hand.begin(&what)?;
    // EINVAL: into itself or below; ENOTEMPTY: over its own parent, too.
    let allowed = [Errno::EXIST, Errno::NOTEMPTY, Errno::ISDIR, Errno::INVAL];
    let outcome = rustix::fs::renameat_with(CWD, path, CWD, &to, flags);
    judge(&what, outcome, &allowed).map(drop)
}

fn open(hand: &Hand, path: &Path, flags: OFlags) -> Result<Option<File>> {
    let what = format!("open {flags:?} {path:?}");
    hand.begin(&what)?;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let outcome = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644));
    // A file that another mount moved to the trash since the name was looked up is refused for writing, as JuiceFS
    // refuses it.
    let allowed = [Errno::ISDIR, Errno::EXIST, Errno::PERM];
    Ok(judge(&what, outcome, &allowed)?.map(File::from))
}

/// Writes, appends, truncates. A file that another mount removes meanwhile is gone for this one: ENOENT.
fn change(hand: &mut Hand, path: &Path) -> Result<()> {
    let mut flags = OFlags::RDWR;
    if hand.random.bool() {
        flags |= OFlags::CREATE;
    }
    let kind = hand.random.u32(0..4);
    if kind == 0 {
        flags |= OFlags::APPEND;
    }
    if kind == 1 && hand.random.bool() {
        flags |= OFlags::TRUNC;
    }
    let Some(file) = open(hand, path, flags)? else {
        return Ok(());
    };
    let gone = [Errno::NOENT];
    let bytes = vec![hand.random.u8(1..); hand.random.usize(1..6000)];
    let offset = hand.random.u64(0..LENGTH - 6000);
    let what = match kind {
        3 => format!("ftruncate {offset} {path:?}"),
        _ => format!("write {} bytes at {offset} {path:?}", bytes.len()),
    };
    hand.begin(&what)?;
    let outcome = match kind {
        3 => rustix::fs::ftruncate(&file, offset),
        0 if file.metadata().is_ok_and(|found| found.len() > LENGTH) => {
            rustix::fs::ftruncate(&file, 0)
        }
        _ => errno(file.write_all_at(&bytes, offset)),
    };
    judge(&what, outcome, &gone)?;
    if hand.random.u32(0..4) == 0 {
        let what = format!("fsync {path:?} after {what}");
        hand.begin(&what)?;
        judge(&what, rustix::fs::fsync(&file), &gone)?;
    }
    hand.begin(&format!("close {path:?} after {what}"))?;
    drop(file);
    Ok(())
}

fn xattr(hand: &mut Hand, path: &Path) -> Result<()> {
    let name = ["user.a", "user.b"][hand.random.usize(0..2)];
    let value = vec![hand.random.u8(..); hand.random.usize(1..64)];
    let what = format!("xattr {name} of {path:?}");
    hand.begin(&what)?;
    // The kernel refuses user attributes of symlinks.
    match hand.random.u32(0..5) {
        0 => judge(
            &what,
            rustix::fs::lremovexattr(path, name),
            &[Errno::NODATA, Errno::PERM],
        )
        .map(drop),
        1 => {
            let mut buffer = [0u8; 256];
            let outcome = rustix::fs::lgetxattr(path, name, &mut buffer);
            judge(&what, outcome, &[Errno::NODATA, Errno::PERM]).map(drop)
        }
        kind => {
            let flags =
                [XattrFlags::empty(), XattrFlags::CREATE, XattrFlags::REPLACE][kind as usize - 2];
            let outcome = rustix::fs::lsetxattr(path, name, &value, flags);
            let allowed = [Errno::EXIST, Errno::NODATA, Errno::PERM];
            judge(&what, outcome, &allowed).map(drop)
        }
    }
}

fn lock(hand: &mut Hand, path: &Path) -> Result<()> {
    let Some(file) = open(hand, path, OFlags::RDWR)? else {
        return Ok(());
    };
    let what = format!("lock {path:?}");
    hand.begin(&what)?;
    let operation = [
        FlockOperation::NonBlockingLockExclusive,
        FlockOperation::NonBlockingLockShared,
    ][hand.random.usize(0..2)];
    let outcome = if hand.random.bool() {
        rustix::fs::flock(&file, operation)
    } else {
        rustix::fs::fcntl_lock(&file, operation)
    };
    judge(&what, outcome, &[Errno::AGAIN, Errno::ACCESS]).map(drop)
}

fn list(hand: &mut Hand, path: &Path) -> Result<()> {
    let what = format!("readdir {path:?}");
    hand.begin(&what)?;
    let Some(entries) = judge(&what, errno(fs::read_dir(path)), &[])? else {
        return Ok(());
    };
    let mut seen: HashSet<OsString> = HashSet::new();
    for entry in entries {
        let Some(entry) = judge(&what, errno(entry), &[])? else {
            return Ok(());
        };
        let name = entry.file_name();
        let known = name
            .to_str()
            .is_some_and(|name| BRANCHES.contains(&name) || LEAVES.contains(&name));
        ensure!(known, "{what}: the name {name:?} was never made");
        ensure!(seen.insert(name.clone()), "{what}: {name:?} twice");
    }
    Ok(())
}

fn stat(hand: &mut Hand, path: &Path) -> Result<()> {
    let what = format!("lstat {path:?}");
    hand.begin(&what)?;
    let Some(found) = judge(&what, errno(fs::symlink_metadata(path)), &[])? else {
        return Ok(());
    };
    ensure!(
        !found.is_file() || found.len() <= LENGTH + 6000 * 16,
        "{what}: {} bytes",
        found.len()
    );
    if found.is_symlink() {
        let what = format!("readlink {path:?}");
        hand.begin(&what)?;
        // Something else may have the name by now.
        let outcome = rustix::fs::readlink(path, Vec::new());
        let Some(target) = judge(&what, outcome, &[Errno::INVAL])? else {
            return Ok(());
        };
        let target = OsString::from_vec(target.into_bytes());
        let text = target
            .to_str()
            .ok_or_else(|| anyhow!("{what}: {target:?}"))?;
        let known = ["f0", "../f1", "d1/f2", "nowhere"].contains(&text);
        ensure!(known, "{what}: {text:?} was never a target");
    }
    Ok(())
}
