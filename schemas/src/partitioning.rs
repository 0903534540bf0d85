//! Kafka's default partitioning, so that a user's records of every topic land on the same partition whoever writes them.

use crate::UserId;

/// Partition of a user among `partition_count`, as the Java client places the key `"<user id>"`.
///
/// Source: Apache Kafka, `BuiltInPartitioner.partitionForKey`: `toPositive(murmur2(key)) % partitions`.
///
/// # Panics
/// If `partition_count` is not positive: a topic has at least one partition.
pub fn partition_of(user: UserId, partition_count: i32) -> i32 {
    assert!(partition_count > 0, "a topic has at least one partition");
    let mut key = [0; 20];
    let positive = murmur2(decimal(user, &mut key)) & 0x7fff_ffff;
    (positive % partition_count.unsigned_abs()).cast_signed()
}

/// The id as decimal digits at the end of `digits`, without an allocation.
fn decimal(user: UserId, digits: &mut [u8; 20]) -> &[u8] {
    let mut rest = user.0.unsigned_abs();
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            return &digits[start..];
        }
    }
}

/// MurmurHash2, 32 bits, with the seed that Kafka uses.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let mut hash = SEED ^ u32::try_from(data.len()).unwrap_or(u32::MAX);
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (index, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of Apache Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn hashes_as_the_java_client_does() {
        for (text, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()).cast_signed(), hash, "{text}");
        }
    }

    #[test]
    fn every_user_has_a_partition() {
        for id in [0, 1, 42, i64::MAX] {
            assert_eq!(decimal(UserId(id), &mut [0; 20]), id.to_string().as_bytes());
            assert!((0..16).contains(&partition_of(UserId(id), 16)));
        }
    }
}
