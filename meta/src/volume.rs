//! The volume's setting: one JSON object that says what the volume is and what its clients must honour.
//!
//! Read at mount ([`Setting::parse`]) and at every heartbeat ([`Setting::decode`]), written by
//! `tools::format` only. Field names and their order are those of JuiceFS, whose tools rewrite the same
//! record: a setting that is parsed and rendered keeps what it does not understand ([`Setting::other`]) and
//! never carries anything private of ours.
//!
//! Fails with a [`VolumeError`]: one sentence that tells what is wrong, why it matters and what to do.
//! Secrets are opened in `secret`, versions are compared in `version`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::EngineError;

mod secret;
mod version;

pub use secret::{REMOVED, Secret};
pub use version::Version;

/// Largest `MetaVersion` this crate knows: 0 and 1 are the same layout.
pub const META_VERSION: u32 = 1;
/// The JuiceFS release whose format and rules we follow, for `MinClientVersion` and `MaxClientVersion`.
pub const CLIENT_VERSION: &str = "1.4.1";
/// The oldest client that keeps ACLs (format fact).
const ACL_CLIENT_VERSION: &str = "1.2.0-A";
/// Smallest block size, KiB (format fact).
pub const BLOCK_KIB_MIN: u32 = 64;
/// Largest block size, KiB (format fact).
pub const BLOCK_KIB_MAX: u32 = 16 << 10;
/// Block size of a volume formatted without saying one, KiB.
pub const BLOCK_KIB_DEFAULT: u32 = 4096;

/// What is wrong with a volume or a setting. Every message names the field, the reason and the way out.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No setting in the store.
    #[error(
        "this metadata store is not formatted: it holds no volume setting; run `sluice format META-URL NAME` to create a volume in it, or check the URL"
    )]
    NotFormatted,
    /// The setting is no JSON object of the right form.
    #[error(
        "the volume's setting is damaged ({cause}); restore it with `sluice format` or from a metadata dump before mounting"
    )]
    Damaged {
        /// What the parser found.
        cause: String,
    },
    /// A layout we do not know.
    #[error(
        "the volume has metadata version {version} but this client knows versions up to {META_VERSION}; use a newer client"
    )]
    NewerLayout {
        /// Its `MetaVersion`.
        version: u32,
    },
    /// `MinClientVersion` is above ours.
    #[error(
        "the volume admits clients from version {min} on and this one follows {CLIENT_VERSION}; use a newer client, or lower min-client-version"
    )]
    ClientTooOld {
        /// Its `MinClientVersion`.
        min: String,
    },
    /// `MaxClientVersion` is below ours.
    #[error(
        "the volume admits clients up to version {max} and this one follows {CLIENT_VERSION}; raise max-client-version, or use an older client"
    )]
    ClientTooNew {
        /// Its `MaxClientVersion`.
        max: String,
    },
    /// A client version limit that cannot be compared.
    #[error(
        "the setting's {field} is \"{text}\", which is not a version like 1.4.1, so nobody can tell whether this client is admitted; correct it with `juicefs config`"
    )]
    BadVersion {
        /// Field.
        field: &'static str,
        /// Its text.
        text: String,
    },
    /// A compression we cannot read.
    #[error(
        "the volume's blocks are compressed with \"{name}\", which this client cannot read (it knows none, lz4 and zstd); use a client that does"
    )]
    Compression {
        /// Its name.
        name: String,
    },
    /// A cipher we do not have.
    #[error(
        "the volume is encrypted with \"{algo}\", which this client does not have (it knows aes256gcm-rsa and chacha20-rsa); use JuiceFS for this volume"
    )]
    Cipher {
        /// Its name.
        algo: String,
    },
    /// Not a block size of the format.
    #[error(
        "the volume's block size is {kib} KiB, but it must be a power of two from {BLOCK_KIB_MIN} to {BLOCK_KIB_MAX}; the setting is damaged, restore it from a metadata dump"
    )]
    BlockSize {
        /// What the setting says.
        kib: u32,
    },
    /// Data spread over several buckets.
    #[error(
        "the volume spreads its blocks over {shards} buckets, which this client cannot do yet; use JuiceFS for this volume"
    )]
    Shards {
        /// How many.
        shards: u32,
    },
    /// A secret was stripped by a dump.
    #[error(
        "the volume's {field} was stripped when its metadata was dumped; set it again with `sluice format` or `juicefs config`"
    )]
    SecretRemoved {
        /// Field.
        field: &'static str,
    },
    /// A secret that cannot be opened or sealed.
    #[error(
        "the volume's {field} cannot be decrypted ({cause}); the setting was changed by hand or is damaged, set the secret again with `juicefs config`"
    )]
    SecretDamaged {
        /// Field.
        field: &'static str,
        /// What went wrong.
        cause: String,
    },
    /// A name that object keys cannot carry.
    #[error(
        "\"{name}\" cannot be a volume's name: it must be 3 to 63 lower-case letters, digits and dashes that start and end with a letter or digit; choose another"
    )]
    Name {
        /// As given.
        name: String,
    },
    /// An option without sense.
    #[error("{what} cannot be {value}: {why}")]
    Option {
        /// Which option.
        what: &'static str,
        /// As given.
        value: String,
        /// What is expected.
        why: &'static str,
    },
    /// A change of what is fixed at format.
    #[error(
        "the {what} of volume \"{volume}\" is {was} and cannot become {wanted}, since its data is laid out by it; format another volume and copy the data"
    )]
    Immutable {
        /// Which property.
        what: &'static str,
        /// Volume's name.
        volume: String,
        /// Value in force.
        was: String,
        /// Value asked for.
        wanted: String,
    },
    /// The store holds inodes but no setting.
    #[error(
        "the metadata store holds a file system but no volume setting, so it is damaged or belongs to something else; choose an empty store, or restore the setting from a dump"
    )]
    Leftovers,
    /// Somebody else changed the setting meanwhile.
    #[error(
        "the volume's setting was changed by another client at the same moment, nothing was written; run the command again"
    )]
    Raced,
    /// A fault of the store.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// How blocks are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4 block format.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// As the setting spells it.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }

    /// From the setting's word; case does not matter, nothing at all means none.
    pub fn from_name(name: &str) -> Option<Compression> {
        Some(match name.to_ascii_lowercase().as_str() {
            "" | "none" => Compression::None,
            "lz4" => Compression::Lz4,
            "zstd" => Compression::Zstd,
            _ => return None,
        })
    }
}

