//! Wrong arguments and damaged volumes: one clear sentence on stderr, exit code 1, nothing changed; and
//! damage that shows only while serving costs exactly what is damaged.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::io::Errno;
use sluice_tests::content::{Content, Fill, Subject};
use sluice_tests::deadline::patience;
use sluice_tests::golden::unpack;
use sluice_tests::harness::{Engine, Scratch, Volume, check, run, sluice_command};
use sluice_tests::on_both_engines;
use sluice_tests::snapshot::Snapshot;

/// Runs a command that must be refused: exit code 1, nothing on stdout, one line on stderr that holds
/// every one of `words` (case aside).
fn refused(command: &mut Command, words: &[&str]) -> Result<()> {
    let output = run(command, patience(30))?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let shown = format!(
        "{command:?} ended with {}, stderr:\n{stderr}",
        output.status
    );
    ensure!(
        output.status.code() == Some(1),
        "expected exit code 1: {shown}"
    );
    ensure!(
        output.stdout.is_empty(),
        "expected nothing on stdout: {shown}"
    );
    let lines: Vec<&str> = stderr
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    ensure!(lines.len() == 1, "expected one sentence: {shown}");
    for word in words {
        ensure!(
            lines[0].to_lowercase().contains(&word.to_lowercase()),
            "expected \"{word}\" in the message: {shown}"
        );
    }
    Ok(())
}

/// As `refused`, and the volume, its objects and the mount table are what they were.
pub(crate) fn refused_without_trace(
    volume: &Volume,
    command: &mut Command,
    words: &[&str],
) -> Result<()> {
    let before = Snapshot::take(volume)?;
    refused(command, words)?;
    ensure!(
        Snapshot::take(volume)? == before,
        "{command:?} was refused and changed something"
    );
    Ok(())
}

fn mount_command(volume: &Volume, options: &[&str], mount_point: &Path) -> Result<Command> {
    let mut command = volume.command(["mount"])?;
    command
        .args(&volume.mount_options)
        .args(options)
        .arg(&volume.meta_url)
        .arg(mount_point);
    Ok(command)
}

on_both_engines!(
    missing_volume,
    bucket_that_is_not_a_directory,
    mount_point_not_usable,
    corrupted_setting,
    newer_meta_version,
    unknown_feature_is_read_only,
    bad_option_values,
    damaged_block_is_eio_for_its_range_only,
    missing_block_is_eio_and_not_zeros,
    damaged_record_is_eio_for_its_file_only,
);

fn missing_volume(engine: Engine) -> Result<()> {
    let volume = Volume::unformatted(engine)?;
    let mount_point = volume.new_mount_point()?;
    let mut command = mount_command(&volume, &[], &mount_point)?;
    refused_without_trace(&volume, &mut command, &["format"])?;
    if engine == Engine::Sqlite {
        ensure!(!volume.sqlite_path()?.exists(), "mount made a database");
    }
    refused_without_trace(
        &volume,
        volume.command(["status"])?.arg(&volume.meta_url),
        &["format"],
    )
}

#[test]
fn wrong_scheme() {
    check(|| {
        let scratch = Scratch::new()?;
        let mount_point = scratch.dir("mnt")?;
        for (url, word) in [
            ("mysql://u:p@(localhost:3306)/db", "mysql"),
            ("http://example.org/volume", "http"),
            ("no-scheme-at-all", "no-scheme-at-all"),
            ("sqlite3://", "sqlite3"),
            ("", "metadata URL"),
        ] {
            for mut command in [
                sluice_command(["mount", url])?,
                sluice_command(["format", url])?,
                sluice_command(["status", url])?,
            ] {
                match command.get_args().next().and_then(|arg| arg.to_str()) {
                    Some("mount") => command.arg(&mount_point),
                    Some("format") => command.arg("volume"),
                    _ => &mut command,
                };
                // Relative paths in URLs must not leave anything in the tests' own directory.
                refused(command.current_dir(scratch.root()), &[word])?;
            }
        }
        let left: Vec<_> = std::fs::read_dir(scratch.root())?.collect::<Result<_, _>>()?;
        ensure!(left.len() == 1, "something was made: {left:?}");
        Ok(())
    });
}

