//! The offline tools on real volumes: dump, load, config, destroy, gc, fsck, compact. JuiceFS is the judge of
//! their work where `JUICEFS` names it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::deadline::patience;
use sluice_tests::golden::unpack;
use sluice_tests::harness::{Engine, Volume, check, run, run_ok};
use sluice_tests::juicefs::JuiceFs;
use sluice_tests::mount::Mount;
use sluice_tests::on_both_engines;
use sluice_tests::tree::{Tree, TreeOptions};

use crate::bad_input::refused_without_trace;
use crate::errno::same;

on_both_engines!(
    a_volume_moves_to_the_other_engine_and_back,
    settings_change_while_mounted,
    a_volume_is_destroyed_when_nobody_uses_it,
    whole_volumes_pass_and_missing_objects_are_named,
    what_is_left_behind_is_found_and_deleted,
    lists_stay_short_and_become_one,
    wrong_arguments_are_refused,
);

fn command(volume: &Volume, name: &str, options: &[&str]) -> Result<Command> {
    let mut command = volume.command([name])?;
    command.args(options).arg(&volume.meta_url);
    Ok(command)
}

fn tool(volume: &Volume, name: &str, options: &[&str]) -> Result<String> {
    run_ok(&mut command(volume, name, options)?)
}

fn outcome(volume: &Volume, name: &str, options: &[&str]) -> Result<Output> {
    run(&mut command(volume, name, options)?, patience(120))
}

fn small() -> TreeOptions {
    TreeOptions {
        directory_entries: 300,
        chunk_sizes: false,
        ..TreeOptions::default()
    }
}

/// Dumps of the volumes that JuiceFS made are those that JuiceFS made of them.
#[test]
fn dumps_of_real_volumes_are_those_of_juicefs() {
    check(|| {
        for name in ["plain", "lz4", "hashed", "zstd-encrypted"] {
            let golden = unpack(name)?;
            let expected =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/{name}.json.gz"));
            let expected = run_ok(Command::new("gzip").arg("-dc").arg(expected))?;
            let found = tool(&golden.volume, "dump", &["--keep-secret-key"])?;
            for (number, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
                ensure!(
                    found == expected,
                    "{name}, line {}: {found} for {expected}",
                    number + 1
                );
            }
            ensure!(found == expected, "{name}: one dump is longer");
        }
        Ok(())
    });
}

/// A place for a volume with the objects of `volume`, in an empty store.
fn beside(volume: &Volume, engine: Engine) -> Result<Volume> {
    let mut other = Volume::unformatted(engine)?;
    other.bucket.clone_from(&volume.bucket);
    Ok(other)
}

fn load(volume: &Volume, dump: &Path) -> Result<()> {
    let mut load = command(volume, "load", &[])?;
    run_ok(load.arg(dump)).map(drop)
}

fn dump(volume: &Volume, name: &str) -> Result<(PathBuf, String)> {
    let path = volume.scratch.path(name);
    let mut dump = command(volume, "dump", &[])?;
    run_ok(dump.arg(&path))?;
    let text = match name.ends_with(".zstd") {
        true => String::new(),
        false => fs::read_to_string(&path)?,
    };
    Ok((path, text))
}

/// Sessions are numbered on, and nothing else differs.
fn without_sessions(dump: &str) -> String {
    let lines = dump
        .lines()
        .filter(|line| !line.contains("\"nextSession\""));
    lines.collect::<Vec<_>>().join("\n")
}

fn a_volume_moves_to_the_other_engine_and_back(engine: Engine) -> Result<()> {
    let other = match engine {
        Engine::Sqlite => Engine::Redis,
        Engine::Redis => Engine::Sqlite,
    };
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    fs::create_dir(mount.path("tree"))?;
    let tree = Tree::write(&mount.path("tree"), &small())?;
    mount.unmount()?;
    tool(&volume, "config", &["--trash-days", "1"])?;
    let mount = volume.mount()?;
    fs::write(mount.path("gone"), b"into the trash")?;
    fs::remove_file(mount.path("gone"))?;
    mount.unmount()?;
    let (path, text) = dump(&volume, "one.json")?;

    let moved = beside(&volume, other)?;
    load(&moved, &path)?;
    same(
        "dump of the copy",
        dump(&moved, "two.json")?.1,
        text.clone(),
    )?;
    tool(&moved, "fsck", &["--recursive", "--sync-dir-stat"])?;
    let mount = moved.mount()?;
    tree.verify(&mount.path("tree"))
        .context("on the other engine")?;
    mount.unmount()?;

    let (packed, _) = dump(&moved, "three.json.zstd")?;
    let back = beside(&volume, engine)?;
    load(&back, &packed)?;
    let text_back = dump(&back, "four.json")?.1;
    same(
        "dump of the copy's copy",
        without_sessions(&text_back),
        without_sessions(&text),
    )?;
    through_juicefs(&volume, engine, &path, &tree)
}

