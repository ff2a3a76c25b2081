//! SluiceFS metadata: JuiceFS volumes, operations written once, engines of three verbs.
//!
//! Reading order: [`types`] names things; [`engine`] defines records, and the verbs `read`, `scan` and
//! `commit` that every store offers; `ops` (methods of [`client::Meta`], one file per family) decide what
//! a file-system operation means; [`client`] is what a core of the server holds;
//! [`parity`] says what of JuiceFS' client is here and which tests prove it.
//!
//! One operation, walked through (`unlink` of a file with one link):
//! 1. one `read` fetches the parent's attributes, the dentry and the attributes it leads to;
//! 2. pure code checks the rules and lists effects;
//! 3. one `commit` carries the facts relied upon as checks (parent is still a live directory, dentry and
//!    file unchanged) and the effects as writes. The engine applies all or nothing, in one round trip;
//! 4. `Conflict` starts again at 1 within a budget; memory (open files, pending statistics) changes only
//!    after `Committed`.
//!
//! Invariants: `one-commit` (an op's effects are one check-and-apply), `no-engine-names` (`ops` knows no
//! engine, engines know no POSIX), `ids-from-counters` (inode and slice numbers come from the volume's
//! counters and are never reused). This crate knows nothing of FUSE, glommio or the bytes of blocks: what
//! it needs of an executor is the [`runtime::Runtime`] trait.
#![forbid(unsafe_code)]

pub mod acl_cache;
pub mod changes;
pub mod client;
pub mod engine;
pub mod error;
pub mod jobs;
pub mod limits;
pub mod ops;
pub mod parity;
pub mod quota;
pub mod recall;
pub mod runtime;
pub mod store;
pub mod tools;
pub mod types;
pub mod url;
pub mod volume;
