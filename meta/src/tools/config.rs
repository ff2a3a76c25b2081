//! `config`: what may be changed of a volume in use. Mounted clients learn of it with their next heartbeat.
//!
//! In two steps, so that somebody can be asked between: [`plan`] reads the setting and says what would change and
//! what that would do; [`apply`] writes it if the setting is still the one that was read (one commit), and
//! counts anew what was not kept up while it was off. Fields that this client does not know stay as they are.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::format::{bucket_address, insert_dir};
use super::number_set::NumberSet;
use super::{has_dir_quotas, read_setting, scan_all};
use crate::engine::{Check, Counter, Engine, Item, Key, Outcome, Record, Scan, Txn, Write};
use crate::jobs::session::SessionInfo;
use crate::types::{FileKind, Ino, QuotaKey, Timestamp, align_4k};
use crate::volume::{Secret, Setting, Version, VolumeError};

/// Oldest client that knows POSIX ACLs.
const ACL_VERSION: &str = "1.2.0-A";

/// What to change; `None` leaves a field alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigOptions {
    /// Directory or endpoint of the object store, after the objects were moved there.
    pub bucket: Option<String>,
    /// Account at the object store.
    pub access_key: Option<String>,
    /// Its key, in clear; empty to remove it.
    pub secret_key: Option<String>,
    /// Its session token, in clear; empty to remove it.
    pub session_token: Option<String>,
    /// Seal the secrets if an old client left them in clear.
    pub encrypt_secret: bool,
    /// Limit in bytes, 0 = none.
    pub capacity: Option<u64>,
    /// Limit of inodes, 0 = none.
    pub inodes: Option<u64>,
    /// Days in the trash, 0 = no trash.
    pub trash_days: Option<u32>,
    /// Default upload bandwidth of a client, Mbit/s, 0 = no limit.
    pub upload_limit: Option<i64>,
    /// Default download bandwidth of a client, Mbit/s, 0 = no limit.
    pub download_limit: Option<i64>,
    /// Directory statistics.
    pub dir_stats: Option<bool>,
    /// Accounting by user and group.
    pub user_group_quota: Option<bool>,
    /// POSIX ACLs; cannot be switched off.
    pub enable_acl: Option<bool>,
    /// Oldest client admitted; cannot be lowered.
    pub min_client_version: Option<String>,
    /// Newest client admitted, empty for any.
    pub max_client_version: Option<String>,
}

/// A change that was checked and not yet made.
#[derive(Clone, Debug)]
pub struct Plan {
    raw: Bytes,
    /// In force.
    pub old: Setting,
    /// To be.
    pub new: Setting,
    /// One line for each field that changes: name, old and new value.
    pub changes: Vec<String>,
    /// What somebody should know and agree to.
    pub warnings: Vec<String>,
}

/// Checks a change against the volume behind `engine`.
pub async fn plan(engine: &impl Engine, options: &ConfigOptions) -> Result<Plan, VolumeError> {
    let raw = read_setting(engine).await?;
    let raw = raw.ok_or(VolumeError::NotFormatted)?;
    let old = Setting::decode(&raw)?;
    let mut plan = Plan {
        raw,
        new: old.clone(),
        old,
        changes: Vec::new(),
        warnings: Vec::new(),
    };
    plan.storage(options)?;
    plan.limits(options);
    plan.features(options)?;
    plan.versions(options)?;
    plan.judge(engine).await?;
    Ok(plan)
}

fn note<T: PartialEq>(
    changes: &mut Vec<String>,
    name: &str,
    field: &mut T,
    wanted: Option<T>,
    show: impl Fn(&T) -> String,
) {
    if let Some(wanted) = wanted.filter(|wanted| wanted != field) {
        changes.push(format!("{name}: {} -> {}", show(field), show(&wanted)));
        *field = wanted;
    }
}

impl Plan {
    /// Whether where or how objects are reached changes, which should be tried first.
    pub fn moves_data(&self) -> bool {
        let reached = |setting: &Setting| {
            let Setting {
                bucket,
                access_key,
                secret_key,
                session_token,
                ..
            } = setting.clone();
            (bucket, access_key, secret_key, session_token)
        };
        reached(&self.old) != reached(&self.new)
    }

    fn storage(&mut self, options: &ConfigOptions) -> Result<(), VolumeError> {
        let text = String::clone;
        let bucket = options
            .bucket
            .as_deref()
            .map(|bucket| bucket_address(&self.new.storage, bucket))
            .transpose()?;
        let (new, changes) = (&mut self.new, &mut self.changes);
        note(changes, "bucket", &mut new.bucket, bucket, text);
        let account = options.access_key.clone();
        note(changes, "access-key", &mut new.access_key, account, text);
        for (name, secret, clear) in [
            ("secret-key", Secret::SecretKey, &options.secret_key),
            (
                "session-token",
                Secret::SessionToken,
                &options.session_token,
            ),
        ] {
            if let Some(clear) = clear {
                new.set_secret(secret, clear)?;
                changes.push(format!("{name}: updated"));
            }
        }
        if options.encrypt_secret && new.seal_secrets()? {
            changes.push("secrets: sealed".into());
        }
        Ok(())
    }

