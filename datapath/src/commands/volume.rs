//! A volume as the offline tools hold it: its engine, its setting, its blocks without a cache; and the little
//! that they share.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{BufRead, Write};
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use sluice_meta::client::{Meta, MetaOptions, Shared};
use sluice_meta::engine::AnyEngine;
use sluice_meta::runtime::Runtime;
use sluice_meta::store::{Access, Store};
use sluice_meta::tools::load_volume;
use sluice_meta::types::SliceId;
use sluice_meta::url::MetaUrl;
use sluice_meta::volume::Setting;

use super::Failure;
use crate::cache::{BlockId, BlockIo};
use crate::config::parse_count;
use crate::error::ObjectError;
use crate::file::join_all;
use crate::object::{AnyStore, BlockStore, Listed, LocalStore, ObjectStore, ObjectSync};
use crate::runtime::GlommioRuntime;
use crate::volume_store;

/// Blocks straight from the store: what a tool reads it reads once.
pub struct Direct(pub BlockStore);

impl BlockIo for Direct {
    fn block_bytes(&self) -> u32 {
        self.0.layout().block_bytes
    }

    async fn read(&self, block: BlockId, range: Range<u32>) -> Result<Vec<Bytes>, ObjectError> {
        Ok(vec![self.0.get_block(block, range).await?])
    }

    async fn write(&self, block: BlockId, data: Vec<Bytes>) -> Result<(), ObjectError> {
        self.0.put_block(block, data).await
    }

    async fn remove(&self, block: BlockId) -> Result<(), ObjectError> {
        self.0.delete_block(block).await
    }
}

/// See the module.
pub struct Volume {
    /// The metadata.
    pub meta: Meta,
    /// Its setting.
    pub setting: Setting,
    /// The data.
    pub blocks: Direct,
}

/// Connects to a metadata store.
pub async fn connect(
    url: &MetaUrl,
    access: Access,
    runtime: &Rc<dyn Runtime>,
) -> Result<AnyEngine, Failure> {
    let store = Store::open(url, access).map_err(Failure::from_error)?;
    store
        .connect(Rc::clone(runtime))
        .await
        .map_err(Failure::from_store)
}

/// The runtime of a command.
pub fn runtime() -> Rc<dyn Runtime> {
    Rc::new(GlommioRuntime::new())
}

impl Volume {
    /// Opens the volume at `url`, whose objects may have moved to `bucket`. One whose changes have to be logged is
    /// refused for writing.
    pub async fn open(
        url: &MetaUrl,
        access: Access,
        bucket: Option<&str>,
    ) -> Result<Volume, Failure> {
        let runtime = runtime();
        let engine = connect(url, access, &runtime).await?;
        let setting = load_volume(&engine).await.map_err(Failure::from_error)?;
        let read_only = access == Access::ReadOnly;
        if setting.change_log && !read_only {
            return Err(Failure(
                "every change of this volume has to be logged in its metadata (ChangeLog), which this client \
                 does not do: use JuiceFS for it"
                    .into(),
            ));
        }
        let place = volume_store::bucket(&setting, bucket)?;
        let store = LocalStore::new(place.path(), &setting.name, ObjectSync::Full);
        let layout = volume_store::layout(&setting)?;
        let options = MetaOptions {
            read_only,
            ..MetaOptions::default()
        };
        let shared = Shared::new(setting.clone(), options);
        Ok(Volume {
            meta: Meta::new(Rc::new(engine), runtime, shared),
            setting,
            blocks: Direct(BlockStore::new(AnyStore::Local(store), layout)),
        })
    }

    /// The store of the objects.
    pub fn store(&self) -> &AnyStore {
        self.blocks.0.store()
    }
}

/// `--threads`, as JuiceFS takes it.
pub fn threads(text: &str) -> Result<usize, Failure> {
    let count = parse_count("--threads", text, 1..=1000).map_err(Failure::from_error)?;
    Ok(count as usize)
}

/// Does `work` for every item, `threads` at a time. The work counts its own failures.
pub async fn for_each<T>(
    items: impl IntoIterator<Item = T>,
    threads: usize,
    work: impl AsyncFn(T),
) {
    let queue: RefCell<VecDeque<T>> = RefCell::new(items.into_iter().collect());
    let worker = async || {
        loop {
            let next = queue.borrow_mut().pop_front();
            let Some(item) = next else { break };
            work(item).await;
        }
    };
    join_all((0..threads.max(1)).map(|_| worker()).collect()).await;
}

/// Every object below `top`, a directory at a time; memory holds one directory of each level. Directories
/// themselves are answered in the order in which they may be removed.
pub async fn walk_objects(
    store: &AnyStore,
    top: &str,
    mut found: impl AsyncFnMut(Vec<Listed>),
) -> Result<Vec<String>, ObjectError> {
    let mut todo = vec![top.to_owned()];
    let mut dirs = Vec::new();
    while let Some(dir) = todo.pop() {
        let (below, objects): (Vec<_>, Vec<_>) = store
            .list(&dir)
            .await?
            .into_iter()
            .partition(|one| one.is_dir);
        todo.extend(below.into_iter().map(|one| one.key));
        dirs.push(dir);
        found(objects).await;
    }
    dirs.reverse();
    Ok(dirs)
}

/// The block that an object of the volume is, by its key; `None` for anything else.
pub fn block_of(naming: crate::object::Naming, key: &str) -> Option<BlockId> {
    let name = key.rsplit('/').next()?;
    let mut numbers = name.split('_');
    let block = BlockId {
        slice: SliceId(numbers.next()?.parse().ok()?),
        index: numbers.next()?.parse().ok()?,
        size: numbers.next()?.parse().ok()?,
    };
    (naming.key(block) == key).then_some(block)
}

/// Whether the person at the terminal agrees; no answer is none.
pub fn confirmed() -> bool {
    eprint!("Proceed anyway? [y/N]: ");
    // What cannot be shown cannot be answered.
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Naming;

    #[test]
    fn keys_are_read_back() {
        let block = |key| block_of(Naming::Plain, key);
        let found = block("chunks/1/1234/1234567_2_1048576").unwrap();
        assert_eq!(
            (found.slice, found.index, found.size),
            (SliceId(1_234_567), 2, 1 << 20)
        );
        for key in [
            "juicefs_uuid",
            "chunks/1/1234/1234567_2",
            "chunks/1/1235/1234567_2_1048576",
            "chunks/1/1234/01234567_2_1048576",
            "chunks/1/1234/1234567_2_1048576_1",
        ] {
            assert_eq!(block(key), None, "{key}");
        }
    }
}
