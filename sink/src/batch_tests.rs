use super::*;
use nearby_schemas::UserId;
use proptest::prelude::*;
use std::collections::BTreeSet;

const AGE_MAX: Duration = Duration::from_millis(200);

fn record(partition: i32, offset: i64) -> Record {
    let content = Ok(Content::Unlisted(UserId(offset)));
    Record { partition, offset, appended_at: None, key: None, value: None, content }
}

fn dead(partition: i32, offset: i64) -> Record {
    Record { content: Err("nonsense".to_owned()), ..record(partition, offset) }
}

fn batcher(rows_max: usize) -> Batcher {
    let mut batcher = Batcher::new(true, rows_max, AGE_MAX);
    batcher.own(0, Some(10));
    batcher
}

fn take(batcher: &mut Batcher, offsets: std::ops::Range<i64>) {
    for offset in offsets {
        assert_eq!(batcher.take(record(0, offset), Instant::now()), Ok(Taken::Waits), "{offset}");
    }
}

fn advance(partition: i32, held: Option<i64>, next: i64) -> Advance {
    Advance { partition, held, next, appended_at: None }
}

#[test]
fn full_or_old_enough() {
    let mut batcher = batcher(3);
    let start = Instant::now();
    assert_eq!(batcher.due_at(), None);
    for offset in 10..13 {
        assert!(batcher.has_room());
        assert_eq!(batcher.take(record(0, offset), start), Ok(Taken::Waits));
        assert_eq!(batcher.due_at(), Some(if offset < 12 { start + AGE_MAX } else { start }));
    }
    assert!(!batcher.has_room());
    // What was read together may be more; the attempt is not.
    take(&mut batcher, 13..14);
    let attempt = batcher.attempt();
    assert_eq!(attempt, Attempt { count: 3, advances: vec![advance(0, Some(10), 13)] });
    batcher.written(&attempt);
    assert_eq!(batcher.attempt(), Attempt { count: 1, advances: vec![advance(0, Some(13), 14)] });
}

#[test]
fn full_by_size() {
    let mut batcher = batcher(9);
    let start = Instant::now();
    for offset in 10..12 {
        assert!(batcher.has_room());
        let large = Record { value: Some(vec![0; BATCH_BYTES_MAX / 2]), ..record(0, offset) };
        assert_eq!(batcher.take(large, start), Ok(Taken::Waits));
    }
    assert!(!batcher.has_room());
    assert_eq!((batcher.due_at(), batcher.attempt().count), (Some(start), 2));
    batcher.written(&batcher.attempt());
    assert!(batcher.has_room(), "what is written is gone");

    let large = Record { value: Some(vec![0; BATCH_BYTES_MAX]), ..record(0, 12) };
    assert_eq!(batcher.take(large, start), Ok(Taken::Waits));
    assert!(!batcher.has_room());
    batcher.disown(0);
    assert!(batcher.has_room(), "what is not ours either");
}

#[test]
fn every_partition_advances_by_itself() {
    let mut batcher = batcher(9);
    batcher.own(1, None);
    batcher.own(2, Some(0));
    let now = Instant::now();
    for record in [record(1, 500), record(0, 10), record(1, 501)] {
        assert_eq!(batcher.take(record, now), Ok(Taken::Waits));
    }
    let attempt = batcher.attempt();
    assert_eq!(attempt.advances, [advance(0, Some(10), 11), advance(1, None, 502)]);
    batcher.written(&attempt);
    assert!(batcher.is_empty());
    assert_eq!(batcher.held_offsets(), [(0, 11), (1, 502), (2, 0)]);
    assert_eq!(batcher.next_offsets(), [(0, Some(11)), (1, Some(502)), (2, Some(0))]);
}

#[test]
fn seen_before_or_not_ours() {
    let mut batcher = batcher(9);
    let now = Instant::now();
    assert_eq!(batcher.take(record(0, 9), now), Ok(Taken::Skipped));
    assert_eq!(batcher.take(record(0, 10), now), Ok(Taken::Waits));
    assert_eq!(batcher.take(record(0, 10), now), Ok(Taken::Skipped));
    assert_eq!(batcher.take(record(7, 0), now), Ok(Taken::Skipped));
    assert_eq!(batcher.attempt().count, 1);
}

#[test]
fn a_gap_is_an_error_unless_the_log_is_compacted() {
    let mut batcher = batcher(9);
    take(&mut batcher, 10..12);
    let gap = Gap { partition: 0, expected: 12, found: 13 };
    assert_eq!(batcher.take(record(0, 13), Instant::now()), Err(gap));
    let mut compacted = Batcher::new(false, 9, AGE_MAX);
    compacted.own(0, Some(10));
    assert_eq!(compacted.take(record(0, 13), Instant::now()), Ok(Taken::Waits));
    assert_eq!(compacted.attempt().advances, [advance(0, Some(10), 14)]);
}

