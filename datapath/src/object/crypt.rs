//! Encryption of objects, as the volume's format has it.
//!
//! Each object carries its own data key, wrapped with the volume's RSA key (OAEP, SHA-256, label `keys`):
//!
//! ```text
//! 0        u16 big-endian W   length of the wrapped data key
//! 2        u8 N               length of the nonce
//! 3        W bytes            wrapped data key
//! 3+W      N bytes            nonce
//! 3+W+N    the rest           ciphertext, 16-byte tag at the end; no associated data
//! ```
//!
//! Pure functions, called by `blocks` on the blocking pool: unwrapping a key of 2048 bits takes 1-2 ms.
//! Failure: bytes that are not such an envelope, or not of this key, are refused with a reason.

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use chacha20poly1305::ChaCha20Poly1305;
use rand_core::{OsRng, RngCore};
use rsa::traits::PublicKeyParts;
use rsa::{Oaep, RsaPrivateKey, RsaPublicKey};
use sha2::Sha256;

const DATA_KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// Before the wrapped key: its length and the nonce's.
const HEAD_BYTES: usize = 3;
const LABEL: &str = "keys";

/// The volume's cipher.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cipher {
    /// `aes256gcm-rsa`.
    Aes256Gcm,
    /// `chacha20-rsa`.
    ChaCha20Poly1305,
}

impl Cipher {
    /// From the volume's setting; `None` if it names none we know.
    pub fn parse(name: &str) -> Option<Cipher> {
        match name {
            "" | "aes256gcm-rsa" => Some(Cipher::Aes256Gcm),
            "chacha20-rsa" => Some(Cipher::ChaCha20Poly1305),
            _ => None,
        }
    }
}

/// The volume's cipher and key.
pub struct Crypt {
    cipher: Cipher,
    private: RsaPrivateKey,
    public: RsaPublicKey,
}

impl std::fmt::Debug for Crypt {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Crypt")
            .field("cipher", &self.cipher)
            .finish_non_exhaustive()
    }
}

impl Crypt {
    /// With a key from `keyfile`.
    pub fn new(cipher: Cipher, private: RsaPrivateKey) -> Crypt {
        let public = private.to_public_key();
        Crypt {
            cipher,
            private,
            public,
        }
    }

    /// The envelope of `plain`.
    pub fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, String> {
        let mut data_key = [0; DATA_KEY_BYTES];
        OsRng.fill_bytes(&mut data_key);
        let mut nonce = [0; NONCE_BYTES];
        OsRng.fill_bytes(&mut nonce);
        let wrapped = self
            .public
            .encrypt(&mut OsRng, padding(), &data_key)
            .map_err(|error| format!("its data key cannot be wrapped: {error}"))?;
        let wrapped_len = u16::try_from(wrapped.len())
            .map_err(|_| format!("a wrapped key of {} bytes does not fit", wrapped.len()))?;

        let body = HEAD_BYTES + wrapped.len() + NONCE_BYTES;
        let mut stored = Vec::with_capacity(body + plain.len() + TAG_BYTES);
        stored.extend_from_slice(&wrapped_len.to_be_bytes());
        stored.push(NONCE_BYTES as u8);
        stored.extend_from_slice(&wrapped);
        stored.extend_from_slice(&nonce);
        stored.extend_from_slice(plain);
        let tag = self.seal(&data_key, &nonce, &mut stored[body..])?;
        stored.extend_from_slice(&tag);
        Ok(stored)
    }

    /// The plain bytes of an envelope.
    pub fn decrypt(&self, stored: &[u8]) -> Result<Vec<u8>, String> {
        let envelope = Envelope::split(stored)?;
        if envelope.wrapped.len() != self.public.size() {
            return Err(format!(
                "its data key is wrapped in {} bytes, the volume's key makes {}",
                envelope.wrapped.len(),
                self.public.size()
            ));
        }
        // Blinded, so that the time taken says nothing about the key.
        let data_key = self
            .private
            .decrypt_blinded(&mut OsRng, padding(), envelope.wrapped)
            .map_err(|_| "its data key was not wrapped with this volume's key")?;
        let data_key = <[u8; DATA_KEY_BYTES]>::try_from(data_key)
            .map_err(|key| format!("its data key has {} bytes", key.len()))?;
        let mut plain = envelope.body.to_vec();
        self.open(&data_key, &envelope.nonce, &mut plain, &envelope.tag)?;
        Ok(plain)
    }

    fn seal(
        &self,
        key: &[u8; DATA_KEY_BYTES],
        nonce: &[u8; NONCE_BYTES],
        body: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], String> {
        let nonce = Nonce::from_slice(nonce);
        let tag = match self.cipher {
            Cipher::Aes256Gcm => {
                Aes256Gcm::new(key.into()).encrypt_in_place_detached(nonce, &[], body)
            }
            Cipher::ChaCha20Poly1305 => {
                ChaCha20Poly1305::new(key.into()).encrypt_in_place_detached(nonce, &[], body)
            }
        };
        tag.map(Into::into)
            .map_err(|_| "it is too long to encrypt".into())
    }

