//! What the decider does about what happens, as short stories.

use super::*;
use crate::ownership::LINGER_MAX_MS;
use crate::packing::viewers_of;
use crate::wake::{Listed, Reported, Reports, Sessioned};
use nearby_engine::EngineSettings;
use nearby_schemas::Place;
use nearby_schemas::batch::{Event, FriendMovedBatch};
use nearby_schemas::codec::Codec;
use std::sync::Arc;

const NOW: TimestampMs = TimestampMs(1_000_000);
const PARTITION: i32 = 0;

/// A decider and a clock; user 1 is a viewer of partition 0 on gateway `g`, and user 2 is the friend.
struct Story {
    decider: Decider,
    clock_ms: u64,
}

impl Story {
    fn new() -> Story {
        Story { decider: Decider::new(Engine::new(EngineSettings::default()), 2, NOW, Codec::new()), clock_ms: 0 }
    }

    fn wake(&mut self, wake: Wake) -> Vec<Action> {
        let mut actions = Vec::new();
        self.decider.wake(wake, NOW, Duration::from_millis(self.clock_ms), &mut actions);
        actions
    }

    fn tick(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.clock_ms += 200;
        self.decider.tick(NOW, Duration::from_millis(self.clock_ms), &mut actions);
        actions
    }

    /// What is sent after a while, decoded: epochs and events.
    fn sent(&mut self) -> Vec<(i64, Event)> {
        let mut actions = Vec::new();
        self.decider.flush(NOW, Duration::from_millis(self.clock_ms), &mut actions);
        self.clock_ms += 50;
        self.decider.flush(NOW, Duration::from_millis(self.clock_ms), &mut actions);
        let codec = Codec::<FriendMovedBatch>::new();
        let batches = actions.into_iter().map(|action| match action {
            Action::Send(batch) => codec.decode(&batch.bytes).expect("ours"),
            other => panic!("{other:?} instead of a batch"),
        });
        let sections = batches.flat_map(|batch| batch.sections);
        sections.flat_map(|part| part.events.into_iter().map(move |event| (part.epoch.0, event))).collect()
    }

    fn report(&mut self, user: i64) {
        let place = Some(Place { lat_e7: 377_700_000, lon_e7: -1_224_100_000 });
        assert_eq!(self.wake(Wake::from(vec![Reported { user: UserId(user), time: NOW, place }])), []);
    }

    fn lists_and_sessions(&mut self) {
        let gateway = GatewayId::new("g").expect("legal");
        let listed = Listed { partition: PARTITION, viewer: UserId(1), friends: Some(vec![UserId(2)]) };
        let session = Sessioned { partition: PARTITION, user: UserId(1), gateway: gateway.clone(), ask: Some(1) };
        self.wake(Wake::Heartbeat(gateway, Some(NOW)));
        self.wake(Wake::Lists(vec![listed]));
        self.wake(Wake::Sessions(vec![session]));
    }

    /// The partition is gained, restored in a reading of this generation, and claimed.
    fn serving(generation: u64, epoch: i64) -> Story {
        let mut story = Story::new();
        (0..2).for_each(|partition| drop(story.wake(Wake::CaughtUp(Source::Reports, partition, 0))));
        assert_eq!(story.wake(Wake::CaughtUp(Source::Heartbeats, 0, 0)), [Action::Join]);
        assert_eq!(story.wake(gained()), [Action::Read(vec![PARTITION], generation)]);
        story.lists_and_sessions();
        story.claims(generation);
        assert_eq!(story.wake(claimed(epoch)), []);
        story
    }

    fn claims(&mut self, generation: u64) {
        for source in [Source::Lists, Source::Sessions] {
            assert_eq!(self.wake(Wake::CaughtUp(source, PARTITION, generation)), []);
        }
        assert_eq!(self.tick(), [Action::Claim(vec![PARTITION])]);
    }
}

fn gained() -> Wake {
    Wake::Membership(MembershipEvent::Gained(vec![PARTITION]))
}

