//! Writing a tree and recording it: one function for each family of files.
//!
//! Every step is made through the ordinary system calls of a mount and noted at once, so that the record
//! holds what was asked for and never what the file system answered.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::{Node, TreeOptions};
use crate::content::{Fill, Subject};
use crate::harness::is_root;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Span of a file after which the format starts a new list of slices.
const CHUNK_BYTES: u64 = 64 * MIB;

/// Writes a tree into the directory `root`; the record of it.
pub(super) fn write(root: &Path, options: &TreeOptions) -> Result<BTreeMap<PathBuf, Node>> {
    let mut writer = Writer {
        root,
        options,
        random: fastrand::Rng::with_seed(options.seed),
        nodes: BTreeMap::new(),
        privileged: is_root(),
    };
    writer.everything()?;
    Ok(writer.nodes)
}

/// Writes and records at once.
struct Writer<'a> {
    root: &'a Path,
    options: &'a TreeOptions,
    random: fastrand::Rng,
    nodes: BTreeMap<PathBuf, Node>,
    privileged: bool,
}

impl Writer<'_> {
    fn everything(&mut self) -> Result<()> {
        let mode = std::fs::symlink_metadata(self.root)?;
        let (uid, gid) = (mode.uid(), mode.gid());
        self.nodes.insert(
            PathBuf::new(),
            Node {
                mode: mode.mode(),
                uid,
                gid,
                ..Node::default()
            },
        );
        self.sizes()?;
        self.sparse()?;
        self.overwritten()?;
        self.truncated()?;
        self.punched()?;
        self.links()?;
        self.symlinks()?;
        self.special()?;
        self.names()?;
        self.large_directory()?;
        self.deep_directory()?;
        self.xattrs()?;
        self.modes_and_owners()?;
        self.times()
    }

    /// Files of every size class, written front to back in pieces of varying size.
    fn sizes(&mut self) -> Result<()> {
        let block = self.options.block_bytes;
        let mut sizes = BTreeSet::from([0, 1, 2, 511, 4095, 4096, 4097, 9 * MIB]);
        for edge in [64 * KIB, MIB, block, 2 * block] {
            sizes.extend([edge - 1, edge, edge + 1]);
        }
        if self.options.chunk_sizes {
            sizes.extend([CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 70 * MIB]);
        }
        self.mkdir("sizes")?;
        for (index, size) in sizes.into_iter().enumerate() {
            let piece = [4 * KIB, 128 * KIB, MIB, 100_003][index % 4].max(size / 200);
            let fill = self.fill();
            self.file(format!("sizes/s{size}"), |subject, _| {
                subject.write(0..size, fill, piece)
            })?;
        }
        Ok(())
    }

    fn sparse(&mut self) -> Result<()> {
        self.mkdir("sparse")?;
        let fill = self.fill();
        self.file("sparse/head", |subject, _| {
            subject.write(10 * MIB + 3..10 * MIB + 1003, fill, MIB)
        })?;
        self.file("sparse/tail", |subject, _| {
            subject.write(0..5000, fill, MIB)?;
            subject.truncate(20 * MIB + 1)
        })?;
        self.file("sparse/islands", |subject, random| {
            for at in 0..12 {
                let start = at * 11 * MIB + random.u64(0..MIB);
                subject.write(
                    start..start + random.u64(1..300_000),
                    Fill::Noise(at),
                    64 * KIB,
                )?;
            }
            Ok(())
        })?;
        self.file("sparse/only-a-hole", |subject, _| subject.truncate(3 * MIB))?;
        self.file("sparse/preallocated", |subject, _| {
            use rustix::fs::{FallocateFlags, fallocate};
            subject.write(0..100, fill, MIB)?;
            fallocate(&subject.file, FallocateFlags::empty(), 0, 300_000)?;
            subject.content.truncate(300_000);
            Ok(())
        })
    }

    /// Writes over writes, committed in between, so that slices pile up.
    fn overwritten(&mut self) -> Result<()> {
        self.mkdir("overwritten")?;
        let block = self.options.block_bytes;
        self.file("overwritten/random", |subject, random| {
            subject.write(0..block * 3 / 2, Fill::Text(1), MIB)?;
            for round in 0..80 {
                let start = random.u64(0..block * 3 / 2);
                let range = start..start + random.u64(1..200_000);
                subject.write(range, Fill::Noise(round), 32 * KIB)?;
                if round % 7 == 0 {
                    subject.file.sync_data()?;
                }
            }
            Ok(())
        })?;
        self.file("overwritten/same-place", |subject, _| {
            for round in 0..20 {
                subject.write(1000..70_000, Fill::Noise(round), 4 * KIB)?;
                subject.file.sync_all()?;
            }
            Ok(())
        })?;
        self.file("overwritten/backwards", |subject, _| {
            for piece in (0..40).rev() {
                subject.write(
                    piece * 50_000..(piece + 1) * 50_000,
                    Fill::Noise(piece),
                    MIB,
                )?;
            }
            Ok(())
        })?;
        self.file("overwritten/edge-of-blocks", |subject, _| {
            for edge in 1..4 {
                let range = edge * block - 10..edge * block + 10;
                subject.write(range, Fill::Noise(edge), MIB)?;
                subject.file.sync_all()?;
            }
            Ok(())
        })
    }

    fn truncated(&mut self) -> Result<()> {
        self.mkdir("truncated")?;
        self.file("truncated/down", |subject, _| {
            subject.write(0..3 * MIB, Fill::Noise(1), MIB)?;
            subject.truncate(MIB + 17)
        })?;
        self.file("truncated/down-up", |subject, _| {
            subject.write(0..3 * MIB, Fill::Noise(2), MIB)?;
            subject.file.sync_all()?;
            subject.truncate(100_001)?;
            subject.truncate(2 * MIB)
        })?;
        self.file("truncated/to-nothing", |subject, _| {
            subject.write(0..MIB, Fill::Text(3), MIB)?;
            subject.truncate(0)
        })?;
        self.file("truncated/rewritten", |subject, _| {
            subject.write(0..2 * MIB, Fill::Text(4), MIB)?;
            subject.truncate(0)?;
            subject.write(500..5000, Fill::Noise(4), MIB)
        })?;
        self.file("truncated/written-beyond", |subject, _| {
            subject.write(0..200_000, Fill::Noise(5), MIB)?;
            subject.file.sync_all()?;
            subject.truncate(70_000)?;
            subject.write(150_000..160_000, Fill::Noise(6), MIB)
        })
    }

    fn punched(&mut self) -> Result<()> {
        self.mkdir("punched")?;
        let block = self.options.block_bytes;
        self.file("punched/holes", |subject, random| {
            subject.write(0..2 * block + 12345, Fill::Noise(1), MIB)?;
            for round in 0..20 {
                let start = random.u64(0..2 * block);
                subject.punch(start..start + random.u64(1..300_000))?;
                if round == 10 {
                    subject.file.sync_all()?;
                }
            }
            subject.write(500_000..500_100, Fill::Noise(2), MIB)
        })?;
        self.file("punched/over-the-end", |subject, _| {
            subject.write(0..200_000, Fill::Noise(3), MIB)?;
            subject.punch(150_000..400_000)
        })?;
        self.file("punched/whole", |subject, _| {
            subject.write(0..200_000, Fill::Noise(4), MIB)?;
            subject.punch(0..200_000)
        })
    }

    fn links(&mut self) -> Result<()> {
        self.mkdir("links")?;
        self.mkdir("links/elsewhere")?;
        self.file("links/first", |subject, _| {
            subject.write(0..5000, Fill::Text(9), MIB)
        })?;
        for name in ["links/second", "links/elsewhere/third", "links/fourth"] {
            std::fs::hard_link(self.root.join("links/first"), self.root.join(name))?;
            let first = Some(PathBuf::from("links/first"));
            let node = self.nodes[Path::new("links/first")].clone();
            self.nodes.insert(name.into(), Node { first, ..node });
        }
        if self.options.trash {
            return Ok(());
        }
        // A file that had two names and lost the first one.
        self.file("links/lost", |subject, _| {
            subject.write(0..10, Fill::Text(9), MIB)
        })?;
        std::fs::hard_link(self.root.join("links/lost"), self.root.join("links/kept"))?;
        std::fs::remove_file(self.root.join("links/lost"))?;
        if let Some(node) = self.nodes.remove(Path::new("links/lost")) {
            self.nodes.insert("links/kept".into(), node);
        }
        Ok(())
    }

    fn symlinks(&mut self) -> Result<()> {
        self.mkdir("symlinks")?;
        let targets: [(&str, Vec<u8>); 5] = [
            ("file", b"../sizes/s1".to_vec()),
            ("directory", b"..".to_vec()),
            ("dangling", b"/does/not/exist".to_vec()),
            ("long", [b"x/".repeat(1900), b"end".to_vec()].concat()),
            ("not-utf8", b"caf\xe9".to_vec()),
        ];
        for (name, target) in targets {
            let path = format!("symlinks/{name}");
            symlink(OsStr::from_bytes(&target), self.root.join(&path))?;
            self.record(
                &path,
                Node {
                    target: Some(target),
                    ..node_like(0o120777)
                },
            )?;
        }
        Ok(())
    }

    fn special(&mut self) -> Result<()> {
        self.mkdir("special")?;
        let kinds = [
            ("fifo", FileType::Fifo, 0o010640, 0, true),
            ("socket", FileType::Socket, 0o140600, 0, true),
            (
                "char",
                FileType::CharacterDevice,
                0o020660,
                rustix::fs::makedev(1, 3),
                false,
            ),
            (
                "block",
                FileType::BlockDevice,
                0o060600,
                rustix::fs::makedev(259, 70_000),
                false,
            ),
        ];
        for (name, kind, mode, device, anyone) in kinds {
            if !anyone && !self.privileged {
                continue;
            }
            let path = format!("special/{name}");
            let bits = Mode::from_raw_mode(mode & 0o7777);
            rustix::fs::mknodat(CWD, self.root.join(&path), kind, bits, device)?;
            rustix::fs::chmod(self.root.join(&path), bits)?;
            self.record(
                &path,
                Node {
                    rdev: device,
                    ..node_like(mode)
                },
            )?;
        }
        Ok(())
    }

    fn names(&mut self) -> Result<()> {
        self.mkdir("names")?;
        let longest = "n".repeat(255);
        let names: [&[u8]; 12] = [
            b"new\nline",
            longest.as_bytes(),
            b"not-utf8-\xff\xfe\x80",
            b"-leading-dash",
            "emoji-\u{1f980}".as_bytes(),
            b" blanks ",
            b"tab\tand\\backslash",
            b"...",
            b"back`tick $(true) 'quote' \"double\"",
            b"%s%n*?[a]",
            b"\x01\x7f",
            "\u{e4}-\u{61}\u{308}".as_bytes(),
        ];
        for name in names {
            let path = Path::new("names").join(OsStr::from_bytes(name));
            let fill = self.fill();
            self.file(&path, |subject, _| {
                subject.write(0..name.len() as u64, fill, MIB)
            })?;
        }
        Ok(())
    }

    fn large_directory(&mut self) -> Result<()> {
        self.mkdir("many")?;
        for index in 0..self.options.directory_entries {
            let path = format!("many/entry-{index}");
            // Mostly empty files: the directory is the subject here.
            self.file(&path, |subject, _| match index % 100 {
                0 => subject.write(0..100, Fill::Text(index as u64), MIB),
                _ => Ok(()),
            })?;
        }
        Ok(())
    }

    fn deep_directory(&mut self) -> Result<()> {
        let mut path = PathBuf::from("deep");
        self.mkdir(&path)?;
        for level in 0..100 {
            path.push(format!("level{level}"));
            self.mkdir(&path)?;
        }
        path.push("bottom");
        self.file(&path, |subject, _| {
            subject.write(0..100, Fill::Text(1), MIB)
        })
    }

    fn xattrs(&mut self) -> Result<()> {
        self.mkdir("xattrs")?;
        self.mkdir("xattrs/directory")?;
        self.file("xattrs/file", |subject, _| {
            subject.write(0..1, Fill::Text(1), MIB)
        })?;
        for path in ["xattrs/directory", "xattrs/file"] {
            let mut values: Vec<(&str, Vec<u8>)> = vec![
                ("user.text", b"value".to_vec()),
                ("user.empty", Vec::new()),
                ("user.binary", (0..=255).collect()),
                ("user.large", vec![b'x'; self.options.xattr_bytes]),
            ];
            if self.privileged {
                values.push(("trusted.t", b"root".to_vec()));
            }
            let full = self.root.join(path);
            for (name, value) in &values {
                rustix::fs::setxattr(&full, *name, value, XattrFlags::CREATE)
                    .with_context(|| format!("setting {name} of {path}"))?;
            }
            rustix::fs::setxattr(&full, "user.text", b"replaced", XattrFlags::REPLACE)?;
            rustix::fs::setxattr(&full, "user.gone", b"soon", XattrFlags::empty())?;
            rustix::fs::removexattr(&full, "user.gone")?;
            values[0].1 = b"replaced".to_vec();
            let hex = |value: &[u8]| value.iter().map(|byte| format!("{byte:02x}")).collect();
            let node = self
                .nodes
                .get_mut(Path::new(path))
                .context("recorded above")?;
            node.xattrs = values
                .iter()
                .map(|(name, value)| (name.to_string(), hex(value)))
                .collect();
        }
        Ok(())
    }

    fn modes_and_owners(&mut self) -> Result<()> {
        self.mkdir("modes")?;
        for mode in [
            0o000, 0o400, 0o644, 0o755, 0o777, 0o1644, 0o2755, 0o4711, 0o6777, 0o7777,
        ] {
            let path = format!("modes/file-{mode:o}");
            self.file(&path, |_, _| Ok(()))?;
            self.chmod(&path, mode)?;
            let path = format!("modes/dir-{mode:o}");
            self.mkdir(&path)?;
            self.chmod(&path, mode | 0o500)?;
        }
        if self.privileged {
            for (name, uid, gid) in [("nobody", 65534, 65534), ("large", 4_000_000_000, 77)] {
                let path = format!("modes/owned-by-{name}");
                self.file(&path, |_, _| Ok(()))?;
                std::os::unix::fs::lchown(self.root.join(&path), Some(uid), Some(gid))?;
                let node = self
                    .nodes
                    .get_mut(Path::new(&path))
                    .context("recorded above")?;
                (node.uid, node.gid) = (uid, gid);
            }
        }
        Ok(())
    }

    fn times(&mut self) -> Result<()> {
        self.mkdir("times")?;
        let moments = [
            ("past", (1_000_000_000, 123_456_789)),
            ("far-future", (4_102_444_800, 999_999_999)),
            ("epoch", (0, 1)),
        ];
        for (name, (seconds, nanos)) in moments {
            for path in [format!("times/file-{name}"), format!("times/dir-{name}")] {
                if path.contains("file") {
                    self.file(&path, |subject, _| subject.write(0..10, Fill::Text(1), MIB))?;
                } else {
                    self.mkdir(&path)?;
                }
                let time = Timespec {
                    tv_sec: seconds,
                    tv_nsec: nanos,
                };
                let times = Timestamps {
                    last_access: time,
                    last_modification: time,
                };
                rustix::fs::utimensat(
                    CWD,
                    self.root.join(&path),
                    &times,
                    AtFlags::SYMLINK_NOFOLLOW,
                )?;
                let node = self
                    .nodes
                    .get_mut(Path::new(&path))
                    .context("recorded above")?;
                node.mtime = Some((seconds, nanos));
            }
        }
        Ok(())
    }

    fn fill(&mut self) -> Fill {
        let seed = self.random.u64(..);
        if seed.is_multiple_of(2) {
            Fill::Noise(seed)
        } else {
            Fill::Text(seed)
        }
    }

    fn file(
        &mut self,
        path: impl AsRef<Path>,
        write: impl FnOnce(&mut Subject, &mut fastrand::Rng) -> Result<()>,
    ) -> Result<()> {
        let path = path.as_ref();
        let full = self.root.join(path);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&full);
        let mut subject = Subject::new(file.with_context(|| format!("creating {path:?}"))?);
        write(&mut subject, &mut self.random).with_context(|| format!("{path:?}"))?;
        drop(subject.file);
        self.record(
            path,
            Node {
                content: Some(subject.content),
                ..node_like(0o100644)
            },
        )?;
        self.chmod(path, 0o644)
    }

    fn mkdir(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        std::fs::create_dir(self.root.join(path)).with_context(|| format!("mkdir {path:?}"))?;
        self.record(path, node_like(0o040755))?;
        self.chmod(path, 0o755)
    }

    // Umask and inherited group bits are the test runner's: modes are set, not assumed.
    fn chmod(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let full = self.root.join(path.as_ref());
        std::fs::set_permissions(&full, std::fs::Permissions::from_mode(mode))?;
        let node = self
            .nodes
            .get_mut(path.as_ref())
            .context("recorded when made")?;
        node.mode = node.mode & !0o7777 | mode;
        Ok(())
    }

    fn record(&mut self, path: impl AsRef<Path>, node: Node) -> Result<()> {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let taken = self
            .nodes
            .insert(path.as_ref().to_path_buf(), Node { uid, gid, ..node });
        ensure!(taken.is_none(), "{:?} was made twice", path.as_ref());
        Ok(())
    }
}

fn node_like(mode: u32) -> Node {
    Node {
        mode,
        ..Node::default()
    }
}
