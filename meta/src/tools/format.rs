//! `format`: creates a volume in an empty metadata store, or changes what may change of one that exists.
//!
//! A new volume is one commit: the trash directory (if there is a trash), the setting, the root directory.
//! Counters begin by themselves (engines whose schema has rows for them make the rows with their tables).
//! What data is laid out by (name, block size, compression, key layout, encryption, kind of store) is fixed
//! then; limits, trash retention, the bucket's address and its credentials may change at any time and reach
//! mounted clients with their next heartbeat.
//!
//! Nothing is half done: the commit relies on the setting as it was read, and fails with
//! [`VolumeError::Raced`] if somebody else formats at the same moment.

use bytes::Bytes;

use crate::engine::{Check, Engine, Key, Outcome, Record, Txn, Write};
use crate::types::{Attr, FileKind, Ino, Timestamp};
use crate::volume::{
    Cipher, Compression, Secret, Setting, VolumeError, check_name, round_block_kib,
};

/// What the volume shall be. `None`: the default for a new volume, no change for an existing one.
#[derive(Clone, Debug, Default)]
pub struct FormatOptions {
    /// Name of the volume; must be its name if it exists.
    pub name: String,
    /// Kind of object store (`file` by default). Fixed at format.
    pub storage: Option<String>,
    /// Directory or endpoint of the object store. A directory is made absolute.
    pub bucket: Option<String>,
    /// Account at the object store.
    pub access_key: Option<String>,
    /// Its key, in clear; empty to remove it.
    pub secret_key: Option<String>,
    /// Its session token, in clear; empty to remove it.
    pub session_token: Option<String>,
    /// Block size in KiB, rounded down to a power of two. Fixed at format.
    pub block_size_kib: Option<u64>,
    /// Compression of blocks. Fixed at format.
    pub compression: Option<Compression>,
    /// Hashed object keys. Fixed at format.
    pub hash_prefix: Option<bool>,
    /// Limit in bytes, 0 = none.
    pub capacity: Option<u64>,
    /// Limit of inodes, 0 = none.
    pub inodes: Option<u64>,
    /// Days in the trash, 0 = no trash.
    pub trash_days: Option<u32>,
    /// POSIX ACLs; once on they stay on, as inodes name their rules.
    pub enable_acl: Option<bool>,
    /// PEM of the RSA private key that protects the blocks. Fixed at format.
    pub encrypt_key: Option<String>,
    /// Data cipher, `aes256gcm-rsa` or `chacha20-rsa`. Fixed at format.
    pub encrypt_algo: Option<String>,
}

/// What `format` did.
#[derive(Clone, Debug)]
pub struct Formatted {
    /// The setting now in force.
    pub setting: Setting,
    /// Whether the volume is new.
    pub created: bool,
}

/// Creates or changes the volume behind `engine`.
pub async fn format(
    engine: &impl Engine,
    options: &FormatOptions,
    now: Timestamp,
) -> Result<Formatted, VolumeError> {
    check_name(&options.name)?;
    let keys = [Key::Setting, Key::Attr(Ino::ROOT), Key::Attr(Ino::TRASH)];
    let [raw, root, trash] =
        <[_; 3]>::try_from(engine.read(&keys).await?).map_err(|_| short_answer())?;
    let raw = raw.map(Record::bytes).transpose()?;
    let setting = match &raw {
        Some(raw) => changed(Setting::decode(raw)?, options)?,
        None if root.is_some() => return Err(VolumeError::Leftovers),
        None => created(options)?,
    };

    let text = Bytes::from(setting.render());
    let mut txn = Txn::default();
    if setting.trash_days > 0 && trash.is_none() {
        insert_dir(&mut txn, Ino::TRASH, 0o555, now);
    }
    if raw.as_ref() != Some(&text) {
        txn.writes.push(Write::PutSetting(text));
    }
    // Also completes a volume whose format was cut short after the setting.
    if root.is_none() {
        insert_dir(&mut txn, Ino::ROOT, 0o777, now);
    }
    let created = raw.is_none();
    if !txn.writes.is_empty() {
        txn.checks.push(Check::Setting(raw));
        if let Outcome::Conflict { .. } = engine.commit(txn).await? {
            return Err(VolumeError::Raced);
        }
        engine.sync().await?;
    }
    Ok(Formatted { setting, created })
}

fn short_answer() -> VolumeError {
    VolumeError::Damaged {
        cause: "the store answered fewer records than asked for".into(),
    }
}

/// A new directory below the root.
pub(super) fn insert_dir(txn: &mut Txn, ino: Ino, mode: u16, now: Timestamp) {
    let attr = Attr {
        flags: 0,
        kind: FileKind::Directory,
        mode,
        uid: 0,
        gid: 0,
        atime: now,
        mtime: now,
        ctime: now,
        nlink: 2,
        length: 4096,
        rdev: 0,
        parent: Ino::ROOT,
        access_acl: 0,
        default_acl: 0,
        tier: 0,
    };
    txn.checks.push(Check::NoAttr(ino));
    txn.writes.push(Write::InsertAttr { ino, attr });
}

