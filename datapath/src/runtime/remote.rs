//! The one thread with a tokio reactor, for libraries that need one.
//!
//! The server starts it before the cores and stops it after them. It runs tokio-uring's runtime: a
//! current-thread tokio runtime with a ring beside it. The disk cache's tasks live on it, reached through a
//! [`Handle`] that any thread may use; a core that awaits their results is woken by a foreign waker, which is
//! safe (see `runtime`). tokio-uring is named in this file only, so that plain tokio can take its place.
//!
//! Failure: starting reports why; a panic of a task on it stays inside tokio and reaches whoever awaits it.

use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// The thread; dropping it stops it and waits for its end.
pub struct Remote {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Remote {
    /// Starts the thread.
    pub fn start() -> io::Result<Remote> {
        let (stop, stopped) = oneshot::channel();
        let (started, is_started) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("sluice-remote".into())
            .spawn(move || run(&started, stopped))?;
        let handle = is_started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the remote thread ended while starting")))?;
        Ok(Remote {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// For spawning on it, from any thread.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends it: tasks that have not finished are dropped.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the remote thread ended by a panic");
        }
    }
}

fn run(started: &mpsc::Sender<io::Result<Handle>>, stopped: oneshot::Receiver<()>) {
    let runtime = match tokio_uring::Runtime::new(&tokio_uring::builder()) {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    runtime.block_on(async {
        let _ = started.send(Ok(Handle::current()));
        // Ends when the sender is dropped.
        let _ = stopped.await;
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::runtime::run_on_one;

    #[test]
    fn a_core_awaits_work_of_the_remote_thread() {
        let remote = Remote::start().unwrap();
        let handle = remote.handle();
        let name = run_on_one(|| async move {
            let task = handle.spawn(async {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                std::thread::current().name().map(str::to_owned)
            });
            task.await.unwrap()
        });
        assert_eq!(name.unwrap().as_deref(), Some("sluice-remote"));
        remote.stop();
    }

    #[test]
    fn stopping_drops_its_tasks() {
        let remote = Remote::start().unwrap();
        let held = Arc::new(());
        let inside = Arc::clone(&held);
        remote.handle().spawn(async move {
            std::future::pending::<()>().await;
            drop(inside);
        });
        remote.stop();
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
