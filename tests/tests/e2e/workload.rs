//! What people do with a file system: unpack a source tree, commit it, build a program.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sluice_tests::compare::same_trees;
use sluice_tests::content::Fill;
use sluice_tests::harness::{Engine, Volume, run_ok};
use sluice_tests::on_both_engines;

use crate::errno::same;

on_both_engines!(
    source_tree_untars_and_compares_equal,
    git_commits_a_source_tree,
    c_project_builds_with_make,
);

/// A tree like a kernel's: many directories, mostly small text files, a few large ones, scripts, links.
fn write_source_tree(root: &Path) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(77);
    for subsystem in 0..12 {
        for part in 0..10 {
            let dir = root.join(format!("subsystem{subsystem}/part{part}"));
            fs::create_dir_all(&dir)?;
            for file in 0..12 {
                let path = dir.join(format!("source{file}.c"));
                fs::write(&path, source_text(&mut random))?;
            }
            fs::write(dir.join("Makefile"), "obj-y += source0.o\n")?;
            symlink("../../shared.h", dir.join("shared.h"))?;
        }
    }
    fs::write(root.join("shared.h"), "#define SHARED 1\n")?;
    fs::write(root.join("configure"), "#!/bin/sh\nexit 0\n")?;
    fs::set_permissions(root.join("configure"), fs::Permissions::from_mode(0o755))?;
    for (name, len) in [
        ("firmware.bin", 9_000_001),
        ("logo.ppm", 300_000),
        ("empty", 0),
    ] {
        let mut bytes = vec![0; len];
        Fill::Noise(len as u64).bytes(0, &mut bytes);
        fs::write(root.join(name), bytes)?;
    }
    Ok(())
}

fn source_text(random: &mut fastrand::Rng) -> String {
    let mut text = String::from("/* generated */\n");
    for line in 0..random.usize(1..400) {
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "int f{line}(int x) {{ return x * {} + {line}; }}",
            random.u16(..)
        );
    }
    text
}

fn source_tree_untars_and_compares_equal(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let original = volume.scratch.dir("original")?;
    write_source_tree(&original)?;
    let archive = volume.scratch.path("tree.tar");
    run_ok(
        Command::new("tar")
            .arg("cf")
            .arg(&archive)
            .arg("-C")
            .arg(&original)
            .arg("."),
    )?;
    let mount = volume.mount()?;
    fs::create_dir(mount.path("tree"))?;
    run_ok(
        Command::new("tar")
            .arg("xpf")
            .arg(&archive)
            .arg("-C")
            .arg(mount.path("tree")),
    )?;
    // tar itself compares contents, modes, owners and times.
    let compare = |root: &Path| {
        run_ok(
            Command::new("tar")
                .arg("df")
                .arg(&archive)
                .arg("-C")
                .arg(root),
        )
        .context("tar --compare")
    };
    compare(&mount.path("tree"))?;
    same_trees(&original, &mount.path("tree"))?;
    mount.unmount()?;
    let mount = volume.mount()?;
    compare(&mount.path("tree"))?;
    same_trees(&original, &mount.path("tree")).context("after a remount")?;
    // A copy within the volume, and the way back.
    run_ok(
        Command::new("cp")
            .arg("-a")
            .arg(mount.path("tree"))
            .arg(mount.path("copy")),
    )?;
    same_trees(&original, &mount.path("copy")).context("copy within the volume")?;
    let back = volume.scratch.path("back.tar");
    run_ok(
        Command::new("tar")
            .arg("cf")
            .arg(&back)
            .arg("-C")
            .arg(mount.path("copy"))
            .arg("."),
    )?;
    run_ok(
        Command::new("tar")
            .arg("df")
            .arg(&back)
            .arg("-C")
            .arg(&original),
    )
    .context("way back")?;
    run_ok(
        Command::new("rm")
            .arg("-rf")
            .arg(mount.path("tree"))
            .arg(mount.path("copy")),
    )?;
    same(
        "entries left",
        fs::read_dir(mount.root())?.count(),
        listed_by_server(mount.root())?,
    )?;
    mount.unmount()
}

/// Entries of an empty root: a server may list the trash there.
fn listed_by_server(root: &Path) -> Result<usize> {
    let names: std::io::Result<Vec<_>> = fs::read_dir(root)?
        .map(|entry| Ok(entry?.file_name()))
        .collect();
    Ok(names?
        .iter()
        .filter(|name| name.as_encoded_bytes().starts_with(b"."))
        .count())
}

/// Git with an identity and without the settings of whoever runs the tests.
fn git(volume: &Volume, directory: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    command.args([
        "-c",
        "user.name=e2e",
        "-c",
        "user.email=e2e@localhost",
        "-c",
        "gc.auto=0",
    ]);
    command.args(arguments).current_dir(directory);
    command
        .env("HOME", volume.scratch.root())
        .env("GIT_CONFIG_NOSYSTEM", "1");
    run_ok(&mut command)
}

