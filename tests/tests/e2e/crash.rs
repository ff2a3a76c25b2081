//! SIGKILL in the middle of writing: what was synced is there, byte for byte, and what was renamed after
//! its sync has its name. An unmount loses nothing at all.
//!
//! Writers work until the server is killed under them, at a moment that one of them happens to reach: the
//! others are in the middle of something then. What each knows to be promised stays in its memory, which
//! the crash does not touch.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use sluice_tests::content::{Content, Fill, Subject};
use sluice_tests::harness::{Engine, Volume};
use sluice_tests::journal::Journaled;
use sluice_tests::juicefs::JuiceFs;
use sluice_tests::on_both_engines;

on_both_engines!(
    synced_data_survives_a_kill_in_mid_write,
    renamed_files_survive_a_kill,
    unmount_keeps_what_was_never_synced,
);

/// Kills per test.
const ROUNDS: u64 = 5;

/// The moment of the kill: the writers count their steps, and the one that reaches the chosen step kills.
struct Fuse<'a> {
    steps: AtomicU64,
    at: u64,
    blown: AtomicBool,
    kill: &'a (dyn Fn() -> Result<()> + Sync),
}

impl Fuse<'_> {
    fn step(&self) -> Result<()> {
        if self.steps.fetch_add(1, Ordering::SeqCst) == self.at {
            self.blown.store(true, Ordering::SeqCst);
            (self.kill)()?;
        }
        Ok(())
    }

    /// An error of the mount ends a writer: as it should after the kill, and never before.
    fn expected(&self, error: anyhow::Error) -> Result<()> {
        if self.blown.load(Ordering::SeqCst) {
            Ok(())
        } else {
            Err(error.context("before the server was killed"))
        }
    }
}

/// Works below a directory, from a seed, until the mount is gone; answers what it knows to be promised.
type Writer<K> = fn(&Path, u64, &Fuse) -> Result<K>;

/// Mounts, lets `writers` work below `directory` until the server dies, and remounts `ROUNDS` times; each
/// time `verify` looks at what the writers know.
fn kill_again_and_again<K: Send>(
    volume: &Volume,
    steps: std::ops::Range<u64>,
    writers: &[Writer<K>],
    verify: fn(&Path, &K) -> Result<()>,
) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(0x5eed);
    let mut known: Vec<(String, K)> = Vec::new();
    for round in 0..ROUNDS {
        let mount = volume.mount()?;
        let kill = mount.killer();
        // Only one writer ever reaches the step, but all must be able to.
        let kill = std::sync::Mutex::new(kill);
        let kill = || kill.lock().map_err(|_| anyhow!("poisoned"))?();
        let fuse = Fuse {
            steps: AtomicU64::new(0),
            at: random.u64(steps.clone()),
            blown: AtomicBool::new(false),
            kill: &kill,
        };
        let outcomes: Vec<(String, Result<K>)> = std::thread::scope(|scope| {
            let running: Vec<_> = writers
                .iter()
                .enumerate()
                .map(|(number, writer)| {
                    let name = format!("round{round}-writer{number}");
                    let (directory, fuse) = (mount.path(&name), &fuse);
                    let seed = round * 100 + number as u64 + 1;
                    let thread = scope.spawn(move || {
                        match std::fs::create_dir(&directory) {
                            Ok(()) => {}
                            // Killed before this one had begun: it retries nothing and knows nothing.
                            Err(_) if fuse.blown.load(Ordering::SeqCst) => {}
                            Err(error) => return Err(anyhow!(error).context("mkdir")),
                        }
                        writer(&directory, seed, fuse)
                    });
                    (name, thread)
                })
                .collect();
            running
                .into_iter()
                .map(|(name, thread)| {
                    let outcome = thread.join().unwrap_or_else(|_| Err(anyhow!("panicked")));
                    (name, outcome)
                })
                .collect()
        });
        ensure!(
            fuse.blown.load(Ordering::SeqCst),
            "round {round}: the writers ended before the kill"
        );
        mount.kill()?;
        for (name, outcome) in outcomes {
            let knowledge = outcome.with_context(|| name.clone())?;
            known.push((name, knowledge));
        }
        let mount = volume.mount()?;
        // What survived the first crash survives the next as well.
        for (name, knowledge) in &known {
            verify(&mount.path(name), knowledge)
                .with_context(|| format!("after kill {round}, {name}"))?;
        }
        mount.unmount()?;
    }
    if let Some(juicefs) = JuiceFs::find("fsck after SIGKILL") {
        juicefs.fsck_blocks(volume)?;
    }
    Ok(())
}

fn synced_data_survives_a_kill_in_mid_write(engine: Engine) -> Result<()> {
    let volume = Volume::with_options(engine, &["--trash-days", "0", "--block-size", "256K"])?;
    let writers: [Writer<Vec<Kept>>; 4] = [
        |directory, seed, fuse| write_files(directory, seed, fuse, Style::Append),
        |directory, seed, fuse| write_files(directory, seed, fuse, Style::Overwrite),
        |directory, seed, fuse| write_files(directory, seed, fuse, Style::Both),
        |directory, seed, fuse| write_files(directory, seed, fuse, Style::Both),
    ];
    kill_again_and_again(&volume, 50..400, &writers, |directory, files| {
        for (name, file) in files {
            let found = File::open(directory.join(name)).with_context(|| name.clone())?;
            file.verify(&found).with_context(|| name.clone())?;
        }
        Ok(())
    })
}

/// A file that exists for sure, and what it holds.
type Kept = (String, Journaled);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Append,
    Overwrite,
    Both,
}