    fn limits(&mut self, options: &ConfigOptions) {
        let (new, changes) = (&mut self.new, &mut self.changes);
        let bytes = |bytes: &u64| match bytes {
            0 => "no limit".to_owned(),
            bytes => format!("{bytes} bytes"),
        };
        let count = |count: &u64| match count {
            0 => "no limit".to_owned(),
            count => count.to_string(),
        };
        let rate = |rate: &i64| match rate {
            0 => "no limit".to_owned(),
            rate => format!("{rate} Mbps"),
        };
        note(
            changes,
            "capacity",
            &mut new.capacity,
            options.capacity,
            bytes,
        );
        note(changes, "inodes", &mut new.inodes, options.inodes, count);
        let (up, down) = (options.upload_limit, options.download_limit);
        note(changes, "upload-limit", &mut new.upload_limit, up, rate);
        note(
            changes,
            "download-limit",
            &mut new.download_limit,
            down,
            rate,
        );
        let days = options.trash_days;
        note(
            changes,
            "trash-days",
            &mut new.trash_days,
            days,
            u32::to_string,
        );
    }

    fn features(&mut self, options: &ConfigOptions) -> Result<(), VolumeError> {
        let (new, changes) = (&mut self.new, &mut self.changes);
        let show = bool::to_string;
        if new.enable_acl && options.enable_acl == Some(false) {
            return Err(VolumeError::Option {
                what: "enable-acl",
                value: "false".into(),
                why: "files may carry ACLs already, so they stay on once they were on",
            });
        }
        note(
            changes,
            "dir-stats",
            &mut new.dir_stats,
            options.dir_stats,
            show,
        );
        let accounting = options.user_group_quota;
        note(
            changes,
            "user-group-quota",
            &mut new.user_group_quota,
            accounting,
            show,
        );
        note(
            changes,
            "enable-acl",
            &mut new.enable_acl,
            options.enable_acl,
            show,
        );
        Ok(())
    }

    fn versions(&mut self, options: &ConfigOptions) -> Result<(), VolumeError> {
        let parse = |what, text: &str| {
            Version::parse(text).ok_or_else(|| VolumeError::Option {
                what,
                value: format!("{text:?}"),
                why: "it is a version like 1.2.0",
            })
        };
        let mut min = self.new.min_client_version.clone();
        if let Some(text) = &options.min_client_version {
            let wanted = parse("min-client-version", text)?;
            if Version::parse(&min).is_some_and(|min| wanted < min) {
                return Err(VolumeError::Option {
                    what: "min-client-version",
                    value: text.clone(),
                    why: "it cannot be lowered, as the volume may use what older clients do not know",
                });
            }
            min.clone_from(text);
        }
        if self.new.enable_acl
            && !self.old.enable_acl
            && Version::parse(&min) < Version::parse(ACL_VERSION)
        {
            min = ACL_VERSION.into();
        }
        if let Some(text) = options
            .max_client_version
            .as_deref()
            .filter(|text| !text.is_empty())
        {
            parse("max-client-version", text)?;
        }
        let show = |text: &String| {
            if text.is_empty() {
                "any".into()
            } else {
                text.clone()
            }
        };
        let (new, changes) = (&mut self.new, &mut self.changes);
        note(
            changes,
            "min-client-version",
            &mut new.min_client_version,
            Some(min),
            show,
        );
        let max = options.max_client_version.clone();
        note(
            changes,
            "max-client-version",
            &mut new.max_client_version,
            max,
            show,
        );
        Ok(())
    }

    /// What the change does to what is there.
    async fn judge(&mut self, engine: &impl Engine) -> Result<(), VolumeError> {
        if self.old.dir_stats && !self.new.dir_stats && has_dir_quotas(engine).await? {
            return Err(VolumeError::Option {
                what: "dir-stats",
                value: "false".into(),
                why: "directory quotas rest on them; delete the quotas first",
            });
        }
        let keys = [Counter::UsedSpace, Counter::TotalInodes].map(Key::Counter);
        let mut used = [0; 2];
        for (used, record) in used.iter_mut().zip(engine.read(&keys).await?) {
            let count = record.map(Record::count).transpose()?.unwrap_or(0);
            *used = u64::try_from(count).unwrap_or(0);
        }
        let (old, new) = (&self.old, &self.new);
        for (name, was, limit, used) in [
            ("capacity", old.capacity, new.capacity, used[0]),
            ("inodes", old.inodes, new.inodes, used[1]),
        ] {
            if limit != was && limit != 0 && used >= limit {
                self.warnings.push(format!(
                    "the new {name} of {limit} is used up already ({used} are used), so nothing more can be written"
                ));
            }
        }
        if new.trash_days == 0 && old.trash_days != 0 {
            self.warnings.push(
                "the trash will be emptied, and what is removed from now on is gone at once".into(),
            );
        }
        self.judge_sessions(engine).await
    }

