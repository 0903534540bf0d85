//! What a record of the log means for the database. Pure.

use h3o::{LatLng, Resolution};
use nearby_schemas::codec::Codec;
use nearby_schemas::codecs::Codecs;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::{FriendList, LocationEvent, TimestampMs, UserId};

const DAY_MS: i64 = 86_400_000;
/// Reports older than this, seen from the time they were appended, are no history but a broken clock.
const REPORTED_BEFORE_MS_MAX: i64 = 8 * DAY_MS;
/// The same for reports from the future.
const REPORTED_AFTER_MS_MAX: i64 = DAY_MS;
/// Years 1970 to 9999: far within what Postgres can hold, and what everybody can print.
const TIMES_MS: std::ops::RangeInclusive<i64> = 0..=253_402_300_799_999;

/// A record as it was in the log, and what it says.
#[derive(Clone, Debug)]
pub struct Record {
    /// Partition of the topic.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
    /// When the broker appended it, if it says.
    pub appended_at: Option<TimestampMs>,
    /// Key, for the dead letters.
    pub key: Option<Vec<u8>>,
    /// Value, for the dead letters.
    pub value: Option<Vec<u8>>,
    /// What it says, or why it can't be used.
    pub content: Result<Content, String>,
}

impl Record {
    /// Its size in the log; what is decoded from it is about as large.
    pub fn bytes(&self) -> usize {
        self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A row of history, with the H3 cell of its place.
    Reported(LocationEvent, Option<i64>),
    /// A user's friends.
    Listed(FriendList),
    /// A user has no friend list any more.
    Unlisted(UserId),
}

/// One of the two topics that the sink reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// `location-events`: every offset is there.
    LocationEvents,
    /// `friend-lists`: compacted, so that offsets are missing.
    FriendLists,
}

impl Log {
    /// Whether a missing offset is a loss.
    pub fn contiguous(self) -> bool {
        self == Log::LocationEvents
    }

    /// The part of a process's readiness that says whether the database takes its records.
    pub fn part(self) -> &'static str {
        match self {
            Log::LocationEvents => "database",
            Log::FriendLists => "database (friend lists)",
        }
    }

    /// The table that its records end in.
    pub fn table(self) -> &'static str {
        match self {
            Log::LocationEvents => "location_history",
            Log::FriendLists => "friend_lists",
        }
    }
}

/// Reads the records of one topic. Build it once and keep it.
pub enum Decoder {
    /// Of `location-events`.
    LocationEvents(Codec<LocationEvent>),
    /// Of `friend-lists`, which has so many partitions.
    FriendLists(Codec<FriendList>, i32),
}

impl Decoder {
    /// For one topic; `partitions` is the number that the topics partitioned by user have.
    pub fn of(log: Log, partitions: i32, codecs: &Codecs) -> Decoder {
        match log {
            Log::LocationEvents => Decoder::LocationEvents(codecs.codec()),
            Log::FriendLists => Decoder::FriendLists(codecs.codec(), partitions),
        }
    }

    /// A record with what it says, or why it is a dead letter. A report's time is measured by `appended_at`, or by this machine's clock.
    pub fn decode(
        &self,
        partition: i32,
        offset: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        appended_at: Option<TimestampMs>,
    ) -> Record {
        let content = self.content(partition, key, value, appended_at.unwrap_or_else(TimestampMs::now));
        let (key, value) = (key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec));
        Record { partition, offset, appended_at, key, value, content }
    }

    fn content(
        &self,
        partition: i32,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        appended_at: TimestampMs,
    ) -> Result<Content, String> {
        match self {
            Decoder::LocationEvents(codec) => {
                let event = codec.decode(value.ok_or("no value")?).map_err(|error| error.to_string())?;
                reported(event, appended_at)
            }
            Decoder::FriendLists(codec, partitions) => {
                let user = user_of(key)?;
                // Elsewhere no processor would find it: a producer with another partitioner than Java's default wrote it.
                let home = partition_of(user, *partitions);
                if home != partition {
                    return Err(format!("the user belongs on partition {home}"));
                }
                let Some(value) = value else { return Ok(Content::Unlisted(user)) };
                listed(user, codec.decode(value).map_err(|error| error.to_string())?)
            }
        }
    }
}

