//! `sluice`: parses the command line, runs a command, turns its error into one sentence and exit code 1.

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use sluice_datapath::cli::{Cli, Command};
use sluice_datapath::commands;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    start_log(&cli);
    abort_on_panic();
    let outcome = match &cli.command {
        Command::Format(args) => commands::format::run(args),
        Command::Mount(args) => commands::mount::run(args),
        Command::Umount(args) => commands::umount::run(args),
        Command::Status(args) => commands::status::run(args),
        Command::Info(args) => commands::info::run(args),
        Command::Config(args) => commands::config::run(args),
        Command::Destroy(args) => commands::destroy::run(args),
        Command::Gc(args) => commands::gc::run(args),
        Command::Fsck(args) => commands::fsck::run(args),
        Command::Dump(args) => commands::dump::run(args),
        Command::Load(args) => commands::load::run(args),
        Command::Compact(args) => commands::compact::run(args),
        Command::Rmr(args) => commands::rmr::run(args),
        Command::Clone(args) => commands::clone::run(args),
        Command::Restore(args) => commands::restore::run(args),
        Command::Quota(command) => commands::quota::run(command),
        Command::Summary(args) => commands::summary::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A core that panicked serves nobody any more, and a mount with a dead core hangs its users: the process ends
/// at once, the kernel answers them, and what was fsynced is safe.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// Help and version as clap prints them; a wrong command line as one sentence.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Output to a closed pipe is nobody's loss.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ => {
            let text = error.render().to_string();
            let paragraph: Vec<&str> = text
                .lines()
                .map(str::trim)
                .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
                .filter(|line| !line.is_empty())
                .collect();
            let sentence = paragraph.join(" ");
            let sentence = sentence.strip_prefix("error: ").unwrap_or(&sentence);
            eprintln!("sluice: {sentence} (see sluice --help)");
            ExitCode::FAILURE
        }
    }
}

/// The log goes to stderr; `SLUICE_LOG` refines what `-v` and `-q` choose.
fn start_log(cli: &Cli) {
    let level = match (cli.quiet, cli.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("SLUICE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}
