//! One pinned glommio executor per CPU, and an unpinned one for commands.
//!
//! The server starts [`Cores`]; command-line tools call [`run_on_one`]. Owned here: the executors' threads.
//! Each executor pins three times `IO_MEMORY_BYTES` and has two more threads: its blocking pool, which may
//! run on any CPU of the process (it is created before the executor pins itself).
//!
//! Failure: [`RuntimeError`], naming the core. A core that panicked is reported by [`Cores::join`].

use std::future::Future;
use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use glommio::{LocalExecutor, LocalExecutorBuilder, Placement, PoolPlacement};

/// Locked by each executor three times over; the default limit of an ordinary user is 8 MiB in all.
const IO_MEMORY_BYTES: usize = 512 << 10;
/// Submission entries of each ring: requests beyond it wait inside glommio.
const RING_DEPTH: usize = 256;
/// In effect off; see the rules in `runtime`.
const PREEMPT_TIMER: Duration = Duration::from_secs(3600);
/// Threads of each executor's blocking pool: enough that compression does not wait behind a file's rename,
/// few enough that an idle mount has few threads.
const BLOCKING_THREADS: usize = 4;

/// Why executors could not be started or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// More cores were asked for than this process may use.
    #[error("{asked} cores were asked for, but this process may run on {allowed} only")]
    TooManyCores {
        /// Cores asked for.
        asked: usize,
        /// CPUs in the affinity mask.
        allowed: usize,
    },
    /// The affinity mask could not be read.
    #[error("the set of usable CPUs could not be read: {cause}")]
    Affinity {
        /// What reading it ended with.
        cause: String,
    },
    /// An executor could not be created.
    #[error(
        "core {core} (CPU {cpu}) could not be started: {cause}; \
         if memory could not be locked, raise the limit (LimitMEMLOCK, ulimit -l)"
    )]
    Start {
        /// Index of the core.
        core: usize,
        /// CPU it was to be pinned to.
        cpu: usize,
        /// What creating it ended with.
        cause: String,
    },
    /// A task of this core panicked.
    #[error("core {core} ended by a panic: {message}")]
    Panicked {
        /// Index of the core.
        core: usize,
        /// What the panic said.
        message: String,
    },
}

/// To be called first thing in `main`, before there are threads: registering the memory barrier that every
/// executor needs takes 30-80 ms once there are some.
pub fn early_init() {
    glommio::early_init();
}

/// CPUs the calling thread may run on, ascending.
pub fn allowed_cpus() -> Result<Vec<usize>, RuntimeError> {
    let status = std::fs::read_to_string("/proc/thread-self/status").map_err(|error| {
        RuntimeError::Affinity {
            cause: error.to_string(),
        }
    })?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .ok_or_else(|| RuntimeError::Affinity {
            cause: "no Cpus_allowed_list".into(),
        })?;
    parse_cpu_list(list.trim())
        .filter(|cpus| !cpus.is_empty())
        .ok_or_else(|| RuntimeError::Affinity {
            cause: format!("cannot read CPU list {list:?}"),
        })
}

/// The kernel's list format: `0-2,5` is 0, 1, 2 and 5.
fn parse_cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        match part.split_once('-') {
            Some((first, last)) => cpus.extend(first.parse().ok()?..=last.parse::<usize>().ok()?),
            None => cpus.push(part.parse().ok()?),
        }
    }
    Some(cpus)
}

/// The executors of a server, index 0 upwards.
pub struct Cores<T> {
    /// A thread ends with `None` only if it was never told to go, and those are not kept here.
    threads: Vec<JoinHandle<Option<T>>>,
}

/// A core whose executor exists and which waits for the word to run.
struct Ready<T> {
    go: mpsc::Sender<()>,
    thread: JoinHandle<Option<T>>,
}