/// The setting of a new volume.
fn created(options: &FormatOptions) -> Result<Setting, VolumeError> {
    let mut setting = Setting::fresh(&options.name, &uuid::Uuid::new_v4().to_string());
    if let Some(storage) = &options.storage {
        setting.storage.clone_from(storage);
    }
    if let Some(kib) = options.block_size_kib {
        setting.block_size_kib = round_block_kib(kib);
    }
    setting.compression = options.compression.unwrap_or_default();
    setting.hash_prefix = options.hash_prefix.unwrap_or_default();
    if let Some(algo) = &options.encrypt_algo {
        if Cipher::from_name(algo).is_none() {
            return Err(VolumeError::Cipher { algo: algo.clone() });
        }
        setting.encrypt_algo.clone_from(algo);
    }
    if options.bucket.as_deref().unwrap_or_default().is_empty() {
        return Err(VolumeError::Option {
            what: "the bucket",
            value: "empty".into(),
            why: "a new volume needs a directory or an endpoint to put its blocks",
        });
    }
    if let Some(pem) = &options.encrypt_key {
        setting.set_secret(Secret::EncryptKey, pem)?;
    }
    apply_changeable(&mut setting, options)?;
    Ok(setting)
}

/// `old` with what may change changed; refuses the rest by name.
fn changed(old: Setting, options: &FormatOptions) -> Result<Setting, VolumeError> {
    refuse_immutable(&old, options)?;
    let mut setting = old;
    apply_changeable(&mut setting, options)?;
    Ok(setting)
}

fn refuse_immutable(old: &Setting, options: &FormatOptions) -> Result<(), VolumeError> {
    let block = options.block_size_kib.map(round_block_kib);
    let on_off = |on: bool| if on { "on" } else { "off" }.to_owned();
    let encrypted = |on: bool| if on { "set" } else { "not set" }.to_owned();
    let key = match &options.encrypt_key {
        Some(pem) if old.encrypt_key.is_empty() || old.open_secret(Secret::EncryptKey)? != *pem => {
            Some("another key".to_owned())
        }
        _ => None,
    };
    let algo = if old.encrypt_algo.is_empty() {
        crate::volume::CIPHER_DEFAULT
    } else {
        &old.encrypt_algo
    };
    let fixed = [
        ("name", old.name.clone(), Some(options.name.clone())),
        (
            "kind of object store",
            old.storage.clone(),
            options.storage.clone(),
        ),
        (
            "block size in KiB",
            old.block_size_kib.to_string(),
            block.map(|kib| kib.to_string()),
        ),
        (
            "compression",
            old.compression.name().into(),
            options.compression.map(|to| to.name().into()),
        ),
        (
            "hash prefix",
            on_off(old.hash_prefix),
            options.hash_prefix.map(on_off),
        ),
        (
            "encryption key",
            encrypted(!old.encrypt_key.is_empty()),
            key,
        ),
        ("cipher", algo.to_owned(), options.encrypt_algo.clone()),
    ];
    for (what, was, wanted) in fixed {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != was) {
            return Err(VolumeError::Immutable {
                what,
                volume: old.name.clone(),
                was,
                wanted,
            });
        }
    }
    Ok(())
}

fn apply_changeable(setting: &mut Setting, options: &FormatOptions) -> Result<(), VolumeError> {
    if let Some(bucket) = &options.bucket {
        setting.bucket = bucket_address(&setting.storage, bucket)?;
    }
    if let Some(access_key) = &options.access_key {
        setting.access_key.clone_from(access_key);
    }
    if let Some(secret) = &options.secret_key {
        setting.set_secret(Secret::SecretKey, secret)?;
    }
    if let Some(token) = &options.session_token {
        setting.set_secret(Secret::SessionToken, token)?;
    }
    setting.capacity = options.capacity.unwrap_or(setting.capacity);
    setting.inodes = options.inodes.unwrap_or(setting.inodes);
    setting.trash_days = options.trash_days.unwrap_or(setting.trash_days);
    match options.enable_acl {
        Some(true) => setting.enable_acls(),
        Some(false) if setting.enable_acl => {
            return Err(VolumeError::Option {
                what: "POSIX ACLs",
                value: "turned off".into(),
                why: "files that have some would lose them; leave the option out, or format another volume",
            });
        }
        Some(false) | None => {}
    }
    Ok(())
}

/// A directory is stored as an absolute path with a slash at its end, as object keys are appended to it.
pub(super) fn bucket_address(storage: &str, bucket: &str) -> Result<String, VolumeError> {
    if storage != "file" {
        return Ok(bucket.into());
    }
    let refuse = |why| VolumeError::Option {
        what: "the bucket",
        value: format!("\"{bucket}\""),
        why,
    };
    let path =
        std::path::absolute(bucket).map_err(|_| refuse("it must be the path of a directory"))?;
    let path = path
        .to_str()
        .ok_or_else(|| refuse("its absolute path must be UTF-8"))?;
    Ok(if path.ends_with('/') {
        path.into()
    } else {
        format!("{path}/")
    })
}
