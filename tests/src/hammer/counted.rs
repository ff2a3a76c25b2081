//! Work whose outcome is known, on all mounts at once: exclusive creates, what they guard, appended records.
//!
//! All threads are in this process, so that a plain atomic tells who holds what: the file system is compared
//! with it, never asked about itself.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Hand;
use crate::deadline::{patience, wait_until};

/// Tokens, each a name that is created exclusively and removed, again and again.
const TOKENS: usize = 3;

/// One token: who holds it, and what its counter must be.
#[derive(Default)]
struct Token {
    held: AtomicBool,
    wins: AtomicU64,
}

/// What must be there at the end.
#[derive(Default)]
pub struct Ledger {
    tokens: [Token; TOKENS],
    /// By name of the log: how many records each thread has appended.
    appended: Mutex<BTreeMap<String, BTreeMap<String, u64>>>,
}

/// Makes the directories and counters.
pub fn prepare(base: &Path) -> Result<()> {
    fs::create_dir_all(base.join("counted"))?;
    for token in 0..TOKENS {
        fs::write(base.join(format!("counted/value{token}")), b"0")?;
    }
    Ok(())
}

/// Operations until there are no more to do.
pub fn work(hand: &mut Hand) -> Result<()> {
    let mut appended = 0;
    let log = hand.name.split('.').next().unwrap_or_default().to_owned();
    let mut open = None;
    while hand.more() {
        if hand.random.bool() {
            try_token(hand)?;
        } else {
            append(hand, &log, appended, &mut open)?;
            appended += 1;
        }
    }
    let mut all = hand
        .ledger()
        .appended
        .lock()
        .map_err(|_| anyhow!("poisoned"))?;
    all.entry(log)
        .or_default()
        .insert(hand.name.clone(), appended);
    Ok(())
}

/// Who creates the token's name is alone until it removes it: it adds one to the guarded counter, through open
/// and close, which every later winner must see.
fn try_token(hand: &mut Hand) -> Result<()> {
    let number = hand.random.usize(0..TOKENS);
    let token = hand.base.join(format!("counted/token{number}"));
    let value = hand.base.join(format!("counted/value{number}"));
    let state = &hand.ledger().tokens[number];
    hand.begin(&format!("exclusive create of {token:?}"))?;
    let created = OpenOptions::new().write(true).create_new(true).open(&token);
    match created {
        Ok(_) => {}
        Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => return Ok(()),
        Err(error) => return Err(anyhow!(error).context(format!("creating {token:?}"))),
    }
    ensure!(
        !state.held.swap(true, Ordering::SeqCst),
        "{token:?} was created exclusively by two at once"
    );
    let wins = state.wins.load(Ordering::SeqCst);
    hand.begin(&format!("adding one to {value:?}"))?;
    let text = fs::read_to_string(&value).with_context(|| format!("reading {value:?}"))?;
    ensure!(
        text.trim() == wins.to_string(),
        "{value:?} holds {text:?} after {wins} increments: an update was lost"
    );
    fs::write(&value, (wins + 1).to_string()).with_context(|| format!("writing {value:?}"))?;
    state.wins.store(wins + 1, Ordering::SeqCst);
    // Before the name is gone: from then on another may win.
    state.held.store(false, Ordering::SeqCst);
    hand.begin(&format!("unlink of {token:?}"))?;
    fs::remove_file(&token).with_context(|| format!("removing {token:?}, which is ours"))
}

/// One record at the end of this mount's log, through a descriptor that stays open for a while.
fn append(hand: &mut Hand, log: &str, number: u64, open: &mut Option<File>) -> Result<()> {
    let path = hand.base.join(format!("counted/log-{log}"));
    hand.begin(&format!("append of record {number} to {path:?}"))?;
    if hand.random.u32(0..8) == 0 {
        *open = None;
    }
    let file = match open {
        Some(file) => file,
        None => open.insert(
            OpenOptions::new()
                .append(true)
                .create(true)
                .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
                .open(&path)
                .with_context(|| format!("opening {path:?}"))?,
        ),
    };
    let record = format!("{} {number:06}\n", hand.name);
    let written = file
        .write(record.as_bytes())
        .with_context(|| format!("appending to {path:?}"))?;
    ensure!(
        written == record.len(),
        "{path:?}: a short write, {written}"
    );
    Ok(())
}

impl Ledger {
    /// How often tokens were won and records appended.
    pub fn counts(&self) -> Result<(u64, u64)> {
        let wins = self
            .tokens
            .iter()
            .map(|token| token.wins.load(Ordering::SeqCst));
        let appended = self.appended.lock().map_err(|_| anyhow!("poisoned"))?;
        let appended = appended.values().flat_map(BTreeMap::values).sum();
        Ok((wins.sum(), appended))
    }

    /// Compares counters and logs, as this mount shows them, with what was done.
    pub fn verify(&self, base: &Path) -> Result<()> {
        for (number, token) in self.tokens.iter().enumerate() {
            let wins = token.wins.load(Ordering::SeqCst).to_string();
            let found = fs::read_to_string(base.join(format!("counted/value{number}")))?;
            ensure!(
                found == wins,
                "counter {number} is {found}, expected {wins}"
            );
            // A name that another mount removed may be remembered for the time its cache is allowed.
            wait_until("removed tokens are gone", patience(10), || {
                let left = fs::symlink_metadata(base.join(format!("counted/token{number}")));
                Ok(left.is_err())
            })?;
        }
        let appended = self.appended.lock().map_err(|_| anyhow!("poisoned"))?;
        for (log, threads) in appended.iter() {
            verify_log(&base.join(format!("counted/log-{log}")), threads)?;
        }
        Ok(())
    }
}

/// Every record once, each thread's in order.
fn verify_log(path: &Path, threads: &BTreeMap<String, u64>) -> Result<()> {
    if threads.values().all(|count| *count == 0) {
        return Ok(());
    }
    let text = fs::read_to_string(path).with_context(|| format!("reading {path:?}"))?;
    let mut next: BTreeMap<&str, u64> = BTreeMap::new();
    for (line, record) in text.lines().enumerate() {
        let (thread, number) = record
            .split_once(' ')
            .with_context(|| format!("{path:?} line {line}: {record:?}"))?;
        let expected = next.entry(thread).or_default();
        if number.parse() != Ok(*expected) {
            bail!("{path:?} line {line}: {record:?}, expected number {expected}");
        }
        *expected += 1;
    }
    for (thread, count) in threads {
        let found = next.get(thread.as_str()).copied().unwrap_or_default();
        ensure!(
            found == *count,
            "{path:?}: {found} records of {thread}, it appended {count}"
        );
    }
    Ok(())
}