impl<T: Send + 'static> Cores<T> {
    /// Starts `count` executors (one for each allowed CPU if `None`), each pinned to one CPU and running
    /// `main(index)` to its end. Either all of them run when this returns, or none does.
    pub fn start<F, Fut>(count: Option<usize>, main: F) -> Result<Cores<T>, RuntimeError>
    where
        F: Fn(usize) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let mut cpus = allowed_cpus()?;
        let asked = count.unwrap_or(cpus.len()).max(1);
        if asked > cpus.len() {
            return Err(RuntimeError::TooManyCores {
                asked,
                allowed: cpus.len(),
            });
        }
        cpus.truncate(asked);
        Self::start_on(&cpus, main)
    }

    /// Starts one executor for each CPU listed; a CPU may be listed more than once.
    pub fn start_on<F, Fut>(cpus: &[usize], main: F) -> Result<Cores<T>, RuntimeError>
    where
        F: Fn(usize) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        early_init();
        let mut ready = Vec::with_capacity(cpus.len());
        for (core, &cpu) in cpus.iter().enumerate() {
            match prepare_core(core, cpu, main.clone()) {
                Ok(core) => ready.push(core),
                Err(error) => {
                    abandon(ready);
                    return Err(error);
                }
            }
        }
        let threads = ready
            .into_iter()
            .map(|core| {
                // The thread waits for this word before anything else, so it is there to hear it.
                let _ = core.go.send(());
                core.thread
            })
            .collect();
        Ok(Cores { threads })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Waits for all of them; what each `main` returned, by index. If any panicked, the first one's words,
    /// after all have ended.
    pub fn join(self) -> Result<Vec<T>, RuntimeError> {
        let mut values = Vec::with_capacity(self.threads.len());
        let mut failed = None;
        for (core, thread) in self.threads.into_iter().enumerate() {
            match thread.join() {
                Ok(value) => values.extend(value),
                Err(panic) => {
                    let message = panic_words(panic.as_ref());
                    failed.get_or_insert(RuntimeError::Panicked { core, message });
                }
            }
        }
        failed.map_or(Ok(values), Err)
    }
}

/// Runs a command's future on this thread, on an executor of its own with the rules of a core.
pub fn run_on_one<T, Fut>(main: impl FnOnce() -> Fut) -> Result<T, RuntimeError>
where
    Fut: Future<Output = T>,
{
    early_init();
    let executor = build(Placement::Unbound).map_err(|error| RuntimeError::Start {
        core: 0,
        cpu: 0,
        cause: error.to_string(),
    })?;
    Ok(executor.run(async move { main().await }))
}

/// Starts the thread of a core, which builds its executor, says so, and waits for the word to run `main`.
fn prepare_core<T, F, Fut>(core: usize, cpu: usize, main: F) -> Result<Ready<T>, RuntimeError>
where
    T: Send + 'static,
    F: Fn(usize) -> Fut + Send + 'static,
    Fut: Future<Output = T> + 'static,
{
    let failed = |cause: String| RuntimeError::Start { core, cpu, cause };
    let (built, is_built) = mpsc::channel::<io::Result<()>>();
    let (go, may_go) = mpsc::channel::<()>();
    let thread = std::thread::Builder::new()
        .name(format!("sluice-core-{core}"))
        .spawn(move || {
            let executor = match build(Placement::Fixed(cpu)) {
                Ok(executor) => executor,
                Err(error) => {
                    let _ = built.send(Err(error));
                    return None;
                }
            };
            let _ = built.send(Ok(()));
            may_go.recv().ok()?;
            Some(executor.run(async move { main(core).await }))
        })
        .map_err(|error| failed(error.to_string()))?;
    match is_built.recv() {
        Ok(Ok(())) => Ok(Ready { go, thread }),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(mpsc::RecvError) => {
            let words = thread.join().err().map(|panic| panic_words(panic.as_ref()));
            Err(failed(words.unwrap_or_else(|| "its thread ended".into())))
        }
    }
}