    fn open(
        &self,
        key: &[u8; DATA_KEY_BYTES],
        nonce: &[u8; NONCE_BYTES],
        body: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), String> {
        let (nonce, tag) = (Nonce::from_slice(nonce), Tag::from_slice(tag));
        match self.cipher {
            Cipher::Aes256Gcm => {
                Aes256Gcm::new(key.into()).decrypt_in_place_detached(nonce, &[], body, tag)
            }
            Cipher::ChaCha20Poly1305 => {
                ChaCha20Poly1305::new(key.into()).decrypt_in_place_detached(nonce, &[], body, tag)
            }
        }
        .map_err(|_| "it fails authentication".into())
    }
}

fn padding() -> Oaep {
    Oaep::new_with_label::<Sha256, _>(LABEL)
}

/// The parts of a stored object.
struct Envelope<'a> {
    wrapped: &'a [u8],
    nonce: [u8; NONCE_BYTES],
    body: &'a [u8],
    tag: [u8; TAG_BYTES],
}

impl Envelope<'_> {
    fn split(stored: &[u8]) -> Result<Envelope<'_>, String> {
        let short = || format!("{} bytes are too few for an encrypted object", stored.len());
        let (head, rest) = stored.split_first_chunk::<HEAD_BYTES>().ok_or_else(short)?;
        let [high, low, nonce_len] = *head;
        if usize::from(nonce_len) != NONCE_BYTES {
            return Err(format!(
                "its nonce has {nonce_len} bytes instead of {NONCE_BYTES}"
            ));
        }
        let wrapped_len = usize::from(u16::from_be_bytes([high, low]));
        let (wrapped, rest) = rest.split_at_checked(wrapped_len).ok_or_else(short)?;
        let (nonce, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (body, tag) = rest.split_last_chunk().ok_or_else(short)?;
        Ok(Envelope {
            wrapped,
            nonce: *nonce,
            body,
            tag: *tag,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::OnceLock;

    use proptest::prelude::*;

    use super::*;

    /// Small, so that tests are quick; OAEP with SHA-256 needs 66 bytes and the data key 32.
    const TEST_KEY_BITS: usize = 1024;

    pub(crate) fn test_key() -> RsaPrivateKey {
        static KEY: OnceLock<RsaPrivateKey> = OnceLock::new();
        KEY.get_or_init(|| RsaPrivateKey::new(&mut OsRng, TEST_KEY_BITS).unwrap())
            .clone()
    }

    fn crypts() -> [Crypt; 2] {
        [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305].map(|cipher| Crypt::new(cipher, test_key()))
    }

    #[test]
    fn names() {
        let check = |name, expected| assert_eq!(Cipher::parse(name), expected, "{name}");
        check("", Some(Cipher::Aes256Gcm));
        check("aes256gcm-rsa", Some(Cipher::Aes256Gcm));
        check("chacha20-rsa", Some(Cipher::ChaCha20Poly1305));
        check("sm4gcm", None);
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        for crypt in crypts() {
            let stored = crypt.encrypt(b"some plain bytes").unwrap();
            assert_eq!(
                stored.len(),
                HEAD_BYTES + TEST_KEY_BITS / 8 + NONCE_BYTES + 16 + TAG_BYTES
            );
            // Every byte of the frame and the ciphertext, and some of the wrapped key (those are slow).
            let wrapped_end = HEAD_BYTES + TEST_KEY_BITS / 8;
            for at in (0..HEAD_BYTES)
                .chain([3, 50, wrapped_end - 1])
                .chain(wrapped_end..stored.len())
            {
                let mut damaged = stored.clone();
                damaged[at] ^= 0x40;
                assert!(
                    crypt.decrypt(&damaged).is_err(),
                    "{:?} byte {at}",
                    crypt.cipher
                );
            }
            for len in (0..stored.len()).step_by(7) {
                assert!(
                    crypt.decrypt(&stored[..len]).is_err(),
                    "{:?} cut to {len}",
                    crypt.cipher
                );
            }
        }
    }

    #[test]
    fn ciphers_differ() {
        let [aes, chacha] = crypts();
        let stored = aes.encrypt(b"plain").unwrap();
        assert_eq!(
            chacha.decrypt(&stored).unwrap_err(),
            "it fails authentication"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn what_is_encrypted_decrypts(plain in prop::collection::vec(any::<u8>(), 0..2000)) {
            for crypt in crypts() {
                let stored = crypt.encrypt(&plain).unwrap();
                prop_assert_eq!(&crypt.decrypt(&stored).unwrap(), &plain);
            }
        }
    }
}
