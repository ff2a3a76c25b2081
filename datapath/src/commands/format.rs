//! `sluice format`: make a volume, or change what may be changed of one. Also `mount --create`.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use sluice_meta::engine::AnyEngine;
use sluice_meta::runtime::Runtime;
use sluice_meta::store::{Access, Store};
use sluice_meta::tools::format::{FormatOptions, Formatted, format};
use sluice_meta::tools::load_volume;
use sluice_meta::url::MetaUrl;
use sluice_meta::volume::{Cipher, Compression, Setting, VolumeError, check_name};

use super::{Failure, Outcome};
use crate::cli::{FormatArgs, VolumeArgs};
use crate::config::{default_bucket, parse_bytes, parse_count};
use crate::object::keyfile::{PASSPHRASE_VARIABLE, private_key};
use crate::object::{AnyStore, LocalStore, ObjectStore, ObjectSync};
use crate::runtime::{GlommioRuntime, run_on_one};
use crate::volume_store;

/// A checked request to make or change a volume.
#[derive(Debug, Clone)]
pub struct Plan {
    options: FormatOptions,
    no_update: bool,
}

impl Plan {
    /// Checks what was typed.
    pub fn new(name: &str, args: &VolumeArgs, no_update: bool) -> Result<Plan, Failure> {
        check_name(name).map_err(Failure::from_error)?;
        let storage = args.storage.clone();
        volume_store::check_storage(storage.as_deref().unwrap_or(volume_store::STORAGE_FILE))?;
        let compression = match args.compress.as_deref() {
            None => None,
            Some(text) => Some(Compression::from_name(text).ok_or_else(|| {
                Failure(format!(
                    "--compress cannot be {text:?}: it is none, lz4 or zstd"
                ))
            })?),
        };
        let size = |option, text: &Option<String>, unit| {
            text.as_deref()
                .map(|text| parse_bytes(option, text, unit))
                .transpose()
        };
        let block = size("--block-size", &args.block_size, b'K').map_err(Failure::from_error)?;
        let capacity = size("--capacity", &args.capacity, b'G').map_err(Failure::from_error)?;
        let count = |option, text: &Option<String>, most| {
            text.as_deref()
                .map(|text| parse_count(option, text, 0..=most))
                .transpose()
        };
        let inodes =
            count("--inodes", &args.inodes, i64::MAX as u64).map_err(Failure::from_error)?;
        let trash_days =
            count("--trash-days", &args.trash_days, 36500).map_err(Failure::from_error)?;
        if let Some(text) = &args.encrypt_algo
            && Cipher::from_name(text).is_none()
        {
            return Err(Failure(format!(
                "--encrypt-algo cannot be {text:?}: it is aes256gcm-rsa or chacha20-rsa"
            )));
        }
        let encrypt_key = args.encrypt_rsa_key.as_deref().map(read_key).transpose()?;
        Ok(Plan {
            options: FormatOptions {
                name: name.to_owned(),
                storage,
                bucket: args.bucket.clone(),
                block_size_kib: block.map(|bytes| bytes >> 10),
                compression,
                hash_prefix: args.hash_prefix.then_some(true),
                capacity,
                inodes,
                trash_days: trash_days.map(|days| days as u32),
                enable_acl: args.enable_acl.then_some(true),
                encrypt_key,
                encrypt_algo: args.encrypt_algo.clone(),
                ..FormatOptions::default()
            },
            no_update,
        })
    }
}

/// The key file's text, if the passphrase opens it.
fn read_key(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure(format!(
            "cannot read the key {}: {error}; name a PEM file",
            path.display()
        ))
    })?;
    let passphrase = std::env::var(PASSPHRASE_VARIABLE).ok();
    private_key(&text, passphrase.as_deref()).map_err(Failure::from_error)?;
    Ok(text)
}

/// Runs the command.
pub fn run(args: &FormatArgs) -> Outcome {
    let plan = Plan::new(&args.name, &args.volume, args.no_update)?;
    let url = super::parse_url(&args.meta_url)?;
    run_on_one(|| async move {
        let runtime: Rc<dyn Runtime> = Rc::new(GlommioRuntime::new());
        let formatted = make_or_change(&url, &plan, &runtime).await?;
        let setting = &formatted.setting;
        let what = if formatted.created {
            "formatted"
        } else {
            "volume is"
        };
        println!(
            "{what} {} ({}) at {url}, data in {}",
            setting.name, setting.uuid, setting.bucket
        );
        Ok(())
    })
    .map_err(Failure::from_error)?
}

/// For `mount --create`: makes the volume unless there is one.
pub async fn create_if_missing(
    url: &MetaUrl,
    plan: &Plan,
    runtime: &Rc<dyn Runtime>,
) -> Result<(), Failure> {
    let mut plan = plan.clone();
    plan.no_update = true;
    make_or_change(url, &plan, runtime).await.map(drop)
}

