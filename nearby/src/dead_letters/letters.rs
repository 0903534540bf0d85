//! What `dead-letters` holds: letters, and the marks of those that were redriven. Pure.
//!
//! A mark is a record in the same topic, without a value: it names the letter's origin by the same headers, and in
//! `redriven-partition` and `redriven-offset` where the record is now. So letters and marks grow old together, nothing else
//! has to be kept, and `nearby tail dead-letters` shows both.

use nearby_schemas::TimestampMs;
use nearby_schemas::topics::Topics;
use rdkafka::Message;
use rdkafka::message::{Header, Headers, OwnedHeaders};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Where the sink and the services say in the reason that the value was too large for a letter.
const LEFT_OUT: &str = " bytes left out)";
const REDRIVEN_PARTITION: &str = "redriven-partition";
const REDRIVEN_OFFSET: &str = "redriven-offset";

/// Where a record is or was.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

/// A letter without its value, of which there may be gigabytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    pub partition: i32,
    pub offset: i64,
    /// When it was written.
    pub written_at: TimestampMs,
    /// None if the headers do not say.
    pub origin: Option<Origin>,
    pub reason: String,
    pub key: Option<Vec<u8>>,
    pub size_bytes: Option<usize>,
    /// The value was too large for a letter: it is where the letter came from, for as long as that keeps it.
    pub left_out: bool,
}

/// A record of `dead-letters`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Letter(Letter),
    /// What came from the first is now in the second.
    Mark(Origin, Origin),
}

/// Reads a record of `dead-letters`; nothing in there is refused.
pub fn found(record: &impl Message) -> Found {
    let header = |name: &str| {
        let found = record.headers()?.iter().find(|header| header.key == name)?.value?;
        std::str::from_utf8(found).ok()
    };
    let place = |partition: &str, offset: &str| {
        let topic = header("topic")?.to_owned();
        Some(Origin { topic, partition: header(partition)?.parse().ok()?, offset: header(offset)?.parse().ok()? })
    };
    let origin = place("partition", "offset");
    if let (Some(origin), Some(now_at)) = (&origin, place(REDRIVEN_PARTITION, REDRIVEN_OFFSET)) {
        return Found::Mark(origin.clone(), now_at);
    }
    let reason = header("reason").unwrap_or_default().to_owned();
    Found::Letter(Letter {
        partition: record.partition(),
        offset: record.offset(),
        written_at: TimestampMs(record.timestamp().to_millis().unwrap_or_default()),
        origin,
        left_out: record.payload().is_none() && reason.ends_with(LEFT_OUT),
        reason,
        key: record.key().map(<[u8]>::to_vec),
        size_bytes: record.payload().map(<[u8]>::len),
    })
}

/// The headers of a mark.
pub fn mark(origin: &Origin, now_at: &Origin) -> OwnedHeaders {
    let headers = [
        ("topic", origin.topic.clone()),
        ("partition", origin.partition.to_string()),
        ("offset", origin.offset.to_string()),
        ("reason", format!("redriven to {now_at}")),
        (REDRIVEN_PARTITION, now_at.partition.to_string()),
        (REDRIVEN_OFFSET, now_at.offset.to_string()),
    ];
    headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

/// All letters, and what became of them.
#[derive(Debug, Default)]
pub struct Letters {
    pub letters: Vec<Letter>,
    /// Where records of these origins are now, and the reverse.
    marks: BTreeMap<Origin, Origin>,
    redriven: BTreeMap<Origin, Origin>,
}

impl Letters {
    /// The next record of `dead-letters`.
    pub fn take(&mut self, found: Found) {
        match found {
            Found::Letter(letter) => self.letters.push(letter),
            Found::Mark(origin, now_at) => {
                self.redriven.insert(now_at.clone(), origin.clone());
                self.marks.insert(origin, now_at);
            }
        }
    }

    /// Where the letter's record is now, if it was redriven.
    pub fn redriven_to(&self, letter: &Letter) -> Option<&Origin> {
        self.marks.get(letter.origin.as_ref()?)
    }

    /// The letter that became this one, by being redriven without success.
    pub fn came_back_from(&self, letter: &Letter) -> Option<&Origin> {
        self.redriven.get(letter.origin.as_ref()?)
    }

    /// What to do about the letters that are wanted, in their order.
    pub fn plan(&self, selection: &Selection, topics: &Topics) -> Vec<(&Letter, Plan)> {
        let mut seen = BTreeSet::new();
        let wanted = self.letters.iter().filter(|letter| selection.wants(letter));
        wanted.map(|letter| (letter, self.plan_for(letter, selection, topics, &mut seen))).collect()
    }

    fn plan_for<'a>(
        &'a self,
        letter: &'a Letter,
        selection: &Selection,
        topics: &Topics,
        seen: &mut BTreeSet<&'a Origin>,
    ) -> Plan {
        let Some(origin) = &letter.origin else {
            return Plan::Leave("its headers do not say where it came from".to_owned());
        };
        if let Some(now_at) = self.marks.get(origin) {
            return Plan::Done(now_at.clone());
        }
        // Readers that start again bury a record that is still in their topic again.
        if !seen.insert(origin) {
            return Plan::Leave(format!("an earlier letter is of {origin}, too"));
        }
        if let Some(from) = self.came_back_from(letter).filter(|_| selection.offset.is_none()) {
            return Plan::Leave(format!("redriven from {from}, it came back: name its --offset to try again"));
        }
        if origin.topic == topics.location_events() {
            Plan::Redrive { unless_newer: false }
        } else if [topics.friend_lists(), topics.sessions()].contains(&origin.topic) {
            Plan::Redrive { unless_newer: true }
        } else if origin.topic == topics.gateways() {
            Plan::Leave("a heartbeat is true only when it is written".to_owned())
        } else if crate::decoded::gateway_of(&origin.topic, topics).is_some() {
            Plan::Leave("its gateway has asked for snapshots instead".to_owned())
        } else {
            Plan::Leave(format!("{} is no topic of this deployment", origin.topic))
        }
    }
}