fn reported(event: LocationEvent, appended_at: TimestampMs) -> Result<Content, String> {
    let age_ms = appended_at.since_ms(event.reported_at);
    if age_ms > REPORTED_BEFORE_MS_MAX {
        return Err(format!("reported_at is {age_ms} ms before the record was appended: more than 8 days"));
    }
    if age_ms < -REPORTED_AFTER_MS_MAX {
        let ahead_ms = age_ms.saturating_neg();
        return Err(format!("reported_at is {ahead_ms} ms after the record was appended: more than 1 day"));
    }
    check_time("reported_at", event.reported_at)?;
    check_time("received_at", event.received_at)?;
    let cell = event.position.map(|position| cell_of(position.place().lat(), position.place().lon())).transpose()?;
    Ok(Content::Reported(event, cell))
}

fn listed(user: UserId, list: FriendList) -> Result<Content, String> {
    if list.user_id != user {
        return Err("the key is not the user of the list".to_owned());
    }
    check_time("changed_at", list.changed_at)?;
    Ok(Content::Listed(list))
}

fn user_of(key: Option<&[u8]>) -> Result<UserId, String> {
    let text = std::str::from_utf8(key.ok_or("no key")?).map_err(|_| "the key is not text")?;
    text.parse().map_err(|error| format!("the key is no user id: {error}"))
}

fn check_time(field: &str, time: TimestampMs) -> Result<(), String> {
    if TIMES_MS.contains(&time.0) { Ok(()) } else { Err(format!("{field} is not within the years 1970 to 9999")) }
}

fn cell_of(lat: f64, lon: f64) -> Result<i64, String> {
    let place = LatLng::new(lat, lon).map_err(|error| error.to_string())?;
    // The highest bit of an H3 index is always 0.
    Ok(u64::from(place.to_cell(Resolution::Nine)).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_schemas::{Position, Source};

    const NOW: TimestampMs = TimestampMs(1_800_000_000_000);

    fn event(reported_ms_ago: i64) -> LocationEvent {
        let position = Position {
            lat_e7: 377_749_000,
            lon_e7: -1_224_194_000,
            accuracy_m: None,
            speed_mps: None,
            heading_deg: None,
        };
        LocationEvent {
            user_id: UserId(7),
            reported_at: NOW.plus_ms(reported_ms_ago.saturating_neg()),
            received_at: NOW,
            position: Some(position),
            source: Source::Http,
        }
    }

    fn decode(event: &LocationEvent) -> Result<Content, String> {
        let codec = Codec::<LocationEvent>::new();
        Decoder::of(Log::LocationEvents, 1, &Codecs::default()).content(0, None, Some(&codec.encode(event)), NOW)
    }

    #[test]
    fn a_report_gets_its_cell() {
        assert_eq!(decode(&event(0)), Ok(Content::Reported(event(0), Some(0x0892_8308_2803_ffff))));
    }

    #[test]
    fn a_withdrawal_has_no_cell() {
        let event = LocationEvent { position: None, ..event(0) };
        assert_eq!(decode(&event), Ok(Content::Reported(event, None)));
    }

    #[test]
    fn times_that_cannot_be_are_dead_letters() {
        for (ago_ms, bad) in [
            (8 * DAY_MS, false),
            (8 * DAY_MS + 1, true),
            (-DAY_MS, false),
            (-DAY_MS - 1, true),
            (i64::MAX, true),
            (i64::MIN, true),
        ] {
            assert_eq!(decode(&event(ago_ms)).is_err(), bad, "{ago_ms}");
        }
        let late = LocationEvent { received_at: TimestampMs(i64::MAX), ..event(0) };
        assert_eq!(decode(&late), Err("received_at is not within the years 1970 to 9999".to_owned()));
    }

    #[test]
    fn friend_lists_and_tombstones() {
        let list = FriendList { user_id: UserId(7), friends: vec![UserId(8)], changed_at: NOW };
        let bytes = Codec::<FriendList>::new().encode(&list);
        let elsewhere = Decoder::of(Log::FriendLists, 16, &Codecs::default()).content(0, Some(b"7"), None, NOW);
        assert_eq!(elsewhere, Err(format!("the user belongs on partition {}", partition_of(UserId(7), 16))));
        let decoder = Decoder::of(Log::FriendLists, 1, &Codecs::default());
        let decode = |key: Option<&str>, value| decoder.content(0, key.map(str::as_bytes), value, NOW);
        assert_eq!(decode(Some("7"), Some(&bytes[..])), Ok(Content::Listed(list)));
        assert_eq!(decode(Some("7"), None), Ok(Content::Unlisted(UserId(7))));
        assert_eq!(decode(Some("8"), Some(&bytes[..])), Err("the key is not the user of the list".to_owned()));
        assert!(decode(Some("07"), None).is_err());
        assert!(decode(None, None).is_err());
        assert!(decode(Some("7"), Some(b"nonsense")).is_err());
    }
}
