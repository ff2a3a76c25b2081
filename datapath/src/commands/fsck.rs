//! `sluice fsck`: whether every block of every slice is there, references and usage are right, and directories
//! agree with what is in them. Exit code 1 if something is wrong and was not repaired.
//!
//! Memory: 36 bytes for each slice (`tools::leaks`) and 16 for the count of its blocks, and one directory of
//! objects.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use sluice_meta::engine::{AnyEngine, Engine, Item, Key, Record, Scan};
use sluice_meta::store::Access;
use sluice_meta::tools::check::{CheckOptions, Finding, check_tree, check_usage};
use sluice_meta::tools::leaks::{Slices, Use, slices, wrong_references};
use sluice_meta::types::{FileKind, Ino, Name, SliceId};

use super::status::size;
use super::volume::{Volume, block_of, walk_objects};
use super::{Failure, Outcome};
use crate::cache::{BlockIo, blocks_of};
use crate::cli::FsckArgs;
use crate::object::ObjectStore;
use crate::runtime::run_on_one;

/// Problems that are shown one by one.
const SHOWN_MAX: usize = 100;

/// Runs the command.
pub fn run(args: &FsckArgs) -> Outcome {
    let mode = u16::from_str_radix(&args.repair_dir_mode, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| {
            Failure(format!(
                "--repair-dir-mode cannot be {:?}: it is permission bits in octal, such as 0755",
                args.repair_dir_mode
            ))
        })?;
    let url = super::parse_url(&args.meta_url)?;
    let access = if args.repair {
        Access::ReadWrite
    } else {
        Access::ReadOnly
    };
    let options = CheckOptions {
        recursive: args.recursive,
        repair: args.repair,
        sync_dir_stat: args.sync_dir_stat,
        dir_mode: mode,
    };
    run_on_one(|| async move {
        let volume = Volume::open(&url, access, args.bucket.as_deref()).await?;
        let fsck = Fsck {
            volume,
            wrong: RefCell::default(),
        };
        match args.path.as_deref() {
            Some(path) => fsck.tree(path, options).await?,
            None => {
                fsck.blocks().await?;
                fsck.usage(options).await?;
                if args.recursive || args.sync_dir_stat {
                    let options = CheckOptions {
                        recursive: true,
                        ..options
                    };
                    fsck.tree("/", options).await?;
                }
            }
        }
        fsck.verdict()
    })
    .map_err(Failure::from_error)?
}

#[derive(Default)]
struct Wrong {
    found: usize,
    repaired: usize,
}

struct Fsck {
    volume: Volume,
    wrong: RefCell<Wrong>,
}

impl Fsck {
    fn engine(&self) -> &AnyEngine {
        self.volume.meta.engine()
    }

    fn report(&self, finding: &Finding) {
        let mut wrong = self.wrong.borrow_mut();
        wrong.found += 1;
        wrong.repaired += usize::from(finding.repaired);
        if wrong.found <= SHOWN_MAX {
            let outcome = if finding.repaired { " (repaired)" } else { "" };
            println!("{}{outcome}", finding.text);
        }
    }

    fn wrong(&self, text: String) {
        self.report(&Finding {
            text,
            repaired: false,
        });
    }

    fn verdict(&self) -> Outcome {
        let Wrong { found, repaired } = *self.wrong.borrow();
        if found == repaired {
            println!(
                "{}",
                if found == 0 {
                    "nothing is wrong"
                } else {
                    "everything wrong is repaired"
                }
            );
            return Ok(());
        }
        Err(Failure(format!(
            "{} things are wrong ({repaired} more were repaired): see above; what concerns directories and usage is repaired with --repair",
            found - repaired
        )))
    }

    /// From directory `path` on, or that one alone.
    async fn tree(&self, path: &str, options: CheckOptions) -> Outcome {
        let (mut ino, mut parent) = (Ino::ROOT, Ino::ROOT);
        for name in path.split('/').filter(|part| !part.is_empty()) {
            let key = Key::Dentry {
                parent: ino,
                name: Name::copy_from_slice(name.as_bytes()),
            };
            let record = self
                .engine()
                .read(&[key])
                .await
                .map_err(Failure::from_error)?;
            let record = record.into_iter().next().flatten().map(Record::dentry);
            let dentry = record.transpose().map_err(Failure::from_error)?;
            let Some(dentry) = dentry.filter(|dentry| dentry.kind == FileKind::Directory) else {
                return Err(Failure(format!(
                    "there is no directory {path} in the volume: --path starts at the volume's root"
                )));
            };
            (parent, ino) = (ino, dentry.ino);
        }
        let now = self.volume.meta.now();
        let top = (ino, parent, path.to_owned());
        let mut report = |finding: Finding| self.report(&finding);
        let count = check_tree(self.engine(), top, options, now, &mut report)
            .await
            .map_err(Failure::from_error)?;
        println!("directories:          {count}");
        Ok(())
    }