/// What is to be done about a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Write it back; in a topic whose last record counts only if there is none of its key behind it.
    Redrive { unless_newer: bool },
    /// It was, and is here now.
    Done(Origin),
    /// Not to be redriven, for this reason.
    Leave(String),
}

/// Which letters, by where they came from; none set means all.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub topic: Option<String>,
    pub partition: Option<i32>,
    pub offset: Option<i64>,
    pub since: Option<TimestampMs>,
}

impl Selection {
    /// Whether the letter is meant.
    pub fn wants(&self, letter: &Letter) -> bool {
        let origin = letter.origin.as_ref();
        let is = |wanted: bool, found: Option<bool>| !wanted || found == Some(true);
        is(self.topic.is_some(), origin.map(|origin| Some(&origin.topic) == self.topic.as_ref()))
            && is(self.partition.is_some(), origin.map(|origin| Some(origin.partition) == self.partition))
            && is(self.offset.is_some(), origin.map(|origin| Some(origin.offset) == self.offset))
            && self.since.is_none_or(|since| letter.written_at >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_service::dead_letters::{Original, dead_letter};
    use rdkafka::Timestamp;
    use rdkafka::message::OwnedMessage;

    fn origin(topic: &str, partition: i32, offset: i64) -> Origin {
        Origin { topic: topic.to_owned(), partition, offset }
    }

    /// A letter as the services write it.
    fn letter(from: &Origin, value: Option<Vec<u8>>, offset: i64) -> Letter {
        let time = Timestamp::CreateTime(1_000 + offset);
        let Origin { topic, partition, offset: at } = from;
        let original = Original { topic, partition: *partition, offset: *at, key: Some(b"7"), value: value.as_deref() };
        let letter = dead_letter("dead-letters".to_owned(), original, "because");
        let buried = OwnedMessage::new(letter.value, letter.key, letter.topic, time, 0, offset, letter.headers);
        match found(&buried) {
            Found::Letter(letter) => letter,
            Found::Mark(..) => panic!("a letter is no mark"),
        }
    }

    fn marked(from: &Origin, now_at: &Origin) -> Found {
        let headers = Some(mark(from, now_at));
        let time = Timestamp::CreateTime(9);
        found(&OwnedMessage::new(None, Some(b"7".to_vec()), "dead-letters".to_owned(), time, 0, 99, headers))
    }

    fn letters(found: impl IntoIterator<Item = Found>) -> Letters {
        let mut letters = Letters::default();
        found.into_iter().for_each(|found| letters.take(found));
        letters
    }

    fn plans(letters: &Letters, selection: &Selection) -> Vec<String> {
        let plans = letters.plan(selection, &Topics::default()).into_iter();
        plans.map(|(letter, plan)| format!("{} {plan:?}", letter.offset)).collect()
    }

    #[test]
    fn a_letter_says_where_it_came_from() {
        let from = origin("location-events", 3, 17);
        let plain = letter(&from, Some(vec![1, 2]), 5);
        let expected = Letter {
            partition: 0,
            offset: 5,
            written_at: TimestampMs(1_005),
            origin: Some(from.clone()),
            reason: "because".to_owned(),
            key: Some(b"7".to_vec()),
            size_bytes: Some(2),
            left_out: false,
        };
        assert_eq!(plain, expected);
        assert!(letter(&from, Some(vec![0; 950_000]), 6).left_out);
        let tombstone = letter(&from, None, 7);
        assert_eq!((tombstone.left_out, tombstone.size_bytes), (false, None));
        let foreign = OwnedMessage::new(None, None, "dead-letters".to_owned(), Timestamp::NotAvailable, 0, 8, None);
        assert!(matches!(found(&foreign), Found::Letter(Letter { origin: None, .. })));
    }

    #[test]
    fn what_was_redriven_is_not_redriven_again() {
        let (from, now_at) = (origin("location-events", 3, 17), origin("location-events", 3, 40));
        let first = Found::Letter(letter(&from, Some(vec![1]), 0));
        let letters = letters([first.clone(), marked(&from, &now_at), first]);
        expect_test::expect![[r#"
            0 Done(Origin { topic: "location-events", partition: 3, offset: 40 })
            0 Done(Origin { topic: "location-events", partition: 3, offset: 40 })"#]]
        .assert_eq(&plans(&letters, &Selection::default()).join("\n"));
    }

    #[test]
    fn what_comes_back_waits_until_it_is_named() {
        let (from, now_at) = (origin("location-events", 3, 17), origin("location-events", 3, 40));
        let letters = letters([
            Found::Letter(letter(&from, Some(vec![1]), 0)),
            marked(&from, &now_at),
            Found::Letter(letter(&now_at, Some(vec![1]), 2)),
        ]);
        let selection = Selection { topic: Some("location-events".to_owned()), ..Selection::default() };
        expect_test::expect![[r#"
            0 Done(Origin { topic: "location-events", partition: 3, offset: 40 })
            2 Leave("redriven from location-events/3/17, it came back: name its --offset to try again")"#]]
        .assert_eq(&plans(&letters, &selection).join("\n"));
        let selection = Selection { partition: Some(3), offset: Some(40), ..selection };
        assert_eq!(plans(&letters, &selection), ["2 Redrive { unless_newer: false }"]);
    }

    #[test]
    fn each_topic_has_its_rule_and_each_record_one_turn() {
        let topics = ["location-events", "friend-lists", "sessions", "gateways", "friend-moved-g1-a", "mine"];
        let mut found: Vec<Found> = (0..)
            .zip(topics)
            .map(|(offset, topic)| Found::Letter(letter(&origin(topic, 1, 5), Some(vec![1]), offset)))
            .collect();
        found.push(Found::Letter(letter(&origin("sessions", 1, 5), Some(vec![1]), 6)));
        expect_test::expect![[r#"
            0 Redrive { unless_newer: false }
            1 Redrive { unless_newer: true }
            2 Redrive { unless_newer: true }
            3 Leave("a heartbeat is true only when it is written")
            4 Leave("its gateway has asked for snapshots instead")
            5 Leave("mine is no topic of this deployment")
            6 Leave("an earlier letter is of sessions/1/5, too")"#]]
        .assert_eq(&plans(&letters(found), &Selection::default()).join("\n"));
    }

    #[test]
    fn letters_are_chosen_by_origin_and_time() {
        let letter = letter(&origin("sessions", 1, 5), None, 0);
        let topic = || Some("sessions".to_owned());
        for (wanted, selection) in [
            (true, Selection::default()),
            (true, Selection { topic: topic(), partition: Some(1), offset: Some(5), since: Some(TimestampMs(1_000)) }),
            (false, Selection { topic: Some("gateways".to_owned()), ..Selection::default() }),
            (false, Selection { topic: topic(), partition: Some(2), ..Selection::default() }),
            (false, Selection { topic: topic(), partition: Some(1), offset: Some(6), ..Selection::default() }),
            (false, Selection { since: Some(TimestampMs(1_001)), ..Selection::default() }),
        ] {
            assert_eq!(selection.wants(&letter), wanted, "{selection:?}");
        }
    }
}
