//! JuiceFS mounted beside sluice, without any cached names or attributes: each side sees at once what the
//! other did, and afterwards JuiceFS's own checks find nothing wrong and nothing leaked.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use sluice_tests::compare::same_trees;
use sluice_tests::content::{Content, Fill};
use sluice_tests::harness::{Engine, Volume};
use sluice_tests::juicefs::JuiceFs;
use sluice_tests::mount::Mount;
use sluice_tests::on_both_engines;
use sluice_tests::tree::{Tree, TreeOptions};

use crate::errno::same;

on_both_engines!(
    what_either_removed_leaves_nothing,
    each_sees_what_the_other_closed,
    both_change_the_same_names,
    both_write_in_one_directory_at_once,
);

/// No time during which a kernel may answer from memory: each side asks for what the other has done.
const NO_CACHE: [&str; 6] = [
    "--attr-cache",
    "0",
    "--entry-cache",
    "0",
    "--dir-entry-cache",
    "0",
];

fn find() -> Option<JuiceFs> {
    JuiceFs::find("interoperation with JuiceFS")
}

fn juicefs_mount(juicefs: &JuiceFs, volume: &Volume) -> Result<Mount> {
    let mut options = vec!["--enable-xattr"];
    options.extend(NO_CACHE);
    juicefs.mount(volume, &options)
}

/// JuiceFS's checks of a volume that nobody has mounted.
fn nothing_is_wrong(juicefs: &JuiceFs, volume: &Volume) -> Result<()> {
    juicefs.fsck(volume)?;
    same("leaked objects", juicefs.leaked_objects(volume)?, 0)
}

/// Whatever was written, overwritten, cut and removed: the store holds what live files need and no more.
fn what_either_removed_leaves_nothing(engine: Engine) -> Result<()> {
    let Some(juicefs) = find() else { return Ok(()) };
    let volume = Volume::with_options(engine, &["--trash-days", "0", "--block-size", "1M"])?;
    let options = TreeOptions {
        block_bytes: 1 << 20,
        directory_entries: 300,
        chunk_sizes: false,
        ..TreeOptions::default()
    };
    let mount = volume.mount()?;
    let trees = ["kept", "removed-here", "removed-there"];
    for name in trees {
        fs::create_dir(mount.path(name))?;
        Tree::write(&mount.path(name), &options)?;
    }
    fs::remove_dir_all(mount.path(trees[1]))?;
    mount.unmount()?;
    nothing_is_wrong(&juicefs, &volume).context("after sluice removed a tree")?;
    let mount = juicefs_mount(&juicefs, &volume)?;
    fs::remove_dir_all(mount.path(trees[2])).context("JuiceFS removes")?;
    mount.unmount()?;
    let mount = volume.mount()?;
    fs::remove_dir_all(mount.path(trees[0]))?;
    mount.unmount()?;
    nothing_is_wrong(&juicefs, &volume).context("after both removed trees")
}

/// Both mounted: `body` gets the two roots, in one order and then in the other.
fn on_both_sides(
    engine: Engine,
    body: fn(writer: &Path, reader: &Path) -> Result<()>,
) -> Result<()> {
    let Some(juicefs) = find() else { return Ok(()) };
    let volume = Volume::new(engine)?;
    let sluice = volume.mount_with(&NO_CACHE)?;
    let other = juicefs_mount(&juicefs, &volume)?;
    for (writer, reader, who) in [
        (&sluice, &other, "sluice writes"),
        (&other, &sluice, "JuiceFS writes"),
    ] {
        let directory = who.replace(' ', "-");
        fs::create_dir(writer.path(&directory))?;
        let (writer, reader) = (writer.path(&directory), reader.path(&directory));
        body(&writer, &reader).context(who)?;
        same_trees(&writer, &reader).context(who)?;
    }
    other.unmount()?;
    sluice.unmount()?;
    nothing_is_wrong(&juicefs, &volume)
}

fn each_sees_what_the_other_closed(engine: Engine) -> Result<()> {
    on_both_sides(engine, |writer, reader| {
        let mut random = fastrand::Rng::with_seed(8);
        let mut content = Content::default();
        for round in 0..25 {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(writer.join("file"))?;
            match round % 5 {
                // Grow, shrink, and change in place.
                4 => {
                    let len = random.u64(0..content.len());
                    file.set_len(len)?;
                    content.truncate(len);
                }
                _ => {
                    let start = random.u64(0..=content.len());
                    let range = start..start + random.u64(1..3_000_000);
                    let mut bytes = vec![0; (range.end - range.start) as usize];
                    Fill::Noise(round).bytes(start, &mut bytes);
                    file.write_all_at(&bytes, start)?;
                    content.write(range, Fill::Noise(round));
                }
            }
            drop(file);
            content
                .verify(&File::open(reader.join("file"))?)
                .with_context(|| format!("round {round}"))?;
        }
        Ok(())
    })
}

