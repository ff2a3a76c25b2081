//! `sluice restore`: brings back what was removed in an hour, from the trash. For the super-user.
//!
//! Without `--put-back` trees are rebuilt within the trash, where they can be looked through and moved out by
//! hand; with it every entry goes to the directory it was in.

use sluice_meta::error::MetaError;
use sluice_meta::tools::restore::{RestoreScope, Restored, is_hour};

use super::tool::{self, Tool};
use super::{Failure, Outcome, parse_url};
use crate::cli::RestoreArgs;
use crate::runtime::run_on_one;

/// Runs the command.
pub fn run(args: &RestoreArgs) -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure(
            "only root may restore from the trash: run it as root".to_owned(),
        ));
    }
    if let Some(hour) = args.hours.iter().find(|hour| !is_hour(hour.as_bytes())) {
        return Err(Failure(format!(
            "\"{hour}\" is no hour: give it as .trash on a mount lists it, YYYY-MM-DD-HH in UTC"
        )));
    }
    let url = parse_url(&args.meta_url)?;
    let args = args.clone();
    run_on_one(|| async move {
        let tool = Tool::open(&url, "sluice restore").await?;
        let restored = restore(&tool, &args).await;
        restored.and(tool.close().await)
    })
    .map_err(Failure::from_error)?
}

async fn restore(tool: &Tool, args: &RestoreArgs) -> Outcome {
    let scope = match args.put_back {
        true => RestoreScope::PutBack,
        false => RestoreScope::Rebuild,
    };
    let mut trouble = 0;
    for hour in &args.hours {
        let restored = tool
            .meta
            .restore_hour(hour.as_bytes(), scope, tool::width(args.threads))
            .await
            .map_err(|error| match error {
                MetaError::NotFound => Failure(format!(
                    "there is no hour {hour} in the trash: .trash on a mount lists those there are"
                )),
                error => Failure(format!("cannot restore {hour}: {error}")),
            })?;
        print(hour, scope, restored);
        trouble += restored.conflicts + restored.failed;
    }
    if trouble > 0 {
        return Err(Failure(format!(
            "{trouble} entries stay in the trash: the log says why for each"
        )));
    }
    Ok(())
}

fn print(hour: &str, scope: RestoreScope, restored: Restored) {
    let Restored {
        moved,
        skipped,
        conflicts,
        failed,
    } = restored;
    match scope {
        RestoreScope::PutBack => {
            println!("{hour}: {moved} put back, {conflicts} conflicts, {failed} failed");
        }
        RestoreScope::Rebuild => println!(
            "{hour}: {moved} rebuilt, {skipped} to be put back, {conflicts} conflicts, {failed} failed"
        ),
    }
}
