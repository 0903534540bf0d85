//! Rows in the binary format of `COPY … FROM STDIN (FORMAT binary)`. Pure.
//!
//! Source: PostgreSQL 15 documentation, "COPY", "Binary Format"; the fields as each type's `recv` function reads them:
//! big endian, timestamps in microseconds since 2000, arrays with dimensions and lower bounds.

use nearby_schemas::{FriendList, LocationEvent, TimestampMs, UserId};

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
const NULL: i32 = -1;
const TRAILER: i16 = -1;
const BIGINT_OID: i32 = 20;
/// 2000-01-01 in milliseconds since 1970.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;

/// What is sent at once, about.
const CHUNK_BYTES: usize = 32 * 1024;

/// The columns of [`Rows::report`], for the `COPY` statement.
pub const REPORT_COLUMNS: &str = "user_id, reported_at, received_at, lat, lon, accuracy_m, speed_mps, heading_deg, cell, \
                                  topic, kafka_partition, kafka_offset";
/// The columns of [`Rows::list`].
pub const LIST_COLUMNS: &str = "user_id, friends, changed_at";

/// Rows being encoded.
pub struct Rows {
    bytes: Vec<u8>,
    count: usize,
}

impl Default for Rows {
    /// No rows yet.
    fn default() -> Rows {
        let mut bytes = Vec::with_capacity(2 * CHUNK_BYTES);
        bytes.extend_from_slice(SIGNATURE);
        // Flags, and the length of the header's extension.
        bytes.extend_from_slice(&[0; 8]);
        Rows { bytes, count: 0 }
    }
}

impl Rows {
    /// A row of `location_history`.
    pub fn report(&mut self, event: &LocationEvent, cell: Option<i64>, topic: &str, partition: i32, offset: i64) {
        self.begin(12);
        self.field(&event.user_id.0.to_be_bytes());
        self.timestamp(event.reported_at);
        self.timestamp(event.received_at);
        let position = event.position.as_ref();
        self.nullable(position.map(|position| position.place().lat().to_be_bytes()));
        self.nullable(position.map(|position| position.place().lon().to_be_bytes()));
        self.nullable(position.and_then(|position| position.accuracy_m).map(f32::to_be_bytes));
        self.nullable(position.and_then(|position| position.speed_mps).map(f32::to_be_bytes));
        self.nullable(position.and_then(|position| position.heading_deg).map(f32::to_be_bytes));
        self.nullable(cell.map(i64::to_be_bytes));
        self.field(topic.as_bytes());
        self.field(&partition.to_be_bytes());
        self.field(&offset.to_be_bytes());
    }

    /// A changed friend list.
    pub fn list(&mut self, list: &FriendList) {
        self.begin(3);
        self.field(&list.user_id.0.to_be_bytes());
        self.bigints(&list.friends);
        self.timestamp(list.changed_at);
    }

    /// A friend list that is gone: both columns are null.
    pub fn no_list(&mut self, user: UserId) {
        self.begin(3);
        self.field(&user.0.to_be_bytes());
        self.nullable::<0>(None);
        self.nullable::<0>(None);
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What can be sent already, once it is worth it: Postgres then works while the rest is being encoded.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        (self.bytes.len() >= CHUNK_BYTES)
            .then(|| std::mem::replace(&mut self.bytes, Vec::with_capacity(2 * CHUNK_BYTES)))
    }

