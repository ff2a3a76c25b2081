//! `copy_file_range` on real mounts: the bytes, the holes, the objects that are shared, and what JuiceFS thinks.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use sluice_tests::deadline::{patience, wait_until};
use sluice_tests::harness::{Engine, Volume};
use sluice_tests::juicefs::JuiceFs;
use sluice_tests::on_both_engines;

use crate::errno::same;

on_both_engines!(
    copies_share_data_and_outlive_each_other,
    random_copies_are_as_the_model_says,
);

const CHUNK: u64 = 64 << 20;

fn objects(volume: &Volume) -> Result<usize> {
    fn count(dir: &std::path::Path) -> Result<usize> {
        let mut files = 0;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            files += match entry.file_type()?.is_dir() {
                true => count(&entry.path())?,
                false => 1,
            };
        }
        Ok(files)
    }
    count(&volume.bucket)
}

fn copy(from: &File, mut at: u64, to: &File, mut target: u64, length: u64) -> Result<()> {
    let mut left = length;
    while left > 0 {
        let (at, target) = (Some(&mut at), Some(&mut target));
        let copied = rustix::fs::copy_file_range(from, at, to, target, left as usize)?;
        ensure!(copied > 0, "a copy stops with {left} of {length} to go");
        left -= copied as u64;
    }
    Ok(())
}

fn read(file: &File, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn copies_share_data_and_outlive_each_other(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let empty = objects(&volume)?;
    let mount = volume.mount_with(&["--enable-xattr"])?;
    let other = volume.mount()?;
    let open = |name: &str| {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        options.open(mount.path(name))
    };
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|at| (at * 31 % 253) as u8).collect();
    let (source, target) = (open("source")?, open("target")?);
    // Dirty when it is copied, behind a hole, and over a chunk border of source and target.
    source.write_all_at(&bytes, CHUNK - 2_500_000)?;
    target.write_all_at(b"covered", 10)?;
    source.sync_all()?;
    let stored = objects(&volume)?;
    source.write_all_at(b"late", CHUNK - 2)?;
    let mut expected = bytes.clone();
    expected[2_499_998..2_500_002].copy_from_slice(b"late");
    copy(&source, 0, &target, 1000, CHUNK + 2_500_000)?;
    let shift = CHUNK - 2_500_000 + 1000;
    ensure!(
        read(&target, shift, bytes.len())? == expected,
        "the copy differs"
    );
    ensure!(read(&target, 10, 7)? == b"covered", "before the copy");
    // What was dirty is stored by itself, what was stored is shared.
    let new = objects(&volume)? - stored;
    ensure!(new <= 3, "{new} new objects: the data was copied");
    let data = rustix::fs::seek(&target, rustix::fs::SeekFrom::Data(100_000))?;
    same("where the data begins", data, shift)?;
    // Within one file.
    copy(&target, shift, &target, 3 * CHUNK - 5, 1_000_000)?;
    drop(source);
    drop(target);
    let elsewhere = File::open(other.path("target"))?;
    let part = read(&elsewhere, 3 * CHUNK - 5, 1_000_000)?;
    ensure!(
        part == expected[..1_000_000],
        "the other mount reads something else"
    );
    drop(elsewhere);
    fs::copy(mount.path("target"), mount.path("third"))?;
    other.unmount()?;
    fs::remove_file(mount.path("source"))?;
    let target = File::open(mount.path("target"))?;
    ensure!(
        read(&target, shift, bytes.len())? == expected,
        "the source took its data along"
    );
    drop(target);
    mount.unmount()?;
    if let Some(juicefs) = JuiceFs::find("copied ranges") {
        // Read-only: a compaction that its unmount cuts short leaves objects behind.
        let theirs = juicefs.mount(&volume, &["--read-only"])?;
        let target = File::open(theirs.path("target"))?;
        ensure!(
            read(&target, shift, bytes.len())? == expected,
            "JuiceFS reads something else"
        );
        drop(target);
        theirs.unmount()?;
        juicefs.fsck(&volume)?;
        same("leaked objects", juicefs.leaked_objects(&volume)?, 0)?;
    }
    // A copy that goes before what it was made of takes nothing along; with the last one the data goes.
    let mount = volume.mount()?;
    fs::remove_file(mount.path("third"))?;
    let target = File::open(mount.path("target"))?;
    let whole = read(&target, shift, bytes.len())? == expected;
    ensure!(whole, "the copy took its source's data along");
    drop(target);
    fs::remove_file(mount.path("target"))?;
    wait_until("all objects are deleted", patience(20), || {
        Ok(objects(&volume)? == empty)
    })?;
    mount.unmount()
}

fn random_copies_are_as_the_model_says(engine: Engine) -> Result<()> {
    const LENGTH: u64 = 300_000;
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let open = |name: &str| {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        options.open(mount.path(name))
    };
    let files = [open("a")?, open("b")?];
    let mut model = [vec![0_u8; LENGTH as usize], vec![0_u8; LENGTH as usize]];
    for file in &files {
        file.set_len(LENGTH)?;
    }
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for step in 0..150 {
        let (from, to) = (random(2) as usize, random(2) as usize);
        let length = 1 + random(60_000);
        let (at, target) = (random(LENGTH - length), random(LENGTH - length));
        let (start, end) = (target as usize, (target + length) as usize);
        if random(2) == 0 {
            let bytes = vec![step as u8 + 1; length as usize];
            files[to].write_all_at(&bytes, target)?;
            model[to][start..end].copy_from_slice(&bytes);
        } else if from != to || at.abs_diff(target) >= length {
            copy(&files[from], at, &files[to], target, length)?;
            let bytes = model[from][at as usize..(at + length) as usize].to_vec();
            model[to][start..end].copy_from_slice(&bytes);
            ensure!(
                read(&files[to], target, bytes.len())? == bytes,
                "step {step}"
            );
        }
    }
    for (file, model) in files.iter().zip(&model) {
        ensure!(
            read(file, 0, model.len())? == *model,
            "the files differ at the end"
        );
    }
    drop(files);
    mount.unmount()
}