#[test]
fn password_in_a_url_is_not_shown() {
    check(|| {
        let scratch = Scratch::new()?;
        let port = closed_port()?;
        let mut command = sluice_command(["status"])?;
        command.arg(format!("redis://user:verysecret@127.0.0.1:{port}/1"));
        let output = run(command.current_dir(scratch.root()), patience(60))?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !stderr.contains("verysecret"),
            "the password is shown: {stderr}"
        );
        ensure!(
            stderr.contains(&port.to_string()),
            "the address is not named: {stderr}"
        );
        Ok(())
    });
}

#[test]
fn bad_name() {
    check(|| {
        for name in [
            "Capitals",
            "a",
            "with space",
            "-dash",
            "under_score",
            &"n".repeat(64),
            "",
        ] {
            let volume = Volume::unformatted(Engine::Sqlite)?;
            let mut command = volume.command(["format", "--bucket"])?;
            command
                .arg(&volume.bucket)
                .arg(&volume.meta_url)
                .arg("--")
                .arg(name);
            refused_without_trace(&volume, &mut command, &["name", name])?;
        }
        Ok(())
    });
}

#[test]
fn unreachable_redis() {
    check(|| {
        let scratch = Scratch::new()?;
        let address = format!("127.0.0.1:{}", closed_port()?);
        let url = format!("redis://{address}/1");
        let mount_point = scratch.dir("mnt")?;
        refused(
            sluice_command(["mount", &url])?.arg(&mount_point),
            &[&address],
        )?;
        refused(
            &mut sluice_command(["format", &url, "volume"])?,
            &[&address],
        )?;
        let socket = scratch.path("no.sock");
        let url = format!("unix://{}?db=1", socket.display());
        refused(
            sluice_command(["mount", &url])?.arg(&mount_point),
            &["no.sock"],
        )
    });
}

// A port on which nobody listens: bound and given back. Another process could take it in between, then
// the test fails, since it is no Redis.
fn closed_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn bucket_that_is_not_a_directory(engine: Engine) -> Result<()> {
    let volume = Volume::unformatted(engine)?;
    let file = volume.scratch.path("just-a-file");
    std::fs::write(&file, b"")?;
    let mut format = volume.command(["format", "--bucket"])?;
    format.arg(&file).arg(&volume.meta_url).arg("volume");
    refused_without_trace(&volume, &mut format, &["just-a-file", "directory"])?;

    let volume = Volume::new(engine)?;
    std::fs::write(volume.scratch.path("just-a-file"), b"")?;
    let mount_point = volume.new_mount_point()?;
    for name in ["just-a-file", "not-there"] {
        let path = volume.scratch.path(name);
        let options = ["--bucket", path.to_str().context("scratch path is UTF-8")?];
        let mut mount = mount_command(&volume, &options, &mount_point)?;
        refused_without_trace(&volume, &mut mount, &[name])?;
        ensure!(
            name != "not-there" || !path.exists(),
            "mount made the bucket"
        );
    }
    Ok(())
}

