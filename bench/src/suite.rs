//! The suites, their cases, and the rounds in which targets take turns.
//!
//! In each round each case is run once on each target, one target right after the other, so that whatever
//! else changes on the machine meets them all; who comes first moves on with each round. A case, in order:
//! 1. what earlier failures left behind is removed, everything dirty on the machine is written (`sync`), so
//!    that nobody pays for another target's data;
//! 2. the kernel forgets what the case wants forgotten;
//! 3. the work is done and timed;
//! 4. `sync` again, timed apart: what had been acknowledged without being durable;
//! 5. servers are charged for all from 3 on.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tempfile::TempDir;

use crate::accounting;
use crate::caches::{Caches, Forget};
use crate::fio::{self, Job, Sizes};
use crate::metadata::{self, Call, Layout};
use crate::options::Measure;
use crate::sample::{Sample, Work};
use crate::target::Target;

/// What the tables show of a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    /// Operations per second.
    Operations,
    /// MiB per second.
    MebiBytes,
}

/// What a case does.
#[derive(Debug)]
enum Task {
    /// The call, by so many threads, in directories laid out like this.
    Metadata(Call, u32, Layout),
    Fio(&'static Job),
}

/// One line of the results.
#[derive(Debug)]
pub(crate) struct Case {
    /// Its name in the tables.
    pub(crate) name: &'static str,
    /// In what it is measured.
    pub(crate) unit: Unit,
    forget: Forget,
    task: Task,
}

/// Cases that are run together, and in this order.
#[derive(Debug)]
pub(crate) struct Suite {
    /// Its name on the command line and in reports.
    pub(crate) name: &'static str,
    /// Each may build on those before: files must be there to be looked at, data to be read.
    pub(crate) cases: &'static [Case],
}

/// A first look at everything.
pub(crate) static FIRST_LIGHT: Suite = Suite {
    name: "first-light",
    cases: &[
        metadata("create-1t", Call::Create, 1, Layout::Shared),
        metadata("stat-1t", Call::Stat, 1, Layout::Shared),
        metadata("unlink-1t", Call::Unlink, 1, Layout::Shared),
        metadata("create-2t", Call::Create, 2, Layout::Shared),
        metadata("stat-2t", Call::Stat, 2, Layout::Shared),
        metadata("unlink-2t", Call::Unlink, 2, Layout::Shared),
        data(&fio::SEQ_WRITE, Unit::MebiBytes, Forget::Nothing),
        data(&fio::SEQ_READ, Unit::MebiBytes, Forget::Everything),
        data(&fio::RAND_READ_QD1, Unit::Operations, Forget::Everything),
        data(&fio::RAND_READ_QD32, Unit::Operations, Forget::Everything),
    ],
};

/// What changes directories costs, alone, side by side and in one place.
pub(crate) static METADATA: Suite = Suite {
    name: "metadata",
    cases: &[
        metadata("create-1t", Call::Create, 1, Layout::Shared),
        metadata("list-1t", Call::List, 1, Layout::Shared),
        metadata("rename-1t", Call::Rename, 1, Layout::Shared),
        metadata("unlink-1t", Call::Unlink, 1, Layout::Shared),
        metadata("mkdir-1t", Call::Mkdir, 1, Layout::Shared),
        metadata("rmdir-1t", Call::Rmdir, 1, Layout::Shared),
        metadata("create-8t", Call::Create, 8, Layout::Private),
        metadata("rename-8t", Call::Rename, 8, Layout::Private),
        metadata("unlink-8t", Call::Unlink, 8, Layout::Private),
        metadata("mkdir-8t", Call::Mkdir, 8, Layout::Private),
        metadata("rmdir-8t", Call::Rmdir, 8, Layout::Private),
        metadata("create-8t-one-dir", Call::Create, 8, Layout::Shared),
        metadata("rename-8t-one-dir", Call::Rename, 8, Layout::Shared),
        metadata("unlink-8t-one-dir", Call::Unlink, 8, Layout::Shared),
        metadata("mkdir-8t-one-dir", Call::Mkdir, 8, Layout::Shared),
        metadata("rmdir-8t-one-dir", Call::Rmdir, 8, Layout::Shared),
    ],
};

const fn metadata(name: &'static str, call: Call, threads: u32, layout: Layout) -> Case {
    Case {
        name,
        unit: Unit::Operations,
        forget: match call {
            Call::Stat | Call::List => Forget::Entries,
            Call::Create | Call::Unlink | Call::Rename | Call::Mkdir | Call::Rmdir => {
                Forget::Nothing
            }
        },
        task: Task::Metadata(call, threads, layout),
    }
}

const fn data(job: &'static Job, unit: Unit, forget: Forget) -> Case {
    Case {
        name: job.name,
        unit,
        forget,
        task: Task::Fio(job),
    }
}

/// A case that did not work.
#[derive(Serialize, Debug)]
pub(crate) struct Failure {
    /// Name of the case.
    pub(crate) case: &'static str,
    /// Name of the target.
    pub(crate) target: String,
    /// From 0.
    pub(crate) round: u32,
    /// The error with its causes.
    pub(crate) error: String,
}

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// In the order of time.
    pub(crate) samples: Vec<Sample>,
    /// Likewise.
    pub(crate) failures: Vec<Failure>,
    /// How the kernel was made to forget.
    pub(crate) caches: Caches,
}

