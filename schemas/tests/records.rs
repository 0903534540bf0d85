//! Golden bytes of each record, both directions, and what the codec refuses.

use expect_test::{Expect, expect};
use nearby_schemas::batch::*;
use nearby_schemas::codec::{Codec, DecodeError, Record};
use nearby_schemas::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes on the wire are fixed: other languages and yesterday's log depend on them.
fn check<R: Record + PartialEq + std::fmt::Debug>(record: R, golden: Expect) {
    let codec = Codec::<R>::new();
    let bytes = codec.encode(&record);
    let lines: Vec<String> = bytes.chunks(32).map(hex).collect();
    golden.assert_eq(&lines.join("\n"));
    assert_eq!(codec.decode(&bytes).expect("just encoded"), record);
    for length in 0..bytes.len() {
        assert!(codec.decode(&bytes[..length]).is_err(), "cut to {length} bytes it is still read");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(matches!(codec.decode(&longer), Err(DecodeError::Trailing(1))));
}

fn gateway() -> GatewayId {
    GatewayId::new("g1-abc").expect("legal")
}

fn event(user_id: i64, lat_e7: i32) -> LocationEvent {
    let position =
        Position { lat_e7, lon_e7: -1_224_100_000, accuracy_m: Some(12.0), speed_mps: None, heading_deg: Some(270.0) };
    LocationEvent {
        user_id: UserId(user_id),
        reported_at: TimestampMs(1_700_000_000_000),
        received_at: TimestampMs(1_700_000_000_100),
        position: Some(position),
        source: Source::WebSocket,
    }
}

#[test]
fn location_event() {
    check(
        event(42, 377_700_000),
        expect![[r#"
            c301e2a247bb418f7e5b5480a0abfef962c8a1abfef96202c0fa99e802bfa2b2
            8f09020000404100020000874304"#]],
    );
}

#[test]
fn withdrawal() {
    check(
        LocationEvent { position: None, source: Source::Http, ..event(i64::MAX, 0) },
        expect![[r#"
            c301e2a247bb418f7e5bfeffffffffffffffff0180a0abfef962c8a1abfef962
            0002"#]],
    );
}

#[test]
fn friend_list() {
    let friends = vec![UserId(0), UserId(7), UserId::MAX];
    check(
        FriendList { user_id: UserId(42), friends, changed_at: TimestampMs(1) },
        expect!["c3017e344bd5239cec855406000efeffffffffffffffff010002"],
    );
}

#[test]
fn session() {
    check(
        Session { user_id: UserId(42), gateway: gateway(), ask: 3 },
        expect!["c301213c105ae5085118540c67312d61626306"],
    );
}

#[test]
fn gateway_heartbeat() {
    let heartbeat = GatewayHeartbeat {
        gateway: gateway(),
        stream_url: "ws://127.0.0.1:8081/v1/stream".into(),
        http_url: "http://127.0.0.1:8081".into(),
        connections: 5,
        capacity: 50_000,
        draining: true,
        started_at: TimestampMs(1_700_000_000_000),
        accept_rate_per_s: 5_000,
    };
    check(
        heartbeat,
        expect![[r#"
            c301ac28ab8feeba4c8c0c67312d6162633a77733a2f2f3132372e302e302e31
            3a383038312f76312f73747265616d2a687474703a2f2f3132372e302e302e31
            3a383038310aa08d060180a0abfef962904e"#]],
    );
}

/// Version 1, without what version 2 has at its end.
#[test]
fn gateway_heartbeat_of_version_1() {
    let bytes = "c301565c899371f26b620c67312d6162633a77733a2f2f3132372e302e302e31\
                 3a383038312f76312f73747265616d2a687474703a2f2f3132372e302e302e31\
                 3a383038310aa08d060180a0abfef962";
    let bytes: Vec<u8> =
        (0..bytes.len()).step_by(2).map(|at| u8::from_str_radix(&bytes[at..at + 2], 16).expect("hex")).collect();
    let heartbeat = Codec::<GatewayHeartbeat>::new().decode(&bytes).expect("readable");
    assert_eq!((heartbeat.connections, heartbeat.capacity, heartbeat.accept_rate_per_s), (5, 50_000, 0));
}

#[test]
fn friend_moved_batch() {
    check(
        batch(),
        expect![[r#"
        c30114fe4aa49aa6862a90a3abfef962020682a0abfef9620a0054c0fa99e802
        bfa2b28f0980a0abfef9620402f2c0010400000254060206000402c0fa99e802
        bfa2b28f0906020000060402c0fa99e802bfa2b28f090454c0fa99e802bfa2b2
        8f0980a0abfef96280e20954c0fa99e802bfa2b28f0980a0abfef96280e20900
        0000"#]],
    );
}

fn batch() -> FriendMovedBatch {
    let viewers = vec![
        ViewerDistance { viewer: UserId(1), distance_dm: 12_345 },
        ViewerDistance { viewer: UserId(2), distance_dm: 0 },
    ];
    let (friend, lat_e7, lon_e7, updated_at) =
        (UserId(42), 377_700_000, -1_224_100_000, TimestampMs(1_700_000_000_000));
    let seen = SeenFriend { friend, lat_e7, lon_e7, updated_at, distance_dm: 80_000 };
    FriendMovedBatch {
        emitted_at: TimestampMs(1_700_000_000_200),
        sections: vec![Section {
            partition: 3,
            epoch: Epoch(1_700_000_000_001),
            events: vec![
                Event::FriendMoved(FriendMoved { friend, lat_e7, lon_e7, updated_at, viewers }),
                Event::FriendLeft(FriendLeft { friend, reason: LeftReason::Unshared, viewers: vec![UserId(3)] }),
                Event::ViewerMoved(ViewerMoved { viewer: UserId(1), lat_e7, lon_e7 }),
                Event::ViewerSnapshot(ViewerSnapshot { viewer: UserId(1), place: None, friends: vec![] }),
                Event::ViewerSnapshot(ViewerSnapshot {
                    viewer: UserId(2),
                    place: Some(Place { lat_e7, lon_e7 }),
                    friends: vec![seen, seen],
                }),
            ],
        }],
    }
}

#[test]
fn batch_names_its_viewers() {
    let viewers: Vec<(i32, UserId)> = batch().viewers().collect();
    assert_eq!(viewers, [1, 2, 3, 1, 1, 2].map(|viewer| (3, UserId(viewer))));
}

/// What Avro's own definition gives, computed with an independent implementation (Python's fastavro 1.13,
/// `fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")`), in the order of the header's bytes.
#[test]
fn fingerprints_are_those_of_other_implementations() {
    fn fingerprint<R: Record>() -> String {
        hex(&Codec::<R>::new().header()[2..])
    }
    assert_eq!(fingerprint::<LocationEvent>(), "e2a247bb418f7e5b");
    assert_eq!(fingerprint::<FriendList>(), "7e344bd5239cec85");
    assert_eq!(fingerprint::<Session>(), "213c105ae5085118");
    assert_eq!(fingerprint::<GatewayHeartbeat>(), "ac28ab8feeba4c8c");
    assert_eq!(fingerprint::<FriendMovedBatch>(), "14fe4aa49aa6862a");
}

#[test]
fn refusals() {
    let codec = Codec::<LocationEvent>::new();
    let refusal = |bytes: &[u8]| codec.decode(bytes).expect_err("refused").to_string();
    let valid = codec.encode(&event(42, 0));
    let mut unknown = valid.clone();
    unknown[2..10].copy_from_slice(&0x0123_4567_89ab_cdef_u64.to_le_bytes());
    expect![[r#"
        not an Avro single object: it does not start with C3 01
        not an Avro single object: it does not start with C3 01
        in Confluent's wire format (schema id 7), but no schema registry is configured
        written with an unknown schema (fingerprint 0123456789abcdef)
        malformed: Failed to read bytes for decoding variable length integer: failed to fill whole buffer
        user id out of range
        position out of range"#]]
    .assert_eq(
        &[
            refusal(b""),
            refusal(b"{}"),
            refusal(&[0, 0, 0, 0, 7, 1]),
            refusal(&unknown),
            refusal(&valid[..20]),
            refusal(&codec.encode(&event(-1, 0))),
            refusal(&codec.encode(&event(1, 900_000_001))),
        ]
        .join("\n"),
    );
}
