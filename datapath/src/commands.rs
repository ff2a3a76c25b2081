//! The commands, one file each. A command answers `Ok` or one sentence for the user.

pub mod clone;
pub mod compact;
pub mod config;
pub mod destroy;
pub mod dump;
pub mod format;
pub mod fsck;
pub mod gc;
pub mod info;
pub mod load;
pub mod mount;
pub mod quota;
pub mod restore;
pub mod rmr;
pub mod status;
pub mod summary;
pub mod table;
pub mod tool;
pub mod umount;
pub mod volume;

use sluice_meta::error::EngineError;
use sluice_meta::url::MetaUrl;

/// What a failed command says: what, why, what to do. One sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// Result of a command.
pub type Outcome = Result<(), Failure>;

impl Failure {
    /// From any error that is a sentence already.
    pub fn from_error(error: impl std::fmt::Display) -> Failure {
        // An error's text may come from a library and span lines; ours is one.
        Failure(
            error
                .to_string()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
        )
    }

    /// From a metadata store that could not be connected to.
    pub fn from_store(error: EngineError) -> Failure {
        match error {
            EngineError::Unreachable { .. } => Failure(format!(
                "{error}; check that the server runs and that the address is right"
            )),
            other => Failure::from_error(other),
        }
    }
}

/// Name of the virtual extended attribute by which tools learn what serves a path.
pub const WHERE_XATTR: &str = "sluice.where";

/// Name of the virtual extended attribute that holds the server's counters, as Prometheus text.
pub const STATS_XATTR: &str = "sluice.stats";

/// Name of the virtual extended attribute by which tools that changed a directory past its server make the
/// kernel forget one of its names: to be set to that name.
pub const FORGET_XATTR: &str = "sluice.forget";

/// Name of the virtual extended attribute by which tools make a server flush everything that was written before:
/// it can be read when that is done.
pub const FLUSH_XATTR: &str = "sluice.flush";

/// What [`WHERE_XATTR`] holds, as JSON.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Where {
    /// Metadata engine, without a password.
    pub meta: String,
    /// Volume name.
    pub volume: String,
    /// The server's process.
    pub pid: i32,
    /// Program version.
    pub version: String,
    /// Inode of the path asked about.
    pub inode: u64,
}

/// Asks the server behind `path` what it is; `None` if it is not SluiceFS.
pub fn whereabouts(path: &std::path::Path) -> std::io::Result<Option<Where>> {
    let mut buffer = vec![0u8; 4096];
    match rustix::fs::lgetxattr(path, WHERE_XATTR, &mut buffer) {
        Ok(length) => Ok(serde_json::from_slice(&buffer[..length]).ok()),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The metadata engine named on the command line; a password may come from `META_PASSWORD`, that of
/// sentinels from `SENTINEL_PASSWORD`.
pub fn parse_url(text: &str) -> Result<MetaUrl, Failure> {
    let password = std::env::var("META_PASSWORD").ok();
    let url = MetaUrl::parse(text, password.as_deref()).map_err(Failure::from_error)?;
    Ok(url.with_sentinel_password(std::env::var("SENTINEL_PASSWORD").ok()))
}
