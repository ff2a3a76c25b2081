//! File data: everything that can be written reads back byte for byte, now, after a remount, and in every
//! form the store keeps it (compressed, encrypted, small blocks, prefixed names).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::{OFlags, SeekFrom, seek};
use rustix::io::Errno;
use sluice_tests::content::{Content, Fill, Subject};
use sluice_tests::golden::PASSPHRASE;
use sluice_tests::harness::{Engine, Scratch, Volume, run_ok};
use sluice_tests::on_both_engines;
use sluice_tests::tree::{Tree, TreeOptions};

use crate::errno::must_fail;

on_both_engines!(
    varied_tree_survives_a_remount,
    compressed_volume_with_small_blocks,
    lz4_volume_with_hashed_names,
    encrypted_volume,
    holes_and_data_are_found_by_seek,
    punched_ranges_read_as_zeros_at_once_and_later,
    direct_and_buffered_access_see_each_other,
    writers_in_parallel_do_not_disturb_each_other,
    many_small_overwrites,
    sparse_file_beyond_the_terabyte,
);

/// Writes a tree, verifies it, remounts and verifies it again: what is read then comes from the store.
fn tree_survives_a_remount(volume: &Volume, options: &TreeOptions) -> Result<()> {
    let mount = volume.mount()?;
    std::fs::create_dir(mount.path("tree"))?;
    let tree = Tree::write(&mount.path("tree"), options)?;
    mount.unmount()?;
    let mount = volume.mount()?;
    tree.verify(&mount.path("tree"))
        .context("after a remount")?;
    tree.verify(&mount.path("tree")).context("second look")?;
    mount.unmount()
}

fn varied_tree_survives_a_remount(engine: Engine) -> Result<()> {
    tree_survives_a_remount(&Volume::new(engine)?, &TreeOptions::default())
}

fn small_tree(block_bytes: u64) -> TreeOptions {
    TreeOptions {
        block_bytes,
        directory_entries: 200,
        chunk_sizes: false,
        seed: block_bytes,
        ..TreeOptions::default()
    }
}

fn compressed_volume_with_small_blocks(engine: Engine) -> Result<()> {
    let options = [
        "--trash-days",
        "0",
        "--block-size",
        "256K",
        "--compress",
        "zstd",
    ];
    tree_survives_a_remount(
        &Volume::with_options(engine, &options)?,
        &small_tree(256 << 10),
    )
}

fn lz4_volume_with_hashed_names(engine: Engine) -> Result<()> {
    let options = [
        "--trash-days",
        "1",
        "--block-size",
        "1M",
        "--compress",
        "lz4",
        "--hash-prefix",
    ];
    let tree = TreeOptions {
        trash: true,
        ..small_tree(1 << 20)
    };
    tree_survives_a_remount(&Volume::with_options(engine, &options)?, &tree)
}

fn encrypted_volume(engine: Engine) -> Result<()> {
    let mut volume = Volume::unformatted(engine)?;
    volume.environment = vec![("JFS_RSA_PASSPHRASE".into(), PASSPHRASE.into())];
    // The golden volume brings a key with it.
    let keys = Scratch::new()?;
    let archive = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/zstd-encrypted.tar.gz");
    let member = "zstd-encrypted/rsa.pem";
    run_ok(
        Command::new("tar")
            .args(["xzf", archive, "-C"])
            .arg(keys.root())
            .arg(member),
    )?;
    let key = keys.path(member);
    let key = key.to_str().context("scratch path is UTF-8")?;
    let options = [
        "--trash-days",
        "0",
        "--compress",
        "lz4",
        "--encrypt-rsa-key",
        key,
    ];
    run_ok(&mut volume.format_command(&options)?)?;
    tree_survives_a_remount(&volume, &small_tree(4 << 20))?;
    let plain = b"abcd\n12 abcd\n12 ";
    let found = Command::new("grep")
        .arg("-rlaF")
        .arg("abcd")
        .arg(&volume.bucket)
        .output()?;
    ensure!(!found.status.success(), "plain text {plain:?} in {found:?}");
    Ok(())
}