/// JuiceFS loads our dump, and we load its dump of that.
fn through_juicefs(volume: &Volume, engine: Engine, path: &Path, tree: &Tree) -> Result<()> {
    let Some(juicefs) = JuiceFs::find("moving a volume by way of JuiceFS") else {
        return Ok(());
    };
    let theirs = beside(volume, engine)?;
    juicefs.run(
        &theirs,
        "load",
        &[&theirs.meta_url, &path.display().to_string()],
    )?;
    juicefs.fsck(&theirs)?;
    let their_dump = theirs.scratch.path("theirs.json").display().to_string();
    juicefs.run(
        &theirs,
        "dump",
        &["--keep-secret-key", &theirs.meta_url, &their_dump],
    )?;
    same(
        "our dump and theirs",
        tool(&theirs, "dump", &["--keep-secret-key"])?,
        fs::read_to_string(&their_dump)?,
    )?;
    let ours = beside(volume, engine)?;
    load(&ours, Path::new(&their_dump))?;
    juicefs.fsck(&ours)?;
    let mount = ours.mount()?;
    tree.verify(&mount.path("tree"))
        .context("by way of JuiceFS")?;
    mount.unmount()
}

fn settings_change_while_mounted(engine: Engine) -> Result<()> {
    let volume = Volume::with_options(engine, &["--trash-days", "0"])?;
    let mount = volume.mount()?;
    let shown: Value = serde_json::from_str(&tool(&volume, "config", &[])?)?;
    same("trash days", shown["TrashDays"].clone(), 0.into())?;
    let changes = tool(
        &volume,
        "config",
        &["--trash-days", "3", "--capacity", "5", "--upload-limit=2G"],
    )?;
    for line in [
        "trash-days: 0 -> 3",
        "capacity: no limit -> 5368709120 bytes",
        "upload-limit: no limit -> 2000 Mbps",
    ] {
        ensure!(changes.contains(line), "{line} in {changes}");
    }
    let shown: Value = serde_json::from_str(&tool(&volume, "config", &[])?)?;
    same("capacity", shown["Capacity"].clone(), (5_u64 << 30).into())?;
    ensure!(tool(&volume, "config", &["--trash-days", "3"])?.contains("Nothing changed"));
    // Emptying the trash is asked for, and nobody answers.
    let asked = outcome(&volume, "config", &["--trash-days", "0"])?;
    ensure!(asked.status.code() == Some(1), "{asked:?}");
    tool(&volume, "config", &["--trash-days", "0", "--yes"])?;
    mount.unmount()
}

fn a_volume_is_destroyed_when_nobody_uses_it(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let setting: Value = serde_json::from_str(&tool(&volume, "config", &[])?)?;
    let uuid = setting["UUID"].as_str().context("a UUID")?.to_owned();
    let destroy = |uuid: &str, options: &[&str]| -> Result<Command> {
        let mut command = command(&volume, "destroy", options)?;
        command.arg(uuid);
        Ok(command)
    };
    refused_without_trace(&volume, &mut destroy("another", &["--yes"])?, &["UUID"])?;
    let mount = volume.mount()?;
    fs::write(mount.path("file"), vec![7; 100_000])?;
    File::open(mount.path("file"))?.sync_all()?;
    refused_without_trace(
        &volume,
        &mut destroy(&uuid, &["--yes"])?,
        &["in use", "--force"],
    )?;
    mount.unmount()?;
    let said = run_ok(&mut destroy(&uuid, &["--yes"])?)?;
    ensure!(said.contains("destroyed"), "{said}");
    same("objects", fs::read_dir(&volume.bucket)?.count(), 0)?;
    let gone = outcome(&volume, "status", &[])?;
    ensure!(gone.status.code() == Some(1), "{gone:?}");
    // And it can be made again.
    run_ok(&mut volume.format_command(&[])?).map(drop)
}

/// Every object of a volume.
fn objects(below: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(below)? {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(objects(&path)?),
            false => found.push(path),
        }
    }
    found.sort();
    Ok(found)
}

