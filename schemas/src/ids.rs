//! Newtypes for the ids and times that would otherwise be swappable integers and strings.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A user, 0 to 2^63 - 1. Written as a decimal string in JSON and in Kafka keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub i64);

/// The text or number is not a user id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a user id is a decimal number from 0 to 9223372036854775807 without leading zeros")]
pub struct InvalidUserId;

impl UserId {
    /// The greatest id, 2^63 - 1.
    pub const MAX: UserId = UserId(i64::MAX);

    /// From an unsigned number; fails above 2^63 - 1.
    pub fn from_u64(id: u64) -> Result<UserId, InvalidUserId> {
        i64::try_from(id).map(UserId).map_err(|_| InvalidUserId)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for UserId {
    type Err = InvalidUserId;

    fn from_str(text: &str) -> Result<UserId, InvalidUserId> {
        let canonical = !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_digit())
            && (text == "0" || !text.starts_with('0'));
        if !canonical {
            return Err(InvalidUserId);
        }
        text.parse().map(UserId).map_err(|_| InvalidUserId)
    }
}

/// A moment in integer milliseconds since 1970 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimestampMs(pub i64);

impl TimestampMs {
    /// This moment by the machine's clock. Only the edges of the system ask for it.
    pub fn now() -> TimestampMs {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        TimestampMs(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    /// The moment so many milliseconds later (earlier if negative), saturating.
    #[must_use]
    pub fn plus_ms(self, ms: i64) -> TimestampMs {
        TimestampMs(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this moment; negative if it is later.
    pub fn since_ms(self, earlier: TimestampMs) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A gateway's id, `<name>-<suffix>`, new at each start; part of a topic name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GatewayId(String);

/// The text can't be a gateway's id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "a gateway id is 1 to 100 characters out of a-z, A-Z, 0-9, '.', '_' and '-', because it is part of a topic name"
)]
pub struct InvalidGatewayId;

impl GatewayId {
    /// Longest id: Kafka allows topic names of 249 characters, and prefixes need room.
    pub const LENGTH_MAX: usize = 100;

    /// Checks that the text can be part of a topic name.
    pub fn new(id: impl Into<String>) -> Result<GatewayId, InvalidGatewayId> {
        let id = id.into();
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if id.is_empty() || id.len() > Self::LENGTH_MAX || !id.bytes().all(legal) {
            return Err(InvalidGatewayId);
        }
        Ok(GatewayId(id))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The term of a partition's owner; it only ever grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub i64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_ids_are_canonical_decimals() {
        for (text, id) in [("0", 0), ("7", 7), ("9223372036854775807", i64::MAX)] {
            assert_eq!(text.parse(), Ok(UserId(id)));
            assert_eq!(UserId(id).to_string(), text);
        }
        for text in ["", "00", "07", "-1", "+1", " 1", "1 ", "9223372036854775808", "1e3", "١"] {
            assert_eq!(text.parse::<UserId>(), Err(InvalidUserId), "{text:?}");
        }
    }

    #[test]
    fn gateway_ids_fit_into_topic_names() {
        assert!(GatewayId::new("g1-5f3a").is_ok());
        for id in ["", "a/b", "a b", "é", &"x".repeat(101)] {
            assert_eq!(GatewayId::new(id), Err(InvalidGatewayId), "{id:?}");
        }
    }
}
