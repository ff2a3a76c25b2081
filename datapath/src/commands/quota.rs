//! `sluice quota`: quotas of directories, users and groups, in JuiceFS's words and tables.

use std::collections::BTreeMap;
use std::rc::Rc;

use sluice_meta::client::{Meta, MetaOptions, Shared};
use sluice_meta::ops::summary::Walk;
use sluice_meta::quota::Usage;
use sluice_meta::runtime::Runtime;
use sluice_meta::store::{Access, Store};
use sluice_meta::tools::load_volume;
use sluice_meta::tools::quota::{self, Difference, Limits};
use sluice_meta::types::{Ino, Quota, QuotaKey};
use sluice_meta::url::MetaUrl;

use super::table::{comma, ibytes, table};
use super::{Failure, Outcome};
use crate::cli::{QuotaCommand, QuotaSetArgs, QuotaTarget};
use crate::config::{parse_bytes, parse_count};
use crate::runtime::{GlommioRuntime, run_on_one};

/// Whose quota is meant.
enum Target {
    Dir(String),
    Owner(QuotaKey),
}

/// What `check` was asked for.
struct CheckPlan {
    target: Option<Target>,
    walk: Walk,
    repair: bool,
}

/// Runs the command.
pub fn run(command: &QuotaCommand) -> Outcome {
    match command {
        QuotaCommand::Set(args) => {
            let (target, limits) = (target(&args.target)?, limits(args)?);
            let Some(target) = target else {
                return Err(no_target());
            };
            let (walk, create) = (walk(args.strict), args.create);
            with_meta(&args.meta_url, Access::ReadWrite, async move |meta| {
                set(&meta, &target, limits, walk, create).await
            })
        }
        QuotaCommand::Get(args) => {
            let target = target(&args.target)?.ok_or_else(no_target)?;
            with_meta(&args.meta_url, Access::ReadOnly, async move |meta| {
                get(&meta, &target).await
            })
        }
        QuotaCommand::List(args) => {
            let target = target(&args.target)?;
            with_meta(&args.meta_url, Access::ReadOnly, async move |meta| {
                list(&meta, target.as_ref()).await
            })
        }
        QuotaCommand::Delete(args) => {
            let target = target(&args.target)?.ok_or_else(no_target)?;
            with_meta(&args.meta_url, Access::ReadWrite, async move |meta| {
                let key = resolve(&meta, &target, false).await?;
                quota::delete(&meta, key).await.map_err(Failure::from_error)
            })
        }
        QuotaCommand::Check(args) => {
            let plan = CheckPlan {
                target: target(&args.target)?,
                walk: walk(args.strict),
                repair: args.repair,
            };
            // Also a check makes statistics that are missing.
            with_meta(&args.meta_url, Access::ReadWrite, async move |meta| {
                check(&meta, &plan).await
            })
        }
    }
}

fn no_target() -> Failure {
    Failure(
        "nobody's quota is named: give the directory with --path, or a user or group with --uid or --gid"
            .to_owned(),
    )
}

fn walk(strict: bool) -> Walk {
    if strict { Walk::Strict } else { Walk::Fast }
}

fn target(args: &QuotaTarget) -> Result<Option<Target>, Failure> {
    let id = |option, text: &str, least| {
        parse_count(option, text, least..=u64::from(u32::MAX)).map_err(Failure::from_error)
    };
    Ok(match (&args.path, &args.uid, &args.gid) {
        (Some(path), None, None) => Some(Target::Dir(path.clone())),
        // Root may everything: a limit would mean nothing to most of its programs.
        (None, Some(uid), None) => Some(Target::Owner(QuotaKey::User(id("--uid", uid, 1)? as u32))),
        (None, None, Some(gid)) => {
            Some(Target::Owner(QuotaKey::Group(id("--gid", gid, 0)? as u32)))
        }
        (None, None, None) => None,
        _ => {
            return Err(Failure(
                "--path, --uid and --gid exclude each other: name one directory, user or group"
                    .to_owned(),
            ));
        }
    })
}

fn limits(args: &QuotaSetArgs) -> Result<Limits, Failure> {
    let space = args.capacity.as_deref();
    let inodes = args.inodes.as_deref();
    Ok(Limits {
        space: space
            .map(|text| parse_bytes("--capacity", text, b'G'))
            .transpose()
            .map_err(Failure::from_error)?,
        inodes: inodes
            .map(|text| parse_count("--inodes", text, 0..=i64::MAX.unsigned_abs()))
            .transpose()
            .map_err(Failure::from_error)?,
    })
}

