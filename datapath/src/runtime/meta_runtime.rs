//! The services the metadata crate needs of its executor, given by glommio.
//!
//! One [`GlommioRuntime`] per core, shared as `Rc<dyn Runtime>` by everything of the metadata crate on that
//! core. It owns the tasks spawned through it: they often hold the runtime in turn, so the core calls
//! [`GlommioRuntime::shutdown`] to break that circle.
//!
//! Nothing here blocks the core: names are resolved on the blocking pool, connecting, timers and
//! synchronising files are requests of the ring.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use glommio::net::{TcpStream, UnixStream};
use sluice_meta::runtime::{Address, LocalFuture, Runtime, Stream};
use sluice_meta::types::Timestamp;

use super::tasks::Tasks;
use super::{Timer, adopt, blocking};

/// Longest attempt to connect to one address: a host that drops packets would otherwise hold a mount for
/// the kernel's two minutes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Default)]
pub struct GlommioRuntime {
    tasks: Tasks,
}

impl GlommioRuntime {
    /// For the executor of the calling thread.
    pub fn new() -> GlommioRuntime {
        GlommioRuntime::default()
    }

    /// Drops the tasks that were spawned, and any later one.
    pub fn shutdown(&self) {
        self.tasks.cancel();
    }
}

impl Runtime for GlommioRuntime {
    /// glommio-ng 0.12 registers a timer anew at every poll, forgets the old one until it is due, and looks at
    /// all of them before each park. So a timer has a task of its own that nothing else wakes; who waits for
    /// it may be polled as often as it likes. Dropping the future drops the task and the timer.
    fn sleep(&self, pause: Duration) -> LocalFuture<'static, ()> {
        Box::pin(async move {
            glommio::spawn_local(async move {
                Timer::new(pause).await;
            })
            .await;
        })
    }

    fn spawn(&self, task: LocalFuture<'static, ()>) {
        self.tasks.spawn(task);
    }

    fn connect(&self, address: &Address) -> LocalFuture<'static, io::Result<Box<dyn Stream>>> {
        match address.clone() {
            Address::Tcp(host, port) => Box::pin(connect_tcp(host, port)),
            Address::Unix(path) => Box::pin(async move {
                let stream = UnixStream::connect(path).await?;
                Ok(Box::new(stream) as Box<dyn Stream>)
            }),
        }
    }

    fn fdatasync(&self, file: Arc<File>) -> LocalFuture<'static, io::Result<()>> {
        Box::pin(async move {
            // A descriptor of its own: the ring closes what it was given.
            let file = adopt(file.try_clone()?);
            let synced = file.fdatasync().await;
            file.close().await?;
            Ok(synced?)
        })
    }

    fn now(&self) -> Timestamp {
        // A clock before 1970 is a machine without a clock; times then start at zero.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp {
            sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nsec: since.subsec_nanos(),
        }
    }
}

/// Tries the addresses of the host in order; the last one's error if none answers.
async fn connect_tcp(host: String, port: u16) -> io::Result<Box<dyn Stream>> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no addresses");
    for address in resolve(host, port).await? {
        match TcpStream::connect_timeout(address, CONNECT_TIMEOUT).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(Box::new(stream));
            }
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

/// Literal addresses are answered at once, names by the blocking pool.
async fn resolve(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    blocking(move || Ok((host.as_str(), port).to_socket_addrs()?.collect())).await
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::rc::Rc;

    use futures_lite::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::runtime::run_on_one;

    /// Answers the first four bytes of one connection with their upper case.
    fn answer(mut stream: impl Read + Write) {
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(&word.to_ascii_uppercase()).unwrap();
    }

    async fn ask(address: Address) -> [u8; 4] {
        let mut stream = GlommioRuntime::new().connect(&address).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        stream.flush().await.unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.unwrap();
        word
    }

    #[test]
    fn tcp_by_address_and_by_name() {
        for host in ["127.0.0.1", "localhost"] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = std::thread::spawn(move || answer(listener.accept().unwrap().0));
            let word = run_on_one(|| ask(Address::Tcp(host.into(), port))).unwrap();
            assert_eq!(&word, b"PING");
            server.join().unwrap();
        }
    }

    #[test]
    fn unix_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || answer(listener.accept().unwrap().0));
        assert_eq!(&run_on_one(|| ask(Address::Unix(path))).unwrap(), b"PING");
        server.join().unwrap();
    }

    #[test]
    fn refused_connection_is_an_error() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let refused = run_on_one(|| async move {
            let address = Address::Tcp("127.0.0.1".into(), port);
            GlommioRuntime::new()
                .connect(&address)
                .await
                .err()
                .map(|error| error.kind())
        });
        assert_eq!(refused.unwrap(), Some(io::ErrorKind::ConnectionRefused));
    }

    #[test]
    fn sync_leaves_the_file_open() {
        run_on_one(|| async {
            let file = Arc::new(tempfile::tempfile().unwrap());
            let runtime = GlommioRuntime::new();
            runtime.fdatasync(Arc::clone(&file)).await.unwrap();
            (&*file).write_all(b"still open").unwrap();
            runtime.sleep(Duration::from_micros(10)).await;
        })
        .unwrap();
    }

    #[test]
    fn shutdown_breaks_the_circle_of_tasks() {
        run_on_one(|| async {
            let runtime = Rc::new(GlommioRuntime::new());
            let held = Rc::clone(&runtime);
            runtime.spawn(Box::pin(async move {
                held.sleep(Duration::from_secs(1000)).await;
            }));
            crate::runtime::breathe().await;
            assert_eq!(Rc::strong_count(&runtime), 2);
            runtime.shutdown();
            assert_eq!(Rc::strong_count(&runtime), 1);
        })
        .unwrap();
    }
}
