//! What a golden volume must look like when mounted: the manifest beside it, compared path by path.
//!
//! The manifest was taken with `lstat`, `listxattr`, `readlink` and SHA-256 through a JuiceFS mount.
//! Names are compared as bytes (`path_hex`). Exempt, because JuiceFS makes them up at mount time: link
//! count and times of the root and of `.trash`. Listing the tree must give exactly the manifest's names;
//! `.trash` and JuiceFS's virtual files are found by name and not listed, so they are left out of that.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Where JuiceFS keeps deleted files.
const TRASH: &[u8] = b".trash";

/// Names in the root that a server may make up and list.
const VIRTUAL: [&[u8]; 5] = [TRASH, b".stats", b".config", b".accesslog", b".control"];

/// How many differences a failure lists.
const DIFFERENCES_SHOWN: usize = 40;

/// Everything known of a volume.
#[derive(Deserialize)]
pub struct Manifest {
    statvfs: Statvfs,
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Statvfs {
    blocks: u64,
    bavail: u64,
    files: u64,
    ffree: u64,
    frsize: u64,
}

#[derive(Deserialize)]
struct Entry {
    path_hex: String,
    ino: u64,
    mode: u32,
    nlink: u64,
    uid: u32,
    gid: u32,
    rdev: u64,
    size: u64,
    blocks: u64,
    mtime_ns: i128,
    ctime_ns: i128,
    sha256: Option<String>,
    target_hex: Option<String>,
    xattrs_hex: Option<BTreeMap<String, String>>,
}

impl Manifest {
    /// Reads a manifest file.
    pub fn read(path: &Path) -> Result<Manifest> {
        let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parsing {}", path.display()))
    }

    /// How many paths it lists.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it lists nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The paths of regular files with data, largest first.
    pub fn files_by_size(&self) -> Result<Vec<(PathBuf, u64)>> {
        let mut files = Vec::new();
        for entry in self
            .entries
            .iter()
            .filter(|entry| entry.sha256.is_some() && entry.size > 0)
        {
            files.push((entry.path()?, entry.size));
        }
        files.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
        Ok(files)
    }

    /// Compares the tree mounted at `root` with the manifest; an error lists every difference.
    pub fn compare(&self, root: &Path) -> Result<()> {
        let mut differences = Vec::new();
        self.compare_statvfs(root, &mut differences)?;
        let mut named = BTreeSet::new();
        for entry in &self.entries {
            let path = entry.path()?;
            named.insert(path.as_os_str().as_bytes().to_vec());
            match entry.compare(root, &path) {
                Ok(found) => differences.extend(found),
                Err(error) => differences.push(format!("{path:?}: {error:#}")),
            }
        }
        for listed in list_below(root)? {
            if !named.contains(&listed) {
                differences.push(format!(
                    "{:?}: not in the manifest",
                    OsStr::from_bytes(&listed)
                ));
            }
        }
        named.retain(|name| name != b"." && !name.starts_with(TRASH));
        for missing in named.difference(&list_below(root)?.into_iter().collect()) {
            differences.push(format!("{:?}: not listed", OsStr::from_bytes(missing)));
        }
        let count = differences.len();
        differences.truncate(DIFFERENCES_SHOWN);
        ensure!(
            count == 0,
            "{count} differences from the manifest:\n{}",
            differences.join("\n")
        );
        Ok(())
    }

    fn compare_statvfs(&self, root: &Path, differences: &mut Vec<String>) -> Result<()> {
        let found = rustix::fs::statvfs(root)?;
        let wanted = &self.statvfs;
        for (field, found, wanted) in [
            ("f_blocks", found.f_blocks, wanted.blocks),
            ("f_bavail", found.f_bavail, wanted.bavail),
            ("f_files", found.f_files, wanted.files),
            ("f_ffree", found.f_ffree, wanted.ffree),
            ("f_frsize", found.f_frsize, wanted.frsize),
        ] {
            if found != wanted {
                differences.push(format!("statvfs: {field} {found}, expected {wanted}"));
            }
        }
        Ok(())
    }
}

impl Entry {
    fn path(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(std::ffi::OsString::from_vec(unhex(
            &self.path_hex,
        )?)))
    }

