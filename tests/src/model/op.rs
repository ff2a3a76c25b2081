//! The operations of the random test: what they are, and how they are drawn.

use std::fmt;

use rustix::io::Errno;

use super::HANDLES;

/// Index of an open file.
pub type Handle = usize;

/// Files stay below this many bytes.
const FILE_BYTES_MAX: usize = 3 << 20;

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// For reading.
    Read,
    /// For reading and writing, made if missing.
    Create,
    /// For reading and writing, must be missing.
    CreateNew,
    /// For reading and writing, made if missing, emptied if not.
    Truncate,
}

/// What a rename does with a target that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Renaming {
    /// Replaces it.
    Replace,
    /// Fails.
    NoReplace,
    /// Gives it the old name.
    Exchange,
}

/// One operation. Paths are relative to the root; offsets and lengths are in bytes.
#[derive(Clone)]
#[expect(
    missing_docs,
    reason = "each field is what the system call of the same name calls it"
)]
pub enum Op {
    Open {
        path: String,
        handle: Handle,
        mode: OpenMode,
    },
    Close {
        handle: Handle,
    },
    Write {
        handle: Handle,
        offset: usize,
        bytes: Vec<u8>,
    },
    Read {
        handle: Handle,
        offset: usize,
        len: usize,
    },
    SetLen {
        handle: Handle,
        len: usize,
    },
    Zero {
        handle: Handle,
        offset: usize,
        len: usize,
        keep_size: bool,
    },
    Copy {
        from: Handle,
        to: Handle,
        source: usize,
        target: usize,
        len: usize,
    },
    Sync {
        handle: Handle,
    },
    HandleStat {
        handle: Handle,
    },
    Mkdir {
        path: String,
    },
    Symlink {
        path: String,
        target: String,
    },
    Link {
        from: String,
        to: String,
    },
    Unlink {
        path: String,
    },
    Rmdir {
        path: String,
    },
    Rename {
        from: String,
        to: String,
        how: Renaming,
    },
    Stat {
        path: String,
    },
    List {
        path: String,
    },
    ReadLink {
        path: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    SetXattr {
        path: String,
        name: String,
        value: Vec<u8>,
    },
    GetXattr {
        path: String,
        name: String,
    },
    RemoveXattr {
        path: String,
        name: String,
    },
}

/// What an operation answers.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "named after what they hold")]
pub enum Value {
    Nothing,
    Bytes(Vec<u8>),
    Text(String),
    Names(Vec<String>),
    Stat {
        kind: char,
        size: u64,
        nlink: u64,
        mode: u32,
    },
}

impl Op {
    /// A random operation; those on handles use one of `open`.
    pub fn random(random: &mut fastrand::Rng, open: &[Handle]) -> Op {
        let on_handle = !open.is_empty() && random.u8(..) < 140;
        if on_handle {
            Op::on_handle(random, open)
        } else {
            Op::on_path(random)
        }
    }

    fn on_handle(random: &mut fastrand::Rng, open: &[Handle]) -> Op {
        let handle = open[random.usize(..open.len())];
        let offset = offset(random);
        let len = length(random).clamp(1, FILE_BYTES_MAX - offset);
        match random.u32(0..100) {
            0..40 => {
                let first = random.u8(1..);
                let bytes = (0..len)
                    .map(|at| first.wrapping_add((at / 7) as u8) | 1)
                    .collect();
                Op::Write {
                    handle,
                    offset,
                    bytes,
                }
            }
            40..62 => Op::Read {
                handle,
                offset,
                len,
            },
            62..70 => Op::SetLen {
                handle,
                len: offset,
            },
            70..78 => Op::Zero {
                handle,
                offset,
                len,
                keep_size: random.bool(),
            },
            78..82 => {
                let target = offset.min(FILE_BYTES_MAX / 2);
                let to = open[random.usize(..open.len())];
                let source = random.usize(0..FILE_BYTES_MAX / 2);
                Op::Copy {
                    from: handle,
                    to,
                    source,
                    target,
                    len,
                }
            }
            82..90 => Op::Sync { handle },
            90..94 => Op::HandleStat { handle },
            _ => Op::Close { handle },
        }
    }

