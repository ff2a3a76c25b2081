//! A process of the test's own that opens and locks files as it is told (`agent.py`): POSIX locks belong to
//! processes, and both kinds end with them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use sluice_tests::deadline::{patience, wait_child, wait_until};

/// Numbers of the system calls in which a process waits for a lock, `fcntl` and `flock`.
#[cfg(target_arch = "x86_64")]
const LOCKING: [&str; 2] = ["72", "73"];
#[cfg(target_arch = "aarch64")]
const LOCKING: [&str; 2] = ["25", "32"];

/// The process. It ends with the value.
pub(super) struct Agent {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

impl Agent {
    /// Starts one.
    pub(super) fn start() -> Result<Agent> {
        let mut child = Command::new("python3")
            .args(["-c", include_str!("agent.py")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting python3 (package python3)")?;
        let orders = child.stdin.take().context("no pipe to the process")?;
        let lines =
            BufReader::new(child.stdout.take().context("no pipe from the process")?).lines();
        let (sender, answers) = channel();
        // Ends with the process, or with the test.
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Ok(Agent {
            child,
            orders,
            answers,
        })
    }

    /// Tells it something without waiting for the answer.
    pub(super) fn send(&mut self, order: &str) -> Result<()> {
        Ok(writeln!(self.orders, "{order}")?)
    }

    /// Its next answer.
    pub(super) fn answer(&self, limit: Duration) -> Result<String> {
        match self.answers.recv_timeout(limit) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => bail!("no answer within {limit:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the process has ended"),
        }
    }

    /// Tells it something; the answer is "ok", the name of an error, or what was asked for.
    pub(super) fn ask(&mut self, order: &str) -> Result<String> {
        self.send(order)?;
        self.answer(patience(60)).with_context(|| order.to_owned())
    }

    /// Tells it something that must succeed.
    #[track_caller]
    pub(super) fn must(&mut self, order: &str) -> Result<()> {
        self.must_say(order, "ok")
    }

    /// Tells it something that must have this answer.
    #[track_caller]
    pub(super) fn must_say(&mut self, order: &str, wanted: &str) -> Result<()> {
        let place = std::panic::Location::caller();
        let answer = self.ask(order)?;
        ensure!(
            answer == wanted,
            "{place}: {order}: {answer}, expected {wanted}"
        );
        Ok(())
    }

    /// Tells it to take a lock that is not free; returns when it waits for it.
    pub(super) fn wait_for(&mut self, order: &str) -> Result<()> {
        self.send(order)?;
        let call = format!("/proc/{}/syscall", self.child.id());
        wait_until("it waits for the lock", patience(20), || {
            if let Ok(answer) = self.answers.try_recv() {
                bail!("{order} did not wait: {answer}");
            }
            let call = std::fs::read_to_string(&call)?;
            let number = call.split(' ').next().unwrap_or_default();
            Ok(LOCKING.contains(&number) && self.state()? == "S")
        })
    }

    fn state(&self) -> Result<String> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let state = stat.rsplit(") ").next().and_then(|rest| rest.get(..1));
        Ok(state.context("no state")?.to_owned())
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it with a signal; it must be gone soon.
    pub(super) fn end_by(mut self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)?;
        let ended = wait_child(&mut self.child, patience(10))?;
        ensure!(ended.is_some(), "state {} after {signal:?}", self.state()?);
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Ended already: nothing to do. One that hangs in the kernel is freed by the watchdog of its mount.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
