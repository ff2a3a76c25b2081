//! Access times: when they are due, and the commit that moves one.
//!
//! The front door calls [`Meta::touch_atime`] after it has answered a read, an open, a listing or a readlink,
//! never before. Round trips: one read, and one commit if the time is due. The commit changes the access time and
//! nothing else, ctime included; nothing happens on read-only mounts.

use crate::client::{Attempt, Meta, MetaResult, Sight};
use crate::engine::{AttrFields, Check, Key, Write};
use crate::limits::{RELATIME_AGE, STRICTATIME_AGE};
use crate::types::{Attr, Ino, Timestamp};

use super::plan::{Applied, Plan};

/// When access times move.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AtimeMode {
    /// Never.
    #[default]
    Noatime,
    /// If it is not later than the last change, or a day old.
    Relatime,
    /// With every access, but no more than once a second.
    Strictatime,
}

impl AtimeMode {
    /// From the option's word.
    pub fn from_name(name: &str) -> Option<AtimeMode> {
        Some(match name {
            "noatime" => AtimeMode::Noatime,
            "relatime" => AtimeMode::Relatime,
            "strictatime" => AtimeMode::Strictatime,
            _ => return None,
        })
    }

    /// Whether an access at `now` moves the access time of an inode with these attributes.
    pub fn is_due(self, attr: &Attr, now: Timestamp) -> bool {
        let older_than = |age: i64| {
            let then = Timestamp {
                sec: attr.atime.sec.saturating_add(age),
                nsec: attr.atime.nsec,
            };
            now > then
        };
        let relative =
            || attr.mtime > attr.atime || attr.ctime > attr.atime || older_than(RELATIME_AGE);
        match self {
            AtimeMode::Noatime => false,
            AtimeMode::Relatime => relative(),
            AtimeMode::Strictatime => relative() || older_than(STRICTATIME_AGE),
        }
    }
}

impl Meta {
    /// How this mount keeps access times; read-only mounts do not.
    pub fn atime_mode(&self) -> AtimeMode {
        if self.shared.options.read_only {
            AtimeMode::Noatime
        } else {
            self.shared.options.atime
        }
    }

    /// Moves the access time of `ino` to now if it is due; answers whether it was.
    pub async fn touch_atime(&self, ino: Ino) -> MetaResult<bool> {
        if self.atime_mode() == AtimeMode::Noatime || ino.is_trash() {
            return Ok(false);
        }
        self.run(async |sight| self.try_touch_atime(sight, ino).await)
            .await
    }

    async fn try_touch_atime(&self, sight: &Sight, ino: Ino) -> MetaResult<Attempt<bool>> {
        let found = self.fetch_at(sight, &[Key::Attr(ino)]).await?.attr()?;
        let now = self.now();
        // Gone, or somebody else was here first: nothing to do.
        let Some(old) = found.filter(|attr| self.atime_mode().is_due(attr, now)) else {
            return Ok(sight.done(false));
        };
        let new = Attr {
            atime: now,
            ..old.clone()
        };
        let mut plan = Plan::default();
        plan.check(Check::Attr {
            ino,
            fields: AttrFields::ALL,
            expect: old.clone(),
        });
        plan.write(Write::UpdateAttr { ino, old, new });
        Ok(match self.apply(plan).await? {
            Applied::Committed { .. } => Attempt::Done(true),
            Applied::Conflict { ino, .. } => Attempt::Conflict(ino),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trash;

    #[test]
    fn when_it_is_due() {
        let at = |sec| Timestamp { sec, nsec: 5 };
        const DAY: i64 = 24 * 3600;
        // (atime, mtime, ctime, now) -> relatime, strictatime.
        for (atime, mtime, ctime, now, relative, strict) in [
            (100, 100, 100, 100, false, false),
            (100, 100, 100, 101, false, false),
            (100, 100, 100, 102, false, true),
            (100, 101, 100, 100, true, true),
            (100, 100, 101, 100, true, true),
            (100, 50, 50, 100 + DAY, false, true),
            (100, 50, 50, 101 + DAY, true, true),
            (100, 50, 50, 90, false, false),
            (i64::MAX, 1, 1, 100, false, false),
        ] {
            let attr = Attr {
                atime: at(atime),
                mtime: at(mtime),
                ctime: at(ctime),
                ..trash::directory(Ino::ROOT, at(0))
            };
            let case = format!("{atime} {mtime} {ctime} {now}");
            assert!(!AtimeMode::Noatime.is_due(&attr, at(now)), "{case}");
            assert_eq!(
                AtimeMode::Relatime.is_due(&attr, at(now)),
                relative,
                "{case}"
            );
            assert_eq!(
                AtimeMode::Strictatime.is_due(&attr, at(now)),
                strict,
                "{case}"
            );
        }
    }
}
