//! JuiceFS as the other side: the same volume through another implementation.
//!
//! The binary is not ours to ship: tests that need it take its path from `JUICEFS` (version 1.4.1,
//! built with Go from its public repository) and say loudly that they were skipped when it is not set.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::deadline::patience;
use crate::harness::{Volume, run, run_ok, skip};
use crate::mount::Mount;

/// The JuiceFS binary.
pub struct JuiceFs {
    binary: PathBuf,
}

impl JuiceFs {
    /// The binary, or `None` after saying that this comparison is skipped.
    pub fn find(what_is_skipped: &str) -> Option<JuiceFs> {
        match std::env::var_os("JUICEFS") {
            Some(path) => Some(JuiceFs {
                binary: PathBuf::from(path),
            }),
            None => {
                skip(&format!(
                    "{what_is_skipped}: set JUICEFS=/path/to/juicefs (1.4.1) to compare with JuiceFS"
                ));
                None
            }
        }
    }

    fn command(&self, volume: &Volume) -> Command {
        let mut command = Command::new(&self.binary);
        command.envs(volume.environment.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Formats the volume with JuiceFS.
    pub fn format(&self, volume: &Volume, options: &[&str]) -> Result<()> {
        let mut command = self.command(volume);
        let mut bucket = volume.bucket.clone().into_os_string();
        bucket.push("/");
        command
            .args(["format", "--storage", "file", "--bucket"])
            .arg(bucket);
        run_ok(command.args(options).arg(&volume.meta_url).arg("e2e")).map(drop)
    }

    /// Runs a command of JuiceFS in the volume's environment; it must succeed.
    pub fn run(&self, volume: &Volume, name: &str, arguments: &[&str]) -> Result<String> {
        run_ok(self.command(volume).arg(name).args(arguments))
    }

    /// Mounts the volume with JuiceFS.
    pub fn mount(&self, volume: &Volume, options: &[&str]) -> Result<Mount> {
        let mount_point = volume.new_mount_point()?;
        let mut serve = self.command(volume);
        serve.args([
            "mount",
            "--no-usage-report",
            "--backup-meta",
            "0",
            "--cache-dir",
            "memory",
        ]);
        serve
            .args(&volume.mount_options)
            .args(options)
            .arg(&volume.meta_url)
            .arg(&mount_point);
        let mut unmount: Command = self.command(volume);
        unmount.arg("umount").arg(&mount_point);
        Mount::start(volume.plan(serve, unmount, mount_point, "juicefs"))
    }

    /// Puts back what is in these hours of the trash.
    pub fn restore(&self, volume: &Volume, hours: &[String]) -> Result<()> {
        let mut command = self.command(volume);
        command.args(["restore", "--put-back"]);
        run_ok(command.arg(&volume.meta_url).args(hours)).map(drop)
    }

    /// Runs JuiceFS's check of the volume, blocks, attributes and statistics: it must succeed and
    /// complain of nothing.
    pub fn fsck(&self, volume: &Volume) -> Result<()> {
        self.check(volume, &[&[], &["--path", "/", "--recursive"]])
    }

    /// The check with statistics of all directories counted anew: they must be what they say.
    pub fn fsck_statistics(&self, volume: &Volume) -> Result<()> {
        self.check(
            volume,
            &[&["--path", "/", "--recursive", "--sync-dir-stat"]],
        )
    }

    /// The check of blocks alone: statistics of directories are written in batches, by JuiceFS too, and
    /// the last one goes with a server that is killed.
    pub fn fsck_blocks(&self, volume: &Volume) -> Result<()> {
        self.check(volume, &[&[]])
    }

    /// How many objects in the store belong to nothing, by JuiceFS's garbage collector, which only looks.
    pub fn leaked_objects(&self, volume: &Volume) -> Result<u64> {
        let mut command = self.command(volume);
        // By default it leaves alone what is younger than an hour.
        command.env("JFS_GC_SKIPPEDTIME", "0");
        let output = run(command.arg("gc").arg(&volume.meta_url), patience(300))?;
        // The count is on standard error.
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.success(),
            "{command:?} ended with {}:\n{said}",
            output.status
        );
        let count = said
            .lines()
            .filter(|line| line.contains("scanned "))
            .find_map(leaked_in);
        if count != Some(0) {
            println!("{said}");
        }
        count.with_context(|| format!("{command:?} did not say what it found:\n{said}"))
    }

    /// A `quota` command that must succeed; what it printed.
    pub fn quota(&self, volume: &Volume, verb: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(volume);
        command.args(["quota", verb, &volume.meta_url]);
        run_ok(command.args(arguments))
    }

    /// Holds usage against JuiceFS's own count: it must find no difference.
    pub fn check_quota(&self, volume: &Volume, arguments: &[&str]) -> Result<()> {
        self.quota(volume, "check", arguments).map(drop)
    }

    fn check(&self, volume: &Volume, scopes: &[&[&str]]) -> Result<()> {
        for scope in scopes {
            let mut command = self.command(volume);
            command
                .arg("fsck")
                .args(scope.iter().map(OsString::from))
                .arg(&volume.meta_url);
            let output = run(&mut command, patience(300))?;
            let said = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            let complaints: Vec<&str> = said.lines().filter(|line| is_complaint(line)).collect();
            ensure!(
                output.status.success() && complaints.is_empty(),
                "{command:?} ended with {}: {complaints:?}\n{said}",
                output.status
            );
        }
        Ok(())
    }
}

/// The number in "..., 3 leaked (4096 bytes), ...".
fn leaked_in(line: &str) -> Option<u64> {
    let (before, _) = line.split_once(" leaked (")?;
    before.rsplit(' ').next()?.parse().ok()
}

/// Whether a line of `fsck` finds fault with the volume. Some warnings are about the set-up: Redis
/// without AOF, a slow moment of the machine, and storage tiers, which a directory does not have.
fn is_complaint(line: &str) -> bool {
    let raised = ["<WARNING>", "<ERROR>", "<FATAL>"]
        .iter()
        .any(|level| line.contains(level));
    let of_the_setup = [
        "AOF is not enabled",
        "Set storage tier",
        "The latency to database is too high",
    ];
    raised && !of_the_setup.iter().any(|text| line.contains(text))
}

#[cfg(test)]
mod tests {
    use super::{is_complaint, leaked_in};

    #[test]
    fn leaked_objects_are_counted() {
        let line = "juicefs[1] <INFO>: scanned 9 objects, 6 valid, 0 pending delete (0 bytes), \
                    0 compacted (0 bytes), 3 leaked (4096 bytes), 0 delslices (0 bytes)";
        assert_eq!(leaked_in(line), Some(3));
        assert_eq!(leaked_in("juicefs[1] <INFO>: scanned nothing"), None);
    }

    #[test]
    fn only_findings_about_the_volume_are_complaints() {
        assert!(is_complaint(
            "2026/01/01 juicefs[1] <ERROR>: can't find block chunks/0/0/1_0_4"
        ));
        assert!(is_complaint(
            "juicefs[1] <WARNING>: nlink of /a should be 2, but got 3"
        ));
        assert!(!is_complaint("juicefs[1] <INFO>: Found 3 blocks"));
        assert!(!is_complaint(
            "juicefs[1] <WARNING>: AOF is not enabled, you may lose data"
        ));
    }
}
