//! The run's folder, `<out>/<date>-<host>`: `raw.json` with all that was measured, `summary.md` to read.
//!
//! An existing run is never written over: a second one of the day gets a number.

use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::fio::Job;
use crate::machine::{Machine, file_system};
use crate::options::Measure;
use crate::sample::{Sample, Spread};
use crate::suite::{Case, Failure, Outcome, Suite, Unit};

/// Runs of one host on one day.
const RUNS_PER_DAY_MAX: u32 = 1000;

#[derive(Serialize)]
struct Raw<'a> {
    suite: &'static str,
    machine: &'a Machine,
    options: &'a Measure,
    jobs: Vec<&'static Job>,
    samples: &'a [Sample],
    failures: &'a [Failure],
}

/// Writes both files and answers the folder.
pub(crate) fn write(
    suite: &Suite,
    options: &Measure,
    machine: &Machine,
    outcome: &Outcome,
) -> Result<PathBuf> {
    let folder = new_folder(&options.out, &format!("{}-{}", machine.date, machine.host))?;
    let raw = Raw {
        suite: suite.name,
        machine,
        options,
        jobs: suite.cases.iter().filter_map(Case::job).collect(),
        samples: &outcome.samples,
        failures: &outcome.failures,
    };
    let mut json = serde_json::to_string_pretty(&raw)?;
    json.push('\n');
    save(&folder.join("raw.json"), &json)?;
    save(
        &folder.join("summary.md"),
        &summary(suite, options, machine, outcome)?,
    )?;
    Ok(folder)
}

fn save(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn new_folder(out: &Path, name: &str) -> Result<PathBuf> {
    fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    for run in 1..=RUNS_PER_DAY_MAX {
        let folder = match run {
            1 => out.join(name),
            _ => out.join(format!("{name}-{run}")),
        };
        match fs::create_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => {
                made.with_context(|| format!("making {}", folder.display()))?;
                return Ok(folder);
            }
        }
    }
    anyhow::bail!("{name} has {RUNS_PER_DAY_MAX} runs in {}", out.display())
}

fn summary(
    suite: &Suite,
    options: &Measure,
    machine: &Machine,
    outcome: &Outcome,
) -> Result<String> {
    let mut text = String::new();
    write_head(&mut text, suite, options, machine)?;
    write_failures(&mut text, &outcome.failures)?;
    write_results(&mut text, suite, options, &outcome.samples)?;
    write_costs(&mut text, suite, options, &outcome.samples)?;
    write_method(&mut text, options, outcome)?;
    Ok(text)
}

fn write_head(
    text: &mut String,
    suite: &Suite,
    options: &Measure,
    machine: &Machine,
) -> Result<()> {
    writeln!(
        text,
        "# {}, {} on {}\n",
        suite.name, machine.date, machine.host
    )?;
    writeln!(text, "```sh\n{}\n```\n", machine.command_line)?;
    writeln!(text, "- commit: {}", machine.commit)?;
    writeln!(text, "- kernel: {}", machine.kernel)?;
    writeln!(
        text,
        "- machine: {} x {}, memory {}, load average before the run {}",
        machine.processors, machine.processor, machine.memory, machine.load
    )?;
    for (program, version) in &machine.versions {
        writeln!(text, "- {program}: {version}")?;
    }
    for note in &options.notes {
        writeln!(text, "- {note}")?;
    }
    writeln!(
        text,
        "\n| Target | File system | Directory | Processes charged as server |"
    )?;
    writeln!(text, "|---|---|---|---|")?;
    for target in &options.targets {
        let servers: Vec<String> = target.servers.iter().map(|pid| command_of(*pid)).collect();
        writeln!(
            text,
            "| {} | {} | {} | {} |",
            target.name,
            file_system(&target.dir),
            target.dir.display(),
            or_none(&servers.join(", "))
        )?;
    }
    Ok(())
}

/// The program's name, which means more than its number afterwards.
fn command_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    name.map_or_else(|_| format!("{pid}, ended"), |name| name.trim().to_owned())
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

