//! Volumes made by JuiceFS 1.4.1 mount and look exactly as they did there: every path, every attribute
//! that the manifest holds, every byte.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use sluice_tests::golden::{Golden, unpack};
use sluice_tests::harness::check;

#[test]
fn plain_volume_on_redis_matches_its_manifest() {
    check(|| matches_its_manifest("plain"));
}

#[test]
fn zstd_encrypted_volume_on_redis_matches_its_manifest() {
    check(|| matches_its_manifest("zstd-encrypted"));
}

#[test]
fn lz4_volume_on_sqlite_matches_its_manifest() {
    check(|| matches_its_manifest("lz4"));
}

#[test]
fn hash_prefix_volume_on_sqlite_matches_its_manifest() {
    check(|| matches_its_manifest("hashed"));
}

/// The same Redis through its unix socket: another URL form, the same volume.
#[test]
fn unix_socket_url_names_the_same_volume() {
    check(|| {
        let Golden {
            mut volume,
            manifest,
        } = unpack("plain")?;
        let server = volume.redis_server()?;
        volume.meta_url = server.unix_url(server.only_database()?);
        let mount = volume.mount_with(&["--read-only"])?;
        manifest.compare(mount.root())?;
        mount.unmount()
    });
}

/// `--subdir` shows a directory of the volume as the root.
#[test]
fn subdir_shows_a_directory_as_root() {
    check(|| {
        let Golden { volume, manifest } = unpack("hashed")?;
        let whole = volume.mount_with(&["--read-only"])?;
        let below = volume.mount_with(&["--read-only", "--subdir", "/sizes"])?;
        let mut compared = 0;
        for (path, size) in manifest.files_by_size()? {
            let Ok(inner) = path.strip_prefix("sizes") else {
                continue;
            };
            let bytes = std::fs::read(below.path(inner)).with_context(|| format!("{inner:?}"))?;
            ensure!(
                bytes.len() as u64 == size,
                "{inner:?} has {} bytes",
                bytes.len()
            );
            ensure!(
                bytes == std::fs::read(whole.path(&path))?,
                "{inner:?} differs"
            );
            compared += 1;
        }
        ensure!(compared > 5, "only {compared} files below sizes/");
        ensure!(
            !below.path("sizes").exists(),
            "the volume's own root is still reachable"
        );
        below.unmount()?;
        whole.unmount()
    });
}

/// Mounted for writing, an old volume keeps what it had, byte for byte, and takes new files.
#[test]
fn writable_mount_of_a_real_volume_keeps_what_was_there() {
    check(|| {
        let Golden { volume, manifest } = unpack("hashed")?;
        let mount = volume.mount()?;
        let added = mount.path("added-by-sluice");
        std::fs::write(&added, b"new bytes beside old ones")?;
        let (largest, size) = manifest.files_by_size()?.remove(0);
        let copy: PathBuf = mount.path("copy-by-sluice");
        ensure!(
            std::fs::copy(mount.path(&largest), &copy)? == size,
            "short copy of {largest:?}"
        );
        mount.unmount()?;
        let mount = volume.mount()?;
        ensure!(std::fs::read(mount.path("added-by-sluice"))? == b"new bytes beside old ones");
        ensure!(std::fs::metadata(mount.path("copy-by-sluice"))?.len() == size);
        std::fs::remove_file(mount.path("added-by-sluice"))?;
        std::fs::remove_file(mount.path("copy-by-sluice"))?;
        mount.unmount()
    });
}

fn matches_its_manifest(name: &str) -> Result<()> {
    let Golden { volume, manifest } = unpack(name)?;
    ensure!(
        manifest.len() > 1000,
        "the manifest lists only {} paths",
        manifest.len()
    );
    let mount = volume.mount_with(&["--read-only"])?;
    manifest.compare(mount.root())?;
    // Once more, from caches that are warm now.
    manifest.compare(mount.root()).context("second look")?;
    mount.unmount()
}
