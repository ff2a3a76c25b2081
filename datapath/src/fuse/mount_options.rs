//! Options of `-o`: the words mount(8) users know, parsed into fields.
//!
//! Called by the command line (parse) and by `mount` (encode). Pure. A word we do not know is an error
//! that names it: an ignored `-o` option is a promise silently broken.

/// How to mount. The defaults are those of an ordinary FUSE mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// `ro` or `rw`.
    pub read_only: bool,
    /// `nosuid` or `suid`.
    pub nosuid: bool,
    /// `nodev` or `dev`.
    pub nodev: bool,
    /// `noexec` or `exec`.
    pub noexec: bool,
    /// `noatime` or `atime`.
    pub noatime: bool,
    /// `allow_other`: users other than the one who mounts may enter.
    pub allow_other: bool,
    /// `default_permissions`: the kernel checks modes; always on unless the caller clears it.
    pub default_permissions: bool,
    /// `nonempty`: mount over a directory that has entries.
    pub nonempty: bool,
    /// `fsname=`: overrides the name shown as source.
    pub fsname: Option<String>,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            read_only: false,
            nosuid: true,
            nodev: true,
            noexec: false,
            noatime: false,
            allow_other: false,
            default_permissions: true,
            nonempty: false,
            fsname: None,
        }
    }
}

/// A word of `-o` that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Not known.
    #[error(
        "unknown mount option '{0}'; known are ro, rw, suid, nosuid, dev, nodev, exec, noexec, atime, \
         noatime, allow_other, default_permissions, nonempty and fsname=NAME"
    )]
    Unknown(String),
    /// Known, but needs a value.
    #[error("mount option '{0}' needs a value, as in {0}=NAME")]
    NoValue(&'static str),
}

impl MountOptions {
    /// Applies the comma-separated words of one `-o`; the last word on a subject counts.
    pub fn parse(&mut self, words: &str) -> Result<(), OptionError> {
        words
            .split(',')
            .filter(|word| !word.is_empty())
            .try_for_each(|word| self.apply(word))
    }

    fn apply(&mut self, word: &str) -> Result<(), OptionError> {
        match word {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "nosuid" => self.nosuid = true,
            "suid" => self.nosuid = false,
            "nodev" => self.nodev = true,
            "dev" => self.nodev = false,
            "noexec" => self.noexec = true,
            "exec" => self.noexec = false,
            "noatime" => self.noatime = true,
            "atime" => self.noatime = false,
            "allow_other" => self.allow_other = true,
            "default_permissions" => self.default_permissions = true,
            "nonempty" => self.nonempty = true,
            // Words of fstab that are for mount(8) and init, not for the file system.
            "_netdev" | "nofail" => {}
            _ => match word
                .strip_prefix("fsname")
                .and_then(|rest| rest.strip_prefix('='))
            {
                Some("") => return Err(OptionError::NoValue("fsname")),
                Some(name) => self.fsname = Some(name.to_owned()),
                None if word == "fsname" => return Err(OptionError::NoValue("fsname")),
                None => return Err(OptionError::Unknown(word.to_owned())),
            },
        }
        Ok(())
    }

    /// Flags of mount(2).
    pub(super) fn flags(&self) -> libc::c_ulong {
        [
            (self.read_only, libc::MS_RDONLY),
            (self.nosuid, libc::MS_NOSUID),
            (self.nodev, libc::MS_NODEV),
            (self.noexec, libc::MS_NOEXEC),
            (self.noatime, libc::MS_NOATIME),
        ]
        .into_iter()
        .filter_map(|(set, flag)| set.then_some(flag))
        .fold(0, |flags, flag| flags | flag)
    }

    /// Words the FUSE file system of the kernel understands, for mount(2)'s data.
    pub(super) fn fuse_words(&self) -> Vec<&'static str> {
        [
            (self.allow_other, "allow_other"),
            (self.default_permissions, "default_permissions"),
        ]
        .into_iter()
        .filter_map(|(set, word)| set.then_some(word))
        .collect()
    }

    /// Words for fusermount3, which turns them into flags itself; it sets `nosuid` and `nodev` by default
    /// and lets only root clear them.
    pub(super) fn helper_words(&self) -> Vec<&'static str> {
        let mut words = vec![
            if self.read_only { "ro" } else { "rw" },
            if self.nosuid { "nosuid" } else { "suid" },
            if self.nodev { "nodev" } else { "dev" },
        ];
        if self.noexec {
            words.push("noexec");
        }
        if self.noatime {
            words.push("noatime");
        }
        words.extend(self.fuse_words());
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        options.parse(words).map(|()| options)
    }

    #[test]
    fn words_set_their_fields_and_the_last_one_counts() {
        let got =
            parsed("ro,suid,dev,noexec,noatime,allow_other,nonempty,fsname=a b,_netdev").unwrap();
        let expected = MountOptions {
            read_only: true,
            nosuid: false,
            nodev: false,
            noexec: true,
            noatime: true,
            allow_other: true,
            default_permissions: true,
            nonempty: true,
            fsname: Some("a b".to_owned()),
        };
        assert_eq!(got, expected);
        let undone = parsed("ro,suid,dev,noexec,noatime,rw,nosuid,nodev,exec,atime").unwrap();
        assert_eq!(undone, MountOptions::default());
        assert_eq!(parsed(",,"), Ok(MountOptions::default()));
    }

    #[test]
    fn unknown_words_are_named() {
        for word in ["bogus", "allow_root", "ro=1", "fsnames=x"] {
            assert_eq!(parsed(word), Err(OptionError::Unknown(word.to_owned())));
        }
        let text = parsed("rw,bogus").unwrap_err().to_string();
        assert!(text.contains("'bogus'"), "{text}");
        for word in ["fsname", "fsname="] {
            assert_eq!(parsed(word), Err(OptionError::NoValue("fsname")));
        }
    }

    #[test]
    fn fields_become_flags_and_words() {
        let options = parsed("ro,noexec,allow_other").unwrap();
        let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        assert_eq!(options.flags(), flags);
        assert_eq!(options.fuse_words(), ["allow_other", "default_permissions"]);
        let words = [
            "ro",
            "nosuid",
            "nodev",
            "noexec",
            "allow_other",
            "default_permissions",
        ];
        assert_eq!(options.helper_words(), words);
    }
}