/// The volume's metadata for a command, without a session.
pub async fn open_meta(url: &MetaUrl, access: Access) -> Result<Meta, Failure> {
    let read_only = access == Access::ReadOnly;
    let runtime: Rc<dyn Runtime> = Rc::new(GlommioRuntime::new());
    let store = Store::open(url, access).map_err(Failure::from_error)?;
    let engine = Rc::new(
        store
            .connect(Rc::clone(&runtime))
            .await
            .map_err(Failure::from_store)?,
    );
    let setting = load_volume(&*engine).await.map_err(Failure::from_error)?;
    let missing = setting.unsupported_for_writing();
    if !read_only && !missing.is_empty() {
        return Err(Failure(format!(
            "volume {} uses {}, which sluice does not keep up when it writes: use JuiceFS for this command",
            setting.name,
            missing.join(", ")
        )));
    }
    let options = MetaOptions {
        read_only,
        ..MetaOptions::default()
    };
    Ok(Meta::new(engine, runtime, Shared::new(setting, options)))
}

fn with_meta(
    url: &str,
    access: Access,
    work: impl AsyncFnOnce(Meta) -> Result<(), Failure> + 'static,
) -> Outcome {
    let url = super::parse_url(url)?;
    run_on_one(|| async move { work(open_meta(&url, access).await?).await })
        .map_err(Failure::from_error)?
}

async fn resolve(meta: &Meta, target: &Target, create: bool) -> Result<QuotaKey, Failure> {
    match target {
        Target::Owner(key) => Ok(*key),
        Target::Dir(path) => {
            if create {
                // New directories are charged to the quotas above them.
                meta.load_quotas().await.map_err(Failure::from_error)?;
            }
            let dir = quota::directory(meta, path, create).await;
            dir.map(QuotaKey::Dir).map_err(Failure::from_error)
        }
    }
}

fn name(target: &Target) -> String {
    match target {
        Target::Dir(path) => path.clone(),
        Target::Owner(key) => key.number().to_string(),
    }
}

async fn set(
    meta: &Meta,
    target: &Target,
    limits: Limits,
    walk: Walk,
    create: bool,
) -> Result<(), Failure> {
    let key = resolve(meta, target, create).await?;
    let quota = quota::set(meta, key, limits, walk)
        .await
        .map_err(Failure::from_error)?;
    show(heading(target), &[(name(target), quota)].into());
    Ok(())
}

async fn get(meta: &Meta, target: &Target) -> Result<(), Failure> {
    let key = resolve(meta, target, false).await?;
    let quota = quota::read(meta, key).await.map_err(Failure::from_error)?;
    let quota = quota.ok_or_else(|| Failure(format!("{} has no quota", name(target))))?;
    show(heading(target), &[(name(target), quota)].into());
    Ok(())
}

async fn list(meta: &Meta, target: Option<&Target>) -> Result<(), Failure> {
    let wanted = match target {
        Some(target) => Some(resolve(meta, target, false).await?),
        None => None,
    };
    let mut rows = BTreeMap::new();
    for (key, quota) in quota::list(meta).await.map_err(Failure::from_error)? {
        if wanted.is_none_or(|wanted| wanted == key) {
            rows.insert(label(meta, key).await?, quota);
        }
    }
    if !rows.is_empty() {
        show("Path/ID", &rows);
    }
    Ok(())
}

/// How a list calls it.
async fn label(meta: &Meta, key: QuotaKey) -> Result<String, Failure> {
    Ok(match key {
        QuotaKey::User(uid) => format!("uid:{uid}"),
        QuotaKey::Group(gid) => format!("gid:{gid}"),
        QuotaKey::Dir(dir) => quota::path_of(meta, dir)
            .await
            .map_err(Failure::from_error)?
            .unwrap_or_else(|| format!("inode:{dir}")),
    })
}

async fn check(meta: &Meta, plan: &CheckPlan) -> Result<(), Failure> {
    let differences: Vec<Difference> = match &plan.target {
        Some(target @ Target::Dir(_)) => {
            let QuotaKey::Dir(dir) = resolve(meta, target, false).await? else {
                return Err(no_target());
            };
            check_dir(meta, dir, target, plan)
                .await?
                .into_iter()
                .collect()
        }
        owner => {
            let found = quota::check_owners(meta, plan.repair).await;
            let mut found = found.map_err(Failure::from_error)?;
            if let (Some(Target::Owner(key)), false) = (owner, plan.repair) {
                found.retain(|difference| difference.key == *key);
            }
            found
        }
    };
    for difference in &differences {
        let stored = match difference.stored {
            Some(stored) => usage(stored),
            None => "none".to_owned(),
        };
        let label = label(meta, difference.key).await?;
        eprintln!(
            "{label}: usage ({stored}) != counted ({})",
            usage(difference.counted)
        );
    }
    if !differences.is_empty() && !plan.repair {
        return Err(Failure(
            "the usage of a quota is not what there is: repair it with --repair".to_owned(),
        ));
    }
    let state = if differences.is_empty() {
        "usage is consistent"
    } else {
        "repaired"
    };
    println!("{state}");
    Ok(())
}

