//! The two scripts that run inside the server, and the packing of a transaction into a call of the first.
//!
//! Called by the engine's `read` (lookup) and `commit`. Both are loaded when a connection is made; a server
//! that lost them (restart, `SCRIPT FLUSH`) is sent them again by [`super::conn`]. A script is atomic; the
//! checks of a transaction all run before its first write, because a script is not rolled back. It can
//! therefore only be torn by a record of the wrong type: a volume damaged by something else. Out of memory
//! is told by the server before the first write.

use crate::engine::{Check, Counter, Txn, Write};
use crate::types::{ChunkIndex, Ino, Slice};

use super::layout::{self, keys};

/// Sources, in the order in which [`super::conn`] loads them.
pub(super) const SOURCES: &[&str] = &[include_str!("commit.lua"), include_str!("lookup.lua")];
/// Position of the commit script in [`SOURCES`].
pub(super) const COMMIT: usize = 0;
/// Position of the lookup script in [`SOURCES`].
pub(super) const LOOKUP: usize = 1;

/// Operands handed to one command at most: Lua's `unpack` has a limit of some thousands.
const OPERANDS_MAX: usize = 1000;

/// Byte strings, one after the other.
#[derive(Default)]
struct Parts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Parts {
    fn push(&mut self, part: impl AsRef<[u8]>) {
        self.bytes.extend_from_slice(part.as_ref());
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
    keys: Parts,
    args: Parts,
    /// For each write, whether the script answers with a number for it.
    pub(super) answers: Vec<bool>,
}

impl Call {
    /// Packs `txn`.
    pub(super) fn new(txn: &Txn) -> Call {
        let mut call = Call {
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
                self.keys.push(keys::attr(*ino));
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
                self.keys.push(keys::dir(*parent));
                self.args.push("D");
                self.args.push(name);
                match expect {
                    Some(dentry) => self.args.push(layout::encode_dentry(dentry)),
                    None => self.args.push(""),
                }
            }
            Check::DirEmpty(ino) => self.absent(keys::dir(*ino)),
            Check::Xattr { ino, name, present } => {
                self.keys.push(keys::xattrs(*ino));
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
                self.keys.push(keys::chunk(*ino, *index));
                self.args.push("L");
                self.args
                    .push(prefix.iter().flat_map(Slice::encode).collect::<Vec<u8>>());
                self.args.push(if *whole { "1" } else { "0" });
            }
            Check::Counter { counter, expect } => {
                self.keys.push(keys::counter(*counter));
                self.args.push("N");
                self.args
                    .push(layout::stored_counter(*counter, *expect).to_string());
            }
            Check::Setting(Some(text)) => {
                self.keys.push(keys::SETTING);
                self.args.push("S");
                self.args.push(text);
            }
            Check::Setting(None) => self.absent(keys::SETTING),
        }
    }

    fn absent(&mut self, key: impl AsRef<[u8]>) {
        self.keys.push(key);
        self.args.push("E");
    }

    /// Adds the steps of a write; whether the script answers with a number for it.
    fn write(&mut self, write: &Write) -> bool {
        match write {
            Write::InsertAttr { .. }
            | Write::UpdateAttr { .. }
            | Write::PatchDir { .. }
            | Write::DeleteAttr(_) => self.write_attr(write),
            Write::InsertDentry { .. }
            | Write::ReplaceDentry { .. }
            | Write::DeleteDentry { .. }
            | Write::PutSymlink { .. }
            | Write::DeleteSymlink(_)
            | Write::PutXattr { .. }
            | Write::DeleteXattr { .. }
            | Write::DeleteXattrs(_)
            | Write::AddParent { .. }
            | Write::DeleteParents(_) => self.write_name(write),
            Write::AppendChunk { ino, index, slices } => self.append("RPUSH", *ino, *index, slices),
            Write::AppendChunkIfPresent { ino, index, slices } => {
                self.append("RPUSHX", *ino, *index, slices)
            }
            Write::DeleteChunk { ino, index } => self.run("DEL", keys::chunk(*ino, *index), &[]),
            // A slice without a record has one reference.
            Write::NewSliceRef { .. } => false,
            Write::AddSliceRef { .. }
            | Write::DeleteSliceRef { .. }
            | Write::AddCounter { .. }
            | Write::SetCounter { .. } => self.write_number(write),
            Write::InitDirStat(_)
            | Write::AddDirStat { .. }
            | Write::PutDirStat { .. }
            | Write::DeleteDirStat(_)
            | Write::DeleteDirQuota(_) => self.write_usage(write),
            Write::PutSession { .. }
            | Write::DeleteSession(_)
            | Write::AddSustained { .. }
            | Write::DeleteSustained { .. }
            | Write::AddDeletedFile { .. }
            | Write::DeleteDeletedFile { .. }
            | Write::PutSetting(_) => self.write_session(write),
        }
    }

