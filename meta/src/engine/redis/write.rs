//! The writes of a transaction as steps of the commit script.
//!
//! Called by [`super::script::Call`], once for each write. Pure.

use crate::engine::{Counter, Write};
use crate::types::{ChunkIndex, Ino, QuotaKey, SessionId, Slice};

use super::script::Call;
use super::{keys, layout};

/// Operands handed to one command at most: Lua's `unpack` has a limit of some thousands.
const OPERANDS_MAX: usize = 1000;

impl Call {
    /// Adds the steps of a write; whether the script answers with a number for it.
    pub(super) fn write(&mut self, write: &Write) -> bool {
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
            Write::ReplaceChunkPrefix {
                ino,
                index,
                drop,
                slices,
            } => self.replace_prefix(&keys::chunk(*ino, *index), *drop, slices),
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
            | Write::DeleteDirStat(_) => self.write_dir_stat(write),
            Write::PutQuotaLimits { .. }
            | Write::PutQuotaUsage { .. }
            | Write::AddQuotaUsage { .. }
            | Write::DeleteQuota(_) => self.write_quota(write),
            Write::PutFlock { .. } | Write::DeleteFlock { .. } | Write::PutPlocks { .. } => {
                self.write_lock(write)
            }
            Write::InsertAcl(_)
            | Write::PutDelayedSlices { .. }
            | Write::DeleteDelayedSlices { .. }
            | Write::AddDetached { .. }
            | Write::DeleteDetached(_) => self.write_note(write),
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
                self.key(keys::attr(*ino));
                self.arg("u");
                self.arg(layout::canonical_attr(old));
                self.arg(layout::canonical_attr(new));
                false
            }
            Write::PatchDir { ino, time, nlink } => {
                self.key(keys::attr(*ino));
                self.arg("p");
                match time.map(layout::encode_time) {
                    Some(time) => self.arg([time, time].concat()),
                    None => self.arg(""),
                }
                self.arg(nlink.to_string());
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
                let (field, delta) = (keys::slice_ref(*id, *size), delta.to_string());
                self.ask(
                    "HINCRBY",
                    keys::SLICE_REFS,
                    &[field.as_bytes(), delta.as_bytes()],
                )
            }
            Write::DeleteSliceRef { id, size } => {
                let field = keys::slice_ref(*id, *size);
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

    fn write_dir_stat(&mut self, write: &Write) -> bool {
        match write {
            Write::InitDirStat(ino) => self.put_dir_stat(*ino, [0, 0, 0]),
            Write::PutDirStat { ino, stat } => {
                self.put_dir_stat(*ino, [stat.length, stat.space, stat.inodes])
            }
            Write::AddDirStat { ino, delta } => {
                for key in keys::DIR_STATS {
                    self.key(key);
                }
                self.arg("s");
                self.arg(ino.to_string());
                for value in [delta.length, delta.space, delta.inodes] {
                    self.arg(value.to_string());
                }
                true
            }
            Write::DeleteDirStat(ino) => {
                for key in keys::DIR_STATS {
                    self.run("HDEL", key, &[ino.to_string().as_bytes()]);
                }
                false
            }
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
                self.key(keys::locked(*sid));
                self.arg("l");
                self.arg(format!("{member}_"));
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
                let (score, member) = (time.to_string(), keys::deleted_file(*ino, *length));
                self.run(
                    "ZADD",
                    keys::DELETED_FILES,
                    &[score.as_bytes(), member.as_bytes()],
                )
            }
            Write::DeleteDeletedFile { ino, length } => {
                let member = keys::deleted_file(*ino, *length);
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

    fn write_quota(&mut self, write: &Write) -> bool {
        let none = layout::encode_limits(-1, -1);
        match write {
            Write::PutQuotaLimits {
                key,
                max_space,
                max_inodes,
            } => {
                let limits = layout::encode_limits(*max_space, *max_inodes);
                self.quota("L", *key, limits, [0, 0]);
                true
            }
            Write::PutQuotaUsage { key, space, inodes } => {
                self.quota("U", *key, none, [*space, *inodes]);
                true
            }
            Write::AddQuotaUsage { key, space, inodes } => {
                let step = match key {
                    QuotaKey::Dir(_) => "A",
                    QuotaKey::User(_) | QuotaKey::Group(_) => "M",
                };
                self.quota(step, *key, none, [*space, *inodes]);
                true
            }
            Write::DeleteQuota(key @ QuotaKey::Dir(ino)) => {
                for name in keys::quotas(key.kind()) {
                    self.run("HDEL", name, &[ino.to_string().as_bytes()]);
                }
                false
            }
            Write::DeleteQuota(key) => {
                self.quota("D", *key, none, [0, 0]);
                true
            }
            _ => false,
        }
    }

    fn quota(&mut self, step: &str, key: QuotaKey, limits: [u8; 16], usage: [i64; 2]) {
        for name in keys::quotas(key.kind()) {
            self.key(name);
        }
        self.arg("q");
        self.arg(step);
        self.arg(key.number().to_string());
        self.arg(limits);
        for value in usage {
            self.arg(value.to_string());
        }
    }

    fn write_lock(&mut self, write: &Write) -> bool {
        match write {
            Write::PutFlock { ino, lock } => {
                let value = layout::encode_flock(lock.exclusive);
                self.put_lock(&keys::flocks(*ino), (lock.sid, lock.owner), value)
            }
            Write::DeleteFlock { ino, sid, owner } => {
                self.release(&keys::flocks(*ino), (*sid, *owner))
            }
            Write::PutPlocks {
                ino,
                sid,
                owner,
                ranges,
            } => {
                let (key, owner) = (keys::plocks(*ino), (*sid, *owner));
                if ranges.is_empty() {
                    return self.release(&key, owner);
                }
                self.put_lock(&key, owner, &layout::encode_plocks(ranges))
            }
            _ => false,
        }
    }

    /// Every lock is noted with its session, those for reading too: who cleans up after the session finds
    /// them only there.
    fn put_lock(&mut self, key: &str, (sid, owner): (SessionId, u64), value: &[u8]) -> bool {
        let (field, name) = (keys::lock_owner(sid, owner), self.full_name(key));
        self.run("HSET", key, &[field.as_bytes(), value]);
        self.run("SADD", keys::locked(sid), &[name.as_bytes()])
    }

    fn release(&mut self, key: &str, (sid, owner): (SessionId, u64)) -> bool {
        self.key(key);
        self.key(keys::locked(sid));
        self.arg("k");
        self.arg(keys::lock_owner(sid, owner));
        self.arg(format!("{}_", sid.0));
        false
    }

    fn write_note(&mut self, write: &Write) -> bool {
        match write {
            Write::InsertAcl(rule) => {
                self.key(keys::ACLS);
                self.key(keys::ACL_LAST);
                self.arg("i");
                self.arg(layout::encode_acl(rule));
                true
            }
            Write::PutDelayedSlices { id, time, slices } => {
                let (field, value) = (keys::delayed(*id, *time), layout::encode_delayed(slices));
                self.run("HSET", keys::DELAYED_SLICES, &[field.as_bytes(), &value])
            }
            Write::DeleteDelayedSlices { id, time } => {
                let field = keys::delayed(*id, *time);
                self.run("HDEL", keys::DELAYED_SLICES, &[field.as_bytes()])
            }
            Write::AddDetached { ino, time } => {
                let (score, member) = (time.to_string(), ino.to_string());
                let operands = [score.as_bytes(), member.as_bytes()];
                self.run("ZADD", keys::DETACHED, &operands)
            }
            Write::DeleteDetached(ino) => {
                self.run("ZREM", keys::DETACHED, &[ino.to_string().as_bytes()])
            }
            _ => false,
        }
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

    /// Drops at the front, then pushes there: the last of the new records first.
    fn replace_prefix(&mut self, key: &str, drop: usize, slices: &[Slice]) -> bool {
        self.run("LTRIM", key, &[drop.to_string().as_bytes(), b"-1"]);
        let encoded: Vec<[u8; Slice::BYTES]> = slices.iter().rev().map(Slice::encode).collect();
        let operands: Vec<&[u8]> = encoded.iter().map(<[u8; Slice::BYTES]>::as_slice).collect();
        for batch in operands.chunks(OPERANDS_MAX) {
            self.run("LPUSH", key, batch);
        }
        self.ask("LLEN", key, &[])
    }
}

/// The result of a write from the number the server answered with.
pub(super) fn result_of(write: &Write, answer: i64) -> i64 {
    match write {
        Write::AddSliceRef { .. } => answer.saturating_add(1),
        // Has no result; the step that takes limits away answers like the others of quotas.
        Write::DeleteQuota(_) => 0,
        Write::AddCounter { counter, .. } => match counter {
            Counter::UsedSpace
            | Counter::TotalInodes
            | Counter::LastCleanupSessions
            | Counter::LastCleanupFiles
            | Counter::NextCleanupSlices
            | Counter::LastCleanupTrash => answer,
            Counter::NextInode | Counter::NextSlice | Counter::NextSession | Counter::NextTrash => {
                layout::counter_from_stored(*counter, answer)
            }
        },
        _ => answer,
    }
}
