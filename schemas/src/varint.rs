//! Avro's int and long by hand, for the two records of the hot path: zigzag, then seven bits a byte, least significant first.
//!
//! Source: Apache Avro specification 1.12, "Binary encoding".

/// The longest number.
pub(crate) const LONG_BYTES_MAX: usize = 10;
/// Numbers of more bits are rare, and written bit group by bit group.
const SPREAD_BITS: u32 = 56;

/// A number's bytes, and how many of them count.
#[inline]
pub(crate) fn encode(value: i64) -> ([u8; LONG_BYTES_MAX], usize) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    let mut encoded = [0; LONG_BYTES_MAX];
    if rest >> SPREAD_BITS == 0 {
        // No branch for each byte: how long numbers are is not to be foreseen. Eight groups of seven bits move apart, by halves.
        let length = (u64::BITS - (rest | 1).leading_zeros()).div_ceil(7);
        rest = (rest & 0x0000_0000_0fff_ffff) | ((rest & 0x00ff_ffff_f000_0000) << 4);
        rest = (rest & 0x0000_3fff_0000_3fff) | ((rest & 0x0fff_c000_0fff_c000) << 2);
        rest = (rest & 0x007f_007f_007f_007f) | ((rest & 0x3f80_3f80_3f80_3f80) << 1);
        let more = 0x8080_8080_8080_8080 & ((1 << (8 * (length - 1))) - 1);
        encoded[..8].copy_from_slice(&(rest | more).to_le_bytes());
        return (encoded, length as usize);
    }
    let mut length = 1;
    for byte in &mut encoded {
        *byte = (rest & 0x7f) as u8;
        rest >>= 7;
        if rest == 0 {
            break;
        }
        *byte |= 0x80;
        length += 1;
    }
    (encoded, length)
}

/// The number that the bytes begin with, which are left without it. None: they end within it, or it is longer than any.
#[inline]
pub(crate) fn decode(bytes: &mut &[u8]) -> Option<i64> {
    let mut zigzag = 0;
    for (index, byte) in bytes.iter().take(LONG_BYTES_MAX).enumerate() {
        zigzag |= u64::from(byte & 0x7f) << (7 * index);
        if index == LONG_BYTES_MAX - 1 && *byte > 1 {
            return None;
        }
        if byte & 0x80 == 0 {
            *bytes = &bytes[index + 1..];
            return Some((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_written_as_the_specification_has_them() {
        let written = |value| {
            let (bytes, length) = encode(value);
            bytes[..length].to_vec()
        };
        assert_eq!(written(0), [0]);
        assert_eq!(written(-1), [1]);
        assert_eq!(written(1), [2]);
        assert_eq!(written(-64), [0x7f]);
        assert_eq!(written(64), [0x80, 0x01]);
        assert_eq!(written(i64::MAX), [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        assert_eq!(written(i64::MIN), [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
    }

    #[test]
    fn numbers_of_every_length_come_back() {
        for bits in 0..64 {
            for value in [1_i64 << bits, (1_i64 << bits).wrapping_sub(1), (1_i64 << bits).wrapping_neg()] {
                let (bytes, length) = encode(value);
                let mut rest = &bytes[..length];
                assert_eq!((decode(&mut rest), rest), (Some(value), &[][..]));
                if length == LONG_BYTES_MAX {
                    let mut longer = bytes;
                    longer[length - 1] |= 2;
                    assert_eq!(decode(&mut longer.as_slice()), None, "more than 64 bits");
                }
                let mut cut = &bytes[..length - 1];
                assert_eq!(decode(&mut cut), None, "{value} without its last byte");
            }
        }
    }

    proptest! {
        /// Against the plain way.
        #[test]
        fn numbers_are_written_group_by_group(value: i64, shift in 0..64_u32) {
            let value = value >> shift;
            let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
            let mut plain = Vec::new();
            while rest >= 0x80 {
                plain.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            plain.push(rest as u8);
            let (bytes, length) = encode(value);
            prop_assert_eq!(&bytes[..length], plain);
        }
    }
}
