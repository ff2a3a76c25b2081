//! `sluice summary`: the largest directories and files below a path on a mount.
//!
//! The mount says which volume it serves and which inode the path is; the rest is read from the metadata
//! directly. What a process has written and not flushed yet is not in it.

use sluice_meta::ops::summary::Walk;
use sluice_meta::store::Access;
use sluice_meta::tools::summary::{DEPTH_MAX, ENTRIES_MAX, Shape, Tree, tree};
use sluice_meta::types::Ino;

use super::quota::open_meta;
use super::table::{csv, ibytes, table};
use super::{Failure, Outcome, whereabouts};
use crate::cli::SummaryArgs;
use crate::config::parse_count;
use crate::runtime::run_on_one;

/// Runs the command.
pub fn run(args: &SummaryArgs) -> Outcome {
    let count =
        |option, text: &str, most| parse_count(option, text, 0..=most).map_err(Failure::from_error);
    let shape = Shape {
        depth: count("--depth", &args.depth, u64::from(DEPTH_MAX))? as u8,
        entries: count("--entries", &args.entries, ENTRIES_MAX as u64)? as usize,
        walk: if args.strict {
            Walk::Strict
        } else {
            Walk::Fast
        },
    };
    let path = &args.path;
    let place = whereabouts(path)
        .map_err(|error| Failure(format!("cannot look at {}: {error}", path.display())))?
        .ok_or_else(|| {
            Failure(format!(
                "{} is not on a sluice mount: name a path below one",
                path.display()
            ))
        })?;
    let url = super::parse_url(&place.meta)?;
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|| path.display().to_string());
    let shown = run_on_one(|| async move {
        let meta = open_meta(&url, Access::ReadOnly).await?;
        let shown = tree(&meta, Ino(place.inode), &name, shape).await;
        shown.map_err(Failure::from_error)
    })
    .map_err(Failure::from_error)??;
    let mut rows = vec![
        ["PATH", "SIZE", "DIRS", "FILES"]
            .map(str::to_owned)
            .to_vec(),
    ];
    add_rows(&shown, args.csv, &mut rows);
    print!("{}", if args.csv { csv(&rows) } else { table(&rows) });
    Ok(())
}

fn add_rows(tree: &Tree, exact: bool, rows: &mut Vec<Vec<String>>) {
    let slash = if tree.is_dir && !tree.path.ends_with('/') {
        "/"
    } else {
        ""
    };
    let totals = &tree.totals;
    rows.push(vec![
        format!("{}{slash}", tree.path),
        match exact {
            true => totals.size.to_string(),
            false => ibytes(totals.size),
        },
        totals.dirs.to_string(),
        totals.files.to_string(),
    ]);
    for child in &tree.children {
        add_rows(child, exact, rows);
    }
}
