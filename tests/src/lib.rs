//! What the end-to-end tests stand on: real volumes, real servers, real mounts, and judges.
//!
//! The tests themselves are one binary, `tests/tests/e2e`. Here is, in reading order:
//! - `harness`: `Scratch` directories, `Volume`s on either engine, running the `sluice` binary, and
//!   `check`, which every test runs its body through so that a failure shows the servers' logs;
//! - `mount`: `Mount`, a running server and its mount point, which always cleans up, with a watchdog
//!   that breaks a hung mount; `deadline`: waiting for processes and conditions, always bounded;
//! - `redis`, `juicefs`, `golden`: a private Redis, JuiceFS as the other side, volumes JuiceFS made;
//! - `manifest`, `tree`, `content`, `model`, `compare`, `snapshot`: the judges. They know what a tree must look
//!   like and say in words where a mount differs.
//!
//! Rules: nothing outside the test's scratch directory is changed (exceptions are restored by a
//! guard); waits are for conditions and never for time to pass; a missing tool fails or says loudly
//! that a comparison was skipped.
#![deny(unsafe_code)]

pub mod aligned;
pub mod compare;
pub mod content;
pub mod deadline;
pub mod fio;
pub mod golden;
pub mod hammer;
pub mod harness;
pub mod journal;
pub mod juicefs;
pub mod manifest;
pub mod model;
pub mod mount;
pub mod oracle;
pub mod redis;
pub mod snapshot;
pub mod tree;

/// Turns bodies `fn(Engine) -> anyhow::Result<()>` of the enclosing module into tests, one for each
/// metadata engine: `on_sqlite::<name>` and `on_redis::<name>`.
#[macro_export]
macro_rules! on_both_engines {
    ($($name:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[test] fn $name() {
                $crate::harness::check(|| super::$name($crate::harness::Engine::Sqlite));
            })+
        }
        mod on_redis {
            $(#[test] fn $name() {
                $crate::harness::check(|| super::$name($crate::harness::Engine::Redis));
            })+
        }
    };
}