    /// The rest, with the trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&TRAILER.to_be_bytes());
        self.bytes
    }

    fn begin(&mut self, columns: i16) {
        self.count += 1;
        self.bytes.extend_from_slice(&columns.to_be_bytes());
    }

    fn field(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(&length(value.len()).to_be_bytes());
        self.bytes.extend_from_slice(value);
    }

    fn nullable<const N: usize>(&mut self, value: Option<[u8; N]>) {
        match value {
            Some(value) => self.field(&value),
            None => self.bytes.extend_from_slice(&NULL.to_be_bytes()),
        }
    }

    /// The caller has checked that the time is within Postgres' range.
    fn timestamp(&mut self, time: TimestampMs) {
        self.field(&((time.0 - POSTGRES_EPOCH_MS) * 1_000).to_be_bytes());
    }

    fn bigints(&mut self, users: &[UserId]) {
        let dimensions: i32 = if users.is_empty() { 0 } else { 1 };
        let header_bytes = if users.is_empty() { 12 } else { 20 };
        self.bytes.extend_from_slice(&length(header_bytes + users.len() * 12).to_be_bytes());
        for word in [dimensions, 0, BIGINT_OID] {
            self.bytes.extend_from_slice(&word.to_be_bytes());
        }
        if users.is_empty() {
            return;
        }
        for word in [length(users.len()), 1] {
            self.bytes.extend_from_slice(&word.to_be_bytes());
        }
        for user in users {
            self.field(&user.0.to_be_bytes());
        }
    }
}

/// Fields are a few bytes, or a list of at most 5,000 friends.
fn length(bytes: usize) -> i32 {
    i32::try_from(bytes).expect("a field is shorter than 2 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_schemas::{Position, Source};

    const HEADER: &str = "5047434f50590aff0d0a00 00000000 00000000 ";

    fn hex(text: &str) -> Vec<u8> {
        let digits: String = text.split_whitespace().collect();
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal");
        (0..digits.len()).step_by(2).map(byte).collect()
    }

    fn event(position: Option<Position>) -> LocationEvent {
        LocationEvent {
            user_id: UserId(7),
            reported_at: TimestampMs(POSTGRES_EPOCH_MS + 1),
            received_at: TimestampMs(POSTGRES_EPOCH_MS - 1),
            position,
            source: Source::Http,
        }
    }

    #[test]
    fn a_report() {
        let position = Position {
            lat_e7: 10_000_000,
            lon_e7: -20_000_000,
            accuracy_m: Some(1.0),
            speed_mps: None,
            heading_deg: Some(2.0),
        };
        let mut rows = Rows::default();
        rows.report(&event(Some(position)), Some(9), "t", 3, 4);
        assert_eq!(rows.count(), 1);
        let expected = HEADER.to_owned()
            + "000c 00000008 0000000000000007 00000008 00000000000003e8 00000008 fffffffffffffc18 \
               00000008 3ff0000000000000 00000008 c000000000000000 00000004 3f800000 ffffffff 00000004 40000000 \
               00000008 0000000000000009 00000001 74 00000004 00000003 00000008 0000000000000004 ffff";
        assert_eq!(rows.finish(), hex(&expected));
    }

    #[test]
    fn a_withdrawal_has_no_place() {
        let mut rows = Rows::default();
        rows.report(&event(None), None, "t", 3, 4);
        let expected = HEADER.to_owned()
            + "000c 00000008 0000000000000007 00000008 00000000000003e8 00000008 fffffffffffffc18 \
               ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff \
               00000001 74 00000004 00000003 00000008 0000000000000004 ffff";
        assert_eq!(rows.finish(), hex(&expected));
    }

    #[test]
    fn friend_lists() {
        let list = |friends: &[i64]| FriendList {
            user_id: UserId(7),
            friends: friends.iter().copied().map(UserId).collect(),
            changed_at: TimestampMs(POSTGRES_EPOCH_MS),
        };
        let mut rows = Rows::default();
        rows.list(&list(&[8, 9]));
        rows.list(&list(&[]));
        rows.no_list(UserId(7));
        let expected = HEADER.to_owned()
            + "0003 00000008 0000000000000007 \
               0000002c 00000001 00000000 00000014 00000002 00000001 \
               00000008 0000000000000008 00000008 0000000000000009 00000008 0000000000000000 \
               0003 00000008 0000000000000007 0000000c 00000000 00000000 00000014 00000008 0000000000000000 \
               0003 00000008 0000000000000007 ffffffff ffffffff ffff";
        assert_eq!(rows.finish(), hex(&expected));
    }
}
