//! Every bound of this crate, with its reason.

use std::time::Duration;

/// Attempts of one operation that keeps losing its commit to others (JuiceFS gives up after 50 too).
pub const COMMIT_ATTEMPTS_MAX: u32 = 50;
/// Longest random pause between two attempts: an op that loses 50 times has waited at most 5 s.
pub const COMMIT_PAUSE_MAX: Duration = Duration::from_millis(100);
/// Inode numbers taken from the volume's counter at once (format habit of JuiceFS clients).
pub const INODE_BATCH: i64 = 1024;
/// Slice ids taken from the volume's counter at once.
pub const SLICE_BATCH: i64 = 4096;
/// Entries of one page of a directory scan: ~400 KiB of records with attributes.
pub const DIR_PAGE_ENTRIES: usize = 4096;
/// Longest name of a directory entry, bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Deepest directory a rename looks up from; a longer chain of parents is a cycle in a damaged tree.
pub const DIR_DEPTH_MAX: usize = 65_536;
/// Longest symlink target, bytes (`PATH_MAX` - 1).
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Longest name of an extended attribute, bytes.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Longest value of an extended attribute, bytes.
pub const XATTR_VALUE_BYTES_MAX: usize = 65536;
/// Largest file: 2^31 chunks of 64 MiB.
pub const FILE_BYTES_MAX: u64 = 1 << 57;
/// Heartbeat of a session; it is stale after five missed beats.
pub const HEARTBEAT: Duration = Duration::from_secs(12);
/// Directory statistics kept in memory are flushed this often.
pub const DIR_STAT_FLUSH: Duration = Duration::from_secs(1);
/// A parent's mtime younger than this is not written again by the next create or unlink in it.
pub const SKIP_DIR_MTIME: Duration = Duration::from_millis(100);
/// Unanswered requests one Redis connection may carry before callers wait.
pub const REDIS_INFLIGHT_MAX: usize = 4096;
/// Time to find a Redis server again (a restart, a failover) before requests fail.
pub const REDIS_CONNECT_BUDGET: Duration = Duration::from_secs(10);
/// A Redis server that owes replies and sends nothing for so long is taken for dead (JuiceFS's read timeout).
pub const REDIS_SILENCE_MAX: Duration = Duration::from_secs(30);
/// Connections that may be lost under one repeatable Redis request before it fails.
pub const REDIS_RESENDS_MAX: u32 = 5;
/// Keys asked for by one Redis command: it blocks the server, at about a microsecond a key.
pub const REDIS_MGET_KEYS: usize = 1000;
/// Largest batch of commits one SQLite transaction applies: keeps the write lock to milliseconds.
pub const SQLITE_COMBINE_MAX: usize = 128;
/// A change that spans at least this many chunks asks which of them have a list instead of naming each.
pub const SPARSE_CHUNKS: u64 = 10_000;
/// Chunk lists read at once while a deleted file is reclaimed.
pub const CHUNK_PAGE: usize = 256;
/// Sessions read at once.
pub const SESSION_PAGE: usize = 1000;
/// Directories whose statistics one commit changes: as JuiceFS, keeps SQLite's write lock to milliseconds.
pub const DIR_STAT_BATCH: usize = 1000;
/// A session's entry expires this many heartbeats after the last one.
pub const SESSION_BEATS: u32 = 5;
/// The job that collects deleted files takes those older than this, s: younger ones are being reclaimed by
/// whoever deleted them.
pub const DELETED_FILE_AGE: i64 = 3600;
/// ... and runs at most once in this time among all clients, s.
pub const DELETED_FILES_PERIOD: i64 = 3240;
/// Deleted files one run of that job takes: what it leaves is for the next run.
pub const DELETED_FILES_MAX: usize = 100_000;
/// Longest a request waits for a lock that another process holds on the SQLite file; JuiceFS gives up then too.
pub const SQLITE_BUSY_MAX: Duration = Duration::from_secs(40);
/// Longest random pause between two attempts to get that lock.
pub const SQLITE_BUSY_PAUSE_MAX: Duration = Duration::from_millis(10);
/// Writes between two checkpoints of the SQLite log; each dirties about two pages of 4 KiB: 4 MiB.
pub const SQLITE_CHECKPOINT_WRITES: usize = 512;
/// Pages of the SQLite log beyond which commits pause until a checkpoint has caught up: 32 MiB.
pub const SQLITE_LOG_PAGES_MAX: i64 = 8192;

const _: () = assert!(XATTR_NAME_BYTES_MAX <= 255 && NAME_BYTES_MAX <= 255);
const _: () = assert!(DIR_STAT_FLUSH.as_millis() < HEARTBEAT.as_millis());
