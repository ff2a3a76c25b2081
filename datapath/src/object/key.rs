//! Names of the objects of blocks, relative to the volume's directory or prefix. Pure; called by `blocks`.

use crate::cache::BlockId;

/// How a volume names its blocks: chosen when it was formatted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Naming {
    /// `chunks/<id / 1 000 000>/<id / 1000>/<id>_<index>_<bytes>`.
    Plain,
    /// `chunks/<id mod 256, two hex digits>/<id / 1 000 000>/<id>_<index>_<bytes>`: spreads load over a
    /// store's key range.
    Hashed,
}

impl Naming {
    /// Key of a block's object. The bytes in the name are those of the plain block, whatever is done to it.
    pub fn key(self, block: BlockId) -> String {
        let BlockId { slice, index, size } = block;
        let id = slice.0;
        let millions = id / 1_000_000;
        match self {
            Naming::Plain => format!("chunks/{millions}/{}/{id}_{index}_{size}", id / 1000),
            Naming::Hashed => format!("chunks/{:02X}/{millions}/{id}_{index}_{size}", id % 256),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::blocks_of;
    use sluice_meta::types::SliceId;

    #[test]
    fn keys_of_both_namings() {
        let check = |slice, index, size, plain: &str, hashed: &str| {
            let block = BlockId {
                slice: SliceId(slice),
                index,
                size,
            };
            assert_eq!(Naming::Plain.key(block), plain);
            assert_eq!(Naming::Hashed.key(block), hashed);
        };
        check(1, 0, 7, "chunks/0/0/1_0_7", "chunks/01/0/1_0_7");
        check(
            361,
            0,
            5000,
            "chunks/0/0/361_0_5000",
            "chunks/69/0/361_0_5000",
        );
        check(
            999_999,
            3,
            65536,
            "chunks/0/999/999999_3_65536",
            "chunks/3F/0/999999_3_65536",
        );
        check(
            1_000_000,
            0,
            1,
            "chunks/1/1000/1000000_0_1",
            "chunks/40/1/1000000_0_1",
        );
        check(
            u64::MAX,
            15,
            4_194_304,
            "chunks/18446744073709/18446744073709551/18446744073709551615_15_4194304",
            "chunks/FF/18446744073709/18446744073709551615_15_4194304",
        );
    }

    /// 9 MiB in blocks of 4 MiB: the last name carries the short length.
    #[test]
    fn keys_of_a_slice() {
        let keys: Vec<_> = blocks_of(SliceId(1_234_567), 9 << 20, 4 << 20)
            .map(|block| Naming::Plain.key(block))
            .collect();
        let expected = [
            "chunks/1/1234/1234567_0_4194304",
            "chunks/1/1234/1234567_1_4194304",
            "chunks/1/1234/1234567_2_1048576",
        ];
        assert_eq!(keys, expected);
    }
}
