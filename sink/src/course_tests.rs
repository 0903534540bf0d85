use super::*;
use crate::batch::Advance;
use crate::record::Decoder;
use nearby_schemas::codec::Codec;

const AGE: Duration = Duration::from_millis(50);

/// A sink of one topic, at a time that stands still.
struct Sink {
    course: Course,
    now: Instant,
}

impl Sink {
    /// Owns partition 0, of which the database holds offset 10.
    fn new() -> Sink {
        let now = Instant::now();
        let settings = SinkSettings { batch_age_ms: 50, ..SinkSettings::default() };
        let mut sink = Sink { course: Course::new(Log::LocationEvents, &settings, now), now };
        sink.course.gained([0]);
        assert_eq!(sink.offsets(&[(0, 10)]), Follows::FeedRestarts);
        sink
    }

    fn take(&mut self, partition: i32, offsets: std::ops::Range<i64>) {
        self.take_with(Some(b"7"), partition, offsets);
    }

    fn take_dead(&mut self, partition: i32, offsets: std::ops::Range<i64>) {
        self.take_with(None, partition, offsets);
    }

    fn take_with(&mut self, key: Option<&[u8]>, partition: i32, offsets: std::ops::Range<i64>) {
        let decoder = Decoder::FriendLists(Codec::new(), 1);
        for offset in offsets {
            // The decoder wants users on their partition; a course does not ask.
            let record = Record { partition, ..decoder.decode(0, offset, key, None, None) };
            assert_eq!(self.course.take(record, self.now), Ok(Taken::Waits), "{offset}");
        }
    }

    fn done(&mut self, outcome: Outcome) -> Follows {
        self.course.done(outcome, self.now).expect("it goes on")
    }

    fn offsets(&mut self, held: &[(i32, i64)]) -> Follows {
        assert_eq!(self.course.next_work(), Work::ReadOffsets);
        assert_eq!(self.wait(), Duration::ZERO);
        self.done(Outcome::OffsetsRead(Ok(held.iter().copied().collect())))
    }

    fn write(&mut self, answer: Result<Written, WriteError>) -> Follows {
        let Work::Write(attempt) = self.course.next_work() else { panic!("{:?}", self.course.next_work()) };
        self.done(Outcome::Wrote(attempt, answer))
    }

    fn bury(&mut self, acknowledged: &[Result<(), String>]) -> Follows {
        let Work::Bury(attempt) = self.course.next_work() else { panic!("{:?}", self.course.next_work()) };
        assert_eq!(self.course.letters(&attempt).count(), acknowledged.len());
        self.done(Outcome::Buried(attempt, acknowledged.to_vec()))
    }

    fn wait(&self) -> Duration {
        self.course.due_at().saturating_duration_since(self.now)
    }

    fn held(&self) -> Vec<(i32, i64)> {
        self.course.batcher().held_offsets()
    }

    fn next(&self) -> Vec<(i32, Option<i64>)> {
        self.course.batcher().next_offsets()
    }
}

fn away() -> WriteError {
    WriteError::Away("gone".to_owned())
}

fn refused() -> WriteError {
    WriteError::Refused("no".to_owned())
}

fn lost(partition: i32) -> Result<Written, WriteError> {
    Ok(Written::Lost(vec![partition]))
}

fn write(count: usize, held: i64, next: i64) -> Work {
    Work::Write(Attempt { count, advances: vec![Advance { partition: 0, held: Some(held), next, appended_at: None }] })
}

#[test]
fn partitions_are_read_from_what_the_database_holds() {
    let mut sink = Sink::new();
    assert_eq!((sink.next(), sink.course.next_work()), (vec![(0, Some(10))], Work::Check));
    assert_eq!(sink.wait(), IDLE_CHECK_INTERVAL);
    sink.course.gained([1, 2]);
    assert_eq!(sink.offsets(&[(0, 99), (2, 20)]), Follows::FeedRestarts);
    assert_eq!(sink.next(), [(0, Some(10)), (1, None), (2, Some(20))]);
    sink.take(0, 10..12);
    assert_eq!(sink.wait(), AGE);
    assert_eq!(sink.write(Ok(Written::Rows(2))), Follows::Advanced);
    assert_eq!(sink.held(), [(0, 12), (1, 0), (2, 20)]);
}

#[test]
fn the_loser_of_a_race_reads_the_offsets_again() {
    for (held, follows, next, work) in [
        (12, Follows::Nothing, 14, write(2, 12, 14)),
        (14, Follows::Nothing, 14, Work::Check),
        (15, Follows::FeedRestarts, 15, Work::Check),
        (9, Follows::FeedRestarts, 9, Work::Check),
    ] {
        let mut sink = Sink::new();
        sink.take(0, 10..14);
        assert_eq!(sink.write(lost(0)), Follows::Nothing);
        assert_eq!(sink.course.overtaken().collect::<Vec<_>>(), [0]);
        assert_eq!(sink.offsets(&[(0, held)]), follows, "{held}");
        assert_eq!((sink.held(), sink.next()), (vec![(0, held)], vec![(0, Some(next))]));
        assert_eq!(sink.course.next_work(), work, "{held}");
        assert_eq!(sink.course.overtaken().count(), 0);
    }
}

