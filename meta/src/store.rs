//! A metadata store as a process sees it: opened once, connected to by each core.

use std::rc::Rc;
use std::sync::Arc;

use crate::engine::redis::Redis;
use crate::engine::sqlite::{Database, OpenMode, Sqlite};
use crate::engine::{AnyEngine, EngineResult};
use crate::runtime::Runtime;
use crate::url::{MetaUrl, RedisUrl};

/// What the store will be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Make it if it is not there.
    Create,
    /// It must be there.
    ReadWrite,
    /// Nothing will be changed.
    ReadOnly,
}

/// An opened store; cheap to clone, may be sent to other cores.
#[derive(Clone)]
pub enum Store {
    /// A local SQLite file.
    Sqlite(Arc<Database>),
    /// A Redis server: each core has its own connection.
    Redis(RedisUrl),
}

impl Store {
    /// Opens the store that `url` names. A Redis server is first spoken to by [`Store::connect`].
    pub fn open(url: &MetaUrl, access: Access) -> EngineResult<Store> {
        match url {
            MetaUrl::Sqlite(url) => {
                let mode = match access {
                    Access::Create => OpenMode::Create,
                    Access::ReadWrite => OpenMode::Existing,
                    Access::ReadOnly => OpenMode::ReadOnly,
                };
                let prefix = url.table_prefix.as_deref();
                let database = Database::open_prefixed(&url.path, prefix, mode)?;
                Ok(Store::Sqlite(database))
            }
            MetaUrl::Redis(url) => Ok(Store::Redis(url.clone())),
        }
    }

    /// An engine for the calling core.
    pub async fn connect(&self, runtime: Rc<dyn Runtime>) -> EngineResult<AnyEngine> {
        match self {
            Store::Sqlite(database) => Ok(AnyEngine::Sqlite(Sqlite::connect(database, runtime)?)),
            Store::Redis(url) => Ok(AnyEngine::Redis(Redis::connect(url, runtime).await?)),
        }
    }
}
