//! What is mounted where: lines of `/proc/self/mountinfo`.
//!
//! Called by `mount`. Reading it never touches the file systems it lists, so it works when one of them
//! is dead or does not answer. Pure apart from [`read`]; lines that cannot be understood are skipped.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Major and minor number of its device (`st_dev`).
    pub device_number: (u32, u32),
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Type, such as `ext4` or `fuse.sluice`.
    pub kind: String,
    /// Source (`fsname`).
    pub source: OsString,
}

impl MountEntry {
    /// Whether a FUSE server is behind it.
    pub fn is_fuse(&self) -> bool {
        self.kind == "fuse" || self.kind.starts_with("fuse.")
    }
}

/// The topmost mount at exactly this path (absolute, without links).
pub fn find(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(read()?
        .into_iter()
        .rev()
        .find(|entry| entry.mountpoint == path))
}

/// All mounts of this process's namespace, in order of mounting.
pub fn read() -> io::Result<Vec<MountEntry>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text
        .split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect())
}

/// `36 35 98:0 /root /mount/point rw,noatime shared:1 ... - fuse.sluice source rw`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let number = str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = number.split_once(':')?;
    let mountpoint = unescape(fields.nth(1)?);
    fields.find(|field| *field == b"-")?;
    let kind = str::from_utf8(fields.next()?).ok()?.to_owned();
    Some(MountEntry {
        device_number: (major.parse().ok()?, minor.parse().ok()?),
        mountpoint: PathBuf::from(mountpoint),
        kind,
        source: unescape(fields.next()?),
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash (`\040`).
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_entries() {
        let line = br"36 35 0:53 / /mnt/a\040b\134c rw,nosuid shared:7 master:1 - fuse.sluice my\040fs rw,user_id=0";
        let entry = parse_line(line).unwrap();
        assert_eq!(entry.device_number, (0, 53));
        assert_eq!(entry.mountpoint, Path::new(r"/mnt/a b\c"));
        assert_eq!(entry.source, "my fs");
        assert!(entry.is_fuse());
        let plain = parse_line(b"22 27 8:1 / / rw - ext4 /dev/sda1 rw").unwrap();
        assert_eq!((plain.kind.as_str(), plain.is_fuse()), ("ext4", false));
        assert!(
            !parse_line(b"22 27 0:5 / /c rw - fusectl none rw")
                .unwrap()
                .is_fuse()
        );
    }

    #[test]
    fn odd_lines_are_skipped() {
        for line in [
            &b""[..],
            b"22 27",
            b"22 27 x:y / / rw - ext4 a",
            b"22 27 8:1 / / rw ext4 a",
            b"1 2 3:4 / / - ext4",
        ] {
            assert_eq!(parse_line(line), None, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape(br"a\04"), r"a\04");
        assert_eq!(unescape(br"\777"), r"\777");
        assert_eq!(unescape(br"\011\012"), "\t\n");
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(find(Path::new("/")).unwrap().is_some());
    }
}