fn lost() -> Wake {
    Wake::Membership(MembershipEvent::Lost(vec![PARTITION]))
}

fn claimed(epoch: i64) -> Wake {
    Wake::Membership(MembershipEvent::Claimed(PARTITION, Epoch(epoch)))
}

fn friends_in_snapshot((epoch, event): &(i64, Event)) -> (i64, usize) {
    let Event::ViewerSnapshot(snapshot) = event else { panic!("{event:?} instead of a snapshot") };
    (*epoch, snapshot.friends.len())
}

#[test]
fn joins_when_every_position_and_every_gateway_is_known() {
    let mut story = Story::new();
    assert_eq!(story.decider.progress(), Progress::RestoringPositions(2));
    assert_eq!(story.wake(Wake::CaughtUp(Source::Reports, 1, 0)), []);
    assert_eq!(story.wake(Wake::CaughtUp(Source::Reports, 0, 0)), []);
    assert_eq!(story.decider.progress(), Progress::RestoringPositions(0));
    assert_eq!(story.wake(Wake::CaughtUp(Source::Heartbeats, 0, 0)), [Action::Join]);
    assert_eq!(story.wake(Wake::CaughtUp(Source::Heartbeats, 0, 0)), [], "once");
    assert_eq!(story.decider.progress(), Progress::Joining);
    story.wake(Wake::Membership(MembershipEvent::Gained(vec![])));
    assert_eq!(story.decider.progress(), Progress::Serving, "of nothing");
}

#[test]
fn serves_with_a_snapshot_under_its_epoch() {
    let mut story = Story::serving(1, 77);
    story.report(1);
    story.report(2);
    assert_eq!(story.decider.progress(), Progress::SendingSnapshots);
    while story.decider.resume(NOW) {}
    assert_eq!(story.decider.progress(), Progress::Serving);
    let sent = story.sent();
    assert_eq!(friends_in_snapshot(&sent[0]), (77, 0));
    assert!(matches!(sent[1..], [(77, Event::ViewerMoved(_)), (77, Event::FriendMoved(_))]), "{sent:?}");
    assert_eq!(*story.decider.epochs(), BTreeMap::from([(PARTITION, Epoch(77))]));
}

#[test]
fn what_was_told_before_a_new_epoch_goes_under_the_old_one() {
    let mut story = Story::serving(1, 77);
    story.report(1);
    story.sent();
    story.wake(lost());
    story.report(2);
    assert_eq!(story.wake(gained()), [Action::Claim(vec![PARTITION]), Action::Watch(BTreeSet::new())]);
    assert_eq!(story.wake(claimed(78)), []);
    let sent = story.sent();
    assert!(matches!(sent[0], (77, Event::FriendMoved(_))), "{sent:?}");
    assert_eq!(friends_in_snapshot(&sent[1]), (78, 1));
}

#[test]
fn the_end_of_an_earlier_reading_restores_nothing() {
    let mut story = Story::serving(1, 77);
    story.wake(lost());
    story.clock_ms += LINGER_MAX_MS;
    assert_eq!(story.tick(), [Action::StopReading(PARTITION), Action::Watch(BTreeSet::new())]);
    assert!(story.decider.holds_nothing() && story.decider.epochs().is_empty());
    assert_eq!(story.wake(gained()), [Action::Read(vec![PARTITION], 2)]);
    for source in [Source::Lists, Source::Sessions] {
        story.wake(Wake::CaughtUp(source, PARTITION, 1));
    }
    assert_eq!((story.tick(), story.decider.progress()), (vec![], Progress::RestoringViewers(1)));
    story.lists_and_sessions();
    story.claims(2);
}

