//! Everything we use of glommio and tokio-uring, so that either can be replaced in one place.
//!
//! Reading order: [`cores`] starts one pinned glommio executor per CPU; [`tasks`] owns what runs on one of
//! them; [`mailbox`] carries messages between them; [`remote`] is the one thread with a tokio reactor, for
//! libraries that need one; [`meta_runtime`] gives the metadata crate its services; this file has what they
//! share: [`blocking`], [`breathe`] and [`adopt`].
//!
//! Rules of an executor, which every caller relies upon (invariants `no-preemption`, `default-queues`):
//! 1. The preempt timer is an hour, in effect off, and only default-latency queues exist. glommio's run loop
//!    may park with runnable tasks when the timer (or any completion on the latency ring) fires between
//!    arming it and looking at it; with the timer off it cannot.
//! 2. So nothing preempts a task, and I/O, timers and wake-ups from other threads are looked at only when
//!    the queues run empty. A task ends its slice by awaiting something real. Yielding does not poll.
//! 3. CPU work of more than 100 us goes to [`blocking`]; loops that may find work for ever call
//!    [`breathe`] now and then.
//! 4. Waking a task from another thread is safe (default queues): `tokio::sync::oneshot` and our mailbox
//!    both do it.
//!
//! Failure: starting an executor can fail (descriptors, locked memory); a task that panics takes its core
//! down, and joining the core reports it.

pub mod cores;
pub mod mailbox;
pub mod meta_runtime;
pub mod remote;
pub mod tasks;

use std::fs::File;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

pub use glommio::io::{BufferedFile, PollableFd};
pub use glommio::timer::Timer;

pub use cores::{Cores, RuntimeError, allowed_cpus, early_init, run_on_one};
pub use mailbox::{Mailbox, PostError};
pub use meta_runtime::GlommioRuntime;
pub use remote::Remote;
pub use tasks::Tasks;

/// Long enough that a timer of it is not due before its first poll.
const BREATH: Duration = Duration::from_micros(2);

/// Runs `work` on the blocking pool of this core's executor. Must be awaited on an executor. Dropping the
/// future does not stop the work. A panic of `work` comes out of the await.
pub fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> impl Future<Output = R> {
    glommio::executor().spawn_blocking(work)
}

/// A real suspension: when this completes, every other runnable task has run and the executor has looked at
/// I/O, timers and foreign wake-ups. For loops that could otherwise go on for ever, every few hundred
/// rounds: on an idle core it takes about 50 us, as any short timer does.
pub async fn breathe() {
    let mut suspended = false;
    while !suspended {
        // A timer that is due when first polled does not suspend: then another one is tried.
        let mut timer = Timer::new(BREATH);
        poll_fn(|context| match Pin::new(&mut timer).poll(context) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => {
                suspended = true;
                Poll::Pending
            }
        })
        .await;
    }
}

/// Gives an open file to this core's ring. The executor closes it when it is dropped.
#[allow(
    unsafe_code,
    reason = "glommio takes descriptors it did not open only by number"
)]
pub fn adopt(file: File) -> BufferedFile {
    use std::os::fd::{FromRawFd, IntoRawFd};
    // SAFETY: `into_raw_fd` hands over the only owner of an open descriptor; `BufferedFile` becomes the
    // next one and closes it exactly once.
    unsafe { BufferedFile::from_raw_fd(file.into_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Instant;

    use super::*;

    #[test]
    fn breathing_lets_timers_through() {
        run_on_one(|| async {
            let fired = Rc::new(Cell::new(false));
            let tasks = Tasks::new();
            let set = Rc::clone(&fired);
            tasks.spawn(async move {
                Timer::new(Duration::from_micros(100)).await;
                set.set(true);
            });
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(1) {
                std::hint::spin_loop();
            }
            assert!(!fired.get());
            while !fired.get() {
                breathe().await;
            }
        })
        .unwrap();
    }
}