fn mount_point_not_usable(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let refuse = |mount_point: &Path, words: &[&str]| {
        refused_without_trace(
            &volume,
            &mut mount_command(&volume, &[], mount_point)?,
            words,
        )
    };
    let not_there = volume.scratch.path("not-there");
    refuse(&not_there, &["not-there", "exist"])?;
    ensure!(!not_there.exists(), "the mount point was made");
    let file = volume.scratch.path("just-a-file");
    std::fs::write(&file, b"")?;
    refuse(&file, &["just-a-file", "directory"])?;
    let full = volume.scratch.dir("full")?;
    std::fs::write(full.join("something"), b"")?;
    refuse(&full, &["full", "empty"])?;
    let mount = volume.mount()?;
    let here = |mount_point: &Path| -> Result<usize> {
        // Other tests mount at the same time; only what is mounted here counts.
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        let place = format!(" {} ", mount_point.display());
        Ok(table.lines().filter(|line| line.contains(&place)).count())
    };
    ensure!(here(mount.root())? == 1, "one mount to begin with");
    refused(
        &mut mount_command(&volume, &[], mount.root())?,
        &["mnt0", "mounted"],
    )?;
    ensure!(here(mount.root())? == 1, "mounts changed");
    std::fs::write(mount.path("still"), b"working")?;
    mount.unmount()
}

#[test]
fn umount_and_info_of_what_is_not_mounted() {
    check(|| {
        let scratch = Scratch::new()?;
        let plain = scratch.dir("plain-directory")?;
        refused(
            sluice_command(["umount"])?.arg(&plain),
            &["plain-directory", "mount"],
        )?;
        refused(
            sluice_command(["umount"])?.arg(scratch.path("not-there")),
            &["not-there"],
        )?;
        refused(sluice_command(["info"])?.arg(&plain), &["plain-directory"])
    });
}

#[test]
fn wrong_passphrase() {
    check(|| {
        let mut golden = unpack("zstd-encrypted")?;
        let volume = &mut golden.volume;
        let mount_point = volume.new_mount_point()?;
        for passphrase in [None, Some("not-golden-pass")] {
            volume.environment = passphrase
                .map(|text| ("JFS_RSA_PASSPHRASE".into(), text.into()))
                .into_iter()
                .collect();
            let mut command = mount_command(volume, &["--read-only"], &mount_point)?;
            refused_without_trace(volume, &mut command, &["JFS_RSA_PASSPHRASE"])?;
        }
        Ok(())
    });
}

/// Applies `edit` to the volume's setting, whatever the engine.
fn edit_setting(volume: &Volume, edit: impl FnOnce(String) -> Result<String>) -> Result<()> {
    if let Some(server) = &volume.redis {
        let mut connection = server.connection(1)?;
        let text: String = redis::cmd("GET").arg("setting").query(&mut connection)?;
        redis::cmd("SET")
            .arg("setting")
            .arg(edit(text)?)
            .exec(&mut connection)?;
    } else {
        let database = rusqlite::Connection::open(volume.sqlite_path()?)?;
        let read = "SELECT value FROM jfs_setting WHERE name = 'format'";
        let text: String = database.query_row(read, [], |row| row.get(0))?;
        let write = "UPDATE jfs_setting SET value = ?1 WHERE name = 'format'";
        ensure!(database.execute(write, [edit(text)?])? == 1);
    }
    Ok(())
}

fn set_field(volume: &Volume, field: &str, value: serde_json::Value) -> Result<()> {
    edit_setting(volume, |text| {
        let mut setting: serde_json::Value = serde_json::from_str(&text)?;
        setting[field] = value;
        Ok(serde_json::to_string(&setting)?)
    })
}

fn corrupted_setting(engine: Engine) -> Result<()> {
    let damages: [fn(String) -> String; 3] = [
        |text| text[..text.len() / 2].to_string(),
        |_| String::new(),
        |_| "[1, 2, 3]".to_string(),
    ];
    for damage in damages {
        let volume = Volume::new(engine)?;
        edit_setting(&volume, |text| Ok(damage(text)))?;
        let mount_point = volume.new_mount_point()?;
        let mut command = mount_command(&volume, &[], &mount_point)?;
        refused_without_trace(&volume, &mut command, &["setting"])?;
        let status = &mut volume.command(["status"])?;
        refused_without_trace(&volume, status.arg(&volume.meta_url), &["setting"])?;
    }
    Ok(())
}

