//! The volume's RSA private key from PEM text, as JuiceFS and OpenSSL write it.
//!
//! Accepted: PKCS#1 and PKCS#8, plain or protected by a passphrase (legacy `DEK-Info` with AES in CBC mode,
//! or encrypted PKCS#8). Called when a volume is opened or formatted; pure. Failure: [`KeyError`], one
//! sentence that says what to do.

use aes::{Aes128, Aes192, Aes256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockDecryptMut, KeyIvInit};
use md5::{Digest, Md5};
use rsa::RsaPrivateKey;
use rsa::pkcs1::DecodeRsaPrivateKey;
use rsa::pkcs8::DecodePrivateKey;

/// Where the passphrase comes from.
pub const PASSPHRASE_VARIABLE: &str = "JFS_RSA_PASSPHRASE";

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Protected, and no passphrase given.
    #[error("the volume's RSA key is protected: set JFS_RSA_PASSPHRASE to its passphrase")]
    PassphraseMissing,
    /// The passphrase does not open it.
    #[error("the passphrase in JFS_RSA_PASSPHRASE does not open the volume's RSA key")]
    PassphraseWrong,
    /// Something else than what we read.
    #[error(
        "the volume's RSA key cannot be read: {cause}; expected PEM text of an RSA private key"
    )]
    Unreadable {
        /// What is wrong.
        cause: String,
    },
}

fn unreadable(cause: impl Into<String>) -> KeyError {
    KeyError::Unreadable {
        cause: cause.into(),
    }
}

/// The key in `pem`. A passphrase that is not needed is ignored; an empty one counts as none.
pub fn private_key(pem: &str, passphrase: Option<&str>) -> Result<RsaPrivateKey, KeyError> {
    let passphrase = passphrase.filter(|words| !words.is_empty());
    let pem = Pem::parse(pem)?;
    match (pem.label.as_str(), &pem.legacy) {
        ("ENCRYPTED PRIVATE KEY", _) => {
            let words = passphrase.ok_or(KeyError::PassphraseMissing)?;
            // A wrong passphrase shows as bytes that are no key; so does damage, far less often.
            RsaPrivateKey::from_pkcs8_encrypted_der(&pem.body, words)
                .map_err(|_| KeyError::PassphraseWrong)
        }
        (label, Some(info)) if label.ends_with("PRIVATE KEY") => {
            let words = passphrase.ok_or(KeyError::PassphraseMissing)?;
            let plain = info.decrypt(&pem.body, words)?;
            parse_der(&plain).map_err(|_| KeyError::PassphraseWrong)
        }
        (label, None) if label.ends_with("PRIVATE KEY") => parse_der(&pem.body),
        (label, _) => Err(unreadable(format!("it is a {label:?}"))),
    }
}

/// Either of the two encodings, whatever the label says: JuiceFS does not look at it either.
fn parse_der(der: &[u8]) -> Result<RsaPrivateKey, KeyError> {
    RsaPrivateKey::from_pkcs1_der(der).or_else(|pkcs1| {
        RsaPrivateKey::from_pkcs8_der(der)
            .map_err(|pkcs8| unreadable(format!("not PKCS#1 ({pkcs1}) nor PKCS#8 ({pkcs8})")))
    })
}

/// One PEM block.
struct Pem {
    label: String,
    legacy: Option<DekInfo>,
    body: Vec<u8>,
}

impl Pem {
    /// The first block of the text. The strict PEM readers of our libraries refuse header lines.
    fn parse(text: &str) -> Result<Pem, KeyError> {
        let mut lines = text.lines().map(str::trim);
        let label = lines
            .find_map(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----"))
            .ok_or_else(|| unreadable("no BEGIN line"))?
            .to_owned();
        let end = format!("-----END {label}-----");
        let (mut encrypted, mut info, mut base64, mut ended) = (false, None, String::new(), false);
        for line in lines {
            if line == end {
                ended = true;
                break;
            }
            match line.split_once(':') {
                Some(("Proc-Type", value)) => encrypted = value.contains("ENCRYPTED"),
                Some(("DEK-Info", value)) => info = Some(value.trim().to_owned()),
                Some(_) => {}
                None => base64.push_str(line),
            }
        }
        if !ended {
            return Err(unreadable("no END line"));
        }
        let body = BASE64
            .decode(base64)
            .map_err(|error| unreadable(error.to_string()))?;
        let legacy = match (encrypted, info) {
            (false, _) => None,
            (true, Some(info)) => Some(DekInfo::parse(&info)?),
            (true, None) => return Err(unreadable("it is encrypted but lacks DEK-Info")),
        };
        Ok(Pem {
            label,
            legacy,
            body,
        })
    }
}

/// How a legacy PEM block is encrypted.
struct DekInfo {
    cipher: LegacyCipher,
    iv: [u8; 16],
}

#[derive(Clone, Copy)]
enum LegacyCipher {
    Aes128,
    Aes192,
    Aes256,
}

impl DekInfo {
    /// `AES-256-CBC,<initial vector in hex>`.
    fn parse(text: &str) -> Result<DekInfo, KeyError> {
        let (name, iv) = text
            .split_once(',')
            .ok_or_else(|| unreadable("malformed DEK-Info"))?;
        let cipher = match name {
            "AES-128-CBC" => LegacyCipher::Aes128,
            "AES-192-CBC" => LegacyCipher::Aes192,
            "AES-256-CBC" => LegacyCipher::Aes256,
            other => {
                return Err(unreadable(format!(
                    "it is encrypted with {other}, which is not supported"
                )));
            }
        };
        let iv = parse_iv(iv.trim()).ok_or_else(|| unreadable("malformed DEK-Info"))?;
        Ok(DekInfo { cipher, iv })
    }

