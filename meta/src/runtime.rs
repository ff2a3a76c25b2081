//! What this crate needs of the executor it runs on. The server implements it over glommio, tests over smol.
//!
//! Everything is per thread: futures need not be `Send`.

use std::fs::File;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_io::{AsyncRead, AsyncWrite};

use crate::types::Timestamp;

/// A boxed future of this thread.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// A connected byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// Host name or address, and port.
    Tcp(String, u16),
    /// Path of a Unix socket.
    Unix(std::path::PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Services of the executor.
pub trait Runtime {
    /// Completes after `pause`.
    fn sleep(&self, pause: Duration) -> LocalFuture<'static, ()>;
    /// Runs `task` on this thread; the runtime owns it and drops it at shutdown.
    fn spawn(&self, task: LocalFuture<'static, ()>);
    /// Opens a stream (no delay on small writes).
    fn connect(&self, address: &Address) -> LocalFuture<'static, io::Result<Box<dyn Stream>>>;
    /// Makes the file's data durable without blocking this thread.
    fn fdatasync(&self, file: Arc<File>) -> LocalFuture<'static, io::Result<()>>;
    /// Wall clock.
    fn now(&self) -> Timestamp;
}