fn write_failures(text: &mut String, failures: &[Failure]) -> Result<()> {
    if failures.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n## Failures\n")?;
    for failure in failures {
        writeln!(
            text,
            "- round {}, {} on {}: {}",
            failure.round + 1,
            failure.case,
            failure.target,
            failure.error
        )?;
    }
    Ok(())
}

/// Samples of one case on one target.
fn select<'a>(samples: &'a [Sample], case: &Case, target: &str) -> Vec<&'a Sample> {
    samples
        .iter()
        .filter(|sample| sample.case == case.name && sample.target == target)
        .collect()
}

fn spread(samples: &[&Sample], value: impl Fn(&Sample) -> f64) -> Option<Spread> {
    Spread::of(samples.iter().map(|sample| value(sample)))
}

fn rates(case: &Case, samples: &[&Sample]) -> Option<Spread> {
    match case.unit {
        Unit::Operations => spread(samples, Sample::rate),
        Unit::MebiBytes => spread(samples, Sample::throughput),
    }
}

fn write_results(
    text: &mut String,
    suite: &Suite,
    options: &Measure,
    samples: &[Sample],
) -> Result<()> {
    let first = &options.targets[0].name;
    writeln!(
        text,
        "\n## Speed\n\nMedians of {} rounds. Ratios are of medians, to {first}; above 1 is faster.\n",
        options.rounds
    )?;
    writeln!(
        text,
        "| Case | Target | Median | Min | Max | Ratio | p50 us | p99 us |"
    )?;
    writeln!(text, "|---|---|---:|---:|---:|---:|---:|---:|")?;
    for case in suite.cases {
        let base = rates(case, &select(samples, case, first));
        for target in &options.targets {
            let found = select(samples, case, &target.name);
            let Some(rate) = rates(case, &found) else {
                writeln!(
                    text,
                    "| {} | {} | failed | | | | | |",
                    case.name, target.name
                )?;
                continue;
            };
            let unit = match case.unit {
                Unit::Operations => "/s",
                Unit::MebiBytes => " MiB/s",
            };
            writeln!(
                text,
                "| {} | {} | {:.0}{unit} | {:.0} | {:.0} | {} | {:.1} | {:.1} |",
                case.name,
                target.name,
                rate.median,
                rate.min,
                rate.max,
                ratio(rate, base),
                median(&found, |sample| sample.work.latency_us_p50),
                median(&found, |sample| sample.work.latency_us_p99),
            )?;
        }
    }
    Ok(())
}

fn ratio(rate: Spread, base: Option<Spread>) -> String {
    match base {
        Some(base) if base.median > 0.0 => match rate.median / base.median {
            ratio if ratio < 0.1 => format!("{ratio:.4}"),
            ratio => format!("{ratio:.2}"),
        },
        _ => "-".to_owned(),
    }
}