fn whole_volumes_pass_and_missing_objects_are_named(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    fs::create_dir(mount.path("tree"))?;
    Tree::write(&mount.path("tree"), &small())?;
    mount.unmount()?;
    let said = tool(&volume, "fsck", &["--recursive", "--sync-dir-stat"])?;
    ensure!(said.contains("nothing is wrong"), "{said}");
    tool(&volume, "fsck", &["--path", "/tree"])?;

    let lost = objects(&volume.bucket.join("e2e/chunks"))?
        .pop()
        .context("an object")?;
    fs::remove_file(&lost)?;
    let found = outcome(&volume, "fsck", &[])?;
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    let name = lost
        .file_name()
        .context("a name")?
        .to_string_lossy()
        .into_owned();
    ensure!(found.status.code() == Some(1), "{text}");
    ensure!(
        text.contains(&name) && text.contains("needed by chunk"),
        "{name} in {text}"
    );
    Ok(())
}

fn set_age(path: &Path, seconds: u64) -> Result<()> {
    let time = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
    Ok(File::options().write(true).open(path)?.set_modified(time)?)
}

fn what_is_left_behind_is_found_and_deleted(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    fs::create_dir(mount.path("tree"))?;
    let tree = Tree::write(&mount.path("tree"), &small())?;
    mount.unmount()?;
    let chunks = volume.bucket.join("e2e/chunks");
    let before = objects(&chunks)?;
    let (old, young) = (
        chunks.join("7/7000/7000123_0_9"),
        chunks.join("7/7000/7000124_0_9"),
    );
    fs::create_dir_all(chunks.join("7/7000"))?;
    for path in [&old, &young] {
        fs::write(path, b"123456789")?;
    }
    set_age(&old, 7200)?;
    let strange = chunks.join("notes.txt");
    fs::write(&strange, b"not ours")?;
    set_age(&strange, 7200)?;
    for path in &before {
        set_age(path, 7200)?;
    }
    let said = tool(&volume, "gc", &[])?;
    let line =
        |what: &str, count: usize| said.contains(&format!("{:<21} {count} ", format!("{what}:")));
    ensure!(
        line("leaked objects", 1) && line("young objects", 1),
        "{said}"
    );
    ensure!(
        line("valid objects", before.len()),
        "{} in {said}",
        before.len()
    );
    ensure!(old.exists(), "nothing is deleted unasked");
    tool(&volume, "gc", &["--delete"])?;
    ensure!(
        !old.exists() && young.exists() && strange.exists(),
        "only what is leaked is deleted"
    );
    fs::remove_file(&young)?;
    fs::remove_file(&strange)?;
    same("objects", objects(&chunks)?, before)?;
    let mount = volume.mount()?;
    tree.verify(&mount.path("tree"))?;
    mount.unmount()?;
    match JuiceFs::find("the volume after gc") {
        Some(juicefs) => juicefs.fsck(&volume),
        None => Ok(()),
    }
}

/// Records of each chunk of a file.
fn records(volume: &Volume, path: &Path) -> Result<Vec<usize>> {
    let mut info = volume.command(["info", "--json"])?;
    let info: Value = serde_json::from_str(&run_ok(info.arg(path))?)?;
    let chunks = info[0]["chunks"].as_array().context("chunks")?;
    let count = |chunk: &Value| chunk["slices"].as_array().map(Vec::len);
    chunks
        .iter()
        .map(|chunk| count(chunk).context("slices"))
        .collect()
}

fn overwritten(mount: &Mount) -> Result<Vec<u8>> {
    let mut rng = fastrand::Rng::with_seed(11);
    let mut model = vec![1; 300_000];
    fs::write(mount.path("file"), &model)?;
    let file = File::options().write(true).open(mount.path("file"))?;
    for _ in 0..1500 {
        let at = rng.usize(..model.len() - 5000);
        let data = vec![rng.u8(..); rng.usize(1..5000)];
        file.write_all_at(&data, at as u64)?;
        file.sync_data()?;
        model[at..at + data.len()].copy_from_slice(&data);
    }
    Ok(model)
}

