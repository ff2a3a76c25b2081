//! `sluice config`: a volume's setting, shown or changed.

use std::path::Path;

use sluice_meta::engine::AnyEngine;
use sluice_meta::store::Access;
use sluice_meta::tools::config::{ConfigOptions, Plan, apply, plan};
use sluice_meta::volume::Setting;

use super::format::probe;
use super::volume::{confirmed, connect, runtime};
use super::{Failure, Outcome};
use crate::cli::ConfigArgs;
use crate::config::{parse_bytes, parse_count};
use crate::object::{AnyStore, LocalStore, ObjectSync};
use crate::runtime::run_on_one;
use crate::volume_store;

/// Runs the command.
pub fn run(args: &ConfigArgs) -> Outcome {
    refuse_fixed(args)?;
    let options = options(args)?;
    let url = super::parse_url(&args.meta_url)?;
    run_on_one(|| async move {
        let runtime = runtime();
        if options == ConfigOptions::default() {
            let engine = connect(&url, Access::ReadOnly, &runtime).await?;
            let plan = plan(&engine, &options).await.map_err(Failure::from_error)?;
            return show(&plan.old.without_secrets());
        }
        let engine = connect(&url, Access::ReadWrite, &runtime).await?;
        let plan = plan(&engine, &options).await.map_err(Failure::from_error)?;
        change(&engine, &plan, args, runtime.now()).await
    })
    .map_err(Failure::from_error)?
}

fn show(setting: &Setting) -> Outcome {
    let text = serde_json::to_string_pretty(setting).map_err(Failure::from_error)?;
    println!("{text}");
    Ok(())
}

async fn change(
    engine: &AnyEngine,
    plan: &Plan,
    args: &ConfigArgs,
    now: sluice_meta::types::Timestamp,
) -> Outcome {
    if plan.changes.is_empty() {
        println!("Nothing changed.");
        return Ok(());
    }
    if !args.force {
        if plan.moves_data() {
            try_store(&plan.new).await?;
        }
        for warning in &plan.warnings {
            eprintln!("warning: {warning}");
        }
        if !plan.warnings.is_empty() && !args.yes && !confirmed() {
            return Err(Failure(
                "nothing was changed: answer y, or give --yes, to go on".into(),
            ));
        }
    }
    apply(engine, plan, now)
        .await
        .map_err(Failure::from_error)?;
    for line in &plan.changes {
        println!("{line}");
    }
    Ok(())
}

/// Objects can be written where the volume is to find its own.
async fn try_store(setting: &Setting) -> Outcome {
    let bucket = volume_store::bucket(setting, None)?;
    let path: &Path = bucket.path();
    let store = AnyStore::Local(LocalStore::new(path, &setting.name, ObjectSync::Full));
    probe(&store, path).await
}

/// What data is laid out by cannot change.
fn refuse_fixed(args: &ConfigArgs) -> Outcome {
    let fixed = [
        (
            "--storage",
            args.storage
                .as_deref()
                .is_some_and(|to| to != volume_store::STORAGE_FILE),
        ),
        ("--block-size", args.block_size.is_some()),
        ("--compress", args.compress.is_some()),
        ("--shards", args.shards.is_some()),
        ("--hash-prefix", args.hash_prefix),
        ("--encrypt-rsa-key", args.encrypt_rsa_key.is_some()),
        ("--encrypt-algo", args.encrypt_algo.is_some()),
    ];
    match fixed.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((name, _)) => Err(Failure(format!(
            "{name} cannot be changed, since the volume's data is laid out by it: format another volume and copy the data"
        ))),
    }
}

fn options(args: &ConfigArgs) -> Result<ConfigOptions, Failure> {
    let count = |option, text: &Option<String>, most| {
        let parse = |text: &String| parse_count(option, text, 0..=most);
        text.as_ref()
            .map(parse)
            .transpose()
            .map_err(Failure::from_error)
    };
    let capacity = args.capacity.as_deref();
    let capacity = capacity.map(|text| parse_bytes("--capacity", text, b'G'));
    let days = count("--trash-days", &args.trash_days, 36500)?;
    Ok(ConfigOptions {
        bucket: args.bucket.clone(),
        access_key: args.access_key.clone(),
        secret_key: args.secret_key.clone(),
        session_token: args.session_token.clone(),
        encrypt_secret: args.encrypt_secret,
        capacity: capacity.transpose().map_err(Failure::from_error)?,
        inodes: count("--inodes", &args.inodes, i64::MAX as u64)?,
        trash_days: days.map(|days| days as u32),
        upload_limit: rate("--upload-limit", args.upload_limit.as_deref())?,
        download_limit: rate("--download-limit", args.download_limit.as_deref())?,
        dir_stats: args.dir_stats,
        user_group_quota: args.user_group_quota,
        enable_acl: args.enable_acl,
        min_client_version: args.min_client_version.clone(),
        max_client_version: args.max_client_version.clone(),
    })
}

/// Mbit/s; with a unit as JuiceFS takes it: M, G, T or P.
fn rate(option: &str, text: Option<&str>) -> Result<Option<i64>, Failure> {
    let Some(text) = text else { return Ok(None) };
    let (number, factor) = match text.char_indices().last() {
        Some((at, 'm' | 'M')) => (&text[..at], 1.0),
        Some((at, 'g' | 'G')) => (&text[..at], 1e3),
        Some((at, 't' | 'T')) => (&text[..at], 1e6),
        Some((at, 'p' | 'P')) => (&text[..at], 1e9),
        _ => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(value) if (0.0..=1e12).contains(&value) => Ok(Some((value * factor) as i64)),
        _ => Err(Failure(format!(
            "{option} cannot be {text:?}: it is a number of Mbit/s, or one with M, G, T or P behind it"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::rate;

    #[test]
    fn rates() {
        for (text, expected) in [
            ("0", 0),
            ("100", 100),
            ("1.5G", 1500),
            ("2m", 2),
            ("1T", 1_000_000),
        ] {
            assert_eq!(rate("--x", Some(text)).unwrap(), Some(expected), "{text}");
        }
        for text in ["", "-1", "M", "fast", "1e99", "NaN"] {
            assert!(rate("--x", Some(text)).is_err(), "{text}");
        }
    }
}
