//! Several mounts of one volume under many threads at once: does everything hold that must hold whatever the order?
//!
//! `HAMMER_OPS` is the number of operations of one run (a full run has 100,000 and more), `SLUICE_TEST_SEED`
//! repeats the choices of one; both are printed.

use anyhow::{Context, Result, ensure};
use sluice_tests::hammer::judge::{Usage, is_sound, nothing_unreachable, sides_agree, walk};
use sluice_tests::hammer::{BASE, Plan, Side, run};
use sluice_tests::harness::{Engine, Volume};
use sluice_tests::juicefs::JuiceFs;
use sluice_tests::mount::Mount;
use sluice_tests::on_both_engines;

on_both_engines!(two_mounts, two_mounts_without_caches, beside_juicefs);

/// Operations of a run unless `HAMMER_OPS` says otherwise.
const OPERATIONS: u64 = 6_000;

/// Threads of each kind of work on each mount.
const THREADS: usize = 3;

/// No time during which a kernel may answer from memory.
const NO_CACHE: [&str; 6] = [
    "--attr-cache",
    "0",
    "--entry-cache",
    "0",
    "--dir-entry-cache",
    "0",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn two_mounts(engine: Engine) -> Result<()> {
    hammer(engine, None, |volume| {
        Ok([volume.mount()?, volume.mount()?])
    })
}

fn two_mounts_without_caches(engine: Engine) -> Result<()> {
    hammer(engine, None, |volume| {
        Ok([volume.mount_with(&NO_CACHE)?, volume.mount_with(&NO_CACHE)?])
    })
}

fn beside_juicefs(engine: Engine) -> Result<()> {
    let Some(juicefs) = JuiceFs::find("hammering one volume together with JuiceFS") else {
        return Ok(());
    };
    let other = &juicefs;
    hammer(engine, Some(other), |volume| {
        let options = ["--enable-xattr", "--heartbeat", "2"];
        Ok([volume.mount()?, other.mount(volume, &options)?])
    })
}

fn hammer(
    engine: Engine,
    juicefs: Option<&JuiceFs>,
    mounts: impl FnOnce(&Volume) -> Result<[Mount; 2]>,
) -> Result<()> {
    let plan = Plan {
        seed: number("SLUICE_TEST_SEED").unwrap_or_else(|| fastrand::u64(..)),
        operations: number("HAMMER_OPS").unwrap_or(OPERATIONS),
        threads: THREADS,
    };
    let told = format!(
        "SLUICE_TEST_SEED={} HAMMER_OPS={}",
        plan.seed, plan.operations
    );
    println!("{told}");
    hammer_with(engine, juicefs, &plan, mounts).context(told)
}

fn hammer_with(
    engine: Engine,
    juicefs: Option<&JuiceFs>,
    plan: &Plan,
    mounts: impl FnOnce(&Volume) -> Result<[Mount; 2]>,
) -> Result<()> {
    let volume = Volume::new(engine)?;
    let empty = Usage::of(&volume)?;
    let [one, two] = mounts(&volume)?;
    let names = match juicefs {
        Some(_) => ["sluice", "juicefs"],
        None => ["one", "two"],
    };
    let sides = [
        Side {
            name: names[0],
            mount: &one,
        },
        Side {
            name: names[1],
            mount: &two,
        },
    ];
    let start = std::time::Instant::now();
    let ledger = run(plan, &sides)?;
    let (wins, appended) = ledger.counts()?;
    println!(
        "{} operations in {:.1} s: {wins} tokens won, {appended} records appended",
        plan.operations,
        start.elapsed().as_secs_f64()
    );
    ensure!(wins > 0 && appended > 0, "counted work did nothing");
    sides_agree(&sides)?;
    for side in &sides {
        ledger
            .verify(&side.mount.path(BASE))
            .with_context(|| format!("counted work, through {}", side.name))?;
    }
    two.unmount()?;
    one.unmount()?;
    // What the kernel of a busy mount remembers is one thing; this is what the store knows.
    let fresh = volume.mount_with(&["--no-bgjob", "--read-only"])?;
    let shape = walk(&fresh.path(BASE))?;
    ledger
        .verify(&fresh.path(BASE))
        .context("counted work, after a remount")?;
    fresh.unmount()?;
    is_sound(&shape)?;
    nothing_unreachable(&volume, &shape)?;
    let (counted, found) = (Usage::recount(&shape), Usage::of(&volume)?.since(empty));
    ensure!(
        found == counted,
        "the volume's counters say {found:?}, its tree has {counted:?}"
    );
    if let Some(juicefs) = JuiceFs::find("fsck and gc after hammering") {
        juicefs.fsck(&volume)?;
        let leaked = juicefs.leaked_objects(&volume)?;
        ensure!(leaked == 0, "{leaked} objects belong to nothing");
    }
    Ok(())
}
