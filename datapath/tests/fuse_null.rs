//! The FUSE transport against the real kernel: a tiny file system in memory, served by two executors.
//!
//! Needs `/dev/fuse`, and root where it mounts without the helper; otherwise it says so and does nothing. A watchdog aborts the
//! connection if the test hangs: a client stuck in a FUSE request cannot be killed otherwise.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use memmap2::MmapMut;
use sluice_datapath::fuse::dirbuf::DirBuffer;
use sluice_datapath::fuse::mount::{self, MountError, MountMethod, MountSpec};
use sluice_datapath::fuse::op::{Op, Read, Write};
use sluice_datapath::fuse::queue::{QueueError, RequestQueue};
use sluice_datapath::fuse::reply::{AttrReply, EntryReply, Reply, StatfsReply};
use sluice_datapath::fuse::request::Request;
use sluice_datapath::fuse::session::{Session, SessionOptions};

const ROOT: u64 = 1;
const DATA: u64 = 2;
const MANY: u64 = 3;
const LATER: u64 = 4;
const LOST: u64 = 5;
const FIRST_OF_MANY: u64 = 1000;
const MANY_COUNT: u64 = 1000;
const MIB: usize = 1 << 20;
/// Long enough that only an invalidation makes the kernel ask again.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// A root with `data` (a file), `many` (a directory of 1000 files), `lost` (its open is never answered)
/// and, once it is switched on, `later`.
struct NullFs {
    data: Mutex<Vec<u8>>,
    later_exists: AtomicBool,
    write_bytes_max: AtomicU32,
    /// Writes whose data did not start on a page of our memory.
    unaligned_writes: AtomicU32,
    read_bytes_max: AtomicU32,
    /// Requests to be answered on another thread.
    elsewhere: mpsc::Sender<Request>,
}

impl NullFs {
    fn serve(&self, request: Request) {
        if matches!(request.op(), Ok(Op::Statfs)) {
            self.elsewhere
                .send(request)
                .expect("the other thread outlives the executors");
            return;
        }
        if let Some(written) = self.write(&request) {
            request.into_reply().write(written);
            return;
        }
        self.answer(request);
    }

