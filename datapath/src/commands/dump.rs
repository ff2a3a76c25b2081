//! `sluice dump`: a volume's metadata as JSON that JuiceFS and `sluice load` read.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sluice_meta::store::Access;
use sluice_meta::tools::dump::{DumpOptions, dump};
use sluice_meta::types::Name;
use sluice_meta::url::MetaUrl;

use super::volume::{connect, runtime, threads};
use super::{Failure, Outcome};
use crate::cli::DumpArgs;
use crate::runtime::run_on_one;

/// How a dump is packed: by the end of its file's name, as JuiceFS does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Zstd,
}

impl Packing {
    pub(super) fn of(path: &Path) -> Result<Packing, Failure> {
        match path.extension().and_then(|end| end.to_str()) {
            Some("gz") => Err(Failure(format!(
                "{} would be a gzip file, which is not built in: leave .gz out and pack the file with gzip, or use .zstd",
                path.display()
            ))),
            Some("zstd") => Ok(Packing::Zstd),
            _ => Ok(Packing::Plain),
        }
    }
}

/// Runs the command.
pub fn run(args: &DumpArgs) -> Outcome {
    let url = super::parse_url(&args.meta_url)?;
    threads(&args.threads)?;
    let subdir = args.subdir.as_deref().unwrap_or_default();
    let options = DumpOptions {
        subdir: subdir
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| Name::copy_from_slice(part.as_bytes()))
            .collect(),
        keep_secrets: args.keep_secret_key,
        skip_trash: args.skip_trash,
    };
    match &args.file {
        None => {
            let mut out = BufWriter::new(io::stdout().lock());
            write(&url, &options, &mut out)
        }
        Some(path) => to_file(&url, &options, path),
    }
}

fn write(url: &MetaUrl, options: &DumpOptions, out: &mut dyn Write) -> Outcome {
    run_on_one(|| async move {
        let engine = connect(url, Access::ReadOnly, &runtime()).await?;
        let dumped = dump(&engine, options, out)
            .await
            .map_err(Failure::from_error)?;
        if dumped.secrets_removed {
            eprintln!("the object store's secrets are left out (--keep-secret-key keeps them)");
        }
        eprintln!("dumped {} entries", dumped.entries);
        Ok(())
    })
    .map_err(Failure::from_error)?
}

/// Under another name first: a dump of the right name is a whole one.
fn to_file(url: &MetaUrl, options: &DumpOptions, path: &Path) -> Outcome {
    let packing = Packing::of(path)?;
    let mut name = OsString::from(path);
    name.push(".tmp");
    let tmp = PathBuf::from(name);
    let failed = |error: io::Error| {
        Failure(format!(
            "{} cannot be written ({error}): make room or choose another file",
            path.display()
        ))
    };
    let file = File::create(&tmp).map_err(failed)?;
    let written = to_open_file(url, options, &file, packing)
        .and_then(|()| file.sync_all().map_err(failed))
        .and_then(|()| std::fs::rename(&tmp, path).map_err(failed));
    if written.is_err() {
        // What is left of it is of no use to anybody.
        let _ = std::fs::remove_file(&tmp);
    }
    written
}

fn to_open_file(url: &MetaUrl, options: &DumpOptions, file: &File, packing: Packing) -> Outcome {
    let mut out = BufWriter::new(file);
    match packing {
        Packing::Plain => write(url, options, &mut out)?,
        Packing::Zstd => {
            let mut packed = zstd::Encoder::new(&mut out, 1).map_err(Failure::from_error)?;
            write(url, options, &mut packed)?;
            packed.finish().map_err(Failure::from_error)?;
        }
    }
    out.flush().map_err(Failure::from_error)
}
