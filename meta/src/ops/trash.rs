//! The trash: hour directories and the names of entries in them.
//!
//! `.trash` holds one directory for each hour in which something was removed, `YYYY-MM-DD-HH` in UTC. An
//! entry in it is called `<parent>-<inode>-<name>`, cut to 255 bytes (possibly within a character), so that
//! it can be put back. The trash is flat: directories are empty when they arrive.
//!
//! [`Meta::trash_hour`] is called by removal before its commit. Round trips: none while the hour lasts; one
//! read to find an hour directory somebody else made; read, id and commit to make it. Losing the race to make
//! it wastes a number and answers the winner's.

use bytes::{BufMut, BytesMut};

use crate::client::{Attempt, Meta, MetaResult};
use crate::engine::{AttrFields, Check, Counter, Engine, Key, Write};
use crate::error::{EngineError, MetaError};
use crate::limits::NAME_BYTES_MAX;
use crate::types::{Attr, Dentry, FileKind, Ino, Name, Timestamp, align_4k};

use super::names;
use super::plan::{Applied, Plan};

/// Attributes of `.trash` and its hour directories.
pub(crate) fn directory(parent: Ino, now: Timestamp) -> Attr {
    Attr {
        flags: 0,
        kind: FileKind::Directory,
        mode: 0o555,
        uid: 0,
        gid: 0,
        atime: now,
        mtime: now,
        ctime: now,
        nlink: 2,
        length: 4096,
        rdev: 0,
        parent,
        access_acl: 0,
        default_acl: 0,
        tier: 0,
    }
}

/// Name of an entry in the trash.
pub(crate) fn entry_name(parent: Ino, ino: Ino, name: &[u8]) -> Name {
    let mut full = BytesMut::from(format!("{parent}-{ino}-").as_bytes());
    full.put_slice(name);
    full.truncate(NAME_BYTES_MAX);
    full.freeze()
}

/// Name of the directory of an hour since the epoch.
pub(crate) fn hour_name(hour: i64) -> Name {
    let (year, month, day) = civil_date(hour.div_euclid(24));
    format!("{year:04}-{month:02}-{day:02}-{:02}", hour.rem_euclid(24))
        .into_bytes()
        .into()
}

/// The hour since the epoch that a directory of the trash is named after; `None` for any other name.
pub(crate) fn hour_of(name: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(name).ok()?;
    let mut parts = text.splitn(4, '-').map(str::parse::<i64>);
    let mut part = || parts.next()?.ok();
    let (year, month, day, hour) = (part()?, part()?, part()?, part()?);
    let fits = (0..=9999).contains(&year) && (1..=12).contains(&month);
    if !fits || !(1..=31).contains(&day) || !(0..24).contains(&hour) {
        return None;
    }
    // The inverse of `civil_date`; what is no date does not come back as the same name.
    let year_from_march = if month > 2 { year } else { year - 1 };
    let era = year_from_march.div_euclid(400);
    let year_of_era = year_from_march.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let hours = days * 24 + hour;
    (hour_name(hours) == name).then_some(hours)
}

/// What the name of an entry in the trash says: the directory it was in, and its name there.
pub(crate) fn origin(name: &[u8]) -> Option<(Ino, &[u8])> {
    let mut parts = name.splitn(3, |byte| *byte == b'-');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
    let (parent, _): (u64, u64) = (number()?, number()?);
    let name = parts.next().filter(|name| !name.is_empty())?;
    Some((Ino(parent), name))
}