    fn answer(&self, request: Request) {
        let node = request.header().nodeid;
        match request.op().expect("the kernel's messages decode") {
            Op::Lookup { name } => {
                let entry = match self.lookup(node, name) {
                    Some(ino) => self.entry(ino),
                    None => EntryReply::negative(FOR_EVER),
                };
                request.into_reply().entry(&entry);
            }
            Op::Getattr { .. } | Op::Setattr(_) => {
                request.into_reply().attr(&self.attr(node), FOR_EVER);
            }
            Op::Open { .. } if node == LOST => drop(request),
            Op::Open { .. } | Op::Opendir { .. } => {
                request.into_reply().open(node, 0);
            }
            Op::Read(read) => self.read(read, request.into_reply()),
            Op::Readdir(read) => self.readdir(read, false, request.into_reply()),
            Op::Readdirplus(read) => self.readdir(read, true, request.into_reply()),
            Op::Flush { .. } | Op::Release(_) | Op::Releasedir(_) | Op::Fsync { .. } => {
                request.into_reply().ok_empty();
            }
            Op::Forget { .. } | Op::BatchForget { .. } | Op::Interrupt { .. } => {
                request.into_reply().none();
            }
            _ => {
                request.error(libc::ENOSYS);
            }
        }
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Option<u64> {
        match (parent, name) {
            (ROOT, b"data") => Some(DATA),
            (ROOT, b"many") => Some(MANY),
            (ROOT, b"lost") => Some(LOST),
            (ROOT, b"later") if self.later_exists.load(Ordering::SeqCst) => Some(LATER),
            (MANY, name) => {
                let index: u64 = str::from_utf8(name)
                    .ok()?
                    .strip_prefix("file-")?
                    .parse()
                    .ok()?;
                (index < MANY_COUNT).then_some(FIRST_OF_MANY + index)
            }
            _ => None,
        }
    }

    fn attr(&self, ino: u64) -> AttrReply {
        let directory = matches!(ino, ROOT | MANY);
        let size = match ino {
            DATA => self.data.lock().unwrap().len() as u64,
            _ => 0,
        };
        AttrReply {
            ino,
            size,
            blocks: size.div_ceil(512),
            mode: if directory {
                libc::S_IFDIR | 0o755
            } else {
                libc::S_IFREG | 0o666
            },
            nlink: 1,
            uid: 7,
            gid: 8,
            blksize: 4096,
            ..AttrReply::default()
        }
    }

    fn entry(&self, ino: u64) -> EntryReply {
        let attr = self.attr(ino);
        EntryReply {
            ino,
            generation: 1,
            attr,
            entry_valid: FOR_EVER,
            attr_valid: FOR_EVER,
        }
    }

    /// Answers with pieces of an odd size, as a reader of several blocks would.
    fn read(&self, read: Read, reply: Reply) {
        self.read_bytes_max.fetch_max(read.size, Ordering::SeqCst);
        let data = self.data.lock().unwrap();
        let from = data.len().min(read.offset as usize);
        let to = data.len().min(from + read.size as usize);
        let pieces: Vec<Bytes> = data[from..to]
            .chunks(100_003)
            .map(Bytes::copy_from_slice)
            .collect();
        drop(data);
        reply.data(&pieces);
    }

    fn write(&self, request: &Request) -> Option<u32> {
        let Ok(Op::Write(Write { offset, data, .. })) = request.op() else {
            return None;
        };
        let bytes = u32::try_from(data.len()).unwrap();
        self.write_bytes_max.fetch_max(bytes, Ordering::SeqCst);
        if !data.as_ptr().addr().is_multiple_of(4096) {
            self.unaligned_writes.fetch_add(1, Ordering::SeqCst);
        }
        let mut content = self.data.lock().unwrap();
        let (from, to) = (offset as usize, offset as usize + data.len());
        if content.len() < to {
            content.resize(to, 0);
        }
        content[from..to].copy_from_slice(data);
        Some(bytes)
    }

    fn readdir(&self, read: Read, plus: bool, reply: Reply) {
        let mut entries = DirBuffer::new(read.size);
        let root = ["data", "many", "lost"]
            .map(str::to_owned)
            .into_iter()
            .zip([DATA, MANY, LOST]);
        let many = (0..MANY_COUNT).map(|index| (format!("file-{index}"), FIRST_OF_MANY + index));
        let children: Vec<(String, u64)> = if read.fh == ROOT {
            root.collect()
        } else {
            many.collect()
        };
        for (index, (name, ino)) in children.iter().enumerate().skip(read.offset as usize) {
            let (next, name) = (index as u64 + 1, name.as_bytes());
            let fits = match plus {
                true => entries.push_plus(&self.entry(*ino), next, name),
                false => entries.push(*ino, next, self.attr(*ino).mode, name),
            };
            if !fits {
                break;
            }
        }
        reply.bytes(entries.as_bytes());
    }
}

/// Answers STATFS on a thread that is no executor.
fn answer_statfs(requests: &mpsc::Receiver<Request>) {
    for request in requests {
        request.into_reply().statfs(&StatfsReply {
            blocks: 1_234_567,
            bsize: 4096,
            frsize: 4096,
            namelen: 255,
            ..StatfsReply::default()
        });
    }
}

/// Why a core's queue ended, and how many requests it served.
type CoreEnd = (QueueError, u64);

fn start_core(session: &Arc<Session>, fs: &Arc<NullFs>) -> ExecutorJoinHandle<CoreEnd> {
    let (session, fs) = (Arc::clone(session), Arc::clone(fs));
    LocalExecutorBuilder::new(Placement::Unbound)
        .preempt_timer(Duration::from_secs(3600))
        .io_memory(64 << 10)
        .spawn(move || async move {
            let queue = session.queue_for_core().expect("a queue");
            let mut served = 0;
            loop {
                match queue.next().await {
                    Ok(request) => {
                        fs.serve(request);
                        served += 1;
                    }
                    Err(end) => return (end, served),
                }
            }
        })
        .expect("an executor")
}

/// Aborts the connection unless it is told in time that the test ended.
struct Watchdog {
    done: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn arm(mountpoint: PathBuf, minor: Option<u32>) -> Watchdog {
        let (done, wait) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            if wait.recv_timeout(Duration::from_secs(30)) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the test hangs: aborting the connection");
                let file = minor.map(|minor| format!("/sys/fs/fuse/connections/{minor}/abort"));
                if file.is_none_or(|file| std::fs::write(file, "1").is_err()) {
                    // The control file system is not mounted; a forced unmount aborts as well.
                    let _ = Command::new("umount").arg("-cfl").arg(&mountpoint).status();
                }
            }
        });
        Watchdog {
            done: Some(done),
            thread: Some(thread),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.done.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes a mount down if the test panics before it does so itself.
struct MountGuard(PathBuf);

impl Drop for MountGuard {
    fn drop(&mut self) {
        match mount::unmount(&self.0, true) {
            Ok(()) | Err(MountError::NotMounted(_)) => {}
            Err(error) => eprintln!("{error}"),
        }
    }
}

/// A served mount. Fields are dropped in order: the guard before the directory.
struct Served {
    session: Arc<Session>,
    fs: Arc<NullFs>,
    cores: Vec<ExecutorJoinHandle<CoreEnd>>,
    statfs: JoinHandle<()>,
    guard: MountGuard,
    watchdog: Watchdog,
    dir: tempfile::TempDir,
}

fn spec(path: &Path, method: MountMethod) -> MountSpec {
    let mut spec = MountSpec::new(path, "null,test");
    spec.method = method;
    spec
}

fn serve(method: MountMethod) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let mounted = mount::mount(&spec(dir.path(), method)).unwrap();
    let guard = MountGuard(mounted.mountpoint.clone());
    let minor = mounted.device_number.map(|(_, minor)| minor);
    let watchdog = Watchdog::arm(mounted.mountpoint.clone(), minor);
    let session = Arc::new(Session::start(mounted, &SessionOptions::default()).unwrap());
    let (elsewhere, requests) = mpsc::channel();
    let fs = Arc::new(NullFs {
        data: Mutex::new((0..2 * MIB).map(|at| (at % 251) as u8).collect()),
        later_exists: AtomicBool::new(false),
        write_bytes_max: AtomicU32::new(0),
        unaligned_writes: AtomicU32::new(0),
        read_bytes_max: AtomicU32::new(0),
        elsewhere,
    });
    let cores = (0..2).map(|_| start_core(&session, &fs)).collect();
    let statfs = std::thread::spawn(move || answer_statfs(&requests));
    Served {
        session,
        fs,
        cores,
        statfs,
        guard,
        watchdog,
        dir,
    }
}

