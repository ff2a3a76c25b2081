//! The scripts that run inside the server, and the packing of a transaction into a call of the first: its
//! checks here, its writes in [`super::write`].
//!
//! Called by the engine's `read` (those that walk) and `commit`. All are loaded when a connection is made; a server
//! that lost them (restart, `SCRIPT FLUSH`) is sent them again by [`super::conn`]. A script is atomic; the
//! checks of a transaction all run before its first write, because a script is not rolled back. It can
//! therefore only be torn by a record of the wrong type: a volume damaged by something else. Out of memory
//! is told by the server before the first write.

use std::rc::Rc;

use crate::engine::{Check, Txn};
use crate::types::Slice;

use super::{keys, layout};

/// Sources, in the order in which [`super::conn`] loads them.
pub(super) const SOURCES: &[&str] = &[
    include_str!("commit.lua"),
    concat!(include_str!("decimal.lua"), include_str!("lookup.lua")),
    concat!(include_str!("decimal.lua"), include_str!("path.lua")),
    concat!(include_str!("decimal.lua"), include_str!("ancestors.lua")),
];
/// Position of the commit script in [`SOURCES`].
pub(super) const COMMIT: usize = 0;
/// Position of the lookup of an entry in [`SOURCES`].
pub(super) const LOOKUP: usize = 1;
/// Position of the walk down a path in [`SOURCES`].
pub(super) const PATH: usize = 2;
/// Position of the walk up to the root in [`SOURCES`].
pub(super) const ANCESTORS: usize = 3;

/// Byte strings, one after the other.
#[derive(Default)]
struct Parts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Parts {
    fn push(&mut self, part: impl AsRef<[u8]>) {
        self.push_both(b"", part.as_ref());
    }

    fn push_both(&mut self, start: &[u8], end: &[u8]) {
        self.bytes.extend_from_slice(start);
        self.bytes.extend_from_slice(end);
        self.ends.push(self.bytes.len());
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, &end)| &self.bytes[start..end])
    }
}

/// A transaction as keys and arguments of the commit script.
pub(super) struct Call {
    /// Put before every key.
    prefix: Rc<str>,
    keys: Parts,
    args: Parts,
    /// For each write, whether the script answers with a number for it.
    pub(super) answers: Vec<bool>,
}

impl Call {
    /// Packs `txn` for the volume whose keys have this prefix.
    pub(super) fn new(prefix: Rc<str>, txn: &Txn) -> Call {
        let mut call = Call {
            prefix,
            keys: Parts::default(),
            args: Parts::default(),
            answers: Vec::new(),
        };
        call.args.push(txn.checks.len().to_string());
        for check in &txn.checks {
            call.check(check);
        }
        for write in &txn.writes {
            let answers = call.write(write);
            call.answers.push(answers);
        }
        call
    }

    /// The command that runs it; `sha` names the loaded script.
    pub(super) fn command(&self, sha: &str) -> redis::Cmd {
        let size = self.keys.bytes.len() + self.args.bytes.len() + 64;
        let count = self.keys.ends.len() + self.args.ends.len() + 3;
        let mut cmd = redis::Cmd::with_capacity(count, size);
        cmd.arg("EVALSHA").arg(sha).arg(self.keys.ends.len());
        for part in self.keys.iter().chain(self.args.iter()) {
            cmd.arg(part);
        }
        cmd
    }

    fn check(&mut self, check: &Check) {
        match check {
            Check::Attr {
                ino,
                fields,
                expect,
            } => {
                self.key(keys::attr(*ino));
                self.args.push("A");
                self.args.push(fields.0.to_string());
                self.args.push(layout::canonical_attr(expect));
            }
            Check::NoAttr(ino) => self.absent(keys::attr(*ino)),
            Check::Dentry {
                parent,
                name,
                expect,
            } => {
                self.key(keys::dir(*parent));
                self.args.push("D");
                self.args.push(name);
                match expect {
                    Some(dentry) => self.args.push(layout::encode_dentry(dentry)),
                    None => self.args.push(""),
                }
            }
            Check::DirEmpty(ino) => self.absent(keys::dir(*ino)),
            Check::Xattr { ino, name, present } => {
                self.key(keys::xattrs(*ino));
                self.args.push("X");
                self.args.push(name);
                self.args.push(if *present { "1" } else { "0" });
            }
            Check::Chunk {
                ino,
                index,
                prefix,
                whole,
            } => {
                self.key(keys::chunk(*ino, *index));
                self.args.push("L");
                self.args
                    .push(prefix.iter().flat_map(Slice::encode).collect::<Vec<u8>>());
                self.args.push(if *whole { "1" } else { "0" });
            }
            Check::Counter { counter, expect } => {
                self.key(keys::counter(*counter));
                self.args.push("N");
                self.args
                    .push(layout::stored_counter(*counter, *expect).to_string());
            }
            Check::Setting(Some(text)) => {
                self.key(keys::SETTING);
                self.args.push("S");
                self.args.push(text);
            }
            Check::Setting(None) => self.absent(keys::SETTING),
            Check::Flocks { ino, expect } => {
                let held = expect.iter().map(|lock| {
                    let value = layout::encode_flock(lock.exclusive).to_vec();
                    (keys::lock_owner(lock.sid, lock.owner), value)
                });
                self.locks(keys::flocks(*ino), held);
            }
            Check::Plocks { ino, expect } => {
                let held = expect.iter().map(|lock| {
                    let value = layout::encode_plocks(&lock.ranges);
                    (keys::lock_owner(lock.sid, lock.owner), value)
                });
                self.locks(keys::plocks(*ino), held);
            }
            Check::DelayedSlices { id, time, expect } => {
                self.key(keys::DELAYED_SLICES);
                self.args.push("H");
                self.args.push(keys::delayed(*id, *time));
                self.args.push(layout::encode_delayed(expect));
            }
        }
    }

    fn absent(&mut self, key: impl AsRef<str>) {
        self.key(key);
        self.args.push("E");
    }

    fn locks(&mut self, key: String, held: impl ExactSizeIterator<Item = (String, Vec<u8>)>) {
        self.key(key);
        self.args.push("K");
        self.args.push(held.len().to_string());
        for (owner, value) in held {
            self.args.push(owner);
            self.args.push(value);
        }
    }

    /// The next key the script uses.
    pub(super) fn key(&mut self, name: impl AsRef<str>) {
        self.keys
            .push_both(self.prefix.as_bytes(), name.as_ref().as_bytes());
    }

    /// The next argument the script uses.
    pub(super) fn arg(&mut self, word: impl AsRef<[u8]>) {
        self.args.push(word);
    }

    /// Name of a key as it stands in the server, for the sets that list keys.
    pub(super) fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A command whose answer is not wanted.
    pub(super) fn run(&mut self, name: &str, key: impl AsRef<str>, operands: &[&[u8]]) -> bool {
        self.step("c", name, key, operands);
        false
    }

    /// A command whose answer, a number, is the result of the write.
    pub(super) fn ask(&mut self, name: &str, key: impl AsRef<str>, operands: &[&[u8]]) -> bool {
        self.step("r", name, key, operands);
        true
    }

    pub(super) fn step(
        &mut self,
        letter: &str,
        name: &str,
        key: impl AsRef<str>,
        operands: &[&[u8]],
    ) {
        self.key(key);
        self.args.push(letter);
        self.args.push(name);
        self.args.push(operands.len().to_string());
        for operand in operands {
            self.args.push(operand);
        }
    }
}
