//! Notifications: telling the kernel to drop what it caches.
//!
//! Called by whoever learns that another client changed something: [`Notifier`] takes the order on any core
//! without waiting, a thread of its own sends it. "The kernel does not have that" (ENOENT) and "the mount is
//! gone" are successes.
//!
//! Why a thread: the write blocks while the kernel takes locks that a client holds during a request to us, the
//! directory's for an entry, a page's for an inode. On an executor, the request that would free the lock could
//! not be served, and both would wait for ever. Nobody waits for the thread either, for the same reason, but a
//! lock request ([`Notifier::attributes`]), during which the kernel holds no such lock: at the end the thread stops after the notice it is at, or with the process.
//!
//! Bounded: beyond [`NOTICES_MAX`] orders that wait, the oldest is dropped. What the kernel then keeps ends with
//! its timeout, as if nobody had noticed the change.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use zerocopy::IntoBytes;

use super::abi::{self, OutHeader};
use super::device::Device;

/// Orders that may wait: far more than a burst of changes, little memory.
const NOTICES_MAX: usize = 16 << 10;

/// Takes orders to drop something; cheap to clone, may be used on any thread. The thread ends with the last
/// clone.
#[derive(Debug, Clone)]
pub struct Notifier {
    line: Arc<Line>,
}

/// The ordering side; dropped with the last [`Notifier`].
#[derive(Debug)]
struct Line {
    queue: Arc<Queue>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.queue.state.lock().closed = true;
        self.queue.arrived.notify_one();
    }
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    notices: VecDeque<Notice>,
    dropped: u64,
    closed: bool,
}

#[derive(Debug)]
enum Notice {
    Entry { parent: u64, name: Box<[u8]> },
    Inode { ino: u64, offset: i64, length: i64 },
    Attributes { ino: u64, sent: oneshot::Sender<()> },
}

impl Notifier {
    /// Starts the thread that sends.
    pub(super) fn start(sender: NoticeSender) -> io::Result<Notifier> {
        let queue = Arc::new(Queue::default());
        let orders = Arc::clone(&queue);
        // Not joined: see the module.
        std::thread::Builder::new()
            .name("sluice-notify".to_owned())
            .spawn(move || {
                while let Some(notice) = orders.next() {
                    sender.send_notice(&notice);
                    if let Notice::Attributes { sent, .. } = notice {
                        // Nobody may wait any more.
                        let _ = sent.send(());
                    }
                }
            })?;
        let line = Arc::new(Line { queue });
        Ok(Notifier { line })
    }

    /// The kernel shall drop a name it caches in a directory, whether it exists there or not. Numbers are the
    /// kernel's: 1 is the root of the mount.
    pub fn entry(&self, parent: u64, name: &[u8]) {
        let name = name.into();
        self.line.queue.push(Notice::Entry { parent, name });
    }

    /// The kernel shall drop cached attributes of an inode, and cached pages of `[offset, offset + length)`; a
    /// length of 0 means to the end, a negative offset means no pages.
    pub fn inode(&self, ino: u64, offset: i64, length: i64) {
        self.line.queue.push(Notice::Inode {
            ino,
            offset,
            length,
        });
    }

    /// The kernel has dropped cached attributes of an inode when this is over, or nothing can be done: the next
    /// read asks for them, and drops cached pages if the file was changed. The caller's request must be one
    /// during which the kernel holds no lock of a directory or page.
    pub async fn attributes(&self, ino: u64) {
        let (sent, done) = oneshot::channel();
        self.line.queue.push(Notice::Attributes { ino, sent });
        // Dropped: too many orders waited.
        let _ = done.await;
    }

    /// Orders that were dropped because too many waited.
    pub fn dropped(&self) -> u64 {
        self.line.queue.state.lock().dropped
    }
}

impl Queue {
    fn push(&self, notice: Notice) {
        let mut state = self.state.lock();
        if state.notices.len() >= NOTICES_MAX {
            state.notices.pop_front();
            state.dropped += 1;
        }
        state.notices.push_back(notice);
        drop(state);
        self.arrived.notify_one();
    }

    /// Waits for the next order; `None` at the end.
    fn next(&self) -> Option<Notice> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(notice) = state.notices.pop_front() {
                return Some(notice);
            }
            self.arrived.wait(&mut state);
        }
    }
}