/// Unmounts, waits for everything to end, and checks that both queues ended as they should.
fn finish(served: Served) -> u64 {
    let Served {
        session,
        fs,
        cores,
        statfs,
        guard,
        watchdog,
        dir,
    } = served;
    session.unmount(false).unwrap();
    let ends: Vec<CoreEnd> = cores.into_iter().map(|core| core.join().unwrap()).collect();
    assert!(
        ends.iter()
            .all(|(end, _)| matches!(end, QueueError::Unmounted)),
        "{ends:?}"
    );
    // The thread ends with the last sender.
    drop(fs);
    statfs.join().unwrap();
    drop((guard, watchdog, dir));
    ends.iter().map(|(_, served)| served).sum()
}

/// Whether this test can run here; says so loudly if not. `root` if it mounts without the helper.
fn fuse_is_here(root: bool) -> bool {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let here = device.is_ok() && (is_root || !root);
    if !here {
        eprintln!(
            "SKIPPED: this test needs /dev/fuse{}",
            if root { " and root" } else { "" }
        );
    }
    here
}

fn open_direct(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap()
}

/// A megabyte at a page boundary, as O_DIRECT wants it.
fn aligned_mib(fill: u8) -> MmapMut {
    let mut memory = MmapMut::map_anon(MIB).unwrap();
    memory.fill(fill);
    memory
}

fn check_files(served: &Served) {
    let path = served.dir.path().join("data");
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(
        (metadata.len(), metadata.uid(), metadata.gid()),
        (2 * MIB as u64, 7, 8)
    );
    let missing = File::open(served.dir.path().join("missing")).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);

    let mut buffered = Vec::new();
    File::open(&path)
        .unwrap()
        .read_to_end(&mut buffered)
        .unwrap();
    assert!(
        buffered
            .iter()
            .enumerate()
            .all(|(at, &byte)| byte == (at % 251) as u8)
    );
    assert_eq!(buffered.len(), 2 * MIB);

    let direct = open_direct(&path);
    let mut memory = aligned_mib(0);
    direct.read_exact_at(&mut memory, 4096).unwrap();
    assert!(memory[..] == buffered[4096..4096 + MIB]);
    assert_eq!(
        served.fs.read_bytes_max.load(Ordering::SeqCst) as usize,
        MIB
    );

    direct.write_all_at(&aligned_mib(0xA5), MIB as u64).unwrap();
    assert_eq!(
        served.fs.write_bytes_max.load(Ordering::SeqCst) as usize,
        MIB
    );
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all(b"start")
        .unwrap();
    let content = served.fs.data.lock().unwrap();
    assert_eq!(content[..5], *b"start");
    assert!(content[5..MIB] == buffered[5..MIB]);
    assert!(content[MIB..].iter().all(|&byte| byte == 0xA5));
    assert_eq!(content.len(), 2 * MIB);
    assert_eq!(served.fs.unaligned_writes.load(Ordering::SeqCst), 0);
}

fn check_directories(served: &Served) {
    let names: HashMap<String, u64> = std::fs::read_dir(served.dir.path().join("many"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                entry.metadata().unwrap().ino(),
            )
        })
        .collect();
    assert_eq!(names.len() as u64, MANY_COUNT);
    for index in 0..MANY_COUNT {
        assert_eq!(names[&format!("file-{index}")], FIRST_OF_MANY + index);
    }
    assert_eq!(std::fs::read_dir(served.dir.path()).unwrap().count(), 3);
}

