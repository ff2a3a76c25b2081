//! Ctrl-C and SIGTERM become orders: the first asks for an unmount; if the mount is still used 30 s later, or a
//! second signal arrives, the server makes everything durable and ends anyway.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::fuse::mount::MountError;

/// How long users of the mount may take to go after the first signal.
const PATIENCE: Duration = Duration::from_secs(30);

/// Watches until it is dropped.
pub struct Watch {
    handle: Handle,
    threads: Vec<JoinHandle<()>>,
}

/// Calls `order(false)` on the first signal and `order(true)` on the second or when patience ends.
pub fn watch(order: impl Fn(bool) -> Result<(), MountError> + Send + 'static) -> io::Result<Watch> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let handle = signals.handle();
    let (sender, receiver) = mpsc::channel();
    let source = std::thread::Builder::new()
        .name("sluice-signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if sender.send(signal).is_err() {
                    return;
                }
            }
        })?;
    let actor = std::thread::Builder::new()
        .name("sluice-stop".to_owned())
        .spawn(move || act(&receiver, order))?;
    Ok(Watch {
        handle,
        threads: vec![source, actor],
    })
}

fn act(signals: &mpsc::Receiver<i32>, order: impl Fn(bool) -> Result<(), MountError>) {
    if signals.recv().is_err() {
        return;
    }
    if let Err(error) = order(false) {
        tracing::error!(%error, "cannot unmount");
    }
    match signals.recv_timeout(PATIENCE) {
        Err(RecvTimeoutError::Disconnected) => {}
        Ok(_) | Err(RecvTimeoutError::Timeout) => {
            tracing::warn!("ending although the mount is still in use");
            if let Err(error) = order(true) {
                tracing::error!(%error, "cannot stop");
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.handle.close();
        for thread in self.threads.drain(..) {
            // A panic of a watcher was printed; the mount has ended.
            let _ = thread.join();
        }
    }
}
