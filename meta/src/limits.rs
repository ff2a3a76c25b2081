//! Every bound of this crate, with its reason.

use std::time::Duration;

/// Attempts of one operation that keeps losing its commit to others (JuiceFS gives up after 50 too).
pub const COMMIT_ATTEMPTS_MAX: u32 = 50;
/// Longest random pause between two attempts: an op that loses 50 times has waited at most 5 s.
pub const COMMIT_PAUSE_MAX: Duration = Duration::from_millis(100);
/// How often a commit whose answer was lost is looked for, or sent again.
pub const DOUBT_LOOKS_MAX: u32 = 8;
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
/// ACL rules kept in memory, about 200 bytes each: 25 MiB. Volumes have some dozens.
pub const ACL_RULES_MAX: usize = 1 << 17;
/// ACL rules of one page when they are loaded at mount.
pub const ACL_PAGE: usize = 1000;
/// Link targets each core keeps (JuiceFS keeps as many per process).
pub const LINK_TARGETS_MAX: usize = 10_000;
/// Longest path that is resolved at once, bytes (`PATH_MAX`).
pub const PATH_BYTES_MAX: usize = 4096;
/// With `relatime` an access time this old is renewed whatever else, s.
pub const RELATIME_AGE: i64 = 24 * 3600;
/// With `strictatime` an access time this young stays, s.
pub const STRICTATIME_AGE: i64 = 1;
/// Largest file: 2^31 chunks of 64 MiB.
pub const FILE_BYTES_MAX: u64 = 1 << 57;
/// Heartbeat of a session; it is stale after five missed beats.
pub const HEARTBEAT: Duration = Duration::from_secs(12);
/// Directory statistics kept in memory are flushed this often.
pub const DIR_STAT_FLUSH: Duration = Duration::from_secs(1);
/// Changes of quotas' usage kept in memory are written this often.
pub const QUOTA_FLUSH: Duration = Duration::from_secs(3);
/// Quotas whose usage one commit changes: keeps SQLite's write lock to milliseconds.
pub const QUOTA_BATCH: usize = 1000;
/// Quotas read at once.
pub const QUOTA_PAGE: usize = 1000;
/// Directories whose parents are remembered for quotas, about 32 bytes each.
pub const QUOTA_PARENTS_MAX: usize = 1 << 20;
/// Directories that a summary looks at side by side, as JuiceFS.
pub const SUMMARY_WIDTH: usize = 50;
/// Longest `statfs` waits for the store, as JuiceFS; then it answers from memory.
pub const STATFS_WAIT: Duration = Duration::from_millis(150);
/// A parent's mtime younger than this is not written again by the next create or unlink in it.
pub const SKIP_DIR_MTIME: Duration = Duration::from_millis(100);
/// Unanswered requests one Redis connection may carry before callers wait.
pub const REDIS_INFLIGHT_MAX: usize = 4096;
/// Time to find a Redis server again (a restart, a failover) before requests fail.
pub const REDIS_CONNECT_BUDGET: Duration = Duration::from_secs(10);
/// A Redis server that owes replies and sends nothing for so long is taken for dead (JuiceFS's read timeout).
pub const REDIS_SILENCE_MAX: Duration = Duration::from_secs(30);
/// Time one of several Redis servers has to answer before another is tried: a sentinel, a node of a cluster.
pub const REDIS_ATTEMPT_MAX: Duration = Duration::from_secs(2);
/// Connections that may be lost under one repeatable Redis request before it fails.
pub const REDIS_RESENDS_MAX: u32 = 5;
/// Keys asked for by one Redis command: it blocks the server, at about a microsecond a key.
pub const REDIS_MGET_KEYS: usize = 1000;
/// Largest batch of commits one SQLite transaction applies: keeps the write lock to milliseconds.
pub const SQLITE_COMBINE_MAX: usize = 128;
/// A change that spans at least this many chunks asks which of them have a list instead of naming each.
pub const SPARSE_CHUNKS: u64 = 10_000;
/// A chunk's list with more records is to be compacted with every further one.
pub const CHUNK_RECORDS_LONG: i64 = 350;
/// Chunks noted for compaction on a core; further ones are noted again by their next commits.
pub const LONG_LISTS_MAX: usize = 10_000;
/// Records of a chunk's list that one compaction looks at (as JuiceFS).
pub const COMPACT_RECORDS_MAX: usize = 1000;
/// Chunks of the source that one copy of a range looks at: 1 GiB.
pub const COPY_CHUNKS_MAX: u64 = 16;
/// Pieces that one copy of a range takes.
pub const COPY_RECORDS_MAX: usize = 4096;
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
/// Entries of one directory that one commit removes: as JuiceFS, keeps SQLite's write lock to milliseconds.
pub const UNLINK_BATCH: usize = 250;
/// Entries that may be left out of such a commit because they changed before all are removed one by one.
pub const UNLINK_BATCH_LEFT: usize = 16;
/// Times a directory is emptied again because others add to it while its tree is removed.
pub const REMOVE_ROUNDS_MAX: u32 = 100;
/// Directories of the trash or of an abandoned clone that are emptied at the same time: jobs run beside requests.
pub const BACKGROUND_WIDTH: usize = 2;
/// Entries that one commit of a job removes: on SQLite a commit runs on its core, at some 10 us a record.
pub const BACKGROUND_BATCH: usize = 50;
/// Entries of one directory that one commit of a clone copies.
pub const CLONE_BATCH: usize = 250;
/// Chunks of the files that one commit of a clone copies, unless one file has more: a chunk list is 24 bytes
/// for each record, up to some hundred records.
pub const CLONE_BATCH_CHUNKS: u64 = 1000;
/// Chunks of a file up to which a clone asks for each by its index; longer files are enumerated.
pub const CLONE_CHUNKS_NAMED: u64 = 16;
/// Attempts of a batch of a clone before it is split, so that one lively file does not hold up the others.
pub const CLONE_BATCH_ATTEMPTS: u32 = 3;
/// Hours that trash is kept beyond its days, as JuiceFS: the hour it came in, and one for clocks.
pub const TRASH_GRACE_HOURS: i64 = 2;
/// The jobs that empty the trash and that look for slices without references run at most once in this time
/// among all clients, s.
pub const CLEAN_UP_PERIOD: i64 = 3240;
/// Slices that one run of a job answers: what it leaves is for the next run.
pub const DEAD_SLICES_MAX: usize = 100_000;
/// Longest run of a background job, s: it is over before the next one is due.
pub const JOB_BUDGET: i64 = 50 * 60;
/// A tree that is being cloned and was not finished within this time was abandoned, s.
pub const DETACHED_AGE: i64 = 24 * 3600;
/// Records of one kind that each part of the process's memory of recent reads and commits holds in a generation:
/// about 2 x 16 x 1024 attributes and as many entries, 10 MiB.
pub const RECALL_RECORDS: usize = 1024;
/// Changes told by a Redis server and not yet looked at, beyond which the connection counts as lost: everything
/// is then looked at afresh.
pub const REDIS_PUSHES_MAX: usize = 65_536;
/// How often a connection on which nothing is asked is tried.
pub const REDIS_LISTEN_PING: Duration = Duration::from_secs(5);
/// Records read at once to tell other clients' changes from our own.
pub const ELSEWHERE_KEYS: usize = 500;
/// Longest a request waits for a lock that another process holds on the SQLite file; JuiceFS gives up then too.
pub const SQLITE_BUSY_MAX: Duration = Duration::from_secs(40);
/// Longest random pause between two attempts to get that lock.
pub const SQLITE_BUSY_PAUSE_MAX: Duration = Duration::from_millis(10);
/// Writes between two checkpoints of the SQLite log; each dirties about two pages of 4 KiB: 4 MiB.
pub const SQLITE_CHECKPOINT_WRITES: usize = 512;
/// Pages of the SQLite log beyond which commits pause until a checkpoint has caught up: 32 MiB.
pub const SQLITE_LOG_PAGES_MAX: i64 = 8192;
/// Inodes whose locks a core remembers; more are forgotten all at once and read again.
pub const LOCKED_INODES_REMEMBERED: usize = 1024;

const _: () = assert!(XATTR_NAME_BYTES_MAX <= 255 && NAME_BYTES_MAX <= 255);
const _: () = assert!(DIR_STAT_FLUSH.as_millis() < HEARTBEAT.as_millis());
const _: () = assert!(BACKGROUND_BATCH <= UNLINK_BATCH);