fn git_commits_a_source_tree(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let original = volume.scratch.dir("original")?;
    write_source_tree(&original)?;
    let mount = volume.mount()?;
    let tree = mount.path("tree");
    run_ok(Command::new("cp").arg("-a").arg(&original).arg(&tree))?;
    git(&volume, &tree, &["init", "--quiet"])?;
    git(&volume, &tree, &["add", "--all"])?;
    git(
        &volume,
        &tree,
        &["commit", "--quiet", "--message", "everything"],
    )?;
    same(
        "status",
        git(&volume, &tree, &["status", "--porcelain"])?.as_str(),
        "",
    )?;
    fs::write(tree.join("shared.h"), "#define SHARED 2\n")?;
    same(
        "change",
        git(&volume, &tree, &["status", "--porcelain"])?.as_str(),
        " M shared.h\n",
    )?;
    git(
        &volume,
        &tree,
        &["commit", "--quiet", "--all", "--message", "a change"],
    )?;
    mount.unmount()?;
    let mount = volume.mount()?;
    let tree = mount.path("tree");
    git(&volume, &tree, &["fsck", "--full", "--strict"])?;
    same(
        "status after a remount",
        git(&volume, &tree, &["status", "--porcelain"])?.as_str(),
        "",
    )?;
    git(&volume, &tree, &["repack", "-a", "-d", "--quiet"])?;
    git(
        &volume,
        mount.root(),
        &["clone", "--quiet", "--no-hardlinks", "tree", "clone"],
    )?;
    git(
        &volume,
        &mount.path("clone"),
        &["checkout", "--quiet", "HEAD~1"],
    )?;
    fs::remove_dir_all(mount.path("clone/.git"))?;
    // Git keeps no empty directories and no modes but the executable bit: the tree has none such.
    same_trees(&original, &mount.path("clone")).context("first commit, cloned")?;
    mount.unmount()
}

/// A program of many parts: each prints its number, and the sum of all is checked.
fn write_c_project(root: &Path, parts: usize) -> Result<()> {
    fs::create_dir_all(root.join("parts"))?;
    let mut header = String::from("#pragma once\n");
    let mut main = String::from(
        "#include <stdio.h>\n#include \"parts.h\"\nint main(void) {\n  long sum = 0;\n",
    );
    for part in 0..parts {
        fs::write(
            root.join(format!("parts/part{part}.c")),
            format!(
                "#include \"../parts.h\"\nlong part{part}(void) {{ return {part} * FACTOR; }}\n"
            ),
        )?;
        writeln!(header, "long part{part}(void);")?;
        writeln!(main, "  sum += part{part}();")?;
    }
    header.push_str("#define FACTOR 3L\n");
    main.push_str("  printf(\"%ld\\n\", sum);\n  return 0;\n}\n");
    fs::write(root.join("parts.h"), header)?;
    fs::write(root.join("main.c"), main)?;
    fs::write(
        root.join("Makefile"),
        "CFLAGS = -O0 -Wall -Werror -MMD\n\
         OBJECTS = main.o $(patsubst %.c,%.o,$(wildcard parts/*.c))\n\
         program: libparts.a main.o\n\t$(CC) -o $@ main.o libparts.a\n\
         libparts.a: $(filter-out main.o,$(OBJECTS))\n\trm -f $@; ar rc $@ $^\n\
         -include $(OBJECTS:.o=.d)\n\
         clean:\n\trm -f program libparts.a $(OBJECTS) $(OBJECTS:.o=.d)\n",
    )?;
    Ok(())
}

fn c_project_builds_with_make(engine: Engine) -> Result<()> {
    const PARTS: usize = 40;
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let project = mount.path("project");
    write_c_project(&project, PARTS)?;
    let make = |arguments: &[&str]| {
        run_ok(
            Command::new("make")
                .args(arguments)
                .current_dir(&project)
                .env_remove("MAKEFLAGS"),
        )
    };
    let sum = |factor: usize| format!("{}\n", PARTS * (PARTS - 1) / 2 * factor);
    make(&["-j4"])?;
    same(
        "output",
        run_ok(&mut Command::new(project.join("program")))?,
        sum(3),
    )?;
    ensure!(
        make(&["-j4"])?.contains("up to date"),
        "make builds again what is there"
    );
    // Times decide what is rebuilt: one source, then the header that all include.
    let part = project.join("parts/part7.c");
    fs::write(
        &part,
        fs::read_to_string(&part)?.replace("7 *", "(7 + 1) *"),
    )?;
    let rebuilt = make(&[])?;
    ensure!(
        rebuilt.contains("part7") && !rebuilt.contains("part8.c"),
        "rebuilt: {rebuilt}"
    );
    let header = project.join("parts.h");
    fs::write(
        &header,
        fs::read_to_string(&header)?.replace("FACTOR 3L", "FACTOR 5L"),
    )?;
    make(&["-j4"])?;
    let expected = format!("{}\n", (PARTS * (PARTS - 1) / 2 + 1) * 5);
    same(
        "output",
        run_ok(&mut Command::new(project.join("program")))?,
        expected.clone(),
    )?;
    mount.unmount()?;
    let mount = volume.mount()?;
    let program = mount.path("project/program");
    same(
        "output after a remount",
        run_ok(&mut Command::new(program))?,
        expected,
    )?;
    run_ok(
        Command::new("make")
            .arg("clean")
            .current_dir(mount.path("project")),
    )?;
    ensure!(!mount.path("project/program").exists(), "make clean");
    mount.unmount()
}