/// Of samples that are there.
fn median(samples: &[&Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    spread(samples, value).map_or(0.0, |spread| spread.median)
}

fn write_costs(
    text: &mut String,
    suite: &Suite,
    options: &Measure,
    samples: &[Sample],
) -> Result<()> {
    writeln!(
        text,
        "\n## Cost\n\nMedians, for each operation (1 MiB of sequential reads and writes): processor time in us and \
         context switches. *Drain* is the time of a `sync` after the case: what was acknowledged without being durable.\n"
    )?;
    writeln!(
        text,
        "| Case | Target | Client CPU | Server CPU | Machine CPU | Client switches | Server switches | Drain s |"
    )?;
    writeln!(text, "|---|---|---:|---:|---:|---:|---:|---:|")?;
    for case in suite.cases {
        for target in &options.targets {
            let found = select(samples, case, &target.name);
            if found.is_empty() {
                continue;
            }
            let us = |total: fn(&Sample) -> f64| {
                median(&found, |sample| sample.per_operation(total(sample) * 1e6))
            };
            let switches = |total: fn(&Sample) -> u64| {
                median(&found, |sample| sample.per_operation(total(sample) as f64))
            };
            writeln!(
                text,
                "| {} | {} | {:.1} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} |",
                case.name,
                target.name,
                us(|sample| sample.work.client.cpu_seconds),
                us(|sample| sample.server.cpu_seconds),
                us(|sample| sample.machine_cpu_seconds),
                switches(|sample| sample.work.client.context_switches),
                switches(|sample| sample.server.context_switches),
                median(&found, |sample| sample.drain_seconds),
            )?;
        }
    }
    Ok(())
}

fn write_method(text: &mut String, options: &Measure, outcome: &Outcome) -> Result<()> {
    writeln!(
        text,
        "\n## Method\n\n\
         - {} files in one directory for creates, stats and unlinks, by 1 and 2 threads; none of these is synced \
         on any target. A file of {} MiB for data; {} s for each case with random reads. The jobs are in `bench/fio`.\n\
         - In each round each case ran once on each target, one right after the other; who comes first moved on.\n\
         - {}\n\
         - Random reads are direct: a local file system asks its device each time, a server may answer from its memory. \
         Where that matters, compare servers with each other.\n\
         - Sequential writes count the time until fsync has returned. A `sync` before each case keeps other \
         targets' dirty data out of it.\n\
         - Servers are charged from the start of a case until its drain ended, in ticks of 10 ms; *machine* is \
         all of its processors in that span, so kernel threads, the start of fio (some 0.4 s) and bystanders are \
         in it. A kernel's file system works in its client's time.",
        options.files,
        options.file_size,
        options.seconds,
        outcome.caches.describe()
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::options::Forgetting;
    use crate::suite;
    use crate::target::Target;

    /// Each suite as a whole at the least size, so that it works on the day it is wanted.
    #[test]
    fn a_tiny_run_is_measured_and_written() {
        tiny(&suite::FIRST_LIGHT);
        tiny(&suite::METADATA);
    }

    fn tiny(suite: &Suite) {
        // Beside this program is a file system that knows direct I/O, which /tmp may not.
        let program = std::env::current_exe().unwrap();
        let scratch = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let target = |name: &str, servers: Vec<u32>| Target {
            name: name.to_owned(),
            dir: scratch.path().to_owned(),
            servers,
        };
        let options = Measure {
            targets: vec![
                target("one", vec![]),
                target("two", vec![std::process::id()]),
            ],
            out: scratch.path().join("runs"),
            rounds: 1,
            files: 10,
            file_size: 1,
            seconds: 1,
            caches: Forgetting::Expire,
            expiry_ms: 0,
            programs: vec![],
            notes: vec!["a note".to_owned()],
        };
        let outcome = suite.run(&options).unwrap();
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        assert_eq!(outcome.samples.len(), 2 * suite.cases.len());
        assert!(outcome.samples.iter().all(|sample| sample.rate() > 0.0));

        let machine = Machine::describe(&options.programs).unwrap();
        let first = write(suite, &options, &machine, &outcome).unwrap();
        let second = write(suite, &options, &machine, &outcome).unwrap();
        assert_eq!(second, PathBuf::from(format!("{}-2", first.display())));
        let summary = fs::read_to_string(first.join("summary.md")).unwrap();
        for case in suite.cases {
            for name in ["one", "two"] {
                let cells = format!("| {} | {name} |", case.name);
                assert_eq!(summary.matches(&cells).count(), 2, "{cells} in {summary}");
            }
        }
        assert!(summary.contains("- a note") && !summary.contains("failed"));
        let raw = fs::read_to_string(first.join("raw.json")).unwrap();
        let raw: serde_json::Value = serde_json::from_str(&raw).unwrap();
        assert_eq!(
            raw["samples"].as_array().map(Vec::len),
            Some(2 * suite.cases.len())
        );
        assert_eq!(raw["samples"][0]["case"], suite.cases[0].name);
    }

    #[test]
    fn failures_are_shown() {
        let failure = Failure {
            case: suite::FIRST_LIGHT.cases[0].name,
            target: "one".to_owned(),
            round: 0,
            error: "full".to_owned(),
        };
        let mut text = String::new();
        write_failures(&mut text, &[failure]).unwrap();
        assert!(text.contains("round 1, create-1t on one: full"), "{text}");
    }
}
