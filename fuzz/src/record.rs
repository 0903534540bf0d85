//! Records of the log, in both wire formats.

use nearby_schemas::batch::FriendMovedBatch;
use nearby_schemas::codec::{Codec, DecodeError, Record};
use nearby_schemas::codecs::{Codecs, RecordType};
use nearby_schemas::{FriendList, GatewayHeartbeat, LocationEvent, Session};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// The id of a schema that is not ours: `LocationEvent` with its fields in another order, one more, and one fewer.
const OTHER_ID: u32 = 9;
const OTHER: &str = r#"{"type":"record","name":"LocationEvent","namespace":"nearby.v1","fields":[
    {"name":"note","type":"string","default":""},
    {"name":"reported_at","type":{"type":"long","logicalType":"timestamp-millis"},"default":0},
    {"name":"user_id","type":"long","default":0}]}"#;

/// Reads and writes one record type in both formats.
struct Both<R> {
    single: Codec<R>,
    confluent: Codec<R>,
}

/// What a registry would hold: our own schemas from 1, and a foreign one.
fn both<R: Record>() -> Both<R> {
    const TYPES: [RecordType; 5] = [
        RecordType::LocationEvent,
        RecordType::FriendList,
        RecordType::Session,
        RecordType::GatewayHeartbeat,
        RecordType::FriendMovedBatch,
    ];
    let ids: BTreeMap<RecordType, u32> = TYPES.into_iter().zip(1..).collect();
    let schemas: BTreeMap<u32, &str> =
        TYPES.iter().map(|record| record.schema()).zip(1..).map(|(s, id)| (id, s)).collect();
    let look_up = move |id: u32| match schemas.get(&id) {
        Some(schema) => Ok(Arc::from(*schema)),
        None if id == OTHER_ID => Ok(Arc::from(OTHER)),
        None => Err("there is none".to_owned()),
    };
    Both { single: Codec::new(), confluent: Codecs::with_registry(ids, Arc::new(look_up)).codec() }
}

/// One record: the first byte says of which type.
pub fn record(bytes: &[u8]) {
    static LOCATIONS: LazyLock<Both<LocationEvent>> = LazyLock::new(both);
    static LISTS: LazyLock<Both<FriendList>> = LazyLock::new(both);
    static SESSIONS: LazyLock<Both<Session>> = LazyLock::new(both);
    static HEARTBEATS: LazyLock<Both<GatewayHeartbeat>> = LazyLock::new(both);
    static BATCHES: LazyLock<Both<FriendMovedBatch>> = LazyLock::new(both);
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind {
        b'l' => read(&LOCATIONS, bytes),
        b'f' => read(&LISTS, bytes),
        b's' => read(&SESSIONS, bytes),
        b'h' => read(&HEARTBEATS, bytes),
        b'b' => read(&BATCHES, bytes),
        _ => {}
    }
}

fn read<R: Record>(both: &Both<R>, bytes: &[u8]) {
    for codec in [&both.single, &both.confluent] {
        match codec.decode(bytes) {
            Ok(record) => {
                written_again(&both.single, &record);
                written_again(&both.confluent, &record);
            }
            // A dead letter says why.
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    // Without a registry, its format is told from garbage.
    if let [0, id @ ..] = bytes
        && id.len() >= 4
    {
        let error = both.single.decode(bytes).err();
        assert!(matches!(error, Some(DecodeError::NeedsRegistry { .. })), "{error:?}");
    }
}

/// What was read can be written and read again. Bytes are compared, as a float may be no number.
fn written_again<R: Record>(codec: &Codec<R>, record: &R) {
    let written = codec.encode(record);
    let again = codec.decode(&written).expect("what was written can be read");
    assert_eq!(codec.encode(&again), written);
}
