//! Tests of `decode`: one message per operation, every truncation of it, and arbitrary bytes.

use proptest::prelude::*;

use super::*;

fn header(code: u32) -> InHeader {
    InHeader {
        opcode: code,
        unique: 1,
        nodeid: 2,
        ..InHeader::default()
    }
}

fn bytes<T: IntoBytes + zerocopy::Immutable>(value: &T) -> Vec<u8> {
    value.as_bytes().to_vec()
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// One well-formed body per operation, with what it means.
fn samples() -> Vec<(u32, Vec<u8>, Op<'static>)> {
    let mut all = namespace_samples();
    all.extend(handle_samples());
    all.extend(other_samples());
    all
}

fn namespace_samples() -> Vec<(u32, Vec<u8>, Op<'static>)> {
    let mknod = abi::MknodIn {
        mode: 1,
        rdev: 2,
        umask: 3,
        padding: 0,
    };
    let mkdir = abi::MkdirIn { mode: 1, umask: 2 };
    let rename = abi::RenameIn { newdir: 9 };
    let rename2 = abi::Rename2In {
        newdir: 9,
        flags: 2,
        padding: 0,
    };
    let link = abi::LinkIn { oldnodeid: 9 };
    let create = abi::CreateIn {
        flags: 1,
        mode: 2,
        umask: 3,
        open_flags: 1,
    };
    let created = |name| Create {
        flags: 1,
        mode: 2,
        umask: 3,
        kill_suidgid: true,
        name,
    };
    let (name, newname): (&[u8], &[u8]) = (b"a", b"b\xff");
    vec![
        (opcode::LOOKUP, b"a\0".to_vec(), Op::Lookup { name }),
        (
            opcode::SYMLINK,
            b"a\0b/c\0".to_vec(),
            Op::Symlink {
                name,
                target: b"b/c",
            },
        ),
        (
            opcode::MKNOD,
            join(&[&bytes(&mknod), b"a\0"]),
            Op::Mknod {
                mode: 1,
                rdev: 2,
                umask: 3,
                name,
            },
        ),
        (
            opcode::MKDIR,
            join(&[&bytes(&mkdir), b"a\0"]),
            Op::Mkdir {
                mode: 1,
                umask: 2,
                name,
            },
        ),
        (opcode::UNLINK, b"a\0".to_vec(), Op::Unlink { name }),
        (opcode::RMDIR, b"a\0".to_vec(), Op::Rmdir { name }),
        (
            opcode::RENAME,
            join(&[&bytes(&rename), b"a\0b\xff\0"]),
            Op::Rename {
                newdir: 9,
                flags: 0,
                name,
                newname,
            },
        ),
        (
            opcode::RENAME2,
            join(&[&bytes(&rename2), b"a\0b\xff\0"]),
            Op::Rename {
                newdir: 9,
                flags: 2,
                name,
                newname,
            },
        ),
        (
            opcode::LINK,
            join(&[&bytes(&link), b"b\xff\0"]),
            Op::Link {
                oldnodeid: 9,
                newname,
            },
        ),
        (
            opcode::CREATE,
            join(&[&bytes(&create), b"a\0"]),
            Op::Create(created(b"a")),
        ),
        (
            opcode::TMPFILE,
            join(&[&bytes(&create), b"/\0"]),
            Op::Tmpfile(created(b"")),
        ),
    ]
}

fn handle_samples() -> Vec<(u32, Vec<u8>, Op<'static>)> {
    let open = abi::OpenIn {
        flags: 1,
        open_flags: 1,
    };
    let read = abi::ReadIn {
        fh: 1,
        offset: 2,
        size: 3,
        read_flags: 2,
        lock_owner: 4,
        flags: 5,
        padding: 0,
    };
    let write = abi::WriteIn {
        fh: 1,
        offset: 2,
        size: 4,
        write_flags: 5,
        lock_owner: 4,
        flags: 6,
        padding: 0,
    };
    let release = abi::ReleaseIn {
        fh: 1,
        flags: 2,
        release_flags: 3,
        lock_owner: 4,
    };
    let released = Release {
        fh: 1,
        flags: 2,
        flush: true,
        flock_unlock: true,
        lock_owner: 4,
    };
    let fsync = abi::FsyncIn {
        fh: 1,
        fsync_flags: 1,
        padding: 0,
    };
    let flush = abi::FlushIn {
        fh: 1,
        unused: 0,
        padding: 0,
        lock_owner: 2,
    };
    let fallocate = abi::FallocateIn {
        fh: 1,
        offset: 2,
        length: 3,
        mode: 4,
        padding: 0,
    };
    let lseek = abi::LseekIn {
        fh: 1,
        offset: 2,
        whence: 3,
        padding: 0,
    };
    let copy = abi::CopyFileRangeIn {
        fh_in: 1,
        off_in: 2,
        nodeid_out: 3,
        fh_out: 4,
        off_out: 5,
        len: u64::MAX,
        flags: 0,
    };
    let copied = Op::CopyFileRange(CopyFileRange {
        fh_in: 1,
        offset_in: 2,
        nodeid_out: 3,
        fh_out: 4,
        offset_out: 5,
        length: u64::MAX,
        flags: 0,
    });
    let ioctl = abi::IoctlIn {
        fh: 1,
        flags: 2,
        cmd: 3,
        arg: 4,
        in_size: 2,
        out_size: 5,
    };
    let lk = abi::FileLock {
        start: 3,
        end: 4,
        kind: 5,
        pid: 6,
    };
    let lock = abi::LkIn {
        fh: 1,
        owner: 2,
        lk,
        lk_flags: 1,
        padding: 0,
    };
    let locked = LockOp {
        fh: 1,
        owner: 2,
        start: 3,
        end: 4,
        kind: 5,
        pid: 6,
        flock: true,
    };
    let got = Read {
        fh: 1,
        offset: 2,
        size: 3,
        flags: 5,
        lock_owner: Some(4),
    };
    vec![
        (
            opcode::OPEN,
            bytes(&open),
            Op::Open {
                flags: 1,
                kill_suidgid: true,
            },
        ),
        (opcode::OPENDIR, bytes(&open), Op::Opendir { flags: 1 }),
        (opcode::READ, bytes(&read), Op::Read(got)),
        (opcode::READDIR, bytes(&read), Op::Readdir(got)),
        (opcode::READDIRPLUS, bytes(&read), Op::Readdirplus(got)),
        (
            opcode::WRITE,
            join(&[&bytes(&write), b"data"]),
            Op::Write(Write {
                fh: 1,
                offset: 2,
                data: b"data",
                flags: 6,
                from_cache: true,
                kill_suidgid: true,
                lock_owner: None,
            }),
        ),
        (opcode::RELEASE, bytes(&release), Op::Release(released)),
        (
            opcode::RELEASEDIR,
            bytes(&release),
            Op::Releasedir(released),
        ),
        (
            opcode::FSYNC,
            bytes(&fsync),
            Op::Fsync {
                fh: 1,
                datasync: true,
            },
        ),
        (
            opcode::FSYNCDIR,
            bytes(&fsync),
            Op::Fsyncdir {
                fh: 1,
                datasync: true,
            },
        ),
        (
            opcode::FLUSH,
            bytes(&flush),
            Op::Flush {
                fh: 1,
                lock_owner: 2,
            },
        ),
        (
            opcode::FALLOCATE,
            bytes(&fallocate),
            Op::Fallocate {
                fh: 1,
                offset: 2,
                length: 3,
                mode: 4,
            },
        ),
        (
            opcode::LSEEK,
            bytes(&lseek),
            Op::Lseek {
                fh: 1,
                offset: 2,
                whence: 3,
            },
        ),
        (opcode::COPY_FILE_RANGE, bytes(&copy), copied),
        (opcode::COPY_FILE_RANGE_64, bytes(&copy), copied),
        (
            opcode::IOCTL,
            join(&[&bytes(&ioctl), b"in"]),
            Op::Ioctl(Ioctl {
                fh: 1,
                flags: 2,
                cmd: 3,
                arg: 4,
                input: b"in",
                out_size: 5,
            }),
        ),
        (opcode::GETLK, bytes(&lock), Op::Getlk(locked)),
        (
            opcode::SETLK,
            bytes(&lock),
            Op::Setlk {
                lock: locked,
                wait: false,
            },
        ),
        (
            opcode::SETLKW,
            bytes(&lock),
            Op::Setlk {
                lock: locked,
                wait: true,
            },
        ),
    ]
}

fn other_samples() -> Vec<(u32, Vec<u8>, Op<'static>)> {
    let getattr = abi::GetattrIn {
        getattr_flags: 1,
        dummy: 0,
        fh: 7,
    };
    let setxattr = abi::SetxattrIn { size: 3, flags: 1 };
    let getxattr = abi::GetxattrIn {
        size: 64,
        padding: 0,
    };
    let init = abi::InitIn {
        major: 7,
        minor: 45,
        flags2: 3,
        ..abi::InitIn::default()
    };
    let statx = abi::StatxIn {
        getattr_flags: 0,
        reserved: 0,
        fh: 7,
        sx_flags: 1,
        sx_mask: 2,
    };
    vec![
        (
            opcode::FORGET,
            bytes(&abi::ForgetIn { nlookup: 3 }),
            Op::Forget { nlookup: 3 },
        ),
        (
            opcode::GETATTR,
            bytes(&getattr),
            Op::Getattr { fh: Some(7) },
        ),
        (opcode::READLINK, Vec::new(), Op::Readlink),
        (opcode::STATFS, Vec::new(), Op::Statfs),
        (
            opcode::SETXATTR,
            join(&[&bytes(&setxattr), b"user.a\0v\0w"]),
            Op::Setxattr {
                name: b"user.a",
                value: b"v\0w",
                flags: 1,
                kill_sgid: None,
            },
        ),
        (
            opcode::SETXATTR,
            join(&[
                &bytes(&setxattr),
                &[1, 0, 0, 0, 0, 0, 0, 0],
                b"user.a\0v\0w",
            ]),
            Op::Setxattr {
                name: b"user.a",
                value: b"v\0w",
                flags: 1,
                kill_sgid: Some(true),
            },
        ),
        (
            opcode::SETXATTR,
            join(&[&bytes(&setxattr), &[0; 8], b"user.a\0\0\0\0"]),
            Op::Setxattr {
                name: b"user.a",
                value: b"\0\0\0",
                flags: 1,
                kill_sgid: Some(false),
            },
        ),
        (
            opcode::SETXATTR,
            join(&[&bytes(&setxattr), b"\x01\0\0\0\0"]),
            Op::Setxattr {
                name: b"\x01",
                value: b"\0\0\0",
                flags: 1,
                kill_sgid: None,
            },
        ),
        (
            opcode::GETXATTR,
            join(&[&bytes(&getxattr), b"user.a\0"]),
            Op::Getxattr {
                name: b"user.a",
                size: 64,
            },
        ),
        (
            opcode::LISTXATTR,
            bytes(&getxattr),
            Op::Listxattr { size: 64 },
        ),
        (
            opcode::REMOVEXATTR,
            b"user.a\0".to_vec(),
            Op::Removexattr { name: b"user.a" },
        ),
        (opcode::INIT, bytes(&init), Op::Init(init)),
        (
            opcode::ACCESS,
            bytes(&abi::AccessIn {
                mask: 4,
                padding: 0,
            }),
            Op::Access { mask: 4 },
        ),
        (
            opcode::INTERRUPT,
            bytes(&abi::InterruptIn { unique: 9 }),
            Op::Interrupt { unique: 9 },
        ),
        (opcode::DESTROY, Vec::new(), Op::Destroy),
        (
            opcode::STATX,
            bytes(&statx),
            Op::Statx {
                fh: None,
                flags: 1,
                mask: 2,
            },
        ),
        (opcode::SYNCFS, bytes(&0u64), Op::Syncfs),
        (opcode::POLL, vec![1, 2, 3], Op::Unknown(opcode::POLL)),
        (9999, vec![1, 2, 3], Op::Unknown(9999)),
    ]
}

#[test]
fn every_operation_decodes() {
    for (code, body, expected) in samples() {
        let name = abi::opcode_name(code);
        assert_eq!(decode(&header(code), &body), Ok(expected), "{name}");
    }
}

#[test]
fn every_truncation_is_an_error_or_another_valid_message() {
    for (code, body, whole) in samples() {
        for cut in 0..body.len() {
            // Operations that ignore their body, and INIT of older kernels, remain valid.
            match decode(&header(code), &body[..cut]) {
                Ok(Op::Unknown(_) | Op::Syncfs | Op::Init(_) | Op::Tmpfile(_)) | Err(_) => {}
                // Cut short, the long form may be a short one; the header's length tells that it was cut.
                Ok(Op::Setxattr {
                    name: b"\x01",
                    kill_sgid: None,
                    ..
                }) => {}
                Ok(op) => panic!("{whole:?} cut to {cut} bytes became {op:?}"),
            }
        }
    }
}

#[test]
fn names_must_be_whole() {
    for body in [&b""[..], b"\0", b"a", b"a\0b", b"a\0\0", b"a\0b\0"] {
        let got = decode(&header(opcode::LOOKUP), body);
        assert_eq!(
            got,
            Err(DecodeError::Name("name")),
            "{}",
            body.escape_ascii()
        );
    }
    let got = decode(&header(opcode::SYMLINK), b"a\0\0");
    assert_eq!(got, Err(DecodeError::Name("link target")));
}

#[test]
fn stated_lengths_must_be_true() {
    let mut write = abi::WriteIn {
        size: 5,
        ..abi::WriteIn::default()
    };
    let body = join(&[&bytes(&write), b"data"]);
    let short = decode(&header(opcode::WRITE), &body).unwrap_err();
    assert_eq!(
        short,
        DecodeError::Short {
            bytes: 84,
            part: "data"
        }
    );
    write.size = 3;
    let body = join(&[&bytes(&write), b"data"]);
    assert!(decode(&header(opcode::WRITE), &body).is_err());
    let list = abi::BatchForgetIn {
        count: u32::MAX,
        dummy: 0,
    };
    assert!(decode(&header(opcode::BATCH_FORGET), &bytes(&list)).is_err());
}

#[test]
fn forget_lists_are_read_to_their_count() {
    let one = |nodeid, nlookup| bytes(&abi::ForgetOne { nodeid, nlookup });
    let list = abi::BatchForgetIn { count: 2, dummy: 0 };
    let body = join(&[&bytes(&list), &one(5, 1), &one(6, 2), &one(7, 3)]);
    let Ok(Op::BatchForget { forgets }) = decode(&header(opcode::BATCH_FORGET), &body) else {
        panic!("not a forget list");
    };
    assert_eq!(forgets.iter().collect::<Vec<_>>(), [(5, 1), (6, 2)]);
}

#[test]
fn only_valid_fields_of_setattr_count() {
    let raw = abi::SetattrIn {
        fh: 1,
        size: 2,
        lock_owner: 3,
        atime: 4,
        mtime: u64::MAX,
        ctime: 6,
        atimensec: 7,
        mtimensec: 8,
        ctimensec: 9,
        mode: 10,
        uid: 11,
        gid: 12,
        ..abi::SetattrIn::default()
    };
    let decoded = |valid| {
        let body = bytes(&abi::SetattrIn { valid, ..raw });
        match decode(&header(opcode::SETATTR), &body) {
            Ok(Op::Setattr(setattr)) => setattr,
            other => panic!("{other:?}"),
        }
    };
    let none = decoded(0);
    let at = |sec, nsec| SetTime::At(Timestamp { sec, nsec });
    use setattr_valid as bit;
    for (valid, expected) in [
        (
            bit::FH,
            Setattr {
                fh: Some(1),
                ..none
            },
        ),
        (
            bit::SIZE,
            Setattr {
                size: Some(2),
                ..none
            },
        ),
        (
            bit::LOCKOWNER,
            Setattr {
                lock_owner: Some(3),
                ..none
            },
        ),
        (
            bit::ATIME,
            Setattr {
                atime: Some(at(4, 7)),
                ..none
            },
        ),
        (
            bit::MTIME,
            Setattr {
                mtime: Some(at(-1, 8)),
                ..none
            },
        ),
        (
            bit::ATIME | bit::ATIME_NOW,
            Setattr {
                atime: Some(SetTime::Now),
                ..none
            },
        ),
        (
            bit::MTIME_NOW,
            Setattr {
                mtime: Some(SetTime::Now),
                ..none
            },
        ),
        (
            bit::CTIME,
            Setattr {
                ctime: Some(Timestamp { sec: 6, nsec: 9 }),
                ..none
            },
        ),
        (
            bit::MODE,
            Setattr {
                mode: Some(10),
                ..none
            },
        ),
        (
            bit::UID,
            Setattr {
                uid: Some(11),
                ..none
            },
        ),
        (
            bit::GID,
            Setattr {
                gid: Some(12),
                ..none
            },
        ),
        (
            bit::KILL_SUIDGID,
            Setattr {
                kill_suidgid: true,
                ..none
            },
        ),
    ] {
        assert_eq!(decoded(valid), expected, "{valid:#x}");
    }
    let bad = abi::SetattrIn {
        valid: bit::MTIME,
        mtimensec: 1_000_000_000,
        ..raw
    };
    let body = bytes(&bad);
    let got = decode(&header(opcode::SETATTR), &body);
    assert_eq!(got, Err(DecodeError::Time(1_000_000_000)));
}

#[test]
fn ranges_end_within_a_file_offset() {
    let max = i64::MAX as u64;
    for (offset, size, fits) in [
        (max, 0, true),
        (max, 1, false),
        (max - 5, 5, true),
        (u64::MAX, 2, false),
        (1 << 63, 0, false),
    ] {
        let raw = abi::ReadIn {
            offset,
            size,
            ..abi::ReadIn::default()
        };
        let body = bytes(&raw);
        let got = decode(&header(opcode::READ), &body);
        assert_eq!(got.is_ok(), fits, "{offset} + {size}");
        let cookie = decode(&header(opcode::READDIR), &body);
        assert!(cookie.is_ok(), "directory cookies may be anything");
    }
}

#[test]
fn extensions_are_cut_off() {
    let mut with_extension = header(opcode::LOOKUP);
    with_extension.total_extlen = 1;
    let got = decode(&with_extension, b"a\0extended");
    assert_eq!(got, Ok(Op::Lookup { name: b"a" }));
    let got = decode(&with_extension, b"a\0");
    assert_eq!(
        got,
        Err(DecodeError::Short {
            bytes: 42,
            part: "extensions"
        })
    );
}

#[test]
fn init_of_older_kernels_is_filled_with_zeros() {
    let init = abi::InitIn {
        major: 7,
        minor: 31,
        max_readahead: 1,
        flags: 2,
        ..Default::default()
    };
    let Ok(Op::Init(got)) = decode(&header(opcode::INIT), &bytes(&init)[..16]) else {
        panic!("not an INIT");
    };
    assert_eq!(got, init);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        code in 0u32..60,
        extlen in prop_oneof![9 => Just(0u16), 1 => any::<u16>()],
        body in proptest::collection::vec(any::<u8>(), 0..256),
    ) {
        let mut header = header(code);
        header.total_extlen = extlen;
        match decode(&header, &body) {
            Ok(Op::BatchForget { forgets }) => prop_assert!(forgets.iter().count() <= body.len() / 16),
            Ok(Op::Write(write)) => prop_assert!(write.data.len() <= body.len()),
            Ok(_) => {}
            Err(error) => prop_assert!(matches!(error.errno(), libc::EIO | libc::EINVAL)),
        }
    }

    #[test]
    fn damaged_messages_never_panic(
        sample in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let all = samples();
        let (code, mut body, _) = all[sample.index(all.len())].clone();
        for (at, value) in damage {
            if !body.is_empty() {
                let at = at.index(body.len());
                body[at] = value;
            }
        }
        let _ = decode(&header(code), &body);
    }
}