fn newer_meta_version(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    set_field(&volume, "MetaVersion", 97.into())?;
    let mount_point = volume.new_mount_point()?;
    for options in [&[][..], &["--read-only"]] {
        let mut command = mount_command(&volume, options, &mount_point)?;
        refused_without_trace(&volume, &mut command, &["version", "97"])?;
    }
    Ok(())
}

/// A volume that wants every change logged: written by nobody who cannot, readable by everyone.
fn unknown_feature_is_read_only(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    std::fs::write(mount.path("file"), b"before the feature")?;
    mount.unmount()?;
    set_field(&volume, "ChangeLog", true.into())?;
    let mount_point = volume.new_mount_point()?;
    let mut command = mount_command(&volume, &["-o", "rw"], &mount_point)?;
    refused_without_trace(&volume, &mut command, &["ChangeLog", "read-only"])?;
    // Unless writing is insisted upon, the mount is read-only and says why, as mount(8) does.
    let mount = volume.mount_with(&[])?;
    ensure!(
        mount.log()?.contains("ChangeLog"),
        "the warning names the feature"
    );
    ensure!(std::fs::read(mount.path("file"))? == b"before the feature");
    let error = std::fs::write(mount.path("new"), b"").map_err(|error| error.raw_os_error());
    ensure!(
        error == Err(Some(Errno::ROFS.raw_os_error())),
        "expected EROFS: {error:?}"
    );
    mount.unmount()
}

fn bad_option_values(engine: Engine) -> Result<()> {
    let volume = Volume::unformatted(engine)?;
    let missing_key = volume.scratch.path("no-key.pem");
    let missing_key = missing_key.to_str().context("scratch path is UTF-8")?;
    for (option, value) in [
        ("--compress", "gzip9"),
        ("--storage", "punchcards"),
        ("--block-size", "12monkeys"),
        ("--trash-days", "-1"),
        ("--encrypt-rsa-key", missing_key),
    ] {
        let mut command = volume.command(["format", "--bucket"])?;
        command.arg(&volume.bucket).arg(format!("{option}={value}"));
        command.arg(&volume.meta_url).arg("volume");
        refused_without_trace(
            &volume,
            &mut command,
            &[value.rsplit('/').next().unwrap_or(value)],
        )?;
    }
    let mut command = volume.command(["format", "--no-such-option"])?;
    command.arg(&volume.meta_url).arg("volume");
    refused_without_trace(&volume, &mut command, &["--no-such-option"])
}

/// A volume with one file of 20 blocks, unmounted, and the content of the file.
fn volume_with_blocks(engine: Engine, block_bytes: u64) -> Result<(Volume, Content)> {
    let size = format!("{}K", block_bytes >> 10);
    let volume = Volume::with_options(
        engine,
        &[
            "--trash-days",
            "0",
            "--block-size",
            &size,
            "--compress",
            "lz4",
        ],
    )?;
    let mount = volume.mount()?;
    let mut subject = Subject::new(File::create_new(mount.path("file"))?);
    subject.write(0..20 * block_bytes, Fill::Noise(11), 1 << 20)?;
    std::fs::write(mount.path("other"), b"another file")?;
    subject.file.sync_all()?;
    drop(subject.file);
    mount.unmount()?;
    Ok((volume, subject.content))
}

