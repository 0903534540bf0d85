//! The hand-written encoder writes the very bytes that apache-avro writes.

use nearby_schemas::batch::*;
use nearby_schemas::codec::Codec;
use nearby_schemas::*;
use proptest::prelude::*;

/// One call of the encoder.
#[derive(Clone, Debug)]
enum Notice {
    Moved { friend: i64, place: Place, viewer: i64, distance_dm: i32 },
    Left { friend: i64, reason: LeftReason, viewer: i64 },
    ViewerMoved { viewer: i64, place: Place },
    Snapshot { viewer: i64, place: Option<Place>, friends: Vec<(i64, Place)> },
}

fn places() -> impl Strategy<Value = Place> {
    (-900_000_000..=900_000_000, -1_800_000_000..=1_800_000_000).prop_map(|(lat_e7, lon_e7)| Place { lat_e7, lon_e7 })
}

/// Few distinct values, so that neighbours merge often.
fn notices() -> impl Strategy<Value = Notice> {
    let place = prop_oneof![Just(Place { lat_e7: 1, lon_e7: -2 }), places()];
    let users = || prop_oneof![0..3_i64, Just(i64::MAX)];
    prop_oneof![
        (users(), place.clone(), users(), 0..200_151_145)
            .prop_map(|(friend, place, viewer, distance_dm)| Notice::Moved { friend, place, viewer, distance_dm }),
        (users(), prop_oneof![Just(LeftReason::Distance), Just(LeftReason::OwnLocation)], users())
            .prop_map(|(friend, reason, viewer)| Notice::Left { friend, reason, viewer }),
        (users(), place.clone()).prop_map(|(viewer, place)| Notice::ViewerMoved { viewer, place }),
        (users(), proptest::option::of(place.clone()), proptest::collection::vec((users(), place), 0..4))
            .prop_map(|(viewer, place, friends)| Notice::Snapshot { viewer, place, friends }),
    ]
}

fn snapshot(viewer: i64, place: Option<Place>, friends: &[(i64, Place)]) -> ViewerSnapshot {
    let friends = friends.iter().map(|(friend, place)| SeenFriend {
        friend: UserId(*friend),
        lat_e7: place.lat_e7,
        lon_e7: place.lon_e7,
        updated_at: TimestampMs(9),
        distance_dm: 5,
    });
    ViewerSnapshot { viewer: UserId(viewer), place, friends: friends.collect() }
}

fn write(encoder: &mut BatchEncoder, to: (i32, Epoch), notice: &Notice) {
    match notice {
        Notice::Moved { friend, place, viewer, distance_dm } => {
            let viewer = ViewerDistance { viewer: UserId(*viewer), distance_dm: *distance_dm };
            encoder.friend_moved(to, (UserId(*friend), *place, TimestampMs(9)), viewer);
        }
        Notice::Left { friend, reason, viewer } => {
            encoder.friend_left(to, (UserId(*friend), *reason), UserId(*viewer));
        }
        Notice::ViewerMoved { viewer, place } => encoder.viewer_moved(to, UserId(*viewer), *place),
        Notice::Snapshot { viewer, place, friends } => {
            encoder.viewer_snapshot(to, &snapshot(*viewer, *place, friends));
        }
    }
}

/// The same by the plainest means.
fn append(events: &mut Vec<Event>, notice: &Notice) {
    match notice {
        Notice::Moved { friend, place, viewer, distance_dm } => {
            let told = ViewerDistance { viewer: UserId(*viewer), distance_dm: *distance_dm };
            let fresh = FriendMoved {
                friend: UserId(*friend),
                lat_e7: place.lat_e7,
                lon_e7: place.lon_e7,
                updated_at: TimestampMs(9),
                viewers: vec![told],
            };
            match events.last_mut() {
                Some(Event::FriendMoved(last)) if (FriendMoved { viewers: vec![told], ..last.clone() }) == fresh => {
                    last.viewers.push(told);
                }
                _ => events.push(Event::FriendMoved(fresh)),
            }
        }
        Notice::Left { friend, reason, viewer } => match events.last_mut() {
            Some(Event::FriendLeft(last)) if last.friend.0 == *friend && last.reason == *reason => {
                last.viewers.push(UserId(*viewer));
            }
            _ => events.push(Event::FriendLeft(FriendLeft {
                friend: UserId(*friend),
                reason: *reason,
                viewers: vec![UserId(*viewer)],
            })),
        },
        Notice::ViewerMoved { viewer, place } => events.push(Event::ViewerMoved(ViewerMoved {
            viewer: UserId(*viewer),
            lat_e7: place.lat_e7,
            lon_e7: place.lon_e7,
        })),
        Notice::Snapshot { viewer, place, friends } => {
            events.push(Event::ViewerSnapshot(snapshot(*viewer, *place, friends)));
        }
    }
}

proptest! {
    /// One batch after the other by the same encoder, and epochs that rise in between. The order of the sections of one
    /// partition is that of their epochs; that of partitions is the encoder's.
    #[test]
    fn equals_apache_avro(
        batches in proptest::collection::vec(
            proptest::collection::vec((0..3_i32, 0..12_i64, notices()), 0..40), 1..5
        ),
    ) {
        let codec = Codec::<FriendMovedBatch>::new();
        let mut encoder = BatchEncoder::new(&codec);
        let mut epochs = [100_i64; 3];
        for written in batches {
            let mut sections: Vec<Section> = Vec::new();
            for (partition, rises, notice) in &written {
                let epoch = &mut epochs[usize::try_from(*partition).expect("small")];
                *epoch += i64::from(*rises == 0);
                let (partition, epoch) = (*partition, Epoch(*epoch));
                write(&mut encoder, (partition, epoch), notice);
                let same = |section: &Section| section.partition == partition && section.epoch == epoch;
                if !sections.iter().any(same) {
                    sections.push(Section { partition, epoch, events: Vec::new() });
                }
                let section = sections.iter_mut().find(|section| same(section)).expect("just added");
                append(&mut section.events, notice);
            }
            let bytes = encoder.finish(TimestampMs(77));
            let decoded = codec.decode(&bytes).expect("decodes");
            prop_assert_eq!(&bytes, &codec.encode(&decoded), "byte by byte what apache-avro writes");
            prop_assert_eq!(decoded.emitted_at, TimestampMs(77));
            let of = |sections: &[Section], partition| {
                sections.iter().filter(|section| section.partition == partition).cloned().collect::<Vec<Section>>()
            };
            for partition in 0..3 {
                prop_assert_eq!(of(&decoded.sections, partition), of(&sections, partition));
            }
            prop_assert_eq!(decoded.sections.len(), sections.len());
            prop_assert!(encoder.is_empty() && encoder.bytes() == 0);
        }
    }
}
