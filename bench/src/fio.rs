//! Running fio's jobs and reading its results.
//!
//! The jobs are the files of `bench/fio`, built into this program and handed to fio on standard input, so that
//! what ran is what the report shows. Their variables are `BENCH_DIR`, `BENCH_SIZE` and `BENCH_SECONDS`.
//! Latencies are from submission to completion. Each job either reads or writes.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::accounting::Usage;
use crate::sample::Work;

/// A job file.
#[derive(Serialize, Debug)]
pub(crate) struct Job {
    /// Its name, which is also its section's.
    pub(crate) name: &'static str,
    /// Its content.
    pub(crate) text: &'static str,
}

macro_rules! job {
    ($name:literal) => {
        Job {
            name: $name,
            text: include_str!(concat!("../fio/", $name, ".fio")),
        }
    };
}

/// Sequential write of a new file, fsync included.
pub(crate) static SEQ_WRITE: Job = job!("seq-write-1m");
/// Sequential read of that file.
pub(crate) static SEQ_READ: Job = job!("seq-read-1m");
/// Random reads of it, one at a time.
pub(crate) static RAND_READ_QD1: Job = job!("rand-read-4k-qd1");
/// Random reads of it, many at a time.
pub(crate) static RAND_READ_QD32: Job = job!("rand-read-4k-qd32");

/// Sizes that the jobs ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Of the file, in MiB.
    pub(crate) file_mib: u64,
    /// Of a job that runs for a time.
    pub(crate) seconds: u32,
}

/// Runs the job in the directory.
pub(crate) fn run(job: &Job, dir: &Path, sizes: Sizes) -> Result<Work> {
    let mut fio = Command::new("fio")
        .args(["--output-format=json", "-"])
        .env("BENCH_DIR", dir)
        .env("BENCH_SIZE", format!("{}m", sizes.file_mib))
        .env("BENCH_SECONDS", sizes.seconds.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting fio: is it installed?")?;
    let mut stdin = fio.stdin.take().context("fio has no standard input")?;
    // A job is smaller than a pipe, so this does not wait; if fio has ended already, its status tells.
    let handed = stdin.write_all(job.text.as_bytes());
    drop(stdin);
    let output = fio.wait_with_output().context("waiting for fio")?;
    ensure!(
        output.status.success() && handed.is_ok(),
        "fio {} ended with {}: {}",
        job.name,
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    parse(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("result of fio {}", job.name))
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<JobResult>,
}

/// Of all processes of the job together (`group_reporting`).
#[derive(Deserialize)]
struct JobResult {
    error: i32,
    /// Run times of all processes, added up, in ms: what the percentages of processor time refer to.
    job_runtime: f64,
    usr_cpu: f64,
    sys_cpu: f64,
    ctx: u64,
    read: Direction,
    write: Direction,
}

#[derive(Deserialize)]
struct Direction {
    total_ios: u64,
    io_bytes: u64,
    /// Of the longest process, in ms.
    runtime: f64,
    lat_ns: Latency,
}

#[derive(Deserialize)]
struct Latency {
    /// By percentage, written like "99.000000"; absent where nothing was measured.
    #[serde(default)]
    percentile: HashMap<String, f64>,
}

fn parse(text: &str) -> Result<Work> {
    // Warnings come first, in plain text.
    let start = text.find('{').context("no JSON")?;
    let output: Output = serde_json::from_str(&text[start..])?;
    let [job] = &output.jobs[..] else {
        bail!("{} jobs, not one", output.jobs.len());
    };
    ensure!(job.error == 0, "error {}", job.error);
    let direction = match (job.read.total_ios, job.write.total_ios) {
        (0, 0) => bail!("nothing was read or written"),
        (_, 0) => &job.read,
        (0, _) => &job.write,
        _ => bail!("both reads and writes"),
    };
    let latency_us = |percent: &str| {
        let nanoseconds = direction.lat_ns.percentile.get(percent);
        nanoseconds.map(|ns| ns / 1e3).context("no latencies")
    };
    Ok(Work {
        operations: direction.total_ios,
        bytes: direction.io_bytes,
        seconds: direction.runtime / 1e3,
        latency_us_p50: latency_us("50.000000")?,
        latency_us_p99: latency_us("99.000000")?,
        client: Usage {
            cpu_seconds: (job.usr_cpu + job.sys_cpu) / 100.0 * job.job_runtime / 1e3,
            context_switches: job.ctx,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output of fio 3.33, cut down to two jobs' reads.
    fn output(error: i32, reads: u64, writes: u64) -> String {
        let direction = |ios: u64| match ios {
            0 => {
                r#"{"total_ios": 0, "io_bytes": 0, "runtime": 0, "lat_ns": {"min": 0}}"#.to_owned()
            }
            _ => format!(
                r#"{{"total_ios": {ios}, "io_bytes": {}, "runtime": 1001,
                    "lat_ns": {{"percentile": {{"50.000000": 456704, "99.000000": 3358720}}}}}}"#,
                ios * 4096
            ),
        };
        format!(
            r#"note: both iodepth >= 1 and synchronous I/O engine are selected
            {{"fio version": "fio-3.33", "jobs": [{{"jobname": "x", "error": {error}, "job_runtime": 2000,
              "usr_cpu": 3.1, "sys_cpu": 16.9, "ctx": 3787,
              "read": {}, "write": {}, "trim": {}}}]}}"#,
            direction(reads),
            direction(writes),
            direction(0)
        )
    }

    #[test]
    fn the_direction_that_was_used_counts() {
        for (reads, writes) in [(1001, 0), (0, 1001)] {
            let work = parse(&output(0, reads, writes)).unwrap();
            assert_eq!((work.operations, work.bytes), (1001, 1001 * 4096));
            assert_eq!(work.seconds, 1.001);
            assert_eq!(
                (work.latency_us_p50, work.latency_us_p99),
                (456.704, 3358.72)
            );
            // A fifth of two processes' second each.
            assert!((work.client.cpu_seconds - 0.4).abs() < 1e-9);
            assert_eq!(work.client.context_switches, 3787);
        }
    }

    #[test]
    fn failures_and_surprises_are_errors() {
        let check = |text: &str, part: &str| {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(part), "{error}");
        };
        check(&output(5, 10, 0), "error 5");
        check(&output(0, 0, 0), "nothing");
        check(&output(0, 1, 1), "both");
        check("fio: not found", "no JSON");
        check(r#"{"jobs": []}"#, "0 jobs");
    }

    #[test]
    fn each_job_opens_with_its_question() {
        for job in [&SEQ_WRITE, &SEQ_READ, &RAND_READ_QD1, &RAND_READ_QD32] {
            let first = job.text.lines().next().unwrap_or_default();
            assert!(
                first.starts_with("; How ") && first.ends_with('?'),
                "{first}"
            );
            assert!(
                job.text.contains(&format!("[{}]", job.name)),
                "{}",
                job.name
            );
        }
    }
}