/// How blocks are encrypted: the data key of each object is wrapped with the volume's RSA key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cipher {
    /// AES-256-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20,
}

/// Name of the default data cipher.
pub const CIPHER_DEFAULT: &str = "aes256gcm-rsa";

impl Cipher {
    /// From the setting's word; nothing at all means the default.
    pub fn from_name(name: &str) -> Option<Cipher> {
        match name {
            "" | CIPHER_DEFAULT => Some(Cipher::Aes256Gcm),
            "chacha20-rsa" => Some(Cipher::ChaCha20),
            _ => None,
        }
    }
}

/// A storage class that objects may be put into.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Tier {
    /// 0..=3; 0 is the default tier.
    #[serde(rename = "ID")]
    pub id: u8,
    /// Storage class as the object store names it; empty for its default.
    pub storage_class: String,
    /// Object tag.
    pub tag: String,
    /// What a newer client added.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The setting record. Field order is the order in which JuiceFS writes them; fields that are zero or empty
/// are left out where JuiceFS leaves them out.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Setting {
    /// Volume's name, the first directory of every object key. Fixed at format.
    pub name: String,
    /// Identity of the volume; also the key that its secrets are sealed with.
    #[serde(rename = "UUID")]
    pub uuid: String,
    /// Kind of the object store: `file`, `s3`, ...
    pub storage: String,
    /// Storage class of volumes from before tiers.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub storage_class: String,
    /// Tiers by id; a volume without any has the default tier only.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tiers: BTreeMap<String, Tier>,
    /// Where the object store is: a directory or an endpoint.
    pub bucket: String,
    /// Name that goes with `secret_key`; in clear.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub access_key: String,
    /// Ciphertext if `key_encrypted`; read it with [`Setting::open_secret`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub secret_key: String,
    /// Ciphertext if `key_encrypted`; read it with [`Setting::open_secret`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub session_token: String,
    /// Bytes of a block in KiB. Fixed at format.
    #[serde(rename = "BlockSize")]
    pub block_size_kib: u32,
    /// Compression of blocks. Fixed at format.
    #[serde(with = "compression_name")]
    pub compression: Compression,
    /// Number of buckets; 0 and 1 mean one. Fixed at format.
    #[serde(skip_serializing_if = "is_zero")]
    pub shards: u32,
    /// Whether object keys start with a hash. Fixed at format.
    #[serde(skip_serializing_if = "is_false")]
    pub hash_prefix: bool,
    /// Most bytes the volume may use, 0 = no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub capacity: u64,
    /// Most inodes, 0 = no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub inodes: u64,
    /// PEM of the RSA key that wraps data keys, sealed if `key_encrypted`; empty: blocks are not encrypted.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub encrypt_key: String,
    /// Name of the data cipher; means nothing while `encrypt_key` is empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub encrypt_algo: String,
    /// Whether the secrets here are ciphertext.
    #[serde(skip_serializing_if = "is_false")]
    pub key_encrypted: bool,
    /// Default upload bandwidth of a client, Mbit/s, 0 = no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub upload_limit: i64,
    /// Default download bandwidth of a client, Mbit/s, 0 = no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub download_limit: i64,
    /// Days that removed files stay in the trash, 0 = no trash.
    pub trash_days: u32,
    /// Version of the metadata layout.
    #[serde(skip_serializing_if = "is_zero")]
    pub meta_version: u32,
    /// Clients older than this must not mount.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub min_client_version: String,
    /// Clients newer than this must not mount.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub max_client_version: String,
    /// Whether directory statistics are kept.
    #[serde(skip_serializing_if = "is_false")]
    pub dir_stats: bool,
    /// Whether usage is accounted by user and group.
    #[serde(skip_serializing_if = "is_false")]
    pub user_group_quota: bool,
    /// Whether POSIX ACLs are on.
    #[serde(rename = "EnableACL")]
    pub enable_acl: bool,
    /// Hadoop only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ranger_rest_url: String,
    /// Hadoop only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ranger_service: String,
    /// Whether every change must be logged in the metadata.
    #[serde(skip_serializing_if = "is_false")]
    pub change_log: bool,
    /// Seconds that change log lines are kept.
    #[serde(skip_serializing_if = "is_zero")]
    pub change_log_max_age: i64,
    /// Most change log lines kept.
    #[serde(skip_serializing_if = "is_zero")]
    pub change_log_max_lines: i64,
    /// Kerberos configuration of Hadoop clients.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kerb_conf: String,
    /// Fields of newer clients, kept as they are.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// `Compression` as its name. An unknown name is told apart from damage by [`Setting::decode`].