async fn make_or_change(
    url: &MetaUrl,
    plan: &Plan,
    runtime: &Rc<dyn Runtime>,
) -> Result<Formatted, Failure> {
    let fresh_file = match url {
        MetaUrl::Sqlite(url) if !url.path.exists() => Some(url.path.clone()),
        _ => None,
    };
    if fresh_file.is_some() {
        // Everything that can be refused is, before a file is made.
        check_bucket(plan)?;
    }
    let store = Store::open(url, Access::Create).map_err(Failure::from_error)?;
    let outcome = make_with(&store, plan, runtime).await;
    if outcome.is_err()
        && let Some(path) = fresh_file
    {
        drop(store);
        remove_database(&path);
    }
    outcome
}

/// A database that was made for a volume which then could not be made goes again.
pub(super) fn remove_database(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        // Not there is what we want.
        let _ = std::fs::remove_file(PathBuf::from(name));
    }
}

async fn make_with(
    store: &Store,
    plan: &Plan,
    runtime: &Rc<dyn Runtime>,
) -> Result<Formatted, Failure> {
    let engine = store
        .connect(Rc::clone(runtime))
        .await
        .map_err(Failure::from_store)?;
    match load_volume(&engine).await {
        Err(VolumeError::NotFormatted) => create(&engine, plan, runtime).await,
        Err(error) => Err(Failure::from_error(error)),
        Ok(setting) if plan.no_update => Ok(Formatted {
            setting,
            created: false,
        }),
        Ok(_) => change(&engine, plan, runtime).await,
    }
}

async fn create(
    engine: &AnyEngine,
    plan: &Plan,
    runtime: &Rc<dyn Runtime>,
) -> Result<Formatted, Failure> {
    let bucket = check_bucket(plan)?;
    std::fs::create_dir_all(&bucket).map_err(|error| unusable(&bucket, &error))?;
    let mut options = plan.options.clone();
    options.bucket = Some(format!("{}/", bucket.display()));
    let store = AnyStore::Local(LocalStore::new(&bucket, &options.name, ObjectSync::Full));
    probe(&store, &bucket).await?;
    let formatted = format(engine, &options, runtime.now())
        .await
        .map_err(Failure::from_error)?;
    mark(&store, &formatted.setting).await?;
    Ok(formatted)
}

async fn change(
    engine: &AnyEngine,
    plan: &Plan,
    runtime: &Rc<dyn Runtime>,
) -> Result<Formatted, Failure> {
    let mut options = plan.options.clone();
    if let Some(bucket) = &options.bucket {
        let path = std::path::absolute(bucket).map_err(Failure::from_error)?;
        if !path.is_dir() {
            return Err(Failure(format!(
                "bucket {} is not a directory: name the one the volume's objects were moved to",
                path.display()
            )));
        }
        options.bucket = Some(format!("{}/", path.display()));
    }
    format(engine, &options, runtime.now())
        .await
        .map_err(Failure::from_error)
}

/// The bucket of a new volume: a directory, or not there yet, and without objects under the volume's name.
fn check_bucket(plan: &Plan) -> Result<PathBuf, Failure> {
    let text = plan.options.bucket.clone().unwrap_or_else(default_bucket);
    let path = std::path::absolute(text.strip_prefix("file://").unwrap_or(&text))
        .map_err(Failure::from_error)?;
    match std::fs::metadata(&path) {
        Ok(metadata) if !metadata.is_dir() => {
            return Err(Failure(format!(
                "bucket {} is not a directory: name a directory, it is made if it is not there",
                path.display()
            )));
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(unusable(&path, &error));
        }
        _ => {}
    }
    let objects = path.join(&plan.options.name);
    if std::fs::read_dir(&objects).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure(format!(
            "{} holds objects already, maybe of another volume: choose another --bucket or name, or \
             remove them",
            objects.display()
        )));
    }
    Ok(path)
}

fn unusable(bucket: &Path, error: &std::io::Error) -> Failure {
    Failure(format!(
        "bucket {} cannot be used ({error}): choose a directory that can be written",
        bucket.display()
    ))
}

/// Writes, reads and deletes an object: better now than at the first write.
pub(super) async fn probe(store: &AnyStore, bucket: &Path) -> Result<(), Failure> {
    let key = format!("testing/{:010}", fastrand::u64(0..10_000_000_000));
    let body = Bytes::from(
        std::iter::repeat_with(|| fastrand::u8(..))
            .take(100)
            .collect::<Vec<_>>(),
    );
    let refuse = |error: &dyn std::fmt::Display| {
        Failure(format!(
            "bucket {} does not keep objects ({error}): choose a directory that can be written",
            bucket.display()
        ))
    };
    store
        .put(&key, vec![body.clone()])
        .await
        .map_err(|error| refuse(&error))?;
    let read = store
        .get(&key, None)
        .await
        .map_err(|error| refuse(&error))?;
    if read != body {
        return Err(refuse(&"what was read is not what was written"));
    }
    store.delete(&key).await.map_err(|error| refuse(&error))
}

/// Leaves the volume's UUID in the bucket, encrypted where everything is.
async fn mark(store: &AnyStore, setting: &Setting) -> Result<(), Failure> {
    let mut body = setting.uuid.clone().into_bytes();
    if let Some(crypt) = volume_store::layout(setting)?.crypt {
        body = crypt.encrypt(&body).map_err(Failure::from_error)?;
    }
    if let Err(error) = store.put("juicefs_uuid", vec![body.into()]).await {
        tracing::warn!(%error, "the volume's UUID could not be left in the bucket");
    }
    Ok(())
}
