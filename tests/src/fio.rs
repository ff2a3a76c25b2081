//! fio as a judge of data: it writes blocks that carry their own checksum and reads them back.
//!
//! Job files are `tests/fio/*.fio`. `Pass::Write` runs them as they are: write, then verify.
//! `Pass::VerifyOnly` writes nothing and verifies what an earlier pass with the same job file left.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::deadline::patience;
use crate::harness::run;

/// What to do with a job file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pass {
    /// Write, then verify.
    Write,
    /// Verify only.
    VerifyOnly,
}

/// Runs job file `name` on the files in `directory`. Any error fio reports is an error; so is a job that
/// read nothing back.
pub fn run_jobs(name: &str, directory: &Path, pass: Pass) -> Result<()> {
    let job_file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fio").join(name);
    let mut command = Command::new("fio");
    // fio leaves files where it runs.
    command.current_dir(directory);
    command.args(["--output-format=json", "--fallocate=none", "--directory"]);
    command.arg(directory);
    if pass == Pass::VerifyOnly {
        command.arg("--verify_only=1");
    }
    let output = run(command.arg(job_file), patience(300))?;
    // The report of a run that failed is long and says little; what went wrong is on standard error.
    ensure!(
        output.status.success(),
        "fio {name}, {pass:?}, ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let said = String::from_utf8_lossy(&output.stdout);
    // Notes may precede the report.
    let report = said.find('{').context("fio printed no report")?;
    let report: Value = serde_json::from_str(&said[report..]).context("fio's report")?;
    let jobs = report["jobs"].as_array().context("fio reported no jobs")?;
    ensure!(!jobs.is_empty(), "fio ran no jobs");
    for job in jobs {
        let read = job["read"]["io_bytes"].as_u64();
        ensure!(
            job["error"].as_i64() == Some(0) && read > Some(0),
            "{name}, {pass:?}: job {} ended with error {}, read {read:?} bytes",
            job["jobname"],
            job["error"]
        );
    }
    Ok(())
}
