//! Secrets of the setting: sealed with a key that is derived from the volume's UUID.
//!
//! The seal only keeps secrets from being read in passing: whoever reads the whole setting can open it.
//! Form: standard base64 of nonce (12 bytes), ciphertext, tag (16 bytes) of AES-128-GCM without associated
//! data, key = MD5 of the UUID's text. Volumes with `sm4gcm` use SM4 instead and are refused by name.

use aes_gcm::aead::{Aead, AeadCore, KeyInit, OsRng};
use aes_gcm::{Aes128Gcm, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};

use super::{Cipher, Setting, VolumeError};

/// What stands in the place of a secret in a dump.
pub const REMOVED: &str = "removed";
const NONCE_BYTES: usize = 12;

/// The secrets of a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Secret {
    /// Key of the object store account.
    SecretKey,
    /// Temporary credentials of the object store account.
    SessionToken,
    /// PEM of the RSA key that wraps the data keys.
    EncryptKey,
}

impl Secret {
    const ALL: [Secret; 3] = [Secret::SecretKey, Secret::SessionToken, Secret::EncryptKey];

    fn field(self) -> &'static str {
        match self {
            Secret::SecretKey => "SecretKey",
            Secret::SessionToken => "SessionToken",
            Secret::EncryptKey => "EncryptKey",
        }
    }

    fn of(self, setting: &Setting) -> &String {
        match self {
            Secret::SecretKey => &setting.secret_key,
            Secret::SessionToken => &setting.session_token,
            Secret::EncryptKey => &setting.encrypt_key,
        }
    }

    fn of_mut(self, setting: &mut Setting) -> &mut String {
        match self {
            Secret::SecretKey => &mut setting.secret_key,
            Secret::SessionToken => &mut setting.session_token,
            Secret::EncryptKey => &mut setting.encrypt_key,
        }
    }
}

impl Setting {
    /// A secret in clear; empty if the volume has none of this kind.
    pub fn open_secret(&self, which: Secret) -> Result<String, VolumeError> {
        let (text, field) = (which.of(self), which.field());
        if text.is_empty() {
            return Ok(String::new());
        }
        if text == REMOVED {
            return Err(VolumeError::SecretRemoved { field });
        }
        if !self.key_encrypted {
            return Ok(text.clone());
        }
        let damaged = |cause: &str| VolumeError::SecretDamaged {
            field,
            cause: cause.into(),
        };
        let raw = STANDARD
            .decode(text)
            .map_err(|error| damaged(&error.to_string()))?;
        let (nonce, sealed) = raw
            .split_at_checked(NONCE_BYTES)
            .ok_or_else(|| damaged("it is too short"))?;
        let clear = self
            .seal()?
            .decrypt(Nonce::from_slice(nonce), sealed)
            .map_err(|_| damaged("it was not sealed for this volume's UUID"))?;
        String::from_utf8(clear).map_err(|_| damaged("it is not text"))
    }

    /// Replaces a secret, given in clear; an empty one is removed. All secrets are sealed afterwards, also
    /// those which an old client had left in clear.
    pub fn set_secret(&mut self, which: Secret, clear: &str) -> Result<(), VolumeError> {
        let mut secrets = Vec::new();
        for other in Secret::ALL {
            let text = match other == which {
                true => clear.to_owned(),
                // A stripped secret stays so: setting one must not be refused for the lack of another.
                false if other.of(self) == REMOVED => continue,
                false => self.open_secret(other)?,
            };
            secrets.push((other, text));
        }
        for (other, text) in secrets {
            let sealed = if text.is_empty() {
                String::new()
            } else {
                self.seal_text(other, &text)?
            };
            *other.of_mut(self) = sealed;
        }
        if Secret::ALL.iter().any(|secret| !secret.of(self).is_empty()) {
            self.key_encrypted = true;
        }
        Ok(())
    }

    /// Seals secrets that an old client left in clear; whether there were any.
    pub fn seal_secrets(&mut self) -> Result<bool, VolumeError> {
        let in_clear =
            !self.key_encrypted && Secret::ALL.iter().any(|one| !one.of(self).is_empty());
        if in_clear {
            // Setting one seals all.
            let clear = self.secret_key.clone();
            self.set_secret(Secret::SecretKey, &clear)?;
        }
        Ok(in_clear)
    }

    /// For showing and dumping: secrets replaced by [`REMOVED`].
    #[must_use]
    pub fn without_secrets(&self) -> Setting {
        let mut shown = self.clone();
        for secret in Secret::ALL {
            if !secret.of(self).is_empty() {
                *secret.of_mut(&mut shown) = REMOVED.into();
            }
        }
        shown
    }

    fn seal(&self) -> Result<Aes128Gcm, VolumeError> {
        if Cipher::from_name(&self.encrypt_algo).is_none() {
            return Err(VolumeError::Cipher {
                algo: self.encrypt_algo.clone(),
            });
        }
        Ok(Aes128Gcm::new(&Md5::digest(self.uuid.as_bytes())))
    }

    fn seal_text(&self, which: Secret, clear: &str) -> Result<String, VolumeError> {
        let nonce = Aes128Gcm::generate_nonce(&mut OsRng);
        let sealed = self
            .seal()?
            .encrypt(&nonce, clear.as_bytes())
            .map_err(|error| VolumeError::SecretDamaged {
                field: which.field(),
                cause: error.to_string(),
            })?;
        Ok(STANDARD.encode([nonce.as_slice(), &sealed].concat()))
    }
}
