//! Rule R10: however records are grouped, whenever batches are sent and frames are taken, clients show the same in the end.

use nearby_engine::{Engine, EngineSettings};
use nearby_processor::decider::{Action, Decider};
use nearby_processor::wake::{Listed, Reported, Sessioned, Source, Wake};
use nearby_pusher::delivery::{Epochs, Outgoing, Shown, SocketId, for_each_viewer};
use nearby_pusher::sessions::Sessions;
use nearby_schemas::batch::FriendMovedBatch;
use nearby_schemas::codec::Codec;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::{Epoch, GatewayId, Place, TimestampMs, UserId};
use nearby_service::membership::MembershipEvent;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Duration;

const USERS: [UserId; 5] = [UserId(0), UserId(1), UserId(2), UserId(77), UserId::MAX];
const PARTITIONS: i32 = 2;
const BEGINNING_MS: i64 = 1_000_000_000;
const SOCKET: SocketId = SocketId(1);

#[derive(Clone, Debug)]
enum Happening {
    Reported { user: usize, late_ms: i64, place: Option<Place> },
    Listed { viewer: usize, friends: Vec<usize> },
}

/// A processor that serves everybody, and the gateway on which everybody is connected.
struct Pipeline {
    decider: Decider,
    sessions: Sessions,
    epochs: Epochs,
    codec: Codec<FriendMovedBatch>,
    views: BTreeMap<UserId, BTreeMap<UserId, Shown>>,
    now_ms: i64,
}

impl Pipeline {
    fn new() -> Pipeline {
        let mut pipeline = Pipeline {
            decider: Decider::new(
                Engine::with_looks_at_once(EngineSettings::default(), 3),
                PARTITIONS,
                TimestampMs(BEGINNING_MS),
                Codec::new(),
            ),
            sessions: Sessions::default(),
            epochs: Epochs::default(),
            codec: Codec::new(),
            views: BTreeMap::new(),
            now_ms: BEGINNING_MS,
        };
        let gateway = GatewayId::new("g").expect("legal");
        pipeline.wake(Wake::Membership(MembershipEvent::Gained((0..PARTITIONS).collect())));
        pipeline.wake(Wake::Heartbeat(gateway.clone(), Some(TimestampMs(BEGINNING_MS))));
        for user in USERS {
            let now = TimestampMs(BEGINNING_MS);
            let ask = pipeline.sessions.connect(user, SOCKET, Waker::noop().clone(), now);
            let (partition, gateway) = (partition_of(user, PARTITIONS), gateway.clone());
            pipeline.wake(Wake::Sessions(vec![Sessioned { partition, user, gateway, ask }]));
        }
        for partition in 0..PARTITIONS {
            for source in [Source::Lists, Source::Sessions] {
                pipeline.wake(Wake::CaughtUp(source, partition, 1));
            }
        }
        pipeline.tick();
        for partition in 0..PARTITIONS {
            pipeline.wake(Wake::Membership(MembershipEvent::Claimed(partition, Epoch(7))));
        }
        pipeline
    }

    fn clock(&self) -> Duration {
        Duration::from_millis((self.now_ms - BEGINNING_MS).unsigned_abs())
    }

    fn wake(&mut self, wake: Wake) {
        let mut actions = Vec::new();
        self.decider.wake(wake, TimestampMs(self.now_ms), self.clock(), &mut actions);
    }

    fn tick(&mut self) {
        let mut actions = Vec::new();
        self.decider.tick(TimestampMs(self.now_ms), self.clock(), &mut actions);
    }

    /// What is due, or everything, goes to the gateway.
    fn flush(&mut self, everything: bool) {
        let (now, clock, mut actions) = (TimestampMs(self.now_ms), self.clock(), Vec::new());
        if everything {
            self.decider.end(now, clock, &mut actions);
        } else {
            self.decider.flush(now, clock, &mut actions);
        }
        for action in actions {
            let Action::Send(sent) = action else { continue };
            let batch = self.codec.decode(&sent.bytes).expect("ours");
            let (events, _) = self.epochs.admitted(&batch);
            for event in events {
                for_each_viewer(event, |user, change| {
                    self.sessions.change(user, change);
                });
            }
        }
    }