/// The objects of the volume, by name.
fn objects(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(objects(&entry.path())?);
        } else if entry
            .path()
            .components()
            .any(|part| part.as_os_str() == "chunks")
        {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Reads the file page by page: EIO in exactly the damaged block, right bytes everywhere else.
fn only_one_block_is_lost(
    volume: &Volume,
    content: &Content,
    block_bytes: u64,
    object: &Path,
) -> Result<()> {
    let mount = volume.mount()?;
    let file = File::open(mount.path("file"))?;
    // Without readahead each read asks the server for its page and for nothing beside it.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
    let mut lost = Vec::new();
    let (mut found, mut wanted) = (vec![0; 4096], vec![0; 4096]);
    for offset in (0..content.len()).step_by(4096) {
        match file.read_exact_at(&mut found, offset) {
            Ok(()) => {
                content.bytes(offset, &mut wanted);
                ensure!(found == wanted, "wrong bytes at {offset}");
            }
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                lost.push(offset / block_bytes);
            }
            Err(error) => return Err(anyhow!(error).context(format!("at {offset}"))),
        }
    }
    let pages = (block_bytes / 4096) as usize;
    ensure!(
        lost.len() == pages,
        "{} pages lost, expected {pages}: {lost:?}",
        lost.len()
    );
    ensure!(
        lost.iter().all(|block| *block == lost[0]),
        "more than one block lost: {lost:?}"
    );
    ensure!(std::fs::read(mount.path("other"))? == b"another file");
    let name = object
        .file_name()
        .and_then(|name| name.to_str())
        .context("object name")?;
    drop(file);
    let log = mount.log()?;
    ensure!(
        log.contains(name),
        "the log does not name object {name}:\n{log}"
    );
    mount.unmount()
}

fn damaged_block_is_eio_for_its_range_only(engine: Engine) -> Result<()> {
    let block_bytes = 64 << 10;
    let (volume, content) = volume_with_blocks(engine, block_bytes)?;
    let objects = objects(&volume.bucket)?;
    ensure!(
        objects.len() >= 20,
        "only {} objects: {objects:?}",
        objects.len()
    );
    let victim = large_object(&objects, 7)?;
    let len = std::fs::metadata(victim)?.len();
    // Cut short: neither lz4 nor a length check can take that for the block.
    File::options().write(true).open(victim)?.set_len(len / 2)?;
    only_one_block_is_lost(&volume, &content, block_bytes, victim)
}

fn missing_block_is_eio_and_not_zeros(engine: Engine) -> Result<()> {
    let block_bytes = 64 << 10;
    let (volume, content) = volume_with_blocks(engine, block_bytes)?;
    let objects = objects(&volume.bucket)?;
    let victim = large_object(&objects, 3)?;
    std::fs::remove_file(victim)?;
    only_one_block_is_lost(&volume, &content, block_bytes, victim)
}

// The n-th object of the large file; the small file's object is much smaller.
fn large_object(objects: &[PathBuf], nth: usize) -> Result<&PathBuf> {
    let large = objects
        .iter()
        .filter(|path| std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 10_000));
    large.into_iter().nth(nth).context("too few large objects")
}

/// A record that cannot be decoded: the file is EIO, its neighbours are not, the log names it.
fn damaged_record_is_eio_for_its_file_only(engine: Engine) -> Result<()> {
    let (volume, _) = volume_with_blocks(engine, 64 << 10)?;
    let mount = volume.mount()?;
    let inode = {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(mount.path("file"))?.ino()
    };
    mount.unmount()?;
    match &volume.redis {
        Some(server) => {
            let mut connection = server.connection(1)?;
            let key = format!("c{inode}_0");
            redis::cmd("RPUSH")
                .arg(key)
                .arg(b"short")
                .exec(&mut connection)?;
        }
        None => {
            let database = rusqlite::Connection::open(volume.sqlite_path()?)?;
            let sql =
                "UPDATE jfs_chunk SET slices = CAST(slices || x'0102' AS BLOB) WHERE inode = ?1";
            ensure!(database.execute(sql, [inode as i64])? == 1);
        }
    }
    let mount = volume.mount()?;
    let error = std::fs::read(mount.path("file")).map_err(|error| error.raw_os_error());
    ensure!(
        error == Err(Some(Errno::IO.raw_os_error())),
        "expected EIO: {:?}",
        error.map(|b| b.len())
    );
    ensure!(std::fs::read(mount.path("other"))? == b"another file");
    let log = mount.log()?;
    ensure!(
        log.contains(&inode.to_string()),
        "the log does not name inode {inode}:\n{log}"
    );
    mount.unmount()
}
