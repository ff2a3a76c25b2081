//! IOCTL: inode flags, as `lsattr` and `chattr` read and set them. Every other command is `ENOTTY`.
//!
//! The kernel sends these for itself: it opens the inode, asks for the flags in the form of `FS_IOC_GETFLAGS` (or
//! `FS_IOC_FSGETXATTR`), checks that the caller may change them, and sets them in the same form. Three flags exist
//! on a volume: immutable, append-only, and "remove without trash", which takes the letter of secure deletion (`s`);
//! anything else is `EOPNOTSUPP`. Integers are in the machine's byte order, as everything of FUSE.

use bytes::Bytes;
use sluice_meta::ops::{Caller, FlagChange};
use sluice_meta::types::{Ino, attr_flags};
use zerocopy::{FromBytes, IntoBytes};

use super::Shard;
use super::dispatch::Answer;
use crate::error::{FsError, FsResult};
use crate::fuse::op::Ioctl;

/// Commands of `linux/fs.h`; those of 32-bit callers state another size of the same argument.
const GETFLAGS: u32 = 0x8008_6601;
const GETFLAGS_32: u32 = 0x8004_6601;
const SETFLAGS: u32 = 0x4008_6602;
const SETFLAGS_32: u32 = 0x4004_6602;
const FSGETXATTR: u32 = 0x801C_581F;
const FSSETXATTR: u32 = 0x401C_5820;

/// `FS_*_FL`: the flag of a volume and its bit.
const FLAGS: [(u8, u32); 3] = [
    (attr_flags::SKIP_TRASH, 0x01),
    (attr_flags::IMMUTABLE, 0x10),
    (attr_flags::APPEND, 0x20),
];
/// `FS_XFLAG_*`: there is none for secure deletion.
const XFLAGS: [(u8, u32); 2] = [(attr_flags::IMMUTABLE, 0x08), (attr_flags::APPEND, 0x10)];

/// `struct fsxattr` as words: xflags, extent size, extents, project, extent size of copies, two of padding.
type Fsxattr = [u32; 7];
/// Which of them is a count that nobody sets.
const FSX_EXTENTS: usize = 2;

impl Shard {
    pub(super) async fn ioctl(
        &self,
        caller: &Caller,
        ino: Ino,
        ioctl: &Ioctl<'_>,
    ) -> FsResult<Answer> {
        let output = match ioctl.cmd {
            GETFLAGS | GETFLAGS_32 => {
                let bits = bits_of(self.meta.getattr(ino).await?.flags, &FLAGS);
                match ioctl.out_size {
                    4 => Bytes::copy_from_slice(bits.as_bytes()),
                    8 => Bytes::copy_from_slice(u64::from(bits).as_bytes()),
                    _ => return Err(FsError::Invalid("size of flags")),
                }
            }
            FSGETXATTR => {
                let mut words = Fsxattr::default();
                words[0] = bits_of(self.meta.getattr(ino).await?.flags, &XFLAGS);
                if ioctl.out_size as usize != size_of::<Fsxattr>() {
                    return Err(FsError::Invalid("size of flags"));
                }
                Bytes::copy_from_slice(words.as_bytes())
            }
            SETFLAGS | SETFLAGS_32 => {
                let change = change_to(flags_input(ioctl.input)?, &FLAGS)?;
                self.meta.set_flags(caller, ino, change).await?;
                Bytes::new()
            }
            FSSETXATTR => {
                let change = change_to(xflags_input(ioctl.input)?, &XFLAGS)?;
                self.meta.set_flags(caller, ino, change).await?;
                Bytes::new()
            }
            _ => return Err(FsError::NoSuchIoctl),
        };
        Ok(Answer::Ioctl(output))
    }
}

/// Flags of a volume in the kernel's form.
fn bits_of(flags: u8, table: &[(u8, u32)]) -> u32 {
    let set = table.iter().filter(|(flag, _)| flags & flag != 0);
    set.fold(0, |bits, (_, bit)| bits | bit)
}

/// The change that leaves exactly `bits` of what `table` knows.
fn change_to(bits: u32, table: &[(u8, u32)]) -> FsResult<FlagChange> {
    let mut change = FlagChange { mask: 0, flags: 0 };
    let mut unknown = bits;
    for (flag, bit) in table {
        change.mask |= flag;
        if bits & bit != 0 {
            change.flags |= flag;
            unknown &= !bit;
        }
    }
    if unknown == 0 {
        Ok(change)
    } else {
        Err(FsError::NotSupported)
    }
}

fn flags_input(input: &[u8]) -> FsResult<u32> {
    if let Ok(bits) = u32::read_from_bytes(input) {
        return Ok(bits);
    }
    let bits = u64::read_from_bytes(input).map_err(|_| FsError::Invalid("size of flags"))?;
    u32::try_from(bits).map_err(|_| FsError::NotSupported)
}

fn xflags_input(input: &[u8]) -> FsResult<u32> {
    let words = Fsxattr::read_from_bytes(input).map_err(|_| FsError::Invalid("size of flags"))?;
    let settable = |index: &usize| *index != 0 && *index != FSX_EXTENTS;
    if (0..words.len())
        .filter(settable)
        .any(|index| words[index] != 0)
    {
        return Err(FsError::NotSupported);
    }
    Ok(words[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_there_and_back() {
        for flags in 0..=u8::MAX {
            let change = change_to(bits_of(flags, &FLAGS), &FLAGS).unwrap();
            assert_eq!(change.mask, attr_flags::CHANGEABLE);
            assert_eq!(change.flags, flags & attr_flags::CHANGEABLE);
            let change = change_to(bits_of(flags, &XFLAGS), &XFLAGS).unwrap();
            assert_eq!(change.mask, attr_flags::IMMUTABLE | attr_flags::APPEND);
            assert_eq!(change.flags, flags & change.mask);
        }
        // No-dump, and project inheritance.
        assert!(matches!(
            change_to(0x40, &FLAGS),
            Err(FsError::NotSupported)
        ));
        assert!(matches!(
            change_to(0x210, &XFLAGS),
            Err(FsError::NotSupported)
        ));
    }

    #[test]
    fn arguments_of_every_size() {
        assert_eq!(flags_input(0x30_u32.as_bytes()).unwrap(), 0x30);
        assert_eq!(flags_input(0x30_u64.as_bytes()).unwrap(), 0x30);
        assert!(flags_input(&[0; 5]).is_err());
        assert!(flags_input((1_u64 << 40).as_bytes()).is_err());
        let fsxattr: Fsxattr = [8, 0, 99, 0, 0, 0, 0];
        assert_eq!(xflags_input(fsxattr.as_bytes()).unwrap(), 8);
        let project: Fsxattr = [8, 0, 0, 5, 0, 0, 0];
        assert!(matches!(
            xflags_input(project.as_bytes()),
            Err(FsError::NotSupported)
        ));
        assert!(xflags_input(&[0; 27]).is_err());
    }
}
