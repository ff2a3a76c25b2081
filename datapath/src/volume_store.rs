//! From a volume's setting to its object store: where the bucket is, how blocks are named, encoded, encrypted.
//! Used by `mount` and `format`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sluice_meta::volume::{Compression, Secret, Setting};

use crate::commands::Failure;
use crate::object::keyfile::{PASSPHRASE_VARIABLE, private_key};
use crate::object::{Cipher, Codec, Crypt, Layout, Naming};

/// The directory that holds the volume's objects (below a directory of the volume's name).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket(PathBuf);

impl Bucket {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// The one kind of store that is built.
pub const STORAGE_FILE: &str = "file";

/// Refuses what is not a local directory.
pub fn check_storage(storage: &str) -> Result<(), Failure> {
    if storage == STORAGE_FILE {
        return Ok(());
    }
    Err(Failure(format!(
        "object store {storage:?} is not built yet: use --storage file with --bucket DIR"
    )))
}

/// The bucket of a volume, or the one given in its place.
pub fn bucket(setting: &Setting, instead: Option<&str>) -> Result<Bucket, Failure> {
    check_storage(&setting.storage)?;
    let text = instead.unwrap_or(&setting.bucket);
    let text = text.strip_prefix("file://").unwrap_or(text);
    let path = PathBuf::from(text);
    let hint = if instead.is_some() {
        "name the directory that holds the volume's objects"
    } else {
        "the setting says so; if it has moved, give --bucket DIR"
    };
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => {
            let path = std::path::absolute(&path).map_err(Failure::from_error)?;
            Ok(Bucket(path))
        }
        Ok(_) => Err(Failure(format!(
            "bucket {} is not a directory: {hint}",
            path.display()
        ))),
        Err(error) => Err(Failure(format!(
            "bucket {} cannot be used ({error}): {hint}",
            path.display()
        ))),
    }
}

/// How the volume's blocks are named.
pub fn naming(setting: &Setting) -> Naming {
    if setting.hash_prefix {
        Naming::Hashed
    } else {
        Naming::Plain
    }
}

/// How the volume's blocks are named and encoded.
pub fn layout(setting: &Setting) -> Result<Layout, Failure> {
    Ok(Layout {
        naming: naming(setting),
        block_bytes: setting.block_size_kib << 10,
        codec: match setting.compression {
            Compression::None => Codec::None,
            Compression::Lz4 => Codec::Lz4,
            Compression::Zstd => Codec::Zstd,
        },
        crypt: crypt(setting)?.map(Arc::new),
    })
}

fn crypt(setting: &Setting) -> Result<Option<Crypt>, Failure> {
    let Some(cipher) = setting.cipher().map_err(Failure::from_error)? else {
        return Ok(None);
    };
    let cipher = match cipher {
        sluice_meta::volume::Cipher::Aes256Gcm => Cipher::Aes256Gcm,
        sluice_meta::volume::Cipher::ChaCha20 => Cipher::ChaCha20Poly1305,
    };
    let pem = setting
        .open_secret(Secret::EncryptKey)
        .map_err(Failure::from_error)?;
    let passphrase = std::env::var(PASSPHRASE_VARIABLE).ok();
    let key = private_key(&pem, passphrase.as_deref()).map_err(Failure::from_error)?;
    Ok(Some(Crypt::new(cipher, key)))
}
