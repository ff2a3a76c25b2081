//! `sluice destroy`: the end of a volume, objects first, then metadata. What fails can be run again: the volume
//! can be named as long as its metadata is there.

use std::cell::Cell;

use sluice_meta::engine::AnyEngine;
use sluice_meta::store::Access;
use sluice_meta::tools::destroy::{destroy, examine};
use sluice_meta::tools::status::Status;
use sluice_meta::url::MetaUrl;
use sluice_meta::volume::Setting;

use super::status::size;
use super::volume::{confirmed, connect, for_each, runtime, walk_objects};
use super::{Failure, Outcome};
use crate::cli::DestroyArgs;
use crate::object::{AnyStore, LocalStore, ObjectStore, ObjectSync};
use crate::runtime::run_on_one;
use crate::volume_store;

/// Objects deleted at the same time, as JuiceFS.
const DELETES: usize = 8;

/// Runs the command.
pub fn run(args: &DestroyArgs) -> Outcome {
    let url = super::parse_url(&args.meta_url)?;
    run_on_one(|| async move {
        let runtime = runtime();
        let engine = connect(&url, Access::ReadWrite, &runtime).await?;
        let status = examine(&engine, &args.uuid, args.force, runtime.now())
            .await
            .map_err(Failure::from_error)?;
        if !args.force && !args.yes {
            warn(&url, &status);
            if !confirmed() {
                return Err(Failure(
                    "nothing was destroyed: answer y, or give --yes".into(),
                ));
            }
        }
        end(&engine, &status.setting, args.force).await
    })
    .map_err(Failure::from_error)?
}

fn warn(url: &MetaUrl, status: &Status) {
    let setting = &status.setting;
    eprintln!("volume       {} ({})", setting.name, setting.uuid);
    eprintln!(
        "used         {} in {} inodes",
        size(status.stat.used_space),
        status.stat.used_inodes
    );
    eprintln!(
        "warning: all objects in {}{}/ will be deleted",
        setting.bucket, setting.name
    );
    eprintln!("warning: all records in {url} will be deleted");
}

async fn end(engine: &AnyEngine, setting: &Setting, force: bool) -> Outcome {
    match volume_store::bucket(setting, None) {
        Ok(bucket) => {
            let store = LocalStore::new(bucket.path(), &setting.name, ObjectSync::None);
            delete_objects(&AnyStore::Local(store)).await?;
        }
        Err(error) if force => eprintln!("no objects are deleted: {error}"),
        Err(Failure(cause)) => {
            return Err(Failure(format!(
                "{cause}; or give --force to destroy the metadata alone"
            )));
        }
    }
    destroy(engine).await.map_err(Failure::from_error)?;
    println!("destroyed {} ({})", setting.name, setting.uuid);
    Ok(())
}

async fn delete_objects(store: &AnyStore) -> Outcome {
    let (deleted, failed) = (Cell::new(0_u64), Cell::new(0_u64));
    let delete = async |key: String| match store.delete(&key).await {
        Ok(()) => deleted.set(deleted.get() + 1),
        Err(error) => {
            eprintln!("{error}");
            failed.set(failed.get() + 1);
        }
    };
    let dirs = walk_objects(store, "", async |objects| {
        for_each(objects.into_iter().map(|one| one.key), DELETES, &delete).await;
    })
    .await
    .map_err(Failure::from_error)?;
    for dir in dirs {
        store.remove_dir(&dir).await.map_err(Failure::from_error)?;
    }
    println!("deleted {} objects", deleted.get());
    match failed.get() {
        0 => Ok(()),
        count => Err(Failure(format!(
            "{count} objects could not be deleted, so the metadata is kept: see above, and run the command again"
        ))),
    }
}