/// Walks a file by SEEK_DATA and SEEK_HOLE; the ranges said to be data.
fn data_ranges(file: &File) -> Result<Vec<(u64, u64)>> {
    let len = file.metadata()?.len();
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error).context(format!("SEEK_DATA at {at}")),
        };
        let end = seek(file, SeekFrom::Hole(start)).context("SEEK_HOLE")?;
        ensure!(
            start >= at && end > start && end <= len,
            "data {start}..{end} from {at} of {len}"
        );
        ranges.push((start, end));
        at = end;
    }
    Ok(ranges)
}

fn holes_and_data_are_found_by_seek(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let mut subject = Subject::new(File::create_new(mount.path("file"))?);
    const MIB: u64 = 1 << 20;
    // Islands with holes of many blocks around them, one across the border of two chunks.
    let islands = [
        (16 * MIB, 17 * MIB),
        (63 * MIB, 65 * MIB),
        (100 * MIB + 5, 100 * MIB + 6),
    ];
    for (start, end) in islands {
        subject.write(start..end, Fill::Noise(start | 1), MIB)?;
    }
    subject.truncate(150 * MIB)?;
    let check = |file: &File, when: &str| -> Result<()> {
        let ranges = data_ranges(file).with_context(|| when.to_string())?;
        for (start, end) in islands {
            let inside = ranges
                .iter()
                .any(|range| range.0 <= start && range.1 >= end);
            ensure!(inside, "{when}: {start}..{end} is data; found {ranges:?}");
        }
        let data: u64 = ranges.iter().map(|range| range.1 - range.0).sum();
        // Whole blocks may count as data, whole chunks may not.
        ensure!(
            data < 40 * MIB,
            "{when}: {data} bytes said to be data: {ranges:?}"
        );
        must_fail(
            "beyond the end",
            seek(file, SeekFrom::Data(151 * MIB)),
            Errno::NXIO,
        )?;
        must_fail(
            "beyond the end",
            seek(file, SeekFrom::Hole(151 * MIB)),
            Errno::NXIO,
        )
    };
    check(&subject.file, "while dirty")?;
    subject.file.sync_all()?;
    check(&subject.file, "after fsync")?;
    subject.verify()?;
    drop(subject.file);
    mount.unmount()?;
    let mount = volume.mount()?;
    check(&File::open(mount.path("file"))?, "after a remount")?;
    mount.unmount()
}

fn punched_ranges_read_as_zeros_at_once_and_later(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let mut subject = Subject::new(File::create_new(mount.path("file"))?);
    subject.write(0..10_000_000, Fill::Noise(1), 1 << 20)?;
    subject.punch(1_000..2_000)?;
    subject.verify().context("hole in dirty data")?;
    subject.file.sync_all()?;
    subject.punch(4_000_000..9_000_000)?;
    subject.verify().context("hole in stored data")?;
    subject.write(5_000_000..5_000_100, Fill::Noise(2), 100)?;
    subject.verify().context("data in the hole")?;
    drop(subject.file);
    mount.unmount()?;
    let mount = volume.mount()?;
    subject
        .content
        .verify(&File::open(mount.path("file"))?)
        .context("after a remount")?;
    mount.unmount()
}

/// A buffer that starts at a page boundary, as O_DIRECT wants it.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let bytes = vec![0; len + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        Aligned { bytes, start, len }
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