#[test]
fn who_has_lost_everything_is_not_ready_until_the_group_has_said_what_is_its_own() {
    let mut story = Story::serving(1, 77);
    while story.decider.resume(NOW) {}
    story.wake(lost());
    assert_eq!(story.decider.progress(), Progress::Serving, "its viewers are told until somebody else does");
    story.wake(Wake::Membership(MembershipEvent::EpochSeen(PARTITION, Epoch(78))));
    assert!(story.decider.holds_nothing());
    assert_eq!(story.decider.progress(), Progress::Joining);
    story.wake(Wake::Membership(MembershipEvent::Gained(vec![])));
    assert_eq!(story.decider.progress(), Progress::Serving, "of nothing, as the group has it");
    story.wake(Wake::Membership(MembershipEvent::Lost(vec![])));
    assert_eq!(story.decider.progress(), Progress::Serving, "that was another engine's");
}

#[test]
fn only_who_reads_says_whether_it_is_behind() {
    let mut story = Story::serving(1, 77);
    let place = Some(Place { lat_e7: 377_700_000, lon_e7: -1_224_100_000 });
    let reports = |appended_at| {
        let reports = vec![Reported { user: UserId(1), time: NOW, place }];
        Wake::Reports(Arc::new(Reports { reports, appended_at: Some(appended_at) }))
    };
    let mut waits_ms = |is_behind, appended_at| {
        story.decider.set_behind(is_behind);
        story.wake(reports(appended_at));
        story.tick();
        story.sent();
        story.wake(reports(appended_at));
        story.decider.flush(NOW, Duration::from_millis(story.clock_ms), &mut Vec::new());
        let due = story.decider.next_due().expect("a move of the viewer waits");
        due.as_millis() - u128::from(story.clock_ms)
    };
    // The clocks of brokers are other machines'.
    assert_eq!(waits_ms(false, NOW.plus_ms(-3_600_000)), 5);
    assert_eq!(waits_ms(true, NOW.plus_ms(3_600_000)), 40);
    assert_eq!(waits_ms(false, NOW), 5);
}

#[test]
fn viewers_of_a_lost_batch_get_snapshots() {
    let mut story = Story::serving(1, 77);
    story.report(1);
    story.report(2);
    let mut actions = Vec::new();
    story.decider.end(NOW, Duration::ZERO, &mut actions);
    let [Action::Send(batch)] = &actions[..] else { panic!("{actions:?} instead of one batch") };
    let viewers = viewers_of(&Codec::new(), &batch.bytes).expect("ours");
    story.decider.make_good(viewers.into_iter().map(|viewer| (batch.gateway, viewer)).collect::<BTreeSet<_>>(), NOW);
    let sent = story.sent();
    assert_eq!(sent.iter().map(friends_in_snapshot).collect::<Vec<_>>(), [(77, 1)]);
}

#[test]
fn records_of_partitions_that_are_not_held_are_passed_over() {
    let mut story = Story::new();
    story.lists_and_sessions();
    assert_eq!(story.decider.counts().lists_held, 0);
}

#[test]
fn a_clock_that_was_set_back_ends_the_process() {
    let mut story = Story::new();
    let mut actions = Vec::new();
    story.decider.tick(NOW.plus_ms(-CLOCK_BACK_MS_MAX), Duration::ZERO, &mut actions);
    assert_eq!(actions, [], "a small step is nothing");
    story.decider.tick(NOW.plus_ms(-CLOCK_BACK_MS_MAX - 1), Duration::ZERO, &mut actions);
    assert!(matches!(&actions[..], [Action::Quit(reason)] if reason.contains("5001 ms")), "{actions:?}");
}

#[test]
fn sessions_of_gateways_that_are_gone_for_good_are_ended() {
    let mut story = Story::serving(1, 77);
    let mut actions = Vec::new();
    story.decider.clean(&mut actions);
    assert_eq!(actions, []);
    let other = GatewayId::new("h").expect("legal");
    story.wake(Wake::Heartbeat(other, Some(NOW.plus_ms(SESSION_OF_LOST_GATEWAY_MAX_MS + 31_000))));
    story.decider.clean(&mut actions);
    assert_eq!(actions, [Action::EndSession(PARTITION, UserId(1), GatewayId::new("g").expect("legal"))]);
}