    fn decrypt(&self, body: &[u8], passphrase: &str) -> Result<Vec<u8>, KeyError> {
        let plain = match self.cipher {
            LegacyCipher::Aes128 => self.cbc::<Aes128>(16, body, passphrase),
            LegacyCipher::Aes192 => self.cbc::<Aes192>(24, body, passphrase),
            LegacyCipher::Aes256 => self.cbc::<Aes256>(32, body, passphrase),
        };
        plain.ok_or(KeyError::PassphraseWrong)
    }

    fn cbc<C>(&self, key_bytes: usize, body: &[u8], passphrase: &str) -> Option<Vec<u8>>
    where
        C: cbc::cipher::BlockCipher + cbc::cipher::BlockDecryptMut + cbc::cipher::KeyInit,
    {
        let key = derive_key(passphrase.as_bytes(), &self.iv[..8], key_bytes);
        cbc::Decryptor::<C>::new_from_slices(&key, &self.iv)
            .ok()?
            .decrypt_padded_vec_mut::<Pkcs7>(body)
            .ok()
    }
}

/// OpenSSL's `EVP_BytesToKey` with MD5 and one round: each digest covers the one before, the passphrase and
/// the salt.
fn derive_key(passphrase: &[u8], salt: &[u8], bytes: usize) -> Vec<u8> {
    let mut key: Vec<u8> = Vec::with_capacity(bytes + 16);
    let mut last: Option<[u8; 16]> = None;
    while key.len() < bytes {
        let mut digest = Md5::new();
        if let Some(last) = last {
            digest.update(last);
        }
        digest.update(passphrase);
        digest.update(salt);
        let next: [u8; 16] = digest.finalize().into();
        key.extend_from_slice(&next);
        last = Some(next);
    }
    key.truncate(bytes);
    key
}

fn parse_iv(hex: &str) -> Option<[u8; 16]> {
    if hex.len() != 32 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(hex, 16).ok().map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One key in all its dresses: written by OpenSSL, passphrase `open sesame`.
    const DRESSES: [(&str, &str, bool); 5] = [
        (
            "pkcs1",
            include_str!("../../tests/data/keys/pkcs1.pem"),
            false,
        ),
        (
            "pkcs8",
            include_str!("../../tests/data/keys/pkcs8.pem"),
            false,
        ),
        (
            "pkcs1-aes128",
            include_str!("../../tests/data/keys/pkcs1-aes128.pem"),
            true,
        ),
        (
            "pkcs1-aes256",
            include_str!("../../tests/data/keys/pkcs1-aes256.pem"),
            true,
        ),
        (
            "pkcs8-aes256",
            include_str!("../../tests/data/keys/pkcs8-aes256.pem"),
            true,
        ),
    ];

    #[test]
    fn all_dresses_hold_the_same_key() {
        let plain = private_key(DRESSES[0].1, None).unwrap();
        for (name, pem, protected) in DRESSES {
            assert_eq!(
                private_key(pem, Some("open sesame")).as_ref(),
                Ok(&plain),
                "{name}"
            );
            let without = private_key(pem, None);
            let wrong = private_key(pem, Some("open barley"));
            if protected {
                assert_eq!(without, Err(KeyError::PassphraseMissing), "{name}");
                assert_eq!(
                    private_key(pem, Some("")),
                    Err(KeyError::PassphraseMissing),
                    "{name}"
                );
                assert_eq!(wrong, Err(KeyError::PassphraseWrong), "{name}");
            } else {
                assert_eq!(without.as_ref(), Ok(&plain), "{name}");
                assert_eq!(wrong.as_ref(), Ok(&plain), "{name}");
            }
        }
    }

    #[test]
    fn the_golden_key_opens() {
        let pem = include_str!("../../tests/data/zstd-encrypted/rsa.pem");
        assert!(private_key(pem, Some("golden-pass")).is_ok());
        let wrong = private_key(pem, Some("golden-past")).unwrap_err();
        let sentence = "the passphrase in JFS_RSA_PASSPHRASE does not open the volume's RSA key";
        assert_eq!(wrong.to_string(), sentence);
    }

    #[test]
    fn anything_else_is_refused_with_a_reason() {
        let check = |pem: &str, words: &str| {
            let error = private_key(pem, Some("x")).unwrap_err().to_string();
            assert!(error.contains(words), "{pem:?}: {error}");
        };
        let wrap = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        check("", "no BEGIN line");
        check("-----BEGIN PRIVATE KEY-----\nAAAA\n", "no END line");
        check(&wrap("PRIVATE KEY", "!!!!"), "cannot be read");
        check(&wrap("PRIVATE KEY", "AAAA"), "not PKCS#1");
        check(&wrap("PUBLIC KEY", "AAAA"), "PUBLIC KEY");
        let headed = |info: &str| {
            wrap(
                "RSA PRIVATE KEY",
                &format!("Proc-Type: 4,ENCRYPTED\n{info}\n\nAAAA"),
            )
        };
        check(&headed("X: y"), "lacks DEK-Info");
        check(
            &headed("DEK-Info: DES-EDE3-CBC,0011223344556677"),
            "DES-EDE3-CBC",
        );
        check(&headed("DEK-Info: AES-256-CBC,00"), "malformed DEK-Info");
    }
}
