//! One FUSE connection, from INIT to the end of the mount.
//!
//! Made by the server after `mount`, before executors start; then asked once per core for its queue.
//! Owns the descriptor the mount was made with: as long as it is open, the connection lives even with
//! no queue left. INIT is answered here, on the caller's thread, because nothing else can be read
//! before it and its answer decides the size of every buffer.
//!
//! Failure of the handshake takes the mount down again, so that nobody waits on it.
#![allow(
    unsafe_code,
    reason = "waiting for one descriptor outside of an executor is poll(2)"
)]

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::abi::{InitIn, MIN_READ_BUFFER};
use super::buffer::BufferPool;
use super::device::Device;
use super::mount::{self, Mounted};
use super::negotiate::{NegotiateError, NegotiateOptions, Negotiated, negotiate};
use super::notify::{NoticeSender, Notifier};
use super::op::{DecodeError, Op};
use super::queue::QueueError;
use super::queue_dev::{DevQueue, QueueOptions};
use super::request::Request;

/// The kernel queues INIT while it mounts, so it is there at once; a kernel that takes longer is broken.
const INIT_WAIT: Duration = Duration::from_secs(10);

/// What the server may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// For INIT.
    pub negotiate: NegotiateOptions,
    /// For each core's queue.
    pub queue: QueueOptions,
    /// Readahead of the mount in KiB, set where permitted. INIT alone cannot exceed the kernel's 128:
    /// at 1024 a buffered scan takes an eighth of the requests.
    pub read_ahead_kib: u32,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions {
            negotiate: NegotiateOptions::default(),
            queue: QueueOptions::default(),
            read_ahead_kib: 1024,
        }
    }
}

/// The handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Versions do not match.
    #[error(transparent)]
    Negotiate(#[from] NegotiateError),
    /// The first message is not INIT, or not readable as such.
    #[error("the kernel's first message is not a valid INIT: {0}")]
    NotInit(String),
    /// Nothing came.
    #[error("the kernel sent no INIT within {} seconds", INIT_WAIT.as_secs())]
    NoInit,
    /// Reading or answering failed.
    #[error("FUSE handshake: {0}")]
    Io(#[from] io::Error),
}

impl From<DecodeError> for SessionError {
    fn from(error: DecodeError) -> SessionError {
        SessionError::NotInit(error.to_string())
    }
}

/// A live connection.
#[derive(Debug)]
pub struct Session {
    device: Arc<Device>,
    negotiated: Negotiated,
    mountpoint: PathBuf,
    device_number: Option<(u32, u32)>,
    queue: QueueOptions,
}

impl Session {
    /// Performs the handshake. Blocks, for as long as the kernel takes to send INIT: microseconds.
    pub fn start(mounted: Mounted, options: &SessionOptions) -> Result<Session, SessionError> {
        let Mounted {
            fd,
            mountpoint,
            device_number,
        } = mounted;
        let device = Arc::new(Device::new(fd));
        let negotiated = match handshake(&device, &options.negotiate) {
            Ok(negotiated) => negotiated,
            Err(error) => {
                if let Err(error) = mount::unmount(&mountpoint, true) {
                    tracing::warn!(%error, "cannot take down the mount after a failed handshake");
                }
                return Err(error);
            }
        };
        if let Some(number) = device_number {
            mount::raise_read_ahead(number, options.read_ahead_kib);
        }
        tracing::info!(
            mountpoint = %mountpoint.display(),
            minor = negotiated.minor,
            flags = format_args!("{:#x}", negotiated.flags),
            max_write = negotiated.max_write,
            "FUSE connection ready"
        );
        Ok(Session {
            device,
            negotiated,
            mountpoint,
            device_number,
            queue: options.queue,
        })
    }

    /// What was agreed on.
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Major and minor device number of the mount (`st_dev`); the minor names the connection in
    /// `/sys/fs/fuse/connections`.
    pub fn device_number(&self) -> Option<(u32, u32)> {
        self.device_number
    }

    /// The queue of the calling core: call it on the executor that will serve it.
    pub fn queue_for_core(&self) -> Result<DevQueue, QueueError> {
        DevQueue::new(&self.device, self.negotiated.max_write, &self.queue)
    }

    /// Sends invalidations and blocks meanwhile.
    pub fn notices(&self) -> NoticeSender {
        NoticeSender::new(Arc::clone(&self.device))
    }

    /// Takes orders for invalidations on any core; has a thread of its own that sends them.
    pub fn notifier(&self) -> io::Result<Notifier> {
        Notifier::start(self.notices())
    }

    /// Unmounts: every queue ends with [`QueueError::Unmounted`] once nobody uses the mount any more.
    pub fn unmount(&self, lazy: bool) -> Result<(), mount::MountError> {
        mount::unmount(&self.mountpoint, lazy)
    }
}

/// Reads INIT and answers it.
fn handshake(device: &Arc<Device>, options: &NegotiateOptions) -> Result<Negotiated, SessionError> {
    let mut buffer = BufferPool::new(MIN_READ_BUFFER, 0).take()?;
    let bytes = loop {
        match device.read(buffer.space()) {
            Ok(bytes) => break bytes,
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => wait_readable(device)?,
                Some(libc::EINTR | libc::ENOENT) => {}
                _ => return Err(error.into()),
            },
        }
    };
    let request = Request::from_buffer(buffer, bytes, device.clone(), None)?;
    let offer = match request.op() {
        Ok(Op::Init(offer)) => offer,
        Ok(_) => return Err(refuse(request, "another operation")),
        Err(error) => return Err(refuse(request, &error.to_string())),
    };
    answer(request, &offer, options)
}

fn refuse(request: Request, why: &str) -> SessionError {
    request.error(libc::EPROTO);
    SessionError::NotInit(why.to_owned())
}

fn answer(
    request: Request,
    offer: &InitIn,
    options: &NegotiateOptions,
) -> Result<Negotiated, SessionError> {
    match negotiate(offer, options) {
        Ok(negotiated) => {
            let delivery = request.into_reply().init(&negotiated.out);
            if delivery.is_delivered() {
                return Ok(negotiated);
            }
            let why = format!("the answer to INIT was not taken: {delivery:?}");
            Err(SessionError::Io(io::Error::other(why)))
        }
        Err(error) => {
            request.error(libc::EPROTO);
            Err(error.into())
        }
    }
}

/// Waits until the descriptor can be read.
fn wait_readable(device: &Device) -> Result<(), SessionError> {
    let mut poll = libc::pollfd {
        fd: device.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one element, owned by this frame; the descriptor is open for the duration of the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, INIT_WAIT.as_millis() as libc::c_int) };
    match ready {
        0 => Err(SessionError::NoInit),
        1.. => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            error => Err(error.into()),
        },
    }
}
