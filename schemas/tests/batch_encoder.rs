//! The hand-written encoder writes the very bytes that apache-avro writes.

use nearby_schemas::batch::*;
use nearby_schemas::batch_encoder::{BatchEncoder, Notes};
use nearby_schemas::codec::Codec;
use nearby_schemas::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// One call of the encoder.
#[derive(Clone, Debug)]
enum Notice {
    Moved { friend: i64, place: Place, updated_at: i64, viewer: i64, distance_dm: i32 },
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
        (users(), place.clone(), 8..10_i64, users(), 0..200_151_145).prop_map(
            |(friend, place, updated_at, viewer, distance_dm)| Notice::Moved {
                friend,
                place,
                updated_at,
                viewer,
                distance_dm
            }
        ),
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

fn write(encoder: &mut BatchEncoder, notes: &mut Notes, partition: i32, notice: &Notice) {
    let section = encoder.section(partition).expect("has an epoch");
    match notice {
        Notice::Moved { friend, place, updated_at, viewer, distance_dm } => {
            let viewer = ViewerDistance { viewer: UserId(*viewer), distance_dm: *distance_dm };
            encoder.friend_moved(notes, section, (UserId(*friend), *place, TimestampMs(*updated_at)), viewer);
        }
        Notice::Left { friend, reason, viewer } => {
            encoder.friend_left(notes, section, (UserId(*friend), *reason), UserId(*viewer));
        }
        Notice::ViewerMoved { viewer, place } => encoder.viewer_moved(notes, section, UserId(*viewer), *place),
        Notice::Snapshot { viewer, place, friends } => {
            encoder.viewer_snapshot(notes, section, &snapshot(*viewer, *place, friends));
        }
    }
}

/// Events of one section, each with the number of its run: notices of the same thing that follow one another, to whomever.
type Told = Vec<(usize, Event)>;

/// The same by the plainest means.
fn append(events: &mut Told, run: usize, notice: &Notice) {
    let last = events.last_mut().filter(|(last, _)| *last == run).map(|(_, event)| event);
    let fresh = match (notice, last) {
        (Notice::Moved { viewer, distance_dm, .. }, Some(Event::FriendMoved(last))) => {
            last.viewers.push(ViewerDistance { viewer: UserId(*viewer), distance_dm: *distance_dm });
            return;
        }
        (Notice::Left { viewer, .. }, Some(Event::FriendLeft(last))) => {
            last.viewers.push(UserId(*viewer));
            return;
        }
        (Notice::Moved { friend, place, updated_at, viewer, distance_dm }, _) => Event::FriendMoved(FriendMoved {
            friend: UserId(*friend),
            lat_e7: place.lat_e7,
            lon_e7: place.lon_e7,
            updated_at: TimestampMs(*updated_at),
            viewers: vec![ViewerDistance { viewer: UserId(*viewer), distance_dm: *distance_dm }],
        }),
        (Notice::Left { friend, reason, viewer }, _) => {
            Event::FriendLeft(FriendLeft { friend: UserId(*friend), reason: *reason, viewers: vec![UserId(*viewer)] })
        }
        (Notice::ViewerMoved { viewer, place }, _) => {
            Event::ViewerMoved(ViewerMoved { viewer: UserId(*viewer), lat_e7: place.lat_e7, lon_e7: place.lon_e7 })
        }
        (Notice::Snapshot { viewer, place, friends }, _) => Event::ViewerSnapshot(snapshot(*viewer, *place, friends)),
    };
    events.push((run, fresh));
}

/// Whether both tell the same to another viewer.
fn same_run(before: &Notice, notice: &Notice) -> bool {
    match (before, notice) {
        (
            Notice::Moved { friend, place, updated_at, .. },
            Notice::Moved { friend: same, place: there, updated_at: then, .. },
        ) => (friend, place, updated_at) == (same, there, then),
        (Notice::Left { friend, reason, .. }, Notice::Left { friend: same, reason: because, .. }) => {
            (friend, reason) == (same, because)
        }
        _ => false,
    }
}

proptest! {
    /// Notices to two gateways, whose batches are closed now and then, the one or both; when both are, epochs rise.
    #[test]
    fn equals_apache_avro(
        rounds in proptest::collection::vec(
            (proptest::collection::vec((0..2_usize, 0..3_i32, notices()), 0..40), 0..3_usize), 1..5
        ),
    ) {
        let codec = Codec::<FriendMovedBatch>::new();
        let mut encoder = BatchEncoder::new(&codec);
        let mut notes = [Notes::default(), Notes::default()];
        let mut expected: [BTreeMap<i32, Told>; 2] = Default::default();
        let (mut run, mut before, mut epoch) = (0, None, 100);
        encoder.set_epochs((0..3).map(|partition| (partition, Epoch(epoch))));
        for (told, closed) in rounds {
            for (gateway, partition, notice) in told {
                run += usize::from(!before.as_ref().is_some_and(|before| same_run(before, &notice)));
                write(&mut encoder, &mut notes[gateway], partition, &notice);
                append(expected[gateway].entry(partition).or_default(), run, &notice);
                before = Some(notice);
            }
            for gateway in (0..2).filter(|gateway| closed == 2 || closed == *gateway) {
                let bytes_max = notes[gateway].bytes() + codec.header().len() + 100;
                let bytes = encoder.finish(&mut notes[gateway], TimestampMs(77));
                prop_assert!(bytes.len() <= bytes_max && notes[gateway].is_empty() && notes[gateway].bytes() == 0);
                let decoded = codec.decode(&bytes).expect("decodes");
                prop_assert_eq!(&bytes, &codec.encode(&decoded), "byte by byte what apache-avro writes");
                let sections = std::mem::take(&mut expected[gateway]).into_iter().map(|(partition, told)| {
                    let events = told.into_iter().map(|(_, event)| event).collect();
                    Section { partition, epoch: Epoch(epoch), events }
                });
                let sections = sections.collect();
                prop_assert_eq!(decoded, FriendMovedBatch { emitted_at: TimestampMs(77), sections });
            }
            if closed == 2 {
                epoch += 1;
                encoder.forget();
                encoder.set_epochs((0..3).map(|partition| (partition, Epoch(epoch))));
                before = None;
            }
        }
    }
}

/// A list of more viewers than a block has is a list of several blocks, which Avro allows, and apache-avro reads as one.
#[test]
fn a_thousand_viewers_of_one_event_are_one_list() {
    let codec = Codec::<FriendMovedBatch>::new();
    let (mut encoder, mut notes) = (BatchEncoder::new(&codec), Notes::default());
    encoder.set_epochs([(0, Epoch(1))]);
    for viewer in 0..1_000 {
        write(&mut encoder, &mut notes, 0, &Notice::Left { friend: 5, reason: LeftReason::Distance, viewer });
    }
    let batch = codec.decode(&encoder.finish(&mut notes, TimestampMs(0))).expect("decodes");
    let viewers = (0..1_000).map(UserId).collect();
    let left = Event::FriendLeft(FriendLeft { friend: UserId(5), reason: LeftReason::Distance, viewers });
    assert_eq!(batch.sections, [Section { partition: 0, epoch: Epoch(1), events: vec![left] }]);
}
