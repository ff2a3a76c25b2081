//! Calls on open files and on special files, and what the volume counts.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, FallocateFlags, FileType, Mode, OFlags, fallocate};
use rustix::io::Errno;
use sluice_tests::deadline::{patience, wait_until};
use sluice_tests::harness::{Engine, Volume, is_root};
use sluice_tests::on_both_engines;

use crate::errno::{must_fail, same};

on_both_engines!(
    appends_from_two_processes_lose_nothing,
    truncation_on_open_and_by_length,
    memory_maps_read_and_write,
    fallocate_modes,
    copy_file_range_copies,
    fifo_and_devices_work,
    statfs_follows_usage,
    inode_limit_gives_enospc,
    errors_of_wrong_types,
);

/// A shared, writable map of a whole file.
#[expect(
    unsafe_code,
    reason = "a map of a file is unsafe by nature: others may change the bytes"
)]
fn map(file: &File) -> Result<memmap2::MmapMut> {
    // SAFETY: the file belongs to this test alone, which neither truncates it nor holds references
    // into the map while it writes through the file.
    Ok(unsafe { memmap2::MmapMut::map_mut(file) }?)
}

fn appends_from_two_processes_lose_nothing(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let log = mount.path("log");
    let writer = |tag: char| {
        let script = format!("for i in $(seq 1000 1499); do echo {tag}$i-0123456789 >> log; done");
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(script)
            .current_dir(mount.root())
            .spawn()
    };
    let mut writers = [writer('a')?, writer('b')?];
    for writer in &mut writers {
        ensure!(writer.wait()?.success(), "a writer failed");
    }
    let text = fs::read_to_string(&log)?;
    let lines: BTreeSet<&str> = text.lines().collect();
    same("lines", text.lines().count(), 1000)?;
    same("different lines", lines.len(), 1000)?;
    ensure!(lines.iter().all(|line| line.len() == 16), "a line was torn");
    mount.unmount()
}

fn truncation_on_open_and_by_length(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let path = mount.path("file");
    fs::write(&path, vec![7; 300_000])?;
    drop(OpenOptions::new().write(true).truncate(true).open(&path)?);
    same("O_TRUNC", fs::metadata(&path)?.len(), 0)?;
    fs::write(&path, vec![7; 300_000])?;
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    file.set_len(100)?;
    file.set_len(200)?;
    let mut tail = vec![1; 100];
    file.read_exact_at(&mut tail, 100)?;
    same("what was cut off reads as zeros", tail, vec![0; 100])?;
    same("end", file.read_at(&mut [0; 10], 200)?, 0)?;
    // Truncation reaches handles that were open before.
    let other = File::open(&path)?;
    OpenOptions::new().write(true).open(&path)?.set_len(10)?;
    same("seen by another handle", other.metadata()?.len(), 10)?;
    same("bytes", fs::read(&path)?, vec![7; 10])?;
    file.write_all_at(b"end", 5000)?;
    same(
        "a gap reads as zeros",
        fs::read(&path)?[10..5000].iter().all(|&byte| byte == 0),
        true,
    )?;
    must_fail(
        "directory",
        rustix::fs::open(
            mount.root(),
            OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC,
            Mode::empty(),
        ),
        Errno::ISDIR,
    )?;
    drop((file, other));
    mount.unmount()
}

fn memory_maps_read_and_write(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let path = mount.path("mapped");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    let mut wanted: Vec<u8> = (0..1_000_003_u32).map(|at| (at % 251) as u8).collect();
    file.write_all_at(&wanted, 0)?;
    let mut mapped = map(&file)?;
    ensure!(mapped[..] == wanted[..], "the map shows what was written");
    for at in (0..wanted.len()).step_by(4093) {
        mapped[at] ^= 0xff;
        wanted[at] ^= 0xff;
    }
    mapped.flush()?;
    ensure!(fs::read(&path)? == wanted, "what the map changed is read");
    file.write_all_at(b"through the file", 500_000)?;
    wanted[500_000..500_016].copy_from_slice(b"through the file");
    ensure!(mapped[..] == wanted[..], "what the file changed is mapped");
    mapped[0] = b'!';
    wanted[0] = b'!';
    // No msync: closing must be enough for what is dirty in the map.
    drop(mapped);
    drop(file);
    mount.unmount()?;
    let mount = volume.mount()?;
    ensure!(
        fs::read(mount.path("mapped"))? == wanted,
        "changes by map survive a remount"
    );
    mount.unmount()
}

fn fallocate_modes(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let path = mount.path("file");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    file.write_all_at(&[7; 100_000], 0)?;
    fallocate(&file, FallocateFlags::empty(), 0, 200_000)?;
    same("extended", file.metadata()?.len(), 200_000)?;
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 900_000)?;
    same("length kept", file.metadata()?.len(), 200_000)?;
    fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        1000,
        5000,
    )?;
    let zero = FallocateFlags::ZERO_RANGE;
    fallocate(&file, zero, 50_000, 1000)?;
    fallocate(&file, zero, 199_000, 3000)?;
    same("zero range extends", file.metadata()?.len(), 202_000)?;
    fallocate(&file, zero | FallocateFlags::KEEP_SIZE, 201_000, 9000)?;
    same("zero range keeps", file.metadata()?.len(), 202_000)?;
    let mut wanted = vec![7; 100_000];
    wanted[1000..6000].fill(0);
    wanted[50_000..51_000].fill(0);
    wanted.resize(202_000, 0);
    ensure!(fs::read(&path)? == wanted, "bytes after fallocate");
    must_fail(
        "nothing",
        fallocate(&file, FallocateFlags::empty(), 0, 0),
        Errno::INVAL,
    )?;
    must_fail(
        "punch without keep",
        fallocate(&file, FallocateFlags::PUNCH_HOLE, 0, 10),
        Errno::OPNOTSUPP,
    )?;
    let read_only = File::open(&path)?;
    must_fail(
        "read handle",
        fallocate(&read_only, FallocateFlags::empty(), 0, 10),
        Errno::BADF,
    )?;
    drop((file, read_only));
    mount.unmount()
}