fn both_change_the_same_names(engine: Engine) -> Result<()> {
    on_both_sides(engine, |one, two| {
        fs::write(one.join("a"), b"first")?;
        fs::hard_link(two.join("a"), two.join("b")).context("link by the other side")?;
        same("nlink", fs::metadata(one.join("a"))?.nlink(), 2)?;
        same(
            "inode",
            fs::metadata(one.join("b"))?.ino(),
            fs::metadata(two.join("a"))?.ino(),
        )?;
        fs::write(two.join("b"), b"second").context("write by the other side")?;
        same("content", fs::read(one.join("a"))?, b"second".to_vec())?;
        fs::remove_file(one.join("a"))?;
        same("gone", two.join("a").exists(), false)?;
        same("nlink", fs::metadata(two.join("b"))?.nlink(), 1)?;
        fs::rename(two.join("b"), two.join("c"))?;
        same("moved", fs::read(one.join("c"))?, b"second".to_vec())?;
        fs::write(one.join("new"), b"third")?;
        fs::rename(two.join("new"), two.join("c")).context("rename over")?;
        same("replaced", fs::read(one.join("c"))?, b"third".to_vec())?;
        fs::create_dir_all(one.join("d/e"))?;
        fs::rename(two.join("c"), two.join("d/e/c"))?;
        fs::rename(one.join("d/e"), one.join("f"))?;
        same("deep", fs::read(two.join("f/c"))?, b"third".to_vec())?;
        same("nlink of d", fs::metadata(two.join("d"))?.nlink(), 2)?;
        symlink("f/c", two.join("link"))?;
        same("symlink", fs::read(one.join("link"))?, b"third".to_vec())?;
        OpenOptions::new()
            .write(true)
            .open(two.join("link"))?
            .set_len(2)?;
        same("truncated", fs::read(one.join("f/c"))?, b"th".to_vec())?;
        rustix::fs::setxattr(
            one.join("f"),
            "user.x",
            b"value",
            rustix::fs::XattrFlags::CREATE,
        )?;
        let mut value = [0; 5];
        rustix::fs::getxattr(two.join("f"), "user.x", &mut value)?;
        same("xattr", &value, b"value")?;
        fs::remove_dir(two.join("d"))?;
        fs::remove_file(two.join("f/c"))?;
        fs::remove_dir(one.join("f"))?;
        fs::remove_file(one.join("link"))?;
        same("left", fs::read_dir(two)?.count(), 0)
    })
}

/// Writers on each side.
const WRITERS: u64 = 2;
/// Files each of them makes.
const FILES: u64 = 60;

fn both_write_in_one_directory_at_once(engine: Engine) -> Result<()> {
    let Some(juicefs) = find() else { return Ok(()) };
    let volume = Volume::new(engine)?;
    let sluice = volume.mount_with(&NO_CACHE)?;
    let other = juicefs_mount(&juicefs, &volume)?;
    fs::create_dir(sluice.path("shared"))?;
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (side, mount) in [("s", &sluice), ("j", &other)] {
            for writer in 0..WRITERS {
                let directory = mount.path("shared");
                let name = format!("{side}{writer}");
                running.push(scope.spawn(move || {
                    make_files(&directory, &name).with_context(|| format!("writer {name}"))
                }));
            }
        }
        let outcome = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("panicked")))
        };
        running.into_iter().map(outcome).collect()
    });
    outcomes.into_iter().collect::<Result<()>>()?;
    for mount in [&sluice, &other] {
        for side in ["s", "j"] {
            for writer in 0..WRITERS {
                find_files(&mount.path("shared"), &format!("{side}{writer}"))
                    .with_context(|| format!("seen through {}", mount.root().display()))?;
            }
        }
    }
    same_trees(&sluice.path("shared"), &other.path("shared"))?;
    other.unmount()?;
    sluice.unmount()?;
    nothing_is_wrong(&juicefs, &volume)
}

fn fill(name: &str, index: u64) -> (Fill, u64) {
    let seed = name
        .bytes()
        .fold(index, |seed, byte| seed * 31 + u64::from(byte));
    (Fill::Noise(seed), 1 + seed * 7919 % 100_000)
}

/// Of every four files one stays, one gets another name, one gets a second name, one is removed.
fn make_files(directory: &Path, name: &str) -> Result<()> {
    for index in 0..FILES {
        let path = directory.join(format!("{name}-{index}"));
        let (fill, len) = fill(name, index);
        let mut bytes = vec![0; len as usize];
        fill.bytes(0, &mut bytes);
        fs::write(&path, bytes).with_context(|| format!("file {index}"))?;
        let second = directory.join(format!("{name}-{index}-second"));
        match index % 4 {
            0 => {}
            1 => fs::rename(&path, &second).context("rename")?,
            2 => fs::hard_link(&path, &second).context("link")?,
            _ => fs::remove_file(&path).context("unlink")?,
        }
    }
    Ok(())
}

fn find_files(directory: &Path, name: &str) -> Result<()> {
    for index in 0..FILES {
        let (fill, len) = fill(name, index);
        let mut content = Content::default();
        content.write(0..len, fill);
        let (first, second, nlink) = [
            (true, false, 1),
            (false, true, 1),
            (true, true, 2),
            (false, false, 0),
        ][index as usize % 4];
        for (suffix, expected) in [("", first), ("-second", second)] {
            let path = directory.join(format!("{name}-{index}{suffix}"));
            ensure!(
                path.exists() == expected,
                "{path:?} should {}exist",
                if expected { "" } else { "not " }
            );
            if expected {
                let file = File::open(&path)?;
                same("nlink", file.metadata()?.nlink(), nlink)?;
                content.verify(&file).with_context(|| format!("{path:?}"))?;
            }
        }
    }
    Ok(())
}
