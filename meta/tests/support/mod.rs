//! What the integration tests of this crate run on: the services of [`Runtime`] over smol, on one thread.

use std::fs::File;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_meta::runtime::{Address, LocalFuture, Runtime, Stream};
use sluice_meta::types::Timestamp;

/// An executor of this thread. Tasks it was given run while [`block_on`] runs and are dropped after it.
pub(crate) struct SmolRuntime {
    tasks: Rc<smol::LocalExecutor<'static>>,
}

/// Runs `test` to its end, and the tasks it spawned while it lasts.
#[allow(dead_code, reason = "not every test binary needs every helper")]
pub(crate) fn block_on<T, F: Future<Output = T>>(test: impl FnOnce(Rc<SmolRuntime>) -> F) -> T {
    let tasks = Rc::new(smol::LocalExecutor::new());
    let runtime = Rc::new(SmolRuntime {
        tasks: Rc::clone(&tasks),
    });
    smol::block_on(tasks.run(test(runtime)))
}

impl Runtime for SmolRuntime {
    fn sleep(&self, pause: Duration) -> LocalFuture<'static, ()> {
        Box::pin(async move {
            smol::Timer::after(pause).await;
        })
    }

    fn spawn(&self, task: LocalFuture<'static, ()>) {
        self.tasks.spawn(task).detach();
    }

    fn connect(&self, address: &Address) -> LocalFuture<'static, io::Result<Box<dyn Stream>>> {
        let address = address.clone();
        Box::pin(async move {
            Ok(match address {
                Address::Tcp(host, port) => {
                    let stream = smol::net::TcpStream::connect((host.as_str(), port)).await?;
                    stream.set_nodelay(true)?;
                    Box::new(stream) as Box<dyn Stream>
                }
                Address::Unix(path) => Box::new(smol::net::unix::UnixStream::connect(path).await?),
            })
        })
    }

    fn fdatasync(&self, file: Arc<File>) -> LocalFuture<'static, io::Result<()>> {
        Box::pin(smol::unblock(move || file.sync_data()))
    }

    fn now(&self) -> Timestamp {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp {
            sec: since.as_secs().cast_signed(),
            nsec: since.subsec_nanos(),
        }
    }
}