/// Three files, written in turns and synced now and then, until the server is gone.
fn write_files(directory: &Path, seed: u64, fuse: &Fuse, style: Style) -> Result<Vec<Kept>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut files = Vec::new();
    for number in 0..3 {
        let name = format!("file{number}");
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(directory.join(&name));
        match made {
            Ok(file) => files.push((name, Journaled::new(file))),
            Err(error) => {
                fuse.expected(anyhow!(error).context("create"))?;
                return Ok(files);
            }
        }
    }
    let outcome = loop {
        let (_, file) = &mut files[random.usize(0..3)];
        if let Err(error) = write_once(file, &mut random, style) {
            break error;
        }
        fuse.step()?;
    };
    fuse.expected(outcome)?;
    for (_, file) in &mut files {
        file.close();
    }
    Ok(files)
}

fn write_once(file: &mut Journaled, random: &mut fastrand::Rng, style: Style) -> Result<()> {
    // Verifying reads whole files: they stay small, with many blocks all the same.
    const LENGTH_MAX: u64 = 6 << 20;
    let fill = Fill::Noise(random.u64(..));
    let room = LENGTH_MAX.saturating_sub(file.len());
    let overwrite = style == Style::Overwrite || (style == Style::Both && random.bool());
    let range = if file.is_empty() || (!overwrite && room > 0) {
        file.len()..file.len() + random.u64(1..=200_000)
    } else {
        let start = random.u64(0..file.len());
        start..(start + random.u64(1..=100_000)).min(file.len())
    };
    file.write(range.clone(), fill)
        .with_context(|| format!("writing {range:?}"))?;
    match random.u32(0..6) {
        0 => file.sync(false).context("fsync"),
        1 => file.sync(true).context("fdatasync"),
        _ => Ok(()),
    }
}

fn renamed_files_survive_a_kill(engine: Engine) -> Result<()> {
    let volume = Volume::with_options(engine, &["--trash-days", "0", "--block-size", "256K"])?;
    let writers: [Writer<Names>; 3] = [replace_names, replace_names, replace_names];
    kill_again_and_again(&volume, 20..150, &writers, |directory, names| {
        for (name, versions) in &names.versions {
            verify_name(&directory.join(name), versions).with_context(|| name.clone())?;
        }
        Ok(())
    })
}

/// What each name may show.
struct Names {
    versions: BTreeMap<String, Versions>,
}

#[derive(Default)]
struct Versions {
    /// The file whose rename returned last.
    renamed: Option<Content>,
    /// A file whose rename was under way when the server died.
    perhaps: Option<Content>,
}

/// The way editors and databases replace a file: write a new one, sync it, rename it over the old one.
fn replace_names(directory: &Path, seed: u64, fuse: &Fuse) -> Result<Names> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut versions: BTreeMap<String, Versions> = BTreeMap::new();
    let outcome = loop {
        let name = format!("name{}", random.u32(0..8));
        let entry = versions.entry(name.clone()).or_default();
        if let Err(error) = replace_one(&directory.join(&name), entry, &mut random) {
            break error;
        }
        fuse.step()?;
    };
    fuse.expected(outcome)?;
    Ok(Names { versions })
}

fn replace_one(path: &Path, versions: &mut Versions, random: &mut fastrand::Rng) -> Result<()> {
    let temporary: PathBuf = path.with_extension("new");
    let mut new = Subject::new(
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)?,
    );
    new.write(
        0..random.u64(1..700_000),
        Fill::Noise(random.u64(..)),
        100_000,
    )?;
    new.file.sync_all().context("fsync")?;
    versions.perhaps = Some(new.content.clone());
    std::fs::rename(&temporary, path).context("rename")?;
    versions.renamed = Some(new.content);
    versions.perhaps = None;
    Ok(())
}

fn verify_name(path: &Path, versions: &Versions) -> Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if versions.renamed.is_none() => {
            ensure!(
                error.kind() == std::io::ErrorKind::NotFound,
                "a name that was never given: {error}"
            );
            return Ok(());
        }
        Err(error) => return Err(anyhow!(error).context("a file that had its name is gone")),
    };
    let candidates = versions.renamed.iter().chain(&versions.perhaps);
    let mut differences = Vec::new();
    for candidate in candidates {
        match candidate.verify(&file) {
            Ok(()) => return Ok(()),
            Err(error) => differences.push(format!("{error:#}")),
        }
    }
    Err(anyhow!("neither version: {differences:?}"))
}

/// Written and closed, never synced: everything is there after the unmount.
fn unmount_keeps_what_was_never_synced(engine: Engine) -> Result<()> {
    let volume = Volume::with_options(engine, &["--trash-days", "0", "--block-size", "256K"])?;
    let mount = volume.mount()?;
    let mut random = fastrand::Rng::with_seed(77);
    let mut files = Vec::new();
    for number in 0..40 {
        let name = format!("file{number}");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(mount.path(&name))?;
        files.push((name, Journaled::new(file)));
    }
    for _ in 0..1200 {
        let (_, file) = &mut files[random.usize(0..40)];
        let fill = Fill::Noise(random.u64(..));
        let start = random.u64(0..=file.len());
        file.write(start..start + random.u64(1..60_000), fill)?;
    }
    // A mount in use cannot be unmounted; closing them writes nothing that umount would not.
    files.iter_mut().for_each(|(_, file)| file.close());
    mount.unmount()?;
    let mount = volume.mount()?;
    for (name, file) in &files {
        file.verify_all(&File::open(mount.path(name))?)
            .with_context(|| name.clone())?;
    }
    mount.unmount()?;
    if let Some(juicefs) = JuiceFs::find("fsck after an unmount") {
        juicefs.fsck(&volume)?;
    }
    Ok(())
}
