//! Processor time and context switches, as the kernel counts them in `/proc`.
//!
//! Servers are charged through `/proc/PID/stat`, which includes threads that have ended, in ticks of 10 ms;
//! a case must therefore use many ticks. Their context switches are summed over the threads there are: one
//! that ended meanwhile takes its count with it. Client threads read their own files, in nanoseconds.

use std::ops::{Add, Sub};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// Ticks per second of `/proc/*/stat`: part of the kernel's interface to user space, 100 on all that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process or thread has used so far, or between two moments.
#[derive(Serialize, Clone, Copy, Default, PartialEq, Debug)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu_seconds: f64,
    /// Voluntary and involuntary.
    pub(crate) context_switches: u64,
}

impl Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage {
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            context_switches: self.context_switches + other.context_switches,
        }
    }
}

impl Sub for Usage {
    type Output = Usage;

    /// Never below zero: a thread that ended takes its count with it.
    fn sub(self, earlier: Usage) -> Usage {
        Usage {
            cpu_seconds: (self.cpu_seconds - earlier.cpu_seconds).max(0.0),
            context_switches: self
                .context_switches
                .saturating_sub(earlier.context_switches),
        }
    }
}

/// What these processes have used since they started, together.
pub(crate) fn of_processes(pids: &[u32]) -> Result<Usage> {
    pids.iter().try_fold(Usage::default(), |sum, pid| {
        let usage = of_process(*pid).with_context(|| format!("server process {pid}"))?;
        Ok(sum + usage)
    })
}

fn of_process(pid: u32) -> Result<Usage> {
    let folder = format!("/proc/{pid}");
    let ticks = parse_stat(&read(&format!("{folder}/stat"))?)?;
    let mut context_switches = 0;
    for task in std::fs::read_dir(format!("{folder}/task"))? {
        // A thread may end between listing and reading.
        if let Ok(status) = std::fs::read_to_string(task?.path().join("status")) {
            context_switches += parse_switches(&status)?;
        }
    }
    Ok(Usage {
        cpu_seconds: ticks as f64 / TICKS_PER_SECOND,
        context_switches,
    })
}

/// What the calling thread has used since it started.
pub(crate) fn of_this_thread() -> Result<Usage> {
    let scheduled = read("/proc/thread-self/schedstat")?;
    let nanoseconds: u64 = number(scheduled.split_whitespace().next())?;
    Ok(Usage {
        cpu_seconds: nanoseconds as f64 / 1e9,
        context_switches: parse_switches(&read("/proc/thread-self/status")?)?,
    })
}

/// Time that the machine's processors have been busy since it started.
pub(crate) fn machine_cpu_seconds() -> Result<f64> {
    Ok(parse_machine(&read("/proc/stat")?)? as f64 / TICKS_PER_SECOND)
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(Path::new(path)).with_context(|| format!("reading {path}"))
}

fn number<T: std::str::FromStr>(text: Option<&str>) -> Result<T> {
    match text.and_then(|text| text.parse().ok()) {
        Some(number) => Ok(number),
        None => bail!("expected a number, found {text:?}"),
    }
}

/// utime + stime of `/proc/PID/stat`. The command, second of the fields, may itself hold blanks and brackets.
fn parse_stat(stat: &str) -> Result<u64> {
    let (_, rest) = stat
        .rsplit_once(')')
        .with_context(|| format!("no command in {stat:?}"))?;
    // The next field is the third, state; utime and stime are the 14th and 15th.
    let mut times = rest.split_whitespace().skip(11);
    Ok(number::<u64>(times.next())? + number::<u64>(times.next())?)
}

fn parse_switches(status: &str) -> Result<u64> {
    let counts: Vec<u64> = status
        .lines()
        .filter_map(|line| line.split_once("ctxt_switches:"))
        .map(|(_, count)| number(Some(count.trim())))
        .collect::<Result<_>>()?;
    match counts[..] {
        [voluntary, involuntary] => Ok(voluntary + involuntary),
        _ => bail!("{} counts of context switches, not 2", counts.len()),
    }
}

/// Busy ticks of all processors: all that the first line counts but idle and waiting for I/O (and guests, which
/// are in user time already).
fn parse_machine(stat: &str) -> Result<u64> {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map(|field| number(Some(field)))
        .collect::<Result<_>>()?;
    match ticks[..] {
        [user, nice, system, _idle, _iowait, irq, softirq, ..] if line.starts_with("cpu ") => {
            Ok(user + nice + system + irq + softirq)
        }
        _ => bail!("unexpected first line of /proc/stat: {line:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_command() {
        let rest = "S 1 9 9 0 -1 4194560 120 0 0 0 250 50 7 7 20 0 4 0 99 1 1";
        for command in ["sluice", "a b", "x) S 1 2"] {
            let stat = format!("9 ({command}) {rest}");
            assert_eq!(parse_stat(&stat).ok(), Some(300), "{stat}");
        }
        assert!(parse_stat("9 sluice S").is_err());
        assert!(parse_stat("9 (sluice) S 1 2").is_err());
    }

    #[test]
    fn both_kinds_of_switches_count() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t2\n";
        assert_eq!(parse_switches(status).ok(), Some(42));
        assert!(parse_switches("Name:\tx\n").is_err());
    }

    #[test]
    fn idle_time_is_not_busy() {
        let stat = "cpu  100 10 20 9999 888 3 4 55 6 7\ncpu0 1 2 3\n";
        assert_eq!(parse_machine(stat).ok(), Some(137));
        assert!(parse_machine("intr 1 2 3 4 5 6 7 8").is_err());
    }

    #[test]
    fn work_of_this_thread_is_seen() {
        let before = of_this_thread().unwrap();
        let mut sum = 0_u64;
        while of_this_thread().unwrap().cpu_seconds < before.cpu_seconds + 0.002 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        assert!((of_this_thread().unwrap() - before).cpu_seconds >= 0.002);
        assert!(
            of_processes(&[std::process::id()])
                .unwrap()
                .context_switches
                > 0
        );
    }

    #[test]
    fn counts_never_go_below_zero() {
        let usage = |cpu_seconds, context_switches| Usage {
            cpu_seconds,
            context_switches,
        };
        assert_eq!(usage(2.0, 5) - usage(1.5, 2), usage(0.5, 3));
        assert_eq!(usage(1.0, 5) - usage(1.5, 9), usage(0.0, 0));
    }
}