    /// Clients that are there and would not be admitted any more.
    async fn judge_sessions(&mut self, engine: &impl Engine) -> Result<(), VolumeError> {
        let limits = |setting: &Setting| {
            let Setting {
                min_client_version,
                max_client_version,
                ..
            } = setting.clone();
            (min_client_version, max_client_version)
        };
        if limits(&self.old) == limits(&self.new) {
            return Ok(());
        }
        let min = Version::parse(&self.new.min_client_version);
        let max = Version::parse(&self.new.max_client_version);
        for item in scan_all(engine, &Scan::Sessions).await? {
            let Item::Session { sid, info, .. } = item else {
                continue;
            };
            let info: SessionInfo = serde_json::from_slice(&info).unwrap_or_default();
            let Some(version) = Version::parse(&info.version) else {
                continue;
            };
            let refused = min.as_ref().is_some_and(|min| version < *min)
                || max.as_ref().is_some_and(|max| version > *max);
            if refused {
                self.warnings.push(format!(
                    "session {} on {} has version {} and will not be admitted again",
                    sid.0, info.host_name, info.version
                ));
            }
        }
        Ok(())
    }
}

/// Makes the change. [`VolumeError::Raced`] if the setting is not the one any more that was planned upon.
pub async fn apply(engine: &impl Engine, plan: &Plan, now: Timestamp) -> Result<(), VolumeError> {
    let text = Bytes::from(plan.new.render());
    let mut txn = Txn {
        checks: vec![Check::Setting(Some(plan.raw.clone()))],
        writes: vec![Write::PutSetting(text)],
    };
    if plan.new.trash_days > 0 {
        let trash = engine.read(&[Key::Attr(Ino::TRASH)]).await?.pop().flatten();
        if trash.is_none() {
            insert_dir(&mut txn, Ino::TRASH, 0o555, now);
        }
    }
    if let Outcome::Conflict { .. } = engine.commit(txn).await? {
        return Err(VolumeError::Raced);
    }
    if plan.new.dir_stats && !plan.old.dir_stats {
        super::check::recount_dirs(engine).await?;
    }
    if plan.new.user_group_quota && !plan.old.user_group_quota {
        recount_owners(engine, plan.new.trash_days > 0).await?;
    }
    engine.sync().await?;
    Ok(())
}

/// Counts anew what users and groups use: files and directories, as JuiceFS counts them. What is written
/// while it runs may be missed.
async fn recount_owners(engine: &impl Engine, with_trash: bool) -> Result<(), VolumeError> {
    let mut usage: BTreeMap<QuotaKey, (i64, i64)> = BTreeMap::new();
    for kind in [
        crate::types::QuotaKind::User,
        crate::types::QuotaKind::Group,
    ] {
        for item in scan_all(engine, &Scan::Quotas(kind)).await? {
            if let Item::Quota { key, .. } = item {
                usage.insert(key, (0, 0));
            }
        }
    }
    let mut seen = NumberSet::default();
    let mut cursor = None;
    loop {
        let page = engine.scan(&Scan::Inodes, cursor.as_ref(), 1000).await?;
        for item in page.items {
            let Item::Inode { ino, attr } = item else {
                continue;
            };
            let counted = matches!(attr.kind, FileKind::File | FileKind::Directory)
                && ino != Ino::ROOT
                && ino != Ino::TRASH
                && (with_trash || !(attr.in_trash() || ino.is_trash()));
            if !counted || !seen.insert(ino.0) {
                continue;
            }
            let length = if attr.kind == FileKind::File {
                attr.length
            } else {
                0
            };
            for key in [QuotaKey::User(attr.uid), QuotaKey::Group(attr.gid)] {
                let entry = usage.entry(key).or_default();
                entry.0 += align_4k(length);
                entry.1 += 1;
            }
        }
        match page.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    for (key, (space, inodes)) in usage {
        let add = |space, inodes| Write::AddQuotaUsage { key, space, inodes };
        // An added zero makes the record where there is none.
        let set = Write::PutQuotaUsage { key, space, inodes };
        let txn = Txn {
            checks: Vec::new(),
            writes: vec![add(0, 0), set],
        };
        engine.commit(txn).await?;
    }
    Ok(())
}
