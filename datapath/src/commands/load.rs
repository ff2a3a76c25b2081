//! `sluice load`: a volume's metadata from a dump, into an empty store.

use std::fs::File;
use std::io::{self, BufReader, Read};

use sluice_meta::store::Access;
use sluice_meta::tools::load::load;
use sluice_meta::url::MetaUrl;
use sluice_meta::volume::REMOVED;

use super::dump::Packing;
use super::format::remove_database;
use super::status::size;
use super::volume::{connect, runtime, threads};
use super::{Failure, Outcome};
use crate::cli::LoadArgs;
use crate::runtime::run_on_one;

/// Runs the command.
pub fn run(args: &LoadArgs) -> Outcome {
    let url = super::parse_url(&args.meta_url)?;
    threads(&args.threads)?;
    let fresh = match &url {
        MetaUrl::Sqlite(url) if !url.path.exists() => Some(url.path.clone()),
        _ => None,
    };
    let loaded = match &args.file {
        None => read(&url, &mut io::stdin().lock()),
        Some(path) => {
            let packing = Packing::of(path)?;
            let failed = |error: io::Error| {
                Failure(format!(
                    "{} cannot be read ({error}): name a dump",
                    path.display()
                ))
            };
            let file = File::open(path).map_err(failed)?;
            match packing {
                Packing::Plain => read(&url, &mut BufReader::new(file)),
                Packing::Zstd => {
                    let mut unpacked = zstd::Decoder::new(file).map_err(failed)?;
                    read(&url, &mut unpacked)
                }
            }
        }
    };
    if loaded.is_err()
        && let Some(path) = fresh
    {
        remove_database(&path);
    }
    loaded
}

fn read(url: &MetaUrl, input: &mut dyn Read) -> Outcome {
    run_on_one(|| async move {
        let engine = connect(url, Access::Create, &runtime()).await?;
        let loaded = load(&engine, input).await.map_err(Failure::from_error)?;
        let setting = &loaded.setting;
        println!(
            "loaded {} ({}) into {url}: {} inodes, {}, data in {}",
            setting.name,
            setting.uuid,
            loaded.inodes,
            size(loaded.used_space.unsigned_abs()),
            setting.bucket
        );
        if [&setting.secret_key, &setting.session_token].contains(&&REMOVED.to_owned()) {
            eprintln!(
                "the object store's secrets are not part of the dump: set them with sluice config {url} --secret-key KEY"
            );
        }
        Ok(())
    })
    .map_err(Failure::from_error)?
}