    fn write_attr(&mut self, write: &Write) -> bool {
        match write {
            Write::InsertAttr { ino, attr } => {
                self.run("SET", keys::attr(*ino), &[&layout::encode_attr(attr)])
            }
            Write::UpdateAttr { ino, old, new } => {
                self.keys.push(keys::attr(*ino));
                self.args.push("u");
                self.args.push(layout::canonical_attr(old));
                self.args.push(layout::canonical_attr(new));
                false
            }
            Write::PatchDir { ino, time, nlink } => {
                self.keys.push(keys::attr(*ino));
                self.args.push("p");
                match time.map(layout::encode_time) {
                    Some(time) => self.args.push([time, time].concat()),
                    None => self.args.push(""),
                }
                self.args.push(nlink.to_string());
                false
            }
            Write::DeleteAttr(ino) => self.run("DEL", keys::attr(*ino), &[]),
            _ => false,
        }
    }

    fn write_name(&mut self, write: &Write) -> bool {
        match write {
            Write::InsertDentry {
                parent,
                name,
                dentry,
            }
            | Write::ReplaceDentry {
                parent,
                name,
                dentry,
            } => {
                let value = layout::encode_dentry(dentry);
                self.run("HSET", keys::dir(*parent), &[name, &value])
            }
            Write::DeleteDentry { parent, name } => self.run("HDEL", keys::dir(*parent), &[name]),
            Write::PutSymlink { ino, target } => self.run("SET", keys::symlink(*ino), &[target]),
            Write::DeleteSymlink(ino) => self.run("DEL", keys::symlink(*ino), &[]),
            Write::PutXattr { ino, name, value } => {
                self.run("HSET", keys::xattrs(*ino), &[name, value])
            }
            Write::DeleteXattr { ino, name } => self.ask("HDEL", keys::xattrs(*ino), &[name]),
            Write::DeleteXattrs(ino) => self.run("DEL", keys::xattrs(*ino), &[]),
            Write::AddParent { ino, parent, delta } => {
                let (parent, delta) = (parent.to_string(), delta.to_string());
                let operands = [parent.as_bytes(), delta.as_bytes()];
                self.run("HINCRBY", keys::parents(*ino), &operands)
            }
            Write::DeleteParents(ino) => self.run("DEL", keys::parents(*ino), &[]),
            _ => false,
        }
    }

    fn write_number(&mut self, write: &Write) -> bool {
        match write {
            Write::AddSliceRef { id, size, delta } => {
                let (field, delta) = (layout::slice_ref_field(*id, *size), delta.to_string());
                self.ask(
                    "HINCRBY",
                    keys::SLICE_REFS,
                    &[field.as_bytes(), delta.as_bytes()],
                )
            }
            Write::DeleteSliceRef { id, size } => {
                let field = layout::slice_ref_field(*id, *size);
                self.run("HDEL", keys::SLICE_REFS, &[field.as_bytes()])
            }
            Write::AddCounter { counter, delta } => self.ask(
                "INCRBY",
                keys::counter(*counter),
                &[delta.to_string().as_bytes()],
            ),
            Write::SetCounter { counter, value } => {
                let value = layout::stored_counter(*counter, *value).to_string();
                self.run("SET", keys::counter(*counter), &[value.as_bytes()])
            }
            _ => false,
        }
    }

    fn write_usage(&mut self, write: &Write) -> bool {
        match write {
            Write::InitDirStat(ino) => self.put_dir_stat(*ino, [0, 0, 0]),
            Write::PutDirStat { ino, stat } => {
                self.put_dir_stat(*ino, [stat.length, stat.space, stat.inodes])
            }
            Write::AddDirStat { ino, delta } => {
                for key in keys::DIR_STATS {
                    self.keys.push(key);
                }
                self.args.push("s");
                self.args.push(ino.to_string());
                for value in [delta.length, delta.space, delta.inodes] {
                    self.args.push(value.to_string());
                }
                true
            }
            Write::DeleteDirStat(ino) => self.drop_fields(keys::DIR_STATS, *ino),
            Write::DeleteDirQuota(ino) => self.drop_fields(keys::DIR_QUOTAS, *ino),
            _ => false,
        }
    }