fn direct_and_buffered_access_see_each_other(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let path = mount.path("file");
    let buffered = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(&path)
        .context("O_DIRECT")?;
    let mut content = Content::default();
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..60 {
        let page = random.u64(0..1000);
        let count = random.u64(1..64);
        let range = page * 4096..(page + count) * 4096;
        let mut buffer = Aligned::new((count * 4096) as usize);
        Fill::Noise(round).bytes(range.start, buffer.slice());
        let file = if round % 2 == 0 { &direct } else { &buffered };
        file.write_all_at(buffer.slice(), range.start)?;
        content.write(range.clone(), Fill::Noise(round));
        let other = if round % 2 == 0 { &buffered } else { &direct };
        let mut seen = Aligned::new(buffer.len);
        other.read_exact_at(seen.slice(), range.start)?;
        ensure!(
            seen.slice() == buffer.slice(),
            "round {round}, {range:?}: the other handle differs"
        );
    }
    content.verify(&buffered)?;
    drop((buffered, direct));
    mount.unmount()?;
    let mount = volume.mount()?;
    content.verify(&File::open(mount.path("file"))?)?;
    mount.unmount()
}

fn writers_in_parallel_do_not_disturb_each_other(engine: Engine) -> Result<()> {
    const WRITERS: u64 = 8;
    const SPAN: u64 = 3_000_000;
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let path = mount.path("shared");
    let shared = File::create_new(&path)?;
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (path, mount) = (&path, &mount);
                scope.spawn(move || -> Result<()> {
                    let file = OpenOptions::new().write(true).open(path)?;
                    let own = File::create_new(mount.path(format!("own-{writer}")))?;
                    let mut buffer = vec![0; 50_000];
                    for offset in (writer * SPAN..(writer + 1) * SPAN).step_by(buffer.len()) {
                        Fill::Noise(writer).bytes(offset, &mut buffer);
                        file.write_all_at(&buffer, offset)?;
                        own.write_all_at(&buffer, offset - writer * SPAN)?;
                    }
                    Ok(file.sync_all()?)
                })
            })
            .collect();
        writers
            .into_iter()
            .map(|writer| {
                writer
                    .join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("panic")))
            })
            .collect()
    });
    outcomes.into_iter().collect::<Result<()>>()?;
    drop(shared);
    let mut content = Content::default();
    for writer in 0..WRITERS {
        content.write(writer * SPAN..(writer + 1) * SPAN, Fill::Noise(writer));
    }
    content.verify(&File::open(&path)?)?;
    mount.unmount()?;
    let mount = volume.mount()?;
    content
        .verify(&File::open(mount.path("shared"))?)
        .context("after a remount")?;
    for writer in 0..WRITERS {
        let len = std::fs::metadata(mount.path(format!("own-{writer}")))?.len();
        ensure!(len == SPAN, "own-{writer} has {len} bytes");
    }
    mount.unmount()
}

/// More slices on one chunk than the format allows to pile up without compaction.
fn many_small_overwrites(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let mut subject = Subject::new(File::create_new(mount.path("file"))?);
    let mut random = fastrand::Rng::with_seed(9);
    subject.write(0..1_000_000, Fill::Noise(0), 1 << 20)?;
    for round in 1..700 {
        let start = random.u64(0..1_000_000);
        subject.write(start..start + random.u64(1..3000), Fill::Noise(round), 4096)?;
        subject.file.sync_data()?;
    }
    subject.verify()?;
    drop(subject.file);
    mount.unmount()?;
    let mount = volume.mount()?;
    subject
        .content
        .verify(&File::open(mount.path("file"))?)
        .context("after a remount")?;
    mount.unmount()
}

fn sparse_file_beyond_the_terabyte(engine: Engine) -> Result<()> {
    const FAR: u64 = (3 << 40) + 12_345;
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let file = File::create_new(mount.path("far"))?;
    file.write_all_at(b"far away", FAR)?;
    drop(file);
    mount.unmount()?;
    let mount = volume.mount()?;
    let file = File::open(mount.path("far"))?;
    ensure!(
        file.metadata()?.len() == FAR + 8,
        "length {}",
        file.metadata()?.len()
    );
    let mut bytes = [1; 18];
    file.read_exact_at(&mut bytes, FAR - 10)?;
    ensure!(&bytes == b"\0\0\0\0\0\0\0\0\0\0far away", "{bytes:?}");
    file.read_exact_at(&mut bytes, 1 << 40)?;
    ensure!(bytes == [0; 18], "{bytes:?}");
    drop(file);
    mount.unmount()
}