fn lists_stay_short_and_become_one(engine: Engine) -> Result<()> {
    for days in ["0", "1"] {
        let volume = Volume::with_options(engine, &["--trash-days", days])?;
        let mount = volume.mount()?;
        let model = overwritten(&mount)?;
        let length = records(&volume, &mount.path("file"))?[0];
        ensure!(length <= 350, "1500 writes left {length} records");
        ensure!(
            fs::read(mount.path("file"))? == model,
            "content while mounted"
        );
        run_ok(volume.command(["compact"])?.arg(mount.root()))?;
        same("records", records(&volume, &mount.path("file"))?, vec![1])?;
        ensure!(
            fs::read(mount.path("file"))? == model,
            "content after compact"
        );
        mount.unmount()?;
        tool(&volume, "fsck", &[])?;
        let said = tool(&volume, "gc", &["--compact", "--delete"])?;
        ensure!(said.contains("leaked objects:       0 "), "{said}");
        if let Some(juicefs) = JuiceFs::find("a compacted volume") {
            juicefs.fsck(&volume)?;
            same("objects leaked", juicefs.leaked_objects(&volume)?, 0)?;
            let mount = juicefs.mount(&volume, &[])?;
            ensure!(
                fs::read(mount.path("file"))? == model,
                "content through JuiceFS"
            );
            mount.unmount()?;
        }
        let mount = volume.mount()?;
        ensure!(
            fs::read(mount.path("file"))? == model,
            "content after a new mount"
        );
        mount.unmount()?;
    }
    Ok(())
}

fn wrong_arguments_are_refused(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let junk = volume.scratch.path("junk");
    fs::write(&junk, b"{\"Setting\": 5}")?;
    let cases: [(&str, &[&str], &[&str]); 17] = [
        (
            "config",
            &["--block-size", "1M"],
            &["--block-size", "format another"],
        ),
        ("config", &["--trash-days", "soon"], &["--trash-days"]),
        (
            "config",
            &["--upload-limit", "fast"],
            &["--upload-limit", "Mbit/s"],
        ),
        ("config", &["--bucket", "/nowhere/at/all"], &["bucket"]),
        (
            "config",
            &["--min-client-version", "0.1.0"],
            &["min-client-version", "lowered"],
        ),
        ("fsck", &["--path", "/nowhere"], &["/nowhere"]),
        ("fsck", &["--repair-dir-mode", "9"], &["octal"]),
        ("gc", &["--threads", "0"], &["--threads"]),
        ("dump", &["--subdir", "nowhere"], &["/nowhere"]),
        ("gc", &["--bucket", "/nowhere/at/all"], &["bucket"]),
        ("status", &["--session", "77"], &["session 77"]),
        ("status", &["--session", "mine"], &["mine", "--session"]),
        ("config", &["--dir-stats=maybe"], &["maybe", "--dir-stats"]),
        (
            "quota",
            &["set", "--path", "/", "--capacity", "lots"],
            &["--capacity", "lots"],
        ),
        (
            "quota",
            &["set", "--path", "/", "--uid", "3", "--inodes", "5"],
            &["--path", "--uid"],
        ),
        ("quota", &["get"], &["--path", "--uid"]),
        ("quota", &["get", "--path", "/nowhere"], &["/nowhere"]),
    ];
    for (name, options, words) in cases {
        refused_without_trace(&volume, &mut command(&volume, name, options)?, words)?;
    }
    for (file, words) in [
        (&junk, "empty"),
        (&volume.scratch.path("none"), "cannot be read"),
    ] {
        let mut load = command(&volume, "load", &[])?;
        refused_without_trace(&volume, load.arg(file), &[words])?;
    }
    let mut packed = command(&volume, "dump", &[])?;
    refused_without_trace(&volume, packed.arg("x.json.gz"), &["gzip"])?;
    for (name, options) in [
        ("compact", &[][..]),
        ("summary", &[]),
        ("rmr", &[]),
        ("clone", &["here"]),
    ] {
        let mut outside = volume.command([name])?;
        outside.arg(volume.scratch.root()).args(options);
        refused_without_trace(&volume, &mut outside, &["mount"])?;
    }
    let mut deep = volume.command(["summary", "--depth", "99"])?;
    refused_without_trace(&volume, deep.arg(volume.scratch.root()), &["--depth", "10"])?;
    let mut hour = command(&volume, "restore", &[])?;
    refused_without_trace(&volume, hour.arg("yesterday"), &["yesterday"])?;
    let mut stranger = command(&volume, "destroy", &["--yes"])?;
    refused_without_trace(&volume, stranger.arg("not-its-uuid"), &["uuid"])?;

    let empty = Volume::unformatted(engine)?;
    for name in ["config", "fsck", "gc", "dump"] {
        refused_without_trace(&empty, &mut command(&empty, name, &[])?, &["format"])?;
    }
    let mut load = command(&empty, "load", &[])?;
    refused_without_trace(&empty, load.arg(&junk), &["setting"])
}