    fn compare(&self, root: &Path, relative: &Path) -> Result<Vec<String>> {
        let path = root.join(relative);
        let found = std::fs::symlink_metadata(&path)?;
        let made_up = matches!(relative.as_os_str().as_bytes(), b"." | TRASH);
        let time =
            |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let mut differences = Vec::new();
        let mut differs = |field: &str, found: String, wanted: String| {
            if found != wanted {
                differences.push(format!("{relative:?}: {field} {found}, expected {wanted}"));
            }
        };
        differs("ino", found.ino().to_string(), self.ino.to_string());
        differs(
            "mode",
            format!("{:o}", found.mode()),
            format!("{:o}", self.mode),
        );
        differs("uid", found.uid().to_string(), self.uid.to_string());
        differs("gid", found.gid().to_string(), self.gid.to_string());
        differs("rdev", found.rdev().to_string(), self.rdev.to_string());
        differs("size", found.size().to_string(), self.size.to_string());
        differs(
            "blocks",
            found.blocks().to_string(),
            self.blocks.to_string(),
        );
        if !made_up {
            differs("nlink", found.nlink().to_string(), self.nlink.to_string());
            let mtime = time(found.mtime(), found.mtime_nsec());
            differs("mtime", mtime.to_string(), self.mtime_ns.to_string());
            let ctime = time(found.ctime(), found.ctime_nsec());
            differs("ctime", ctime.to_string(), self.ctime_ns.to_string());
        }
        if let Some(wanted) = &self.target_hex {
            let target = std::fs::read_link(&path)?;
            differs("target", hex(target.as_os_str().as_bytes()), wanted.clone());
        }
        let none = BTreeMap::new();
        let wanted = self.xattrs_hex.as_ref().unwrap_or(&none);
        differs(
            "xattrs",
            format!("{:?}", read_xattrs(&path)?),
            format!("{wanted:?}"),
        );
        if let Some(wanted) = &self.sha256 {
            differs("sha256", sha256(&path)?, wanted.clone());
        }
        Ok(differences)
    }
}

/// All paths below `root`, relative, without what the server makes up.
fn list_below(root: &Path) -> Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            let bytes = path.as_os_str().as_bytes().to_vec();
            if VIRTUAL.contains(&bytes.as_slice()) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                open.push(path);
            }
            found.push(bytes);
        }
    }
    Ok(found)
}

/// Names and values (in hexadecimal) of a path's extended attributes, symlinks not followed.
pub fn read_xattrs(path: &Path) -> Result<BTreeMap<String, String>> {
    // 64 KiB is the kernel's bound for a list and for a value.
    let mut list = vec![0; 65536];
    let length = match rustix::fs::llistxattr(path, &mut list[..]) {
        // JuiceFS says so of `.trash`, which can have none.
        Err(rustix::io::Errno::NODATA) => 0,
        length => length?,
    };
    let mut values = BTreeMap::new();
    for name in list[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        values.insert(
            String::from_utf8_lossy(name).into_owned(),
            hex(&value[..length]),
        );
    }
    Ok(values)
}

/// SHA-256 of a file's content, in hexadecimal.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..count]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    ensure!(
        text.len().is_multiple_of(2) && text.is_ascii(),
        "not hexadecimal: {text}"
    );
    (0..text.len())
        .step_by(2)
        .map(|at| {
            u8::from_str_radix(&text[at..at + 2], 16).map_err(|error| anyhow!("{error}: {text}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{hex, unhex};

    #[test]
    fn names_survive_hexadecimal() {
        let name = b"odd \xff\n name";
        assert_eq!(unhex(&hex(name)).expect("valid"), name);
        assert!(unhex("abc").is_err());
        assert!(unhex("zz").is_err());
    }
}
