//! Requests by read(2) from a cloned `/dev/fuse` descriptor, one queue per core.
//!
//! Made by `session` on the core that serves it. The kernel has one list of waiting requests for all
//! descriptors of a connection: whoever reads first gets the next one, so finding the list empty after
//! a wake-up (EAGAIN) is normal. Once read, a request belongs to the descriptor that read it.
//!
//! 1. Take a permit: `bounded`, at most `in_flight_max` requests are read and not answered. While all are
//!    out nothing is read, not even INTERRUPT, so the bound is well above what clients usually have.
//! 2. Read without blocking; on EAGAIN wait for readiness through the executor's ring.
//! 3. After `batch_max` reads in a row wait for readiness all the same. With requests waiting that
//!    wait ends at once, but it goes through the ring: nothing preempts a task, and an executor looks
//!    at I/O, timers and other cores only when its tasks suspend on something real.
//!
//! Errors of read(2): ENOENT (the request was taken back) and EINTR are retried; ENODEV is the
//! unmount, ECONNABORTED an abort; a malformed message is answered, logged and skipped; anything else
//! ends the queue.
#![allow(
    unsafe_code,
    reason = "cloning a FUSE descriptor is an ioctl without a safe wrapper"
)]

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use async_lock::Semaphore;
use glommio::io::PollableFd;

use super::abi;
use super::buffer::{Buffer, BufferPool};
use super::device::Device;
use super::queue::{QueueError, RequestQueue};
use super::request::Request;

/// Where the kernel's FUSE device is.
pub(super) const DEV_FUSE: &str = "/dev/fuse";

/// Bounds of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueOptions {
    /// Most requests read and not yet answered.
    pub in_flight_max: usize,
    /// Most buffers kept for reuse; each holds the largest WRITE, in memory once it has carried one.
    pub idle_buffers_max: usize,
    /// Most requests read in a row before the executor gets to look at everything else.
    pub batch_max: u32,
}

impl Default for QueueOptions {
    fn default() -> QueueOptions {
        QueueOptions {
            in_flight_max: 512,
            idle_buffers_max: 32,
            batch_max: 16,
        }
    }
}

/// The requests of one descriptor; stays on the executor that made it.
#[derive(Debug)]
pub struct DevQueue {
    device: Arc<Device>,
    readiness: PollableFd<Arc<Device>>,
    pool: Arc<BufferPool>,
    permits: Arc<Semaphore>,
    batch_max: u32,
    /// Reads since the last wait.
    in_row: Cell<u32>,
}

impl DevQueue {
    /// A queue on its own clone of `first`. Must be called on the executor that will serve it.
    pub(super) fn new(
        first: &Device,
        max_write: u32,
        options: &QueueOptions,
    ) -> Result<DevQueue, QueueError> {
        let device = clone_or_share(first).map_err(QueueError::Io)?;
        DevQueue::over(Arc::new(device), max_write, options)
    }

    /// A queue on this descriptor.
    fn over(
        device: Arc<Device>,
        max_write: u32,
        options: &QueueOptions,
    ) -> Result<DevQueue, QueueError> {
        let readiness = PollableFd::new(Arc::clone(&device)).map_err(ring_error)?;
        // `u32` fits: this server is built for 64-bit machines only.
        let pool = BufferPool::new(max_write as usize, options.idle_buffers_max);
        Ok(DevQueue {
            device,
            readiness,
            pool,
            permits: Arc::new(Semaphore::new(options.in_flight_max.max(1))),
            batch_max: options.batch_max.max(1),
            in_row: Cell::new(0),
        })
    }

    /// Steps 2 and 3: one message, in a buffer.
    async fn read(&self) -> Result<(Buffer, usize), QueueError> {
        loop {
            if self.in_row.get() >= self.batch_max {
                self.wait().await?;
            }
            let mut buffer = self.pool.take().map_err(QueueError::Io)?;
            match self.device.read(buffer.space()) {
                // Never from the kernel; a queue that took it for a message would spin.
                Ok(0) => return Err(QueueError::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(bytes) => {
                    self.in_row.set(self.in_row.get() + 1);
                    return Ok((buffer, bytes));
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => {
                        drop(buffer);
                        self.wait().await?;
                    }
                    Some(libc::ENOENT | libc::EINTR) => {}
                    Some(libc::ENODEV) => return Err(QueueError::Unmounted),
                    Some(libc::ECONNABORTED) => return Err(QueueError::Aborted),
                    _ => return Err(QueueError::Io(error)),
                },
            }
        }
    }

    /// Suspends until there is something to read, or the connection ended.
    async fn wait(&self) -> Result<(), QueueError> {
        self.in_row.set(0);
        self.readiness.readable().await.map_err(ring_error)
    }
}

impl RequestQueue for DevQueue {
    async fn next(&self) -> Result<Request, QueueError> {
        loop {
            let permit = self.permits.acquire_arc().await;
            let (buffer, bytes) = self.read().await?;
            match Request::from_buffer(buffer, bytes, self.device.clone(), Some(permit)) {
                Ok(request) => return Ok(request),
                Err(error) => tracing::error!(%error, "the kernel sent a malformed request"),
            }
        }
    }
}

fn ring_error(error: glommio::GlommioError<()>) -> QueueError {
    QueueError::Io(io::Error::other(error.to_string()))
}

/// A clone of `first`, or, where `/dev/fuse` may not be opened (a mount by an ordinary user on a machine
/// that restricts it), the same open file once more: that works as well, at the price of a shared lock
/// in the kernel.
fn clone_or_share(first: &Device) -> io::Result<Device> {
    clone_device(first).or_else(|error| {
        tracing::debug!(%error, "cannot clone the FUSE descriptor; sharing it");
        first.duplicate()
    })
}

fn clone_device(first: &Device) -> io::Result<Device> {
    let clone = open_device()?;
    let mut source = first.as_raw_fd().cast_unsigned();
    // SAFETY: both descriptors are open for the duration of the call, and the argument points to the
    // 32-bit number of the source, as FUSE_DEV_IOC_CLONE reads it.
    let result = unsafe {
        libc::ioctl(
            clone.as_raw_fd(),
            abi::DEV_IOC_CLONE as libc::Ioctl,
            &raw mut source,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Device::new(clone))
}

/// Opens `/dev/fuse`, non-blocking, closed on exec.
pub(super) fn open_device() -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    Ok(options.open(DEV_FUSE)?.into())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::FromRawFd;
    use std::rc::Rc;
    use std::time::Duration;

    use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};