    async fn usage(&self, options: CheckOptions) -> Outcome {
        let repair = options.repair;
        let (said, counted) = check_usage(self.engine(), repair)
            .await
            .map_err(Failure::from_error)?;
        println!(
            "used:                 {} in {} inodes",
            size(counted.space.unsigned_abs()),
            counted.inodes
        );
        if said != counted {
            let text = format!(
                "the volume's usage is {} bytes in {} inodes and should be {} bytes in {} inodes",
                said.space, said.inodes, counted.space, counted.inodes
            );
            self.report(&Finding {
                text,
                repaired: repair,
            });
        }
        Ok(())
    }

    async fn blocks(&self) -> Outcome {
        let known = slices(self.engine()).await.map_err(Failure::from_error)?;
        let found = self.found_blocks(&known).await?;
        let (mut blocks, mut bytes) = (0_u64, 0_u64);
        let mut broken = BTreeMap::new();
        for (id, slice) in known.iter().filter(|(_, slice)| slice.usage != Use::Dead) {
            let count = slice.size.div_ceil(self.volume.blocks.block_bytes());
            blocks += u64::from(count);
            bytes += u64::from(slice.size);
            if found.get(&id.0).copied().unwrap_or(0) < count {
                broken.insert(id, slice.size);
            }
        }
        println!("slices:               {}", known.iter().count());
        println!("blocks:               {blocks} ({})", size(bytes));
        self.missing(&broken).await?;
        for id in &known.disagreeing {
            self.wrong(format!("records of slice {} say different sizes", id.0));
        }
        let wrong = wrong_references(self.engine(), &known)
            .await
            .map_err(Failure::from_error)?;
        for (id, counted, recorded) in wrong {
            self.wrong(format!(
                "slice {} has {recorded} references and should have {counted}",
                id.0
            ));
        }
        Ok(())
    }

    /// How many blocks of each slice are in the store, of the right length as far as that can be told.
    async fn found_blocks(&self, known: &Slices) -> Result<HashMap<u64, u32>, Failure> {
        let layout = self.volume.blocks.0.layout();
        let found: RefCell<HashMap<u64, u32>> = RefCell::default();
        walk_objects(self.volume.store(), "chunks", async |objects| {
            for object in objects {
                let Some(block) = block_of(layout.naming, &object.key) else {
                    continue;
                };
                let Some(slice) = known.get(block.slice) else {
                    continue;
                };
                let mut blocks = blocks_of(block.slice, slice.size, layout.block_bytes);
                let fits = blocks.nth(block.index as usize) == Some(block);
                let whole = !layout.is_plain() || object.bytes == u64::from(block.size);
                if fits && whole {
                    *found.borrow_mut().entry(block.slice.0).or_default() += 1;
                }
            }
        })
        .await
        .map_err(Failure::from_error)?;
        Ok(found.into_inner())
    }

    /// Names the blocks that are not there, and the files they belong to.
    async fn missing(&self, broken: &BTreeMap<SliceId, u32>) -> Outcome {
        if broken.is_empty() {
            return Ok(());
        }
        let layout = self.volume.blocks.0.layout();
        let mut lost = BTreeMap::new();
        for (&id, &bytes) in broken {
            for block in blocks_of(id, bytes, layout.block_bytes) {
                // Written, or only replaced, since the slices were enumerated.
                let last = u64::from(block.size);
                let key = layout.naming.key(block);
                let range = layout.is_plain().then_some(last - 1..last);
                if let Err(error) = self.volume.store().get(&key, range).await {
                    self.wrong(format!("object {error}"));
                    lost.insert(id, ());
                }
            }
        }
        let mut cursor = None;
        loop {
            let page = self
                .engine()
                .scan(&Scan::AllChunks, cursor.as_ref(), 1000)
                .await
                .map_err(Failure::from_error)?;
            for item in page.items {
                if let Item::FileChunk { ino, index, slices } = item
                    && slices.iter().any(|slice| lost.contains_key(&slice.id))
                {
                    println!("  needed by chunk {} of inode {ino}", index.0);
                }
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(()),
            }
        }
    }
}