    fn on_path(random: &mut fastrand::Rng) -> Op {
        let path = path(random);
        match random.u32(0..100) {
            0..22 => {
                use OpenMode::{Create, CreateNew, Read, Truncate};
                let mode = [Read, Create, Create, CreateNew, Truncate][random.usize(0..5)];
                Op::Open {
                    path,
                    handle: random.usize(0..HANDLES),
                    mode,
                }
            }
            22..34 => Op::Mkdir { path },
            34..38 => Op::Symlink {
                path,
                target: format!("nowhere-{}", random.u8(..)),
            },
            38..44 => Op::Link {
                from: path,
                to: self::path(random),
            },
            44..54 => Op::Unlink { path },
            54..58 => Op::Rmdir { path },
            58..74 => {
                use Renaming::{Exchange, NoReplace, Replace};
                let how = [Replace, Replace, Replace, NoReplace, Exchange][random.usize(0..5)];
                Op::Rename {
                    from: path,
                    to: self::path(random),
                    how,
                }
            }
            74..82 => Op::Stat { path },
            82..88 => Op::List { path },
            88..90 => Op::ReadLink { path },
            90..93 => Op::Chmod {
                path,
                mode: random.u32(0..0o1000) | 0o600,
            },
            93..96 => {
                let value = vec![random.u8(..); random.usize(0..300)];
                Op::SetXattr {
                    path,
                    name: xattr(random),
                    value,
                }
            }
            96..98 => Op::GetXattr {
                path,
                name: xattr(random),
            },
            _ => Op::RemoveXattr {
                path,
                name: xattr(random),
            },
        }
    }
}

// Four names, up to three levels: operations meet.
fn path(random: &mut fastrand::Rng) -> String {
    let levels = [1, 1, 2, 2, 2, 3][random.usize(0..6)];
    let names: Vec<&str> = (0..levels)
        .map(|_| ["a", "b", "c", "d"][random.usize(0..4)])
        .collect();
    names.join("/")
}

fn xattr(random: &mut fastrand::Rng) -> String {
    ["user.one", "user.two", "user.three"][random.usize(0..3)].to_string()
}

// Anywhere, but often beside a multiple of a page or of the smallest block.
fn offset(random: &mut fastrand::Rng) -> usize {
    match random.u8(0..4) {
        0 => random.usize(0..FILE_BYTES_MAX),
        1 => random.usize(0..200_000),
        2 => random.usize(0..FILE_BYTES_MAX / 65536) * 65536,
        _ => (random.usize(1..FILE_BYTES_MAX / 4096) * 4096).saturating_sub(random.usize(0..3)),
    }
}

fn length(random: &mut fastrand::Rng) -> usize {
    match random.u8(0..4) {
        0 => random.usize(0..10),
        1 => random.usize(0..5000),
        2 => random.usize(0..100_000),
        _ => random.usize(0..600_000),
    }
}

// Bytes by their length and first value only: failures stay readable.
struct Short<'a>(&'a [u8]);

impl fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes from {:?}", self.0.len(), self.0.first())
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Nothing => f.write_str("nothing"),
            Value::Bytes(bytes) => Short(bytes).fmt(f),
            Value::Text(text) => text.fmt(f),
            Value::Names(names) => names.fmt(f),
            Value::Stat {
                kind,
                size,
                nlink,
                mode,
            } => {
                write!(f, "{kind} {mode:o}, {size} bytes, {nlink} links")
            }
        }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Open { path, handle, mode } => write!(f, "open {path} as {handle}, {mode:?}"),
            Op::Close { handle } => write!(f, "close {handle}"),
            Op::Write {
                handle,
                offset,
                bytes,
            } => {
                write!(f, "write {handle} at {offset}: {:?}", Short(bytes))
            }
            Op::Read {
                handle,
                offset,
                len,
            } => write!(f, "read {handle} at {offset}: {len}"),
            Op::SetLen { handle, len } => write!(f, "set length of {handle} to {len}"),
            Op::Zero {
                handle,
                offset,
                len,
                keep_size,
            } => {
                write!(f, "zero {handle} at {offset}: {len}, keep size {keep_size}")
            }
            Op::Copy {
                from,
                to,
                source,
                target,
                len,
            } => {
                write!(f, "copy {len} from {from} at {source} to {to} at {target}")
            }
            Op::Sync { handle } => write!(f, "sync {handle}"),
            Op::HandleStat { handle } => write!(f, "stat handle {handle}"),
            Op::Mkdir { path } => write!(f, "mkdir {path}"),
            Op::Symlink { path, target } => write!(f, "symlink {path} to {target}"),
            Op::Link { from, to } => write!(f, "link {from} as {to}"),
            Op::Unlink { path } => write!(f, "unlink {path}"),
            Op::Rmdir { path } => write!(f, "rmdir {path}"),
            Op::Rename { from, to, how } => write!(f, "rename {from} to {to}, {how:?}"),
            Op::Stat { path } => write!(f, "stat {path}"),
            Op::List { path } => write!(f, "list {path}"),
            Op::ReadLink { path } => write!(f, "readlink {path}"),
            Op::Chmod { path, mode } => write!(f, "chmod {path} {mode:o}"),
            Op::SetXattr { path, name, value } => {
                write!(f, "setxattr {path} {name}: {:?}", Short(value))
            }
            Op::GetXattr { path, name } => write!(f, "getxattr {path} {name}"),
            Op::RemoveXattr { path, name } => write!(f, "removexattr {path} {name}"),
        }
    }
}

/// Where two answers of bytes differ, in words.
pub(super) fn byte_difference(
    found: &Result<Value, Errno>,
    wanted: &Result<Value, Errno>,
) -> String {
    match (found, wanted) {
        (Ok(Value::Bytes(found)), Ok(Value::Bytes(wanted))) => {
            let at = super::first_difference(found, wanted);
            let last = (0..found.len().min(wanted.len())).rfind(|&at| found[at] != wanted[at]);
            format!(" (the bytes differ from {at:?} to {last:?})")
        }
        _ => String::new(),
    }
}
