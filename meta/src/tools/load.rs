//! `load`: makes a volume in an empty store of what `dump` wrote, ours or JuiceFS's.
//!
//! Setting, limits of quotas, deleted files and both trees are taken from the dump. What follows from the trees
//! is counted anew: links, parents, references of slices, statistics of directories, usage of the volume and
//! of quotas. ACL rules are stored once each. Counters of ids never go back behind what the dump says, so
//! that no object of the old volume is ever written again under its name. Sessions, and with them files
//! that were deleted while open, are not loaded; the objects of those are found by `gc`.
//!
//! The setting is written last: a store with half a volume in it cannot be mounted. After a failure the store
//! is emptied again.
//!
//! Memory: the directories from the root down to where the reader is, a bit for each inode and each slice
//! (`NumberSet`), and the attributes of inodes with several links. Round trips: one for some hundred
//! records.
//!
//! Reading order: [`load`] takes the dump's fields one by one; `tree` walks a tree; `reader` is the JSON,
//! `batch` the store.

mod batch;
mod reader;
mod tree;

use std::collections::BTreeMap;
use std::io::{self, Read};

use bytes::Bytes;

use super::dump::shape::{Counters, DeletedFile, Limits};
use crate::engine::{Counter, Engine, Write};
use crate::error::EngineError;
use crate::types::{QuotaKey, QuotaKind};
use crate::volume::{Setting, VolumeError};

use reader::JsonReader;
use tree::{Loader, Usage};

/// What was loaded.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The volume's setting.
    pub setting: Setting,
    /// Inodes, without the root.
    pub inodes: i64,
    /// Bytes they are charged with.
    pub used_space: i64,
}