#[test]
fn a_race_is_not_forgotten_while_the_database_is_away() {
    let mut sink = Sink::new();
    sink.take(0, 10..14);
    assert_eq!(sink.write(lost(0)), Follows::Nothing);
    assert_eq!(sink.done(Outcome::OffsetsRead(Err(away()))), Follows::DatabaseAway { retry_after: RETRY_MIN });
    sink.now += RETRY_MIN;
    assert_eq!(sink.offsets(&[(0, 12)]), Follows::Nothing);
    assert_eq!(sink.course.next_work(), write(2, 12, 14));
}

#[test]
fn waits_double_until_one_success() {
    let mut sink = Sink::new();
    sink.take(0, 10..14);
    for wait_ms in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
        assert_eq!(sink.course.can_flush(), wait_ms == 100);
        let retry_after = Duration::from_millis(wait_ms);
        assert_eq!(sink.write(Err(away())), Follows::DatabaseAway { retry_after });
        assert_eq!((sink.wait(), sink.course.away()), (retry_after, Some("gone")));
        sink.now += retry_after;
    }
    assert_eq!(sink.write(Ok(Written::Rows(4))), Follows::Advanced);
    assert_eq!((sink.wait(), sink.course.away()), (IDLE_CHECK_INTERVAL, None));
    sink.take(0, 14..15);
    assert!(sink.course.can_flush());
    assert_eq!(sink.write(Err(away())), Follows::DatabaseAway { retry_after: RETRY_MIN });
}

#[test]
fn an_unacknowledged_letter_holds_the_offsets() {
    let mut sink = Sink::new();
    sink.take_dead(0, 10..13);
    let refusal = Err("full".to_owned());
    let broker_away = Follows::BrokerAway { reason: "full".to_owned() };
    assert_eq!(sink.bury(&[Ok(()), refusal.clone(), Ok(())]), broker_away);
    // The database has nothing to do with it.
    assert_eq!((sink.wait(), sink.course.away()), (RETRY_MIN, None));
    assert!(!sink.course.can_flush());
    assert_eq!(sink.bury(&[refusal]), broker_away);
    assert_eq!(sink.bury(&[Ok(())]), Follows::Nothing);
    assert_eq!(sink.course.next_work(), write(3, 10, 13));
    assert_eq!(sink.write(Err(away())), Follows::DatabaseAway { retry_after: 4 * RETRY_MIN });
    // And acknowledged letters say nothing about the database.
    sink.take_dead(0, 13..14);
    assert_eq!((sink.bury(&[Ok(())]), sink.course.away()), (Follows::Nothing, Some("gone")));
    assert_eq!(sink.write(Ok(Written::Rows(0))), Follows::Advanced);
}

#[test]
fn lost_partitions_take_along_what_waits() {
    let mut sink = Sink::new();
    sink.course.gained([1, 2]);
    assert_eq!(sink.offsets(&[(1, 0), (2, 0)]), Follows::FeedRestarts);
    sink.take(0, 10..14);
    sink.take(1, 0..1);
    assert_eq!(sink.write(lost(1)), Follows::Nothing);
    sink.course.gained([3]);
    sink.course.lost([1, 2, 3]);
    assert_eq!((sink.next(), sink.course.next_work()), (vec![(0, Some(14))], write(4, 10, 14)));
    sink.course.lost([0]);
    assert_eq!((sink.next(), sink.course.next_work()), (vec![], Work::Check));
}

#[test]
fn what_no_row_is_to_blame_for_is_waited_for() {
    let mut sink = Sink::new();
    sink.take_dead(0, 10..11);
    assert_eq!(sink.bury(&[Ok(())]), Follows::Nothing);
    assert_eq!(sink.write(Err(refused())), Follows::DatabaseAway { retry_after: RETRY_MIN });
    assert_eq!(sink.done(Outcome::Checked(Err(refused()))), Follows::DatabaseAway { retry_after: 2 * RETRY_MIN });
    let Work::Write(attempt) = sink.course.next_work() else { panic!("nothing to write") };
    let fatal = Outcome::Wrote(attempt, Err(WriteError::AlreadyInHistory("10".to_owned())));
    assert!(matches!(sink.course.done(fatal, sink.now), Err(SinkError::AlreadyInHistory(_))));
}

#[test]
fn a_refused_row_is_buried_before_the_offsets_pass_over_it() {
    let mut sink = Sink::new();
    sink.take(0, 10..14);
    assert_eq!(sink.write(Err(refused())), Follows::Searching { rows: 4, reason: "no".to_owned() });
    assert_eq!(sink.course.next_work(), write(2, 10, 12));
    assert_eq!(sink.write(Ok(Written::Rows(2))), Follows::Advanced);
    assert_eq!(sink.course.next_work(), write(1, 12, 13));
    assert_eq!(sink.write(Err(refused())), Follows::Nothing);
    let Work::Bury(attempt) = sink.course.next_work() else { panic!("not buried") };
    let letters: Vec<_> = sink.course.letters(&attempt).map(|(record, reason)| (record.offset, reason)).collect();
    assert_eq!((letters, sink.held()), (vec![(12, "no")], vec![(0, 12)]));
    assert_eq!(sink.bury(&[Ok(())]), Follows::Nothing);
    assert_eq!(sink.course.next_work(), write(2, 12, 14));
    assert_eq!(sink.write(Ok(Written::Rows(1))), Follows::Advanced);
    assert_eq!((sink.held(), sink.course.next_work()), (vec![(0, 14)], Work::Check));
}
