//! Which names an entry may have. Pure; called first by every operation that takes a name.
//!
//! Names are bytes. The root has a few names that belong to the client (`.trash` and the virtual files):
//! nothing may be created, moved or removed under them. Fails with `Invalid`, `NameTooLong`, `Exists` or
//! `NotPermitted`.

use bytes::Bytes;

use crate::client::MetaResult;
use crate::error::MetaError;
use crate::limits::NAME_BYTES_MAX;
use crate::types::{Ino, Name};

/// The trash, as it appears in the root.
pub(crate) const TRASH: &[u8] = b".trash";

/// Names in the root that no entry may take: the trash and the virtual files of the client.
const RESERVED: [&[u8]; 5] = [TRASH, b".config", b".stats", b".accesslog", b".control"];

/// Whether `name` in `parent` is one of the client's own.
pub(crate) fn is_reserved(parent: Ino, name: &[u8]) -> bool {
    parent == Ino::ROOT && RESERVED.contains(&name)
}

/// A name that may stand in a directory; `.` and `..` are still to be ruled out.
pub(crate) fn checked(name: &[u8]) -> MetaResult<Name> {
    if name.is_empty() {
        return Err(MetaError::Invalid("empty name"));
    }
    if name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(MetaError::Invalid("name contains '/' or NUL"));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(MetaError::NameTooLong);
    }
    Ok(Bytes::copy_from_slice(name))
}

/// Whether the name is `.` or `..`.
pub(crate) fn is_dot(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// A name for a new entry of `parent`.
pub(crate) fn new_entry(parent: Ino, name: &[u8]) -> MetaResult<Name> {
    let name = checked(name)?;
    if is_dot(&name) || is_reserved(parent, &name) {
        return Err(MetaError::Exists);
    }
    Ok(name)
}

/// One side of a rename.
pub(crate) fn renamed(parent: Ino, name: &[u8]) -> MetaResult<Name> {
    let name = checked(name)?;
    if is_dot(&name) {
        return Err(MetaError::Invalid("'.' and '..' cannot be renamed"));
    }
    if is_reserved(parent, &name) {
        return Err(MetaError::NotPermitted);
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_names() {
        let long = [b'x'; NAME_BYTES_MAX + 1];
        let cases: [(&[u8], Option<i32>); 10] = [
            (b"a", None),
            (b"\xff\xfe", None),
            (&long[..NAME_BYTES_MAX], None),
            (&long, Some(36)),
            (b"", Some(22)),
            (b"a/b", Some(22)),
            (b"a\0", Some(22)),
            (b".", Some(17)),
            (b"..", Some(17)),
            (b".trash", Some(17)),
        ];
        for (name, errno) in cases {
            let got = new_entry(Ino::ROOT, name).err().map(|error| error.errno());
            assert_eq!(got, errno, "{:?}", name.escape_ascii().to_string());
        }
        assert!(
            new_entry(Ino(2), b".trash").is_ok(),
            "reserved in the root only"
        );
        assert!(matches!(
            renamed(Ino::ROOT, b".stats"),
            Err(MetaError::NotPermitted)
        ));
        assert!(matches!(renamed(Ino(2), b".."), Err(MetaError::Invalid(_))));
    }
}
