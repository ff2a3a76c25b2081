//! fio writes with checksums in every block and reads back: at once, and again after a remount, when
//! everything comes from the store.

use anyhow::{Context, Result};
use sluice_tests::fio::{Pass, run_jobs};
use sluice_tests::harness::{Engine, Volume};
use sluice_tests::on_both_engines;

on_both_engines!(sequential, random, mixed, four_jobs, mapped, small_memory);

fn sequential(engine: Engine) -> Result<()> {
    verifies_now_and_after_a_remount(engine, "sequential.fio", &[])
}

fn random(engine: Engine) -> Result<()> {
    verifies_now_and_after_a_remount(engine, "random.fio", &[])
}

fn mixed(engine: Engine) -> Result<()> {
    verifies_now_and_after_a_remount(engine, "mixed.fio", &[])
}

fn four_jobs(engine: Engine) -> Result<()> {
    verifies_now_and_after_a_remount(engine, "four_jobs.fio", &[])
}

fn mapped(engine: Engine) -> Result<()> {
    verifies_now_and_after_a_remount(engine, "mapped.fio", &[])
}

/// More dirty data than there is memory for: writers wait for uploads, and nothing gets lost on the way.
fn small_memory(engine: Engine) -> Result<()> {
    verifies_now_and_after_a_remount(engine, "four_jobs.fio", &["--buffer-size", "32M"])
}

fn verifies_now_and_after_a_remount(engine: Engine, jobs: &str, options: &[&str]) -> Result<()> {
    let volume = Volume::with_options(engine, &["--trash-days", "0", "--block-size", "1M"])?;
    let mount = volume.mount_with(options)?;
    run_jobs(jobs, mount.root(), Pass::Write)?;
    mount.unmount()?;
    let mount = volume.mount_with(options)?;
    run_jobs(jobs, mount.root(), Pass::VerifyOnly).context("after a remount")?;
    mount.unmount()
}