mod compression_name {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Compression;

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde's `with` calls it by reference"
    )]
    pub(super) fn serialize<S: Serializer>(value: &Compression, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(value.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Compression, D::Error> {
        let name = String::deserialize(from)?;
        Compression::from_name(&name)
            .ok_or_else(|| D::Error::custom(format!("unknown compression {name}")))
    }
}

impl Setting {
    /// A new volume's setting, as JuiceFS's `format` makes it without options.
    pub fn fresh(name: &str, uuid: &str) -> Setting {
        Setting {
            name: name.into(),
            uuid: uuid.into(),
            storage: "file".into(),
            tiers: BTreeMap::from([("0".into(), Tier::default())]),
            block_size_kib: BLOCK_KIB_DEFAULT,
            encrypt_algo: CIPHER_DEFAULT.into(),
            trash_days: 1,
            meta_version: META_VERSION,
            min_client_version: "1.1.0-A".into(),
            dir_stats: true,
            ..Setting::default()
        }
    }

    /// For a mount: decodes the record and refuses what this client must not touch, by name.
    pub fn parse(raw: &[u8]) -> Result<Setting, VolumeError> {
        let setting = Setting::decode(raw)?;
        setting.check_client()?;
        setting.check_data()?;
        Ok(setting)
    }

    /// Decodes the record and checks that its layout is ours. Enough at a heartbeat: limits on client
    /// versions concern mounts only.
    pub fn decode(raw: &[u8]) -> Result<Setting, VolumeError> {
        let damaged = |cause: serde_json::Error| VolumeError::Damaged {
            cause: cause.to_string(),
        };
        let value: Value = serde_json::from_slice(raw).map_err(damaged)?;
        let name = value
            .get("Compression")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if Compression::from_name(name).is_none() {
            return Err(VolumeError::Compression { name: name.into() });
        }
        let setting: Setting = serde_json::from_value(value).map_err(damaged)?;
        if setting.meta_version > META_VERSION {
            return Err(VolumeError::NewerLayout {
                version: setting.meta_version,
            });
        }
        if setting.name.is_empty() || setting.uuid.is_empty() {
            let field = if setting.name.is_empty() {
                "Name"
            } else {
                "UUID"
            };
            return Err(VolumeError::Damaged {
                cause: format!("{field} is missing"),
            });
        }
        Ok(setting)
    }

    fn check_client(&self) -> Result<(), VolumeError> {
        let ours = Version::parse(CLIENT_VERSION).expect("our own version is one");
        let limit = |field, text: &String| match text.as_str() {
            "" => Ok(None),
            _ => match Version::parse(text) {
                Some(version) => Ok(Some(version)),
                None => Err(VolumeError::BadVersion {
                    field,
                    text: text.clone(),
                }),
            },
        };
        if limit("MinClientVersion", &self.min_client_version)?.is_some_and(|min| ours < min) {
            return Err(VolumeError::ClientTooOld {
                min: self.min_client_version.clone(),
            });
        }
        if limit("MaxClientVersion", &self.max_client_version)?.is_some_and(|max| ours > max) {
            return Err(VolumeError::ClientTooNew {
                max: self.max_client_version.clone(),
            });
        }
        Ok(())
    }

    /// Whether this client can name, read and write the volume's blocks.
    fn check_data(&self) -> Result<(), VolumeError> {
        let kib = self.block_size_kib;
        if !kib.is_power_of_two() || !(BLOCK_KIB_MIN..=BLOCK_KIB_MAX).contains(&kib) {
            return Err(VolumeError::BlockSize { kib });
        }
        if self.shards > 1 {
            return Err(VolumeError::Shards {
                shards: self.shards,
            });
        }
        self.cipher()?;
        Ok(())
    }

    /// How blocks are encrypted, if they are. The algorithm is recorded even where no key is; it then
    /// matters only for sealed secrets, which need a cipher we have.
    pub fn cipher(&self) -> Result<Option<Cipher>, VolumeError> {
        if self.encrypt_key.is_empty() && !self.key_encrypted {
            return Ok(None);
        }
        let cipher = Cipher::from_name(&self.encrypt_algo).ok_or_else(|| VolumeError::Cipher {
            algo: self.encrypt_algo.clone(),
        })?;
        Ok((!self.encrypt_key.is_empty()).then_some(cipher))
    }

    /// Features that are on and that a writer has to keep up, but which this client does not build yet. A
    /// volume with any of them is mounted read-only or not at all.
    pub fn unsupported_for_writing(&self) -> Vec<&'static str> {
        let features = [
            (self.change_log, "the change log (ChangeLog)"),
            (!self.kerb_conf.is_empty(), "Kerberos (KerbConf)"),
            (
                // A tier chooses a storage class, which a directory has not: keeping its number is enough.
                self.storage != "file" && self.tiers.keys().any(|id| id != "0"),
                "storage tiers other than the default (Tiers)",
            ),
        ];
        features
            .into_iter()
            .filter_map(|(on, name)| on.then_some(name))
            .collect()
    }

    /// Turns POSIX ACLs on and keeps out clients that know nothing of them.
    pub(crate) fn enable_acls(&mut self) {
        self.enable_acl = true;
        let (needed, current) = (
            Version::parse(ACL_CLIENT_VERSION),
            Version::parse(&self.min_client_version),
        );
        if current < needed {
            self.min_client_version = ACL_CLIENT_VERSION.into();
        }
    }

    /// The record's text, byte for byte as JuiceFS writes the same setting: pretty-printed without
    /// indentation, with the characters that are special in HTML escaped.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        let layout = serde_json::ser::PrettyFormatter::with_indent(b"");
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, layout);
        self.serialize(&mut serializer)
            .expect("strings, numbers and maps keyed by strings always serialise");
        let text = String::from_utf8(out).expect("serde_json writes UTF-8");
        escape_html(text)
    }
}

/// JSON text with the characters that are special in HTML escaped, as Go writes JSON. They occur only inside
/// strings, where the escape means the same character.
pub(crate) fn escape_html(text: String) -> String {
    let escapes = [
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('&', "\\u0026"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ];
    escapes.iter().fold(text, |text, (special, escape)| {
        match text.contains(*special) {
            true => text.replace(*special, escape),
            false => text,
        }
    })
}

/// Block size of the format nearest below what was asked for: a power of two of KiB from 64 to 16384.
pub fn round_block_kib(kib: u64) -> u32 {
    let clamped = kib.clamp(u64::from(BLOCK_KIB_MIN), u64::from(BLOCK_KIB_MAX));
    1 << clamped.ilog2()
}

/// Whether `name` may be a volume's: `^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$`.
pub fn check_name(name: &str) -> Result<(), VolumeError> {
    let bytes = name.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    let ends = bytes.first() != Some(&b'-') && bytes.last() != Some(&b'-');
    if (3..=63).contains(&bytes.len()) && bytes.iter().all(inner) && ends {
        Ok(())
    } else {
        Err(VolumeError::Name { name: name.into() })
    }
}