    fn write_session(&mut self, write: &Write) -> bool {
        match write {
            Write::PutSession { sid, expire, info } => {
                let (member, score) = (sid.0.to_string(), expire.to_string());
                self.run(
                    "ZADD",
                    keys::SESSIONS,
                    &[score.as_bytes(), member.as_bytes()],
                );
                if let Some(info) = info {
                    self.run("HSET", keys::SESSION_INFOS, &[member.as_bytes(), info]);
                }
                false
            }
            Write::DeleteSession(sid) => {
                let member = sid.0.to_string();
                self.keys.push(keys::locked(*sid));
                self.args.push("l");
                self.args.push(format!("{member}_"));
                self.run("HDEL", keys::SESSION_INFOS, &[member.as_bytes()]);
                self.run("ZREM", keys::SESSIONS, &[member.as_bytes()])
            }
            Write::AddSustained { sid, ino } => {
                self.run("SADD", keys::sustained(*sid), &[ino.to_string().as_bytes()])
            }
            Write::DeleteSustained { sid, ino } => {
                self.run("SREM", keys::sustained(*sid), &[ino.to_string().as_bytes()])
            }
            Write::AddDeletedFile { ino, length, time } => {
                let (score, member) = (time.to_string(), layout::deleted_file(*ino, *length));
                self.run(
                    "ZADD",
                    keys::DELETED_FILES,
                    &[score.as_bytes(), member.as_bytes()],
                )
            }
            Write::DeleteDeletedFile { ino, length } => {
                let member = layout::deleted_file(*ino, *length);
                self.run("ZREM", keys::DELETED_FILES, &[member.as_bytes()])
            }
            Write::PutSetting(text) => self.run("SET", keys::SETTING, &[text]),
            _ => false,
        }
    }

    fn put_dir_stat(&mut self, ino: Ino, values: [i64; 3]) -> bool {
        let field = ino.to_string();
        for (key, value) in keys::DIR_STATS.into_iter().zip(values) {
            self.run(
                "HSET",
                key,
                &[field.as_bytes(), value.to_string().as_bytes()],
            );
        }
        false
    }

    fn drop_fields(&mut self, hashes: [&'static str; 3], ino: Ino) -> bool {
        let field = ino.to_string();
        for key in hashes {
            self.run("HDEL", key, &[field.as_bytes()]);
        }
        false
    }

    fn append(&mut self, push: &str, ino: Ino, index: ChunkIndex, slices: &[Slice]) -> bool {
        let key = keys::chunk(ino, index);
        let encoded: Vec<[u8; Slice::BYTES]> = slices.iter().map(Slice::encode).collect();
        let operands: Vec<&[u8]> = encoded.iter().map(<[u8; Slice::BYTES]>::as_slice).collect();
        let mut batches = operands.chunks(OPERANDS_MAX);
        let Some(last) = batches.next_back() else {
            return self.ask("LLEN", key, &[]);
        };
        for batch in batches {
            self.run(push, &key, batch);
        }
        self.ask(push, &key, last)
    }

    /// A command whose answer is not wanted.
    fn run(&mut self, name: &str, key: impl AsRef<[u8]>, operands: &[&[u8]]) -> bool {
        self.step("c", name, key, operands);
        false
    }

    /// A command whose answer, a number, is the result of the write.
    fn ask(&mut self, name: &str, key: impl AsRef<[u8]>, operands: &[&[u8]]) -> bool {
        self.step("r", name, key, operands);
        true
    }

    fn step(&mut self, letter: &str, name: &str, key: impl AsRef<[u8]>, operands: &[&[u8]]) {
        self.keys.push(key);
        self.args.push(letter);
        self.args.push(name);
        self.args.push(operands.len().to_string());
        for operand in operands {
            self.args.push(operand);
        }
    }
}

/// The result of a write from the number the server answered with.
pub(super) fn result_of(write: &Write, answer: i64) -> i64 {
    match write {
        Write::AddSliceRef { .. } => answer.saturating_add(1),
        Write::AddCounter { counter, .. } => match counter {
            Counter::UsedSpace
            | Counter::TotalInodes
            | Counter::LastCleanupSessions
            | Counter::LastCleanupFiles => answer,
            Counter::NextInode | Counter::NextSlice | Counter::NextSession | Counter::NextTrash => {
                layout::counter_from_stored(*counter, answer)
            }
        },
        _ => answer,
    }
}