/// STATFS is answered on a thread of its own; an open that is dropped unanswered is EIO.
fn check_answers_from_elsewhere(served: &Served) {
    let output = Command::new("stat")
        .args(["-f", "-c", "%b %S"])
        .arg(served.dir.path())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "1234567 4096"
    );
    let lost = File::open(served.dir.path().join("lost")).unwrap_err();
    assert_eq!(lost.raw_os_error(), Some(libc::EIO));
}

fn check_invalidation(served: &Served) {
    let notifier = served.session.notices();
    let path = served.dir.path().join("data");
    let before = std::fs::metadata(&path).unwrap().len();
    served.fs.data.lock().unwrap().extend_from_slice(b"more");
    assert_eq!(
        std::fs::metadata(&path).unwrap().len(),
        before,
        "attributes were not cached"
    );
    notifier.inval_inode(DATA, 0, 0).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), before + 4);

    let later = served.dir.path().join("later");
    assert!(!later.exists());
    served.fs.later_exists.store(true, Ordering::SeqCst);
    assert!(!later.exists(), "the missing name was not cached");
    notifier.inval_entry(ROOT, b"later").unwrap();
    assert!(later.exists());

    notifier.inval_inode(999_999, 0, 0).unwrap();
    notifier.inval_entry(ROOT, b"unheard of").unwrap();

    // By order: nobody waits for the thread that sends it, but it does send it.
    let queued = served.session.notifier().unwrap();
    served.fs.data.lock().unwrap().extend_from_slice(b"again");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), before + 4);
    queued.inode(DATA, 0, 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    while std::fs::metadata(&path).unwrap().len() != before + 9 {
        assert!(Instant::now() < deadline, "the notification did not arrive");
        std::thread::yield_now();
    }
    assert_eq!(queued.dropped(), 0);
}

/// 2000 direct reads by four clients at once.
fn check_many_clients(served: &Served) {
    let path = served.dir.path().join("data");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let file = open_direct(&path);
                let mut memory = MmapMut::map_anon(4096).unwrap();
                for round in 0..500 {
                    file.read_exact_at(&mut memory, (round % 256) * 4096)
                        .unwrap();
                }
            });
        }
    });
}

#[test]
fn a_file_system_in_memory_serves_the_kernel() {
    if !fuse_is_here(true) {
        return;
    }
    let served = serve(MountMethod::Direct);
    assert_eq!(served.session.negotiated().max_write as usize, MIB);
    check_files(&served);
    check_directories(&served);
    check_answers_from_elsewhere(&served);
    check_invalidation(&served);
    check_many_clients(&served);
    let again = mount::mount(&spec(served.dir.path(), MountMethod::Direct)).unwrap_err();
    assert!(
        matches!(&again, MountError::AlreadyMounted { fsname, .. } if fsname == "null,test"),
        "{again}"
    );
    let (major, minor) = served.session.device_number().unwrap();
    let read_ahead = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    assert_eq!(std::fs::read_to_string(read_ahead).unwrap().trim(), "1024");
    assert!(finish(served) > 2000);
}

#[test]
fn the_helper_mounts_as_well() {
    if !fuse_is_here(false) {
        return;
    }
    let served = serve(MountMethod::Helper);
    check_files(&served);
    let info = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = served.dir.path().to_str().unwrap();
    let line = info.lines().find(|line| line.contains(path)).unwrap();
    assert!(line.contains("fuse.sluice null,test"), "{line}");
    finish(served);
}

#[test]
fn a_dead_mount_is_recognised_and_cleared() {
    if !fuse_is_here(true) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mounted = mount::mount(&spec(dir.path(), MountMethod::Direct)).unwrap();
    let _guard = MountGuard(mounted.mountpoint.clone());
    // What a killed server leaves: a mount whose connection nobody holds.
    drop(mounted);
    let error = mount::mount(&spec(dir.path(), MountMethod::Direct)).unwrap_err();
    assert!(matches!(error, MountError::Dead(_)), "{error}");
    mount::unmount(dir.path(), false).unwrap();
    assert!(matches!(
        mount::unmount(dir.path(), false),
        Err(MountError::NotMounted(_))
    ));
}

#[test]
fn the_helpers_complaint_is_the_error() {
    if !fuse_is_here(false) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path(), MountMethod::Helper);
    spec.subtype = "x".repeat(100_000);
    match mount::mount(&spec) {
        Err(MountError::Helper(text)) => assert!(!text.is_empty()),
        other => panic!("{other:?}"),
    }
}
