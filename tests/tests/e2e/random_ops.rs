//! Random operations on a mount against the model: every outcome, and the whole tree after each remount.
//!
//! The seed is printed; `SLUICE_TEST_SEED` repeats a run. Failures found this way stay in `REGRESSIONS`.

use anyhow::{Context, Result};
use sluice_tests::harness::{Engine, Volume};
use sluice_tests::juicefs::JuiceFs;
use sluice_tests::model::{Model, run};
use sluice_tests::on_both_engines;

on_both_engines!(
    random_operations_agree_with_the_model,
    known_hard_seeds,
    short_caches
);

/// Parts of a run; the volume is remounted between them.
const PARTS: usize = 5;
/// Operations in a part.
const OPERATIONS: usize = 800;

/// Seeds that once showed a fault: a link made to a file with unsynced data cut the length that the kernel
/// knew (the last one); or that are known to reach far.
const REGRESSIONS: [u64; 4] = [1, 2, 3, 6_574_275_531_803_358_449];

fn random_operations_agree_with_the_model(engine: Engine) -> Result<()> {
    let seed = std::env::var("SLUICE_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    agree(engine, seed.unwrap_or_else(|| fastrand::u64(..)), &[])
}

fn known_hard_seeds(engine: Engine) -> Result<()> {
    REGRESSIONS
        .iter()
        .try_for_each(|seed| agree(engine, *seed, &[]))
}

/// Nothing cached in the kernel: every operation reaches the server.
fn short_caches(engine: Engine) -> Result<()> {
    let seed = fastrand::u64(..);
    agree(
        engine,
        seed,
        &[
            "--attr-cache",
            "0",
            "--entry-cache",
            "0",
            "--dir-entry-cache",
            "0",
        ],
    )
}

fn agree(engine: Engine, seed: u64, options: &[&str]) -> Result<()> {
    println!("SLUICE_TEST_SEED={seed}");
    let volume = Volume::with_options(engine, &["--trash-days", "0", "--block-size", "64K"])?;
    let (mut model, mut random) = (Model::default(), fastrand::Rng::with_seed(seed));
    for part in 0..PARTS {
        let told = || format!("SLUICE_TEST_SEED={seed}, part {part}");
        let mount = volume.mount_with(options)?;
        // Below the root: there a server may list the trash.
        let root = mount.path("root");
        if part == 0 {
            std::fs::create_dir(&root)?;
        }
        model
            .verify(&root)
            .with_context(told)
            .context("after a remount")?;
        run(&mut model, &root, &mut random, OPERATIONS).with_context(told)?;
        mount.unmount()?;
    }
    match JuiceFs::find("fsck after random operations") {
        Some(juicefs) => juicefs
            .fsck(&volume)
            .with_context(|| format!("SLUICE_TEST_SEED={seed}")),
        None => Ok(()),
    }
}