/// Ends cores that were prepared but must not run: their word to go never comes.
fn abandon<T>(ready: Vec<Ready<T>>) {
    for Ready { go, thread } in ready {
        drop(go);
        let _ = thread.join();
    }
}

/// An executor that keeps the rules.
fn build(placement: Placement) -> io::Result<LocalExecutor> {
    LocalExecutorBuilder::new(placement)
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(RING_DEPTH)
        .preempt_timer(PREEMPT_TIMER)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(BLOCKING_THREADS))
        .make()
        .map_err(io::Error::from)
}

fn panic_words(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|words| (*words).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        let check = |list: &str, expected: Option<Vec<usize>>| {
            assert_eq!(parse_cpu_list(list), expected, "{list:?}");
        };
        check("0", Some(vec![0]));
        check("0-3", Some(vec![0, 1, 2, 3]));
        check("0-1,5,8-9", Some(vec![0, 1, 5, 8, 9]));
        check("", None);
        check("a-b", None);
        check("3-", None);
    }

    #[test]
    fn each_core_runs_on_its_cpu_and_returns() {
        let allowed = allowed_cpus().unwrap();
        let cores = Cores::start(None, |core| async move {
            let name = std::thread::current().name().map(str::to_owned);
            (core, name, allowed_cpus().unwrap())
        })
        .unwrap();
        assert_eq!(cores.count(), allowed.len());
        let ended = cores.join().unwrap();
        let expected: Vec<_> = allowed
            .iter()
            .enumerate()
            .map(|(core, &cpu)| (core, Some(format!("sluice-core-{core}")), vec![cpu]))
            .collect();
        assert_eq!(ended, expected);
    }

    #[test]
    fn blocking_pool_is_not_pinned() {
        let allowed = allowed_cpus().unwrap();
        let cores = Cores::start(Some(1), |_| {
            crate::runtime::blocking(|| allowed_cpus().unwrap())
        });
        assert_eq!(cores.unwrap().join().unwrap(), vec![allowed]);
    }

    #[test]
    fn too_many_cores_are_refused() {
        let allowed = allowed_cpus().unwrap().len();
        let refused = Cores::start(Some(allowed + 1), |_| async {}).err().unwrap();
        assert!(
            matches!(refused, RuntimeError::TooManyCores { asked, .. } if asked == allowed + 1)
        );
    }

    #[test]
    fn an_unusable_cpu_starts_nothing() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicUsize, Ordering};
        let ran = Arc::new(AtomicUsize::new(0));
        let cpu = allowed_cpus().unwrap()[0];
        let counter = Arc::clone(&ran);
        let refused = Cores::start_on(&[cpu, 4095], move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            async {}
        });
        assert!(matches!(
            refused.err().unwrap(),
            RuntimeError::Start {
                core: 1,
                cpu: 4095,
                ..
            }
        ));
        assert_eq!(ran.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_panic_is_reported_by_join() {
        let cpu = allowed_cpus().unwrap()[0];
        let cores = Cores::start_on(&[cpu, cpu], |core| async move {
            assert!(core == 0, "core {core} broke");
            core
        });
        let error = cores.unwrap().join().unwrap_err();
        assert_eq!(error.to_string(), "core 1 ended by a panic: core 1 broke");
    }

    #[test]
    fn a_command_runs_here() {
        let here = std::thread::current().id();
        assert_eq!(
            run_on_one(|| async { std::thread::current().id() }).unwrap(),
            here
        );
    }

    /// glommio parks with runnable tasks when the preempt timer fires too early. The day this test passes,
    /// the timer may go to about 1 ms, and the rules in `runtime` be relaxed.
    #[test]
    #[ignore = "hangs for ever with glommio-ng 0.12.0: shows why the preempt timer is off"]
    fn reproducer_of_the_early_preempt_timer() {
        LocalExecutorBuilder::new(Placement::Unbound)
            .preempt_timer(Duration::from_nanos(1))
            .make()
            .unwrap()
            .run(async {});
    }
}