    /// A client takes its next frame.
    fn frame(&mut self, user: UserId) {
        match self.sessions.take(user, SOCKET) {
            Some(Outgoing::Snapshot(friends)) => drop(self.views.insert(user, friends.into_iter().collect())),
            Some(Outgoing::Update { moved, left }) => {
                let view = self.views.get_mut(&user).expect("the snapshot comes first");
                view.extend(moved);
                view.retain(|friend, _| !left.iter().any(|(gone, _)| gone == friend));
            }
            None => {}
        }
    }

    fn run(
        mut self,
        history: &[(Happening, i64)],
        cuts: &[(u8, bool, usize)],
    ) -> BTreeMap<UserId, BTreeMap<UserId, Shown>> {
        let (mut reports, mut lists) = (Vec::new(), Vec::new());
        for (index, (happening, step_ms)) in history.iter().enumerate() {
            self.now_ms += step_ms;
            match happening {
                Happening::Reported { user, late_ms, place } => {
                    let time = TimestampMs(self.now_ms - late_ms);
                    reports.push(Reported { user: USERS[*user], time, place: *place });
                }
                Happening::Listed { viewer, friends } => {
                    let viewer = USERS[*viewer];
                    let friends = Some(friends.iter().map(|friend| USERS[*friend]).collect());
                    lists.push(Listed { partition: partition_of(viewer, PARTITIONS), viewer, friends });
                }
            }
            let (cut, flushes, takes) = cuts[index % cuts.len()];
            // Reports and lists are read apart: one may wait for longer than the other.
            if cut & 1 == 0 {
                self.wake(Wake::from(std::mem::take(&mut reports)));
            }
            if cut & 2 == 0 {
                self.wake(Wake::Lists(std::mem::take(&mut lists)));
            }
            if flushes {
                self.tick();
                self.flush(false);
            }
            if let Some(user) = USERS.get(takes) {
                self.frame(*user);
            }
        }
        self.wake(Wake::from(reports));
        self.wake(Wake::Lists(lists));
        self.tick();
        while self.decider.resume(TimestampMs(self.now_ms)) {}
        self.flush(true);
        USERS.into_iter().for_each(|user| self.frame(user));
        self.views
    }
}

fn happenings() -> impl Strategy<Value = Happening> {
    let place = (-0.06..0.06, -0.06..0.06)
        .prop_map(|(north, east)| Place::from_degrees(37.77 + north, -122.41 + east).expect("on the globe"));
    let late_ms = prop_oneof![3 => Just(0_i64), 2 => 0..30_000_i64, 1 => 0..700_000_i64];
    prop_oneof![
        5 => (0..USERS.len(), late_ms, prop::option::weighted(0.9, place))
            .prop_map(|(user, late_ms, place)| Happening::Reported { user, late_ms, place }),
        1 => (0..USERS.len(), prop::collection::vec(0..USERS.len(), 0..7))
            .prop_map(|(viewer, friends)| Happening::Listed { viewer, friends }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn clients_show_the_same_in_the_end(
        history in prop::collection::vec((happenings(), prop_oneof![6 => 0..2_000_i64, 1 => 0..400_000_i64]), 1..100),
        cuts in prop::collection::vec((0..4_u8, any::<bool>(), 0..10_usize), 1..30),
    ) {
        let one_by_one = Pipeline::new().run(&history, &[(0, true, 0)]);
        let grouped = Pipeline::new().run(&history, &cuts);
        prop_assert_eq!(one_by_one.len(), USERS.len(), "everybody has a view");
        prop_assert_eq!(one_by_one, grouped);
    }
}