async fn check_dir(
    meta: &Meta,
    dir: Ino,
    target: &Target,
    plan: &CheckPlan,
) -> Result<Option<Difference>, Failure> {
    let found = quota::check_dir(meta, dir, plan.walk, plan.repair).await;
    let found = found.map_err(Failure::from_error)?;
    let quota = quota::read(meta, QuotaKey::Dir(dir)).await;
    if let Some(quota) = quota.map_err(Failure::from_error)?
        && (found.is_none() || plan.repair)
    {
        show(heading(target), &[(name(target), quota)].into());
    }
    Ok(found)
}

fn usage(usage: Usage) -> String {
    let space = ibytes(usage.space.unsigned_abs());
    let sign = if usage.space < 0 { "-" } else { "" };
    format!("{}, {sign}{space}", comma(usage.inodes))
}

fn heading(target: &Target) -> &'static str {
    match target {
        Target::Dir(_) => "Path",
        Target::Owner(QuotaKey::Group(_)) => "Group ID",
        Target::Owner(_) => "User ID",
    }
}

fn show(heading: &str, quotas: &BTreeMap<String, Quota>) {
    let columns = [heading, "Size", "Used", "Use%", "Inodes", "IUsed", "IUse%"];
    let mut rows = vec![columns.map(str::to_owned).to_vec()];
    rows.extend(quotas.iter().map(|(name, quota)| row(name, quota)));
    print!("{}", table(&rows));
}

fn row(name: &str, quota: &Quota) -> Vec<String> {
    // Drift that `check --repair` puts right.
    let (used, inodes) = (quota.used_space.max(0), quota.used_inodes.max(0));
    let percent = |used: i64, limit: i64| match limit > 0 {
        true => format!("{}%", i128::from(used) * 100 / i128::from(limit)),
        false => String::new(),
    };
    let limit = |limit: i64, text: String| match limit > 0 {
        true => text,
        false => "unlimited".to_owned(),
    };
    vec![
        name.to_owned(),
        limit(quota.max_space, ibytes(quota.max_space.unsigned_abs())),
        ibytes(used.unsigned_abs()),
        percent(used, quota.max_space),
        limit(quota.max_inodes, comma(quota.max_inodes)),
        comma(inodes),
        percent(inodes, quota.max_inodes),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_limits_and_what_is_left_of_them() {
        let quota = Quota {
            max_space: 10 << 30,
            max_inodes: -1,
            used_space: 5 << 30,
            used_inodes: 1234,
        };
        let shown = row("/a", &quota);
        let expect = ["/a", "10 GiB", "5.0 GiB", "50%", "unlimited", "1,234", ""];
        assert_eq!(shown, expect);
        let drifted = Quota {
            max_space: 0,
            max_inodes: 10,
            used_space: -4096,
            used_inodes: 12,
        };
        let expect = ["1", "unlimited", "0 B", "", "10", "12", "120%"];
        assert_eq!(row("1", &drifted), expect);
    }

    #[test]
    fn one_target_at_a_time() {
        let given = |path: Option<&str>, uid: Option<&str>, gid: Option<&str>| {
            target(&QuotaTarget {
                path: path.map(Into::into),
                uid: uid.map(Into::into),
                gid: gid.map(Into::into),
            })
        };
        assert!(matches!(
            given(None, Some("5"), None),
            Ok(Some(Target::Owner(QuotaKey::User(5))))
        ));
        assert!(matches!(
            given(None, None, Some("0")),
            Ok(Some(Target::Owner(QuotaKey::Group(0))))
        ));
        assert!(matches!(given(None, None, None), Ok(None)));
        for (path, uid, gid) in [
            (None, Some("0"), None),
            (None, Some("4294967296"), None),
            (None, Some("x"), None),
            (Some("/a"), Some("5"), None),
            (None, Some("5"), Some("5")),
        ] {
            assert!(given(path, uid, gid).is_err(), "{path:?} {uid:?} {gid:?}");
        }
    }
}
