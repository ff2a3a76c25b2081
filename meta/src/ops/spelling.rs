//! Names on a mount where case does not matter (`--case-insensitive`): which entry a name means.
//!
//! An entry spelled exactly as asked comes first; on a miss the directory is listed, page by page, and the first
//! entry that differs by case alone is taken. The spelling in the store is never changed by being found.
//! Cost: a listing of the directory for every miss, also before every create. Two clients that create two
//! spellings at the same moment both succeed, as on JuiceFS.
//!
//! Case is compared by Unicode simple folding, taken from the standard library's tables: a character is folded to
//! the lower case of its upper case where both are single characters (dotless i alone folds to itself), so that
//! final sigma or the Kelvin sign are found and "ss" is not found by a sharp s. Names that are not UTF-8 are
//! compared by bytes, with ASCII case alone.

use crate::client::{Meta, MetaResult};
use crate::engine::{Engine, Item, Key, Scan};
use crate::error::MetaError;
use crate::limits::DIR_PAGE_ENTRIES;
use crate::ops::Rename;
use crate::types::{Ino, Name};

/// Which names are the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NameMatch {
    /// Those with the same bytes.
    #[default]
    Exact,
    /// Also those that differ by case alone.
    IgnoreCase,
}

impl Meta {
    fn ignores_case(&self) -> bool {
        self.shared.options.names == NameMatch::IgnoreCase
    }

    /// The entry of `parent` that `name` means, as it is spelled there; `name` itself if there is none, or if
    /// case matters.
    pub(crate) async fn existing_name(&self, parent: Ino, name: Name) -> MetaResult<Name> {
        if !self.ignores_case() {
            return Ok(name);
        }
        let key = Key::Dentry {
            parent,
            name: name.clone(),
        };
        if self.fetch(&[key]).await?.dentry()?.is_some() {
            return Ok(name);
        }
        Ok(self.other_spelling(parent, &name).await?.unwrap_or(name))
    }

    /// `Exists` if a new entry `name` would differ from another by case alone where that does not matter.
    pub(crate) async fn check_new_name(&self, parent: Ino, name: &Name) -> MetaResult<()> {
        if self.ignores_case() && self.other_spelling(parent, name).await?.is_some() {
            return Err(MetaError::Exists);
        }
        Ok(())
    }

    /// Both names of a rename as they are spelled. A target that is the source itself is a change of spelling.
    pub(crate) async fn respelled(&self, rename: &Rename) -> MetaResult<Rename> {
        let mut rename = rename.clone();
        if self.ignores_case() {
            rename.from_name = self
                .existing_name(rename.from_parent, rename.from_name)
                .await?;
            let target = self
                .existing_name(rename.to_parent, rename.to_name.clone())
                .await?;
            if (rename.from_parent, &rename.from_name) != (rename.to_parent, &target) {
                rename.to_name = target;
            }
        }
        Ok(rename)
    }

    /// An entry that differs from `name` by case alone, or is the same; on a mount where that is found.
    pub(crate) async fn other_spelling(
        &self,
        parent: Ino,
        name: &Name,
    ) -> MetaResult<Option<Name>> {
        if !self.ignores_case() {
            return Ok(None);
        }
        let scan = Scan::Dir {
            parent,
            attrs: false,
        };
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&scan, cursor.as_ref(), DIR_PAGE_ENTRIES)
                .await?;
            for item in page.items {
                if let Item::Entry { name: found, .. } = item
                    && same_but_case(&found, name)
                {
                    return Ok(Some(found));
                }
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(None),
            }
        }
    }
}

/// Whether two names are the same up to case.
fn same_but_case(one: &[u8], other: &[u8]) -> bool {
    match (std::str::from_utf8(one), std::str::from_utf8(other)) {
        (Ok(one), Ok(other)) => one.chars().map(folded).eq(other.chars().map(folded)),
        _ => one.eq_ignore_ascii_case(other),
    }
}

fn folded(c: char) -> char {
    /// Its upper case is I, but it is no i.
    const DOTLESS_I: char = '\u{131}';
    if c == DOTLESS_I {
        return c;
    }
    let upper = only(c.to_uppercase()).unwrap_or(c);
    only(upper.to_lowercase()).unwrap_or(c)
}

/// The character, if there is just one.
fn only(mut chars: impl Iterator<Item = char>) -> Option<char> {
    let first = chars.next()?;
    chars.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_is_folded_character_by_character() {
        let same: [(&str, &str); 8] = [
            ("ReadMe.TXT", "README.txt"),
            ("Ärger", "äRGER"),
            ("ΟΔΟΣ", "οδος"),
            ("οδος", "οδοσ"),
            ("\u{212A}elvin", "kelvin"),
            ("µ", "Μ"),
            ("ẞ", "ß"),
            ("ЖЁ", "жё"),
        ];
        for (one, other) in same {
            assert!(
                same_but_case(one.as_bytes(), other.as_bytes()),
                "{one} {other}"
            );
            assert!(
                same_but_case(other.as_bytes(), one.as_bytes()),
                "{other} {one}"
            );
        }
        let different: [(&str, &str); 6] = [
            ("straße", "STRASSE"),
            ("ı", "i"),
            ("ı", "I"),
            ("İ", "i"),
            ("a", "a "),
            ("é", "e\u{301}"),
        ];
        for (one, other) in different {
            assert!(
                !same_but_case(one.as_bytes(), other.as_bytes()),
                "{one} {other}"
            );
        }
    }

    #[test]
    fn other_bytes_are_compared_as_they_are() {
        assert!(same_but_case(b"A\xff", b"a\xff"));
        assert!(!same_but_case(b"a\xff", b"a\xfe"));
        assert!(!same_but_case(b"\xc4", "ä".as_bytes()));
    }
}