/// A target with the directory that the work is done in, removed when dropped.
struct Place<'a> {
    target: &'a Target,
    work: TempDir,
}

impl Suite {
    /// Runs all rounds. Errors are those of setting up; a failing case is part of the outcome.
    pub(crate) fn run(&self, options: &Measure) -> Result<Outcome> {
        let caches = Caches::new(options.caches, Duration::from_millis(options.expiry_ms));
        let mut outcome = Outcome {
            samples: Vec::new(),
            failures: Vec::new(),
            caches,
        };
        let places = prepare(&options.targets)?;
        for round in 0..options.rounds {
            for case in self.cases {
                for turn in 0..places.len() {
                    let place = &places[(turn + round as usize) % places.len()];
                    match measure(case, place, round, options, caches) {
                        Ok(sample) => outcome.succeeded(case, sample),
                        Err(error) => outcome.failed(case, place.target, round, &error),
                    }
                }
            }
        }
        for place in places {
            let dir = place.work.path().to_owned();
            place
                .work
                .close()
                .with_context(|| format!("removing {}", dir.display()))?;
        }
        Ok(outcome)
    }
}

impl Outcome {
    fn succeeded(&mut self, case: &Case, sample: Sample) {
        let (value, unit) = match case.unit {
            Unit::Operations => (sample.rate(), "/s"),
            Unit::MebiBytes => (sample.throughput(), " MiB/s"),
        };
        eprintln!(
            "round {} {:18} {:20} {value:>10.0}{unit}",
            sample.round + 1,
            case.name,
            sample.target
        );
        self.samples.push(sample);
    }

    fn failed(&mut self, case: &Case, target: &Target, round: u32, error: &anyhow::Error) {
        let failure = Failure {
            case: case.name,
            target: target.name.clone(),
            round,
            error: format!("{error:#}"),
        };
        eprintln!(
            "round {} {:18} {:20} FAILED: {}",
            round + 1,
            failure.case,
            failure.target,
            failure.error
        );
        self.failures.push(failure);
    }
}

fn prepare(targets: &[Target]) -> Result<Vec<Place<'_>>> {
    for (index, target) in targets.iter().enumerate() {
        let twice = targets[..index].iter().any(|one| one.name == target.name);
        ensure!(!twice, "two targets are named {}", target.name);
    }
    let place = |target| -> Result<Place<'_>> {
        let target: &Target = target;
        accounting::of_processes(&target.servers)
            .with_context(|| format!("target {}", target.name))?;
        let work = tempfile::Builder::new()
            .prefix("sluice-bench.")
            .tempdir_in(&target.dir)
            .with_context(|| format!("target {}: {}", target.name, target.dir.display()))?;
        Ok(Place { target, work })
    };
    targets.iter().map(place).collect()
}

fn measure(
    case: &Case,
    place: &Place<'_>,
    round: u32,
    options: &Measure,
    caches: Caches,
) -> Result<Sample> {
    let servers = &place.target.servers;
    clear(case, place.work.path())?;
    rustix::fs::sync();
    caches.forget(case.forget)?;
    let server_before = accounting::of_processes(servers)?;
    let machine_before = accounting::machine_cpu_seconds()?;
    let work = case.run(place.work.path(), options)?;
    let drain = Instant::now();
    rustix::fs::sync();
    Ok(Sample {
        case: case.name,
        target: place.target.name.clone(),
        round,
        work,
        drain_seconds: drain.elapsed().as_secs_f64(),
        server: accounting::of_processes(servers)? - server_before,
        machine_cpu_seconds: accounting::machine_cpu_seconds()? - machine_before,
    })
}

/// Removes what must not be there when the case begins.
fn clear(case: &Case, work: &Path) -> Result<()> {
    let removed = match case.task {
        Task::Metadata(Call::Create | Call::Mkdir, ..) => fs::remove_dir_all(work.join("files")),
        Task::Fio(job) if job.name == fio::SEQ_WRITE.name => fs::remove_file(work.join("data")),
        Task::Metadata(..) | Task::Fio(_) => return Ok(()),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context("removing what an earlier case left")
        }
        _ => Ok(()),
    }
}

impl Case {
    fn run(&self, work: &Path, options: &Measure) -> Result<Work> {
        match self.task {
            Task::Metadata(call, threads, layout) => {
                let dir = work.join("files");
                metadata::run(call, &dir, layout, options.files, threads)
            }
            Task::Fio(job) => fio::run(
                job,
                work,
                Sizes {
                    file_mib: options.file_size,
                    seconds: options.seconds,
                },
            ),
        }
    }

    /// The fio job, if it is one.
    pub(crate) fn job(&self) -> Option<&'static Job> {
        match self.task {
            Task::Fio(job) => Some(job),
            Task::Metadata(..) => None,
        }
    }
}
