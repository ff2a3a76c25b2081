//! `sluice-bench`: file systems side by side, and what they cost.
//!
//! It knows nothing of SluiceFS: a target is a directory, with the processes that serve it if there are
//! any. `bench/run.sh` builds the server, makes the volumes, mounts them and calls this. In reading
//! order:
//! - `options`: the command line; `target`: a directory to measure and its servers;
//! - `suite`: the cases of each suite, and the rounds in which targets take turns;
//! - `metadata` and `fio`: the work of a case; `caches`: what the kernel remembers before it;
//! - `accounting`: processor time and context switches of clients, servers and machine;
//! - `sample`: one measurement, medians of many; `machine`: on what it was measured;
//! - `report`: the run's folder with `raw.json` and `summary.md`.
//!
//! A case that fails on a target is recorded and the run goes on; the exit code is 1 then.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

mod accounting;
mod caches;
mod fio;
mod machine;
mod metadata;
mod options;
mod report;
mod sample;
mod suite;
mod target;

use options::{Command, Options};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sluice-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every case succeeded on every target.
fn run() -> Result<bool> {
    let (suite, options) = match Options::parse().command {
        Command::FirstLight(options) => (&suite::FIRST_LIGHT, options),
        Command::Metadata(options) => (&suite::METADATA, options),
    };
    let machine = machine::Machine::describe(&options.programs)?;
    let outcome = suite.run(&options)?;
    let folder = report::write(suite, &options, &machine, &outcome)?;
    println!("written: {}", folder.display());
    Ok(outcome.failures.is_empty())
}