#[test]
fn a_lost_partition_takes_its_records_along() {
    let mut batcher = batcher(9);
    batcher.own(1, Some(0));
    take(&mut batcher, 10..12);
    assert_eq!(batcher.take(record(1, 0), Instant::now()), Ok(Taken::Waits));
    batcher.disown(0);
    assert_eq!(batcher.attempt(), Attempt { count: 1, advances: vec![advance(1, Some(0), 1)] });
}

#[test]
fn dead_letters_advance_the_offset() {
    let mut batcher = batcher(9);
    assert_eq!(batcher.take(dead(0, 10), Instant::now()), Ok(Taken::Waits));
    let attempt = batcher.attempt();
    assert_eq!(attempt.advances, [advance(0, Some(10), 11)]);
    assert!(batcher.items(&attempt).all(|item| item.content().is_none() && !item.buried));
    assert_eq!(batcher.refused(&attempt, "refused".to_owned()), Refusal::NoCulprit);
}

#[test]
fn another_sink_was_first() {
    for (held, rebase, left, next) in [
        // It wrote a part of what waits here, or all of it.
        (Some(10), Rebase::Continues, 4, 14),
        (Some(12), Rebase::Continues, 2, 14),
        (Some(14), Rebase::Continues, 0, 14),
        // It is further than this one has read.
        (Some(15), Rebase::Seek, 0, 15),
        // Somebody set the offset back.
        (Some(9), Rebase::Seek, 0, 9),
    ] {
        let mut batcher = batcher(9);
        take(&mut batcher, 10..14);
        assert_eq!(batcher.rebase(0, held), rebase, "{held:?}");
        assert_eq!((batcher.attempt().count, batcher.next_offsets()), (left, vec![(0, Some(next))]), "{held:?}");
        assert_eq!(batcher.held_offsets(), [(0, held.unwrap_or(0))]);
    }
    let mut batcher = batcher(9);
    take(&mut batcher, 10..14);
    assert_eq!(batcher.rebase(0, None), Rebase::Seek);
    assert_eq!((batcher.attempt().count, batcher.next_offsets()), (0, vec![(0, None)]));
}

/// Writes everything through a database that refuses some offsets; what was written, what became a dead letter, and
/// how many transactions it took.
fn write_all(batcher: &mut Batcher, refused: &BTreeSet<i64>) -> (Vec<i64>, Vec<i64>, usize) {
    let (mut written, mut dead_letters, mut transactions) = (Vec::new(), Vec::new(), 0);
    while !batcher.is_empty() {
        transactions += 1;
        assert!(batcher.due_at().is_some());
        let attempt = batcher.attempt();
        let rows: Vec<i64> =
            batcher.items(&attempt).filter(|item| item.content().is_some()).map(|item| item.record.offset).collect();
        if rows.iter().any(|offset| refused.contains(offset)) {
            assert_ne!(batcher.refused(&attempt, "refused".to_owned()), Refusal::NoCulprit);
            continue;
        }
        let dead = batcher.items(&attempt).filter(|item| item.content().is_none());
        dead_letters.extend(dead.map(|item| item.record.offset));
        written.extend(rows);
        batcher.written(&attempt);
    }
    (written, dead_letters, transactions)
}

#[test]
fn one_bad_row_among_a_thousand_costs_few_transactions() {
    let mut batcher = batcher(1000);
    take(&mut batcher, 10..1010);
    let (written, dead_letters, transactions) = write_all(&mut batcher, &BTreeSet::from([700]));
    assert_eq!((written.len(), dead_letters), (999, vec![700]));
    assert!(transactions <= 13, "{transactions}");
}

#[test]
fn small_attempts_end_when_the_refusal_does_not_come_again() {
    let mut batcher = batcher(8);
    take(&mut batcher, 10..18);
    let attempt = batcher.attempt();
    assert_eq!(batcher.refused(&attempt, "refused".to_owned()), Refusal::Halved);
    let (written, dead_letters, _) = write_all(&mut batcher, &BTreeSet::new());
    assert_eq!((written.len(), dead_letters.len()), (8, 0));
    take(&mut batcher, 18..26);
    assert_eq!(batcher.attempt().count, 8);
}

proptest! {
    #[test]
    fn exactly_the_refused_rows_become_dead_letters(
        count in 1i64..200, rows_max in 1usize..70, refused in prop::collection::btree_set(10i64..210, 0..20)
    ) {
        let mut batcher = batcher(rows_max);
        take(&mut batcher, 10..10 + count);
        let (written, dead_letters, _) = write_all(&mut batcher, &refused);
        let (bad, good): (Vec<i64>, Vec<i64>) = (10..10 + count).partition(|offset| refused.contains(offset));
        prop_assert_eq!(written, good);
        prop_assert_eq!(dead_letters, bad);
        prop_assert_eq!(batcher.held_offsets(), vec![(0, 10 + count)]);
    }
}