/// Why a load failed. The store is as empty as before, unless [`LoadError::NotEmpty`].
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is something already.
    #[error(
        "the metadata store is not empty and a dump is only loaded into an empty one, so that nothing is overwritten; name another store"
    )]
    NotEmpty,
    /// Of the setting in the dump.
    #[error("the dump's setting: {0}")]
    Volume(#[from] VolumeError),
    /// Of the store.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Of the file.
    #[error("the dump cannot be read ({0}); check the file")]
    Input(#[from] io::Error),
    /// Not the JSON of a dump.
    #[error("this is not a whole dump: at byte {offset}, {cause}; take another copy of it")]
    Syntax {
        /// Where.
        offset: u64,
        /// What is wrong there.
        cause: String,
    },
    /// The records do not make a volume.
    #[error("the dump is damaged: {0}; take another dump")]
    Damaged(String),
}

/// Fields of the dump that come before its trees, as far as they have been read.
#[derive(Default)]
struct Head {
    setting: Option<Setting>,
    counters: Option<Counters>,
    limits: BTreeMap<QuotaKey, Limits>,
    deleted: Vec<DeletedFile>,
}

/// Loads the dump `input` into `engine`, which must be empty.
pub async fn load(engine: &impl Engine, input: &mut dyn Read) -> Result<Loaded, LoadError> {
    if !engine.is_empty().await? {
        return Err(LoadError::NotEmpty);
    }
    let loaded = try_load(engine, input).await;
    if loaded.is_err()
        && let Err(error) = engine.destroy().await
    {
        tracing::warn!(%error, "part of the dump is left in the store, which has to be emptied");
    }
    loaded
}

async fn try_load(engine: &impl Engine, input: &mut dyn Read) -> Result<Loaded, LoadError> {
    let mut reader = JsonReader::new(input);
    let mut head = Head::default();
    let mut loader = Loader::new(engine);
    let mut trees = 0;
    let mut first = true;
    reader.enter_object()?;
    while let Some(field) = reader.next_key(&mut first)? {
        match field.as_str() {
            "Setting" => head.setting = Some(Setting::decode(&reader.value()?)?),
            "Counters" => head.counters = Some(reader.decode()?),
            "DelFiles" => head.deleted = reader.decode::<Option<_>>()?.unwrap_or_default(),
            "Quotas" => quotas(&mut reader, &mut head, QuotaKind::Dir)?,
            "UserQuotas" => quotas(&mut reader, &mut head, QuotaKind::User)?,
            "GroupQuotas" => quotas(&mut reader, &mut head, QuotaKind::Group)?,
            "FSTree" | "Trash" => {
                if head.setting.is_none() || head.counters.is_none() {
                    return Err(reader.wrong("Setting and Counters have to come before the trees"));
                }
                if trees == 0 {
                    loader.limited = directories(&head);
                }
                trees += 1;
                match field.as_str() {
                    "FSTree" => loader.volume(&mut reader).await?,
                    _ => loader.trash(&mut reader).await?,
                }
            }
            // Sustained inodes belong to sessions, which are not loaded; the change log to its volume.
            _ => reader.skip()?,
        }
    }
    reader.expect_end()?;
    if !loader.has_root() {
        return Err(reader.wrong("there is no FSTree"));
    }
    finish(loader, head).await
}

fn quotas(reader: &mut JsonReader<'_>, head: &mut Head, kind: QuotaKind) -> Result<(), LoadError> {
    let limits: Option<BTreeMap<String, Limits>> = reader.decode()?;
    for (number, limits) in limits.unwrap_or_default() {
        let key = number.parse().ok().and_then(|number| kind.key(number));
        let key = key.ok_or_else(|| reader.wrong(format!("a quota of {number:?}")))?;
        head.limits.insert(key, limits);
    }
    Ok(())
}

/// Directories with a quota.
fn directories(head: &Head) -> BTreeMap<crate::types::Ino, Option<Usage>> {
    let dirs = head.limits.keys().filter_map(|key| match key {
        QuotaKey::Dir(ino) => Some((*ino, None)),
        QuotaKey::User(_) | QuotaKey::Group(_) => None,
    });
    dirs.collect()
}

/// Links, quotas, deleted files; then, in one commit, counters and the setting.
async fn finish(mut loader: Loader<'_, impl Engine>, head: Head) -> Result<Loaded, LoadError> {
    let (Some(setting), Some(counters)) = (head.setting, head.counters) else {
        return Err(LoadError::Damaged(
            "its setting or its counters are missing".into(),
        ));
    };
    loader.link().await?;
    for file in head.deleted {
        let write = Write::AddDeletedFile {
            ino: crate::types::Ino(file.inode),
            length: file.length,
            time: file.expire,
        };
        loader.batch.add(write).await?;
    }
    for (key, limits) in &head.limits {
        // That of a directory which is not part of the dump goes with it.
        let usage = match key {
            QuotaKey::Dir(ino) => loader.limited.get(ino).copied().flatten(),
            QuotaKey::User(_) | QuotaKey::Group(_) => Some(Usage::default()),
        };
        let Some(usage) = usage else { continue };
        loader
            .batch
            .add(Write::PutQuotaLimits {
                key: *key,
                max_space: limits.max_space,
                max_inodes: limits.max_inodes,
            })
            .await?;
        loader.batch.add(usage.charge(*key)).await?;
    }
    let accounted = head.limits.keys().any(|key| key.kind() != QuotaKind::Dir);
    if accounted || setting.user_group_quota {
        for (key, usage) in loader.owners(setting.trash_days > 0) {
            loader.batch.add(usage.charge(key)).await?;
        }
    }
    loader.batch.flush().await?;
    let usage = loader.usage;
    let mut writes = vec![Write::PutSetting(Bytes::from(setting.render()))];
    let next_inode = counters.next_inodes.max(loader.next_inode);
    let next_slice = counters.next_chunk.max(loader.next_slice);
    let next_trash = (counters.next_trash.max(0) + 1).max(loader.next_trash);
    for (counter, value) in [
        (Counter::UsedSpace, usage.space),
        (Counter::TotalInodes, usage.inodes),
        (Counter::NextInode, next_inode),
        (Counter::NextSlice, next_slice),
        (Counter::NextSession, counters.next_session.max(0) + 1),
        (Counter::NextTrash, next_trash),
    ] {
        writes.push(Write::SetCounter { counter, value });
    }
    loader.batch.commit(writes).await?;
    loader.batch.engine().sync().await?;
    Ok(Loaded {
        setting,
        inodes: usage.inodes,
        used_space: usage.space,
    })
}
