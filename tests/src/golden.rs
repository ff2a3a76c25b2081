//! The volumes in `tests/golden/`, made by JuiceFS 1.4.1, unpacked for one test.
//!
//! Each archive holds `meta.rdb` (to be loaded into a Redis) or `meta.db`, `bucket/`, and
//! `manifest.json`, which says what a mount must show. The volumes' settings name a bucket that existed
//! only where they were made, so every mount needs `--bucket`. The encrypted one needs the passphrase
//! `golden-pass`, in `JFS_RSA_PASSPHRASE`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::harness::{Scratch, Volume, run_ok};
use crate::manifest::Manifest;
use crate::redis::RedisServer;

/// Passphrase of the encrypted volume's key.
pub const PASSPHRASE: &str = "golden-pass";

/// An unpacked volume and its manifest.
pub struct Golden {
    /// The volume; its mounts go to the unpacked bucket and start no background jobs, which would
    /// empty the trash that the manifest describes.
    pub volume: Volume,
    /// What a mount must show.
    pub manifest: Manifest,
}

/// The unpacked archive `name`, ready to be mounted.
pub fn unpack(name: &str) -> Result<Golden> {
    let scratch = Scratch::new()?;
    let archive = archive(name);
    ensure!(archive.exists(), "{} is missing", archive.display());
    run_ok(
        Command::new("tar")
            .arg("xzf")
            .arg(&archive)
            .arg("-C")
            .arg(scratch.root()),
    )?;
    let files = scratch.path(name);
    let manifest = Manifest::read(&files.join("manifest.json"))?;
    let bucket = files.join("bucket");
    let (meta_url, redis) = if files.join("meta.db").exists() {
        (
            format!("sqlite3://{}", files.join("meta.db").display()),
            None,
        )
    } else {
        let server = RedisServer::load(&scratch.dir("redis")?, &files.join("meta.rdb"))?;
        (server.url(server.only_database()?), Some(server))
    };
    let mut volume = Volume::from_parts(scratch, meta_url, bucket, redis);
    let mut bucket = volume.bucket.clone().into_os_string();
    bucket.push("/");
    volume.mount_options = vec!["--no-bgjob".into(), "--bucket".into(), bucket];
    volume.environment = vec![("JFS_RSA_PASSPHRASE".into(), PASSPHRASE.into())];
    Ok(Golden { volume, manifest })
}

fn archive(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(format!("{name}.tar.gz"))
}
