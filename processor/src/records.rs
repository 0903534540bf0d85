//! Records of the log, as the engine takes them. Pure: bytes in, or the reason why not.

use crate::decider::CLOCK_BACK_MS_MAX;
use crate::wake::{Listed, Reported, Sessioned};
use nearby_schemas::codec::{Codec, DecodeError, Record};
use nearby_schemas::codecs::Codecs;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::{FriendList, GatewayHeartbeat, GatewayId, LocationEvent, Session, TimestampMs, UserId};

/// Reports that were appended before this time need not be read at the start: they do not count any more, even if the clock
/// is set back as far as it may be unnoticed. Not a moment later: who missed a withdrawal would take a delayed report, made
/// before it, for the latest.
pub fn oldest_needed(inactive_after_ms: i64, now: TimestampMs) -> TimestampMs {
    now.plus_ms(inactive_after_ms.saturating_neg()).plus_ms(-CLOCK_BACK_MS_MAX)
}

/// A processor serves when it knows the reports of so long before its start: nearly everybody reports every 30 s.
const NEWEST_MS: i64 = 90_000;

/// From which append time on reports are read first: not before this the group is joined. `None` if that is all.
pub fn newest_since(inactive_after_ms: i64, now: TimestampMs) -> Option<TimestampMs> {
    let since = now.plus_ms(-NEWEST_MS);
    (since > oldest_needed(inactive_after_ms, now)).then_some(since)
}

/// A record that was read, but for its offset, which nobody here needs.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Where it was.
    pub partition: i32,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; none in a tombstone.
    pub value: Option<&'a [u8]>,
    /// When the broker appended it, in topics where the broker says so.
    pub appended_at: Option<TimestampMs>,
}

/// Reads the records of all topics, in a cluster with so many partitions of users.
pub struct Decoders {
    partitions: i32,
    reports: Codec<LocationEvent>,
    lists: Codec<FriendList>,
    sessions: Codec<Session>,
    heartbeats: Codec<GatewayHeartbeat>,
}

impl Decoders {
    /// Building them parses every known schema: once per thread.
    pub fn new(partitions: i32, codecs: &Codecs) -> Decoders {
        let (reports, lists) = (codecs.codec(), codecs.codec());
        Decoders { partitions, reports, lists, sessions: codecs.codec(), heartbeats: codecs.codec() }
    }

    /// A record of `location-events`. Its time is min(reported, appended), rule R2. Users may report on any partition: where
    /// they do decides about order alone.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn report(&self, raw: Raw<'_>) -> Result<Reported, String> {
        let event = decode(&self.reports, raw.value)?;
        let time = raw.appended_at.map_or(event.reported_at, |appended_at| event.reported_at.min(appended_at));
        Ok(Reported { user: event.user_id, time, place: event.position.map(|at| at.place()) })
    }

    /// A record of `friend-lists`.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn list(&self, raw: Raw<'_>) -> Result<Listed, String> {
        let (viewer, friends) = match raw.value {
            Some(_) => {
                let list = decode(&self.lists, raw.value)?;
                (list.user_id, Some(list.friends))
            }
            None => {
                let key = text(raw.key).and_then(|key| key.parse().ok());
                (key.ok_or("a tombstone whose key is no user")?, None)
            }
        };
        self.belongs(viewer, raw.partition)?;
        Ok(Listed { partition: raw.partition, viewer, friends })
    }

    /// A record of `sessions`.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn session(&self, raw: Raw<'_>) -> Result<Sessioned, String> {
        let (user, gateway, ask) = match raw.value {
            Some(_) => {
                let session = decode(&self.sessions, raw.value)?;
                (session.user_id, session.gateway, Some(session.ask))
            }
            None => {
                let key = text(raw.key).and_then(Session::parse_key);
                let (user, gateway) = key.ok_or("a tombstone whose key is not user/gateway")?;
                (user, gateway, None)
            }
        };
        self.belongs(user, raw.partition)?;
        Ok(Sessioned { partition: raw.partition, user, gateway, ask })
    }

    /// A record of `gateways`: whose, and when it was appended; a tombstone has no time.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn heartbeat(&self, raw: Raw<'_>) -> Result<(GatewayId, Option<TimestampMs>), String> {
        if raw.value.is_none() {
            let key = text(raw.key).and_then(|key| GatewayId::new(key).ok());
            return Ok((key.ok_or("a tombstone whose key is no gateway")?, None));
        }
        let heartbeat = decode(&self.heartbeats, raw.value)?;
        Ok((heartbeat.gateway, Some(raw.appended_at.unwrap_or_default())))
    }

    /// A record has to be where the Java client's partitioner puts its user; elsewhere it would have a second owner.
    fn belongs(&self, user: UserId, partition: i32) -> Result<(), String> {
        let home = partition_of(user, self.partitions);
        if home == partition { Ok(()) } else { Err(format!("the user belongs on partition {home}")) }
    }
}

fn decode<R: Record>(codec: &Codec<R>, value: Option<&[u8]>) -> Result<R, String> {
    value.ok_or(DecodeError::NotSingleObject).and_then(|value| codec.decode(value)).map_err(|error| error.to_string())
}

fn text(key: Option<&[u8]>) -> Option<&str> {
    key.and_then(|key| std::str::from_utf8(key).ok())
}