fn copy_file_range_copies(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let bytes: Vec<u8> = (0..6_000_000_u32).map(|at| (at * 31 % 253) as u8).collect();
    fs::write(mount.path("source"), &bytes)?;
    let source = File::open(mount.path("source"))?;
    let target = File::create_new(mount.path("target"))?;
    let (mut from, mut to) = (1000, 77);
    while from < 5_500_000 {
        let count = (5_500_000 - from) as usize;
        let copied =
            rustix::fs::copy_file_range(&source, Some(&mut from), &target, Some(&mut to), count)?;
        ensure!(copied > 0, "copy_file_range stops at {from}");
    }
    let copy = fs::read(mount.path("target"))?;
    ensure!(
        copy[..77].iter().all(|&byte| byte == 0),
        "the gap before the copy"
    );
    ensure!(copy[77..] == bytes[1000..5_500_000], "the copied bytes");
    fs::write(mount.path("source"), b"changed")?;
    ensure!(
        fs::read(mount.path("target"))? == copy,
        "the copy is its own file"
    );
    drop((source, target));
    mount.unmount()
}

fn fifo_and_devices_work(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let fifo = mount.path("fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    let mut writer = Command::new("/bin/sh")
        .arg("-c")
        .arg("echo through the fifo > fifo")
        .current_dir(mount.root())
        .spawn()?;
    let mut text = String::new();
    File::open(&fifo)?.read_to_string(&mut text)?;
    same("fifo", text.as_str(), "through the fifo\n")?;
    ensure!(writer.wait()?.success(), "the writer failed");
    let socket = std::os::unix::net::UnixListener::bind(mount.path("socket"))?;
    std::os::unix::net::UnixStream::connect(mount.path("socket"))?;
    drop(socket);
    if is_root() {
        let zero = rustix::fs::makedev(1, 5);
        let bits = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(
            CWD,
            mount.path("zero"),
            FileType::CharacterDevice,
            bits,
            zero,
        )?;
        same("device", fs::metadata(mount.path("zero"))?.rdev(), zero)?;
    }
    mount.unmount()
}

fn statfs_follows_usage(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let before = rustix::fs::statvfs(mount.root())?;
    ensure!(before.f_namemax == 255, "f_namemax {}", before.f_namemax);
    fs::write(mount.path("file"), vec![1; 10 << 20])?;
    let used = |now: rustix::fs::StatVfs| {
        (before.f_bavail as i64 - now.f_bavail as i64) * before.f_frsize as i64
    };
    wait_until("statfs shows 10 MiB more", patience(20), || {
        Ok(used(rustix::fs::statvfs(mount.root())?) == 10 << 20)
    })?;
    fs::remove_file(mount.path("file"))?;
    wait_until("statfs shows the space given back", patience(20), || {
        Ok(used(rustix::fs::statvfs(mount.root())?) == 0)
    })?;
    mount.unmount()
}

fn inode_limit_gives_enospc(engine: Engine) -> Result<()> {
    let volume = Volume::with_options(engine, &["--trash-days", "0", "--inodes", "20"])?;
    let mount = volume.mount()?;
    let limit = (0..40).find_map(|index| {
        File::create(mount.path(format!("f{index}")))
            .err()
            .map(|error| (index, error))
    });
    let (made, error) = limit.context("40 files fit in a volume of 20 inodes")?;
    same("errno", Errno::from_io_error(&error), Some(Errno::NOSPC))?;
    // The root is one; JuiceFS counts the inode about to be made as the last one that fits.
    ensure!((18..=21).contains(&made), "{made} files were made of 20");
    fs::remove_file(mount.path("f0"))?;
    wait_until(
        "a removed file makes room for another",
        patience(20),
        || Ok(File::create(mount.path("again")).is_ok()),
    )?;
    mount.unmount()
}

fn errors_of_wrong_types(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    fs::write(mount.path("file"), b"content")?;
    must_fail(
        "read a directory",
        File::open(mount.root())?.read(&mut [0; 10]),
        Errno::ISDIR,
    )?;
    must_fail(
        "list a file",
        fs::read_dir(mount.path("file")),
        Errno::NOTDIR,
    )?;
    must_fail(
        "mkdir below a file",
        fs::create_dir(mount.path("file/x")),
        Errno::NOTDIR,
    )?;
    let mut file = File::open(mount.path("file"))?;
    same("seek to the end", file.seek(SeekFrom::End(0))?, 7)?;
    same("read at the end", file.read(&mut [0; 10])?, 0)?;
    same("read far beyond", file.read_at(&mut [0; 10], 1 << 40)?, 0)?;
    let outside = volume.scratch.path("outside");
    fs::write(&outside, b"")?;
    must_fail(
        "rename across",
        fs::rename(&outside, mount.path("x")),
        Errno::XDEV,
    )?;
    must_fail(
        "link across",
        fs::hard_link(&outside, mount.path("x")),
        Errno::XDEV,
    )?;
    drop(file);
    mount.unmount()
}