/// Sends notifications on one connection, and blocks meanwhile: not for executors.
#[derive(Debug, Clone)]
pub struct NoticeSender {
    device: Arc<Device>,
}

impl NoticeSender {
    pub(super) fn new(device: Arc<Device>) -> NoticeSender {
        NoticeSender { device }
    }

    fn send_notice(&self, notice: &Notice) {
        let sent = match notice {
            Notice::Entry { parent, name } => self.inval_entry(*parent, name),
            Notice::Inode {
                ino,
                offset,
                length,
            } => self.inval_inode(*ino, *offset, *length),
            Notice::Attributes { ino, .. } => self.inval_inode(*ino, -1, 0),
        };
        if let Err(error) = sent {
            tracing::warn!(?notice, %error, "the kernel did not take a notification");
        }
    }

    /// Drops cached attributes of an inode, and cached pages of `[offset, offset + length)`; a length of 0
    /// means to the end, a negative offset means no pages.
    pub fn inval_inode(&self, ino: u64, offset: i64, length: i64) -> io::Result<()> {
        let out = abi::NotifyInvalInodeOut {
            ino,
            off: offset,
            len: length,
        };
        self.send(abi::NOTIFY_INVAL_INODE, &[out.as_bytes()])
    }

    /// Drops a cached name of a directory.
    pub fn inval_entry(&self, parent: u64, name: &[u8]) -> io::Result<()> {
        let invalid = || io::Error::from_raw_os_error(libc::ENAMETOOLONG);
        let namelen = u32::try_from(name.len()).map_err(|_| invalid())?;
        let out = abi::NotifyInvalEntryOut {
            parent,
            namelen,
            flags: 0,
        };
        self.send(abi::NOTIFY_INVAL_ENTRY, &[out.as_bytes(), name, &[0]])
    }

    /// A message without a request: number 0, and the notification's code in place of the error.
    fn send(&self, code: i32, body: &[&[u8]]) -> io::Result<()> {
        let bytes = size_of::<OutHeader>() + body.iter().map(|piece| piece.len()).sum::<usize>();
        let len = u32::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let header = OutHeader {
            len,
            error: code,
            unique: 0,
        };
        let mut pieces = vec![IoSlice::new(header.as_bytes())];
        pieces.extend(body.iter().map(|piece| IoSlice::new(piece)));
        match self.device.write(&pieces) {
            Err(error) if is_settled(&error) => Ok(()),
            result => result,
        }
    }
}

/// Whether there is nothing left to drop.
fn is_settled(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENODEV | libc::ENOTCONN)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(ino: u64) -> Notice {
        Notice::Inode {
            ino,
            offset: 0,
            length: 0,
        }
    }

    #[test]
    fn the_oldest_orders_are_dropped() {
        let queue = Queue::default();
        for ino in 0..NOTICES_MAX as u64 + 2 {
            queue.push(inode(ino));
        }
        assert_eq!(queue.state.lock().dropped, 2);
        for oldest in [2, 3] {
            let next = queue.next();
            assert!(matches!(next, Some(Notice::Inode { ino, .. }) if ino == oldest));
        }
    }

    #[test]
    fn who_waits_for_a_notice_that_is_dropped_goes_on() {
        let queue = Arc::new(Queue::default());
        let line = Line {
            queue: Arc::clone(&queue),
        };
        let notifier = Notifier {
            line: Arc::new(line),
        };
        let mut waiting = Box::pin(notifier.attributes(7));
        let poll = |waiting: &mut _| {
            futures_lite::future::block_on(futures_lite::future::poll_once(waiting))
        };
        assert!(poll(&mut waiting).is_none());
        (0..NOTICES_MAX as u64).for_each(|ino| queue.push(inode(ino)));
        assert!(poll(&mut waiting).is_some());
    }

    #[test]
    fn the_sender_ends_with_the_last_orderer() {
        let queue = Arc::new(Queue::default());
        let line = Line {
            queue: Arc::clone(&queue),
        };
        let waiting = std::thread::spawn(move || queue.next());
        drop(line);
        assert!(waiting.join().unwrap().is_none());
    }
}
