//! Compression of blocks, as the volume's format has it: whole block in, whole object out, without any
//! header of its own; the plain length is in the object's name.
//!
//! Pure functions, called by `blocks` on the blocking pool (a block of 4 MiB takes milliseconds). Failure:
//! bytes that do not decode to exactly the expected length are refused, with a reason.

/// The volume's compression.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Codec {
    /// Plain bytes; ranges can be read.
    None,
    /// One bare LZ4 block: no frame, no length.
    Lz4,
    /// One Zstandard frame of level 1 that carries its content size.
    Zstd,
}

/// Level of every JuiceFS volume.
const ZSTD_LEVEL: i32 = 1;

impl Codec {
    /// From the volume's setting; `None` if it names none we know.
    pub fn parse(name: &str) -> Option<Codec> {
        match name {
            "" | "none" => Some(Codec::None),
            "lz4" => Some(Codec::Lz4),
            "zstd" => Some(Codec::Zstd),
            _ => None,
        }
    }

    /// Bytes of the object for a plain block.
    pub fn encode(self, plain: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Codec::None => Ok(plain.to_vec()),
            Codec::Lz4 => Ok(lz4_flex::block::compress(plain)),
            Codec::Zstd => {
                zstd::bulk::compress(plain, ZSTD_LEVEL).map_err(|error| format!("zstd: {error}"))
            }
        }
    }

    /// The plain block of `size` bytes from the bytes of its object.
    pub fn decode(self, stored: &[u8], size: usize) -> Result<Vec<u8>, String> {
        let plain = match self {
            Codec::None => stored.to_vec(),
            Codec::Lz4 => {
                let mut plain = vec![0; size];
                let decoded = lz4_flex::block::decompress_into(stored, &mut plain)
                    .map_err(|error| format!("lz4: {error}"))?;
                plain.truncate(decoded);
                plain
            }
            Codec::Zstd => {
                zstd::bulk::decompress(stored, size).map_err(|error| format!("zstd: {error}"))?
            }
        };
        if plain.len() != size {
            return Err(format!("it holds {} bytes instead of {size}", plain.len()));
        }
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];

    #[test]
    fn names() {
        let check = |name, expected| assert_eq!(Codec::parse(name), expected, "{name}");
        check("", Some(Codec::None));
        check("none", Some(Codec::None));
        check("lz4", Some(Codec::Lz4));
        check("zstd", Some(Codec::Zstd));
        check("LZ4", None);
        check("gzip", None);
    }

    #[test]
    fn zstd_frames_carry_their_size() {
        let stored = Codec::Zstd.encode(&[7; 1000]).unwrap();
        assert_eq!(
            zstd::zstd_safe::get_frame_content_size(&stored).unwrap(),
            Some(1000)
        );
    }

    /// The LZ4 format's own example: one literal run, then a match of offset 1 (a run of `a`), then literals.
    #[test]
    fn lz4_blocks_are_bare() {
        let stored = [0x14, b'a', 1, 0, 0x50, b'b', b'c', b'd', b'e', b'f'];
        assert_eq!(Codec::Lz4.decode(&stored, 14).unwrap(), b"aaaaaaaaabcdef");
    }

    #[test]
    fn wrong_lengths_and_rubbish_are_refused() {
        for codec in ALL {
            let stored = codec.encode(&[1; 500]).unwrap();
            assert!(codec.decode(&stored, 499).is_err(), "{codec:?} longer");
            assert!(codec.decode(&stored, 501).is_err(), "{codec:?} shorter");
            assert!(codec.decode(&[], 500).is_err(), "{codec:?} empty");
            assert!(codec.decode(&[0xFF; 40], 500).is_err(), "{codec:?} rubbish");
        }
    }

    fn plain_block() -> impl Strategy<Value = Vec<u8>> {
        let noise = prop::collection::vec(any::<u8>(), 1..3000);
        let runs = prop::collection::vec((any::<u8>(), 1..400_usize), 1..30)
            .prop_map(|runs| runs.iter().flat_map(|&(byte, n)| vec![byte; n]).collect());
        prop_oneof![noise, runs]
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(plain in plain_block()) {
            for codec in ALL {
                let stored = codec.encode(&plain).unwrap();
                prop_assert_eq!(&codec.decode(&stored, plain.len()).unwrap(), &plain);
            }
        }

        /// Whatever a store returns, decoding ends with the right length or a reason.
        #[test]
        fn rubbish_never_breaks_decoding(stored in prop::collection::vec(any::<u8>(), 0..300), size in 1..5000_usize) {
            for codec in ALL {
                if let Ok(plain) = codec.decode(&stored, size) {
                    prop_assert_eq!(plain.len(), size);
                }
            }
        }
    }
}