    use super::super::abi::{InHeader, opcode};
    use super::super::request::encode_message;
    use super::*;

    /// A device of our own: a socket that keeps messages apart, and its other end, the "kernel".
    fn pair() -> (Arc<Device>, File) {
        let mut ends = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: the array has room for both descriptors.
        let result = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) };
        assert_eq!(result, 0);
        // SAFETY: both were just opened, and each is owned once.
        let [ours, theirs] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        (Arc::new(Device::new(ours)), File::from(theirs))
    }

    fn executor() -> LocalExecutor {
        LocalExecutorBuilder::new(Placement::Unbound)
            .preempt_timer(Duration::from_secs(3600))
            .io_memory(64 << 10)
            .make()
            .unwrap()
    }

    fn send(mut kernel: &File, unique: u64) {
        let header = InHeader {
            opcode: opcode::STATFS,
            unique,
            ..InHeader::default()
        };
        kernel.write_all(&encode_message(header, &[])).unwrap();
    }

    #[test]
    fn requests_come_in_order_also_after_a_wait() {
        let (device, kernel) = pair();
        executor().run(async move {
            let queue = DevQueue::over(device, 4096, &QueueOptions::default()).unwrap();
            send(&kernel, 1);
            send(&kernel, 2);
            let later = glommio::spawn_local(async move {
                send(&kernel, 3);
                kernel
            });
            for unique in 1..=3 {
                let request = queue.next().await.unwrap();
                assert_eq!(request.header().unique, unique);
                assert!(request.error(libc::ENOSYS).is_delivered());
            }
            let mut kernel = later.await;
            let mut answer = [0; 64];
            assert_eq!(kernel.read(&mut answer).unwrap(), 16);
        });
    }

    #[test]
    fn a_backlog_does_not_starve_the_executor() {
        let (device, kernel) = pair();
        (1..=100).for_each(|unique| send(&kernel, unique));
        // Other I/O of the same executor, ready from the start: heard of when the ring is looked at.
        let (other, other_end) = pair();
        send(&other_end, 1);
        executor().run(async move {
            let options = QueueOptions {
                batch_max: 8,
                ..QueueOptions::default()
            };
            let queue = DevQueue::over(device, 4096, &options).unwrap();
            let served = Rc::new(Cell::new(0));
            let seen = Rc::clone(&served);
            let other_io = glommio::spawn_local(async move {
                let other = PollableFd::new(other).unwrap();
                other.readable().await.unwrap();
                seen.get()
            });
            while served.get() < 100 {
                queue.next().await.unwrap().into_reply().ok_empty();
                served.set(served.get() + 1);
            }
            let served_before = other_io.await;
            assert!(
                served_before < 50,
                "other I/O waited for {served_before} requests"
            );
        });
    }

    #[test]
    fn no_more_is_read_than_may_be_in_flight() {
        let (device, kernel) = pair();
        (1..=3).for_each(|unique| send(&kernel, unique));
        executor().run(async move {
            let options = QueueOptions {
                in_flight_max: 2,
                ..QueueOptions::default()
            };
            let queue = Rc::new(DevQueue::over(device, 4096, &options).unwrap());
            let mut held = Vec::new();
            for _ in 0..2 {
                held.push(queue.next().await.unwrap().into_reply());
            }
            assert!(
                futures_lite::future::poll_once(queue.next())
                    .await
                    .is_none()
            );
            let reply = held.pop().unwrap();
            // Answered on another thread, as after a hop.
            let waiting = Rc::clone(&queue);
            let next = glommio::spawn_local(async move { waiting.next().await });
            std::thread::spawn(move || reply.ok_empty()).join().unwrap();
            assert_eq!(next.await.unwrap().header().unique, 3);
        });
    }

    #[test]
    fn malformed_messages_are_answered_and_skipped() {
        let (device, mut kernel) = pair();
        let header = InHeader {
            opcode: opcode::STATFS,
            unique: 7,
            ..InHeader::default()
        };
        let mut message = encode_message(header, &[]);
        message.push(0);
        kernel.write_all(&message).unwrap();
        kernel.write_all(&[1, 2, 3]).unwrap();
        send(&kernel, 8);
        executor().run(async move {
            let queue = DevQueue::over(device, 4096, &QueueOptions::default()).unwrap();
            assert_eq!(queue.next().await.unwrap().header().unique, 8);
        });
        let mut answer = [0; 64];
        assert_eq!(kernel.read(&mut answer).unwrap(), 16);
        let expected = abi::OutHeader {
            len: 16,
            error: -libc::EIO,
            unique: 7,
        };
        assert_eq!(answer[..16], *zerocopy::IntoBytes::as_bytes(&expected));
    }

    #[test]
    fn the_end_of_the_device_ends_the_queue() {
        let (device, kernel) = pair();
        drop(kernel);
        executor().run(async move {
            let queue = DevQueue::over(device, 4096, &QueueOptions::default()).unwrap();
            assert!(matches!(queue.next().await, Err(QueueError::Io(_))));
        });
    }
}