/// Proleptic Gregorian date of a day since the epoch: years start in March, so that the leap day is the last
/// of its year, and 400 years have 146 097 days. Example: day 19 782 is 2024-02-29.
fn civil_date(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468; // days since 0000-03-01
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

impl Meta {
    /// The directory for what is removed at `now`.
    pub(crate) async fn trash_hour(&self, now: Timestamp) -> MetaResult<Ino> {
        let hour = now.sec.div_euclid(3600);
        let known = *self.shared.trash_hour.lock();
        if let Some((_, ino)) = known.filter(|known| known.0 == hour) {
            return Ok(ino);
        }
        let ino = self
            .run(async |_| self.try_trash_hour(hour, now).await)
            .await?;
        *self.shared.trash_hour.lock() = Some((hour, ino));
        Ok(ino)
    }

    /// The hour directory turned out to be gone.
    pub(crate) fn forget_trash_hour(&self) {
        *self.shared.trash_hour.lock() = None;
    }

    async fn try_trash_hour(&self, hour: i64, now: Timestamp) -> MetaResult<Attempt<Ino>> {
        let name = hour_name(hour);
        let keys = [
            Key::Attr(Ino::TRASH),
            Key::Entry {
                parent: Ino::TRASH,
                name: name.clone(),
            },
        ];
        let mut answers = self.fetch(&keys).await?;
        let trash = answers.attr()?;
        let entry = answers.entry()?;
        if let Some((dentry, Some(_))) = &entry {
            if dentry.kind != FileKind::Directory || dentry.ino <= Ino::TRASH {
                return Err(damaged(&name, *dentry));
            }
            return Ok(Attempt::Done(dentry.ino));
        }
        // A dangling entry is given a new directory.
        self.make_trash_hour(name, trash, entry.map(|(dentry, _)| dentry), now)
            .await
    }

    async fn make_trash_hour(
        &self,
        name: Name,
        trash: Option<Attr>,
        stale: Option<Dentry>,
        now: Timestamp,
    ) -> MetaResult<Attempt<Ino>> {
        let number = self.engine.alloc(Counter::NextTrash, 1).await?;
        let ino = Ino(Ino::TRASH.0.saturating_add(number));
        let dentry = Dentry {
            kind: FileKind::Directory,
            ino,
        };
        let mut plan = Plan::default();
        if let Some(expect) = trash {
            plan.check(Check::Attr {
                ino: Ino::TRASH,
                fields: AttrFields::EXISTS,
                expect,
            });
        } else {
            // Formatted with the trash off: the trash itself is not there yet.
            plan.check(Check::NoAttr(Ino::TRASH));
            plan.write(Write::InsertAttr {
                ino: Ino::TRASH,
                attr: directory(Ino::ROOT, now),
            });
        }
        let parent = Ino::TRASH;
        plan.check(Check::Dentry {
            parent,
            name: name.clone(),
            expect: stale,
        });
        plan.check(Check::NoAttr(ino));
        let hour = directory(parent, now);
        plan.write(Write::InsertAttr {
            ino,
            attr: hour.clone(),
        });
        plan.write(match stale {
            None => Write::InsertDentry {
                parent,
                name,
                dentry,
            },
            Some(_) => Write::ReplaceDentry {
                parent,
                name,
                dentry,
            },
        });
        plan.write(Write::InitDirStat(ino));
        plan.charge(&hour, align_4k(0), 1);
        Ok(match self.apply(plan).await? {
            Applied::Committed { .. } => Attempt::Done(ino),
            Applied::Conflict { ino, .. } => Attempt::Conflict(ino),
        })
    }
}

fn damaged(name: &[u8], dentry: Dentry) -> MetaError {
    EngineError::Corrupt {
        record: format!(
            "entry {} of {}",
            name.escape_ascii(),
            names::TRASH.escape_ascii()
        ),
        cause: format!("{dentry:?} is no hour directory"),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hour_names_are_utc_dates() {
        for (sec, name) in [
            (0, "1970-01-01-00"),
            (951_782_400, "2000-02-29-00"),
            (1_709_251_199, "2024-02-29-23"),
            (1_709_251_200, "2024-03-01-00"),
            (4_102_444_799, "2099-12-31-23"),
            (4_107_542_400, "2100-03-01-00"),
            (-1, "1969-12-31-23"),
        ] {
            assert_eq!(
                hour_name(i64::div_euclid(sec, 3600)),
                name.as_bytes(),
                "{sec}"
            );
        }
    }

    #[test]
    fn hours_come_back_from_their_names() {
        for hour in [0, 1, -1, 23, 24, 473_000, 474_779, 488_000, 1_139_000] {
            assert_eq!(hour_of(&hour_name(hour)), Some(hour));
        }
        for name in [
            "2026-02-29-00",
            "2026-13-01-00",
            "2026-01-01-24",
            "2026-1-01-00",
            "2026-01-01",
            "2026-01-01-00-",
            "2026-01-0:-00",
            "9223372036854775807-01-01-00",
            "2026-01-9223372036854775807-00",
            "",
        ] {
            assert_eq!(hour_of(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn origins_come_back_from_entry_names() {
        let cases: [(&[u8], _); 6] = [
            (b"1-25-a-b", Some((Ino(1), &b"a-b"[..]))),
            (b"1-25-\xff", Some((Ino(1), &b"\xff"[..]))),
            (b"1-25-", None),
            (b"1-25", None),
            (b"x-25-a", None),
            (b"1--a", None),
        ];
        for (name, expect) in cases {
            assert_eq!(origin(name), expect, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn entry_names_are_cut_by_bytes() {
        assert_eq!(entry_name(Ino(1), Ino(25), b"a-b"), "1-25-a-b".as_bytes());
        let long = "é".repeat(127);
        let name = entry_name(Ino(1), Ino(2), long.as_bytes());
        assert_eq!(name.len(), NAME_BYTES_MAX);
        assert_eq!(name[..4], *b"1-2-");
        assert_eq!(name[4..], long.as_bytes()[..251]);
    }
}
